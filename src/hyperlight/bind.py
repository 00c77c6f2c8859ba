"""Binding: predicted tensors in place of a module's parameters.

A bound module is a shallow copy of the module tree. Every module is a new object with the
attributes, hooks and mode (train or eval) of the original; buffers and the parameters that are
not predicted are shared. The predicted tensors stand where the parameters were, so
``next(self.parameters()).device`` and ``state_dict()`` mean the same as before. The original is
never changed, so exceptions, nested use, threads and activation checkpointing are right by
construction. Swapping tensors in and back, as :func:`torch.func.functional_call` does, is not.

Nothing stale: references that a module keeps outside its registered children (a bound method as
an attribute, a partial, a list or dict of modules or parameters, a weak reference) are followed
and rewritten to the copies. Whatever else could reach a predicted weight is refused when the plan
is made: see :mod:`~hyperlight.references`. Hooks are given the bound module as their argument, and
are followed and refused alike.

Nothing shared: containers (a dict, list, set or deque, as an attribute) are the bound module's
own, and so are the tables of :class:`torch.nn.Module`, but those of hooks for ``state_dict``. What
one bound network caches, no other reads. A tensor that an earlier forward has cached in an
attribute that starts as None, or in a container that starts empty, is not taken over: see
:mod:`~hyperlight.caches`. Objects of other classes are shared, and so are tensors, buffers above
all: a forward that assigns a new tensor to a buffer, instead of writing into it, does so for the
bound network alone.

Activation checkpointing must be the kind that PyTorch recommends, ``use_reentrant=False``. The
reentrant kind runs a backward pass for each segment, all the way through the hypernetwork, and
PyTorch stops at the second.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import itertools
import operator
import warnings
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ._torch import is_batched
from .caches import SETUP, Absent, Habits, functions_of, is_telling
from .errors import BindError, did_you_mean, listed
from .heads import LowRankWeight, Weight, dense
from .references import (
    ATOMS,
    Reached,
    Search,
    has_changed,
    is_container,
    is_inert,
    rebuild,
    state_of,
    variables_of,
)
from .targets import attribute

_M = TypeVar("_M", bound=nn.Module)

# The attributes of nn.Module itself, which are copied one by one.
_OWN = frozenset(nn.Module().__dict__)
_HOOKS = tuple(sorted(name for name in _OWN if name.endswith("_hooks")))
# Hooks run by __call__. The others serve state_dict, which no weight goes through.
_CALL_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# For a module of the tree: the class of its copy, and attributes that it has beside its own.
StandIn = tuple[type[nn.Module], Mapping[str, Any]]

_TABLES = tuple(
    name
    for name in sorted(_OWN)
    if name.startswith(("_forward_", "_backward_")) and "hooks" in name
)
_tables = operator.itemgetter(*_TABLES)
# Attributes that name modules without running them. A GraphModule's code reads self.<name>.
# An RNN looks by weak references whether its weights are the ones that it had.
_HARMLESS = {torch.fx.GraphModule: {"_graph"}, nn.RNNBase: {"_flat_weight_refs"}}
# Hooks of torch that compute an attribute from parameters before every forward.
_COMPUTING = (WeightNorm, SpectralNorm, BasePruningMethod)


class _LowRankLinear(nn.Linear):
    """A bound linear layer that applies the two factors of its weight one after another."""

    _low_rank: LowRankWeight

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self._low_rank.dense()

    def forward(self, input: Tensor) -> Tensor:
        return self._low_rank.linear(input, self.bias)


class _MappedEmbedding(nn.Embedding):
    """A bound embedding under vmap, with its padding row detached.

    PyTorch (2.13) keeps the gradient from the padding row of the first set of weights only. An
    index outside of the table it takes for one into the table of another sample.
    """

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        if self.padding_idx is not None:
            rows = torch.arange(self.num_embeddings, device=weight.device).unsqueeze(-1)
            weight = torch.where(rows.eq(self.padding_idx), weight.detach(), weight)
        if not torch.compiler.is_compiling():
            outside = (input < 0) | (input >= self.num_embeddings)
            input = input.masked_fill(outside, torch.iinfo(input.dtype).min)
        return F.embedding(
            input, weight, None, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse
        )


class _Predicted(dict[str, Any]):
    """The parameters of a bound module, some of them predicted."""

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise BindError(NO_COPY)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise BindError(NO_COPY)


NO_COPY = (
    "A bound network cannot be copied or pickled: its weights are results of the hypernetwork, and "
    "gradients flow through them. Use model.at(...) for an independent network with these weights, "
    "or copy the model itself."
)


@dataclass(frozen=True, slots=True)
class _Node:
    """A module of the tree, by name and not by identity.

    The plan then fits any module of the same structure: a deep copy, or a copy that an outer bind
    has made.

    Attributes:
        path: its name in the tree.
        leaves: its parameters that are replaced, each with the name of the tensor.
        children: its children, by name.
        watch: its attributes and hooks that may hold references.
        objects: those of them that hold an object of another class, which code writes into.
        starts: its attributes that hold what an earlier forward computed, and how they start.
        computed: the hooks of torch that compute an attribute from replaced parameters.
        kind: its class.
        sizes: how many attributes, children, hooks and parameters it has.
        types: of its attributes; None for classes of torch, which keep to theirs.
        affected: whether what it computes depends on the tensors.
        weight: which tensor is its weight, if the layer may need a stand-in.
        busy: whether a copy has anything to be rewritten.
    """

    path: str
    leaves: tuple[tuple[str, str], ...]
    children: tuple[tuple[str, _Node], ...]
    watch: tuple[str, ...]
    objects: tuple[str, ...]
    starts: tuple[tuple[str, Any], ...]
    computed: tuple[tuple[int, str], ...]
    kind: type[nn.Module]
    sizes: tuple[int, ...]
    types: tuple[type, ...] | None
    affected: bool
    weight: str | None
    busy: bool


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
        self._warned: set[tuple[str, str]] = set()
        self._root: _Node | None = None
        self.made = 0  # how often the plan was made
        # What was found harmless though it cannot be followed, by identity.
        self._judged: dict[int, Any] = {}
        self._make(module)

    def _make(self, module: nn.Module) -> None:
        self.made += 1
        root, judged = _Planner(module, self.places).plan()
        self._root, self._judged = root, {id(value): (value, state_of(value)) for value in judged}

    def renew(self, module: nn.Module) -> None:
        """Make the plan again after a copy; what stands in its way is said at the next bind."""
        with contextlib.suppress(BindError):
            self._make(module)

    def forget(self, module: nn.Module) -> None:
        """Take off a copy of the module, in place, what an earlier forward has computed."""
        nodes = [] if self._root is None else [self._root]
        for node in nodes:  # grows
            nodes += [child for _, child in node.children]
            _start_anew(attribute(module, node.path), node)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_root": None, "_judged": {}}

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
        bound: _M = self._bind(module, tensors, stand_ins)[0]
        return bound

    def bind_watched(
        self,
        module: _M,
        tensors: Mapping[str, Weight],
        stand_ins: Mapping[str, StandIn] | None = None,
    ) -> tuple[_M, Left]:
        """A bound copy, as :meth:`bind` makes it, and what its forward leaves on it."""
        bound, copies = self._bind(module, tensors, stand_ins)
        return bound, Left(copies, self._warned)

    def _bind(
        self,
        module: Any,
        tensors: Mapping[str, Weight],
        stand_ins: Mapping[str, StandIn] | None,
    ) -> tuple[Any, _Copies]:
        compiling = torch.compiler.is_compiling()
        for _ in range(3):
            copies: _Copies = {}
            try:
                if self._root is None:
                    raise _ChangedError
                bound = _copy(module, self._root, tensors, copies, compiling, stand_ins)
                _rewrite(copies, tensors, None if compiling else self._judged)
                return bound, copies
            except _ChangedError:  # since the plan was made
                self._make(module)
        raise BindError(
            f"The attributes of {type(module).__name__} change while it is bound. Do not change "
            "the primary in another thread."
        )


def bind(module: _M, tensors: Mapping[str, Tensor]) -> _M:
    """Return a copy of ``module`` that uses ``tensors`` in place of its parameters.

    The module itself is not touched; gradients flow to ``tensors`` and to the parameters that are
    still shared.

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


