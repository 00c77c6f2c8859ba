"""Bayesian neural networks (paper, sections 5.1 and A.2).

The input ``gamma`` is noise: drawn anew for every batch, it picks one network
of the family that is trained, all of them to classify the same images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy

from ... import CosSin, HyperModel, Input, Normal, Uniform, hypernetize
from ..data import Images, ImageSplit, digits, mnist
from ..errors import LabError
from ..primaries import LeNet

__all__ = ["Bayes", "BayesTask", "Formulation"]

Formulation = Literal["classical", "mip", "encoding", "residual"]

# The two switches (paper, section 4): (encoding, residual).
SWITCHES: dict[str, tuple[bool, bool]] = {
    "classical": (False, False),
    "mip": (True, True),
    "encoding": (True, False),
    "residual": (False, True),
}


@dataclass(frozen=True)
class Bayes:
    """A Bayesian hypernetwork that classifies digits (paper, sections 5.1 and A.2)."""

    data: Literal["digits", "mnist"] = "digits"
    """Images: scikit-learn's 8x8 digits, which need no download, or MNIST."""
    data_dir: Path | None = None
    """Folder with MNIST's IDX files; by default where `hyperlight data mnist` puts them."""
    prior: Literal["uniform", "normal"] = "uniform"
    """Distribution of gamma: U(0, 1) or N(0, 1)."""
    dimensions: int = 1
    """Number of entries of gamma."""
    hidden: tuple[int, ...] = (16, 128)
    """Widths of the hypernetwork's hidden layers."""
    encoding: Literal["unit-norm", "per-input"] = "unit-norm"
    """Where inputs are encoded: norm 1 over all of gamma, or of each entry (the paper's)."""
    evaluation_gammas: int = 5
    """Number of gammas, spread evenly over the prior, that a test figure is the mean of."""
    evaluation_images: int = 2000
    """Test images that are used during training (drawn once); the last figure uses all."""


class BayesTask:
    """The task on a device: builds models, draws batches, gives losses and test figures."""

    name = "bayes"

    def __init__(self, config: Bayes, device: torch.device) -> None:
        for option in ("dimensions", "evaluation_gammas", "evaluation_images"):
            if getattr(config, option) < (2 if option == "evaluation_gammas" else 1):
                raise LabError(
                    f"--{option.replace('_', '-')} was {getattr(config, option)}; expected a "
                    f"number above {1 if option == 'evaluation_gammas' else 0}."
                )
        self.config = config
        self.split: ImageSplit = digits() if config.data == "digits" else mnist(config.data_dir)
        self.device = device
        self.train = self.split.train.to(device)
        self.test = self.split.test.to(device)
        few = torch.randperm(len(self.test), generator=torch.Generator().manual_seed(0))
        self.few = self.test[few[: config.evaluation_images].to(device)]
        shape = () if config.dimensions == 1 else (config.dimensions,)
        self.space: Input = Uniform(0.0, 1.0, shape) if config.prior == "uniform" else Normal(shape)

    def model(self, formulation: Formulation, seed: int) -> HyperModel:
        """A new model. The seed sets the primary and the hypernetwork, the same ones for
        every formulation.
        """
        encode, residual = SWITCHES[formulation]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            primary = LeNet(size=self.train.images.shape[-1], classes=self.split.classes)
            model = hypernetize(
                primary,
                inputs={"gamma": self.space},
                hidden=self.config.hidden,
                encoding=CosSin(self.config.encoding == "per-input") if encode else None,
                residual=residual,
            )
        return model.to(self.device)

    def loss(self, model: nn.Module, batch: Images, gamma: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of the batch under one gamma."""
        return F.cross_entropy(model(batch.images, **gamma), batch.labels)

    @torch.no_grad()
    def evaluate(self, model: HyperModel, whole: bool = False) -> tuple[float, float]:
        """Test loss and accuracy (in %), the means over gammas."""
        data = self.test if whole else self.few
        was_training = model.training
        model.eval()
        losses, accuracies = [], []
        gammas = self.space.quantile(self._quantiles()).float().to(self.device)
        for gamma in gammas:
            net = model.bind(gamma=gamma)
            logits = torch.cat([net(chunk) for chunk in torch.split(data.images, 2000)])
            losses.append(F.cross_entropy(logits, data.labels))
            accuracies.append(
                multiclass_accuracy(
                    logits, data.labels, num_classes=self.split.classes, average="micro"
                )
            )
        model.train(was_training)
        return float(torch.stack(losses).mean()), 100.0 * float(torch.stack(accuracies).mean())

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
