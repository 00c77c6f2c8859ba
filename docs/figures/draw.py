"""Draw the pictures of the README and the pages from published results.

    python docs/figures/draw.py     # writes knob.gif and rates.svg beside this file

``README.md`` in this folder has the commands behind the numbers.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot
from PIL import Image

from hyperlight.lab.scheme import save

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "results"

WARPED = RESULTS / "tasks" / "hypermorph-ptbp-mip" / "mip-seed0" / "warped.png"
# Where its tiles are: the left edges, the upper edges, and the size of one.
LEFT = (18, 238, 458, 678, 898, 1118, 1338)
TOP = (28, 258)
WIDTH, HEIGHT = 184, 221
GAMMAS = ("0", "0.25", "0.5", "0.75", "1")

RATES = RESULTS / "studies" / "cpu" / "rates" / "curves.csv"
CLASSICAL = HERE / "classical"
TASK = {"task": "bayes", "optimizer": "adam", "dimensions": "1", "hidden": "16 128", "step": "300"}
# The settings of each line, as the columns of RATES have them, and its colour.
LINES: dict[str, tuple[dict[str, str], str]] = {
    "plain network": ({"formulation": "plain"}, "black"),
    "MIP": ({"formulation": "mip", "init": "fan_out", "rates": "same"}, "#0072b2"),
    "ours": ({"formulation": "mip", "init": "relative", "rates": "groups"}, "#cc79a7"),
}


def _tile(column: int, row: int) -> np.ndarray[Any, Any]:
    """A tile of the run's picture, ``(H, W, 3)``."""
    left, top = LEFT[column], TOP[row]
    picture = np.asarray(Image.open(WARPED).convert("RGB"))
    return picture[top : top + HEIGHT, left : left + WIDTH]


def knob() -> None:
    """How a network registers two images, while its knob goes from one end to the other."""
    frames = []
    for n in (0, 1, 2, 3, 4, 3, 2, 1):
        figure, axes = pyplot.subplots(1, 4, figsize=(8, 3.3), dpi=90)
        tiles = (("moving", 0, 0), ("warped", n + 2, 0), ("fixed", 1, 0), ("grid", n + 2, 1))
        for ax, (title, column, row) in zip(axes, tiles, strict=True):
            ax.imshow(_tile(column, row), interpolation="lanczos")
            ax.set_title(title, fontsize=12, pad=4)
            ax.axis("off")
        figure.subplots_adjust(0.005, 0.2, 0.995, 0.92, wspace=0.04)
        slider = figure.add_axes((0.25, 0.02, 0.5, 0.1))
        slider.plot([0, 1], [0, 0], color="0.75", linewidth=5, solid_capstyle="round")
        slider.plot(float(GAMMAS[n]), 0, "o", color="0.2", markersize=14)
        slider.set(xlim=(-0.05, 1.05), ylim=(-1, 1))
        slider.axis("off")
        figure.text(0.24, 0.07, "smoothness weight", ha="right", va="center", fontsize=12)
        figure.text(0.76, 0.07, GAMMAS[n], ha="left", va="center", fontsize=12)
        buffer = io.BytesIO()
        figure.savefig(buffer)
        pyplot.close(figure)
        # With few shades, what stays as it is takes no room in the next frame.
        frames.append(Image.open(buffer).convert("L").point(lambda v: 255 * (v // 11) // 23))
    frames[0].save(HERE / "knob.gif", save_all=True, append_images=frames[1:], duration=600, loop=0)


def rates() -> None:
    """Test accuracy over the learning rate: classical, MIP, ours and the plain network."""
    with RATES.open() as file:
        rows = [row for row in csv.DictReader(file) if TASK.items() <= row.items()]
    pyplot.rcParams["font.size"] = 12
    figure, ax = pyplot.subplots(figsize=(8, 4), layout="constrained")
    _line(ax, "classical", _classical(), color="#e69f00")
    for name, (settings, color) in LINES.items():
        found = [
            (float(row["lr"]), float(row["accuracy"]))
            for row in rows
            # The plain network has no hypernetwork, and so no settings of one.
            if settings.items() <= row.items()
        ]
        _line(ax, name, found, color=color)
    ax.set(xscale="log", xlabel="learning rate", ylabel="test accuracy (%)", ylim=(0, 102))
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    save(figure, HERE / "rates.svg")


def _classical() -> list[tuple[float, float]]:
    """Learning rate and test accuracy of every seed."""
    found = []
    for path in sorted(CLASSICAL.glob("*.csv")):
        with path.open() as file:
            for row in csv.DictReader(file):
                if row["step"] == TASK["step"]:
                    found.append((float(path.stem), float(row["test_accuracy"])))
    return found


def _line(ax: Any, name: str, found: Iterable[tuple[float, float]], *, color: str) -> None:
    """A line of means with a band of standard deviations over seeds."""
    by_rate: dict[float, list[float]] = defaultdict(list)
    for rate, accuracy in found:
        by_rate[rate].append(accuracy)
    x = sorted(by_rate)
    mean = np.array([np.mean(by_rate[rate]) for rate in x])
    std = np.array([np.std(by_rate[rate], ddof=1) for rate in x])
    style = "--" if name == "plain network" else "-"
    ax.plot(x, mean, style, color=color, label=name, marker="o", markersize=4, linewidth=2)
    ax.fill_between(x, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)


if __name__ == "__main__":
    knob()
    rates()
