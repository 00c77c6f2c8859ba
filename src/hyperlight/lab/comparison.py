"""Comparisons of runs: intervals over paired seeds, margins fixed beforehand, and verdicts.

Two methods are compared by seed, because equal seeds see the same data in the same order. The
interval is that of Student's t on the differences (or on the logarithms of ratios). It holds the
true mean in 95 of 100 studies if the differences are about normal. With one seed there is no
interval, and nothing is decided.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

__all__ = [
    "MARGINS",
    "VERDICTS",
    "Interval",
    "Verdict",
    "counted",
    "every",
    "of_all",
    "opposite",
    "several",
]

Verdict = Literal["holds", "refuted", "not decided", "not testable"]
"""What a study says about a claim. ``not decided``: the runs are too few or too different.
``not testable``: the baseline has learned nothing, or a run diverged where the claim is not about
divergence.
"""

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

# Differences that do not matter, by metric: one point of accuracy, 0.01 of Dice.
MARGINS = {"accuracy": 1.0, "dice": 0.01}

_LEVEL = 0.95
_LEAST = 1e-12  # logarithms are of at least this


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval.

    Attributes:
        mean: the mean; a geometric one for ratios.
        low: lower end; NaN with fewer than two values, or if one is not finite.
        high: upper end; NaN likewise.
    """

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Student's t of the mean over seeds."""
        mean = sum(values) / len(values) if values else math.nan
        if len(values) < 2 or not math.isfinite(mean):
            return cls(mean, math.nan, math.nan)
        from scipy.stats import t

        quantile = float(t.ppf(0.5 + _LEVEL / 2.0, len(values) - 1))
        half = quantile * statistics.stdev(values) / math.sqrt(len(values))
        return cls(mean, mean - half, mean + half)

    @classmethod
    def difference(cls, values: Sequence[float], others: Sequence[float]) -> Interval:
        """Mean of ``value - other`` over the same seeds."""
        return cls.of([a - b for a, b in zip(values, others, strict=True)])

    @classmethod
    def ratio(cls, values: Sequence[float], others: Sequence[float]) -> Interval:
        """Geometric mean of ``value / other`` over the same seeds, for numbers of at least 0."""
        found = cls.of([_log(a) - _log(b) for a, b in zip(values, others, strict=True)])
        return cls(*(_exp(x) for x in (found.mean, found.low, found.high)))

    @classmethod
    def spreads(cls, std: float, other: float, seeds: int) -> Interval:
        """Ratio of two standard deviations over as many seeds, by the F distribution."""
        ratio = max(std, _LEAST) / max(other, _LEAST)
        if seeds < 2 or not math.isfinite(ratio):
            return cls(ratio, math.nan, math.nan)
        from scipy.stats import f

        room = math.sqrt(float(f.ppf(0.5 + _LEVEL / 2.0, seeds - 1, seeds - 1)))
        return cls(ratio, ratio / room, ratio * room)

    @classmethod
    def bootstrap(
        cls, values: Sequence[Sequence[float]], draws: int = 10_000, seed: int = 0
    ) -> Interval:
        """Mean over seeds and test units, with the percentiles of a bootstrap over the units.

        It says how much the mean depends on which scans or pairs are in the test set. The seeds
        are kept, so it says nothing about other seeds.

        Args:
            values: a row per seed, with a value per unit; of one method, or differences of two.
            draws: number of test sets to draw.
            seed: of the draws.

        Raises:
            ValueError: the rows are not of equal length, or are empty.
        """
        rows = [list(row) for row in values]
        if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
            raise ValueError(
                f"bootstrap got rows of {[len(row) for row in rows]} values; expected at least one "
                "row, with as many values in each, one per test unit."
            )
        units = np.asarray(rows, dtype=float).mean(axis=0)
        mean = float(units.mean())
        if len(units) < 2 or not np.isfinite(units).all():
            return cls(mean, math.nan, math.nan)
        drawn = np.random.default_rng(seed).integers(len(units), size=(draws, len(units)))
        edges = (0.5 - _LEVEL / 2.0, 0.5 + _LEVEL / 2.0)
        low, high = np.quantile(units[drawn].mean(axis=1), edges)
        return cls(mean, float(low), float(high))

    def at_least(self, bound: float) -> Verdict:
        """Whether the mean is at least ``bound``, as minus a margin for "at least as good".

        It holds if the lower end is above ``bound``, and is refuted if the upper end is below.
        """
        if self.low > bound:
            return "holds"
        return "refuted" if self.high < bound else "not decided"

    def above(self, bound: float, stated: float | None = None) -> Verdict:
        """Whether the mean is above ``bound``, as 0 for "better".

        It holds if the lower end is above ``bound`` and the mean above ``stated``: the difference
        is sure, and large enough. It is refuted if the upper end is at most ``stated``, so a
        method that equals another in all seeds is not better.

        Args:
            bound: what the mean has to exceed for sure.
            stated: what it has to exceed by itself; at least ``bound``, which is the default.
        """
        stated = bound if stated is None else stated
        if self.low > bound and self.mean > stated:
            return "holds"
        return "refuted" if self.high <= stated else "not decided"

    def below(self, bound: float, stated: float | None = None) -> Verdict:
        """Whether the mean is below ``bound``: :meth:`above`, upside down.

        It holds if the upper end is below ``bound`` and the mean below ``stated``, and is refuted
        if the lower end is at least ``stated``, which is at most ``bound``.
        """
        return Interval(-self.mean, -self.high, -self.low).above(
            -bound, None if stated is None else -stated
        )

    def within(self, low: float, high: float) -> Verdict:
        """Whether the mean lies between two bounds.

        It holds if all of the interval does, and is refuted if none of it does.
        """
        return every([self.at_least(low), self.below(high)])

    def text(self, digits: int, sign: str = "") -> str:
        """``1.07 [0.95, 1.20]``; the mean alone if there is no interval."""
        if math.isnan(self.mean):
            return "undefined"
        mean = f"{self.mean:{sign}.{digits}f}"
        if math.isnan(self.low):
            return mean
        return f"{mean} [{self.low:{sign}.{digits}f}, {self.high:{sign}.{digits}f}]"


