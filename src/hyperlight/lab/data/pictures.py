"""Decode image files into one array, in parallel, upright and at one size."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from ..errors import DataError
from .fetch import cache_folder

__all__ = ["Picture", "decode_all", "longest_side"]

# Larger arrays are cached on disk and memory-mapped.
KEEP_ABOVE = 256 * 2**20


@dataclass(frozen=True)
class Picture:
    """An image file: its name, how to read it, and a stamp that changes when it changes."""

    name: str
    read: Callable[[], bytes]
    stamp: str

    @staticmethod
    def of(path: Path) -> Picture:
        """The image in a file."""
        status = path.stat()
        return Picture(str(path), path.read_bytes, f"{status.st_size} {status.st_mtime_ns}")


def _open(picture: Picture, hint: int | None = None) -> Image.Image:
    """Open an image; with ``hint``, a side that is enough, decode it, faster if it is a JPEG."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(picture.read()))
            if hint is not None:
                image.draft(None, (hint, hint))
                image.load()
                image = ImageOps.exif_transpose(image)
            return image
    except (
        *(OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, MemoryError),
        *(Image.DecompressionBombError, Image.DecompressionBombWarning),
    ) as error:
        raise DataError(
            f"{picture.name} cannot be read as an image ({error}): it is damaged, cut short or "
            "not an image. Replace it or remove it."
        ) from error


def _flat(image: Image.Image, channels: Literal[1, 3], name: str) -> Image.Image:
    """Convert to grey or colour with 8 bits, on white where it is transparent."""
    if image.mode == "F":
        raise DataError(
            f"{name} has floating-point pixels of unknown range; expected 8 or 16 bits. Convert it."
        )
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float64) / 257.0
        image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def longest_side(pictures: Sequence[Picture]) -> int:
    """The longest side of any of the pictures, in pixels."""
    return max(max(_open(picture).size) for picture in pictures)


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
    key = hashlib.sha256(f"1 {shape} {whole}\n{stamps}".encode()).hexdigest()[:32]
    kept = cache_folder("decoded") / f"{key}.npy", cache_folder("decoded") / f"{key}-aspect.npy"
    if keep and all(path.is_file() for path in kept):
        mapped = _mapped(kept[0], shape)
        if mapped is not None:
            return mapped, np.load(kept[1], allow_pickle=False)
    pixels = np.empty(shape, np.uint8)
    aspect = np.empty(len(pictures), np.float32)

    def decode(i: int) -> None:
        image = _flat(_open(pictures[i], hint=size), channels, pictures[i].name)
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
    if keep and _keep(kept[1], aspect) and _keep(kept[0], pixels):
        mapped = _mapped(kept[0], shape)
        if mapped is not None:
            return mapped, aspect
    return pixels, aspect


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        array: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return array if array.shape == shape and array.dtype == np.uint8 else None


def _keep(path: Path, array: np.ndarray) -> bool:
    """Cache an array; return False, with a warning, if the disk is full."""
    part: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        part = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            np.save(file, array, allow_pickle=False)
        part.replace(path)
    except OSError as error:
        warnings.warn(
            f"{path} could not be written ({error}); the images will be decoded again next time.",
            stacklevel=4,
        )
        return False
    finally:
        if part is not None:
            part.unlink(missing_ok=True)
    return True
