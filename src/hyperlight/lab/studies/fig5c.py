"""Figure 5c: 1 to 32 Gaussian inputs, classical against MIP; a subset of figure 9's runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..engine import Spec
from ..summary import Claim
from . import drawing, fig9, judging, settings
from .base import Results, Setup, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The prior of section 5.1; the paper does not give that of the figure.
PRIOR = "normal"
SOURCE = "section 6.3, figure 5c"


def specs(setup: Setup) -> list[Spec]:
    return [spec for spec in fig9.specs(setup) if spec.config.prior == PRIOR]


def draw(results: Results) -> Figure:
    return drawing.matrix(fig9.blocks(results, PRIOR), 3)


def claims(results: Results) -> list[Claim]:
    return [
        judging.sooner(
            SOURCE,
            "MIP leads to improvements in model convergence and final model accuracy as we "
            f"increase the dimension of the hypernetwork input (inputs: {count})",
            *pair,
            fig9.GUESS,
            ending="higher",
        )
        for count, pair in fig9.pairs(results, PRIOR)
    ]


STUDY = Study(
    name="fig5c",
    title="Input dimensionality",
    source=SOURCE,
    caption="Test accuracy over steps for 1 to 32 Gaussian inputs, classical against MIP, with "
    "Adam. Mean and standard deviation over seeds.",
    specs=specs,
    draw=draw,
    claims=claims,
    reduced=settings.reduced("bayes_brief"),
)
