"""Inputs that are networks: unit vectors that condition from the first step on, whatever passes."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hyperlight as hl
from hyperlight.widths import directions_for
from tests.models import Gives, mlp, one_graph, vectors
from tests.reference import naive_encoded


def cnn(features: int = 6) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, features))


def images(count: int = 24) -> Tensor:
    """Smooth bright images, as photographs are."""
    return nn.functional.interpolate(torch.rand(count, 1, 3, 3), size=8, mode="bilinear")


class SetEncoder(nn.Module):
    """The mean over the members of a set that the mask keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 8), nn.Linear(8, 5)

    def forward(self, context: Tensor, mask: Tensor) -> Tensor:
        kept = torch.tanh(self.inner(context)) * mask[..., None]
        return self.outer(kept.sum(1) / mask.sum(1, keepdim=True).clamp_min(1.0))


def sets(count: int = 24, members: int = 7) -> tuple[Tensor, Tensor]:
    mask = (torch.rand(count, members) > 0.4).float()
    mask[:, 0] = 1.0
    return torch.randn(count, members, 3), mask


def model_of(module: nn.Module | None = None, **settings_: Any) -> hl.HyperModel:
    """A model that depends on an image and a level."""
    inputs = {"image": hl.Encoded(module or cnn(), features=6), "level": hl.Uniform(0.0, 1.0)}
    settings_ = {"hidden": (8, 8), "calibrate_on": {"image": images()}, **settings_}
    return hl.hypernetize(mlp(), inputs, **settings_)


@pytest.fixture
def x() -> Tensor:
    return vectors()


