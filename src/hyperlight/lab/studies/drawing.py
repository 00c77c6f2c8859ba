"""Figures and claims that several studies share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..figures import band, panels
from ..summary import Claim, Spread, shown
from .base import Group

__all__ = ["against", "convergence", "faster", "first", "panel"]


def panel(ax: Axes, groups: Sequence[Group], title: str = "", **style: Any) -> None:
    """The test metric over steps, a line for every group."""
    for group in groups:
        band(ax, group.steps, group.figure(), group.spec.formulation, **style)
    metric = groups[0].metric
    ax.set(xlabel="step", ylabel=f"test {metric.heading}", title=title)
    if metric.unit == "%":
        ax.set_ylim(0, 102)


def convergence(rows: Sequence[tuple[str, Sequence[Group]]]) -> Figure:
    """For every row the test metric and the training loss over steps, a line for every group."""
    figure, axes = panels(2, len(rows))
    for i, (title, groups) in enumerate(rows):
        test, loss = axes[2 * i : 2 * i + 2]
        panel(test, groups, title)
        for group in groups:
            band(loss, group.steps[1:], group.train_loss[1:], group.spec.formulation)
        loss.set(xlabel="step", ylabel="training loss")
        test.legend(frameon=False)
    return figure


def first(group: Group, target: float) -> float:
    """The mean over seeds of the first evaluated step with the target; infinite without one."""
    found = [run.first_step(target) for run in group.runs]
    return Spread.of([math.inf if step is None else step for step in found]).mean


def faster(source: str, text: str, mip: Group, other: Group, share: float = 0.95) -> Claim:
    """Whether MIP is sooner at most of what the other reaches in the end.

    Args:
        source: where the paper says so.
        text: what it says.
        mip: the one.
        other: the other.
        share: of the way from the first to the last value of the other's metric.
    """
    values = [spread.mean for spread in other.figure()]
    target = values[0] + share * (values[-1] - values[0])
    ours, theirs = (first(group, target) for group in (mip, other))
    goal = mip.metric.text(target)
    return Claim(
        source,
        text,
        f"{goal} {mip.metric.name}, {100 * share:.0f} % of what the other gains, at step "
        f"{_step(ours, mip)} (MIP) and {_step(theirs, other)}; in the end "
        f"{shown(mip.final, mip.metric)} and {shown(other.final, other.metric)}",
        ours < theirs and mip.final.mean >= other.final.mean,
    )


def _step(step: float, group: Group) -> str:
    return f"{step:.0f}" if math.isfinite(step) else f"none of {group.steps[-1]} for some seed"


def against(source: str, text: str, mip: Group, other: Group) -> Claim:
    """Whether MIP ends no worse than the other, within their spread over seeds."""
    spread = max(0.0, *(g.final.std for g in (mip, other) if not math.isnan(g.final.std)), 0.0)
    return Claim(
        source,
        text,
        f"{shown(mip.final, mip.metric)} (MIP), {shown(other.final, other.metric)}",
        mip.final.mean >= other.final.mean - spread,
    )
