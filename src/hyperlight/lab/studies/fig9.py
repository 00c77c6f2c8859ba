"""Figure 9: 1 to 32 inputs, uniform and Gaussian, classical against MIP."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..comparison import Interval
from ..engine import Spec
from ..summary import Claim
from . import drawing, judging, settings
from .base import Group, Results, Setup, Study, Table, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PRIORS = ("uniform", "normal")
SOURCE = "section 6.3 and B.3, figure 9"
GUESS = (
    "with every input encoded separately, the encoding of d inputs has norm sqrt(d): predicted "
    "changes grow with the number of inputs and become too large (see the study 'dimension')"
)


def dimensions(setup: Setup) -> list[int]:
    """Numbers of inputs: the paper's, or only the smallest and largest."""
    return [1, 32] if setup.size == "smoke" else [1, 2, 4, 8, 16, 32]


def specs(setup: Setup) -> list[Spec]:
    axes = {"prior": PRIORS, "dimensions": dimensions(setup)}
    return grid(settings.bayes_brief(setup), seeds=setup.replicas, config=axes)


def blocks(results: Results, prior: str) -> list[tuple[str, list[Group]]]:
    """Title and groups for every number of inputs."""
    return [
        (f"{drawing.NAMES[prior]}, {count} input{'s'[: count > 1]}", groups)
        for count in results.values("dimensions")
        if (groups := results.where(prior=prior, dimensions=count))
    ]


def draw(results: Results) -> Figure:
    found = [block for prior in PRIORS for block in blocks(results, prior)]
    return drawing.matrix(found, min(3, len(results.values("dimensions"))), loss=True)


def pairs(results: Results, prior: str) -> Iterable[tuple[str, tuple[Group, Group]]]:
    """MIP and classical for every number of inputs."""
    for count in results.values("dimensions"):
        yield f"{count}", results.pair(prior=prior, dimensions=count)


def gap(source: str, results: Results, prior: str) -> Claim:
    """Claim that MIP leads by as much with the most inputs as with one."""
    counts = results.values("dimensions")
    few, many = (
        results.pair(prior=prior, dimensions=count) for count in (min(counts), max(counts))
    )
    leads = [
        [a - b for a, b in zip(*judging.paired(*pair, judging.mean_over_training), strict=True)]
        for pair in (few, many)
    ]
    change = Interval.difference(leads[1], leads[0])
    verdict = change.at_least(-judging.margin(few[0]))
    for pair in (few, many):
        verdict = judging.testable(*pair, verdict)
    metric = few[0].metric
    means = [metric.text(statistics.fmean(each)) for each in leads]
    return Claim(
        source,
        "the gap between MIP and the classical parametrization does not diminish as the number of "
        f"input dimensions grows ({drawing.NAMES[prior]})",
        f"lead of MIP in test {metric.name}, mean over training: {means[0]} with {min(counts)} "
        f"input, {means[1]} with {max(counts)}, change {change.text(metric.digits, '+')}",
        verdict,
        GUESS,
    )


def claims(results: Results) -> list[Claim]:
    found = [
        judging.races(
            SOURCE,
            "MIP leads to improvements in model convergence and final model accuracy for all "
            f"number of input dimensions ({drawing.NAMES[prior]})",
            pairs(results, prior),
            GUESS,
            ending="higher",
        )
        for prior in PRIORS
    ]
    return [*found, *(gap(SOURCE, results, prior) for prior in PRIORS)]


def tables(results: Results) -> list[Table]:
    return [drawing.finals(results, ["prior", "dimensions"], "Final accuracy by inputs")]


STUDY = Study(
    name="fig9",
    title="Number of input dimensions",
    source=SOURCE,
    caption="Test loss (above each) and test accuracy over steps for 1 to 32 inputs, uniform and "
    "Gaussian, classical against MIP, with Adam. Every input is encoded separately, as in the "
    "paper. Mean and standard deviation over seeds.",
    specs=specs,
    draw=draw,
    claims=claims,
    tables=tables,
    reduced=settings.reduced("bayes_brief"),
)
