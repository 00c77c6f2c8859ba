"""Grids of runs: each done once, several at a time, on this machine or on many.

The engine is Dask's distributed scheduler. By default it lives in this process; the address of
another (``dask scheduler``, with ``dask worker`` on as many machines as there are) takes the same
grid. A run is kept in a folder that is named after its settings, which it goes on from when it was
interrupted, and is never done twice.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .checkpoint import Identity, RunFolder, digest, identity
from .errors import LabError
from .provenance import provenance
from .record import Run
from .tasks import KINDS
from .tasks.base import Formulation, Metric, Task
from .train import Training, train

__all__ = ["Spec", "run_grid", "task_of"]

# Seconds that a scheduler is waited for.
_PATIENCE = 20.0

# Runs draw from PyTorch's own generator: a worker with several threads takes one at a time.
_ALONE = threading.Lock()


@dataclass(frozen=True)
class Spec:
    """One run of a grid.

    Attributes:
        task: its name, as in :data:`hyperlight.lab.tasks.KINDS`.
        config: settings of the task.
        training: how it is trained.
        formulation: how weights are made.
        seed: the replica.
    """

    task: str
    config: Any
    training: Training
    formulation: Formulation
    seed: int

    @property
    def about(self) -> Identity:
        """Everything that its numbers depend on."""
        return identity(self.task, self.config, self.training, self.formulation, self.seed)

    @functools.cached_property
    def key(self) -> str:
        """Its name: a digest of its settings."""
        return digest(self.about)

    def read(self, record: dict[str, Any], folder: Path) -> Run:
        """The run, from its record, without the model."""
        run = Run(self.formulation, self.seed, Metric(**record["metric"]), folder=folder)
        run.read(record)
        return run


def run_grid(
    specs: Sequence[Spec],
    cache: Path,
    *,
    workers: int = 1,
    engine: str | None = None,
    seen: Callable[[Spec, Run, bool], object] = lambda spec, run, fresh: None,
) -> dict[str, Run]:
    """Do all runs that were not done before.

    Args:
        specs: the grid; a run that is in it twice is done once.
        cache: the folder that holds a folder for every run.
        workers: how many runs at a time on this machine, which share its cores.
        engine: the address of a Dask scheduler, ``tcp://host:8786``, in the place of this
            machine. Its workers need this package, the data in the same place, and the cache
            (without a cache in common a run that is interrupted starts again).
        seen: called with every run as soon as it is there, and whether it was done just now.

    Returns:
        The runs by their keys.

    Raises:
        LabError: there is no such engine, or a run failed; the others are done and kept.
    """
    unique = {spec.key: spec for spec in specs}
    runs: dict[str, Run] = {}
    missing = {}
    for key, spec in unique.items():
        record = RunFolder(cache / key, spec.about).finished()
        if record is None:
            missing[key] = spec
        else:
            runs[key] = spec.read(record, cache / key)
            seen(spec, runs[key], False)
    if not missing:
        return runs

    from distributed import Client, as_completed  # a second to import

    threads = max(1, torch.get_num_threads() // workers)
    failed: dict[str, BaseException] = {}
    with _client(Client, workers, engine) as client:
        # In the order of the grid, where neighbours have the same data: a worker keeps the last.
        futures = {
            client.submit(
                _compute, spec, _where(cache), threads, key=key, retries=0, priority=-place
            ): spec
            for place, (key, spec) in enumerate(missing.items())
        }
        for future in as_completed(list(futures)):  # type: ignore[no-untyped-call]
            spec = futures[future]
            if future.status == "error":
                failed[spec.key] = future.exception()
                continue
            record, folder = future.result(), RunFolder(cache / spec.key, spec.about)
            if folder.finished() is None:  # a worker without this folder
                folder.write_record(record)
            runs[spec.key] = spec.read(record, cache / spec.key)
            seen(spec, runs[spec.key], True)
    if failed:
        key, error = next(iter(failed.items()))
        raise LabError(
            f"{len(failed)} of {len(unique)} runs failed; the others are kept in {cache}. The "
            f"first was {key} ({unique[key].about}): {error}. Call the same command again to try "
            "them once more."
        ) from error
    return runs


def _client(make: Any, workers: int, engine: str | None) -> Any:
    if engine is None:
        import dask

        # Dask gives a worker up that was not heard of for minutes. On one machine that is one that
        # slept, and its grid would wait for ever. One run at a time needs no process of its own.
        with dask.config.set({"distributed.scheduler.worker-ttl": None}):
            return make(
                n_workers=workers,
                threads_per_worker=1,
                processes=workers > 1,
                dashboard_address=":0",
                silence_logs="ERROR",
            )
    try:
        return make(engine, timeout=_PATIENCE)
    except (OSError, ValueError) as error:
        raise LabError(
            f"There is no engine at {engine} ({error}). Expected the address of a Dask scheduler, "
            "as `dask scheduler` prints it: tcp://host:8786."
        ) from error


def _where(cache: Path) -> str:
    """The cache as a worker finds it."""
    return str(cache.resolve())


def _compute(spec: Spec, cache: str, threads: int) -> dict[str, Any]:
    """A run in a worker; what it gives is its record, as JSON has it."""
    from lightning_fabric import Fabric

    with _ALONE:
        torch.set_num_threads(threads)
        training = spec.training
        fabric = Fabric(accelerator=training.device, devices=1, precision=training.precision)
        task = task_of(spec.task, spec.config, fabric.device)
        steps = train(
            *(task, spec.formulation, spec.seed, training, fabric),
            folder=Path(cache) / spec.key,
            pictures=False,
        )
        *_, run = steps
        found: dict[str, Any] = json.loads(json.dumps({"provenance": provenance(), **run.record()}))
        return found


@functools.lru_cache(maxsize=1)
def task_of(name: str, config: Any, device: torch.device) -> Task:
    """A task with its data, kept for the next run of it. One: it may hold much memory."""
    made: Task = KINDS[name].task(config, device)
    return made
