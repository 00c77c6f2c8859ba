"""The hypernetwork: inputs, encoding, trunk, head, named tensors."""

from __future__ import annotations

import dataclasses
import keyword
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ._torch import buffers_kept, is_sharded
from .categories import embedded, grow, replace_in, table_of
from .encoded import Encoded, Encoder, UnitVectors, map_tensors
from .encodings import CosSin, Encode, Encoding, find_encoding, is_normalized
from .errors import (
    ConfigurationError,
    InputError,
    check_integer,
    did_you_mean,
    listed,
    sharded,
)
from .heads import Dense, Head, find_head
from .init import Init, find_init, kaiming_fan_out_
from .inputs import Categorical, Input, as_batch_shape
from .memory import refuse_oversize
from .trunk import Activation, OwnTrunk, Trunk, apply, build_trunk
from .widths import Directions, Hidden, find_widths


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
            hidden layer itself. ``"auto"`` goes by the inputs (docs/widths.md) if
            ``hidden`` is ``"auto"``, and otherwise is ``None``. Heads that are no larger
            without, such as :class:`~hyperlight.LowRank`, have none.
        activation: a name, a module (copied for every layer) or a class of one.
        encoding: a module from ``(..., d)`` to ``(..., output_size(d))``; ``None`` is the
            classical formulation (:class:`~hyperlight.Identity`). It is given all inputs but
            categories, which have embeddings, and :class:`~hyperlight.Encoded` ones. Or several
            by glob over inputs: ``{"level": hl.CosSin(), "*": None}``.
        head: the last layer, or several by glob over names.
        init: the initialisation of the head: ``"fan_out"``, ``"zero"``, ``"hyperfan_in"``,
            ``"hyperfan_out"``, an object such as ``hl.Relative(0.1, scales={...})``, or a
            function of a tensor's name and shape that returns a standard deviation. ``None``
            leaves all parameters uninitialised, for values that are loaded next.
        skip: residual connections in the trunk.
        trunk: layers of your own in place of ``hidden``, ``activation`` and ``skip``: a module
            from ``(B, encoded)`` to ``(B, K)``, or a function that makes one for the size
            ``encoded``. It is used as it is; :meth:`reset_parameters` leaves it alone unless it
            has a method of that name.
        calibrate_on: values from your data, ``(N,) + event_shape``, by input, for those that are
            :class:`~hyperlight.Encoded` or :class:`~hyperlight.Vector`. They tell where values
            lie and how far they spread.
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

    # The inputs hold encoders as they were given; what runs are those in ``encoders``.
    shared_when_bound = frozenset(("inputs",))

    def __init__(
        self,
        inputs: Mapping[str, Input],
        shapes: Mapping[str, Sequence[int]],
        *,
        hidden: Hidden = "auto",
        directions: Directions = "auto",
        activation: Activation = "leaky_relu",
        encoding: Encode = CosSin(),
        head: Head | Mapping[str, Head] = Dense(),
        init: Init | None = "fan_out",
        skip: bool = False,
        trunk: OwnTrunk | None = None,
        calibrate_on: Mapping[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.inputs = _calibrated(
            _checked_inputs(inputs), {} if calibrate_on is None else calibrate_on
        )
        self.shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
        if not self.shapes:
            raise ConfigurationError("shapes was empty; expected at least one tensor to predict.")
        found = None if init is None else find_init(init)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        device = torch.get_default_device() if device is None else torch.device(device)

        numbers = {name: space.numel for name, space in self.inputs.items() if _is_number(space)}
        self.encoding = find_encoding(encoding, numbers)
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
        self.encoders = nn.ModuleDict(
            {
                name: Encoder(name, space, dtype, device)
                for name, space in self.inputs.items()
                if isinstance(space, Encoded)
            }
        )
        size = sum(numbers.values())
        encoded = _output_size(self.encoding, size, dtype, device) if size else 0
        encoded += sum(space.numel * (space.features or 1) for space in categories)
        encoded += sum(space.features for _, space, _ in self._encoded())
        # Weighted by their numbers, encoded numbers and unit vectors have norm 1 together.
        total = size + sum(space.numel for space in categories) + len(self.encoders)
        unit = getattr(self.encoding, "unit_norm", False)
        self._number_weight = (size / total) ** 0.5 if unit else 1.0
        self._vector_weight = total**-0.5 if unit else 1.0
        last = find_head(head)
        own = None
        if trunk is not None:
            _refuse_beside_trunk(hidden, activation, skip)
            own, last_size = build_trunk(trunk, encoded, dtype, device)
            hidden = (last_size,)
        widths = find_widths(hidden, directions, self.inputs.values(), self.shapes)
        layers, r = (encoded, *widths.hidden), widths.directions(last)
        refuse_oversize(last, layers, widths.directions, self.shapes, dtype=dtype, device=device)
        self.trunk: Any = own or Trunk(encoded, widths.hidden, activation, skip, dtype, device)
        self.projection = nn.Linear(layers[-1], r, dtype=dtype, device=device) if r else None
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
        features = self._hidden(self.encode(**gamma))
        if self.projection is not None:
            features = apply(self.projection, features)
        return features

    def encode(self, **gamma: Any) -> Tensor:
        r"""What the first layer reads: :math:`E(\gamma)`, ``batch_shape + (encoded,)``."""
        values = self.collect(gamma)
        embeddings = iter(self.embeddings)
        numbers: list[Tensor] = []
        vectors: list[Tensor] = []
        for name, space in self.inputs.items():
            value = values[name]
            batch_shape = space.batch_shape_of(value)
            if isinstance(space, Encoded):
                vectors.append(self.encoders[name](value, batch_shape))
            elif space.discrete:
                rows = embedded(name, next(embeddings), value)
                vectors.append(rows.reshape((*batch_shape, rows.shape[-1] * space.numel)))
            else:
                if is_normalized(self.encoding, len(numbers)):
                    # With a dimension: PyTorch (2.13) gives the tangent of a float32 scalar that
                    # meets a number in float64.
                    value = space.normalize(value if value.ndim else value.reshape(1))
                numbers.append(value.reshape((*batch_shape, space.numel)))
        if len(values) > 1:
            batch_shape = self._common_batch_shape(values)
        parts = [self.encoding(_joined(numbers, batch_shape))] if numbers else []
        if vectors:
            parts = [part * self._number_weight for part in parts]
            parts += [vector * self._vector_weight for vector in vectors]
        return _joined(parts, batch_shape)

    def _hidden(self, encoded: Tensor) -> Tensor:
        """The last hidden layer; a trunk of the user's own sees one batch dimension."""
        if isinstance(self.trunk, Trunk):
            hidden: Tensor = self.trunk(encoded)
            return hidden
        hidden = self.trunk(encoded.reshape((-1, encoded.shape[-1])))
        return hidden.reshape((*encoded.shape[:-1], hidden.shape[-1]))

    def _encoded(self) -> Iterator[tuple[str, Encoded, Encoder]]:
        """The inputs that pass through networks, with these."""
        for name, encoder in self.encoders.items():
            space = self.inputs[name]
            assert isinstance(space, Encoded)
            assert isinstance(encoder, Encoder)
            yield name, space, encoder

    def collect(self, gamma: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs as tensors on the device of the hypernetwork, in declared order.

        Only the value of an :class:`~hyperlight.Encoded` input may be several, as it was given.

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

    def unit_vectors(self, name: str, value: Any) -> UnitVectors:
        """What the network of an input gives for a value, to pass in its place many times.

        Raises:
            InputError: the value does not fit.
        """
        space = self.inputs[name]
        try:
            value = space.tensor(value, dtype=self.dtype, device=self.device)
        except InputError as error:
            raise InputError(f"Hypernetwork input {name!r} {error}") from None
        return UnitVectors(self.encoders[name](value, space.batch_shape_of(value)))

    def batch_shape(self, **gamma: Any) -> torch.Size:
        """The batch shape that the inputs have together; ``()`` for one set of weights."""
        return self._common_batch_shape(self.collect(gamma))

    def _common_batch_shape(self, values: Mapping[str, Any]) -> torch.Size:
        shapes = {name: self.inputs[name].batch_shape_of(value) for name, value in values.items()}
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
    ) -> dict[str, Any]:
        """Draw every input from its space: ``{name: batch_shape + event_shape}``.

        A single number of draws, such as 32, is the batch shape ``(32,)``. Draws are on the device
        and in the dtype of the hypernetwork. A CPU generator can be used on any device, so that
        runs on different devices see the same draws.
        """
        shape = as_batch_shape(batch_shape)
        drawn_on = self.device if generator is None else generator.device
        draws = {}
        for name, space in self.inputs.items():
            try:
                drawn = space.sample(shape, generator=generator, dtype=self.dtype, device=drawn_on)
            except InputError as error:
                raise InputError(f"Hypernetwork input {name!r} {error}") from None
            draws[name] = map_tensors(lambda tensor: tensor.to(self.device), drawn)
        return draws

    def reset_parameters(
        self, init: Init = "fan_out", generator: torch.Generator | None = None
    ) -> None:
        """Draw all parameters anew, as at construction, and measure the examples of encoders.

        The weights of modules of your own, encoders and a trunk, stay as they are. On the meta
        device construction draws nothing: call this after ``to_empty``.
        """
        found = find_init(init)
        if isinstance(self.trunk, Trunk):
            self.trunk.reset_parameters(generator)
        elif hasattr(self.trunk, "reset_parameters"):
            self.trunk.reset_parameters()
        if self.projection is not None:
            kaiming_fan_out_(self.projection.weight, 1.0, generator)
            nn.init.zeros_(self.projection.bias)
        for embedding in self.embeddings:
            assert isinstance(embedding, nn.Embedding)
            nn.init.normal_(embedding.weight, generator=generator)
        for _, space, encoder in self._encoded():
            encoder.calibrate(space)
        self.head.reset_parameters(found, generator)
        if found.measured:
            with torch.no_grad(), buffers_kept(self):
                self.head.calibrate(self.features(**self.draws()), found)

    def draws(self, count: int | None = None) -> dict[str, Any]:
        """So many draws of all inputs, always the same, to measure on.

        Unlike :meth:`sample`, it draws unit vectors for encoders without examples. The default is
        1024 draws, or 256 if each passes through a network.
        """
        if count is None:
            count = 256 if self.encoders else 1024
        generator = torch.Generator().manual_seed(0)
        without = {name: e for name, space, e in self._encoded() if space.examples is None}
        draws: dict[str, Any] = {
            name: without[name].random_vectors(count, generator)
            if name in without
            else space.sample((count,), generator=generator, dtype=self.dtype, device="cpu")
            for name, space in self.inputs.items()
        }
        return {
            name: map_tensors(lambda tensor: tensor.to(self.device), value)
            for name, value in draws.items()
        }

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
        if one.batch_shape_of(value) not in ((), (n,)):
            raise InputError(
                f"extend({name!r}): like has batch shape {tuple(one.batch_shape_of(value))}; "
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
        reserved = isinstance(space, Encoded) and hasattr(nn.ModuleDict, name)
        if name == "self" or reserved:
            raise ConfigurationError(f"A hypernetwork input cannot be called {name!r}; rename it.")
        if not isinstance(space, Input):
            raise ConfigurationError(
                f"Hypernetwork input {name!r} was declared as {space!r}; expected a space such as "
                "hl.Uniform(0.0, 1.0), hl.LogUniform(1e-4, 1.0), hl.Normal(32), hl.Vector(768), "
                "hl.Categorical(10) or hl.Encoded(module, features=64)."
            )
    return dict(inputs)


def _is_number(space: Input) -> bool:
    """Whether the encoding is given an input; categories and encoders have unit vectors."""
    return not space.discrete and not isinstance(space, Encoded)


def check_model(model: object) -> None:
    """Refuse what is no HyperModel, nor stands for one, as ``torch.compile(model)`` does."""
    if not isinstance(getattr(model, "hypernet", None), HyperNet):
        raise ConfigurationError(
            f"model was of type {type(model).__name__}; expected a HyperModel, as made by "
            "hypernetize. If it wraps one (DistributedDataParallel), pass the model inside."
        )


def _calibrated(inputs: dict[str, Input], values: Mapping[str, Any]) -> dict[str, Input]:
    if not isinstance(values, Mapping):
        raise ConfigurationError(
            f"calibrate_on was of type {type(values).__name__}; expected a batch for each input by "
            "name: calibrate_on={'image': batch}."
        )
    for name in values:
        if name not in inputs:
            raise ConfigurationError(
                f"calibrate_on held {name!r}, which is not an input; the inputs are "
                f"{listed(inputs)}.{did_you_mean(name, inputs)}"
            )
        try:
            inputs[name] = inputs[name].calibrated(values[name])
        except (ConfigurationError, InputError) as error:
            raise ConfigurationError(f"Hypernetwork input {name!r} {error}") from None
    return inputs


def _refuse_beside_trunk(hidden: Hidden, activation: Activation, skip: bool) -> None:
    given = {"hidden": hidden != "auto", "activation": activation != "leaky_relu", "skip": skip}
    names = [name for name, changed in given.items() if changed]
    if names:
        raise ConfigurationError(
            f"trunk was given beside {listed(names)}, which say how the library builds one. Leave "
            "them out, and make the layers in your trunk."
        )


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
