"""The model: theta0 in the primary, two switches, shared weights, hierarchies, errors."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hyperlight as hl
from hyperlight.heads import scale_change
from tests.models import PRIMARIES, convolutional, mlp, one_graph, vectors
from tests.reference import copied_primary

SPACE = {"g": hl.Uniform(0.0, 1.0)}
COMBINATIONS = [
    {"encoding": encoding, "residual": residual}
    for encoding in (hl.CosSin(), None)
    for residual in (True, False)
]


def built(**switches: Any) -> hl.HyperModel:
    torch.manual_seed(5)
    return hl.hypernetize(mlp(), SPACE, **switches)


def test_the_primary_is_untouched_and_is_where_theta0_lives() -> None:
    primary = convolutional()
    state, ids = copy.deepcopy(primary.state_dict()), [id(p) for p in primary.parameters()]
    model = hl.hypernetize(primary, SPACE)
    model.eval()(torch.randn(2, 1, 4, 4), g=0.3).sum().backward()
    assert model.primary is primary
    assert [id(p) for p in primary.parameters()] == ids
    assert all(torch.equal(v, state[k]) for k, v in primary.state_dict().items())
    assert {f"primary.{k}" for k in state} <= set(model.state_dict())
    primary.load_state_dict(state)


def test_predict_is_theta0_plus_the_prediction_in_the_primarys_order() -> None:
    model = built()
    theta, delta = model.predict(g=0.3), model.hypernet(g=0.3)
    assert list(theta) == [name for name, _ in model.primary.named_parameters()]
    for name, own in model.primary.named_parameters():
        assert torch.equal(theta[name], own + delta[name])
    batch = model.predict(g=torch.tensor([0.3, 0.6, 0.9]))
    assert all(torch.allclose(batch[name][0], theta[name], atol=1e-6) for name in theta)
    assert batch["0.weight"].shape == (3, 5, 3)


def test_the_four_combinations_differ_in_nothing_else() -> None:
    models = [built(**switches, init="fan_out") for switches in COMBINATIONS]
    counts = {sum(p.numel() for p in model.parameters()) for model in models}
    assert len(counts) == 1
    first = models[0].hypernet.state_dict()
    for model in models:
        state = model.hypernet.state_dict()
        assert list(state) == list(first)
        assert all(torch.equal(state[key], first[key]) for key in first)
    for model, switches in zip(models, COMBINATIONS, strict=True):
        zero = not any(p.any() for p in model.primary.parameters())
        assert zero is not switches["residual"]
        raw = model.hypernet.encode(g=0.3)
        expected = [0.3, 0.0] if switches["encoding"] is None else None
        assert expected is None or raw.tolist() == pytest.approx(expected)


def test_the_classical_formulation_leaves_the_given_primary_as_it_was() -> None:
    primary = mlp()
    state = copy.deepcopy(primary.state_dict())
    model = hl.hypernetize(primary, SPACE, encoding=None, residual=False)
    assert model.primary is not primary
    assert all(torch.equal(v, state[k]) for k, v in primary.state_dict().items())
    theta, predicted = model.predict(g=0.7), model.hypernet(g=0.7)
    assert all(torch.equal(theta[name], predicted[name]) for name in theta)
    partly = hl.hypernetize(primary, SPACE, "2.*", residual=False)
    assert torch.equal(partly.primary[0].weight, primary[0].weight)
    assert not partly.primary[2].weight.any()


@pytest.mark.parametrize("switches", COMBINATIONS, ids=str)
def test_every_combination_trains(switches: dict[str, Any]) -> None:
    """A family of functions that depends on g: y = x for small g, y = -x for large."""
    torch.manual_seed(0)
    model = hl.hypernetize(mlp(), SPACE, **switches)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(300):
        x = torch.randn(32, 3, generator=generator)
        gamma = model.sample(generator=generator)
        loss = (model(x, **gamma) - x[:, :2] * (1 - 2 * gamma["g"])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-30:]) / 30 < 0.1
    assert sum(losses[:5]) / 5 > 0.3


def test_zero_initialisation_keeps_a_pretrained_primary_to_the_bit() -> None:
    primary, x = mlp(), vectors()
    model = hl.hypernetize(primary, SPACE, init="zero")
    for g in (0.0, 0.4, 1.0):
        assert torch.equal(model(x, g=g), primary(x))
    before = model(x, g=0.1)
    optimizer = torch.optim.SGD(model.hypernet.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x, g=0.1).square().sum() + (model(x, g=0.9) - 1).square().sum()).backward()
        optimizer.step()
    assert not torch.allclose(model(x, g=0.1), before)
    assert not torch.allclose(model(x, g=0.1), model(x, g=0.9))
    with pytest.raises(hl.ConfigurationError, match="nothing can train. Use init='fan_out'"):
        hl.hypernetize(primary, SPACE, init="zero", residual=False)


def test_a_frozen_primary_stays_and_the_hypernetwork_learns() -> None:
    primary = mlp().requires_grad_(False)
    model = hl.hypernetize(primary, SPACE)
    model(vectors(), g=0.5).sum().backward()
    assert all(p.grad is None for p in primary.parameters())
    assert all(p.grad is not None for p in model.hypernet.parameters())


def test_arguments_are_passed_on() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor, *, flip: bool = False, **others: Any) -> Any:
            return self.linear(x) * (-1 if flip else 1), others

    model = hl.hypernetize(Both(), SPACE)
    x = torch.randn(2, 3)
    y, others = model(x, g=0.5)
    flipped, others = model(x, flip=True, extra=3, g=0.5)
    assert torch.equal(flipped, -y)
    assert others == {"extra": 3}


def test_sample_draws_every_input_and_fits_the_model() -> None:
    model = hl.hypernetize(
        mlp(), {"a": hl.LogUniform(1e-3, 1.0), "z": hl.Normal(4), "v": hl.Vector(2)}
    )
    gamma = model.sample(generator=torch.Generator().manual_seed(1))
    again = model.sample(generator=torch.Generator().manual_seed(1))
    assert list(gamma) == ["a", "z", "v"]
    assert all(torch.equal(gamma[name], again[name]) for name in gamma)
    assert model(vectors(), **gamma).shape == (4, 2)
    assert model.sample((6,))["z"].shape == model.sample(6)["z"].shape == (6, 4)
    assert model.double().sample()["a"].dtype == torch.float64


# --- signatures ---------------------------------------------------------------


class Called(nn.Module):
    """Takes arguments of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor, /, y: Any = None, *rest: Any, labels: Any = None, **more: Any):
        return self.linear(x)


