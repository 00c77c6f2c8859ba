"""Grids of runs: each done once, in this process, in several, or by a scheduler elsewhere.

Processes that die, and commands that are interrupted or killed, lose no run and leave no process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import dask
import distributed
import psutil
import pytest
import torch
from distributed import LocalCluster, Security

from hyperlight.lab import engine
from hyperlight.lab.checkpoint import RunFolder
from hyperlight.lab.cli import main
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
    while not (folder / LOCK).exists() or not (folder / LOCK).read_text():
        assert holder.is_alive()
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


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense://here", "tls://127.0.0.1:1"])
def test_an_engine_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(engine, "_PATIENCE", 0.2)
    with pytest.raises(LabError) as caught:
        run_grid([spec()], tmp_path, engine=address)
    text = str(caught.value)
    assert text.startswith(f"There is no Dask scheduler at {address} (")
    assert "Expected an address as `dask scheduler` prints it: tcp://host:8786, or tls://" in text


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A scheduler, and a worker with two threads, as `dask worker` makes them on its own."""
    with LocalCluster(
        n_workers=1,
        threads_per_worker=2,
        processes=False,
        protocol="tcp://",
        dashboard_address="127.0.0.1:0",
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


def _certificate(folder: Path) -> dict[str, str]:
    """Dask's configuration, in the environment, with a certificate that is its own authority."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"),
            *("ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=test"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return {
        "distributed.comm.tls.ca-file": str(certificate),
        **{
            f"distributed.comm.tls.{role}.{name}": str(path)
            for role in ("scheduler", "worker", "client")
            for name, path in (("cert", certificate), ("key", key))
        },
    }


@pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by openssl")
def test_a_scheduler_with_certificates_lets_in_who_has_them(
    alone: tuple[Path, dict[str, Run], Seen], tmp_path: Path
) -> None:
    _, runs, _ = alone
    with dask.config.set(_certificate(tmp_path)):
        made = LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            protocol="tls://",
            security=Security(),
            dashboard_address="127.0.0.1:0",
            silence_logs="ERROR",
        )
        address = made.scheduler_address
        assert address.startswith("tls://")
        found = run_grid(SPECS[:1], tmp_path / "with", engine=address)
    with made:
        assert numbers(found) == {SPECS[0].key: numbers(runs)[SPECS[0].key]}
        with pytest.raises(LabError, match="There is no Dask scheduler at tls://.*TLS"):
            run_grid(SPECS[:1], tmp_path / "without", engine=address)


def test_a_scheduler_that_is_lost_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost:
        """The client of a scheduler that dies once it has its tasks."""

        def __init__(self, *_: object, **__: object) -> None: ...
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None: ...
        def submit(self, *_: object, **__: object) -> Any:
            return task

    task = mock.Mock(status="cancelled")
    monkeypatch.setattr(distributed, "Client", Lost)
    monkeypatch.setattr(distributed, "as_completed", list)
    with pytest.raises(LabError) as caught:
        run_grid(SPECS[:1], tmp_path, engine="tcp://there:8786")
    assert str(caught.value) == (
        "The Dask scheduler at tcp://there:8786 was lost. Start it again; the same command then "
        "goes on."
    )


# --- stopped ----------------------------------------------------------------------


def test_a_grid_that_is_asked_to_stop_goes_on(
    alone: tuple[Path, dict[str, Run], Seen], tmp_path: Path
) -> None:
    _, runs, _ = alone
    asked, seen = itertools.count(), Seen()
    with pytest.raises(KeyboardInterrupt):  # in the second run
        run_grid(SPECS, tmp_path, seen=seen, stop=lambda: next(asked) >= 7)
    assert seen.calls == [(SPECS[0].key, True)]
    assert (tmp_path / SPECS[1].key / "checkpoint.safetensors").is_file()
    found = run_grid(SPECS, tmp_path, seen=seen)
    assert numbers(found) == numbers(runs)
    assert [len(found[each.key].resumed) for each in SPECS] == [0, 1, 0]


def test_a_request_that_comes_too_late_for_the_last_run_is_kept(
    alone: tuple[Path, dict[str, Run], Seen], tmp_path: Path
) -> None:
    seen = Seen()
    with pytest.raises(KeyboardInterrupt):
        run_grid(SPECS[:1], tmp_path, seen=seen, stop=lambda: seen.fresh > 0)
    assert seen.fresh == 1


def test_ctrl_c_ends_a_study_with_status_130(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, started = engine._compute, []

    def interrupted(spec: Spec, *rest: Any) -> Any:
        started.append(spec)
        os.kill(os.getpid(), signal.SIGINT)
        return compute(spec, *rest)

    monkeypatch.setattr(engine, "_compute", interrupted)
    folders = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    assert main(["study", "fig6", *folders]) == 130
    printed = capsys.readouterr()
    assert len(started) == 1
    assert "stopping after this step; interrupt again to stop at once" in printed.out
    assert printed.err == "interrupted; the same command resumes from here\n"
    assert list((tmp_path / "cache").glob("*/checkpoint.safetensors"))


# --- several processes ------------------------------------------------------------


class Killer(threading.Thread):
    """Kills workers of this process, each as soon as ``when`` says so.

    Args:
        when: called again and again with the worker's number, counted from 0.
        count: how many to kill.
        after: how many have to be there before the first is killed.
    """

    def __init__(self, when: Callable[[int], bool], count: int, after: int = 1) -> None:
        super().__init__(daemon=True)
        self.when, self.count, self.after = when, count, after
        self.before = set(multiprocessing.active_children())
        self.killed: list[int] = []

    def run(self) -> None:
        workers: list[Any] = []
        give_up = time.monotonic() + 100.0
        while len(self.killed) < self.count and time.monotonic() < give_up:
            new = set(multiprocessing.active_children()) - self.before - set(workers)
            workers += sorted(new, key=lambda each: each.pid or 0)
            for i, each in enumerate(workers if len(workers) >= self.after else ()):
                if each.pid not in self.killed and self.when(i):
                    each.kill()
                    self.killed.append(each.pid)
                    break
            time.sleep(0.001)


def test_workers_that_die_lose_no_run(tmp_path: Path) -> None:
    """The first one while it starts, the second one in the middle of a run."""
    grid = [spec(), spec(1, steps=150, checkpoint_seconds=0.0)]
    second = tmp_path / grid[1].key / "checkpoint.safetensors"
    # Both have to be there, or the one that takes the place of the first might be the second.
    killer = Killer(lambda i: i == 0 or (i == 1 and second.is_file()), 2, after=2)
    killer.start()
    seen, said = Seen(), list[str]()
    found = run_grid(grid, tmp_path, workers=2, seen=seen, tell=said.append)
    killer.join()
    assert len(killer.killed) == 2
    assert sorted(seen.calls) == sorted((each.key, True) for each in grid)
    assert said == [
        f"the process of run {each.key} was ended by signal 9 (SIGKILL); another one goes on from "
        "its last checkpoint"
        for each in grid
    ]
    assert found[grid[0].key].resumed == []
    (step,) = found[grid[1].key].resumed
    assert 0 < step < 150
    unbroken = run_grid([spec(), spec(1, steps=150)], tmp_path / "unbroken")
    assert numbers(found) == numbers(unbroken)


def test_workers_that_die_again_and_again_are_given_up(tmp_path: Path) -> None:
    killer = Killer(lambda i: True, 3)
    killer.start()
    with pytest.raises(LabError) as caught:
        run_grid(SPECS[:1], tmp_path, workers=2)
    killer.join()
    died = f"the process of run {SPECS[0].key} was ended by signal 9 (SIGKILL)"
    assert str(caught.value) == (
        f"Processes died 3 times before a run was finished: {died}; {died}; {died}. If memory ran "
        "out, use fewer --workers. The same command goes on from the last checkpoints."
    )
    assert not set(multiprocessing.active_children()) - killer.before


def test_a_run_that_fails_in_a_worker_leaves_the_others(
    alone: tuple[Path, dict[str, Run], Seen], tmp_path: Path
) -> None:
    """Two workers have the numbers of one."""
    _, runs, _ = alone
    bad = Spec("bayes", dataclasses.replace(CONFIG, dimensions=0), TRAINING, "mip", 0)
    foreign = Spec("bayes", dataclasses.replace(CONFIG, hidden="wide"), TRAINING, "mip", 0)
    seen = Seen()
    with pytest.raises(LabError) as caught:
        run_grid([bad, foreign, *SPECS[:2]], tmp_path, workers=2, seen=seen)
    assert "2 of 4 runs failed" in str(caught.value)
    assert "--dimensions was 0; expected 1 or more" in str(caught.value)
    assert sorted(seen.calls) == sorted((each.key, True) for each in SPECS[:2])
    found = run_grid(SPECS[:2], tmp_path)
    assert numbers(found) == {key: numbers(runs)[key] for key in found}


# A study whose runs do not end.
ENDLESS = """
import dataclasses
from hyperlight.lab import cli
from hyperlight.lab.studies import STUDIES

if __name__ == "__main__":
    study = STUDIES["fig6"]
    endless = lambda spec: dataclasses.replace(
        spec, training=dataclasses.replace(spec.training, steps=10**6, evaluate_every=10)
    )
    specs = lambda setup: [endless(spec) for spec in study.specs(setup)]
    STUDIES["fig6"] = dataclasses.replace(study, specs=specs)
    cli.entry()
"""


class Endless:
    """A study with two workers, in processes of their own, as from a terminal."""

    def __init__(self, folder: Path) -> None:
        self.cache, self.log = folder / "cache", folder / "log"
        with self.log.open("w") as log:
            self.parent = subprocess.Popen(
                [
                    *(sys.executable, "-c", ENDLESS, "study", "fig6", "--workers", "2"),
                    *("--cache", str(self.cache), "--out", str(folder / "out")),
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.log.read_text("utf-8")

    def family(self) -> list[psutil.Process]:
        """The parent, its workers and their helper."""
        parent = psutil.Process(self.parent.pid)
        return [parent, *parent.children(recursive=True)]

    def until(self, condition: Callable[[], bool]) -> None:
        give_up = time.monotonic() + 300.0
        while not condition():
            assert self.parent.poll() is None, self.text
            assert time.monotonic() < give_up
            time.sleep(0.01)

    def until_two_train(self) -> None:
        self.until(lambda: len(list(self.cache.glob("*/metrics.csv"))) == 2)


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Endless]:
    made = Endless(tmp_path)
    yield made
    with contextlib.suppress(ProcessLookupError):
        os.killpg(made.parent.pid, signal.SIGKILL)
    made.parent.wait()


def _listening(processes: Sequence[psutil.Process]) -> list[Any]:
    return [
        place.laddr
        for process in processes
        for place in process.net_connections(kind="inet")
        if place.status == psutil.CONN_LISTEN or place.type == socket.SOCK_DGRAM
    ]


def test_a_study_opens_no_port_and_ctrl_c_in_a_terminal_ends_it(endless: Endless) -> None:
    endless.until(lambda: len(endless.family()) >= 4)
    family = endless.family()
    time.sleep(1.0)
    for worker in family[1:]:  # while they import; it is for the parent to decide
        worker.send_signal(signal.SIGINT)
    endless.until_two_train()
    assert endless.family() == family
    assert _listening(family) == []
    with socket.socket() as port:  # one that is open is seen
        port.bind(("127.0.0.1", 0))
        port.listen()
        assert port.getsockname() in _listening([psutil.Process()])

    os.killpg(endless.parent.pid, signal.SIGINT)
    assert endless.parent.wait(60.0) == 130
    assert psutil.wait_procs(family, 10.0)[1] == []
    assert endless.text.count("stopping after this step; interrupt again to stop at once") == 1
    assert endless.text.count("interrupted; the same command resumes from here") == 1
    assert "Traceback" not in endless.text
    assert len(list(endless.cache.glob("*/checkpoint.safetensors"))) == 2


def test_ctrl_c_while_workers_start_ends_them_without_a_traceback(endless: Endless) -> None:
    endless.until(lambda: len(endless.family()) >= 4)
    family = endless.family()
    time.sleep(1.0)  # they are importing
    os.killpg(endless.parent.pid, signal.SIGINT)
    assert endless.parent.wait(60.0) == 130
    assert psutil.wait_procs(family, 10.0)[1] == []
    assert endless.text.count("interrupted; the same command resumes from here") == 1
    assert "Traceback" not in endless.text


def test_workers_end_with_a_parent_that_is_killed(endless: Endless) -> None:
    endless.until_two_train()
    family = endless.family()
    endless.parent.kill()
    endless.parent.wait()
    assert psutil.wait_procs(family, 10.0)[1] == []
    assert "Traceback" not in endless.text