# --- what it computes -----------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(2, 9),
    features=st.integers(1, 4),
    size=st.floats(1e-3, 1e3),
    level=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**31),
)
def test_it_is_centred_scaled_and_of_norm_one(
    count: int, features: int, size: float, level: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(2, features, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.normal_(0.0, size, generator=generator)
    data = torch.randn(count, 2, dtype=torch.float64, generator=generator)
    net = hl.HyperNet(
        {"level": hl.Uniform(0.0, 1.0), "x": hl.Encoded(linear, features)},
        {"w": (2,)},
        hidden=(3,),
        calibrate_on={"x": data},
        dtype=torch.float64,
    )
    value = torch.randn(3, 2, dtype=torch.float64, generator=generator)
    rows, examples = linear(value).tolist(), linear(data).tolist()
    unit = math.sqrt(0.5)  # an image weighs as much as a scalar
    pair = [unit * math.cos(level * math.pi / 2), unit * math.sin(level * math.pi / 2)]
    expected = [[*pair, *(unit * v for v in row)] for row in naive_encoded(rows, examples)]
    found = net.encode(x=value, level=level)
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=1e-6, atol=1e-6)
    assert found.norm(dim=-1).tolist() == pytest.approx([1.0] * 3, abs=1e-12)


def test_without_examples_it_is_divided_by_its_norm_and_nothing_else() -> None:
    module, value = cnn(), images(3)
    net = hl.HyperNet({"image": hl.Encoded(module, 6)}, {"w": (2,)}, hidden=(3,))
    expected = nn.functional.normalize(module(value), dim=-1)
    torch.testing.assert_close(net.encode(image=value), expected)


@pytest.mark.parametrize("encoding", [hl.CosSin(), hl.CosSin(per_input=True), None])
def test_beside_other_inputs_it_counts_as_one_scalar(encoding: nn.Module | None) -> None:
    inputs = {
        "a": hl.Encoded(cnn(), 6),
        "z": hl.Normal(3),
        "b": hl.Encoded(nn.Linear(2, 4), 4),
        "c": hl.Categorical(5),
    }
    net = hl.HyperNet(inputs, {"w": (2,)}, hidden=(3,), encoding=encoding)
    z = torch.zeros(3)
    encoded = net.encode(a=images(7), z=z, b=torch.randn(7, 2), c=2)
    unit = isinstance(encoding, hl.CosSin) and not encoding.per_input
    weight = 6**-0.5 if unit else 1.0
    assert encoded.shape == (7, 6 + 6 + 4 + 5)
    for block in encoded.split([6, 6, 4, 5], dim=-1)[1:]:
        assert block.norm(dim=-1).tolist() == pytest.approx([weight] * 7, rel=1e-5)
    if unit:
        assert encoded.norm(dim=-1).tolist() == pytest.approx([1.0] * 7, rel=1e-6)


def test_a_feature_that_hardly_varies_is_not_blown_up() -> None:
    module = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        module.weight[2] *= 1e-6
    value = torch.randn(50, 2)
    net = hl.HyperNet(
        {"x": hl.Encoded(module, 3)}, {"w": (2,)}, hidden=(3,), calibrate_on={"x": value}
    )
    assert net.encode(x=value)[:, 2].abs().max() < 1e-3
    assert net.encode(x=value)[:, :2].std(dim=0).min() > 0.1


def test_the_gradient_at_zero_is_finite() -> None:
    module = nn.Linear(2, 3, bias=False)
    net = hl.HyperNet({"x": hl.Encoded(module, 3)}, {"w": (2,)}, hidden=(3,))
    net.encode(x=torch.zeros(4, 2)).sum().backward()
    assert module.weight.grad is not None
    value = torch.zeros(4, 2, requires_grad=True)
    net.encode(x=value).sum().backward()
    assert value.grad is not None
    assert value.grad.isfinite().all()
    assert value.grad.abs().max() < 10.0


# --- it conditions --------------------------------------------------------------------------


def deep() -> nn.Sequential:
    layers = [m for i in range(5) for m in (nn.Conv2d(4 if i else 1, 4, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 6))


@pytest.mark.parametrize("make", [cnn, deep])
def test_an_untrained_network_conditions_the_weights_from_the_first_step(make: Any) -> None:
    """As much as a category does; without examples, next to nothing if it is deep."""
    torch.manual_seed(0)
    module, data, others = make(), images(100), images(100)
    spreads = {}
    for name, calibrate_on in (("examples", {"image": data}), ("none", None)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            model = hl.hypernetize(
                mlp(), {"image": hl.Encoded(module, 6)}, calibrate_on=calibrate_on
            )
        spreads[name] = hl.scale_profile(model, values={"image": others}).spread
    categories = hl.scale_profile(hl.hypernetize(mlp(), {"c": hl.Categorical(10)})).spread
    assert 0.5 * categories < spreads["examples"] < 2.0 * categories
    assert spreads["none"] < 0.8 * spreads["examples"]
    if make is deep:
        assert spreads["none"] < 0.005


def test_a_model_without_examples_says_what_to_pass() -> None:
    with pytest.warns(UserWarning, match=r"Nothing is known of the values of 'image'") as caught:
        model = model_of(calibrate_on=None)
    assert "Pass some of your data: calibrate_on={'image': batch}" in str(caught[0].message)
    assert caught[0].filename == __file__
    with torch.no_grad():
        change = model.predict(image=images(50), level=0.3)["0.weight"] - model.theta0["0.weight"]
    size = model.theta0["0.weight"].square().mean().sqrt()
    assert 0.01 < float(change.square().mean().sqrt() / size.detach()) < 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model_of()
        hl.hypernetize(mlp().to("meta"), {"image": hl.Encoded(cnn(), 6)}, device="meta")


def test_the_profile_says_that_an_input_conditions_nothing() -> None:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="Nothing is known"):
        model = hl.hypernetize(mlp(), {"image": hl.Encoded(deep(), 6)})
    profile = hl.scale_profile(model, values={"image": images(40)})
    assert "'image' conditions next to nothing" in profile.verdict
    assert "gives nearly the same for all of them" in profile.verdict
    assert "calibrate_on={'image': batch}" in profile.verdict
    assert profile.gamma.tolist() == list(range(40))
    model = model_of(deep())
    verdict = hl.scale_profile(model, values={"image": images(40)}).verdict
    assert "nothing to change. Over the given values the weights move by 0.0" in verdict


# --- values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [None, (1, 8, 8), (1, None, None)])
def test_the_rank_of_a_value_says_what_is_the_batch(declared: Any) -> None:
    space = hl.Encoded(cnn(), 6, shape=declared)
    net = hl.HyperNet({"image": space}, {"w": (2,)}, hidden=(3,), calibrate_on={"image": images()})
    batch = images(6)
    flat = net(image=batch)["w"]
    assert flat.shape == (6, 2)
    torch.testing.assert_close(
        net(image=batch.unflatten(0, (2, 3)))["w"], flat.unflatten(0, (2, 3))
    )
    torch.testing.assert_close(net(image=batch[0])["w"], flat[0])
    assert net.batch_shape(image=batch[0]) == ()
    assert net.sample((2, 3))["image"].shape == (2, 3, 1, 8, 8)


def test_without_shape_and_examples_a_value_is_a_batch() -> None:
    net = hl.HyperNet({"image": hl.Encoded(cnn(), 6)}, {"w": (2,)}, hidden=(3,))
    assert net(image=images(4))["w"].shape == (4, 2)
    with pytest.raises(hl.InputError, match=r"'image' has shape \(\); expected a batch of values"):
        net(image=0.3)


@pytest.mark.parametrize("kind", [tuple, dict])
def test_a_set_of_any_length_comes_with_its_mask(kind: type) -> None:
    def value(context: Tensor, mask: Tensor) -> Any:
        # The keys in another order than the declared one.
        return (context, mask) if kind is tuple else {"mask": mask, "context": context}

    shape: Any = ((None, 3), (None,))
    if kind is dict:
        shape = {"context": (None, 3), "mask": (None,)}
    context, mask = sets()
    net = hl.HyperNet(
        {"set": hl.Encoded(SetEncoder(), 5, shape=shape)},
        {"w": (2,)},
        hidden=(3,),
        calibrate_on={"set": value(context, mask)},
    )
    whole = net(set=value(context, mask))["w"]
    assert whole.shape == (24, 2)
    members = int(mask[0].sum())
    order = mask[0].argsort(descending=True)
    short = net(set=value(context[0, order][:members], torch.ones(members)))["w"]
    torch.testing.assert_close(short, whole[0])
    drawn = net.sample(4)["set"]
    assert net(set=drawn)["w"].shape == (4, 2)


def test_draws_are_examples_whole_and_evenly_kept() -> None:
    numbers = torch.arange(1000.0)
    pairs = (numbers[:, None], numbers[:, None] + 0.5)
    space = hl.Encoded(SetEncoder(), 5).calibrated(pairs)
    kept = space.examples[0][:, 0]
    assert len(kept) == 256
    assert kept[[0, -1]].tolist() == [0.0, 999.0]
    assert 3.0 <= float(kept.diff().min()) <= float(kept.diff().max()) <= 4.0
    drawn = space.sample(50, generator=torch.Generator().manual_seed(0))
    again = space.sample(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn[0] + 0.5, drawn[1])
    assert torch.equal(drawn[0], again[0])
    assert set(drawn[0].flatten().tolist()) <= set(kept.tolist())
    assert len(set(drawn[0].flatten().tolist())) > 30


def test_values_are_cast_to_the_dtype_of_the_network() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4)).bfloat16()
    net = hl.HyperNet(
        {"x": hl.Encoded(module, 4)},
        {"w": (2,)},
        hidden=(3,),
        calibrate_on={"x": torch.randn(9, 3)},
    )
    found = net(x=torch.randn(5, 3).double())["w"]
    assert found.dtype == torch.float32
    net.double()
    assert module[0].weight.dtype == torch.float64
    assert net(x=torch.randn(5, 3))["w"].dtype == torch.float64
    words = hl.HyperNet(
        {"t": hl.Encoded(nn.EmbeddingBag(9, 4), 4)},
        {"w": (2,)},
        hidden=(3,),
        calibrate_on={"t": torch.randint(9, (8, 5))},
    )
    assert words(t=torch.randint(9, (2, 3)))["w"].shape == (2, 2)  # integers stay integers


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(4), ["shape (4,); expected (1, 8, 8), or the same batch shape before"]),
        (
            torch.zeros(4, 1, 8, 9),
            ["has shape (4, 1, 8, 9)", "declared as Encoded(Sequential(...)"],
        ),
        ((torch.zeros(1, 8, 8),), ["has shape ((1, 8, 8),); expected (1, 8, 8)"]),
        ((), ["has shape (); expected (1, 8, 8)"]),
        (None, ["'image' was of type NoneType; expected a tensor, or a tuple or dict of tensors"]),
        ("cat.png", ["'image' was of type str"]),
        (
            torch.zeros(1, 8, 8, device="meta"),
            ["is on meta, the hypernetwork on cpu", ".to('cpu')"],
        ),
        (
            torch.full((1, 8, 8), math.nan),
            ["'image' holds NaN or infinity, and so does what Sequential"],
        ),
    ],
)
def test_values_that_do_not_fit_are_refused(value: Any, words: list[str]) -> None:
    space = hl.Encoded(cnn(), 6, shape=(1, 8, 8))
    net = hl.HyperNet({"image": space}, {"w": (2,)}, hidden=(3,))
    with pytest.raises(hl.InputError) as error:
        net(image=value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ((torch.zeros(5, 7, 3), torch.zeros(4, 7)), "has shape ((5, 7, 3), (4, 7)); expected"),
        (
            torch.zeros(5, 7, 3),
            "expected ((None, 3), (None,)), or the same batch shape before each",
        ),
        ({"context": torch.zeros(7, 3)}, "has shape {'context': (7, 3)}; expected"),
    ],
)
def test_the_parts_of_a_value_have_one_batch(value: Any, words: str) -> None:
    space = hl.Encoded(SetEncoder(), 5, shape=((None, 3), (None,)))
    net = hl.HyperNet({"set": space}, {"w": (2,)}, hidden=(3,))
    with pytest.raises(hl.InputError) as error:
        net(set=value)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("gives", "words"),
    [
        (torch.zeros(2, 5), "gave a tensor of shape (2, 5) and torch.float32 for a batch of shape"),
        (torch.zeros(6), "gave a tensor of shape (6,)"),
        (torch.zeros(2, 6).long(), "and torch.int64 for a batch of shape (2, 1, 8, 8); expected a"),
        ({"last": torch.zeros(2, 6)}, "gave dict for a batch of shape (2, 1, 8, 8); expected"),
    ],
)
def test_what_a_network_gives_is_checked(gives: Any, words: str) -> None:
    net = hl.HyperNet({"image": hl.Encoded(Gives(gives), 6)}, {"w": (2,)}, hidden=(3,))
    with pytest.raises(hl.ConfigurationError) as error:
        net(image=images(2))
    assert words in str(error.value)
    assert "floating-point tensor of shape (2, 6), as declared by features=6" in str(error.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: hl.Encoded(cnn, 6), "expected a module that maps a batch of values"),
        (lambda: hl.Encoded(cnn(), 0), "Encoded(features=0): expected an integer, 1 or more"),
        (lambda: hl.Encoded(cnn(), 6, shape=(1, 0)), "Encoded(shape=(1, 0)): expected the sizes"),
        (lambda: hl.Encoded(cnn(), 6, shape="image"), "Encoded(shape='image'): expected the sizes"),
        (lambda: hl.Encoded(cnn(), 6, shape=((3,), 4)), "expected the sizes of one value"),
        (lambda: hl.Encoded(cnn(), 6, shape=(1, 8, 9), examples=images()), "examples of which one"),
        (lambda: hl.Encoded(cnn(), 6, examples=torch.tensor(1.0)), "examples of shape ()"),
        (
            lambda: hl.Encoded(cnn(), 6, examples=(torch.zeros(3, 2), torch.zeros(4))),
            "examples of shape (3, 2), (4,); expected tensors of shape (N, ...), with as many rows",
        ),
        (lambda: model_of(calibrate_on={"image": images(1)}), "'image' was given 1 value to cali"),
        (
            lambda: model_of(calibrate_on={"image": torch.zeros(9, 1, 8, 8)}),
            "'image' was given 9 values to calibrate on that are all the same to the hypernetwork",
        ),
        (
            lambda: model_of(calibrate_on={"image": torch.full((9, 1, 8, 8), math.inf)}),
            "'image' was given values to calibrate on that give NaN or infinity",
        ),
        (
            lambda: model_of(calibrate_on={"imag": images()}),
            "calibrate_on held 'imag', which is not an input; the inputs are 'image', 'level'. Did",
        ),
        (
            lambda: model_of(calibrate_on={"level": torch.rand(9)}),
            "'level' says where its values lie, as it was declared as Uniform(",
        ),
        (lambda: model_of(cnn().to("meta")), "'image' is on meta, the hypernetwork on cpu. Move"),
        (
            lambda: hl.hypernetize(mlp(), {"keys": hl.Encoded(cnn(), 6)}),
            "A hypernetwork input cannot be called 'keys'; rename it",
        ),
    ],
)
def test_encoders_that_make_no_sense_are_refused(make: Any, words: str) -> None:
    with pytest.raises(hl.ConfigurationError) as error:
        make()
    assert words in str(error.value)


