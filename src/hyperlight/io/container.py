"""Safetensors files with a checksum: a flipped bit anywhere in the file is found.

The metadata of such a file says ``"checksum": "sha256"``, and under ``"sha256"`` it has the
checksum of the whole file, taken with zeros in place of these 64 digits. Any reader of safetensors
can read the file. JSON files are sealed in the same way by :func:`seal`.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import hashlib
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import FormatError, HyperLightError
from .kinds import fits, read_json

if sys.platform == "win32":  # there a file that is being written cannot be removed anyway

    def _lock(file: IO[bytes]) -> None:
        """Do nothing."""
else:
    import fcntl

    def _lock(file: IO[bytes]) -> None:
        """Lock a file until it is closed; raise ``OSError`` if another process has locked it."""
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


__all__ = [
    "BLANK",
    "Contents",
    "check_seal",
    "feed",
    "file_to_write",
    "in_words",
    "read",
    "replaced",
    "seal",
    "write",
]

# The codes of https://huggingface.co/docs/safetensors for the dtypes that are stored as they are.
CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

BLANK = "0" * 64
"""What stands in place of the checksum while it is computed."""

_MARK = re.compile(rb'"sha256": ?"')
_BLOCK = 2**20
_MOST_HEADER = 10**8  # the limit of safetensors


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        tensors: on the CPU, by name.
        metadata: the other metadata.
        sealed: whether the file has a checksum, which was right. Files of earlier versions have
            none.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    sealed: bool


# --- checksums ------------------------------------------------------------------


def seal(content: bytes) -> bytes:
    """Put the checksum into a text that has ``"sha256": "000..."`` (see :data:`BLANK`).

    >>> sealed = seal(json.dumps({"sha256": BLANK, "step": 3}).encode())
    >>> check_seal(sealed), check_seal(sealed.replace(b"3", b"4")), check_seal(b'{"step": 3}')
    (True, False, None)
    """
    start = _place(content)
    digest = hashlib.sha256(content).hexdigest().encode()
    return content[:start] + digest + content[start + len(digest) :]


def check_seal(content: bytes) -> bool | None:
    """Whether the checksum in a text is right; None if it has none."""
    return _agrees(content, ())


def _agrees(head: bytes, rest: Iterable[bytes]) -> bool | None:
    """Whether the checksum in ``head`` is that of ``head`` and ``rest``; None if it has none."""
    start = _place(head)
    if not start:
        return None
    end = start + len(BLANK)
    digest = hashlib.sha256(head[:start] + BLANK.encode() + head[end:])
    for block in rest:
        digest.update(block)
    return head[start:end] == digest.hexdigest().encode()


def _place(head: bytes) -> int:
    """Where the checksum begins; 0 if there is none."""
    found = _MARK.search(head)
    return found.end() if found else 0


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(_BLOCK):
        yield block


# --- writing --------------------------------------------------------------------


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a sealed safetensors file whole or not at all, one tensor in memory at a time.

    The writer of safetensors needs NumPy, holds all tensors in memory and refuses shared ones.
    Dtypes without a code are stored as bytes.

    Raises:
        OSError: the file cannot be written; an earlier one is unchanged.
    """
    about = {"checksum": "sha256", "sha256": BLANK, **metadata}
    header: dict[str, object] = {"__metadata__": about}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.nbytes
        code = CODES.get(tensor.dtype, "U8")
        shape = list(tensor.shape) if tensor.dtype in CODES else [tensor.nbytes]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    text = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(text)
    with replaced(path) as file:
        file.write(text)
        for tensor in tensors.values():
            feed(tensor, file.write, digest.update)
        file.seek(_place(text))
        file.write(digest.hexdigest().encode())


def check_path(path: object) -> None:
    """Refuse what is no path, as where two arguments changed places."""
    if not isinstance(path, (str, os.PathLike)):
        raise FormatError(
            f"path was of type {type(path).__name__}; expected a path, as in "
            "hl.save(model, path), hl.load(path, primary) and hl.export_onnx(model, path, x)."
        )


