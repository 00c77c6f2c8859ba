"""Inputs that are networks: a value passes through a module of the user's own.

The space of such an input is data: images, sets, texts. What the module gives for them is centred,
scaled and brought to norm 1, so that it weighs as much as any other input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from ._torch import buffers_kept
from .errors import ConfigurationError, InputError, check_integer
from .inputs import Input, as_batch_shape, is_read, spread_of

# Of more examples, so many are kept: they stay in memory with the model.
_EXAMPLES = 256


class UnitVectors(NamedTuple):
    """Unit vectors in place of values: what the module gave for some, or drawn at random."""

    vectors: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Encoded(Input):
    r"""A value that passes through a network, such as an image, a set or a text.

    .. math:: e = \frac{(z - \mu) / \sigma}{|(z - \mu) / \sigma|}, \quad z = \mathrm{module}(x)

    The module is used as it is and never copied: it becomes a part of the hypernetwork, under
    ``model.hypernet.encoders``. Gradients reach it, and it is trained, moved, cast and saved with
    the model. For a frozen one, freeze its parameters. The encoding of the other inputs is not
    applied to it. Beside them it counts as one scalar.

    An untrained network gives nearly the same for all values, and so would their weights be.
    Therefore :math:`\mu` and :math:`\sigma`, of every feature, are measured on examples when the
    model is made::

        hl.hypernetize(primary, {"image": hl.Encoded(cnn, features=64)},
                       calibrate_on={"image": images})

    Without examples they are 0 and 1. Examples are also what :meth:`sample` draws from. They are
    kept in memory (256 of them) but are not saved. Pass them to :func:`~hyperlight.load` again,
    with ``inputs={"image": hl.Encoded(cnn, features=64, examples=images)}``, to draw again.

    Args:
        module: maps a batch of values, ``(B, ...)``, to ``(B, features)``. It is called in its own
            mode (train or eval): in training mode, its BatchNorm sees the batch of values, and its
            Dropout draws for each. Floating-point values are cast to its dtype.
        features: how many numbers it gives.
        shape: the shape of one value, with ``None`` for a size that varies: ``(1, 28, 28)``,
            ``(None, 16)``. By default the examples say how many dimensions a value has; without
            them, every value is a batch ``(B, ...)``.
        examples: values from your data, ``(N, ...)``; ``calibrate_on`` sets them.

    Shape:
        A value is ``batch_shape + shape``. It may be several tensors, such as a padded set and its
        mask: a tuple is passed as ``module(*value)``, a dict as ``module(**value)``. ``shape`` is
        then a tuple or dict of shapes.

    >>> cnn = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 16))
    >>> images = torch.rand(32, 1, 8, 8)
    >>> model = hl.hypernetize(
    ...     nn.Linear(2, 1), {"image": hl.Encoded(cnn, features=16), "level": hl.Uniform()},
    ...     calibrate_on={"image": images})
    >>> model(torch.zeros(5, 2), image=images[0], level=0.3).shape      # one set of weights
    torch.Size([5, 1])
    >>> model(torch.zeros(5, 2), image=images[:5], level=0.3).shape     # one per image
    torch.Size([5, 1])
    """

    module: nn.Module
    features: int
    shape: Any = None
    examples: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.module, nn.Module):
            raise ConfigurationError(
                f"Encoded was given {self.module!r}; expected a module that maps a batch of values "
                "to (B, features), such as a torch.nn.Sequential."
            )
        check_integer("Encoded(features={})", self.features)
        object.__setattr__(self, "shape", _checked_shape(self.shape))
        if self.examples is not None:
            self._keep_examples()

    def _keep_examples(self) -> None:
        found = self._ordered(map_tensors(_as_tensor, self.examples))
        rows = {len(tensor) if tensor.ndim else 0 for tensor in tensors_of(found)}
        if len(rows) != 1 or rows == {0}:
            sizes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_of(found))
            raise ConfigurationError(
                f"Encoded was given examples of shape {sizes or 'none'}; expected tensors of shape "
                "(N, ...), with as many rows each."
            )
        (count,) = rows
        if self.shape is None:
            object.__setattr__(self, "shape", map_tensors(lambda t: (None,) * (t.ndim - 1), found))
        index = torch.linspace(0, count - 1, min(count, _EXAMPLES)).round().long()
        kept = found if count <= _EXAMPLES else map_tensors(lambda t: t[index.to(t.device)], found)
        kept = map_tensors(Tensor.detach, kept)
        try:
            self._check_shape(kept)
        except InputError as error:
            raise ConfigurationError(f"Encoded was given examples of which one {error}") from None
        object.__setattr__(self, "examples", kept)

    def __repr__(self) -> str:
        shape = "" if self.shape is None else f", shape={self.shape}"
        return f"Encoded({type(self.module).__name__}(...), features={self.features}{shape})"

    def config(self) -> dict[str, Any]:
        """What a file holds of it; the module is code, which is not saved."""
        return {"features": self.features, "shape": self.shape}

    def restored(self, config: Mapping[str, Any]) -> Encoded:
        """The same input with the shape in a file, unless it was declared with sizes of its own."""
        saved = _checked_shape(config.get("shape"))
        if self.shape is None:
            return replace(self, shape=saved)
        own, found = _shapes(self.shape), [] if saved is None else _shapes(saved)
        undeclared = all(size is None for shape in own for size in shape)
        same = list(map(len, own)) == list(map(len, found))
        return replace(self, shape=saved) if undeclared and same else self

    # --- values -----------------------------------------------------------------------------

    @property
    def numel(self) -> int:
        """The number of scalars that it counts as among the inputs, which is one."""
        return 1

    @property
    def support(self) -> tuple[float, float]:
        return -math.inf, math.inf

    def tensor(self, value: Any, *, dtype: torch.dtype, device: torch.device) -> Any:
        """Check a value: tensors on the device of the hypernetwork, of the declared shape."""
        if isinstance(value, UnitVectors):
            return value
        value = self._ordered(map_tensors(_as_tensor, value))
        for tensor in tensors_of(value):
            if tensor.device != device:
                raise InputError(
                    f"is on {tensor.device}, the hypernetwork on {device}. Move it with "
                    f".to({str(device)!r})."
                )
        self._check_shape(value)
        return value

    def _ordered(self, value: Any) -> Any:
        """A dict in the order of the declared one."""
        declared = self.shape
        if (
            isinstance(declared, dict)
            and isinstance(value, dict)
            and value.keys() == declared.keys()
        ):
            return {name: value[name] for name in declared}
        return value

    def _check_shape(self, value: Any) -> None:
        if self.shape is None:
            tensors = tensors_of(value)
            if not tensors or len({t.shape[:1] for t in tensors}) > 1 or not tensors[0].ndim:
                raise self._misfit(value)
            return
        if _form(value) != _form(None if _is_shape(self.shape) else self.shape):
            raise self._misfit(value)
        batches = set()
        for tensor, shape in zip(tensors_of(value), _shapes(self.shape), strict=True):
            batch = tensor.ndim - len(shape)
            pairs = zip(tensor.shape[batch:], shape, strict=True) if batch >= 0 else [(0, 1)]
            if not all(size is None or found == size for found, size in pairs):
                raise self._misfit(value)
            batches.add(tensor.shape[:batch])
        if len(batches) > 1:
            raise self._misfit(value)

    def _misfit(self, value: Any) -> InputError:
        shown = _shown(map_tensors(lambda t: tuple(t.shape), value))
        expected = "a batch of values, (B, ...), as no shape was declared"
        if self.shape is not None:
            expected = f"{_shown(self.shape)}, or the same batch shape before each"
        return InputError(
            f"has shape {shown}; expected {expected}, since it was declared as {self!r}."
        )

    def batch_shape_of(self, value: Any) -> torch.Size:
        if isinstance(value, UnitVectors):
            return value.vectors.shape[:-1]
        first = tensors_of(value)[0]
        if self.shape is None:
            return first.shape[:1]
        return first.shape[: first.ndim - len(_shapes(self.shape)[0])]

    def expand(self, value: Any, batch_shape: Sequence[int]) -> Any:
        own = len(self.batch_shape_of(value))
        return map_tensors(lambda t: t.expand((*batch_shape, *t.shape[own:])), value)

    def check_values(self, value: Any) -> None:
        """Nothing: masked entries may be anything. What the module gives is checked instead."""

    def nearest(self, value: Any) -> Any:
        return value

    def sample(
        self,
        batch_shape: int | Sequence[int] = (),
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Any:
        """Draw from the examples, each as likely; they keep their dtype and device.

        Raises:
            InputError: there are no examples.
        """
        shape = as_batch_shape(batch_shape)
        if self.examples is None:
            raise InputError(
                f"cannot be drawn, since {self!r} has no examples. Pass a batch of your values: "
                "hypernetize(..., calibrate_on={name: batch}), or, to load, "
                "inputs={name: hl.Encoded(module, features, examples=batch)}."
            )
        count = len(tensors_of(self.examples)[0])
        on = "cpu" if generator is None else generator.device
        index = torch.randint(count, shape, generator=generator, device=on)
        return map_tensors(lambda t: t[index.to(t.device)], self.examples)

    def calibrated(self, values: Any) -> Encoded:
        return replace(self, examples=values)

    def standardize(self, value: Tensor) -> Tensor:
        self._refuse("coordinate")

    def unstandardize(self, coordinate: Tensor) -> Tensor:
        self._refuse("coordinate")

    def quantile(self, p: Tensor) -> Tensor:
        self._refuse("quantiles")

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(
            f"has no {what}, since it was declared as {self!r}. Pass values of your own."
        )


class Encoder(nn.Module):
    """The module of an :class:`Encoded` input, and what brings its outputs to norm 1.

    Attributes:
        module: the user's module.
        centre: the mean of every feature over the examples.
        scale: their standard deviation.
    """

    centre: Tensor
    scale: Tensor
    _like: Tensor

    def __init__(self, name: str, space: Encoded, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.name, self.features, self.module = name, space.features, space.module
        held = (*self.module.parameters(), *self.module.buffers())
        elsewhere = next((t.device for t in held if t.device != device), device)
        if elsewhere != device and device.type != "meta":
            raise ConfigurationError(
                f"The module of the input {name!r} is on {elsewhere}, the hypernetwork on "
                f"{device}. Move it first: module.to({str(device)!r})."
            )
        kind = next((t.dtype for t in held if t.is_floating_point()), dtype)
        # Follows every move and cast, and is there when an outer bind has taken the parameters.
        self.register_buffer("_like", torch.empty(0, dtype=kind, device=device), persistent=False)
        factory: dict[str, Any] = {"dtype": dtype, "device": device}
        self.register_buffer("centre", torch.zeros(space.features, **factory))
        self.register_buffer("scale", torch.ones(space.features, **factory))

    def forward(self, value: Any, batch_shape: torch.Size) -> Tensor:
        """The unit vector for every value: ``batch_shape + (features,)``."""
        if isinstance(value, UnitVectors):
            return value.vectors
        features = self._encoded(value, batch_shape).to(self.centre.dtype)
        if is_read(features) and not bool(features.isfinite().all()):
            self._refuse_infinite(value)
        features = (features - self.centre) / self.scale
        norm = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
        # At zero, such as for an empty set, the gradient is that of the features.
        return features / torch.where(norm > 0.0, norm, 1.0)

    def _refuse_infinite(self, value: Any) -> None:
        """Refuse NaN that comes from the value; that of weights passes on, as everywhere."""
        if not all(bool(tensor.isfinite().all()) for tensor in tensors_of(value)):
            raise InputError(
                f"Hypernetwork input {self.name!r} holds NaN or infinity, and so does what "
                f"{type(self.module).__name__} gave for it. Find where it became so before it "
                "reaches the model; masked entries may be anything."
            )

    def _encoded(self, value: Any, batch_shape: torch.Size) -> Tensor:
        """What the module gives: ``batch_shape + (features,)``."""
        own = len(batch_shape)

        def batch(tensor: Tensor) -> Tensor:
            if tensor.is_floating_point():
                tensor = tensor.to(self._like.dtype)
            return tensor.unsqueeze(0) if own == 0 else tensor.flatten(0, own - 1)

        given = map_tensors(batch, value)
        if isinstance(given, Mapping):
            found = self.module(**given)
        else:
            found = self.module(*given) if isinstance(given, tuple) else self.module(given)
        rows = tensors_of(given)[0].shape[0]
        if (
            not isinstance(found, Tensor)
            or found.shape != (rows, self.features)
            or not found.is_floating_point()
        ):
            what = type(found).__name__
            if isinstance(found, Tensor):
                what = f"a tensor of shape {tuple(found.shape)} and {found.dtype}"
            shown = _shown(map_tensors(lambda t: tuple(t.shape), given))
            raise ConfigurationError(
                f"The module of the input {self.name!r}, {type(self.module).__name__}, gave {what} "
                f"for a batch of shape {shown}; expected a floating-point tensor of shape "
                f"({rows}, {self.features}), as declared by features={self.features}."
            )
        return found.reshape((*batch_shape, self.features))

    @torch.no_grad()
    def calibrate(self, space: Encoded) -> None:
        """Measure centre and scale on the examples; the module's buffers are left alone."""
        if space.examples is None:
            self.centre.zero_()
            self.scale.fill_(1.0)
            return
        value = map_tensors(lambda t: t.to(self.centre.device), space.examples)
        with buffers_kept(self.module):
            found = self._encoded(value, space.batch_shape_of(value))
        try:
            centre, scale = spread_of(found)
        except ConfigurationError as error:
            raise ConfigurationError(f"Hypernetwork input {self.name!r} {error}") from None
        self.centre.copy_(centre)
        self.scale.copy_(scale)

    def random_vectors(self, count: int, generator: torch.Generator) -> UnitVectors:
        """Random unit vectors."""
        drawn = torch.randn(count, self.features, generator=generator, dtype=torch.float64)
        return UnitVectors(nn.functional.normalize(drawn, dim=-1).to(self.centre))

    def extra_repr(self) -> str:
        return f"features={self.features}"


