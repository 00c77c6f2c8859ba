"""From seconds to ratios: tables for a terminal, csv, provenance and a figure."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.table import Table

import hyperlight
from hyperlight.lab import figures
from hyperlight.lab.files import write_text

from .run import FLOOR, PLAIN, SHARED, Measured
from .subjects import PEERS, SUBJECTS

__all__ = [
    "Spread",
    "fastest",
    "heads_table",
    "multiples",
    "overhead",
    "peer_table",
    "provenance",
    "shared_table",
    "short_table",
    "table",
    "write",
]


class Spread:
    """Median and range of some numbers.

    >>> print(Spread([1.0, 4.0, 2.0]))
    2.00 (1.00 to 4.00)
    """

    def __init__(self, values: Sequence[float]) -> None:
        self.median = statistics.median(values)
        self.low, self.high = min(values), max(values)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def multiples(row: Measured) -> Spread | None:
    """A step's time as a multiple of the plain network's in the same round."""
    if not row.seconds:
        return None
    return Spread([s / p for s, p in zip(row.seconds, row.plain, strict=True)])


def fastest(row: Measured) -> float | None:
    """The fastest turn as a multiple of the plain network's fastest.

    Shown beside the median: on a busy machine the fastest turns are those that nothing disturbed.
    """
    return min(row.seconds) / min(row.plain) if row.seconds else None


def overhead(row: Measured, other: Measured) -> float | None:
    """The time added to the plain network, as a fraction of what another subject adds.

    Computed from the medians of the ratios to the plain network in the same round. ``None`` if one
    of the two has no numbers, or the other has no overhead.
    """
    own, theirs = multiples(row), multiples(other)
    if own is None or theirs is None or theirs.median <= 1.0:
        return None
    return (own.median - 1.0) / (theirs.median - 1.0)


def _peer(row: Measured) -> bool:
    subject = SUBJECTS.get(row.subject)
    by_hand = ("functional-call", "vmap", "patched")
    return subject is not None and (subject.family in PEERS or subject.family in by_hand)


def _table(title: str, heading: Sequence[str]) -> Table:
    made = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(heading):
        made.add_column(column, justify="right" if number else "left", overflow="fold")
    return made


def table(title: str, rows: Sequence[Measured]) -> Table:
    """Time, ratio to the plain network and peak memory of every subject of one workload."""
    made = _table(
        title,
        (
            "",
            "ms, median (range)",
            "x plain network, median (range)",
            "fastest",
            "peak MB",
            "above base",
        ),
    )
    for row in rows:
        ratio = multiples(row)
        if ratio is None:
            made.add_row(row.title, f"no numbers: {row.error}", "", "", "", "")
            continue
        peak = "" if row.peak is None else f"{row.peak / 1e6:,.0f}"
        above = (
            "" if row.peak is None or row.base is None else f"{(row.peak - row.base) / 1e6:,.0f}"
        )
        shown = ("", "") if row.subject == FLOOR else (peak, above)
        times = Spread([1e3 * s for s in row.seconds])
        made.add_row(row.title, str(times), str(ratio), f"{fastest(row):.2f}", *shown)
    return made


def peer_table(title: str, rows: Sequence[Measured]) -> Table | None:
    """HyperLight and the floor against every peer: ratios of times, and of added times."""
    peers = [row for row in rows if _peer(row) and row.seconds]
    others = [r for r in rows if not _peer(r) and r.subject != PLAIN and r.seconds]
    if not peers or not others:
        return None
    made = _table(
        title, ("time / time of the peer; overhead / its overhead", *(r.title for r in others))
    )
    for peer in peers:
        cells = []
        for row in others:
            own, theirs = multiples(row), multiples(peer)
            assert own is not None
            assert theirs is not None
            added = overhead(row, peer)
            more = "" if added is None else f"; {added:.2f}"
            cells.append(f"{own.median / theirs.median:.2f}{more}")
        made.add_row(peer.title, *cells)
    return made


def short_table(rows: Sequence[Measured]) -> Table:
    """One row for every subject, one column for every workload: the table of docs/benchmarks.md."""
    workloads = list(dict.fromkeys(row.workload for row in rows))
    titles = list(dict.fromkeys(row.title for row in rows if row.subject != PLAIN))
    heading = [f"{name}, {what}" for what in ("x plain", "peak") for name in workloads]
    made = _table(
        "A training step and its memory, as multiples of the plain network's", ("", *heading)
    )
    found = {(row.title, row.workload): row for row in rows}
    bases = {row.workload: row.peak for row in rows if row.subject == PLAIN}
    for title in titles:
        times, peaks = [], []
        for name in workloads:
            row = found.get((title, name))
            ratio, base = None if row is None else multiples(row), bases.get(name)
            times.append("" if ratio is None else f"{ratio.median:.2f}")
            known = row is not None and row.peak and base and row.subject != FLOOR and ratio
            peaks.append(f"{row.peak / base:.2f}" if known else "")  # type: ignore[union-attr,operator]
        made.add_row(title, *times, *peaks)
    return made


def shared_table(title: str, rows: Sequence[Measured]) -> Table | None:
    """Steps of subjects with one gamma per sample over that of one gamma for the whole batch."""
    shared = next((row for row in rows if row.subject == SHARED and row.seconds), None)
    if shared is None:
        return None
    made = _table(title, ("", "x shared weights, median (range)"))
    for row in rows:
        if row.subject in (SHARED, PLAIN, FLOOR):
            continue
        if not row.seconds:
            made.add_row(row.title, f"no numbers: {row.error}")
            continue
        pairs = zip(row.seconds, shared.seconds, strict=True)
        made.add_row(row.title, str(Spread([own / one for own, one in pairs])))
    return made


def heads_table(title: str, rows: Sequence[Measured], weights: Mapping[str, int]) -> Table | None:
    """Size, time and memory of every head, with one gamma for the batch and with one per sample.

    Args:
        title: of the table.
        rows: what was measured.
        weights: how many a subject's head has, by the name of the subject.
    """
    found = {row.subject: row for row in rows}
    pairs = [
        (name, row, found.get(name.replace("-shared/", "-samples/")))
        for name, row in found.items()
        if name in weights and "-shared/" in name
    ]
    if not pairs:
        return None
    plain = found[PLAIN].peak
    heading = ("head", "its weights", "MB")
    cells = ("one gamma, x plain", "per sample, x plain", "per sample / one gamma")
    made = _table(title, (*heading, *cells, "peak memory, x plain: one", "per sample"))
    for name, one, many in pairs:
        ratios = ["", "", ""]
        for place, row in enumerate((one, many)):
            ratio = None if row is None else multiples(row)
            ratios[place] = "no numbers" if ratio is None else str(ratio)
        if many is not None and one.seconds and many.seconds:
            both = zip(many.seconds, one.seconds, strict=True)
            ratios[2] = f"{Spread([a / b for a, b in both]).median:.2f}"
        peaks = [
            f"{row.peak / plain:.2f}" if row is not None and row.peak and plain else ""
            for row in (one, many)
        ]
        size = weights[name]
        head = SUBJECTS[name].without_optimizer
        made.add_row(head, f"{size:,}", f"{4 * size / 1e6:,.1f}", *ratios, *peaks)
    return made


def provenance(command: str) -> dict[str, str]:
    """Versions, the command, and the machine without its name."""
    model = platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return {
        "command": command,
        "hyperlight": hyperlight.__version__,
        "torch": torch.__version__,
        "numpy": metadata.version("numpy"),
        **{f"{name} (peer)": at for name, at in (r.split("==") for r in PEERS.values())},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": model,
        "cores": str(os.cpu_count()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def as_csv(rows: Sequence[Measured]) -> str:
    """One line per subject and round; one line with the error for a subject without numbers."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        (
            *("workload", "subject", "round", "seconds", "plain_seconds"),
            *("peak_bytes", "base_bytes", "error"),
        )
    )
    for row in rows:
        end = (row.peak, row.base, row.error)
        for number, (own, plain) in enumerate(zip(row.seconds, row.plain, strict=True)):
            writer.writerow((row.workload, row.subject, number, own, plain, *end))
        if not row.seconds:
            writer.writerow((row.workload, row.subject, "", "", "", *end))
    return buffer.getvalue()


