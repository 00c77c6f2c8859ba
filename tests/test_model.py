"""The model: theta0 in the primary, two switches, shared weights, hierarchies, errors."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hyperlight as hl
from tests.models import PRIMARIES, convolutional, mlp, vectors
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
    with pytest.raises(hl.InputError, match="'scale' is missing. 'scal' was given"):
        model(vectors(), scal=0.3)


def test_the_rank_decides_not_the_number() -> None:
    model, x, g = hl.hypernetize(mlp(), SPACE), torch.randn(4, 3), torch.rand(1)
    with pytest.raises(hl.InputError, match=r"batch shape \(1,\)"):
        model.at(g=g)  # a batch of one is a batch
    for run in (model.bind(g=g), lambda x: model(x, g=g)):
        with pytest.raises(hl.InputError, match=r"with 1 sets of weights, one per sample"):
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
