"""What a study is: a grid of runs, a figure, and the paper's claims as checks."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..engine import Spec
from ..record import Run
from ..summary import Claim, Spread
from ..tasks import KINDS
from ..tasks.base import Formulation, Metric
from ..train import Training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Group", "Place", "Results", "Size", "Study", "Table", "base", "grid", "value"]

Size = Literal["smoke", "cpu", "paper"]


@dataclass(frozen=True)
class Place:
    """Where a study is run.

    Attributes:
        size: how much of it.
        data_dir: the folder with the data sets; by default the user's cache.
        device: where runs are trained.
        seeds: how many replicas; by default as many as the size has.
    """

    size: Size
    data_dir: Path | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    seeds: int | None = None

    def replicas(self, **by_size: int) -> range:
        """The seeds; ``by_size`` says how many where the user does not."""
        return range(self.seeds if self.seeds is not None else by_size[self.size])


def grid(
    base: Spec,
    *,
    seeds: range,
    formulations: Sequence[Formulation] = ("classical", "mip"),
    config: Mapping[str, Sequence[Any]] | None = None,
    training: Mapping[str, Sequence[Any]] | None = None,
) -> list[Spec]:
    """All combinations of the given values, with all seeds.

    Args:
        base: what is the same in all of them.
        seeds: of every combination.
        formulations: how weights are made.
        config: values of settings of the task, by name.
        training: values of settings of the training, by name.
    """
    found = []
    for values in itertools.product(*(config or {}).values()):
        changed = dataclasses.replace(base.config, **dict(zip(config or {}, values, strict=True)))
        for others in itertools.product(*(training or {}).values()):
            how = dataclasses.replace(
                base.training, **dict(zip(training or {}, others, strict=True))
            )
            found += [
                Spec(base.task, changed, how, formulation, seed)
                for formulation in formulations
                for seed in seeds
            ]
    return found


@dataclass(frozen=True)
class Group:
    """The seeds of one combination.

    Attributes:
        spec: one of them; its seed is of no account.
        runs: of all seeds.
    """

    spec: Spec
    runs: list[Run]

    @property
    def metric(self) -> Metric:
        """What the task is judged by."""
        return self.runs[0].metric

    @property
    def steps(self) -> list[int]:
        """The evaluated steps."""
        return [point.step for point in self.runs[0].points]

    @property
    def seconds(self) -> list[float]:
        """Mean seconds of training until each."""
        return [spread.mean for spread in self.over(lambda run: [p.seconds for p in run.points])]

    def over(self, values: Callable[[Run], Sequence[float]]) -> list[Spread]:
        """Spreads over the seeds of a sequence of figures."""
        return [
            Spread.of(column) for column in zip(*(values(run) for run in self.runs), strict=True)
        ]

    def figure(self, name: str | None = None) -> list[Spread]:
        """A test figure at every evaluated step; by default the metric."""
        key = self.metric.name if name is None else name
        return self.over(lambda run: [point.figures[key] for point in run.points])

    @property
    def train_loss(self) -> list[Spread]:
        """The training loss at every evaluated step (NaN at step 0)."""
        return self.over(lambda run: [point.train_loss for point in run.points])

    @property
    def final(self) -> Spread:
        """The metric in the end, on the whole test set."""
        return self.figure()[-1]

    def outcome(self, name: str) -> Spread:
        """A figure that the task found in the end, over the seeds."""
        return Spread.of([r.outcome.figures[name] for r in self.runs if r.outcome is not None])

    @property
    def step_seconds(self) -> Spread:
        """Seconds per step over the seeds, of each the median over its stretches of training."""
        return Spread.of([float(np.median(run.chunk_seconds)) for run in self.runs])

    def along_gamma(self, column: str | None = None) -> list[tuple[float, Spread]]:
        """What the task found in the end for values of gamma, over the seeds.

        Args:
            column: of the task's table; by default the metric.
        """
        name = self.metric.heading if column is None else column
        found: dict[float, list[float]] = {}
        for run in self.runs:
            for _, heading, rows in run.outcome.tables if run.outcome is not None else ():
                if heading[0] == "gamma":
                    for row in rows:
                        found.setdefault(row[0], []).append(row[list(heading).index(name)])
        return [(gamma, Spread.of(values)) for gamma, values in found.items()]


class Results:
    """What a study's runs gave, in the order of the grid.

    Args:
        specs: the grid.
        runs: by their keys.
        measured: what :attr:`Study.measure` found.
    """

    def __init__(
        self, specs: Sequence[Spec], runs: Mapping[str, Run], measured: Any = None
    ) -> None:
        self.measured = measured
        self.groups: list[Group] = []
        found: dict[str, Group] = {}
        for spec in specs:
            about = {k: v for k, v in spec.about.items() if k != "seed"}
            key = repr(sorted(about.items(), key=lambda item: item[0]))
            if key not in found:
                found[key] = Group(spec, [])
                self.groups.append(found[key])
            found[key].runs.append(runs[spec.key])

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def where(self, **wanted: Any) -> list[Group]:
        """The groups with these values of ``task``, ``formulation`` or any setting."""
        return [g for g in self.groups if all(value(g.spec, k) == v for k, v in wanted.items())]

    def one(self, **wanted: Any) -> Group:
        """The only such group."""
        (group,) = self.where(**wanted)
        return group

    def pair(self, **wanted: Any) -> tuple[Group, Group]:
        """MIP and the default, of which all else is as wanted."""
        return self.one(formulation="mip", **wanted), self.one(formulation="classical", **wanted)

    @property
    def seeds(self) -> int:
        """Replicas of every group, of the one that has the fewest."""
        return min((len(group.runs) for group in self.groups), default=0)

    def values(self, name: str) -> list[Any]:
        """The values of a setting that occur, in order."""
        found = dict.fromkeys(value(group.spec, name) for group in self.groups)
        found.pop(None, None)
        return list(found)


def value(spec: Spec, name: str) -> Any:
    """A setting of a run by name: of the run, of its training or of its task, if it has that."""
    for place in (spec, spec.training, spec.config):
        if hasattr(place, name):
            return getattr(place, name)
    return None


@dataclass(frozen=True)
class Table:
    """Numbers of a study: kept as csv, and shown on the page where there are few.

    Attributes:
        title: for people; the name of the file is made of it.
        heading: of the columns.
        rows: numbers, or texts that are shown as they are.
        shown: whether it is on the page.
    """

    title: str
    heading: Sequence[str]
    rows: Sequence[Sequence[Any]]
    shown: bool = True


def _none(_: Any) -> list[Any]:
    return []


def base(task: str, config: Mapping[str, Any], training: Mapping[str, Any]) -> Spec:
    """What a grid starts from: the paper's settings of a task, with these changes."""
    kind = KINDS[task]
    how = Training(**{"target": None, "evaluate_every": 20, **kind.training, **training})
    return Spec(task, kind.config(**config), how, "mip", 0)


@dataclass(frozen=True)
class Study:
    """A figure or table of the paper (or beyond it) that anyone can run.

    Attributes:
        name: of the command: ``hyperlight study NAME``.
        title: for people.
        source: where the paper has it.
        caption: what the figure shows.
        draw: the figure.
        claims: what the paper says, with what was measured.
        specs: the grid at a place; none where only models that are not trained are looked at.
        measure: what is found without training, at a place; given on as ``Results.measured``.
        tables: the numbers beyond test figures by step.
        reduced: what a size leaves out against the paper, by size.
    """

    name: str
    title: str
    source: str
    caption: str
    draw: Callable[[Results], Figure]
    claims: Callable[[Results], list[Claim]]
    specs: Callable[[Place], list[Spec]] = _none
    measure: Callable[[Place], Any] | None = None
    tables: Callable[[Results], list[Table]] = _none
    reduced: Mapping[str, str] = field(default_factory=dict)
