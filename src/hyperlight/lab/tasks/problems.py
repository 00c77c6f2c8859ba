"""Problems that are solved for every gamma by one network, where gamma changes the answer.

Differential equations for every coefficient, images by implicit networks, contradictory tasks of
one pretrained transformer, and classification for every cost of mistakes. Every model is tested at
the same few gammas, and plain networks are trained for these alone, one for each.
"""

from __future__ import annotations

import copy
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import Categorical, Encoded, HyperModel, Input, LogUniform, Page
from ...targets import Targets
from ..controls import Separate
from ..data import Batches, Images, Request, load_images
from ..errors import LabError, at_least
from .base import (
    Drawn,
    Formulation,
    Hypernetwork,
    ImageData,
    Kind,
    Metric,
    Model,
    Outcome,
    check_parts,
    evaluating,
    last_direction,
    with_validation,
)

__all__ = ["KIND", "TRAINING", "ProblemName", "Problems", "ProblemsTask"]

TRAINING: dict[str, Any] = {
    "optimizer": "adam",
    "lr": 3e-3,
    "rates": "groups",
    "schedule": "cosine",
    "steps": 1000,
    "batch_size": 256,
    "evaluate_every": 100,
}

ProblemName = Literal["reaction", "oscillation", "implicit", "adapters", "cost", "expected-cost"]
Part = Literal["valid", "test"]


@dataclass(frozen=True)
class Problems(Hypernetwork):
    """A problem that one network solves for every gamma."""

    hidden: tuple[int, ...] = (64, 128)
    """Widths of the hypernetwork's hidden layers."""
    directions: int | None = 16
    """Size of a linear projection of the last hidden layer, which the head then reads."""
    init: Literal["fan_out", "relative", "hyperfan_in", "hyperfan_out", "zero"] = "relative"
    """Initialisation of the hypernetwork; relative is the library's default."""
    problem: ProblemName = "reaction"
    """reaction, oscillation: a differential equation for every coefficient. implicit: an image is
    gamma, and its grey values are a function of the coordinates. adapters: a pretrained transformer
    gets low-rank adapters for every task. cost: images are classified, and gamma is what a mistake
    in the first half of the classes costs. expected-cost: the same without gamma in the loss;
    answers have the smallest expected cost."""
    data: ImageData = "digits"
    """Images of implicit, adapters and the costs, square ones. digits needs no download."""
    data_dir: Path | None = None
    """Folder with the images; by default where `hyperlight data` puts them."""
    size: int | None = None
    """Height and width of the images; by default that of the data set."""
    width: int = 32
    """Width of the primary's layers; of adapters, of the tokens."""
    rank: int = 4
    """Rank of the adapters."""
    pretraining: int = 500
    """Number of steps in which the transformer of adapters is trained on its first task."""
    count: int = 5
    """Number of gammas to test at: coefficients, images or tasks. Plain networks (--parametrization
    plain) are trained for these, one for each. They share a batch, and --gammas is a multiple of
    their number."""
    gammas: int = 8
    """Number of gammas in a batch, each with an equal part of it."""
    evaluation_images: int = 500
    """Largest number of images to test on, in each task of adapters and at each cost."""

    def check(self) -> None:
        """Refuse settings that cannot be trained with."""
        super().check()
        at_least(self, size=4, width=4, rank=1, pretraining=0, count=2, gammas=1)
        at_least(self, evaluation_images=1)
        if self.problem == "adapters" and self.width % 4:
            raise LabError(
                f"--width was {self.width}; expected a multiple of 4, the number of heads."
            )


def _mean(errors: Tensor) -> float:
    """The geometric mean of errors at several gammas."""
    return math.exp(float(errors.double().clamp_min(1e-12).log().mean()))


