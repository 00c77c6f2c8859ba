"""A worker process that changes a file, reads it and gives a verdict, one after another."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyperlight.errors import HyperLightError
from tests.fuzz.found import Found
from tests.fuzz.mutate import DAMAGE, splice
from tests.fuzz.reader import Reader, StateChangedError, digest

__all__ = ["FAULTS", "GOOD", "Result", "Worker", "mutant"]

GOOD = ("refused", "right", "as it stands")
FAULTS = (
    "other values",
    "foreign exception",
    "file not named",
    "crash",
    "hang",
    "memory",
    "state changed",
    "outside",
)

LINUX = sys.platform == "linux"  # elsewhere memory is neither limited nor measured
SECONDS = 20.0  # for one file
MEMORY = 100 * 2**20  # for one file below SMALL
SMALL = 2 * 2**20
ADDRESSES = 3 * 2**30  # that a worker may use above those of its start

_CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Result:
    """What came of one file.

    Attributes:
        verdict: one of :data:`GOOD` or :data:`FAULTS`.
        change: the name of the change.
        detail: the error's text, or what is wrong.
        seconds: to read it.
    """

    verdict: str
    change: str
    detail: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Mutant:
    """A changed file.

    Attributes:
        variant: of the valid files that it was made of.
        path: relative to the folder.
        content: the bytes.
        change: what was done.
        damaged: whether a checksum, if the format has one, would show the change.
    """

    variant: int
    path: Path
    content: bytes
    change: str
    damaged: bool


def mutant(reader: Reader, folders: list[Path], seed: int, index: int) -> Mutant:
    """The changed file with a number; equal seeds and numbers give equal files."""
    rng = random.Random(f"{reader.name} {seed} {index}")
    variant = rng.randrange(2)
    paths, others = reader.paths(folders[variant]), reader.paths(folders[1 - variant])
    at = rng.randrange(len(paths))
    a, b = paths[at].read_bytes(), others[at].read_bytes()
    aware = bool(reader.changes) and (not reader.damage or rng.random() < 0.5)
    change = rng.choice(reader.changes if aware else (*DAMAGE, splice))
    content, name = change(rng, a, b), change.__name__
    damaged = not aware and change is not splice
    if reader.seal is not None:
        damaged = content not in (a, b)
        if rng.random() < (0.8 if aware else 0.2):
            content, name, damaged = reader.seal(content), f"{name}, sealed", False
    return Mutant(variant, paths[at].relative_to(folders[variant]), content, name, damaged)


def replayed(reader: Reader, folders: list[Path], case: Found, name: str) -> Mutant:
    """A file that was found before."""
    path = next(path for path in reader.paths(folders[0]) if path.match(case.file))
    content = case.content(path.read_bytes())
    if not case.damaged and reader.seal is not None:
        content = reader.seal(content)
    return Mutant(0, path.relative_to(folders[0]), content, name, case.damaged)


class Worker:
    """A process that reads changed files for one reader; it is started again if it dies.

    Args:
        reader: the name of an entry of the registry.
        module: with the registry.
        seconds: time limit for one file.
    """

    def __init__(
        self, reader: str, module: str = "tests.fuzz.registry", seconds: float = SECONDS
    ) -> None:
        self.reader, self.module, self.seconds = reader, module, seconds
        self.folder = Path(tempfile.mkdtemp(prefix="hyperlight-fuzz-"))
        self._process: Any = None
        self._pipe: Any = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def file(self) -> Path:
        """The last changed file."""
        return self.folder / "mutant"

    def judge(self, seed: int, case: int | str) -> Result:
        """Read the changed file with a number, or one that was found before."""
        if self._process is None:
            self._start()
        started = time.perf_counter()
        self._pipe.send((seed, case))
        try:
            if self._pipe.poll(self.seconds):
                result: Result | str = self._pipe.recv()
                if isinstance(result, str):
                    raise RuntimeError(f"The file {case!r} cannot be made:\n{result}")
                return result
            verdict, detail = "hang", f"not done after {self.seconds:g} s"
        except (EOFError, ConnectionError):
            self._process.join(10)
            code = self._process.exitcode
            verdict = "crash"
            detail = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
        self._stop()
        change = (self.folder / "change").read_text()
        return Result(verdict, change, detail, time.perf_counter() - started)

    def _start(self) -> None:
        _CONTEXT.set_forkserver_preload([__name__, "tests.fuzz.registry"])
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self.folder / "change").touch()
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(
            target=_serve, args=(self.module, self.reader, self.folder, theirs), daemon=True
        )
        self._process.start()
        theirs.close()
        said = self._pipe.recv() if self._pipe.poll(120) else "no answer"
        if said != "ready":
            raise RuntimeError(f"The reader {self.reader!r} cannot read its valid files:\n{said}")

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _serve(module: str, name: str, root: Path, pipe: Connection) -> None:
    """The worker: make valid files, read them to import everything, then judge changed ones."""
    registry = importlib.import_module(module)
    reader, work = registry.READERS[name], root / "work"
    for stream, mode in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(root / mode, os.O_WRONLY | os.O_CREAT), stream)
    os.environ |= {"XDG_CACHE_HOME": str(work / "cache"), "HOME": str(work)}
    tempfile.tempdir = str(root / "temporary")
    Path(tempfile.tempdir).mkdir()
    os.chdir(root)
    sys.dont_write_bytecode = True
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folders = [root / "valid-0", root / "valid-1"]
    try:
        for variant, folder in enumerate(folders):
            folder.mkdir()
            reader.make(folder, variant)
        right = [[_read_valid(reader, folder, work) for folder in folders] for _ in range(2)]
        assert right[0] == right[1], "reading twice gives different values"
        before = _state()
        _read_valid(reader, folders[0], work)
        moves = _state() != before
    except BaseException:
        pipe.send(traceback.format_exc())
        raise
    hook = _Hook(root, work)
    sys.addaudithook(hook)
    if LINUX:
        limit = _status("VmSize") + ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send("ready")
    while True:
        seed, case = pipe.recv()
        random.seed(0)
        try:
            if isinstance(case, int):
                made = mutant(reader, folders, seed, case)
            else:
                made = replayed(reader, folders, registry.FOUND[name][case], case)
        except Exception:
            pipe.send(traceback.format_exc())
            continue
        (root / "change").write_text(made.change)
        (root / "mutant").write_bytes(made.content)
        _copy(folders[made.variant], work)
        (work / made.path).write_bytes(made.content)
        pipe.send(_judge(reader, made, work, right[0], hook, moves))


def _copy(folder: Path, work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(folder, work)


def _read_valid(reader: Reader, folder: Path, work: Path) -> str:
    _copy(folder, work)
    return digest(reader.read(work))


def _judge(
    reader: Reader, made: Mutant, work: Path, right: list[str], hook: _Hook, moves: bool
) -> Result:
    names = (str(work), made.path.name)
    before = _state()
    value = error = None
    resident = _watch_memory()
    started = time.perf_counter()
    with hook:
        try:
            value = digest(reader.read(work))
        except BaseException as raised:
            error = raised
    seconds = time.perf_counter() - started
    taken = _status("VmHWM") - resident

    def result(verdict: str, detail: str = "") -> Result:
        return Result(verdict, made.change, detail, seconds)

    shown = "" if error is None else "".join(traceback.format_exception_only(error)).strip()
    if hook.seen:
        return result("outside", "; ".join(sorted(set(hook.seen))))
    if isinstance(error, StateChangedError):
        return result("state changed", str(error))
    if _state() != before and not (moves and error is None):
        return result("state changed", f"random or global state; {shown[:200]}")
    if taken > MEMORY and len(made.content) < SMALL:
        return result("memory", f"{taken / 2**20:,.0f} MiB; {shown[:200]}")
    if error is not None:
        if not isinstance(error, (HyperLightError, FileNotFoundError)):
            return result("foreign exception", f"{shown[:300]}\n{_frames(error)}")
        if reader.named and not any(name in str(error) for name in names):
            return result("file not named", shown[:300])
        file = work / made.path
        if not file.is_file() or file.read_bytes() != made.content:
            return result("state changed", f"the file; {shown[:200]}")
        return result("refused", shown)
    if made.damaged and reader.rule == "refused":
        return result("other values", f"read with {'equal' if value in right else 'other'} values")
    if value in right:
        return result("right")
    if made.damaged and reader.rule == "checked":
        return result("other values", "read with other values")
    return result("as it stands")


def _frames(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    places = (f"{'/'.join(Path(f.filename).parts[-2:])}:{f.lineno} {f.name}" for f in frames[-3:])
    return " > ".join(places)


def _state() -> tuple[object, ...]:
    """What reading a file must not change for the rest of the process."""
    drawn = np.random.get_state()[1]
    assert isinstance(drawn, np.ndarray)
    return (
        digest(torch.get_rng_state()),
        torch.get_default_dtype(),
        hash(random.getstate()),
        drawn.tobytes(),
        os.getcwd(),
        getattr(sys.modules.get("PIL.Image"), "MAX_IMAGE_PIXELS", None),
    )


def _status(key: str) -> int:
    """A number of bytes that Linux counts for this process; 0 elsewhere."""
    if not LINUX:
        return 0
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{key}:")[2].split(None, 1)[0]) * 1024


def _watch_memory() -> int:
    """Set the peak of memory to what is used now, and return that."""
    if LINUX:
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


class _Hook(contextlib.AbstractContextManager["_Hook"]):
    """Notes every file that is written outside of the folder, or read outside of it and of Python,
    and every process, connection and pickle. It is active as a context."""

    def __init__(self, root: Path, work: Path) -> None:
        self.active, self.seen = False, list[str]()
        self.writable = (str(work), str(root / "temporary"))
        here = Path(__file__).parents[2]
        caches = [sys.pycache_prefix] if sys.pycache_prefix else []
        own = (str(root), str(here), sys.prefix, sys.base_prefix)
        self.readable = (*own, *caches, "/proc", "/sys", "/dev")

    def __enter__(self) -> _Hook:
        self.seen.clear()
        self.active = True
        return self

    def __exit__(self, *_: object) -> None:
        self.active = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event == "open":
            writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            self._check("writes" if writes else "reads", arguments[0])
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod"):
            if arguments[-1] in (-1, None) or event == "os.truncate":  # not relative to a folder
                self._check("changes", arguments[0])
        elif event in ("os.rename", "os.link", "os.symlink"):
            self._check("makes", arguments[1])
        elif event in ("subprocess.Popen", "os.exec", "os.fork", "os.system", "socket.connect"):
            self.seen.append(event)
        elif event == "pickle.find_class":
            self.seen.append(f"pickle {arguments}")

    def _check(self, verb: str, path: Any) -> None:
        if isinstance(path, int):  # of a file that is open
            return
        with contextlib.suppress(ValueError):  # a name with a zero, which the system refuses
            real = os.path.realpath(os.fsdecode(path))
            allowed = self.readable if verb == "reads" else self.writable
            if not any(real == top or real.startswith(top + os.sep) for top in allowed):
                self.seen.append(f"{verb} {real}")
