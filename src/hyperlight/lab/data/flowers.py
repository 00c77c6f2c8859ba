"""Oxford Flowers-102: the official files, or smaller copies of the images in a zip archive."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import DataError
from .augment import Augmentation
from .base import DataSet
from .border import entries, printable, reading
from .fetch import Remote, checksum, fetch, locate, unpack
from .images import Images, ImageSplit, stratified_split
from .matlab import read_matrices
from .pictures import Picture, decode_all, longest_side

__all__ = ["FLOWERS102", "fetch_flowers102", "flowers102"]

URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
ARCHIVE = Remote(
    "102flowers.tgz",
    "2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
    most=344_862_509,
)
LABELS = Remote(
    "imagelabels.mat",
    "4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d",
    most=2**20,
)
SPLITS = Remote(
    "setid.mat",
    "46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd",
    most=2**20,
)

CLASSES = 102
PARTS = ("trnid", "valid", "tstid")
_NAMES = ("flowers102", "flowers102-64px")
_AGAIN = "Delete it and fetch it again with `hyperlight data flowers102`."
_ID = re.compile(r"image_\d{5}\.jpg")
_MOST_IMAGES = 99_999  # their names have five digits


@dataclass(frozen=True)
class _Index:
    """A folder of Flowers-102: its images, their labels and the images of each part, from 0."""

    pictures: list[Picture]
    labels: np.ndarray
    parts: dict[str, np.ndarray]
    official: bool


def _matrices(path: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Read rows of whole numbers from a .mat file."""
    found = read_matrices(path, tuple(keys), _AGAIN)
    rows = {}
    for key in keys:
        values = found.get(key)
        if values is None or values.dtype.kind not in "iu" or not values.size:
            held = "nothing" if values is None else f"values of {values.dtype} {values.shape}"
            raise DataError(f"{path} holds {held} under {key!r}; expected whole numbers. {_AGAIN}")
        if values.max() > _MOST_IMAGES:
            raise DataError(
                f"{path} has values up to {values.max()} under {key!r}; expected at most "
                f"{_MOST_IMAGES}. {_AGAIN}"
            )
        rows[key] = values.ravel().astype(np.int64)
    return rows


def _zipped(path: Path) -> dict[str, Picture]:
    """The images of a zip archive by file name, to be read from it without unpacking."""
    with reading(path, "a zip archive", "Replace it."):
        archive = zipfile.ZipFile(path)

    def picture(entry: zipfile.ZipInfo) -> Picture:
        # Called from several threads.
        stamp = f"{entry.file_size} {entry.CRC}"
        return Picture(f"{path}/{entry.filename}", lambda: archive.read(entry), stamp)

    found: dict[str, Picture] = {}
    for entry in archive.infolist():
        name = entry.filename.rpartition("/")[2]
        if not _ID.fullmatch(name):
            continue
        wrong = None
        if name in found:
            wrong = "is there twice"
        elif entry.flag_bits & 1:
            wrong = "is encrypted"
        elif entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            wrong = f"is compressed by method {entry.compress_type}"
        elif entry.file_size > 64 * 2**20:
            wrong = f"has {entry.file_size:,} bytes"
        if wrong is not None:
            raise DataError(
                f"{path} holds {entry.filename!r}, which {wrong}; expected images of at most "
                "64 MiB, each once, stored or deflated, without a password. This is not the "
                "expected archive: replace it."
            )
        found[name] = picture(entry)
    return found


def _images(folder: Path) -> dict[str, Picture]:
    if (folder / "jpg").is_dir():
        paths = {path.name: path for path in entries(folder / "jpg") if _ID.fullmatch(path.name)}
        return {name: Picture.of(path) for name, path in paths.items()}
    archives = sorted(folder.glob("*.zip"))
    if len(archives) == 1:
        return _zipped(archives[0])
    found = f"{len(archives)} zip archives" if archives else "none"
    raise DataError(
        f"{folder} lacks the images: expected a folder jpg or one zip archive with "
        f"image_00001.jpg and on, found {found}. Fetch them with `hyperlight data flowers102 "
        f"--data-dir {folder}`, or name a folder that holds them with --data-dir."
    )


def _index(folder: Path) -> _Index:
    missing = [file.name for file in (LABELS, SPLITS) if not (folder / file.name).is_file()]
    if missing:
        raise DataError(
            f"{folder} lacks {', '.join(missing)}. Fetch them with `hyperlight data flowers102 "
            f"--data-dir {folder}`, or name a folder that holds Flowers-102 with --data-dir."
        )
    labels = _matrices(folder / LABELS.name, ["labels"])["labels"]
    if labels.min() < 1 or labels.max() > CLASSES:
        raise DataError(
            f"{folder / LABELS.name} has labels from {labels.min()} to {labels.max()}; expected 1 "
            f"to {CLASSES}. {_AGAIN}"
        )
    parts = _matrices(folder / SPLITS.name, PARTS)
    ids = np.concatenate(list(parts.values()))
    if ids.min() < 1 or ids.max() > len(labels) or len(np.unique(ids)) != len(ids):
        raise DataError(
            f"{folder / SPLITS.name} has ids from {ids.min()} to {ids.max()}, "
            f"{len(ids) - len(np.unique(ids)):,} of them twice; expected each of 1 to "
            f"{len(labels):,} at most once. {_AGAIN}"
        )
    found = _images(folder)
    names = [f"image_{i:05d}.jpg" for i in range(1, len(labels) + 1)]
    lost = [name for name in names if name not in found]
    if lost or len(found) != len(names):
        which = f"{', '.join(lost[:3])}{' and more' if len(lost) > 3 else ''} missing"
        raise DataError(
            f"{folder} has {len(found):,} images and {len(labels):,} labels"
            f"{f' ({which})' if lost else ''}; expected an image for every label. Delete the "
            "images and fetch them again with `hyperlight data flowers102`."
        )
    official = all(checksum(folder / file.name) == file.digest for file in (LABELS, SPLITS))
    return _Index(
        [found[name] for name in names],
        labels - 1,
        {part: ids - 1 for part, ids in parts.items()},
        official,
    )


