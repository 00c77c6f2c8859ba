"""Beyond the paper: is a good learning rate of the plain network good for its hypernetwork?

A step of the head moves a predicted weight many times as far as the learning rate says, and further
with wider hypernetworks and more inputs; the layers before the head add to it. hl.parameter_groups
scales the rates of primary, trunk and head so that a step moves a predicted weight about as far as
it would move one of the plain network. This study compares the plain network, MIP, and "ours", the
library's defaults (the unit-norm encoding and a relative start), with one rate for all parameters
and with hl.parameter_groups. It also measures how far the first step goes. The networks are a
LeNet, a transformer and a U-Net; the hypernetworks have one input or many, trunks that are narrow,
wide or deep, and three kinds of head.

In segmentation the plain network is trained for all gammas, as the hypernetworks are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from .. import figures
from ..comparison import Interval, Verdict, counted, every
from ..engine import Spec
from ..summary import BEYOND, Claim
from ..tasks.base import Formulation
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
RATES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
Rule = Literal["adam", "sgd"]
OPTIMIZERS: tuple[Rule, ...] = ("adam", "sgd")


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        title: in panels.
        make: makes its settings.
        adam: the kind of Adam: where the weights decay, the decay is decoupled.
        plain: what the plain network is.
    """

    title: str
    make: Callable[[Setup], Spec]
    adam: Literal["adam", "adamw"]
    plain: Formulation

    def optimizer(self, rule: Rule) -> Literal["adam", "adamw", "sgd"]:
        """The optimizer that follows a rule."""
        return "sgd" if rule == "sgd" else self.adam


TASKS = {
    "lenet": Task("LeNet", settings.bayes_short, "adam", "plain"),
    "transformer": Task("transformer", settings.digits_rows, "adam", "plain"),
    "unet": Task("U-Net", settings.scale_short, "adamw", "shared"),
}
# A rate is good if its metric reaches this fraction of the best improvement at any rate, up to
# the margin.
GOOD = 0.95
# Two steps are about as long as each other if neither is longer by more than this factor.
FAR = 1.5


@dataclasses.dataclass(frozen=True)
class Cell:
    """A task, by its name in :data:`TASKS`, and a hypernetwork."""

    task: str
    inputs: int = 1
    hidden: tuple[int, ...] = (16, 128)
    head: str = "dense"

    @classmethod
    def of(cls, spec: Spec) -> Cell:
        """The cell of a hypernetwork's run."""
        config = spec.config
        return cls(_task(spec), getattr(config, "dimensions", 1), config.hidden, config.head)

    @property
    def size(self) -> str:
        """``32 inputs, hidden (16, 128)``."""
        deep = len(set(self.hidden)) == 1 and len(self.hidden) > 2
        hidden = f"{len(self.hidden)} x {self.hidden[0]}" if deep else f"{self.hidden}"
        parts = [f"{self.inputs} inputs"] if self.inputs > 1 else []
        parts += [f"hidden {hidden}"] + ([f"{self.head} head"] if self.head != "dense" else [])
        return ", ".join(parts)

    @property
    def title(self) -> str:
        """``LeNet, 32 inputs, hidden (16, 128)``."""
        return f"{TASKS[self.task].title}, {self.size}"


def _task(spec: Spec) -> str:
    """The name of a run's task in :data:`TASKS`."""
    if spec.task == "scale_space":
        return "unet"
    return "transformer" if spec.config.network == "transformer" else "lenet"


def _rule(spec: Spec) -> Rule:
    return "sgd" if spec.training.optimizer == "sgd" else "adam"


def cells(setup: Setup) -> list[Cell]:
    """Tasks and sizes: the paper's size, and others that differ from it in one respect.

    Most of them have the transformer, which is the fastest to train.
    """
    if setup.size == "smoke":
        return [
            Cell("lenet", 32, (4, 8)),
            Cell("transformer", 1, (4, 8), "low-rank"),
            Cell("unet", 1, (4, 8)),
        ]
    found = [Cell("lenet"), Cell("lenet", 32)]
    found += [Cell("transformer", hidden=hidden) for hidden in ((16, 128), (512, 512))]
    found += [Cell("transformer", hidden=(128,) * 6)]
    found += [Cell("transformer", head=head) for head in ("low-rank", "per-layer")]
    found += [Cell("unet")]
    if setup.size == "paper":
        found += [Cell("transformer", hidden=(1024, 1024))]
        found += [Cell("lenet", 32, (16, width)) for width in (32, 1024)]
        found += [Cell(task, 1, (16, width)) for task in TASKS for width in (32, 512, 1024)]
    return found


def start_of(setup: Setup, task: str) -> Spec:
    """Settings that all runs of a task have; the runs are tested only before and after training."""
    spec = TASKS[task].make(setup)
    how = dataclasses.replace(spec.training, evaluate_every=spec.training.steps)
    return dataclasses.replace(spec, training=how)


