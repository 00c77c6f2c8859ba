"""``python -m tests.kills``: kill real trainings and studies at random moments, again and again.

Starts ``python -m hyperlight`` in processes of their own, ends them by a signal at a moment that is
uniformly distributed over the time of a whole run, and repeats the same command until it ends by
itself. What it leaves is then compared with what an uninterrupted process left: losses, gradient
norms, figures and models to the bit, and the names of all files. Most signals are SIGKILL.

Prints a table, and ends with status 1 if a run was lost or has other numbers.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from hyperlight.lab.files import read_sealed
from tests.lab.making import equal_values

_SMALL = ["--seeds", "1", "--device", "cpu", "--hidden", "4", "8", "--evaluation-gammas", "2"]
# A checkpoint after every step.
_SHORT = ["--steps", "150", "--evaluate-every", "50", "--checkpoint-seconds", "0"]
_UNET = ["--levels", "2", "--channels", "4", "--batch-size", "4"]

# Arguments by name; {out} is the folder of a run.
CASES: dict[str, list[str]] = {
    "bayes": [
        *("train", "bayes", *_SMALL, *_SHORT, "--batch-size", "16", "--evaluation-images", "40"),
        *("--out", "{out}/run"),
    ],
    "hypermorph": [
        *("train", "hypermorph", *_SMALL, *_SHORT, *_UNET, "--size", "16", "16"),
        *("--evaluation-pairs", "4", "--final-pairs", "8", "--tune-steps", "2"),
        *("--out", "{out}/run"),
    ],
    "scale-space": [
        *("train", "scale-space", *_SMALL, *_SHORT, *_UNET, "--size", "16", "16"),
        *("--evaluation-images", "10", "--final-images", "10", "--out", "{out}/run"),
    ],
    "study": [
        *("study", "fig1a", "--size", "smoke", "--device", "cpu"),
        *("--out", "{out}/run", "--cache", "{out}/cache"),
    ],
}
SIGNALS = (*[signal.SIGKILL] * 8, signal.SIGTERM, signal.SIGINT)
PHASES = ("start", "training", "report")
PATIENCE = 600.0
# A run that needs more starts than this is lost: at uniformly random moments it needs about five.
MOST_STARTS = 60

# What differs between two runs of the same command: times, dates, the numbers of resumptions, and
# the checksums of files that hold these.
_TIMES = {"seconds", "waiting", "resumed", "provenance", "wall_seconds", "training_seconds"}
_TIMES |= {"made_by", "sha256"}
_MILLISECONDS = "ms per image"
_UNEQUAL = {"times.csv", "config.json", "report.html", "report.md", "figure.svg"}


def start(arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start ``python -m hyperlight``; what it prints is appended to a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "hyperlight", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env=environment,
        )


def contents(folder: Path) -> dict[str, Any]:
    """Everything in a folder that does not depend on the time, by the name of the file."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or "tensorboard" in path.parts:
            continue
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".json" and path.name not in _UNEQUAL:
            if path.name == "record.json":
                read_sealed(path)  # its checksum is right
            found[name] = _without_times(json.loads(path.read_text("utf-8")))
        elif path.suffix == ".csv" and path.name not in _UNEQUAL:
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            found[name] = [_without_times(row) for row in rows if not _timed(row.values())]
        elif path.suffix == ".safetensors":
            found[name] = path.read_bytes()
        else:
            found[name] = None  # the name alone counts
    return found


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in _TIMES and not _timed([k])}
        return {k: _without_times(v) for k, v in kept.items()}
    if isinstance(value, list) and len(value) == 3 and isinstance(value[0], str):
        title, heading, rows = value  # a table of a task's outcome
        return [title, [_without_times(dict(zip(heading, row, strict=True))) for row in rows]]
    return [_without_times(v) for v in value] if isinstance(value, list) else value


def _timed(names: Iterable[Any]) -> bool:
    """Whether one of the names is that of a figure in milliseconds."""
    return any(isinstance(name, str) and _MILLISECONDS in name for name in names)


