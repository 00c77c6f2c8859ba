"""scikit-learn's handwritten digits, which need no download: as images, and as scans."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import DataSet
from .images import Images, ImageSplit, stratified_split
from .scans import Scans, ScanSplit

__all__ = ["DIGITS", "digit_scans", "digits"]


def digits(size: int = 8) -> ImageSplit:
    """scikit-learn's 1,797 real handwritten digits, 8x8 (UCI optical recognition, test part).

    80 % for training and 20 % for testing, stratified, always the same ones.

    Args:
        size: height and width; if it is not 8, the images are resized bilinearly.

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


def digit_scans(size: int = 32) -> ScanSplit:
    """scikit-learn's real digits as scans, for registration and segmentation.

    The label maps are made from the images: pixels above half of the range of the resized image
    are ink and have the label 1 + digit, all others are background. Groups are the digits. The
    split is that of :func:`digits`; a fifth of its training part, stratified, is for validation.

    Args:
        size: height and width, to which the 8x8 images are resized bilinearly.

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


DIGITS = DataSet(
    "digits",
    images=lambda asked: digits(asked.side(max(8, asked.least))),
    scans=lambda asked: digit_scans(asked.side(max(8, asked.least))),
)
