"""Parameter groups with which the learning rate of the plain network stays right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from .errors import ConfigurationError, did_you_mean, listed
from .model import HyperModel
from .precision import widen

__all__ = ["parameter_groups"]

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
    predicted = {id(tensor) for tensor in model.theta0.values()}
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