class _Problem(ABC):
    """Inputs, primary, loss and errors of a problem.

    Args:
        config: the settings.
    """

    space: Input
    metric: Metric
    note: str
    targets: Targets = None
    examples: Tensor | None = None
    """Gammas to calibrate on, where they come from data."""

    def __init__(self, config: Problems) -> None:
        self.config = config

    @abstractmethod
    def primary(self, more: int = 0) -> nn.Module:
        """A new primary network, for inputs with so many more entries."""

    @abstractmethod
    def batches(self, batch_size: int, seed: int, shard: tuple[int, int]) -> Drawn:
        """Endless batches, of which every gamma has an equal part."""

    @abstractmethod
    def losses(self, model: nn.Module, batch: Any, gamma: Tensor) -> Tensor:
        """The training loss of every gamma, ``(G,)``."""

    @abstractmethod
    def errors(self, model: nn.Module, gamma: Tensor, part: Part) -> Tensor:
        """The error of every gamma, ``(G,)``, on what is held out."""

    @abstractmethod
    def tested(self, part: Part) -> Tensor:
        """The gammas to test at."""

    def columns(self, model: nn.Module, gamma: Tensor, part: Part) -> dict[str, Tensor]:
        """More figures of every gamma for the table, ``(G,)`` by name."""
        return {}

    def inputs(self) -> Input:
        """The space of gamma, for a new model."""
        return self.space

    def drawn(self, count: int, generator: torch.Generator) -> Tensor:
        """Gammas to train with."""
        return self.space.sample((count,), generator=generator)

    def mean(self, errors: Tensor) -> float:
        """The mean error over gammas."""
        return _mean(errors)

    def score(self, error: float) -> float:
        """The metric, from the mean error."""
        return -math.log10(error) if error > 0.0 else math.nan


class _Draws(Iterator[Tensor]):
    """Endless uniform draws from 0 to 1, ``(B,)``."""

    def __init__(self, batch_size: int, seed: int, shard: tuple[int, int]) -> None:
        self.batch_size, self.shard = batch_size, shard
        self.generator = torch.Generator().manual_seed(seed)

    def __next__(self) -> Tensor:
        drawn = torch.rand(self.batch_size, generator=self.generator)
        return drawn[self.shard[0] :: self.shard[1]]

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["generator"])


# --- differential equations -------------------------------------------------------------


