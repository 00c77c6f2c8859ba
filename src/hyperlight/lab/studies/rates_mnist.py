"""Beyond the paper: four ways of making weights at every learning rate, in one panel.

A part of the study ``rates`` (LeNet, one input, Adam), with the classical formulation beside it. It
is the figure of the README.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from .. import figures
from ..comparison import Verdict, every
from ..engine import Spec
from ..summary import BEYOND, Claim
from ..tasks.base import Formulation
from . import drawing, judging, settings
from .base import Group, Results, Setup, Study, Table, grid
from .rates import GOOD, GROUPS, MIP, PLAIN, RATES, Cell, made, start_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Formulation, rule for the rates, and colour of each line.
LINES: dict[str, tuple[Formulation, str, str]] = {
    "classical": ("classical", "same", "#d55e00"),
    MIP: ("mip", "same", "#0072b2"),
    "ours": ("mip", "groups", "#cc79a7"),
    PLAIN: ("plain", "same", "black"),
}


def specs(setup: Setup) -> list[Spec]:
    cell = Cell("lenet", hidden=(4, 8)) if setup.size == "smoke" else Cell("lenet")
    common = start_of(setup, "lenet")
    classical = dataclasses.replace(
        common, config=dataclasses.replace(common.config, hidden=cell.hidden)
    )
    starts = {
        "classical": classical,
        MIP: made(setup, cell, MIP),
        "ours": made(setup, cell, GROUPS),
        PLAIN: common,
    }
    found: list[Spec] = []
    for name, (formulation, _, _) in LINES.items():
        found += grid(
            starts[name],
            seeds=setup.replicas,
            formulations=[formulation],
            training={"lr": (1e-3, 1e-1) if setup.size == "smoke" else RATES},
        )
    return found


def _line(results: Results, name: str) -> list[Group]:
    """The groups of a line, by rate."""
    formulation, rule, _ = LINES[name]
    found = results.where(formulation=formulation, rates=rule)
    return sorted(found, key=lambda group: group.spec.training.lr)


def draw(results: Results) -> Figure:
    """Draw the final test accuracy over the learning rate."""
    figure, (ax,) = figures.panels(1, width=7.0, height=3.4)
    for name, (_, _, color) in LINES.items():
        groups = _line(results, name)
        rates = [group.spec.training.lr for group in groups]
        style = "--" if name == PLAIN else "-"
        finals = [group.final for group in groups]
        look = {"color": color, "linestyle": style, "marker": "."}
        figures.band(ax, rates, finals, "mip", label=name, **look)
    ax.set(xscale="log", xlabel="learning rate", ylabel="test accuracy (%)", ylim=(0, 102))
    figures.legend(figure)
    return figure


def claims(results: Results) -> list[Claim]:
    plain = _line(results, PLAIN)
    best = drawing.worth(drawing.best(plain).final)
    floor = judging.floor(plain[0])
    good = [drawing.worth(group.final) >= floor + GOOD * (best - floor) for group in plain]
    found = []
    for name in ("classical", MIP, "ours"):
        pairs = list(zip(_line(results, name), plain, good, strict=True))
        verdicts: list[Verdict] = []
        texts = []
        for group, other, counts in pairs:
            if not counts:
                continue
            interval = judging.compare(group, other)
            verdict = interval.at_least(-judging.margin(group))
            verdicts.append(judging.testable(group, other, verdict))
            texts.append(f"{group.spec.training.lr:g}: {interval.text(1, '+')}")
        found.append(
            Claim(
                BEYOND,
                f"at every rate that is good for the plain network, {name} ends at least as good",
                f"test accuracy beside the plain network's, by rate: {', '.join(texts)}",
                every(verdicts),
                "the first step of all layers together goes farther than the rate says",
            )
        )
    return found


def tables(results: Results) -> list[Table]:
    rates = [group.spec.training.lr for group in _line(results, PLAIN)]
    rows = [[name, *(group.final.text(1) for group in _line(results, name))] for name in LINES]
    return [Table("Test accuracy by rate", ["", *(f"{rate:g}" for rate in rates)], rows)]


STUDY = Study(
    name="rates-mnist",
    title="Four ways at every learning rate",
    source=BEYOND,
    caption="Final test accuracy over the learning rate of Adam: a classical hypernetwork, MIP, "
    "ours (the library's defaults of initialisation and encoding, with hl.parameter_groups), and "
    "the plain network, whose gamma is 0.5. Mean and standard deviation over seeds.",
    specs=specs,
    draw=draw,
    claims=claims,
    tables=tables,
    reduced=settings.reduced("bayes_short"),
)