def signatures(model: hl.HyperModel) -> set[str]:
    return {str(inspect.signature(f)) for f in (model, model.forward)}


def test_the_signature_is_that_of_the_primary_and_the_inputs() -> None:
    model = hl.hypernetize(Called(), SPACE | {"z": hl.Normal(2)})
    found = (
        "(x: 'Tensor', /, y: 'Any' = None, *rest: 'Any', labels: 'Any' = None, g, z, gain=1.0, "
        "**more: 'Any')"
    )
    assert signatures(model) == {found}
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.copy(model)):
        assert signatures(twin) == {found}
        assert torch.equal(
            twin(torch.ones(1, 3), g=0.2, z=[0.0, 1.0]),
            model(torch.ones(1, 3), g=0.2, z=[0.0, 1.0]),
        )
    # Each model has its own, and a hierarchy has that of all its levels.
    assert signatures(hl.hypernetize(mlp(), SPACE)) == {"(input, *, g, gain=1.0)"}
    assert signatures(hl.hypernetize(model, {"h": hl.Normal()}, "primary.*")) == {
        found.replace("gain=1.0, ", "gain=1.0, h, ")  # the gain is that of the model inside
    }
    assert "primary" in inspect.signature(hl.HyperModel).parameters
    assert str(inspect.signature(hl.HyperModel.forward)) == (
        "(self, *args: 'Any', labels=None, **kwargs: 'Any') -> 'Any'"
    )


def test_a_primary_whose_signature_cannot_be_read_takes_anything() -> None:
    primary = nn.Linear(3, 2)
    primary.forward = max  # written in C, without a signature
    model = hl.hypernetize(primary, SPACE)
    assert signatures(model) == {"(*args, g, gain=1.0, **kwargs)"}


def test_an_input_may_have_the_name_of_rest_arguments() -> None:
    model = hl.hypernetize(Called(), {"rest": hl.Normal(), "x": hl.Normal()})
    names = list(inspect.signature(model).parameters)
    assert names == ["x_", "y", "rest_", "labels", "rest", "x", "gain", "more"]
    assert model(torch.ones(1, 3), rest=0.1, x=0.2).shape == (1, 2)


