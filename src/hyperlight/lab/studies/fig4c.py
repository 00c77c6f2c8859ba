"""Figure 4c: scale-space segmentation, classical against MIP, with Adam and SGD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..engine import Spec
from ..summary import BEYOND, SUBSTANTIAL, Claim
from ..tasks.base import Formulation
from . import drawing, family, judging, settings
from .base import Results, Setup, Study, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTIMIZERS = ("adamw", "sgd")
SOURCE = "section 6.2, figure 4c"


def of_the_paper(setup: Setup) -> list[Spec]:
    """The hypernetworks, without the controls."""
    return _specs(setup, ["classical", "mip"])


def specs(setup: Setup) -> list[Spec]:
    return [*of_the_paper(setup), *_specs(setup, list(family.CONTROLS.values()))]


def _specs(setup: Setup, formulations: Sequence[Formulation]) -> list[Spec]:
    base, seeds = settings.scale_segmentation(setup), setup.replicas
    return [
        spec
        for how in settings.optimizers(setup, base)
        for spec in grid(base, seeds=seeds, formulations=formulations, training=how)
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
            judging.sooner(
                SOURCE,
                "for both optimizers MIP models achieve substantially faster convergence "
                f"({where})",
                mip,
                classical,
                stated=SUBSTANTIAL,
            ),
            judging.better(
                SOURCE,
                "MIP models achieve better final accuracy than the classical parametrization "
                f"({where})",
                mip,
                classical,
            ),
        ]
        found += [
            judging.better(
                BEYOND,
                f"MIP ends higher than {title}, trained for all gammas in as many steps ({where})",
                mip,
                results.one(formulation=formulation, optimizer=name),
                "this task can be solved by weights that do not depend on gamma",
                names=(drawing.name(mip), title),
            )
            for title, formulation in family.CONTROLS.items()
        ]
    return found


STUDY = Study(
    name="fig4c",
    title="Scale-Space segmentation",
    source=SOURCE,
    caption="Mean test Dice over five rescaling factors and training loss over steps, classical "
    "against MIP, with Adam and with SGD (Nesterov momentum). The last quarter of training adds a "
    "soft Dice term to the cross-entropy. Mean and standard deviation over seeds. "
    f"{settings.ONE_IS_ENOUGH}",
    specs=specs,
    draw=draw,
    claims=claims,
    reduced=settings.reduced("scale_segmentation"),
)
