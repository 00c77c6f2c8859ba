"""What can go wrong in the lab, told to a person at a terminal."""

from __future__ import annotations

from ..errors import HyperLightError

__all__ = ["DataError", "LabError"]


class LabError(HyperLightError):
    """A run cannot start or go on as asked."""


class DataError(LabError):
    """A data set is missing, damaged or not what it should be."""
