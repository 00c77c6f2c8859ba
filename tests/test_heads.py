"""Heads: what they predict, their spread under every initialisation, and mixtures of them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hyperlight as hl
from hyperlight.heads import LowRankWeight, _sums, dense
from tests.reference.twins import predict_chunked, predict_dense, predict_low_rank

SHAPES = {
    "conv.weight": (6, 4, 3, 3),
    "conv.bias": (6,),
    "odd name.w": (20, 30),
    "gain": (),
    "tail": (2, 2),
}
HEADS = {
    "dense": hl.Dense,
    "low rank": lambda: hl.LowRank(2),
    "chunked": lambda: hl.Chunked(50),
    "one chunk": lambda: hl.Chunked(10_000),
    "chunks of one": lambda: hl.Chunked(1),
    "mixed": lambda: {"odd*": hl.LowRank(3), "conv.*": hl.Chunked(64), "*": hl.Dense()},
}
TWINS = {hl.Dense: predict_dense, hl.LowRank: predict_low_rank, hl.Chunked: predict_chunked}

heads = pytest.mark.parametrize("make", HEADS.values(), ids=HEADS.keys())


def _net(make: object, **options: object) -> hl.HyperNet:
    torch.manual_seed(0)
    options = {"inputs": {"z": hl.Normal(3)}, "shapes": SHAPES, "hidden": (8, 12), **options}
    return hl.HyperNet(head=make(), dtype=torch.float64, **options)


def _parts(head: hl.Head) -> list[hl.Head]:
    return head.heads() if hasattr(head, "heads") else [head]


@heads
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3)])
def test_a_head_equals_its_twin(make: object, batch: tuple[int, ...]) -> None:
    net = _net(make)
    z = torch.randn(*batch, 3, dtype=torch.float64)
    features = net.features(z=z)
    predicted = net(z=z)
    assert list(predicted) == list(SHAPES)
    for part in _parts(net.head):
        for at in itertools.product(*(range(n) for n in batch)):
            for name, tensor in TWINS[type(part)](part, features[at]).items():
                assert tensor.shape == SHAPES[name]
                torch.testing.assert_close(predicted[name][at], tensor, rtol=1e-12, atol=1e-14)


@heads
def test_the_flat_vector_holds_the_tensors_one_behind_another(make: object) -> None:
    net = _net(make)
    features = torch.randn(2, 12, dtype=torch.float64)
    flat = net.head(features)
    expected = torch.cat([t.reshape(2, -1) for t in net.head.predict(features).values()], dim=1)
    assert flat.shape == (2, sum(math.prod(shape) for shape in SHAPES.values()))
    assert torch.equal(flat, expected)


@heads
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_a_head_adds_its_predictions_to_theta0(make: object, batch: tuple[int, ...]) -> None:
    net = _net(make)
    features = torch.randn(*batch, 12, dtype=torch.float64)
    # In another order, of which nothing must depend, and in a dtype that the weights keep.
    theta0 = {name: torch.randn(SHAPES[name]) for name in reversed(SHAPES)}
    weights = net.head.add_to(theta0, features)
    assert list(weights) == list(SHAPES)
    for name, change in net.head.predict(features).items():
        weight = dense(weights[name])
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight, theta0[name] + change.float())


def test_low_rank_factors_matrices_if_that_is_smaller() -> None:
    net = _net(lambda: hl.LowRank(2))
    theta0 = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    weights = net.head.add_to(theta0, net.features(z=torch.zeros(3)))
    assert {name for name, weight in weights.items() if isinstance(weight, LowRankWeight)} == {
        "conv.weight",
        "odd name.w",
    }
    assert torch.linalg.matrix_rank(net(z=torch.randn(3))["odd name.w"]) == 2
    assert net.head.parameter_count("odd name.w") == 12 * 2 * (20 + 30)
    assert net.head.parameter_count("tail") == 12 * 4


@settings(max_examples=40)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=5),
    frozen=st.sets(st.integers(0, 4)),
    unused=st.sets(st.integers(0, 4)),
    fixed=st.booleans(),
    batch=st.lists(st.integers(1, 3), max_size=2).map(tuple),
)
def test_theta0_and_change_are_added(
    shapes: Any, frozen: Any, unused: Any, fixed: bool, batch: Any
) -> None:
    tensors = [
        torch.randn(shape, dtype=torch.float64).requires_grad_(i not in frozen)
        for i, shape in enumerate(shapes)
    ]
    flat = torch.randn((*batch, sum(t.numel() for t in tensors)), dtype=torch.float64)
    flat.requires_grad_(not fixed)
    parts = flat.split([t.numel() for t in tensors], dim=-1)
    twin = [t + part.view(batch + t.shape) for t, part in zip(tensors, parts, strict=True)]
    found = _sums(tensors, flat)
    wanted = [t for t in (flat, *tensors) if t.requires_grad]
    assert all(torch.equal(a, b) for a, b in zip(found, twin, strict=True))
    if not wanted or set(range(len(shapes))) <= unused:
        return
    results = []
    for sums in (found, twin):
        loss = sum((s.square() + s).sum() for i, s in enumerate(sums) if i not in unused)
        if not loss.requires_grad:
            return
        first = torch.autograd.grad(loss, wanted, create_graph=True, materialize_grads=True)
        total = sum(g.square().sum() for g in first)
        second = (
            torch.autograd.grad(total, wanted, materialize_grads=True)
            if total.requires_grad
            else ()
        )
        results.append([*first, *second])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_sum_keeps_the_dtype_of_each_tensor() -> None:
    tensors = [torch.zeros(2, dtype=torch.bfloat16), torch.zeros(3)]
    found = _sums(tensors, torch.arange(5.0))
    assert [t.dtype for t in found] == [torch.bfloat16, torch.float32]
    assert found[1].tolist() == [2.0, 3.0, 4.0]


def test_chunked_has_few_parameters() -> None:
    shapes = {"w": (1000, 1000)}
    net = hl.HyperNet({"z": hl.Normal()}, shapes, head=hl.Chunked(1000), hidden=(4, 32))
    assert sum(p.numel() for p in net.head.parameters()) == 2 * 1000 * 32 + 1
    assert net.head.parameter_count("w") is None


@heads
@pytest.mark.parametrize("init", ["fan_out", "hyperfan_in", "hyperfan_out", "relative"])
def test_the_spread_is_that_of_the_initialisation(make: object, init: str) -> None:
    shapes = {"a.weight": (64, 40), "a.bias": (400,), "b.weight": (50, 20, 3)}
    targets = {"a.weight": 0.5, "a.bias": 2.0, "b.weight": 0.01}
    made = hl.Relative(0.1, targets) if init == "relative" else init
    means = {name: [] for name in shapes}
    # Fan-out is right in expectation, and the wider the nearer; the others are measured.
    seeds, width = (16, 256) if init == "fan_out" else (2, 64)
    for seed in range(seeds):
        head = make()
        if isinstance(head, dict):
            head = {"a.weight": hl.LowRank(3), "b.*": hl.Chunked(64), "*": hl.Dense()}
        net = hl.HyperNet(
            {"z": hl.Normal(16)},
            shapes,
            hidden=(256, width),
            head=head,
            init=made,
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(seed),
        )
        z = torch.randn(8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for name, tensor in net(z=z).items():
            means[name].append(tensor.detach().square().mean())
    expected = {
        "fan_out": {"a.weight": 2560**-0.5, "a.bias": 400**-0.5, "b.weight": 3000**-0.5},
        "hyperfan_in": {"a.weight": 40**-0.5, "a.bias": 0.5**0.5, "b.weight": 60**-0.5},
        "hyperfan_out": {
            "a.weight": 64**-0.5,
            "a.bias": math.sqrt(1 - 1 / 400),
            "b.weight": 150**-0.5,
        },
        "relative": {name: 0.1 * scale for name, scale in targets.items()},
    }[init]
    for name, squares in means.items():
        found = float(torch.stack(squares).mean().sqrt())
        assert found == pytest.approx(expected[name], rel=0.1), name


@heads
def test_zero_predicts_nothing_and_still_learns(make: object) -> None:
    net = _net(make, init="zero")
    z = torch.randn(5, 3, dtype=torch.float64)
    assert all(not tensor.any() for tensor in net(z=z).values())
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    torch.manual_seed(1)
    goal = {name: torch.randn(shape, dtype=torch.float64) for name, shape in SHAPES.items()}

    def step() -> float:
        loss = sum((net(z=z)[name] - goal[name]).square().sum() for name in SHAPES)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    first = step()
    # LowRank(2) cannot become any matrix, but each tensor must leave zero.
    for _ in range(60):
        last = step()
    assert last < 0.9 * first
    assert all(tensor.abs().max() > 1e-3 for tensor in net(z=z).values())


@heads
def test_a_tensor_that_starts_unchanged_among_others_learns_as_well(make: object) -> None:
    net = _net(make, init=lambda name, shape: 0.0 if name == "gain" else 0.1)
    z = torch.randn(5, 3, dtype=torch.float64)
    before = net(z=z)
    assert not before["gain"].any()
    assert before["tail"].all()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        sum((t - 1.0).square().sum() for t in net(z=z).values()).backward()
        optimizer.step()
    assert net(z=z)["gain"].abs().min() > 1e-4


@heads
def test_equal_generators_give_equal_parameters(make: object) -> None:
    states = []
    for _ in range(2):
        net = _net(make, generator=torch.Generator().manual_seed(7), init="hyperfan_in")
        states.append(net.state_dict())
        torch.rand(3)  # what the global generator has done must not matter
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_mixture_takes_the_first_match() -> None:
    head = _net(lambda: {"conv.*": hl.LowRank(2), "*": hl.Dense()}).head
    assert type(head.head_of("conv.bias")) is hl.LowRank
    assert type(head.head_of("gain")) is hl.Dense
    assert list(head.heads()[0].shapes) == ["conv.weight", "conv.bias"]


def test_a_mixture_through_hypernetize() -> None:
    primary = nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 3))
    model = hl.hypernetize(
        primary,
        inputs={"z": hl.Normal(2)},
        head={"0.weight": hl.LowRank(4), "*": hl.Dense()},
    )
    assert model(torch.randn(5, 40), z=torch.zeros(2)).shape == (5, 3)
    dense = (50 + 50 * 3 + 3) * 128
    assert sum(p.numel() for p in model.hypernet.head.parameters()) == dense + 128 * 4 * 90


class Scaled(hl.Head):
    """One learned number per tensor, times the mean of the features: the smallest head."""

    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        self.gain = nn.Parameter(torch.empty(len(self.shapes), dtype=dtype, device=device))

    @torch.no_grad()
    def reset_parameters(
        self, init: hl.Initialization, generator: torch.Generator | None = None
    ) -> None:
        for gain, (name, shape) in zip(self.gain, self.shapes.items(), strict=True):
            gain.fill_(init.std(name, shape))

    def forward(self, features: Tensor) -> Tensor:
        sizes = torch.tensor([shape.numel() for shape in self.shapes.values()])
        return features.mean(-1, keepdim=True) * self.gain.repeat_interleave(sizes)


def test_a_head_of_ones_own_is_one_small_class() -> None:
    model = hl.hypernetize(nn.Linear(3, 2), inputs={"z": hl.Normal()}, head=Scaled())
    theta = model.predict(z=0.3)
    change = theta["weight"] - model.primary.weight
    assert torch.allclose(change, change[0, 0].expand(2, 3))
    theta["weight"].sum().backward()
    assert model.hypernet.head.gain.grad[0] != 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: hl.LowRank(0), "LowRank(rank=0): expected an integer, 1 or more"),
        (lambda: hl.Chunked(0.5), "Chunked(size=0.5): expected an integer, 1 or more"),
        (lambda: _net(lambda: hl.Dense), "expected a Head such as Dense() (with the brackets)"),
        (lambda: _net(dict), "head was an empty mapping"),
        (lambda: _net(lambda: {"*": hl.Dense}), "expected globs over names and heads"),
        (
            lambda: _net(lambda: {"conv.*": hl.Dense()}),
            "No pattern of head={...} matches 'odd name.w'; the patterns are 'conv.*'. Add '*'",
        ),
        (
            lambda: _net(lambda: {"*": hl.Dense(), "conv.*": hl.LowRank()}),
            "The pattern 'conv.*' of head={...} gets none of the predicted tensors",
        ),
        (
            lambda: _net(lambda: {"convx": hl.Dense(), "*": hl.LowRank()}),
            "'convx' of head={...} gets none",
        ),
        (
            lambda: _net(Scaled, init="hyperfan_in"),
            "init=HyperFanIn sets the spread that is measured over the inputs, which the head "
            "Scaled cannot be scaled to",
        ),
        (
            lambda: _net(hl.Dense).head.build(3, {}, dtype=None, device=None),
            "This Dense head is built already",
        ),
    ],
)
def test_heads_that_cannot_be_are_refused(make: object, words: str) -> None:
    with pytest.raises(hl.ConfigurationError) as error:
        make()
    assert words in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_dense_head_adds_many_sets_in_one_pass_as_in_two(dtype: torch.dtype) -> None:
    shapes = {"w": torch.Size((3, 2)), "b": torch.Size((3,)), "scale": torch.Size(())}
    head = hl.Dense()
    head.build(4, shapes, dtype=dtype, device=torch.device("cpu"))
    nn.init.normal_(head.weight)
    theta0 = {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}
    features = torch.randn(5, 4, dtype=dtype)
    expected = head.add_to(theta0, features)  # with gradients
    with torch.no_grad():
        found = head.add_to(theta0, features)
        other = {**theta0, "b": theta0["b"].float()}
        mixed = head.add_to(other, features)
    assert mixed["b"].dtype == torch.float32
    tolerance = 1e-12 if dtype == torch.float64 else 0.1
    for name, shape in shapes.items():
        assert found[name].shape == (5, *shape)
        assert found[name].is_contiguous()
        assert found[name].dtype == dtype
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=tolerance)
