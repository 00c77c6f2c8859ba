"""PyTorch around the model: compile, export, copies, pickles, dtypes, devices, schedulers."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import hyperlight as hl
from tests.models import PRIMARIES, Recurrent, convolutional, mlp, one_graph, vectors

INPUTS = {"scale": hl.Uniform(0.0, 0.5), "z": hl.Normal(2)}
SPACE = {"g": hl.Uniform(0.0, 1.0)}
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


class Breaking(nn.Module):
    """Stops the graph capture in the middle, as printing does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        torch._dynamo.graph_break()
        return self.second(y)


def test_a_primary_that_breaks_the_graph_compiles_in_parts() -> None:
    model, x = hl.hypernetize(Breaking(), INPUTS), vectors()
    compiled = torch.compile(model, backend="aot_eager")
    assert torch.allclose(compiled(x, scale=0.2, z=Z), model(x, scale=0.2, z=Z), atol=1e-6)


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


# --- dynamic shapes, and transforms of torch.func --------------------------------------

SPACES = {
    "uniform": hl.Uniform(0.5, 2.0),
    "log-uniform": hl.LogUniform(1e-3, 1.0),
    "normal": hl.Normal(2),
    "categorical": hl.Categorical(4),
    "simplex": hl.Simplex(3),
}


@one_graph
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
def test_one_graph_serves_batches_of_any_size(space: hl.Input) -> None:
    model = hl.hypernetize(mlp(), {"gamma": space, "scale": hl.Uniform(0.0, 1.0)})
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend="aot_eager")
    for size in (4, 7, 9):
        x, gamma = torch.randn(size, 3), model.sample()
        assert torch.allclose(compiled(x, **gamma), model(x, **gamma), atol=1e-6)
        gamma["scale"] = size / 10  # a number in place of a tensor
        assert torch.allclose(compiled(x, **gamma), model(x, **gamma), atol=1e-6)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
def test_gradients_of_single_samples_by_vmap_of_grad(space: hl.Input) -> None:
    model = hl.hypernetize(mlp(), {"gamma": space, "scale": hl.Uniform(0.0, 1.0)})
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    x, gamma = torch.randn(5, 3), model.sample(5)

    def loss(parameters: dict[str, Tensor], x: Tensor, gamma: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, parameters, (x[None],), gamma).square().sum()

    found = torch.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, x, gamma)
    for i in range(5):
        one = torch.func.grad(loss)(parameters, x[i], {n: v[i] for n, v in gamma.items()})
        for name, gradient in one.items():
            assert torch.allclose(found[name][i], gradient, rtol=1e-4, atol=1e-6), name


def test_forward_mode_keeps_the_dtype_of_a_scalar() -> None:
    """PyTorch gives the tangent of a float32 scalar times a number in float64."""
    inputs = {"g": hl.Uniform(0.0, 1.0), "l": hl.LogUniform(0.1, 1.0)}
    model = hl.hypernetize(mlp(), inputs, activation="tanh")  # no kinks between the differences
    x = vectors()

    def output(g: Tensor) -> Tensor:
        return model(x, g=g, l=g).sum()

    g = torch.tensor(0.4)
    _, tangent = torch.func.jvp(output, (g,), (torch.ones_like(g),))
    assert torch.allclose(tangent, torch.func.grad(output)(g), rtol=1e-4)
    assert torch.allclose(torch.func.jacfwd(output)(g), torch.func.grad(output)(g), rtol=1e-4)
    values = torch.tensor([0.2, 0.5, 0.9])
    slopes = torch.vmap(torch.func.grad(output))(values)
    assert torch.allclose(torch.vmap(torch.func.jacfwd(output))(values), slopes, rtol=1e-4)
    curvature = torch.func.hessian(output)(g)
    near = [torch.func.grad(output)(g + step) for step in (-1e-2, 1e-2)]
    assert torch.allclose(curvature, (near[1] - near[0]) / 2e-2, rtol=1e-2, atol=1e-2)


def test_a_value_that_a_gradient_is_taken_by_is_still_checked() -> None:
    model = hl.hypernetize(mlp(), {"g": hl.Uniform(0.0, 1.0)})
    with pytest.raises(hl.InputError, match=r"was 3; expected values in \[0, 1\]"):
        torch.func.grad(lambda g: model(vectors(), g=g).sum())(torch.tensor(3.0))


def test_the_row_of_padding_gets_no_gradient_under_vmap_of_grad() -> None:
    primary = nn.Sequential(nn.Embedding(4, 3, padding_idx=1), nn.Linear(3, 2))
    model = hl.hypernetize(primary, {"g": hl.Uniform(0.0, 1.0)})
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    tokens, gammas = torch.tensor([1, 2, 0]), torch.tensor([0.2, 0.5, 0.9])

    def loss(parameters: dict[str, Tensor], g: Tensor) -> Tensor:
        call = torch.func.functional_call(model, parameters, (tokens,), {"g": g})
        return call.square().sum()

    found = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, gammas)
    for i, g in enumerate(gammas):
        for name, gradient in torch.func.grad(loss)(parameters, g).items():
            assert torch.allclose(found[name][i], gradient, rtol=1e-4, atol=1e-6), name


# --- values outside the space, where none can be refused -------------------------------

