"""Changes that know a format, and so come further than damage does."""

from __future__ import annotations

import bz2
import copy
import functools
import gzip
import io
import json
import lzma
import random
import re
import struct
import tarfile
import zipfile
import zlib
from typing import Any

from hyperlight.io import container
from tests.fuzz.mutate import any_damage
from tests.fuzz.reader import Change

__all__ = [
    "IMAGES", "JSON", "MATLAB", "NIFTI", "NPZ", "SAFETENSORS", "SEALED", "TAR", "ZIP", "gzipped",
    "seal", "values",
]  # fmt: skip

HUGE = (2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64, 10**30)
NAMES = ("", ".", "..", "../x", "../../../x", "/tmp/hyperlight-x", "a\0b", "C:\\x", "é" * 300, "x/")
WORDS = ("x", "0", "float64", "int64", "quint8", "float8_e4m3fn", "complex64", "<script>", "\ud800")
PLAIN: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 40_000_000, 0.5, -0.0, 1e38, 1e308, *HUGE),
    *(*WORDS, *NAMES, "/etc/hostname", "x" * 100_000, [], {}, [[]], [0], {"x": {}}, [None] * 1000),
)
LITERALS = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5000, "0" * 9 + "1", "tru", "")

_SEAL = re.compile(rb'("sha256": ?")[0-9a-f]{64}')


def seal(content: bytes) -> bytes:
    """Give a changed file a valid checksum, unless the change removed it."""
    blank, count = _SEAL.subn(rb"\g<1>" + container.BLANK.encode(), content, count=1)
    return container.seal(blank) if count else content


SEALED: dict[str, Any] = {"rule": "refused", "seal": seal}


