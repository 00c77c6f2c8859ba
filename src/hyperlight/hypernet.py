"""The hypernetwork: inputs -> encoding -> trunk -> head -> named tensors."""

from __future__ import annotations

import copy
import itertools
import keyword
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .encodings import CosSin, Encoding, Identity
from .errors import ConfigurationError, InputError, did_you_mean, listed
from .heads import Dense, Factors, Head, find_head
from .init import Init, find_init, gain_of, kaiming_fan_out_
from .inputs import Categorical, Input
from .memory import refuse_oversize
from .precision import widest

__all__ = ["Activation", "HyperNet"]

Activation = str | nn.Module | Callable[[], nn.Module]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}


class Trunk(nn.Module):
    r"""Fully connected layers, each followed by the activation (paper, eq. 1).

    .. math:: x^{(k+1)} = \phi(W^{(k)} x^{(k)} + b^{(k)})

    With ``skip``, every layer whose input and output agree in size adds its
    input to its output; the paper's proportionality (eq. 3) holds for these too.
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        activation: Activation,
        skip: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        sizes = [inputs, *hidden]
        self.skip = skip
        self.layers = nn.ModuleList(
            nn.Linear(a, b, dtype=dtype, device=device) for a, b in itertools.pairwise(sizes)
        )
        self.activations = nn.ModuleList(_activation(activation, dtype, device) for _ in hidden)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Kaiming initialisation in fan-out mode, biases at zero (paper, section 5.2)."""
        for layer, activation in zip(self.layers, self.activations, strict=True):
            assert isinstance(layer, nn.Linear)
            kaiming_fan_out_(layer.weight, gain_of(activation), generator)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        for layer, activation in zip(self.layers, self.activations, strict=True):
            y = _activated(activation, layer(x))
            x = x + y if self.skip and y.shape == x.shape else y
        return x

    def extra_repr(self) -> str:
        return "skip=True" if self.skip else ""


def _activated(activation: nn.Module, x: Tensor) -> Tensor:
    """A PReLU with a slope for every feature takes the second dimension for that of features."""
    several = isinstance(activation, nn.PReLU) and activation.num_parameters > 1
    rows = x.reshape(-1, x.shape[-1]) if several else x
    y: Tensor = activation(rows)
    return y.reshape(x.shape) if several else y


def _activation(given: Activation, dtype: torch.dtype, device: torch.device) -> nn.Module:
    if isinstance(given, str):
        if given not in _ACTIVATIONS:
            raise ConfigurationError(
                f"activation was {given!r}; expected one of {listed(_ACTIVATIONS, most=99)}, or a "
                f"module such as torch.nn.LeakyReLU(0.2).{did_you_mean(given, _ACTIVATIONS)}"
            )
        made: object = _ACTIVATIONS[given]()
    else:
        try:
            made = copy.deepcopy(given) if isinstance(given, nn.Module) else given()
        except TypeError:  # a function of a tensor
            made = given
    if not isinstance(made, nn.Module):
        raise ConfigurationError(
            f"activation gave {made!r}; expected a name, a torch.nn.Module or a class of one. "
            "Instead of torch.nn.functional.elu pass torch.nn.ELU."
        )
    return made.to(device=device, dtype=dtype)


