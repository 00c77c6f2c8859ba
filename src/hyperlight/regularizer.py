"""A regularizer against forgetting, for hypernetworks that learn one condition after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ConfigurationError, InputError
from .model import HyperModel

__all__ = ["OutputRegularizer"]


@dataclass(frozen=True)
class _Reference:
    """A model that is neither a submodule of its holder nor copied along with it."""

    model: HyperModel

    def __deepcopy__(self, memo: dict[int, Any]) -> _Reference:
        return _Reference(memo.get(id(self.model), self.model))


class OutputRegularizer(nn.Module):
    r"""Keeps what a hypernetwork predicts for old conditions while it learns new ones.

    .. math:: \frac{1}{N} \sum_{t=1}^{N} \| \theta^*(\gamma_t) - \theta(\gamma_t) \|^2

    The output regularizer of von Oswald et al. 2020 ("Continual learning with
    hypernetworks", eq. 2, without its look-ahead step): the weights
    :math:`\theta^*` predicted for :math:`N` old conditions are remembered when it is made, and
    the mean squared distance of the present ones from them is added to the loss. The
    primaries of old tasks then stay as they were, with no data of these tasks.

    It remembers the predicted weights, ``theta0`` included. What is not predicted
    (normalisation layers, running statistics) is shared by all conditions; freeze it, or
    predict it too.

    Args:
        model: the model; it is referred to, not taken in: neither its parameters nor its
            state are part of this module.
        gammas: the old conditions: every input of the model by name, with batch shape ``(N,)``,
            as from ``model.sample((N,))``.
        subset: how many of the conditions are drawn for every call, without replacement; all by
            default. Draws come from PyTorch's own generator.

    Shape:
        No arguments to a scalar.

    The memory is in two kinds of buffers, in ``state_dict()`` and moved by ``to``: the
    conditions, and ``N`` times the predicted weights. It follows the model to another device by
    itself.

    Raises:
        InputError: the conditions do not fit the model's inputs or have no batch shape ``(N,)``.
        ConfigurationError: ``subset`` is not between 1 and ``N``.

    >>> model = hl.hypernetize(nn.Linear(2, 1), inputs={"task": hl.Categorical(3)})
    >>> old = hl.OutputRegularizer(model, {"task": torch.tensor([0, 1])})
    >>> loss = model(torch.ones(4, 2), task=2).square().mean() + 0.1 * old()
    >>> old().item()
    0.0
    """

    theta: Tensor

    def __init__(
        self, model: HyperModel, gammas: Mapping[str, Any], *, subset: int | None = None
    ) -> None:
        super().__init__()
        if not isinstance(gammas, Mapping):
            raise InputError(
                f"gammas was {type(gammas).__name__}; expected every input by name with batch "
                "shape (N,): {'task': torch.tensor([0, 1])}."
            )
        model.hypernet.check(**gammas)
        values = model.hypernet.collect(gammas)
        batch_shape = model.hypernet.batch_shape(**gammas)
        if len(batch_shape) != 1 or not batch_shape[0]:
            raise InputError(
                f"The old conditions have batch shape {tuple(batch_shape)}; expected (N,), one "
                "value of every input for each: {'task': torch.tensor([0, 1])}."
            )
        (count,) = batch_shape
        if subset is not None and not (isinstance(subset, int) and 1 <= subset <= count):
            raise ConfigurationError(
                f"subset was {subset!r}; expected a number from 1 to {count}, the number of old "
                "conditions, or None for all of them."
            )
        self.subset = subset
        self._reference = _Reference(model)
        for name, value in values.items():
            shape = batch_shape + model.inputs[name].event_shape
            self.register_buffer(f"gamma_{name}", value.detach().expand(shape).clone())
        with torch.no_grad():
            self.register_buffer("theta", self._predicted(slice(None)))

    def forward(self) -> Tensor:
        """The mean over conditions of the squared distance of the weights from the remembered."""
        model = self._reference.model
        device = model.hypernet.device
        if self.theta.device != device:
            self.to(device)
        count = self.theta.shape[0]
        rows: slice | Tensor = slice(None)
        if self.subset is not None and self.subset < count:
            rows = torch.randperm(count)[: self.subset].to(device)
        distance = self._predicted(rows) - self.theta[rows]
        return distance.square().sum(dim=-1).mean()

    def _predicted(self, rows: slice | Tensor) -> Tensor:
        """The weights for these conditions, one behind another: ``(rows, weights)``."""
        model = self._reference.model
        gammas = {name: self.get_buffer(f"gamma_{name}")[rows] for name in model.inputs}
        return torch.cat([t.flatten(1) for t in model.predict(**gammas).values()], dim=-1)

    def extra_repr(self) -> str:
        count, weights = self.theta.shape
        return f"conditions={count}, weights={weights:,}, subset={self.subset}"
