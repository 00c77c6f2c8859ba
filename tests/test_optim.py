"""Optimizers that step from factors, against those of PyTorch on the matrix, in float64."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import platform
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import hyperlight as hl
from hyperlight.optim import passes
from hyperlight.optim.outer import OuterProduct, dense_product, takes_factors

NAMES = ["SGD", "Adam", "AdamW"]
OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.05},
    "SGD momentum": {"lr": 0.05, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01},
    "SGD Nesterov": {"lr": 0.02, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
    "Adam": {"lr": 0.01},
    "Adam decay": {"lr": 0.01, "weight_decay": 0.001, "betas": (0.8, 0.99)},
    "Adam amsgrad": {"lr": 0.01, "amsgrad": True, "eps": 1e-3, "maximize": True},
    "AdamW": {"lr": 0.01, "weight_decay": 0.1},
    "AdamW amsgrad": {"lr": 0.01, "weight_decay": 0.2, "amsgrad": True},
}
every = pytest.mark.parametrize("name", OPTIONS)


@pytest.fixture(autouse=True)
def small_heads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Factors and several blocks even in small heads; the default implementation afterwards."""
    monkeypatch.setitem(passes._SCRATCH, "cpu", 1500)
    monkeypatch.setattr(passes, "_LARGE_GRADIENT", 0)
    torch.set_num_threads(1)
    torch.compiler.reset()  # only so many variants of one function are compiled
    yield
    hl.optim.set_implementation("auto")


def network(columns: int = 10) -> hl.HyperModel:
    torch.manual_seed(0)
    primary = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 2)).double()
    return hl.hypernetize(primary, {"g": hl.Uniform(0.0, 1.0)}, hidden=(6, columns))


def made(module: Any, name: str, model: nn.Module, **more: Any) -> torch.optim.Optimizer:
    options = {**OPTIONS[name], **more}
    return getattr(module, name.split()[0])(model.parameters(), **options)


def backward(model: hl.HyperModel, step: int, rows: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    samples = max(rows, 4)
    x = torch.randn(samples, 3, dtype=torch.float64, generator=generator)
    g = torch.rand((samples,) if rows else (), dtype=torch.float64, generator=generator)
    loss = model(x, g=g).square().mean() * scale
    loss.backward()
    return loss


def the_same(model: nn.Module, twin: nn.Module, tolerance: float = 1e-9) -> None:
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=name)


def head_of(model: hl.HyperModel) -> nn.Parameter:
    return model.hypernet.head.weight


