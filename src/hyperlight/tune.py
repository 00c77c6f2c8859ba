"""After training: the best inputs for a purpose, by gradient descent through the hypernetwork."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .diagnostics import check_loss, median
from .errors import ConfigurationError, InputError, ObjectiveError, did_you_mean, listed
from .inputs import Categorical, Input, Simplex
from .model import HyperModel
from .precision import widest

__all__ = ["Tuned", "tune"]


@dataclass(frozen=True, eq=False)
class Tuned:
    """The best inputs that :func:`tune` saw.

    Attributes:
        inputs: all inputs of the model, those that were held included:
            ``model(x, **tuned.inputs)``. ``batch_shape + event_shape`` each.
        loss: the objective there, of shape ``batch_shape``; infinite for a sample
            whose objective was never finite.
        history: the objective at every point, ``(runs, steps + 1) + batch_shape``: one run per
            restart, for every combination of discrete inputs that is tried. NaN after a run
            has met an objective or a gradient that is not finite.
    """

    inputs: dict[str, Tensor]
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
    """Find the inputs for which an objective is smallest, with the model as it is.

    Gradient descent on the inputs alone: Adam with the short memory of betas 0.8 and 0.9, its
    rate falling to zero as half a cosine. It works in the standardized coordinate,
    :meth:`Input.standardize`, so that a step means the same in every space, and each point is
    projected onto its space. The result is the best point seen, not the last.

    Every sample can have inputs of its own: with start values (or fixed ones) of batch shape
    ``(B,)``, ``net(x)`` is ``model(x, **gamma)``, one set of weights per sample, and the objective
    gives ``(B,)`` losses, each of which depends on its own sample only. The best point is then
    found for each sample.

    The model is in eval mode meanwhile; its modes are restored afterwards, and nothing
    else of it changes: no parameter, no ``requires_grad``, no ``.grad``.

    Args:
        model: the model; trained, frozen or not.
        objective: ``objective(net)`` gives a scalar loss; ``net`` is the bound primary, as
            from :meth:`HyperModel.bind`.
        steps: descents per run; each costs a forward and a backward of the objective.
        lr: the first rate, in standardized units: 0.05 is a twentieth of a bounded space.
        restarts: runs; the first begins at ``start``, the others at draws from the spaces.
        fixed: inputs that are held, by name.
        generator: draws the starts of the restarts; by default one with a fixed seed, so that
            a result can be repeated.
        start: where the first run begins, by input name; others begin at the median of
            their space. A discrete input that is given is held; where none is given, every
            value of it is tried, each with all restarts. An input that has the name of an argument
            of this function can be held, but given no start.

    Returns:
        The best inputs, their loss and the history.

    Raises:
        InputError: a name or a value does not fit the model's inputs.
        ConfigurationError: a setting makes no sense, or nothing is left to tune.
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
    _check_settings(steps, lr, restarts)
    fixed = {} if fixed is None else fixed
    _check_names(model, start, fixed)
    with _evaluating(model), torch.inference_mode(False), torch.enable_grad():
        return _tune(model, objective, steps, lr, restarts, fixed, generator, start)


