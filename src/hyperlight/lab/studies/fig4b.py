"""Figure 4b: HyperMorph, default against MIP, Adam and SGD."""

from __future__ import annotations

from matplotlib.figure import Figure

from ..engine import Spec
from ..summary import Claim
from . import drawing, settings
from .base import Place, Results, Study, grid

# The paper: Adam with decoupled decay at 1e-4; SGD over rates, of which this is the greatest.
OPTIMIZERS = ("adamw", "sgd")
SGD_RATE = 3e-2


def specs(place: Place) -> list[Spec]:
    base, seeds = settings.hypermorph(place), settings.seeds(place)
    return [
        *grid(base, seeds=seeds, training={"optimizer": ["adamw"]}),
        *grid(base, seeds=seeds, training={"optimizer": ["sgd"], "lr": [SGD_RATE]}),
    ]


def draw(results: Results) -> Figure:
    return drawing.convergence(
        [(name.upper(), results.where(optimizer=name)) for name in OPTIMIZERS]
    )


def claims(results: Results) -> list[Claim]:
    mip, classical = (results.one(optimizer="sgd", formulation=f) for f in ("mip", "classical"))
    before = classical.figure()[0].mean
    return [
        drawing.faster(
            "section 6.2, figure 4b",
            "with Adam MIP models consistently achieve similar Dice scores substantially faster",
            results.one(optimizer="adamw", formulation="mip"),
            results.one(optimizer="adamw", formulation="classical"),
        ),
        Claim(
            "section 6.2, figure 4b",
            "with SGD MIP is crucial, as otherwise the model fails to meaningfully train",
            f"Dice at step 0 {before:.3f}; in the end {mip.final.text(3)} (MIP), "
            f"{classical.final.text(3)} (default)",
            mip.final.mean > before + 0.01 and classical.final.mean < before + 0.005,
        ),
    ]


STUDY = Study(
    name="fig4b",
    title="HyperMorph",
    source="section 6.2, figure 4b",
    specs=specs,
    draw=draw,
    claims=claims,
    reduced=settings.REDUCED["hypermorph"],
)
