"""Initialisation by name: how large the predicted change is at the start.

An initialisation answers one question: what root mean square should an entry of the predicted
change have? A head turns the answer into the weights that it holds. The answer is for features of
norm 1, which the Kaiming fan-out trunk gives in expectation under a unit-norm encoding (paper,
arXiv:2304.07645, section 5.2). If it is ``measured``, the head is scaled to it over draws of the
inputs, whatever the trunk.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ._torch import ConvTranspose
from .errors import ConfigurationError, did_you_mean, listed
from .precision import rms
from .targets import Target, attribute


class Initialization(ABC):
    r"""The base class of initialisations of the head.

    Attributes:
        measured: whether :meth:`std` is the root mean square over draws of the inputs, to which
            the head is scaled after it was drawn; otherwise it is meant for features of norm 1.
    """

    measured: bool = False

    @abstractmethod
    def std(self, name: str, shape: torch.Size) -> float:
        """The standard deviation of the entries of a predicted tensor, whose mean is zero.

        It is taken over random starts, and so includes what is the same for all inputs.
        """

    def relative_std(self, name: str, shape: torch.Size) -> float:
        """The standard deviation of factors of a tensor's entries, for heads that scale theta0.

        ``shape`` is that of the factors.
        """
        return self.std(name, shape)

    def fit(self, primary: nn.Module, targets: Sequence[Target]) -> Initialization:
        """Return the same initialisation with what it needs to know of the primary."""
        return self


@dataclass(frozen=True)
class FanOut(Initialization):
    r"""``"fan_out"``, the paper's: Kaiming fan-out per predicted tensor, and biases at zero.

    The part of the head that predicts a tensor of ``n`` entries is a layer of fan-out ``n``. It
    starts from :math:`N(0, 2 / n)`, so the prediction has norm :math:`\sqrt 2` in expectation. If
    it predicts a bias it starts at zero, and learns from there (paper, arXiv:2304.07645,
    section 5.2). Both are what the authors' release does. The gain :math:`\sqrt 2` is that of
    their LeakyReLU.

    A bias is a tensor named ``bias``, or a vector with "bias" in the last part of its name, such
    as ``bias_ih_l0`` or ``in_proj_bias``. Everything else starts as a weight does. That includes
    the gains of normalisation layers and class tokens, if they are predicted.
    """

    def std(self, name: str, shape: torch.Size) -> float:
        if _is_bias(name, shape):
            return 0.0
        return math.sqrt(2.0 / max(shape.numel(), 1))


def _is_bias(name: str, shape: torch.Size) -> bool:
    """Whether a tensor of that name and shape is a bias; ``biases.0`` is one of a list."""
    last = name.rstrip(".0123456789").rpartition(".")[2]
    return last == "bias" or ("bias" in last and len(shape) < 2)


@dataclass(frozen=True)
class Zero(Initialization):
    """``"zero"``: the model equals its primary bit for bit at step 0, and learns from there.

    Only the head starts at zero. The features that it multiplies do not, so it has a gradient.
    """

    def std(self, name: str, shape: torch.Size) -> float:
        return 0.0


@dataclass(frozen=True)
class Relative(Initialization):
    r"""``"relative"``: the change is a set fraction of each tensor's own scale.

    The root mean square of the change over draws of the inputs is ``fraction`` times that of the
    tensor's :math:`\theta^0`, whatever the number of inputs, the width of the hypernetwork and the
    shape of the tensor. A tensor that is all zero starts unchanged, and learns from there.

    Most of it is an offset that is the same for all inputs: 80 to 95 % of the mean square for
    numbers, and half of it for ten categories.

    Args:
        fraction: the root mean square of the change, in units of the tensor's.
        scales: the root mean square of every tensor by name; read from the primary by default.

    >>> net = nn.Linear(64, 64)
    >>> model = hl.hypernetize(net, inputs={"z": hl.Normal(8)}, init=hl.Relative(0.1))
    >>> z = torch.randn(100, 8)
    >>> theta0, change = net.weight.detach(), model.hypernet(z=z)["weight"].detach()
    >>> scale = theta0.square().mean().sqrt()
    >>> round(float(change.square().mean().sqrt() / scale), 2)
    0.1
    """

    fraction: float = 0.1
    scales: Mapping[str, float] = field(default_factory=dict[str, float], repr=False)

    measured = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.fraction < math.inf:
            raise ConfigurationError(
                f"Relative(fraction={self.fraction!r}): expected a fraction of the scale of "
                "theta0, such as 0.1."
            )

    def std(self, name: str, shape: torch.Size) -> float:
        if name not in self.scales:
            raise ConfigurationError(
                f"init='relative' needs the scale of theta0, and there is none for {name!r}. Use "
                "hypernetize, which reads it from the primary, or Relative(0.1, scales={...})."
            )
        return self.fraction * self.scales[name]

    def relative_std(self, name: str, shape: torch.Size) -> float:
        return self.fraction

    def fit(self, primary: nn.Module, targets: Sequence[Target]) -> Relative:
        scales: dict[str, float] = {}
        for target in targets:
            parameter = attribute(primary, target.name)
            if parameter.is_meta:
                raise ConfigurationError(
                    f"init='relative' needs the values of theta0, and {target.name!r} is on the "
                    "meta device. Use init='zero', or build the primary with its values first."
                )
            scale = float(rms(parameter))
            if not math.isfinite(scale):
                raise ConfigurationError(
                    f"init='relative' needs the scale of theta0, and {target.name!r} holds NaN or "
                    "infinity. Repair it, leave it out with targets=..., or use init='fan_out'."
                )
            scales[target.name] = scale
        return Relative(self.fraction, scales)


@dataclass(frozen=True)
class _HyperFan(Initialization):
    """What both hyperfan initialisations know of the primary.

    Args:
        fans: fan-in and fan-out of the layer that a tensor belongs to, by name; by default
            they are read from its shape.
        paired: the tensors of layers whose weight and bias are both predicted.
    """

    fans: Mapping[str, tuple[int, int]] = field(default_factory=dict, repr=False)
    paired: frozenset[str] = field(default=frozenset(), repr=False)

    measured = True

    def _fans(self, name: str, shape: torch.Size) -> tuple[int, int]:
        return self.fans.get(name) or _fans(shape)

    def fit(self, primary: nn.Module, targets: Sequence[Target]) -> Initialization:
        layers: dict[str, list[Target]] = {}
        for target in targets:
            layers.setdefault(target.name.rpartition(".")[0], []).append(target)
        fans: dict[str, tuple[int, int]] = {}
        paired: set[str] = set()
        for path, members in layers.items():
            layer = attribute(primary, path)
            matrices = [target for target in members if len(target.shape) > 1]
            for target in matrices:
                into, out = _fans(target.shape)
                if isinstance(layer, ConvTranspose):
                    into, out = out, into
                elif isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
                    into, out = 1, target.shape[1]
                fans[target.name] = into, out
            if 0 < len(matrices) < len(members):
                paired |= {target.name for target in members}
            if matrices:
                fans = dict.fromkeys([t.name for t in members], fans[matrices[0].name]) | fans
        return type(self)(fans, frozenset(paired))


@dataclass(frozen=True)
class HyperFanIn(_HyperFan):
    r"""``"hyperfan_in"``: keeps the variance of the primary's activations (Chang et al. 2020).

    Predicted weights have variance :math:`1 / (2^b d_{in})`, where :math:`b` is 1 if the
    layer's bias is predicted as well, which then has variance 1/2 (table 1 of "Principled
    Weight Initialization for Hypernetworks", without its factor for ReLU). Meant for the
    formulation without residual: with one, the change comes on top of ``theta0``.
    """

    def std(self, name: str, shape: torch.Size) -> float:
        if len(shape) < 2:
            return math.sqrt(0.5)
        halves = 2 if name in self.paired else 1
        return 1.0 / math.sqrt(halves * self._fans(name, shape)[0])


@dataclass(frozen=True)
class HyperFanOut(_HyperFan):
    r"""``"hyperfan_out"``: keeps the variance of the primary's gradients (Chang et al. 2020).

    Predicted weights have variance :math:`1 / d_{out}`, biases what then is left to the
    activations, :math:`\max(1 - d_{in} / d_{out}, 0)` (table 1, without its factor for ReLU).
    """

    def std(self, name: str, shape: torch.Size) -> float:
        into, out = self._fans(name, shape)
        if len(shape) < 2:
            return math.sqrt(max(1.0 - into / out, 0.0))
        return 1.0 / math.sqrt(out)


@dataclass(frozen=True)
class Given(Initialization):
    """A user's function of a tensor's name and shape."""

    function: Callable[[str, torch.Size], float]

    def std(self, name: str, shape: torch.Size) -> float:
        return self.function(name, shape)


def _fans(shape: torch.Size) -> tuple[int, int]:
    """Fan-in and fan-out of a weight of that shape; a vector is one row."""
    if len(shape) < 2:
        return 1, max(shape.numel(), 1)
    field_size = math.prod(shape[2:])
    return shape[1] * field_size, shape[0] * field_size


Init = str | Initialization | Callable[[str, torch.Size], float]
"""How a head is initialised: a name, an object, or a function of a tensor's name and shape."""

