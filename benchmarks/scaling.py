"""``python -m benchmarks scaling``: what the hypernetwork's part of a training step costs.

A step here predicts all weights, goes back through them with a given gradient, and updates with
``hl.optim.Adam``; the primary does not run. From one base configuration, one quantity is changed at
a time: predicted weights, tensors, features, inputs, sets of weights. Every point is timed in turn
with the base. Beside it stand the bytes moved, the floating-point operations, and the seconds at
the bandwidth of :mod:`benchmarks.floor`: all there is for a point that does not fit into memory.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import nn

import hyperlight as hl

from .environments import BUILD
from .floor import PASSES, prepare_floor
from .run import free_memory

__all__ = ["BASE", "Point", "Row", "main", "measure", "points", "prepare"]

TRUNK = (64, 128)


@dataclass(frozen=True)
class Point:
    """One configuration.

    Attributes:
        weights: number of predicted weights.
        tensors: how many tensors they are in.
        features: the number of features that the head reads.
        inputs: how many inputs there are.
        sets: how many sets of weights a step predicts.
    """

    weights: int = 100_000
    tensors: int = 10
    features: int = 16
    inputs: int = 1
    sets: int = 1

    @property
    def entries(self) -> int:
        """Weights of the head."""
        return self.weights * self.features

    @property
    def moved(self) -> int:
        """Bytes that a step reads and writes at least.

        Seven passes over the head (see :mod:`benchmarks.floor`) and over theta0. Every set is
        written and read once as a change, once as a weight, and twice as a gradient.
        """
        return 4 * (PASSES * (self.entries + self.weights) + 6 * self.sets * self.weights)

    @property
    def operations(self) -> int:
        """Floating-point operations: three products with the head, and Adam's update."""
        return 6 * self.entries * self.sets + 12 * (self.entries + self.weights)

    @property
    def memory(self) -> int:
        """Bytes that a step holds at most: weights, moments, a dense gradient; all sets twice."""
        return 4 * (4 * (self.entries + self.weights) + 2 * self.sets * self.weights)


BASE = Point()
AXES: dict[str, tuple[int, ...]] = {
    "weights": (10_000, 100_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000),
    "tensors": (1, 10, 100, 1000),
    "features": (4, 8, 16, 32, 64, 128),
    "inputs": (1, 2, 4, 8, 16),
    "sets": (1, 2, 4, 8, 16, 32, 64),
}


@dataclass(frozen=True)
class Row:
    """A point and what was found.

    Attributes:
        axis: the quantity that is changed.
        point: the configuration.
        seconds: of a step, the median; None if it was not measured.
        ratio: to the base in the same round, the median.
        estimate: seconds at the bandwidth of the floor.
        why: why it was not measured.
    """

    axis: str
    point: Point
    seconds: float | None
    ratio: float | None
    estimate: float
    why: str = ""


