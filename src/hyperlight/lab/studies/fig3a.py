"""Figure 3a: distributions of the weights at initialisation, for several values of gamma."""

from __future__ import annotations

from ..summary import Claim
from . import fig3
from .base import Results, Study

SOURCE = "section 6.1, figure 3a"


def claims(results: Results) -> list[Claim]:
    return fig3.claims(results, SOURCE, "the weights")


STUDY = Study(
    name="fig3a",
    title="Distributions of weights",
    source=SOURCE,
    caption="Densities (KDE) of the weights of the first, a middle and the last layer at "
    "initialisation, default above, MIP below, a line for every gamma, darker for larger "
    "ones; dashed the plain network of the same architecture. LeNet on MNIST, all seeds together.",
    measure=fig3.weights,
    draw=fig3.draw,
    claims=claims,
    tables=fig3.tables,
    reduced={"smoke": "scikit-learn's digits, a smaller hypernetwork"},
)