# --- JSON ----------------------------------------------------------------------


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """Every container with a key of it."""
    found: list[tuple[Any, Any]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        found.append((value, key))
        if isinstance(inner, dict | list):
            found += _nodes(inner)
    return found


KINDS = (*("value",) * 3, "near", "near", "remove", "rename", "swap", "copy")


def _edit(rng: random.Random, value: Any) -> Any:
    """Change one place of a JSON value."""
    nodes = _nodes(value) if isinstance(value, dict | list) else []
    new = copy.deepcopy(rng.choice(PLAIN))
    if not nodes:
        return new
    holder, key = rng.choice(nodes)
    other, there = rng.choice(nodes)
    old, kind = holder[key], rng.choice(KINDS)
    if kind == "near" and isinstance(old, int | float):
        holder[key] = rng.choice((old + 1, old - 1, -old, old * 1e6))
    elif kind == "near" and isinstance(old, list):
        holder[key] = rng.choice((old * 2, old[:-1], old[::-1]))
    elif kind == "remove":
        del holder[key]
    elif kind == "rename" and isinstance(holder, dict):
        holder[rng.choice((*NAMES, "x", f"{key}x"))] = holder.pop(key)
    elif kind == "swap":
        holder[key], other[there] = copy.deepcopy((other[there], old))
    elif kind == "copy":
        holder[key] = copy.deepcopy(other[there])
    else:
        holder[key] = new
    return value


def values(rng: random.Random, a: bytes, b: bytes) -> bytes:
    """Change one to three places of JSON, which stays JSON."""
    value = json.loads(a)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = _edit(rng, value)
    return json.dumps(value).encode()


def literal(rng: random.Random, a: bytes, b: bytes) -> bytes:
    """Put text into JSON that no value is written as: NaN, digits without end, deep nesting."""
    value = json.loads(a)
    holder, key = rng.choice(_nodes(value) or [([0], 0)])
    if rng.random() < 0.2 and isinstance(holder, dict):  # the same key twice, or many keys
        holder |= {"@": rng.choice(PLAIN)} | dict.fromkeys(range(rng.choice((0, 0, 50_000))), 0)
        return json.dumps(value).replace('"@"', json.dumps(rng.choice((key, 49_999)))).encode()
    holder[key] = "@"
    depth = rng.choice((500, 900, 1100, 5000, 100_000, 1_000_000))
    deep = rng.choice(("[" * depth + "]" * depth, '{"a":' * depth + "0" + "}" * depth))
    text = deep if rng.random() < 0.3 else rng.choice(LITERALS)
    return json.dumps(value).replace('"@"', text).encode()


JSON = (values, values, literal)


# --- safetensors ---------------------------------------------------------------


def split_safetensors(content: bytes) -> tuple[bytes, bytes]:
    """The header, which is JSON, and the values."""
    size = int.from_bytes(content[:8], "little")
    return content[8 : 8 + size], content[8 + size :]


def join_safetensors(header: bytes, data: bytes) -> bytes:
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data


def header(rng: random.Random, a: bytes, b: bytes) -> bytes:
    """Change the entries of the tensors."""
    text, data = split_safetensors(a)
    about = json.loads(text)
    names = [name for name in about if name != "__metadata__"]
    one, two = about[rng.choice(names)], about[rng.choice(names)]
    kind = rng.choice(("JSON", "dtype", "shape", "offsets", "extra", "rename", "remove"))
    if kind == "JSON":
        return join_safetensors(rng.choice(JSON)(rng, text, b""), data)
    if kind == "dtype":
        one["dtype"] = rng.choice(("F64", "F16", "BF16", "I32", "F8_E4M3", "BOOL", "C64", "x"))
    elif kind == "shape":
        shape = one["shape"]
        one["shape"] = rng.choice(([], [0], shape[::-1], [1, *shape], [*HUGE], [2**62]))
    elif kind == "offsets":
        one["data_offsets"], two["data_offsets"] = two["data_offsets"], one["data_offsets"]
    elif kind == "extra":
        end = len(data)
        name = rng.choice((*NAMES, "hypernet.x", "primary.x", "model.x", "draws.x", "optimizer.x"))
        about[name] = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
    elif kind == "rename":
        old = rng.choice(names)
        about[rng.choice((*NAMES, f"{old}x", "optimizer.0.x", "optimizer.x"))] = about.pop(old)
    else:
        del about[rng.choice(names)]
    return join_safetensors(json.dumps(about).encode(), data)


def metadata(rng: random.Random, a: bytes, b: bytes) -> bytes:
    """Change the JSON inside of the metadata."""
    text, data = split_safetensors(a)
    about = json.loads(text)
    inner = about.get("__metadata__", {})
    keys = [key for key in inner if str(inner[key]).startswith("{")]
    if not keys:
        return header(rng, a, b)
    key, change = rng.choice(keys), rng.choice((values, values, values, literal))
    inner[key] = change(rng, inner[key].encode(), b"").decode()
    return join_safetensors(json.dumps(about).encode(), data)


def numbers(rng: random.Random, a: bytes, b: bytes) -> bytes:
    """Change the values of a tensor, or the bytes of a random generator."""
    text, data = split_safetensors(a)
    return join_safetensors(text, any_damage(rng, data, data)[: len(data)].ljust(len(data), b"\0"))


SAFETENSORS = (header, metadata, metadata, numbers)


# --- gzip, zip and tar -----------------------------------------------------------


@functools.cache
def zeros(mebibytes: int) -> bytes:
    """Zeros as gzip, about a thousandth of their size."""
    block = bytes(2**20)
    pack = zlib.compressobj(9, wbits=-15)
    one = pack.compress(block) + pack.flush(zlib.Z_FULL_FLUSH)  # may be repeated
    end, check = zlib.compressobj(9, wbits=-15).flush(), 0
    for _ in range(mebibytes):
        check = zlib.crc32(block, check)
    start = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    return start + one * mebibytes + end + struct.pack("<II", check, mebibytes << 20)


def gzipped(*changes: Change) -> tuple[Change, ...]:
    """Changes of what a gzip file holds, with the right checksum, and bombs."""

    def inside(rng: random.Random, a: bytes, b: bytes) -> bytes:
        if rng.random() < 0.03:
            return rng.choice((a, b"")) + zeros(1200)
        change = rng.choice((*changes, any_damage))
        return gzip.compress(change(rng, gzip.decompress(a), gzip.decompress(b)), mtime=0)

    return (inside,)


def npy(rng: random.Random, a: bytes, b: bytes) -> bytes:
    """Change the header of an array."""
    size = int.from_bytes(a[8:10], "little")
    text, rest = a[10 : 10 + size].decode(), a[10 + size :]
    types = ("|O", "<f8", ">i2", "<U4", "|V8", "<c16", "<f2", "<i8", "<M8[s]", "x", "", "<i4,<i4")
    count = rng.choice((*HUGE, 0, -1, 10**11))
    shape = rng.choice((f"{count},", f"{count}, 2", "", "'x',", "1," * 99))
    text = rng.choice((
        re.sub(r"'descr': '[^']*'", f"'descr': '{rng.choice(types)}'", text),
        re.sub(r"'shape': \([^)]*\)", f"'shape': ({shape})", text),
        text.replace("False", "True"), "(" * 5000, "{" + "'a':" * 300, "", "'" * 3,
    ))  # fmt: skip
    return a[:8] + len(text).to_bytes(2, "little") + text.encode() + rest


def zip_of(entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return file.getvalue()


def zipped(*changes: Change) -> tuple[Change, ...]:
    """Changes of what a zip archive holds, with the right checksums, and of its entries."""

    def inside(rng: random.Random, a: bytes, b: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(a)) as archive:
            entries = [(name, archive.read(name)) for name in archive.namelist()]
        at = rng.randrange(len(entries))
        name, content = entries[at]
        kind = rng.choice(("content", "content", "name", "remove", "twice", "headers"))
        if kind == "content":
            entries[at] = name, rng.choice((*changes, any_damage))(rng, content, content)
        elif kind == "name":
            entries[at] = rng.choice(NAMES).replace("\0", "") + rng.choice(("x", name)), content
        elif kind == "remove":
            del entries[at]
        elif kind == "twice":
            entries.append((name, entries[rng.randrange(len(entries))][1]))
        method = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, 14))
        made = zip_of(entries, method)
        return _headers(rng, made) if kind == "headers" else made

    return (inside,)


