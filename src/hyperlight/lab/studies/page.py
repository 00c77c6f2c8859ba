"""One page about all studies in a folder: figures, claims, tables, commands."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from ...errors import listed
from ...io.kinds import fits, read_json
from .. import pages
from ..comparison import VERDICTS
from ..errors import LabError
from ..files import is_inside, is_plain, write_text
from ..summary import BEYOND, Claim

__all__ = ["Found", "read", "write"]

# What study.json and claims.json hold, in the notation of hyperlight.io.kinds.
_NUMBER = (int, float)
_STUDY: dict[str, Any] = {
    **dict.fromkeys(("name", "title", "source", "caption", "size", "reduced"), str),
    "tables": [{"title": str, "file": str, "shown": bool}],
    "runs": int,
    "seeds": int,
    "training_seconds": _NUMBER,
    "wall_seconds": (*_NUMBER, NoneType),
    "provenance": {"command": str, "commit": str},
    "made_by": [{str: (str, int)}],
}
_CLAIM = {"source": str, "text": str, "measured": str, "verdict": str, "guess": str}
# Claims of studies that were judged before there were verdicts.
_OLDER = {"source": str, "text": str, "measured": str, "holds": (bool, NoneType), "guess": str}


@dataclass(frozen=True)
class Found:
    """A study, read from its folder.

    Attributes:
        folder: the folder.
        about: content of ``study.json``.
        claims: claims with measured values.
        older: whether the claims were judged by the rules before there were verdicts, which
            forgave one standard deviation over seeds.
        figure: the figure as an ``<svg>`` element.
        tables: tables of the page, each with a title, a heading and rows.
    """

    folder: Path
    about: dict[str, Any]
    claims: list[Claim]
    older: bool
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
        about = _json(folder, "study.json", _STUDY)
        claims, older = _claims(folder)
        tables = []
        for table in about["tables"]:
            if not is_plain(table["file"], ".csv"):
                raise ValueError(f"study.json names the table {table['file']!r:.60}")
            if table["shown"]:
                text = _text(folder, table["file"])
                heading, *rows = csv.reader(io.StringIO(text, newline=""))
                tables.append((table["title"], heading, rows))
        figure = pages.checked_svg(_text(folder, "figure.svg"))
        return Found(folder, about, claims, older, figure, tables)
    except (OSError, ValueError, TypeError, csv.Error) as error:
        name = folder.name
        raise LabError(
            f"The study in {folder} cannot be read ({type(error).__name__}: {error}). Run "
            f"`hyperlight study {name}` again; finished runs are not repeated."
        ) from error


def _claims(folder: Path) -> tuple[list[Claim], bool]:
    """The claims, and whether they were judged before there were verdicts."""
    found = _json(folder, "claims.json", ([_CLAIM], [_OLDER]))
    older = any("verdict" not in claim for claim in found)
    for claim in found:
        if older:
            holds = claim.pop("holds")
            claim["verdict"] = "not decided" if holds is None else "holds" if holds else "refuted"
        elif claim["verdict"] not in VERDICTS:
            raise ValueError(
                f"claims.json has the verdict {claim['verdict']!r:.60}; expected {listed(VERDICTS)}"
            )
    return [Claim(**claim) for claim in found], older


def _text(folder: Path, name: str) -> str:
    if not is_inside(folder / name):
        raise ValueError(f"{name} is a link to a file elsewhere")
    with (folder / name).open(encoding="utf-8", newline="") as file:
        return file.read()


def _json(folder: Path, name: str, kind: Any) -> Any:
    found = read_json(_text(folder, name), finite=False)
    if not fits(found, kind):
        raise ValueError(f"{name} has missing values, or values of another type")
    return found


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
        verdicts=VERDICTS,
        counts=[
            (heading, [sum(claim.verdict == verdict for _, claim in found) for verdict in VERDICTS])
            for heading, found in (("the paper", paper), ("beyond the paper", beyond))
            if found
        ],
        older=[study.about["name"] for study in studies if study.older],
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
