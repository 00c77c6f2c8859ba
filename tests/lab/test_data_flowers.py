"""Flowers-102: small files of the official layout, made here, and the real ones where they are."""

from __future__ import annotations

import hashlib
import importlib
import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat, savemat

from hyperlight.lab.cli import main
from hyperlight.lab.data import fetch_flowers102, flowers102
from hyperlight.lab.data.fetch import Remote
from hyperlight.lab.errors import DataError
from tests.lab.making import REAL_DATA, listing, needs_real_data

MODULE = importlib.import_module("hyperlight.lab.data.flowers")
CLASSES = 4
COUNT = 60  # 20 to train, 20 to validate, 20 to test


def _image(i: int) -> bytes:
    """A picture, wider than high, whose colour says which one it is; its outer thirds are black."""
    pixels = np.zeros((24, 72, 3), np.uint8)
    pixels[:, 24:48] = (4 * i, 255 - 4 * i, 100)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=100, subsampling=0)
    return file.getvalue()


def _images() -> dict[str, bytes]:
    return {f"jpg/image_{i:05d}.jpg": _image(i) for i in range(1, COUNT + 1)}


def _labels() -> np.ndarray:
    return (np.arange(COUNT) % CLASSES + 1).astype(np.uint8)


def _parts() -> dict[str, np.ndarray]:
    ids = np.arange(1, COUNT + 1, dtype=np.uint16).reshape(3, 20)
    return {"tstid": ids[0], "trnid": ids[1], "valid": ids[2]}


