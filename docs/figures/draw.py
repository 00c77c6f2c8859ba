"""Draw the moving picture of the README from published results.

    python docs/figures/draw.py     # writes knob.gif beside this file

``README.md`` in this folder has the command behind it.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot
from PIL import Image

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "results"

WARPED = RESULTS / "tasks" / "hypermorph-ptbp-mip" / "mip-seed0" / "warped.png"
# Where its tiles are: the left edges, the upper edges, and the size of one.
LEFT = (18, 238, 458, 678, 898, 1118, 1338)
TOP = (28, 258)
WIDTH, HEIGHT = 184, 221
GAMMAS = ("0", "0.25", "0.5", "0.75", "1")
TEXT = "0.9"


def _tile(column: int, row: int) -> np.ndarray[Any, Any]:
    """A tile of the run's picture, ``(H, W, 3)``."""
    left, top = LEFT[column], TOP[row]
    picture = np.asarray(Image.open(WARPED).convert("RGB"))
    return picture[top : top + HEIGHT, left : left + WIDTH]


def knob() -> None:
    """How a network registers two images, while its knob goes from one end to the other.

    Light on black, as the images are, so that it suits light pages and dark ones.
    """
    frames = []
    for n in (0, 1, 2, 3, 4, 3, 2, 1):
        figure, axes = pyplot.subplots(1, 4, figsize=(8, 3.3), dpi=90, facecolor="black")
        tiles = (("moving", 0, 0), ("warped", n + 2, 0), ("fixed", 1, 0), ("grid", n + 2, 1))
        for ax, (title, column, row) in zip(axes, tiles, strict=True):
            tile = _tile(column, row)
            ax.imshow(255 - tile if title == "grid" else tile, interpolation="lanczos")
            ax.set_title(title, fontsize=12, pad=4, color=TEXT)
            ax.axis("off")
        figure.subplots_adjust(0.005, 0.2, 0.995, 0.92, wspace=0.04)
        slider = figure.add_axes((0.25, 0.02, 0.5, 0.1))
        slider.plot([0, 1], [0, 0], color="0.4", linewidth=5, solid_capstyle="round")
        slider.plot(float(GAMMAS[n]), 0, "o", color=TEXT, markersize=14)
        slider.set(xlim=(-0.05, 1.05), ylim=(-1, 1))
        slider.axis("off")
        figure.text(
            0.24, 0.07, "smoothness weight", ha="right", va="center", fontsize=12, color=TEXT
        )
        figure.text(0.76, 0.07, GAMMAS[n], ha="left", va="center", fontsize=12, color=TEXT)
        buffer = io.BytesIO()
        figure.savefig(buffer)
        pyplot.close(figure)
        # With few shades, what stays as it is takes no room in the next frame.
        frames.append(Image.open(buffer).convert("L").point(lambda v: 255 * (v // 11) // 23))
    frames[0].save(HERE / "knob.gif", save_all=True, append_images=frames[1:], duration=600, loop=0)


if __name__ == "__main__":
    knob()
