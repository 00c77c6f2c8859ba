"""Read matrices of numbers from MATLAB 5 files, of whatever contents, safely.

The format is in "MAT-File Format" of MathWorks, chapter 1: a header of 128 bytes, then elements of
a tag (type and number of bytes) and data, each padded to 8 bytes. A matrix is an element that
holds others: flags with its class, its dimensions, its name and its values by column.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError
from .border import read_up_to, reading

__all__ = ["read_matrices"]

_MOST_FILE = 2**20  # bytes; those of Flowers-102 have some kB
_MOST_ELEMENT = 2**24  # bytes of a compressed element, decompressed

_INT32, _UINT32, _MATRIX, _COMPRESSED = 5, 6, 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}
_NUMBERS |= {12: "i8", 13: "u8"}
_CLASSES = {1: "a cell array", 2: "a structure", 3: "an object", 4: "text", 5: "a sparse matrix"}
_NUMERIC = range(6, 16)  # double, single, and the integers
_COMPLEX = 0x0800


def read_matrices(path: Path, names: tuple[str, ...], advice: str) -> dict[str, np.ndarray]:
    """Read real matrices from a MATLAB 5 file, as MATLAB 5 to 7 write them.

    Args:
        path: the file, compressed or not, of either byte order, and at most 1 MiB.
        names: of the matrices; the rest of the file is not looked at.
        advice: what to do if it cannot be read, a sentence.

    Returns:
        Matrices by name, of the types that they are stored in. A matrix that is not there is left
        out.

    Raises:
        DataError: the file is missing, damaged or of another format, or a matrix is complex or
            does not hold numbers.
    """
    with reading(path, "a .mat file", advice):
        with path.open("rb") as file:
            content = bytes(read_up_to(file, _MOST_FILE + 1))
        if len(content) > _MOST_FILE:
            raise ValueError(f"it has more than {_MOST_FILE:,} bytes")
        order = _byte_order(content)
        found: dict[str, np.ndarray] = {}
        for kind, data in _elements(content[128:], order):
            if kind == _COMPRESSED:
                kind, data = _inflated(data, order)
            if kind != _MATRIX:
                raise ValueError(f"it holds an element of type {kind}, expected matrices")
            parts = _elements(data, order)
            flags, name, shape = _described(parts, order)
            if name not in names:
                continue
            if name in found:
                raise ValueError(f"it holds {name!r} twice")
            if (flags & 0xFF) not in _NUMERIC or flags & _COMPLEX:
                held = "complex numbers" if flags & _COMPLEX else _CLASSES.get(flags & 0xFF, "code")
                raise DataError(
                    f"{path} holds {held} under {name!r}; expected a matrix of real numbers. "
                    f"{advice}"
                )
            found[name] = _values(next(parts), shape, order)
    return found


def _byte_order(content: bytes) -> str:
    """``"<"`` or ``">"``, from a header that is checked."""
    if content[:4] and 0 in content[:4]:
        raise ValueError("it is of MATLAB 4 or not a .mat file; save it with version 7 (-v7)")
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:
        raise ValueError("it does not start with the header of a MATLAB 5 file")
    version = content[125] if order == "<" else content[124]
    if version != 1:
        raise ValueError(
            f"it is of version {version}, as MATLAB 7.3 writes (HDF5); save it with version 7 (-v7)"
        )
    return order


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """The types and the data of a row of elements."""
    at = 0
    while at < len(data):
        if len(data) - at < 8:
            raise ValueError(f"it ends within the tag of an element, after {len(data) - at} bytes")
        kind, size = (int(v) for v in np.frombuffer(data, f"{order}u4", 2, at))
        if kind >> 16:  # a small element: type, size and data in 8 bytes
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
            if size > 4:
                raise ValueError(f"a small element has {size} bytes, expected at most 4")
            at += 8
        else:
            start = at + 8
            # All but compressed elements are padded.
            at = start + (size if kind == _COMPRESSED else -(-size // 8) * 8)
        if start + size > len(data):
            raise ValueError(f"an element has {size:,} bytes, but {len(data) - start:,} are left")
        yield kind, data[start : start + size]


def _inflated(data: bytes, order: str) -> tuple[int, bytes]:
    """The one element within a compressed element, decompressed no further than its tag says."""
    stream = zlib.decompressobj()
    tag = stream.decompress(data, 8)
    kind, size = (int(v) for v in np.frombuffer(tag, f"{order}u4", 2))
    if size > _MOST_ELEMENT:
        raise ValueError(f"an element has {size:,} bytes, expected at most {_MOST_ELEMENT:,}")
    inner = stream.decompress(stream.unconsumed_tail, size + 1)
    if len(inner) != size or not stream.eof:  # at the end its checksum has been compared
        raise ValueError(f"a compressed element does not hold the {size:,} bytes that its tag says")
    return kind, inner


def _described(parts: Iterator[tuple[int, bytes]], order: str) -> tuple[int, str, tuple[int, ...]]:
    """The flags, the name and the dimensions of a matrix."""
    (flags_kind, flags), (shape_kind, shape), (_, name) = (next(parts, (0, b"")) for _ in range(3))
    if flags_kind != _UINT32 or len(flags) != 8 or shape_kind != _INT32:
        raise ValueError("a matrix does not start with its class and its dimensions")
    return (
        int(np.frombuffer(flags, f"{order}u4")[0]),
        name.decode("latin-1"),
        tuple(np.frombuffer(shape, f"{order}i4").tolist()),
    )


def _values(part: tuple[int, bytes], shape: tuple[int, ...], order: str) -> np.ndarray:
    kind, data = part
    if kind not in _NUMBERS:
        raise ValueError(f"a matrix has values of type {kind}, expected numbers")
    values = np.frombuffer(data, np.dtype(order + _NUMBERS[kind]))
    if len(shape) < 2 or min(shape) < 0 or math.prod(shape) != len(values):
        raise ValueError(f"a matrix of {shape} has {len(values):,} values")
    return values.reshape(shape, order="F")
