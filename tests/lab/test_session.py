"""Several runs in one folder: claimed, interrupted, killed, ended as if nothing had happened."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from rich.console import Console

from hyperlight.lab.checkpoint import identity
from hyperlight.lab.cli import main
from hyperlight.lab.errors import DataError, LabError
from hyperlight.lab.locks import LOCK
from hyperlight.lab.methods import Method
from hyperlight.lab.processes import stop_on_request
from hyperlight.lab.session import Session, _Board, launch
from hyperlight.lab.tasks.bayes import Bayes, BayesTask
from hyperlight.lab.train import Training, train
from tests.lab import running
from tests.lab.making import ACCURACY, equal_runs, listing, make_run

Captured = pytest.CaptureFixture[str]

NUMBERS = ("metrics.csv", "steps.csv", "scales.csv", "outcome.csv")
CHECKPOINT = "checkpoint.safetensors"
FINISHED = {"metrics.csv", "model.safetensors", "record.json", "tensorboard"}

SMALL = ["--hidden", "4", "8", "--evaluation-gammas", "2", "--device", "cpu", "--seeds", "1"]
LONG = [*SMALL, "--steps", "60", "--evaluate-every", "25", "--batch-size", "16"]
SHORT = [*SMALL, "--steps", "12", "--evaluate-every", "5", "--batch-size", "16"]
DEMO = ["--seeds", "1", "--device", "cpu"]
ALWAYS = ["--checkpoint-seconds", "0"]  # a checkpoint after every step


# --- processes of their own -------------------------------------------------------


def _program(arguments: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    """``python -m hyperlight``, which takes longer to import than for all that it does here."""
    return subprocess.Popen(
        [sys.executable, "-m", "hyperlight", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
    )


@dataclasses.dataclass
class Programs:
    """What is started before the first test here, and needed by the last.

    Attributes:
        killed: the folder of a program that is killed as soon as it has a checkpoint.
        kill: the thread that does so.
        two: a program that trains with two processes, in ``out`` below its folder.
        folder: of it.
    """

    killed: Path
    kill: threading.Thread
    two: subprocess.Popen[str]
    folder: Path


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    folders = [tmp_path_factory.mktemp(name) for name in ("killed", "two")]
    alone = _program(["train", "bayes", *LONG, *ALWAYS, "--out", "out"], folders[0])
    two = _program(["train", "bayes", *SHORT, "--devices", "2", "--out", "out"], folders[1])
    checkpoint = folders[0] / "out" / "mip-seed0" / CHECKPOINT

    def kill() -> None:
        while alone.poll() is None and not checkpoint.exists():
            time.sleep(0.001)
        alone.kill()
        alone.communicate()

    thread = threading.Thread(target=kill)
    thread.start()
    running.prepare()
    yield Programs(folders[0] / "out", thread, two, folders[1])
    for process in (alone, two):
        process.kill()
    thread.join()
    two.communicate()


def _changes(path: Path) -> tuple[int, int] | None:
    """What is another for every file that was in that place."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _until(process: BaseProcess, condition: Callable[[], bool]) -> None:
    """Wait while the process runs; it must not end before."""
    give_up = time.monotonic() + 300.0
    while not condition():
        assert process.is_alive(), f"it ended by itself, with status {process.exitcode}"
        assert time.monotonic() < give_up
        time.sleep(0.0005)


def _checkpoints(process: BaseProcess, path: Path, count: int) -> None:
    """Wait for so many checkpoints."""
    for _ in range(count):
        before = _changes(path)
        _until(process, lambda before=before: _changes(path) not in (before, None))  # type: ignore[misc]


def _end(process: BaseProcess, number: int) -> None:
    """End the process by a signal, and see that this ended it."""
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(300)
    expected = -number if number == signal.SIGKILL else 130
    assert process.exitcode == expected


def _parts(folder: Path) -> set[str]:
    return {name for name in listing(folder) if name.startswith(".") and name != LOCK}


def _kill_while_writing(process: BaseProcess, folder: Path) -> None:
    """Stop the process when a checkpoint is there in part, and kill it if it still is."""
    assert process.pid is not None
    earlier = _parts(folder)
    for _ in range(1000):
        _until(process, lambda: bool(_parts(folder) - earlier))
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(0.01)
        if _parts(folder) - earlier:
            break
        os.kill(process.pid, signal.SIGCONT)
    _end(process, signal.SIGKILL)
    assert _parts(folder) - earlier


def _assert_same_numbers(out: Path, unbroken: Path) -> None:
    for name in NUMBERS:
        assert (out / name).read_bytes() == (unbroken / name).read_bytes(), name
    runs = [path.parent.relative_to(unbroken) for path in unbroken.glob("*/record.json")]
    assert runs
    for run in runs:
        assert listing(out / run) == listing(unbroken / run)
        assert not _parts(out / run)
        models = [folder / run / "model.safetensors" for folder in (out, unbroken)]
        assert models[0].read_bytes() == models[1].read_bytes()