def flowers102(
    folder: Path | None = None,
    size: int = 256,
    *,
    use_valid: bool = False,
    whole: bool = True,
) -> ImageSplit:
    """Load Oxford Flowers-102 (Nilsback and Zisserman 2008), 102 classes, as in section A.1.

    80 % of the official training part (1,020 images), stratified, are for training and 20 % for
    validation; the official test part (6,149 images) is for testing. The paper does not say how it
    uses the official validation part (1,020 images): here it is unused, or joins the training part
    with ``use_valid``.

    Images for validation and testing are the central squares, resized. Those for training are
    whole, squeezed to squares of up to twice the size, for
    :class:`~hyperlight.lab.data.Augmentation` (in ``augment``), which crops squares of the
    original; with ``whole=False`` they are prepared like the others.

    Args:
        folder: with ``imagelabels.mat``, ``setid.mat`` and the images, in a folder ``jpg`` or a
            zip archive (possibly in another size); or with a folder ``flowers102`` or
            ``flowers102-64px`` that has them; by default the user's cache.
        size: height and width in pixels; 256 in the paper.
        use_valid: train on the official validation part as well.
        whole: keep training images whole, for augmentation.

    Returns:
        Images ``(N, 3, size, size)``, uint8.

    Raises:
        DataError: a file is missing, damaged or not part of the data set.
    """
    folder = locate(folder, *_NAMES)
    if size < 1:
        raise DataError(f"The size of the images was {size}; expected 1 or more.")
    index = _index(folder)
    fit = index.parts["trnid"]
    if use_valid:
        fit = np.sort(np.concatenate([fit, index.parts["valid"]]))
    try:
        kept, held_out = stratified_split(index.labels[fit], share=0.2, seed=0)
    except ValueError as error:
        raise DataError(
            f"{folder} has {len(fit):,} training images, too few to hold out a fifth of every "
            f"class ({error}). Name a folder that holds Flowers-102."
        ) from error

    def part(ids: np.ndarray, side: int, squeezed: bool) -> Images:
        pictures: Sequence[Picture] = [index.pictures[i] for i in ids]
        pixels, aspect = decode_all(pictures, side, whole=squeezed)
        return Images(
            torch.from_numpy(pixels),
            torch.from_numpy(index.labels[ids]),
            torch.from_numpy(aspect) if squeezed else None,
        )

    train = fit[kept]
    longest = longest_side([index.pictures[i] for i in train])
    shown = "Flowers-102" if index.official else "Flowers-102 with labels that are not official"
    small = f" from images of up to {longest} pixels" if longest < 256 else ""
    return ImageSplit(
        name="flowers102",
        train=part(train, min(2 * size, longest) if whole else size, whole),
        test=part(index.parts["tstid"], size, False),
        classes=CLASSES,
        valid=part(fit[held_out], size, False),
        augment=Augmentation(size) if whole else None,
        note=f"{shown} at {size}x{size}{small}: {len(kept):,} images to train, "
        f"{len(held_out):,} to validate, {len(index.parts['tstid']):,} to test",
    )


def fetch_flowers102(folder: Path | None = None, *, url: str = URL, downloader: Any = None) -> str:
    """Fetch Oxford Flowers-102 (345 MB) over https, checked by sha256, or check a folder.

    Args:
        folder: for the files, or with a folder ``flowers102``; by default the user's cache.
        url: the folder with the three official files; https.
        downloader: as in :func:`hyperlight.lab.data.fetch.fetch`.

    Returns:
        A line that says what the folder holds.

    Raises:
        DataError: a file is damaged, or cannot be fetched.
    """
    folder = locate(folder, *_NAMES)
    there = (folder / "jpg").is_dir() or any(folder.glob("*.zip"))
    # Labels that are there are described by what is returned; the archive must be the official one.
    needed = [file for file in (LABELS, SPLITS) if not (folder / file.name).is_file()]
    fetched = fetch(folder, url, needed if there else [*needed, ARCHIVE], downloader)
    if not there:
        unpack(folder / ARCHIVE.name, folder / "jpg", top="jpg")
    index = _index(folder)
    kind = "the official Flowers-102" if index.official else "labels that are not official"
    got = f"fetched {', '.join(fetched)}; " if fetched else ""
    return f"{printable(str(folder))}: {got}{kind}, {len(index.labels):,} images"


FLOWERS102 = DataSet(
    "flowers102",
    images=lambda asked: flowers102(
        asked.folder, asked.side(256), use_valid=asked.use_valid, whole=asked.augment
    ),
    fetch=fetch_flowers102,
)
