"""Verdicts on claims about groups of runs: which one learns, is faster, or ends higher.

Groups are compared by seed. A claim that one method does better than another is not testable if
the other is at the floor: it has learned nothing, so that nothing can be worse. Neither is it if a
run of the other diverged. It is refuted if only the method's own runs did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..comparison import MARGINS, Interval, Verdict, counted, every
from ..record import Run
from ..summary import Claim, shown
from .base import Group
from .drawing import name, worth

__all__ = [
    "Race",
    "among",
    "at_floor",
    "better",
    "compare",
    "ends",
    "final",
    "first",
    "floor",
    "lead",
    "margin",
    "mean_over_training",
    "no_worse",
    "paired",
    "races",
    "sooner",
    "step_seconds",
    "testable",
]

# Accuracy of always answering the most frequent class of the test images, in percent.
CHANCE = {"digits": 10.3, "mnist": 11.35, "flowers102": 3.9}


def margin(group: Group) -> float:
    """A difference in the group's metric that does not matter."""
    return MARGINS[group.metric.name]


def floor(group: Group) -> float:
    """The metric without any learning: that of a constant answer, or before registration."""
    if group.metric.name == "accuracy":
        return CHANCE.get(group.spec.config.data, 0.0)
    before = "dice before registration"
    figures = [run.outcome.figures for run in group.runs if run.outcome is not None]
    return max((each[before] for each in figures if before in each), default=0.0)


def at_floor(group: Group) -> bool:
    """Whether a group is within the margin of the metric without any learning, or below."""
    return not worth(group.final) > floor(group) + margin(group)


def testable(one: Group, other: Group, verdict: Verdict) -> Verdict:
    """The verdict on a claim that one group does better than another, if it can be tested."""
    if other.diverged:
        return "not testable"
    if one.diverged:
        return "refuted"
    return "not testable" if at_floor(other) else verdict


def paired(one: Group, other: Group, of: Callable[[Run], float]) -> tuple[list[float], list[float]]:
    """Values of the runs of two groups, by the seeds that both have."""
    theirs = {run.seed: run for run in other.runs}
    pairs = [(run, theirs[run.seed]) for run in one.runs if run.seed in theirs]
    return [of(run) for run, _ in pairs], [of(run) for _, run in pairs]


def final(run: Run) -> float:
    """Final metric of a run."""
    return run.points[-1].figures[run.metric.name]


def mean_over_training(run: Run) -> float:
    """Mean metric over the evaluations of a run: high if it is fast."""
    return sum(point.figures[run.metric.name] for point in run.points) / len(run.points)


def step_seconds(run: Run) -> float:
    """Seconds per step: the median over the stretches between evaluations."""
    found = sorted(run.chunk_seconds)
    middle = len(found) // 2
    return found[middle] if len(found) % 2 else (found[middle - 1] + found[middle]) / 2.0


def compare(one: Group, other: Group, of: Callable[[Run], float] = final) -> Interval:
    """Mean difference of two groups over seeds, by default of the final metric."""
    return Interval.difference(*paired(one, other, of))


def lead(one: Group, other: Group) -> str:
    """The difference of the final metrics in words: ``+1.8 [-0.2, +3.7]``."""
    return compare(one, other).text(one.metric.digits, "+")


