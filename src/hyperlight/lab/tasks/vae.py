"""Variational autoencoders for every trade-off of rate against distortion.

The input ``beta`` is the price of the rate (Higgins et al. 2017): nearly for nothing, an image is
kept pixel by pixel; at a high price only what is worth it is kept, or nothing. One model is trained
for all prices (Dosovitskiy and Djolonga 2020), and users choose theirs afterwards.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from ... import HyperModel, LogUniform, Page, explore
from ..controls import Separate
from ..data import Batches, Images, Request, load_images
from ..errors import LabError, at_least
from ..primaries import VAE
from ..scheme import save
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
    check_parts,
    evaluating,
    last_direction,
    with_validation,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "KIND",
    "TRAINING",
    "Vae",
    "VaeTask",
    "distortion",
    "geometric_mean",
    "objective",
    "rate",
]

TRAINING: dict[str, Any] = {
    "optimizer": "adam",
    "lr": 3e-3,
    "rates": "groups",
    "schedule": "cosine",
    "steps": 2000,
    "batch_size": 128,
    "evaluate_every": 200,
}

# Pixels per forward pass in evaluation.
_PIXELS = 2**21

# In the pictures: columns along beta, images that are encoded, images that are drawn.
_COLUMNS, _ENCODED, _DRAWN = 5, 3, 2


@dataclass(frozen=True)
class Vae(Hypernetwork):
    """A variational autoencoder of images for every trade-off of rate against distortion."""

    hidden: tuple[int, ...] = (64, 128)
    """Widths of the hypernetwork's hidden layers."""
    directions: int | None = 16
    """Size of a linear projection of the last hidden layer, which the head then reads."""
    init: Literal["fan_out", "relative", "hyperfan_in", "hyperfan_out", "zero"] = "relative"
    """Initialisation of the hypernetwork; relative is the library's default."""
    data: ImageData = "digits"
    """Data set; its labels are not used. digits needs no download."""
    data_dir: Path | None = None
    """Folder with the data; by default where `hyperlight data` puts them."""
    size: int | None = None
    """Height and width of the images; by default that of the data set. The 256 of flowers102 need
    gigabytes of weights: choose 32 or so."""
    widths: tuple[int, ...] = (256,)
    """Widths of the encoder's hidden layers; the decoder has them in reverse."""
    latent: int = 16
    """Number of latent variables."""
    lowest: float = 0.01
    """Smallest beta, the price of the rate."""
    highest: float = 10.0
    """Largest beta."""
    endpoints: float = 0.1
    """Fraction of the draws of beta that are the smallest or the largest one."""
    gammas: int = 8
    """Number of betas in a batch, each with an equal part of it."""
    beta: tuple[float, ...] = (1.0,)
    """The betas of plain networks (--parametrization plain), one network for each. They share a
    batch, and --gammas is a multiple of their number."""
    evaluation_gammas: int = 9
    """Number of betas, evenly spread in the logarithm, over which figures are averaged."""
    evaluation_images: int = 1000
    """Largest number of validation images, which are used during training (drawn once)."""

    def check(self) -> None:
        """Refuse settings that cannot be trained with."""
        super().check()
        at_least(self, size=1, latent=1, gammas=1, evaluation_gammas=2, evaluation_images=1)
        if min(self.widths, default=1) < 1:
            raise LabError(
                f"--widths was {self.widths}; expected widths of 1 or more, as in 512 256."
            )
        if not 0.0 < self.lowest < self.highest < math.inf:
            raise LabError(
                f"--lowest was {self.lowest} and --highest {self.highest}; expected numbers above "
                "zero, the smaller one first."
            )
        if not 0.0 <= self.endpoints <= 1.0:
            raise LabError(f"--endpoints was {self.endpoints}; expected a fraction from 0 to 1.")
        if not self.beta or not all(0.0 < beta < math.inf for beta in self.beta):
            raise LabError(f"--beta was {self.beta}; expected numbers above zero.")


# --- the objective --------------------------------------------------------------------


