"""Steps as CUDA graphs: the numbers of a run are those of steps that are launched one by one."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from hyperlight import optim
from hyperlight.lab import train as training
from hyperlight.lab.errors import LabError
from hyperlight.lab.graphs import Captured, can_capture
from hyperlight.lab.tasks.bayes import Bayes, BayesTask
from hyperlight.lab.tasks.hypermorph import Hypermorph, HypermorphTask
from hyperlight.lab.tasks.vae import Vae, VaeTask
from hyperlight.lab.train import Training, train
from tests.lab.making import equal_runs

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device, which this machine lacks"
)


class Rerun(Captured):
    """Stands in on a machine without a GPU: what was captured runs again, on the same tensors."""

    replays = 0

    def _aside(self, batch: Any, gamma: Any) -> Any:
        return self.compute(batch, gamma)

    def _capture(self, given: Any) -> None:
        self.given = copy.deepcopy(given)
        self.found = self.compute(*self.given)
        self.gradients = [p.grad for p in self.parameters]
        self.graph: Any = SimpleNamespace(replay=self._again)

    def _again(self) -> None:
        type(self).replays += 1
        before = [p.grad for p in self.parameters]
        for kept, value in zip(self.found, self.compute(*self.given), strict=True):
            kept.copy_(value)
        for parameter, kept, own in zip(self.parameters, self.gradients, before, strict=True):
            if kept is not None:
                assert parameter.grad is not None
                kept.copy_(parameter.grad)
            parameter.grad = own  # a graph knows nothing of Python's attributes


@pytest.fixture
def rerun(monkeypatch: pytest.MonkeyPatch) -> type[Rerun]:
    monkeypatch.setattr(training, "Captured", Rerun)
    monkeypatch.setattr(training, "can_capture", lambda fabric: True)
    monkeypatch.setattr(Rerun, "replays", 0)
    return Rerun


def _registration() -> HypermorphTask:
    config = Hypermorph(
        size=(16, 16), levels=2, channels=4, evaluation_gammas=2, evaluation_pairs=2, final_pairs=2
    )
    return HypermorphTask(config, CPU)


@pytest.mark.parametrize("formulation", ["mip", "plain", "film", "channel", "shared"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_run_of_captured_steps_is_the_run(
    fabric: Fabric, rerun: type[Rerun], formulation: Any, optimizer: Any
) -> None:
    task = _registration()
    how = {"steps": 7, "evaluate_every": 4, "batch_size": 3, "schedule": "cosine"}
    runs = [
        list(train(task, formulation, 0, Training(optimizer=optimizer, graph=graph, **how), fabric))
        for graph in (False, True)  # type: ignore[arg-type]
    ]
    assert rerun.replays == 4
    assert equal_runs(runs[0][-1], runs[1][-1])


def test_a_run_of_captured_steps_over_several_gammas_is_the_run(
    fabric: Fabric, rerun: type[Rerun]
) -> None:
    task = VaeTask(Vae(data="digits"), CPU)
    how = {"steps": 5, "evaluate_every": 5, "batch_size": 32, "rates": "groups"}
    runs = [
        list(train(task, "mip", 0, Training(graph=graph, **how), fabric))  # type: ignore[arg-type]
        for graph in (False, True)
    ]
    assert rerun.replays == 2
    assert equal_runs(runs[0][-1], runs[1][-1])


def test_tasks_that_read_values_back_are_not_captured(fabric: Fabric, rerun: type[Rerun]) -> None:
    list(train(BayesTask(Bayes(), CPU), "mip", 0, Training(steps=5, evaluate_every=5), fabric))
    assert rerun.replays == 0


def test_steps_are_captured_on_one_gpu_alone() -> None:
    def on(kind: str, size: int) -> Any:
        return SimpleNamespace(device=SimpleNamespace(type=kind), world_size=size)

    assert can_capture(on("cuda", 1))
    assert not can_capture(on("cuda", 2))
    assert not can_capture(on("cpu", 1))


def test_an_optimizer_may_put_other_gradients_in_place() -> None:
    """As those of hl.optim do, where a step from the matrix is faster than one from the factors."""
    layer = nn.Linear(2, 1, bias=False)

    def compute(batch: Any, gamma: Any) -> Any:
        layer.weight.grad = None
        loss = layer(batch[0]).square().sum() * gamma["gamma"]
        loss.backward()
        assert layer.weight.grad is not None
        return loss.detach(), layer.weight.grad.norm()

    step = Rerun(compute, layer, CPU)
    for number in range(1, 7):
        x, gamma = torch.randn(3, 2), {"gamma": torch.tensor(float(number))}
        loss, norm = step((x,), gamma)
        assert layer.weight.grad is not None
        found = layer.weight.grad.clone()
        layer.weight.grad = torch.full((1, 2), torch.nan)
        wanted = compute((x,), gamma)
        assert torch.equal(found, layer.weight.grad)
        assert (loss, norm) == wanted


def test_a_batch_of_other_things_is_refused_at_once() -> None:
    step = Rerun(lambda batch, gamma: (batch[0], batch[0]), nn.Linear(1, 1), CPU)
    with pytest.raises(LabError, match="held a value of type float; expected tensors, in tuples"):
        step((torch.zeros(()), 0.5), {})
    assert step((torch.zeros(()), {"a": torch.ones(2)}), {})


@needs_gpu
@pytest.mark.parametrize("formulation", ["classical", "mip", "plain", "film", "channel", "shared"])
def test_a_graph_trains_as_single_kernels_do(formulation: Any) -> None:
    fabric = Fabric(accelerator="cuda", devices=1)
    config = Hypermorph(size=(16, 16), levels=2, channels=4, evaluation_gammas=2)
    task = HypermorphTask(config, fabric.device)
    how: dict[str, Any] = {"steps": 12, "evaluate_every": 6, "batch_size": 3}
    how |= {"schedule": "cosine", "rates": "groups", "lr": 1e-3}
    eager, graph = (
        list(train(task, formulation, 0, Training(graph=captured, **how), fabric))[-1]
        for captured in (False, True)
    )
    assert graph.loss == pytest.approx(eager.loss, rel=1e-3)
    assert graph.gradient_norm == pytest.approx(eager.gradient_norm, rel=1e-2)


@needs_gpu
def test_the_factors_of_a_head_can_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the gradient of a head is so large that it is kept as its factors."""
    monkeypatch.setattr("hyperlight.optim.outer.takes_factors", lambda weight, rows: True)
    fabric = Fabric(accelerator="cuda", devices=1)
    task = HypermorphTask(Hypermorph(size=(16, 16), levels=2, channels=4), fabric.device)
    assert isinstance(Training().make_optimizer(task.model("mip", 0)), optim.Adam)
    how: dict[str, Any] = {"steps": 8, "evaluate_every": 8, "batch_size": 3, "lr": 1e-3}
    eager, graph = (
        list(train(task, "mip", 0, Training(graph=captured, **how), fabric))[-1]
        for captured in (False, True)
    )
    assert graph.loss == pytest.approx(eager.loss, rel=1e-3)
