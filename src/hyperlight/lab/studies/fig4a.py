"""Figure 4a: Bayesian networks on MNIST, default against MIP, Adam and SGD."""

from __future__ import annotations

from matplotlib.figure import Figure

from ..engine import Spec
from ..summary import Claim
from . import drawing, settings
from .base import Place, Results, Study, grid

OPTIMIZERS = ("adam", "sgd")


def specs(place: Place) -> list[Spec]:
    base = settings.bayes(place)
    return grid(base, seeds=settings.seeds(place), training={"optimizer": OPTIMIZERS})


def draw(results: Results) -> Figure:
    return drawing.convergence(
        [(name.upper(), results.where(optimizer=name)) for name in OPTIMIZERS]
    )


def claims(results: Results) -> list[Claim]:
    found = []
    for name in OPTIMIZERS:
        classical, mip = (results.one(optimizer=name, formulation=f) for f in ("classical", "mip"))
        found.append(
            drawing.faster(
                "section 6.2, figure 4a",
                f"MIP results in better loss and higher accuracy sooner ({name})",
                mip,
                classical,
            )
        )
    classical, mip = (results.one(optimizer="adam", formulation=f) for f in ("classical", "mip"))
    ours, theirs = (
        sum(s.std for s in group.figure()[1:]) / len(group.steps[1:]) for group in (mip, classical)
    )
    found.append(
        Claim(
            "section 6.2, figure 4a",
            "MIP has substantially reduced variance across network initializations (adam)",
            f"standard deviation of the test accuracy over seeds, mean over steps: {ours:.2f} "
            f"(MIP), {theirs:.2f}",
            ours < 0.8 * theirs,
        )
    )
    return found


STUDY = Study(
    name="fig4a",
    title="Bayesian networks on MNIST",
    source="section 6.2, figure 4a",
    specs=specs,
    draw=draw,
    claims=claims,
    reduced=settings.REDUCED["bayes"],
)
