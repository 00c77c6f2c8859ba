"""Image registration (sections 5.1 and A.3 of the paper; HyperMorph, Hoopes et al. 2021).

The input ``gamma`` is the smoothness weight of the loss: at 0 only the images have to match, at 1
only the displacement field has to be smooth. One model is trained for all values, and the best
``gamma`` is found afterwards.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import HyperModel, ObjectiveError, Page, Uniform, explore, tune
from ...init import FanOut, Init
from ..data import PairBatches, Request, Scans, load_scans, pairs
from ..errors import LabError, at_least
from ..primaries import UNet
from ..registration import dice, folding, soft_dice, total_variation, warp, warp_labels
from ..scheme import save
from .base import (
    SLIDER,
    Fixed,
    Formulation,
    Hypernetwork,
    Kind,
    Metric,
    Model,
    Outcome,
    ScanData,
    evaluating,
    last_direction,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KIND", "TRAINING", "Hypermorph", "HypermorphTask"]

# Section A.3 gives AdamW and its rate, but neither the decay (here torch's default) nor the batch
# size. It trains for 3000 epochs.
TRAINING: dict[str, Any] = {"optimizer": "adamw", "lr": 1e-4, "weight_decay": 1e-2, "batch_size": 4}

# Initialisations with which predicted changes of the last layer are no larger than its weights.
_KEEP_THE_FLOW = ("fan_out", "relative", "zero")

Pairs = tuple[Scans, Scans]

# Columns of the table of Dice by test scan: at the best gamma of 11, and at that of hl.tune.
BEST_OF_11 = "at the best gamma of 11"
BEST_BY_TUNE = "at the best gamma by tune"


@dataclass(frozen=True)
class Hypermorph(Hypernetwork):
    """A hypernetwork that registers images for every smoothness weight (section A.3)."""

    data: ScanData = "digits"
    """Data set. digits needs no download; folder is your own scans with label maps."""
    data_dir: Path | None = None
    """Folder with the data; by default where `hyperlight data` puts them."""
    size: tuple[int, int] | None = None
    """Height and width to resize scans to; by default that of the data set."""
    levels: int = 5
    """Stages of the U-Net's encoder (5 in the paper; fewer for small images)."""
    channels: int = 32
    """Feature channels of every stage."""
    image_sigma: float = 0.05
    """Assumed noise of the images. The squared error is divided by its square, as in HyperMorph, so
    that both terms of the loss have a similar size; 1 changes nothing."""
    endpoints: float = 0.0
    """Fraction of the steps at gamma 0 or 1, which HyperMorph draws more often."""
    flow_scale: float | None = None
    """Standard deviation of the first weights of the layer that returns the displacement, whose
    biases start at zero: 1e-5 in VoxelMorph and HyperMorph. By default it starts as all others. A
    hypernetwork by hand (--parametrization hand) adds its own random weights to it."""
    gamma: float = 0.5
    """The one gamma of a plain network (--parametrization plain)."""
    evaluation_gammas: int = 5
    """Number of gammas, evenly spread, over which test figures are averaged."""
    evaluation_pairs: int = 64
    """Number of test pairs used during training."""
    final_pairs: int | None = None
    """Largest number of pairs used after training; by default all."""
    tune_steps: int = 20
    """Gradient steps in the search for the best gamma, from each of three starts."""

    def check(self) -> None:
        """Refuse settings that cannot be trained with."""
        super().check()
        at_least(self, levels=1, channels=1, evaluation_gammas=2, evaluation_pairs=1)
        at_least(self, final_pairs=1, tune_steps=1)
        if not 0.0 <= self.gamma <= 1.0:
            raise LabError(f"--gamma was {self.gamma}; expected a number from 0 to 1.")
        if not self.image_sigma > 0.0:
            raise LabError(f"--image-sigma was {self.image_sigma}; expected a number above zero.")
        if self.flow_scale is not None:
            if not 0.0 < self.flow_scale < math.inf:
                raise LabError(f"--flow-scale was {self.flow_scale}; expected a number above zero.")
            if self.init not in _KEEP_THE_FLOW:
                raise LabError(
                    f"--flow-scale was given with --init {self.init}, which starts all predicted "
                    "weights at a size of its own; expected fan_out, relative or zero."
                )

    def start(self) -> Init:
        """The initialisation of the head, with displacements as small as the primary's."""
        if self.flow_scale is None or self.init != "fan_out":
            return super().start()
        return _SmallFlow(self.flow_scale)


