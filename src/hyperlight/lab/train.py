"""The training loop: the settings are :class:`Training`, the loop is :func:`train`."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from .. import HyperModel, exchange_factors, optim, parameter_groups, scale_profile
from .checkpoint import RunFolder, identity
from .errors import LabError, at_least
from .graphs import Captured, can_capture
from .methods import Method
from .record import Point, Run
from .tasks.base import Formulation, Model, Task, synchronize

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["Training", "train"]


@dataclass(frozen=True)
class Training:
    """How to train (section A.2 of the paper)."""

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Adam, Adam with decoupled weight decay, or SGD with Nesterov momentum 0.9."""
    lr: float = 3e-4
    """Learning rate."""
    weight_decay: float = 0.0
    """Weight decay: an L2 penalty with adam and sgd, decoupled with adamw."""
    steps: int = 600
    """Number of updates."""
    batch_size: int = 128
    """Batch size; all samples of a batch get the same gamma."""
    rates: Literal["same", "groups"] = "same"
    """same: one learning rate for all parameters. groups: the rates of hl.parameter_groups, for
    which the learning rate of the plain network stays right."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The learning rate during training: as it is, or falling to zero along half a cosine."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Arithmetic: float32, or bfloat16 where PyTorch's autocast uses it."""
    seeds: int = 3
    """Number of replicas, with seeds 0, 1, 2, ..."""
    evaluate_every: int = 20
    """Number of updates between evaluations."""
    target: float | None = 90.0
    """Value of the test metric; the report says at which step each run first reaches it."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train."""
    graph: bool = True
    """On one CUDA device, launch every step as a CUDA graph, if the task allows it: the same
    results, and small networks train faster."""
    devices: int = 1
    """Number of devices (on the CPU: processes) that every batch is split over."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints, from which an interrupted run resumes."""

    def check(self) -> None:
        """Refuse settings that cannot be trained with."""
        at_least(self, steps=1, batch_size=1, seeds=1, evaluate_every=1, devices=1)
        if self.batch_size % self.devices:
            raise LabError(
                f"--batch-size was {self.batch_size} and --devices {self.devices}; expected a "
                "batch size that is a multiple of the number of devices."
            )
        if not self.lr > 0.0 or not math.isfinite(self.lr):
            raise LabError(f"--lr was {self.lr}; expected a learning rate above zero.")
        at_least(self, weight_decay=0, checkpoint_seconds=0)

    def decisive(self) -> dict[str, Any]:
        """The settings that affect the numbers of a run."""
        rest = {"seeds", "target", "device", "graph", "devices", "checkpoint_seconds"}
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in rest}

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by in a step; the first one is 0."""
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * step / self.steps))

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


def train(
    task: Task,
    formulation: Formulation,
    seed: int,
    settings: Training,
    fabric: Fabric,
    folder: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    pictures: bool = True,
    model: Model | None = None,
    wait: Callable[[str], object] | None = None,
    method: Method | None = None,
) -> Generator[Run]:
    """Train one model; yield the run at the start and after every evaluation.

    A generator, so that several runs can take turns. Equal seeds give equal batches and equal
    gammas for every formulation.

    Args:
        task: what to train.
        formulation: how the weights are made.
        seed: of the model and of all random draws.
        settings: how to train.
        fabric: the devices.
        folder: where to keep the run. An interrupted run resumes from its checkpoint there, with
            the numbers that it would have had without the interruption; a finished one is
            returned as it is.
        stop: called after every step; once it returns True, the run writes a checkpoint and ends
            with ``KeyboardInterrupt``.
        pictures: write the task's pictures and curves for TensorBoard.
        model: what ``task.model(formulation, seed)`` returned, if it was called already.
        wait: if another process trains this run, wait for it and return what it trained; called
            once with a sentence that says so. By default the folder is refused.
        method: as which it is reported; by default the formulation by itself.

    Raises:
        LabError: the settings cannot be trained with; a file cannot be read or written; another
            process trains in the folder.
    """
    settings.check()
    kept = None
    with contextlib.ExitStack() as held:
        if folder is not None:
            kept = RunFolder(folder, identity(task.name, task.config, settings, formulation, seed))
            if kept.finished() is None and fabric.is_global_zero:
                held.enter_context(kept.locked(wait, stop))
        method = Method.of(formulation) if method is None else method
        yield from _train(
            *(task, method, seed, settings, fabric, kept), stop, pictures=pictures, model=model
        )


def _train(
    task: Task,
    method: Method,
    seed: int,
    settings: Training,
    fabric: Fabric,
    kept: RunFolder | None,
    stop: Callable[[], bool],
    *,
    pictures: bool,
    model: Model | None,
) -> Generator[Run]:
    """Train one model in a folder that no other process writes to."""
    model = task.model(method.formulation, seed) if model is None else model
    folder = None if kept is None else kept.path
    run = Run(method, seed, task.metric, model, folder=folder)
    saved = None
    if kept is not None:
        record = kept.finished()
        if record is not None:
            run.read(record)
            kept.load_model(model)
            yield run
            return
        saved = kept.load()

    optimizer = settings.make_optimizer(model)
    rates = [group["lr"] for group in optimizer.param_groups]
    batches = task.batches(settings.batch_size, seed, (fabric.global_rank, fabric.world_size))
    gammas = torch.Generator().manual_seed(seed)
    if saved is None:
        run.initial = scale_profile(model) if isinstance(model, HyperModel) else None
        run.points.append(Point(0, 0.0, math.nan, task.evaluate(model)))
    else:
        run.read(saved.record)
        run.resumed.append(run.step)
        saved.restore(model, optimizer, batches, gammas)
    if fabric.world_size > 1 and isinstance(model, HyperModel):
        exchange_factors(model)
    wrapped, stepper = fabric.setup(model, optimizer)
    # theta = theta0 + h(gamma), so theta0 has the gradient of the predicted weights.
    names = model.hypernet.shapes if isinstance(model, HyperModel) else None
    theta0 = [p for name, p in model.primary.named_parameters() if names is None or name in names]
    board = _board(folder, run.step) if pictures and fabric.is_global_zero else None
    kept_at = time.perf_counter()

    def keep() -> None:
        nonlocal kept_at
        if kept is not None and fabric.is_global_zero:
            draws = {f"batches.{name}": tensor for name, tensor in batches.state_dict().items()}
            kept.keep(run.record(), model, optimizer, {**draws, "gammas": gammas.get_state()})
        kept_at = time.perf_counter()

    def compute(batch: Any, gamma: dict[str, Tensor], at: int = 0) -> tuple[Tensor, Tensor]:
        """The loss of a step, its gradients, and the norm of those of theta0."""
        loss = task.loss(wrapped, batch, gamma, at)
        optimizer.zero_grad()
        fabric.backward(loss)
        gradients = [p.grad for p in theta0 if p.grad is not None]
        return loss.detach(), torch.nn.utils.get_total_norm(gradients)

    # A task of an earlier version does not say.
    may = getattr(task, "capturable", False)
    captures = settings.graph and may and can_capture(fabric)
    captured = Captured(compute, model, fabric.device) if captures else None

    def steps_to(end: int) -> tuple[bool, bool]:
        """Train until step ``end``, a stop or a checkpoint that is due; say which of the two."""
        losses: list[Tensor] = []
        norms: list[Tensor] = []
        stopping = due = False
        synchronize(fabric.device)
        started = time.perf_counter()
        while run.step + len(losses) < end and not (stopping or due):
            at = run.step + len(losses)
            asked = time.perf_counter()
            batch = next(batches)
            run.waiting += time.perf_counter() - asked
            gamma = task.sample(model, gammas)
            loss, norm = compute(batch, gamma, at) if captured is None else captured(batch, gamma)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * settings.factor(at)
            stepper.step()
            losses.append(loss)
            norms.append(norm)
            due = kept is not None and time.perf_counter() - kept_at > settings.checkpoint_seconds
            stopping, due = _any_process(fabric, stop(), due)
        run.loss.extend(_mean_over_processes(fabric, torch.stack(losses)).tolist())
        run.gradient_norm.extend(torch.stack(norms).tolist())
        synchronize(fabric.device)
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
                keep()  # an error below then costs no training
            mean = sum(run.loss[last:]) / (end - last)
            point = Point(end, run.seconds, mean, task.evaluate(model, whole=done))
            run.points.append(point)
            if board is not None:
                _log(board, point, run.chunk_seconds[-1])
            if kept is not None and fabric.is_global_zero:
                kept.write_metrics(*run.metrics())
            if done:
                run.final = scale_profile(model) if isinstance(model, HyperModel) else None
                if kept is not None and fabric.is_global_zero:
                    run.outcome = task.finish(model, folder if pictures else None)
                    kept.finish(run.record(), model)
                fabric.barrier()
            yield run
    except GeneratorExit:  # another run, with which this one takes turns, was interrupted
        if run.step < settings.steps:
            keep()
        raise
    finally:
        if board is not None:
            board.close()


def _board(folder: Path | None, step: int) -> SummaryWriter | None:
    if folder is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=step)


def _log(board: SummaryWriter, point: Point, seconds: float) -> None:
    board.add_scalar("train/loss", point.train_loss, point.step)
    board.add_scalar("train/steps per second", 1.0 / max(seconds, 1e-12), point.step)
    for name, value in point.figures.items():
        board.add_scalar(f"test/{name}", value, point.step)


def _any_process(fabric: Fabric, *flags: bool) -> list[bool]:
    """For each flag, whether any process raised it."""
    if fabric.world_size == 1:
        return list(flags)
    raised = fabric.all_reduce(torch.tensor(flags, dtype=torch.float32), reduce_op="sum")
    assert isinstance(raised, Tensor)
    return [bool(flag) for flag in raised > 0.0]


def _mean_over_processes(fabric: Fabric, losses: Tensor) -> Tensor:
    if fabric.world_size == 1:
        return losses
    mean = fabric.all_reduce(losses, reduce_op="mean")
    assert isinstance(mean, Tensor)
    return mean
