"""The command line: what it prints, what it leaves behind and how it ends."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import hyperlight
import hyperlight.__main__
from hyperlight.lab import cli, demo, session
from hyperlight.lab.cli import main
from hyperlight.lab.summary import TITLES
from hyperlight.lab.tasks.base import SWITCHES, Formulation
from hyperlight.lab.tasks.bayes import Bayes
from hyperlight.lab.tasks.hypermorph import Hypermorph
from hyperlight.lab.train import Training
from tests.lab.making import STEMS, arrays, encoded, listing, write_idx, zipped

SMALL = ["--hidden", "4", "8", "--evaluation-gammas", "2", "--device", "cpu"]
DEMO = ["--steps", "4", "--seeds", "1", "--device", "cpu"]
TINY = [*SMALL, "--steps", "4", "--seeds", "1", "--evaluate-every", "2", "--batch-size", "16"]

Process = subprocess.Popen[str]
Captured = pytest.CaptureFixture[str]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _refused(arguments: list[str], capsys: Captured) -> str:
    """The message of a command that ends with status 2; one line, on stderr alone."""
    capsys.readouterr()
    assert main(arguments) == 2
    _, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert "Traceback" not in err
    return err


# --- processes of their own -------------------------------------------------------

# What `import hyperlight` must not bring along: the packages of the extra 'lab'.
LAB_ONLY = [
    *("tyro", "rich", "matplotlib", "sklearn", "lightning_fabric", "torchmetrics", "pooch"),
    *("jinja2", "hyperlight.lab"),
]

# What help must not wait for: packages that training, drawing, data or schedulers need.
HEAVY = [
    *("torchmetrics", "transformers", "scipy", "sklearn", "matplotlib", "lightning_fabric"),
    *("distributed", "dask", "nibabel", "tensorboard", "pooch", "requests", "jinja2"),
    "torch._dynamo",
]

COMMANDS = [
    *(["--help"], ["demo", "--help"], ["report", "--help"]),
    *(["train", "--help"], ["train", "bayes", "--help"], ["train", "scale-space", "--help"]),
    *(["study", "--help"], ["study", "--list"], ["data", "--help"], ["data", "mnist", "--help"]),
]

SCRIPTS = {
    "help to a closed pipe": ["-m", "hyperlight", "--help"],
    "list to a closed pipe": ["-m", "hyperlight", "study", "--list"],
    "version": ["-m", "hyperlight", "--version"],
    "loaded": [
        "-c",
        "import sys\n"
        "from hyperlight.lab.cli import main\n"
        f"for arguments in {COMMANDS}:\n"
        "    try:\n"
        "        assert main(arguments) == 0\n"
        "    except SystemExit as ended:\n"
        "        assert ended.code == 0\n"
        "print(*sys.modules, file=sys.stderr)",
    ],
    # The library alone, then its command line where the first package of the extra is missing.
    "bare": [
        "-c",
        "import runpy, sys; import hyperlight; print(*sys.modules); "
        "sys.modules['tyro'] = None; sys.argv = ['hyperlight', 'demo']; "
        "runpy.run_module('hyperlight', run_name='__main__')",
    ],
}


@pytest.fixture(scope="module", autouse=True)
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Process]]:
    """Started before the first test here, as they take their time to import; read by the last."""
    folder = tmp_path_factory.mktemp("processes")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    reading, closed = os.pipe()
    os.close(reading)
    started = {
        name: subprocess.Popen(
            [sys.executable, *arguments],
            stdout=closed if "closed" in name else subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment,
        )
        for name, arguments in SCRIPTS.items()
    }
    os.close(closed)
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default folders are below the working directory."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


quick = pytest.mark.usefixtures("no_figures")


# --- demo -----------------------------------------------------------------------

METHODS = ["classical", "mip", "ours", "plain"]


@quick
def test_demo_says_where_its_report_is(tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "out"
    arguments = ["demo", *DEMO, "--out", str(out)]
    assert main(arguments) == 0
    printed, err = capsys.readouterr()
    assert err == ""
    assert f"Report: {out / 'report.html'}\n" in printed
    assert "digits, 1,149 images to train, 288 to validate, 360 to test" in printed
    assert "one seed" in printed
    assert "After 4 steps, test saving: " in " ".join(printed.split())
    assert printed.count("beyond the paper: ours has a higher saving than") == 3
    assert printed.count("Paper, section") == 3
    rows = _rows(out / "metrics.csv")
    assert [(row["formulation"], row["seed"], row["step"]) for row in rows] == [
        (name, "0", step) for name in METHODS for step in "01234"
    ]
    assert len(_rows(out / "steps.csv")) == 16
    config = json.loads((out / "config.json").read_text("utf-8"))
    assert config["provenance"]["command"] == shlex.join(["hyperlight", *arguments])
    assert (out / "ours-seed0" / "model.safetensors").is_file()
    assert config["settings"]["steps"] == 4
    assert "lr" not in config["settings"]  # all methods have one of their own
    assert config["settings"]["ours"] == demo.METHODS[2].text
    page = (out / "report.html").read_text("utf-8")
    assert "One autoencoder of digits for every price of its rate" in page
    assert demo.METHODS[0].text in page
    # The front and images of every method, beside those in the slider.
    assert len(re.findall(r'<figure class="drawn"><img [^>]*src="data:image/png', page)) == 8


@quick
def test_demo_replaces_what_an_earlier_demo_left(tmp_path: Path, capsys: Captured) -> None:
    folder = tmp_path / "cwd" / "runs" / "demo"  # where it is by default
    folder.mkdir(parents=True)
    (folder / "ours-seed1").mkdir()
    (folder / "mine").mkdir()
    for name in ("metrics.csv", "notes.txt", "ours-seed1/model.safetensors", "mine/notes.txt"):
        (folder / name).write_text("old")
    assert main(["demo", *DEMO]) == 0
    assert "Report: runs/demo/report.html\n" in capsys.readouterr().out
    assert {row["seed"] for row in _rows(folder / "metrics.csv")} == {"0"}
    # A model of an earlier demo would pass for one of this one's.
    models = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors"))
    assert models == [f"{name}-seed0/model.safetensors" for name in METHODS]
    assert "ours-seed1" not in listing(folder)
    assert (folder / "notes.txt").read_text() == "old"
    assert (folder / "mine" / "notes.txt").read_text() == "old"


# --- train bayes ----------------------------------------------------------------


@quick
@pytest.mark.parametrize("parametrization", get_args(Formulation))
def test_train_bayes_with_every_parametrization(
    tmp_path: Path, capsys: Captured, parametrization: str
) -> None:
    out = tmp_path / "out"
    chosen = ["--parametrization", parametrization]
    assert main(["train", "bayes", *TINY, *chosen, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"Bayesian hypernetwork on digits: {TITLES[parametrization]}" in printed
    assert f"Report: {out / 'report.html'}" in printed
    assert "Paper, section" not in printed
    assert {row["formulation"] for row in _rows(out / "metrics.csv")} == {parametrization}
    assert load_file(out / f"{parametrization}-seed0" / "model.safetensors")
    run = listing(out / f"{parametrization}-seed0")
    assert [name for name in run if not name.endswith(".png")] == [
        *("metrics.csv", "model.safetensors", "record.json", "tensorboard")
    ]


@quick
def test_the_command_in_a_report_gives_its_numbers_again(tmp_path: Path) -> None:
    first, second = tmp_path / "first run", tmp_path / "second"
    options = [*TINY, "--seeds", "2", "--optimizer", "sgd", "--lr", "1e-3"]
    assert main(["train", "bayes", *options, "--out", str(first)]) == 0
    config = json.loads((first / "config.json").read_text("utf-8"))
    assert config["settings"]["optimizer"] == "sgd"
    program, *arguments = shlex.split(config["provenance"]["command"])
    assert program == "hyperlight"
    assert str(first) in arguments
    assert main([str(second) if a == str(first) else a for a in arguments]) == 0
    for name in ("metrics.csv", "steps.csv", "scales.csv", "outcome.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    losses = {row["seed"]: row["train_loss"] for row in _rows(first / "steps.csv")}
    assert len(set(losses.values())) == len(losses) == 2


@quick
def test_train_bayes_with_another_prior(tmp_path: Path) -> None:
    options = ["--prior", "normal", "--dimensions", "3", "--encoding", "per-input"]
    out = tmp_path / "out"
    assert main(["train", "bayes", *TINY, *options, "--out", str(out)]) == 0
    norms = [float(row["gamma_norm"]) for row in _rows(out / "scales.csv")]
    assert max(norms) > 1.8  # of 33 Gaussian vectors; on the unit cube it is at most 1.73


@quick
def test_train_bayes_makes_a_folder_named_after_its_settings(
    tmp_path: Path, capsys: Captured
) -> None:
    assert main(["train", "bayes", *TINY, "--optimizer", "sgd"]) == 0
    (folder,) = (tmp_path / "cwd" / "runs").iterdir()
    assert re.fullmatch("bayes-digits-mip-sgd-[0-9a-f]{8}", folder.name)
    assert f"Report: runs/{folder.name}/report.html" in capsys.readouterr().out


def _written(path: Path, when: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    os.utime(path, (when, when))
    return path


def test_report_finds_the_last_run(tmp_path: Path, capsys: Captured) -> None:
    runs = tmp_path / "cwd" / "runs"
    assert main(["report"]) == 2
    error = capsys.readouterr().err
    assert f"There are no finished runs and no studies in {runs}. Run one first, such as" in error
    _written(runs / "unfinished" / "config.json", 9e8)
    _written(runs / "demo" / "report.html", 2e8)
    _written(runs / "bayes-1" / "report.html", 1e8)
    assert main(["report"]) == 0
    assert capsys.readouterr().out == "Report: runs/demo/report.html\n"
    assert main(["report", "--results", "runs/bayes-1"]) == 0
    assert capsys.readouterr().out == "Report: runs/bayes-1/report.html\n"
    _written(runs / "studies" / "cpu" / "fig1a" / "study.json", 3e8)
    _written(runs / "studies" / "cpu" / "lr" / "study.json", 1e8)
    _written(runs / "studies" / "smoke" / "lr" / "study.json", 1e8)
    _written(runs / "studies" / "cpu" / "report.html", 1e8)  # an earlier page of the studies
    assert main(["report"]) == 2  # this study is damaged, and it is the last
    assert f"The study in {Path('runs/studies/cpu/fig1a')} cannot be read" in (
        capsys.readouterr().err
    )


@quick
def test_the_same_command_finds_its_folder_and_its_finished_runs(
    tmp_path: Path, capsys: Captured
) -> None:
    runs = tmp_path / "cwd" / "runs"
    assert main(["train", "bayes", *TINY]) == 0
    (folder,) = runs.iterdir()
    record = folder / "mip-seed0" / "record.json"
    kept = record.read_bytes(), record.stat().st_mtime_ns
    assert "runs are finished" not in capsys.readouterr().out
    # What the numbers do not depend on is no other command.
    for options in (
        [],
        ["--target", "50"],
        ["--checkpoint-seconds", "0"],
        ["--data-dir", str(tmp_path)],
        ["--device", "auto"] if not torch.cuda.is_available() else [],
    ):
        assert main(["train", "bayes", *TINY, *options]) == 0
        printed = capsys.readouterr().out
        assert "These runs are finished. Pass --overwrite to train them again." in printed
        assert f"Report: runs/{folder.name}/report.html" in printed
        assert list(runs.iterdir()) == [folder]
        assert (record.read_bytes(), record.stat().st_mtime_ns) == kept
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert "--device auto" in config["provenance"]["command"] or torch.cuda.is_available()


@quick
def test_every_other_setting_has_a_folder_of_its_own(tmp_path: Path) -> None:
    tiny = ["train", "bayes", *TINY, "--steps", "1", "--evaluate-every", "1"]
    others = [
        [],
        ["--lr", "0.005"],
        ["--weight-decay", "0.5"],
        ["--optimizer", "adamw"],
        ["--hidden", "4"],
        ["--prior", "normal"],
        ["--parametrization", "plain"],
    ]
    for options in others:
        assert main([*tiny, *options]) == 0
    assert len(listing(tmp_path / "cwd" / "runs")) == len(others)


@quick
@pytest.mark.parametrize("where", ["default", "out"])
def test_more_seeds_later_keep_the_first_ones(tmp_path: Path, capsys: Captured, where: str) -> None:
    command = ["train", "bayes", *TINY]
    if where == "out":
        command += ["--out", str(tmp_path / "cwd" / "runs" / "mine")]
    assert main(command) == 0
    (folder,) = (tmp_path / "cwd" / "runs").iterdir()
    record = folder / "mip-seed0" / "record.json"
    kept = record.read_bytes(), record.stat().st_mtime_ns
    assert main([*command, "--seeds", "2"]) == 0
    assert (record.read_bytes(), record.stat().st_mtime_ns) == kept
    assert (folder / "mip-seed1" / "record.json").is_file()
    assert {row["seed"] for row in _rows(folder / "metrics.csv")} == {"0", "1"}
    assert "runs are finished" not in capsys.readouterr().out
    assert main([*command, "--seeds", "1"]) == 0
    assert "runs are finished" in capsys.readouterr().out
    assert {row["seed"] for row in _rows(folder / "metrics.csv")} == {"0"}
    assert (folder / "mip-seed1" / "record.json").is_file()


@quick
def test_a_folder_with_files_needs_overwrite(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.csv").write_text("old")
    arguments = ["train", "bayes", *TINY, "--out", str(tmp_path / "out")]
    message = _refused(arguments, capsys)
    assert str(tmp_path / "out") in message
    assert "--overwrite" in message
    assert listing(tmp_path / "out") == ["metrics.csv"]
    assert (tmp_path / "out" / "metrics.csv").read_text() == "old"
    assert main([*arguments, "--overwrite"]) == 0
    assert len(_rows(tmp_path / "out" / "metrics.csv")) == 3


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_run_that_diverges_ends_with_a_report(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = {"optimizer": "sgd", "lr": 1e12}
    methods = [dataclasses.replace(method, training=wild) for method in demo.METHODS[:2]]
    monkeypatch.setattr(demo, "METHODS", methods)
    assert main(["demo", *DEMO, "--out", str(tmp_path / "out")]) == 3
    printed = capsys.readouterr().out
    assert "Report: " in printed
    for name in ("classical", "MIP"):
        started = rf"seed 0  {name} diverged at step 1 \(training loss [\d.]+, test loss nan\)\."
        assert len(re.findall(started, printed)) == 1
        assert len(re.findall(f"{started} Ctrl-C stops", printed)) == 1
        assert f"seed 0  {name}: diverged at step 2\n" in printed
    assert "classical: diverged at step 2. MIP: diverged at step 2." in " ".join(printed.split())
    assert printed.count("not testable") == 3
    assert "does not hold" not in printed
    losses = [row["test_loss"] for row in _rows(tmp_path / "out" / "metrics.csv")]
    assert losses.count("nan") == 8


@quick
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_finished_run_that_diverged_is_reported_as_such_again(
    tmp_path: Path, capsys: Captured
) -> None:
    wild = ["--optimizer", "sgd", "--lr", "1e12"]
    command = ["train", "bayes", *TINY, *wild, "--out", str(tmp_path / "out")]
    assert main(command) == 3
    assert main(command) == 3
    printed = capsys.readouterr().out.rpartition("These runs are finished.")[2]
    assert "MIP diverged at step 2 (training loss nan, test loss nan).\n" in printed
    assert "Ctrl-C" not in printed
    report = (tmp_path / "out" / "report.md").read_text("utf-8")
    assert "MIP: diverged at step 2. The loss or the gradient exploded" in report


# --- train hypermorph -----------------------------------------------------------

UNET = ["--levels", "2", "--channels", "4", "--evaluation-pairs", "4"]


def _scans(folder: Path) -> list[str]:
    """Options for ten scans of squares, which are quickly registered."""
    folder.mkdir()
    for i in range(10):
        image, labels = np.zeros((16, 16), np.float32), np.zeros((16, 16), np.int16)
        square = slice(2 + i % 3, 9 + i % 4)
        image[square, square], labels[square, square] = 0.5 + i / 20, 1
        np.savez(folder / f"scan{i}.npz", image=image, labels=labels)
    return ["--data", "folder", "--data-dir", str(folder), *UNET]


@quick
@pytest.mark.parametrize("parametrization", get_args(Formulation))
def test_train_hypermorph_with_every_parametrization(
    tmp_path: Path, capsys: Captured, parametrization: str
) -> None:
    out = tmp_path / "out"
    chosen = [*_scans(tmp_path / "scans"), "--batch-size", "4"]
    chosen += ["--parametrization", parametrization, "--out", str(out)]
    assert main(["train", "hypermorph", *TINY, *chosen]) == 0
    printed = capsys.readouterr().out
    assert f"Registration on folder: {TITLES[parametrization]}" in printed
    assert f"Report: {out / 'report.html'}" in printed
    assert "steps to" not in printed  # there is no target by default
    assert "dice before registration" in " ".join(printed.split())
    rows = _rows(out / "metrics.csv")
    assert [row["formulation"] for row in rows] == [parametrization] * 3
    assert {"test_loss", "test_dice", "test_folding", "test_mse"} < set(rows[0])
    assert 0.0 < float(rows[-1]["test_dice"]) <= 1.0
    config = json.loads((out / "config.json").read_text("utf-8"))
    for name, value in {"optimizer": "adamw", "lr": 1e-4, "weight_decay": 0.01}.items():
        assert config["settings"][name] == value  # the paper's
    run = out / f"{parametrization}-seed0"
    outcome = {row["figure"]: float(row["value"]) for row in _rows(out / "outcome.csv")}
    if parametrization == "plain":
        assert outcome["dice"] == float(rows[-1]["test_dice"])
        assert not list(run.glob("*.png"))
    else:
        assert ("best gamma by tune" in outcome) == (parametrization in SWITCHES)
        assert 0.0 <= outcome.get("best gamma by tune", 0.0) <= 1.0
        assert outcome["best gamma of 11, validation"] in [i / 10 for i in range(11)]
        table = _rows(out / "outcome-test-pairs-against-gamma.csv")
        assert [float(row["gamma"]) for row in table] == [i / 10 for i in range(11)]
        assert {"dice.png", "warped.png"} < set(listing(run))
        assert (out / "report.html").read_text("utf-8").count('<figure class="drawn"><img') == 2


def test_train_hypermorph_on_the_digits(tmp_path: Path, capsys: Captured) -> None:
    options = ["--size", "16", "16", *UNET, "--batch-size", "4", "--target", "0.1"]
    assert main(["train", "hypermorph", *TINY, *options]) == 0
    (folder,) = (tmp_path / "cwd" / "runs").iterdir()
    assert re.fullmatch("hypermorph-digits-mip-adamw-[0-9a-f]{8}", folder.name)
    printed = capsys.readouterr().out
    assert "label maps made of ink and digit" in printed
    assert "steps to 0.1 dice" in " ".join(printed.split())
    assert "Test pairs against gamma" in (folder / "report.html").read_text("utf-8")
    # The same pictures and numbers come from what is kept.
    page = (folder / "report.html").read_bytes()
    assert main(["train", "hypermorph", *TINY, *options]) == 0
    assert "runs are finished" in capsys.readouterr().out
    assert (folder / "report.html").read_bytes() == page


# --- what is refused ------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "0"], "--steps was 0; expected 1 or more"),
        (["--seeds", "0"], "--seeds was 0; expected 1 or more"),
        (["--batch-size", "5000"], "The batch size was 5000; expected 1 to 1,437, the size of"),
        (["--evaluate-every", "-1"], "--evaluate-every was -1; expected 1 or more"),
        (["--lr", "nan"], "--lr was nan; expected a learning rate above zero"),
        (["--weight-decay", "-1"], "--weight-decay was -1.0; expected 0 or more"),
        (["--checkpoint-seconds", "nan"], "--checkpoint-seconds was nan; expected 0 or more"),
        (["--devices", "0"], "--devices was 0; expected 1 or more"),
        (
            ["--devices", "3"],
            "--batch-size was 16 and --devices 3; expected a batch size that is a multiple of",
        ),
        (["--dimensions", "0"], "--dimensions was 0; expected 1 or more"),
        (["--evaluation-gammas", "1"], "--evaluation-gammas was 1; expected 2 or more"),
        (["--hidden", "0"], "hidden was (0,)"),
    ],
)
def test_settings_that_cannot_be_end_with_a_message(
    tmp_path: Path, capsys: Captured, options: list[str], words: str
) -> None:
    out = tmp_path / "out"
    command = ["train", "bayes", *TINY]
    assert words in _refused([*command, *options, "--out", str(out)], capsys)
    assert listing(out) == []


@pytest.mark.parametrize("name", ["--steps", "--seeds"])
def test_a_demo_of_nothing_is_refused(tmp_path: Path, capsys: Captured, name: str) -> None:
    out = tmp_path / "out"
    message = _refused(["demo", *DEMO, name, "0", "--out", str(out)], capsys)
    assert f"{name} was 0; expected 1 or more" in message
    assert listing(out) == []


def test_an_accelerator_that_is_not_there_ends_with_a_message(
    tmp_path: Path, capsys: Captured
) -> None:
    device = "mps" if torch.cuda.is_available() else "cuda"
    options = [*TINY, "--device", device, "--out", str(tmp_path / "out")]
    message = _refused(["train", "bayes", *options], capsys)
    assert f"--device was {device}" in message
    assert "cpu" in message


both = pytest.mark.parametrize(
    "command", [["demo", *DEMO], ["train", "bayes", *TINY]], ids=["demo", "bayes"]
)


@both
def test_a_file_in_the_place_of_the_folder_is_refused(
    tmp_path: Path, capsys: Captured, command: list[str]
) -> None:
    (tmp_path / "out").write_text("a file")
    message = _refused([*command, "--out", str(tmp_path / "out")], capsys)
    assert f"{tmp_path / 'out'} is a file" in message


@pytest.mark.parametrize("arguments", [["--steps", "x"], ["--optimizer", "lion"], ["--tests", "1"]])
def test_options_that_do_not_parse_end_with_status_2(tmp_path: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["train", "bayes", *arguments, "--out", str(tmp_path / "out")])
    assert raised.value.code == 2
    assert not (tmp_path / "out").exists()


def test_an_interruption_ends_with_status_130(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> Iterator[object]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(session, "train", interrupted)
    assert main(["demo", *DEMO, "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "interrupted; the same command resumes from here\n"


# --- names with brackets ----------------------------------------------------------


@quick
def test_a_folder_with_brackets_in_its_name_is_printed_as_it_is(
    tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "run[mip]"
    assert main(["train", "bayes", *TINY, "--out", str(out)]) == 0
    assert f"Report: {out / 'report.html'}\n" in capsys.readouterr().out


def test_a_message_with_brackets_is_printed_as_it_is(tmp_path: Path, capsys: Captured) -> None:
    folder = tmp_path / "data[" / "red]"
    message = _refused(["data", "mnist", "--data-dir", str(_file(folder))], capsys)
    assert f"{folder} is a file" in message


def test_a_line_with_brackets_is_printed_as_it_is(tmp_path: Path, capsys: Captured) -> None:
    folder = write_idx(tmp_path / "data[" / "bold]")
    assert main(["data", "mnist", "--data-dir", str(folder)]) == 0
    assert f"{folder}: " in capsys.readouterr().out


def _file(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text("a file")
    return path


# --- MNIST ----------------------------------------------------------------------


def test_a_folder_without_mnist_says_how_to_fetch_it(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "empty").mkdir()
    data = ["--data", "mnist", "--data-dir", str(tmp_path / "empty")]
    message = _refused(["train", "bayes", *TINY, *data, "--out", str(tmp_path / "out")], capsys)
    assert f"{tmp_path / 'empty'} lacks " in message
    assert f"`hyperlight data mnist --data-dir {tmp_path / 'empty'}`" in message
    assert all(stem in message for stem in STEMS)


@quick
def test_train_bayes_on_mnist_from_a_folder(tmp_path: Path, capsys: Captured) -> None:
    data = ["--data", "mnist", "--data-dir", str(write_idx(tmp_path / "data"))]
    assert main(["train", "bayes", *TINY, *data, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "on mnist" in printed
    assert "not the official MNIST" in printed
    assert "not the official MNIST" in (tmp_path / "out" / "report.html").read_text("utf-8")
    config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert config["settings"]["data_dir"] == str(tmp_path / "data")


@pytest.mark.parametrize("naming", [str, zipped], ids=["raw", "gzipped"])
def test_data_mnist_checks_a_folder(tmp_path: Path, capsys: Captured, naming: object) -> None:
    folder = write_idx(tmp_path / "data", naming=naming)  # type: ignore[arg-type]
    assert main(["data", "mnist", "--data-dir", str(folder)]) == 0
    printed, err = capsys.readouterr()
    assert printed == (
        f"{folder}: IDX files that are not the official MNIST, 100 training and 20 test images\n"
    )
    assert err == ""


def test_data_mnist_refuses_a_damaged_file(tmp_path: Path, capsys: Captured) -> None:
    folder = write_idx(tmp_path / "data")
    (folder / STEMS[0]).write_bytes(encoded(arrays()[STEMS[0]])[:-1])
    message = _refused(["data", "mnist", "--data-dir", str(folder)], capsys)
    assert str(folder / STEMS[0]) in message
    assert "damaged or cut short" in message


# --- help -----------------------------------------------------------------------


def _options(*configs: type) -> list[str]:
    return [
        f"--{field.name.replace('_', '-')}"
        for config in configs
        for field in dataclasses.fields(config)
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["demo", "train", "data"]),
        (["demo"], _options(cli.Demo)),
        (["train"], ["bayes", "hypermorph"]),
        (
            ["train", "bayes"],
            ["--out", "--overwrite", "--parametrization", *_options(Bayes, Training)],
        ),
        (
            ["train", "hypermorph"],
            ["--out", "--overwrite", "--parametrization", *_options(Hypermorph, Training)],
        ),
        (["data"], ["mnist"]),
        (["data", "mnist"], ["--data-dir"]),
    ],
    ids=["hyperlight", "demo", "train", "bayes", "hypermorph", "data", "mnist"],
)
def test_help_names_the_options(capsys: Captured, arguments: list[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main([*arguments, "--help"])
    assert raised.value.code == 0
    printed = capsys.readouterr().out.replace(",", " ").split()
    assert [word for word in words if word not in printed] == []


def test_help_has_the_same_options_as_are_known(capsys: Captured) -> None:
    known = [
        "--hidden",
        "--directions",
        "--activation",
        "--encoding",
        "--init",
        "--fraction",
        "--head",
    ]
    known += ["--data", "--data-dir", "--size", "--grey", "--augment", "--use-valid", "--stages"]
    known += [
        "--network",
        "--batch-norm",
        "--prior",
        "--dimensions",
        "--evaluation-gammas",
        "--evaluation-images",
    ]
    known += ["--final-images", "--posterior-samples"]
    known += ["--gain", "--members", "--dropout", "--angles", "--turned-images"]
    known += ["--optimizer", "--lr", "--weight-decay", "--steps", "--batch-size", "--rates"]
    known += [
        "--schedule",
        "--precision",
        "--seeds",
        "--evaluate-every",
        "--target",
        "--device",
        "--graph",
        "--devices",
    ]
    known += ["--checkpoint-seconds"]
    assert _options(Bayes, Training) == known


# --- the program ------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 2, 130])
def test_the_program_ends_with_the_status(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "main", lambda: status)
    with pytest.raises(SystemExit) as raised:
        hyperlight.__main__.main()
    assert raised.value.code == status


def test_the_program_reads_its_arguments(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(write_idx(tmp_path / "data"))
    monkeypatch.setattr(sys, "argv", ["hyperlight", "data", "mnist", "--data-dir", folder])
    with pytest.raises(SystemExit) as raised:
        hyperlight.__main__.main()
    assert raised.value.code == 0
    assert folder in capsys.readouterr().out


@pytest.mark.parametrize("package", ["tyro", "lightning_fabric", "matplotlib", "distributed"])
def test_a_missing_package_is_named_with_the_extra(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """Before anything is trained, though most are imported only where they are used."""
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(cli, "main", None)
    monkeypatch.setattr(sys, "argv", ["hyperlight", "demo"])
    with pytest.raises(SystemExit) as raised:
        hyperlight.__main__.main()
    assert raised.value.code == 2
    assert capsys.readouterr() == (
        "",
        f"The command line needs {package}. Install the extra 'lab' in a checkout of "
        "HyperLight: pip install '.[lab]'\n",
    )


def test_the_packages_of_the_extra_are_those_that_are_declared() -> None:
    path = Path(__file__).parents[2] / "pyproject.toml"
    project = tomllib.loads(path.read_text("utf-8"))["project"]
    names = {"pillow": "PIL", "scikit-learn": "sklearn", "lightning-fabric": "lightning_fabric"}
    declared = {line.partition(">")[0] for line in project["optional-dependencies"]["lab"]}
    assert set(hyperlight.__main__._EXTRA) == {names.get(name, name) for name in declared}


def test_a_warning_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    cli._show_warning("Files have no checksum.", UserWarning, str(cli.__file__), 3)
    cli._show_warning("old name", FutureWarning, "/elsewhere/code.py", 7)
    assert capsys.readouterr().err.splitlines() == [
        "warning: Files have no checksum.",
        "warning: old name (FutureWarning from /elsewhere/code.py:7)",
    ]


# --- what the processes gave ------------------------------------------------------


def test_the_library_alone_brings_nothing_of_the_lab_along(
    processes: dict[str, Process],
) -> None:
    """And its command line says how to install the extra."""
    out, err = processes["bare"].communicate(timeout=300)
    loaded = out.split()
    assert "hyperlight.model" in loaded, err
    assert [name for name in LAB_ONLY if name in loaded] == []
    assert processes["bare"].returncode == 2
    assert "needs tyro." in err
    assert "in a checkout of HyperLight: pip install '.[lab]'" in err
    assert "Traceback" not in err


def test_the_library_requires_torch_and_safetensors_alone() -> None:
    path = Path(__file__).parents[2] / "pyproject.toml"
    project = tomllib.loads(path.read_text("utf-8"))["project"]
    required = sorted(line.partition(">")[0] for line in project["dependencies"])
    assert required == ["safetensors", "torch"]


def test_help_and_lists_import_no_more_than_they_show(processes: dict[str, Process]) -> None:
    out, err = processes["loaded"].communicate(timeout=300)
    assert processes["loaded"].returncode == 0, err
    assert out.count("usage: hyperlight") == len(COMMANDS) - 1
    loaded = err.split()
    assert "hyperlight.lab.studies.fig1a" in loaded
    assert [name for name in HEAVY if name in loaded] == []


@pytest.mark.parametrize("name", ["help to a closed pipe", "list to a closed pipe"])
def test_a_closed_pipe_ends_quietly(processes: dict[str, Process], name: str) -> None:
    """As of ``hyperlight --help | head -1``, which reads no further."""
    _, err = processes[name].communicate(timeout=300)
    assert err == ""
    assert processes[name].returncode == 1


def test_the_version_is_printed(processes: dict[str, Process]) -> None:
    assert processes["version"].communicate(timeout=300) == (
        f"hyperlight {hyperlight.__version__}\n",
        "",
    )
    assert processes["version"].returncode == 0
