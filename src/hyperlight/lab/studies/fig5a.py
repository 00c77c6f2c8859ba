"""Figure 5a: normalisation strategies against classical and MIP, over time."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any

from .. import figures
from ..comparison import Interval, Verdict, counted, every, of_all, opposite
from ..engine import Spec
from ..record import Run
from ..summary import SUBSTANTIAL, Claim, shown
from . import drawing, judging, settings
from .base import Group, Results, Setup, Study, Table, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "section 6.2, figure 5a"
DETAILS = "section B.5"
# A method fails to train if it improves by less than this fraction of what classical does.
LITTLE = 0.25
# A step is substantially slower if it takes this many times as long.
SLOWER = 1.1
OPTIMIZERS = ("adamw", "sgd")
CLASSICAL, MIP = "classical", "MIP"
# Formulation, normalisation and colour by name. The strategies normalise classical.
METHODS: dict[str, tuple[str, str, str]] = {
    CLASSICAL: ("classical", "none", "#d55e00"),
    "BatchNorm-P": ("classical", "batchnorm-p", "#e69f00"),
    "LayerNorm-P": ("classical", "layernorm-p", "#009e73"),
    "LayerNorm-H": ("classical", "layernorm-h", "#cc79a7"),
    "BatchNorm-H": ("classical", "batchnorm-h", "#8a8a8a"),
    "WeightNorm": ("classical", "weightnorm", "#56b4e9"),
    MIP: ("mip", "none", "#0072b2"),
}
# Those of figure 5a; of BatchNorm-H the paper speaks in section B.5 alone.
STRATEGIES = [name for name in METHODS if name not in (CLASSICAL, "BatchNorm-H", MIP)]


def specs(setup: Setup) -> list[Spec]:
    base, seeds = settings.strategies(setup), setup.replicas
    kinds = [kind for _, kind, _ in METHODS.values()][:-1]
    found: list[Spec] = []
    for how in settings.optimizers(setup, base):
        strategies = {"normalization": kinds}
        found += grid(
            base, seeds=seeds, formulations=["classical"], config=strategies, training=how
        )
        found += grid(base, seeds=seeds, formulations=["mip"], training=how)
    return found


def _group(results: Results, method: str, optimizer: str) -> Group:
    formulation, kind, _ = METHODS[method]
    return results.one(formulation=formulation, normalization=kind, optimizer=optimizer)


def draw(results: Results) -> Figure:
    figure, axes = figures.panels(len(OPTIMIZERS))
    for ax, optimizer in zip(axes, OPTIMIZERS, strict=True):
        top = 0.0
        for method, (formulation, _, color) in METHODS.items():
            group = _group(results, method, optimizer)
            style: dict[str, Any] = {"color": color, "label": method}
            figures.band(ax, group.seconds, group.figure(), formulation, **style)
            top = max(top, *(s.mean for s in group.figure() if not math.isnan(s.mean)))
        ax.set(
            title=drawing.NAMES[optimizer],
            xlabel="seconds of training",
            ylabel=f"test {group.metric.heading}",
            ylim=(0, 1.15 * top),
        )
    figures.legend(figure)
    return figure


def claims(results: Results) -> list[Claim]:
    found = []
    for optimizer in OPTIMIZERS:
        groups = {method: _group(results, method, optimizer) for method in METHODS}
        where = drawing.NAMES[optimizer]
        ends = ", ".join(
            f"{shown(group.final, group.metric)} ({method})" for method, group in groups.items()
        )
        mip = groups[MIP]
        # Those that do not learn are beaten by any that does.
        others = {
            method: group
            for method, group in groups.items()
            if method != MIP and not (group.diverged or judging.at_floor(group))
        }
        leads = [judging.compare(mip, group).above(0.0) for group in others.values()]
        found.append(
            Claim(
                SOURCE,
                "models trained with the proposed MIP parametrization lead to better final model "
                f"accuracy than with any normalization strategy ({where})",
                f"final {mip.metric.name}: {ends}; better than those that learn: "
                f"{counted(leads) or 'none does'}",
                "refuted" if mip.diverged and leads else every(leads),
            )
        )
        found.append(_faster(groups, others, where))
        found += _of_strategies(groups, optimizer)
    return [*found, *_with_one(results)]


def _faster(groups: dict[str, Group], others: dict[str, Group], where: str) -> Claim:
    """Claim that MIP is the first to reach the level of the best of the others."""
    best = max(others.values(), key=lambda g: drawing.worth(g.final), default=None)
    text = (
        "models trained with the proposed MIP parametrization lead to substantially faster "
        f"convergence ({where})"
    )
    if best is None:
        return Claim(SOURCE, text, "0 of the others learn", "not testable")
    mip = groups[MIP]
    times = {method: _time(group, best) for method, group in groups.items()}
    ratio = Interval.ratio(
        *judging.paired(best, mip, lambda run: _seconds(run, _targets(best)[run.seed]))
    )
    return Claim(
        SOURCE,
        text,
        "seconds of training to 95 % of the improvement of the best of the others: "
        + ", ".join(
            f"{time:.0f} ({method})" if math.isfinite(time) else f"never ({method})"
            for method, time in times.items()
        )
        + f"; best of the others over MIP by seed {ratio.text(2)}",
        "refuted" if mip.diverged else ratio.above(1.0, SUBSTANTIAL),
    )


def _targets(group: Group) -> dict[int, float]:
    """95 % of the improvement of every seed."""
    found = {}
    for run in group.runs:
        start = run.points[0].figures[run.metric.name]
        found[run.seed] = start + 0.95 * (judging.final(run) - start)
    return found


def _seconds(run: Run, target: float) -> float:
    """Seconds until a run reaches the target; a little more than all if it does not."""
    times = [p.seconds for p in run.points if p.figures[run.metric.name] >= target]
    return times[0] if times else 2.0 * run.points[-1].seconds - run.points[-2].seconds


def _time(group: Group, other: Group) -> float:
    """Seconds until the mean over seeds reaches 95 % of the other's improvement."""
    start = other.figure()[0].mean
    target = start + 0.95 * (drawing.worth(other.final) - start)
    rows = zip(group.seconds, group.figure(), strict=True)
    return next((time for time, spread in rows if spread.mean >= target), math.inf)


