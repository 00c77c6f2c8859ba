"""``python -m tests.fuzz``: read changed files and print what came of them."""

from __future__ import annotations

import argparse
import csv
import shutil
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.fuzz.judge import FAULTS, GOOD, Result, Worker
from tests.fuzz.registry import READERS


def main() -> int:
    """Read changed files until the time or the number is reached; return 1 if there are faults."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, help="in all (default: 1, if no --files)")
    parser.add_argument("--files", type=int, help="in all")
    parser.add_argument("--reader", action="append", choices=READERS, help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--index", type=int, help="only the file with this number")
    parser.add_argument("--out", type=Path, help="write the table as csv")
    parser.add_argument("--keep", type=Path, help="folder for the files that show faults")
    asked = parser.parse_args()
    names = asked.reader or list(READERS)
    minutes = asked.minutes if asked.minutes or asked.files else 1.0
    console = Console(soft_wrap=True, highlight=False)
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    seen: Counter[tuple[str, str, str]] = Counter()

    for name in names:
        first, last = 0, -(-asked.files // len(names)) if asked.files else None
        if asked.index is not None:
            first, last = asked.index, asked.index + 1
        until = time.monotonic() + 60.0 * minutes / len(names) if minutes else None
        with Worker(name) as worker:
            index = first
            while (last is None or index < last) and (until is None or time.monotonic() < until):
                result = worker.judge(asked.seed, index)
                counts[name][result.verdict] += 1
                if asked.index is not None or result.verdict in FAULTS:
                    _show(console, name, asked.seed, index, result, seen)
                    if asked.keep:
                        asked.keep.mkdir(parents=True, exist_ok=True)
                        shutil.copy(worker.file, asked.keep / f"{name}-{asked.seed}-{index}")
                index += 1

    console.print(_table(counts))
    if asked.out:
        with asked.out.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["reader", "files", *GOOD, *FAULTS])
            for name, found in counts.items():
                writer.writerow([name, found.total(), *(found[v] for v in (*GOOD, *FAULTS))])
    return int(any(found[verdict] for found in counts.values() for verdict in FAULTS))


def _show(
    console: Console,
    name: str,
    seed: int,
    index: int,
    result: Result,
    seen: Counter[tuple[str, str, str]],
) -> None:
    """Print a fault, and only the first three of those that look the same."""
    kind = name, result.verdict, result.detail[-60:] or result.change
    seen[kind] += 1
    if seen[kind] <= 3:
        where = f"--reader {name} --seed {seed} --index {index}"
        console.print(f"{result.verdict}: {result.change}: {where}", markup=False)
        text = "".join(c if c.isprintable() or c == "\n" else "?" for c in result.detail.strip())
        console.print(f"    {text}", markup=False, style="dim")


def _table(counts: dict[str, Counter[str]]) -> Table:
    table = Table()
    table.add_column("reader")
    for title in ("files", *GOOD, "faults"):
        table.add_column(title, justify="right")
    for name, found in counts.items():
        faults = ", ".join(f"{found[verdict]} {verdict}" for verdict in FAULTS if found[verdict])
        row = [found.total(), *(found[verdict] for verdict in GOOD)]
        table.add_row(name, *map(str, row), faults or "0")
    return table


if __name__ == "__main__":
    raise SystemExit(main())
