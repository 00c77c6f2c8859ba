"""Section 6.2: a training step of MIP takes as long as a classical one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .. import figures
from ..comparison import Interval, counted, every
from ..engine import Spec
from ..summary import Claim, Spread
from . import drawing, fig4a, fig4b, fig4c, judging, settings
from .base import Group, Results, Setup, Study, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "section 6.2"
FORMULATIONS = ("classical", "mip")
# A step that takes less than this many times as long is no impact.
IMPACT = 1.05


def specs(setup: Setup) -> list[Spec]:
    return [*fig4a.specs(setup), *fig4b.specs(setup), *fig4c.of_the_paper(setup)]


def _pairs(results: Results) -> list[tuple[str, Group, Group]]:
    """Classical and MIP for every task and optimizer, each at its best rate."""
    found = []
    keys = dict.fromkeys((g.spec.task, g.spec.training.optimizer) for g in results)
    for task, optimizer in keys:
        classical, mip = (
            drawing.best(results.where(task=task, optimizer=optimizer, formulation=name))
            for name in FORMULATIONS
        )
        found.append((f"{drawing.NAMES[task]}, {drawing.NAMES[optimizer]}", classical, mip))
    return found


def _rows(results: Results) -> list[tuple[str, Spread, Spread]]:
    """Milliseconds per step of classical and MIP for every task and optimizer."""
    rows = []
    for title, *pair in _pairs(results):
        times = (group.step_seconds for group in pair)
        classical, mip = (Spread(1e3 * each.mean, 1e3 * each.std) for each in times)
        rows.append((title, classical, mip))
    return rows


def draw(results: Results) -> Figure:
    figure, (ax,) = figures.panels(1, width=7.0)
    rows = _rows(results)
    for offset, formulation, spreads in (
        (-0.2, "classical", [classical for _, classical, _ in rows]),
        (0.2, "mip", [mip for _, _, mip in rows]),
    ):
        ax.barh(
            [i + offset for i in range(len(rows))],
            [s.mean for s in spreads],
            0.36,
            xerr=[0.0 if math.isnan(s.std) else s.std for s in spreads],
            **drawing.swatch(formulation),
        )
    ax.set_yticks(range(len(rows)), [row[0] for row in rows])
    ax.invert_yaxis()
    ax.set(xlabel="milliseconds per step")
    ax.legend(frameon=False)
    return figure


def claims(results: Results) -> list[Claim]:
    found, verdicts = [], []
    for title, classical, mip in _pairs(results):
        ratio = Interval.ratio(*judging.paired(mip, classical, judging.step_seconds))
        verdicts.append(ratio.below(IMPACT))
        times = " and ".join(f"{1e3 * g.step_seconds.mean:.1f}" for g in (mip, classical))
        found.append(f"{title}: {times}, ratio {ratio.text(2)} ({verdicts[-1]})")
    return [
        Claim(
            SOURCE,
            "for all experiments, we found that MIP hypernetworks did not introduce a measurable "
            "impact in training runtime",
            f"{counted(verdicts)}; milliseconds per step of MIP and classical: "
            f"{'; '.join(found)} (no impact: a ratio below {IMPACT:g})",
            every(verdicts),
            "runs on the same machine disturb each other",
        )
    ]


def tables(results: Results) -> list[Table]:
    rows = [
        [title, classical.text(2), mip.text(2), f"{mip.mean / classical.mean:.3f}"]
        for title, classical, mip in _rows(results)
    ]
    heading = ["", "classical", "MIP", "MIP / classical"]
    return [Table("Milliseconds per step", heading, rows)]


STUDY = Study(
    name="runtime",
    title="Training time",
    source=SOURCE,
    caption="Milliseconds per training step (the median over the stretches between two "
    "evaluations), classical against MIP, in the runs of figure 4. Mean and standard deviation "
    "over seeds.",
    specs=specs,
    draw=draw,
    claims=claims,
    tables=tables,
    reduced=settings.reduced("bayes", "hypermorph", "scale_segmentation"),
)
