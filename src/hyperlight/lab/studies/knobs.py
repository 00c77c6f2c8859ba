"""Beyond the paper: tasks whose answer must change with the knob, and what else could solve them.

In each, the library's defaults (ours) are compared with what a sceptic would try first: a
hypernetwork by hand, gamma beside the input (in a network of more weights, too), FiLM, one plain
network, and plain networks for single gammas. All have the same primary, steps and batches, and as
many rates to choose from, by the error on validation data. Fewer steps of ours say what it has
learned in the time of a cheaper method.

What counts was fixed beforehand: ours is level if its error is at most :attr:`Contest.level` times
as large, or so many points larger.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .. import figures, methods
from ..comparison import MARGINS, Interval, every
from ..demo import BETAS
from ..engine import Spec
from ..methods import Method
from ..summary import BEYOND, Claim, Spread
from . import judging
from .base import Group, Results, Setup, Study, Table, along, base
from .price import Price, meanwhile, prices

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS = Method(
    *("ours", "ours", "#cc79a7", "mip"), settings=methods.OURS, training={"rates": "groups"}
)
MIP = dataclasses.replace(Method.of("mip"), title="MIP, as in the paper", settings=methods.PAPER)
CLASSICAL = dataclasses.replace(Method.of("classical"), settings=methods.PAPER)
HAND = Method.of("hand")
FILM = dataclasses.replace(Method.of("film"), settings=methods.OURS)
CHANNEL = dataclasses.replace(Method.of("channel"), title="gamma beside the input")
WIDE = dataclasses.replace(
    CHANNEL, name="wide", title="gamma beside the input, wider", color="#a05a00"
)
SHARED = dataclasses.replace(Method.of("shared"), title="one plain network")
ALONE = dataclasses.replace(Method.of("plain"), title="a network per gamma")
EXPECTED = dataclasses.replace(
    SHARED,
    name="expected-cost",
    title="one plain network, least expected cost",
    color="#009e73",
    settings={"problem": "expected-cost"},
)

# Rates to choose from; hypernetworks with one rate for all parameters diverge at the larger ones.
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
LOW = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)

# Methods that ours is to be level with; it is to be better than the others.
_LEVEL = (HAND, FILM)

View = Literal["along", "dots", "front", "ratio"]


@dataclass(frozen=True)
class Contest:
    """A task, and how the methods are compared in it.

    Attributes:
        title: in figures and claims.
        start: what all runs have in common.
        alone: settings of the plain networks for single gammas, by name.
        count: number of these gammas.
        tried: the methods, with settings of their own.
        rates: learning rates to choose from.
        low: those of hypernetworks with one rate for all, as many; by default the same.
        level: an error is level if it is at most so many times as large.
        points: whether errors are percentages, and ``level`` is a difference.
        column: of the task's table along gamma.
        views: how it is drawn.
        gamma: name of gamma in figures.
        error: name of the error in figures and claims.
        front: two columns that trade off against each other, and their names in figures.
    """

    title: str
    start: Spec
    alone: Mapping[str, Any]
    count: int
    tried: tuple[Method, ...]
    rates: tuple[float, ...]
    low: tuple[float, ...] | None = None
    level: float = 1.10
    points: bool = False
    column: str = "error"
    views: tuple[View, ...] = ("along",)
    gamma: str = "gamma"
    error: str = "error"
    front: tuple[tuple[str, str], tuple[str, str]] = (
        ("rate", "test rate (nats)"),
        ("distortion", "test distortion (squared error)"),
    )

    def lead(self, errors: Sequence[float], others: Sequence[float]) -> Interval:
        """Errors compared with those of the same seeds: by how many times, or points."""
        finite = [[e if math.isfinite(e) else math.inf for e in each] for each in (errors, others)]
        return (Interval.difference if self.points else Interval.ratio)(*finite)

    @property
    def equal(self) -> float:
        """What :meth:`lead` is for equal errors."""
        return 0.0 if self.points else 1.0

    @property
    def steps(self) -> int:
        return self.start.training.steps

    def spec(self, method: Method, steps: int, rate: float, seed: int = 0) -> Spec:
        """A run. Plain networks for single gammas get batches of their own."""
        single = method is ALONE
        settings = {**method.settings, **(self.alone if single else {})}
        each = self.start.training.batch_size * (self.count if single else 1)
        changes: dict[str, Any] = {"steps": steps, "evaluate_every": steps, "lr": rate}
        changes |= {"batch_size": each, "rates": "same", **method.training}
        how = dataclasses.replace(self.start.training, **changes)
        config = dataclasses.replace(self.start.config, **settings)
        return Spec(self.start.task, config, how, method.formulation, seed)

    def tries(self, method: Method) -> tuple[float, ...]:
        """The learning rates of a method."""
        one_rate = method.name in (HAND.name, MIP.name, CLASSICAL.name)
        return self.low if one_rate and self.low is not None else self.rates

    def lengths(self, method: Method) -> list[int]:
        """The numbers of steps that a method is trained for, the largest one first."""
        if method is ALONE:
            return [self.steps, self.steps // self.count]
        known = method.name == OURS.name
        return [self.steps, self.steps // 2, self.steps // 4] if known else [self.steps]

    def name(self, method: Method, steps: int) -> str:
        return f"{method.title}, {steps} steps each" if method is ALONE else method.title


Contests = Callable[[Setup], tuple[Contest, ...]]


def specs(contests: Contests, setup: Setup) -> list[Spec]:
    seeds = setup.replicas
    return [
        contest.spec(method, steps, rate, seed)
        for contest in contests(setup)
        for method in (*contest.tried, ALONE)
        for steps in contest.lengths(method)
        for rate in contest.tries(method)
        for seed in seeds
    ]


@dataclass(frozen=True)
class Measured:
    """What needs no results: the contests, and the prices of the methods by their titles."""

    contests: tuple[Contest, ...]
    prices: Mapping[tuple[str, str], Price]


def measure(contests: Contests, setup: Setup) -> Measured:
    """Measure the time of a step of every method; they take turns."""
    found = contests(setup)
    priced = {
        (contest.title, method.title): contest.spec(method, contest.steps, contest.rates[0])
        for contest in found
        for method in contest.tried
    }
    return Measured(found, prices(priced, 3 if setup.size == "smoke" else 21))


# --- the results --------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A method in a contest, at the rate that is best on validation data.

    Attributes:
        title: of the method.
        method: the method.
        group: its runs.
        errors: test error of every seed.
        steps: how the error of ours compares after as many steps.
        time: the same in as much time; None for plain networks for single gammas.
        price: what it costs; None likewise.
    """

    title: str
    method: Method
    group: Group
    errors: list[float]
    steps: Interval
    time: Interval | None
    price: Price | None

    def by_gamma(self, column: str) -> dict[float, list[float]]:
        """Values of every seed by gamma."""
        found = [along(run, column) for run in self.group.runs]
        return {g: [values.get(g, math.nan) for values in found] for g in found[0]}


