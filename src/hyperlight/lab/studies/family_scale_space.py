"""Beyond the paper: one scale-space hypernetwork against networks for several factors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..engine import Spec
from ..summary import BEYOND
from . import family, settings
from .base import Place, Results, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COST = "ms per image"


def specs(place: Place) -> list[Spec]:
    gammas = (0.25, 0.5) if place.size == "smoke" else (0.1, 0.2, 0.3, 0.4, 0.5)
    rates = (1e-3,) if place.size == "smoke" else (1e-3, 3e-3)
    return family.specs(settings.scale_segmentation(place), settings.seeds(place), gammas, rates)


def draw(results: Results) -> Figure:
    return family.draw(results, COST)


STUDY = Study(
    name="family-scale_space",
    title="One segmentation network for all rescaling factors, or one for each",
    source=BEYOND,
    caption="Test Dice, and milliseconds per image, against the rescaling factor gamma: one "
    "hypernetwork (the paper's MIP, and one to which the plain network's rate carries over), and "
    "plain networks trained for one factor each, for as many steps together or each. Mean and "
    "standard deviation over seeds, at the better of two rates.",
    specs=specs,
    draw=draw,
    claims=family.claims,
    tables=family.tables,
    reduced=settings.reduced("scale_family"),
)
