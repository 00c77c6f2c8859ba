"""Figure 5b: input and output encoding, each alone and both."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from ..comparison import counted, every
from ..engine import Spec
from ..summary import SUBSTANTIAL, Claim, shown
from ..tasks.base import Formulation
from . import drawing, judging, settings
from .base import Results, Setup, Study, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMULATIONS: tuple[Formulation, ...] = ("classical", "encoding", "residual", "mip")
SOURCE = "section 6.2, figure 5b"


def specs(setup: Setup) -> list[Spec]:
    scale, bayes = settings.scale_segmentation(setup), settings.components(setup)
    seeds = setup.replicas
    return [
        *grid(scale, seeds=seeds, formulations=FORMULATIONS),
        *grid(bayes, seeds=seeds, formulations=FORMULATIONS, training={"optimizer": ["sgd"]}),
    ]


def draw(results: Results) -> Figure:
    return drawing.convergence(
        [(_title(task), results.where(task=task)) for task in results.values("task")]
    )


def _title(task: str) -> str:
    return {"bayes": "Bayesian networks, SGD", "scale_space": "Scale-Space, Adam"}[task]


def claims(results: Results) -> list[Claim]:
    found = []
    for task in results.values("task"):
        classical, *parts, mip = (results.one(task=task, formulation=name) for name in FORMULATIONS)
        for part in parts:
            race = judging.Race.of(part, classical, floor=judging.floor(classical))
            found.append(
                Claim(
                    SOURCE,
                    "each component independently achieves substantial improvements in model "
                    f"convergence ({drawing.name(part)}; {_title(task)})",
                    race.text(),
                    race.faster(SUBSTANTIAL),
                    "the input encoding alone leaves weights that are zero in expectation, and the "
                    "output encoding alone predicts changes that still grow with gamma",
                )
            )
        others = [classical, *parts]
        means = ", ".join(
            f"{mip.metric.text(statistics.fmean(map(judging.mean_over_training, group.runs)))} "
            f"({drawing.name(group)})"
            for group in (*others, mip)
        )
        ends = ", ".join(
            f"{shown(group.final, group.metric)} ({drawing.name(group)})"
            for group in (*others, mip)
        )
        leads = [
            judging.compare(mip, part, judging.mean_over_training).above(0.0)
            for part in others
            if not (part.diverged or judging.at_floor(part))
        ]
        found.append(
            Claim(
                SOURCE,
                "best results (fastest convergence) are consistently achieved when both components "
                f"are used jointly during training ({_title(task)})",
                f"test {mip.metric.name}, mean over training: {means}; "
                f"final {mip.metric.name}: {ends}; against those that learn: "
                f"{counted(leads) or 'none does'}",
                "refuted" if mip.diverged and leads else every(leads),
            )
        )
    return found


STUDY = Study(
    name="fig5b",
    title="Each component alone",
    source=SOURCE,
    caption="Test metric and training loss over steps: classical, input encoding alone, output "
    "encoding alone, and both (MIP). Mean and standard deviation over seeds.",
    specs=specs,
    draw=draw,
    claims=claims,
    reduced=settings.reduced("scale_segmentation", "components"),
)
