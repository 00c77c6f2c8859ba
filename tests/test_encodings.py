"""Encodings: constant norm, whatever the inputs and their number."""

from __future__ import annotations

import abc
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hyperlight as hl
from tests.reference import naive_encoding

unit = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=40)


@given(unit)
def test_the_whole_vector_has_norm_one(values: list[float]) -> None:
    u = torch.tensor(values, dtype=torch.float64)
    encoded = hl.CosSin()(u)
    assert encoded.shape == (2 * len(values),)
    assert encoded.norm().item() == pytest.approx(1.0, abs=1e-12)


@given(unit)
def test_per_input_every_pair_has_norm_one(values: list[float]) -> None:
    u = torch.tensor(values, dtype=torch.float64)
    encoded = hl.CosSin(per_input=True)(u)
    pairs = encoded.reshape(2, len(values))
    assert torch.allclose(pairs.norm(dim=0), torch.ones(len(values), dtype=torch.float64))
    assert encoded.norm().item() == pytest.approx(math.sqrt(len(values)), rel=1e-12)


@given(st.floats(0.0, 1.0))
def test_the_encoding_is_the_papers(u: float) -> None:
    expected = torch.tensor([math.cos(u * math.pi / 2), math.sin(u * math.pi / 2)])
    for encoding in (hl.CosSin(), hl.CosSin(per_input=True)):
        assert torch.allclose(encoding(torch.tensor([u])), expected, atol=1e-6)


@pytest.mark.parametrize(
    "spaces",
    [
        {"a": hl.Uniform(-3.0, 4.0)},
        {"a": hl.LogUniform(1e-5, 1.0), "b": hl.Normal(7), "c": hl.Uniform(0.0, 1.0, (2, 2))},
        {"a": hl.Vector(32, loc=1.0), "b": hl.Normal()},
    ],
)
@pytest.mark.parametrize("per_input", [False, True])
def test_the_norm_is_constant_over_every_space_and_over_inputs_together(
    spaces: dict[str, hl.Input], per_input: bool
) -> None:
    net = hl.HyperNet(spaces, {"w": (2,)}, encoding=hl.CosSin(per_input), dtype=torch.float64)
    norms = net.encode(**net.sample((500,))).norm(dim=-1)
    size = sum(space.numel for space in spaces.values())
    expected = math.sqrt(size) if per_input else 1.0
    assert torch.allclose(norms, torch.full_like(norms, expected))


def test_no_encoding_is_the_raw_values_and_as_many_zeros() -> None:
    net = hl.HyperNet({"a": hl.Uniform(0.0, 10.0), "b": hl.Normal(2)}, {"w": (2,)}, encoding=None)
    encoded = net.encode(a=7.0, b=torch.tensor([-1.0, 2.0]))
    assert encoded.tolist() == [7.0, -1.0, 2.0, 0.0, 0.0, 0.0]


class Squares(hl.Encoding):
    def output_size(self, inputs: int) -> int:
        return inputs

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        return u**2


@pytest.mark.parametrize("encoding", [Squares(), nn.Linear(2, 5), nn.Identity()])
def test_any_module_can_be_an_encoding_and_is_given_normalized_inputs(encoding: nn.Module) -> None:
    net = hl.HyperNet({"a": hl.Uniform(0.0, 10.0, 2)}, {"w": (2,)}, encoding=encoding)
    a = torch.tensor([5.0, 10.0])
    assert torch.equal(net.encode(a=a), net.encoding(torch.tensor([0.5, 1.0])))
    assert net(a=a)["w"].shape == (2,)


def test_what_is_no_encoding_is_refused() -> None:
    with pytest.raises(hl.ConfigurationError, match="expected a module such as CosSin"):
        hl.HyperNet({"a": hl.Normal()}, {"w": (2,)}, encoding=hl.CosSin)


class Sum(nn.Module):
    def forward(self, u: torch.Tensor) -> torch.Tensor:
        return u.sum()


def test_a_module_that_does_not_encode_is_refused() -> None:
    with pytest.raises(hl.ConfigurationError, match=r"gave \(\) for an input of shape \(1, 2\)"):
        hl.HyperNet({"a": hl.Normal(2)}, {"w": (2,)}, encoding=Sum())


