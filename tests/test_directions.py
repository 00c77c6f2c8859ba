"""Directions: the default width, what a profile finds, and models that are cut to few."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hyperlight as hl
from hyperlight.widths import directions_for
from tests.models import mlp
from tests.reference.directions import best_error, changes, energies, relative_error

SPACE = {"g": hl.Uniform(0.0, 1.0), "task": hl.Categorical(3)}


def made(seed: int = 0, **settings: Any) -> hl.HyperModel:
    torch.manual_seed(seed)
    return hl.hypernetize(mlp(), SPACE, **settings).double()


def drawn(model: hl.HyperModel, count: int = 40) -> dict[str, torch.Tensor]:
    return model.sample((count,), generator=torch.Generator().manual_seed(5))


# --- the default width ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ([hl.Uniform(0.0, 1.0)], 16),
        ([hl.Uniform(0.0, 1.0)] * 4, 16),
        ([hl.Uniform(0.0, 1.0)] * 8, 24),
        ([hl.LogUniform(0.1, 1.0)] * 32, 72),
        ([hl.Uniform(0.0, 1.0, (2, 4))], 24),
        ([hl.Categorical(10)], 16),
        ([hl.Categorical(50)], 40),
        ([hl.Normal(64)], 40),
        ([hl.Vector(768)], 128),
        ([hl.Simplex(3), hl.Uniform(0.0, 1.0)], 16),
    ],
)
def test_more_inputs_get_more_directions(inputs: list[hl.Input], expected: int) -> None:
    assert directions_for(inputs) == expected
    model = hl.hypernetize(mlp(), {f"i{k}": space for k, space in enumerate(inputs)})
    assert model.hypernet.head.features == expected
    assert [layer.out_features for layer in model.hypernet.trunk.layers] == [64, 128]


def test_explicit_widths_have_no_directions_unless_they_are_given() -> None:
    for hidden in ((16, 128), (5,), []):
        model = made(hidden=hidden)
        assert model.hypernet.projection is None
    model = made(hidden=(6,), directions=2)
    assert model.hypernet.head.weight.shape == (32, 2)
    model = made(directions=None)
    assert model.hypernet.head.features == 128
    assert model.hypernet.projection is None
    assert made(directions=3).hypernet.head.features == 3


def test_heads_that_are_small_without_directions_have_none() -> None:
    net = nn.Linear(200, 300)
    for head, features in ((hl.Dense(), 16), (hl.LowRank(4), 128), (hl.LowRank(40), 16)):
        assert hl.hypernetize(net, {"g": hl.Uniform()}, head=head).hypernet.head.features == (
            features
        )
    chunked = hl.hypernetize(net, {"g": hl.Uniform()}, head=hl.Chunked(64))
    assert chunked.hypernet.projection is None
    asked = hl.hypernetize(net, {"g": hl.Uniform()}, head=hl.LowRank(4), directions=8)
    assert asked.hypernet.head.features == 8


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hidden": "wide"}, "hidden was 'wide'; expected 'auto', or the widths of the hidden"),
        ({"hidden": (16, 0)}, "as in (16, 128)"),
        ({"hidden": 64}, "hidden was 64"),
        ({"hidden": (True, 8)}, "hidden was (True, 8)"),
        ({"directions": 0}, "directions=0: expected an integer, 1 or more"),
        ({"directions": 2.5}, "directions=2.5: expected an integer"),
        ({"directions": "many"}, "directions='many': expected an integer"),
    ],
)
def test_widths_that_cannot_be_built_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(hl.ConfigurationError) as caught:
        made(**settings)
    assert words in str(caught.value)


def test_the_change_is_a_sum_of_directions() -> None:
    model = made(directions=5)
    gamma = {"g": 0.3, "task": 1}
    coordinates = model.hypernet.features(**gamma)
    head = model.hypernet.head.weight
    total = sum(c * head[:, i] for i, c in enumerate(coordinates))
    predicted = torch.cat([t.flatten() for t in model.hypernet(**gamma).values()])
    assert torch.allclose(predicted, total)
    hidden = model.hypernet.trunk(model.hypernet.encode(**gamma))
    projection = model.hypernet.projection
    assert torch.allclose(coordinates, projection.weight @ hidden + projection.bias)


def test_coordinates_start_with_the_size_of_the_features() -> None:
    squares = []
    for seed in range(60):
        hypernet = made(seed).hypernet
        assert not hypernet.projection.bias.any()
        squares.append(hypernet.features(**drawn(hypernet)).square().sum(-1).mean())
    assert torch.stack(squares).mean().item() == pytest.approx(1.0, rel=0.15)


@pytest.mark.parametrize("directions", [None, 3, "auto"])
def test_widths_come_back_from_a_file(tmp_path: Path, directions: Any) -> None:
    model = made(directions=directions)
    hl.save(model, tmp_path / "m")
    again = hl.load(tmp_path / "m", mlp().double())
    assert repr(again.hypernet) == repr(model.hypernet)
    for name, t in model.predict(g=0.2, task=2).items():
        assert torch.equal(t, again.predict(g=0.2, task=2)[name])


# --- profiles -------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 99), directions=st.sampled_from([1, 2, 5, 16, None]))
def test_energies_and_errors_are_those_of_the_changes(seed: int, directions: Any) -> None:
    model = made(seed, directions=directions)
    values = drawn(model)
    profile = hl.direction_profile(model, values)
    expected = energies(model.hypernet, values)
    count = min(len(expected), len(profile.energy))
    assert torch.allclose(profile.energy[:count], expected[:count], atol=1e-9)
    assert profile.energy.sum().item() == pytest.approx(1.0)
    for r in (0, 1, 2, 4):
        if r < len(profile.energy):
            best = best_error(model.hypernet, values, r)
            assert float(profile.error[r]) == pytest.approx(best, rel=1e-6, abs=1e-6)
    assert float(profile.error[-1]) == pytest.approx(0.0, abs=1e-9)


def test_a_model_that_uses_all_directions_is_told_to_have_more() -> None:
    model = made(directions=2)
    profile = hl.direction_profile(model)
    assert profile.last > 0.01
    assert "All 2 directions are in use" in str(profile)
    assert "Try more, such as directions=4" in profile.verdict


def test_a_model_that_uses_few_is_told_how_far_it_can_be_cut() -> None:
    model = made(directions=12)
    with torch.no_grad():
        model.hypernet.head.weight[:, 3:] = 0.0
    profile = hl.direction_profile(model)
    assert profile.needed() == 3
    assert profile.last == pytest.approx(0.0, abs=1e-9)
    assert "does not prove that they suffice" in profile.verdict
    assert "model.truncate(3) keeps the change within 1 %" in str(profile)
    assert "12 directions; error of the change if cut to 1: " in str(profile)


def test_profiles_of_models_that_do_not_vary_or_have_diverged() -> None:
    assert "do not depend on the inputs" in str(hl.direction_profile(made(init="zero")))
    broken = made()
    with torch.no_grad():
        broken.hypernet.head.weight[0, 0] = torch.nan
    assert "diverged" in str(hl.direction_profile(broken))


def test_profiles_draw_nothing_from_the_global_generator() -> None:
    model = made()
    state = torch.get_rng_state()
    first, second = hl.direction_profile(model), hl.direction_profile(model.hypernet)
    assert torch.equal(first.energy, second.energy)
    assert torch.equal(torch.get_rng_state(), state)


# --- cutting --------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 99),
    kept=st.integers(1, 4),
    directions=st.sampled_from([5, None]),
    mixed=st.booleans(),
)
def test_a_model_that_is_cut_has_the_best_error_that_there_is(
    seed: int, kept: int, directions: Any, mixed: bool
) -> None:
    head: Any = {"0.*": hl.Dense(), "*": hl.Dense()} if mixed else hl.Dense()
    model = made(seed, directions=directions, hidden=(6, 7), head=head)
    values = drawn(model)
    small = model.truncate(kept, values)
    assert small.primary is model.primary
    assert small.hypernet.head.features == kept
    change = changes(model.hypernet, values)
    error = relative_error(change, changes(small.hypernet, values))
    assert error == pytest.approx(best_error(model.hypernet, values, kept), rel=1e-6, abs=1e-6)
    assert float(hl.direction_profile(model, values).error[kept]) == pytest.approx(
        error, rel=1e-6, abs=1e-6
    )
    size = model.hypernet.features(**values).square().sum(-1).mean()
    assert torch.allclose(small.hypernet.features(**values).square().sum(-1).mean(), size)


def test_cutting_leaves_the_model_alone_and_shares_nothing_but_the_primary() -> None:
    model = made().float().eval()
    before = copy.deepcopy(model.state_dict())
    small = model.truncate(2)
    assert not small.training
    own = {id(p) for p in model.hypernet.parameters()}
    assert not any(id(p) in own for p in small.hypernet.parameters())
    with torch.no_grad():
        for parameter in small.hypernet.parameters():
            parameter.zero_()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.requires_grad for p in small.hypernet.parameters())


def test_a_model_that_is_cut_is_saved_trained_and_cut_again(tmp_path: Path) -> None:
    small = made().truncate(6)
    hl.save(small, tmp_path / "m")
    again = hl.load(tmp_path / "m", mlp().double())
    assert torch.equal(
        again.predict(g=0.1, task=0)["0.bias"], small.predict(g=0.1, task=0)["0.bias"]
    )
    optimizer = hl.optim.Adam(hl.parameter_groups(small, lr=1e-2))
    x = torch.randn(4, 3, dtype=torch.float64)
    losses = []
    for _ in range(20):
        loss = small(x, g=0.5, task=1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert small.truncate(2).hypernet.head.features == 2


def test_a_model_whose_features_hardly_differ_can_be_cut() -> None:
    model = made(hidden=(6,), directions=None)
    with torch.no_grad():
        model.hypernet.trunk.layers[0].weight.zero_()  # the features are the biases
        model.hypernet.trunk.layers[0].bias.fill_(1.0)
    small = model.truncate(2)
    found, expected = small.predict(g=0.3, task=0), model.predict(g=0.3, task=0)
    for name, t in expected.items():
        assert torch.allclose(found[name], t)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.truncate(0), "truncate(0): expected an integer, 1 or more"),
        (lambda m: m.truncate(16), "truncate(16): the head reads 16 features; expected fewer"),
        (lambda m: m.truncate(2, m.sample()), "values had batch shape (); expected one batch"),
        (
            lambda m: hl.hypernetize(mlp(), SPACE, head=hl.LowRank(1)).truncate(2),
            "The head has a part LowRank; expected Dense alone",
        ),
        (
            lambda m: hl.direction_profile(hl.hypernetize(mlp(), SPACE, device="meta")),
            "is on the meta device, without values",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused(call: Any, words: str) -> None:
    with pytest.raises(hl.ConfigurationError) as caught:
        call(made())
    assert words in str(caught.value)
