"""Beyond the paper: one HyperMorph against registration networks for several gammas."""

from __future__ import annotations

from matplotlib.figure import Figure

from ..engine import Spec
from ..summary import BEYOND, Claim
from . import family, settings
from .base import Place, Results, Study, Table

TITLE, COLUMN = "Test pairs against gamma", "dice"


def specs(place: Place) -> list[Spec]:
    gammas = (0.2, 0.8) if place.size == "smoke" else (0.1, 0.3, 0.5, 0.7, 0.9)
    rates = (3e-4,) if place.size == "smoke" else (3e-4, 1e-3)
    return family.specs(settings.hypermorph_family(place), settings.seeds(place), gammas, rates)


def draw(results: Results) -> Figure:
    return family.draw(results, TITLE, COLUMN)


def claims(results: Results) -> list[Claim]:
    return family.claims(results, TITLE, COLUMN)


def tables(results: Results) -> list[Table]:
    return family.tables(results, TITLE, COLUMN)


STUDY = Study(
    name="family-hypermorph",
    title="One registration network for all gammas, or one for each",
    source=BEYOND,
    caption="Test Dice against gamma: one MIP hypernetwork, and plain networks trained for one "
    "gamma each, for as many steps together or each. Mean and standard deviation over seeds, at "
    "the better of two learning rates.",
    specs=specs,
    draw=draw,
    claims=claims,
    tables=tables,
    reduced=settings.reduced("hypermorph_family"),
)
