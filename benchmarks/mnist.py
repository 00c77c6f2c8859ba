"""``python -m benchmarks mnist``: seconds of training to 95 % test accuracy on MNIST.

HyperLight 0.0.5 as in its README (ten hyper-inputs, hidden layers of 16, 64 and 128, Adam) against
this version and the plain network, with the same batches in the same order.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .environments import ROOT, interpreter, variables
from .workloads import lenet

__all__ = ["CONTENDERS", "main", "middle", "ratio_of", "work"]

INPUTS, WIDTHS = 10, (16, 64, 128)
BATCH, EVALUATE_EVERY, GAMMAS = 128, 20, 3
# name: (what pip installs, title, learning rate of Adam)
CONTENDERS: dict[str, tuple[str | None, str, float]] = {
    "hyperlight-default": (
        "hyperlight==0.0.5",
        "HyperLight 0.0.5, Adam, PyTorch's default rate",
        1e-3,
    ),
    "hyperlight-paper": ("hyperlight==0.0.5", "HyperLight 0.0.5, Adam, the paper's rate", 3e-4),
    "plain": (None, "plain network, Adam(fused=True)", 3e-3),
    "ours": (None, "HyperLight, parameter_groups", 3e-3),
    "ours-wide": (None, "the same with the hidden layers of 0.0.5", 3e-3),
}


def _contender(name: str) -> tuple[Any, torch.optim.Optimizer]:
    """A function from images and gamma to logits, and its optimizer."""
    primary, lr = lenet(), CONTENDERS[name][2]
    if name == "plain":
        plain = torch.optim.Adam(primary.parameters(), lr=lr, fused=True)
        return lambda x, *, h: primary(x), plain
    if name.startswith("ours"):
        import hyperlight as hl

        inputs = {"h": hl.Uniform(0.0, 1.0, (INPUTS,))}
        model = hl.hypernetize(primary, inputs, hidden="auto" if name == "ours" else WIDTHS)
        groups = hl.parameter_groups(model, lr=lr)
        return model, hl.optim.Adam(groups, lr=lr)
    hyperlight: Any = importlib.import_module("hyperlight")  # the release
    modules = hyperlight.find_modules_of_type(primary, [nn.Conv2d, nn.Linear])
    mainnet = hyperlight.hypernetize(primary, modules=modules)
    hypernet = hyperlight.HyperNet(
        input_shapes={"h": (INPUTS,)},
        output_shapes=mainnet.external_shapes(),
        hidden_sizes=list(WIDTHS),
    )

    def run(x: Tensor, *, h: Tensor) -> Tensor:
        with mainnet.using_externals(hypernet(h=h.unsqueeze(0))):
            output: Tensor = mainnet(x)
        return output

    return run, torch.optim.Adam(hypernet.parameters(), lr=lr)


def work(
    name: str, data: dict[str, Tensor], seed: int, target: float, steps: int
) -> dict[str, float]:
    """Train one contender until its test accuracy is ``target`` (from 0 to 1), or for ``steps``.

    Test accuracy is the mean over fixed gammas on all test images, measured every few updates. Its
    time does not count.
    """
    torch.manual_seed(seed)
    model, optimizer = _contender(name)
    draws = torch.Generator().manual_seed(seed)
    tests = torch.rand(GAMMAS, INPUTS, generator=torch.Generator().manual_seed(1))
    images, labels = data["train_images"], data["train_labels"]
    seconds, accuracy, step = 0.0, 0.0, 0
    while step < steps and accuracy < target:
        started = time.perf_counter()
        for _ in range(EVALUATE_EVERY):
            index = torch.randint(len(images), (BATCH,), generator=draws)
            h = torch.rand(INPUTS, generator=draws)
            optimizer.zero_grad()
            F.cross_entropy(model(images[index], h=h), labels[index]).backward()
            optimizer.step()
        seconds += time.perf_counter() - started
        step += EVALUATE_EVERY
        with torch.no_grad():
            right = [
                (model(x, h=h).argmax(1) == y).float().sum()
                for h in tests
                for x, y in zip(
                    data["test_images"].split(2000), data["test_labels"].split(2000), strict=True
                )
            ]
        accuracy = float(sum(right)) / (GAMMAS * len(data["test_labels"]))
    reached = accuracy >= target
    return {
        "seconds": seconds if reached else math.inf,
        "steps": step if reached else math.inf,
        "milliseconds_per_step": 1e3 * seconds / max(step, 1),
        "accuracy": accuracy,
    }


def middle(values: Sequence[float]) -> float:
    """The median; a run that never reached the target counts as infinitely long."""
    return statistics.median_low(values)


def ratio_of(run: Mapping[str, float], plain: Mapping[str, float]) -> float:
    """Seconds of a run over those of the plain network with the same seed."""
    return run["seconds"] / plain["seconds"] if math.isfinite(run["seconds"]) else math.inf


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all contenders in turn, seed by seed, each in its own process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks mnist", description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST's IDX files")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--target", type=float, default=95.0, help="test accuracy in %%")
    parser.add_argument(
        "--steps", type=int, default=4000, help="updates after which a run gives up"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks" / "mnist")
    given = parser.parse_args(arguments)

    from rich.console import Console
    from rich.table import Table
    from safetensors.torch import save_file

    from hyperlight.lab.data import mnist
    from hyperlight.lab.files import write_text

    from .report import provenance

    split = mnist(given.data_dir)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mnist.safetensors"
        save_file(
            {
                "train_images": split.train.images,
                "train_labels": split.train.labels,
                "test_images": split.test.images,
                "test_labels": split.test.labels,
            },
            path,
        )
        for seed in range(given.seeds):
            for name, (requirement, _, _) in CONTENDERS.items():
                order = {
                    "name": name,
                    "seed": seed,
                    "target": given.target / 100.0,
                    "steps": given.steps,
                    "threads": given.threads,
                    "path": str(path),
                }
                done = subprocess.run(
                    [str(interpreter(requirement)), "-m", "benchmarks.mnist", json.dumps(order)],
                    cwd=ROOT,
                    env=variables(requirement),
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"seed {seed} {name}: {found[name][-1]}", file=sys.stderr)

    table = Table(title=f"Seconds of training to {given.target:g} % on MNIST")
    headings = ("", "rate", "seconds, median", "x plain", "steps", "ms per step")
    for number, column in enumerate(headings):
        table.add_column(column, justify="right" if number else "left")
    for name, runs in found.items():
        seconds, steps, each = (
            f"{middle([run[key] for run in runs]):.1f}"
            for key in ("seconds", "steps", "milliseconds_per_step")
        )
        # Seeds are compared in pairs, because a busy minute slows all contenders of a seed.
        ratio = middle([ratio_of(*pair) for pair in zip(runs, found["plain"], strict=True)])
        title, rate = CONTENDERS[name][1:]
        table.add_row(title, f"{rate:g}", seconds, f"{ratio:.2f}", steps, each)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    given.out.mkdir(parents=True, exist_ok=True)
    command = f"python -m benchmarks mnist --seeds {given.seeds} --target {given.target:g}"
    content = {"provenance": provenance(command), "runs": found}
    write_text(given.out / "mnist.json", json.dumps(content, indent=2) + "\n")
    return 0


def _work() -> None:
    from safetensors.torch import load_file

    order = json.loads(sys.argv[1])
    torch.set_num_threads(order.pop("threads"))
    data = load_file(order.pop("path"))
    print(json.dumps(work(data=data, **order)))


if __name__ == "__main__":
    _work()
