"""Section 6.2: a training step of MIP takes as long as a classical one.

Nothing is trained to the end. Models of every task take turns, step by step, so that what slows the
machine slows all of them.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import figures
from ..comparison import Interval, counted, every
from ..engine import Spec
from ..methods import Method
from ..summary import Claim, Spread
from . import drawing, fig4a, fig4b, fig4c, settings
from .base import Results, Setup, Study, Table
from .knobs import OURS
from .price import step_times

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "section 6.2"
# A step that takes less than this many times as long is no impact.
IMPACT = 1.05

PLAIN = dataclasses.replace(Method.of("shared"), title="plain network")
CLASSICAL, MIP = Method.of("classical"), Method.of("mip")
METHODS = (PLAIN, CLASSICAL, MIP, OURS)

# Milliseconds per step of every method, the medians of every seed, by task and optimizer.
Times = Mapping[str, Mapping[str, Sequence[float]]]


def measure(setup: Setup) -> Times:
    """Time steps in every task of figure 4, with both of its optimizers."""
    rounds = 3 if setup.size == "smoke" else 21
    starts: dict[str, Spec] = {}
    for spec in (*fig4a.specs(setup), *fig4b.specs(setup), *fig4c.of_the_paper(setup)):
        title = f"{drawing.NAMES[spec.task]}, {drawing.NAMES[spec.training.optimizer]}"
        starts.setdefault(title, spec)
    found: dict[str, dict[str, list[float]]] = {
        title: {method.name: [] for method in METHODS} for title in starts
    }
    for seed in setup.replicas:
        for title, start in starts.items():
            made = {method.name: _made(start, method, seed) for method in METHODS}
            for name, seconds in step_times(made, rounds).items():
                found[title][name].append(1e3 * statistics.median(seconds))
    return found


def _made(start: Spec, method: Method, seed: int) -> Spec:
    """The settings of a method. All of figure 4 have those of the paper."""
    ours: Mapping[str, Any] = method.settings if method is OURS else {}
    config = dataclasses.replace(start.config, **ours)
    training = dataclasses.replace(start.training, **method.training)
    return Spec(start.task, config, training, method.formulation, seed)


def draw(results: Results) -> Figure:
    times: Times = results.measured
    figure, (ax,) = figures.panels(1, width=7.0, height=4.6)
    height = 0.8 / len(METHODS)
    for i, method in enumerate(METHODS):
        spreads = [Spread.of(by_method[method.name]) for by_method in times.values()]
        ax.barh(
            [row - 0.4 + (i + 0.5) * height for row in range(len(times))],
            [s.mean for s in spreads],
            0.9 * height,
            xerr=[0.0 if math.isnan(s.std) else s.std for s in spreads],
            color=method.color,
            label=method.title,
        )
    ax.set_yticks(range(len(times)), list(times))
    ax.invert_yaxis()
    ax.set(xlabel="milliseconds per step")
    figures.legend(figure)
    return figure


def claims(results: Results) -> list[Claim]:
    times: Times = results.measured
    found, verdicts = [], []
    for title, by_method in times.items():
        ratio = Interval.ratio(by_method[MIP.name], by_method[CLASSICAL.name])
        verdicts.append(ratio.below(IMPACT))
        found.append(f"{title}: {ratio.text(2)} ({verdicts[-1]})")
    return [
        Claim(
            SOURCE,
            "for all experiments, we found that MIP hypernetworks did not introduce a measurable "
            "impact in training runtime",
            f"{counted(verdicts)}; step of MIP over that of classical: {'; '.join(found)} (no "
            f"impact: a ratio below {IMPACT:g})",
            every(verdicts),
            "an addition of theta0 shows where a step is short",
        )
    ]


def tables(results: Results) -> list[Table]:
    times: Times = results.measured
    heading = ["", *(method.title for method in METHODS), "MIP / classical", "ours / plain network"]
    rows = [
        [
            title,
            *(Spread.of(by_method[method.name]).text(2) for method in METHODS),
            Interval.ratio(by_method[MIP.name], by_method[CLASSICAL.name]).text(2),
            Interval.ratio(by_method[OURS.name], by_method[PLAIN.name]).text(2),
        ]
        for title, by_method in times.items()
    ]
    return [Table("Milliseconds per step", heading, rows)]


STUDY = Study(
    name="runtime",
    title="Training time",
    source=SOURCE,
    caption="Milliseconds per training step: the median over steps that the models take in turns. "
    "The networks and settings are those of figure 4; ours has the library's defaults, and the "
    "plain network is trained for all gammas. Mean and standard deviation over seeds.",
    specs=lambda setup: [],
    draw=draw,
    claims=claims,
    measure=measure,
    tables=tables,
    reduced={
        "smoke": "scikit-learn's digits, smaller hypernetworks, 2 steps in turn, 2 seeds",
        "cpu": "20 steps in turn, 5 seeds; LeNet on MNIST in batches of 128, instead of "
        f"Flowers-102, too; {settings.SCANS} at half resolution, 96x80, instead of OASIS, in "
        "batches of 4, U-Nets of 4 levels with 8 channels for registration and 16 for segmentation",
    },
)
