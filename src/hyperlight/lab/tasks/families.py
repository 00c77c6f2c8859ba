"""Families of functions in closed form, for questions about the hypernetwork itself.

The answer must change with the input ``gamma``, in a way that is known: fast or slow, along one
input or many, for categories or embeddings. No network without ``gamma`` solves any of these but
``permuted``: one network can learn most of the digits in all of its orders.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import Categorical, Encoded, HyperModel, Input, Normal, Page, Uniform, explore
from ..data import Batches, Images, Request, load_images
from ..errors import LabError, at_least
from .base import (
    SLIDER,
    Drawn,
    Fixed,
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

__all__ = ["COUNTS", "KIND", "TRAINING", "Families", "FamiliesTask", "FamilyName"]

TRAINING: dict[str, Any] = {
    "optimizer": "adam",
    "lr": 1e-2,
    "rates": "groups",
    "schedule": "cosine",
    "steps": 1000,
    "batch_size": 256,
    "evaluate_every": 100,
}

FamilyName = Literal[
    "hat", "frequency", "interaction", "embedding", "permuted", "filtered", "picture"
]

# What --count means for each family, and its default.
COUNTS: dict[str, tuple[str, int]] = {
    "hat": ("pieces", 16),
    "frequency": ("half-waves", 4),
    "interaction": ("inputs", 8),
    "embedding": ("directions", 8),
    "permuted": ("categories", 10),
    "filtered": ("pieces", 16),
    "picture": ("features", 64),
}

Part = Literal["valid", "test"]
_SEEDS: dict[Part, int] = {"valid": 1, "test": 2}
_EMBEDDED = 64
# Gammas at a time, and points of each, in an evaluation.
_AT_ONCE = 64
_POINTS = 64


@dataclass(frozen=True)
class Families(Hypernetwork):
    """A family of functions of x, known in closed form for every gamma."""

    hidden: tuple[int, ...] = (64, 128)
    """Widths of the hypernetwork's hidden layers."""
    init: Literal["fan_out", "relative", "hyperfan_in", "hyperfan_out", "zero"] = "relative"
    """Initialisation of the hypernetwork; relative is the library's default."""
    family: FamilyName = "hat"
    """hat: unrelated sines, interpolated along one gamma. frequency: a sine whose frequency is
    gamma. interaction: several inputs, each of which changes what the one before does. embedding:
    linear functions of 64 normal numbers. permuted: the classes of images, whose pixels each
    category permutes. filtered: images behind a filter that changes along gamma, by a
    convolutional network. picture: the brightness at points of an image, which passes through a
    network of its own."""
    count: int | None = None
    """Pieces of hat and filtered (16), half-waves of frequency (4), inputs of interaction (8),
    linear functions of embedding (8), categories of permuted (10), or features of the network of
    picture (64)."""
    data: ImageData = "digits"
    """Images of permuted, filtered and picture. digits needs no download."""
    data_dir: Path | None = None
    """Folder with the images; by default where `hyperlight data` puts them."""
    width: int = 64
    """Width of the primary's two hidden layers; of filtered, a quarter of it are channels."""
    gammas: int = 8
    """Number of gammas in a batch, each with an equal part of it."""
    evaluation_gammas: int = 64
    """Number of gammas, drawn once, for validation; there are four times as many for testing."""
    evaluation_images: int = 1000
    """Largest number of images that permuted is evaluated on, in each of its categories."""

    def check(self) -> None:
        """Refuse settings that cannot be trained with."""
        super().check()
        at_least(self, width=4, gammas=1, evaluation_gammas=2, evaluation_images=1)
        at_least(self, count=2 if self.family in ("interaction", "permuted") else 1)
        if self.family == "embedding" and self.counted > _EMBEDDED:
            raise LabError(
                f"--count was {self.count}; expected at most {_EMBEDDED}, the number of entries "
                "of the embedding."
            )

    @property
    def counted(self) -> int:
        """:attr:`count`, or its default."""
        return COUNTS[self.family][1] if self.count is None else self.count


