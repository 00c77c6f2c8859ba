"""The one training loop, and what it records."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from .. import HyperModel, ScaleProfile, exchange_factors, optim, parameter_groups, scale_profile
from .checkpoint import RunFolder, identity
from .errors import LabError
from .tasks.base import Fixed, Formulation, Metric, Model, Outcome, Task

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["Point", "Run", "Training", "train"]


@dataclass(frozen=True)
class Training:
    """How to train (paper, section A.2)."""

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Adam, Adam with decoupled weight decay, or SGD with Nesterov momentum 0.9."""
    lr: float = 3e-4
    """Learning rate."""
    weight_decay: float = 0.0
    """Weight decay: an L2 penalty with adam and sgd, decoupled with adamw."""
    steps: int = 600
    """Number of updates."""
    batch_size: int = 128
    """Entries of a batch; all of them share one gamma."""
    rates: Literal["same", "groups"] = "same"
    """The same learning rate for all parameters, or those of hl.parameter_groups, with which the
    rate of the plain network carries over."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Arithmetic: float32, or bfloat16 where PyTorch's autocast uses it."""
    seeds: int = 3
    """Number of replicas, with seeds 0, 1, 2, ..."""
    evaluate_every: int = 20
    """Updates between two test figures."""
    target: float | None = 90.0
    """Value of the test metric whose first step is reported."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train."""
    devices: int = 1
    """Number of devices (on the CPU: processes) that share every batch."""
    checkpoint_seconds: float = 60.0
    """Seconds between two checkpoints, from which an interrupted run goes on."""

    def check(self) -> None:
        """Refuse settings that cannot be trained with."""
        for option in ("steps", "batch_size", "seeds", "evaluate_every", "devices"):
            if getattr(self, option) < 1:
                raise LabError(
                    f"--{option.replace('_', '-')} was {getattr(self, option)}; expected 1 or more."
                )
        if self.batch_size % self.devices:
            raise LabError(
                f"--batch-size was {self.batch_size} and --devices {self.devices}; expected a "
                "batch size that is a multiple of the devices, so that each has as much of a batch."
            )
        if not self.lr > 0.0 or not math.isfinite(self.lr):
            raise LabError(f"--lr was {self.lr}; expected a learning rate above zero.")
        for option in ("weight_decay", "checkpoint_seconds"):
            if not getattr(self, option) >= 0.0:
                raise LabError(
                    f"--{option.replace('_', '-')} was {getattr(self, option)}; expected 0 or more."
                )

    def decisive(self) -> dict[str, Any]:
        """The settings that the numbers of a run depend on."""
        rest = {"seeds", "target", "device", "devices", "checkpoint_seconds"}
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in rest}

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """A new optimizer for all parameters."""
        parameters: Any = model.parameters()
        decay = self.weight_decay
        if self.rates == "groups" and isinstance(model, HyperModel):
            rule: Literal["adam", "sgd"] = "sgd" if self.optimizer == "sgd" else "adam"
            parameters = parameter_groups(model, self.lr, rule=rule, weight_decay=decay)
        if self.optimizer == "sgd":
            return optim.SGD(
                parameters, lr=self.lr, momentum=0.9, nesterov=True, weight_decay=decay
            )
        kind = optim.Adam if self.optimizer == "adam" else optim.AdamW
        return kind(parameters, lr=self.lr, weight_decay=decay)


@dataclass(frozen=True)
class Point:
    """A run at a step: what was measured there.

    Attributes:
        step: the updates made so far.
        seconds: of training so far; tests and checkpoints do not count.
        train_loss: the mean training loss since the point before; NaN at step 0.
        figures: test figures by name.
    """

    step: int
    seconds: float
    train_loss: float
    figures: dict[str, float]


