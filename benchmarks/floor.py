"""The floor: the memory traffic that no exact Adam on a dense head can avoid.

The forward pass reads the head, and so does the gradient of the features; the update reads and
writes the head and both moments. The gradient and the update need the same rows, so one read serves
both. That leaves seven passes: one read, and three arrays that are read and written.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["PASSES", "floor_bytes", "prepare_floor"]

PASSES = 7
LIMIT = 2**26  # entries of an array, far beyond any cache; a larger head is streamed in parts


def floor_bytes(entries: int) -> int:
    """Bytes that :func:`prepare_floor` allocates."""
    return 3 * 4 * min(entries, LIMIT)


def prepare_floor(entries: int, device: torch.device) -> Callable[[int], object]:
    """Return a step: seven streaming passes over arrays of ``entries`` float32 numbers."""
    size = min(entries, LIMIT)
    weight, first, second = (torch.ones(size, device=device) for _ in range(3))

    @torch.no_grad()
    def stream(step: int) -> object:
        total = 0.0
        for start in range(0, entries, size):
            rows = slice(0, min(size, entries - start))
            total = total + weight[rows].sum()
            for array in (weight, first, second):
                array[rows].mul_(1.0)
        return total

    return stream
