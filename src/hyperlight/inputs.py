"""Hypernetwork inputs: objects that know the space they live in.

An input maps values of its space to ``[0, 1]`` as section 4 of the paper (arXiv:2304.07645)
prescribes: min-max scaling, of the logarithm if the space spans orders of magnitude, or the
logistic function if it is unbounded. It also checks values and draws them. Shapes follow
:mod:`torch.distributions`: a value has the shape ``batch_shape + event_shape``, and the event
shape belongs to the input.

A value outside the space is refused where it can be read at no cost. Elsewhere (in a graph that
:func:`torch.compile`, :func:`torch.export.export` or ONNX makes, under :func:`torch.vmap`, in a
tensor on an accelerator) it is replaced by the nearest value inside: see :meth:`Input.nearest`.
"""

from __future__ import annotations

import math
import numbers
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ._torch import draw_gamma, is_batched, is_traced
from .errors import ConfigurationError, InputError, check_integer
from .precision import rms, widen, widest

# Rounding that a value may carry past the end of its space, in units of the machine epsilon:
# float32(1e-4) is smaller than 1e-4, also once it was cast to float64.
_SLACK = 8.0

_SIZES: tuple[type[Any], ...] = (numbers.Integral, torch.SymInt)


def _slack(dtype: torch.dtype) -> float:
    return _SLACK * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)


def _event_shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes):
        raise ConfigurationError(
            f"The shape of a hypernetwork input was {shape!r}; expected a positive integer or a "
            "tuple of them, such as 32 or (4, 4), or () for a scalar."
        )
    return sizes


def as_batch_shape(given: int | Sequence[int]) -> tuple[int, ...]:
    """The batch shape as a tuple; an integer is its only size.

    >>> as_batch_shape(32)
    (32,)
    """
    sizes: Sequence[Any] = given if isinstance(given, Sequence) else (given,)
    if not all(isinstance(n, _SIZES) and not isinstance(n, bool) and n >= 0 for n in sizes):
        raise InputError(
            f"The batch shape to sample was {given!r}; expected a number of draws, such as 32, or "
            "a tuple such as (32,) or (4, 8); () is one draw without a batch dimension."
        )
    return tuple(sizes)


def _finite(owner: str, **values: float) -> None:
    for name, value in values.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not abs(value) <= sys.float_info.max:  # also too large for a float, or NaN
            raise ConfigurationError(f"{owner}: {name} was {value!r}; expected a finite number.")