def test_nan_of_masked_entries_and_of_weights_passes() -> None:
    class Kept(SetEncoder):
        def forward(self, context: Tensor, mask: Tensor) -> Tensor:
            return super().forward(context.nan_to_num(), mask)

    context, mask = sets()
    module = Kept()
    net = hl.HyperNet(
        {"set": hl.Encoded(module, 5)}, {"w": (2,)}, calibrate_on={"set": (context, mask)}
    )
    context[0, mask[0] == 0] = math.nan
    assert net(set=(context, mask))["w"].isfinite().all()
    nn.init.constant_(module.outer.bias, math.nan)
    assert net(set=(context.nan_to_num(), mask))["w"].isnan().all()


def test_without_examples_there_is_nothing_to_draw() -> None:
    net = hl.HyperNet({"image": hl.Encoded(cnn(), 6)}, {"w": (2,)}, hidden=(3,))
    with pytest.raises(hl.InputError, match=r"'image' cannot be drawn.*calibrate_on="):
        net.sample()
    with pytest.raises(hl.ConfigurationError, match=r"'image', Encoded.* has no examples"):
        hl.testing.check_hypernet(net)


# --- a part of the model --------------------------------------------------------------------


def test_the_module_is_used_as_it_is_and_trained(x: Tensor) -> None:
    module = cnn()
    model = model_of(module)
    assert model.hypernet.encoders["image"].module is module
    assert set(module.parameters()) <= set(model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in module.parameters()]
    model(x, image=images(4), level=0.3).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True))