class HyperNet(nn.Module):
    r"""A network that predicts named tensors from its inputs: ``gamma -> {name: Tensor}``.

    .. math:: \Delta\theta = h(\gamma; \omega) = \mathrm{head}(\mathrm{trunk}(E(\gamma)))

    with the architecture and initialisation of section 5.2 of the paper by
    default. It stands alone; :func:`~hyperlight.hypernetize` couples one with a primary.

    Args:
        inputs: what it is conditioned on, by name.
        shapes: the shape of every tensor to predict, by name.
        hidden: the widths of the hidden layers.
        activation: a name, a module (copied for every layer) or a class of one.
        encoding: a module from ``(..., d)`` to ``(..., output_size(d))``;
            ``None`` is the classical formulation (:class:`~hyperlight.Identity`).
            It is given all inputs but categories, which have embeddings.
        head: the last layer, or several by glob over names.
        init: the initialisation of the head: ``"fan_out"``, ``"zero"``, ``"hyperfan_in"``,
            ``"hyperfan_out"``, an object such as ``hl.Relative(0.1, scales={...})``, or a
            function of a tensor's name and shape that returns a standard deviation.
            ``None`` leaves all parameters as the memory was, for values that are loaded next.
        skip: residual connections in the trunk.
        dtype: of its parameters; the default is :func:`torch.get_default_dtype`.
        device: of its parameters.
        generator: draws the initial weights; the default is PyTorch's own.

    Shape:
        Every input ``batch_shape + event_shape``; batch shapes broadcast. The
        outputs are ``batch_shape + shape``.

    >>> net = hl.HyperNet({"noise": hl.Normal(4)}, {"w": (3, 2), "b": (3,)})
    >>> {name: tuple(t.shape) for name, t in net(noise=torch.zeros(5, 4)).items()}
    {'w': (5, 3, 2), 'b': (5, 3)}
    """

    def __init__(
        self,
        inputs: Mapping[str, Input],
        shapes: Mapping[str, Sequence[int]],
        *,
        hidden: Sequence[int] = (16, 128),
        activation: Activation = "leaky_relu",
        encoding: nn.Module | None = CosSin(),
        head: Head | Mapping[str, Head] = Dense(),
        init: Init | None = "fan_out",
        skip: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.inputs = _checked_inputs(inputs)
        self.shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
        if not self.shapes:
            raise ConfigurationError("shapes was empty; expected at least one tensor to predict.")
        if not all(isinstance(n, int) and n > 0 for n in hidden):
            raise ConfigurationError(
                f"hidden was {hidden!r}; expected the widths of the hidden layers, as in (16, 128)."
            )
        if encoding is not None and not isinstance(encoding, nn.Module):
            raise ConfigurationError(
                f"encoding was {encoding!r}; expected a module such as CosSin(), "
                "or None for the classical formulation."
            )
        found = None if init is None else find_init(init)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        device = torch.get_default_device() if device is None else torch.device(device)

        self.encoding = Identity() if encoding is None else copy.deepcopy(encoding)
        self.encoding.to(device=device, dtype=dtype)
        categories = [space for space in self.inputs.values() if isinstance(space, Categorical)]
        self.embeddings = nn.ModuleList(
            nn.Embedding(space.n, space.features or 1, dtype=dtype, device=device)
            for space in categories
        )
        size = sum(space.numel for space in self.inputs.values() if not space.discrete)
        encoded = _output_size(self.encoding, size, dtype, device) if size else 0
        encoded += sum(space.numel * (space.features or 1) for space in categories)
        total = size + sum(space.numel for space in categories)
        unit = getattr(self.encoding, "unit_norm", False)
        self._shares = ((size / total) ** 0.5, total**-0.5) if unit else (1.0, 1.0)
        layers, last = (encoded, *hidden), find_head(head)
        refuse_oversize(last, layers, self.shapes, dtype=dtype, device=device)
        self.trunk = Trunk(encoded, hidden, activation, skip, dtype, device)
        self.head = last
        self.head.build(layers[-1], self.shapes, dtype=dtype, device=device)
        # Follows every move and cast, and is there when an outer bind has taken the parameters.
        self._like: Tensor
        self.register_buffer("_like", torch.empty(0, dtype=dtype, device=device), persistent=False)
        if found is not None and device.type != "meta":
            self.reset_parameters(found, generator)

    def reset_parameters(
        self, init: Init = "fan_out", generator: torch.Generator | None = None
    ) -> None:
        """Draw all parameters anew, as at construction.

        On the meta device construction draws nothing: call this after ``to_empty``.
        """
        found = find_init(init)
        self.trunk.reset_parameters(generator)
        for embedding in self.embeddings:
            assert isinstance(embedding, nn.Embedding)
            nn.init.normal_(embedding.weight, generator=generator)
        self.head.reset_parameters(found, generator)
        if found.measured:
            with torch.no_grad():
                draws = self.sample((1024,), generator=torch.Generator().manual_seed(0))
                self.head.calibrate(self.features(**draws), found)

    # --- inputs -------------------------------------------------------------

    def sample(
        self, batch_shape: Sequence[int] = (), *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Draw every input from its space: ``{name: batch_shape + event_shape}``.

        On the device and in the dtype of the hypernetwork. A CPU generator can
        be used whatever the device, so that runs on different devices see the same draws.
        """
        dtype, device = self._placement()
        drawn_on = device if generator is None else generator.device
        return {
            name: space.sample(batch_shape, generator=generator, dtype=dtype, device=drawn_on).to(
                device
            )
            for name, space in self.inputs.items()
        }

    def check(self, **gamma: Any) -> None:
        """Check names, types, shapes, devices and values, wherever the values are.

        ``forward`` does the same, except for the values of tensors that cannot
        be read for free: on an accelerator, which it would have to wait for,
        and while a graph is being captured (compile, export, vmap).

        Raises:
            InputError: says which input was wrong, how, and what to do.
        """
        for name, value in self._collect(gamma).items():
            self.inputs[name].check_values(name, value)

    def _placement(self) -> tuple[torch.dtype, torch.device]:
        return self._like.dtype, self._like.device

    def _collect(self, gamma: Mapping[str, Any]) -> dict[str, Tensor]:
        """The inputs as tensors in declared order, checked as far as that is free."""
        for name in gamma:
            if name not in self.inputs:
                raise InputError(
                    f"{name!r} is not an input of this hypernetwork; its inputs are "
                    f"{listed(self.inputs)}.{did_you_mean(name, self.inputs)}"
                )
        dtype, device = self._placement()
        values = {}
        for name, space in self.inputs.items():
            if name not in gamma:
                raise InputError(
                    f"Hypernetwork input {name!r} is missing; given were "
                    f"{listed(gamma) or 'none'}. Pass {name}=..., for instance a draw from "
                    "model.sample()."
                )
            values[name] = _as_tensor(name, space, gamma[name], dtype, device)
        return values

    # --- prediction ---------------------------------------------------------

    def encode(self, **gamma: Any) -> Tensor:
        r"""What the first layer sees: :math:`E(\gamma)`, of shape ``batch_shape + (encoded,)``."""
        values = self._collect(gamma)
        batch_shape = self._batch_shape(values)
        normalized = getattr(self.encoding, "normalized", True)
        numbers, embedded = [], []
        embeddings = iter(self.embeddings)
        for name, space in self.inputs.items():
            value = values[name]
            if space.discrete:
                value = F.normalize(next(embeddings)(value), dim=-1)
                size = space.numel * value.shape[-1]
                value = value.reshape(
                    (*value.shape[: value.ndim - len(space.event_shape) - 1], size)
                )
                embedded.append(value.expand((*batch_shape, size)))
                continue
            if normalized:
                value = space.normalize(value)
            value = value.expand(batch_shape + space.event_shape)
            numbers.append(value.reshape((*batch_shape, space.numel)))
        flat = [self.encoding(_joined(numbers))] if numbers else []
        if embedded:  # by their shares, so that a vector of norm 1 keeps it
            of_numbers, of_category = self._shares
            flat = [part * of_numbers for part in flat] + [part * of_category for part in embedded]
        return _joined(flat)

    def features(self, **gamma: Any) -> Tensor:
        """What the head reads: ``batch_shape + (K,)``."""
        features: Tensor = self.trunk(self.encode(**gamma))
        return features

    def forward(self, **gamma: Any) -> dict[str, Tensor]:
        """Predict ``{name: batch_shape + shape}``.

        Args:
            gamma: every input, by name: a number, or a tensor of shape
                ``batch_shape + event_shape``.

        Raises:
            InputError: a name, type, shape, device or value that does not fit.
        """
        return self.head.predict(self.features(**gamma))

    def factored(self, **gamma: Any) -> Mapping[str, Tensor | Factors]:
        """As :meth:`forward`, with matrices of low rank left as their factors."""
        return self.head.factored(self.features(**gamma))

    def batch_shape(self, **gamma: Any) -> torch.Size:
        """The batch shape that inputs have together; ``()`` for one set of weights."""
        return self._batch_shape(self._collect(gamma))

    def _batch_shape(self, values: Mapping[str, Tensor]) -> torch.Size:
        shapes = {
            name: value.shape[: value.ndim - len(self.inputs[name].event_shape)]
            for name, value in values.items()
        }
        try:
            return torch.Size(torch.broadcast_shapes(*shapes.values()))  # type: ignore[no-untyped-call]
        except RuntimeError:
            found = ", ".join(f"{name}: {tuple(shape)}" for name, shape in shapes.items())
            raise InputError(
                f"The batch shapes of the hypernetwork inputs do not go together ({found}); "
                "expected shapes that broadcast, such as (8,) and (8,), or (8,) and ()."
            ) from None

    def extra_repr(self) -> str:
        spaces = ", ".join(f"{name}={space!r}" for name, space in self.inputs.items())
        total = sum(shape.numel() for shape in self.shapes.values())
        return f"inputs: {spaces}\npredicts: {total:,} entries in {len(self.shapes)} tensors"


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=-1)


def _checked_inputs(inputs: Mapping[str, Input]) -> dict[str, Input]:
    if not isinstance(inputs, Mapping) or not inputs:
        raise ConfigurationError(
            f"inputs was {inputs!r}; expected names and spaces, as in "
            "inputs={'scale': hl.Uniform(0.0, 0.5)}."
        )
    for name, space in inputs.items():
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            raise ConfigurationError(
                f"Hypernetwork input {name!r} cannot be a keyword argument; expected a name such "
                "as 'scale'."
            )
        if name == "self":
            raise ConfigurationError("A hypernetwork input cannot be called 'self'; rename it.")
        if not isinstance(space, Input):
            raise ConfigurationError(
                f"Hypernetwork input {name!r} was declared as {space!r}; expected a space such as "
                "hl.Uniform(0.0, 1.0), hl.LogUniform(1e-4, 1.0), hl.Normal(32), hl.Vector(768) or "
                "hl.Categorical(10)."
            )
    return dict(inputs)


def _output_size(encoding: nn.Module, size: int, dtype: torch.dtype, device: torch.device) -> int:
    if isinstance(encoding, Encoding):
        return encoding.output_size(size)
    with torch.no_grad():
        encoded = encoding(torch.full((1, size), 0.5, dtype=dtype, device=device))
    if not isinstance(encoded, Tensor) or encoded.ndim != 2 or encoded.shape[0] != 1:
        found = tuple(encoded.shape) if isinstance(encoded, Tensor) else type(encoded).__name__
        raise ConfigurationError(
            f"The encoding {type(encoding).__name__} gave {found} for an input of shape "
            f"(1, {size}); expected a module from (..., {size}) to (..., features)."
        )
    return encoded.shape[-1]


def _as_tensor(
    name: str, space: Input, value: Any, dtype: torch.dtype, device: torch.device
) -> Tensor:
    event, given = space.event_shape, value
    if not isinstance(value, Tensor):
        tracing = torch.compiler.is_compiling()
        if isinstance(value, bool) or value is None or isinstance(value, str):
            raise InputError(
                f"Hypernetwork input {name!r} was {value!r}; expected a number or a tensor of "
                f"shape {event} or batch shape + {event}."
            )
        if tracing or isinstance(value, numbers.Real):
            if not tracing:
                space.check_number(name, float(value))
            kind = torch.int64 if space.discrete else dtype
            number = torch.full((), value, dtype=kind, device=device)
            if event:
                raise InputError(
                    f"Hypernetwork input {name!r} was the number {value!r}; expected a tensor of "
                    f"shape {event}, since it was declared as {space!r}."
                )
            return number
        try:  # numbers in lists keep their precision, arrays have their own
            value = torch.as_tensor(value)
            if value.is_floating_point() and isinstance(given, (list, tuple)):
                value = torch.as_tensor(given, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(
                f"Hypernetwork input {name!r} was of type {type(given).__name__}; expected a "
                f"number or a tensor of shape {event} or batch shape + {event}."
            ) from None
        keep = space.discrete or value.is_complex() or value.is_floating_point()
        kind = value.dtype if keep else dtype
        value = value.to(device, widest(device) if kind == torch.float64 else kind)
    if space.discrete:
        if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            raise InputError(
                f"Hypernetwork input {name!r} has dtype {value.dtype}; expected integers, since "
                f"it was declared as {space!r}. Convert it: {name}.long()."
            )
        dtype = torch.int64
    elif not value.is_floating_point():
        raise InputError(
            f"Hypernetwork input {name!r} has dtype {value.dtype}; expected a floating-point "
            f"tensor. Convert it: {name}.float()."
        )
    if value.device != device:
        raise InputError(
            f"Hypernetwork input {name!r} is on {value.device}, the hypernetwork on {device}. "
            f"Move it: {name}.to({str(device)!r})."
        )
    if value.ndim < len(event) or value.shape[value.ndim - len(event) :] != event:
        raise InputError(
            f"Hypernetwork input {name!r} has shape {tuple(value.shape)}; expected {event}, or "
            f"batch shape + {event}, since it was declared as {space!r}."
        )
    if _readable(value):
        space.check_values(name, value)
    tensor: Tensor = value.to(dtype)
    return tensor


def _readable(value: Tensor) -> bool:
    """Whether looking at the values costs nothing and does not break a graph."""
    return (
        value.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and type(value) in (Tensor, nn.Parameter)
        and not torch._C._functorch.is_batchedtensor(value)
    )