class _Family(ABC):
    """Inputs, primary, points and answers of a family.

    Args:
        config: the settings.
    """

    space: Input
    note: str
    metric = Metric("explained variance", "%", digits=2)
    examples: Tensor | None = None
    """Gammas to calibrate on, where they come from data."""

    def __init__(self, config: Families) -> None:
        self.config = config

    @abstractmethod
    def primary(self, more: int = 0) -> nn.Module:
        """A new primary network, for inputs with so many more entries or channels."""

    @abstractmethod
    def batches(self, batch_size: int, seed: int, shard: tuple[int, int]) -> Drawn:
        """Endless batches, without the answers, which depend on gamma."""

    @abstractmethod
    def answered(self, batch: Any, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """What the primary is given, ``(G, N, ...)``, and the answers, for ``(G,)`` gammas."""

    @abstractmethod
    def held_out(self, part: Part) -> tuple[Tensor, Any]:
        """Gammas, and a batch with an equal part for each, always the same ones."""

    def gammas(self, count: int, generator: torch.Generator, part: Part | None = None) -> Tensor:
        """Draw gammas, for training unless a part is given."""
        return self.space.sample((count,), generator=generator)

    def drawn(self, part: Part) -> tuple[Tensor, torch.Generator]:
        """Gammas for an evaluation, and a generator for its points."""
        count = self.config.evaluation_gammas * (4 if part == "test" else 1)
        generator = torch.Generator().manual_seed(_SEEDS[part])
        return self.gammas(count, generator, part), generator

    def inputs(self) -> Input:
        """The space of gamma, for a new model."""
        return self.space

    def median(self) -> Tensor:
        """The one gamma of a plain network."""
        return self.space.quantile(torch.full(self.space.event_shape, 0.5))

    def apply(self, model: nn.Module, x: Tensor, gamma: Tensor) -> Tensor:
        """Run the model on ``(G, N, ...)``, with one set of weights for each of the G."""
        y: Tensor = model(x, gamma=gamma)
        return y

    def loss(self, given: Tensor, wanted: Tensor) -> Tensor:
        """The training loss."""
        return F.mse_loss(given, wanted)

    def error(self, given: Tensor, wanted: Tensor) -> Tensor:
        """Squared error, as a share of the variance of the answers."""
        return F.mse_loss(given, wanted) / wanted.var(correction=0)


# --- functions ------------------------------------------------------------------------


class _Draws(Iterator[Tensor]):
    """Endless uniform draws from a cube, ``(B, X)``."""

    def __init__(self, size: int, batch_size: int, seed: int, shard: tuple[int, int]) -> None:
        self.shape = (batch_size, size)
        self.shard = shard
        self.generator = torch.Generator().manual_seed(seed)

    def __next__(self) -> Tensor:
        return _cube(self.shape, self.generator)[self.shard[0] :: self.shard[1]]

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["generator"])


