"""References that a module keeps outside its registered children and parameters.

:func:`rebuild` is the one list of kinds that are followed: for each, how to make the value again
with other things inside. :class:`Search` goes through the attributes of a module tree and tells
what they reach. What is not in the list is looked through as the garbage collector does, so that
an object of any class, a closure, a generator or a cache that holds a module is found, if not
followed.
"""

from __future__ import annotations

import bisect
import contextlib
import copy
import dis
import enum
import functools
import gc
import logging
import types
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ._torch import version_of

ATOMS = frozenset(
    {int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device, torch.Size}
    | {torch.layout, torch.memory_format, range, type(Ellipsis)}
)
"""Types whose values hold nothing."""

# Also harmless, but told by isinstance.
_HARMLESS = (type, types.ModuleType, types.CodeType, enum.Enum, logging.Logger, torch.Generator)

Move = Callable[[Any], Any]


def is_inert(value: object) -> bool:
    """Whether the value holds nothing and never will."""
    if isinstance(value, (tuple, frozenset)) and type(value) is not torch.Size:
        return all(map(is_inert, value))
    return type(value) in ATOMS or isinstance(value, (int, float, str, *_HARMLESS))


# --- what is followed -------------------------------------------------------

_KEYED = (dict, weakref.WeakValueDictionary, weakref.WeakKeyDictionary)
# How to make an empty container of each kind.
_EMPTY: dict[type, Callable[[Any, Move], Any]] = {
    list: lambda value, move: [],
    dict: lambda value, move: {},
    set: lambda value, move: set(),
    OrderedDict: lambda value, move: OrderedDict(),
    Counter: lambda value, move: Counter(),
    defaultdict: lambda value, move: defaultdict(move(value.default_factory)),
    deque: lambda value, move: deque(maxlen=value.maxlen),
    weakref.WeakSet: lambda value, move: weakref.WeakSet(),
    weakref.WeakValueDictionary: lambda value, move: weakref.WeakValueDictionary(),
    weakref.WeakKeyDictionary: lambda value, move: weakref.WeakKeyDictionary(),
}


def _emptied(value: Any) -> Callable[[Any, Move], Any] | None:
    """How to make an empty container of the kind of ``value``; None if it is no container."""
    known = _EMPTY.get(type(value))
    if known or not isinstance(value, (dict, list, set, deque)):
        return known
    if getattr(value, "__dict__", None) or any("__slots__" in vars(k) for k in type(value).__mro__):
        return None  # a subclass with more inside than its entries

    def cleared(value: Any, move: Move) -> Any:
        made = copy.copy(value)
        made.clear()
        return made

    return cleared


def rebuild(value: Any, move: Move, made: dict[int, Any]) -> tuple[Any, bool]:
    """``value`` with ``move`` applied to all that it holds, and whether its kind is known.

    A mutable container is always a new one, entered in ``made`` by the identity of the old one
    before it is filled, since it may hold itself. Any other value is returned as it is if nothing
    in it moves.
    """
    empty = _emptied(value)
    if empty is not None:
        new = made[id(value)] = empty(value, move)
        if isinstance(value, _KEYED):
            for key, item in list(value.items()):
                new[move(key)] = move(item)
        elif isinstance(value, (list, deque)):
            new.extend([move(item) for item in value])
        else:
            new.update([move(item) for item in value])
        return new, True
    kind: Any = type(value)
    if isinstance(value, (tuple, frozenset)):
        items = [move(item) for item in value]
        if all(a is b for a, b in zip(items, value, strict=True)):
            return value, True
        return kind(*items) if hasattr(value, "_fields") else kind(items), True
    if kind is types.MethodType:
        owner, function = move(value.__self__), move(value.__func__)
        if owner is value.__self__ and function is value.__func__:
            return value, True
        if torch.compiler.is_compiling():  # a graph capture knows partials but not this class
            return functools.partial(function, owner), True
        return types.MethodType(function, owner), True
    if kind is types.BuiltinFunctionType and not is_inert(value.__self__):
        owner = move(value.__self__)
        return value if owner is value.__self__ else getattr(owner, value.__name__), True
    if kind is functools.partial:
        # A graph capture cannot read a partial's own attributes; calling one does not either.
        own = {} if torch.compiler.is_compiling() else vars(value)
        parts = (value.func, *value.args, *value.keywords.values(), *own.values())
        moved = [move(part) for part in parts]
        if all(a is b for a, b in zip(moved, parts, strict=True)):
            return value, True
        args = moved[1 : 1 + len(value.args)]
        named = dict(zip([*value.keywords, *own], moved[1 + len(value.args) :], strict=True))
        new = functools.partial(moved[0], *args, **{key: named[key] for key in value.keywords})
        if own:
            vars(new).update({key: named[key] for key in own})
        return new, True
    if kind is weakref.ref or kind is weakref.WeakMethod:
        target = value()
        moved_to = move(target)
        return value if moved_to is target else kind(moved_to), True
    if kind is types.MappingProxyType:
        (behind,) = gc.get_referents(value)
        moved_to = move(behind)
        return value if moved_to is behind else types.MappingProxyType(moved_to), True
    return value, False


