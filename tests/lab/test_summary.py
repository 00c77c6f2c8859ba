"""Runs in numbers: spreads, steps to a target, the rows of a table, and the paper's claims."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlight.lab.comparison import VERDICTS
from hyperlight.lab.methods import Method
from hyperlight.lab.record import Run
from hyperlight.lab.summary import (
    BEYOND,
    TITLES,
    Claim,
    Spread,
    Summary,
    claims,
    lead,
    shown,
    shown_steps,
    summarize,
)
from hyperlight.lab.tasks.base import SWITCHES, Formulation, Metric, Outcome
from tests.lab.making import ACCURACY, FLAT, RISING, diverged, make_run, plain_run

figures = st.floats(-1e6, 1e6)


@pytest.fixture
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _one(*runs: object, target: float = 90.0) -> Summary:
    (summary,) = _summaries(runs, target)  # type: ignore[arg-type]
    return summary


def _summaries(runs: Sequence[Run], target: float | None = 90.0) -> list[Summary]:
    return summarize(runs, target, ACCURACY)


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
def test_a_spread_of_values_that_are_not_finite(values: list[float], text: str) -> None:
    assert Spread.of(values).text(1) == text


# --- summarize ------------------------------------------------------------------


def test_every_formulation_has_a_title() -> None:
    assert set(TITLES) == set(get_args(Formulation))
    assert set(SWITCHES) < set(TITLES)
    assert _one(make_run("encoding")).title == TITLES["encoding"]
    assert len(set(TITLES.values())) == len(TITLES)


def test_summaries_are_in_the_order_of_the_first_runs() -> None:
    runs = [
        make_run("mip", 0, accuracy=(10.0, 60.0, 90.0), test_loss=(3.0, 2.0, 1.0)),
        make_run("classical", 0, accuracy=(11.0, 12.0, 13.0)),
        make_run("mip", 1, accuracy=(20.0, 70.0, 96.0), test_loss=(4.0, 2.0, 0.0)),
        make_run("classical", 1, accuracy=(13.0, 12.0, 11.0)),
    ]
    mip, classical = _summaries(runs)
    assert [mip.formulation, classical.formulation] == ["mip", "classical"]
    assert mip.seeds == classical.seeds == 2
    assert mip.steps == [0, 5, 10]
    assert [row.mean for row in mip.measured] == [15.0, 65.0, 93.0]
    assert [row.mean for row in mip.test["loss"]] == [3.5, 2.0, 0.5]
    assert mip.measured[2].std == pytest.approx(math.sqrt(18.0))
    assert [row.mean for row in classical.measured] == [12.0, 12.0, 12.0]
    assert math.isnan(mip.train_loss[0].mean)
    assert mip.train_loss[1].mean == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 5)


def test_seconds_per_step_are_medians_of_the_stretches() -> None:
    accuracy = (10.0, 50.0, 95.0, 95.0)
    runs = [
        make_run("mip", 0, accuracy=accuracy, seconds=(9.0, 0.1, 0.2)),
        make_run("mip", 1, accuracy=accuracy, seconds=(7.0, 0.4, 0.3)),
    ]
    assert runs[0].chunk_seconds == pytest.approx([9.0, 0.1, 0.2])
    assert _one(*runs).seconds_per_step.mean == pytest.approx(0.3)


def test_seconds_and_the_fraction_of_waiting_are_spreads_over_seeds() -> None:
    runs = [
        make_run("mip", 0, seconds=(1.0, 2.0), waiting=0.25),
        make_run("mip", 1, seconds=(3.0, 4.0), waiting=0.5),
    ]
    summary = _one(*runs)
    assert [row.mean for row in summary.seconds] == pytest.approx([0.0, 10.0, 25.0])
    assert summary.seconds[1].std == pytest.approx(math.sqrt(50.0))
    assert summary.waiting.mean == pytest.approx(0.375)
    assert summary.waiting.std == pytest.approx(math.sqrt(2 * 0.125**2))


def test_the_metric_is_that_of_the_task() -> None:
    metric = Metric("dice", digits=3)
    runs = [
        make_run("mip", seed, accuracy=values, metric=metric)
        for seed, values in enumerate([(0.3, 0.5), (0.3, 0.75)])
    ]
    (summary,) = summarize(runs, None, metric)
    assert summary.metric == metric
    assert list(summary.test) == ["loss", "dice"]
    assert summary.measured is summary.test["dice"]
    assert [row.mean for row in summary.measured] == [0.3, 0.625]
    assert runs[1].first_step(0.75) == 5
    assert runs[0].first_step(0.75) is None


def test_a_value_is_shown_with_the_digits_and_unit_of_the_metric() -> None:
    assert shown(Spread(97.25, 0.5), Metric("accuracy", "%", digits=1)) == "97.2 ± 0.5 %"
    assert shown(Spread(0.75, math.nan), Metric("dice", digits=3)) == "0.750"
    assert Metric("accuracy", "%").heading == "accuracy (%)"
    assert Metric("dice").heading == "dice"
    assert Metric("accuracy", "%").text(97.26) == "97.3 %"
    assert Metric("dice", digits=3).text(0.5) == "0.500"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0.123456], "0.1235"),
        ([1234.0, 1236.0], "1235 ± 1.4"),
        ([0.0001, 0.0001], "0.0001 ± 0"),
        ([math.nan, 1.0], "nan"),
    ],
)
def test_a_spread_in_brief(values: list[float], text: str) -> None:
    assert Spread.of(values).brief() == text


def test_outcomes_are_the_figures_that_every_seed_has() -> None:
    found = [Outcome({"dice": 0.5, "odd": 1.0}), Outcome({"dice": 0.75, "even": 1.0})]
    runs = [make_run("mip", seed, outcome=outcome) for seed, outcome in enumerate(found)]
    assert _one(*runs).outcome == {"dice": Spread.of([0.5, 0.75])}
    alone = _one(runs[0]).outcome
    assert {name: spread.mean for name, spread in alone.items()} == {"dice": 0.5, "odd": 1.0}
    assert _one(runs[0], make_run("mip", 1)).outcome == {}  # one run has no outcome
    assert _one(make_run("mip")).outcome == {}


@pytest.mark.usefixtures("_no_warnings")
def test_a_plain_network_has_no_scale_along_gamma() -> None:
    summary = _one(plain_run(0), plain_run(1))
    assert summary.title == "plain network"
    assert math.isnan(summary.initial_variation)
    assert math.isnan(summary.final_variation)
    assert summary.gradient_swing == pytest.approx(0.5)
    assert summary.measured[-1].mean == 95.0


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
        ([3.0, 1.0] * 2, 0.5),  # fewer steps than in a stretch
        ([5.0], 0.0),
        ([2.0] * 10, 0.0),
        ([0.0] * 10, 0.0),
        ([1.0] * 10 + [100.0] * 10, 0.0),  # a jump between stretches is no swing
        ([3.0, 1.0] * 5 + [2.0] * 10, 0.25),
        ([3.0, 1.0] * 5 + [1.0, 99.0], 0.5),  # an incomplete stretch does not count
        ([3.0, 1.0] * 50 + [1.0, 99.0] * 50, 0.5),  # nor do steps after the first 100
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


def test_without_a_target_none_is_reached() -> None:
    runs = [make_run("mip", seed) for seed in range(2)]
    (summary,) = _summaries(runs, None)
    assert summary.reached == [None, None]


# --- rows of a table ---------------------------------------------------------


@given(st.integers(2, 3000), st.integers(1, 50))
def test_shown_steps(evaluated: int, every: int) -> None:
    rows = shown_steps(range(0, evaluated * every, every))
    assert rows == sorted(set(rows))
    assert rows[0] >= 1
    assert rows[-1] == evaluated - 1
    assert min(evaluated - 1, 4) <= len(rows) <= 6
    gaps = [b - a for a, b in zip([0, *rows], rows, strict=False)]
    assert max(gaps) - min(gaps) <= 1


def test_step_0_is_shown_if_it_is_the_only_one() -> None:
    assert shown_steps([0]) == [0]


def test_steps_are_evenly_spaced_if_possible() -> None:
    assert shown_steps(range(11)) == [2, 4, 6, 8, 10]
    assert shown_steps(range(13)) == [2, 4, 6, 8, 10, 12]
    assert shown_steps(range(31)) == [6, 12, 18, 24, 30]  # five rows if there is a choice
    assert shown_steps(range(9)) == [2, 4, 6, 8]
    assert shown_steps([0, 7]) == [1]


# --- claims ---------------------------------------------------------------------

CALM = [2.0] * 10
WILD = [3.0, 1.0] * 5


def _two(name: str, accuracy: tuple[float, ...], **more: Any) -> list[Run]:
    """Two seeds, the second with a last figure that is higher by 2."""
    return [
        make_run(name, seed, accuracy=(*accuracy[:-1], accuracy[-1] + 2.0 * seed), **more)
        for seed in (0, 1)
    ]


def test_claims_that_hold() -> None:
    runs = [
        *_two("classical", (9.0, 9.0, 10.0), initial=RISING, final=RISING, norms=WILD),
        *_two("mip", (9.0, 80.0, 90.0), norms=CALM),
    ]
    accuracy, scale, gradient = claims(_summaries(runs))
    assert [c.verdict for c in (accuracy, scale, gradient)] == ["holds"] * 3
    assert accuracy.measured == (
        "at step 10: MIP 91.0 ± 1.4 %, classical 11.0 ± 1.4 %; difference +80.0 [+80.0, +80.0]"
    )
    assert "0.0 % and 0.0 % (MIP)" in scale.measured
    share = f"{100.0 * runs[0].initial.variation:.1f} %"
    assert f"{share} before and {share} after training (classical; " in scale.measured
    assert f"correlation {runs[0].initial.correlation:.2f} [" in scale.measured
    assert "0.00 (MIP), 0.50 (classical)" in gradient.measured
    assert all("section" in c.source and "figure" in c.source for c in (accuracy, scale, gradient))


def test_claims_that_do_not_hold() -> None:
    falling = {"initial": RISING[::-1], "final": RISING[::-1]}
    runs = [
        *_two("mip", (9.0, 9.0, 10.0), initial=RISING, final=RISING, norms=WILD),
        *_two("classical", (9.0, 80.0, 90.0), norms=CALM, **falling),
    ]
    assert [claim.verdict for claim in claims(_summaries(runs))] == ["refuted"] * 3


def test_equal_figures_support_no_claim() -> None:
    runs = [
        make_run(name, seed, initial=initial, final=RISING)
        for seed in (0, 1)
        for name, initial in (("mip", RISING), ("classical", FLAT))
    ]
    assert [claim.verdict for claim in claims(_summaries(runs))] == ["refuted"] * 3


def test_seeds_that_differ_decide_nothing() -> None:
    lasts = {"mip": (90.0, 80.0), "classical": (85.0, 82.0)}  # +5 and -2
    runs = [
        make_run(name, seed, accuracy=(10.0, last))
        for name, each in lasts.items()
        for seed, last in enumerate(each)
    ]
    lead = claims(_summaries(runs))[0]
    assert lead.verdict == "not decided"
    assert "difference +1.5 [-43.0, +46.0]" in lead.measured


def test_one_seed_decides_nothing() -> None:
    runs = [
        make_run("classical", accuracy=(9.0, 10.0), initial=RISING, final=RISING, norms=WILD[:5]),
        make_run("mip", accuracy=(9.0, 90.0), norms=CALM[:5]),
    ]
    made = claims(_summaries(runs))
    assert [claim.verdict for claim in made] == ["not decided"] * 3
    assert made[0].measured.endswith("; difference +80.0")


@pytest.mark.parametrize(("initial", "final"), [(RISING, FLAT), (FLAT, RISING)])
def test_the_scale_must_follow_gamma_before_and_after(
    initial: tuple[float, ...], final: tuple[float, ...]
) -> None:
    runs = [
        made
        for seed in (0, 1)
        for made in (
            make_run("mip", seed),
            make_run("classical", seed, initial=initial, final=final),
        )
    ]
    assert claims(_summaries(runs))[1].verdict == "not decided"  # a flat scale has no correlation
    both = [make_run("classical", seed, initial=RISING, final=RISING) for seed in (0, 1)]
    mip = [make_run("mip", seed, initial=initial, final=final) for seed in (0, 1)]
    assert claims(_summaries([*mip, *both]))[1].verdict == "refuted"


@pytest.mark.parametrize(("swing", "verdict"), [(0.7, "holds"), (0.9, "refuted"), (1.1, "refuted")])
def test_the_gradient_must_swing_clearly_less(swing: float, verdict: str) -> None:
    norms = [2.0 + swing, 2.0 - swing] * 5
    runs = [make_run("mip", seed, norms=norms) for seed in (0, 1)]
    runs += [make_run("classical", seed, norms=WILD) for seed in (0, 1)]
    assert claims(_summaries(runs))[2].verdict == verdict


def test_claims_need_both_formulations() -> None:
    assert claims(_summaries([make_run("mip")])) == []
    assert claims(_summaries([make_run("classical"), make_run("residual")])) == []
    both = [make_run("residual"), make_run("mip"), make_run("classical"), make_run("encoding")]
    assert len(claims(_summaries(both))) == 3
    assert len(claims(_summaries([*both, plain_run()]))) == 3


def test_ours_is_claimed_to_be_ahead_of_every_other() -> None:
    ours = Method("ours", "ours", "#cc79a7", "mip", {"hidden": (4,)})
    runs = []
    for seed in (0, 1):
        runs.append(plain_run(seed, accuracy=(10.0, 92.0)))
        runs.append(make_run("classical", seed, accuracy=(10.0, 40.0)))
        runs.append(dataclasses.replace(make_run("mip", seed, accuracy=(10.0, 90.0)), method=ours))
    made = claims(_summaries(runs))
    assert [(claim.text, claim.verdict) for claim in made] == [
        ("ours has a higher accuracy than plain network", "refuted"),
        ("ours has a higher accuracy than classical", "holds"),
    ]
    assert made[0].measured == (
        "at step 5: ours 90.0 ± 0.0 %, plain network 92.0 ± 0.0 %; difference -2.0 [-2.0, -2.0]"
    )
    assert {claim.source for claim in made} == {BEYOND}
    paper = [make_run("mip", seed) for seed in (0, 1)]
    assert len(claims(_summaries([*runs, *paper]))) == 6


def test_a_lead_is_over_the_seeds_that_both_have() -> None:
    ends = {"mip": (90.0, 80.0, 10.0), "classical": (85.0, 77.0)}
    runs = [
        make_run(name, seed, accuracy=(10.0, end))
        for name, each in ends.items()
        for seed, end in enumerate(each)
    ]
    assert lead(*_summaries(runs)).mean == pytest.approx(4.0)


def test_claims_name_the_metric_of_the_task() -> None:
    metric = Metric("dice", digits=3)
    runs = [
        make_run(name, seed, accuracy=(0.3, last), metric=metric)
        for name, last in (("mip", 0.75), ("classical", 0.5))
        for seed in (0, 1)
    ]
    overlap = claims(summarize(runs, None, metric))[0]
    assert overlap.text == "MIP has a higher dice sooner"
    assert overlap.measured.startswith("at step 5: MIP 0.750 ± 0.000, classical 0.500 ± 0.000; ")
    assert overlap.verdict == "holds"


# --- runs that diverged ---------------------------------------------------------

bad_figures = pytest.mark.parametrize("bad", [math.nan, math.inf], ids=["nan", "inf"])


@bad_figures
@pytest.mark.usefixtures("_no_warnings")
def test_a_diverged_run_is_summarized(bad: float) -> None:
    summary = _one(diverged("mip", bad=bad), make_run("mip", 1))
    assert summary.steps == [0, 5, 10]
    assert summary.measured[0].mean == 10.0
    assert not math.isfinite(summary.test["loss"][-1].mean)
    assert not math.isfinite(summary.train_loss[-1].mean)
    assert not math.isfinite(summary.gradient_swing)


def test_a_diverged_run_has_not_reached_the_target() -> None:
    assert _one(diverged("mip")).steps_to_target() == "not within 10"
    runs = [diverged("mip"), make_run("mip", 1)]
    assert _one(*runs).steps_to_target() == "1 of 2 seeds: 10"


@bad_figures
def test_the_scale_of_a_diverged_run_is_not_called_constant(bad: float) -> None:
    assert math.isnan(_one(diverged("mip", bad=bad)).final_variation)


def _lossy(losses: Sequence[float], norms: Sequence[float] | None = None, **more: Any) -> Run:
    """A run with one evaluation, after all of its steps."""
    every = len(losses)
    return make_run("mip", accuracy=(10.0, 20.0), every=every, losses=losses, norms=norms, **more)


@pytest.mark.parametrize(
    ("losses", "step"),
    [
        ([2.0, 1.0, 0.5], None),
        ([2.0, math.nan, math.nan], 2),
        ([math.nan, math.nan, math.nan], 1),
        ([2.0, 1.0, math.inf], 3),
        ([2.0, 1.0, -math.inf], 3),
        ([math.inf, 9e9, 8e9], 1),
        ([2.0, 1e30, 1e31], 2),
        ([2.0, 1e30, 1.0], None),  # it recovers
        ([2.0, math.nan, 1.0], None),
        ([2.0, 2000.0, 1999.0], None),  # 1,000 times the first
        ([2.0, 2001.0, 2001.0], 2),
        ([0.01, 900.0, 900.0], None),  # 1,000 at least
        ([0.01, 1001.0, 1001.0], 2),
        ([-3.0, 2900.0, -3.1], None),
        ([-3.0, 2900.0, 2900.0], None),
        ([2.0, math.nan, 1.0, math.nan], 4),
    ],
)
def test_when_a_run_diverged(losses: list[float], step: int | None) -> None:
    assert _lossy(losses).diverged == step


def test_gradients_that_are_not_finite_to_the_end_have_diverged() -> None:
    assert _lossy([2.0, 1.0, 1.0], [1.0, math.inf, math.inf]).diverged == 2
    assert _lossy([2.0, 1.0, 1.0], [1.0, math.nan, 1.0]).diverged is None
    assert _lossy([2.0, math.nan, 1.0], [1.0, 1.0, math.nan]).diverged == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, 3000.0])
def test_the_latest_test_loss_counts(bad: float) -> None:
    assert _lossy([2.0, 1.0], test_loss=(2.0, bad)).diverged == 2
    run = _lossy([2.0, 1.0], test_loss=(bad, 1.0))
    assert run.diverged is None
    run = _lossy([2.0, 1.0], test_loss=(2.0, bad))
    run.loss.append(1.0)  # a later step, which is not tested yet
    run.gradient_norm.append(1.0)
    assert run.diverged is None


def test_a_metric_that_is_not_a_number_is_no_divergence() -> None:
    assert make_run("mip", accuracy=(math.nan, math.nan)).diverged is None


def test_a_run_at_its_start_has_not_diverged() -> None:
    assert make_run("mip", accuracy=(10.0,)).diverged is None


def test_a_read_record_has_diverged_as_well(tmp_path: Path) -> None:
    run = diverged("mip")
    again = Run(Method.of("mip"), 0, ACCURACY)
    again.read(json.loads(json.dumps(run.record())))
    assert again.diverged == run.diverged == 1
    assert "diverged" not in run.record()


def test_divergence_in_words() -> None:
    assert _one(make_run("mip")).divergence() == ""
    assert _one(_lossy([2.0, math.nan])).divergence() == "diverged at step 2"
    bad = [2.0] * 6 + [math.nan] * 4
    late = make_run("mip", 1, losses=bad)
    summary = _one(diverged("mip"), make_run("mip", 2), late)
    assert summary.diverged == [1, None, 7]
    assert summary.divergence() == "2 of 3 seeds diverged at steps 1, 7"
    assert summary.divergence(5) == "1 of 3 seeds diverged at step 1"
    assert summary.divergence(0) == ""


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("which", ["mip", "classical"])
def test_claims_cannot_be_tested_if_one_diverged(which: str) -> None:
    other = "classical" if which == "mip" else "mip"
    made = claims(_summaries([diverged(which), make_run(other, initial=RISING, final=RISING)]))
    assert [claim.verdict for claim in made] == ["not testable"] * 3
    assert {claim.measured for claim in made} == {f"{TITLES[which]}: diverged at step 1"}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_claims_cannot_be_tested_if_a_seed_diverged() -> None:
    runs = [diverged("mip"), make_run("mip", 1), make_run("classical"), make_run("classical", 1)]
    made = claims(_summaries(runs))
    assert [claim.verdict for claim in made] == ["not testable"] * 3
    assert made[0].measured == "MIP: 1 of 2 seeds diverged at step 1"


def test_early_gradients_are_judged_if_a_run_diverged_later() -> None:
    steps = 120
    losses = [2.0] * 110 + [math.nan] * 10
    accuracy = (10.0, 20.0)
    how: dict[str, Any] = {"accuracy": accuracy, "every": steps}
    mip = [make_run("mip", s, norms=CALM * 12, losses=losses, **how) for s in (0, 1)]
    classical = [make_run("classical", s, norms=WILD * 12, **how) for s in (0, 1)]
    made = claims(_summaries([*mip, *classical]))
    assert [claim.verdict for claim in made] == ["not testable", "not testable", "holds"]
    assert made[0].measured == "MIP: 2 of 2 seeds diverged at steps 111, 111"


def test_a_guess_is_the_reason_of_a_refuted_claim() -> None:
    reasons = [Claim("s", "t", "m", verdict, "few steps").reason for verdict in VERDICTS]
    assert reasons == ["", "few steps", "", ""]


def test_a_claim_is_written_as_it_is_read() -> None:
    claim = Claim("s", "t", "m", "not testable", "g")
    assert Claim(**vars(claim)) == claim
    assert list(vars(claim)) == ["source", "text", "measured", "verdict", "guess"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_is_not_finite_is_shown_as_diverged(value: float) -> None:
    assert shown(Spread(value, math.nan), ACCURACY) == "diverged"


@bad_figures
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("which", ["mip", "classical", "both"])
def test_claims_about_diverged_runs_can_be_made(bad: float, which: str) -> None:
    runs = [
        diverged(name, bad=bad) if which in (name, "both") else make_run(name)
        for name in ("mip", "classical")
    ]
    made = claims(_summaries(runs))
    assert len(made) == 3
    assert all(claim.measured for claim in made)