def _cube(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 2.0 * torch.rand(shape, generator=generator) - 1.0


class _Functions(_Family):
    """Functions of x in a cube, of variance one or nearly so."""

    size = 1

    @abstractmethod
    def answer(self, x: Tensor, gamma: Tensor) -> Tensor:
        """The function: x ``(G, N, X)``, gamma ``(G,)`` with the event shape, to ``(G, N)``."""

    def primary(self, more: int = 0) -> nn.Module:
        return _mlp(self.size + more, self.config.width, 1)

    def batches(self, batch_size: int, seed: int, shard: tuple[int, int]) -> Drawn:
        return _Draws(self.size, batch_size, seed, shard)

    def answered(self, batch: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        x = batch.to(gamma.device).reshape(len(gamma), -1, self.size)
        return x, self.answer(x.cpu(), gamma.cpu()).unsqueeze(-1).to(x)

    def held_out(self, part: Part) -> tuple[Tensor, Tensor]:
        gamma, generator = self.drawn(part)
        return gamma, _cube((len(gamma) * _POINTS, self.size), generator)


def _mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
        nn.Linear(width, outputs),
    )


class _Waves:
    """Unrelated functions of x: sines of variance about one, ``(..., X)`` to ``(..., count)``."""

    def __init__(self, count: int, size: int, fastest: float) -> None:
        draw = torch.Generator().manual_seed(0)
        directions = F.normalize(torch.randn(count, size, generator=draw), dim=1)
        speeds = 1.0 + (fastest - 1.0) * torch.rand(count, 1, generator=draw)
        self.slopes = directions * speeds
        self.phases = 2.0 * math.pi * torch.rand(count, generator=draw)

    def __call__(self, x: Tensor) -> Tensor:
        return math.sqrt(2.0) * torch.sin(x @ self.slopes.T + self.phases)


def _hats(gamma: Tensor, pieces: int) -> Tensor:
    """Weights of ``pieces + 1`` things between which a gamma interpolates: ``(G, pieces + 1)``."""
    away = (gamma.unsqueeze(-1) * pieces - torch.arange(pieces + 1.0)).abs()
    return (1.0 - away).clamp_min(0.0)


class _Hat(_Functions):
    def __init__(self, config: Families) -> None:
        super().__init__(config)
        self.space = Uniform(0.0, 1.0)
        self.waves = _Waves(config.counted + 1, self.size, 6.0)
        self.note = f"{config.counted + 1} unrelated sines of x, interpolated along one gamma"

    def answer(self, x: Tensor, gamma: Tensor) -> Tensor:
        found: Tensor = self.waves(x) * _hats(gamma, self.config.counted).unsqueeze(1)
        return found.sum(dim=-1)


class _Frequency(_Functions):
    def __init__(self, config: Families) -> None:
        super().__init__(config)
        self.space = Uniform(0.0, 1.0)
        self.note = f"a sine of x, with half a wave to {config.counted} more along one gamma"

    def answer(self, x: Tensor, gamma: Tensor) -> Tensor:
        waves = 0.5 + self.config.counted * gamma.view(-1, 1)
        found: Tensor = math.sqrt(2.0) * torch.sin(math.pi * waves * x.squeeze(-1))
        return found


class _Interaction(_Functions):
    size = 4

    def __init__(self, config: Families) -> None:
        super().__init__(config)
        self.space = Uniform(0.0, 1.0, (config.counted,))
        self.waves = _Waves(config.counted, self.size, 3.0)
        self.note = (
            f"{config.counted} sines of x, each weighted by an input and its product with the next"
        )

    def answer(self, x: Tensor, gamma: Tensor) -> Tensor:
        turned = math.sqrt(2.0) * torch.cos(math.pi * gamma)
        # A fifth of the variance is that of the products.
        weights = turned * (1.0 + 0.5 * turned.roll(1, -1)) / math.sqrt(1.25 * self.config.counted)
        return (self.waves(x) * weights.unsqueeze(1)).sum(dim=-1)


class _Embedding(_Functions):
    size = 4

    def __init__(self, config: Families) -> None:
        super().__init__(config)
        self.space = Normal((_EMBEDDED,))
        self.waves = _Waves(config.counted, self.size, 3.0)
        draw = torch.Generator().manual_seed(0)
        square = torch.randn(_EMBEDDED, _EMBEDDED, generator=draw)
        self.read = torch.linalg.qr(square).Q[:, : config.counted]
        self.note = (
            f"{config.counted} sines of x, with linear functions of {_EMBEDDED} normal numbers as "
            "weights"
        )

    def answer(self, x: Tensor, gamma: Tensor) -> Tensor:
        weights: Tensor = gamma @ self.read / math.sqrt(self.config.counted)
        return (self.waves(x) * weights.unsqueeze(1)).sum(dim=-1)


# --- images ---------------------------------------------------------------------------


class _OfImages(_Family):
    def __init__(self, config: Families) -> None:
        super().__init__(config)
        split = load_images(config.data, Request(config.data_dir))
        self.classes = split.classes
        (self.train, self.valid), self.test = with_validation(split), split.test
        self.channels, height, width = self.train.images.shape[1:]
        self.pixels = self.channels * height * width
        self.shown = f"{split.name}, {len(self.train):,} images to train"

    def batches(self, batch_size: int, seed: int, shard: tuple[int, int]) -> Drawn:
        return Batches(self.train, batch_size, seed, shard=shard)

    def part(self, part: Part) -> Images:
        return (self.valid if part == "valid" else self.test).unit()


class _Permuted(_OfImages):
    metric = Metric("accuracy", "%", digits=2)

    def __init__(self, config: Families) -> None:
        super().__init__(config)
        self.space = Categorical(config.counted)
        draw = torch.Generator().manual_seed(0)
        self.orders = torch.stack(
            [torch.randperm(self.pixels, generator=draw) for _ in range(config.counted)]
        )
        self.note = f"{self.shown}, whose pixels are permuted in {config.counted} ways"

    def primary(self, more: int = 0) -> nn.Module:
        return _mlp(self.pixels + more, self.config.width, self.classes)

    def answered(self, batch: Images, gamma: Tensor) -> tuple[Tensor, Tensor]:
        count = len(gamma)
        x = batch.images.reshape(count, -1, self.pixels).to(gamma.device)
        orders = self.orders.to(gamma.device)[gamma]
        permuted = x.gather(2, orders.unsqueeze(1).expand_as(x))
        return permuted, batch.labels.reshape(count, -1).to(gamma.device)

    def held_out(self, part: Part) -> tuple[Tensor, Images]:
        gamma, found = torch.arange(self.config.counted), self.part(part)
        each = torch.arange(min(len(found), self.config.evaluation_images))
        return gamma, found[each.repeat(len(gamma))]

    def loss(self, given: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(given.flatten(0, 1), wanted.flatten())

    def error(self, given: Tensor, wanted: Tensor) -> Tensor:
        """Share of the images that are classified wrongly."""
        return (given.argmax(dim=-1) != wanted).float().mean()


class _Filtered(_OfImages):
    def __init__(self, config: Families) -> None:
        super().__init__(config)
        self.space = Uniform(0.0, 1.0)
        draw = torch.Generator().manual_seed(0)
        kernels = torch.randn(config.counted + 1, self.channels, 3, 3, generator=draw)
        size = kernels.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        self.kernels = kernels / size
        self.note = (
            f"{self.shown}, to be filtered by one of {config.counted + 1} random filters, "
            "interpolated along one gamma"
        )

    def primary(self, more: int = 0) -> nn.Module:
        channels = max(1, self.config.width // 4)
        return nn.Sequential(
            *(nn.Conv2d(self.channels + more, channels, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()),
            nn.Conv2d(channels, 1, 3, padding=1),
        )

    def answered(self, batch: Images, gamma: Tensor) -> tuple[Tensor, Tensor]:
        shape = batch.images.shape[1:]
        x = batch.images.reshape(len(gamma), -1, *shape)
        weights = _hats(gamma.cpu(), self.config.counted)
        kernels = torch.einsum("gk,kcij->gcij", weights, self.kernels)
        # One group for each gamma: images beside one another in the batch, gammas in the channels.
        rows = x.cpu().transpose(0, 1).flatten(1, 2)
        y = F.conv2d(rows, kernels, padding=1, groups=len(gamma)).abs()
        return x.to(gamma.device), y.transpose(0, 1).unsqueeze(2).to(gamma.device)

    def held_out(self, part: Part) -> tuple[Tensor, Images]:
        gamma, generator = self.drawn(part)
        found = self.part(part)
        return gamma, found[torch.randint(len(found), (4 * len(gamma),), generator=generator)]

    def apply(self, model: nn.Module, x: Tensor, gamma: Tensor) -> Tensor:
        each = gamma.repeat_interleave(x.shape[1], dim=0)
        y: Tensor = model(x.flatten(0, 1), gamma=each)
        return y.reshape(*x.shape[:2], *y.shape[1:])


# Frequencies, in half-waves, in which a primary sees each coordinate of a point.
_OCTAVES = (1.0, 2.0, 4.0)


class _Picture(_OfImages):
    metric = _Family.metric

    def __init__(self, config: Families) -> None:
        super().__init__(config)
        self.examples = self.train.unit().images[:256]
        self.note = (
            f"{self.shown}: the brightness at points of an image, which a network reads into "
            f"{config.counted} features"
        )

    def inputs(self) -> Input:
        sides = self.train.images.shape[-2:]
        flat = 32 * math.prod(-(-side // 4) for side in sides)
        network = nn.Sequential(
            *(nn.Conv2d(self.channels, 16, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()),
            nn.Linear(flat, self.config.counted),
        )
        return Encoded(network, features=self.config.counted)

    def median(self) -> Tensor:
        assert self.examples is not None
        return self.examples[0]

    def primary(self, more: int = 0) -> nn.Module:
        seen = 2 * (1 + 2 * len(_OCTAVES))
        return _mlp(seen + more, self.config.width, self.channels)

    def gammas(self, count: int, generator: torch.Generator, part: Part | None = None) -> Tensor:
        found = self.train if part is None else self.part(part)
        rows = torch.randint(len(found), (count,), generator=generator)
        return found[rows.to(found.images.device)].unit().images

    def batches(self, batch_size: int, seed: int, shard: tuple[int, int]) -> Drawn:
        return _Draws(2, batch_size, seed, shard)

    def answered(self, batch: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        points = batch.to(gamma).reshape(len(gamma), -1, 2)
        angles = torch.cat([math.pi * k * points for k in _OCTAVES], dim=-1)
        # (G, C, 1, N), between the centres of the outermost pixels.
        found = F.grid_sample(gamma, points.unsqueeze(1), align_corners=True)
        wanted = 2.0 * found.squeeze(2).transpose(1, 2) - 1.0
        return torch.cat([points, angles.sin(), angles.cos()], dim=-1), wanted

    def held_out(self, part: Part) -> tuple[Tensor, Tensor]:
        gamma, generator = self.drawn(part)
        return gamma, _cube((len(gamma) * _POINTS, 2), generator)


_FAMILIES: dict[str, type[_Family]] = {
    "hat": _Hat,
    "frequency": _Frequency,
    "interaction": _Interaction,
    "embedding": _Embedding,
    "permuted": _Permuted,
    "filtered": _Filtered,
    "picture": _Picture,
}


# --- the task -------------------------------------------------------------------------


class FamiliesTask:
    """The task on a device; see :class:`~hyperlight.lab.tasks.base.Task`.

    During training it is evaluated on draws for validation, and in the end on others for testing.
    """

    name = "families"
    capturable = False  # answers are looked up on the CPU

    def __init__(self, config: Families, device: torch.device) -> None:
        config.check()
        self.config = config
        self.device = device
        self.family = _FAMILIES[config.family](config)
        self.note = f"{config.family}: {self.family.note}"
        self.metric = self.family.metric

    def model(self, formulation: Formulation, seed: int) -> Model:
        """Build a model; equal seeds start all formulations from the same random draws.

        A plain network is trained for the median of gamma.
        """
        family = self.family
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.config.model(
                family.primary,
                {"gamma": family.inputs()},
                formulation,
                fixed={"gamma": family.median()},
                calibrate_on={} if family.examples is None else {"gamma": family.examples},
            )
        return model.to(self.device)

    def batches(self, batch_size: int, seed: int, shard: tuple[int, int] = (0, 1)) -> Drawn:
        """Endless batches of points; their answers follow with gamma."""
        check_parts(batch_size, self.config.gammas, shard[1])
        return self.family.batches(batch_size, seed, shard)

    def sample(self, model: Model, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the gammas of a batch; a plain network has its one."""
        if isinstance(model, Fixed):
            return model.sample((self.config.gammas,))
        return {"gamma": self.family.gammas(self.config.gammas, generator).to(self.device)}

    def loss(self, model: nn.Module, batch: Any, gamma: dict[str, Tensor], step: int) -> Tensor:
        """Mean squared error, or cross-entropy, over all gammas of the batch."""
        x, wanted = self.family.answered(batch, gamma["gamma"])
        return self.family.loss(self.family.apply(model, x, gamma["gamma"]), wanted)

    def evaluate(self, model: Model, whole: bool = False) -> dict[str, float]:
        """Loss, error and metric on the draws for validation, or with ``whole`` for testing.

        The error is the share of the variance that is not explained, or of the images that are
        classified wrongly.
        """
        return self._figures(model, *self.family.held_out("test" if whole else "valid"))

    def at(self, model: Model, gamma: float) -> dict[str, float]:
        """The figures of :meth:`evaluate` for testing, with every entry of gamma at this value."""
        drawn, batch = self.family.held_out("test")
        return self._figures(model, torch.full_like(drawn, gamma), batch)

    def knob(self, model: HyperModel) -> tuple[str, Page] | None:
        """The function of x at every gamma; None if x or gamma has several entries."""
        if not isinstance(self.family, _Functions) or self.family.size > 1:
            return None
        x = torch.linspace(-1.0, 1.0, 201, device=self.device).unsqueeze(1)
        page = explore(model, x, gamma=SLIDER, title="A function of x for every gamma")
        return "The function that the network has learned, over x.", page

    def finish(self, model: Model, folder: Path | None) -> Outcome:
        """Errors on both parts, the weights held, and the share of the last direction."""
        figures = {
            "validation error": self.evaluate(model)["error"],
            "test error": self.evaluate(model, whole=True)["error"],
            "weights held": float(sum(p.numel() for p in model.parameters())),
            **last_direction(model),
        }
        return Outcome(figures=figures)

    @torch.no_grad()
    def _figures(self, model: Model, gamma: Tensor, batch: Any) -> dict[str, float]:
        gamma = gamma.to(self.device)
        if isinstance(model, Fixed):
            (own,) = model.sample().values()
            gamma = own.expand_as(gamma)
        x, wanted = self.family.answered(batch, gamma)
        with evaluating(model):
            parts = zip(torch.split(x, _AT_ONCE), torch.split(gamma, _AT_ONCE), strict=True)
            given = torch.cat([self.family.apply(model, *part) for part in parts])
        error = float(self.family.error(given, wanted))
        return {
            "loss": float(self.family.loss(given, wanted)),
            "error": error,
            self.metric.name: 100.0 * (1.0 - error),
        }


KIND = Kind(Families, FamiliesTask, "Families of functions", "Families", TRAINING)