def specs(setup: Setup) -> list[Spec]:
    seeds = setup.replicas
    rates = (1e-3, 1e-1) if setup.size == "smoke" else RATES
    found: list[Spec] = []
    for name, task in TASKS.items():
        how = {"optimizer": [task.optimizer(rule) for rule in _rules(setup)], "lr": rates}
        found += grid(start_of(setup, name), seeds=seeds, formulations=[task.plain], training=how)
        for cell in cells(setup):
            for method in METHODS if cell.task == name else ():
                found += grid(
                    made(setup, cell, method), seeds=seeds, formulations=["mip"], training=how
                )
    return found


def _rules(setup: Setup) -> tuple[Rule, ...]:
    return OPTIMIZERS[:1] if setup.size == "smoke" else OPTIMIZERS


def made(setup: Setup, cell: Cell, method: str) -> Spec:
    """Settings of the hypernetworks of a cell and a method."""
    changed, rule, _ = METHODS[method]
    base = start_of(setup, cell.task)
    config = dataclasses.replace(base.config, **changed, hidden=cell.hidden, head=cell.head)
    if cell.task != "unet":
        config = dataclasses.replace(config, dimensions=cell.inputs)
    how = dataclasses.replace(base.training, rates=rule)
    return dataclasses.replace(base, config=config, training=how)


# By cell, rule and method.
Steps = Mapping[tuple[Cell, Rule, str], Step]


def measure(setup: Setup) -> Steps:
    """Measure how far the first step goes, for every cell, optimizer and method."""
    found: dict[tuple[Cell, Rule, str], Step] = {}
    for cell in cells(setup):
        for method in METHODS:
            spec = made(setup, cell, method)
            for rule in _rules(setup):
                optimizer = TASKS[cell.task].optimizer(rule)
                how = dataclasses.replace(spec.training, optimizer=optimizer)
                found[cell, rule, method] = first_step(dataclasses.replace(spec, training=how))
    return found


def _cells(results: Results) -> list[Cell]:
    return list(dict.fromkeys(Cell.of(g.spec) for g in results.where(formulation="mip")))


def _optimizers(results: Results) -> list[Rule]:
    return list(dict.fromkeys(_rule(group.spec) for group in results))


def _line(results: Results, cell: Cell, optimizer: Rule, method: str) -> list[Group]:
    """The groups of a line, sorted by rate."""
    if method == PLAIN:
        made = results.where(formulation=TASKS[cell.task].plain)
        found = [group for group in made if _task(group.spec) == cell.task]
    else:
        changed, rule, _ = METHODS[method]
        made = results.where(formulation="mip", rates=rule, **changed)
        found = [group for group in made if Cell.of(group.spec) == cell]
    found = [group for group in found if _rule(group.spec) == optimizer]
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
        for optimizer in _optimizers(results)
        for cell in found
        if cell.task == task
    ]
    figure, axes = figures.panels(columns, -(-len(shown) // columns), width=11.0, height=2.5)
    for ax, (cell, optimizer) in zip(axes, shown, strict=False):
        for method in (PLAIN, *METHODS):
            _draw_line(ax, results, cell, optimizer, method)
        metric = _line(results, cell, optimizer, PLAIN)[0].metric
        ax.set_xscale("log")
        ax.set_ylabel(f"test {metric.heading}")
        ax.set_ylim(0, 102 if metric.unit == "%" else 1)
        ax.set_title(
            f"{TASKS[cell.task].title}, {_named(cell, optimizer)}\n{cell.size}", fontsize="medium"
        )
    for ax in axes[len(shown) :]:
        ax.set_visible(False)
    for ax in axes[: len(shown)][-columns:]:
        ax.set_xlabel("learning rate")
    figures.legend(figure)
    return figure


def _named(cell: Cell, optimizer: Rule) -> str:
    """``AdamW`` where the weights decay."""
    return drawing.NAMES[TASKS[cell.task].optimizer(optimizer)]


def _draw_line(ax: Axes, results: Results, cell: Cell, optimizer: Rule, method: str) -> None:
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


def _kept(results: Results, optimizer: Rule, method: str) -> list[tuple[str, Verdict]]:
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


def _level(results: Results, optimizer: Rule, method: str) -> list[tuple[str, Verdict]]:
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
    for optimizer in _optimizers(results):
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
                "half of each step of the weights goes through the head, which in so few steps "
                "has not learned all gammas",
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
        for optimizer in _optimizers(results):
            for method in (PLAIN, *METHODS):
                finals = [
                    group.final.text(group.metric.digits)
                    for group in _line(results, cell, optimizer, method)
                ]
                rows.append([cell.title, _named(cell, optimizer), method, *finals])
    rates = [f"{rate:g}" for rate in sorted(results.values("lr"))]
    parts = [
        [
            cell.title,
            _named(cell, optimizer),
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
    "for all gammas), MIP, and ours, the library's defaults (unit-norm encoding, relative "
    "start), with one rate for all parameters and with hl.parameter_groups. Mean and standard "
    "deviation over seeds.",
    specs=specs,
    draw=draw,
    claims=claims,
    measure=measure,
    tables=tables,
    reduced=settings.reduced("bayes_short", "digits_rows", "scale_short"),
)
