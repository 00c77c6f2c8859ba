"""PyTorch around the model: compile, export, copies, pickles, dtypes, devices, schedulers."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hyperlight as hl
from tests.models import PRIMARIES, Recurrent, convolutional, mlp, one_graph, vectors

INPUTS = {"scale": hl.Uniform(0.0, 0.5), "z": hl.Normal(2)}
Z = torch.tensor([0.2, -1.0])

# what torch.compile of a plain primary accepts as one graph
COMPILED = [
    "mlp",
    "convolutional",
    "transformer",
    "tied",
    "aliased",
    "parameter lists",
    "bound method",
    "containers",
    "other methods",
    "weight norm",
]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()


@one_graph
@pytest.mark.parametrize("name", COMPILED)
def test_compile_makes_one_graph_with_gradients(name: str) -> None:
    make, data = PRIMARIES[name]
    primary, x = make().eval(), data()
    model = hl.hypernetize(primary, INPUTS)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for scale in (0.1, 0.2, torch.tensor(0.3)):
        expected = model(x, scale=scale, z=Z)
        found = compiled(x, scale=scale, z=Z)
        assert torch.allclose(found, expected, atol=1e-6)
        wanted = torch.autograd.grad(expected.sum(), list(model.parameters()), allow_unused=True)
        got = torch.autograd.grad(found.sum(), list(model.parameters()), allow_unused=True)
        for a, b in zip(got, wanted, strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@one_graph
def test_compile_does_not_start_over_for_every_number() -> None:
    model = hl.hypernetize(mlp(), {"scale": hl.Uniform(0.0, 0.5)})
    graphs = 0

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=counting)
    x = vectors()
    for i in range(12):
        compiled(x, scale=i / 24)
    assert graphs <= 3


@one_graph
def test_inductor_compiles_a_training_step() -> None:
    model = hl.hypernetize(convolutional(), {"scale": hl.Uniform(0.0, 0.5)})
    compiled = torch.compile(model, fullgraph=True)
    x = torch.randn(4, 1, 4, 4)
    compiled(x, scale=torch.tensor(0.3)).square().mean().backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x, scale=torch.tensor(0.3)).square().mean().backward()
    for a, p in zip(found, model.parameters(), strict=True):
        assert torch.allclose(a, p.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "convolutional", "transformer", "lstm", "gru", "tied"])
def test_export_keeps_gamma_as_an_input(name: str) -> None:
    make, data = PRIMARIES[name]
    model, x = hl.hypernetize(make().eval(), INPUTS).eval(), data()
    program = torch.export.export(model, (x,), {"scale": torch.tensor(0.3), "z": Z})
    for scale in (0.1, 0.4):
        gamma = {"scale": torch.tensor(scale), "z": Z * scale}
        assert torch.allclose(program.module()(x, **gamma), model(x, **gamma), atol=1e-6)


def test_deepcopy_and_pickle_give_an_equal_and_separate_model() -> None:
    for name, (make, data) in PRIMARIES.items():
        if name in ("old weight norm", "weight norm"):  # torch cannot pickle these
            continue
        model, x = hl.hypernetize(make().eval(), INPUTS), data()
        model(x, scale=0.2, z=Z)
        expected = model(x, scale=0.2, z=Z)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        for twin in (
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            torch.load(buffer, weights_only=False),
        ):
            assert torch.equal(twin(x, scale=0.2, z=Z), expected), name
            with torch.no_grad():
                for p in twin.parameters():
                    p.add_(1.0)
            assert torch.equal(model(x, scale=0.2, z=Z), expected), name
            assert not torch.allclose(twin(x, scale=0.2, z=Z), expected), name


def test_spaces_and_hypernetworks_pickle_too() -> None:
    for space in INPUTS.values():
        assert pickle.loads(pickle.dumps(space)) == space
    net = hl.HyperNet(INPUTS, {"w": (2,)})
    twin = pickle.loads(pickle.dumps(net))
    assert torch.equal(twin(scale=0.1, z=Z)["w"], net(scale=0.1, z=Z)["w"])


def test_state_dict_round_trip() -> None:
    one, two = (hl.hypernetize(mlp(), INPUTS) for _ in range(2))
    x = vectors()
    assert not torch.allclose(one(x, scale=0.2, z=Z), two(x, scale=0.2, z=Z))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(x, scale=0.2, z=Z), two(x, scale=0.2, z=Z))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    x = vectors().to(dtype)
    built = hl.hypernetize(mlp().to(dtype), INPUTS)
    converted = hl.hypernetize(mlp(), INPUTS).to(dtype)
    for model in (built, converted):
        assert {p.dtype for p in model.parameters()} == {dtype}
        for gamma in ({"scale": 0.2, "z": Z}, model.sample()):
            y = model(x, **gamma)
            assert y.dtype == dtype
            y.sum().backward()
        assert {t.dtype for t in model.predict(scale=0.2, z=Z).values()} == {dtype}


def test_a_primary_of_mixed_dtypes_keeps_them() -> None:
    primary = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2).to(torch.bfloat16))
    model = hl.hypernetize(primary, INPUTS)
    assert {p.dtype for p in model.hypernet.parameters()} == {torch.float32}
    theta = model.predict(scale=0.1, z=Z)
    assert [t.dtype for t in theta.values()] == [p.dtype for p in primary.parameters()]


def test_autocast() -> None:
    model, x = hl.hypernetize(mlp(), INPUTS), vectors()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x, scale=0.2, z=Z)
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), model(x, scale=0.2, z=Z), atol=0.1)
    y.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_a_model_can_be_made_and_moved_without_memory() -> None:
    with torch.device("meta"):
        primary = mlp()
    model = hl.hypernetize(primary, INPUTS)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    real = model.to_empty(device="cpu")
    assert real.sample()["scale"].device.type == "cpu"


def test_a_default_device_does_not_confuse_a_cpu_model() -> None:
    model, x = hl.hypernetize(mlp(), INPUTS), vectors()
    expected = model(x, scale=0.2, z=Z)
    with torch.device("meta"):
        assert torch.equal(model(x, scale=0.2, z=Z), expected)
        assert model.sample()["z"].device.type == "cpu"
    assert hl.scale_profile(model, "scale").std.shape == (33,)


def test_higher_derivatives_and_forward_mode() -> None:
    model = hl.hypernetize(mlp(), {"g": hl.Uniform(0.0, 1.0)}).double()
    x = vectors().double()

    def output(g: Tensor) -> Tensor:
        return model(x, g=g).sum()

    g = torch.tensor(0.4, dtype=torch.float64)
    assert torch.autograd.gradcheck(output, g.clone().requires_grad_())
    assert torch.autograd.gradgradcheck(output, g.clone().requires_grad_())
    _, tangent = torch.func.jvp(output, (g,), (torch.ones_like(g),))
    assert torch.allclose(tangent, torch.func.grad(output)(g))


def test_train_and_eval_reach_the_bound_network() -> None:
    model = hl.hypernetize(nn.Sequential(nn.Linear(3, 64), nn.Dropout(0.5)), INPUTS)
    x = torch.ones(1, 3)
    assert (model(x, scale=0.1, z=Z) == 0).any()
    model.eval()
    assert not (model(x, scale=0.1, z=Z) == 0).any()


def test_recurrent_primaries_run_under_no_grad_and_inference_mode() -> None:
    model = hl.hypernetize(Recurrent(nn.GRU), INPUTS).eval()
    x = torch.randn(2, 5, 3)
    expected = model(x, scale=0.2, z=Z)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.allclose(model(x, scale=0.2, z=Z), expected, atol=1e-6)
