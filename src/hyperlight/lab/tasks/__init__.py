"""The paper's tasks, one readable file each: primary, data, loss, metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import bayes, hypermorph, scale_space

__all__ = ["KINDS", "Kind"]


@dataclass(frozen=True)
class Kind:
    """A kind of task.

    Attributes:
        title: for people.
        config: the class of its settings.
        task: the class of the task, made of settings and a device.
        training: how the paper trains it, as keywords of ``Training``.
    """

    title: str
    config: type[Any]
    task: Any
    training: dict[str, Any]


KINDS = {
    "bayes": Kind("Bayesian hypernetwork", bayes.Bayes, bayes.BayesTask, bayes.TRAINING),
    "hypermorph": Kind(
        "Registration", hypermorph.Hypermorph, hypermorph.HypermorphTask, hypermorph.TRAINING
    ),
    "scale_space": Kind(
        "Scale-space hypernetwork",
        scale_space.ScaleSpace,
        scale_space.ScaleSpaceTask,
        scale_space.TRAINING,
    ),
}
