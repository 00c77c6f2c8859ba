"""What can go wrong at the border of the library.

Every error says what was given, what was expected and what to do. All of them
are also the built-in exception that a Python programmer would expect, so that
``except ValueError`` keeps working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BindError",
    "ConfigurationError",
    "FormatError",
    "HyperLightError",
    "InputError",
    "MemoryLimitError",
    "MissingExtraError",
    "ObjectiveError",
    "TargetError",
]


class HyperLightError(Exception):
    """The base of every error that HyperLight raises on purpose."""


class ConfigurationError(HyperLightError, ValueError):
    """A hypernetwork was described in a way that cannot be built."""


class MemoryLimitError(ConfigurationError, MemoryError):
    """A hypernetwork was described whose parameters do not fit in the memory of the device."""


class InputError(HyperLightError, ValueError):
    """A value given for a hypernetwork input does not fit its space."""


class TargetError(HyperLightError, ValueError):
    """The selection of parameters to predict does not fit the primary."""


class BindError(HyperLightError, TypeError):
    """Predicted tensors cannot be put in place in this primary."""


class FormatError(HyperLightError, ValueError):
    """A model cannot be written to a file, or a file does not hold what is to be loaded."""


class ObjectiveError(HyperLightError, ValueError):
    """A loss or an objective gave what cannot be used."""


class MissingExtraError(HyperLightError, ImportError):
    """A package is needed that only an extra of HyperLight installs."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A hint that ends an error message, or nothing where nothing is near.

    >>> did_you_mean("scal", ["scale", "noise"])
    " Did you mean 'scale'?"
    >>> did_you_mean("zzz", ["scale", "noise"])
    ''
    """
    near = difflib.get_close_matches(given, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names in quotes, cut after ``most``.

    >>> listed(["a", "b"])
    "'a', 'b'"
    >>> listed("abc", most=2)
    "'a', 'b' and 1 more"
    """
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
