"""Figure 8: activation functions of the hypernetwork, classical against MIP."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..engine import Spec
from ..summary import Claim
from . import drawing, settings
from .base import Group, Results, Setup, Study, Table, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "section 6.3 and B.2, figure 8"


def specs(setup: Setup) -> list[Spec]:
    names = ["leaky_relu", "tanh", "gelu", "silu"]
    axes = {"activation": names[:2] if setup.size == "smoke" else names}
    return grid(settings.bayes_brief(setup), seeds=settings.seeds(setup), config=axes)


def draw(results: Results) -> Figure:
    blocks = [
        (drawing.NAMES[name], results.where(activation=name))
        for name in results.values("activation")
    ]
    return drawing.matrix(blocks, len(blocks), loss=True)


def _pairs(results: Results) -> Iterable[tuple[str, tuple[Group, Group]]]:
    for name in results.values("activation"):
        yield drawing.NAMES[name], results.pair(activation=name)


def claims(results: Results) -> list[Claim]:
    ratios = {title: drawing.Race.of(*pair).ratio for title, pair in _pairs(results)}
    relu, *others = ratios.values()
    return [
        drawing.races(
            SOURCE,
            "MIP consistently helps for all choices of nonlinear activation function",
            _pairs(results),
        ),
        Claim(
            SOURCE,
            "the improvements are similar to those of the LeakyReLU models",
            "steps of classical over steps of MIP, to 95 % of classical's improvement: "
            + ", ".join(f"{ratio:.1f} ({title})" for title, ratio in ratios.items()),
            all(0.5 * relu <= ratio <= 2.0 * relu for ratio in others),
        ),
    ]


def tables(results: Results) -> list[Table]:
    return [drawing.finals(results, ["activation"], "Final accuracy by activation")]


STUDY = Study(
    name="fig8",
    title="Activation functions",
    source=SOURCE,
    caption="Test loss (above) and test accuracy over steps for hypernetworks with LeakyReLU, "
    "Tanh, GELU and SiLU, classical against MIP. Bayesian networks with Adam. Mean and standard "
    "deviation over seeds.",
    specs=specs,
    draw=draw,
    claims=claims,
    tables=tables,
    reduced=settings.reduced("bayes_brief"),
)
