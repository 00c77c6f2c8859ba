"""A folder of one's own images: upright, in the right class, and what is wrong is named."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hyperlight.lab.data import Batches, image_folder, scan_folder
from hyperlight.lab.errors import DataError

COLOURS = {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0)}


def _write(path: Path, image: Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def _folder(folder: Path, each: int = 10) -> Path:
    for name, colour in COLOURS.items():
        for i in range(each):
            _write(folder / name / f"{i}.png", Image.new("RGB", (20 + i, 16), colour))
    return folder


def _classes_are_colours(part: Any, names: tuple[str, ...]) -> None:
    for image, label in zip(part.images, part.labels.tolist(), strict=True):
        assert tuple(image.float().mean(dim=(1, 2)).tolist()) == COLOURS[names[label]]


def test_images_of_ones_own(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "mine")
    (folder / "red" / "notes.txt").write_text("no image")
    (folder / "red" / ".hidden.png").write_bytes(b"no image")
    (folder / ".git").mkdir()
    (folder / "red" / "deep").mkdir()
    (folder / "red" / "9.png").rename(folder / "red" / "deep" / "9.PNG")
    split = image_folder(folder, 8)
    assert (split.name, split.classes) == ("mine", 3)
    assert split.class_names == ("blue", "green", "red")
    assert split.valid is not None
    assert [len(part) for part in (split.train, split.valid, split.test)] == [19, 5, 6]
    assert split.train.images.shape == (19, 3, 16, 16)
    assert split.test.images.shape == (6, 3, 8, 8)
    for part in (split.train, split.valid, split.test):
        _classes_are_colours(part, split.class_names)
    assert split.train.aspect is not None
    assert 20 / 16 <= float(split.train.aspect.min()) <= float(split.train.aspect.max()) <= 29 / 16
    assert "images of mine, 3 classes, 8x8: 19 images to train, 5 to validate" in split.note
    batch = next(Batches(split.train, 6, seed=0, augment=split.augment))
    assert batch.images.shape == (6, 3, 8, 8)


def test_train_and_test_of_ones_own(tmp_path: Path) -> None:
    _folder(tmp_path / "train")
    _folder(tmp_path / "test", each=2)
    split = image_folder(tmp_path, 8, whole=False)
    assert split.valid is not None
    assert [len(part) for part in (split.train, split.valid, split.test)] == [24, 6, 6]
    for part in (split.train, split.valid, split.test):
        _classes_are_colours(part, split.class_names)


@pytest.mark.parametrize("name", ["valid", "val", "validation"])
def test_parts_of_ones_own_are_kept(tmp_path: Path, name: str) -> None:
    _folder(tmp_path / "train")
    _folder(tmp_path / name, each=3)
    _folder(tmp_path / "test", each=2)
    (tmp_path / "notes").mkdir()
    split = image_folder(tmp_path, 8)
    assert split.valid is not None
    assert [len(part) for part in (split.train, split.valid, split.test)] == [30, 9, 6]
    for part in (split.train, split.valid, split.test):
        _classes_are_colours(part, split.class_names)
    assert "30 images to train, 9 to validate, 6 to test" in split.note
    assert "held out" not in split.note


@pytest.mark.parametrize(("valid", "found"), [(0, [19, 5, 6]), (3, [24, 9, 6])])
def test_a_missing_test_part_is_held_out_and_said(
    tmp_path: Path, valid: int, found: list[int]
) -> None:
    _folder(tmp_path / "train")
    if valid:
        _folder(tmp_path / "val", each=valid)
    split = image_folder(tmp_path, 8)
    assert split.valid is not None
    assert split.class_names == ("blue", "green", "red")
    assert [len(part) for part in (split.train, split.valid, split.test)] == found
    assert split.note.endswith(
        "(there is no folder 'test': 20 % of the images in 'train' are held out for it)"
    )


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    _folder(tmp_path)
    (tmp_path / "red").rename(tmp_path / "train")
    assert image_folder(tmp_path, 8).class_names == ("blue", "green", "train")


def test_parts_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    _folder(tmp_path / "train")
    for name in ("valid", "val"):
        _folder(tmp_path / name, each=2)
    assert f"{tmp_path} has the folders 'valid', 'val'; expected one of them" in _refused(tmp_path)
    (tmp_path / "valid").rename(tmp_path / "cat")
    message = _refused(tmp_path)
    assert f"{tmp_path} has the parts 'train', 'val', and beside them 'cat' with images" in message
    (tmp_path / "cat").rename(tmp_path / "test")
    (tmp_path / "train").rename(tmp_path.parent / "train")
    message = _refused(tmp_path)
    assert f"{tmp_path} has 'val', 'test' and no 'train'; expected a folder 'train'" in message
    (tmp_path.parent / "train").rename(tmp_path / "train")
    for name in COLOURS:
        for path in (tmp_path / "val" / name).iterdir():
            path.unlink()
    message = _refused(tmp_path)
    assert f"{tmp_path / 'val' / 'blue'} has no images; expected some" in message
    assert "Add images, or remove the folder, here and in train" in message
    for name in COLOURS:
        (tmp_path / "val" / name).rmdir()
    message = _refused(tmp_path)
    assert f"{tmp_path / 'val'} has the class folders none; expected 'blue', 'green'" in message
    assert "Without the folder 'val', a fifth of train is held out in its place" in message


def _read(path: Path, **options: Any) -> torch.Tensor:
    """The one image, uint8 (C, size, size), among others that make up the rest."""
    folder = path.parent.parent
    for name in ("a", "b"):
        for i in range(10):
            other = folder / "train" / name / f"{i}.png"
            _write(other, Image.new("RGB", (4, 4)))
    _write(folder / "test" / "b" / "other.png", Image.new("RGB", (4, 4)))
    path.parent.rename(folder / "test" / "a")
    return image_folder(folder, 4, whole=False, **options).test.images[0]


def test_exif_orientation_is_followed(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, 16:] = 255  # light on the right
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter, clockwise
    path = _write(tmp_path / "new" / "0.jpg", Image.fromarray(pixels), exif=exif, quality=100)
    image = _read(path)
    assert float(image[:, :1].float().mean()) < 10.0
    assert float(image[:, 3:].float().mean()) > 245.0


@pytest.mark.parametrize(
    ("image", "colour", "grey"),
    [
        (Image.new("RGB", (8, 8), (100, 50, 200)), (100, 50, 200), 82),
        (Image.new("L", (8, 8), 90), (90, 90, 90), 90),
        (Image.new("1", (8, 8), 1), (255, 255, 255), 255),
        (Image.new("RGBA", (8, 8), (100, 50, 200, 0)), (255, 255, 255), 255),
        (Image.new("RGBA", (8, 8), (100, 50, 200, 51)), (224, 214, 244), 220),
        (Image.new("LA", (8, 8), (90, 255)), (90, 90, 90), 90),
        (Image.new("RGB", (8, 8), (102, 51, 204)).convert("P"), (102, 51, 204), 84),
        (Image.fromarray(np.full((8, 8), 257 * 60, np.uint16)), (60, 60, 60), 60),
    ],
    ids=["colour", "grey", "bits", "transparent", "half", "grey and alpha", "palette", "16 bits"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_kinds_of_images(tmp_path: Path, image: Any, colour: Any, grey: int, channels: Any) -> None:
    found = _read(_write(tmp_path / "new" / "0.png", image), channels=channels)
    assert found.shape == (channels, 4, 4)
    expected = torch.tensor([grey] if channels == 1 else colour).view(-1, 1, 1)
    assert int((found.int() - expected).abs().max()) <= 2


def _refused(folder: Path, **options: Any) -> str:
    with pytest.raises(DataError) as raised:
        image_folder(folder, **options)
    return str(raised.value)


def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path) -> None:
    assert f"{tmp_path / 'no'} is not a folder" in _refused(tmp_path / "no")
    message = _refused(tmp_path)
    assert f"{tmp_path} has the class folders none; expected two or more" in message
    folder = _folder(tmp_path / "a", each=10)
    assert "size of the images was 0" in _refused(folder, size=0)
    (folder / "empty").mkdir()
    assert f"{folder / 'empty'} has no images; expected some, with names that end in .bmp" in (
        _refused(folder)
    )
    (folder / "empty").rmdir()
    _write(folder / "rare" / "0.png", Image.new("L", (4, 4)))
    assert "31 images of 4 classes, too few to hold out a fifth of every class" in _refused(folder)


def test_classes_of_the_parts_must_agree(tmp_path: Path) -> None:
    _folder(tmp_path / "train")
    _folder(tmp_path / "test")
    (tmp_path / "test" / "red").rename(tmp_path / "test" / "rot")
    message = _refused(tmp_path)
    assert "has the class folders 'blue', 'green', 'rot'" in message
    assert "expected 'blue', 'green', 'red' as in train" in message


@pytest.mark.parametrize("damage", ["empty", "text", "cut short", "altered", "vast", "floats"])
def test_a_damaged_image_is_named(tmp_path: Path, damage: str) -> None:
    folder = _folder(tmp_path)
    path = folder / "red" / "3.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    _write(path, Image.fromarray(noise))
    whole = path.read_bytes()
    if damage == "vast":  # by its header alone
        size = struct.pack(">II", 8_000, 8_001)
        crc = struct.pack(">I", zlib.crc32(whole[12:16] + size + whole[24:29]))
        path.write_bytes(whole[:16] + size + whole[24:29] + crc + whole[33:])
        assert "8000 x 8001 pixels in 12,4" in _refused(folder)
        with path.open("ab") as file:
            file.write(bytes(2**18))  # with more bytes it could be true, but for 8,000 pixels
        assert "expected at most 64,000,000" in _refused(folder)
    elif damage == "floats":
        path.unlink()
        path = _write(folder / "red" / "3.tif", Image.fromarray(np.ones((8, 8), np.float32)))
        assert f"{path} has floating-point pixels" in _refused(folder)
        return
    else:
        altered = whole[:1000] + bytes(500) + whole[1500:]
        path.write_bytes(
            {"empty": b"", "text": b"<html>", "cut short": whole[:-900], "altered": altered}[damage]
        )
    message = _refused(folder)
    assert f"{path} cannot be read as an image" in message
    assert "Replace it or remove it" in message


def test_whole_numbers_of_32_bits_are_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    for values in ([0, 65536], [-1, 9]):
        image = Image.fromarray(np.array([values], np.int32))
        path = _write(folder / "red" / "3.tif", image)
        message = _refused(folder)
        assert f"{path} has pixels from {values[0]} to {values[1]}; expected 8 or 16" in message
    image = Image.fromarray(np.full((8, 8), 257 * 60, np.int32))
    assert _read(_write(tmp_path / "more" / "new" / "0.tif", image)).unique().tolist() == [60]


COUNTER = Path("/proc/self/clear_refs")


@pytest.mark.skipif(not COUNTER.exists(), reason="only Linux resets its count of memory")
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_a_small_file_takes_little_memory(tmp_path: Path, mode: str) -> None:
    folder = _folder(tmp_path)
    path = folder / "red" / "3.png"
    for size in ((3000, 2000), (8000, 7000)):
        Image.new(mode, size).save(path)
        COUNTER.write_text("5")
        before = _memory("VmRSS")
        if size[0] == 3000:
            image_folder(folder, 8)
        else:
            assert f"{path} cannot be read as an image (it has 8000 x 7000" in _refused(folder)
        assert _memory("VmHWM") - before < 100 * 2**20


def _memory(key: str) -> int:
    """A number of bytes that Linux counts for this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{key}:")[2].split(None, 1)[0]) * 1024


def test_no_other_program_reads_an_image(tmp_path: Path) -> None:
    folder = _folder(tmp_path)  # Pillow hands PostScript to Ghostscript
    path = folder / "red" / "3.png"
    Image.new("RGB", (8, 8)).save(path, "EPS")
    assert f"{path} cannot be read as an image (cannot identify" in _refused(folder)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    try:
        _folder(folder)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    os.rename(folder / "red", os.fsencode(folder) + b"/r\xf6t")
    os.rename(folder / "blue" / "0.png", os.fsencode(folder) + b"/blue/\xff.png")
    split = image_folder(folder, 8)
    assert (split.name, split.class_names) == ("caf\\udce9", ("blue", "green", "r\\udcf6t"))
    assert "images of caf\\udce9, 3 classes" in split.note
    assert len(split.train) == 19
    for i in range(5):
        name = os.fsencode(folder) + f"/{i}".encode() + b"\xe9.npz"
        with open(name, "wb") as file:
            np.savez(file, image=np.arange(6).reshape(2, 3), labels=np.eye(2, 3, dtype=int))
    assert "scans of caf\\udce9, 2x3" in scan_folder(folder).note
