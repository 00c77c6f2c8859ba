"""What a set of runs leaves behind: numbers, models and a page that stands alone."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import math
import os
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import pytest
import torch
from rich.console import Console

import hyperlight as hl
from hyperlight.lab import figures, report
from hyperlight.lab.errors import LabError
from hyperlight.lab.files import write_text
from hyperlight.lab.methods import Method
from hyperlight.lab.record import Run
from hyperlight.lab.summary import TITLES, Summary, claims, summarize
from hyperlight.lab.tasks.base import SWITCHES, Formulation, Metric, Outcome
from tests.lab.making import (
    ACCURACY,
    RISING,
    STEEP,
    diverged,
    listing,
    make_run,
    plain_run,
    small_model,
)

COMMAND = "hyperlight demo --steps 10 --out 'a <b>'"
HOSTILE = "<script>alert('x & y')</script>"


def _runs() -> list[Run]:
    return [
        make_run("classical", 0, accuracy=(9.0, 9.5, 10.0), initial=RISING, final=STEEP),
        make_run("mip", 0, accuracy=(9.0, 80.0, 91.0), test_loss=(2.5, 1 / 3, 0.1)),
        make_run("classical", 1, accuracy=(9.0, 9.5, 11.0), initial=RISING, final=STEEP),
        make_run("mip", 1, accuracy=(9.0, 95.0, 93.0), seconds=(0.017,), waiting=0.5),
    ]


def _summaries(
    runs: Sequence[Run], target: float | None = 90.0, metric: Metric = ACCURACY
) -> list[Summary]:
    return summarize(runs, target, metric)


def _write(folder: Path, runs: Sequence[Run], metric: Metric = ACCURACY, **changes: Any) -> Path:
    settings = {"data": "digits", "hidden": (16, 128), "data_dir": None, "lr": 3e-4}
    arguments: dict[str, Any] = {
        "title": "A title",
        "note": "A note",
        "target": 90.0,
        "settings": settings,
        "command": COMMAND,
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    summaries = summarize(runs, arguments["target"], metric)
    return report.write(folder, runs, summaries, **arguments)


class _Page(HTMLParser):
    """The tags, attributes and text of a page; refuses tags that are not closed in order."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input", "base", "source", "embed"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


DICE = Metric("dice", digits=3)
PICTURE = b"not really a picture"


def _registered(folder: Path) -> list[Run]:
    """Runs with all that a task can find out in the end, without a second file for seed 1."""
    (folder / "warped.png").write_bytes(PICTURE)
    heading = ("gamma", "folding (%)")
    pictures = [("A caption & more", folder / "warped.png"), ("Gone", folder / "gone.png")]
    found = [
        Outcome(
            {"best gamma": gamma, "dice there": dice},
            [("Test pairs against gamma", heading, [(0.0, fold), (1.0, fold / end)])],
            pictures,
        )
        for gamma, dice, fold, end in ((0.25, 0.75, 1.5, 6.0), (0.5, 0.5, 2.5, 20.0))
    ]
    return [
        *(
            make_run("mip", seed, accuracy=(0.25, 0.5, 0.75), metric=DICE, outcome=outcome)
            for seed, outcome in enumerate(found)
        ),
        plain_run(accuracy=(0.25, 0.5, 0.625), metric=DICE, outcome=Outcome({"dice there": 0.625})),
    ]


def _svgs(page: Path) -> list[ElementTree.Element]:
    found = re.findall(r"<svg.*?</svg>", page.read_text("utf-8"), re.DOTALL)
    return [ElementTree.fromstring(text) for text in found]


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    return _runs()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, runs: list[Run]) -> Path:
    made = tmp_path_factory.mktemp("report")
    assert _write(made, runs) == made / "report.html"
    return made


# --- the files ------------------------------------------------------------------


def test_all_files_are_there_and_no_others(folder: Path) -> None:
    assert listing(folder) == [
        "convergence.svg",
        "gradients.svg",
        "metrics.csv",
        "report.html",
        "report.md",
        "scales.csv",
        "scales.svg",
        "steps.csv",
        "times.csv",
    ]


def test_metrics_have_a_row_for_every_point(folder: Path, runs: list[Run]) -> None:
    rows = _table(folder / "metrics.csv")
    assert list(rows[0]) == [
        *("formulation", "seed", "step", "train_loss", "test_loss", "test_accuracy")
    ]
    expected = [(run, point) for run in runs for point in run.points]
    assert len(rows) == len(expected) == 12
    for row, (run, point) in zip(rows, expected, strict=True):
        assert (row["formulation"], int(row["seed"])) == (run.formulation, run.seed)
        assert int(row["step"]) == point.step
        assert float(row["test_loss"]) == point.figures["loss"]  # to the bit
        assert float(row["test_accuracy"]) == point.figures["accuracy"]
        train_loss = float(row["train_loss"])
        assert train_loss == point.train_loss or (point.step == 0 and math.isnan(train_loss))


