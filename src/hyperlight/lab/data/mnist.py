"""MNIST from its IDX files, which are checked as they are read or fetched."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import DataError, LabError
from .base import DataSet, Request
from .fetch import Remote, fetch, locate
from .images import Images, ImageSplit, stratified_split

__all__ = ["MNIST", "fetch_mnist", "mnist"]

URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"

# The sha256 of the official .gz files and of their contents.
ARCHIVES = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
CONTENTS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def _find(folder: Path, stem: str) -> Path | None:
    dotted = stem.replace("-idx", ".idx")
    for name in (stem, f"{stem}.gz", dotted, f"{dotted}.gz"):
        if (folder / name).is_file():
            return folder / name
    return None


def _read(path: Path) -> bytes:
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as file:
                return file.read()
        return path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read ({error}): the file is damaged or cut short. Delete it and "
            "fetch it again with `hyperlight data mnist`."
        ) from error


def _idx(path: Path, content: bytes, dimensions: int) -> np.ndarray:
    """Parse an IDX file of unsigned bytes: a magic number, the sizes, the values."""
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(
            f"{path} is not an IDX file of unsigned bytes with {dimensions} dimensions: it starts "
            f"with {content[:4].hex() or 'nothing'}, expected "
            f"{bytes((0, 0, 8, dimensions)).hex()}. Delete it and fetch it with `hyperlight data "
            "mnist`."
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    expected = header + math.prod(shape)  # Python integers, which do not overflow
    if len(content) != expected:
        raise DataError(
            f"{path} has {len(content):,} bytes; its header says {shape}, which takes "
            f"{expected:,}. The file is damaged or cut short: delete it and fetch it again with "
            "`hyperlight data mnist`."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _load(folder: Path) -> tuple[Images, Images, bool]:
    """The two official parts, and whether their contents are the official ones."""
    found = {stem: _find(folder, stem) for stem in ARCHIVES}
    missing = [stem for stem, path in found.items() if path is None]
    if missing:
        raise DataError(
            f"{folder} lacks {', '.join(missing)} (plain or with .gz). Fetch them with "
            f"`hyperlight data mnist --data-dir {folder}`, or name a folder that holds MNIST's IDX "
            "files with --data-dir."
        )
    arrays, official = {}, True
    for stem, path in found.items():
        assert path is not None
        content = _read(path)
        official &= hashlib.sha256(content).hexdigest() == CONTENTS[stem]
        arrays[stem] = _idx(path, content, 3 if "images" in stem else 1)
    parts = []
    for part in ("train", "t10k"):
        images = arrays[f"{part}-images-idx3-ubyte"]
        labels = arrays[f"{part}-labels-idx1-ubyte"]
        if len(images) != len(labels):
            raise DataError(
                f"{folder} has {len(images):,} {part} images and {len(labels):,} {part} labels; "
                "expected as many images as labels. Delete them and fetch them again "
                "with `hyperlight data mnist`."
            )
        if images.shape[1:] != (28, 28) or (len(labels) and labels.max() > 9):
            raise DataError(
                f"{folder} has {part} images of {images.shape[1:]} and labels up to "
                f"{int(labels.max(initial=0))}; expected (28, 28) and labels 0 to 9. Name a folder "
                "that holds MNIST."
            )
        pixels = torch.from_numpy(images.copy()).float().div_(255.0).unsqueeze(1)
        parts.append(Images(pixels, torch.from_numpy(labels.astype(np.int64))))
    return parts[0], parts[1], official


def mnist(folder: Path | None = None) -> ImageSplit:
    """Load MNIST from a folder of IDX files, gzipped or not; by default the user's cache.

    As in section A.1 of the paper, 80 % of the official training part, stratified, are for
    training and 20 % for validation; the official test part is for testing.

    Raises:
        DataError: a file is missing, damaged or not part of the data set.
    """
    folder = locate(folder, "mnist")
    train, test, official = _load(folder)
    if not len(test):
        raise DataError(
            f"{folder} has no test images; expected at least one. Name a folder that holds MNIST."
        )
    try:
        kept, held_out = stratified_split(train.labels.numpy(), share=0.2, seed=0)
    except ValueError as error:
        raise DataError(
            f"{folder} has {len(train):,} training images, too few to hold out a fifth of every "
            f"class ({error}). Name a folder that holds MNIST."
        ) from error
    contents = "MNIST, 28x28" if official else "IDX files that are not the official MNIST, 28x28"
    return ImageSplit(
        name="mnist",
        train=train[kept],
        test=test,
        classes=10,
        valid=train[held_out],
        note=f"{contents}: {len(kept):,} images to train ({len(held_out):,} held out), "
        f"{len(test):,} to test",
    )


def fetch_mnist(folder: Path | None = None, *, url: str = URL, downloader: Any = None) -> str:
    """Fetch MNIST over https, checked by sha256, or check the IDX files in a folder.

    Args:
        folder: for the files, or with a folder ``mnist``; by default the user's cache.
        url: the folder with the four ``.gz`` files; https.
        downloader: as in :func:`hyperlight.lab.data.fetch.fetch`.

    Returns:
        A line that says what the folder holds.

    Raises:
        DataError: a file is damaged, or cannot be fetched.
    """
    folder = locate(folder, "mnist")
    missing = [
        Remote(f"{stem}.gz", digest) for stem, digest in ARCHIVES.items() if not _find(folder, stem)
    ]
    fetched = fetch(folder, url, missing, downloader)
    train, test, official = _load(folder)
    kind = "the official MNIST" if official else "IDX files that are not the official MNIST"
    got = f"fetched {', '.join(fetched)}; " if fetched else ""
    return f"{folder}: {got}{kind}, {len(train):,} training and {len(test):,} test images"


def _images(asked: Request) -> ImageSplit:
    if asked.side(28) != 28:
        raise LabError(f"--size was {asked.side(28)}; MNIST is 28 pixels high and wide.")
    return mnist(asked.folder)


MNIST = DataSet("mnist", images=_images, fetch=fetch_mnist)