def _best(results: Results, contest: Contest, method: Method, steps: int) -> Group:
    """The group with the smallest error on validation data."""
    wanted = [contest.spec(method, steps, rate).about for rate in contest.tries(method)]
    groups = [group for group in results if dataclasses.replace(group.spec, seed=0).about in wanted]

    def error(group: Group) -> float:
        mean = statistics.fmean(group.figures("validation error"))
        return mean if math.isfinite(mean) else math.inf

    return min(groups, key=error)


def rows(results: Results, contest: Contest) -> list[Row]:
    """All methods of a contest; ours is the first one."""
    measured: Measured = results.measured
    ours = contest.tried[0]
    by_steps = {
        steps: _best(results, contest, ours, steps).figures("test error")
        for steps in contest.lengths(ours)
    }
    own = measured.prices[contest.title, ours.title].step
    found = []
    for method in (*contest.tried, ALONE):
        price = measured.prices.get((contest.title, method.title))
        for steps in contest.lengths(method)[: 2 if method is ALONE else 1]:
            group = _best(results, contest, method, steps)
            errors = group.figures("test error")
            time = None
            if price is not None:
                time = contest.lead(meanwhile(by_steps, price.step / own * steps), errors)
            lead = contest.lead(by_steps[contest.steps], errors)
            title = contest.name(method, steps)
            found.append(Row(title, method, group, errors, lead, time, price))
    return found


