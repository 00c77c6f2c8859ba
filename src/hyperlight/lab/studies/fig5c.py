"""Figure 5c: 1 to 32 Gaussian inputs, default against MIP; the runs are some of figure 9's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..engine import Spec
from ..summary import Claim
from . import drawing, fig9, settings
from .base import Place, Results, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The prior of section 5.1; the figure does not name its own.
PRIOR = "normal"
SOURCE = "section 6.3, figure 5c"


def specs(place: Place) -> list[Spec]:
    return [spec for spec in fig9.specs(place) if spec.config.prior == PRIOR]


def draw(results: Results) -> Figure:
    return drawing.matrix(fig9.blocks(results, PRIOR), 3)


def claims(results: Results) -> list[Claim]:
    return [
        drawing.races(
            SOURCE,
            "MIP leads to improvements in model convergence and final model accuracy as we "
            "increase the dimension of the hypernetwork input",
            fig9.pairs(results, PRIOR),
            "encoded one by one, d inputs have norm sqrt(d): the predicted changes grow with "
            "their number, and are too large with many (see the study 'dimension')",
        )
    ]


STUDY = Study(
    name="fig5c",
    title="Input dimensionality",
    source=SOURCE,
    caption="Test accuracy over steps for 1 to 32 Gaussian inputs, with Adam; mean and standard "
    "deviation over seeds.",
    specs=specs,
    draw=draw,
    claims=claims,
    reduced=settings.reduced("bayes_brief"),
)
