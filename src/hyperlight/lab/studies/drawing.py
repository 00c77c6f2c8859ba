"""Figures and tables that several studies use."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..figures import COLORS, band, legend, panels
from ..summary import TITLES, Spread
from ..tasks import KINDS
from .base import Group, Table, value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "NAMES",
    "best",
    "convergence",
    "finals",
    "matrix",
    "name",
    "panel",
    "swatch",
    "worth",
]

# Titles of panels (or rows of panels) with their groups.
Panels = Sequence[tuple[str, Sequence[Group]]]

# Values of settings as the pages name them.
NAMES: Mapping[Any, str] = {
    **TITLES,
    "adam": "Adam",
    "adamw": "AdamW",
    "sgd": "SGD",
    "uniform": "U(0, 1)",
    "normal": "N(0, 1)",
    "leaky_relu": "LeakyReLU",
    "relu": "ReLU",
    "tanh": "Tanh",
    "gelu": "GELU",
    "silu": "SiLU",
    **{name: kind.label for name, kind in KINDS.items()},
}


def worth(spread: Spread) -> float:
    """The mean; -inf for diverged runs, so they rank last."""
    return -math.inf if math.isnan(spread.mean) else spread.mean


def best(groups: Iterable[Group]) -> Group:
    """Return the group with the best final metric on validation data.

    The paper searches over rates and reports the best performing models (section 5.2). If a run
    has no result on validation data, all groups are compared on test data.
    """
    found = list(groups)
    validated = [group.validation for group in found]
    chosen = [group.final for group in found] if None in validated else validated
    ranks = [-math.inf if spread is None else worth(spread) for spread in chosen]
    return found[max(range(len(found)), key=ranks.__getitem__)]


def panel(
    ax: Axes,
    groups: Sequence[Group],
    title: str = "",
    *,
    label: Callable[[Group], str] | None = None,
    seconds: bool = False,
    **style: Any,
) -> None:
    """Draw the test metric over steps or seconds of training, one line per group."""
    for group in groups:
        x = group.seconds if seconds else group.steps
        text = name(group) if label is None else label(group)
        band(ax, x, group.figure(), group.spec.formulation, label=text, **style)
    metric = groups[0].metric
    ax.set(
        xlabel="seconds of training" if seconds else "step",
        ylabel=f"test {metric.heading}",
        title=title,
    )
    if metric.unit == "%":
        ax.set_ylim(0, 102)


def _loss(ax: Axes, groups: Sequence[Group], *, test: bool, title: str = "") -> None:
    """Draw the test loss or the training loss over steps."""
    drawn = [math.nan]
    for group in groups:
        steps = group.steps if test else group.steps[1:]
        rows = group.figure("loss") if test else group.train_loss[1:]
        band(ax, steps, rows, group.spec.formulation)
        drawn += [row.mean + (0.0 if math.isnan(row.std) else row.std) for row in rows]
    ax.set(xlabel="step", ylabel="test loss" if test else "training loss", title=title)
    top = max((row.mean for g in groups for row in g.figure("loss")[:1]), default=math.nan)
    highest = max((value for value in drawn if math.isfinite(value)), default=math.nan)
    if math.isfinite(top) and highest > 0.0:
        ax.set_ylim(0, min(1.05 * highest, 1.5 * top))  # diverging lines leave the panel


def convergence(rows: Panels) -> Figure:
    """Draw the test metric and the training loss over steps: a row per entry, a line per group."""
    figure, axes = panels(2, len(rows))
    for i, (title, groups) in enumerate(rows):
        test, loss = axes[2 * i : 2 * i + 2]
        panel(test, groups, title)
        _loss(loss, groups, test=False)
    legend(figure)
    return figure


def matrix(blocks: Panels, columns: int, *, loss: bool = False) -> Figure:
    """Draw the test metric over steps, one panel per block.

    Args:
        blocks: title and groups of every panel.
        columns: panels in a row; text is too small with more than four.
        loss: draw the test loss too, above each panel.
    """
    per_block = 2 if loss else 1
    rows = per_block * math.ceil(len(blocks) / columns)
    figure, axes = panels(columns, rows, width=2.6 * max(columns, 3), height=2.0 if loss else 2.3)
    for ax in axes:
        ax.set_visible(False)
    for i, (title, groups) in enumerate(blocks):
        row, column = divmod(i, columns)
        used = [axes[(row * per_block + j) * columns + column] for j in range(per_block)]
        for ax in used:
            ax.set_visible(True)
        if loss:
            _loss(used[0], groups, test=True, title=title)
            panel(used[1], groups)
        else:
            panel(used[0], groups, title)
    legend(figure)
    return figure


def finals(groups: Iterable[Group], settings: Sequence[str], title: str) -> Table:
    """Make a table of final metrics: mean and standard deviation over seeds.

    Args:
        groups: one row each.
        settings: names of the settings in which they differ.
        title: title of the table.
    """
    rows = []
    for group in groups:
        cells = [value(group.spec, setting) for setting in settings]
        named = [NAMES.get(c, c) if isinstance(c, str) else _plain(c) for c in cells]
        final = group.final
        rows.append([name(group), *named, f"{final.mean:.4g}", f"{final.std:.2g}"])
    heading = ["", *(setting.replace("_", " ") for setting in settings), "mean", "std"]
    return Table(title, heading, rows)


def _plain(cell: Any) -> Any:
    return " ".join(map(str, cell)) if isinstance(cell, tuple) else cell


def name(group: Group) -> str:
    """Name of a group's formulation."""
    return NAMES[group.spec.formulation]


def swatch(formulation: str) -> dict[str, Any]:
    """Colour and label of a formulation, as arguments of a plot."""
    return {"color": COLORS[formulation], "label": NAMES[formulation]}
