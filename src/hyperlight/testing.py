"""Conformance checks for your own heads, encodings, inputs and models.

Your parts meet the same guarantees as HyperLight's own if :func:`check_hypernet` passes.

A head of your own is one class: :meth:`~hyperlight.Head.make` makes the parameters,
:meth:`~hyperlight.Head.reset_parameters` draws them, ``forward`` maps features ``(..., K)`` to
one flat vector ``(..., P)``. This one reads the direction of the features and not their norm:

>>> class Directional(hl.Head):
...     def make(self, dtype, device):
...         entries = sum(shape.numel() for shape in self.shapes.values())
...         weight = torch.empty(entries, self.features, dtype=dtype, device=device)
...         self.weight = nn.Parameter(weight)
...
...     @torch.no_grad()
...     def reset_parameters(self, init, generator=None):
...         rows = self.weight.split([shape.numel() for shape in self.shapes.values()])
...         for (name, shape), block in zip(self.shapes.items(), rows):
...             block.normal_(0.0, init.std(name, shape), generator=generator)
...
...     def forward(self, features):
...         return nn.functional.normalize(features, dim=-1) @ self.weight.T

An encoding is one class, too. It is given the inputs in [0, 1] unless it says
``normalized = False``, and its claim about its norm is checked:

>>> class Fourier(hl.Encoding):
...     unit_norm = True
...
...     def output_size(self, inputs):
...         return 8 * inputs
...
...     def forward(self, u):
...         angle = torch.cat([u * torch.pi / 2 * 2**k for k in range(4)], dim=-1)
...         return torch.cat([angle.cos(), angle.sin()], dim=-1) * angle.shape[-1] ** -0.5

>>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
>>> space = {"scale": hl.Uniform(0.0, 0.5), "noise": hl.Normal(4)}
>>> model = hl.hypernetize(net, space, head=Directional(), encoding=Fourier())
>>> report = hl.testing.check_hypernet(model, torch.randn(5, 3))
>>> {"batches", "gradients", "initialisation", "binding"} <= set(report.passed)
True
"""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ._torch import pytree
from .encodings import Encoding
from .errors import ConfigurationError, HyperLightError
from .heads import dense
from .hypernet import HyperNet
from .init import FanOut, Initialization, Zero
from .model import HyperModel
from .targets import attribute

__all__ = ["CheckError", "CheckReport", "check_hypernet"]

_BATCHES: tuple[tuple[int, ...], ...] = ((), (1,), (3,), (2, 3))
# The factor by which a measured spread may be off. If all entries of a tensor follow a few draws,
# it is known from the few resets and features that are tried, not from the number of entries.
_SPREAD = 2.0


class CheckError(HyperLightError, AssertionError):
    """A model does not do what a hypernetwork must.

    Attributes:
        failures: what was expected, what was found and what to do, by check.
    """

    def __init__(self, message: str, failures: Mapping[str, str]) -> None:
        super().__init__(message, failures)
        self.failures = dict(failures)

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class CheckReport:
    """What :func:`check_hypernet` found; ``print`` it for a list.

    Attributes:
        passed: the checks that passed, with a note on each, or ``""``.
        skipped: the checks that could not be made, with the reason.
    """

    passed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            *((name, "passed", note) for name, note in self.passed.items()),
            *((name, "skipped", reason) for name, reason in self.skipped.items()),
        ]
        width = max(len(name) for name, _, _ in lines)
        return "\n".join(
            f"{name:<{width}}  {state}{': ' if note else ''}{note}" for name, state, note in lines
        )


