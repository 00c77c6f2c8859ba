"""Figures 3a and 3b: weights and layer outputs at initialisation, for several values of gamma."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ... import HyperModel
from .. import figures
from ..comparison import Interval
from ..summary import Claim
from ..tasks import KINDS
from ..tasks.base import Fixed, Formulation
from . import settings
from .base import Results, Setup, Study, Table
from .drawing import NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["OUTPUTS", "WEIGHTS"]

GAMMAS = (0.05, 0.25, 0.5, 0.75, 1.0)
FORMULATIONS: tuple[Formulation, ...] = ("classical", "mip", "plain")
# Standard deviations within this factor of each other are alike.
CLOSE = 1.25
_KEPT = 2000  # values of a layer that its density is estimated from


@dataclass(frozen=True)
class Values:
    """Values in one layer of one model.

    Attributes:
        stds: standard deviation of all values, for each seed.
        sample: some of the values, from all seeds.
    """

    stds: list[float]
    sample: NDArray[np.float64]

    @property
    def std(self) -> float:
        """Standard deviation, mean over the seeds."""
        return statistics.fmean(self.stds)


# By formulation, gamma (None for the plain network) and layer.
Measured = Mapping[tuple[str, float | None], Mapping[str, Values]]


def _measure(setup: Setup, outputs: bool) -> Measured:
    """Values of every layer: its weights, or its outputs for test images."""
    spec = settings.bayes(setup)
    with torch.random.fork_rng(devices=[]):
        task = KINDS[spec.task].task(spec.config, torch.device("cpu"))
        images = task.test[torch.arange(min(64, len(task.test)))].unit().images
        found: dict[tuple[str, float | None], dict[str, list[Tensor]]] = {}
        for formulation in FORMULATIONS:
            for seed in setup.replicas:
                model = task.model(formulation, seed).eval()
                for gamma in [None] if isinstance(model, Fixed) else GAMMAS:
                    net = _network(model, gamma)
                    layers = _outputs(net, images) if outputs else _weights(net)
                    kept = found.setdefault((formulation, gamma), {})
                    for name, values in layers.items():
                        kept.setdefault(name, []).append(values)
    return {
        key: {name: _values(each) for name, each in layers.items()} for key, layers in found.items()
    }


def _network(model: HyperModel | Fixed, gamma: float | None) -> nn.Module:
    return model.primary if isinstance(model, Fixed) else model.at(gamma=gamma)


def _weights(net: nn.Module) -> dict[str, Tensor]:
    return {
        name.removesuffix(".weight"): parameter.detach().flatten()
        for name, parameter in net.named_parameters()
        if name.endswith(".weight")
    }


@torch.no_grad()
def _outputs(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Outputs of every layer with weights, before its activation."""
    found: dict[str, Tensor] = {}
    for name, layer in net.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):

            def keep(_: nn.Module, __: object, output: Tensor, name: str = name) -> None:
                found[name] = output.flatten()

            layer.register_forward_hook(keep)
    net(images)
    return found


