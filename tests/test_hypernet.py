"""The hypernetwork alone: equation 1 written out, initialisation, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hyperlight as hl
from tests.reference import naive_features, naive_predictions

ENCODINGS = {"unit": hl.CosSin(), "per-input": hl.CosSin(per_input=True), "none": None}


@settings(max_examples=50)
@given(
    values=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=3),
    hidden=st.lists(st.integers(1, 6), min_size=0, max_size=3),
    slope=st.floats(0.0, 1.0),
    skip=st.booleans(),
    kind=st.sampled_from(list(ENCODINGS)),
    seed=st.integers(0, 2**31),
)
def test_it_is_equation_one(
    values: list[float], hidden: list[int], slope: float, skip: bool, kind: str, seed: int
) -> None:
    shapes = {"b": (2,), "a": (2, 3), "scalar": ()}
    generator = torch.Generator().manual_seed(seed)
    net = hl.HyperNet(
        {f"g{i}": hl.Uniform(0.0, 1.0) for i in range(len(values))},
        shapes,
        hidden=hidden,
        activation=nn.LeakyReLU(slope),
        encoding=ENCODINGS[kind],
        skip=skip,
        dtype=torch.float64,
        generator=generator,
    )
    with torch.no_grad():
        for layer in net.trunk.layers:
            layer.bias.normal_(generator=generator)
    gamma = {f"g{i}": v for i, v in enumerate(values)}
    features = naive_features(net, values, kind, slope, skip)
    expected = naive_predictions(net, features)
    found = net(**gamma)
    assert list(found) == list(shapes)
    assert net.features(**gamma).tolist() == pytest.approx(features, rel=1e-9, abs=1e-12)
    for name in shapes:
        assert found[name].shape == expected[name].shape
        assert torch.allclose(found[name], expected[name], rtol=1e-9, atol=1e-12)


@settings(max_examples=30)
@given(
    batch=st.sampled_from([(), (1,), (4,), (2, 3)]),
    other=st.sampled_from([(), (1,), (4,), (2, 3), (3,)]),
)
def test_batches_equal_the_loop_and_keep_their_shape(
    batch: tuple[int, ...], other: tuple[int, ...]
) -> None:
    net = hl.HyperNet(
        {"a": hl.Uniform(0.0, 1.0), "z": hl.Normal(2)},
        {"w": (3, 2), "b": (3,)},
        dtype=torch.float64,
    )
    a, z = net.inputs["a"].sample(batch), net.inputs["z"].sample(other)
    try:
        together = torch.broadcast_shapes(batch, other)
    except RuntimeError:
        with pytest.raises(hl.InputError, match="batch shapes .* do not go together"):
            net(a=a, z=z)
        return
    assert net.batch_shape(a=a, z=z) == together
    found = net(a=a, z=z)
    a, z = a.expand(together).reshape(-1), z.expand((*together, 2)).reshape(-1, 2)
    for name, shape in net.shapes.items():
        assert found[name].shape == (*together, *shape)
        loop = torch.stack([net(a=one, z=two)[name] for one, two in zip(a, z, strict=True)])
        assert torch.allclose(found[name].reshape(loop.shape), loop, atol=1e-12)


def test_numbers_and_tensors_of_any_float_dtype_are_the_same_input() -> None:
    net = hl.HyperNet({"a": hl.Uniform(0.0, 1.0)}, {"w": (3,)})
    expected = net(a=0.5)["w"]
    for value in (
        torch.tensor(0.5),
        torch.tensor(0.5, dtype=torch.float64),
        torch.tensor(0.5, dtype=torch.bfloat16),
    ):
        assert torch.equal(net(a=value)["w"], expected)
    assert torch.equal(net(a=1)["w"], net(a=1.0)["w"])
    pair = hl.HyperNet({"z": hl.Normal(2)}, {"w": (3,)})
    assert torch.equal(pair(z=[0.5, 1.0])["w"], pair(z=torch.tensor([0.5, 1.0]))["w"])


def test_fan_out_is_kaiming_per_layer_and_per_predicted_tensor() -> None:
    """Paper, section 5.2. The std of n normal draws has a relative standard error 1/sqrt(2n);
    bound: 5 of them."""
    shapes = {"conv": (32, 16, 3, 3), "bias": (40,), "gain": (30,), "scalar": ()}
    net = hl.HyperNet({"g": hl.Uniform(0.0, 1.0)}, shapes, hidden=(64, 512), activation="relu")
    first, second = net.trunk.layers
    for layer in (first, second):
        expected = math.sqrt(2.0) / math.sqrt(layer.out_features)
        room = 5 * expected / math.sqrt(2 * layer.weight.numel())
        assert layer.weight.std().item() == pytest.approx(expected, abs=room)
        assert not layer.bias.any()
    sizes = [math.prod(shape) for shape in shapes.values()]
    for name, block in zip(shapes, net.head.weight.split(sizes), strict=True):
        if name == "bias":
            assert not block.any()
            continue
        expected = math.sqrt(2.0 / math.prod(shapes[name]))
        room = 5 * expected / math.sqrt(2 * block.numel())
        assert block.std().item() == pytest.approx(expected, abs=room)
    assert net.head.weight.shape == (sum(sizes), 512)


def test_an_initialisation_of_ones_own() -> None:
    asked: list[tuple[str, torch.Size]] = []

    def scheme(name: str, shape: torch.Size) -> float:
        asked.append((name, shape))
        return 0.0 if name == "b" else 10.0

    net = hl.HyperNet({"g": hl.Normal()}, {"a": (100,), "b": (2,)}, init=scheme)
    assert asked == [("a", torch.Size([100])), ("b", torch.Size([2]))]
    assert net.head.weight[:100].std().item() == pytest.approx(10.0, rel=0.05)
    assert not net.head.weight[100:].any()


def test_zero_predicts_nothing_and_still_learns() -> None:
    net = hl.HyperNet({"g": hl.Uniform(0.0, 1.0)}, {"w": (3, 2)}, init="zero")
    w = net(g=0.5)["w"]
    assert not w.any()
    (w - 1.0).square().sum().backward()
    assert net.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "activation",
    [
        *("leaky_relu", "relu", "prelu", "elu", "selu", "gelu", "silu", "mish", "softplus"),
        *("tanh", "sigmoid", "identity", nn.LeakyReLU(0.3), nn.Hardswish, nn.ELU),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_any_activation_in_any_dtype(activation: object, dtype: torch.dtype) -> None:
    net = hl.HyperNet({"g": hl.Normal(3)}, {"w": (2, 2)}, activation=activation, dtype=dtype)
    w = net(g=torch.zeros(3))["w"]
    assert w.dtype == dtype
    assert w.isfinite().all()
    w.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_layers_do_not_share_an_activation_with_parameters() -> None:
    net = hl.HyperNet({"g": hl.Normal()}, {"w": (2,)}, activation=nn.PReLU())
    first, second = net.trunk.activations
    assert first.weight is not second.weight


def test_two_hypernetworks_do_not_share_a_default_head_or_encoding() -> None:
    one, two = (hl.HyperNet({"g": hl.Normal()}, {"w": (2,)}) for _ in range(2))
    assert one.head is not two.head
    assert one.head.weight is not two.head.weight
    head = hl.Dense()
    three, four = (hl.HyperNet({"g": hl.Normal()}, {"w": (n,)}, head=head) for n in (2, 5))
    assert (three.head.weight.shape[0], four.head.weight.shape[0]) == (2, 5)
    assert repr(head) == "Dense(not built)"


def test_the_seed_decides_and_a_generator_leaves_the_global_one_alone() -> None:
    def weights(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        net = hl.HyperNet({"g": hl.Normal()}, {"w": (5,)}, generator=generator)
        return torch.nn.utils.parameters_to_vector(net.parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_repr_shows_spaces_and_sizes() -> None:
    text = repr(hl.HyperNet({"g": hl.Uniform(0.0, 0.5)}, {"w": (30, 40), "b": (30,)}))
    for words in (
        "g=Uniform(low=0.0, high=0.5, shape=())",
        "predicts: 1,230 entries in 2 tensors",
        "CosSin(per_input=False)",
        "Linear(in_features=64, out_features=128, bias=True)",
        "Linear(in_features=128, out_features=16, bias=True)",
        "Dense(features=16, predictions=1,230)",
    ):
        assert words in text


def test_check_reads_values_that_forward_does_not() -> None:
    net = hl.HyperNet({"g": hl.Uniform(0.0, 1.0)}, {"w": (2,)})
    net.check(g=0.5)
    with pytest.raises(hl.InputError, match=r"'g' was 2; expected values in \[0, 1\]"):
        net.check(g=torch.tensor(2.0))
    # under vmap no value is read: the call goes through, check() is for it
    torch.func.vmap(lambda g: net(g=g)["w"])(torch.tensor([2.0, 3.0]))


NET = {"scale": hl.Uniform(0.0, 0.5), "z": hl.Normal(3)}
Z = torch.zeros(3)


@pytest.mark.parametrize(
    ("gamma", "words"),
    [
        (
            {"scal": 0.1, "z": Z},
            ["'scal' is not an input", "'scale', 'z'", "Did you mean 'scale'?"],
        ),
        ({"z": Z}, ["'scale' is missing", "given were 'z'", "scale=...", "model.sample()"]),
        ({}, ["'scale' is missing", "given were none"]),
        ({"scale": 0.1, "z": torch.zeros(4)}, ["'z' has shape (4,)", "expected (3,)", "Normal("]),
        ({"scale": 0.1, "z": torch.zeros(())}, ["'z' has shape ()", "expected (3,)"]),
        ({"scale": 0.1, "z": 1.0}, ["'z' was the number 1.0", "tensor of shape (3,)"]),
        (
            {"scale": torch.tensor(0), "z": Z},
            ["'scale' has dtype torch.int64", "Convert it with .float()"],
        ),
        ({"scale": torch.tensor(True), "z": Z}, ["'scale' has dtype torch.bool"]),
        ({"scale": torch.tensor(0j), "z": Z}, ["dtype torch.complex64", "floating-point"]),
        ({"scale": True, "z": Z}, ["'scale' was True", "expected a number or a tensor"]),
        ({"scale": None, "z": Z}, ["'scale' was None", "expected a number or a tensor"]),
        ({"scale": "0.1", "z": Z}, ["'scale' was '0.1'"]),
        ({"scale": object(), "z": Z}, ["'scale' was of type object"]),
        (
            {"scale": torch.zeros((), device="meta"), "z": Z},
            ["'scale' is on meta, the hypernetwork on cpu", "Move it with .to('cpu')"],
        ),
        (
            {"scale": torch.zeros(2), "z": torch.zeros(3, 3)},
            ["do not go together", "scale: (2,), z: (3,)", "broadcast"],
        ),
        ({"scale": 0.1, "z": [0.0, float("nan"), 0.0]}, ["'z' was NaN", "became NaN"]),
    ],
)
def test_input_errors_name_what_was_given_what_was_expected_and_the_fix(
    gamma: dict[str, object], words: list[str]
) -> None:
    net = hl.HyperNet(NET, {"w": (2,)})
    with pytest.raises(hl.InputError) as error:
        net(**gamma)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"inputs": {}}, ["inputs was {}", "hl.Uniform(0.0, 0.5)"]),
        ({"inputs": {"g": 3}}, ["'g' was declared as 3", "hl.Normal(32)"]),
        ({"inputs": {"g": hl.Uniform}}, ["'g' was declared as", "hl.Uniform(0.0, 1.0)"]),
        ({"inputs": {"learning rate": hl.Normal()}}, ["'learning rate' cannot be a keyword"]),
        ({"inputs": {"lambda": hl.Normal()}}, ["'lambda' cannot be a keyword"]),
        ({"inputs": {"self": hl.Normal()}}, ["cannot be called 'self'"]),
        ({"shapes": {}}, ["shapes was empty"]),
        ({"hidden": (16, 0)}, ["hidden was (16, 0)", "as in (16, 128)"]),
        ({"activation": "relru"}, ["activation was 'relru'", "Did you mean 'relu'?"]),
        ({"activation": torch.nn.functional.elu}, ["torch.nn.ELU"]),
        ({"head": hl.Dense}, ["expected a Head such as Dense()", "with the brackets"]),
        ({"init": "fanout"}, ["init was 'fanout'", "'fan_out'", "Did you mean 'fan_out'?"]),
    ],
)
def test_settings_that_cannot_be_built_are_refused(
    settings_: dict[str, object], words: list[str]
) -> None:
    given_ = {"inputs": {"g": hl.Normal()}, "shapes": {"w": (2,)}, **settings_}
    with pytest.raises(hl.ConfigurationError) as error:
        hl.HyperNet(**given_)
    for word in words:
        assert word in str(error.value)


def test_a_head_is_built_once() -> None:
    net = hl.HyperNet({"g": hl.Normal()}, {"w": (2,)})
    with pytest.raises(hl.ConfigurationError, match="built already. .* head of its own"):
        net.head.build(3, {}, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
@pytest.mark.parametrize("skip", [False, True])
def test_a_prelu_has_a_slope_for_every_feature(batch: tuple[int, ...], skip: bool) -> None:
    net = hl.HyperNet(
        {"g": hl.Normal(3)}, {"w": (2,)}, hidden=(5, 5), activation=nn.PReLU(5), skip=skip
    ).double()
    for activation in net.trunk.activations:
        nn.init.uniform_(activation.weight, -1.0, 1.0)
    gamma = torch.randn(*batch, 3, dtype=torch.float64)
    x = net.encode(g=gamma)
    for layer, activation in zip(net.trunk.layers, net.trunk.activations, strict=True):
        y = layer(x)
        y = torch.where(y > 0.0, y, activation.weight * y)
        x = x + y if skip and y.shape == x.shape else y
    torch.testing.assert_close(net.features(g=gamma), x, rtol=1e-12, atol=1e-12)


# --- more categories ----------------------------------------------------------------


def categorical(**settings: object) -> hl.HyperNet:
    inputs = {"g": hl.Uniform(), "a": hl.Categorical(3, 2), "b": hl.Categorical(4, features=3)}
    return hl.HyperNet(inputs, {"w": (4, 3)}, **settings)


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("n", [1, 3])
def test_extending_an_input_changes_nothing_that_was_there(name: str, n: int) -> None:
    net = categorical()
    declared, tables = dict(net.inputs), [e.weight for e in net.embeddings]
    gamma = net.sample((64,))
    before, others = net(**gamma)["w"], dict(net.named_parameters())
    table = net.extend(name, n=n, generator=torch.Generator().manual_seed(1))
    index = "ab".index(name)
    assert table is net.embeddings[index].weight is net.get_parameter(f"embeddings.{index}.weight")
    assert net.embeddings[index].num_embeddings == declared[name].n + n == net.inputs[name].n
    assert table.shape == (declared[name].n + n, declared[name].features)
    assert torch.equal(table[:-n], tables[index])
    assert torch.equal(net(**gamma)["w"], before)
    kept = {k: v for k, v in net.named_parameters() if v is not table}
    assert kept.keys() == others.keys() - {f"embeddings.{index}.weight"}
    assert all(value is others[key] for key, value in kept.items())
    assert declared[name].n == (3, 4)[index]  # the declared input is as it was
    assert net.inputs[name].features == declared[name].features
    assert net.inputs[name].shape == declared[name].shape
    for other in {"a", "b"} - {name}:
        assert net.inputs[other] is declared[other]
    # The new rows are drawn as the others were: from the generator, with unit spread.
    again = categorical()
    more = again.extend(name, n=n, generator=torch.Generator().manual_seed(1))
    assert torch.equal(more[-n:], table[-n:])
    with torch.no_grad():
        assert net.sample((500,))[name].max() == declared[name].n + n - 1
        assert net.encode(**net.sample((50,))).norm(dim=-1).tolist() == pytest.approx([1.0] * 50)


def test_new_embeddings_are_standard_normal() -> None:
    net = hl.HyperNet({"c": hl.Categorical(2, features=16)}, {"w": (2,)})
    rows = net.extend("c", 1000, generator=torch.Generator().manual_seed(0))[2:].detach()
    assert rows.mean().item() == pytest.approx(0.0, abs=5 / math.sqrt(16_000))
    assert rows.std().item() == pytest.approx(1.0, abs=5 / math.sqrt(32_000))


def test_new_categories_can_start_like_others() -> None:
    net = categorical(dtype=torch.float64)
    gamma = {"g": 0.3, "a": torch.tensor([1, 2])}
    state = torch.get_rng_state()
    net.extend("b", like=2)
    assert torch.equal(net(b=4, **gamma)["w"], net(b=2, **gamma)["w"])
    net.extend("b", 2, like=torch.tensor([0, 3]))
    assert torch.equal(net(b=5, **gamma)["w"], net(b=0, **gamma)["w"])
    assert torch.equal(net(b=6, **gamma)["w"], net(b=3, **gamma)["w"])
    net.extend("b", 2, like={0: 0.25, 1: 0.75})
    for b in (7, 8):
        torch.testing.assert_close(net(b=b, **gamma)["w"], net(b={0: 0.25, 1: 0.75}, **gamma)["w"])
    # As long as a fresh draw is on average, so that a step turns it as far.
    assert net.embeddings[1].weight[7].norm().item() == pytest.approx(math.sqrt(3))
    assert torch.equal(torch.get_rng_state(), state)
    net.extend("a", like=[0.5, 0.5, 0.0])  # one category, whatever the event shape
    assert net(b=0, g=0.1, a=torch.tensor([3, 0]))["w"].isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"name": "c"}, hl.InputError, "'c' is not an input of this hypernetwork"),
        ({"name": "bb"}, hl.InputError, "Did you mean 'b'?"),
        ({"name": "g"}, hl.InputError, "'g' was declared as Uniform(low=0.0, high=1.0, shape=())"),
        ({"n": 0}, hl.ConfigurationError, "extend('b', n=0): expected an integer, 1 or more"),
        ({"n": 1.0}, hl.ConfigurationError, "extend('b', n=1.0): expected an integer"),
        ({"like": 4}, hl.InputError, "extend('b'): like was 4; expected categories"),
        ({"like": [0.5, 0.1, 0, 0]}, hl.InputError, "extend('b'): like was a blend"),
        ({"like": [0, 1]}, hl.InputError, "like has batch shape (2,); expected (), or (1,)"),
    ],
)
def test_what_cannot_be_extended_is_refused_and_nothing_changes(
    arguments: dict[str, object], error: type[Exception], words: str
) -> None:
    net = categorical()
    before, state = net.inputs, {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(error) as caught:
        net.extend(**{"name": "b", **arguments})
    assert words in str(caught.value)
    assert net.inputs == before
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("frozen", [True, False])
def test_an_extended_table_is_trained_if_it_was(frozen: bool) -> None:
    net = categorical().requires_grad_(not frozen)
    assert net.extend("a").requires_grad is not frozen
    assert net.extend("a").dtype == torch.float32
    meta = categorical(device="meta")
    assert meta.extend("a", 2).shape == (5, 3)


def test_an_optimizer_of_something_else_is_refused_before_anything_changes() -> None:
    net = categorical()
    stale = torch.optim.Adam(net.parameters())
    net.extend("b")
    for other in (stale, torch.optim.Adam(net.head.parameters())):
        with pytest.raises(hl.ConfigurationError, match="optimizer does not train these embedd"):
            net.extend("b", optimizer=other)
    assert net.inputs["b"].n == len(net.embeddings[1].weight) == 5


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "ours": lambda p: hl.optim.Adam(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_goes_on_with_its_state(kind: str) -> None:
    """As one of a network that had the category from the start and never used it."""

    def trained(n: int) -> tuple[hl.HyperNet, torch.optim.Optimizer]:
        inputs, seed = {"c": hl.Categorical(3, features=3)}, torch.Generator().manual_seed(0)
        net = hl.HyperNet(inputs, {"w": (4, 3)}, dtype=torch.float64, generator=seed)
        if n > 3:
            net.extend("c", like=1)
        optimizer = OPTIMIZERS[kind](net.parameters())
        for _ in range(5):
            step(net, optimizer, 1)
        return net, optimizer

    def step(net: hl.HyperNet, optimizer: torch.optim.Optimizer, c: int) -> None:
        optimizer.zero_grad()
        (net(c=c)["w"] - 1).square().mean().backward()
        optimizer.step()

    net, optimizer = trained(3)
    twin, its_own = trained(4)
    groups = [len(group["params"]) for group in optimizer.param_groups]
    old = net.embeddings[0].weight
    table = net.extend(
        "c", like=twin.embeddings[0].weight.new_tensor([0, 1, 0]), optimizer=optimizer
    )
    assert [len(group["params"]) for group in optimizer.param_groups] == groups
    assert old not in optimizer.state
    assert any(p is table for group in optimizer.param_groups for p in group["params"])
    with torch.no_grad():
        table[3] = twin.embeddings[0].weight[3]
    before = table.detach().clone()
    for c in (3, 0, 3, 1):
        step(net, optimizer, c)
        step(twin, its_own, c)
    assert not torch.equal(table[3], before[3])
    if kind == "adafactor":  # whose state is that of rows and columns: it starts anew
        assert table.isfinite().all()
    else:
        torch.testing.assert_close(table, twin.embeddings[0].weight, rtol=1e-12, atol=1e-12)
