"""The studies of uncertainty and of SGD: pairing, rates and verdicts on runs with given figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from hyperlight.lab.engine import Spec
from hyperlight.lab.studies import Results, Setup, sgd, uncertainty
from hyperlight.lab.studies.price import Price
from hyperlight.lab.studies.uncertainty import DROPOUT, ENSEMBLE, METHODS, MIP, OURS, PLAIN
from hyperlight.lab.tasks.base import Outcome
from tests.lab.making import make_run

SETUP = Setup("cpu", seeds=3)
SPREAD = (-0.1, 0.0, 0.1)


def _method(spec: Spec) -> str:
    (name,) = [
        method.name
        for method in METHODS
        if spec.formulation == method.formulation
        and spec.training.rates == method.training.get("rates", "same")
        and all(getattr(spec.config, key) == value for key, value in method.settings.items())
    ]
    return name


def _outcome(accuracy: float, error: float, half: float, validation: float) -> Outcome:
    figures = {
        "accuracy of the average (%)": accuracy,
        "turned images, accuracy (%)": 60.0,
        "turned images, calibration error (%)": error,
        "turned images, accuracy with 50 % rejected (%)": half,
        "turned images, wrong answers by entropy, AUROC": 0.8,
        "validation accuracy": validation,
    }
    heading = ("angle", "accuracy (%)", "confidence (%)", "calibration error (%)", "entropy")
    bins = ("bin", "answers", "confidence (%)", "accuracy (%)")
    by_bin = [(0, 10, 5.0, 10.0 if error < 15 else 40.0), (14, 30, 99.0, 90.0)]
    return Outcome(
        figures,
        tables=[
            ("Turned images", heading, [(0.0, accuracy, 99.0, 1.0, 0.1), (90.0, 20.0, 70.0, 9, 1)]),
            ("Turned images by confidence", bins, by_bin),
            ("Turned images, some rejected", ("", ""), [(0, 60.0), (50, half)]),
        ],
    )


def _results(**changes: Mapping[str, float]) -> Results:
    """Results in which all methods are alike but for these changes of a method's figures."""
    specs = uncertainty.specs(SETUP)
    runs = {}
    for spec in specs:
        usual = {"accuracy": 98.0, "error": 10.0, "half": 90.0}
        values = {**usual, **changes.get(_method(spec), {})}
        values = {name: value + SPREAD[spec.seed] for name, value in values.items()}
        # At the other rate the test figures are better, which must not be seen.
        preferred = spec.training.lr == 3e-3
        if not preferred:
            values = {"accuracy": 99.9, "error": 0.1, "half": 99.9}
        outcome = _outcome(**values, validation=98.0 if preferred else 97.0)
        runs[spec.key] = make_run(spec.formulation, spec.seed, outcome=outcome)
    prices = {m.title: Price(1000 * (i + 1), 4000, 0.01 * (i + 1)) for i, m in enumerate(METHODS)}
    return Results(specs, runs, prices)


def _of(results: Results, *words: str) -> list[str]:
    return [
        claim.verdict
        for claim in uncertainty.claims(results)
        if all(word in claim.text for word in words)
    ]


def test_every_method_has_as_many_steps_and_all_seeds() -> None:
    specs = uncertainty.specs(Setup("cpu"))
    names = [_method(spec) for spec in specs]
    assert {names.count(method.name) for method in METHODS} == {10}
    assert len({(s.training.steps, s.training.batch_size, s.training.schedule) for s in specs}) == 1
    assert len({spec.config.angles for spec in specs}) == 1
    assert ENSEMBLE.settings["members"] == 4
    assert all(spec.training.batch_size % 4 == 0 for spec in specs)
    assert [spec.seed for spec in specs] == sorted(spec.seed for spec in specs)


def test_methods_that_are_alike_are_level_and_not_better() -> None:
    results = _results()
    assert set(_of(results, "as accurate as")) == {"holds"}
    assert set(_of(results, "at most 1 point above")) == {"holds"}
    assert set(_of(results, "more than 1 point below")) == {"refuted"}


@pytest.mark.parametrize(
    ("figure", "by", "words", "verdict"),
    [
        ("accuracy", 97.5, "as they are", "holds"),
        ("accuracy", 96.5, "as they are", "refuted"),
        ("half", 88.5, "half rejected", "refuted"),
        ("half", 95.0, "half rejected", "holds"),
        ("error", 8.5, "calibration error", "holds"),
        ("error", 9.5, "more than 1 point below that of one plain network", "refuted"),
        ("error", 11.5, "at most 1 point above", "refuted"),
    ],
)
def test_margins_are_a_point(figure: str, by: float, words: str, verdict: str) -> None:
    results = _results(ours={figure: by})
    assert set(_of(results, words, "(ours)")) == {verdict}