@dataclass
class Run:
    """One model's training: what it was and all that was measured.

    Attributes:
        formulation: the parametrization that was trained.
        seed: the replica.
        metric: the figure that it is judged by.
        model: the model, trained; None where only the record was read.
        points: test figures over training; the last is measured on the whole test set.
        loss: training loss of every step.
        gradient_norm: of every step, with respect to the predicted parameters (paper, figure 3c).
        seconds: of training in all; tests and checkpoints do not count.
        waiting: seconds of these that the next batch was waited for.
        initial: scale of the predicted weights along gamma before training (figure 1a); None for
            a plain network.
        final: the same after it.
        resumed: the steps at which training went on after an interruption.
        outcome: what the task found out in the end; None where no folder was given.
        folder: where the run is kept.
    """

    formulation: Formulation
    seed: int
    metric: Metric
    model: Model | None = None
    initial: ScaleProfile | None = None
    final: ScaleProfile | None = None
    points: list[Point] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
    seconds: float = 0.0
    waiting: float = 0.0
    resumed: list[int] = field(default_factory=list)
    outcome: Outcome | None = None
    folder: Path | None = None

    @property
    def step(self) -> int:
        """The updates that were made."""
        return len(self.loss)

    @property
    def chunk_seconds(self) -> list[float]:
        """Seconds per step of every stretch between two points."""
        return [
            (b.seconds - a.seconds) / (b.step - a.step) for a, b in itertools.pairwise(self.points)
        ]

    def first_step(self, target: float) -> int | None:
        """The first evaluated step with that value of the metric, if any."""
        return next((p.step for p in self.points if p.figures[self.metric.name] >= target), None)

    def record(self) -> dict[str, Any]:
        """All that was measured, as JSON has it; numbers come back to the bit."""
        outcome = self.outcome and {
            "figures": self.outcome.figures,
            "tables": self.outcome.tables,
            "pictures": [(caption, path.name) for caption, path in self.outcome.pictures],
        }
        return {
            "metric": dataclasses.asdict(self.metric),
            "points": [dataclasses.asdict(point) for point in self.points],
            "loss": self.loss,
            "gradient_norm": self.gradient_norm,
            "seconds": self.seconds,
            "waiting": self.waiting,
            "initial": _profile_record(self.initial),
            "final": _profile_record(self.final),
            "resumed": self.resumed,
            "outcome": outcome,
        }

    def read(self, record: dict[str, Any]) -> None:
        """Take over what :meth:`record` gave."""
        self.metric = Metric(**record["metric"])
        self.points = [Point(**point) for point in record["points"]]
        for name in ("loss", "gradient_norm", "seconds", "waiting", "resumed"):
            setattr(self, name, record[name])
        self.initial = _read_profile(record["initial"])
        self.final = _read_profile(record["final"])
        if record["outcome"] is not None and self.folder is not None:
            made, folder = record["outcome"], self.folder
            self.outcome = Outcome(
                figures=made["figures"],
                tables=[(title, heading, rows) for title, heading, rows in made["tables"]],
                pictures=[(caption, folder / name) for caption, name in made["pictures"]],
            )


def _profile_record(profile: ScaleProfile | None) -> dict[str, Any] | None:
    if profile is None:
        return None
    return {
        "input": profile.input,
        "gamma": profile.gamma.tolist(),
        "magnitude": profile.magnitude.tolist(),
        "std": profile.std.tolist(),
        "verdict": profile.verdict,
    }


def _read_profile(record: dict[str, Any] | None) -> ScaleProfile | None:
    if record is None:
        return None
    gamma, magnitude, std = (
        torch.tensor(record[name], dtype=torch.float64) for name in ("gamma", "magnitude", "std")
    )
    return ScaleProfile(record["input"], gamma, magnitude, std, {}, record["verdict"])


def _never() -> bool:
    return False


