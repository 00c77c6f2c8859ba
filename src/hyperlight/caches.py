"""Which attributes hold what an earlier forward has computed.

A network that has run may keep values that it computed from its weights: a normalised weight, a
product of two, a rotary table. Without a graph (``torch.no_grad``) nothing about such a tensor
tells where it comes from, so the code of the module tree is asked: which attributes does it assign
after ``__init__``, which of these does it read, and how do they start?
"""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_FILLING = frozenset(
    {"append", "appendleft", "extend", "insert", "setdefault", "update", "add", "copy_"}
)
SETUP = ("__init__", "__post_init__", "reset_parameters", "__setstate__", "__new__")


class Absent:
    """Stands for an attribute that is not there yet."""


@dataclass(frozen=True)
class _Code:
    """What one function does with attributes, by name."""

    name: str
    stored: frozenset[str] = frozenset()
    read: frozenset[str] = frozenset()
    filled: frozenset[str] = frozenset()  # the container that it holds is given an entry
    entered: frozenset[str] = frozenset()  # the object that it holds is given an attribute
    tested: frozenset[str] = frozenset()  # compared with None, or asked for with hasattr
    empty: frozenset[str] = frozenset()  # stored as None or an empty container
    solid: frozenset[str] = frozenset()  # stored as anything else


@dataclass(frozen=True)
class Habits:
    """What the code of a module tree does with attributes, by name, in setup and after."""

    setup: tuple[_Code, ...]
    after: tuple[_Code, ...]

    @classmethod
    def of(cls, modules: Iterable[nn.Module]) -> Habits:
        """Read the code of all classes in a tree, but those of torch itself."""
        codes = [
            _read_code(f.__code__, f.__name__) for f in functions_of({type(m) for m in modules})
        ]
        reached = {code.name for code in codes if code.name in SETUP}
        while True:
            more = {n for code in codes if code.name in reached for n in code.read} - reached
            more &= {code.name for code in codes}
            if not more:
                break
            reached |= more
        # What other code calls as well belongs to both.
        while True:
            again = {n for code in codes if code.name not in reached for n in code.read} & reached
            again -= set(SETUP)
            if not again:
                break
            reached -= again
        setup = tuple(code for code in codes if code.name in reached)
        return cls(setup, tuple(code for code in codes if code.name not in reached))

    def _any(self, part: str, name: str, codes: Iterable[_Code]) -> bool:
        return any(name in getattr(code, part) for code in codes)

    def is_kept(self, name: str) -> bool:
        """Whether a later forward may read what an earlier one left in the attribute."""
        written = self._any("stored", name, self.after) or self._any("filled", name, self.after)
        return written and self._any("read", name, self.after)

    def is_filled(self, name: str) -> bool:
        """Whether code after setup puts entries into the container that the attribute holds."""
        return self._any("filled", name, self.after)

    def is_entered(self, name: str, value: Any) -> bool:
        """Whether code after setup writes into the object that the attribute holds."""
        if self._any("entered", name, self.after) or self.is_filled(name):
            return True
        codes = [_read_code(f.__code__, f.__name__) for f in functions_of([type(value)])]
        return any(c.stored or c.filled for c in codes if c.name not in SETUP)

    def only_read_outside(self, name: str) -> bool:
        """Whether the code assigns the attribute and never reads it: a result, as a loss."""
        stored = self._any("stored", name, self.after)
        return stored and not self._any("read", name, (*self.setup, *self.after))

    def start(self, module: nn.Module, name: str, value: Any) -> Any:
        """The value with which the attribute starts: None, an empty container or Absent.

        Raises:
            LookupError: it starts otherwise, or the code does not say.
        """
        at_class = getattr(type(module), name, Absent)
        tested = self._any("tested", name, self.after)
        if self._any("solid", name, self.setup) or self._any("filled", name, self.setup):
            raise LookupError(name)
        if self._any("empty", name, self.setup):
            if isinstance(value, (dict, list, set)):
                return type(value)()
            if tested:
                return None
        elif (at_class is None or at_class is Absent) and tested:
            return Absent
        raise LookupError(name)


def is_telling(value: Any) -> bool:
    """Whether a tensor has values that weights could have gone into: a mask has none."""
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return False
    if value.device.type == "meta" or not value.numel():
        return False
    try:
        found = torch.unique(value.detach())
    except RuntimeError:
        return True
    if value.numel() > 2 and len(found) <= 2:
        return False
    plain = (found == 0) | (found == 1) | found.isinf()
    return not bool(plain.all())


