"""Files of the lab: checkpoints, records and models of runs, sessions, caches and studies."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lightning_fabric import Fabric
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

import hyperlight as hl
from hyperlight.lab import figures
from hyperlight.lab.data import Batches, Images
from hyperlight.lab.engine import Spec, run_grid
from hyperlight.lab.methods import Method
from hyperlight.lab.record import Run
from hyperlight.lab.session import Session
from hyperlight.lab.studies import page
from hyperlight.lab.studies.base import Setup, Study, Table
from hyperlight.lab.studies.run import run_study
from hyperlight.lab.summary import Claim
from hyperlight.lab.tasks.base import Fixed, Formulation, Metric, Model, Outcome
from hyperlight.lab.train import Training, train
from tests.fuzz import formats
from tests.fuzz.reader import Reader

__all__ = ["RUNS"]

FABRIC = Fabric(accelerator="cpu", devices=1)
TRAINING = Training(steps=4, batch_size=4, evaluate_every=2, seeds=1, target=None)
PAIR: tuple[Formulation, ...] = ("mip", "plain")
PROVENANCE = (
    *("command", "hyperlight", "torch", "lightning-fabric", "scikit-learn", "numpy"),
    *("commit", "python", "system", "cores", "threads", "gpu"),
)


@dataclass(frozen=True)
class Config:
    """The settings of the task."""

    data: str = "points"


class Points:
    """A task of a few numbers; the variant changes the data, but not the identity of a run."""

    name, note = "points", "a few numbers"
    metric = Metric("accuracy", "%")
    config, device = Config(), torch.device("cpu")

    def __init__(self, variant: int = 0) -> None:
        draw = torch.Generator().manual_seed(variant)
        self.data = Images(torch.rand(8, 3, generator=draw), torch.arange(8) % 2)

    def model(self, formulation: str, seed: int) -> Model:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            primary = nn.Linear(3, 2)
            if formulation == "plain":
                return Fixed(primary, {"gamma": torch.tensor(0.5)})
            return hl.hypernetize(primary, {"gamma": hl.Uniform(0.0, 1.0)}, hidden=(4,))

    def batches(self, batch_size: int, seed: int, shard: tuple[int, int] = (0, 1)) -> Batches:
        return Batches(self.data, batch_size, seed, shard=shard)

    def sample(self, model: Model, generator: torch.Generator) -> dict[str, Tensor]:
        return model.sample(generator=generator)

    def loss(self, model: nn.Module, batch: Images, gamma: dict[str, Tensor], step: int) -> Tensor:
        return nn.functional.cross_entropy(model(batch.images, **gamma), batch.labels)

    def evaluate(self, model: Model, whole: bool = False) -> dict[str, float]:
        loss = self.loss(model, self.data, {"gamma": torch.tensor(0.5)}, 0).item()
        return {"loss": loss, "accuracy": 100.0 / (1.0 + loss)}

    at = evaluate

    def finish(self, model: Model, folder: Path | None) -> Outcome:
        table = ("Along gamma", ["gamma", "loss"], [[0.0, 1.0], [1.0, 2.0]])
        return Outcome(self.evaluate(model), [table], [("a curve", Path("curve.png"))])


@contextlib.contextmanager
def _same_files() -> Iterator[None]:
    """Write no times and no versions, so that equal seeds give equal files."""
    with contextlib.ExitStack() as stack:
        clock = itertools.count(1.0, 0.125)
        stack.enter_context(mock.patch("time.perf_counter", side_effect=clock))
        for module in ("checkpoint", "session", "studies.run"):
            about = mock.Mock(return_value=dict.fromkeys(PROVENANCE, "0"))
            stack.enter_context(mock.patch(f"hyperlight.lab.{module}.provenance", about))
        yield


def _train(folder: Path, formulation: Any, variant: int, stop: int = 9, **settings: Any) -> Run:
    """Train a run, until it is finished or for some steps; return it as it is at the end."""
    steps = iter(range(1, 99))
    turns = train(
        *(Points(variant), formulation, 0, dataclasses.replace(TRAINING, **settings), FABRIC),
        folder=folder, pictures=False, stop=lambda: next(steps) == stop,
    )  # fmt: skip
    *_, run = turns
    return run


def _values(run: Run) -> Any:
    """Everything but the times, which differ in a run that was trained further."""
    assert run.model is not None
    record = {k: v for k, v in run.record().items() if k not in ("seconds", "waiting", "points")}
    points = [(p.step, p.train_loss, p.figures) for p in run.points]
    return record, points, dict(run.model.state_dict())


def _make_started(folder: Path, variant: int) -> None:
    """Two runs that were interrupted in the third of four steps."""
    for name in PAIR:
        with _same_files(), contextlib.suppress(KeyboardInterrupt):
            _train(folder / name, name, variant, stop=3)


def _make_finished(folder: Path, variant: int) -> None:
    for name in PAIR:
        with _same_files():
            _train(folder / name, name, variant)


def _read_runs(folder: Path) -> Any:
    return [_values(_train(folder / name, name, 0)) for name in PAIR]


def _session(folder: Path) -> Session:
    methods = [Method.of(name) for name in PAIR]
    return Session(
        *(Points(), TRAINING, methods, FABRIC, folder), "A title", "hyperlight", Console(quiet=True)
    )


def _make_session(folder: Path, variant: int) -> None:
    with _same_files():
        session = _session(folder)
        session.claim()
        for name in PAIR:
            _train(session.run_folder(Method.of(name), 0), name, variant)


def _read_session(folder: Path) -> Any:
    session = _session(folder)
    session.claim()
    runs = session.run()
    return [_values(run) for run in runs], sorted(path.name for path in folder.iterdir())


def _spec() -> Spec:
    return Spec("points", Config(), TRAINING, "mip", 0)


def _make_cache(folder: Path, variant: int) -> None:
    with _same_files():
        _train(folder / _spec().key, "mip", variant)


def _read_cache(folder: Path) -> Any:
    (run,) = run_grid([_spec()], folder).values()
    run.model = Points().model("mip", 0)
    return _values(run), [outcome.name for _, outcome in run.outcome.pictures]


def _make_study(folder: Path, variant: int) -> None:
    def claims(_: Any) -> list[Claim]:
        return [
            Claim(
                "figure 1",
                "it holds",
                f"measured {variant}",
                "holds" if variant == 0 else "refuted",
            )
        ]

    def tables(_: Any) -> list[Table]:
        return [Table("All numbers", ["a", "b"], [[variant, 1.5], [2, "x"]])]

    study = Study(
        "fig1a", "A title", "Figure 1", "A caption", lambda _: Figure(), claims, tables=tables
    )
    drawn = f'<svg viewBox="0 0 1 1"><path d="M 0 {variant}"/></svg>'
    with _same_files(), mock.patch.object(figures, "svg", return_value=drawn):
        run_study(
            *(study, Setup("smoke"), folder / "studies", folder / "cache"), workers=1, engine=None,
            command="hyperlight study", console=Console(quiet=True),
        )  # fmt: skip


def _read_study(folder: Path) -> Any:
    found = page.read(folder / "studies", ["fig1a"])
    pages = [page.write(found, folder / f"page.{end}", "hyperlight") for end in ("md", "html")]
    return [path.read_text() for path in pages]


RUNS = (
    Reader(
        "checkpoint", _make_started, _read_runs, ("*/checkpoint.safetensors",),
        formats.SAFETENSORS, **formats.SEALED,
    ),
    Reader(
        "record", _make_finished, _read_runs, ("*/record.json",), formats.JSON, **formats.SEALED
    ),
    Reader(
        "run-model", _make_finished, _read_runs, ("*/model.safetensors",), formats.SAFETENSORS,
        **formats.SEALED,
    ),
    Reader(
        "session", _make_session, _read_session, ("config.json",), formats.JSON, rule="checked",
        seal=formats.seal,
    ),
    Reader("cache", _make_cache, _read_cache, ("*/record.json",), formats.JSON, **formats.SEALED),
    Reader("page", _make_study, _read_study, ("studies/*/*.json",), formats.JSON),
    Reader("page-tables", _make_study, _read_study, ("studies/*/*.csv", "studies/*/*.svg")),
)  # fmt: skip
