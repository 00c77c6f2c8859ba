"""The parts of a study: a grid of runs, a figure, and the paper's claims as checks."""

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

__all__ = ["Group", "Results", "Setup", "Size", "Study", "Table", "along", "base", "grid", "value"]

Size = Literal["smoke", "cpu", "paper"]


@dataclass(frozen=True)
class Setup:
    """How a study is run.

    Attributes:
        size: how large its grid and its runs are.
        data_dir: folder with the data sets; by default the user's cache.
        device: device that runs are trained on.
        seeds: number of replicas; by default 5, or 1 in a smoke test.
    """

    size: Size
    data_dir: Path | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    seeds: int | None = None

    @property
    def replicas(self) -> range:
        """The seeds: as many as the user asks for, else 5 as in the paper, or 1 in a smoke test."""
        return range(self.seeds if self.seeds is not None else 1 if self.size == "smoke" else 5)


def grid(
    base: Spec,
    *,
    seeds: range,
    formulations: Sequence[Formulation] = ("classical", "mip"),
    config: Mapping[str, Sequence[Any]] | None = None,
    training: Mapping[str, Sequence[Any]] | None = None,
) -> list[Spec]:
    """Make a run for every combination of the given values, with every seed.

    Args:
        base: the settings that all runs have in common.
        seeds: seeds of every combination.
        formulations: how the weights are made.
        config: values of the task's settings, by name.
        training: values of the training's settings, by name.
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
    """All seeds of one combination of settings.

    Attributes:
        spec: the settings, with an arbitrary seed.
        runs: one run per seed.
    """

    spec: Spec
    runs: list[Run]

    @property
    def metric(self) -> Metric:
        """The metric that the task is judged by."""
        return self.runs[0].metric

    @property
    def steps(self) -> list[int]:
        """Steps at which the runs were evaluated."""
        return [point.step for point in self.runs[0].points]

    @property
    def seconds(self) -> list[float]:
        """Mean seconds of training until each of :attr:`steps`."""
        return [spread.mean for spread in self.over(lambda run: [p.seconds for p in run.points])]

    def over(self, values: Callable[[Run], Sequence[float]]) -> list[Spread]:
        """Spreads over the seeds, for every entry of a sequence that each run gives."""
        return [
            Spread.of(column) for column in zip(*(values(run) for run in self.runs), strict=True)
        ]

    def figure(self, name: str | None = None) -> list[Spread]:
        """A test figure at each of :attr:`steps`; by default the metric."""
        key = self.metric.name if name is None else name
        return self.over(lambda run: [point.figures[key] for point in run.points])

    @property
    def train_loss(self) -> list[Spread]:
        """Training loss at each of :attr:`steps` (NaN at step 0)."""
        return self.over(lambda run: [point.train_loss for point in run.points])

    @property
    def final(self) -> Spread:
        """Final metric, on the whole test set."""
        return self.figure()[-1]

    @property
    def finals(self) -> list[float]:
        """Final metric of every seed."""
        return [run.points[-1].figures[self.metric.name] for run in self.runs]

    @property
    def validation(self) -> Spread | None:
        """Final metric on validation data; None if a run has none."""
        name = f"validation {self.metric.name}"
        found = [run.outcome.figures for run in self.runs if run.outcome is not None]
        if len(found) < len(self.runs) or not all(name in figures for figures in found):
            return None
        return Spread.of([figures[name] for figures in found])

    @property
    def diverged(self) -> bool:
        """Whether a run diverged."""
        return any(run.diverged is not None for run in self.runs)

    def figures(self, name: str) -> list[float]:
        """One of the task's final figures, of every seed; NaN for those that diverged."""
        return [run.figure(name) for run in self.runs]

    def outcome(self, name: str) -> Spread:
        """One of the task's final figures, by name."""
        return Spread.of([r.outcome.figures[name] for r in self.runs if r.outcome is not None])

    @property
    def step_seconds(self) -> Spread:
        """Seconds per step: the spread over seeds of each run's median."""
        return Spread.of([float(np.median(run.chunk_seconds)) for run in self.runs])

    def along_gamma(self, column: str | None = None) -> list[tuple[float, Spread]]:
        """Final values along gamma, as pairs of gamma and a spread over seeds.

        Args:
            column: column of the task's table; by default the metric.
        """
        found: dict[float, list[float]] = {}
        for run in self.runs:
            for gamma, value in along(run, column).items():
                found.setdefault(gamma, []).append(value)
        return [(gamma, Spread.of(values)) for gamma, values in found.items()]


