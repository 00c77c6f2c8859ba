"""The twin of a gradient that is kept as its factors: the matrix, and PyTorch's optimizers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def outer_products(left: Tensor, right: Tensor) -> Tensor:
    """The sum of the products of the rows, one entry at a time."""
    found = torch.zeros(left.shape[1], right.shape[1], dtype=left.dtype)
    for g, f in zip(left, right, strict=True):
        for i, entry in enumerate(g):
            found[i] += entry * f
    return found


class PlainDense(nn.Module):
    """What a dense head computes, by PyTorch's own linear map."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.linear(features, self.weight)
