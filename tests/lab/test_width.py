"""The study of widths: ratios and their verdicts, the choice of rates, and what is compared."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

import hyperlight as hl
from hyperlight.lab.comparison import Interval
from hyperlight.lab.engine import task_of
from hyperlight.lab.studies import Results, Setup, width
from hyperlight.lab.studies.price import meanwhile
from hyperlight.lab.studies.width import WHOLE, Cell, Price, Width, activated, linear
from hyperlight.lab.tasks.base import Outcome
from hyperlight.widths import directions_for
from tests.lab.making import make_run

SETUP = Setup("cpu", seeds=3)


# --- ratios -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (Interval(1.09, 0.9, 1.24), "holds"),
        (Interval(1.09, 0.9, 1.26), "not decided"),
        (Interval(1.11, 0.9, 1.24), "not decided"),
        (Interval(1.5, 1.09, 2.0), "not decided"),
        (Interval(1.5, 1.11, 2.0), "refuted"),
        (Interval(0.5, 0.4, 0.6), "holds"),
        (Interval(0.5, math.nan, math.nan), "not decided"),
        (Interval(math.inf, math.nan, math.nan), "not decided"),
    ],
)
def test_a_width_is_good_bad_or_not_decided(ratio: Interval, verdict: str) -> None:
    assert width._verdict(ratio) == verdict


def test_an_error_of_zero_or_none_has_a_ratio() -> None:
    assert width._ratio([0.0, 0.0], [0.1, 0.1]).mean < 1e-6
    for errors in ([math.nan], [math.nan, 0.1], [math.inf, 0.1]):
        ratio = width._ratio(errors, [0.1] * len(errors))
        assert ratio.mean == math.inf
        assert width._verdict(ratio) == "not decided"
        assert ratio.text(2) == "inf"


# --- results ----------------------------------------------------------------------------

CELL = Cell("a family", 8, (4,), (("family", "hat"), ("count", 16)), heads=("channel-scale",))
Errors = Mapping[tuple[Width, int, float], Sequence[tuple[float, float]]]


def _results(
    errors: Errors, monkeypatch: pytest.MonkeyPatch, last: float = 0.0, cell: Cell = CELL
) -> Results:
    """Results with validation and test errors by width, steps and rate, an entry per seed."""
    monkeypatch.setattr(width, "cells", lambda setup: (cell,))
    specs = [
        spec
        for spec in width.specs(SETUP)
        if (_width(spec.config), spec.training.steps, spec.training.lr) in errors
    ]
    runs = {}
    for spec in specs:
        key = (_width(spec.config), spec.training.steps, spec.training.lr)
        validation, test = errors[key][spec.seed]
        figures = {
            "validation error": validation,
            "test error": test,
            "energy in the last direction": last,
        }
        runs[spec.key] = make_run("mip", spec.seed, outcome=Outcome(figures))
    widths = dict.fromkeys(each for each, _, _ in errors)
    prices = {(cell, each): Price(1000, 4000, 0.004 if each == WHOLE else 0.001) for each in widths}
    return Results(specs, runs, prices)


def _width(config: object) -> Width:
    return Width(config.hidden, config.directions, config.head)  # type: ignore[attr-defined]


def _same(error: float) -> list[tuple[float, float]]:
    return [(error, error * factor) for factor in (0.9, 1.0, 1.1)]


WHOLES: Errors = {
    (WHOLE, steps, rate): _same(error)
    for steps, error in ((200, 0.4), (400, 0.2), (800, 0.1))
    for rate in width.RATES
}


def test_the_rate_is_chosen_by_validation_and_judged_by_testing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors = dict(WHOLES)
    # The first rate is better in validation, and worse in testing.
    errors[linear(8), 800, width.RATES[0]] = [(0.10, 0.3), (0.11, 0.3), (0.12, 0.3)]
    errors[linear(8), 800, width.RATES[1]] = [(0.05, 0.1), (0.05, 0.1), (0.30, 0.1)]
    (_, row) = width._rows(_results(errors, monkeypatch))
    assert row.width == linear(8)
    assert row.quality.rate == width.RATES[0]
    assert row.quality.errors == [0.3, 0.3, 0.3]
    paired = [0.3 / 0.09, 0.3 / 0.1, 0.3 / 0.11]
    assert row.steps.mean == pytest.approx(math.prod(paired) ** (1 / 3))


def test_a_rate_that_diverges_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = dict(WHOLES)
    errors[linear(8), 800, width.RATES[0]] = [(math.nan, math.nan), (0.01, 0.01), (0.01, 0.01)]
    errors[linear(8), 800, width.RATES[1]] = _same(0.2)
    (_, row) = width._rows(_results(errors, monkeypatch))
    assert row.quality.rate == width.RATES[1]


def test_at_equal_time_a_dear_head_has_had_fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {**WHOLES, **{(linear(8), 800, rate): _same(0.2) for rate in width.RATES}}
    whole, row = width._rows(_results(errors, monkeypatch))
    assert whole.steps.mean == whole.time.mean == 1.0
    # A step takes a quarter of the time: the head with all features has done 200 of its 800 steps.
    assert row.steps.mean == pytest.approx(2.0)
    assert row.time.mean == pytest.approx(0.5)


def test_errors_between_two_lengths_are_interpolated() -> None:
    whole = {200: [0.4, 0.8], 400: [0.2, 0.4], 800: [0.1, 0.2]}
    found = meanwhile(whole, 400 * math.sqrt(2.0))
    assert found == pytest.approx([0.2 / math.sqrt(2.0), 0.4 / math.sqrt(2.0)])
    assert meanwhile(whole, 400) == [0.2, 0.4]
    assert meanwhile(whole, 20) == [0.4, 0.8]
    assert meanwhile(whole, 8000) == [0.1, 0.2]


@pytest.mark.parametrize(("error", "verdict"), [(0.1, "holds"), (0.16, "refuted")])
def test_the_chosen_number_of_directions_is_judged(
    error: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = {**WHOLES, **{(linear(8), 800, rate): _same(error) for rate in width.RATES}}
    first = width.claims(_results(errors, monkeypatch))[0]
    assert first.verdict == verdict
    assert first.text.startswith("with 8 directions the error is at most 1.10 times")
    assert first.measured.startswith(f"{error / 0.1:.2f} [")
    assert f"{error / 0.4:.2f} [" in first.measured  # at equal time


def test_projections_are_compared_with_narrow_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    for narrow, verdict in ((0.3, "holds"), (0.05, "refuted")):
        errors = {**WHOLES, **{(linear(8), 800, rate): _same(0.1) for rate in width.RATES}}
        errors |= {(activated(8), 800, rate): _same(narrow) for rate in width.RATES}
        claim = width.claims(_results(errors, monkeypatch))[1]
        assert claim.verdict == verdict
        assert f"a family, 8: {narrow / 0.1:.2f} [" in claim.measured


@pytest.mark.parametrize(("error", "verdict"), [(0.1, "holds"), (0.15, "refuted")])
def test_other_heads_are_compared_with_the_default(
    error: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaled = width.other("channel-scale", 8)
    errors = {**WHOLES, **{(linear(8), 800, rate): _same(0.1) for rate in width.RATES}}
    errors |= {(scaled, 800, rate): _same(error) for rate in width.RATES}
    claims = width.claims(_results(errors, monkeypatch))
    (claim,) = [claim for claim in claims if "a head of" in claim.text]
    assert claim.text == (
        "a head of ChannelScale has an error at most 1.10 times that of the default's"
    )
    assert claim.verdict == verdict
    assert f"a family: {error / 0.1:.2f} [" in claim.measured
    assert claim.measured.endswith("with 1,000 weights for 1,000")


@pytest.mark.parametrize(
    ("last", "error", "verdict"),
    [(0.02, 0.2, "holds"), (0.02, 0.1, "refuted"), (0.009, 0.2, "not testable")],
)
def test_a_full_last_direction_means_too_few(
    last: float, error: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = {**WHOLES, **{(linear(4), 800, rate): _same(error) for rate in width.RATES}}
    claim = width.claims(_results(errors, monkeypatch, last))[-1]
    assert claim.verdict == verdict
    assert f"{int(last < 0.01)} are too narrow as well" in claim.measured


# --- the grid ---------------------------------------------------------------------------


def test_the_numbers_of_directions_are_the_default_s() -> None:
    for cell in width.CELLS:
        settings = dict(cell.settings)
        count = settings.get("count")
        one = hl.Uniform(0.0, 1.0)
        spaces: dict[str | None, list[hl.Input]] = {
            "permuted": [hl.Categorical(count)] if count else [],
            "embedding": [hl.Normal(64)],
            "interaction": [one] * (count or 0),
            "picture": [hl.Encoded(torch.nn.Flatten(), features=64)],
        }
        assert cell.chosen == directions_for(spaces.get(settings.get("family"), [one]))


def test_every_cell_can_be_trained() -> None:
    """All settings are those of its task, and cells tell their runs apart."""
    for cell in width.CELLS:
        spec = width._base(SETUP, cell)
        spec.config.check()
        spec.training.check()
    specs = [spec for spec in width.specs(SETUP) if spec.seed == 0]
    results = Results(specs, {spec.key: make_run("mip", 0) for spec in specs})
    for group in results:
        assert sum(cell.belongs(group) for cell in width.CELLS) == 1
    paper = width.cells(Setup("paper"))
    assert all(set(width.HEADS) == set(cell.heads) for cell in paper)


def test_a_price_is_that_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    prices = width.measure(Setup("smoke"))
    for (cell, each), price in prices.items():
        spec = width._base(Setup("smoke"), cell)
        config = dataclasses.replace(spec.config, **dataclasses.asdict(each))
        model = task_of(spec.task, config, torch.device("cpu")).model("mip", 0)
        assert price.weights == sum(p.numel() for p in model.parameters())
        assert 4 * price.weights < price.file < 4 * price.weights + 20_000
        assert 0.0 < price.step < 5.0
        whole = prices[cell, WHOLE]
        assert each == WHOLE or price.weights < 0.5 * whole.weights
        assert each.head == "dense" or price.weights < prices[cell, linear(cell.chosen)].weights


def test_names_of_widths() -> None:
    assert WHOLE.title == "all features, 128"
    assert linear(16).title == "linear, 16"
    assert activated(8).title == "activated, 8"
    assert Width((16, 128), 24).title == "linear after (16, 128), 24"
    assert width.other("low-rank", 24).title == "LowRank(4), 128"
    assert width.other("channel-scale", 24).title == "ChannelScale, 24"


def test_all_families_are_on_the_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    errors = {**WHOLES, **{(linear(r), 800, q): _same(0.1) for r in (4, 8) for q in width.RATES}}
    figure = width.draw(_results(errors, monkeypatch))
    assert [ax.get_title() for ax in figure.axes if ax.get_visible()] == ["a family"]
    assert figure.get_figwidth() < 9.0
    lines = [line.get_ydata() for line in figure.axes[0].get_lines()]
    middle = 0.1 * (0.9 * 1.1) ** (1 / 3)
    assert any(list(line) == pytest.approx([middle, middle]) for line in lines)
