"""Running a study and keeping what it found: numbers, figure, claims, provenance."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .. import figures
from ..engine import Spec, run_grid
from ..files import write_text
from ..provenance import provenance
from ..summary import TITLES, Claim
from ..train import Run
from .base import Group, Place, Results, Study

__all__ = ["run_study"]


def run_study(
    study: Study,
    place: Place,
    out: Path,
    cache: Path,
    *,
    workers: int,
    engine: str | None,
    command: str,
    console: Console,
) -> list[Claim]:
    """Do the runs that are not there yet, and write what the study found to ``out / name``.

    Written are ``figure.svg``, ``curves.csv`` (test figures by step, every seed), ``claims.json``
    and ``study.json`` (what was run, where, how long it took).

    Returns:
        The claims.
    """
    specs = study.specs(place)
    started = time.perf_counter()
    count = len({spec.key for spec in specs})
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    fresh: list[str] = []
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(study.name, total=count)

        def seen(spec: Spec, run: Run, new: bool) -> None:
            progress.advance(bar)
            if new:
                fresh.append(spec.key)
                progress.console.print(_line(spec, run), highlight=False)

        runs = run_grid(specs, cache, workers=workers, engine=engine, seen=seen)
    results = Results(specs, runs)
    found = study.claims(results)
    folder = out / study.name
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "figure.svg", figures.svg(study.draw(results)))
    write_text(folder / "curves.csv", _curves(results))
    write_text(
        folder / "claims.json",
        json.dumps([vars(claim) for claim in found], indent=1, ensure_ascii=False) + "\n",
    )
    about = {
        "name": study.name,
        "title": study.title,
        "source": study.source,
        "size": place.size,
        "reduced": study.reduced.get(place.size, ""),
        "runs": len(runs),
        "seeds": len({spec.seed for spec in specs}),
        "training_seconds": round(sum(run.seconds for run in runs.values()), 1),
        "wall_seconds": round(time.perf_counter() - started, 1) if len(fresh) == count else None,
        "provenance": provenance(command),
    }
    write_text(folder / "study.json", json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    return found


def _line(spec: Spec, run: Run) -> str:
    point = run.points[-1]
    value = f"{point.figures[run.metric.name]:.4g}"
    return (
        f"{spec.key}  {spec.task}, {TITLES[spec.formulation]}, {spec.training.optimizer}, seed "
        f"{spec.seed}: {run.metric.name} {value} after {run.step} steps, {run.seconds:.0f} s"
    )


def _varied(groups: Sequence[Group]) -> list[str]:
    """The settings in which the groups differ, by name."""
    flat = [_flat(group.spec.about) for group in groups]
    names = dict.fromkeys(name for about in flat for name in about)
    return [
        name
        for name in names
        if name not in ("seed", "formulation")
        and len({json.dumps(about.get(name)) for about in flat}) > 1
    ]


def _flat(about: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in about.items():
        found.update(_flat(value) if isinstance(value, dict) else {name: value})
    return found


def _curves(results: Results) -> str:
    varied = _varied(results.groups)
    names = list(dict.fromkeys(n for g in results for n in g.runs[0].points[0].figures))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["formulation", *varied, "seed", "step", "seconds", "train_loss", *names])
    for group in results:
        about = _flat(group.spec.about)
        for run in group.runs:
            for p in run.points:
                writer.writerow(
                    [
                        *(run.formulation, *(about.get(name, "") for name in varied), run.seed),
                        *(p.step, f"{p.seconds:.2f}", f"{p.train_loss:.6g}"),
                        *(f"{p.figures[n]:.6g}" if n in p.figures else "" for n in names),
                    ]
                )
    return buffer.getvalue()
