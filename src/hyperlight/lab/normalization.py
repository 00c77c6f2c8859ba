"""Normalisation strategies that the paper compares MIP with (sections 6.2 and B.5, figure 5a).

============ =============================== ==================================================
BatchNorm-P  ``normalization="batch"``       batch normalisation in the primary
LayerNorm-P  ``normalization="layer"``       layer normalisation in the primary
LayerNorm-H  :func:`normalize_features`      layer normalisation in the hypernetwork
BatchNorm-H  :func:`normalize_over_gammas`   batch normalisation in the hypernetwork (B.5 only)
WeightNorm   :func:`normalize_weights`       prediction of the weights' directions, not their norms
============ =============================== ==================================================

The first two are arguments of :class:`~hyperlight.lab.primaries.ResNetLike` and
:class:`~hyperlight.lab.primaries.UNet`.
The parameters of normalisation (gains, and biases of layers) are not predicted (section A.4).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from .. import HyperNet
from .primaries import Layers

__all__ = [
    "IN_HYPERNETWORK",
    "IN_PRIMARY",
    "Normalization",
    "OverGammas",
    "WeightNorm",
    "is_no_gain",
    "normalize_features",
    "normalize_over_gammas",
    "normalize_weights",
]

Normalization = Literal[
    "none", "batchnorm-p", "layernorm-p", "layernorm-h", "batchnorm-h", "weightnorm"
]
"""The strategies by the names of section 6.2, and that of B.5 which has none."""

# Strategies that are layers of the hypernetwork.
IN_HYPERNETWORK = ("layernorm-h", "batchnorm-h")

# Strategies that are layers of the primary, and their names there.
IN_PRIMARY: dict[str, Layers] = {"batchnorm-p": "batch", "layernorm-p": "layer"}


def normalize_features(hypernet: HyperNet) -> None:
    """LayerNorm-H: normalise the features of every hidden layer before their activation.

    Changes ``hypernet`` in place, without redrawing its other parameters. With one input and no
    encoding, initial predictions then hardly depend on the input (section B.5).
    """
    trunk = hypernet.trunk
    for index, layer in enumerate(trunk.layers):
        assert isinstance(layer, nn.Linear)
        norm = nn.LayerNorm(layer.out_features).to(layer.weight)
        trunk.activations[index] = nn.Sequential(norm, trunk.activations[index])


# Gammas beside that of a batch, over which BatchNorm-H takes its statistics.
_OTHERS = 16


class OverGammas(nn.Module):
    """A trunk that sees some more gammas in training, for the statistics of batch normalisation.

    Args:
        trunk: the layers.
        others: encoded gammas, ``(N, encoded)``, that stand beside those of every training call.

    Shape:
        ``(B, encoded)`` to ``(B, features)``.
    """

    def __init__(self, trunk: nn.Module, others: Tensor) -> None:
        super().__init__()
        self.layers = trunk
        self.register_buffer("others", others)

    def forward(self, x: Tensor) -> Tensor:
        others = self.get_buffer("others")
        features: Tensor = self.layers(torch.cat([x, others.to(x)]) if self.training else x)
        return features[: len(x)]


def normalize_over_gammas(hypernet: HyperNet) -> None:
    """BatchNorm-H: normalise every hidden feature over gammas before its activation.

    The batches of the paper's tasks have one gamma, over which nothing can be normalised (B.5 has
    both cases). So the statistics are taken over it and 16 others, spread evenly over the space.
    Changes ``hypernet``, which has one input, in place, without redrawing its other parameters.
    """
    trunk = hypernet.trunk
    for index, layer in enumerate(trunk.layers):
        assert isinstance(layer, nn.Linear)
        norm = nn.BatchNorm1d(layer.out_features).to(layer.weight)
        trunk.activations[index] = nn.Sequential(norm, trunk.activations[index])
    ((name, space),) = hypernet.inputs.items()
    with torch.no_grad():
        others = hypernet.encode(**{name: space.grid(_OTHERS)})
    hypernet.trunk = OverGammas(trunk, others)


class WeightNorm(nn.Module):
    r"""Weight normalisation (Salimans and Kingma 2016): :math:`w = g\,v / \lVert v \rVert`.

    Every output (first dimension) has a gain :math:`g`, which starts at the norm of its weights.
    Where :math:`v` is zero, as with a classical hypernetwork at gamma 0, :math:`w` is zero too.

    Args:
        weight: initial weight, with two or more dimensions.

    Shape:
        Input and output have the shape of ``weight``.

    >>> from hyperlight.lab.normalization import WeightNorm
    >>> norm = WeightNorm(torch.tensor([[3.0, 4.0]]))
    >>> norm(torch.tensor([[0.0, 0.1]]))
    tensor([[0., 5.]], grad_fn=<MulBackward0>)
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        gain = weight.detach().flatten(1).norm(dim=1)
        self.gain = nn.Parameter(gain.view(-1, *(1 for _ in weight.shape[1:])))

    def forward(self, direction: Tensor) -> Tensor:
        return self.gain * F.normalize(direction.flatten(1), dim=1).view_as(direction)


def normalize_weights(primary: nn.Module) -> None:
    """WeightNorm: turn all weights with two or more dimensions into directions with a gain.

    Changes ``primary`` in place without changing its outputs. Hypernetize it with
    ``targets=is_no_gain``: directions are predicted, gains are trained as usual.

    The paper cites two works for this. Section 6.2 cites Salimans and Kingma 2016, who decouple the
    norm of a weight from its direction, as the text says. Section B.5 cites Qiao et al. 2019, who
    standardise weights instead.
    """
    for module in list(primary.modules()):
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.ndim > 1:
                parametrize.register_parametrization(module, name, WeightNorm(weight))


def is_no_gain(name: str, parameter: Tensor) -> bool:
    """Select the parameters to predict in a primary after :func:`normalize_weights`."""
    return not name.endswith(".gain")