class Input(ABC):
    """One hypernetwork input: its event shape, its space and its distribution.

    Subclasses give ``shape``, :attr:`support`, :meth:`standardize`,
    :meth:`unstandardize` and :meth:`quantile`; the rest follows.

    Attributes:
        shape: the event shape.
        discrete: whether values are integers, each of which is given features of its own.
        logarithmic: whether the space spans orders of magnitude.
    """

    shape: int | tuple[int, ...]
    discrete: ClassVar[bool] = False
    logarithmic: ClassVar[bool] = False

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one value, without batch dimensions."""
        return (self.shape,) if isinstance(self.shape, int) else self.shape

    def shape_of(self, value: Tensor) -> tuple[int, ...]:
        """The shape of one value in this tensor: the event shape, longer for blended categories."""
        return self.event_shape

    @property
    def numel(self) -> int:
        """The number of scalars in one value."""
        return math.prod(self.event_shape)

    @property
    @abstractmethod
    def support(self) -> tuple[float, float]:
        """The closed interval that every entry must lie in."""

    @property
    def bounded(self) -> bool:
        """Whether the support is a finite interval."""
        # Not math.isfinite: in a graph with dynamic shapes the ends are symbols.
        return all(-math.inf < end < math.inf for end in self.support)

    @abstractmethod
    def standardize(self, value: Tensor) -> Tensor:
        """The coordinate in which steps of one size mean the same everywhere, entry by entry.

        In [0, 1] if the space is bounded, otherwise zero at its centre with unit spread.
        """

    @abstractmethod
    def unstandardize(self, coordinate: Tensor) -> Tensor:
        """The inverse of :meth:`standardize`."""

    def normalize(self, value: Tensor) -> Tensor:
        """Map a value to [0, 1], entry by entry (paper, section 4, "Input Encoding")."""
        coordinate = self.standardize(value)
        return coordinate if self.bounded else torch.sigmoid(coordinate)

    @abstractmethod
    def quantile(self, p: Tensor) -> Tensor:
        """The value below which a fraction ``p`` of the distribution lies, entry by entry."""

    def batch_shape_of(self, value: Any) -> torch.Size:
        """The batch shape of a value that :meth:`tensor` gave."""
        shape: torch.Size = value.shape[: value.ndim - len(self.shape_of(value))]
        return shape

    def expand(self, value: Any, batch_shape: Sequence[int]) -> Any:
        """The value with that batch shape, to which its own broadcasts."""
        return value.expand((*batch_shape, *self.shape_of(value)))

    def calibrated(self, values: Any) -> Input:
        """The same input, scaled to values of yours: ``(N,) + event_shape``.

        Raises:
            ConfigurationError: the input says itself where its values lie.
        """
        raise ConfigurationError(
            f"says where its values lie, as it was declared as {self!r}; expected an input that "
            "takes it from data, hl.Encoded or hl.Vector. Leave it out of calibrate_on."
        )

    def sample(
        self,
        batch_shape: int | Sequence[int] = (),
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draw values of shape ``batch_shape + event_shape``; 32 is the batch shape ``(32,)``.

        The draw is made in the widest precision that the device has (float32 on
        devices without float64) and rounded once, so that the same generator
        gives the same values in every dtype.

        Raises:
            InputError: ``batch_shape`` is neither a number of draws nor a shape.
        """
        shape = as_batch_shape(batch_shape) + self.event_shape
        like = torch.empty(shape, dtype=widest(device), device=device)
        return self._rounded(self._draw(like, generator), dtype)

    def _draw(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """Values of the shape, precision and device of ``like``."""
        return self.quantile(torch.empty_like(like).uniform_(generator=generator))

    def _rounded(self, value: Tensor, dtype: torch.dtype | None) -> Tensor:
        """The value in that dtype, and still inside its space."""
        low, high = self.support
        return value.to(torch.get_default_dtype() if dtype is None else dtype).clamp(low, high)

    def grid(
        self,
        points: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Values spread evenly over the distribution: ``(points,) + event_shape``.

        The ``i``-th row holds the quantile ``i / (points - 1)`` in every entry
        (of an unbounded space, ``(i + 1/2) / points``).
        """
        if points < 2:
            raise InputError(f"A grid of {points} points was asked for; expected at least 2.")
        if self.bounded:
            p = torch.linspace(0.0, 1.0, points, dtype=torch.float64)
        else:
            p = (torch.arange(points, dtype=torch.float64) + 0.5) / points
        column = p.reshape((points,) + (1,) * len(self.event_shape))
        values = self.quantile(column.expand((points, *self.event_shape)))
        return self._rounded(values, dtype).clone().to(device)

    def tensor(self, value: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Turn what a user passed into a tensor of that dtype (int64 for categories).

        Args:
            value: a number, a tensor, or whatever :func:`torch.as_tensor` takes, of shape
                ``batch_shape + event_shape``.
            dtype: of the hypernetwork.
            device: of the hypernetwork, on which a tensor must be.

        Raises:
            InputError: a type, dtype, device, shape or value that does not fit. The values of a
                tensor are read only if that is free: not on an accelerator, which would have to
                be waited for, and not while a graph is captured (compile, export, vmap).
                Values that are not read are replaced by the :meth:`nearest` ones inside.
        """
        event = self.event_shape
        expected = f"a number or a tensor of shape {event} or batch shape + {event}"
        if not isinstance(value, Tensor):
            if isinstance(value, bool) or value is None or isinstance(value, str):
                raise InputError(f"was {value!r}; expected {expected}.")
            tracing = torch.compiler.is_compiling()  # a number is then a symbol
            if tracing or isinstance(value, numbers.Real):
                if not tracing:
                    self.check_number(float(value))
                if event:
                    raise InputError(
                        f"was the number {value!r}; expected a tensor of shape {event}, since it "
                        f"was declared as {self!r}."
                    )
                kind = torch.int64 if self.discrete else dtype
                made = torch.full((), value, dtype=kind, device=device)
                return self.nearest(made) if tracing else made
            value = self._from_array(value, expected, dtype, device)
        self._check_tensor(value, device)
        checked = is_read(value)
        if checked:
            self.check_values(value)
        converted: Tensor = value.to(dtype if value.is_floating_point() else torch.int64)
        return converted if checked else self.nearest(converted)

    def _from_array(
        self, given: Any, expected: str, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        try:  # numbers in lists keep their precision, arrays have their own
            value = torch.as_tensor(given)
            if value.is_floating_point() and isinstance(given, (list, tuple)):
                value = torch.as_tensor(given, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"was of type {type(given).__name__}; expected {expected}.") from None
        keep = self.discrete or value.is_complex() or value.is_floating_point()
        kind = value.dtype if keep else dtype
        return value.to(device, widest(device) if kind == torch.float64 else kind)

    def _check_tensor(self, value: Tensor, device: torch.device) -> None:
        event = self.shape_of(value)
        if self.discrete:
            if value.is_complex() or value.dtype == torch.bool:
                raise InputError(
                    f"has dtype {value.dtype}; expected integers, since it was declared as "
                    f"{self!r}. Convert it with .long()."
                )
        elif not value.is_floating_point():
            raise InputError(
                f"has dtype {value.dtype}; expected a floating-point tensor. Convert it with "
                ".float()."
            )
        if value.device != device:
            raise InputError(
                f"is on {value.device}, the hypernetwork on {device}. Move it with "
                f".to({str(device)!r})."
            )
        if value.ndim < len(event) or value.shape[value.ndim - len(event) :] != event:
            kind = ""
            if self.discrete and value.is_floating_point():
                kind = (
                    f" Numbers of {value.dtype} are the weights of a blend, one for each category; "
                    "categories are integers: convert them with .long()."
                )
            raise InputError(
                f"has shape {tuple(value.shape)}; expected {event}, or batch shape + {event}, "
                f"since it was declared as {self!r}.{kind}"
            )

    def check_number(self, value: float) -> None:
        """Refuse a Python number outside the space."""
        low, high = self.support
        if math.isnan(value) or not low <= value <= high or math.isinf(value):
            raise self._outside(f"{value!r}")

    def check_values(self, value: Tensor) -> None:
        """Refuse a tensor with an entry outside the space, or with NaN.

        Reads the values: on an accelerator this waits for the device.
        """
        value = value.detach()
        if value.numel() == 0:
            return
        low, high = self.support
        smallest, largest = (float(v) for v in torch.aminmax(value))
        slack = _slack(value.dtype)
        ends = [abs(end) for end in (low, high) if math.isfinite(end)]
        room = slack * max(ends, default=0.0)
        # In a logarithmic space the room at the small end must be small as well.
        below = slack * low if self.logarithmic else room
        inside = low - below <= smallest and largest <= high + room
        if not inside or math.isinf(smallest) or math.isinf(largest):
            if math.isnan(smallest) or math.isnan(largest):
                raise self._outside("NaN")
            raise self._outside(_range(smallest, largest))

    def nearest(self, value: Tensor) -> Tensor:
        """The value itself if it is inside the space, otherwise the nearest one that is.

        Takes the place of :meth:`check_values` where values are not read, and reads none. NaN
        stays NaN.

        >>> hl.Uniform(0.0, 0.5).nearest(torch.tensor([-1.0, 0.2, 7.0]))
        tensor([0.0000, 0.2000, 0.5000])
        """
        low, high = self.support
        return value if low == -math.inf and high == math.inf else value.clamp(low, high)

    def _outside(self, found: str) -> InputError:
        low, high = self.support
        finite = math.isfinite(low) or math.isfinite(high)
        expected = f"values in [{low:g}, {high:g}]" if finite else "finite values"
        fix = (
            "Find where it became NaN before it reaches the model"
            if "nan" in found.lower()
            else "Pass a value inside, or declare a wider space in inputs={...}"
        )
        return InputError(
            f"was {found}; expected {expected}, since it was declared as {self!r}. {fix}."
        )


def _range(*ends: float) -> str:
    smallest, largest = (f"{end:.6g}" if isinstance(end, float) else f"{end}" for end in ends)
    return smallest if smallest == largest else f"values from {smallest} to {largest}"


def is_read(value: Tensor) -> bool:
    """Whether the values are checked: if reading them costs nothing and does not break a graph."""
    return (
        value.device.type == "cpu"
        and not is_traced()
        and type(value) in (Tensor, nn.Parameter)
        and not is_batched(value)
    )


@torch.no_grad()
def spread_of(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every column of ``(N, columns)``, to divide by.

    A column that hardly varies beside the others has a hundredth of their deviation.

    Raises:
        ConfigurationError: there are fewer than two rows, they are all the same, or not finite.
    """
    wide = widen(values.detach())
    if len(wide) < 2:
        raise ConfigurationError(
            f"was given {len(wide)} value to calibrate on; expected at least 2. A hundred are "
            "enough."
        )
    mean, deviation = wide.mean(dim=0), wide.std(dim=0, correction=0)
    typical, size = float(rms(deviation)), float(rms(wide))
    if not math.isfinite(size):
        raise ConfigurationError("was given values to calibrate on that give NaN or infinity.")
    if typical <= 1e-6 * size:
        raise ConfigurationError(
            f"was given {len(wide)} values to calibrate on that are all the same to the "
            "hypernetwork, so nothing can depend on them."
        )
    return mean, deviation.clamp_min(1e-2 * typical)


class _Interval(Input):
    """An input between two ends; uniform in its standardized coordinate."""

    low: float
    high: float
    endpoints: float

    def _check(self) -> None:
        owner = type(self).__name__
        object.__setattr__(self, "shape", _event_shape(self.shape))
        _finite(owner, low=self.low, high=self.high, endpoints=self.endpoints)
        if not 0.0 <= self.endpoints <= 1.0:
            raise ConfigurationError(
                f"{owner}(endpoints={self.endpoints}): expected a fraction between 0 and 1."
            )

    def __repr__(self) -> str:
        rest = f", endpoints={self.endpoints}" if self.endpoints else ""
        return f"{type(self).__name__}(low={self.low}, high={self.high}, shape={self.shape}{rest})"

    @property
    def support(self) -> tuple[float, float]:
        return self.low, self.high

    def quantile(self, p: Tensor) -> Tensor:
        return self.unstandardize(p)

    def _draw(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        p = torch.empty_like(like).uniform_(generator=generator)
        if self.endpoints > 0.0:  # for every entry on its own
            ends = torch.empty_like(like).uniform_(generator=generator)
            p = torch.where(ends < self.endpoints, p.round(), p)
        return self.unstandardize(p)


@dataclass(frozen=True, repr=False)
class Uniform(_Interval):
    """A bounded input, uniform on ``[low, high]``; min-max scaling to [0, 1].

    Args:
        low: the smallest value.
        high: the largest value.
        shape: the event shape; ``()`` for a scalar.
        endpoints: the fraction of draws that are one of the two ends, where a family is hardest
            to learn (HyperMorph, Hoopes et al. 2021, oversamples them).

    >>> scale = hl.Uniform(0.0, 0.5)
    >>> scale.normalize(torch.tensor([0.0, 0.125, 0.5]))
    tensor([0.0000, 0.2500, 1.0000])
    >>> scale.sample((3,), generator=torch.Generator().manual_seed(0)).shape
    torch.Size([3])
    """

    low: float = 0.0
    high: float = 1.0
    shape: int | tuple[int, ...] = ()
    endpoints: float = 0.0

    def __post_init__(self) -> None:
        self._check()
        if not self.low < self.high:
            raise ConfigurationError(
                f"Uniform(low={self.low}, high={self.high}): expected low < high."
            )

    def standardize(self, value: Tensor) -> Tensor:
        return (value - self.low) / (self.high - self.low)

    def unstandardize(self, coordinate: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * coordinate


@dataclass(frozen=True, repr=False)
class LogUniform(_Interval):
    """A positive input that spans orders of magnitude; log, then min-max scaling.

    Args:
        low: the smallest value, above zero.
        high: the largest value.
        shape: the event shape; ``()`` for a scalar.
        endpoints: the fraction of draws that are one of the two ends, as in :class:`Uniform`.

    >>> weight_decay = hl.LogUniform(1e-4, 1.0)
    >>> weight_decay.normalize(torch.tensor([1e-4, 1e-2, 1.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """

    low: float
    high: float
    shape: int | tuple[int, ...] = ()
    endpoints: float = 0.0
    logarithmic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check()
        if not 0.0 < self.low < self.high:
            raise ConfigurationError(
                f"LogUniform(low={self.low}, high={self.high}): expected 0 < low < high. "
                "For a space that holds zero use Uniform."
            )

    def standardize(self, value: Tensor) -> Tensor:
        low = math.log(self.low)
        return (value.log() - low) / (math.log(self.high) - low)

    def unstandardize(self, coordinate: Tensor) -> Tensor:
        low = math.log(self.low)
        return torch.exp(low + (math.log(self.high) - low) * coordinate)


class _Unbounded(Input):
    """An input on the whole real line; the logistic function of ``(value - loc) / scale``."""

    loc: Any
    scale: Any

    def _check(self) -> None:
        object.__setattr__(self, "shape", _event_shape(self.shape))
        _finite(type(self).__name__, loc=self.loc, scale=self.scale)
        if not self.scale > 0.0:
            raise ConfigurationError(
                f"{type(self).__name__}(scale={self.scale}): expected a scale above zero."
            )

    @property
    def support(self) -> tuple[float, float]:
        return -math.inf, math.inf

    def _moments(self, like: Tensor) -> tuple[Any, Any]:
        """Location and scale: numbers, or tensors in the dtype and on the device of ``like``."""
        return self.loc, self.scale

    def standardize(self, value: Tensor) -> Tensor:
        loc, scale = self._moments(value)
        coordinate: Tensor = (value - loc) / scale
        return coordinate

    def unstandardize(self, coordinate: Tensor) -> Tensor:
        loc, scale = self._moments(coordinate)
        value: Tensor = loc + scale * coordinate
        return value

    def quantile(self, p: Tensor) -> Tensor:
        # ndtri(0) is -inf: a draw of exactly 0 is moved by half a step of torch.rand.
        tiny = 2.0**-54 if p.dtype == torch.float64 else 2.0**-25
        return self.unstandardize(torch.special.ndtri(p.clamp_min(tiny)))


@dataclass(frozen=True)
class Normal(_Unbounded):
    """A Gaussian input, such as the noise of a Bayesian hypernetwork; logistic to (0, 1).

    Args:
        shape: the event shape; ``Normal(32)`` is a vector of 32 entries.
        loc: the mean.
        scale: the standard deviation.

    >>> hl.Normal(2).normalize(torch.zeros(2))
    tensor([0.5000, 0.5000])
    """

    shape: int | tuple[int, ...] = ()
    loc: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        self._check()


class _Gain(Normal):
    """The factor of the change at run time: any number."""

    def _outside(self, found: str) -> InputError:
        return InputError(f"was {found}; expected a finite number, such as 1.5.")


GAIN = _Gain()


@dataclass(frozen=True, repr=False)
class Vector(_Unbounded):
    """A vector made elsewhere, such as a text embedding; logistic to (0, 1).

    State where its entries lie and how far they spread: entries that are small compared with
    ``scale`` all land near 0.5 and hardly condition anything. Or let both be measured on data,
    entry by entry: ``hypernetize(..., calibrate_on={"z": batch})``. For vectors that a network
    makes while it trains, use :class:`~hyperlight.Encoded`.

    :meth:`Input.sample` draws from the Gaussian of that ``loc`` and ``scale``, which is good for a
    trial run; train on vectors of your own.

    Args:
        shape: the number of entries, or an event shape.
        loc: where the entries lie: a number, or one for every entry.
        scale: how far they spread: a number, or one for every entry.

    >>> embedding = hl.Vector(768, scale=768 ** -0.5)   # entries of a unit-norm vector
    >>> embedding.event_shape
    (768,)
    """

    shape: int | tuple[int, ...]
    loc: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _event_shape(self.shape))
        if self.event_shape == ():
            raise ConfigurationError(
                "Vector(()) has no entries; give their number, or use Normal() for a scalar."
            )
        for name in ("loc", "scale"):
            given: Any = getattr(self, name)
            entries = tuple(given) if isinstance(given, (list, tuple)) else (given,)
            if entries != (given,):
                object.__setattr__(self, name, entries)
                if len(entries) != self.numel:
                    raise ConfigurationError(
                        f"Vector({name}=...) had {len(entries)} numbers; expected one, or one for "
                        f"each of the {self.numel} entries."
                    )
            for entry in entries:
                _finite("Vector", **{name: entry})
                if name == "scale" and not entry > 0.0:
                    raise ConfigurationError(f"Vector(scale={entry}): expected a scale above zero.")

    def __repr__(self) -> str:
        shown = (
            f"{name}=({value[0]:.4g}, ...)" if isinstance(value, tuple) else f"{name}={value}"
            for name, value in (("loc", self.loc), ("scale", self.scale))
        )
        return f"Vector(shape={self.shape}, {', '.join(shown)})"

    def _moments(self, like: Tensor) -> tuple[Any, Any]:
        loc, scale = (
            torch.tensor(value, dtype=like.dtype, device=like.device).reshape(self.event_shape)
            if isinstance(value, tuple)
            else value
            for value in (self.loc, self.scale)
        )
        return loc, scale

    def calibrated(self, values: Any) -> Vector:
        """The same input, with the mean and the deviation of values of yours, entry by entry."""
        event = self.event_shape
        if not isinstance(values, Tensor) or values.ndim < 1 or values.shape[1:] != event:
            found = values.shape if isinstance(values, Tensor) else type(values).__name__
            raise ConfigurationError(
                f"was given {found} to calibrate on; expected a tensor of shape (N, "
                f"{', '.join(map(str, event))}), since it was declared as {self!r}."
            )
        mean, deviation = spread_of(values.flatten(1))
        return Vector(event, tuple(mean.tolist()), tuple(deviation.tolist()))


@dataclass(frozen=True)
class Simplex(Input):
    """Weights that are not negative and sum to 1, such as the weights of several losses.

    With these as its input a hypernetwork learns a whole Pareto front: a draw is a
    preference ray (Navon et al. 2021), drawn from the Dirichlet distribution.

    Args:
        size: the number of weights.
        alpha: the concentration of the Dirichlet: 1 is uniform over the simplex, smaller
            values favour its corners.

    >>> rays = hl.Simplex(3).sample((5,))
    >>> torch.allclose(rays.sum(-1), torch.ones(5))
    True
    """

    size: int
    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_integer("Simplex(size={})", self.size, 2)
        _finite("Simplex", alpha=self.alpha)
        if not self.alpha > 0.0:
            raise ConfigurationError(f"Simplex(alpha={self.alpha}): expected alpha above zero.")

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The event shape, ``(size,)``."""
        return (self.size,)

    @property
    def support(self) -> tuple[float, float]:
        return 0.0, 1.0

    def standardize(self, value: Tensor) -> Tensor:
        return value

    def unstandardize(self, coordinate: Tensor) -> Tensor:
        return coordinate

    def quantile(self, p: Tensor) -> Tensor:
        """A point of the simplex: the centre where all of ``p`` are equal.

        Independent uniform ``p`` give the uniform distribution over the simplex.
        """
        exponential = -torch.log1p(-p.clamp(2.0**-53, 1.0 - 2.0**-53))
        return exponential / exponential.sum(dim=-1, keepdim=True)

    def _draw(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """From the Dirichlet distribution."""
        alpha = torch.full_like(like, self.alpha)
        gamma = draw_gamma(alpha, generator).clamp_min(1e-30)
        return gamma / gamma.sum(dim=-1, keepdim=True)

    def nearest(self, value: Tensor) -> Tensor:
        """The value itself if it is a point of the simplex; otherwise that divided by its sum.

        Negative entries count as zero; a value without a positive entry becomes NaN.

        >>> hl.Simplex(2).nearest(torch.tensor([[0.25, 0.75], [1.0, 3.0]]))
        tensor([[0.2500, 0.7500],
                [0.2500, 0.7500]])
        """
        value = value.clamp_min(0.0)
        total = widen(value).sum(dim=-1, keepdim=True)
        off = (total - 1.0).abs() > self.size * _slack(value.dtype)
        return torch.where(off, value / total, value).to(value.dtype)

    def check_values(self, value: Tensor) -> None:
        super().check_values(value)
        total = widen(value.detach()).sum(dim=-1)
        error = (total - 1.0).abs()
        if value.numel() and not float(error.max()) <= self.size * _slack(value.dtype):
            raise InputError(
                f"had entries that sum to {float(total.flatten()[error.argmax()]):.6g}; expected "
                f"a sum of 1, since it was declared as {self!r}. Divide it by its sum."
            )


@dataclass(frozen=True)
class Categorical(Input):
    """One of ``n`` categories, such as a task, a site or a person; or a blend of several.

    Values are integers from 0 to ``n - 1``. Each has a learned embedding in the hypernetwork,
    scaled to norm 1, so that all categories and encoded numbers weigh the same.

    Floating-point values are blends: weights of all categories that are not negative and sum to
    1, of shape ``batch_shape + event_shape + (n,)``. A blend has the weighted sum of the
    embeddings, again scaled to norm 1. Opposite embeddings that cancel have no blend, and are
    refused. A mapping names a few categories: ``{0: 0.3, 4: 0.7}``. Draws are never blends.

    :meth:`HyperModel.extend` adds categories to a model.

    Args:
        n: the number of categories.
        shape: the event shape; ``()`` for a single category.
        features: the size of the embedding, 2 or more; by default ``n``, at most 16.

    >>> site = hl.Categorical(4)
    >>> site.sample((3,), generator=torch.Generator().manual_seed(0)).dtype
    torch.int64

    >>> model = hl.hypernetize(nn.Linear(2, 1), inputs={"site": site})
    >>> x = torch.ones(3, 2)
    >>> half = model(x, site=torch.tensor([0.5, 0.0, 0.0, 0.5]))
    >>> torch.equal(half, model(x, site={0: 0.5, 3: 0.5}))
    True
    """

    n: int
    shape: int | tuple[int, ...] = ()
    features: int | None = None
    discrete: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _event_shape(self.shape))
        if self.features is None and isinstance(self.n, int):
            object.__setattr__(self, "features", max(2, min(self.n, 16)))
        # An embedding of one number has nothing to learn at norm 1.
        check_integer("Categorical(n={})", self.n)
        check_integer("Categorical(features={})", self.features, 2)

    @property
    def support(self) -> tuple[float, float]:
        return 0.0, float(self.n - 1)

    def standardize(self, value: Tensor) -> Tensor:
        raise InputError(
            "Categories have no order, so a Categorical input has no coordinate; go through its "
            "values, 0 to n - 1, instead."
        )

    def unstandardize(self, coordinate: Tensor) -> Tensor:
        return self.standardize(coordinate)

    def quantile(self, p: Tensor) -> Tensor:
        return (p * self.n).floor().clamp(0, self.n - 1).long()

    def _rounded(self, value: Tensor, dtype: torch.dtype | None) -> Tensor:
        return value

    def shape_of(self, value: Tensor) -> tuple[int, ...]:
        """The event shape; of a blend, with the number of categories behind it."""
        blend = (self.n,) if value.is_floating_point() else ()
        return self.event_shape + blend

    def tensor(self, value: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Turn a category, or a blend of several, into a tensor: see :meth:`Input.tensor`."""
        if isinstance(value, Mapping):
            value = self._weights(value, dtype, device)
        return super().tensor(value, dtype=dtype, device=device)

    def _weights(
        self, blend: Mapping[Any, Any], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """The weights of all categories, from those of a few by name."""
        given = f"was {blend!r}"
        if self.event_shape:
            raise InputError(
                f"{given}; expected a tensor of weights of shape {(*self.event_shape, self.n)}, "
                f"since it was declared as {self!r}."
            )
        for category in blend:
            if not (isinstance(category, int) and not isinstance(category, bool)):
                raise InputError(
                    f"{given}; expected categories and weights, as in {{0: 0.3, 1: 0.7}}."
                )
            self.check_number(category)
        try:
            parts = [
                w.to(device, dtype)
                if isinstance(w, Tensor)
                else torch.full((), w, dtype=dtype, device=device)
                for w in blend.values()
            ]
            weights = torch.stack(torch.broadcast_tensors(*parts), dim=-1)  # type: ignore[no-untyped-call]
        except (TypeError, ValueError, RuntimeError):
            raise InputError(
                f"{given}; expected a number for every category, or tensors of one batch shape."
            ) from None
        index = torch.tensor(list(blend), device=device)
        return weights.new_zeros(*weights.shape[:-1], self.n).index_add(-1, index, weights)

    def nearest(self, value: Tensor) -> Tensor:
        """The value itself: no category is near to another.

        One that does not exist makes features and weights NaN where it is not refused, and so
        does a blend whose weights do not sum to 1.
        """
        if not value.is_floating_point():
            return value
        return torch.where(self._sums_to_one(value), value, math.nan)

    def _sums_to_one(self, blend: Tensor) -> Tensor:
        """Whether weights are not negative and sum to 1: ``(..., 1)``."""
        blend, slack = blend.detach(), _slack(blend.dtype)
        error = (widen(blend).sum(dim=-1, keepdim=True) - 1.0).abs()
        return (error <= self.n * slack) & (blend >= -slack).all(dim=-1, keepdim=True)

    def check_number(self, value: float) -> None:
        if not (0 <= value < self.n and value == int(value)):
            raise self._outside(f"{value:g}")

    def check_values(self, value: Tensor) -> None:
        if value.is_floating_point():
            wrong = ~self._sums_to_one(value).squeeze(-1)
            if bool(wrong.any()):
                first = widen(value.detach()[wrong][0])
                low, high = (float(end) for end in torch.aminmax(first))
                raise InputError(
                    f"was a blend with weights from {low:.6g} to {high:.6g} that sum to "
                    f"{float(first.sum()):.6g}; expected weights that are not negative and sum to "
                    f"1, one for each category, since it was declared as {self!r}. Divide them by "
                    "their sum, or pass categories as integers."
                )
        elif value.numel():
            smallest, largest = (int(v) for v in torch.aminmax(value.detach()))
            if not 0 <= smallest <= largest < self.n:
                raise self._outside(_range(smallest, largest))

    def _outside(self, found: str) -> InputError:
        return InputError(
            f"was {found}; expected categories, integers from 0 to {self.n - 1}, since it was "
            f"declared as {self!r}. Pass one of them, declare more categories in inputs={{...}}, "
            "or add some with model.extend."
        )
