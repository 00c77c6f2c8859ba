"""What a network is besides the shapes of its tensors: classes, and settings such as padding."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import listed

Structure = dict[str, list[Any]]

_LONGEST = 200

# Modes of training, which do not say what a network computes; the second is of transformers.
_MODES = ("training", "gradient_checkpointing")


def structure_of(module: nn.Module) -> Structure:
    """The class and the plain settings of every module, by name, as JSON values.

    Settings are the public attributes that are numbers, flags, texts, tuples of these, or
    functions and classes, which are given by name. Code inside of methods is not seen.

    >>> structure_of(nn.Sequential(nn.Softmax(dim=1)))
    {'': ['Sequential', {}], '0': ['Softmax', {'dim': 1}]}
    """
    return {name: [type(part).__name__, _settings(part)] for name, part in module.named_modules()}


def modes_of(module: nn.Module) -> dict[str, bool]:
    """Whether the module is in training mode, and every one inside whose parent is not alike.

    >>> modes_of(nn.Sequential(nn.Linear(2, 2), nn.Dropout().eval()))
    {'': True, '1': False}
    """
    modes: dict[str, bool] = {}
    for name, part in module.named_modules():
        if _mode(name.rpartition(".")[0], modes) is not part.training:
            modes[name] = part.training
    return modes


def set_modes(module: nn.Module, modes: Mapping[str, bool]) -> None:
    """Restore what :func:`modes_of` found; nothing is called, as ``train`` may be overridden."""
    for name, part in module.named_modules():
        mode = _mode(name, modes)
        part.training = part.training if mode is None else mode


def _mode(name: str, modes: Mapping[str, bool]) -> bool | None:
    """The mode of a module, or of the nearest one around it."""
    while name and name not in modes:
        name = name.rpartition(".")[0]
    return modes.get(name)


def _settings(module: nn.Module) -> dict[str, Any]:
    found = {}
    for name, value in vars(module).items():
        if not name.startswith("_") and name not in _MODES:
            plain = _plain(value)
            if plain is not None:
                found[name] = plain
    return found


def _plain(value: Any) -> Any:
    """A setting as a JSON value, or None if it is of no known kind."""
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type)):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, str):
        return value if len(value) <= _LONGEST else None
    if type(value) is float:
        return value if value - value == 0.0 else repr(value)  # JSON has no inf and no NaN
    if type(value) in (bool, int):
        return value
    if isinstance(value, tuple):
        items = [_plain(item) for item in value]
        return None if None in items or len(items) > 16 else items
    return None


def structural_differences(
    found: Mapping[str, Any], own: Structure, what: str = "primary"
) -> list[str]:
    """Say how the structure in a file differs from that of a given module, a phrase each."""
    words = []
    lacks = {
        "file": [n for n in own if n not in found],
        what: [n for n in found if n not in own],
    }
    for where, names in lacks.items():
        if names:
            words.append(f"the {where} has no module {listed(names, 4)}")
    for name, (kind, settings) in found.items():
        if name not in own:
            continue
        here, given = own[name]
        label = repr(name) if name else f"the {what} itself"
        if kind != here:
            words.append(f"{label} is a {kind} in the file, a {here} here")
            continue
        for key in settings:
            if key in given and given[key] != settings[key]:
                words.append(
                    f"{label} has {key}={settings[key]!r} in the file, {given[key]!r} here"
                )
    return words