class _ChangedError(Exception):
    """The module is no longer the one that the plan was made for."""


class _Planner:
    """Looks at a module tree once, and says for each module what a bind has to do."""

    def __init__(self, module: nn.Module, places: Mapping[str, tuple[str, ...]]) -> None:
        self.root = module
        self.owners: dict[int, dict[tuple[str, str], None]] = {}
        found: dict[int, tuple[str, Tensor]] = {}
        for name, aliases in places.items():
            for alias in aliases:
                owner, leaf, parameter = _parameter(module, alias)
                found.setdefault(id(parameter), (alias, parameter))
                self.owners.setdefault(id(owner), {})[leaf, name] = None
        self.paths = {id(m): path for path, m in module.named_modules()}
        self.modules = list(module.modules())
        self.targets = dict(found.values())
        self.search = Search(self.modules, self.targets)
        self.habits: Habits | None = None
        self.methods: dict[type[nn.Module], list[tuple[str, Any]]] = {}
        self._refuse_shared_memory()
        self.reached = {id(current): dict(self._references(current)) for current in self.modules}
        self.affected = self._affected()
        self.stale = self.affected | set(found)

    def plan(self) -> tuple[_Node, list[Any]]:
        """The root of the plan, and what was met that cannot be followed."""
        nodes: dict[int, _Node] = {}

        def visit(current: nn.Module, path: str) -> _Node:
            if id(current) not in nodes:
                nodes[id(current)] = self._node(current, path, visit)
            return nodes[id(current)]

        return visit(self.root, ""), self.search.judged

    def _node(
        self, current: nn.Module, path: str, visit: Callable[[nn.Module, str], _Node]
    ) -> _Node:
        if isinstance(current, torch.jit.ScriptModule):
            _refuse_script(path)
        reached_all, held = self.reached[id(current)], current.__dict__
        affected = id(current) in self.affected
        starts = dict(self._starts(current, path)) if affected else {}
        for name, reached in reached_all.items():
            if name in starts:
                continue
            obstacle = next((r.obstacle for r in reached if r.key in self.stale and r.obstacle), "")
            if not obstacle or (name in _HOOKS and name not in _CALL_HOOKS):
                continue
            if name not in _HOOKS and self._habits().only_read_outside(name):
                continue  # a result of an earlier forward
            self._refuse(path, name, obstacle)
        children = tuple(
            (name, visit(child, f"{path}.{name}" if path else name))
            for name, child in current._modules.items()
            if child is not None
            and (id(child) in self.affected or not isinstance(child, torch.jit.ScriptModule))
        )
        leaves = tuple(self.owners.get(id(current), ()))
        own = _is_torchs(type(current))
        linear = type(current) in (nn.Linear, _LowRankLinear)
        table = type(current) is nn.Embedding
        weight = next((name for leaf, name in leaves if leaf == "weight"), None)
        methods = {name for name, _ in self._methods(type(current))}
        watch = tuple(name for name in reached_all if name not in starts and name not in methods)
        computed = tuple(_computing(current)) if affected else ()
        return _Node(
            path=path,
            leaves=leaves,
            children=children,
            watch=watch,
            objects=tuple(self._objects(held, watch)) if affected else (),
            starts=tuple(starts.items()),
            computed=computed,
            kind=type(current),
            sizes=_sizes(held),
            types=None if own else tuple(map(type, held.values())),
            affected=affected,
            weight=weight if linear or table else None,
            busy=bool(watch or starts or computed),
        )

    def _references(self, current: nn.Module) -> Iterator[tuple[str, list[Reached]]]:
        """The attributes and hooks that may hold references, with what they reach."""
        computing = {name for _, name in _computing(current)}
        skipped = computing | getattr(type(current), "shared_when_bound", set())
        for kind, names in _HARMLESS.items():
            if isinstance(current, kind):
                skipped |= names
        torchs = _is_torchs(type(current))
        for name, value in current.__dict__.items():
            hook = name in _HOOKS and value
            # A tuple may be replaced by one of other contents.
            inert = is_inert(value) and (torchs or not isinstance(value, tuple))
            if hook or not (name in _OWN or name in skipped or inert):
                reached = self.search.from_value(value)
                if isinstance(current, nn.RNNBase) and name == "_flat_weights":  # in step
                    reached = [each for each in reached if not each.obstacle]
                yield name, reached
        for name, value in self._inherited(current):
            if name not in current.__dict__:
                reached = self.search.from_value(value)
                if reached or self._habits().is_filled(name):
                    yield name, reached
        for name, function in self._methods(type(current)):
            reached = self.search.from_value(function)
            if reached:
                yield name, reached

    def _inherited(self, current: nn.Module) -> Iterator[tuple[str, Any]]:
        """The containers, modules and tensors that its class holds."""
        for base in type(current).__mro__:
            if base.__module__.partition(".")[0] not in ("torch", "builtins"):
                for name, value in vars(base).items():
                    if is_container(value) and not name.startswith("__"):
                        yield name, value

    def _methods(self, kind: type[nn.Module]) -> Iterator[tuple[str, Any]]:
        """The methods of a class that read variables from where they were defined."""
        if kind not in self.methods:
            self.methods[kind] = [
                (function.__name__, function)
                for function in functions_of([kind])
                if function.__name__ not in SETUP and any(map(is_container, variables_of(function)))
            ]
        yield from self.methods[kind]

    def _objects(self, held: Mapping[str, Any], names: Iterable[str]) -> Iterator[str]:
        """The attributes with an object that code writes into, and that can be copied."""
        for name in names:
            value = held.get(name)
            plain = type(getattr(value, "__dict__", None)) is dict and not callable(value)
            if plain and not is_container(value) and self._habits().is_entered(name, value):
                yield name

    def _affected(self) -> set[int]:
        """The modules whose outputs depend on the tensors.

        These are the owners of targets, the modules that refer to one of those from an attribute,
        and every module above one.
        """
        stale = set(self.owners) | set(map(id, self.targets.values()))
        needs = {
            id(m): {
                *map(id, m._modules.values()),
                *(r.key for found in self.reached[id(m)].values() for r in found),
            }
            for m in self.modules
        }
        while True:
            more = {key for key, held in needs.items() if key not in stale and held & stale}
            if not more:
                return {key for key in needs if key in stale} | {id(self.root)}
            stale |= more

    def _refuse_shared_memory(self) -> None:
        """Refuse parameters and buffers that have memory in common with a target."""
        for current in self.modules:
            for name, tensor in (*current._parameters.items(), *current._buffers.items()):
                other = None if tensor is None else self.search.sharing(tensor)
                if other is None or self.targets[other] is tensor:
                    continue
                raise BindError(
                    f"{_where(self.paths[id(current)])} keeps {name!r} in the memory of the "
                    f"parameter {other!r}: both always have the same values, but they would be "
                    "predicted apart, or one alone. Make them one object (a.weight = b.weight), "
                    "or give one a memory of its own (nn.Parameter(tensor.clone()))."
                )

    def _starts(self, current: nn.Module, path: str) -> Iterator[tuple[str, Any]]:
        """The attributes that hold what an earlier forward has computed, and how they start."""
        inherited = [pair for pair in self._inherited(current) if pair[0] not in current.__dict__]
        for name, value in (*current.__dict__.items(), *current._buffers.items(), *inherited):
            if name in _OWN:
                continue
            cached = inspect.getattr_static(type(current), name, None)
            if isinstance(cached, functools.cached_property):
                yield name, Absent
            elif self._may_be_computed(current, name, value) and self._habits().is_kept(name):
                try:
                    yield name, self._habits().start(current, name, value)
                except LookupError:
                    if name not in current._buffers:
                        self._refuse_cached(path, name)

    def _may_be_computed(self, current: nn.Module, name: str, value: Any) -> bool:
        if value is None:  # a buffer that is assigned later; any other attribute is then looked at
            return name in current._buffers and not _is_torchs(type(current))
        return any(map(is_telling, self._tensors(value)))

    def _habits(self) -> Habits:
        if self.habits is None:
            self.habits = Habits.of(self.modules)
        return self.habits

    def _tensors(self, value: Any) -> list[Tensor]:
        """The tensors in an attribute that are not registered."""
        if type(value) in ATOMS or isinstance(value, nn.Module):
            return []
        found: list[Tensor] = []

        def visit(part: Any) -> Any:
            if isinstance(part, Tensor):
                if not isinstance(part, nn.Parameter):
                    found.append(part)
            elif not isinstance(part, nn.Module) and not is_inert(part) and id(part) not in seen:
                seen[id(part)] = part
                rebuild(part, visit, {})
            return part

        seen: dict[int, Any] = {}
        visit(value)
        return found

    def _refuse(self, path: str, name: str, what: str) -> NoReturn:
        if what.startswith("a tensor"):
            remedy = (
                "which would silently stay as it is when the weights change. Compute it in forward "
                "from the parameter itself, or reset the attribute before hypernetize."
            )
        else:
            remedy = (
                "which refers to a module or parameter whose weights are to be predicted and would "
                "silently go on using the old ones. Keep the module itself as the attribute (or a "
                "bound method, a functools.partial, a list or a dict of modules), leave those "
                "parameters out of targets, or hypernetize the module before it is compiled or "
                "wrapped."
            )
        where = "hooks" if name in _HOOKS else "attribute"
        raise BindError(f"{_where(path)} keeps {what} in its {where} {name!r}, {remedy}")

    def _refuse_cached(self, path: str, name: str) -> NoReturn:
        raise BindError(
            f"{_where(path)} keeps a tensor in its attribute {name!r} that its code writes after "
            "__init__ and reads again: it may have been computed from weights that are to be "
            "predicted, and would silently stay as it is. Reset the attribute before hypernetize "
            "(to zeros, None or whatever it starts with), or, if it does not depend on weights, "
            "make it a buffer."
        )


