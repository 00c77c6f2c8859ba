"""Figure 5a: normalisation strategies against classical and MIP, over time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .. import figures
from ..engine import Spec
from ..summary import Claim, shown
from . import drawing, settings
from .base import Group, Results, Setup, Study, Table, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "section 6.2, figure 5a"
OPTIMIZERS = ("adamw", "sgd")
CLASSICAL, MIP = "classical", "MIP"
# Formulation, normalisation and colour by name. The strategies normalise classical.
METHODS: dict[str, tuple[str, str, str]] = {
    CLASSICAL: ("classical", "none", "#d55e00"),
    "BatchNorm-P": ("classical", "batchnorm-p", "#e69f00"),
    "LayerNorm-P": ("classical", "layernorm-p", "#009e73"),
    "LayerNorm-H": ("classical", "layernorm-h", "#cc79a7"),
    "WeightNorm": ("classical", "weightnorm", "#56b4e9"),
    MIP: ("mip", "none", "#0072b2"),
}
STRATEGIES = [name for name in METHODS if name not in (CLASSICAL, MIP)]


def specs(setup: Setup) -> list[Spec]:
    base, seeds = settings.strategies(setup), settings.seeds(setup)
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
    axes[0].legend(frameon=False, fontsize="small")
    return figure


def _gain(group: Group) -> float:
    """Improvement of the metric over training, in points out of 100."""
    points = 1.0 if group.metric.unit == "%" else 100.0  # accuracy in %, or Dice
    return points * (drawing.worth(group.final) - group.figure()[0].mean)


def claims(results: Results) -> list[Claim]:
    found = []
    for optimizer in OPTIMIZERS:
        groups = {method: _group(results, method, optimizer) for method in METHODS}
        where = drawing.NAMES[optimizer]
        ends = ", ".join(
            f"{shown(group.final, group.metric)} ({method})" for method, group in groups.items()
        )
        mip = groups[MIP]
        best = max((g for m, g in groups.items() if m != MIP), key=lambda g: drawing.worth(g.final))
        found.append(
            Claim(
                SOURCE,
                "models trained with the proposed MIP parametrization lead to better final model "
                f"accuracy than with any normalization strategy ({where})",
                f"final {mip.metric.name}: {ends}",
                drawing.worth(mip.final) > drawing.worth(best.final),
            )
        )
        times = {method: _time(group, best) for method, group in groups.items()}
        found.append(
            Claim(
                SOURCE,
                "models trained with the proposed MIP parametrization lead to substantially faster "
                f"convergence ({where})",
                "seconds of training to 95 % of the improvement of the best of the others: "
                + ", ".join(
                    f"{time:.0f} ({method})" if math.isfinite(time) else f"never ({method})"
                    for method, time in times.items()
                ),
                times[MIP] < min(time for method, time in times.items() if method != MIP),
            )
        )
    found += _of_strategies(results)
    return found


def _time(group: Group, other: Group) -> float:
    """Seconds until the mean over seeds reaches 95 % of the other's improvement."""
    start = other.figure()[0].mean
    target = start + 0.95 * (drawing.worth(other.final) - start)
    rows = zip(group.seconds, group.figure(), strict=True)
    return next((time for time, spread in rows if spread.mean >= target), math.inf)


def _of_strategies(results: Results) -> list[Claim]:
    """Claims of the paper about the strategies alone."""
    adam, sgd = (
        {method: _group(results, method, optimizer) for method in METHODS}
        for optimizer in OPTIMIZERS
    )

    def gains(groups: dict[str, Group]) -> str:
        found = {method: _gain(groups[method]) for method in [CLASSICAL, *STRATEGIES]}
        return ", ".join(
            f"{gain:+.1f} ({method})" if math.isfinite(gain) else f"diverged ({method})"
            for method, gain in found.items()
        )

    others = [method for method in STRATEGIES if method != "LayerNorm-H"]
    diverged = sgd["LayerNorm-H"]
    base = adam[CLASSICAL].step_seconds.mean
    slow = adam["BatchNorm-P"].step_seconds.mean
    return [
        Claim(
            SOURCE,
            "for networks trained with SGD, normalization strategies enable training",
            f"improvement over training, in points out of 100: {gains(sgd)}",
            _gain(sgd[CLASSICAL]) < 1.0 and all(_gain(sgd[method]) > 1.0 for method in others),
        ),
        Claim(
            SOURCE,
            "normalization strategies do not significantly improve on classical hypernetworks when "
            "trained with Adam",
            f"improvement over training, in points out of 100: {gains(adam)}",
            all(_gain(adam[m]) < 1.2 * max(_gain(adam[CLASSICAL]), 1.0) for m in STRATEGIES),
            "in so few steps classical has hardly begun to learn, and normalising the maps of the "
            "primary lets it begin sooner",
        ),
        Claim(
            SOURCE,
            "models trained with SGD momentum and hypernetwork feature normalization "
            "(LayerNorm-H) diverged early into training",
            f"final {diverged.metric.name} {shown(diverged.final, diverged.metric)}, training loss "
            f"{diverged.train_loss[-1].text(2)}",
            not _gain(diverged) > 1.0,
            "only one rate was tried",
        ),
        Claim(
            SOURCE,
            "BatchNorm substantially increases the computation time required per iteration",
            f"milliseconds per step: {1e3 * slow:.1f} (BatchNorm-P), {1e3 * base:.1f} (classical)",
            slow > 1.1 * base,
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
    "with a normalization strategy, and MIP. Mean and standard deviation over seeds. Several runs "
    "used the machine at the same time.",
    specs=specs,
    draw=draw,
    claims=claims,
    tables=tables,
    reduced=settings.reduced("strategies"),
)
