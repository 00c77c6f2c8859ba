"""Beyond the paper: steps to a target accuracy from 1 to 128 inputs, by encoding and start.

Encoded one by one, d inputs have norm sqrt(d), so that the predicted change, and with it the
effective learning rate, grows with d. Here this encoding of the paper stands beside one that gives
the whole vector norm 1, and one whose change starts at a set fraction of the weights as well.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from .. import figures
from ..engine import Spec
from ..summary import BEYOND, Claim
from . import drawing, settings
from .base import Group, Place, Results, Study, Table, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER, UNIT = "paper's encoding", "unit norm"
FRACTIONS = (0.03, 0.1, 0.3)
# Settings of the hypernetwork and the colour of the line, by name.
METHODS: dict[str, tuple[dict[str, Any], str]] = {
    PAPER: ({"encoding": "per-input", "init": "fan_out"}, "#0072b2"),
    UNIT: ({"encoding": "unit-norm", "init": "fan_out"}, "#56b4e9"),
    **{
        f"unit norm, relative {fraction:g}": (
            {"encoding": "unit-norm", "init": "relative", "fraction": fraction},
            color,
        )
        for fraction, color in zip(FRACTIONS, ("#b5d99c", "#009e73", "#005c43"), strict=True)
    },
}
PRIORS = ("uniform", "normal")
# The paper's rate with Adam; with SGD both ends of what trains the plain network in so few steps.
OPTIMIZERS = (("adam", 3e-4), ("sgd", 1e-3), ("sgd", 1e-2))
TARGETS = {"digits": 30.0, "mnist": 90.0, "flowers102": 50.0}


def specs(place: Place) -> list[Spec]:
    base = settings.bayes_short(place)
    seeds = place.replicas(smoke=1, cpu=5, paper=5)
    smoke = place.size == "smoke"
    counts = {"smoke": [1, 32], "cpu": [1, 8, 32, 128], "paper": [2**n for n in range(8)]}
    axes = {"prior": PRIORS[1:] if smoke else PRIORS, "dimensions": counts[place.size]}
    found: list[Spec] = []
    for how, _ in METHODS.values():
        made = dataclasses.replace(base, config=dataclasses.replace(base.config, **how))
        for optimizer, rate in OPTIMIZERS[: 1 if smoke else None]:
            found += grid(
                made,
                seeds=seeds,
                formulations=["mip"],
                config=axes,
                training={"optimizer": [optimizer], "lr": [rate]},
            )
    return found


def _target(group: Group) -> float:
    return TARGETS[group.spec.config.data]


def _steps(group: Group) -> list[float]:
    """The first evaluated step with the target of every seed; infinite without one."""
    found = [run.first_step(_target(group)) for run in group.runs]
    return [math.inf if step is None else float(step) for step in found]


def _median(group: Group) -> float:
    """Over the seeds; infinite where most of them do not get there."""
    steps = sorted(_steps(group))
    return steps[len(steps) // 2]


def _line(results: Results, method: str, prior: str, optimizer: str, rate: float) -> list[Group]:
    how, _ = METHODS[method]
    groups = results.where(prior=prior, optimizer=optimizer, lr=rate, **how)
    return sorted(groups, key=lambda group: group.spec.config.dimensions)


def _panels(results: Results) -> list[tuple[str, str, float]]:
    """Priors, optimizers and rates."""
    found = [
        (group.spec.config.prior, group.spec.training.optimizer, group.spec.training.lr)
        for group in results
    ]
    return sorted(set(found), key=lambda each: (PRIORS.index(each[0]), each[1], each[2]))


def _title(prior: str, optimizer: str, rate: float) -> str:
    return f"{drawing.NAMES[optimizer]} at {rate:g}, {drawing.NAMES[prior]}"


def draw(results: Results) -> Figure:
    shown = _panels(results)
    columns = len(shown) // len(results.values("prior"))
    figure, axes = figures.panels(columns, len(shown) // columns, height=3.0)
    last = results.groups[0].steps[-1]
    never = 1.15 * last  # what does not get there stands above all that do
    for ax, where in zip(axes, shown, strict=True):
        for method, (_, color) in METHODS.items():
            groups = _line(results, method, *where)
            counts = [group.spec.config.dimensions for group in groups]
            y = [min(_median(group), never) for group in groups]
            ax.plot(counts, y, marker="o", markersize=4, color=color, label=method)
            for count, group in zip(counts, groups, strict=True):
                seeds = [min(step, never) for step in _steps(group)]
                ax.plot([count] * len(seeds), seeds, ".", color=color, alpha=0.35, markersize=4)
        ax.axhline(last, color="0.5", linewidth=0.8, linestyle="--")
        ax.set_xscale("log", base=2)
        ax.set_xticks(counts, [str(count) for count in counts])
        goal = f"steps to {_target(groups[0]):g} %"
        ax.set(xlabel="inputs", ylabel=goal, title=_title(*where), ylim=(0, 1.25 * last))
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _shown(groups: list[Group]) -> str:
    return ", ".join(
        f"{step:.0f}" if math.isfinite(step := _median(group)) else "never" for group in groups
    )


def claims(results: Results) -> list[Claim]:
    found = []
    for panel in _panels(results):
        where = _title(*panel)
        paper, unit, ours = (
            _line(results, method, *panel) for method in (PAPER, UNIT, "unit norm, relative 0.1")
        )
        counts = ", ".join(str(group.spec.config.dimensions) for group in paper)
        steps = f"median steps to {_target(paper[0]):g} % with {counts} inputs: "
        found += [
            Claim(
                BEYOND,
                "the paper's encoding needs more steps the more inputs there are, or does not "
                f"train ({where})",
                f"{steps}{_shown(paper)}",
                _median(paper[-1]) > 1.5 * _median(paper[0]),
                "at a rate that is small for one input, larger changes with more inputs act as a "
                "larger rate and help",
            ),
            Claim(
                BEYOND,
                "with norm 1 of the whole encoding and relative initialisation the number of "
                f"inputs does not matter ({where})",
                f"{steps}{_shown(ours)}",
                _even(ours),
                "the rate is too small to get there in so few steps, whatever the inputs; or few "
                "are needed, which are known to the steps between two tests only",
            ),
            Claim(
                BEYOND,
                f"relative initialisation at 0.1 is at least as fast as fan-out ({where})",
                f"{steps}{_shown(ours)} (relative), {_shown(unit)} (fan-out, unit norm)",
                all(_median(a) <= _median(b) for a, b in zip(ours, unit, strict=True)),
                "the larger changes of fan-out act as a larger rate, which helps where the rate "
                "is small; differences of one test are within the spread over seeds",
            ),
        ]
    return found


def _even(groups: list[Group]) -> bool:
    """Whether the slowest of them takes at most half as many steps again as the fastest."""
    medians = [_median(group) for group in groups]
    return math.isfinite(max(medians)) and max(medians) <= 1.5 * min(medians)


def tables(results: Results) -> list[Table]:
    rows = []
    for where in _panels(results):
        for method in METHODS:
            for group in _line(results, method, *where):
                reached = sum(math.isfinite(step) for step in _steps(group))
                rows.append(
                    [
                        *(_title(*where), method, group.spec.config.dimensions, _shown([group])),
                        f"{reached} of {len(group.runs)}",
                        group.final.text(1),
                    ]
                )
    heading = ["", "", "inputs", "median steps", "seeds that get there", "accuracy in the end"]
    return [Table("Steps to the target", heading, rows)]


STUDY = Study(
    name="dimension",
    title="Invariance to the number of inputs",
    source=f"{BEYOND} (section B.3)",
    caption="Steps to the target accuracy over the number of inputs: the paper's encoding of every "
    "input for itself, one with norm 1 of the whole vector, and that with a predicted change that "
    "starts at a fraction of the scale of the weights. Lines are medians over seeds, dots single "
    "seeds; what is above the dashed line did not get there.",
    specs=specs,
    draw=draw,
    claims=claims,
    tables=tables,
    reduced=settings.reduced("bayes_short"),
)
