"""Grids of runs: each done once, in this process, in several, or by a scheduler elsewhere."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
import torch
from distributed import Client, LocalCluster

from hyperlight.lab import engine
from hyperlight.lab.checkpoint import RunFolder
from hyperlight.lab.engine import Spec, run_grid
from hyperlight.lab.errors import LabError
from hyperlight.lab.locks import LOCK
from hyperlight.lab.record import Run
from hyperlight.lab.tasks import KINDS
from hyperlight.lab.tasks.bayes import Bayes, BayesTask
from hyperlight.lab.train import Training
from tests.lab import running

CONFIG = Bayes(hidden=(4, 8), evaluation_gammas=2, evaluation_images=40, posterior_samples=2)
TRAINING = Training(steps=4, evaluate_every=2, batch_size=16, target=None, device="cpu")


def spec(seed: int = 0, formulation: Any = "mip", **training: Any) -> Spec:
    how = dataclasses.replace(TRAINING, **training)
    return Spec("bayes", CONFIG, how, formulation, seed)


class Seen:
    """What is told of the runs: their keys, and whether they were done just now."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bool]] = []

    def __call__(self, spec: Spec, run: Run, fresh: bool) -> None:
        assert run.step == spec.training.steps
        self.calls.append((spec.key, fresh))

    @property
    def fresh(self) -> int:
        return sum(new for _, new in self.calls)


def numbers(runs: dict[str, Run]) -> dict[str, Any]:
    """All that does not depend on how fast the machine was."""
    return {
        key: (run.loss, run.gradient_norm, [p.figures for p in run.points], run.outcome)
        for key, run in runs.items()
    }


SPECS = [spec(), spec(formulation="classical"), spec(seed=1)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Run], Seen]:
    """The grid, done in this process."""
    cache, seen = tmp_path_factory.mktemp("alone"), Seen()
    return cache, run_grid([*SPECS, SPECS[0]], cache, seen=seen), seen


def test_every_run_is_done_once(alone: tuple[Path, dict[str, Run], Seen]) -> None:
    cache, runs, seen = alone
    assert set(runs) == {each.key for each in SPECS}
    assert sorted(seen.calls) == sorted((each.key, True) for each in SPECS)
    for each in SPECS:
        run = runs[each.key]
        assert (run.formulation, run.seed, run.step) == (each.formulation, each.seed, 4)
        assert run.folder == cache / each.key
        record = json.loads((cache / each.key / "record.json").read_text("utf-8"))
        assert record["identity"] == each.about
        assert record["provenance"]["torch"]


