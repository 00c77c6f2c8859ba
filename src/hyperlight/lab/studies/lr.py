"""Sections A.2 to A.4: the search over learning rates, with both optimizers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .. import figures
from ..comparison import counted, every, opposite, several
from ..engine import Spec
from ..summary import Claim
from . import drawing, fig4b, judging, settings
from .base import Group, Results, Setup, Study, Table, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ADAM_RATES = (1e-4, 3e-4, 1e-3, 3e-3)  # the range of A.2 to A.4


def specs(setup: Setup) -> list[Spec]:
    seeds = setup.replicas

    def search(base: Spec, optimizer: str, rates: Sequence[float]) -> list[Spec]:
        if setup.size == "smoke":
            rates = (base.training.lr, rates[-1])
        return grid(base, seeds=seeds, training={"optimizer": [optimizer], "lr": rates})

    bayes, scale = settings.bayes(setup), settings.scale_segmentation(setup)
    some: Sequence[float] = ADAM_RATES
    if setup.size == "cpu":
        some = (1e-4, 1e-3, 3e-3)
    return [
        *search(bayes, "adam", ADAM_RATES),
        *search(bayes, "sgd", ADAM_RATES),
        *settings.registration(setup),
        *search(scale, "adamw", some),
        *search(scale, "sgd", some),
    ]


def _blocks(results: Results) -> list[tuple[str, str]]:
    """Pairs of task and optimizer."""
    found = [(g.spec.task, g.spec.training.optimizer) for g in results]
    return list(dict.fromkeys(found))


def _curve(results: Results, task: str, optimizer: str, formulation: str) -> list[Group]:
    """The groups of one line, sorted by rate."""
    found = results.where(task=task, optimizer=optimizer, formulation=formulation)
    return sorted(found, key=lambda group: group.spec.training.lr)


def draw(results: Results) -> Figure:
    blocks = _blocks(results)
    figure, axes = figures.panels(2, -(-len(blocks) // 2), height=2.8)
    for ax, (task, optimizer) in zip(axes, blocks, strict=False):
        for formulation in ("classical", "mip"):
            groups = _curve(results, task, optimizer, formulation)
            rates = [group.spec.training.lr for group in groups]
            rows = [group.final for group in groups]
            figures.band(ax, rates, rows, formulation, label=drawing.name(groups[0]), marker="o")
        metric = groups[0].metric
        ax.set_xscale("log")
        title = f"{drawing.NAMES[task]}, {drawing.NAMES[optimizer]}"
        ax.set(xlabel="learning rate", ylabel=f"test {metric.heading}", title=title)
        if metric.unit == "%":
            ax.set_ylim(0, 102)
    for ax in axes[len(blocks) :]:
        ax.set_visible(False)
    axes[0].legend(frameon=False)
    return figure


def _pairs(
    results: Results, task: str, optimizer: str
) -> Iterable[tuple[str, tuple[Group, Group]]]:
    for group in _curve(results, task, optimizer, "mip"):
        rate = group.spec.training.lr
        yield f"{rate:g}", results.pair(task=task, optimizer=optimizer, lr=rate)


def claims(results: Results) -> list[Claim]:
    found = []
    for task, optimizer in _blocks(results):
        where = f"{drawing.NAMES[task]}, {drawing.NAMES[optimizer]}"
        if (task, optimizer) == ("hypermorph", "sgd"):
            found += _registration_with_sgd(results)
            continue
        source, text = {
            "bayes": (
                "section A.2",
                "we found consistent results with the ones we report using learning rates in the "
                "range 1e-4 to 3e-3",
            ),
            "hypermorph": (
                "section A.3",
                "we found that learning rates from 1e-4 to 3e-3 lead to similar convergence "
                "results",
            ),
            "scale_space": (
                "section A.4",
                "we found consistent results with the ones we report using learning rates in the "
                "range 1e-4 to 3e-3",
            ),
        }[task]
        guess = (
            "in few steps the smallest rate does not get far, and the largest is too large for "
            "MIP, whose predictions move many times as far as the rate says (see the study "
            "'rates')"
        )
        pairs = list(_pairs(results, task, optimizer))
        found.append(judging.races(source, f"{text} ({where})", pairs, guess))
    return found


def _registration_with_sgd(results: Results) -> list[Claim]:
    classical, mip = (
        _curve(results, "hypermorph", "sgd", formulation) for formulation in ("classical", "mip")
    )

    learned, failed = (
        [fig4b.trained(group) for group in mip],
        [opposite(fig4b.trained(group)) for group in classical],
    )
    text = "; ".join(
        f"{a.spec.training.lr:g}: {a.final.text(3)} and {b.final.text(3)}"
        for a, b in zip(mip, classical, strict=True)
    )
    measured = (
        f"final Dice of MIP and classical by rate ({fig4b.before(mip[0]):.3f} before "
        f"registration): {text}"
    )
    return [
        Claim(
            "sections 6.2 and A.3",
            "with SGD, for all choices of learning rate the classical hypernetwork failed to "
            "converge",
            f"{measured}; it fails: {counted(failed)}",
            every(failed) if "holds" in learned else "not testable",
        ),
        Claim(
            "sections 6.2 and A.3",
            "with SGD, MIP converged for a large range of values",
            f"{measured}; it learns: {counted(learned)}",
            several(learned),
            "few steps are not enough at small rates",
        ),
    ]


def tables(results: Results) -> list[Table]:
    """Best rate of every task, optimizer and formulation; final metric at every rate."""
    rows = []
    for task, optimizer in _blocks(results):
        for formulation in ("classical", "mip"):
            groups = _curve(results, task, optimizer, formulation)
            best = drawing.best(groups)
            final = best.final.text(best.metric.digits)
            names = [drawing.NAMES[key] for key in (task, optimizer, formulation)]
            rows.append([*names, f"{best.spec.training.lr:g}", final])
    heading = ["task", "optimizer", "", "best rate", "final metric"]
    every = drawing.finals(results, ["task", "optimizer", "lr"], "Every rate")
    return [Table("Best rates", heading, rows), every]


STUDY = Study(
    name="lr",
    title="Learning rates",
    source="sections A.2 to A.4",
    caption="Final test metric over the learning rate, classical against MIP, by task and "
    "optimizer. Mean and standard deviation over seeds.",
    specs=specs,
    draw=draw,
    claims=claims,
    tables=tables,
    reduced=settings.reduced("bayes", "hypermorph", "scale_segmentation"),
)
