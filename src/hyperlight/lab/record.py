"""What a training run measured, and how it is written to and read from JSON."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

import torch

from .. import ScaleProfile
from ..errors import listed
from ..io.kinds import fits
from .files import is_plain
from .methods import Method
from .tasks.base import Formulation, Metric, Model, Outcome

__all__ = ["PICTURES", "Point", "Run", "by_method", "check"]

PICTURES = (".png",)
"""How the names of a run's pictures end."""

# What a record holds, in the notation of hyperlight.io.kinds.
_COUNT = range(2**53)
_NUMBER = (float, range(-(2**63), 2**63))
_PROFILE = {
    "input": str,
    "gamma": ([_NUMBER], [[_NUMBER]]),
    "magnitude": [_NUMBER],
    "std": [_NUMBER],
    "verdict": str,
}
_KINDS: dict[str, Any] = {
    "metric": {"name": str, "unit": str, "digits": range(20)},
    "points": [
        {"step": _COUNT, "seconds": _NUMBER, "train_loss": _NUMBER, "figures": {str: _NUMBER}}
    ],
    "loss": [_NUMBER],
    "gradient_norm": [_NUMBER],
    "seconds": _NUMBER,
    "waiting": _NUMBER,
    "initial": (_PROFILE, NoneType),
    "final": (_PROFILE, NoneType),
    "resumed": [_COUNT],
    "outcome": (
        {
            "figures": {str: _NUMBER},
            "tables": [[str, [str], [[(str, bool, NoneType, *_NUMBER)]]]],
            "pictures": [[str, str]],
        },
        NoneType,
    ),
    "provenance": {str: str},
}


def check(record: dict[str, Any], *, finished: bool) -> None:
    """Refuse a record that :meth:`Run.record` does not return.

    Args:
        record: from a file.
        finished: whether it is the record of a finished run, which has no steps after the last
            evaluation.

    Raises:
        ValueError: it has other keys, or values of another type or length.

    >>> check({"loss": []}, finished=True)
    Traceback (most recent call last):
    ValueError: it has no 'metric', 'points', 'gradient_norm' and 6 more
    """
    for words, names in (
        ("it has no", [name for name in _KINDS if name not in {**record, "provenance": {}}]),
        ("it has the unknown", [name for name in record if name not in _KINDS]),
    ):
        if names:
            raise ValueError(f"{words} {listed(names, 3)}")
    for name, kind in _KINDS.items():
        if name in record and not fits(record[name], kind):
            raise ValueError(f"{name!r} has an unexpected value or part: {record[name]!r:.60}")
    points, metric = record["points"], record["metric"]["name"]
    steps = [point["step"] for point in points]
    if not steps or any(b <= a for a, b in itertools.pairwise(steps)):
        raise ValueError(f"'points' has the steps {steps}; expected one or more, increasing")
    figures = {"loss", metric, *points[0]["figures"]}
    for point in points:
        if not figures <= set(point["figures"]):
            raise ValueError(
                f"'points' has the figures {listed(point['figures'])} at step {point['step']}; "
                f"expected {listed(sorted(figures))}"
            )
    done = len(record["loss"])
    if done < steps[-1] or (finished and done > steps[-1]):
        raise ValueError(f"'loss' has {done} values; expected {steps[-1]}, one a step")
    if len(record["gradient_norm"]) != done:
        found = len(record["gradient_norm"])
        raise ValueError(f"'gradient_norm' has {found} values; expected {done}, one a step")
    for name in ("initial", "final"):
        profile = record[name]
        if profile is not None:
            counts = [len(profile[key]) for key in ("gamma", "magnitude", "std")]
            widths = {len(row) for row in profile["gamma"] if isinstance(row, list)}
            if len(set(counts)) > 1 or len(widths) > 1 or not counts[0]:
                raise ValueError(f"{name!r} has lists of unequal lengths, or none")
    outcome = record["outcome"] or {"tables": [], "pictures": []}
    for title, heading, rows in outcome["tables"]:
        if any(len(row) != len(heading) for row in rows):
            raise ValueError(f"the table {title!r} has rows that are not as long as its heading")
    for _, name in outcome["pictures"]:
        if not is_plain(name, *PICTURES):
            raise ValueError(
                f"it names the picture {name!r:.60}; expected the name of a .png file, without a "
                "folder"
            )


# A run has diverged if its loss is so many times that of the first step, or of a loss of 1.
_EXPLODED = 1000.0


@dataclass(frozen=True)
class Point:
    """One evaluation during training.

    Attributes:
        step: number of updates made so far.
        seconds: training time so far, without evaluations and checkpoints.
        train_loss: mean training loss since the previous point; NaN at step 0.
        figures: test figures by name.
    """

    step: int
    seconds: float
    train_loss: float
    figures: dict[str, float]


