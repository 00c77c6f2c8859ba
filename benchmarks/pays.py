"""``python -m benchmarks pays``: when is a step from the factors of a gradient the faster one?

A head of ``entries`` weights in ``columns`` columns predicts for ``rows`` inputs, goes back with a
given gradient and is updated by Adam: once by ``hl.optim.Adam`` from the two factors of its
gradient, and once by ``torch.optim.Adam(fused=True)`` from the matrix. Both take turns, step by
step, each on weights of its own. ``hyperlight.optim.passes.pays`` is the rule that chooses.
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
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import hyperlight as hl
from hyperlight.optim import dense_product, passes
from hyperlight.optim.outer import OuterProduct, send_factored

from .environments import BUILD
from .run import free_memory

__all__ = ["Point", "Row", "as_csv", "main", "measure", "points", "prepare"]

ENTRIES = tuple(2**20 * n // 2 for n in (1, 2, 4, 8, 16, 20, 40))
COLUMNS = (8, 16, 32, 128)
ROWS = (1, 8, 32)
# Weights and two moments of both, and one dense gradient.
_HELD = 7


@dataclass(frozen=True)
class Point:
    """One head: its weights, its columns (features), and the inputs in a step (rows)."""

    entries: int
    columns: int
    rows: int

    @property
    def memory(self) -> int:
        """Bytes that both of its steps hold."""
        return 4 * (_HELD * self.entries + 4 * self.rows * self.entries // self.columns)


@dataclass(frozen=True)
class Row:
    """A point and what was found.

    Attributes:
        point: the head.
        factored: seconds of a step from factors, the median; None if it was not measured.
        dense: the same from the matrix.
        ratio: the first over the second in the same turn, the median.
        chosen: whether :func:`hyperlight.optim.passes.pays` chooses the factors; None if it was
            not measured.
    """

    point: Point
    factored: float | None
    dense: float | None
    ratio: float | None
    chosen: bool | None


def points(
    entries: Sequence[int] = ENTRIES,
    columns: Sequence[int] = COLUMNS,
    rows: Sequence[int] = ROWS,
) -> Iterator[Point]:
    """All heads whose gradient has at most as many factors as columns."""
    for width in columns:
        for count in rows:
            if count <= width:
                yield from (Point(size, width, count) for size in entries)


def prepare(
    point: Point, factored: bool, device: torch.device
) -> tuple[nn.Parameter, Callable[[], None]]:
    """The head's weight, and a function that runs one step."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    total = point.entries // point.columns
    weight = nn.Parameter(normal(total, point.columns))
    features, gradient = normal(point.rows, point.columns), normal(point.rows, total)
    optimizer: torch.optim.Optimizer
    if factored:
        optimizer = hl.optim.Adam([weight], lr=1e-4)
        send_factored(weight)  # whatever the rule says
    else:
        optimizer = torch.optim.Adam([weight], lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        dense_product(features, weight).backward(gradient)
        assert isinstance(weight.grad, OuterProduct) == factored
        optimizer.step()

    return weight, step


def measure(chosen: Sequence[Point], seconds: float, device: torch.device, free: int) -> list[Row]:
    """Time both steps of every point in turn for so many seconds, at least three rounds."""
    rows = []
    for point in chosen:
        if point.memory > free:
            rows.append(Row(point, None, None, None, None))
            continue
        weight, factored = prepare(point, True, device)
        steps = [factored, prepare(point, False, device)[1]]
        times: list[list[float]] = [[], []]
        for step in steps:
            step()
            step()
        until = time.perf_counter() + seconds
        while len(times[1]) < 3 or time.perf_counter() < until:
            for step, found in zip(steps, times, strict=True):
                started = time.perf_counter()
                step()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                found.append(time.perf_counter() - started)
        ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
        medians = [statistics.median(found) for found in times]
        rule = passes.pays(weight, point.rows)
        rows.append(Row(point, medians[0], medians[1], ratio, rule))
        del weight, factored, steps, step
    return rows


def as_csv(rows: Sequence[Row]) -> str:
    """One line for every head."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ("entries", "columns", "rows", "factored_seconds", "dense_seconds", "ratio", "chosen")
    )
    for row in rows:
        point = row.point
        own = (point.entries, point.columns, point.rows)
        writer.writerow((*own, row.factored, row.dense, row.ratio, row.chosen))
    return buffer.getvalue()


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table and write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks pays", description=__doc__)
    for name, usual, what in (
        ("entries", ENTRIES, "weights of the head"),
        ("columns", COLUMNS, "features that it reads"),
        ("rows", ROWS, "inputs in a step"),
    ):
        shown = ",".join(map(str, usual))
        parser.add_argument(
            f"--{name}", type=_numbers, default=list(usual), help=f"{what}; by default {shown}"
        )
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one point")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--implementation", choices=("eager", "compiled"), default="eager")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=BUILD / "pays", help="folder for the files")
    given = parser.parse_args(arguments)
    if min(*given.entries, *given.columns, *given.rows, given.threads) < 1:
        parser.error("--entries, --columns, --rows and --threads take whole numbers from 1.")
    if min(given.entries) < max(given.columns):
        parser.error("--entries was smaller than --columns; expected at least one weight for each.")

    from rich.console import Console
    from rich.table import Table

    from hyperlight.lab.files import write_text

    from .report import provenance

    torch.set_num_threads(given.threads)
    hl.optim.set_implementation(given.implementation)
    device = torch.device(given.device)
    try:
        rows = measure(
            list(points(given.entries, given.columns, given.rows)),
            given.seconds,
            device,
            int(0.8 * free_memory(device)),
        )
    finally:
        hl.optim.set_implementation("auto")
    table = Table(
        title="Time of a step from factors over that from the matrix; * where the factors are "
        "chosen",
        title_justify="left",
    )
    for column in ("columns", "rows", *(f"{size / 1e6:.3g}M" for size in given.entries)):
        table.add_column(column, justify="right")
    found = {row.point: row for row in rows}
    for width, count in dict.fromkeys((row.point.columns, row.point.rows) for row in rows):
        cells = []
        for size in given.entries:
            row = found[Point(size, width, count)]
            shown = "too large" if row.ratio is None else f"{row.ratio:.2f}"
            cells.append(shown + ("*" if row.chosen else ""))
        table.add_row(str(width), str(count), *cells)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    words = [
        f"--{name} {','.join(map(str, getattr(given, name)))}"
        for name in ("entries", "columns", "rows")
    ]
    words.append(f"--seconds {given.seconds:g} --threads {given.threads}")
    words.append(f"--implementation {given.implementation} --device {given.device}")
    given.out.mkdir(parents=True, exist_ok=True)
    write_text(given.out / "pays.csv", as_csv(rows))
    origin = provenance(" ".join(["python -m benchmarks pays", *words]))
    write_text(given.out / "provenance.json", json.dumps(origin, indent=2) + "\n")
    print(f"written to {given.out}: pays.csv, provenance.json")
    return 0
