"""Figure 4c: scale-space segmentation, default against MIP, Adam and SGD."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..engine import Spec
from ..summary import Claim
from . import drawing, settings
from .base import Place, Results, Study, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTIMIZERS = ("adamw", "sgd")
SOURCE = "section 6.2, figure 4c"


def specs(place: Place) -> list[Spec]:
    base, seeds = settings.scale_segmentation(place), settings.seeds(place)
    return [
        spec
        for how in settings.optimizers(place, base)
        for spec in grid(base, seeds=seeds, training=how)
    ]


def draw(results: Results) -> Figure:
    return drawing.convergence(
        [(drawing.NAMES[name], results.where(optimizer=name)) for name in OPTIMIZERS]
    )


def claims(results: Results) -> list[Claim]:
    found = []
    for name in OPTIMIZERS:
        mip, classical = results.pair(optimizer=name)
        where = drawing.NAMES[name]
        found += [
            drawing.sooner(
                SOURCE,
                "for both optimizers MIP models achieve substantially faster convergence "
                f"({where})",
                mip,
                classical,
            ),
            Claim(
                SOURCE,
                f"and better final accuracy compared to the default parametrization ({where})",
                drawing.no_worse(SOURCE, "", mip, classical).measured,
                drawing.worth(mip.final) > drawing.worth(classical.final),
            ),
        ]
    return found


STUDY = Study(
    name="fig4c",
    title="Scale-Space segmentation",
    source=SOURCE,
    caption="Mean test Dice over five rescaling factors and training loss over steps, default "
    "against MIP, with Adam and SGD with Nesterov momentum; mean and standard deviation over "
    "seeds. Three quarters through, a soft-Dice term joins the cross-entropy.",
    specs=specs,
    draw=draw,
    claims=claims,
    reduced=settings.reduced("scale_segmentation"),
)
