"""The regularizer against forgetting: what it measures, what it stores, and that it protects."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hyperlight as hl
from tests.models import mlp


def naive_distance(old: list[dict[str, Tensor]], new: list[dict[str, Tensor]]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for before, after in zip(old, new, strict=True):
        for name in before:
            total = total + sum(
                (a - b) ** 2
                for a, b in zip(
                    after[name].flatten().tolist(), before[name].flatten().tolist(), strict=True
                )
            )
    return total / len(old)


def shaken(model: hl.HyperModel) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize(
    ("inputs", "count"),
    [
        ({"task": hl.Categorical(4)}, 3),
        ({"g": hl.LogUniform(1e-3, 1.0), "z": hl.Normal(3)}, 5),
    ],
    ids=["task", "two inputs"],
)
def test_it_is_the_mean_squared_distance(inputs: dict[str, hl.Input], count: int) -> None:
    model = hl.hypernetize(mlp().double(), inputs)
    gammas = model.sample((count,))
    rows = [{name: value[i] for name, value in gammas.items()} for i in range(count)]
    regularizer = hl.OutputRegularizer(model, gammas)
    assert regularizer().item() < 1e-30  # but for rounding
    old = [model.predict(**row) for row in rows]
    shaken(model)
    loss = regularizer()
    assert loss.shape == ()
    assert loss.item() == pytest.approx(
        naive_distance(old, [model.predict(**row) for row in rows]).item(), rel=1e-9
    )
    loss.backward()
    assert all(p.grad is not None for p in model.primary.parameters())
    assert float(model.hypernet.head.weight.grad.norm()) > 0
    assert not any(True for _ in regularizer.parameters())


def test_a_subset_is_drawn_anew_and_without_replacement() -> None:
    model = hl.hypernetize(nn.Linear(2, 1), {"task": hl.Categorical(4)})
    regularizer = hl.OutputRegularizer(model, {"task": torch.arange(4)}, subset=1)
    shaken(model)
    single = [hl.OutputRegularizer(model, {"task": torch.tensor([i])}) for i in range(4)]
    for one, theta in zip(single, regularizer.theta, strict=True):
        one.theta.copy_(theta[None])
    expected = sorted(one().item() for one in single)
    found = sorted({round(regularizer().item(), 6) for _ in range(100)})
    assert found == pytest.approx(expected, abs=1e-6)
    regularizer.subset = 3
    triples = {round(regularizer().item(), 5) for _ in range(100)}
    total = sum(expected)
    assert sorted(triples) == pytest.approx(sorted((total - e) / 3 for e in expected), abs=1e-4)


def test_its_memory_is_state_of_its_own_and_follows_the_model() -> None:
    model = hl.hypernetize(mlp(), {"task": hl.Categorical(2), "g": hl.Uniform(0.0, 1.0)})
    gammas = {"task": torch.tensor([0, 1]), "g": 0.5}
    regularizer = hl.OutputRegularizer(model, gammas)
    assert set(regularizer.state_dict()) == {"gamma_task", "gamma_g", "theta"}
    assert "conditions=2, weights=32" in repr(regularizer)
    state = {name: t.clone() for name, t in regularizer.state_dict().items()}
    shaken(model)
    later = hl.OutputRegularizer(model, gammas)
    assert later().item() < 1e-13
    later.load_state_dict(state)
    assert later().item() == pytest.approx(regularizer().item())
    before = regularizer().item()
    model.double()
    assert regularizer().dtype == torch.float64
    assert regularizer().item() == pytest.approx(before, rel=1e-5)
    copied = copy.deepcopy(regularizer)
    assert copied().item() == pytest.approx(before, rel=1e-5)
    with torch.no_grad():
        model.hypernet.head.weight.add_(1.0)
    moved = regularizer().item()
    assert copied().item() == moved != pytest.approx(before, rel=1e-5)  # of the same model
    _, follows = copy.deepcopy([model, regularizer])
    with torch.no_grad():
        model.hypernet.head.weight.add_(1.0)
    assert follows().item() == moved != regularizer().item()  # of the copied model
    regularizer.to(torch.float64)
    assert regularizer.gamma_task.dtype == torch.int64
    model.to("meta")
    assert regularizer().device.type == "meta"
    assert regularizer.theta.device.type == "meta"


@pytest.mark.parametrize(
    ("gammas", "options", "error", "words"),
    [
        ({"task": 0}, {}, hl.InputError, r"batch shape \(\); expected \(N,\)"),
        ({"task": torch.zeros(2, 2).long()}, {}, hl.InputError, r"batch shape \(2, 2\)"),
        ({"task": torch.zeros(0).long()}, {}, hl.InputError, r"batch shape \(0,\)"),
        ({"task": torch.tensor([7])}, {}, hl.InputError, "integers from 0 to 2"),
        ([{"task": 0}], {}, hl.InputError, "gammas was list; expected every input by name"),
        ({"task": torch.arange(3)}, {"subset": 4}, hl.ConfigurationError, "from 1 to 3"),
        ({"task": torch.arange(3)}, {"subset": 0}, hl.ConfigurationError, "subset was 0"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(
    gammas: object, options: dict[str, int], error: type[Exception], words: str
) -> None:
    model = hl.hypernetize(mlp(), {"task": hl.Categorical(3)})
    with pytest.raises(error, match=words):
        hl.OutputRegularizer(model, gammas, **options)


@pytest.mark.parametrize("protected", [False, True])
def test_a_second_task_makes_it_forget_the_first_unless_protected(protected: bool) -> None:
    torch.manual_seed(0)
    primary = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    model = hl.hypernetize(primary, {"task": hl.Categorical(2)}, hidden=(16,))
    x = torch.linspace(-1, 1, 64)[:, None]
    targets = [torch.sin(3 * x), torch.cos(3 * x)]
    protection = None
    for task, y in enumerate(targets):
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(400):
            loss = F.mse_loss(model(x, task=task), y)
            if protection is not None:
                loss = loss + protection()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert F.mse_loss(model(x, task=task), y).item() < 0.02  # it learns each in its turn
        if task == 0 and protected:
            protection = hl.OutputRegularizer(model, {"task": torch.tensor([0])})
    error = F.mse_loss(model(x, task=0), targets[0]).item()
    assert error < 0.03 if protected else error > 0.2


def test_new_tasks_come_and_old_ones_and_their_blends_are_protected() -> None:
    """A task is added while an optimizer goes on; what was learned is kept."""
    torch.manual_seed(0)
    model = hl.hypernetize(mlp(), {"task": hl.Categorical(1, features=4)})
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x = torch.randn(64, 3)
    targets = [x[:, :2], -x[:, :2], x[:, 1:]]
    protect: list[hl.OutputRegularizer] = []
    for task, y in enumerate(targets):
        if task:
            model.extend("task", optimizer=optimizer)
            protect = [hl.OutputRegularizer(model, {"task": torch.arange(task)})]
            assert protect[0]().item() < 1e-13
        for _ in range(200):
            loss = (model(x, task=task) - y).square().mean() + sum(old() for old in protect)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for task, y in enumerate(targets):
        assert (model(x, task=task) - y).square().mean() < 0.1
    blends = {"task": torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])}
    old = hl.OutputRegularizer(model, blends)
    assert old.get_buffer("gamma_task").shape == (2, 3)
    assert old().item() < 1e-13
    shaken(model)
    rows = torch.stack(
        [
            torch.cat([t.flatten() for t in model.predict(task=blend).values()])
            for blend in blends["task"]
        ]
    )
    torch.testing.assert_close(old(), (rows - old.theta).square().sum(-1).mean())
