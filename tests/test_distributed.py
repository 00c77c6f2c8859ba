"""Several processes: a model sent to one, and gradients averaged over two."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import hyperlight as hl

LIMIT = 120.0  # seconds until a process that hangs is stopped
WORLD = 2


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 2)).double()


def model() -> hl.HyperModel:
    torch.manual_seed(1)
    return hl.hypernetize(network(), {"gamma": hl.Uniform(0.0, 1.0), "z": hl.Normal(2)})


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    return x, torch.randn(8, 2, generator=generator, dtype=torch.float64)


GAMMAS = {"the same gamma": [0.3, 0.3], "a gamma each": [0.1, 0.8]}
Z = torch.tensor([0.5, -0.2], dtype=torch.float64)


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def run(work: Callable[..., None], *args: Any, processes: int) -> None:
    """Run ``work(rank, *args)`` in fresh processes; an error or a hang in one fails the test.

    They are spawned: one that is forked from a process with threads hangs now and then.
    """
    context = torch.multiprocessing.start_processes(
        work, args=args, nprocs=processes, join=False, start_method="spawn"
    )
    end = datetime.datetime.now() + datetime.timedelta(seconds=LIMIT)
    try:
        while not context.join(timeout=5.0):
            assert datetime.datetime.now() < end, "the processes did not end in time"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()


def answer(rank: int, net: hl.HyperModel, x: Tensor, folder: str) -> None:
    torch.set_num_threads(1)
    y = net(x, gamma=0.3, z=Z)
    y.square().mean().backward()
    torch.save((y.detach(), gradients(net)), Path(folder) / f"{rank}.pt")


def test_a_model_that_was_sent_to_a_spawned_process_gives_the_same(tmp_path: Path) -> None:
    net, (x, _) = model(), batch()
    run(answer, net, x, str(tmp_path), processes=1)
    found, sent_back = torch.load(tmp_path / "0.pt", weights_only=True)
    y = net(x, gamma=0.3, z=Z)
    y.square().mean().backward()
    assert torch.allclose(found, y, rtol=1e-12, atol=1e-12)
    assert sent_back.keys() == gradients(net).keys()
    for name, gradient in gradients(net).items():
        assert torch.allclose(sent_back[name], gradient, rtol=1e-10, atol=1e-12), name


def step(rank: int, gammas: list[float], folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=LIMIT),
    )
    try:
        net = model()
        if rank:  # what rank 0 has is sent to all
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter.add_(1.0)
        parallel = DistributedDataParallel(net)
        x, target = (part.chunk(WORLD)[rank] for part in batch())
        optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            (parallel(x, gamma=gammas[rank], z=Z) - target).square().mean().backward()
            optimizer.step()
        saved = (list(net.hypernet.shapes), gradients(net), net.state_dict())
        torch.save(saved, Path(folder) / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="this build of torch has none")
@pytest.mark.parametrize("gammas", GAMMAS.values(), ids=GAMMAS.keys())
def test_two_processes_train_as_one_on_the_joint_batch(gammas: list[float], tmp_path: Path) -> None:
    run(step, gammas, str(tmp_path), processes=WORLD)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]

    net = model()
    x, target = batch()
    parts = list(zip(gammas, x.chunk(WORLD), target.chunk(WORLD), strict=True))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        if gammas[0] == gammas[1]:
            (net(x, gamma=gammas[0], z=Z) - target).square().mean().backward()
        else:
            losses = [(net(a, gamma=g, z=Z) - b).square().mean() for g, a, b in parts]
            torch.stack(losses).mean().backward()
        optimizer.step()

    for names, found, state in results:
        assert names == list(net.hypernet.shapes)
        assert found.keys() == gradients(net).keys()
        for name, gradient in gradients(net).items():
            assert torch.allclose(found[name], gradient, rtol=1e-9, atol=1e-12), name
        for name, value in net.state_dict().items():
            assert torch.allclose(state[name], value, rtol=1e-9, atol=1e-12), name
