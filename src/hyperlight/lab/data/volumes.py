"""Read scans and label maps from NIfTI and npz files, and check them."""

from __future__ import annotations

import io
import logging
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import listed
from ..errors import DataError
from .border import opened, read_up_to, reading

__all__ = ["check_labels", "read_nifti", "read_npz", "to_unit"]

_MOST_BYTES = 2**31  # of a volume, decompressed
_MOST_HEADER = 2**14  # bytes of the header of an array in an npz file; numpy's have about 100


def read_nifti(path: Path, *, canonical: bool = False) -> np.ndarray:
    """Read a NIfTI file (``.nii``, ``.nii.gz``), without trailing axes of length 1.

    Args:
        path: the file.
        canonical: turn the axes to left-right, posterior-anterior, inferior-superior.

    Raises:
        DataError: the file is missing or damaged, or has values that are not finite.
    """
    import nibabel
    from nibabel.volumeutils import apply_read_scaling

    kinds = {348: nibabel.Nifti1Image, 540: nibabel.Nifti2Image}
    with (
        reading(path, "a NIfTI file", "Replace it."),
        np.errstate(all="ignore"),
        opened(path) as file,
    ):
        content = read_up_to(file, 4)
        little, big = int.from_bytes(content, "little"), int.from_bytes(content, "big")
        size = little if little in kinds else big
        if size not in kinds:
            raise ValueError(f"it starts with {content.hex() or 'nothing'}")
        content += read_up_to(file, size - 4)
        header = kinds[size].header_class(bytes(content), check=False)
        header.check_fix(_quiet(), error_level=40)
        if not bytes(header["magic"]).startswith(b"n+"):
            raise ValueError(f"its header says {bytes(header['magic'])!r}, expected one file")
        shape = header.get_data_shape()
        dtype, offset = header.get_data_dtype(), int(header.get_data_offset())
        expected = offset + math.prod(shape) * dtype.itemsize
        if expected > _MOST_BYTES:
            raise ValueError(
                f"{shape} values of {dtype} take {expected:,} bytes, expected at most "
                f"{_MOST_BYTES:,}"
            )
        content += read_up_to(file, expected - len(content) + 1)
        if len(content) != expected:
            found = f"{len(content):,}" if len(content) < expected else "more"
            raise ValueError(f"its header says {expected:,} bytes, it has {found}")
        raw = np.frombuffer(content, dtype, math.prod(shape), offset).reshape(shape, order="F")
        slope, inter = header.get_slope_inter()
        values: np.ndarray = apply_read_scaling(
            raw,
            np.float64(1.0 if slope is None else slope),
            np.float64(0.0 if inter is None else inter),
        )
        while values.ndim > 3 and values.shape[-1] == 1:
            values = values[..., 0]
        if canonical and values.ndim == 3:
            orientation = nibabel.io_orientation(header.get_best_affine())
            values = nibabel.apply_orientation(values, orientation)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    return _finite(path, values)


def _quiet() -> logging.Logger:
    """For nibabel, which otherwise prints what it finds in a header."""
    logger = logging.Logger(__name__)
    logger.addHandler(logging.NullHandler())
    return logger


