"""An entry of the registry: how a valid file is made, how it is read, and what must hold."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

__all__ = ["Change", "Reader", "StateChangedError", "digest", "untouched"]

Change = Callable[[random.Random, bytes, bytes], bytes]
"""Make other bytes of a valid file and of a second valid file of the same kind."""


@dataclass(frozen=True)
class Reader:
    """Something that reads files.

    Attributes:
        name: for the command line.
        make: writes valid files to a folder; variant 0 and 1 hold other values.
        read: reads them as a user would; returns what :func:`digest` accepts.
        files: those that are changed, relative to the folder; globs.
        changes: changes that know the format; they leave checksums right where there are some.
        rule: what must happen to a file that was damaged. ``"refused"``: never read, as it has a
            checksum over every byte. ``"checked"``: refused, or read with the right values, as the
            format has a checksum over the values. ``"read"``: read as it stands, if it can be.
        seal: gives a changed file a valid checksum, so that what comes after it is tested too.
        named: whether an error must name the file or its folder.
        damage: whether the file is also changed by what knows nothing of its format.
    """

    name: str
    make: Callable[[Path, int], None]
    read: Callable[[Path], Any]
    files: tuple[str, ...]
    changes: tuple[Change, ...] = ()
    rule: Literal["refused", "checked", "read"] = "read"
    seal: Callable[[bytes], bytes] | None = None
    named: bool = True
    damage: bool = True

    def paths(self, folder: Path) -> list[Path]:
        """The files that are changed."""
        return sorted(path for pattern in self.files for path in folder.glob(pattern))


class StateChangedError(Exception):
    """After an error something was not as before."""


@contextlib.contextmanager
def untouched(primary: nn.Module) -> Iterator[None]:
    """Check that a primary keeps its values if reading fails."""
    before = digest(primary.state_dict())
    try:
        yield
    except Exception as error:
        if digest(primary.state_dict()) != before:
            raise StateChangedError("the primary has other values after the error") from error
        raise


def digest(value: Any) -> str:
    """The sha256 of nested values, with dtypes and shapes."""
    total = hashlib.sha256()
    _add(value, total)
    return total.hexdigest()


def _add(value: Any, total: Any) -> None:
    if isinstance(value, Tensor):
        value = value.detach().contiguous().numpy()
    if isinstance(value, np.ndarray):
        total.update(f"array {value.dtype} {value.shape}".encode())
        total.update(np.ascontiguousarray(value).tobytes())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        total.update(type(value).__name__.encode())
        for field in dataclasses.fields(value):
            _add(getattr(value, field.name), total)
    elif isinstance(value, Mapping):
        total.update(f"mapping {len(value)}".encode())
        for key, item in value.items():
            _add(key, total)
            _add(item, total)
    elif isinstance(value, list | tuple):
        total.update(f"sequence {len(value)}".encode())
        for item in value:
            _add(item, total)
    elif value is None or isinstance(value, bool | int | float | str | bytes):
        total.update(f"{type(value).__name__} {value!r};".encode())
    else:
        raise TypeError(f"no digest for {type(value).__name__}")
