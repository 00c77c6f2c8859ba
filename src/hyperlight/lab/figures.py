"""Figures of runs, drawn with matplotlib. No window opens: each function returns a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .methods import COLORS, TITLES, Method
from .record import Run, by_method
from .scheme import follow_scheme, save, svg
from .summary import Spread, Summary
from .tasks.base import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "along",
    "band",
    "convergence",
    "follow_scheme",
    "gradients",
    "legend",
    "panels",
    "save",
    "scales",
    "svg",
]

# So many names fit into a panel beside its lines.
_IN_PANEL = 5


def panels(
    columns: int, rows: int = 1, width: float = 9.0, height: float = 3.3
) -> tuple[Figure, list[Axes]]:
    """Make a figure, and its panels row by row.

    Args:
        columns: panels in a row.
        rows: rows of panels.
        width: width of the figure in inches.
        height: height of a row in inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height * rows), layout="constrained")
    axes = [ax for row in figure.subplots(rows, columns, squeeze=False) for ax in row]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def band(
    ax: Axes,
    x: Sequence[float],
    rows: Sequence[Spread],
    formulation: str,
    *,
    label: str | None = None,
    **style: Any,
) -> None:
    """Draw means as a line, and standard deviations as a band around it.

    Args:
        ax: axes to draw in.
        x: positions of the points.
        rows: one spread per point.
        formulation: sets the colour, and the label unless one is given.
        label: label in the legend.
        style: further arguments of the line.
    """
    mean = np.array([row.mean for row in rows])
    std = np.array([0.0 if math.isnan(row.std) else row.std for row in rows])
    style = {"color": COLORS[formulation], "linewidth": 1.8, **style}
    ax.plot(x, mean, label=TITLES[formulation] if label is None else label, **style)
    ax.fill_between(x, mean - std, mean + std, color=style["color"], alpha=0.2, linewidth=0)


def _look(method: Method) -> dict[str, Any]:
    """How a method is drawn."""
    return {"color": method.color, "label": method.title}


def _legend(figure: Figure, ax: Axes) -> None:
    """Name the lines in the panel, or beside the panels if so many names would cover them."""
    handles, names = ax.get_legend_handles_labels()
    if len(names) > _IN_PANEL:
        figure.legend(handles, names, loc="outside right center", frameon=False)
    else:
        ax.legend(frameon=False)


def legend(figure: Figure) -> None:
    """Name what is drawn in any of the panels once, below them."""
    named: dict[str, Any] = {}
    for ax in figure.axes:
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            named.setdefault(name, handle)
    # So many as fit beside each other, in the usual size of text.
    inches = 0.65 + 0.07 * max(map(len, named), default=0)
    columns = max(1, min(len(named), int(figure.get_figwidth() / inches)))
    figure.legend(
        list(named.values()),
        list(named),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize="medium",
    )


# A percentage far below zero is cut off: it would squeeze the others.
_FLOOR = -25.0


def _percent(ax: Axes, metric: Metric, values: Sequence[float]) -> None:
    """Set the limits for a metric in percent: all of its range, or what these values take."""
    if metric.unit != "%":
        return
    finite = [value for value in values if math.isfinite(value)]
    if min(finite, default=0.0) >= 0.0:
        ax.set_ylim(0, 102)
    else:
        ax.set_ylim(max(min(finite), _FLOOR) - 2.0, max(finite) + 5.0)


def convergence(summaries: Sequence[Summary], target: float | None) -> Figure:
    """Draw the test metric and the training loss over steps (paper, figure 4)."""
    metric = summaries[0].metric
    figure, (test, loss) = panels(2)
    for summary in summaries:
        look = _look(summary.method)
        band(test, summary.steps, summary.measured, summary.formulation, **look)
        rest = summary.steps[1:], summary.train_loss[1:]
        band(loss, *rest, summary.formulation, **look)
    if target is not None:
        test.axhline(target, color="0.5", linewidth=0.8, linestyle="--")
    test.set(xlabel="step", ylabel=f"test {metric.heading}")
    _percent(test, metric, [spread.mean for s in summaries for spread in s.measured])
    loss.set(xlabel="step", ylabel="training loss", ylim=(0, None))
    _legend(figure, test)
    return figure


