"""``model.at``: a plain module of the primary's own class, with no trace of the hypernetwork."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import hyperlight as hl
from tests.reference.twins import copied_primary


class Small(nn.Module):
    """A user's class, with a tied weight, a buffer, a method and a normalisation layer."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.embed = nn.Linear(width, width, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.out = nn.Linear(width, width)
        self.out.weight = self.embed.weight

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.embed(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encode(x))


def _model() -> hl.HyperModel:
    torch.manual_seed(0)
    primary = Small()
    primary(torch.randn(20, 6))  # moves the running statistics
    return hl.hypernetize(primary, inputs={"scale": hl.Uniform(0.0, 0.5)}).eval()


def test_it_is_the_primary_with_the_weights_of_gamma() -> None:
    model = _model()
    plain = model.at(scale=0.2)
    x = torch.randn(5, 6)
    assert type(plain) is Small
    assert not plain.training
    assert torch.equal(plain(x), model(x, scale=0.2))
    assert torch.equal(plain(x), copied_primary(model.primary, model.predict(scale=0.2))(x))
    assert torch.equal(plain.encode(x), model.bind(scale=0.2).encode(x))
    assert plain.out.weight is plain.embed.weight  # still tied
    assert all(isinstance(p, nn.Parameter) and p.is_leaf for p in plain.parameters())


def test_it_is_independent() -> None:
    model = _model()
    x = torch.randn(5, 6)
    plain = model.at(scale=0.2)
    before = plain(x), model(x, scale=0.2), copy.deepcopy(model.primary.state_dict())
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(1.0)
    plain.train()(x)
    assert torch.equal(model(x, scale=0.2), before[1])
    assert not model.primary.training
    for name, tensor in model.primary.state_dict().items():
        assert torch.equal(tensor, before[2][name])
    with torch.no_grad():
        other = model.at(scale=0.2).eval()
        model.primary.embed.weight.zero_()
        model.primary.norm.running_mean.zero_()
    assert torch.equal(other(x), before[0])


def test_no_gradient_goes_back() -> None:
    model = _model()
    model.at(scale=0.2)(torch.randn(5, 6)).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_its_state_dict_loads_into_the_users_class() -> None:
    model = _model()
    fresh = Small().eval()
    fresh.load_state_dict(model.at(scale=0.4).state_dict())
    x = torch.randn(5, 6)
    assert torch.equal(fresh(x), model(x, scale=0.4))


def test_it_exports() -> None:
    model = _model()
    x = torch.randn(5, 6)
    program = torch.export.export(model.at(scale=0.1), (x,))
    torch.testing.assert_close(program.module()(x), model(x, scale=0.1))
    assert not any("hypernet" in name for name in program.state_dict)


def test_low_rank_changes_are_in_its_weights() -> None:
    torch.manual_seed(0)
    model = hl.hypernetize(nn.Linear(40, 30), inputs={"z": hl.Normal(2)}, head=hl.LowRank(2))
    z, x = torch.randn(2), torch.randn(5, 40)
    plain = model.at(z=z)
    assert type(plain) is nn.Linear
    torch.testing.assert_close(plain(x), model(x, z=z))


class Keeping(nn.Module):
    """Keeps what it computes from its weights."""

    kept: Any

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.tables: dict[int, Tensor] = {}
        self.register_buffer("kept", None)
        self.double: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.double is None:
            self.double = 2.0 * self.layer.weight
        if self.kept is None:
            self.kept = self.layer.weight.square()
        if 0 not in self.tables:
            self.tables[0] = self.layer.weight.abs()
        return x @ self.double @ self.kept @ self.tables[0]


def test_what_the_primary_has_computed_from_its_weights_is_not_taken_over() -> None:
    torch.manual_seed(0)
    primary, x = nn.Sequential(Keeping()), torch.randn(5, 6)
    model = hl.hypernetize(primary, inputs={"scale": hl.Uniform(0.0, 0.5)})
    with torch.no_grad():
        before = primary(x)
        expected = model.bind(scale=0.2)(x)
    plain = model.at(scale=0.2)
    torch.testing.assert_close(plain(x), expected)
    assert not torch.allclose(plain(x), before)
    assert torch.equal(primary(x), before)  # the primary keeps its own


def test_parametrized_modules_keep_their_parametrization() -> None:
    torch.manual_seed(0)
    primary = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    model = hl.hypernetize(primary, inputs={"z": hl.Normal(2)})
    z, x = torch.randn(2), torch.randn(5, 4)
    plain = model.at(z=z)
    assert nn.utils.parametrize.is_parametrized(plain, "weight")
    torch.testing.assert_close(plain(x), model(x, z=z))


def test_at_of_the_classical_formulation() -> None:
    torch.manual_seed(0)
    inputs = {"g": hl.Uniform(0.0, 1.0)}
    model = hl.hypernetize(nn.Linear(4, 3), inputs=inputs, encoding=None, residual=False)
    assert torch.equal(model.at(g=0.5).weight, model.predict(g=0.5)["weight"])


def test_a_primary_that_cannot_be_copied_is_named() -> None:
    class Uncopied(nn.Linear):
        def __deepcopy__(self, memo: object) -> object:
            raise TypeError("holds a socket")

    model = hl.hypernetize(Uncopied(2, 2), inputs={"g": hl.Uniform(0.0, 1.0)})
    with pytest.raises(hl.ConfigurationError) as error:
        model.at(g=0.5)
    assert "model.at copies the primary, and Uncopied cannot be copied: holds a socket" in str(
        error.value
    )


class Pictures(nn.Module):
    """Layers of several kinds, for an export to ONNX."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.attention = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).flatten(2)
        return self.out(self.attention(x)).mean(1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_onnx_gives_the_same_numbers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = hl.hypernetize(Pictures(), inputs={"scale": hl.Uniform(0.0, 0.5)}, init="relative")
    model.eval()
    x = torch.randn(2, 1, 4, 4)
    for scale in (0.0, 0.5):
        path = tmp_path / f"{scale}.onnx"
        torch.onnx.export(model.at(scale=scale), (x,), str(path), dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        expected = model(x, scale=scale).detach()
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)
