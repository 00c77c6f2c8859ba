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

An encoding is one class, too. It is given the inputs in [0, 1] unless it sets
``normalized = False``. If it sets ``unit_norm = True``, its norm is checked:

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
import itertools
import math
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ._torch import pytree
from .encoded import Encoded, map_tensors, tensors_of
from .encodings import Encoding, is_normalized
from .errors import ConfigurationError, HyperLightError
from .heads import dense
from .hypernet import HyperNet
from .init import Given, Zero
from .many import PerSample, Shared
from .model import HyperModel
from .targets import attribute

__all__ = ["CheckError", "CheckReport", "check_hypernet"]

_BATCHES: tuple[tuple[int, ...], ...] = ((), (1,), (3,), (2, 3))
# The factor by which a measured spread may be off: if all entries of a tensor depend on a few
# draws, only the few resets and features that are tried reduce its error.
_SPREAD = 2.0
_PLAIN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, Tensor)
_WAYS = {
    "batch": "once on the whole batch",
    "vmap": "every sample by itself, under torch.vmap",
    "loop": "one after another",
}
_SAMPLES = 4  # of a batch, each with a set of weights of its own
_Model = HyperModel | HyperNet


class CheckError(HyperLightError, AssertionError):
    """A model does not do what a hypernetwork must.

    Attributes:
        failures: by check: what was found, what was expected and what to do.
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
        skipped: the checks that could not be run, with the reason.
    """

    passed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        width = max(map(len, self.passed | self.skipped))
        return "\n".join(
            f"{name:<{width}}  {state}{': ' if note else ''}{note}"
            for state, notes in (("passed", self.passed), ("skipped", self.skipped))
            for name, note in notes.items()
        )


