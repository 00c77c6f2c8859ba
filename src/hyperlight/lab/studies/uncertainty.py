"""Beyond the paper: does a Bayesian family know what it does not know?

Digits that are turned become other digits, or none. A good answer then is unsure. Compared are the
families of two hypernetworks with one plain network, an ensemble of plain networks and Monte-Carlo
dropout. All see the same batches in as many steps. The ensemble's networks divide every batch among
them, so that together they cost as much as one. Rates are chosen on validation images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import figures, methods
from ..comparison import MARGINS, Interval
from ..engine import Spec
from ..methods import Method
from ..record import Run
from ..summary import BEYOND, Claim, Spread
from . import drawing, judging, settings
from .base import Group, Results, Setup, Study, Table, grid
from .price import Price, prices

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# By how much the test images are turned, in degrees.
ANGLES = tuple(15.0 * i for i in range(7))
# A calibration error is level if it is larger by at most so many points; fixed beforehand.
CALIBRATION = 1.0

PLAIN = dataclasses.replace(
    Method.of("plain"), title="one plain network", settings={"members": 1, "dropout": 0.0}
)
ENSEMBLE = Method(
    *("ensemble", "ensemble of 4, as much compute together", "#8a8a8a", "plain"),
    settings={"members": 4},
)
DROPOUT = Method(*("dropout", "dropout", "#e69f00", "plain"), settings={"dropout": 0.2})
MIP = dataclasses.replace(
    Method.of("mip"), title="family: MIP, as in the paper", settings=methods.PAPER
)
OURS = Method(
    *("ours", "family: ours", "#cc79a7", "mip"),
    settings={**methods.OURS, "head": "dense"},
    training={"rates": "groups"},
)
FAMILIES = (OURS, MIP)
METHODS = (PLAIN, ENSEMBLE, DROPOUT, MIP, OURS)


def specs(setup: Setup) -> list[Spec]:
    common = start(setup)
    rates = (3e-3,) if setup.size == "smoke" else (1e-3, 3e-3)
    found: list[Spec] = []
    for method in METHODS:
        config = dataclasses.replace(common.config, **method.settings)
        found += grid(
            dataclasses.replace(common, config=config),
            seeds=setup.replicas,
            formulations=[method.formulation],
            training={"lr": rates, "rates": [method.training.get("rates", "same")]},
        )
    # Seed by seed: what is there after an interruption compares all methods.
    return sorted(found, key=lambda spec: spec.seed)


def start(setup: Setup) -> Spec:
    """What all runs have in common."""
    if setup.size == "smoke":
        spec = settings.bayes(setup, angles=(0.0, 90.0), turned_images=64)
    elif setup.size == "cpu":
        few = {"posterior_samples": 8, "final_images": 2000, "turned_images": 500}
        spec = settings.bayes_brief(setup, angles=ANGLES, **few)
    else:
        spec = settings.bayes(setup, angles=ANGLES, posterior_samples=8)
    how = dataclasses.replace(spec.training, schedule="cosine")
    if setup.size == "cpu":
        how = dataclasses.replace(how, steps=400, evaluate_every=200)
    return dataclasses.replace(spec, training=how)


# --- the results -------------------------------------------------------------------------------


def _best(results: Results, method: Method) -> Group:
    """The runs of a method at the rate that is better on validation images."""
    training = {"rates": "same", **method.training}
    return drawing.best(
        results.where(formulation=method.formulation, **method.settings, **training)
    )


def _figure(name: str) -> Callable[[Run], float]:
    return lambda run: run.figure(name)


ACCURACY = _figure("accuracy of the average (%)")
TURNED = _figure("turned images, accuracy (%)")
ERROR = _figure("turned images, calibration error (%)")
HALF = _figure("turned images, accuracy with 50 % rejected (%)")
FOUND = _figure("turned images, wrong answers by entropy, AUROC")


def _rows(run: Run, title: str) -> Sequence[Sequence[Any]]:
    """A table of a run, without its heading."""
    tables = () if run.outcome is None else run.outcome.tables
    return next((rows for name, _, rows in tables if name == title), ())


def _by_row(group: Group, title: str, column: int) -> dict[float, Spread]:
    """A column of the runs' tables by the first one, over the seeds that have the row."""
    found: dict[float, list[float]] = {}
    for run in group.runs:
        for row in _rows(run, title):
            found.setdefault(row[0], []).append(row[column])
    return {key: Spread.of(values) for key, values in sorted(found.items())}


def _calibration(group: Group) -> list[tuple[float, float]]:
    """Confidence and accuracy of every bin, in percent, of the answers of all seeds."""
    bins: dict[int, list[Sequence[float]]] = {}
    for run in group.runs:
        for index, *rest in _rows(run, "Turned images by confidence"):
            bins.setdefault(index, []).append(rest)
    found = []
    for _, rows in sorted(bins.items()):
        total = sum(count for count, _, _ in rows)
        sure, right = (sum(row[0] * row[i] for row in rows) / total for i in (1, 2))
        found.append((sure, right))
    return found


def draw(results: Results) -> Figure:
    """Draw accuracy and confidence over the angle, calibration and rejection."""
    figure, axes = figures.panels(2, 2, height=3.0)
    accuracy, confidence, calibration, rejection = axes
    for method in METHODS:
        group = _best(results, method)
        look: dict[str, Any] = {"color": method.color, "label": method.title}
        for ax, title, column in (
            (accuracy, "Turned images", 1),
            (confidence, "Turned images", 2),
            (rejection, "Turned images, some rejected", 1),
        ):
            points = _by_row(group, title, column)
            figures.band(ax, list(points), list(points.values()), method.formulation, **look)
        pairs = _calibration(group)
        calibration.plot([x for x, _ in pairs], [y for _, y in pairs], marker=".", **look)
    calibration.plot([0, 100], [0, 100], color="0.6", linewidth=0.8, linestyle="--")
    _label(accuracy, "turned by (degrees)", "accuracy (%)")
    _label(confidence, "turned by (degrees)", "mean confidence (%)")
    _label(calibration, "confidence (%)", "accuracy (%), all angles")
    _label(rejection, "least certain answers rejected (%)", "accuracy (%), all angles")
    for ax in (accuracy, confidence):
        ax.set_ylim(0, 102)
    figures.legend(figure)
    return figure


