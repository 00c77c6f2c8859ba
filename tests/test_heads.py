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
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import hyperlight as hl
from hyperlight.heads import DirectedWeight, LowRankWeight, dense, sums
from tests.reference.twins import (
    change_channel_scale,
    predict_chunked,
    predict_dense,
    predict_low_rank,
    predict_per_layer,
)

SHAPES = {
    "conv.weight": (6, 4, 3, 3),
    "conv.bias": (6,),
    "odd name.w": (20, 30),
    "gain": (),
    "tail": (2, 2),
    "blocks.0.w": (4, 5),
    "up.weight": (4, 3, 2),
    "blocks.1.w": (4, 5),
}
HEADS = {
    "dense": hl.Dense,
    "low rank": lambda: hl.LowRank(2),
    "chunked": lambda: hl.Chunked(50),
    "one chunk": lambda: hl.Chunked(10_000),
    "chunks of one": lambda: hl.Chunked(1),
    "mixed": lambda: {"odd*": hl.LowRank(3), "conv.*": hl.Chunked(64), "*": hl.Dense()},
    "per layer": lambda: hl.PerLayer(embed=5, width=7),
    "per layer, low rank": lambda: hl.PerLayer(embed=5, width=7, rank=2),
    "channel scale": lambda: hl.ChannelScale({"up.weight": (1, 2), "tail": (1, 1)}),
    "mixed with scales": lambda: {
        "blocks*": hl.PerLayer(4, 9),
        "*weight": hl.ChannelScale(),
        "*": hl.Dense(),
    },
}
TWINS: dict[type, Any] = {
    hl.Dense: predict_dense,
    hl.LowRank: predict_low_rank,
    hl.Chunked: predict_chunked,
    hl.PerLayer: predict_per_layer,
    hl.ChannelScale: change_channel_scale,
}
ALONE = [name for name in HEADS if "scale" not in name]
THETA0 = {
    name: torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    for name, shape in SHAPES.items()
}

heads = pytest.mark.parametrize("make", HEADS.values(), ids=HEADS.keys())


def _net(make: object, **options: object) -> hl.HyperNet:
    torch.manual_seed(0)
    options = {"inputs": {"z": hl.Normal(3)}, "shapes": SHAPES, "hidden": (8, 12), **options}
    return hl.HyperNet(head=make(), dtype=torch.float64, **options)


def _change(net: hl.HyperNet, z: Tensor) -> dict[str, Tensor]:
    return net.head.change(THETA0, net.features(z=z))


def _parts(head: hl.Head) -> list[hl.Head]:
    return head.heads() if hasattr(head, "heads") else [head]


@heads
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3)])
def test_a_head_equals_its_twin(make: object, batch: tuple[int, ...]) -> None:
    net = _net(make)
    z = torch.randn(*batch, 3, dtype=torch.float64)
    features = net.features(z=z)
    predicted = _change(net, z)
    assert list(predicted) == list(SHAPES)
    for part in _parts(net.head):
        for at in itertools.product(*(range(n) for n in batch)):
            given = (features[at],) if part.stands_alone else (features[at], THETA0)
            for name, tensor in TWINS[type(part)](part, *given).items():
                assert tensor.shape == SHAPES[name]
                torch.testing.assert_close(predicted[name][at], tensor, rtol=1e-12, atol=1e-14)


@heads
@pytest.mark.parametrize("rows", [1, 7, 40, 10**6])
def test_an_excerpt_predicts_the_same_for_some_of_the_entries(make: object, rows: int) -> None:
    net = _net(make)
    features = torch.randn(2, 12, dtype=torch.float64)
    found = net.head.change(THETA0, features)
    part, index = net.head.excerpt(rows)
    own = {name: t.flatten()[index[name]] if name in index else t for name, t in THETA0.items()}
    for name, tensor in part.change(own, features).items():
        expected = found[name]
        if name in index:
            expected = expected.reshape(2, -1)[:, index[name]]
        assert tensor.shape == expected.shape
        torch.testing.assert_close(tensor, expected, rtol=1e-12, atol=1e-14)
    for head in _parts(part):
        if isinstance(head, hl.Chunked | hl.PerLayer):
            last = [head.weight] if isinstance(head, hl.Chunked) else [*head.outputs]
            assert min(map(len, last)) <= rows
            if getattr(head, "rank", None) is None:
                assert max(map(len, last)) <= rows
    assert [n for n, _ in part.named_parameters()] == [n for n, _ in net.head.named_parameters()]
    for name, before in net.head.change(THETA0, features).items():  # the head is as it was
        assert torch.equal(before, found[name])