def file_to_write(path: str | os.PathLike[str], example: str) -> Path:
    """The path of a file that is to be written, with links followed.

    Raises:
        FormatError: it is no path, a folder, or in a folder that does not exist.
    """
    check_path(path)
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise FormatError(f"{path} is a folder; expected a file, such as {path}/{example}.")
    if not path.parent.is_dir():
        raise FormatError(f"The folder {path.parent} does not exist. Make it first (Path.mkdir).")
    return path


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of ``path`` once it is complete and on the disk.

    What earlier processes left half-written of it when they were killed is removed: a writer holds
    a lock on its temporary file, which ends with its process.
    """
    _sweep(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                _lock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform != "win32":  # locked until it has its name
                os.replace(temporary, path)
        if sys.platform == "win32":  # where an open file keeps its name
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    for part in path.parent.glob(f".{glob.escape(path.name)}.????????.tmp"):
        with contextlib.suppress(OSError), part.open("rb") as file:
            status = os.fstat(file.fileno())
            if not status.st_size and time.time() - status.st_mtime < 60.0:
                continue  # its writer may not hold the lock yet
            _lock(file)
            part.unlink(missing_ok=True)


def feed(tensor: Tensor, *sinks: Callable[[memoryview], object]) -> None:
    """Pass the bytes of a tensor to every sink, in C order."""
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    if flat.nbytes:
        content = memoryview((ctypes.c_char * flat.nbytes).from_address(flat.data_ptr()))
        for sink in sinks:
            sink(content)


# --- reading --------------------------------------------------------------------

_SIZE = range(2**63)
_ENTRY = {"dtype": str, "shape": [_SIZE], "data_offsets": [_SIZE, _SIZE]}


def read(path: Path) -> Contents:
    """Read a safetensors file, sealed or from elsewhere.

    No more memory is taken than the file is long, and none before its checksum is compared.

    Raises:
        FileNotFoundError: there is no file.
        FormatError: it is damaged, or no safetensors file.
    """
    if path.is_dir():
        raise FormatError("this is a folder; expected a file, such as model.safetensors in it.")
    try:
        with path.open("rb") as file:
            agrees, metadata = _checked(file)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no file {path} (the current folder is {Path.cwd()}). Pass the path that "
            "was given when it was saved."
        ) from None
    except (OSError, ValueError) as error:
        raise FormatError(f"it cannot be read: {error}.") from error
    if agrees is False or (agrees is None and "checksum" in metadata):
        raise FormatError(
            "the file is damaged: its contents differ from its checksum (sha256). Copy it again "
            "from where it came from; what it holds now is not what was saved."
        )
    return Contents(_tensors(path), metadata, sealed=agrees is True)


def _checked(file: IO[bytes]) -> tuple[bool | None, dict[str, str]]:
    """Whether the checksum of a safetensors file is right, and the rest of its metadata."""
    size = os.fstat(file.fileno()).st_size
    length = file.read(8)
    start = file.read(1)
    if start != b"{":
        zipped = length.startswith(b"PK")
        raise FormatError(
            "this is not a safetensors file but a zip archive, as written by torch.save. If it "
            "holds a state dict, model.load_state_dict(torch.load(path, weights_only=True)) reads "
            "it, and hl.save(model, path) writes the model"
            if zipped
            else "this is not a safetensors file, as hl.save writes them"
        )
    count = int.from_bytes(length, "little")
    if count > min(size - 8, _MOST_HEADER):
        raise FormatError(f"{_CUT}.")
    text = start + file.read(count - 1)
    agrees = _agrees(length + text, _blocks(file))
    try:
        header = read_json(text.rstrip(b" "))
    except ValueError as error:
        raise FormatError(f"{_CUT} ({error}).") from error
    metadata = header.pop("__metadata__", {})
    odd = next((name for name, entry in header.items() if not fits(entry, _ENTRY)), None)
    if odd is not None or not fits(metadata, {str: str}):
        raise FormatError(f"{_CUT} (the header says {header.get(odd, metadata)!r:.80}).")
    ends = (entry["data_offsets"][1] for entry in header.values())
    if max(ends, default=0) != size - 8 - count:
        raise FormatError(f"{_CUT}.")
    metadata.pop("sha256", None)
    if agrees:
        metadata.pop("checksum", None)
    return agrees, metadata


_CUT = "the file is cut short or damaged: its header and size do not agree. Copy it again"


def _tensors(path: Path) -> dict[str, Tensor]:
    with in_words(_CUT), safe_open(path, framework="pt", device="cpu") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@contextlib.contextmanager
def in_words(what: str) -> Iterator[None]:
    """Turn every error within the block into a :class:`FormatError` that says ``what``.

    Parsers, PyTorch and safetensors raise nearly anything about values that nobody would write.
    """
    try:
        yield
    except HyperLightError:
        raise
    except Exception as error:
        raise FormatError(f"{what} ({type(error).__name__}: {error}).") from error