@pytest.mark.parametrize(
    "kind",
    [
        hl.CosSin,
        hl.Dense,
        hl.LowRank,
        hl.Chunked,
        hl.PerLayer,
        hl.ChannelScale,
        hl.HyperNet,
        hl.HyperModel,
    ],
)
@pytest.mark.parametrize("abstract_first", [True, False])
def test_our_modules_combine_with_abstract_modules(kind: type, abstract_first: bool) -> None:
    """As meta-learning libraries do for every submodule, in the order of bases that they chose."""
    bases = (abc.ABC, nn.Module) if abstract_first else (nn.Module, abc.ABC)
    base = abc.ABCMeta("Base", bases, {})
    combined = abc.ABCMeta("Combined", (kind, base), {})
    assert issubclass(combined, kind)


def test_encodings_and_heads_without_their_methods_cannot_be_made() -> None:
    for base in (hl.Encoding, hl.Head):
        with pytest.raises(TypeError, match="abstract"):
            type("Unfinished", (base,), {})()


# --- several --------------------------------------------------------------------------------

SEVERAL = {"a": hl.Uniform(0.0, 1.0), "z": hl.Normal(3), "b": hl.Uniform(0.0, 2.0)}


@given(
    a=st.floats(0.0, 1.0),
    b=st.floats(0.0, 2.0),
    z=st.lists(st.floats(-3.0, 3.0), min_size=3, max_size=3),
)
def test_every_input_has_the_encoding_of_its_pattern(a: float, b: float, z: list[float]) -> None:
    """Those of one pattern together, weighted by their share of the scalars."""
    net = hl.HyperNet(
        {**SEVERAL, "c": hl.Categorical(4)},
        {"w": (2,)},
        hidden=(3,),
        encoding={"z": hl.CosSin(), "*": hl.CosSin()},
        dtype=torch.float64,
    )
    vector = torch.tensor(z, dtype=torch.float64)
    found = net.encode(a=a, b=b, z=vector, c=1)
    rows = [[1.0 / (1.0 + math.exp(-v)) for v in z], [a, b / 2.0]]
    expected = [  # six inputs: three entries, two scalars, a category
        math.sqrt(len(row) / 6) * v for row in rows for v in naive_encoding(row, "unit")
    ]
    assert found[:10].tolist() == pytest.approx(expected, abs=1e-9)
    assert found.norm().item() == pytest.approx(1.0, abs=1e-12)


def test_one_input_may_stay_as_it_is() -> None:
    net = hl.HyperNet(SEVERAL, {"w": (2,)}, encoding={"z": None, "?": hl.CosSin(per_input=True)})
    z = torch.tensor([3.0, -7.0, 0.5])
    encoded = net.encode(a=0.0, b=2.0, z=z)
    expected = [3.0, -7.0, 0.5, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    assert encoded.tolist() == pytest.approx(expected, abs=1e-6)
    assert not net.encoding.unit_norm


def test_several_encodings_are_copied_trained_and_checked() -> None:
    own = nn.Linear(3, 4)
    model = hl.hypernetize(nn.Linear(2, 3), SEVERAL, encoding={"z": own, "*": hl.CosSin()})
    assert model.hypernet.encoding.parts[0] is not own
    assert not set(own.parameters()) & set(model.parameters())
    assert "encoding.parts.0.weight" in model.hypernet.state_dict()
    report = hl.testing.check_hypernet(model, torch.randn(4, 2))
    assert "encoding" in report.passed


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ({}, "encoding was an empty mapping; expected globs over inputs and encodings"),
        ({"a": 3, "*": None}, "encoding held 'a': 3; expected globs"),
        ({"a": hl.CosSin}, "encoding held 'a': <class"),
        ({"a": None}, "No pattern of encoding={...} matches the input 'z'; the patterns are 'a'."),
        ({"*": None, "a": None}, "The pattern 'a' of encoding={...} gets none of the inputs"),
        ({"c": None, "*": None}, "Categories and hl.Encoded inputs have no encoding"),
    ],
)
def test_patterns_that_do_not_fit_are_refused(encoding: object, words: str) -> None:
    with pytest.raises(hl.ConfigurationError) as error:
        hl.HyperNet({**SEVERAL, "c": hl.Categorical(4)}, {"w": (2,)}, encoding=encoding)
    assert words in str(error.value)
