"""Problems for every gamma: exact solutions, contradictory tasks, and what models are tested on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

import hyperlight as hl
from hyperlight.lab.controls import ByHand, Separate
from hyperlight.lab.data import Images
from hyperlight.lab.errors import LabError
from hyperlight.lab.tasks.problems import Problems, ProblemsTask, _Equation, _Implicit
from hyperlight.lab.train import Training, train
from tests.lab.making import equal_runs

CPU = torch.device("cpu")
EQUATIONS = ("reaction", "oscillation")
COSTS = ("cost", "expected-cost")
PROBLEMS = (*EQUATIONS, "implicit", "adapters", *COSTS)
every_problem = pytest.mark.parametrize("name", PROBLEMS)


def _task(name: str, **changes: Any) -> ProblemsTask:
    small: dict[str, Any] = {"hidden": (8,), "directions": 3, "width": 8, "count": 2, "gammas": 4}
    small |= {"pretraining": 3, "evaluation_images": 20}
    return ProblemsTask(Problems(problem=name, **{**small, **changes}), CPU)  # type: ignore[arg-type]


def _settings(**changes: Any) -> Training:
    return Training(**{"steps": 3, "evaluate_every": 3, "batch_size": 16, "lr": 1e-2, **changes})


class _Known(nn.Module):
    """What the network of an equation has to give, from its exact solution."""

    def __init__(self, equation: _Equation) -> None:
        super().__init__()
        self.equation = equation

    def forward(self, x: Tensor, gamma: Tensor) -> Tensor:
        u, zero = self.equation.exact(gamma[:, None, None], x), torch.zeros_like(x)
        start = self.equation.solution(x, zero)
        return (u - start) / (self.equation.solution(x, zero + 1.0) - start)


# --- equations ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", EQUATIONS)
def test_the_exact_solution_leaves_nothing_of_the_equation(name: str) -> None:
    equation = _task(name).problem
    assert isinstance(equation, _Equation)
    a = equation.space.grid(5, dtype=torch.float64)
    inside = torch.linspace(0.05, 0.95, 50, dtype=torch.float64).repeat(5)
    assert float(equation.losses(_Known(equation), inside, a).detach().max()) < 1e-12

    class Wrong(_Known):
        def forward(self, x: Tensor, gamma: Tensor) -> Tensor:
            return super().forward(x, 1.1 * gamma)

    assert float(equation.losses(Wrong(equation), inside, a).detach().min()) > 1e-3


@pytest.mark.parametrize("name", EQUATIONS)
def test_the_exact_solution_meets_its_conditions(name: str) -> None:
    equation = _task(name).problem
    assert isinstance(equation, _Equation)
    a = torch.tensor([[[2.0]], [[8.0]]], dtype=torch.float64)
    ends = torch.tensor([0.0, 1e-6, 1.0], dtype=torch.float64).reshape(1, 3, 1)
    first, after, last = equation.exact(a, ends).unbind(1)
    if name == "reaction":
        assert float(first.abs().max()) < 1e-12
        assert float(last.abs().max()) < 1e-12
    else:
        torch.testing.assert_close(first, torch.ones_like(first))
        assert float((after - first).abs().max()) / 1e-6 < 1e-3  # no slope


def test_errors_are_relative_to_the_solution() -> None:
    equation = _task("oscillation").problem
    gamma = torch.tensor([2.0, 8.0])

    class Nothing(nn.Module):
        def forward(self, x: Tensor, gamma: Tensor) -> Tensor:
            return torch.zeros_like(x)  # u is 1

    x = torch.linspace(0.0, 1.0, 201, dtype=torch.float64)[:, None]
    assert isinstance(equation, _Equation)
    for error, a in zip(equation.errors(Nothing(), gamma, "test"), gamma.double(), strict=True):
        exact = equation.exact(a, x)
        assert float(error) == pytest.approx(float((1 - exact).norm() / exact.norm()), rel=1e-6)


# --- images and adapters ------------------------------------------------------------------


def test_an_implicit_network_is_asked_for_the_pixels_of_its_image() -> None:
    task = _task("implicit")
    problem = task.problem
    assert isinstance(problem, _Implicit)
    images = problem.tested("test")
    assert torch.equal(images, problem.test.images[:2])
    grid = problem._at(torch.arange(64)).reshape(8, 8, 2)
    assert grid[0, 0].tolist() == [-0.875, -0.875]
    assert grid[2, 5].tolist() == [-0.375, 0.375]  # the row, and the column

    class Looked(nn.Module):
        def forward(self, x: Tensor, gamma: Tensor) -> Tensor:
            index = ((x + 1.0) * 4.0).long()
            rows = [image[0, at[:, 0], at[:, 1]] for image, at in zip(gamma, index, strict=True)]
            return torch.stack(rows).unsqueeze(-1)

    assert float(problem.errors(Looked(), images, "test").max()) == 0.0
    drawn = torch.rand(40, generator=torch.Generator().manual_seed(0))
    assert float(problem.losses(Looked(), drawn, images).max()) == 0.0

    class Turned(Looked):
        def forward(self, x: Tensor, gamma: Tensor) -> Tensor:
            return super().forward(x.flip(-1), gamma)

    assert float(problem.losses(Turned(), drawn, images).min()) > 0.01


def test_tasks_contradict_each_other() -> None:
    """Tasks k and k + 4 show the same picture, and never want the same answer."""
    problem: Any = _task("adapters", count=8).problem
    images = problem.part("test", 50)
    asked = [problem.asked(images, task) for task in range(8)]
    for task in range(4):
        shown, wanted = asked[task]
        assert torch.equal(shown, asked[task + 4][0])
        assert not bool((wanted == asked[task + 4][1]).any())
        assert not torch.equal(shown, asked[(task + 1) % 4][0])
    assert torch.equal(asked[0][1], images.labels)
    # 16 patches of 2x2 pixels, row by row
    first = images.images[:, 0, :2, 2:4].reshape(-1, 4)
    assert torch.equal(asked[0][0][:, 1], first)


def test_a_transformer_is_pretrained_once_and_left_as_it_is(fabric: Fabric) -> None:
    task = _task("adapters", pretraining=150, width=16)
    first, second = (task.problem.primary() for _ in range(2))
    trained = {name for name, p in first.named_parameters() if p.requires_grad}
    assert all(name.endswith((".reduce", ".expand")) for name in trained)
    for name, p in first.named_parameters():
        same = torch.equal(p, second.get_parameter(name))
        assert same == (not name.endswith(".reduce"))
    problem: Any = task.problem
    images = problem.part("test", 300)
    right = (first(problem.tokens(images.images)).argmax(1) == images.labels).float().mean()
    assert float(right) > 0.5  # of the first task, without an adapter
    *_, run = train(task, "shared", 0, _settings(), fabric, pictures=False)
    assert run.model is not None
    before = {**task.model("shared", 0).primary.state_dict()}
    for name, value in run.model.primary.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in trained)


def test_only_the_adapters_are_predicted() -> None:
    task = _task("adapters")
    model = task.model("mip", 0)
    assert isinstance(model, hl.HyperModel)
    assert all(name.endswith((".reduce", ".expand")) for name in model.hypernet.shapes)
    hand = task.model("hand", 0)
    assert isinstance(hand, ByHand)
    assert hand.shapes == dict(model.hypernet.shapes)


# --- costs ----------------------------------------------------------------------------------


class _Scores(nn.Module):
    """The same scores for all images and gammas."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = torch.tensor(scores)

    def forward(self, x: Tensor, gamma: Tensor) -> Tensor:
        assert x.shape[:1] == gamma.shape
        return self.scores.expand(*x.shape[:-1], -1)