# --- what is searched -------------------------------------------------------


@dataclass(frozen=True)
class Reached:
    """Something of the tree that a value refers to.

    Attributes:
        key: the identity of the module or parameter.
        obstacle: what stands between and cannot be followed, in words; ``""`` if nothing does.
    """

    key: int
    obstacle: str


@dataclass
class Search:
    """A search through the attributes of a module tree.

    Args:
        modules: the modules of the tree.
        targets: the parameters that are to be replaced, by name.

    Attributes:
        judged: what was met and cannot be followed; held, so that no identity is used twice.
    """

    modules: list[nn.Module]
    targets: Mapping[str, Tensor]
    judged: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tree = {id(module) for module in self.modules}
        self._tree.update(map(id, self.targets.values()))
        self._spans = _Spans(self.targets)
        self._nodes: dict[Any, str] = {}  # the autograd nodes of targets
        for name, tensor in self.targets.items():
            if tensor.requires_grad:
                node = (tensor.grad_fn, tensor.output_nr)
                self._nodes[id(tensor) if tensor.grad_fn is None else node] = name
        self._proxied = {
            id(proxy): thing
            for thing in (*self.modules, *self.targets.values())
            for proxy in weakref.getweakrefs(thing)
            if type(proxy) in weakref.ProxyTypes
        }
        self._seen: dict[int, list[int]] = {}

    def from_value(self, value: Any) -> list[Reached]:
        """All of the tree that the value refers to."""
        found: list[Reached] = []
        seen: dict[int, Any] = {}

        def visit(part: Any) -> Any:
            if is_inert(part):
                return part
            if id(part) in self._tree:
                found.append(Reached(id(part), ""))
            elif id(part) not in seen:
                seen[id(part)] = part
                if not rebuild(part, visit, {})[1]:
                    self.judged.append(part)
                    for key, obstacle in self._through(part):
                        found.append(Reached(key, obstacle))
            return part

        visit(value)
        return found

    def stale_tensor(self, tensor: Tensor) -> tuple[int, str] | None:
        """The target whose values the tensor has or was computed from, and that in words."""
        name = self.sharing(tensor)
        if name is not None:
            return id(self.targets[name]), f"a tensor in the memory of the parameter {name!r}"
        name = self._source(tensor)
        if name is not None:
            return id(self.targets[name]), f"a tensor computed from the parameter {name!r}"
        return None

    def sharing(self, value: Any) -> str | None:
        """The target that has memory in common with a tensor or an array."""
        return self._spans.overlapping(value)

    def _source(self, tensor: Tensor) -> str | None:
        """The target that autograd says the tensor was computed from."""
        pending: list[tuple[Any, int]] = [(tensor.grad_fn, tensor.output_nr)]
        seen = set()
        while pending:
            edge = pending.pop()
            if edge[0] is None or edge in seen:
                continue
            seen.add(edge)
            leaf = getattr(edge[0], "variable", None)
            name = self._nodes.get(edge if leaf is None else id(leaf))
            if name is not None:
                return name
            pending.extend(edge[0].next_functions)
        return None

    def _through(self, value: Any) -> Iterator[tuple[int, str]]:
        """What is reached through a value that cannot be followed, with its name."""
        if isinstance(value, Tensor):
            stale = self.stale_tensor(value)
            return iter([stale] if stale else [])
        if id(value) not in self._seen:
            self._seen[id(value)] = self._reachable(value)
        name = described(value)
        return ((key, name) for key in self._seen[id(value)])

    def _reachable(self, value: Any) -> list[int]:
        found: list[int] = []
        seen: dict[int, Any] = {}
        pending = [value]
        while pending:
            part = pending.pop()
            if id(part) in seen or type(part) in ATOMS or isinstance(part, _HARMLESS):
                continue
            seen[id(part)] = part
            if id(part) in self._tree:
                found.append(id(part))
            elif isinstance(part, Tensor):
                stale = self.stale_tensor(part)
                found.extend(stale[:1] if stale else ())
            else:
                pending.extend(self._held(part))
        return found

    def _held(self, value: Any) -> Iterable[Any]:
        """What a value refers to, read as the garbage collector reads it."""
        if type(value) in weakref.ProxyTypes:
            return [self._proxied.get(id(value))]
        if isinstance(value, weakref.ref):
            return [value()]
        if isinstance(value, types.FunctionType):
            return _held_by_function(value)
        if isinstance(value, types.FrameType):
            return list(value.f_locals.values())
        name = self.sharing(value)
        if name is not None:
            return [self.targets[name]]
        if _is_array(value):  # of objects: the garbage collector does not see them
            return list(value.ravel())
        parts = gc.get_referents(value)
        if isinstance(value, torch.jit.ScriptModule):  # holds its tensors outside Python
            parts += [*value.parameters(), *value.buffers()]
        return parts


