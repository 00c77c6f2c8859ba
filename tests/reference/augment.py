"""The paper's augmentation, pixel by pixel."""

from __future__ import annotations

import math

import numpy as np


def _at(channel: np.ndarray, x: float, y: float) -> float:
    """Bilinear interpolation; pixel centres are at k + 1/2, the border goes on outside."""
    height, width = channel.shape
    x, y = min(max(x - 0.5, 0.0), width - 1.0), min(max(y - 0.5, 0.0), height - 1.0)
    left, upper = math.floor(x), math.floor(y)
    right, lower = min(left + 1, width - 1), min(upper + 1, height - 1)
    u, v = x - left, y - upper
    above = (1 - u) * channel[upper, left] + u * channel[upper, right]
    below = (1 - u) * channel[lower, left] + u * channel[lower, right]
    return float((1 - v) * above + v * below)


def _grey(image: np.ndarray) -> np.ndarray:
    return image[0] if len(image) == 1 else np.tensordot([0.299, 0.587, 0.114], image, 1)


def augment(squeezed: np.ndarray, aspect: float, draws: np.ndarray, size: int) -> np.ndarray:
    """One image ``(C, S, S)``, squeezed from width / height ``aspect``, by seven draws."""
    channels, stored, _ = squeezed.shape
    width, height = 1000.0 * math.sqrt(aspect), 1000.0 / math.sqrt(aspect)  # the original
    side = min(math.sqrt((0.25 + 0.75 * draws[0]) * width * height), width, height)
    left, upper = (width - side) * draws[1], (height - side) * draws[2]
    out = np.empty((channels, size, size))
    for row in range(size):
        for column in range(size):
            step = size - 1 - column if draws[3] < 0.5 else column
            x = (left + side * (step + 0.5) / size) / width * stored
            y = (upper + side * (row + 0.5) / size) / height * stored
            for channel in range(channels):
                out[channel, row, column] = _at(squeezed[channel], x, y)
    out = np.clip(out * (0.75 + 0.5 * draws[4]), 0.0, 1.0)
    contrast = 0.5 + draws[5]
    out = np.clip(contrast * out + (1.0 - contrast) * _grey(out).mean(), 0.0, 1.0)
    if channels == 3:
        saturation = 0.5 + draws[6]
        out = np.clip(saturation * out + (1.0 - saturation) * _grey(out), 0.0, 1.0)
    return out
