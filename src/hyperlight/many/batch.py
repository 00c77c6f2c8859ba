"""A bound network with one set of weights per sample, which runs once on the true batch.

Layers whose weights are predicted apply a set for every sample (``rules``); everything else runs
as the user wrote it, on the whole batch. Where a layer's input holds the samples is found by
watching a call (``track``). What was found is kept with the model as a plan, so that later calls
with arguments alike run unwatched.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .._torch import (
    Dropout,
    FakeTensorMode,
    buffers_kept,
    graph_task,
    hint,
    hook_tables,
    is_abstract,
    is_out_of_memory,
    pytree,
)
from ..bind import NO_COPY, BindPlan, Left
from ..errors import BindError, HyperLightError, listed
from ..heads import Weight, built, dense
from ..targets import attribute
from .arguments import Arguments, open_arguments
from .fallback import LayerByLayer, refuse_mixing, taken_apart
from .rules import (
    CONVOLUTIONS,
    UNBUILT,
    WHOLE,
    ByItself,
    Layer,
    Rule,
    StandIn,
    find_rule,
    merge,
    split,
)
from .track import (
    ADDED,
    COPIED,
    DATA,
    EQUAL,
    EXPANDED,
    INDEX,
    SAME,
    SHARED,
    Axis,
    Fact,
    Lost,
    Tracker,
)

# What a layer does with an argument before it reads the samples: nothing; expand its dimension of
# size 1; put a dimension in front.
_THERE, _EXPAND, _ADD = "there", "expand", "add"

_HOW: dict[Any, str] = {EXPANDED: _EXPAND, ADDED: _ADD}

_MOST_PLANS, _MOST_USED = 256, 64


class Place(NamedTuple):
    """Where a layer finds the samples in an argument, and how."""

    axis: Axis
    how: str = _THERE


class Plan:
    """What a watched call found.

    Attributes:
        places: for every argument of a layer, by path, slot and shape; None if one call saw the
            samples in two places.
        results: for layers without a rule, where their results hold the samples, by path, shapes
            and places of their arguments.
        once: for parts that do the same for all sets of a sweep, how they run for one of them.
        reads: the numbers that the call read into Python; None if they cannot be compared.
        writes: whether it wrote to tensors that were there before.
        outputs: where every tensor that it returned holds the samples, if that was asked for;
            None if it is the same for all.
    """

    def __init__(self) -> None:
        self.places: dict[Any, Place | None] = {}
        self.results: dict[Any, list[Place]] = {}
        self.once: dict[Any, _Once] = {}
        self.reads: list[Any] | None = []
        self.writes = False
        self.outputs: list[Place | None] = []

    def note(self, key: Any, place: Place) -> None:
        if self.places.setdefault(key, place) != place:
            self.places[key] = None

    @property
    def certain(self) -> bool:
        return None not in self.places.values()


class _Once(NamedTuple):
    """A part of a network that does the same for all sets of a sweep."""

    layout: Axis
    copied: list[bool]  # which of its arguments are copies, tensors only
    results: list[Place | None]  # where its results hold the sets; None if nowhere


class Changed(Exception):  # noqa: N818 (no error: it is watched again)
    """A call does not go as the plan says."""


class Found:
    """The plans of a model.

    Attributes:
        plans: by what calls have in common.
        by_form: the same without sizes, for graphs that are traced and transforms.
        alone: layers that vmap has failed on.
    """

    def __init__(self) -> None:
        self.plans: OrderedDict[Any, Plan] = OrderedDict()
        self.by_form: dict[Any, dict[Any, Any]] = {}
        self.alone: set[str] = set()

    def keep(self, key: Any, plan: Plan) -> None:
        self.plans[key] = plan
        while len(self.plans) > _MOST_PLANS:
            self.plans.popitem(last=False)

    def learn(self, form: Any, plan: Plan) -> None:
        """Keep what does not depend on sizes."""
        known = self.by_form.setdefault(form, {})
        for (path, slot, shape, _), place in plan.places.items():
            _agree(known, (path, slot, len(shape)), _without_sizes(place))
        for (path, shapes, _), places in plan.results.items():
            found = [_without_sizes(place) for place in places]
            kept = None if None in found else tuple(found)
            _agree(known, (path, tuple(map(len, shapes))), kept)


def _agree(known: dict[Any, Any], key: Any, value: Any) -> None:
    """Keep a value, or None if another one was kept."""
    if known.setdefault(key, value) != value:
        known[key] = None


def _without_sizes(place: Place | None) -> Place | None:
    """The place with 0 for a size that is left to find; None if two are."""
    if place is None:
        return None
    dim, inner, outer, _ = place.axis
    if inner > 1 and outer > 1:
        return None
    return Place(Axis(dim, 1 if inner == 1 else 0, 1 if outer == 1 else 0), place.how)


class _Current(NamedTuple):
    """A call that is running."""

    plan: Plan
    tracker: Tracker | None


class _Running(threading.local):
    """The calls that are running in this thread, by the sets of weights that they use."""

    def __init__(self) -> None:
        self.calls: dict[int, _Current] = {}


_RUNNING = _Running()


@contextlib.contextmanager
def _running(sets: Sets, plan: Plan, tracker: Tracker | None = None) -> Iterator[None]:
    _RUNNING.calls[id(sets)] = _Current(plan, tracker)
    try:
        yield
    finally:
        del _RUNNING.calls[id(sets)]


class Sets:
    """The sets of weights of one bound network, and the calls that it runs.

    Args:
        primary: the network that was bound.
        samples: ``B``.
        found: the plans of the model.
        guarded: the parameters that stand where the sets are missing, with their names.
        owned: parameters that hold one entry per sample, ``(B, ...)``.
        fresh: whether the network is called once and then dropped.
    """

    def __init__(
        self,
        primary: nn.Module,
        samples: int,
        found: Found,
        guarded: Sequence[tuple[str, Tensor]],
        owned: Sequence[Tensor],
        fresh: bool,
    ) -> None:
        self.primary, self.samples, self.found = primary, samples, found
        self.guarded, self.owned, self.fresh = guarded, owned, fresh
        self.left: Left | None = None  # on the bound network
        self.form: Any = None  # of the arguments, while a graph is traced
        self.used: deque[Plan] = deque(maxlen=_MOST_USED)  # for checkpoints that run again
        self.modes: tuple[bool, ...] = ()  # which modules train, if that cannot change any more
        self.facts: dict[int, Any] = {}  # of tensors that outlive a call, by storage

    # --- a call -----------------------------------------------------------------------------

    def run(
        self,
        network: nn.Module,
        name: str,
        method: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Call a method of the bound network."""
        if self._current is not None or self.form is not None:
            return method(*args, **kwargs)  # inside of another one
        given = open_arguments(args, kwargs, self.samples, method)
        if is_abstract():
            self.form = given.form
            try:
                return given.call(method)
            finally:
                self.form = None
        if self.samples in (0, 1):
            return self._follow(Plan(), method, given)
        try:
            return self.call(network, name, method, given)
        except (Lost, Changed) as error:
            self.found.plans.clear()
            raise BindError(
                f"{type(network).__name__}.{name} cannot run with one set of weights per sample: "
                f"{error}. Call the model itself, model(x, ...), which falls back to running every "
                "sample by itself, or bind one set after another."
            ) from error

    def call(
        self,
        network: nn.Module,
        name: str,
        method: Callable[..., Any],
        given: Arguments,
        layout: Axis | None = None,
    ) -> Any:
        """Call a method by the plan, or watch it.

        Args:
            network: the bound network.
            name: of the method.
            method: the method.
            given: its arguments.
            layout: for a sweep, how the data hold the copies for every set. All outputs then
                come back with the sets in their first dimension: ``(B, rows, ...)``.

        Raises:
            Lost: where the samples are cannot be told.
        """
        key = None
        if given.signature is not None:
            modes = self.modes or tuple([module.training for module in network.modules()])
            mode = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), modes
            key = (name, self.samples, mode, layout, given.signature)
        plan = self.found.plans.get(key) if key else None
        if plan is not None and (not plan.reads or (self.fresh and not plan.writes)):
            try:
                return self._unfolded(self._follow(plan, method, given), plan, layout)
            except Changed:
                self.found.plans.pop(key, None)
                if not self.fresh or plan.writes:
                    raise
        return self._watch(network, method, given, key, layout)

    def _unfolded(self, output: Any, plan: Plan, layout: Axis | None) -> Any:
        """For a sweep, the output with the sets in front."""
        if layout is None:
            return output
        tensors, rebuild = taken_apart(output)
        found = []
        for tensor, place in zip(tensors, plan.outputs, strict=True):
            if place is None:
                tensor = tensor.expand(self.samples, *tensor.shape)
            else:
                tensor = split(tensor, place.axis, self.samples)
                if place.how != _THERE:  # as many entries as the data, and all alike
                    tensor = tensor.narrow(place.axis.dim + 1, 0, 1)
                    tensor = tensor.squeeze(1) if place.how == _ADD else tensor
            found.append(tensor)
        return rebuild(iter(found))

    def _find_outputs(self, tracker: Tracker, output: Any) -> list[Place | None]:
        found: list[Place | None] = []
        for tensor in taken_apart(output)[0]:
            fact = tracker.fact(tensor)
            if isinstance(fact, Axis) and fact.kind != EQUAL:
                found.append(Place(fact, _HOW.get(fact.kind, _THERE)))
            elif fact in (SAME, SHARED, INDEX):
                found.append(None)
            else:
                raise Lost(
                    f"which entries of a tensor of shape {tuple(tensor.shape)} that is returned "
                    "belong to which set of weights is not known"
                )
        return found

    def _follow(self, plan: Plan, method: Callable[..., Any], given: Arguments) -> Any:
        if plan not in self.used:
            self.used.append(plan)
        watch = _Reads(None, list(plan.reads)) if plan.reads else contextlib.nullcontext()
        with _running(self, plan), watch:
            return given.call(method)

    def _watch(
        self,
        network: nn.Module,
        method: Callable[..., Any],
        given: Arguments,
        key: Any,
        layout: Axis | None,
    ) -> Any:
        before = None if self.fresh or self.left is None else self.left.before()
        plan, tracker = Plan(), Tracker(self.samples, layout or Axis(0), self.facts, self.guarded)
        for tensor in _held(network):
            tracker.hold(tensor)
        for tensor in self.owned:
            tracker.put(tensor, tracker.layout._replace(kind=EXPANDED))
        leaves = list(given.leaves)
        for index, fact in enumerate(given.facts):
            if fact is not None:
                leaves[index] = tracker.open_argument(leaves[index], fact)
        for tensor, fact in given.inside:
            tracker.know(tensor, fact, "it is in an object with tensors of other lengths")
        reads = _Reads(tracker, plan.reads)
        self.used.append(plan)
        try:
            with _running(self, plan, tracker), reads, tracker:
                output = given.call(method, leaves)
        except Exception as error:
            known = isinstance(error, (Lost, HyperLightError)) or is_out_of_memory(error)
            if known or not tracker.reshaped:
                raise
            raise Lost(f"{type(error).__name__}: {error}".splitlines()[0]) from error
        if tracker.failed:
            raise Lost(tracker.failed)
        if tracker.open:
            raise Lost(f"{', '.join(sorted(tracker.open))} is given the same for all samples")
        if layout is not None:
            if tracker.lost:  # numbers of all sets together, where each has its own
                raise Lost(tracker.lost)
            plan.outputs = self._find_outputs(tracker, output)
        plan.reads = reads.values
        plan.writes = tracker.wrote_outside
        if plan.certain:
            if layout is None:
                self.found.learn(given.form, plan)
            # A network that is kept may go another way by its own state.
            steady = self.left is None or before is None or not self.left.any(before)
            if steady and key is not None and plan.reads is not None and not given.inside:
                self.found.keep(key, plan)
        return self._unfolded(output, plan, layout)

    # --- a part that is the same for all sets -------------------------------------------------

    def run_once(self, part: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a part of a sweep for one set, if it does the same for all, and copy its results."""
        plain = functools.partial(part.original.forward, part)
        if self._current is None:
            return plain(*args, **kwargs)
        plan, tracker = self._current
        leaves, structure = pytree.tree_flatten((args, kwargs))
        tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        key = (part.path_of_part, structure, tuple(leaves[i].shape for i in tensors))
        if tracker is not None and key not in plan.once:
            plan.once[key] = _found_once(tracker, part, leaves, structure, tensors)
        once = plan.once.get(key)
        if once is None or not any(once.copied):
            return plain(*args, **kwargs)
        for i, copied in zip(tensors, once.copied, strict=True):
            if copied:
                leaves[i] = split(leaves[i], once.layout, self.samples)[0]
        own_args, own_kwargs = pytree.tree_unflatten(leaves, structure)
        with contextlib.nullcontext() if tracker is None else tracker.paused():
            with _hooks_of(part) as replaced:
                output = plain(*own_args, **own_kwargs)
            if replaced:  # a hook has put another result in place
                plan.once[key] = once._replace(copied=[False for _ in once.copied])
        if replaced:
            return plain(*args, **kwargs)
        with contextlib.nullcontext() if tracker is None else tracker.paused():
            leaves, structure = pytree.tree_flatten(output)
            tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
            for i, place in zip(tensors, once.results, strict=True):
                if place is not None:
                    leaves[i] = _copied(leaves[i], place.axis, self.samples)
                if tracker is not None:
                    tracker.put(leaves[i], SHARED if place is None else place.axis)
        return pytree.tree_unflatten(leaves, structure)

    # --- what layers ask --------------------------------------------------------------------

    @property
    def _current(self) -> _Current | None:
        """The call of this thread; none while a graph is traced."""
        return None if is_abstract() else _RUNNING.calls.get(id(self))

    @property
    def tracker(self) -> Tracker | None:
        current = self._current
        return None if current is None else current.tracker

    def place(self, path: str, slot: Any, tensor: Tensor, expected: int) -> Place:
        """Where an argument of a layer holds the samples."""
        if is_abstract():
            return self._traced(path, slot, tensor)
        key = (path, slot, tuple(tensor.shape), tensor.stride())
        run = self._current
        if run is None:
            return self._again(key)
        if run.tracker is None:
            found = run.plan.places.get(key)
            if found is None:
                raise Changed(f"{path} is called as it was not before")
            return found
        place = self._find(run.tracker, path, tensor, expected)
        run.plan.note(key, place)
        return place

    def _again(self, key: Any) -> Place:
        """Where it was, for a checkpoint that runs a part of a call again."""
        places = {plan.places.get(key) for plan in self.used if key in plan.places}
        place = places.pop() if graph_task() != -1 and len(places) == 1 else None
        if place is None:
            raise BindError(
                f"{key[0] or 'The network'} has one set of weights per sample and was called "
                "outside of a call of the whole network, where it is not known which dimension "
                "holds the samples. Call the bound network."
            )
        return place

    def _traced(self, path: str, slot: Any, tensor: Tensor) -> Place:
        place = self.found.by_form.get(self.form, {}).get((path, slot, tensor.ndim))
        if place is None:
            raise self._unknown(path)
        dim, inner, outer, _ = place.axis
        size = tensor.shape[dim] if place.how == _THERE else self.samples
        return Place(
            Axis(dim, inner or size // self.samples, outer or size // self.samples), place.how
        )

    def _unknown(self, path: str) -> BindError:
        return BindError(
            f"{path or 'The network'} has one set of weights per sample, and it is not known yet "
            "which dimension of its input holds the samples. Call the model once with arguments "
            "like these before it is compiled or exported."
        )

    def results(
        self,
        path: str,
        shapes: tuple[tuple[int, ...], ...],
        places: list[Place],
        run: Callable[[], list[Tensor]],
    ) -> list[Place]:
        """Where the results of a layer without a rule hold the samples.

        ``run`` runs it once for all samples, with theta0.
        """
        key, current = (path, shapes, tuple(places)), self._current
        if is_abstract():
            known = self.found.by_form.get(self.form, {}).get((path, tuple(map(len, shapes))))
            if known is None:
                raise self._unknown(path)
            like = next((p.axis for p in places if p.how == _THERE), Axis(0))
            return [
                Place(Axis(a.dim, a.inner or like.inner, a.outer or like.outer, a.kind), how)
                for a, how in known
            ]
        if current is None or current.tracker is None:
            plans = self.used if current is None else [current.plan]
            found = next((plan.results[key] for plan in plans if key in plan.results), None)
            if found is None:
                raise Changed(f"{path} is called as it was not before")
            return found
        tracker, found = current.tracker, []
        with tracker.resumed():
            outputs = run()
        expanded = any(place.how == _EXPAND for place in places)
        for output in outputs:
            fact = tracker.fact(output)
            if isinstance(fact, Axis):
                kept = EXPANDED if fact.kind == EXPANDED else DATA
                found.append(Place(fact._replace(kind=kept)))
            elif fact not in (SAME, SHARED, INDEX):
                raise tracker.fail(
                    f"{path} gives a tensor of shape {tuple(output.shape)}, and which of its "
                    f"dimensions holds the samples is not known ({tracker.reason(output)})"
                )
            elif expanded and output.ndim and output.shape[0] == 1:
                found.append(Place(tracker.layout._replace(kind=EXPANDED), _EXPAND))
            else:
                found.append(Place(tracker.layout._replace(kind=ADDED), _ADD))
        current.plan.results[key] = found
        return found

    def _find(self, tracker: Tracker, path: str, tensor: Tensor, expected: int) -> Place:
        where = path or "the primary"
        if tracker.lost:
            raise tracker.fail(f"{where} cannot tell its samples apart, since {tracker.lost}")
        fact = tracker.fact(tensor)
        if isinstance(fact, Axis) and fact.kind not in (EQUAL, ADDED):
            return Place(fact)
        shape = tuple(tensor.shape)
        if fact in (SAME, SHARED, INDEX) or (isinstance(fact, Axis) and fact.kind == EQUAL):
            dims = _as_long_as(tensor, tracker.length, fact)
            if expected in dims:
                dims = [expected]
            if len(dims) == 1:  # taken for the samples until it meets them
                tracker.open.add(where)
                axis = fact if isinstance(fact, Axis) else tracker.layout._replace(dim=dims[0])
                return Place(axis._replace(kind=frozenset((where,))))
            if not dims and tensor.ndim > expected and shape[expected] == 1:
                return Place(tracker.layout._replace(dim=expected, kind=EXPANDED), _EXPAND)
            if not dims and tracker.length not in shape:
                return Place(tracker.layout._replace(kind=ADDED), _ADD)
        why = fact if not isinstance(fact, Axis) else "a table for every sample"
        if fact == "unknown":
            why = tracker.reason(tensor)
        raise tracker.fail(
            f"{where} is given a tensor of shape {shape}, and which of its dimensions holds the "
            f"samples is not known ({why})"
        )


@contextlib.contextmanager
def _hooks_of(part: nn.Module, run: bool = True) -> Iterator[list[Any]]:
    """The hooks inside of a part of a bound network, whose tables are its own.

    Args:
        part: the part.
        run: whether they run. What they put in place of arguments or results is listed then.
    """
    replaced: list[Any] = []

    def watched(hook: Any) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            found = hook(*args, **kwargs)
            if found is not None:
                replaced.append(found)
            return found

        return called if run else lambda *args, **kwargs: None

    tables = [
        table
        for module in part.modules()
        for table in hook_tables(module)
        if module is not part and table
    ]
    kept: list[Any] = [dict(table) for table in tables]
    for table in tables:
        for key, hook in table.items():
            table[key] = watched(hook)
    try:
        yield replaced
    finally:
        for table, hooks in zip(tables, kept, strict=True):
            table.update(hooks)


def _found_once(
    tracker: Tracker,
    part: Any,
    leaves: list[Any],
    structure: Any,
    tensors: list[int],
) -> _Once:
    """Whether a part does the same for all sets: what it does to shapes tells."""
    plain = functools.partial(part.original.forward, part)
    facts = [tracker.fact(leaves[i]) for i in tensors]
    copied = [fact == tracker.layout for fact in facts]
    never = _Once(tracker.layout, [False for _ in facts], [])
    if not any(copied) or not all(
        c or f in (SAME, SHARED) for c, f in zip(copied, facts, strict=True)
    ):
        return never
    shapes = Tracker(tracker.samples, tracker.layout, {}, ())
    shapes.outside = SHARED  # parameters and buffers
    try:
        with tracker.paused(), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            values = list(leaves)
            for i, fact in zip(tensors, facts, strict=True):
                real = leaves[i]
                values[i] = torch.empty_strided(
                    real.shape, real.stride(), dtype=real.dtype, device=real.device
                )
                shapes.put(values[i], fact)
            args, kwargs = pytree.tree_unflatten(values, structure)
            with _hooks_of(part, run=False), shapes:
                output = plain(*args, **kwargs)
            found = [
                shapes.fact(leaf) for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)
            ]
    except Exception:  # it cannot run on shapes: it runs for all sets
        return never
    places = [Place(fact) if isinstance(fact, Axis) else None for fact in found]
    if any(
        p.axis.kind != COPIED if p else f not in (SAME, SHARED)
        for p, f in zip(places, found, strict=True)
    ):
        return never
    return _Once(tracker.layout, copied, places)


def _copied(result: Tensor, axis: Axis, samples: int) -> Tensor:
    """The result for one set, with copies for the others where ``axis`` says."""
    dim, inner, outer = axis.place
    one = torch.unflatten(result, dim, (outer, 1, inner))
    rows = one.expand(*one.shape[: dim + 1], samples, *one.shape[dim + 2 :])
    return rows.flatten(dim, dim + 2).contiguous()


def _as_long_as(tensor: Tensor, length: int, fact: Fact) -> list[int]:
    """The dimensions that may be the batch, of a tensor that is the same along them."""
    if fact in (SHARED, INDEX):
        return []
    return [
        dim
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True))
        if hint(size) == length
        and (fact == SAME or stride == 0 or (isinstance(fact, Axis) and fact.dim == dim))
    ]


def _held(network: nn.Module) -> Iterator[Tensor]:
    """The tensors that a network holds: the same for all samples."""
    for module in network.modules():
        yield from module.parameters(recurse=False)
        yield from module.buffers(recurse=False)
        for value in module.__dict__.values():
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, (list, tuple)):
                yield from (item for item in value if isinstance(item, Tensor))


class _Reads(TorchFunctionMode):
    """Notes the numbers that a network reads into Python, or compares them with those of a plan."""

    def __init__(self, tracker: Tracker | None, values: list[Any] | None) -> None:
        super().__init__()
        self.tracker, self.values, self._next = tracker, values, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func not in _READERS:
            return out
        value = out if isinstance(out, (bool, int, float, complex, list)) else None
        if self.tracker is not None:
            for tensor in args[:2]:
                if isinstance(tensor, Tensor):
                    self.tracker.read(tensor, out)
            if value is None:
                self.values = None
            elif self.values is not None:
                self.values.append(value)
        else:
            assert self.values is not None
            if self._next >= len(self.values) or self.values[self._next] != value:
                raise Changed(f"{value!r} was read where it was another number before")
            self._next += 1
        return out


_READERS: frozenset[Any] = frozenset(
    (
        Tensor.__bool__,
        Tensor.__int__,
        Tensor.__float__,
        Tensor.__complex__,
        Tensor.__index__,
        Tensor.__contains__,
        Tensor.__array__,
        Tensor.item,
        Tensor.tolist,
        Tensor.numpy,
        Tensor.equal,
        Tensor.allclose,
        Tensor.is_nonzero,
        torch.equal,
        torch.allclose,
        torch.is_nonzero,
    )
)


# --- the layers of a network ------------------------------------------------------------


class _Unit(NamedTuple):
    """A module with weights per sample: a layer, or a part that runs as one."""

    path: str
    names: dict[str, str]  # names of predicted tensors, by their names inside
    rule: Rule | None
    kind: Any  # its class
    plan: BindPlan | None


class _Layer(Layer):
    def __init__(self, unit: _Unit, sets: Sets, weights: Mapping[str, Weight]) -> None:
        super().__init__(unit.path, sets.samples, weights)
        self._unit, self._sets = unit, sets

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise BindError(NO_COPY)

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tracker = self._sets.tracker
        if tracker is None:
            return self._ruled(module, args, kwargs)
        with tracker.paused():
            return self._ruled(module, args, kwargs)

    def _ruled(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._unit.rule is not None:
            try:
                return self._unit.rule(self, module, *args, **kwargs)
            except ByItself as call:
                self.weights = {name: built(weight) for name, weight in self.weights.items()}
                return _by_itself(self, module, args, kwargs, call.axes)
        return _by_itself(self, module, args, kwargs)

    def take(self, slot: Any, tensor: Tensor, expected: int = 0) -> tuple[Tensor, Axis]:
        axis, how = self._sets.place(self.path, slot, tensor, expected)
        if how == _EXPAND:
            sizes = list(tensor.shape)
            sizes[axis.dim] = self.samples * axis.inner * axis.outer
            tensor = tensor.expand(sizes)
        elif how == _ADD:
            tensor = tensor.expand(self.samples * axis.inner * axis.outer, *tensor.shape)
        return tensor, axis

    def look(self, slot: Any, tensor: Tensor) -> Place:
        """Where an argument holds the samples; it is left as it is."""
        return self._sets.place(self.path, slot, tensor, 0)

    def expect(self, slot: str, tensor: Tensor, axis: Axis) -> None:
        found = self._sets.place(self.path, slot, tensor, axis.dim)
        if found.how != _THERE or found.axis.place != axis.place:
            raise self.lose(f"is given {slot} that does not hold the samples as its input does")

    def share(self, slot: str, tensor: Tensor) -> None:
        tracker = self._sets.tracker
        if tracker is not None:
            fact = tracker.fact(tensor)
            if fact not in (SAME, SHARED, INDEX):
                raise self.lose(f"is given {slot} that not all samples share")

    def one(self, module: nn.Module, weights: Mapping[str, Weight]) -> Any:
        assert self._unit.plan is not None
        named = {self._unit.names[name]: weight for name, weight in weights.items()}
        bound = self._unit.plan.bind(attribute(self._sets.primary, self.path), named)
        for own, copied in zip(bound.modules(), module.modules(), strict=False):
            own.training = copied.training  # the bound network has modes of its own
        return bound

    def give(self, output: Tensor, *axes: Axis) -> Tensor:
        tracker = self._sets.tracker
        if tracker is not None:
            kind = tracker.together({axis.kind for axis in axes})
            kind = DATA if kind == COPIED and (self.weights or self._draws()) else kind
            tracker.put(output, axes[0]._replace(kind=kind), self.path)
        return output

    def _draws(self) -> bool:
        """Whether attention or a recurrent layer has a dropout of its own, which is on."""
        module = attribute(self._sets.primary, self.path)
        return bool(module.training and getattr(module, "dropout", 0.0))

    def lose(self, why: str) -> Lost:
        tracker = self._sets.tracker
        error = super().lose(why)
        return error if tracker is None else tracker.fail(str(error))

    @property
    def sets(self) -> Sets:
        return self._sets


def _by_itself(
    layer: _Layer,
    module: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    axes: Sequence[Axis] = (),
) -> Any:
    """A module without a rule: vmap over it alone, or one sample after another."""
    owned = [name for name in layer.weights if "." not in name]
    remedy = f"put {listed(owned)} into a module without this layer, " if owned else ""
    refuse_mixing(module, remedy, layer.path)
    leaves, structure = pytree.tree_flatten((args, kwargs))
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    places = [layer.look(i, leaves[i]) for i in tensors]
    shapes = tuple(tuple(leaves[i].shape) for i in tensors)
    results = [Place(axis) for axis in axes]
    if not results:
        run = functools.partial(_theta0, module, args, kwargs)
        watched = layer.sets.tracker is not None
        with buffers_kept(module) if watched else contextlib.nullcontext():
            results = layer.sets.results(layer.path, shapes, places, run)
    rows, dims = [], []
    for i, (axis, how) in zip(tensors, places, strict=True):
        rows.append(split(leaves[i], axis, layer.samples) if how == _THERE else leaves[i])
        dims.append(0 if how == _THERE else None)
    form: list[Any] = []

    def one(weights: Mapping[str, Weight], given: Sequence[Tensor]) -> list[Tensor]:
        values = list(leaves)
        for i, tensor in zip(tensors, given, strict=True):
            values[i] = tensor
        own_args, own_kwargs = pytree.tree_unflatten(values, structure)
        compiling = torch.compiler.is_compiling()
        with contextlib.nullcontext() if compiling else LayerByLayer():
            output = layer.one(module, weights).forward(*own_args, **own_kwargs)
        found, shape = pytree.tree_flatten(output)
        form[:] = found, shape
        return [leaf for leaf in found if isinstance(leaf, Tensor)]

    found = _mapped(layer, one, rows, dims)
    merged = []
    for y, (axis, how) in zip(found, results, strict=True):
        if how == _THERE:
            y = merge(y, axis)
        else:  # all rows of a sample are alike
            y = y if how == _EXPAND else y.unsqueeze(1)
            y = merge(y.expand(-1, axis.inner * axis.outer, *y.shape[2:]), axis)
        others = () if axis.kind == ADDED else tuple(place.axis for place in places)
        merged.append(layer.give(y, axis, *others))
    rest = iter(merged)
    return pytree.tree_unflatten(
        [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in form[0]], form[1]
    )


def _mapped(
    layer: _Layer, one: Callable[..., list[Tensor]], rows: list[Tensor], dims: list[int | None]
) -> list[Tensor]:
    alone = layer.sets.found.alone
    if layer.path not in alone:
        try:
            mapped: Any = torch.vmap(one, in_dims=(0, dims), randomness="different")
            found: list[Tensor] = mapped(dict(layer.weights), rows)
            return found
        except RuntimeError as error:
            if torch.compiler.is_compiling() or is_out_of_memory(error):
                raise
            alone.add(layer.path)
    runs = []
    for b in range(layer.samples):
        weights = pytree.tree_map(lambda t, b=b: t[b], dict(layer.weights))
        pairs = zip(rows, dims, strict=True)
        runs.append(one(weights, [row if dim is None else row[b] for row, dim in pairs]))
    return [torch.stack(column) for column in zip(*runs, strict=True)]


def _theta0(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng():
        output = module.original.forward(module, *args, **kwargs)
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


class _SharedPart(StandIn):
    """The copy of a part without weights per sample, which a sweep runs for one set alone."""

    sets_of_weights: Sets
    path_of_part: str

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.sets_of_weights.run_once(self, args, kwargs)


class _Copy(StandIn):
    """The copy of a layer in a bound network."""

    layer_of_sets: _Layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer_of_sets(self, args, kwargs)


@functools.cache
def _layer_class(kind: Any) -> Any:
    """The class of the copy of a layer: a subclass of its own, under the same name."""
    return _subclass(kind, (_Copy, kind), {"original": kind})


@functools.cache
def _part_class(kind: Any) -> Any:
    """The class of the copy of a part that is the same for all sets."""
    return _subclass(kind, (_SharedPart, kind), {"original": kind})


@functools.cache
def _network_class(kind: Any, own: Any) -> Any:
    """The class of the copy of a whole network: its public methods start a call.

    Args:
        kind: of the network.
        own: ``kind``, or the class of its copy if the network itself is a layer.
    """
    names = (
        name for name in dir(kind) if not name.startswith("_") and not hasattr(nn.Module, name)
    )
    methods = {name: inspect.getattr_static(kind, name) for name in ("forward", *names)}
    wrapped = {
        name: _started(name, function, own)
        for name, function in methods.items()
        if inspect.isfunction(function) and not inspect.isgeneratorfunction(function)
    }
    return _subclass(kind, (own,), wrapped)


def _started(name: str, function: Callable[..., Any], own: type[nn.Module]) -> Any:
    @functools.wraps(function)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        run = functools.partial(getattr(own, name), self)
        return self.sets_of_weights.run(self, name, run, args, kwargs)

    return method


def _subclass(kind: type, bases: tuple[type, ...], members: dict[str, Any]) -> Any:
    named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind)(kind.__name__, bases, {**members, **named, "__doc__": kind.__doc__})


class BatchPlan:
    """How a primary runs with one set of weights per sample; made once.

    Args:
        primary: the network.
        places: the names of every predicted parameter.

    Attributes:
        found: what watched calls found.
        refused: why it cannot run so at all, or ``""``.
    """

    def __init__(self, primary: nn.Module, places: Mapping[str, tuple[str, ...]]) -> None:
        self.found = Found()
        self.refused = ""
        self._plan = BindPlan(primary, places)
        self._made = self._plan.made
        self._tree = list(primary.modules())
        paths = {id(module): path for path, module in reversed(list(primary.named_modules()))}
        owners: dict[str, dict[str, str]] = {}
        for name, aliases in places.items():
            for alias in aliases:
                path, _, leaf = alias.rpartition(".")
                owners.setdefault(paths[id(attribute(primary, path))], {})[leaf] = name
        # A parameter with a first dimension of 1, as a token or a table of positions has, takes
        # part in the batch as it is.
        self._owned: list[str] = []
        for path in list(owners):
            module, leaves = attribute(primary, path), owners[path]
            if find_rule(module) is None and all(
                getattr(module, leaf).ndim >= 3 and len(getattr(module, leaf)) == 1
                for leaf in leaves
            ):
                self._owned += owners.pop(path).values()
        self._units: list[_Unit] = []
        for path in _outermost(primary, owners):
            module = attribute(primary, path)
            inside = {
                _joined(owner, leaf, path): name
                for owner, leaves in owners.items()
                if _is_below(owner, path)
                for leaf, name in leaves.items()
            }
            rule = find_rule(module)
            beside = [p for p in owners if p and not p.startswith("parametrizations")]
            if path == "" and rule is None and beside:
                own = ", ".join(sorted(owners.get("", inside)))
                self.refused = (
                    f"{type(primary).__name__} uses the predicted {own} in its own forward"
                )
            self._units.append(_Unit(path, inside, rule, type(module), _sub_plan(module, inside)))
        known = {unit.path for unit in self._units}
        self._dressed: dict[str, Any] = {unit.path: _layer_class(unit.kind) for unit in self._units}
        self._plain: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {}
        for path, module in primary.named_modules():
            if any(_is_below(path, unit) for unit in known) or paths[id(module)] != path:
                continue
            # PyTorch's fast path for inference reads the weights of layers inside.
            if isinstance(module, nn.TransformerEncoderLayer):
                self._plain[path] = (type(module), {"activation_relu_or_gelu": 0})
            elif isinstance(module, nn.TransformerEncoder):
                self._plain[path] = (type(module), {"enable_nested_tensor": False})
            elif type(module) in WHOLE:
                unit = _Unit(path, {}, find_rule(module), type(module), None)
                self._units.append(unit)
                self._dressed[path] = _layer_class(unit.kind)
        # Parts of the network without weights per sample, for sweeps.
        self._shared = [
            path for path, _ in primary.named_modules() if self._is_shared(primary, path)
        ]
        kind: Any = type(primary)
        self._class = _network_class(kind, self._dressed.get("", kind))

    @property
    def stale(self) -> bool:
        """Whether the network is no longer the one that the plan was made for."""
        return self._plan.made != self._made

    def layout(self, rows: int) -> Axis:
        """How the data of a sweep hold their copies.

        Convolutions want the copies of an image beside each other: so they are channels in
        memory. Other layers want all that one set is given.
        """
        convolved = any(unit.rule in CONVOLUTIONS for unit in self._units)
        return Axis(0, 1, rows, COPIED) if convolved else Axis(0, rows, 1, COPIED)

    def _is_shared(self, primary: nn.Module, path: str) -> bool:
        """Whether a module is the root of a part whose parameters are its own for all samples."""
        above = path.rpartition(".")[0]
        reached = {unit.path for unit in self._units}
        if not path or any(_is_below(unit, path) or _is_below(path, unit) for unit in reached):
            return False
        module = attribute(primary, path)
        return any(_is_below(unit, above) for unit in reached) and any(
            True for _ in module.parameters()
        )

    def bind(
        self,
        primary: Any,
        theta0: Mapping[str, Tensor],
        weights: Mapping[str, Weight],
        samples: int,
        fresh: bool = False,
        layout: Axis | None = None,
    ) -> Any:
        """The primary with one set of weights per sample in place.

        Args:
            primary: of the structure that the plan was made for.
            theta0: the predicted parameters.
            weights: by name, with the sets in their first dimension.
            samples: the number of sets.
            fresh: whether it is called once and then dropped.
            layout: for a sweep, how the data hold the copies for every set.

        Raises:
            Lost: it cannot run so.
        """
        if samples in (0, 1):
            one = (
                {name: dense(weight)[0] for name, weight in weights.items()} if samples else theta0
            )
            sets = Sets(primary, samples, self.found, (), (), fresh)
            kind: Any = type(primary)
            stand_in = (_network_class(kind, kind), {"sets_of_weights": sets})
            return self._plan.bind(primary, one, {"": stand_in})
        if self.refused:
            raise Lost(self.refused)
        owned = {name: dense(weights[name]).squeeze(1) for name in self._owned}
        if layout is not None:
            rows = layout.inner * layout.outer
            for name, own in owned.items():
                owned[name] = merge(own.unsqueeze(1).expand(-1, rows, *own.shape[1:]), layout)
        tensors = {name: owned.get(name, own) for name, own in theta0.items()}
        guarded = [(n, theta0[n]) for unit in self._units for n in unit.names.values()]
        sets = Sets(primary, samples, self.found, guarded, list(owned.values()), fresh)
        stand_ins = dict(self._plain)
        for unit in self._units:
            of_unit = {name: weights[n] for name, n in unit.names.items()}
            if unit.rule not in UNBUILT:
                of_unit = {name: built(weight) for name, weight in of_unit.items()}
            layer = _Layer(unit, sets, of_unit)
            stand_ins[unit.path] = (self._dressed[unit.path], {"layer_of_sets": layer})
        for path in self._shared if layout is not None else ():
            module = attribute(primary, path)
            part: Any = type(module)
            if not any(m.training and isinstance(m, Dropout) for m in module.modules()):
                here = {"sets_of_weights": sets, "path_of_part": path}
                stand_ins[path] = (_part_class(part), here)
        _, extra = stand_ins.get("", (None, {}))
        stand_ins[""] = (self._class, {**extra, "sets_of_weights": sets})
        if fresh and not torch.compiler.is_compiling():
            sets.modes = tuple([module.training for module in self._tree])
        network, sets.left = self._plan.bind_watched(primary, tensors, stand_ins)
        return network


def _outermost(primary: nn.Module, owners: Mapping[str, Any]) -> list[str]:
    """The modules that run as one: those that own weights, the layers of PyTorch that read those
    of modules inside, and parametrized ones; without those inside of another.
    """
    found = set()
    for path in owners:
        parts = path.split(".") if path else []
        outer = path
        for end in range(len(parts) + 1):
            above = ".".join(parts[:end])
            module = attribute(primary, above)
            if above in owners or type(module) in WHOLE or hasattr(module, "parametrizations"):
                outer = above
                break
        found.add(outer)
    return sorted(found)


def _is_below(path: str, above: str) -> bool:
    return path == above or not above or path.startswith(above + ".")


def _joined(owner: str, leaf: str, path: str) -> str:
    """The name of a parameter inside of the module at ``path``."""
    inside = owner[len(path) :].lstrip(".") if path else owner
    return f"{inside}.{leaf}" if inside else leaf


def _sub_plan(module: nn.Module, inside: Mapping[str, str]) -> BindPlan:
    aliases: dict[str, list[str]] = {}
    for own, name in inside.items():
        aliases.setdefault(name, []).append(own)
    return BindPlan(module, {name: tuple(names) for name, names in aliases.items()})
