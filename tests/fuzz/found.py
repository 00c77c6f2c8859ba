"""Files that a reader once handled wrongly, by reader; each is read again by the tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["FOUND", "Found"]


@dataclass(frozen=True)
class Found:
    """A changed file.

    Attributes:
        file: that is replaced; the end of its path.
        content: the new bytes, made of the valid ones.
        damaged: whether a checksum, if the format has one, would show the change.
    """

    file: str
    content: Callable[[bytes], bytes]
    damaged: bool = True


FOUND: dict[str, dict[str, Found]] = {}