def test_a_forward_of_ones_own_replaces_the_models() -> None:
    """As accelerate and users do, on the instance or in a subclass."""

    class Doubled(hl.HyperModel):
        def forward(self, x: Tensor, g: float) -> Tensor:
            return 2 * super().forward(x, g=g)

    model, x = hl.hypernetize(mlp(), SPACE), vectors()
    expected = model(x, g=0.3)
    doubled = Doubled(model.primary, model.hypernet)
    assert torch.equal(doubled(x, 0.3), 2 * expected)
    assert signatures(doubled) == {"(x: 'Tensor', g: 'float') -> 'Tensor'"}
    model.forward = functools.partial(model.forward, g=0.3)
    assert torch.equal(model(x), expected)


# --- hierarchies -------------------------------------------------------------


def trains(model: nn.Module, run: Any, steps: int = 150) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = run()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-15:]) < 0.3 * sum(losses[:15])


def test_a_hypernetwork_can_be_hypernetized_and_trains() -> None:
    inner = hl.hypernetize(mlp(), SPACE)
    outer = hl.hypernetize(inner.hypernet, {"z": hl.Uniform(0.0, 1.0)}, hidden=(8, 16))
    x = torch.randn(64, 3)

    def run() -> Tensor:
        g, z = torch.rand(()), torch.rand(())
        theta = outer(g=g, z=z)
        net = hl.bind(inner.primary, {k: p + theta[k] for k, p in inner.primary.named_parameters()})
        return (net(x) - x[:, :2] * g + z).square().mean()

    trains(outer, run)


def test_a_whole_model_can_be_hypernetized_and_equals_the_copy() -> None:
    inner = hl.hypernetize(mlp(), SPACE).double()
    outer = hl.hypernetize(inner, {"z": hl.Normal(2)}, "hypernet.*", hidden=(8,))
    x, z = vectors().double(), torch.randn(2, dtype=torch.float64)
    twin = copied_primary(inner, outer.predict(z=z))
    assert torch.allclose(outer(x, g=0.3, z=z), twin(x, g=0.3), rtol=1e-12)
    outer(x, g=0.3, z=z).sum().backward()
    for name, p in outer.hypernet.named_parameters():
        assert p.grad.abs().sum() > 0, name

    data = torch.randn(64, 3, dtype=torch.float64)

    def run() -> Tensor:
        g, z = torch.rand((), dtype=torch.float64), torch.randn(2, dtype=torch.float64)
        return (outer(data, g=g, z=z) - data[:, :2] * g).square().mean()

    trains(outer, run)


# --- errors ------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.linear(x) * scale


def test_an_input_named_like_an_argument_of_the_primary_is_refused() -> None:
    with pytest.raises(hl.ConfigurationError) as error:
        hl.hypernetize(Scaled(), {"scale": hl.Normal()})
    for words in ("'scale'", "Scaled.forward(x, scale)", "'hyper_scale'"):
        assert words in str(error.value)
    inner = hl.hypernetize(mlp(), SPACE)
    for primary in (inner, inner.hypernet):
        with pytest.raises(hl.ConfigurationError, match="has the name of an argument"):
            hl.hypernetize(primary, SPACE)


def test_missing_inputs_are_named_with_the_call() -> None:
    model = hl.hypernetize(mlp(), {"scale": hl.Uniform(0.0, 0.5)})
    with pytest.raises(hl.InputError) as error:
        model(vectors())
    for words in ("'scale' is missing", "model(x, scale=...)", "'scale'"):
        assert words in str(error.value)


