"""The problem and the cure: equations 2 and 3 of the paper, and section 4."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hyperlight as hl

SHAPES = {"weight": (4, 3, 3), "bias": (7,)}


@given(
    # What is smaller leaves the range in which float64 has all of its digits.
    gamma=st.lists(
        st.floats(-3.0, -1e-6) | st.just(0.0) | st.floats(1e-6, 3.0), min_size=1, max_size=4
    ),
    a=st.floats(1e-3, 1e3),
    hidden=st.lists(st.integers(1, 12), min_size=0, max_size=4),
    slope=st.floats(-0.5, 1.0),
    skip=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_classical_predictions_are_proportional_to_the_input(
    gamma: list[float], a: float, hidden: list[int], slope: float, skip: bool, seed: int
) -> None:
    net = hl.HyperNet(
        {"gamma": hl.Normal(len(gamma))},
        SHAPES,
        hidden=hidden,
        activation=nn.LeakyReLU(slope),
        encoding=None,
        skip=skip,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
    )
    value = torch.tensor(gamma, dtype=torch.float64)
    once, scaled = net(gamma=value), net(gamma=a * value)
    for name in SHAPES:
        room = 1e-12 * a * float(once[name].detach().abs().max()) + 1e-12 * a * float(value.norm())
        assert torch.allclose(scaled[name], a * once[name], rtol=1e-12, atol=room)


@given(exponent=st.integers(-8, 8), skip=st.booleans(), seed=st.integers(0, 2**31))
def test_a_power_of_two_passes_through_without_any_rounding(
    exponent: int, skip: bool, seed: int
) -> None:
    a = 2.0**exponent
    net = hl.HyperNet(
        {"gamma": hl.Normal(2)},
        SHAPES,
        hidden=(6, 6),
        activation="relu",
        encoding=None,
        skip=skip,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
    )
    value = torch.tensor([0.3, -0.7], dtype=torch.float64)
    once, scaled = net(gamma=value), net(gamma=a * value)
    assert all(torch.equal(scaled[name], a * once[name]) for name in SHAPES)


def test_mip_breaks_the_proportionality() -> None:
    net = hl.HyperNet({"gamma": hl.Uniform(0.0, 1.0)}, SHAPES, dtype=torch.float64)
    once, twice = net(gamma=0.4), net(gamma=0.8)
    assert not torch.allclose(twice["weight"], 2 * once["weight"], rtol=0.1)


@pytest.mark.parametrize("space", [hl.Uniform(0.0, 1.0), hl.LogUniform(1e-4, 1.0), hl.Normal()])
def test_the_spread_of_mip_predictions_does_not_depend_on_gamma(space: hl.Input) -> None:
    """At every gamma the spread over initialisations of the predicted change is the same.

    For one gamma and n independent initialisations, each predicted entry has
    E[delta^2] = sigma^2 E|f|^2 with sigma^2 = 2 / P, and E|f|^2 the same for every encoded vector.
    The estimate below averages |delta|^2 over 200 initialisations; |delta|^2 given f is
    |f|^2 chi^2_P / P, and |f|^2 varies by a relative sd below 0.5 at widths 64, 64, so the mean
    has a relative standard error of at most sqrt(0.25 + 2 / P) / sqrt(200) < 0.04.
    Bound: 5 standard errors for each gamma.
    """
    seeds, grid = 200, space.grid(5, dtype=torch.float64)
    mip, classical = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for seed in range(seeds):
        for total, encoding in ((mip, hl.CosSin()), (classical, None)):
            net = hl.HyperNet(
                {"gamma": space},
                {"w": (20, 20)},
                hidden=(64, 64),
                encoding=encoding,
                dtype=torch.float64,
                generator=torch.Generator().manual_seed(seed),
            )
            total += net(gamma=grid)["w"].flatten(1).square().sum(dim=1) / (2 * seeds)
    assert torch.allclose(mip, torch.ones_like(mip), atol=5 * 0.04)
    expected = grid.square()
    assert torch.allclose(classical, expected, rtol=5 * 0.04, atol=1e-12)


@pytest.mark.parametrize("dimensions", [1, 2, 8, 32, 128])
def test_unit_norm_keeps_the_spread_as_inputs_are_added_and_the_papers_does_not(
    dimensions: int,
) -> None:
    """Design D5; relative standard error as above, with 100 initialisations below 0.06."""
    found = {}
    for per_input in (False, True):
        squares = []
        for seed in range(100):
            net = hl.HyperNet(
                {"gamma": hl.Normal(dimensions)},
                {"w": (20, 20)},
                hidden=(64, 64),
                encoding=hl.CosSin(per_input),
                generator=torch.Generator().manual_seed(seed),
            )
            squares.append(net(gamma=torch.zeros(dimensions))["w"].square().sum().item() / 2)
        found[per_input] = sum(squares) / len(squares)
    assert found[False] == pytest.approx(1.0, abs=5 * 0.06)
    assert found[True] == pytest.approx(dimensions, rel=5 * 0.06)


def test_the_scale_profile_tells_the_two_apart() -> None:
    def profile(**switches: object) -> hl.ScaleProfile:
        primary = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10))
        inputs = {"gamma": hl.Uniform(0.0, 1.0)}
        return hl.scale_profile(hl.hypernetize(primary, inputs, **switches))

    classical, mip = profile(encoding=None, residual=False), profile()
    assert classical.correlation == pytest.approx(1.0, abs=1e-6)
    # the scale is c * gamma, of which mean and sd over the 33 points of the grid are known
    exact = torch.linspace(0, 1, 33, dtype=torch.float64)
    assert classical.variation == pytest.approx(
        float(exact.std(correction=0) / exact.mean()), rel=1e-5
    )
    assert math.isinf(classical.ratio)
    assert mip.variation < 0.1
    assert "gamma: predicted weights have std" in str(mip)
