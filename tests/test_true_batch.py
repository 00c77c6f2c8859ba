"""One set of weights per sample, on random networks: the loop's result or a refusal, never else.

``HYPOTHESIS_PROFILE=long`` looks at more than two thousand networks, others each time. ``-s``
shows how many were right and how many were refused, and why.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor, nn

import hyperlight as hl
from tests.models import one_graph
from tests.reference.networks import (
    CROSSING,
    DECIDING,
    LAYERS,
    PLACES,
    SHUFFLED,
    STEPS,
    TIME,
    Case,
    cases,
    smaller,
)

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
NETWORKS = 1200 if LONG else 60  # of each family
search = settings(
    max_examples=NETWORKS,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
quiet = pytest.mark.filterwarnings("ignore::UserWarning")


def _model(case: Case) -> hl.HyperModel:
    return hl.hypernetize(
        case.network(),
        {"g": hl.Uniform(0.0, 1.0)},
        targets=case.targets(),
        hidden=(4,),
        head=hl.LowRank(1) if case.low_rank else (hl.Dense(), hl.ChannelScale())[case.seed % 2],
        init=hl.Relative(0.5),
        generator=torch.Generator().manual_seed(case.seed),
    )


def _gamma(case: Case, call: int) -> Tensor:
    generator = torch.Generator().manual_seed(case.seed + 100 + call)
    return torch.rand(case.calls[call][0], dtype=torch.float64, generator=generator)


Data = tuple[Tensor, ...]


def _given(model: hl.HyperModel, data: Data) -> list[Any]:
    """The arguments for a call of all samples; a network may change them."""
    x, *others = (tensor.clone() for tensor in data)
    if not model.primary.time_first:
        return [x, *others]
    return [hl.PerSample(x.transpose(0, 1).contiguous(), dim=1), *others]


def _rows(model: hl.HyperModel, data: Data, i: int) -> list[Tensor]:
    """The arguments for a call of one sample."""
    x, *others = (tensor[i : i + 1].clone() for tensor in data)
    return [x.transpose(0, 1) if model.primary.time_first else x, *others]


def _loop(model: hl.HyperModel, data: Data, g: Tensor) -> Tensor:
    """One sample after another, each with its single set of weights."""
    return torch.cat([model(*_rows(model, data, i), g=g[i]) for i in range(len(g))])


def _gradients(model: hl.HyperModel, output: Tensor, x: Tensor) -> list[Tensor]:
    """By every parameter of the model, and by the data where they require one."""
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    sources = [*model.parameters(), *([x] if x.requires_grad else [])]
    found: list[Tensor] = list(
        torch.autograd.grad((output * weights).sum(), sources, materialize_grads=True)
    )
    return found


def _equal(found: Any, expected: Tensor) -> bool:
    return (
        isinstance(found, Tensor)
        and found.shape == expected.shape
        and torch.allclose(found, expected, rtol=1e-7, atol=1e-9, equal_nan=True)
    )


@dataclass
class Tally:
    """What became of the calls, and the reasons of refusals."""

    found: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)

    def share(self, what: str) -> float:
        return self.found[what] / max(sum(self.found.values()), 1)

    def show(self, title: str) -> None:
        print(f"\n{title}: {dict(self.found)}; ways of model(x): {dict(self.ways)}")
        for reason, count in self.reasons.most_common(30 if LONG else 8):
            print(f"    {count} x {reason}")


def _native(model: hl.HyperModel, data: Data, g: Tensor) -> Tensor:
    output: Tensor = model.bind(g=g)(*_given(model, data))
    return output


Run = Callable[[hl.HyperModel, Data, Tensor], Tensor]


def _judge(case: Case, run: Run, tally: Tally) -> Iterator[str]:
    """Every call of a case by ``run`` against the loop: ``"right"``, ``"refused"``, or what else.

    Outputs and, where the seed is odd, gradients. A last call has the data of the second in the
    other gradient mode.
    """
    model, grad = _model(case), case.seed % 2 == 1
    for call, mode in ((0, grad), (1, grad), (2, grad), (3, grad), (1, not grad)):
        data, g = case.data(call), _gamma(case, call)
        data[0].requires_grad_(mode and case.seed % 8 < 4)
        with torch.set_grad_enabled(mode):
            try:
                expected = _loop(model, data, g)
                gradients = _gradients(model, expected, data[0]) if mode else []
            except Exception:  # the network itself does not run on one sample
                tally.found["no reference"] += 1
                continue
            try:
                output = run(model, data, g)
                right = _equal(output, expected)
                found = _gradients(model, output, data[0]) if mode and right else []
            except hl.HyperLightError as refusal:
                result = "refused"
                tally.reasons[" ".join(str(refusal).split())[:200]] += 1
            except Exception as error:
                result = f"failed with {type(error).__name__}: {error}"
            else:
                result = "right" if right else "silently wrong"
                if not all(_equal(a, b) for a, b in zip(found, gradients, strict=False)):
                    result = "right, with silently wrong gradients"
        tally.found[result.partition(":")[0]] += 1
        yield f"call {call}, {'grad' if mode else 'no grad'}: {result}"


def _check(case: Case, run: Run, tally: Tally, allowed: tuple[str, ...]) -> None:
    """Raise for the first call that is not as allowed, with the smallest network that fails."""

    def wrong(case: Case, tally: Tally) -> list[str]:
        return [line for line in _judge(case, run, tally) if not line.endswith(allowed)]

    lines = wrong(case, tally)
    while lines:
        for less in smaller(case):
            if found := wrong(less, Tally()):
                case, lines = less, found
                break
        else:
            raise AssertionError(f"{lines[0]}\n{case}")


SINGLE = [
    *(("placed", place, ("linear",)) for place in PLACES),
    *(("placed", "as it is", (layer,)) for layer in LAYERS),
    *((step, variant) for step in STEPS for variant in range(4)),
    *(("time", which) for which in range(len(TIME))),
    *(("shuffled", name, ("linear",)) for name in SHUFFLED),
    ("packed",),
    *(("crossing", name) for name in (*CROSSING, *DECIDING)),
]


# --- what must hold -----------------------------------------------------------------------------


@quiet
@pytest.mark.parametrize("crossing", [False, True], ids=["ordinary", "crossing"])
def test_a_bound_network_is_right_or_refuses(crossing: bool) -> None:
    tally = Tally()

    @search
    @given(cases(crossing))
    def check(case: Case) -> None:
        _check(case, _native, tally, ("right", "refused"))

    check()
    tally.show(f"bind, {'crossing' if crossing else 'ordinary'}")
    if not crossing:
        assert tally.share("refused") <= 0.08  # 0.04 of 600 networks


@quiet
@pytest.mark.parametrize("crossing", [False, True], ids=["ordinary", "crossing"])
def test_the_model_is_always_right(crossing: bool) -> None:
    tally = Tally()

    def run(model: hl.HyperModel, data: Data, g: Tensor) -> Tensor:
        output: Tensor = model(*_given(model, data), g=g)
        tally.ways[model.last_run.way] += 1
        return output

    @search
    @given(cases(crossing))
    def check(case: Case) -> None:
        # By itself, a sample must be in the first dimension: asked for, and refused in words.
        _check(case, run, tally, ("right", *(["refused"] if case.time_first else [])))

    check()
    tally.show(f"model, {'crossing' if crossing else 'ordinary'}")


def _alone(run: Run, crossing: bool, allowed: tuple[str, ...]) -> Tally:
    """Every step in a network of its own, with time as long as the batch."""
    tally = Tally()
    for number, step in enumerate(SINGLE):
        if (step[0] in ("crossing", "shuffled", "packed")) == crossing and step[-1] not in DECIDING:
            full = number % 4 < 2
            calls = ((4, 4, full), (4, 4, full), (4, 4, not full), (3, 3, full))
            _check(Case(4, (step,), calls, False, False, False, number), run, tally, allowed)
    return tally


@quiet
@pytest.mark.parametrize("crossing", [False, True], ids=["ordinary", "crossing"])
def test_every_step_alone(crossing: bool) -> None:
    tally = _alone(_native, crossing, ("right", "refused"))
    tally.show(f"bind, every step alone, {'crossing' if crossing else 'ordinary'}")
    assert crossing or tally.share("refused") <= 0.03
    _alone(lambda m, data, g: m(*_given(m, data), g=g), crossing, ("right",))


def _deciding(name: str) -> Iterator[Case]:
    for seed in range(4):
        calls = ((4, 5, seed == 0),) * 2 + ((4, 5, False), (3, 3, False))
        yield Case(4, (("crossing", name),), calls, False, False, False, seed)


# What a network decides by any() or all() of whole numbers, it decides for the whole batch.
FOR_ALL = ("branch on any",)


@quiet
@pytest.mark.parametrize("name", [name for name in DECIDING if name not in FOR_ALL])
def test_numbers_that_are_read_off_the_arguments(name: str) -> None:
    """Of the whole batch, they are other ones than a single sample's."""
    for case in _deciding(name):
        _check(case, _native, Tally(), ("right", "refused"))
        _check(case, lambda m, data, g: m(*_given(m, data), g=g), Tally(), ("right",))