@pytest.mark.parametrize("implementation", ["eager", "compiled"])
@every
def test_hundreds_of_steps_are_those_of_torch(name: str, implementation: Any) -> None:
    hl.optim.set_implementation(implementation)
    model = network()
    twin = copy.deepcopy(model)
    optimizers = made(hl.optim, name, model), made(torch.optim, name, twin)
    for step in range(300 if implementation == "eager" else 40):
        for net, optimizer in zip((model, twin), optimizers, strict=True):
            optimizer.zero_grad()
            backward(net, step)
            assert isinstance(head_of(net).grad, OuterProduct) == (net is model)
            optimizer.step()
            assert not isinstance(head_of(net).grad, OuterProduct) or head_of(net).grad.factored
    the_same(model, twin)
    assert hl.optim.status() == (implementation, None)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_options_and_any_way_to_train(data: st.DataObject) -> None:
    draw = data.draw
    name = draw(st.sampled_from(NAMES))
    options: dict[str, Any] = {
        "lr": draw(st.sampled_from([1e-3, 0.03])),
        "weight_decay": draw(st.sampled_from([0.0, 0.1])),
        "maximize": draw(st.booleans()),
        "fused": draw(st.sampled_from([None, False, True])),
    }
    if name == "SGD":
        options["momentum"] = draw(st.sampled_from([0.0, 0.9]))
        options["nesterov"] = options["momentum"] > 0 and draw(st.booleans())
        options["dampening"] = 0.0 if options["nesterov"] else draw(st.sampled_from([0.0, 0.5]))
    else:
        options["betas"] = draw(st.sampled_from([(0.9, 0.999), (0.0, 0.5)]))
        options["amsgrad"] = draw(st.booleans())
    if draw(st.booleans()):
        # In float32 PyTorch's own loop would round 1 - lr * weight_decay to it, its fused step not.
        options["lr"] = torch.tensor(options["lr"], dtype=torch.float64)
        options["foreach"] = False
    rows = draw(st.sampled_from([0, 1, 3, 12]))
    micro = draw(st.integers(1, 3))
    clip = draw(st.sampled_from(["none", "norm", "inf norm", "value"]))
    schedule = draw(st.booleans())
    to_none = draw(st.booleans())
    exchange = draw(st.booleans())
    groups = draw(st.booleans())

    model = network()
    nets = (model, copy.deepcopy(model))

    def fresh(module: Any, net: hl.HyperModel) -> torch.optim.Optimizer:
        made_for = hl.parameter_groups(net, lr=0.01) if groups else net.parameters()
        return getattr(module, name)(made_for, **copy.deepcopy(options))

    optimizers = [fresh(hl.optim, nets[0]), fresh(torch.optim, nets[1])]
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 3, 0.5) for o in optimizers]
    for step in range(10):
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad(set_to_none=to_none)
            for part in range(0 if step == 6 else micro):  # no gradient in one step
                backward(net, 10 * step + part, rows, -1.0 if options["maximize"] else 1.0)
            if step == 6:
                pass
            elif clip == "value":
                nn.utils.clip_grad_value_(net.parameters(), 0.01)
            elif clip != "none":
                kind = 2.0 if clip == "norm" else float("inf")
                nn.utils.clip_grad_norm_(net.parameters(), 0.02, norm_type=kind)
            optimizer.step()
        if schedule:
            [scheduler.step() for scheduler in schedulers]
        if exchange and step == 4:  # each goes on from the other's state
            states = [copy.deepcopy(o.state_dict()) for o in optimizers]
            optimizers = [fresh(hl.optim, nets[0]), fresh(torch.optim, nets[1])]
            optimizers[0].load_state_dict(states[1])
            optimizers[1].load_state_dict(states[0])
            schedulers = [torch.optim.lr_scheduler.StepLR(o, 3, 0.5) for o in optimizers]
    # Adam divides a gradient by its own size, and so rounding in one that is nearly zero.
    the_same(*nets, tolerance=1e-7)


@pytest.mark.parametrize("rows", [1, 3, 4, 5])
@every
def test_eager_and_compiled_give_the_same(name: str, rows: int) -> None:
    model = network()
    twin = copy.deepcopy(model)
    nets = {"eager": model, "compiled": twin}
    optimizers = {kind: made(hl.optim, name, net) for kind, net in nets.items()}
    for step in range(5):
        for kind, net in nets.items():
            hl.optim.set_implementation(kind)  # type: ignore[arg-type]
            optimizers[kind].zero_grad()
            backward(net, step, rows)
            optimizers[kind].step()
            assert hl.optim.status() == (kind, None)
    the_same(model, twin, tolerance=1e-12)


def test_where_compiling_fails_eager_steps_in_and_says_why(monkeypatch: Any) -> None:
    def broken(formula: Any) -> Any:
        def fails(*args: Any) -> None:
            raise RuntimeError("no compiler here")

        return fails

    monkeypatch.setattr(passes, "_compiled", broken)
    hl.optim.set_implementation("compiled")
    model = network()
    twin = copy.deepcopy(model)
    for net, module in ((model, hl.optim), (twin, torch.optim)):
        optimizer = made(module, "Adam", net)
        for step in range(3):
            optimizer.zero_grad()
            backward(net, step)
            optimizer.step()
    the_same(model, twin)
    assert hl.optim.status() == ("compiled", "RuntimeError: no compiler here")


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(hl.ConfigurationError, match="was 'compile'; expected.*'compiled'"):
        hl.optim.set_implementation("compile")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "option"),
    [("Adam", "capturable"), ("AdamW", "differentiable"), ("SGD", "differentiable")],
)
def test_what_cannot_be_captured_or_differentiated_is_refused(name: str, option: str) -> None:
    with pytest.raises(
        hl.ConfigurationError, match=rf"{option}=True.*torch\.optim\.{name}\({option}=True"
    ):
        made(hl.optim, name, network(), **{option: True})
    with pytest.raises(hl.ConfigurationError, match=f"{option}=True"):
        getattr(hl.optim, name)([{"params": list(network().parameters()), option: True}], lr=0.1)


