"""Files that a reader once handled wrongly, by reader; the tests read each of them again."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz.formats import (
    join_safetensors,
    set_headers,
    split_safetensors,
    zeros,
    zip_of,
)

__all__ = ["FOUND", "Found"]

Content = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Found:
    """A changed file.

    Attributes:
        content: the new bytes, made of the valid ones.
        file: that is replaced; the end of its path, a glob.
        damaged: whether a checksum, if the format has one, would show the change. If not, the
            changed file gets a valid one.
    """

    content: Content
    file: str = "*"
    damaged: bool = False


def flip(at: int, file: str = "*") -> Found:
    """Flip a bit."""

    def change(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[at % len(content)] ^= 0x40
        return bytes(changed)

    return Found(change, file, damaged=True)


def model(*path: Any, to: str) -> Found:
    """Replace what a model file says about its parts."""
    return Found(about("hyperlight", *path, to=to))


def edit(*path: Any, to: str | None) -> Content:
    """Replace a value of JSON by a text; without a text remove it."""

    def change(content: bytes) -> bytes:
        value = json.loads(content)
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        holder.pop(path[-1], None)
        if to is None:
            return json.dumps(value).encode()
        holder[path[-1]] = "@"
        return json.dumps(value).replace('"@"', to).encode()

    return change


def about(key: str, *path: Any, to: str | None) -> Content:
    """The same within the metadata of a safetensors file."""

    def change(content: bytes) -> bytes:
        header, data = split_safetensors(content)
        entries = json.loads(header)
        inner = entries["__metadata__"]
        inner[key] = edit(*path, to=to)(inner[key].encode()).decode()
        return join_safetensors(json.dumps(entries).encode(), data)

    return change


def tensor(name: str) -> Content:
    """Set all bytes of a tensor to 255."""

    def change(content: bytes) -> bytes:
        header, data = split_safetensors(content)
        start, end = json.loads(header)[name]["data_offsets"]
        return join_safetensors(header, data[:start] + b"\xff" * (end - start) + data[end:])

    return change


def file(name: str) -> Content:
    """A file in ``found_files``, as the fuzzer made it."""
    return lambda _: (Path(__file__).parent / "found_files" / name).read_bytes()


def member(name: str, change: Content, method: int = zipfile.ZIP_DEFLATED) -> Content:
    """Change a file in a zip archive."""

    def changed(content: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = {entry: archive.read(entry) for entry in archive.namelist()}
        entries[name] = change(entries[name])
        return zip_of(list(entries.items()), method)

    return changed


def array(text: str) -> Content:
    """Replace the header of an npy file."""
    return lambda content: b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode()


def header(at: int, value: bytes) -> Content:
    return lambda content: set_headers(content, at, value)


def floats(at: int, *values: float) -> Content:
    new = struct.pack(f"<{len(values)}f", *values)
    return lambda content: content[:at] + new + content[at + len(new) :]


DEEP = "[" * 100_000 + "]" * 100_000
MANY = "{" + "".join(f'"{i}": 0, ' for i in range(50_000)) + '"49999": 0}'
HUGE = "{'descr': '<f8', 'fortran_order': False, 'shape': (12500000000,)}"

MODEL = {
    "a bit of the values": flip(-1),
    "a bit of the header": flip(400),
    "a dtype of integers": model("dtype", to='"int64"'),
    "a quantized dtype": model("dtype", to='"quint8"'),
    "nested deeply": model("inputs", to=DEEP),
    "a key twice among many": model("inputs", to=MANY),
    "many categories": model("inputs", "kind", "config", "n", to="40000000"),
    "a mean that is false": model("inputs", "noise", "config", "loc", to="false"),
    "a wide layer": model("hidden", to="[4611686018427387904]"),
    "many layers": model("hidden", to=str([1] * 20_000)),
    "a slope that is a word": model("activation", "config", "negative_slope", to='"x"'),
}
RECORD = {
    "a digit": Found(lambda c: c.replace(b"0.5", b"0.6", 1), damaged=True),
    "white space": Found(lambda c: c.replace(b", ", b",\t", 1), damaged=True),
    "no points": Found(edit("points", to=None)),
    "no metric": Found(edit("metric", to=None)),
    "a point that is a number": Found(edit("points", to="[3]")),
    "a profile of words": Found(edit("initial", to='{"gamma": ["x"]}')),
    "nested deeply": Found(edit("points", to=DEEP)),
    "a key twice among many": Found(edit("points", to=MANY)),
    "a loss that is cut short": Found(edit("loss", to="[0.5]")),
    "a picture elsewhere": Found(edit("outcome", "pictures", to='[["x", "/etc/hostname"]]')),
}
ZIP = {
    "encrypted": Found(header(6, b"\1\0")),
    "encrypted strongly": Found(header(6, b"\x41\0")),
    "an unknown method": Found(header(8, b"\x63\0")),
}
FOUND: dict[str, dict[str, Found]] = {
    "load": MODEL,
    "load-hypernet": MODEL,
    "hub": MODEL,
    "from-hyperlight": {
        "a number": Found(edit("backbone.output.weight", to="3")),
        "no columns": Found(edit("backbone.output.weight", "size", to="[9, 0]")),
        "another bias": Found(edit("backbone.output.bias", "size", to="[8]")),
    },
    "checkpoint": {
        "a bit of the values": flip(-1, "mip/*"),
        "no points": Found(about("record", "points", to=None), "mip/*"),
        "nested deeply": Found(about("record", "points", to=DEEP), "mip/*"),
        "no state of a generator": Found(tensor("draws.batches.generator"), "mip/*"),
        "the order of other data": Found(tensor("draws.batches.order"), "mip/*"),
        "no parameters": Found(about("optimizer", "param_groups", to="[]"), "mip/*"),
        "an optimizer of a word": Found(about("optimizer", "param_groups", to='"x"'), "mip/*"),
    },
    "record": RECORD,
    "cache": RECORD,
    "run-model": {"a bit of the values": flip(-1)},
    "session": {"nested deeply": Found(edit("identity", to=DEEP))},
    "page": {
        "no caption": Found(edit("caption", to=None), "study.json"),
        "no provenance": Found(edit("provenance", to="{}"), "study.json"),
        "seconds that are a word": Found(edit("training_seconds", to='"x"'), "study.json"),
        "makers that are numbers": Found(edit("made_by", to="[3]"), "study.json"),
        "nested deeply": Found(edit("caption", to=DEEP), "study.json"),
        "half a character": Found(edit("caption", to='"\\ud800"'), "study.json"),
    },
    "idx-gz": {
        "a bomb": Found(lambda _: zeros(1200)),
        "a bomb at the end": Found(lambda content: content + zeros(1200)),
    },
    "npz": {
        **ZIP,
        "no array": Found(member("image.npy", lambda _: b"x")),
        "100 GB": Found(member("image.npy", array(HUGE))),
        "an open bracket": Found(member("image.npy", array("(" * 5000))),
        "an open quote": Found(member("image.npy", array("'''"))),
        "a bomb": Found(member("image.npy", lambda _: bytes(300 * 2**20), zipfile.ZIP_BZIP2)),
    },
    "nifti": {
        "axes of zeros": Found(floats(280, *(0.0,) * 12), "scan0.nii"),
    },
    "matlab": {
        "a crash": Found(file("matlab-crash.mat"), "setid.mat"),
        "an HDF5 file": Found(lambda c: c[:124] + b"\0\2" + c[126:]),
    },
    "zip": ZIP,
    "tar-gz": {f"a bit at {at}": flip(at) for at in (300, 600, 900, 1200)},
    "decoded": {
        "a bit": flip(-1),
        "cut short": Found(lambda content: content[:-4], damaged=True),
        "pickled objects": Found(array(HUGE.replace("<f8", "|O"))),
        "100 GB": Found(array(HUGE)),
    },
}
