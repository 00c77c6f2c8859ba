"""JSON from a file: read without surprises, and compared with a description of what it may be."""

from __future__ import annotations

import json
from typing import Any


def read_json(text: str | bytes, *, finite: bool = True) -> Any:
    """Parse JSON, strictly.

    Args:
        text: in UTF-8 if it is bytes.
        finite: refuse NaN and Infinity, which are not JSON but which Python writes.

    Raises:
        ValueError: it is not JSON, nested too deeply, names a key twice, or holds NaN or Infinity.

    >>> read_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: the key 'a' stands twice
    """
    try:
        constant = _refuse if finite else None
        return json.loads(text, parse_constant=constant, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number in JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name!r} stands twice")
        found[name] = value
    return found


def fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a kind.

    A kind is a type (``object`` for anything), a range of integers, a tuple of alternatives,
    ``[kind of all items]``, ``[kind of first, kind of second]``, ``{str: kind of all values}`` or
    ``{key: kind}``, where a missing key counts as None.

    >>> fits({"a": [1, 2]}, {"a": [int], "b": (str, type(None))})
    True
    >>> fits({"a": [1, True]}, {"a": [int]})
    False
    """
    if isinstance(kind, tuple):
        return any(fits(value, alternative) for alternative in kind)
    if isinstance(kind, range):
        return type(value) is int and value in kind
    if isinstance(kind, type):
        return kind is object or type(value) is kind
    if type(value) is not type(kind):
        return False
    if isinstance(kind, list):
        kinds = kind * len(value) if len(kind) == 1 else kind
        return len(value) == len(kinds) and all(map(fits, value, kinds))
    if str in kind:
        return all(fits(item, kind[str]) for item in value.values())
    return all(fits(value.get(key), inner) for key, inner in kind.items())
