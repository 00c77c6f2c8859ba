"""One subject in its own process, which works on request.

Reads lines of JSON from standard input and answers each on standard output: ``{"run": n}`` runs n
steps and answers the seconds; ``{"stop": true}`` answers the peak memory and ends the process.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

__all__ = ["main", "peak_memory"]


def peak_memory(device: torch.device) -> int | None:
    """Peak bytes of this process: GPU memory, or resident memory (VmHWM)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return 1024 * int(found[0]) if found else None


def main() -> None:
    """Prepare, warm up and follow the orders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", required=True)
    parser.add_argument("--subject", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument(
        "--entries", type=int, required=True, help="weights of the head, for the floor"
    )
    given = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keep what a library prints out of the answers

    def answer(**content: Any) -> None:
        print(json.dumps(content), file=answers, flush=True)

    torch.set_num_threads(given.threads)
    # Equal conditions for all: glibc returns freed memory to the system, and how much of it depends
    # on the blocks that a subject frees. Without this the plain network would take up to 1.5 times
    # as long, and hyperlight.optim, which asks for the same, would be ahead of all others.
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD
        mallopt(-1, 2**30)  # M_TRIM_THRESHOLD
    device = torch.device(given.device)
    from .subjects import SUBJECTS, prepare
    from .workloads import WORKLOADS

    base = peak_memory(device)
    if given.subject == "floor":
        from .floor import prepare_floor

        step = prepare_floor(given.entries, device)
    else:
        step = prepare(SUBJECTS[given.subject], WORKLOADS[given.workload], device)
    done = 0

    def run(steps: int) -> float:
        nonlocal done
        started = time.perf_counter()
        for _ in range(steps):
            step(done)
            done += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    run(3)
    answer(seconds=run(1))
    for line in sys.stdin:
        order = json.loads(line)
        if "stop" in order:
            break
        answer(seconds=run(order["run"]))
    answer(peak=peak_memory(device), base=base)


if __name__ == "__main__":
    main()
