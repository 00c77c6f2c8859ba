"""NIfTI and npz files: the same as their libraries read, or refused, and never much memory."""

from __future__ import annotations

import gzip
import io
import itertools
import struct
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hyperlight.lab.data.volumes import check_labels, read_nifti, read_npz, to_unit
from hyperlight.lab.errors import DataError

NUMBERS = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]


@contextmanager
def _little_memory(most: int = 100 * 2**20) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def _refused(read: Any, path: Path, *args: Any) -> str:
    with pytest.raises(DataError) as raised:
        read(path, *args)
    assert str(path) in str(raised.value)
    assert "Replace it" in str(raised.value)
    return str(raised.value)


# --- NIfTI ------------------------------------------------------------------------


def _volume(path: Path, values: np.ndarray, kind: Any = nibabel.Nifti1Image, **changes: Any) -> Any:
    image = kind(values, changes.pop("affine", np.eye(4)), dtype=values.dtype)
    image.header.set_slope_inter(*changes.pop("scaling", (1, 0)))
    if changes.pop("big", False):
        image = kind(image.dataobj, image.affine, image.header.as_byteswapped(">"))
    nibabel.save(image, path)
    return nibabel.load(path)


@pytest.mark.parametrize("end", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("number", NUMBERS)
def test_nifti_is_read_as_nibabel_reads_it(
    tmp_path: Path, end: str, kind: Any, number: str
) -> None:
    values = np.arange(60, dtype=number).reshape(5, 4, 3)
    for big, scaling in itertools.product((False, True), ((1, 0), (2.5, -3.25))):
        image = _volume(tmp_path / f"a{end}", values, kind, big=big, scaling=scaling)
        expected = np.asanyarray(image.dataobj)
        found = read_nifti(tmp_path / f"a{end}")
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (1, -1, 1)])
@pytest.mark.parametrize("time", [False, True])
def test_axes_are_turned_as_nibabel_turns_them(
    tmp_path: Path, axes: tuple[int, ...], signs: tuple[int, ...], time: bool
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.diag(signs)[list(axes)] * 1.5
    values = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    image = _volume(tmp_path / "a.nii", values, affine=affine)
    expected = np.asanyarray(nibabel.as_closest_canonical(image).dataobj)
    if time:  # a fourth axis of length 1 changes nothing
        _volume(tmp_path / "a.nii", values[..., None], affine=affine)
    np.testing.assert_array_equal(read_nifti(tmp_path / "a.nii", canonical=True), expected)


def test_extensions_are_left_alone(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.int16).reshape(3, 4)
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 40))
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_array_equal(read_nifti(tmp_path / "a.nii"), values)
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[352:360] = b"\xff" * 8  # its size and code
    (tmp_path / "a.nii").write_bytes(content)
    np.testing.assert_array_equal(read_nifti(tmp_path / "a.nii"), values)


def _header(shape: tuple[int, ...], **changes: Any) -> bytes:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(changes.pop("dtype", np.uint8))
    header.set_data_shape(shape)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    for name, value in changes.items():
        header[name] = value
    return bytes(header.binaryblock) + bytes(4)


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("end", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_header((4, 5)) + bytes(19), "its header says 372 bytes, it has 371"),
        (_header((4, 5)) + bytes(21), "its header says 372 bytes, it has more"),
        (_header((30_000, 30_000, 9)) + bytes(99), "8,100,000,352 bytes, expected at most 2,147"),
        (_header((1000, 1000, 1000)) + bytes(99), "1,000,000,352 bytes, it has 451"),
        (_header((4, 5), magic=b"ni1") + bytes(20), "b'ni1"),
        (_header((4, 5), datatype=9999) + bytes(20), "cannot be read as a NIfTI file"),
        (_header((4, 5), vox_offset=np.nan) + bytes(20), "cannot be read as a NIfTI file"),
        (
            _header((4, 5), scl_slope=1, scl_inter=np.inf) + bytes(20),
            "cannot be read as a NIfTI file",
        ),
        (_header((4, 5))[:200], "cannot be read as a NIfTI file"),
        (b"\x5c\x01\0\0", "cannot be read as a NIfTI file"),
        (b"", "it starts with nothing"),
        (_header((4, 5), dtype="RGB") + bytes(60), "finite real"),
        (_header((4, 5), dtype="c8") + bytes(160), "finite real"),
        (_header((4, 0)), "or none at all"),
    ],
)
def test_nifti_that_is_not_right(tmp_path: Path, end: str, content: bytes, words: str) -> None:
    path = _write(tmp_path / f"a{end}", content)
    with _little_memory(10 * 2**20):
        assert words in _refused(read_nifti, path)


