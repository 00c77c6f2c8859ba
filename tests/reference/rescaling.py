"""The twin of rescaling: one pixel at a time."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor


def side(n: int, factor: Fraction) -> int:
    """``factor * n`` to the nearest whole number, halves down; one at least."""
    exact = n * factor
    below = math.floor(exact)
    return max(1, below + 1 if exact - below > Fraction(1, 2) else below)


def _weights(n: int, size: int, place: int, antialias: bool) -> list[float]:
    """What each of ``n`` pixels counts in the new pixel ``place`` of ``size``."""
    step = n / size
    centre = (place + 0.5) * step - 0.5  # in old pixels, whose own centres are whole numbers
    if not antialias:
        centre = min(max(centre, 0.0), n - 1.0)
    reach = max(step, 1.0) if antialias else 1.0
    found = [max(0.0, 1.0 - abs(i - centre) / reach) for i in range(n)]
    return [weight / sum(found) for weight in found]


def resize(image: Tensor, height: int, width: int, antialias: bool = False) -> Tensor:
    """``(H, W)`` to ``(height, width)``, bilinearly."""
    found = torch.zeros(height, width, dtype=image.dtype)
    for i in range(height):
        for j in range(width):
            by_row = _weights(image.shape[0], height, i, antialias)
            by_column = _weights(image.shape[1], width, j, antialias)
            for r, a in enumerate(by_row):
                for c, b in enumerate(by_column):
                    found[i, j] += a * b * image[r, c]
    return found
