"""``python -m benchmarks``: a table in minutes; ``--all``: all workloads and subjects."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from . import report
from .environments import BUILD
from .run import Measured, Settings, head_weights, measure
from .subjects import QUICK, QUICK_CUDA, SUBJECTS, choose
from .workloads import WORKLOADS

__all__ = ["main"]

# The workloads of the table in docs/benchmarks.md.
SHORT = ("W1", "W2", "W3")

# A file gets long lines unbroken.
console = Console(width=None if sys.stdout.isatty() else 200)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _recorded(words: Sequence[str]) -> str:
    """The command without ``--out``: a folder on one machine means nothing on another."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--out":
            next(rest, None)
        elif not word.startswith("--out="):
            kept.append(word)
    return shlex.join(["python", "-m", "benchmarks", *kept])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Ratios of HyperLight and other libraries to the plain network, in one "
        "interleaved run. Without --workload, --subject or --all: training steps of three "
        "networks, in minutes. More benchmarks: `python -m benchmarks mnist --help` (time to 95 % "
        "on MNIST), `scaling --help` (cost per step in every size), `pays --help` (steps from "
        "factors), `wire --help` (bytes between processes).",
    )
    shown = ", ".join(WORKLOADS)
    parser.add_argument(
        *("--workload", "-w"),
        type=_names,
        default=[],
        help=f"some of {shown}, separated by commas; with --subject alone, all but smoke, "
        "smoke-samples",
    )
    parser.add_argument("--all", action="store_true", help="all workloads and subjects: hours")
    parser.add_argument(
        *("--subject", "-s"),
        type=_names,
        default=[],
        help=f"families ({', '.join(dict.fromkeys(s.family for s in SUBJECTS.values()))}) or "
        f"single subjects ({', '.join(SUBJECTS)}), separated by commas",
    )
    usual = Settings()
    parser.add_argument("--rounds", type=int, default=usual.rounds, help="turns per subject")
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="length of one turn")
    parser.add_argument("--threads", type=int, default=usual.threads)
    parser.add_argument("--device", choices=("cpu", "cuda"), default=usual.device)
    parser.add_argument("--out", type=Path, default=BUILD / "results", help="folder for the files")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; return 1 if a subject failed without being skipped on purpose."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["wire"]:
        from .wire import main as run_wire

        return run_wire(words[1:])
    if words[:1] == ["mnist"]:
        from .mnist import main as run_mnist

        return run_mnist(words[1:])
    if words[:1] == ["scaling"]:
        from .scaling import main as run_scaling

        return run_scaling(words[1:])
    if words[:1] == ["pays"]:
        from .pays import main as run_pays

        return run_pays(words[1:])
    parser = _parser()
    given = parser.parse_args(words)
    if given.all and (given.workload or given.subject):
        parser.error("--all takes all workloads and subjects; leave out --workload and --subject.")
    quick = not (given.all or given.workload or given.subject)
    if quick:
        given.workload = list(SHORT)
        given.subject = list(QUICK if given.device == "cpu" else QUICK_CUDA)
    elif not given.workload:
        given.workload = [name for name in WORKLOADS if not name.startswith("smoke")]
    for name in given.workload:
        if name not in WORKLOADS:
            parser.error(f"--workload was {name!r}; expected some of {', '.join(WORKLOADS)}.")
    if given.rounds < 1 or given.threads < 1 or not given.seconds > 0.0:
        parser.error(
            "--rounds and --threads take whole numbers from 1, --seconds a number above 0."
        )
    settings = Settings(given.rounds, given.seconds, given.threads, given.device)
    rows: list[Measured] = []
    for name in given.workload:
        workload = WORKLOADS[name]
        try:
            subjects = choose(workload, given.subject)
        except ValueError as error:
            parser.error(str(error))
        found = measure(workload, subjects, settings, say=lambda line: print(line, file=sys.stderr))
        rows.extend(found)
        console.print(report.table(f"{name}: {workload.title}", found))
        for against in (
            report.peer_table(f"{name} against the peers", found),
            report.shared_table(f"{name}: one gamma per sample against one for the batch", found),
            report.heads_table(f"{name}: size, time and memory", found, head_weights(workload)),
        ):
            if against is not None:
                console.print(against)
        report.write(given.out, rows, _recorded(words))
    if quick:
        console.print(report.short_table(rows))
    print(f"written to {given.out}: timings.csv, provenance.json, ratios.svg")
    return int(any(r.error and not r.error.startswith("skipped") for r in rows))


if __name__ == "__main__":
    sys.exit(main())
