"""The widest float of a device, and measurements made in it.

Apple's devices have no float64; there, float32 takes its place.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Kinds of device without float64.
_NARROW = {"mps"}
# Entries that are widened at once.
_PIECE = 1 << 22


def widest(device: torch.device | str | None) -> torch.dtype:
    """The widest float that a device has.

    >>> widest("mps"), widest("cpu")
    (torch.float32, torch.float64)
    """
    return torch.float32 if torch.device(device or "cpu").type in _NARROW else torch.float64


def widen(values: Tensor) -> Tensor:
    """Convert to the widest float of the device."""
    return values.to(widest(values.device))


def rms(values: Tensor) -> Tensor:
    """The root mean square of all entries; large tensors are widened piece by piece.

    >>> round(rms(torch.tensor([[3.0, 4.0]])).item() ** 2, 6)
    12.5
    """
    pieces = torch.split(values.detach().reshape(-1), _PIECE)
    norms = torch.stack([torch.linalg.vector_norm(widen(piece)) for piece in pieces])
    norm: Tensor = torch.linalg.vector_norm(norms)
    return norm / math.sqrt(max(values.numel(), 1))
