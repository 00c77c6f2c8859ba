"""Read files no further than they say they go, and name the file that cannot be read."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from ..errors import DataError, LabError

__all__ = ["entries", "opened", "printable", "read_up_to", "reading"]

_PIECE = 2**20  # bytes read at once


@contextmanager
def reading(path: Path | str, what: str, advice: str) -> Iterator[None]:
    """Turn every error within the block into one that names the file.

    Args:
        path: the file.
        what: is read, for the message: ``"a NIfTI file"``.
        advice: what to do about it, a sentence.

    Raises:
        DataError: the block raised an exception that is not a :class:`LabError`.
    """
    try:
        yield
    except LabError:
        raise
    except Exception as error:  # parsers raise nearly anything on damaged files
        raise DataError(
            f"{path} cannot be read as {what} ({str(error) or type(error).__name__}): it is "
            f"missing, damaged or cut short, or another kind of file. {advice}"
        ) from error


def opened(path: Path, zipped: bool | None = None) -> IO[bytes]:
    """Open a file, decompressing it if it is ``zipped``: by default, if its name ends in ``.gz``.

    A damaged gzip file raises an error where it is read, at the latest at its end.
    """
    zipped = path.suffix == ".gz" if zipped is None else zipped
    return cast(IO[bytes], gzip.open(path, "rb")) if zipped else path.open("rb")


def read_up_to(file: IO[bytes], most: int) -> bytearray:
    """Read ``most`` bytes, or fewer if the file ends, taking memory only for what is there.

    >>> import io
    >>> read_up_to(io.BytesIO(b"short"), 2**60)
    bytearray(b'short')
    """
    content = bytearray()
    while len(content) < most and (piece := file.read(min(_PIECE, most - len(content)))):
        content += piece
    return content


def entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted by name.

    Raises:
        DataError: the folder cannot be read.
    """
    with reading(folder, "a folder", "Check its name and its permissions."):
        return sorted(folder.iterdir())


def printable(text: str) -> str:
    r"""Text with an escape for every byte of a file's name that is not UTF-8.

    >>> printable("caf\udce9")
    'caf\\udce9'
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
