"""Geometry of image registration (paper, section A.3): warping, smoothness, overlap, folding.

A displacement field ``u`` has shape ``(B, 2, H, W)``, in pixels, first along the height, then along
the width. The warped image at a pixel ``p`` is the moving image at ``p + u(p)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["dice", "folding", "jacobian", "soft_dice", "total_variation", "warp", "warp_labels"]


def _positions(displacement: Tensor) -> Tensor:
    """``p + u(p)`` in the form of :func:`torch.nn.functional.grid_sample`: ``(B, H, W, 2)``."""
    height, width = displacement.shape[-2:]
    like = {"dtype": displacement.dtype, "device": displacement.device}
    rows = torch.arange(height, **like).unsqueeze(-1) + displacement[:, 0]  # type: ignore[call-overload]
    columns = torch.arange(width, **like) + displacement[:, 1]  # type: ignore[call-overload]
    scaled = [
        2.0 * pixel / max(size - 1, 1) - 1.0 for pixel, size in ((columns, width), (rows, height))
    ]
    return torch.stack(scaled, dim=-1)


def warp(images: Tensor, displacement: Tensor) -> Tensor:
    """Sample images at displaced positions, with bilinear interpolation.

    Differentiable with respect to both arguments. Positions outside the image take the nearest edge
    pixel. Where the displacement is NaN, as after training has diverged, the result is NaN and has
    no gradient.

    Args:
        images: ``(B, C, H, W)``.
        displacement: ``(B, 2, H, W)``, in pixels.

    Returns:
        ``(B, C, H, W)``.

    >>> from hyperlight.lab.registration import warp
    >>> image = torch.tensor([[1.0, 2.0, 4.0]]).expand(1, 1, 3, 3)
    >>> shift = torch.zeros(1, 2, 3, 3)
    >>> shift[:, 1] = 0.5  # half a pixel to the right
    >>> warp(image, shift)[0, 0, 0]
    tensor([1.5000, 3.0000, 4.0000])
    """
    positions = _positions(displacement)
    # The gradient of grid_sample writes out of bounds at NaN positions (torch 2.13, CPU).
    lost = positions.isnan().any(dim=-1)
    positions = positions.masked_fill(lost.unsqueeze(-1), 0.0)
    warped = F.grid_sample(
        images, positions, mode="bilinear", padding_mode="border", align_corners=True
    )
    return warped.masked_fill(lost.unsqueeze(1), math.nan)


def warp_labels(labels: Tensor, displacement: Tensor) -> Tensor:
    """Sample label maps at displaced positions: the label of the nearest pixel.

    Args:
        labels: ``(B, H, W)``, whole numbers.
        displacement: ``(B, 2, H, W)``, in pixels.

    Returns:
        ``(B, H, W)``, int64.
    """
    height, width = labels.shape[-2:]
    rows = torch.arange(height, device=labels.device).unsqueeze(-1) + displacement[:, 0]
    columns = torch.arange(width, device=labels.device) + displacement[:, 1]
    row = rows.round().long().clamp(0, height - 1)
    column = columns.round().long().clamp(0, width - 1)
    batch = torch.arange(len(labels), device=labels.device).view(-1, 1, 1)
    return labels.long()[batch, row, column]


def total_variation(displacement: Tensor) -> Tensor:
    r"""Mean over pixels of :math:`|\partial u|`, from differences of neighbours, summed over axes.

    The paper says total variation and nothing more. This is the anisotropic one: absolute values of
    every component along every axis (Rudin, Osher, Fatemi 1992, with the 1-norm).

    Args:
        displacement: ``(B, 2, H, W)``.

    Returns:
        A number.
    """
    down = displacement.diff(dim=-2).abs().mean()
    right = displacement.diff(dim=-1).abs().mean()
    return down + right


def jacobian(displacement: Tensor) -> Tensor:
    r"""Determinant of the Jacobian of :math:`p + u(p)`, from differences of neighbours.

    Args:
        displacement: ``(B, 2, H, W)``, H and W at least 2.

    Returns:
        ``(B, H - 1, W - 1)``: 1 without deformation, negative where space folds.
    """
    down = displacement.diff(dim=-2)[..., :-1]
    right = displacement.diff(dim=-1)[..., :-1, :]
    return (1.0 + down[:, 0]) * (1.0 + right[:, 1]) - right[:, 0] * down[:, 1]


def folding(displacement: Tensor) -> Tensor:
    """Fraction of pixels where space folds: where :func:`jacobian` is not positive.

    Returns:
        ``(B,)``, from 0 to 1.
    """
    return (jacobian(displacement) <= 0.0).double().mean(dim=(-2, -1))


def dice(found: Tensor, truth: Tensor, labels: int) -> Tensor:
    """Dice overlap of two label maps, mean over labels (Dice 1945; paper, section A.3).

    Args:
        found: ``(B, H, W)``, whole numbers.
        truth: the same.
        labels: number of labels; label 0 is background and does not count.

    Returns:
        ``(B,)``, from 0 to 1. A label in neither map does not count; NaN if all labels are missing.
    """
    kinds = torch.arange(1, labels, device=found.device).view(-1, 1, 1, 1)
    a, b = found == kinds, truth == kinds
    both = (a & b).sum(dim=(-2, -1)).double()
    either = a.sum(dim=(-2, -1)) + b.sum(dim=(-2, -1))
    return (2.0 * both / either).nanmean(dim=0)


def soft_dice(found: Tensor, truth: Tensor, eps: float = 1e-5) -> Tensor:
    """Dice overlap of probabilities, mean over labels (Milletari et al. 2016).

    Args:
        found: ``(B, L, H, W)``, from 0 to 1; label 0 is background and does not count.
        truth: the same, one-hot.
        eps: makes the overlap of an absent label 1.

    Returns:
        ``(B,)``, from 0 to 1, differentiable.
    """
    a, b = found[:, 1:], truth[:, 1:]
    both = (a * b).sum(dim=(-2, -1))
    either = a.square().sum(dim=(-2, -1)) + b.square().sum(dim=(-2, -1))
    return ((2.0 * both + eps) / (either + eps)).mean(dim=1)