def test_steps_have_a_row_for_every_update(folder: Path, runs: list[Run]) -> None:
    rows = _table(folder / "steps.csv")
    assert list(rows[0]) == ["formulation", "seed", "step", "train_loss", "gradient_norm"]
    expected = [
        (run.formulation, run.seed, i + 1, run.loss[i], run.gradient_norm[i])
        for run in runs
        for i in range(10)
    ]
    assert [
        (
            row["formulation"],
            int(row["seed"]),
            int(row["step"]),
            float(row["train_loss"]),
            float(row["gradient_norm"]),
        )
        for row in rows
    ] == expected


def test_scales_have_a_row_for_every_gamma_before_and_after(folder: Path, runs: list[Run]) -> None:
    rows = _table(folder / "scales.csv")
    assert list(rows[0]) == ["formulation", "seed", "when", "gamma_norm", "std"]
    assert len(rows) == len(runs) * 2 * 4
    for run in runs:
        for when, scale in (("initial", run.initial), ("final", run.final)):
            assert scale is not None
            found = [
                (float(row["gamma_norm"]), float(row["std"]))
                for row in rows
                if (row["formulation"], row["seed"], row["when"])
                == (run.formulation, str(run.seed), when)
            ]
            expected = zip(scale.magnitude.tolist(), scale.std.tolist(), strict=True)
            assert found == list(expected)


def test_times_have_a_row_for_every_point(folder: Path, runs: list[Run]) -> None:
    rows = _table(folder / "times.csv")
    assert list(rows[0]) == ["formulation", "seed", "step", "seconds"]
    assert [
        (row["formulation"], int(row["seed"]), int(row["step"]), float(row["seconds"]))
        for row in rows
    ] == [(r.formulation, r.seed, p.step, p.seconds) for r in runs for p in r.points]


def test_outcomes_are_written_as_tables(tmp_path: Path) -> None:
    runs = _registered(tmp_path)
    _write(tmp_path, runs, DICE, target=None)
    rows = _table(tmp_path / "outcome.csv")
    assert list(rows[0]) == ["formulation", "seed", "figure", "value"]
    assert [tuple(row.values()) for row in rows] == [
        *(("mip", "0", "best gamma", "0.25"), ("mip", "0", "dice there", "0.75")),
        *(("mip", "1", "best gamma", "0.5"), ("mip", "1", "dice there", "0.5")),
        *(("plain", "0", "dice there", "0.625"),),
    ]
    rows = _table(tmp_path / "outcome-test-pairs-against-gamma.csv")
    assert list(rows[0]) == ["formulation", "seed", "gamma", "folding (%)"]
    assert [tuple(row.values()) for row in rows] == [
        *(("mip", "0", "0.0", "1.5"), ("mip", "0", "1.0", "0.25")),
        *(("mip", "1", "0.0", "2.5"), ("mip", "1", "1.0", "0.125")),
    ]


def test_a_long_table_is_in_its_csv_alone(tmp_path: Path) -> None:
    tables = [
        (title, ("n",), [(n,) for n in range(rows)])
        for title, rows in (("Short", 24), ("Long", 25))
    ]
    run = make_run("mip", metric=DICE, outcome=Outcome({"dice": 0.7}, tables))
    _write(tmp_path, [run], DICE, target=None)
    for page in ("report.md", "report.html"):
        text = (tmp_path / page).read_text()
        assert "Short" in text
        assert "Long" not in text
    assert len(_table(tmp_path / "outcome-long.csv")) == 25


def test_equal_runs_give_equal_bytes(folder: Path, tmp_path: Path, runs: list[Run]) -> None:
    _write(tmp_path, runs)
    for name in listing(folder):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("name", ["metrics.csv", "steps.csv", "scales.svg", "report.html"])
def test_an_error_in_the_middle_leaves_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    replace = os.replace

    def refuse(source: Any, target: Any) -> None:
        if Path(target).name == name:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        _write(tmp_path, [make_run("mip")])
    assert not [n for n in listing(tmp_path) if n.startswith(".") or n == name]


# --- the page -------------------------------------------------------------------


def test_the_page_needs_nothing_from_elsewhere(folder: Path) -> None:
    text = (folder / "report.html").read_text("utf-8")
    page = _Page(text)
    loading = {"script", "link", "img", "image", "iframe", "object", "embed", "base", "source"}
    assert not loading & set(page.tags)
    for tag, name, value in page.attributes:
        if name in ("src", "srcset", "href", "xlink:href", "data", "action", "poster"):
            assert value.startswith("#"), (tag, name, value)
        assert not name.startswith("on"), (tag, name)
        if "://" in value:
            assert name.startswith("xmlns") or name == "rdf:resource", (tag, name, value)
    assert "@import" not in text
    assert all(
        target.strip("'\"").startswith("#") for target in re.findall(r"url\(([^)]*)\)", text)
    )
    assert "://" not in page.text