def _parameter(module: nn.Module, path: str) -> tuple[nn.Module, str, Tensor]:
    """The owner of a parameter, its name there, and what stands there now."""
    parent, _, leaf = path.rpartition(".")
    try:
        owner = attribute(module, parent)
        value = getattr(owner, leaf)
    except AttributeError:
        owner = value = None
    if isinstance(owner, torch.jit.ScriptModule):
        _refuse_script(parent)
    if isinstance(owner, _LowRankLinear) and leaf == "weight":
        return owner, leaf, value
    if isinstance(owner, nn.Module) and isinstance(value, Tensor):
        registered = owner._parameters.get(leaf)
        if registered is not None:
            return owner, leaf, registered
        # FullyShardedDataParallel keeps its parameters as plain tensors while it runs.
        computed = any(name == leaf for _, name in _computing(owner))
        computed |= hasattr(type(owner), leaf) or any(leaf in name for name in owner._parameters)
        if not computed:
            return owner, leaf, value
    raise BindError(
        f"{path!r} is no parameter of the primary any more: since the model was made it was "
        "removed, or is computed from other parameters (pruning, weight or spectral normalisation, "
        "a parametrization, quantization). Undo that, or do it before hypernetize, or to the "
        "network that model.at(...) returns."
    )


def _computing(module: nn.Module) -> list[tuple[int, str]]:
    """The hooks of torch that compute an attribute before every forward, with its name."""
    return [
        (key, hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name)
        for key, hook in module._forward_pre_hooks.items()
        if isinstance(hook, _COMPUTING)
    ]


