"""Bayesian neural networks (sections 5.1 and A.2 of the paper).

The input ``gamma`` is noise, drawn anew for every batch. Each gamma gives one network, and all
networks learn to classify the same images. Their mean is the Bayesian model average; it is
uncertain where they disagree.
"""

from __future__ import annotations

import functools
import math
import operator
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import HyperModel, Input, Normal, Page, Uniform, explore
from ...init import FanOut, Init
from ..controls import Dropout, Ensemble
from ..data import Batches, Images, Request, load_images
from ..errors import LabError, at_least
from ..primaries import Layers, LeNet, ResNetLike, RowTransformer
from ..scheme import save
from ..uncertainty import Assessment, Predictive, assess, auroc, rejection, reliability
from .base import (
    SLIDER,
    Fixed,
    Formulation,
    Hypernetwork,
    ImageData,
    Kind,
    Metric,
    Model,
    Outcome,
    drawn,
    evaluating,
)

__all__ = ["KIND", "TRAINING", "Bayes", "BayesTask"]

Table = tuple[str, Sequence[str], Sequence[Sequence[Any]]]

# Section A.2, for both optimizers; it gives no batch size.
TRAINING: dict[str, Any] = {"optimizer": "adam", "lr": 3e-4, "batch_size": 128}

# Data that mean something else, or nothing, if they are turned.
_DIGITS = ("digits", "mnist")

# Percentages of the test images to reject.
_REJECTED = (0, 5, 10, 20, 30, 50)

# Largest number of validation images: more would take as long as a short training.
_VALIDATION = 2000

# Pixels per forward pass in evaluation. On a CPU they fit its caches: MNIST in chunks of 334 images
# takes little more than half of the time of chunks of 2,000.
_PIXELS = {"cpu": 2**18}
_PIXELS_ELSEWHERE = 2**24