@pytest.mark.parametrize("wrong", ["scal", "Scale", "SCALE", "sclae"])
def test_a_name_with_a_typo_is_hinted_at_wherever_inputs_are_given(wrong: str) -> None:
    model = hl.hypernetize(mlp(), {"scale": hl.Uniform(0.0, 0.5)})
    x, given, values = vectors(), {wrong: 0.3}, {wrong: torch.rand(3) / 2}
    for call in (lambda: model(x, **given), lambda: model.sweep(x, **values)):
        with pytest.raises(hl.InputError, match=f"'scale' is missing. {wrong!r} was given. Pass"):
            call()
    data = [lambda: x.sum()]
    for call in (
        lambda: model.predict(**given),
        lambda: model.bind(**given),
        lambda: model.at(**given),
        lambda: model.hypernet(**given),
        lambda: model.hypernet.check(**given),
        lambda: model.extend(wrong),
        lambda: model.truncate(2, values),
        lambda: hl.tune(model, lambda net: net(x).sum(), **given),
        lambda: hl.tune(model, lambda net: net(x).sum(), fixed=given),
        lambda: hl.explore(model, x, **given),
        lambda: hl.scale_profile(model, wrong),
        lambda: hl.gradient_profile(model, lambda net, x: net(x).sum(), data, wrong),
        lambda: hl.hypernetize(mlp(), model.inputs, calibrate_on=given),
    ):
        with pytest.raises(hl.HyperLightError, match=r"Did you mean 'scale'\?$"):
            call()


def test_the_rank_decides_not_the_number() -> None:
    model, x, g = hl.hypernetize(mlp(), SPACE), torch.randn(4, 3), torch.rand(1)
    with pytest.raises(hl.InputError, match=r"batch shape \(1,\)"):
        model.at(g=g)  # a batch of one is a batch
    for run in (model.bind(g=g), lambda x: model(x, g=g)):
        with pytest.raises(hl.InputError, match=r"with 1 set of weights, one per sample"):
            run(x)
        torch.testing.assert_close(run(x[:1]), model(x[:1], g=g[0]))
    torch.testing.assert_close(model.bind(g=g[0])(x), model(x, g=g[0]))


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"0.weight": (5, 3), "9.weight": (2,)}, ["'9.weight'", "has no parameter for"]),
        ({"0.weight": (3, 5)}, ["'0.weight' with shape (3, 5)", "shape (5, 3)"]),
    ],
)
def test_a_hypernetwork_that_does_not_fit_is_refused(
    shapes: dict[str, tuple[int, ...]], words: list[str]
) -> None:
    with pytest.raises((hl.ConfigurationError, hl.TargetError)) as error:
        hl.HyperModel(mlp(), hl.HyperNet(SPACE, shapes))
    for word in words:
        assert word in str(error.value)


def test_a_hypernetwork_made_by_hand_joins_by_name_not_by_order() -> None:
    primary = mlp().double()
    shapes = {name: p.shape for name, p in primary.named_parameters()}
    backwards = dict(reversed(shapes.items()))
    model = hl.HyperModel(primary, hl.HyperNet(SPACE, backwards, dtype=torch.float64))
    theta, delta = model.predict(g=0.2), model.hypernet(g=0.2)
    assert list(theta) == list(shapes)
    assert all(torch.equal(theta[k], p + delta[k]) for k, p in primary.named_parameters())
    x = vectors().double()
    assert torch.allclose(model(x, g=0.2), copied_primary(primary, theta)(x))


def test_a_primary_on_two_devices_is_refused() -> None:
    primary = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(hl.ConfigurationError, match="several devices .*'cpu', 'meta'.*targets="):
        hl.hypernetize(primary, SPACE)


def test_every_primary_of_the_table_can_be_hypernetized_classically() -> None:
    for name, (make, data) in PRIMARIES.items():
        if name == "old weight norm":  # torch cannot deep-copy a module in that state
            continue
        model = hl.hypernetize(make().eval(), SPACE, encoding=None, residual=False)
        assert model(data(), g=0.5).isfinite().all(), name


def test_a_hypernetwork_without_hidden_layers_can_be_a_primary() -> None:
    inner = hl.HyperNet(SPACE, {"w": (2,)}, hidden=())
    outer = hl.hypernetize(inner, {"z": hl.Normal()})
    assert outer(g=0.3, z=0.1)["w"].shape == (2,)


# --- more categories ----------------------------------------------------------