@pytest.mark.parametrize("name", ["SGD momentum", "Adam amsgrad"])
def test_the_state_is_that_of_torch(name: str) -> None:
    model = network()
    twin = copy.deepcopy(model)
    states = []
    for net, module in ((model, hl.optim), (twin, torch.optim)):
        optimizer = made(module, name, net, fused=True)
        backward(net, 0)
        optimizer.step()
        states.append(optimizer.state_dict())
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    for index, state in states[0]["state"].items():
        assert list(state) == list(states[1]["state"][index])
        for key, value in state.items():
            torch.testing.assert_close(value, states[1]["state"][index][key])


def test_a_stock_optimizer_on_the_same_model_sees_the_matrix() -> None:
    model = network()
    twin = copy.deepcopy(model)
    ours = made(hl.optim, "Adam", model)  # its presence makes gradients factored
    optimizers = [
        (made(torch.optim, "Adam", net, fused=fused), net)
        for net, fused in ((model, False), (twin, False))
    ]
    optimizers += [(torch.optim.LBFGS([head_of(net)], max_iter=2), net) for net in (model, twin)]
    for step in range(10):
        for optimizer, net in optimizers:

            def closure(net: Any = net, step: int = step) -> Tensor:
                net.zero_grad()
                return backward(net, step)

            optimizer.step(closure)
            assert isinstance(head_of(net).grad, OuterProduct) == (net is model)
    the_same(model, twin)
    del ours


def test_a_closure_hooks_and_a_frozen_head() -> None:
    model = network()
    twin = copy.deepcopy(model)
    calls = []
    for net, module in ((model, hl.optim), (twin, torch.optim)):
        optimizer = made(module, "Adam", net)
        optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
        optimizer.register_step_post_hook(lambda *_: calls.append("post"))
        for step in range(6):
            head_of(net).requires_grad_(step != 3)

            def closure(net: Any = net, optimizer: Any = optimizer, step: int = step) -> Tensor:
                optimizer.zero_grad()
                return backward(net, step)

            assert optimizer.step(closure).ndim == 0
    assert calls == ["pre", "post"] * 12
    the_same(model, twin)


@pytest.mark.parametrize("name", ["SGD momentum", "Adam", "AdamW"])
@pytest.mark.parametrize("fused", [True, False])
def test_a_gradient_scaler_unscales_and_skips(name: str, fused: bool) -> None:
    model = network()
    twin = copy.deepcopy(model)
    for net, module in ((model, hl.optim), (twin, torch.optim)):
        optimizer = made(module, name, net, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)
        for step in range(8):
            optimizer.zero_grad()
            loss = model_loss(net, step) * (float("inf") if step == 4 else 1.0)
            scaler.scale(loss).backward()
            if step == 2:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(net.parameters(), 0.01)
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 512.0
    the_same(model, twin)


def model_loss(net: hl.HyperModel, step: int) -> Tensor:
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    return net(x, g=0.3).square().mean()


