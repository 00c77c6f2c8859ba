"""A trunk of one's own: checked when it is built, used as it is, saved with the model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hyperlight as hl
from tests.models import Gives, mlp, one_graph, vectors

SPACE = {"g": hl.Uniform(0.0, 1.0), "c": hl.Categorical(3)}
ENCODED = 2 + 3


def layers(size: int = ENCODED) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, 7), nn.SiLU(), nn.Linear(7, 4))


def test_it_takes_the_place_of_the_hidden_layers() -> None:
    trunk = layers()
    net = hl.HyperNet(SPACE, {"w": (2, 3)}, trunk=trunk)
    assert net.trunk is trunk
    assert net.head.features == 4
    assert net.projection is None
    gamma = {"g": torch.rand(5), "c": torch.arange(5) % 3}
    torch.testing.assert_close(net.features(**gamma), trunk(net.encode(**gamma)))
    assert net(g=torch.rand(2, 3), c=1)["w"].shape == (2, 3, 2, 3)
    assert net(g=0.3, c=1)["w"].shape == (2, 3)


def test_a_function_is_given_the_encoded_size() -> None:
    sizes = []

    def make(size: int) -> nn.Module:
        sizes.append(size)
        return layers(size)

    net = hl.HyperNet(SPACE, {"w": (2,)}, trunk=make, dtype=torch.float64)
    assert sizes == [ENCODED]
    assert {p.dtype for p in net.parameters()} == {torch.float64}


def test_it_may_need_a_batch() -> None:
    trunk = nn.Sequential(nn.Linear(ENCODED, 6), nn.BatchNorm1d(6))
    before = copy.deepcopy(trunk.state_dict())
    model = hl.hypernetize(mlp(), SPACE, trunk=trunk)
    assert all(torch.equal(value, before[n]) for n, value in trunk.state_dict().items())
    model.eval()
    assert model(vectors(), g=0.3, c=1).shape == (4, 2)
    assert model(vectors(), g=torch.rand(4), c=1).shape == (4, 2)


def test_directions_follow_it() -> None:
    model = hl.hypernetize(mlp(), SPACE, trunk=layers(), directions=2)
    assert model.hypernet.projection.weight.shape == (2, 4)
    assert model.hypernet.head.features == 2
    assert model.predict(g=0.3, c=0)["0.weight"].shape == (5, 3)


def test_it_starts_as_it_was_made_and_is_trained() -> None:
    trunk = layers()
    before = copy.deepcopy(trunk.state_dict())
    model = hl.hypernetize(mlp(), SPACE, trunk=trunk)
    model.hypernet.reset_parameters("fan_out")
    assert all(torch.equal(value, before[n]) for n, value in trunk.state_dict().items())
    assert set(trunk.parameters()) <= set(model.parameters())
    names = {g["name"]: g["params"] for g in hl.parameter_groups(model, lr=1e-3)}
    assert any(trunk[0].weight is p for p in names["trunk.0"])

    class Resets(nn.Linear):
        def reset_parameters(self) -> None:
            nn.init.constant_(self.weight, 0.25)
            nn.init.zeros_(self.bias)

    resets = Resets(ENCODED, 4)
    net = hl.HyperNet(SPACE, {"w": (2,)}, trunk=resets)
    nn.init.zeros_(resets.weight)
    net.reset_parameters()
    assert float(resets.weight[0, 0]) == 0.25


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"trunk": nn.Linear(6, 4)}, ["trunk, Linear, raised RuntimeError", "have 5 entries"]),
        ({"trunk": nn.Linear(6, 4)}, ["from (B, 5) to (B, K)", "trunk=lambda size: nn.Sequential"]),
        (
            {"trunk": Gives(torch.zeros(2))},
            ["gave torch.float32 of shape (2,) for an input of"],
        ),
        ({"trunk": Gives(torch.zeros(2, 0))}, ["gave torch.float32 of shape (2, 0)"]),
        ({"trunk": Gives(torch.zeros(2, 3).long())}, ["gave torch.int64 of shape (2, 3)"]),
        ({"trunk": Gives([1])}, ["trunk, Gives, gave list for an input of shape (2, 5)"]),
        ({"trunk": lambda size: size}, ["trunk gave 5. The encoded inputs have 5 entries"]),
        ({"trunk": 3}, ["trunk gave 3."]),
        (
            {"trunk": layers().to("meta")},
            ["has torch.float32 parameters on meta; the hypernetwork has torch.float32 on cpu"],
        ),
        (
            {"trunk": layers().double()},
            ["Sequential, has torch.float64 parameters", "trunk.to('cpu', torch.float32)"],
        ),
        ({"trunk": layers(), "hidden": (8,)}, ["beside 'hidden'", "Leave them out"]),
        (
            {"trunk": layers(), "activation": "relu", "skip": True},
            ["trunk was given beside 'activation', 'skip'"],
        ),
    ],
)
def test_what_is_no_trunk_is_refused(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(hl.ConfigurationError) as error:
        hl.HyperNet(SPACE, {"w": (2,)}, **settings)
    for word in words:
        assert word in str(error.value)


def test_on_the_meta_device_it_is_left_where_it_is() -> None:
    trunk = layers()
    model = hl.hypernetize(mlp().to("meta"), SPACE, trunk=trunk, device="meta")
    assert not trunk[0].weight.is_meta
    assert model.summary().trunk.parameters == sum(p.numel() for p in layers().parameters()) + 9


def test_it_meets_the_guarantees() -> None:
    model = hl.hypernetize(mlp(), SPACE, trunk=layers())
    report = hl.testing.check_hypernet(model, vectors())
    assert not report.skipped


@pytest.mark.parametrize("directions", [None, 2])
def test_a_file_gives_it_its_weights_back(directions: int | None, tmp_path: Path) -> None:
    model = hl.hypernetize(mlp(), SPACE, trunk=layers(), directions=directions)
    hl.save(model, tmp_path / "m")
    with pytest.raises(
        hl.FormatError,
        match=r"m: the trunk, a Sequential of your own, cannot .* trunk=Sequential\(",
    ):
        hl.load(tmp_path / "m", mlp())
    x, gamma = vectors(), {"g": 0.3, "c": 1}
    for trunk in (layers(), layers):
        again = hl.load(tmp_path / "m", mlp(), trunk=trunk, strict=True)
        assert torch.equal(again(x, **gamma), model(x, **gamma))
    other = layers()
    other[1] = nn.GELU()
    with pytest.warns(UserWarning, match="the given trunk differs .* '1' is a SiLU in the file"):
        hl.load(tmp_path / "m", mlp(), trunk=other)
    with pytest.raises(hl.FormatError, match="'trunk.0.weight' is"):
        hl.load(
            tmp_path / "m", mlp(), trunk=nn.Sequential(nn.Linear(5, 8), nn.SiLU(), nn.Linear(8, 4))
        )
    hl.save(hl.hypernetize(mlp(), SPACE), tmp_path / "ours")
    with pytest.raises(hl.FormatError, match="the saved model has none of its own; leave it out"):
        hl.load(tmp_path / "ours", mlp(), trunk=layers())


@one_graph
def test_it_compiles_into_one_graph() -> None:
    model, x = hl.hypernetize(mlp(), SPACE, trunk=layers()), vectors()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, g=0.3, c=1), model(x, g=0.3, c=1))
