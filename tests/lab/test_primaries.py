"""Primaries of the paper: sizes, shapes and initial weights."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hyperlight as hl
from hyperlight.lab.primaries import LeNet, ResNetLike, UNet, rescale
from tests.reference import copied_primary, rescaling


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("size", "parameters"), [(28, 32_018), (8, 20_146)])
def test_parameter_counts_are_those_of_its_docstring(size: int, parameters: int) -> None:
    assert _count(LeNet(size)) == parameters
    assert f"{parameters:,} parameters" in (LeNet.__doc__ or "")


@pytest.mark.parametrize("size", [28, 8])
@pytest.mark.parametrize("batch", [1, 5])
def test_one_logit_per_class(size: int, batch: int) -> None:
    assert LeNet(size)(torch.rand(batch, 1, size, size)).shape == (batch, 10)
    net = LeNet(size, channels=3, classes=4)
    assert net(torch.rand(batch, 3, size, size)).shape == (batch, 4)


@pytest.mark.parametrize("size", [28, 8])
def test_the_last_map_is_one_pixel_of_64_features(size: int) -> None:
    encoded = LeNet(size).encoder[:-1](torch.rand(2, 1, size, size))
    assert encoded.shape == (2, 64, 1, 1)


@pytest.mark.parametrize("size", [0, 7, 9, 27, 32])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"size was {size}; expected 28 .* or 8"):
        LeNet(size)


@pytest.mark.parametrize("size", [28, 8])
def test_kaiming_weights_and_zero_biases(size: int) -> None:
    torch.manual_seed(0)
    layers = [m for m in LeNet(size).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 6
    for layer in layers:
        assert layer.bias is not None
        assert torch.count_nonzero(layer.bias) == 0
    for layer in layers[1:]:  # layers with enough weights for a standard deviation
        expected = (2.0 / layer.weight[0].numel()) ** 0.5
        assert float(layer.weight.detach().std()) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("size", [28, 8])
def test_magnitude_is_kept_at_initialisation(size: int) -> None:
    torch.manual_seed(0)
    logits = LeNet(size)(torch.randn(256, 1, size, size))
    assert 0.3 < float(logits.detach().std()) < 5.0


@pytest.mark.parametrize(("kind", "parameters"), [(ResNetLike, 629_398), (UNet, 195_266)])
def test_the_larger_ones_have_the_sizes_of_their_docstrings(
    kind: type[nn.Module], parameters: int
) -> None:
    assert _count(kind()) == parameters
    assert f"{parameters:,} parameters" in (kind.__doc__ or "")


@pytest.mark.parametrize("size", [(64, 64), (40, 33)])
def test_resnet_like_gives_one_logit_per_class(size: tuple[int, int]) -> None:
    assert ResNetLike()(torch.rand(2, 3, *size)).shape == (2, 102)
    assert ResNetLike(1, 7)(torch.rand(2, 1, *size)).shape == (2, 7)


def test_resnet_like_halves_the_map_in_each_of_its_stages() -> None:
    net = ResNetLike()
    sizes: list[tuple[int, ...]] = []
    net.pool.register_forward_hook(lambda _m, _a, output: sizes.append(tuple(output.shape[1:])))
    net(torch.rand(1, 3, 64, 64))
    assert sizes == [(16, 32, 32), (32, 16, 16), (64, 8, 8), (128, 4, 4), (128, 2, 2)]


@pytest.mark.parametrize("size", [(32, 32), (37, 50)])
def test_unet_keeps_height_and_width(size: tuple[int, int]) -> None:
    assert UNet()(torch.rand(2, 2, *size)).shape == (2, 2, *size)
    assert UNet(1, 5, levels=3, channels=4)(torch.rand(2, 1, *size)).shape == (2, 5, *size)
    assert UNet(levels=1)(torch.rand(2, 2, *size)).shape == (2, 2, *size)


def test_unet_has_two_convolutions_in_each_stage_and_reads_every_map() -> None:
    net = UNet()
    assert [len(stage) for stage in net.encoder] == [4] * 5
    assert [len(stage) for stage in net.decoder] == [4] * 4
    net(torch.rand(1, 2, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_unet_without_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="levels was 0; expected 1 or more"):
        UNet(levels=0)


@pytest.mark.parametrize(("net", "shape"), [(ResNetLike, (16, 3, 64, 64)), (UNet, (4, 2, 64, 64))])
def test_the_larger_ones_keep_the_magnitude(net: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    output = net()(torch.randn(shape))
    assert 0.3 < float(output.detach().std()) < 5.0


# --- fractional rescaling ---------------------------------------------------------------


def _maps(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 64), st.booleans(), st.integers(0, 99))
def test_rescaling_equals_its_twin(
    height: int, width: int, parts: int, antialias: bool, seed: int
) -> None:
    maps, factor = _maps(1, 2, height, width, seed=seed), Fraction(parts, 64)
    found = rescale(maps, float(factor), antialias)
    size = rescaling.side(height, factor), rescaling.side(width, factor)
    assert tuple(found.shape) == (1, 2, *size)
    for channel in range(2):
        twin = rescaling.resize(maps[0, channel], *size, antialias)
        torch.testing.assert_close(found[0, channel], twin)


@given(st.integers(1, 300), st.floats(0.0, 1.0))
def test_a_side_is_the_nearest_to_the_scaled_side(n: int, factor: float) -> None:
    found = rescale(torch.empty(1, 1, n, 1), factor).shape[-2]
    assert found == 1 or abs(found - n * factor) <= 0.5 + 1e-6 * n
    assert found >= rescale(torch.empty(1, 1, n, 1), 0.9 * factor).shape[-2]


def test_a_factor_in_single_precision_gives_the_same_sizes() -> None:
    for n in range(1, 41):  # many of these products end in a half
        for hundredths in range(51):
            factor, maps = hundredths / 100, torch.empty(1, 1, n, 1)
            assert rescale(maps, float(torch.tensor(factor))).shape == rescale(maps, factor).shape


@given(st.integers(2, 99), st.integers(2, 99))
def test_a_half_gives_the_sizes_of_pooling_and_the_mean_of_four(height: int, width: int) -> None:
    maps = torch.rand(1, 1, height, width)
    found = rescale(maps, 0.5)
    assert found.shape == nn.MaxPool2d(2)(maps).shape
    if not (height % 2 or width % 2):
        torch.testing.assert_close(found, nn.AvgPool2d(2)(maps))


def test_at_zero_a_map_is_the_mean_of_its_middle_or_of_all_pixels() -> None:
    maps = _maps(2, 3, 6, 5)
    torch.testing.assert_close(rescale(maps, 0.0)[..., 0, 0], maps[..., 2:4, 2].mean(dim=-1))
    changed = maps.clone()
    changed[..., 0, 0] += 1.0
    assert torch.equal(rescale(changed, 0.0), rescale(maps, 0.0))
    assert not torch.equal(rescale(changed, 0.0, True), rescale(maps, 0.0, True))


@pytest.mark.parametrize("factor", [-0.1, 1.1, float("nan")])
def test_factors_that_do_not_shrink_are_refused(factor: float) -> None:
    with pytest.raises(ValueError, match=f"factor was {factor}; expected a number from 0 to 1"):
        rescale(torch.rand(1, 1, 4, 4), factor)


def _seen(net: nn.Module, kind: type[nn.Module], x: Tensor, factor: float) -> list[tuple[int, ...]]:
    """Heights and widths of the inputs of the stages of that kind, in order."""
    sizes: list[tuple[int, ...]] = []
    for module in net.modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda _m, a, _o: sizes.append(tuple(a[0].shape[-2:])))
    net(x, factor)
    return sizes


def test_every_stage_gets_a_map_scaled_by_the_factor() -> None:
    from hyperlight.lab.primaries import _Double, _Residual

    resnet = ResNetLike(1, 3, (2, 2, 2))
    x = torch.rand(1, 1, 40, 30)
    assert _seen(resnet, _Residual, x, 0.25) == [(40, 30), (10, 7), (2, 2)]
    unet = UNet(1, 3, levels=3, channels=2)
    up_and_down = [(40, 30), (10, 7), (2, 2), (10, 7), (40, 30)]
    assert _seen(unet, _Double, x, 0.25) == up_and_down


@pytest.mark.parametrize("factor", [0.0, 0.05, 0.3, 0.5])
@pytest.mark.parametrize("size", [(1, 1), (5, 1), (31, 18)])
@pytest.mark.parametrize("antialias", [False, True])
def test_any_size_works_at_any_factor(
    factor: float, size: tuple[int, int], antialias: bool
) -> None:
    x = torch.rand(2, 1, *size)
    logits = ResNetLike(1, 7, (4, 4, 4), antialias=antialias)(x, factor)
    assert logits.shape == (2, 7)
    labels = UNet(1, 5, levels=4, channels=4, antialias=antialias)(x, factor)
    assert labels.shape == (2, 5, *size)
    assert logits.isfinite().all()
    assert labels.isfinite().all()


@pytest.mark.parametrize("antialias", [False, True])
def test_networks_at_a_factor_equal_their_twin(antialias: bool) -> None:
    def resized(maps: Tensor, size: tuple[int, int], smooth: bool = antialias) -> Tensor:
        return torch.stack([rescaling.resize(m, *size, smooth) for m in maps[0]]).unsqueeze(0)

    x = _maps(1, 1, 9, 6)
    resnet = ResNetLike(1, 3, (2, 2), antialias=antialias).double()
    first = resized(resnet.stages[0](x), (4, 2))
    second = resized(resnet.stages[1](first), (2, 1))
    torch.testing.assert_close(resnet(x, 0.4), resnet.classifier(second.mean(dim=(-2, -1))))
    unet = UNet(1, 3, levels=2, channels=2, antialias=antialias).double()
    outer = unet.encoder[0](x)
    inner = unet.encoder[1](resized(outer, (4, 2)))
    joined = torch.cat([resized(inner, (9, 6), False), outer], dim=1)
    torch.testing.assert_close(unet(x, 0.4), unet.head(unet.decoder[0](joined)))


@pytest.mark.parametrize("factor", [0.0, 0.2, 0.5])
def test_predicted_weights_are_used_at_a_factor(factor: float) -> None:
    for primary in (ResNetLike(1, 3, (4, 4)), UNet(1, 3, levels=3, channels=4)):
        model = hl.hypernetize(primary, inputs={"gamma": hl.Uniform(0.0, 0.5)}, hidden=(4,))
        x = torch.rand(2, 1, 12, 10)
        twin = copied_primary(primary, model.predict(gamma=factor))
        torch.testing.assert_close(model(x, factor, gamma=factor), twin(x, factor))
        model(x, factor, gamma=factor).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in primary.parameters())


@pytest.mark.parametrize(("net", "shape"), [(ResNetLike, (16, 3, 64, 64)), (UNet, (4, 2, 64, 64))])
@pytest.mark.parametrize("factor", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("normalization", ["none", "batch", "layer"])
def test_magnitude_is_kept_at_every_factor(
    net: type[nn.Module], shape: tuple[int, ...], factor: float, normalization: str
) -> None:
    torch.manual_seed(0)
    output = net(normalization=normalization)(torch.randn(shape), factor)
    assert 0.1 < float(output.detach().std()) < 5.0
