"""Runs in numbers, as the table in the terminal, the page and the csv files show them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .comparison import Interval, Verdict, every
from .methods import TITLES, Method
from .record import Run, by_method
from .tasks.base import Metric

__all__ = [
    "BEYOND",
    "EARLY",
    "FOLLOWS",
    "STEADY",
    "SUBSTANTIAL",
    "TITLES",
    "Claim",
    "Spread",
    "Summary",
    "claims",
    "correlation",
    "follows",
    "lead",
    "shown",
    "shown_steps",
    "steady",
    "summarize",
    "swing",
    "variation",
]

# Steps whose gradient norms are compared.
EARLY = 100

# Source of a claim that is not the paper's.
BEYOND = "beyond the paper"

# The scale of the weights is steady if it varies less than this, as for hl.scale_profile, and
# follows gamma if its correlation with it is above that.
STEADY = 0.2
FOLLOWS = 0.8
# Something is "substantially" smaller, or faster, if by this factor.
SUBSTANTIAL = 1.25


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of a figure over seeds."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Compute the spread of some values; the deviation of a single one is NaN."""
        with np.errstate(invalid="ignore"):  # diverged runs give NaN
            std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
            return cls(float(np.mean(values)), std)

    def text(self, digits: int) -> str:
        """``mean ± std``, or the mean alone with one seed."""
        mean = f"{self.mean:.{digits}f}"
        return mean if math.isnan(self.std) else f"{mean} ± {self.std:.{digits}f}"

    def brief(self) -> str:
        """The same for figures of any magnitude, with four digits of the mean."""
        mean = f"{self.mean:.4g}"
        return mean if math.isnan(self.std) else f"{mean} ± {self.std:.2g}"


@dataclass(frozen=True)
class Summary:
    """All runs of one method.

    Attributes:
        method: the method.
        seeds: number of seeds.
        metric: the metric that the task is judged by.
        steps: steps at which the runs were evaluated.
        seconds: seconds of training until each step.
        test: test figures at each step, by name.
        train_loss: training loss since the previous step (NaN at step 0).
        diverged: step at which each seed diverged; None for those that did not.
        reached: first evaluated step that reaches the target, for every seed; None without one.
        seconds_per_step: each seed's median over the stretches between evaluations.
        waiting: fraction of the training time spent waiting for the next batch.
        outcome: the task's final figures, by name.
        initial_variation: variation of the scale of the predicted weights along gamma (std / mean)
            before training, mean over seeds (paper, figure 1a).
        final_variation: the same after training.
        gradient_swing: std / mean of the gradient norm within stretches of 10 steps, mean over the
            first 100 steps and the seeds (paper, figure 3c).
        runs: the runs, one per seed.
    """

    method: Method
    seeds: int
    metric: Metric
    steps: list[int]
    seconds: list[Spread]
    test: dict[str, list[Spread]]
    train_loss: list[Spread]
    diverged: list[int | None]
    reached: list[int | None]
    seconds_per_step: Spread
    waiting: Spread
    outcome: dict[str, Spread]
    initial_variation: float
    final_variation: float
    gradient_swing: float
    runs: Sequence[Run]

    @property
    def title(self) -> str:
        """Its name in tables and figures."""
        return self.method.title

    @property
    def formulation(self) -> str:
        """How the weights are made."""
        return self.method.formulation

    @property
    def measured(self) -> list[Spread]:
        """The metric at each of :attr:`steps`."""
        return self.test[self.metric.name]

    def along(self, column: str | None = None) -> dict[float, Spread]:
        """Final values by gamma, as :meth:`Run.along`; empty if a run has none."""
        found = [run.along(column) for run in self.runs]
        gammas = [g for g in found[0] if all(g in values for values in found)]
        return {gamma: Spread.of([values[gamma] for values in found]) for gamma in gammas}

    def divergence(self, until: int | None = None) -> str:
        """Which seeds have diverged by a step, by default the last one; empty if none have."""
        last = self.steps[-1] if until is None else until
        found = [step for step in self.diverged if step is not None and step <= last]
        if not found:
            return ""
        who = "" if self.seeds == 1 else f"{len(found)} of {self.seeds} seeds "
        return f"{who}diverged at step{'s'[: len(found) > 1]} {', '.join(map(str, found))}"

    def steps_to_target(self) -> str:
        """Steps to the target in words: the mean, or which seeds reach it if not all do."""
        got = [step for step in self.reached if step is not None]
        if len(got) == self.seeds:
            return Spread.of(got).text(0)
        if not got:
            return f"not within {self.steps[-1]}"
        return f"{len(got)} of {self.seeds} seeds: {', '.join(str(step) for step in got)}"


