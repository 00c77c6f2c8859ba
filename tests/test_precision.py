"""Nothing asks a device without float64 for one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import hyperlight as hl
from hyperlight import precision


class NoFloat64(TorchDispatchMode):
    """Refuses to widen to float64, as Apple's devices do. What is made in it lives on the host."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        given, made = (
            [leaf.dtype for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
            for tree in ((args, kwargs), found)
        )
        if given and torch.float64 in made and torch.float64 not in given:
            raise TypeError(f"float64 by {func}")
        return found


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the CPU had no float64."""
    monkeypatch.setattr(precision, "_NARROW", {"cpu"})


SPACES = {
    "uniform": hl.Uniform(0.0, 1.0),
    "log": hl.LogUniform(1e-3, 1.0),
    "normal": hl.Normal(3),
    "vector": hl.Vector(2),
    "task": hl.Categorical(4),
    "simplex": hl.Simplex(3),
}
HEADS = [hl.Dense(), hl.LowRank(2), hl.Chunked(32), hl.PerLayer(), hl.ChannelScale()]


def test_the_mode_notices_float64() -> None:
    with NoFloat64(), pytest.raises(TypeError, match="float64"):
        torch.zeros(3).double()


def test_the_twin_in_full_precision() -> None:
    values = torch.randn(7, 5, 3)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        given = values.to(dtype)[:, ::2]
        torch.testing.assert_close(precision.rms(given), given.double().square().mean().sqrt())


def test_large_tensors_are_widened_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_PIECE", 4)
    values = torch.randn(3, 7)
    torch.testing.assert_close(precision.rms(values), values.double().square().mean().sqrt())
    assert precision.rms(torch.zeros(0)).item() == 0.0


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
@pytest.mark.parametrize("init", ["fan_out", "zero", "relative", "hyperfan_in", "hyperfan_out"])
def test_models_are_built_and_trained_without_float64(head: hl.Head, init: str) -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    with NoFloat64():
        model = hl.hypernetize(net, inputs=SPACES, head=head, init=init)
        optimizer = hl.optim.AdamW(hl.parameter_groups(model, lr=1e-3))
        for _ in range(2):
            gamma = model.sample((4,))
            loss = model(torch.randn(4, 8), **gamma).square().mean()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        model.hypernet.check(**model.sample())


@pytest.mark.usefixtures("narrow")
def test_what_is_asked_of_a_model_needs_no_float64() -> None:
    net = nn.Linear(4, 2)
    x = torch.randn(3, 4)
    space = {"gamma": hl.Uniform(0.0, 1.0), "z": hl.Normal(2)}
    with NoFloat64():
        model = hl.hypernetize(net, inputs=space)
        model(x, gamma=0.5, z=torch.tensor([0.25, -1.0]))
        model.sweep(x, gamma=torch.linspace(0, 1, 3), z=torch.zeros(3, 2))
        print(hl.scale_profile(model, "gamma"))
        print(hl.gradient_profile(model, lambda net, x: net(x).square().mean(), [x], input="gamma"))
        hl.tune(model, lambda net: net(x).square().mean(), steps=2, restarts=2)
        hl.OutputRegularizer(model, model.sample((2,)))().backward()
