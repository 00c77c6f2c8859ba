"""Training steps as CUDA graphs: loss and gradients of a step are launched at once.

A step of a small network is some hundred kernels, each shorter than the time in which Python
launches it. A graph is launched as one. It does the same on the same tensors every time, so what a
step reads is copied to where it read it when it was captured.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .errors import LabError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Captured", "Compute", "can_capture"]

Compute = Callable[[Any, dict[str, Tensor]], tuple[Tensor, Tensor]]
"""Computes the loss of a batch and its gamma, its gradients, and their norm."""

# Steps before the capture: what a first step allocates or measures cannot be captured.
_BEFORE = 3


def can_capture(fabric: Fabric) -> bool:
    """Whether steps on these devices can be captured: on one CUDA device."""
    return fabric.device.type == "cuda" and fabric.world_size == 1


class Captured:
    """Computes loss and gradients of every step as the first steps did, from a CUDA graph.

    The first three calls run on a stream of their own, the fourth is captured. All of them count:
    none is for warming up alone.

    Args:
        compute: what to capture. It must call the same kernels whatever the values are, and must
            not read a value back. It starts from gradients that are None.
        model: the parameters whose gradients it computes.
        device: a CUDA device.
    """

    def __init__(self, compute: Compute, model: nn.Module, device: torch.device) -> None:
        self.compute = compute
        self.device = device
        self.calls = 0
        self.parameters = list(model.parameters())

    def __call__(self, batch: Any, gamma: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The loss and the norm, which are copies, and the gradients, which the next call changes.

        Args:
            batch: tensors, in tuples, dicts and dataclasses; of the same shapes in every call.
            gamma: by name.

        Raises:
            LabError: the batch holds something else.
        """
        on_device = {name: value.to(self.device) for name, value in gamma.items()}
        given = (batch, on_device)
        self.calls += 1
        if self.calls <= _BEFORE:
            list(_tensors(given))  # refuses what cannot be captured before anything is trained
            return self._aside(batch, on_device)
        if self.calls == _BEFORE + 1:
            self._capture(given)
        for kept, value in zip(_tensors(self.given), _tensors(given), strict=True):
            kept.copy_(value)
        # An optimizer may have put others in their place.
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        self.graph.replay()
        loss, norm = self.found
        return loss.clone(), norm.clone()

    def _aside(self, batch: Any, gamma: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute on another stream than the default one, as a capture does."""
        here = torch.cuda.current_stream(self.device)
        aside = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            found = self.compute(batch, gamma)
        here.wait_stream(aside)
        return found

    def _capture(self, given: tuple[Any, dict[str, Tensor]]) -> None:
        self.given = copy.deepcopy(given)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.found = self.compute(*self.given)
        self.gradients = [parameter.grad for parameter in self.parameters]


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, in an order that depends on its kind alone."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        for name in sorted(value):
            yield from _tensors(value[name])
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))
    else:  # the graph would keep what it was in the first steps
        raise LabError(
            f"A batch held a value of type {type(value).__name__}; expected tensors, in tuples, "
            "dicts and dataclasses, because only these can be given to a CUDA graph anew. Set "
            "capturable = False on the task, or train with --no-graph."
        )
