"""The one training loop, and what it records."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from lightning_fabric import Fabric
from torch.utils.data import BatchSampler, RandomSampler

from .. import HyperModel, ScaleProfile, optim, scale_profile
from .errors import LabError
from .tasks.bayes import BayesTask, Formulation

__all__ = ["Point", "Run", "Training", "train"]


@dataclass(frozen=True)
class Training:
    """How to train (paper, section A.2)."""

    optimizer: Literal["adam", "sgd"] = "adam"
    """Adam, or SGD with Nesterov momentum 0.9."""
    lr: float = 3e-4
    """Learning rate."""
    steps: int = 600
    """Number of updates."""
    batch_size: int = 128
    """Images in a batch; all of them share one gamma."""
    seeds: int = 3
    """Number of replicas, with seeds 0, 1, 2, ..."""
    evaluate_every: int = 20
    """Updates between two test figures."""
    target: float = 90.0
    """Test accuracy (in %) whose first step is reported."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train."""

    def check(self) -> None:
        """Refuse settings that cannot be trained with."""
        for option in ("steps", "batch_size", "seeds", "evaluate_every"):
            if getattr(self, option) < 1:
                raise LabError(
                    f"--{option.replace('_', '-')} was {getattr(self, option)}; expected 1 or more."
                )
        if not self.lr > 0.0 or not math.isfinite(self.lr):
            raise LabError(f"--lr was {self.lr}; expected a learning rate above zero.")


@dataclass(frozen=True)
class Point:
    """The state of a run at a step: test figures, and the mean training loss since the last."""

    step: int
    train_loss: float
    test_loss: float
    test_accuracy: float


@dataclass
class Run:
    """One model's training: what it was and all that was measured.

    Attributes:
        formulation: the parametrization that was trained.
        seed: the replica.
        points: test figures over training; the last is measured on the whole test set.
        loss: training loss of every step.
        gradient_norm: of every step, with respect to the predicted parameters (paper, figure 3c).
        chunk_seconds: seconds per step of every stretch between two evaluations.
        initial: scale of the predicted weights along gamma before training (figure 1a).
        final: the same after it.
        model: the model, trained.
    """

    formulation: Formulation
    seed: int
    model: HyperModel
    initial: ScaleProfile
    final: ScaleProfile | None = None
    points: list[Point] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
    chunk_seconds: list[float] = field(default_factory=list)

    def first_step(self, target: float) -> int | None:
        """The first evaluated step with that test accuracy, if any."""
        return next((p.step for p in self.points if p.test_accuracy >= target), None)


def train(
    task: BayesTask, formulation: Formulation, seed: int, settings: Training, fabric: Fabric
) -> Iterator[Run]:
    """Train one model; yields the run at step 0 and after every evaluation.

    A generator, so that runs which are to be compared can take turns. Equal
    seeds give equal batches and equal gammas, whatever the formulation.
    """
    settings.check()
    if settings.batch_size > len(task.train):
        raise LabError(
            f"--batch-size was {settings.batch_size}; there are {len(task.train):,} training "
            "images, expected no more than that."
        )
    hyper = task.model(formulation, seed)
    # theta = theta0 + h(gamma): the gradient of theta0 is that of the predicted parameters.
    theta0 = [hyper.primary.get_parameter(name) for name in hyper.hypernet.shapes]
    made: torch.optim.Optimizer
    if settings.optimizer == "adam":
        made = optim.Adam(hyper.parameters(), lr=settings.lr)
    else:
        made = optim.SGD(hyper.parameters(), lr=settings.lr, momentum=0.9, nesterov=True)
    run = Run(formulation, seed, hyper, initial=scale_profile(hyper))
    model, optimizer = fabric.setup(hyper, made)
    batches = _forever(len(task.train), settings.batch_size, seed)
    gammas = torch.Generator().manual_seed(seed)

    run.points.append(Point(0, math.nan, *task.evaluate(hyper)))
    yield run
    step = 0
    while step < settings.steps:
        chunk = min(settings.evaluate_every, settings.steps - step)
        losses, norms = [], []
        _wait(fabric.device)
        started = time.perf_counter()
        for _ in range(chunk):
            batch = task.train[next(batches)]
            gamma = hyper.sample(generator=gammas)
            loss = task.loss(model, batch, gamma)
            optimizer.zero_grad()
            fabric.backward(loss)
            gradients = [p.grad for p in theta0 if p.grad is not None]
            norms.append(torch.nn.utils.get_total_norm(gradients))
            optimizer.step()
            losses.append(loss.detach())
        _wait(fabric.device)
        run.chunk_seconds.append((time.perf_counter() - started) / chunk)
        step += chunk
        run.loss.extend(torch.stack(losses).tolist())
        run.gradient_norm.extend(torch.stack(norms).tolist())
        if step == settings.steps:
            run.final = scale_profile(hyper)
        figures = task.evaluate(hyper, whole=step == settings.steps)
        run.points.append(Point(step, sum(run.loss[-chunk:]) / chunk, *figures))
        yield run


def _forever(images: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Batches of indices, epoch after epoch, each epoch in an order of its own."""
    order = RandomSampler(range(images), generator=torch.Generator().manual_seed(seed))
    while True:
        yield from BatchSampler(order, batch_size, drop_last=True)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
