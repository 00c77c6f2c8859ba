"""Table 2: final results on the test set, beside the paper's numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .. import figures
from ..engine import Spec
from ..summary import Claim, Spread
from . import drawing, fig4a, fig4b, fig4c, settings
from .base import Group, Place, Results, Study, Table, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "B.4, table 2"


@dataclass(frozen=True)
class Row:
    """A row of the paper's table: percentages, standard deviations over seeds in parentheses.

    Attributes:
        title: the paper's.
        mine: whether a group of ours belongs to it.
        adam: default and MIP.
        sgd: the same.
    """

    title: str
    mine: Callable[[Group], bool]
    adam: tuple[Spread, Spread]
    sgd: tuple[Spread, Spread]


def _of(task: str) -> Callable[[Group], bool]:
    return lambda group: group.spec.task == task


def _is_flowers(group: Group) -> bool:
    """Whether it is a Bayesian network with the ResNet-like primary."""
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
    """Default and MIP, the paper's and ours, in percent."""

    title: str
    optimizer: str
    paper: tuple[Spread, Spread]
    ours: tuple[Spread, Spread]

    @property
    def gain(self) -> float:
        """Of MIP over the default, here; of a default that came to NaN, all of MIP."""
        default, mip = (0.0 if math.isnan(s.mean) else s.mean for s in self.ours)
        return mip - default


def specs(place: Place) -> list[Spec]:
    base, seeds = settings.flowers(place), settings.seeds(place)
    flowers = [
        spec
        for how in settings.optimizers(place, base)
        for spec in grid(base, seeds=seeds, training=how)
    ]
    return [*fig4a.specs(place), *flowers, *fig4b.specs(place), *fig4c.specs(place)]


def _percent(group: Group) -> Spread:
    factor = 1.0 if group.metric.unit == "%" else 100.0
    return Spread(factor * group.final.mean, factor * group.final.std)


def _cells(results: Results) -> list[Cell]:
    cells = []
    for row in PAPER:
        for optimizer, paper in (("adam", row.adam), ("sgd", row.sgd)):
            found = [
                group
                for group in results
                if row.mine(group) and group.spec.training.optimizer.startswith(optimizer)
            ]
            default, mip = (
                _percent(drawing.best(g for g in found if g.spec.formulation == name))
                for name in ("classical", "mip")
            )
            ours = default, mip
            cells.append(Cell(row.title, optimizer, paper, ours))
    return cells


def draw(results: Results) -> Figure:
    cells = _cells(results)
    figure, axes = figures.panels(2, height=2.0 + 0.3 * len(cells))
    names = [f"{cell.title}, {drawing.NAMES[cell.optimizer]}" for cell in cells]
    for ax, title in zip(axes, ("paper", "ours"), strict=True):
        for i, formulation in enumerate(("classical", "mip")):
            spreads = [getattr(cell, title)[i] for cell in cells]
            ax.barh(
                np.arange(len(cells)) + (-0.2, 0.2)[i],
                [0.0 if math.isnan(s.mean) else s.mean for s in spreads],
                0.36,
                xerr=[0.0 if math.isnan(s.std) else s.std for s in spreads],
                **drawing.swatch(formulation),
            )
        ax.set(title=title, xlabel="accuracy or Dice (%)", xlim=(0, 100))
        ax.invert_yaxis()
    axes[0].set_yticks(range(len(cells)), names)
    axes[1].set_yticks(range(len(cells)), [""] * len(cells))
    bars, labels = axes[1].get_legend_handles_labels()
    figure.legend(bars, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def claims(results: Results) -> list[Claim]:
    cells = _cells(results)
    losses = [
        cell
        for cell in cells
        if not cell.gain >= -max([s.std for s in cell.ours if not math.isnan(s.std)], default=0.0)
    ]
    gains = {
        optimizer: [cell.gain for cell in cells if cell.optimizer == optimizer]
        for optimizer in ("adam", "sgd")
    }
    listed = "; ".join(
        f"{cell.title}, {drawing.NAMES[cell.optimizer]}: {cell.gain:+.1f} (the paper's "
        f"{cell.paper[1].mean - cell.paper[0].mean:+.1f})"
        for cell in cells
    )
    means = {name: sum(values) / len(values) for name, values in gains.items()}
    return [
        Claim(
            SOURCE,
            "MIP does not decrease model performance in any setting",
            f"MIP less default in percentage points: {listed}",
            not losses,
        ),
        Claim(
            SOURCE,
            "MIP provides substantial improvements in several settings, specially when using the "
            "SGD optimizer",
            f"{sum(cell.gain > 1.0 for cell in cells)} of {len(cells)} settings gain more than one "
            f"percentage point; mean gain {means['adam']:+.1f} with Adam, {means['sgd']:+.1f} with "
            "SGD",
            sum(cell.gain > 1.0 for cell in cells) >= 2 and means["sgd"] > means["adam"],
        ),
    ]


def tables(results: Results) -> list[Table]:
    heading = [
        *("", "optimizer", "default, paper", "default, ours", "MIP, paper", "MIP, ours"),
    ]
    rows = []
    for cell in _cells(results):
        both = [spreads[i] for i in (0, 1) for spreads in (cell.paper, cell.ours)]
        texts = [f"{s.mean:.1f}" + ("" if math.isnan(s.std) else f" ({s.std:.1f})") for s in both]
        rows.append([cell.title, drawing.NAMES[cell.optimizer], *texts])
    return [Table("Table 2, paper against ours", heading, rows)]


STUDY = Study(
    name="table2",
    title="Final results",
    source=SOURCE,
    caption="Test accuracy or Dice in the end, mean over gamma; mean and standard deviation over "
    "seeds. The paper's numbers are of other data or more steps: see what was reduced.",
    specs=specs,
    draw=draw,
    claims=claims,
    tables=tables,
    reduced=settings.reduced("bayes", "flowers", "hypermorph", "scale_segmentation"),
)
