"""Arguments of a forward with one set of weights per sample: what holds the samples, and where."""

from __future__ import annotations

import contextlib
import inspect
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._torch import pytree
from ..errors import InputError
from .track import SHARED, UNKNOWN, Axis, Fact


@dataclass(frozen=True)
class Shared:
    """A tensor argument that all samples share, in a forward with one set of weights per sample.

    There, every tensor among the arguments is taken to hold one entry per sample in its first
    dimension; numbers, and tensors without dimensions, are shared. Wrap those that are not like
    that, such as a mask: ``model(x, hl.Shared(mask), gamma=g)``.

    >>> model = hl.hypernetize(nn.Bilinear(2, 3, 4), inputs={"g": hl.Uniform(0.0, 1.0)})
    >>> model(torch.rand(5, 2), hl.Shared(torch.rand(1, 3)), g=torch.rand(5)).shape
    torch.Size([5, 4])
    """

    value: Tensor


@dataclass(frozen=True)
class PerSample:
    """A tensor argument that holds its samples in another dimension than the first.

    For sequence-first data, or the state of a recurrent layer:
    ``model(hl.PerSample(x, dim=1), gamma=g)``.

    >>> model = hl.hypernetize(nn.GRU(2, 3), inputs={"g": hl.Uniform(0.0, 1.0)})
    >>> output, state = model(hl.PerSample(torch.rand(7, 5, 2), dim=1), g=torch.rand(5))
    >>> output.shape, state.shape
    (torch.Size([7, 5, 3]), torch.Size([1, 5, 3]))
    """

    value: Tensor
    dim: int

    def __post_init__(self) -> None:
        if not isinstance(self.value, Tensor):
            raise InputError(f"hl.PerSample was given {self.value!r}; expected a tensor.")
        rank = self.value.ndim
        whole = isinstance(self.dim, int) and not isinstance(self.dim, bool)
        if not whole or not -rank <= self.dim < rank:
            raise InputError(
                f"hl.PerSample(x, dim={self.dim!r}) was given a tensor of {rank} dimensions; "
                f"expected a dimension from {-rank} to {rank - 1}."
            )


