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
from .record import PICTURES, Run
from .summary import EARLY, TITLES, Spread, Summary, claims, shown_steps
from .tasks.base import SWITCHES

__all__ = ["PAGE", "clear", "conclusion", "table", "write"]

PAGE = "report.html"
KNOB = "knob.html"
MARKDOWN = "report.md"


def _rows(summaries: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """Test figures by step: a heading, then a row per step."""
    metric = summaries[0].metric
    heading = [
        "step",
        *(f"{metric.heading}, {s.title}" for s in summaries),
        *(f"loss, {s.title}" for s in summaries),
    ]
    return heading, [
        [
            str(summaries[0].steps[i]),
            *(s.divergence(s.steps[i]) or s.measured[i].text(metric.digits) for s in summaries),
            *(s.divergence(s.steps[i]) or s.test["loss"][i].text(2) for s in summaries),
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


def table(summaries: Sequence[Summary], target: float | None) -> list[Table]:
    """The tables, for a terminal."""
    seeds = summaries[0].seeds
    over = f"mean ± std over {seeds} seeds" if seeds > 1 else "one seed"
    tables = []
    for title, (heading, rows) in (
        (f"On test data ({over})", _rows(summaries)),
        (f"Final results on all test data ({over})", _outcomes(summaries)),
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
    """Compare MIP and the classical formulation in a sentence, or say what diverged.

    Empty unless both were trained or one diverged.
    """
    lost = [f"{s.title}: {s.divergence()}." for s in summaries if s.divergence()]
    if lost:
        return (
            f"{' '.join(lost)} The loss or the gradient exploded and did not recover, so the other "
            "figures of these runs mean nothing. Choose a smaller --lr."
        )
    by_name = {summary.formulation: summary for summary in summaries}
    if not {"mip", "classical"} <= set(by_name):
        return ""
    mip, classical = by_name["mip"], by_name["classical"]
    metric = mip.metric
    ours, theirs = (metric.text(s.measured[-1].mean) for s in (mip, classical))
    pace = mip.seconds_per_step.mean / classical.seconds_per_step.mean
    steps = ""
    if target is not None:
        steps = (
            f" Steps to {(metric.unit and f'{target:g} {metric.unit}') or f'{target:g}'}: MIP "
            f"{mip.steps_to_target()}, classical {classical.steps_to_target()}."
        )
    return (
        f"After {mip.steps[-1]} steps the MIP hypernetwork has {ours} test {metric.name}, the "
        f"classical one {theirs}.{steps} A MIP step takes {pace:.2f} times as long as a classical "
        "one."
    )


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
            [r.formulation, r.seed, p.step, p.train_loss, *(p.figures[n] for n in names)]
            for r in runs
            for p in r.points
        ),
    )
    write_csv(
        folder / "times.csv",
        ["formulation", "seed", "step", "seconds"],
        ([r.formulation, r.seed, p.step, p.seconds] for r in runs for p in r.points),
    )
    write_csv(
        folder / "steps.csv",
        ["formulation", "seed", "step", "train_loss", "gradient_norm"],
        (
            [run.formulation, run.seed, i + 1, loss, norm]
            for run in runs
            for i, (loss, norm) in enumerate(zip(run.loss, run.gradient_norm, strict=True))
        ),
    )
    write_csv(
        folder / "scales.csv",
        ["formulation", "seed", "when", "gamma_norm", "std"],
        (
            [run.formulation, run.seed, when, float(magnitude), float(std)]
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
    for name, picture in drawn.items():
        write_text(folder / f"{name}.svg", picture)
    tables = [_facts(summaries, target), _outcomes(summaries), _rows(summaries)]
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
            [run.formulation, run.seed, name, value]
            for run, outcome in found
            for name, value in outcome.figures.items()
        ),
    )
    tables: dict[str, tuple[Sequence[str], list[list[Any]]]] = {}
    for run, outcome in found:
        for title, heading, rows in outcome.tables:
            kept = tables.setdefault(title, (heading, []))[1]
            kept += [[run.formulation, run.seed, *row] for row in rows]
    for title, (heading, kept) in tables.items():
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        write_csv(folder / f"outcome-{name}.csv", ["formulation", "seed", *heading], kept)


def _shown_outcomes(runs: Sequence[Run], page: Path) -> list[dict[str, Any]]:
    """Tables and pictures of the first seed of every formulation, for a page in ``page``."""
    first: dict[str, Run] = {}
    for run in runs:
        if run.outcome is not None:
            first.setdefault(run.formulation, run)
    return [
        {
            "title": f"{TITLES[name][:1].upper()}{TITLES[name][1:]}, seed {run.seed}",
            "tables": run.outcome.tables,
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
        for name, run in first.items()
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