@pytest.mark.parametrize("name", FOR_ALL)
def test_what_is_decided_by_any_sample_is_decided_for_the_whole_batch(name: str) -> None:
    """As without a hypernetwork: every sample equals its row of the batch under its own set."""
    apart = set()
    for case in _deciding(name):
        model = _model(case)
        for call in (0, 1, 2, 3, 1):
            data, g = case.data(call), _gamma(case, call)
            whole = [model(*_given(model, data), g=one)[i] for i, one in enumerate(g)]
            expected = torch.stack(whole)
            apart.add(_equal(_loop(model, data, g), expected))
            gradients = _gradients(model, expected, data[0])
            for run in (_native, lambda m, data, g: m(*_given(m, data), g=g)):
                output = run(model, data, g)
                assert _equal(output, expected), call
                assert all(map(_equal, _gradients(model, output, data[0]), gradients))
            assert model.last_run.way == "batch"
    assert apart == {True, False}  # in some calls the samples would decide differently


@quiet
@pytest.mark.parametrize("time", [4, 5], ids=["as long as the batch", "longer"])
def test_a_network_that_alternates(time: int) -> None:
    """Between ways to one result, by a count of its own: a plan of one call misleads the next."""
    # With the four single samples, every second call of all of them goes the same way.
    case = Case(4, (("either", 4),), ((4, time, True),) * 4, False, False, False, 0)
    _check(case, _native, Tally(), ("right", "refused"))
    _check(case, lambda m, data, g: m(*_given(m, data), g=g), Tally(), ("right",))


