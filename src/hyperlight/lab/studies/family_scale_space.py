"""Beyond the paper: one scale-space hypernetwork against plain networks, one per factor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..engine import Spec
from ..summary import BEYOND
from . import family, settings
from .base import Results, Setup, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COST = "ms per image"


def specs(setup: Setup) -> list[Spec]:
    gammas = (0.25, 0.5) if setup.size == "smoke" else (0.1, 0.2, 0.3, 0.4, 0.5)
    rates = (1e-3,) if setup.size == "smoke" else (1e-3, 3e-3)
    start, controls = settings.scale_segmentation(setup), list(family.CONTROLS.values())
    return family.specs(start, setup.replicas, gammas, rates, controls)


def draw(results: Results) -> Figure:
    return family.draw(results, COST)


STUDY = Study(
    name="family-scale_space",
    title="One segmentation network for all rescaling factors, or one for each",
    source=BEYOND,
    caption="Test Dice and milliseconds per image over the rescaling factor gamma. MIP and ours "
    "(the library's defaults, with hl.parameter_groups) are one hypernetwork each; every plain "
    "network is trained for one factor, with as many steps as the hypernetwork for all of them "
    "together or for each. Mean and standard deviation over seeds, at the better of two rates. "
    f"{settings.ONE_IS_ENOUGH}",
    specs=specs,
    draw=draw,
    claims=family.claims,
    tables=family.tables,
    reduced=settings.reduced("scale_family"),
)