def _is_torchs(kind: type[nn.Module]) -> bool:
    return kind.__module__.startswith("torch.nn.modules")


def _sizes(held: Mapping[str, Any]) -> tuple[int, ...]:
    return (
        len(held),
        len(held["_modules"]),
        len(held["_forward_hooks"]),
        len(held["_forward_pre_hooks"]),
        len(held["_backward_hooks"]),
        len(held["_backward_pre_hooks"]),
        len(held["_parameters"]),
    )


def _refuse_script(path: str) -> NoReturn:
    raise BindError(
        f"{_where(path)} is a TorchScript module, whose weights cannot be predicted. "
        "Hypernetize the eager module it was made from."
    )


def _where(path: str) -> str:
    return f"The submodule {path!r} of the primary" if path else "The primary"


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
    if node.path in copies:
        return copies[node.path][2]
    if module is None:
        raise _ChangedError
    held = module.__dict__
    kind: Any = type(module)
    if not compiling and (
        kind is not node.kind
        or node.sizes != _sizes(held)
        or (node.types is not None and node.types != tuple(map(type, held.values())))
    ):
        raise _ChangedError
    extra: Mapping[str, Any] | None = None
    if stand_ins is not None and node.path in stand_ins:
        kind, extra = stand_ins[node.path]
    elif node.weight is not None:
        kind = _kind(module, tensors[node.weight], compiling)
    new: Any = object.__new__(kind)
    if compiling:  # Dynamo cannot follow the faster way
        attributes = new.__dict__
        attributes.update(held)
        for name in _TABLES:
            attributes[name] = OrderedDict(held[name])
    else:
        attributes = held.copy()
        object.__setattr__(new, "__dict__", attributes)
        if any(_tables(held)):
            attributes.update(zip(_TABLES, map(OrderedDict.copy, _tables(held)), strict=True))
        else:  # most have no hooks, and copies of what is empty take longest of all
            for name in _TABLES:
                attributes[name] = OrderedDict()
    if extra:
        attributes.update(extra)
    copies[node.path] = (node, module, new)
    attributes["_non_persistent_buffers_set"] = held["_non_persistent_buffers_set"].copy()
    attributes["_buffers"] = held["_buffers"].copy()
    parameters = held["_parameters"].copy()
    attributes["_modules"] = modules = held["_modules"].copy()
    for leaf, name in node.leaves:
        weight = tensors[name]
        if not isinstance(weight, Tensor):
            if kind is _LowRankLinear and leaf == "weight":
                parameters.pop(leaf, None)
                attributes["_low_rank"] = weight
                continue
            weight = weight.dense()
        if not compiling:
            if leaf == "weight" and leaf not in parameters:
                attributes.pop("_low_rank", None)
            attributes.pop(leaf, None)  # an attribute would hide it, as FSDP1 leaves one
            if weight.grad_fn is not None and type(parameters) is dict:
                parameters = _Predicted(parameters)
        parameters[leaf] = weight
    attributes["_parameters"] = parameters
    if node.leaves and held.get("sparse") is True:  # no gradient of a predicted weight is sparse
        attributes["sparse"] = False
    for name, child in node.children:
        if not child.affected and compiling:
            continue  # a graph capture traces more code in modules that are copied
        modules[name] = _copy(modules.get(name), child, tensors, copies, compiling, stand_ins)
    return new


