"""Bayesian neural networks (paper, sections 5.1 and A.2).

The input ``gamma`` is noise: drawn anew for every batch, it picks one network
of the family that is trained, all of them to classify the same images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy

from ... import Input, Normal, Uniform
from ..data import Batches, Images, ImageSplit, digits, mnist
from ..errors import LabError
from ..primaries import LeNet
from .base import ALONE, Fixed, Formulation, Hypernetwork, Metric, Model, Outcome, Share

__all__ = ["TRAINING", "Bayes", "BayesTask"]

# The paper's rate (A.2), the same for both optimizers. It names no batch size.
TRAINING: dict[str, Any] = {"optimizer": "adam", "lr": 3e-4, "batch_size": 128}

# Pixels that go through a network at once in evaluation: 2,000 images of MNIST.
_PIXELS = 2000 * 28 * 28


@dataclass(frozen=True)
class Bayes(Hypernetwork):
    """A Bayesian hypernetwork that classifies digits (paper, sections 5.1 and A.2)."""

    data: Literal["digits", "mnist"] = "digits"
    """Images: scikit-learn's 8x8 digits, which need no download, or MNIST."""
    data_dir: Path | None = None
    """Folder with MNIST's IDX files; by default where `hyperlight data mnist` puts them."""
    prior: Literal["uniform", "normal"] = "uniform"
    """Distribution of gamma: U(0, 1) or N(0, 1)."""
    dimensions: int = 1
    """Number of entries of gamma."""
    evaluation_gammas: int = 5
    """Number of gammas, spread evenly over the prior, that a test figure is the mean of."""
    evaluation_images: int = 2000
    """Test images that are used during training (drawn once); the last figure uses all."""

    def check(self) -> None:
        """Refuse settings that cannot be trained with."""
        super().check()
        for option, least in (
            ("dimensions", 1),
            ("evaluation_gammas", 2),
            ("evaluation_images", 1),
        ):
            if getattr(self, option) < least:
                raise LabError(
                    f"--{option.replace('_', '-')} was {getattr(self, option)}; expected {least} "
                    "or more."
                )


class BayesTask:
    """The task on a device: builds models, draws batches, gives losses and test figures."""

    name = "bayes"
    metric = Metric("accuracy", "%", digits=1)

    def __init__(self, config: Bayes, device: torch.device) -> None:
        config.check()
        self.config = config
        self.device = device
        self.split: ImageSplit = digits() if config.data == "digits" else mnist(config.data_dir)
        self.note = self.split.note
        self.train = self.split.train.to(device)
        self.test = self.split.test.to(device)
        few = torch.randperm(len(self.test), generator=torch.Generator().manual_seed(0))
        self.few = self.test[few[: config.evaluation_images].to(device)]
        shape = () if config.dimensions == 1 else (config.dimensions,)
        self.space: Input = Uniform(0.0, 1.0, shape) if config.prior == "uniform" else Normal(shape)

    def model(self, formulation: Formulation, seed: int) -> Model:
        """A new model. The seed sets the primary and the hypernetwork, the same ones for
        every formulation.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            primary = LeNet(size=self.train.images.shape[-1], classes=self.split.classes)
            if formulation == "plain":
                return Fixed(primary, {}).to(self.device)
            model = self.config.build(primary, {"gamma": self.space}, formulation)
        return model.to(self.device)

    def batches(self, batch_size: int, seed: int, share: Share = ALONE) -> Batches[Images]:
        """Images to classify, without end, augmented where the data set is."""
        return Batches(self.train, batch_size, seed, self.split.augment, share)

    def sample(self, model: Model, generator: torch.Generator) -> dict[str, Tensor]:
        """One gamma for the batch; none for a plain network."""
        return model.sample(generator=generator)

    def loss(self, model: nn.Module, batch: Images, gamma: dict[str, Tensor], step: int) -> Tensor:
        """Cross-entropy of the batch under one gamma."""
        return F.cross_entropy(model(batch.images, **gamma), batch.labels)

    def evaluate(self, model: Model, whole: bool = False) -> dict[str, float]:
        """Test loss and accuracy (in %), the means over gammas."""
        gammas = self.space.quantile(self._quantiles()).float().to(self.device)
        return self._means(model, gammas, self.test if whole else self.few)

    def at(self, model: Model, gamma: float) -> dict[str, float]:
        """The figures of :meth:`evaluate` on the whole test set, with every entry of gamma set."""
        value = torch.full((1, *self.space.event_shape), gamma, device=self.device)
        return self._means(model, value, self.test)

    @torch.no_grad()
    def _means(self, model: Model, gammas: Tensor, data: Images) -> dict[str, float]:
        was_training = model.training
        model.eval()
        losses, accuracies = [], []
        for gamma in gammas[:1] if isinstance(model, Fixed) else gammas:
            logits = self._logits(model.bind(gamma=gamma), data)
            losses.append(F.cross_entropy(logits, data.labels))
            accuracies.append(
                multiclass_accuracy(
                    logits, data.labels, num_classes=self.split.classes, average="micro"
                )
            )
        model.train(was_training)
        return {
            "loss": float(torch.stack(losses).mean()),
            "accuracy": 100.0 * float(torch.stack(accuracies).mean()),
        }

    def _logits(self, net: nn.Module, data: Images) -> Tensor:
        at_once = max(1, _PIXELS // data.images[0, 0].numel())
        rows = torch.split(torch.arange(len(data), device=self.device), at_once)
        return torch.cat([net(data[index].unit().images) for index in rows])

    def finish(self, model: Model, folder: Path | None) -> Outcome:
        """Figures on the whole test set."""
        return Outcome(figures=self.evaluate(model, whole=True))

    def _quantiles(self) -> Tensor:
        """Where the test gammas lie: evenly in every entry, in an order of its own for each."""
        count = self.config.evaluation_gammas
        p = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        if not self.space.event_shape:
            return p
        generator = torch.Generator().manual_seed(0)
        return torch.stack(
            [p[torch.randperm(count, generator=generator)] for _ in range(self.space.numel)], dim=1
        )
