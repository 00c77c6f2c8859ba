"""What the paper says of training without a figure: small biases, and wider primaries.

Section 3 derives the proportionality for biases at zero, and says that they stay near zero in early
training. The input of a classical hypernetwork is zero at gamma 0, so what it predicts there comes
from biases alone. Section A.3 says that more filters in the U-Net do not register better.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from .. import figures
from ..comparison import Interval, opposite
from ..engine import Spec
from ..record import Run
from ..summary import EARLY, Claim, Spread
from . import drawing, judging, registration, settings
from .base import Group, Results, Setup, Study, Table, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Biases are near zero if they alone give weights smaller than this fraction of those at gamma 1.
NEAR = 0.1


def specs(setup: Setup) -> list[Spec]:
    return [*_early(setup), *_filters(setup)]


def _early(setup: Setup) -> list[Spec]:
    """Classical Bayesian networks that stop after early training."""
    start = settings.bayes(setup, posterior_samples=2)
    steps = min(EARLY, start.training.steps)
    how = dataclasses.replace(start.training, steps=steps, evaluate_every=steps)
    start = dataclasses.replace(start, training=how)
    return grid(start, seeds=setup.replicas, formulations=["classical"])


def _filters(setup: Setup) -> list[Spec]:
    """Registration with MIP, with the usual number of filters and twice as many."""
    if setup.size == "paper":
        start, rates = settings.hypermorph(setup), [settings.hypermorph(setup).training.lr]
    else:
        # The recipe of the study `registration`, with which there is something to be gained.
        one = registration.start(setup)
        config = dataclasses.replace(one.config, **registration.MIP.settings)
        start, rates = dataclasses.replace(one, config=config), [1e-3, registration.RATE]
    channels = start.config.channels
    return grid(
        start,
        seeds=setup.replicas,
        formulations=["mip"],
        config={"channels": [channels, 2 * channels]},
        training={"lr": rates},
    )


def _networks(results: Results) -> tuple[Group, Group]:
    """Registration with few and with many filters, each at its best rate."""
    few, many = (
        drawing.best(results.where(task="hypermorph", channels=channels))
        for channels in sorted(results.values("channels"))
    )
    return few, many


def _share(run: Run) -> float:
    """Scale of the weights that biases alone predict, as a fraction of that at gamma 1."""
    if run.final is None:
        return float("nan")
    return float(run.final.std[0] / run.final.std[-1])


def _filters_of(group: Group) -> str:
    return f"{group.spec.config.channels} filters"


def draw(results: Results) -> Figure:
    figure, (scale, dice) = figures.panels(2)
    group = results.one(task="bayes")
    steps = group.spec.training.steps
    for when, color, label in (
        ("initial", "0.6", "before training"),
        ("final", figures.COLORS["classical"], f"after {steps} steps"),
    ):
        profiles = [p for p in (getattr(run, when) for run in group.runs) if p is not None]
        rows = [Spread.of(row) for row in zip(*(p.std.tolist() for p in profiles), strict=True)]
        gammas = profiles[0].gamma.tolist()
        figures.band(scale, gammas, rows, "classical", label=label, color=color)
    scale.set(xlabel="gamma", ylabel="std of predicted weights", ylim=(0, None))
    scale.set_title("classical, Bayesian networks")
    scale.legend(frameon=False)
    for one, color in zip(_networks(results), ("0.6", figures.COLORS["mip"]), strict=True):
        drawing.panel(dice, [one], "MIP, registration", label=_filters_of, color=color)
    dice.legend(frameon=False)
    return figure


def claims(results: Results) -> list[Claim]:
    early, (few, many) = results.one(task="bayes"), _networks(results)
    share = Interval.of([_share(run) for run in early.runs])
    names = [_filters_of(group) for group in (many, few)]
    more = judging.compare(many, few).above(0.0, judging.margin(few))
    return [
        Claim(
            "section 3, Further Considerations",
            "biases remain near zero during early training",
            f"after {early.spec.training.steps} steps, the weights that biases alone predict have "
            f"{share.text(3)} times the scale of the weights at gamma 1; near zero is below {NEAR}",
            "not testable" if early.diverged else share.below(NEAR),
            "Adam moves every bias by about the rate in each step, however small its gradient",
        ),
        Claim(
            "section A.3",
            "models with more convolutional filters performed no better than the described "
            "architecture",
            judging.ends(many, few, (names[0], names[1])),
            judging.testable(many, few, opposite(more)),
        ),
    ]


def tables(results: Results) -> list[Table]:
    rows = [
        [
            _filters_of(group),
            f"{group.spec.training.lr:g}",
            group.final.text(group.metric.digits),
        ]
        for group in results.where(task="hypermorph")
    ]
    return [Table("Final Dice by filters", ["", "rate", "final dice"], rows)]


STUDY = Study(
    name="statements",
    title="Statements without a figure",
    source="sections 3 and A.3",
    caption="Left: standard deviation of the weights that a classical hypernetwork predicts, along "
    "gamma; those at gamma 0 come from biases alone. Right: test Dice over steps of registration "
    "with MIP, with the usual number of filters and twice as many. Mean and standard deviation "
    "over seeds; the rate is the better one on validation pairs.",
    specs=specs,
    draw=draw,
    claims=claims,
    tables=tables,
    reduced={
        "smoke": "scikit-learn's digits, smaller networks; 20 steps of classification and 10 steps "
        "of registration",
        "cpu": "MNIST in full, 100 steps in batches of 128; registration as in the study "
        f"`registration`: {settings.SCANS} at half resolution, 96x80, instead of OASIS, a U-Net of "
        "4 levels with 16 and 32 channels (32 and 64 in the paper), 1500 steps in batches of 4; 3 "
        "seeds",
    },
)
