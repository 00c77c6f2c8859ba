"""Scans with label maps in memory, for registration and segmentation; the embedded set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .images import digits, stratified_split

__all__ = ["ScanSplit", "Scans", "digit_scans", "pairs", "split_names"]


@dataclass(frozen=True)
class Scans:
    """Two-dimensional scans, each with a label for every pixel.

    Attributes:
        images: ``(N, 1, H, W)``, float32 in [0, 1] or uint8 from 0 to 255 (see :meth:`unit`).
        labels: ``(N, H, W)``, uint8 in memory and int64 after :meth:`unit`; 0 is background.
        groups: ``(N,)``, int64: scans of one group show the same thing (a slice at the same
            height, the same digit) and can be registered to each other.
    """

    images: Tensor
    labels: Tensor
    groups: Tensor

    def __len__(self) -> int:
        return len(self.groups)

    def to(self, device: torch.device) -> Scans:
        """All of it on another device."""
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
        """Images resized bilinearly (with antialiasing), labels to the nearest.

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
    """A data set of scans with its parts and a line that says what they are.

    Attributes:
        name: of the data set.
        train: what to train with.
        valid: what to choose settings with.
        test: what to test with.
        label_names: of the label values 0 (background), 1, 2, ...
        note: what the parts are, for the reader of a result.
    """

    name: str
    train: Scans
    valid: Scans
    test: Scans
    label_names: tuple[str, ...]
    note: str


def split_names(names: Sequence[str]) -> tuple[list[int], list[int], list[int]]:
    """Indices of 64 %, 16 % and 20 % of the names, to train, validate and test (section A.1).

    The order is that of the names' sha256: the same everywhere and for ever, and
    as good as random.

    >>> [len(part) for part in split_names([f"subject {i}" for i in range(414)])]
    [265, 66, 83]
    """
    order = sorted(range(len(names)), key=lambda i: hashlib.sha256(names[i].encode()).digest())
    first, second = round(0.64 * len(names)), round(0.80 * len(names))
    return sorted(order[:first]), sorted(order[first:second]), sorted(order[second:])


def pairs(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Indices ``(moving, fixed)`` of pairs for an evaluation, always the same.

    Within a group every scan is registered to the next one, the last to the first:
    each is moving once and fixed once. Groups of one scan give no pair.

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


def digit_scans(size: int = 32) -> ScanSplit:
    """scikit-learn's real digits as scans: each pixel of ink is labelled with its digit.

    For registration and segmentation without a download. The images and the
    digits are real. The label maps are made of them: ink, above half of the range
    of the resized image, has the label 1 + digit, all else is background. Groups are the
    digits. The split is that of :func:`digits`, with a fifth of its training part,
    stratified, for validation.

    Args:
        size: height and width, to which the 8x8 images are resized, bilinearly.

    >>> digit_scans().train.images.shape
    torch.Size([1149, 1, 32, 32])
    """
    split = digits(size)

    def scans(images: Tensor, digit: Tensor) -> Scans:
        ink = (images.squeeze(1) > 0.5).to(torch.uint8)
        return Scans(images, ink * (1 + digit).to(torch.uint8).view(-1, 1, 1), digit)

    kept, held_out = stratified_split(split.train.labels.numpy(), share=0.2, seed=0)
    train, test = (scans(part.images, part.labels) for part in (split.train, split.test))
    return ScanSplit(
        name="digits",
        train=train[kept],
        valid=train[held_out],
        test=test,
        label_names=("background", *(f"digit {digit}" for digit in range(10))),
        note=f"scikit-learn's digits, 8x8 resized to {size}x{size}, label maps made of ink and "
        f"digit: {len(kept):,} images to train, {len(held_out):,} to validate, {len(test):,} to "
        "test",
    )