def _cost(name: str) -> Any:
    problem: Any = _task(name).problem
    labels = torch.tensor([0, 4, 5, 7, 9, 9])  # two of the first five classes
    problem.test = Images(torch.zeros(6, 1, 8, 8), labels)
    return problem


@pytest.mark.parametrize("name", COSTS)
def test_the_cost_of_mistakes_is_a_part_of_that_of_all(name: str) -> None:
    """A mistake in 0 to 4 costs gamma, in 5 to 9 it costs 1."""
    problem, gamma = _cost(name), torch.tensor([0.25, 1.0, 4.0])
    nine = _Scores([0.0] * 9 + [50.0])  # right twice
    wanted = [100.0 * (2 * g + 2) / (2 * g + 4) for g in gamma.tolist()]
    assert problem.errors(nine, gamma, "test").tolist() == pytest.approx(wanted)
    columns = problem.columns(nine, gamma, "test")
    assert columns["wrong, first classes (%)"].tolist() == [100.0] * 3
    assert columns["wrong, other classes (%)"].tolist() == [50.0] * 3
    assert problem.score(problem.mean(torch.tensor([10.0, 30.0]))) == 80.0


@pytest.mark.parametrize("name", COSTS)
def test_only_one_loss_knows_the_costs(name: str) -> None:
    problem, gamma = _cost(name), torch.tensor([1.0, 3.0])
    nine = _Scores([0.0] * 9 + [1.0])
    batch = Images(torch.zeros(4, 1, 8, 8), torch.tensor([0, 9, 0, 9]))
    scores = nine.scores.log_softmax(0)
    wrong, right = -float(scores[0]), -float(scores[9])
    wanted = [(wrong + right) / 2.0] * 2
    if name == "cost":  # with costs of 3 and 1, which are 2 in the mean over classes
        wanted[1] = (3.0 / 2.0 * wrong + 1.0 / 2.0 * right) / 2.0
    assert problem.losses(nine, batch, gamma).tolist() == pytest.approx(wanted)