def _mats(
    labels: np.ndarray | None = None, parts: dict[str, np.ndarray] | None = None
) -> dict[str, bytes]:
    made = {}
    for name, content in (
        ("imagelabels.mat", {"labels": _labels() if labels is None else labels}),
        ("setid.mat", _parts() if parts is None else parts),
    ):
        file = io.BytesIO()
        savemat(file, content, do_compression=True)
        made[name] = file.getvalue()
    return made


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def _zip(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def _tgz(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _write(tmp_path / "flowers102", {**_mats(), **_images()})


def _refused(folder: Path) -> str:
    with pytest.raises(DataError) as raised:
        flowers102(folder, 16)
    assert str(folder) in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("above", [False, True])
def test_parts_labels_and_pictures_belong_together(
    tmp_path: Path, zipped: bool, above: bool
) -> None:
    place = _write(tmp_path / "flowers102", _mats())
    if zipped:
        _zip(place / "any.zip", _images())
    else:
        _write(place, _images())
    split = flowers102(tmp_path if above else place, 16, whole=False)
    assert split.valid is not None
    assert [len(part) for part in (split.train, split.valid, split.test)] == [16, 4, 20]
    for part, first in ((split.train, 21), (split.valid, 21), (split.test, 1)):
        assert part.images.shape == (len(part), 3, 16, 16)
        assert part.images.dtype == torch.uint8
        # The central square alone: no black.
        assert int(part.images[:, 2].min()) > 80
        ids = (part.images[:, 0, 4:12, 4:12].double().mean(dim=(1, 2)) / 4).round().long()
        assert int(ids.min()) >= first
        assert int(ids.max()) < first + 20
        assert torch.equal(part.labels, (ids - 1) % CLASSES)
        assert torch.bincount(part.labels).tolist() == [len(part) // CLASSES] * CLASSES
    assert split.augment is None
    assert "16 images to train, 4 to validate, 20 to test" in split.note
    assert "labels that are not official" in split.note
    assert "16x16 from images of up to 72 pixels" in split.note


def test_images_to_train_are_whole_for_augmentation(folder: Path) -> None:
    split = flowers102(folder, 16)
    assert split.train.images.shape == (16, 3, 32, 32)
    assert split.train.aspect is not None
    assert split.train.aspect.tolist() == [3.0] * 16
    assert float(split.train.images[..., :8].float().mean()) < 10.0  # the black third
    assert float(split.test.images[:, 2].float().mean()) > 90.0
    assert split.augment is not None
    batch = split.augment(split.train, torch.Generator().manual_seed(0))
    assert batch.images.shape == (16, 3, 16, 16)
    assert flowers102(folder, 50).train.images.shape[-1] == 72  # no larger than there is


def test_the_official_validation_part_can_be_trained_with(folder: Path) -> None:
    split = flowers102(folder, 8, use_valid=True)
    assert split.valid is not None
    assert [len(part) for part in (split.train, split.valid, split.test)] == [32, 8, 20]


def test_large_arrays_are_kept_and_made_again_when_a_file_changes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache")
    monkeypatch.setattr("hyperlight.lab.data.pictures.KEEP_ABOVE", 0)
    first = flowers102(folder, 16)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache" / "decoded").iterdir()}
    assert len(kept) == 6
    second = flowers102(folder, 16)
    assert torch.equal(first.train.images, second.train.images)
    assert second.train.aspect is not None
    assert second.train.aspect.tolist() == [3.0] * 16
    assert kept == {p: p.stat().st_mtime_ns for p in (tmp_path / "cache" / "decoded").iterdir()}
    second.test.images.zero_()  # of the copy in memory, not of the file
    assert torch.equal(flowers102(folder, 16).test.images, first.test.images)
    (folder / "jpg" / "image_00001.jpg").write_bytes(_image(50) + b"\0")
    assert not torch.equal(flowers102(folder, 16).test.images, first.test.images)
    for damage in (
        lambda content: b"\x93NUMPY",
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:],
        lambda content: content[:-4],
    ):
        for end in (".npy", ".aspect"):
            for path in (tmp_path / "cache" / "decoded").iterdir():
                path.unlink()
            flowers102(folder, 16)
            for path in (tmp_path / "cache" / "decoded").glob(f"*{end}"):
                content = path.read_bytes()
                path.unlink()  # replaced, since what is mapped must not be cut
                path.write_bytes(damage(content))
            again = flowers102(folder, 16)
            assert torch.equal(again.train.images, first.train.images)
            assert again.train.aspect is not None
            assert again.train.aspect.tolist() == [3.0] * 16


def test_without_space_for_it_all_goes_on_in_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = flowers102(folder, 16)
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache")
    monkeypatch.setattr("hyperlight.lab.data.pictures.KEEP_ABOVE", 0)
    with pytest.warns(UserWarning, match="could not be written"):
        split = flowers102(folder, 16)
    assert torch.equal(split.train.images, expected.train.images)


# --- what is refused ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["imagelabels.mat", "setid.mat"])
def test_missing_files_are_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    message = _refused(folder)
    assert f"lacks {name}." in message
    assert f"`hyperlight data flowers102 --data-dir {folder}`" in message


def test_missing_images_are_named(folder: Path) -> None:
    (folder / "jpg" / "image_00007.jpg").unlink()
    message = _refused(folder)
    assert "has 59 images and 60 labels (image_00007.jpg missing)" in message
    for path in (folder / "jpg").iterdir():
        path.unlink()
    assert "image_00001.jpg, image_00002.jpg, image_00003.jpg and more missing" in _refused(folder)
    (folder / "jpg").rmdir()
    assert "lacks the images" in _refused(folder)


@pytest.mark.parametrize("name", ["imagelabels.mat", "setid.mat"])
@pytest.mark.parametrize("content", [b"", b"<html>", None], ids=["empty", "a page", "cut short"])
def test_mat_files_that_are_damaged(folder: Path, name: str, content: bytes | None) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) - 30] if content is None else content)
    message = _refused(folder)
    assert f"{folder / name} cannot be read" in message
    assert "Delete it" in message


@pytest.mark.parametrize("value", [0, 103, 255])
def test_labels_out_of_range(folder: Path, value: int) -> None:
    labels = _labels()
    labels[5] = value
    _write(folder, _mats(labels=labels))
    assert f"{min(value, 1)} to {max(value, 4)}; expected 1 to 102" in _refused(folder)