def test_a_frozen_network_stays_and_the_rest_learns(x: Tensor) -> None:
    module = cnn().requires_grad_(False)
    model = model_of(module)
    model(x, image=images(4), level=0.3).square().mean().backward()
    assert all(p.grad is None for p in module.parameters())
    assert model.hypernet.trunk.layers[0].weight.grad is not None


def test_measuring_leaves_the_networks_buffers_alone() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6))
    before = copy.deepcopy(module.state_dict())
    model = model_of(module)
    hl.scale_profile(model, values={"image": images()}, input="image")
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert module.training


def test_a_copy_has_a_network_of_its_own(x: Tensor) -> None:
    model = model_of()
    other = copy.deepcopy(model)
    gamma = {"image": images(4), "level": 0.3}
    assert torch.equal(other(x, **gamma), model(x, **gamma))
    assert not set(other.parameters()) & set(model.parameters())
    assert other.inputs["image"].module is other.hypernet.encoders["image"].module


def test_one_network_may_serve_two_inputs(tmp_path: Path) -> None:
    module = cnn()
    inputs = {"a": hl.Encoded(module, 6), "b": hl.Encoded(module, 6)}
    model = hl.hypernetize(mlp(), inputs, calibrate_on={"a": images(), "b": images() ** 2})
    gamma = {"a": images(2), "b": images(2)}
    assert model.summary().parameters == sum(p.numel() for p in model.parameters())
    hl.save(model, tmp_path / "m")
    again = cnn()
    inputs = {"a": hl.Encoded(again, 6), "b": hl.Encoded(again, 6)}
    loaded = hl.load(tmp_path / "m", mlp(), inputs=inputs)
    x = vectors()[:2]
    assert torch.equal(loaded(x, **gamma), model(x, **gamma))


