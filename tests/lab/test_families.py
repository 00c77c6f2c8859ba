"""Families of functions: their closed forms, their draws, training on them, and their settings."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

import hyperlight as hl
from hyperlight.lab.cli import main
from hyperlight.lab.data import digits
from hyperlight.lab.errors import LabError
from hyperlight.lab.tasks.base import Fixed
from hyperlight.lab.tasks.families import (
    COUNTS,
    Families,
    FamiliesTask,
    FamilyName,
)
from hyperlight.lab.train import Training, train
from tests.lab.making import equal_runs

NAMES: tuple[FamilyName, ...] = get_args(FamilyName)
SINES: tuple[FamilyName, ...] = ("hat", "frequency", "interaction", "embedding")
CPU = torch.device("cpu")

every_family = pytest.mark.parametrize("name", NAMES)


def _task(name: FamilyName, **changes: Any) -> FamiliesTask:
    small = {"hidden": (4, 8), "width": 8, "gammas": 4, "evaluation_gammas": 4}
    return FamiliesTask(Families(family=name, **{**small, **changes}), CPU)


def _settings(**changes: Any) -> Training:
    usual = {"steps": 4, "evaluate_every": 2, "batch_size": 16, "lr": 1e-2}
    return Training(**{**usual, "schedule": "cosine", "rates": "groups", **changes})


def _answer(task: FamiliesTask, x: Tensor, gamma: Any) -> Tensor:
    """The answers at points ``(N, X)`` for one gamma."""
    value = torch.as_tensor(gamma).unsqueeze(0)
    given, wanted = task.family.answered(x, value)
    assert torch.equal(given[0], x)
    return wanted[0, :, 0]


# --- closed forms -----------------------------------------------------------------------


def _points(size: int) -> Tensor:
    return 2.0 * torch.rand(50, size, generator=torch.Generator().manual_seed(5)) - 1.0


def test_hat_interpolates_between_unrelated_functions() -> None:
    task, x = _task("hat", count=4), _points(1)
    at = [_answer(task, x, i / 4) for i in range(5)]
    torch.testing.assert_close(_answer(task, x, 0.375), 0.5 * (at[1] + at[2]))
    torch.testing.assert_close(_answer(task, x, 0.55), 0.8 * at[2] + 0.2 * at[3])
    for a, b in itertools.combinations(at, 2):
        assert (a - b).square().mean() > 0.2


def test_frequency_has_half_a_wave_more_for_each_unit() -> None:
    task, x = _task("frequency", count=3), _points(1)
    for gamma in (0.0, 0.25, 1.0):
        expected = math.sqrt(2.0) * torch.sin(math.pi * (0.5 + 3 * gamma) * x[:, 0])
        torch.testing.assert_close(_answer(task, x, gamma), expected)


def test_every_input_changes_what_the_next_one_does() -> None:
    task, x = _task("interaction", count=3), _points(4)

    def change(second: float) -> Tensor:
        """What the first input changes, at a value of the second."""
        one, other = (_answer(task, x, torch.tensor([first, second, 0.5])) for first in (0.1, 0.9))
        return one - other

    assert (change(0.0) - change(1.0)).abs().max() > 0.1
    middle = torch.full((3,), 0.5)  # where all cosines are zero
    assert _answer(task, x, middle).abs().max() < 1e-5


def test_embedding_is_linear_in_few_directions() -> None:
    task, x = _task("embedding", count=3), _points(4)
    draw = torch.Generator().manual_seed(0)
    rows = torch.stack([_answer(task, x, torch.randn(64, generator=draw)) for _ in range(20)])
    assert torch.linalg.matrix_rank(rows.double(), rtol=1e-5) == 3
    a, b = torch.randn(2, 64, generator=draw)
    both = _answer(task, x, a) + _answer(task, x, b)
    torch.testing.assert_close(_answer(task, x, a + b), both, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SINES)
def test_functions_have_a_variance_near_one(name: FamilyName) -> None:
    task = _task(name, evaluation_gammas=400)
    gamma, batch = task.family.held_out("valid")
    _, wanted = task.family.answered(batch, gamma)
    assert 0.5 < wanted.square().mean() < 1.5


def test_a_category_permutes_all_images_in_the_same_way() -> None:
    task = _task("permuted", count=5)
    gamma, batch = task.family.held_out("test")
    x, labels = task.family.answered(batch, gamma)
    images = digits().test
    assert x.shape == (5, len(images), 64)
    for category, found in zip(gamma, x, strict=True):
        order = task.family.orders[category]  # type: ignore[attr-defined]
        assert sorted(order.tolist()) == list(range(64))
        assert torch.equal(found, images.images.flatten(1)[:, order])
    assert torch.equal(labels, images.labels.expand(5, -1))
    assert len({tuple(row.tolist()) for row in task.family.orders}) == 5  # type: ignore[attr-defined]


def test_a_filter_is_the_mean_of_its_neighbours() -> None:
    task = _task("filtered", count=2)
    images = digits().test[torch.arange(6)]
    gamma = torch.tensor([0.0, 0.25, 0.8])
    x, wanted = task.family.answered(images, gamma)
    assert x.shape == wanted.shape == (3, 2, 1, 8, 8)
    first, second, third = task.family.kernels  # type: ignore[attr-defined]
    kernels = (first, 0.5 * (first + second), 0.4 * second + 0.6 * third)
    for kernel, given, found in zip(kernels, x, wanted, strict=True):
        expected = F.conv2d(given, kernel.unsqueeze(0), padding=1).abs()
        torch.testing.assert_close(found, expected)


# --- draws ------------------------------------------------------------------------------


@every_family
def test_training_validation_and_testing_see_different_data(name: FamilyName) -> None:
    task = _task(name)
    parts = [task.family.held_out(part) for part in ("valid", "test")]
    again = [_task(name).family.held_out(part) for part in ("valid", "test")]
    seen = [task.family.answered(batch, gamma)[0] for gamma, batch in parts]
    for (gamma, batch), x in zip(again, seen, strict=True):
        assert torch.equal(task.family.answered(batch, gamma)[0], x)
    batch = next(task.batches(16, 0))
    gammas = parts[0][0][:4]
    seen.append(task.family.answered(batch, gammas)[0])
    rows = [set(map(tuple, x.flatten(0, 1).flatten(1).tolist())) for x in seen]
    assert all(len(each) > 1 for each in rows)
    if name == "permuted":  # some of the digits are there twice
        assert len(rows[0] & rows[1]) < 0.02 * len(rows[0])
    elif name == "filtered":
        assert len(rows[0] & rows[1]) <= 1
    else:
        assert not rows[0] & rows[1]
        assert not rows[2] & (rows[0] | rows[1])
        assert len(parts[1][0]) == 4 * len(parts[0][0]) == 16


@every_family
def test_the_loss_is_the_mean_over_the_networks_of_its_gammas(name: FamilyName) -> None:
    task = _task(name)
    model = task.model("mip", 0)
    assert isinstance(model, hl.HyperModel)
    batch, gamma = next(task.batches(16, 0)), task.sample(model, torch.Generator().manual_seed(0))
    assert len(gamma["gamma"]) == 4
    x, wanted = task.family.answered(batch, gamma["gamma"])
    single = []
    for value, given, right in zip(gamma["gamma"], x, wanted, strict=True):
        found = model.bind(gamma=value)(given)
        loss = F.cross_entropy if name == "permuted" else F.mse_loss
        single.append(loss(found, right))
    torch.testing.assert_close(task.loss(model, batch, gamma, 0), torch.stack(single).mean())


@every_family
def test_figures_are_those_of_single_networks(name: FamilyName) -> None:
    task = _task(name)
    model = task.model("mip", 0)
    gamma, batch = task.family.held_out("test")
    x, wanted = task.family.answered(batch, gamma)
    found = torch.stack([model.bind(gamma=g)(each) for g, each in zip(gamma, x, strict=True)])
    if name == "permuted":
        expected = (found.argmax(dim=-1) != wanted).float().mean()
    else:
        expected = (found - wanted).detach().square().mean() / wanted.var(correction=0)
    figures = task.evaluate(model, whole=True)
    assert figures["error"] == pytest.approx(float(expected), rel=1e-4)
    assert figures[task.metric.name] == pytest.approx(100.0 * (1.0 - figures["error"]))
    assert task.evaluate(model)["error"] != figures["error"]
    outcome = task.finish(model, None).figures
    assert outcome["test error"] == figures["error"]
    assert outcome["validation error"] == task.evaluate(model)["error"]
    assert outcome["weights held"] == sum(p.numel() for p in model.parameters())


def test_figures_at_one_gamma() -> None:
    task = _task("frequency")
    model = task.model("mip", 0)
    _, batch = task.family.held_out("test")
    x, wanted = task.family.answered(batch, torch.full((16,), 0.25))
    found = model.bind(gamma=0.25)(x).detach()
    expected = (found - wanted).square().mean() / wanted.var(correction=0)
    assert task.at(model, 0.25)["error"] == pytest.approx(float(expected), rel=1e-4)


# --- training ---------------------------------------------------------------------------


@every_family
def test_an_interrupted_run_goes_on_with_the_same_numbers(
    name: FamilyName, fabric: Fabric, tmp_path: Path
) -> None:
    task = _task(name)
    whole = list(train(task, "mip", 0, _settings(), fabric, tmp_path / "a", pictures=False))[-1]
    asked = itertools.count(1)
    with pytest.raises(KeyboardInterrupt):
        list(
            train(
                *(task, "mip", 0, _settings(), fabric, tmp_path / "b"),
                stop=lambda: next(asked) >= 3,
                pictures=False,
            )
        )
    parts = list(train(task, "mip", 0, _settings(), fabric, tmp_path / "b", pictures=False))
    assert parts[-1].resumed == [3]
    assert equal_runs(whole, parts[-1])


@pytest.mark.parametrize("name", ["hat", "permuted"])
def test_it_is_learned(name: FamilyName, fabric: Fabric) -> None:
    task = _task(name, count=2, hidden=(16, 32), directions=4, width=32)
    settings = _settings(steps=150, evaluate_every=150, batch_size=64)
    *_, run = train(task, "mip", 0, settings, fabric)
    assert run.points[-1].figures["error"] < 0.35 * run.points[0].figures["error"]
    assert isinstance(run.model, hl.HyperModel)
    assert run.model.hypernet.projection is not None
    assert run.model.hypernet.head.features == 4


def test_a_rate_falls_along_half_a_cosine(fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[list[float]] = []
    make = Training.make_optimizer

    def watched(self: Training, model: nn.Module) -> torch.optim.Optimizer:
        optimizer = make(self, model)
        optimizer.register_step_pre_hook(
            lambda *_: used.append([group["lr"] for group in optimizer.param_groups])
        )
        return optimizer

    monkeypatch.setattr(Training, "make_optimizer", watched)
    task = _task("hat")
    for schedule, factors in (("cosine", (1.0, 0.75, 0.25)), ("constant", (1.0, 1.0, 1.0))):
        used.clear()
        settings = _settings(steps=3, schedule=schedule)
        list(train(task, "mip", 0, settings, fabric))
        begin = [group["lr"] for group in make(settings, task.model("mip", 0)).param_groups]
        assert len(set(begin)) > 1  # hl.parameter_groups
        for step, factor in enumerate(factors):
            assert used[step] == pytest.approx([factor * rate for rate in begin])


@pytest.mark.parametrize("name", ["hat", "embedding", "permuted"])
def test_a_plain_network_is_trained_for_the_median(name: FamilyName, fabric: Fabric) -> None:
    task = _task(name)
    *_, run = train(task, "plain", 0, _settings(), fabric)
    assert isinstance(run.model, Fixed)
    gamma = task.sample(run.model, torch.Generator())["gamma"]
    assert len(gamma) == 4
    assert len(gamma.unique(dim=0)) == 1
    expected = {"hat": 0.5, "embedding": 0.0, "permuted": 5.0}[name]
    torch.testing.assert_close(gamma.float(), torch.full_like(gamma.float(), expected))
    drawn, batch = task.family.held_out("test")
    x, wanted = task.family.answered(batch, gamma[:1].expand_as(drawn))
    loss = task.family.loss(run.model.primary(x), wanted).detach()
    assert task.evaluate(run.model, whole=True)["loss"] == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.usefixtures("no_figures")
def test_a_family_is_trained_by_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "families", "--family", "frequency", "--count", "2", "--width", "8"]
    command += ["--hidden", "4", "8", "--directions", "3", "--evaluation-gammas", "2"]
    command += ["--steps", "2", "--evaluate-every", "1", "--seeds", "1", "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "frequency: a sine of x" in printed
    assert "explained variance" in printed
    saved = tmp_path / "mip-seed0" / "model.safetensors"
    primary = nn.Sequential(
        *(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    )
    assert hl.load(saved, primary).hypernet.head.features == 3


# --- settings ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "--count was 0; expected 1 or more."),
        ({"family": "interaction", "count": 1}, "--count was 1; expected 2 or more."),
        ({"family": "permuted", "count": 1}, "--count was 1; expected 2 or more."),
        (
            {"family": "embedding", "count": 65},
            "--count was 65; expected at most 64, the number of entries of the embedding.",
        ),
        ({"width": 3}, "--width was 3; expected 4 or more."),
        ({"gammas": 0}, "--gammas was 0; expected 1 or more."),
        ({"evaluation_gammas": 1}, "--evaluation-gammas was 1; expected 2 or more."),
        ({"evaluation_images": 0}, "--evaluation-images was 0; expected 1 or more."),
        ({"directions": 0}, "--directions was 0; expected 1 or more."),
        ({"fraction": 0.0}, "--fraction was 0.0; expected a number above zero."),
    ],
)
def test_settings_that_cannot_be_trained_with_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(LabError) as raised:
        FamiliesTask(Families(**changes), CPU)
    assert str(raised.value) == message


def test_a_batch_has_an_equal_part_for_each_gamma() -> None:
    task = _task("hat")
    with pytest.raises(LabError) as raised:
        task.batches(10, 0)
    assert str(raised.value) == (
        "--batch-size was 10 and --gammas 4; expected a batch size that is a multiple of 4."
    )
    with pytest.raises(LabError, match="multiple of 12"):
        task.batches(16, 0, (0, 3))


@every_family
def test_every_family_has_a_default_count(name: FamilyName) -> None:
    assert Families(family=name).counted == COUNTS[name][1]
    assert Families(family=name, count=3).counted == 3
    Families(family=name).check()


@every_family
def test_processes_share_a_batch(name: FamilyName) -> None:
    """Together, the parts of two processes have the points of one."""
    task = _task(name)

    def rows(shard: tuple[int, int]) -> list[Any]:
        batch = next(task.batches(16, 0, shard))
        return list(getattr(batch, "images", batch).flatten(1).tolist())

    assert sorted(rows((0, 2)) + rows((1, 2))) == sorted(rows((0, 1)))
    assert len(rows((0, 2))) == 8


# --- pictures ---------------------------------------------------------------------------


def test_the_answers_to_a_picture_are_its_pixels() -> None:
    task = _task("picture", count=5)
    image = task.family.gammas(1, torch.Generator().manual_seed(3))
    across = torch.linspace(-1.0, 1.0, 8)
    rows, columns = torch.meshgrid(across, across, indexing="ij")
    points = torch.stack([columns, rows], dim=-1).reshape(-1, 2)
    given, wanted = task.family.answered(points, image)
    assert torch.allclose(wanted[0, :, 0], 2.0 * image.flatten() - 1.0, atol=1e-5)
    expected = [points] + [
        wave(torch.cat([math.pi * k * points for k in (1.0, 2.0, 4.0)], dim=1))
        for wave in (torch.sin, torch.cos)
    ]
    assert torch.allclose(given[0], torch.cat(expected, dim=1))


def test_pictures_are_held_out_from_training() -> None:
    family = _task("picture").family
    parts = {part: {tuple(i.flatten().tolist()) for i in family.drawn(part)[0]} for part in _PARTS}
    seen = {tuple(image.flatten().tolist()) for image in family.train.unit().images}  # type: ignore[attr-defined]
    assert not parts["valid"] & seen
    assert not parts["test"] & (seen | parts["valid"])
    drawn = family.gammas(50, torch.Generator().manual_seed(0))
    assert {tuple(image.flatten().tolist()) for image in drawn} <= seen


_PARTS: tuple[Any, ...] = ("valid", "test")


def test_the_network_of_a_picture_is_calibrated_and_trained() -> None:
    task = _task("picture", count=5)
    model = task.model("mip", 0)
    assert isinstance(model, hl.HyperModel)
    encoder = model.hypernet.encoders["gamma"]
    assert torch.equal(model.hypernet.inputs["gamma"].examples, task.family.examples)  # type: ignore[attr-defined]
    before = [p.detach().clone() for p in encoder.parameters()]
    loss = task.loss(model, next(task.batches(16, 0)), task.sample(model, torch.Generator()), 0)
    torch.autograd.backward(loss)
    optimizer = _settings().make_optimizer(model)
    optimizer.step()
    after = list(encoder.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        ("dense", hl.Dense),
        ("low-rank", hl.LowRank),
        ("per-layer", hl.PerLayer),
        ("channel-scale", hl.ChannelScale),
    ],
)
def test_the_head_can_be_chosen(head: str, kind: type[hl.Head]) -> None:
    model = _task("hat", head=head).model("mip", 0)
    assert isinstance(model, hl.HyperModel)
    assert type(model.hypernet.head) is kind
