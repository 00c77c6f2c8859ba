"""The study of longer training: which runs it shares, and what it compares at which step."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hyperlight.lab.engine import Spec
from hyperlight.lab.studies import Results, Setup, registration
from hyperlight.lab.studies import registration_steps as study
from hyperlight.lab.studies.registration import CHANNEL, FILM, OURS, SHARED
from hyperlight.lab.tasks.base import Metric, Outcome
from tests.lab.making import make_run

DICE = Metric("dice", digits=3)
STEPS = (1500, 5000, 20_000)


def _title(spec: Spec) -> str:
    if spec.formulation == "plain":
        return study.PLAIN
    rates = spec.training.rates
    return {
        ("mip", "groups"): OURS.title,
        ("film", "same"): FILM.title,
        ("channel", "same"): CHANNEL.title,
        ("shared", "same"): SHARED.title,
    }[spec.formulation, rates]


def _results(objective: Callable[[str, int], float]) -> Results:
    specs = study.specs(Setup("cpu"))
    runs = {}
    for spec in specs:
        own = objective(_title(spec), spec.training.steps) * (1.0 + 0.01 * spec.seed)
        if spec.formulation == "plain":
            outcome = Outcome({"loss": own})
        else:
            # Off the gammas of the plain networks it is ten times as large.
            rows = [(i / 10, own * (1.0 if i in (1, 5, 9) else 10.0)) for i in range(11)]
            table = ("Test pairs against gamma", ("gamma", "objective"), rows)
            outcome = Outcome({"dice there, test, of 11": 0.74}, tables=[table])
        runs[spec.key] = make_run(spec.formulation, spec.seed, metric=DICE, outcome=outcome)
    return Results(specs, runs)


def test_its_shortest_runs_are_those_of_the_study_registration() -> None:
    own = study.specs(Setup("cpu"))
    shared = {spec.key for spec in registration.specs(Setup("cpu"))}
    assert {spec.training.steps for spec in own} == set(STEPS)
    assert {spec.training.steps for spec in own if spec.key in shared} == {1500}
    assert {spec.training.steps for spec in own if spec.key not in shared} == {5000, 20_000}
    for steps in STEPS:  # four methods and three plain networks, with five seeds
        assert sum(spec.training.steps == steps for spec in own) == 5 * (4 + 3)


@pytest.mark.parametrize(("ours", "verdict"), [(0.9, "holds"), (1.1, "refuted")])
def test_the_last_number_of_steps_decides(ours: float, verdict: str) -> None:
    results = _results(
        lambda title, steps: (2.0 if steps < 20_000 else ours) if title == OURS.title else 1.0
    )
    claims = study.claims(results)
    assert [claim.verdict for claim in claims] == [verdict] * 4
    assert "times as large after 20000 steps, 2.00 [2.00, 2.00] times after 1500" in (
        claims[0].measured
    )


def test_methods_are_compared_at_the_gammas_of_the_plain_networks() -> None:
    (table,) = study.tables(_results(lambda title, steps: 1e-3 * steps))
    assert table.heading[2] == "objective at 0.1, 0.5, 0.9"
    rows = {(row[0], row[1]): row[2:] for row in table.rows}
    assert len(rows) == len(table.rows) == 3 * 5
    assert rows[FILM.title, 5000][0].startswith("5.100")
    assert float(rows[FILM.title, 5000][1].split()[0]) > 30.0
    assert rows[study.PLAIN, 5000][0].startswith("5.100")
    assert rows[study.PLAIN, 5000][1:] == ["", ""]
