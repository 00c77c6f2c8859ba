"""The twins of the geometry of registration: one pixel at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def warp(image: Tensor, displacement: Tensor) -> Tensor:
    """``(H, W)`` and ``(2, H, W)``: bilinear, with the edge repeated outside."""
    height, width = image.shape
    found = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            row = min(max(i + float(displacement[0, i, j]), 0.0), height - 1.0)
            column = min(max(j + float(displacement[1, i, j]), 0.0), width - 1.0)
            top, left = math.floor(row), math.floor(column)
            for r, by_row in ((top, 1.0 - (row - top)), (top + 1, row - top)):
                for c, by_column in ((left, 1.0 - (column - left)), (left + 1, column - left)):
                    if by_row and by_column:
                        found[i, j] += by_row * by_column * image[r, c]
    return found


def total_variation(displacement: Tensor) -> float:
    """``(B, 2, H, W)``."""
    down, right = [], []
    for field in displacement:
        for part in field:
            for i in range(part.shape[0]):
                for j in range(part.shape[1]):
                    if i + 1 < part.shape[0]:
                        down.append(abs(float(part[i + 1, j] - part[i, j])))
                    if j + 1 < part.shape[1]:
                        right.append(abs(float(part[i, j + 1] - part[i, j])))
    return sum(down) / len(down) + sum(right) / len(right)


def folding(displacement: Tensor) -> float:
    """``(2, H, W)``: the share of squares of four pixels whose first corner is turned over."""
    _, height, width = displacement.shape
    folded = 0
    for i in range(height - 1):
        for j in range(width - 1):

            def place(r: int, c: int) -> Tensor:
                return torch.tensor([float(r), float(c)]).double() + displacement[:, r, c].double()

            down = place(i + 1, j) - place(i, j)
            right = place(i, j + 1) - place(i, j)
            folded += float(down[0] * right[1] - down[1] * right[0]) <= 0.0
    return folded / ((height - 1) * (width - 1))


def dice(found: Tensor, truth: Tensor, labels: int) -> float:
    """``(H, W)``."""
    overlaps = []
    for label in range(1, labels):
        a = {i for i, value in enumerate(found.flatten().tolist()) if value == label}
        b = {i for i, value in enumerate(truth.flatten().tolist()) if value == label}
        if a or b:
            overlaps.append(2 * len(a & b) / (len(a) + len(b)))
    return sum(overlaps) / len(overlaps) if overlaps else math.nan
