"""Figures of studies at size cpu: text can be read at 800 pixels, and lines are named once."""

from __future__ import annotations

import math
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from hyperlight.lab.engine import Spec
from hyperlight.lab.record import Run
from hyperlight.lab.studies import STUDIES, Results, Setup, Study, dimension
from hyperlight.lab.tasks.base import Metric, Outcome
from tests.lab.making import ACCURACY, make_run, plain_run

WIDTH = 800  # pixels at which figures are looked at
SMALLEST = 9.0  # pixels that text is high
DICE = Metric("dice", digits=3)
# What they draw is measured first; their figures have tests of their own.
MEASURED = ("fig3a", "fig3b", "width", "registration", "sgd", "runtime")
MEASURED += ("trade-off", "decision-cost", "adapters", "implicit", "equations")


class _Any(dict[str, float]):
    """The same for every figure."""

    def __missing__(self, name: str) -> float:
        return 0.5


def _run(spec: Spec) -> Run:
    metric = ACCURACY if spec.task == "bayes" else DICE
    heading = ("gamma", "accuracy", "dice", "ms per image", "loss", "objective", "folding (%)")
    rows = [(i / 20, 50.0 + i, 0.5, 3.0, 1.0, 1.0, 0.1) for i in range(21)]
    fixed = spec.formulation == "plain"
    outcome = Outcome(_Any(), [] if fixed else [("Test set against gamma", heading, rows)])
    scale = 1.0 if metric.unit else 0.01
    high = {"classical": 60.0, "mip": 95.0}.get(spec.formulation, 80.0) + spec.seed
    made = plain_run if fixed else make_run
    values = [10.0 * scale, 0.8 * high * scale, high * scale]
    return made(
        *([spec.seed, spec.formulation] if fixed else [spec.formulation, spec.seed]),
        accuracy=values,
        metric=metric,
        outcome=outcome,
    )


def _drawn(study: Study, runs: dict[str, Run] | None = None) -> Figure:
    specs = study.specs(Setup("cpu", seeds=2))
    return study.draw(Results(specs, runs or {spec.key: _run(spec) for spec in specs}))


def _names(figure: Figure) -> list[list[str]]:
    """The names in every legend."""
    inside = [ax.get_legend() for ax in figure.axes]
    found = [legend for legend in (*figure.legends, *inside) if legend is not None]
    return [[text.get_text() for text in legend.get_texts()] for legend in found]


@pytest.fixture(params=[study for study in STUDIES.values() if study.name not in MEASURED])
def study(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_a_figure_can_be_read_and_names_its_lines_once(study: Study) -> None:
    figure = _drawn(study)
    pixels = WIDTH / (72.0 * figure.get_figwidth())
    axes = [ax for ax in figure.axes if ax.get_visible()]
    texts = [text for part in (*axes, *figure.legends) for text in part.findobj(Text)]
    assert min(text.get_fontsize() for text in texts) * pixels >= SMALLEST
    found = _names(figure)
    # Two panels about different things.
    assert len(found) == (2 if study.name == "statements" else 1)
    for names in found:
        assert names
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("fig4c", ["plain, all gammas", "gamma as input"]),
        (
            "family-scale_space",
            ["plain networks, 100 steps each", "plain networks, 500 steps each"],
        ),
    ],
)
def test_a_figure_has_the_plain_networks_that_were_trained(name: str, plain: list[str]) -> None:
    (names,) = _names(_drawn(STUDIES[name]))
    assert set(plain) <= set(names)


def test_a_target_that_is_never_reached_is_no_number_of_steps() -> None:
    study = STUDIES["dimension"]
    runs = {}
    for spec in study.specs(Setup("cpu", seeds=2)):
        lost = spec.config.encoding == "per-input" and spec.config.dimensions > 8
        run = _run(spec)
        runs[spec.key] = make_run("mip", spec.seed, accuracy=[10.0] * 3) if lost else run
    panel = _drawn(study, runs).axes[0]
    last = 10.0  # steps
    lines = {str(line.get_label()): line for line in panel.lines}
    steps = [float(y) for y in lines[dimension.MIP].get_ydata()]
    assert steps[:2] == [last, last]
    assert all(math.isnan(y) for y in steps[2:])
    crosses = [line for line in panel.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in crosses] == [[32, 128]]
    assert min(crosses[0].get_ydata()) > last
    labels = [label.get_text() for label in panel.get_yticklabels()]
    assert labels[-1] == "never"
    assert max(map(float, labels[:-1])) <= last