def _kind(module: nn.Module, weight: Weight, compiling: bool) -> type:
    """The class of the bound copy: that of the module, or of its stand-in."""
    if isinstance(module, nn.Linear):
        return _LowRankLinear if isinstance(weight, LowRankWeight) else nn.Linear
    mapped = module.padding_idx is not None if compiling else is_batched(dense(weight))
    return _MappedEmbedding if mapped else nn.Embedding


def _rewrite(
    copies: _Copies, tensors: Mapping[str, Weight], judged: Mapping[int, Any] | None
) -> None:
    """Give the copies their own containers, and references to each other.

    ``judged`` is what is known to be harmless, by identity; None if nothing is to be checked.
    """
    busy = [entry for entry in copies.values() if entry[0].busy]
    if not busy:
        return
    fresh: dict[int, Any] = {}
    held: list[Any] = []
    for node, original, new in copies.values():
        fresh[id(original)] = new
        for leaf, _ in node.leaves:
            fresh[id(getattr(original, leaf))] = getattr(new, leaf)

    move = functools.partial(_moved, fresh, judged)
    for node, original, _ in busy:
        for name in node.objects:
            value = original.__dict__[name]
            if id(value) not in fresh:
                fresh[id(value)] = copied = copy.copy(value)
                held.append(copied)
    for copied in held:
        for name, value in vars(copied).items():
            vars(copied)[name] = move(value)
    for node, original, new in busy:
        own = original.__dict__
        for name in node.watch:
            new.__dict__[name] = move(own[name] if name in own else getattr(node.kind, name))
        _start_anew(new, node)
        for key, _ in node.computed:
            _compute(new, key)