BOUNDED = {
    "u": hl.Uniform(0.5, 2.0),
    "log": hl.LogUniform(1e-3, 1.0),
    "v": hl.Uniform(0.0, 1.0, 3),
    "ray": hl.Simplex(3),
    "c": hl.Categorical(3),
}
# What is given, and what it counts as; None for NaN.
OUTSIDE = [
    ("u", -3.0, 0.5),
    ("u", 3.0, 2.0),
    ("u", math.inf, 2.0),
    ("log", -1.0, 1e-3),
    ("log", 50.0, 1.0),
    ("v", [-1.0, 0.3, 7.0], [0.0, 0.3, 1.0]),
    ("ray", [2.0, 1.0, -5.0], [2 / 3, 1 / 3, 0.0]),
    ("ray", [0.0, 0.0, -1.0], None),
    ("c", -1, None),
    ("c", 3, None),
    ("u", math.nan, None),
]


def bounded() -> tuple[hl.HyperModel, Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)  # the same every time
    model = hl.hypernetize(mlp(), BOUNDED).eval()
    return model, vectors(), model.sample(generator=torch.Generator().manual_seed(1))


def answers_for_the_nearest(run: Callable[..., Tensor]) -> None:
    """``run(x, **gamma)``: values inside are as they were, others count as the nearest inside."""
    model, x, valid = bounded()
    assert torch.allclose(run(x, **valid), model(x, **valid), atol=1e-5)
    for name, value, inside in OUTSIDE:
        given = valid | {name: torch.tensor(value)}
        with pytest.raises(hl.InputError):
            model(x, **given)
        found = run(x, **given)
        if inside is None:
            assert found.isnan().all(), (name, value)
        else:
            expected = model(x, **valid | {name: torch.tensor(inside)})
            assert torch.allclose(found, expected, atol=1e-5), (name, value)


@one_graph
def test_a_compiled_model_answers_for_the_nearest_value() -> None:
    model, x, valid = bounded()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    answers_for_the_nearest(compiled)
    with_number = compiled(x, **valid | {"u": 3.0})  # not a tensor, and not read either
    assert torch.allclose(with_number, model(x, **valid | {"u": 2.0}), atol=1e-5)


def test_an_exported_model_answers_for_the_nearest_value() -> None:
    model, x, valid = bounded()
    exported = torch.export.export(model, (x,), valid).module()
    answers_for_the_nearest(exported)


def test_an_onnx_model_answers_for_the_nearest_value(tmp_path: Path) -> None:
    model, x, valid = bounded()
    program = torch.onnx.export(model, (x,), kwargs=valid, dynamo=True, verbose=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert [entry.name for entry in session.get_inputs()] == ["input", *valid]

    def run(x: Tensor, **gamma: Tensor) -> Tensor:
        (y,) = session.run(None, {"input": x.numpy()} | {n: v.numpy() for n, v in gamma.items()})
        return torch.from_numpy(y)

    answers_for_the_nearest(run)


def test_a_traced_or_mapped_model_answers_for_the_nearest_value() -> None:
    model, x, valid = bounded()
    graph = make_fx(lambda x, gamma: model(x, **gamma))(x, valid)
    answers_for_the_nearest(lambda x, **gamma: graph(x, gamma))

    class Positional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor, *gamma: Tensor) -> Tensor:
            return self.model(x, **dict(zip(valid, gamma, strict=True)))

    traced = torch.jit.trace(Positional(), (x, *valid.values()))
    answers_for_the_nearest(lambda x, **gamma: traced(x, *gamma.values()))

    def mapped(x: Tensor, **gamma: Tensor) -> Tensor:
        several = {name: value[None] for name, value in gamma.items()}
        return torch.vmap(lambda gamma: model(x, **gamma))(several)[0]

    answers_for_the_nearest(mapped)


@one_graph
def test_the_gradient_at_the_ends_of_a_space_survives_the_graph() -> None:
    model, x = hl.hypernetize(mlp(), {"g": hl.Uniform(0.1, 0.7), "ray": hl.Simplex(2)}), vectors()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")

    def slopes(run: Callable[..., Tensor], end: float) -> tuple[Tensor, ...]:
        g, ray = torch.tensor(end).requires_grad_(), torch.tensor([0.3, 0.7]).requires_grad_()
        return torch.autograd.grad(run(x, g=g, ray=ray).sum(), (g, ray))

    for end in (0.1, 0.7):
        for found, expected in zip(slopes(compiled, end), slopes(model, end), strict=True):
            assert expected.any()
            assert torch.allclose(found, expected, rtol=1e-4)


# --- sparse gradients ------------------------------------------------------------------


class Looked(nn.Module):
    """Looks rows up in a weight of its own, with a sparse gradient."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.weight, self.sparse = nn.Parameter(torch.randn(5, 3)), sparse

    def forward(self, rows: Tensor) -> Tensor:
        return nn.functional.embedding(rows, self.weight, sparse=self.sparse)


SPARSE = {
    "embedding": lambda sparse: nn.Embedding(5, 3, sparse=sparse),
    "bag": lambda sparse: nn.EmbeddingBag(5, 3, sparse=sparse, mode="sum"),
    "own": Looked,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "head", [hl.Dense(), hl.LowRank(1), hl.Chunked(16), hl.ChannelScale()], ids=repr
)
@pytest.mark.parametrize("make", SPARSE.values(), ids=SPARSE.keys())
def test_sparse_gradients_of_an_embedding_reach_the_hypernetwork(
    make: Callable[[bool], nn.Module], head: hl.Head, dtype: torch.dtype
) -> None:
    rows = torch.tensor([[0, 1], [4, 1]])
    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        primary = nn.Sequential(make(sparse), nn.Linear(3, 2)).to(dtype)
        model = hl.hypernetize(primary, SPACE, head=head, dtype=torch.float32)
        optimizer = hl.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            model(rows, g=0.3).square().sum().backward()
            optimizer.step()
        found.append([p.detach() for p in model.parameters()])
    for dense, other in zip(*found, strict=True):
        assert torch.allclose(dense, other, rtol=1e-5, atol=1e-6)
