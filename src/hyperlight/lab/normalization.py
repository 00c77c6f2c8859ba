"""Normalisation strategies that the paper compares MIP with (sections 6.2 and B.5, figure 5a).

============ ============================ =====================================================
BatchNorm-P  ``normalization="batch"``    batch normalisation in the primary
LayerNorm-P  ``normalization="layer"``    layer normalisation in the primary
LayerNorm-H  :func:`normalize_features`   layer normalisation in the hypernetwork
WeightNorm   :func:`normalize_weights`    prediction of the weights' directions, not their norms
============ ============================ =====================================================

The first two are arguments of :class:`~hyperlight.lab.primaries.ResNetLike` and
:class:`~hyperlight.lab.primaries.UNet`.
The parameters of normalisation (gains, and biases of layers) are not predicted (section A.4).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from .. import HyperNet
from .primaries import Layers

__all__ = [
    "IN_PRIMARY",
    "Normalization",
    "WeightNorm",
    "is_no_gain",
    "normalize_features",
    "normalize_weights",
]

Normalization = Literal["none", "batchnorm-p", "layernorm-p", "layernorm-h", "weightnorm"]
"""The strategies by the names of section 6.2."""

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
