"""Convolutions with several sets of weights: every way equals one after the other, in float64."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hyperlight as hl
from hyperlight.sets import Implementation, SetConvolutions

WAYS = (None, *get_args(Implementation))
FUNCTIONS: dict[int, Any] = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}


def one_by_one(function: Any, x: Tensor, w: Tensor, b: Tensor | None, own: bool, **how: Any) -> Any:
    """The twin: a convolution for every set."""
    return torch.stack(
        [
            function(x[i] if own else x, w[i], None if b is None else b[i], **how)
            for i in range(len(w))
        ]
    )


@settings(max_examples=60)
@given(data=st.data(), way=st.sampled_from(WAYS))
def test_every_way_equals_one_after_the_other(data: st.DataObject, way: Any) -> None:
    draw = data.draw
    dimensions = draw(st.integers(1, 3))
    sets, images, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    inputs, outputs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    own, biased = draw(st.booleans()), draw(st.booleans())
    how: dict[str, Any] = {
        "stride": draw(st.integers(1, 2)),
        "padding": draw(st.integers(0, 2)),
        "dilation": draw(st.integers(1, 2)),
        "groups": groups,
    }
    if draw(st.booleans()):
        how.update(stride=1, padding="same")
    size = (6,) * dimensions
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    x = random(*((sets,) if own else ()), images, inputs, *size)
    w = random(sets, outputs, inputs // groups, *(3,) * dimensions)
    b = random(sets, outputs) if biased else None
    function = FUNCTIONS[dimensions]

    def run(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        result: Tensor = function(x, w, b, **how)
        return result

    dims = (0 if own else None, 0, 0 if biased else None)
    with hl.convolutions(way) as seen, SetConvolutions():
        found = torch.vmap(run, dims)(x, w, b)
    twin = one_by_one(function, x, w, b, own, **how)
    torch.testing.assert_close(found, twin, rtol=1e-11, atol=1e-11)
    assert len(seen) == 1
    assert seen[0].implementation == way or way is None
    assert seen[0].shared == (not own)
    wanted = [tensor for tensor in (x, w, b) if tensor is not None]
    weights = torch.randn(twin.shape, dtype=torch.float64, generator=generator)
    for a, c in zip(
        torch.autograd.grad((found * weights).sum(), wanted),
        torch.autograd.grad((twin * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, c, rtol=1e-10, atol=1e-10)


def model() -> hl.HyperModel:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Conv2d(4, 3, 3)
    )
    return hl.hypernetize(net.double(), {"g": hl.Uniform(0.0, 1.0)})


@pytest.mark.parametrize("way", WAYS)
def test_a_model_runs_its_layers_as_it_is_told(way: Any) -> None:
    net, g = model(), torch.rand(5, dtype=torch.float64)
    x = torch.randn(5, 2, 8, 8, dtype=torch.float64)
    with hl.convolutions(way) as seen:
        y = net(x, g=g)
        swept = net.sweep(x[:2], g=g)
    assert [layer.implementation for layer in seen] == [way or "grouped"] * 4
    assert [layer.weight for layer in seen] == [(4, 2, 3, 3), (3, 4, 3, 3)] * 2
    assert [layer.shared for layer in seen] == [False, False, True, False]
    for i in range(5):
        torch.testing.assert_close(y[i : i + 1], net(x[i : i + 1], g=g[i]), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(swept[i], net(x[:2], g=g[i]), rtol=1e-11, atol=1e-11)


def test_large_inputs_of_several_images_run_in_a_loop() -> None:
    x, w = torch.randn(2, 4, 4, 64, 64), torch.randn(2, 3, 4, 3, 3)
    for images, expected in ((4, "loop"), (1, "grouped")):
        with hl.convolutions() as seen, SetConvolutions():
            torch.vmap(torch.conv2d)(x[:, :images], w)
        assert [layer.implementation for layer in seen] == [expected]


def test_outside_and_after_the_block_nothing_is_recorded() -> None:
    net = model()
    with hl.convolutions() as seen:
        pass
    net(torch.randn(2, 2, 8, 8, dtype=torch.float64), g=torch.rand(2))
    net(torch.randn(2, 2, 8, 8, dtype=torch.float64), g=0.5)
    assert seen == []


def test_sets_of_sets() -> None:
    x = torch.randn(2, 3, 1, 2, 6, 6, dtype=torch.float64)
    w = torch.randn(2, 3, 4, 2, 3, 3, dtype=torch.float64)
    with SetConvolutions():
        found = torch.vmap(torch.vmap(torch.conv2d))(x, w)
    twin = torch.stack(
        [one_by_one(torch.conv2d, a, b, None, True) for a, b in zip(x, w, strict=True)]
    )
    torch.testing.assert_close(found, twin, rtol=1e-11, atol=1e-11)


def test_another_name_is_refused() -> None:
    with (
        pytest.raises(
            hl.ConfigurationError,
            match=r"implementation was 'group'; expected one of .*'grouped'.*, or None for the "
            r"library's choice.",
        ),
        hl.convolutions("group"),  # type: ignore[arg-type]
    ):
        pass
