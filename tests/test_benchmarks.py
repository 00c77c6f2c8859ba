"""The benchmark itself: equal work for all subjects, and correct arithmetic. Nothing is timed."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

import hyperlight as hl
from benchmarks import __main__ as cli
from benchmarks import environments, floor, mnist, pays, report, run, scaling, subjects
from benchmarks.families import FAMILIES, FunctionalCall, Ours, OursWide, Plain, predicted
from benchmarks.floor import PASSES, prepare_floor
from benchmarks.run import Measured, Settings, measure
from benchmarks.subjects import SUBJECTS, USUAL, choose, prepare
from benchmarks.worker import peak_memory
from benchmarks.workloads import HEADS, WORKLOADS, lenet
from hyperlight.optim.outer import OuterProduct

SMOKE = WORKLOADS["smoke"]


def _pair(per_gamma: bool = False) -> tuple[Ours, FunctionalCall]:
    """HyperLight and the version by hand, with the same weights in float64."""
    ours = OursWide(lenet(8), per_gamma=per_gamma).double()
    other = FunctionalCall(lenet(8)).double()
    prefix = "1." if per_gamma else ""
    with torch.no_grad():
        for name, theta0 in other.theta0.items():
            theta0.copy_(ours.model.primary.get_parameter(prefix + name))
        other.head.weight.copy_(ours.model.hypernet.head.weight)
        for own, given in zip(
            other.trunk.parameters(), ours.model.hypernet.trunk.parameters(), strict=True
        ):
            own.copy_(given)
    return ours, other


def _close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape
    assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_hyperlight_and_the_version_by_hand_train_alike() -> None:
    pair = _pair()
    x, target = SMOKE.data(torch.device("cpu"))
    losses: list[list[float]] = [[], []]
    for family, found in zip(pair, losses, strict=True):
        update = subjects.optimizer("adam", family.parameters())
        for step in range(5):
            update.zero_grad()
            loss = SMOKE.loss(family(x.double(), SMOKE.gamma(step).double()), target)
            loss.backward()
            update.step()
            found.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert len(set(losses[0])) == 5


def test_images_with_their_own_gamma_match_the_loop() -> None:
    ours, other = _pair(per_gamma=True)
    x, gamma = torch.rand(3, 2, 1, 8, 8).double(), torch.rand(3).double()
    naive = torch.stack([other(own, g) for own, g in zip(x, gamma, strict=True)])
    _close(ours.each(x, gamma), naive)
    _close(other.each(x, gamma), naive)
    _close(super(FunctionalCall, other).each(x, gamma), naive)


def test_one_gamma_per_sample_is_the_same_by_hand() -> None:
    workload = WORKLOADS["smoke-samples"]
    torch.manual_seed(0)
    ours = FAMILIES["ours-samples"](workload.primary()).double()
    x, _ = workload.data(torch.device("cpu"))
    gamma = workload.gamma(0).double()
    expected = torch.cat([ours(x[i : i + 1], g) for i, g in enumerate(gamma)])
    _close(ours.samples(x, gamma), expected)
    for name in ("vmap", "patched"):
        other = FAMILIES[name](workload.primary()).double()
        other.primary.load_state_dict(ours.model.primary.state_dict())
        with torch.no_grad():
            other.head.weight.copy_(ours.model.hypernet.head.weight)
            own = ours.model.hypernet.trunk.parameters()
            for theirs, given in zip(other.trunk.parameters(), own, strict=True):
                theirs.copy_(given)
        _close(other.samples(x, gamma), expected)
    shared = FAMILIES["ours-shared"](ours.model.primary).double()
    shared.model.load_state_dict(ours.model.state_dict())
    _close(shared.samples(x, gamma)[:1], expected[:1])  # the first gamma, for all


def test_patched_linear_layers_say_that_they_cannot_do_convolutions() -> None:
    with pytest.raises(TypeError, match="leave convolutions and embeddings as they are"):
        prepare(SUBJECTS["patched/fused"], WORKLOADS["W4-1"], torch.device("cpu"))(0)


def test_a_text_is_padded_and_theta0_may_be_frozen() -> None:
    x, target = WORKLOADS["W7-mask"].data(torch.device("cpu"))
    assert (x[::2] > 0).all()
    assert (x[1::2, 64:] == 0).all()
    assert x.shape == target.shape == (16, 128)
    frozen = replace(WORKLOADS["smoke-samples"], frozen=True)
    for name, moves in (("ours-samples", False), ("plain", True)):
        made: list[torch.nn.Module] = []
        workload = replace(frozen, primary=lambda made=made: made[0])
        made.append(frozen.primary())
        before = [p.detach().clone() for p in made[0].parameters()]
        step = prepare(SUBJECTS[f"{name}/fused"], workload, torch.device("cpu"))
        step(0)
        moved = [not torch.equal(a, b) for a, b in zip(made[0].parameters(), before, strict=True)]
        assert any(moved) == moves


def test_a_sweep_matches_the_loop() -> None:
    ours, other = _pair()
    x, gamma = torch.rand(2, 1, 8, 8).double(), torch.rand(3).double()
    naive = torch.stack([other(x, g) for g in gamma])
    for family in (ours, other):
        _close(family.sweep(x, gamma), naive)


def test_the_plain_network_does_the_same_work_in_its_usual_shape() -> None:
    plain = Plain(lenet(8)).double()
    x, gamma = torch.rand(3, 2, 1, 8, 8).double(), torch.rand(3).double()
    _close(plain.each(x, gamma), torch.stack([plain.primary(own) for own in x]))
    _close(plain.sweep(x[0], gamma), plain.primary(x[0]).expand(3, 2, 10))


def test_given_weights_are_used() -> None:
    x = torch.rand(2, 1, 8, 8)
    for family in (Ours(lenet(8)), FunctionalCall(lenet(8))):
        tensors = family.put()
        before = family.call(tensors, x)
        if isinstance(tensors, dict):
            changed = {name: tensor + 1.0 for name, tensor in tensors.items()}
        else:
            changed = [tensor + 1.0 for tensor in tensors]
        assert not torch.allclose(before, family.call(changed, x))


def test_predicted_parameters_leave_normalisation_out() -> None:
    names = list(predicted(WORKLOADS["W6"].primary()))
    assert names
    assert not any("norm" in name for name in names)
    assert set(predicted(lenet(8))) == {name for name, _ in lenet(8).named_parameters()}


@pytest.mark.parametrize("name", ["plain/fused", "ours/fused", "functional-call/fused"])
@pytest.mark.parametrize("workload", ["smoke", "bind"])
def test_a_prepared_step_runs(name: str, workload: str) -> None:
    step = prepare(SUBJECTS[name], WORKLOADS[workload], torch.device("cpu"))
    assert torch.isfinite(step(0)).all()
    assert torch.isfinite(step(1)).all()


def test_data_and_gammas_are_the_same_for_every_subject() -> None:
    for workload in WORKLOADS.values():
        if workload.name == "W6":
            continue  # large
        first, second = (workload.data(torch.device("cpu")) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert torch.equal(workload.gamma(7), workload.gamma(7))
        assert workload.gamma(7).shape == ((workload.gammas,) if workload.gammas > 1 else ())


@pytest.mark.parametrize(("name", "weights"), [("W1", 32_018), ("W2", 629_398), ("W3", 195_266)])
def test_the_head_has_16_weights_for_every_one_of_the_primary(name: str, weights: int) -> None:
    assert run.head_entries(WORKLOADS[name]) == 16 * weights


def test_the_floor_moves_seven_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    step = prepare_floor(1000, torch.device("cpu"))
    assert float(step(0)) == 1000.0  # one array read; the three that are written are not changed
    assert float(step(1)) == 1000.0
    assert PASSES == 7
    monkeypatch.setattr(floor, "LIMIT", 300)  # a large head is streamed in parts
    assert float(prepare_floor(1000, torch.device("cpu"))(0)) == 1000.0
    assert floor.floor_bytes(1000) == 3 * 4 * 300


# --- subjects ---------------------------------------------------------


def test_every_family_of_a_subject_exists_and_peers_have_a_version() -> None:
    assert {subject.family for subject in SUBJECTS.values()} == set(FAMILIES)
    assert all("==" in requirement for requirement in subjects.PEERS.values())


def test_subjects_are_chosen_by_family_or_by_name() -> None:
    names = [subject.name for subject in choose(SMOKE, ["hyperlight"])]
    assert names == ["hyperlight/adam", "hyperlight/fused"]
    assert [s.name for s in choose(SMOKE, ["torchhyper/adam", "functional-call"])] == [
        "functional-call/fused",
        "torchhyper/adam",
    ]
    assert [s.name for s in choose(WORKLOADS["bind"], ["ours"])] == ["ours/fused"]
    with pytest.raises(
        ValueError, match=r"--subject was 'nobody'; expected a family \(.*hypnettorch"
    ):
        choose(SMOKE, ["nobody"])


def test_a_workload_without_a_list_has_the_usual_subjects() -> None:
    names = {subject.name for subject in choose(SMOKE)}
    assert names == set(USUAL)
    assert "ours/hl-adam" in names
    assert "ours-wide/hl-adam-eager" in names


def test_another_hyperlight_than_the_release_is_refused() -> None:
    with pytest.raises(ImportError, match=r"hyperlight 0\.0\.5 is needed here; found "):
        FAMILIES["hyperlight"](lenet(8))


def test_a_peer_does_not_see_the_sources_of_this_project() -> None:
    source = str(environments.ROOT / "src")
    assert source in environments.variables(None)["PYTHONPATH"]
    assert source not in environments.variables("hyperlight==0.0.5")["PYTHONPATH"]
    assert environments.interpreter(None) == Path(sys.executable)


# --- the run ----------------------------------------------------------------

QUICK = Settings(rounds=2, seconds=1e-6, threads=1, patience=120.0)


def test_a_subject_that_fails_is_reported_and_does_not_stop_the_others() -> None:
    chosen = [SUBJECTS["torchhyper/fused"], SUBJECTS["functional-call/fused"]]
    pythons = {subject.name: Path(sys.executable) for subject in chosen}
    said: list[str] = []
    found = {r.subject: r for r in measure(SMOKE, chosen, QUICK, pythons=pythons, say=said.append)}
    assert list(found) == ["plain/fused", "floor", "torchhyper/fused", "functional-call/fused"]
    failed = found.pop("torchhyper/fused")
    assert failed.error is not None
    assert "No module named 'torchhyper'" in failed.error
    assert not failed.seconds
    assert any("No module named 'torchhyper'" in line for line in said)
    for row in found.values():
        assert row.error is None
        assert len(row.seconds) == len(row.plain) == 2
        assert all(seconds > 0.0 for seconds in row.seconds)
        assert row.plain == found["plain/fused"].seconds
    assert all(
        both > plain
        for both, plain in zip(found["floor"].seconds, found["floor"].plain, strict=True)
    )
    if peak_memory(torch.device("cpu")) is not None:
        assert all(row.peak >= row.base > 2**20 for row in found.values())  # type: ignore[operator]


def test_a_subject_that_does_not_answer_is_given_up() -> None:
    settings = Settings(rounds=1, seconds=1e-6, threads=1, patience=0.01)
    (plain, *_) = measure(SMOKE, [], settings)
    assert plain.error == "no answer for 0.01 seconds"


def test_a_subject_that_does_not_fit_is_skipped_with_the_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "free_memory", lambda _: 16 * 2**30)
    measured: list[str] = []

    def note(workload: object, rows: list[Measured], *_: object) -> None:
        measured.extend(row.subject for row in rows)

    monkeypatch.setattr(run, "_measure_group", note)
    chosen = [SUBJECTS["ours-wide/adam"], SUBJECTS["ours-rank8/fused"]]
    rows = {row.subject: row for row in measure(WORKLOADS["W6"], chosen, QUICK)}
    error = rows["ours-wide/adam"].error or ""
    assert error.startswith("skipped: needs about 3")
    assert "GiB of memory; " in error
    assert error.endswith("GiB are free")
    assert measured == ["plain/fused", "floor", "ours-rank8/fused"]


def test_subjects_run_in_groups_that_fit() -> None:
    needs = {"a": 3, "b": 4, "c": 5, "d": 1}
    assert run._groups(needs, 20) == [["a", "b", "c", "d"]]
    assert run._groups(needs, 8) == [["a", "b"], ["c", "d"]]
    assert run._groups({}, 8) == []


# --- the report -------------------------------------------------------------


def _rows() -> list[Measured]:
    plain = [1.0, 2.0, 4.0]

    def row(name: str, title: str, *multiples: float) -> Measured:
        seconds = [m * p for m, p in zip(multiples, plain, strict=True)]
        return Measured("W1", name, title, seconds, list(plain), 50_000_000, 20_000_000)

    return [
        row("plain/fused", "plain", 1.0, 1.0, 1.0),
        row("floor", "floor", 1.1, 1.1, 1.1),
        row("ours/fused", "ours", 1.4, 1.5, 1.6),
        row("hyperlight/adam", "release", 9.0, 3.0, 3.5),
        Measured("W1", "torchhyper/adam", "broken", error="ended with status 1: why"),
    ]


def test_a_ratio_is_that_of_the_same_round() -> None:
    ratio = report.multiples(_rows()[3])
    assert ratio is not None
    assert (ratio.median, ratio.low, ratio.high) == (3.5, 3.0, 9.0)
    assert str(ratio) == "3.50 (3.00 to 9.00)"


def test_overhead_is_the_time_added_to_the_plain_network() -> None:
    plain, lowest, ours, release, broken = _rows()
    assert report.overhead(ours, release) == pytest.approx(0.5 / 2.5)
    assert report.overhead(lowest, ours) == pytest.approx(0.1 / 0.5)
    assert report.overhead(ours, plain) is None
    assert report.overhead(broken, ours) is None


def test_the_fastest_turns_are_compared_with_each_other() -> None:
    rows = _rows()
    assert report.fastest(rows[3]) == pytest.approx(6.0 / 1.0)  # not of the same round
    assert report.fastest(rows[0]) == 1.0
    assert report.fastest(rows[4]) is None


def _text(table: object) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=160).print(table)
    return buffer.getvalue()


def test_the_table_shows_ratios_memory_and_errors() -> None:
    text = _text(report.table("W1: all of them", _rows()))
    (ours,) = [line for line in text.splitlines() if "ours" in line]
    assert "1.50 (1.40 to 1.60)" in ours
    assert "3000.00 (1400.00 to 6400.00)" in ours
    assert [cell.strip() for cell in ours.split("│")[4:7]] == ["1.40", "50", "30"]
    assert "no numbers: ended with status 1: why" in text


def test_peers_are_rows_and_hyperlight_is_a_column() -> None:
    made = report.peer_table("against", _rows())
    assert made is not None
    text = _text(made)
    (release,) = [line for line in text.splitlines() if "release" in line]
    assert "0.43; 0.20" in release  # 1.5 / 3.5, and 0.5 / 2.5
    assert "0.31; 0.04" in release  # the floor's
    assert "broken" not in text
    assert report.peer_table("nobody", _rows()[:3]) is None


def test_one_gamma_per_sample_is_compared_with_one_for_the_batch() -> None:
    rows = _rows()
    assert report.shared_table("per sample", rows) is None
    rows[2].subject = run.SHARED
    made = report.shared_table("per sample", rows)
    assert made is not None
    text = _text(made)
    (release,) = [line for line in text.splitlines() if "release" in line]
    assert "2.19 (2.00 to 6.43)" in release  # 9 / 1.4, 3 / 1.5 and 3.5 / 1.6
    assert "plain" not in text
    assert "no numbers: ended with status 1: why" in text


def test_every_head_has_its_size_time_and_memory_in_one_row() -> None:
    rows = [
        Measured("heads", "plain/fused", "plain", [1.0, 1.0], [1.0, 1.0], peak=100),
        Measured("heads", "dense-shared/fused", "one", [1.5, 2.5], [1.0, 1.0], peak=150),
        Measured("heads", "dense-samples/fused", "each", [3.0, 3.0], [1.0, 1.0], peak=320),
        Measured("heads", "chunked-shared/fused", "one", [1.25, 1.25], [1.0, 1.0], peak=110),
        Measured("heads", "chunked-samples/fused", "each", error="too large"),
    ]
    weights = {"dense-shared/fused": 1_000_000, "chunked-shared/fused": 2_000}
    made = report.heads_table("heads", rows, weights)
    assert made is not None
    lines = _text(made).splitlines()
    (dense,) = [line for line in lines if "Dense" in line]
    cells = [cell.strip() for cell in dense.split("│")[1:-1]]
    times = ["2.00 (1.50 to 2.50)", "3.00 (3.00 to 3.00)", "1.60"]  # 2.0 and 1.2 in two rounds
    assert cells == ["Dense", "1,000,000", "4.0", *times, "1.50", "3.20"]
    (chunked,) = [line for line in lines if "Chunked" in line]
    cells = [cell.strip() for cell in chunked.split("│")[1:-1]]
    assert cells[3:] == ["1.25 (1.25 to 1.25)", "no numbers", "", "1.10", ""]
    assert report.heads_table("heads", rows, {}) is None


def test_the_sizes_of_heads_are_those_of_the_models_that_run() -> None:
    workload = WORKLOADS["heads"]
    for name, weights in run.head_weights(workload).items():
        model = FAMILIES[SUBJECTS[name].family](workload.primary()).model
        assert sum(p.numel() for p in model.hypernet.head.parameters()) == weights


@pytest.mark.parametrize("head", HEADS)
def test_a_head_runs_with_one_gamma_and_with_one_per_sample(head: str) -> None:
    """The first sample has the first gamma in both."""
    workload = replace(WORKLOADS["heads-attention"], x=(3, 4, 128), gammas=3)
    x, _ = workload.data(torch.device("cpu"))
    found = []
    for kind in ("shared", "samples"):
        torch.manual_seed(0)
        family = FAMILIES[f"{head}-{kind}"](workload.primary())
        found.append(family.samples(x, workload.gamma(0)).detach())
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert not torch.allclose(found[0][1], found[1][1], atol=1e-4)


def test_what_is_written(tmp_path: Path) -> None:
    report.write(tmp_path, _rows(), "python -m benchmarks --workload W1")
    lines = list(csv.DictReader((tmp_path / "timings.csv").read_text().splitlines()))
    assert len(lines) == 4 * 3 + 1
    assert [float(line["seconds"]) for line in lines if line["subject"] == "ours/fused"] == [
        pytest.approx(s) for s in (1.4, 3.0, 6.4)
    ]
    assert lines[-1]["error"] == "ended with status 1: why"
    origin = json.loads((tmp_path / "provenance.json").read_text())
    assert origin["command"] == "python -m benchmarks --workload W1"
    assert origin["torch"] == str(torch.__version__)
    assert origin["hypnettorch (peer)"] == "0.0.4"
    assert origin["hyperlight (peer)"] == "0.0.5" != origin["hyperlight"]
    text = (tmp_path / "ratios.svg").read_text()
    assert text.startswith("<svg")
    assert "release" in text or "<use" in text  # labels may be drawn as shapes
    assert str(Path.home()) not in json.dumps(origin)


@pytest.mark.parametrize("out", [["--out", "/a b"], ["--out=/a b"]])
def test_the_folder_is_not_part_of_the_recorded_command(out: list[str]) -> None:
    words = ["--workload", "W1", *out, "--rounds", "2"]
    assert cli._recorded(words) == "python -m benchmarks --workload W1 --rounds 2"


def test_wrong_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["--workload", "W9"], "--workload was 'W9'; expected some of W1, W2"),
        (["--all", "-w", "W1"], "--all takes all workloads and subjects"),
        (["--rounds", "0"], "--rounds and --threads take whole numbers from 1"),
        (["--workload", "smoke", "--subject", "nobody"], "--subject was 'nobody'"),
    ):
        with pytest.raises(SystemExit):
            cli.main(words)
        assert said in capsys.readouterr().err


def test_without_options_three_networks_run_and_one_table_says_it_in_short(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def measured(workload: Any, chosen: Any, *_: Any, **__: Any) -> list[Measured]:
        asked.append((workload.name, [subject.name for subject in chosen]))
        return [replace(row, workload=workload.name) for row in _rows()]

    monkeypatch.setattr(cli, "measure", measured)
    for device, names in (("cpu", subjects.QUICK), ("cuda", subjects.QUICK_CUDA)):
        asked.clear()
        cli.main(["--out", str(tmp_path), "--device", device])
        assert [name for name, _ in asked] == ["W1", "W2", "W3"]
        assert all(sorted(found) == sorted(names) for _, found in asked)
        assert "A training step and its memory" in capsys.readouterr().out
    asked.clear()
    cli.main(["--out", str(tmp_path), "--all"])
    assert len(asked) > 10
    assert not any(name.startswith("smoke") for name, _ in asked)
    assert "A training step and its memory" not in capsys.readouterr().out


def test_the_short_table_has_times_and_memory_of_every_workload() -> None:
    rows = _rows() + [replace(row, workload="W2", peak=None) for row in _rows()[:3]]
    rows[2].peak = 75_000_000
    lines = _text(report.short_table(rows)).splitlines()
    cells = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in lines if "│" in line}
    assert [cell.strip() for cell in cells["ours"]] == ["1.50", "1.50", "1.50", ""]
    assert [cell.strip() for cell in cells["release"]] == ["3.50", "", "1.00", ""]
    assert [cell.strip() for cell in cells["floor"]] == ["1.10", "1.10", "", ""]
    assert [cell.strip() for cell in cells["broken"]] == ["", "", "", ""]
    assert "plain" not in cells


# --- steps in a CUDA graph --------------------------------------------------


def test_a_captured_step_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="CUDA graph needs --device cuda"):
        subjects.captured(lambda _: None, SMOKE, torch.device("cpu"))
    assert not any(name.endswith("/graph") for name in USUAL)


def test_a_captured_step_reads_the_gamma_of_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a graph that runs its step again, as a real one does on a GPU."""
    seen: list[torch.Tensor] = []

    class Graph:
        def replay(self) -> None:
            train(seen[0])  # the tensor that was captured

    def train(gamma: torch.Tensor) -> torch.Tensor:
        seen.append(gamma)
        read.append(float(gamma))
        return gamma

    read: list[float] = []

    class Stream:
        def wait_stream(self, other: object) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda _: contextlib.nullcontext())
    at = SimpleNamespace(type="cuda")
    gammas = [torch.tensor(float(number)) for number in (0, 3, 5, 4)]
    there = SimpleNamespace(to=lambda _: gammas[0])
    workload = SimpleNamespace(gamma=lambda number: gammas[number] if number else there)
    step = subjects.captured(train, workload, at)  # type: ignore[arg-type]
    read.clear()
    for number in (1, 2, 3):
        step(number)
    assert read == [3.0, 5.0, 4.0]


