"""Studies: their grids at every size, and one run of all of them at size smoke."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal, get_args
from xml.etree import ElementTree

import pytest

from hyperlight.lab.cli import main
from hyperlight.lab.engine import Spec
from hyperlight.lab.studies import (
    STUDIES,
    Results,
    Setup,
    Size,
    Study,
    drawing,
    fig1a,
    fig3c,
    fig4a,
    fig6,
    page,
    rates,
)
from hyperlight.lab.studies.base import Group, base, grid, value
from hyperlight.lab.studies.first_step import first_step
from hyperlight.lab.summary import BEYOND, Claim
from tests.lab.making import diverged, make_run

SIZES: tuple[Size, ...] = get_args(Size)


# --- grids --------------------------------------------------------------------


@pytest.fixture(params=list(STUDIES))
def study(request: pytest.FixtureRequest) -> Study:
    return STUDIES[request.param]


def test_studies_are_registered_by_name() -> None:
    assert all(name == study.name for name, study in STUDIES.items())
    paper = {"fig1a", "fig1b", "fig3a", "fig3b", "fig3c", "fig4a", "fig4b", "fig5b", "fig5c"}
    paper |= {"fig6", "fig7", "fig8", "fig9", "table2", "lr", "runtime"}
    beyond = {"dimension", "rates", "width", "family-hypermorph"}
    assert paper | beyond <= set(STUDIES)
    assert {name for name, s in STUDIES.items() if s.source.startswith(BEYOND)} >= beyond


@pytest.mark.parametrize("size", SIZES)
def test_every_run_of_a_study_can_be_trained(study: Study, size: Size, tmp_path: Path) -> None:
    specs = study.specs(Setup(size, data_dir=tmp_path))
    assert specs or study.measure is not None
    for spec in specs:
        spec.config.check()
        spec.training.check()
        assert json.loads(json.dumps(spec.about)) == spec.about
        # Only the size of the paper needs data that must be requested.
        assert size == "paper" or spec.config.data != "oasis"
        assert size != "smoke" or spec.config.data == "digits"


@pytest.mark.parametrize("size", SIZES)
def test_seeds(study: Study, size: Size) -> None:
    specs = study.specs(Setup(size))
    if not specs:
        pytest.skip("models that are not trained")
    seeds = {spec.seed for spec in specs}
    assert seeds == set(range(len(seeds)))
    assert len(seeds) >= {"smoke": 1, "cpu": 3, "paper": 3}[size]
    fewer = study.specs(Setup(size, seeds=2))
    assert {spec.seed for spec in fewer} == {0, 1}
    # Every combination has every seed.
    combinations = {spec.key for spec in specs if spec.seed == 0}
    assert len({spec.key for spec in specs}) == len(combinations) * len(seeds)


def test_the_page_tells_what_is_reduced(study: Study) -> None:
    assert study.reduced["smoke"]
    assert "paper" not in study.reduced
    sizes: tuple[Size, ...] = ("smoke", "cpu")
    for size in sizes:
        for spec in study.specs(Setup(size)):
            said = study.reduced[size]
            assert f"{spec.training.steps} steps" in said.replace("steps (", "steps; ") or (
                # The plain networks of a family have a fraction of the steps.
                spec.formulation == "plain" and study.name.startswith("family")
            )
            assert size != "cpu" or f"batches of {spec.training.batch_size}" in said


def _keys(*names: str, size: Size = "cpu") -> list[set[str]]:
    return [{spec.key for spec in STUDIES[name].specs(Setup(size))} for name in names]


@pytest.mark.parametrize("size", SIZES)
def test_figures_that_share_settings_share_runs(size: Size) -> None:
    figure4a, first, gradients, table, time, rates = _keys(
        "fig4a", "fig1a", "fig3c", "table2", "runtime", "lr", size=size
    )
    assert first < figure4a
    assert gradients == figure4a
    assert figure4a < table
    assert figure4a < time
    assert figure4a <= rates
    figure5c, figure9, figure6, figure7 = _keys("fig5c", "fig9", "fig6", "fig7", size=size)
    assert figure5c < figure9
    assert figure6 == figure7


def test_a_grid_is_all_combinations() -> None:
    start = base("bayes", {}, {"steps": 5})
    specs = grid(start, seeds=range(2), config={"dimensions": [1, 2]}, training={"lr": [1e-3, 1]})
    found = {(s.config.dimensions, s.training.lr, s.formulation, s.seed) for s in specs}
    assert len(specs) == len(found) == 16
    assert (2, 1.0, "classical", 1) in found
    assert all(spec.training.steps == 5 and spec.training.target is None for spec in specs)


def test_architectures_of_the_paper() -> None:
    assert fig6.layers("16", 3) == (16, 16, 16)
    assert fig6.layers("128", 5) == (128,) * 5
    assert fig6.layers("exp", 4) == (32, 64, 128, 256)
    assert len(fig6.architectures(Setup("paper"))) == 9


# --- claims -------------------------------------------------------------------


def group(formulation: str, *curves: tuple[float, ...]) -> Group:
    """Seeds with these accuracies at steps 0, 5, 10, ..."""
    spec = grid(base("bayes", {}, {}), seeds=range(1), formulations=[formulation])[0]  # type: ignore[list-item]
    runs = [make_run(formulation, seed, accuracy=curve) for seed, curve in enumerate(curves)]
    return Group(spec, runs)


def test_the_target_of_a_race_is_most_of_the_other_s_improvement() -> None:
    mip = group("mip", (10.0, 70.0, 96.0, 97.0))
    other = group("classical", (10.0, 10.0, 50.0, 90.0))
    race = drawing.Race.of(mip, other)
    assert race.target == pytest.approx(86.0)
    assert (race.mip_step, race.other_step) == (10.0, 15.0)
    assert race.won
    assert race.ratio == pytest.approx(1.5)
    assert drawing.Race.of(other, mip).ratio_text() == "MIP does not get there in 15 steps"
    assert not drawing.Race.of(other, mip).won


def test_the_mean_over_seeds_must_reach_the_target() -> None:
    mip = group("mip", (10.0, 90.0, 90.0), (10.0, 30.0, 90.0))
    assert drawing.first(mip, 60.0) == 5.0
    assert drawing.first(mip, 61.0) == 10.0
    assert drawing.first(mip, 91.0) == math.inf


def test_learning_beats_a_group_that_does_not_learn() -> None:
    stuck = group("classical", (10.0, 10.0, 10.0))
    won, lost = (drawing.Race.of(group("mip", c), stuck) for c in ((8.0, 9.0, 11.0), (10.0,) * 3))
    assert won.won
    assert won.ratio_text() == "classical barely improves"
    assert not lost.won
    assert lost.ratio_text() == "classical barely improves, and MIP ends no better"
    assert "classical barely improves over its start" in won.text()


def test_what_is_reached_without_learning_is_no_improvement() -> None:
    """A field of zeros has the Dice before registration; a random field at the start has less."""
    zero, mip = group("classical", (50.0, 70.0, 70.1)), group("mip", (40.0, 70.0, 75.0))
    assert not math.isnan(drawing.Race.of(mip, zero).target)
    race = drawing.Race.of(mip, zero, floor=70.0)
    assert math.isnan(race.target)
    assert race.won
    assert "(classical)" in race.text()
    assert "classical barely improves over the 70.0 % without learning" in race.text()
    assert not drawing.Race.of(group("mip", (40.0, 70.0, 69.0)), zero, floor=70.0).won
    assert drawing.sooner("here", "MIP is sooner", mip, zero, floor=70.0).holds
    worse = group("classical", (50.0, 60.0, 65.0))  # neither has learned
    race = drawing.Race.of(group("mip", (40.0, 60.0, 69.0)), worse, floor=70.0)
    assert not race.won
    assert race.ratio_text() == "classical barely improves, and MIP ends no better"


def test_improving_by_a_twentieth_of_what_mip_does_is_not_learning() -> None:
    mip = group("mip", (10.0, 50.0, 90.0))  # improves by 80
    assert math.isnan(drawing.Race.of(mip, group("classical", (10.0, 11.0, 13.9))).target)
    assert drawing.Race.of(mip, group("classical", (10.0, 11.0, 14.1))).target > 13.0


@pytest.mark.parametrize("bad", [math.nan])
def test_diverged_runs_rank_last(bad: float) -> None:
    mip = group("mip", (10.0, 50.0, 60.0))
    broken = Group(mip.spec, [diverged("classical", bad=bad)])
    assert drawing.worth(broken.final) == -math.inf
    assert drawing.sooner("s", "t", mip, broken).holds
    assert drawing.no_worse("s", "t", mip, broken).holds
    assert not drawing.sooner("s", "t", broken, mip).holds
    assert not drawing.no_worse("s", "t", broken, mip).holds


def test_a_claim_about_groups_that_both_diverged_cannot_be_judged() -> None:
    spec = group("mip", (10.0, 50.0)).spec
    mip, classical = (Group(spec, [diverged(name)]) for name in ("mip", "classical"))
    for claim in (
        drawing.sooner("s", "t", mip, classical),
        drawing.no_worse("s", "t", mip, classical),
    ):
        assert claim.holds is None
        assert "final accuracy diverged" in claim.measured
    half = Group(spec, [diverged("classical"), make_run("classical", 1)])
    assert drawing.sooner("s", "t", mip, half).holds is False


@dataclass
class _Pair:
    """Results of two groups, whatever is asked for."""

    mip: Group
    classical: Group

    def pair(self, **wanted: object) -> tuple[Group, Group]:
        return self.mip, self.classical


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_scales_and_gradients_of_diverged_runs_cannot_be_judged() -> None:
    fine = group("mip", (10.0, 50.0))
    fine.runs[0].gradient_norm = [1.0] * fig3c.EPOCH
    broken = Group(fine.spec, [diverged("classical")])
    broken.runs[0].gradient_norm = [1.0] + [math.nan] * (fig3c.EPOCH - 1)
    initial, final, robust = fig1a.claims(_Pair(fine, broken))  # type: ignore[arg-type]
    assert [initial.holds, final.holds, robust.holds] == [False, None, True]
    assert final.measured == "diverged"
    robust = fig1a.claims(_Pair(broken, fine))[-1]  # type: ignore[arg-type]
    assert robust.holds is None
    assert robust.measured.endswith("; after: diverged")
    for pair in (_Pair(fine, broken), _Pair(broken, fine)):
        assert {claim.holds for claim in fig3c.claims(pair)} == {None}  # type: ignore[arg-type]
    calm = fig3c.claims(_Pair(fine, fine))  # type: ignore[arg-type]
    assert {claim.holds for claim in calm} == {False}


def _diverging() -> list[Spec]:
    small = {"hidden": (4,), "evaluation_gammas": 2, "evaluation_images": 20}
    short = {"steps": 3, "batch_size": 8, "optimizer": "sgd", "device": "cpu"}
    made = base("bayes", {**small, "posterior_samples": 2}, short)
    return grid(made, seeds=range(2), training={"lr": [1e-3, 1e9]})


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_study_lists_the_runs_that_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def claims(results: Results) -> list[Claim]:
        wild = drawing.sooner("figure 1", "MIP is sooner", *results.pair(lr=1e9))
        return [wild, Claim("figure 1", "an old claim", "1", False, "a guess")]

    study = Study(
        name="wild",
        title="A study",
        source="figure 1",
        caption="A caption.",
        specs=lambda setup: _diverging(),
        draw=lambda results: drawing.convergence([("", results.groups)]),
        claims=claims,
    )
    monkeypatch.setitem(STUDIES, "wild", study)
    assert main(_study("wild", out=tmp_path / "out", cache=tmp_path / "cache")) == 0
    printed = capsys.readouterr().out
    assert printed.count(": diverged at step 2, ") == 4
    assert printed.count(" after 3 steps, ") == 4
    assert "4 of 8 runs diverged\n" in printed
    assert "cannot be judged" in printed
    rows = _rows(tmp_path / "out" / "wild" / "runs-that-diverged.csv")
    assert [list(row.values()) for row in rows] == [
        [name, "1000000000.0", "2 of 2", "2 2"] for name in ("classical", "MIP")
    ]
    kept = _json(tmp_path / "out" / "wild" / "claims.json")
    assert [claim["holds"] for claim in kept] == [None, False]  # type: ignore[attr-defined, index]

    written = ["report", "--results", str(tmp_path / "out"), "--out"]
    for name in ("report.html", "report.md"):
        assert main([*written, str(tmp_path / name)]) == 0
        text = " ".join((tmp_path / name).read_text("utf-8").split())
        assert "8 runs over 2 seeds, 4 of which diverged, " in text
        assert "0 of 2 claims of the paper hold at this size." in text
        assert "1 cannot be judged." in text
        assert "Runs that diverged" in text
        assert text.count("a guess") == (2 if name.endswith("html") else 1)
    about = tmp_path / "out" / "wild" / "study.json"
    older = json.loads(about.read_text("utf-8"))
    del older["diverged"]
    about.write_text(json.dumps(older))
    assert main([*written, str(tmp_path / "report.md")]) == 0
    assert "of which diverged" not in (tmp_path / "report.md").read_text("utf-8")


def test_a_model_may_be_worse_by_the_spread_over_seeds() -> None:
    other = group("classical", (10.0, 90.0), (10.0, 94.0))  # 92 with a deviation of 2.8
    assert drawing.no_worse("s", "t", group("mip", (10.0, 89.5)), other).holds
    assert not drawing.no_worse("s", "t", group("mip", (10.0, 89.0)), other).holds


def test_one_seed_gives_no_claim_about_variance() -> None:
    one, two = group("mip", (10.0, 50.0)), group("mip", (10.0, 50.0), (10.0, 50.0))
    wide = group("classical", (10.0, 50.0), (10.0, 90.0))
    assert fig4a.variance("s", "t", one, wide) == []
    assert fig4a.variance("s", "t", two, wide)[0].holds
    assert not fig4a.variance("s", "t", wide, two)[0].holds


def test_spikes_are_counted() -> None:
    calm = [1.0] * 100
    assert fig4a.spikes(make_run("mip", losses=calm)) == 0
    spiky = [*calm[:60], 3.5, *calm[:20], 2.5, 4.0]
    assert fig4a.spikes(make_run("mip", losses=spiky)) == 2
    assert fig4a.spikes(make_run("mip", losses=[1.0] * 50)) == 0


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_first_step_of_theta0_is_that_of_the_plain_network(
    optimizer: Literal["adam", "sgd"],
) -> None:
    """Exactly, or half of it with hl.parameter_groups, where the head's is as long.

    The trunk's is shorter then.
    """
    cell = rates.Cell("bayes", 1, 128)
    found = {}
    for method in (rates.ONE_RATE, rates.GROUPS):
        spec = rates._made(Setup("smoke"), cell, method)
        how = dataclasses.replace(spec.training, optimizer=optimizer)
        found[method] = first_step(dataclasses.replace(spec, training=how))
    same, groups = found[rates.ONE_RATE], found[rates.GROUPS]
    assert same.theta0 == pytest.approx(1.0, rel=1e-2)
    assert groups.theta0 == pytest.approx(0.5, rel=1e-2)
    assert 0.0 < groups.trunk < 0.5 * same.trunk
    assert groups.head == pytest.approx(0.5, rel=0.5)  # |f| of a few gammas beside the mean
    for step in (same, groups):
        parts = (step.theta0, step.trunk, step.head)
        assert max(parts) <= step.total <= 1.05 * sum(parts)


def test_results_find_groups_by_any_setting() -> None:
    start = base("bayes", {}, {})
    specs = grid(start, seeds=range(2), training={"optimizer": ["adam", "sgd"]})
    runs = {spec.key: make_run(spec.formulation, spec.seed) for spec in specs}
    results = Results(specs, runs)
    assert [len(g.runs) for g in results] == [2, 2, 2, 2]
    assert results.seeds == 2
    assert results.values("optimizer") == ["adam", "sgd"]
    mip, classical = results.pair(optimizer="sgd")
    assert value(mip.spec, "optimizer") == "sgd"
    assert (mip.spec.formulation, classical.spec.formulation) == ("mip", "classical")
    assert results.where(no_such_setting=1) == []


# --- all of them, once ----------------------------------------------------------


@dataclass
class Smoke:
    """What `hyperlight study` wrote and printed."""

    out: Path
    cache: Path
    printed: str


def _study(*arguments: str, out: Path, cache: Path) -> list[str]:
    places = ["--out", str(out), "--cache", str(cache), "--device", "cpu"]
    return ["study", *arguments, "--size", "smoke", *places]


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    """All studies at size smoke."""
    folder = tmp_path_factory.mktemp("smoke")
    out, cache = folder / "out", folder / "cache"
    capture = pytest.MonkeyPatch()
    lines: list[str] = []
    with capture.context() as patch:
        from hyperlight.lab import cli

        def keep(line: object, to: object) -> None:
            lines.append(str(line))

        def keep_claim(claim: Claim, to: object) -> None:
            lines.append(claim.text)

        patch.setattr(cli, "say", keep)
        patch.setattr(cli, "say_claim", keep_claim)
        assert main(_study(out=out, cache=cache)) == 0
    return Smoke(out, cache, "\n".join(lines))


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _json(path: Path) -> object:
    return json.loads(path.read_text("utf-8"))


def test_every_study_writes_its_files(smoke: Smoke, study: Study) -> None:
    folder = smoke.out / study.name
    about = _json(folder / "study.json")
    assert isinstance(about, dict)
    specs = study.specs(Setup("smoke"))
    assert about["runs"] == len({spec.key for spec in specs})
    assert about["size"] == "smoke"
    assert about["provenance"]["command"] == f"hyperlight study {study.name} --size smoke"
    assert about["reduced"] == study.reduced["smoke"]
    assert sum(maker["runs"] for maker in about["made_by"]) == about["runs"]
    svg = ElementTree.fromstring((folder / "figure.svg").read_text("utf-8"))
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    assert len([e for e in svg.iter() if e.tag.endswith("}path")]) > 10
    expected = {"study.json", "claims.json", "figure.svg"}
    if specs:
        expected.add("curves.csv")
        rows = _rows(folder / "curves.csv")
        points = sum(1 + -(-s.training.steps // s.training.evaluate_every) for s in specs)
        assert len(rows) == points
        assert {row["formulation"] for row in rows} == {spec.formulation for spec in specs}
    for table in about["tables"]:
        expected.add(table["file"])
        assert _rows(folder / table["file"])
    assert {path.name for path in folder.iterdir()} == expected


def test_every_claim_has_a_measurement(smoke: Smoke, study: Study) -> None:
    found = _json(smoke.out / study.name / "claims.json")
    assert isinstance(found, list)
    assert found
    for row in found:
        claim = Claim(**row)
        assert re.search(r"\d", claim.measured)
        assert "nan" not in claim.measured
        # One seed has no interval, so nothing is decided by it.
        assert isinstance(claim.holds, bool) or (claim.holds is None and study.name == "width")
        assert len(claim.text) > 20
        assert claim.text in smoke.printed
        if study.source.startswith(BEYOND):
            assert claim.source == BEYOND
        else:
            assert re.search(r"section|figure|table", claim.source)


def test_a_second_time_nothing_is_trained(
    smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyperlight.lab.engine._compute", None)
    before = {path: path.stat().st_mtime_ns for path in smoke.cache.glob("*/record.json")}
    assert main(_study("fig4a", out=tmp_path, cache=smoke.cache)) == 0
    assert before == {path: path.stat().st_mtime_ns for path in smoke.cache.glob("*/record.json")}
    for name in ("curves.csv", "claims.json", "figure.svg"):
        assert (tmp_path / "fig4a" / name).read_text() == (smoke.out / "fig4a" / name).read_text()
    about = _json(tmp_path / "fig4a" / "study.json")
    assert isinstance(about, dict)
    assert about["wall_seconds"] is None


def test_a_run_of_two_studies_runs_once(smoke: Smoke) -> None:
    keys = {spec.key for s in STUDIES.values() for spec in s.specs(Setup("smoke"))}
    total = sum(len(s.specs(Setup("smoke"))) for s in STUDIES.values())
    assert {path.name for path in smoke.cache.iterdir()} == keys
    assert len(keys) < total


def test_the_list_names_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in STUDIES)


def test_a_study_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "fig4"]) == 2
    err = capsys.readouterr().err
    assert "There is no study 'fig4'; expected all, or one of 'fig1a'" in err
    assert "Did you mean" in err


# --- the page -------------------------------------------------------------------


class _Page(HTMLParser):
    """The cells of all tables, row by row, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.text = ""
        self.inside = False
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.inside:
            self.rows[-1][-1] += data