def _gain(run: Run) -> float:
    """Improvement of the metric over training."""
    return judging.final(run) - run.points[0].figures[run.metric.name]


def _better(one: Group, classical: Group) -> Verdict:
    """Whether a strategy ends above classical by more than the margin.

    Classical may be at the floor: the claims are about strategies that make it learn.
    """
    if one.diverged:
        return "not testable" if classical.diverged else "refuted"
    return judging.compare(one, classical).above(0.0, judging.margin(one))


def _worse(one: Group, classical: Group, verdict: Verdict) -> Verdict:
    """The verdict on a claim that a strategy does worse than classical, if it can be tested."""
    if classical.diverged or judging.at_floor(classical):
        return "not testable"
    return "holds" if one.diverged else verdict


def _of_strategies(groups: dict[str, Group], optimizer: str) -> list[Claim]:
    """Claims of the paper about the strategies beside classical, with one optimizer."""
    classical, found = groups[CLASSICAL], []
    for method in STRATEGIES:
        group = groups[method]
        if optimizer == "sgd" and method != "LayerNorm-H":
            found.append(
                Claim(
                    SOURCE,
                    f"for networks trained with SGD, normalization strategies enable training "
                    f"({method})",
                    judging.ends(group, classical, (method, CLASSICAL)),
                    _better(group, classical),
                )
            )
        elif optimizer != "sgd":
            found.append(
                Claim(
                    SOURCE,
                    "normalization strategies do not significantly improve on classical "
                    f"hypernetworks when trained with Adam ({method})",
                    judging.ends(group, classical, (method, CLASSICAL)),
                    opposite(_better(group, classical)),
                    "in so few steps classical has hardly begun to learn, and normalising the maps "
                    "of the primary lets it begin sooner",
                )
            )
    weight, layer = (groups[name] for name in ("WeightNorm", "LayerNorm-H"))
    room, where = judging.margin(classical), drawing.NAMES[optimizer]
    pairs = zip(*judging.paired(layer, classical, _gain), strict=True)
    short = Interval.of([own - LITTLE * theirs for own, theirs in pairs])
    means = [statistics.fmean(map(_gain, group.runs)) for group in (layer, classical)]
    gains = [layer.metric.text(mean) if math.isfinite(mean) else "diverged" for mean in means]
    return [
        *found,
        *(
            Claim(
                DETAILS,
                "batch normalization performed similar to the default formulation when included "
                f"in the {network} ({where})",
                judging.ends(groups[method], classical, (method, CLASSICAL)),
                judging.testable(
                    groups[method],
                    classical,
                    judging.compare(groups[method], classical).within(-room, room),
                ),
            )
            for method, network in (
                ("BatchNorm-P", "primary network"),
                ("BatchNorm-H", "hypernetwork"),
            )
        ),
        Claim(
            DETAILS,
            "with weight normalization final model performance does not match the default "
            f"parametrization ({where})",
            judging.ends(weight, classical, ("WeightNorm", CLASSICAL)),
            _worse(weight, classical, judging.compare(classical, weight).above(0.0)),
        ),
        Claim(
            DETAILS,
            "networks with layer normalization in the hypernetwork layers failed to train entirely "
            f"({where})",
            f"improvement over training: {gains[0]} (LayerNorm-H), {gains[1]} (classical); failing "
            f"is less than {LITTLE:g} of classical's",
            _worse(layer, classical, short.below(0.0)),
        ),
    ]


