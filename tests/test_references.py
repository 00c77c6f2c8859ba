"""Every way in which a weight could be reached is followed or refused, never silently stale."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import operator
import pickle
import types
import warnings
import weakref
from collections import (
    ChainMap,
    Counter,
    OrderedDict,
    UserDict,
    UserList,
    defaultdict,
    deque,
    namedtuple,
)
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import hyperlight as hl

SPACE = {"g": hl.Uniform(0.0, 1.0)}


def linear() -> nn.Linear:
    return nn.Linear(3, 3, dtype=torch.float64)


def held(keep: Callable[[Any], Any], use: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    """A network with ``keep(net)`` as its attribute ``kept``, and ``use(kept, x)`` at its end."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = linear(), linear()
            object.__setattr__(self, "kept", keep(self))

        def forward(self, x: Tensor) -> Tensor:
            return use(self.kept, torch.tanh(self.b(x)))

    return Net()


def inputs() -> Tensor:
    return torch.randn(4, 3, dtype=torch.float64)


def in_place(net: nn.Module, theta: dict[str, Tensor], x: Tensor) -> Tensor:
    """What the network itself computes with the weights in it: the twin."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(theta[name])
    return net(x)


def check_right(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net, x = make(), inputs()
    model = hl.hypernetize(net, SPACE, "*")
    one, two = model(x, g=0.1), model(x, g=0.9)
    assert not torch.equal(one, two)
    theta = {name: t.detach() for name, t in model.predict(g=0.9).items()}
    torch.testing.assert_close(two, in_place(net, theta, x))


def check_refused(make: Callable[[], nn.Module], *words: str) -> None:
    with pytest.raises(hl.BindError) as error:
        hl.hypernetize(make(), SPACE, "*")
    for word in words:
        assert word in str(error.value)


Pair = namedtuple("Pair", ["layer", "scale"])


@dataclasses.dataclass
class Record:
    layer: nn.Module


@dataclasses.dataclass(slots=True)
class Slotted:
    layer: nn.Module


class Slots:
    __slots__ = ("layer",)


def slots(layer: nn.Module) -> Slots:
    made = Slots()
    made.layer = layer  # type: ignore[attr-defined]
    return made


class Callable_:
    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        return self.layer(x)


def objects(*values: object) -> Any:
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made


def looped(layer: nn.Module) -> list[Any]:
    made: list[Any] = [layer]
    made.append(made)
    return made


FOLLOWED: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Tensor], Tensor]]] = {
    "module": (lambda net: net.a, lambda k, x: k(x)),
    "parameter": (lambda net: net.a.weight, lambda k, x: x @ k),
    "list": (lambda net: [net.a], lambda k, x: k[0](x)),
    "list that holds itself": (lambda net: looped(net.a), lambda k, x: k[1][0](x)),
    "dict": (lambda net: {"a": [net.a]}, lambda k, x: k["a"][0](x)),
    "key of a dict": (lambda net: {net.a: 2.0}, lambda k, x: sum(f(x) * v for f, v in k.items())),
    "set": (lambda net: {net.a}, lambda k, x: next(iter(k))(x)),
    "frozenset": (lambda net: frozenset({net.a}), lambda k, x: next(iter(k))(x)),
    "deque": (lambda net: deque([net.a], maxlen=3), lambda k, x: k[0](x)),
    "namedtuple": (lambda net: Pair(net.a, 2.0), lambda k, x: k.layer(x) * k.scale),
    "ordered": (lambda net: OrderedDict(a=net.a), lambda k, x: k["a"](x)),
    "defaultdict": (
        lambda net: defaultdict(functools.partial(operator.attrgetter("a"), net)),
        lambda k, x: k["new"](x),
    ),
    "counter": (lambda net: Counter({net.a: 2}), lambda k, x: sum(f(x) * n for f, n in k.items())),
    "method": (lambda net: net.a.forward, lambda k, x: k(x)),
    "method of a closure": (
        lambda net: types.MethodType(lambda f, x: f(x), net.a),
        lambda k, x: k(x),
    ),
    "method of a container": (
        lambda net: {"a": net.a}.__getitem__,
        lambda k, x: k("a")(x),
    ),
    "partial": (lambda net: functools.partial(F.linear, weight=net.a.weight), lambda k, x: k(x)),
    "weak reference": (lambda net: weakref.ref(net.a), lambda k, x: k()(x)),
    "weak method": (lambda net: weakref.WeakMethod(net.a.forward), lambda k, x: k()(x)),
    "weak set": (lambda net: weakref.WeakSet([net.a]), lambda k, x: next(iter(k))(x)),
    "weak values": (lambda net: weakref.WeakValueDictionary(a=net.a), lambda k, x: k["a"](x)),
    "weak keys": (
        lambda net: weakref.WeakKeyDictionary({net.a: 2.0}),
        lambda k, x: sum(f(x) * v for f, v in k.items()),
    ),
    "mapping proxy": (lambda net: types.MappingProxyType({"a": net.a}), lambda k, x: k["a"](x)),
}


@pytest.mark.parametrize("kind", FOLLOWED)
def test_references_that_are_followed(kind: str) -> None:
    check_right(lambda: held(*FOLLOWED[kind]))


def closure(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: layer(x)


def by_default(x: Tensor, layer: Any = None) -> Tensor:
    return layer(x)


def with_default(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    made = types.FunctionType(by_default.__code__, globals(), "by_default", (layer,))
    return made


def with_attribute(layer: nn.Module) -> Callable[..., Any]:
    def made(x: Tensor) -> Tensor:
        return made.layer(x)  # type: ignore[attr-defined]

    made.layer = layer  # type: ignore[attr-defined]
    return made


def generator(layer: nn.Module) -> Iterator[nn.Module]:
    while True:
        yield layer


def started(values: Iterator[nn.Module]) -> Iterator[nn.Module]:
    next(values)
    return values


REFUSED: dict[str, Callable[[Any], Any]] = {
    "object": lambda net: Callable_(net.a),
    "record": lambda net: Record(net.a),
    "slotted record": lambda net: Slotted(net.a),
    "slots": lambda net: slots(net.a),
    "object in a list": lambda net: [[Callable_(net.a)]],
    "namespace": lambda net: types.SimpleNamespace(deep=[{"a": net.a}]),
    "weak proxy": lambda net: weakref.proxy(net.a),
    "weak reference in an object": lambda net: Record(weakref.ref(net.a)),  # type: ignore[arg-type]
    "array of objects": lambda net: objects(net.a),
    "user dict": lambda net: UserDict(a=net.a),
    "user list": lambda net: UserList([net.a]),
    "chain map": lambda net: ChainMap({"a": net.a}),
    "iterator": lambda net: iter([net.a]),
    "cycle": lambda net: itertools.cycle([net.a]),
    "generator": lambda net: started(generator(net.a)),
    "cache": lambda net: functools.lru_cache(net.a.forward),
    "closure": lambda net: closure(net.a),
    "closure in a closure": lambda net: closure(closure(net.a)),  # type: ignore[arg-type]
    "default": lambda net: with_default(net.a),
    "function attribute": lambda net: with_attribute(net.a),
    "wrapped": lambda net: functools.wraps(net.a.forward)(lambda x: x),
    "property object": lambda net: property(closure(net.a)),
    "optimizer": lambda net: torch.optim.SGD(net.parameters(), lr=0.1),
    "transposed": lambda net: net.a.weight.t(),
    "data": lambda net: net.a.weight.data,
    "detached": lambda net: net.a.weight.detach(),
    "slice": lambda net: net.a.weight.detach()[1],
    "array": lambda net: net.a.weight.detach().numpy(),
    "data in a list": lambda net: [{"w": net.a.weight.data}],
    "data in an object": lambda net: Callable_(net.a.weight.data),
    "data in a closure": lambda net: closure(net.a.weight.data),
    "product": lambda net: net.a.weight * 2,
    "product of products": lambda net: (net.a.weight * 2).exp().sum(0),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_followed_is_refused_with_where_and_what_to_do(kind: str) -> None:
    def use(kept: Any, x: Tensor) -> Tensor:
        return x

    tensor = kind in ("transposed", "data", "detached", "slice", "data in a list") or "prod" in kind
    remedy = "Compute it in forward" if tensor else "leave those parameters out of targets"
    check_refused(lambda: held(REFUSED[kind], use), "'kept'", "The primary", remedy)


@pytest.mark.parametrize("kind", REFUSED)
def test_the_same_is_harmless_where_it_reaches_no_predicted_weight(kind: str) -> None:
    def use(kept: Any, x: Tensor) -> Tensor:
        return x

    net = held(REFUSED[kind], use)
    if kind == "optimizer":
        return
    model, x = hl.hypernetize(net, SPACE, ["b.*"]), inputs()
    theta = {**dict(net.a.named_parameters(prefix="a")), **model.predict(g=0.9)}
    found = model(x, g=0.9)
    torch.testing.assert_close(found, in_place(net, theta, x))


# --- hooks ------------------------------------------------------------------

first = linear()  # a global variable, as in a script


def reads_a_global(module: nn.Module, args: Any, out: Tensor) -> Tensor:
    return out + helper()


def helper() -> Tensor:
    return first.weight.sum()


def hooked(hook: Callable[[Any], Any], register: str = "register_forward_hook") -> nn.Module:
    net = nn.Sequential(linear(), linear())
    getattr(net[1], register)(hook(net))
    return net


def over_a_global() -> nn.Module:
    net = nn.Sequential(first, linear())
    net[1].register_forward_hook(reads_a_global)
    return net


HOOKS: dict[str, Callable[[], nn.Module]] = {
    "global": over_a_global,
    "closure": lambda: hooked(lambda net: lambda m, a, out: out + net[0].weight.sum()),
    "default": lambda: hooked(lambda net: lambda m, a, out, w=net[0].weight: out + w.sum()),
    "data": lambda: hooked(lambda net: lambda m, a, out, w=net[0].weight.data: out + w.sum()),
    "object": lambda: hooked(lambda net: Callable_(net[0])),
    "before": lambda: hooked(
        lambda net: lambda m, args: args[0] + net[0].bias, "register_forward_pre_hook"
    ),
    "backward": lambda: hooked(
        lambda net: lambda m, i, o: (i[0] * net[0].weight.sum(),), "register_full_backward_hook"
    ),
    "before backward": lambda: hooked(
        lambda net: lambda m, o: (o[0] * net[0].weight.sum(),), "register_full_backward_pre_hook"
    ),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_that_read_another_layer_are_refused(kind: str) -> None:
    check_refused(HOOKS[kind], "hooks '_", "The submodule '1' of the primary")


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_that_come_after_the_model_was_made_are_refused(kind: str) -> None:
    net, x = nn.Sequential(linear(), linear()), inputs()
    model = hl.hypernetize(net, SPACE)
    model(x, g=0.5)
    other = HOOKS[kind]()
    net[0], net[1] = other[0], other[1]
    with pytest.raises(hl.BindError, match="hooks '_"):
        model(x, g=0.5)


def test_a_hook_that_is_exchanged_for_another_is_seen() -> None:
    net, x = nn.Sequential(linear(), linear()), inputs()
    handle = net[1].register_forward_hook(lambda m, args, out: out + 1.0)
    model = hl.hypernetize(net, SPACE)
    model(x, g=0.5)
    handle.remove()
    net[1].register_forward_hook(lambda m, args, out: out + net[0].weight.sum())
    with pytest.raises(hl.BindError, match="closure"):
        model(x, g=0.5)


def test_hooks_that_use_their_arguments_or_a_bound_method_are_right() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = linear(), linear()
            self.b.register_forward_hook(self.add)
            self.b.register_forward_hook(functools.partial(self.scale, 2.0))
            self.a.register_forward_hook(lambda module, args, out: out + module.weight.sum())

        def add(self, module: nn.Module, args: Any, out: Tensor) -> Tensor:
            return out + self.a.weight.sum()

        def scale(self, factor: float, module: nn.Module, args: Any, out: Tensor) -> Tensor:
            return factor * out * self.a.weight.sum()

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    check_right(Net)


def test_a_hook_that_collects_outputs_is_fine() -> None:
    found: list[Tensor] = []
    net, x = nn.Sequential(linear(), linear()), inputs()
    net[0].register_forward_hook(lambda module, args, out: found.append(out))
    model = hl.hypernetize(net, SPACE)
    y = model(x, g=0.5)
    torch.testing.assert_close(model.bind(g=0.5)[1](found[0]), y)


# --- two tensors in one memory ----------------------------------------------


class OneMemory(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        whole = torch.randn(6, 3, dtype=torch.float64)
        self.a = nn.Parameter(whole[:3])
        if how == "parameter":
            self.b = nn.Parameter(whole[:3])
        elif how == "part":
            self.b = nn.Parameter(whole[2:4])
        elif how == "transposed":
            self.b = nn.Parameter(whole[:3].t())
        elif how == "buffer":
            self.register_buffer("b", whole[:3])
        else:
            self.b = nn.Parameter(whole[3:])

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.a.t() + x.sum() * self.b.sum()


@pytest.mark.parametrize("how", ["parameter", "part", "transposed", "buffer"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_two_tensors_in_one_memory_are_refused(how: str, device: str) -> None:
    with torch.device(device):
        net = OneMemory(how)
    for targets in ("*", ["a"]):
        with pytest.raises(hl.BindError, match="in the memory of the parameter .* one object"):
            hl.hypernetize(net, SPACE, targets, device="cpu")


def test_two_parts_of_one_memory_are_two_parameters() -> None:
    check_right(lambda: OneMemory("beside"))


# --- what an earlier forward has computed -----------------------------------


class Cached(nn.Linear):
    """Normalises its weight once, and keeps it: by ``how``."""

    by_class: Tensor | None = None

    def __init__(self, how: str) -> None:
        super().__init__(3, 3, dtype=torch.float64)
        self.how = how
        self.none: Tensor | None = None
        self.table: dict[str, Tensor] = {}
        self.rows: list[Tensor] = []
        self.register_buffer("buffer", None)

    @functools.cached_property
    def once(self) -> Tensor:
        return self.normalised()

    def normalised(self) -> Tensor:
        return self.weight / self.weight.norm()

    def get(self) -> Tensor:
        if self.how == "class":
            if self.by_class is None:
                self.by_class = self.normalised()
            return self.by_class
        if self.how == "none":
            if self.none is None:
                self.none = self.normalised()
            return self.none
        if self.how == "absent":
            if not hasattr(self, "late"):
                self.late = self.normalised()
            return self.late
        if self.how == "table":
            if "w" not in self.table:
                self.table["w"] = self.normalised()
            return self.table["w"]
        if self.how == "rows":
            if not self.rows:
                self.rows.append(self.normalised())
            return self.rows[0]
        if self.how == "buffer":
            if self.buffer is None:
                self.buffer = self.normalised()
            return self.buffer
        return self.once

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.get(), self.bias)


CACHES = ["class", "none", "absent", "table", "rows", "buffer", "property"]


@pytest.mark.filterwarnings("ignore:The forward of the ")
@pytest.mark.parametrize("how", CACHES)
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_cache_that_is_full_is_not_taken_over(how: str, graph: bool, when: str) -> None:
    net, x = nn.Sequential(Cached(how), linear()), inputs()
    with torch.set_grad_enabled(graph):
        if when == "before":
            net(x)
        model = hl.hypernetize(net, SPACE)
        if when == "after":
            model(x, g=0.1)
            net(x)
    held_before = dict(net[0].__dict__)
    one, two = model(x, g=0.1), model(x, g=0.9)
    bound = model.bind(g=0.9)
    torch.testing.assert_close(bound(x), two)
    torch.testing.assert_close(bound(x), two)
    theta = {name: t.detach() for name, t in model.predict(g=0.9).items()}
    fresh = nn.Sequential(Cached(how), linear())
    torch.testing.assert_close(two, in_place(fresh, theta, x))
    assert not torch.equal(one, two)
    assert all(net[0].__dict__[name] is value for name, value in held_before.items())


def test_a_cache_that_nobody_knows_how_to_reset_is_refused() -> None:
    class Flagged(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 3)
            self.full = False
            self.merged = torch.zeros(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            if not self.full:
                self.merged, self.full = self.weight * 2, True
            return F.linear(x, self.merged)

    net, x = nn.Sequential(Flagged()), torch.randn(2, 3)
    model = hl.hypernetize(net, SPACE)
    with torch.no_grad():
        net(x)
    for attempt in (lambda: model(x, g=0.5), lambda: hl.hypernetize(net, SPACE)):
        with pytest.raises(
            hl.BindError, match=r"'0' of the primary keeps a tensor .*'merged'.*Reset"
        ):
            attempt()


class Ordinary(nn.Module):
    """Keeps tensors as attributes, as networks do: constants, a mask, a rotary table, a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = linear(), linear()
        self.mean = torch.tensor([0.48, 0.45, 0.40], dtype=torch.float64)
        self.kernels = [torch.randn(3, 3, dtype=torch.float64)]
        self.kernels.append(torch.randn(3, 3, dtype=torch.float64))
        self.mask: Tensor | None = None
        self.rope: Tensor | None = None
        self.make_table()
        self.aux = torch.zeros(())

    def make_table(self) -> None:
        self.table = torch.randn(3, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = torch.triu(torch.full((4, 4), -torch.inf, dtype=x.dtype), 1)
        if self.rope is None:
            self.rope = torch.arange(3, dtype=x.dtype).cos()
        x = self.a((x - self.mean) * self.rope) @ self.table @ self.kernels[0]
        self.aux = x.mean()
        return self.b((x @ x.t() + self.mask).softmax(1) @ x)


@pytest.mark.filterwarnings("ignore:The forward of the ")
@pytest.mark.parametrize("ran", [False, True])
def test_tensors_that_ordinary_networks_keep_are_fine(ran: bool) -> None:
    def make() -> nn.Module:
        net = Ordinary()
        if ran:
            with torch.no_grad():
                net(inputs())
            net(inputs())
        return net

    check_right(make)


# --- containers of its own --------------------------------------------------

CONTAINERS: dict[str, Callable[[], Any]] = {
    "dict": dict,
    "full dict": lambda: {"a": 1},
    "list": list,
    "full list": lambda: [1, 2],
    "set": set,
    "full set": lambda: {1},
    "deque": lambda: deque([1], maxlen=2),
    "ordered": lambda: OrderedDict(a=1),
    "defaultdict": lambda: defaultdict(list, a=[1]),
    "counter": lambda: Counter("aab"),
    "nested": lambda: {"a": [{"b": {1}}]},
    "in a tuple": lambda: ([], {}),
}


def containers_in(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [value, *itertools.chain(*map(containers_in, value.values()))]
    inner = list(value) if isinstance(value, (list, tuple, set, deque)) else []
    own = [] if isinstance(value, tuple) else [value] * isinstance(value, (list, set, deque))
    return own + list(itertools.chain(*map(containers_in, inner)))


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_bound_network_has_containers_of_its_own(kind: str) -> None:
    net = held(lambda net: CONTAINERS[kind](), lambda kept, x: x)
    model = hl.hypernetize(net, SPACE)
    one, two = model.bind(g=0.1), model.bind(g=0.9)
    found = [containers_in(each.kept) for each in (net, one, two)]
    assert one.kept == two.kept == net.kept == CONTAINERS[kind]()
    assert type(one.kept) is type(net.kept)
    assert len(found[0]) > 0
    ids = [id(container) for containers in found for container in containers]
    assert len(ids) == len(set(ids))


def test_no_table_that_a_forward_could_write_is_shared() -> None:
    net = nn.Sequential(linear(), nn.BatchNorm1d(3), nn.ReLU())
    bound = hl.hypernetize(net, SPACE).bind(g=0.5)
    for module, own in zip(net.modules(), bound.modules(), strict=True):
        shared = {
            name
            for name, value in module.__dict__.items()
            if isinstance(value, (dict, set, list)) and own.__dict__[name] is value
        }
        assert all("state_dict_" in name for name in shared), shared


def test_one_container_of_several_modules_stays_one() -> None:
    class Adds(nn.Linear):
        def __init__(self, losses: list[Tensor]) -> None:
            super().__init__(3, 3, dtype=torch.float64)
            self.losses = losses

        def forward(self, x: Tensor) -> Tensor:
            self.losses.append(x.sum())
            return super().forward(x)

    losses: list[Tensor] = []
    net = nn.Sequential(Adds(losses), Adds(losses))
    bound = hl.hypernetize(net, SPACE).bind(g=0.5)
    bound(inputs())
    assert bound[0].losses is bound[1].losses
    assert (len(bound[0].losses), len(losses)) == (2, 0)


def test_what_one_gamma_caches_the_next_does_not_read() -> None:
    class Merged(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 3, dtype=torch.float64)
            self.cache: dict[str, Tensor] = {}

        def forward(self, x: Tensor) -> Tensor:
            if "w" not in self.cache:
                self.cache["w"] = self.weight * 2
            return F.linear(x, self.cache["w"])

    with pytest.warns(UserWarning, match="wrote its attribute 'cache'"):
        check_right(Merged)


# --- parameters that forward writes, or that change later -------------------


class Writes(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how = linear(), nn.BatchNorm1d(3, dtype=torch.float64), how

    def forward(self, x: Tensor) -> Tensor:
        weight = self.a.weight * 2
        if self.how == "table":
            self.a._parameters["weight"] = weight  # type: ignore[assignment]
        elif self.how == "update":
            self.a._parameters.update(weight=weight)  # type: ignore[call-overload]
        elif self.how == "new table":
            self.a._parameters = {**self.a._parameters, "weight": weight}  # type: ignore[dict-item]
        elif self.how == "deleted":
            del self.a.weight
            self.a.weight = weight  # type: ignore[assignment]
        elif self.how == "parameter":
            self.a.weight = nn.Parameter(weight.detach())
        elif self.how == "in place":
            self.a.weight.mul_(2)
        elif self.how == "not predicted":
            self.b._parameters["weight"] = self.b.weight * 2  # type: ignore[assignment]
        return self.b(self.a(x))


@pytest.mark.parametrize(
    "how", ["table", "update", "new table", "deleted", "parameter", "in place", "not predicted"]
)
def test_a_forward_that_writes_parameters_is_right_and_leaves_the_primary_alone(how: str) -> None:
    net, x = Writes(how).eval(), inputs()
    weight, gain = net.a.weight, net.b.weight
    model = hl.hypernetize(net, SPACE)
    with torch.no_grad():
        y = model(x, g=0.5)
        assert net.a.weight is weight
        assert net.b.weight is gain
        theta = {**dict(net.named_parameters()), **model.predict(g=0.5)}
        torch.testing.assert_close(y, in_place(net, theta, x))


CHANGES: dict[str, Callable[[Any], Any]] = {
    "pruned": lambda net: prune.l1_unstructured(net[0], "weight", amount=0.5),
    "weight norm": lambda net: nn.utils.weight_norm(net[0]),
    "spectral norm": lambda net: nn.utils.spectral_norm(net[0]),
    "new weight norm": lambda net: parametrizations.weight_norm(net[0]),
    "new spectral norm": lambda net: parametrizations.spectral_norm(net[0]),
    "orthogonal": lambda net: parametrizations.orthogonal(net[0]),
    "removed": lambda net: net[0].register_parameter("weight", None),
    "replaced": lambda net: net.__setitem__(0, nn.Identity()),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("called", [False, True])
def test_a_target_that_is_no_parameter_any_more_is_refused(change: str, called: bool) -> None:
    net, x = nn.Sequential(linear(), linear()), inputs()
    model = hl.hypernetize(net, SPACE)
    if called:
        model(x, g=0.5)
    CHANGES[change](net)
    for attempt in (lambda: model(x, g=0.5), lambda: model.bind(g=0.5), lambda: model.at(g=0.5)):
        with pytest.raises(hl.HyperLightError, match="'0.weight' is no parameter|has no attribute"):
            attempt()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("change", ["pruned", "weight norm", "spectral norm"])
def test_an_attribute_that_a_hook_of_torch_computes_is_right_before_the_first_call(
    change: str,
) -> None:
    net, x = nn.Sequential(linear(), linear()), inputs()
    CHANGES[change](net)
    net.eval()
    with torch.no_grad():
        net(x)
    model = hl.hypernetize(net, SPACE)
    bound = model.bind(g=0.9)
    before = bound[0].weight.clone()
    bound(x)
    torch.testing.assert_close(before, bound[0].weight)
    assert not torch.equal(before, net[0].weight)
    if change == "pruned":
        assert torch.equal(before == 0, net[0].weight_mask == 0)


# --- copies of a bound network ----------------------------------------------


@pytest.mark.parametrize("part", [lambda net: net, lambda net: net[0]])
@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_a_bound_network_cannot_be_copied_and_the_error_names_model_at(
    part: Callable[[Any], Any], copied: Callable[[Any], Any]
) -> None:
    model = hl.hypernetize(nn.Sequential(linear(), linear()), SPACE)
    with pytest.raises(hl.BindError, match=r"Use model\.at\(\.\.\.\) for an independent network"):
        copied(part(model.bind(g=0.5)))


def test_a_bound_network_without_a_graph_can_be_copied() -> None:
    model, x = hl.hypernetize(nn.Sequential(linear()), SPACE), inputs()
    with torch.no_grad():
        bound = model.bind(g=0.5)
        assert torch.equal(copy.deepcopy(bound)(x), bound(x))
        assert torch.equal(pickle.loads(pickle.dumps(bound))(x), bound(x))


# --- graph modules ----------------------------------------------------------


@pytest.mark.parametrize("kind", ["traced", "exported"])
def test_graph_modules_can_be_primaries(kind: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = linear(), linear()
            self.gain = nn.Parameter(torch.randn(3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x)) * self.gain)

    def make() -> nn.Module:
        if kind == "traced":
            return torch.fx.symbolic_trace(Net())
        return torch.export.export(Net(), (inputs(),)).module()

    check_right(make)
    model, x = hl.hypernetize(make(), SPACE), inputs()
    torch.testing.assert_close(model.at(g=0.5)(x), model(x, g=0.5))
    if kind == "traced":
        found = torch.fx.Interpreter(model.bind(g=0.5)).run(x)
        torch.testing.assert_close(found, model(x, g=0.5))


# --- results that a forward leaves on itself --------------------------------


class Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = linear()
        self.aux = torch.zeros(())
        self.steps = 0
        self.seen: list[Tensor] = []
        self.register_buffer("mean", torch.zeros(3, dtype=torch.float64))
        self.register_buffer("total", torch.zeros(3, dtype=torch.float64))
        self.mode = "plain"

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        self.aux = y.square().mean()
        self.steps += 1
        self.seen.append(y)
        self.late = y
        self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)
        self.total.add_(y.detach().sum(0))
        self.mode = "used"
        self.a.last = y
        return y


def test_results_that_a_forward_leaves_on_itself_are_warned_of_once_and_can_be_read() -> None:
    model, x = hl.hypernetize(nn.Sequential(Router()), SPACE), inputs()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        y = model(x, g=0.5)
        model(x, g=0.9)
    texts = [str(warning.message) for warning in seen]
    names = ["aux", "steps", "seen", "late", "mean"]
    expected = {f"submodule '0' of the primary wrote its attribute {name!r}" for name in names}
    expected.add("submodule '0.a' of the primary wrote its attribute 'last'")
    assert {
        text.partition(", on a bound")[0].partition("forward of the ")[2] for text in texts
    } == (expected)
    assert len(texts) == len(expected)
    assert all("net = model.bind(...)" in text for text in texts)
    assert seen[0].filename == __file__
    assert "net.0.aux" in next(text for text in texts if "'aux'" in text)
    net = model.bind(g=0.5)
    torch.testing.assert_close(net(x), y)
    torch.testing.assert_close(net[0].aux, y.square().mean())
    assert (net[0].steps, len(net[0].seen), model.primary[0].steps) == (1, 1, 0)
    assert model.primary[0].total.abs().sum() > 0
    assert model.primary[0].mean.abs().sum() == 0


def test_nothing_is_said_of_what_no_weight_reaches_and_of_ordinary_layers() -> None:
    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.length, self.table = 0, torch.zeros(3)

        def forward(self, x: Tensor) -> Tensor:
            self.length, self.table = len(x), torch.arange(3).cos()
            return x * self.table

    net = nn.Sequential(nn.utils.spectral_norm(linear()), Rotary(), nn.BatchNorm1d(3).double())
    recurrent = nn.LSTM(3, 3, 2, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hl.hypernetize(net, SPACE)(inputs(), g=0.5)
        model = hl.hypernetize(recurrent, SPACE)
        model(inputs(), g=0.5)
        model.bind(g=0.5).flatten_parameters()
