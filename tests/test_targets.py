"""Selecting parameters: by glob, class, function; in the primary's own order."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hyperlight as hl
from hyperlight.targets import select
from tests.models import Aliased, Tied

SPACE = {"g": hl.Uniform(0.0, 1.0)}


def network() -> nn.Module:
    net = nn.Sequential()
    net.add_module("conv", nn.Conv2d(1, 4, 3))
    net.add_module("norm", nn.BatchNorm2d(4))
    net.add_module("block", nn.TransformerEncoderLayer(4, 2, 8))
    net.add_module("group", nn.GroupNorm(2, 4))
    net.add_module("head", nn.Linear(4, 2))
    return net


def names(targets: object) -> list[str]:
    return list(hl.hypernetize(network(), SPACE, targets).hypernet.shapes)


def test_the_default_is_all_but_normalisation_layers() -> None:
    expected = [n for n, _ in network().named_parameters() if "norm" not in n and "group" not in n]
    assert names(None) == expected
    assert len(expected) == 12


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("head.*", ["head.weight", "head.bias"]),
        ("*norm*.weight", ["norm.weight", "block.norm1.weight", "block.norm2.weight"]),
        (["head.bias", "conv.*"], ["conv.weight", "conv.bias", "head.bias"]),
        (nn.Conv2d, ["conv.weight", "conv.bias"]),
        ((nn.BatchNorm2d, "head.weight"), ["norm.weight", "norm.bias", "head.weight"]),
        (lambda name, p: p.ndim == 4, ["conv.weight"]),
        (
            [lambda name, p: name == "head.bias", nn.GroupNorm],
            ["group.weight", "group.bias", "head.bias"],
        ),
    ],
)
def test_selectors_keep_the_primarys_order(targets: object, expected: list[str]) -> None:
    assert names(targets) == expected


def test_a_class_means_all_parameters_inside() -> None:
    inside = [n for n, _ in network().named_parameters() if n.startswith("block.")]
    assert names(nn.TransformerEncoderLayer) == inside


def test_a_tied_parameter_is_one_target() -> None:
    assert list(hl.hypernetize(Tied(), SPACE).hypernet.shapes) == ["embed.weight"]
    assert list(hl.hypernetize(Tied(), SPACE, "out.weight").hypernet.shapes) == ["embed.weight"]
    assert list(hl.hypernetize(Aliased(), SPACE).hypernet.shapes) == ["first.weight", "first.bias"]


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ("hed.*", ["'hed.*' matches no parameter of Sequential", "'conv.weight'", "whole name"]),
        ("head.weigth", ["Did you mean 'head.weight'?"]),
        (nn.LSTM, ["LSTM matches no parameter", "'Conv2d'", "'Linear'"]),
        (lambda name, p: False, ["was false for every parameter", "(name, parameter)"]),
        ([], ["targets was empty", "targets=None"]),
        (["head.*", 3], ["held 3", "a glob such as '*.weight'"]),
        (["head.*", "nothing"], ["'nothing' matches no parameter"]),
    ],
)
def test_targets_that_match_nothing_are_refused(targets: object, words: list[str]) -> None:
    with pytest.raises(hl.TargetError) as error:
        hl.hypernetize(network(), SPACE, targets)
    for word in words:
        assert word in str(error.value)


def test_primaries_that_cannot_be_targets_are_refused() -> None:
    with pytest.raises(hl.TargetError, match=r"expected a torch.nn.Module"):
        hl.hypernetize(torch.relu, SPACE)
    with pytest.raises(hl.TargetError, match="has no parameters to predict"):
        hl.hypernetize(nn.ReLU(), SPACE)
    with pytest.raises(hl.TargetError, match="only parameters of normalisation layers"):
        hl.hypernetize(nn.BatchNorm1d(3), SPACE)
    with pytest.raises(hl.TargetError, match="lazy. Run the primary once"):
        hl.hypernetize(nn.LazyLinear(3), SPACE)
    primary = nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(hl.TargetError, match=r"dtype torch.complex64; only real floating-point"):
        hl.hypernetize(primary, SPACE, "*")


class Packed(torch.Tensor):
    """Eight-bit values and a scale, which answer few operations: a stand-in for torchao's."""

    @staticmethod
    def __new__(cls, values: Tensor, scale: Tensor) -> Packed:
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=scale.dtype)

    def __init__(self, values: Tensor, scale: Tensor) -> None:
        self.values, self.scale = values, scale

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        if function in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return Packed(args[0].values, args[0].scale)
        if function is torch.ops.aten.t.default:
            return (args[0].values * args[0].scale).t()
        raise RuntimeError(f"{function} is not written for packed values")


