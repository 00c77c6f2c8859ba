"""Primary networks of the paper's tasks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Layers", "LeNet", "ResNetLike", "UNet", "rescale"]

Layers = Literal["none", "batch", "layer"]
"""The normalisation layers that a primary may have after its convolutions."""


def rescale(maps: Tensor, factor: float, antialias: bool = False) -> Tensor:
    """Maps resampled bilinearly to ``factor`` times their height and width (paper, section A.4).

    A side of ``n`` becomes ``factor * n``, rounded to the nearest whole number (halves down, so
    that 0.5 gives what a pooling by 2 gives, odd sides included), and never less than one pixel.
    Pixels are squares, not points (``align_corners=False``): at 0.5 an entry is the
    mean of four.

    Args:
        maps: ``(B, C, H, W)``.
        factor: from 0 to 1. At 0, as at whatever is small enough, maps have one pixel.
        antialias: let every entry of the input count, not only the four around each place. The
            paper names bilinear sampling and no more.

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
    # A little less than half, so that a factor in single precision gives the same sizes.
    size = [max(1, math.ceil(n * (factor - 1e-6) - 0.5)) for n in maps.shape[-2:]]
    if antialias and size[1] == 1:  # torch 2.13 repeats the first row where one column is left
        return F.interpolate(maps.mT, size[::-1], mode="bilinear", antialias=True).mT
    return F.interpolate(maps, size, mode="bilinear", antialias=antialias)


def _norms(kind: Layers, channels: int) -> list[nn.Module]:
    """What follows a convolution: one layer, or none."""
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
    """The paper's LeNet variant (section A.2): ReLU, and two convolutions of 32 and 64 features
    in place of the first fully connected layer.

    The paper gives no kernel sizes. Those of LeNet-5 are kept for the first two
    layers (5x5, the first padded as in LeCun et al. 1998), and 3x3 bring the remaining 5x5
    map to one pixel: 32,018 parameters at 28x28. At 8x8 the same layers have
    3x3 and 2x2 kernels and one pooling less: 20,146 parameters.

    Weights start with Kaiming initialisation for ReLU, biases at zero: section 4
    of the paper has ``theta0`` initialised by its role in the primary. It matters:
    with PyTorch's default, which is smaller, MIP under SGD at the
    paper's rate stays at chance for the first 1000 steps on MNIST.

    Args:
        size: the height and width of the images: 28 or 8.
        channels: of the images.
        classes: the number of logits.

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
    """Two 3x3 convolutions beside a 1x1 one. Both branches start with half of the variance, so
    that their sum keeps the magnitude of its input. Normalisation comes after each convolution.
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

    def _norm(self, place: int, x: Tensor) -> Tensor:
        return x if self.norms is None else self.norms[place](x)


class ResNetLike(nn.Module):
    """The paper's ResNet-like classifier (sections A.2 and A.4): five downsampling stages with
    16, 32, 64, 128 and 128 feature channels.

    The paper gives no more than that. Here a stage is one residual block (two 3x3 convolutions
    beside a 1x1 one), then ``pool``, which halves the map; the mean over the last map goes to
    a linear layer; there are no normalisation layers: 629,398 parameters for 102 classes.
    With a ``factor``, fractional bilinear resampling (:func:`rescale`) is in the place of ``pool``,
    as in section A.4.

    Args:
        channels: of the images.
        classes: the number of logits.
        stages: the feature channels of every stage.
        normalization: layers after every convolution: none; batch normalisation; or layer
            normalisation, over channels, height and width together (a group normalisation with
            one group). Both have a gain and a bias for every channel, which are not predicted
            (section A.2). Running statistics are those of all gammas together.
        antialias: of the resampling by a factor.

    Shape:
        ``(B, channels, H, W)``, and maybe a factor from 0 to 1, to ``(B, classes)``. H and W are
        at least 2 to the number of stages where there is no factor, else whatever they are.
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


class _Double(nn.Sequential):
    """Two 3x3 convolutions, each with its normalisation and activation."""

    def __init__(self, inputs: int, outputs: int, normalization: Layers) -> None:
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            layers.append(nn.Conv2d(channels, outputs, 3, padding=1))
            layers.extend([*_norms(normalization, outputs), nn.LeakyReLU()])
        super().__init__(*layers)


class UNet(nn.Module):
    """The paper's U-Net (sections A.3 and A.4; Ronneberger et al. 2015): an encoder of five
    stages and a decoder of four, each of two convolutions with 32 channels.

    The paper gives neither kernel sizes nor how maps are resized. Here all convolutions are
    3x3, ``pool`` halves a map between two stages, and the decoder resizes to the nearest entry
    and joins the encoder's map of that size: 195,266 parameters from two images, moving and
    fixed, to a displacement with two components. With a ``factor``, maps are resized bilinearly:
    by that factor (:func:`rescale`) between two stages of the encoder, and back to the
    encoder's sizes by the decoder (section A.4).

    Args:
        inputs: the channels of the input: 2 for a moving and a fixed image.
        outputs: the channels of the output: 2 for a displacement in the plane, or the number
            of classes of a segmentation.
        levels: the stages of the encoder; the decoder has one less.
        channels: the feature channels of every stage.
        normalization: layers after every convolution but the last, as in :class:`ResNetLike`.
        antialias: of the resampling by a factor.

    Shape:
        ``(B, inputs, H, W)``, and maybe a factor from 0 to 1, to ``(B, outputs, H, W)``. H and W
        are at least 2 to the number of levels less one where there is no factor, else whatever
        they are.
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