def test_the_page_has_the_figures(folder: Path) -> None:
    svgs = _svgs(folder / "report.html")
    assert len(svgs) == 3
    for svg in svgs:
        drawn = [e for e in svg.iter() if e.tag.endswith("}path") and e.get("d")]
        assert len(drawn) > 10


def test_the_figures_stand_alone_as_well(folder: Path) -> None:
    page = (folder / "report.html").read_text("utf-8")
    for name in ("convergence", "scales", "gradients"):
        text = (folder / f"{name}.svg").read_text("utf-8")
        assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
        assert text in page


def test_references_within_the_figures_are_unambiguous(folder: Path) -> None:
    # Figures in one page share their names: what is referred to must be the same in all.
    defined: dict[str, set[str]] = {}
    referred: set[str] = set()
    for svg in _svgs(folder / "report.html"):
        own = set()
        for element in svg.iter():
            for name, value in element.attrib.items():
                own.update(re.findall(r"url\(#([^)]*)\)", value))
                if name.endswith("href"):
                    own.add(value.removeprefix("#"))
            if "id" in element.attrib:
                content = ElementTree.tostring(element, encoding="unicode").strip()
                defined.setdefault(element.attrib["id"], set()).add(content)
        assert own <= set(defined)
        referred |= own
    assert referred
    assert all(len(defined[name]) == 1 for name in referred)


def test_the_page_has_the_command_the_settings_and_the_versions(folder: Path) -> None:
    page = _Page((folder / "report.html").read_text("utf-8"))
    assert COMMAND in page.text
    assert ["data", "digits"] in page.rows
    assert ["hidden", "(16, 128)"] in page.rows
    assert ["lr", "0.0003"] in page.rows
    provenance = report.provenance(COMMAND)
    assert {"torch", "hyperlight", "python"} <= set(provenance)
    for name, value in provenance.items():
        assert name == "command" or [name, value] in page.rows


def test_the_page_has_the_tables(folder: Path) -> None:
    rows = _Page((folder / "report.html").read_text("utf-8")).rows
    assert ["", "classical", "MIP"] in rows
    assert ["steps to 90 % accuracy", "not within 10", "8 ± 4"] in rows
    assert ["milliseconds per step", "15.0 ± 0.0", "16.0 ± 1.4"] in rows
    assert ["time spent waiting for data (%)", "25.0 ± 0.0", "37.5 ± 17.7"] in rows
    assert ["gradient norm, std / mean, first 100 steps", "0.50", "0.50"] in rows
    heading = ["step", "accuracy (%), classical", "accuracy (%), MIP"]
    assert [*heading, "loss, classical", "loss, MIP"] in rows
    assert ["10", "10.5 ± 0.7", "92.0 ± 1.4", "2.00 ± 0.00", "1.05 ± 1.34"] in rows
    start, end = (make_run("mip", initial=s).initial.variation for s in (RISING, STEEP))
    assert f"{start:.1%}" != f"{end:.1%}"
    name = "variation of the weights' scale along gamma: start, end"
    assert [name, f"{start:.1%}, {end:.1%}", "0.0%, 0.0%"] in rows


def test_the_page_says_what_was_found(folder: Path, runs: list[Run]) -> None:
    text = " ".join(_Page((folder / "report.html").read_text("utf-8")).text.split())
    summaries = _summaries(runs)
    assert report.conclusion(summaries, 90.0) in text
    for claim in claims(summaries):
        assert claim.text in text
        assert claim.measured in text
    assert [claim.verdict for claim in claims(summaries)][::2] == ["holds", "refuted"]
    assert text.count("refuted") == 1  # the gradient swings alike in these runs
    assert "Mean ± standard deviation over 2 seeds." in text


def test_the_page_in_markdown_says_the_same(folder: Path, runs: list[Run]) -> None:
    text = (folder / "report.md").read_text("utf-8")
    assert text.startswith("# A title\n\nA note. Mean ± standard deviation over 2 seeds.")
    assert f"`{COMMAND}`" in text
    assert "\n\n\n" not in text
    assert report.conclusion(_summaries(runs), 90.0) in text
    for claim in claims(_summaries(runs)):
        assert f"{claim.text} ({claim.source}). Measured: {claim.measured}." in text
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    page = _Page((folder / "report.html").read_text("utf-8"))
    for row in page.rows:
        assert row in rows or len(row) == 2  # settings and versions are no table here
    links = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert links == ["convergence.svg", "scales.svg", "gradients.svg"]
    for name, value in {
        "hidden": "(16, 128)",
        "torch": report.provenance(COMMAND)["torch"],
    }.items():
        assert f"{name} {value}" in text


