"""Convolutions with several sets of weights: every way equals one after the other, in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hyperlight as hl
from hyperlight.many import convolutions
from hyperlight.many.convolutions import SetConvolutions

WAYS = (None, "grouped", "loop")  # None is the choice of the library
FUNCTIONS: dict[int, Any] = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}


@contextlib.contextmanager
def running(way: str | None = None) -> Iterator[list[str]]:
    """Have convolutions run that way, and list the ways in which they ran."""
    seen: list[str] = []

    def noting(name: str) -> mock._patch[Any]:
        own = getattr(convolutions, name)

        def noted(*args: Any) -> Tensor:
            seen.append(name.removeprefix("_"))
            result: Tensor = own(*args)
            return result

        return mock.patch.object(convolutions, name, noted)

    with contextlib.ExitStack() as stack:
        for name in ("_product", "_loop", "_grouped"):
            stack.enter_context(noting(name))
        if way is not None:
            for rule, answer in (("_is_covered", False), ("_loop_is_faster", way == "loop")):
                fixed = mock.Mock(return_value=answer)
                stack.enter_context(mock.patch.object(convolutions, rule, fixed))
        yield seen


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
    own, biased, one_bias = (draw(st.booleans()) for _ in range(3))
    how: dict[str, Any] = {
        "stride": draw(st.integers(1, 2)),
        "padding": draw(st.integers(0, 2)),
        "dilation": draw(st.integers(1, 2)),
        "groups": groups,
    }
    size, kernel = (6,) * dimensions, (3,) * dimensions
    if draw(st.booleans()):
        how.update(stride=1, padding="same")
    elif draw(st.booleans()):
        kernel = size  # it covers the image, but for what padding adds
        how["dilation"] = 1
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    x = random(*((sets,) if own else ()), images, inputs, *size)
    w = random(sets, outputs, inputs // groups, *kernel)
    b = random(*(() if one_bias else (sets,)), outputs) if biased else None
    function = FUNCTIONS[dimensions]

    def run(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        result: Tensor = function(x, w, b, **how)
        return result

    dims = (0 if own else None, 0, 0 if biased and not one_bias else None)
    with running(way) as seen, SetConvolutions():
        found = torch.vmap(run, dims)(x, w, b)
    biases = b.expand(sets, -1) if b is not None else None
    twin = one_by_one(function, x, w, biases, own, **how)
    torch.testing.assert_close(found, twin, rtol=1e-11, atol=1e-11)
    assert len(seen) == 1
    assert way is None or seen == [way if own else "grouped"]
    wanted = [tensor for tensor in (x, w, b) if tensor is not None]
    weights = torch.randn(twin.shape, dtype=torch.float64, generator=generator)
    for a, c in zip(
        torch.autograd.grad((found * weights).sum(), wanted),
        torch.autograd.grad((twin * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, c, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("how", [{}, {"groups": 2}, {"padding": 1}, {"padding": "valid"}])
@pytest.mark.parametrize("biased", [True, False])
def test_a_kernel_that_covers_the_image(how: dict[str, Any], biased: bool) -> None:
    inputs = 4 // how.get("groups", 1)
    x = torch.randn(3, 5, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 6, inputs, 2, 3, dtype=torch.float64, requires_grad=True)
    b = torch.randn(3, 6, dtype=torch.float64) if biased else None
    with SetConvolutions():
        found = torch.vmap(lambda *t: torch.conv2d(*t, **how), (0, 0, 0 if biased else None))(
            x, w, b
        )
    twin = one_by_one(torch.conv2d, x, w, b, True, **how)
    torch.testing.assert_close(found, twin, rtol=1e-12, atol=1e-12)
    for a, c in zip(
        torch.autograd.grad(found.square().sum(), (x, w)),
        torch.autograd.grad(twin.square().sum(), (x, w)),
        strict=True,
    ):
        torch.testing.assert_close(a, c, rtol=1e-11, atol=1e-11)


POOLING: dict[str, tuple[int, Any]] = {
    "max": (2, nn.MaxPool2d(2)),
    "max with indices": (2, nn.MaxPool2d(3, 2, 1, return_indices=True)),
    "max 1d": (1, nn.MaxPool1d(2)),
    "max 3d": (3, nn.MaxPool3d(2, ceil_mode=True)),
    "average": (2, nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
    "average 1d": (1, nn.AvgPool1d(2)),
    "average 3d": (3, nn.AvgPool3d(2)),
    "adaptive": (2, nn.AdaptiveAvgPool2d((2, 3))),
    "adaptive 1d": (1, nn.AdaptiveAvgPool1d(2)),
    "adaptive 3d": (3, nn.AdaptiveAvgPool3d(2)),
    "adaptive max": (2, nn.AdaptiveMaxPool2d(2)),
    "adaptive max 1d": (1, nn.AdaptiveMaxPool1d(2, return_indices=True)),
    "adaptive max 3d": (3, nn.AdaptiveMaxPool3d(2)),
    "function": (2, lambda x: torch.max_pool2d(x, 2)),
}


@pytest.mark.parametrize("name", POOLING)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("nested", [False, True])
def test_pooling_equals_one_after_the_other(name: str, dim: int, nested: bool) -> None:
    dimensions, layer = POOLING[name]
    x = torch.randn(2, 3, 4, 2, *(5,) * dimensions, dtype=torch.float64, requires_grad=True)
    x = x if nested else x[0]
    inner = torch.vmap(layer, in_dims=dim, out_dims=dim)
    with SetConvolutions():
        found = torch.vmap(inner)(x) if nested else inner(x)
    sets = x if nested else x.unsqueeze(0)
    parts = [[layer(part) for part in own.unbind(dim)] for own in sets]

    def stacked(pick: Any) -> Tensor:
        rows = torch.stack([torch.stack([pick(part) for part in own], dim) for own in parts])
        return rows if nested else rows[0]

    if not isinstance(found, tuple):
        twin = stacked(lambda part: part)
        assert torch.equal(found, twin)
        grads = (torch.autograd.grad(out.square().sum(), x)[0] for out in (found, twin))
        assert torch.equal(*grads)
    else:
        assert torch.equal(found[0], stacked(lambda part: part[0]))
        assert torch.equal(found[1], stacked(lambda part: part[1]))


def test_pooling_keeps_sets_where_a_grouped_convolution_has_them() -> None:
    x = torch.randn(4, 3, 2, 6, 6)  # images, sets, channels
    with SetConvolutions():
        y = torch.vmap(nn.MaxPool2d(2), in_dims=1, out_dims=1)(x)
    assert y.is_contiguous()


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
    with running(way) as seen:
        y = net(x, g=g)
        swept = net.sweep(x[:2], g=g)
    chosen = way or "grouped"
    assert seen == [chosen, chosen, "grouped", chosen]  # the image of a sweep is shared at first
    for i in range(5):
        torch.testing.assert_close(y[i : i + 1], net(x[i : i + 1], g=g[i]), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(swept[i], net(x[:2], g=g[i]), rtol=1e-11, atol=1e-11)


def test_large_inputs_of_several_images_run_in_a_loop() -> None:
    x, w = torch.randn(2, 4, 4, 64, 64), torch.randn(2, 3, 4, 3, 3)
    for images, expected in ((4, "loop"), (1, "grouped")):
        with running() as seen, SetConvolutions():
            torch.vmap(torch.conv2d)(x[:, :images], w)
        assert seen == [expected]


def test_sets_of_sets() -> None:
    x = torch.randn(2, 3, 1, 2, 6, 6, dtype=torch.float64)
    w = torch.randn(2, 3, 4, 2, 3, 3, dtype=torch.float64)
    with SetConvolutions():
        found = torch.vmap(torch.vmap(torch.conv2d))(x, w)
    twin = torch.stack(
        [one_by_one(torch.conv2d, a, b, None, True) for a, b in zip(x, w, strict=True)]
    )
    torch.testing.assert_close(found, twin, rtol=1e-11, atol=1e-11)