@dataclass(frozen=True)
class Bayes(Hypernetwork):
    """A Bayesian hypernetwork that classifies images (sections 5.1, A.1 and A.2 of the paper)."""

    data: ImageData = "digits"
    """Data set. digits needs no download; folder is your own images, one folder per class."""
    data_dir: Path | None = None
    """Folder with the data; by default where `hyperlight data` puts them."""
    size: int | None = None
    """Height and width of the images; by default that of the data set (256 for flowers102, as in
    the paper)."""
    grey: bool = False
    """Read the images of --data folder as grey ones."""
    augment: bool = True
    """Train on random crops, flips and colours of flowers102 or folder (as in the paper)."""
    use_valid: bool = False
    """Train on the official validation part of flowers102 as well."""
    stages: tuple[int, ...] = (16, 32, 64, 128, 128)
    """Feature channels of the stages of the ResNet-like primary; grey images of 28 or 8 pixels use
    LeNet instead."""
    network: Literal["auto", "transformer"] = "auto"
    """The primary: auto is LeNet or the ResNet-like network (as in the paper), transformer a small
    one whose tokens are the rows of an image."""
    batch_norm: bool = False
    """Normalise every convolution of the ResNet-like primary over the batch (as for figure 9 of the
    paper, B.5). Running statistics are pooled over all gammas."""
    prior: Literal["uniform", "normal"] = "uniform"
    """Distribution of gamma: U(0, 1) or N(0, 1)."""
    dimensions: int = 1
    """Number of entries of gamma."""
    evaluation_gammas: int = 5
    """Number of gammas, spread evenly over the prior, over which test figures are averaged."""
    evaluation_images: int = 2000
    """Number of test images used during training (drawn once)."""
    final_images: int | None = None
    """Largest number of test images used after training (drawn once); by default all."""
    posterior_samples: int = 16
    """Number of gammas, drawn from the prior, whose predictions are averaged after training; with
    --dropout, of draws."""
    gain: float = 1.0
    """With --init fan_out: factor of the first predicted weights, in units of the paper's."""
    members: int = 1
    """With --parametrization plain: number of plain networks, each trained on its part of every
    batch, whose predictions are averaged (a deep ensemble)."""
    dropout: float = 0.0
    """With --parametrization plain: probability that a feature in front of a linear layer is
    dropped, in training and in testing (Monte-Carlo dropout)."""
    angles: tuple[float, ...] = ()
    """Degrees by which test images of digits or mnist are turned after training, to see whether the
    average knows that it does not know them."""
    turned_images: int = 1000
    """Largest number of test images that are turned (drawn once)."""

    def check(self) -> None:
        """Refuse settings that cannot be trained with."""
        super().check()
        at_least(self, dimensions=1, evaluation_gammas=2, evaluation_images=1, final_images=1)
        at_least(self, posterior_samples=2, members=1, turned_images=1)
        if not 0.0 <= self.dropout < 1.0:
            raise LabError(
                f"--dropout was {self.dropout}; expected a probability of at least 0, below 1."
            )
        if not 0.0 < self.gain < math.inf:
            raise LabError(f"--gain was {self.gain}; expected a number above zero.")
        if self.gain != 1.0 and self.init != "fan_out":
            raise LabError(f"--gain was given with --init {self.init}; it is for fan_out only.")
        if self.dropout and self.members > 1:
            raise LabError(
                f"--dropout {self.dropout} was given with --members {self.members}; expected one "
                "of the two."
            )
        if self.dropout and self.network == "transformer":
            raise LabError(
                "--dropout was given with --network transformer; it is for LeNet and the "
                "ResNet-like network."
            )
        if self.angles and self.data not in _DIGITS:
            raise LabError(
                f"--angles was given with --data {self.data}; it is for {' and '.join(_DIGITS)}."
            )
        if not self.stages or min(self.stages) < 1:
            raise LabError(
                f"--stages was {self.stages}; expected feature channels, as in 16 32 64 128 128."
            )
        for option, data in (("grey", "folder"), ("use_valid", "flowers102")):
            if getattr(self, option) and self.data != data:
                raise LabError(
                    f"--{option.replace('_', '-')} was given with --data {self.data}; it is for "
                    f"--data {data} only."
                )

    def start(self) -> Init:
        """The initialisation of the head."""
        return super().start() if self.gain == 1.0 else _Scaled(self.gain)


@dataclass(frozen=True)
class _Scaled(FanOut):
    """``"fan_out"`` times a factor."""

    gain: float

    def std(self, name: str, shape: torch.Size) -> float:
        return self.gain * super().std(name, shape)


def _for_lenet(channels: int, size: int) -> bool:
    """Whether the primary for these images is LeNet; otherwise it is ResNetLike."""
    return channels == 1 and size in (8, 28)


