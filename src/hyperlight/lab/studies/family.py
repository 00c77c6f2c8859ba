"""Beyond the paper: one hypernetwork against plain networks, each trained for one gamma.

The hypernetwork is trained for N steps. The K plain networks are trained twice: for N / K steps
each, which together cost as much as the hypernetwork, and for N steps each, which cost K times as
much. All try the same learning rates with the same seeds. Each plain network keeps the best rate
for its gamma, the hypernetwork the best rate over all gammas, by the metric on validation data.

There are two hypernetworks: MIP, and "ours", the library's defaults (the unit-norm encoding and a
relative start) with the learning rates of hl.parameter_groups.

Beside them are controls: single networks that are trained for all gammas, as long as the
hypernetworks, but whose weights do not depend on gamma.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from .. import figures
from ..comparison import Interval, counted, every
from ..engine import Spec
from ..record import Run
from ..summary import BEYOND, Claim, Spread
from ..tasks.base import Formulation
from . import drawing, judging
from .base import Group, Results, Table, along, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CONTROLS", "claims", "draw", "specs", "tables"]

MIP, OURS = "MIP", "ours, hl.parameter_groups"
# Settings of the hypernetwork, rule for the rates, and colour of the line, by name.
METHODS: dict[str, tuple[dict[str, Any], Literal["same", "groups"], str]] = {
    MIP: ({"encoding": "per-input", "init": "fan_out"}, "same", "#0072b2"),
    OURS: (
        {"encoding": "unit-norm", "init": "relative", "fraction": 0.1},
        "groups",
        "#cc79a7",
    ),
}
# Formulation by name: networks for all gammas whose weights do not depend on gamma.
CONTROLS: dict[str, Formulation] = {
    "one plain network": "shared",
    "gamma as a channel": "channel",
}


def specs(
    base: Spec,
    seeds: range,
    gammas: Sequence[float],
    rates: Sequence[float],
    controls: Sequence[Formulation] = (),
) -> list[Spec]:
    """Make the grid: both hypernetworks, and the plain networks with both numbers of steps.

    Args:
        base: settings of the hypernetwork.
        seeds: seeds of every run.
        gammas: gammas of the plain networks.
        rates: learning rates to try.
        controls: formulations of :data:`CONTROLS` to train as well.
    """
    steps = base.training.steps
    found: list[Spec] = []
    for changed, rule, _ in METHODS.values():
        made = dataclasses.replace(base, config=dataclasses.replace(base.config, **changed))
        how: dict[str, Sequence[Any]] = {"lr": rates, "rates": [rule]}
        found += grid(made, seeds=seeds, formulations=["mip"], training=how)
    found += grid(base, seeds=seeds, formulations=controls, training={"lr": rates})
    for count in (steps // len(gammas), steps):
        fewer = dataclasses.replace(base.training, steps=count, evaluate_every=count)
        plain = dataclasses.replace(base, training=fewer)
        found += grid(
            plain,
            seeds=seeds,
            formulations=["plain"],
            config={"gamma": gammas},
            training={"lr": rates},
        )
    return found


def _gammas(results: Results) -> list[float]:
    found = {group.spec.config.gamma for group in results.where(formulation="plain")}
    return sorted(found)


def _budgets(results: Results) -> list[int]:
    """Numbers of steps of a plain network, smaller first."""
    found = {group.spec.training.steps for group in results.where(formulation="plain")}
    return sorted(found)


def _separate(results: Results, gamma: float, steps: int) -> Group:
    """Return the plain network for a gamma, at its best rate."""
    groups = results.where(formulation="plain", gamma=gamma, steps=steps)
    return drawing.best(groups)


def _hypernetworks(results: Results, method: str) -> list[Group]:
    """Return the hypernetworks of a method, one per rate."""
    changed, rule, _ = METHODS[method]
    return list(results.where(formulation="mip", rates=rule, **changed))


def _best(results: Results, method: str) -> Group:
    """Return the hypernetwork at the best rate over all gammas."""
    return drawing.best(_hypernetworks(results, method))


def _controls(results: Results) -> dict[str, Group]:
    """The controls that were trained, by name, at their best rates."""
    found = {name: results.where(formulation=kind) for name, kind in CONTROLS.items()}
    return {name: drawing.best(groups) for name, groups in found.items() if groups}


def _together(group: Group, gamma: float) -> Spread:
    """Return the metric of networks for all gammas at one."""
    return Spread.of([_at(run, gamma) for run in group.runs])


def _at(run: Run, gamma: float) -> float:
    """Metric of a network for all gammas at one."""
    return next(value for at, value in along(run).items() if abs(at - gamma) < 1e-6)


def draw(results: Results, cost: str | None = None) -> Figure:
    """Draw the metric over gamma: a curve per hypernetwork, a point per plain network.

    Args:
        results: results of the runs.
        cost: a column of the hypernetwork's table (and a figure of the plain networks) to draw in
            a second panel.
    """
    figure, axes = figures.panels(2 if cost else 1, width=9.0 if cost else 6.0, height=3.6)
    gammas, budgets = _gammas(results), _budgets(results)
    best = {method: _best(results, method) for method in METHODS}
    for method, group in best.items():
        curve = group.along_gamma()
        figures.band(
            axes[0],
            [gamma for gamma, _ in curve],
            [spread for _, spread in curve],
            "mip",
            label=f"{method}: one hypernetwork, {_steps(results)} steps",
            color=METHODS[method][2],
        )
    for name, group in _controls(results).items():
        curve = group.along_gamma()
        figures.band(
            axes[0],
            [gamma for gamma, _ in curve],
            [spread for _, spread in curve],
            group.spec.formulation,
            label=f"{name}, all gammas, {_steps(results)} steps",
        )
    for steps, marker, fill in zip(budgets, ("o", "s"), ("black", "none"), strict=True):
        finals = [_separate(results, gamma, steps).final for gamma in gammas]
        axes[0].errorbar(
            gammas,
            [f.mean for f in finals],
            [0.0 if math.isnan(f.std) else f.std for f in finals],
            fmt=marker,
            color="black",
            markerfacecolor=fill,
            capsize=2,
            label=f"plain networks, {steps} steps each",
        )
    axes[0].set(xlabel="gamma", ylabel=f"test {results.groups[0].metric.heading}")
    if cost:
        for method, group in best.items():
            curve = group.along_gamma(cost)
            color = METHODS[method][2]
            axes[1].plot([g for g, _ in curve], [s.mean for _, s in curve], color=color)
        points = [_separate(results, gamma, budgets[-1]).outcome(cost).mean for gamma in gammas]
        axes[1].plot(gammas, points, "ks", markerfacecolor="none")
        axes[1].set(xlabel="gamma", ylabel=cost, ylim=(0, None))
    figures.legend(figure)
    return figure


def _steps(results: Results) -> int:
    return results.where(formulation="mip")[0].spec.training.steps


def claims(results: Results) -> list[Claim]:
    """Claims that the hypernetwork is at least as good at every gamma: no lower by the margin."""
    gammas, budgets = _gammas(results), _budgets(results)
    texts = (
        f"at equal compute ({_steps(results)} steps against {len(gammas)} plain networks with "
        f"{budgets[0]} steps each) one hypernetwork is at least as good at every gamma",
        "one hypernetwork is at least as good at every gamma as plain networks that together have "
        f"{len(gammas)} times its compute",
    )
    guesses = (
        "in so few steps the hypernetwork has not learned what all gammas have in common",
        "each plain network trains for its one gamma as long as the hypernetwork for all",
    )
    metric = results.groups[0].metric
    found = []
    for method in METHODS:
        for steps, text, guess in zip(budgets, texts, guesses, strict=True):
            parts, verdicts = [], []
            one = _best(results, method)
            for gamma in gammas:
                plain = _separate(results, gamma, steps)
                own = {run.seed: _at(run, gamma) for run in one.runs}
                shared = [run for run in plain.runs if run.seed in own]
                lead = Interval.difference(
                    [own[run.seed] for run in shared], [judging.final(run) for run in shared]
                )
                verdict = judging.testable(one, plain, lead.at_least(-judging.margin(one)))
                verdicts.append(verdict)
                means = (_together(one, gamma), plain.final)
                shown = " and ".join(each.text(metric.digits) for each in means)
                parts.append(
                    f"{gamma:g}: {shown}, difference {lead.text(metric.digits, '+')} ({verdict})"
                )
            measured = (
                f"{counted(verdicts)}; test {metric.heading} by gamma, hypernetwork and plain "
                f"network: {'; '.join(parts)}"
            )
            found.append(Claim(BEYOND, f"{text} ({method})", measured, every(verdicts), guess))
    return [*found, *_against_controls(results)]


def _against_controls(results: Results) -> list[Claim]:
    """Claims that the hypernetworks do better, on average over gammas, than each control."""
    return [
        judging.better(
            BEYOND,
            f"one hypernetwork ends higher than {name}, trained for all gammas in as many steps "
            f"({method})",
            one,
            control,
            "this task can be solved by weights that do not depend on gamma",
            names=(method, name),
        )
        for method in METHODS
        for one in [_best(results, method)]
        for name, control in _controls(results).items()
    ]


def tables(results: Results) -> list[Table]:
    """Hypernetworks, controls and plain networks at every gamma of the plain networks."""
    digits = results.groups[0].metric.digits
    budgets = _budgets(results)
    all_gammas = {method: _best(results, method) for method in METHODS} | _controls(results)
    rows = [
        [gamma]
        + [_together(group, gamma).text(digits) for group in all_gammas.values()]
        + [_separate(results, gamma, steps).final.text(digits) for steps in budgets]
        for gamma in _gammas(results)
    ]
    heading = ["gamma", *all_gammas, *(f"plain network, {steps} steps each" for steps in budgets)]
    return [Table("One for all against one for each", heading, rows)]
