"""``python -m benchmarks wire``: bytes sent between processes in a data-parallel step.

Trains the LeNet variant with a dense head in several processes on this machine, once with
``hl.exchange_factors`` and once without, where ``DistributedDataParallel`` averages the dense
gradient. The bytes are those of the loopback device's own counter (Linux). The trained models are
compared afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from .families import OursWide
from .workloads import WORKLOADS

__all__ = ["main"]

DEVICE = "lo"


def sent() -> int:
    """Bytes sent over the loopback device since the machine started."""
    return int(Path(f"/sys/class/net/{DEVICE}/statistics/tx_bytes").read_text())


def work(rank: int, world: int, steps: int, factors: bool, folder: str) -> None:
    """Train in one of the processes; the first one writes the measurements."""
    import hyperlight as hl

    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world
    )
    torch.manual_seed(0)
    workload = WORKLOADS["W1"]
    net: Any = OursWide(workload.primary())
    if factors:
        hl.exchange_factors(net)
    parallel = torch.nn.parallel.DistributedDataParallel(net)
    optimizer = hl.optim.Adam(parallel.parameters(), lr=1e-4)
    x, target = (part.chunk(world)[rank] for part in workload.data(torch.device("cpu")))

    def train(step: int) -> None:
        optimizer.zero_grad()
        workload.loss(parallel(x, workload.gamma(world * step + rank)), target).backward()
        optimizer.step()

    for step in range(3):  # DistributedDataParallel rebuilds its buckets after the first step
        train(step)
    distributed.barrier()
    before = sent()
    distributed.barrier()
    for step in range(steps):
        train(3 + step)
    distributed.barrier()
    total = sent() - before
    if rank == 0:
        weights = {name: p.detach().contiguous() for name, p in net.named_parameters()}
        from safetensors.torch import save_file

        save_file(weights, Path(folder) / "model.safetensors")
        (Path(folder) / "sent.json").write_text(json.dumps(total / steps / world))
    distributed.destroy_process_group()


def measure(world: int, steps: int, factors: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """Return bytes per step and process, and the trained weights."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        order = json.dumps([world, steps, factors, folder])
        subprocess.run(
            [sys.executable, "-m", "benchmarks.wire", order],
            env={**os.environ, "GLOO_SOCKET_IFNAME": DEVICE},
            check=True,
        )
        found: float = json.loads((Path(folder) / "sent.json").read_text())
        return found, load_file(Path(folder) / "model.safetensors")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure both for every number of processes and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks wire", description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args(arguments)
    if not Path(f"/sys/class/net/{DEVICE}").is_dir():
        print(
            f"There is no counter for the loopback device {DEVICE!r}; this benchmark needs Linux."
        )
        return 1

    from rich.console import Console
    from rich.table import Table

    table = Table(title="Kilobytes per step and process, LeNet variant (32,018 weights, K = 128)")
    for column in ("processes", "dense", "factors", "dense / factors", "weights differ by"):
        table.add_column(column, justify="right")
    for world in given.processes:
        dense, one = measure(world, given.steps, factors=False)
        factors, other = measure(world, given.steps, factors=True)
        gap = max(float((one[name] - other[name]).abs().max()) for name in one)
        cells = (f"{dense / 1e3:.1f}", f"{factors / 1e3:.1f}", f"{dense / factors:.1f}")
        table.add_row(str(world), *cells, f"{gap:.1e}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 0


if __name__ == "__main__":
    world, steps, factors, folder = json.loads(sys.argv[1])
    torch.multiprocessing.spawn(work, args=(world, steps, factors, folder), nprocs=world)
