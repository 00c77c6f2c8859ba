"""Heads with rows of weights for every predicted tensor, and the plainest of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..init import Initialization
from ..optim import dense_product, is_ordinary, takes_factors
from ..precision import rms
from .base import SAMPLE, Head, ratio
from .weights import DirectedWeight, Weight


class Rows(Head):
    """A head whose weight has rows of its own for every predicted tensor."""

    weight: nn.Parameter

    def _count(self, name: str) -> int:
        return self.shapes[name].numel()

    def _split_rows(self, rows: Tensor, dim: int) -> Iterable[tuple[str, Tensor]]:
        counts = [self._count(name) for name in self.shapes]
        return zip(self.shapes, torch.split(rows, counts, dim=dim), strict=True)

    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        total = sum(map(self._count, self.shapes))
        self.weight = nn.Parameter(torch.empty(total, self.features, dtype=dtype, device=device))

    @torch.no_grad()
    def reset_parameters(
        self, init: Initialization, generator: torch.Generator | None = None
    ) -> None:
        for name, block in self._split_rows(self.weight, 0):
            self._draw(name, block, self._std(name, init), generator)

    def _std(self, name: str, init: Initialization) -> float:
        return init.std(name, self.shapes[name])

    def _draw(
        self, name: str, block: Tensor, std: float, generator: torch.Generator | None
    ) -> None:
        block.normal_(0.0, std, generator=generator)

    @torch.no_grad()
    def calibrate(self, features: Tensor, init: Initialization) -> None:
        for name, block in self._split_rows(self.weight, 0):
            self._scale(name, block, self._std(name, init), features)

    def _scale(self, name: str, block: Tensor, std: float, features: Tensor) -> None:
        block.mul_(ratio(std, rms(F.linear(features, block[:SAMPLE]))))

    def parameter_count(self, name: str) -> int:
        return self.features * self._count(name)


class Dense(Rows):
    r"""One weight for every pair of feature and predicted entry: ``P x K`` of them.

    .. math:: \Delta\theta = W f

    The last layer of the paper's hypernetwork (eq. 1), without its bias: the primary's own
    parameters :math:`\theta^0` take its place.

    The gradient of :math:`W` is an outer product. The optimizers of :mod:`hyperlight.optim` read
    its two factors; to everything else it is dense.

    Shape:
        ``(..., K)`` to ``(..., P)``.
    """

    outer_product_gradients = ("weight",)

    def config(self) -> dict[str, Any]:
        return {}

    def add_to(self, theta0: Mapping[str, Tensor], features: Tensor) -> dict[str, Weight]:
        own = [theta0[name] for name in self.shapes]
        alike = all(t.dtype == self.weight.dtype == features.dtype for t in own)
        # The number of rows is asked last: an export that traces it would take it for a constant.
        if not is_ordinary(features, self.weight, *own) or torch.is_autocast_enabled("cpu"):
            return super().add_to(theta0, features)
        if features.ndim != 2 or features.shape[0] == 1 or not alike:
            return super().add_to(theta0, features)
        if torch.is_grad_enabled() and takes_factors(self.weight, features.shape[0]):
            return super().add_to(theta0, features)
        # Many sets of weights: each layer decides whether to build them.
        return {
            name: DirectedWeight(theta0[name], features, block)
            for name, block in self._split_rows(self.weight, 0)
        }

    def forward(self, features: Tensor) -> Tensor:
        return dense_product(features, self.weight)