def test_pictures_are_linked_in_markdown(tmp_path: Path) -> None:
    run = make_run("mip")
    drawn = tmp_path / "mip-seed0" / "dice.png"
    drawn.parent.mkdir()
    drawn.write_bytes(b"a picture")
    pictures = [("Dice | gamma", drawn), ("Lost", drawn.with_name("lost.png"))]
    run.outcome = Outcome({"dice": 0.7}, [("All", ("a|b",), [(1,)])], pictures)
    _write(tmp_path, [run])
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "![Dice | gamma](mip-seed0/dice.png)" in text
    assert "lost.png" not in text
    assert "| a\\|b |\n|---|\n| 1 |\n" in text


def test_a_picture_elsewhere_is_not_embedded(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"a secret")
    run = tmp_path / "out" / "mip-seed0"
    run.mkdir(parents=True)
    (run / "link.png").symlink_to(secret)
    (run / "dice.html").write_bytes(b"a page")
    for name in ("link.png", "dice.html"):
        made = make_run("mip", outcome=Outcome({"dice": 0.7}, [], [("Dice", run / name)]))
        with pytest.raises(LabError) as raised:
            _write(run.parent, [made])
        assert str(raised.value) == (
            f"The picture {run / name} is not a .png file in the folder of its run, so it is not "
            f"put into the report. Delete the folder {run} to train this run again."
        )
        assert not (run.parent / "report.html").exists()


def test_a_page_of_one_run(tmp_path: Path) -> None:
    text = _Page(_write(tmp_path, [make_run("encoding")]).read_text("utf-8")).text
    assert "One seed." in text
    assert "input encoding alone" in text
    assert "What the paper says" not in text
    assert len(_svgs(tmp_path / "report.html")) == 3


def test_a_page_of_a_plain_network(tmp_path: Path) -> None:
    page = _write(tmp_path, [plain_run(0), plain_run(1)])
    rows = _Page(page.read_text("utf-8")).rows
    assert [
        "variation of the weights' scale along gamma: start, end",
        "no predicted weights",
    ] in rows
    assert ["steps to 90 % accuracy", "10 ± 0"] in rows
    assert len(_svgs(page)) == 2
    assert "scales.svg" not in listing(tmp_path)
    assert _table(tmp_path / "scales.csv") == []
    assert "nan" not in page.read_text("utf-8")


def test_a_page_of_a_plain_network_beside_others(tmp_path: Path) -> None:
    page = _write(tmp_path, [make_run("mip"), plain_run()])
    assert len(_svgs(page)) == 3
    assert {row["formulation"] for row in _table(tmp_path / "scales.csv")} == {"mip"}
    assert ["", "MIP", "plain network"] in _Page(page.read_text("utf-8")).rows


@pytest.mark.usefixtures("no_figures")
def test_a_page_of_another_metric_without_a_target(tmp_path: Path) -> None:
    runs = _registered(tmp_path)
    page = _write(tmp_path, runs, DICE, target=None)
    rows = _Page(page.read_text("utf-8")).rows
    heading = ["step", "dice, MIP", "dice, plain network", "loss, MIP", "loss, plain network"]
    assert heading in rows
    assert ["10", "0.750 ± 0.000", "0.625", "2.00 ± 0.00", "2.00"] in rows
    assert ["best gamma", "0.375 ± 0.18", ""] in rows
    assert ["dice there", "0.625 ± 0.18", "0.625"] in rows
    assert not [row for row in rows if row[0].startswith("steps to")]
    reached = _Page(_write(tmp_path, runs, DICE, target=0.7).read_text("utf-8")).rows
    assert ["steps to 0.7 dice", "10 ± 0", "not within 10"] in reached


@pytest.mark.usefixtures("no_figures")
def test_the_page_shows_what_the_first_seed_found(tmp_path: Path) -> None:
    page = _write(tmp_path, _registered(tmp_path), DICE, target=None)
    parsed = _Page(page.read_text("utf-8"))
    assert parsed.text.count("MIP, seed 0") == 1
    assert "MIP, seed 1" not in parsed.text
    assert "Plain network, seed" not in parsed.text  # nothing to show there
    assert "Test pairs against gamma" in parsed.text
    assert ["0.0", "1.5"] in parsed.rows
    assert ["0.0", "2.5"] not in parsed.rows
    (source,) = [value for tag, name, value in parsed.attributes if (tag, name) == ("img", "src")]
    kind, _, encoded = source.partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(encoded) == PICTURE
    assert "A caption & more" in parsed.text
    assert "Gone" not in parsed.text


@pytest.mark.usefixtures("no_figures")
def test_text_from_outside_is_escaped(tmp_path: Path) -> None:
    page = _write(
        tmp_path,
        [make_run("mip")],
        title=f"title {HOSTILE}",
        note=f"note {HOSTILE}",
        command=f"command {HOSTILE}",
        settings={f"key {HOSTILE}": f"value {HOSTILE}", "path": Path("<b>")},
    )
    text = page.read_text("utf-8")
    assert "<script" not in text
    assert "<b>" not in text
    parsed = _Page(text)
    assert "script" not in parsed.tags
    for place in ("title", "note", "command"):
        assert f"{place} {HOSTILE}" in parsed.text
    assert [f"key {HOSTILE}", f"value {HOSTILE}"] in parsed.rows