class Odd(nn.Module):
    """A linear layer, and a parameter that cannot be predicted."""

    def __init__(self, odd: Tensor) -> None:
        super().__init__()
        self.odd, self.linear = nn.Parameter(odd, requires_grad=False), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


ODD = {
    "complex": (lambda: torch.ones(2, dtype=torch.complex64), "has dtype torch.complex64"),
    "integers": (lambda: torch.ones(2, dtype=torch.uint8), "has dtype torch.uint8"),
    "eight bits": (
        lambda: torch.ones(2).to(torch.float8_e4m3fn),
        "has dtype torch.float8_e4m3fn",
    ),
    "sparse": (lambda: torch.eye(2).to_sparse_csr(), "has layout torch.sparse_csr"),
    "packed": (
        lambda: Packed(torch.ones(2, 3, dtype=torch.int8), torch.tensor(0.5)),
        "is a Packed, which holds its values in a way of its own",
    ),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize(("make", "why"), ODD.values(), ids=ODD.keys())
def test_what_cannot_be_predicted_is_left_out_with_a_warning(make: Any, why: str) -> None:
    primary = nn.Sequential(Odd(make()))
    with pytest.warns(UserWarning, match="stay the same for every input") as caught:
        model = hl.hypernetize(primary, SPACE)
    assert len(caught) == 1
    assert f"'0.odd' {why}. Only real floating-point" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert list(model.theta0) == ["0.linear.weight", "0.linear.bias"]
    model(torch.ones(4, 3), g=0.3).sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hl.hypernetize(primary, SPACE, "0.linear.*")
    for targets in ("*", "0.odd", Odd, lambda name, p: True):
        with pytest.raises(hl.TargetError) as refused:
            hl.hypernetize(primary, SPACE, targets)
        assert f"Parameter '0.odd' {why}; only real floating-point" in str(refused.value)
        assert "Leave it out of targets" in str(refused.value)


def test_a_primary_of_nothing_that_can_be_predicted_is_refused() -> None:
    with pytest.raises(hl.TargetError, match=r"'weight' has dtype torch.complex64, 'bias' has"):
        hl.hypernetize(nn.Linear(2, 2, dtype=torch.complex64), SPACE)


def test_a_packed_weight_runs_beside_predicted_ones() -> None:
    primary = nn.Linear(3, 2)
    primary.weight = nn.Parameter(ODD["packed"][0](), requires_grad=False)
    with pytest.warns(UserWarning, match="'weight' is a Packed"):
        model = hl.hypernetize(primary, SPACE)
    x = torch.randn(4, 3)
    expected = torch.nn.functional.linear(x, torch.full((2, 3), 0.5), model.predict(g=0.3)["bias"])
    assert torch.allclose(model(x, g=0.3), expected)
    # Reading its memory would end the process.
    for frozen in (True, False):
        with pytest.raises(hl.FormatError, match=r"'primary.weight' is a Packed, which"):
            hl.save(model, "never.safetensors", frozen=frozen)


def test_a_parameter_class_of_ones_own_is_predicted() -> None:
    class Tagged(nn.Parameter):
        """Carries an attribute, as those of some libraries do."""

        tag = "encoder"

    primary = nn.Linear(3, 2)
    primary.weight = Tagged(torch.randn(2, 3))
    assert list(hl.hypernetize(primary, SPACE).theta0) == ["weight", "bias"]


def test_parameters_that_are_not_predicted_are_trained_as_they_are() -> None:
    model = hl.hypernetize(network(), SPACE, "head.*")
    assert model.bind(g=0.5).conv.weight is model.primary.conv.weight


def test_normalization_layers_of_other_libraries_are_known_by_their_name() -> None:
    class TinyRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

    class PreLayerNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.block = nn.LayerNorm(3), nn.Linear(3, 3)

    primary = nn.Sequential(nn.Linear(3, 3), TinyRMSNorm(), PreLayerNorm())
    chosen = [target.name for target in select(primary)]
    assert chosen == ["0.weight", "0.bias", "2.block.weight", "2.block.bias"]
    assert [target.name for target in select(primary, TinyRMSNorm)] == ["1.weight"]
