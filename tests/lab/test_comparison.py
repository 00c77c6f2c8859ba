"""Intervals, margins and verdicts, against naive computation and scipy's tests."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hyperlight.lab.comparison import (
    MARGINS,
    VERDICTS,
    Interval,
    Verdict,
    counted,
    every,
    of_all,
    opposite,
    several,
)
from hyperlight.lab.tasks import KINDS

# 97.5 % quantiles of Student's t and of F, from printed tables.
T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
F = {2: 647.79, 3: 39.00, 4: 15.44, 5: 9.60}

numbers = st.floats(-1e4, 1e4)
positive = st.floats(1e-3, 1e3)
seeds = st.integers(2, 8)
verdicts = st.sampled_from(VERDICTS)


def _pairs(values: st.SearchStrategy[float]) -> st.SearchStrategy[list[tuple[float, float]]]:
    return st.lists(st.tuples(values, values), min_size=2, max_size=8)


def test_the_margins_are_fixed() -> None:
    assert MARGINS == {"accuracy": 1.0, "dice": 0.01}
    for name in ("bayes", "hypermorph"):
        assert KINDS[name].task.metric.name in MARGINS


def test_verdicts_have_four_values() -> None:
    assert VERDICTS == get_args(Verdict) == ("holds", "refuted", "not decided", "not testable")


# --- intervals --------------------------------------------------------------------------


@given(_pairs(numbers))
def test_a_difference_is_the_t_interval_of_the_paired_differences(
    pairs: list[tuple[float, float]],
) -> None:
    found = Interval.difference([a for a, _ in pairs], [b for _, b in pairs])
    differences = [a - b for a, b in pairs]
    n = len(pairs)
    mean = sum(differences) / n
    std = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1))
    half = T[n] * std / math.sqrt(n)
    room = 1e-3 * half + 1e-6  # the printed quantiles have four digits
    assert found.mean == pytest.approx(mean, abs=1e-6)
    assert found.low == pytest.approx(mean - half, abs=room)
    assert found.high == pytest.approx(mean + half, abs=room)


@given(st.lists(st.tuples(st.integers(-99, 99), st.integers(-99, 99)), min_size=2, max_size=8))
def test_a_difference_is_decided_as_by_the_paired_t_test(pairs: list[tuple[int, int]]) -> None:
    one, other = ([float(pair[i]) for pair in pairs] for i in (0, 1))
    if len({a - b for a, b in pairs}) == 1:
        return  # scipy has no test for equal differences
    p = float(stats.ttest_rel(one, other).pvalue)
    if abs(p - 0.05) < 1e-9:
        return
    found = Interval.difference(one, other)
    sure = found.low > 0.0 or found.high < 0.0
    assert sure == (p < 0.05)


@given(_pairs(positive))
def test_a_ratio_is_the_geometric_mean_of_paired_ratios(pairs: list[tuple[float, float]]) -> None:
    found = Interval.ratio([a for a, _ in pairs], [b for _, b in pairs])
    logs = [math.log(a / b) for a, b in pairs]
    half = T[len(logs)] * statistics.stdev(logs) / math.sqrt(len(logs))
    assert math.log(found.mean) == pytest.approx(statistics.fmean(logs), abs=1e-9)
    for end, sign in ((found.low, -1.0), (found.high, 1.0)):
        expected = statistics.fmean(logs) + sign * half
        if abs(expected) < 600.0:
            assert end > 0.0
            if end > 1e-300:
                assert math.log(end) == pytest.approx(expected, abs=1e-3 * half + 1e-9)
    mirrored = Interval.ratio([b for _, b in pairs], [a for a, _ in pairs])
    assert mirrored.mean == pytest.approx(1.0 / found.mean, rel=1e-9)


@pytest.mark.parametrize("count", F)
def test_a_ratio_of_spreads_has_the_interval_of_f(count: int) -> None:
    found = Interval.spreads(3.0, 2.0, count)
    assert found.mean == 1.5
    assert found.low == pytest.approx(1.5 / math.sqrt(F[count]), rel=1e-3)
    assert found.high == pytest.approx(1.5 * math.sqrt(F[count]), rel=1e-3)


def test_a_ratio_of_spreads_may_have_zeros() -> None:
    assert Interval.spreads(0.0, 0.0, 3).mean == 1.0
    assert Interval.spreads(1.0, 0.0, 3).low > 1e9
    assert math.isnan(Interval.spreads(math.nan, 1.0, 3).low)


MAKERS: list[Callable[[list[float]], Interval]] = [
    Interval.of,
    lambda values: Interval.difference(values, [0.0] * len(values)),
    lambda values: Interval.ratio(values, [1.0] * len(values)),
]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("values", [[3.0], [math.nan, 1.0], [math.inf, 1.0], [math.nan]])
def test_one_seed_or_a_diverged_run_has_no_interval(
    make: Callable[[list[float]], Interval], values: list[float]
) -> None:
    found = make(values)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    for verdict in (found.at_least(-1e9), found.above(-1e9), found.below(1e9)):
        assert verdict == "not decided"


def test_nothing_is_undefined() -> None:
    assert Interval.of([]).text(2) == "undefined"
    assert Interval.of([math.nan, 1.0]).text(2) == "undefined"
    assert math.isnan(Interval.of([math.inf, -math.inf]).mean)


def test_an_interval_in_words() -> None:
    assert Interval(1.068, 0.949, 1.2).text(2) == "1.07 [0.95, 1.20]"
    assert Interval(1.8, -0.2, 3.7).text(1, "+") == "+1.8 [-0.2, +3.7]"
    assert Interval.of([2.0]).text(1) == "2.0"


def test_unequal_numbers_of_seeds_are_refused() -> None:
    for make in (Interval.difference, Interval.ratio):
        with pytest.raises(ValueError, match="shorter"):
            make([1.0, 2.0], [1.0])


# --- bootstrap --------------------------------------------------------------------------


def test_a_bootstrap_has_the_interval_of_the_mean_over_units() -> None:
    draw = np.random.default_rng(0)
    units = draw.normal(size=(3, 400))
    found = Interval.bootstrap(units.tolist())
    means = units.mean(axis=0)
    half = 1.96 * means.std() / math.sqrt(means.size)
    assert found.mean == pytest.approx(means.mean())
    assert found.low == pytest.approx(means.mean() - half, abs=0.05 * half)
    assert found.high == pytest.approx(means.mean() + half, abs=0.05 * half)
    assert Interval.bootstrap(units.tolist()) == found  # the draws are fixed
    assert Interval.bootstrap(units.tolist(), seed=1) != found


def test_a_bootstrap_keeps_the_seeds() -> None:
    """The mean over seeds is the same for every unit, so units make no difference."""
    found = Interval.bootstrap([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]], draws=50)
    assert found == Interval(1.0, 1.0, 1.0)


@given(st.lists(numbers, min_size=2, max_size=4))
def test_a_bootstrap_of_few_units_is_that_over_all_draws(units: list[float]) -> None:
    every_draw = [statistics.fmean(each) for each in itertools.product(units, repeat=len(units))]
    found = Interval.bootstrap([units], draws=500)
    assert min(every_draw) - 1e-6 <= found.low <= found.high <= max(every_draw) + 1e-6
    assert found.low <= np.quantile(every_draw, 0.25) + 1e-6
    assert found.high >= np.quantile(every_draw, 0.75) - 1e-6


def test_a_bootstrap_of_one_unit_has_no_interval() -> None:
    for values in ([[1.0], [3.0]], [[2.0, math.nan]]):
        assert math.isnan(Interval.bootstrap(values).low)


@pytest.mark.parametrize("values", [[], [[]], [[1.0, 2.0], [1.0]]])
def test_a_bootstrap_needs_as_many_units_for_every_seed(values: Sequence[Sequence[float]]) -> None:
    lengths = [len(row) for row in values]
    with pytest.raises(ValueError, match="as many values in each") as raised:
        Interval.bootstrap(values)
    assert f"rows of {lengths} values" in str(raised.value)


# --- verdicts of intervals --------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.0, -0.9, 0.9), "holds"),
        ((0.0, -1.1, 1.1), "not decided"),
        ((0.0, -1.0, 1.0), "not decided"),
        ((-2.0, -2.9, -1.1), "refuted"),
        ((-2.0, -3.1, -0.9), "not decided"),
        ((-0.5, -0.6, -0.4), "holds"),  # surely lower, by less than matters
    ],
)
def test_at_least_as_good_up_to_a_margin_of_one(
    interval: tuple[float, float, float], verdict: str
) -> None:
    assert Interval(*interval).at_least(-1.0) == verdict


@pytest.mark.parametrize(
    ("interval", "plain", "stated"),
    [
        ((3.0, 1.0, 5.0), "holds", "holds"),
        ((1.5, 1.0, 1.9), "holds", "refuted"),  # surely better, and surely by less than 2
        ((1.5, 0.1, 2.9), "holds", "not decided"),
        ((3.0, -1.0, 7.0), "not decided", "not decided"),
        ((0.0, -1.0, 1.0), "not decided", "refuted"),
        ((-1.0, -2.0, -0.1), "refuted", "refuted"),
        ((0.0, 0.0, 0.0), "refuted", "refuted"),  # equal in all seeds
    ],
)
def test_better_and_better_by_what_is_stated(
    interval: tuple[float, float, float], plain: str, stated: str
) -> None:
    found = Interval(*interval)
    assert found.above(0.0) == plain
    assert found.above(0.0, 2.0) == stated


@given(numbers, positive, positive, numbers, st.floats(0.0, 1e3))
def test_below_is_above_upside_down(
    mean: float, down: float, up: float, bound: float, more: float
) -> None:
    found, mirrored = (
        Interval(mean, mean - down, mean + up),
        Interval(-mean, -mean - up, down - mean),
    )
    assert found.below(bound) == mirrored.above(-bound)
    assert found.below(bound, bound - more) == mirrored.above(-bound, more - bound)
    naive = "refuted" if mean - down >= bound - more else "not decided"
    if mean + up < bound and mean < bound - more:
        naive = "holds"
    assert found.below(bound, bound - more) == naive


@given(numbers, positive, positive, numbers)
def test_a_claim_and_its_negation_do_not_both_hold(
    mean: float, down: float, up: float, bound: float
) -> None:
    found = Interval(mean, mean - down, mean + up)
    assert {found.above(bound), found.below(bound)} != {"holds"}
    if found.above(bound) == "holds":
        assert found.below(bound) == "refuted"
        assert found.at_least(bound) == "holds"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.6, 1.9, "holds"),
        (0.4, 1.9, "not decided"),
        (0.6, 2.1, "not decided"),
        (0.1, 0.4, "refuted"),
        (2.1, 3.0, "refuted"),
        (math.nan, math.nan, "not decided"),
    ],
)
def test_within_two_bounds(low: float, high: float, verdict: str) -> None:
    assert Interval((low + high) / 2.0, low, high).within(0.5, 2.0) == verdict


# --- verdicts on many settings ----------------------------------------------------------


@given(st.lists(verdicts, max_size=5))
def test_for_all(found: list[Verdict]) -> None:
    verdict = every(found)
    assert (verdict == "refuted") == ("refuted" in found)
    assert (verdict == "holds") == (bool(found) and all(each == "holds" for each in found))
    assert (verdict == "not testable") == all(each == "not testable" for each in found)
    assert every(reversed(found)) == verdict


@given(st.lists(verdicts, max_size=5))
def test_several_are_two(found: list[Verdict]) -> None:
    holds, undecided = found.count("holds"), found.count("not decided")
    verdict = several(found)
    assert (verdict == "holds") == (holds >= 2)
    assert (verdict == "not testable") == (len(found) - found.count("not testable") < 2)
    assert verdict != "refuted" or holds + undecided < 2
    assert verdict != "not decided" or holds + undecided >= 2


def test_the_opposite() -> None:
    assert [opposite(each) for each in VERDICTS] == [
        *("refuted", "holds", "not decided", "not testable")
    ]


@pytest.mark.parametrize(
    ("seeds", "verdict"),
    [
        ([True, True], "holds"),
        ([False, False, False], "refuted"),
        ([True, False], "not decided"),
        ([True], "not decided"),
        ([], "not decided"),
    ],
)
def test_something_is_true_of_all_seeds(seeds: list[bool], verdict: str) -> None:
    assert of_all(seeds) == verdict


def test_verdicts_are_counted() -> None:
    assert counted(["not decided", "holds", "holds"]) == "holds 2, not decided 1"
    assert counted([]) == ""
