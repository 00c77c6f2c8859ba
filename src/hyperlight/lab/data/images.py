"""Labelled images in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["ImageSplit", "Images", "stratified_split"]


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
        images: ``(N, C, H, W)``, float32 in [0, 1], or uint8 from 0 to 255 for large data sets
            (see :meth:`unit`).
        labels: ``(N,)``, int64.
        aspect: ``(N,)``, float32, width / height of the originals, if whole images were squeezed
            to one size for :class:`~hyperlight.lab.data.Augmentation` to crop; otherwise None.
    """

    images: Tensor
    labels: Tensor
    aspect: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Images:
        """The same on another device."""
        aspect = None if self.aspect is None else self.aspect.to(device)
        return Images(self.images.to(device), self.labels.to(device), aspect)

    def __getitem__(self, index: list[int] | Tensor) -> Images:
        aspect = None if self.aspect is None else self.aspect[index]
        return Images(self.images[index], self.labels[index], aspect)

    def unit(self) -> Images:
        """The same with float32 images in [0, 1]."""
        if self.images.dtype != torch.uint8:
            return self
        return Images(self.images.float().div_(255.0), self.labels, self.aspect)


@dataclass(frozen=True)
class ImageSplit:
    """A data set of images, split into parts.

    Attributes:
        name: of the data set.
        train: for training.
        test: for testing.
        classes: number of classes.
        note: a line that describes the parts, for reports.
        valid: for choosing settings; None if nothing is held out for that.
        augment: augments training batches, as :class:`~hyperlight.lab.data.Augmentation` does;
            None if they are used as they are.
        class_names: in the order of the labels, if the classes have names.
    """

    name: str
    train: Images
    test: Images
    classes: int
    note: str
    valid: Images | None = None
    augment: Callable[[Images, torch.Generator, tuple[int, int]], Images] | None = None
    class_names: tuple[str, ...] = ()


def stratified_split(labels: np.ndarray, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Sorted indices of a part to keep and of a held-out part, every class in proportion.

    Args:
        labels: ``(N,)``.
        share: fraction to hold out.
        seed: of the draw.
    """
    from sklearn.model_selection import train_test_split

    kept, held_out = train_test_split(
        np.arange(len(labels)), test_size=share, stratify=labels, random_state=seed
    )
    return sorted(kept.tolist()), sorted(held_out.tolist())