def _log(value: float) -> float:
    return math.log(max(value, _LEAST))


def _exp(value: float) -> float:
    return math.inf if value > 700.0 else math.exp(value)


def every(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on a claim "for all" settings from those on each.

    It is refuted if one is, and holds if all do. It is not testable if no setting can be tested,
    and else not decided.
    """
    found = set(verdicts)
    if "refuted" in found:
        return "refuted"
    if len(found) == 1:
        return found.pop()
    return "not decided" if found else "not testable"


def several(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on a claim about "several" settings, at least two of those given.

    It is refuted if it cannot hold in two, and not testable if fewer than two can be tested.
    """
    counts = Counter(verdicts)
    possible = counts["holds"] + counts["not decided"]
    if possible + counts["refuted"] < 2:
        return "not testable"
    if counts["holds"] >= 2:
        return "holds"
    return "refuted" if possible < 2 else "not decided"


def opposite(verdict: Verdict) -> Verdict:
    """The verdict on the negation of a claim."""
    swapped: dict[Verdict, Verdict] = {"holds": "refuted", "refuted": "holds"}
    return swapped.get(verdict, verdict)


def of_all(seeds: Sequence[bool]) -> Verdict:
    """Whether something is true of all seeds: refuted if it is of none, decided by two or more."""
    if len(seeds) < 2 or len(set(seeds)) > 1:
        return "not decided"
    return "holds" if seeds[0] else "refuted"


def counted(verdicts: Iterable[Verdict]) -> str:
    """Counts in words: ``holds 3, not decided 1``."""
    counts = Counter(verdicts)
    return ", ".join(f"{name} {counts[name]}" for name in VERDICTS if counts[name])
