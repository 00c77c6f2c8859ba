"""How far an optimizer's first step moves the predicted weights, and which parameters move them."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ... import HyperModel, parameter_groups
from ..engine import Spec, task_of
from ..tasks.base import Batch, Fixed, Model, Task
from ..train import Training

__all__ = ["Step", "first_step"]

_DRAWS = 4
# Any rate will do: steps are measured in multiples of the plain network's.
_LR = 1e-4


@dataclasses.dataclass(frozen=True)
class Step:
    """Mean change of a predicted weight, as a multiple of the change in the plain network's step.

    Attributes:
        theta0: change if only the primary's own weights take the step.
        trunk: change if only the trunk takes it.
        head: change if only the head takes it.
        total: change if all parameters take it.
    """

    theta0: float
    trunk: float
    head: float
    total: float


def first_step(spec: Spec) -> Step:
    """Measure the first step of a run on the CPU.

    The result is a mean over a few draws of gamma and a batch, each a step from the same start. The
    plain network starts from the weights predicted for that gamma, and sees the same batch.

    Args:
        spec: the run; its learning rate does not matter.
    """
    task = task_of(spec.task, spec.config, torch.device("cpu"))
    how = dataclasses.replace(spec.training, lr=_LR)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = task.model("mip", spec.seed)
        assert isinstance(model, HyperModel)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        members: dict[str, list[str]] = {"theta0": [], "trunk": [], "head": []}
        for group in parameter_groups(model, _LR):
            part = str(group["name"]).partition(".")[0]  # without the layer or tensor
            members.setdefault(part, []).extend(names[id(p)] for p in group["params"])
        generator = torch.Generator().manual_seed(spec.seed)
        batches = task.batches(how.batch_size, spec.seed)
        begin = {name: t.detach().clone() for name, t in model.named_parameters()}
        found: dict[str, list[float]] = {}
        for _ in range(_DRAWS):
            batch, gamma = next(batches), task.sample(model, generator)
            _restore(model, begin)
            before = _predicted(model, gamma)
            plain = Fixed(model.at(**gamma), gamma)
            _take(task, plain, batch, gamma, how)
            own = dict(plain.primary.named_parameters())
            plain_step = _mean({name: own[name].detach() - t for name, t in before.items()})
            _take(task, model, batch, gamma, how)
            end = {name: t.detach().clone() for name, t in model.named_parameters()}
            parts = {**members, "total": list(end)}
            for part, those in parts.items():
                _restore(model, {**begin, **{name: end[name] for name in those}})
                after = _predicted(model, gamma)
                moved = _mean({name: after[name] - t for name, t in before.items()})
                found.setdefault(part, []).append(moved / plain_step)
    mean = {part: sum(values) / len(values) for part, values in found.items()}
    return Step(mean["theta0"], mean["trunk"], mean["head"], mean["total"])


def _take(task: Task, model: Model, batch: Batch, gamma: dict[str, Tensor], how: Training) -> None:
    optimizer = how.make_optimizer(model)
    model.train()
    torch.autograd.backward(task.loss(model, batch, gamma, 0))
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def _restore(model: HyperModel, values: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(values[name])


@torch.no_grad()
def _predicted(model: HyperModel, gamma: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.predict(**gamma).items()}


def _mean(changes: dict[str, Tensor]) -> float:
    """Mean absolute change over all weights."""
    total = sum(float(t.double().abs().sum()) for t in changes.values())
    return total / sum(t.numel() for t in changes.values())