def along(run: Run, column: str | None = None) -> dict[float, float]:
    """Final values of a run by gamma; empty if it has none.

    Args:
        run: the run.
        column: column of the task's table; by default the metric.
    """
    return run.along(column)


class Results:
    """Results of a study's runs, in the order of the grid.

    Args:
        specs: the grid.
        runs: runs by key.
        measured: the result of :attr:`Study.measure`.
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
        """Return the groups with these values of ``task``, ``formulation`` or any setting."""
        return [g for g in self.groups if all(value(g.spec, k) == v for k, v in wanted.items())]

    def one(self, **wanted: Any) -> Group:
        """Return the only group with these values."""
        (group,) = self.where(**wanted)
        return group

    def pair(self, **wanted: Any) -> tuple[Group, Group]:
        """Return MIP and classical with these values."""
        return self.one(formulation="mip", **wanted), self.one(formulation="classical", **wanted)

    @property
    def seeds(self) -> int:
        """Number of replicas of the group that has the fewest."""
        return min((len(group.runs) for group in self.groups), default=0)

    def values(self, name: str) -> list[Any]:
        """Return the values of a setting that occur, in order."""
        found = dict.fromkeys(value(group.spec, name) for group in self.groups)
        found.pop(None, None)
        return list(found)


def value(spec: Spec, name: str) -> Any:
    """Look a setting up by name in the run, its training or its task; None if there is none."""
    for holder in (spec, spec.training, spec.config):
        if hasattr(holder, name):
            return getattr(holder, name)
    return None


@dataclass(frozen=True)
class Table:
    """Numbers of a study, written as csv and, if few, shown on the page.

    Attributes:
        title: title of the table; the file is named after it.
        heading: names of the columns.
        rows: numbers, or texts that are shown unchanged.
        shown: whether the table is on the page.
    """

    title: str
    heading: Sequence[str]
    rows: Sequence[Sequence[Any]]
    shown: bool = True


def _none(_: Any) -> list[Any]:
    return []


def base(task: str, config: Mapping[str, Any], training: Mapping[str, Any]) -> Spec:
    """Make a grid's starting point: the paper's settings of a task, with these changes."""
    kind = KINDS[task]
    how = Training(**{"target": None, "evaluate_every": 20, **kind.training, **training})
    return Spec(task, kind.config(**config), how, "mip", 0)


@dataclass(frozen=True)
class Study:
    """A figure or table of the paper, or one beyond it, that a command reproduces.

    Attributes:
        name: name of the command, ``hyperlight study NAME``.
        title: title on the page.
        source: where the paper has it.
        caption: what the figure shows.
        draw: draws the figure.
        claims: compares the paper's claims with the results.
        specs: makes the grid; empty for studies of untrained models.
        measure: measures what needs no training; becomes ``Results.measured``.
        tables: makes the tables of all numbers other than test figures by step.
        reduced: what each size leaves out compared to the paper.
    """

    name: str
    title: str
    source: str
    caption: str
    draw: Callable[[Results], Figure]
    claims: Callable[[Results], list[Claim]]
    specs: Callable[[Setup], list[Spec]] = _none
    measure: Callable[[Setup], Any] | None = None
    tables: Callable[[Results], list[Table]] = _none
    reduced: Mapping[str, str] = field(default_factory=dict)
