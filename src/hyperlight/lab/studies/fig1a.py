"""Figure 1a: scale of the predicted weights along gamma, before and after training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import figures
from ..comparison import Verdict, every
from ..engine import Spec
from ..summary import Claim, correlation, follows, steady, variation
from . import drawing, settings
from .base import Group, Results, Setup, Study, Table, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def specs(setup: Setup) -> list[Spec]:
    base = settings.bayes(setup)
    return grid(base, seeds=setup.replicas, training={"optimizer": ["adam"]})


def draw(results: Results) -> Figure:
    return figures.scales([run for group in results for run in group.runs])


def _text(group: Group, when: str) -> str:
    if group.diverged and when == "final":
        return "diverged"
    varies, follows = (of(group.runs, when) for of in (variation, correlation))
    return (
        f"varies along gamma by {100 * varies.mean:.1f} % of its mean, correlation with gamma "
        f"{follows.text(2)}"
    )


def _judged(group: Group, verdict: Verdict) -> Verdict:
    """Diverged runs have no scale after training."""
    return "not testable" if group.diverged else verdict


def claims(results: Results) -> list[Claim]:
    mip, classical = results.pair()
    both = [steady(mip.runs, when) for when in ("initial", "final")]
    return [
        Claim(
            "section 6.1, figure 1a",
            "with the classical formulation, the scale of the weights correlates linearly with the "
            "value of the hypernetwork input at initialization",
            _text(classical, "initial"),
            follows(classical.runs, "initial"),
        ),
        Claim(
            "section 6.1, figure 1a",
            "this correlation is still present after the training process ends",
            _text(classical, "final"),
            _judged(classical, follows(classical.runs, "final")),
        ),
        Claim(
            "section 6.1, figure 1a",
            "MIP parametrizations lead to a weight distribution that is robust to the input, both "
            "at the start and end of training",
            f"before training: {_text(mip, 'initial')}; after: {_text(mip, 'final')}",
            _judged(mip, every(both)),
        ),
    ]


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