@pytest.mark.usefixtures("no_figures")
def test_letters_beyond_ascii(tmp_path: Path) -> None:
    page = _write(tmp_path, [make_run("mip")], title="Größe ± µ", settings={"path": "日本"})
    text = page.read_bytes().decode("utf-8")
    assert '<meta charset="utf-8">' in text
    assert "Größe ± µ" in text
    assert "日本" in text
    # Names of files may have bytes that are not UTF-8.
    page = _write(tmp_path, [make_run("mip")], title="caf\udce9", settings={"path": "\udcff"})
    for path in (page, page.with_suffix(".md")):
        text = path.read_bytes().decode("utf-8")
        assert r"caf\udce9" in text
        assert r"\udcff" in text


# --- the terminal ---------------------------------------------------------------


def _printed(runs: Sequence[Run]) -> str:
    out = io.StringIO()
    console = Console(file=out, width=200)
    for table in report.table(_summaries(runs), 90.0):
        console.print(table)
    return out.getvalue()


def test_the_tables_for_a_terminal(runs: list[Run]) -> None:
    text = _printed(runs)
    assert "mean ± std over 2 seeds" in text
    assert "92.0 ± 1.4" in text
    assert "10.5 ± 0.7" in text
    assert "not within 10" in text
    assert "(one seed)" in _printed(runs[:1])
    results, facts = report.table(_summaries(runs), 90.0)
    assert results.row_count == 2
    assert facts.row_count == 5
    untold = report.table(_summaries(runs, None), None)[1]
    assert untold.row_count == 4  # without the steps to a target


def test_what_was_found_out_has_a_table_for_a_terminal(tmp_path: Path) -> None:
    made = report.table(_summaries(_registered(tmp_path), None, DICE), None)
    assert [table.title for table in made] == [
        "On test data (mean ± std over 2 seeds)",
        "Final results on all test data (mean ± std over 2 seeds)",
        "Summary (mean ± std over 2 seeds)",
    ]
    assert list(made[1].columns[0].cells) == ["best gamma", "dice there"]
    assert list(made[1].columns[1].cells) == ["0.375 ± 0.18", "0.625 ± 0.18"]


def _three(ours: tuple[float, ...]) -> list[Run]:
    """Runs of three methods, a seed for each of the final figures of ours."""
    named = Method("ours", "ours", "#cc79a7", "mip", {"hidden": (4,)}, {"lr": 0.1})
    runs = []
    for seed, end in enumerate(ours):
        runs.append(make_run("classical", seed, accuracy=(10.0, 40.0 + 2.0 * seed)))
        runs.append(make_run("mip", seed, accuracy=(10.0, 80.0 - seed)))
        last = make_run("mip", seed, accuracy=(10.0, end))
        runs.append(dataclasses.replace(last, method=named))
    return runs


def test_the_conclusion_says_who_is_ahead(runs: list[Run]) -> None:
    assert report.conclusion(_summaries(runs), 90.0) == (
        "After 10 steps, test accuracy: MIP 92.0 %, classical 10.5 %. By these "
        "seeds, the lead of MIP over classical is sure. Steps to 90 %: classical not within 10, "
        "MIP 8 ± 4."
    )
    assert "Steps to" not in report.conclusion(_summaries(runs, None), None)
    assert report.conclusion(_summaries([make_run("mip")]), 90.0) == ""
    behind = report.conclusion(_summaries(_three((70.0, 69.0)), None), None)
    assert behind == (
        "After 5 steps, test accuracy: MIP 79.5 %, ours 69.5 %, classical 41.0 %. By these "
        "seeds, the lead of MIP over ours and classical is sure."
    )


def test_the_conclusion_says_what_is_not_decided() -> None:
    assert report.conclusion(_summaries(_three((90.0, 93.0)), None), None) == (
        "After 5 steps, test accuracy: ours 91.5 %, MIP 79.5 %, classical 41.0 %. By these "
        "seeds, the lead of ours over classical is sure; over MIP is not decided."
    )
    alone = report.conclusion(_summaries(_three((90.0,)), None), None)
    assert alone.endswith("By one seed, the lead of ours over MIP and classical is not decided.")


def test_the_conclusion_speaks_of_the_metric() -> None:
    runs = [
        make_run(name, accuracy=(0.25, last), metric=DICE)
        for name, last in (("mip", 0.75), ("classical", 0.5))
    ]
    sentence = report.conclusion(_summaries(runs, 0.7, DICE), 0.7)
    assert "test dice: MIP 0.750, classical 0.500." in sentence
    assert "Steps to 0.7: MIP 5, classical not within 5." in sentence


# --- figures --------------------------------------------------------------------


