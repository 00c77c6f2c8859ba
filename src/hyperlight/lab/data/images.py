"""Labelled images in memory, and the embedded set of digits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .augment import Augmentation

__all__ = ["ImageSplit", "Images", "digits", "stratified_split"]


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
        images: ``(N, C, H, W)``, float32 in [0, 1], or uint8 from 0 to 255 where a set is
            large (see :meth:`unit`).
        labels: ``(N,)``, int64.
        aspect: ``(N,)``, float32, width / height of the originals, where whole images were
            squeezed to one size for :class:`Augmentation` to crop; otherwise None.
    """

    images: Tensor
    labels: Tensor
    aspect: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Images:
        """All of it on another device."""
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
    """A data set with its parts and a line that says what they are.

    Attributes:
        name: of the data set.
        train: what to train with.
        test: what to test with.
        classes: number of classes.
        note: what the parts are, for the reader of a result.
        valid: what to choose settings with; None where nothing is held out for that.
        augment: how ``train`` is augmented; None where it is used as it is.
        class_names: in the order of the labels, where they have names.
    """

    name: str
    train: Images
    test: Images
    classes: int
    note: str
    valid: Images | None = None
    augment: Augmentation | None = None
    class_names: tuple[str, ...] = ()


def stratified_split(labels: np.ndarray, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of a part and of the held-out ``share``, classes in proportion."""
    from sklearn.model_selection import train_test_split

    kept, held_out = train_test_split(
        np.arange(len(labels)), test_size=share, stratify=labels, random_state=seed
    )
    return sorted(kept.tolist()), sorted(held_out.tolist())


def digits(size: int = 8) -> ImageSplit:
    """scikit-learn's 1,797 real handwritten digits, 8x8 (UCI optical recognition, test part).

    Split 80 % to 20 %, stratified, always the same way.

    Args:
        size: height and width; other than 8, the images are resized, bilinearly.

    >>> digits(size=32).train.images.shape
    torch.Size([1437, 1, 32, 32])
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div(16.0).unsqueeze(1)
    if size != 8:
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    data = Images(images, torch.from_numpy(bunch.target).long())
    train, test = stratified_split(bunch.target, share=0.2, seed=0)
    shown = "8x8" if size == 8 else f"8x8 resized to {size}x{size}"
    return ImageSplit(
        name="digits",
        train=data[train],
        test=data[test],
        classes=10,
        note=f"scikit-learn's digits, {shown}: {len(train):,} images to train, "
        f"{len(test):,} to test",
    )
