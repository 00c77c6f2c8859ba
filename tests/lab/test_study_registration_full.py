"""Registration at full resolution: its recipe, the aim, and the best gammas."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperlight.lab.engine import run_grid
from hyperlight.lab.files import read_sealed, write_sealed
from hyperlight.lab.studies import Results, Setup, registration
from hyperlight.lab.studies import registration_full as study
from hyperlight.lab.studies.registration import GRID, OURS, SHARED, TUNE
from hyperlight.lab.tasks.base import Metric, Outcome
from tests.lab.making import make_run

DICE = Metric("dice", digits=3)
# Added to what seeds 0 to 2 have.
SEEDS = (-0.001, 0.0, 0.001)


def _results(by_grid: float, by_tune: float, shared: float = 0.7) -> Results:
    specs = study.specs(Setup("cpu", seeds=len(SEEDS)))
    runs = {}
    for spec in specs:
        ours, more = spec.formulation == "mip", SEEDS[spec.seed]
        figures = {"dice before registration": 0.7, GRID.gamma: 0.1 * spec.seed}
        figures[GRID.dice] = (by_grid if ours else shared) + more
        if ours:
            figures |= {TUNE.gamma: 0.66, TUNE.dice: by_tune + 2.0 * more}
        heading = ("gamma", "dice", "folding (%)", "mse", "objective")
        rows = [(i / 10, 0.7, 0.2, 0.0, 1.0 + i) for i in range(11)]
        outcome = Outcome(figures, tables=[("Test pairs against gamma", heading, rows)])
        runs[spec.key] = make_run(spec.formulation, spec.seed, metric=DICE, outcome=outcome)
    return Results(specs, runs)


def test_the_recipe_is_that_of_registration() -> None:
    """But for the resolution, one more level for it, and the number of steps."""
    for size in ("smoke", "cpu", "paper"):
        setup = Setup(size, seeds=1)
        start = registration.start(setup)
        ours, shared = study.specs(setup)
        assert (ours.formulation, shared.formulation) == (OURS.formulation, SHARED.formulation)
        for spec in (ours, shared):
            assert spec.training.lr == registration.RATE
            assert spec.training.schedule == start.training.schedule == "cosine"
            assert spec.config.channels == start.config.channels
            assert spec.config.flow_scale == start.config.flow_scale
            if size != "smoke":
                assert (spec.config.data, spec.config.size) == ("ptbp", None)
                assert spec.config.levels == 5
        assert all(getattr(ours.config, key) == own for key, own in OURS.settings.items())
        assert (ours.training.rates, shared.training.rates) == ("groups", "same")


@pytest.mark.parametrize(
    ("by_grid", "by_tune", "verdicts"),
    [
        (0.755, 0.754, ["holds", "holds"]),
        (0.745, 0.754, ["refuted", "holds"]),  # of the grid, as all methods have one
        (0.755, 0.742, ["holds", "refuted"]),
        (0.751, 0.742, ["not decided", "not decided"]),
    ],
)
def test_the_aim_and_the_gamma_of_tune(by_grid: float, by_tune: float, verdicts: list[str]) -> None:
    # The plain network does not decide.
    for shared in (0.7, 0.8):
        claims = study.claims(_results(by_grid, by_tune, shared))
        assert [claim.verdict for claim in claims] == verdicts
        assert f"one plain network {shared:.4f} [" in claims[0].measured
        assert "0.7000 before registration" in claims[0].measured


def test_figures_and_tables_have_both_methods() -> None:
    results = _results(0.751, 0.75)
    best, by_gamma = study.tables(results)
    assert [row[:3] for row in best.rows] == [
        [OURS.title, "by hl.tune", "0.66, 0.66, 0.66"],
        [OURS.title, "of 11", "0.00, 0.10, 0.20"],
        [SHARED.title, "of 11", "0.00, 0.10, 0.20"],
    ]
    assert [row[3][:6] for row in best.rows] == ["0.7500", "0.7510", "0.7000"]
    assert len(by_gamma.rows) == 2 * 11
    figure = study.draw(results)
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == [
        *(m.title for m in study.METHODS),
        "best gamma, by hl.tune",
        "best gamma, of 11",
    ]


def test_the_interval_over_scans_is_that_of_the_runs(tmp_path: Path) -> None:
    specs = study.specs(Setup("smoke"))
    best, _ = study.tables(Results(specs, run_grid(specs, tmp_path)))
    over = [row[4] for row in best.rows]
    assert all("[" in each for each in over)
    record = tmp_path / specs[0].key / "record.json"
    kept, _ = read_sealed(record)
    del kept["outcome"]["tables"][1]  # as in a run of an earlier version
    write_sealed(record, kept)
    best, _ = study.tables(Results(specs, run_grid(specs, tmp_path)))
    assert [row[4] for row in best.rows] == ["", "", over[2]]
