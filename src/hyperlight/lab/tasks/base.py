"""What a task is to the training loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ... import HyperModel

__all__ = ["SWITCHES", "Batch", "Drawn", "Formulation", "Metric", "Outcome", "Task"]

Formulation = Literal["classical", "mip", "encoding", "residual"]

# The two switches (paper, section 4): (encoding, residual).
SWITCHES: dict[str, tuple[bool, bool]] = {
    "classical": (False, False),
    "mip": (True, True),
    "encoding": (True, False),
    "residual": (False, True),
}

Batch = Any
"""Whatever a task's batches hold; the loop hands it to ``Task.loss`` unseen."""


class Drawn(Protocol):
    """Batches without end that can go on where an interrupted run stopped."""

    def __next__(self) -> Batch: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Metric:
    """The figure that a task is judged by; one of those that ``Task.evaluate`` gives.

    Attributes:
        name: its key there, and its name in tables: ``"accuracy"``, ``"dice"``.
        unit: written after values: ``"%"``, or nothing.
        digits: after the decimal point in tables.
    """

    name: str
    unit: str = ""
    digits: int = 1

    def text(self, value: float) -> str:
        """The value for a person: ``97.3 %``."""
        return f"{value:.{self.digits}f} {self.unit}".rstrip()


@dataclass(frozen=True)
class Outcome:
    """What a task finds out about a trained model.

    Attributes:
        figures: name and value of what is known in the end, on the whole test set.
        tables: each a title, a heading and rows; shown at the end and written as csv.
        pictures: each a caption and a file in the run's folder.
    """

    figures: dict[str, float]
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[Any]]]] = ()
    pictures: Sequence[tuple[str, Path]] = field(default=())


class Task(Protocol):
    """A task on a device: primary, data, loss, metric.

    Attributes:
        name: of the task: ``"bayes"``.
        note: what the data are and where they are from, for the reader of a result.
        metric: what it is judged by; higher is better.
        device: where its data are and its models go.
    """

    name: str
    note: str
    metric: Metric
    device: torch.device

    def model(self, formulation: Formulation, seed: int) -> HyperModel:
        """A new model. The seed sets the primary and the hypernetwork, the same ones for every
        formulation.
        """
        ...

    def batches(self, batch_size: int, seed: int) -> Drawn:
        """Training batches; equal seeds give equal ones, whatever the formulation."""
        ...

    def sample(self, model: HyperModel, generator: torch.Generator) -> dict[str, Tensor]:
        """The inputs for one step, as keywords of the model."""
        ...

    def loss(self, model: nn.Module, batch: Batch, gamma: dict[str, Tensor], step: int) -> Tensor:
        """The training loss of step ``step``, which counts from 0."""
        ...

    def evaluate(self, model: HyperModel, whole: bool = False) -> dict[str, float]:
        """Test figures by name, among them ``loss`` and ``metric.name``; means over gammas.

        Args:
            model: in either mode, which is kept.
            whole: on the whole test set; otherwise on the part that is used during training.
        """
        ...

    def finish(self, model: HyperModel, folder: Path) -> Outcome:
        """What is looked at after training, with pictures written to ``folder``."""
        ...
