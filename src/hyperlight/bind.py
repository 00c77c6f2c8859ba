"""Binding: predicted tensors in place of a module's parameters.

A bound module is a shallow copy of the module tree. Every module is a new object with the
attributes, hooks and mode (train or eval) of the original; buffers and the parameters that are
not predicted are shared. The predicted tensors stand where the parameters were, so
``next(self.parameters()).device`` and ``state_dict()`` mean the same as before. The original is
never changed, so exceptions, nested use, threads and activation checkpointing are right by
construction. Swapping tensors in and back, as :func:`torch.func.functional_call` does, is not.

References that a module keeps outside its registered children (a bound method as an attribute, a
partial, a list or dict of modules or parameters) are followed and rewritten to the copies. A
reference that cannot be followed, such as a closure over a module, is refused when the plan is
made. Hooks are given the bound module as their argument; bound methods and partials among them
are rewritten too.

Activation checkpointing must be the kind that PyTorch recommends, ``use_reentrant=False``. The
reentrant kind runs a backward pass for each segment, all the way through the hypernetwork, and
PyTorch stops at the second.
"""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._torch import is_batched
from .errors import BindError, did_you_mean, listed
from .heads import LowRankWeight, Weight, dense
from .targets import attribute

_M = TypeVar("_M", bound=nn.Module)

_ATOMS = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
# The attributes of nn.Module itself. The plan handles children and parameters, and hooks apart.
_OWN = frozenset(nn.Module().__dict__)
_HOOKS = tuple(sorted(name for name in _OWN if name.endswith("_hooks")))

# Hooks run by __call__; copied, since a forward (as in transformers) or a caller may add some.
_CALL_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

StandIn = tuple[type[nn.Module], Mapping[str, Any]]

_Signature = tuple[type[nn.Module], int, int, int, int]


class _LowRankLinear(nn.Linear):
    """A bound linear layer that applies the two factors of its weight one after another."""

    _low_rank: LowRankWeight

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self._low_rank.dense()

    def forward(self, input: Tensor) -> Tensor:
        return self._low_rank.linear(input, self.bias)


class _PaddedEmbedding(nn.Embedding):
    """A bound embedding under vmap, with its padding row detached.

    PyTorch (2.13) keeps the gradient from the padding row of the first set of weights only.
    """

    def forward(self, input: Tensor) -> Tensor:
        rows = torch.arange(self.num_embeddings, device=self.weight.device).unsqueeze(-1)
        weight = torch.where(rows.eq(self.padding_idx or 0), self.weight.detach(), self.weight)
        return F.embedding(
            input, weight, None, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse
        )


@dataclass(frozen=True)
class _Node:
    """A module of the tree, by name and not by identity.

    The plan then fits any module of the same structure: a deep copy, or a copy that an outer bind
    has made.
    """

    path: str
    leaves: tuple[tuple[str, str], ...]
    children: tuple[tuple[str, _Node], ...]
    watch: tuple[str, ...]
    signature: _Signature
    affected: bool
    weight: str | None  # which tensor is its weight, if the layer may need a stand-in


class BindPlan:
    """A plan of where tensors go in a module tree; made once, used for every forward.

    Args:
        module: the module to bind into.
        places: for every tensor, by the name it has in :meth:`bind`, all the names of the
            parameter that it replaces.

    Raises:
        BindError: the module keeps references that cannot be followed.
    """

    def __init__(self, module: nn.Module, places: Mapping[str, Iterable[str]]) -> None:
        self.places = {name: tuple(aliases) for name, aliases in places.items()}
        self._root = _plan(module, self.places)

    def bind(
        self,
        module: _M,
        tensors: Mapping[str, Weight],
        stand_ins: Mapping[str, StandIn] | None = None,
    ) -> _M:
        """A bound copy of ``module`` with ``tensors`` in place of its parameters.

        A low-rank weight of a linear layer stays in its factors.

        Args:
            module: of the structure that the plan was made for.
            tensors: by the names of the plan.
            stand_ins: for modules of the tree, by path: the class of the copy, and attributes
                that it has beside those of the module.
        """
        copies: _Copies = {}
        compiling = torch.compiler.is_compiling()
        bound: _M | None = _copy(module, self._root, tensors, copies, compiling, stand_ins)
        if bound is None:
            self._root = _plan(module, self.places)
            return self.bind(module, tensors, stand_ins)
        _rewrite(copies, tensors)
        return bound