class _Equation(_Problem):
    """An equation in x from 0 to 1, whose coefficient is gamma."""

    metric = Metric("correct digits", digits=2)

    @abstractmethod
    def solution(self, x: Tensor, y: Tensor) -> Tensor:
        """What meets the conditions at the ends, for any output y of the network."""

    @abstractmethod
    def residual(self, a: Tensor, u: Tensor, slope: Tensor, curvature: Tensor) -> Tensor:
        """What is left of the equation; zero for its solution."""

    @abstractmethod
    def exact(self, a: Tensor, x: Tensor) -> Tensor:
        """The solution in closed form."""

    def primary(self, more: int = 0) -> nn.Module:
        width = self.config.width
        return nn.Sequential(
            *(nn.Linear(1 + more, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()),
            nn.Linear(width, 1),
        )

    def batches(self, batch_size: int, seed: int, shard: tuple[int, int]) -> Drawn:
        return _Draws(batch_size, seed, shard)

    def tested(self, part: Part) -> Tensor:
        return self.space.grid(self.config.count)

    def losses(self, model: nn.Module, batch: Tensor, gamma: Tensor) -> Tensor:
        x = batch.to(gamma).reshape(len(gamma), -1, 1).requires_grad_()
        with torch.enable_grad():
            u = self.solution(x, model(x, gamma=gamma))
            (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
            (curvature,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
            left = self.residual(gamma[:, None, None], u, slope, curvature)
        return left.square().mean(dim=(1, 2))

    def errors(self, model: nn.Module, gamma: Tensor, part: Part) -> Tensor:
        """Relative to the solution; for validation what is left of the equation, as it is known."""
        x = torch.linspace(0.0, 1.0, 201).to(gamma).repeat(len(gamma), 1)
        if part == "valid":
            return self.losses(model, x.flatten(), gamma).detach().sqrt()
        x = x.unsqueeze(-1)
        wanted = self.exact(gamma[:, None, None].double(), x.double())
        found = self.solution(x, model(x, gamma=gamma)).double()
        return (found - wanted).square().mean((1, 2)).sqrt() / wanted.square().mean((1, 2)).sqrt()


class _Reaction(_Equation):
    note = "u'' = a^2 (u - 1) with u(0) = u(1) = 0, for every a from 1 to 20"

    def __init__(self, config: Problems) -> None:
        super().__init__(config)
        self.space = LogUniform(1.0, 20.0)

    def solution(self, x: Tensor, y: Tensor) -> Tensor:
        return y * x * (1.0 - x)

    def residual(self, a: Tensor, u: Tensor, slope: Tensor, curvature: Tensor) -> Tensor:
        return (curvature - a.square() * (u - 1.0)) / a

    def exact(self, a: Tensor, x: Tensor) -> Tensor:
        return 1.0 - torch.cosh(a * (x - 0.5)) / torch.cosh(0.5 * a)


class _Oscillation(_Equation):
    note = "u'' + 2 u' + a^2 u = 0 with u(0) = 1 and u'(0) = 0, for every a from 2 to 8"

    def __init__(self, config: Problems) -> None:
        super().__init__(config)
        self.space = LogUniform(2.0, 8.0)

    def solution(self, x: Tensor, y: Tensor) -> Tensor:
        return 1.0 + y * x.square()

    def residual(self, a: Tensor, u: Tensor, slope: Tensor, curvature: Tensor) -> Tensor:
        return (curvature + 2.0 * slope) / a + a * u

    def exact(self, a: Tensor, x: Tensor) -> Tensor:
        speed = (a.square() - 1.0).sqrt()
        return (-x).exp() * ((speed * x).cos() + (speed * x).sin() / speed)


# --- images -----------------------------------------------------------------------------


class _OfImages(_Problem):
    def __init__(self, config: Problems) -> None:
        super().__init__(config)
        size = None if config.size is None else (config.size, config.size)
        split = load_images(config.data, Request(config.data_dir, size, augment=False))
        (self.train, self.valid), self.test = with_validation(split), split.test
        self.classes = split.classes
        self.channels, self.side, width = self.train.images.shape[1:]
        if width != self.side:
            raise LabError(
                f"--data {config.data} has images of {self.side}x{width}; expected square ones. "
                "Pass --size."
            )
        self.shown = f"{split.name}, {len(self.train):,} images to train"

    def part(self, part: Part, count: int) -> Images:
        """The first images that are held out."""
        found = self.valid if part == "valid" else self.test
        return found[torch.arange(min(count, len(found)))].unit()


# Largest slope of the first layer of an implicit network, over coordinates from -1 to 1 (SIREN).
_FASTEST = 10.0
_FEATURES = 32


class _Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


class _Implicit(_OfImages):
    metric = Metric("PSNR", "dB", digits=2)

    def __init__(self, config: Problems) -> None:
        super().__init__(config)
        self.examples = self.train[torch.arange(min(256, len(self.train)))].unit().images
        self.note = f"{self.shown}: the grey values of an image, as a function of coordinates"

    def inputs(self) -> Input:
        """An image, which a network reads into a code."""
        flat = 32 * (-(-self.side // 4)) ** 2
        network = nn.Sequential(
            *(nn.Conv2d(self.channels, 16, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()),
            nn.Linear(flat, _FEATURES),
        )
        return Encoded(network, features=_FEATURES, shape=(self.channels, self.side, self.side))

    def primary(self, more: int = 0) -> nn.Module:
        """Sine layers with the start of SIREN; a code beside the coordinates is no faster."""
        width = self.config.width
        first, second = nn.Linear(2 + more, width), nn.Linear(width, width)
        with torch.no_grad():
            first.weight.uniform_(-1.0, 1.0)
            first.weight[:, :2] *= _FASTEST / 2.0
            first.weight[:, 2:] *= math.sqrt(6.0 / max(more, 1))
            nn.init.uniform_(second.weight, -math.sqrt(6.0 / width), math.sqrt(6.0 / width))
        return nn.Sequential(first, _Sine(), second, _Sine(), nn.Linear(width, self.channels))

    def batches(self, batch_size: int, seed: int, shard: tuple[int, int]) -> Drawn:
        return _Draws(batch_size, seed, shard)

    def tested(self, part: Part) -> Tensor:
        return self.part(part, self.config.count).images

    def drawn(self, count: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(self.train), (count,), generator=generator)
        return self.train[rows].unit().images

    def _at(self, pixel: Tensor) -> Tensor:
        """The coordinates of the centres of pixels, ``(..., 2)``, from -1 to 1."""
        rows_columns = torch.stack([pixel // self.side, pixel % self.side], dim=-1)
        return (2.0 * rows_columns + 1.0) / self.side - 1.0

    def losses(self, model: nn.Module, batch: Tensor, gamma: Tensor) -> Tensor:
        pixel = (batch.to(gamma) * self.side**2).long().clamp_max(self.side**2 - 1)
        return self._squared(model, pixel.reshape(len(gamma), -1), gamma)

    def errors(self, model: nn.Module, gamma: Tensor, part: Part) -> Tensor:
        every = torch.arange(self.side**2, device=gamma.device)
        return self._squared(model, every.repeat(len(gamma), 1), gamma)

    def _squared(self, model: nn.Module, pixel: Tensor, gamma: Tensor) -> Tensor:
        """Mean squared error at pixels ``(G, N)`` of images ``(G, C, H, W)``."""
        wanted = gamma.flatten(2).gather(2, pixel.unsqueeze(1).expand(-1, self.channels, -1))
        found: Tensor = model(self._at(pixel), gamma=gamma)
        return (found - wanted.transpose(1, 2)).square().mean(dim=(1, 2))

    def score(self, error: float) -> float:
        return 10.0 * super().score(error)


# --- adapters ---------------------------------------------------------------------------


class _Block(nn.Module):
    """A block of a transformer, with 4 heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.read, self.write = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.read(self.norms[0](x)).unflatten(-1, (3, 4, -1)).movedim(-3, 0)
        q, k, v = heads.transpose(-2, -3).unbind(0)
        found = F.scaled_dot_product_attention(q, k, v)
        x = x + self.write(found.transpose(-2, -3).flatten(-2))
        y: Tensor = x + self.down(F.gelu(self.up(self.norms[1](x))))
        return y


class _Transformer(nn.Module):
    """Tokens ``(..., T, size)`` to scores of classes; more entries of tokens are read apart."""

    def __init__(self, tokens: int, size: int, width: int, classes: int) -> None:
        super().__init__()
        self.size = size
        self.embed = nn.Linear(size, width)
        self.position = nn.Parameter(0.1 * torch.randn(tokens, width))
        self.beside: nn.Module | None = None
        self.blocks = nn.Sequential(_Block(width), _Block(width))
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        found = self.embed(x[..., : self.size]) + self.position
        if self.beside is not None:
            found = found + self.beside(x[..., self.size :])
        scores: Tensor = self.classify(self.norm(self.blocks(found)).mean(dim=-2))
        return scores


class _Adapted(nn.Module):
    """A linear layer that stays as it is, plus a low-rank one (LoRA)."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.reduce = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.expand = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + x @ self.reduce.T @ self.expand.T
        return y


@functools.lru_cache(maxsize=4)
def _pretrained(
    data: str, data_dir: Path | None, size: int | None, width: int, steps: int
) -> _Transformer:
    """A transformer that names upright digits; the same one for all models."""
    task = _Adapters(Problems(problem="adapters", data=data, data_dir=data_dir, size=size))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokens = task.side**2 // task.patch**2
        net = _Transformer(tokens, task.channels * task.patch**2, width, task.classes)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    batches = Batches(task.train, min(128, len(task.train)), seed=0)
    for step in range(steps):
        batch = next(batches)
        optimizer.param_groups[0]["lr"] = 3e-3 * (1.0 - step / steps)
        optimizer.zero_grad()
        F.cross_entropy(net(task.tokens(batch.images)), batch.labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return net.requires_grad_(False)


class _Adapters(_OfImages):
    metric = Metric("accuracy", "%", digits=2)
    targets: Targets = ("*.reduce", "*.expand")

    def __init__(self, config: Problems) -> None:
        super().__init__(config)
        self.space = Categorical(config.count)
        self.patch = max(2, self.side // 4)
        if self.side % self.patch:
            raise LabError(
                f"The images are {self.side}x{self.side}; expected a multiple of {self.patch}, the "
                "size of a patch. Pass --size 8 or 16."
            )
        self.note = (
            f"{self.shown}, turned by k quarter turns; task k of {config.count} is to name the "
            "digit plus k"
        )

    def tokens(self, images: Tensor) -> Tensor:
        """Patches of images ``(..., C, H, W)``: ``(..., T, size)``."""
        rows = images.unfold(-2, self.patch, self.patch).unfold(-2, self.patch, self.patch)
        return rows.movedim(-5, -3).flatten(-3).flatten(-3, -2)

    def primary(self, more: int = 0) -> nn.Module:
        config = self.config
        net = copy.deepcopy(
            _pretrained(
                *(config.data, config.data_dir, config.size, config.width, config.pretraining)
            )
        )
        for module in list(net.modules()):
            for name, layer in module.named_children():
                if isinstance(layer, nn.Linear):
                    setattr(module, name, _Adapted(layer, config.rank))
        if more:
            net.beside = nn.Linear(more, config.width, bias=False)
            nn.init.zeros_(net.beside.weight)
        return net

    def batches(self, batch_size: int, seed: int, shard: tuple[int, int]) -> Drawn:
        return Batches(self.train, batch_size, seed, shard=shard)

    def tested(self, part: Part) -> Tensor:
        return torch.arange(self.config.count)

    def asked(self, images: Images, task: int) -> tuple[Tensor, Tensor]:
        """What a task shows of images, and its answers."""
        turned = images.images.rot90(task, (-2, -1))
        return self.tokens(turned), (images.labels + task).remainder(self.classes)

    def _scores(
        self, model: nn.Module, images: list[Images], gamma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scores ``(G, N, classes)`` and answers, of images for each task."""
        asked = [self.asked(each, task) for each, task in zip(images, gamma.tolist(), strict=True)]
        shown, wanted = (torch.stack(parts).to(gamma.device) for parts in zip(*asked, strict=True))
        return model(shown, gamma=gamma), wanted

    def losses(self, model: nn.Module, batch: Images, gamma: Tensor) -> Tensor:
        parts = torch.arange(len(batch)).chunk(len(gamma))
        scores, wanted = self._scores(model, [batch[rows] for rows in parts], gamma)
        found = F.cross_entropy(scores.flatten(0, 1), wanted.flatten(), reduction="none")
        return found.reshape(len(gamma), -1).mean(dim=1)

    def errors(self, model: nn.Module, gamma: Tensor, part: Part) -> Tensor:
        """Percentage of wrong answers."""
        images = self.part(part, self.config.evaluation_images)
        scores, wanted = self._scores(model, [images] * len(gamma), gamma)
        return 100.0 * (scores.argmax(dim=-1) != wanted).float().mean(dim=1)

    def mean(self, errors: Tensor) -> float:
        return float(errors.mean())

    def score(self, error: float) -> float:
        return 100.0 - error


# --- costs of mistakes ------------------------------------------------------------------

# The largest weight of a mistake; the smallest one is its inverse.
_DEAREST = 32.0


class _Cost(_OfImages):
    """Classification where mistakes in the first half of the classes have another cost."""

    metric = Metric("weighted accuracy", "%", digits=2)

    def __init__(self, config: Problems) -> None:
        super().__init__(config)
        self.space = LogUniform(1.0 / _DEAREST, _DEAREST)
        self.first = self.classes // 2
        self.note = (
            f"{self.shown}; a mistake in an image of the first {self.first} of {self.classes} "
            f"classes costs 1/{_DEAREST:g} to {_DEAREST:g} times as much as in one of the others"
        )

    def primary(self, more: int = 0) -> nn.Module:
        width = self.config.width
        return nn.Sequential(
            *(nn.Linear(self.channels * self.side**2 + more, width), nn.Tanh()),
            *(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, self.classes)),
        )

    def batches(self, batch_size: int, seed: int, shard: tuple[int, int]) -> Drawn:
        return Batches(self.train, batch_size, seed, shard=shard)

    def tested(self, part: Part) -> Tensor:
        return self.space.grid(self.config.count)

    def costs(self, gamma: Tensor, labels: Tensor) -> Tensor:
        """What mistakes cost, ``(G, N)``: 1 in the mean over classes."""
        share, dear = self.first / self.classes, gamma.unsqueeze(-1)
        return torch.where(labels < self.first, dear, 1.0) / (share * dear + 1.0 - share)

    def losses(self, model: nn.Module, batch: Images, gamma: Tensor) -> Tensor:
        labels = batch.labels.to(gamma.device).reshape(len(gamma), -1)
        images = batch.images.to(gamma).reshape(*labels.shape, -1)
        scores: Tensor = model(images, gamma=gamma)
        found = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none")
        return (self.costs(gamma, labels) * found.reshape(labels.shape)).mean(dim=1)

    def errors(self, model: nn.Module, gamma: Tensor, part: Part) -> Tensor:
        """The cost of the wrong answers, in percent of the cost if all were wrong."""
        wrong, labels = self._wrong(model, gamma, part)
        costs = self.costs(gamma, labels)
        return 100.0 * (costs * wrong).sum(dim=1) / costs.sum(dim=1)

    def columns(self, model: nn.Module, gamma: Tensor, part: Part) -> dict[str, Tensor]:
        wrong, labels = self._wrong(model, gamma, part)
        first = labels < self.first
        halves = (("first classes", first), ("other classes", ~first))
        return {
            f"wrong, {name} (%)": 100.0 * (wrong & rows).sum(dim=1) / rows.sum()
            for name, rows in halves
        }

    def _wrong(self, model: nn.Module, gamma: Tensor, part: Part) -> tuple[Tensor, Tensor]:
        """Which answers are wrong, ``(G, N)``, and what is right, ``(N,)``."""
        images = self.part(part, self.config.evaluation_images)
        labels = images.labels.to(gamma.device)
        shown = images.images.to(gamma).flatten(1).expand(len(gamma), -1, -1)
        return self.answers(model(shown, gamma=gamma), gamma) != labels, labels

    def answers(self, scores: Tensor, gamma: Tensor) -> Tensor:
        """The answers ``(G, N)`` from scores ``(G, N, classes)``."""
        return scores.argmax(dim=-1)

    def mean(self, errors: Tensor) -> float:
        return float(errors.mean())

    def score(self, error: float) -> float:
        return 100.0 - error


class _ExpectedCost(_Cost):
    """The same, but costs come in after training: each answer has the smallest expected cost."""

    def losses(self, model: nn.Module, batch: Images, gamma: Tensor) -> Tensor:
        return super().losses(model, batch, torch.ones_like(gamma))

    def answers(self, scores: Tensor, gamma: Tensor) -> Tensor:
        """With the cost ``c`` of mistakes in a class: that with the largest ``c p``."""
        classes = torch.arange(self.classes, device=gamma.device)
        return (scores + self.costs(gamma, classes).log().unsqueeze(1)).argmax(dim=-1)


_PROBLEMS: dict[str, type[_Problem]] = {
    "reaction": _Reaction,
    "oscillation": _Oscillation,
    "implicit": _Implicit,
    "adapters": _Adapters,
    "cost": _Cost,
    "expected-cost": _ExpectedCost,
}


# --- the task ---------------------------------------------------------------------------


class ProblemsTask:
    """The task on a device; see :class:`~hyperlight.lab.tasks.base.Task`.

    The error of differential equations is relative to the solution, of implicit networks the mean
    squared error, and of adapters the percentage of wrong answers. For validation there are other
    images; of an equation, what is left of it.
    """

    name = "problems"
    capturable = False  # answers are made on the CPU

    def __init__(self, config: Problems, device: torch.device) -> None:
        config.check()
        self.config = config
        self.device = device
        self.problem = _PROBLEMS[config.problem](config)
        self.metric = self.problem.metric
        self.note = f"{config.problem}: {self.problem.note}"

    def model(self, formulation: Formulation, seed: int) -> Model:
        """Build a model; equal seeds start all formulations from the same random draws.

        Plain networks are trained for the gammas that are tested, one for each.
        """
        problem, config = self.problem, self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: Model
            if formulation == "plain":
                model = Separate(problem.primary(), {"gamma": problem.tested("test")})
                model.sample((config.gammas,))
            else:
                model = config.model(
                    problem.primary,
                    {"gamma": problem.inputs()},
                    formulation,
                    fixed={},
                    targets=problem.targets,
                    calibrate_on={} if problem.examples is None else {"gamma": problem.examples},
                )
        return model.to(self.device)

    def batches(self, batch_size: int, seed: int, shard: tuple[int, int] = (0, 1)) -> Drawn:
        """Endless batches: points where an equation is to hold, pixels, or images."""
        check_parts(batch_size, self.config.gammas, shard[1])
        return self.problem.batches(batch_size, seed, shard)

    def sample(self, model: Model, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the gammas of a batch; plain networks have their own."""
        if isinstance(model, Separate):
            return model.sample((self.config.gammas,))
        return {"gamma": self.problem.drawn(self.config.gammas, generator).to(self.device)}

    def loss(self, model: nn.Module, batch: Any, gamma: dict[str, Tensor], step: int) -> Tensor:
        """The mean loss over all gammas of the batch."""
        return self.problem.losses(model, batch, gamma["gamma"]).mean()

    def evaluate(self, model: Model, whole: bool = False) -> dict[str, float]:
        """Error and metric at the tested gammas, on what is held out for testing."""
        return self._figures(self._errors(model, "test"))

    def at(self, model: Model, gamma: float) -> dict[str, float]:
        """The figures of :meth:`evaluate` at one of the tested gammas, by its number."""
        return self._figures(self._errors(model, "test")[int(gamma)].unsqueeze(0))

    def knob(self, model: HyperModel) -> tuple[str, Page] | None:
        """None: what these networks give is no picture."""
        return None

    def finish(self, model: Model, folder: Path | None) -> Outcome:
        """Errors on both parts and at every gamma, and the weights that are trained."""
        errors = self._errors(model, "test")
        found = {
            "validation error": self.problem.mean(self._errors(model, "valid")),
            "test error": self.problem.mean(errors),
            "weights held": float(sum(p.numel() for p in model.parameters() if p.requires_grad)),
            **last_direction(model),
        }
        gammas = self.problem.tested("test")
        names = gammas.tolist() if gammas.ndim == 1 else range(len(gammas))
        with torch.no_grad(), evaluating(model):
            more = self.problem.columns(model, gammas.to(self.device), "test")
        columns = (names, errors.tolist(), *(values.tolist() for values in more.values()))
        rows = [tuple(float(f"{value:.4g}") for value in row) for row in zip(*columns, strict=True)]
        heading = ("gamma", "error", *more)
        return Outcome(figures=found, tables=[("Errors against gamma", heading, rows)])

    @torch.no_grad()
    def _errors(self, model: Model, part: Part) -> Tensor:
        # Plain networks that are fitted to images know no others.
        own: Part = "test" if isinstance(model, Separate) else part
        with evaluating(model):
            gamma = self.problem.tested(own).to(self.device)
            return self.problem.errors(model, gamma, part)

    def _figures(self, errors: Tensor) -> dict[str, float]:
        error = self.problem.mean(errors)
        return {"loss": error, "error": error, self.metric.name: self.problem.score(error)}


KIND = Kind(Problems, ProblemsTask, "A problem for every gamma", "Problems", TRAINING)
