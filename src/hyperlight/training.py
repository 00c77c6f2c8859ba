"""For the training loop: parameter groups, a regularizer against forgetting, preference rays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .errors import ConfigurationError, InputError, ObjectiveError, did_you_mean, listed
from .hypernet import _readable
from .model import HyperModel
from .precision import widen

__all__ = ["OutputRegularizer", "parameter_groups", "scalarize"]

_GROUPS = ("theta0", "trunk", "head", "unpredicted")
_DRAWS = 256


def parameter_groups(
    model: HyperModel,
    lr: float,
    *,
    rule: Literal["adam", "sgd"] = "adam",
    weight_decay: float | Mapping[str, float] = 0.0,
) -> list[dict[str, Any]]:
    r"""Parameter groups with which the plain network's learning rate carries over.

    Change this to this::

        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        optimizer = torch.optim.Adam(hl.parameter_groups(model, lr=1e-3))

    A predicted weight is :math:`\theta^0 + W f`, with a dense head :math:`W` and features
    :math:`f`. A step of Adam moves every entry of :math:`W` by up to the rate, and so what it
    predicts by up to rate times :math:`|f|_1`; a step of SGD moves it by rate times
    :math:`|f|_2^2` times its gradient. Both grow with the width of the hypernetwork, the first
    without bound, and ``theta0`` and the trunk, which makes the features, move beside it. At one
    rate for all, a hypernetwork trains its primary many times faster than was meant. Here

    - the head's rate is divided by :math:`|f|_1` (``rule="adam"``, also for AdamW and others that
      normalise by the gradient's own size) or :math:`|f|_2^2` (``rule="sgd"``), so that a step
      of it moves what it predicts as far as it would have moved a plain weight;
    - ``theta0`` and the head have half of the rate each, as their steps add up, and all of it
      where the other is frozen;
    - the trunk has half of the rate, so that the features keep about the size that the head's
      rate was made for;
    - parameters of the primary that are not predicted (normalisation layers) keep the rate.

    How far ``theta0`` and the head move a weight is exact on average over the inputs (but for
    Adam's ``eps``, where gradients are as small as it); what the trunk moves comes on top, and
    grows with the width. The study ``rates`` measures all three.

    :math:`|f|` is the mean over draws from the spaces of the inputs, always the same draws, at the
    time of the call: call it on the model that training begins with, with what shall not be
    trained frozen. The statement is exact for :class:`Dense`; with :class:`LowRank` it holds for
    the entries of the two factors, whose product moves with both.

    Args:
        model: the model; parameters that do not require gradients are left out.
        lr: the rate that is right for the plain network.
        rule: how the optimizer moves a parameter.
        weight_decay: for all groups, or by the name of the group (0 for those not named). It is set
            in every group, so the optimizer's own default does not count. Decoupled decay
            (AdamW) is multiplied by the rate of its group.

    Returns:
        Up to four groups, ``"theta0"`` (the parameters of the primary that are predicted),
        ``"trunk"`` (all of the hypernetwork but the head), ``"head"`` and ``"unpredicted"`` (the
        primary's other parameters), each a dict with ``name``, ``params``, ``lr`` and
        ``weight_decay``, for any optimizer of :mod:`torch.optim` and any scheduler. A
        parameter that is shared stands in one of them only.

    Raises:
        ConfigurationError: an argument makes no sense, there is nothing to train, or the head
            reads features that are zero or not finite.

    >>> model = hl.hypernetize(nn.Linear(2, 1), inputs={"scale": hl.Uniform(0.0, 0.5)})
    >>> groups = hl.parameter_groups(model, lr=1e-3, weight_decay={"theta0": 1e-4})
    >>> [(group["name"], group["lr"]) for group in groups if group["name"] != "head"]
    [('theta0', 0.0005), ('trunk', 0.0005)]
    >>> optimizer = torch.optim.AdamW(groups)
    """
    if not 0.0 < lr < math.inf:
        raise ConfigurationError(f"lr was {lr!r}; expected a positive rate, such as 1e-3.")
    if rule not in ("adam", "sgd"):
        raise ConfigurationError(
            f"rule was {rule!r}; expected 'adam' (also for AdamW) or 'sgd' (also with momentum)."
            f"{did_you_mean(str(rule), ('adam', 'sgd'))}"
        )
    if not isinstance(weight_decay, Mapping):
        weight_decay = dict.fromkeys(_GROUPS, weight_decay)
    for name, decay in weight_decay.items():
        if name not in _GROUPS:
            raise ConfigurationError(
                f"weight_decay names the group {name!r}; the groups are {listed(_GROUPS)}."
                f"{did_you_mean(name, _GROUPS)}"
            )
        if not 0.0 <= decay < math.inf:
            raise ConfigurationError(
                f"weight_decay of {name!r} was {decay!r}; expected zero or a positive number."
            )
    # The head's part in a tied parameter decides: the smaller rate is the safe one.
    owners = (("head", model.hypernet.head), ("trunk", model.hypernet), ("theta0", model))
    predicted = {id(tensor) for tensor in model._plan.read(model.primary)}
    members: dict[str, list[nn.Parameter]] = {name: [] for name in _GROUPS}
    seen: set[int] = set()
    for owner, module in owners:
        for parameter in module.parameters():
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                of_theta0 = owner != "theta0" or id(parameter) in predicted
                members[owner if of_theta0 else "unpredicted"].append(parameter)
    if not seen:
        raise ConfigurationError(
            "No parameter of the model requires a gradient: there is nothing to train. Unfreeze "
            "a part of it: model.hypernet.requires_grad_(True)."
        )
    share = lr / 2 if members["theta0"] and members["head"] else lr
    rates = {"theta0": share, "trunk": lr / 2, "head": share, "unpredicted": lr}
    if members["head"]:
        rates["head"] = share / _feature_size(model, rule)
    return [
        {
            "name": name,
            "params": members[name],
            "lr": rates[name],
            "weight_decay": weight_decay.get(name, 0.0),
        }
        for name in _GROUPS
        if members[name]
    ]


@torch.no_grad()
def _feature_size(model: HyperModel, rule: str) -> float:
    """How far a step of size 1 on a dense head moves what it predicts, over draws of the inputs."""
    draws = model.sample((_DRAWS,), generator=torch.Generator().manual_seed(0))
    features = widen(model.hypernet.features(**draws))
    moved = features.abs().sum(dim=-1) if rule == "adam" else features.square().sum(dim=-1)
    size = float(moved.mean())
    if not 0.0 < size < math.inf:
        raise ConfigurationError(
            f"The features that the head reads have size {size:g} on average over the inputs; "
            "expected a positive number. Check the hypernetwork's weights, activation and encoding."
        )
    return size


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
        values = model.hypernet._collect(gammas)
        batch_shape = model.hypernet._batch_shape(values)
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
        device = model.hypernet._placement()[1]
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


def scalarize(
    losses: Tensor | Sequence[Tensor],
    ray: Tensor,
    method: Literal["linear", "chebyshev"] = "linear",
) -> Tensor:
    r"""One loss out of several, as a preference ray weighs them.

    ``"linear"`` is :math:`\sum_i r_i L_i`; ``"chebyshev"`` is :math:`\max_i r_i L_i`, for
    losses that are not negative. With the ray as the input of a hypernetwork, drawn anew for
    every step, training on this learns the whole Pareto front (Navon et al. 2021, "Learning
    the Pareto front with hypernetworks"): the model that is right for a
    preference is then read off at run time. The linear form finds only the convex parts of
    a front. The Chebyshev form finds all of it; at its minimum the weighted losses are equal, as
    on the exact rays of that paper, where the front allows it.

    Args:
        losses: ``m`` losses: a tensor ``(m,)`` or ``(B, m)``, or a sequence of ``m`` scalars.
        ray: the preferences, ``(m,)`` or ``(B, m)``, not negative; a draw of
            ``hl.Simplex(m)``. Batch shapes broadcast.
        method: how they are combined.

    Returns:
        A scalar, or ``(B,)``.

    Raises:
        ObjectiveError: the losses are not ``m`` floating-point numbers.
        InputError: the ray does not fit the losses, or has a negative or NaN entry.
        ConfigurationError: an unknown method.

    >>> ray = torch.tensor([0.25, 0.75])
    >>> hl.scalarize([torch.tensor(4.0), torch.tensor(2.0)], ray)
    tensor(2.5000)
    >>> hl.scalarize(torch.tensor([4.0, 2.0]), ray, "chebyshev")
    tensor(1.5000)
    """
    if method not in ("linear", "chebyshev"):
        raise ConfigurationError(
            f"method was {method!r}; expected 'linear' or 'chebyshev'."
            f"{did_you_mean(str(method), ('linear', 'chebyshev'))}"
        )
    if not isinstance(losses, Tensor):
        losses = _stacked(losses)
    if losses.ndim not in (1, 2) or not losses.is_floating_point():
        raise ObjectiveError(
            f"The losses were a tensor of shape {tuple(losses.shape)} and dtype {losses.dtype}; "
            "expected floating-point losses of shape (m,), or (B, m) with one row per sample."
        )
    m = losses.shape[-1]
    if not isinstance(ray, Tensor) or ray.ndim not in (1, 2) or ray.shape[-1] != m:
        found = tuple(ray.shape) if isinstance(ray, Tensor) else type(ray).__name__
        raise InputError(
            f"The ray was {found}, for {m} losses; expected a tensor of shape ({m},) or (B, {m}): "
            "one preference for every loss."
        )
    if ray.ndim == 2 and losses.ndim == 2 and ray.shape[0] != losses.shape[0]:
        raise InputError(
            f"The losses are {tuple(losses.shape)} and the ray {tuple(ray.shape)}; expected the "
            f"same batch, or one ray for all: ({m},)."
        )
    if _readable(ray) and not bool((ray >= 0.0).all()):
        raise InputError(
            f"The ray was {ray.tolist()}; expected preferences that are not negative. Draw it "
            f"from hl.Simplex({m})."
        )
    weighted = ray * losses
    return weighted.sum(dim=-1) if method == "linear" else weighted.amax(dim=-1)


def _stacked(losses: Sequence[Tensor]) -> Tensor:
    shapes = [
        tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__ for loss in losses
    ]
    if not shapes or any(shape != () for shape in shapes):
        raise ObjectiveError(
            f"The losses were a sequence of {listed(map(str, shapes)) or 'nothing'}; expected "
            "scalar tensors. Reduce each, as with .mean(), or stack losses per sample into (B, m)."
        )
    return torch.stack(list(losses))
