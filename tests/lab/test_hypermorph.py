"""The registration task on real digits: its loss, its figures, what it finds in the end."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import get_args

import pytest
import torch

from hyperlight import HyperModel
from hyperlight.lab.errors import LabError
from hyperlight.lab.registration import total_variation, warp
from hyperlight.lab.tasks.base import Formulation, Task
from hyperlight.lab.tasks.hypermorph import TRAINING, Hypermorph, HypermorphTask

CPU = torch.device("cpu")
SMALL = Hypermorph(size=(16, 16), levels=2, channels=4, hidden=(8,), evaluation_pairs=10)


@pytest.fixture(scope="module")
def task() -> HypermorphTask:
    return HypermorphTask(SMALL, CPU)


def trained(task: HypermorphTask, steps: int, lr: float = 3e-3):  # type: ignore[no-untyped-def]
    model = task.model("mip", 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    batches, generator = task.batches(8, 0), torch.Generator().manual_seed(0)
    for step in range(steps):
        loss = task.loss(model, next(batches), task.sample(model, generator), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def test_it_is_a_task(task: HypermorphTask) -> None:
    checked: Task = task
    assert checked.name == "hypermorph"
    assert "scikit-learn's digits" in checked.note
    assert TRAINING["lr"] == 1e-4


def test_the_loss_is_the_papers(task: HypermorphTask) -> None:
    model, (moving, fixed) = task.model("mip", 0), next(task.batches(3, 0))
    for value in (0.0, 0.3, 1.0):
        gamma = {"gamma": torch.tensor(value)}
        field = model(torch.cat([moving.images, fixed.images], 1), **gamma)
        error = (warp(moving.images, field) - fixed.images).square().mean() / 0.05**2
        expected = (1 - value) * error + value * total_variation(field)
        torch.testing.assert_close(task.loss(model, (moving, fixed), gamma, 0), expected)


def test_a_seed_makes_the_same_model_again(task: HypermorphTask) -> None:
    for formulation in ("mip", "classical"):
        first, again = (task.model(formulation, 3).state_dict() for _ in range(2))
        assert all(torch.equal(value, again[name]) for name, value in first.items())
    one, other = (task.model("mip", seed).primary.encoder[0][0].weight for seed in (3, 4))
    assert not torch.equal(one, other)
    draws = [next(task.batches(4, seed))[0].images for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


# What is written by hand starts as PyTorch starts it, whatever the primary has.
@pytest.mark.parametrize("formulation", [f for f in get_args(Formulation) if f != "hand"])
@pytest.mark.parametrize("init", ["fan_out", "relative"])
def test_a_small_flow_layer_starts_at_no_displacement(formulation: Formulation, init: str) -> None:
    fields, sizes = {}, {}
    for scale in (None, 1e-5):
        config = dataclasses.replace(SMALL, flow_scale=scale, init=init)
        task = HypermorphTask(config, CPU)
        model, (moving, fixed) = task.model(formulation, 0), next(task.batches(3, 0))
        joined = torch.cat([moving.images, fixed.images], dim=1)
        with torch.no_grad():
            fields[scale] = model(joined, gamma=0.4).abs().max()
        weights = model.predict(gamma=0.4) if isinstance(model, HyperModel) else None
        own = dict(model.primary.named_parameters()) if weights is None else weights
        sizes[scale] = own["head.weight"].detach().std()
        assert float(own["head.bias"].detach().abs().max()) == 0.0
    assert 0.0 < float(fields[1e-5]) < 1e-3
    # A classical hypernetwork starts at less than the primary's weights, as in all other layers.
    assert 0.02 < float(sizes[1e-5]) / 1e-5 < 5.0
    assert float(sizes[None]) > 1e3 * float(sizes[1e-5])


def test_registration_is_learned_and_gamma_does_what_it_should(
    task: HypermorphTask, tmp_path: Path
) -> None:
    untrained = task.evaluate(task.model("mip", 0))
    model = trained(task, 400)
    figures = task.evaluate(model, whole=True)
    assert set(figures) == {"loss", "dice", "folding", "mse"}
    assert figures["loss"] < 0.7 * untrained["loss"]
    model.train()
    outcome = task.finish(model, tmp_path)
    assert model.training
    (_, heading, rows) = outcome.tables[0]
    assert list(heading) == ["gamma", "dice", "folding (%)", "mse", "objective"]
    assert [row[0] for row in rows] == [i / 10 for i in range(11)]
    assert rows[0][3] < rows[-1][3]  # images are most alike where nothing asks for smoothness
    before = outcome.figures["dice before registration"]
    assert max(row[1] for row in rows) > before + 0.05
    assert 0.0 <= outcome.figures["best gamma by tune"] <= 1.0
    assert outcome.figures["dice there, test"] > before + 0.05
    pairs = task._pairs(task.test)
    losses = [task._rows(model, [i / 10], pairs)[0]["loss"] for i in range(11)]
    assert [row[4] for row in rows] == pytest.approx(losses, rel=1e-4)
    assert outcome.figures["test error"] == pytest.approx(sum(losses) / 11)
    assert outcome.figures["validation error"] != outcome.figures["test error"]
    for _, path in outcome.pictures:
        assert path.stat().st_size > 1000
    assert all(math.isfinite(value) for value in outcome.figures.values())


@pytest.mark.parametrize("formulation", ["mip", "plain"])
def test_the_metric_is_measured_on_validation_pairs_too(
    task: HypermorphTask, formulation: Formulation
) -> None:
    model = task.model(formulation, 1).eval()
    moving, fixed = task._pairs(task.valid, task.config.final_pairs)
    gammas = [0.5] if formulation == "plain" else torch.linspace(0, 1, 5).tolist()
    found = [task.measure(model.bind(gamma=g), moving, fixed, g)["dice"] for g in gammas]
    figures = task.finish(model, None).figures
    assert figures["validation dice"] == pytest.approx(sum(found) / len(found))
    assert figures["validation dice"] != task.evaluate(model, whole=True)["dice"]


def test_what_has_diverged_is_reported(task: HypermorphTask, tmp_path: Path) -> None:
    model = task.model("mip", 0)
    assert isinstance(model, HyperModel)
    with torch.no_grad():
        for parameter in model.primary.parameters():
            parameter.fill_(math.nan)
    outcome = task.finish(model, tmp_path)
    assert math.isnan(outcome.figures["best gamma by tune"])
    assert math.isnan(outcome.figures["dice there, test"])
    assert math.isfinite(outcome.figures["dice before registration"])
    assert all(path.is_file() for _, path in outcome.pictures)
    table = outcome.tables[0][2]
    assert all(math.isnan(row[3]) for row in table)  # the squared error at every gamma


def test_bad_settings_are_refused() -> None:
    with pytest.raises(
        LabError, match="--levels was 6; expected at most 5 for images of 16 pixels"
    ):
        HypermorphTask(Hypermorph(size=(16, 16), levels=6), CPU)
    with pytest.raises(LabError, match="--evaluation-gammas was 1; expected 2 or more"):
        HypermorphTask(Hypermorph(evaluation_gammas=1), CPU)
    with pytest.raises(LabError, match="--image-sigma was 0.0; expected a number above zero"):
        HypermorphTask(Hypermorph(image_sigma=0.0), CPU)
    with pytest.raises(LabError, match="--flow-scale was 0.0; expected a number above zero"):
        HypermorphTask(Hypermorph(flow_scale=0.0), CPU)
    text = "--flow-scale was given with --init hyperfan_in, which starts all predicted weights at a"
    with pytest.raises(LabError, match=text):
        HypermorphTask(Hypermorph(flow_scale=1e-5, init="hyperfan_in"), CPU)
    with pytest.raises(LabError, match="--data folder needs --data-dir"):
        HypermorphTask(Hypermorph(data="folder"), CPU)
    with pytest.raises(LabError, match=r"--size was \(8, 9\); these images are square"):
        HypermorphTask(Hypermorph(size=(8, 9)), CPU)
