"""Beyond the paper: registration for every smoothness weight, beside all that could do it as well.

The answer must change with gamma by construction: at 0 only the images have to match, at 1 only the
field has to be smooth. Compared are hypernetworks (the classical formulation, the paper's MIP, the
library's defaults), FiLM, gamma as an input channel, one plain network for all gammas, and plain
networks for single gammas, which train for as many steps each, or for as many together.

Every method has the same primary, steps, batches and rates to choose from, by the objective on
validation pairs. What counts was fixed beforehand: ours is level if its objective is at most 5 %
larger.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import figures, methods
from ..comparison import MARGINS, Interval, every
from ..engine import Spec
from ..methods import Method
from ..summary import BEYOND, Claim, Spread
from ..tasks.base import SWITCHES
from ..tasks.hypermorph import BEST_BY_TUNE, BEST_OF_11
from . import judging
from .base import Group, Results, Setup, Study, Table, along, base, grid
from .price import Price, prices

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# An objective is level if it is at most so many times as large.
LEVEL = 1.05
# The rate of studies of this recipe that have one for all.
RATE = 3e-3
# Dice at the best gamma that the data should allow, at 96x80.
DICE = 0.74


@dataclass(frozen=True)
class Way:
    """How the best gamma is found on validation pairs.

    Attributes:
        title: in tables.
        gamma: the final figure that is the gamma.
        dice: the final figure that is the test Dice there.
        by_scan: the column with the Dice of every test scan.
    """

    title: str
    gamma: str
    dice: str
    by_scan: str


TUNE = Way("by hl.tune", "best gamma by tune", "dice there, test", BEST_BY_TUNE)
GRID = Way("of 11", "best gamma of 11, validation", "dice there, test, of 11", BEST_OF_11)


CLASSICAL = dataclasses.replace(Method.of("classical"), settings=methods.PAPER)
MIP = dataclasses.replace(Method.of("mip"), title="MIP, as in the paper", settings=methods.PAPER)
OURS = Method(
    *("ours", "ours", "#cc79a7", "mip"),
    settings={**methods.OURS, "head": "dense"},
    training={"rates": "groups"},
)
SCALES = Method(
    *("ours-channel-scale", "ours, ChannelScale", "#009e73", "mip"),
    settings={**methods.OURS, "head": "channel-scale"},
    training={"rates": "groups"},
)
FILM = dataclasses.replace(Method.of("film"), settings=methods.OURS)
CHANNEL = dataclasses.replace(Method.of("channel"), title="gamma as a channel")
SHARED = dataclasses.replace(Method.of("shared"), title="one plain network")
METHODS = (CLASSICAL, MIP, OURS, SCALES, FILM, CHANNEL, SHARED)


def groups(results: Results, method: Method) -> list[Group]:
    """The groups of a method, one for each learning rate."""
    training = {"rates": "same", **method.training}
    return results.where(formulation=method.formulation, **method.settings, **training)


def _gammas(setup: Setup) -> tuple[float, ...]:
    return (0.2, 0.8) if setup.size == "smoke" else (0.1, 0.3, 0.5, 0.7, 0.9)


def rates(setup: Setup, method: Method | None = None) -> tuple[float, ...]:
    """The learning rates to choose from: those of a method, or of plain networks.

    Hypernetworks with one rate for all parameters need lower ones.
    """
    if setup.size == "smoke":
        return (RATE,)
    return (1e-4, 3e-4, 1e-3, RATE) if method in (CLASSICAL, MIP) else (1e-3, RATE, 1e-2)


def start(setup: Setup) -> Spec:
    """What all runs have in common."""
    common = {"data_dir": setup.data_dir, "flow_scale": 1e-5}
    how = {"device": setup.device, "schedule": "cosine"}
    if setup.size == "smoke":
        small = {"data": "digits", "size": (16, 16), "levels": 2, "channels": 4}
        few = {"evaluation_pairs": 4, "evaluation_gammas": 2, "final_pairs": 4, "tune_steps": 1}
        steps = {"steps": 10, "evaluate_every": 5}
        return base("hypermorph", {**common, **small, **few}, {**how, **steps})
    if setup.size == "cpu":
        small = {"data": "ptbp", "size": (96, 80), "levels": 4, "channels": 16}
        few = {"evaluation_pairs": 32, "tune_steps": 10}
        steps = {"steps": 1500, "evaluate_every": 500}
        return base("hypermorph", {**common, **small, **few}, {**how, **steps})
    steps = {"steps": 20_000, "evaluate_every": 1_000}
    return base("hypermorph", {**common, "data": "ptbp", "channels": 16}, {**how, **steps})


def specs(setup: Setup) -> list[Spec]:
    common = start(setup)
    seeds = setup.replicas
    found: list[Spec] = []
    for method in METHODS:
        config = dataclasses.replace(common.config, **method.settings)
        found += grid(
            dataclasses.replace(common, config=config),
            seeds=seeds,
            formulations=[method.formulation],
            training={"lr": rates(setup, method), "rates": [method.training.get("rates", "same")]},
        )
    gammas = _gammas(setup)
    for steps in (common.training.steps // len(gammas), common.training.steps):
        how = dataclasses.replace(common.training, steps=steps, evaluate_every=steps)
        found += grid(
            dataclasses.replace(common, training=how),
            seeds=seeds,
            formulations=["plain"],
            config={"gamma": gammas},
            training={"lr": rates(setup)},
        )
    # Seed by seed: what is there after an interruption compares all methods.
    return sorted(found, key=lambda spec: spec.seed)


# --- the results -------------------------------------------------------------------------


def _best(groups: Sequence[Group]) -> Group:
    """The group with the smallest objective on validation pairs."""

    def error(group: Group) -> float:
        mean = statistics.fmean(group.figures("validation error"))
        return mean if mean == mean else float("inf")

    return min(groups, key=error)


@dataclass(frozen=True)
class Curve:
    """Figures of a method on test pairs by gamma, with a value for every seed.

    Attributes:
        rate: the learning rate, or those of the plain networks.
        objective: of the loss.
        dice: overlap of labels.
        folding: percentage of folded pixels.
    """

    rate: str
    objective: Mapping[float, list[float]]
    dice: Mapping[float, list[float]]
    folding: Mapping[float, list[float]]

    def mean(self, values: Mapping[float, list[float]]) -> list[float]:
        """The mean over gammas, of every seed."""
        return [statistics.fmean(each) for each in zip(*values.values(), strict=True)]


def _curve(results: Results, method: Method, gammas: Sequence[float]) -> Curve:
    group = _best(groups(results, method))
    columns = []
    for column in ("objective", "dice", "folding (%)"):
        runs = [along(run, column) for run in group.runs]
        columns.append({g: [run.get(g, float("nan")) for run in runs] for g in gammas})
    return Curve(_rate(results, group), *columns)


def _rate(results: Results, group: Group) -> str:
    """The rate that was chosen for a group, among those that were tried."""
    chosen = group.spec.training
    config, formulation = group.spec.config, group.spec.formulation
    tried = [
        other.spec.training.lr
        for other in results.where(formulation=formulation, steps=chosen.steps, rates=chosen.rates)
        if other.spec.config == config
    ]
    return judging.among(chosen.lr, tried)


def _plain(results: Results, steps: int) -> Curve:
    """The plain networks for single gammas, each at its best rate."""
    best = {
        gamma: _best(results.where(formulation="plain", gamma=gamma, steps=steps))
        for gamma in _tried(results)
    }
    columns = [
        {g: [factor * figure for figure in group.figures(name)] for g, group in best.items()}
        for name, factor in (("loss", 1.0), ("dice", 1.0), ("folding", 100.0))
    ]
    rates = dict.fromkeys(_rate(results, group) for group in best.values())
    return Curve(", ".join(rates), *columns)


def _tried(results: Results) -> list[float]:
    """The gammas of the plain networks."""
    return sorted({group.spec.config.gamma for group in results.where(formulation="plain")})


def _budgets(results: Results) -> list[int]:
    """Numbers of steps of a plain network, the smaller one first."""
    return sorted({group.spec.training.steps for group in results.where(formulation="plain")})


def _alone(steps: int) -> str:
    return f"plain networks per gamma, {steps} steps each"


def _curves(results: Results) -> dict[str, Curve]:
    """Every method at the gammas of the plain networks."""
    gammas = _tried(results)
    found = {method.title: _curve(results, method, gammas) for method in METHODS}
    return found | {_alone(steps): _plain(results, steps) for steps in _budgets(results)}


def _at_best(results: Results, method: Method) -> list[float]:
    """Test Dice at the gamma that is best on validation pairs, of every seed."""
    return _best(groups(results, method)).figures(GRID.dice)


def panels() -> tuple[Figure, list[Axes]]:
    """Make panels for objective, Dice and folding over gamma."""
    figure, axes = figures.panels(3, width=10.0, height=3.6)
    for ax, label in zip(axes, ("objective", "Dice", "folded pixels (%)"), strict=True):
        ax.set(xlabel="gamma", ylabel=label)
    axes[0].set_yscale("log")
    return figure, axes


def draw(results: Results) -> Figure:
    """Draw objective, Dice and folding over gamma."""
    figure, axes = panels()
    curves = _curves(results)
    for ax, name in zip(axes, ("objective", "dice", "folding"), strict=True):
        for method in METHODS:
            points = getattr(curves[method.title], name)
            spreads = [Spread.of(values) for values in points.values()]
            figures.band(ax, list(points), spreads, "mip", label=method.title, color=method.color)
        for steps, marker, fill in zip(_budgets(results), "os", ("black", "none"), strict=True):
            points = getattr(curves[_alone(steps)], name)
            means = [statistics.fmean(values) for values in points.values()]
            (drawn,) = ax.plot(list(points), means, f"k{marker}", label=_alone(steps))
            drawn.set_markerfacecolor(fill)
    figures.legend(figure)
    return figure


def _ratio(one: Curve, other: Curve) -> Interval:
    """Mean objectives over gammas, as a ratio over paired seeds."""
    return Interval.ratio(one.mean(one.objective), other.mean(other.objective))


def _compared(one: Curve, other: Curve) -> str:
    dice = Interval.difference(one.mean(one.dice), other.mean(other.dice))
    return (
        f"objective, mean over gammas, {_ratio(one, other).text(2)} times as large; Dice "
        f"{dice.text(3, '+')} (difference, 95 % interval over seeds)"
    )


def claims(results: Results) -> list[Claim]:
    curves = _curves(results)
    ours = curves[OURS.title]
    found = []
    for method in (CLASSICAL, MIP, CHANNEL, SHARED):
        other = curves[method.title]
        found.append(
            Claim(
                BEYOND,
                f"ours has a smaller objective than {method.title}, after as many steps",
                _compared(ours, other),
                _ratio(ours, other).below(1.0),
                "what this task asks of the weights, the other can do as well",
            )
        )
    for method in (FILM, SCALES):
        other = curves[method.title]
        found.append(
            Claim(
                BEYOND,
                f"the objective of ours is at most {LEVEL:g} times that of {method.title}, after "
                "as many steps",
                _compared(ours, other),
                _ratio(ours, other).below(LEVEL),
                "scaling and shifting channels is all that this task asks for",
            )
        )
    fewer, as_many = _budgets(results)
    alone = curves[_alone(as_many)]
    found.append(
        Claim(
            BEYOND,
            f"at every gamma, the objective of ours is at most {LEVEL:g} times that of a plain "
            "network for this gamma, which trains for as many steps",
            f"{_compared(ours, alone)}; by gamma: {_by_gamma(ours, alone)}",
            every(_ratio_at(ours, alone, gamma).below(LEVEL) for gamma in ours.objective),
            "each plain network trains for its one gamma as long as ours for all",
        )
    )
    alone = curves[_alone(fewer)]
    found.append(
        Claim(
            BEYOND,
            "at every gamma, ours has a smaller objective than plain networks that together train "
            "for as many steps",
            f"{_compared(ours, alone)}; by gamma: {_by_gamma(ours, alone)}",
            every(_ratio_at(ours, alone, gamma).below(1.0) for gamma in ours.objective),
        )
    )
    return [*found, _best_dice(results), tuned(_best(groups(results, OURS)))]


def _ratio_at(one: Curve, other: Curve, gamma: float) -> Interval:
    return Interval.ratio(one.objective[gamma], other.objective[gamma])


def _by_gamma(one: Curve, other: Curve) -> str:
    return ", ".join(f"{g:g}: {_ratio_at(one, other, g).text(2)}" for g in one.objective)


def _best_dice(results: Results) -> Claim:
    found = {m.title: Interval.of(_at_best(results, m)) for m in METHODS if m is not SHARED}
    before = results.groups[0].outcome("dice before registration").mean
    return Claim(
        BEYOND,
        f"at its best gamma, chosen on validation pairs, ours has a test Dice of at least {DICE:g}",
        f"{'; '.join(f'{title} {dice.text(3)}' for title, dice in found.items())}; {before:.3f} "
        "before registration",
        found[OURS.title].at_least(DICE),
        "more steps, or a larger network, would still help",
    )


# --- the best gamma ----------------------------------------------------------------------


def tuned(ours: Group) -> Claim:
    """Claim that ``hl.tune`` finds a gamma that is as good as the best one of a grid."""
    by_tune, by_grid = (ours.figures(way.dice) for way in (TUNE, GRID))
    margin = MARGINS["dice"]
    ahead = Interval.difference(by_tune, by_grid)
    return Claim(
        BEYOND,
        "the gamma that hl.tune finds for ours on validation pairs has a test Dice at most "
        f"{margin:g} below that of the best gamma of 11",
        f"test Dice {Interval.of(by_tune).text(4)} by hl.tune and {Interval.of(by_grid).text(4)} "
        f"of 11, difference {ahead.text(4, '+')} (95 % interval over seeds)",
        ahead.at_least(-margin),
        "hl.tune follows the soft Dice of linearly warped labels, which is another measure",
    )


def best_gammas(found: Mapping[str, Group]) -> Table:
    """The best gamma of every seed, and the test Dice there: over seeds, and over test scans.

    ``hl.tune`` is for hypernetworks alone.

    Args:
        found: groups by title.
    """
    rows = []
    for title, group in found.items():
        for way in (TUNE, GRID) if group.spec.formulation in SWITCHES else (GRID,):
            gammas = ", ".join(f"{gamma:.2f}" for gamma in group.figures(way.gamma))
            by_scan = dice_by_scan(group, way)
            # Runs of earlier versions do not have it.
            over = Interval.bootstrap(by_scan).text(4) if all(by_scan) else ""
            dice = Interval.of(group.figures(way.dice)).text(4)
            rows.append([title, way.title, gammas, dice, over])
    heading = ["", "best gamma", "of every seed", "test Dice there, over seeds", "over test scans"]
    return Table("Best gamma by hl.tune and of a grid", heading, rows)


# --- over scans --------------------------------------------------------------------------


def dice_by_scan(group: Group, way: Way) -> list[list[float]]:
    """Test Dice at the best gamma, a row of test scans for every seed."""
    return [list(run.column("scan", way.by_scan).values()) for run in group.runs]


def _by_scan(results: Results) -> dict[str, list[list[float]]]:
    """Test Dice at its best gamma of every method, by seed and by test scan.

    Empty if a run does not have it, as those of earlier versions.
    """
    found = {m.title: dice_by_scan(_best(groups(results, m)), GRID) for m in METHODS}
    return found if all(map(all, found.values())) else {}


def _over_scans(by_scan: Mapping[str, Sequence[Sequence[float]]]) -> list[Table]:
    """What Dice depends on: which seeds there are, and which scans are in the test set."""
    rows = []
    ours = by_scan.get(OURS.title, [])
    of = f"of {len(ours)} seeds"
    for title, theirs in by_scan.items():
        ahead = [
            [a - b for a, b in zip(own, other, strict=True)]
            for own, other in zip(ours, theirs, strict=True)
        ]
        row = [title]
        for values, sign in ((theirs, ""), (ahead, "+")):
            means = [statistics.fmean(each) for each in values]
            both = (Interval.of(means), Interval.bootstrap(values))
            row += [
                "" if values is ahead and title == OURS.title else x.text(3, sign) for x in both
            ]
        rows.append(row)
    heading = ["", f"Dice at the best gamma {of}, over seeds", "over test scans"]
    heading += ["ours minus it, over seeds", "over test scans"]
    return [Table("Dice and the test scans", heading, rows)] if rows else []


# --- what it costs -----------------------------------------------------------------------


def measure(setup: Setup) -> Mapping[str, Price]:
    """Parameters and the time of a step of every method; they take turns."""
    common = start(setup)
    specs = {"plain networks per gamma": dataclasses.replace(common, formulation="plain")}
    for method in METHODS:
        specs[method.title] = dataclasses.replace(
            common,
            config=dataclasses.replace(common.config, **method.settings),
            training=dataclasses.replace(common.training, **method.training),
            formulation=method.formulation,
        )
    return prices(specs, 3 if setup.size == "smoke" else 21)


def tables(results: Results) -> list[Table]:
    curves = _curves(results)
    measured: Mapping[str, Price] = results.measured
    one = measured["plain networks per gamma"]
    heading = ["", "rate", "objective", "Dice", "Dice at the best gamma", "folded pixels (%)"]
    heading += ["parameters", "step, times that of a plain network"]
    best = {method.title: Spread.of(_at_best(results, method)).text(4) for method in METHODS}
    rows = []
    for title, curve in curves.items():
        price = measured.get(title)
        count = len(curve.objective) * one.weights if price is None else price.weights
        rows.append(
            [
                *(title, curve.rate, Spread.of(curve.mean(curve.objective)).text(3)),
                *(Spread.of(curve.mean(curve.dice)).text(4), best.get(title, "")),
                *(Spread.of(curve.mean(curve.folding)).text(2), count),
                f"{1.0 if price is None else price.step / one.step:.2f}",
            ]
        )
    by_gamma = [
        [title, gamma, *(Spread.of(values[gamma]).text(4) for values in columns)]
        for title, curve in curves.items()
        for columns in [(curve.objective, curve.dice, curve.folding)]
        for gamma in curve.objective
    ]
    return [
        Table("Means over gammas", heading, rows),
        Table("By gamma", ["", "gamma", "objective", "Dice", "folded pixels (%)"], by_gamma, False),
        best_gammas({method.title: _best(groups(results, method)) for method in METHODS}),
        *_over_scans(_by_scan(results)),
    ]


STUDY = Study(
    name="registration",
    title="Registration for every smoothness weight, and what else could do it",
    source=BEYOND,
    caption="Objective, Dice and folding of test pairs over gamma. In the objective the mean "
    "squared error of images is divided by 0.05^2, as in HyperMorph; the paper gives no factor. "
    "Lines are one network for all gammas each: hypernetworks (classical, the paper's MIP, the "
    "library's defaults with a dense head and with ChannelScale), FiLM, gamma as an input channel, "
    "and a plain network. Points are plain networks for single gammas, with as many steps each, or "
    "for all of them together. Mean and standard deviation over seeds; each at the best of three "
    "rates on validation pairs, or of four (classical and MIP). Intervals over test scans are "
    "those of a bootstrap, with the seeds kept.",
    specs=specs,
    draw=draw,
    claims=claims,
    measure=measure,
    tables=tables,
    reduced={
        "smoke": "scikit-learn's digits at 16x16, a U-Net of 2 levels with 4 channels, 10 "
        "steps (5 steps for plain networks with as much compute together)",
        "cpu": "PTBP (4 labels; aligned to a template by SyN, with skull) at half resolution, "
        "96x80, a U-Net of 4 levels with 16 channels, "
        "1500 steps (300 steps for plain networks with as much compute together) in batches of 4",
    },
)
