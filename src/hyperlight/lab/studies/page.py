"""One page about all studies in a folder: figures, claims, tables, commands."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import pages
from ..errors import LabError
from ..files import write_text
from ..summary import BEYOND, Claim

__all__ = ["Found", "read", "write"]


@dataclass(frozen=True)
class Found:
    """A study, read from its folder.

    Attributes:
        folder: the folder.
        about: content of ``study.json``.
        claims: claims with measured values.
        figure: the figure as an ``<svg>`` element.
        tables: tables of the page, each with a title, a heading and rows.
    """

    folder: Path
    about: dict[str, Any]
    claims: list[Claim]
    figure: str
    tables: list[tuple[str, list[str], list[list[str]]]]


def read(folder: Path, names: Sequence[str]) -> list[Found]:
    """Read all studies that :func:`~hyperlight.lab.studies.run.run_study` wrote to a folder.

    Args:
        folder: folder with one folder per study.
        names: names of studies in the order of the page; other studies follow.

    Raises:
        LabError: there are no studies, or one of their files is missing or damaged.
    """
    there = sorted(path.parent for path in folder.glob("*/study.json"))
    if not there:
        raise LabError(
            f"There are no studies in {folder}; expected a folder with study.json for each, as "
            "`hyperlight study` writes them to runs/studies/SIZE. Run some first, or pass "
            "another --results."
        )
    order = {name: i for i, name in enumerate(names)}
    there.sort(key=lambda path: order.get(path.name, len(order)))
    return [_read(path) for path in there]


def _read(folder: Path) -> Found:
    try:
        about = json.loads((folder / "study.json").read_text("utf-8"))
        found = json.loads((folder / "claims.json").read_text("utf-8"))
        tables = []
        for table in about["tables"]:
            if table["shown"]:
                with (folder / table["file"]).open(encoding="utf-8", newline="") as file:
                    heading, *rows = csv.reader(file)
                tables.append((table["title"], heading, rows))
        return Found(
            folder,
            about,
            [Claim(**claim) for claim in found],
            (folder / "figure.svg").read_text("utf-8"),
            tables,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        name = folder.name
        raise LabError(
            f"The study in {folder} cannot be read ({type(error).__name__}: {error}). Run "
            f"`hyperlight study {name}` again; finished runs are not repeated."
        ) from error


def write(studies: Sequence[Found], out: Path, command: str) -> Path:
    """Write the page.

    A name that ends in ``.md`` gives Markdown with links to the figures, any other name gives HTML
    that needs no other file.

    Args:
        studies: the studies to show.
        out: path of the page.
        command: the command that writes it.

    Raises:
        LabError: the page cannot be written.
    """
    claims = [(study, claim) for study in studies for claim in study.claims]
    paper = [(study, claim) for study, claim in claims if not claim.source.startswith(BEYOND)]
    beyond = [(study, claim) for study, claim in claims if claim.source.startswith(BEYOND)]
    page = pages.render(
        "studies.md" if out.suffix == ".md" else "studies.html",
        command=command,
        link=lambda study: _relative(study.folder / "figure.svg", out.parent),
        sizes=sorted({study.about["size"] for study in studies}),
        studies=studies,
        groups=[
            ("The paper's claims", "the paper says", paper),
            ("Beyond the paper", "expected", beyond),
        ],
        kept=sum(claim.holds is True for _, claim in paper),
        undecided=sum(claim.holds is None for _, claim in paper),
        total=len(paper),
        hours=_time(sum(study.about["training_seconds"] for study in studies)),
        makers=_makers(studies),
        time=_time,
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, page)
    except OSError as error:
        raise LabError(
            f"The page {out} cannot be written ({error.strerror}). Choose another --out."
        ) from error
    return out


def _relative(path: Path, folder: Path) -> str:
    """Path of a link on a page in that folder."""
    return Path(os.path.relpath(path, folder)).as_posix()


def _time(seconds: float) -> str:
    """A time in words: ``2.5 hours``."""
    for unit, length in (("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def _makers(studies: Sequence[Found]) -> list[dict[str, Any]]:
    """Versions and machines of all runs, each once."""
    found: dict[str, None] = {}
    for study in studies:
        for maker in study.about["made_by"] or [study.about["provenance"]]:
            about = {k: v for k, v in maker.items() if k not in ("runs", "command")}
            found[json.dumps(about)] = None
    return [json.loads(maker) for maker in found]