def scales(runs: Sequence[Run]) -> Figure:
    """Draw the standard deviation of the predicted weights along gamma (paper, figure 1a)."""
    figure, (initial, final) = panels(2)
    for ax, when in ((initial, "initial"), (final, "final")):
        for method, group in by_method(runs):
            profiles = [p for p in (getattr(run, when) for run in group) if p is not None]
            if not profiles:
                continue
            profile = profiles[0]
            scalar = profile.gamma.ndim == 1
            x = profile.gamma if scalar else profile.magnitude
            columns = np.stack([p.std.numpy() for p in profiles], axis=1)
            rows = [Spread.of(row) for row in columns.tolist()]
            band(ax, x.tolist(), rows, method.formulation, **_look(method))
            ax.set_xlabel("gamma" if scalar else "norm of gamma")
        ax.set_ylim(0, None)
    initial.set(title="at initialisation", ylabel="std of predicted weights")
    final.set(title="after training")
    _legend(figure, initial)
    return figure


def gradients(runs: Sequence[Run], steps: int = 100) -> Figure:
    """Draw the gradient norm of the predicted weights in early training (paper, figure 3c)."""
    figure, (ax,) = panels(1, height=3.0)
    for method, group in by_method(runs):
        norms = np.array([run.gradient_norm[:steps] for run in group])
        color, x = method.color, np.arange(1, norms.shape[1] + 1)
        for row in norms:
            ax.plot(x, row, color=color, alpha=0.3, linewidth=0.7)
        ax.plot(x, norms.mean(axis=0), color=color, linewidth=1.6, label=method.title)
    if all(min(run.gradient_norm[:steps]) > 0.0 for run in runs):
        ax.set_yscale("log")
    ax.set(xlabel="step", ylabel="gradient norm of predicted weights")
    _legend(figure, ax)
    return figure


# Gammas that differ by such a factor are drawn in their logarithm.
_WIDE = 30.0

_LINE: dict[str, Any] = {"marker": ".", "linewidth": 1.8}
_POINTS: dict[str, Any] = {"marker": "o", "linestyle": "none", "zorder": 3}


def along(summaries: Sequence[Summary], front: tuple[str, str] | None = None) -> Figure:
    """Draw the final metric along gamma, and two figures that trade off against each other.

    Plain networks for single gammas are points.

    Args:
        summaries: of methods that have final values along gamma.
        front: two columns of the task's table along gamma; without them there is one panel.
    """
    figure, axes = panels(2 if front else 1)
    for summary in summaries:
        values = summary.along()
        gammas, spreads = list(values), list(values.values())
        columns = [[spread.mean for spread in summary.along(name).values()] for name in front or ()]
        look, more = _look(summary.method), _LINE
        if summary.formulation == "plain":
            errors = [0.0 if math.isnan(spread.std) else spread.std for spread in spreads]
            means = [spread.mean for spread in spreads]
            axes[0].errorbar(gammas, means, errors, fmt="o", capsize=3, zorder=3, **look)
            more = _POINTS
        else:
            band(axes[0], gammas, spreads, summary.formulation, **look)
        if front:
            axes[1].plot(*columns, color=summary.method.color, **more)
    gammas = [gamma for summary in summaries for gamma in summary.along()]
    if min(gammas) > 0.0 and max(gammas) >= _WIDE * min(gammas):
        axes[0].set_xscale("log")
    metric = summaries[0].metric
    axes[0].set(xlabel="gamma", ylabel=f"test {metric.heading}")
    _percent(axes[0], metric, [x.mean for summary in summaries for x in summary.along().values()])
    if front:
        axes[1].set(xlabel=f"test {front[0]}", ylabel=f"test {front[1]}")
    _legend(figure, axes[0])
    return figure