def test_a_family_is_compared_with_each_of_the_others() -> None:
    results = _results(dropout={"error": 5.0}, plain={"accuracy": 99.5})
    assert _of(results, "at most 1 point above", "that of dropout") == ["refuted"] * 2
    assert _of(results, "at most 1 point above", "that of ensemble") == ["holds"] * 2
    assert _of(results, "as they are", PLAIN.title) == ["refuted"] * 2
    assert _of(results, "as they are", DROPOUT.title) == ["holds"] * 2


def test_the_figure_and_the_tables_have_every_method() -> None:
    results = _results(mip={"error": 20.0})
    accuracy, confidence, calibration, rejection = uncertainty.draw(results).axes
    titles = [method.title for method in METHODS]
    for ax in (accuracy, confidence, rejection):
        assert [line.get_label() for line in ax.lines] == titles
    lines = {line.get_label(): line for line in calibration.lines}
    assert lines[OURS.title].get_xydata().tolist() == [[5.0, 10.0], [99.0, 90.0]]
    assert lines[MIP.title].get_xydata().tolist() == [[5.0, 40.0], [99.0, 90.0]]
    table, by_angle = uncertainty.tables(results)
    assert [row[0] for row in table.rows] == titles
    assert all(len(row) == len(table.heading) for row in table.rows)
    own = dict(zip(table.heading, table.rows[titles.index(MIP.title)], strict=True))
    assert own["rate"] == "0.003"
    assert own["calibration error, turned (%)"] == "20.0 ± 0.1"
    assert own["step, times that of a plain network"] == "4.00"
    assert [row[:2] for row in by_angle.rows[:2]] == [[PLAIN.title, "0"], [PLAIN.title, "90"]]


def test_bins_weigh_their_answers() -> None:
    """A seed with more answers in a bin counts more."""
    results = _results()
    (group, *_) = results.where(formulation="mip", **OURS.settings, lr=3e-3, rates="groups")
    for run, count in zip(group.runs, (1, 1, 2), strict=True):
        rows = [(3, count, 10.0 * count, 100.0 * (count - 1))]
        tables = [("Turned images by confidence", ("bin",), rows)]
        run.outcome = Outcome(run.outcome.figures if run.outcome else {}, tables)
    assert uncertainty._calibration(group) == [(15.0, 50.0)]


# --- SGD ----------------------------------------------------------------------------------------


def _learned(accuracy: Callable[[Spec], float]) -> Mapping[str, str]:
    specs = sgd.specs(Setup("smoke", seeds=3))
    runs = {
        spec.key: make_run(
            spec.formulation, spec.seed, accuracy=(10.0, accuracy(spec) + SPREAD[spec.seed])
        )
        for spec in specs
    }
    measured: dict[str, Any] = {line.title: [1.0, 1e-5] for line in sgd._lines()}
    results = Results(specs, runs, measured)
    assert len(sgd.draw(results).axes) == 2
    return {claim.text: claim.verdict for claim in sgd.claims(results)}


def test_each_claim_about_sgd_is_about_runs_of_its_own() -> None:
    def accuracy(spec: Spec) -> float:
        return 95.0 if spec.formulation != "classical" or spec.config.gain == 4.0 else 10.0

    assert list(_learned(accuracy).values()) == ["refuted", "holds", "holds", "holds", "holds"]


@pytest.mark.parametrize(
    ("change", "index"),
    [({"prior": "normal"}, 3), ({"lr": 3e-3}, 4), ({"gain": 1.0, "prior": "uniform"}, 0)],
)
def test_what_helps_is_seen(change: Mapping[str, Any], index: int) -> None:
    def accuracy(spec: Spec) -> float:
        settings = {**vars(spec.config), "lr": spec.training.lr}
        if "lr" not in change and spec.training.lr == 3e-3:
            return 10.0
        return 95.0 if all(settings[key] == value for key, value in change.items()) else 10.0

    found = list(_learned(accuracy).values())
    assert found[index] == ("holds" if index == 0 else "refuted")


def test_images_that_vanish_are_measured_layer_by_layer(tmp_path: Path) -> None:
    found = sgd.measure(Setup("smoke", data_dir=tmp_path))
    layers = len(found["plain network"])
    assert all(len(values) == layers for values in found.values())
    plain, classical = found["plain network"], found["classical"]
    assert classical[-1] < 0.01 * plain[-1]
    larger = found["classical, first weights 4 times as large"]
    for index, (value, other) in enumerate(zip(larger, classical, strict=True), start=1):
        assert value == pytest.approx(4.0**index * other, rel=1e-3)