# --- values that are one tensor, a tuple or a dict of them -----------------------------------


def map_tensors(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to every tensor of a value."""
    if isinstance(value, UnitVectors):
        return UnitVectors(function(value.vectors))
    if isinstance(value, Mapping):
        return {name: function(tensor) for name, tensor in value.items()}
    return tuple(map(function, value)) if isinstance(value, tuple) else function(value)


def row_of(value: Any, index: int) -> Any:
    """One of many values."""
    return map_tensors(lambda tensor: tensor[index], value)


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of a value."""
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, tuple) else [value]


def _as_tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        if isinstance(value, (str, bytes, type(None), Mapping)):
            raise TypeError
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"was of type {type(value).__name__}; expected a tensor, or a tuple or dict of tensors."
        ) from None


def _is_shape(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(
        size is None or (isinstance(size, int) and not isinstance(size, bool) and size > 0)
        for size in value
    )


def _checked_shape(given: Any) -> Any:
    """The declared shape or shapes, with tuples for what JSON and users give as lists."""
    if given is None:
        return None
    if isinstance(given, int) and _is_shape((given,)):
        return (given,)
    if _is_shape(given):
        return tuple(given)
    shapes = map_tensors(lambda shape: tuple(shape) if _is_shape(shape) else None, _as_tuple(given))
    if not isinstance(shapes, (tuple, dict)) or not shapes or None in tensors_of(shapes):
        raise ConfigurationError(
            f"Encoded(shape={given!r}): expected the sizes of one value, with None for one that "
            "varies, as in (1, 28, 28) or (None, 16); or a tuple or dict of these."
        )
    return shapes


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _shapes(shape: Any) -> list[tuple[int | None, ...]]:
    if _is_shape(shape):
        return [shape]
    return list(shape.values() if isinstance(shape, Mapping) else shape)


def _form(value: Any) -> Any:
    """What tells values apart in form: one tensor, so many, or these names."""
    if isinstance(value, Mapping):
        return sorted(value)
    return len(value) if isinstance(value, tuple) else None


def _shown(shape: Any) -> str:
    if isinstance(shape, Mapping):
        return f"{{{', '.join(f'{name!r}: {each}' for name, each in shape.items())}}}"
    return str(shape)