# --- scaling ----------------------------------------------------------------


def test_the_scaling_changes_one_quantity_at_a_time_up_to_100_million_weights() -> None:
    seen = list(scaling.points())
    assert max(point.weights for _, point in seen) == 100_000_000
    for axis, point in seen:
        assert replace(point, **{axis: getattr(scaling.BASE, axis)}) == scaling.BASE
    assert {axis for axis, _ in seen} == {"weights", "tensors", "features", "inputs", "sets"}


def test_what_a_step_moves_on_paper() -> None:
    point = scaling.Point(weights=1000, features=16, sets=2)
    assert point.entries == 16_000
    assert point.moved == 4 * (7 * 17_000 + 6 * 2000)
    assert point.operations == 6 * 2 * 16_000 + 12 * 17_000
    assert point.memory == 4 * (4 * 17_000 + 2 * 2000)


@pytest.mark.parametrize("sets", [1, 3])
def test_a_step_of_the_scaling_trains_every_part(
    sets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = scaling.Point(weights=103, tensors=4, features=5, inputs=3, sets=sets)
    made: list[Any] = []
    original = scaling.hl.hypernetize

    def keep(*args: Any, **settings: Any) -> Any:
        made.append(original(*args, **settings))
        return made[-1]

    monkeypatch.setattr(scaling.hl, "hypernetize", keep)
    step = scaling.prepare(point, torch.device("cpu"))
    (model,) = made
    assert model.hypernet.head.weight.shape == (103, 5)
    assert len(model.theta0) == 4
    assert len(model.inputs) == 3
    before = [parameter.detach().clone() for parameter in model.parameters()]
    step(0)
    assert all(not torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_the_scaling_measures_what_fits_and_estimates_the_rest() -> None:
    small, large = scaling.Point(weights=1000), scaling.Point(weights=10**9)
    chosen = [("weights", small), ("weights", large)]
    rows = scaling.measure(chosen, 1e-3, torch.device("cpu"), free=2**30)
    assert rows[0].seconds is not None
    assert 0.0 < rows[0].ratio < 1.0  # type: ignore[operator]
    assert rows[1].seconds is None
    assert rows[1].why == f"needs about {large.memory / 2**30:.1f} GiB of memory"
    assert rows[1].estimate == pytest.approx(rows[0].estimate * large.moved / small.moved)
    lines = list(csv.DictReader(scaling.as_csv(rows).splitlines()))
    assert [line["weights"] for line in lines] == ["1000", "1000000000"]
    assert lines[1]["seconds"] == ""


# --- steps from factors -----------------------------------------------------


def test_the_grid_of_heads_has_no_more_factors_than_columns() -> None:
    seen = list(pays.points())
    assert all(point.rows <= point.columns for point in seen)
    assert {point.columns for point in seen} == set(pays.COLUMNS)
    assert max(4 * point.entries for point in seen) > 2**25  # both sides of the rule


def test_both_steps_make_the_same_of_a_head() -> None:
    """One from the factors, whatever the rule says, and one from the matrix."""
    point = pays.Point(entries=1000, columns=10, rows=3)
    found = []
    for factored in (True, False):
        weight, step = pays.prepare(point, factored, torch.device("cpu"))
        before = weight.detach().clone()
        step()
        assert isinstance(weight.grad, OuterProduct) == factored
        step()
        assert not torch.equal(weight, before)
        found.append(weight.detach())
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_heads_that_do_not_fit_into_memory_are_not_timed() -> None:
    small, large = pays.Point(1000, 10, 1), pays.Point(10**9, 10, 1)
    rows = pays.measure([small, large], 1e-3, torch.device("cpu"), free=2**30)
    first, second = list(csv.DictReader(pays.as_csv(rows).splitlines()))
    assert float(first["factored_seconds"]) > 0.0
    quotient = float(first["factored_seconds"]) / float(first["dense_seconds"])
    assert float(first["ratio"]) == pytest.approx(quotient, rel=5.0)
    assert first["chosen"] == "False"
    assert second["ratio"] == second["chosen"] == ""


def test_the_command_marks_where_factors_are_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pays", "--entries", f"4096,{2**21}", "--columns", "8,32", "--rows", "1"]
    words += ["--seconds", "0.001", "--out", str(tmp_path)]
    threads = torch.get_num_threads()
    try:
        assert cli.main(words) == 0
    finally:
        torch.set_num_threads(threads)
    shown = capsys.readouterr().out
    assert shown.count("*") == 1 + 1  # in the title, and 2M in 32 columns
    rows = list(csv.DictReader((tmp_path / "pays.csv").read_text().splitlines()))
    chosen = {(row["entries"], row["columns"]) for row in rows if row["chosen"] == "True"}
    assert len(rows) == 4
    assert chosen == {(str(2**21), "32")}
    origin = json.loads((tmp_path / "provenance.json").read_text())
    assert origin["command"].startswith("python -m benchmarks pays --entries 4096,2097152")
    assert hl.optim.status()[0] == "auto"
    for bad in (["--rows", "0"], ["--entries", "4"]):
        with pytest.raises(SystemExit):
            cli.main(["pays", *bad])


# --- time to 95 % -----------------------------------------------------------


def _images() -> dict[str, torch.Tensor]:
    return {
        f"{part}_{kind}": values
        for part in ("train", "test")
        for kind, values in (
            ("images", torch.rand(64, 1, 28, 28)),
            ("labels", torch.zeros(64, dtype=torch.int64)),
        )
    }


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("ours-wide/hl-adam-eager", "HyperLight (16, 128)"),
        ("functional-call-narrow/fused", "functional_call by hand (64, 8)"),
        ("ours-rank4/fused", "HyperLight"),
    ],
)
def test_inference_tables_name_no_optimizer(name: str, title: str) -> None:
    assert subjects.SUBJECTS[name].without_optimizer == title


@pytest.mark.parametrize("name", ["plain", "ours", "ours-wide"])
def test_a_contender_reaches_an_easy_target(name: str) -> None:
    found = mnist.work(name, _images(), 0, target=0.95, steps=200)
    assert found["accuracy"] >= 0.95
    assert found["steps"] % mnist.EVALUATE_EVERY == 0
    assert math.isfinite(found["seconds"])


def test_a_run_that_gives_up_counts_as_infinitely_long() -> None:
    found = mnist.work("ours", _images(), 0, target=1.01, steps=mnist.EVALUATE_EVERY)
    assert found["seconds"] == found["steps"] == math.inf
    assert mnist.middle([3.0, math.inf, 1.0]) == 3.0
    assert mnist.middle([math.inf, math.inf, 1.0]) == math.inf
    assert mnist.ratio_of(found, {"seconds": 2.0}) == math.inf
    assert mnist.ratio_of({"seconds": 3.0}, {"seconds": 2.0}) == 1.5