def test_a_new_client_is_learned_and_all_others_stay_bit_for_bit() -> None:
    torch.manual_seed(0)
    model = hl.hypernetize(mlp(), {"client": hl.Categorical(4), "g": hl.Uniform()})
    x = vectors()
    gamma = {"client": torch.tensor([0, 1, 2, 3]), "g": 0.5}
    before, wanted = model.predict(**gamma), model(x, client={0: 0.7, 1: 0.3}, g=0.5).detach()
    loss = (model(x, client=1, g=0.5) - 1).square().mean()  # keeps a graph of the old table alive
    compiled = torch.compile(model, backend="eager")
    compiled(x, client=1, g=0.5)
    table = model.extend("client")
    assert model.inputs["client"].n == 5
    optimizer = torch.optim.Adam([table], lr=0.1)
    losses = []
    for _ in range(100):
        loss = (model(x, client=4, g=0.5) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.01 * losses[0]
    after = model.predict(**gamma)
    assert all(torch.equal(after[name], before[name]) for name in before)
    torch.testing.assert_close(compiled(x, client=4, g=0.5), model(x, client=4, g=0.5))
    with pytest.raises(hl.InputError, match="integers from 0 to 4"):
        model(x, client=5, g=0.5)


def test_an_extended_model_is_copied_and_pickled_and_copies_grow_apart() -> None:
    model = hl.hypernetize(mlp(), {"client": hl.Categorical(4)})
    model.extend("client", 2)
    x = vectors()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x, client=5), model(x, client=5))
        twin.extend("client")
        assert (twin.inputs["client"].n, model.inputs["client"].n) == (7, 6)
        assert len(model.hypernet.embeddings[0].weight) == 6
    assert signatures(model) == {"(input, *, client, gain=1.0)"}


def test_one_declared_input_serves_several_models() -> None:
    space = {"client": hl.Categorical(4)}
    first, second = hl.hypernetize(mlp(), space), hl.hypernetize(mlp(), space)
    first.extend("client")
    assert (space["client"].n, second.inputs["client"].n) == (4, 4)
    with pytest.raises(hl.InputError, match="integers from 0 to 3"):
        second(vectors(), client=4)


def test_an_inner_model_is_extended_before_it_is_hypernetized() -> None:
    inner = hl.hypernetize(mlp(), {"client": hl.Categorical(2)})
    inner.extend("client")
    outer = hl.hypernetize(inner, {"z": hl.Normal()}, "hypernet.*", hidden=(8,))
    x = vectors()
    twin = copied_primary(inner, outer.predict(z=0.3))
    torch.testing.assert_close(outer(x, client=2, z=0.3), twin(x, client=2))
    torch.testing.assert_close(
        outer(x, client={0: 0.5, 2: 0.5}, z=0.3), twin(x, client=torch.tensor([0.5, 0.0, 0.5]))
    )
    with pytest.raises(hl.ConfigurationError, match="bound network, whose weights are predicted"):
        outer.bind(z=0.3).extend("client")


# --- gain ---------------------------------------------------------------------

GAIN_HEADS: dict[str, Any] = {
    "dense": hl.Dense(),
    "low rank": hl.LowRank(1),
    "chunked": hl.Chunked(7),
    "mixed": {"0.*": hl.LowRank(1), "*": hl.Dense()},
    "per layer": hl.PerLayer(4, 5, rank=1),
    "channel scale": hl.ChannelScale(),
}


# Without theta0 there is nothing to scale.
WITHOUT_THETA0 = [(head, False) for head in GAIN_HEADS if head != "channel scale"]


@pytest.mark.parametrize(
    ("head", "residual"), [*((head, True) for head in GAIN_HEADS), *WITHOUT_THETA0]
)
def test_a_gain_multiplies_the_change(head: str, residual: bool) -> None:
    model = hl.hypernetize(mlp().double(), SPACE, head=GAIN_HEADS[head], residual=residual)
    x, theta0 = vectors().double(), model.theta0
    change = model.hypernet.head.change(theta0, model.hypernet.features(g=0.3))
    for gain in (0.0, 0.5, 1.0, 1.5, -2.0, torch.tensor(1.5)):
        expected = {name: theta0[name] + float(gain) * change[name] for name in theta0}
        found = model.predict(g=0.3, gain=gain)
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-12)
        output = copied_primary(model.primary, expected)(x)
        for run in (
            functools.partial(model, g=0.3, gain=gain),
            model.bind(g=0.3, gain=gain),
            model.at(g=0.3, gain=gain),
        ):
            torch.testing.assert_close(run(x), output)