# --- one layer alone ------------------------------------------------------------------------


class Alone(nn.Module):
    """One predicted table or parameter, and no layer after it that could refuse."""

    def __init__(self, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.use = use
        self.table = nn.Embedding(8, 4)
        self.token = nn.Parameter(torch.randn(1, 5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self, x)


def _positions(net: Any, x: Tensor) -> Tensor:
    found: Tensor = net.table(torch.arange(x.shape[1]))
    return found


ALONE: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "a table": (lambda net, x: x + _positions(net, x), "table.*"),
    "a table, unsqueezed": (lambda net, x: x + _positions(net, x)[None], "table.*"),
    "a table, transposed": (lambda net, x: x @ _positions(net, x).T, "table.*"),
    "a table, summed": (lambda net, x: x + _positions(net, x).sum(0), "table.*"),
    "a row": (lambda net, x: x[:, :1] + net.table(torch.arange(1)), "table.*"),
    "a batch of one": (lambda net, x: x + net.table(torch.arange(x.shape[1])[None]), "table.*"),
    "a batch of one, alone": (lambda net, x: net.table(torch.arange(x.shape[1])[None]), "table.*"),
    "a token": (lambda net, x: x + net.token, "token"),
    "a token, alone": (lambda net, x: net.token, "token"),
    "a token, expanded": (lambda net, x: x + net.token.expand(len(x), -1, -1), "token"),
    "a token's entry": (lambda net, x: x + net.token[0], "token"),
    "a token, squeezed": (lambda net, x: x + net.token.squeeze(0), "token"),
    "a token's mean": (lambda net, x: x + net.token.mean(), "token"),
    "a token, repeated": (lambda net, x: x + net.token.repeat(len(x), 1, 1), "token"),
}


@quiet
@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("samples", [3, 5], ids=["B", "B as long as time"])
def test_a_predicted_table_without_a_batch_is_right_or_refused(name: str, samples: int) -> None:
    torch.manual_seed(0)
    use, targets = ALONE[name]
    space = {"g": hl.Uniform(0.0, 1.0)}
    model = hl.hypernetize(Alone(use), space, targets=targets, init=hl.Relative(0.5))
    x, g = torch.randn(samples, 5, 4), torch.rand(samples)
    expected = torch.cat([model(x[i : i + 1], g=g[i]) for i in range(samples)])
    for _ in range(2):
        torch.testing.assert_close(model(x, g=g), expected)
        try:
            found = model.bind(g=g)(x)
        except hl.BindError:
            continue
        torch.testing.assert_close(found, expected)
    for sets in (2, 5):
        g = torch.rand(sets)
        swept = torch.stack([model(x, g=one) for one in g])
        for _ in range(2):
            torch.testing.assert_close(model.sweep(x, g=g), swept)


class Reader(nn.Module):
    """A user's layer, which has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def test_a_layer_of_ones_own_that_sees_two_layouts_in_one_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reader = Reader()

        def forward(self, x: Tensor) -> Tensor:
            return self.reader(x) + 2 * self.reader(x.transpose(0, 1)).transpose(0, 1)

    model = hl.hypernetize(Twice(), {"g": hl.Uniform(0.0, 1.0)}, init=hl.Relative(0.5))
    x, g = torch.randn(4, 4, 4), torch.rand(4)
    expected = torch.cat([model(x[i : i + 1], g=g[i]) for i in range(4)])
    net = model.bind(g=g)
    for _ in range(2):
        torch.testing.assert_close(model(x, g=g), expected)
        torch.testing.assert_close(net(x), expected)
        assert model.last_run == hl.many.Run("batch")


@pytest.mark.parametrize("name", ["leaky_relu_", "elu_", "mish_", "gelu_", "threshold_", "abs_"])
def test_activations_in_place_run_on_the_batch(name: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            operation = getattr(torch.ops.aten, name)
            return self.last(operation(y, 0.0, 0.1) if name == "threshold_" else operation(y))

    model = hl.hypernetize(Net(), {"g": hl.Uniform(0.0, 1.0)}).double()
    x, g = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    one = torch.cat([model(x[i : i + 1], g=g[i]) for i in range(5)])
    torch.testing.assert_close(model(x, g=g), one)
    assert model.last_run.way == "batch", model.last_run.reason


def test_what_all_sets_of_a_sweep_share_ends_where_a_table_of_each_is_added() -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.rest = nn.Embedding(8, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(x + self.table(torch.arange(x.shape[1])))

    model = hl.hypernetize(
        Added(), {"g": hl.Uniform(0.0, 1.0)}, targets="table.*", init=hl.Relative(0.5)
    )
    x, g = torch.randn(3, 5, 4), torch.rand(6)
    expected = torch.stack([model(x, g=one) for one in g])
    for _ in range(2):
        torch.testing.assert_close(model.sweep(x, g=g), expected)
        assert model.last_run == hl.many.Run("batch")


def test_a_sweep_gives_back_a_table_of_every_set() -> None:
    model = hl.hypernetize(
        Alone(_positions), {"g": hl.Uniform(0.0, 1.0)}, targets="table.*", init=hl.Relative(0.5)
    )
    x, g = torch.randn(3, 5, 4), torch.rand(6)
    expected = torch.stack([model(x, g=one) for one in g])
    for _ in range(2):
        torch.testing.assert_close(model.sweep(x, g=g), expected)
        assert model.last_run == hl.many.Run("batch")


class Turning(nn.Module):
    """Has another layout in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def turned(self, x: Tensor) -> Tensor:
        return self.linear(x)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.turned(x.transpose(0, 1).contiguous()).transpose(0, 1)
        return self.turned(x)


def test_a_plan_is_for_the_modes_that_a_bound_network_has() -> None:
    model = hl.hypernetize(Turning(), {"g": hl.Uniform(0.0, 1.0)}, init=hl.Relative(0.5))
    x, g = torch.randn(4, 4, 4), torch.rand(4)
    expected = torch.cat([model(x[i : i + 1], g=g[i]) for i in range(4)])
    net = model.bind(g=g)
    for training in (True, False, True):
        torch.testing.assert_close(net.train(training)(x), expected)


@one_graph
def test_a_graph_may_call_other_methods_on_the_way() -> None:
    model = hl.hypernetize(Turning(), {"g": hl.Uniform(0.0, 1.0)})
    x, g = torch.randn(4, 5, 4), torch.rand(4)
    expected, net = model(x, g=g), model.bind(g=g)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, g=g), expected)
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(x), expected)


