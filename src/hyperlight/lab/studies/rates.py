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
from ..engine import Spec
from ..summary import BEYOND, Claim
from . import drawing, settings
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
# A rate is good if its metric reaches this fraction of the best improvement at any rate.
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


def _good(group: Group, best: float) -> bool:
    """Whether a group's rate is good, given the best metric at any rate."""
    floor = _floor(group)
    return drawing.worth(group.final) >= floor + GOOD * (best - floor)


def _floor(group: Group) -> float:
    """Metric of a model that has learned nothing."""
    return 10.0 if group.spec.task == "bayes" else 0.0  # chance with ten classes, in percent; Dice


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


def _counts(results: Results, optimizer: str, method: str) -> tuple[int, int, list[str]]:
    """Count the plain network's good rates that are good for a method too.

    The method's rates are judged by the best result of any hypernetwork of the same size.

    Returns:
        How many are good for the method, how many for the plain network, and which ones are lost.
    """
    kept, total, lost = 0, 0, []
    for cell in _cells(results):
        plain = _line(results, cell, optimizer, PLAIN)
        plain_best = max(drawing.worth(group.final) for group in plain)
        best = max(
            drawing.worth(group.final)
            for other in METHODS
            for group in _line(results, cell, optimizer, other)
        )
        for reference, group in zip(plain, _line(results, cell, optimizer, method), strict=True):
            if not _good(reference, plain_best):
                continue
            total += 1
            if _good(group, best):
                kept += 1
            else:
                value = group.metric.text(group.final.mean)
                lost.append(f"{cell.title} at {group.spec.training.lr:g} ({value})")
    return kept, total, lost


def _level(results: Results, optimizer: str, method: str) -> tuple[int, int, list[str]]:
    """Count the rates at which a method ends no lower than the plain network.

    Returns:
        The count, the number of all rates, and the rates at which it ends lower.
    """
    pairs = [
        (cell, plain, group)
        for cell in _cells(results)
        for plain, group in zip(
            _line(results, cell, optimizer, PLAIN),
            _line(results, cell, optimizer, method),
            strict=True,
        )
    ]
    below = [
        f"{cell.title} at {group.spec.training.lr:g} ({group.metric.text(group.final.mean)}, plain "
        f"network {group.metric.text(plain.final.mean)})"
        for cell, plain, group in pairs
        if not drawing.level(group, plain)
    ]
    return len(pairs) - len(below), len(pairs), below


def claims(results: Results) -> list[Claim]:
    found = []
    for optimizer in results.values("optimizer"):
        counts = {method: _counts(results, optimizer, method) for method in METHODS}
        where = drawing.NAMES[optimizer]
        kept, total, lost = counts[GROUPS]
        found.append(
            Claim(
                BEYOND,
                "learning rates that are good for the plain network are good for ours with "
                f"hl.parameter_groups ({where})",
                f"{kept} of {total} rates are, over all tasks and sizes"
                + (f"; the others: {'; '.join(lost)}" if lost else ""),
                bool(total) and kept == total,
                "learning all gammas at once takes more steps than learning one, so a short "
                "training does best at a larger rate",
            )
        )
        others = {method: counts[method][0] for method in (MIP, ONE_RATE)}
        found.append(
            Claim(
                BEYOND,
                f"without hl.parameter_groups fewer of these rates are good ({where})",
                f"of {total} rates: "
                + ", ".join(f"{count} ({method})" for method, count in others.items()),
                all(count < kept for count in others.values()),
            )
        )
        level = {method: _level(results, optimizer, method) for method in METHODS}
        count, rates, below = level[GROUPS]
        found.append(
            Claim(
                BEYOND,
                "ours with hl.parameter_groups ends no lower than the plain network at any rate, "
                f"within the spread over seeds ({where})",
                f"at {count} of {rates} rates, over all tasks and sizes"
                + (f"; lower: {'; '.join(below)}" if below else "")
                + "; without hl.parameter_groups: "
                + ", ".join(f"{level[method][0]} ({method})" for method in (MIP, ONE_RATE)),
                count == rates,
                "in segmentation the plain network learns one gamma and the hypernetwork all of "
                "them; and its gradients may be so small that Adam's eps shortens the head's steps",
            )
        )
        found.append(_first_steps(results.measured, optimizer))
    return found


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
        all(1 / FAR <= each <= FAR for each in total[GROUPS]),
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
