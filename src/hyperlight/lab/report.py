"""What a set of runs leaves behind: tables, figures, numbers and models in one folder."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import platform
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import torch
from rich.table import Table
from safetensors.torch import save

from . import figures
from .files import write_bytes, write_text
from .summary import Summary, claims, shown_steps
from .train import Run

__all__ = ["conclusion", "provenance", "table", "write"]


def provenance(command: str) -> dict[str, str]:
    """What produced the numbers: the command, the versions, the machine."""
    packages = ("hyperlight", "torch", "lightning-fabric", "torchmetrics", "scikit-learn", "numpy")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "command": command,
        **{name: metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "gpu": gpu,
    }


def _rows(summaries: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """Test figures by step: a heading, then a row per step."""
    shown = shown_steps(summaries[0].steps)
    heading = [
        "step",
        *(f"accuracy (%), {s.title}" for s in summaries),
        *(f"loss, {s.title}" for s in summaries),
    ]
    return heading, [
        [
            str(summaries[0].steps[i]),
            *(s.accuracy[i].text(1) for s in summaries),
            *(s.test_loss[i].text(2) for s in summaries),
        ]
        for i in shown
    ]


def _facts(summaries: Sequence[Summary], target: float) -> tuple[list[str], list[list[str]]]:
    heading = ["", *(summary.title for summary in summaries)]
    return heading, [
        [f"steps to {target:g} % accuracy", *(s.steps_to_target() for s in summaries)],
        [
            "milliseconds per step",
            *(
                dataclasses.replace(
                    s.seconds_per_step,
                    mean=1e3 * s.seconds_per_step.mean,
                    std=1e3 * s.seconds_per_step.std,
                ).text(1)
                for s in summaries
            ),
        ],
        [
            "weights' scale varies along gamma: start, end",
            *(f"{s.initial_variation:.1%}, {s.final_variation:.1%}" for s in summaries),
        ],
        [
            "gradient norm, std / mean, first 100 steps",
            *(f"{s.gradient_swing:.2f}" for s in summaries),
        ],
    ]


def table(summaries: Sequence[Summary], target: float) -> list[Table]:
    """The tables for a terminal."""
    seeds = summaries[0].seeds
    over = f"mean ± std over {seeds} seeds" if seeds > 1 else "one seed"
    tables = []
    for title, (heading, rows) in (
        (f"On test images ({over})", _rows(summaries)),
        (f"In short ({over})", _facts(summaries, target)),
    ):
        made = Table(title=title, title_justify="left", title_style="bold")
        for column in heading:
            made.add_column(column, justify="right" if column else "left", overflow="fold")
        for row in rows:
            made.add_row(*row)
        tables.append(made)
    return tables


def conclusion(summaries: Sequence[Summary], target: float) -> str:
    """The comparison of the two formulations in a sentence, or nothing without both."""
    by_name = {summary.formulation: summary for summary in summaries}
    if not {"mip", "classical"} <= set(by_name):
        return ""
    mip, classical = by_name["mip"], by_name["classical"]
    at = f"{mip.accuracy[-1].mean:.1f} % against {classical.accuracy[-1].mean:.1f} %"
    pace = mip.seconds_per_step.mean / classical.seconds_per_step.mean
    return (
        f"After {mip.steps[-1]} steps the MIP hypernetwork has {at} test accuracy for the "
        f"classical one. Steps to {target:g} %: MIP {mip.steps_to_target()}, classical "
        f"{classical.steps_to_target()}. A step of MIP takes {pace:.2f} "
        "of the time of a classical one."
    )


def _csv(heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(heading)
    writer.writerows(rows)
    return buffer.getvalue()


def write(
    folder: Path,
    runs: Sequence[Run],
    summaries: Sequence[Summary],
    *,
    title: str,
    note: str,
    target: float,
    settings: dict[str, Any],
    command: str,
) -> Path:
    """Write ``report.html``, the numbers as csv, the settings and the models; returns the page."""
    origin = provenance(command)
    write_text(
        folder / "metrics.csv",
        _csv(
            ["formulation", "seed", "step", "train_loss", "test_loss", "test_accuracy"],
            ([r.formulation, r.seed, *dataclasses.astuple(p)] for r in runs for p in r.points),
        ),
    )
    write_text(
        folder / "steps.csv",
        _csv(
            ["formulation", "seed", "step", "train_loss", "gradient_norm"],
            (
                [run.formulation, run.seed, i + 1, loss, norm]
                for run in runs
                for i, (loss, norm) in enumerate(zip(run.loss, run.gradient_norm, strict=True))
            ),
        ),
    )
    write_text(
        folder / "scales.csv",
        _csv(
            ["formulation", "seed", "when", "gamma_norm", "std"],
            (
                [run.formulation, run.seed, when, float(magnitude), float(std)]
                for run in runs
                for when, profile in (("initial", run.initial), ("final", run.final))
                if profile is not None
                for magnitude, std in zip(profile.magnitude, profile.std, strict=True)
            ),
        ),
    )
    config = {"settings": settings, "provenance": origin}
    write_text(folder / "config.json", json.dumps(config, indent=2, default=str) + "\n")
    current = {f"model-{run.formulation}-seed{run.seed}.safetensors" for run in runs}
    for old in folder.glob("model-*-seed*.safetensors"):
        if old.name not in current:  # of an earlier run in this folder: not one of these
            old.unlink()
    for run in runs:
        state = {k: v.detach().cpu().contiguous() for k, v in run.model.state_dict().items()}
        write_bytes(folder / f"model-{run.formulation}-seed{run.seed}.safetensors", save(state))

    drawn = {
        "convergence": figures.svg(figures.convergence(summaries, target)),
        "scales": figures.svg(figures.scales(runs)),
        "gradients": figures.svg(figures.gradients(runs)),
    }
    for name, picture in drawn.items():
        write_text(folder / f"{name}.svg", picture)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hyperlight.lab"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html").render(
        title=title,
        note=note,
        conclusion=conclusion(summaries, target),
        claims=claims(summaries),
        seeds=summaries[0].seeds,
        tables=[_facts(summaries, target), _rows(summaries)],
        figures=[
            (
                "Convergence",
                "Mean and standard deviation over seeds; compare figure 4a of the paper.",
                drawn["convergence"],
            ),
            (
                "Does the scale of the predicted weights follow gamma?",
                "Standard deviation of all predicted weights; compare figure 1a of the paper.",
                drawn["scales"],
            ),
            (
                "Gradient norm in early training",
                "With respect to the predicted weights; thin lines are single seeds. Compare "
                "figure 3c of the paper.",
                drawn["gradients"],
            ),
        ],
        settings=settings,
        provenance=origin,
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"
