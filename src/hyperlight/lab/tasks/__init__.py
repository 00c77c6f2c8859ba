"""The tasks, one file each, and the registry of all of them."""

from . import bayes, families, hypermorph, problems, scale_space, vae
from .base import Kind

__all__ = ["KINDS", "Kind"]

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        *(bayes.KIND, hypermorph.KIND, scale_space.KIND),
        *(families.KIND, vae.KIND, problems.KIND),
    )
}
"""All kinds of tasks by name, in the order in which the command line lists them."""
