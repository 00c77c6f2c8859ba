"""Primary networks of the tasks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["VAE", "Layers", "LeNet", "ResNetLike", "RowTransformer", "UNet", "rescale"]

Layers = Literal["none", "batch", "layer"]
"""Normalisation layers after the convolutions of a primary."""


def rescale(maps: Tensor, factor: float, antialias: bool = False) -> Tensor:
    """Resample maps bilinearly to ``factor`` times their height and width (paper, section A.4).

    A side of ``n`` becomes ``factor * n``, rounded to the nearest whole number and at least one
    pixel. Halves are rounded down, so 0.5 gives the sizes of a pooling by 2, including odd sides.
    Pixels are squares, not points (``align_corners=False``): at 0.5 an entry is the mean of four.

    Args:
        maps: ``(B, C, H, W)``.
        factor: from 0 to 1. At 0, and at any other value that is small enough, maps have one pixel.
        antialias: average over all entries that an output pixel covers, not only the four nearest.
            The paper says bilinear sampling and nothing more.

    Returns:
        ``(B, C, h, w)``.

    Raises:
        ValueError: the factor is not from 0 to 1.

    >>> from hyperlight.lab.primaries import rescale
    >>> [tuple(rescale(torch.rand(1, 1, 9, 20), f).shape[-2:]) for f in (0.5, 0.3, 0.0)]
    [(4, 10), (3, 6), (1, 1)]
    """
    if not 0.0 <= factor <= 1.0:
        raise ValueError(f"rescale: factor was {factor}; expected a number from 0 to 1.")
    # Slightly below one half, so that a factor in single precision gives the same sizes.
    size = [max(1, math.ceil(n * (factor - 1e-6) - 0.5)) for n in maps.shape[-2:]]
    if antialias and size[1] == 1:  # torch 2.13 repeats the first row if one column remains
        return F.interpolate(maps.mT, size[::-1], mode="bilinear", antialias=True).mT
    return F.interpolate(maps, size, mode="bilinear", antialias=antialias)


def _norms(kind: Layers, channels: int) -> list[nn.Module]:
    """Layers after a convolution: one, or none."""
    if kind == "batch":
        return [nn.BatchNorm2d(channels)]
    return [nn.GroupNorm(1, channels)] if kind == "layer" else []


def _kaiming(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


class LeNet(nn.Module):
    """The paper's LeNet variant (section A.2).

    It has ReLU, and two convolutions with 32 and 64 features instead of the first fully connected
    layer. The paper gives no kernel sizes. Here the first two layers have those of LeNet-5 (5x5,
    the first one padded as in LeCun et al. 1998), and 3x3 kernels reduce the remaining 5x5 map to
    one pixel: 32,018 parameters at 28x28. At 8x8 the same layers have 3x3 and 2x2 kernels and one
    pooling less: 20,146 parameters.

    Weights start with Kaiming initialisation for ReLU and biases at zero, because section 4 of the
    paper initialises ``theta0`` by its role in the primary. This matters: with PyTorch's smaller
    default, MIP with SGD at the paper's rate stays at chance for the first 1000 steps on MNIST.

    Args:
        size: height and width of the images, 28 or 8.
        channels: channels of the images.
        classes: number of logits.

    Shape:
        ``(B, channels, size, size)`` to ``(B, classes)``.
    """

    def __init__(self, size: int = 28, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        if size == 28:
            layers: list[nn.Module] = [
                *(nn.Conv2d(channels, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Conv2d(16, 32, 3), nn.ReLU()),
                *(nn.Conv2d(32, 64, 3), nn.ReLU()),
            ]
        elif size == 8:
            layers = [
                *(nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Conv2d(6, 16, 3, padding=1), nn.ReLU()),
                *(nn.Conv2d(16, 32, 3), nn.ReLU()),
                *(nn.Conv2d(32, 64, 2), nn.ReLU()),
            ]
        else:
            raise ValueError(f"LeNet: size was {size}; expected 28 (MNIST) or 8 (digits).")
        self.encoder = nn.Sequential(*layers, nn.Flatten())
        self.classifier = nn.Sequential(nn.Linear(64, 84), nn.ReLU(), nn.Linear(84, classes))
        _kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.encoder(x))
        return logits


class _Residual(nn.Module):
    """A residual block: two 3x3 convolutions, with a 1x1 convolution as shortcut.

    Both branches start with half of the variance, so that their sum keeps the magnitude of the
    input. Every convolution is followed by its normalisation.
    """

    def __init__(self, inputs: int, outputs: int, normalization: Layers) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)
        _kaiming(self)
        with torch.no_grad():
            self.conv2.weight.mul_(0.5**0.5)
            self.shortcut.weight.mul_(0.5**0.5)
        norms = [layer for _ in range(3) for layer in _norms(normalization, outputs)]
        self.norms = nn.ModuleList(norms) if norms else None

    def forward(self, x: Tensor) -> Tensor:
        branch = F.leaky_relu(self._norm(0, self.conv1(x)))
        branch = self._norm(1, self.conv2(branch))
        return F.leaky_relu(branch + self._norm(2, self.shortcut(x)))

    def _norm(self, index: int, x: Tensor) -> Tensor:
        return x if self.norms is None else self.norms[index](x)


class ResNetLike(nn.Module):
    """The paper's ResNet-like classifier (sections A.2 and A.4).

    It has five downsampling stages with 16, 32, 64, 128 and 128 feature channels; the paper gives
    no more details. Here a stage is a residual block (two 3x3 convolutions with a 1x1 shortcut),
    followed by ``pool``, which halves the map. A linear layer reads the mean of the last map. There
    are no normalisation layers by default: 629,398 parameters for 102 classes. With a ``factor``,
    fractional bilinear resampling (:func:`rescale`) replaces ``pool``, as in section A.4.

    Args:
        channels: channels of the images.
        classes: number of logits.
        stages: feature channels of every stage.
        normalization: layers after every convolution: none, batch normalisation, or layer
            normalisation over channels, height and width (a group normalisation with one group).
            Both have a gain and a bias for every channel, which are not predicted (section A.2).
            Running statistics are pooled over all gammas.
        antialias: as in :func:`rescale`.

    Shape:
        ``(B, channels, H, W)``, and optionally a factor from 0 to 1, to ``(B, classes)``. Without a
        factor, H and W must be at least 2 to the power of the number of stages.
    """

    def __init__(
        self,
        channels: int = 3,
        classes: int = 102,
        stages: Sequence[int] = (16, 32, 64, 128, 128),
        normalization: Layers = "none",
        antialias: bool = False,
    ) -> None:
        super().__init__()
        sizes = [channels, *stages]
        self.stages = nn.ModuleList(
            _Residual(a, b, normalization) for a, b in itertools.pairwise(sizes)
        )
        self.pool = nn.MaxPool2d(2)
        self.antialias = antialias
        self.classifier = nn.Linear(sizes[-1], classes)
        _kaiming(self.classifier)

    def forward(self, x: Tensor, factor: float | None = None) -> Tensor:
        for stage in self.stages:
            x = stage(x)
            x = self.pool(x) if factor is None else rescale(x, factor, self.antialias)
        logits: Tensor = self.classifier(x.mean(dim=(-2, -1)))
        return logits


class RowTransformer(nn.Module):
    """A small transformer that classifies images: every row of pixels is a token.

    Two blocks with four heads, normalisation first, and no dropout; a linear layer reads the mean
    of the tokens. Not in the paper. 18,026 parameters at 8x8.

    Args:
        size: height and width of the images.
        channels: channels of the images.
        classes: number of logits.
        width: entries of a token.
        more: number of columns beside an image.

    Shape:
        ``(B, channels, size, size + more)`` to ``(B, classes)``.
    """

    def __init__(
        self,
        size: int = 8,
        channels: int = 1,
        classes: int = 10,
        width: int = 32,
        more: int = 0,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(channels * (size + more), width)
        self.position = nn.Parameter(0.02 * torch.randn(size, width))
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    *(width, 4, 2 * width, 0.0, "gelu"), batch_first=True, norm_first=True
                )
                for _ in range(2)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.transpose(1, 2).flatten(2)
        tokens = self.norm(self.blocks(self.embed(rows) + self.position))
        logits: Tensor = self.classifier(tokens.mean(dim=1))
        return logits


class _Double(nn.Sequential):
    """Two 3x3 convolutions, each followed by normalisation and activation."""

    def __init__(self, inputs: int, outputs: int, normalization: Layers) -> None:
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            layers.append(nn.Conv2d(channels, outputs, 3, padding=1))
            layers.extend([*_norms(normalization, outputs), nn.LeakyReLU()])
        super().__init__(*layers)


class UNet(nn.Module):
    """The paper's U-Net (sections A.3 and A.4; Ronneberger et al. 2015).

    It has an encoder of five stages and a decoder of four, each with two convolutions of 32
    channels. The paper does not give the kernel sizes, nor how maps are resized. Here all
    convolutions are 3x3 and ``pool`` halves the map between stages. The decoder resizes to the
    nearest entry and concatenates the encoder's map of that size. From two images, moving and
    fixed, to a displacement with two components, that is 195,266 parameters. With a ``factor``,
    resizing is bilinear: by that factor (:func:`rescale`) between stages of the encoder, and back
    to the encoder's sizes in the decoder (section A.4).

    Args:
        inputs: channels of the input: 2 for a moving and a fixed image.
        outputs: channels of the output: 2 for a displacement in the plane, or the number of
            classes of a segmentation.
        levels: number of stages of the encoder; the decoder has one less.
        channels: feature channels of every stage.
        normalization: layers after every convolution but the last, as in :class:`ResNetLike`.
        antialias: as in :func:`rescale`.

    Shape:
        ``(B, inputs, H, W)``, and optionally a factor from 0 to 1, to ``(B, outputs, H, W)``.
        Without a factor, H and W must be at least 2 to the power of ``levels - 1``.
    """

    def __init__(
        self,
        inputs: int = 2,
        outputs: int = 2,
        levels: int = 5,
        channels: int = 32,
        normalization: Layers = "none",
        antialias: bool = False,
    ) -> None:
        super().__init__()
        if levels < 1:
            raise ValueError(f"UNet: levels was {levels}; expected 1 or more.")
        self.encoder = nn.ModuleList(
            _Double(channels if level else inputs, channels, normalization)
            for level in range(levels)
        )
        self.decoder = nn.ModuleList(
            _Double(2 * channels, channels, normalization) for _ in range(levels - 1)
        )
        self.pool = nn.MaxPool2d(2)
        self.antialias = antialias
        self.head = nn.Conv2d(channels, outputs, 3, padding=1)
        _kaiming(self)

    def forward(self, x: Tensor, factor: float | None = None) -> Tensor:
        maps: list[Tensor] = []
        for level, stage in enumerate(self.encoder):
            if level:
                x = self.pool(x) if factor is None else rescale(x, factor, self.antialias)
            x = stage(x)
            maps.append(x)
        mode = "nearest" if factor is None else "bilinear"
        for stage, beside in zip(self.decoder, reversed(maps[:-1]), strict=True):
            x = F.interpolate(x, size=beside.shape[-2:], mode=mode)
            x = stage(torch.cat([x, beside], dim=1))
        output: Tensor = self.head(x)
        return output


def _connected(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class VAE(nn.Module):
    """A variational autoencoder of fully connected layers (Kingma and Welling 2014).

    The encoder gives a normal distribution with a diagonal covariance for each image. The decoder
    makes an image of a draw from it. Noise is an argument, so that equal calls give equal results.

    Args:
        shape: channels, height and width of the images.
        widths: of the encoder's hidden layers; the decoder has them in reverse.
        latent: number of latent variables.
        more: number of columns beside an image. The decoder reads the first entries of these, too.

    Shape:
        ``(..., channels, height, width + more)`` and standard normal noise ``(..., latent)`` to
        the image that the decoder makes, and the encoder's mean and logarithm of the variance, both
        ``(..., latent)``.
    """

    def __init__(
        self, shape: Sequence[int], widths: Sequence[int], latent: int, more: int = 0
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        channels, height, width = self.shape
        pixels = math.prod(self.shape)
        self.encoder = _connected(channels * height * (width + more), *widths, 2 * latent)
        self.decoder = _connected(latent + more, *reversed(widths), pixels)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encode(x)
        drawn = mean + noise * (0.5 * log_variance).exp()
        beside = x[..., 0, 0, self.shape[-1] :]
        return self.decode(torch.cat([drawn, beside], dim=-1)), mean, log_variance

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the latent variables of images."""
        mean, log_variance = self.encoder(x.flatten(-3)).chunk(2, dim=-1)
        return mean, log_variance

    def decode(self, latent: Tensor) -> Tensor:
        """Images of latent variables."""
        image: Tensor = self.decoder(latent).unflatten(-1, self.shape)
        return image
