"""The augmentation of images in section A.1 of the paper, for a whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from .images import Images

__all__ = ["Augmentation"]

# Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augmentation:
    """Random square crops, horizontal flips and colour jitter (paper, section A.1).

    Every image gets its own draws: a square anywhere in the image that covers a fraction of its
    area (but is no wider than its shorter side), resized bilinearly; a flip with probability 1/2;
    then brightness ``b x``, contrast ``c x + (1 - c) m`` with ``m`` the mean grey of the image, and
    saturation ``s x + (1 - s) g`` with ``g`` the grey of the pixel, in this order and each clipped
    to [0, 1]. The paper gives the ranges but not the order.

    Args:
        size: height and width of the crops.
        area: smallest and largest fraction of the area.
        brightness: the factor is drawn from ``U(1 - brightness, 1 + brightness)``.
        contrast: the same for the contrast.
        saturation: the same for the saturation; grey images have none.

    Shape:
        images ``(B, C, H, W)`` to ``(B, C, size, size)``.

    >>> from hyperlight.lab.data import Images
    >>> batch = Images(torch.rand(5, 3, 64, 64), torch.arange(5), aspect=torch.full((5,), 1.5))
    >>> Augmentation(32)(batch, torch.Generator().manual_seed(0)).images.shape
    torch.Size([5, 3, 32, 32])
    """

    size: int
    area: tuple[float, float] = (0.25, 1.0)
    brightness: float = 0.25
    contrast: float = 0.5
    saturation: float = 0.5

    def __call__(
        self, batch: Images, generator: torch.Generator, shard: tuple[int, int] = (0, 1)
    ) -> Images:
        """Augment a batch; the result has no ``aspect``.

        Args:
            batch: the images; those without an ``aspect`` were square.
            generator: of the draws.
            shard: ``(i, n)`` if the batch is every n-th entry of a larger one, from the i-th on.
                It then gets the draws that it would get as part of the larger one.
        """
        batch = batch.unit()
        count, channels = batch.images.shape[:2]
        # Drawn on the CPU, so that a seed gives the same draws on every device.
        draws = torch.rand(7, count * shard[1], generator=generator)
        draws = draws[:, shard[0] :: shard[1]].to(batch.images.device)
        image = self._crop(batch.images, batch.aspect, draws[:4])
        brightness, contrast, saturation = (
            (1.0 + spread * (2.0 * draw - 1.0)).view(-1, 1, 1, 1)
            for spread, draw in zip(
                (self.brightness, self.contrast, self.saturation), draws[4:], strict=True
            )
        )
        image = image.mul_(brightness).clamp_(0.0, 1.0)
        mean = _grey(image).mean(dim=(1, 2, 3), keepdim=True)
        image = image.mul_(contrast).add_((1.0 - contrast) * mean).clamp_(0.0, 1.0)
        if channels == 3:
            grey = _grey(image)
            image = image.mul_(saturation).add_((1.0 - saturation) * grey).clamp_(0.0, 1.0)
        return replace(batch, images=image, aspect=None)

    def _crop(self, images: Tensor, aspect: Tensor | None, draws: Tensor) -> Tensor:
        """Crop squares of the original from images that were squeezed to one size."""
        count, channels = images.shape[:2]
        least, greatest = self.area
        # Lengths in units of the square root of the original's area.
        width = torch.ones_like(draws[0]) if aspect is None else aspect.sqrt()
        height = 1.0 / width
        side = (least + (greatest - least) * draws[0]).sqrt().minimum(width.minimum(height))
        across, down = side / width, side / height
        centre_x = (1.0 - across) * (2.0 * draws[1] - 1.0)  # the image is [-1, 1]
        centre_y = (1.0 - down) * (2.0 * draws[2] - 1.0)
        flip = torch.where(draws[3] < 0.5, -1.0, 1.0)
        zero = torch.zeros_like(side)
        affine = torch.stack([flip * across, zero, centre_x, zero, down, centre_y], dim=1).view(
            count, 2, 3
        )
        grid = F.affine_grid(affine, [count, channels, self.size, self.size], align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] != 3:
        return images
    red, green, blue = images.unbind(1)
    return (_LUMA[0] * red).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2]).unsqueeze(1)
