"""Section 6.2: a training step of MIP takes as long as a classical one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .. import figures
from ..engine import Spec
from ..summary import Claim, Spread
from . import drawing, fig4a, fig4b, fig4c, settings
from .base import Results, Setup, Study, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "section 6.2"
FORMULATIONS = ("classical", "mip")


def specs(setup: Setup) -> list[Spec]:
    return [*fig4a.specs(setup), *fig4b.specs(setup), *fig4c.specs(setup)]


def _rows(results: Results) -> list[tuple[str, Spread, Spread]]:
    """Milliseconds per step of classical and MIP for every task and optimizer."""
    rows = []
    keys = dict.fromkeys((g.spec.task, g.spec.training.optimizer) for g in results)
    for task, optimizer in keys:
        times = (
            drawing.best(
                results.where(task=task, optimizer=optimizer, formulation=name)
            ).step_seconds
            for name in FORMULATIONS
        )
        classical, mip = (Spread(1e3 * each.mean, 1e3 * each.std) for each in times)
        rows.append((f"{drawing.NAMES[task]}, {drawing.NAMES[optimizer]}", classical, mip))
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
    found, holds = [], []
    for title, classical, mip in _rows(results):
        spreads = [s.std for s in (classical, mip) if not math.isnan(s.std)]
        room = max(0.05 * classical.mean, *spreads) if spreads else 0.05 * classical.mean
        holds.append(mip.mean - classical.mean <= room)
        found.append(f"{title}: {mip.text(1)} and {classical.text(1)}")
    return [
        Claim(
            SOURCE,
            "for all experiments, we found that MIP hypernetworks did not introduce a measurable "
            "impact in training runtime",
            f"milliseconds per step of MIP and classical: {'; '.join(found)} (counted as "
            "no impact: up to 5 %, or the spread over seeds)",
            all(holds),
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