def picture(rows: Sequence[Measured]) -> Figure:
    """Bars: a step of every subject as a multiple of the plain network's, with its range."""
    shown = [row for row in rows if row.seconds and row.subject != PLAIN]
    names = list(dict.fromkeys(row.workload for row in shown))
    per = {name: [row for row in shown if row.workload == name] for name in names}
    heights = [max(len(per[name]), 1) for name in names] or [1]
    figure = Figure(
        figsize=(8.0, 1.0 + 0.28 * sum(heights) + 0.4 * len(heights)), layout="constrained"
    )
    axes = figure.subplots(max(len(names), 1), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, name in zip(axes, names, strict=False):
        for position, row in enumerate(per[name]):
            ratio = multiples(row)
            assert ratio is not None
            color = "#d55e00" if _peer(row) else "#999999" if row.subject == FLOOR else "#0072b2"
            ax.barh(position, ratio.median, color=color, height=0.7)
            ax.plot([ratio.low, ratio.high], [position, position], color="black", linewidth=1.0)
        ax.set_yticks(range(len(per[name])), [row.title for row in per[name]], fontsize=7)
        ax.axvline(1.0, color="black", linewidth=0.8)
        ax.invert_yaxis()
        ax.set_title(name, loc="left", fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("multiple of the plain network; median and range over rounds")
    return figure


def write(folder: Path, rows: Sequence[Measured], command: str) -> None:
    """Write ``timings.csv``, ``provenance.json`` and ``ratios.svg`` into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "timings.csv", as_csv(rows))
    write_text(folder / "provenance.json", json.dumps(provenance(command), indent=2) + "\n")
    write_text(folder / "ratios.svg", figures.svg(picture(rows)) + "\n")