def differences(found: dict[str, Any], expected: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Names of the files that are missing or have other numbers, and of those that are left over.

    Args:
        found: what :func:`contents` returned for an interrupted run.
        expected: the same for an uninterrupted one.
    """
    other = [n for n in expected if n not in found or not equal_values(found[n], expected[n])]
    return other, [name for name in found if name not in expected]


def phase(folder: Path) -> str:
    """How far a command got: before its first checkpoint, in training, or after some run of it."""
    if any(folder.rglob("checkpoint.safetensors")):
        return "training"
    return "report" if any(folder.rglob("record.json")) else "start"


@dataclass
class Trial:
    """A command that was repeated until it ended.

    Attributes:
        case: its name.
        starts: how often it was started.
        kills: number of signals by :data:`PHASES`.
        signals: number of signals by name.
        ended: whether it ended by itself with status 0.
        other: files that are missing or have other numbers.
        leftovers: files that an uninterrupted run does not leave.
        tracebacks: number of tracebacks that it printed.
        last: the last of them.
        seconds: time of all starts together.
    """

    case: str
    starts: int = 0
    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PHASES, 0))
    signals: dict[str, int] = field(default_factory=dict)
    ended: bool = False
    other: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    tracebacks: int = 0
    last: str = ""
    seconds: float = 0.0

    @property
    def killed(self) -> int:
        """Number of signals."""
        return sum(self.kills.values())

    @property
    def right(self) -> bool:
        """Whether it ended with the numbers of an uninterrupted run."""
        return self.ended and not self.other


def attempt(
    case: str,
    length: float,
    expected: dict[str, Any],
    budget: int,
    draw: random.Random,
    place: Path,
) -> Trial:
    """Repeat a command until it ends, with at most ``budget`` signals.

    Args:
        case: one of :data:`CASES`.
        length: seconds that an uninterrupted command takes.
        expected: what it leaves, see :func:`contents`.
        budget: the most signals to send.
        draw: draws the moments and the signals.
        place: an empty folder.
    """
    trial, log, out = Trial(case), place / "log", place / "out"
    arguments = [part.format(out=out) for part in CASES[case]]
    began = time.monotonic()
    while trial.starts < MOST_STARTS:
        trial.starts += 1
        process, sent = start(arguments, log), False
        try:
            # Later and later, so that a machine that became slow gets through as well.
            moment = draw.uniform(0.0, length * (1.0 + 0.1 * trial.killed))
            if trial.killed < budget and not _ends_within(process, moment):
                number = draw.choice(SIGNALS)
                process.send_signal(number)
                sent = True
                trial.kills[phase(out)] += 1
                trial.signals[number.name] = trial.signals.get(number.name, 0) + 1
            status = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            break
        finally:
            process.kill()
            process.wait()
        trial.ended = status == 0
        if trial.ended:
            trial.other, trial.leftovers = differences(contents(out), expected)
        if trial.ended or not sent:
            break
    said = log.read_text("utf-8", "replace").split("Traceback (most recent call last)")
    trial.tracebacks, trial.last = len(said) - 1, said[-1][:3000] if said[1:] else ""
    trial.seconds = time.monotonic() - began
    return trial


def _ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def uninterrupted(case: str, place: Path) -> tuple[float, dict[str, Any]]:
    """The seconds that a command takes, and what it leaves.

    Raises:
        RuntimeError: it fails.
    """
    began = time.monotonic()
    log = place / "log"
    status = start([part.format(out=place / "out") for part in CASES[case]], log).wait(PATIENCE)
    if status:
        raise RuntimeError(f"{case} ended with status {status}:\n{log.read_text('utf-8')}")
    return time.monotonic() - began, contents(place / "out")


def measure(count: int, seed: int, cases: Sequence[str], console: Console) -> list[Trial]:
    """Take the cases in turns until ``count`` signals are sent, and every command has ended."""
    draw = random.Random(seed)
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory() as name:
        lengths, expected = {}, {}
        for case in cases:
            place = Path(name) / case
            place.mkdir()
            lengths[case], expected[case] = uninterrupted(case, place)
            console.print(f"{case}: {lengths[case]:.1f} s uninterrupted", highlight=False)
        left = count
        while left > 0:
            case = cases[len(trials) % len(cases)]
            place = Path(name) / f"trial{len(trials)}"
            place.mkdir()
            trial = attempt(case, lengths[case], expected[case], left, draw, place)
            trials.append(trial)
            left -= trial.killed
            if not trial.killed:  # how long a command takes depends on what else the machine does
                lengths[case] = trial.seconds
            console.print(_line(trial), highlight=False)
            if not trial.right:
                console.print((place / "log").read_text("utf-8", "replace")[-3000:], markup=False)
    return trials


def _line(trial: Trial) -> str:
    end = "right" if trial.right else "other numbers" if trial.ended else "lost"
    files = f" ({', '.join(trial.other)})" if trial.other else ""
    more = f", left over: {', '.join(trial.leftovers)}" if trial.leftovers else ""
    return f"{trial.case}: {trial.killed} signals in {trial.starts} starts, {end}{files}{more}"


def table(trials: Sequence[Trial]) -> Table:
    """Count what happened, by case and in all; files are left over, traces are tracebacks."""
    title = "Runs that were killed (in which phase) and repeated"
    made = Table(title=title, title_justify="left", box=SIMPLE, padding=0)
    heading = ["", "runs", "kills", *PHASES]
    heading += ["right", "lost", "differ", "files", "traces"]
    for name in heading:
        made.add_column(name, justify="right" if name else "left")
    for case in [*dict.fromkeys(trial.case for trial in trials), "all"]:
        group = [trial for trial in trials if case in (trial.case, "all")]
        numbers = [
            len(group),
            sum(trial.killed for trial in group),
            *(sum(trial.kills[name] for trial in group) for name in PHASES),
            sum(trial.right for trial in group),
            sum(not trial.ended for trial in group),
            sum(trial.ended and bool(trial.other) for trial in group),
            sum(len(trial.leftovers) for trial in group),
            sum(trial.tracebacks for trial in group),
        ]
        made.add_row(case, *map(str, numbers))
    return made


def write(path: Path, trials: Sequence[Trial]) -> None:
    """Write a row per command as csv."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow([f.name for f in dataclasses.fields(Trial) if f.name != "last"])
        for t in trials:
            kills = " ".join(f"{name}:{count}" for name, count in t.kills.items())
            signals = " ".join(f"{name}:{count}" for name, count in t.signals.items())
            files = [" ".join(t.other), " ".join(t.leftovers)]
            ends = [t.tracebacks, f"{t.seconds:.1f}"]
            rows.writerow([t.case, t.starts, kills, signals, t.ended, *files, *ends])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurement; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="number of signals")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the signals")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--out", type=Path, help="csv file with a row per command")
    chosen = parser.parse_args(arguments)
    console = Console()
    trials = measure(chosen.count, chosen.seed, chosen.cases, console)
    for trial in trials:
        if trial.last:
            console.print(f"{trial.case} printed a traceback:{trial.last}", markup=False)
    console.print(table(trials))
    if chosen.out is not None:
        write(chosen.out, trials)
    return 0 if all(trial.right for trial in trials) else 1


if __name__ == "__main__":
    sys.exit(main())