def _with_one(results: Results) -> list[Claim]:
    """Claims about one strategy with one optimizer."""
    layer = _group(results, "LayerNorm-H", "sgd")
    lost = [run.diverged for run in layer.runs]
    batch, classical = (_group(results, method, "adamw") for method in ("BatchNorm-P", CLASSICAL))
    slower = Interval.ratio(*judging.paired(batch, classical, judging.step_seconds))
    return [
        Claim(
            SOURCE,
            "models trained with SGD momentum and hypernetwork feature normalization "
            "(LayerNorm-H) diverged early into training",
            f"{sum(step is not None for step in lost)} of {len(lost)} runs diverged; final "
            f"{layer.metric.name} {shown(layer.final, layer.metric)}",
            of_all([step is not None for step in lost]),
            "only one rate was tried",
        ),
        Claim(
            SOURCE,
            "BatchNorm substantially increases the computation time required per iteration",
            f"milliseconds per step: {1e3 * batch.step_seconds.mean:.1f} (BatchNorm-P), "
            f"{1e3 * classical.step_seconds.mean:.1f} (classical), ratio {slower.text(2)}",
            slower.above(1.0, SLOWER),
        ),
    ]


def tables(results: Results) -> list[Table]:
    rows = [
        [
            *(method, drawing.NAMES[optimizer]),
            (group := _group(results, method, optimizer)).final.text(group.metric.digits),
            f"{1e3 * group.step_seconds.mean:.1f}",
        ]
        for optimizer in OPTIMIZERS
        for method in METHODS
    ]
    metric = results.groups[0].metric.heading
    heading = ["", "optimizer", f"final {metric}", "milliseconds per step"]
    return [Table("Normalization strategies", heading, rows)]


STUDY = Study(
    name="fig5a",
    title="Normalization strategies",
    source=SOURCE,
    caption="Test metric over seconds of training. Scale-space hypernetworks: classical, classical "
    "with a normalization strategy, and MIP. BatchNorm-H takes its statistics over the gamma of a "
    "batch and 16 others. Mean and standard deviation over seeds. Several runs "
    "used the machine at the same time.",
    specs=specs,
    draw=draw,
    claims=claims,
    tables=tables,
    reduced=settings.reduced("strategies"),
)