def functions_of(kinds: Iterable[type]) -> Iterator[types.FunctionType]:
    """The methods and property getters of classes and their bases, but those of torch."""
    bases = {base for kind in kinds for base in kind.__mro__}
    for base in sorted(bases, key=lambda base: base.__qualname__):
        if base.__module__.partition(".")[0] in ("torch", "builtins", "abc", "typing"):
            continue
        for value in vars(base).values():
            for part in (getattr(value, "fget", None), getattr(value, "func", None), value):
                while hasattr(part, "__wrapped__") or hasattr(part, "__func__"):
                    part = getattr(part, "__wrapped__", None) or getattr(part, "__func__", None)
                if isinstance(part, types.FunctionType):
                    yield part
                    break


@functools.lru_cache(maxsize=4096)
def _read_code(code: types.CodeType, name: str) -> _Code:
    found: dict[str, set[str]] = {
        part: set() for part in ("stored", "read", "filled", "entered", "tested")
    }
    found["empty"], found["solid"] = set(), set()
    steps = [i for i in dis.get_instructions(code) if i.opname not in ("CACHE", "NOP", "PRECALL")]
    variables: dict[str, str] = {}  # local ones that hold an attribute
    for at, step in enumerate(steps):
        following = steps[at + 1 : at + 7]
        if step.opname.startswith("LOAD_FAST") and step.argval in variables and _fills(following):
            found["filled"].add(variables[step.argval])
        if step.opname == "STORE_ATTR":
            found["stored"].add(step.argval)
            before = steps[at - 2] if at > 1 else step
            nothing = before.opname == "LOAD_CONST" and before.argval is None
            nothing |= before.opname in ("BUILD_MAP", "BUILD_LIST") and before.arg == 0
            found["empty" if nothing else "solid"].add(step.argval)
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            found["read"].add(step.argval)
            if following and following[0].opname == "STORE_FAST":
                variables[following[0].argval] = step.argval
            if _fills(following):
                found["filled"].add(step.argval)
            if _enters(following):
                found["entered"].add(step.argval)
            if _tests(following):
                found["tested"].add(step.argval)
            if step.argval == "register_buffer":
                found["empty"].update(_nothing_registered(following))
        elif step.opname == "LOAD_GLOBAL" and step.argval in ("setattr", "getattr", "hasattr"):
            # By name: the strings of the function are taken for the attributes.
            names = {text for text in code.co_consts if isinstance(text, str)}
            touched = {"setattr": ("stored", "solid"), "getattr": ("read",)}
            for part in touched.get(step.argval, ("read", "tested")):
                found[part].update(names)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            inner = _read_code(const, name)
            for key, names in found.items():
                names.update(getattr(inner, key))
    return _Code(name, **{key: frozenset(names) for key, names in found.items()})


def _tests(following: list[dis.Instruction]) -> bool:
    """Whether the attribute just read is compared with None at once."""
    names = [step.opname for step in following[:2]]
    if names and "NONE" in names[0] and names[0].startswith("POP_JUMP"):
        return True
    return names[1:] == ["IS_OP"] and following[0].argval is None


def _enters(following: list[dis.Instruction]) -> bool:
    """Whether something is written into the object just read, at any depth."""
    for at, step in enumerate(following):
        if step.opname == "STORE_ATTR":
            return True
        if step.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
            return False
        if _fills(following[at + 1 :]):
            return True
    return False


def _nothing_registered(following: list[dis.Instruction]) -> list[str]:
    """The name in ``register_buffer(name, None)``."""
    consts = [step.argval for step in following if step.opname == "LOAD_CONST"]
    return [consts[0]] if len(consts) > 1 and consts[1] is None else []


def _fills(following: list[dis.Instruction]) -> bool:
    """Whether an entry is put into the attribute just read."""
    if following and following[0].opname in ("LOAD_ATTR", "LOAD_METHOD"):
        return following[0].argval in _FILLING
    for step in following:
        if step.opname == "STORE_SUBSCR":
            return True
        if step.opname.startswith(("STORE", "POP", "CALL", "RETURN", "BINARY_SUBSCR")):
            return False
    return False