def test_the_summary_counts_it_as_a_part_of_its_own() -> None:
    model = model_of()
    summary = model.summary()
    assert summary.encoders.parameters == sum(p.numel() for p in cnn().parameters())
    assert summary.parameters == sum(p.numel() for p in model.parameters())
    assert "encoders" in str(summary)
    assert "encoders" not in str(hl.hypernetize(mlp(), {"g": hl.Normal()}).summary())
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    shared = hl.hypernetize(
        net,
        {"z": hl.Encoded(net[1], 6, shape=64)},
        targets="1.bias",
        calibrate_on={"z": torch.randn(9, 64)},
    )
    assert shared.summary().parameters == sum(p.numel() for p in shared.parameters())


def test_its_features_ask_for_directions() -> None:
    spaces = [hl.Encoded(cnn(64), 64), hl.Uniform(0.0, 1.0)]
    assert directions_for(spaces) == 48  # 8 * ceil((8 + 64 / 2 + 2) / 8)


@pytest.mark.parametrize("make", [lambda: model_of().hypernet, model_of])
def test_it_meets_the_guarantees(make: Any) -> None:
    torch.manual_seed(0)
    model = make()
    given = (vectors(),) if isinstance(model, hl.HyperModel) else ()
    report = hl.testing.check_hypernet(model, *given)
    assert {"batches", "gradients", "precision", "state", "copies"} <= set(report.passed)
    context, mask = sets()
    several = hl.hypernetize(
        mlp(), {"set": hl.Encoded(SetEncoder(), 5)}, calibrate_on={"set": (context, mask)}
    )
    report = hl.testing.check_hypernet(several, vectors(), set=(context[0], mask[0]))
    assert "samples" in report.passed


