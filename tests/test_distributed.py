"""Several processes: a model sent to one, and gradients averaged over two."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import hyperlight as hl
from hyperlight.many import Run

LIMIT = 120.0  # seconds until a process that hangs is stopped
WORLD = 2
needs_processes = pytest.mark.skipif(
    not distributed.is_available(), reason="this build of torch has no torch.distributed"
)
INPUTS = {"gamma": hl.Uniform(0.0, 1.0), "z": hl.Normal(2)}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 2)).double()


def model() -> hl.HyperModel:
    torch.manual_seed(1)
    return hl.hypernetize(network(), INPUTS)


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
        _work_and_end, args=(work, *args), nprocs=processes, join=False, start_method="spawn"
    )
    end = datetime.datetime.now() + datetime.timedelta(seconds=LIMIT)
    try:
        while not context.join(timeout=5.0):
            assert datetime.datetime.now() < end, "the processes did not end in time"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()


def _work_and_end(rank: int, work: Callable[..., None], *args: Any) -> None:
    """End at once when the work is done: threads of gloo now and then abort the end of Python."""
    work(rank, *args)
    os._exit(0)


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


@needs_processes
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


# --- FSDP2 ------------------------------------------------------------------------------


def leaves(net: nn.Module) -> list[nn.Module]:
    return [m for m in net.modules() if not list(m.children()) and list(m.parameters())]


# What is sharded, each on its own, before the root.
SHARDED: dict[str, Callable[[hl.HyperModel], list[nn.Module]]] = {
    "root": lambda net: [],
    "head": lambda net: [net.hypernet.head],
    "trunk": lambda net: [net.hypernet.trunk],
}
REFUSED: dict[str, tuple[Callable[[hl.HyperModel], list[nn.Module]], str]] = {
    "layers": (lambda net: leaves(net.primary), "Parameter '0.weight' of the primary is"),
    "primary": (lambda net: [net.primary], "Parameter '0.weight' of the primary is"),
    "hypernetwork": (lambda net: [net.hypernet], "The hypernetwork is"),
    "low-rank head": (lambda net: [net.hypernet.head], "The LowRank head is"),
    "per layer": (lambda net: [net.hypernet.head], "The PerLayer head is"),
    "channel scale": (lambda net: [net.hypernet.head], "The ChannelScale head is"),
    "several heads": (lambda net: [net.hypernet.head], "A head of several is"),
}
HEADS: dict[str, Any] = {
    "low-rank head": hl.LowRank(1),
    "per layer": hl.PerLayer(rank=1),
    "channel scale": hl.ChannelScale(),
    "several heads": {"*": hl.Dense()},
}


def started(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=LIMIT),
    )


def train(net: Any, optimizer: Any, x: Tensor, target: Tensor) -> None:
    for _ in range(3):
        optimizer.zero_grad()
        (net(x, gamma=0.3, z=Z) - target).square().mean().backward()
        optimizer.step()


def shard(rank: int, folder: str) -> None:
    from torch.distributed.fsdp import fully_shard

    started(rank, folder)
    try:
        mesh = distributed.device_mesh.init_device_mesh("cpu", (WORLD,))
        x, target = (part.chunk(WORLD)[rank] for part in batch())
        found: dict[str, Any] = {}
        for kind in (torch.optim.SGD, hl.optim.SGD, hl.optim.AdamW):
            for name, parts in SHARDED.items():
                net = model()
                for part in [*parts(net), net]:
                    fully_shard(part, mesh=mesh)
                optimizer = kind(net.parameters(), lr=0.1)
                assert not optimizer.param_groups[0]["fused"]
                train(net, optimizer, x, target)
                whole = {n: p.full_tensor().detach() for n, p in net.named_parameters()}
                found[f"{kind.__module__} {kind.__name__} {name}"] = whole
        for name, (parts, what) in REFUSED.items():
            net = hl.hypernetize(network(), INPUTS, head=HEADS.get(name, hl.Dense()))
            for part in [*parts(net), net]:
                fully_shard(part, mesh=mesh)
            with pytest.raises(hl.ConfigurationError, match=f"{what} sharded over processes"):
                net(x, gamma=0.3, z=Z)
        refuse_outside_of_a_call(fully_shard, mesh)
        torch.save(found, Path(folder) / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()


def refuse_outside_of_a_call(fully_shard: Any, mesh: Any) -> None:
    net, x = model(), batch()[0]
    expected = net.bind(gamma=0.3, z=Z)(x)
    fully_shard(net, mesh=mesh)
    many = torch.tensor([0.1, 0.2], dtype=torch.float64)
    for use in (
        lambda: net.bind(gamma=0.3, z=Z),
        lambda: net.predict(gamma=0.3, z=Z),
        lambda: net.sweep(x, gamma=many, z=Z),
    ):
        with pytest.raises(hl.ConfigurationError, match=r"gather it first: model.unshard"):
            use()
    with pytest.raises(hl.FormatError, match="is a DTensor, of which each process holds a part"):
        hl.save(net, "never.safetensors")
    net.unshard()
    assert torch.allclose(net.bind(gamma=0.3, z=Z)(x), expected)
    primary = network()
    fully_shard(primary, mesh=mesh)
    with pytest.raises(hl.ConfigurationError, match="once it is hypernetized"):
        hl.hypernetize(primary, INPUTS)


@needs_processes
def test_fully_shard_trains_as_one_process_or_is_refused(tmp_path: Path) -> None:
    run(shard, str(tmp_path), processes=WORLD)
    for rank in range(WORLD):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert len(results) == 9
        for name, found in results.items():
            net = model()
            kind = hl.optim.AdamW if "AdamW" in name else torch.optim.SGD
            train(net, kind(net.parameters(), lr=0.1), *batch())
            for key, value in net.named_parameters():
                assert torch.allclose(found[key], value, rtol=1e-9, atol=1e-12), (name, key)


def gathered(net: Any) -> dict[str, Tensor]:
    """The whole parameters of a network that FSDP has sharded."""
    with type(net).summon_full_params(net):
        return {name: p.detach().clone() for name, p in net.module.named_parameters()}


def shard_flat(rank: int, folder: str) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    started(rank, folder)
    try:
        net = FullyShardedDataParallel(model(), device_id=torch.device("cpu"), use_orig_params=True)
        x, target = (part.chunk(WORLD)[rank] for part in batch())
        train(net, torch.optim.SGD(net.parameters(), lr=0.1), x, target)
        torch.save(gathered(net), Path(folder) / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()


@needs_processes
def test_the_older_fsdp_trains_as_one_process(tmp_path: Path) -> None:
    run(shard_flat, str(tmp_path), processes=WORLD)
    net = model()
    train(net, torch.optim.SGD(net.parameters(), lr=0.1), *batch())
    for rank in range(WORLD):
        assert_same(net, torch.load(tmp_path / f"{rank}.pt", weights_only=True))


def assert_same(net: nn.Module, found: dict[str, Tensor]) -> None:
    """That a state dict of another process has the parameters of this one, to rounding."""
    for name, value in net.named_parameters():
        assert torch.allclose(found[name], value, rtol=1e-9, atol=1e-12), name


def train_each(net: Any, parts: int, part: int) -> None:
    """Three steps with one gamma for every sample, on a part of the batch."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    gamma, z = torch.linspace(0.0, 1.0, 8, dtype=torch.float64), Z + torch.arange(8.0).unsqueeze(-1)
    x, target, gamma, z = (tensor.chunk(parts)[part] for tensor in (*batch(), gamma, z))
    for _ in range(3):
        optimizer.zero_grad()
        (net(x, gamma=gamma, z=z) - target).square().mean().backward()
        optimizer.step()


def each_sample(rank: int, folder: str) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    started(rank, folder)
    try:
        plain, sharded = model(), model()
        train_each(torch.nn.parallel.DistributedDataParallel(plain), WORLD, rank)
        net = FullyShardedDataParallel(sharded, device_id=torch.device("cpu"), use_orig_params=True)
        train_each(net, WORLD, rank)
        assert [str(own.last_run) for own in (plain, sharded)] == [str(Run("batch"))] * 2
        torch.save([plain.state_dict(), gathered(net)], Path(folder) / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()


@needs_processes
def test_one_gamma_per_sample_trains_as_one_process(tmp_path: Path) -> None:
    run(each_sample, str(tmp_path), processes=WORLD)
    net = model()
    train_each(net, 1, 0)
    for rank in range(WORLD):
        for found in torch.load(tmp_path / f"{rank}.pt", weights_only=True):
            assert_same(net, found)