@dataclass
class Run:
    """The training of one model: its settings and everything that was measured.

    Attributes:
        method: what was trained.
        seed: the replica.
        metric: the test figure that the task is judged by.
        model: the model; None if only the record was read.
        points: the evaluations; the last one uses the whole test set.
        loss: training loss of every step.
        gradient_norm: norm of the gradient with respect to the predicted weights at every step
            (figure 3c of the paper).
        seconds: training time, without evaluations and checkpoints.
        waiting: the part of ``seconds`` spent waiting for batches.
        initial: scale of the predicted weights along gamma before training (figure 1a of the
            paper); None for a plain network.
        final: the same after training.
        resumed: steps at which training resumed after an interruption.
        outcome: the task's final results; None if the run has no folder.
        folder: the run's folder, if it has one.
        provenance: versions and machine that a finished run was trained with; empty before.
    """

    method: Method
    seed: int
    metric: Metric
    model: Model | None = None
    initial: ScaleProfile | None = None
    final: ScaleProfile | None = None
    points: list[Point] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
    seconds: float = 0.0
    waiting: float = 0.0
    resumed: list[int] = field(default_factory=list)
    outcome: Outcome | None = None
    folder: Path | None = None
    provenance: dict[str, str] = field(default_factory=dict)

    @property
    def formulation(self) -> Formulation:
        """How the weights are made."""
        return self.method.formulation

    @property
    def step(self) -> int:
        """Number of updates made so far."""
        return len(self.loss)

    @property
    def diverged(self) -> int | None:
        """The step at which training diverged; None if it did not.

        A step fails if its loss or gradient norm is not finite, or if its loss is above 1,000 and
        above 1,000 times that of the first step. A run has diverged from the first step after
        which all steps failed. It has also diverged if the latest test loss fails in this way. A
        run that recovers has not diverged.
        """
        highest = _EXPLODED * max([1.0, *(abs(x) for x in self.loss[:1] if math.isfinite(x))])

        def failed(loss: float) -> bool:
            return not (math.isfinite(loss) and loss <= highest)

        fine = self.step
        while fine and (
            failed(self.loss[fine - 1]) or not math.isfinite(self.gradient_norm[fine - 1])
        ):
            fine -= 1
        if fine < self.step:
            return fine + 1
        latest = [point.figures["loss"] for point in self.points[-1:] if point.step == self.step]
        return self.step if any(map(failed, latest)) else None

    @property
    def chunk_seconds(self) -> list[float]:
        """Seconds per step between each pair of consecutive points."""
        return [
            (b.seconds - a.seconds) / (b.step - a.step) for a, b in itertools.pairwise(self.points)
        ]

    def first_step(self, target: float) -> int | None:
        """The first evaluated step at which the metric reached ``target``, if any."""
        return next((p.step for p in self.points if p.figures[self.metric.name] >= target), None)

    def figure(self, name: str) -> float:
        """One of the task's final figures; NaN if the run diverged."""
        return math.nan if self.outcome is None else self.outcome.figures[name]

    def along(self, column: str | None = None) -> dict[float, float]:
        """Final values by gamma; empty if there are none.

        Args:
            column: of the task's table; by default the metric.
        """
        return self.column("gamma", self.metric.heading if column is None else column)

    def column(self, key: str, name: str) -> dict[float, float]:
        """A column of the final tables by their first one; empty if there is none.

        Args:
            key: heading of the first column.
            name: heading of the column.
        """
        return {
            row[0]: row[list(heading).index(name)]
            for _, heading, rows in (self.outcome.tables if self.outcome is not None else ())
            if heading[0] == key and name in heading
            for row in rows
        }

    def metrics(self) -> tuple[list[str], list[list[Any]]]:
        """The points as a table: the column names and a row per point."""
        names = list(self.points[0].figures)
        return ["step", "seconds", "train_loss", *(f"test_{name}" for name in names)], [
            [p.step, p.seconds, p.train_loss, *(p.figures[name] for name in names)]
            for p in self.points
        ]

    def record(self) -> dict[str, Any]:
        """All measurements as JSON values; :meth:`read` restores them exactly."""
        outcome = self.outcome and {
            "figures": self.outcome.figures,
            "tables": self.outcome.tables,
            "pictures": [(caption, path.name) for caption, path in self.outcome.pictures],
        }
        return {
            "metric": dataclasses.asdict(self.metric),
            "points": [dataclasses.asdict(point) for point in self.points],
            "loss": self.loss,
            "gradient_norm": self.gradient_norm,
            "seconds": self.seconds,
            "waiting": self.waiting,
            "initial": _profile_record(self.initial),
            "final": _profile_record(self.final),
            "resumed": self.resumed,
            "outcome": outcome,
        }

    def read(self, record: dict[str, Any]) -> None:
        """Restore the measurements that :meth:`record` returned, and ``provenance`` if it is there.

        A record from a file must have passed :func:`check`.
        """
        self.provenance = record.get("provenance", {})
        self.metric = Metric(**record["metric"])
        self.points = [Point(**point) for point in record["points"]]
        for name in ("loss", "gradient_norm", "seconds", "waiting", "resumed"):
            setattr(self, name, record[name])
        self.initial = _read_profile(record["initial"])
        self.final = _read_profile(record["final"])
        if record["outcome"] is not None and self.folder is not None:
            made, folder = record["outcome"], self.folder
            self.outcome = Outcome(
                figures=made["figures"],
                tables=[(title, heading, rows) for title, heading, rows in made["tables"]],
                pictures=[(caption, folder / name) for caption, name in made["pictures"]],
            )


def by_method(runs: Iterable[Run]) -> list[tuple[Method, list[Run]]]:
    """The runs of each method, in the order of their first runs."""
    found: dict[str, tuple[Method, list[Run]]] = {}
    for run in runs:
        found.setdefault(run.method.name, (run.method, []))[1].append(run)
    return list(found.values())


def _profile_record(profile: ScaleProfile | None) -> dict[str, Any] | None:
    if profile is None:
        return None
    return {
        "input": profile.input,
        "gamma": profile.gamma.tolist(),
        "magnitude": profile.magnitude.tolist(),
        "std": profile.std.tolist(),
        "verdict": profile.verdict,
    }


def _read_profile(record: dict[str, Any] | None) -> ScaleProfile | None:
    if record is None:
        return None
    values = (
        torch.tensor(record[name], dtype=torch.float64) for name in ("gamma", "magnitude", "std")
    )
    gamma, magnitude, std = values
    return ScaleProfile(record["input"], gamma, magnitude, std, {}, record["verdict"])