@pytest.fixture(scope="session")
def report(smoke: Smoke, tmp_path_factory: pytest.TempPathFactory) -> _Page:
    out = tmp_path_factory.mktemp("report") / "sub" / "report.html"
    assert main(["report", "--results", str(smoke.out), "--out", str(out)]) == 0
    return _Page(out.read_text("utf-8"))


def test_the_page_needs_nothing_else(report: _Page) -> None:
    tags = {tag for tag, _ in report.tags}
    assert not tags & {"script", "link", "img", "iframe", "object"}
    for _, attributes in report.tags:
        for name, content in attributes.items():
            if name in ("href", "src", "xlink:href"):
                assert content is not None
                assert content.startswith("#")


def test_the_page_has_every_study(report: _Page, study: Study) -> None:
    assert f"hyperlight study {study.name} --size smoke" in report.text
    assert study.caption in report.text
    assert study.reduced["smoke"] in report.text
    assert sum(tag == "svg" for tag, _ in report.tags) == len(STUDIES)


def test_the_page_has_every_claim_beside_what_was_measured(report: _Page, smoke: Smoke) -> None:
    rows = [row for row in report.rows if len(row) == 4]
    kept = 0
    for name in STUDIES:
        found = _json(smoke.out / name / "claims.json")
        assert isinstance(found, list)
        for claim in (Claim(**each) for each in found):
            there = (name, f"{claim.text} ({claim.source})", claim.measured)
            (row,) = (row for row in rows if tuple(row[:3]) == there)
            assert ("does not hold here" in row[3]) == (claim.holds is False)
            assert (claim.guess in row[3]) == (claim.holds is False) or not claim.guess
            kept += claim.holds is True and claim.source != BEYOND
    assert f"{kept} of " in report.text
    assert "nothing is learned in so few steps" in report.text