@pytest.mark.parametrize("head", GAIN_HEADS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gains_of_0_and_1_are_exact(head: str, dtype: torch.dtype) -> None:
    model = hl.hypernetize(mlp().to(dtype), SPACE, head=GAIN_HEADS[head])
    with torch.no_grad():  # a change that is larger than theta0 brings rounding out
        for parameter in model.hypernet.head.parameters():
            parameter.mul_(7.0)
    g = torch.rand(4, dtype=dtype)
    plain = model.predict(g=g)
    for name, tensor in model.predict(g=g, gain=1.0).items():
        assert torch.equal(tensor, plain[name])
        assert tensor.dtype == dtype
    for name, tensor in model.predict(g=0.3, gain=0.0).items():
        assert torch.equal(tensor, model.theta0[name])
    x = torch.randn(4, 3, dtype=dtype)
    assert torch.equal(model(x, g=0.3, gain=0.0), model.primary(x))
    assert torch.equal(model.at(g=0.3, gain=0)[0].weight, model.primary[0].weight)
    # A weight that is small beside theta0: theta0 + (weight - theta0) would lose it.
    theta0, small = {"w": torch.ones(2, dtype=dtype)}, {"w": torch.full((2,), 1e-9, dtype=dtype)}
    assert torch.equal(scale_change(theta0, small, torch.tensor(1.0))["w"], small["w"])


@pytest.mark.parametrize("head", GAIN_HEADS)
def test_every_sample_has_a_gain_of_its_own(head: str) -> None:
    model = hl.hypernetize(mlp().double(), SPACE, head=GAIN_HEADS[head])
    x = vectors().double()
    gains = torch.linspace(-1.0, 2.0, len(x), dtype=torch.float64, requires_grad=True)
    for g in (0.3, torch.rand(len(x), dtype=torch.float64)):
        each = torch.as_tensor(g).expand(len(x))
        expected = torch.cat([model(x[i : i + 1], g=each[i], gain=gains[i]) for i in range(len(x))])
        found = model(x, g=g, gain=gains)
        assert model.last_run is not None
        assert model.last_run.way == "batch"
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(model.bind(g=g, gain=gains)(x), expected)
        (one,) = torch.autograd.grad(expected.square().sum(), gains, retain_graph=True)
        (all_,) = torch.autograd.grad(found.square().sum(), gains)
        torch.testing.assert_close(all_, one)
        torch.testing.assert_close(
            model(x[:1], g=0.3, gain=gains[:1]), model(x[:1], g=0.3, gain=-1)
        )
    swept = model.sweep(x, g=0.3, gain=gains)
    torch.testing.assert_close(swept, torch.stack([model(x, g=0.3, gain=v) for v in gains]))
    grid = model.sweep(x, g=torch.rand(2, 1, dtype=torch.float64), gain=gains)
    assert grid.shape == (2, len(x), len(x), 2)
    shared = model.sweep(x, g=each, gain=1.5)
    torch.testing.assert_close(shared[1], model(x, g=each[1], gain=1.5))


def test_gradients_reach_the_model_through_a_gain() -> None:
    model = hl.hypernetize(mlp().double(), SPACE)
    x, gain = vectors().double(), torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    model(x, g=0.3, gain=gain).square().sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    own = {
        n: p + 1.5 * d
        for (n, p), d in zip(model.theta0.items(), model.hypernet(g=0.3).values(), strict=True)
    }
    hl.bind(model.primary, own)(x).square().sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad)
    assert torch.autograd.gradcheck(lambda v: model(x, g=0.3, gain=v), gain)


def test_a_head_of_ones_own_has_a_gain_without_knowing_it() -> None:
    class Multiplied(hl.Dense):
        """theta0 * (1 + s), which is no sum."""

        def add_to(self, theta0: Any, features: Tensor) -> Any:
            return {n: theta0[n] * (1 + s) for n, s in self.predict(features).items()}

    model = hl.hypernetize(mlp().double(), SPACE, head=Multiplied())
    s = model.hypernet(g=0.3)
    for name, tensor in model.predict(g=0.3, gain=0.5).items():
        torch.testing.assert_close(tensor, model.theta0[name] * (1 + 0.5 * s[name]))


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (math.nan, "gain was nan; expected a finite number, such as 1.5"),
        (torch.tensor([1.0, math.inf]), "gain was values from 1 to inf; expected a finite number"),
        ("2", "gain was '2'; expected a number or a tensor of shape ()"),
        (True, "gain was True"),
        (torch.tensor(2), "gain has dtype torch.int64; expected a floating-point tensor"),
        (torch.ones(2, device="meta"), "gain is on meta, the hypernetwork on cpu"),
        (torch.ones(3), "gain has shape (3,), and the inputs 'g' have batch shape (4,)"),
    ],
)
def test_gains_that_do_not_fit_are_refused(gain: object, words: str) -> None:
    model = hl.hypernetize(mlp(), SPACE)
    with pytest.raises(hl.InputError) as error:
        model.predict(g=torch.rand(4), gain=gain)
    assert words in str(error.value)


