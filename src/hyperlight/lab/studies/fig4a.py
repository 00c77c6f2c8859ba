"""Figure 4a: Bayesian networks on MNIST, classical against MIP, with Adam and SGD."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..engine import Spec
from ..record import Run
from ..summary import Claim
from . import drawing, settings
from .base import Group, Results, Setup, Study, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTIMIZERS = ("adam", "sgd")
SOURCE = "section 6.2, figure 4a"


def specs(setup: Setup) -> list[Spec]:
    base = settings.bayes(setup)
    return grid(base, seeds=settings.seeds(setup), training={"optimizer": OPTIMIZERS})


def draw(results: Results) -> Figure:
    return drawing.convergence(
        [(drawing.NAMES[name], results.where(optimizer=name)) for name in OPTIMIZERS]
    )


def variance(source: str, text: str, mip: Group, other: Group) -> list[Claim]:
    """Claim that MIP varies less from seed to seed; no claim with a single seed."""
    if min(len(mip.runs), len(other.runs)) < 2:
        return []
    spreads = [
        sum(s.std for s in group.figure()[1:]) / len(group.steps[1:]) for group in (mip, other)
    ]
    digits = mip.metric.digits + 1
    return [
        Claim(
            source,
            f"{text} across network initializations",
            f"standard deviation of the test {mip.metric.heading} over seeds, mean over steps: "
            f"{spreads[0]:.{digits}f} (MIP), {spreads[1]:.{digits}f} ({drawing.name(other)})",
            spreads[0] < 0.8 * spreads[1],
            "three seeds say little about a standard deviation",
        )
    ]


def spikes(run: Run, window: int = 50, times: float = 3.0) -> int:
    """Count steps whose loss is over ``times`` the median of the ``window`` steps before them."""
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
    found_mip, found_classical = (
        sum(spikes(run) for run in group.runs) for group in (mip, classical)
    )
    steps = sum(run.step for run in mip.runs)
    found.append(
        Claim(
            SOURCE,
            "the classical parametrization suffers from sporadic training instabilities (spikes "
            "in the training loss), while MIP leads to stable training (Adam)",
            "steps whose training loss is more than 3 times the median of the 50 steps before: "
            f"{found_mip} (MIP), {found_classical} (classical), of {steps}",
            found_classical > 2 * found_mip,
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
