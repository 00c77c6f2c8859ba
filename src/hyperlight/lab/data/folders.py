"""Your own data: a folder of images, or of scans with label maps."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ...errors import listed
from ..errors import DataError
from .augment import Augmentation
from .base import DataSet
from .border import entries, printable, reading
from .images import Images, ImageSplit, stratified_split
from .pictures import Picture, decode_all, longest_side
from .scans import Scans, ScanSplit, split_names
from .volumes import check_labels, read_nifti, read_npz, to_unit

__all__ = ["FOLDER", "image_folder", "scan_folder"]

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}

# The folders that hold the parts of a data set, if it comes split.
PARTS = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}
PART_NAMES = {name for names in PARTS.values() for name in names}


def _check_folder(folder: Path, expected: str) -> None:
    with reading(folder, "a folder", "Check its name and its permissions."):
        there = folder.is_dir()
    if not there:
        raise DataError(f"{folder} is not a folder; expected one with {expected}.")


def _folders(folder: Path) -> list[Path]:
    return [p for p in entries(folder) if p.is_dir() and not p.name.startswith(".")]


def _parts(folder: Path, names: Collection[str]) -> dict[str, Path]:
    """The folders of the parts: ``train``, and ``valid`` and ``test`` if they are there."""
    parts = {}
    for part, known in PARTS.items():
        found = [name for name in known if name in names]
        if len(found) > 1:
            raise DataError(
                f"{folder} has the folders {listed(found)}; expected one of them, with the data "
                "for validation. Merge them, or remove the others."
            )
        if found:
            parts[part] = folder / found[0]
    if "train" not in parts:
        raise DataError(
            f"{folder} has {listed(path.name for path in parts.values())} and no 'train'; expected "
            "a folder 'train' beside them, with the data for training."
        )
    return parts


def _without_test(parts: Collection[str], what: str) -> str:
    """Say what is done if there are parts, and none for testing."""
    if not parts or "test" in parts:
        return ""
    return f" (there is no folder 'test': 20 % of the {what} in 'train' are held out for it)"


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGES and path.is_file() and not path.name.startswith(".")
    )


def _classes(folder: Path, names: Sequence[str] | None = None) -> tuple[list[str], list[Path]]:
    """The class names and all images of a folder with one folder per class."""
    classes = [path.name for path in _folders(folder)]
    if len(classes) < 2 or (names is not None and classes != list(names)):
        expected, advice = "two or more", ""
        if names is not None:
            expected = f"{listed(names)} as in train"
            advice = (
                f" Without the folder {folder.name!r}, a fifth of train is held out in its place."
            )
        raise DataError(
            f"{folder} has the class folders {listed(classes) or 'none'}; expected {expected}, "
            f"each with the images of one class.{advice}"
        )
    images = []
    for name in classes:
        found = _pictures(folder / name)
        if not found:
            where = "" if names is None else ", here and in train"
            raise DataError(
                f"{folder / name} has no images; expected some, with names that end in "
                f"{', '.join(sorted(IMAGES))}. Add images, or remove the folder{where}."
            )
        images.extend(found)
    return classes, images


def _image_parts(folder: Path) -> dict[str, Path]:
    """The folders of the parts of a folder of images; none if it holds class folders."""
    names = [path.name for path in _folders(folder)]
    known = [name for name in names if name in PART_NAMES]
    others = [name for name in names if name not in PART_NAMES]
    # A class may be called 'train', so that alone beside other folders says nothing.
    if not known or (others and ("train" not in known or len(known) == 1)):
        return {}
    classes = [name for name in others if _pictures(folder / name)]
    if classes:
        raise DataError(
            f"{folder} has the parts {listed(known)}, and beside them {listed(classes)} with "
            "images; expected class folders either in the parts or in their place. Move the "
            "folders into 'train', or rename a class that is called like a part."
        )
    return _parts(folder, known)


def image_folder(
    folder: Path,
    size: int = 64,
    *,
    channels: Literal[1, 3] = 3,
    whole: bool = True,
) -> ImageSplit:
    """Load your own images from one folder per class.

    The layout is ``folder/CLASS/any/image.jpg``, or ``folder/train/CLASS/...`` with
    ``folder/valid/CLASS/...`` and ``folder/test/CLASS/...`` (``val`` and ``validation`` are
    ``valid``). Where there is no folder for testing, 20 % of the images, stratified, are held out
    for it. Where there is none for validation, so is a fifth of the images that are left for
    training. Classes are sorted by name, and all parts have the same. Hidden files and files
    without the extension of an image are ignored.

    EXIF orientation is applied; grey, palette and 16-bit images are converted, transparency becomes
    white. Training images are kept whole for ``augment``; see
    :func:`~hyperlight.lab.data.flowers102`.

    Args:
        folder: with the images.
        size: height and width in pixels.
        channels: 3 for colour, 1 for grey.
        whole: keep training images whole, for augmentation.

    Returns:
        Images ``(N, channels, size, size)``, uint8.

    Raises:
        DataError: there are no class folders, they differ between the parts, one is empty or too
            small, or an image cannot be read.
    """
    if size < 1:
        raise DataError(f"The size of the images was {size}; expected 1 or more.")
    _check_folder(folder, "a folder of images for every class")
    parts = _image_parts(folder)
    top = parts.get("train", folder)
    classes, train = _classes(top)
    root = dict.fromkeys(train, top)
    held_out = {}
    for name in ("test", "valid"):
        if name in parts:
            _, held_out[name] = _classes(parts[name], classes)
            root |= dict.fromkeys(held_out[name], parts[name])
        else:
            train, held_out[name] = _hold_out(top, train, root, classes)
    test, valid = held_out["test"], held_out["valid"]

    def part(paths: list[Path], side: int, squeezed: bool) -> Images:
        pixels, aspect = decode_all(
            [Picture.of(path) for path in paths], side, whole=squeezed, channels=channels
        )
        labels = torch.from_numpy(_labels(paths, root, classes))
        return Images(
            torch.from_numpy(pixels), labels, torch.from_numpy(aspect) if squeezed else None
        )

    name = printable(folder.resolve().name)
    side = min(2 * size, longest_side([Picture.of(path) for path in train])) if whole else size
    return ImageSplit(
        name=name,
        train=part(train, side, whole),
        test=part(test, size, False),
        classes=len(classes),
        valid=part(valid, size, False),
        augment=Augmentation(size) if whole else None,
        class_names=tuple(printable(found) for found in classes),
        note=f"images of {name}, {len(classes)} classes, {size}x{size}: "
        f"{len(train):,} images to train, {len(valid):,} to validate, {len(test):,} to test"
        f"{_without_test(parts, 'images')}",
    )


def _labels(paths: list[Path], root: dict[Path, Path], classes: list[str]) -> np.ndarray:
    position = {name: i for i, name in enumerate(classes)}
    names = (path.relative_to(root[path]).parts[0] for path in paths)
    return np.array([position[name] for name in names], dtype=np.int64)


def _hold_out(
    folder: Path, paths: list[Path], root: dict[Path, Path], classes: list[str]
) -> tuple[list[Path], list[Path]]:
    try:
        kept, held_out = stratified_split(_labels(paths, root, classes), share=0.2, seed=0)
    except ValueError as error:
        raise DataError(
            f"{folder} has {len(paths):,} images of {len(classes)} classes, too few to hold out a "
            f"fifth of every class ({error}). Add images, or remove small classes."
        ) from error
    return [paths[i] for i in kept], [paths[i] for i in held_out]


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".npz")


def _scan(
    path: Path, axis: int, slices: Sequence[int] | None
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Slices ``(S, H, W)`` of a scan and of its label map, and their positions."""
    if path.suffix == ".npz":
        arrays = read_npz(path, ("image", "labels"))
        image, labels, map_path = arrays["image"], arrays["labels"], path
    else:
        found = [path.with_name(f"{_stem(path)}_seg{end}") for end in (".nii.gz", ".nii")]
        map_path = next((candidate for candidate in found if candidate.is_file()), found[0])
        if not map_path.is_file():
            raise DataError(
                f"{path} has no label map; expected {found[0].name} or {found[1].name} beside it."
            )
        image = read_nifti(path, canonical=True)
        labels = read_nifti(map_path, canonical=True)
    if image.shape != labels.shape or image.ndim not in (2, 3):
        raise DataError(
            f"{path} has shape {image.shape} and its label map {map_path.name} {labels.shape}; "
            "expected the same, of two or three dimensions. Resample one to the other."
        )
    check_labels(map_path, labels)
    whole = image
    if image.ndim == 2:
        image, labels = image[None], labels[None]
    else:
        image, labels = np.moveaxis(image, axis, 0), np.moveaxis(labels, axis, 0)
    chosen = [len(image) // 2] if slices is None else list(slices)
    if not chosen or min(chosen) < 0 or max(chosen) >= len(image):
        raise DataError(
            f"The slices were {chosen}; {path} has {len(image)} along axis {axis}, expected some "
            f"of 0 to {len(image) - 1}."
        )
    # The slices alone are converted, which takes less memory.
    return to_unit(path, whole, image[chosen]), labels[chosen].astype(np.int64), chosen


def _scans_in(folder: Path) -> list[Path]:
    """The files of the scans that lie in a folder, without their label maps."""
    files = [*folder.glob("*.nii"), *folder.glob("*.nii.gz")]
    files = [path for path in files if not _stem(path).endswith("_seg")]
    return sorted([*files, *folder.glob("*.npz")], key=_stem)


def _scan_files(folder: Path) -> tuple[list[Path], dict[str, Path]]:
    """The files of all scans, and the folders of the parts; none if the folder holds scans."""
    inside = _scans_in(folder)
    known = [path.name for path in _folders(folder) if path.name in PART_NAMES]
    if inside:
        both = [name for name in known if _scans_in(folder / name)]
        if both:
            raise DataError(
                f"{folder} has {len(inside)} scans, and more in its folders {listed(both)}; "
                "expected all of them in the parts, or none. Move the scans into 'train', or all "
                "into one folder."
            )
        parts = {}
    else:
        parts = _parts(folder, known) if known else {}
    files = []
    for name, place in (parts or {"": folder}).items():
        found = _scans_in(place) if parts else inside
        split = name == "" or (name == "train" and len(parts) < 3)
        least = "5 or more, of which some are held out" if split else "1 or more"
        if len(found) < (5 if split else 1):
            raise DataError(
                f"{place} has {len(found)} scans; expected {least}: "
                "NAME.nii.gz (or .nii) with NAME_seg.nii.gz beside it, or NAME.npz with arrays "
                "'image' and 'labels'."
            )
        names = [_stem(path) for path in found]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(
                f"{place} has more than one scan named {listed(twice)}; expected one file for "
                "each. Rename or remove the others."
            )
        files += found
    return files, parts


def _scan_parts(files: Sequence[Path], parts: dict[str, Path]) -> list[list[int]]:
    """Indices of the scans to train, validate and test."""
    at = {part: [i for i, p in enumerate(files) if p.parent == parts[part]] for part in parts}
    train = at.get("train", list(range(len(files))))
    drawn = [[train[i] for i in chosen] for chosen in split_names([_stem(files[i]) for i in train])]
    if "valid" not in at and "test" not in at:
        return drawn
    if len(at) < 3:
        (missing,) = {"valid", "test"} - at.keys()
        at |= {"train": sorted(drawn[0] + drawn[1]), missing: drawn[2]}
    return [at["train"], at["valid"], at["test"]]


def scan_folder(
    folder: Path,
    size: tuple[int, int] | None = None,
    *,
    axis: int = 2,
    slices: Sequence[int] | None = None,
) -> ScanSplit:
    """Load your own scans with their label maps.

    - NIfTI: ``NAME.nii`` or ``NAME.nii.gz``, and beside it ``NAME_seg.nii`` or
      ``NAME_seg.nii.gz``. Axes are turned to left-right, posterior-anterior, inferior-superior.
    - npz: ``NAME.npz`` with arrays ``image`` and ``labels``.

    Image and labels have the same two or three dimensions; three-dimensional ones are cut into
    slices. The intensities of every scan are scaled to [0, 1]; label values (whole numbers from 0,
    the background) are renumbered from 0. Slices of one scan stay together; slices at the
    same position form a group.

    64 % of the scans are for training, 16 % for validation and 20 % for testing (see
    :func:`split_names`). Or they lie in ``folder/train``, ``folder/valid`` and ``folder/test``
    (``val`` and ``validation`` are ``valid``). Where ``valid`` or ``test`` is missing, 20 % of the
    scans in ``train`` are held out for it; where both are, they are split as above.

    Args:
        folder: with the scans.
        size: height and width to resize to; by default all scans must have the same size.
        axis: 0, 1 or 2, along which to take slices (2: axial).
        slices: positions of the slices; by default the middle one.

    Returns:
        Images ``(N, 1, H, W)``, float32 in [0, 1].

    Raises:
        DataError: a part or a label map is missing, shapes differ, or a file is damaged or has
            unexpected values.
    """
    if axis not in (0, 1, 2):
        raise DataError(f"The axis was {axis}; expected 0, 1 or 2.")
    _check_folder(folder, "scans")
    files, parts = _scan_files(folder)
    read = [_scan(path, axis, slices) for path in files]
    values = np.unique(np.concatenate([np.unique(labels) for _, labels, _ in read]))
    values = np.union1d(values, [0])
    if len(values) > 256:
        raise DataError(
            f"The label maps in {folder} have {len(values):,} values; expected at most 256. Are "
            "they label maps?"
        )
    scans: list[Scans] = []
    for path, (image, labels, _) in zip(files, read, strict=True):
        numbered = np.searchsorted(values, labels).astype(np.uint8)
        made = Scans(
            torch.from_numpy(np.ascontiguousarray(image)).unsqueeze(1),
            torch.from_numpy(numbered),
            torch.zeros(len(image), dtype=torch.int64),
        )
        made = made if size is None else made.resize(size)
        if scans and made.images.shape[-2:] != scans[0].images.shape[-2:]:
            first = files[0].relative_to(folder)
            raise DataError(
                f"{path} has slices of {tuple(made.images.shape[-2:])}, {first} of "
                f"{tuple(scans[0].images.shape[-2:])}; expected one size. Pass --size to resize "
                "them."
            )
        scans.append(made)

    def part(indices: list[int]) -> Scans:
        return Scans(
            torch.cat([scans[i].images for i in indices]),
            torch.cat([scans[i].labels for i in indices]),
            torch.cat([torch.tensor(read[i][2]) for i in indices]),
        )

    train, valid, test = (part(indices) for indices in _scan_parts(files, parts))
    height, width = train.images.shape[-2:]
    name = printable(folder.resolve().name)
    return ScanSplit(
        name=name,
        train=train,
        valid=valid,
        test=test,
        label_names=tuple("background" if v == 0 else f"label {v}" for v in values.tolist()),
        note=f"scans of {name}, {height}x{width}, {len(values) - 1} labels: "
        f"{len(train):,} slices to train, {len(valid):,} to validate, {len(test):,} to test"
        f"{_without_test(parts, 'scans')}",
    )


FOLDER = DataSet(
    "folder",
    images=lambda asked: image_folder(
        asked.own_folder("images"),
        asked.side(64),
        channels=1 if asked.grey else 3,
        whole=asked.augment,
    ),
    scans=lambda asked: scan_folder(asked.own_folder("scans"), asked.size),
)
