"""What models cost: parameters, the size of a file, and the time of a training step.

And what another model has learned in the same time.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_model

from ... import HyperModel, save
from ..engine import Spec, task_of
from ..tasks.base import Model

__all__ = ["Price", "log", "meanwhile", "prices", "step_times"]

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Price:
    """What a model costs.

    Attributes:
        weights: parameters of the model.
        file: size of the saved model in bytes.
        step: median seconds of a training step.
    """

    weights: int
    file: int
    step: float


def prices(specs: Mapping[Key, Spec], rounds: int) -> dict[Key, Price]:
    """Measure models on the CPU; in every round each of them takes one step.

    Args:
        specs: how each is built and trained.
        rounds: number of steps; the first one is not counted.
    """
    steppers = {key: _stepper(spec) for key, spec in specs.items()}
    times = _in_turns({key: step for key, (_, step) in steppers.items()}, rounds)
    return {
        key: Price(
            sum(p.numel() for p in model.parameters()),
            _saved(model),
            statistics.median(times[key]),
        )
        for key, (model, _) in steppers.items()
    }


def step_times(specs: Mapping[Key, Spec], rounds: int) -> dict[Key, list[float]]:
    """Seconds of training steps on the CPU, without the first; arguments as in :func:`prices`."""
    return _in_turns({key: _stepper(spec)[1] for key, spec in specs.items()}, rounds)


def _in_turns(steps: Mapping[Key, Callable[[], None]], rounds: int) -> dict[Key, list[float]]:
    times: dict[Key, list[float]] = {key: [] for key in steps}
    for _ in range(rounds):
        for key, step in steps.items():
            begun = time.perf_counter()
            step()
            times[key].append(time.perf_counter() - begun)
    return {key: seconds[1:] for key, seconds in times.items()}


def _stepper(spec: Spec) -> tuple[Model, Callable[[], None]]:
    """A model, and a function that takes a training step."""
    task = task_of(spec.task, spec.config, torch.device("cpu"))
    model = task.model(spec.formulation, spec.seed)
    optimizer = spec.training.make_optimizer(model)
    batches = task.batches(spec.training.batch_size, spec.seed)
    generator = torch.Generator().manual_seed(spec.seed)

    def step() -> None:
        loss = task.loss(model, next(batches), task.sample(model, generator), 0)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    return model, step


def _saved(model: Model) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        if isinstance(model, HyperModel):
            save(model, path)
        else:
            save_model(model.saved, str(path))
        return path.stat().st_size


def log(error: float) -> float:
    """The logarithm of an error of 0 or more; infinity if the run diverged."""
    return math.log(max(error, 1e-12)) if math.isfinite(error) else math.inf


def meanwhile(errors: Mapping[int, Sequence[float]], steps: float) -> list[float]:
    """Errors after a number of steps, for every seed.

    Between the lengths that were trained they are interpolated, the logarithms of both. Outside of
    them they are those of the nearest length.

    Args:
        errors: of every seed, by the number of steps.
        steps: the number of steps.
    """
    lengths = sorted(errors)
    steps = min(max(steps, lengths[0]), lengths[-1])
    after = next(n for n in lengths if n >= steps)
    before = max((n for n in lengths if n <= steps), default=after)
    if before == after:
        return list(errors[after])
    share = math.log(steps / before) / math.log(after / before)
    pairs = zip(errors[before], errors[after], strict=True)
    return [math.exp((1.0 - share) * log(a) + share * log(b)) for a, b in pairs]