def check_hypernet(model: HyperModel | HyperNet, *args: Any, **kwargs: Any) -> CheckReport:
    """Check that a model does what a hypernetwork must, whatever parts it is made of.

    The model and the state of the random number generators stay as they are. The checks run on
    copies, in eval mode, whose parameters are moved a little so that nothing hides behind an
    initialisation at zero. They hold several copies in memory and take seconds on a small model;
    check a scaled-down copy of a large one.

    ================== ==================================================================
    check              what must hold
    ================== ==================================================================
    ``inputs``         draws have their shapes, lie in their spaces, normalise to [0, 1]
    ``encoding``       it is given normalised inputs, or raw ones if it says so; the size
                       is the declared one; finite at the ends of every space
    ``norm``           the encoded vector has norm 1, where ``unit_norm`` claims it
    ``predictions``    declared names, order, shapes, dtypes; finite; the head's ``predict``,
                       ``add_to`` and ``forward`` agree; ``parameter_count`` adds up
    ``batches``        a batch of inputs equals the loop over it, for every batch shape
    ``dependence``     every predicted tensor changes with every input
    ``gradients``      every trained parameter of the hypernetwork, and every ``theta0``, is
                       given a finite gradient that is not all zero
    ``initialisation`` the predictions start with the spread that was asked for, within a
                       factor of 2; at zero for ``init="zero"``, from which they can train
    ``reset``          ``reset_parameters`` draws all of the head, and the same with the
                       same generator
    ``binding``        ``bind`` equals a deep copy of the primary with the weights copied in
    ``primary``        predicting, binding and backward leave it unchanged
    ``copies``         a deep copy predicts the same and shares no parameter
    ``state``          a copy that loads its ``state_dict()`` predicts the same
    ``precision``      so does the model after a move to float64, up to rounding
    ``pickle``         it can be pickled, which is how it reaches a spawned process
    ``determinism``    in eval mode the same inputs give the same weights and outputs
    ================== ==================================================================

    Args:
        model: the model, in any state of training.
        args: what the primary's forward takes, for the checks that call it.
        kwargs: the same by keyword; inputs of the hypernetwork may be among them, as in a
            call of the model.

    Returns:
        The names of the checks that were passed, and of those that could not be made.

    Raises:
        CheckError: lists every check that failed, with what was expected, what was found
            and what to do.

    >>> model = hl.hypernetize(nn.Linear(3, 2), inputs={"scale": hl.Uniform(0.0, 0.5)})
    >>> report = hl.testing.check_hypernet(model, torch.randn(5, 3))
    >>> len(report.passed), report.skipped
    (16, {})
    """
    if not isinstance(model, (HyperModel, HyperNet)):
        raise ConfigurationError(
            f"check_hypernet was given {type(model).__name__}; expected a HyperModel, as "
            "hypernetize returns, or a HyperNet."
        )
    given = {name: kwargs.pop(name) for name in list(kwargs) if name in model.inputs}
    if isinstance(model, HyperNet) and (args or kwargs):
        raise ConfigurationError(
            "check_hypernet was given arguments of a primary's forward for a HyperNet, which has "
            "no primary. Leave them out, or check the HyperModel."
        )
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    report, failures = CheckReport(), {}
    checks = _CHECKS
    with torch.random.fork_rng(sorted(devices, key=str)), torch.enable_grad():
        torch.manual_seed(0)
        try:
            case = _Case(copy.deepcopy(model).eval(), given, args, kwargs)
        except Exception as error:
            checks = {}
            failures["copies"] = (
                f"The model cannot be copied with copy.deepcopy: {_said(error)}. All checks run "
                "on a copy, so no other was made. Keep no generators, locks or tensors with a "
                "graph as attributes."
            )
        else:
            _move(case.hypernet)
        for name, check in checks.items():
            try:
                report.passed[name] = check(case) or ""
            except _SkippedError as skipped:
                report.skipped[name] = str(skipped)
            except _FailedError as failed:
                failures[name] = str(failed)
            except Exception as error:
                failures[name] = f"It must not raise, and it raised {_said(error)}."
    if failures:
        hypernet = model.hypernet if isinstance(model, HyperModel) else model
        lines = "\n".join(f"- {name}: {failure}" for name, failure in failures.items())
        raise CheckError(
            f"check_hypernet: {type(model).__name__} (encoding {type(hypernet.encoding).__name__}, "
            f"head {type(hypernet.head).__name__}) failed {len(failures)} of {len(_CHECKS)} "
            f"checks:\n{lines}",
            failures,
        )
    return report