def _values(each: list[Tensor]) -> Values:
    few = max(1, _KEPT // len(each))
    generator = torch.Generator().manual_seed(0)
    sample = torch.cat(
        [v[torch.randperm(v.numel(), generator=generator)[:few]] for v in each]
    ).double()
    return Values([float(v.double().std()) for v in each], sample.numpy())


def _density(ax: Axes, values: NDArray[np.float64], width: float, **style: Any) -> float:
    from scipy.stats import gaussian_kde

    x = np.linspace(-width, width, 201)
    if float(values.std()) < 1e-12 * width:
        return 0.0
    y = gaussian_kde(values)(x)
    ax.plot(x, y, **style)
    return float(y.max())


def draw(results: Results) -> Figure:
    """Draw densities of the first, a middle and the last layer, a line for every gamma."""
    measured: Measured = results.measured
    plain = measured["plain", None]
    layers = list(plain)
    chosen = [layers[0], layers[len(layers) // 2], layers[-1]]
    figure, axes = figures.panels(3, 2, height=2.6)
    shades = dict(zip(GAMMAS, np.linspace(0.35, 1.0, len(GAMMAS)).tolist(), strict=True))
    for gamma, alpha in shades.items():  # for the legend: the rows have a colour each
        axes[0].plot([], [], color="0.5", alpha=alpha, label=f"gamma {gamma:g}")
    for row, formulation in enumerate(("classical", "mip")):
        for column, layer in enumerate(chosen):
            ax = axes[3 * row + column]
            width = 4.0 * plain[layer].std
            for gamma, alpha in shades.items():
                _density(
                    ax,
                    measured[formulation, gamma][layer].sample,
                    width,
                    color=figures.COLORS[formulation],
                    alpha=alpha,
                    linewidth=1.4,
                )
            style: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.2}
            top = _density(ax, plain[layer].sample, width, label="plain network", **style)
            ax.set(title=f"{NAMES[formulation]}, {layer}", xlim=(-width, width), ylim=(0, 4 * top))
            ax.set_yticks([])
    figures.legend(figure)
    return figure


def tables(results: Results) -> list[Table]:
    """Standard deviation in every layer at every gamma."""
    measured: Measured = results.measured
    layers = list(measured["plain", None])
    rows = [
        [NAMES[formulation], "" if gamma is None else gamma]
        + [f"{measured[formulation, gamma][layer].std:.4g}" for layer in layers]
        for formulation, gamma in measured
    ]
    return [Table("Standard deviation by layer", ["", "gamma", *layers], rows)]


def _claims(results: Results, source: str, what: str) -> list[Claim]:
    """Whether classical follows gamma, and MIP does not and resembles the plain network."""
    measured: Measured = results.measured
    plain = measured["plain", None]

    def ratios(formulation: str) -> dict[str, list[float]]:
        """Largest over smallest standard deviation along gamma, by layer and seed."""
        found = {}
        for layer in plain:
            rows = zip(*(measured[formulation, gamma][layer].stds for gamma in GAMMAS), strict=True)
            found[layer] = [max(row) / max(min(row), 1e-30) for row in rows]
        return found

    classical, mip = ratios("classical"), ratios("mip")
    beside = {}
    for layer, values in plain.items():
        rows = zip(*(measured["mip", gamma][layer].stds for gamma in GAMMAS), strict=True)
        beside[layer] = [
            statistics.fmean(row) / std for row, std in zip(rows, values.stds, strict=True)
        ]
    least, most = (_over_layers(each, how) for each, how in ((classical, min), (mip, max)))
    apart = _over_layers(
        {layer: [max(ratio, 1.0 / ratio) for ratio in row] for layer, row in beside.items()}, max
    )
    span = f"gamma from {GAMMAS[0]:g} to {GAMMAS[-1]:g}"
    return [
        Claim(
            source,
            f"the classical parametrization is highly sensitive to changes in the input ({what})",
            f"largest over smallest standard deviation for {span}: {_range(classical)} by layer, "
            f"in the least sensitive layer {least.text(2)}",
            least.above(2.0),
        ),
        Claim(
            source,
            f"MIP eliminates this dependency ({what})",
            f"largest over smallest standard deviation for {span}: {_range(mip)} by layer, in the "
            f"most sensitive layer {most.text(2)}",
            most.below(CLOSE),
            "each layer's predicted change has norm 1, which matters more in a small layer",
        ),
        Claim(
            source,
            f"the distribution closely matches that of the non-hypernetwork models ({what})",
            f"standard deviation with MIP over that of the plain network: {_range(beside)} by "
            f"layer, in the least alike layer a factor of {apart.text(2)}",
            apart.below(CLOSE),
            "each layer's predicted change has norm 1 (Kaiming fan-out per tensor), which is large "
            "for a layer with few weights, and the effect accumulates from layer to layer",
        ),
    ]


def _over_layers(ratios: Mapping[str, list[float]], how: Callable[..., float]) -> Interval:
    """The smallest or largest of the layers, over seeds."""
    return Interval.of([how(row) for row in zip(*ratios.values(), strict=True)])


def _range(ratios: Mapping[str, list[float]]) -> str:
    means = sorted(statistics.fmean(row) for row in ratios.values())
    return f"{means[0]:.2f} to {means[-1]:.2f}"


def _study(name: str, what: str, values: str, outputs: bool) -> Study:
    source = f"section 6.1, figure {name.removeprefix('fig')}"
    return Study(
        name=name,
        title=f"Distributions of {what.removeprefix('the ')}",
        source=source,
        caption=f"Densities (KDE) of the {values} at initialisation: classical above, MIP below. "
        "One line per gamma, stronger for larger gamma; the dashed line is the plain network. The "
        "first, a middle and the last layer of LeNet on MNIST, all seeds together.",
        measure=lambda setup: _measure(setup, outputs),
        draw=draw,
        claims=lambda results: _claims(results, source, what),
        tables=tables,
        reduced={"smoke": "scikit-learn's digits, a smaller hypernetwork"},
    )


WEIGHTS = _study("fig3a", "the weights", "weights", outputs=False)
OUTPUTS = _study("fig3b", "layer outputs", "layer outputs for 64 test images", outputs=True)