INITIALIZATIONS: Mapping[str, type[Initialization]] = MappingProxyType(
    {
        "fan_out": FanOut,
        "zero": Zero,
        "relative": Relative,
        "hyperfan_in": HyperFanIn,
        "hyperfan_out": HyperFanOut,
    }
)


def find_init(init: Init) -> Initialization:
    """The initialisation of that name, or the one that was given."""
    if isinstance(init, Initialization):
        return init
    if isinstance(init, str) and init in INITIALIZATIONS:
        return INITIALIZATIONS[init]()
    if isinstance(init, type):
        raise ConfigurationError(f"init was the class {init.__name__}; expected {init.__name__}().")
    if callable(init):
        return Given(init)
    raise ConfigurationError(
        f"init was {init!r}; expected one of {listed(INITIALIZATIONS)}, an object such as "
        "hl.Relative(0.1), or a function of a tensor's name and shape."
        f"{did_you_mean(str(init), INITIALIZATIONS)}"
    )


def kaiming_fan_out_(
    weight: Tensor, gain: float, generator: torch.Generator | None = None
) -> Tensor:
    r"""Fill ``weight`` ``(out, in)`` from :math:`N(0, gain^2 / out)`, in place (He et al. 2015)."""
    with torch.no_grad():
        return weight.normal_(0.0, gain / math.sqrt(weight.shape[0]), generator=generator)


def gain_of(activation: nn.Module) -> float:
    """The Kaiming gain of an activation; that of ReLU where PyTorch knows no other.

    >>> gain_of(nn.ReLU()) == math.sqrt(2.0)
    True
    """
    if isinstance(activation, nn.LeakyReLU):
        return nn.init.calculate_gain("leaky_relu", activation.negative_slope)
    found = (gain for kind, gain in _GAINS.items() if isinstance(activation, kind))
    return next(found, nn.init.calculate_gain("relu"))


_GAINS = {nn.Identity: 1.0, nn.Sigmoid: 1.0, nn.Tanh: 5.0 / 3.0, nn.SELU: 0.75}
