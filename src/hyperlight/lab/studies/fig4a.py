"""Figure 4a: Bayesian networks on MNIST, default against MIP, Adam and SGD."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..engine import Spec
from ..record import Run
from ..summary import Claim
from . import drawing, settings
from .base import Group, Place, Results, Study, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTIMIZERS = ("adam", "sgd")
SOURCE = "section 6.2, figure 4a"


def specs(place: Place) -> list[Spec]:
    base = settings.bayes(place)
    return grid(base, seeds=settings.seeds(place), training={"optimizer": OPTIMIZERS})


def draw(results: Results) -> Figure:
    return drawing.convergence(
        [(drawing.NAMES[name], results.where(optimizer=name)) for name in OPTIMIZERS]
    )


def variance(source: str, text: str, mip: Group, other: Group) -> list[Claim]:
    """Whether MIP differs less from seed to seed; nothing can be said of one seed."""
    if min(len(mip.runs), len(other.runs)) < 2:
        return []
    ours, theirs = (
        sum(s.std for s in group.figure()[1:]) / len(group.steps[1:]) for group in (mip, other)
    )
    return [
        Claim(
            source,
            f"{text} across network initializations",
            f"standard deviation of the test {mip.metric.heading} over seeds, mean over steps: "
            f"{ours:.{mip.metric.digits + 1}f} (MIP), {theirs:.{mip.metric.digits + 1}f}",
            ours < 0.8 * theirs,
            "three seeds say little of a standard deviation",
        )
    ]


def spikes(run: Run, window: int = 50, times: float = 3.0) -> int:
    """Steps with more than so many times the median training loss of the window before them."""
    loss = np.asarray(run.loss)
    if len(loss) <= window:
        return 0
    before = np.lib.stride_tricks.sliding_window_view(loss, window)[:-1]
    return int((loss[window:] > times * np.median(before, axis=1)).sum())


def claims(results: Results) -> list[Claim]:
    found = []
    for name, text in (
        ("adam", "MIP results in better loss and higher accuracy sooner during training (Adam)"),
        ("sgd", "we found similar results for models trained with SGD"),
    ):
        found.append(drawing.sooner(SOURCE, text, *results.pair(optimizer=name)))
    mip, classical = results.pair(optimizer="adam")
    found += variance(SOURCE, "MIP also achieves substantially reduced variance", mip, classical)
    ours, theirs = (sum(spikes(run) for run in group.runs) for group in (mip, classical))
    steps = sum(run.step for run in mip.runs)
    found.append(
        Claim(
            SOURCE,
            "default parametrization suffers from sporadic training instabilities (spikes in the "
            "training loss), while MIP leads to stable training (Adam)",
            f"steps whose training loss is more than 3 times the median of the 50 before: {ours} "
            f"(MIP), {theirs} (default), of {steps}",
            theirs > 2 * ours,
            "the spikes come where gamma is close to 0, late in training, when the loss of all "
            "other gammas is small",
        )
    )
    return found


STUDY = Study(
    name="fig4a",
    title="Bayesian networks on MNIST",
    source=SOURCE,
    caption="Test accuracy and training loss over steps, default against MIP, with Adam and SGD "
    "with Nesterov momentum; mean and standard deviation over seeds.",
    specs=specs,
    draw=draw,
    claims=claims,
    reduced=settings.reduced("bayes"),
)