def _label(ax: Axes, x: str, y: str) -> None:
    ax.set(xlabel=x, ylabel=y)


def claims(results: Results) -> list[Claim]:
    groups = {method.name: _best(results, method) for method in METHODS}
    found = []
    for family in FAMILIES:
        own = groups[family.name]
        for method in (PLAIN, ENSEMBLE, DROPOUT):
            found += _against(own, family.title, groups[method.name], method.title)
    return found


def _against(own: Group, family: str, other: Group, title: str) -> list[Claim]:
    margin = MARGINS["accuracy"]

    def compared(of: Callable[[Run], float], digits: int = 1) -> tuple[Interval, str]:
        values = [Spread.of([of(run) for run in group.runs]) for group in (own, other)]
        difference = judging.compare(own, other, of)
        ends = " and ".join(value.text(digits) for value in values)
        return difference, f"{ends}, difference {difference.text(digits, '+')}"

    upright, upright_text = compared(ACCURACY)
    error, error_text = compared(ERROR)
    half, half_text = compared(HALF)
    kind = family.removeprefix("family: ")
    claims = [
        Claim(
            BEYOND,
            f"on digits as they are, the family ({kind}) is as accurate as {title}, to {margin:g} "
            "point",
            f"accuracy {upright_text} %",
            upright.at_least(-margin),
        )
    ]
    if title == PLAIN.title:
        claims.append(
            Claim(
                BEYOND,
                f"on turned digits, the calibration error of the family ({kind}) is more than "
                f"{CALIBRATION:g} point below that of {title}",
                f"calibration error {error_text} points",
                error.below(0.0, -CALIBRATION),
                "members that share nearly all of their weights disagree too little",
            )
        )
    else:
        claims.append(
            Claim(
                BEYOND,
                f"on turned digits, the calibration error of the family ({kind}) is at most "
                f"{CALIBRATION:g} point above that of {title}",
                f"calibration error {error_text} points",
                error.below(CALIBRATION),
                "members that share nearly all of their weights disagree too little",
            )
        )
    claims.append(
        Claim(
            BEYOND,
            f"on turned digits, with the less certain half rejected, the family ({kind}) is as "
            f"accurate as {title}, to {margin:g} point",
            f"accuracy of the rest {half_text} %",
            half.at_least(-margin),
        )
    )
    return claims


# --- what it costs -----------------------------------------------------------------------------


def measure(setup: Setup) -> Mapping[str, Price]:
    """Parameters and the time of a step of every method; they take turns."""
    common = start(setup)
    specs = {
        method.title: dataclasses.replace(
            common,
            config=dataclasses.replace(common.config, **method.settings),
            training=dataclasses.replace(common.training, **method.training),
            formulation=method.formulation,
        )
        for method in METHODS
    }
    return prices(specs, 3 if setup.size == "smoke" else 21)


def tables(results: Results) -> list[Table]:
    measured: Mapping[str, Price] = results.measured
    one = measured[PLAIN.title]
    heading = ["", "rate", "accuracy (%)", "accuracy, turned (%)"]
    heading += ["calibration error, turned (%)", "accuracy, turned, half rejected (%)"]
    heading += ["wrong answers by entropy, AUROC", "parameters"]
    heading += ["step, times that of a plain network"]
    rows, by_angle = [], []
    for method in METHODS:
        group, price = _best(results, method), measured[method.title]
        columns = [(ACCURACY, 2), (TURNED, 1), (ERROR, 1), (HALF, 1), (FOUND, 3)]
        values = [Spread.of([of(run) for run in group.runs]).text(n) for of, n in columns]
        rate = f"{group.spec.training.lr:g}"
        step = f"{price.step / one.step:.2f}"
        rows.append([method.title, rate, *values, price.weights, step])
        accuracies, confidences, errors = (
            _by_row(group, "Turned images", column) for column in (1, 2, 3)
        )
        by_angle += [
            [
                *(method.title, f"{angle:g}", accuracies[angle].text(1)),
                *(confidences[angle].text(1), errors[angle].text(1)),
            ]
            for angle in accuracies
        ]
    angles = ["", "turned by (degrees)", "accuracy (%)", "confidence (%)", "calibration error (%)"]
    return [
        Table("What each knows", heading, rows),
        Table("By angle", angles, by_angle, False),
    ]


STUDY = Study(
    name="uncertainty",
    title="What a Bayesian family knows, beside one network, an ensemble and dropout",
    source=BEYOND,
    caption="Answers for digits turned by 0 to 90 degrees. Accuracy and mean confidence by "
    "angle; accuracy of answers by their confidence, where the dashed line is right; and accuracy "
    "when the least certain answers are rejected. A family is the average of the networks of 8 "
    "gammas, dropout that of 8 draws. Mean and standard deviation over seeds; each at the better "
    "of two rates on validation images.",
    specs=specs,
    draw=draw,
    claims=claims,
    measure=measure,
    tables=tables,
    reduced={
        "smoke": "scikit-learn's digits, 20 steps; turned by 0 and 90 degrees, averages of 2",
        "cpu": "MNIST in full, 400 steps (0.9 epochs) in batches of 128; 2000 test images, of "
        "which 500 are turned",
    },
)