def test_figures_show_every_formulation() -> None:
    assert list(figures.COLORS) == list(get_args(Formulation))
    controls = [name for name in figures.COLORS if name not in SWITCHES]
    runs = [make_run(name, seed) for seed in (0, 1) for name in SWITCHES]
    runs += [plain_run(seed, name) for seed in (0, 1) for name in controls]
    summaries = _summaries(runs)
    assert len(summaries) == 9
    titles = [summary.title for summary in summaries]
    drawn = [figures.convergence(summaries, 90.0), figures.scales(runs), figures.gradients(runs)]
    for figure, expected in zip(drawn, (titles, titles[:4], titles), strict=True):
        (legend,) = [figure.axes[0].get_legend(), *figure.legends][-1:]
        assert legend is not None
        assert bool(figure.legends) == (len(expected) > 5)  # beside the panels
        assert [text.get_text() for text in legend.get_texts()] == expected
        assert figures.svg(figure).startswith("<svg")


def test_figures_draw_the_figures() -> None:
    runs = [make_run("mip", 0), make_run("mip", 1, accuracy=(20.0, 60.0, 97.0))]
    accuracy, loss = figures.convergence(_summaries(runs), 80.0).axes
    assert accuracy.lines[0].get_xydata().tolist() == [[0, 15], [5, 55], [10, 96]]
    assert list(accuracy.lines[1].get_ydata()) == [80.0, 80.0]
    assert list(loss.lines[0].get_xdata()) == [5, 10]
    assert accuracy.get_ylabel() == "test accuracy (%)"
    assert accuracy.get_ylim() == (0.0, 102.0)
    initial, final = figures.scales([make_run("mip", final=RISING)]).axes
    assert list(initial.lines[0].get_ydata()) == [1.0] * 4
    assert list(final.lines[0].get_ydata()) == pytest.approx(list(RISING))
    runs[1].gradient_norm = [5.0, 7.0] * 5
    (norms,) = figures.gradients(runs).axes
    assert norms.get_yscale() == "log"
    drawn = [list(line.get_ydata()) for line in norms.lines]
    assert drawn == [[3.0, 1.0] * 5, [5.0, 7.0] * 5, [4.0, 4.0] * 5]  # the seeds, their mean
    assert list(norms.lines[-1].get_xdata()) == list(range(1, 11))


def test_figures_of_another_metric_without_a_target() -> None:
    runs = [make_run("mip", accuracy=(0.25, 0.75), metric=DICE)]
    overlap, _ = figures.convergence(_summaries(runs, None, DICE), None).axes
    assert overlap.get_ylabel() == "test dice"
    assert overlap.get_ylim()[1] < 1.0
    assert len(overlap.lines) == 1
    assert overlap.lines[0].get_xydata().tolist() == [[0, 0.25], [5, 0.75]]


def test_only_early_gradients_are_drawn() -> None:
    run = make_run("mip", accuracy=(10.0, 20.0), every=130)
    (norms,) = figures.gradients([run]).axes
    assert list(norms.lines[0].get_xdata()) == list(range(1, 101))


def test_gradients_of_zero_are_drawn() -> None:
    run = make_run("mip", norms=[0.0] * 10)
    figure = figures.gradients([run])
    assert figure.axes[0].get_yscale() == "linear"
    assert figures.svg(figure).startswith("<svg")


# --- runs that diverged ---------------------------------------------------------


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("which", "bad"),
    [("mip", math.nan), ("classical", math.inf), ("both", math.nan), ("a seed", math.inf)],
)
def test_diverged_runs_still_give_a_report(tmp_path: Path, which: str, bad: float) -> None:
    runs = [
        diverged(name, seed, bad)
        if which in (name, "both") or (which == "a seed" and seed == 1)
        else make_run(name, seed)
        for seed in (0, 1)
        for name in ("classical", "mip")
    ]
    page = _write(tmp_path, runs)
    assert len(_svgs(page)) == 3
    words = "1 of 2 seeds" if which == "a seed" else "2 of 2 seeds"
    lost = ["classical", "MIP"]
    if which in ("mip", "classical"):
        lost = [TITLES[which]]
    step = "steps 1, 1" if which != "a seed" else "step 1"
    text = _Page(page.read_text("utf-8")).text
    markdown = (tmp_path / "report.md").read_text("utf-8")
    for name in lost:
        assert f"{name}: {words} diverged at {step}." in text
        assert f"{name}: {words} diverged at {step}." in markdown
    assert text.count("not testable") == markdown.count("**Not testable**") == 3
    assert "does not hold here" not in text
    assert "Choose a smaller --lr." in text
    for found in (text, markdown, _printed(runs)):
        assert "nan" not in found
        assert "inf" not in found
    steps = [row for row in _table(tmp_path / "steps.csv") if row["gradient_norm"] == str(bad)]
    expected = {"mip": 20, "classical": 20, "both": 40, "a seed": 20}
    assert len(steps) == expected[which]
    assert len(_table(tmp_path / "metrics.csv")) == 12


