"""Changes of bytes that know nothing of the format."""

from __future__ import annotations

import random
import struct

__all__ = ["DAMAGE", "any_damage", "splice"]


def _where(rng: random.Random, content: bytes) -> int:
    """A position, half of the time near the start or the end, where headers are."""
    size = max(1, len(content))
    near = min(size, rng.choice((16, 64, 512)))
    return rng.choice((rng.randrange(size), rng.randrange(near), size - 1 - rng.randrange(near)))


def _block(rng: random.Random, content: bytes) -> slice:
    start = _where(rng, content)
    return slice(start, start + rng.choice((1, 2, 4, 8, 64, 512, 4096)))


def bit(rng: random.Random, a: bytes, b: bytes) -> bytes:
    changed = bytearray(a or b"\0")
    changed[_where(rng, changed)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def bits(rng: random.Random, a: bytes, b: bytes) -> bytes:
    for _ in range(rng.choice((2, 3, 10, 100))):
        a = bit(rng, a, b)
    return a


def byte(rng: random.Random, a: bytes, b: bytes) -> bytes:
    changed = bytearray(a or b"\0")
    changed[_where(rng, changed)] = rng.choice((0, 1, 0x20, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(changed)


def truncate(rng: random.Random, a: bytes, b: bytes) -> bytes:
    return a[: rng.choice((0, len(a) - 1, _where(rng, a)))]


def extend(rng: random.Random, a: bytes, b: bytes) -> bytes:
    return a + rng.choice((b"\0", b"\n", bytes(512), a, rng.randbytes(rng.choice((1, 8, 4096)))))


def zero(rng: random.Random, a: bytes, b: bytes) -> bytes:
    block, changed = _block(rng, a), bytearray(a)
    changed[block] = bytes(len(a[block]))
    return bytes(changed)


def duplicate(rng: random.Random, a: bytes, b: bytes) -> bytes:
    block = _block(rng, a)
    return a[: block.stop] + a[block] + a[block.stop :]


def delete(rng: random.Random, a: bytes, b: bytes) -> bytes:
    block = _block(rng, a)
    return a[: block.start] + a[block.stop :]


def swap(rng: random.Random, a: bytes, b: bytes) -> bytes:
    first, changed = _block(rng, a), bytearray(a)
    start, size = _where(rng, a), len(a[first])
    changed[first], changed[start : start + size] = a[start : start + size], a[first]
    return bytes(changed)


def integer(rng: random.Random, a: bytes, b: bytes) -> bytes:
    size, order = rng.choice((2, 4, 8)), rng.choice("<>")
    top = 2 ** (8 * size)
    value = rng.choice((0, 1, 2, top - 1, top // 2, top // 2 - 1, top // 4, rng.randrange(top)))
    start = min(_where(rng, a) // 2 * 2, max(0, len(a) - size))
    code = {2: "H", 4: "I", 8: "Q"}[size]
    return a[:start] + struct.pack(order + code, value) + a[start + size :]


def number(rng: random.Random, a: bytes, b: bytes) -> bytes:
    code, order = rng.choice("efd"), rng.choice("<>")
    value = rng.choice((0.0, -1.0, float("nan"), float("inf"), -float("inf"), 6e4, 1e-7))
    content = struct.pack(order + code, value)
    start = min(_where(rng, a) // 4 * 4, max(0, len(a) - len(content)))
    return a[:start] + content + a[start + len(content) :]


def splice(rng: random.Random, a: bytes, b: bytes) -> bytes:
    """The start of one file and the end of the other."""
    at = _where(rng, a)
    return a[:at] + b[at if rng.random() < 0.7 else _where(rng, b) :]


DAMAGE = (bit, bit, bits, byte, truncate, extend, zero, duplicate, delete, swap, integer, number)
"""What a bad disk or copy does, and numbers that a parser may trust."""


def any_damage(rng: random.Random, a: bytes, b: bytes) -> bytes:
    """One of :data:`DAMAGE`, or a splice."""
    return rng.choice((*DAMAGE, splice))(rng, a, b)
