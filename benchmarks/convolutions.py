"""``python -m benchmarks convolutions``: ways to run convolutions with several sets of weights.

Milliseconds of a forward, and of a forward and backward, for every way of ``hl.convolutions``, in
turns; the way that the library chooses is marked.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any, get_args

import torch

__all__ = ["SHAPES", "main", "measure"]

# sets, images of each, channels in and out, kernel, height, and whether all have the same images
SHAPES = (
    (8, 1, 32, 32, 3, 64, False),
    (8, 4, 32, 32, 3, 64, False),
    (16, 1, 128, 128, 3, 8, False),
    (16, 8, 128, 128, 3, 8, False),
    (4, 16, 16, 32, 3, 32, False),
    (64, 1, 6, 16, 5, 14, False),
    (64, 32, 6, 16, 5, 14, False),
    (64, 32, 16, 32, 3, 5, False),
    (32, 1, 64, 64, 1, 16, False),
    (16, 1, 16, 16, 3, 64, False),
    (64, 32, 1, 6, 5, 28, True),
    (8, 4, 3, 16, 3, 64, True),
)


def measure(
    shape: tuple[int, int, int, int, int, int, bool], training: bool, rounds: int
) -> tuple[dict[str, float], str]:
    """Median milliseconds of every way, and the library's choice."""
    import hyperlight as hl
    from hyperlight.many.convolutions import Implementation, SetConvolutions

    sets, images, channels, outputs, kernel, size, shared = shape
    x = torch.randn(*(() if shared else (sets,)), images, channels, size, size)
    w = torch.randn(sets, outputs, channels, kernel, kernel)
    b = torch.randn(sets, outputs)
    given = [tensor.requires_grad_(training) for tensor in (x, w, b)]

    def one(*tensors: Any) -> torch.Tensor:
        return torch.conv2d(*tensors, padding=kernel // 2)

    def run(way: Any) -> str:
        with hl.convolutions(way) as seen, SetConvolutions():
            y = torch.vmap(one, (None if shared else 0, 0, 0))(*given)
            if training:
                torch.autograd.grad(y.sum(), given)
        return seen[0].implementation

    ways = get_args(Implementation)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):  # the first warms up
        for way in ways:
            started = time.perf_counter()
            run(way)
            if turn:
                seconds[way].append(time.perf_counter() - started)
    return {way: 1e3 * statistics.median(found) for way, found in seconds.items()}, run(None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every shape and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks convolutions", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)

    from rich.console import Console
    from rich.table import Table

    torch.set_num_threads(given.threads)
    torch.empty(2**25 - 2**16, dtype=torch.uint8)  # see benchmarks.worker
    table = Table(title="Milliseconds, median; * the library's choice")
    names = ("sets", "images", "in", "out", "kernel", "size", "input", "")
    for column in (*names, "grouped", "loop", "vmap"):
        table.add_column(column, justify="right")
    for training in (False, True):
        for shape in SHAPES:
            found, chosen = measure(shape, training, given.rounds)
            cells = (f"{'*' if way == chosen else ''}{ms:.2f}" for way, ms in found.items())
            table.add_row(
                *(str(size) for size in shape[:-1]),
                "shared" if shape[-1] else "own",
                "training" if training else "inference",
                *cells,
            )
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    return 0