def check_hypernet(model: HyperModel | HyperNet, *args: Any, **kwargs: Any) -> CheckReport:
    """Check that a model does what a hypernetwork must, whatever parts it is made of.

    The model and the random number generators do not change. The checks run on copies, in eval
    mode, whose parameters are moved a little so that an initialisation at zero hides nothing. They
    hold several copies in memory and take seconds on a small model; check a scaled-down copy
    of a large one.

    ================== ==================================================================
    check              what must hold
    ================== ==================================================================
    ``inputs``         draws have their shapes, lie in their spaces, normalise to [0, 1]
    ``encoding``       it is given normalised inputs, or raw ones if it asks for them; its
                       size is the declared one; finite at the ends of every space
    ``norm``           the encoded vector has norm 1, if ``unit_norm`` claims it
    ``predictions``    declared names, order, shapes, dtypes; finite; the head's ``predict``,
                       ``add_to`` and ``forward`` agree; ``parameter_count`` adds up
    ``batches``        a batch of inputs equals the loop over it, for every batch shape
    ``dependence``     every predicted tensor changes with every input
    ``gradients``      every trained parameter of the hypernetwork and of ``theta0`` has a
                       finite gradient that is not all zero
    ``initialisation`` the predictions start with the spread that was asked for, within a
                       factor of 2; at zero for ``init="zero"``, from which they can train
    ``reset``          ``reset_parameters`` draws all of the head, and the same with the
                       same generator
    ``binding``        ``bind`` equals a deep copy of the primary with the weights copied in
    ``samples``        one set of weights per sample equals single sets, one by one: outputs
                       and gradients, twice. The report says how it ran
    ``primary``        predicting, binding and backward do not change it
    ``copies``         a deep copy predicts the same and has its own parameters
    ``pickle``         it can be pickled, as a spawned process requires
    ``state``          a copy that loads its ``state_dict()`` predicts the same
    ``precision``      so does the model after a move to float64, up to rounding
    ``determinism``    in eval mode the same inputs give the same weights and outputs
    ================== ==================================================================

    Args:
        model: the model, in any state of training.
        args: the arguments of the primary's forward, for the checks that call it. For
            ``samples`` they hold a batch, of which the first four are used. Wrap those that do
            not in :class:`~hyperlight.Shared`.
        kwargs: its keyword arguments, and inputs of the hypernetwork, as in a call of the
            model.

    Returns:
        The names of the checks that passed, and of those that could not be run.

    Raises:
        CheckError: lists every check that failed, with what was found, what was expected
            and what to do.

    >>> model = hl.hypernetize(nn.Linear(3, 2), inputs={"scale": hl.Uniform(0.0, 0.5)})
    >>> report = hl.testing.check_hypernet(model, torch.randn(5, 3))
    >>> len(report.passed), report.skipped
    (17, {})
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
    for name, space in model.inputs.items():
        if isinstance(space, Encoded) and space.examples is None:
            raise ConfigurationError(
                f"check_hypernet draws values of all inputs, and {name!r}, {space!r}, has no "
                f"examples. Build the model with calibrate_on={{{name!r}: batch}}."
            )
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    report, failures, checks = CheckReport(), {}, None
    with torch.random.fork_rng(sorted(devices, key=str)), torch.enable_grad():
        torch.manual_seed(0)
        try:
            checks = _Checks(copy.deepcopy(model).eval(), given, args, kwargs)
        except Exception as error:
            failures["copies"] = (
                f"copy.deepcopy of the model raised {_said(error)}. All checks run on a copy, so "
                "no other was made. Keep generators, locks and tensors with a graph out of it."
            )
        else:
            _move(checks.hypernet)
        for name in _CHECKS if checks else ():
            try:
                report.passed[name] = getattr(checks, name)() or ""
            except _SkippedError as skipped:
                report.skipped[name] = str(skipped)
            except _FailedError as failed:
                failures[name] = str(failed)
            except Exception as error:
                failures[name] = f"It must not raise, and it raised {_said(error)}."
    if failures:
        hypernet = model.hypernet if isinstance(model, HyperModel) else model
        lines = "".join(f"\n- {name}: {failure}" for name, failure in failures.items())
        raise CheckError(
            f"check_hypernet: {type(model).__name__} (encoding {type(hypernet.encoding).__name__}, "
            f"head {type(hypernet.head).__name__}) failed {len(failures)} of {len(_CHECKS)} "
            f"checks:{lines}",
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


def _pickling_error(thing: Any) -> str:
    try:
        pickle.dumps(thing)
    except Exception as error:
        return _said(error)
    return ""


def _unwrapped(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, (Shared, PerSample)) else leaf


def _tensors(output: Any) -> dict[str, Tensor]:
    leaves = enumerate(pytree.tree_leaves(output))
    return {f"output {i}": leaf for i, leaf in leaves if isinstance(leaf, Tensor)}


def _joined(ones: list[Tensor], whole: Tensor) -> Tensor:
    """Outputs for single samples along the dimension in which one for all of them is larger."""
    if not ones[0].ndim:  # numbers, of which there is one per sample where each runs by itself
        return torch.stack(ones)
    apart = [
        d for d in range(ones[0].ndim) if whole.ndim > d and whole.shape[d] != ones[0].shape[d]
    ]
    return torch.cat(ones, apart[0]) if apart else ones[0]


def _at(gamma: Mapping[str, Any], index: Any) -> dict[str, Any]:
    """The inputs of one sample, or of several."""
    return {n: map_tensors(lambda tensor: tensor[index], value) for n, value in gamma.items()}


@torch.no_grad()
def _move(hypernet: HyperNet) -> None:
    """Move every parameter from its initialisation, by a tenth of its scale."""
    for parameter in hypernet.parameters():
        scale = float(parameter.double().square().mean().sqrt()) or 0.1
        parameter.add_(torch.randn_like(parameter), alpha=0.1 * scale)


def _tolerance(dtype: torch.dtype) -> float:
    """The rounding error of a few hundred sums, relative to the largest entry."""
    return torch.finfo(dtype).eps ** 0.75 if dtype.is_floating_point else 0.0


def _equal(found: Tensor, expected: Tensor, room: float = 1.0) -> bool:
    """Whether two tensors agree up to rounding, relative to the largest entry."""
    kind = torch.promote_types(found.dtype, expected.dtype)
    atol = room * max(_tolerance(found.dtype), _tolerance(expected.dtype))
    if atol and expected.numel():
        atol *= float(expected.detach().abs().nan_to_num(posinf=0.0).max())
    return found.shape == expected.shape and torch.allclose(
        found.to(kind), expected.to(kind), rtol=0.0, atol=atol, equal_nan=True
    )


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise _FailedError(message)


def _expect_equal(
    what: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor], room: float = 1.0
) -> None:
    rounding = " by more than rounding" if room else ""
    for name in {**expected, **found}:
        same = name in found and name in expected and _equal(found[name], expected[name], room)
        _expect(same, f"{what} for {name!r}{rounding}.")


def _expect_finite(what: str, tensor: Tensor) -> None:
    finite = bool(tensor.isfinite().all())
    _expect(finite, f"{what} has infinite values or NaN; expected finite ones.")


def _expect_shape(
    what: str, found: Tensor, batch: tuple[int, ...], shape: Sequence[int], fix: str
) -> None:
    expected = (*batch, *shape)
    _expect(
        tuple(found.shape) == expected,
        f"{what} has shape {(*found.shape,)} for batch shape {batch}; expected {expected}. {fix}",
    )


def _expect_kind(what: str, found: Tensor, dtype: torch.dtype, device: torch.device) -> None:
    _expect(
        found.dtype == dtype and found.device == device,
        f"{what} is {found.dtype} on {found.device}; expected {dtype} on {device}. Make parameters "
        "with what make() is given, and other tensors like the features.",
    )


def _expect_spread(method: str, squares: Mapping[str, float], stds: Mapping[str, float]) -> None:
    for name, square in squares.items():
        found, asked = square**0.5, stds[name]
        _expect(
            asked / _SPREAD <= found <= asked * _SPREAD,
            f"After {method} the predictions of {name!r} have standard deviation {found:.3g}; "
            f"init.std(name, shape) asked for {asked:.3g}, to a factor of {_SPREAD:g}. Draw "
            "weights that give it for features of norm 1.",
        )


# Biases start at zero with fan_out, and a head that ignores the spread would pass for them.
_UNIT_NORM = Given(lambda name, shape: 1.0 / math.sqrt(max(shape.numel(), 1)))


class _Measured(Given):
    measured = True


class _Checks:
    """A model, and the checks of it: the public methods, named and ordered as in the report."""

    def __init__(
        self, model: _Model, given: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.model, self.given, self.args, self.kwargs = model, given, args, kwargs
        self.hypernet = model.hypernet if isinstance(model, HyperModel) else model
        self.theta0 = model.theta0 if isinstance(model, HyperModel) else {}

    def _copied(self) -> _Checks:
        return _Checks(copy.deepcopy(self.model), self.given, self.args, self.kwargs)

    def _hypermodel(self) -> HyperModel:
        if not isinstance(self.model, HyperModel):
            raise _SkippedError("a HyperNet has no primary")
        return self.model

    def _gamma(self, batch: Sequence[int] = (), seed: int = 0) -> dict[str, Any]:
        return self.hypernet.sample(batch, generator=torch.Generator().manual_seed(seed))

    def _grid(self) -> dict[str, Any]:
        """All inputs over their spaces, including the ends: batch shape (5,)."""
        gamma, dtype, device = self._gamma((5,)), self.hypernet.dtype, self.hypernet.device
        for name, space in self.hypernet.inputs.items():
            if not space.discrete and not isinstance(space, Encoded):
                gamma[name] = space.grid(5, dtype=dtype, device=device)
        return gamma

    def _predict(self, gamma: Mapping[str, Any]) -> dict[str, Tensor]:
        predict = self.model.predict if isinstance(self.model, HyperModel) else self.model
        return dict(predict(**gamma))

    def _outputs(self, network: Any, seed: int, /, **gamma: Any) -> dict[str, Tensor]:
        """The tensors in the output, with the random numbers of the seed."""
        torch.manual_seed(seed)
        args, kwargs = pytree.tree_map(_unwrapped, (self.args, self.kwargs))
        return _tensors(network(*args, **kwargs, **gamma))

    def _features(self, size: int, seed: int) -> Tensor:
        """Random directions, ``(size, K)``."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(size, self.hypernet.head.features, generator=generator)
        return nn.functional.normalize(drawn, dim=-1).to(self.hypernet.device, self.hypernet.dtype)

    def _generator(self, seed: int) -> torch.Generator:
        # Not the seeds of the features: the same draws in both would not be independent.
        return torch.Generator(self.hypernet.device).manual_seed(2**20 + seed)

    def _theta0(self) -> dict[str, Tensor]:
        """What the head alone is checked with: ones if it scales theta0, else zeros."""
        hypernet, kind = (
            self.hypernet,
            torch.zeros if self.hypernet.head.stands_alone else torch.ones,
        )
        options: Any = {"dtype": hypernet.dtype, "device": hypernet.device}
        return {name: kind(shape, **options) for name, shape in hypernet.shapes.items()}

    def _change(self, gamma: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the hypernetwork predicts alone."""
        if self.hypernet.head.stands_alone:
            return dict(self.hypernet(**gamma))
        return self.hypernet.head.change(self._theta0(), self.hypernet.features(**gamma))

    @torch.no_grad()
    def _squares(self, features: Tensor) -> dict[str, float]:
        predicted = self.hypernet.head.change(self._theta0(), features)
        return {name: float(t.double().square().mean()) for name, t in predicted.items()}

    def _same(self, other: _Checks, what: str) -> None:
        gamma = self._gamma((3,), seed=4)
        _expect_equal(what, other._predict(gamma), self._predict(gamma))

    # --- the checks -------------------------------------------------------------------------

    def inputs(self) -> None:
        for name, space in self.hypernet.inputs.items():
            if isinstance(space, Encoded):
                self._expect_encoder(name, space)
                continue
            for batch in _BATCHES:
                value, fix = self._gamma(batch)[name], "Correct sample() or event_shape."
                _expect_shape(f"A draw of {name!r}", value, batch, space.event_shape, fix)
                space.check_values(value)
            for value in () if space.discrete else (self._gamma((64,))[name], self._grid()[name]):
                low, high = (float(end) for end in torch.aminmax(space.normalize(value)))
                room = _tolerance(value.dtype)
                _expect(
                    -room <= low <= high <= 1.0 + room,
                    f"normalize() of {name!r} gave values from {low:.4g} to {high:.4g}; expected "
                    "[0, 1] (paper, section 4; arXiv:2304.07645). Correct standardize or support.",
                )

    def _expect_encoder(self, name: str, space: Encoded) -> None:
        for batch in _BATCHES:
            found = space.batch_shape_of(space.tensor(self._gamma(batch)[name], **self._kind()))
            _expect(
                found == batch, f"A draw of {name!r} has batch shape {found}; expected {batch}."
            )

    def _kind(self) -> dict[str, Any]:
        return {"dtype": self.hypernet.dtype, "device": self.hypernet.device}

    def encoding(self) -> None:
        hypernet, encoding, gamma = self.hypernet, self.hypernet.encoding, self._grid()
        numbers = {
            name: space
            for name, space in hypernet.inputs.items()
            if not space.discrete and not isinstance(space, Encoded)
        }
        if not numbers:
            raise _SkippedError("all inputs are categories or encoded, which have unit vectors")
        seen: list[tuple[Tensor, Tensor]] = []
        with encoding.register_forward_hook(lambda _, args, out: seen.append((args[0], out))):
            hypernet.encode(**gamma)
        _expect(len(seen) == 1, f"It was called {len(seen)} times by encode(); expected once.")
        ((given, encoded),) = seen
        asked = [is_normalized(encoding, index) for index in range(len(numbers))]
        pairs = zip(numbers.items(), asked, strict=True)
        values = [s.normalize(gamma[n]) if wanted else gamma[n] for (n, s), wanted in pairs]
        normalized = all(asked)
        expected = torch.cat([value.reshape(5, -1) for value in values], dim=-1)
        what = "mapped to [0, 1]" if normalized else "as the user passes them"
        _expect(
            _equal(given, expected),
            f"normalized is {normalized}, so it must be given inputs {what}; it was given others. "
            "Leave that to HyperNet.encode, and set normalized as a class attribute.",
        )
        count, size, fix = expected.shape[-1], encoded.shape[-1], "Join along dim=-1."
        if isinstance(encoding, Encoding):
            size, fix = encoding.output_size(count), "Correct output_size(), or join along dim=-1."
        for batch in _BATCHES:
            found = encoding(expected[0].expand((*batch, count)))
            _expect_shape(f"The encoding of {count} inputs", found, batch, (size,), fix)
        _expect_finite("The encoding of inputs over their spaces, including the ends,", encoded)

    def norm(self) -> str:
        encoded = [self.hypernet.encode(**gamma) for gamma in (self._grid(), self._gamma((64,)))]
        norms = torch.cat(encoded).detach().norm(dim=-1)
        low, high = (float(end) for end in torch.aminmax(norms))
        found, room = f"norms from {low:.4g} to {high:.4g}", _tolerance(norms.dtype)
        if not getattr(self.hypernet.encoding, "unit_norm", False):
            return f"{found}; none is claimed"
        _expect(
            1.0 - room <= low <= high <= 1.0 + room,
            f"unit_norm is claimed, and encoded inputs have {found}; expected 1. Divide by the "
            "norm, or set unit_norm = False.",
        )
        return "1 for all inputs, as claimed"

    def predictions(self) -> None:
        hypernet, head, shapes = self.hypernet, self.hypernet.head, self.hypernet.shapes
        dtype, device, order = hypernet.dtype, hypernet.device, list(self.theta0 or shapes)
        predicted = self._predict(self._gamma())
        _expect(
            list(predicted) == order,
            f"The names were {list(predicted)}; expected {order}, in this order. See self.shapes.",
        )
        for name, tensor in predicted.items():
            what = f"The prediction of {name!r}"
            _expect_shape(what, tensor, (), shapes[name], "Follow self.shapes.")
            _expect_kind(what, tensor, self.theta0[name].dtype if self.theta0 else dtype, device)
            _expect_finite(what, tensor)
        for name, parameter in hypernet.named_parameters():
            if name.startswith("encoders."):
                continue  # may have a dtype of its own
            _expect_kind(f"The parameter {name!r}", parameter, dtype, device)
        sizes, features = [shape.numel() for shape in shapes.values()], self._features(2, seed=0)
        if head.stands_alone:
            flat, parts = head(features), head.predict(features)
            _expect_shape(
                "The head's forward", flat, (2,), (sum(sizes),), "Concatenate along dim=-1."
            )
            split = zip(parts.items(), flat.split(sizes, dim=-1), strict=True)
            cut = {name: block.reshape_as(part) for (name, part), block in split}
            _expect_equal("The head's forward and predict() differ", cut, parts)
            method = "predict"
        else:
            parts, method = head.change(self._theta0(), features), "change"
        theta0 = self._theta0()
        sums = {name: dense(weight) for name, weight in head.add_to(theta0, features).items()}
        if not head.stands_alone:
            parts = {name: theta0[name] + part for name, part in parts.items()}
        _expect_equal(f"The head's add_to() and {method}() differ", sums, parts)
        counts = [head.parameter_count(name) for name in shapes]
        total = sum(parameter.numel() for parameter in head.parameters())
        own = sum(count or 0 for count in counts)
        _expect(
            own <= total if None in counts else own == total,
            f"parameter_count() adds up to {own:,} over all tensors, and the head has {total:,} "
            "parameters. Return None for tensors that have none of their own.",
        )

    def batches(self) -> None:
        shapes = self.hypernet.shapes
        for batch in _BATCHES:
            gamma = self._gamma(batch, seed=1)
            together, fix = self._predict(gamma), "Work on the last dimension only."
            for name, tensor in together.items():
                _expect_shape(f"{name!r}", tensor, batch, shapes[name], fix)
            indices = list(itertools.product(*map(range, batch)))
            loop = [self._predict(_at(gamma, index)) for index in indices]
            apart = {name: torch.stack([one[name] for one in loop]) for name in together}
            flat = {name: tensor.reshape_as(apart[name]) for name, tensor in together.items()}
            what = f"A batch of shape {batch} must equal the loop over it, and they differ"
            _expect_equal(what, flat, apart)

    def dependence(self) -> None:
        held = self._gamma(seed=2)
        for name in held:
            varied = self._gamma((16,), seed=3)[name]
            if all(bool((t == t[:1]).all()) for t in tensors_of(varied)):  # a single category
                continue
            for target, tensor in self._change({**held, name: varied}).items():
                apart = (tensor - tensor[:1]).detach().abs().max()
                _expect(
                    float(apart) > 1e-6 * float(tensor.detach().abs().max()),
                    f"The prediction of {target!r} is the same for all values of the input "
                    f"{name!r}; expected it to follow every input. Look for unused features, a "
                    "detach(), or an activation that is always zero.",
                )

    def gradients(self) -> None:
        named: dict[str, Tensor] = dict(self.hypernet.named_parameters("hypernet"))
        named |= {f"primary.{name}": p for name, p in self.theta0.items()}
        trained = {name: p for name, p in named.items() if p.requires_grad}
        if not trained:
            raise _SkippedError("no parameter requires a gradient")
        missing, parameters = dict(trained), list(trained.values())
        for seed in range(16):
            predicted = list(self._predict(self._gamma(seed=seed)).values())
            weights = [torch.randn_like(tensor) for tensor in predicted]
            largest = max(float(weight.abs().max()) for weight in weights)
            found = torch.autograd.grad(predicted, parameters, weights, materialize_grads=True)
            for name, gradient in zip(trained, found, strict=True):
                _expect_finite(f"The gradient of {name!r}", gradient)
                eps = torch.finfo(gradient.dtype).eps
                rounding = 8.0 * eps * largest if eps < 1e-6 else 0.0  # left when terms cancel
                if float(gradient.abs().max()) > rounding:
                    missing.pop(name, None)
            if not missing:
                return
        raise _FailedError(
            f"The gradient of {', '.join(map(repr, missing))} is zero whatever the inputs; "
            "expected every parameter to have one. Use it in forward without detach(), item() or "
            "no_grad(), remove it, or set requires_grad_(False)."
        )

    def initialisation(self) -> str:
        fresh = self._copied()
        head, shapes = fresh.hypernet.head, fresh.hypernet.shapes
        scales = itertools.cycle((1.0, 4.0, 16.0))
        stds = {n: _UNIT_NORM.std(n, shape) * next(scales) for n, shape in shapes.items()}
        entries = sum(shape.numel() for shape in shapes.values())
        resets, size = 64 if entries < 2**12 else 8, max(1, min(16, 2**22 // entries))
        squares = dict.fromkeys(shapes, 0.0)
        for seed in range(resets):
            head.reset_parameters(Given(lambda name, _: stds[name]), fresh._generator(seed))
            for name, square in fresh._squares(fresh._features(size, seed)).items():
                squares[name] += square / resets
        _expect_spread("reset_parameters", squares, stds)

        head.reset_parameters(Zero(), fresh._generator(0))
        changes = head.change(self._theta0(), fresh._features(2, seed=0))
        at_zero = torch.cat([change.flatten() for change in changes.values()])
        _expect(
            not bool(at_zero.any()),
            "With init='zero' predictions must be exactly zero, and they are not. Multiply by "
            "init.std(name, shape) in reset_parameters.",
        )
        trained = [p for p in head.parameters() if p.requires_grad]
        weights = torch.randn_like(at_zero)
        found = trained and torch.autograd.grad(at_zero, trained, weights, materialize_grads=True)
        _expect(
            not trained or any(bool(gradient.any()) for gradient in found),
            "With init='zero' no parameter of the head is given a gradient, so it could never "
            "train. Start one factor of a product at zero, not both.",
        )

        features = 2.0 * fresh._features(256 if entries < 2**16 else 16, seed=0)
        measured = _Measured(lambda name, _: stds[name])
        head.reset_parameters(measured, fresh._generator(0))
        try:
            head.calibrate(features, measured)
        except ConfigurationError:
            return "the head has no calibrate(), so it cannot start with init='relative'"
        _expect_spread("calibrate", fresh._squares(features), stds)
        return ""

    def reset(self) -> None:
        fresh = self._copied()
        head = fresh.hypernet.head

        def drawn(fill: float, seed: int) -> dict[str, Tensor]:
            for parameter in head.parameters():
                parameter.data.fill_(fill)
            head.reset_parameters(_UNIT_NORM, fresh._generator(seed))
            return {name: value.detach().clone() for name, value in head.named_parameters()}

        first, again, other = drawn(1.0, 0), drawn(2.0, 0), drawn(1.0, 1)
        for name in first:
            _expect(
                torch.equal(first[name], again[name]),
                f"reset_parameters with the same generator gave two values of {name!r}; expected "
                "one. Set every parameter, and pass generator=generator to every draw.",
            )
        _expect(
            not first or any(not torch.equal(first[name], other[name]) for name in first),
            "reset_parameters gave the same with two generators; expected two draws. Pass "
            "generator=generator to every draw.",
        )

    def binding(self) -> str:
        model, gamma = self._hypermodel(), {**self._gamma(), **self.given}
        bound, theta = model.bind(**gamma), model.predict(**gamma)
        twin = copy.deepcopy(model.primary)
        for name, tensor in theta.items():
            same = torch.equal(attribute(bound, name), tensor)
            _expect(same, f"bind() holds another tensor at {name!r} than predict() gave.")
            attribute(twin, name).data.copy_(tensor.detach())
        if not (self.args or self.kwargs):
            return "weights only: pass what forward takes, to compare outputs as well"
        expected = self._outputs(twin, 0)
        outputs = {"bind(...)": self._outputs(bound, 0)}
        outputs["The model"] = self._outputs(model, 0, **gamma)
        for name, found in outputs.items():
            what = f"{name} must give the outputs of a copy of the primary that holds the weights"
            what += ", whatever it keeps or computes outside of forward; they differ"
            _expect_equal(what, found, expected, room=10.0)
        return "" if expected else "weights only: forward returned no tensors to compare"

    def samples(self) -> str:
        model, size = self._hypermodel(), self._batch_size()
        gamma, spaces = self._gamma((size,), seed=7), self.hypernet.inputs
        for name, value in self.given.items():
            one = spaces[name].tensor(value, **self._kind())
            gamma[name] = spaces[name].expand(one, (size,))
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        ran = ""
        for order in (range(size), range(size - 1, -1, -1)):  # then in reverse, as another batch
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the report says how it ran
                    found = self._of_samples(model, order, gamma)
            except HyperLightError as refusal:
                raise _SkippedError(f"the model refuses it: {_said(refusal)}") from refusal
            run = model.last_run
            assert run is not None
            ran = f"{size} sets: {_WAYS[run.way]}" + (f", since {run.reason}" * bool(run.reason))
            ones = [self._of_samples(model, i, gamma) for i in order]
            expected = {
                name: _joined([one[name] for one in ones], tensor)
                for name, tensor in found.items()
                if tensor.ndim and name in ones[0]
            }
            if not expected:
                raise _SkippedError("forward returns no tensor with an entry for every sample")
            what = (
                f"With one set of weights per sample ({ran}) the model must give what it gives for "
                "one sample after another, each with its own set. What a network makes of the "
                "whole batch after its last predicted layer is no fault: leave it out of forward "
                "here. All else is a fault of HyperLight: please report it. They differ"
            )
            found = {name: found[name] for name in expected}
            _expect_equal(what, found, expected, room=10.0)
            traced = [name for name, tensor in expected.items() if tensor.requires_grad]
            if traced and named:
                weights = [torch.rand_like(expected[name]) for name in traced]
                gradients = [
                    torch.autograd.grad(
                        [tensors[name] for name in traced],
                        list(named.values()),
                        weights,
                        materialize_grads=True,
                    )
                    for tensors in (found, expected)
                ]
                own, theirs = (dict(zip(named, each, strict=True)) for each in gradients)
                _expect_equal(f"{what}, in the gradient", own, theirs, room=100.0)
        return ran

    def _batch_size(self) -> int:
        """The size of the batch among the arguments, and at most what the check is worth."""
        if not (self.args or self.kwargs):
            raise _SkippedError("pass what forward takes, with a batch of two or more")
        leaves, sizes = pytree.tree_leaves((self.args, self.kwargs)), set()
        for leaf in leaves:
            if isinstance(leaf, PerSample):
                sizes.add(leaf.value.shape[leaf.dim])
            elif isinstance(leaf, Tensor) and leaf.ndim:
                sizes.add(len(leaf))
            elif not isinstance(leaf, (Shared, *_PLAIN)):
                raise _SkippedError(
                    f"an argument is of class {type(leaf).__name__}, which the check cannot split "
                    "into samples; pass its tensors"
                )
        if len(sizes) != 1:
            found = " and ".join(map(str, sorted(sizes))) or "no"
            raise _SkippedError(
                f"the tensors among the arguments hold {found} samples; pass a batch, and wrap "
                "what all samples share in hl.Shared"
            )
        (size,) = sizes
        if size < 2:
            raise _SkippedError("the batch has one sample; pass two or more")
        return min(size, _SAMPLES)

    def _of_samples(
        self, model: HyperModel, which: Sequence[int] | int, gamma: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """The model's outputs for these samples, each with its own set; or for one of them."""
        rows = [which] if isinstance(which, int) else list(which)

        def chosen(leaf: Any) -> Any:
            if isinstance(leaf, PerSample):
                value = leaf.value.index_select(leaf.dim, torch.tensor(rows).to(leaf.value.device))
                return value if isinstance(which, int) else PerSample(value, leaf.dim)
            if isinstance(leaf, Shared):
                return leaf.value if isinstance(which, int) else leaf
            return leaf[rows] if isinstance(leaf, Tensor) and leaf.ndim else leaf

        args, kwargs = pytree.tree_map(chosen, (self.args, self.kwargs))
        index = which if isinstance(which, int) else rows
        own = _at(gamma, index)
        before = torch.get_rng_state()
        tensors = _tensors(model(*args, **kwargs, **own))
        if not torch.equal(torch.get_rng_state(), before):
            raise _SkippedError("forward draws random numbers in eval mode")
        return tensors

    def primary(self) -> None:
        copied = self._copied()
        model, gamma = copied._hypermodel(), {**self._gamma(), **self.given}

        def held() -> dict[str, Tensor]:
            return {**dict(model.primary.named_parameters()), **dict(model.primary.named_buffers())}

        tensors = held()
        before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        predicted, bound = model.predict(**gamma), model.bind(**gamma)
        if self.args or self.kwargs:
            copied._outputs(bound, 0)
            copied._outputs(model, 0, **gamma)
        if trained := [tensor.sum() for tensor in predicted.values() if tensor.requires_grad]:
            torch.autograd.backward(trained)
        after = held()
        changed = [
            name
            for name in before | after
            if after.get(name) is not tensors.get(name)
            or not torch.equal(after[name].nan_to_num(), before[name].nan_to_num())
        ]
        _expect(
            not changed,
            f"Predicting, binding and calling in eval mode changed {', '.join(map(repr, changed))} "
            "of the primary; expected nothing to change. Do not assign to weights in forward.",
        )

    def copies(self) -> None:
        other = self._copied()
        self._same(other, "A deep copy must predict what the model does; they differ")
        shared = set(self.model.parameters()) & set(other.model.parameters())
        _expect(
            not shared,
            f"A deep copy shares {len(shared)} parameters with the model; expected none. Leave "
            "__deepcopy__ to torch.nn.Module.",
        )

    def pickle(self) -> str:
        note, model = "", self.model
        if isinstance(model, HyperModel) and (error := _pickling_error(model.primary)):
            note = f"of the hypernetwork alone, since the primary cannot be: {error}"
            model = self.hypernet
        error = _pickling_error(model)
        if re.match(r"\w+: Can't (pickle|get) (local object|<)", error):
            raise _SkippedError(f"pickle finds code by name only, in a module: {error}")
        _expect(
            not error,
            f"The model cannot be pickled ({error}); expected that it can, to reach a spawned "
            "process. Keep files, locks and the like out of its attributes.",
        )
        return note

    def state(self) -> None:
        for path, module in self.hypernet.named_modules():
            loose = [name for name, value in vars(module).items() if isinstance(value, Tensor)]
            _expect(
                not loose,
                f"{path or 'The hypernetwork'} keeps the tensors {', '.join(map(repr, loose))} as "
                "plain attributes, which are not saved and not moved; expected none. Make them "
                "parameters, or buffers with register_buffer.",
            )
        other = self._copied()
        other.hypernet.head.reset_parameters(_UNIT_NORM, other._generator(5))
        for value in other.model.state_dict().values():
            if value.is_floating_point():
                value.add_(1.0)
        other.model.load_state_dict(self.model.state_dict())
        self._same(
            other, "After load_state_dict(state_dict()) a copy must predict the same; they differ"
        )

    def precision(self) -> None:
        dtype, device = self.hypernet.dtype, self.hypernet.device
        if device.type == "mps":
            raise _SkippedError("the device has no float64")
        other = torch.float32 if dtype == torch.float64 else torch.float64
        moved = self._copied()
        moved.model.to(other)
        gamma = (self if dtype == torch.float64 else moved)._gamma((3,), seed=6)
        found = moved._predict(gamma)
        for name, tensor in found.items():
            _expect_kind(f"{name!r}, predicted after model.to({other}),", tensor, other, device)
        what = f"model.to({other}) must change predictions by rounding only; they differ"
        # The inputs are rounded, too, and an encoder's outputs are small apart from their mean.
        room = 100.0 if self.hypernet.encoders else 4.0
        _expect_equal(what, found, self._predict(gamma), room=room)

    def determinism(self) -> None:
        gamma = {**self._gamma(), **self.given}
        what = "In eval mode the same inputs must give the same weights, and two calls differ"
        _expect_equal(what, self._predict(gamma), self._predict(gamma))
        if isinstance(self.model, HyperModel) and (self.args or self.kwargs):
            first, second = (self._outputs(self.model, seed, **gamma) for seed in (0, 1))
            what = "In eval mode two calls of the model must give the same outputs, and they differ"
            _expect_equal(what, first, second, room=0.0)


_CHECKS = [name for name in vars(_Checks) if not name.startswith("_")]
