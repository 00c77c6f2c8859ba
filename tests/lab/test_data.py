"""Data sets: what the loaders give, what they refuse, and what a download leaves behind."""

from __future__ import annotations

import gzip
import importlib
import re
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hyperlight.lab.data import Images, digits, fetch_mnist, mnist, stratified_split
from hyperlight.lab.errors import DataError
from tests.lab.making import (
    STEMS,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    Naming,
    archives,
    arrays,
    checksums,
    dotted,
    encoded,
    listing,
    write_idx,
    zipped,
)

# The test part of the digits: its first labels, and the sum of its pixels in units of 1/16.
PINNED_LABELS = [1, 4, 8, 6, 5, 9, 9, 1, 3, 2, 2, 2, 0, 7, 4, 8, 1, 5, 3, 9]
PINNED_SUM = 112_350

# The package exports a function of the module's name.
MODULE = importlib.import_module("hyperlight.lab.data.mnist")


def _counts(labels: Tensor) -> list[int]:
    return torch.bincount(labels, minlength=10).tolist()


def _sorted_rows(images: Tensor, labels: Tensor) -> np.ndarray:
    rows = torch.cat([labels.double().unsqueeze(1), images.double().flatten(1)], dim=1).numpy()
    return rows[np.lexsort(rows.T)]


# --- digits -------------------------------------------------------------------


def test_digits_shapes_types_and_ranges() -> None:
    split = digits()
    assert (split.name, split.classes) == ("digits", 10)
    assert split.train.images.shape == (1437, 1, 8, 8)
    assert split.test.images.shape == (360, 1, 8, 8)
    for part in (split.train, split.test):
        assert part.labels.shape == (len(part),)
        assert part.images.dtype == torch.float32
        assert part.labels.dtype == torch.int64
        assert float(part.images.min()) == 0.0
        assert float(part.images.max()) == 1.0
        assert part.labels.unique().tolist() == list(range(10))
    assert "1,437 images to train, 360 to test" in split.note
    assert "8x8" in split.note


def test_digits_are_scikit_learns_each_in_one_part() -> None:
    from sklearn.datasets import load_digits

    split, bunch = digits(), load_digits()
    images = torch.cat([split.train.images, split.test.images])
    labels = torch.cat([split.train.labels, split.test.labels])
    whole = torch.from_numpy(bunch.images).unsqueeze(1) / 16.0
    expected = _sorted_rows(whole, torch.from_numpy(bunch.target))
    np.testing.assert_array_equal(_sorted_rows(images, labels), expected)


def test_digits_are_split_in_proportion() -> None:
    split = digits()
    for kept, held_out in zip(_counts(split.train.labels), _counts(split.test.labels), strict=True):
        assert abs(held_out - 0.2 * (kept + held_out)) < 1.0


def test_digits_are_always_split_the_same_way() -> None:
    first = digits()
    np.random.seed(123)
    torch.manual_seed(123)
    second = digits()
    assert torch.equal(first.train.images, second.train.images)
    assert torch.equal(first.test.images, second.test.images)
    assert torch.equal(first.test.labels, second.test.labels)
    # Fixed once: figures of the past stay comparable.
    assert first.test.labels[:20].tolist() == PINNED_LABELS
    assert int(first.test.images.double().mul(16).sum()) == PINNED_SUM


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_stratified_split_is_a_partition_in_order(share: float) -> None:
    labels = np.repeat(np.arange(4), [40, 20, 20, 120])
    kept, held_out = stratified_split(labels, share, seed=3)
    assert sorted(kept + held_out) == list(range(200))
    assert kept == sorted(kept)
    assert held_out == sorted(held_out)
    expected = [round(share * count) for count in (40, 20, 20, 120)]
    assert np.bincount(labels[held_out]).tolist() == expected
    assert stratified_split(labels, share, seed=3) == (kept, held_out)
    assert stratified_split(labels, share, seed=4) != (kept, held_out)


def test_images_are_indexed_and_moved_with_their_labels() -> None:
    data = Images(torch.arange(12.0).reshape(3, 1, 2, 2), torch.tensor([7, 8, 9]))
    assert len(data) == 3
    for index in ([2, 0], torch.tensor([2, 0])):
        part = data[index]
        assert part.labels.tolist() == [9, 7]
        assert part.images[:, 0, 0, 0].tolist() == [8.0, 0.0]
    moved = data.to(torch.device("meta"))
    assert moved.images.is_meta
    assert moved.labels.is_meta


