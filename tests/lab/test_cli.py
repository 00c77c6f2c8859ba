"""The command line: what it prints, what it leaves behind and how it ends."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file

import hyperlight
import hyperlight.__main__
from hyperlight.lab import cli
from hyperlight.lab.cli import main
from hyperlight.lab.summary import TITLES
from hyperlight.lab.tasks.bayes import Bayes, Formulation
from hyperlight.lab.train import Training
from tests.lab.making import STEMS, arrays, encoded, listing, write_idx, zipped

SMALL = ["--hidden", "4", "8", "--evaluation-gammas", "2", "--device", "cpu"]
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

SCRIPTS = {
    "help": ["-m", "hyperlight", "--help"],
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
    started = {
        name: subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment,
        )
        for name, arguments in SCRIPTS.items()
    }
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


def test_demo_says_where_its_report_is(tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "out"
    arguments = ["demo", *TINY, "--target", "15.5", "--out", str(out)]
    assert main(arguments) == 0
    printed, err = capsys.readouterr()
    assert err == ""
    assert f"Report: {out / 'report.html'}\n" in printed
    assert "scikit-learn's digits" in printed
    assert "one seed" in printed
    assert "After 4 steps the MIP hypernetwork has" in " ".join(printed.split())
    assert printed.count("Paper, section") == 3
    rows = _rows(out / "metrics.csv")
    assert [(row["formulation"], row["seed"], row["step"]) for row in rows] == [
        (name, "0", step) for name in ("classical", "mip") for step in ("0", "2", "4")
    ]
    assert len(_rows(out / "steps.csv")) == 8
    config = json.loads((out / "config.json").read_text("utf-8"))
    assert config["provenance"]["command"] == shlex.join(["hyperlight", *arguments])
    expected = {
        **dataclasses.asdict(Bayes(hidden=(4, 8), evaluation_gammas=2)),
        **dataclasses.asdict(
            Training(steps=4, seeds=1, evaluate_every=2, batch_size=16, target=15.5, device="cpu")
        ),
        "hidden": [4, 8],
    }
    assert config["settings"] == expected
    page = (out / "report.html").read_text("utf-8")
    assert "Classical and MIP hypernetworks on digits" in page
    assert "steps to 15.5 % accuracy" in page


@quick
def test_demo_replaces_what_an_earlier_demo_left(tmp_path: Path, capsys: Captured) -> None:
    folder = tmp_path / "cwd" / "runs" / "demo"  # where it is by default
    folder.mkdir(parents=True)
    for name in ("metrics.csv", "notes.txt", "model-mip-seed1.safetensors"):
        (folder / name).write_text("old")
    assert main(["demo", *TINY]) == 0
    assert "Report: runs/demo/report.html\n" in capsys.readouterr().out
    assert {row["seed"] for row in _rows(folder / "metrics.csv")} == {"0"}
    # A model of an earlier demo would pass for one of this one's.
    models = [name for name in listing(folder) if name.startswith("model-")]
    assert models == ["model-classical-seed0.safetensors", "model-mip-seed0.safetensors"]
    assert (folder / "notes.txt").read_text() == "old"


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
    assert load_file(out / f"model-{parametrization}-seed0.safetensors")


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
    for name in ("metrics.csv", "steps.csv", "scales.csv"):
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
    assert folder.name.startswith("bayes-digits-mip-sgd-")
    assert f"Report: runs/{folder.name}/report.html" in capsys.readouterr().out


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
def test_a_run_that_diverges_ends_with_a_report(tmp_path: Path, capsys: Captured) -> None:
    wild = ["--optimizer", "sgd", "--lr", "1e12"]
    assert main(["demo", *TINY, *wild, "--out", str(tmp_path / "out")]) == 0
    assert "Report: " in capsys.readouterr().out
    losses = [row["test_loss"] for row in _rows(tmp_path / "out" / "metrics.csv")]
    assert losses.count("nan") == 4


# --- what is refused ------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "0"], "--steps was 0; expected 1 or more"),
        (["--seeds", "0"], "--seeds was 0; expected 1 or more"),
        (["--batch-size", "5000"], "--batch-size was 5000; there are 1,437 training images"),
        (["--evaluate-every", "-1"], "--evaluate-every was -1; expected 1 or more"),
        (["--lr", "nan"], "--lr was nan; expected a learning rate above zero"),
        (["--dimensions", "0"], "--dimensions was 0; expected a number above 0"),
        (["--evaluation-gammas", "1"], "--evaluation-gammas was 1; expected a number above 1"),
        (["--hidden", "0"], "hidden was (0,)"),
    ],
)
@pytest.mark.parametrize("command", [["demo"], ["train", "bayes"]], ids=["demo", "bayes"])
def test_settings_that_cannot_be_end_with_a_message(
    tmp_path: Path, capsys: Captured, command: list[str], options: list[str], words: str
) -> None:
    out = tmp_path / "out"
    assert words in _refused([*command, *TINY, *options, "--out", str(out)], capsys)
    assert listing(out) == []


def test_an_accelerator_that_is_not_there_ends_with_a_message(
    tmp_path: Path, capsys: Captured
) -> None:
    device = "mps" if torch.cuda.is_available() else "cuda"
    options = [*TINY, "--device", device, "--out", str(tmp_path / "out")]
    message = _refused(["train", "bayes", *options], capsys)
    assert f"--device was {device}" in message
    assert "cpu" in message


@pytest.mark.parametrize("command", [["demo"], ["train", "bayes"]], ids=["demo", "bayes"])
def test_a_file_in_the_place_of_the_folder_is_refused(
    tmp_path: Path, capsys: Captured, command: list[str]
) -> None:
    (tmp_path / "out").write_text("a file")
    message = _refused([*command, *TINY, "--out", str(tmp_path / "out")], capsys)
    assert f"{tmp_path / 'out'} is a file" in message


@pytest.mark.parametrize("arguments", [["--steps", "x"], ["--optimizer", "lion"], ["--tests", "1"]])
def test_options_that_do_not_parse_end_with_status_2(tmp_path: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["demo", *arguments, "--out", str(tmp_path / "out")])
    assert raised.value.code == 2
    assert not (tmp_path / "out").exists()


def test_an_interruption_ends_with_status_130(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> Iterator[object]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(cli, "train", interrupted)
    assert main(["demo", *TINY, "--out", str(tmp_path / "out")]) == 130
    assert "interrupted" in capsys.readouterr().err


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


@pytest.mark.parametrize("command", [["demo"], ["train", "bayes"]], ids=["demo", "bayes"])
def test_a_folder_without_mnist_says_how_to_fetch_it(
    tmp_path: Path, capsys: Captured, command: list[str]
) -> None:
    (tmp_path / "empty").mkdir()
    data = ["--data", "mnist", "--data-dir", str(tmp_path / "empty")]
    message = _refused([*command, *TINY, *data, "--out", str(tmp_path / "out")], capsys)
    assert f"{tmp_path / 'empty'} lacks " in message
    assert f"`hyperlight data mnist --data-dir {tmp_path / 'empty'}`" in message
    assert all(stem in message for stem in STEMS)


@quick
def test_demo_trains_on_mnist_from_a_folder(tmp_path: Path, capsys: Captured) -> None:
    data = ["--data", "mnist", "--data-dir", str(write_idx(tmp_path / "data"))]
    assert main(["demo", *TINY, *data, "--out", str(tmp_path / "out")]) == 0
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
        (["demo"], ["--out", *_options(Bayes, Training)]),
        (["train"], ["bayes"]),
        (
            ["train", "bayes"],
            ["--out", "--overwrite", "--parametrization", *_options(Bayes, Training)],
        ),
        (["data"], ["mnist"]),
        (["data", "mnist"], ["--data-dir"]),
    ],
    ids=["hyperlight", "demo", "train", "bayes", "data", "mnist"],
)
def test_help_names_the_options(capsys: Captured, arguments: list[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main([*arguments, "--help"])
    assert raised.value.code == 0
    printed = capsys.readouterr().out.replace(",", " ").split()
    assert [word for word in words if word not in printed] == []


def test_help_has_the_same_options_as_are_known(capsys: Captured) -> None:
    known = ["--data", "--data-dir", "--prior", "--dimensions", "--hidden", "--encoding"]
    known += ["--evaluation-gammas", "--evaluation-images", "--optimizer", "--lr", "--steps"]
    known += ["--batch-size", "--seeds", "--evaluate-every", "--target", "--device"]
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


class _Missing:
    """A finder that finds one package nowhere."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _forget(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in list(sys.modules):
        if name == package or name.startswith(f"{package}."):
            monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    "package",
    ["tyro", "lightning_fabric", "rich", "jinja2", "matplotlib", "torchmetrics", "numpy"],
)
def test_a_missing_package_is_named_with_the_extra(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setattr(hyperlight, "lab", hyperlight.lab)  # to be put back
    _forget(monkeypatch, "hyperlight.lab")
    _forget(monkeypatch, package)
    monkeypatch.setattr(sys, "meta_path", [_Missing(package), *sys.meta_path])
    with pytest.raises(SystemExit) as raised:
        hyperlight.__main__.main()
    assert raised.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert repr(package) in err
    assert "pip install 'hyperlight[lab]'" in err


def test_a_part_of_hyperlight_that_is_missing_is_no_missing_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hyperlight, "lab", hyperlight.lab)  # to be put back
    _forget(monkeypatch, "hyperlight.lab")
    monkeypatch.setitem(sys.modules, "hyperlight.lab.report", None)
    with pytest.raises(ModuleNotFoundError, match=r"hyperlight\.lab\.report"):
        hyperlight.__main__.main()


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
    assert "'tyro'" in err
    assert "pip install 'hyperlight[lab]'" in err
    assert "Traceback" not in err


def test_the_library_requires_torch_and_safetensors_alone() -> None:
    path = Path(__file__).parents[2] / "pyproject.toml"
    project = tomllib.loads(path.read_text("utf-8"))["project"]
    required = sorted(line.partition(">")[0] for line in project["dependencies"])
    assert required == ["safetensors", "torch"]


def test_python_m_hyperlight(processes: dict[str, Process]) -> None:
    out, err = processes["help"].communicate(timeout=300)
    assert processes["help"].returncode == 0, err
    assert out.startswith("usage: hyperlight ")
    assert all(command in out for command in ("demo", "train", "data"))