class _FailedError(Exception):
    pass


class _SkippedError(Exception):
    pass


def _said(error: Exception) -> str:
    first, *_ = str(error).splitlines() or ["no message"]
    return f"{type(error).__name__}: {first.rstrip('.')}"


@torch.no_grad()
def _move(hypernet: HyperNet) -> None:
    """Away from the initialisation, by a tenth of each parameter's scale."""
    for parameter in hypernet.parameters():
        scale = float(parameter.double().square().mean().sqrt()) or 0.1
        parameter.add_(torch.randn_like(parameter), alpha=0.1 * scale)


@dataclass(frozen=True)
class _Case:
    """A model to check, with what its primary is called with."""

    model: HyperModel | HyperNet
    given: Mapping[str, Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def hypernet(self) -> HyperNet:
        return self.model.hypernet if isinstance(self.model, HyperModel) else self.model

    @property
    def theta0(self) -> dict[str, Tensor]:
        return self.model.theta0 if isinstance(self.model, HyperModel) else {}

    def copied(self) -> _Case:
        return _Case(copy.deepcopy(self.model), self.given, self.args, self.kwargs)

    def gamma(self, batch: Sequence[int] = (), seed: int = 0) -> dict[str, Tensor]:
        return self.hypernet.sample(batch, generator=torch.Generator().manual_seed(seed))

    def predict(self, gamma: Mapping[str, Any]) -> dict[str, Tensor]:
        predict = self.model.predict if isinstance(self.model, HyperModel) else self.model
        predicted: dict[str, Tensor] = predict(**gamma)
        return predicted

    def hypermodel(self) -> HyperModel:
        if not isinstance(self.model, HyperModel):
            raise _SkippedError("a HyperNet has no primary")
        return self.model

    def features(self, size: int, seed: int) -> Tensor:
        """Random directions, ``(size, K)``."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(size, self.hypernet.head.features, generator=generator)
        return nn.functional.normalize(drawn, dim=-1).to(self.hypernet.device, self.hypernet.dtype)

    def generator(self, seed: int) -> torch.Generator:
        # Not the seeds of the features: the same draws in both would not be independent.
        return torch.Generator(self.hypernet.device).manual_seed(2**20 + seed)


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise _FailedError(message)


def _tolerance(dtype: torch.dtype) -> float:
    """Rounding that a few hundred sums leave, relative to the largest entry."""
    return torch.finfo(dtype).eps ** 0.75 if dtype.is_floating_point else 0.0


def _equal(found: Any, expected: Any, room: float = 1.0) -> bool:
    """Whether two tensors agree up to rounding, relative to the largest entry."""
    finite = expected.detach()[expected.isfinite()].abs()
    largest = float(finite.max()) if finite.numel() else 0.0
    worst = max(_tolerance(found.dtype), _tolerance(expected.dtype))
    try:
        torch.testing.assert_close(
            found, expected, rtol=0, atol=room * worst * largest, equal_nan=True, check_dtype=False
        )
    except AssertionError:
        return False
    return True


def _compare(
    what: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor], room: float = 1.0
) -> None:
    for name, tensor in expected.items():
        _expect(
            _equal(found[name], tensor, room),
            f"{what} for {name!r} by more than rounding.",
        )


# --- the checks -----------------------------------------------------------------------------


def _inputs(case: _Case) -> None:
    hypernet = case.hypernet
    for name, space in hypernet.inputs.items():
        for batch in _BATCHES:
            value = case.gamma(batch)[name]
            shape = batch + space.event_shape
            _expect(
                tuple(value.shape) == shape,
                f"{name!r} drew {tuple(value.shape)} for batch shape {batch}; expected {shape}, "
                "batch_shape + event_shape. Correct sample() or event_shape.",
            )
            space.check_values(value)
        if space.discrete:
            continue
        grid = space.grid(5, dtype=hypernet.dtype, device=hypernet.device)
        for value in (case.gamma((64,))[name], grid):
            low, high = (float(end) for end in torch.aminmax(space.normalize(value)))
            room = _tolerance(hypernet.dtype)
            _expect(
                -room <= low <= high <= 1.0 + room,
                f"normalize() of {name!r} gave values from {low:.4g} to {high:.4g}; expected "
                "[0, 1], as section 4 of the paper has it. Correct standardize() or support.",
            )


def _grid(case: _Case) -> dict[str, Tensor]:
    """All inputs over their spaces, the ends included: batch shape (5,)."""
    hypernet, drawn = case.hypernet, case.gamma((5,))
    return {
        name: drawn[name]
        if space.discrete
        else space.grid(5, dtype=hypernet.dtype, device=hypernet.device)
        for name, space in hypernet.inputs.items()
    }


def _encoding(case: _Case) -> None:
    hypernet, gamma = case.hypernet, _grid(case)
    encoding = hypernet.encoding
    numbers = {name: space for name, space in hypernet.inputs.items() if not space.discrete}
    if not numbers:
        raise _SkippedError("all inputs are categories, which have embeddings")
    normalized = getattr(encoding, "normalized", True)
    seen: list[tuple[Tensor, Tensor]] = []
    handle = encoding.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    try:
        hypernet.encode(**gamma)
    finally:
        handle.remove()
    _expect(len(seen) == 1, f"It was called {len(seen)} times for one encode(); expected once.")
    given, encoded = seen[0]
    columns = [
        (space.normalize(gamma[name]) if normalized else gamma[name]).reshape(5, space.numel)
        for name, space in numbers.items()
    ]
    expected = torch.cat(columns, dim=-1)
    what = "inputs mapped to [0, 1]" if normalized else "inputs as the user passes them"
    _expect(
        given.shape == expected.shape and _equal(given, expected),
        f"normalized is {normalized}, so it must be given {what}; it was given others. Leave that "
        "to HyperNet.encode, and set normalized as a class attribute.",
    )
    own = isinstance(encoding, Encoding)
    size = encoding.output_size(expected.shape[-1]) if own else encoded.shape[-1]  # type: ignore[operator]
    for batch in _BATCHES:
        found = tuple(encoding(expected[0].expand((*batch, expected.shape[-1]))).shape)
        _expect(
            found == (*batch, size),
            f"It gave {found} for {expected.shape[-1]} inputs of batch shape {batch}; expected "
            f"{(*batch, size)}, with output_size() for its last dimension. Join along dim=-1.",
        )
    _expect(
        bool(encoded.isfinite().all()),
        "It gave infinite values or NaN somewhere on the spaces, the ends included; expected "
        "finite ones. Mind 0 and 1.",
    )


def _norm(case: _Case) -> str:
    norms = torch.cat(
        [case.hypernet.encode(**gamma).norm(dim=-1) for gamma in (_grid(case), case.gamma((64,)))]
    )
    low, high = (float(end) for end in torch.aminmax(norms.detach()))
    found, room = f"norms from {low:.4g} to {high:.4g}", _tolerance(norms.dtype)
    if not getattr(case.hypernet.encoding, "unit_norm", False):
        return f"{found}; none is claimed"
    _expect(
        1.0 - room <= low <= high <= 1.0 + room,
        f"unit_norm is claimed, and encoded inputs have {found}; expected 1. Divide by what "
        "the norm is, or set unit_norm = False.",
    )
    return "1 for all inputs, as claimed"


def _predictions(case: _Case) -> None:
    hypernet, theta0 = case.hypernet, case.theta0
    shapes, dtype, device = hypernet.shapes, hypernet.dtype, hypernet.device
    order = list(theta0 or shapes)
    predicted = case.predict(case.gamma())
    _expect(
        list(predicted) == order,
        f"The names were {list(predicted)}; expected {order}, in this order. Return them as "
        "self.shapes has them.",
    )
    for name, tensor in predicted.items():
        wanted = theta0[name].dtype if theta0 else dtype
        _expect(
            tensor.shape == shapes[name] and tensor.dtype == wanted,
            f"{name!r} was predicted with shape {tuple(tensor.shape)} and {tensor.dtype}; expected "
            f"{tuple(shapes[name])} and {wanted}. Follow self.shapes, and the features' dtype.",
        )
        _expect(
            bool(tensor.isfinite().all()),
            f"{name!r} was predicted with infinite values or NaN; expected finite ones.",
        )
    for name, parameter in hypernet.named_parameters():
        _expect(
            parameter.dtype == dtype and parameter.device == device,
            f"The parameter {name!r} is {parameter.dtype} on {parameter.device}; expected {dtype} "
            f"on {device}. Use the dtype and device that make() is given.",
        )
    head, features = hypernet.head, case.features(2, seed=0)
    sizes = [shape.numel() for shape in shapes.values()]
    flat = head(features)
    _expect(
        flat.shape == (2, sum(sizes)),
        f"The head's forward gave {tuple(flat.shape)} for 2 rows of features; expected "
        f"{(2, sum(sizes))}, the predicted tensors flattened and concatenated.",
    )
    zero = {name: torch.zeros(s, dtype=dtype, device=device) for name, s in shapes.items()}
    parts = {name: part.reshape(2, -1) for name, part in head.predict(features).items()}
    sums = {n: dense(weight).reshape(2, -1) for n, weight in head.add_to(zero, features).items()}
    cut = dict(zip(shapes, flat.split(sizes, dim=-1), strict=True))
    _compare("The head's forward and predict() differ", cut, parts)
    _compare("The head's add_to() and predict() differ", sums, parts)
    counts = [head.parameter_count(name) for name in shapes]
    total, own_count = sum(p.numel() for p in head.parameters()), sum(n or 0 for n in counts)
    _expect(
        own_count <= total if None in counts else own_count == total,
        f"parameter_count() adds up to {own_count:,} over all tensors, and the head has {total:,} "
        "parameters. Return None for tensors that share theirs.",
    )


def _batches(case: _Case) -> None:
    shapes = case.hypernet.shapes
    for batch in _BATCHES:
        gamma = case.gamma(batch, seed=1)
        together = case.predict(gamma)
        for name, tensor in together.items():
            expected = (*batch, *shapes[name])
            _expect(
                tuple(tensor.shape) == expected,
                f"{name!r} had shape {tuple(tensor.shape)} for inputs of batch shape {batch}; "
                f"expected {expected}, batch_shape + shape. Work on the last dimension only.",
            )
        rows = {
            name: value.reshape((-1, *case.hypernet.inputs[name].event_shape))
            for name, value in gamma.items()
        }
        loop = [
            case.predict({name: value[i] for name, value in rows.items()})
            for i in range(len(next(iter(rows.values()))))
        ]
        _compare(
            f"A batch of shape {batch} must equal the loop over it, and they differ",
            {name: t.reshape((-1, *shapes[name])) for name, t in together.items()},
            {name: torch.stack([one[name] for one in loop]) for name in together},
        )


def _dependence(case: _Case) -> None:
    held = case.gamma(seed=2)
    for name in case.hypernet.inputs:
        varied = case.gamma((16,), seed=3)[name]
        if bool((varied == varied[:1]).all()):  # a single category
            continue
        for target, tensor in case.hypernet(**{**held, name: varied}).items():
            tensor = tensor.detach()
            room = 1e-6 * float(tensor.abs().max())
            _expect(
                float((tensor - tensor[:1]).abs().max()) > room,
                f"The prediction of {target!r} is the same for all values of the input {name!r}; "
                "expected it to follow every input. Look for features that are not used, a "
                "detach(), or an activation that is zero for all inputs.",
            )


def _gradients(case: _Case) -> None:
    parameters = {
        **{f"hypernet.{name}": p for name, p in case.hypernet.named_parameters()},
        **{f"primary.{name}": p for name, p in case.theta0.items()},
    }
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    if not trained:
        raise _SkippedError("no parameter requires a gradient")
    missing = dict(trained)
    for seed in range(16):
        predicted = list(case.predict(case.gamma(seed=seed)).values())
        weights = [torch.randn_like(tensor) for tensor in predicted]
        largest = max(float(weight.abs().max()) for weight in weights)
        found: Sequence[Tensor | None] = torch.autograd.grad(
            predicted, list(trained.values()), weights, allow_unused=True
        )
        for name, gradient in zip(trained, found, strict=True):
            if gradient is None:
                continue
            _expect(
                bool(gradient.isfinite().all()),
                f"The gradient of {name!r} has infinite values or NaN; expected finite ones.",
            )
            eps = torch.finfo(gradient.dtype).eps
            rounding = 8.0 * eps * largest if eps < 1e-6 else 0.0  # what cancels leaves a trace
            if float(gradient.abs().max()) > rounding:
                missing.pop(name, None)
        if not missing:
            return
    raise _FailedError(
        f"The gradient of {', '.join(map(repr, missing))} is zero whatever the inputs; expected "
        "every parameter to be reached. Use it in forward without detach(), item() or no_grad(), "
        "or take it out, or set requires_grad_(False)."
    )


@dataclass(frozen=True)
class _Asked(Initialization):
    """Spreads that no head would have by itself."""

    stds: Mapping[str, float]
    measured: bool = False

    def std(self, name: str, shape: torch.Size) -> float:
        return self.stds[name]


@torch.no_grad()
def _spread(case: _Case, features: Tensor) -> dict[str, float]:
    predicted = case.hypernet.head.predict(features)
    return {name: float(t.double().square().mean()) for name, t in predicted.items()}


def _initialisation(case: _Case) -> str:
    fresh = case.copied()
    head, shapes = fresh.hypernet.head, fresh.hypernet.shapes
    stds = {
        name: FanOut().std(name, shape) * (1.0, 4.0, 16.0)[i % 3]
        for i, (name, shape) in enumerate(shapes.items())
    }
    entries = sum(shape.numel() for shape in shapes.values())
    resets = 64 if entries < 2**12 else 8
    size = max(1, min(16, 2**22 // entries))
    squares = dict.fromkeys(shapes, 0.0)
    for seed in range(resets):
        head.reset_parameters(_Asked(stds), fresh.generator(seed))
        for name, square in _spread(fresh, fresh.features(size, seed)).items():
            squares[name] += square / resets
    _expect_spread("reset_parameters", squares, stds)

    head.reset_parameters(Zero(), fresh.generator(0))
    at_zero = head(fresh.features(2, seed=0))
    _expect(
        not bool(at_zero.any()),
        "With init='zero' predictions must be exactly zero, and they are not. Multiply by "
        "init.std(name, shape) in reset_parameters.",
    )
    trained = [p for p in head.parameters() if p.requires_grad]
    found = trained and torch.autograd.grad(
        at_zero, trained, torch.randn_like(at_zero), allow_unused=True
    )
    _expect(
        not trained or any(gradient is not None and bool(gradient.any()) for gradient in found),
        "With init='zero' no parameter of the head is given a gradient, so that it could never "
        "train. Start one factor of a product at zero and not both.",
    )

    features = 2.0 * fresh.features(256 if entries < 2**16 else 16, seed=0)
    measured = _Asked(stds, measured=True)
    head.reset_parameters(measured, fresh.generator(0))
    try:
        head.calibrate(features, measured)
    except ConfigurationError:
        return "the head has no calibrate(), so that init='relative' and the like refuse it"
    _expect_spread("calibrate", _spread(fresh, features), stds)
    return ""


def _expect_spread(method: str, squares: Mapping[str, float], stds: Mapping[str, float]) -> None:
    for name, square in squares.items():
        found, asked = square**0.5, stds[name]
        _expect(
            asked / _SPREAD <= found <= asked * _SPREAD,
            f"After {method} the predictions of {name!r} have standard deviation {found:.3g}; "
            f"init.std(name, shape) asked for {asked:.3g}, to a factor of {_SPREAD:g}. Draw each "
            "tensor's weights such that features of norm 1 give that.",
        )


def _reset(case: _Case) -> None:
    fresh = case.copied()
    head = fresh.hypernet.head

    def drawn(fill: float, seed: int) -> dict[str, Tensor]:
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.fill_(fill)
        head.reset_parameters(FanOut(), fresh.generator(seed))
        return {name: value.detach().clone() for name, value in head.named_parameters()}

    first, again, other = drawn(1.0, 0), drawn(2.0, 0), drawn(1.0, 1)
    for name in first:
        _expect(
            torch.equal(first[name], again[name]),
            f"reset_parameters with the same generator gave two values of {name!r}; expected one. "
            "Set every parameter, and pass generator=generator to every draw.",
        )
    _expect(
        any(not torch.equal(first[name], other[name]) for name in first) or not first,
        "reset_parameters gave the same with two generators; expected two draws. Pass "
        "generator=generator to every draw.",
    )


def _binding(case: _Case) -> str:
    model = case.hypermodel()
    gamma = {**case.gamma(), **case.given}
    bound, theta = model.bind(**gamma), model.predict(**gamma)
    for name, tensor in theta.items():
        _expect(
            torch.equal(attribute(bound, name), tensor),
            f"The bound network holds another tensor at {name!r} than predict() gave.",
        )
    if not (case.args or case.kwargs):
        return "weights only: pass what forward takes, to compare outputs as well"
    twin = copy.deepcopy(model.primary)
    with torch.no_grad():
        for name, tensor in theta.items():
            attribute(twin, name).copy_(tensor)
    expected = _called(twin, case)
    for what, found in (
        ("bind(...)", _called(bound, case)),
        ("The model", _called(model, case, gamma)),
    ):
        _expect(
            len(found) == len(expected)
            and all(_equal(a, b, room=10.0) for a, b in zip(found, expected, strict=True)),
            f"{what} gave other outputs than a deep copy of the primary with the weights copied "
            "in. Look for weights that the primary keeps or computes outside of forward: caches, "
            "or what a function closes over.",
        )
    return "" if expected else "weights only: forward returned no tensors to compare"


def _called(
    network: Callable[..., Any], case: _Case, gamma: Mapping[str, Any] | None = None
) -> list[Tensor]:
    """The tensors in the output, with the same random numbers for every network."""
    torch.manual_seed(0)
    output = network(*case.args, **case.kwargs, **(gamma or {}))
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _primary(case: _Case) -> None:
    case = case.copied()
    model = case.hypermodel()
    gamma = {**case.gamma(), **case.given}

    def held() -> dict[str, Tensor]:
        return {**dict(model.primary.named_parameters()), **dict(model.primary.named_buffers())}

    tensors = held()
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    predicted = list(model.predict(**gamma).values())
    bound = model.bind(**gamma)
    if case.args or case.kwargs:
        _called(bound, case)
        _called(model, case, gamma)
    if any(tensor.requires_grad for tensor in predicted):
        torch.autograd.backward(predicted, [torch.ones_like(tensor) for tensor in predicted])
    after = held()
    changed = [
        name
        for name in {**before, **after}
        if after.get(name) is not tensors.get(name)
        or not torch.equal(after[name].nan_to_num(), before[name].nan_to_num())
    ]
    _expect(
        not changed,
        f"Predicting, binding and calling in eval mode changed {', '.join(map(repr, changed))} of "
        "the primary; expected nothing to change. Do not assign to weights in forward.",
    )


def _same(case: _Case, other: HyperModel | HyperNet, what: str) -> None:
    gamma = case.gamma((3,), seed=4)
    twin = _Case(other, case.given, case.args, case.kwargs)
    _compare(f"{what}, and the predictions differ", twin.predict(gamma), case.predict(gamma))


def _copies(case: _Case) -> None:
    other = copy.deepcopy(case.model)
    _same(case, other, "A deep copy must predict what the model does")
    shared = {id(p) for p in case.model.parameters()} & {id(p) for p in other.parameters()}
    _expect(
        not shared,
        f"A deep copy shares {len(shared)} parameters with the model; expected none. Leave "
        "__deepcopy__ to torch.nn.Module.",
    )


def _pickle(case: _Case) -> str:
    note, model = "", case.model
    if isinstance(model, HyperModel):
        try:
            pickle.dumps(model.primary)
        except Exception as error:  # not the hypernetwork's doing
            note = f"of the hypernetwork alone, since the primary cannot be: {_said(error)}"
            model = case.hypernet
    try:
        pickle.dumps(model)
    except Exception as error:
        if re.match(r"Can't (pickle|get) (local object|<)", str(error)):
            raise _SkippedError(
                f"pickle finds classes and functions by name only, in a module: {error}"
            ) from None
        raise _FailedError(
            f"The model cannot be pickled ({_said(error)}); expected that it can, since this is "
            "how it reaches a process that is spawned. Keep files, locks and the like out of its "
            "attributes."
        ) from None
    return note


def _state(case: _Case) -> None:
    for path, module in case.hypernet.named_modules():
        loose = [name for name, value in vars(module).items() if isinstance(value, Tensor)]
        _expect(
            not loose,
            f"{path or 'The hypernetwork'} keeps the tensors {', '.join(map(repr, loose))} as "
            "plain attributes, which are not saved and not moved; expected none. Make them "
            "parameters, or buffers with register_buffer.",
        )
    other = case.copied()
    other.hypernet.head.reset_parameters(FanOut(), other.generator(5))
    with torch.no_grad():
        for value in other.model.state_dict().values():
            if value.is_floating_point():
                value.add_(1.0)
    other.model.load_state_dict(case.model.state_dict())
    _same(case, other.model, "After load_state_dict(state_dict()) a copy must predict the same")


def _precision(case: _Case) -> None:
    dtype = case.hypernet.dtype
    if case.hypernet.device.type == "mps":
        raise _SkippedError("the device has no float64")
    other = torch.float32 if dtype == torch.float64 else torch.float64
    moved = case.copied()
    moved.model.to(other)
    finer = case if dtype == torch.float64 else moved
    gamma = finer.gamma((3,), seed=6)
    expected, found = (
        one.predict(
            {name: v if v.dtype == torch.int64 else v.to(kind) for name, v in gamma.items()}
        )
        for one, kind in ((case, dtype), (moved, other))
    )
    for name, tensor in found.items():
        _expect(
            tensor.dtype == other,
            f"After model.to({other}) {name!r} was predicted as {tensor.dtype}; expected {other}. "
            "Make new tensors with the dtype of the features.",
        )
    _compare(
        f"model.to({other}) must change predictions by rounding only; they differ",
        found,
        expected,
        room=4.0,  # the inputs are rounded as well
    )


def _determinism(case: _Case) -> None:
    gamma = {**case.gamma(), **case.given}
    _compare(
        "In eval mode the same inputs must give the same weights, and two calls differ",
        case.predict(gamma),
        case.predict(gamma),
    )
    if isinstance(case.model, HyperModel) and (case.args or case.kwargs):
        outputs = [case.model(*case.args, **case.kwargs, **gamma) for _ in range(2)]
        pair = [[t for t in pytree.tree_leaves(o) if isinstance(t, Tensor)] for o in outputs]
        _expect(
            all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(*pair, strict=True)),
            "In eval mode two calls of the model with the same arguments gave two outputs; "
            "expected one. Use what follows self.training, such as torch.nn.Dropout.",
        )


_CHECKS: Mapping[str, Callable[[_Case], str | None]] = {
    "inputs": _inputs,
    "encoding": _encoding,
    "norm": _norm,
    "predictions": _predictions,
    "batches": _batches,
    "dependence": _dependence,
    "gradients": _gradients,
    "initialisation": _initialisation,
    "reset": _reset,
    "binding": _binding,
    "primary": _primary,
    "copies": _copies,
    "pickle": _pickle,
    "state": _state,
    "precision": _precision,
    "determinism": _determinism,
}
