"""OASIS, PTBP and a folder of scans: files made here, and the real ones where they are."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from hyperlight.lab.cli import main
from hyperlight.lab.data import ScanSplit, fetch_oasis, oasis, ptbp, scan_folder, split_names
from hyperlight.lab.data.ptbp import FILE
from hyperlight.lab.errors import DataError
from tests.lab.making import REAL_DATA, listing, needs_real_data


def _nifti(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def _parts(split: ScanSplit) -> list[int]:
    return [len(part) for part in (split.train, split.valid, split.test)]


# --- OASIS --------------------------------------------------------------------------


def _oasis(folder: Path, count: int = 10) -> list[str]:
    """Subjects whose image is 1 / (1 + i) in the middle, and whose labels are i there."""
    names = [f"OASIS_OAS1_{i:04d}_MR1" for i in range(1, count + 1)]
    for i, name in enumerate(names):
        image, labels = np.zeros((16, 19, 1), np.float32), np.zeros((16, 19, 1), np.int16)
        image[4:8, 5:9], labels[4:8, 5:9] = 1 / (1 + i), i
        _nifti(folder / name / "slice_norm.nii.gz", image)
        _nifti(folder / name / "slice_seg24.nii.gz", labels)
        _nifti(folder / name / "slice_seg4.nii.gz", labels.clip(0, 4))
    (folder / "subjects.txt").write_text("\n".join(names) + "\n")
    (folder / "seg24_labels.txt").write_text("0 Unknown 0 0 0\n1  Left-White 245 1 2\n\n 3: CSF\n")
    return names


@pytest.mark.parametrize("place", [".", "oasis", "neurite-oasis.2d.v1.0"])
def test_oasis_scans_labels_and_parts(tmp_path: Path, place: str) -> None:
    names = _oasis(tmp_path / place)
    split = oasis(tmp_path)
    assert _parts(split) == [6, 2, 2]
    for part, indices in zip(
        (split.train, split.valid, split.test), split_names(names), strict=True
    ):
        assert part.images.shape == (len(indices), 1, 16, 19)
        assert part.labels.shape == (len(indices), 16, 19)
        assert (part.images.dtype, part.labels.dtype) == (torch.float32, torch.uint8)
        assert part.labels[:, 5, 6].tolist() == indices
        expected = [1 / (1 + i) for i in indices]
        torch.testing.assert_close(part.images[:, 0, 5, 6], torch.tensor(expected))
        assert int(part.labels[:, :4].sum()) == 0
    assert split.label_names[:5] == ("background", "Left-White", "label 2", "CSF", "label 4")
    assert len(split.label_names) == 25
    assert "24 labels: 6 scans to train, 2 to validate, 2 to test" in split.note
    small = oasis(tmp_path, (8, 12), labels="seg4")
    assert small.train.images.shape == (6, 1, 8, 12)
    assert int(small.train.labels.max()) <= 4
    assert len(small.label_names) == 5


def _oasis_refused(folder: Path) -> str:
    with pytest.raises(DataError) as raised:
        oasis(folder)
    return str(raised.value)


def test_oasis_that_is_not_there(tmp_path: Path) -> None:
    message = _oasis_refused(tmp_path)
    assert f"{tmp_path} lacks the folders OASIS_OAS1_0001_MR1" in message
    assert f"`hyperlight data oasis --data-dir {tmp_path}`" in message
    _oasis(tmp_path, 2)
    assert "2 scans, too few" in _oasis_refused(tmp_path)


def test_oasis_subjects_that_are_missing(tmp_path: Path) -> None:
    _oasis(tmp_path)
    (tmp_path / "OASIS_OAS1_0003_MR1").rename(tmp_path / "away")
    message = _oasis_refused(tmp_path)
    assert "lacks OASIS_OAS1_0003_MR1, which its subjects.txt names" in message


@pytest.mark.parametrize("name", ["slice_norm.nii.gz", "slice_seg24.nii.gz"])
@pytest.mark.parametrize("damage", ["missing", "cut short", "empty", "text", "altered"])
def test_oasis_files_that_are_damaged(tmp_path: Path, name: str, damage: str) -> None:
    _oasis(tmp_path)
    path = tmp_path / "OASIS_OAS1_0004_MR1" / name
    whole = path.read_bytes()
    path.unlink()
    if damage == "altered":
        path.write_bytes(gzip.compress(gzip.decompress(whole)[:200] + b"\xff" * 3000))
    elif damage != "missing":
        path.write_bytes({"cut short": whole[:-20], "empty": b"", "text": b"<html>"}[damage])
    assert f"{path} cannot be read as a NIfTI file" in _oasis_refused(tmp_path)


def test_oasis_values_that_do_not_fit(tmp_path: Path) -> None:
    _oasis(tmp_path)
    folder = tmp_path / "OASIS_OAS1_0004_MR1"
    labels, image = folder / "slice_seg24.nii.gz", folder / "slice_norm.nii.gz"
    _nifti(labels, np.full((16, 19), 25, np.int16))
    assert f"{labels} has labels from 25 to 25" in _oasis_refused(tmp_path)
    assert "expected whole numbers from 0 to 24" in _oasis_refused(tmp_path)
    _nifti(labels, np.full((16, 19), -1, np.int16))
    assert "labels from -1 to -1" in _oasis_refused(tmp_path)
    _nifti(labels, np.full((16, 19), 0.5, np.float32))
    assert "or fractions" in _oasis_refused(tmp_path)
    _nifti(labels, np.zeros((16, 18), np.int16))
    assert "an image of (16, 19) and labels of (16, 18)" in _oasis_refused(tmp_path)
    _nifti(labels, np.zeros((16, 19), np.int16))
    _nifti(image, np.full((16, 19), 2.0, np.float32))
    assert f"{image} has intensities from 2 to 2; expected 0 to 1" in _oasis_refused(tmp_path)
    _nifti(image, np.full((16, 19), np.nan, np.float32))
    assert f"{image} has values of float32" in _oasis_refused(tmp_path)
    _nifti(image, np.full((16, 19), 0.5, np.float32))
    assert f"{image} is 0.5 everywhere; expected a picture" in _oasis_refused(tmp_path)


def test_oasis_names_of_labels_that_are_no_numbers(tmp_path: Path) -> None:
    _oasis(tmp_path)
    lines = [f"{'9' * 5000} Large", "2 Right", "-3 Below", "", "\xff\xfe"]
    (tmp_path / "seg24_labels.txt").write_bytes("\n".join(lines).encode("latin-1"))
    names = oasis(tmp_path).label_names
    assert names[:4] == ("background", "label 1", "Right", "label 3")


def _oasis_tar(folder: Path) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.add(folder, arcname=".")
    return file.getvalue()


def test_oasis_is_fetched_once(tmp_path: Path) -> None:
    _oasis(tmp_path / "source")
    content, asked = _oasis_tar(tmp_path / "source"), []

    def server(url: str, output_file: Any, _: Any) -> None:
        asked.append(url)
        Path(output_file).write_bytes(content)

    place = tmp_path / "new"
    found = hashlib.md5(content).hexdigest()
    with pytest.warns(UserWarning, match=f"its md5 is {found}, expected c9ae5864"):
        line = fetch_oasis(place, downloader=server)
    assert "fetched neurite-oasis.2d.v1.0.tar; OASIS (neurite 2D), 16x19" in line
    assert "data use agreement" in line
    assert listing(place) == ["neurite-oasis.2d.v1.0", "neurite-oasis.2d.v1.0.tar"]
    assert "6 scans to train" in fetch_oasis(place, downloader=server)
    assert len(asked) == 1
    assert asked[0].startswith("https://")
    assert oasis(place).note == oasis(tmp_path / "source").note


def test_the_command_checks_oasis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _oasis(tmp_path)
    assert main(["data", "oasis", "--data-dir", str(tmp_path)]) == 0
    assert "6 scans to train" in capsys.readouterr().out
    (tmp_path / "OASIS_OAS1_0002_MR1" / "slice_norm.nii.gz").unlink()
    assert main(["data", "oasis", "--data-dir", str(tmp_path)]) == 2
    assert "OASIS_OAS1_0002_MR1" in capsys.readouterr().err


# --- PTBP ---------------------------------------------------------------------------


def _ptbp(folder: Path, **changes: Any) -> Path:
    """Ten scans of three slices, with 10 i + s as the value of slice s of scan i."""
    folder.mkdir(parents=True, exist_ok=True)
    images = (10 * np.arange(10)[:, None] + np.arange(3)).astype(np.uint8)
    images = np.broadcast_to(images[..., None, None], (10, 3, 8, 6)).copy()
    labels = np.zeros((10, 3, 8, 6), np.uint8)
    labels[..., 2:5, :] = 4
    np.savez_compressed(folder / FILE, **{"images": images, "labels": labels, **changes})
    return folder


def test_ptbp_parts_are_whole_scans_in_order(tmp_path: Path) -> None:
    split = ptbp(_ptbp(tmp_path / "ptbp").parent)
    assert _parts(split) == [18, 6, 6]
    values = torch.cat([part.images[:, 0, 0, 0] for part in (split.train, split.valid, split.test)])
    assert values.tolist() == [10 * i + s for i in range(10) for s in range(3)]
    for part in (split.train, split.valid, split.test):
        assert part.groups.tolist() == [0, 1, 2] * (len(part) // 3)
        assert part.images.dtype == part.labels.dtype == torch.uint8
        assert part.labels[:, 3].unique().tolist() == [4]
        assert int(part.labels[:, :2].sum()) == 0
    assert "PTBP, 4 labels" in split.note
    assert "OASIS" not in split.note
    assert len(split.label_names) == 5


def test_ptbp_at_another_size(tmp_path: Path) -> None:
    split = ptbp(_ptbp(tmp_path), (4, 4))
    assert split.test.images.shape == (6, 1, 4, 4)
    assert split.test.images[:, 0, 3, 3].tolist() == [80, 81, 82, 90, 91, 92]
    assert "4x4, 3 axial slices of each scan" in split.note


def test_ptbp_that_is_not_what_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lacks ptbp_axial.*It cannot be fetched: name a folder"):
        ptbp(tmp_path)
    image = np.zeros((10, 3, 8, 6), np.uint8)
    for changes, words in (
        ({"labels": image + 5}, "labels from 5 to 5.*expected whole numbers from 0 to 4"),
        ({"labels": image[:9]}, r"images \(10, 3, 8, 6\) of uint8 and labels \(9, 3, 8, 6\)"),
        ({"images": image.astype(np.float32)}, "of float32"),
        ({"images": image[:3], "labels": image[:3]}, "3 scans, too few"),
    ):
        with pytest.raises(DataError, match=words):
            ptbp(_ptbp(tmp_path, **changes))
    np.savez(tmp_path / FILE, images=image)
    with pytest.raises(DataError, match=r"lacks 'labels'; it has 'images'"):
        ptbp(tmp_path)
    whole = (_ptbp(tmp_path) / FILE).read_bytes()
    for content in (b"", b"<html>", whole[:-50]):
        (tmp_path / FILE).write_bytes(content)
        with pytest.raises(DataError, match=f"{FILE} cannot be read as an npz file"):
            ptbp(tmp_path)


class _Bomb:
    def __reduce__(self) -> Any:
        return (print, ("unpickled",))


def test_nothing_is_ever_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objects = np.array([_Bomb()], dtype=object)
    _ptbp(tmp_path, images=objects)
    with pytest.raises(DataError, match="holds pickled objects"):
        ptbp(tmp_path)
    (tmp_path / FILE).write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(DataError, match="cannot be read as an npz file"):
        ptbp(tmp_path)
    assert "unpickled" not in capsys.readouterr().out


@needs_real_data
def test_the_real_ptbp() -> None:
    split = ptbp(REAL_DATA)
    assert _parts(split) == [304, 80, 96]
    assert split.train.images.shape[1:] == (1, 192, 160)
    assert split.train.labels.unique().tolist() == [0, 1, 2, 3, 4]
    middle = split.train[split.train.groups == 4].unit()
    dice = []
    for i in range(0, 38, 5):
        for j in range(2, 38, 7):
            for label in range(1, 5):
                a, b = middle.labels[i] == label, middle.labels[j] == label
                dice.append(2.0 * float((a & b).sum()) / float(a.sum() + b.sum()))
    assert 0.6 < float(np.mean(dice)) < 0.8  # aligned, and with something left to register


# --- a folder of one's own ------------------------------------------------------------


def _volume(i: int) -> tuple[np.ndarray, np.ndarray]:
    image = np.arange(6 * 5 * 4, dtype=np.float32).reshape(6, 5, 4) + 1000 * i
    labels = np.zeros((6, 5, 4), np.int16)
    labels[1:3, 2:4], labels[3:, :2] = 17, 1003
    return image, labels


def _folder(folder: Path, count: int = 10, ends: tuple[str, str] = (".nii.gz", ".nii")) -> Path:
    for i in range(count):
        image, labels = _volume(i)
        _nifti(folder / f"case{i}{ends[0]}", image)
        _nifti(folder / f"case{i}_seg{ends[1]}", labels)
    return folder


@pytest.mark.parametrize("ends", [(".nii.gz", ".nii"), (".nii", ".nii.gz"), (".nii", ".nii")])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_scans_of_ones_own(tmp_path: Path, axis: int, ends: tuple[str, str]) -> None:
    split = scan_folder(_folder(tmp_path / "mine", ends=ends), axis=axis, slices=[1, 3])
    assert _parts(split) == [12, 4, 4]
    assert split.name == "mine"
    assert split.label_names == ("background", "label 17", "label 1003")
    image, labels = _volume(0)
    for k, where in enumerate((1, 3)):
        expected = np.take(image, where, axis) / (image.size - 1)
        np.testing.assert_allclose(split.train.images[k, 0].numpy(), expected, atol=1e-6)
        numbered = {0: 0, 17: 1, 1003: 2}
        wanted = np.vectorize(numbered.get)(np.take(labels, where, axis))
        np.testing.assert_array_equal(split.train.labels[k].numpy(), wanted)
    assert split.train.groups.tolist() == [1, 3] * 6
    assert "2 labels: 12 slices to train" in split.note


def test_the_middle_slice_is_the_default_and_axes_are_turned(tmp_path: Path) -> None:
    _folder(tmp_path)
    plain = scan_folder(tmp_path)
    assert plain.train.groups.tolist() == [2] * 6
    flipped = np.diag([-1.0, 1.0, 1.0, 1.0])
    for i in range(10):
        image, labels = _volume(i)
        _nifti(tmp_path / f"case{i}.nii.gz", image[::-1].copy(), flipped)
        _nifti(tmp_path / f"case{i}_seg.nii", labels)
    turned = scan_folder(tmp_path)
    assert torch.equal(turned.train.images, plain.train.images)
    assert torch.equal(turned.train.labels, plain.train.labels)
    for i in range(10):
        image, labels = _volume(i)
        _nifti(tmp_path / f"case{i}.nii.gz", image)
        _nifti(tmp_path / f"case{i}_seg.nii", labels[::-1].copy(), flipped)
    assert torch.equal(scan_folder(tmp_path).train.labels, plain.train.labels)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_npz_scans(tmp_path: Path, dimensions: int) -> None:
    for i in range(5):
        image, labels = _volume(i)
        if dimensions == 2:
            image, labels = image[..., 2], labels[..., 2]
        np.savez(tmp_path / f"case{i}.npz", image=image, labels=labels)
    split = scan_folder(tmp_path, (8, 8))
    assert _parts(split) == [3, 1, 1]
    assert split.train.images.shape == (3, 1, 8, 8)
    assert split.train.labels.unique().tolist() == [0, 1, 2]


def _folder_refused(folder: Path, **options: Any) -> str:
    with pytest.raises(DataError) as raised:
        scan_folder(folder, **options)
    return str(raised.value)


def test_what_is_wrong_with_a_folder_of_scans_is_said(tmp_path: Path) -> None:
    assert "has 0 scans; expected 5 or more" in _folder_refused(tmp_path)
    _folder(tmp_path, 5)
    assert "The axis was 3; expected 0, 1 or 2" in _folder_refused(tmp_path, axis=3)
    for slices in ([4], [-1], []):
        message = _folder_refused(tmp_path, slices=slices)
        assert f"The slices were {slices}; " in message
        assert "4 along axis 2, expected some of 0 to 3" in message
    image, labels = _volume(0)
    path, seg = tmp_path / "case3.nii.gz", tmp_path / "case3_seg.nii"
    seg.unlink()
    message = _folder_refused(tmp_path)
    assert f"{path} has no label map; expected case3_seg.nii.gz or case3_seg.nii beside" in message
    _nifti(seg, labels[:5])
    assert "has shape (6, 5, 4) and its label map case3_seg.nii (5, 5, 4)" in _folder_refused(
        tmp_path
    )
    _nifti(seg, labels + np.float32(0.5))
    assert f"{seg} has labels from 0.5 to 1003.5, or fractions" in _folder_refused(tmp_path)
    _nifti(seg, labels - 1)
    assert "labels from -1 to 1002" in _folder_refused(tmp_path)
    _nifti(seg, np.arange(120, dtype=np.int16).reshape(6, 5, 4) * 7)
    _nifti(tmp_path / "case1_seg.nii", np.arange(120, dtype=np.int16).reshape(6, 5, 4) * 7 + 1)
    _nifti(tmp_path / "case2_seg.nii", np.arange(120, dtype=np.int16).reshape(6, 5, 4) * 7 + 2)
    _folder_refused(tmp_path, slices=[0, 1, 2, 3])
    assert "values; expected at most 256" in _folder_refused(tmp_path, slices=[0, 1, 2, 3])
    _folder(tmp_path, 5)
    _nifti(path, np.full_like(image, 7.0))
    assert f"{path} is 7 everywhere; expected a picture" in _folder_refused(tmp_path)
    image[0, 0, 0] = np.inf
    _nifti(path, image)
    assert f"{path} has values of float32 and shape (6, 5, 4) that are not finite" in (
        _folder_refused(tmp_path)
    )
    _nifti(path, np.ones((2, 3, 4, 5), np.float32))
    assert "of two or three dimensions" in _folder_refused(tmp_path)
    path.write_bytes(b"nothing")
    assert f"{path} cannot be read as a NIfTI file" in _folder_refused(tmp_path)


def _brightest(part: Any) -> list[int]:
    """The cases that a part holds: case i has its greatest label only in pixel i."""
    return [int(labels.flatten().argmax()) for labels in part.labels]


def _cases(folder: Path, cases: range) -> None:
    folder.mkdir()
    for i in cases:
        labels = np.eye(1, 30, i, dtype=np.int16).reshape(6, 5)
        np.savez(folder / f"case{i}.npz", image=np.arange(30.0).reshape(6, 5), labels=labels)


@pytest.mark.parametrize("name", ["valid", "val", "validation"])
def test_parts_of_scans_are_kept(tmp_path: Path, name: str) -> None:
    _cases(tmp_path / "train", range(3))
    _cases(tmp_path / name, range(3, 5))
    _cases(tmp_path / "test", range(5, 6))
    split = scan_folder(tmp_path)
    assert _brightest(split.train) == [0, 1, 2]
    assert _brightest(split.valid) == [3, 4]
    assert _brightest(split.test) == [5]
    assert "3 slices to train, 2 to validate, 1 to test" in split.note
    assert "held out" not in split.note


@pytest.mark.parametrize("given", [(), ("val",), ("test",)])
def test_missing_parts_of_scans_are_held_out_and_said(
    tmp_path: Path, given: tuple[str, ...]
) -> None:
    _cases(tmp_path / "train", range(10))
    for name in given:
        _cases(tmp_path / name, range(10, 13))
    split = scan_folder(tmp_path)
    found = [_brightest(part) for part in (split.train, split.valid, split.test)]
    assert sorted(case for part in found for case in part) == list(range(13 if given else 10))
    expected = {(): [6, 2, 2], ("val",): [8, 3, 2], ("test",): [8, 2, 3]}
    assert [len(part) for part in found] == expected[given]
    if given:
        assert found[1 if given == ("val",) else 2] == [10, 11, 12]
    said = "(there is no folder 'test': 20 % of the scans in 'train' are held out for it)"
    assert split.note.endswith(said) == ("test" not in given)


def test_parts_of_scans_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    _cases(tmp_path / "test", range(2))
    message = _folder_refused(tmp_path)
    assert f"{tmp_path} has 'test' and no 'train'; expected a folder 'train' beside" in message
    _cases(tmp_path / "train", range(2, 6))
    message = _folder_refused(tmp_path)
    assert f"{tmp_path / 'train'} has 4 scans; expected 5 or more, of which some" in message
    (tmp_path / "valid").mkdir()
    message = _folder_refused(tmp_path)
    assert f"{tmp_path / 'valid'} has 0 scans; expected 1 or more: NAME.nii.gz" in message
    _cases(tmp_path / "val", range(7, 9))
    message = _folder_refused(tmp_path)
    assert f"{tmp_path} has the folders 'valid', 'val'; expected one of them" in message
    np.savez(tmp_path / "case9.npz", image=np.eye(6, 5), labels=np.eye(6, 5, dtype=int))
    message = _folder_refused(tmp_path)
    assert f"{tmp_path} has 1 scans, and more in its folders 'test', 'train', 'val'" in message


def test_intensities_near_the_limits_of_floats(tmp_path: Path) -> None:
    for i in range(5):
        image = np.array([[-1e308, 0.0, 1e308], [-1e308, 5e307, 0.0]])
        np.savez(tmp_path / f"case{i}.npz", image=image, labels=np.eye(2, 3, dtype=int))
    split = scan_folder(tmp_path)
    assert split.train.images[0, 0].tolist() == [[0.0, 0.5, 1.0], [0.0, 0.75, 0.5]]
    labels = np.array([[0, 1, 2**63]] * 2, np.uint64)
    np.savez(tmp_path / "case3.npz", image=np.eye(2, 3), labels=labels)
    message = _folder_refused(tmp_path)
    assert f"{tmp_path / 'case3.npz'} has labels from 0 to 9.22337e+18" in message
    assert "expected whole numbers from 0 below 2^63" in message


def test_scans_of_several_sizes_need_a_size(tmp_path: Path) -> None:
    _folder(tmp_path, 5)
    image, labels = _volume(0)
    _nifti(tmp_path / "case3.nii.gz", image[:5])
    _nifti(tmp_path / "case3_seg.nii", labels[:5])
    message = _folder_refused(tmp_path)
    assert "case3.nii.gz has slices of (5, 5), case0.nii.gz of (6, 5)" in message
    assert scan_folder(tmp_path, (4, 6)).train.images.shape[1:] == (1, 4, 6)


def test_two_scans_of_one_name_are_refused(tmp_path: Path) -> None:
    _folder(tmp_path, 5)
    np.savez(tmp_path / "case3.npz", image=_volume(0)[0], labels=_volume(0)[1])
    assert "more than one scan named 'case3'" in _folder_refused(tmp_path)


def test_real_scans_of_nibabel_are_read(tmp_path: Path) -> None:
    source = Path(nibabel.__file__).parent / "tests" / "data" / "anatomical.nii"
    if not source.is_file():
        pytest.skip("this nibabel was installed without its examples")
    for i in range(5):
        (tmp_path / f"head{i}.nii").write_bytes(source.read_bytes())
        _nifti(
            tmp_path / f"head{i}_seg.nii",
            (nibabel.load(source).get_fdata() > 9000).astype(np.uint8),
            nibabel.load(source).affine,
        )
    split = scan_folder(tmp_path)
    assert split.train.images.shape == (3, 1, 33, 41)
    white = split.train.images[:, 0][split.train.labels == 1].mean()
    assert float(white) > float(split.train.images[:, 0][split.train.labels == 0].mean())
