"""Scans with label maps in memory, for registration and segmentation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ScanSplit", "Scans", "pairs", "split_names"]


@dataclass(frozen=True)
class Scans:
    """Two-dimensional scans with a label for every pixel.

    Attributes:
        images: ``(N, 1, H, W)``, float32 in [0, 1] or uint8 from 0 to 255 (see :meth:`unit`).
        labels: ``(N, H, W)``, uint8 in memory and int64 after :meth:`unit`; 0 is background.
        groups: ``(N,)``, int64; scans of one group show the same thing (the slice at one height,
            one digit) and can be registered to each other.
    """

    images: Tensor
    labels: Tensor
    groups: Tensor

    def __len__(self) -> int:
        return len(self.groups)

    def to(self, device: torch.device) -> Scans:
        """The same on another device."""
        return Scans(self.images.to(device), self.labels.to(device), self.groups.to(device))

    def __getitem__(self, index: list[int] | Tensor) -> Scans:
        return Scans(self.images[index], self.labels[index], self.groups[index])

    def unit(self) -> Scans:
        """The same with float32 images in [0, 1] and int64 labels."""
        images = self.images
        if images.dtype == torch.uint8:
            images = images.float().div_(255.0)
        return Scans(images, self.labels.long(), self.groups)

    def resize(self, size: tuple[int, int]) -> Scans:
        """Resize images bilinearly with antialiasing, and labels to the nearest pixel.

        >>> from hyperlight.lab.data import digit_scans
        >>> digit_scans().test.resize((16, 24)).labels.shape
        torch.Size([360, 16, 24])
        """
        if tuple(self.images.shape[-2:]) == tuple(size):
            return self
        images = F.interpolate(self.images, size, mode="bilinear", antialias=True)
        labels = F.interpolate(self.labels.unsqueeze(1), size, mode="nearest-exact").squeeze(1)
        return Scans(images, labels, self.groups)


@dataclass(frozen=True)
class ScanSplit:
    """A data set of scans, split into parts.

    Attributes:
        name: of the data set.
        train: for training.
        valid: for choosing settings.
        test: for testing.
        label_names: of the label values 0 (background), 1, 2, ...
        note: a line that describes the parts, for reports.
    """

    name: str
    train: Scans
    valid: Scans
    test: Scans
    label_names: tuple[str, ...]
    note: str


def split_names(names: Sequence[str]) -> tuple[list[int], list[int], list[int]]:
    """Indices of 64 %, 16 % and 20 % of the names, to train, validate and test (section A.1).

    Names are shuffled by their sha256, so that the split is the same everywhere; names of files
    may have bytes that are not UTF-8.

    >>> [len(part) for part in split_names([f"subject {i}" for i in range(414)])]
    [265, 66, 83]
    """

    def digest(i: int) -> bytes:
        return hashlib.sha256(names[i].encode("utf-8", "surrogatepass")).digest()

    order = sorted(range(len(names)), key=digest)
    first, second = round(0.64 * len(names)), round(0.80 * len(names))
    return sorted(order[:first]), sorted(order[first:second]), sorted(order[second:])


def pairs(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Indices ``(moving, fixed)`` of a fixed set of pairs for evaluation.

    Every scan is registered to the next one of its group, and the last to the first, so each is
    moving once and fixed once. A group with a single scan gives no pair.

    >>> pairs(torch.tensor([0, 1, 0, 1, 0]))
    (tensor([0, 2, 4, 1, 3]), tensor([2, 4, 0, 3, 1]))
    """
    moving, fixed = [], []
    for group in sorted(set(groups.tolist())):
        members = (groups == group).nonzero().flatten()
        if len(members) > 1:
            moving.append(members)
            fixed.append(members.roll(-1))
    empty = groups.new_empty(0)
    return torch.cat([empty, *moving]), torch.cat([empty, *fixed])
