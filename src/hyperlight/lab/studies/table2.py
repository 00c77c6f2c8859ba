"""Table 2: final results on the test set, beside the paper's numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .. import figures
from ..comparison import MARGINS, Interval, Verdict, counted, every, several
from ..engine import Spec
from ..summary import Claim, Spread
from . import drawing, fig4a, fig4b, fig4c, judging, settings
from .base import Group, Results, Setup, Study, Table, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "B.4, table 2"
POINT = MARGINS["accuracy"]  # in percentage points; that of Dice, in percent, is the same


@dataclass(frozen=True)
class Row:
    """A row of the paper's table, in percent.

    Attributes:
        title: the paper's title of the row.
        matches: whether a group reproduces this row.
        adam: classical and MIP with Adam.
        sgd: classical and MIP with SGD.
    """

    title: str
    matches: Callable[[Group], bool]
    adam: tuple[Spread, Spread]
    sgd: tuple[Spread, Spread]


def _of(task: str) -> Callable[[Group], bool]:
    return lambda group: group.spec.task == task


def _is_flowers(group: Group) -> bool:
    """Whether it is a Bayesian network whose primary is ResNet-like."""
    config = group.spec.config
    small = config.data == "digits" and config.size is not None  # in a smoke test
    return group.spec.task == "bayes" and (config.data == "flowers102" or small)


def _is_mnist(group: Group) -> bool:
    return group.spec.task == "bayes" and not _is_flowers(group)


PAPER = (
    Row(
        "Bayesian NN, MNIST",
        _is_mnist,
        (Spread(98.1, 1.1), Spread(99.1, 0.3)),
        (Spread(99.2, 0.2), Spread(99.0, 0.2)),
    ),
    Row(
        "Bayesian NN, OxfordFlowers-102",
        _is_flowers,
        (Spread(78.1, 1.9), Spread(83.2, 0.3)),
        (Spread(1.4, 0.1), Spread(75.4, 0.5)),
    ),
    Row(
        "HyperMorph, OASIS",
        _of("hypermorph"),
        (Spread(71.0, 0.3), Spread(72.1, 0.3)),
        (Spread(54.3, 0.4), Spread(70.5, 0.2)),
    ),
    Row(
        "Scale-Space HN, OASIS",
        _of("scale_space"),
        (Spread(81.4, 0.3), Spread(84.4, 0.6)),
        (Spread(75.3, 2.7), Spread(78.8, 1.4)),
    ),
)


@dataclass(frozen=True)
class Cell:
    """Classical and MIP in the paper, in percent, and here."""

    title: str
    optimizer: str
    paper: tuple[Spread, Spread]
    groups: tuple[Group, Group]

    @property
    def here(self) -> tuple[Spread, Spread]:
        """Classical and MIP here, in percent."""
        classical, mip = (
            Spread(_factor(group) * group.final.mean, _factor(group) * group.final.std)
            for group in self.groups
        )
        return classical, mip

    @property
    def gains(self) -> list[float]:
        """MIP minus classical, here, in percentage points, for every seed."""
        classical, mip = self.groups
        pairs = zip(*judging.paired(mip, classical, judging.final), strict=True)
        return [_factor(mip) * (a - b) for a, b in pairs]

    def judged(self, verdict: Verdict) -> Verdict:
        """The verdict on a claim that MIP does better, if it can be tested."""
        classical, mip = self.groups
        return judging.testable(mip, classical, verdict)


def specs(setup: Setup) -> list[Spec]:
    base, seeds = settings.flowers(setup), setup.replicas
    flowers = [
        spec
        for how in settings.optimizers(setup, base)
        for spec in grid(base, seeds=seeds, training=how)
    ]
    return [*fig4a.specs(setup), *flowers, *fig4b.specs(setup), *fig4c.of_the_paper(setup)]


def _factor(group: Group) -> float:
    """From the metric to percent."""
    return 1.0 if group.metric.unit == "%" else 100.0


def _cells(results: Results) -> list[Cell]:
    cells = []
    for row in PAPER:
        for optimizer, paper in (("adam", row.adam), ("sgd", row.sgd)):
            found = [
                group
                for group in results
                if row.matches(group) and group.spec.training.optimizer.startswith(optimizer)
            ]
            classical, mip = (
                drawing.best(g for g in found if g.spec.formulation == name)
                for name in ("classical", "mip")
            )
            cells.append(Cell(row.title, optimizer, paper, (classical, mip)))
    return cells


def draw(results: Results) -> Figure:
    cells = _cells(results)
    figure, axes = figures.panels(2, height=2.0 + 0.3 * len(cells))
    names = [f"{cell.title}, {drawing.NAMES[cell.optimizer]}" for cell in cells]
    for ax, title in zip(axes, ("paper", "here"), strict=True):
        for i, formulation in enumerate(("classical", "mip")):
            spreads = [getattr(cell, title)[i] for cell in cells]
            ax.barh(
                np.arange(len(cells)) + (-0.2, 0.2)[i],
                [s.mean for s in spreads],
                0.36,
                xerr=[0.0 if math.isnan(s.std) else s.std for s in spreads],
                **drawing.swatch(formulation),
            )
        ax.set(title=title, xlabel="accuracy or Dice (%)", xlim=(0, 100))
        ax.invert_yaxis()
    axes[0].set_yticks(range(len(cells)), names)
    axes[1].set_yticks(range(len(cells)), [""] * len(cells))
    figures.legend(figure)
    return figure


def claims(results: Results) -> list[Claim]:
    cells = _cells(results)
    gains = {(cell.title, cell.optimizer): Interval.of(cell.gains) for cell in cells}
    kept, gained, listed = [], [], []
    for cell in cells:
        gain = gains[cell.title, cell.optimizer]
        kept.append(cell.judged(gain.at_least(-POINT)))
        gained.append(cell.judged(gain.above(0.0, POINT)))
        listed.append(
            f"{cell.title}, {drawing.NAMES[cell.optimizer]}: {gain.text(1, '+')} (in the paper "
            f"{cell.paper[1].mean - cell.paper[0].mean:+.1f}; no lower: {kept[-1]}, higher: "
            f"{gained[-1]})"
        )
    more, means = _with_sgd(cells)
    return [
        Claim(
            SOURCE,
            "MIP does not decrease model performance in any setting",
            f"{counted(kept)}; MIP minus classical in percentage points: {'; '.join(listed)}",
            every(kept),
        ),
        Claim(
            SOURCE,
            "MIP provides substantial improvements in several settings",
            f"gain of more than {POINT:g} percentage point: {counted(gained)}",
            several(gained),
        ),
        Claim(
            SOURCE,
            "the improvements are substantial specially when using the SGD optimizer",
            means,
            more,
        ),
    ]


def _with_sgd(cells: list[Cell]) -> tuple[Verdict, str]:
    """Whether MIP gains more with SGD than with Adam, over tasks where both can be tested."""
    by_task = {cell.title: [c for c in cells if c.title == cell.title] for cell in cells}
    differences, found = [], []
    for title, (adam, sgd) in by_task.items():
        if "not testable" in (adam.judged("holds"), sgd.judged("holds")):
            continue
        differences.append([b - a for a, b in zip(adam.gains, sgd.gains, strict=True)])
        found.append(f"{title}: {statistics.fmean(differences[-1]):+.1f}")
    text = "gain with SGD minus gain with Adam in percentage points, of tasks where both can be "
    if not differences:
        return "not testable", f"{text}tested: 0 tasks"
    means = [statistics.fmean(row) for row in zip(*differences, strict=True)]
    mean = Interval.of(means)
    return mean.above(0.0), f"{text}tested: {'; '.join(found)}; mean {mean.text(1, '+')}"


def tables(results: Results) -> list[Table]:
    heading = [
        *("", "optimizer", "classical, paper", "classical, here", "MIP, paper", "MIP, here"),
    ]
    rows = []
    for cell in _cells(results):
        both = [spreads[i] for i in (0, 1) for spreads in (cell.paper, cell.here)]
        texts = [f"{s.mean:.1f}" + ("" if math.isnan(s.std) else f" ({s.std:.1f})") for s in both]
        rows.append([cell.title, drawing.NAMES[cell.optimizer], *texts])
    return [Table("Table 2, in the paper and here", heading, rows)]


STUDY = Study(
    name="table2",
    title="Final results",
    source=SOURCE,
    caption="Final test accuracy or Dice, averaged over gamma. Mean and standard deviation over "
    "seeds. The paper's numbers are for other data or more steps: see what was reduced. "
    f"{settings.SQUARED_ERROR}",
    specs=specs,
    draw=draw,
    claims=claims,
    tables=tables,
    reduced=settings.reduced("bayes", "flowers", "hypermorph", "scale_segmentation"),
)
