r"""Saving and loading: one safetensors file, no pickle.

The files, in reading order: ``files`` (:func:`save` and :func:`load`), ``container`` (safetensors
with a checksum), ``kinds`` (JSON and what it may be), ``structure`` (what a network is besides its
tensors), ``state`` (how state dicts are compared and copied), ``legacy`` (checkpoints of HyperLight
0.0.5), ``hub`` and ``card`` (the Hugging Face Hub).
"""

from . import hub
from .container import file_to_write as file_to_write
from .container import replaced as replaced
from .files import load, save
from .legacy import from_hyperlight

__all__ = ["from_hyperlight", "hub", "load", "save"]