def _start_anew(module: nn.Module, node: _Node) -> None:
    """Bring the attributes that hold what an earlier forward has computed to their start."""
    for name, start in node.starts:
        if start is Absent:
            module.__dict__.pop(name, None)
        elif name in module._buffers:
            module._buffers[name] = None
        else:
            module.__dict__[name] = None if start is None else type(start)()


def _moved(fresh: dict[int, Any], judged: Mapping[int, Any] | None, value: Any) -> Any:
    """What stands for a value in the copies; see :func:`_rewrite`.

    No closure that calls itself: that is a reference cycle, which would keep the copies and their
    weights until the next garbage collection.
    """
    if type(value) in ATOMS:
        return value
    key = id(value)
    if key in fresh:
        return fresh[key]
    moved, known = rebuild(value, functools.partial(_moved, fresh, judged), fresh)
    if not known:
        unknown = judged is not None and (key not in judged or has_changed(value, judged[key][1]))
        if unknown and not is_inert(value):
            raise _ChangedError
        fresh[key] = value
    return moved


def _compute(module: nn.Module, key: int) -> None:
    """Compute once what a hook of torch computes before every forward."""
    hook: Any = module._forward_pre_hooks[key]
    if isinstance(hook, SpectralNorm):  # without a step of its power iteration
        setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))
    else:
        hook(module, ())


