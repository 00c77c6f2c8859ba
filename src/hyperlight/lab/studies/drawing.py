"""Figures, tables and claims that several studies use."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..figures import COLORS, band, panels
from ..summary import TITLES, Claim, Spread, shown
from ..tasks import KINDS
from .base import Group, Table, value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "NAMES",
    "Race",
    "best",
    "convergence",
    "finals",
    "first",
    "level",
    "matrix",
    "no_worse",
    "panel",
    "races",
    "sooner",
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
    """Return the group with the best final metric.

    The paper searches over rates and reports the best performing models (section 5.2).
    """
    return max(groups, key=lambda group: worth(group.final))


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
        test.legend(frameon=False)
    return figure


def matrix(blocks: Panels, columns: int, *, loss: bool = False) -> Figure:
    """Draw the test metric over steps, one panel per block.

    Args:
        blocks: title and groups of every panel.
        columns: panels in a row.
        loss: draw the test loss too, above each panel.
    """
    per_block = 2 if loss else 1
    rows = per_block * math.ceil(len(blocks) / columns)
    figure, axes = panels(columns, rows, width=2.6 * max(columns, 3), height=2.3)
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
    axes[0].legend(frameon=False, fontsize="small")
    return figure


def first(group: Group, target: float) -> float:
    """First evaluated step at which the mean over seeds reaches the target, or infinity."""
    steps = zip(group.steps, group.figure(), strict=True)
    return next((float(step) for step, spread in steps if spread.mean >= target), math.inf)


@dataclass(frozen=True)
class Race:
    """MIP against another formulation: which one is first to reach the other's level.

    Attributes:
        mip: runs with MIP.
        other: runs with classical, or another formulation.
        target: metric to reach: ``fraction`` of the way from the first to the last value of
            ``other``. NaN if ``other`` barely improves: by less than a twentieth of what MIP does.
            Improvements are counted from the first value, or from ``floor`` if that is higher.
        mip_step: first evaluated step at which MIP's mean over seeds reaches the target.
        other_step: the same for ``other``.
        floor: the metric without any learning.
    """

    mip: Group
    other: Group
    target: float
    mip_step: float
    other_step: float
    floor: float = -math.inf

    @classmethod
    def of(cls, mip: Group, other: Group, fraction: float = 0.95, floor: float = -math.inf) -> Race:
        """Compare two groups."""
        starts = [max(group.figure()[0].mean, floor) for group in (mip, other)]
        gains = [
            group.final.mean - start for group, start in zip((mip, other), starts, strict=True)
        ]
        learned = gains[1] > 0.0 and not gains[1] < 0.05 * gains[0]
        target = starts[1] + fraction * gains[1] if learned else math.nan
        return cls(mip, other, target, first(mip, target), first(other, target), floor)

    @property
    def won(self) -> bool:
        """Whether MIP is faster, or learns and ends better than one that barely improves."""
        if math.isnan(self.target):
            return worth(self.mip.final) > max(worth(self.other.final), self.floor)
        return self.mip_step < self.other_step

    @property
    def ratio(self) -> float:
        """How many times as many steps the other takes; infinite if it barely improves."""
        if math.isnan(self.target):
            return math.inf if self.won else math.nan
        if math.isinf(self.mip_step):
            return 0.0
        return self.other_step / max(self.mip_step, self.mip.steps[1])

    def ratio_text(self) -> str:
        """``2.5 times``."""
        if math.isnan(self.target):
            other = f"{name(self.other)} barely improves"
            return other if self.won else f"{other}, and MIP ends no better"
        if math.isinf(self.mip_step):
            return f"MIP does not get there in {self.mip.steps[-1]} steps"
        return f"{self.ratio:.1f} times"

    def text(self) -> str:
        """Steps and final metric of both, in words."""
        metric = self.mip.metric
        ends = (
            f"final {metric.name} {shown(self.mip.final, metric)} ({name(self.mip)}) and "
            f"{shown(self.other.final, metric)} ({name(self.other)})"
        )
        if math.isnan(self.target):
            over = (
                "its start"
                if self.other.figure()[0].mean >= self.floor
                else f"the {metric.text(self.floor)} without learning"
            )
            return f"{name(self.other)} barely improves over {over}; {ends}"
        return (
            f"steps to {metric.text(self.target)} {metric.name}: "
            f"{_step(self.mip_step, self.mip)} ({name(self.mip)}) and "
            f"{_step(self.other_step, self.other)} ({name(self.other)}); {ends}"
        )


def name(group: Group) -> str:
    """Name of a group's formulation."""
    return NAMES[group.spec.formulation]


def _step(step: float, group: Group) -> str:
    return f"{step:.0f}" if math.isfinite(step) else f"more than {group.steps[-1]}"


def sooner(
    source: str,
    text: str,
    mip: Group,
    other: Group,
    guess: str = "",
    floor: float = -math.inf,
) -> Claim:
    """Claim that MIP is faster than the other, and ends no worse.

    Args:
        source: where the paper makes the claim.
        text: what it says.
        mip: runs with MIP.
        other: runs with classical, or another formulation.
        guess: why the claim may not hold.
        floor: the metric without any learning.
    """
    race = Race.of(mip, other, floor=floor)
    holds = race.won and level(mip, other)
    return Claim(source, text, race.text(), _judged(holds, mip, other), guess)


def no_worse(source: str, text: str, mip: Group, other: Group, guess: str = "") -> Claim:
    """Claim that MIP ends no worse than the other, within the spread over seeds."""
    measured = (
        f"final {mip.metric.name} {shown(mip.final, mip.metric)} (MIP), "
        f"{shown(other.final, other.metric)} ({name(other)})"
    )
    return Claim(source, text, measured, _judged(level(mip, other), mip, other), guess)


def _judged(holds: bool, *compared: Group) -> bool | None:
    """A verdict; None if all that is compared diverged."""
    return None if all(group.diverged for group in compared) else holds


def level(mip: Group, other: Group) -> bool:
    """Whether MIP ends no lower than the other, within the larger of their spreads over seeds."""
    spreads = [g.final.std for g in (mip, other) if not math.isnan(g.final.std)]
    return worth(mip.final) >= worth(other.final) - max(spreads, default=0.0)


def races(
    source: str,
    text: str,
    pairs: Iterable[tuple[str, tuple[Group, Group]]],
    guess: str = "",
    floor: float = -math.inf,
) -> Claim:
    """Claim that MIP is faster and ends no worse in each of several settings.

    Args:
        source: where the paper makes the claim.
        text: what it says.
        pairs: name of each setting, with MIP and classical.
        guess: why the claim may not hold.
        floor: the metric without any learning.
    """
    found, holds = [], []
    for title, (mip, other) in pairs:
        race = Race.of(mip, other, floor=floor)
        holds.append(race.won and level(mip, other))
        digits = mip.metric.digits
        ends = " against ".join(
            f"{g.final.mean:.{digits}f}" if math.isfinite(g.final.mean) else "diverged"
            for g in (mip, other)
        )
        found.append(
            f"{title}: {race.ratio_text()}, {ends}" + ("" if holds[-1] else " (does not hold)")
        )
    metric = mip.metric.heading
    return Claim(
        source,
        text,
        f"holds in {sum(holds)} of {len(holds)} settings; steps of classical over steps of MIP, to "
        f"95 % of classical's improvement, and final {metric} of MIP against classical: "
        f"{'; '.join(found)}",
        all(holds),
        guess,
    )


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


def swatch(formulation: str) -> dict[str, Any]:
    """Colour and label of a formulation, as arguments of a plot."""
    return {"color": COLORS[formulation], "label": NAMES[formulation]}
