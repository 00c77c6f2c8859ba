"""Scale-space hypernetworks (sections 5.1 and A.4 of the paper; Gonzalez Ortiz et al. 2023).

The input ``gamma`` is the factor by which the primary rescales its feature maps instead of pooling.
At 0.5 every stage halves them; towards 0 they shrink to one pixel and cost almost nothing. One
model is trained for all factors, to classify images or to segment scans, and the user trades
accuracy for speed afterwards.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import HyperModel, Page, Uniform, explore
from ..data import (
    DATA,
    Batches,
    Images,
    ImageSplit,
    Request,
    Scans,
    ScanSplit,
    load_images,
    load_scans,
)
from ..errors import LabError, at_least
from ..normalization import (
    IN_HYPERNETWORK,
    IN_PRIMARY,
    Normalization,
    is_no_gain,
    normalize_features,
    normalize_over_gammas,
    normalize_weights,
)
from ..primaries import ResNetLike, UNet
from ..registration import dice, soft_dice
from ..scheme import save
from .base import (
    SLIDER,
    SWITCHES,
    AnyData,
    Fixed,
    Formulation,
    Hypernetwork,
    Kind,
    Metric,
    Model,
    Outcome,
    drawn,
    evaluating,
    synchronize,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KIND", "TRAINING", "ScaleSpace", "ScaleSpaceTask"]

Problem = Literal["classification", "segmentation"]

# Section A.4, for both optimizers. It gives no batch size, and decoupled decay only for HyperMorph.
TRAINING: dict[str, Any] = {
    "optimizer": "adamw",
    "lr": 1e-4,
    "weight_decay": 1e-3,
    "batch_size": 32,
}

_LARGEST = 0.5  # the largest gamma
_PIXELS = 2**21  # per forward pass in evaluation


@dataclass(frozen=True)
class ScaleSpace(Hypernetwork):
    """A hypernetwork for every rescaling factor of its primary (sections 5.1 and A.4)."""

    data: AnyData = "digits"
    """Data set. digits needs no download; ptbp keeps the skull, whose removal would show where the
    labels end; folder is your own images or scans."""
    problem: Problem | None = None
    """What to train for; by default what the data are for, and classification for data that are for
    both. Your own folder needs it."""
    data_dir: Path | None = None
    """Folder with the data; by default where `hyperlight data` puts them."""
    size: tuple[int, int] | None = None
    """Height and width to resize images to; by default that of the data set, which is 32 for digits
    and 256 for flowers102 (as in the paper)."""
    stages: tuple[int, ...] = (16, 32, 64, 128, 128)
    """Feature channels of the stages of the network that classifies."""
    levels: int = 5
    """Stages of the encoder of the U-Net that segments."""
    channels: int = 32
    """Feature channels of every stage of the U-Net."""
    antialias: bool = False
    """Average over all pixels when maps shrink, not only over the nearest four. The paper says only
    that sampling is bilinear."""
    normalization: Normalization = "none"
    """The alternatives that the paper compares with: batch or layer normalisation in the primary,
    the same in the hypernetwork, or weight normalisation of the predicted weights."""
    label_smoothing: float = 0.1
    """Label smoothing of the cross-entropy in classification."""
    dice_from: int = 1000
    """Step from which a soft-Dice term is added to the cross-entropy in segmentation."""
    gamma: float = 0.5
    """The one gamma of a plain network (--parametrization plain)."""
    evaluation_gammas: int = 5
    """Number of gammas, evenly spread from above 0 to 0.5, over which test figures are averaged."""
    evaluation_images: int = 500
    """Number of test images used during training (drawn once)."""
    final_images: int | None = None
    """Largest number of test images used after training (drawn once); by default all."""

    def check(self) -> None:
        """Refuse settings that cannot be trained with."""
        super().check()
        at_least(self, levels=1, channels=1, dice_from=0, evaluation_gammas=2)
        at_least(self, evaluation_images=1, final_images=1)
        if not self.stages or min(self.stages) < 1:
            raise LabError(
                f"--stages was {self.stages}; expected feature channels, as in 16 32 64 128 128."
            )
        if self.size is not None and min(self.size) < 1:
            raise LabError(f"--size was {self.size}; expected a height and width of 1 or more.")
        if not 0.0 <= self.gamma <= _LARGEST:
            raise LabError(f"--gamma was {self.gamma}; expected a number from 0 to 0.5.")
        inside = self.normalization in IN_HYPERNETWORK
        if inside and self.init not in ("fan_out", "zero"):
            raise LabError(
                f"--init was {self.init}, which is measured without the layers of --normalization "
                f"{self.normalization}; expected fan_out or zero."
            )
        if not 0.0 <= self.label_smoothing < 1.0:
            raise LabError(
                f"--label-smoothing was {self.label_smoothing}; expected a number from 0 to less "
                "than 1."
            )

    def chosen_problem(self) -> Problem:
        """The problem that was asked for, or the one that the data are for."""
        found = DATA.get(self.data)
        possible: list[Problem] = []
        if found is None or found.images:  # an unknown name is refused where it is loaded
            possible.append("classification")
        if found is None or found.scans:
            possible.append("segmentation")
        if self.problem is None and self.data == "folder":
            raise LabError(
                "--data folder needs --problem: classification (one folder of images per class) "
                "or segmentation (scans with label maps)."
            )
        if self.problem not in (None, *possible):
            raise LabError(
                f"--problem was {self.problem}; {self.data} is for {possible[0]}. Leave it out, or "
                "choose other --data."
            )
        return self.problem or possible[0]


class ScaleSpaceTask:
    """The task on a device; see :class:`~hyperlight.lab.tasks.base.Task`."""

    name = "scale_space"
    capturable = False  # sizes of feature maps follow gamma

    def __init__(self, config: ScaleSpace, device: torch.device) -> None:
        config.check()
        self.config = config
        self.device = device
        self.problem = config.chosen_problem()
        asked = Request(config.data_dir, config.size, least=32)
        load = load_images if self.problem == "classification" else load_scans
        self.split: ImageSplit | ScanSplit = load(config.data, asked)
        self.note = self.split.note
        self.train: Images | Scans = self.split.train.to(device)
        self.test: Images | Scans = self.split.test.to(device)
        self.valid: Images | Scans | None = self.split.valid
        if self.valid is not None:
            self.valid = self.valid[drawn(len(self.valid), config.final_images)].to(device)
        order = torch.randperm(len(self.test), generator=torch.Generator().manual_seed(0))
        self.few = self.test[order[: config.evaluation_images].to(device)]
        if config.final_images is not None:
            self.test = self.test[order[: config.final_images].sort().values.to(device)]
        if isinstance(self.split, ImageSplit):
            self.metric = Metric("accuracy", "%")
            self.labels = self.split.classes
        else:
            self.metric = Metric("dice", digits=3)
            self.labels = len(self.split.label_names)
        self.space = Uniform(0.0, _LARGEST)

    def model(self, formulation: Formulation, seed: int) -> Model:
        """Build a model; equal seeds start all formulations from the same random draws."""
        config = self.config
        if config.normalization in IN_HYPERNETWORK and formulation not in SWITCHES:
            raise LabError(
                f"--normalization was {config.normalization}, which normalises the hypernetwork, "
                f"but --parametrization {formulation} has none. Leave it out."
            )
        targets = is_no_gain if config.normalization == "weightnorm" else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = config.model(
                self._primary,
                {"gamma": self.space},
                formulation,
                fixed={"gamma": torch.tensor(config.gamma)},
                targets=targets,
            )
            if isinstance(model, HyperModel):
                if config.normalization == "layernorm-h":
                    normalize_features(model.hypernet)
                if config.normalization == "batchnorm-h":
                    normalize_over_gammas(model.hypernet)
        return model.to(self.device)

    def _primary(self, more: int) -> nn.Module:
        """A new primary, for images with so many more channels."""
        config, inputs = self.config, self.train.images.shape[1] + more
        layers = IN_PRIMARY.get(config.normalization, "none")
        primary: nn.Module
        if self.problem == "classification":
            primary = ResNetLike(inputs, self.labels, config.stages, layers, config.antialias)
        else:
            primary = UNet(
                *(inputs, self.labels, config.levels, config.channels, layers, config.antialias)
            )
        if config.normalization == "weightnorm":
            normalize_weights(primary)
        return primary

    def batches(self, batch_size: int, seed: int, shard: tuple[int, int] = (0, 1)) -> Batches[Any]:
        """Endless batches of images or scans; images are augmented if the data set asks for it."""
        augment = self.split.augment if isinstance(self.split, ImageSplit) else None
        return Batches(self.train, batch_size, seed, augment, shard)

    def sample(self, model: Model, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw one gamma for the batch, on the CPU, where reading it needs no synchronisation."""
        if isinstance(model, Fixed):
            return {"gamma": torch.tensor(self.config.gamma)}
        return {"gamma": self.space.sample((), generator=generator)}

    def loss(
        self, model: nn.Module, batch: Images | Scans, gamma: dict[str, Tensor], step: int
    ) -> Tensor:
        """Cross-entropy; in segmentation plus one minus soft Dice from ``dice_from`` on (A.4)."""
        factor = float(gamma["gamma"])
        logits = model(batch.images, factor, gamma=factor)
        if self.problem == "classification":
            return F.cross_entropy(
                logits, batch.labels, label_smoothing=self.config.label_smoothing
            )
        loss = F.cross_entropy(logits, batch.labels)
        if step < self.config.dice_from:
            return loss
        truth = F.one_hot(batch.labels, self.labels).movedim(-1, 1).to(logits)
        return loss + 1.0 - soft_dice(logits.softmax(dim=1), truth).mean()

    @torch.no_grad()
    def measure(self, net: nn.Module, data: Images | Scans, gamma: float) -> dict[str, float]:
        """Figures of one network, averaged over images or scans.

        Args:
            net: from ``model.bind(gamma=gamma)``, or trained for this gamma.
            data: to test on.
            gamma: the rescaling factor.

        Returns:
            ``loss``, the cross-entropy without label smoothing and Dice; and ``accuracy`` in %, or
            ``dice``.
        """
        height, width = data.images.shape[-2:]
        losses, scores = [], []
        rows = torch.arange(len(data), device=self.device)
        for part in torch.split(rows, max(1, _PIXELS // (height * width))):
            chunk = data[part].unit()
            logits = net(chunk.images, gamma)
            loss = F.cross_entropy(logits, chunk.labels, reduction="none")
            losses.append(loss.flatten(1).mean(dim=1) if loss.ndim > 1 else loss)
            if self.problem == "classification":
                right = (logits.argmax(dim=1) == chunk.labels).float()
                scores.append(100.0 * right)
            else:
                scores.append(dice(logits.argmax(dim=1), chunk.labels, self.labels))
        return {
            "loss": float(torch.cat(losses).double().mean()),
            self.metric.name: float(torch.cat(scores).double().nanmean()),
        }

    def evaluate(self, model: Model, whole: bool = False) -> dict[str, float]:
        """Loss and accuracy (in %) or Dice, averaged over gammas."""
        return self._means(model, self.test if whole else self.few)

    def _means(self, model: Model, data: Images | Scans) -> dict[str, float]:
        """Figures averaged over gammas."""
        count = self.config.evaluation_gammas
        gammas = [_LARGEST * (i + 1) / count for i in range(count)]
        if isinstance(model, Fixed):
            gammas = [self.config.gamma]
        rows = self._rows(model, gammas, data)
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}

    def at(self, model: Model, gamma: float) -> dict[str, float]:
        """The figures of :meth:`evaluate` on the whole test set, at one gamma."""
        return self._rows(model, [gamma], self.test)[0]

    @torch.no_grad()
    def _rows(
        self, model: Model, gammas: list[float], data: Images | Scans
    ) -> list[dict[str, float]]:
        with evaluating(model):
            return [self.measure(model.bind(gamma=g), data, g) for g in gammas]

    @torch.no_grad()
    def costs(
        self, model: Model, gammas: list[float], images: int = 16, rounds: int = 7
    ) -> list[dict[str, float]]:
        """Time and operations per image at each gamma, without predicting the weights.

        Args:
            model: in either mode, which is kept.
            gammas: the rescaling factors.
            images: number of images in the timed batch.
            rounds: number of timings of each gamma, which take turns.

        Returns:
            For each gamma ``ms per image``, the median over rounds, and ``MFLOP per image``, of
            convolutions and linear layers.
        """
        from torch.utils.flop_counter import FlopCounterMode

        batch = self.test[torch.arange(min(images, len(self.test)), device=self.device)].unit()
        seconds: list[list[float]] = [[] for _ in gammas]
        operations = []
        with evaluating(model):
            nets = [model.bind(gamma=g) for g in gammas]
            for net, gamma in zip(nets, gammas, strict=True):
                with FlopCounterMode(display=False) as counter:
                    net(batch.images, gamma)
                operations.append(counter.get_total_flops())
            for _ in range(rounds):
                for net, gamma, taken in zip(nets, gammas, seconds, strict=True):
                    synchronize(self.device)
                    started = time.perf_counter()
                    net(batch.images, gamma)
                    synchronize(self.device)
                    taken.append(time.perf_counter() - started)
        return [
            {
                "ms per image": 1e3 * statistics.median(taken) / len(batch),
                "MFLOP per image": 1e-6 * flop / len(batch),
            }
            for taken, flop in zip(seconds, operations, strict=True)
        ]

    def knob(self, model: HyperModel) -> tuple[str, Page]:
        """Label maps of test scans along gamma, or the figures of a classifier."""
        gammas = self.space.grid(SLIDER)
        following = iter(gammas.tolist())
        few = self.few[torch.linspace(0, len(self.few) - 1, 4).round().long().to(self.device)]
        x = few.unit().images

        def drawn(_: Tensor) -> Tensor | dict[str, float]:
            # The primary reads gamma beside its weights, which explore does not pass on.
            gamma = next(following)
            net = model.bind(gamma=gamma)
            if self.problem == "classification":
                return self.measure(net, self.few, gamma)
            labels: Tensor = net(x, gamma).argmax(dim=1, keepdim=True)
            return labels

        names = self.split.label_names if isinstance(self.split, ScanSplit) else None
        title = "Test data at any factor of rescaling"
        page = explore(model, x, _LARGEST, gamma=gammas, draw=drawn, names=names, title=title)
        return "Towards 0 the feature maps are small, and cost little.", page

    def finish(self, model: Model, folder: Path | None) -> Outcome:
        """Figures and costs along gamma on the whole test set, and pictures.

        A plain network has only the figures at its one gamma.
        """
        single, config = isinstance(model, Fixed), self.config
        metric, validated = self.metric.name, {}
        if self.valid is not None:
            validated[f"validation {metric}"] = self._means(model, self.valid)[metric]
        pictures: list[tuple[str, Path]] = []
        if folder is not None and isinstance(self.test, Scans):
            caption = "Scans, their labels, and predictions along gamma"
            pictures.append((caption, folder / "segmented.png"))
            shown = [config.gamma] if single else [i / 10 for i in range(6)]
            save(self._gallery(model, self.test, shown), pictures[0][1])
        if single:
            found = {**self.at(model, config.gamma), **self.costs(model, [config.gamma])[0]}
            return Outcome(figures={**validated, **found}, pictures=pictures)
        gammas = [_LARGEST * i / 10 for i in range(11)]
        rows = [
            {**figures, **cost}
            for figures, cost in zip(
                self._rows(model, gammas, self.test), self.costs(model, gammas), strict=True
            )
        ]
        title = self.metric.heading
        if folder is not None:
            caption = f"{title} and time per image against gamma"
            pictures.insert(0, (caption, folder / "family.png"))
            save(_curves(gammas, rows, self.metric.name, title), pictures[0][1])
        figures = validated | {
            f"{name} at gamma {gammas[i]:g}": rows[i][name]
            for i in (10, 5)
            for name in (self.metric.name, "ms per image")
        }
        heading = (self.metric.name, "loss", "ms per image", "MFLOP per image")
        return Outcome(
            figures=figures,
            tables=[
                (
                    "Test set against gamma",
                    ("gamma", title, *heading[1:]),
                    [
                        (round(g, 3), *(round(row[name], 4) for name in heading))
                        for g, row in zip(gammas, rows, strict=True)
                    ],
                )
            ],
            pictures=pictures,
        )

    @torch.no_grad()
    def _gallery(self, model: Model, data: Scans, gammas: list[float], scans: int = 3) -> Figure:
        """Scans, evenly spread over the test set, in rows; their labels and predictions."""
        from matplotlib.figure import Figure

        rows = torch.linspace(0, len(data) - 1, min(scans, len(data))).round().long()
        few = data[rows.to(self.device)].unit()
        maps = [("truth", few.labels)]
        with evaluating(model):
            for gamma in gammas:
                logits = model.bind(gamma=gamma)(few.images, gamma)
                maps.append((f"gamma {gamma:g}", logits.argmax(dim=1)))
        height, width = few.images.shape[-2:]
        figure = Figure(
            figsize=(1.6 * (1 + len(maps)), 1.6 * len(rows) * height / width + 0.4),
            layout="constrained",
        )
        axes = figure.subplots(len(rows), 1 + len(maps), squeeze=False)
        for row in range(len(rows)):
            axes[row, 0].imshow(few.images[row, 0].cpu().numpy(), cmap="gray", vmin=0, vmax=1)
            for column, (_, labels) in enumerate(maps, start=1):
                axes[row, column].imshow(
                    labels[row].cpu().numpy(),
                    cmap="nipy_spectral",
                    vmin=0,
                    vmax=self.labels - 1,
                    interpolation="nearest",
                )
        for axis, title in zip(axes[0], ("scan", *(title for title, _ in maps)), strict=True):
            axis.set_title(title)
        for axis in axes.flat:
            axis.set_axis_off()
        return figure


def _curves(gammas: list[float], rows: list[dict[str, float]], metric: str, title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis, name, label in ((left, metric, title), (right, "ms per image", "ms per image")):
        values = [row[name] for row in rows]
        axis.plot(gammas, values, marker=".")
        axis.fill_between(gammas, values, alpha=0.15, linewidth=0)
        axis.set(xlabel="gamma", ylabel=label)
        axis.set_ylim(bottom=0.0)
    return figure


KIND = Kind(ScaleSpace, ScaleSpaceTask, "Scale-space hypernetwork", "Scale-Space", TRAINING)
