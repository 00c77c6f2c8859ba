"""Writing results so that a reader never sees half a file."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .errors import LabError

__all__ = ["claim_folder", "csv_text", "replace_file", "write_bytes", "write_text"]


def csv_text(heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as csv; floats come back to the bit."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(heading)
    writer.writerows(rows)
    return buffer.getvalue()


def write_text(path: Path, text: str) -> None:
    """Write ``path`` in UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``path`` whole or not at all."""
    replace_file(path, lambda part: part.write_bytes(content))


def replace_file(path: Path, write: Callable[[Path], object], *, durable: bool = False) -> None:
    """Have ``write`` make a file beside ``path``, which takes its place once it is whole.

    Args:
        path: of the file.
        write: called with the path of a file to fill.
        durable: wait until it is on the disk, so that a machine that goes down leaves the old
            file or the new one, too.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    try:
        write(Path(name))
        if durable:
            with open(name, "rb+") as file:
                os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def claim_folder(path: Path, overwrite: bool) -> None:
    """Make a folder for results, or refuse one that holds something already."""
    if path.exists() and not path.is_dir():
        raise LabError(
            f"{path} is a file; expected a folder for the results. Choose another --out."
        )
    if not overwrite and path.is_dir() and any(path.iterdir()):
        raise LabError(
            f"{path} holds files already. Choose another --out, or pass --overwrite to replace "
            "the results in it."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(
            f"The folder {path} cannot be made ({error.strerror}). Choose another --out."
        ) from error
