"""Selecting parameters: by glob, class, function; in the primary's own order."""

from __future__ import annotations

import pytest
import torch
from torch import nn

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