def test_a_hypernetwork_of_the_hypernetwork_predicts_the_encoder(x: Tensor) -> None:
    model = model_of()
    outer = hl.hypernetize(model.hypernet, {"t": hl.Uniform(0.0, 1.0)}, hidden=(4,))
    names = {name for name, _ in model.hypernet.named_parameters()}
    assert "encoders.image.module.0.weight" in names & set(outer.theta0)
    found = outer(t=0.3, image=images(3), level=0.2)["0.weight"]
    twin = copy.deepcopy(model.hypernet)
    with torch.no_grad():
        for name, value in outer.predict(t=0.3).items():
            twin.get_parameter(name).copy_(value)
    # The copy of the network has the predicted weights, too.
    assert found.shape == (3, 5, 3)
    data = images(3)
    torch.testing.assert_close(
        outer(t=0.3, image=data, level=0.2)["0.weight"], twin(image=data, level=0.2)["0.weight"]
    )


# --- files ----------------------------------------------------------------------------------


def test_a_file_gives_the_network_its_weights_back(tmp_path: Path, x: Tensor) -> None:
    model = model_of(cnn().bfloat16())
    gamma = {"image": images(4), "level": 0.3}
    hl.save(model, tmp_path / "m")
    module = cnn().bfloat16()
    again = hl.load(tmp_path / "m", mlp(), inputs={"image": hl.Encoded(module, 6)})
    assert torch.equal(again(x, **gamma), model(x, **gamma))
    assert again.hypernet.encoders["image"].module is module
    assert again(x, image=images(1)[0], level=0.3).shape == (4, 2)  # the rank is in the file
    with pytest.raises(hl.InputError, match="cannot be drawn"):
        again.sample()
    inputs = {"image": hl.Encoded(cnn().bfloat16(), 6, examples=images())}
    assert hl.load(tmp_path / "m", mlp(), inputs=inputs).sample(3)["image"].shape == (3, 1, 8, 8)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (
            None,
            "the class Encoded cannot be stored in a file. Pass it to load: inputs={'image': Enc",
        ),
        (hl.Uniform(0.0, 1.0), "input 'image' was Uniform(low=0.0, high=1.0, shape=[]"),
        (
            hl.Encoded(cnn(), 5),
            "was Encoded(module, features=5, shape=[None, None, None]); expected Encoded(module, "
            "features=6, shape=[None, None, None]), as in the file",
        ),
        (hl.Encoded(cnn(), 6, shape=(1, 9, 9)), "was Encoded(module, features=6, shape=[1, 9, 9])"),
        (
            hl.Encoded(nn.Sequential(nn.Conv2d(1, 4, 5), *cnn()[1:]), 6),
            "'encoders.image.module.0.weight' is (4, 1, 3, 3) in the file",
        ),
    ],
)
def test_a_file_does_not_fit_another_network(
    space: hl.Input | None, words: str, tmp_path: Path
) -> None:
    hl.save(model_of(), tmp_path / "m")
    with pytest.raises(hl.FormatError) as error:
        hl.load(tmp_path / "m", mlp(), inputs={"image": space} if space else {})
    assert words in str(error.value)
    assert str(tmp_path / "m") in str(error.value)


