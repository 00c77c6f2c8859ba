"""A head in which one small network predicts every tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._torch import is_sharded
from ..errors import check_integer, sharded
from ..init import Initialization
from ..precision import rms
from .base import SAMPLE, Head, ratio, shallow, some_rows
from .low_rank import Matrix, as_matrix, factor_stds, factors, product_rms
from .weights import LowRankWeight, Weight, sums


class PerLayer(Head):
    r"""One small network predicts every tensor from the features and a learned embedding of it.

    .. math::
        \Delta\theta_t = s_t W_{k(t)} \frac{h_t}{|h_t|}, \quad
        h_t = W_2 \, \mathrm{SiLU}(W_1 [f; e_t])

    for the predicted tensors :math:`t`. :math:`W_1` and :math:`W_2` are shared by all of them, and
    :math:`W_k` by all of a kind: of the same shape, and of the same name but for layer numbers, as
    ``layers.0.fc.weight`` and ``layers.7.fc.weight`` are. Text-to-LoRA has such a generator
    (Charakorn et al. 2025, arXiv:2506.06105): it suits networks of many equal layers, and LoRA
    tensors as targets. It has ``width`` parameters for every entry of a kind, where
    :class:`Dense` has ``K`` for every entry of every tensor.

    The hidden vector has norm 1, whatever the norm of the features. The scale :math:`s_t` is
    learned. It starts at 1, or at what a tensor's initialisation is to others of its kind.

    Args:
        embed: the number of entries in the embedding of a tensor.
        width: the number of hidden units.
        rank: predict matrices as two thin factors of that rank, as :class:`LowRank` does; by
            default every entry is predicted. With one set of weights per sample, the matrices of
            linear layers are then never multiplied out.

    Shape:
        ``(..., K)`` to ``(..., P)``.

    >>> shapes = {f"layers.{i}.lora_A": (4, 64) for i in range(12)}
    >>> net = hl.HyperNet({"task": hl.Vector(16)}, shapes, head=hl.PerLayer(embed=8, width=32))
    >>> net(task=torch.zeros(16))["layers.3.lora_A"].shape
    torch.Size([4, 64])
    >>> [tuple(weight.shape) for weight in net.head.outputs]  # one layer for all twelve
    [(256, 32)]
    """

    first: nn.Parameter
    second: nn.Parameter
    embedding: nn.Parameter
    scale: nn.Parameter
    outputs: nn.ParameterList

    def __init__(self, embed: int = 32, width: int = 64, rank: int | None = None) -> None:
        super().__init__()
        check_integer("PerLayer(embed={})", embed)
        check_integer("PerLayer(width={})", width)
        if rank is not None:
            check_integer("PerLayer(rank={})", rank)
        self.embed, self.width, self.rank = embed, width, rank
        self.kinds: tuple[tuple[str, ...], ...] = ()

    def config(self) -> dict[str, Any]:
        return {"embed": self.embed, "width": self.width, "rank": self.rank}

    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        kinds: dict[Any, list[str]] = {}
        for name, shape in self.shapes.items():
            kinds.setdefault((_without_numbers(name), shape), []).append(name)
        self.kinds = tuple(map(tuple, kinds.values()))

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, dtype=dtype, device=device))

        self.first = empty(self.width, self.features + self.embed)
        self.second = empty(self.width, self.width)
        # The tensors are in the order of their kinds, here and in the scale.
        self.embedding = empty(len(self.shapes), self.embed)
        self.scale = empty(len(self.shapes))
        self.outputs = nn.ParameterList(
            empty(self._count(names[0]), self.width) for names in self.kinds
        )

    def _matrix(self, name: str) -> Matrix | None:
        return None if self.rank is None else as_matrix(self.shapes[name], self.rank)

    def _count(self, name: str) -> int:
        """The entries of a tensor, or of its factors."""
        matrix = self._matrix(name)
        return self.shapes[name].numel() if matrix is None else (self.rank or 0) * sum(matrix)

    @torch.no_grad()
    def reset_parameters(
        self, init: Initialization, generator: torch.Generator | None = None
    ) -> None:
        self.first.normal_(0.0, 1.0, generator=generator)
        self.second.normal_(0.0, self.width**-0.5, generator=generator)
        self.embedding.normal_(0.0, self.embed**-0.5, generator=generator)
        scales: list[float] = []
        for names, weight in zip(self.kinds, self.outputs, strict=True):
            stds = [init.std(name, self.shapes[name]) for name in names]
            spread = math.sqrt(sum(std**2 for std in stds) / len(stds))
            matrix = self._matrix(names[0])
            if matrix is None:
                weight.normal_(0.0, spread, generator=generator)
            else:
                rank = self.rank or 0
                parts = torch.split(weight, [rank * size for size in matrix])
                for part, std in zip(parts, factor_stds(spread, rank, matrix), strict=True):
                    part.normal_(0.0, std, generator=generator)
            scales += [std / spread if spread else 1.0 for std in stds]
        self.scale.copy_(torch.tensor(scales, dtype=self.scale.dtype))

    @torch.no_grad()
    def calibrate(self, features: Tensor, init: Initialization) -> None:
        index = 0
        for names, weight in zip(self.kinds, self.outputs, strict=True):
            for name in names:
                hidden = self._hidden(features, self.embedding[index])
                matrix, std = self._matrix(name), init.std(name, self.shapes[name])
                if matrix is None:
                    found = rms(F.linear(hidden, weight[:SAMPLE]))
                else:
                    code = F.linear(hidden, weight)
                    found = product_rms(*factors(code, self.rank or 0, matrix))
                # If both are zero, so is the layer itself, and it learns by its scale of 1.
                if std or bool(found):
                    self.scale[index] = ratio(std, found)
                index += 1

    def _hidden(self, features: Tensor, embedding: Tensor) -> Tensor:
        by_features, by_embedding = torch.split(self.first, [self.features, self.embed], 1)
        x = F.linear(features, by_features) + F.linear(embedding, by_embedding)
        return F.normalize(F.linear(F.silu(x), self.second), dim=-1)

    def _codes(self, features: Tensor) -> Iterator[tuple[str, Matrix | None, tuple[Tensor, ...]]]:
        """Of every tensor: its flat entries, or its two factors."""
        hidden = self._hidden(features.unsqueeze(-2), self.embedding)
        sizes = [len(names) for names in self.kinds]
        own = zip(torch.split(hidden, sizes, -2), torch.split(self.scale, sizes), strict=True)
        kinds = zip(self.kinds, self.outputs, own, strict=True)
        for names, weight, (h, scale) in kinds:
            matrix, code = self._matrix(names[0]), F.linear(h, weight)
            if matrix is None:
                parts: tuple[Tensor, ...] = (code * scale.unsqueeze(-1),)
            else:
                left, right = factors(code, self.rank or 0, matrix)
                parts = (left * scale.view(-1, 1, 1), right)
            dims = [-2 if part.ndim == code.ndim else -3 for part in parts]
            each = [part.unbind(dim) for part, dim in zip(parts, dims, strict=True)]
            for name, *one in zip(names, *each, strict=True):
                yield name, matrix, tuple(one)

    def forward(self, features: Tensor) -> Tensor:
        found = {
            name: parts[0] if matrix is None else (parts[0] @ parts[1]).flatten(-2)
            for name, matrix, parts in self._codes(features)
        }
        return torch.cat([found[name] for name in self.shapes], dim=-1)

    def excerpt(self, rows: int) -> tuple[Head, dict[str, Tensor]]:
        if type(self) is not PerLayer:
            return self, {}
        part, index, outputs = shallow(self), {}, []
        for names, weight in zip(self.kinds, self.outputs, strict=True):
            if self._matrix(names[0]) is None and len(weight) > rows:
                chosen = some_rows(len(weight), rows, weight.device)
                index.update(dict.fromkeys(names, chosen))
                weight = nn.Parameter(weight[chosen])
            outputs.append(weight)
        part.outputs = nn.ParameterList(outputs)
        part.shapes = {n: index[n].shape if n in index else s for n, s in self.shapes.items()}
        return part, index

    def add_to(self, theta0: Mapping[str, Tensor], features: Tensor) -> dict[str, Weight]:
        if self.rank is None:
            return super().add_to(theta0, features)
        if is_sharded(self):
            raise sharded("The PerLayer head is")
        weights: dict[str, Weight] = {}
        for name, matrix, parts in self._codes(features):
            own = theta0[name]
            if matrix is None:
                (weights[name],) = sums([own], *parts)
            else:
                weights[name] = LowRankWeight(own, *(part.to(own.dtype) for part in parts))
        return {name: weights[name] for name in self.shapes}

    def extra_repr(self) -> str:
        settings = f"embed={self.embed}, width={self.width}, rank={self.rank}"
        return f"{settings}, {super().extra_repr()}"


def _without_numbers(name: str) -> str:
    """A name without the numbers of layers.

    >>> _without_numbers("layers.3.fc1.weight")
    'layers.*.fc1.weight'
    """
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