def shown(spread: Spread, metric: Metric) -> str:
    """A value of the metric in words: ``97.3 ± 0.2 %``, or ``diverged`` if it is not finite."""
    if not math.isfinite(spread.mean):
        return "diverged"
    return f"{spread.text(metric.digits)} {metric.unit}".rstrip()


def summarize(runs: Sequence[Run], target: float | None, metric: Metric) -> list[Summary]:
    """Summarize the runs of each method, in the order of their first runs."""
    summaries = []
    for method, group in by_method(runs):
        columns = list(zip(*(run.points for run in group), strict=True))
        initials = [run.initial for run in group if run.initial is not None]
        finals = [run.final for run in group if run.final is not None]
        summaries.append(
            Summary(
                method=method,
                seeds=len(group),
                metric=metric,
                steps=[column[0].step for column in columns],
                seconds=[Spread.of([p.seconds for p in column]) for column in columns],
                test={
                    name: [Spread.of([p.figures[name] for p in column]) for column in columns]
                    for name in group[0].points[0].figures
                },
                train_loss=[Spread.of([p.train_loss for p in column]) for column in columns],
                diverged=[run.diverged for run in group],
                reached=[None if target is None else run.first_step(target) for run in group],
                seconds_per_step=Spread.of([float(np.median(r.chunk_seconds)) for r in group]),
                waiting=Spread.of([run.waiting / max(run.seconds, 1e-12) for run in group]),
                outcome=_outcome(group),
                initial_variation=_mean([i.variation for i in initials]),
                final_variation=_mean([final.variation for final in finals]),
                gradient_swing=_mean([_early_swing(run) for run in group]),
                runs=group,
            )
        )
    return summaries


def _outcome(group: Sequence[Run]) -> dict[str, Spread]:
    """Final figures that every seed has."""
    found = [run.outcome.figures for run in group if run.outcome is not None]
    if len(found) < len(group):
        return {}
    names = [name for name in found[0] if all(name in figures for figures in found)]
    return {name: Spread.of([figures[name] for figures in found]) for name in names}


def _early_swing(run: Run) -> float:
    return swing(run.gradient_norm[:EARLY])


