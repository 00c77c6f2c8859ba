"""A regularizer against forgetting, for hypernetworks that learn tasks one after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ConfigurationError, InputError
from .model import HyperModel


@dataclass(frozen=True)
class _Reference:
    """Refer to a model that is no submodule; a copy refers to it too, unless it is copied along."""

    model: HyperModel

    def __deepcopy__(self, memo: dict[int, Any]) -> _Reference:
        return _Reference(memo.get(id(self.model), self.model))


class OutputRegularizer(nn.Module):
    r"""Keep the predicted weights of old tasks while the hypernetwork learns a new one.

    .. math:: \frac{1}{N} \sum_{t=1}^{N} \| \theta^*(\gamma_t) - \theta(\gamma_t) \|^2

    Add its value to the loss of the new task: old tasks then keep their networks, without
    any of their data. The weights :math:`\theta^*` of :math:`N` old conditions are stored when it
    is made. This is the output regularizer of von Oswald et al. 2020, "Continual learning with
    hypernetworks" (arXiv:1906.00695), equation 2, without its look-ahead step.

    The stored weights include ``theta0``. Parameters and buffers that are not predicted
    (normalisation layers, running statistics) are common to all tasks: freeze them, or predict
    them too.

    Args:
        model: the model. It does not become a submodule: its parameters and state are not
            those of the regularizer.
        gammas: the old conditions: every input of the model by name, with batch shape ``(N,)``,
            as from ``model.sample((N,))``.
        subset: how many conditions each call draws, without replacement and from PyTorch's own
            generator; all by default.

    Shape:
        No arguments to a scalar.

    The conditions and their weights are buffers: they are in ``state_dict()`` and move with
    ``to``. A call moves them to the device of the model. They take ``N`` times the memory of the
    predicted weights.

    Raises:
        InputError: the conditions do not fit the model's inputs or have no batch shape ``(N,)``.
        ConfigurationError: ``subset`` is not between 1 and ``N``.

    >>> model = hl.hypernetize(nn.Linear(2, 1), inputs={"task": hl.Categorical(3)})
    >>> old = hl.OutputRegularizer(model, {"task": torch.tensor([0, 1])})
    >>> loss = model(torch.ones(4, 2), task=2).square().mean() + 0.1 * old()
    >>> round(old().item(), 6)
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
        for name, value in model.hypernet.collect(gammas).items():
            if not isinstance(value, Tensor):
                raise InputError(
                    f"Hypernetwork input {name!r} has several tensors as a value, which the "
                    "regularizer does not keep. Pass them as one, the mask as one more feature."
                )
            value = model.inputs[name].expand(value.detach(), batch_shape)
            self.register_buffer(f"gamma_{name}", value.clone())
        with torch.no_grad():
            self.register_buffer("theta", self._predicted(slice(None)))

    def forward(self) -> Tensor:
        """The squared distance of the weights from the stored ones, a mean over conditions."""
        device = self._reference.model.hypernet.device
        if self.theta.device != device:
            self.to(device)
        rows: slice | Tensor = slice(None)
        if self.subset is not None and self.subset < len(self.theta):
            rows = torch.randperm(len(self.theta))[: self.subset].to(device)
        return (self._predicted(rows) - self.theta[rows]).square().sum(dim=-1).mean()

    def _predicted(self, rows: slice | Tensor) -> Tensor:
        """The weights for these conditions, flattened and concatenated: ``(rows, weights)``."""
        model = self._reference.model
        gammas = {name: self.get_buffer(f"gamma_{name}")[rows] for name in model.inputs}
        return torch.cat([t.flatten(1) for t in model.predict(**gammas).values()], dim=-1)

    def extra_repr(self) -> str:
        count, weights = self.theta.shape
        return f"conditions={count}, weights={weights:,}, subset={self.subset}"