def test_an_affine_of_zeros(tmp_path: Path) -> None:
    content = _header((4, 5, 3), sform_code=1) + bytes(60)
    path = _write(tmp_path / "a.nii", content)
    assert read_nifti(path).shape == (4, 5, 3)
    with pytest.raises(DataError, match=r"a\.nii cannot be read as a NIfTI file"):
        read_nifti(path, canonical=True)


def test_the_checksum_of_gzip_is_compared(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.nii.gz", _header((4, 5)) + bytes(range(20)))
    whole = path.read_bytes()
    values, refused = read_nifti(path), 0
    assert values[3, 4] == 19
    for i in range(8 * 10, 8 * len(whole)):
        damaged = bytearray(whole)
        damaged[i // 8] ^= 1 << i % 8
        path.write_bytes(damaged)
        try:  # some bits of gzip say nothing
            np.testing.assert_array_equal(read_nifti(path), values)
        except DataError:
            refused += 1
    assert refused > 0.95 * 8 * (len(whole) - 10)


def test_a_nifti_file_is_decompressed_no_further_than_it_says(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.nii.gz", _header((4, 5)) + bytes(100 * 2**20))
    with _little_memory(10 * 2**20):
        assert "it has more" in _refused(read_nifti, path)


# --- npz --------------------------------------------------------------------------


def _npy(shape: str, dtype: str = "'|u1'", data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    length = struct.pack("<I" if version == b"\2\0" else "<H", len(header))
    return b"\x93NUMPY" + version + length + header + data


def _npz(
    path: Path, member: bytes, method: int = zipfile.ZIP_DEFLATED, name: str = "a.npy"
) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr(name, member)
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([*NUMBERS, ">f8", ">i2", "?"]).flatmap(
        lambda kind: hnp.arrays(
            kind,
            hnp.array_shapes(min_dims=0, max_dims=4),
            elements={"allow_nan": False, "allow_infinity": False} if "f" in kind else None,
        )
    ),
    st.booleans(),
    st.booleans(),
)
def test_npz_is_read_as_numpy_reads_it(
    tmp_path: Path, values: np.ndarray, compressed: bool, by_column: bool
) -> None:
    save = np.savez_compressed if compressed else np.savez
    values = np.asfortranarray(values) if by_column and values.ndim else values
    save(tmp_path / "a.npz", a=values, b=np.array("text"))
    found = read_npz(tmp_path / "a.npz", ["a"])["a"]
    assert found.dtype == values.dtype
    assert found.shape == values.shape
    assert found.tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (_npy("(100_000_000_000,)"), "(100000000000,) values of uint8 take 100,000,000,0"),
        (_npy("(3,)", data=b"abcd"), "(3,) values of uint8 take"),
        (_npy("(-1, -4)", data=b"abcd"), "(-1, -4) values of uint8 take"),
        (_npy("(4,)", "'|O'", bytes(32)), "holds pickled objects, which are not loaded"),
        (_npy("(1,)", "'<U4'", bytes(16)), "has values of <U4, expected real numbers"),
        (_npy("(1,)", "[('x', '<f4')]", bytes(4)), "expected real numbers"),
        (_npy("(4", data=b"abcd"), "cannot be read as an npz file"),
        (_npy("(" * 500 + ")" * 500), "cannot be read as an npz file"),
        (_npy("(4,)", data=b"abcd", version=b"\3\0"), "has version (3, 0), expected 1.0 or 2.0"),
        (b"\x93NUMPY\2\0\xff\xff\xff\xff{", "cannot be read as an npz file"),
        (b"no array", "cannot be read as an npz file"),
        (b"", "cannot be read as an npz file"),
    ],
)
def test_npz_that_is_not_right(tmp_path: Path, member: bytes, words: str) -> None:
    path = _npz(tmp_path / "a.npz", member)
    with _little_memory(10 * 2**20):
        assert words in _refused(read_npz, path, ["a"])


def test_npz_of_another_kind(tmp_path: Path) -> None:
    good = _npy("(4,)", data=b"abcd")
    path = _npz(tmp_path / "a.npz", good, name="b.npy")
    with pytest.raises(DataError, match=r"lacks 'a'; it has 'b', expected arrays named 'a'"):
        read_npz(path, ["a"])
    assert read_npz(_npz(path, _npy("(4,)", data=b"abcd", version=b"\2\0")), ["a"])["a"][3] == 100
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        assert f"by method {method}" in _refused(read_npz, _npz(path, good, method), ["a"])
    content = bytearray(_npz(path, good).read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    assert "a.npy is encrypted" in _refused(read_npz, path, ["a"])
    file = io.BytesIO()
    np.save(file, np.arange(3))
    path.write_bytes(file.getvalue())
    assert "cannot be read as an npz file" in _refused(read_npz, path, ["a"])


def test_a_member_that_says_another_size_than_it_has(tmp_path: Path) -> None:
    path = _npz(tmp_path / "a.npz", _npy("(4,)", data=b"abcd") + bytes(100 * 2**20))
    with _little_memory(10 * 2**20):
        assert "values of uint8 take" in _refused(read_npz, path, ["a"])
    path = _npz(path, _npy("(3000000000,)", data=b"abcd"))
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\1\2") + 24
    content[start : start + 4] = struct.pack("<I", 3_000_000_000 + len(_npy("(3000000000,)")))
    path.write_bytes(content)
    with _little_memory(10 * 2**20):
        assert "cannot be read as an npz file" in _refused(read_npz, path, ["a"])


@pytest.mark.parametrize("compressed", [False, True])
def test_a_flipped_bit_in_npz(tmp_path: Path, compressed: bool) -> None:
    values = np.arange(12).reshape(3, 4)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "a.npz", a=values)
    whole = (tmp_path / "a.npz").read_bytes()
    refused = 0
    for i in range(0, 8 * len(whole), 7):
        damaged = bytearray(whole)
        damaged[i // 8] ^= 1 << i % 8
        (tmp_path / "a.npz").write_bytes(damaged)
        try:
            np.testing.assert_array_equal(read_npz(tmp_path / "a.npz", ["a"])["a"], values)
        except DataError:
            refused += 1
    assert refused > len(whole) / 3


# --- numbers ------------------------------------------------------------------------

PATH = Path("scan.nii")
LARGEST = np.finfo(np.float64).max


@given(
    st.sampled_from([*NUMBERS, "f2", ">f4", ">i8", "g"]).flatmap(
        lambda kind: hnp.arrays(
            kind,
            st.integers(2, 20),
            elements=st.floats(allow_nan=False, allow_infinity=False)
            if kind == "g"
            else hnp.from_dtype(np.dtype(kind), allow_nan=False, allow_infinity=False),
        )
    )
)
@example(np.array([-1e308, 0.0, 1e308]))
@example(np.array([-LARGEST, LARGEST]))
@example(np.array([LARGEST, np.nextafter(LARGEST, 0)]))
@example(np.array([0.0, 5e-324]))
@example(np.array([0, 2**64 - 1], np.uint64))
@example(np.array([-(2**63), 2**63 - 1]))
@example(np.array([2**62, 2**62 + 1]))
@example(np.array([-5, -3, 3], np.int8))
@example(np.array([False, True]))
@example(np.array([0, 1], "g") * np.finfo("g").max)
@example(np.array([-1, 0, 1], "g") * np.finfo("g").max)
def test_intensities_are_scaled_whatever_they_are(values: np.ndarray) -> None:
    if values.min() == values.max():
        with pytest.raises(DataError, match=r"scan\.nii is .* everywhere; expected a picture"):
            to_unit(PATH, values)
        return
    unit = to_unit(PATH, values)
    assert unit.dtype == np.float32
    assert (unit.min(), unit.max()) == (0.0, 1.0)
    order = np.argsort(values)
    assert (np.diff(unit[order]) >= 0).all()
    np.testing.assert_array_equal(to_unit(PATH, values, values[1:]), unit[1:])


def test_a_part_is_scaled_as_the_whole() -> None:
    image = np.array([[0.0, 10.0], [4.0, 5.0]])
    np.testing.assert_array_equal(to_unit(PATH, image, image[1]), np.float32([0.4, 0.5]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_intensities_that_are_not_finite(value: float) -> None:
    with pytest.raises(DataError, match=r"scan\.nii has intensities that are not finite"):
        to_unit(PATH, np.array([0.0, value, 1.0]))


@pytest.mark.parametrize(
    ("labels", "most"),
    [
        (np.array([0, 2**63], np.uint64), 2**63 - 1),
        (np.array([0.0, 2.0**63]), 2**63 - 1),
        (np.array([0.0, 1e300]), 2**63 - 1),
        (np.array([0.0, np.inf]), 2**63 - 1),
        (np.array([0.0, 0.5]), 3),
        (np.array([0, -1], np.int8), 3),
        (np.array([-0.5, 1]), 3),
        (np.array([0, 4], np.uint8), 3),
    ],
)
def test_labels_that_are_refused(labels: np.ndarray, most: int) -> None:
    upper = "to 3" if most == 3 else r"below 2\^63"
    with pytest.raises(DataError, match=rf"scan\.nii has labels .* whole numbers from 0 {upper}"):
        check_labels(PATH, labels, most)
    check_labels(PATH, labels.clip(0, 3).astype(np.int64).astype(labels.dtype), most)