# --- MNIST from a folder --------------------------------------------------------


def _mixed(stem: str) -> str:
    return {
        TRAIN_IMAGES: zipped(stem),
        TRAIN_LABELS: dotted(stem),
        TEST_IMAGES: zipped(dotted(stem)),
        TEST_LABELS: stem,
    }[stem]


@pytest.mark.parametrize(
    "naming",
    [str, zipped, dotted, lambda stem: zipped(dotted(stem)), _mixed],
    ids=["raw", "gzipped", "dotted", "dotted and gzipped", "mixed"],
)
def test_mnist_reads_idx_files(tmp_path: Path, naming: Naming) -> None:
    contents = arrays()
    split = mnist(write_idx(tmp_path, contents, naming))
    assert (split.name, split.classes) == ("mnist", 10)
    assert split.train.images.shape == (80, 1, 28, 28)
    assert split.test.images.shape == (20, 1, 28, 28)
    assert split.train.images.dtype == split.test.images.dtype == torch.float32
    assert split.train.labels.dtype == split.test.labels.dtype == torch.int64
    np.testing.assert_array_equal(
        split.test.images.squeeze(1).numpy(), contents[TEST_IMAGES].astype(np.float32) / 255.0
    )
    np.testing.assert_array_equal(split.test.labels.numpy(), contents[TEST_LABELS])


def test_mnist_trains_on_four_fifths_of_the_training_part(tmp_path: Path) -> None:
    contents = arrays(train=200)
    split = mnist(write_idx(tmp_path, contents))
    assert _counts(split.train.labels) == [16] * 10
    originals = {
        image.tobytes(): int(label)
        for image, label in zip(contents[TRAIN_IMAGES], contents[TRAIN_LABELS], strict=True)
    }
    pixels = split.train.images.mul(255.0).round().to(torch.uint8).squeeze(1).numpy()
    keys = [image.tobytes() for image in pixels]
    assert len(set(keys)) == 160
    assert [originals[key] for key in keys] == split.train.labels.tolist()
    again = mnist(tmp_path)
    assert torch.equal(again.train.images, split.train.images)


def test_mnist_says_what_the_files_are(tmp_path: Path) -> None:
    note = mnist(write_idx(tmp_path)).note
    assert "not the official MNIST" in note
    assert "80 images to train (20 held out), 20 to test" in note


@pytest.mark.parametrize("naming", [str, zipped])
def test_mnist_knows_the_official_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, naming: Naming
) -> None:
    contents = arrays()
    raw = {zipped(stem): encoded(array) for stem, array in contents.items()}
    monkeypatch.setattr(MODULE, "CONTENTS", checksums(raw))
    write_idx(tmp_path, contents, naming)
    assert mnist(tmp_path).note.startswith("MNIST, 28x28: ")
    assert "the official MNIST" in fetch_mnist(tmp_path, downloader=_never)
    assert "not the official" not in fetch_mnist(tmp_path, downloader=_never)
    for stem in STEMS:  # one pixel or label that differs is enough
        changed = dict(contents)
        changed[stem] = contents[stem].copy()
        changed[stem].flat[0] = 5
        write_idx(tmp_path, changed, naming)
        assert "not the official MNIST" in mnist(tmp_path).note
        assert "not the official MNIST" in fetch_mnist(tmp_path, downloader=_never)


def test_a_raw_file_is_preferred_to_its_archive(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / zipped(TEST_LABELS)).write_bytes(b"not gzip")
    assert len(mnist(tmp_path).test) == 20


def test_mnist_reads_the_users_cache_unless_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / project)
    write_idx(tmp_path / "hyperlight" / "mnist")
    assert len(mnist().test) == 20
    assert str(tmp_path / "hyperlight" / "mnist") in fetch_mnist(downloader=_never)


# --- MNIST: what is refused -----------------------------------------------------


def _refused(folder: Path) -> str:
    """The refusal, the same words whether the folder is loaded or checked."""
    with pytest.raises(DataError) as raised:
        mnist(folder)
    with pytest.raises(DataError, match=re.escape(str(raised.value))):
        fetch_mnist(folder, downloader=_never)
    return str(raised.value)


ADVICE = re.compile(r"delete|put|choose|name a folder", re.IGNORECASE)


