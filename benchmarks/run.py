"""All subjects of a workload in one interleaved run.

Every subject is a process that works only on request, one at a time, in an order that rotates from
round to round. A ratio compares two turns of the same round, so a machine that slows down slows
both.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import hyperlight as hl
from hyperlight.memory import as_text, available_memory

from .environments import ROOT, interpreter, variables
from .floor import floor_bytes
from .subjects import SUBJECTS, Subject
from .workloads import HEADS, HIDDEN, Workload

__all__ = ["Measured", "Settings", "free_memory", "head_entries", "head_weights", "measure"]

PLAIN, FLOOR, SHARED = "plain/fused", "floor", "ours-shared/fused"
_ERROR = re.compile(r"[\w.]+(Error|Exception): ")  # where the message of an exception begins
PROCESS = 400 * 2**20  # memory of Python and PyTorch themselves


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        rounds: turns of every subject.
        seconds: approximate length of a turn; a turn has at least one step.
        threads: PyTorch threads of every subject.
        device: ``"cpu"`` or ``"cuda"``.
        patience: seconds to wait for an answer before giving a subject up.
    """

    rounds: int = 9
    seconds: float = 0.3
    threads: int = 2
    device: str = "cpu"
    patience: float = 600.0


@dataclass
class Measured:
    """One subject on one workload.

    Attributes:
        workload: its name.
        subject: its name.
        title: the subject in words.
        seconds: seconds per step, one per round.
        plain: seconds per step of the plain network in the same rounds.
        peak: peak memory of the whole process, in bytes.
        base: the same before the subject was built.
        error: why there are no numbers.
    """

    workload: str
    subject: str
    title: str
    seconds: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    peak: int | None = None
    base: int | None = None
    error: str | None = None


class SubjectError(Exception):
    """A subject failed."""