def test_other_settings_of_the_network_are_named(tmp_path: Path) -> None:
    hl.save(model_of(), tmp_path / "m")
    module = cnn()
    module[1] = nn.GELU()
    inputs = {"image": hl.Encoded(module, 6)}
    words = "the given encoder of 'image' differs from the one that was saved.*'1' is a ReLU in"
    with pytest.warns(UserWarning, match=words):
        hl.load(tmp_path / "m", mlp(), inputs=inputs)
    before = copy.deepcopy(module.state_dict())
    hl.save(model_of(), tmp_path / "other")
    with pytest.raises(hl.FormatError, match=words):
        hl.load(tmp_path / "other", mlp(), inputs=inputs, strict=True)
    with pytest.raises(hl.FormatError, match="another architecture"):
        hl.load(tmp_path / "other", nn.Linear(3, 2), inputs=inputs)
    assert all(torch.equal(value, before[n]) for n, value in module.state_dict().items())


# --- everywhere a model goes ----------------------------------------------------------------


@one_graph
@pytest.mark.parametrize("count", [None, 4])
def test_it_compiles_into_one_graph(count: int | None, x: Tensor) -> None:
    model = model_of()
    image = images(4) if count else images(1)[0]
    expected = model(x, image=image, level=0.3)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, image=image, level=0.3), expected)