# --- what a forward leaves behind -------------------------------------------


# For one bound module: its node, its attributes as they are at any time, and how many they were;
# then what its attributes, buffers and containers held, or None for a class of torch.
_Held = tuple[_Node, dict[str, Any], int, tuple[dict[str, Any], ...] | None]


class Left:
    """What a forward leaves on a bound network.

    Args:
        copies: the modules of the network.
        warned: what a warning has named already.
    """

    def __init__(self, copies: _Copies, warned: set[tuple[str, str]]) -> None:
        # Weak references: the network holds this object, and is freed when its user drops it, not
        # by a later garbage collection.
        compiling = torch.compiler.is_compiling()
        entries = [] if compiling else copies.values()
        self._copies = [(node, weakref.ref(new)) for node, _, new in entries]
        self._warned = warned

    def before(self) -> list[_Held]:
        """What the modules hold now. Whoever calls keeps it, so that threads do not share it."""
        return _snapshot(self._copies)

    def any(self, before: list[_Held]) -> bool:
        """Whether an attribute of a module is another one than before."""
        return any(
            len(now) != size if was is None else bool(_changed(was[0], now))
            for _, now, size, was in before
        )

    def tell(self, before: list[_Held]) -> None:
        """Warn of results on a network that nobody keeps, so that nobody can read them."""
        for path, name in _assigned(before):
            if (path, name) not in self._warned:
                self._warned.add((path, name))
                where = f"submodule {path!r} of the primary" if path else "primary"
                read = f"{path}.{name}" if path else name
                warnings.warn(
                    f"The forward of the {where} wrote its attribute {name!r}, on a bound copy "
                    "that lasts for this call: model.primary and later calls do not see it. "
                    "To read it, or to keep a state from call to call, keep the bound network: "
                    f"net = model.bind(...); y = net(x); net.{read}. A buffer that is written in "
                    "place (copy_, add_) is seen by all.",
                    stacklevel=5,
                )


