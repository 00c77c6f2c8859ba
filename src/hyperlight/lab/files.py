"""Write files so that a reader never sees half of one."""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..io.container import BLANK, check_seal, replaced, seal
from ..io.kinds import read_json
from .errors import LabError
from .locks import LOCK

__all__ = [
    "claim_folder",
    "csv_text",
    "is_inside",
    "is_plain",
    "make_folder",
    "read_sealed",
    "say_unsealed",
    "sweep",
    "write_bytes",
    "write_csv",
    "write_sealed",
    "write_text",
]

# Temporary files: of hyperlight.io, and of earlier versions.
_TEMPORARY = re.compile(
    r"\.[\w-]+\.(safetensors|json|csv|svg|html|md)\.[a-z0-9_]{8}(\.tmp)?|\.tmp[A-Za-z0-9]{6}"
)


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
    with replaced(path) as file:
        file.write(content)


def write_sealed(path: Path, content: Mapping[str, Any], indent: int | None = None) -> None:
    """Write JSON with a checksum of the whole file, completely or not at all.

    Args:
        path: of the file.
        content: JSON values; NaN and infinities are allowed.
        indent: as in :func:`json.dumps`.
    """
    text = json.dumps({"sha256": BLANK, **content}, indent=indent)
    write_bytes(path, seal(f"{text}\n".encode()))


def read_sealed(path: Path) -> tuple[dict[str, Any], bool]:
    """Read a JSON object, and say whether it has a checksum.

    Raises:
        ValueError: it is damaged: no JSON object, or another than its checksum says.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    sealed = check_seal(content)
    if sealed is False:
        raise ValueError("its contents differ from its checksum")
    found = read_json(content, finite=False)
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, found {content[:20]!r}")
    if ("sha256" in found) != bool(sealed):
        raise ValueError("its checksum is damaged")
    found.pop("sha256", None)
    return found, bool(sealed)


def say_unsealed(folder: Path) -> None:
    """Warn, once for each folder, that its files have no checksums."""
    warnings.warn(
        f"Files in {folder} have no checksum, since an earlier version wrote them: damage to them "
        "cannot be seen.",
        stacklevel=1,  # the same line for all files, so that it is said once
    )


def sweep(folder: Path) -> None:
    """Remove temporary files of killed processes. No other process may write to the folder."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def is_plain(name: str, *endings: str) -> bool:
    """Whether a name from a file is that of a file beside it, with one of these endings.

    >>> is_plain("dice.png", ".png"), is_plain("../dice.png", ".png"), is_plain("dice", ".png")
    (True, False, False)
    """
    return name.endswith(endings) and re.fullmatch(r"[\w-][\w. -]*", name) is not None


def is_inside(path: Path) -> bool:
    """Whether a file is in the folder where its path says, and not elsewhere through a link."""
    return path.resolve().parent == path.parent.resolve()


def claim_folder(path: Path, overwrite: bool) -> None:
    """Create a folder for results.

    Raises:
        LabError: it cannot be created, or has files and ``overwrite`` is False.
    """
    make_folder(path)
    if not overwrite and any(item.name != LOCK for item in path.iterdir()):
        raise LabError(
            f"{path} already has files. Choose another --out, or pass --overwrite to replace "
            "the results in it."
        )


def make_folder(path: Path) -> None:
    """Create a folder, with those above it, unless it exists.

    Raises:
        LabError: it cannot be created.
    """
    if path.exists() and not path.is_dir():
        raise LabError(
            f"{path} is a file; expected a folder for the results. Choose another --out."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(
            f"The folder {path} cannot be created ({error.strerror}). Choose another --out."
        ) from error
