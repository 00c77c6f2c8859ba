"""Figure 1b: convergence of Bayesian networks on MNIST with Adam, classical against MIP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..engine import Spec
from ..figures import panels
from ..summary import Claim
from . import drawing, fig4a, judging, settings
from .base import Results, Setup, Study, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def specs(setup: Setup) -> list[Spec]:
    base = settings.bayes(setup)
    return grid(base, seeds=setup.replicas, training={"optimizer": ["adam"]})


def draw(results: Results) -> Figure:
    figure, (ax,) = panels(1, width=5.0)
    drawing.panel(ax, results.groups)
    ax.legend(frameon=False)
    return figure


def claims(results: Results) -> list[Claim]:
    mip, classical = results.pair()
    return [
        judging.sooner("figure 1b", "using MIP leads to faster convergence", mip, classical),
        *fig4a.variance("figure 1b", "using MIP results in reduced variance", mip, classical),
    ]


STUDY = Study(
    name="fig1b",
    title="Convergence improvements",
    source="section 1, figure 1b",
    caption="Test accuracy over steps. Bayesian networks on MNIST with Adam: the paper does not "
    "name the task of this figure, and this is the first task of its section 6. Mean and standard "
    "deviation over seeds.",
    specs=specs,
    draw=draw,
    claims=claims,
    reduced=settings.reduced("bayes"),
)