def swing(norms: Sequence[float], stretch: int = 10) -> float:
    """Mean of std / mean within stretches of steps, so that a trend does not count as a swing.

    Args:
        norms: gradient norm of every step.
        stretch: steps in a stretch; steps after the last whole one do not count.
    """
    stretch = min(stretch, len(norms))
    rows = np.asarray(norms[: len(norms) // stretch * stretch]).reshape(-1, stretch)
    with np.errstate(invalid="ignore"):  # diverged runs give NaN
        return float(np.mean(rows.std(axis=1) / np.maximum(rows.mean(axis=1), 1e-30)))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def shown_steps(steps: Sequence[int]) -> list[int]:
    """Choose up to six positions for a table: evenly spaced, with the last, without the first.

    >>> shown_steps(range(0, 401, 20))
    [4, 8, 12, 16, 20]
    """
    last = len(steps) - 1
    if not last:
        return [0]
    rows = next((n for n in (5, 6, 4) if last % n == 0), 5)
    return sorted({max(1, round(last * (i + 1) / rows)) for i in range(rows)})


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and what these runs measured.

    Attributes:
        source: where the paper makes the claim.
        text: what it says.
        measured: what was measured here.
        verdict: what the measurement says about the claim.
        guess: possible reason if it does not hold; shown if it is refuted.
    """

    source: str
    text: str
    measured: str
    verdict: Verdict
    guess: str = ""

    @property
    def reason(self) -> str:
        """The guess, if the claim is refuted."""
        return self.guess if self.verdict == "refuted" else ""


def lead(one: Summary, other: Summary) -> Interval:
    """How much higher the final metric of one method is, over the seeds that both have."""
    ends, others = ({run.seed: _end(run) for run in each.runs} for each in (one, other))
    seeds = [seed for seed in ends if seed in others]
    return Interval.difference([ends[seed] for seed in seeds], [others[seed] for seed in seeds])


def _end(run: Run) -> float:
    return run.points[-1].figures[run.metric.name]


def claims(summaries: Sequence[Summary]) -> list[Claim]:
    """Check that ours is ahead of every other method, and what the paper says of MIP.

    The former needs a method that is named so, the latter MIP and the classical formulation. Seeds
    are compared in pairs, so one seed decides nothing.
    """
    by_name = {summary.method.name: summary for summary in summaries}
    found = []
    if "ours" in by_name:
        ours = by_name.pop("ours")
        found = [_ahead(ours, other) for other in by_name.values()]
    if {"mip", "classical"} <= set(by_name):
        found += _of_the_paper(by_name["mip"], by_name["classical"])
    return found


def _claim(
    source: str,
    text: str,
    measured: str,
    verdict: Verdict,
    compared: Sequence[Summary],
    until: int | None = None,
) -> Claim:
    """A claim about methods, which cannot be tested if one of them diverged until a step."""
    lost = "; ".join(
        f"{summary.title}: {words}" for summary in compared if (words := summary.divergence(until))
    )
    return Claim(source, text, lost or measured, "not testable" if lost else verdict)


def _compared(one: Summary, other: Summary) -> str:
    """The final metrics of two methods, and their difference."""
    metric = one.metric
    ends = (f"{each.title} {shown(each.measured[-1], metric)}" for each in (one, other))
    difference = lead(one, other).text(metric.digits, "+")
    return f"at step {one.steps[-1]}: {', '.join(ends)}; difference {difference}"


def _ahead(ours: Summary, other: Summary) -> Claim:
    return _claim(
        BEYOND,
        f"ours has a higher {ours.metric.name} than {other.title}",
        _compared(ours, other),
        lead(ours, other).above(0.0),
        (ours, other),
    )


def _of_the_paper(mip: Summary, classical: Summary) -> list[Claim]:
    """Those of figures 4, 1a and 3c."""
    both = (mip, classical)

    def swings(summary: Summary) -> list[float]:
        return [_early_swing(run) for run in summary.runs]

    calmer = Interval.ratio(swings(classical), swings(mip))
    scale = [
        every([follows(classical.runs, when), steady(mip.runs, when)])
        for when in ("initial", "final")
    ]
    return [
        _claim(
            "section 6.2, figure 4",
            f"MIP has a higher {mip.metric.name} sooner",
            _compared(mip, classical),
            lead(mip, classical).above(0.0),
            both,
        ),
        _claim(
            "section 6.1, figure 1a",
            "the scale of the predicted weights correlates with gamma in the classical "
            "formulation, before and after training, and is robust to it with MIP",
            f"varies along gamma by {_percent(classical.initial_variation)} before and "
            f"{_percent(classical.final_variation)} after training (classical; correlation "
            f"{correlation(classical.runs, 'initial').text(2)} and "
            f"{correlation(classical.runs, 'final').text(2)}), "
            f"{_percent(mip.initial_variation)} and {_percent(mip.final_variation)} (MIP)",
            every(scale),
            both,
        ),
        _claim(
            "section 6.1, figure 3c",
            "the gradient norm swings substantially less with MIP in early training",
            f"std / mean within stretches of 10 steps: {mip.gradient_swing:.2f} (MIP), "
            f"{classical.gradient_swing:.2f} (classical), ratio {calmer.text(2)}",
            calmer.above(1.0, SUBSTANTIAL),
            both,
            until=EARLY,
        ),
    ]


def _scales(runs: Sequence[Run], when: str, name: str) -> Interval:
    profiles = [getattr(run, when) for run in runs]
    return Interval.of([math.nan if each is None else getattr(each, name) for each in profiles])


def correlation(runs: Sequence[Run], when: str) -> Interval:
    """Correlation of the scale of the predicted weights with gamma.

    Args:
        runs: one per seed.
        when: ``initial`` or ``final``: before or after training.
    """
    return _scales(runs, when, "correlation")


def variation(runs: Sequence[Run], when: str) -> Interval:
    """Variation of the scale of the predicted weights along gamma (std / mean)."""
    return _scales(runs, when, "variation")


def follows(runs: Sequence[Run], when: str) -> Verdict:
    """Whether the scale of the predicted weights follows gamma."""
    return correlation(runs, when).above(FOLLOWS)


def steady(runs: Sequence[Run], when: str) -> Verdict:
    """Whether the scale of the predicted weights is robust to gamma."""
    return variation(runs, when).below(STEADY)


def _percent(fraction: float) -> str:
    return f"{100.0 * fraction:.1f} %"
