"""Checkpoints laid out as HyperLight 0.0.5 lays them out, and the page on migration.

``python -m tests.compare_hyperlight`` does the same with the released package itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hyperlight as hl
from tests.compare_hyperlight import PUBLIC
from tests.models import Aliased, Tied, convolutional, mlp
from tests.reference.files import ReleasedHyperNet
from tests.test_io import contents

PAGE = Path(__file__).parents[1] / "docs" / "migration.md"


def shapes_of(primary: nn.Module) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in primary.named_parameters()}


def unit(*shape: int) -> hl.Uniform:
    return hl.Uniform(0.0, 1.0, shape)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.dictionaries(
        st.sampled_from(["b", "a", "z", "m"]), st.sampled_from([(1,), (3,), (2, 2)]), min_size=1
    ),
    hidden=st.lists(st.integers(1, 5), max_size=3),
    encoding=st.sampled_from(["cos|sin", "z|1-z", None]),
    nonlinearity=st.sampled_from(["LeakyReLU", "ReLU", "Tanh", "SiLU", "GELU", "ELU", "PReLU"]),
    bias=st.booleans(),
    backwards=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_a_checkpoint_predicts_what_it_predicted(
    sizes: dict[str, tuple[int, ...]],
    hidden: list[int],
    encoding: str | None,
    nonlinearity: str,
    bias: bool,
    backwards: bool,
    dtype: torch.dtype,
) -> None:
    primary = mlp().to(dtype)
    outputs = shapes_of(primary)
    if backwards:
        outputs = dict(reversed(outputs.items()))
    old = ReleasedHyperNet(sizes, outputs, hidden, encoding, nonlinearity, bias, dtype)
    state = {name: tensor.clone() for name, tensor in old.state.items()}
    model = hl.io.from_hyperlight(
        state,
        primary,
        {name: unit(*shape) for name, shape in sizes.items()},
        output_shapes=outputs if backwards else None,
        encoding=encoding,
        nonlinearity=nonlinearity,
    )
    assert model.primary is primary
    assert all(torch.equal(state[name], tensor) for name, tensor in old.state.items())
    close = (
        {"rtol": 1e-11, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    )
    for _ in range(3):
        gamma = model.sample()
        predicted = model.predict(**gamma)
        for name, expected in old(**gamma).items():
            torch.testing.assert_close(predicted[name], expected, **close)


def test_raw_values_of_any_space_go_through_no_encoding() -> None:
    primary = mlp().double()
    old = ReleasedHyperNet({"h": (2,)}, shapes_of(primary), [4], None)
    model = hl.io.from_hyperlight(old.state, primary, {"h": hl.Normal(2)}, encoding=None)
    h = torch.tensor([-3.0, 5.0], dtype=torch.float64)
    expected = old(h=h)
    for name, tensor in model.predict(h=h).items():
        torch.testing.assert_close(tensor, expected[name])


def test_a_converted_model_can_be_saved(tmp_path: Path) -> None:
    primary = mlp().double()
    old = ReleasedHyperNet({"h": (1,)}, shapes_of(primary), [4], "z|1-z", "Hardswish")
    model = hl.io.from_hyperlight(
        old.state, primary, {"h": unit()}, encoding="z|1-z", nonlinearity="Hardswish"
    )
    hl.save(model, tmp_path / "m")
    again = hl.load(tmp_path / "m", mlp().double(), activation=nn.Hardswish)
    assert contents(again) == contents(model)


def test_no_random_numbers_are_drawn() -> None:
    old = ReleasedHyperNet({"h": (1,)}, {"0.weight": (5, 3)}, [4], dtype=torch.float32)
    primary, before = mlp(), torch.get_rng_state()
    hl.io.from_hyperlight(old.state, primary, {"h": unit()}, output_shapes={"0.weight": (5, 3)})
    assert torch.equal(torch.get_rng_state(), before)


def whole_checkpoint() -> tuple[dict[str, Tensor], ReleasedHyperNet, nn.Module]:
    """Of a module that held a hypernetized network and its hypernetwork, and was trained."""
    trained = convolutional().double()
    trained(torch.randn(8, 1, 4, 4, dtype=torch.float64))
    outputs = {n: p.shape for n, p in trained.named_parameters() if not n.startswith("1.")}
    old = ReleasedHyperNet({"h": (1,)}, outputs, [4])
    state = {f"net.main.{n}": t for n, t in trained.state_dict().items() if n not in outputs}
    state |= {f"net.hyper.{name}": tensor for name, tensor in old.state.items()}
    return state, old, trained


def test_a_checkpoint_of_network_and_hypernetwork_says_itself_what_it_predicts() -> None:
    state, old, trained = whole_checkpoint()
    primary = convolutional().double().eval()
    model = hl.io.from_hyperlight(state, primary, {"h": unit(1)})
    assert list(model.hypernet.shapes) == list(old.output_shapes)
    assert torch.equal(primary[1].running_mean, trained[1].running_mean)
    h = torch.rand(1, dtype=torch.float64)
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    trained.load_state_dict(old(h=h), strict=False)
    torch.testing.assert_close(model(x, h=h), trained.eval()(x))


def test_a_module_under_two_names_is_predicted_once() -> None:
    primary = Aliased().double()
    old = ReleasedHyperNet({"h": (1,)}, shapes_of(primary), [4])
    model = hl.io.from_hyperlight(old.state, primary, {"h": unit()})
    h = torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(model.predict(h=h)["first.weight"], old(h=h)["first.weight"])


def checkpoint(**changes: Any) -> dict[str, Tensor]:
    arguments = {
        "input_shapes": {"h": (1,)},
        "output_shapes": shapes_of(mlp()),
        "hidden_sizes": [4],
    }
    return ReleasedHyperNet(**{**arguments, "dtype": torch.float32, **changes}).state


def renamed(old: str, new: str) -> dict[str, Tensor]:
    return {name.replace(old, new): tensor for name, tensor in checkpoint().items()}


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], list[str]]] = {
    "of something else": (
        lambda: nn.Linear(2, 2).state_dict(),
        {},
        ["state dict of one HyperNet of HyperLight 0.0.5", "found 'weight', 'bias'"],
    ),
    "two of them": (
        lambda: {f"{p}.{n}": t for p in "ab" for n, t in checkpoint().items()},
        {},
        ["found 2 of them: 'a.backbone.output.weight', 'b.backbone.output.weight'"],
    ),
    "other layers": (
        lambda: renamed("block0_lin", "norm"),
        {},
        ["has the layers 'norm', 'output'", "'block0_lin'"],
    ),
    "unknown encoding": (
        checkpoint,
        {"encoding": "fourier"},
        ["'fourier'; expected 'cos|sin', 'z|1-z' or None"],
    ),
    "wrong encoding": (
        checkpoint,
        {"encoding": None},
        ["reads 2", "They fit encoding='cos|sin' or 'z|1-z'."],
    ),
    "other size": (
        checkpoint,
        {"inputs": {"h": unit(3)}},
        ["'h' have 3 entries", "encoding='cos|sin' makes 6", "reads 2."],
    ),
    "normalizing space": (
        checkpoint,
        {"inputs": {"h": hl.Uniform(0.0, 0.5, 1)}},
        ["as they were given", "Declare hl.Uniform(0.0, 1.0, (1,))", "outside of [0, 1]"],
    ),
    "unbounded space": (
        checkpoint,
        {"inputs": {"h": hl.Normal()}},
        ["Declare hl.Uniform(0.0, 1.0)"],
    ),
    "category": (checkpoint, {"inputs": {"h": hl.Categorical(2)}}, ["had numbers only"]),
    "no such parameter": (
        checkpoint,
        {"output_shapes": {"0.weigt": (5, 3)}},
        ["'0.weigt'; Sequential has no parameter", "Did you mean '0.weight'?"],
    ),
    "other shape": (
        checkpoint,
        {"output_shapes": {"0.weight": (3, 5)}},
        ["'0.weight' with shape (3, 5)", "has shape (5, 3)"],
    ),
    "too few": (
        checkpoint,
        {"output_shapes": {"0.weight": (5, 3)}},
        ["predicts 32 entries; '0.weight' have 15", "external_shapes()"],
    ),
    "tied": (
        lambda: checkpoint(output_shapes={"embed.weight": (6, 4)}),
        {"primary": Tied()},
        ["'embed.weight' is tied: 2 modules share it", "Untie"],
    ),
    "unknown nonlinearity": (
        checkpoint,
        {"nonlinearity": "LeakyRelu"},
        ["'LeakyRelu'; expected the name of a class in torch.nn", "Did you mean 'LeakyReLU'?"],
    ),
    "nonlinearity without weights": (
        checkpoint,
        {"nonlinearity": "PReLU"},
        ["the checkpoint has no 'trunk.activations.0.weight'", "Pass the nonlinearity"],
    ),
    "dtype": (
        lambda: checkpoint(dtype=torch.float64),
        {},
        ["'0.weight' is torch.float64 in the checkpoint, torch.float32 in the primary"],
    ),
    "others": (
        lambda: {**checkpoint(), "optimizer.momentum": torch.ones(2)},
        {},
        ["Besides the HyperNet the checkpoint holds 'optimizer.momentum'", "HyperNet alone"],
    ),
}


@pytest.mark.parametrize(("make", "changes", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_represented_is_refused_in_words(
    make: Callable[[], Any], changes: dict[str, Any], words: list[str]
) -> None:
    arguments = {"primary": mlp(), "inputs": {"h": unit()}, **changes}
    primary = arguments["primary"]
    before = contents(primary)
    with pytest.raises(hl.FormatError) as error:
        hl.io.from_hyperlight(make(), **arguments)
    for word in words:
        assert word in str(error.value)
    assert contents(primary) == before


def test_an_incomplete_checkpoint_is_refused() -> None:
    state, old, _ = whole_checkpoint()
    del state["net.main.1.running_var"]
    primary = convolutional().double()
    before = contents(primary)
    with pytest.raises(
        hl.FormatError, match=r"the checkpoint has no '1.running_var'.*all of its tensors"
    ):
        hl.io.from_hyperlight(state, primary, {"h": unit()}, output_shapes=old.output_shapes)
    assert contents(primary) == before


# --- the page ---------------------------------------------------------------------------


def blocks(kind: str) -> list[str]:
    """The page's examples: those of 0.0.5, or those of now."""
    found = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [code for code in found if code.startswith(f"# {kind}\n")]


@pytest.mark.parametrize("number", range(len(blocks("now"))))
def test_every_example_of_now_runs(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    outputs = {n: p.shape for n, p in net.named_parameters() if not n.startswith("1.")}
    old = ReleasedHyperNet({"h": (1,)}, outputs, [16, 128], dtype=torch.float32)
    state = {f"net.{n}": t for n, t in net.state_dict().items() if n not in outputs}
    state |= {f"hypernet.{name}": tensor for name, tensor in old.state.items()}
    torch.save(state, "checkpoint.pt")
    exec(blocks("now")[number], {})


def test_every_example_has_a_before_and_an_after() -> None:
    found = re.findall(r"```python\n(# \S+)\n", PAGE.read_text())
    assert found == ["# 0.0.5", "# now"] * (len(found) // 2)
    assert len(found) >= 8
    assert PAGE.read_text().count("```python") == len(found)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_of_the_release_is_on_the_page(name: str) -> None:
    assert re.search(rf"`[^`]*\b{re.escape(name)}\b[^`]*`", PAGE.read_text())
