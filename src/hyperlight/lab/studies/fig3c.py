"""Figure 3c: gradient norm of the predicted weights in early training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..engine import Spec
from ..figures import band, panels
from ..summary import Claim, Spread
from . import drawing, settings
from .base import Group, Results, Setup, Study, Table, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTIMIZERS = ("adam", "sgd")
EPOCH = 375  # steps: MNIST's 48,000 training images in batches of 128
PARTS = 25


def specs(setup: Setup) -> list[Spec]:
    base = settings.bayes(setup)
    return grid(base, seeds=settings.seeds(setup), training={"optimizer": OPTIMIZERS})


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


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def claims(results: Results) -> list[Claim]:
    found = []
    for optimizer in OPTIMIZERS:
        mip, classical = (_stretches(group)[1] for group in results.pair(optimizer=optimizer))
        size = [_mean([row.mean for row in rows]) for rows in (mip, classical)]
        std = [_mean([row.std for row in rows]) for rows in (mip, classical)]
        swing = [_mean([row.std / row.mean for row in rows]) for rows in (mip, classical)]
        finite = all(map(math.isfinite, (*std, *size)))
        where = drawing.NAMES[optimizer]
        found += [
            Claim(
                "section 6.1, figure 3c",
                f"MIP leads to a substantially smaller variance of the gradient norm ({where})",
                "standard deviation across the minibatches of a stretch of training: "
                f"{std[0]:.3g} (MIP), {std[1]:.3g} (classical), which is {100 * swing[0]:.0f} % "
                f"and {100 * swing[1]:.0f} % of the mean of that stretch",
                std[0] < 0.8 * std[1] if finite else None,
                "MIP learns most of the task within this epoch while classical has hardly begun, "
                "so the two are compared in different phases of training",
            ),
            Claim(
                "figure 3c",
                f"MIP leads to a substantially smaller gradient norm ({where})",
                f"mean gradient norm of the first epoch: {size[0]:.3g} (MIP), {size[1]:.3g} "
                "(classical)",
                size[0] < 0.8 * size[1] if finite else None,
                "classical predicts small weights for small gamma, and a network with small "
                "weights has small gradients",
            ),
        ]
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