def bind(module: _M, tensors: Mapping[str, Tensor]) -> _M:
    """Return a copy of ``module`` that uses ``tensors`` in place of its parameters.

    The module itself is not touched; gradients flow to ``tensors`` and to the parameters that are
    still shared. For many calls on the same module keep the plan: see :class:`BindPlan`, which
    :class:`~hyperlight.HyperModel` uses.

    Args:
        module: any eager :class:`torch.nn.Module`.
        tensors: a tensor for every name in ``module.named_parameters()`` that is
            to be replaced, of the same shape. Other names of the same parameter follow.

    Raises:
        BindError: a name is unknown or a shape differs, or the module cannot be bound.

    >>> linear = nn.Linear(2, 1, bias=False)
    >>> hl.bind(linear, {"weight": torch.ones(1, 2)})(torch.tensor([1.0, 2.0]))
    tensor([3.])
    """
    named = dict(module.named_parameters(remove_duplicate=False))
    aliases: dict[int, list[str]] = {}
    for name, parameter in named.items():
        aliases.setdefault(id(parameter), []).append(name)
    for name, tensor in tensors.items():
        if name not in named:
            raise BindError(
                f"{type(module).__name__} has no parameter {name!r}; it has {listed(named)}."
                f"{did_you_mean(name, named)}"
            )
        if tensor.shape != named[name].shape:
            raise BindError(
                f"The tensor for parameter {name!r} has shape {tuple(tensor.shape)}; expected "
                f"{tuple(named[name].shape)}, the shape of the parameter."
            )
    plan = BindPlan(module, {name: aliases[id(named[name])] for name in tensors})
    return plan.bind(module, tensors)


# --- the plan ---------------------------------------------------------------


def _plan(module: nn.Module, places: Mapping[str, tuple[str, ...]]) -> _Node:
    owners: dict[int, dict[tuple[str, str], None]] = {}
    tensors: set[int] = set()
    for name, aliases in places.items():
        for alias in aliases:
            path, _, leaf = alias.rpartition(".")
            owner = attribute(module, path)
            owners.setdefault(id(owner), {})[leaf, name] = None
            tensors.add(id(getattr(owner, leaf)))

    affected = _affected(module, set(owners), tensors)
    stale = affected | tensors
    nodes: dict[int, _Node] = {}

    def visit(current: nn.Module, path: str) -> _Node:
        if id(current) in nodes:
            return nodes[id(current)]
        if isinstance(current, torch.jit.ScriptModule):
            raise BindError(
                f"{_where(path)} is a TorchScript module, whose weights cannot be predicted. "
                "Hypernetize the eager module it was made from."
            )
        children = tuple(
            (name, visit(child, f"{path}.{name}" if path else name))
            for name, child in current._modules.items()
            if child is not None
            and (id(child) in affected or not isinstance(child, torch.jit.ScriptModule))
        )
        watch = tuple(
            name
            for name, value in current.__dict__.items()
            if name not in _OWN and not _is_plain(value)
        )
        for name in watch:
            reason = _unfollowable(current.__dict__[name], stale)
            if reason:
                raise BindError(
                    f"{_where(path)} keeps {reason} in its attribute {name!r}, which refers to a "
                    "module or parameter whose weights are to be predicted and would silently go "
                    "on using the old ones. Keep the module itself as the attribute (or a bound "
                    "method, a functools.partial, a list or a dict of modules), leave those "
                    "parameters out of targets, or hypernetize the module before it is compiled "
                    "or wrapped."
                )
        hooks = tuple(name for name in _HOOKS if current.__dict__[name])
        leaves = tuple(owners.get(id(current), ()))
        padded = type(current) is nn.Embedding and current.padding_idx is not None
        weight = next((name for leaf, name in leaves if leaf == "weight"), None)
        weight = weight if padded or type(current) is nn.Linear else None
        signature, reached = _signature(current), id(current) in affected
        node = _Node(path, leaves, children, watch + hooks, signature, reached, weight)
        return nodes.setdefault(id(current), node)

    return visit(module, "")


