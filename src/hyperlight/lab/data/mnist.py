"""MNIST from its IDX files, which are checked as they are read or fetched."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import DataError, LabError
from .base import DataSet, Request
from .border import opened, printable, read_up_to, reading
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

Accept = Callable[[tuple[int, ...]], None]

_MOST_BYTES = 2**30  # of an IDX file, decompressed
_AGAIN = "Delete it and fetch it again with `hyperlight data mnist`."


def _find(folder: Path, stem: str) -> Path | None:
    dotted = stem.replace("-idx", ".idx")
    for name in (stem, f"{stem}.gz", dotted, f"{dotted}.gz"):
        if (folder / name).is_file():
            return folder / name
    return None


def _idx(path: Path, dimensions: int, accept: Accept, official: str) -> tuple[np.ndarray, bool]:
    """Read an IDX file of unsigned bytes: a magic number, the sizes, the values.

    Args:
        path: the file, gzipped or not.
        dimensions: how many sizes there are.
        accept: called with the sizes before the values are read.
        official: the sha256 of the official contents.

    Returns:
        The values, and whether the contents are the official ones.
    """
    magic = bytes((0, 0, 8, dimensions))
    with reading(path, "an IDX file", _AGAIN), opened(path) as file:
        header = read_up_to(file, 4 + 4 * dimensions)
        if len(header) < 4 + 4 * dimensions or header[:4] != magic:
            raise DataError(
                f"{path} is not an IDX file of unsigned bytes with {dimensions} dimensions: it "
                f"starts with {header[:4].hex() or 'nothing'}, expected {magic.hex()}. Delete it "
                "and fetch it with `hyperlight data mnist`."
            )
        shape = struct.unpack(f">{dimensions}I", header[4:])
        expected = len(header) + math.prod(shape)  # Python integers, which do not overflow
        if expected > _MOST_BYTES:
            raise DataError(
                f"{path} says that it holds {shape}, which takes {expected:,} bytes; expected at "
                f"most {_MOST_BYTES:,}. {_AGAIN}"
            )
        accept(shape)
        # A byte more shows whether the file is longer, and reaches the checksum of gzip.
        content = header + read_up_to(file, math.prod(shape) + 1)
        if len(content) != expected:
            found = f"{len(content):,}"
            if len(content) > expected:
                found = "more" if path.suffix == ".gz" else f"{path.stat().st_size:,}"
            raise DataError(
                f"{path} has {found} bytes; its header says {shape}, which takes "
                f"{expected:,}. The file is damaged or cut short. {_AGAIN}"
            )
    values = np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)
    return values, hashlib.sha256(content).hexdigest() == official


def _part(
    folder: Path, part: str, found: Mapping[str, Path | None]
) -> tuple[np.ndarray, np.ndarray, bool]:
    """The images and labels of a part, and whether both are the official ones."""
    image_stem, label_stem = f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"
    image_path, label_path = found[image_stem], found[label_stem]
    assert image_path is not None
    assert label_path is not None
    labels, first = _idx(label_path, 1, lambda shape: None, CONTENTS[label_stem])

    def accept(shape: tuple[int, ...]) -> None:
        if shape[0] != len(labels):
            raise DataError(
                f"{folder} has {shape[0]:,} {part} images and {len(labels):,} {part} labels; "
                "expected as many images as labels. Delete them and fetch them again "
                "with `hyperlight data mnist`."
            )
        if shape[1:] != (28, 28) or (len(labels) and labels.max() > 9):
            raise DataError(
                f"{folder} has {part} images of {shape[1:]} and labels up to "
                f"{int(labels.max(initial=0))}; expected (28, 28) and labels 0 to 9. Name a folder "
                "that holds MNIST."
            )

    images, second = _idx(image_path, 3, accept, CONTENTS[image_stem])
    return images, labels, first and second


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
    parts, official = [], True
    for part in ("train", "t10k"):
        images, labels, same = _part(folder, part, found)
        official &= same
        pixels = torch.from_numpy(images).float().div_(255.0).unsqueeze(1)
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
        Remote(f"{stem}.gz", digest, most=2**24)
        for stem, digest in ARCHIVES.items()
        if not _find(folder, stem)
    ]
    fetched = fetch(folder, url, missing, downloader)
    train, test, official = _load(folder)
    kind = "the official MNIST" if official else "IDX files that are not the official MNIST"
    got = f"fetched {', '.join(fetched)}; " if fetched else ""
    return (
        f"{printable(str(folder))}: {got}{kind}, {len(train):,} training and {len(test):,} test "
        "images"
    )


def _images(asked: Request) -> ImageSplit:
    if asked.side(28) != 28:
        raise LabError(f"--size was {asked.side(28)}; MNIST is 28 pixels high and wide.")
    return mnist(asked.folder)


MNIST = DataSet("mnist", images=_images, fetch=fetch_mnist)