@pytest.mark.parametrize("make", [HEADS[name] for name in ALONE], ids=ALONE)
def test_what_a_head_predicts_alone_is_the_change(make: object) -> None:
    net = _net(make)
    z = torch.randn(2, 3, dtype=torch.float64)
    assert net.head.stands_alone
    for name, tensor in net(z=z).items():
        assert torch.equal(tensor, _change(net, z)[name])


@pytest.mark.parametrize("make", [HEADS[name] for name in ALONE], ids=ALONE)
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
    for name, change in net.head.change(theta0, features).items():
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
        "blocks.0.w",
        "blocks.1.w",
        "up.weight",
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
    found = sums(tensors, flat)
    wanted = [t for t in (flat, *tensors) if t.requires_grad]
    assert all(torch.equal(a, b) for a, b in zip(found, twin, strict=True))
    if not wanted or set(range(len(shapes))) <= unused:
        return
    results = []
    for added in (found, twin):
        loss = sum((s.square() + s).sum() for i, s in enumerate(added) if i not in unused)
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
    found = sums(tensors, torch.arange(5.0))
    assert [t.dtype for t in found] == [torch.bfloat16, torch.float32]
    assert found[1].tolist() == [2.0, 3.0, 4.0]


def test_chunked_has_few_parameters() -> None:
    shapes = {"w": (1000, 1000)}
    net = hl.HyperNet({"z": hl.Normal()}, shapes, head=hl.Chunked(1000), hidden=(4, 32))
    assert sum(p.numel() for p in net.head.parameters()) == 2 * 1000 * 32 + 1
    assert net.head.parameter_count("w") is None


def test_chunked_learns_where_all_of_theta0_is_zero() -> None:
    primary = nn.Linear(3, 2)
    nn.init.zeros_(primary.weight)
    nn.init.zeros_(primary.bias)
    model = hl.hypernetize(primary, {"z": hl.Normal(2)}, head=hl.Chunked(5), init="relative")
    optimizer = torch.optim.Adam(model.hypernet.parameters(), lr=0.1)
    z = torch.randn(4, 2)
    for _ in range(2):
        assert not optimizer.state or model.hypernet(z=z)["weight"].any()
        (model.hypernet(z=z)["weight"] - 1.0).square().sum().backward()
        optimizer.step()