def state_of(value: Any) -> Any:
    """What tells whether a value that is not followed has changed inside since it was looked at."""
    if isinstance(value, Tensor):
        return version_of(value)
    if isinstance(value, (nn.Module, types.FunctionType)):
        return None
    held = getattr(value, "__dict__", None)
    return tuple(held.values()) if type(held) is dict else None


def has_changed(value: Any, before: Any) -> bool:
    """Whether a value has changed since :func:`state_of`, and not only in numbers and text."""
    now = state_of(value)
    if not isinstance(before, tuple) or not isinstance(now, tuple):
        return bool(now != before)
    if len(now) != len(before):
        return True
    return any(a is not b and not is_inert(a) for a, b in zip(now, before, strict=True))


def described(value: Any) -> str:
    """A value that cannot be followed, in words."""
    if isinstance(value, types.FunctionType):
        what = "a closure" if value.__closure__ else "which reads more than its arguments"
        return f"the function {value.__qualname__!r}, {what}"
    return f"an object of class {type(value).__name__}"


def is_container(value: Any) -> bool:
    """Whether the value is a module, a tensor, or something that is made to hold others."""
    kinds = (nn.Module, Tensor, tuple, frozenset, functools.partial, types.MethodType, weakref.ref)
    return not is_inert(value) and (isinstance(value, kinds) or _emptied(value) is not None)


def variables_of(function: types.FunctionType) -> Iterator[Any]:
    """The variables outside of it that a function reads, but functions and classes."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # a cell that is not filled yet
            yield cell.cell_contents
    for name in globals_read(function.__code__):
        yield function.__globals__.get(name)


def _held_by_function(function: types.FunctionType) -> Iterator[Any]:
    """The cells, defaults, attributes and global variables of a function."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # a cell that is not filled yet
            yield cell.cell_contents
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from vars(function).values()
    names = function.__globals__
    for name in globals_read(function.__code__):
        value = names.get(name)
        # A function of another module is a library's, and reads no variable of the user's.
        if not isinstance(value, types.FunctionType) or value.__globals__ is names:
            yield value


@functools.lru_cache(maxsize=4096)
def globals_read(code: types.CodeType) -> tuple[str, ...]:
    """The global names that a function reads, those of its inner functions included."""
    found = {
        i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            found.update(globals_read(part))
    return tuple(sorted(found))


def _is_array(value: Any) -> bool:
    """Whether the value is an array of numpy, which is not imported for that."""
    return any(
        kind.__module__ == "numpy" and kind.__name__ == "ndarray" for kind in type(value).__mro__
    )


class _Spans:
    """Where in memory the values of tensors are."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._alive: list[Any] = []  # no identity of a storage is used twice
        self._spans: dict[Any, list[tuple[int, int, str]]] = {}
        for name, tensor in tensors.items():
            found = self._find(tensor)
            if found is not None:
                space, first, end = found
                bisect.insort(self._spans.setdefault(space, []), (first, end, name))

    def overlapping(self, value: Any) -> str | None:
        """The name of a tensor in whose memory a tensor or an array is."""
        found = self._find(value)
        if found is None:
            return None
        space, first, end = found
        spans = self._spans.get(space, [])
        # The tensors do not overlap each other, so the last that starts before the end is nearest.
        before = bisect.bisect_left(spans, (end,)) - 1
        return spans[before][2] if before >= 0 and spans[before][1] > first else None

    def _find(self, value: Any) -> tuple[Any, int, int] | None:
        """``(space, first, end)`` in bytes; None if that cannot be told.

        As for a tensor that a transform has wrapped.
        """
        if _is_array(value):
            if value.dtype.hasobject:
                return None
            first = value.__array_interface__["data"][0]
            return torch.device("cpu"), first, first + value.nbytes
        if not isinstance(value, Tensor) or not value.numel():
            return None
        try:
            first, storage = value.data_ptr(), value.untyped_storage()
            has_memory = bool(storage.data_ptr())
            steps = [(n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True)]
        except RuntimeError:
            return None
        space: Any = value.device
        if not has_memory:  # no memory behind it, as on the meta device
            self._alive.append(storage)
            space, first = id(storage), value.storage_offset() * value.element_size()
        return space, first, first + (sum(steps) + 1) * value.element_size()