def test_the_page_has_the_paper_s_numbers_beside_those_of_the_runs(
    report: _Page, smoke: Smoke
) -> None:
    rows = _rows(smoke.out / "table2" / "table-2-in-the-paper-and-here.csv")
    assert rows[0]["classical, paper"] == "98.1 (1.1)"
    for row in rows:
        assert list(row.values()) in report.rows


def test_the_page_in_markdown_has_the_same_beside_the_figures(smoke: Smoke, tmp_path: Path) -> None:
    out = tmp_path / "sub" / "README.md"
    arguments = ["report", "--results", str(smoke.out), "--out", str(out)]
    assert main(arguments) == 0
    text = out.read_text("utf-8")
    assert f"`{shlex.join(['hyperlight', *arguments])}`" in text
    assert "\n\n\n" not in text
    links = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert [(out.parent / link).resolve() for link in links] == [
        (smoke.out / name / "figure.svg").resolve() for name in STUDIES
    ]
    for study in page.read(smoke.out, list(STUDIES)):
        assert study.about["provenance"]["command"] in text
        assert study.about["caption"] in text
        for claim in study.claims:
            verdict = "holds" if claim.holds else f"**{claim.verdict}**"
            row = f"| {claim.text} ({claim.source}) | {claim.measured} | {verdict}"
            assert row in text
        for _, heading, rows in study.tables:
            for cells in (heading, *rows):
                assert "".join(f"| {cell} " for cell in cells) + "|\n" in text


