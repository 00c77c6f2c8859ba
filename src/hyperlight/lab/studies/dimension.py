"""Beyond the paper: steps to a target accuracy with 1 to 128 inputs, by encoding and start.

The paper encodes every input separately. The encoding of d inputs then has norm sqrt(d), so the
predicted change, and with it the effective learning rate, grows with d. This study compares MIP
with an encoding that has norm 1 for the whole vector, and with the same encoding and a relative
start: a predicted change that starts at a given fraction of each tensor's own scale. The library's
defaults ("ours") have this encoding and the fraction 0.1.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from .. import figures
from ..comparison import Interval, counted, every
from ..engine import Spec
from ..record import Run
from ..summary import BEYOND, Claim
from . import drawing, judging, settings
from .base import Group, Results, Setup, Study, Table, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIP, UNIT, OURS = "MIP", "unit norm", "ours (unit norm, relative 0.1)"
FRACTIONS = {"unit norm, relative 0.03": 0.03, OURS: 0.1, "unit norm, relative 0.3": 0.3}
# Settings of the hypernetwork and colour of the line, by name.
METHODS: dict[str, tuple[dict[str, Any], str]] = {
    MIP: ({"encoding": "per-input", "init": "fan_out"}, "#0072b2"),
    UNIT: ({"encoding": "unit-norm", "init": "fan_out"}, "#56b4e9"),
    **{
        name: ({"encoding": "unit-norm", "init": "relative", "fraction": fraction}, color)
        for (name, fraction), color in zip(
            FRACTIONS.items(), ("#e69f00", "#cc79a7", "#009e73"), strict=True
        )
    },
}
PRIORS = ("uniform", "normal")
# The paper's rate with Adam; with SGD the smallest and the largest that train the plain network.
OPTIMIZERS = (("adam", 3e-4), ("sgd", 1e-3), ("sgd", 1e-2))
# Numbers of steps within this factor are about equal.
EVEN = 1.5
# At least as fast: the other takes at least this fraction of the steps.
LEVEL = 0.8
TARGETS = {"digits": 30.0, "mnist": 90.0, "flowers102": 50.0}


def specs(setup: Setup) -> list[Spec]:
    base = settings.bayes_short(setup)
    seeds = setup.replicas
    smoke = setup.size == "smoke"
    counts = {"smoke": [1, 32], "cpu": [1, 8, 32, 128], "paper": [2**n for n in range(8)]}
    axes = {"prior": PRIORS[1:] if smoke else PRIORS, "dimensions": counts[setup.size]}
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
    """First evaluated step that reaches the target, for every seed; infinity if none does."""
    found = [run.first_step(_target(group)) for run in group.runs]
    return [math.inf if step is None else float(step) for step in found]


def _median(group: Group) -> float:
    """Median over the seeds; infinity if most of them do not reach the target."""
    steps = sorted(_steps(group))
    return steps[len(steps) // 2]


def _line(results: Results, method: str, prior: str, optimizer: str, rate: float) -> list[Group]:
    how, _ = METHODS[method]
    groups = results.where(prior=prior, optimizer=optimizer, lr=rate, **how)
    return sorted(groups, key=lambda group: group.spec.config.dimensions)


def _panels(results: Results) -> list[tuple[str, str, float]]:
    """Triples of prior, optimizer and rate."""
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
    for ax, where in zip(axes, shown, strict=True):
        for row, (method, (_, color)) in enumerate(METHODS.items()):
            groups = _line(results, method, *where)
            counts = [group.spec.config.dimensions for group in groups]
            steps = [_median(group) if _learns([group]) else math.nan for group in groups]
            ax.plot(counts, steps, marker="o", markersize=4, color=color, label=method)
            for count, group in zip(counts, groups, strict=True):
                seeds = [step for step in _steps(group) if math.isfinite(step)]
                ax.plot([count] * len(seeds), seeds, ".", color=color, alpha=0.35, markersize=4)
            # No number of steps reaches it: a cross in a row of the method's own.
            lost = [group.spec.config.dimensions for group in groups if not _learns([group])]
            height = last * (1.06 + 0.05 * row)
            ax.plot(lost, [height] * len(lost), "x", color=color, markersize=5)
        ax.axhline(last, color="0.5", linewidth=0.8, linestyle="--")
        ax.set_ylim(0, 1.32 * last)
        reached = [tick for tick in ax.get_yticks() if tick <= last]
        ax.set_yticks([*reached, 1.16 * last], [*(f"{tick:g}" for tick in reached), "never"])
        ax.set_xscale("log", base=2)
        ax.set_xticks(counts, [str(count) for count in counts])
        goal = f"steps to {_target(groups[0]):g} %"
        ax.set(xlabel="inputs", ylabel=goal, title=_title(*where))
    figures.legend(figure)
    return figure


def _shown(groups: list[Group]) -> str:
    return ", ".join(
        f"{step:.0f}" if math.isfinite(step := _median(group)) else "never" for group in groups
    )


def _ratio(one: Group, other: Group) -> Interval:
    """Steps of one group over those of another, by seed.

    A run that does not reach the target counts as if it did one evaluation after the end.
    """
    *_, last_but_one, last = one.steps
    late = float(2 * last - last_but_one)

    def steps(run: Run) -> float:
        found = run.first_step(_target(one))
        return late if found is None else max(float(found), float(one.steps[1]))

    return Interval.ratio(*judging.paired(one, other, steps))


def claims(results: Results) -> list[Claim]:
    found = []
    for panel in _panels(results):
        where = _title(*panel)
        mip, unit, ours = (_line(results, method, *panel) for method in (MIP, UNIT, OURS))
        counts = ", ".join(str(group.spec.config.dimensions) for group in mip)
        steps = f"median steps to {_target(mip[0]):g} % with {counts} inputs: "
        more = _ratio(mip[-1], mip[0])
        even = [_ratio(group, ours[0]).within(1.0 / EVEN, EVEN) for group in ours[1:]]
        level = [_ratio(b, a).at_least(LEVEL) for a, b in zip(ours, unit, strict=True)]
        found += [
            Claim(
                BEYOND,
                "MIP, which encodes every input separately, needs more steps with more inputs, or "
                f"does not train ({where})",
                f"{steps}{_shown(mip)}; the most over the fewest {more.text(2)}",
                more.above(1.0, EVEN) if _learns(mip[:1]) else "not testable",
                "if the rate is small for one input, the larger changes with more inputs act like "
                "a larger rate and help",
            ),
            Claim(
                BEYOND,
                "for ours (norm 1 for the whole encoding, and a relative start) the number of "
                f"inputs does not matter ({where})",
                f"{steps}{_shown(ours)}; within a factor of {EVEN:g} of one input: {counted(even)}",
                every(even) if _learns(ours) else "not testable",
                "so few steps are needed that their number is only known roughly, since the model "
                "is not tested at every step",
            ),
            Claim(
                BEYOND,
                f"ours is at least as fast as the same encoding with a fan-out start ({where})",
                f"{steps}{_shown(ours)} (ours), {_shown(unit)} (unit norm); by number of inputs: "
                f"{counted(level)}",
                every(level) if _learns(unit) else "not testable",
                "the larger changes of fan-out act like a larger rate, which helps if the rate is "
                "small",
            ),
        ]
    return found


def _learns(groups: list[Group]) -> bool:
    """Whether one of the groups reaches the target in most seeds."""
    return any(math.isfinite(_median(group)) for group in groups)


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
    heading = ["", "", "inputs", "median steps", "seeds that reach it", "final accuracy (%)"]
    return [Table("Steps to the target", heading, rows)]


STUDY = Study(
    name="dimension",
    title="Does the number of inputs matter?",
    source=f"{BEYOND} (section B.3)",
    caption="Steps to the target accuracy over the number of inputs. MIP encodes every input "
    "separately and starts with fan-out, as in the paper; unit norm is an encoding with norm 1 for "
    "the whole vector; relative is a start at that fraction of each tensor's own scale; ours are "
    "the library's defaults. Lines are medians over seeds, dots single seeds. A cross "
    "above the dashed line: most seeds never reach the target.",
    specs=specs,
    draw=draw,
    claims=claims,
    tables=tables,
    reduced=settings.reduced("bayes_short"),
)
