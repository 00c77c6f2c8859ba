"""Train a grid of runs, each only once, several at a time, on one machine or many.

Runs are scheduled by Dask, in this process or at the address of a ``dask scheduler`` whose
``dask worker`` processes may be on many machines. Every run has a folder that is named after its
settings: interrupted runs resume from it, and finished runs are read from it.
"""

from __future__ import annotations

import functools
import json
import sys
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

# Seconds to wait for a scheduler.
_PATIENCE = 20.0

# Models are initialised from PyTorch's global generator, so a worker with several threads must
# train one run at a time.
_ALONE = threading.Lock()


@dataclass(frozen=True)
class Spec:
    """One run of a grid.

    Attributes:
        task: its name in :data:`hyperlight.lab.tasks.KINDS`.
        config: settings of the task.
        training: how to train.
        formulation: how the weights are made.
        seed: the replica.
    """

    task: str
    config: Any
    training: Training
    formulation: Formulation
    seed: int

    @property
    def about(self) -> Identity:
        """Everything that the numbers depend on."""
        return identity(self.task, self.config, self.training, self.formulation, self.seed)

    @functools.cached_property
    def key(self) -> str:
        """The name of its folder: a digest of the settings."""
        return digest(self.about)

    def read(self, record: dict[str, Any], folder: Path) -> Run:
        """The finished run, without its model."""
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
    """Train all runs that are not finished.

    Args:
        specs: the grid; duplicates are trained once.
        cache: the folder with the folders of the runs.
        workers: number of runs at a time on this machine, which divide its cores.
        engine: address of a Dask scheduler, ``tcp://host:8786``, to use its workers instead. They
            need this package, the data under the same path, and access to the cache (otherwise
            interrupted runs start again).
        seen: called with every run once it is finished, and whether it was trained just now.

    Returns:
        The runs by their keys.

    Raises:
        LabError: the scheduler cannot be reached, or a run failed; the others are finished.
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

    from distributed import Client, as_completed

    threads = max(1, torch.get_num_threads() // workers)
    failed: dict[str, BaseException] = {}
    with _client(Client, workers, engine) as client:
        # In the order of the grid, where neighbours have the same data: workers keep the last task.
        futures = {
            client.submit(
                _compute, spec, _where(cache), threads, key=key, retries=0, priority=-position
            ): spec
            for position, (key, spec) in enumerate(missing.items())
        }
        for future in as_completed(list(futures)):  # type: ignore[no-untyped-call]
            spec = futures[future]
            if future.status == "error":
                failed[spec.key] = future.exception()
                continue
            record, folder = future.result(), RunFolder(cache / spec.key, spec.about)
            if folder.finished() is None:  # the worker has another file system
                folder.write_record(record)
            runs[spec.key] = spec.read(record, cache / spec.key)
            seen(spec, runs[spec.key], True)
    if failed:
        key, error = next(iter(failed.items()))
        raise LabError(
            f"{len(failed)} of {len(unique)} runs failed; the others are kept in {cache}. The "
            f"first was {key} ({unique[key].about}): {error}. Repeat the same command to try "
            "them again."
        ) from error
    return runs


def _client(make: Any, workers: int, engine: str | None) -> Any:
    if engine is None:
        import dask

        # Without this, Dask gives up on a worker after minutes of silence, for instance when the
        # machine slept, and the grid would wait forever.
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
            f"There is no Dask scheduler at {engine} ({error}). Expected an address as "
            "`dask scheduler` prints it: tcp://host:8786."
        ) from error


def _where(cache: Path) -> str:
    """The cache, as an absolute path for the workers."""
    return str(cache.resolve())


def _compute(spec: Spec, cache: str, threads: int) -> dict[str, Any]:
    """Train a run in a worker; return its record."""
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
            wait=functools.partial(print, file=sys.stderr),
        )
        *_, run = steps
        origin = run.provenance or provenance()
        found: dict[str, Any] = json.loads(json.dumps({"provenance": origin, **run.record()}))
        return found


@functools.lru_cache(maxsize=1)
def task_of(name: str, config: Any, device: torch.device) -> Task:
    """A task with its data. Only the last one is cached, as it may hold much memory."""
    made: Task = KINDS[name].task(config, device)
    return made