@pytest.mark.parametrize("copying", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_model_and_optimizer_train_on_as_the_originals(copying: Any) -> None:
    model = network()
    optimizer = made(hl.optim, "Adam", model)
    for step in range(3):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
    assert isinstance(head_of(model).grad, OuterProduct)
    alone = copying(model)  # with a gradient in place
    backward(alone, 9)
    assert not isinstance(head_of(alone).grad, OuterProduct)
    twin, twins = copying((model, optimizer))
    for net, stepper in ((model, optimizer), (twin, twins)):
        stepper.zero_grad()
        backward(net, 3)
        assert isinstance(head_of(net).grad, OuterProduct)
        stepper.step()
    the_same(model, twin)


# Of float32 on the CPU: rows of factors, shape of the head, and whether it is stepped from them.
PAYS = {
    "W1, narrow": (1, 32_018, 16, False),
    "W1": (1, 32_018, 128, True),
    "W2, narrow: more than 32 MiB": (1, 629_398, 16, True),
    "of 32 MiB, many rows": (9, 629_398, 16, False),
    "of 32 MiB, half as many rows as columns": (8, 629_398, 16, True),
    "W3, narrow": (1, 195_266, 16, False),
    "W3, 32 columns": (8, 195_266, 32, True),
    "W3, more rows": (9, 195_266, 32, False),
    "just too small": (1, 2**14 - 1, 128, False),
    "just large enough": (1, 2**14, 128, True),
}


@pytest.mark.parametrize("case", PAYS)
def test_factors_are_kept_where_they_pay(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    rows, total, columns, factored = PAYS[case]
    weight = nn.Parameter(torch.zeros(total, columns))
    optimizer = hl.optim.SGD([weight], lr=0.1)
    features = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    dense_product(features, weight).sum().backward()
    gradient = weight.grad
    assert isinstance(gradient, OuterProduct) == factored
    optimizer.step()
    assert weight.grad is gradient  # nothing was built later
    expected = -0.1 * features.sum(0).expand(total, columns)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-5)


def test_on_other_devices_the_matrix_is_built_if_it_can_be_afforded() -> None:
    for total, rows, factored in ((2**21, 1, True), (2**21 - 1, 1, False), (2**21, 65, False)):
        assert passes.pays(torch.empty(total, 128, device="meta"), rows) == factored


def test_factors_that_came_to_too_many_rows_are_stepped_as_a_matrix() -> None:
    model = network()
    twin = copy.deepcopy(model)
    for net, module in ((model, hl.optim), (twin, torch.optim)):
        optimizer = made(module, "Adam", net)
        for part in range(6):  # of 10 columns
            backward(net, part)
        assert isinstance(head_of(net).grad, OuterProduct) == (net is model)
        optimizer.step()
        assert not isinstance(head_of(net).grad, OuterProduct)
    the_same(model, twin)


def test_a_head_is_let_go_with_its_optimizer() -> None:
    model = network()
    optimizer = made(hl.optim, "SGD", model)
    assert takes_factors(head_of(model), 1)
    del optimizer
    gc.collect()
    assert not takes_factors(head_of(model), 1)
    backward(model, 0)
    assert not isinstance(head_of(model).grad, OuterProduct)


@every
def test_low_precision_parameters_step_as_with_torch(name: str) -> None:
    torch.manual_seed(0)
    model = hl.hypernetize(nn.Linear(3, 2).bfloat16(), {"g": hl.Uniform(0.0, 1.0)}, hidden=(6, 10))
    model = model.bfloat16()
    twin = copy.deepcopy(model)
    for net, module in ((model, hl.optim), (twin, torch.optim)):
        optimizer = made(module, name, net, fused=True)
        for step in range(5):
            optimizer.zero_grad()
            net(torch.full((2, 3), 0.1 * step, dtype=torch.bfloat16), g=0.5).sum().backward()
            optimizer.step()
    assert isinstance(head_of(model).grad, OuterProduct)
    the_same(model, twin, tolerance=2e-2)


class LargeTensors(TorchDispatchMode):
    """Counts results of operations that take as much memory as the head's weight."""

    def __init__(self, entries: int) -> None:
        super().__init__()
        self.entries, self.found = entries, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        views = any(a.alias_info is not None for a in func._schema.arguments)
        for tensor in torch.utils._pytree.tree_leaves(result):
            made = isinstance(tensor, Tensor) and not isinstance(tensor, OuterProduct)
            if made and not views and tensor.numel() >= self.entries:
                self.found.append(str(func))
        return result


@pytest.mark.parametrize("rows", [0, 3])
@every
def test_no_step_allocates_a_matrix(name: str, rows: int) -> None:
    hl.optim.set_implementation("eager")
    model = network(columns=16)
    optimizer = made(hl.optim, name, model)
    for step in range(3):
        with LargeTensors(head_of(model).numel() // 2) as large:
            optimizer.zero_grad()
            backward(model, step, rows)
            backward(model, step + 10, rows)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        if step:  # the first makes the state
            assert large.found == []
    twin = network()
    stock = made(torch.optim, name, twin)
    with LargeTensors(head_of(twin).numel() // 2) as large:
        backward(twin, 0)
        stock.step()
    assert large.found  # which the counter would have seen


# --- freed memory -------------------------------------------------------------

FAULTS = """
import resource, sys, torch, hyperlight as hl

def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(2**22) for _ in range(10)]  # 16 MiB each
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = max(faults() for _ in range(4))
hl.optim.Adam(torch.nn.Linear(2, 2).parameters())
later = [faults() for _ in range(4)]
print(first, min(later), max(later))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is asked to keep")
@pytest.mark.parametrize("chosen", [False, True])
def test_freed_memory_is_kept_for_the_next_step_unless_the_user_chose(chosen: bool) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    if chosen:
        environment["MALLOC_TRIM_THRESHOLD_"] = str(2**20)
    command = [sys.executable, "-c", FAULTS]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    before, least, most = map(int, result.stdout.split())
    assert before > 2000  # pages, of 40,960
    assert (most > 2000) if chosen else (least < 500)
