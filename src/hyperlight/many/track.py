"""Where the samples are: a record of what every operation does with the sample axis.

A layer with one set of weights per sample has to know which of its input's dimensions holds the
samples. Sizes do not tell: a sequence may be as long as the batch, and ``(B * T, d)`` and
``(T * B, d)`` look alike. So the real call is watched, operation by operation. What is recorded is
a property of memory: at which stride the sample index runs through a storage. Views, slices,
transposes and writes through views then follow by arithmetic. All other operations have a rule
below; one without a rule makes its result unknown, and what is unknown never reaches a layer with
weights per sample (it is refused there). A rule that is missing costs speed, never the result.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._torch import (
    DispatchMode,
    StorageWeakRef,
    arguments_of_operator,
    can_decompose,
    hint,
    identity,
)

# What is known of a tensor that no dimension of holds samples. Of one that has such a dimension
# an Axis is known.
SAME = "the same for all entries"  # a constant, or random numbers
SHARED = "the same for all samples"  # parameters, buffers, arange
INDEX = "the number of the sample"  # arange(B)
POOLED = "made of all samples"  # whether any is padded, the longest length: whole numbers
UNKNOWN = "unknown"

# What kind of Axis it is. DATA belongs to a sample, EQUAL is the same for all of them (a mask
# expanded to the batch), COPIED as well, but it is known to be the samples' (an argument of a
# sweep). A frozenset names layers whose input was taken for EQUAL; meeting DATA confirms it.
# Two kinds have another shape than the network expects, until they meet DATA: EXPANDED is as long
# as the batch where the network has a dimension of size 1 (a class token, positions), ADDED is a
# dimension in front of those that the network has (a table without a batch).
DATA, EQUAL, COPIED, EXPANDED, ADDED = "data", "equal", "copied", "expanded", "added"
_RESHAPED = (EXPANDED, ADDED)


class Axis(NamedTuple):
    """Dimension ``dim`` has ``outer * B * inner`` entries; entry ``(o * B + b) * inner + i``
    belongs to sample ``b``.
    """

    dim: int
    inner: int = 1
    outer: int = 1
    kind: str | frozenset[str] = DATA

    @property
    def place(self) -> tuple[int, int, int]:
        return self[:3]


Fact = Axis | str

# From how many on it is looked which tensors are gone.
_MOST_RECORDS = 4096

_Item = tuple[Tensor, Fact]


class _Call(NamedTuple):
    """One operation, as a rule sees it."""

    facts: list[_Item]
    names: tuple[str, ...]  # of the arguments, in order
    given: dict[str, Any]
    out: Tensor
    layout: Axis  # how a dimension holds the batch
    length: int  # of the batch
    together: Callable[[set[Any]], Any]  # the kind of an axis on which several kinds meet

    def even(self, dim: int) -> Axis:
        """A dimension as long as the batch, along which all entries are the same."""
        return self.layout._replace(dim=dim, kind=EQUAL)


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among an operation's arguments or results: alone or in lists."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [item for item in value if isinstance(item, Tensor)]
    return found


class Lost(Exception):  # noqa: N818 (no error: another way is taken)
    """The sample axis cannot be followed. The message says from where on."""


class Tracker(DispatchMode):  # type: ignore[misc]
    """While it is on, it records where the samples are.

    Args:
        samples: ``B``, at least 2.
        layout: how a dimension of the batch holds the samples; in a sweep every one has as many
            entries as the data.
        record: the facts by storage, to go on with those of an earlier call.
        guarded: tensors that no operation may read, with their names: the weights of layers that
            have one set per sample, which only those layers may use.
    """

    def __init__(
        self,
        samples: int,
        layout: Axis,
        record: dict[int, Any],
        guarded: Iterable[tuple[str, Tensor]],
    ) -> None:
        super().__init__()
        self.samples, self.layout, self.record = samples, layout, record
        self.length = samples * layout.inner * layout.outer
        self.why: dict[int, str] = {}
        self.lost = ""  # why nothing can be known from here on
        self.failed = ""  # why the call cannot go on
        self.reshaped = False  # whether a tensor has another shape than the network expects
        self._arguments: set[int] = set()
        self.decided: set[int] = set()  # storages of whole numbers that were decided by others
        self.drawn: set[int] = set()  # storages that random numbers went into
        self.outside: Fact = UNKNOWN  # what is known of tensors that nobody told of
        self.open: set[str] = set()  # layers whose input was taken for EQUAL, not confirmed yet
        self.wrote_outside = False  # whether a tensor from before the call was written to
        self._off = 0
        self._forget()
        self._guarded: dict[int, list[tuple[int, int, str]]] = {}
        for name, tensor in guarded:
            start, end = _span(tensor)
            place = self._guarded.setdefault(_key(tensor), [])
            place.append((start, end, name))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Operations in here are not watched: a layer says itself what it does."""
        self._off += 1
        try:
            yield
        finally:
            self._off -= 1

    @contextlib.contextmanager
    def resumed(self) -> Iterator[None]:
        """Watch operations inside :meth:`paused`; guarded tensors may be read."""
        off, guarded, self._off, self._guarded = self._off, self._guarded, 0, {}
        try:
            yield
        finally:
            self._off, self._guarded = off, guarded

    def _forget(self) -> None:
        """Forget tensors that are gone."""
        for key in [key for key, (storage, _) in self.record.items() if storage.expired()]:
            del self.record[key]
            self.why.pop(key, None)
            self.decided.discard(key)
            self.drawn.discard(key)
        self._most = max(_MOST_RECORDS, 2 * len(self.record))

    def fail(self, why: str) -> Lost:
        """The error for a call that cannot go on; it cannot be swallowed by the network."""
        self.failed = self.failed or why
        return Lost(why)

    # --- facts, by storage ------------------------------------------------------------------

    def _stored(self, tensor: Tensor) -> Any:
        entry = self.record.get(_key(tensor))
        if entry is None or entry[0].expired():
            return None
        return entry[1]

    def _store(self, tensor: Tensor, value: Any, why: str = "") -> None:
        storage = tensor.untyped_storage()
        key = identity(storage)
        self.decided.discard(key)
        self.drawn.discard(key)
        if len(self.record) > self._most:
            self._forget()
        self.record[key] = (StorageWeakRef(storage), value)
        if value == UNKNOWN:
            self.why[key] = why

    def fact(self, tensor: Tensor) -> Fact:
        """What is known of a tensor."""
        stored = self._stored(tensor)
        if isinstance(stored, tuple):
            place = self._place(tensor, stored[0], stored[1])
            if place is not None:
                return Axis(*place, stored[2])
            return SHARED if stored[2] == EQUAL else UNKNOWN
        if stored is None or stored == SHARED:  # one number is the same for all
            if hint(tensor.numel()) == 1:
                return SAME
            known = self.outside if stored is None else SHARED
            return self._expanded(tensor) if known == SHARED else known
        return str(stored)

    def _expanded(self, tensor: Tensor) -> Fact:
        """Shared content that was expanded to the length of the batch is EQUAL."""
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            if hint(size) == self.length and hint(stride) == 0:
                return self.layout._replace(dim=dim, kind=EQUAL)
        return SHARED

    def reason(self, tensor: Tensor) -> str:
        """Why a tensor is unknown."""
        if self._stored(tensor) is None:
            return "it comes from outside of the call"
        return self.why.get(_key(tensor), "only some of the samples are in it")

    def _place(self, tensor: Tensor, step: int, start: int) -> tuple[int, int, int] | None:
        """Which dimension moves the sample index, if it does so in whole batches.

        The entry at byte ``a`` of the storage belongs to sample ``(a - start) // step % B``.
        """
        item, samples = tensor.element_size(), self.samples
        inside = (hint(tensor.storage_offset()) * item - start) % (step * samples)
        found: tuple[int, int, int] | None = None
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            n, by = hint(size), hint(stride) * item
            if n <= 1 or by % (step * samples) == 0:
                continue
            if (n - 1) * by < step:
                inside += (n - 1) * by
                continue
            if found or by > step or step % by or n % (step // by * samples):
                return None
            found = (dim, step // by, n // (step // by * samples))
            inside += step - by
        return found if found and inside < step else None

    def put(self, tensor: Tensor, fact: Fact, why: str = "") -> None:
        """Say what is known of a whole new tensor."""
        if not isinstance(fact, Axis):
            return self._store(tensor, fact, why)
        self.reshaped = self.reshaped or fact.kind in _RESHAPED
        item, offset = tensor.element_size(), hint(tensor.storage_offset())
        step = hint(tensor.stride(fact.dim)) * fact.inner * item
        if step:
            for start in (offset * item - offset * item % step, offset * item):
                if self._place(tensor, step, start) == fact.place:
                    return self._store(tensor, (step, start, fact.kind))
        self._store(tensor, SHARED if fact.kind == EQUAL else UNKNOWN, why or "its layout")

    def hold(self, tensor: Tensor) -> None:
        """A tensor that the network holds: shared, unless an earlier call made it."""
        if _has_memory(tensor) and self._stored(tensor) is None:
            self._store(tensor, SHARED)

    def open_argument(self, tensor: Tensor, fact: Fact) -> Tensor:
        """An argument, of which this is known. It is copied if its memory is that of another one
        of which something else is known.
        """
        if not _has_memory(tensor):
            return tensor
        if self._stored(tensor) is None:
            self.put(tensor, fact)
        if self.fact(tensor) not in (fact, SAME):
            tensor = tensor.clone(memory_format=torch.contiguous_format)
            self.put(tensor, fact)
        self._arguments.add(_key(tensor))
        return tensor

    def know(self, tensor: Tensor, fact: Fact, why: str) -> None:
        """A tensor in an object among the arguments, of which this is known at most."""
        if _has_memory(tensor):
            if self._stored(tensor) is None:
                self.put(tensor, fact, why)
            elif self.fact(tensor) not in (fact, SAME):
                self._store(tensor, UNKNOWN, "several arguments share its memory")

    def _write(self, tensor: Tensor, fact: Fact, why: str) -> None:
        """An operation has written to a tensor, which may be a part of a storage."""
        old = self._stored(tensor)
        whole = hint(tensor.numel()) * tensor.element_size() == tensor.untyped_storage().nbytes()
        if old is None or old == SHARED or _key(tensor) in self._arguments:
            self.wrote_outside = True
        if fact in (UNKNOWN, POOLED) or (whole and fact != SAME):
            return self.put(tensor, fact, why)
        if old is None or old == UNKNOWN:
            return self._store(tensor, UNKNOWN, why)
        if isinstance(old, tuple):
            if not isinstance(fact, Axis):
                if fact != SAME:
                    self._store(tensor, UNKNOWN, why)
            elif self._place(tensor, old[0], old[1]) != fact.place:
                self._store(tensor, UNKNOWN, why)
            elif fact.kind != old[2] and fact.kind != EQUAL:
                kind = self.together({fact.kind, old[2]})
                self._store(tensor, (old[0], old[1], kind))
        elif isinstance(fact, Axis):
            if old == SAME:
                self.put(tensor, fact, why)
            else:
                self._store(tensor, UNKNOWN, why)
        elif old == SAME and not (fact == SAME and whole):
            self._store(tensor, self._in_part(tensor) if fact == SAME else SHARED)

    def _in_part(self, tensor: Tensor) -> Any:
        """What a constant becomes that is overwritten in part by another one."""
        item, total = tensor.element_size(), tensor.untyped_storage().nbytes()
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            step = hint(stride) * item
            if hint(size) == self.length and step and total % (step * self.length) == 0:
                return (step * self.layout.inner, 0, EQUAL)
        return SHARED

    # --- the operations ---------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._off:
            return func(*args, **kwargs)
        given = _tensors((*args, *kwargs.values()))
        self._guard(given)
        operation = _operation(func)
        if operation.rule is None and operation.decomposes:
            with self:
                return func.decompose(*args, **kwargs)
        before = {_key(tensor) for tensor in given}
        facts = [(tensor, self.fact(tensor)) for tensor in given]
        out = func(*args, **kwargs)
        reshaped = any(self._is_reshaped(tensor, known) for tensor, known in facts)
        if operation.is_view:
            if reshaped and not _sees_through(facts[0], out):
                raise self._misled(operation)
            return out
        made = _tensors(out if isinstance(out, (tuple, list)) else (out,))
        if not made:
            return out
        named = dict(zip(operation.names, args)) | kwargs  # noqa: B905 (defaults are left out)
        fact: Fact = UNKNOWN
        if operation.rule is not None:
            call = _Call(
                facts,
                operation.names,
                named,
                made[0],
                self.layout,
                self.length,
                self.together,
            )
            fact = operation.rule(call)
        elif not any(_of_samples(known) for _, known in facts):
            fact = SHARED  # whatever it does, it does it to what all samples share
        decided = self._decides(operation, facts)
        if decided and fact in (SAME, POOLED):
            fact = UNKNOWN
        if reshaped and not (isinstance(fact, Axis) and _fits(fact, made[0], self.samples)):
            raise self._misled(operation)
        drawn = operation.draws and ("dropout_p" not in operation.names or named.get("dropout_p"))
        drawn = drawn or any(_key(tensor) in self.drawn for tensor in given)
        if drawn and isinstance(fact, Axis) and fact.kind == COPIED:
            fact = fact._replace(kind=DATA)  # every set has numbers of its own
        why = operation.name
        if fact == UNKNOWN:
            why = self._because(facts, operation.name)
        written = _tensors(named.get(name) for name in operation.writes)
        for tensor in written:
            self._write(tensor, fact if len(written) == 1 else UNKNOWN, why)
        for tensor in made:
            if _key(tensor) in before:
                continue
            fits = not isinstance(fact, Axis) or _fits(fact, tensor, self.samples)
            self.put(tensor, fact if fits else UNKNOWN, why)
            if decided and not tensor.is_floating_point():
                self.decided.add(_key(tensor))
        if drawn:
            self.drawn.update(map(_key, made))
        return out

    def _is_reshaped(self, tensor: Tensor, fact: Fact) -> bool:
        """Whether the network takes a tensor for one of another shape."""
        if isinstance(fact, Axis):
            return fact.kind in _RESHAPED
        stored = self._stored(tensor)
        return fact == UNKNOWN and isinstance(stored, tuple) and stored[2] in _RESHAPED

    def _misled(self, operation: _Operation) -> Lost:
        return self.fail(
            f"{operation.name} is applied to a parameter or a table that the network has once and "
            "every sample has its own of, before it meets the samples' data"
        )

    def _decides(self, operation: _Operation, facts: list[_Item]) -> bool:
        """Whether whole numbers were made by comparing or rounding numbers of samples."""
        return any(_key(tensor) in self.decided for tensor, _ in facts) or (
            operation.rule is _join
            and operation.name not in _TELL_FINITE
            and any(tensor.is_floating_point() and _of_samples(fact) for tensor, fact in facts)
        )

    def read(self, tensor: Tensor, value: Any) -> None:
        """The network has read numbers of a tensor into Python.

        Whether any or all samples have a property (a mask has padding) it decides for the whole
        batch, as it does without a hypernetwork. All other numbers of samples would make one
        depend on the others.
        """
        fact = self.fact(tensor)
        if not _of_samples(fact) or self._off:
            return
        asked = isinstance(value, bool) and tensor.dtype == torch.bool
        if not asked or _key(tensor) in self.decided or fact != POOLED:
            self.lost = self.lost or f"numbers of samples were read into Python ({value!r:.40})"

    def _guard(self, given: Sequence[Tensor]) -> None:
        for tensor in given if self._guarded else ():
            for start, end, name in self._guarded.get(_key(tensor), ()):
                low, high = _span(tensor)
                if low < end and start < high:
                    raise self.fail(f"{name} is read outside of the layer that owns it")

    def _because(self, facts: list[_Item], name: str) -> str:
        for tensor, fact in facts:
            if fact == UNKNOWN:
                return self.reason(tensor)
        parts = []
        for tensor, fact in facts:
            known = f"samples in dimension {fact.dim}" if isinstance(fact, Axis) else fact
            parts.append(f"{tuple(tensor.shape)} ({known})")
        return f"{name} of {' and '.join(parts)}"

    def together(self, kinds: set[Any]) -> Any:
        """The kind of an axis on which several kinds meet."""
        assumed = frozenset().union(*(kind for kind in kinds if isinstance(kind, frozenset)))
        if DATA in kinds or COPIED in kinds:
            self.open -= assumed
            return COPIED if kinds <= {COPIED, EQUAL} else DATA
        if assumed:
            return assumed
        return next((kind for kind in _RESHAPED if kind in kinds), EQUAL)


def _fits(axis: Axis, tensor: Tensor, samples: int) -> bool:
    size = axis.inner * axis.outer * samples
    return axis.dim < tensor.ndim and hint(tensor.shape[axis.dim]) == size


def _sees_through(item: _Item, view: Any) -> bool:
    """Whether a view means the same of a reshaped tensor as of the one that the network expects."""
    tensor, fact = item
    if not isinstance(view, Tensor):
        return False
    same = view.shape == tensor.shape and view.stride() == tensor.stride()
    return same or (isinstance(fact, Axis) and fact.kind == EXPANDED)


def _has_memory(tensor: Tensor) -> bool:
    """Whether a tensor has a storage of its own; sparse ones and wrappers have none."""
    try:
        return tensor.layout == torch.strided and bool(_key(tensor))
    except RuntimeError:
        return False


def _of_samples(fact: Fact) -> bool:
    """Whether it depends on samples."""
    return fact.kind != EQUAL if isinstance(fact, Axis) else fact in (UNKNOWN, POOLED)


def _key(tensor: Tensor) -> int:
    return identity(tensor.untyped_storage())


def _span(tensor: Tensor) -> tuple[int, int]:
    """The bytes of its storage that a tensor reaches."""
    item, low = tensor.element_size(), hint(tensor.storage_offset())
    if not hint(tensor.numel()):
        return 0, 0
    last = sum((hint(n) - 1) * hint(s) for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return low * item, (low + last + 1) * item


# --- the rules --------------------------------------------------------------------------
#
# A rule says what is known of an operation's result. Not to know is always right.


_Rule = Callable[[_Call], Fact]


def _join(call: _Call) -> Fact:
    """An operation that works entry by entry, after broadcasting."""
    return _joined(call, call.facts, call.out.ndim)


def _joined(call: _Call, items: Sequence[_Item], ndim: int) -> Fact:
    if any(fact == UNKNOWN for _, fact in items):
        return UNKNOWN
    if any(fact == POOLED for _, fact in items):
        return UNKNOWN if any(isinstance(fact, Axis) for _, fact in items) else POOLED
    if any(isinstance(fact, Axis) and fact.kind != EQUAL for _, fact in items):
        return _aligned(call, items, ndim, lambda fact: fact.kind != EQUAL)
    if any(isinstance(fact, Axis) for _, fact in items):
        found = _aligned(call, items, ndim, lambda _: True)
        return found._replace(kind=EQUAL) if isinstance(found, Axis) else SHARED
    if all(fact == SAME for _, fact in items):
        return SAME
    if any(fact == SAME for _, fact in items) and ndim == call.out.ndim:
        for dim, size in enumerate(call.out.shape):  # only constants reach along this dimension
            if hint(size) == call.length and all(
                fact == SAME or not _reaches(t, dim - ndim + t.ndim) for t, fact in items
            ):
                return call.even(dim)
    return SHARED


def _reaches(tensor: Tensor, dim: int) -> bool:
    """Whether the entries differ along a dimension, if there is one."""
    return dim >= 0 and hint(tensor.shape[dim]) > 1 and hint(tensor.stride(dim)) != 0


def _aligned(
    call: _Call, items: Sequence[_Item], ndim: int, counts: Callable[[Axis], bool]
) -> Fact:
    places = {
        (f.dim - t.ndim + ndim, f.inner, f.outer)
        for t, f in items
        if isinstance(f, Axis) and counts(f)
    }
    if len(places) != 1:
        return UNKNOWN
    ((dim, inner, outer),) = places
    kinds, seen = set(), False
    for tensor, fact in items:
        at = dim - ndim + tensor.ndim
        if isinstance(fact, Axis) and fact.place == (at, inner, outer):
            kinds.add(fact.kind)
        elif fact != SAME and _reaches(tensor, at):
            return UNKNOWN  # shared content as long as the batch, by chance
        seen = seen or (at >= 0 and not (isinstance(fact, Axis) and fact.kind == ADDED))
    kind = call.together(kinds)
    return Axis(dim, inner, outer, EXPANDED if kind == ADDED and seen else kind)


def _alone(rule: _Rule, constant: bool = False) -> _Rule:
    """For operations that are no joins: treat what is UNKNOWN, EQUAL, ADDED or shared first.

    ``constant`` says that constants give a constant.
    """

    def whole(call: _Call) -> Fact:
        axes = [f for _, f in call.facts if isinstance(f, Axis)]
        if any(f in (UNKNOWN, POOLED) for _, f in call.facts) or any(f.kind == ADDED for f in axes):
            return UNKNOWN
        if not axes and constant and all(f == SAME for _, f in call.facts):
            return SAME
        places = {f.place for f in axes if f.kind != EQUAL}
        if not places:
            facts = call.facts if axes else [(t, _even(call, t, f)) for t, f in call.facts]
            even = any(isinstance(f, Axis) for _, f in facts)
            found = rule(call._replace(facts=facts)) if even else SHARED
            return found._replace(kind=EQUAL) if isinstance(found, Axis) else SHARED
        facts = [
            (t, SHARED if isinstance(f, Axis) and f.kind == EQUAL and f.place not in places else f)
            for t, f in call.facts
        ]
        return rule(call._replace(facts=facts))

    return whole


def _even(call: _Call, tensor: Tensor, fact: Fact) -> Fact:
    """A constant is EQUAL along a dimension as long as the batch."""
    sizes = [hint(size) for size in tensor.shape]
    if fact != SAME or call.length not in sizes:
        return fact
    return call.even(sizes.index(call.length))


def _only(call: _Call, index: int = 0) -> Axis | None:
    """The axis of one argument, if no other one has an axis."""
    axes = [f for _, f in call.facts if isinstance(f, Axis)]
    fact = call.facts[index][1]
    return fact if len(axes) == 1 and isinstance(fact, Axis) else None


def _first(call: _Call) -> Fact:
    """Entries of dimension 0 are worked on apart; the other arguments are shared."""
    axis = _only(call)
    return axis if axis and axis.dim == 0 else UNKNOWN


def _all_first(call: _Call) -> Fact:
    """Entries of dimension 0 are worked on apart, in all arguments alike."""
    axes = [f for _, f in call.facts if isinstance(f, Axis)]
    if len({f.place for f in axes}) != 1 or axes[0].dim:
        return UNKNOWN
    if any(not isinstance(f, Axis) and f != SAME and _reaches(t, 0) for t, f in call.facts):
        return UNKNOWN
    return axes[0]._replace(kind=call.together({f.kind for f in axes}))


def _batch_norm(call: _Call) -> Fact:
    """Its statistics are over the batch, by definition. Instance norm sees the samples folded
    into the channels.
    """
    axis = call.facts[0][1]
    others = [f for _, f in call.facts[1:] if isinstance(f, Axis)]
    if not isinstance(axis, Axis) or any(f.kind != EQUAL for f in others):
        return _alone(_first)(call)
    if any(f in (UNKNOWN, POOLED) for _, f in call.facts) or axis.kind == ADDED:
        return UNKNOWN
    if axis.dim == 1:
        settled = all(
            not _reaches(t, 0) or (isinstance(f, Axis) and f.place == (0, *axis.place[1:]))
            for t, f in call.facts[1:]
        )
        return axis if settled else UNKNOWN
    return axis if axis.dim == 0 and not others else UNKNOWN


def _dims(call: _Call) -> list[int] | None:
    """The dimensions that an operation works along; None for all of them."""
    given = call.given.get("dim", call.given.get("dims", call.given.get("axis")))
    if given is None or given == []:
        return None
    return [
        d % call.facts[0][0].ndim for d in (given if isinstance(given, (list, tuple)) else [given])
    ]


def _along(call: _Call) -> Fact:
    """Works along some dimensions, and keeps or drops them."""
    axis, dims = _only(call), _dims(call)
    if axis is None or dims is None or axis.dim in dims:
        return UNKNOWN
    dropped = call.facts[0][0].ndim - call.out.ndim
    return axis._replace(dim=axis.dim - (sum(d < axis.dim for d in dims) if dropped else 0))


def _pooled(call: _Call) -> Fact:
    """As :func:`_along`; whole numbers over all samples are POOLED.

    Whether any or all samples have a property (a mask has padding) is then a setting of the call.
    """
    (tensor, fact), *others = call.facts
    axis, dims = _only(call), _dims(call)
    over_samples = axis is not None and (dims is None or axis.dim in dims)
    if (over_samples or fact == POOLED) and not others and not tensor.is_floating_point():
        if not _of_samples(fact):
            return SHARED
        return SAME if call.out.dtype == torch.bool else POOLED
    return _alone(_along, constant=True)(call)


def _along_last(call: _Call) -> Fact:
    """As :func:`_along`, where the last dimension is meant if none is given."""
    return _along(call._replace(given={"dim": -1} | call.given))


def _normalized(call: _Call) -> Fact:
    """Layer norm: along the last dimensions."""
    axis = _only(call)
    last = len(call.given["normalized_shape"])
    return axis if axis and axis.dim < call.facts[0][0].ndim - last else UNKNOWN


def _product(call: _Call) -> Fact:
    return _multiplied(call, call.facts[0], call.facts[1])


def _multiplied(call: _Call, left: _Item, right: _Item) -> Fact:
    (a, f), (b, g) = left, right
    batched = call.out.ndim == 3
    for tensor, fact, summed in ((a, f, a.ndim - 1), (b, g, max(b.ndim - 2, 0))):
        if isinstance(fact, Axis) and fact.dim == summed and tensor.ndim:
            return UNKNOWN  # summed over the samples
    axes = [fact for fact in (f, g) if isinstance(fact, Axis)]
    if batched and any(axis.dim == 0 for axis in axes):
        return _all_first(call._replace(facts=[left, right]))
    if len(axes) != 1:
        return UNKNOWN if axes else SHARED
    if isinstance(f, Axis):
        return f
    assert isinstance(g, Axis)
    return g._replace(dim=call.out.ndim - 1) if b.ndim > 1 else UNKNOWN


def _product_sum(call: _Call) -> Fact:
    """``addmm`` and ``baddbmm``: a product and a broadcast sum."""
    by_name = {id(t): f for t, f in call.facts}
    own, a, b = (call.given[name] for name in call.names[:3])
    found = _multiplied(call, (a, by_name[id(a)]), (b, by_name[id(b)]))
    if found == UNKNOWN:
        return UNKNOWN
    return _joined(call, [(own, by_name[id(own)]), (call.out, found)], call.out.ndim)


def _cat(call: _Call) -> Fact:
    dim = int(call.given.get("dim", 0)) % call.out.ndim
    items = [(t, f) for t, f in call.facts if hint(t.numel())]
    axes = [f for _, f in items if isinstance(f, Axis)]
    if not any(f.dim == dim for f in axes):
        return _varied(call, _joined(call, items, call.out.ndim), dim)
    if len(axes) < len(items) or len({f.place[:2] for f in axes}) != 1:
        return UNKNOWN
    kind = call.together({f.kind for f in axes})
    return UNKNOWN if kind == ADDED else Axis(dim, axes[0].inner, sum(f.outer for f in axes), kind)


def _varied(call: _Call, fact: Fact, dim: int) -> Fact:
    """Several constants beside each other differ along that dimension only."""
    if fact != SAME:
        return fact
    others = (d for d in range(call.out.ndim) if d != dim)
    along = next((d for d in others if hint(call.out.shape[d]) == call.length), None)
    return SHARED if along is None else call.even(along)


def _stack(call: _Call) -> Fact:
    dim = int(call.given.get("dim", 0)) % call.out.ndim
    found = _joined(call, call.facts, call.out.ndim - 1)
    if not isinstance(found, Axis):
        return _varied(call, found, dim)
    return found._replace(dim=found.dim + (dim <= found.dim))


def _repeat(call: _Call) -> Fact:
    (tensor, fact), repeats = call.facts[0], call.given["repeats"]
    added = len(repeats) - tensor.ndim
    if isinstance(fact, Axis):
        dim = fact.dim + added
        return fact._replace(dim=dim, outer=fact.outer * hint(repeats[dim]))
    return fact


def _repeat_shared(call: _Call) -> Fact:
    """Shared content that is repeated for every sample is EQUAL."""
    (tensor, fact), repeats = call.facts[0], call.given["repeats"]
    if fact == SHARED:
        added = len(repeats) - tensor.ndim
        for dim, times in enumerate(repeats):
            if hint(times) == call.length:
                inner = hint(tensor.shape[dim - added]) if dim >= added else 1
                return Axis(dim, inner * call.layout.inner, call.layout.outer, EQUAL)
    return _alone(_repeat, constant=True)(call)


def _padded(call: _Call) -> Fact:
    axis = _only(call)
    return axis if axis and axis.dim < call.out.ndim - len(call.given["pad"]) // 2 else UNKNOWN


def _triangle(call: _Call) -> Fact:
    axis = _only(call)
    return axis if axis and axis.dim < call.out.ndim - 2 else UNKNOWN


def _looked_up(call: _Call) -> Fact:
    """``embedding(weight, indices)``."""
    return call.facts[1][1] if _only(call, 1) else UNKNOWN


def _selected(call: _Call) -> Fact:
    """The same entries of every sample, along another dimension."""
    axis, dims = _only(call), _dims(call)
    return axis if axis and dims and axis.dim not in dims else UNKNOWN


def _gathered(call: _Call) -> Fact:
    """Entries that each sample chooses, along another dimension."""
    dims, axes = _dims(call), [f for _, f in call.facts if isinstance(f, Axis)]
    if dims is None or any(f.dim in dims for f in axes):
        return UNKNOWN
    if any(t.ndim != call.facts[0][0].ndim and t.ndim for t, _ in call.facts):
        return UNKNOWN
    return _joined(call, call.facts, call.facts[0][0].ndim)


def _copied_into(call: _Call) -> Fact:
    """``index_copy`` and ``index_add``: along another dimension, by shared indices."""
    dims = _dims(call)
    own, index, source = call.facts
    if dims is None or isinstance(index[1], Axis):
        return UNKNOWN
    if any(isinstance(f, Axis) and f.dim in dims for _, f in (own, source)):
        return UNKNOWN
    return _joined(call, [own, source], own[0].ndim)


def _indexed(call: _Call) -> Fact:
    """``tensor[indices]``, where some dimensions have an index tensor."""
    tensor, given = call.given["self"], call.given["indices"]
    known = {id(t): f for t, f in call.facts}
    positions = [d for d, index in enumerate(given) if index is not None]
    chosen = [given[d] for d in positions]
    if any(index.dtype in (torch.bool, torch.uint8) for index in chosen):
        return UNKNOWN  # how many entries there are depends on their values
    block = max(index.ndim for index in chosen)
    together = positions == list(range(positions[0], positions[-1] + 1))
    first = positions[0] if together else 0
    fact, facts = known[id(tensor)], [(index, known[id(index)]) for index in chosen]
    if any(f in (UNKNOWN, POOLED) for f in (fact, *(f for _, f in facts))):
        return UNKNOWN
    if isinstance(fact, Axis) and fact.dim in positions:
        return _each_its_own(call, fact, facts, positions.index(fact.dim), block, first)
    by_index = _joined(call, facts, block)
    if isinstance(fact, Axis):
        if isinstance(by_index, Axis):
            return UNKNOWN
        before = sum(d < fact.dim for d in positions)
        moved = block if not together or fact.dim > first else 0
        return fact._replace(dim=fact.dim - before + moved)
    if isinstance(by_index, Axis):
        return by_index._replace(dim=first + by_index.dim)
    return SAME if fact == SAME and not isinstance(by_index, Axis) else SHARED


def _each_its_own(
    call: _Call, fact: Axis, facts: list[_Item], chooser: int, block: int, first: int
) -> Fact:
    """``x[arange(B), choice]``: every sample chooses among its own entries."""
    index, kind = facts[chooser]
    dims = [d for d in range(index.ndim) if _reaches(index, d)]
    if kind != INDEX or fact.place[1:] != call.layout.place[1:] or len(dims) != 1:
        return UNKNOWN
    if hint(index.shape[dims[0]]) != call.length:
        return UNKNOWN
    here = dims[0] - index.ndim + block
    for other, known in facts:
        at = here - block + other.ndim
        if other is index or not _reaches(other, at):
            continue
        if not (isinstance(known, Axis) and known.place == (at, *call.layout.place[1:])):
            return UNKNOWN
    return call.layout._replace(dim=first + here, kind=fact.kind)


def _filled(call: _Call) -> Fact:
    """``x[mask] = number``."""
    own, indices, values = (call.given[name] for name in ("self", "indices", "values"))
    known = {id(t): f for t, f in call.facts}
    mask = indices[0]
    if len(indices) != 1 or mask is None or mask.dtype != torch.bool or hint(values.numel()) != 1:
        return UNKNOWN
    if known[id(values)] != SAME or {UNKNOWN, POOLED} & {known[id(mask)], known[id(own)]}:
        return UNKNOWN
    spread = mask.reshape(*mask.shape, *(1 for _ in range(own.ndim - mask.ndim)))
    return _joined(call, [(own, known[id(own)]), (spread, known[id(mask)])], own.ndim)


def _same(call: _Call) -> Fact:
    return SAME


def _counted(call: _Call) -> Fact:
    """``arange(B)`` numbers the samples; other such tables are shared."""
    numbers = [v for k, v in call.given.items() if k in ("start", "end", "step")]
    whole = call.out.ndim == 1 and hint(call.out.shape[0]) == call.length
    start, step = call.given.get("start", 0), call.given.get("step", 1)
    return INDEX if whole and numbers and (start, step) == (0, 1) else SHARED


def _shared(call: _Call) -> Fact:
    return SHARED


def _table(rule: _Rule, names: str) -> dict[str, _Rule]:
    return dict.fromkeys(names.split(), rule)


_RULES: dict[str, _Rule] = {
    **_table(
        _same,
        "empty zeros ones full rand randn randint empty_like zeros_like ones_like full_like "
        "rand_like randn_like randint_like new_empty new_zeros new_ones new_full "
        "new_empty_strided empty_strided scalar_tensor empty_permuted",
    ),
    **_table(_shared, "linspace logspace eye tril_indices triu_indices lift_fresh randperm"),
    "lift_fresh_copy": _shared,
    "arange": _counted,
    **_table(
        _join,
        "_to_copy clone copy_ copy alias native_dropout bernoulli bernoulli_ fill_ fill zero_ "
        "masked_fill masked_fill_ where uniform_ normal_ exponential_ random_ _conj resolve_conj "
        "resolve_neg _prelu_kernel polar complex lerp addcmul addcdiv bucketize isin",
    ),
    **_table(
        _alone(_along, constant=True),
        "mean prod var std var_mean std_mean logsumexp argmax argmin norm linalg_vector_norm "
        "_softmax _safe_softmax _log_softmax softmax log_softmax glu median nanmedian roll flip",
    ),
    **_table(_pooled, "sum amax amin max min any all"),
    **_table(_alone(_along), "cummax cummin logcumsumexp _fft_r2c _fft_c2r _fft_c2c"),
    **_table(_alone(_along_last), "cumsum cumprod sort topk kthvalue mode multinomial argsort"),
    **_table(
        _alone(_first),
        "convolution mkldnn_convolution max_pool1d max_pool2d_with_indices "
        "max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d "
        "_adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d "
        "upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d "
        "upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa native_group_norm im2col "
        "col2im pixel_shuffle pixel_unshuffle channel_shuffle reflection_pad1d reflection_pad2d "
        "reflection_pad3d replication_pad1d replication_pad2d replication_pad3d",
    ),
    **_table(
        _alone(_all_first),
        "grid_sampler_2d grid_sampler_3d _scaled_dot_product_flash_attention_for_cpu "
        "_scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention "
        "_scaled_dot_product_cudnn_attention _scaled_dot_product_attention_math",
    ),
    **_table(
        _batch_norm,
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional "
        "_batch_norm_with_update _batch_norm_no_update cudnn_batch_norm miopen_batch_norm",
    ),
    **_table(_alone(_normalized), "native_layer_norm _fused_rms_norm"),
    **_table(_alone(_product, constant=True), "mm mv bmm"),
    **_table(_alone(_product_sum, constant=True), "addmm baddbmm addmv"),
    **_table(_alone(_triangle), "tril triu"),
    **_table(_alone(_gathered), "gather scatter scatter_ scatter_add scatter_add_"),
    **_table(_alone(_copied_into), "index_copy index_copy_ index_add index_add_"),
    "cat": _cat,
    "stack": _stack,
    "repeat": _repeat_shared,
    "constant_pad_nd": _alone(_padded),
    "embedding": _alone(_looked_up),
    "index_select": _alone(_selected, constant=True),
    "index": _indexed,
    "index_put_": _filled,
    "index_put": _filled,
}


# Comparisons that guard against infinities, and decide nothing else.
_TELL_FINITE = frozenset(("isnan", "isinf", "isfinite", "isposinf", "isneginf"))


class _Operation(NamedTuple):
    name: str
    names: tuple[str, ...]  # of the arguments
    writes: tuple[str, ...]
    is_view: bool
    decomposes: bool
    draws: bool
    rule: _Rule | None


def _is_pointwise(func: Any) -> bool:
    """Whether every entry comes from one entry of each argument.

    Some operations that write in place (``mish_``, ``gt_``) lack the tag of their twins, and
    ``leaky_relu`` has it from PyTorch 2.12 on.
    """
    name = func.overloadpacket.__name__
    if torch.Tag.pointwise in func.tags or name in ("leaky_relu", "leaky_relu_"):
        return True
    if func.namespace != "aten" or not name.endswith("_"):
        return False
    overload = str(func).rpartition(".")[2]
    twin = getattr(getattr(torch.ops.aten, name[:-1], None), overload, None)
    return twin is not None and torch.Tag.pointwise in twin.tags


@functools.cache
def _operation(func: Any) -> _Operation:
    name = func.overloadpacket.__name__
    arguments = arguments_of_operator(func)
    rule = _RULES.get(name)
    if rule is None and _is_pointwise(func):
        rule = _join
    return _Operation(
        name,
        tuple(a.name for a in arguments),
        tuple(a.name for a in arguments if a.alias_info and a.alias_info.is_write),
        func.is_view or name in ("_unsafe_view", "_reshape_alias"),
        rule is None and func.namespace != "prim" and can_decompose(func),
        torch.Tag.nondeterministic_seeded in func.tags,
        rule,
    )
