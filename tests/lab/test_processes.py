"""Processes that train together end together, in words, and the same command goes on."""

from __future__ import annotations

import contextlib
import signal
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from hyperlight.lab.cli import main
from hyperlight.lab.errors import LabError
from hyperlight.lab.processes import connected, ending
from tests.lab import running

SMALL = ["--hidden", "4", "8", "--evaluation-gammas", "2", "--device", "cpu", "--seeds", "1"]
LONG = [*SMALL, "--steps", "60", "--evaluate-every", "25", "--batch-size", "16"]
GOES_ON = "so the others were ended as well. The same command goes on from the last checkpoint."


# --- words ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (-9, "was ended by signal 9 (SIGKILL)"),
        (-64, "was ended by signal 64 (SIGRTMAX)"),
        (-99, "was ended by signal 99"),
        (0, "ended with status 0"),
        (1, "ended with status 1"),
        (None, "ended with status unknown"),
    ],
)
def test_the_end_of_a_process_in_words(status: int | None, words: str) -> None:
    assert ending(status) == words


def _fabric(world_size: int) -> Any:
    return types.SimpleNamespace(world_size=world_size, is_global_zero=True)


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:54321"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(f"{GLOO}: Connection reset by peer\nGLHF!"),
        RuntimeError("Connection closed by peer [127.0.0.1]:1"),
        RuntimeError("Timed out waiting 1800000ms for recv operation to complete"),
        torch.distributed.DistBackendError("ncclInternalError: Internal check failed."),
        torch.distributed.DistNetworkError("The server socket has failed to listen"),
    ],
    ids=repr,
)
def test_errors_of_the_connection_become_words(error: RuntimeError) -> None:
    with pytest.raises(LabError) as caught, connected(_fabric(2)):
        raise error
    assert caught.value.__cause__ is error
    assert str(caught.value) == (
        "One of the processes that train together has ended or no longer answers, so the others "
        f"were ended as well ({str(error).partition(chr(10))[0]}). The same command goes on from "
        "the last checkpoint."
    )


@pytest.mark.parametrize(
    ("error", "world_size"),
    [
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)"), 2),
        (RuntimeError("CUDA out of memory"), 2),
        (ValueError("gloo"), 2),
        (RuntimeError(GLOO), 1),
    ],
    ids=repr,
)
def test_other_errors_pass(error: Exception, world_size: int) -> None:
    with pytest.raises(type(error)) as caught, connected(_fabric(world_size)):
        raise error
    assert caught.value is error


# --- two processes ------------------------------------------------------------------


class Pair:
    """A command that trains with two processes: the first starts the program as the second."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        self.log.unlink(missing_ok=True)
        arguments = ["train", "bayes", *LONG, "--devices", "2", "--checkpoint-seconds", "0"]
        around = {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
        self.first = running.start([*arguments, "--out", str(folder / "out")], self.log, around)
        self.parent = psutil.Process(self.first.pid)
        self.until(lambda: bool(self.parent.children()))
        (self.second,) = self.parent.children()

    @property
    def text(self) -> str:
        return self.log.read_text("utf-8")

    def until(self, condition: Callable[[], bool]) -> None:
        give_up = time.monotonic() + 300.0
        while not condition():
            assert self.first.is_alive(), self.text
            assert time.monotonic() < give_up
            time.sleep(0.01)

    def kill(self, rank: int) -> None:
        """Kill one of the two."""
        (self.second if rank else self.parent).kill()

    def end(self) -> int | None:
        """Wait until both have ended, as they must; return the status of the first."""
        self.first.join(60.0)
        self.second.wait(60.0)
        return self.first.exitcode


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Pair]]:
    pairs: list[Pair] = []

    def start() -> Pair:
        pairs.append(Pair(tmp_path))
        return pairs[-1]

    yield start
    for pair in pairs:
        for process in (pair.parent, pair.second):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.mark.usefixtures("no_figures")
def test_whoever_dies_the_other_ends_and_the_same_command_goes_on(
    tmp_path: Path, start: Callable[[], Pair], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "out" / "mip-seed0"
    died = (
        f"error: Process 0 of those that train together ended unexpectedly, {GOES_ON}",
        f"error: Process 1 of those that train together was ended by signal 9 (SIGKILL), {GOES_ON}",
    )
    for rank in range(2):  # while the second process starts: the first one waits for it
        pair = start()
        pair.kill(rank)
        assert pair.end() == (2 if rank else -signal.SIGKILL)
        assert pair.text.count(died[rank]) == 1
        assert "Traceback" not in pair.text
        assert not run.exists()
    for rank in range(2):
        before = _written(run / "checkpoint.safetensors")
        pair = start()
        pair.until(lambda before=before: _written(run / "checkpoint.safetensors") > before)  # type: ignore[misc]
        pair.kill(rank)
        assert pair.end() == (2 if rank else -signal.SIGKILL)
        assert pair.text.count(died[rank]) == 1
        assert "Traceback" not in pair.text
        assert not (run / "record.json").exists()

    pair = start()
    (run / "metrics.csv").mkdir()  # an error of the first process alone: it cannot be written
    assert pair.end() == 2
    assert pair.text.count("error: ") == 1
    assert "metrics.csv could not be written" in pair.text
    assert "Traceback" not in pair.text

    (run / "metrics.csv").rmdir()
    pair = start()
    assert pair.end() == 0, pair.text
    one = tmp_path / "one"
    assert main(["train", "bayes", *LONG, "--out", str(one)]) == 0
    capsys.readouterr()
    for name in ("steps.csv", "metrics.csv"):
        found, expected = (_numbers(folder / name) for folder in (tmp_path / "out", one))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=0.0, equal_nan=True)


def _written(path: Path) -> int:
    """When the file was written, if it is there."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _numbers(path: Path) -> torch.Tensor:
    _, *rows = path.read_text("utf-8").splitlines()
    return torch.tensor([[float(cell) for cell in row.split(",")[2:]] for row in rows])
