"""What the training loop and the command line need from a task."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
import tyro
from torch import Tensor, nn

from ... import (
    ChannelScale,
    CosSin,
    Dense,
    Head,
    HyperModel,
    Input,
    LowRank,
    Page,
    PerLayer,
    direction_profile,
    hypernetize,
)
from ...init import Init, Relative
from ...targets import Targets
from ..controls import ByHand, Channel, Control, Film, Fixed, Shared, input_channels
from ..data import DATA, Images, ImageSplit, stratified_split
from ..errors import LabError, at_least

__all__ = [
    "SLIDER",
    "SWITCHES",
    "AnyData",
    "Batch",
    "Drawn",
    "Fixed",
    "Formulation",
    "Hypernetwork",
    "ImageData",
    "Kind",
    "Metric",
    "Model",
    "Outcome",
    "ScanData",
    "Task",
    "check_parts",
    "drawn",
    "evaluating",
    "last_direction",
    "synchronize",
    "with_validation",
]

Formulation = Literal[
    "classical", "mip", "encoding", "residual", "hand", "plain", "shared", "channel", "film"
]
"""How the weights are made, or what is trained without a hypernetwork.

The classical formulation, MIP, or only one of its two parts (the input encoding, or learned weights
plus predicted changes); or a hypernetwork that is written by hand. Or the primary alone: for one
gamma, for all gammas without knowing them, with gamma as another input, or with features that gamma
scales and shifts (FiLM).
"""

# Values of gamma on the slider of a report.
SLIDER = 21

# What each formulation switches on (section 4 of the paper): (encoding, residual).
SWITCHES: dict[str, tuple[bool, bool]] = {
    "classical": (False, False),
    "mip": (True, True),
    "encoding": (True, False),
    "residual": (False, True),
}


_HEADS: dict[str, Callable[[], Head]] = {
    "dense": Dense,
    "low-rank": lambda: LowRank(rank=4),
    "per-layer": lambda: PerLayer(embed=32, width=64),
    "channel-scale": ChannelScale,
}


def _names(*forms: Literal["images", "scans"]) -> Any:
    """An option whose choices are the data sets with any of these forms."""

    def choices() -> Any:
        names = (name for name, found in DATA.items() if any(getattr(found, f) for f in forms))
        return Literal.__getitem__(tuple(names))

    return tyro.conf.arg(
        constructor_factory=choices,
        # By default tyro shows this default as a list.
        help_behavior_hint=lambda shown: "(default: " + shown.strip("[']") + ")",
    )


ImageData = Annotated[str, _names("images")]
"""The name of a data set of images."""
ScanData = Annotated[str, _names("scans")]
"""The name of a data set of scans."""
AnyData = Annotated[str, _names("images", "scans")]
"""The name of a data set."""


@dataclass(frozen=True)
class Hypernetwork:
    """Settings of the hypernetwork, which every task has (section 5.2 of the paper)."""

    hidden: tuple[int, ...] = (16, 128)
    """Widths of the hypernetwork's hidden layers."""
    directions: int | None = None
    """Size of a linear projection of the last hidden layer, which the head then reads; by default
    there is none."""
    activation: Literal["leaky_relu", "relu", "tanh", "gelu", "silu"] = "leaky_relu"
    """Activation between the hypernetwork's layers."""
    encoding: Literal["unit-norm", "per-input"] = "unit-norm"
    """If inputs are encoded: norm 1 over all of gamma, or over each entry (as in the paper)."""
    init: Literal["fan_out", "relative", "hyperfan_in", "hyperfan_out", "zero"] = "fan_out"
    """Initialisation of the hypernetwork; fan_out is the paper's."""
    fraction: float = 0.1
    """With --init relative: size of the first predicted change, relative to each tensor's scale."""
    head: Literal["dense", "low-rank", "per-layer", "channel-scale"] = "dense"
    """How features become weights: one weight for each predicted one and feature (the paper's),
    changes of rank 4, one small network for all layers (32 numbers for each layer, width 64), or a
    factor for every output channel."""

    def check(self) -> None:
        """Refuse settings that cannot be trained with."""
        if not 0.0 < self.fraction < math.inf:
            raise LabError(f"--fraction was {self.fraction}; expected a number above zero.")
        at_least(self, directions=1)

    def start(self) -> Init:
        """The initialisation of the head."""
        return Relative(self.fraction) if self.init == "relative" else self.init

    def build(
        self,
        primary: nn.Module,
        inputs: dict[str, Input],
        formulation: Formulation,
        targets: Targets = None,
        calibrate_on: Mapping[str, Any] | None = None,
    ) -> HyperModel:
        """Give a primary a hypernetwork with these settings.

        For the formulations of :data:`SWITCHES`; :meth:`model` builds any.
        """
        encode, residual = SWITCHES[formulation]
        return hypernetize(
            primary,
            inputs=inputs,
            targets=targets,
            hidden=self.hidden,
            directions=self.directions,
            activation=self.activation,
            encoding=self._encoding if encode else None,
            residual=residual,
            init=self.start(),
            head=_HEADS[self.head](),
            calibrate_on=calibrate_on,
        )

    def model(
        self,
        make: Callable[[int], nn.Module],
        inputs: dict[str, Input],
        formulation: Formulation,
        *,
        fixed: dict[str, Tensor],
        targets: Targets = None,
        calibrate_on: Mapping[str, Any] | None = None,
    ) -> Model:
        """Build the model of any formulation.

        Args:
            make: makes the primary, for inputs with so many more channels or entries.
            inputs: the spaces of gamma, by name.
            formulation: what to build.
            fixed: the one gamma of a plain network, by name; empty if its task does not depend on
                gamma.
            targets: which parameters a hypernetwork predicts, as for :func:`hypernetize`.
            calibrate_on: values from data, as for :func:`hypernetize`.
        """
        if formulation == "channel":
            return Channel(make(input_channels(inputs)), inputs)
        primary = make(0)
        if formulation == "plain":
            return Fixed(primary, fixed)
        if formulation == "shared":
            return Shared(primary, inputs)
        if formulation == "hand":
            return ByHand(primary, inputs, self.hidden, targets)
        if formulation == "film":
            return Film(
                primary,
                inputs,
                hidden=self.hidden,
                directions=self.directions,
                activation=self.activation,
                encoding=self._encoding,
                calibrate_on=calibrate_on,
            )
        return self.build(primary, inputs, formulation, targets, calibrate_on)

    @property
    def _encoding(self) -> CosSin:
        return CosSin(self.encoding == "per-input")


