"""Beyond the paper: one HyperMorph against registration networks for several gammas."""

from __future__ import annotations

from ..engine import Spec
from ..summary import BEYOND
from . import family, settings
from .base import Place, Study


def specs(place: Place) -> list[Spec]:
    gammas = (0.2, 0.8) if place.size == "smoke" else (0.1, 0.3, 0.5, 0.7, 0.9)
    rates = (1e-3,) if place.size == "smoke" else (1e-3, 3e-3)
    return family.specs(settings.hypermorph_family(place), settings.seeds(place), gammas, rates)


STUDY = Study(
    name="family-hypermorph",
    title="One registration network for all gammas, or one for each",
    source=BEYOND,
    caption="Test Dice against gamma: one hypernetwork (the paper's MIP, and one to which the "
    "plain network's rate carries over), and plain networks trained for one gamma each, for as "
    "many steps together or each. Mean and standard deviation over seeds, at the better of two "
    "rates.",
    specs=specs,
    draw=family.draw,
    claims=family.claims,
    tables=family.tables,
    reduced=settings.reduced("hypermorph_family"),
)