class BayesTask:
    """The task on a device; see :class:`~hyperlight.lab.tasks.base.Task`."""

    name = "bayes"
    capturable = False  # dropout reads its seed
    metric = Metric("accuracy", "%", digits=1)

    def __init__(self, config: Bayes, device: torch.device) -> None:
        config.check()
        self.config = config
        self.device = device
        size = None if config.size is None else (config.size, config.size)
        asked = Request(
            config.data_dir,
            size,
            grey=config.grey,
            augment=config.augment,
            use_valid=config.use_valid,
        )
        self.split = load_images(config.data, asked)
        self.note = self.split.note
        self.train = self.split.train.to(device)
        self.test = self.split.test.to(device)
        self.valid = self.split.valid
        if self.valid is not None:
            self.valid = self.valid[drawn(len(self.valid), _VALIDATION)].to(device)
        # Of the test images, because training images may be larger, to be cropped.
        self.channels, _, self.size = self.test.images.shape[1:]
        least = 2 ** len(config.stages)
        own = config.network == "transformer"
        if self.size < least and not own and not _for_lenet(self.channels, self.size):
            kind = "grey" if self.channels == 1 else "colour"
            raise LabError(
                f"--size was {self.size}, of {kind} images; expected {least} or more, for the "
                "ResNet-like network, or grey images of 8 or 28 pixels, for LeNet."
            )
        if config.batch_norm and (own or _for_lenet(self.channels, self.size)):
            raise LabError(
                "--batch-norm was given, but the primary is "
                f"{'a transformer' if own else 'LeNet'} ({self.size} pixels, --network "
                f"{config.network}); it is for the ResNet-like network. Leave it out, or choose "
                "another --size or --network."
            )
        order = torch.randperm(len(self.test), generator=torch.Generator().manual_seed(0))
        self.few = self.test[order[: config.evaluation_images].to(device)]
        if config.final_images is not None:
            self.test = self.test[order[: config.final_images].sort().values.to(device)]
        shape = () if config.dimensions == 1 else (config.dimensions,)
        self.space: Input = Uniform(0.0, 1.0, shape) if config.prior == "uniform" else Normal(shape)

    def model(self, formulation: Formulation, seed: int) -> Model:
        """Build a model; equal seeds start all formulations from the same random draws."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inputs = {"gamma": self.space}
            model = self._plain(formulation)
            if model is None:
                model = self.config.model(self._primary, inputs, formulation, fixed={})
        return model.to(self.device)

    def _plain(self, formulation: Formulation) -> Model | None:
        """Plain networks that answer with an average, if the settings ask for them."""
        members, dropout = self.config.members, self.config.dropout
        if members == 1 and not dropout:
            return None
        if formulation != "plain":
            given = f"--dropout {dropout}" if dropout else f"--members {members}"
            raise LabError(
                f"{given} was given with --parametrization {formulation}; it is for "
                "--parametrization plain only."
            )
        if dropout:
            return Dropout(self._primary(0), dropout)
        return Ensemble(self._primary(0) for _ in range(members))

    def _primary(self, more: int) -> nn.Module:
        """A new primary, for images with so many more channels."""
        channels, classes = self.channels + more, self.split.classes
        if self.config.network == "transformer":
            return RowTransformer(self.size, self.channels, classes, more=more)
        if _for_lenet(self.channels, self.size):
            return LeNet(self.size, channels, classes)
        layers: Layers = "batch" if self.config.batch_norm else "none"
        return ResNetLike(channels, classes, self.config.stages, layers)

    def batches(
        self, batch_size: int, seed: int, shard: tuple[int, int] = (0, 1)
    ) -> Batches[Images]:
        """Endless batches of images, augmented if the data set asks for it."""
        return Batches(self.train, batch_size, seed, self.split.augment, shard)

    def sample(self, model: Model, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw one gamma for the batch; none for plain networks."""
        return model.sample(generator=generator)

    def loss(self, model: nn.Module, batch: Images, gamma: dict[str, Tensor], step: int) -> Tensor:
        """Cross-entropy of the batch at one gamma."""
        return F.cross_entropy(model(batch.images, **gamma), batch.labels)

    def evaluate(self, model: Model, whole: bool = False) -> dict[str, float]:
        """Test loss and accuracy (in %), averaged over gammas."""
        return self._means(model, self._gammas(), self.test if whole else self.few)

    def _gammas(self) -> Tensor:
        """The gammas over which figures are averaged."""
        return self.space.quantile(self._quantiles()).float().to(self.device)

    def at(self, model: Model, gamma: float) -> dict[str, float]:
        """The figures of :meth:`evaluate` on the whole test set, at one value of all of gamma."""
        value = torch.full((1, *self.space.event_shape), gamma, device=self.device)
        return self._means(model, value, self.test)

    @torch.no_grad()
    def _means(self, model: Model, gammas: Tensor, data: Images) -> dict[str, float]:
        losses, accuracies = [], []
        with evaluating(model):
            for gamma in _own(model, gammas):
                logits = self._logits(model.bind(gamma=gamma), data)
                losses.append(F.cross_entropy(logits, data.labels))
                accuracies.append((logits.argmax(dim=1) == data.labels).float().mean())
        return {
            "loss": float(torch.stack(losses).mean()),
            "accuracy": 100.0 * float(torch.stack(accuracies).mean()),
        }

    def _logits(self, net: nn.Module, data: Images) -> Tensor:
        pixels = _PIXELS.get(self.device.type, _PIXELS_ELSEWHERE)
        at_once = max(1, pixels // data.images[0, 0].numel())
        rows = torch.split(torch.arange(len(data), device=self.device), at_once)
        return torch.cat([net(data[index].unit().images) for index in rows])

    def posterior(self) -> Tensor:
        """The gammas whose networks are averaged, always the same: ``(M,) + event_shape``.

        Their networks are samples of the posterior (Ukai et al. 2018).
        """
        generator = torch.Generator().manual_seed(0)
        draws = self.space.sample((self.config.posterior_samples,), generator=generator)
        return draws.to(self.device)

    @torch.no_grad()
    def members(self, model: Model, data: Images) -> Iterator[Predictive]:
        """Yield the predictions at every gamma of :meth:`posterior`.

        A plain network has one, an ensemble one for each of its networks, and dropout one for each
        of as many draws.

        Args:
            model: in eval mode.
            data: the images.
        """
        for gamma in _own(model, self.posterior()):
            yield Predictive.of(self._logits(model.bind(gamma=gamma), data))

    @torch.no_grad()
    def knob(self, model: HyperModel) -> tuple[str, Page]:
        """The answers for the test images on which two gammas differ most."""
        gammas = self.posterior()[:16]
        with evaluating(model):
            first, last = (self._logits(model.bind(gamma=g), self.few) for g in gammas[[0, -1]])
        away = (first.softmax(dim=1) - last.softmax(dim=1)).abs().sum(dim=1)
        shown = self.few[away.argsort(descending=True)[:4]].unit().images
        page = explore(
            *(model, shown),
            gamma=gammas if self.space.event_shape else SLIDER,
            draw="classes",
            names=self.split.class_names or None,
            title="Test images whose answer depends on gamma",
        )
        return "The test images on which two gammas differ most, and their classes.", page

    def finish(self, model: Model, folder: Path | None) -> Outcome:
        """Calibration, entropy and rejection of the model average on the whole test set.

        They are compared with the mean over single gammas. A plain network is an average of one.
        The digits have no validation part.
        """
        labels = self.test.labels.cpu()
        each: list[Assessment] = []

        def assessed() -> Iterator[Predictive]:
            for member in self.members(model, self.test):
                each.append(assess(member, labels))
                yield member

        turned, other = self._turned(), None
        with evaluating(model):
            average = functools.reduce(operator.add, assessed())
            if turned is not None:
                other = functools.reduce(operator.add, self.members(model, turned))
            more, tables = self._at_angles(model) if self.config.angles else ({}, [])
        whole = assess(average, labels)
        figures = {**self._figures(average, whole, each, other), **more}
        if self.valid is not None:
            found = self._means(model, self._gammas(), self.valid)
            figures["validation accuracy"] = found["accuracy"]
        return Outcome(
            figures=figures,
            tables=[*_tables(whole, each, _kind(model)), *tables],
            pictures=[]
            if folder is None
            else self._pictures(folder, average, whole, each, other, _kind(model)),
        )

    def _turned(self) -> Images | None:
        """Images that are not of the task: digits turned by 90 degrees. None for other data."""
        if self.config.data not in _DIGITS:
            return None
        return replace(self.test, images=self.test.images.rot90(dims=(-2, -1)))

    def _at_angles(self, model: Model) -> tuple[dict[str, float], list[Table]]:
        """What the average says of turned images: figures of all angles together, and tables."""
        some = self.test[drawn(len(self.test), self.config.turned_images).to(self.device)]
        labels, each, averages = some.labels.cpu(), [], []
        for angle in self.config.angles:
            images = replace(some, images=turn(some.unit().images, angle))
            averages.append(functools.reduce(operator.add, self.members(model, images)))
            each.append(assess(averages[-1], labels))
        confidence, right = (
            torch.cat([getattr(found, name) for found in each]) for name in ("confidence", "right")
        )
        entropy = torch.cat([average.entropy for average in averages])
        bins, kept = reliability(confidence, right), rejection(entropy, right)
        shares = [i / 10 for i in range(10)]
        accuracies = [100.0 * float(kept[round(share * len(kept))]) for share in shares]
        figures = {
            "turned images, accuracy (%)": accuracies[0],
            "turned images, calibration error (%)": 100.0 * bins.error,
            "turned images, accuracy with 50 % rejected (%)": accuracies[5],
            "turned images, wrong answers by entropy, AUROC": auroc(entropy, ~right),
        }
        by_angle = [
            (
                angle,
                round(100.0 * found.accuracy, 2),
                round(100.0 * float(found.confidence.mean()), 2),
                round(100.0 * found.ece, 3),
                round(float(average.entropy.mean()), 4),
            )
            for angle, found, average in zip(self.config.angles, each, averages, strict=True)
        ]
        columns = (bins.count, 100.0 * bins.confidence, 100.0 * bins.accuracy)
        by_bin = [
            (i, int(count), round(sure, 2), round(accurate, 2))
            for i, (count, sure, accurate) in enumerate(torch.stack(columns).T.tolist())
            if count
        ]
        by_share = [
            (round(100 * share), round(x, 2)) for share, x in zip(shares, accuracies, strict=True)
        ]
        heading = ("angle", "accuracy (%)", "confidence (%)", "calibration error (%)", "entropy")
        return figures, [
            ("Turned images", heading, by_angle),
            (
                "Turned images by confidence",
                ("bin", "answers", "confidence (%)", "accuracy (%)"),
                by_bin,
            ),
            ("Turned images, some rejected", ("rejected (%)", "accuracy (%)"), by_share),
        ]

    def _figures(
        self,
        average: Predictive,
        whole: Assessment,
        each: list[Assessment],
        other: Predictive | None,
    ) -> dict[str, float]:
        information = average.mutual_information
        found = {
            "accuracy of the average (%)": 100.0 * whole.accuracy,
            "accuracy of one gamma (%)": 100.0 * _mean(each, "accuracy"),
            "log-loss of the average": whole.nll,
            "log-loss of one gamma": _mean(each, "nll"),
            "calibration error of the average (%)": 100.0 * whole.ece,
            "calibration error of one gamma (%)": 100.0 * _mean(each, "ece"),
            "disagreement of two gammas (%)": 100.0 * float(average.disagreement.mean()),
            "entropy, right answers": float(average.entropy[whole.right].mean()),
            "entropy, wrong answers": float(average.entropy[~whole.right].mean()),
            "mutual information, right answers": float(information[whole.right].mean()),
            "mutual information, wrong answers": float(information[~whole.right].mean()),
            "wrong answers by entropy, AUROC": whole.auroc,
            "wrong answers by mutual information, AUROC": auroc(information, ~whole.right),
            "accuracy with 20 % rejected (%)": 100.0 * whole.kept(0.2),
        }
        if other is not None:
            strange = torch.arange(2 * len(self.test)) >= len(self.test)
            for name in ("entropy", "mutual_information"):
                score = torch.cat([getattr(average, name), getattr(other, name)])
                shown = name.replace("_", " ")
                found[f"images turned by 90 degrees by {shown}, AUROC"] = auroc(score, strange)
        return found

    def _pictures(
        self,
        folder: Path,
        average: Predictive,
        whole: Assessment,
        each: list[Assessment],
        other: Predictive | None,
        kind: str,
    ) -> list[tuple[str, Path]]:
        from .. import uncertainty_figures as figures

        turned = None if other is None else ("turned by 90 degrees", other)
        drawn = {
            "calibration": (
                "Accuracy against confidence",
                figures.calibration(whole, each, kind),
            ),
            "rejection": (
                "Accuracy when the most uncertain images are rejected",
                figures.rejections(whole, each, kind),
            ),
            "entropy": (
                "Entropy and mutual information of right and wrong answers",
                figures.entropies(average, whole.right, turned),
            ),
            "images": (
                "Certain and uncertain images, with the answer, its probability, and the truth "
                "if it differs",
                figures.gallery(
                    self.test.images, average, self.test.labels.cpu(), self.split.class_names
                ),
            ),
        }
        if self.config.dimensions == 1 and kind == "gamma" and len(each) > 1:
            drawn["gammas"] = (
                "Accuracy and log-loss of every gamma",
                figures.along_gamma(self.posterior().cpu(), whole, each),
            )
        for name, (_, figure) in drawn.items():
            save(figure, folder / f"{name}.png")
        return [(caption, folder / f"{name}.png") for name, (caption, _) in drawn.items()]

    def _quantiles(self) -> Tensor:
        """Quantiles of the test gammas: evenly spread, and shuffled for each entry."""
        count = self.config.evaluation_gammas
        p = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        if not self.space.event_shape:
            return p
        generator = torch.Generator().manual_seed(0)
        return torch.stack(
            [p[torch.randperm(count, generator=generator)] for _ in range(self.space.numel)], dim=1
        )


def _own(model: Model, gammas: Tensor) -> Tensor:
    """The gammas at which a model is read, where a hypernetwork is read at these."""
    if isinstance(model, Fixed):
        return gammas[:1]
    if isinstance(model, Ensemble):
        return torch.arange(len(model.networks))
    return torch.arange(len(gammas)) if isinstance(model, Dropout) else gammas


def _kind(model: Model) -> str:
    """What the networks that are averaged differ in."""
    if isinstance(model, Ensemble):
        return "network"
    return "draw" if isinstance(model, Dropout) else "gamma"


def turn(images: Tensor, degrees: float) -> Tensor:
    """Images turned counter-clockwise about their middle, bilinearly, on black.

    Args:
        images: ``(N, C, H, W)``, square ones, in [0, 1].
        degrees: the angle.

    >>> from hyperlight.lab.tasks.bayes import turn
    >>> x = torch.rand(2, 1, 8, 8)
    >>> torch.allclose(turn(x, 90.0), x.rot90(dims=(-2, -1)), atol=1e-5)
    True
    """
    angle = math.radians(degrees)
    c, s = math.cos(angle), math.sin(angle)
    rows = images.new_tensor([[c, -s, 0.0], [s, c, 0.0]]).expand(len(images), 2, 3)
    where = F.affine_grid(rows, list(images.shape), align_corners=False)
    return F.grid_sample(images, where, align_corners=False)


def _mean(each: Sequence[Assessment], name: str) -> float:
    return statistics.fmean(getattr(one, name) for one in each)


def _tables(whole: Assessment, each: Sequence[Assessment], kind: str) -> list[Table]:
    plain = len(each) == 1
    name = "the network" if plain else f"average of {len(each)} {kind}s"
    kinds = [(name, [whole]), *([] if plain else [(f"one {kind}, mean", each)])]
    return [
        (
            "Calibration",
            ("", "accuracy (%)", "log-loss", "Brier score", "calibration error (%)"),
            [
                (
                    title,
                    round(100.0 * _mean(group, "accuracy"), 2),
                    round(_mean(group, "nll"), 4),
                    round(_mean(group, "brier"), 4),
                    round(100.0 * _mean(group, "ece"), 3),
                )
                for title, group in kinds
            ],
        ),
        (
            "Rejection by predictive entropy",
            ("rejected (%)", *(f"{title}: accuracy (%)" for title, _ in kinds)),
            [
                (
                    share,
                    *(
                        round(100.0 * statistics.fmean(a.kept(share / 100.0) for a in group), 2)
                        for _, group in kinds
                    ),
                )
                for share in _REJECTED
            ],
        ),
    ]


KIND = Kind(Bayes, BayesTask, "Bayesian hypernetwork", "Bayesian networks", TRAINING, target=90.0)
