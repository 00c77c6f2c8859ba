"""Parameter groups that keep the learning rate of the plain network right.

Read :func:`parameter_groups` first. ``_units`` says which parameters have a rate of their own,
``_measure`` sets the rates: those of the head by how far a step of it moves the predicted weights,
those of the trunk by how much a step changes the features.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .bind import bind
from .diagnostics import check_loss
from .diagnostics import gradients as gradients_of
from .encoded import row_of
from .errors import ConfigurationError, check_rate, did_you_mean, listed
from .heads import ChannelScale, Dense, Head, LowRank, Mixed
from .hypernet import HyperNet, check_model
from .model import HyperModel
from .precision import widen

# Gives gradients of the named tensors: another one for every number.
_Gradients = Callable[[Mapping[str, Tensor], int], dict[str, Tensor]]
Rule = Literal["adam", "sgd"] | Callable[..., torch.optim.Optimizer]

_GROUPS = ("theta0", "trunk", "head", "unpredicted")
# Draws of the inputs for means of the features, and for trial steps.
_DRAWS, _TRIALS = 256, 4
# Entries of a predicted tensor that a mean is taken over: enough for about 2 %.
_SAMPLE = 4096
# Rows of a head's last layer that stand for all of them.
_ROWS = 1024
# How many samples a random gradient is the sum of. In gradients of real batches, too, few
# directions dominate: more or fewer make bilinear heads too fast or too slow.
_RANK = 3
# The same for optimizers that even out the directions, such as Muon: there is no end to them, but
# they fade.
_FADING_RANK = 64
# How much the trunk may be faster than the rule for large heads says, while all of its layers
# together change the features by less than this part of their size in a step.
_FASTER, _QUICK = 3.0, 0.3
# The mean size of a weight, where there is nothing to measure it on.
_TYPICAL_WEIGHT = 0.05


def parameter_groups(
    model: HyperModel,
    lr: float,
    *,
    rule: Rule = "adam",
    weight_decay: float | Mapping[str, float] = 0.0,
    objective: Callable[[nn.Module], Tensor] | None = None,
) -> list[dict[str, Any]]:
    r"""Split the parameters into groups that keep the plain network's learning rate right.

    At the rate that suits the plain network, a hypernetwork trains its primary many times too
    fast: one step moves a predicted weight through ``theta0``, the head and the trunk at once.
    Give the optimizer these groups in place of ``model.parameters()``::

        optimizer = torch.optim.Adam(hl.parameter_groups(model, lr=1e-3))

    The rates are measured on the model at the time of the call. Every part takes a small step
    from random gradients, at small, middling and large features. Then it is put back. Together,
    ``theta0`` and the head move a predicted weight as far as a step of the plain network would,
    on average over the inputs:

    =============== ================================== ========================================
    group           parameters                         learning rate
    =============== ================================== ========================================
    ``theta0``      of the primary, if predicted       ``lr / 2``
    ``trunk``       of the hypernetwork but its head;  at most ``lr / 2``, so that all layers
                    a group for every layer            together change the features, relative
                                                       to their size, half as fast as a step
                                                       changes the plain network's weights;
                                                       with Adam up to three times as fast,
                                                       while that is less than 0.3
    ``head``        of the head; a group for every     so that the head moves a predicted
                    tensor                             weight by half of a plain step
    ``unpredicted`` others of the primary              ``lr``
                    (normalisation)
    =============== ================================== ========================================

    If ``theta0`` or the head is frozen, the other one has all of the step. For a
    :class:`~hyperlight.Dense` head, :math:`\theta = \theta^0 + W f`, the measurement is exact. A
    step of Adam moves every entry of :math:`W` by the rate, and so the weight by
    :math:`\|f\|_1` times the rate; SGD moves it by :math:`\|f\|_2^2` times the rate:

    .. math:: \eta_W = \frac{\eta}{2 \operatorname{mean} \|f\|_1}
        \quad \text{or} \quad \frac{\eta}{2 \operatorname{mean} \|f\|_2^2},
        \qquad
        \eta_l = \frac{\eta}{2 L\, r_l \operatorname{mean} |\theta|}

    for the ``L`` layers of the trunk, where :math:`r_l` is the relative change of the features in
    a step of layer ``l`` at rate 1. The trunk has no more, because what it moves grows with the
    head during training. For the same reason, tensors inside a head that multiply others of the
    head, such as the embeddings of :class:`~hyperlight.Chunked`, are held back as the trunk is. An
    input's encoder, a network of several layers, has one rate. With Adam, three times
    :math:`\eta_l` while ``lr`` is small enough for it: the trunk's rates are not proportional to
    ``lr`` throughout.

    Call it on the model that training begins with, after freezing what should not be trained.
    Nothing is changed: neither parameters, gradients and modes, nor the state of the random number
    generators. On the meta device the rates are estimated from shapes alone.

    **Schedulers** that multiply the rates keep their proportions. Those that set a rate themselves
    need one for each group::

        rates = [group["lr"] for group in optimizer.param_groups]
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rates, total_steps=1000)

    **Where it is less exact.** It is right on average over the inputs: with features of very
    different size, some inputs move farther than others. With SGD, heads that multiply theta0 or
    predicted factors are within a factor of two, unless ``objective`` is given. Without an
    encoding, features grow with the input, and so do the steps. Gradients as small as Adam's
    ``eps`` shorten its steps. What must differ between inputs is learned more slowly than with one
    high rate for all parameters.

    Args:
        model: the model; parameters that do not require gradients are left out.
        lr: the rate that is right for the plain network.
        rule: how the optimizer makes a step of a gradient. ``"adam"`` if the size of the
            gradient does not matter (AdamW, Lion), ``"sgd"`` if it does, with or without
            momentum. Any other by its class, such as ``torch.optim.Adafactor``, or by a function
            of ``(parameters, lr)`` that makes the optimizer: its first step is tried.
        weight_decay: for all groups, or by the first word of their names (0 for those not named).
            It is set in every group, in place of the optimizer's own default. AdamW multiplies it
            by the rate of the group.
        objective: ``objective(net)`` returns a scalar loss on a batch of your data; ``net`` is the
            bound primary, as from :meth:`HyperModel.bind`. The steps are then measured with its
            gradients in place of random ones. How far SGD moves :class:`~hyperlight.LowRank`,
            :class:`~hyperlight.Chunked` and :class:`~hyperlight.ChannelScale` depends on them.

    Returns:
        The groups that are not empty, in the order of the table, for any optimizer of
        :mod:`torch.optim` and any scheduler: dicts with ``name``, ``params``, ``lr`` and
        ``weight_decay``. Where a part has several groups, a path follows the name, as in
        ``trunk.layers.0``. A tied parameter is in one group only.

    Raises:
        ConfigurationError: an argument is invalid, there is nothing to train, the features are
            zero, or values are not finite.
        ObjectiveError: the objective has the wrong shape or does not depend on the weights.

    >>> model = hl.hypernetize(nn.Linear(2, 1), inputs={"scale": hl.Uniform(0.0, 0.5)})
    >>> groups = hl.parameter_groups(model, lr=1e-3, weight_decay={"theta0": 1e-4})
    >>> [group["name"] for group in groups]
    ['theta0', 'trunk.layers.0', 'trunk.layers.1', 'trunk.projection', 'head']
    >>> groups[0]["lr"], groups[0]["weight_decay"]
    (0.0005, 0.0001)
    >>> optimizer = torch.optim.AdamW(groups)
    """
    _check(model, lr, rule)
    decays = _checked_decays(weight_decay)
    units = _units(model)
    if not units:
        raise ConfigurationError(
            "No parameter of the model requires a gradient: there is nothing to train. Unfreeze "
            "a part of it: model.hypernet.requires_grad_(True)."
        )
    if any(p.is_meta for p in model.parameters()):
        _estimate(model, units, rule)
    else:
        with _alone(model.hypernet):
            _measure(model, units, rule, objective, lr)
    several = {name: sum(unit.group == name for unit in units) > 1 for name in _GROUPS}
    return [
        {
            "name": f"{unit.group}.{unit.path}" if several[unit.group] else unit.group,
            "params": unit.parameters,
            "lr": lr * float(f"{unit.factor:.3g}"),  # the same in all processes of a run
            "weight_decay": decays[unit.group],
        }
        for unit in units
    ]


def _check(model: object, lr: float, rule: object) -> None:
    check_model(model)
    check_rate(lr, 1e-3)
    if rule not in ("adam", "sgd") and not callable(rule):
        raise ConfigurationError(
            f"rule was {rule!r}; expected 'adam' (also for AdamW, Lion and the like), 'sgd' (also "
            "with momentum), or a class of optimizers such as torch.optim.Adafactor."
            f"{did_you_mean(str(rule), ('adam', 'sgd'))}"
        )


def _checked_decays(weight_decay: float | Mapping[str, float]) -> dict[str, float]:
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
    return dict.fromkeys(_GROUPS, 0.0) | dict(weight_decay)


# --- which parameters have a rate of their own -------------------------------------------


@dataclass
class _Unit:
    """Parameters that share a rate, which is ``factor`` times that of the plain network."""

    group: str
    path: str
    parameters: list[Tensor]
    encoder: bool = False
    factor: float = 1.0


def _units(model: HyperModel) -> list[_Unit]:
    """theta0, every layer of the trunk, every tensor of the head, and the rest, in this order.

    A tied parameter is the head's if it can be: the smaller rate is the safe one.
    """
    net = model.hypernet
    candidates = [_Unit("head", name, [p]) for name, p in net.head.named_parameters()]
    candidates += _layers(net)
    candidates.append(_Unit("theta0", "", [*model.theta0.values()]))
    candidates.append(_Unit("unpredicted", "", [*model.parameters()]))
    units: list[_Unit] = []
    seen: set[Tensor] = set()
    for unit in candidates:
        unit.parameters = [p for p in unit.parameters if p.requires_grad and p not in seen]
        seen.update(unit.parameters)
        if unit.parameters:
            units.append(unit)
    return sorted(units, key=lambda unit: _GROUPS.index(unit.group))


def _layers(net: HyperNet) -> Iterator[_Unit]:
    """The layers of the trunk, the embeddings, and every encoder as a whole."""
    for name, child in net.named_children():
        if name == "trunk":
            leaves = [(path, m) for path, m in child.named_modules() if not [*m.children()]]
            for path, module in [*leaves, (name, child)]:  # and what a leaf does not hold
                yield _Unit("trunk", path or name, [*module.parameters()])
        elif name != "head":
            inside = isinstance(child, nn.ModuleList | nn.ModuleDict)
            for key, module in child.named_children() if inside else [("", child)]:
                holders = [m for m in module.modules() if [*m.parameters(recurse=False)]]
                path = f"{name}.{key}".removesuffix(".")
                yield _Unit("trunk", path, [*module.parameters()], encoder=len(holders) > 1)


# --- the measurement ------------------------------------------------------------------------


@contextlib.contextmanager
def _alone(net: HyperNet) -> Iterator[None]:
    """Evaluation mode, and none of the caller's contexts that change what is computed."""
    modes = [(module, module.training) for module in net.modules()]
    try:
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(net.device.type, enabled=False),
        ):
            net.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _measure(
    model: HyperModel,
    units: Sequence[_Unit],
    rule: Rule,
    objective: Callable[[nn.Module], Tensor] | None,
    lr: float,
) -> None:
    """Set the factors of all units."""
    net, theta0 = model.hypernet, model.theta0
    draws = net.draws(_DRAWS)
    features = net.features(**draws)
    norms = widen(features).norm(dim=-1)
    _check_finite("The features that the head reads have", norms.mean(), positive=True)
    # Features may differ in size over the inputs: trials with small, middling and large ones.
    trials = norms.argsort()[_DRAWS // (2 * _TRIALS) :: _DRAWS // _TRIALS].tolist()
    gammas = [{name: row_of(values, i) for name, values in draws.items()} for i in trials]
    gradients: _Gradients = functools.partial(_gradient, rule)
    if objective is not None:
        gradients = functools.partial(_gradient_of, objective, model, gammas)
    # Random gradients are alike everywhere, so some of the rows stand for all.
    random = isinstance(rule, str) and objective is None
    head, index = net.head.excerpt(_ROWS) if random else (net.head, {})

    parameters = dict(head.named_parameters())
    moved: set[str] = set()  # tensors that the head moves
    for part in _parts(head):
        owned = set(part.parameters())
        tensors = [u for u in units if u.group == "head" and parameters[u.path] in owned]
        if not tensors:
            continue
        moved.update(part.shapes)
        whole = {name: theta0[name] for name in part.shapes}
        if type(part) is Dense and isinstance(rule, str):
            reach = _reach(widen(features), rule).mean()
            tensors[0].factor = _share_of_head(whole) / float(reach)
        else:
            stepped = [parameters[unit.path] for unit in tensors]
            target = _Target(part, whole, index, gradients)
            _measure_head(target, tensors, stepped, features[trials], rule)

    for unit in units:
        if unit.group == "theta0":
            trained = {name: t for name, t in theta0.items() if t.requires_grad}
            shared = sum(t.numel() for name, t in trained.items() if name in moved)
            unit.factor = 1.0 - shared / (2 * sum(t.numel() for t in trained.values()))

    layers = [unit for unit in units if unit.group == "trunk"]
    if layers:
        target = _Target(head, theta0, index, gradients)
        _measure_trunk(net, target, layers, gammas, features[trials], rule, lr)


def _check_finite(what: str, size: Tensor | float, *, positive: bool = False) -> float:
    size = float(size)
    if not math.isfinite(size) or (positive and size == 0.0):
        raise ConfigurationError(
            f"{what} size {size:g} on average over the inputs; expected a positive number. Check "
            "the weights of the model, the activation and the encoding."
        )
    return size


# --- the head


def _parts(head: Head) -> list[Head]:
    """The heads that predict tensors of their own."""
    if type(head) is not Mixed:
        return [head]
    return [inner for part in head.heads() for inner in _parts(part)]


def _share_of_head(theta0: Mapping[str, Tensor]) -> float:
    """What theta0 leaves to the head: half where both move a weight, and else all."""
    trained = sum(t.numel() for t in theta0.values() if t.requires_grad)
    return 1.0 - trained / (2 * sum(t.numel() for t in theta0.values()))


def _enlarged(whole: Tensor, part: Tensor) -> float:
    """How much larger a random sum over all entries is than one over a part of them."""
    return math.sqrt(whole.numel() / max(1, part.numel()))


def _reach(features: Tensor, rule: Literal["adam", "sgd"]) -> Tensor:
    """How far a step of W at rate 1 moves W f, for gradients of size 1."""
    return (features.abs() if rule == "adam" else features.square()).sum(-1)


class _Target:
    """What a head predicts, or an excerpt of it: theta0, gradients, and a sample of entries.

    Args:
        head: the head, or an excerpt of it.
        theta0: the tensors that it is added to.
        index: which entries of the flat tensors the head has, by name; all of those not named.
        gradients: of the whole tensors.
    """

    def __init__(
        self,
        head: Head,
        theta0: Mapping[str, Tensor],
        index: Mapping[str, Tensor],
        gradients: _Gradients,
    ) -> None:
        self.head, self.whole, self.index, self.gradients = head, theta0, index, gradients
        self.theta0 = self._excerpt(theta0)
        sizes = {name: t.numel() for name, t in theta0.items()}
        counts = {name: t.numel() for name, t in self.theta0.items()}
        device = next(iter(self.theta0.values())).device
        self.entries = _Entries(counts, sizes, device)

    def _excerpt(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        index = self.index
        return {n: t.flatten()[index[n]] if n in index else t for n, t in tensors.items()}

    def gradient(self, seed: int) -> dict[str, Tensor]:
        return self._excerpt(self.gradients(self.whole, seed))

    def enlarged(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What an excerpt adds up to is then as large as what all entries do, at random."""
        found = dict(gradient)
        for name, index in self.index.items():
            if name in found:
                found[name] = found[name] * _enlarged(self.whole[name], index)
        return found

    def plain_step(self, gradient: Mapping[str, Tensor], rule: Rule) -> Tensor:
        """The step of the plain network at rate 1, where the entries are sampled."""
        if isinstance(rule, str):  # entry by entry
            sampled = self.entries.read(gradient)
            return _step(sampled, sampled, rule)
        steps = {name: _step(self.theta0[name], g, rule) for name, g in gradient.items()}
        return self.entries.read(steps)


class _Trial:
    """A step of a head from random gradients, for one draw of the features."""

    def __init__(
        self,
        target: _Target,
        parameters: Sequence[Tensor],
        reach: Sequence[float],
        f: Tensor,
        seed: int,
        rule: Rule,
    ) -> None:
        self.target, self.parameters, self.reach = target, parameters, reach
        self.head, self.features = target.head, f
        if type(self.head) in (LowRank, ChannelScale) and isinstance(rule, str):
            # All of it is W f, so what it gives stands for W: a column in place of a matrix.
            column = nn.Parameter(F.linear(f, parameters[0]).unsqueeze(-1))
            self.head = copy.deepcopy(self.head, {id(parameters[0]): column})
            self.parameters, self.features = [column], f.new_ones(1)
            self.reach = [float(_reach(widen(f), rule))]
        gradient = target.gradient(seed)
        with torch.enable_grad():
            predicted = self._change()
            found = _gradients(predicted, self.parameters, target.enlarged(gradient))
        self.before = target.entries.read(predicted)
        self.steps = [_step(p, g, rule) for p, g in zip(self.parameters, found, strict=True)]
        self.plain = target.plain_step(gradient, rule)

    def _change(self) -> dict[str, Tensor]:
        return self.head.change(self.target.theta0, self.features)

    def moves(self, by: Mapping[int, float]) -> Tensor:
        """How far what is predicted moves in a step of some parameters, times a factor each."""
        parameters, steps = [self.parameters[i] for i in by], [self.steps[i] for i in by]
        with _moved(parameters, steps, [self.reach[i] * by[i] for i in by]) as scale:
            after = self.target.entries.read(self._change())
        return (after - self.before) / scale


def _measure_head(
    target: _Target,
    units: Sequence[_Unit],
    parameters: Sequence[Tensor],
    features: Tensor,
    rule: Rule,
) -> None:
    """Set the factors of a head's tensors by trial steps.

    Tensors of a head multiply each other or add up. Of those that move the same predicted tensor,
    the one that moves it farthest leads: it gets the share of the head. The others are judged as
    the layers of the trunk are: what they multiply grows during training.
    """
    entries, share = target.entries, _share_of_head(target.whole)
    middle = len(features) // 2
    # A row of an excerpt has the gradient that it has in the head.
    reach_of = [1.0] * len(units)
    if rule == "sgd":
        pairs = zip(units, parameters, strict=True)
        reach_of = [1.0 / _enlarged(unit.parameters[0], p) for unit, p in pairs]
    first = _Trial(target, parameters, reach_of, features[middle], middle, rule)
    before = first.before
    change = _check_finite("The predictions of the head have", entries.mean(before))
    growth = (
        max(1.0, entries.mean(before + entries.read(target.theta0)) / change) if change else 1.0
    )
    wanted = entries.by_name(first.plain)
    reached: list[dict[str, float]] = []
    alone = [first.moves({i: 1.0}) for i in range(len(units))]
    for one in alone:
        found = entries.by_name(one)
        least = 1e-3 * max(found[name] / max(wanted[name], 1e-30) for name in found)
        reached.append({name: v for name, v in found.items() if v > least * wanted[name]})
    reach = [sum(found.values()) / (sum(wanted[n] for n in found) or 1.0) for found in reached]

    def beside(i: int, those: Iterable[int]) -> list[int]:
        return [j for j in those if i == j or reached[i].keys() & reached[j].keys()]

    every = range(len(units))
    leads = [
        i for i in every if reach[i] > 0 and reach[i] == max(reach[j] for j in beside(i, every))
    ]
    gates = [i for i in every if i not in leads]
    for i in leads:
        units[i].factor = share / (reach[i] * len(beside(i, leads)))
    for i in gates:
        units[i].factor = _slow(growth * reach[i], len(beside(i, gates)))

    # Their moves do not simply add up: scale them so that all together go as far as they should.
    free = entries.spread({name: float(t.requires_grad) for name, t in target.whole.items()})
    together = []
    by = dict(enumerate(unit.factor for unit in units))
    for seed, f in enumerate(features):
        if seed == middle:  # steps are small, so what they move adds up
            plain = first.plain
            moved = torch.stack([by[i] * one for i, one in enumerate(alone)]).sum(0)
        else:
            trial = _Trial(target, parameters, reach_of, f, seed, rule)
            plain, moved = trial.plain, trial.moves(by)
        size = entries.mean(plain)
        together.append((0.5 * free * plain / size, moved / size))
    scale = _solve(lambda x: sum(entries.mean(a + x * b) for a, b in together) / len(together))
    for i in leads:
        units[i].factor *= scale
    for i in gates:
        units[i].factor = min(0.5, units[i].factor * scale)


def _solve(distance: Callable[[float], float]) -> float:
    """The factor at which a distance that grows with it is 1; 1 if nothing moves."""
    high = 1.0
    while distance(high) < 1.0:
        high *= 2.0
        if high > 1e6:
            return 1.0
    low = 0.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if distance(middle) < 1.0 else (low, middle)
    return high


# --- the trunk


def _measure_trunk(
    net: HyperNet,
    target: _Target,
    layers: Sequence[_Unit],
    gammas: Sequence[Mapping[str, Tensor]],
    features: Tensor,
    rule: Rule,
    lr: float,
) -> None:
    """Set the factors of the trunk's layers by the relative change of the features in a step.

    A change of the features moves all predicted weights, the farther the larger the head's
    weights have grown. So it is judged with W f as large as theta: relative to their size, all
    layers together change the features half as fast as a step changes the plain network's weights.

    Where that is slow, they are up to three times as fast, as most heads never grow so large. A
    step of Adam is as large as its rate says, so it is known where that is.
    """
    head, theta0, entries = target.head, target.theta0, target.entries
    middle = len(features) // 2
    gradient = target.gradient(middle)
    at = features[middle].clone().requires_grad_()
    with torch.enable_grad():
        found = head.change(theta0, at)
        (arriving,) = _gradients(found, [at], target.enlarged(gradient))
    predicted = entries.read(found)
    del found
    size = _check_finite(
        "The predicted weights have", entries.mean(predicted + entries.read(theta0))
    )
    plain = entries.mean(target.plain_step(gradient, rule))
    norm = float(widen(features).norm(dim=-1).mean())
    # The gradient that reaches the features, if the head is a random matrix with W f as large.
    pull = (
        _norm([*target.enlarged(gradient).values()]) * size * math.sqrt(features.shape[-1]) / norm
    )
    generator = torch.Generator().manual_seed(0)
    changes = [0.0] * len(layers)
    for gamma in gammas:
        with torch.enable_grad():
            f = net.features(**gamma)
        direction = nn.functional.normalize(torch.randn(f.shape, generator=generator), dim=-1)
        parameters = [p for unit in layers for p in unit.parameters]
        by_layer = iter(_gradients({"": f}, parameters, {"": direction * (pull or 1.0)}))
        for i, unit in enumerate(layers):
            steps = [_step(p, next(by_layer), rule) for p in unit.parameters]
            with _moved(unit.parameters, steps, [1.0] * len(steps)) as scale:
                change = float((net.features(**gamma) - f).float().norm()) / norm
            changes[i] += change / (scale * plain * len(gammas))
    count = max(1, sum(not unit.encoder for unit in layers))
    # What an encoder says differs between inputs, and so do its moves: they add up less, and it is
    # judged with W f as large as at the start.
    start = max(0.1, min(1.0, entries.mean(predicted) / size)) if size else 1.0
    for unit, change in zip(layers, changes, strict=True):
        reach = change * size
        unit.factor = _slow(reach * start, 1) if unit.encoder else _slow(reach, count)

    # A head with large or uneven weights, or one that multiplies features, moves the predicted
    # weights farther than that at the start. All layers together go half a plain step at most.
    parameters = [p for unit in layers for p in unit.parameters]
    factors = [unit.factor for unit in layers for _ in unit.parameters]
    with torch.enable_grad():
        pulls = _gradients({"": net.features(**gammas[middle])}, parameters, {"": arriving})
    steps = [_step(p, g, rule) for p, g in zip(parameters, pulls, strict=True)]
    with _moved(parameters, steps, factors) as scale:
        after = entries.read(head.change(theta0, net.features(**gammas[middle])))
    distance = entries.mean(after - predicted) / (scale * plain) if plain else 0.0
    faster = 1.0
    if rule == "adam" and size:
        own = sum(u.factor * c for u, c in zip(layers, changes, strict=True) if not u.encoder)
        faster = min(_FASTER, max(1.0, _QUICK / max(lr * plain * own, 1e-30)))
    for unit in layers:
        by = min(1.0 if unit.encoder else faster, 0.5 / max(distance, 1e-30))
        unit.factor = min(0.5, unit.factor * by)


def _slow(reach: float, count: int) -> float:
    """A factor for one of several tensors that act through others: never more than a half."""
    return min(0.5, 0.5 / (count * reach)) if reach > 0.0 else 0.5


# --- trial steps


def _gradients(
    outputs: Mapping[str, Tensor], parameters: Sequence[Tensor], arriving: Mapping[str, Tensor]
) -> Sequence[Tensor]:
    """The gradients of parameters; zero for those that no output depends on."""
    tensors = {name: t for name, t in outputs.items() if t.requires_grad}
    if not tensors:
        return [torch.zeros_like(p) for p in parameters]
    return torch.autograd.grad(
        [*tensors.values()],
        parameters,
        [arriving[name].to(t) for name, t in tensors.items()],
        allow_unused=True,
        materialize_grads=True,
    )


def _step(parameter: Tensor, gradient: Tensor, rule: Rule) -> Tensor:
    """The first step of an optimizer at rate 1, reversed: up the gradient. It is as long."""
    if rule == "adam":
        return gradient.sign()
    if rule == "sgd":
        return gradient
    assert callable(rule)
    trial = nn.Parameter(parameter.detach().clone())
    trial.grad = gradient.to(trial)
    try:
        optimizer = rule([trial], lr=1.0)
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
        with torch.enable_grad():
            optimizer.step()
    except Exception as error:
        raise ConfigurationError(
            f"rule={getattr(rule, '__name__', rule)} cannot step a parameter of shape "
            f"{tuple(trial.shape)}: {error}; expected a class of optimizers, or a function that "
            "makes one for such a parameter: rule=lambda parameters, lr: ..."
        ) from error
    return parameter.detach() - trial.detach()


@contextlib.contextmanager
def _moved(
    parameters: Sequence[Tensor], steps: Sequence[Tensor], factors: Sequence[float]
) -> Iterator[float]:
    """Move parameters a little along steps times factors, and give how far; put them back after.

    Through ``data``: a graph that was made before must not take this for a change.
    """
    length = math.hypot(*(b * _norm([step]) for b, step in zip(factors, steps, strict=True)))
    at = _norm(parameters) or math.sqrt(sum(p.numel() for p in parameters))
    eps = max(torch.finfo(p.dtype).eps for p in parameters)
    scale = math.sqrt(eps) * at / length if length else 1.0
    saved = [p.data for p in parameters]
    try:
        for parameter, step, by in zip(parameters, steps, factors, strict=True):
            parameter.data = torch.add(parameter.data, step, alpha=by * scale)
        yield scale
    finally:
        for parameter, value in zip(parameters, saved, strict=True):
            parameter.data = value


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(t.detach().float().norm()) ** 2 for t in tensors))


def _gradient_of(
    objective: Callable[[nn.Module], Tensor],
    model: HyperModel,
    gammas: Sequence[Mapping[str, Tensor]],
    like: Mapping[str, Tensor],
    index: int,
) -> dict[str, Tensor]:
    """The gradients of a user's objective at the weights predicted for one of the inputs."""
    device = model.hypernet.device
    buffers = {name: t.detach().clone() for name, t in model.primary.named_buffers()}
    try:
        with (
            torch.enable_grad(),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
        ):
            weights = model.predict(**gammas[index])
            leaves = {name: t.detach().requires_grad_() for name, t in weights.items()}
            loss = objective(bind(model.primary, leaves))
            check_loss("The objective", loss, torch.Size([]))
            found = gradients_of("The objective", loss, "the weights", [*leaves.values()])
    finally:
        for name, t in model.primary.named_buffers():
            t.data.copy_(buffers[name])
    named = dict(zip(leaves, found, strict=True))
    chosen = {name: named[name] for name in like}
    size = _norm([*chosen.values()])
    _check_finite(f"The objective's gradients of {listed(chosen)} have", size, positive=True)
    return chosen


def _gradient(rule: Rule, like: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Random gradients of named tensors, with the structure of a layer's: errors x activations.

    Errors have about the same norm in every layer. Activations are those of a rectifier, so some
    entries have no gradient.
    """
    generator = torch.Generator().manual_seed(seed)
    strength = torch.ones(_RANK) if isinstance(rule, str) else 1 / torch.arange(1, _FADING_RANK)
    found = {}
    for name, tensor in like.items():
        rows = tensor.shape[0] if tensor.ndim > 1 else tensor.numel()
        errors = (
            torch.randn((rows, len(strength)), generator=generator) / math.sqrt(rows) * strength
        )
        inputs = torch.ones(len(strength), 1)
        if tensor.ndim > 1:
            inputs = torch.randn((len(strength), tensor[0].numel()), generator=generator).relu()
        found[name] = (errors.to(tensor) @ inputs.to(tensor)).reshape(tensor.shape)
    return found


class _Entries:
    """A sample of the entries of flat tensors, as one vector, and means over all entries.

    Args:
        counts: of the entries that can be read, by name.
        sizes: of the tensors that these entries stand for.
    """

    def __init__(
        self, counts: Mapping[str, int], sizes: Mapping[str, int], device: torch.device
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.index = {
            name: (
                torch.arange(count)
                if count <= _SAMPLE
                else torch.randint(count, (_SAMPLE,), generator=generator)
            ).to(device)
            for name, count in counts.items()
        }
        self.lengths = {name: len(index) for name, index in self.index.items()}
        self.each = {name: sizes[name] / max(1, n) for name, n in self.lengths.items()}
        weights = self.spread(self.each)
        self.weights = weights / weights.sum()

    def read(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The sampled entries, in float32 or wider."""
        parts = [tensors[name].detach().reshape(-1)[index] for name, index in self.index.items()]
        return torch.cat(
            [part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts]
        )

    def spread(self, numbers: Mapping[str, float]) -> Tensor:
        """The same number for all sampled entries of a tensor."""
        parts = [
            index.new_full(index.shape, numbers[n], dtype=torch.float32)
            for n, index in self.index.items()
        ]
        return torch.cat(parts)

    def by_name(self, values: Tensor) -> dict[str, float]:
        """The sum of absolute values over every tensor."""
        parts = torch.split(values.abs(), [*self.lengths.values()])
        sums = torch.stack([part.sum() for part in parts]).tolist()
        return {
            name: total * each for total, (name, each) in zip(sums, self.each.items(), strict=True)
        }

    def mean(self, values: Tensor) -> float:
        """The mean absolute value."""
        return float((values.abs() * self.weights).sum())


# --- without values ------------------------------------------------------------------------


def _estimate(model: HyperModel, units: Sequence[_Unit], rule: Rule) -> None:
    """Set the factors by shapes, for features of norm 1 with entries alike, and a dense head."""
    net = model.hypernet
    both = {"theta0", "head"} <= {unit.group for unit in units}
    layers = sum(unit.group == "trunk" for unit in units)
    for unit in units:
        if unit.group in ("theta0", "head"):
            unit.factor = 0.5 if both else 1.0
        if unit.group == "head" and rule != "sgd":
            unit.factor /= math.sqrt(net.head.features)
        if unit.group == "trunk":
            change = math.sqrt(max(p.numel() for p in unit.parameters))
            unit.factor = _slow(change * _TYPICAL_WEIGHT, layers)