def test_a_bar_does_not_end_a_cell(smoke: Smoke, tmp_path: Path) -> None:
    study = page.read(smoke.out, list(STUDIES))[0]
    claim = dataclasses.replace(study.claims[0], text="|a| < 1")
    out = tmp_path / "README.md"
    page.write([dataclasses.replace(study, claims=[claim])], out, "hyperlight report")
    assert f"| \\|a\\| < 1 ({claim.source}) |" in out.read_text("utf-8")


def test_the_page_says_where_the_runs_were_made(report: _Page) -> None:
    names = {row[0] for row in report.rows if len(row) == 2}
    assert {"torch", "commit", "cores", "python"} <= names


def test_studies_come_in_the_order_of_the_paper(smoke: Smoke) -> None:
    found = page.read(smoke.out, list(STUDIES))
    assert [each.about["name"] for each in found] == list(STUDIES)


def _break_json(folder: Path) -> None:
    (folder / "claims.json").write_text("{")


def _deep_json(folder: Path) -> None:
    (folder / "claims.json").write_text("[" * 100_000)


def _remove_figure(folder: Path) -> None:
    (folder / "figure.svg").unlink()


def _hostile_figure(folder: Path) -> None:
    (folder / "figure.svg").write_text("<svg><script>alert(1)</script></svg>")


