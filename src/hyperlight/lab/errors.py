"""Errors of the lab, worded for someone at a terminal, and the check that settings share."""

from __future__ import annotations

from typing import Any

from ..errors import HyperLightError

__all__ = ["DataError", "LabError", "at_least"]


class LabError(HyperLightError):
    """A run cannot start or continue as asked."""


class DataError(LabError):
    """A data set is missing, damaged or not what it should be."""


def at_least(settings: Any, **bounds: int) -> None:
    """Refuse settings below their bounds; a setting that is None passes.

    Args:
        settings: an object whose attributes are named like the command's options.
        bounds: the smallest valid value of each attribute.

    >>> from hyperlight.lab.train import Training
    >>> at_least(Training(batch_size=0), batch_size=1)
    Traceback (most recent call last):
    hyperlight.lab.errors.LabError: --batch-size was 0; expected 1 or more.
    """
    for name, bound in bounds.items():
        value = getattr(settings, name)
        if value is not None and not value >= bound:
            option = name.replace("_", "-")
            raise LabError(f"--{option} was {value}; expected {bound} or more.")
