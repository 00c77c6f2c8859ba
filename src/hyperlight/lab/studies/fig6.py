"""Figure 6: width and depth of the hypernetwork, default against MIP."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..engine import Spec
from ..summary import Claim
from . import drawing, settings
from .base import Group, Place, Results, Study, Table, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "section 6.3 and B.1, figure 6"
WIDTHS = ("16", "128", "exp")


def layers(width: str, depth: int) -> tuple[int, ...]:
    r"""The hidden layers of a hypernetwork, of which the paper counts the depth.

    Exponentially growing ones have :math:`16 \cdot 2^n` neurons, n = 1, 2, ...
    """
    if width == "exp":
        return tuple(16 * 2**n for n in range(1, depth + 1))
    return (int(width),) * depth


def depths(place: Place) -> list[int]:
    """The numbers of hidden layers."""
    return [3] if place.size == "smoke" else [3, 4, 5]


def architectures(place: Place) -> dict[tuple[int, ...], str]:
    """All of them with their names, one depth after another."""
    return {
        layers(width, depth): f"depth {depth}, width {width}"
        for depth in depths(place)
        for width in (WIDTHS[::2] if place.size == "smoke" else WIDTHS)
    }


NAMES = architectures(Place("paper"))


def specs(place: Place) -> list[Spec]:
    axes = {"hidden": list(architectures(place))}
    return grid(settings.architectures(place), seeds=settings.seeds(place), config=axes)


def draw(results: Results) -> Figure:
    blocks = [(NAMES[hidden], results.where(hidden=hidden)) for hidden in results.values("hidden")]
    return drawing.matrix(blocks, min(len(blocks), len(WIDTHS)))


def _pairs(results: Results) -> Iterable[tuple[str, tuple[Group, Group]]]:
    for hidden in results.values("hidden"):
        yield NAMES[hidden], results.pair(hidden=hidden)


def claims(results: Results) -> list[Claim]:
    return [
        drawing.races(
            SOURCE,
            "MIP models converge faster without sacrificing final model accuracy, for all tested "
            "hypernetwork architectures",
            _pairs(results),
        )
    ]


def tables(results: Results) -> list[Table]:
    return [drawing.finals(results, ["hidden"], "Dice in the end by architecture")]


STUDY = Study(
    name="fig6",
    title="Width and depth of the hypernetwork",
    source=SOURCE,
    caption="Mean test Dice over five gammas, over steps, for hypernetworks with 3, 4 and 5 hidden "
    "layers of 16, 128 or 32, 64, 128, ... neurons (exp), with Adam. Mean and standard "
    "deviation over seeds.",
    specs=specs,
    draw=draw,
    claims=claims,
    tables=tables,
    reduced=settings.reduced("architectures"),
)
