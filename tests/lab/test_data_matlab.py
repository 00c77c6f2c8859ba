"""The reader of .mat files: scipy's writer and reader beside it, and files that are not right."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.io import loadmat, savemat
from scipy.sparse import csc_matrix

from hyperlight.lab.data.matlab import read_matrices
from hyperlight.lab.errors import DataError

TYPES = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]
KINDS = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 9, "i8": 12, "u8": 13}
ADVICE = "Delete it and fetch it again."


def _saved(path: Path, content: dict[str, Any], **options: Any) -> Path:
    with path.open("wb") as file:
        savemat(file, content, **options)
    return path


def _element(kind: int, data: bytes, order: str = "<", small: bool = False) -> bytes:
    if small and len(data) <= 4:
        return struct.pack(f"{order}I", len(data) << 16 | kind) + data.ljust(4, b"\0")
    return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8)


def _matrix(
    values: np.ndarray, order: str = "<", small: bool = False, flags: int = 6, name: str = "a"
) -> bytes:
    stored = values.astype(values.dtype.newbyteorder(order))
    return _element(
        14,
        _element(6, struct.pack(f"{order}II", flags, 0), order)
        + _element(5, struct.pack(f"{order}{values.ndim}i", *values.shape), order)
        + _element(1, name.encode(), order, small)
        + _element(KINDS[values.dtype.str[1:]], stored.tobytes("F"), order, small),
        order,
    )


def _file(*elements: bytes, order: str = "<", version: int = 0x0100) -> bytes:
    mark = struct.pack(f"{order}HH", version, 0x4D49)
    return b"MATLAB 5.0 MAT-file".ljust(124) + mark + b"".join(elements)


def _read(tmp_path: Path, content: bytes, names: tuple[str, ...] = ("a",)) -> Any:
    (tmp_path / "x.mat").write_bytes(content)
    return read_matrices(tmp_path / "x.mat", names, ADVICE)


def _refused(tmp_path: Path, content: bytes) -> str:
    with pytest.raises(DataError) as raised:
        _read(tmp_path, content)
    assert str(tmp_path / "x.mat") in str(raised.value)
    assert ADVICE in str(raised.value)
    return str(raised.value)


# --- the same as scipy ------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(TYPES).flatmap(
        lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0))
    ),
    st.booleans(),
)
def test_what_scipy_writes_is_read_as_scipy_reads_it(
    tmp_path: Path, values: np.ndarray, compressed: bool
) -> None:
    content = {"before": np.eye(2), "labels": values, "a_long_name_x": np.arange(3)}
    path = _saved(tmp_path / "x.mat", content, do_compression=compressed)
    expected = loadmat(path)
    found = read_matrices(path, ("labels", "a_long_name_x", "none"), ADVICE)
    assert sorted(found) == ["a_long_name_x", "labels"]
    for name, array in found.items():
        assert array.dtype == expected[name].dtype
        assert array.shape == expected[name].shape
        assert array.tobytes() == expected[name].tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 30])
def test_both_byte_orders_and_small_elements(
    tmp_path: Path, order: str, kind: str, small: bool, count: int
) -> None:
    values = np.arange(2 * count).astype(kind).reshape(2, count)[:, : max(1, count)]
    plain = _matrix(values, order, small)
    packed = struct.pack(f"{order}II", 15, len(zlib.compress(plain))) + zlib.compress(plain)
    for element in (plain, packed):
        found = _read(tmp_path, _file(element, order=order))
        np.testing.assert_array_equal(found["a"], values)
        np.testing.assert_array_equal(found["a"], loadmat(tmp_path / "x.mat")["a"])
        assert found["a"].dtype.newbyteorder("=") == np.dtype(kind)


# --- what is refused ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.array([[1, "a"]], dtype=object), "a cell array"),
        ({"x": 1}, "a structure"),
        ("text", "text"),
        (csc_matrix(np.eye(3)), "a sparse matrix"),
        (np.array([1 + 2j]), "complex numbers"),
    ],
    ids=["cell", "structure", "text", "sparse", "complex"],
)
def test_other_classes_are_refused_where_they_are_asked_for(
    tmp_path: Path, value: Any, words: str
) -> None:
    path = _saved(tmp_path / "x.mat", {"a": value, "b": np.eye(2)})
    message = _refused(tmp_path, path.read_bytes())
    assert f"holds {words} under 'a'; expected a matrix of real numbers" in message
    np.testing.assert_array_equal(read_matrices(path, ("b",), ADVICE)["b"], np.eye(2))


def test_other_formats_are_refused(tmp_path: Path) -> None:
    old = io.BytesIO()
    savemat(old, {"a": np.eye(2)}, format="4")
    assert "it is of MATLAB 4 or not a .mat file; save it with" in _refused(
        tmp_path, old.getvalue()
    )
    message = _refused(tmp_path, _file(version=0x0200))
    assert "it is of version 2, as MATLAB 7.3 writes (HDF5); save it with version 7" in message
    for content in (b"", b"<html>" * 30):
        assert "does not start with the header" in _refused(tmp_path, content)
    assert "cannot be read as a .mat file" in _refused(tmp_path, b"\x89HDF\r\n\x1a\n" + bytes(900))
    with pytest.raises(DataError, match=r"none\.mat cannot be read as a \.mat file"):
        read_matrices(tmp_path / "none.mat", ("a",), ADVICE)


GOOD = np.arange(6, dtype="f8").reshape(2, 3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_file(_matrix(GOOD), _matrix(GOOD)), "it holds 'a' twice"),
        (_file(_element(9, bytes(8))), "an element of type 9, expected matrices"),
        (_file(_matrix(GOOD)[:-8]), "bytes, but"),
        (_file(_matrix(GOOD), b"\0\0\0"), "it ends within the tag of an element"),
        (_file(struct.pack("<II", 14, 2**32 - 1)), "4,294,967,295 bytes, but 0 are left"),
        (_file(_element(14, struct.pack("<II", 5 << 16 | 6, 0))), "a small element has 5 bytes"),
        (_file(_element(14, b"")), "does not start with its class and its dimensions"),
        (_file(_matrix(GOOD).replace(b"\2\0\0\0\3\0\0\0", b"\2\0\0\0\4\0\0\0")), "(2, 4) has 6"),
        (
            _file(_matrix(GOOD).replace(b"\2\0\0\0\3\0\0\0", b"\xfe\xff\xff\xff\xfd\xff\xff\xff")),
            "(-2, -3) has 6",
        ),
        (_file(struct.pack("<II", 15, 4) + b"none"), "cannot be read as a .mat file"),
        (_file(_matrix(GOOD)) + bytes(2**20), "it has more than 1,048,576 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_files(tmp_path: Path, content: bytes, words: str) -> None:
    assert words in _refused(tmp_path, content)


def _packed(inner: bytes) -> bytes:
    data = zlib.compress(inner, 9)
    return _file(struct.pack("<II", 15, len(data)) + data)


def test_a_compressed_element_is_no_larger_than_it_says(tmp_path: Path) -> None:
    good = _matrix(GOOD)
    np.testing.assert_array_equal(_read(tmp_path, _packed(good))["a"], GOOD)
    for inner, words in (
        (good + b"\0", "does not hold the"),
        (good[:-1], "does not hold the"),
        (struct.pack("<II", 14, 2**31), "2,147,483,648 bytes, expected at most 16,777,216"),
        (_packed(good)[128:], "an element of type 15"),
        (b"\0", "cannot be read"),
    ):
        assert words in _refused(tmp_path, _packed(inner))
    cut = zlib.compress(good)[:-4]  # without its checksum
    assert "does not hold the" in _refused(tmp_path, _file(struct.pack("<II", 15, len(cut)) + cut))
    bomb = _packed(good + bytes(100 * 2**20))
    tracemalloc.start()
    try:
        assert "does not hold the" in _refused(tmp_path, bomb)
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compressed", [False, True])
def test_flipped_bits_and_every_cut(tmp_path: Path, compressed: bool) -> None:
    labels = np.arange(9, dtype=np.uint8).reshape(1, 9)
    path = _saved(tmp_path / "s.mat", {"a": labels}, do_compression=compressed)
    whole = path.read_bytes()
    for i in range(0, 8 * len(whole), 3):
        damaged = bytearray(whole)
        damaged[i // 8] ^= 1 << i % 8
        try:
            found = _read(tmp_path, bytes(damaged))
        except DataError:
            continue
        # Compressed elements have a checksum; the name is in all of them.
        if compressed and "a" in found:
            np.testing.assert_array_equal(found["a"], labels)
    for length in range(len(whole)):
        try:
            found = _read(tmp_path, whole[:length])
        except DataError:
            continue
        assert found == {} or np.array_equal(found["a"], labels)