def _headers(rng: random.Random, a: bytes) -> bytes:
    """Change one field in all headers: flags, method, checksum or a size."""
    sizes = (0, 1, 2**31, 2**32 - 1)
    fields = (6, 2, (1, 0x800, 0x41)), (8, 2, (1, 9, 95, 99)), (14, 4, (0,))
    at, size, choice = rng.choice((*fields, (18, 4, sizes), (22, 4, sizes)))
    return set_headers(a, at, rng.choice(choice).to_bytes(size, "little"))


def set_headers(content: bytes, at: int, value: bytes) -> bytes:
    """Write a field of all entries of a zip archive, by its place in their local headers."""
    changed = bytearray(content)
    for mark, start in ((b"PK\3\4", at), (b"PK\1\2", at + 2)):
        for match in re.finditer(re.escape(mark), content):
            changed[match.start() + start : match.start() + start + len(value)] = value
    return bytes(changed)


def tar(rng: random.Random, a: bytes, b: bytes) -> bytes:
    """Add a hostile member; compress the archive in any way, or not."""
    file = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(a)) as old:
        members = [(m, f.read() if (f := old.extractfile(m)) else b"") for m in old]
    made = tarfile.TarInfo(rng.choice((*NAMES, members[-1][0].name, "jpg", "jpg/x", "jpg/x/y/z")))
    made.type = rng.choice((*(tarfile.REGTYPE,) * 3, *(bytes([c]) for c in b"12345670SxgLKZ\0")))
    made.linkname = rng.choice(("", "/etc/passwd", "../../x", "jpg/a"))
    made.mode, made.uid = rng.choice((0o644, 0, 0o4755, 0o777)), rng.choice((0, 1000, 2**20))
    body = rng.randbytes(rng.choice((0, 10, 1000))) if made.isreg() else b""
    made.size = len(body)
    members.insert(rng.randrange(len(members) + 1), (made, body))
    style = rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=file, mode="w", format=style) as new:
        for member, content in members:
            new.addfile(member, io.BytesIO(content))
    made_of = file.getvalue() if rng.random() < 0.7 else _claimed(rng, file.getvalue())
    packers = bytes, lambda raw: gzip.compress(raw, mtime=0), bz2.compress, lzma.compress
    return rng.choice(packers)(made_of)