def read_npz(path: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Read named arrays from an npz file, without unpickling anything.

    Raises:
        DataError: the file is missing or damaged, lacks an array, or has values that are not
            finite numbers.
    """
    with reading(path, "an npz file of numbers", "Replace it."), zipfile.ZipFile(path) as file:
        names = [name.removesuffix(".npy") for name in file.namelist()]
        missing = [key for key in keys if f"{key}.npy" not in file.namelist()]
        if missing:
            raise DataError(
                f"{path} lacks {listed(missing)}; it has {listed(names)}, expected "
                f"arrays named {listed(keys)}. Rename them."
            )
        arrays = {key: _member(file, file.getinfo(f"{key}.npy")) for key in keys}
    return {key: _finite(path, values) for key, values in arrays.items()}


def _member(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Read an array whose size agrees with that of the member of the archive."""
    if member.flag_bits & 1:
        raise ValueError(f"{member.filename} is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(
            f"{member.filename} is compressed by method {member.compress_type}, which numpy does "
            "not write"
        )
    with file.open(member) as stream:
        content = read_up_to(stream, _MOST_HEADER)
        start = io.BytesIO(content)
        version = np.lib.format.read_magic(start)
        if version == (1, 0):
            shape, by_column, dtype = np.lib.format.read_array_header_1_0(start)
        elif version == (2, 0):
            shape, by_column, dtype = np.lib.format.read_array_header_2_0(start)
        else:
            raise ValueError(f"{member.filename} has version {version}, expected 1.0 or 2.0")
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds pickled objects, which are not loaded")
        if dtype.kind not in "biuf":
            raise ValueError(f"{member.filename} has values of {dtype}, expected real numbers")
        count, offset = math.prod(shape), start.tell()
        expected = offset + count * dtype.itemsize
        if min(shape, default=0) < 0 or expected != member.file_size:
            raise ValueError(
                f"{member.filename} has {member.file_size:,} bytes, but {shape} values of {dtype} "
                f"take {expected:,}"
            )
        content += read_up_to(stream, expected - len(content))
    if len(content) != expected:
        raise ValueError(f"{member.filename} ends after {len(content):,} of {expected:,} bytes")
    values = np.frombuffer(content, dtype, count, offset)
    return values.reshape(shape, order="F" if by_column else "C")


def _finite(path: Path, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "biuf" or not values.size or not np.isfinite(values).all():
        raise DataError(
            f"{path} has values of {values.dtype} and shape {values.shape} that are not finite "
            "real numbers (or none at all). Replace it."
        )
    return values


def check_labels(path: Path, labels: np.ndarray, most: int = 2**63 - 1) -> None:
    """Refuse label values that are not whole numbers from 0 to ``most``.

    Args:
        path: the file, for error messages.
        labels: as they were read.
        most: largest valid label.

    Raises:
        DataError: a value is not a whole number, below 0 or above ``most``.
    """
    low, high = labels.min(), labels.max()
    # Compared as Python's integers, which do not overflow.
    inside = np.isfinite(high) and low >= 0 and int(high) <= most
    if not inside or (labels.dtype.kind == "f" and (np.trunc(labels) != labels).any()):
        upper = f" to {most}" if most < 2**63 - 1 else " below 2^63"
        raise DataError(
            f"{path} has labels from {float(low):g} to {float(high):g}, or fractions; expected "
            f"whole numbers from 0{upper}. Is it a label map? Replace it."
        )


def to_unit(path: Path, image: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
    """Scale intensities to float32 in [0, 1]: the smallest to 0, the largest to 1.

    Args:
        path: the file, for error messages.
        image: has the smallest and the largest intensity.
        chosen: the part of the image to return; by default all of it.

    Raises:
        DataError: all are the same, or one is not finite.
    """
    low, high = image.min(), image.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"{path} has intensities that are not finite. Replace it.")
    if not low < high:
        raise DataError(f"{path} is {float(low):g} everywhere; expected a picture. Replace it.")
    part = image if chosen is None else chosen
    if part.dtype.kind in "iu":
        # The differences are exact in uint64, into which negative values wrap around.
        distance = part.astype(np.uint64) - np.uint64(int(low) % 2**64)
        scaled = distance.astype(np.float64) / float(int(high) - int(low))
    else:
        dtype = np.promote_types(part.dtype, np.float64)
        part, low, high = part.astype(dtype), low.astype(dtype), high.astype(dtype)
        with np.errstate(over="ignore"):
            if np.isinf(high - low):
                part, low, high = part / 2, low / 2, high / 2
        scaled = (part - low) / (high - low)
    unit: np.ndarray = scaled.astype(np.float32)
    return unit
