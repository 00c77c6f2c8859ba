"""The errors that HyperLight raises.

Every message says what was given, what was expected and what to do. Every class is also the
built-in exception that a Python programmer expects, so that ``except ValueError`` works.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any


class HyperLightError(Exception):
    """The base of every error that HyperLight raises on purpose."""


class ConfigurationError(HyperLightError, ValueError):
    """A setting is invalid, or a hypernetwork cannot be built from its settings."""


class MemoryLimitError(ConfigurationError, MemoryError):
    """The parameters of a hypernetwork do not fit in the memory of the device."""


class InputError(HyperLightError, ValueError):
    """A value given for a hypernetwork input does not fit its space."""


class TargetError(HyperLightError, ValueError):
    """The selection of parameters to predict does not fit the primary."""


class BindError(HyperLightError, TypeError):
    """Predicted tensors cannot take the place of parameters in this primary."""


class FormatError(HyperLightError, ValueError):
    """A model cannot be saved or exported, or a file does not hold what was to be loaded."""


class ObjectiveError(HyperLightError, ValueError):
    """A loss or an objective returned a value that cannot be used."""


class TransferError(HyperLightError, OSError):
    """A model cannot be downloaded from the Hugging Face Hub, or uploaded to it."""


class MissingExtraError(HyperLightError, ImportError):
    """A package is missing that only some calls need."""


def sharded(what: str) -> ConfigurationError:
    """The error for a part of a model whose parameters are spread over processes."""
    return ConfigurationError(
        f"{what} sharded over processes (DTensor), and is read as a whole here. Shard the model at "
        "its root alone, once it is hypernetized: fully_shard(model). It is whole while model(...) "
        "runs; for model.bind, predict and sweep gather it first: model.unshard()."
    )


def check_integer(call: str, value: object, least: int = 1) -> None:
    """Refuse a value that is not an integer of at least ``least``; ``call`` shows where it stood.

    >>> check_integer("LowRank(rank={})", 0)
    Traceback (most recent call last):
    hyperlight.errors.ConfigurationError: LowRank(rank=0): expected an integer, 1 or more.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        given = call.format(repr(value))
        raise ConfigurationError(f"{given}: expected an integer, {least} or more.")


def check_rate(lr: Any, example: float) -> None:
    """Refuse a learning rate that is no positive number.

    >>> check_rate("1e-3", 0.05)
    Traceback (most recent call last):
    hyperlight.errors.ConfigurationError: lr was '1e-3'; expected a positive rate, such as 0.05.
    """
    try:
        good = 0.0 < lr < math.inf
    except TypeError:
        good = False
    if not good:
        raise ConfigurationError(f"lr was {lr!r}; expected a positive rate, such as {example}.")


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Suggest the nearest known name at the end of a message; ``""`` if none is near.

    >>> did_you_mean("scal", ["scale", "noise"])
    " Did you mean 'scale'?"
    >>> did_you_mean("Q", ["q"])
    " Did you mean 'q'?"
    >>> did_you_mean("zzz", ["scale", "noise"])
    ''
    """
    names = {name: name for name in known}
    folded = {name.casefold(): name for name in names}
    for wanted, choices in ((given, names), (given.casefold(), folded)):
        if near := difflib.get_close_matches(wanted, choices, n=1):
            return f" Did you mean {choices[near[0]]!r}?"
    return ""


def listed(names: Iterable[str], most: int = 8) -> str:
    """List names in quotes, at most ``most`` of them.

    >>> listed(["a", "b"])
    "'a', 'b'"
    >>> listed("abc", most=2)
    "'a', 'b' and 1 more"
    """
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