def claims(results: Results) -> list[Claim]:
    measured: Measured = results.measured
    return [
        _claim(contest, row)
        for contest in measured.contests
        for row in rows(results, contest)
        if row.method != contest.tried[0]
    ]


def _claim(contest: Contest, row: Row) -> Claim:
    """Claim that ours is better than another method, or level with it."""
    long = row.group.spec.training.steps == contest.steps
    level = row.method.name in [m.name for m in _LEVEL] or (row.method is ALONE and long)
    bound = contest.level if level else contest.equal
    verdicts = [row.steps.below(bound)]
    much = f" points {'more' if contest.points else ''}" if contest.points else " times as large"
    told = f"{row.steps.text(2, '+' if contest.points else '')}{much.rstrip()}"
    when = "after as many steps"
    if row.time is not None:
        verdicts.append(row.time.below(bound))
        told += f", in as much time {row.time.text(2, '+' if contest.points else '')}"
        when += ", and in as much time"
    elif not long:
        when = "which together train for as many steps"
    if not level:
        text = f"ours has a smaller {contest.error} than {row.title}, {when}"
    elif contest.points:
        text = f"the {contest.error} of ours is at most {contest.level:g} points above that of "
        text += f"{row.title}, {when}"
    else:
        text = f"the {contest.error} of ours is at most {contest.level:g} times that of "
        text += f"{row.title}, {when}"
    return Claim(
        BEYOND,
        f"{text} ({contest.title})",
        f"{contest.error}, mean over gammas: {told} (95 % interval over seeds); at "
        f"rate {row.group.spec.training.lr:g} the other has {Spread.of(row.errors).brief()}",
        every(verdicts),
        "what this task asks of the weights, the other can do as well",
    )


def tables(results: Results) -> list[Table]:
    measured: Measured = results.measured
    heading = ["", "method", "rate", "test error", "error of ours, equal steps"]
    heading += ["error of ours, equal time", "trained weights", "step (ms)"]
    cells, by_gamma = [], []
    for contest in measured.contests:
        for row in rows(results, contest):
            trained = round(row.group.figures("weights held")[0])
            rate = row.group.spec.training.lr
            cells.append(
                [
                    *(contest.title, row.title, judging.among(rate, contest.tries(row.method))),
                    *(Spread.of(row.errors).brief(), row.steps.text(2)),
                    *("" if row.time is None else row.time.text(2), trained),
                    "" if row.price is None else f"{1e3 * row.price.step:.2f}",
                ]
            )
            by_gamma += [
                [contest.title, row.title, f"{gamma:.4g}", Spread.of(values).brief()]
                for gamma, values in row.by_gamma(contest.column).items()
            ]
    return [
        Table("Methods", heading, cells),
        Table("By gamma", ["", "method", "gamma", "test error"], by_gamma, shown=False),
    ]


# --- figures -------------------------------------------------------------------------------