def test_a_diverged_run_has_words_instead_of_figures(tmp_path: Path) -> None:
    outcome = Outcome({"log-loss": 3.25})
    bad = make_run("mip", losses=[2.0] * 6 + [math.nan] * 4, accuracy=(10.0, 50.0, 10.0))
    runs = [dataclasses.replace(bad, outcome=outcome), make_run("classical", outcome=outcome)]
    results, final, facts = report.table(_summaries(runs), 90.0)
    cells = [list(column.cells) for column in results.columns]
    lost = "diverged at step 7"
    assert cells == [["5", "10"], ["50.0", lost], ["50.0", "95.0"], ["2.00", lost], ["2.00"] * 2]
    assert list(final.columns[1].cells) == ["diverged"]
    assert list(final.columns[2].cells) == ["3.25"]
    assert [next(iter(column.cells)) for column in facts.columns] == ["divergence", lost, "none"]
    assert report.conclusion(_summaries(runs), 90.0).startswith(f"MIP: {lost}. The loss or the")
    alone = _printed(runs[1:])
    assert "diverge" not in alone


@pytest.mark.usefixtures("no_figures")
def test_the_page_replaces_an_older_one(tmp_path: Path) -> None:
    write_text(tmp_path / "report.html", "old")
    _write(tmp_path, [make_run("mip")])
    assert "A title" in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.usefixtures("no_figures")
def test_a_slider_stands_in_the_page_and_by_itself(tmp_path: Path) -> None:
    knob = ("MIP, seed 0. A & B.", hl.explore(small_model(), torch.rand(1, 3), gamma=3))
    _write(tmp_path, [make_run("mip")], knob=knob)
    assert (tmp_path / "knob.html").read_text("utf-8") == knob[1].html
    page = (tmp_path / "report.html").read_text("utf-8")
    assert knob[1].part in page
    assert "MIP, seed 0. A &amp; B." in page
    assert "<code>knob.html</code>" in page
    assert "A & B. Turn it in a browser: [knob.html](knob.html)." in (
        tmp_path / "report.md"
    ).read_text("utf-8")
    _write(tmp_path, [make_run("mip")])  # another run, which has none
    assert not (tmp_path / "knob.html").exists()
    assert "knob" not in (tmp_path / "report.html").read_text("utf-8")
    assert "knob" not in (tmp_path / "report.md").read_text("utf-8")


@pytest.mark.usefixtures("no_figures")
def test_the_verdict_and_convergence_come_first_and_the_rest_is_folded(tmp_path: Path) -> None:
    page = (_write(tmp_path, [make_run("mip")])).read_text("utf-8")
    top, _, rest = page.partition("<details>")
    assert "Test accuracy after 10 steps: MIP 95.0 %." in top
    assert top.count("<svg") == 1
    assert "<table" not in top
    assert "<details open" not in page
    assert rest.count("<svg") == 2


# --- several methods along gamma --------------------------------------------------

FRONT = ("rate", "distortion")


def _tested(ours: Run, points: dict[float, tuple[float, float, float]]) -> Run:
    """The run with these rates, distortions and accuracies by gamma."""
    rows = [(gamma, *values) for gamma, values in points.items()]
    heading = ("gamma", *FRONT, ACCURACY.heading)
    return dataclasses.replace(ours, outcome=Outcome({}, [("Along gamma", heading, rows)]))


def _family() -> list[Run]:
    """Three methods, of which the first has nothing along gamma."""
    runs = []
    for seed in (0, 1):
        up = 1.0 * seed
        classical, mip = make_run("classical", seed), make_run("mip", seed)
        points = {0.01: (30.0 + up, 1.0, 90.0), 1.0: (5.0, 4.0, 60.0), 10.0: (0.5, 9.0, 10.0)}
        plain = {0.01: (31.0, 0.5, 95.0), 10.0: (0.0, 10.0, 0.0)}
        runs += [classical, _tested(mip, points), _tested(plain_run(seed), plain)]
    return runs


def test_methods_have_a_table_along_gamma(tmp_path: Path) -> None:
    runs = _family()
    expected = [
        ["gamma (rate, distortion)", "MIP", "plain network"],
        ["0.01", "30.50, 1.00", "31.00, 0.50"],
        ["1", "5.00, 4.00", ""],
        ["10", "0.50, 9.00", "0.00, 10.00"],
    ]
    rows = _Page(_write(tmp_path, runs, front=FRONT).read_text("utf-8")).rows
    assert [row for row in rows if row in expected] == expected
    assert len(_svgs(tmp_path / "report.html")) == 4
    assert "![What the knob does](along.svg)" in (tmp_path / "report.md").read_text("utf-8")
    made = report.table(_summaries(runs), 90.0, FRONT)
    (table,) = [table for table in made if str(table.title).startswith("Along gamma")]
    assert [column.header for column in table.columns] == expected[0]
    report.clear(tmp_path)
    assert listing(tmp_path) == []