class Loud(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        return self.linear(x) * gain


def test_an_argument_of_the_primary_called_gain_stays_its_own() -> None:
    model, x = hl.hypernetize(Loud(), SPACE), vectors()
    assert not model.takes_gain
    assert signatures(model) == {"(x: 'Tensor', gain: 'float' = 1.0, *, g) -> 'Tensor'"}
    assert torch.equal(model(x, g=0.3, gain=2.0), 2 * model(x, g=0.3))
    assert torch.equal(model.sweep(x, g=torch.rand(2), gain=0.0), torch.zeros(2, len(x), 2))
    louder = model.bind(g=0.3, gain=0.0)  # there it is the model's
    assert torch.equal(louder(x, gain=3.0), model.primary(x, gain=3.0))


def test_an_input_called_gain_stays_an_input() -> None:
    model, x = hl.hypernetize(mlp(), {"gain": hl.Uniform(0.0, 2.0)}), vectors()
    assert not model.takes_gain
    assert signatures(model) == {"(input, *, gain)"}
    assert torch.equal(
        model(x, gain=0.3), copied_primary(model.primary, model.predict(gain=0.3))(x)
    )
    with pytest.raises(hl.InputError, match="'gain' was 3.0; expected values in"):
        model.bind(gain=3.0)


def test_in_a_hierarchy_the_gain_is_that_of_the_inner_model() -> None:
    inner = hl.hypernetize(mlp(), SPACE)
    outer = hl.hypernetize(inner, {"z": hl.Normal()}, "hypernet.*", hidden=(8,))
    x = vectors()
    twin = copied_primary(inner, outer.predict(z=0.3))
    torch.testing.assert_close(outer(x, g=0.3, z=0.3, gain=1.5), twin(x, g=0.3, gain=1.5))
    torch.testing.assert_close(outer.bind(z=0.3, gain=0.0)(x, g=0.3), inner(x, g=0.3))


@one_graph
def test_gain_and_blend_in_a_graph() -> None:
    model = hl.hypernetize(mlp(), {"task": hl.Categorical(3)})
    x, blend, gain = vectors(), torch.tensor([0.2, 0.3, 0.5]), torch.tensor(1.5)
    expected = model(x, task=blend, gain=gain)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, task=blend, gain=gain), expected)
    torch.testing.assert_close(compiled(x, task={0: 0.2, 1: 0.3, 2: 0.5}, gain=1.5), expected)
    exported = torch.export.export(model, (x,), {"task": blend, "gain": gain}).module()
    torch.testing.assert_close(exported(x, task=blend, gain=gain), expected)
    other = {"task": torch.tensor([1.0, 0.0, 0.0]), "gain": torch.tensor(0.5)}
    torch.testing.assert_close(exported(x, **other), model(x, **other))
    assert exported(x, task=torch.tensor([1.0, 0.5, 0.0]), gain=gain).isnan().all()


def test_every_sample_has_a_blend_of_its_own() -> None:
    model = hl.hypernetize(mlp().double(), {"task": hl.Categorical(3)})
    x = vectors().double()
    blends = hl.Simplex(3).sample((len(x),), dtype=torch.float64)
    expected = torch.cat([model(x[i : i + 1], task=b) for i, b in enumerate(blends)])
    torch.testing.assert_close(model(x, task=blends), expected)
    assert model.last_run is not None
    assert model.last_run.way == "batch"
    torch.testing.assert_close(model.sweep(x, task=blends)[1], model(x, task=blends[1]))
    torch.testing.assert_close(model.at(task={0: 0.5, 1: 0.5})(x), model(x, task=[0.5, 0.5, 0.0]))
