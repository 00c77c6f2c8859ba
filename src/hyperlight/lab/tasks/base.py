"""What a task is to the training loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ... import CosSin, HyperModel, Input, hypernetize
from ...init import Relative
from ...targets import Targets
from ..errors import LabError

__all__ = [
    "ALONE",
    "SWITCHES",
    "Batch",
    "Drawn",
    "Fixed",
    "Formulation",
    "Hypernetwork",
    "Metric",
    "Model",
    "Outcome",
    "Share",
    "Task",
]

Formulation = Literal["classical", "mip", "encoding", "residual", "plain"]
"""How weights are made; ``"plain"`` is the primary alone, trained for one gamma."""

# The two switches of hypernetworks (paper, section 4): (encoding, residual).
SWITCHES: dict[str, tuple[bool, bool]] = {
    "classical": (False, False),
    "mip": (True, True),
    "encoding": (True, False),
    "residual": (False, True),
}


@dataclass(frozen=True)
class Hypernetwork:
    """Settings of the hypernetwork, the same for every task (paper, section 5.2)."""

    hidden: tuple[int, ...] = (16, 128)
    """Widths of the hypernetwork's hidden layers."""
    activation: Literal["leaky_relu", "relu", "tanh", "gelu", "silu"] = "leaky_relu"
    """Between the hypernetwork's layers."""
    encoding: Literal["unit-norm", "per-input"] = "unit-norm"
    """Where inputs are encoded: norm 1 over all of gamma, or of each entry (the paper's)."""
    init: Literal["fan_out", "relative", "hyperfan_in", "hyperfan_out", "zero"] = "fan_out"
    """How the hypernetwork starts; fan_out is the paper's."""
    fraction: float = 0.1
    """With --init relative: the share of each tensor's own scale that it is changed by at first."""

    def check(self) -> None:
        """Refuse settings that cannot be trained with."""
        if not 0.0 < self.fraction < math.inf:
            raise LabError(f"--fraction was {self.fraction}; expected a number above zero.")

    def build(
        self,
        primary: nn.Module,
        inputs: dict[str, Input],
        formulation: Formulation,
        targets: Targets = None,
    ) -> HyperModel:
        """The primary with a hypernetwork that has these settings."""
        encode, residual = SWITCHES[formulation]
        return hypernetize(
            primary,
            inputs=inputs,
            targets=targets,
            hidden=self.hidden,
            activation=self.activation,
            encoding=CosSin(self.encoding == "per-input") if encode else None,
            residual=residual,
            init=Relative(self.fraction) if self.init == "relative" else self.init,
        )


Batch = Any
"""Whatever a task's batches hold; the loop hands it to ``Task.loss`` unseen."""


Share = tuple[int, int]
"""Which entries of every batch a process trains on: ``(i, n)`` is the i-th, (i + n)-th, ..."""

ALONE: Share = (0, 1)


class Fixed(nn.Module):
    """A network for one gamma, in the place of a hypernetwork: the plain network to compare with.

    It is called, drawn for and bound as a :class:`~hyperlight.HyperModel` is, and its weights
    never depend on gamma.

    Args:
        primary: the network.
        inputs: the one gamma that it is trained for, by name; empty where the task of the
            primary does not depend on gamma.

    >>> from hyperlight.lab.tasks.base import Fixed
    >>> model = Fixed(nn.Linear(2, 1), {"gamma": torch.tensor(0.3)})
    >>> gamma = model.sample()
    >>> model(torch.zeros(4, 2), **gamma).shape, model.bind(**gamma) is model.primary
    (torch.Size([4, 1]), True)
    """

    def __init__(self, primary: nn.Module, inputs: dict[str, Tensor]) -> None:
        super().__init__()
        self.primary = primary
        self.names = tuple(inputs)
        for name, value in inputs.items():
            self.register_buffer(f"fixed_{name}", value, persistent=False)

    def sample(self, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The one gamma; nothing is drawn."""
        return {name: self.get_buffer(f"fixed_{name}") for name in self.names}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the primary on all but the inputs."""
        return self.primary(*args, **{k: v for k, v in kwargs.items() if k not in self.names})

    def bind(self, **gamma: Any) -> nn.Module:
        """The primary, whatever gamma."""
        return self.primary


Model = HyperModel | Fixed


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

    @property
    def heading(self) -> str:
        """``accuracy (%)``."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

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
        config: its settings, a frozen dataclass.
        note: what the data are and where they are from, for the reader of a result.
        metric: what it is judged by; higher is better.
        device: where its data are and its models go.
    """

    name: str
    config: Any
    note: str
    metric: Metric
    device: torch.device

    def model(self, formulation: Formulation, seed: int) -> Model:
        """A new model. The seed sets the primary and the hypernetwork, the same ones for every
        formulation.
        """
        ...

    def batches(self, batch_size: int, seed: int, share: Share = ALONE) -> Drawn:
        """Training batches; equal seeds give equal ones, whatever the formulation.

        Args:
            batch_size: of all processes together.
            seed: of the draws, the same in all processes.
            share: the part of every batch that this process trains on.
        """
        ...

    def sample(self, model: Model, generator: torch.Generator) -> dict[str, Tensor]:
        """The inputs for one step, as keywords of the model."""
        ...

    def loss(self, model: nn.Module, batch: Batch, gamma: dict[str, Tensor], step: int) -> Tensor:
        """The training loss of step ``step``, which counts from 0."""
        ...

    def evaluate(self, model: Model, whole: bool = False) -> dict[str, float]:
        """Test figures by name, among them ``loss`` and ``metric.name``; means over gammas.

        Args:
            model: in either mode, which is kept. A :class:`Fixed` one is tested at its gamma alone.
            whole: on the whole test set; otherwise on the part that is used during training.
        """
        ...

    def at(self, model: Model, gamma: float) -> dict[str, float]:
        """Figures on the whole test set at one gamma, those of :meth:`evaluate` and maybe more."""
        ...

    def finish(self, model: Model, folder: Path | None) -> Outcome:
        """What is looked at after training, with pictures written to ``folder`` if there is one."""
        ...