Batch = Any
"""A batch of a task; the training loop only passes it to ``Task.loss``."""


Model = HyperModel | Control


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and back in the mode it had."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def drawn(count: int, most: int | None) -> Tensor:
    """Indices of at most ``most`` of ``count`` test units, always the same draws, in order."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[:most].sort().values


def synchronize(device: torch.device) -> None:
    """Wait for the work of a device, so that a clock measures it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def with_validation(split: ImageSplit) -> tuple[Images, Images]:
    """Images to train on and to validate with: a fifth of the former if there are none."""
    if split.valid is not None:
        return split.train, split.valid
    kept, rest = stratified_split(split.train.labels.numpy(), share=0.2, seed=0)
    return split.train[kept], split.train[rest]


def check_parts(batch_size: int, gammas: int, processes: int) -> None:
    """Refuse a batch that cannot be divided evenly by its gammas in every process."""
    parts = gammas * processes
    if batch_size % parts:
        raise LabError(
            f"--batch-size was {batch_size} and --gammas {gammas}; expected a batch size that is a "
            f"multiple of {parts}."
        )


def last_direction(model: nn.Module) -> dict[str, float]:
    """The share of the last direction in the change's energy, if the model has directions."""
    if isinstance(model, HyperModel) and isinstance(model.hypernet.head, Dense):
        return {"energy in the last direction": direction_profile(model).last}
    return {}