def _tune(
    model: HyperModel,
    objective: Callable[[Any], Tensor],
    steps: int,
    lr: float,
    restarts: int,
    fixed: Mapping[str, Any],
    generator: torch.Generator | None,
    start: Mapping[str, Any],
) -> Tuned:
    middle = {name: median(model, name) for name in model.inputs}
    model.hypernet.check(**{**middle, **fixed, **start})
    values = model.hypernet.collect({**middle, **fixed, **start})
    batch_shape = model.hypernet.batch_shape(**values)
    if len(batch_shape) > 1:
        raise InputError(
            f"The start values have batch shape {tuple(batch_shape)}; expected (), or (B,) for "
            "inputs of every sample's own."
        )
    first = {
        name: value.detach().expand(batch_shape + model.inputs[name].event_shape).clone()
        for name, value in values.items()
    }
    tried = [
        name
        for name, space in model.inputs.items()
        if space.discrete and name not in start and name not in fixed
    ]
    free = [
        name for name, space in model.inputs.items() if not space.discrete and name not in fixed
    ]
    if not tried and not free:
        raise ConfigurationError(
            f"Nothing is left to tune: of the inputs {listed(model.inputs)}, all are fixed, or "
            "discrete and given. Leave one of them out."
        )
    categories = _categories(model.inputs, tried)
    search = _Search(model, objective, free, batch_shape, first)
    if not free:
        steps, restarts = 0, 1
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    for restart in range(restarts):
        begin = first
        if restart:
            drawn = model.sample(batch_shape, generator=generator)
            begin = {**first, **{name: drawn[name] for name in free}}
        for combination in categories:
            chosen = {
                name: torch.full_like(first[name], index)
                for name, index in zip(tried, combination, strict=True)
            }
            search.run({**begin, **chosen}, steps, lr)
    return search.result()


class _Search:
    """Runs of descent on one objective, and the best point of them all."""

    def __init__(
        self,
        model: HyperModel,
        objective: Callable[[Any], Tensor],
        free: list[str],
        batch_shape: torch.Size,
        first: Mapping[str, Tensor],
    ) -> None:
        self.model, self.objective = model, objective
        self.free, self.batch_shape = free, batch_shape
        self.best = {name: value.clone() for name, value in first.items()}
        self.loss = torch.full(batch_shape, math.inf, device=model.hypernet.device)
        self.history: list[Tensor] = []

    def run(self, begin: dict[str, Tensor], steps: int, lr: float) -> None:
        """Descend from there, and keep what is better than before."""
        spaces = {name: self.model.inputs[name] for name in self.free}
        points = {}
        for name, space in spaces.items():
            precise = begin[name].to(widest(begin[name].device))
            points[name] = _project(space, space.standardize(precise)).requires_grad_()
        # A run is too short for Adam's usual memory of 1000 steps; so small an eps makes the path
        # independent of the unit of the objective.
        optimizer = (
            torch.optim.Adam(points.values(), lr=lr, betas=(0.8, 0.9), eps=1e-18)
            if points
            else None
        )
        alive = torch.ones(self.batch_shape, dtype=torch.bool, device=self.loss.device)
        record = []
        for step in range(steps + 1):
            gamma = begin | {
                name: _value(space, points[name], begin[name].dtype).requires_grad_()
                for name, space in spaces.items()
            }
            loss = self._evaluate(gamma)
            record.append(self._keep(gamma, loss.detach(), alive))
            alive = alive & loss.detach().isfinite()
            if step == steps or optimizer is None or not bool(alive.any()):
                break
            gradients = self._gradients(loss, gamma, points, alive)
            for gradient in gradients.values():
                alive = alive & gradient.isfinite().reshape((*alive.shape, -1)).all(-1)
            with torch.no_grad():
                before = {name: point.clone() for name, point in points.items()}
                for name, space in spaces.items():
                    points[name].grad = _tangent(space, points[name], gradients[name])
                optimizer.param_groups[0]["lr"] = (
                    lr * 0.5 * (1.0 + math.cos(math.pi * step / steps))
                )
                optimizer.step()
                for name, space in spaces.items():
                    moves = alive.reshape(alive.shape + (1,) * len(space.event_shape))
                    stepped = _project(space, points[name])
                    points[name].copy_(torch.where(moves, stepped, before[name]))
        missing = steps + 1 - len(record)
        record += [torch.full_like(self.loss, math.nan)] * missing
        self.history.append(torch.stack(record))

    def _evaluate(self, gamma: Mapping[str, Tensor]) -> Tensor:
        if self.batch_shape:
            loss = self.objective(functools.partial(self.model, **gamma))
        else:
            loss = self.objective(self.model.bind(**gamma))
        check_loss("The objective", loss, self.batch_shape)
        return loss.to(self.loss.device)

    def _keep(self, gamma: Mapping[str, Tensor], loss: Tensor, alive: Tensor) -> Tensor:
        """Remember the point where it is the best; the losses as they are recorded."""
        self.loss = self.loss.to(torch.promote_types(self.loss.dtype, loss.dtype))
        loss = torch.where(alive, loss.to(self.loss.dtype), math.nan)
        better = loss.isfinite() & (loss < self.loss)
        self.loss = torch.where(better, loss, self.loss)
        for name, value in gamma.items():
            chosen = better.reshape(better.shape + (1,) * (value.ndim - better.ndim))
            self.best[name] = torch.where(chosen, value.detach(), self.best[name])
        return loss

    def _gradients(
        self,
        loss: Tensor,
        gamma: Mapping[str, Tensor],
        points: Mapping[str, Tensor],
        alive: Tensor,
    ) -> dict[str, Tensor]:
        """By the points: through the values, past their rounding and the ends of the space."""
        values = [gamma[name] for name in points]
        found: tuple[Tensor | None, ...] = (None,)
        if loss.requires_grad:
            found = torch.autograd.grad(loss[alive].sum(), values, allow_unused=True)
        if all(gradient is None for gradient in found):
            raise ObjectiveError(
                f"The objective does not depend on the inputs {listed(points)}. Compute it with "
                "the net that it is given, not with the model or the primary, and without detach, "
                "no_grad or .item()."
            )
        gradients = {}
        for (name, point), value, gradient in zip(points.items(), values, found, strict=True):
            raw = self.model.inputs[name].unstandardize(point)
            upstream = torch.zeros_like(value) if gradient is None else gradient
            (gradients[name],) = torch.autograd.grad(raw, point, upstream.to(raw.dtype))
        return gradients

    def result(self) -> Tuned:
        history = torch.stack(self.history)
        if not bool(self.loss.isfinite().any()):
            raise ObjectiveError(
                f"The objective was not finite at the start of any of the {len(history)} runs; "
                f"the first gave {_shown(history[0, 0].flatten()[0])}. Pass start values where it "
                "is, and look for a division or a logarithm of zero."
            )
        return Tuned(self.best, self.loss, history)


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

    Entries of a simplex only move together. Adam gives every entry a step of much the
    same length, which the projection would undo wherever entries share most of their gradient.
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


