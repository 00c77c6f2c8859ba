"""Table 2: why the classical formulation does not learn MNIST with SGD here, unlike in the paper.

Its first predicted weights have the same norm in every layer. That is less than a network needs, so
each layer shrinks the differences between images, and at the end they are too small to learn from.
Adam does not notice, because it divides by the size of the gradient. The paper gives neither the
kernels of its LeNet nor the range of its pixels, which decide how small they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import figures
from ..comparison import Interval, opposite
from ..engine import Spec, task_of
from ..summary import BEYOND, Claim
from ..tasks.base import Formulation, evaluating
from . import drawing, settings
from .base import Group, Results, Setup, Study, Table, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAINS = (1.0, 2.0, 4.0, 8.0)
# The largest rate that the paper found as good as its own (A.2).
FAST = 3e-3
# Accuracy above which a network has learned the task, in percent.
LEARNED = 90.0


def specs(setup: Setup) -> list[Spec]:
    start, seeds = settings.bayes(setup), setup.replicas

    def runs(
        *formulations: Formulation, lr: float = start.training.lr, **config: Any
    ) -> list[Spec]:
        training: dict[str, list[Any]] = {"optimizer": ["sgd"], "lr": [lr]}
        return grid(start, seeds=seeds, formulations=formulations, config=config, training=training)

    return [
        *runs("plain", "mip"),
        *runs("classical", gain=GAINS),
        *runs("classical", prior=["normal"]),
        *runs("classical", lr=FAST),
    ]


@dataclass(frozen=True)
class _Line:
    """A line of the figure."""

    title: str
    color: str
    find: Callable[[Results], Group]


def _classical(results: Results, gain: float = 1.0) -> Group:
    lowest = min(results.values("lr"))
    return results.one(formulation="classical", gain=gain, prior="uniform", lr=lowest)


def _normal(results: Results) -> Group:
    return results.one(formulation="classical", prior="normal")


def _fast(results: Results) -> Group:
    return results.one(formulation="classical", lr=FAST)


def _lines() -> list[_Line]:
    red = figures.COLORS["classical"]
    shades = dict(zip(GAINS, (red, "#e69f00", "#009e73", "#56b4e9"), strict=True))

    def scaled(gain: float) -> _Line:
        title = "classical" if gain == 1.0 else f"classical, first weights {gain:g} times as large"
        return _Line(title, shades[gain], lambda results: _classical(results, gain))

    return [
        _Line("plain network", figures.COLORS["plain"], lambda r: r.one(formulation="plain")),
        _Line("MIP", figures.COLORS["mip"], lambda r: r.one(formulation="mip")),
        *(scaled(gain) for gain in GAINS),
    ]


# --- the size of what the layers return --------------------------------------------------------


def measure(setup: Setup) -> Mapping[str, list[float]]:
    """What every line's layers return before training: how much it differs between images."""
    found: dict[str, list[float]] = {}
    first: dict[tuple[str, float], Spec] = {}
    for spec in specs(setup):
        if spec.config.prior == "uniform" and spec.seed == 0:
            first.setdefault((spec.formulation, spec.config.gain), spec)
    for line, key in zip(
        _lines(),
        [("plain", 1.0), ("mip", 1.0), *(("classical", gain) for gain in GAINS)],
        strict=True,
    ):
        spec = first[key]
        task = task_of(spec.task, spec.config, torch.device("cpu"))
        model = task.model(spec.formulation, spec.seed)
        images = next(task.batches(128, 0)).images
        with torch.no_grad(), evaluating(model):
            found[line.title] = differences(model.bind(gamma=torch.tensor(1.0)), images)
    return found


