"""Figure 8: activation functions of the hypernetwork, classical against MIP."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..comparison import Interval, Verdict, counted, every
from ..engine import Spec
from ..summary import Claim
from . import drawing, judging, settings
from .base import Group, Results, Setup, Study, Table, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "section 6.3 and B.2, figure 8"


def specs(setup: Setup) -> list[Spec]:
    names = ["leaky_relu", "tanh", "gelu", "silu"]
    axes = {"activation": names[:2] if setup.size == "smoke" else names}
    return grid(settings.bayes_brief(setup), seeds=setup.replicas, config=axes)


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
    found = {
        title: judging.Race.of(mip, other, floor=judging.floor(other))
        for title, (mip, other) in _pairs(results)
    }
    relu, *others = found.values()
    verdicts = [_similar(race, relu) for race in others]
    return [
        judging.races(
            SOURCE,
            "MIP consistently helps for all choices of nonlinear activation function",
            _pairs(results),
        ),
        Claim(
            SOURCE,
            "the improvements are similar to those of the LeakyReLU models",
            "steps of classical over steps of MIP, to 95 % of classical's improvement: "
            + ", ".join(f"{race.ratio_text()} ({title})" for title, race in found.items())
            + f"; within a factor of two of LeakyReLU: {counted(verdicts)} (not testable where MIP "
            "gets there by the first evaluation)",
            every(verdicts),
        ),
    ]


def _similar(race: judging.Race, other: judging.Race) -> Verdict:
    """Whether two ratios are within a factor of two of each other."""
    if race.censored or other.censored or "not testable" in (race.faster(), other.faster()):
        return "not testable"
    return Interval.ratio(race.factors, other.factors).within(0.5, 2.0)


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