class Process:
    """A subject in its own process, which works on request."""

    def __init__(self, name: str, python: Path, workload: Workload, settings: Settings) -> None:
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in close)
        self.patience = settings.patience
        requirement = SUBJECTS[name].requirement if name in SUBJECTS else None
        options = {
            "workload": workload.name,
            "subject": name,
            "threads": settings.threads,
            "device": settings.device,
            "entries": head_entries(workload) if name == FLOOR else 0,
        }
        words = [part for key, value in options.items() for part in (f"--{key}", str(value))]
        self.process = subprocess.Popen(
            [str(python), "-m", "benchmarks.worker", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            cwd=ROOT,
            env=variables(requirement),
        )

    def read(self) -> dict[str, Any]:
        """Read the next answer.

        Raises:
            SubjectError: the process ended, or did not answer in time.
        """
        assert self.process.stdout is not None
        timer = threading.Timer(self.patience, self.process.kill)
        timer.start()
        try:
            line = self.process.stdout.readline()
        finally:
            late = not timer.is_alive()
            timer.cancel()
        if not line:
            self.process.wait()
            self.log.seek(0)
            said = [text.strip() for text in self.log.read().splitlines() if text.strip()]
            if late:
                raise SubjectError(f"no answer for {self.patience:g} seconds")
            errors = [number for number, line in enumerate(said) if _ERROR.match(line)]
            last = " ".join(said[errors[-1] if errors else -1 :]) or "it said nothing"
            raise SubjectError(f"ended with status {self.process.returncode}: {last[:300]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def order(self, **content: Any) -> dict[str, Any]:
        """Send an order and wait for the answer."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # read() finds the reason
            print(json.dumps(content), file=self.process.stdin, flush=True)
        return self.read()

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self.log.close()


def _summary(workload: Workload, hidden: Any = "auto") -> hl.Summary:
    with torch.device("meta"):
        primary = workload.primary()
    spaces = {"gamma": hl.Uniform(0.0, 1.0)}
    return hl.hypernetize(primary, spaces, hidden=hidden, device="meta").summary()


def head_entries(workload: Workload) -> int:
    """Number of weights of the default head for the workload."""
    return _summary(workload).head.parameters


def head_weights(workload: Workload) -> dict[str, int]:
    """Number of weights of every head of the library for the workload, by subject."""
    found = {}
    for name, kind in HEADS.items():
        with torch.device("meta"):
            primary = workload.primary()
        spaces = {"gamma": hl.Uniform(0.0, 1.0)}
        model = hl.hypernetize(primary, spaces, head=getattr(hl, kind)(), device="meta")
        found[f"{name}-shared/fused"] = model.summary().head.parameters
    return found


def _memory(subject: Subject, workload: Workload) -> int:
    """Memory that a subject needs, without activations, in bytes."""
    single = subject.family.removesuffix("-shared").removesuffix("-samples")
    if single in HEADS and single != "dense":
        return PROCESS + _summary(workload).primary.bytes * 16
    small = ("plain", "ours-rank4", "ours-rank8", "hypnettorch-chunked", "vmap", "patched")
    dense = subject.family not in small and not subject.family.startswith("ours-s")
    if workload.kind in ("sweep", "bind") or not dense:
        return PROCESS + _summary(workload).primary.bytes * 16
    narrow = subject.family == "ours" or single in HEADS or subject.family.endswith("-narrow")
    return PROCESS + int(_summary(workload, "auto" if narrow else HIDDEN).bytes * subject.copies)


def free_memory(device: torch.device) -> int:
    """Memory that is free now, in bytes."""
    most = available_memory(device)
    found = [most] if most is not None else []
    if device.type == "cpu":
        try:
            for line in Path("/proc/meminfo").read_text().splitlines():
                if line.startswith("MemAvailable:"):
                    found.append(1024 * int(line.split()[1]))
        except OSError:
            pass
    return min(found) if found else 2**62


def _groups(needs: Mapping[str, int], free: int) -> list[list[str]]:
    """Split the names, in order, into groups that fit in memory together."""
    groups: list[list[str]] = []
    held = 0
    for name, need in needs.items():
        if not groups or held + need > free:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += need
    return groups


def measure(
    workload: Workload,
    subjects: Sequence[Subject],
    settings: Settings,
    *,
    pythons: Mapping[str, Path] | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> list[Measured]:
    """Measure all subjects, the plain network and the floor.

    A subject that fails or does not fit in memory is reported with the reason; the others go on. If
    they do not fit together, they run in groups, each with its own plain network.

    Args:
        workload: what to run.
        subjects: which subjects to run.
        settings: how to measure.
        pythons: interpreters by subject name; by default :func:`interpreter` provides them.
        say: called with a line on every event.

    Returns:
        The plain network, the floor (of a training step only), then the subjects in order.
    """
    device = torch.device(settings.device)
    plain = Measured(workload.name, PLAIN, SUBJECTS[PLAIN].title)
    floor = Measured(workload.name, FLOOR, "floor: plain network, and 7 passes over the head")
    optimized = workload.kind in ("train", "each", "samples")
    rows = {
        subject.name: Measured(
            workload.name,
            subject.name,
            subject.title if optimized else subject.without_optimizer,
        )
        for subject in subjects
    }
    with_floor = workload.kind == "train"
    kept = PROCESS + _summary(workload).primary.bytes * 8
    if with_floor:
        kept += PROCESS + floor_bytes(head_entries(workload))
    free = int(0.9 * free_memory(device)) - kept
    needs = {}
    for subject in subjects:
        need = _memory(subject, workload)
        if need > free:
            rows[
                subject.name
            ].error = (
                f"skipped: needs about {as_text(need)} of memory; {as_text(max(free, 0))} are free"
            )
            say(f"{workload.name} {subject.name}: {rows[subject.name].error}")
        else:
            needs[subject.name] = need
    first = True
    for group in _groups(needs, free) or [[]]:
        always = [plain, floor] if with_floor and first else [plain]
        _measure_group(workload, [*always, *(rows[n] for n in group)], settings, pythons, say)
        first = False
    return [plain, *([floor] if with_floor else []), *rows.values()]


def _measure_group(
    workload: Workload,
    rows: Sequence[Measured],
    settings: Settings,
    pythons: Mapping[str, Path] | None,
    say: Callable[[str], object],
) -> None:
    """Measure the subjects of ``rows``, the plain network first, and fill in their numbers."""
    processes: dict[str, Process] = {}
    steps: dict[str, int] = {}
    times: dict[str, list[float]] = {row.subject: [] for row in rows}

    def fail(row: Measured, error: Exception) -> None:
        row.error = str(error)
        say(f"{workload.name} {row.subject}: {error}")
        if row.subject in processes:
            processes.pop(row.subject).close()

    try:
        for row in rows:
            say(f"{workload.name} {row.subject}: getting ready")
            subject = SUBJECTS.get(row.subject)
            try:
                python = (pythons or {}).get(row.subject) or interpreter(
                    subject.requirement if subject else None
                )
                processes[row.subject] = Process(row.subject, python, workload, settings)
                once = processes[row.subject].read()["seconds"]
                steps[row.subject] = max(1, math.ceil(settings.seconds / max(once, 1e-7)))
                processes[row.subject].order(run=steps[row.subject])
            except (SubjectError, OSError, RuntimeError) as error:
                fail(row, error)
        for number in range(settings.rounds):
            say(f"{workload.name}: round {number + 1} of {settings.rounds}")
            turn = number % max(len(rows), 1)
            for row in (*rows[turn:], *rows[:turn]):
                name = row.subject
                if name not in processes:
                    continue
                try:
                    times[name].append(
                        processes[name].order(run=steps[name])["seconds"] / steps[name]
                    )
                except SubjectError as error:
                    fail(row, error)
        for row in rows:
            if row.subject in processes:
                try:
                    found = processes[row.subject].order(stop=True)
                    row.peak, row.base = found["peak"], found["base"]
                except SubjectError as error:
                    fail(row, error)
    finally:
        for process in processes.values():
            process.close()
    plain = times[PLAIN]
    for row in rows:
        if row.error is None and plain:
            row.seconds = times[row.subject]
            if row.subject == FLOOR:  # add the plain network's own step to the floor's passes
                row.seconds = [a + b for a, b in zip(row.seconds, plain, strict=True)]
            row.plain = list(plain[: len(row.seconds)])
        elif row.error is None:
            row.error = "the plain network failed"
