"""The tasks of the paper, one file each, and the registry of all tasks."""

from . import bayes, hypermorph, scale_space
from .base import Kind

__all__ = ["KINDS", "Kind"]

KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (bayes.KIND, hypermorph.KIND, scale_space.KIND)
}
"""All kinds of tasks by name, in the order in which the command line lists them."""
