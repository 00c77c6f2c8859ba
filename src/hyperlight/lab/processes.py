"""Processes that end together: on a request to stop, or if one of them dies.

Runs of a study train in worker processes; a run on several devices trains in one process for each.
None of them outlives the command, however the command ends.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .errors import LabError

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from rich.console import Console

__all__ = ["connected", "ending", "follow_parent", "hold_signals", "start_ranks", "stop_on_request"]

_STOP = (signal.SIGINT, signal.SIGTERM)


def ending(status: int | None) -> str:
    """How a process ended, in words.

    >>> ending(-9), ending(1)
    ('was ended by signal 9 (SIGKILL)', 'ended with status 1')
    """
    if status is None or status >= 0:
        return f"ended with status {'unknown' if status is None else status}"
    try:
        name = f" ({signal.Signals(-status).name})"
    except ValueError:
        name = ""
    return f"was ended by signal {-status}{name}"


# --- a request to stop ------------------------------------------------------------


@contextlib.contextmanager
def stop_on_request(console: Console) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop; a second one stops at once."""
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        console.print("stopping after this step; interrupt again to stop at once")

    try:
        before = {number: signal.signal(number, ask) for number in _STOP}
    except ValueError:  # not in the main thread
        before = {}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def hold_signals() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back, from this thread and from processes that are started in it.

    A process keeps them held back until :func:`follow_parent`, so that Ctrl-C in a terminal, which
    reaches all processes, does not end it while it imports.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_parent() -> Callable[[], bool]:
    """In a process of :mod:`multiprocessing`: end with the parent, and stop if it says so.

    Returns:
        Whether SIGTERM has arrived. Ctrl-C is for the parent alone.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    asked = False

    def watch() -> None:
        parent.join()
        os._exit(1)

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True

    threading.Thread(target=watch, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, ask)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP)
    return lambda: asked


# --- one process for each device -----------------------------------------------------

# Set in the environment of a process that start_ranks has started.
_STARTED = "HYPERLIGHT_STARTED"

# Seconds in which a process may end by itself, with words of its own, once another has ended.
_GRACE = 3.0

# The same after an error in words, which this process then has as well, or after Ctrl-C, when it
# writes checkpoints.
_LONG_GRACE = 45.0

# How errors of gloo and NCCL read; they are plain RuntimeErrors in part.
_COMMUNICATION = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset|refused)|closed by peer|reset by peer|broken pipe"
    r"|timed out waiting|socket timeout",
    re.IGNORECASE,
)


class _Ranks:
    """What this process knows of the others that train with it on this machine."""

    def __init__(self) -> None:
        self.children: Sequence[subprocess.Popen[bytes]] = ()
        self.watching = False
        self.known = threading.Event()
        self.how = "One of the processes that train together has ended or no longer answers"
        self.said = False

    def words(self, error: RuntimeError | None = None) -> str:
        """What happened and what to do."""
        found = ""
        if error is not None and not self.known.is_set():
            found = f" ({str(error).strip().partition(chr(10))[0]:.200})"
        return (
            f"{self.how}, so the others were ended as well{found}. The same command goes on from "
            "the last checkpoint."
        )

    def end(self) -> None:
        """End this process, whatever its main thread waits for."""
        if not self.said:
            self.said = True
            from rich.console import Console

            console = Console(stderr=True)
            console.show_cursor()  # a progress bar may have hidden it
            console.print("[bold red]error: [/]", end="")
            console.print(self.words(), markup=False, highlight=False, soft_wrap=True)
        self.dismiss()
        os._exit(2)

    def lead(self, rank: int, child: subprocess.Popen[bytes]) -> None:
        """Wait for a process that this one has started; if it dies, end."""
        status = child.wait()
        if status == 0:
            return
        self.how = f"Process {rank} of those that train together {ending(status)}"
        self.known.set()
        time.sleep(_LONG_GRACE if status in (2, 130) else _GRACE)
        self.end()

    def follow(self) -> None:
        """Wait for the process that has started this one; end with it."""
        orderly = os.read(0, 1)  # sys.stdin would hold a lock that the end of Python waits for
        if orderly:
            time.sleep(_GRACE)
            os._exit(1)
        self.how = "Process 0 of those that train together ended unexpectedly"
        self.said = os.environ.get("LOCAL_RANK") != "1"  # one process says it
        self.end()

    def dismiss(self) -> None:
        """Tell the processes that this one has started that it ends, and wait for them."""
        for child in self.children:
            assert child.stdin is not None
            with contextlib.suppress(OSError):
                child.stdin.write(b".")
                child.stdin.close()
        give_up = time.monotonic() + 2 * _GRACE
        for child in self.children:
            try:
                child.wait(max(0.1, give_up - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()


_ranks = _Ranks()


def start_ranks(fabric: Fabric) -> None:
    """Start a process for each further device; from now on, all end if one dies.

    Does nothing where a cluster has started them: the cluster then ends them as well.

    Raises:
        LabError: a process cannot be started.
    """
    strategy: Any = fabric.strategy
    environment = strategy.cluster_environment
    if os.environ.pop(_STARTED, None):
        _ranks.watching = True
        threading.Thread(target=_ranks.follow, daemon=True).start()
    elif not environment.creates_processes_externally:
        # Fabric starts none itself where LOCAL_RANK is set. Its own launcher would kill this
        # process without a word if another one dies, and would leave the others if this one dies.
        os.environ["LOCAL_RANK"] = "0"
        os.environ["MASTER_ADDR"] = environment.main_address
        os.environ["MASTER_PORT"] = str(environment.main_port)
        _ranks.watching = True
        atexit.register(_ranks.dismiss)
        for rank in range(1, strategy.num_processes):
            around = {**os.environ, "LOCAL_RANK": str(rank), _STARTED: "1"}
            try:
                child = subprocess.Popen(_program(), env=around, stdin=subprocess.PIPE, bufsize=0)
            except OSError as error:
                raise LabError(
                    f"The process for device {rank} could not be started ({error}). Choose fewer "
                    "--devices, or end other programs."
                ) from error
            _ranks.children = (*_ranks.children, child)
            threading.Thread(target=_ranks.lead, args=(rank, child), daemon=True).start()


def _program() -> list[str]:
    """The command line of this program."""
    spec = sys.modules["__main__"].__spec__
    if spec is None:
        return [sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:]]
    return [sys.executable, "-m", spec.name, *sys.argv[1:]]


@contextlib.contextmanager
def connected(fabric: Fabric) -> Iterator[None]:
    """Turn errors of the connection to other processes into words.

    Raises:
        LabError: another process has ended. Other errors pass.
    """
    try:
        yield
    except RuntimeError as error:
        if fabric.world_size == 1 or not _of_communication(error):
            raise
        if _ranks.watching:
            # The watching thread knows more; if process 0 died, it ends this process meanwhile.
            _ranks.known.wait(_GRACE)
        elif not fabric.is_global_zero:  # whose errors are not printed otherwise
            print(f"error: {_ranks.words(error)}", file=sys.stderr)
        _ranks.said = True
        raise LabError(_ranks.words(error)) from error


def _of_communication(error: RuntimeError) -> bool:
    from torch.distributed import DistError

    return isinstance(error, DistError) or _COMMUNICATION.search(str(error)) is not None
