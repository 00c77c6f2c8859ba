"""Every figure and table of the paper as a command: ``hyperlight study NAME``."""

from . import fig4a, fig4b
from .base import Place, Results, Size, Study

__all__ = ["STUDIES", "Place", "Results", "Size", "Study"]

STUDIES: dict[str, Study] = {module.STUDY.name: module.STUDY for module in (fig4a, fig4b)}
