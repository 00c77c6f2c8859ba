"""How far an optimizer moves predicted weights, beside the same steps of a plain network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import hyperlight as hl

Groups = list[dict[str, Any]]
Batch = tuple[Tensor, Tensor]


class Stepper(Protocol):
    def step(self) -> Any: ...

    def zero_grad(self) -> None: ...


def spread_draws(model: hl.HyperModel, count: int) -> list[dict[str, Tensor]]:
    """Draws of the inputs, evenly over the size of their features."""
    draws = model.sample((512,), generator=torch.Generator().manual_seed(7))
    sizes = model.hypernet.features(**draws).detach().norm(dim=-1)
    chosen = sizes.argsort()[256 // count :: 512 // count][:count]
    return [{name: values[i] for name, values in draws.items()} for i in chosen]


def distances(
    model: hl.HyperModel,
    groups: Groups,
    lr: float,
    make: Callable[[Groups], Stepper],
    loss: Callable[[nn.Module, Batch], Tensor],
    batches: Sequence[Batch],
    gammas: Sequence[dict[str, Tensor]],
) -> float:
    """The mean distance that the predicted weights move in one step for each batch, as a multiple
    of that of the plain network, which starts from the weights predicted for the first gamma.

    The gammas are those of the steps; the distance is measured at the first one.
    """
    begin = copy.deepcopy(model.state_dict())
    plain = model.at(**gammas[0]).requires_grad_(True)
    start = {name: t.detach().clone() for name, t in model.predict(**gammas[0]).items()}
    optimizer = make([{"params": [*plain.parameters()], "lr": lr}])
    for batch in batches:
        optimizer.zero_grad()
        loss(plain, batch).backward()
        optimizer.step()
    expected = {name: t.detach() for name, t in plain.named_parameters() if name in start}

    optimizer = make(groups)
    for gamma, batch in zip(gammas, batches, strict=True):
        optimizer.zero_grad()
        loss(model.bind(**gamma), batch).backward()
        optimizer.step()
    optimizer.zero_grad()
    found = {name: t.detach() for name, t in model.predict(**gammas[0]).items()}
    model.load_state_dict(begin)

    def far(weights: dict[str, Tensor]) -> float:
        return float(sum((weights[name] - start[name]).abs().sum() for name in start))

    return far(found) / far(expected)


def first_step(
    model: hl.HyperModel,
    groups: Groups,
    lr: float,
    make: Callable[[Groups], Stepper],
    loss: Callable[[nn.Module, Batch], Tensor],
    batch: Callable[[int], Batch],
    count: int = 8,
) -> float:
    """The distance of the first step, on average over the inputs."""
    ratios = [
        distances(model, groups, lr, make, loss, [batch(i)], [gamma])
        for i, gamma in enumerate(spread_draws(model, count))
    ]
    return sum(ratios) / len(ratios)
