"""Figure 4a: Bayesian networks on MNIST, classical against MIP, with Adam and SGD."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..comparison import Interval
from ..engine import Spec
from ..record import Run
from ..summary import SUBSTANTIAL, Claim
from . import drawing, judging, settings
from .base import Group, Results, Setup, Study, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTIMIZERS = ("adam", "sgd")
SOURCE = "section 6.2, figure 4a"


def specs(setup: Setup) -> list[Spec]:
    base = settings.bayes(setup)
    return grid(base, seeds=setup.replicas, training={"optimizer": OPTIMIZERS})


def draw(results: Results) -> Figure:
    return drawing.convergence(
        [(drawing.NAMES[name], results.where(optimizer=name)) for name in OPTIMIZERS]
    )


def variance(source: str, text: str, mip: Group, other: Group) -> list[Claim]:
    """Claim that MIP varies substantially less from seed to seed; no claim with a single seed."""
    seeds = min(len(mip.runs), len(other.runs))
    if seeds < 2:
        return []
    spreads = [
        sum(s.std for s in group.figure()[1:]) / len(group.steps[1:]) for group in (mip, other)
    ]
    digits = mip.metric.digits + 1
    ratio = Interval.spreads(spreads[1], spreads[0], seeds)
    return [
        Claim(
            source,
            f"{text} across network initializations",
            f"standard deviation of the test {mip.metric.heading} over {seeds} seeds, mean over "
            f"steps: {spreads[0]:.{digits}f} (MIP), {spreads[1]:.{digits}f} "
            f"({drawing.name(other)}), ratio {ratio.text(2)} (F distribution)",
            judging.testable(mip, other, ratio.above(1.0, SUBSTANTIAL)),
            "few seeds say little about a standard deviation",
        )
    ]


def spikes(run: Run, window: int = 50, times: float = 10.0) -> int:
    """Count steps whose loss lies far above those of the ``window`` steps before.

    Far is more than ``times`` their scatter above their median. The scatter is 1.4826 times the
    median distance from the median, which is the standard deviation of a normal distribution, and
    does not depend on earlier spikes.
    """
    loss = np.asarray(run.loss)
    if len(loss) <= window:
        return 0
    before = np.lib.stride_tricks.sliding_window_view(loss, window)[:-1]
    middle = np.median(before, axis=1)
    scatter = 1.4826 * np.median(np.abs(before - middle[:, None]), axis=1)
    return int((loss[window:] > middle + times * scatter).sum())


def claims(results: Results) -> list[Claim]:
    found = []
    for name, text in (
        ("adam", "MIP results in better loss and higher accuracy sooner during training (Adam)"),
        ("sgd", "we found similar results for models trained with SGD"),
    ):
        found.append(judging.sooner(SOURCE, text, *results.pair(optimizer=name)))
    mip, classical = results.pair(optimizer="adam")
    found += variance(SOURCE, "MIP also achieves substantially reduced variance", mip, classical)
    counts = judging.paired(classical, mip, lambda run: float(spikes(run)))
    more = Interval.difference(*counts)
    found.append(
        Claim(
            SOURCE,
            "the classical parametrization suffers from sporadic training instabilities (spikes "
            "in the training loss), while MIP leads to stable training (Adam)",
            "steps whose training loss is more than 10 times the scatter of the 50 steps before "
            f"above their median, of {mip.runs[0].step}: {sum(counts[1]) / len(counts[1]):.1f} "
            f"(MIP), {sum(counts[0]) / len(counts[0]):.1f} (classical), difference "
            f"{more.text(1, '+')}",
            more.above(0.0),
            "the spikes occur for gamma close to 0, late in training, when the loss of all other "
            "gammas is small",
        )
    )
    return found


STUDY = Study(
    name="fig4a",
    title="Bayesian networks on MNIST",
    source=SOURCE,
    caption="Test accuracy and training loss over steps, classical against MIP, with Adam and with "
    "SGD (Nesterov momentum). Mean and standard deviation over seeds.",
    specs=specs,
    draw=draw,
    claims=claims,
    reduced=settings.reduced("bayes"),
)