def test_a_bound_network_that_is_kept_forgets_what_is_gone() -> None:
    net = hl.hypernetize(nn.Linear(4, 4), {"g": hl.Uniform(0.0, 1.0)}).bind(g=torch.rand(3))
    for length in range(1, 120):
        net(torch.randn(3, length, 4))
    sets = net.sets_of_weights
    assert len(sets.used) <= 64
    assert len(sets.facts) < 20


# --- the check itself -----------------------------------------------------------------------


def _trusting(model: hl.HyperModel, data: Data, g: Tensor) -> Tensor:
    """What must be found out: every layer takes dimension 0 for the batch where its size is B."""
    networks = [model.bind(g=one) for one in g]
    host = copy.deepcopy(model.primary)
    for name, module in host.named_modules():
        if next(module.parameters(recurse=False), None) is None:
            continue
        own = [network.get_submodule(name) for network in networks]

        def forward(*args: Any, own: list[nn.Module] = own, **kwargs: Any) -> Any:
            x = args[0]
            if len(x) == 1:
                x = x.expand(len(own), *x.shape[1:])
            if len(x) != len(own):
                raise hl.InputError(f"dimension 0 has size {len(x)}")
            rest = [args[1:] for _ in own] if len(args) < 2 else None
            if rest is None:
                raise hl.InputError("several arguments")
            return torch.cat([layer(x[i : i + 1], **kwargs) for i, layer in enumerate(own)])

        module.forward = forward
    given_data = (a.value if isinstance(a, hl.PerSample) else a for a in _given(model, data))
    output: Tensor = host(*given_data)
    return output


@pytest.mark.parametrize("crossing", [False, True], ids=["ordinary", "crossing"])
def test_dimension_0_on_trust_would_be_found_out(crossing: bool) -> None:
    tally = Tally()

    @settings(search, max_examples=60)
    @given(cases(crossing))
    def check(case: Case) -> None:
        for _ in _judge(case, _trusting, tally):
            pass

    check()
    tally.show(f"dimension 0 on trust, {'crossing' if crossing else 'ordinary'}")
    assert tally.found["right"] > 0
    assert tally.share("silently wrong") > (0.1 if crossing else 0.02)


def test_steps_keep_samples_apart_and_crossings_mix_them() -> None:
    for step in SINGLE:
        apart = True
        for seed in range(6):
            case = Case(4, (step,), ((4, 4, seed == 0),), False, False, False, seed)
            network, data = case.network(), case.data(0)
            with torch.no_grad():
                rows = [network(*(t[i : i + 1].clone() for t in data)) for i in range(4)]
                apart &= _equal(network(*(t.clone() for t in data)), torch.cat(rows))
        assert apart == (step[0] != "crossing"), step