def test_labels_of_another_kind(folder: Path) -> None:
    _write(folder, _mats(labels=_labels() + 0.5))
    assert "under 'labels'; expected whole numbers" in _refused(folder)
    parts = _parts()
    del parts["valid"]
    _write(folder, _mats(parts=parts))
    assert "holds nothing under 'valid'" in _refused(_write(folder, _mats(parts=parts)))


@pytest.mark.parametrize("value", [0, 61, 1])
def test_ids_out_of_range_or_twice(folder: Path, value: int) -> None:
    parts = _parts()
    parts["trnid"][0] = value
    _write(folder, _mats(parts=parts))
    message = _refused(folder)
    assert "expected each of 1 to 60 at most once" in message
    assert ("1 of them twice" in message) == (value == 1)


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "cut short"])
def test_a_damaged_image_is_named(folder: Path, content: bytes | None) -> None:
    path = folder / "jpg" / "image_00025.jpg"
    path.write_bytes(_image(25)[:-200] if content is None else content)
    message = _refused(folder)
    assert f"{path} cannot be read as an image" in message
    assert "Replace it or remove it" in message


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    place = _write(tmp_path / "f", _mats())
    path = _zip(place / "any.zip", _images())
    whole = bytearray(path.read_bytes())
    path.write_bytes(whole[:-100])
    assert f"{path} cannot be read as a zip archive" in _refused(place)
    whole[len(whole) // 3] ^= 0xFF
    path.write_bytes(whole)
    assert f"{path}/jpg/image_000" in _refused(place)
    _zip(path, {**_images(), "jpg/image_00001.jpg": bytes(64 * 2**20 + 1)})
    assert "expected images of at most 64 MiB" in _refused(place)
    _zip(place / "second.zip", _images())
    assert "found 2 zip archives" in _refused(place)


def test_archives_that_cannot_be_read_as_they_are(tmp_path: Path) -> None:
    place = _write(tmp_path / "f", _mats())
    path = _zip(place / "any.zip", _images())
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    assert f"{path} holds 'jpg/image_00001.jpg', which is encrypted; expected" in _refused(place)
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("jpg/image_00001.jpg", b"x")
        assert f"which is compressed by method {method}; expected" in _refused(place)
    _zip(path, {**_images(), "again/image_00001.jpg": _image(2)})
    assert "holds 'again/image_00001.jpg', which is there twice" in _refused(place)
    _zip(path, {**_images(), "notes/": b"", "notes/image.txt": b"more", "image_1.jpg": b""})
    assert len(flowers102(place, 8).test) == 20
    path.write_bytes(b"PK\5\6" + b"\xff" * 18)
    assert f"{path} cannot be read as a zip archive" in _refused(place)


def test_a_link_to_nothing_is_named(folder: Path) -> None:
    path = folder / "jpg" / "image_00007.jpg"
    path.unlink()
    path.symlink_to("gone")
    assert f"{path} cannot be read as an image" in _refused(folder)
    (folder / "jpg" / "other").symlink_to("gone")
    path.unlink()
    path.write_bytes(_image(7))
    assert len(flowers102(folder, 8).test) == 20


def test_labels_beyond_int64(folder: Path) -> None:
    labels = _labels().astype(np.uint64)
    labels[3] = 2**64 - 1
    _write(folder, _mats(labels=labels))
    assert "has values up to 18446744073709551615 under 'labels'" in _refused(folder)


def test_a_size_that_cannot_be(folder: Path) -> None:
    with pytest.raises(DataError, match="size of the images was 0; expected 1 or more"):
        flowers102(folder, 0)


def test_too_few_of_a_class(tmp_path: Path) -> None:
    parts = _parts()
    parts["trnid"] = parts["trnid"][:3]
    place = _write(tmp_path, {**_mats(parts=parts), **_images()})
    assert "3 training images, too few" in _refused(place)


# --- fetching -----------------------------------------------------------------------


class _Server:
    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.asked = files, list[str]()

    def __call__(self, url: str, output_file: Any, _: Any) -> None:
        self.asked.append(url.rpartition("/")[2])
        Path(output_file).write_bytes(self.files[self.asked[-1]])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> _Server:
    files = {**_mats(), "102flowers.tgz": _tgz(_images())}
    for constant, name in (
        ("ARCHIVE", "102flowers.tgz"),
        ("LABELS", "imagelabels.mat"),
        ("SPLITS", "setid.mat"),
    ):
        digest = hashlib.sha256(files[name]).hexdigest()
        monkeypatch.setattr(MODULE, constant, Remote(name, digest))
    return _Server(files)


def test_all_is_fetched_once(tmp_path: Path, server: _Server) -> None:
    place = tmp_path / "new"
    line = fetch_flowers102(place, downloader=server)
    assert server.asked == ["imagelabels.mat", "setid.mat", "102flowers.tgz"]
    assert listing(place) == ["102flowers.tgz", "imagelabels.mat", "jpg", "setid.mat"]
    assert "fetched imagelabels.mat, setid.mat, 102flowers.tgz; the official" in line
    assert "60 images" in line
    assert len(flowers102(place, 8).test) == 20
    assert "not official" not in flowers102(place, 8).note
    assert "; the official" not in fetch_flowers102(place, downloader=server)
    assert len(server.asked) == 3


def test_an_archive_that_is_there_must_be_the_official_one(tmp_path: Path, server: _Server) -> None:
    whole = bytearray(server.files["102flowers.tgz"])
    whole[len(whole) // 2] ^= 1
    path = tmp_path / "102flowers.tgz"
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"102flowers\.tgz is not the official file: its sha256"):
        fetch_flowers102(tmp_path, downloader=server)
    path.unlink()
    assert "60 images" in fetch_flowers102(tmp_path, downloader=server)


def test_images_that_are_there_are_not_fetched(tmp_path: Path, server: _Server) -> None:
    _zip(tmp_path / "any.zip", _images())
    fetch_flowers102(tmp_path, downloader=server)
    assert server.asked == ["imagelabels.mat", "setid.mat"]


def test_an_archive_cut_short_leaves_nothing_and_a_second_try_works(
    tmp_path: Path, server: _Server
) -> None:
    whole = server.files["102flowers.tgz"]
    server.files["102flowers.tgz"] = whole[:-50]
    with pytest.raises(DataError, match=r"102flowers.tgz is not the official file"):
        fetch_flowers102(tmp_path, downloader=server)
    assert listing(tmp_path) == ["imagelabels.mat", "setid.mat"]
    server.files["102flowers.tgz"] = whole
    assert "60 images" in fetch_flowers102(tmp_path, downloader=server)


def test_the_command_checks_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "flowers102", "--data-dir", str(folder)]) == 0
    assert "60 images" in capsys.readouterr().out
    (folder / "jpg" / "image_00001.jpg").unlink()
    assert main(["data", "flowers102", "--data-dir", str(folder)]) == 2
    assert "image_00001.jpg missing" in capsys.readouterr().err


# --- the real ones ------------------------------------------------------------------


@needs_real_data
def test_the_real_flowers() -> None:
    split = flowers102(REAL_DATA, 32)
    assert "Flowers-102 at 32x32 from images of up to 64 pixels" in split.note
    assert "816 images to train, 204 to validate, 6,149 to test" in split.note
    assert split.train.images.shape == (816, 3, 64, 64)
    for part, each in ((split.train, 8), (split.valid, 2)):
        assert part is not None
        assert torch.bincount(part.labels).tolist() == [each] * 102
    place = REAL_DATA / "flowers102-64px"
    ids = loadmat(place / "setid.mat")["tstid"].ravel()
    labels = loadmat(place / "imagelabels.mat")["labels"].ravel()
    assert split.test.labels.tolist() == [int(labels[i - 1]) - 1 for i in ids]