def differences(net: nn.Module, images: Tensor) -> list[float]:
    """How much the outputs of a network's layers differ between images.

    Args:
        net: with convolutions and linear layers.
        images: ``(N, C, H, W)``.

    Returns:
        For each of these layers, in the order in which they run: the standard deviation over the
        images, as a root mean square over entries.

    >>> from hyperlight.lab.studies.sgd import differences
    >>> layer = nn.Linear(1, 2, bias=False)
    >>> layer.weight.data.fill_(3.0).shape
    torch.Size([2, 1])
    >>> differences(layer, torch.tensor([[-1.0], [1.0]]))
    [3.0]
    """
    found: list[float] = []

    def see(_: nn.Module, __: object, y: Tensor) -> None:
        found.append(float(y.detach().var(dim=0, correction=0).mean().sqrt()))

    layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(see) for layer in layers]
    try:
        with torch.no_grad():
            net(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


# --- the page ----------------------------------------------------------------------------------


def draw(results: Results) -> Figure:
    figure, (size, accuracy) = figures.panels(2, height=3.4)
    for line in _lines():
        values = results.measured[line.title]
        size.plot(range(1, len(values) + 1), values, marker=".", color=line.color, label=line.title)
        drawing.panel(accuracy, [line.find(results)], color=line.color)
    size.set(
        xlabel="layer of the primary",
        ylabel="differences between images",
        title="before training, at gamma 1",
        yscale="log",
    )
    accuracy.set_title("SGD")
    figures.legend(figure)
    return figure


def _ends(group: Group) -> str:
    return f"final accuracy {group.final.text(1)} %"


def _learns(group: Group, text: str, source: str, guess: str = "") -> Claim:
    verdict = Interval.of(group.finals).at_least(LEARNED)
    return Claim(source, text, _ends(group), verdict, guess)


def claims(results: Results) -> list[Claim]:
    classical, mip = _classical(results), results.one(formulation="mip")
    measured: Mapping[str, list[float]] = results.measured
    small, usual = measured["classical"][-1], measured["plain network"][-1]
    larger = _classical(results, 4.0)
    others = {"standard normal inputs": _normal(results), "ten times the rate": _fast(results)}
    return [
        _learns(
            classical,
            f"with SGD, the classical formulation learns MNIST (99.2 % in the paper; here: more "
            f"than {LEARNED:g} %)",
            "table 2",
            f"before training, its logits differ between images by {small:.1e}, those of a plain "
            f"network by {usual:.1e}",
        ),
        _learns(mip, f"with SGD, MIP learns MNIST (more than {LEARNED:g} %)", "table 2"),
        _learns(
            larger,
            "with first predicted weights 4 times as large, the classical formulation learns MNIST "
            f"with SGD (more than {LEARNED:g} %)",
            BEYOND,
            "it needs more steps",
        ),
        *(
            Claim(
                BEYOND,
                f"with {name} alone, the classical formulation does not learn it",
                _ends(group),
                opposite(Interval.of(group.finals).at_least(LEARNED)),
            )
            for name, group in others.items()
        ),
    ]


def tables(results: Results) -> list[Table]:
    measured: Mapping[str, list[float]] = results.measured
    rows = []
    for line in _lines():
        group, values = line.find(results), measured[line.title]
        rows.append([line.title, f"{group.spec.training.lr:g}", f"{values[-1]:.1e}"])
        rows[-1] += [group.final.text(1)]
    for title, group in (
        ("classical, standard normal inputs", _normal(results)),
        ("classical, ten times the rate", _fast(results)),
    ):
        rows.append([title, f"{group.spec.training.lr:g}", "", group.final.text(1)])
    heading = ["", "rate", "logits differ between images by", "final accuracy (%)"]
    layers = [
        [title, layer, f"{value:.4g}"]
        for title, values in measured.items()
        for layer, value in enumerate(values, start=1)
    ]
    return [
        Table("Final accuracy with SGD", heading, rows),
        Table("Differences by layer", ["", "layer", "differences between images"], layers, False),
    ]


STUDY = Study(
    name="sgd",
    title="Why the classical formulation does not learn MNIST with SGD",
    source="table 2",
    caption="Left: how much the outputs of the primary's layers differ between images before "
    "training, at gamma 1 (standard deviation over 128 images). Right: test accuracy with SGD. The "
    "first predicted weights of the classical formulation are those of the paper, and 2, 4 and 8 "
    "times as large. Mean and standard deviation over seeds.",
    specs=specs,
    draw=draw,
    claims=claims,
    measure=measure,
    tables=tables,
    reduced=settings.reduced("bayes"),
)
