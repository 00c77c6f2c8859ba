"""Runs in numbers: spreads, steps to a target, what a table shows, and the paper's claims."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlight.lab.summary import TITLES, Spread, Summary, claims, shown_steps, summarize
from hyperlight.lab.tasks.bayes import SWITCHES
from tests.lab.making import FLAT, RISING, diverged, make_run

figures = st.floats(-1e6, 1e6)


@pytest.fixture
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _one(*runs: object, target: float = 90.0) -> Summary:
    (summary,) = summarize(runs, target)  # type: ignore[arg-type]
    return summary


# --- Spread ---------------------------------------------------------------------


def test_a_spread_of_one_value_is_the_value() -> None:
    spread = Spread.of([97.25])
    assert spread.mean == 97.25
    assert math.isnan(spread.std)
    assert spread.text(1) == "97.2"
    assert spread.text(2) == "97.25"


def test_a_spread_of_several_values() -> None:
    assert Spread.of([1.0, 2.0, 3.0]) == Spread(2.0, 1.0)
    assert Spread.of([1.0, 2.0, 3.0]).text(1) == "2.0 ± 1.0"
    assert Spread.of([5, 8]).text(0) == "6 ± 2"
    assert Spread.of([4.0, 4.0]).text(1) == "4.0 ± 0.0"


@given(st.lists(figures, min_size=2, max_size=9))
def test_a_spread_is_the_mean_and_the_sample_standard_deviation(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread.mean == pytest.approx(statistics.fmean(values), rel=1e-9, abs=1e-6)
    assert spread.std == pytest.approx(statistics.stdev(values), rel=1e-6, abs=1e-6)


@pytest.mark.usefixtures("_no_warnings")
@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([math.nan], "nan"),
        ([math.nan, 1.0], "nan"),
        ([math.nan, math.nan], "nan"),
        ([math.inf], "inf"),
        ([math.inf, 1.0], "inf"),
        ([math.inf, math.inf], "inf"),
        ([math.inf, -math.inf], "nan"),
        ([math.inf, math.nan], "nan"),
    ],
)
def test_a_spread_of_what_is_not_finite(values: list[float], text: str) -> None:
    assert Spread.of(values).text(1) == text


# --- summarize ------------------------------------------------------------------


def test_every_formulation_has_a_title() -> None:
    assert set(TITLES) == set(SWITCHES)
    assert _one(make_run("encoding")).title == TITLES["encoding"]
    assert len(set(TITLES.values())) == len(TITLES)


def test_summaries_are_in_the_order_of_the_first_runs() -> None:
    runs = [
        make_run("mip", 0, accuracy=(10.0, 60.0, 90.0), test_loss=(3.0, 2.0, 1.0)),
        make_run("classical", 0, accuracy=(11.0, 12.0, 13.0)),
        make_run("mip", 1, accuracy=(20.0, 70.0, 96.0), test_loss=(4.0, 2.0, 0.0)),
        make_run("classical", 1, accuracy=(13.0, 12.0, 11.0)),
    ]
    mip, classical = summarize(runs, 90.0)
    assert [mip.formulation, classical.formulation] == ["mip", "classical"]
    assert mip.seeds == classical.seeds == 2
    assert mip.steps == [0, 5, 10]
    assert [row.mean for row in mip.accuracy] == [15.0, 65.0, 93.0]
    assert [row.mean for row in mip.test_loss] == [3.5, 2.0, 0.5]
    assert mip.accuracy[2].std == pytest.approx(math.sqrt(18.0))
    assert [row.mean for row in classical.accuracy] == [12.0, 12.0, 12.0]
    assert math.isnan(mip.train_loss[0].mean)
    assert mip.train_loss[1].mean == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 5)


def test_seconds_per_step_are_medians_of_the_stretches() -> None:
    runs = [
        make_run("mip", 0, seconds=(9.0, 0.1, 0.2)),
        make_run("mip", 1, seconds=(7.0, 0.4, 0.3)),
    ]
    assert _one(*runs).seconds_per_step.mean == pytest.approx(0.3)


def test_variations_are_means_over_seeds() -> None:
    flat, rising = make_run("mip").initial, make_run("mip", initial=RISING).initial
    assert flat.variation == 0.0
    assert rising.variation > 0.5
    summary = _one(make_run("mip", 0, initial=RISING), make_run("mip", 1, final=RISING))
    assert summary.initial_variation == pytest.approx(rising.variation / 2)
    assert summary.final_variation == pytest.approx(rising.variation / 2)


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        ([3.0, 1.0] * 5, 0.5),
        ([3.0, 1.0] * 2, 0.5),  # fewer steps than a stretch has
        ([5.0], 0.0),
        ([2.0] * 10, 0.0),
        ([0.0] * 10, 0.0),
        ([1.0] * 10 + [100.0] * 10, 0.0),  # from one stretch to the next is no swing
        ([3.0, 1.0] * 5 + [2.0] * 10, 0.25),
        ([3.0, 1.0] * 5 + [1.0, 99.0], 0.5),  # a stretch that is not whole does not count
        ([3.0, 1.0] * 50 + [1.0, 99.0] * 50, 0.5),  # nor what comes after 100 steps
    ],
)
def test_the_swing_of_the_gradient_norm(norms: list[float], expected: float) -> None:
    run = make_run("mip", accuracy=(10.0, 20.0), every=len(norms), norms=norms)
    assert _one(run).gradient_swing == pytest.approx(expected)


# --- steps to a target ----------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracies", "target", "text"),
    [
        ([(10.0, 50.0, 95.0)], 90.0, "10"),
        ([(10.0, 50.0, 95.0)], 50.0, "5"),
        ([(10.0, 95.0, 20.0)], 90.0, "5"),
        ([(95.0, 50.0, 20.0)], 90.0, "0"),
        ([(10.0, 50.0, 95.0)], 99.0, "not within 10"),
        ([(10.0, 95.0, 95.0), (10.0, 20.0, 95.0)], 90.0, "8 ± 4"),
        ([(10.0, 95.0, 95.0), (10.0, 91.0, 95.0)], 90.0, "5 ± 0"),
        ([(10.0, 20.0, 30.0), (10.0, 20.0, 95.0)], 90.0, "1 of 2 seeds: 10"),
        (
            [(10.0, 95.0, 30.0), (10.0, 20.0, 30.0), (10.0, 20.0, 95.0)],
            90.0,
            "2 of 3 seeds: 5, 10",
        ),
        ([(10.0, 20.0, 30.0), (10.0, 20.0, 30.0)], 90.0, "not within 10"),
    ],
)
def test_steps_to_a_target_in_words(
    accuracies: list[tuple[float, ...]], target: float, text: str
) -> None:
    runs = [make_run("mip", seed, accuracy=row) for seed, row in enumerate(accuracies)]
    assert _one(*runs, target=target).steps_to_target() == text


def test_a_target_is_reached_at_the_target() -> None:
    assert make_run("mip", accuracy=(10.0, 89.999, 90.0)).first_step(90.0) == 10
    assert make_run("mip", accuracy=(10.0, 89.999, 89.999)).first_step(90.0) is None


# --- what a table shows ---------------------------------------------------------


@given(st.integers(2, 3000), st.integers(1, 50))
def test_shown_steps(evaluated: int, every: int) -> None:
    shown = shown_steps(range(0, evaluated * every, every))
    assert shown == sorted(set(shown))
    assert shown[0] >= 1
    assert shown[-1] == evaluated - 1
    assert min(evaluated - 1, 4) <= len(shown) <= 6
    gaps = [b - a for a, b in zip([0, *shown], shown, strict=False)]
    assert max(gaps) - min(gaps) <= 1


def test_step_0_is_shown_where_there_is_nothing_else() -> None:
    assert shown_steps([0]) == [0]


def test_steps_are_shown_in_even_parts_where_there_are_such() -> None:
    assert shown_steps(range(11)) == [2, 4, 6, 8, 10]
    assert shown_steps(range(13)) == [2, 4, 6, 8, 10, 12]
    assert shown_steps(range(31)) == [6, 12, 18, 24, 30]  # five rows where there is a choice
    assert shown_steps(range(9)) == [2, 4, 6, 8]
    assert shown_steps([0, 7]) == [1]


# --- claims ---------------------------------------------------------------------

CALM = [2.0] * 10
WILD = [3.0, 1.0] * 5


def test_claims_that_hold() -> None:
    runs = [
        make_run("classical", accuracy=(9.0, 9.0, 10.0), initial=RISING, final=RISING, norms=WILD),
        make_run("mip", accuracy=(9.0, 80.0, 90.0), norms=CALM),
    ]
    accuracy, scale, gradient = claims(summarize(runs, 90.0))
    assert accuracy.holds
    assert scale.holds
    assert gradient.holds
    assert accuracy.measured == "at step 10: MIP 90.0 %, classical 10.0 %"
    assert "0.0 % and 0.0 % (MIP)" in scale.measured
    share = f"{100.0 * runs[0].initial.variation:.1f} %"
    assert f"{share} before and {share} after training (classical)" in scale.measured
    assert "0.00 (MIP), 0.50 (classical)" in gradient.measured
    assert all("section" in c.source and "figure" in c.source for c in (accuracy, scale, gradient))


def test_claims_that_do_not_hold() -> None:
    runs = [
        make_run("mip", accuracy=(9.0, 9.0, 10.0), initial=RISING, final=RISING, norms=WILD),
        make_run("classical", accuracy=(9.0, 80.0, 90.0), norms=CALM),
    ]
    assert [claim.holds for claim in claims(summarize(runs, 90.0))] == [False, False, False]


def test_equal_figures_bear_no_claim_out() -> None:
    runs = [make_run("mip", initial=RISING, final=RISING), make_run("classical", final=RISING)]
    assert [claim.holds for claim in claims(summarize(runs, 90.0))] == [False, False, False]


@pytest.mark.parametrize(("initial", "final"), [(RISING, FLAT), (FLAT, RISING)])
def test_the_scale_must_follow_gamma_before_and_after(
    initial: tuple[float, ...], final: tuple[float, ...]
) -> None:
    runs = [make_run("mip"), make_run("classical", initial=initial, final=final)]
    assert not claims(summarize(runs, 90.0))[1].holds


@pytest.mark.parametrize(("swing", "holds"), [(0.7, True), (0.9, False), (1.1, False)])
def test_the_gradient_must_swing_clearly_less(swing: float, holds: bool) -> None:
    norms = [2.0 + swing, 2.0 - swing] * 5
    runs = [make_run("mip", norms=norms), make_run("classical", norms=WILD)]
    assert claims(summarize(runs, 90.0))[2].holds == holds


def test_claims_need_both_formulations() -> None:
    assert claims(summarize([make_run("mip")], 90.0)) == []
    assert claims(summarize([make_run("classical"), make_run("residual")], 90.0)) == []
    both = [make_run("residual"), make_run("mip"), make_run("classical"), make_run("encoding")]
    assert len(claims(summarize(both, 90.0))) == 3


# --- runs that diverged ---------------------------------------------------------

bad_figures = pytest.mark.parametrize("bad", [math.nan, math.inf], ids=["nan", "inf"])


@bad_figures
@pytest.mark.usefixtures("_no_warnings")
def test_a_diverged_run_is_summarized(bad: float) -> None:
    summary = _one(diverged("mip", bad=bad), make_run("mip", 1))
    assert summary.steps == [0, 5, 10]
    assert summary.accuracy[0].mean == 10.0
    assert not math.isfinite(summary.test_loss[-1].mean)
    assert not math.isfinite(summary.train_loss[-1].mean)
    assert not math.isfinite(summary.gradient_swing)


def test_a_diverged_run_has_not_reached_the_target() -> None:
    assert _one(diverged("mip")).steps_to_target() == "not within 10"
    runs = [diverged("mip"), make_run("mip", 1)]
    assert _one(*runs).steps_to_target() == "1 of 2 seeds: 10"


@bad_figures
def test_the_scale_of_a_diverged_run_is_not_called_constant(bad: float) -> None:
    assert math.isnan(_one(diverged("mip", bad=bad)).final_variation)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_claims_do_not_hold_where_mip_diverged() -> None:
    runs = [diverged("mip"), make_run("classical", initial=RISING, final=RISING)]
    assert [claim.holds for claim in claims(summarize(runs, 90.0))] == [False, False, False]


@bad_figures
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("which", ["mip", "classical", "both"])
def test_claims_about_diverged_runs_can_be_made(bad: float, which: str) -> None:
    runs = [
        diverged(name, bad=bad) if which in (name, "both") else make_run(name)
        for name in ("mip", "classical")
    ]
    made = claims(summarize(runs, 90.0))
    assert len(made) == 3
    assert all(claim.measured for claim in made)
