"""Beyond the paper: what longer training does to the comparison of the study ``registration``.

Who is ahead may change with the number of steps: a method that learns fast need not be the one that
learns most. Ours, FiLM, gamma as an input channel and one plain network train for longer and
longer, beside plain networks for three gammas, which get as many steps each.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .. import figures
from ..comparison import Interval
from ..engine import Spec
from ..methods import Method
from ..summary import BEYOND, Claim, Spread
from . import registration
from .base import Results, Setup, Study, Table, along, grid, value
from .registration import CHANNEL, FILM, LEVEL, OURS, SHARED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = (OURS, FILM, CHANNEL, SHARED)
PLAIN = "plain networks per gamma, as many steps each"


def _gammas(setup: Setup) -> tuple[float, ...]:
    """The gammas of the plain networks: both ends, and the middle."""
    return (0.2, 0.8) if setup.size == "smoke" else (0.1, 0.5, 0.9)


def specs(setup: Setup) -> list[Spec]:
    seeds = setup.replicas
    longer = {"smoke": (20,), "cpu": (5_000, 20_000), "paper": (100_000,)}[setup.size]
    rate = registration.RATE
    # The shortest runs are those of the study registration.
    own = registration.specs(dataclasses.replace(setup, seeds=len(seeds)))
    steps = registration.start(setup).training.steps
    found = [spec for spec in own if _belongs(spec, setup, steps, rate)]
    for steps in longer:
        common = registration.start(setup)
        training = dataclasses.replace(
            common.training, lr=rate, steps=steps, evaluate_every=steps // 10
        )
        common = dataclasses.replace(common, training=training)
        for method in METHODS:
            config = dataclasses.replace(common.config, **method.settings)
            found += grid(
                dataclasses.replace(common, config=config),
                seeds=seeds,
                formulations=[method.formulation],
                training={"rates": [method.training.get("rates", "same")]},
            )
        found += grid(common, seeds=seeds, formulations=["plain"], config={"gamma": _gammas(setup)})
    return sorted(found, key=lambda spec: spec.seed)


def _belongs(spec: Spec, setup: Setup, steps: int, rate: float) -> bool:
    """Whether a run of the study ``registration`` is one of this study, too."""
    if spec.training.steps != steps or spec.training.lr != rate:
        return False
    if spec.formulation == "plain":
        return spec.config.gamma in _gammas(setup)
    return any(_is(method, spec) for method in METHODS)


def _is(method: Method, spec: Spec) -> bool:
    wanted = {"formulation": method.formulation, "rates": "same", **method.own}
    return all(value(spec, name) == given for name, given in wanted.items())


# --- the results -------------------------------------------------------------------------


def _steps(results: Results) -> list[int]:
    return sorted(results.values("steps"))


def _objective(results: Results, method: Method, steps: int) -> dict[float, list[float]]:
    """Objective on test pairs by gamma, with a value for every seed."""
    (group,) = [g for g in results.where(steps=steps) if _is(method, g.spec)]
    runs = [along(run, "objective") for run in group.runs]
    return {gamma: [run.get(gamma, float("nan")) for run in runs] for gamma in runs[0]}


def _dice(results: Results, method: Method, steps: int) -> list[float]:
    """Test Dice at the gamma that is best on validation pairs, of every seed."""
    (group,) = [g for g in results.where(steps=steps) if _is(method, g.spec)]
    return group.figures("dice there, test, of 11")


def _plain(results: Results, steps: int) -> dict[float, list[float]]:
    """The objective of the plain networks, each at its own gamma."""
    found = results.where(formulation="plain", steps=steps)
    return {group.spec.config.gamma: group.figures("loss") for group in found}


def _mean(values: Mapping[float, Sequence[float]]) -> list[float]:
    """The mean over gammas, of every seed."""
    return [statistics.fmean(each) for each in zip(*values.values(), strict=True)]


def _common(results: Results, steps: int) -> dict[str, list[float]]:
    """Means over the gammas of the plain networks, which all methods have."""
    alone = _plain(results, steps)
    found = {}
    for method in METHODS:
        every = _objective(results, method, steps)
        found[method.title] = _mean({g: every.get(g, [float("nan")]) for g in alone})
    return found | {PLAIN: _mean(alone)}


def draw(results: Results) -> Figure:
    """Draw the objective and the best Dice over the number of steps."""
    figure, axes = figures.panels(2, width=8.0, height=3.4)
    steps = _steps(results)
    means = [_common(results, n) for n in steps]
    for method in METHODS:
        rows = [Spread.of(mean[method.title]) for mean in means]
        look = {"label": method.title, "color": method.color, "marker": "."}
        figures.band(axes[0], steps, rows, "mip", **look)
        rows = [Spread.of(_dice(results, method, n)) for n in steps]
        figures.band(axes[1], steps, rows, "mip", **look)
    rows = [Spread.of(mean[PLAIN]) for mean in means]
    figures.band(axes[0], steps, rows, "plain", label=PLAIN, marker=".")
    axes[0].set(ylabel="objective, mean over gammas")
    axes[1].set(ylabel="Dice at the best gamma")
    for ax in axes:
        ax.set(xlabel="steps", xscale="log")
        ax.set_xticks(steps, [str(n) for n in steps])
        ax.minorticks_off()
    figures.legend(figure)
    return figure


def claims(results: Results) -> list[Claim]:
    found = []
    first, *_, last = _steps(results)
    means = {steps: _common(results, steps) for steps in (first, last)}

    def ratio(steps: int, title: str) -> Interval:
        return Interval.ratio(means[steps][OURS.title], means[steps][title])

    def measured(title: str) -> str:
        return (
            f"objective {ratio(last, title).text(2)} times as large after {last} steps, "
            f"{ratio(first, title).text(2)} times after {first}"
        )

    for method in (FILM, CHANNEL, SHARED):
        found.append(
            Claim(
                BEYOND,
                f"after {last} steps, ours has a smaller objective than {method.title}",
                measured(method.title),
                ratio(last, method.title).below(1.0),
                "what this task asks of the weights, the other can do as well",
            )
        )
    found.append(
        Claim(
            BEYOND,
            f"after {last} steps, the objective of ours is at most {LEVEL:g} times that of plain "
            "networks for single gammas, which train for as many steps each",
            measured(PLAIN),
            ratio(last, PLAIN).below(LEVEL),
            "each plain network trains for its one gamma as long as ours for all",
        )
    )
    return found


def tables(results: Results) -> list[Table]:
    rows = []
    for steps in _steps(results):
        common = _common(results, steps)
        every = {m.title: _mean(_objective(results, m, steps)) for m in METHODS}
        best = {m.title: _dice(results, m, steps) for m in METHODS}
        for title, values in common.items():
            over_all = Spread.of(every[title]).text(3) if title in every else ""
            dice = Spread.of(best[title]).text(4) if title in best else ""
            rows.append([title, steps, Spread.of(values).text(3), over_all, dice])
    gammas = ", ".join(f"{gamma:g}" for gamma in _plain(results, _steps(results)[0]))
    heading = ["", "steps", f"objective at {gammas}", "objective at 11 gammas"]
    return [Table("By the number of steps", [*heading, "Dice at the best gamma"], rows)]


STUDY = Study(
    name="registration-steps",
    title="Registration, the longer the training",
    source=BEYOND,
    caption="The objective on test pairs, mean over the gammas of the plain networks, and Dice at "
    "the gamma that is best on validation pairs, by the number of training steps. Every point is a "
    "training of its own, at one rate for all. Mean and standard deviation over seeds.",
    specs=specs,
    draw=draw,
    claims=claims,
    tables=tables,
    reduced={
        "smoke": "scikit-learn's digits at 16x16, a U-Net of 2 levels with 4 channels, 10 "
        "steps and 20 steps",
        "cpu": "PTBP (4 labels; aligned to a template by SyN, with skull) at half resolution, "
        "96x80, a U-Net of 4 levels with 16 channels, "
        "1500 steps, 5000 steps and 20000 steps in batches of 4",
    },
)
