"""Figure 7: final Dice along gamma by architecture, from the runs of figure 6."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

from .. import figures
from ..comparison import counted, every
from ..record import Run
from ..summary import Claim
from . import drawing, fig6, judging, settings
from .base import Group, Results, Study, Table, along

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "B.1, figure 7"
FORMULATIONS = ("classical", "mip")


def _dice(group: Group) -> dict[float, float]:
    """Test Dice at 11 values of gamma, mean over seeds."""
    return {gamma: spread.mean for gamma, spread in group.along_gamma()}


def draw(results: Results) -> Figure:
    architectures = results.values("hidden")
    figure, (ax,) = figures.panels(1, height=3.8)
    for offset, formulation in zip((-0.2, 0.2), FORMULATIONS, strict=True):
        color = figures.COLORS[formulation]
        ax.boxplot(
            [
                list(_dice(results.one(hidden=hidden, formulation=formulation)).values())
                for hidden in architectures
            ],
            positions=[i + offset for i in range(len(architectures))],
            widths=0.34,
            patch_artist=True,
            boxprops={"facecolor": color, "alpha": 0.4, "edgecolor": color},
            medianprops={"color": color, "linewidth": 2},
            whiskerprops={"color": color},
            capprops={"color": color},
            flierprops={"markersize": 3, "markeredgecolor": color},
        )
        ax.plot([], [], linewidth=8, alpha=0.4, **drawing.swatch(formulation))
    names = [fig6.NAMES[hidden].replace(", ", "\n") for hidden in architectures]
    ax.set_xticks(range(len(architectures)), names, fontsize="small")
    ax.set(ylabel="test Dice over gamma")
    figures.legend(figure)
    return figure


def claims(results: Results) -> list[Claim]:
    found, verdicts = [], []
    for hidden in results.values("hidden"):
        mip, classical = results.pair(hidden=hidden)
        more = judging.compare(mip, classical, _mean)
        verdicts.append(judging.testable(mip, classical, more.above(0.0)))
        means = [statistics.fmean(map(_mean, group.runs)) for group in (mip, classical)]
        found.append(
            f"{fig6.NAMES[hidden]}: {means[0]:.3f} and {means[1]:.3f}, difference "
            f"{more.text(3, '+')} ({verdicts[-1]})"
        )
    return [
        Claim(
            SOURCE,
            "for all hypernetwork architectures, MIP parametrizations consistently lead to more "
            "accurate models",
            f"{counted(verdicts)}; mean test Dice over 11 gammas of MIP and classical: "
            + "; ".join(found),
            every(verdicts),
        )
    ]


def _mean(run: Run) -> float:
    """Test Dice, mean over gamma."""
    values = along(run).values()
    return statistics.fmean(values) if values else math.nan


def tables(results: Results) -> list[Table]:
    rows = [
        [fig6.NAMES[group.spec.config.hidden], drawing.name(group), gamma, f"{dice:.4f}"]
        for group in results
        for gamma, dice in _dice(group).items()
    ]
    return [Table("Dice along gamma", ["architecture", "", "gamma", "dice"], rows, shown=False)]


STUDY = Study(
    name="fig7",
    title="Final accuracy by width and depth",
    source=SOURCE,
    caption="Final test Dice at 11 values of gamma (means over seeds) for the hypernetworks of "
    "figure 6, classical and MIP: median, quartiles, and range without outliers.",
    specs=fig6.specs,
    draw=draw,
    claims=claims,
    tables=tables,
    reduced=settings.reduced("architectures"),
)
