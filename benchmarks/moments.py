"""``python -m benchmarks moments``: what moments in bfloat16 do to convergence.

The Bayesian task of the lab (LeNet variant on MNIST, MIP, Adam at the paper's rate) with Adam's
moments in float32, in bfloat16 rounded stochastically (``moments=torch.bfloat16``), and, to show
what the rounding is for, in bfloat16 rounded to the nearest. Equal seeds give equal batches.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from .environments import BUILD

__all__ = ["VARIANTS", "main", "run"]

VARIANTS = ("float32", "bfloat16", "bfloat16, to the nearest")
LR, BATCH = 3e-4, 128


def _to_the_nearest(value: Tensor, out: Tensor) -> None:
    out.copy_(value)


def run(
    variant: str, task: object, seed: int, steps: int, every: int
) -> list[tuple[int, float, float]]:
    """Train one model: ``(step, test loss, test accuracy in %)``, every few steps."""
    import hyperlight as hl
    from hyperlight.lab.tasks.bayes import BayesTask

    assert isinstance(task, BayesTask)
    rounding = (
        mock.patch("hyperlight.optim.passes.round_stochastically_", _to_the_nearest)
        if variant.endswith("nearest")
        else mock.patch.dict({})
    )
    torch.manual_seed(seed)
    hl.optim.set_implementation("eager")
    model = task.model("mip", seed)
    moments = torch.float32 if variant == "float32" else torch.bfloat16
    optimizer = hl.optim.Adam(model.parameters(), lr=LR, moments=moments)
    draws = torch.Generator().manual_seed(seed)
    found = []
    with rounding:
        for step in range(1, steps + 1):
            index = torch.randint(len(task.train), (BATCH,), generator=draws)
            gamma = model.sample(generator=draws)
            images, labels = task.train.images[index], task.train.labels[index]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images, **gamma), labels).backward()
            optimizer.step()
            if step % every == 0 or step == steps:
                figures = task.evaluate(model, whole=step == steps)
                found.append((step, figures["loss"], figures["accuracy"]))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every variant with every seed, print the table, write csv and provenance."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks moments", description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST's IDX files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--every", type=int, default=100, help="steps between two test figures")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=BUILD / "moments")
    given = parser.parse_args(words)

    from rich.console import Console
    from rich.table import Table

    from hyperlight.lab.files import write_text
    from hyperlight.lab.summary import Spread
    from hyperlight.lab.tasks.bayes import Bayes, BayesTask

    from .report import provenance

    torch.set_num_threads(given.threads)
    task = BayesTask(Bayes(data="mnist", data_dir=given.data_dir), torch.device("cpu"))
    found = {
        variant: [run(variant, task, seed, given.steps, given.every) for seed in range(given.seeds)]
        for variant in VARIANTS
    }
    table = Table(title=f"Test accuracy in % and loss, mean ± std over {given.seeds} seeds")
    for column in ("step", *VARIANTS):
        table.add_column(column, justify="right")
    for i, (step, _, _) in enumerate(found["float32"][0]):
        cells = []
        for runs in found.values():
            loss, accuracy = (Spread.of([points[i][k] for points in runs]) for k in (1, 2))
            cells.append(f"{accuracy.text(2)}; {loss.text(4)}")
        table.add_row(str(step), *cells)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    given.out.mkdir(parents=True, exist_ok=True)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["moments", "seed", "step", "test_loss", "test_accuracy"])
    for variant, runs in found.items():
        for seed, points in enumerate(runs):
            writer.writerows([variant, seed, *point] for point in points)
    write_text(given.out / "moments.csv", buffer.getvalue())
    shown = [word if word != str(given.data_dir) else "DIR" for word in words]
    command = shlex.join(["python", "-m", "benchmarks", "moments", *shown])
    content = json.dumps(provenance(command), indent=2)
    write_text(given.out / "provenance.json", content + "\n")
    return 0
