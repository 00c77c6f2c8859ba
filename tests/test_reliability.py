"""What measures reliability finds what it looks for: ``tests.kills`` and ``tests.threads``."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperlight import HyperModel
from tests import kills, threads
from tests.kills import Trial

# --- threads --------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_threads_get_the_results_of_one_thread() -> None:
    found = threads.measure(threads=4, calls=21, training=True)
    assert found.right
    assert found.trained
    assert {count.calls for count in found.counts.values()} == {12}
    assert [(count.wrong, count.errors) for count in found.counts.values()] == [(0, [])] * 7


def _elsewhere() -> bool:
    return threading.current_thread() is not threading.main_thread()


def _noise(model: HyperModel, x: Tensor, g: Tensor) -> list[Tensor]:
    return [model(x, g=g) + 1e-6 * _elsewhere()]


def _fails(model: HyperModel, x: Tensor, g: Tensor) -> list[Tensor]:
    if _elsewhere():
        raise RuntimeError("not here")
    return [x]


def _changes(model: HyperModel, x: Tensor, g: Tensor) -> list[Tensor]:
    if _elsewhere():
        next(model.parameters()).data.add_(1.0)
    return [x]


def _accumulates(model: HyperModel, x: Tensor, g: Tensor) -> list[Tensor]:
    if _elsewhere():
        model(x, g=g).sum().backward()
    return [x]


@pytest.mark.parametrize("call", [_noise, _fails, _changes, _accumulates])
def test_what_is_wrong_in_threads_is_seen(
    call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(threads, "CALLS", {"bad": call})
    found = threads.measure(threads=2, calls=3, training=False)
    assert not found.right
    assert found.counts["bad"].calls == 6
    assert found.counts["bad"].wrong == (6 if call is _noise else 0)
    assert found.counts["bad"].errors == ["RuntimeError: not here"] * (6 if call is _fails else 0)
    assert found.unchanged == (call in (_noise, _fails))
    out = tmp_path / "threads.csv"
    assert threads.main(["--threads", "2", "--calls", "3", "--out", str(out)]) == 1
    with out.open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    assert [row[0] for row in rows] == ["calls alone", "training too"]
    assert ("RuntimeError: not here" in capsys.readouterr().out) == (call is _fails)


def test_a_training_that_is_disturbed_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    train = threads.train

    def disturbed(*arguments: Any) -> list[float]:
        return [loss + 1e-6 * _elsewhere() for loss in train(*arguments)]

    monkeypatch.setattr(threads, "train", disturbed)
    found = threads.measure(threads=1, calls=7, training=True)
    assert found.trained is None
    assert not found.right


# --- kills ------------------------------------------------------------------------------

RECORD = {"loss": [2.0, 1.0], "seconds": 3.0, "outcome": {"figures": {"ms per image, x": 1.0}}}
TABLE = ["Title", ["gamma", "ms per image"], [[0.5, 3.0]]]


def _folder(path: Path, record: object = RECORD, rows: str = "1,2.0,9.0", **files: bytes) -> Path:
    (path / "run").mkdir(parents=True)
    (path / "run" / "record.json").write_text(json.dumps(record))
    (path / "metrics.csv").write_text(f"step,loss,seconds\n{rows}\n")
    (path / "run" / "model.safetensors").write_bytes(b"weights")
    for name, content in files.items():
        (path / "run" / name.replace("__", ".")).write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("changes", "other", "left"),
    [
        ({}, [], []),
        ({"record": {**RECORD, "seconds": 5.0}}, [], []),
        ({"record": {**RECORD, "outcome": {"figures": {"ms per image, x": 7.0}}}}, [], []),
        ({"rows": "1,2.0,8.0"}, [], []),
        ({"record": {**RECORD, "loss": [2.0, 1.0000001]}}, ["run/record.json"], []),
        ({"rows": "1,2.5,9.0"}, ["metrics.csv"], []),
        ({"model__safetensors": b"others!"}, ["run/model.safetensors"], []),
        ({"__record__json__x": b"{"}, [], ["run/.record.json.x"]),
        ({"checkpoint__safetensors": b"left"}, [], ["run/checkpoint.safetensors"]),
    ],
)
def test_folders_are_compared_without_times(
    changes: dict[str, Any], other: list[str], left: list[str], tmp_path: Path
) -> None:
    expected = kills.contents(_folder(tmp_path / "expected"))
    found = kills.contents(_folder(tmp_path / "found", **changes))
    assert kills.differences(found, expected) == (other, left)


def test_a_file_that_is_missing_is_another_number(tmp_path: Path) -> None:
    expected = kills.contents(_folder(tmp_path / "a"))
    found = {name: content for name, content in expected.items() if name != "metrics.csv"}
    assert kills.differences(found, expected) == (["metrics.csv"], [])


def test_milliseconds_in_a_table_are_not_compared(tmp_path: Path) -> None:
    slow, other = json.loads(json.dumps([TABLE, TABLE]))
    slow[2][0][1], other[2][0][0] = 8.0, 0.75
    made = [
        kills.contents(_folder(tmp_path / name, {"tables": [table]}))
        for name, table in (("a", TABLE), ("b", slow), ("c", other))
    ]
    assert kills.differences(made[1], made[0]) == ([], [])
    assert kills.differences(made[2], made[0]) == (["run/record.json"], [])


# Stands in for a training: it needs a moment, and counts its starts.
PROGRAM = """
import json, pathlib, sys, time
out = pathlib.Path(sys.argv[1]); out.mkdir(exist_ok=True)
print("Traceback (most recent call last)", flush=True)
time.sleep(0.05)
(out / "record.json").write_text(json.dumps({"loss": [2.0]}))
(out / "name with").write_text("")
END
"""


def _stand_in(monkeypatch: pytest.MonkeyPatch, end: str = "") -> None:
    def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
        program = PROGRAM.replace("END", end)
        with log.open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-S", "-E", "-c", program, *arguments], stdout=file, stderr=file
            )

    monkeypatch.setattr(kills, "start", start)
    monkeypatch.setattr(kills, "CASES", {"case": ["{out}"]})


def test_a_command_is_killed_until_it_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _stand_in(monkeypatch)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    length, expected = kills.uninterrupted("case", tmp_path / "a")
    assert sorted(expected) == ["name with", "record.json"]
    trial = kills.attempt("case", length / 3, expected, 4, random.Random(0), tmp_path / "b")
    assert trial.right
    assert 1 <= trial.killed == sum(trial.signals.values()) <= 4
    assert trial.starts == trial.killed + 1
    assert trial.leftovers == []


@pytest.mark.parametrize(
    ("end", "ended", "other"),
    [
        ("(out / 'record.json').write_text('{}')", True, ["record.json"]),
        ("(out / 'name with').unlink()", True, ["name with"]),
        ("sys.exit(1)", False, []),
        ("import os; os.abort()", False, []),
    ],
)
def test_a_command_that_goes_wrong_is_seen(
    end: str,
    ended: bool,
    other: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    _stand_in(monkeypatch)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    _, expected = kills.uninterrupted("case", tmp_path / "a")
    _stand_in(monkeypatch, end)
    trial = kills.attempt("case", 1.0, expected, 0, random.Random(0), tmp_path / "b")
    assert (trial.ended, trial.other, trial.right) == (ended, other, False)
    assert trial.tracebacks == trial.starts == 1
    monkeypatch.setattr(kills, "measure", lambda *arguments: [trial])
    out = tmp_path / "kills.csv"
    assert kills.main(["--out", str(out)]) == 1
    with out.open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["case"], row["ended"], row["other"]) == ("case", str(ended), " ".join(other))


def test_the_table_of_kills_counts() -> None:
    good = Trial("bayes", 3, {"start": 1, "training": 1, "report": 0}, {"SIGKILL": 2}, True)
    other = Trial("study", 1, ended=True, other=["record.json"], leftovers=["x"], tracebacks=2)
    cells = [list(column.cells) for column in kills.table([good, other, Trial("study")]).columns]
    assert list(zip(*cells, strict=True)) == [
        ("bayes", "1", "2", "1", "1", "0", "1", "0", "0", "0", "0"),
        ("study", "2", "0", "0", "0", "0", "0", "1", "1", "1", "2"),
        ("all", "3", "2", "1", "1", "0", "1", "1", "1", "1", "2"),
    ]