def train(
    task: Task,
    formulation: Formulation,
    seed: int,
    settings: Training,
    fabric: Fabric,
    folder: Path | None = None,
    stop: Callable[[], bool] = _never,
    pictures: bool = True,
) -> Generator[Run]:
    """Train one model; yields the run at the start and after every evaluation.

    A generator, so that runs which are to be compared can take turns. Equal
    seeds give equal batches and equal gammas, whatever the formulation.

    Args:
        task: what is trained.
        formulation: how weights are made.
        seed: of the model and all draws.
        settings: how it is trained.
        fabric: where.
        folder: where the run is kept: it goes on from the checkpoint there, with the numbers that
            it would have had without an interruption; a finished one is given as it is.
        stop: asked after every step; once it says so the run is kept and ends with
            ``KeyboardInterrupt``.
        pictures: draw what the task shows in the end, and curves for TensorBoard.

    Raises:
        LabError: the settings cannot be trained with; a file cannot be read or written.
    """
    settings.check()
    hyper = task.model(formulation, seed)
    run = Run(formulation, seed, task.metric, hyper, folder=folder)
    kept = saved = None
    if folder is not None:
        kept = RunFolder(folder, identity(task.name, task.config, settings, formulation, seed))
        record = kept.finished()
        if record is not None:
            run.read(record)
            kept.load_model(hyper)
            yield run
            return
        saved = kept.load()

    optimizer = settings.make_optimizer(hyper)
    share = (fabric.global_rank, fabric.world_size)
    batches = task.batches(settings.batch_size, seed, share)
    gammas = torch.Generator().manual_seed(seed)
    if saved is None:
        run.initial = None if isinstance(hyper, Fixed) else scale_profile(hyper)
        run.points.append(Point(0, 0.0, math.nan, task.evaluate(hyper)))
    else:
        run.read(saved.record)
        run.resumed.append(run.step)
        hyper.load_state_dict(saved.under("model."))
        saved.restore(optimizer)
        batches.load_state_dict(saved.under("draws.batches."))
        gammas.set_state(saved.tensors["draws.gammas"])
    if fabric.world_size > 1 and isinstance(hyper, HyperModel):
        exchange_factors(hyper)
    model, stepper = fabric.setup(hyper, optimizer)
    # theta = theta0 + h(gamma): the gradient of theta0 is that of the predicted parameters.
    names = hyper.hypernet.shapes if isinstance(hyper, HyperModel) else None
    theta0 = [p for name, p in hyper.primary.named_parameters() if names is None or name in names]
    board = _board(folder, run.step) if pictures and fabric.is_global_zero else None
    kept_at = time.perf_counter()

    def keep() -> None:
        nonlocal kept_at
        if kept is not None and fabric.is_global_zero:
            draws = {f"batches.{name}": tensor for name, tensor in batches.state_dict().items()}
            kept.keep(run.record(), hyper, optimizer, {**draws, "gammas": gammas.get_state()})
        kept_at = time.perf_counter()

    def steps_to(end: int) -> tuple[bool, bool]:
        """Steps until the end, or until a stop is asked for or a checkpoint is due: which?"""
        losses: list[Tensor] = []
        norms: list[Tensor] = []
        stopping = due = False
        _wait(fabric.device)
        started = time.perf_counter()
        while run.step + len(losses) < end and not (stopping or due):
            asked = time.perf_counter()
            batch = next(batches)
            run.waiting += time.perf_counter() - asked
            gamma = task.sample(hyper, gammas)
            loss = task.loss(model, batch, gamma, run.step + len(losses))
            optimizer.zero_grad()
            fabric.backward(loss)
            gradients = [p.grad for p in theta0 if p.grad is not None]
            norms.append(torch.nn.utils.get_total_norm(gradients))
            stepper.step()
            losses.append(loss.detach())
            due = kept is not None and time.perf_counter() - kept_at > settings.checkpoint_seconds
            stopping, due = _agree(fabric, stop(), due)
        run.loss.extend(_everywhere(fabric, torch.stack(losses)).tolist())
        run.gradient_norm.extend(torch.stack(norms).tolist())
        _wait(fabric.device)
        run.seconds += time.perf_counter() - started
        return stopping, due

    try:
        yield run
        while run.points[-1].step < settings.steps:
            last = run.points[-1].step
            end = min(last + settings.evaluate_every, settings.steps)
            while run.step < end:
                stopping, due = steps_to(end)
                if stopping or due:
                    keep()
                if stopping:
                    raise KeyboardInterrupt
            done = end == settings.steps
            if done:
                keep()  # whatever goes wrong from here on, no step is lost
            mean = sum(run.loss[last:]) / (end - last)
            point = Point(end, run.seconds, mean, task.evaluate(hyper, whole=done))
            run.points.append(point)
            if board is not None:
                _log(board, point, run.chunk_seconds[-1])
            if kept is not None and fabric.is_global_zero:
                kept.write_metrics(*_rows(run))
            if done:
                run.final = None if isinstance(hyper, Fixed) else scale_profile(hyper)
                if kept is not None and fabric.is_global_zero:
                    run.outcome = task.finish(hyper, folder if pictures else None)
                    kept.finish(run.record(), hyper)
                fabric.barrier()
            yield run
    except GeneratorExit:  # whoever takes turns with this run was interrupted
        if run.step < settings.steps:
            keep()
        raise
    finally:
        if board is not None:
            board.close()


def _rows(run: Run) -> tuple[list[str], list[list[Any]]]:
    names = list(run.points[0].figures)
    return ["step", "seconds", "train_loss", *(f"test_{name}" for name in names)], [
        [p.step, p.seconds, p.train_loss, *(p.figures[name] for name in names)] for p in run.points
    ]


def _board(folder: Path | None, step: int) -> SummaryWriter | None:
    if folder is None:
        return None
    from torch.utils.tensorboard import SummaryWriter  # a second to import

    return SummaryWriter(str(folder / "tensorboard"), purge_step=step)


def _log(board: SummaryWriter, point: Point, seconds: float) -> None:
    board.add_scalar("train/loss", point.train_loss, point.step)
    board.add_scalar("train/steps per second", 1.0 / max(seconds, 1e-12), point.step)
    for name, value in point.figures.items():
        board.add_scalar(f"test/{name}", value, point.step)


def _agree(fabric: Fabric, *flags: bool) -> list[bool]:
    """Which of the flags is up in any process."""
    if fabric.world_size == 1:
        return list(flags)
    raised = fabric.all_reduce(torch.tensor(flags, dtype=torch.float32), reduce_op="sum")
    assert isinstance(raised, Tensor)
    return [bool(flag) for flag in raised > 0.0]


def _everywhere(fabric: Fabric, losses: Tensor) -> Tensor:
    """The mean over the processes, each of which saw its share of every batch."""
    if fabric.world_size == 1:
        return losses
    mean = fabric.all_reduce(losses, reduce_op="mean")
    assert isinstance(mean, Tensor)
    return mean


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
