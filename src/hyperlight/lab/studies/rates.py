"""Beyond the paper: is a good learning rate of the plain network good for its hypernetwork?

A step of the head moves a predicted weight many times as far as the learning rate says, and further
with wider hypernetworks and more inputs. hl.parameter_groups scales the rates of primary, trunk and
head so that a step moves a predicted weight about as far as it would move one of the plain network.
This study compares the plain network, MIP, and "ours", the library's defaults (the unit-norm
encoding and a relative start), with one rate for all parameters and with hl.parameter_groups. It
also measures how far the first step goes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from .. import figures
from ..comparison import Interval, Verdict, counted, every
from ..engine import Spec
from ..summary import BEYOND, Claim
from . import drawing, judging, settings
from .base import Group, Results, Setup, Study, Table, grid
from .first_step import Step, first_step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLAIN = "plain network"
MIP = "MIP"
ONE_RATE = "ours, one rate"
GROUPS = "ours, hl.parameter_groups"
_OURS: dict[str, Any] = {"encoding": "unit-norm", "init": "relative", "fraction": 0.1}
# Settings of the hypernetwork, rule for the rates, and colour of the line, by name.
METHODS: dict[str, tuple[dict[str, Any], Literal["same", "groups"], str]] = {
    MIP: ({"encoding": "per-input", "init": "fan_out"}, "same", "#0072b2"),
    ONE_RATE: (_OURS, "same", "#009e73"),
    GROUPS: (_OURS, "groups", "#cc79a7"),
}
TASKS = {"bayes": settings.bayes_short, "scale_space": settings.scale_short}
RATES = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
OPTIMIZERS: tuple[Literal["adam", "sgd"], ...] = ("adam", "sgd")
# A rate is good if its metric reaches this fraction of the best improvement at any rate, up to
# the margin.
GOOD = 0.95
# Two steps are about as long as each other if neither is longer by more than this factor.
FAR = 1.5


@dataclasses.dataclass(frozen=True)
class Cell:
    """A task and a size of the hypernetwork."""

    task: str
    inputs: int
    width: int

    @property
    def size(self) -> str:
        """``32 inputs, width 128``."""
        return f"{self.inputs} input{'s'[: self.inputs > 1]}, width {self.width}"

    @property
    def title(self) -> str:
        """``Bayesian networks, 32 inputs, width 128``."""
        return f"{drawing.NAMES[self.task]}, {self.size}"


def cells(setup: Setup) -> list[Cell]:
    """Tasks and sizes: the paper's size, and others that differ from it in one respect."""
    if setup.size == "smoke":
        return [Cell("bayes", 32, 8), Cell("scale_space", 1, 8)]
    sizes = [(1, 128), (32, 128), (1, 32), (1, 1024)]
    widths = [128, 1024]
    if setup.size == "paper":
        sizes += [(1, 512), (32, 32), (32, 1024)]
        widths += [32, 512]
    return [Cell("bayes", *size) for size in sizes] + [
        Cell("scale_space", 1, width) for width in widths
    ]


def _base(setup: Setup, task: str) -> Spec:
    """Settings that all runs of a task have; the runs are tested only before and after training."""
    spec = TASKS[task](setup)
    how = dataclasses.replace(spec.training, evaluate_every=spec.training.steps)
    return dataclasses.replace(spec, training=how)


def specs(setup: Setup) -> list[Spec]:
    seeds = settings.seeds(setup)
    how: dict[str, Any] = {"optimizer": OPTIMIZERS, "lr": RATES}
    if setup.size == "smoke":
        how = {"optimizer": OPTIMIZERS[:1], "lr": (1e-3, 1e-1)}
    found: list[Spec] = []
    for task in TASKS:
        found += grid(_base(setup, task), seeds=seeds, formulations=["plain"], training=how)
    for cell in cells(setup):
        for method in METHODS:
            found += grid(
                _made(setup, cell, method), seeds=seeds, formulations=["mip"], training=how
            )
    return found


def _made(setup: Setup, cell: Cell, method: str) -> Spec:
    """Settings of the hypernetworks of a cell and a method."""
    changed, rule, _ = METHODS[method]
    base = _base(setup, cell.task)
    config = dataclasses.replace(
        base.config, **changed, hidden=(*base.config.hidden[:-1], cell.width)
    )
    if cell.task == "bayes":
        config = dataclasses.replace(config, dimensions=cell.inputs)
    how = dataclasses.replace(base.training, rates=rule)
    return dataclasses.replace(base, config=config, training=how)


# By cell, optimizer and method.
Steps = Mapping[tuple[Cell, str, str], Step]


def measure(setup: Setup) -> Steps:
    """Measure how far the first step goes, for every cell, optimizer and method."""
    found: dict[tuple[Cell, str, str], Step] = {}
    for cell in cells(setup):
        for method in METHODS:
            spec = _made(setup, cell, method)
            for optimizer in OPTIMIZERS[:1] if setup.size == "smoke" else OPTIMIZERS:
                how = dataclasses.replace(spec.training, optimizer=optimizer)
                step = first_step(dataclasses.replace(spec, training=how))
                found[cell, optimizer, method] = step
    return found