def unwrap(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with one set of weights, without wrappers."""
    if any(isinstance(value, (Shared, PerSample)) for value in (*args, *kwargs.values())):
        args = tuple(map(_bare, args))
        kwargs = {name: _bare(value) for name, value in kwargs.items()}
    return args, kwargs


def _bare(value: Any) -> Any:
    return value.value if isinstance(value, (Shared, PerSample)) else value


@dataclass
class Arguments:
    """The arguments, opened: without wrappers, and with what is known of every tensor.

    Attributes:
        leaves: of the arguments and keyword arguments.
        facts: for every leaf, where a tensor holds its samples; None for other leaves.
        inside: tensors in objects that cannot be taken apart, with what is known of them.
        structure: of the leaves.
        signature: what calls alike have in common; None if that cannot be told.
    """

    leaves: list[Any]
    facts: list[Fact | None]
    inside: list[tuple[Tensor, Fact]]
    structure: Any
    signature: Any

    @property
    def form(self) -> tuple[Any, ...]:
        """What calls alike have in common whatever their sizes: ranks, and flags."""
        return tuple(
            [
                leaf.ndim if isinstance(leaf, Tensor) else leaf if isinstance(leaf, _FLAGS) else ""
                for leaf in self.leaves
            ]
        )

    @property
    def args(self) -> tuple[Any, ...]:
        args: tuple[Any, ...] = pytree.tree_unflatten(self.leaves, self.structure)[0]
        return args

    @property
    def kwargs(self) -> dict[str, Any]:
        kwargs: dict[str, Any] = pytree.tree_unflatten(self.leaves, self.structure)[1]
        return kwargs

    def call(self, function: Callable[..., Any], leaves: list[Any] | None = None) -> Any:
        """Call a function with the arguments, or with others in their place."""
        values = self.leaves if leaves is None else leaves
        args, kwargs = pytree.tree_unflatten(values, self.structure)
        return function(*args, **kwargs)


def open_arguments(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], samples: int, function: Callable[..., Any]
) -> Arguments:
    """Open the arguments of a call of ``function`` with one set of weights per sample.

    Raises:
        InputError: a tensor holds another number of entries than there are samples.
    """
    leaves, structure = pytree.tree_flatten((args, dict(kwargs)))
    facts: list[Fact | None] = [None] * len(leaves)
    inside: list[tuple[Tensor, Fact]] = []
    signature: list[Any] = []
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, Shared):
            facts[index], leaves[index] = SHARED, leaf.value
        elif isinstance(leaf, PerSample):
            facts[index], leaves[index] = Axis(leaf.dim % leaf.value.ndim), leaf.value
        elif isinstance(leaf, Tensor):
            facts[index] = Axis(0) if leaf.ndim else SHARED
        tensor, fact = leaves[index], facts[index]
        if isinstance(fact, Axis) and tensor.shape[fact.dim] != samples:
            name = _name(args, kwargs, index, function)
            raise InputError(_wrong_size(name, tensor, fact.dim, samples))
        if torch.compiler.is_compiling():
            continue
        if isinstance(tensor, Tensor):
            signature.append((fact, tensor.shape, tensor.dtype, tensor.requires_grad))
        elif isinstance(tensor, _ATOMS):
            signature.append(tensor)
        else:
            signature.append(None)
            inside += _of_object(leaf, samples)
    known = not any(
        value is None and leaf is not None for value, leaf in zip(signature, leaves, strict=False)
    )
    return Arguments(
        leaves, facts, inside, structure, (structure, tuple(signature)) if known else None
    )


def copy_arguments(
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    samples: int,
    layout_of: Callable[[int], Axis],
) -> tuple[Arguments, Axis | None]:
    """The arguments of a sweep, and how the data hold the copies for every set of weights.

    Tensors with as many entries in their first dimension as the first one are taken for the data:
    they are repeated for every set. All others are shared. A wrong guess is seen where the two
    meet.
    """
    leaves, structure = pytree.tree_flatten((args, dict(kwargs)))
    leaves = [leaf.value if isinstance(leaf, (Shared, PerSample)) else leaf for leaf in leaves]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    rows = next((tensor.shape[0] for tensor in tensors if tensor.ndim), None)
    layout = layout_of(rows) if rows else None
    facts: list[Fact | None] = [SHARED if isinstance(leaf, Tensor) else None for leaf in leaves]
    signature: list[Any] = []
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            signature.append((leaf.shape, leaf.dtype, leaf.requires_grad))
            if layout is not None and leaf.ndim and leaf.shape[0] == rows:
                at = 0 if layout.outer == 1 else 1  # where the copies go
                sizes = (*leaf.shape[:at], samples, *leaf.shape[at:])
                facts[index] = layout
                # Of one row the copies would stay a view, of other strides than a watched call's.
                leaves[index] = leaf.unsqueeze(at).expand(sizes).flatten(0, 1).contiguous()
        elif isinstance(leaf, _ATOMS):
            signature.append(leaf)
        else:
            layout = None  # an object, whose tensors would have to be copied
    known = None if layout is None else (structure, tuple(signature))
    return Arguments(leaves, facts, [], structure, known), layout


_ATOMS = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_FLAGS = (bool, str, type(None))
_DEPTH = 6


def _of_object(leaf: Any, samples: int) -> list[tuple[Tensor, Fact]]:
    """The tensors in an object: a batch of a class of its own, or a cache of keys and values.

    If every one of them holds one entry per sample, they are the samples'. If not, nothing is
    known of them.
    """
    found = tensors_inside(leaf)
    per_sample = all(t.ndim and t.shape[0] == samples for t in found if t.numel() > 1)
    facts: list[Fact] = [
        SHARED if t.numel() <= 1 else Axis(0) if per_sample else UNKNOWN for t in found
    ]
    return list(zip(found, facts, strict=True))


def tensors_inside(value: Any) -> list[Tensor]:
    """The tensors that an object holds."""
    return list(_search(value, _DEPTH, set()))


def _search(value: Any, depth: int, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and id(value) not in seen and not isinstance(value, (*_ATOMS, nn.Module, type)):
        seen.add(id(value))
        if isinstance(value, Mapping):
            parts: Any = value.values()
        elif isinstance(value, (list, tuple, set, frozenset, deque)):
            parts = value
        else:
            slots = [
                name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())
            ]
            parts = [getattr(value, name, None) for name in slots if isinstance(name, str)]
            parts += getattr(value, "__dict__", {}).values()
        for part in parts:
            yield from _search(part, depth - 1, seen)


def _name(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], index: int, function: Callable[..., Any]
) -> str:
    """What the user calls a leaf of the arguments."""
    path: Any = pytree.tree_flatten_with_path((args, dict(kwargs)))[0][index][0]
    kind, first, *rest = path
    if kind.idx == 1:
        name = str(first.key)
    else:
        name = f"number {first.idx + 1}"
        with contextlib.suppress(TypeError, ValueError):
            parameters = list(inspect.signature(function).parameters.values())
            own = parameters[first.idx] if first.idx < len(parameters) else None
            if own and own.kind in (own.POSITIONAL_ONLY, own.POSITIONAL_OR_KEYWORD):
                name = own.name
    return repr(name + pytree.keystr(tuple(rest))) if not name.startswith("number") else name


def _wrong_size(name: str, tensor: Tensor, dim: int, samples: int) -> str:
    where = "its first dimension" if dim == 0 else f"dimension {dim}"
    sets, entries = ("set", "entry") if samples == 1 else ("sets", "entries")
    one = " For one value for all samples give the input without that dimension, as in value[0]."
    return (
        f"Argument {name} has shape {tuple(tensor.shape)}; with {samples} {sets} of weights, one "
        f"per sample, expected {samples} {entries} in {where}.{one * (samples == 1)} Wrap a "
        "tensor that all samples share: model(x, hl.Shared(mask), ...); one that holds the samples "
        "elsewhere: hl.PerSample(x, dim=1). For the same data under every set use model.sweep."
    )
