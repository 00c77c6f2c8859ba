"""The Bayesian task on real digits: its loss, its figures, what it finds in the end."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hyperlight.lab.errors import LabError
from hyperlight.lab.primaries import LeNet
from hyperlight.lab.tasks.base import SWITCHES, Fixed, Task
from hyperlight.lab.tasks.bayes import TRAINING, Bayes, BayesTask

CPU = torch.device("cpu")
SMALL = Bayes(hidden=(8,), evaluation_gammas=3, evaluation_images=50)


@pytest.fixture(scope="module")
def task() -> BayesTask:
    return BayesTask(SMALL, CPU)


def test_it_is_a_task(task: BayesTask) -> None:
    checked: Task = task
    assert checked.name == "bayes"
    assert "scikit-learn's digits" in checked.note
    assert checked.metric.text(97.34) == "97.3 %"
    assert TRAINING == {"optimizer": "adam", "lr": 3e-4, "batch_size": 128}


def test_the_loss_is_the_papers(task: BayesTask) -> None:
    model, batch = task.model("mip", 0), next(task.batches(16, 0))
    gamma = task.sample(model, torch.Generator().manual_seed(0))
    expected = F.cross_entropy(model(batch.images, **gamma), batch.labels)
    torch.testing.assert_close(task.loss(model, batch, gamma, 0), expected)


def test_a_plain_network_is_the_primary_of_the_same_seed(task: BayesTask) -> None:
    plain = task.model("plain", 3)
    assert isinstance(plain, Fixed)
    assert isinstance(plain.primary, LeNet)
    weights = task.model("mip", 3).primary.state_dict()
    assert all(torch.equal(value, weights[k]) for k, value in plain.primary.state_dict().items())
    assert task.sample(plain, torch.Generator()) == {}
    batch = next(task.batches(16, 0))
    expected = F.cross_entropy(plain.primary(batch.images), batch.labels)
    torch.testing.assert_close(task.loss(plain, batch, {}, 0), expected)
    assert task.evaluate(plain, whole=True) == task.at(plain, 0.3)


def test_a_seed_makes_the_same_model_again(task: BayesTask) -> None:
    for formulation in SWITCHES:
        first, again = (task.model(formulation, 3).state_dict() for _ in range(2))
        assert all(torch.equal(value, again[name]) for name, value in first.items())
    one, other = (task.model("mip", seed).primary.encoder[0].weight for seed in (3, 4))
    assert not torch.equal(one, other)
    draws = [next(task.batches(4, seed)).images for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_figures_at_one_gamma_are_those_of_its_network(task: BayesTask) -> None:
    model = task.model("classical", 0)
    for parameter in model.parameters():  # make the figures depend on gamma
        parameter.data.mul_(3.0)
    for gamma in (0.1, 0.9):
        with torch.no_grad():
            logits = model(task.test.images, gamma=gamma)
        found = task.at(model, gamma)
        assert found["loss"] == pytest.approx(float(F.cross_entropy(logits, task.test.labels)))
        right = (logits.argmax(dim=1) == task.test.labels).double().mean()
        assert found["accuracy"] == pytest.approx(100.0 * float(right), rel=1e-6)


@pytest.mark.parametrize("option", ["dimensions", "evaluation_gammas", "evaluation_images"])
def test_settings_that_cannot_be_are_refused(option: str) -> None:
    least = 2 if option == "evaluation_gammas" else 1
    words = f"--{option.replace('_', '-')} was {least - 1}; expected {least} or more."
    with pytest.raises(LabError) as raised:
        BayesTask(Bayes(**{option: least - 1}), CPU)
    assert str(raised.value) == words
