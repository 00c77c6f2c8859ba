"""The studies of uncertainty and of SGD: pairing, rates and verdicts on runs with given figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from hyperlight.lab.engine import Spec
from hyperlight.lab.studies import Results, Setup, sgd, uncertainty
from hyperlight.lab.studies.base import Size
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
    by_bin = [(14, 30, 99.0, 90.0), (0, 10, 5.0, 10.0 if error < 15 else 40.0)]
    return Outcome(
        figures,
        tables=[
            ("Turned images", heading, [(90.0, 20.0, 70.0, 9, 1), (0.0, accuracy, 99.0, 1.0, 0.1)]),
            ("Turned images by confidence", bins, by_bin),
            ("Turned images, some rejected", ("", ""), [(0, 60.0), (50, half)]),
        ],
    )


def _results(**changes: Mapping[str, float | Sequence[float]]) -> Results:
    """Results in which all methods are alike but for these changes of a method's figures.

    A figure is one value, or one for each seed.
    """
    specs = uncertainty.specs(SETUP)
    runs = {}
    for spec in specs:
        usual = {"accuracy": 98.0, "error": 10.0, "half": 90.0}
        given = {**usual, **changes.get(_method(spec), {})}
        values = {
            name: (value[spec.seed] if isinstance(value, Sequence) else value) + SPREAD[spec.seed]
            for name, value in given.items()
        }
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


@pytest.mark.parametrize(
    ("figure", "values", "words"),
    [
        ("accuracy", (97.0, 97.5, 98.0), "as they are"),
        ("half", (89.0, 89.5, 90.0), "half rejected"),
        ("error", (9.2, 8.5, 7.8), "more than 1 point below that of one plain network"),
        ("error", (10.0, 10.5, 11.0), "at most 1 point above"),
    ],
)
def test_seeds_that_differ_too_much_decide_nothing(
    figure: str, values: Sequence[float], words: str
) -> None:
    """The mean is on the good side of the margin, and the interval on both."""
    results = _results(ours={figure: values})
    assert set(_of(results, words, "(ours)")) == {"not decided"}


def test_a_claim_says_what_it_was_decided_by() -> None:
    results = _results(ours={"accuracy": 97.5, "error": 8.5, "half": 91.25})
    accuracy, error, half = (
        claim.measured
        for claim in uncertainty.claims(results)
        if "(ours)" in claim.text and PLAIN.title in claim.text
    )
    assert accuracy == "accuracy 97.5 ± 0.1 and 98.0 ± 0.1, difference -0.5 [-0.5, -0.5] %"
    assert error == (
        "calibration error 8.5 ± 0.1 and 10.0 ± 0.1, difference -1.5 [-1.5, -1.5] points"
    )
    assert half == (
        "accuracy of the rest 91.2 ± 0.1 and 90.0 ± 0.1, difference +1.2 [+1.2, +1.2] %"
    )


@pytest.mark.parametrize(("size", "repeats"), [("smoke", 3), ("cpu", 21)])
def test_the_price_of_every_method_is_that_of_its_own_settings(
    monkeypatch: pytest.MonkeyPatch, size: Size, repeats: int
) -> None:
    def prices(specs: Mapping[str, Spec], times: int) -> Mapping[str, int]:
        assert [method.title for method in METHODS] == list(specs)
        assert [_method(spec) for spec in specs.values()] == [method.name for method in METHODS]
        return dict.fromkeys(specs, times)

    monkeypatch.setattr(uncertainty, "prices", prices)
    assert set(uncertainty.measure(Setup(size)).values()) == {repeats}


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
    own = ["0.003", "98.00 ± 0.10", "60.0 ± 0.0", "20.0 ± 0.1", "90.0 ± 0.1", "0.800 ± 0.000"]
    assert table.rows[titles.index(MIP.title)] == [MIP.title, *own, 4000, "4.00"]
    assert [t.shown for t in (table, by_angle)] == [True, False]
    assert by_angle.rows[:2] == [
        [PLAIN.title, "0", "98.0 ± 0.1", "99.0 ± 0.0", "1.0 ± 0.0"],
        [PLAIN.title, "90", "20.0 ± 0.0", "70.0 ± 0.0", "9.0 ± 0.0"],
    ]


def test_bins_weigh_their_answers() -> None:
    """A seed with more answers in a bin counts more."""
    results = _results()
    (group, *_) = results.where(formulation="mip", **OURS.settings, lr=3e-3, rates="groups")
    for run, count in zip(group.runs, (1, 1, 2), strict=True):
        rows = [(3, count, 10.0 * count, 100.0 * (count - 1))]
        tables = [("Turned images by confidence", ("bin",), rows)]
        run.outcome = Outcome(run.outcome.figures if run.outcome else {}, tables)
    assert uncertainty._calibration(group) == [(15.0, 50.0)]
    for run in group.runs:
        run.outcome = None  # of a run that was interrupted
    assert uncertainty._calibration(group) == []


# --- SGD ----------------------------------------------------------------------------------------


# What the last layer returns before training, by line of the figure.
LAST = {line.title: 10.0**-index for index, line in enumerate(sgd._lines())}


def _trained(accuracy: Callable[[Spec], float]) -> Results:
    specs = sgd.specs(Setup("smoke", seeds=3))
    runs = {
        spec.key: make_run(
            spec.formulation, spec.seed, accuracy=(10.0, accuracy(spec) + SPREAD[spec.seed])
        )
        for spec in specs
    }
    return Results(specs, runs, {title: [5.0, last] for title, last in LAST.items()})


def _learned(accuracy: Callable[[Spec], float]) -> Mapping[str, str]:
    results = _trained(accuracy)
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


@pytest.mark.parametrize(
    ("accuracy", "learns"), [(89.5, "refuted"), (90.05, "not decided"), (90.5, "holds")]
)
def test_a_network_that_learned_is_surely_right_in_more_than_90_percent(
    accuracy: float, learns: str
) -> None:
    opposite = {"holds": "refuted", "refuted": "holds"}.get(learns, learns)
    found = list(_learned(lambda spec: accuracy).values())
    assert found == [learns] * 3 + [opposite] * 2


def test_every_line_is_that_of_its_own_runs() -> None:
    """In the tables, in the figure, and in what may explain it."""

    def accuracy(spec: Spec) -> float:
        if spec.formulation != "classical":
            return 98.0 if spec.formulation == "plain" else 97.0
        if spec.config.prior == "normal" or spec.training.lr == sgd.FAST:
            return 30.0 if spec.config.prior == "normal" else 40.0
        return 10.0 * spec.config.gain

    results = _trained(accuracy)
    finals, layers = sgd.tables(results)
    columns = list(zip(*finals.rows, strict=True))
    assert columns[0][:-2] == tuple(LAST)
    assert columns[1] == (*["0.0003"] * 7, "0.003")
    assert columns[2] == (*[f"{last:.1e}" for last in LAST.values()], "", "")
    means = [98, 97, 10, 20, 40, 80, 30, 40]
    assert columns[3] == tuple(f"{mean:.1f} ± 0.1" for mean in means)
    assert layers.rows[:2] == [["plain network", 1, "5"], ["plain network", 2, "1"]]
    classical, mip, larger, normal, fast = sgd.claims(results)
    assert "between images by 1.0e-02, those of a plain network by 1.0e+00" in classical.guess
    measured = [claim.measured for claim in (classical, mip, larger, normal, fast)]
    assert measured == [f"final accuracy {mean:.1f} ± 0.1 %" for mean in (10, 97, 40, 30, 40)]
    size, curves = sgd.draw(results).axes
    assert [line.get_ydata()[-1] for line in size.lines] == list(LAST.values())
    ends = [line.get_ydata()[-1] for line in curves.lines]
    assert ends == pytest.approx(means[:6])


def test_images_that_vanish_are_measured_layer_by_layer(tmp_path: Path) -> None:
    found = sgd.measure(Setup("smoke", data_dir=tmp_path))
    layers = len(found["plain network"])
    assert all(len(values) == layers for values in found.values())
    plain, classical = found["plain network"], found["classical"]
    assert classical[-1] < 0.01 * plain[-1]
    larger = found["classical, first weights 4 times as large"]
    for index, (value, other) in enumerate(zip(larger, classical, strict=True), start=1):
        assert value == pytest.approx(4.0**index * other, rel=1e-3)