def test_it_is_exported(tmp_path: Path, x: Tensor) -> None:
    model = model_of().eval()
    gamma = {"image": images(1)[0], "level": torch.tensor(0.3)}
    exported = torch.export.export(model, (x,), gamma)
    torch.testing.assert_close(exported.module()(x, **gamma), model(x, **gamma))
    program = torch.onnx.export(model, (x,), kwargs=gamma, dynamo=True, verbose=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    given = [x, gamma["image"], gamma["level"]]
    names = [each.name for each in session.get_inputs()]
    (found,) = session.run(None, {n: t.numpy() for n, t in zip(names, given, strict=True)})
    torch.testing.assert_close(torch.tensor(found), model(x, **gamma).detach())


def test_vmap_sweep_and_kept_networks(x: Tensor) -> None:
    model = model_of()
    data = images(4)
    expected = model.predict(image=data, level=0.3)["0.weight"]
    mapped = torch.vmap(lambda image: model.predict(image=image, level=0.3)["0.weight"])(data)
    torch.testing.assert_close(mapped, expected)
    swept = model.sweep(x, image=data[0], level=torch.linspace(0.0, 1.0, 3))
    assert swept.shape == (3, 4, 2)
    torch.testing.assert_close(swept[1], model(x, image=data[0], level=0.5))
    torch.testing.assert_close(model.at(image=data[0], level=0.5)(x), swept[1])
    each = model.bind(image=data, level=0.3)(x)
    torch.testing.assert_close(each, model(x, image=data, level=0.3))
    torch.testing.assert_close(each[2:3], model(x[2:3], image=data[2], level=0.3))


def test_a_search_holds_the_value_and_runs_its_network_once(x: Tensor) -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = cnn(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.inner(x)

    module = Counted()
    model = model_of(module)
    module.calls, image = 0, images(1)[0]
    tuned = hl.tune(model, lambda net: net(x).square().mean(), fixed={"image": image}, steps=3)
    assert module.calls == 1
    assert torch.equal(tuned.inputs["image"], image)
    loss = model(x, **tuned.inputs).square().mean()
    assert float(loss) == pytest.approx(float(tuned.loss), rel=1e-5)
    data = images(4)
    tuned = hl.tune(model, lambda net: net(x).square().mean(-1), image=data, steps=2)
    assert tuned.loss.shape == (4,)
    assert torch.equal(tuned.inputs["image"], data)
    with pytest.raises(hl.InputError, match=r"'image' is a value of yours.*fixed={'image': value}"):
        hl.tune(model, lambda net: net(x).square().mean())
    with pytest.raises(hl.ConfigurationError, match="Nothing is left to tune"):
        hl.tune(model, lambda net: net(x).square().mean(), fixed={"image": image, "level": 0.1})


def test_other_profiles_hold_it_at_an_example(x: Tensor) -> None:
    model = model_of()
    first = model.inputs["image"].examples[0]
    profile = hl.scale_profile(model, "level", points=3)
    expected = torch.cat([t.flatten() for t in model.predict(image=first, level=0.5).values()])
    assert float(profile.std[1]) == pytest.approx(float(expected.std(correction=0)), rel=1e-5)
    other = images(2)
    profile = hl.scale_profile(model, "level", points=3, values={"image": other})
    expected = torch.cat([t.flatten() for t in model.predict(image=other[0], level=0.5).values()])
    assert float(profile.std[1]) == pytest.approx(float(expected.std(correction=0)), rel=1e-5)
    with pytest.warns(UserWarning, match="Nothing is known"):
        model = model_of(calibrate_on=None)
    with pytest.raises(hl.ConfigurationError, match=r"'image' has no value to be held at.*values="):
        hl.scale_profile(model, "level")
    loss = lambda net, batch: net(batch).square().mean()  # noqa: E731
    hl.gradient_profile(model, loss, [x], "level", points=2, values={"image": other})


def test_earlier_conditions_may_be_images() -> None:
    model = model_of()
    keep = hl.OutputRegularizer(model, {"image": images(3), "level": torch.rand(3)})
    assert keep().item() == 0.0
    with torch.no_grad():
        for parameter in model.hypernet.encoders.parameters():
            parameter.add_(0.1)
    assert keep().item() > 0.0
    several = hl.hypernetize(mlp(), {"s": hl.Encoded(SetEncoder(), 5)}, calibrate_on={"s": sets()})
    with pytest.raises(hl.InputError, match="'s' has several tensors as a value"):
        hl.OutputRegularizer(several, {"s": sets(3)})


def test_rates_are_set_with_it(x: Tensor) -> None:
    model = model_of()
    groups = {group["name"]: group for group in hl.parameter_groups(model, lr=1e-3)}
    own = set(model.hypernet.encoders["image"].parameters())
    assert set(groups["trunk.encoders.image"]["params"]) == own
    assert 0.0 < groups["trunk.encoders.image"]["lr"] <= 5e-4