@pytest.mark.usefixtures("no_figures")
def test_without_two_figures_that_trade_off_it_has_the_metric(tmp_path: Path) -> None:
    rows = _Page(_write(tmp_path, _family()).read_text("utf-8")).rows
    assert ["gamma (accuracy (%))", "MIP", "plain network"] in rows
    assert ["0.01", "90.0", "95.0"] in rows


@pytest.mark.usefixtures("no_figures")
def test_one_method_along_gamma_is_left_to_its_task(tmp_path: Path) -> None:
    runs = [run for run in _family() if run.formulation != "plain"]
    _write(tmp_path, runs, front=FRONT)
    assert "along.svg" not in listing(tmp_path)
    titles = [str(table.title) for table in report.table(_summaries(runs), 90.0, FRONT)]
    assert not [title for title in titles if title.startswith("Along gamma")]


def test_a_figure_along_gamma_has_plain_networks_as_points() -> None:
    summaries = [summary for summary in _summaries(_family()) if summary.along()]
    metric, front = figures.along(summaries, FRONT).axes
    assert metric.get_xscale() == "log"
    assert metric.get_ylabel() == "test accuracy (%)"
    mip, plain = metric.lines[:2]
    assert mip.get_xydata().tolist() == [[0.01, 90.0], [1.0, 60.0], [10.0, 10.0]]
    assert (mip.get_linestyle(), mip.get_color()) == ("-", figures.COLORS["mip"])
    assert plain.get_xydata().tolist() == [[0.01, 95.0], [10.0, 0.0]]
    assert (plain.get_linestyle(), plain.get_marker()) == ("None", "o")
    legend = metric.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["MIP", "plain network"]
    assert [line.get_xydata().tolist() for line in front.lines] == [
        [[30.5, 1.0], [5.0, 4.0], [0.5, 9.0]],
        [[31.0, 0.5], [0.0, 10.0]],
    ]
    assert (front.get_xlabel(), front.get_ylabel()) == ("test rate", "test distortion")
    (alone,) = figures.along(summaries).axes
    assert len(alone.lines) == len(metric.lines)
    narrow = [_tested(make_run("mip"), {0.5: (1.0, 1.0, 50.0), 1.0: (1.0, 1.0, 60.0)})]
    assert figures.along(_summaries(narrow)).axes[0].get_xscale() == "linear"


@pytest.mark.usefixtures("no_figures")
def test_a_method_that_diverged_has_a_word_along_gamma(tmp_path: Path) -> None:
    runs = [run for run in _family() if run.seed == 0]
    points = {0.01: (math.nan, math.nan, math.nan)}
    runs[1] = _tested(diverged("mip"), points)
    rows = _Page(_write(tmp_path, runs, front=FRONT).read_text("utf-8")).rows
    assert ["0.01", "diverged", "31.00, 0.50"] in rows
    assert "along.svg" in listing(tmp_path)
    _write(tmp_path, [_tested(diverged(name), points) for name in ("classical", "mip")])


@pytest.mark.usefixtures("no_figures")
def test_a_method_with_settings_of_its_own_is_reported_under_its_name(tmp_path: Path) -> None:
    page = _write(tmp_path, _three((90.0, 93.0)))
    assert ["", "classical", "MIP", "ours"] in _Page(page.read_text("utf-8")).rows
    for name in ("metrics.csv", "steps.csv", "times.csv", "scales.csv"):
        found = dict.fromkeys(row["formulation"] for row in _table(tmp_path / name))
        assert list(found) == ["classical", "mip", "ours"]


def test_losses_of_many_methods_have_no_columns(tmp_path: Path) -> None:
    results, *_ = report.table(_summaries(_three((90.0, 93.0))), 90.0)
    titles = ["accuracy (%), classical", "accuracy (%), MIP", "accuracy (%), ours"]
    assert [column.header for column in results.columns] == ["step", *titles]


@pytest.mark.parametrize(
    ("accuracies", "limits"),
    [
        ([(10.0, 60.0), (0.0, 50.0)], (0.0, 102.0)),
        ([(-10.0, 60.0), (-5.0, 50.0)], (-12.0, 65.0)),
        ([(-600.0, 60.0), (-400.0, -300.0)], (-27.0, 65.0)),
        ([(-10.0, 60.0), (-5.0, math.nan)], (-12.0, 65.0)),
    ],
)
def test_percentages_far_below_zero_are_cut_off(
    accuracies: list[tuple[float, float]], limits: tuple[float, float]
) -> None:
    names = ("classical", "mip")
    runs = [make_run(name, accuracy=each) for name, each in zip(names, accuracies, strict=True)]
    assert figures.convergence(_summaries(runs), None).axes[0].get_ylim() == limits