class Written(TorchDispatchMode):
    """Counts the entries of all tensors that operations write."""

    entries = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.entries += sum(t.numel() for t in pytree.tree_leaves(out) if torch.is_tensor(t))
        return out


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "with theta0"])
@heads
def test_backward_is_linear_in_the_number_of_tensors(make: Any, alone: bool) -> None:
    """Cut one by one, each of the tensors would have a gradient of the size of all together."""
    head = hl.ChannelScale() if isinstance(make(), hl.ChannelScale) else make()
    if isinstance(head, dict):
        head = {"*[02468].w": hl.PerLayer(), "*": hl.LowRank(2)}
    if alone and isinstance(head, hl.ChannelScale):
        return
    counts = []
    for tensors in (8, 64):
        shapes = {f"layers.{10 + i}.w": (16, 512 // tensors) for i in range(tensors)}
        net = hl.HyperNet({"z": hl.Normal(3)}, shapes, hidden=(4, 4), head=head)
        theta0 = {name: torch.ones(shape, requires_grad=True) for name, shape in shapes.items()}
        features = net.features(z=torch.zeros(3))
        weights = net.head.predict(features) if alone else net.head.add_to(theta0, features)
        total = sum(dense(weight).square().sum() for weight in weights.values())
        with Written() as written:
            total.backward()
        counts.append(written.entries)
    assert counts[1] < 2.5 * counts[0]


# --- one small network for all tensors ----------------------------------------------------


def test_tensors_of_a_kind_share_their_last_layer() -> None:
    shapes = {
        "layers.0.fc.weight": (8, 6),
        "head.weight": (8, 6),
        "layers.0.fc.bias": (8,),
        "layers.11.fc.weight": (8, 6),
        "layers.1.fc.weight": (8, 5),
        "layers.2.fc1.weight": (8, 6),
    }
    head = _net(lambda: hl.PerLayer(embed=3, width=4), shapes=shapes).head
    assert head.kinds == (
        ("layers.0.fc.weight", "layers.11.fc.weight"),
        ("head.weight",),
        ("layers.0.fc.bias",),
        ("layers.1.fc.weight",),
        ("layers.2.fc1.weight",),
    )
    assert [tuple(weight.shape) for weight in head.outputs] == [
        (48, 4),
        (48, 4),
        (8, 4),
        (40, 4),
        (48, 4),
    ]
    count = 4 * (12 + 3) + 4 * 4 + 6 * 3 + 6 + 4 * (3 * 48 + 40 + 8)
    assert sum(p.numel() for p in head.parameters()) == count
    assert head.parameter_count("head.weight") is None


def test_per_layer_has_factors_of_its_rank() -> None:
    net = _net(lambda: hl.PerLayer(rank=2))
    weights = net.head.add_to(THETA0, net.features(z=torch.zeros(3)))
    matrices = {"conv.weight", "odd name.w", "blocks.0.w", "blocks.1.w", "up.weight"}
    assert {n for n, weight in weights.items() if isinstance(weight, LowRankWeight)} == matrices
    assert torch.linalg.matrix_rank(net(z=torch.randn(3))["odd name.w"]) == 2


def test_tensors_of_a_kind_differ_by_their_embedding() -> None:
    net = _net(hl.PerLayer)
    found = net(z=torch.randn(3))
    assert not torch.allclose(found["blocks.0.w"], found["blocks.1.w"], rtol=0.1)
    with torch.no_grad():
        index = [name for names in net.head.kinds for name in names].index("blocks.0.w")
        net.head.embedding[index + 1] = net.head.embedding[index]
    found = net(z=torch.randn(3))
    torch.testing.assert_close(found["blocks.0.w"], found["blocks.1.w"])


def test_the_size_of_the_features_does_not_change_what_per_layer_predicts_in_size() -> None:
    head = _net(lambda: hl.PerLayer(width=256), init="fan_out").head
    features = torch.nn.functional.normalize(torch.randn(64, 12, dtype=torch.float64), dim=-1)
    one, many = (head.predict(size * features)["odd name.w"] for size in (1.0, 100.0))
    assert float((many.norm() / one.norm()).detach()) == pytest.approx(1.0, abs=0.1)


# --- one number for every channel ---------------------------------------------------------


class Channels(nn.Module):
    """Layers whose output channels are not in the first dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.up = nn.ConvTranspose1d(4, 6, 3, groups=2)
        self.linear = nn.Linear(6, 5)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, tokens: Tensor) -> list[Tensor]:
        outputs = [self.embed(tokens)]
        outputs.append(self.up(outputs[-1].mT))
        outputs.append(self.linear(outputs[-1].mT))
        return outputs


def test_every_output_channel_of_a_layer_is_scaled_by_itself() -> None:
    primary = Channels().double()
    inputs = {"z": hl.Normal(3)}
    model = hl.hypernetize(primary, inputs, "*weight", hidden=(16, 128), head=hl.ChannelScale())
    assert model.hypernet.head.channels == {"embed.weight": (1, 1), "up.weight": (1, 2)}
    assert model.hypernet.head.weight.shape == (4 + 6 + 5, 128)
    assert [row.parameters for row in model.summary().rows] == [4 * 128, 6 * 128, 5 * 128]
    tokens = torch.arange(6)
    with torch.no_grad():
        nn.init.zeros_(primary.up.bias)
        nn.init.zeros_(primary.linear.bias)
        model.hypernet.head.weight.normal_()
        net = model.bind(z=torch.randn(3))
        for layer, x, dim in ((net.embed, tokens, 1), (net.up, torch.randn(1, 4, 9).double(), 1)):
            scale = layer(x) / type(layer).forward(primary.get_submodule(_path(net, layer)), x)
            others = [d for d in range(scale.ndim) if d != dim]
            assert float(scale.std(others).max()) < 1e-9  # the same wherever the channel is
            assert float(scale.mean(others).std()) > 0.1  # another one for every channel


def _path(net: nn.Module, layer: nn.Module) -> str:
    return next(name for name, module in net.named_modules() if module is layer)


def test_scales_of_a_file_come_back(tmp_path: Any) -> None:
    model = hl.hypernetize(Channels(), {"z": hl.Normal(3)}, head=hl.ChannelScale())
    hl.save(model, tmp_path / "m")
    again = hl.load(tmp_path / "m", Channels())
    assert again.hypernet.head.channels == model.hypernet.head.channels
    for found, wanted in zip(again(torch.arange(6), z=Z), model(torch.arange(6), z=Z), strict=True):
        assert torch.equal(found, wanted)
    hl.testing.check_hypernet(again, torch.arange(6)[None])


Z = torch.zeros(3)


def test_scales_are_for_a_primary_alone() -> None:
    net = _net(hl.ChannelScale)
    assert not net.head.stands_alone
    for run in (lambda: net(z=Z.double()), lambda: net.head(torch.zeros(12).double())):
        with pytest.raises(hl.ConfigurationError, match="ChannelScale multiplies theta0, so it"):
            run()
    for head in (hl.ChannelScale(), {"*": hl.ChannelScale()}):
        with pytest.raises(hl.ConfigurationError, match="residual=False starts theta0 at zero"):
            hl.hypernetize(nn.Linear(3, 2), {"z": hl.Normal()}, head=head, residual=False)


def test_scales_of_zero_are_pointless() -> None:
    primary, head = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), {"*": hl.ChannelScale()}
    nn.init.zeros_(primary[1].weight)
    nn.init.zeros_(primary[0].bias)  # biases are not scaled
    with pytest.warns(UserWarning, match=r"'1.weight' is all zero: .* before it has been trained"):
        hl.hypernetize(primary, {"z": hl.Normal()}, head=head)
    primary.requires_grad_(False)
    with pytest.raises(hl.ConfigurationError, match=r"'1.weight' is all zero and frozen, so noth"):
        hl.hypernetize(primary, {"z": hl.Normal()}, head=head)
    head = {"1.weight": hl.Dense(), **head}
    assert hl.hypernetize(primary, {"z": hl.Normal()}, head=head) is not None


def test_scales_of_a_primary_without_values_have_sizes() -> None:
    with torch.device("meta"):
        primary = Channels()
    model = hl.hypernetize(primary, {"z": hl.Normal()}, hidden=(9,), head=hl.ChannelScale())
    assert model.summary().head.parameters == 9 * (4 + 6 + 6 + 5 + 5 + 1)


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
            last = hl.Chunked(64) if "odd*" in head else hl.PerLayer(8, 16, rank=2)
            first = hl.LowRank(3) if "odd*" in head else hl.ChannelScale()
            head = {"a.weight": first, "b.*": last, "*": hl.Dense()}
        elif isinstance(head, hl.ChannelScale):
            head = hl.ChannelScale()
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
        scale = targets if init == "relative" else dict.fromkeys(shapes, 1.0)
        options: Any = {"dtype": torch.float64}
        theta0 = {name: torch.full(shape, scale[name], **options) for name, shape in shapes.items()}
        for name, tensor in net.head.change(theta0, net.features(z=z)).items():
            means[name].append(tensor.detach().square().mean())
    expected = {
        "fan_out": {
            "a.weight": math.sqrt(2 / 2560),
            "a.bias": 0.0,
            "b.weight": math.sqrt(2 / 3000),
        },
        "hyperfan_in": {"a.weight": 40**-0.5, "a.bias": 0.5**0.5, "b.weight": 60**-0.5},
        "hyperfan_out": {
            "a.weight": 64**-0.5,
            "a.bias": math.sqrt(1 - 1 / 400),
            "b.weight": 150**-0.5,
        },
        "relative": {name: 0.1 * scale for name, scale in targets.items()},
    }[init]
    # What is drawn for a scale is its own deviation, as for a vector of so many numbers.
    channels = {
        "fan_out": {"a.weight": math.sqrt(2 / 64), "b.weight": math.sqrt(2 / 50)},
        "hyperfan_in": dict.fromkeys(("a.weight", "b.weight"), 0.5**0.5),
        "hyperfan_out": {"a.weight": math.sqrt(1 - 1 / 64), "b.weight": math.sqrt(1 - 1 / 50)},
        "relative": {},
    }[init]
    scaled = [part for part in _parts(net.head) if isinstance(part, hl.ChannelScale)]
    expected |= {n: std for n, std in channels.items() if scaled and n in scaled[0].shapes}
    for name, squares in means.items():
        found = float(torch.stack(squares).mean().sqrt())
        assert found == pytest.approx(expected[name], rel=0.1, abs=0.0), name


@heads
def test_zero_predicts_nothing_and_still_learns(make: object) -> None:
    net = _net(make, init="zero")
    z = torch.randn(5, 3, dtype=torch.float64)
    assert all(not tensor.any() for tensor in _change(net, z).values())
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)

    def step() -> float:
        change = _change(net, z)
        loss = sum((change[name] - THETA0[name]).square().sum() for name in SHAPES)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    first = step()
    # Not every head can become any matrix, but each tensor must leave zero.
    for _ in range(60):
        last = step()
    assert last < 0.9 * first
    assert all(tensor.abs().max() > 1e-3 for tensor in _change(net, z).values())


@heads
def test_a_tensor_that_starts_unchanged_among_others_learns_as_well(make: object) -> None:
    still = ("gain", "blocks.0.w")
    net = _net(make, init=lambda name, shape: 0.0 if name in still else 0.1)
    z = torch.randn(5, 3, dtype=torch.float64)
    before = _change(net, z)
    assert not any(before[name].any() for name in still)
    assert before["tail"].all()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        sum((t - 1.0).square().sum() for t in _change(net, z).values()).backward()
        optimizer.step()
    assert all(_change(net, z)[name].abs().min() > 1e-5 for name in still)


@pytest.mark.parametrize("make", [HEADS[name] for name in ALONE], ids=ALONE)
@pytest.mark.parametrize("only", [False, True], ids=["with weights", "alone"])
def test_biases_start_at_zero_and_learn(make: object, only: bool) -> None:
    biases = {"conv.bias": (3,), "odd.bias": (20, 30), "tail.bias": (4,)}
    net = _net(make, shapes=biases if only else {"conv.weight": (4, 6), "tail.w": (3,), **biases})
    z = torch.randn(5, 3, dtype=torch.float64)
    before = net(z=z)
    assert [name for name in before if not before[name].any()] == list(biases)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        sum((t - 1.0).square().sum() for t in net(z=z).values()).backward()
        optimizer.step()
    assert all(net(z=z)[name].abs().min() > 1e-7 for name in biases)


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
    per_feature = (50 + 50 * 3 + 3) + 4 * 90
    assert sum(p.numel() for p in model.hypernet.head.parameters()) == 16 * per_feature


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
        (lambda: hl.PerLayer(embed=0), "PerLayer(embed=0): expected an integer, 1 or more"),
        (lambda: hl.PerLayer(width="w"), "PerLayer(width='w'): expected an integer, 1 or more"),
        (lambda: hl.PerLayer(rank=0), "PerLayer(rank=0): expected an integer, 1 or more"),
        (
            lambda: hl.ChannelScale({"up.weight": 1}),
            "ChannelScale(channels={'up.weight': 1}): expected the dimension of the output",
        ),
        (
            lambda: _net(lambda: hl.ChannelScale({"tail": (2, 1)})),
            "ChannelScale(channels={'tail': (2, 1)}) does not fit the shape (2, 2): expected a",
        ),
        (
            lambda: _net(lambda: hl.ChannelScale({"odd name.w": (1, 3)})),
            "expected a dimension of it, and a number of groups that divides",
        ),
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
    expected = hl.Head.add_to(head, theta0, features)
    found = {name: dense(weight) for name, weight in head.add_to(theta0, features).items()}
    other = {**theta0, "b": theta0["b"].float()}
    mixed = head.add_to(other, features)
    assert mixed["b"].dtype == torch.float32
    tolerance = 1e-12 if dtype == torch.float64 else 0.1
    for name, shape in shapes.items():
        assert found[name].shape == (5, *shape)
        assert found[name].is_contiguous()
        assert found[name].dtype == dtype
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shared", [True, False], ids=["shared bias", "a bias for each"])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1, 1)], ids=str)
def test_weights_that_are_not_built_multiply_as_those_that_are(
    shape: tuple[int, ...], shared: bool
) -> None:
    def random(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, requires_grad=True)

    theta0 = random(*shape)
    features, directions, x = random(3, 4), random(30, 4), random(3, 5)
    bias = random(6) if shared else random(3, 6)
    # Of a layer in channels-last order, whose entries are elsewhere in memory.
    held = theta0.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else theta0
    weight = DirectedWeight(held, features, directions)
    built = theta0.flatten() + features @ directions.mT
    assert torch.allclose(weight.dense(), built.view(3, *shape), rtol=1e-12, atol=1e-12)
    expected = torch.einsum("boi,bi->bo", built.view(3, 6, 5), x) + bias
    found = weight.linear(x, bias)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    leaves, towards = (theta0, features, directions, x, bias), torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves, towards),
        torch.autograd.grad(expected, leaves, towards),
        rtol=1e-11,
        atol=1e-12,
    )
    assert torch.autograd.gradgradcheck(
        lambda f, d: DirectedWeight(held.detach(), f, d).linear(x.detach(), None),
        (features, directions),
    )


def test_weights_that_are_not_built_are_scaled_from_theta0() -> None:
    theta0, features, directions = torch.randn(2, 3), torch.randn(3, 4), torch.randn(6, 4)
    weight = DirectedWeight(theta0, features, directions)
    scaled = weight.scaled(torch.tensor([0.0, 1.0, 2.0]))
    assert torch.equal(scaled.dense()[0], theta0)
    assert torch.equal(scaled.dense()[1], weight.dense()[1])
    torch.testing.assert_close(scaled.dense()[2] - theta0, 2.0 * (weight.dense()[2] - theta0))
    assert not weight.pays  # four features, two outputs
    assert DirectedWeight(torch.randn(4, 3), features, torch.randn(12, 4)).pays
