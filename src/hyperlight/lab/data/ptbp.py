"""PTBP: axial slices of paediatric brain scans with four tissue labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..errors import DataError
from .base import DataSet
from .fetch import locate
from .scans import Scans, ScanSplit
from .volumes import check_labels, read_npz

__all__ = ["PTBP", "ptbp"]

FILE = "ptbp_axial_8slices_192x160_uint8.npz"
LABEL_NAMES = ("background", "CSF", "cortical grey matter", "white matter", "deep grey matter")


def ptbp(folder: Path | None = None, size: tuple[int, int] | None = None) -> ScanSplit:
    """Load PTBP (Avants et al. 2015), T1 brain scans of children, aligned to a template.

    They are aligned affinely and then by SyN, which leaves less to register than in OASIS, whose
    scans are only affinely aligned. The skull is kept.

    A substitute for OASIS with 4 labels, whose names are inferred from the pictures. As in section
    A.1 of the paper, 64 %, 16 % and 20 % of the scans are for training, validation and testing.
    They are split in the order of the file, because neighbours may be visits of the same child.
    All slices of a scan are in one part; a group is a slice position.

    Args:
        folder: with ``ptbp_axial_8slices_192x160_uint8.npz``, which has ``images`` and
            ``labels``, uint8, both (scans, slices, height, width); or with a folder ``ptbp`` that
            has it; by default the user's cache.
        size: height and width to resize to; by default that of the file.

    Returns:
        Images ``(N, 1, H, W)``, uint8.

    Raises:
        DataError: the file is missing, damaged or not the expected one.
    """
    folder = locate(folder, "ptbp")
    path = folder / FILE
    if not path.is_file():
        raise DataError(
            f"{folder} lacks {FILE}. It cannot be fetched: name a folder that holds it with "
            "--data-dir."
        )
    arrays = read_npz(path, ("images", "labels"))
    images, labels = arrays["images"], arrays["labels"]
    if images.ndim != 4 or images.shape != labels.shape or images.dtype != np.uint8:
        raise DataError(
            f"{path} has images {images.shape} of {images.dtype} and labels {labels.shape}; "
            "expected both (scans, slices, height, width), and images of uint8. Replace it."
        )
    check_labels(path, labels, len(LABEL_NAMES) - 1)
    labels = labels.astype(np.uint8)
    subjects, slices = images.shape[:2]
    if subjects < 5:
        raise DataError(
            f"{path} has {subjects} scans, too few to train, validate and test; expected 5 or "
            "more. Replace it."
        )
    groups = torch.arange(slices).expand(subjects, -1)

    def part(first: int, last: int) -> Scans:
        scans = Scans(
            torch.from_numpy(images[first:last]).flatten(0, 1).unsqueeze(1),
            torch.from_numpy(labels[first:last]).flatten(0, 1),
            groups[first:last].flatten(),
        )
        return scans if size is None else scans.resize(size)

    bounds = 0, round(0.64 * subjects), round(0.80 * subjects), subjects
    train, valid, test = (part(*bounds[i : i + 2]) for i in range(3))
    height, width = train.images.shape[-2:]
    counts = [bounds[i + 1] - bounds[i] for i in range(3)]
    return ScanSplit(
        name="ptbp",
        train=train,
        valid=valid,
        test=test,
        label_names=LABEL_NAMES,
        note=f"PTBP, 4 labels, {height}x{width}, {slices} axial slices of each scan: {counts[0]} "
        f"scans to train, {counts[1]} to validate, {counts[2]} to test",
    )


PTBP = DataSet("ptbp", scans=lambda asked: ptbp(asked.folder, asked.size))
