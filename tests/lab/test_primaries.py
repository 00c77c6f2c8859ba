"""The primaries of the paper: their sizes, shapes and initial weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hyperlight.lab.primaries import LeNet, ResNetLike, UNet


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
    for layer in layers[1:]:  # those with enough weights for a standard deviation
        expected = (2.0 / layer.weight[0].numel()) ** 0.5
        assert float(layer.weight.detach().std()) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("size", [28, 8])
def test_magnitude_goes_through_at_its_initial_weights(size: int) -> None:
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
def test_magnitude_goes_through_the_larger_ones(
    net: type[nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    output = net()(torch.randn(shape))
    assert 0.3 < float(output.detach().std()) < 5.0
