"""Figure 1a: scale of the predicted weights along gamma, before and after training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .. import figures
from ..engine import Spec
from ..summary import Claim
from . import drawing, settings
from .base import Group, Results, Setup, Study, Table, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The scale is steady below this variation, as in the verdict of hl.scale_profile.
STEADY = 0.2
FOLLOWS = 0.8


def specs(setup: Setup) -> list[Spec]:
    base = settings.bayes(setup)
    return grid(base, seeds=settings.seeds(setup), training={"optimizer": ["adam"]})


def draw(results: Results) -> Figure:
    return figures.scales([run for group in results for run in group.runs])


def _mean(group: Group, when: str, name: str) -> float:
    found: list[float] = [getattr(getattr(run, when), name) for run in group.runs]
    return sum(found) / len(found)


def _text(group: Group, when: str) -> str:
    if math.isnan(_mean(group, when, "variation")):
        return "diverged"
    return (
        f"varies along gamma by {100 * _mean(group, when, 'variation'):.1f} % of its mean, "
        f"correlation with gamma {_mean(group, when, 'correlation'):.2f}"
    )


def claims(results: Results) -> list[Claim]:
    mip, classical = results.pair()
    found = [
        Claim(
            "figure 1a",
            "with the classical formulation, the scale of the predicted parameters is directly "
            f"proportional to the scale of the hypernetwork input {words}",
            _text(classical, when),
            None
            if math.isnan(_mean(classical, when, "variation"))
            else _mean(classical, when, "correlation") >= FOLLOWS
            and _mean(classical, when, "variation") >= STEADY,
            guess,
        )
        for when, words, guess in (
            ("initial", "at initialization", ""),
            (
                "final",
                "even after training the model",
                "the biases of the hypernetwork, which start at zero, have grown to compensate",
            ),
        )
    ]
    found.append(
        Claim(
            "section 6.1, figure 1a",
            "MIP parametrizations lead to a weight distribution that is robust to the input, both "
            "at the start and end of training",
            f"before training: {_text(mip, 'initial')}; after: {_text(mip, 'final')}",
            None
            if math.isnan(_mean(mip, "final", "variation"))
            else all(_mean(mip, when, "variation") < STEADY for when in ("initial", "final")),
        )
    )
    return found


def tables(results: Results) -> list[Table]:
    rows = [
        [drawing.name(group), run.seed, when, float(gamma), float(std)]
        for group in results
        for run in group.runs
        for when, profile in (("start", run.initial), ("end", run.final))
        if profile is not None
        for gamma, std in zip(profile.gamma, profile.std, strict=True)
    ]
    heading = ["formulation", "seed", "when", "gamma", "std of predicted weights"]
    return [Table("Scale along gamma", heading, rows, shown=False)]


STUDY = Study(
    name="fig1a",
    title="The proportionality issue",
    source="section 1, figure 1a",
    caption="Standard deviation of all predicted weights along gamma before and after training. "
    "Bayesian networks on MNIST with Adam; mean and standard deviation over seeds.",
    specs=specs,
    draw=draw,
    claims=claims,
    tables=tables,
    reduced=settings.reduced("bayes"),
)
