"""OASIS: the two-dimensional brain slices of neurite, aligned, skull-stripped and labelled."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..errors import DataError
from .base import DataSet
from .border import printable
from .fetch import Remote, fetch, locate, unpack
from .scans import Scans, ScanSplit, split_names
from .volumes import check_labels, read_nifti

__all__ = ["OASIS", "fetch_oasis", "oasis"]

URL = "https://surfer.nmr.mgh.harvard.edu/ftp/data/neurite/data/"
# The publisher gives no checksum.
ARCHIVE = Remote(
    "neurite-oasis.2d.v1.0.tar",
    "c9ae5864f250c7e4b8d83a104e51ae8e",
    "md5",
    confirmed=False,
    most=2**26,  # it has 24 MB
)
FOLDER = "neurite-oasis.2d.v1.0"


def _subjects(folder: Path) -> list[Path]:
    """The folders of the subjects, in ``folder`` or where the archive is unpacked to."""
    for top in (folder, folder / FOLDER, folder / FOLDER / FOLDER):
        found = sorted(path for path in top.glob("OASIS_OAS1_*_MR*") if path.is_dir())
        if not found:
            continue
        if (top / "subjects.txt").is_file():
            names = (top / "subjects.txt").read_text("utf-8", "replace").split()
            lost = sorted(set(names) - {path.name for path in found})
            if lost:
                raise DataError(
                    f"{top} lacks {', '.join(lost[:3])}{' and more' if len(lost) > 3 else ''}, "
                    "which its subjects.txt names. Delete the folder and fetch it again with "
                    "`hyperlight data oasis`."
                )
        return found
    raise DataError(
        f"{folder} lacks the folders OASIS_OAS1_0001_MR1 and on. Fetch them with `hyperlight data "
        f"oasis --data-dir {folder}`, or name a folder that holds them with --data-dir."
    )


def _label_names(top: Path, labels: str, most: int) -> tuple[str, ...]:
    """The names that the archive lists (``1 Left-Cerebral-White-Matter ...``), or numbers."""
    names = {0: "background"}
    path = top / f"{labels}_labels.txt"
    if path.is_file():
        for line in path.read_text("utf-8", "replace").splitlines():
            match = re.match(r"\s*(\d{1,4})[\s:,]+([A-Za-z][^\s:,]*)", line)
            if match and int(match[1]) > 0:
                names[int(match[1])] = match[2]
    return tuple(names.get(value, f"label {value}") for value in range(most + 1))


def oasis(
    folder: Path | None = None,
    size: tuple[int, int] | None = None,
    *,
    labels: Literal["seg24", "seg4"] = "seg24",
) -> ScanSplit:
    """Load OASIS (Marcus et al. 2007) as prepared by Hoopes et al. 2021: 414 coronal slices.

    There is one slice per individual, skull-stripped, bias-corrected and affinely aligned. As in
    section A.1 of the paper, 64 % are for training, 16 % for validation and 20 % for testing; the
    paper does not say which (see :func:`~hyperlight.lab.data.split_names`). All are one group.

    Args:
        folder: with the folders ``OASIS_OAS1_0001_MR1`` and so on, or with a folder
            ``neurite-oasis.2d.v1.0`` or ``oasis`` that has them; by default the user's cache.
        size: height and width to resize to; by default (160, 192), that of the files.
        labels: 24 structures, as in the paper, or 4.

    Returns:
        Images ``(N, 1, 160, 192)``, float32 in [0, 1].

    Raises:
        DataError: a file is missing, damaged or not part of the data set.
    """
    folder = locate(folder, "oasis")
    subjects = _subjects(folder)
    most = int(labels.removeprefix("seg"))
    images: list[np.ndarray] = []
    maps: list[np.ndarray] = []
    for subject in subjects:
        image_path = subject / "slice_norm.nii.gz"
        map_path = subject / f"slice_{labels}.nii.gz"
        image = read_nifti(image_path)
        map_ = read_nifti(map_path)
        check_labels(map_path, map_, most)
        first = images[0].shape if images else image.shape
        if image.ndim != 2 or image.shape != map_.shape or image.shape != first:
            raise DataError(
                f"{subject} has an image of {image.shape} and labels of {map_.shape}; expected two "
                f"dimensions and {first}, like the others. Delete it and fetch it again with "
                "`hyperlight data oasis`."
            )
        if image.min() < -1e-3 or image.max() > 1.001:
            raise DataError(
                f"{image_path} has intensities from {image.min():g} to {image.max():g}; expected 0 "
                "to 1. Delete it and fetch it again with `hyperlight data oasis`."
            )
        if image.min() == image.max():
            raise DataError(
                f"{image_path} is {image.min():g} everywhere; expected a picture. Delete it and "
                "fetch it again with `hyperlight data oasis`."
            )
        images.append(image.astype(np.float32).clip(0.0, 1.0))
        maps.append(map_.astype(np.uint8))
    parts = split_names([subject.name for subject in subjects])
    if not all(parts):
        raise DataError(
            f"{folder} has {len(subjects)} scans, too few to train, validate and test; expected 5 "
            "or more. Fetch them with `hyperlight data oasis`."
        )
    scans = Scans(
        torch.from_numpy(np.stack(images)).unsqueeze(1),
        torch.from_numpy(np.stack(maps)),
        torch.zeros(len(subjects), dtype=torch.int64),
    )
    scans = scans if size is None else scans.resize(size)
    train, valid, test = (scans[part] for part in parts)
    height, width = scans.images.shape[-2:]
    return ScanSplit(
        name="oasis",
        train=train,
        valid=valid,
        test=test,
        label_names=_label_names(subjects[0].parent, labels, most),
        note=f"OASIS (neurite 2D), {height}x{width}, {most} labels: {len(train):,} scans to "
        f"train, {len(valid):,} to validate, {len(test):,} to test",
    )


def fetch_oasis(folder: Path | None = None, *, url: str = URL, downloader: Any = None) -> str:
    """Fetch the 2D slices of OASIS (24 MB) over https, or check a folder.
    By using the data you accept the OASIS data use agreement.

    Args:
        folder: for the files, or with a folder ``oasis``; by default the user's cache.
        url: the folder with the archive; https.
        downloader: as in :func:`hyperlight.lab.data.fetch.fetch`.

    Returns:
        A line that says what the folder holds.

    Raises:
        DataError: a file is damaged, or cannot be fetched.
    """
    folder = locate(folder, "oasis")
    fetched: list[str] = []
    there = any(any(top.glob("OASIS_OAS1_*")) for top in (folder, folder / FOLDER))
    if not there:
        fetched = fetch(folder, url, [ARCHIVE], downloader)
        unpack(folder / ARCHIVE.name, folder / FOLDER)
    split = oasis(folder)
    got = f"fetched {', '.join(fetched)}; " if fetched else ""
    return f"{printable(str(folder))}: {got}{split.note} (under the OASIS data use agreement)"


OASIS = DataSet(
    "oasis",
    scans=lambda asked: oasis(asked.folder, asked.size),
    fetch=fetch_oasis,
)
