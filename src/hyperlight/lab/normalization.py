"""The normalisation strategies that the paper compares MIP with (sections 6.2 and B.5, figure 5a).

============ ============================ =====================================================
BatchNorm-P  ``normalization="batch"``    batch normalisation in the primary
LayerNorm-P  ``normalization="layer"``    layer normalisation in the primary
LayerNorm-H  :func:`normalize_features`   layer normalisation in the hypernetwork
WeightNorm   :func:`normalize_weights`    predictions give the direction of weights, not the norm
============ ============================ =====================================================

The first two are arguments of :class:`~hyperlight.lab.primaries.ResNetLike` and
:class:`~hyperlight.lab.primaries.UNet`.
What normalisation learns itself (gains, and biases of layers) is not predicted (section A.4).
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

# Those that are layers of the primary, and their names there.
IN_PRIMARY: dict[str, Layers] = {"batchnorm-p": "batch", "layernorm-p": "layer"}


def normalize_features(hypernet: HyperNet) -> None:
    """LayerNorm-H: normalise the features of every hidden layer before their activation.

    Changes ``hypernet``; its other parameters stay as they were drawn.
    With one input and no encoding, what it predicts at first hardly depends on the input
    any more (section B.5).
    """
    trunk = hypernet.trunk
    for place, layer in enumerate(trunk.layers):
        assert isinstance(layer, nn.Linear)
        norm = nn.LayerNorm(layer.out_features).to(layer.weight)
        trunk.activations[place] = nn.Sequential(norm, trunk.activations[place])


class WeightNorm(nn.Module):
    r"""Weight normalisation (Salimans and Kingma 2016): :math:`w = g\,v / \lVert v \rVert`.

    One gain :math:`g` for every output (the first dimension), which starts at the norm of the
    weight. Where :math:`v` is zero, as a classical hypernetwork has it at gamma 0, so is
    :math:`w`.

    Args:
        weight: the initial weight, of two or more dimensions.

    Shape:
        That of ``weight`` to the same.

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
    """WeightNorm: all weights of two or more dimensions become directions with a gain.

    Changes ``primary``, whose outputs stay the same. Hypernetize it with
    ``targets=is_no_gain``: gains are learned as usual, directions are predicted. The paper
    cites Qiao et al. 2019 for this in section B.5, who standardise weights, and in
    section 6.2 Salimans and Kingma 2016, who decouple the norm of a weight from its
    direction, which is what the text says.
    """
    for module in list(primary.modules()):
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.ndim > 1:
                parametrize.register_parametrization(module, name, WeightNorm(weight))


def is_no_gain(name: str, parameter: Tensor) -> bool:
    """Whether a parameter of a primary of :func:`normalize_weights` is one to predict."""
    return not name.endswith(".gain")
