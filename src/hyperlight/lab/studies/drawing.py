"""Figures, tables and claims that several studies share."""

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

# A column or panel, and the groups in it.
Panels = Sequence[tuple[str, Sequence[Group]]]

# Settings as the paper names their values.
NAMES: Mapping[Any, str] = {
    **TITLES,
    "classical": "default",
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
    """The mean; of runs that came to NaN, less than all others."""
    return -math.inf if math.isnan(spread.mean) else spread.mean


def best(groups: Iterable[Group]) -> Group:
    """The one with the most in the end: the paper searches over rates and reports the best
    performing models (section 5.2).
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
    """The test metric over steps, or over seconds of training, a line for every group."""
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
    """The loss over steps: of the test set, or of training."""
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
        ax.set_ylim(0, min(1.05 * highest, 1.5 * top))  # what diverges leaves the panel


def convergence(rows: Panels) -> Figure:
    """For every row the test metric and the training loss over steps, a line for every group."""
    figure, axes = panels(2, len(rows))
    for i, (title, groups) in enumerate(rows):
        test, loss = axes[2 * i : 2 * i + 2]
        panel(test, groups, title)
        _loss(loss, groups, test=False)
        test.legend(frameon=False)
    return figure


def matrix(blocks: Panels, columns: int, *, loss: bool = False) -> Figure:
    """A panel for every block: the test metric over steps, and the test loss above it.

    Args:
        blocks: title and groups of every panel.
        columns: panels in a row.
        loss: whether the loss is drawn as well, in a row above each.
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
    """The first evaluated step where the mean over seeds has the target; infinite without one."""
    steps = zip(group.steps, group.figure(), strict=True)
    return next((float(step) for step, spread in steps if spread.mean >= target), math.inf)


@dataclass(frozen=True)
class Race:
    """MIP against the default: who is sooner at most of what the default reaches in the end.

    Attributes:
        mip: the one.
        other: the default, or what else it is compared with.
        target: the value of the metric: ``share`` of the way from the first to the last value of
            ``other``. NaN where that gains next to nothing: less than a twentieth of what MIP
            does. Gains are counted from the first value, or from what is reached without learning.
        ours: the first evaluated step at which MIP's mean over seeds has the target.
        theirs: that of the other.
        floor: what is reached without learning.
    """

    mip: Group
    other: Group
    target: float
    ours: float
    theirs: float
    floor: float = -math.inf

    @classmethod
    def of(cls, mip: Group, other: Group, share: float = 0.95, floor: float = -math.inf) -> Race:
        starts = [max(group.figure()[0].mean, floor) for group in (mip, other)]
        gains = [
            group.final.mean - start for group, start in zip((mip, other), starts, strict=True)
        ]
        learned = gains[1] > 0.0 and not gains[1] < 0.05 * gains[0]
        target = starts[1] + share * gains[1] if learned else math.nan
        return cls(mip, other, target, first(mip, target), first(other, target), floor)

    @property
    def won(self) -> bool:
        """Whether MIP is sooner; where the other gains next to nothing, whether it ends better, and
        has learned.
        """
        if math.isnan(self.target):
            return worth(self.mip.final) > max(worth(self.other.final), self.floor)
        return self.ours < self.theirs

    @property
    def ratio(self) -> float:
        """How many times as many steps the other takes; infinite where it gains next to
        nothing.
        """
        if math.isnan(self.target):
            return math.inf if self.won else math.nan
        if math.isinf(self.ours):
            return 0.0
        return self.theirs / max(self.ours, self.mip.steps[1])

    def ratio_text(self) -> str:
        """``2.5 times``."""
        if math.isnan(self.target):
            return "the default gains next to nothing" + ("" if self.won else ", nor does MIP")
        if math.isinf(self.ours):
            return f"not within {self.mip.steps[-1]} steps by MIP"
        return f"{self.ratio:.1f} times"

    def text(self) -> str:
        """Steps and final values of both, in words."""
        metric = self.mip.metric
        ends = (
            f"in the end {shown(self.mip.final, metric)} ({name(self.mip)}) and "
            f"{shown(self.other.final, metric)} ({name(self.other)})"
        )
        if math.isnan(self.target):
            over = (
                "its start"
                if self.other.figure()[0].mean >= self.floor
                else f"the {metric.text(self.floor)} of no learning"
            )
            return f"{name(self.other)} gains next to nothing over {over}; {ends}"
        return (
            f"{metric.text(self.target)} {metric.name} at step {_step(self.ours, self.mip)} "
            f"({name(self.mip)}) and {_step(self.theirs, self.other)} ({name(self.other)}); {ends}"
        )


def name(group: Group) -> str:
    """What a group is called in a sentence."""
    return NAMES[group.spec.formulation]


def _step(step: float, group: Group) -> str:
    return f"{step:.0f}" if math.isfinite(step) else f"none of {group.steps[-1]}"


def sooner(
    source: str,
    text: str,
    mip: Group,
    other: Group,
    guess: str = "",
    floor: float = -math.inf,
) -> Claim:
    """Whether MIP is sooner at most of what the other gains, and ends no worse.

    Args:
        source: where the paper says so.
        text: what it says.
        mip: the one.
        other: the default, or what else it is compared with.
        guess: why it may not hold.
        floor: what is reached without learning; gains are counted from there.
    """
    race = Race.of(mip, other, floor=floor)
    return Claim(source, text, race.text(), race.won and level(mip, other), guess)


def no_worse(source: str, text: str, mip: Group, other: Group, guess: str = "") -> Claim:
    """Whether MIP ends no worse than the other, within their spread over seeds."""
    measured = f"{shown(mip.final, mip.metric)} (MIP), {shown(other.final, other.metric)}"
    return Claim(source, text, measured, level(mip, other), guess)


def level(mip: Group, other: Group) -> bool:
    """Whether the first ends no lower than the other, but for the greater spread over seeds."""
    spreads = [g.final.std for g in (mip, other) if not math.isnan(g.final.std)]
    return worth(mip.final) >= worth(other.final) - max(spreads, default=0.0)


def races(
    source: str,
    text: str,
    pairs: Iterable[tuple[str, tuple[Group, Group]]],
    guess: str = "",
    floor: float = -math.inf,
) -> Claim:
    """Whether MIP is sooner and ends no worse in every one of several settings.

    Args:
        source: where the paper says so.
        text: what it says.
        pairs: for every setting its name, MIP and the default.
        guess: why it may not hold.
        floor: as for :func:`sooner`.
    """
    found, holds = [], []
    for title, (mip, other) in pairs:
        race = Race.of(mip, other, floor=floor)
        holds.append(race.won and level(mip, other))
        digits = mip.metric.digits
        ends = f"{mip.final.mean:.{digits}f} against {other.final.mean:.{digits}f}"
        found.append(f"{title}: {race.ratio_text()}, {ends}" + ("" if holds[-1] else " (not)"))
    metric = mip.metric.heading
    return Claim(
        source,
        text,
        f"in {sum(holds)} of {len(holds)} settings; how many times as many steps the default takes "
        f"to 95 % of what it gains, and the final {metric} of MIP and default: {'; '.join(found)}",
        all(holds),
        guess,
    )


def finals(groups: Iterable[Group], settings: Sequence[str], title: str) -> Table:
    """The metric in the end of every group, mean and standard deviation over seeds.

    Args:
        groups: a row each.
        settings: names of the settings that tell them apart.
        title: of the table.
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
    """The colour and the name of a formulation, for a plot of one's own."""
    return {"color": COLORS[formulation], "label": NAMES[formulation]}