class Weights(nn.Module):
    """A primary that holds tensors of nearly equal size, and computes nothing."""

    def __init__(self, weights: int, tensors: int) -> None:
        super().__init__()
        sizes = [weights // tensors + (i < weights % tensors) for i in range(tensors)]
        self.held = nn.ParameterList(nn.Parameter(torch.randn(size)) for size in sizes)


def points() -> Iterator[tuple[str, Point]]:
    """All points, each with the quantity that is changed."""
    for axis, values in AXES.items():
        for value in values:
            yield axis, replace(BASE, **{axis: value})


def prepare(point: Point, device: torch.device) -> Callable[[int], object]:
    """A function that runs step number ``n``."""
    torch.manual_seed(0)
    spaces = {f"input{i}": hl.Uniform(0.0, 1.0) for i in range(point.inputs)}
    primary = Weights(point.weights, point.tensors).to(device)
    model = hl.hypernetize(primary, spaces, hidden=TRUNK, directions=point.features)
    optimizer = hl.optim.Adam(model.parameters(), lr=1e-4)
    batch = (point.sets,) if point.sets > 1 else ()
    gradients = [torch.randn(batch + own.shape, device=device) for own in model.theta0.values()]

    def step(number: int) -> object:
        optimizer.zero_grad()
        gamma = model.sample(batch, generator=torch.Generator().manual_seed(number))
        torch.autograd.backward(list(model.predict(**gamma).values()), gradients)
        optimizer.step()
        return None

    return step


def _timed(step: Callable[[int], object], number: int, device: torch.device) -> float:
    started = time.perf_counter()
    step(number)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def measure(
    chosen: Sequence[tuple[str, Point]], seconds: float, device: torch.device, free: int
) -> list[Row]:
    """Time every point in turn with the base for so many seconds, at least three rounds."""
    size = 2**24
    floor = prepare_floor(size, device)
    passes = [_timed(floor, number, device) for number in range(6)]
    bandwidth = 4 * PASSES * size / statistics.median(passes[1:])
    base, rows = prepare(BASE, device), []
    for axis, point in chosen:
        estimate = point.moved / bandwidth
        if point.memory > free:
            why = f"needs about {point.memory / 2**30:.1f} GiB of memory"
            rows.append(Row(axis, point, None, None, estimate, why))
            continue
        step = prepare(point, device)
        for number in range(2):
            step(number)
            base(number)
        own: list[float] = []
        other: list[float] = []
        until = time.perf_counter() + seconds
        while len(own) < 3 or time.perf_counter() < until:
            own.append(_timed(step, len(own), device))
            other.append(_timed(base, len(other), device))
        ratio = statistics.median(a / b for a, b in zip(own, other, strict=True))
        rows.append(Row(axis, point, statistics.median(own), ratio, estimate))
        del step
    return rows


def as_csv(rows: Sequence[Row]) -> str:
    """One line for every point."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [field.name for field in fields(Point)]
    writer.writerow(
        ("axis", *names, "seconds", "ratio", "bytes_moved", "operations", "estimate", "error")
    )
    for row in rows:
        own = [getattr(row.point, name) for name in names]
        paper = (row.point.moved, row.point.operations, row.estimate)
        writer.writerow((row.axis, *own, row.seconds, row.ratio, *paper, row.why))
    return buffer.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table and write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks scaling", description=__doc__)
    parser.add_argument("--axis", choices=tuple(AXES), action="append", help="one of several axes")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one point")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=BUILD / "scaling", help="folder for the files")
    given = parser.parse_args(arguments)

    from rich.console import Console
    from rich.table import Table

    from hyperlight.lab.files import write_text

    from .report import provenance

    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    chosen = [(axis, point) for axis, point in points() if not given.axis or axis in given.axis]
    rows = measure(chosen, given.seconds, device, int(0.8 * free_memory(device)))
    table = Table(
        title=f"The hypernetwork's part of a step; base: {BASE.weights:,} weights in "
        f"{BASE.tensors} tensors, {BASE.features} features, {BASE.inputs} input, {BASE.sets} set",
        title_justify="left",
    )
    heading = ("changed", "to", "ms", "x base", "GB moved", "GFLOP", "ms at memory bandwidth")
    for number, column in enumerate(heading):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        measured = (
            (f"{1e3 * row.seconds:,.2f}", f"{row.ratio:.2f}")
            if row.seconds is not None
            else (row.why, "")
        )
        paper = (row.point.moved / 1e9, row.point.operations / 1e9, 1e3 * row.estimate)
        shown = (f"{value:,.3f}" for value in paper)
        table.add_row(row.axis, f"{getattr(row.point, row.axis):,}", *measured, *shown)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    words = [f"--axis {axis}" for axis in given.axis or ()]
    words += [f"--seconds {given.seconds:g} --threads {given.threads} --device {given.device}"]
    given.out.mkdir(parents=True, exist_ok=True)
    write_text(given.out / "scaling.csv", as_csv(rows))
    origin = provenance(" ".join(["python -m benchmarks scaling", *words]))
    write_text(given.out / "provenance.json", json.dumps(origin, indent=2) + "\n")
    print(f"written to {given.out}: scaling.csv, provenance.json")
    return 0
