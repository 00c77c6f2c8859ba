"""Write files so that a reader never sees half of one."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .errors import LabError

__all__ = ["claim_folder", "csv_text", "replace_file", "write_bytes", "write_csv", "write_text"]


def csv_text(heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as csv; floats keep all their digits."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(heading)
    writer.writerows(rows)
    return buffer.getvalue()


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8, completely or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_csv(path: Path, heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write rows as csv, completely or not at all."""
    write_text(path, csv_text(heading, rows))


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes, completely or not at all."""
    replace_file(path, lambda part: part.write_bytes(content))


def replace_file(path: Path, write: Callable[[Path], object], *, durable: bool = False) -> None:
    """Write a temporary file, then rename it to ``path``.

    Args:
        path: of the file.
        write: called with the path of the temporary file.
        durable: wait until the file is on the disk, so that a power failure leaves the old file
            or the new one.
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
    """Create a folder for results.

    Raises:
        LabError: it cannot be created, or has files and ``overwrite`` is False.
    """
    if path.exists() and not path.is_dir():
        raise LabError(
            f"{path} is a file; expected a folder for the results. Choose another --out."
        )
    if not overwrite and path.is_dir() and any(path.iterdir()):
        raise LabError(
            f"{path} already has files. Choose another --out, or pass --overwrite to replace "
            "the results in it."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(
            f"The folder {path} cannot be created ({error.strerror}). Choose another --out."
        ) from error
