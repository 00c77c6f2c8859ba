"""Figure 6: width and depth of the hypernetwork, classical against MIP."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..engine import Spec
from ..summary import Claim
from . import drawing, judging, settings
from .base import Group, Results, Setup, Study, Table, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "section 6.3 and B.1, figure 6"
WIDTHS = ("16", "128", "exp")


def layers(width: str, depth: int) -> tuple[int, ...]:
    r"""Widths of the hidden layers; ``depth`` is their number, as in the paper.

    Layers of width ``"exp"`` have :math:`16 \cdot 2^n` neurons, n = 1, 2, ...
    """
    if width == "exp":
        return tuple(16 * 2**n for n in range(1, depth + 1))
    return (int(width),) * depth


def depths(setup: Setup) -> list[int]:
    """Numbers of hidden layers."""
    return [3] if setup.size == "smoke" else [3, 4, 5]


def architectures(setup: Setup) -> dict[tuple[int, ...], str]:
    """Hidden layers of all architectures, with their names."""
    return {
        layers(width, depth): f"depth {depth}, width {width}"
        for depth in depths(setup)
        for width in (WIDTHS[::2] if setup.size == "smoke" else WIDTHS)
    }


NAMES = architectures(Setup("paper"))


def specs(setup: Setup) -> list[Spec]:
    axes = {"hidden": list(architectures(setup))}
    return grid(settings.architectures(setup), seeds=setup.replicas, config=axes)


def draw(results: Results) -> Figure:
    blocks = [(NAMES[hidden], results.where(hidden=hidden)) for hidden in results.values("hidden")]
    return drawing.matrix(blocks, min(len(blocks), len(WIDTHS)))


def _pairs(results: Results) -> Iterable[tuple[str, tuple[Group, Group]]]:
    for hidden in results.values("hidden"):
        yield NAMES[hidden], results.pair(hidden=hidden)


def claims(results: Results) -> list[Claim]:
    return [
        judging.races(
            SOURCE,
            "MIP models converge faster without sacrificing final model accuracy, for all tested "
            "hypernetwork architectures",
            _pairs(results),
            ending="level",
        )
    ]


def tables(results: Results) -> list[Table]:
    return [drawing.finals(results, ["hidden"], "Final Dice by architecture")]


STUDY = Study(
    name="fig6",
    title="Width and depth of the hypernetwork",
    source=SOURCE,
    caption="Mean test Dice over five gammas, by step, for hypernetworks with 3, 4 and 5 hidden "
    "layers of 16, 128 or 32, 64, 128, ... neurons (exp). Classical against MIP, with Adam. Mean "
    "and standard deviation over seeds.",
    specs=specs,
    draw=draw,
    claims=claims,
    tables=tables,
    reduced=settings.reduced("architectures"),
)
