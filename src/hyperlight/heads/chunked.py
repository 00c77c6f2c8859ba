"""A head in which one small layer writes every chunk of the flat vector."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import check_integer
from ..init import Initialization
from ..precision import rms
from .base import SAMPLE, Head, ratio, shallow, some_rows


class Chunked(Head):
    r"""One small layer writes every chunk of the flat vector, each through its own gate.

    .. math:: \Delta\theta_c = s \odot W (e_c \odot f)

    for the chunks :math:`c = 1, 2, ...` of ``size`` entries. :math:`W` is shared by all chunks
    (von Oswald et al. 2020 share a whole network); the embedding :math:`e_c` is learned and
    starts as random signs. It has ``size x K`` parameters, and ``K`` more for every chunk: the
    smallest head, for primaries that no other fits.

    The scale :math:`s`, one learned number per predicted tensor, holds the initialisation, since
    a chunk may span tensors that start with different deviations. A tensor that starts unchanged
    among others that do not has :math:`s = 0`.

    Args:
        size: the number of entries in a chunk.

    Shape:
        ``(..., K)`` to ``(..., P)``.
    """

    weight: nn.Parameter
    embedding: nn.Parameter
    scale: nn.Parameter

    def __init__(self, size: int = 4096) -> None:
        super().__init__()
        check_integer("Chunked(size={})", size)
        self.size = size

    def config(self) -> dict[str, Any]:
        return {"size": self.size}

    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        total = sum(shape.numel() for shape in self.shapes.values())
        size = min(self.size, total)
        chunks = -(-total // size)

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, dtype=dtype, device=device))

        self.weight = empty(size, self.features)
        self.embedding = empty(chunks, self.features)
        self.scale = empty(len(self.shapes))

    @torch.no_grad()
    def reset_parameters(
        self, init: Initialization, generator: torch.Generator | None = None
    ) -> None:
        stds = [init.std(name, shape) for name, shape in self.shapes.items()]
        sizes = [shape.numel() for shape in self.shapes.values()]
        squares = [n * std**2 for n, std in zip(sizes, stds, strict=True)]
        spread = math.sqrt(sum(squares) / sum(sizes))
        self.weight.normal_(0.0, spread, generator=generator)
        self.embedding.bernoulli_(0.5, generator=generator).mul_(2.0).sub_(1.0)
        values = [std / spread if spread else 1.0 for std in stds]
        self.scale.copy_(torch.tensor(values, dtype=self.scale.dtype))

    @torch.no_grad()
    def calibrate(self, features: Tensor, init: Initialization) -> None:
        size, start = self.weight.shape[0], 0
        for index, (name, shape) in enumerate(self.shapes.items()):
            # The first entries of the tensor, from the chunks that they lie in.
            count = min(shape.numel(), SAMPLE)
            first, last = start // size, (start + count - 1) // size + 1
            gated = features.unsqueeze(-2) * self.embedding[first:last]
            rows = F.linear(gated, self.weight).flatten(-2)
            found = rms(rows[:, start - first * size :][:, :count])
            std = init.std(name, shape)
            # If both are zero, so is the layer itself, and it learns by its scale of 1.
            if std or bool(found):
                self.scale[index] = ratio(std, found)
            start += shape.numel()

    def _chunks(self, features: Tensor) -> Tensor:
        """The flat vector before it is scaled, with the end of the last chunk."""
        return F.linear(features.unsqueeze(-2) * self.embedding, self.weight).flatten(-2)

    def predict(self, features: Tensor) -> dict[str, Tensor]:
        sizes = [shape.numel() for shape in self.shapes.values()]
        chunks = self._chunks(features)[..., : sum(sizes)]
        pairs = zip(self.shapes.items(), torch.split(chunks, sizes, -1), self.scale, strict=True)
        return {
            name: (part * scale).view(features.shape[:-1] + shape)
            for (name, shape), part, scale in pairs
        }

    def forward(self, features: Tensor) -> Tensor:
        pairs = zip(self.scale, self.shapes.values(), strict=True)
        scale = torch.cat([one.expand(shape.numel()) for one, shape in pairs])
        return self._chunks(features)[..., : len(scale)] * scale

    def excerpt(self, rows: int) -> tuple[Head, dict[str, Tensor]]:
        size = len(self.weight)
        if type(self) is not Chunked or size <= rows:
            return self, {}
        chosen = some_rows(size, rows, self.weight.device)
        starts = size * torch.arange(len(self.embedding), device=chosen.device)
        places = (starts.unsqueeze(-1) + chosen).flatten()
        ends = torch.tensor([shape.numel() for shape in self.shapes.values()]).cumsum(0)
        parts = torch.tensor_split(places, torch.searchsorted(places, ends.to(places)).cpu())
        begins = [0, *ends.tolist()]
        index = {n: p - b for n, p, b in zip(self.shapes, parts, begins, strict=False)}
        part = shallow(self)
        part.weight = nn.Parameter(self.weight[chosen])
        part.shapes = {name: own.shape for name, own in index.items()}
        return part, index

    def extra_repr(self) -> str:
        return f"size={self.size}, {super().extra_repr()}"
