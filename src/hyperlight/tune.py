"""After training: find the best inputs by gradient descent through the hypernetwork."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .diagnostics import check_loss, gradients, median
from .encoded import Encoded, UnitVectors, map_tensors
from .errors import (
    ConfigurationError,
    InputError,
    ObjectiveError,
    check_integer,
    check_rate,
    did_you_mean,
    listed,
)
from .hypernet import check_model
from .inputs import GAIN, Categorical, Input, Simplex
from .model import HyperModel, as_gain
from .precision import widen


@dataclass(frozen=True, eq=False)
class Tuned:
    """The best inputs that :func:`tune` saw.

    Attributes:
        inputs: all inputs of the model, including those that were held, and ``gain`` if it was
            given: ``model(x, **tuned.inputs)``. ``batch_shape + event_shape`` each; with the
            number of categories behind it for a blend.
        loss: the objective there, of shape ``batch_shape``; infinite for a sample
            whose objective was never finite.
        history: the objective at every point, ``(runs, steps + 1) + batch_shape``: one run per
            restart and combination of the discrete inputs that are tried. NaN once the
            objective or its gradient was not finite.
    """

    inputs: dict[str, Any]
    loss: Tensor
    history: Tensor

    def __str__(self) -> str:
        if self.loss.ndim:
            return f"{self.loss.numel()} samples tuned: mean loss {float(self.loss.mean()):.4g}"
        found = ", ".join(f"{name}={_shown(value)}" for name, value in self.inputs.items())
        return (
            f"{found}: loss {float(self.loss):.4g}, from {float(self.history[0, 0]):.4g} at the "
            f"start of {len(self.history)} runs"
        )


def tune(
    model: HyperModel,
    objective: Callable[[Any], Tensor],
    /,
    *,
    steps: int = 100,
    lr: float = 0.05,
    restarts: int = 4,
    fixed: Mapping[str, Any] | None = None,
    generator: torch.Generator | None = None,
    **start: Any,
) -> Tuned:
    """Find the inputs that minimise an objective, without training the model.

    Only the inputs are descended: by Adam with the short memory of betas 0.8 and 0.9, its rate
    falling to zero as half a cosine. A step means the same in every space, as it is taken in the
    standardized coordinate (:meth:`Input.standardize`) and projected onto the space. The result
    is the best point seen, not the last.

    Every sample can have its own inputs: give start values (or fixed ones) of batch shape
    ``(B,)``. Then ``net(x)`` is ``model(x, **gamma)``, with one set of weights per sample, and the
    objective returns ``(B,)`` losses, each of which depends on its own sample only. The best
    point is found for each sample.

    The model is in eval mode meanwhile. Its modes are restored afterwards, and nothing
    else of it changes: no parameter, no ``requires_grad``, no ``.grad``.

    Args:
        model: the model; trained, frozen or not.
        objective: ``objective(net)`` returns a scalar loss; ``net`` is the bound primary, as
            from :meth:`HyperModel.bind`.
        steps: steps per run; each costs a forward and a backward of the objective.
        lr: the first rate, in standardized units: 0.05 is a twentieth of a bounded space.
        restarts: the number of runs: one from ``start``, the others from draws of the spaces.
        fixed: inputs that are held, by name.
        generator: draws the starts of the other runs; by default one with a fixed seed, so that
            a result can be repeated.
        start: where the first run begins, by input name; by default at the median of the
            space. An :class:`~hyperlight.Encoded` input is held at its start, or fixed. A category
            is held at its start; without one, every category is tried, each with all restarts. A
            start with floating-point weights (:class:`Categorical`) is a blend, and the weights
            are descended: ``task=torch.full((4,), 0.25)``. So is ``gain``, the factor of the
            change, if it is given a start. An input with the name of an argument of this function
            can be fixed, but has no start.

    Returns:
        The best inputs, their loss and the history.

    Raises:
        InputError: a name or a value does not fit the model's inputs.
        ConfigurationError: a setting is invalid, or nothing is left to tune.
        ObjectiveError: the objective has the wrong shape, does not depend on the inputs, or is
            not finite at the start of any run.

    >>> net = nn.Linear(1, 1)
    >>> model = hl.hypernetize(net, inputs={"scale": hl.Uniform(0.0, 0.5)})
    >>> x, y = torch.ones(8, 1), torch.zeros(8, 1)
    >>> tuned = hl.tune(model, lambda net: nn.functional.mse_loss(net(x), y), scale=0.25)
    >>> bool(tuned.loss <= tuned.history[0, 0])
    True
    >>> tuned.inputs["scale"].shape, tuned.history.shape
    (torch.Size([]), torch.Size([4, 101]))
    """
    check_model(model)
    if not callable(objective):
        raise ConfigurationError(
            f"objective was of type {type(objective).__name__}; expected a function of the "
            "network, such as lambda net: loss(net(x), y)."
        )
    for name, count in (("steps", steps), ("restarts", restarts)):
        check_integer(f"{name}={{}}", count)
    check_rate(lr, 0.05)
    fixed = {} if fixed is None else fixed
    _check_names(model, start, fixed)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    with evaluating(model), torch.inference_mode(False), torch.enable_grad():
        first, batch_shape = _first(model, {**fixed, **start})
        spaces = {name: space for name, space in model.inputs.items() if name not in fixed}
        searched = {n: space for n, space in spaces.items() if not isinstance(space, Encoded)}
        free = {n: space for n, space in searched.items() if not space.discrete}
        for name, space in spaces.items():
            if isinstance(space, Categorical) and space.n > 1 and first[name].is_floating_point():
                free[name] = Simplex(space.n)
        if model.takes_gain and "gain" in first and "gain" not in fixed:
            free["gain"] = GAIN
        tried = {n: space for n, space in spaces.items() if space.discrete and n not in start}
        raw = {n: first[n] for n, space in model.inputs.items() if isinstance(space, Encoded)}
        with torch.no_grad():
            first |= {name: model.hypernet.unit_vectors(name, value) for name, value in raw.items()}
        if not free and not tried:
            raise ConfigurationError(
                f"Nothing is left to tune: of the inputs {listed(model.inputs)}, all are fixed, or "
                "discrete and given. Leave one of them out."
            )
        loss = torch.full(batch_shape, math.inf, device=model.hypernet.device)
        search = _Search(model, objective, free, dict(first), loss)
        for restart in range(restarts if free else 1):
            begin = first | (_draw(model, free, batch_shape, generator) if restart else {})
            for chosen in _combinations(tried, first):
                search.run(begin | chosen, steps if free else 0, lr)
        search.best |= raw
        return search.result()


def _first(model: HyperModel, held: Mapping[str, Any]) -> tuple[dict[str, Any], torch.Size]:
    """Where the first run begins, a value of every input for every sample; and the batch shape."""
    for name, space in model.inputs.items():
        if isinstance(space, Encoded) and name not in held:
            raise InputError(
                f"Input {name!r} is a value of yours, {space!r}, and is not searched. Pass it: "
                f"fixed={{{name!r}: value}}."
            )
    begin = {n: median(space) for n, space in model.inputs.items() if n not in held} | dict(held)
    gain = begin.pop("gain", None) if model.takes_gain else None
    model.hypernet.check(**begin)
    values, batch_shape = model.hypernet.collect(begin), model.hypernet.batch_shape(**begin)
    if gain is not None:
        gain = as_gain(gain, model.hypernet, batch_shape)
        batch_shape = gain.shape
    if len(batch_shape) > 1:
        raise InputError(
            f"The start values have batch shape {tuple(batch_shape)}; expected (), or (B,) for "
            "one value per sample."
        )
    first = {
        name: map_tensors(
            lambda tensor: tensor.detach().clone(), model.inputs[name].expand(value, batch_shape)
        )
        for name, value in values.items()
    }
    return first if gain is None else first | {"gain": gain.detach().clone()}, batch_shape


def _draw(
    model: HyperModel,
    free: Mapping[str, Input],
    batch_shape: torch.Size,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Where another run begins: draws of what is free, but the gain, which begins where it did."""
    hypernet = model.hypernet
    drawn = {
        name: space.sample(
            batch_shape, generator=generator, dtype=hypernet.dtype, device=generator.device
        ).to(hypernet.device)
        for name, space in model.inputs.items()
        if not isinstance(space, Encoded)
    }
    for name, space in model.inputs.items():
        if space.discrete and name in free:  # a blend
            shape, on = batch_shape + space.event_shape, generator.device
            draw = free[name].sample(shape, generator=generator, dtype=hypernet.dtype, device=on)
            drawn[name] = draw.to(hypernet.device)
    return {name: drawn[name] for name in free if name in drawn}


