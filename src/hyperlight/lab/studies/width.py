"""Beyond the paper: how wide the hypernetwork should be, and how many directions it needs.

A dense head holds one weight for every predicted one and feature that it reads, so the number of
features decides what a hypernetwork costs. This study compares three ways to have few of them with
a head that reads all 128 features of a trunk: a linear projection of the trunk ("linear"), a narrow
last layer with an activation ("activated"), and other trunks before the projection. Other heads are
compared with them. The tasks are those whose answer must change with gamma: families of functions,
fast or slow, along one input or many; registration; a beta-VAE; and pictures that pass through a
network.

What was to be shown was fixed beforehand: a width is as good if its test error is at most 1.10
times that of the head with all features, as a geometric mean over seeds.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import figures
from ..comparison import Interval, Verdict, every
from ..engine import Spec
from ..summary import BEYOND, Claim
from .base import Group, Results, Setup, Study, Table, base, grid
from .price import Price, log, meanwhile, prices

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A width is as good if the mean ratio of its error to that of the whole head is at most this...
GOOD = 1.10
# ...and that is decided if the upper end of the 95 % interval is at most this.
DECIDED = 1.25
# A share of energy in the last direction above which more directions are needed.
LAST = 0.01
RATES = (5e-3, 1e-2)
TRUNK = (64, 128)


@dataclass(frozen=True)
class Width:
    """Hidden layers, the number of directions if the head reads a projection, and the head."""

    hidden: tuple[int, ...]
    directions: int | None = None
    head: str = "dense"

    @property
    def kind(self) -> str:
        """``all features``, ``linear``, ``activated``, another trunk, or another head."""
        if self.head != "dense":
            return HEADS[self.head]
        if self == WHOLE:
            return "all features"
        if self.directions is None:
            return "activated"
        return "linear" if self.hidden == TRUNK else f"linear after {self.hidden}"

    @property
    def read(self) -> int:
        """Number of features that the head reads."""
        return self.directions or self.hidden[-1]

    @property
    def title(self) -> str:
        """``linear, 16``."""
        return f"{self.kind}, {self.read}"


WHOLE = Width(TRUNK)

# Heads other than the dense one, as the lab's option and as the tables have them.
HEADS = {
    "low-rank": "LowRank(4)",
    "per-layer": "PerLayer",
    "channel-scale": "ChannelScale",
}


def linear(directions: int) -> Width:
    return Width(TRUNK, directions)


def activated(features: int) -> Width:
    return Width((TRUNK[0], features))


def other(head: str, directions: int) -> Width:
    """Another head; it reads a projection where that is smaller than the trunk."""
    return Width(TRUNK, directions if head == "channel-scale" else None, head)


# Other trunks before the projection.
TRUNKS = ((16, 128), (128, 256), (64, 64, 128))


@dataclass(frozen=True)
class Cell:
    """A task and the widths that it is tried with.

    Attributes:
        title: in figures.
        chosen: the number of directions that the default has for such inputs.
        others: other numbers of directions.
        settings: of the task, by name.
        task: its name.
        training: how it is trained, by name.
        rates: learning rates to choose from.
        narrow: sizes of a narrow last layer.
        trunks: whether other trunks are tried.
        heads: other heads that are tried.
    """

    title: str
    chosen: int
    others: tuple[int, ...]
    settings: tuple[tuple[str, Any], ...]
    task: str = "families"
    training: tuple[tuple[str, Any], ...] = ()
    rates: tuple[float, ...] = RATES
    narrow: tuple[int, ...] = (8, 32)
    trunks: bool = False
    heads: tuple[str, ...] = ()

    def belongs(self, group: Group) -> bool:
        """Whether a group is of this cell."""
        spec = group.spec
        return spec.task == self.task and all(
            getattr(spec.config, name) == value for name, value in self.settings
        )


def _family(
    family: str, count: int, title: str, chosen: int, others: tuple[int, ...], **more: Any
) -> Cell:
    """A cell of the task of families, with a number of gammas in every batch."""
    settings = {"family": family, "count": count, "gammas": more.pop("gammas", 16)}
    return Cell(title, chosen, others, tuple(settings.items()), **more)


_ALL = tuple(HEADS)
_IMAGES = (("batch_size", 32),)
# At 96x80, with the small last layer and the decay that science of registration asks for.
_REGISTRATION = {
    "data": "ptbp",
    "size": (96, 80),
    "channels": 16,
    "flow_scale": 1e-5,
    "init": "relative",
    "final_pairs": 48,
    "tune_steps": 1,
}
_REGISTERED = {"batch_size": 4, "rates": "groups", "schedule": "cosine"}

CELLS = (
    _family("hat", 16, "1 input, fast", 16, (4, 8, 32), trunks=True, heads=_ALL),
    _family("frequency", 4, "1 input, slow", 16, (4, 8)),
    _family(
        *("filtered", 8, "1 input, convolutions", 16, (4, 8, 32)),
        gammas=32,
        training=_IMAGES,
        trunks=True,
        heads=_ALL,
    ),
    Cell(
        *("1 input, registration", 16, ()),
        tuple(_REGISTRATION.items()),
        "hypermorph",
        tuple(_REGISTERED.items()),
        rates=(2e-3, 5e-3),
        narrow=(),
        heads=("channel-scale",),
    ),
    Cell(
        *("1 input, beta-VAE", 16, (4, 8)),
        (("data", "digits"),),
        "vae",
        (("rates", "groups"), ("schedule", "cosine")),
        rates=(1e-3, 3e-3),
        narrow=(8,),
        heads=_ALL,
    ),
    _family("interaction", 2, "2 inputs", 16, (4, 8, 24), gammas=32),
    _family("interaction", 8, "8 inputs", 24, (8, 16, 32, 40), gammas=32),
    _family("interaction", 32, "32 inputs", 72, (16, 32), gammas=32, narrow=()),
    _family("permuted", 10, "10 categories", 16, (4, 8), gammas=8, narrow=()),
    _family("permuted", 50, "50 categories", 40, (16, 24), gammas=8, heads=_ALL),
    _family("embedding", 8, "embedding, 8 directions count", 40, (8, 16), gammas=32),
    _family("embedding", 32, "embedding, 32 directions count", 40, (16,), gammas=32, narrow=()),
    _family(
        "picture", 64, "an image, through a network", 40, (8, 16), gammas=32, narrow=(), heads=_ALL
    ),
)
_SMOKE = (
    _family("hat", 2, "1 input", 4, (2,), gammas=4, narrow=(4,), heads=("channel-scale",)),
    _family("permuted", 3, "3 categories", 4, (2,), gammas=4, narrow=(4,)),
)
_LADDER = (2, 4, 8, 16, 24, 32, 40, 72, 96)


def cells(setup: Setup) -> tuple[Cell, ...]:
    """The tasks of a size."""
    if setup.size == "smoke":
        return _SMOKE
    if setup.size == "cpu":
        return CELLS
    return tuple(
        dataclasses.replace(
            cell,
            others=tuple(r for r in _LADDER if r != cell.chosen),
            narrow=_LADDER,
            trunks=True,
            heads=_ALL,
        )
        for cell in CELLS
    )


def widths(cell: Cell) -> list[Width]:
    """All widths that a task is tried with."""
    return [
        WHOLE,
        *map(linear, sorted({cell.chosen, *cell.others})),
        *map(activated, cell.narrow),
        *(Width(trunk, cell.chosen) for trunk in TRUNKS if cell.trunks),
        *(other(head, cell.chosen) for head in cell.heads),
    ]


_STEPS = {"smoke": 8, "cpu": 800, "paper": 6000}


def _base(setup: Setup, cell: Cell) -> Spec:
    steps = _STEPS[setup.size]
    few = {"evaluation_gammas": 2} if setup.size == "smoke" else {}
    how = {"batch_size": 256, **dict(cell.training)}
    if setup.size == "smoke":
        how["batch_size"] = 32
    return base(
        cell.task,
        {**dict(cell.settings), "data_dir": setup.data_dir, **few},
        {**how, "steps": steps, "evaluate_every": steps // 4, "device": setup.device},
    )


def specs(setup: Setup) -> list[Spec]:
    seeds = setup.replicas
    found: list[Spec] = []
    for cell in cells(setup):
        start = _base(setup, cell)
        shorter = [start.training.steps // 4, start.training.steps // 2]
        for width in widths(cell):
            steps = [start.training.steps, *(shorter if width == WHOLE else ())]
            config = dataclasses.replace(start.config, **dataclasses.asdict(width))
            for n in steps:
                how = dataclasses.replace(start.training, steps=n, evaluate_every=n // 4 or 1)
                found += grid(
                    dataclasses.replace(start, config=config, training=how),
                    seeds=seeds,
                    formulations=["mip"],
                    training={"lr": cell.rates[-1:] if setup.size == "smoke" else cell.rates},
                )
    return found


# --- what a width costs -----------------------------------------------------------------


Prices = Mapping[tuple[Cell, Width], Price]


def measure(setup: Setup) -> Prices:
    """Measure sizes and step times on the CPU; the widths of a family take turns."""
    rounds = 3 if setup.size == "smoke" else 31
    found: dict[tuple[Cell, Width], Price] = {}
    for cell in cells(setup):
        start = _base(setup, cell)
        specs = {
            (cell, width): dataclasses.replace(
                start, config=dataclasses.replace(start.config, **dataclasses.asdict(width))
            )
            for width in widths(cell)
        }
        found |= prices(specs, rounds)
    return found


# --- quality ----------------------------------------------------------------------------


def _ratio(errors: Sequence[float], others: Sequence[float]) -> Interval:
    """Errors over those of the same seeds; a run that diverged has an infinite one."""
    return Interval.ratio([_finite(e) for e in errors], [_finite(e) for e in others])


def _verdict(ratio: Interval) -> Verdict:
    """Whether a width is as good."""
    return ratio.below(DECIDED, GOOD)


def _finite(error: float) -> float:
    return error if math.isfinite(error) else math.inf


@dataclass(frozen=True)
class Quality:
    """A width in a family, at the rate that is best on validation data.

    Attributes:
        rate: the learning rate.
        errors: test error of every seed.
        last: share of the energy in the last direction, mean over seeds.
    """

    rate: float
    errors: list[float]
    last: float


def _figures(group: Group, name: str) -> list[float]:
    """A final figure of every seed; NaN for those that diverged or do not have it."""
    found = [None if r.outcome is None else r.outcome.figures.get(name) for r in group.runs]
    return [math.nan if figure is None else figure for figure in found]


def _quality(results: Results, cell: Cell, width: Width, steps: int) -> Quality:
    found = [
        group
        for group in results.where(**dataclasses.asdict(width), steps=steps)
        if cell.belongs(group)
    ]

    def validation(group: Group) -> float:
        mean = statistics.fmean(_figures(group, "validation error"))
        return mean if math.isfinite(mean) else math.inf

    best = min(found, key=validation)
    last = statistics.fmean(_figures(best, "energy in the last direction"))
    return Quality(best.spec.training.lr, _figures(best, "test error"), last)


@dataclass(frozen=True)
class Row:
    """Everything about a width in a family; ratios are to the head with all features.

    Attributes:
        cell: the family.
        width: the width.
        price: what it costs.
        quality: test errors.
        steps: ratio of the errors after as many steps.
        time: ratio of the errors after the time that this width takes.
    """

    cell: Cell
    width: Width
    price: Price
    quality: Quality
    steps: Interval
    time: Interval


def _rows(results: Results) -> list[Row]:
    measured: Prices = results.measured
    lengths = sorted(results.values("steps"))
    found = []
    for cell in dict.fromkeys(cell for cell, _ in measured):
        whole = {n: _quality(results, cell, WHOLE, n) for n in lengths}
        for width in (width for there, width in measured if there == cell):
            own = _quality(results, cell, width, lengths[-1])
            share = measured[cell, width].step / measured[cell, WHOLE].step
            errors = {n: quality.errors for n, quality in whole.items()}
            found.append(
                Row(
                    *(cell, width, measured[cell, width], own),
                    steps=_ratio(own.errors, whole[lengths[-1]].errors),
                    time=_ratio(own.errors, meanwhile(errors, share * lengths[-1])),
                )
            )
    return found


# --- figure, claims, tables ---------------------------------------------------------------

_COLORS = {"linear": "#0072b2", "activated": "#d55e00"}


def draw(results: Results) -> Figure:
    """Draw a panel for every family: test error over the number of features."""
    from matplotlib.ticker import LogLocator

    rows = _rows(results)
    shown = list(dict.fromkeys(row.cell for row in rows))
    columns = min(3, len(shown))
    count = -(-len(shown) // columns)
    figure, axes = figures.panels(columns, count, width=8.4, height=2.3)
    for ax, cell in zip(axes, shown, strict=False):
        here = [row for row in rows if row.cell == cell]
        (whole,) = (row for row in here if row.width == WHOLE)
        ax.axhline(_geometric(whole.quality.errors), color="black", linestyle="--", linewidth=1.2)
        for kind, color in _COLORS.items():
            line = sorted((r for r in here if r.width.kind == kind), key=lambda r: r.width.read)
            x = [row.width.read for row in line]
            ax.plot(x, [_geometric(r.quality.errors) for r in line], color=color, marker="o")
            for row in line:
                errors = row.quality.errors
                ax.plot([row.width.read] * len(errors), errors, ".", color=color, alpha=0.4)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ticks = sorted({row.width.read for row in here if row.width.kind in _COLORS})
        ax.set_xticks(ticks, [str(r) for r in ticks], fontsize="small")
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        ax.set_title(cell.title, fontsize="medium")
    for ax in axes[len(shown) :]:
        ax.set_visible(False)
    for ax in axes[: len(shown)][-columns:]:
        ax.set_xlabel("features that the head reads")
    for ax in axes[::columns]:
        ax.set_ylabel("test error")
    axes[0].plot([], [], color="black", linestyle="--", label="all 128 features")
    for kind, color in _COLORS.items():
        axes[0].plot([], [], color=color, marker="o", label=_LABELS[kind])
    figures.legend(figure)
    return figure


_LABELS = {"linear": "linear projection", "activated": "narrow last layer with activation"}


def _geometric(errors: Sequence[float]) -> float:
    mean = statistics.fmean(log(error) for error in errors)
    return math.exp(mean) if math.isfinite(mean) else math.nan


def claims(results: Results) -> list[Claim]:
    rows = _rows(results)
    found: list[Claim | None] = []
    for row in rows:
        if row.width == linear(row.cell.chosen):
            found.append(
                Claim(
                    BEYOND,
                    f"with {row.width.read} directions the error is at most {GOOD:.2f} times that "
                    f"of a head that reads all 128 features ({row.cell.title})",
                    f"{row.steps.text(2)} times at equal steps, {row.time.text(2)} times at equal "
                    "time (geometric mean over seeds, 95 % interval); "
                    f"{row.price.weights:,} weights, a step takes {1e3 * row.price.step:.1f} ms",
                    _verdict(row.steps),
                    "this family changes in more directions, or faster, than so few learn in so "
                    "few steps",
                )
            )
    found.append(_narrow(rows))
    found += [_head(rows, name) for name in HEADS.values()]
    found.append(_last(rows))
    return [claim for claim in found if claim is not None]


def _narrow(rows: Sequence[Row]) -> Claim:
    """Claim that a linear projection is better than an activated layer of the same size."""
    by_width = {(row.cell, row.width): row for row in rows}
    pairs = [
        (row, by_width[row.cell, linear(row.width.read)])
        for row in rows
        if row.width.kind == "activated" and (row.cell, linear(row.width.read)) in by_width
    ]
    ratios = [_ratio(a.quality.errors, b.quality.errors) for a, b in pairs]
    better = sum(ratio.mean > 1.0 for ratio in ratios)
    shown = [
        f"{a.cell.title}, {a.width.read}: {ratio.text(2)}"
        for (a, _), ratio in zip(pairs, ratios, strict=True)
    ]
    return Claim(
        BEYOND,
        "with as many features, a linear projection of a wide trunk has a smaller error than a "
        "narrow last layer with an activation",
        f"in {better} of {len(pairs)} comparisons; error of the narrow layer over that of the "
        f"projection: {'; '.join(shown)}",
        every(ratio.above(1.0) for ratio in ratios),
        "where the family changes slowly, any few features are enough",
    )


def _head(rows: Sequence[Row], name: str) -> Claim | None:
    """Claim that another head is as good as the default; None where it was not tried."""
    chosen = {row.cell: row for row in rows if row.width == linear(row.cell.chosen)}
    pairs = [(row, chosen[row.cell]) for row in rows if row.width.kind == name]
    ratios = [_ratio(a.quality.errors, b.quality.errors) for a, b in pairs]
    if not ratios:
        return None
    shown = [
        f"{a.cell.title}: {ratio.text(2)} with {a.price.weights:,} weights for {b.price.weights:,}"
        for (a, b), ratio in zip(pairs, ratios, strict=True)
    ]
    return Claim(
        BEYOND,
        f"a head of {name} has an error at most {GOOD:.2f} times that of the default's",
        f"error over that of the default: {'; '.join(shown)}",
        every(map(_verdict, ratios)),
        "it changes the weights in fewer ways",
    )


def _last(rows: Sequence[Row]) -> Claim:
    """Claim that a full last direction means that there are too few."""
    full = [row for row in rows if row.width.read < TRUNK[-1] and row.quality.last > LAST]
    few = [row for row in full if row.steps.mean > GOOD]
    missed = [row for row in rows if row.quality.last <= LAST and row.steps.low > GOOD]
    others = [f"{row.cell.title}, {row.width.title}" for row in full if row not in few]
    return Claim(
        BEYOND,
        f"more than {LAST:g} of the energy in the last direction (times their number) means that "
        "there are too few",
        f"{len(few)} of {len(full)} such widths have an error above {GOOD:.2f} times that with all "
        f"features{'; not ' if others else ''}{'; '.join(others)}; of the widths below it, "
        f"{len(missed)} are too narrow as well",
        every(row.steps.above(1.0, GOOD) for row in full),
    )


def tables(results: Results) -> list[Table]:
    heading = ["", "features", "hidden layers", "directions", "weights", "file (kB)", "step (ms)"]
    heading += ["rate", "test error", "error, equal steps", "error, equal time", "last direction"]
    cells = []
    for row in _rows(results):
        errors = row.quality.errors
        spread = f" ± {statistics.stdev(errors):.2g}" if len(errors) > 1 else ""
        cells.append(
            [
                *(row.cell.title, row.width.kind, " ".join(map(str, row.width.hidden))),
                row.width.directions or "none",
                row.price.weights,
                round(row.price.file / 1000),
                f"{1e3 * row.price.step:.2f}",
                f"{row.quality.rate:g}",
                f"{statistics.fmean(errors):.3g}{spread}",
                *(row.steps.text(2), row.time.text(2), f"{row.quality.last:.2g}"),
            ]
        )
    return [Table("Widths", heading, cells)]


STUDY = Study(
    name="width",
    title="How wide should the hypernetwork be?",
    source=BEYOND,
    caption="Test error over the number of features that the head reads: a linear projection of a "
    "trunk (64, 128), and a narrow last layer with an activation, (64, K). The dashed line is a "
    "head that reads all 128 features. Lines are geometric means over seeds, dots single seeds. "
    "The rate of each point is the better of two on validation data.",
    specs=specs,
    draw=draw,
    claims=claims,
    measure=measure,
    tables=tables,
    reduced={
        "smoke": "two small families, 8 steps (4 steps and 2 steps for equal time)",
        "cpu": "800 steps (400 steps and 200 steps for equal time) in batches of 256, batches of "
        "32 images for the convolutional network, or batches of 4 pairs for registration; two "
        "rates; other trunks in two families, other heads in six",
    },
)
