"""The report of several runs: a page with tables and figures, and the numbers as csv."""

from __future__ import annotations

import base64
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from .. import Page
from . import figures, pages
from .errors import LabError
from .files import is_inside, is_plain, write_csv, write_text
from .provenance import provenance
from .record import PICTURES, Run, by_method
from .summary import EARLY, Spread, Summary, claims, lead, shown_steps
from .tasks.base import SWITCHES

__all__ = ["PAGE", "clear", "conclusion", "table", "write"]

PAGE = "report.html"
KNOB = "knob.html"
MARKDOWN = "report.md"

# The losses of so many methods fit into a table, beside the metric.
_NARROW = 2


def _rows(summaries: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """Test figures by step: a heading, then a row per step."""
    metric = summaries[0].metric
    losses = summaries if len(summaries) <= _NARROW else ()
    heading = [
        "step",
        *(f"{metric.heading}, {s.title}" for s in summaries),
        *(f"loss, {s.title}" for s in losses),
    ]
    return heading, [
        [
            str(summaries[0].steps[i]),
            *(s.divergence(s.steps[i]) or s.measured[i].text(metric.digits) for s in summaries),
            *(s.divergence(s.steps[i]) or s.test["loss"][i].text(2) for s in losses),
        ]
        for i in shown_steps(summaries[0].steps)
    ]


def _goal(summary: Summary, target: float) -> str:
    """The target in words: ``94 % accuracy``."""
    unit = f" {summary.metric.unit}" if summary.metric.unit else ""
    return f"{target:g}{unit} {summary.metric.name}"


def _facts(summaries: Sequence[Summary], target: float | None) -> tuple[list[str], list[list[str]]]:
    heading = ["", *(summary.title for summary in summaries)]
    reached = []
    if target is not None:
        goal = _goal(summaries[0], target)
        reached = [[f"steps to {goal}", *(s.steps_to_target() for s in summaries)]]
    diverged = [["divergence", *(s.divergence() or "none" for s in summaries)]]
    return heading, [
        *(diverged if any(s.divergence() for s in summaries) else ()),
        *reached,
        ["milliseconds per step", *(_times(1e3, s.seconds_per_step) for s in summaries)],
        ["time spent waiting for data (%)", *(_times(100.0, s.waiting) for s in summaries)],
        [
            "variation of the weights' scale along gamma: start, end",
            *(
                "no predicted weights"
                if s.formulation not in SWITCHES
                else f"{s.initial_variation:.1%}, {_unless_nan(s.final_variation, '.1%')}"
                for s in summaries
            ),
        ],
        [
            f"gradient norm, std / mean, first {EARLY} steps",
            *(_unless_nan(s.gradient_swing, ".2f") for s in summaries),
        ],
    ]


def _unless_nan(value: float, form: str) -> str:
    return "diverged" if math.isnan(value) else format(value, form)


def _times(factor: float, spread: Spread) -> str:
    return Spread(factor * spread.mean, factor * spread.std).text(1)


def _outcomes(summaries: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """The final results: a heading, then a row per figure."""
    names = dict.fromkeys(name for summary in summaries for name in summary.outcome)
    return ["", *(summary.title for summary in summaries)], [
        [name, *(_outcome(s, name) for s in summaries)] for name in names
    ]


def _outcome(summary: Summary, name: str) -> str:
    if name not in summary.outcome:
        return ""
    return "diverged" if summary.divergence() else summary.outcome[name].brief()


Front = tuple[str, str]
"""Two columns of a task's table along gamma, which trade off against each other."""


def _along(summaries: Sequence[Summary], front: Front | None) -> tuple[list[str], list[list[str]]]:
    """Final results along gamma, for a comparison of methods that have them."""
    found = _tested_along(summaries)
    metric = summaries[0].metric
    names = front or (metric.heading,)
    columns = [[s.along(name) for name in names] for s in found]
    gammas = dict.fromkeys(gamma for column in columns for gamma in column[0])

    def cell(summary: Summary, column: list[dict[float, Spread]], gamma: float) -> str:
        if summary.divergence():
            return "diverged"
        digits = metric.digits if front is None else 2
        return ", ".join(f"{part[gamma].mean:.{digits}f}" for part in column if gamma in part)

    return [f"gamma ({', '.join(names)})", *(s.title for s in found)], [
        [f"{gamma:g}", *(cell(*each, gamma) for each in zip(found, columns, strict=True))]
        for gamma in sorted(gammas)
    ]


def _tested_along(summaries: Sequence[Summary]) -> list[Summary]:
    """Methods with final values along gamma; none if there is but one, whose task shows them."""
    found = [s for s in summaries if s.along()]
    return found if len(found) > 1 else []


def table(
    summaries: Sequence[Summary], target: float | None, front: Front | None = None
) -> list[Table]:
    """The tables, for a terminal."""
    seeds = summaries[0].seeds
    over = f"mean ± std over {seeds} seeds" if seeds > 1 else "one seed"
    tables = []
    for title, (heading, rows) in (
        (f"On test data ({over})", _rows(summaries)),
        (f"Final results on all test data ({over})", _outcomes(summaries)),
        (f"Along gamma, on all test data ({over})", _along(summaries, front)),
        (f"Summary ({over})", _facts(summaries, target)),
    ):
        if not rows:
            continue
        made = Table(title=title, title_justify="left", title_style="bold")
        for column in heading:
            made.add_column(column, justify="right" if column else "left", overflow="fold")
        for row in rows:
            made.add_row(*row)
        tables.append(made)
    return tables


def conclusion(summaries: Sequence[Summary], target: float | None) -> str:
    """Say which method is ahead and how sure that is, or what diverged.

    Empty for a single method that did not diverge.
    """
    lost = [f"{s.title}: {s.divergence()}." for s in summaries if s.divergence()]
    if lost:
        return (
            f"{' '.join(lost)} The loss or the gradient exploded and did not recover, so the other "
            "figures of these runs mean nothing. Choose a smaller --lr."
        )
    if len(summaries) < 2:
        return ""
    best, *others = sorted(summaries, key=lambda s: s.measured[-1].mean, reverse=True)
    metric = best.metric
    ends = ", ".join(f"{s.title} {metric.text(s.measured[-1].mean)}" for s in (best, *others))
    sure = [s.title for s in others if lead(best, s).above(0.0) == "holds"]
    rest = [s.title for s in others if s.title not in sure]
    said = [f"After {best.steps[-1]} steps, test {metric.name}: {ends}."]
    seeds = "these seeds" if best.seeds > 1 else "one seed"
    found = [(sure, "is sure"), (rest, "is not decided")]
    parts = [f"over {_and(names)} {verdict}" for names, verdict in found if names]
    said.append(f"By {seeds}, the lead of {best.title} {'; '.join(parts)}.")
    if target is not None:
        goal = f"{target:g} {metric.unit}".rstrip()
        reached = ", ".join(f"{s.title} {s.steps_to_target()}" for s in summaries)
        said.append(f"Steps to {goal}: {reached}.")
    return " ".join(said)


def _first_up(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _and(names: Sequence[str]) -> str:
    """``a, b and c``."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _result(summaries: Sequence[Summary]) -> str:
    """What was reached in the end, in a sentence."""
    metric, last = summaries[0].metric, summaries[0].steps[-1]
    reached = "; ".join(f"{s.title} {metric.text(s.measured[-1].mean)}" for s in summaries)
    return f"Test {metric.name} after {last} steps: {reached}."


def write(
    folder: Path,
    runs: Sequence[Run],
    summaries: Sequence[Summary],
    *,
    title: str,
    note: str,
    target: float | None,
    settings: dict[str, Any],
    command: str,
    knob: tuple[str, Page] | None = None,
    front: Front | None = None,
) -> Path:
    """Write ``report.html``, ``report.md``, ``knob.html``, the figures and the numbers as csv.

    The HTML pages are self-contained; the Markdown page links to the figures and to the slider,
    whose caption and page are ``knob``.

    Returns:
        The path of the HTML page.

    Raises:
        LabError: a picture of a run is a link to a file elsewhere.
    """
    origin = provenance(command)
    names = list(summaries[0].test)
    write_csv(
        folder / "metrics.csv",
        ["formulation", "seed", "step", "train_loss", *(f"test_{name}" for name in names)],
        (
            [r.method.name, r.seed, p.step, p.train_loss, *(p.figures[n] for n in names)]
            for r in runs
            for p in r.points
        ),
    )
    write_csv(
        folder / "times.csv",
        ["formulation", "seed", "step", "seconds"],
        ([r.method.name, r.seed, p.step, p.seconds] for r in runs for p in r.points),
    )
    write_csv(
        folder / "steps.csv",
        ["formulation", "seed", "step", "train_loss", "gradient_norm"],
        (
            [run.method.name, run.seed, i + 1, loss, norm]
            for run in runs
            for i, (loss, norm) in enumerate(zip(run.loss, run.gradient_norm, strict=True))
        ),
    )
    write_csv(
        folder / "scales.csv",
        ["formulation", "seed", "when", "gamma_norm", "std"],
        (
            [run.method.name, run.seed, when, float(magnitude), float(std)]
            for run in runs
            for when, profile in (("initial", run.initial), ("final", run.final))
            if profile is not None
            for magnitude, std in zip(profile.magnitude, profile.std, strict=True)
        ),
    )
    _write_outcomes(folder, runs)

    drawn = {"convergence": figures.svg(figures.convergence(summaries, target))}
    if any(run.initial is not None for run in runs):
        drawn["scales"] = figures.svg(figures.scales(runs))
    drawn["gradients"] = figures.svg(figures.gradients(runs))
    compared = [s for s in _tested_along(summaries) if not s.divergence()]
    if compared:
        drawn["along"] = figures.svg(figures.along(compared, front))
    for name, picture in drawn.items():
        write_text(folder / f"{name}.svg", picture)
    tables = [
        _facts(summaries, target),
        _outcomes(summaries),
        _rows(summaries),
        _along(summaries, front),
    ]
    values = {
        "title": title,
        "note": note,
        "conclusion": conclusion(summaries, target) or _result(summaries),
        "knob": knob,
        "claims": claims(summaries),
        "seeds": summaries[0].seeds,
        "tables": [(heading, rows) for heading, rows in tables if rows],
        "outcomes": _shown_outcomes(runs, folder),
        "settings": settings,
        "provenance": origin,
    }
    (folder / KNOB).unlink(missing_ok=True)
    if knob is not None:
        write_text(folder / KNOB, knob[1].html)
    figured = [(*CAPTIONS[name], picture) for name, picture in drawn.items()]
    linked = [(*CAPTIONS[name], f"{name}.svg") for name in drawn]
    write_text(folder / MARKDOWN, pages.render("report.md", figures=linked, **values))
    write_text(folder / PAGE, pages.render("report.html", figures=figured, **values))
    return folder / PAGE


def clear(folder: Path) -> None:
    """Remove the files that :func:`write` wrote."""
    tables = ("metrics", "times", "steps", "scales", "outcome")
    written = [
        PAGE,
        KNOB,
        MARKDOWN,
        *(f"{name}.csv" for name in tables),
        *(f"{name}.svg" for name in CAPTIONS),
    ]
    for path in (*(folder / name for name in written), *folder.glob("outcome-*.csv")):
        path.unlink(missing_ok=True)


CAPTIONS = {
    "convergence": (
        "Convergence",
        "Mean and standard deviation over seeds; as in figure 4 of the paper.",
    ),
    "scales": (
        "Does the scale of the predicted weights follow gamma?",
        "Standard deviation of all predicted weights; as in figure 1a of the paper.",
    ),
    "gradients": (
        "Gradient norm in early training",
        "With respect to the predicted weights; thin lines are single seeds. As in figure 3c of "
        "the paper.",
    ),
    "along": (
        "What the knob does",
        "Along gamma, on all test data: the metric, and two figures that trade off against each "
        "other if the task has such. Means over seeds, with standard deviations on the left. Lines "
        "are one network for all gammas each, points are plain networks for one gamma each.",
    ),
}


def _write_outcomes(folder: Path, runs: Sequence[Run]) -> None:
    """Write the final results as csv: all figures in one file, and one file per table."""
    found = [(run, run.outcome) for run in runs if run.outcome is not None]
    if not found:
        return
    write_csv(
        folder / "outcome.csv",
        ["formulation", "seed", "figure", "value"],
        (
            [run.method.name, run.seed, name, value]
            for run, outcome in found
            for name, value in outcome.figures.items()
        ),
    )
    tables: dict[str, tuple[Sequence[str], list[list[Any]]]] = {}
    for run, outcome in found:
        for title, heading, rows in outcome.tables:
            kept = tables.setdefault(title, (heading, []))[1]
            kept += [[run.method.name, run.seed, *row] for row in rows]
    for title, (heading, kept) in tables.items():
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        write_csv(folder / f"outcome-{name}.csv", ["formulation", "seed", *heading], kept)


# Of a table of a run on the page.
_MOST_ROWS = 24


def _shown_outcomes(runs: Sequence[Run], page: Path) -> list[dict[str, Any]]:
    """Tables and pictures of the first seed of every method, for a page in ``page``.

    Long tables are in their csv alone.
    """
    found = by_method(run for run in runs if run.outcome is not None)
    return [
        {
            "title": f"{_first_up(method.title)}, seed {run.seed}",
            "tables": [table for table in run.outcome.tables if len(table[2]) <= _MOST_ROWS],
            "pictures": [
                (caption, base64.b64encode(_picture(path)).decode())
                for caption, path in run.outcome.pictures
                if path.is_file()
            ],
            "files": [
                (caption, Path(os.path.relpath(path, page)).as_posix())
                for caption, path in run.outcome.pictures
                if path.is_file()
            ],
        }
        for method, (run, *_) in found
        if run.outcome is not None and (run.outcome.tables or run.outcome.pictures)
    ]


def _picture(path: Path) -> bytes:
    """The content of a picture, which must be in the run's own folder."""
    if not is_plain(path.name, *PICTURES) or not is_inside(path):
        raise LabError(
            f"The picture {path} is not a .png file in the folder of its run, so it is not put "
            f"into the report. Delete the folder {path.parent} to train this run again."
        )
    return path.read_bytes()
