"""Parameter groups that keep the learning rate of the plain network right."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from .errors import ConfigurationError, did_you_mean, listed
from .model import HyperModel
from .precision import widen

_GROUPS = ("theta0", "trunk", "head", "unpredicted")
_DRAWS = 256


def parameter_groups(
    model: HyperModel,
    lr: float,
    *,
    rule: Literal["adam", "sgd"] = "adam",
    weight_decay: float | Mapping[str, float] = 0.0,
) -> list[dict[str, Any]]:
    r"""Split the parameters into groups that keep the plain network's learning rate right.

    At the rate that suits the plain network, a hypernetwork trains its primary many times too
    fast: one step moves a predicted weight through ``theta0``, the head and the trunk at once.
    Give the optimizer these groups in place of ``model.parameters()``::

        optimizer = torch.optim.Adam(hl.parameter_groups(model, lr=1e-3))

    A predicted weight is :math:`\theta^0 + W f`, with a dense head :math:`W` and features
    :math:`f`. A step of Adam moves every entry of :math:`W` by up to the rate, and so the weight by
    up to :math:`|f|_1` times the rate. A step of SGD moves the weight by :math:`|f|_2^2` times the
    rate times its gradient. Both factors grow with the width of the hypernetwork, so the head's
    rate is divided by them:

    =============== ========================================== ==================================
    group           parameters                                 learning rate
    =============== ========================================== ==================================
    ``theta0``      of the primary, if predicted               ``lr / 2``
    ``trunk``       of the hypernetwork, except the head       ``lr / 2``
    ``head``        of the head                                ``lr / 2``, over :math:`|f|_1`
                                                               (``rule="adam"``) or
                                                               :math:`|f|_2^2` (``rule="sgd"``)
    ``unpredicted`` others of the primary (normalisation)      ``lr``
    =============== ========================================== ==================================

    ``theta0`` and the head have half the rate because their steps add up; if one of them is
    frozen, the other has all of it. The trunk has half so that the features keep about the size
    for which the head's rate was computed.

    Together ``theta0`` and a :class:`Dense` head then move a predicted weight as far as a step of
    the plain network would, on average over the inputs (unless gradients are as small as Adam's
    ``eps``). With :class:`LowRank` this holds for the entries of the two factors; their product
    moves with both. What the trunk moves comes on top, and grows with the width: the study
    ``rates`` measures it.

    The size of the features is a mean over draws of the inputs, always the same ones, at the
    time of the call. First freeze what should not be trained, and call it before training.

    Args:
        model: the model; parameters that do not require gradients are left out.
        lr: the rate that is right for the plain network.
        rule: how the optimizer scales a step: ``"adam"`` by the size of the gradients (also
            AdamW and the like), ``"sgd"`` not at all.
        weight_decay: for all groups, or by group name (0 for those not named). It is set in every
            group, in place of the optimizer's own default. AdamW multiplies it by the rate of
            the group.

    Returns:
        The groups that are not empty, in the order of the table, for any optimizer of
        :mod:`torch.optim` and any scheduler: dicts with ``name``, ``params``, ``lr`` and
        ``weight_decay``. A tied parameter is in one group only.

    Raises:
        ConfigurationError: an argument is invalid, there is nothing to train, or the head's
            features are zero or not finite.

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
    # A tied parameter is the head's if it can be: the smaller rate is the safe one.
    owners: dict[str, Iterable[Tensor]] = {
        "head": model.hypernet.head.parameters(),
        "trunk": model.hypernet.parameters(),
        "theta0": model.theta0.values(),
        "unpredicted": model.parameters(),
    }
    members: dict[str, list[Tensor]] = {}
    seen: set[Tensor] = set()
    for name, parameters in owners.items():
        members[name] = [p for p in parameters if p.requires_grad and p not in seen]
        seen.update(members[name])
    if not seen:
        raise ConfigurationError(
            "No parameter of the model requires a gradient: there is nothing to train. Unfreeze "
            "a part of it: model.hypernet.requires_grad_(True)."
        )
    each = lr / 2 if members["theta0"] and members["head"] else lr
    rates = {"theta0": each, "trunk": lr / 2, "head": each, "unpredicted": lr}
    if members["head"]:
        rates["head"] /= _feature_size(model, rule)
    decays = dict.fromkeys(_GROUPS, 0.0) | dict(weight_decay)
    return [
        {"name": name, "params": group, "lr": rates[name], "weight_decay": decays[name]}
        for name in _GROUPS
        if (group := members[name])
    ]


@torch.no_grad()
def _feature_size(model: HyperModel, rule: str) -> float:
    """How far a step of size 1 of a dense head moves a prediction, on average over the inputs."""
    draws = model.sample((_DRAWS,), generator=torch.Generator().manual_seed(0))
    features = widen(model.hypernet.features(**draws))
    moved = features.abs() if rule == "adam" else features.square()
    size = float(moved.sum(dim=-1).mean())
    if not 0.0 < size < math.inf:
        raise ConfigurationError(
            f"The features that the head reads have size {size:g} on average over the inputs; "
            "expected a positive number. Check the hypernetwork's weights, activation and encoding."
        )
    return size