def test_answers_have_the_least_expected_cost() -> None:
    """By probabilities: 0.3 of class 1, and 0.6 of class 8."""
    problem, gamma = _cost("expected-cost"), torch.tensor([0.5, 1.0, 1.9, 2.1])
    p = torch.full((10,), 0.1 / 8)
    p[1], p[8] = 0.3, 0.6
    scores = p.log().expand(4, 1, 10) + 5.0
    assert problem.answers(scores, gamma).flatten().tolist() == [8, 8, 8, 1]
    assert _cost("cost").answers(scores, gamma).flatten().tolist() == [8] * 4


# --- all ----------------------------------------------------------------------------------


@every_problem
@pytest.mark.parametrize("formulation", ["mip", "hand", "film", "channel", "plain"])
def test_every_method_is_trained_and_read_again(
    name: str, formulation: Any, fabric: Fabric, tmp_path: Path
) -> None:
    task = _task(name)

    def run(folder: Path | None) -> Any:
        *_, last = train(task, formulation, 0, _settings(), fabric, folder, pictures=False)
        return last

    found = run(tmp_path)
    assert equal_runs(found, run(None))
    assert equal_runs(found, run(tmp_path))  # from the files
    moved = [
        not torch.equal(p, q)
        for p, q in zip(
            found.model.parameters(), task.model(formulation, 0).parameters(), strict=True
        )
        if q.requires_grad
    ]
    assert all(moved)
    figures = found.outcome.figures
    assert figures["test error"] == found.points[-1].figures["error"]
    assert list(found.along("error")) == pytest.approx(
        [float(f"{g:.4g}") for g in task.problem.tested("test")]
        if name != "implicit"
        else [0.0, 1.0]
    )


@every_problem
def test_the_errors_are_those_of_single_networks(name: str) -> None:
    task = _task(name)
    gammas = task.problem.tested("test")
    for formulation in ("mip", "plain"):
        model = task.model(formulation, 0)
        together = task._errors(model, "test")
        for i, gamma in enumerate(gammas):
            net = model.bind(gamma=gamma)

            class Alone(nn.Module):
                def forward(self, x: Tensor, gamma: Tensor, net: nn.Module = net) -> Tensor:
                    found: Tensor = net(x)
                    return found

            with torch.no_grad():
                alone = task.problem.errors(Alone(), gamma.unsqueeze(0), "test")
            torch.testing.assert_close(alone[0], together[i], rtol=1e-3, atol=1e-5)


@every_problem
def test_plain_networks_are_for_the_gammas_that_are_tested(name: str) -> None:
    task = _task(name)
    model = task.model("plain", 0)
    assert isinstance(model, Separate)
    assert len(model.primary) == 2
    drawn = task.sample(model, torch.Generator())["gamma"]
    assert torch.equal(drawn, task.problem.tested("test").repeat_interleave(2, dim=0))
    with pytest.raises(LabError, match="multiple of 2"):
        _task(name, gammas=3).model("plain", 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "reaction", "count": 1}, "--count was 1"),
        ({"name": "adapters", "width": 6}, "--width was 6; expected a multiple of 4"),
        ({"name": "adapters", "size": 9}, "The images are 9x9; expected a multiple of 2"),
    ],
)
def test_settings_that_cannot_be_trained_with_are_refused(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(LabError, match=re.escape(words)):
        _task(**changes)
