"""Beyond the paper: one HyperMorph against plain registration networks, one per gamma."""

from __future__ import annotations

from ..engine import Spec
from ..summary import BEYOND
from . import family, settings
from .base import Setup, Study


def specs(setup: Setup) -> list[Spec]:
    gammas = (0.2, 0.8) if setup.size == "smoke" else (0.1, 0.3, 0.5, 0.7, 0.9)
    rates = (1e-3,) if setup.size == "smoke" else (1e-3, 3e-3)
    return family.specs(settings.hypermorph_family(setup), settings.seeds(setup), gammas, rates)


STUDY = Study(
    name="family-hypermorph",
    title="One registration network for all gammas, or one for each",
    source=BEYOND,
    caption="Test Dice over gamma. MIP and ours (the library's defaults, with hl.parameter_groups) "
    "are one hypernetwork each; every plain network is trained for one gamma, with as many steps "
    "as the hypernetwork for all of them together or for each. Mean and standard deviation over "
    "seeds, at the better of two rates.",
    specs=specs,
    draw=family.draw,
    claims=family.claims,
    tables=family.tables,
    reduced=settings.reduced("hypermorph_family"),
)