def _old_format(folder: Path) -> None:
    (folder / "study.json").write_text("{}")


def _study_with(name: str, value: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        about = json.loads((folder / "study.json").read_text("utf-8"))
        (folder / "study.json").write_text(json.dumps({**about, name: value}))

    return damage


def _claim_with(**values: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        found = json.loads((folder / "claims.json").read_text("utf-8"))
        (folder / "claims.json").write_text(json.dumps([{**found[0], **values}]))

    return damage


def _outside(folder: Path) -> Path:
    outside = folder.parent / "secret.csv"
    outside.write_text("a,secret\n")
    return outside


def _table_outside(folder: Path) -> None:
    _outside(folder)
    table = {"title": "A table", "file": "../secret.csv", "shown": True}
    _study_with("tables", [table])(folder)


def _table_that_is_a_link(folder: Path) -> None:
    (folder / "link.csv").symlink_to(_outside(folder))
    table = {"title": "A table", "file": "link.csv", "shown": True}
    _study_with("tables", [table])(folder)


def _empty_table(folder: Path) -> None:
    (folder / "empty.csv").touch()
    _study_with("tables", [{"title": "A table", "file": "empty.csv", "shown": True}])(folder)


def _no_text(folder: Path) -> None:
    (folder / "empty.csv").write_bytes(b"\xff")
    _study_with("tables", [{"title": "A table", "file": "empty.csv", "shown": True}])(folder)


@pytest.mark.parametrize(
    "damage",
    [
        *(_break_json, _deep_json, _remove_figure, _hostile_figure, _old_format, _table_outside),
        *(_table_that_is_a_link, _empty_table, _no_text),
        _study_with("title", 3),
        _study_with("training_seconds", "long"),
        _study_with("training_seconds", None),
        _study_with("provenance", {}),
        _study_with("made_by", [3]),
        _study_with("tables", [{"title": "A table"}]),
        _claim_with(holds="yes"),
        _claim_with(more=1),
        _claim_with(text=None),
    ],
)
def test_a_damaged_study_is_named(
    smoke: Smoke,
    tmp_path: Path,
    damage: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "fig1b"
    folder.mkdir()
    for path in (smoke.out / "fig1b").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    damage(folder)
    assert main(["report", "--results", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 2
    err = capsys.readouterr().err
    assert f"The study in {folder} cannot be read (" in err
    assert "Run `hyperlight study fig1b` again; finished runs are not repeated." in err
    assert not (tmp_path / "r.html").exists()


def test_a_folder_without_studies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--results", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert f"There are no studies in {tmp_path}; expected a folder with study.json for each" in err


def test_a_page_that_cannot_be_written(
    smoke: Smoke, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--results", str(smoke.out), "--out", str(tmp_path)]) == 2
    assert f"The page {tmp_path} cannot be written (" in capsys.readouterr().err