@pytest.mark.parametrize("stem", STEMS)
def test_a_missing_file_is_named(tmp_path: Path, stem: str) -> None:
    write_idx(tmp_path, naming=zipped)
    (tmp_path / zipped(stem)).unlink()
    with pytest.raises(DataError) as raised:
        mnist(tmp_path)
    message = str(raised.value)
    assert f"{tmp_path} lacks {stem} " in message
    assert "with .gz" in message
    assert f"`hyperlight data mnist --data-dir {tmp_path}`" in message
    assert not any(other in message for other in STEMS if other != stem)


@pytest.mark.parametrize("make", [True, False], ids=["empty", "not there"])
def test_all_missing_files_are_named(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "mnist"
    if make:
        folder.mkdir()
    with pytest.raises(DataError) as raised:
        mnist(folder)
    message = str(raised.value)
    assert str(folder) in message
    assert all(stem in message for stem in STEMS)
    assert f"`hyperlight data mnist --data-dir {folder}`" in message
    assert folder.exists() == make


def test_a_folder_with_the_name_of_a_file_is_no_file(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / TEST_LABELS).unlink()
    (tmp_path / TEST_LABELS).mkdir()
    with pytest.raises(DataError, match=f"lacks {TEST_LABELS} "):
        mnist(tmp_path)


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("change", [-1, 1], ids=["short", "long"])
def test_a_raw_file_of_the_wrong_length(tmp_path: Path, stem: str, change: int) -> None:
    write_idx(tmp_path)
    whole = (tmp_path / stem).read_bytes()
    (tmp_path / stem).write_bytes(whole[:-1] if change < 0 else whole + b"\0")
    message = _refused(tmp_path)
    assert str(tmp_path / stem) in message
    assert f"{len(whole) + change:,} bytes" in message
    assert f"{len(whole):,}" in message
    assert "damaged or cut short" in message
    assert "fetch it again" in message.lower()


def test_advice_on_a_damaged_file_can_be_followed(tmp_path: Path) -> None:
    # A file that is there is never fetched again: the advice must be to delete it first.
    write_idx(tmp_path)
    (tmp_path / TEST_LABELS).write_bytes(encoded(arrays()[TEST_LABELS])[:-1])
    assert re.search("delete", _refused(tmp_path), re.IGNORECASE)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("stem", [TRAIN_IMAGES, TEST_LABELS])
def test_a_gzipped_file_that_is_cut_short(tmp_path: Path, stem: str, keep: float) -> None:
    write_idx(tmp_path, naming=zipped)
    path = tmp_path / zipped(stem)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    message = _refused(tmp_path)
    assert str(path) in message
    if keep:  # nothing at all is an empty archive, which reads as an empty file
        assert "damaged or cut short" in message
        assert "Delete it" in message
        assert "`hyperlight data mnist`" in message


def test_a_gzipped_file_that_is_not(tmp_path: Path) -> None:
    write_idx(tmp_path, naming=zipped)
    path = tmp_path / zipped(TRAIN_LABELS)
    path.write_bytes(encoded(arrays()[TRAIN_LABELS]))
    message = _refused(tmp_path)
    assert f"{path} cannot be read" in message
    assert "gzip" in message
    assert "Delete it" in message


@pytest.mark.parametrize("block", [False, True], ids=["a bit", "a block"])
def test_a_gzipped_file_that_was_altered(tmp_path: Path, block: bool) -> None:
    write_idx(tmp_path, naming=zipped)
    path = tmp_path / zipped(TRAIN_IMAGES)
    whole = bytearray(path.read_bytes())
    if block:
        whole[10] = 0x07  # right after the header: a kind of block that does not exist
    else:
        whole[len(whole) // 2] ^= 0x10
    path.write_bytes(bytes(whole))
    message = _refused(tmp_path)
    assert f"{path} cannot be read" in message
    assert "Delete it" in message


@pytest.mark.parametrize(
    ("stem", "content", "found", "expected"),
    [
        (TRAIN_IMAGES, encoded(arrays()[TRAIN_LABELS]), "00000801", "00000803"),
        (TEST_LABELS, encoded(arrays()[TEST_IMAGES]), "00000803", "00000801"),
        (TEST_IMAGES, b"\0\0\x0d\x03" + b"\0" * 40, "00000d03", "00000803"),
        (TRAIN_LABELS, b"<html><body>", "3c68746d", "00000801"),
        (TRAIN_LABELS, b"", "nothing", "00000801"),
        (TRAIN_IMAGES, b"\0\0\x08\x03\0\0", "00000803", "00000803"),
    ],
    ids=["labels for images", "images for labels", "floats", "a web page", "empty", "header cut"],
)
def test_a_file_of_another_kind(
    tmp_path: Path, stem: str, content: bytes, found: str, expected: str
) -> None:
    write_idx(tmp_path)
    (tmp_path / stem).write_bytes(content)
    message = _refused(tmp_path)
    assert f"{tmp_path / stem} is not an IDX file" in message
    assert f"starts with {found}" in message
    assert f"expected {expected}" in message


def test_advice_on_a_file_of_another_kind(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / TRAIN_LABELS).write_bytes(b"<html><body>")
    assert ADVICE.search(_refused(tmp_path))


def test_sizes_whose_product_overflows(tmp_path: Path) -> None:
    write_idx(tmp_path)
    header = bytes((0, 0, 8, 3)) + struct.pack(">3I", 2**31, 2**31, 4)  # 2^64 in all
    (tmp_path / TRAIN_IMAGES).write_bytes(header)
    assert str(tmp_path / TRAIN_IMAGES) in _refused(tmp_path)


@pytest.mark.parametrize("shape", [(4_000_000, 28, 28), (2**31, 28, 28), (50, 2**31, 28)])
def test_sizes_that_are_too_large_or_differ_take_no_memory(
    tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    write_idx(tmp_path)
    header = bytes((0, 0, 8, 3)) + struct.pack(">3I", *shape)
    (tmp_path / TRAIN_IMAGES).unlink()
    bomb = gzip.compress(header + bytes(200 * 2**20), 1)
    (tmp_path / zipped(TRAIN_IMAGES)).write_bytes(bomb)
    tracemalloc.start()
    try:
        message = _refused(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()
    assert "expected at most 1,073,741,824" in message
    assert str(tmp_path / zipped(TRAIN_IMAGES)) in message


def test_a_gzipped_file_is_read_no_further_than_it_says(tmp_path: Path) -> None:
    write_idx(tmp_path, naming=zipped)
    path = tmp_path / zipped(TRAIN_IMAGES)
    path.write_bytes(gzip.compress(encoded(arrays()[TRAIN_IMAGES]) + bytes(200 * 2**20), 1))
    tracemalloc.start()
    try:
        assert f"{path} has more bytes; its header says (100, 28, 28)" in _refused(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


def test_every_flipped_bit_of_a_gzipped_file_is_seen(tmp_path: Path) -> None:
    labels = write_idx(tmp_path, naming=zipped) / zipped(TEST_LABELS)
    whole, expected, refused = labels.read_bytes(), mnist(tmp_path).test.labels, 0
    for i in range(8 * 10, 8 * len(whole), 3):
        damaged = bytearray(whole)
        damaged[i // 8] ^= 1 << i % 8
        labels.write_bytes(damaged)
        try:
            assert torch.equal(mnist(tmp_path).test.labels, expected)
        except DataError:
            refused += 1
    assert refused > 1.9 * len(whole)


@pytest.mark.parametrize(
    ("part", "images", "labels"), [("train", TRAIN_IMAGES, TRAIN_LABELS), ("t10k", *STEMS[2:])]
)
def test_counts_that_differ(tmp_path: Path, part: str, images: str, labels: str) -> None:
    contents = arrays(train=1200, test=1200)
    contents[labels] = contents[labels][:-3]
    message = _refused(write_idx(tmp_path, contents))
    assert f"{tmp_path} has 1,200 {part} images and 1,197 {part} labels" in message
    assert "expected as many" in message


@pytest.mark.parametrize("shape", [(28, 27), (27, 28), (32, 32), (0, 0)])
@pytest.mark.parametrize("stem", [TRAIN_IMAGES, TEST_IMAGES])
def test_images_of_another_size(tmp_path: Path, stem: str, shape: tuple[int, int]) -> None:
    contents = arrays()
    contents[stem] = np.zeros((len(contents[stem]), *shape), np.uint8)
    message = _refused(write_idx(tmp_path, contents))
    assert f"{stem.partition('-')[0]} images of {shape}" in message
    assert "expected (28, 28)" in message


@pytest.mark.parametrize("stem", [TRAIN_LABELS, TEST_LABELS])
@pytest.mark.parametrize("label", [10, 255])
def test_labels_above_nine(tmp_path: Path, stem: str, label: int) -> None:
    contents = arrays()
    contents[stem][4] = label
    message = _refused(write_idx(tmp_path, contents))
    assert f"{stem.partition('-')[0]} images" in message
    assert f"labels up to {label}" in message
    assert "labels 0 to 9" in message


def test_advice_on_files_that_do_not_fit(tmp_path: Path) -> None:
    contents = arrays()
    contents[TRAIN_LABELS][4] = 10
    assert ADVICE.search(_refused(write_idx(tmp_path, contents)))


@pytest.mark.parametrize(
    "labels",
    [[*range(9)] * 10 + [9], [*range(10)] * 2, [0, 1, 2], [3], []],
    ids=["one of a class", "two of each", "one of each", "one", "none"],
)
def test_too_few_images_of_a_class_to_split(tmp_path: Path, labels: list[int]) -> None:
    contents = arrays(train=len(labels))
    contents[TRAIN_LABELS] = np.array(labels, np.uint8)
    write_idx(tmp_path, contents)
    with pytest.raises(DataError) as raised:
        mnist(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert "train" in str(raised.value)


def test_a_test_part_without_images(tmp_path: Path) -> None:
    write_idx(tmp_path, arrays(test=0))
    with pytest.raises(DataError) as raised:
        mnist(tmp_path)
    assert str(tmp_path) in str(raised.value)


# --- fetching -------------------------------------------------------------------

Downloader = Callable[[str, Any, Any], None]


def _never(url: str, output_file: Any, pooch_object: Any) -> None:
    raise AssertionError(f"{url} was asked for")


class _Server:
    """Gives the files that it has and remembers what it was asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[str] = []

    def __call__(self, url: str, output_file: Any, pooch_object: Any) -> None:
        self.asked.append(url)
        Path(output_file).write_bytes(self.files[url.rpartition("/")[2]])


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Archives of synthetic images that the module takes for the official ones."""
    made = archives()
    monkeypatch.setattr(MODULE, "ARCHIVES", checksums(made))
    return made


URL = "https://example.org/mnist/"


@pytest.mark.parametrize("url", [URL, URL.rstrip("/")])
def test_all_four_files_are_fetched(tmp_path: Path, files: dict[str, bytes], url: str) -> None:
    folder, server = tmp_path / "a" / "b", _Server(files)
    line = fetch_mnist(folder, url=url, downloader=server)
    assert server.asked == [f"{URL}{zipped(stem)}" for stem in STEMS]
    assert listing(folder) == sorted(files)
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert len(mnist(folder).train) == 80
    assert str(folder) in line
    assert all(f"{name}" in line for name in files)
    assert "100 training and 20 test images" in line


def test_a_second_call_fetches_nothing(tmp_path: Path, files: dict[str, bytes]) -> None:
    fetch_mnist(tmp_path, url=URL, downloader=_Server(files))
    line = fetch_mnist(tmp_path, url=URL, downloader=_never)
    assert "fetched" not in line
    assert "100 training and 20 test images" in line


def test_only_what_is_missing_is_fetched(tmp_path: Path, files: dict[str, bytes]) -> None:
    write_idx(tmp_path, naming=dotted)
    (tmp_path / dotted(TRAIN_LABELS)).unlink()
    server = _Server(files)
    line = fetch_mnist(tmp_path, url=URL, downloader=server)
    assert server.asked == [URL + zipped(TRAIN_LABELS)]
    assert f"fetched {zipped(TRAIN_LABELS)};" in line
    assert len(mnist(tmp_path).train) == 80


def test_the_default_source_is_https(tmp_path: Path, files: dict[str, bytes]) -> None:
    server = _Server(files)
    fetch_mnist(tmp_path, downloader=server)
    assert len(server.asked) == 4
    assert all(re.fullmatch(r"https://[^/]+/(.+/)?[^/]+\.gz", url) for url in server.asked)


@pytest.mark.parametrize("naming", [str, zipped, dotted, _mixed])
def test_files_that_are_there_are_not_fetched(tmp_path: Path, naming: Naming) -> None:
    write_idx(tmp_path, naming=naming)
    before = listing(tmp_path)
    line = fetch_mnist(tmp_path, downloader=_never)
    assert listing(tmp_path) == before
    assert str(tmp_path) in line
    assert "not the official MNIST" in line
    assert "100 training and 20 test images" in line


@pytest.mark.parametrize(
    "url", ["http://example.org/mnist/", "ftp://example.org/", "file:///mnist/", "example.org", ""]
)
def test_other_protocols_are_refused(tmp_path: Path, url: str) -> None:
    folder = tmp_path / "mnist"
    with pytest.raises(DataError, match="is not https") as raised:
        fetch_mnist(folder, url=url, downloader=_never)
    assert repr(url) in str(raised.value)
    assert not folder.exists()


def test_a_wrong_checksum_leaves_nothing(tmp_path: Path) -> None:
    folder, server = tmp_path / "mnist", _Server(archives())  # not the official ones
    with pytest.raises(DataError) as raised:
        fetch_mnist(folder, url=URL, downloader=server)
    message = str(raised.value)
    assert zipped(TRAIN_IMAGES) in message
    assert URL in message
    assert "sha256" in message
    assert "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609" in message
    assert "Nothing was kept" in message
    assert f"into {folder}" in message
    assert len(server.asked) == 1
    assert listing(folder) == []


def test_a_wrong_checksum_later_on_keeps_what_was_right(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    broken = {**files, zipped(TEST_IMAGES): files[zipped(TEST_IMAGES)] + b"\0"}
    with pytest.raises(DataError, match=re.escape(zipped(TEST_IMAGES))):
        fetch_mnist(tmp_path, url=URL, downloader=_Server(broken))
    assert listing(tmp_path) == sorted(zipped(stem) for stem in (TRAIN_IMAGES, TRAIN_LABELS))
    server = _Server(files)
    fetch_mnist(tmp_path, url=URL, downloader=server)
    assert server.asked == [URL + zipped(TEST_IMAGES), URL + zipped(TEST_LABELS)]


@pytest.mark.parametrize(
    "error", [ConnectionError("reset by peer"), OSError(28, "No space left"), RuntimeError("odd")]
)
def test_a_broken_connection_leaves_nothing(
    tmp_path: Path, files: dict[str, bytes], error: Exception
) -> None:
    written = []

    def half(url: str, output_file: Any, pooch_object: Any) -> None:
        data = files[url.rpartition("/")[2]]
        Path(output_file).write_bytes(data[: len(data) // 2])
        written.append(Path(output_file))
        raise error

    folder = tmp_path / "mnist"
    with pytest.raises(DataError) as raised:
        fetch_mnist(folder, url=URL, downloader=half)
    message = str(raised.value)
    assert zipped(TRAIN_IMAGES) in message
    assert URL in message
    assert str(error) in message
    assert "Nothing of it was kept" in message
    assert "try again" in message
    assert raised.value.__cause__ is error
    assert len(written) == 1
    assert not written[0].exists()
    assert listing(folder) == []


def test_an_address_that_cannot_be_used_is_not_a_wrong_checksum(tmp_path: Path) -> None:
    # Of requests' errors some are ValueErrors, as the one for a checksum is.
    def invalid(url: str, output_file: Any, pooch_object: Any) -> None:
        from requests.exceptions import InvalidURL

        raise InvalidURL("no host supplied")

    with pytest.raises(DataError) as raised:
        fetch_mnist(tmp_path, url=URL, downloader=invalid)
    assert "no host supplied" in str(raised.value)
    assert "sha256" not in str(raised.value)
    assert listing(tmp_path) == []


def test_an_interrupted_download_leaves_nothing(tmp_path: Path, files: dict[str, bytes]) -> None:
    def interrupted(url: str, output_file: Any, pooch_object: Any) -> None:
        Path(output_file).write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_mnist(tmp_path, url=URL, downloader=interrupted)
    assert listing(tmp_path) == []


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mnist"
    path.write_text("a file")
    with pytest.raises(DataError, match=r"is a file; expected a folder.* another --data-dir") as e:
        fetch_mnist(path, downloader=_never)
    assert str(path) in str(e.value)
    assert path.read_text() == "a file"


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(DataError, match="could not be fetched"):
        fetch_mnist(tmp_path / "file" / "below", downloader=_never)


def test_a_damaged_file_that_is_there_is_reported_not_replaced(tmp_path: Path) -> None:
    write_idx(tmp_path, naming=zipped)
    path = tmp_path / zipped(TEST_LABELS)
    path.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(DataError, match=re.escape(str(path))):
        fetch_mnist(tmp_path, downloader=_never)
    assert gzip.decompress(path.read_bytes()) == b"something else"