def _claimed(rng: random.Random, content: bytes) -> bytes:
    """Change the size that the first member claims to have, with the right checksum."""
    raw = bytearray(content)
    raw[124:136] = b"%011o\0" % rng.choice((0, 1, 2**20, 2**33 - 1))
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    return bytes(raw)


NPZ, ZIP, TAR = zipped(npy), zipped(), (tar,)


# --- pictures, MATLAB and NIfTI ----------------------------------------------------


def png(rng: random.Random, a: bytes, b: bytes) -> bytes:
    """Change a chunk of a PNG, with the right checksum; other pictures are damaged."""
    if a[:4] != b"\x89PNG":
        return any_damage(rng, a, b)
    chunks, at = [], 8
    while at < len(a):
        size = int.from_bytes(a[at : at + 4], "big")
        chunks.append((a[at + 4 : at + 8], a[at + 8 : at + 8 + size]))
        at += size + 12
    i = rng.randrange(len(chunks))
    kind, body = chunks[i]
    if kind == b"IHDR" and rng.random() < 0.5:
        side = rng.choice((0, 1, 9_000, 30_000, 2**31 - 1))
        body = struct.pack(">II", side, rng.choice((side, 1))) + body[8:]
    elif kind == b"IDAT" and rng.random() < 0.5:
        body = zlib.compress(any_damage(rng, zlib.decompress(body), b""))
    else:
        body = any_damage(rng, body, b"")
    chunks[i] = rng.choice((kind, kind, kind, b"tEXt", b"iCCP", b"eXIf", b"PLTE", b"acTL")), body
    return a[:8] + b"".join(
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        for kind, body in chunks
    )


def matlab(rng: random.Random, a: bytes, b: bytes) -> bytes:
    """Change what a compressed matrix holds, or claims to hold."""
    kind, size = struct.unpack("<II", a[128:136])
    if kind != 15:
        return any_damage(rng, a, b)
    inner = zlib.decompress(a[136 : 136 + size])
    body = zlib.compress(any_damage(rng, inner, inner))
    if rng.random() < 0.05:
        body = zlib.compress(inner[:4] + struct.pack("<I", 2**31 - 1) + inner[8:] + bytes(2**27))
    return a[:128] + struct.pack("<II", 15, len(body)) + body + a[136 + size :]


def nifti(rng: random.Random, a: bytes, b: bytes) -> bytes:
    """Change a field of the header."""
    short = ((40 + 2 * i, "<h") for i in (*range(8), 15, 16, 106, 107))
    floats = ((4 * i, "<f") for i in (*range(19, 30), *range(64, 82)))
    at, code = rng.choice((*short, *floats))
    odd: tuple[float, ...] = (0, 1, -1, 2, 3, 16, 64, 128, 1024, 2048, 32767, -32768)
    if code == "<f":
        odd = (*odd, float("nan"), float("inf"), 1e38, 1e-38, 352.5)
    return a[:at] + struct.pack(code, rng.choice(odd)) + a[at + struct.calcsize(code) :]


IMAGES, MATLAB, NIFTI = (png,), (matlab,), (nifti,)
