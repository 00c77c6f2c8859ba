"""Factors exchanged between processes: exactly the mean, in every way to train."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import hyperlight as hl
from hyperlight.optim.outer import OuterProduct
from tests.test_distributed import LIMIT, run

STEPS = 4
# name -> how to train
CASES: dict[str, dict[str, Any]] = {
    "Adam": {"optimizer": "Adam"},
    "SGD, clipped by norm": {"optimizer": "SGD", "clip": 0.05},
    "AdamW, accumulated": {"optimizer": "AdamW", "micro": 3},
    "Adam, two heads": {"optimizer": "Adam", "mixed": True},
    "Adam, gammas per sample": {"optimizer": "Adam", "rows": True},
    "Adam, in a larger module": {"optimizer": "Adam", "outer": True},
    "Adam of torch": {"optimizer": "Adam", "stock": True},
    "Adam, gradients kept": {"optimizer": "Adam", "keep": True},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "Adam": {"lr": 0.01},
    "AdamW": {"lr": 0.01, "weight_decay": 0.1},
    "SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True},
}


class Outer(nn.Module):
    """A HyperModel among other layers."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.last = nn.Linear(2, 2).double()

    def forward(self, x: Tensor, **gamma: Any) -> Tensor:
        output: Tensor = self.last(self.inner(x, **gamma))
        return output


def network(case: dict[str, Any], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    primary = nn.Sequential(nn.Linear(3, 24), nn.Tanh(), nn.Linear(24, 2)).double()
    head: Any = {"0.*": hl.Dense(), "*": hl.Dense()} if case.get("mixed") else hl.Dense()
    model = hl.hypernetize(primary, {"g": hl.Uniform(0.0, 1.0)}, hidden=(6, 12), head=head)
    return Outer(model) if case.get("outer") else model


def loss(net: nn.Module, case: dict[str, Any], step: int, part: int, rank: int) -> Tensor:
    """Of one process; the processes have unequal numbers of samples where each has its gamma."""
    generator = torch.Generator().manual_seed(1000 * step + 10 * part + rank)
    samples = rank + 1 if case.get("rows") else 4
    x = torch.randn(samples, 3, dtype=torch.float64, generator=generator)
    shape = (samples,) if case.get("rows") else ()
    g = torch.rand(shape, dtype=torch.float64, generator=generator)
    value: Tensor = (net(x, g=g) - 1.0).square().mean()
    return value


def made(case: dict[str, Any], net: nn.Module, stock: bool) -> torch.optim.Optimizer:
    module: Any = torch.optim if stock else hl.optim
    name = case["optimizer"]
    optimizer: torch.optim.Optimizer = getattr(module, name)(net.parameters(), **OPTIONS[name])
    return optimizer


def alone(case: dict[str, Any], world: int) -> nn.Module:
    """The twin: one process, the mean of the losses, the optimizers of torch."""
    net = network(case)
    optimizer = made(case, net, stock=True)
    for step in range(STEPS):
        if not case.get("keep") or step % 2 == 0:
            optimizer.zero_grad()
        for part in range(case.get("micro", 1)):
            losses = [loss(net, case, step, part, rank) for rank in range(world)]
            torch.stack(losses).mean().backward()
        if "clip" in case:
            nn.utils.clip_grad_norm_(net.parameters(), case["clip"])
        optimizer.step()
    return net


def together(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=LIMIT),
    )
    found: dict[str, Any] = {}
    try:
        for name, case in CASES.items():
            net = network(case, seed=rank)  # what rank 0 has is sent to all
            exchange = hl.exchange_factors(net)
            parallel = DistributedDataParallel(net)
            optimizer = made(case, parallel, stock=case.get("stock", False))
            for step in range(STEPS):
                if not case.get("keep") or step % 2 == 0:
                    optimizer.zero_grad()
                parts = case.get("micro", 1)
                for part in range(parts):
                    if part < parts - 1:
                        with parallel.no_sync():
                            loss(parallel, case, step, part, rank).backward()
                    else:
                        loss(parallel, case, step, part, rank).backward()
                if "clip" in case:
                    nn.utils.clip_grad_norm_(parallel.parameters(), case["clip"])
                optimizer.step()
            heads = [m.weight.grad for m in net.modules() if isinstance(m, hl.Dense)]
            twin = alone(case, world)
            found[name] = {
                "factored": all(isinstance(g, OuterProduct) and g.factored for g in heads),
                "gap": max(
                    float((a - b).detach().abs().max())
                    for a, b in zip(net.parameters(), twin.parameters(), strict=True)
                ),
                "sent": exchange.sent,
                "dense": exchange.dense,
            }
        found["again"] = refused(net, group=None)
        found["wrapped"] = refused(DistributedDataParallel(network({})))
        found["no head"] = refused(nn.Linear(2, 2))
    finally:
        distributed.destroy_process_group()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))


def refused(net: nn.Module, **more: Any) -> str:
    try:
        hl.exchange_factors(net, **more)
    except hl.ConfigurationError as error:
        return str(error)
    return "nothing was raised"


@pytest.mark.skipif(
    not distributed.is_available(), reason="this build of torch has no torch.distributed"
)
@pytest.mark.parametrize("world", [2, 4])
def test_processes_that_exchange_factors_train_as_one(world: int, tmp_path: Path) -> None:
    run(together, world, str(tmp_path), processes=world)
    for rank in range(world):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        for name, case in CASES.items():
            assert found[name]["gap"] < 1e-9, (rank, name)
            # Of torch.optim, and where many rows are no less than the matrix, it is dense.
            if case.keys() <= {"optimizer", "clip", "mixed", "outer"}:
                assert found[name]["factored"], name
                assert found[name]["sent"] < 0.25 * found[name]["dense"], name
        assert found["Adam of torch"]["sent"] > found["Adam of torch"]["dense"]
        assert "was called for this HyperModel before; once is enough" in found["again"]
        assert "is wrapped in DistributedDataParallel already" in found["wrapped"]
        assert "Linear has no hyperlight.Dense head that is trained" in found["no head"]


def test_without_processes_it_says_what_to_do() -> None:
    assert "there is no process group. Call it in every process after" in refused(network({}))


def with_fabric(fabric: Any, folder: str) -> None:
    torch.set_num_threads(1)
    case = CASES["AdamW, accumulated"]
    net: Any = network(case, seed=fabric.global_rank)
    exchange = hl.exchange_factors(net)
    model, optimizer = fabric.setup(net, made(case, net, stock=False))
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in range(case["micro"]):
            with fabric.no_backward_sync(model, enabled=part < case["micro"] - 1):
                fabric.backward(loss(model, case, step, part, fabric.global_rank))
        optimizer.step()
    twin = alone(case, fabric.world_size)
    gap = max(
        float((a - b).detach().abs().max())
        for a, b in zip(net.parameters(), twin.parameters(), strict=True)
    )
    found = {"gap": gap, "sent": exchange.sent}
    (Path(folder) / f"{fabric.global_rank}.json").write_text(json.dumps(found))


@pytest.mark.skipif(
    not distributed.is_available(), reason="this build of torch has no torch.distributed"
)
def test_lightning_fabric_trains_as_one(tmp_path: Path) -> None:
    fabric = pytest.importorskip("lightning_fabric", reason="the extra lab is not there")
    strategy = fabric.strategies.DDPStrategy(start_method="spawn")
    runner = fabric.Fabric(accelerator="cpu", devices=2, strategy=strategy)
    runner.launch(with_fabric, str(tmp_path))
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["gap"] < 1e-9
        assert found["sent"] > 0
