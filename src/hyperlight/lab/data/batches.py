"""Batches of data in memory, from generators whose state can be saved and restored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from ..errors import DataError
from .scans import Scans

__all__ = ["Batches", "PairBatches"]


class InMemory(Protocol):
    """What :class:`Batches` needs: :class:`Images` and :class:`Scans` both have it."""

    @property
    def images(self) -> Tensor: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: Tensor, /) -> Self: ...
    def unit(self) -> Self: ...


Data = TypeVar("Data", bound=InMemory)


class Batches(Iterator[Data], Generic[Data]):
    """Endless batches, reshuffled every epoch; an incomplete last batch is dropped.

    Images come as float32 in [0, 1], label maps as int64.

    Args:
        data: in memory, on any device.
        batch_size: number of images or scans in a batch.
        seed: of the shuffling and of the augmentation.
        augment: called with every batch, the generator and the shard, like
            :class:`~hyperlight.lab.data.Augmentation`.
        shard: ``(i, n)`` returns the entries i, i + n, i + 2 n, ... of every batch. Processes with
            the same seed and the shards (0, n) to (n - 1, n) get, together, the batches of a
            single process.

    Raises:
        DataError: the batch is larger than the data.

    >>> from hyperlight.lab.data import Images
    >>> data = Images(torch.rand(10, 1, 8, 8), torch.arange(10))
    >>> batches = Batches(data, batch_size=4, seed=0)
    >>> state = batches.state_dict()
    >>> first = next(batches).labels
    >>> batches.load_state_dict(state)
    >>> torch.equal(next(batches).labels, first)
    True
    """

    def __init__(
        self,
        data: Data,
        batch_size: int,
        seed: int,
        augment: Callable[[Data, torch.Generator, tuple[int, int]], Data] | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        _check(batch_size, len(data), shard)
        self.data = data
        self.batch_size = batch_size
        self.augment = augment
        self.shard = shard
        self.generator = torch.Generator().manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.int64)

    def __next__(self) -> Data:
        if len(self.order) < self.batch_size:
            self.order = torch.randperm(len(self.data), generator=self.generator)
        index, self.order = self.order[: self.batch_size], self.order[self.batch_size :]
        own = index[self.shard[0] :: self.shard[1]].to(self.data.images.device)
        batch = self.data[own].unit()
        return batch if self.augment is None else self.augment(batch, self.generator, self.shard)

    def state_dict(self) -> dict[str, Tensor]:
        """The state of the draws, as tensors."""
        return {"generator": self.generator.get_state(), "order": self.order.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a state.

        Raises:
            DataError: the state belongs to data of another size.
        """
        order = state["order"]
        if len(order) and int(order.min()) < 0:
            raise DataError(
                f"The state of the batches names the entry {int(order.min())}; expected 0 or more. "
                "It is damaged: start the run again."
            )
        if len(order) and int(order.max()) >= len(self.data):
            raise DataError(
                f"The state of the batches is of data with {int(order.max()) + 1:,} entries or "
                f"more; this has {len(self.data):,}. Resume with the data that the run started "
                "with."
            )
        self.generator.set_state(state["generator"])
        self.order = order.clone()


class PairBatches(Iterator[tuple[Scans, Scans]]):
    """Endless random pairs ``(moving, fixed)`` of scans to register, both from one group.

    The moving scan is drawn uniformly, the fixed one uniformly from the rest of its group.

    Args:
        data: in memory, on any device.
        batch_size: number of pairs in a batch.
        seed: of the draws.
        shard: the part of every batch to return, as in :class:`Batches`.

    Raises:
        DataError: a group has a single scan.
    """

    def __init__(
        self, data: Scans, batch_size: int, seed: int, shard: tuple[int, int] = (0, 1)
    ) -> None:
        _check(batch_size, len(data), shard)
        self.shard = shard
        self.data = data
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)
        groups = data.groups.cpu()
        counts = groups.bincount()
        if not len(data) or int(counts[groups].min()) < 2:
            raise DataError(
                "A group has a single scan, or there are no scans; expected two or more in every "
                "group, to register them to each other. Add scans, or use fewer slices."
            )
        self._members = groups.argsort(stable=True)
        group = groups[self._members]
        self._first = (counts.cumsum(0) - counts)[group]
        self._count = counts[group]

    def __next__(self) -> tuple[Scans, Scans]:
        chosen = torch.randint(len(self.data), (self.batch_size,), generator=self.generator)
        first, count = self._first[chosen], self._count[chosen]
        draw = torch.rand(self.batch_size, generator=self.generator, dtype=torch.float64)
        step = 1 + (draw * (count - 1)).long()
        other = first + (chosen - first + step) % count
        device = self.data.images.device
        own = slice(self.shard[0], None, self.shard[1])
        moving, fixed = (
            self.data[self._members[i[own]].to(device)].unit() for i in (chosen, other)
        )
        return moving, fixed

    def state_dict(self) -> dict[str, Tensor]:
        """The state of the draws, as tensors."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a state."""
        self.generator.set_state(state["generator"])


def _check(batch_size: int, available: int, shard: tuple[int, int]) -> None:
    if not 1 <= batch_size <= available:
        raise DataError(
            f"The batch size was {batch_size}; expected 1 to {available:,}, the size of the "
            "training data."
        )
    if batch_size % shard[1]:
        raise DataError(
            f"The batch size was {batch_size}, with {shard[1]} processes; expected a multiple of "
            "the number of processes."
        )