def _snapshot(copies: Iterable[tuple[_Node, weakref.ref[nn.Module]]]) -> list[_Held]:
    found: list[_Held] = []
    seen: set[int] = set()  # an object of many modules, such as a configuration, counts once
    for node, reference in copies:
        new = reference()
        if new is None:  # the user has put another module in its place
            continue
        held = new.__dict__
        if node.types is None:  # a class of torch, which assigns nothing itself
            found.append((node, held, len(held), None))
            continue
        entries = {}
        for name in node.watch:
            value = held.get(name)
            if name not in _HOOKS and id(value) not in seen and _is_own(value, name, node):
                seen.add(id(value))
                entries[name] = _entries(value)
        found.append((node, held, len(held), (held.copy(), held["_buffers"].copy(), entries)))
    return found


def _is_own(value: Any, name: str, node: _Node) -> bool:
    return name in node.objects or isinstance(value, (dict, list, set, tuple, deque))


def _entries(value: Any, depth: int = 0) -> tuple[Any, ...]:
    """What is in a container, or in an object that is the bound network's own, and in these."""
    if depth > 3:
        return ()
    if isinstance(value, dict):
        parts = tuple(value.values())
    elif isinstance(value, (list, set, tuple, deque)):
        parts = tuple(value)
    elif depth == 0 and type(getattr(value, "__dict__", None)) is dict:
        parts = tuple(vars(value).values())
    else:
        return ()
    inner = (_entries(part, depth + 1) for part in parts if type(part) not in ATOMS)
    return parts + tuple(itertools.chain.from_iterable(inner))


def _assigned(before: list[_Held]) -> Iterator[tuple[str, str]]:
    """The results that a forward left on bound modules: ``(path, attribute)``.

    Results are tensors and numbers, alone or in containers. In a module that no predicted weight
    reaches, such as one that keeps a rotary table, only a tensor with a graph is one.
    """
    for node, now, size, was in before:
        if was is None:
            changed = list(now.items())[size:] if len(now) != size else []
        else:
            attributes, buffers, contents = was
            changed = [*_changed(attributes, now), *_changed(buffers, now["_buffers"])]
            for name, entries in contents.items():
                value = now.get(name)
                after = _entries(value) if value is attributes[name] else entries
                if not _same(entries, after):
                    known = set(map(id, entries))
                    changed.append((name, [part for part in after if id(part) not in known]))
        computed = [name for _, name in node.computed] if changed else []
        for name, value in changed:
            if name not in _OWN and name not in computed and _is_result(value, node.affected):
                yield node.path, name


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any]]:
    if len(before) == len(now) and all(map(operator.is_, before.values(), now.values())):
        return []
    return [(name, v) for name, v in now.items() if name not in before or before[name] is not v]


def _same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return len(a) == len(b) and all(map(operator.is_, a, b))


def _is_result(value: Any, affected: bool) -> bool:
    if isinstance(value, Tensor):
        return affected or value.requires_grad
    if isinstance(value, (dict, list, set, tuple, deque)):
        parts = value.values() if isinstance(value, dict) else value
        return any(_is_result(part, affected) for part in parts)
    return affected and isinstance(value, (int, float)) and not isinstance(value, bool)
