"""Batches from memory, drawn so that a run can be resumed at the exact next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from ..errors import DataError
from .scans import Scans

__all__ = ["Batches", "PairBatches"]


class InMemory(Protocol):
    """What :class:`Images` and :class:`Scans` have in common."""

    @property
    def images(self) -> Tensor: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: Tensor, /) -> Self: ...
    def unit(self) -> Self: ...


Data = TypeVar("Data", bound=InMemory)


class Batches(Iterator[Data], Generic[Data]):
    """Batches without end, epoch after epoch, each epoch in an order of its own.

    What is left at the end of an epoch and is less than a batch is not used in it.
    Images come as float32 in [0, 1], label maps as int64.

    Args:
        data: in memory, on any device.
        batch_size: number of images or scans in a batch.
        seed: of the orders and of the augmentation.
        augment: called with every batch, the generator and the share, as
            :class:`~hyperlight.lab.data.Augmentation` is.
        share: ``(i, n)``: of every batch give the i-th, (i + n)-th, ... entry. Processes with
            the same seed and the shares (0, n) to (n - 1, n) have the whole batch between them,
            augmented as one process would.

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
        share: tuple[int, int] = (0, 1),
    ) -> None:
        _check(batch_size, len(data), share)
        self.data = data
        self.batch_size = batch_size
        self.augment = augment
        self.share = share
        self.generator = torch.Generator().manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.int64)

    def __next__(self) -> Data:
        if len(self.order) < self.batch_size:
            self.order = torch.randperm(len(self.data), generator=self.generator)
        index, self.order = self.order[: self.batch_size], self.order[self.batch_size :]
        own = index[self.share[0] :: self.share[1]].to(self.data.images.device)
        batch = self.data[own].unit()
        return batch if self.augment is None else self.augment(batch, self.generator, self.share)

    def state_dict(self) -> dict[str, Tensor]:
        """All that the next batches depend on beside the data, as tensors."""
        return {"generator": self.generator.get_state(), "order": self.order.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on where ``state`` was taken.

        Raises:
            DataError: the state belongs to data of another size.
        """
        order = state["order"]
        if len(order) and int(order.max()) >= len(self.data):
            raise DataError(
                f"The batches' state is of data with {int(order.max()) + 1:,} entries or more; "
                f"this has {len(self.data):,}. Resume with the data that the run began with."
            )
        self.generator.set_state(state["generator"])
        self.order = order.clone()


class PairBatches(Iterator[tuple[Scans, Scans]]):
    """Random pairs to register, without end: ``(moving, fixed)``, two scans of one group.

    Moving scans are drawn uniformly, fixed ones uniformly among the others of the group.

    Args:
        data: in memory, on any device.
        batch_size: number of pairs in a batch.
        seed: of the draws.
        share: of every batch, as in :class:`Batches`.

    Raises:
        DataError: a group has one scan alone.
    """

    def __init__(
        self, data: Scans, batch_size: int, seed: int, share: tuple[int, int] = (0, 1)
    ) -> None:
        _check(batch_size, len(data), share)
        self.share = share
        self.data = data
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)
        groups = data.groups.cpu()
        counts = groups.bincount()
        if not len(data) or int(counts[groups].min()) < 2:
            raise DataError(
                "A group of scans has one alone (or there are no scans); expected two or more of "
                "every group, which can be registered to each other. Add scans, or use fewer "
                "slices."
            )
        self._members = groups.argsort(stable=True)
        group = groups[self._members]
        self._first = (counts.cumsum(0) - counts)[group]
        self._count = counts[group]

    def __next__(self) -> tuple[Scans, Scans]:
        place = torch.randint(len(self.data), (self.batch_size,), generator=self.generator)
        first, count = self._first[place], self._count[place]
        draw = torch.rand(self.batch_size, generator=self.generator, dtype=torch.float64)
        step = 1 + (draw * (count - 1)).long()
        other = first + (place - first + step) % count
        device = self.data.images.device
        own = slice(self.share[0], None, self.share[1])
        moving, fixed = (self.data[self._members[i[own]].to(device)].unit() for i in (place, other))
        return moving, fixed

    def state_dict(self) -> dict[str, Tensor]:
        """All that the next pairs depend on beside the data, as tensors."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on where ``state`` was taken."""
        self.generator.set_state(state["generator"])


def _check(batch_size: int, available: int, share: tuple[int, int]) -> None:
    if not 1 <= batch_size <= available:
        raise DataError(
            f"The batch size was {batch_size}; expected 1 to {available:,}, which is all there is "
            "to train with."
        )
    if batch_size % share[1]:
        raise DataError(
            f"The batch size was {batch_size}, with {share[1]} processes; expected a multiple of "
            "that, so that each has as much of a batch."
        )
