"""Run a study and write its results: numbers, figure, claims, provenance."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .. import figures
from ..engine import Spec, run_grid
from ..files import csv_text, write_text
from ..processes import stop_on_request
from ..provenance import provenance
from ..record import Run
from ..summary import TITLES, Claim
from .base import Group, Results, Setup, Study, Table

__all__ = ["run_study"]


def run_study(
    study: Study,
    setup: Setup,
    out: Path,
    cache: Path,
    *,
    workers: int,
    engine: str | None,
    command: str,
    console: Console,
) -> list[Claim]:
    """Do the runs that are missing from the cache, and write the study's results to ``out / name``.

    Writes ``figure.svg``, ``claims.json``, ``study.json`` (what was run, where, and for how long),
    ``curves.csv`` (test figures by step for every seed) if the study trains anything, and a csv for
    every table of the study.

    Returns:
        The claims.
    """
    specs = study.specs(setup)
    started = time.perf_counter()
    runs, fresh = _run(study.name, specs, cache, workers, engine, console)
    measured = None if study.measure is None else study.measure(setup)
    results = Results(specs, runs, measured)
    found = study.claims(results)
    folder = out / study.name
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "figure.svg", figures.svg(study.draw(results)))
    if specs:
        write_text(folder / "curves.csv", _curves(results))
    tables = study.tables(results)
    diverged = sum(run.diverged is not None for run in runs.values())
    if diverged:
        tables = [*tables, _diverged(results)]
        console.print(f"{diverged} of {len(runs)} runs diverged", highlight=False)
    for table in tables:
        write_text(folder / _file(table), csv_text(table.heading, table.rows))
    _write_json(folder / "claims.json", [vars(claim) for claim in found])
    about = {
        "name": study.name,
        "title": study.title,
        "source": study.source,
        "caption": study.caption,
        "size": setup.size,
        "reduced": study.reduced.get(setup.size, ""),
        "tables": [
            {"title": table.title, "file": _file(table), "shown": table.shown} for table in tables
        ],
        "runs": len(runs),
        "diverged": diverged,
        "seeds": results.seeds,
        "training_seconds": round(sum(run.seconds for run in runs.values()), 1),
        # Meaningless if some of the runs come from the cache.
        "wall_seconds": round(time.perf_counter() - started, 1) if fresh == len(runs) else None,
        "provenance": provenance(command),
        "made_by": _makers(runs.values()),
    }
    _write_json(folder / "study.json", about)
    return found


def _run(
    name: str,
    specs: Sequence[Spec],
    cache: Path,
    workers: int,
    engine: str | None,
    console: Console,
) -> tuple[dict[str, Run], int]:
    """Return the runs and how many of them are new; show a progress bar meanwhile."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    fresh = 0
    if not specs:
        return {}, 0
    # With a scheduler, Ctrl-C ends the command at once: its workers are not part of it.
    requests = stop_on_request(console) if engine is None else nullcontext(lambda: False)
    with Progress(*columns, console=console) as progress, requests as stop:
        bar = progress.add_task(name, total=len({spec.key for spec in specs}))

        def seen(spec: Spec, run: Run, new: bool) -> None:
            nonlocal fresh
            progress.advance(bar)
            if new:
                fresh += 1
                progress.console.print(_line(spec, run), highlight=False)

        def tell(line: str) -> None:
            progress.console.print(line, markup=False, highlight=False)

        runs = run_grid(
            *(specs, cache), workers=workers, engine=engine, seen=seen, stop=stop, tell=tell
        )
    return runs, fresh


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _makers(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Versions and machines of the runs, with the number of runs of each.

    A run may be older than the figure that shows it.
    """
    found: dict[str, int] = {}
    for run in runs:
        origin = json.dumps(run.provenance)
        found[origin] = found.get(origin, 0) + 1
    return [{**json.loads(origin), "runs": count} for origin, count in found.items()]


def _line(spec: Spec, run: Run) -> str:
    point = run.points[-1]
    found = f"{run.metric.name} {point.figures[run.metric.name]:.4g} after {run.step} steps"
    if run.diverged is not None:
        found = f"diverged at step {run.diverged}"
    return (
        f"{spec.key}  {spec.task}, {TITLES[spec.formulation]}, {spec.training.optimizer}, seed "
        f"{spec.seed}: {found}, {run.seconds:.0f} s"
    )


def _file(table: Table) -> str:
    return re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-") + ".csv"


def _varied(groups: Sequence[Group]) -> list[str]:
    """Names of the settings in which the groups differ."""
    flat = [_settings(group) for group in groups]
    names = dict.fromkeys(name for about in flat for name in about)
    return [
        name
        for name in names
        if name not in ("seed", "formulation")
        and len({json.dumps(about.get(name)) for about in flat}) > 1
    ]


def _settings(group: Group) -> dict[str, Any]:
    """All settings that a run's numbers depend on, by name, including default values."""
    spec = group.spec
    config = {k: v for k, v in dataclasses.asdict(spec.config).items() if k != "data_dir"}
    return {"task": spec.task, **config, **spec.training.decisive()}


def _diverged(results: Results) -> Table:
    """The runs that diverged, with the settings in which the groups differ."""
    varied = _varied(results.groups)
    rows = []
    for group in results:
        about = _settings(group)
        settings = [_cell(about.get(name, "")) for name in varied]
        steps = [run.diverged for run in group.runs if run.diverged is not None]
        if steps:
            seeds = f"{len(steps)} of {len(group.runs)}"
            rows.append([TITLES[group.spec.formulation], *settings, seeds, _cell(steps)])
    return Table("Runs that diverged", ["", *varied, "seeds", "at steps"], rows)


def _curves(results: Results) -> str:
    varied = _varied(results.groups)
    names = list(dict.fromkeys(n for g in results for n in g.runs[0].points[0].figures))
    heading = ["formulation", *varied, "seed", "step", "seconds", "train_loss", *names]
    rows = []
    for group in results:
        about = _settings(group)
        settings = [_cell(about.get(name, "")) for name in varied]
        for run in group.runs:
            for p in run.points:
                figures = [f"{p.figures[n]:.6g}" if n in p.figures else "" for n in names]
                where = [run.formulation, *settings, run.seed, p.step]
                rows.append([*where, f"{p.seconds:.2f}", f"{p.train_loss:.6g}", *figures])
    return csv_text(heading, rows)


def _cell(value: Any) -> Any:
    """A value as one cell of a csv: ``16 128`` for the widths of layers."""
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
