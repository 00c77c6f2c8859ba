"""Figures of the predictive uncertainty of a family of classifiers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .uncertainty import Assessment, Predictive, rejection, reliability

__all__ = ["along_gamma", "calibration", "entropies", "gallery", "rejections"]

# Distinguishable for colour-blind readers (Okabe and Ito).
AVERAGE, ONE, OTHER = "#0072b2", "#d55e00", "#009e73"


def _plain(*axes: Axes) -> None:
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)


def _names(members: Sequence[Assessment], kind: str = "gamma") -> tuple[str, str]:
    if len(members) == 1:
        return "the network", ""
    return f"average of {len(members)} {kind}s", f"one {kind}"


def calibration(average: Assessment, members: Sequence[Assessment], kind: str = "gamma") -> Figure:
    """Draw reliability diagrams: accuracy over confidence in bins, and the answers in each bin.

    Error bars are Wilson's 95 % intervals. The bins of "one gamma" pool the answers of all members.
    These are only as independent as the images, and the intervals take account of that. The
    calibration error of "one gamma" is the mean over the members.

    Args:
        average: assessment of the family.
        members: assessment of every member alone.
        kind: what the members differ in.
    """
    kinds = [(average.confidence, average.right, average.ece, AVERAGE)]
    if len(members) > 1:
        kinds.append(
            (
                torch.cat([member.confidence for member in members]),
                torch.cat([member.right for member in members]),
                sum(member.ece for member in members) / len(members),
                ONE,
            )
        )
    figure = Figure(figsize=(4.2 * len(kinds), 4.6), layout="constrained")
    axes = figure.subplots(
        2, len(kinds), sharex=True, sharey="row", squeeze=False, height_ratios=(3, 1)
    )
    _plain(*axes.flat)
    for column, (name, (confidence, right, error, color)) in enumerate(
        zip(_names(members, kind), kinds, strict=False)
    ):
        found = reliability(confidence, right)
        count = found.count.double()
        bars = _wilson(found.accuracy, count * len(average.right) / len(right))
        above, below = axes[:, column]
        above.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--")
        above.errorbar(found.confidence, found.accuracy, bars, fmt="o-", color=color, markersize=4)
        above.set_title(f"{name}: calibration error {100 * error:.2f} %")
        ends = np.linspace(0.0, 1.0, len(count) + 1)
        percent = (100.0 * count / count.sum()).numpy()
        below.bar(ends[:-1], percent, np.diff(ends), align="edge", color=color, alpha=0.6)
        below.set(xlabel="confidence", xlim=(0, 1.02), yscale="log", ylim=(None, 100))
    axes[0, 0].set(ylabel="accuracy", ylim=(0, 1.02))
    axes[1, 0].set_ylabel("answers (%)")
    return figure


def _wilson(rate: Tensor, count: Tensor) -> Tensor:
    """Interval of a rate among ``count`` trials (Wilson 1927): ``(2, bins)``, below and above."""
    middle = (rate + 1.92 / count) / (1.0 + 3.84 / count)
    half = 1.96 * (rate * (1.0 - rate) / count + 0.96 / count**2).sqrt() / (1.0 + 3.84 / count)
    return torch.stack([rate - middle + half, middle + half - rate]).clamp_min(0.0)


def rejections(average: Assessment, members: Sequence[Assessment], kind: str = "gamma") -> Figure:
    """Draw the accuracy of the remaining answers when the most uncertain ones are rejected.

    Also draws the best possible curve, which rejects wrong answers first, and that of chance. The
    arguments are those of :func:`calibration`.
    """
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    ax = figure.subplots()
    _plain(ax)
    count = len(average.right)
    x = 100.0 * np.arange(count) / count
    oracle = 100.0 * rejection((~average.right).double(), average.right)
    name, one = _names(members, kind)
    ax.plot(x, oracle, color="0.5", linewidth=0.9, linestyle=":", label="wrong ones first")
    ax.plot(x, 100.0 * average.rejection, color=AVERAGE, label=f"{name}, by entropy")
    shown = [average.rejection]
    if one:
        each = torch.stack([member.rejection for member in members])
        shown += [each.mean(dim=0)]
        ax.plot(x, 100.0 * shown[1], color=ONE, linestyle="--", label=f"{one}, by its entropy")
    ax.axhline(100.0 * average.accuracy, color="0.5", linewidth=0.9, linestyle="--", label="chance")
    visible = torch.stack([oracle, *(100.0 * curve for curve in shown)])[:, : count // 2 + 1]
    low, high = float(visible.nan_to_num(0.0).amin()), float(visible.nan_to_num(0.0).amax())
    room = 0.05 * (high - low) + 0.01
    ax.set(xlabel="rejected (%)", ylabel="accuracy of the others (%)", xlim=(0, 50))
    ax.set_ylim(low - room, high + room)
    ax.legend(frameon=False, loc="center right")
    return figure


def entropies(
    average: Predictive, right: Tensor, other: tuple[str, Predictive] | None = None
) -> Figure:
    """Draw histograms of predictive entropy and mutual information of right and wrong answers.

    A single network has no mutual information, only entropy.

    Args:
        average: predictive distribution of the family.
        right: ``(N,)``, bool.
        other: name and distribution of images that do not belong to the task.
    """
    panels = [("entropy", "predictive entropy"), ("mutual_information", "mutual information")]
    panels = panels[: 2 if average.members > 1 else 1]
    figure = Figure(figsize=(4.5 * len(panels), 3.9), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    _plain(*axes)
    most = math.log(average.log_probabilities.shape[-1])
    for ax, (name, label) in zip(axes, panels, strict=True):
        values = getattr(average, name)
        groups = [("right", values[right], AVERAGE), ("wrong", values[~right], ONE)]
        if other is not None:
            groups.append((other[0], getattr(other[1], name), OTHER))
        largest = max((float(v.nan_to_num(0.0).max()) for _, v, _ in groups if len(v)), default=0.0)
        high = most if name == "entropy" else min(most, max(largest, 1e-3))
        for kind, group, color in groups:
            if not bool(group.isfinite().any()):
                continue
            count, ends = np.histogram(group.numpy(), bins=30, range=(0.0, high))
            shown = f"{kind}: {len(group):,}, mean {float(group.mean()):.3g}"
            ax.stairs(100.0 * count / len(group), ends, color=color, label=shown, linewidth=1.6)
            ax.set_yscale("log")
        ax.set(xlabel=f"{label} (nats)", ylabel="share of its kind (%)")
        if ax.patches:
            ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def along_gamma(gammas: Tensor, average: Assessment, members: Sequence[Assessment]) -> Figure:
    """Draw accuracy and log-loss of every member over its gamma, and those of the average.

    Args:
        gammas: ``(M,)``, gammas of the members.
        average: assessment of the family.
        members: assessment of every member alone.
    """
    figure = Figure(figsize=(9.0, 3.0), layout="constrained")
    axes = figure.subplots(1, 2)
    _plain(*axes)
    name, one = _names(members)
    for ax, label, (each, together) in (
        (axes[0], "test accuracy (%)", _both(members, average, "accuracy", 100.0)),
        (axes[1], "log-loss (nats)", _both(members, average, "nll", 1.0)),
    ):
        ax.plot(gammas, each, "o", color=ONE, markersize=4, label=one)
        ax.axhline(together, color=AVERAGE, label=name)
        ax.set(xlabel="gamma", ylabel=label)
    axes[0].legend(frameon=False)
    return figure


def _both(
    members: Sequence[Assessment], average: Assessment, name: str, scale: float
) -> tuple[list[float], float]:
    return [scale * getattr(member, name) for member in members], scale * getattr(average, name)


def gallery(
    images: Tensor,
    average: Predictive,
    labels: Tensor,
    class_names: Sequence[str] = (),
    columns: int = 8,
) -> Figure:
    """Draw the images with the most certain, the least certain and the most certain wrong answers.

    Args:
        images: ``(N, C, H, W)``, in [0, 1] or uint8, on any device.
        average: predictive distribution of the family.
        labels: ``(N,)``, the true classes.
        class_names: names in the order of the labels; by default their numbers.
        columns: number of images of each kind.
    """
    right = average.answer == labels
    order = average.entropy.argsort()
    wrong = order[~right[order]]
    rows = [
        ("most certain", order[:columns]),
        ("least certain", order.flip(0)[:columns]),
        ("most certain\nof the wrong", wrong[:columns]),
    ]
    rows = [(title, index) for title, index in rows if len(index)]
    figure = Figure(figsize=(1.2 * columns + 0.6, 1.6 * len(rows)))
    ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))  # one for all images, since axes are slow to draw
    for row, (title, index) in enumerate(rows):
        y = -1.45 * row
        ax.text(-0.1, y + 0.5, title, rotation=90, ha="right", va="center", ma="center")
        for column, i in enumerate(index.tolist()):
            x = 1.08 * column
            picture = images[i].cpu().movedim(0, -1)
            limit = 255 if picture.dtype == torch.uint8 else 1.0
            extent = (x, x + 1.0, y, y + 1.0)
            ax.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=limit, extent=extent)
            answer, truth = (_shown(int(of[i]), class_names) for of in (average.answer, labels))
            text = f"{answer} ({100.0 * float(average.confidence[i]):.0f} %)"
            color = "black"
            if not right[i]:
                text, color = f"{text}\nis {truth}", ONE
            ax.text(x + 0.5, y + 1.03, text, fontsize=8, color=color, ha="center", va="bottom")
    ax.set(xlim=(-0.6, 1.08 * columns), ylim=(0.95 - 1.45 * len(rows) + 0.4, 1.42))
    ax.set_axis_off()
    return figure


def _shown(label: int, names: Sequence[str]) -> str:
    name = names[label] if names else str(label)
    return name if len(name) <= 14 else f"{name[:13]}…"
