"""What reports compare: formulations, or named methods that bring settings of their own."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .tasks.base import Formulation, Task

__all__ = ["COLORS", "OURS", "PAPER", "TITLES", "Method", "with_settings"]

TITLES = {
    "classical": "classical",
    "mip": "MIP",
    "encoding": "input encoding alone",
    "residual": "output encoding alone",
    "hand": "by hand",
    "plain": "plain network",
    "shared": "plain, all gammas",
    "channel": "gamma as input",
    "film": "FiLM",
}

# Distinguishable for colour-blind readers (Okabe and Ito).
COLORS = {
    "classical": "#d55e00",
    "mip": "#0072b2",
    "encoding": "#009e73",
    "residual": "#cc79a7",
    "hand": "#b39200",
    "plain": "#000000",
    "shared": "#8a8a8a",
    "channel": "#e69f00",
    "film": "#56b4e9",
}

# The paper's hypernetwork (section 5.2), and that of the library's defaults for one number.
PAPER: dict[str, Any] = {
    "hidden": (16, 128),
    "directions": None,
    "init": "fan_out",
    "encoding": "per-input",
}
OURS: dict[str, Any] = {
    "hidden": (64, 128),
    "directions": 16,
    "init": "relative",
    "encoding": "unit-norm",
}


@dataclass(frozen=True)
class Method:
    """A way to have a network for every gamma: a formulation with settings, under a name.

    Attributes:
        name: of its folders, and in csv files.
        title: in tables and figures.
        color: of its line.
        formulation: how the weights are made.
        settings: settings of the task that are its own, by name.
        training: settings of the training that are its own, by name.
        note: what a reader has to know, in a sentence without a full stop.
    """

    name: str
    title: str
    color: str
    formulation: Formulation
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @classmethod
    def of(cls, formulation: Formulation) -> Method:
        """A formulation by itself, without settings of its own."""
        return cls(formulation, TITLES[formulation], COLORS[formulation], formulation)

    @property
    def own(self) -> dict[str, Any]:
        """All settings of its own, by name."""
        return {**self.settings, **self.training}

    @property
    def text(self) -> str:
        """Its name, and its settings: ``ours (mip, hidden (64, 128), lr 0.003)``."""
        if not self.own:
            return self.name
        own = (f"{name} {value}" for name, value in self.own.items())
        return f"{self.name} ({', '.join([self.formulation, *own])})"


def with_settings(task: Task, settings: Mapping[str, Any]) -> Task:
    """A task with other settings of its models, and with the same data.

    Args:
        task: is kept as it is.
        settings: those that are read when a model is built or trained, by name. Data, and what was
            computed from them, stay.

    Raises:
        LabError: the settings cannot be trained with.
    """
    if not settings:
        return task
    made = copy.copy(task)
    made.config = dataclasses.replace(task.config, **settings)
    made.config.check()
    return made
