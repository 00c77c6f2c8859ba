"""A data set or a task that is registered is in the command line and can be trained."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hyperlight.lab
from hyperlight import HyperModel, Uniform
from hyperlight.lab.cli import main
from hyperlight.lab.data import (
    DATA,
    Batches,
    DataSet,
    Images,
    ImageSplit,
    Request,
    load_images,
    load_scans,
)
from hyperlight.lab.engine import Spec, task_of
from hyperlight.lab.errors import LabError
from hyperlight.lab.tasks import KINDS
from hyperlight.lab.tasks.base import (
    Fixed,
    Formulation,
    Hypernetwork,
    ImageData,
    Kind,
    Metric,
    Model,
    Outcome,
    Task,
    evaluating,
)
from tests.architecture import import_circles

Captured = pytest.CaptureFixture[str]

TINY = ["--hidden", "4", "--device", "cpu", "--steps", "2", "--seeds", "1"]
TINY += ["--evaluate-every", "1", "--batch-size", "4"]


# --- a new data set: this, and one entry of DATA -------------------------------------


def _load(asked: Request) -> ImageSplit:
    side = asked.side(8)
    draw = torch.Generator().manual_seed(0)

    def part(count: int) -> Images:
        return Images(torch.rand(count, 1, side, side, generator=draw), torch.arange(count) % 2)

    return ImageSplit("specks", part(16), part(8), classes=2, note="white noise, 16 images")


def _fetch(folder: Path | None) -> str:
    """Fetch white noise, or check that a folder is noisy."""
    return f"{folder}: specks"


SPECKS = DataSet("specks", images=_load, fetch=_fetch)


@pytest.fixture
def specks(monkeypatch: pytest.MonkeyPatch) -> DataSet:
    monkeypatch.setitem(DATA, SPECKS.name, SPECKS)
    return SPECKS


# --- a new task: this, and one entry of KINDS ------------------------------------------


@dataclasses.dataclass(frozen=True)
class Echo(Hypernetwork):
    """A hypernetwork that says how bright an image is."""

    data: ImageData = "digits"
    """Data set."""
    data_dir: Path | None = None
    """Folder."""
    loudness: float = 1.0
    """Scale of the answer."""


class EchoTask:
    name = "echo_back"
    capturable = False
    metric = Metric("closeness", digits=2)

    def __init__(self, config: Echo, device: torch.device) -> None:
        config.check()
        self.config, self.device = config, device
        self.split = load_images(config.data, Request(config.data_dir))
        self.note = self.split.note

    def model(self, formulation: Formulation, seed: int) -> Model:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            primary = nn.Sequential(nn.Flatten(), nn.LazyLinear(1))
            primary(self.split.test.images)
            if formulation == "plain":
                return Fixed(primary, {})
            return self.config.build(primary, {"gamma": Uniform(0.0, 1.0)}, formulation)

    def batches(
        self, batch_size: int, seed: int, shard: tuple[int, int] = (0, 1)
    ) -> Batches[Images]:
        return Batches(self.split.train, batch_size, seed, self.split.augment, shard)

    def sample(self, model: Model, generator: torch.Generator) -> dict[str, Tensor]:
        return model.sample(generator=generator)

    def loss(self, model: nn.Module, batch: Images, gamma: dict[str, Tensor], step: int) -> Tensor:
        bright = self.config.loudness * batch.images.mean(dim=(1, 2, 3))
        return F.mse_loss(model(batch.images, **gamma).squeeze(1), bright)

    def evaluate(self, model: Model, whole: bool = False) -> dict[str, float]:
        return self.at(model, 0.5)

    @torch.no_grad()
    def at(self, model: Model, gamma: float) -> dict[str, float]:
        with evaluating(model):
            value = {} if isinstance(model, Fixed) else {"gamma": torch.tensor(gamma)}
            loss = float(self.loss(model, self.split.test, value, 0))
        return {"loss": loss, "closeness": -loss}

    def knob(self, model: HyperModel) -> None:
        return None

    def finish(self, model: Model, folder: Path | None) -> Outcome:
        return Outcome(self.at(model, 0.5))


ECHO = Kind(Echo, EchoTask, "Echo", "Echoes", {"lr": 0.25}, target=-0.5)


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Kind:
    monkeypatch.setitem(KINDS, ECHO.name, ECHO)
    return ECHO


# --- both in the command line ----------------------------------------------------------


def _help(arguments: list[str], capsys: Captured) -> str:
    with pytest.raises(SystemExit) as raised:
        main([*arguments, "--help"])
    assert raised.value.code == 0
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.usefixtures("specks", "no_figures")
def test_a_new_data_set_can_be_trained_on(tmp_path: Path, capsys: Captured) -> None:
    shown = _help(["train", "bayes"], capsys)
    assert "--data {digits,mnist,flowers102,folder,specks}" in shown
    assert "specks" in _help(["train", "scale-space"], capsys)
    assert "specks" not in _help(["train", "hypermorph"], capsys)  # it has no scans
    out = tmp_path / "out"
    small = ["--evaluation-gammas", "2", "--posterior-samples", "2"]
    assert main(["train", "bayes", *TINY, *small, "--data", "specks", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Bayesian hypernetwork on specks: MIP" in printed
    assert "white noise, 16 images" in printed
    assert (out / "mip-seed0" / "record.json").is_file()


@pytest.mark.usefixtures("specks")
def test_a_new_data_set_can_be_fetched(tmp_path: Path, capsys: Captured) -> None:
    assert "Fetch white noise, or check that a folder is noisy." in _help(["data"], capsys)
    assert main(["data", "specks", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: specks\n"


@pytest.mark.usefixtures("specks", "echo", "no_figures")
def test_a_new_task_can_be_trained(tmp_path: Path, capsys: Captured) -> None:
    assert "echo-back A hypernetwork that says how bright an image is." in _help(["train"], capsys)
    shown = _help(["train", "echo-back"], capsys)
    assert "--loudness FLOAT Scale of the answer. (default: 1.0)" in shown
    assert "--data {digits,mnist,flowers102,folder,specks} Data set. (default: digits)" in shown
    assert "(default: 0.25)" in shown  # its rate
    assert "(default: -0.5)" in shown  # its target
    out = tmp_path / "out"
    command = ["train", "echo-back", *TINY, "--data", "specks", "--out", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "Echo on specks: MIP" in printed
    assert "steps to -0.5 closeness" in " ".join(printed.split())
    assert main(command) == 0
    assert "These runs are finished." in capsys.readouterr().out


@pytest.mark.usefixtures("echo")
def test_a_new_task_can_be_in_a_grid() -> None:
    from hyperlight.lab.studies.base import base

    spec = base("echo_back", {"loudness": 2.0}, {"steps": 3})
    assert isinstance(spec, Spec)
    assert (spec.training.lr, spec.training.steps, spec.config.loudness) == (0.25, 3, 2.0)
    made: Task = task_of(spec.task, spec.config, torch.device("cpu"))
    assert isinstance(made, EchoTask)


def test_unknown_data_are_refused(capsys: Captured) -> None:
    for load, near in ((load_images, "mnist"), (load_scans, "oasis")):
        with pytest.raises(LabError) as raised:
            load(near[:-1], Request())
        assert str(raised.value).startswith(f"--data was '{near[:-1]}'; expected one of 'digits', ")
        assert str(raised.value).endswith(f" Did you mean '{near}'?")
    with pytest.raises(SystemExit):
        main(["train", "bayes", "--data", "oasis"])  # it has no images
    assert "mnist" in capsys.readouterr().err


# --- imports ------------------------------------------------------------------------


def _imports(path: Path, root: Path) -> set[str]:
    """The modules of the lab that a file imports, wherever in it."""
    package = ".".join(path.relative_to(root.parent).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package.split(".")
            above = above[: len(above) - node.level + 1]
            module = ".".join([*above, node.module] if node.module else above)
            for alias in node.names:
                part = root.parent / Path(*module.split("."), alias.name)
                is_module = part.with_suffix(".py").is_file() or part.is_dir()
                found.add(f"{module}.{alias.name}" if is_module else module)
    return {module for module in found if module.startswith("lab.")}


def _graph() -> dict[str, set[str]]:
    assert hyperlight.lab.__file__ is not None
    root = Path(hyperlight.lab.__file__).parent
    graph: dict[str, set[str]] = {}
    for path in root.rglob("*.py"):
        name = ".".join(path.relative_to(root.parent).with_suffix("").parts)
        graph[name.removesuffix(".__init__")] = _imports(path, root)
    return graph


def test_imports_of_the_lab_run_one_way() -> None:
    graph = _graph()
    assert "lab.data.images" in graph["lab.data.augment"]
    assert import_circles(graph) == []


@pytest.mark.parametrize(
    ("below", "above"),
    [
        ("lab.data", ("lab.tasks", "lab.train", "lab.session", "lab.studies", "lab.cli")),
        ("lab.tasks", ("lab.train", "lab.session", "lab.studies", "lab.cli")),
        ("lab.studies", ("lab.cli", "lab.session")),
    ],
)
def test_lower_parts_do_not_import_upper_ones(below: str, above: tuple[str, ...]) -> None:
    graph: dict[str, Any] = _graph()
    found = [
        (module, other)
        for module, others in graph.items()
        for other in others
        if module.startswith(below) and other.startswith(above)
    ]
    assert found == []
