"""Normalisation strategies: their effect on a hypernetwork, against naive twins."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import hyperlight as hl
from hyperlight.lab.normalization import (
    IN_PRIMARY,
    WeightNorm,
    is_no_gain,
    normalize_features,
    normalize_over_gammas,
    normalize_weights,
)
from hyperlight.lab.primaries import Layers, ResNetLike, UNet

GAMMAS = (0.05, 0.2, 0.5)


def _resnet(normalization: Layers = "none") -> ResNetLike:
    torch.manual_seed(0)
    return ResNetLike(1, 3, (4, 4), normalization)


def _hypernetized(primary: nn.Module, classical: bool = True, **settings: object) -> hl.HyperModel:
    return hl.hypernetize(
        primary,
        inputs={"gamma": hl.Uniform(0.0, 0.5)},
        encoding=None if classical else hl.CosSin(),
        residual=not classical,
        generator=torch.Generator().manual_seed(0),
        **settings,  # type: ignore[arg-type]
    )


def _flat(predicted: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in predicted.values()])


# --- in the primary ---------------------------------------------------------------------


@pytest.mark.parametrize("make", [_resnet, lambda n="none": UNet(1, 3, 3, 4, n)])
@pytest.mark.parametrize("strategy", ["batchnorm-p", "layernorm-p"])
def test_layers_of_the_primary_follow_its_convolutions_and_are_not_predicted(
    make: Callable[..., nn.Module], strategy: str
) -> None:
    net = make(IN_PRIMARY[strategy])
    kind = nn.BatchNorm2d if strategy == "batchnorm-p" else nn.GroupNorm
    layers = [m for m in net.modules() if isinstance(m, kind)]
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    without_norm = 1 if isinstance(net, UNet) else 0  # the last convolution of a U-Net
    assert len(layers) == len(convolutions) - without_norm
    model = _hypernetized(net)
    own = {id(p) for layer in layers for p in layer.parameters()}
    assert {
        id(p) for name, p in net.named_parameters() if name not in model.predict(gamma=0.1)
    } == own
    model(torch.rand(4, 1, 9, 9), 0.3, gamma=0.3).square().sum().backward()
    norms = [m for m in model.primary.modules() if isinstance(m, kind)]
    assert all(p.grad is not None for layer in norms for p in layer.parameters())
    count = sum(p.numel() for p in make().parameters())
    assert sum(t.numel() for t in model.predict(gamma=0.1).values()) == count


def test_layer_normalisation_of_maps_is_over_all_of_a_map() -> None:
    net, x = _resnet("layer").double(), torch.rand(2, 1, 5, 7, dtype=torch.float64)
    seen: list[tuple[Tensor, Tensor]] = []
    net.stages[0].norms[0].register_forward_hook(lambda _m, a, o: seen.append((a[0], o)))
    net(x, 0.3)
    (before, after), *_ = seen
    for given_map, found in zip(before, after, strict=True):
        values = given_map.flatten().tolist()
        mean = math.fsum(values) / len(values)
        spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values) + 1e-5)
        torch.testing.assert_close(found, (given_map - mean) / spread)


def test_batch_normalisation_leaves_the_scale_of_predictions_to_gamma() -> None:
    model = _hypernetized(_resnet("batch"))
    scales = [float(_flat(model.predict(gamma=g)).std()) for g in GAMMAS]
    assert [s / scales[-1] for s in scales] == pytest.approx([0.1, 0.4, 1.0], rel=1e-3)


def test_running_statistics_are_kept_and_used() -> None:
    model = _hypernetized(_resnet("batch"), classical=False)
    norm = model.primary.stages[0].norms[0]
    before = norm.running_mean.clone()
    x = torch.rand(4, 1, 9, 9)
    model(x, 0.3, gamma=0.3)
    assert not torch.equal(norm.running_mean, before)
    model.eval()
    with torch.no_grad():
        together = model(x, 0.3, gamma=0.3)
        alone = torch.cat([model(one.unsqueeze(0), 0.3, gamma=0.3) for one in x])
    torch.testing.assert_close(together, alone)


# --- in the hypernetwork ----------------------------------------------------------------


def test_layer_normalisation_in_the_hypernetwork_makes_predictions_the_same_for_all_gammas() -> (
    None
):
    model = _hypernetized(_resnet())
    was = [_flat(model.predict(gamma=g)) for g in GAMMAS]
    assert float(was[1].norm() / was[2].norm()) == pytest.approx(0.4, rel=1e-4)
    normalize_features(model.hypernet)
    found = [_flat(model.predict(gamma=g)) for g in GAMMAS]
    assert float(found[1].norm() / found[2].norm()) == pytest.approx(1.0, rel=1e-2)
    assert float((found[1] - found[2]).norm() / found[2].norm()) < 0.01
    mip = _hypernetized(_resnet(), classical=False)
    normalize_features(mip.hypernet)  # it has two inputs, so it still depends on gamma
    one, other = (_flat(mip.predict(gamma=g)) for g in GAMMAS[1:])
    assert float((one - other).norm()) > 0.1


def test_features_equal_their_twin() -> None:
    net = hl.HyperNet(
        {"gamma": hl.Uniform(0.0, 1.0)}, {"w": (3, 2)}, hidden=(4, 5), dtype=torch.float64
    )
    before = {name: t.clone() for name, t in net.state_dict().items()}
    normalize_features(net)
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())
    assert len(net.state_dict()) == len(before) + 4
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "activations" in name:
                parameter.uniform_(0.5, 1.5)
    x = net.encode(gamma=0.3).tolist()
    for layer, activation in zip(net.trunk.layers, net.trunk.activations, strict=True):
        norm = activation[0]
        y = [
            math.fsum(w * v for w, v in zip(row, x, strict=True)) + b
            for row, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        ]
        mean = sum(y) / len(y)
        spread = math.sqrt(sum((v - mean) ** 2 for v in y) / len(y) + norm.eps)
        y = [(v - mean) / spread for v in y]
        y = [v * g + b for v, g, b in zip(y, norm.weight.tolist(), norm.bias.tolist(), strict=True)]
        x = [v if v > 0 else 0.01 * v for v in y]
    assert net.features(gamma=0.3).tolist() == pytest.approx(x, rel=1e-12)


@pytest.mark.parametrize("classical", [True, False])
def test_batch_normalisation_in_the_hypernetwork_is_over_gammas(classical: bool) -> None:
    """Beside that of a batch there are 16 others from 0 to 0.5, in training alone."""
    model, twin = (_hypernetized(_resnet(), classical).double() for _ in range(2))
    normalize_over_gammas(model.hypernet)
    norms = [m for m in model.hypernet.modules() if isinstance(m, nn.BatchNorm1d)]
    gammas = torch.cat([torch.tensor([0.3]), torch.linspace(0.0, 0.5, 16)]).double()
    x = twin.hypernet.encode(gamma=gammas)
    means = []
    for layer in twin.hypernet.trunk.layers:
        y = layer(x)
        means.append(y.mean(dim=0))
        y = (y - means[-1]) / (y.var(dim=0, unbiased=False) + 1e-5).sqrt()
        x = torch.where(y > 0, y, 0.01 * y)
    hypernet = model.hypernet

    def last(gamma: Tensor) -> Tensor:
        rows: Tensor = hypernet.trunk(hypernet.encode(gamma=gamma))
        return rows

    found = last(gammas[:1])
    torch.testing.assert_close(found, x[:1], rtol=1e-4, atol=1e-6)  # the others are in float32
    for norm, mean in zip(norms, means, strict=True):
        torch.testing.assert_close(norm.running_mean, 0.1 * mean, rtol=1e-4, atol=1e-6)
        norm.running_mean.copy_(mean.detach())
    model.eval()  # with the statistics of training, whatever else is in the call
    alone = last(gammas[:1])
    torch.testing.assert_close(last(gammas)[:1], alone)
    assert not torch.allclose(alone, found)  # the running variance has hardly moved


# --- of the predicted weights ---------------------------------------------------------------


def test_weight_normalisation_keeps_the_outputs_of_a_primary() -> None:
    for primary in (_resnet(), UNet(1, 3, 3, 4)):
        x = torch.rand(2, 1, 9, 9)
        expected, count = primary(x, 0.3), sum(1 for p in primary.parameters() if p.ndim > 1)
        normalize_weights(primary)
        torch.testing.assert_close(primary(x, 0.3), expected)
        assert sum(name.endswith(".gain") for name, _ in primary.named_parameters()) == count


@given(st.sampled_from([(3, 4), (2, 3, 3, 3), (4, 1, 1, 1), (1, 5)]), st.integers(0, 99))
def test_weight_normalisation_is_that_of_torch(shape: tuple[int, ...], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, v, upstream = (
        torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(3)
    )
    ours, holder = WeightNorm(first), nn.Module()
    holder.weight = nn.Parameter(first.clone())
    theirs = parametrizations.weight_norm(holder, dim=0).parametrizations.weight
    with torch.no_grad():
        theirs.original1.copy_(v)
    v.requires_grad_()
    found, expected = ours(v), holder.weight
    torch.testing.assert_close(found, expected)
    (found * upstream).sum().backward()
    (expected * upstream).sum().backward()
    torch.testing.assert_close(v.grad, theirs.original1.grad)
    torch.testing.assert_close(ours.gain.grad, theirs.original0.grad)


def _weights(net: nn.Module) -> dict[str, Tensor]:
    return {
        name: module.weight.detach()
        for name, module in net.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }


@pytest.mark.parametrize("classical", [True, False])
def test_directions_are_predicted_and_gains_are_trained(classical: bool) -> None:
    primary = _resnet()
    started = {n: w.flatten(1).norm(dim=1) for n, w in _weights(primary).items()}
    normalize_weights(primary)
    model = _hypernetized(primary, classical, targets=is_no_gain)
    assert not any(name.endswith(".gain") for name in model.predict(gamma=0.1))
    assert len(model.predict(gamma=0.1)) == sum(1 for _ in _resnet().parameters())
    at = [_weights(model.bind(gamma=g)) for g in GAMMAS]
    for name, norms in started.items():
        assert len(norms) == len(at[0][name])
        for weights in at:  # at any scale of the predictions
            torch.testing.assert_close(weights[name].flatten(1).norm(dim=1), norms)
    kept = "stages.0.conv1"
    distance = float((at[0][kept] - at[2][kept]).norm())
    assert distance < 1e-4 if classical else distance > 0.1
    model(torch.rand(2, 1, 9, 9), 0.3, gamma=0.3).square().sum().backward()
    gains = [p for name, p in model.named_parameters() if name.endswith(".gain")]
    assert len(gains) == len(started)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gains)


def test_a_zero_direction_is_a_zero_weight() -> None:
    primary = _resnet()
    normalize_weights(primary)
    model = _hypernetized(primary, targets=is_no_gain)
    x = torch.rand(2, 1, 9, 9)
    assert torch.count_nonzero(model(x, 0.0, gamma=0.0)) == 0
    again = copy.deepcopy(model)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x, 0.2, gamma=0.2), model(x, 0.2, gamma=0.2))