def _cells(results: Results) -> list[Cell]:
    found = [
        Cell(g.spec.task, getattr(g.spec.config, "dimensions", 1), g.spec.config.hidden[-1])
        for g in results.where(formulation="mip")
    ]
    return list(dict.fromkeys(found))


def _line(results: Results, cell: Cell, optimizer: str, method: str) -> list[Group]:
    """The groups of a line, sorted by rate."""
    if method == PLAIN:
        found = results.where(task=cell.task, formulation="plain", optimizer=optimizer)
    else:
        changed, rule, _ = METHODS[method]
        found = [
            group
            for group in results.where(
                task=cell.task, formulation="mip", optimizer=optimizer, rates=rule, **changed
            )
            if group.spec.config.hidden[-1] == cell.width
            and getattr(group.spec.config, "dimensions", 1) == cell.inputs
        ]
    return sorted(found, key=lambda group: group.spec.training.lr)


def _good(group: Group, best: float) -> Verdict:
    """Whether a group's rate is good, given the best metric at any rate."""
    floor = judging.floor(group)
    needed = floor + GOOD * (best - floor)
    if group.diverged:
        return "refuted"
    return Interval.of([each - needed for each in group.finals]).at_least(-judging.margin(group))


def draw(results: Results) -> Figure:
    """Draw a panel for every task, optimizer and size of the hypernetwork."""
    found, columns = _cells(results), 4
    shown = [
        (cell, optimizer)
        for task in dict.fromkeys(cell.task for cell in found)
        for optimizer in results.values("optimizer")
        for cell in found
        if cell.task == task
    ]
    figure, axes = figures.panels(columns, -(-len(shown) // columns), width=12.0, height=2.5)
    for ax, (cell, optimizer) in zip(axes, shown, strict=False):
        for method in (PLAIN, *METHODS):
            _draw_line(ax, results, cell, optimizer, method)
        metric = results.where(task=cell.task)[0].metric
        ax.set_xscale("log")
        ax.set_ylabel(f"test {metric.heading}")
        ax.set_ylim(0, 102 if metric.unit == "%" else 1)
        ax.set_title(f"{drawing.NAMES[cell.task]}, {drawing.NAMES[optimizer]}\n{cell.size}")
    for ax in axes[len(shown) :]:
        ax.set_visible(False)
    for ax in axes[: len(shown)][-columns:]:
        ax.set_xlabel("learning rate")
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _draw_line(ax: Axes, results: Results, cell: Cell, optimizer: str, method: str) -> None:
    groups = _line(results, cell, optimizer, method)
    plain = method == PLAIN
    style: dict[str, Any] = {"color": "black" if plain else METHODS[method][2], "marker": "."}
    if plain:
        style["linestyle"] = "--"
    figures.band(
        ax,
        [group.spec.training.lr for group in groups],
        [group.final for group in groups],
        groups[0].spec.formulation,
        label=method,
        **style,
    )


def _kept(results: Results, optimizer: str, method: str) -> list[tuple[str, Verdict]]:
    """Whether the plain network's good rates are good for a method too, by cell and rate.

    A rate is good for the plain network if its mean is. The method's rates are judged by the best
    result of any hypernetwork of the same size.
    """
    found = []
    for cell in _cells(results):
        plain = _line(results, cell, optimizer, PLAIN)
        lines = [_line(results, cell, optimizer, other) for other in METHODS]
        best = drawing.worth(drawing.best([g for line in lines for g in line]).final)
        floor = judging.floor(plain[0])
        good = floor + GOOD * (drawing.worth(drawing.best(plain).final) - floor)
        for reference, group in zip(plain, _line(results, cell, optimizer, method), strict=True):
            if drawing.worth(reference.final) >= good:
                value = group.metric.text(group.final.mean)
                title = f"{cell.title} at {group.spec.training.lr:g} ({value})"
                found.append((title, _good(group, best)))
    return found


def _level(results: Results, optimizer: str, method: str) -> list[tuple[str, Verdict]]:
    """Whether a method ends at least as good as the plain network, by cell and rate."""
    found = []
    for cell in _cells(results):
        pairs = zip(
            _line(results, cell, optimizer, PLAIN),
            _line(results, cell, optimizer, method),
            strict=True,
        )
        for plain, group in pairs:
            values = [each.metric.text(each.final.mean) for each in (group, plain)]
            rate = group.spec.training.lr
            title = f"{cell.title} at {rate:g} ({values[0]}, plain network {values[1]})"
            verdict = judging.compare(group, plain).at_least(-judging.margin(group))
            found.append((title, judging.testable(group, plain, verdict)))
    return found


def _counted(judged: list[tuple[str, Verdict]], listed: bool = True) -> str:
    """Counts by verdict, and the rates that are refuted."""
    lost = "; ".join(title for title, verdict in judged if verdict == "refuted")
    counts = counted(verdict for _, verdict in judged) or "no rate"
    return counts + (f"; refuted at {lost}" if lost and listed else "")


def claims(results: Results) -> list[Claim]:
    found = []
    for optimizer in results.values("optimizer"):
        where = drawing.NAMES[optimizer]
        kept = {method: _kept(results, optimizer, method) for method in METHODS}
        level = {method: _level(results, optimizer, method) for method in METHODS}
        found.append(
            Claim(
                BEYOND,
                "learning rates that are good for the plain network are good for ours with "
                f"hl.parameter_groups ({where})",
                f"of {len(kept[GROUPS])} rates, over all tasks and sizes: {_counted(kept[GROUPS])}",
                every(verdict for _, verdict in kept[GROUPS]),
                "learning all gammas at once takes more steps than learning one, so a short "
                "training does best at a larger rate",
            )
        )
        found += [
            Claim(
                BEYOND,
                f"without hl.parameter_groups fewer of these rates are good ({where}; {method})",
                f"of {len(kept[method])} rates: {_counted(kept[method], listed=False)} (with "
                f"hl.parameter_groups: {_counted(kept[GROUPS], listed=False)})",
                _fewer(kept[method], kept[GROUPS]),
            )
            for method in (MIP, ONE_RATE)
        ]
        found.append(
            Claim(
                BEYOND,
                "ours with hl.parameter_groups ends at least as good as the plain network at any "
                f"rate ({where})",
                f"of {len(level[GROUPS])} rates, over all tasks and sizes: "
                f"{_counted(level[GROUPS])}; without hl.parameter_groups: "
                + "; ".join(
                    f"{_counted(level[method], listed=False)} ({method})"
                    for method in (MIP, ONE_RATE)
                ),
                every(verdict for _, verdict in level[GROUPS]),
                "in segmentation the plain network learns one gamma and the hypernetwork all of "
                "them",
            )
        )
        found.append(_first_steps(results.measured, optimizer))
    return found


def _fewer(some: list[tuple[str, Verdict]], more: list[tuple[str, Verdict]]) -> Verdict:
    """Whether rates that are good for one method are bad for another, and none the other way."""
    pairs = [(a, b) for (_, a), (_, b) in zip(some, more, strict=True)]
    gained, lost = (("refuted", "holds") in pairs), (("holds", "refuted") in pairs)
    if gained == lost:
        return "not decided"
    return "holds" if gained else "refuted"


def _first_steps(measured: Steps, optimizer: str) -> Claim:
    """Claim that the first step is about as long as the plain network's."""
    total = {
        method: [
            step.total
            for (_, how, name), step in measured.items()
            if (how, name) == (optimizer, method)
        ]
        for method in METHODS
    }
    shown = [f"{min(each):.2f} to {max(each):.2f} ({method})" for method, each in total.items()]
    return Claim(
        BEYOND,
        "the first step of ours with hl.parameter_groups moves a predicted weight about as far as "
        f"a step of the plain network, at all sizes ({drawing.NAMES[optimizer]})",
        f"in multiples of the plain network's step: {', '.join(shown)}",
        "holds" if all(1 / FAR <= each <= FAR for each in total[GROUPS]) else "refuted",
    )


def tables(results: Results) -> list[Table]:
    rows = []
    for cell in _cells(results):
        for optimizer in results.values("optimizer"):
            for method in (PLAIN, *METHODS):
                finals = [
                    group.final.text(group.metric.digits)
                    for group in _line(results, cell, optimizer, method)
                ]
                rows.append([cell.title, drawing.NAMES[optimizer], method, *finals])
    rates = [f"{rate:g}" for rate in sorted(results.values("lr"))]
    parts = [
        [
            cell.title,
            drawing.NAMES[optimizer],
            method,
            *(f"{v:.2f}" for v in dataclasses.astuple(step)),
        ]
        for (cell, optimizer, method), step in results.measured.items()
    ]
    names = [field.name for field in dataclasses.fields(Step)]
    return [
        Table("Final metric by rate", ["", "optimizer", "", *rates], rows),
        Table("First step, in steps of the plain network", ["", "optimizer", "", *names], parts),
    ]


STUDY = Study(
    name="rates",
    title="Is the plain network's learning rate good for its hypernetwork?",
    source=BEYOND,
    caption="Final test metric over the learning rate: the plain network (in segmentation trained "
    "for gamma 0.5 alone), MIP, and ours, the library's defaults (unit-norm encoding, relative "
    "start), with one rate for all parameters and with hl.parameter_groups. Mean and standard "
    "deviation over seeds.",
    specs=specs,
    draw=draw,
    claims=claims,
    measure=measure,
    tables=tables,
    reduced=settings.reduced("bayes_short", "scale_short"),
)
