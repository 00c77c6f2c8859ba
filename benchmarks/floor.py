"""The physical floor: what any exact Adam on a dense head must move through memory.

A step reads the head to predict and for the gradient of the features, and the update reads and
writes it and reads and writes both moments. With the read for the gradient joined to the update,
as both want the same rows, that is seven passes: one read, and three arrays read and written.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["PASSES", "floor_bytes", "prepare_floor"]

PASSES = 7
LIMIT = 2**26  # entries of an array; of a larger head parts are streamed, far beyond any cache


def floor_bytes(entries: int) -> int:
    """What :func:`prepare_floor` allocates."""
    return 3 * 4 * min(entries, LIMIT)


def prepare_floor(entries: int, device: torch.device) -> Callable[[int], object]:
    """Seven streaming passes over arrays of that many float32 numbers."""
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
