"""Data sets: loaders that check what they read, downloads that check what they get.

A loader returns an :class:`ImageSplit` (images with a class each) or a :class:`ScanSplit` (scans
with a label map each); :class:`Batches` and :class:`PairBatches` draw from them. A new data set is
a file with a :class:`DataSet`, registered in :data:`DATA`.
"""

from collections.abc import Mapping

from ...errors import did_you_mean, listed
from ..errors import LabError
from .augment import Augmentation
from .base import DataSet, Request
from .batches import Batches, PairBatches
from .digits import DIGITS, digit_scans, digits
from .flowers import FLOWERS102, fetch_flowers102, flowers102
from .folders import FOLDER, image_folder, scan_folder
from .images import Images, ImageSplit, stratified_split
from .mnist import MNIST, fetch_mnist, mnist
from .oasis import OASIS, fetch_oasis, oasis
from .ptbp import PTBP, ptbp
from .scans import Scans, ScanSplit, pairs, split_names

__all__ = [
    "DATA",
    "Augmentation",
    "Batches",
    "DataSet",
    "ImageSplit",
    "Images",
    "PairBatches",
    "Request",
    "ScanSplit",
    "Scans",
    "digit_scans",
    "digits",
    "fetch_flowers102",
    "fetch_mnist",
    "fetch_oasis",
    "flowers102",
    "image_folder",
    "load_images",
    "load_scans",
    "mnist",
    "oasis",
    "pairs",
    "ptbp",
    "scan_folder",
    "split_names",
    "stratified_split",
]

DATA: dict[str, DataSet] = {
    found.name: found for found in (DIGITS, MNIST, FLOWERS102, PTBP, OASIS, FOLDER)
}
"""All data sets by name, in the order in which the command line lists them."""


def load_images(name: str, asked: Request) -> ImageSplit:
    """Load a data set of images.

    Raises:
        LabError: there is no such data set, or it cannot be had as asked.
        DataError: its files are missing or damaged.
    """
    known = {key: found.images for key, found in DATA.items() if found.images is not None}
    _check(name, known)
    return known[name](asked)


def load_scans(name: str, asked: Request) -> ScanSplit:
    """Load a data set of scans; errors as in :func:`load_images`."""
    known = {key: found.scans for key, found in DATA.items() if found.scans is not None}
    _check(name, known)
    return known[name](asked)


def _check(name: str, known: Mapping[str, object]) -> None:
    if name not in known:
        raise LabError(
            f"--data was {name!r}; expected one of {listed(known)}.{did_you_mean(name, known)}"
        )