def draw(results: Results) -> Figure:
    """Draw every contest: along gamma, the front of two figures, or a row for every method."""
    measured: Measured = results.measured
    views = [(contest, view) for contest in measured.contests for view in contest.views]
    columns, rest = min(len(views), 2), len(views) > 2
    height = 3.6 if rest else 4.2
    figure, axes = figures.panels(
        *(columns, -(-len(views) // 2)), width=10.0 if len(views) > 1 else 7.0, height=height
    )
    for ax, (contest, view) in zip(axes, views, strict=True):
        found = rows(results, contest)
        {"along": _along, "ratio": _along, "front": _front, "dots": _dots}[view](
            *(ax, contest, found, view)
        )
        ax.set_title(contest.title if len(measured.contests) > 1 else "", fontsize="medium")
    figures.legend(figure)
    return figure


def _style(contest: Contest, row: Row) -> dict[str, Any]:
    """Plain networks for single gammas are points: filled if each trains as long as ours."""
    look: dict[str, Any] = {"color": row.method.color, "label": row.title}
    if row.method is ALONE:
        long = row.group.spec.training.steps == contest.steps
        look |= {"linestyle": "", "marker": "o", "zorder": 3}
        look |= {"markerfacecolor": "black" if long else "none"}
    return look


def _along(ax: Axes, contest: Contest, found: Sequence[Row], view: View) -> None:
    """Errors over gamma; as ``ratio`` relative to plain networks that train as long each."""
    (longest,) = [r for r in found if r.title == contest.name(ALONE, contest.steps)]
    means = {g: statistics.fmean(v) for g, v in longest.by_gamma(contest.column).items()}
    for row in found:
        values = row.by_gamma(contest.column)
        if view == "ratio":
            values = {g: [v / means[g] for v in each] for g, each in values.items()}
        spreads = [Spread.of(each) for each in values.values()]
        figures.band(ax, list(values), spreads, row.method.formulation, **_style(contest, row))
    over = ", over that of separate networks" if view == "ratio" else ""
    ax.set(xlabel=contest.gamma, ylabel=f"{contest.error}{over}", xscale="log", yscale="log")
    if view == "ratio":
        ax.set(yscale="linear", ylim=(0.9, 1.5))
        return
    from matplotlib.ticker import LogFormatter

    ax.yaxis.set(major_formatter=LogFormatter(), minor_formatter=LogFormatter())


def _front(ax: Axes, contest: Contest, found: Sequence[Row], view: View) -> None:
    """Two figures that trade off against each other, along gamma.

    The view is that of the separate networks: what does not train at all would squeeze the rest.
    """
    (one, across), (other, up) = contest.front
    (longest,) = [r for r in found if r.title == contest.name(ALONE, contest.steps)]
    top = 1.3 * max(statistics.fmean(values) for values in longest.by_gamma(other).values())
    for row in found:
        points = (
            [statistics.fmean(values) for values in row.by_gamma(name).values()]
            for name in (one, other)
        )
        ax.plot(*points, **{"marker": ".", **_style(contest, row)})
    ax.set(xlabel=across, ylabel=up, ylim=(0, top))


def _dots(ax: Axes, contest: Contest, found: Sequence[Row], view: View) -> None:
    """The error of every seed, and the mean, in a row for every method."""
    for i, row in enumerate(reversed(found)):
        ax.plot(row.errors, [i] * len(row.errors), "o", color=row.method.color, alpha=0.4)
        ax.plot(statistics.fmean(row.errors), i, "|", color=row.method.color, markersize=18)
    ax.set_yticks(range(len(found)), [row.title for row in reversed(found)], fontsize="small")
    ax.set(xlabel=f"test {contest.error}")
    if not contest.points:
        ax.set_xscale("log")


# --- the studies -----------------------------------------------------------------------------


def _how(setup: Setup, steps: int, batch_size: int) -> dict[str, Any]:
    """How all methods are trained; for size paper ten times as long as for cpu."""
    steps = {"smoke": 8, "cpu": steps, "paper": 10 * steps}[setup.size]
    how = {"steps": steps, "batch_size": batch_size, "device": setup.device}
    return {**how, "schedule": "cosine"}


def _with(changes: Mapping[str, Any], *tried: Method) -> tuple[Method, ...]:
    """Methods whose hypernetworks have these settings; ours and FiLM alone are the library's."""
    return tuple(
        dataclasses.replace(method, settings={**method.settings, **changes})
        if method in (OURS, FILM)
        else method
        for method in tried
    )


def _equations(setup: Setup) -> tuple[Contest, ...]:
    smoke = setup.size == "smoke"
    how = _how(setup, 500, 40 if smoke else 256)
    count = 2 if smoke else 5
    wide = dataclasses.replace(WIDE, settings={"width": 32 if smoke else 160})
    return tuple(
        Contest(
            title,
            base("problems", {"problem": name, "count": count, "width": 8 if smoke else 32}, how),
            *({"gammas": count}, count),
            tried=_with({}, OURS, HAND, FILM, CHANNEL, wide, SHARED),
            rates=(1e-2,) if smoke else RATES,
            low=None if smoke else LOW,
            gamma="coefficient a",
            error="relative error",
        )
        for name, title in (
            ("reaction", "diffusion against reaction"),
            ("oscillation", "damped oscillation"),
        )
    )


def _adapters(setup: Setup) -> tuple[Contest, ...]:
    smoke = setup.size == "smoke"
    count = 2 if smoke else 8
    small = {"width": 8, "pretraining": 4, "evaluation_images": 20} if smoke else {"data": "mnist"}
    common = {"problem": "adapters", "count": count, "data_dir": setup.data_dir, **small}
    return (
        Contest(
            "low-rank adapters",
            base("problems", common, _how(setup, 400, 16 if smoke else 64)),
            *({"gammas": count}, count),
            tried=(OURS, HAND, FILM, CHANNEL, SHARED),
            rates=(1e-2,) if smoke else RATES,
            low=None if smoke else LOW,
            level=MARGINS["accuracy"],
            points=True,
            views=("dots",),
            error="percentage of wrong answers",
        ),
    )


def _implicit(setup: Setup) -> tuple[Contest, ...]:
    smoke = setup.size == "smoke"
    count = 2 if smoke else 16
    small = {"width": 8} if smoke else {"data": "mnist"}
    common = {"problem": "implicit", "count": count, "data_dir": setup.data_dir, **small}
    wide = dataclasses.replace(WIDE, settings={"width": 16 if smoke else 160})
    return (
        Contest(
            "an image to an implicit network",
            base(
                "problems",
                {**common, "gammas": 4 if smoke else 32},
                _how(setup, 1000, 32 if smoke else 1024),
            ),
            *({"gammas": count}, count),
            tried=_with({"directions": 24}, OURS, HAND, FILM, CHANNEL, wide),
            rates=(3e-3,) if smoke else RATES,
            low=None if smoke else LOW,
            views=("dots",),
            error="squared error",
        ),
    )


def _trade_off(setup: Setup) -> tuple[Contest, ...]:
    smoke = setup.size == "smoke"
    small: dict[str, Any] = {"widths": (8,), "latent": 2, "evaluation_images": 20}
    if not smoke:
        small = {"data": "mnist", "widths": (32,), "latent": 8}
    common = {"evaluation_gammas": len(BETAS), "data_dir": setup.data_dir, **small}
    return (
        Contest(
            "rate against distortion",
            base("vae", common, _how(setup, 500, 16 if smoke else 128)),
            *({"beta": BETAS, "gammas": len(BETAS)}, len(BETAS)),
            tried=(OURS, CLASSICAL, MIP, FILM, CHANNEL, SHARED),
            rates=(1e-2,) if smoke else RATES,
            low=None if smoke else LOW,
            level=1.02,
            column="objective",
            views=("front", "ratio"),
            gamma="beta, the price of the rate",
            error="objective",
        ),
    )


def _decision_cost(setup: Setup) -> tuple[Contest, ...]:
    smoke = setup.size == "smoke"
    small: dict[str, Any] = {"evaluation_images": 20}
    if not smoke:
        small = {"data": "mnist", "evaluation_images": 10_000}
    count = 2 if smoke else 5
    common = {"problem": "cost", "count": count, "data_dir": setup.data_dir, **small}
    return tuple(
        Contest(
            f"{width} hidden units",
            base("problems", {**common, "width": width}, _how(setup, 800, 16 if smoke else 128)),
            *({"gammas": count}, count),
            tried=(OURS, CLASSICAL, MIP, HAND, FILM, CHANNEL, SHARED, EXPECTED),
            rates=(1e-2,) if smoke else RATES[1:4],
            low=None if smoke else LOW[1:4],
            level=1.05,
            views=("front", "along"),
            gamma="cost of mistakes in 0 to 4",
            error="cost",
            front=(
                ("wrong, first classes (%)", "wrong in 0 to 4 (%)"),
                ("wrong, other classes (%)", "wrong in 5 to 9 (%)"),
            ),
        )
        for width in ((4, 8) if smoke else (4, 32))
    )


def _study(contests: Contests, name: str, **about: Any) -> Study:
    return Study(
        name=name,
        source=BEYOND,
        specs=functools.partial(specs, contests),
        draw=draw,
        claims=claims,
        measure=functools.partial(measure, contests),
        tables=tables,
        **about,
    )


EQUATIONS = _study(
    _equations,
    "equations",
    title="A family of differential equations, and what else could solve it",
    caption="Error relative to the exact solution, over the coefficient of the equation. Lines are "
    "one network for all coefficients each, circles networks for single ones: filled if each "
    "trains for as many steps, open if all of them together do. Mean and standard deviation over "
    "seeds; each at the best rate by what is left of the equation.",
    reduced={
        "smoke": "networks of width 8, two coefficients, 8 steps (4 steps and 2 steps for equal "
        "time and for plain networks that together train for as many)",
        "cpu": "500 steps in batches of 256 points (250 steps and 125 steps for equal time; plain "
        "networks: batches of 1280 points, 256 for each of five coefficients, and 100 steps where "
        "they together train for as many); five rates",
    },
)

ADAPTERS = _study(
    _adapters,
    "adapters",
    title="One pretrained transformer, contradictory tasks, predicted low-rank adapters",
    caption="Wrong answers to test images, mean over tasks: every seed is a circle, the bar is the "
    "mean. Task k turns images by k quarter turns, and asks for the digit plus k, so that the same "
    "picture has several answers. All start from one transformer that names upright digits; its "
    "adapters are predicted, shared (FiLM and the task as an input come on top), or one set is "
    "trained for every task. Each at the best rate on validation images.",
    reduced={
        "smoke": "two tasks of digits, 8 steps (4 steps and 2 steps for equal time and for "
        "adapters that together train for as many)",
        "cpu": "MNIST; 400 steps in batches of 64 images (200 steps and 100 steps for equal time; "
        "one set of adapters per task: batches of 512 images, 64 for each of eight tasks, and 50 "
        "steps where they together train for as many); five rates",
    },
)

IMPLICIT = _study(
    _implicit,
    "implicit",
    title="An image to an implicit network, and what else could draw it",
    caption="Squared error of the grey values of test images: every seed is a circle, the bar is "
    "the mean. A network reads the image into a code, from which the weights of sine layers "
    "(SIREN) are predicted, or which stands beside the coordinates. One network fitted to each "
    "test image says what can be had. Each at the best rate on validation images.",
    reduced={
        "smoke": "two digits, 8 steps (4 steps and 2 steps for equal time and for networks that "
        "together train for as many)",
        "cpu": "MNIST, tested on 16 images; 1000 steps in batches of 1024 pixels of 32 images (500 "
        "steps and 250 steps for equal time; one network per image: batches of 16384 pixels, 1024 "
        "for each, and 62 steps where they together train for as many); five rates",
    },
)

TRADE_OFF = _study(
    _trade_off,
    "trade-off",
    title="The front of rate and distortion, and what else could reach it",
    caption="Left: distortion of test images over their rate, for five prices of the rate. Right: "
    "the objective over that of a plain network for each price. Lines are one autoencoder for all "
    "prices each, circles plain networks for single ones: filled if each trains for as many steps, "
    "open if all of them together do. Mean and standard deviation over seeds; each at the best "
    "rate on validation images.",
    reduced={
        "smoke": "digits, 8 steps (4 steps and 2 steps for equal time, 1 steps for plain networks "
        "that together train for as many)",
        "cpu": "MNIST, 32 hidden units; 500 steps in batches of 128 (250 steps and 125 "
        "steps for equal time; plain networks: batches of 640, 128 for each of five prices, and "
        "100 steps where they together train for as many); five rates",
    },
)

DECISION_COST = _study(
    _decision_cost,
    "decision-cost",
    title="The cost of a mistake, chosen after training, and what needs no other weights",
    caption="Digits are classified; a mistake in one of 0 to 4 costs 1/32 to 32 times as much as "
    "in one of 5 to 9. Wrong answers to test images of both kinds, and the cost of all mistakes "
    "in percent of the cost if every answer were wrong, for five costs. Lines are one network for "
    "all costs each, circles plain networks for single ones: filled if each trains for as many "
    "steps, open if all of them together do. The plain network of least expected cost is trained "
    "without costs; its answers are those that cost least by its probabilities. Networks have two "
    "hidden layers, whose width is the title. Mean and standard deviation over seeds; each at the "
    "best rate on validation images.",
    reduced={
        "smoke": "digits, two costs, 8 steps (4 steps and 2 steps for equal time and for plain "
        "networks that together train for as many)",
        "cpu": "MNIST; 800 steps in batches of 128 (400 steps and 200 steps for equal time; plain "
        "networks: batches of 640, 128 for each of five costs, and 160 steps where they together "
        "train for as many); three rates",
    },
)