def rate(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Nats that the latent variables need: the KL divergence from the standard normal prior.

    Args:
        mean: of a normal distribution with a diagonal covariance, ``(..., latent)``.
        log_variance: the logarithms of its variances, ``(..., latent)``.

    Returns:
        ``(...)``.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(dim=-1)


def distortion(given: Tensor, wanted: Tensor) -> Tensor:
    """Squared error, summed over channels and pixels: ``(..., C, H, W)`` to ``(...)``.

    Up to a constant, it is ``beta`` times the negative log-likelihood of pixels with normal noise
    of variance ``beta / 2``. So every beta has a proper likelihood, and all have one distortion.
    """
    return (given - wanted).square().flatten(-3).sum(dim=-1)


Number = TypeVar("Number", float, Tensor)


def objective(distortion: Number, rate: Number, beta: Number) -> Number:
    """``(distortion + beta * rate) / (1 + beta)``.

    The divisor changes no optimum. Without it the loss would mostly be that of the largest betas.
    """
    return (distortion + beta * rate) / (1.0 + beta)


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean of numbers above zero; NaN or infinity if one is."""
    return math.exp(statistics.fmean(math.log(value) for value in values))


# --- figures --------------------------------------------------------------------------


@dataclass(frozen=True)
class _HeldOut:
    """Images with their noise, always the same.

    Attributes:
        images: the images.
        noise: ``(N, latent)``.
        spread: distortion of the mean training image.
    """

    images: Images
    noise: Tensor
    spread: float

    @classmethod
    def of(cls, images: Images, mean: Tensor, latent: int) -> _HeldOut:
        """Draw the noise, and measure the distortion of the mean image."""
        noise = torch.randn(len(images), latent, generator=torch.Generator().manual_seed(0))
        errors = [distortion(mean, part.unit().images) for part in _chunks(images)]
        return cls(images, noise.to(mean.device), float(torch.cat(errors).double().mean()))


@dataclass(frozen=True)
class _Row:
    """Means over images, at one beta."""

    beta: float
    rate: float
    distortion: float

    @property
    def objective(self) -> float:
        return objective(self.distortion, self.rate, self.beta)


def _chunks(images: Images) -> Iterator[Images]:
    """Parts of few enough pixels for a forward pass."""
    at_once = max(1, _PIXELS // images.images[0].numel())
    for rows in torch.split(torch.arange(len(images), device=images.images.device), at_once):
        yield images[rows]


def _measure(net: nn.Module, beta: float, part: _HeldOut) -> _Row:
    """Rate and distortion of a network with the weights of one beta."""
    rates, distortions, begin = [], [], 0
    for images in _chunks(part.images):
        x, noise = images.unit().images, part.noise[begin : begin + len(images)]
        given, mean, log_variance = net(x, noise)
        rates.append(rate(mean, log_variance))
        distortions.append(distortion(given, x))
        begin += len(images)
    means = (float(torch.cat(each).double().mean()) for each in (rates, distortions))
    return _Row(beta, *means)


# --- the task -------------------------------------------------------------------------


class _NoisyBatches(Iterator[tuple[Tensor, Tensor]]):
    """Endless batches of images ``(B, C, H, W)``, with standard normal noise ``(B, latent)``.

    Args:
        images: the batches.
        latent: number of latent variables.
    """

    def __init__(self, images: Batches[Images], latent: int) -> None:
        self.images = images
        self.latent = latent

    def __next__(self) -> tuple[Tensor, Tensor]:
        x = next(self.images).images
        # For the batch of all processes, so that it does not depend on their number.
        shape = (self.images.batch_size, self.latent)
        noise = torch.randn(shape, generator=self.images.generator)
        first, step = self.images.shard
        return x, noise[first::step].to(x.device)

    def state_dict(self) -> dict[str, Tensor]:
        return self.images.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.images.load_state_dict(state)


class VaeTask:
    """The task on a device; see :class:`~hyperlight.lab.tasks.base.Task`.

    Its metric is the saving: how far the objective is below that of the mean training image, which
    needs no rate. Objectives differ in size along beta, so their geometric means are compared.
    During training it is evaluated on images for validation, and in the end on others for testing.
    Every model is evaluated with the same noise.
    """

    name = "vae"
    capturable = True
    metric = Metric("saving", "%", digits=2)

    def __init__(self, config: Vae, device: torch.device) -> None:
        config.check()
        self.config = config
        self.device = device
        size = None if config.size is None else (config.size, config.size)
        split = load_images(config.data, Request(config.data_dir, size, augment=False))
        train, valid = with_validation(split)
        order = torch.randperm(len(valid), generator=torch.Generator().manual_seed(0))
        valid = valid[order[: config.evaluation_images].sort().values]
        self.train = train.to(device)
        self.shape = tuple(train.images.shape[1:])
        sums = [part.unit().images.sum(dim=0) for part in _chunks(self.train)]
        mean = torch.stack(sums).sum(dim=0) / len(train)
        self.valid = _HeldOut.of(valid.to(device), mean, config.latent)
        self.test = _HeldOut.of(split.test.to(device), mean, config.latent)
        self.space = LogUniform(config.lowest, config.highest, endpoints=config.endpoints)
        self.note = (
            f"{split.name}, {len(train):,} images to train, {len(valid):,} to validate, "
            f"{len(split.test):,} to test; the saving is how far the objective is below that of "
            "the mean image"
        )

    def model(self, formulation: Formulation, seed: int) -> Model:
        """Build a model; equal seeds start all formulations from the same random draws.

        Plain networks are trained for one beta each, those of the settings.
        """
        config, beta = self.config, torch.tensor(self.config.beta)
        make = partial(VAE, self.shape, config.widths, config.latent)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: Model
            if formulation == "plain" and len(beta) > 1:
                model = Separate(make(), {"beta": beta})
                model.sample((config.gammas,))
            else:
                model = config.model(
                    make, {"beta": self.space}, formulation, fixed={"beta": beta[0]}
                )
        return model.to(self.device)

    def batches(self, batch_size: int, seed: int, shard: tuple[int, int] = (0, 1)) -> _NoisyBatches:
        """Endless batches of images and noise."""
        check_parts(batch_size, self.config.gammas, shard[1])
        return _NoisyBatches(Batches(self.train, batch_size, seed, shard=shard), self.config.latent)

    def sample(self, model: Model, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the betas of a batch; plain networks have their own."""
        return model.sample((self.config.gammas,), generator=generator)

    def loss(
        self, model: nn.Module, batch: tuple[Tensor, Tensor], gamma: dict[str, Tensor], step: int
    ) -> Tensor:
        """The objective, averaged over the batch; every beta has an equal part of it."""
        x, noise = (part.reshape(self.config.gammas, -1, *part.shape[1:]) for part in batch)
        given, mean, log_variance = model(x, noise, **gamma)
        beta = gamma["beta"].unsqueeze(-1)
        return objective(distortion(given, x), rate(mean, log_variance), beta).mean()

    def evaluate(self, model: Model, whole: bool = False) -> dict[str, float]:
        """Figures over all betas, of validation images, or with ``whole`` of test images.

        Returns:
            ``loss``, ``rate`` (in nats) and ``distortion`` are means over betas, ``objective`` is
            a geometric mean, and ``saving`` compares it with that of the mean image.
        """
        part = self.test if whole else self.valid
        return self._summary(self._rows(model, self._betas(model), part), part)

    def at(self, model: Model, gamma: float) -> dict[str, float]:
        """The figures of :meth:`evaluate` on test images, at one beta."""
        return self._summary(self._rows(model, [gamma], self.test), self.test)

    def knob(self, model: HyperModel) -> tuple[str, Page]:
        """Test images above what is decoded of them, along beta."""
        few = torch.arange(min(4, len(self.test.images)), device=self.device)
        x, noise = self.test.images[few].unit().images, self.test.noise[few]
        line = torch.ones_like(x[..., :1, :])  # between the two

        def draw(found: tuple[Tensor, ...]) -> Tensor:
            return torch.cat([x, line, found[0].clamp(0.0, 1.0)], dim=-2)

        page = explore(
            *(model, x, noise),
            beta=SLIDER,
            draw=draw,
            title="Test images, and what is kept of them at a price",
        )
        return (
            "Above: test images. Below: what is decoded of them. beta is the price of a nat.",
            page,
        )

    def finish(self, model: Model, folder: Path | None) -> Outcome:
        """The front of rate and distortion on test images, errors on both parts, and pictures.

        An error is the geometric mean of the objective over betas.
        """
        rows = self._rows(model, self._betas(model), self.test)
        figures = {
            "validation error": self.evaluate(model)["objective"],
            "test error": self._summary(rows, self.test)["objective"],
            "weights held": float(sum(p.numel() for p in model.parameters())),
            **last_direction(model),
        }
        pictures: list[tuple[str, Path]] = []
        if folder is not None:
            pictures = [
                ("Rate and distortion of test images along beta", folder / "front.png"),
                ("Test images, and draws from the prior, along beta", folder / "images.png"),
            ]
            save(_front(rows, self.test.spread, self.space), pictures[0][1])
            save(self._gallery(model), pictures[1][1])
        return Outcome(figures=figures, tables=[self._table(rows)], pictures=pictures)

    def _betas(self, model: Model, count: int | None = None) -> list[float]:
        """Betas spread evenly over their logarithm; those of plain networks."""
        if isinstance(model, Fixed | Separate):
            return list(self.config.beta)
        count = self.config.evaluation_gammas if count is None else count
        found: list[float] = self.space.grid(count, dtype=torch.float64).tolist()
        return found

    @torch.no_grad()
    def _rows(self, model: Model, betas: list[float], part: _HeldOut) -> list[_Row]:
        with evaluating(model):
            return [_measure(model.bind(beta=beta), beta, part) for beta in betas]

    def _summary(self, rows: list[_Row], part: _HeldOut) -> dict[str, float]:
        found = geometric_mean([row.objective for row in rows])
        without = geometric_mean([objective(part.spread, 0.0, row.beta) for row in rows])
        return {
            "loss": statistics.fmean(row.objective for row in rows),
            "rate": statistics.fmean(row.rate for row in rows),
            "distortion": statistics.fmean(row.distortion for row in rows),
            "objective": found,
            self.metric.name: 100.0 * (1.0 - found / without),
        }

    def _table(self, rows: list[_Row]) -> tuple[str, Sequence[str], list[tuple[float, ...]]]:
        names = ("rate", "distortion", "objective", self.metric.name)
        each = [self._summary([row], self.test) for row in rows]
        return (
            "Test images against beta",
            ("gamma", *names[:-1], self.metric.heading),
            [
                (_rounded(row.beta), *(_rounded(figures[name]) for name in names))
                for row, figures in zip(rows, each, strict=True)
            ],
        )

    @torch.no_grad()
    def _gallery(self, model: Model) -> Figure:
        """Test images as they are, decoded along beta, and draws from the prior below.

        Networks that read beta beside their inputs, or from outside, only have the images.
        """
        from matplotlib.figure import Figure

        draw = torch.Generator().manual_seed(0)
        shown = torch.randperm(len(self.test.images), generator=draw)[:_ENCODED].to(self.device)
        latent = torch.randn(_DRAWN, self.config.latent, generator=draw).to(self.device)
        x, noise = self.test.images[shown].unit().images, self.test.noise[shown]
        columns = [("image", list(x))]
        with evaluating(model):
            for beta in self._betas(model, _COLUMNS):
                net: Any = model.bind(beta=beta)
                drawn = net.decode(latent) if isinstance(net, VAE) else ()
                columns.append((f"beta {beta:.2g}", [*net(x, noise)[0], *drawn]))
        rows = len(columns[-1][1])
        figure = Figure(figsize=(1.2 * len(columns), 1.2 * rows + 0.3), layout="constrained")
        axes = figure.subplots(rows, len(columns))
        for axis in axes.flat:
            axis.set_axis_off()
        for column, (title, images) in enumerate(columns):
            axes[0, column].set_title(title)
            for axis, image in zip(axes[:, column], images, strict=False):
                pixels = image.clamp(0.0, 1.0).movedim(0, -1).cpu().numpy()
                axis.imshow(pixels, cmap="gray", vmin=0, vmax=1)
        for axis in axes[len(shown) :, 0]:
            axis.text(0.5, 0.5, "drawn", ha="center", va="center", transform=axis.transAxes)
        return figure


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _front(rows: list[_Row], spread: float, space: LogUniform) -> Figure:
    """Distortion over rate, coloured by beta."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.0), layout="constrained")
    axis = figure.subplots()
    rates, distortions = [row.rate for row in rows], [row.distortion for row in rows]
    axis.plot(rates, distortions, color="0.7", zorder=1)
    points = axis.scatter(
        *(rates, distortions, 40.0, [row.beta for row in rows]), norm=LogNorm(*space.support)
    )
    figure.colorbar(points, label="beta")
    axis.axhline(spread, color="0.5", linestyle=":", label="mean image, at no rate")
    axis.set(xlabel="rate (nats)", ylabel="distortion (squared error)", ylim=(0, None))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="lower left")
    return figure


KIND = Kind(Vae, VaeTask, "Variational autoencoder", "VAE", TRAINING, front=("rate", "distortion"))
