"""Studies: their grids at every size, and one run of all of them at size smoke."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal, get_args
from xml.etree import ElementTree

import pytest

from hyperlight.lab.cli import main
from hyperlight.lab.comparison import VERDICTS
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
    fig4b,
    fig6,
    fig9,
    judging,
    page,
    rates,
)
from hyperlight.lab.studies.base import Group, base, grid, value
from hyperlight.lab.studies.first_step import first_step
from hyperlight.lab.summary import BEYOND, Claim
from hyperlight.lab.tasks.base import Metric, Outcome
from tests.lab.making import RISING, diverged, make_run

SIZES: tuple[Size, ...] = get_args(Size)
DICE = Metric("dice", digits=3)


# --- grids --------------------------------------------------------------------


@pytest.fixture(params=list(STUDIES))
def study(request: pytest.FixtureRequest) -> Study:
    return STUDIES[request.param]


def test_studies_are_registered_by_name() -> None:
    assert all(name == study.name for name, study in STUDIES.items())
    paper = {"fig1a", "fig1b", "fig3a", "fig3b", "fig3c", "fig4a", "fig4b", "fig5b", "fig5c"}
    paper |= {"fig6", "fig7", "fig8", "fig9", "table2", "lr", "runtime"}
    beyond = {"dimension", "rates", "width", "registration", "registration-steps"}
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
    assert len(seeds) == {"smoke": 1, "cpu": 5, "paper": 5}[size]
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
    figure4a, first, gradients, table, rates = _keys(
        "fig4a", "fig1a", "fig3c", "table2", "lr", size=size
    )
    assert first < figure4a
    assert gradients == figure4a
    assert figure4a < table
    assert figure4a <= rates
    figure5c, figure9, figure6, figure7 = _keys("fig5c", "fig9", "fig6", "fig7", size=size)
    assert figure5c < figure9
    assert figure6 == figure7


@pytest.mark.parametrize("name", ["fig5b", "fig5c", "fig8", "fig9", "table2"])
def test_the_paper_s_flowers_have_batch_normalisation(name: str) -> None:
    """As section B.5 says of figure 9."""
    specs = STUDIES[name].specs(Setup("paper"))
    found = [s for s in specs if s.task == "bayes" and s.config.data == "flowers102"]
    assert found
    assert all(spec.config.batch_norm for spec in found)
    if name == "fig5b":  # the paper's tasks are these two
        assert {s.training.optimizer for s in specs if s.task == "bayes"} == {"sgd"}
        assert {s.config.data for s in specs} == {"flowers102", "oasis"}


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
    race = judging.Race.of(mip, other)
    assert race.target == pytest.approx(86.0)
    assert (race.mip_step, race.other_step) == (10.0, 15.0)
    assert race.won
    assert race.ratio == pytest.approx(1.5)
    assert judging.Race.of(other, mip).ratio_text() == "MIP does not get there in 15 steps"
    assert not judging.Race.of(other, mip).won


def test_the_mean_over_seeds_must_reach_the_target() -> None:
    mip = group("mip", (10.0, 90.0, 90.0), (10.0, 30.0, 90.0))
    assert judging.first(mip, 60.0) == 5.0
    assert judging.first(mip, 61.0) == 10.0
    assert judging.first(mip, 91.0) == math.inf


def test_learning_beats_a_group_that_does_not_learn() -> None:
    stuck = group("classical", (10.0, 10.0, 10.0))
    won, lost = (judging.Race.of(group("mip", c), stuck) for c in ((8.0, 9.0, 11.0), (10.0,) * 3))
    assert won.won
    assert won.ratio_text() == "classical barely improves"
    assert not lost.won
    assert lost.ratio_text() == "classical barely improves, and MIP ends no better"
    assert "classical barely improves over its start" in won.text()


def test_what_is_reached_without_learning_is_no_improvement() -> None:
    """A field of zeros has the Dice before registration; a random field at the start has less."""
    zero, mip = group("classical", (50.0, 70.0, 70.1)), group("mip", (40.0, 70.0, 75.0))
    assert not math.isnan(judging.Race.of(mip, zero).target)
    race = judging.Race.of(mip, zero, floor=70.0)
    assert math.isnan(race.target)
    assert race.won
    assert "(classical)" in race.text()
    assert "classical barely improves over the 70.0 % without learning" in race.text()
    assert not judging.Race.of(group("mip", (40.0, 70.0, 69.0)), zero, floor=70.0).won
    worse = group("classical", (50.0, 60.0, 65.0))  # neither has learned
    race = judging.Race.of(group("mip", (40.0, 60.0, 69.0)), worse, floor=70.0)
    assert not race.won
    assert race.ratio_text() == "classical barely improves, and MIP ends no better"


def test_improving_by_a_twentieth_of_what_mip_does_is_not_learning() -> None:
    mip = group("mip", (10.0, 50.0, 90.0))  # improves by 80
    assert math.isnan(judging.Race.of(mip, group("classical", (10.0, 11.0, 13.9))).target)
    assert judging.Race.of(mip, group("classical", (10.0, 11.0, 14.1))).target > 13.0


def test_diverged_runs_rank_last() -> None:
    mip = group("mip", (10.0, 50.0, 60.0))
    broken = Group(mip.spec, [diverged("classical")])
    assert drawing.worth(broken.final) == -math.inf
    assert drawing.best([broken, mip, broken]) is mip
    both = (judging.sooner, judging.no_worse, judging.better)
    assert [claim("s", "t", mip, broken).verdict for claim in both] == ["not testable"] * 3
    assert [claim("s", "t", broken, mip).verdict for claim in both] == ["refuted"] * 3


def test_a_claim_about_groups_that_both_diverged_cannot_be_tested() -> None:
    spec = group("mip", (10.0, 50.0)).spec
    mip, classical = (Group(spec, [diverged(name)]) for name in ("mip", "classical"))
    half = Group(spec, [diverged("classical"), make_run("classical", 1)])
    for claim in (judging.sooner, judging.no_worse, judging.better):
        made = claim("s", "t", mip, classical)
        assert made.verdict == "not testable"
        assert "final accuracy diverged" in made.measured
        assert claim("s", "t", mip, half).verdict == "not testable"
        assert claim("s", "t", half, group("mip", (10.0, 90.0))).verdict == "refuted"


def test_a_baseline_that_learned_nothing_is_no_test() -> None:
    """The most frequent digit is 10.3 % of the test images."""
    mip = group("mip", (10.0, 80.0, 95.0), (10.0, 81.0, 96.0))
    for last, verdict in ((11.2, "not testable"), (11.4, "holds")):
        stuck = group("classical", (10.0, 10.1, last), (10.0, 10.1, last))
        assert judging.at_floor(stuck) == (verdict == "not testable")
        for claim in (judging.no_worse, judging.better):
            assert claim("s", "t", mip, stuck).verdict == verdict


def test_the_floor_of_registration_is_the_dice_before() -> None:
    spec = grid(base("hypermorph", {}, {}), seeds=range(1), formulations=["mip"])[0]

    def registered(last: float) -> Group:
        outcome = Outcome({"dice before registration": 0.709})
        made = [
            make_run("mip", seed, accuracy=(0.6, last), metric=DICE, outcome=outcome)
            for seed in (0, 1)
        ]
        return Group(spec, made)

    assert judging.floor(registered(0.7)) == 0.709
    assert judging.at_floor(registered(0.718))
    assert not judging.at_floor(registered(0.720))
    verdicts = [fig4b.trained(registered(last)) for last in (0.72, 0.718, 0.709)]
    assert verdicts == ["holds", "refuted", "refuted"]


@pytest.mark.parametrize(
    ("mip", "verdict"),
    [
        ((90.2, 94.4), "holds"),  # +0.3 and +0.4
        ((89.2, 93.3), "holds"),  # -0.7 and -0.7: within one point
        ((80.0, 84.1), "refuted"),
        ((87.9, 96.0), "not decided"),  # -2 and +2
        ((90.5,), "not decided"),  # one seed that both have
    ],
)
def test_seeds_are_compared_in_pairs(mip: tuple[float, ...], verdict: str) -> None:
    """The seeds differ by four points, which is more than the methods do."""
    other = group("classical", (10.0, 89.9), (10.0, 94.0))
    one = group("mip", *((10.0, last) for last in mip))
    claim = judging.no_worse("s", "t", one, other)
    assert claim.verdict == verdict
    assert "difference " in claim.measured


def test_seeds_that_one_lacks_do_not_count() -> None:
    one = group("mip", (10.0, 50.0), (10.0, 60.0), (10.0, 70.0))
    other = Group(one.spec, group("mip", (1.0, 2.0), (10.0, 61.0), (10.0, 72.0)).runs[:0:-1])
    assert judging.paired(one, other, judging.final) == ([60.0, 70.0], [61.0, 72.0])


def test_faster_is_a_ratio_of_steps_over_seeds() -> None:
    curves = [(10.0, 80.0, 90.0, 95.0, 96.0), (10.0, 85.0, 90.0, 96.0, 97.0)]
    slow = [(10.0, 10.0, 20.0, 60.0, 80.0), (10.0, 10.0, 30.0, 50.0, 80.0)]
    mip, other = group("mip", *curves), group("classical", *slow)
    race = judging.Race.of(mip, other)
    assert race.factors == [4.0, 4.0]  # 76.5 % at step 20, and at step 5
    assert race.censored
    assert race.faster() == race.faster(3.9) == "holds"
    assert race.faster(4.1) == "refuted"
    assert judging.sooner("s", "t", mip, other).verdict == "holds"
    assert judging.sooner("s", "t", mip, other, stated=4.1).verdict == "refuted"
    back = judging.Race.of(other, mip)
    assert back.factors == [pytest.approx(15.0 / 25.0)] * 2  # it counts as 5 steps after the end
    assert back.faster() == "refuted"
    assert judging.Race.of(group("mip", curves[0]), group("classical", slow[0])).faster() == (
        "not decided"
    )


def test_a_claim_of_speed_may_be_about_the_end_as_well() -> None:
    slow = group("classical", (10.0, 20.0, 88.0, 88.0), (10.0, 20.0, 88.5, 88.5))
    endings: tuple[judging.Ending, ...] = ("any", "level", "higher")
    for last, verdicts in (
        (85.0, ["holds", "refuted", "refuted"]),
        (88.0, ["holds", "holds", "refuted"]),
        (90.0, ["holds", "holds", "holds"]),
    ):
        mip = group("mip", (10.0, 85.0, 86.0, last), (10.0, 85.0, 86.0, last + 0.5))
        for ending, verdict in zip(endings, verdicts, strict=True):
            assert judging.sooner("s", "t", mip, slow, ending=ending).verdict == verdict
            assert judging.races("s", "t", [("a", (mip, slow))], ending=ending).verdict == verdict


def test_a_race_in_many_settings_counts_verdicts() -> None:
    fast = group("mip", (10.0, 80.0, 96.0), (10.0, 85.0, 97.0))
    slow = group("classical", (10.0, 10.0, 80.0), (10.0, 10.0, 82.0))
    stuck = group("classical", (10.0, 10.0, 10.0), (10.0, 10.0, 10.0))
    pairs = {"a": (fast, slow), "b": (fast, stuck), "c": (slow, fast)}

    def races(names: str) -> Claim:
        return judging.races("s", "t", [(name, pairs[name]) for name in names])

    claim = races("aabc")
    assert claim.measured.startswith("holds 2, refuted 1, not testable 1; ")
    assert [races(names).verdict for names in ("aa", "ab", "b", "abc")] == [
        *("holds", "not decided", "not testable", "refuted")
    ]


def _rated(*pairs: tuple[float, float | None]) -> list[Group]:
    """Groups with these final figures on test and validation data."""
    spec = group("mip", (10.0, 50.0)).spec
    made = []
    for test, valid in pairs:
        figures = {} if valid is None else {"validation accuracy": valid}
        run = make_run("mip", accuracy=(10.0, test), outcome=Outcome(figures))
        made.append(Group(spec, [run]))
    return made


def test_rates_are_chosen_on_validation_data() -> None:
    first, second, third = _rated((90.0, 70.0), (80.0, 75.0), (95.0, math.nan))
    assert drawing.best([first, second, third]) is second
    assert second.validation is not None
    assert second.validation.mean == 75.0


def test_without_validation_data_rates_are_chosen_on_test_data() -> None:
    """As of runs that were made before there were figures on validation data."""
    old, new = _rated((90.0, None), (80.0, 75.0))
    assert old.validation is None
    assert drawing.best([new, old]) is old
    assert drawing.best([old, new]) is old


@dataclass
class _Pair:
    """Results of two groups, whatever is asked for."""

    mip: Group
    classical: Group

    def pair(self, **wanted: object) -> tuple[Group, Group]:
        return self.mip, self.classical


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_scales_and_gradients_of_diverged_runs_cannot_be_tested() -> None:
    fine = group("mip", (10.0, 50.0), (10.0, 50.0))
    for run in fine.runs:
        run.gradient_norm = [1.0, 2.0] * (fig3c.EPOCH // 2)
    broken = Group(fine.spec, [diverged("classical"), diverged("classical", 1)])
    for run in broken.runs:
        run.gradient_norm = [1.0] + [math.nan] * (fig3c.EPOCH - 1)
    made = fig1a.claims(_Pair(fine, broken))  # type: ignore[arg-type]
    assert [claim.verdict for claim in made] == ["not decided", "not testable", "holds"]
    assert made[1].measured == "diverged"
    robust = fig1a.claims(_Pair(broken, fine))[-1]  # type: ignore[arg-type]
    assert robust.verdict == "not testable"
    assert robust.measured.endswith("; after: diverged")
    for pair in (_Pair(fine, broken), _Pair(broken, fine)):
        verdicts = {claim.verdict for claim in fig3c.claims(pair)}  # type: ignore[arg-type]
        assert verdicts == {"not testable"}
    calm = fig3c.claims(_Pair(fine, fine))  # type: ignore[arg-type]
    assert {claim.verdict for claim in calm} == {"refuted"}


def test_the_scale_correlates_with_gamma() -> None:
    spec = group("mip", (10.0, 50.0)).spec

    def scaled(name: str, **profiles: tuple[float, ...]) -> Group:
        return Group(spec, [make_run(name, seed, **profiles) for seed in (0, 1)])  # type: ignore[arg-type]

    weak = (1.0, 1.1, 1.2, 1.3)  # varies little, and follows gamma
    back = (1.3, 1.2, 1.1, 1.0)
    pair = _Pair(scaled("mip", final=RISING), scaled("classical", initial=weak, final=back))
    verdicts = [claim.verdict for claim in fig1a.claims(pair)]  # type: ignore[arg-type]
    assert verdicts == ["holds", "refuted", "refuted"]


def test_gradients_are_compared_relative_to_their_mean() -> None:
    """Classical has gradients a tenth as large, which swing five times as much."""
    spec = group("mip", (10.0, 50.0)).spec
    norms = {"mip": [11.0, 9.0], "classical": [1.5, 0.5]}

    def pair(last: float) -> _Pair:
        made = {}
        for name, two in norms.items():
            runs = [make_run(name, seed, accuracy=(10.0, last)) for seed in (0, 1)]
            for run in runs:
                run.gradient_norm = two * 200
            made[name] = Group(spec, runs)
        return _Pair(made["mip"], made["classical"])

    variance, size = fig3c.claims(pair(50.0))[:2]  # type: ignore[arg-type]
    assert [variance.verdict, size.verdict] == ["holds", "refuted"]
    assert "0.0998 (MIP), 0.499 (classical), ratio 5.00 [5.00, 5.00]" in variance.measured
    assert "10 (MIP), 1 (classical), ratio 0.10" in size.measured
    stuck = fig3c.claims(pair(11.0))  # type: ignore[arg-type]
    assert {claim.verdict for claim in stuck} == {"not testable"}


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
        wild = judging.sooner("figure 1", "MIP is sooner", *results.pair(lr=1e9))
        return [wild, Claim("figure 1", "another claim", "1", "refuted", "a guess")]

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
    assert "not testable" in printed
    rows = _rows(tmp_path / "out" / "wild" / "runs-that-diverged.csv")
    assert [list(row.values()) for row in rows] == [
        [name, "1000000000.0", "2 of 2", "2 2"] for name in ("classical", "MIP")
    ]
    kept = _json(tmp_path / "out" / "wild" / "claims.json")
    assert [claim["verdict"] for claim in kept] == ["not testable", "refuted"]  # type: ignore[attr-defined, index]

    written = ["report", "--results", str(tmp_path / "out"), "--out"]
    for name in ("report.html", "report.md"):
        assert main([*written, str(tmp_path / name)]) == 0
        text = " ".join((tmp_path / name).read_text("utf-8").split())
        assert "8 runs over 2 seeds, 4 of which diverged, " in text
        if name.endswith("html"):
            assert ["the paper", "0", "1", "0", "1"] in _Page(text).rows
        else:
            assert "| the paper | 0 | 1 | 0 | 1 |" in text
        assert "Runs that diverged" in text
        assert text.count("a guess") == (2 if name.endswith("html") else 1)
    about = tmp_path / "out" / "wild" / "study.json"
    older = json.loads(about.read_text("utf-8"))
    del older["diverged"]
    about.write_text(json.dumps(older))
    assert main([*written, str(tmp_path / "report.md")]) == 0
    assert "of which diverged" not in (tmp_path / "report.md").read_text("utf-8")


def test_variance_over_seeds_is_judged_by_the_f_distribution() -> None:
    one, two = group("mip", (10.0, 50.0)), group("mip", (10.0, 50.0), (10.0, 50.1))
    wide = group("classical", (10.0, 50.0), (10.0, 90.0))
    assert fig4a.variance("s", "t", one, wide) == []  # a single seed has none
    # With two seeds each, a ratio of 25.5 is the least that is sure.
    assert fig4a.variance("s", "t", two, wide)[0].verdict == "holds"
    assert fig4a.variance("s", "t", wide, two)[0].verdict == "refuted"
    half = group("mip", (10.0, 50.0), (10.0, 55.0))
    assert fig4a.variance("s", "t", half, wide)[0].verdict == "not decided"
    stuck = group("classical", (10.0, 8.0), (10.0, 12.0))
    assert fig4a.variance("s", "t", two, stuck)[0].verdict == "not testable"


def test_spikes_are_losses_far_above_the_scatter_before() -> None:
    noise = [1.0, 1.1, 0.9] * 40  # a scatter of 0.15
    assert fig4a.spikes(make_run("mip", losses=noise)) == 0
    spiky = [*noise[:60], 2.6, *noise[:20], 2.4, 4.0]
    assert fig4a.spikes(make_run("mip", losses=spiky)) == 2
    high = [2.3 + 0.1 * loss for loss in spiky]  # as large beside its scatter
    assert fig4a.spikes(make_run("mip", losses=high)) == 2
    assert fig4a.spikes(make_run("mip", losses=[1.0] * 50)) == 0


def test_the_gap_between_few_and_many_inputs() -> None:
    leads = {1: ((10.0, 90.0), (10.0, 50.0)), 8: ((10.0, 80.0), (10.0, 60.0))}

    class _Inputs:
        def values(self, name: str) -> list[int]:
            return list(leads)

        def pair(self, prior: str, dimensions: int) -> tuple[Group, Group]:
            mip, classical = leads[dimensions]
            return group("mip", mip, mip), group("classical", classical, classical)

    def gap() -> Claim:
        return fig9.gap("s", _Inputs(), "normal")  # type: ignore[arg-type]

    assert gap().verdict == "refuted"  # 20 points in the mean over training, then 10
    assert "20.0 % with 1 input, 10.0 % with 8, change -10.0 [-10.0, -10.0]" in gap().measured
    leads[8] = ((10.0, 99.0), (10.0, 60.5))  # less by half a margin and more
    assert gap().verdict == "holds"
    leads[8] = ((10.0, 99.0), (10.0, 11.0))
    assert gap().verdict == "not testable"


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_first_step_of_theta0_is_that_of_the_plain_network(
    optimizer: Literal["adam", "sgd"],
) -> None:
    """Exactly, or half of it with hl.parameter_groups, where the head's is as long.

    The trunk's is shorter then.
    """
    cell = rates.Cell("lenet", 1, (4, 128))
    found = {}
    for method in (rates.ONE_RATE, rates.GROUPS):
        spec = rates.made(Setup("smoke"), cell, method)
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
        assert claim.verdict in VERDICTS
        # One seed has no interval, so nothing is decided by it: only what is not of seeds is.
        assert claim.verdict not in ("holds", "refuted") or study.name == "rates"
        assert len(claim.text) > 20
        assert claim.text in smoke.printed
        if study.source.startswith(BEYOND):
            assert claim.source == BEYOND
        else:  # controls that the paper has not
            controls = study.name in ("fig4c", "sgd") and claim.source == BEYOND
            assert controls or re.search(r"section|figure|table", claim.source)


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
    counts = [[0] * len(VERDICTS) for _ in range(2)]
    for name in STUDIES:
        found = _json(smoke.out / name / "claims.json")
        assert isinstance(found, list)
        for claim in (Claim(**each) for each in found):
            there = (name, f"{claim.text} ({claim.source})", claim.measured)
            (row,) = (row for row in rows if tuple(row[:3]) == there)
            assert row[3].startswith(claim.verdict)
            assert (claim.guess in row[3]) == (claim.verdict == "refuted") or not claim.guess
            counts[claim.source == BEYOND][VERDICTS.index(claim.verdict)] += 1
    for heading, row in zip(("the paper", "beyond the paper"), counts, strict=True):
        assert [heading, *map(str, row)] in report.rows
    assert "older rules" not in report.text
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
            verdict = "holds" if claim.verdict == "holds" else f"**{claim.verdict}**"
            row = f"| {claim.text} ({claim.source}) | {claim.measured} | {verdict}"
            assert row in text
        for _, heading, rows in study.tables:
            for cells in (heading, *rows):
                assert "".join(f"| {cell} " for cell in cells) + "|\n" in text


PUBLISHED = Path(__file__).parents[2] / "results" / "studies" / "cpu"


def test_published_studies_can_be_shown(tmp_path: Path) -> None:
    """Also those that were judged before there were four verdicts."""
    studies = page.read(PUBLISHED, list(STUDIES))
    out = page.write(studies, tmp_path / "README.md", "hyperlight report")
    text = out.read_text("utf-8")
    counts = {who: [0] * len(VERDICTS) for who in ("the paper", "beyond the paper")}
    for study in studies:
        assert study.claims
        for claim in study.claims:
            reason = f". Possible reason: {claim.reason}" if claim.reason else ""
            verdict = "holds" if claim.verdict == "holds" else f"**{claim.verdict}**"
            cells = (f"{claim.text} ({claim.source})", claim.measured, f"{verdict}{reason}")
            assert "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" in text
            who = "beyond the paper" if claim.source.startswith(BEYOND) else "the paper"
            counts[who][VERDICTS.index(claim.verdict)] += 1
    for who, row in counts.items():
        assert f"| {who} | {' | '.join(map(str, row))} |" in text


def test_claims_from_before_there_were_verdicts(smoke: Smoke, tmp_path: Path) -> None:
    for name, renamed in (("fig1b", True), ("fig4a", False)):
        shutil.copytree(smoke.out / name, tmp_path / name)
        if renamed:
            claim = {"source": "figure 1", "text": "a claim", "measured": "1", "guess": "a guess"}
            old = [{**claim, "holds": holds} for holds in (True, False, None)]
            (tmp_path / name / "claims.json").write_text(json.dumps(old))
    old, new = page.read(tmp_path, list(STUDIES))
    assert [claim.verdict for claim in old.claims] == ["holds", "refuted", "not decided"]
    assert (old.older, new.older) == (True, False)
    for out in (tmp_path / "r.md", tmp_path / "r.html"):
        text = " ".join(page.write([old, new], out, "hyperlight report").read_text().split())
        assert "Judged by older rules" in text
        assert "judged baselines at chance: fig1b. Run them again for the present verdicts." in text
        assert "at chance: all studies." in page.write([old], out, "r").read_text().replace(
            "\n", " "
        )


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
        _claim_with(verdict="yes"),
        _claim_with(verdict=True),
        _claim_with(holds=True),
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