def _signature(module: nn.Module) -> _Signature:
    """Changes when an attribute, a forward hook or a child is added or removed."""
    held = module.__dict__
    return (
        type(module),
        len(held),
        len(held["_modules"]),
        len(held["_forward_hooks"]),
        len(held["_forward_pre_hooks"]),
    )


def _where(path: str) -> str:
    return f"The submodule {path!r} of the primary" if path else "The primary"


def _affected(module: nn.Module, owners: set[int], tensors: set[int]) -> set[int]:
    """The modules whose outputs depend on the tensors.

    These are the owners of targets, the modules that refer to one of those from an attribute, and
    every module above one.
    """
    found, stale = set(owners), owners | tensors
    modules = list(module.modules())
    while True:
        before = len(found)
        for current in reversed(modules):
            if id(current) in found:
                continue
            if any(id(child) in found for child in current._modules.values()) or any(
                name not in _OWN and not _is_plain(value) and _refers(value, stale)
                for name, value in current.__dict__.items()
            ):
                found.add(id(current))
                stale.add(id(current))
        if len(found) == before:
            return found | {id(module)}


def _is_plain(value: object) -> bool:
    """Whether the value can hold no reference to a module, now or later."""
    if isinstance(value, _ATOMS):
        return value is not None
    if isinstance(value, (tuple, frozenset)):
        return all(_is_plain(item) or item is None for item in value)
    if isinstance(value, list):  # an empty one may be filled later
        return bool(value) and all(isinstance(item, _ATOMS) for item in value)
    if isinstance(value, types.FunctionType):
        return not (value.__closure__ or value.__defaults__ or value.__kwdefaults__)
    return isinstance(value, (type, types.BuiltinFunctionType, types.ModuleType, weakref.ref))


def _parts(value: object) -> tuple[list[object], str]:
    """What a value directly holds, and a name for it if it cannot be rewritten."""
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()], ""
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value), ""
    if isinstance(value, types.MethodType):
        return [value.__self__], ""
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values(), vars(value)], ""
    if isinstance(value, types.FunctionType):
        cells = []
        for cell in value.__closure__ or ():
            try:
                cells.append(cell.cell_contents)
            except ValueError:  # a cell that is not filled yet
                continue
        return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()], (
            f"the function {value.__qualname__!r}, a closure"
        )
    if isinstance(value, (Tensor, weakref.ref, types.ModuleType, type)):
        return [], ""
    held = getattr(value, "__dict__", None)
    if isinstance(held, dict):
        return list(held.values()), f"an object of class {type(value).__name__}"
    return [], ""


def _refers(value: object, stale: set[int], seen: set[int] | None = None) -> bool:
    seen = set() if seen is None else seen
    if id(value) in stale:
        return True
    if isinstance(value, _ATOMS) or id(value) in seen:
        return False
    seen.add(id(value))
    return any(_refers(part, stale, seen) for part in _parts(value)[0])


def _unfollowable(value: object, stale: set[int], seen: set[int] | None = None) -> str:
    """The object between ``value`` and a stale reference that cannot be rewritten, or ``""``."""
    seen = set() if seen is None else seen
    if id(value) in stale or isinstance(value, _ATOMS) or id(value) in seen:
        return ""
    seen.add(id(value))
    parts, obstacle = _parts(value)
    if obstacle:
        return obstacle if any(_refers(part, stale) for part in parts) else ""
    return next(filter(None, (_unfollowable(part, stale, seen) for part in parts)), "")


# --- the copy ---------------------------------------------------------------


_Copies = dict[str, tuple[_Node, nn.Module, nn.Module]]


