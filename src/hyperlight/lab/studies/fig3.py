"""What figures 3a and 3b measure: models that are not trained, at several values of gamma."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ... import HyperModel
from .. import figures
from ..summary import Claim
from ..tasks import KINDS
from ..tasks.base import Fixed, Formulation
from . import settings
from .base import Place, Results, Table
from .drawing import NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["GAMMAS", "Values", "activations", "claims", "draw", "tables", "weights"]

GAMMAS = (0.05, 0.25, 0.5, 0.75, 1.0)
FORMULATIONS: tuple[Formulation, ...] = ("classical", "mip", "plain")
_KEPT = 2000  # values of each layer that a density is estimated from


@dataclass(frozen=True)
class Values:
    """What was found in one layer of one model.

    Attributes:
        std: the standard deviation of all values, the mean over the seeds.
        sample: some of the values, of all seeds together.
    """

    std: float
    sample: NDArray[np.float64]


# By formulation, gamma (None for the plain network, which has none) and layer.
Measured = Mapping[tuple[str, float | None], Mapping[str, Values]]


def _measured(place: Place, activations: bool) -> Measured:
    spec = settings.bayes(place)
    with torch.random.fork_rng(devices=[]):
        task = KINDS[spec.task].task(spec.config, torch.device("cpu"))
        images = task.test[torch.arange(min(64, len(task.test)))].unit().images
        found: dict[tuple[str, float | None], dict[str, list[Tensor]]] = {}
        for formulation in FORMULATIONS:
            for seed in settings.seeds(place):
                model = task.model(formulation, seed).eval()
                for gamma in [None] if isinstance(model, Fixed) else GAMMAS:
                    net = _network(model, gamma)
                    layers = _outputs(net, images) if activations else _weights(net)
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
    """What every layer with weights gives, before its activation."""
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
    return Values(sum(float(v.double().std()) for v in each) / len(each), sample.numpy())


def weights(place: Place) -> Measured:
    """The weights of every layer (figure 3a)."""
    return _measured(place, activations=False)


def activations(place: Place) -> Measured:
    """The outputs of every layer for test images (figure 3b)."""
    return _measured(place, activations=True)


def _density(ax: Axes, values: NDArray[np.float64], width: float, **style: Any) -> float:
    from scipy.stats import gaussian_kde

    x = np.linspace(-width, width, 201)
    if float(values.std()) < 1e-12 * width:
        return 0.0
    y = gaussian_kde(values)(x)
    ax.plot(x, y, **style)
    return float(y.max())


def draw(results: Results) -> Figure:
    """Densities of the first, a middle and the last layer, a line for every gamma."""
    measured: Measured = results.measured
    plain = measured["plain", None]
    layers = list(plain)
    chosen = [layers[0], layers[len(layers) // 2], layers[-1]]
    figure, axes = figures.panels(3, 2, height=2.6)
    shades = np.linspace(0.35, 1.0, len(GAMMAS))
    for row, formulation in enumerate(("classical", "mip")):
        for column, layer in enumerate(chosen):
            ax = axes[3 * row + column]
            width = 4.0 * plain[layer].std
            for gamma, alpha in zip(GAMMAS, shades, strict=True):
                _density(
                    ax,
                    measured[formulation, gamma][layer].sample,
                    width,
                    color=figures.COLORS[formulation],
                    alpha=float(alpha),
                    linewidth=1.4,
                    label=f"gamma {gamma:g}",
                )
            style: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.2}
            top = _density(ax, plain[layer].sample, width, label="plain network", **style)
            ax.set(title=f"{NAMES[formulation]}, {layer}", xlim=(-width, width), ylim=(0, 4 * top))
            ax.set_yticks([])
        axes[3 * row].legend(frameon=False, fontsize="x-small")
    return figure


def tables(results: Results) -> list[Table]:
    """The standard deviation in every layer at every gamma."""
    measured: Measured = results.measured
    layers = list(measured["plain", None])
    rows = [
        [NAMES[formulation], "" if gamma is None else gamma]
        + [f"{measured[formulation, gamma][layer].std:.4g}" for layer in layers]
        for formulation, gamma in measured
    ]
    return [Table("Standard deviation by layer", ["", "gamma", *layers], rows)]


def claims(results: Results, source: str, what: str) -> list[Claim]:
    """Whether the default follows gamma, and MIP does not and is like the plain network.

    Args:
        results: with what was measured.
        source: where the paper says so.
        what: was measured.
    """
    measured: Measured = results.measured
    plain = measured["plain", None]

    def ratios(formulation: str) -> dict[str, float]:
        """The largest over the smallest standard deviation over gamma, by layer."""
        found = {}
        for layer in plain:
            stds = [measured[formulation, gamma][layer].std for gamma in GAMMAS]
            found[layer] = max(stds) / max(min(stds), 1e-30)
        return found

    default, mip = ratios("classical"), ratios("mip")
    beside = {
        layer: sum(measured["mip", gamma][layer].std for gamma in GAMMAS)
        / (len(GAMMAS) * plain[layer].std)
        for layer in plain
    }
    span = f"gamma from {GAMMAS[0]:g} to {GAMMAS[-1]:g}"
    return [
        Claim(
            source,
            f"the default parametrization is highly sensitive to changes in the input ({what})",
            f"largest over smallest standard deviation for {span}: {_range(default)} by layer",
            min(default.values()) > 2.0,
        ),
        Claim(
            source,
            f"MIP eliminates this dependency ({what})",
            f"largest over smallest standard deviation for {span}: {_range(mip)} by layer",
            max(mip.values()) < 1.25,
            "each layer's predicted change has norm 1, of which a small layer feels more",
        ),
        Claim(
            source,
            f"the distribution closely matches that of the non-hypernetwork models ({what})",
            f"standard deviation with MIP over that of the plain network: {_range(beside)} by "
            "layer",
            all(0.8 < ratio < 1.25 for ratio in beside.values()),
            "each layer's predicted change has norm 1 (Kaiming fan-out per tensor), which is no "
            "small part of a layer with few weights, and adds up from layer to layer",
        ),
    ]


def _range(ratios: Mapping[str, float]) -> str:
    values = sorted(ratios.values())
    return f"{values[0]:.2f} to {values[-1]:.2f}"