class Drawn(Protocol):
    """Endless batches whose position can be saved and restored."""

    def __next__(self) -> Batch: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Metric:
    """The test figure that a task is judged by; higher is better.

    Attributes:
        name: its key in the results of ``Task.evaluate``, and its name in tables.
        unit: follows its values, as ``"%"``.
        digits: decimals in tables.
    """

    name: str
    unit: str = ""
    digits: int = 1

    @property
    def heading(self) -> str:
        """Name and unit: ``accuracy (%)``."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def text(self, value: float) -> str:
        """A value with its unit: ``97.3 %``."""
        return f"{value:.{self.digits}f} {self.unit}".rstrip()


@dataclass(frozen=True)
class Outcome:
    """The final results of a trained model.

    Attributes:
        figures: values on the whole test set, by name.
        tables: each a title, a heading and rows; for the report and as csv.
        pictures: each a caption and a file in the run's folder.
    """

    figures: dict[str, float]
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[Any]]]] = ()
    pictures: Sequence[tuple[str, Path]] = field(default=())


class Task(Protocol):
    """A task on a device: primary, data, loss and metric.

    Attributes:
        name: of the task, as ``"bayes"``.
        config: its settings, a frozen dataclass whose ``data`` names the data set.
        note: a line that describes the data, for reports.
        metric: what it is judged by.
        device: of its data and models.
        capturable: whether :meth:`loss` is the same sequence of kernels in every step, and reads no
            value back from the device, so that it can be captured in a CUDA graph.
    """

    name: str
    config: Any
    note: str
    metric: Metric
    device: torch.device
    capturable: bool

    def model(self, formulation: Formulation, seed: int) -> Model:
        """Build a model; equal seeds start all formulations from the same random draws."""
        ...

    def batches(self, batch_size: int, seed: int, shard: tuple[int, int] = (0, 1)) -> Drawn:
        """Training batches; equal seeds give equal batches.

        Args:
            batch_size: of all processes together.
            seed: of the draws, the same in all processes.
            shard: ``(i, n)`` for the i-th of n processes, which gets the entries i, i + n, ... of
                every batch.
        """
        ...

    def sample(self, model: Model, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the gamma of one step, as keywords of the model."""
        ...

    def loss(self, model: nn.Module, batch: Batch, gamma: dict[str, Tensor], step: int) -> Tensor:
        """The training loss of a step; the first one is 0."""
        ...

    def evaluate(self, model: Model, whole: bool = False) -> dict[str, float]:
        """Test figures by name, with ``loss`` and ``metric.name``; means over gammas.

        Args:
            model: in either mode, which is kept. A :class:`Fixed` one is tested at its one gamma.
            whole: use the whole test set, not the part that is used during training.
        """
        ...

    def at(self, model: Model, gamma: float) -> dict[str, float]:
        """Figures on the whole test set at one gamma; those of :meth:`evaluate`, possibly more."""
        ...

    def knob(self, model: HyperModel) -> tuple[str, Page] | None:
        """What a trained model gives along gamma, and a caption; None if it cannot be shown."""
        ...

    def finish(self, model: Model, folder: Path | None) -> Outcome:
        """The final results; pictures are written to ``folder``, if there is one.

        They have ``validation METRIC`` if the data have a validation part: the metric there,
        averaged over the same gammas as by :meth:`evaluate`. Studies choose rates by it.
        """
        ...


@dataclass(frozen=True)
class Kind:
    """A kind of task, as ``hyperlight train NAME`` and the studies know it.

    Attributes:
        config: the class of its settings. Its docstring is the help of the command; all fields
            have defaults.
        task: the class of the task, called with settings and a device.
        title: in reports.
        label: in figures.
        training: how the paper trains it, as keywords of ``Training``.
        target: default of ``Training.target``.
        front: two columns of the task's table along gamma that trade off against each other.
    """

    config: type[Any]
    task: Any
    title: str
    label: str
    training: dict[str, Any] = field(default_factory=dict)
    target: float | None = None
    front: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        """For the command line."""
        name: str = self.task.name
        return name
