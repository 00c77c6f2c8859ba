"""Files of data sets."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import nibabel
import numpy as np
from PIL import Image

from hyperlight.lab.data import flowers102, image_folder, mnist, oasis, ptbp, scan_folder
from hyperlight.lab.data import pictures as decoded
from hyperlight.lab.data.fetch import unpack
from hyperlight.lab.data.ptbp import FILE as PTBP
from tests.fuzz import formats
from tests.fuzz.reader import Reader
from tests.lab.making import write_idx, zipped

__all__ = ["DATA"]

ONE = ("train-images*", "train-labels*")


def _draw(variant: int) -> np.random.Generator:
    return np.random.default_rng(variant)


def _parts(split: Any) -> Any:
    """All values, and the line that describes them without the name of the folder."""
    return split.train, split.valid, split.test, split.note.partition(":")[2]


def _idx(naming: Callable[[str], str]) -> Callable[[Path, int], None]:
    def make(folder: Path, variant: int) -> None:
        draw, found = _draw(variant), {}
        for part, count in (("train", 10), ("t10k", 2)):
            found[f"{part}-images-idx3-ubyte"] = draw.integers(0, 2, (count, 28, 28), np.uint8)
            found[f"{part}-labels-idx1-ubyte"] = (np.arange(count) + variant) % 2
        write_idx(folder, found, naming)
        for path in folder.glob("*.gz"):  # without the time
            path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), mtime=0))

    return make


def _npz(path: Path, **arrays: np.ndarray) -> None:
    np.savez_compressed(path, **arrays)


def _make_ptbp(folder: Path, variant: int) -> None:
    draw = _draw(variant)
    images = draw.integers(0, 256, (5, 2, 6, 5), np.uint8)
    _npz(folder / PTBP, images=images, labels=draw.integers(0, 5, images.shape, np.uint8))


def _scans(write: Callable[[Path, np.ndarray, np.ndarray], None]) -> Callable[[Path, int], None]:
    def make(folder: Path, variant: int) -> None:
        draw = _draw(variant)
        for i in range(5):
            image = draw.random((5, 6, 4)).astype(np.float32)
            write(folder / f"scan{i}", image, draw.integers(0, 3, image.shape, np.uint8))

    return make


def _pair_npz(path: Path, image: np.ndarray, labels: np.ndarray) -> None:
    _npz(path.with_suffix(".npz"), image=image, labels=labels)


def _pair_nifti(end: str) -> Callable[[Path, np.ndarray, np.ndarray], None]:
    def write(path: Path, image: np.ndarray, labels: np.ndarray) -> None:
        for name, values in ((f"{path.name}{end}", image), (f"{path.name}_seg{end}", labels)):
            _nifti(path.with_name(name), values)

    return write


def _nifti(path: Path, values: np.ndarray) -> None:
    content = nibabel.Nifti1Image(values, np.eye(4)).to_bytes()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def _make_oasis(folder: Path, variant: int) -> None:
    draw = _draw(variant)
    names = [f"OASIS_OAS1_000{i}_MR1" for i in range(1, 6)]
    for name in names:
        (folder / name).mkdir()
        image = draw.random((6, 5, 1)).astype(np.float32)
        _nifti(folder / name / "slice_norm.nii.gz", image)
        _nifti(folder / name / "slice_seg24.nii.gz", draw.integers(0, 25, image.shape, np.uint8))
    (folder / "subjects.txt").write_text("\n".join(names) + "\n")
    (folder / "seg24_labels.txt").write_text("1 White-Matter 0 0 0\n2 Cortex 1 1 1\n")


def _picture(draw: np.random.Generator, kind: str, mode: str = "RGB") -> bytes:
    shape = (9, 12) if mode == "L" else (9, 12, len(mode))
    file = io.BytesIO()
    Image.fromarray(draw.integers(0, 256, shape, np.uint8)).save(file, kind)
    return file.getvalue()


def _make_pictures(folder: Path, variant: int) -> None:
    draw = _draw(variant)
    kinds = ("png", "jpeg", "gif", "tiff", "webp", "bmp", "ppm")
    for name in ("a", "b"):
        (folder / name).mkdir()
        for kind in kinds:
            (folder / name / f"{kind}.{kind}").write_bytes(_picture(draw, kind))
    (folder / "a" / "alpha.png").write_bytes(_picture(draw, "png", "RGBA"))
    (folder / "a" / "grey.png").write_bytes(_picture(draw, "png", "L"))


def _make_flowers(folder: Path, variant: int) -> None:
    from scipy.io import savemat

    labels = (np.arange(16) + variant) % 2 + 1
    ids = np.arange(1, 17, dtype=np.uint16)
    parts = {"tstid": ids[:3], "valid": ids[3:6], "trnid": ids[6:]}
    for name, content in (("imagelabels", {"labels": labels.astype(np.uint8)}), ("setid", parts)):
        file = io.BytesIO()
        savemat(file, content, do_compression=variant == 0)
        raw = file.getvalue()  # the first 116 bytes hold the time
        (folder / f"{name}.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(116) + raw[116:])
    draw = _draw(variant)
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in ids:
            archive.writestr(zipfile.ZipInfo(f"jpg/image_{i:05d}.jpg"), _picture(draw, "jpeg"))


def _make_tar(folder: Path, variant: int) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("jpg/a", "jpg/b/c"):
            member, body = tarfile.TarInfo(name), _draw(variant).bytes(700)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    raw = file.getvalue().rstrip(b"\0")
    raw += bytes(-len(raw) % 512 + 1024)
    (folder / "archive.tar").write_bytes(raw)
    (folder / "archive.tar.gz").write_bytes(gzip.compress(raw, mtime=0))


def _unpack(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        unpack(folder / name, folder / "new" / "jpg", top="jpg")
        found = (folder / "new").rglob("*")
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(found) if p.is_file()}

    return read


def _decode(folder: Path) -> Any:
    """Pictures decoded before; their arrays are in the cache of the user."""
    picture = decoded.Picture("a picture", (folder / "picture.png").read_bytes, "not changed")
    with (
        mock.patch.object(decoded, "KEEP_ABOVE", 0),
        mock.patch.dict("os.environ", {"XDG_CACHE_HOME": str(folder / "cache")}),
    ):
        return decoded.decode_all([picture] * 2, 8, whole=True)


def _make_decoded(folder: Path, variant: int) -> None:
    (folder / "picture.png").write_bytes(_picture(_draw(variant), "png"))
    _decode(folder)


DATA = (
    Reader("idx", _idx(str), lambda f: _parts(mnist(f)), ONE),
    Reader(
        "idx-gz", _idx(zipped), lambda f: _parts(mnist(f)), ONE, formats.gzipped(), rule="checked"
    ),
    Reader(
        "ptbp", _make_ptbp, lambda f: _parts(ptbp(f)), ("*.npz",), formats.NPZ, rule="checked"
    ),
    Reader(
        "npz", _scans(_pair_npz), lambda f: _parts(scan_folder(f)), ("scan0.npz",), formats.NPZ,
        rule="checked",
    ),
    Reader(
        "nifti", _scans(_pair_nifti(".nii")), lambda f: _parts(scan_folder(f)), ("scan0*",),
        formats.NIFTI,
    ),
    Reader(
        "nifti-gz", _scans(_pair_nifti(".nii.gz")), lambda f: _parts(scan_folder(f)), ("scan0*",),
        formats.gzipped(*formats.NIFTI), rule="checked",
    ),
    Reader(
        "oasis", _make_oasis, lambda f: _parts(oasis(f)), ("OASIS_OAS1_0001_MR1/*",),
        formats.gzipped(*formats.NIFTI), rule="checked",
    ),
    Reader("oasis-texts", _make_oasis, lambda f: _parts(oasis(f)), ("*.txt",)),
    Reader(
        "matlab", _make_flowers, lambda f: _parts(flowers102(f, 8)), ("*.mat",), formats.MATLAB
    ),
    Reader(
        "zip", _make_flowers, lambda f: _parts(flowers102(f, 8)), ("*.zip",), formats.ZIP,
        rule="checked",
    ),
    Reader("tar", _make_tar, _unpack("archive.tar"), ("*.tar",), formats.TAR),
    Reader(
        "tar-gz", _make_tar, _unpack("archive.tar.gz"), ("*.gz",),
        (*formats.TAR, *formats.gzipped()), rule="checked",
    ),
    Reader(
        "pictures", _make_pictures, lambda f: _parts(image_folder(f, 8)), ("a/*",), formats.IMAGES
    ),
    Reader(
        "decoded", _make_decoded, _decode, ("cache/**/*.npy",), (formats.npy,), rule="checked"
    ),
    Reader("decoded-sums", _make_decoded, _decode, ("cache/**/*.aspect",), rule="checked"),
)  # fmt: skip
