"""A head that predicts two thin factors of every matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._torch import is_sharded
from ..errors import check_integer, sharded
from ..precision import widest
from .base import ratio
from .rows import Rows
from .weights import LowRankWeight, Weight, sums

Matrix = tuple[int, int]


def as_matrix(shape: torch.Size, rank: int) -> Matrix | None:
    """Rows and columns of a tensor that two factors make smaller; None if they would not."""
    if len(shape) < 2:
        return None
    rows, columns = shape[0], math.prod(shape[1:])
    return (rows, columns) if rank * (rows + columns) < rows * columns else None


def factors(code: Tensor, rank: int, matrix: Matrix) -> tuple[Tensor, Tensor]:
    """``(..., rank * (rows + columns))`` as ``(..., rows, rank)`` and ``(..., rank, columns)``."""
    rows, columns = matrix
    left, right = torch.split(code, [rank * rows, rank * columns], dim=-1)
    batch = code.shape[:-1]
    return left.reshape(*batch, rows, rank), right.reshape(*batch, rank, columns)


def factor_stds(std: float, rank: int, matrix: Matrix) -> tuple[float, float]:
    """The deviations of both factors that give their product the deviation ``std``.

    The right one has that of a layer, variance 1 / columns. If the product is to be zero, the left
    one is, and the right one keeps its gradient alive.
    """
    columns = matrix[1]
    return std * math.sqrt(columns / rank), columns**-0.5


def product_rms(left: Tensor, right: Tensor) -> Tensor:
    """The root mean square of the products' entries, from the factors' Gram matrices."""
    gram = (left.mT @ left) * (right @ right.mT)
    total = gram.sum(dim=(-2, -1), dtype=widest(gram.device))
    return (total.mean() / (left.shape[-2] * right.shape[-1])).sqrt()


class LowRank(Rows):
    r"""Predicts two thin factors of every matrix, which are multiplied.

    .. math:: \Delta\theta = A(f) B(f), \quad A \in R^{o \times r}, B \in R^{r \times i}

    A tensor with more than one dimension counts as a matrix of its first dimension by all others.
    Vectors, and matrices that the factors would not make smaller, are predicted as :class:`Dense`
    does. With one set of weights per sample, the matrices of linear layers are never multiplied
    out.

    Both factors are linear in the features, so the prediction grows with the square of their
    norm, which MIP keeps constant.

    Args:
        rank: ``r``.

    Shape:
        ``(..., K)`` to ``(..., P)``; ``K`` parameters for every entry of a factor.

    >>> head = hl.LowRank(4)
    >>> net = hl.HyperNet({"z": hl.Normal(2)}, {"w": (512, 256)}, head=head)
    >>> net(z=torch.zeros(2))["w"].shape, net.head.weight.shape[0] == 4 * (512 + 256)
    (torch.Size([512, 256]), True)
    """

    def __init__(self, rank: int = 8) -> None:
        super().__init__()
        check_integer("LowRank(rank={})", rank)
        self.rank = rank

    def config(self) -> dict[str, Any]:
        return {"rank": self.rank}

    def _matrix(self, name: str) -> Matrix | None:
        """Rows and columns of a tensor that is predicted by its factors."""
        return as_matrix(self.shapes[name], self.rank)

    def _count(self, name: str) -> int:
        matrix = self._matrix(name)
        return self.rank * sum(matrix) if matrix else super()._count(name)

    def _draw(
        self, name: str, block: Tensor, std: float, generator: torch.Generator | None
    ) -> None:
        matrix = self._matrix(name)
        if matrix is None:
            return super()._draw(name, block, std, generator)
        parts = torch.split(block, [self.rank * size for size in matrix])
        for part, own in zip(parts, factor_stds(std, self.rank, matrix), strict=True):
            part.normal_(0.0, own, generator=generator)

    def _scale(self, name: str, block: Tensor, std: float, features: Tensor) -> None:
        matrix = self._matrix(name)
        if matrix is None:
            return super()._scale(name, block, std, features)
        found = product_rms(*factors(F.linear(features, block), self.rank, matrix))
        block[: self.rank * matrix[0]].mul_(ratio(std, found))

    def add_to(self, theta0: Mapping[str, Tensor], features: Tensor) -> dict[str, Weight]:
        if is_sharded(self):
            raise sharded("The LowRank head is")
        weights: dict[str, Weight] = {}
        for name, code in self._split_rows(F.linear(features, self.weight), -1):
            own, matrix = theta0[name], self._matrix(name)
            if matrix is None:
                (weights[name],) = sums([own], code)
            else:
                left, right = factors(code, self.rank, matrix)
                weights[name] = LowRankWeight(own, left.to(own.dtype), right.to(own.dtype))
        return weights

    def predict(self, features: Tensor) -> dict[str, Tensor]:
        predicted: dict[str, Tensor] = {}
        for name, code in self._split_rows(F.linear(features, self.weight), -1):
            matrix = self._matrix(name)
            if matrix is not None:
                left, right = factors(code, self.rank, matrix)
                code = left @ right
            predicted[name] = code.reshape(features.shape[:-1] + self.shapes[name])
        return predicted

    def forward(self, features: Tensor) -> Tensor:
        batch = features.shape[:-1]
        return torch.cat([t.reshape(*batch, -1) for t in self.predict(features).values()], dim=-1)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, {super().extra_repr()}"