def _categories(inputs: Mapping[str, Input], tried: list[str]) -> list[tuple[int, ...]]:
    """Every combination of the values of discrete inputs."""
    ranges = []
    for name in tried:
        space = inputs[name]
        if not isinstance(space, Categorical) or space.event_shape:
            raise ConfigurationError(
                f"The discrete input {name!r}, {space!r}, has too many values to try them all: "
                f"only a scalar Categorical is searched. Give the value: {name}=..."
            )
        ranges.append(range(space.n))
    return list(itertools.product(*ranges))


def _check_settings(steps: int, lr: float, restarts: int) -> None:
    for name, count in (("steps", steps), ("restarts", restarts)):
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigurationError(f"{name} was {count!r}; expected a positive integer.")
    if not 0.0 < lr < math.inf:
        raise ConfigurationError(f"lr was {lr!r}; expected a positive rate, such as 0.05.")


def _check_names(model: HyperModel, start: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    known = [*model.inputs, "steps", "lr", "restarts", "fixed", "generator"]
    for name in [*start, *fixed]:
        if name not in model.inputs:
            raise InputError(
                f"{name!r} is neither an input of this model ({listed(model.inputs)}) nor an "
                f"argument of tune.{did_you_mean(name, known)}"
            )
        if name in start and name in fixed:
            raise InputError(f"Input {name!r} was given a start and was fixed; expected one.")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and every module's own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _shown(value: Tensor) -> str:
    return f"{float(value):.4g}" if value.ndim == 0 else f"tensor{tuple(value.shape)}"