def test_runs_are_done_in_the_order_of_the_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the data are read once for all runs that have the same."""
    grid = [
        Spec("bayes", dataclasses.replace(CONFIG, hidden=(4, width)), TRAINING, "mip", seed)
        for width in (8, 6, 7)
        for seed in (1, 0)
    ]
    made: list[tuple[int, ...]] = []

    class Counted(BayesTask):
        def __init__(self, config: Bayes, device: torch.device) -> None:
            made.append(config.hidden)
            super().__init__(config, device)

    kind = dataclasses.replace(KINDS["bayes"], task=Counted)
    monkeypatch.setitem(KINDS, "bayes", kind)
    engine.task_of.cache_clear()
    seen = Seen()
    run_grid(grid, tmp_path, seen=seen)
    engine.task_of.cache_clear()
    assert seen.calls == [(each.key, True) for each in grid]
    assert made == [(4, 8), (4, 6), (4, 7)]


def test_what_is_there_is_not_done_again(alone: tuple[Path, dict[str, Run], Seen]) -> None:
    cache, runs, _ = alone
    seen = Seen()
    # There is no such engine: it is not asked for where nothing is missing.
    again = run_grid(SPECS, cache, engine="tcp://127.0.0.1:1", seen=seen)
    assert seen.fresh == 0
    assert numbers(again) == numbers(runs)


def test_only_what_is_missing_is_done(alone: tuple[Path, dict[str, Run], Seen]) -> None:
    cache, _, _ = alone
    seen = Seen()
    other = spec(seed=2)
    found = run_grid([SPECS[0], other], cache, seen=seen)
    assert seen.calls == [(SPECS[0].key, False), (other.key, True)]
    assert set(found) == {SPECS[0].key, other.key}


def test_keys_tell_all_settings_apart() -> None:
    others = [spec(seed=1), spec(formulation="classical"), spec(lr=1e-3), spec(optimizer="sgd")]
    wider = dataclasses.replace(CONFIG, hidden=(4, 16))
    others.append(Spec("bayes", wider, TRAINING, "mip", 0))
    assert len({each.key for each in [spec(), *others]}) == 6


def test_keys_do_not_depend_on_what_does_not_matter(tmp_path: Path) -> None:
    moved = dataclasses.replace(CONFIG, data_dir=tmp_path)
    same = Spec("bayes", moved, dataclasses.replace(TRAINING, device="auto", seeds=7), "mip", 0)
    assert same.key == spec().key


def test_a_run_that_fails_leaves_the_others(tmp_path: Path) -> None:
    bad = Spec("bayes", dataclasses.replace(CONFIG, dimensions=0), TRAINING, "mip", 0)
    seen = Seen()
    with pytest.raises(LabError) as caught:
        run_grid([bad, SPECS[0]], tmp_path, seen=seen)
    text = str(caught.value)
    assert "1 of 2 runs failed; the others are kept in" in text
    assert bad.key in text
    assert "--dimensions was 0; expected 1 or more" in text
    assert text.endswith("Repeat the same command to try them again.")
    assert seen.calls == [(SPECS[0].key, True)]
    assert RunFolder(tmp_path / SPECS[0].key, SPECS[0].about).finished() is not None


def test_a_run_that_another_process_trains_is_waited_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one = spec(seed=3, steps=1)
    folder = tmp_path / one.key
    folder.mkdir()
    holder = running.hold(folder)
    while not (folder / LOCK).exists():
        time.sleep(0.001)
    done: list[dict[str, Run]] = []
    thread = threading.Thread(target=lambda: done.append(run_grid([one], tmp_path)))
    thread.start()
    said = ""
    while "waiting" not in said:
        assert thread.is_alive()
        time.sleep(0.01)
        said += capfd.readouterr().err
    assert f"{folder} is in use by process {holder.pid} on " in said
    assert not done
    holder.kill()
    thread.join()
    assert done[0][one.key].step == 1


def test_a_machine_that_slept_keeps_its_workers() -> None:
    """By default Dask takes a worker that was not heard of for 5 minutes to be lost."""
    with engine._client(Client, 1, None) as client:
        assert client.cluster.scheduler.worker_ttl is None
    assert dask.config.get("distributed.scheduler.worker-ttl") is not None


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense://here"])
def test_an_engine_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(engine, "_PATIENCE", 0.2)
    with pytest.raises(LabError) as caught:
        run_grid([spec()], tmp_path, engine=address)
    text = str(caught.value)
    assert text.startswith(f"There is no Dask scheduler at {address} (")
    assert text.endswith("Expected an address as `dask scheduler` prints it: tcp://host:8786.")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A scheduler, and a worker with two threads, as `dask worker` makes them on its own."""
    with LocalCluster(
        n_workers=1,
        threads_per_worker=2,
        processes=False,
        protocol="tcp://",
        dashboard_address=":0",
        silence_logs="ERROR",
    ) as made:
        yield made


def test_a_scheduler_elsewhere_has_the_same_numbers(
    alone: tuple[Path, dict[str, Run], Seen], cluster: LocalCluster, tmp_path: Path
) -> None:
    _, runs, _ = alone
    seen = Seen()
    found = run_grid(SPECS, tmp_path, engine=cluster.scheduler_address, seen=seen)
    assert numbers(found) == numbers(runs)
    assert seen.fresh == len(SPECS)
    # The client went; the scheduler is for the next.
    assert cluster.scheduler_info["workers"]


def test_workers_without_the_folder_send_the_record(
    alone: tuple[Path, dict[str, Run], Seen],
    cluster: LocalCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, runs, _ = alone
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setattr(engine, "_where", lambda cache: str(elsewhere))
    found = run_grid(SPECS[:1], tmp_path / "here", engine=cluster.scheduler_address)
    assert (elsewhere / SPECS[0].key / "model.safetensors").is_file()
    folder = tmp_path / "here" / SPECS[0].key
    assert [path.name for path in folder.iterdir()] == ["record.json"]
    key = SPECS[0].key
    assert numbers(found) == numbers({key: runs[key]})
    assert numbers(run_grid(SPECS[:1], tmp_path / "here")) == numbers(found)


def test_two_workers_have_the_numbers_of_one(
    alone: tuple[Path, dict[str, Run], Seen], tmp_path: Path
) -> None:
    _, runs, _ = alone
    found = run_grid(SPECS[:2], tmp_path, workers=2)
    assert numbers(found) == {key: numbers(runs)[key] for key in found}
