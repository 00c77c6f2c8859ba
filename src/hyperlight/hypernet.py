"""The hypernetwork: inputs, encoding, trunk, head, named tensors."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import keyword
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ._torch import is_sharded
from .categories import embedded, grow, replace_in, table_of
from .encodings import CosSin, Encoding, Identity
from .errors import (
    ConfigurationError,
    InputError,
    check_integer,
    did_you_mean,
    listed,
    sharded,
)
from .heads import Dense, Head, find_head
from .init import Init, find_init, gain_of, kaiming_fan_out_
from .inputs import Categorical, Input, as_batch_shape
from .memory import refuse_oversize
from .widths import Directions, Hidden, find_widths

Activation = str | nn.Module | Callable[[], nn.Module]

ACTIVATIONS: dict[str, type[nn.Module]] = {
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


class HyperNet(nn.Module):
    r"""A network that predicts named tensors from its inputs: ``gamma -> {name: Tensor}``.

    .. math:: \Delta\theta = h(\gamma; \omega) = \mathrm{head}(\mathrm{trunk}(E(\gamma)))

    It stands alone; :func:`~hyperlight.hypernetize` couples one with a primary. With
    ``directions=r`` the head reads a linear projection of the last hidden layer. A
    :class:`~hyperlight.Dense` head then predicts

    .. math:: \Delta\theta = \sum_{i=1}^r c_i(\gamma) B_i

    with learned coordinates :math:`c(\gamma)` and as many learned directions :math:`B_i` (the
    columns of its weight): ``r`` weights for every predicted one. The paper's architecture
    (section 5.2) is ``hidden=(16, 128)`` without directions: 128 weights for every predicted one.

    Args:
        inputs: what it is conditioned on, by name.
        shapes: the shape of every tensor to predict, by name.
        hidden: the widths of the hidden layers; ``"auto"`` is (64, 128).
        directions: the number of directions ``r``, or ``None`` for a head that reads the last
            hidden layer itself. ``"auto"`` goes by the inputs (:func:`directions_for`) if
            ``hidden`` is ``"auto"``, and otherwise is ``None``. Heads that are no larger
            without, such as :class:`~hyperlight.LowRank`, have none.
        activation: a name, a module (copied for every layer) or a class of one.
        encoding: a module from ``(..., d)`` to ``(..., output_size(d))``; ``None`` is the
            classical formulation (:class:`~hyperlight.Identity`). It is given all inputs but
            categories, which have embeddings.
        head: the last layer, or several by glob over names.
        init: the initialisation of the head: ``"fan_out"``, ``"zero"``, ``"hyperfan_in"``,
            ``"hyperfan_out"``, an object such as ``hl.Relative(0.1, scales={...})``, or a
            function of a tensor's name and shape that returns a standard deviation. ``None``
            leaves all parameters uninitialised, for values that are loaded next.
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
        hidden: Hidden = "auto",
        directions: Directions = "auto",
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
        sizes = [(space.n, space.features or 1) for space in categories]
        self.embeddings = nn.ModuleList(
            nn.Embedding(*size, dtype=dtype, device=device)
            if found is not None
            # A draw takes time, and on the meta device it makes torch import its compiler.
            else nn.Embedding(*size, _weight=torch.empty(size, dtype=dtype, device=device))
            for size in sizes
        )
        size = sum(space.numel for space in self.inputs.values() if not space.discrete)
        encoded = _output_size(self.encoding, size, dtype, device) if size else 0
        encoded += sum(space.numel * (space.features or 1) for space in categories)
        # Weighted by their numbers, encoded numbers and embeddings have norm 1 together.
        total = size + sum(space.numel for space in categories)
        unit = getattr(self.encoding, "unit_norm", False)
        self._number_weight = (size / total) ** 0.5 if unit else 1.0
        self._category_weight = total**-0.5 if unit else 1.0
        last = find_head(head)
        widths = find_widths(hidden, directions, self.inputs.values(), self.shapes)
        layers, r = (encoded, *widths.hidden), widths.directions(last)
        refuse_oversize(last, layers, widths.directions, self.shapes, dtype=dtype, device=device)
        self.trunk = Trunk(encoded, widths.hidden, activation, skip, dtype, device)
        self.projection = (
            nn.Linear(layers[-1], r, bias=False, dtype=dtype, device=device) if r else None
        )
        self.head = last
        self.head.build(r or layers[-1], self.shapes, dtype=dtype, device=device)
        # Follows every move and cast, and is there when an outer bind has taken the parameters.
        self._like: Tensor
        self.register_buffer("_like", torch.empty(0, dtype=dtype, device=device), persistent=False)
        if found is not None and device.type != "meta":
            self.reset_parameters(found, generator)

    # --- prediction ---------------------------------------------------------------------

    def forward(self, **gamma: Any) -> dict[str, Tensor]:
        """Predict ``{name: batch_shape + shape}``.

        Args:
            gamma: every input, by name: a number, or a tensor of shape
                ``batch_shape + event_shape``.

        Raises:
            InputError: a name, type, shape, device or value that does not fit. Values that
                would have to be waited for, or that a graph is made for, are not refused: the
                nearest value inside the space takes their place (see :meth:`Input.nearest`).
        """
        return self.head.predict(self.features(**gamma))

    def features(self, **gamma: Any) -> Tensor:
        """What the head reads: ``batch_shape + (K,)``."""
        if is_sharded(self):
            raise sharded("The hypernetwork is")
        features: Tensor = self.trunk(self.encode(**gamma))
        if self.projection is not None:
            features = _apply(self.projection, features)
        return features

    def encode(self, **gamma: Any) -> Tensor:
        r"""What the first layer reads: :math:`E(\gamma)`, ``batch_shape + (encoded,)``."""
        values = self.collect(gamma)
        normalized = getattr(self.encoding, "normalized", True)
        embeddings = iter(self.embeddings)
        numbers: list[Tensor] = []
        categories: list[Tensor] = []
        for name, space in self.inputs.items():
            value = values[name]
            batch_shape, size = _batch_shape(space, value), space.numel
            if space.discrete:
                value = embedded(name, next(embeddings), value)
                size *= value.shape[-1]
            elif normalized:
                # With a dimension: PyTorch (2.13) gives the tangent of a float32 scalar that meets
                # a number in float64.
                value = space.normalize(value if value.ndim else value.reshape(1))
            (categories if space.discrete else numbers).append(value.reshape((*batch_shape, size)))
        if len(values) > 1:
            batch_shape = self._common_batch_shape(values)
        parts = [self.encoding(_joined(numbers, batch_shape))] if numbers else []
        if categories:
            parts = [part * self._number_weight for part in parts]
            parts += [part * self._category_weight for part in categories]
        return _joined(parts, batch_shape)

    def collect(self, gamma: Mapping[str, Any]) -> dict[str, Tensor]:
        """The inputs as tensors on the device of the hypernetwork, in declared order.

        Args:
            gamma: every input, by name: a number, or a tensor of shape
                ``batch_shape + event_shape``.

        Raises:
            InputError: a name, type, dtype, device or shape that does not fit; or a value,
                if reading it is free (see :meth:`Input.tensor`). Otherwise the nearest value
                inside takes its place.
        """
        for name in gamma:
            if name not in self.inputs:
                raise InputError(
                    f"{name!r} is not an input of this hypernetwork; its inputs are "
                    f"{listed(self.inputs)}.{did_you_mean(name, self.inputs)}"
                )
        dtype, device = self.dtype, self.device
        values = {}
        for name, space in self.inputs.items():
            if name not in gamma:
                raise InputError(
                    f"Hypernetwork input {name!r} is missing; given were "
                    f"{listed(gamma) or 'none'}. Pass {name}=..., for instance a draw from "
                    "model.sample()."
                )
            try:
                values[name] = space.tensor(gamma[name], dtype=dtype, device=device)
            except InputError as error:
                raise InputError(f"Hypernetwork input {name!r} {error}") from None
        return values

    def check(self, **gamma: Any) -> None:
        """Check names, types, shapes, devices and values, wherever the values are.

        ``forward`` does the same where reading values is free. Elsewhere (on an accelerator, in a
        graph) it replaces values outside by the nearest ones inside, which this refuses.

        Raises:
            InputError: says which input was wrong, how, and what to do.
        """
        for name, value in self.collect(gamma).items():
            try:
                self.inputs[name].check_values(value)
            except InputError as error:
                raise InputError(f"Hypernetwork input {name!r} {error}") from None

    def batch_shape(self, **gamma: Any) -> torch.Size:
        """The batch shape that the inputs have together; ``()`` for one set of weights."""
        return self._common_batch_shape(self.collect(gamma))

    def _common_batch_shape(self, values: Mapping[str, Tensor]) -> torch.Size:
        shapes = {name: _batch_shape(self.inputs[name], value) for name, value in values.items()}
        try:
            return torch.Size(torch.broadcast_shapes(*shapes.values()))  # type: ignore[no-untyped-call]
        except RuntimeError:
            found = ", ".join(f"{name}: {tuple(shape)}" for name, shape in shapes.items())
            raise InputError(
                f"The batch shapes of the hypernetwork inputs do not go together ({found}); "
                "expected shapes that broadcast, such as (8,) and (8,), or (8,) and ()."
            ) from None

    # --- sampling, initialisation -------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self._like.device

    def sample(
        self, batch_shape: int | Sequence[int] = (), *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Draw every input from its space: ``{name: batch_shape + event_shape}``.

        A single number of draws, such as 32, is the batch shape ``(32,)``. Draws are on the device
        and in the dtype of the hypernetwork. A CPU generator can be used on any device, so that
        runs on different devices see the same draws.
        """
        shape = as_batch_shape(batch_shape)
        drawn_on = self.device if generator is None else generator.device
        return {
            name: space.sample(shape, generator=generator, dtype=self.dtype, device=drawn_on).to(
                self.device
            )
            for name, space in self.inputs.items()
        }

    def reset_parameters(
        self, init: Init = "fan_out", generator: torch.Generator | None = None
    ) -> None:
        """Draw all parameters anew, as at construction.

        On the meta device construction draws nothing: call this after ``to_empty``.
        """
        found = find_init(init)
        self.trunk.reset_parameters(generator)
        if self.projection is not None:
            kaiming_fan_out_(self.projection.weight, 1.0, generator)
        for embedding in self.embeddings:
            assert isinstance(embedding, nn.Embedding)
            nn.init.normal_(embedding.weight, generator=generator)
        self.head.reset_parameters(found, generator)
        if found.measured:
            with torch.no_grad():
                draws = self.sample((1024,), generator=torch.Generator().manual_seed(0))
                self.head.calibrate(self.features(**draws), found)

    def extend(
        self,
        name: str,
        n: int = 1,
        *,
        like: Any = None,
        optimizer: Optimizer | None = None,
        generator: torch.Generator | None = None,
    ) -> nn.Parameter:
        """Add categories to an input: see :meth:`HyperModel.extend`."""
        if name not in self.inputs:
            raise InputError(
                f"{name!r} is not an input of this hypernetwork; its inputs are "
                f"{listed(self.inputs)}.{did_you_mean(name, self.inputs)}"
            )
        space = self.inputs[name]
        if not isinstance(space, Categorical):
            raise InputError(
                f"Hypernetwork input {name!r} was declared as {space!r}, which has no categories "
                "to add to; only a Categorical can be extended."
            )
        check_integer(f"extend({name!r}, n={{}})", n)
        if is_sharded(self):
            raise sharded("The hypernetwork is")
        spaces = [other for other, kind in self.inputs.items() if kind.discrete]
        embedding = self.embeddings[spaces.index(name)]
        old = table_of(embedding, optimizer)
        if like is not None:
            rows = self._rows_like(name, space, embedding, like, n)
        else:
            rows = old.detach().new_empty(n, old.shape[-1])
            if not rows.is_meta:
                nn.init.normal_(rows, generator=generator)
        new = grow(embedding, rows)
        self.inputs = {**self.inputs, name: dataclasses.replace(space, n=space.n + n)}
        if optimizer is not None:
            replace_in(optimizer, old, new)
        return new

    @torch.no_grad()
    def _rows_like(
        self, name: str, space: Categorical, embedding: nn.Module, like: Any, n: int
    ) -> Tensor:
        """The embedding of a category or a blend, ``n`` times."""
        one = dataclasses.replace(space, shape=())
        try:
            value = one.tensor(like, dtype=self.dtype, device=self.device)
            one.check_values(value)
        except InputError as error:
            raise InputError(f"extend({name!r}): like {error}") from None
        if _batch_shape(one, value) not in ((), (n,)):
            raise InputError(
                f"extend({name!r}): like has batch shape {tuple(_batch_shape(one, value))}; "
                f"expected (), or ({n},) for one start of each new category."
            )
        if value.is_floating_point():
            # As long as a fresh draw, so that a step turns it as far.
            rows = embedded(name, embedding, value) * (space.features or 1) ** 0.5
        else:
            rows = embedding(value)
        expanded: Tensor = rows.expand(n, rows.shape[-1])
        return expanded

    def extra_repr(self) -> str:
        spaces = ", ".join(f"{name}={space!r}" for name, space in self.inputs.items())
        total = sum(shape.numel() for shape in self.shapes.values())
        return f"inputs: {spaces}\npredicts: {total:,} entries in {len(self.shapes)} tensors"


def _apply(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a linear layer; one that was exchanged, such as a quantized one, takes no vectors."""
    if type(layer) is nn.Linear or x.ndim > 1:
        y: Tensor = layer(x)
        return y
    return _apply(layer, x.unsqueeze(0)).squeeze(0)


class Trunk(nn.Module):
    r"""Fully connected layers, each followed by the activation (paper, eq. 1).

    .. math:: x^{(k+1)} = \phi(W^{(k)} x^{(k)} + b^{(k)})

    With ``skip``, every layer whose input and output agree in size adds its input to its output;
    the paper's proportionality (eq. 3) holds for these too.
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
            y = _activated(activation, _apply(layer, x))
            x = x + y if self.skip and y.shape == x.shape else y
        return x

    def extra_repr(self) -> str:
        return "skip=True" if self.skip else ""


def _activated(activation: nn.Module, x: Tensor) -> Tensor:
    """Apply the activation; a PReLU with several slopes takes dimension 1 for the features."""
    several = isinstance(activation, nn.PReLU) and activation.num_parameters > 1
    rows = x.reshape(-1, x.shape[-1]) if several else x
    y: Tensor = activation(rows)
    return y.reshape(x.shape) if several else y


def _activation(given: Activation, dtype: torch.dtype, device: torch.device) -> nn.Module:
    if isinstance(given, str):
        if given not in ACTIVATIONS:
            raise ConfigurationError(
                f"activation was {given!r}; expected one of {listed(ACTIVATIONS, most=99)}, or a "
                f"module such as torch.nn.LeakyReLU(0.2).{did_you_mean(given, ACTIVATIONS)}"
            )
        made: object = ACTIVATIONS[given]()
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


def _batch_shape(space: Input, value: Tensor) -> torch.Size:
    return value.shape[: value.ndim - len(space.shape_of(value))]


def _joined(parts: Sequence[Tensor], batch_shape: torch.Size) -> Tensor:
    parts = [part.expand((*batch_shape, part.shape[-1])) for part in parts]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


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