def _copy(
    module: Any,
    node: _Node,
    tensors: Mapping[str, Weight],
    copies: _Copies,
    compiling: bool,
    stand_ins: Mapping[str, StandIn] | None,
) -> Any:
    """The copy, or None if the module is no longer the one that the plan was made for."""
    if node.path in copies:
        return copies[node.path][2]
    if module is None:
        return None
    held = module.__dict__
    if not compiling and node.signature != _signature(module):
        return None
    extra: Mapping[str, Any] | None = None
    if stand_ins is not None and node.path in stand_ins:
        kind, extra = stand_ins[node.path]
    elif node.weight is None:
        kind = type(module)
    else:
        kind = _kind(module, tensors[node.weight], compiling)
    new: Any = object.__new__(kind)
    if compiling:  # Dynamo cannot follow the faster way
        attributes = new.__dict__
        attributes.update(held)
    else:
        attributes = held.copy()
        object.__setattr__(new, "__dict__", attributes)
    if extra:
        attributes.update(extra)
    copies[node.path] = (node, module, new)
    for name in _CALL_HOOKS:
        hooks = held[name]
        attributes[name] = OrderedDict(hooks) if hooks else OrderedDict()
    if node.leaves:
        attributes["_parameters"] = parameters = dict(held["_parameters"])
        for leaf, name in node.leaves:
            weight = tensors[name]
            if isinstance(weight, LowRankWeight):
                if kind is _LowRankLinear and leaf == "weight":
                    del parameters[leaf]
                    attributes["_low_rank"] = weight
                    continue
                weight = weight.dense()
            # Found at once as an attribute, and listed among the parameters.
            attributes[leaf] = parameters[leaf] = weight
    if not node.children:
        return new
    attributes["_modules"] = modules = dict(held["_modules"])
    for name, child in node.children:
        if not child.affected and compiling:
            continue  # a graph capture traces more code in modules that are copied
        copied = _copy(modules.get(name), child, tensors, copies, compiling, stand_ins)
        if copied is None:
            return None
        modules[name] = copied
    return new


def _kind(module: nn.Module, weight: Weight, compiling: bool) -> type:
    """The class of the bound copy: that of the module, or of its stand-in."""
    if type(module) is nn.Linear:
        return _LowRankLinear if isinstance(weight, LowRankWeight) else nn.Linear
    batched = compiling or is_batched(dense(weight))
    return _PaddedEmbedding if batched else nn.Embedding


def _rewrite(copies: _Copies, tensors: Mapping[str, Weight]) -> None:
    watched = [
        (new, name, original.__dict__[name])
        for node, original, new in copies.values()
        for name in node.watch
        if original.__dict__[name] is not None
    ]
    if not watched:
        return
    fresh: dict[int, object] = {}
    for node, original, new in copies.values():
        fresh[id(original)] = new
        for leaf, name in node.leaves:
            fresh[id(getattr(original, leaf))] = dense(tensors[name])
    for new, name, value in watched:
        moved, changed = _rebound(value, fresh)
        if changed:
            new.__dict__[name] = moved


def _rebound(value: Any, fresh: Mapping[int, object]) -> tuple[Any, bool]:
    """``value`` with every reference to an original replaced, and whether there was one.

    A value without such a reference is returned as it is, not copied.
    """
    if isinstance(value, _ATOMS):
        return value, False
    if id(value) in fresh:
        return fresh[id(value)], True
    kind: Any = type(value)
    if isinstance(value, Mapping):
        entries, changed = _all_rebound([*value.keys(), *value.values()], fresh)
        if not changed:
            return value, False
        items = list(zip(entries[: len(value)], entries[len(value) :], strict=True))
        if kind is dict or not isinstance(value, MutableMapping):
            return kind(items), True
        made: Any = copy.copy(value)  # keeps a default factory
        made.clear()
        made.update(items)
        return made, True
    if isinstance(value, (list, tuple, set, frozenset)):
        entries, changed = _all_rebound(list(value), fresh)
        if not changed:
            return value, False
        return (kind(*entries) if hasattr(value, "_fields") else kind(entries)), True
    if isinstance(value, types.MethodType):
        owner, changed = _rebound(value.__self__, fresh)
        if not changed:
            return value, False
        if torch.compiler.is_compiling():  # a graph capture knows partials but not this class
            return functools.partial(value.__func__, owner), True
        return types.MethodType(value.__func__, owner), True
    if isinstance(value, functools.partial):
        # A graph capture cannot read a partial's own attributes; calling one does not either.
        own = {} if torch.compiler.is_compiling() else vars(value)
        held = (value.func, value.args, value.keywords, own)
        (func, args, keywords, attributes), changed = _all_rebound(held, fresh)
        if not changed:
            return value, False
        made = functools.partial(func, *args, **keywords)
        if attributes:
            vars(made).update(attributes)
        return made, True
    return value, False


def _all_rebound(values: Iterable[Any], fresh: Mapping[int, object]) -> tuple[list[Any], bool]:
    pairs = [_rebound(value, fresh) for value in values]
    return [value for value, _ in pairs], any(changed for _, changed in pairs)