def ends(one: Group, other: Group, names: tuple[str, str] | None = None) -> str:
    """Final metrics of both and their difference, in words.

    Args:
        one: a group.
        other: another one.
        names: of both; by default those of their formulations.
    """
    first, second = (name(one), name(other)) if names is None else names
    return (
        f"final {one.metric.name} {shown(one.final, one.metric)} ({first}) and "
        f"{shown(other.final, other.metric)} ({second})"
        + ("" if one.diverged or other.diverged else f", difference {lead(one, other)}")
    )


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
        fraction: of the improvement of ``other``.
    """

    mip: Group
    other: Group
    target: float
    mip_step: float
    other_step: float
    floor: float = -math.inf
    fraction: float = 0.95

    @classmethod
    def of(cls, mip: Group, other: Group, fraction: float = 0.95, floor: float = -math.inf) -> Race:
        """Compare two groups."""
        starts = [max(group.figure()[0].mean, floor) for group in (mip, other)]
        gains = [
            group.final.mean - start for group, start in zip((mip, other), starts, strict=True)
        ]
        learned = gains[1] > 0.0 and not gains[1] < 0.05 * gains[0]
        target = starts[1] + fraction * gains[1] if learned else math.nan
        return cls(mip, other, target, first(mip, target), first(other, target), floor, fraction)

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

    @property
    def factors(self) -> list[float]:
        """The same for every seed that both have, each with a target of its own.

        A run with MIP that does not get there counts as if it did one evaluation after the end.
        NaN where the other does not improve.
        """
        theirs = {run.seed: run for run in self.other.runs}
        return [self._factor(run, theirs[run.seed]) for run in self.mip.runs if run.seed in theirs]

    @property
    def factor(self) -> Interval:
        """Geometric mean of :attr:`factors`."""
        return Interval.ratio(self.factors, [1.0] * len(self.factors))

    def _factor(self, mip: Run, other: Run) -> float:
        steps = [point.step for point in mip.points]
        start = max(other.points[0].figures[other.metric.name], self.floor)
        gain = final(other) - start
        if not gain > 0.0:
            return math.nan
        late = 2 * steps[-1] - steps[-2]
        reached = [run.first_step(start + self.fraction * gain) for run in (mip, other)]
        own, theirs = (late if step is None else max(step, steps[1]) for step in reached)
        return theirs / own

    @property
    def censored(self) -> bool:
        """Whether a side gets there at the first evaluation, or not at all.

        The ratio is then only a bound.
        """
        return self.mip_step <= self.mip.steps[1] or not math.isfinite(self.mip_step)

    def faster(self, stated: float = 1.0) -> Verdict:
        """Whether MIP is faster by this factor, for sure by more than 1."""
        verdict = "not testable" if math.isnan(self.target) else self.factor.above(1.0, stated)
        return testable(self.mip, self.other, verdict)

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
        metric, found = self.mip.metric, ends(self.mip, self.other)
        if math.isnan(self.target):
            over = (
                "its start"
                if self.other.figure()[0].mean >= self.floor
                else f"the {metric.text(self.floor)} without learning"
            )
            return f"{name(self.other)} barely improves over {over}; {found}"
        return (
            f"steps to {metric.text(self.target)} {metric.name}: "
            f"{_step(self.mip_step, self.mip)} ({name(self.mip)}) and "
            f"{_step(self.other_step, self.other)} ({name(self.other)}), by seed "
            f"{self.factor.text(1)} times as many; {found}"
        )


def _step(step: float, group: Group) -> str:
    return f"{step:.0f}" if math.isfinite(step) else f"more than {group.steps[-1]}"


Ending = Literal["any", "level", "higher"]
"""What a claim that MIP is faster says about its final metric: nothing, no lower, or higher."""


def _sooner(mip: Group, other: Group, ending: Ending, stated: float = 1.0) -> tuple[Race, Verdict]:
    race, final_lead = Race.of(mip, other, floor=floor(other)), compare(mip, other)
    parts = [race.faster(stated)]
    if ending == "level":
        parts.append(final_lead.at_least(-margin(mip)))
    if ending == "higher":
        parts.append(final_lead.above(0.0))
    return race, testable(mip, other, every(parts))


def sooner(
    source: str,
    text: str,
    mip: Group,
    other: Group,
    guess: str = "",
    *,
    ending: Ending = "any",
    stated: float = 1.0,
) -> Claim:
    """Claim that MIP is faster than the other.

    Args:
        source: where the paper makes the claim.
        text: what it says.
        mip: runs with MIP.
        other: runs with classical, or another formulation.
        guess: why the claim may not hold.
        ending: what the claim says about the final metric.
        stated: how many times as many steps the other takes at least.
    """
    race, verdict = _sooner(mip, other, ending, stated)
    return Claim(source, text, race.text(), verdict, guess)


def no_worse(source: str, text: str, mip: Group, other: Group, guess: str = "") -> Claim:
    """Claim that MIP ends at least as good as the other: no lower by the margin or more."""
    verdict = testable(mip, other, compare(mip, other).at_least(-margin(mip)))
    return Claim(source, text, ends(mip, other), verdict, guess)


def better(
    source: str,
    text: str,
    mip: Group,
    other: Group,
    guess: str = "",
    *,
    names: tuple[str, str] | None = None,
) -> Claim:
    """Claim that MIP ends higher than the other; ``names`` as for :func:`ends`."""
    verdict = testable(mip, other, compare(mip, other).above(0.0))
    return Claim(source, text, ends(mip, other, names), verdict, guess)


def races(
    source: str,
    text: str,
    pairs: Iterable[tuple[str, tuple[Group, Group]]],
    guess: str = "",
    *,
    ending: Ending = "any",
) -> Claim:
    """Claim that MIP is faster in all of several settings.

    Args:
        source: where the paper makes the claim.
        text: what it says.
        pairs: name of each setting, with MIP and classical.
        guess: why the claim may not hold.
        ending: what the claim says about the final metric.
    """
    found, verdicts = [], []
    for title, (mip, other) in pairs:
        race, verdict = _sooner(mip, other, ending)
        verdicts.append(verdict)
        digits = mip.metric.digits
        finals = " against ".join(
            f"{g.final.mean:.{digits}f}" if math.isfinite(g.final.mean) else "diverged"
            for g in (mip, other)
        )
        found.append(f"{title}: {race.ratio_text()}, {finals} ({verdict})")
    metric = mip.metric.heading
    return Claim(
        source,
        text,
        f"{counted(verdicts)}; steps of classical over steps of MIP, to 95 % of classical's "
        f"improvement, and final {metric} of MIP against classical: {'; '.join(found)}",
        every(verdicts),
        guess,
    )


def among(rate: float, tried: Sequence[float]) -> str:
    """A rate that was chosen. At the end of those tried, another might have been better.

    >>> from hyperlight.lab.studies.judging import among
    >>> among(0.01, [0.001, 0.01, 0.1]), among(0.1, [0.001, 0.01, 0.1]), among(0.1, [0.1])
    ('0.01', '0.1, the largest tried', '0.1')
    """
    if len(tried) > 1 and rate in (min(tried), max(tried)):
        return f"{rate:g}, the {'smallest' if rate == min(tried) else 'largest'} tried"
    return f"{rate:g}"
