"""The studies of knobs: rates, pairing, verdicts and tables on runs with given figures."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch

import hyperlight as hl
from hyperlight.lab.comparison import MARGINS
from hyperlight.lab.studies import STUDIES, Results, Setup, knobs
from hyperlight.lab.studies.knobs import ALONE, FILM, OURS, Contest, Contests, Measured
from hyperlight.lab.studies.price import Price
from hyperlight.lab.tasks.base import Outcome
from hyperlight.widths import directions_for
from tests.lab.making import make_run

SETUP = Setup("cpu", seeds=3)
STUDIED: dict[str, Contests] = {
    "trade-off": knobs._trade_off,
    "decision-cost": knobs._decision_cost,
    "adapters": knobs._adapters,
    "implicit": knobs._implicit,
    "equations": knobs._equations,
}
# Errors of seeds 0 to 2 are so many times as large as that of the method.
SEEDS = (0.98, 1.0, 1.02)
every_study = pytest.mark.parametrize("name", STUDIED)


def _results(
    name: str,
    errors: Mapping[str, float],
    *,
    step: Mapping[str, float] | None = None,
    first_is_better: bool = False,
) -> Results:
    """Results with an error for every method, ``NAME/STEPS`` for those of other lengths.

    At the other rate the test error is a tenth, which must not be seen.
    """
    found = STUDIED[name](SETUP)
    specs, runs, prices = [], {}, {}
    for contest in found:
        for method in (*contest.tried, ALONE):
            for steps in contest.lengths(method):
                usual = errors.get(method.name, 1.0)
                error = errors.get(f"{method.name}/{steps}", usual)
                for rate in contest.tries(method):
                    best = rate == contest.tries(method)[0 if first_is_better else -1]
                    for seed in range(3):
                        spec = contest.spec(method, steps, rate, seed)
                        own = error * SEEDS[seed] * (1.0 if best else 0.1)
                        figures = {"validation error": 1.0 if best else 2.0, "test error": own}
                        heading = ("gamma", *(name for name, _ in contest.front), contest.column)
                        rows = [(g, 1.0, 2.0, own) for g in (0.5, 1.5)]
                        outcome = Outcome(
                            {**figures, "weights held": 1000.0}, [("Along", heading, rows)]
                        )
                        specs.append(spec)
                        runs[spec.key] = make_run(spec.formulation, seed, outcome=outcome)
            seconds = (step or {}).get(method.name, 0.01)
            prices[contest.title, method.title] = Price(1000, 4000, seconds)
        del prices[contest.title, ALONE.title]
    return Results(specs, runs, Measured(found, prices))


def _verdict(words: str, results: Results) -> str:
    found = {claim.text: claim.verdict for claim in knobs.claims(results)}
    verdicts = {verdict for text, verdict in found.items() if words in text}
    assert len(verdicts) == 1, (words, found)
    return verdicts.pop()


@every_study
def test_all_runs_are_of_one_method(name: str) -> None:
    results = _results(name, {})
    specs = knobs.specs(STUDIED[name], SETUP)
    assert {spec.key for spec in specs} == {run.key for run in _specs(name)}
    measured: Measured = results.measured
    used = [
        id(knobs._best(results, contest, method, steps))
        for contest in measured.contests
        for method in (*contest.tried, ALONE)
        for steps in contest.lengths(method)
    ]
    assert len(set(used)) == len(used)


def _specs(name: str) -> list[knobs.Spec]:
    return STUDIES[name].specs(SETUP)


@every_study
def test_what_is_compared_is_alike(name: str) -> None:
    for contest in STUDIED[name](SETUP):
        assert contest.tried[0].name == OURS.name
        counts = {len(contest.tries(method)) for method in (*contest.tried, ALONE)}
        assert len(counts) == 1
        batch = contest.start.training.batch_size
        for method in (*contest.tried, ALONE):
            spec = contest.spec(method, contest.steps, 1e-3)
            spec.config.check()
            single = method is ALONE
            assert spec.training.batch_size == batch * (contest.count if single else 1)
            assert spec.training.batch_size % spec.config.gammas == 0
            assert not single or spec.config.gammas == contest.count
            assert spec.training.schedule == "cosine"
            assert (spec.training.rates == "groups") == (method.name == OURS.name)
        long, short = contest.lengths(ALONE)
        assert long == contest.steps
        assert short * contest.count <= long < (short + 1) * contest.count


def test_the_directions_are_the_defaults() -> None:
    spaces: dict[str, hl.Input] = {
        "trade-off": hl.LogUniform(0.01, 10.0),
        "decision-cost": hl.LogUniform(1 / 32, 32.0),
        "adapters": hl.Categorical(8),
        "implicit": hl.Encoded(torch.nn.Flatten(), features=32),
        "equations": hl.LogUniform(1.0, 20.0),
    }
    for name, space in spaces.items():
        for contest in STUDIED[name](SETUP):
            ours = contest.tried[0].settings
            assert ours["directions"] == directions_for([space])
            film = [m for m in contest.tried if m.name == FILM.name]
            assert [m.settings["directions"] for m in film] == [ours["directions"]]


@pytest.mark.parametrize(
    ("ours", "smaller", "level"),
    [(0.8, "holds", "holds"), (1.01, "refuted", "holds"), (1.2, "refuted", "refuted")],
)
def test_ours_is_judged_against_every_other_way(ours: float, smaller: str, level: str) -> None:
    results = _results("equations", {"ours": ours})
    for other in ("gamma beside the input", "gamma beside the input, wider", "one plain network"):
        words = f"ours has a smaller relative error than {other}, after"
        assert _verdict(words, results) == smaller
    for other in ("by hand", "FiLM", "a network per gamma, 500 steps each"):
        assert _verdict(f"at most 1.1 times that of {other}, after", results) == level
    assert _verdict("100 steps each, which together train for as many", results) == smaller


@pytest.mark.parametrize(
    ("plain", "verdict"), [(0.9, "refuted"), (1.0, "refuted"), (1.04, "holds")]
)
def test_a_plain_network_may_decide_as_well(plain: float, verdict: str) -> None:
    """Ours has to be better than what needs no training for costs."""
    results = _results("decision-cost", {"expected-cost": plain})
    measured: Measured = results.measured
    for contest in measured.contests:
        text = "ours has a smaller cost than one plain network, least expected cost, after"
        found = [claim for claim in knobs.claims(results) if text in claim.text]
        assert [claim.verdict for claim in found if contest.title in claim.text] == [verdict]
        rows = {row.method.name: row for row in knobs.rows(results, contest)}
        specs = (rows[name].group.spec for name in ("shared", "expected-cost"))
        assert [spec.config.problem for spec in specs] == ["cost", "expected-cost"]


@pytest.mark.parametrize(
    ("more", "verdict"), [(-2.0, "holds"), (0.5, "holds"), (3.0, "refuted"), (0.95, "not decided")]
)
def test_wrong_answers_are_compared_in_points(more: float, verdict: str) -> None:
    results = _results("adapters", {"ours": 10.0 + more, "film": 10.0})
    if verdict == "not decided":
        for group in results:
            for run in group.runs:
                assert run.outcome is not None
                if group.spec.formulation == "mip":
                    run.outcome.figures["test error"] += run.seed - 1
    assert MARGINS["accuracy"] == 1.0
    assert _verdict("at most 1 points above that of FiLM", results) == verdict


def test_a_dear_step_must_pay_in_time() -> None:
    """Ours is better after as many steps, and worse in as much time."""
    errors = {"ours": 0.5, "ours/250": 2.0, "ours/125": 4.0, "channel": 1.0}
    same = _results("trade-off", errors)
    text = "ours has a smaller objective than gamma beside the input"
    assert _verdict(text, same) == "holds"
    dear = _results("trade-off", errors, step={"ours": 0.02})
    assert _verdict(text, dear) == "refuted"
    (claim,) = [c for c in knobs.claims(dear) if text in c.text]
    assert "0.50 [0.50, 0.50] times as large, in as much time 2.00 [2.00, 2.00]" in claim.measured
    cheap = _results("trade-off", errors, step={"ours": 0.001})
    assert _verdict(text, cheap) == "holds"  # no more steps than were trained


def test_rates_are_chosen_on_validation_data() -> None:
    for first in (False, True):
        results = _results("implicit", {"ours": 0.5}, first_is_better=first)
        (contest,) = results.measured.contests
        ours, *others = knobs.rows(results, contest)
        assert ours.errors == pytest.approx([0.49, 0.5, 0.51])
        assert all(row.errors == pytest.approx(list(SEEDS)) for row in others)
        rate = contest.tries(contest.tried[0])[0 if first else -1]
        assert ours.group.spec.training.lr == rate
        # Beyond the last rate there may be a better one, which the table says.
        end = "smallest" if first else "largest"
        table = knobs.tables(results)[0]
        assert table.rows[0][2] == f"{rate:g}, the {end} tried"
        film = next(row for row in table.rows if row[1] == "FiLM")
        assert film[2].endswith(f", the {end} tried")


@every_study
def test_hypernetworks_with_one_rate_try_lower_ones_and_as_many(name: str) -> None:
    for contest in STUDIED[name](SETUP):
        tried = {method.name: contest.tries(method) for method in (*contest.tried, ALONE)}
        low = {n: rates for n, rates in tried.items() if n in ("hand", "classical", "mip")}
        assert low
        assert all(max(rates) < max(contest.rates) for rates in low.values())
        assert all(tried[n] == contest.rates for n in tried if n not in low)
        assert len({len(rates) for rates in tried.values()}) == 1


def test_a_rate_in_the_middle_is_printed_alone() -> None:
    results = _results("implicit", {"ours": 0.5})
    (contest,) = results.measured.contests
    for group in results:
        if group.spec.training.lr == contest.rates[1]:
            for run in group.runs:
                assert run.outcome is not None
                run.outcome.figures["validation error"] = 0.5
    assert {row[2] for row in knobs.tables(results)[0].rows} == {f"{contest.rates[1]:g}"}


def test_a_run_that_diverged_is_not_chosen_and_decides_nothing() -> None:
    results = _results("implicit", {"ours": 0.5})
    (contest,) = results.measured.contests
    for group in results:
        if group.spec.formulation == "film":
            outcome = group.runs[0].outcome
            assert outcome is not None
            outcome.figures["test error"] = math.nan
            if group.spec.training.lr == contest.rates[-1]:
                outcome.figures["validation error"] = math.nan
    (film,) = [row for row in knobs.rows(results, contest) if row.method.name == "film"]
    assert film.group.spec.training.lr != contest.rates[-1]
    assert _verdict("that of FiLM", results) == "not decided"


@every_study
def test_tables_and_figures_have_all_methods(name: str) -> None:
    results = _results(name, {})
    measured: Measured = results.measured
    table, by_gamma = knobs.tables(results)
    titles = [
        (contest.title, contest.name(method, steps))
        for contest in measured.contests
        for method in (*contest.tried, ALONE)
        for steps in contest.lengths(method)[: 2 if method is ALONE else 1]
    ]
    assert [tuple(row[:2]) for row in table.rows] == titles
    assert all(len(row) == len(table.heading) for row in table.rows)
    assert len(by_gamma.rows) == 2 * len(titles)
    figure = knobs.draw(results)
    contest: Contest = measured.contests[0]
    if contest.views == ("dots",):
        shown = [text.get_text() for text in figure.axes[0].get_yticklabels()]
        assert shown == [title for _, title in reversed(titles)]
    else:
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert labels == [title for found, title in titles if found == contest.title]