def _resumed(run: Path) -> list[int]:
    found: list[int] = json.loads((run / "record.json").read_text("utf-8"))["resumed"]
    return found


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_numbers(
    programs: Programs, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    unbroken = tmp_path / "unbroken"
    reference = running.start(["train", "bayes", *LONG, "--out", str(unbroken)], tmp_path / "log0")
    programs.kill.join()
    out, run = programs.killed, programs.killed / "mip-seed0"
    assert (run / CHECKPOINT).is_file()
    assert not (run / "record.json").exists()
    command = ["train", "bayes", *LONG, *ALWAYS, "--out", str(out)]

    process = running.start(command, log)
    _kill_while_writing(process, run)
    draw = random.Random(0)
    for _ in range(3):
        process = running.start(command, log)
        _checkpoints(process, run / CHECKPOINT, draw.randint(1, 6))
        time.sleep(draw.uniform(0.0, 0.02))
        _end(process, signal.SIGKILL)
        assert not (out / "report.html").exists()
    process = running.start(command, log)
    for ended in (process, reference):
        ended.join(300)
        assert ended.exitcode == 0, log.read_text("utf-8")
    steps = _resumed(run)
    assert len(steps) in (4, 5)  # one was killed while, perhaps, it wrote its first checkpoint
    assert steps == sorted(steps)
    assert steps[0] > 0
    assert steps[-1] < 60
    assert _resumed(unbroken / "mip-seed0") == []
    _assert_same_numbers(out, unbroken)


def test_a_demo_that_is_interrupted_goes_on(tmp_path: Path) -> None:
    log, out, unbroken = tmp_path / "log", tmp_path / "out", tmp_path / "unbroken"
    reference = running.start(
        ["demo", *DEMO, "--steps", "16", "--out", str(unbroken)], tmp_path / "log0"
    )
    command = ["demo", *DEMO, "--steps", "16", *ALWAYS, "--out", str(out)]
    runs = [out / f"{name}-seed0" for name in ("classical", "mip", "ours", "plain")]
    for i, number in enumerate((signal.SIGINT, signal.SIGTERM)):
        process = running.start(command, log)
        # The classical run takes its turn first, and is the first to go on.
        _checkpoints(process, runs[i] / CHECKPOINT, 2)
        _end(process, number)
        printed = log.read_text("utf-8")
        assert printed.count("stopping after this step; interrupt again to stop at once") == i + 1
        assert printed.count("interrupted; the same command resumes from here\n") == i + 1
        assert "Traceback" not in printed
        assert all((run / CHECKPOINT).is_file() for run in runs)
        assert not (out / "report.html").exists()
    process = running.start(command, log)
    for ended in (process, reference):
        ended.join(300)
        assert ended.exitcode == 0, log.read_text("utf-8")
    assert all(len(_resumed(run)) == 2 for run in runs)
    _assert_same_numbers(out, unbroken)


# --- several processes together -----------------------------------------------------


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of the short run."""
    folder = tmp_path_factory.mktemp("one")
    process = running.start(
        ["train", "bayes", *SHORT, "--out", str(folder / "out")], folder / "log"
    )
    process.join(300)
    assert process.exitcode == 0, (folder / "log").read_text("utf-8")
    return folder / "out"


def _floats(path: Path) -> list[list[float]]:
    with path.open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    return [[float(cell) for cell in row[2:]] for row in rows]


def _assert_same_to_rounding(out: Path, one: Path) -> None:
    for name in ("steps.csv", "metrics.csv"):
        found, expected = _floats(out / name), _floats(one / name)
        assert len(found) == len(expected)
        torch.testing.assert_close(
            torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=0.0, equal_nan=True
        )


def _port() -> str:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return str(place.getsockname()[1])


def _pair(arguments: Sequence[str], log: Path) -> list[BaseProcess]:
    """Two processes as a cluster starts them."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _port()}
    return [
        running.start(
            [*arguments, "--devices", "2"],
            log.with_name(f"{log.name}{rank}"),
            {**common, "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]


def test_two_processes_that_are_interrupted_go_on_as_one(tmp_path: Path, one: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    command = ["train", "bayes", *SHORT, "--out", str(out)]
    pair = _pair([*command, *ALWAYS], log)
    _checkpoints(pair[0], out / "mip-seed0" / CHECKPOINT, 1)
    assert pair[1].pid is not None
    os.kill(pair[1].pid, signal.SIGINT)  # one is asked, both stop
    for process in pair:
        process.join(300)
        assert process.exitcode == 130
    logs = [log.with_name(f"log{rank}").read_text("utf-8") for rank in range(2)]
    assert logs[0].count("interrupted; the same command resumes from here") == 1
    assert "interrupted" not in logs[1]
    assert not any("Traceback" in text for text in logs)
    alone = running.start(command, log)
    alone.join(300)
    assert alone.exitcode == 0, log.read_text("utf-8")
    (step,) = _resumed(out / "mip-seed0")
    assert 0 < step < 12
    _assert_same_to_rounding(out, one)


@pytest.mark.parametrize("rank", [0, 1])
def test_if_one_of_a_cluster_is_killed_the_other_says_so_and_ends(
    tmp_path: Path, rank: int
) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    pair = _pair(["train", "bayes", *SMALL, *ALWAYS, "--steps", "100000", "--out", str(out)], log)
    _checkpoints(pair[0], out / "mip-seed0" / CHECKPOINT, 1)
    _end(pair[rank], signal.SIGKILL)
    other = 1 - rank
    pair[other].join(60.0)
    assert pair[other].exitcode == 2
    text = log.with_name(f"log{other}").read_text("utf-8")
    assert text.count("One of the processes that train together has ended or no longer") == 1
    assert "The same command goes on from the last checkpoint." in text
    assert "Traceback" not in text


def test_what_one_process_refuses_both_refuse_and_one_says(tmp_path: Path, one: Path) -> None:
    log = tmp_path / "log"
    pair = _pair(["train", "bayes", *SHORT, "--lr", "0.5", "--out", str(one)], log)
    for process in pair:
        process.join(300)
        assert process.exitcode == 2
    logs = [log.with_name(f"log{rank}").read_text("utf-8") for rank in range(2)]
    assert "holds runs with other settings (lr: the default, now 0.5)" in logs[0]
    assert "error" not in logs[1]
    assert not any("Traceback" in text for text in logs)


def test_the_program_starts_two_processes_with_the_losses_of_one(
    programs: Programs, one: Path
) -> None:
    printed, errors = programs.two.communicate(timeout=300)
    assert programs.two.returncode == 0, errors
    assert printed.count("Report: out/report.html") == 1
    assert printed.count("scikit-learn's digits") == 1
    assert "Traceback" not in errors
    assert "MEMBER: 2/2" in printed + errors
    out = programs.folder / "out"
    assert listing(out) == listing(one)
    assert set(listing(out / "mip-seed0")) > FINISHED
    assert CHECKPOINT not in listing(out / "mip-seed0")
    _assert_same_to_rounding(out, one)


# --- the folder of a session --------------------------------------------------------

TRAINING = Training(steps=2, evaluate_every=1, batch_size=4, seeds=1, device="cpu")
BOTH = [Method.of("classical"), Method.of("mip")]


def _session(task: BayesTask, folder: Path, **changes: Any) -> Session:
    options: dict[str, Any] = {
        "training": TRAINING,
        "methods": [Method.of("mip")],
        "fabric": Fabric(accelerator="cpu", devices=1),
        "title": "A title",
        "command": "hyperlight train bayes --steps 2",
        "console": Console(file=io.StringIO(), width=100),
        **changes,
    }
    return Session(task, folder=folder, **options)


def _tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Everything in a folder, and when it was written."""
    return {
        str(path.relative_to(folder)): (
            path.read_bytes() if path.is_file() else b"",
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
    }


def _fill(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old")


def _config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return found


def test_a_new_folder_has_the_settings_and_what_made_the_numbers(tmp_path: Path) -> None:
    place = tmp_path / "data"
    task = BayesTask(Bayes(hidden=(4, 8), data_dir=place), torch.device("cpu"))
    session = _session(task, tmp_path / "a" / "out", training=Training(lr=2e-4, target=None))
    session.claim()
    assert listing(session.folder) == ["config.json"]
    config = _config(session.folder)
    expected = {**dataclasses.asdict(task.config), **dataclasses.asdict(session.training)}
    assert config["settings"] == json.loads(json.dumps(expected, default=str))
    for name, value in {"data": "digits", "hidden": [4, 8], "lr": 2e-4, "target": None}.items():
        assert config["settings"][name] == value
    assert config["settings"]["data_dir"] == str(place)
    origin = config["provenance"]
    assert origin["command"] == "hyperlight train bayes --steps 2"
    assert origin["torch"] == torch.__version__.partition("+")[0] or origin["torch"] in (
        torch.__version__
    )
    for name in ("hyperlight", "numpy", "scikit-learn", "python", "system", "cores", "gpu"):
        assert origin[name]


def test_an_identity_is_that_of_the_runs_without_formulation_and_seed(
    task: BayesTask, tmp_path: Path
) -> None:
    session = _session(task, tmp_path, methods=BOTH)
    about = identity("bayes", task.config, TRAINING, "classical", 3)
    rest = {name: about[name] for name in about if name not in ("formulation", "seed")}
    assert session.about == {**rest, "formulations": ["classical", "mip"]}
    session.claim()
    assert _config(tmp_path)["identity"] == session.about


def test_the_same_settings_go_on(task: BayesTask, tmp_path: Path) -> None:
    _session(task, tmp_path).claim()
    _fill(tmp_path, ["mip-seed0/record.json", "mip-seed1/checkpoint.safetensors", "report.html"])
    before = _tree(tmp_path)
    # What the numbers do not depend on may be another; it is what was called last that is told.
    training = dataclasses.replace(TRAINING, seeds=3, target=None, checkpoint_seconds=0.0)
    _session(task, tmp_path, training=training, command="hyperlight again").claim()
    config = _config(tmp_path)
    assert config["provenance"]["command"] == "hyperlight again"
    assert config["settings"]["seeds"] == 3
    after = _tree(tmp_path)
    assert set(after) == set(before)
    assert [name for name in after if after[name] != before[name]] == ["config.json"]


def test_other_settings_are_refused_and_nothing_is_touched(task: BayesTask, tmp_path: Path) -> None:
    _session(task, tmp_path).claim()
    _fill(tmp_path, ["mip-seed0/record.json", "report.html", "notes.txt"])
    before = _tree(tmp_path)
    other = dataclasses.replace(TRAINING, lr=1e-3, steps=7)
    with pytest.raises(LabError) as raised:
        _session(task, tmp_path, training=other, methods=[Method.of("plain")]).claim()
    assert str(raised.value) == (
        f"{tmp_path} holds runs with other settings (steps: 2, now 7; lr: the default, now 0.001; "
        "formulations: ['mip'], now ['plain']). Choose another --out, or pass --overwrite to "
        "replace them."
    )
    assert _tree(tmp_path) == before


OURS = [
    *("mip-seed0/record.json", "mip-seed12/checkpoint.safetensors", "plain-seed0/dice.png"),
    *("report.html", "metrics.csv", "times.csv", "steps.csv", "scales.csv", "outcome.csv"),
    *(
        "report.md",
        "outcome-test-pairs-against-gamma.csv",
        "scales.svg",
        "convergence.svg",
        "gradients.svg",
        "along.svg",
    ),
]
THEIRS = [
    *("notes.txt", "mine/notes.txt", "mip-seedlings/notes.txt", "mine-seed0/notes.txt"),
    *("my-metrics.csv", "picture.svg", "mip-seed/notes.txt", ".hidden"),
]


@pytest.mark.parametrize("same", [True, False])
def test_overwriting_replaces_what_is_ours_alone(
    task: BayesTask, tmp_path: Path, same: bool
) -> None:
    training = TRAINING if same else dataclasses.replace(TRAINING, lr=0.5)
    _session(task, tmp_path, training=training).claim()
    _fill(tmp_path, OURS + THEIRS)
    _session(task, tmp_path).claim(overwrite=True)
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert left == sorted([*THEIRS, "config.json"])
    assert all((tmp_path / name).read_text() == "old" for name in THEIRS)
    assert _config(tmp_path)["identity"] == _session(task, tmp_path).about


def test_a_folder_of_something_else_is_refused(task: BayesTask, tmp_path: Path) -> None:
    _fill(tmp_path, ["notes.txt", "mip-seed0/notes.txt"])
    before = _tree(tmp_path)
    with pytest.raises(LabError) as raised:
        _session(task, tmp_path).claim()
    assert str(raised.value) == (
        f"{tmp_path} already has files. Choose another --out, or pass --overwrite to replace "
        "the results in it."
    )
    assert _tree(tmp_path) == before
    _session(task, tmp_path).claim(overwrite=True)
    assert listing(tmp_path) == ["config.json", "notes.txt"]
    assert _config(tmp_path)["identity"] == _session(task, tmp_path).about


def _garbled(config: bytes) -> dict[str, bytes]:
    """Configurations that cannot be read, made from one that can."""
    other = json.loads(config)
    del other["sha256"]
    return {
        "empty": b"",
        "text": b"not JSON",
        "a list": b"[]",
        "of something else": b'{"identity": {}}',
        "no UTF-8": b"\xff",
        "deep": b"[" * 100_000,
        "cut short": config[:-9],
        "a flipped bit": config.replace(b'"digits"', b'"digitr"', 1),
        "a flipped bit in the sum": config.replace(b'"sha256"', b'"sha257"', 1),
        "a flipped bit in a space": config.replace(b"  ", b" \x28", 1),
        "another identity": json.dumps({**other, "identity": {"task": 3}}).encode(),
        "no settings": json.dumps({k: v for k, v in other.items() if k != "settings"}).encode(),
    }


GARBLED = _garbled(b'{"sha256": "0", "settings": {"data":  "digits"}, "identity": {}}')


@pytest.mark.parametrize("how", GARBLED)
def test_a_damaged_config_in_a_folder_without_runs_is_named(
    task: BayesTask, tmp_path: Path, how: str
) -> None:
    _session(task, tmp_path).claim()
    path = tmp_path / "config.json"
    path.write_bytes(_garbled(path.read_bytes())[how])
    _fill(tmp_path, ["mip-seed0/record.json"])  # which cannot be read either
    before = _tree(tmp_path)
    with pytest.raises(LabError) as raised:
        _session(task, tmp_path).claim()
    message = str(raised.value)
    assert message.startswith(f"{path} cannot be read (")
    assert message.endswith(
        "), and no run in the folder says which settings it has. Choose another --out, or pass "
        "--overwrite to replace the results in it."
    )
    assert _tree(tmp_path) == before
    _session(task, tmp_path).claim(overwrite=True)
    assert listing(tmp_path) == ["config.json"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a session whose only run is finished."""
    folder = tmp_path_factory.mktemp("trained")
    small = {"evaluation_gammas": 2, "evaluation_images": 40, "posterior_samples": 2}
    task = BayesTask(Bayes(hidden=(4, 8), **small), torch.device("cpu"))
    session = _session(task, folder)
    session.claim()
    list(train(task, "mip", 0, TRAINING, session.fabric, session.run_folder(Method.of("mip"), 0)))
    return folder


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    folder = tmp_path / "finished"
    shutil.copytree(trained, folder)
    return folder


@pytest.mark.parametrize("how", [None, *GARBLED])
@pytest.mark.parametrize("restart", [False, True])
def test_a_config_that_is_lost_is_written_again_for_the_same_runs(
    task: BayesTask, finished: Path, how: str | None, restart: bool
) -> None:
    path = finished / "config.json"
    config = path.read_bytes()
    if how is None:
        path.unlink()
    else:
        path.write_bytes(_garbled(config)[how])
    kept = _tree(finished / "mip-seed0")
    again = _session(task, finished)
    again.claim(restart=restart)
    assert path.read_bytes() == config
    assert _tree(finished / "mip-seed0") == kept
    said = again.console.file.getvalue()  # type: ignore[attr-defined]
    assert said.startswith(f"{path} {'is missing' if how is None else 'cannot be read ('}")
    assert said.endswith(
        "; the runs in the folder have these settings, so they are kept, and it is written again.\n"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": dataclasses.replace(TRAINING, lr=0.5)}, "lr: the default, now 0.5"),
        ({"methods": [Method.of("plain")]}, "formulations: ['mip'], now ['plain']"),
    ],
)
def test_a_config_that_is_lost_does_not_open_the_folder_to_other_runs(
    task: BayesTask, finished: Path, changes: dict[str, Any], words: str
) -> None:
    (finished / "config.json").unlink()
    before = _tree(finished)
    with pytest.raises(LabError) as raised:
        _session(task, finished, **changes).claim()
    assert f"{finished} holds runs with other settings ({words})." in str(raised.value)
    assert _tree(finished) == before


def test_formulations_may_be_added_to_a_folder_without_a_config(
    task: BayesTask, finished: Path
) -> None:
    """A comparison of two whose second run has not begun looks so."""
    (finished / "config.json").unlink()
    session = _session(task, finished, methods=[Method.of("mip"), Method.of("plain")])
    session.claim()
    assert _config(finished)["identity"] == session.about
    assert (finished / "mip-seed0" / "record.json").is_file()


NAMED = Method("ours", "ours", "#cc79a7", "mip", {"hidden": (6,)}, {"lr": 1e-2, "batch_size": 8})


def test_a_method_brings_settings_of_its_own(task: BayesTask, tmp_path: Path) -> None:
    session = _session(task, tmp_path, methods=[Method.of("mip"), NAMED])
    session.claim()
    mip, ours = session.run()
    assert (mip.method.name, ours.method.name) == ("mip", "ours")
    assert ours.formulation == "mip"
    narrow = BayesTask(dataclasses.replace(task.config, hidden=(6,)), torch.device("cpu"))
    how = dataclasses.replace(TRAINING, lr=1e-2, batch_size=8)
    *_, alone = train(narrow, "mip", 0, how, session.fabric)
    assert equal_runs(ours, alone)
    *_, usual = train(task, "mip", 0, TRAINING, session.fabric)
    assert equal_runs(mip, usual)
    assert task.config.hidden == (4, 8)
    record = json.loads((tmp_path / "ours-seed0" / "record.json").read_text("utf-8"))
    assert record["identity"] == identity("bayes", narrow.config, how, "mip", 0)


def test_the_settings_of_a_method_are_part_of_the_folder(task: BayesTask, tmp_path: Path) -> None:
    text = "ours (mip, hidden (6,), lr 0.01, batch_size 8)"
    session = _session(task, tmp_path, methods=[Method.of("mip"), NAMED])
    session.claim()
    config = _config(tmp_path)
    assert config["identity"]["formulations"] == ["mip", text]
    assert config["settings"]["ours"] == text
    assert config["settings"]["lr"] == TRAINING.lr  # of the other method
    alone = _session(task, tmp_path / "alone", methods=[NAMED])
    assert set(session.settings) - set(alone.settings) == {"hidden", "lr", "batch_size"}
    faster = dataclasses.replace(NAMED, training={"lr": 2e-2, "batch_size": 8})
    with pytest.raises(LabError, match=r"now \['mip', 'ours \(mip, hidden \(6,\), lr 0\.02, batch"):
        _session(task, tmp_path, methods=[Method.of("mip"), faster]).claim()


@pytest.mark.parametrize("same", [True, False])
def test_a_folder_of_methods_without_a_config_is_known_by_its_runs(
    task: BayesTask, tmp_path: Path, same: bool
) -> None:
    session = _session(task, tmp_path, methods=[NAMED, Method.of("plain")])
    session.claim()
    session.run()
    (tmp_path / "config.json").unlink()
    again = NAMED if same else dataclasses.replace(NAMED, training={"lr": 2e-2})
    _session(task, tmp_path, methods=[again, Method.of("plain")]).claim(restart=True)
    assert (tmp_path / "ours-seed0" / "record.json").exists() == same
    assert (tmp_path / "plain-seed0" / "record.json").exists() == same


def test_a_run_under_another_name_says_nothing(task: BayesTask, finished: Path) -> None:
    (finished / "config.json").unlink()
    (finished / "mip-seed0").rename(finished / "mip-seed1")
    with pytest.raises(LabError, match="already has files"):
        _session(task, finished).claim()


def test_a_config_of_the_version_before_is_read_with_a_warning(
    task: BayesTask, tmp_path: Path
) -> None:
    _session(task, tmp_path).claim()
    path = tmp_path / "config.json"
    old = {name: value for name, value in _config(tmp_path).items() if name != "sha256"}
    path.write_text(json.dumps(old, indent=2) + "\n", "utf-8")
    with pytest.warns(UserWarning, match=f"Files in {tmp_path} have no checksum"):
        _session(task, tmp_path).claim()
    assert "sha256" in _config(tmp_path)


# --- one process at a time ----------------------------------------------------------


def test_what_a_killed_process_left_is_removed(task: BayesTask, tmp_path: Path) -> None:
    parts = [".config.json.a1b2c3d4", ".report.html.____abcd", ".steps.csv.00000000"]
    others = [".hidden", ".notes.md.swp", "notes.txt"]
    _fill(tmp_path, [*parts, *others])
    with _session(task, tmp_path).locked():
        assert listing(tmp_path) == sorted([*others, LOCK])
    assert listing(tmp_path) == sorted(others)


def test_a_folder_is_made_to_be_locked(task: BayesTask, tmp_path: Path) -> None:
    session = _session(task, tmp_path / "a" / "out")
    with session.locked():
        session.claim()
        assert listing(session.folder) == [LOCK, "config.json"]
    assert listing(session.folder) == ["config.json"]
    (tmp_path / "file").write_text("a file")
    with (
        pytest.raises(LabError, match="is a file; expected a folder"),
        _session(task, tmp_path / "file").locked(),
    ):
        pass
    large = dataclasses.replace(TRAINING, batch_size=1438)
    refused = _session(task, tmp_path / "refused", training=large)
    with pytest.raises(DataError), refused.locked():
        pass
    assert not refused.folder.exists()


@pytest.mark.usefixtures("no_figures")
def test_a_second_process_on_a_folder_is_refused_at_once(tmp_path: Path, capsys: Captured) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    command = ["train", "bayes", *LONG, *ALWAYS, "--out", str(out)]
    process = running.start(command, log)
    _until(process, (out / "config.json").exists)
    os.kill(process.pid or 0, signal.SIGSTOP)
    before = _tree(out)
    for more in ([], ["--overwrite"]):
        assert main([*command, *more]) == 2
        assert capsys.readouterr().err == (
            f"error: {out} is in use by process {process.pid} on {os.uname().nodename}. Wait until "
            "that process ends, or choose another --out.\n"
        )
    assert _tree(out) == before
    process.kill()
    process.join()
    assert LOCK in listing(out)  # the file, not the lock
    short = ["train", "bayes", *SHORT, "--out", str(out)]
    assert main([*short, "--overwrite"]) == 0
    assert LOCK not in [*listing(out), *listing(out / "mip-seed0")]


@pytest.mark.usefixtures("no_figures")
def test_a_folder_that_is_removed_meanwhile_is_said_to_be_gone(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    loss, count = BayesTask.loss, iter(range(100))

    def removed(*arguments: Any) -> Any:
        if next(count) == 2:
            shutil.rmtree(out)
        return loss(*arguments)

    monkeypatch.setattr(BayesTask, "loss", removed)
    assert main(["train", "bayes", *SHORT, *ALWAYS, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: The checkpoint {out / 'mip-seed0' / CHECKPOINT} could not be")
    assert error.endswith(
        f"The folder {out / 'mip-seed0'} is gone, with all checkpoints in it. The same command "
        "starts this run again.\n"
    )
    assert main(["train", "bayes", *SHORT, "--out", str(out)]) == 0


@pytest.mark.parametrize(
    ("there", "kept"),
    [
        (["mip-seed0/checkpoint.safetensors"], True),  # interrupted
        (["mip-seed0/record.json"], True),  # finished, but the report was not written
        (["mip-seed0/record.json", "report.html"], False),
        (["mip-seed0/record.json", "mip-seed1/record.json", "report.html"], False),
    ],
    ids=["interrupted", "without a report", "finished", "more than finished"],
)
def test_a_restart_goes_on_with_what_is_not_finished(
    task: BayesTask, tmp_path: Path, there: list[str], kept: bool
) -> None:
    _session(task, tmp_path).claim(restart=True)
    _fill(tmp_path, [*there, "notes.txt"])
    _session(task, tmp_path).claim(restart=True)
    assert [(tmp_path / name).exists() for name in there] == [kept] * len(there)
    assert (tmp_path / "notes.txt").read_text() == "old"


def test_a_restart_with_more_seeds_keeps_the_first_ones(task: BayesTask, tmp_path: Path) -> None:
    _session(task, tmp_path).claim(restart=True)
    _fill(tmp_path, ["mip-seed0/record.json", "report.html"])
    more = dataclasses.replace(TRAINING, seeds=2)
    _session(task, tmp_path, training=more).claim(restart=True)
    assert (tmp_path / "mip-seed0" / "record.json").read_text() == "old"


def test_a_restart_replaces_other_settings(task: BayesTask, tmp_path: Path) -> None:
    other = dataclasses.replace(TRAINING, lr=0.5)
    _session(task, tmp_path, training=other).claim(restart=True)
    _fill(tmp_path, ["mip-seed0/checkpoint.safetensors", "notes.txt"])
    _session(task, tmp_path).claim(restart=True)
    assert listing(tmp_path) == ["config.json", "notes.txt"]


@pytest.mark.parametrize("how", [{}, {"overwrite": True}, {"restart": True}])
def test_settings_that_cannot_be_trained_with_leave_the_folder_as_it_was(
    task: BayesTask, tmp_path: Path, how: dict[str, bool]
) -> None:
    _session(task, tmp_path).claim()
    _fill(tmp_path, ["mip-seed0/record.json", "report.html"])
    before = _tree(tmp_path)
    large = dataclasses.replace(TRAINING, batch_size=1438)
    with pytest.raises(DataError, match="The batch size was 1438; expected 1 to 1,437"):
        _session(task, tmp_path, training=large).claim(**how)
    none = BayesTask(Bayes(hidden=(0,)), torch.device("cpu"))
    with pytest.raises(Exception, match=r"hidden was \(0,\)"):
        _session(none, tmp_path).claim(**how)
    assert _tree(tmp_path) == before


@pytest.mark.parametrize("what", ["claim", "locked"])
def test_another_process_refuses_what_the_first_refused(
    task: BayesTask, tmp_path: Path, what: str
) -> None:
    class Second:
        is_global_zero, global_rank, world_size = False, 1, 2

        def broadcast(self, text: str) -> str:
            assert text == ""
            return self.said

        said = "the first refused"

    def do(session: Session) -> None:
        if what == "claim":
            session.claim()
        else:
            with session.locked():
                pass

    second = Second()
    with pytest.raises(LabError, match="the first refused"):
        do(_session(task, tmp_path / "out", fabric=second))
    second.said = ""
    do(_session(task, tmp_path / "out", fabric=second))
    assert listing(tmp_path) == []  # it is the first that makes folders and files


# --- devices ------------------------------------------------------------------------


def test_devices_that_are_not_there_are_named() -> None:
    device = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(LabError) as raised:
        launch(Training(device=device))  # type: ignore[arg-type]
    message = str(raised.value)
    assert (
        f"--device was {device} and --devices 1; this machine or this PyTorch does not" in message
    )
    assert message.endswith("Choose cpu or auto, or fewer devices.")


def test_settings_are_checked_before_anything_is_started() -> None:
    with pytest.raises(LabError, match="--batch-size was 3 and --devices 2"):
        launch(Training(device="cpu", devices=2, batch_size=3))
    assert launch(TRAINING).world_size == 1


# --- interruptions within this process ------------------------------------------------


def test_the_first_signal_asks_and_the_second_stops() -> None:
    out = io.StringIO()
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for number in (signal.SIGINT, signal.SIGTERM):
        with stop_on_request(Console(file=out)) as stop:
            assert not stop()
            os.kill(os.getpid(), number)
            assert stop()
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012
                os.kill(os.getpid(), number)
                time.sleep(10.0)
            assert stop()
    assert out.getvalue() == 2 * "stopping after this step; interrupt again to stop at once\n"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_thread_can_train_as_well() -> None:
    found = []

    def work() -> None:
        with stop_on_request(Console(file=io.StringIO())) as stop:
            found.append(stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


def _interrupt(task: BayesTask, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Have the loss with this number, counted from 0, send Ctrl-C to this process."""
    loss, count = task.loss, iter(range(1000))

    def sent(*arguments: Any) -> Any:
        if next(count) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(*arguments)

    monkeypatch.setattr(task, "loss", sent)


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("at", "kept"),
    [
        (0, ["classical-seed0", "mip-seed0"]),
        (4, ["classical-seed0", "mip-seed0"]),
        (9, ["classical-seed1", "mip-seed1"]),
    ],
)
def test_all_runs_that_have_begun_are_kept(
    task: BayesTask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    kept: list[str],
) -> None:
    training = dataclasses.replace(TRAINING, steps=4, evaluate_every=2, seeds=2)
    options = {"training": training, "methods": BOTH}
    unbroken = _session(task, tmp_path / "unbroken", **options)
    unbroken.claim()
    expected = unbroken.run()
    assert [(run.formulation, run.seed) for run in expected] == [
        (name, seed) for seed in range(2) for name in ("classical", "mip")
    ]
    session = _session(task, tmp_path / "out", **options)
    session.claim()
    with monkeypatch.context() as patch:
        _interrupt(task, patch, at)
        with pytest.raises(KeyboardInterrupt):
            session.run()
    assert not session.finished
    found = sorted(path.parent.name for path in session.folder.glob(f"*/{CHECKPOINT}"))
    assert found == kept
    again = _session(task, tmp_path / "out", **options)
    again.claim()
    runs = again.run()
    assert again.finished
    assert all(equal_runs(a, b) for a, b in zip(runs, expected, strict=True))
    assert not list(session.folder.glob(f"*/{CHECKPOINT}"))


def test_one_run_that_cannot_be_kept_keeps_none_from_it(
    task: BayesTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = dataclasses.replace(TRAINING, steps=4, evaluate_every=2)
    session = _session(task, tmp_path, training=training, methods=[*BOTH, Method.of("plain")])
    session.claim()
    replace = os.replace

    def refuse(source: Any, target: Any) -> None:
        if Path(target).name == CHECKPOINT and "mip" in str(target):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    _interrupt(task, monkeypatch, 7)
    with pytest.raises(LabError, match="No space left on device"):
        session.run()
    found = sorted(path.parent.name for path in tmp_path.glob(f"*/{CHECKPOINT}"))
    assert found == ["classical-seed0", "plain-seed0"]


def test_every_model_is_built_once(
    task: BayesTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, model = [], task.model

    def counted(name: Any, seed: int) -> Any:
        built.append((name, seed))
        return model(name, seed)

    monkeypatch.setattr(task, "model", counted)
    training = dataclasses.replace(TRAINING, seeds=2)
    names = ["classical", "mip"]
    session = _session(task, tmp_path, training=training, methods=BOTH)
    session.claim()
    assert built == [(name, 0) for name in names]
    first = session.run()
    assert built == [(name, seed) for seed in range(2) for name in names]
    again = session.run()  # finished: models are built to hold the weights that were kept
    assert built[4:] == built[:4]
    assert all(equal_runs(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].model is not again[0].model


@pytest.mark.parametrize("name", ["config.json", "record.json", "report.html"])
@pytest.mark.usefixtures("no_figures")
def test_a_full_disk_ends_with_a_message_and_the_same_command_goes_on(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    replace = os.replace

    def refuse(source: Any, target: Any) -> None:
        if Path(target).name == name:
            raise OSError(28, "No space left on device")
        replace(source, target)

    out = tmp_path / "out"
    command = ["demo", *DEMO, "--steps", "2", "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        assert main(command) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert "No space left on device" in printed.err
    assert str(out) in printed.err
    assert "the same command" in printed.err
    assert "Traceback" not in printed.err
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*/record.json")}
    assert len(kept) == {"config.json": 0, "record.json": 0, "report.html": 4}[name]
    assert main(command) == 0
    assert (out / "report.html").is_file()
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    shutil.rmtree(out)


@pytest.mark.parametrize(
    ("accuracy", "losses", "shown"),
    [
        ([10.0], None, "accuracy 10.0 %"),
        ([10.0, 50.0], [2.0, 1.0], "accuracy 50.0 %  loss 1.5  "),
        ([10.0, 50.0], [math.nan, 1.0], "accuracy 50.0 %  loss not finite  "),
        ([10.0, 50.0], [1.0, math.nan], "diverged at step 2  "),
    ],
)
def test_a_bar_never_shows_nan(
    accuracy: list[float], losses: list[float] | None, shown: str
) -> None:
    task: Any = SimpleNamespace(metric=ACCURACY)
    console = Console(file=io.StringIO(), width=200)
    board = _Board(console, task, Training(steps=2, seeds=1), [Method.of("mip")])
    board.show(make_run("mip", accuracy=accuracy, losses=losses, every=2))
    (bar,) = board.bars.tasks
    assert f"{bar.fields['figures']}  ".startswith(shown)
    assert "nan" not in bar.fields["figures"]
    assert ("loss" in bar.fields["figures"]) == ("loss" in shown)
