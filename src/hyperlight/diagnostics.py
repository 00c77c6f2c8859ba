"""The paper's diagnosis for your own model: do weights and gradients follow the input?

The paper is arXiv:2304.07645; section 3 describes the problem.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ._torch import buffers_kept
from .bind import bind
from .directions import DirectionProfile, measured
from .encoded import Encoded, UnitVectors
from .errors import (
    ConfigurationError,
    InputError,
    MissingExtraError,
    ObjectiveError,
    did_you_mean,
    listed,
)
from .hypernet import HyperNet, check_model
from .inputs import Categorical, Input
from .model import HyperModel
from .precision import widen

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Where a verdict changes. MIP and plain networks stay well below, the classical formulation on
# Uniform(0, 1) has 1 / sqrt(3) = 0.58 (the tests measure both).
_STEADY_SCALE = 0.2
_STEADY_GRADIENT = 0.25
_FOLLOWS = 0.8
# Below these an input conditions next to nothing: of the weights' size, and of what draws do.
_CONDITIONS, _OF_DRAWS = 0.005, 0.2
_ENCODING, _RESIDUAL = "encoding=hl.CosSin()", "residual=True"


@dataclass(frozen=True, eq=False)
class _Profile(ABC):
    """A size that was measured along an input."""

    input: str
    gamma: Tensor
    magnitude: Tensor
    _label: ClassVar[str]

    @property
    @abstractmethod
    def _columns(self) -> Tensor:
        """What was measured, a column for every batch: ``(points, batches)``."""

    @property
    @abstractmethod
    def _steady(self) -> float:
        """The variation below which the size is called steady."""

    @property
    def _size(self) -> Tensor:
        return self._columns.mean(dim=1)

    @property
    def ratio(self) -> float:
        """The largest scale over the smallest; 1 if the scale does not follow the input."""
        smallest, largest = (float(end) for end in torch.aminmax(self._size))
        if smallest == largest:
            return 1.0
        return math.inf if smallest == 0.0 else largest / smallest

    @property
    def variation(self) -> float:
        r"""Standard deviation of the scale over its mean, along the input.

        0 if the scale does not follow the input; :math:`1 / \sqrt{3} = 0.58` if it is
        proportional to an input that is uniform on [0, 1]; NaN if the weights are NaN.
        """
        return _variation(self._size)

    @property
    def correlation(self) -> float:
        """Pearson's correlation of scale and magnitude; 1 if they are proportional.

        It says nothing of a scale that hardly varies, and is not printed there. NaN if either is
        constant, and for categories, which have no magnitude.
        """
        return _correlation(self.magnitude, self._size)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the profile along the input, as in figures 1a and 3c of the paper.

        With several batches, their mean, and one standard deviation on both sides.

        Args:
            ax: matplotlib axes to draw in; new ones by default.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        try:
            from matplotlib import pyplot
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"plot() needs the package {error.name!r}. Install it: pip install matplotlib."
            ) from None
        ax = pyplot.subplots()[1] if ax is None else ax
        scalar, ordered = self.gamma.ndim == 1, self.gamma.is_floating_point()
        position = (self.gamma if scalar else self.magnitude).tolist()
        if 0.0 < 100.0 * min(position) <= max(position):
            ax.set_xscale("log")
        ax.plot(position, self._size.tolist(), "o-" if ordered else "o", markersize=3)
        if self._columns.shape[1] > 1:
            spread = self._columns.std(dim=1, correction=0)
            low, high = (self._size - spread).tolist(), (self._size + spread).tolist()
            if ordered:
                ax.fill_between(position, low, high, alpha=0.2)
            else:
                ax.vlines(position, low, high, alpha=0.5)
        ax.set_xlabel(self.input if scalar else f"norm of {self.input}")
        ax.set_ylabel(self._label)
        return ax

    def _text(self, subject: str, noise: str = "") -> str:
        low, high = (float(end) for end in torch.aminmax(self._size))
        text = (
            f"{self.input}: {subject} {low:.3g} to {high:.3g} (variation {100 * self.variation:.0f}"
            f" %{noise})"
        )
        # Of what hardly varies, a correlation says nothing: it is 1 for any straight line.
        if self.variation < self._steady or math.isnan(self.correlation):
            return text
        return f"{text}, correlation with the input's magnitude {self.correlation:.2f}"


@dataclass(frozen=True, eq=False)
class ScaleProfile(_Profile):
    """The scale of the predicted weights along an input (paper, figure 1a).

    Attributes:
        input: the name of the input that was varied.
        gamma: its values, ``(points,) + event_shape``; their numbers, from 0, if the input is
            :class:`~hyperlight.Encoded`.
        magnitude: the Euclidean norm of each, ``(points,)``; 1 for categories and encoded inputs.
        std: standard deviation of all predicted weights at each, ``(points,)``.
        per_target: the same for every predicted tensor (for a single number, its
            absolute value).
        verdict: whether the model has the paper's problem, and what to change, in words.
        spread: how much the input conditions: the standard deviation of the predicted weights
            over its values, as a fraction of their own size (root mean squares).
    """

    std: Tensor
    per_target: dict[str, Tensor]
    verdict: str
    spread: float = math.nan
    _label = "std of the predicted weights"

    @property
    def _columns(self) -> Tensor:
        return self.std[:, None]

    @property
    def _steady(self) -> float:
        return _STEADY_SCALE

    def __str__(self) -> str:
        return f"{self._text('predicted weights have std')}\n{self.verdict}"


@dataclass(frozen=True, eq=False)
class GradientProfile(_Profile):
    r"""The norm of the gradient by the predicted weights along an input (paper, figure 3c).

    ``ratio``, ``variation`` and ``correlation`` are those of the mean over the batches.

    Attributes:
        input: the name of the input that was varied.
        gamma: its values, ``(points,) + event_shape``.
        magnitude: the Euclidean norm of each, ``(points,)``; 1 for categories.
        norm: :math:`\|\nabla_\theta L\|` at each value for each batch, ``(points, batches)``.
        per_target: the same for every predicted tensor.
        verdict: whether the model has the paper's problem, and what to change, in words.
    """

    norm: Tensor
    per_target: dict[str, Tensor]
    verdict: str
    _label = "norm of the gradient by the predicted weights"

    @property
    def _columns(self) -> Tensor:
        return self.norm

    @property
    def _steady(self) -> float:
        return _steady_gradient(self.norm)

    @property
    def batch_variation(self) -> float:
        """Standard deviation of the norm over its mean, across the batches at one value.

        A mean over the values: the noise of any training, to compare ``variation`` with.
        0 with one batch.
        """
        return _noise(self.norm)

    def __str__(self) -> str:
        noise = f", across batches {100 * self.batch_variation:.0f} %"
        text = self._text("gradients by the predicted weights have norm", noise)
        return f"{text}\n{self.verdict}"


@torch.no_grad()
def scale_profile(
    model: HyperModel,
    input: str | None = None,
    *,
    points: int = 33,
    values: Mapping[str, Any] | None = None,
    generator: torch.Generator | None = None,
) -> ScaleProfile:
    """Measure how the scale of the predicted weights follows an input (paper, section 3, fig. 1a).

    A scalar input takes quantiles of its space, including the ends of a bounded one. A
    categorical one takes all its values. An input with an event shape is drawn ``points`` times and
    sorted by norm. All other inputs are held at their medians.

    The verdict calls the scale steady if its ``variation`` is below 0.2. Otherwise it follows the
    input (the paper's problem) if the ``correlation`` is 0.8 or more and the norm of the
    encoding is not constant. Any other variation may be what a trained model has learned. The
    verdict then names what the model lacks: an encoding whose norm varies by less than 1 %; a
    ``theta0`` with at least a tenth of the norm of the predicted change; or, if it has both, a
    smaller change.

    Values that come from elsewhere (an encoder, an embedding) may differ from what the input
    was declared for, and then condition next to nothing. Profile such an input over your data,
    ``values={"image": batch}``. If they move the weights by less than 0.005 of their size, and by
    less than a fifth of what draws of the space do, the verdict says so, and what to change.

    Args:
        model: the model, in any state of training.
        input: the input to vary; optional if there is only one, or one in ``values``.
        points: the number of values.
        values: data by input, ``(N,) + event_shape``, in place of values from the space. Of inputs
            that are held, the first is used.
        generator: draws the values of an input with an event shape; by default
            one with a fixed seed, so that profiles can be compared.

    Returns:
        The profile; ``print`` it for its numbers and the verdict.

    Raises:
        ConfigurationError: the input is not one of the model's, or has to be named.

    >>> linear = nn.Linear(8, 8)
    >>> classical = hl.hypernetize(
    ...     linear, inputs={"g": hl.Uniform(0.0, 1.0)}, encoding=None, residual=False)
    >>> profile = hl.scale_profile(classical)
    >>> round(profile.correlation, 6)
    1.0
    >>> print(profile.verdict)
    The scale of the predicted weights follows the magnitude of 'g': the proportionality of \
section 3 of the paper, which makes training slow or unstable. Build the model with \
encoding=hl.CosSin() and residual=True.
    """
    check_model(model)
    with buffers_kept(model):
        axis = _Axis(model, input, points, generator, values)
        moved = _Spread()
        columns = [_stds(moved.seen(model.predict(**gamma))) for gamma in axis]
        std, *each = torch.stack(columns, dim=1).cpu()
        verdict = axis.verdict("The scale of the predicted weights", std, _STEADY_SCALE)
        if axis.given:
            size = f"Over the given values the weights move by {moved.fraction:.2g} of their size."
            verdict = axis.weak_verdict(moved.fraction) or f"{verdict} {size}"
    per_target = dict(zip(model.theta0, each, strict=True))
    return ScaleProfile(
        axis.name, axis.values.cpu(), axis.magnitude, std, per_target, verdict, moved.fraction
    )


def gradient_profile(
    model: HyperModel,
    loss: Callable[[Any, Any], Tensor],
    batches: Iterable[Any],
    input: str | None = None,
    *,
    points: int = 17,
    values: Mapping[str, Any] | None = None,
    generator: torch.Generator | None = None,
) -> GradientProfile:
    r"""Measure how the gradient by the predicted weights follows an input (paper, figure 3c).

    For every value of the input and every batch this is :math:`\|\nabla_\theta L\|`: the norm of
    the gradient that reaches the hypernetwork. The input is varied as in
    :func:`scale_profile`; all others are held at their medians.

    The model runs in its current mode: call ``model.train()`` first to see what training sees.
    Nothing of it changes: no ``.grad`` is set, and its buffers (such as running statistics) are
    restored. Dropout draws from PyTorch's generator as always.

    The verdict calls the gradient steady if its ``variation`` along the input is below 0.25, or
    below twice that across the batches, which is the noise of any training. Otherwise it
    follows the input (the paper's problem) if the ``correlation`` is 0.8 or more and the norm of
    the encoding is not constant. Any other variation may come from a task that is harder for
    some values.

    A steady gradient does not clear a model whose :func:`scale_profile` is unsteady. Gradients of
    the last bias never depend on the scale of the weights, and can outweigh all others at first.
    Measure again during training.

    Args:
        model: the model, in any state of training.
        loss: ``loss(net, batch)``, a scalar; ``net`` is the bound primary, as from
            :meth:`HyperModel.bind`.
        batches: what ``loss`` takes; iterated over once. A handful is enough.
        input: the input to vary; optional if there is only one.
        points: the number of values.
        values: data by input in place of values from the space, as in :func:`scale_profile`.
        generator: draws the values of an input with an event shape; by default
            one with a fixed seed.

    Returns:
        The profile; ``print`` it for its numbers and the verdict.

    Raises:
        ConfigurationError: the input is not one of the model's, or has to be named; there
            are no batches; the loss is not a function.
        ObjectiveError: the loss is not a scalar, or does not depend on the weights.

    >>> net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    >>> model = hl.hypernetize(net, inputs={"g": hl.Uniform(0.0, 1.0)})
    >>> def loss(net, batch):
    ...     x, y = batch
    ...     return nn.functional.mse_loss(net(x), y)
    >>> batches = [(torch.randn(16, 8), torch.randn(16, 1)) for _ in range(4)]
    >>> profile = hl.gradient_profile(model, loss, batches)
    >>> profile.norm.shape
    torch.Size([17, 4])
    """
    check_model(model)
    if not callable(loss):
        raise ConfigurationError(
            f"loss was a {type(loss).__name__}; expected a function of (net, batch), before the "
            "batches and the input: hl.gradient_profile(model, loss, batches, input)."
        )
    with buffers_kept(model), torch.inference_mode(False), torch.enable_grad():
        axis = _Axis(model, input, points, generator, values)
        columns = [
            torch.stack([_target_norms(model, gamma, loss, batch) for gamma in axis], dim=1)
            for batch in batches
        ]
    if not columns:
        raise ConfigurationError(
            "batches was empty; expected at least one batch for loss(net, batch)."
        )
    each = torch.stack(columns, dim=2).cpu()  # (targets, points, batches)
    norm = each.norm(dim=0)
    subject = "The gradient by the predicted weights"
    verdict = axis.verdict(subject, norm.mean(dim=1), _steady_gradient(norm))
    targets = dict(zip(model.theta0, each, strict=True))
    return GradientProfile(axis.name, axis.values.cpu(), axis.magnitude, norm, targets, verdict)


def direction_profile(
    model: HyperModel | HyperNet, values: Mapping[str, Any] | None = None
) -> DirectionProfile:
    r"""Measure in how many directions the predicted weights of a trained model move.

    The change is :math:`\sum_i c_i(\gamma) B_i`. Over the inputs, its variation is split into
    directions that do not overlap, by energy. If all are in use, the model has too few: more may
    train better. If few are, :meth:`HyperModel.truncate` makes the model smaller.

    Args:
        model: a trained model, or a hypernetwork, with a :class:`Dense` head.
        values: every input by name, with one batch dimension; by default 1024 draws of the
            inputs, always the same ones.

    Raises:
        ConfigurationError: the head is not :class:`Dense`, or holds no values.
        InputError: ``values`` do not fit the inputs.

    >>> model = hl.hypernetize(nn.Linear(8, 8), inputs={"scale": hl.Uniform(0.0, 1.0)})
    >>> profile = hl.direction_profile(model)
    >>> profile.energy.shape, profile.error.shape
    (torch.Size([16]), torch.Size([17]))
    """
    if not isinstance(model, HyperNet):
        check_model(model)
        model = model.hypernet
    return measured(model, values)


def _target_norms(
    model: HyperModel, gamma: Mapping[str, Any], loss: Callable[[Any, Any], Tensor], batch: Any
) -> Tensor:
    """The norm of the gradient by every predicted tensor: ``(targets,)``."""
    with torch.no_grad():
        predicted = model.predict(**gamma)
    theta = {name: t.detach().requires_grad_() for name, t in predicted.items()}
    value = loss(bind(model.primary, theta), batch)
    check_loss("loss(net, batch)", value, torch.Size())
    found = gradients("loss(net, batch)", value, "the predicted weights", [*theta.values()])
    return torch.stack([widen(gradient).norm() for gradient in found])


def check_loss(caller: str, value: Any, batch_shape: torch.Size) -> None:
    """Refuse what a user's function returned if it is not a loss of that shape."""
    found = type(value).__name__
    if isinstance(value, Tensor):
        if value.shape == batch_shape and value.is_floating_point():
            return
        found = f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    what = "a scalar, as by .mean()"
    if batch_shape:
        what = "one loss for every sample, as by reduction='none' and .flatten(1).mean(1)"
    raise ObjectiveError(
        f"{caller} returned {found}; expected a floating-point tensor of shape "
        f"{tuple(batch_shape)}: {what}. It needs a gradient: no .item(), float() or counts."
    )


def gradients(caller: str, loss: Tensor, what: str, by: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of a user's loss; refuse it if it depends on none of the tensors."""
    found: Sequence[Tensor | None] = (None,)
    if loss.requires_grad:
        found = torch.autograd.grad(loss, by, allow_unused=True)
    if all(gradient is None for gradient in found):
        raise ObjectiveError(
            f"{caller} does not depend on {what}. Compute it with the net that it is given, not "
            "with the model or the primary, and without detach, no_grad or .item()."
        )
    return [torch.zeros_like(t) if g is None else g for t, g in zip(by, found, strict=True)]


def median(space: Input) -> Any:
    """The middle of an input's space, in Python numbers."""
    return space.quantile(torch.full(space.event_shape, 0.5, dtype=torch.float64)).tolist()


class _Axis:
    """The values of one input of a model, with all others held at their medians."""

    def __init__(
        self,
        model: HyperModel,
        name: str | None,
        points: int,
        generator: torch.Generator | None,
        given: Mapping[str, Any] | None = None,
    ) -> None:
        inputs, given = model.inputs, given or {}
        if name is None and len(inputs) > 1 and len(given) != 1:
            raise ConfigurationError(
                f"The model has several inputs, {listed(inputs)}: say which one to vary."
            )
        name = next(iter(given if len(given) == 1 else inputs)) if name is None else name
        for each in (name, *given):
            if each not in inputs:
                raise ConfigurationError(
                    f"{each!r} is not an input of this model; its inputs are {listed(inputs)}."
                    f"{did_you_mean(each, inputs)}"
                )
        space, dtype = inputs[name], model.hypernet.dtype
        self.model, self.name, self.given = model, name, name in given
        if self.given:
            values = _data(model, name, given[name])
        elif isinstance(space, Encoded) or space.event_shape:
            generator = torch.Generator().manual_seed(0) if generator is None else generator
            on = generator.device
            values = space.sample((points,), generator=generator, dtype=dtype, device=on)
        elif isinstance(space, Categorical):
            values = torch.arange(space.n)
        else:
            values = space.grid(points, dtype=dtype)
        self._data = self._rows(name, values)
        encoded = isinstance(space, Encoded)
        magnitude = torch.ones(len(self._data)) if space.discrete or encoded else self._data.abs()
        if magnitude.ndim > 1:
            magnitude, order = magnitude.flatten(1).norm(dim=1).sort()
            self._data = self._data[order.to(self._data.device)]
        self.values = torch.arange(len(self._data)) if encoded else self._data
        self.magnitude = magnitude.cpu()
        self._held = {
            other: self._wrapped(other, self._rows(other, _data(model, other, given[other]))[0])
            if other in given
            else self._middle(other)
            for other in inputs
            if other != name
        }

    def _rows(self, name: str, values: Any) -> Tensor:
        """The values of an input; of an encoded one what its network gives, computed once."""
        if isinstance(self.model.inputs[name], Encoded):
            with torch.no_grad():
                return self.model.hypernet.unit_vectors(name, values).vectors
        rows: Tensor = values.to(self.model.hypernet.device)
        return rows

    def _wrapped(self, name: str, rows: Tensor) -> Any:
        return UnitVectors(rows) if isinstance(self.model.inputs[name], Encoded) else rows

    def _middle(self, name: str) -> Any:
        """The value at which an input is held."""
        space = self.model.inputs[name]
        if not isinstance(space, Encoded):
            return median(space)
        if space.examples is None:
            raise ConfigurationError(
                f"The input {name!r} has no value to be held at, since {space!r} has no examples. "
                f"Pass some: values={{{name!r}: batch}}."
            )
        return self._wrapped(name, self._rows(name, space.examples)[0])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self._data:
            yield {self.name: self._wrapped(self.name, row), **self._held}

    def weak_verdict(self, fraction: float) -> str | None:
        """What to change if the data condition far less than draws of the space do."""
        if fraction >= _CONDITIONS:
            return None
        drawn = self.model.hypernet.draws(len(self._data))[self.name]
        rows = drawn.vectors if isinstance(drawn, UnitVectors) else drawn
        usual = _Spread()
        for row in rows:
            value = self._wrapped(self.name, row)
            usual.seen(self.model.predict(**{self.name: value, **self._held}))
        if fraction >= _OF_DRAWS * usual.fraction:
            return None
        space, name, data = self.model.inputs[self.name], self.name, self._data
        said = (
            f"{name!r} conditions next to nothing: over these values the weights move by "
            f"{fraction:.2g} of their size; over draws of the space, by {usual.fraction:.2g}."
        )
        if isinstance(space, Encoded):
            return (
                f"{said} Its network gives nearly the same for all of them. Calibrate it on your "
                f"data: hypernetize(..., calibrate_on={{{name!r}: batch}})."
            )
        if space.bounded or space.discrete:
            return f"{said} They fill a small part of {space!r}: declare the part that you use."
        mean, deviation = (float(m) for m in (data.mean(), widen(data).std(dim=0).mean()))
        return (
            f"{said} They lie at {mean:.2g} and spread by {deviation:.2g}, and it was declared as "
            f"{space!r}. Declare it as hl.Vector and calibrate it on your data, "
            f"hypernetize(..., calibrate_on={{{name!r}: batch}}); or pass the network that makes "
            "them as an hl.Encoded input."
        )

    @torch.no_grad()
    def verdict(self, subject: str, size: Tensor, steady: float) -> str:
        """What the measured sizes say of the model, and what to change."""
        variation = _variation(size)
        if not bool(size.isfinite().all()):
            return f"{subject} is not finite everywhere along {self.name!r}: the model diverged."
        if variation < steady:
            noise = ", twice that across the batches" if steady > _STEADY_GRADIENT else ""
            return (
                f"{subject} is steady along {self.name!r} (variation below {100 * steady:.0f} %"
                f"{noise}): nothing to change."
            )
        hypernet = self.model.hypernet
        varied = self._wrapped(self.name, self._data)
        encoded = hypernet.encode(**{self.name: varied}, **self._held).norm(dim=-1)
        raw = _variation(widen(encoded)) > 0.01
        rows = list(self)
        theta0, head = self.model.theta0, hypernet.head
        changes = (
            head.change(theta0, hypernet.features(**rows[i])) for i in (0, len(rows) // 2, -1)
        )
        largest = max(map(_norm, changes))
        bare = _norm(theta0) < 0.1 * largest
        diagnosis = f"{subject} varies along {self.name!r} by {100 * variation:.0f} %."
        if raw and _correlation(self.magnitude, size) >= _FOLLOWS:
            diagnosis = (
                f"{subject} follows the magnitude of {self.name!r}: the proportionality of "
                "section 3 of the paper, which makes training slow or unstable."
            )
        missing = [part for part, lacks in ((_ENCODING, raw), (_RESIDUAL, bare)) if lacks]
        if missing:
            return f"{diagnosis} Build the model with {' and '.join(missing)}."
        return (
            f"{diagnosis} The encoding has constant norm and theta0 is large enough, so the "
            "predicted change is too large. Start it smaller, with init='relative' or "
            "init='zero', unless the model is trained and has learned this."
        )


def _data(model: HyperModel, name: str, given: Any) -> Any:
    """Values of an input from a user's data, checked: ``(N,) + event_shape``."""
    space, hypernet = model.inputs[name], model.hypernet
    try:
        values = space.tensor(given, dtype=hypernet.dtype, device=hypernet.device)
        batch_shape = space.batch_shape_of(values)
        if len(batch_shape) != 1 or batch_shape[0] < 2:
            raise InputError(
                f"has batch shape {tuple(batch_shape)} in values; expected (N,), of 2 or more."
            )
    except InputError as error:
        raise InputError(f"Hypernetwork input {name!r} {error}") from None
    return values


class _Spread:
    """How far weights move, as a fraction of their size: both root mean squares."""

    def __init__(self) -> None:
        self._first: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}  # of the differences from the first
        self._squares, self._sizes, self._count = 0.0, 0.0, 0

    def seen(self, theta: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take one set of weights into account; return it."""
        self._first = self._first or theta
        self._count += 1
        self._sizes += _norm(theta) ** 2
        apart = {name: t - self._first[name] for name, t in theta.items()}
        self._squares += _norm(apart) ** 2
        self._sums = {n: self._sums[n] + t if self._sums else t for n, t in apart.items()}
        return theta

    @property
    def fraction(self) -> float:
        if not self._sizes:
            return 0.0
        variance = self._squares - _norm(self._sums) ** 2 / self._count
        return math.sqrt(max(variance, 0.0) / self._sizes)


def _variation(size: Tensor) -> float:
    mean = float(size.mean())
    deviation = size - size[0]  # exactly zero if all are equal
    return 0.0 if mean == 0.0 else float(deviation.std(correction=0)) / mean


def _noise(norm: Tensor) -> float:
    return sum(map(_variation, norm)) / len(norm)


def _steady_gradient(norm: Tensor) -> float:
    return max(_STEADY_GRADIENT, 2 * _noise(norm))


def _correlation(magnitude: Tensor, size: Tensor) -> float:
    pair = torch.stack([widen(magnitude), widen(size)])
    if bool((pair.std(dim=1) <= 1e-12 * pair.abs().amax(dim=1)).any()):
        return math.nan
    return float(torch.corrcoef(pair)[0, 1])


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(widen(t).square().sum()) for t in tensors.values()))


def _stds(theta: Mapping[str, Tensor]) -> Tensor:
    """Of all tensors together, then of each; of a single number its absolute value."""
    each = [widen(t).flatten() for t in theta.values()]
    return torch.stack(
        [
            t.std(correction=0) if t.numel() > 1 else t.abs().squeeze()
            for t in (torch.cat(each), *each)
        ]
    )
