"""Figure 3c: gradient norm of the predicted weights in early training."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..comparison import Interval, Verdict
from ..engine import Spec
from ..figures import band, panels
from ..record import Run
from ..summary import SUBSTANTIAL, Claim, Spread, swing
from . import drawing, judging, settings
from .base import Group, Results, Setup, Study, Table, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTIMIZERS = ("adam", "sgd")
EPOCH = 375  # steps: MNIST's 48,000 training images in batches of 128
PARTS = 25


def specs(setup: Setup) -> list[Spec]:
    base = settings.bayes(setup)
    return grid(base, seeds=setup.replicas, training={"optimizer": OPTIMIZERS})


def _stretches(group: Group) -> tuple[list[float], list[Spread]]:
    """Mean and standard deviation across minibatches, by stretch of the first epoch."""
    norms = np.array([run.gradient_norm[:EPOCH] for run in group.runs])
    size = max(2, norms.shape[1] // PARTS)
    starts = range(0, norms.shape[1] - size + 1, size)
    rows = []
    for start in starts:
        part = norms[:, start : start + size]
        # The standard deviation across the minibatches of each seed, not across seeds.
        rows.append(Spread(float(part.mean()), float(part.std(axis=1, ddof=1).mean())))
    return [start + (size + 1) / 2 for start in starts], rows


def draw(results: Results) -> Figure:
    figure, axes = panels(len(OPTIMIZERS))
    for ax, optimizer in zip(axes, OPTIMIZERS, strict=True):
        for group in results.where(optimizer=optimizer):
            x, rows = _stretches(group)
            band(ax, x, rows, group.spec.formulation, label=drawing.name(group))
        ax.set(
            title=drawing.NAMES[optimizer],
            xlabel="step",
            ylabel="gradient norm of predicted weights",
            ylim=(0, None),
        )
    axes[0].legend(frameon=False)
    return figure


def _norms(run: Run) -> list[float]:
    return run.gradient_norm[:EPOCH]


def _swing(run: Run) -> float:
    """Standard deviation across minibatches over the mean, within stretches of the epoch."""
    return swing(_norms(run), max(2, len(_norms(run)) // PARTS))


def _size(run: Run) -> float:
    return statistics.fmean(_norms(run))


def _more(mip: Group, classical: Group, of: Callable[[Run], float]) -> tuple[str, Verdict]:
    """How many times as much classical has, in words, and whether that is substantially more."""
    ratio = Interval.ratio(*judging.paired(classical, mip, of))
    means = [statistics.fmean(map(of, group.runs)) for group in (mip, classical)]
    verdict = ratio.above(1.0, SUBSTANTIAL)
    if not math.isfinite(ratio.mean) or judging.at_floor(classical):
        verdict = "not testable"
    return f"{means[0]:.3g} (MIP), {means[1]:.3g} (classical), ratio {ratio.text(2)}", verdict


def claims(results: Results) -> list[Claim]:
    found = []
    for optimizer in OPTIMIZERS:
        mip, classical = results.pair(optimizer=optimizer)
        where = drawing.NAMES[optimizer]
        text, verdict = _more(mip, classical, _swing)
        found.append(
            Claim(
                "section 6.1, figure 3c",
                "MIP leads to a substantially smaller variance and more stable gradient magnitude "
                f"({where})",
                "standard deviation of the gradient norm across the minibatches of a stretch of "
                f"training, as a fraction of its mean: {text}",
                verdict,
            )
        )
        text, verdict = _more(mip, classical, _size)
        found.append(
            Claim(
                "figure 3c",
                f"MIP leads to a substantially smaller gradient norm ({where})",
                f"mean gradient norm of the first epoch: {text}",
                verdict,
                "classical predicts small weights for small gamma, and a network with small "
                "weights has small gradients",
            )
        )
    return found


def tables(results: Results) -> list[Table]:
    rows = [
        [drawing.name(group), group.spec.training.optimizer, run.seed, i + 1, f"{norm:.6g}"]
        for group in results
        for run in group.runs
        for i, norm in enumerate(run.gradient_norm[:EPOCH])
    ]
    heading = ["formulation", "optimizer", "seed", "step", "gradient norm"]
    return [Table("Gradient norm by step", heading, rows, shown=False)]


STUDY = Study(
    name="fig3c",
    title="Gradients in early training",
    source="section 6.1, figure 3c",
    caption="Gradient norm with respect to the predicted weights in the first epoch, in 25 "
    "stretches: mean and standard deviation across the minibatches of each, averaged over seeds. "
    "Bayesian networks on MNIST.",
    specs=specs,
    draw=draw,
    claims=claims,
    tables=tables,
    reduced=settings.reduced("bayes"),
)
