"""Train a grid of runs, each only once, several at a time, on one machine or many.

On one machine, runs are trained in this process, or in several that are reached by pipes: no port
is opened. With the address of a ``dask scheduler`` they are trained by its workers, which may be on
many machines. Every run has a folder that is named after its settings: interrupted runs resume from
it, and finished runs are read from it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from ..errors import HyperLightError
from .checkpoint import Identity, RunFolder, digest, identity
from .errors import LabError
from .methods import Method
from .processes import ending, follow_parent, hold_signals
from .provenance import provenance
from .record import Run
from .tasks import KINDS
from .tasks.base import Formulation, Metric, Task
from .train import Training, train

__all__ = ["Spec", "run_grid", "task_of"]


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
        run = Run(Method.of(self.formulation), self.seed, Metric(**record["metric"]), folder=folder)
        run.read(record)
        return run


def run_grid(
    specs: Sequence[Spec],
    cache: Path,
    *,
    workers: int = 1,
    engine: str | None = None,
    seen: Callable[[Spec, Run, bool], object] = lambda spec, run, fresh: None,
    stop: Callable[[], bool] = lambda: False,
    tell: Callable[[str], object] = lambda line: None,
) -> dict[str, Run]:
    """Train all runs that are not finished.

    Args:
        specs: the grid; duplicates are trained once.
        cache: the folder with the folders of the runs.
        workers: number of runs at a time on this machine, which divide its cores. One run at a time
            is trained in this process. Several are trained in processes that are started with the
            method "spawn" of :mod:`multiprocessing`: a script that asks for them needs the guard
            ``if __name__ == "__main__":``.
        engine: address of a Dask scheduler, ``tcp://host:8786`` or ``tls://host:8786``, to use its
            workers instead. They need this package, the data under the same path, and access to
            the cache (otherwise interrupted runs start again).
        seen: called with every run once it is finished, and whether it was trained just now.
        stop: called between steps, not with ``engine``; once it returns True, the runs in training
            write a checkpoint, and this ends with ``KeyboardInterrupt``.
        tell: called with a line of text when a process has died, whose run is tried again.

    Returns:
        The runs by their keys.

    Raises:
        LabError: the scheduler cannot be reached, processes died again and again, or a run failed;
            the others are finished.
    """
    unique = {spec.key: spec for spec in specs}
    runs: dict[str, Run] = {}
    missing = []
    for key, spec in unique.items():
        record = RunFolder(cache / key, spec.about).finished()
        if record is None:
            missing.append(spec)
        else:
            runs[key] = spec.read(record, cache / key)
            seen(spec, runs[key], False)
    if not missing:
        return runs

    # In the order of the grid, where neighbours have the same data: workers keep the last task.
    where = _where(cache)
    if engine is not None:
        results = _by_scheduler(missing, where, workers, engine)
    elif workers > 1:
        results = _by_processes(missing, where, workers, stop, tell)
    else:
        results = ((spec, _attempt(spec, where, stop)) for spec in missing)
    failed: dict[str, LabError] = {}
    with contextlib.closing(results):
        for spec, found in results:
            if isinstance(found, LabError):
                failed[spec.key] = found
                continue
            folder = RunFolder(cache / spec.key, spec.about)
            if folder.finished() is None:  # the worker has another file system
                folder.write_record(found)
            runs[spec.key] = spec.read(found, cache / spec.key)
            seen(spec, runs[spec.key], True)
    if stop():  # too late for the last run to notice
        raise KeyboardInterrupt
    if failed:
        key, error = next((key, failed[key]) for key in unique if key in failed)
        raise LabError(
            f"{len(failed)} of {len(unique)} runs failed; the others are kept in {cache}. The "
            f"first was {key} ({unique[key].about}): {error}. Repeat the same command to try "
            "them again."
        ) from error
    return runs


def _where(cache: Path) -> str:
    """The cache, as an absolute path for the workers."""
    return str(cache.resolve())


# --- a run --------------------------------------------------------------------------

Record = dict[str, Any]


def _compute(spec: Spec, cache: str, stop: Callable[[], bool] = lambda: False) -> Record:
    """Train a run; return its record."""
    from lightning_fabric import Fabric

    training = spec.training
    fabric = Fabric(accelerator=training.device, devices=1, precision=training.precision)
    task = task_of(spec.task, spec.config, fabric.device)
    steps = train(
        *(task, spec.formulation, spec.seed, training, fabric),
        folder=Path(cache) / spec.key,
        stop=stop,
        pictures=False,
        wait=functools.partial(print, file=sys.stderr),
    )
    *_, run = steps
    origin = run.provenance or provenance()
    found: Record = json.loads(json.dumps({"provenance": origin, **run.record()}))
    return found


def _attempt(spec: Spec, cache: str, stop: Callable[[], bool]) -> Record | LabError:
    """Train a run; return its record, or why it failed."""
    if stop():
        raise KeyboardInterrupt
    try:
        return _compute(spec, cache, stop)
    except Exception as error:
        return _in_words(error)


def _in_words(error: BaseException) -> LabError:
    if isinstance(error, HyperLightError):
        return LabError(str(error))
    return LabError(f"{type(error).__name__}: {error}")


# --- several processes on this machine -------------------------------------------------

# Deaths of processes, without a finished run between them, after which no more are started.
_DEATHS = 3

_stop_in_worker: Callable[[], bool]


class _Spawn(SpawnContext):
    """The start method "spawn", which remembers the process that it started last."""

    process: BaseProcess | None = None

    def Process(self, *args: Any, **options: Any) -> BaseProcess:  # type: ignore[override]  # noqa: N802
        self.process = super().Process(*args, **options)
        return self.process


class _Worker:
    """A process that trains one run at a time and is reached by pipes alone."""

    def __init__(self, threads: int) -> None:
        # A pool of one: if its process dies, it is known which run that was, and no other is lost.
        self.spawn = _Spawn()
        self.pool = ProcessPoolExecutor(1, self.spawn, _begin, (threads,))

    @property
    def process(self) -> BaseProcess | None:
        """The process, once a run was submitted."""
        return self.spawn.process

    def submit(self, spec: Spec, cache: str) -> Future[Record | LabError | None]:
        with hold_signals():  # the pool starts its process here
            return self.pool.submit(_attempt_in_worker, spec, cache)

    def end(self) -> str:
        """Wait for the process; say how it ended."""
        self.pool.shutdown()
        return ending(None if self.process is None else self.process.exitcode)


def _begin(threads: int) -> None:
    """Prepare a worker."""
    global _stop_in_worker
    _stop_in_worker = follow_parent()
    torch.set_num_threads(threads)


def _attempt_in_worker(spec: Spec, cache: str) -> Record | LabError | None:
    """As :func:`_attempt`; None if the worker was asked to stop."""
    try:
        return _attempt(spec, cache, _stop_in_worker)
    except KeyboardInterrupt:
        return None


def _by_processes(
    specs: Sequence[Spec],
    cache: str,
    workers: int,
    stop: Callable[[], bool],
    tell: Callable[[str], object],
) -> Generator[tuple[Spec, Record | LabError]]:
    """Train runs in processes on this machine; try those again whose process died."""
    threads = max(1, torch.get_num_threads() // workers)
    waiting = deque(specs)
    idle: list[_Worker] = []
    busy: dict[Future[Record | LabError | None], tuple[Spec, _Worker]] = {}
    deaths: list[str] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                worker = idle.pop() if idle else _Worker(threads)
                try:
                    future = worker.submit(waiting[0], cache)
                except BrokenProcessPool:  # it died while it was idle
                    worker.end()
                else:
                    busy[future] = waiting.popleft(), worker
            # Not forever: a signal is noticed between two waits.
            ended, _ = wait(busy, timeout=0.2, return_when=FIRST_COMPLETED)
            if stop():
                raise KeyboardInterrupt
            for future in ended:
                spec, worker = busy.pop(future)
                error = future.exception()
                died = isinstance(error, BrokenProcessPool)
                found = None if died else _in_words(error) if error else future.result()
                if found is not None:
                    deaths.clear()
                    idle.append(worker)
                    yield spec, found
                    continue
                how = worker.end() if died else "was asked to stop by SIGTERM"
                deaths.append(f"the process of run {spec.key} {how}")
                waiting.appendleft(spec)
                if len(deaths) == _DEATHS:
                    raise LabError(
                        f"Processes died {_DEATHS} times before a run was finished: "
                        f"{'; '.join(deaths)}. If memory ran out, use fewer --workers. The same "
                        "command goes on from the last checkpoints."
                    )
                tell(f"{deaths[-1]}; another one goes on from its last checkpoint")
    finally:
        everyone = [*idle, *(worker for _, worker in busy.values())]
        for _, worker in busy.values():
            if worker.process is not None:
                worker.process.terminate()  # it writes a checkpoint
        try:
            for worker in everyone:
                worker.end()
        except BaseException:  # interrupted again
            for worker in everyone:
                if worker.process is not None:
                    worker.process.kill()
            raise


# --- a scheduler ----------------------------------------------------------------------

# Seconds to wait for a scheduler.
_PATIENCE = 20.0

# Models are initialised from PyTorch's global generator, so a worker with several threads must
# train one run at a time.
_ALONE = threading.Lock()


def _compute_alone(spec: Spec, cache: str, threads: int) -> Record:
    """Train a run in a worker of Dask; return its record."""
    with _ALONE:
        torch.set_num_threads(threads)
        return _compute(spec, cache)


def _by_scheduler(
    specs: Sequence[Spec], cache: str, workers: int, engine: str
) -> Generator[tuple[Spec, Record | LabError]]:
    """Train runs by the workers of a Dask scheduler."""
    from distributed import Client, as_completed

    # A lost scheduler is said below in words; Dask would print its traceback as well.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    threads = max(1, torch.get_num_threads() // workers)
    failure = ""
    try:
        # With tls://, certificates come from Dask's own configuration.
        client = Client(engine, timeout=_PATIENCE)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, TypeError) as error:
        failure = f"{error}"
    if failure:
        # The client closes when it is collected. In a thread that Dask is just starting it would
        # wait for ever for a lock that the starter holds.
        gc.collect()
        raise LabError(
            f"There is no Dask scheduler at {engine} ({failure}). Expected an address as "
            "`dask scheduler` prints it: tcp://host:8786, or tls://host:8786 with the certificates "
            "in Dask's configuration (distributed.comm.tls)."
        )
    with client:
        futures = {
            client.submit(
                *(_compute_alone, spec, cache, threads),
                key=spec.key,
                retries=0,
                priority=-position,
            ): spec
            for position, spec in enumerate(specs)
        }
        for future in as_completed(list(futures)):  # type: ignore[no-untyped-call]
            if future.status == "finished":
                yield futures[future], future.result()
            elif future.status == "error":
                yield futures[future], _in_words(future.exception())
            else:
                raise LabError(
                    f"The Dask scheduler at {engine} was lost. Start it again; the same command "
                    "then goes on."
                )


@functools.lru_cache(maxsize=1)
def task_of(name: str, config: Any, device: torch.device) -> Task:
    """A task with its data. Only the last one is cached, as it may hold much memory."""
    made: Task = KINDS[name].task(config, device)
    return made