@dataclass
class _Search:
    """Runs of descent on one objective, and the best point of them all."""

    model: HyperModel
    objective: Callable[[Any], Tensor]
    spaces: Mapping[str, Input]
    best: dict[str, Any]
    loss: Tensor
    history: list[Tensor] = field(default_factory=list)

    def run(self, begin: dict[str, Any], steps: int, lr: float) -> None:
        """Descend from there, and keep what is better than before."""
        points = {
            name: _project(space, space.standardize(widen(begin[name]))).requires_grad_()
            for name, space in self.spaces.items()
        }
        # A run is too short for Adam's usual memory of 1000 steps. The tiny eps makes the path
        # independent of the unit of the objective.
        group = {"params": list(points.values()), "lr": lr, "betas": (0.8, 0.9), "eps": 1e-18}
        optimizer = torch.optim.Adam([group])
        alive = torch.ones_like(self.loss, dtype=torch.bool)
        record: list[Tensor] = []
        for step in range(steps + 1):
            gamma = begin | {
                name: _value(space, points[name], begin[name].dtype).requires_grad_()
                for name, space in self.spaces.items()
            }
            per_sample = functools.partial(self.model, **gamma)
            loss = self.objective(per_sample if self.loss.ndim else self.model.bind(**gamma))
            check_loss("The objective", loss, self.loss.shape)
            loss = loss.to(self.loss.device)
            record.append(self._keep(gamma, loss.detach(), alive))
            alive = alive & loss.detach().isfinite()
            if step == steps or not bool(alive.any()):
                break
            slopes = self._slopes(loss[alive].sum(), gamma, points)
            for slope in slopes.values():
                alive = alive & slope.isfinite().reshape((*alive.shape, -1)).all(-1)
            before = {name: point.detach().clone() for name, point in points.items()}
            for name, space in self.spaces.items():
                points[name].grad = _tangent(space, points[name], slopes[name])
            optimizer.param_groups[0]["lr"] = lr * (1.0 + math.cos(math.pi * step / steps)) / 2.0
            optimizer.step()
            with torch.no_grad():
                for name, space in self.spaces.items():
                    stepped = _project(space, points[name])
                    points[name].copy_(_where(alive, stepped, before[name]))
        record += [torch.full_like(self.loss, math.nan)] * (steps + 1 - len(record))
        self.history.append(torch.stack(record))

    def _keep(self, gamma: Mapping[str, Any], loss: Tensor, alive: Tensor) -> Tensor:
        """Remember the point for samples that it is the best for; the losses to record."""
        self.loss = self.loss.to(torch.promote_types(self.loss.dtype, loss.dtype))
        loss = torch.where(alive, loss.to(self.loss.dtype), math.nan)
        better = loss.isfinite() & (loss < self.loss)
        self.loss = torch.where(better, loss, self.loss)
        for name, value in gamma.items():
            if isinstance(value, UnitVectors):
                continue  # of a value that is held
            self.best[name] = _where(better, value.detach(), self.best[name])
        return loss

    def _slopes(
        self, loss: Tensor, gamma: Mapping[str, Tensor], points: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The gradients by the points, past the rounding of values and the ends of the space."""
        values = [gamma[name] for name in points]
        found = gradients("The objective", loss, f"the inputs {listed(points)}", values)
        slopes = {}
        for (name, point), upstream in zip(points.items(), found, strict=True):
            raw = self.spaces[name].unstandardize(point)
            (slopes[name],) = torch.autograd.grad(raw, point, upstream.to(raw.dtype))
        return slopes

    def result(self) -> Tuned:
        history = torch.stack(self.history)
        if not bool(self.loss.isfinite().any()):
            raise ObjectiveError(
                f"The objective was not finite at the start of any of the {len(history)} runs; "
                f"the first gave {_shown(history[0, 0].flatten()[0])}. Pass start values where it "
                "is, and look for a division or a logarithm of zero."
            )
        return Tuned(self.best, self.loss, history)


def _where(samples: Tensor, value: Tensor, other: Tensor) -> Tensor:
    """The value for these samples, the other for the rest."""
    chosen = samples.reshape(samples.shape + (1,) * (value.ndim - samples.ndim))
    return torch.where(chosen, value, other)


def _value(space: Input, point: Tensor, dtype: torch.dtype) -> Tensor:
    """The value of a point, inside its space after rounding as well."""
    low, high = space.support
    return space.unstandardize(point.detach()).to(dtype).clamp(low, high)


def _project(space: Input, point: Tensor) -> Tensor:
    """The nearest point of the space, in its standardized coordinate."""
    point = point.detach()
    if isinstance(space, Simplex):
        return _onto_simplex(point)
    return point.clamp(0.0, 1.0) if space.bounded else point.clone()


def _tangent(space: Input, point: Tensor, gradient: Tensor) -> Tensor:
    """The part of the gradient along which the space lets a point move.

    Entries of a simplex only move together. Adam gives every entry a step of much the same
    length, which the projection would undo for entries whose gradients are nearly equal.
    """
    if not isinstance(space, Simplex):
        return gradient
    # The projection onto the tangent cone: an entry at zero takes part while its gradient is
    # below the mean of those that do already.
    free = point.detach() > 0.0
    order = torch.where(free, -math.inf, gradient).argsort(dim=-1)
    ordered = gradient.gather(-1, order)
    count = torch.arange(1, gradient.shape[-1] + 1, device=gradient.device)
    mean = ordered.cumsum(dim=-1) / count
    taken = (free.gather(-1, order) | (ordered < mean)).sum(dim=-1, keepdim=True)
    along = gradient - mean.gather(-1, taken - 1)
    return torch.where(free, along, along.clamp_max(0.0))


def _onto_simplex(point: Tensor) -> Tensor:
    """The nearest point with entries >= 0 that sum to 1 (Held, Wolfe and Crowder 1974)."""
    size = point.shape[-1]
    ordered = point.sort(dim=-1, descending=True).values
    excess = (ordered.cumsum(dim=-1) - 1.0) / torch.arange(1, size + 1, device=point.device)
    kept = (ordered > excess).sum(dim=-1, keepdim=True)
    return (point - excess.gather(-1, kept - 1)).clamp_min(0.0)


def _combinations(tried: dict[str, Input], first: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Every combination of the values of discrete inputs, as tensors of the shape of the first."""
    choices = []
    for name, space in tried.items():
        if not isinstance(space, Categorical) or space.event_shape:
            raise ConfigurationError(
                f"The discrete input {name!r}, {space!r}, has too many values to try them all: "
                f"only a scalar Categorical is searched. Give the value: {name}=..."
            )
        choices.append([(name, torch.full_like(first[name], i)) for i in range(space.n)])
    return [dict(combination) for combination in itertools.product(*choices)]


def _check_names(model: HyperModel, start: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    inputs = [*model.inputs, *["gain"] * model.takes_gain]
    known = [*inputs, "steps", "lr", "restarts", "fixed", "generator"]
    for name in [*start, *fixed]:
        if name not in inputs:
            raise InputError(
                f"{name!r} is neither an input of this model ({listed(model.inputs)}) nor an "
                f"argument of tune.{did_you_mean(name, known)}"
            )
        if name in start and name in fixed:
            raise InputError(f"Input {name!r} was given a start and was fixed; expected one.")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and every module's own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _shown(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"{type(value).__name__} of tensors"
    if value.ndim == 1 and len(value) <= 8:
        return f"({', '.join(f'{entry:.4g}' for entry in value.tolist())})"
    return f"{float(value):.4g}" if value.ndim == 0 else f"tensor{tuple(value.shape)}"
