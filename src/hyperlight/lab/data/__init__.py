"""Data sets: loaders that check what they read, downloads that check what they get.

Every loader gives an :class:`ImageSplit` (images with a class each) or a
:class:`ScanSplit` (scans with a label map each); :class:`Batches` and
:class:`PairBatches` draw from them.
"""

from .augment import Augmentation
from .batches import Batches, PairBatches
from .flowers import fetch_flowers102, flowers102
from .folders import image_folder, scan_folder
from .images import Images, ImageSplit, digits, stratified_split
from .mnist import fetch_mnist, mnist
from .oasis import fetch_oasis, oasis
from .ptbp import ptbp
from .scans import Scans, ScanSplit, digit_scans, pairs, split_names

__all__ = [
    "Augmentation",
    "Batches",
    "ImageSplit",
    "Images",
    "PairBatches",
    "ScanSplit",
    "Scans",
    "digit_scans",
    "digits",
    "fetch_flowers102",
    "fetch_mnist",
    "fetch_oasis",
    "flowers102",
    "image_folder",
    "mnist",
    "oasis",
    "pairs",
    "ptbp",
    "scan_folder",
    "split_names",
    "stratified_split",
]
