"""Read scans and label maps from NIfTI and npz files, and check them."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import listed
from ..errors import DataError

__all__ = ["check_labels", "read_nifti", "read_npz", "to_unit"]


def read_nifti(path: Path, *, canonical: bool = False) -> np.ndarray:
    """Read a NIfTI file (``.nii``, ``.nii.gz``), without trailing axes of length 1.

    Args:
        path: the file.
        canonical: turn the axes to left-right, posterior-anterior, inferior-superior.

    Raises:
        DataError: the file is missing or damaged, or has values that are not finite.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Image):
            raise ImageFileError(f"it is a {type(image).__name__}")
        if canonical and image.ndim == 3:
            image = nibabel.as_closest_canonical(image)
        values = np.asanyarray(image.dataobj)
    except (
        *(OSError, EOFError, ValueError, zlib.error, MemoryError, OverflowError),
        *(ImageFileError, HeaderDataError),
    ) as error:
        raise DataError(
            f"{path} cannot be read as a NIfTI file ({error}): it is missing, damaged or cut "
            "short. Replace it."
        ) from error
    while values.ndim > 2 and values.shape[-1] == 1:
        values = values[..., 0]
    return _finite(path, values)


def read_npz(path: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Read named arrays from an npz file, without unpickling anything.

    Raises:
        DataError: the file is missing or damaged, lacks an array, or has values that are not
            finite numbers.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in keys if key not in file.files]
            if missing:
                raise DataError(
                    f"{path} lacks {listed(missing)}; it has {listed(file.files)}, expected "
                    f"arrays named {listed(keys)}. Rename them."
                )
            arrays = {key: file[key] for key in keys}
    except (OSError, EOFError, ValueError, TypeError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as an npz file of numbers ({error}): it is missing, damaged, "
            "cut short or holds pickled objects. Replace it."
        ) from error
    return {key: _finite(path, values) for key, values in arrays.items()}


def _finite(path: Path, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "biuf" or not values.size or not np.isfinite(values).all():
        raise DataError(
            f"{path} has values of {values.dtype} and shape {values.shape} that are not finite "
            "real numbers (or none at all). Replace it."
        )
    return values


def check_labels(path: Path, labels: np.ndarray, most: int | None = None) -> np.ndarray:
    """Convert label values to int64.

    Args:
        path: the file, for error messages.
        labels: as they were read.
        most: largest valid label.

    Raises:
        DataError: a value is not a whole number, below 0 or above ``most``.
    """
    whole = labels.astype(np.int64)
    if (whole != labels).any() or whole.min() < 0 or (most is not None and whole.max() > most):
        upper = "" if most is None else f" to {most}"
        raise DataError(
            f"{path} has labels from {labels.min():g} to {labels.max():g}, or fractions; expected "
            f"whole numbers from 0{upper}. Is it a label map? Replace it."
        )
    return whole


def to_unit(path: Path, image: np.ndarray) -> np.ndarray:
    """Scale intensities to float32 in [0, 1]: the smallest to 0, the largest to 1.

    Raises:
        DataError: all are the same.
    """
    image = image.astype(np.float64)
    low, high = image.min(), image.max()
    if not low < high:
        raise DataError(f"{path} is {low:g} everywhere; expected a picture. Replace it.")
    scaled: np.ndarray = ((image - low) / (high - low)).astype(np.float32)
    return scaled
