"""The twin of directions: the whole matrix of changes, and its singular values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import hyperlight as hl


def changes(hypernet: hl.HyperNet, values: dict[str, Tensor]) -> Tensor:
    """What is predicted for every value, one row for each: ``(draws, P)``."""
    rows = []
    for i in range(len(next(iter(values.values())))):
        one: dict[str, Any] = {name: value[i] for name, value in values.items()}
        rows.append(torch.cat([t.flatten() for t in hypernet(**one).values()]))
    return torch.stack(rows).detach().double()


def energies(hypernet: hl.HyperNet, values: dict[str, Tensor]) -> Tensor:
    """Shares of the directions in the variation, largest first."""
    change = changes(hypernet, values)
    squares = torch.linalg.svdvals(change - change.mean(0)).square()
    return squares / squares.sum()


def best_error(hypernet: hl.HyperNet, values: dict[str, Tensor], directions: int) -> float:
    """The smallest error that a change of so many directions can have, over the variation."""
    change = changes(hypernet, values)
    left, sizes, right = torch.linalg.svd(change, full_matrices=False)
    kept = left[:, :directions] * sizes[:directions] @ right[:directions]
    return relative_error(change, kept)


def relative_error(change: Tensor, other: Tensor) -> float:
    """Root mean square of the difference over that of the variation."""
    variation = (change - change.mean(0)).square().sum()
    return float(((other - change).square().sum() / variation).sqrt())