@dataclass(frozen=True)
class _SmallFlow(FanOut):
    """``"fan_out"``, but for the layer that returns the displacement."""

    scale: float

    def std(self, name: str, shape: torch.Size) -> float:
        return self.scale if name == "head.weight" else super().std(name, shape)


def _spread(count: int, most: int | None) -> Tensor:
    """At most ``most`` of ``count`` indices, evenly spread."""
    if most is None or count <= most:
        return torch.arange(count)
    return torch.linspace(0, count - 1, most).round().long()


def _joined(moving: Scans, fixed: Scans) -> Tensor:
    """What the primary reads: ``(B, 2, H, W)``."""
    images = torch.cat([moving.images, fixed.images], dim=1)
    # Convolutions of few channels are a third faster so.
    return images.contiguous(memory_format=torch.channels_last)


class HypermorphTask:
    """The task on a device; see :class:`~hyperlight.lab.tasks.base.Task`."""

    name = "hypermorph"
    capturable = True
    metric = Metric("dice", digits=3)

    def __init__(self, config: Hypermorph, device: torch.device) -> None:
        config.check()
        self.config = config
        self.device = device
        self.split = load_scans(config.data, Request(config.data_dir, config.size, least=32))
        self.note = self.split.note
        self.labels = len(self.split.label_names)
        self.train = self.split.train.to(device)
        self.valid = self.split.valid.to(device)
        self.test = self.split.test.to(device)
        smallest = min(self.train.images.shape[-2:])
        if smallest < 2 ** (config.levels - 1):
            raise LabError(
                f"--levels was {config.levels}; expected at most {smallest.bit_length()} for "
                f"images of {smallest} pixels, because every further level halves them."
            )

    def model(self, formulation: Formulation, seed: int) -> Model:
        """Build a model; equal seeds start all formulations from the same random draws."""
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = config.model(
                self._primary,
                {"gamma": Uniform(0.0, 1.0, endpoints=config.endpoints)},
                formulation,
                fixed={"gamma": torch.tensor(config.gamma)},
            )
        return model.to(self.device)

    def _primary(self, more: int) -> nn.Module:
        """A new primary, for images with so many more channels."""
        primary = UNet(2 + more, 2, self.config.levels, self.config.channels)
        if self.config.flow_scale is not None:
            nn.init.normal_(primary.head.weight, std=self.config.flow_scale)
        return primary

    def batches(self, batch_size: int, seed: int, shard: tuple[int, int] = (0, 1)) -> PairBatches:
        """Endless batches of pairs to register."""
        return PairBatches(self.train, batch_size, seed, shard)

    def sample(self, model: Model, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw one gamma for the batch."""
        return model.sample(generator=generator)

    def loss(self, model: nn.Module, batch: Pairs, gamma: dict[str, Tensor], step: int) -> Tensor:
        r""":math:`(1 - \gamma)\,\mathrm{MSE} / \sigma^2 + \gamma\,\mathrm{TV}` (section A.3)."""
        moving, fixed = batch
        field = model(_joined(moving, fixed), **gamma)
        return self._loss(field, moving, fixed, gamma["gamma"].to(field))

    def _loss(self, field: Tensor, moving: Scans, fixed: Scans, gamma: Tensor) -> Tensor:
        error = F.mse_loss(warp(moving.images, field), fixed.images) / self.config.image_sigma**2
        return (1.0 - gamma) * error + gamma * total_variation(field)

    def _pairs(self, data: Scans, most: int | None = None) -> Pairs:
        """The pairs for evaluation; at most ``most`` of them, evenly spread."""
        indices = pairs(data.groups)
        kept = _spread(len(indices[0]), most)
        moving, fixed = (data[index[kept].to(self.device)].unit() for index in indices)
        return moving, fixed

    @torch.no_grad()
    def measure(
        self, net: nn.Module, moving: Scans, fixed: Scans, gamma: float
    ) -> dict[str, float]:
        """Figures of one network, averaged over pairs.

        Args:
            net: from ``model.bind(gamma=gamma)``, or trained for this gamma.
            moving: the scans to warp.
            fixed: the scans to match.
            gamma: the smoothness weight of the loss.
        """
        found: dict[str, list[Tensor]] = {"loss": [], "dice": [], "folding": [], "mse": []}
        for rows in torch.split(torch.arange(len(moving), device=self.device), 32):
            a, b = moving[rows], fixed[rows]
            field = net(_joined(a, b))
            loss = self._loss(field, a, b, field.new_tensor(gamma))
            found["loss"].append(loss.expand(len(rows)))
            found["dice"].append(dice(warp_labels(a.labels, field), b.labels, self.labels))
            found["folding"].append(folding(field))
            error = (warp(a.images, field) - b.images).square().mean(dim=(-3, -2, -1))
            found["mse"].append(error)
        return {name: float(torch.cat(parts).double().nanmean()) for name, parts in found.items()}

    def evaluate(self, model: Model, whole: bool = False) -> dict[str, float]:
        """Loss, Dice, fraction of folded pixels and squared error, averaged over gammas."""
        config = self.config
        chosen = self._pairs(self.test, config.final_pairs if whole else config.evaluation_pairs)
        return self._means(model, chosen)

    def _means(self, model: Model, chosen: Pairs) -> dict[str, float]:
        """Figures averaged over gammas."""
        gammas = torch.linspace(0.0, 1.0, self.config.evaluation_gammas).tolist()
        if isinstance(model, Fixed):
            gammas = [self.config.gamma]
        rows = self._rows(model, gammas, chosen)
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}

    def at(self, model: Model, gamma: float) -> dict[str, float]:
        """The figures of :meth:`evaluate` on all test pairs, at one gamma."""
        return self._rows(model, [gamma], self._pairs(self.test, self.config.final_pairs))[0]

    @torch.no_grad()
    def _rows(self, model: Model, gammas: list[float], chosen: Pairs) -> list[dict[str, float]]:
        with evaluating(model):
            return [self.measure(model.bind(gamma=g), *chosen, g) for g in gammas]

    def before(self) -> float:
        """Dice of the test pairs without registration."""
        moving, fixed = self._pairs(self.test, self.config.final_pairs)
        return float(dice(moving.labels, fixed.labels, self.labels).nanmean())

    @torch.no_grad()
    def dice_by_scan(self, model: Model, gamma: float) -> list[float]:
        """Dice of the final test pairs at one gamma, a mean for every scan that is moved.

        Slices at the same position in their groups are of one scan, as in PTBP and OASIS.
        """
        found: dict[int, list[float]] = {}
        counts = self.test.groups.bincount().tolist()
        position = torch.cat([torch.arange(n) for n in counts if n > 1])
        kept = _spread(len(position), self.config.final_pairs)
        moving, fixed = self._pairs(self.test, self.config.final_pairs)
        with evaluating(model):
            net = model.bind(gamma=gamma)
            for rows in torch.split(torch.arange(len(moving), device=self.device), 32):
                a, b = moving[rows], fixed[rows]
                labels = warp_labels(a.labels, net(_joined(a, b)))
                values = dice(labels, b.labels, self.labels).tolist()
                for scan, value in zip(position[kept[rows.cpu()]].tolist(), values, strict=True):
                    found.setdefault(scan, []).append(value)
        return [statistics.fmean(found[scan]) for scan in sorted(found)]

    def best(self, model: HyperModel, restarts: int = 3) -> tuple[float, float]:
        """Find the gamma with the largest overlap on validation pairs, with ``hl.tune``.

        The objective is one minus the soft Dice of linearly warped label maps.

        Returns:
            gamma, and the Dice there; both are NaN if the model has diverged.
        """
        moving, fixed = self._pairs(self.valid, self.config.evaluation_pairs)
        maps = [
            F.one_hot(scans.labels, self.labels).movedim(-1, 1).to(moving.images)
            for scans in (moving, fixed)
        ]
        joined = _joined(moving, fixed)

        def objective(net: nn.Module) -> Tensor:
            return 1.0 - soft_dice(warp(maps[0], net(joined)), maps[1]).mean()

        try:
            tuned = tune(model, objective, steps=self.config.tune_steps, restarts=restarts)
        except ObjectiveError:
            return math.nan, math.nan
        gamma = float(tuned.inputs["gamma"])
        with torch.no_grad():
            found = self.measure(model.bind(gamma=gamma), moving, fixed, gamma)
        return gamma, found["dice"]

    @torch.no_grad()
    def knob(self, model: HyperModel) -> tuple[str, Page]:
        """Test pairs: moving, warped and fixed scans, and a grid that is warped as they are."""
        moving, fixed = self._pairs(self.test, 2)
        height, width = moving.images.shape[-2:]
        step = max(4, min(height, width) // 10)
        lines = torch.ones_like(moving.images)
        lines[..., ::step, :] = lines[..., ::step] = 0.0

        def drawn(field: Tensor) -> Tensor:
            warped = warp(moving.images, field)
            return torch.cat([moving.images, warped, fixed.images, warp(lines, field)], dim=-1)

        joined = torch.cat([moving.images, fixed.images], dim=1)
        title = "Two test pairs, registered at any smoothness weight"
        page = explore(model, joined, gamma=SLIDER, draw=drawn, title=title)
        return "From the left: moving, warped and fixed scan, and a grid that is warped.", page

    def finish(self, model: Model, folder: Path | None) -> Outcome:
        """Figures along gamma on all test pairs, the best gamma, and pictures.

        Errors are means of the loss over gammas. The best gamma is the best of 11 on validation
        pairs; for a hypernetwork, ``hl.tune`` finds one as well. A plain network has only the
        figures at its one gamma.
        """
        before, most = self.before(), self.config.final_pairs
        validated = self._means(model, self._pairs(self.valid, most))
        known = {"dice before registration": before, "validation dice": validated["dice"]}
        if isinstance(model, Fixed):
            known["validation error"] = validated["loss"]
            return Outcome(figures={**known, **self.at(model, self.config.gamma)})
        gammas = [i / 10 for i in range(11)]
        pictures: list[tuple[str, Path]] = []
        found: dict[str, float] = {}
        by_scan: dict[str, list[float]] = {}
        with evaluating(model):
            rows = self._rows(model, gammas, self._pairs(self.test, most))
            held_out = self._rows(model, gammas, self._pairs(self.valid, most))
            by_grid = max(range(len(gammas)), key=lambda i: held_out[i]["dice"])
            best, how = gammas[by_grid], "best of 11"
            by_scan[BEST_OF_11] = self.dice_by_scan(model, best)
            if isinstance(model, HyperModel):
                best, valid = self.best(model)
                how = "tuned"
                there = math.nan if math.isnan(best) else self.at(model, best)["dice"]
                found = {
                    "best gamma by tune": best,
                    "dice there, validation": valid,
                    "dice there, test": there,
                }
                lost = [math.nan] * len(by_scan[BEST_OF_11])
                by_scan[BEST_BY_TUNE] = lost if math.isnan(best) else self.dice_by_scan(model, best)
            if folder is not None:
                pictures = [
                    ("Dice and folding against gamma", folder / "dice.png"),
                    ("Moving, fixed, warped and the warped grid over gamma", folder / "warped.png"),
                ]
                save(_curves(gammas, rows, before, best, how), pictures[0][1])
                save(self._gallery(model, [0.0, 0.25, 0.5, 0.75, 1.0]), pictures[1][1])
        return Outcome(
            figures={
                **known,
                **found,
                "best gamma of 11, validation": gammas[by_grid],
                "dice there, test, of 11": rows[by_grid]["dice"],
                "validation error": statistics.fmean(row["loss"] for row in held_out),
                "test error": statistics.fmean(row["loss"] for row in rows),
                **last_direction(model),
            },
            tables=[
                (
                    "Test pairs against gamma",
                    ("gamma", "dice", "folding (%)", "mse", "objective"),
                    [
                        (
                            *(g, round(r["dice"], 4), round(100 * r["folding"], 3)),
                            *(round(r["mse"], 6), float(f"{r['loss']:.5g}")),
                        )
                        for g, r in zip(gammas, rows, strict=True)
                    ],
                ),
                (
                    "Test Dice of every scan",
                    ("scan", *by_scan),
                    [
                        (n, *(float(f"{dice:.5f}") for dice in values))
                        for n, values in enumerate(zip(*by_scan.values(), strict=True))
                    ],
                ),
            ],
            pictures=pictures,
        )

    @torch.no_grad()
    def _gallery(self, model: Model, gammas: list[float]) -> Figure:
        moving, fixed = self._pairs(self.test, 1)
        joined = _joined(moving, fixed)
        from matplotlib.figure import Figure

        figure = Figure(figsize=(2.0 * (2 + len(gammas)), 4.4), layout="constrained")
        axes = figure.subplots(2, 2 + len(gammas))
        for axis in axes.flat:
            axis.set_axis_off()
        for column, (title, scans) in enumerate((("moving", moving), ("fixed", fixed))):
            axes[0, column].imshow(scans.images[0, 0].cpu().numpy(), cmap="gray", vmin=0, vmax=1)
            axes[1, column].imshow(
                scans.labels[0].cpu().numpy(), cmap="tab20", interpolation="nearest"
            )
            axes[0, column].set_title(title)
        for column, gamma in enumerate(gammas, start=2):
            field = model.bind(gamma=gamma)(joined)
            image = warp(moving.images, field)[0, 0].cpu().numpy()
            axes[0, column].imshow(image, cmap="gray", vmin=0, vmax=1)
            axes[0, column].set_title(f"gamma {gamma:g}")
            _grid(axes[1, column], field[0].cpu())
        return figure


def _grid(axis: object, field: Tensor) -> None:
    """Draw where a regular grid of pixels is read from."""
    height, width = field.shape[-2:]
    rows = (torch.arange(height).unsqueeze(-1) + field[0]).numpy()
    columns = (torch.arange(width) + field[1]).numpy()
    step = max(1, min(height, width) // 24)
    for i in range(0, height, step):
        axis.plot(columns[i], rows[i], "k", linewidth=0.4)  # type: ignore[attr-defined]
    for j in range(0, width, step):
        axis.plot(columns[:, j], rows[:, j], "k", linewidth=0.4)  # type: ignore[attr-defined]
    axis.set_aspect("equal")  # type: ignore[attr-defined]
    axis.invert_yaxis()  # type: ignore[attr-defined]


def _curves(
    gammas: list[float], rows: list[dict[str, float]], before: float, best: float, how: str
) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(gammas, [row["dice"] for row in rows], label="registered")
    left.axhline(before, color="gray", linestyle=":", label="before")
    left.axvline(best, color="C1", linewidth=0.8, label=how)
    left.set(xlabel="gamma", ylabel="Dice")
    left.legend()
    right.plot(gammas, [100.0 * row["folding"] for row in rows])
    right.set(xlabel="gamma", ylabel="folded pixels (%)")
    return figure


KIND = Kind(Hypermorph, HypermorphTask, "Registration", "HyperMorph", TRAINING)
