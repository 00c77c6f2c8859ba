"""The paper's diagnosis for the user's own model: do weights and gradients follow the input?"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .bind import bind
from .errors import ConfigurationError, MissingExtraError, ObjectiveError, did_you_mean, listed
from .inputs import Categorical, Input
from .model import HyperModel
from .precision import widen, widest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["GradientProfile", "ScaleProfile", "gradient_profile", "scale_profile"]

# Where a verdict changes. MIP and plain networks stay well below, the classical formulation on
# Uniform(0, 1) has 1 / sqrt(3) = 0.58 (the tests measure both).
_STEADY_SCALE = 0.2
_STEADY_GRADIENT = 0.25
_FOLLOWS = 0.8
_ENCODING, _RESIDUAL = "encoding=hl.CosSin()", "residual=True"


@dataclass(frozen=True, eq=False)
class _Profile(ABC):
    """A size that was measured along an input."""

    input: str
    gamma: Tensor
    magnitude: Tensor

    @property
    @abstractmethod
    def _size(self) -> Tensor:
        """What was measured: ``(points,)``."""

    @property
    def ratio(self) -> float:
        """The largest scale over the smallest; 1 where scale does not follow the input."""
        smallest, largest = float(self._size.min()), float(self._size.max())
        if smallest == largest:
            return 1.0
        return math.inf if smallest == 0.0 else largest / smallest

    @property
    def variation(self) -> float:
        r"""Standard deviation of the scale over its mean, along the input.

        0 where the scale does not follow the input; :math:`1 / \sqrt{3} = 0.58`
        where it is proportional to one that is uniform on [0, 1]; NaN where weights are.
        """
        return _variation(self._size)

    @property
    def correlation(self) -> float:
        """Pearson's correlation of scale and magnitude; 1 where they are proportional.

        NaN where either does not vary, and for categories, which have no magnitude.
        """
        return _correlation(self.magnitude, self._size)

    def _draw(self, ax: Axes | None, size: Tensor, label: str) -> tuple[Axes, Tensor]:
        """The axes with ``size`` along the input drawn in, and the positions along it."""
        try:
            from matplotlib import pyplot
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"plot() needs the package {error.name!r}, which is part of the extra 'lab': "
                "pip install 'hyperlight[lab]'."
            ) from None
        if ax is None:
            _, ax = pyplot.subplots()
        scalar = self.gamma.ndim == 1
        position = self.gamma if scalar else self.magnitude
        positive = float(position.min()) > 0.0
        if positive and float(position.max()) >= 100.0 * float(position.min()):
            ax.set_xscale("log")
        style = "o" if not self.gamma.is_floating_point() else "o-"
        ax.plot(position.tolist(), size.tolist(), style, markersize=3)
        ax.set_xlabel(self.input if scalar else f"norm of {self.input}")
        ax.set_ylabel(label)
        return ax, position


@dataclass(frozen=True, eq=False)
class ScaleProfile(_Profile):
    """The scale of the predicted weights along an input (paper, figure 1a).

    Attributes:
        input: the name of the input that was varied.
        gamma: its values, ``(points,) + event_shape``.
        magnitude: the Euclidean norm of each, ``(points,)``; 1 for categories.
        std: standard deviation of all predicted weights at each, ``(points,)``.
        per_target: the same for every predicted tensor (for a single number, its
            absolute value).
        verdict: whether the model has the paper's problem, and what to change, in words.
    """

    std: Tensor
    per_target: dict[str, Tensor]
    verdict: str

    @property
    def _size(self) -> Tensor:
        return self.std

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the profile, as in figure 1a of the paper.

        Args:
            ax: matplotlib axes to draw in; new ones by default.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        return self._draw(ax, self.std, "std of the predicted weights")[0]

    def __str__(self) -> str:
        return (
            f"{self.input}: predicted weights have std {float(self.std.min()):.3g} to "
            f"{float(self.std.max()):.3g} (variation {100 * self.variation:.0f} %), "
            f"correlation with the input's magnitude {self.correlation:.2f}\n{self.verdict}"
        )


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

    @property
    def _size(self) -> Tensor:
        return self.norm.mean(dim=1)

    @property
    def batch_variation(self) -> float:
        """Standard deviation of the norm over its mean, across the batches at one value.

        The mean over the values: the noise that any training has, to compare
        :attr:`variation` with. 0 with one batch.
        """
        return sum(map(_variation, self.norm)) / len(self.norm)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the mean norm along the input, and one standard deviation across the batches.

        Args:
            ax: matplotlib axes to draw in; new ones by default.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        mean, spread = self._size, self.norm.std(dim=1, correction=0)
        ax, position = self._draw(ax, mean, "norm of the gradient by the predicted weights")
        low, high = (mean - spread).tolist(), (mean + spread).tolist()
        if self.gamma.is_floating_point():
            ax.fill_between(position.tolist(), low, high, alpha=0.2)
        else:
            ax.vlines(position.tolist(), low, high, alpha=0.5)
        return ax

    def __str__(self) -> str:
        return (
            f"{self.input}: gradients by the predicted weights have norm "
            f"{float(self._size.min()):.3g} to {float(self._size.max()):.3g} (variation "
            f"{100 * self.variation:.0f} %, across batches {100 * self.batch_variation:.0f} %), "
            f"correlation with the input's magnitude {self.correlation:.2f}\n{self.verdict}"
        )


@torch.no_grad()
def scale_profile(
    model: HyperModel,
    input: str | None = None,
    *,
    points: int = 33,
    generator: torch.Generator | None = None,
) -> ScaleProfile:
    """Measure how the scale of the predicted weights follows an input (paper, section 3, fig. 1a).

    A scalar input is varied over quantiles of its space, the ends included where
    it is bounded; of categories, all are gone through. An input with an event shape is
    drawn ``points`` times and put in the order of its norm. All other inputs are held at
    their medians.

    The verdict calls the scale steady where its ``variation`` is below 0.2. Above, it
    follows the input (the paper's problem) where the ``correlation`` is 0.8 or more and the
    encoding does not have constant norm; else it varies in another way, as a trained model may have
    learned to. What to change is what the model has not: an encoding whose norm varies by
    less than 1 %; a ``theta0`` with at least a tenth of the norm of the predicted change; or, where
    it has both, a smaller change.

    Args:
        model: the model, in any state of training.
        input: the input to vary; may be left out where there is one.
        points: how many values.
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
    axis = _Axis(model, input, points, generator)
    overall, per_target = [], []
    for gamma in axis:
        theta = model.predict(**gamma)
        overall.append(_std(torch.cat([widen(t).flatten() for t in theta.values()])))
        per_target.append({name: _std(widen(t).flatten()) for name, t in theta.items()})
    std = torch.stack(overall).cpu()
    return ScaleProfile(
        input=axis.name,
        gamma=axis.values.cpu(),
        magnitude=axis.magnitude,
        std=std,
        per_target={
            name: torch.stack([row[name] for row in per_target]).cpu() for name in per_target[0]
        },
        verdict=axis.verdict("The scale of the predicted weights", std, _STEADY_SCALE),
    )


def gradient_profile(
    model: HyperModel,
    loss: Callable[[Any, Any], Tensor],
    batches: Iterable[Any],
    input: str | None = None,
    *,
    points: int = 17,
    generator: torch.Generator | None = None,
) -> GradientProfile:
    r"""Measure how the gradient by the predicted weights follows an input (paper, figure 3c).

    For every value of the input and every batch, :math:`\|\nabla_\theta L\|`: the norm of
    the gradient that reaches the hypernetwork. The input is varied as in
    :func:`scale_profile`, all others are held at their medians.

    The model runs in the mode it is in, since that is what is asked about: call
    ``model.train()`` before to see what training sees. Nothing of it is changed: no
    ``.grad``, and its buffers (such as running statistics) are put back. Dropout draws from
    PyTorch's generator as always.

    The verdict calls the gradient steady where its ``variation`` along the input is below
    0.25 or below twice that across the batches, which is the noise that training has
    anyway. Above, it follows the input (the paper's problem) where the ``correlation`` is 0.8 or
    more and the encoding does not have constant norm; else it varies in another way, as it
    does where the task is harder for some values. A steady gradient does not acquit a model whose
    :func:`scale_profile` is not: gradients of the last bias, which never depend on the
    scale of the weights, can outweigh all others at first. Measure it in training as well.

    Args:
        model: the model, in any state of training.
        loss: ``loss(net, batch)``, a scalar; ``net`` is the bound primary, as from
            :meth:`HyperModel.bind`.
        batches: what ``loss`` takes, one after another; gone through once. A handful is enough.
        input: the input to vary; may be left out where there is one.
        points: how many values.
        generator: draws the values of an input with an event shape; by default
            one with a fixed seed.

    Returns:
        The profile; ``print`` it for its numbers and the verdict.

    Raises:
        ConfigurationError: the input is not one of the model's, or has to be named; there
            are no batches.
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
    axis = _Axis(model, input, points, generator)
    columns: list[list[Tensor]] = []
    with _buffers_kept(model), torch.inference_mode(False), torch.enable_grad():
        for batch in batches:
            columns.append([_target_norms(model, gamma, loss, batch) for gamma in axis])
    if not columns:
        raise ConfigurationError(
            "batches was empty; expected at least one batch for loss(net, batch)."
        )
    # (targets, points, batches)
    norms = torch.stack([torch.stack(column, dim=1) for column in columns], dim=2).cpu()
    norm = norms.norm(dim=0)
    noise = sum(map(_variation, norm)) / len(norm)
    return GradientProfile(
        input=axis.name,
        gamma=axis.values.cpu(),
        magnitude=axis.magnitude,
        norm=norm,
        per_target=dict(zip(model.hypernet.shapes, norms, strict=True)),
        verdict=axis.verdict(
            "The gradient by the predicted weights",
            norm.mean(dim=1),
            max(_STEADY_GRADIENT, 2 * noise),
        ),
    )


def _target_norms(
    model: HyperModel, gamma: Mapping[str, Tensor], loss: Callable[[Any, Any], Tensor], batch: Any
) -> Tensor:
    """The norm of the gradient by every predicted tensor: ``(targets,)``."""
    with torch.no_grad():
        predicted = model.predict(**gamma)
    theta = [t.detach().requires_grad_() for t in predicted.values()]
    value = loss(bind(model.primary, dict(zip(predicted, theta, strict=True))), batch)
    check_loss("loss(net, batch)", value, torch.Size())
    gradients: tuple[Tensor | None, ...] = (None,)
    if value.requires_grad:
        gradients = torch.autograd.grad(value, theta, allow_unused=True)
    if all(gradient is None for gradient in gradients):
        raise ObjectiveError(
            "loss(net, batch) does not depend on the predicted weights. Compute it with the net "
            "that it is given, not with the model or the primary, and without detach or no_grad."
        )
    return torch.stack(
        [
            torch.zeros((), dtype=widest(t.device), device=t.device)
            if gradient is None
            else widen(gradient).norm()
            for t, gradient in zip(theta, gradients, strict=True)
        ]
    )


def check_loss(caller: str, value: Any, batch_shape: torch.Size) -> None:
    """Refuse what a user's function returned if it is not a loss of that shape."""
    if not isinstance(value, Tensor):
        raise ObjectiveError(
            f"{caller} returned {type(value).__name__}; expected a tensor of shape "
            f"{tuple(batch_shape)}, without .item() or float()."
        )
    if value.shape != batch_shape:
        way_out = (
            "one loss for every sample. Reduce over all other dimensions, as with "
            "reduction='none' and .flatten(1).mean(1)"
            if batch_shape
            else "a scalar. Reduce it, as with .mean()"
        )
        raise ObjectiveError(
            f"{caller} returned a tensor of shape {tuple(value.shape)}; expected "
            f"{tuple(batch_shape)}, {way_out}."
        )
    if not value.is_floating_point():
        raise ObjectiveError(
            f"{caller} returned a tensor of dtype {value.dtype}; expected a floating-point loss. "
            "A count of errors cannot be descended; use a loss that is differentiable."
        )


def median(model: HyperModel, name: str) -> Tensor:
    """The middle of an input's space, as a value that the model takes."""
    dtype, device = model.hypernet.dtype, model.hypernet.device
    space = model.inputs[name]
    value = space.quantile(torch.full(space.event_shape, 0.5, dtype=torch.float64))
    return value.to(device=device, dtype=dtype if value.is_floating_point() else None)


class _Axis:
    """The values of one input of a model, with all others held at their medians."""

    name: str
    values: Tensor
    magnitude: Tensor

    def __init__(
        self,
        model: HyperModel,
        name: str | None,
        points: int,
        generator: torch.Generator | None,
    ) -> None:
        inputs = model.inputs
        if name is None:
            if len(inputs) > 1:
                raise ConfigurationError(
                    f"The model has several inputs, {listed(inputs)}: say which one to vary."
                )
            (name,) = inputs
        if name not in inputs:
            raise ConfigurationError(
                f"{name!r} is not an input of this model; its inputs are {listed(inputs)}."
                f"{did_you_mean(name, inputs)}"
            )
        self.model, self.name = model, name
        self.values, self.magnitude = self._varied(inputs[name], points, generator)
        self._held = {other: median(model, other) for other in inputs if other != name}

    def _varied(
        self, space: Input, points: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        dtype, device = self.model.hypernet.dtype, self.model.hypernet.device
        if isinstance(space, Categorical) and not space.event_shape:
            return torch.arange(space.n, device=device), torch.ones(space.n)
        if not space.event_shape:
            values = space.grid(points, dtype=dtype, device=device)
            return values, values.abs().cpu()
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        values = space.sample((points,), generator=generator, dtype=dtype, device=generator.device)
        if space.discrete:
            return values.to(device), torch.ones(points)
        magnitude = values.reshape(points, -1).norm(dim=1)
        order = magnitude.argsort()
        return values[order].to(device), magnitude[order].cpu()

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for value in self.values:
            yield {self.name: value, **self._held}

    def verdict(self, subject: str, size: Tensor, steady: float) -> str:
        """What the measured sizes say of the model, and what to change."""
        if not bool(size.isfinite().all()):
            return f"{subject} is not finite everywhere along {self.name!r}: the model diverged."
        variation = _variation(size)
        if variation < steady:
            return f"{subject} does not follow {self.name!r}: nothing to change."
        missing = self._missing()
        if missing[:1] == [_ENCODING] and _correlation(self.magnitude, size) >= _FOLLOWS:
            diagnosis = (
                f"{subject} follows the magnitude of {self.name!r}: the proportionality of "
                "section 3 of the paper, which makes training slow or unstable."
            )
        else:
            diagnosis = f"{subject} varies along {self.name!r} by {100 * variation:.0f} %."
        if missing:
            return f"{diagnosis} Build the model with {' and '.join(missing)}."
        return (
            f"{diagnosis} The encoding has constant norm and theta0 is there, so it is the "
            "predicted change that is large. Start it smaller, with init='relative' or "
            "init='zero', unless the model is trained and has learned this."
        )

    @torch.no_grad()
    def _missing(self) -> list[str]:
        """What MIP has and this model has not: an encoding of constant norm, and theta0."""
        hypernet = self.model.hypernet
        encoded = hypernet.encode(**{self.name: self.values}, **self._held).norm(dim=-1)
        rows = list(self)
        changes = [_norm(hypernet(**rows[i]).values()) for i in (0, len(rows) // 2, -1)]
        own = _norm(self.model.theta0.values())
        missing = [_ENCODING] if _variation(widen(encoded)) > 0.01 else []
        return missing + ([_RESIDUAL] if own < 0.1 * max(changes) else [])


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put every buffer back afterwards: the same tensor with the same values."""
    kept = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, values in kept:
                module._buffers[name] = buffer
                buffer.copy_(values)


def _variation(size: Tensor) -> float:
    mean = float(size.mean())
    deviation = size - size[0]  # exactly zero where nothing varies
    return 0.0 if mean == 0.0 else float(deviation.std(correction=0)) / mean


def _correlation(magnitude: Tensor, size: Tensor) -> float:
    pair = torch.stack([widen(magnitude), widen(size)])
    if bool((pair.std(dim=1) <= 1e-12 * pair.abs().amax(dim=1)).any()):
        return math.nan
    return float(torch.corrcoef(pair)[0, 1])


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(widen(t).square().sum()) for t in tensors))


def _std(flat: Tensor) -> Tensor:
    return flat.std(correction=0) if flat.numel() > 1 else flat.abs().squeeze()
