"""Decode image files into one array, in parallel, upright and at one size."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from ...io.container import replaced
from ..errors import DataError
from ..files import write_bytes
from .border import reading
from .fetch import cache_folder

__all__ = ["Picture", "decode_all", "longest_side"]

# Larger arrays are cached on disk and memory-mapped.
KEEP_ABOVE = 256 * 2**20

# What Pillow reads without starting other programs, as it does for PostScript.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_MOST_PIXELS = 64_000_000
_MOST_PER_BYTE = 256  # pixels, of images of more than ...
_ALWAYS = 6_000_000
_LARGE = 4_000_000


@dataclass(frozen=True)
class Picture:
    """An image file: its name, how to read it, and a stamp that changes when it changes."""

    name: str
    read: Callable[[], bytes]
    stamp: str

    @staticmethod
    def of(path: Path) -> Picture:
        """The image in a file."""
        with _reading(str(path)):
            status = path.stat()
        return Picture(str(path), path.read_bytes, f"{status.st_size} {status.st_mtime_ns}")


def _reading(name: str) -> AbstractContextManager[None]:
    return reading(name, "an image", "Replace it or remove it.")


def _opened(picture: Picture) -> Image.Image:
    """Open an image without decoding it."""
    content = picture.read()
    image: Image.Image = Image.open(io.BytesIO(content), formats=_FORMATS)
    most = min(_MOST_PIXELS, max(_ALWAYS, _MOST_PER_BYTE * len(content)))
    if not 0 < image.width * image.height <= most:
        raise ValueError(
            f"it has {image.width} x {image.height} pixels in {len(content):,} bytes, expected at "
            f"most {most:,}"
        )
    return image


def _flat(image: Image.Image, channels: Literal[1, 3], name: str) -> Image.Image:
    """Convert to grey or colour with 8 bits, on white where it is transparent."""
    if image.mode == "F":
        raise DataError(
            f"{name} has floating-point pixels of unknown range; expected 8 or 16 bits. Convert it."
        )
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(
                f"{name} has pixels from {values.min():.0f} to {values.max():.0f}; expected 8 or "
                "16 bits. Convert it."
            )
        image = Image.fromarray((values / 257.0).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def longest_side(pictures: Sequence[Picture]) -> int:
    """The longest side of any of the pictures, in pixels."""
    longest = 0
    for picture in pictures:
        with _reading(picture.name):
            longest = max(longest, *_opened(picture).size)
    return longest


def decode_all(
    pictures: Sequence[Picture], size: int, *, whole: bool, channels: Literal[1, 3] = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Decode pictures at one size.

    EXIF orientation is applied; grey, palette and 16-bit images are converted, transparency becomes
    white. Arrays above 256 MiB are cached in the user's cache and memory-mapped; they are decoded
    again when a file changes.

    Args:
        pictures: what to decode.
        size: height and width of the result.
        whole: squeeze the whole image to a square; otherwise take its central square.
        channels: 3 for colour, 1 for grey.

    Returns:
        uint8 ``(N, channels, size, size)``, and width / height of the originals ``(N,)``, float32.

    Raises:
        DataError: an image cannot be read.
    """
    shape = (len(pictures), channels, size, size)
    keep = int(np.prod(shape)) > KEEP_ABOVE
    stamps = "\n".join(f"{picture.name} {picture.stamp}" for picture in pictures)
    # The names may have bytes that are not UTF-8.
    content = f"2 {shape} {whole}\n{stamps}".encode("utf-8", "surrogatepass")
    path = cache_folder("decoded") / f"{hashlib.sha256(content).hexdigest()[:32]}.npy"
    if keep and (kept := _kept(path, shape)) is not None:
        return kept
    pixels = np.empty(shape, np.uint8)
    aspect = np.empty(len(pictures), np.float32)

    large = Lock()  # one large image at a time, since each takes up to 16 bytes a pixel

    def decode(i: int) -> None:
        with _reading(pictures[i].name):
            image = _opened(pictures[i])
            image.draft(None, (size, size))  # decodes a JPEG faster
            with large if image.width * image.height > _LARGE else nullcontext():
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                image = _flat(image, channels, pictures[i].name)
                width, height = image.size
                aspect[i] = width / height
                side = min(width, height)
                left, upper = (width - side) / 2, (height - side) / 2
                box = None if whole else (left, upper, left + side, upper + side)
                resized = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
            pixels[i] = np.asarray(resized).reshape(size, size, channels).transpose(2, 0, 1)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(decode, range(len(pictures))):
            pass
    if keep and _keep(path, pixels, aspect) and (kept := _kept(path, shape)) is not None:
        return kept
    return pixels, aspect


def _beside(path: Path) -> Path:
    """The file with the aspects, and with the sha256 of both."""
    return path.with_suffix(".aspect")


def _sum(path: Path, aspect: bytes) -> bytes:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(aspect)
    return digest.digest()


def _kept(path: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray] | None:
    """What is cached, if it is exactly what was written."""
    try:
        beside = _beside(path).read_bytes()
        if beside[:32] != _sum(path, beside[32:]):
            return None
        pixels: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
        aspect = np.frombuffer(bytearray(beside[32:]), np.float32)
    except (OSError, ValueError, EOFError):
        return None
    fits = pixels.shape == shape and pixels.dtype == np.uint8 and len(aspect) == len(pixels)
    return (pixels, aspect) if fits else None


def _keep(path: Path, pixels: np.ndarray, aspect: np.ndarray) -> bool:
    """Cache the arrays; return False, with a warning, if the disk is full."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as file:
            np.save(file, pixels, allow_pickle=False)
        write_bytes(_beside(path), _sum(path, aspect.tobytes()) + aspect.tobytes())
    except OSError as error:
        warnings.warn(
            f"{path} could not be written ({error}); the images will be decoded again next time.",
            stacklevel=4,
        )
        return False
    return True
