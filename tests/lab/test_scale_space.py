"""The scale-space task on real digits: its losses, its figures, what it finds in the end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch.nn import functional as F

from hyperlight.lab.data import Images, Scans, digit_scans
from hyperlight.lab.errors import LabError
from hyperlight.lab.normalization import Normalization
from hyperlight.lab.registration import dice, soft_dice
from hyperlight.lab.tasks import scale_space
from hyperlight.lab.tasks.base import SWITCHES, Fixed, Formulation, Task
from hyperlight.lab.tasks.scale_space import TRAINING, ScaleSpace, ScaleSpaceTask
from hyperlight.lab.train import Training, train

from .making import REAL_DATA, needs_real_data

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "size": (16, 16),
    "stages": (8, 16, 16),
    "levels": 3,
    "channels": 8,
    "hidden": (8,),
    "evaluation_images": 40,
    "dice_from": 200,
}
CLASSIFY = ScaleSpace(**SMALL)
SEGMENT = ScaleSpace(problem="segmentation", **SMALL)


@pytest.fixture(scope="module")
def digits() -> ScaleSpaceTask:
    return ScaleSpaceTask(CLASSIFY, CPU)


@pytest.fixture(scope="module")
def scans() -> ScaleSpaceTask:
    return ScaleSpaceTask(SEGMENT, CPU)


@pytest.fixture(params=["digits", "scans"])
def task(request: pytest.FixtureRequest) -> ScaleSpaceTask:
    found: ScaleSpaceTask = request.getfixturevalue(request.param)
    return found


def trained(task: ScaleSpaceTask, steps: int, formulation: Any = "mip", batch_size: int = 8) -> Any:
    model = task.model(formulation, 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    batches, generator = task.batches(batch_size, 0), torch.Generator().manual_seed(0)
    for step in range(steps):
        loss = task.loss(model, next(batches), task.sample(model, generator), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def test_it_is_a_task(task: ScaleSpaceTask) -> None:
    checked: Task = task
    assert checked.name == "scale_space"
    assert "scikit-learn's digits" in checked.note
    assert (TRAINING["lr"], TRAINING["weight_decay"]) == (1e-4, 1e-3)


# --- losses -----------------------------------------------------------------------------


def test_images_are_classified_with_smoothed_labels(digits: ScaleSpaceTask) -> None:
    model, batch = digits.model("mip", 0), next(digits.batches(5, 0))
    assert isinstance(batch, Images)
    for value in (0.0, 0.2, 0.5):
        logits = model(batch.images, value, gamma=value)
        smooth = 0.9 * F.one_hot(batch.labels, 10) + 0.1 / 10
        expected = -(smooth * logits.log_softmax(dim=1)).sum(dim=1).mean()
        gamma = {"gamma": torch.tensor(value)}
        torch.testing.assert_close(digits.loss(model, batch, gamma, 999), expected)


def test_scans_are_segmented_with_cross_entropy_and_then_soft_dice(scans: ScaleSpaceTask) -> None:
    model, batch = scans.model("mip", 0), next(scans.batches(5, 0))
    assert isinstance(batch, Scans)
    gamma = {"gamma": torch.tensor(0.3)}
    logits = model(batch.images, 0.3, gamma=0.3)
    chance = logits.softmax(dim=1)
    of_truth = chance.gather(1, batch.labels.unsqueeze(1))
    first = scans.loss(model, batch, gamma, 199)
    torch.testing.assert_close(first, -of_truth.log().mean())
    maps = torch.stack([batch.labels == label for label in range(11)], dim=1).float()
    overlap = soft_dice(chance, maps).mean()
    torch.testing.assert_close(scans.loss(model, batch, gamma, 200), first + 1 - overlap)


def test_the_factor_is_gamma_to_the_primary_and_to_the_hypernetwork(
    digits: ScaleSpaceTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = digits.model("mip", 0), []

    def spy(images: torch.Tensor, factor: float, **gamma: float) -> torch.Tensor:
        seen.append((factor, gamma))
        return torch.zeros(len(images), 10)

    monkeypatch.setattr(model, "forward", spy)
    generator = torch.Generator().manual_seed(0)
    draws = [digits.sample(model, generator) for _ in range(200)]
    values = [float(draw["gamma"]) for draw in draws]
    assert all(draw["gamma"].shape == () for draw in draws)
    assert 0.0 <= min(values) < 0.02
    assert 0.48 < max(values) <= 0.5
    for draw in draws[:3]:
        digits.loss(model, next(digits.batches(2, 0)), draw, 0)
    assert seen == [(value, {"gamma": value}) for value in values[:3]]


# --- models and batches -----------------------------------------------------------------


def test_a_seed_makes_the_same_model_again(task: ScaleSpaceTask) -> None:
    for formulation in ("mip", "classical"):
        first, again = (task.model(formulation, 3).state_dict() for _ in range(2))
        assert all(torch.equal(value, again[name]) for name, value in first.items())
    one, other = (next(task.model("mip", seed).primary.parameters()) for seed in (3, 4))
    assert not torch.equal(one, other)
    draws = [next(task.batches(4, seed)).images for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_processes_share_a_batch(task: ScaleSpaceTask) -> None:
    whole = next(task.batches(6, 0)).images
    for i in range(2):
        assert torch.equal(next(task.batches(6, 0, (i, 2))).images, whole[i::2])


def test_the_primary_is_the_same_for_every_formulation(task: ScaleSpaceTask) -> None:
    mip, plain = task.model("mip", 1), task.model("plain", 1)
    theirs = dict(plain.primary.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in mip.primary.named_parameters())


def test_a_plain_network_has_its_one_gamma(task: ScaleSpaceTask, tmp_path: Path) -> None:
    model = task.model("plain", 0)
    assert isinstance(model, Fixed)
    assert float(task.sample(model, torch.Generator())["gamma"]) == 0.5
    figures = task.evaluate(model, whole=True)
    assert figures == task.at(model, 0.5)
    assert figures != task.at(model, 0.2)  # the same weights, with maps of other sizes
    outcome = task.finish(model, tmp_path)
    assert not outcome.tables
    extra = {f"validation {task.metric.name}"} if task.valid is not None else set()
    assert set(outcome.figures) == {*figures, *extra, "ms per image", "MFLOP per image"}
    assert {k: outcome.figures[k] for k in figures} == figures


@pytest.mark.parametrize("formulation", ["mip", "plain"])
def test_the_metric_is_measured_on_validation_data_too(
    task: ScaleSpaceTask, formulation: Formulation
) -> None:
    model = task.model(formulation, 1).eval()
    figures = task.finish(model, None).figures
    name = f"validation {task.metric.name}"
    if task.valid is None:  # the digits, if they are classified
        assert name not in figures
        return
    gammas = [0.5] if formulation == "plain" else [0.1, 0.2, 0.3, 0.4, 0.5]
    found = [task.measure(model.bind(gamma=g), task.valid, g)[task.metric.name] for g in gammas]
    assert figures[name] == pytest.approx(sum(found) / len(found))


# --- figures ----------------------------------------------------------------------------


def test_figures_are_means_over_images_and_gammas(
    task: ScaleSpaceTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale_space, "_PIXELS", 7 * 16 * 16)  # 40 images do not divide by 7
    model = task.model("mip", 0)
    one_by_one: dict[float, dict[str, float]] = {}
    model.eval()
    data = task.few.unit()
    for gamma in (0.1, 0.2, 0.3, 0.4, 0.5):
        losses, scores = [], []
        for i in range(len(data)):
            image, label = data.images[i : i + 1], data.labels[i : i + 1]
            logits = model(image, gamma, gamma=gamma).detach()
            losses.append(float(F.cross_entropy(logits, label)))
            found = logits.argmax(dim=1)
            if task.metric.name == "accuracy":
                scores.append(100.0 * float(found == label))
            else:
                scores.append(float(dice(found, label, 11)))
        one_by_one[gamma] = {"loss": float(np.mean(losses)), task.metric.name: np.nanmean(scores)}
    model.train()
    figures = task.evaluate(model)
    assert model.training
    for name, value in figures.items():
        expected = np.mean([row[name] for row in one_by_one.values()])
        assert value == pytest.approx(expected, rel=1e-5)


def test_the_least_gamma_leaves_one_pixel_and_works(task: ScaleSpaceTask) -> None:
    for formulation in SWITCHES:
        figures = task.at(task.model(formulation, 0), 0.0)  # type: ignore[arg-type]
        assert all(math.isfinite(value) for value in figures.values())
    model = task.model("mip", 0)
    gamma = {"gamma": torch.tensor(0.0)}
    task.loss(model, next(task.batches(4, 0)), gamma, 0).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_fewer_images_for_the_figures_in_the_end(digits: ScaleSpaceTask) -> None:
    task = ScaleSpaceTask(ScaleSpace(**SMALL, final_images=60), CPU)
    assert (len(digits.test), len(task.test), len(task.few)) == (360, 60, 40)
    assert torch.equal(task.few.images, digits.few.images)
    kept = {tuple(image.flatten().tolist()) for image in task.test.images}
    assert {tuple(image.flatten().tolist()) for image in task.few.images} <= kept
    model = task.model("mip", 0)
    assert task.at(model, 0.3) == task.measure(model.eval().bind(gamma=0.3), task.test, 0.3)
    assert task.finish(model, None).pictures == []


@pytest.mark.parametrize("problem", ["classification", "segmentation"])
def test_the_loop_trains_it_and_goes_on_after_a_stop(
    problem: Any, fabric: Fabric, tmp_path: Path
) -> None:
    config = {**SMALL, "problem": problem, "evaluation_images": 9, "final_images": 20}
    task = ScaleSpaceTask(ScaleSpace(**config), CPU)
    settings = Training(**{**TRAINING, "batch_size": 4}, steps=4, evaluate_every=2, target=None)
    whole = list(train(task, "mip", 0, settings, fabric, tmp_path / "a"))[-1]
    assert whole.outcome is not None
    assert all(math.isfinite(loss) for loss in whole.loss)
    stopped = train(task, "mip", 0, settings, fabric, tmp_path / "b", stop=lambda: True)
    with pytest.raises(KeyboardInterrupt):
        list(stopped)
    again = list(train(task, "mip", 0, settings, fabric, tmp_path / "b"))[-1]
    assert again.resumed == [1]
    assert again.loss == whole.loss


def test_bfloat16_gives_nearly_the_same_loss(task: ScaleSpaceTask) -> None:
    model, batch = task.model("mip", 0), next(task.batches(4, 0))
    gamma = {"gamma": torch.tensor(0.3)}
    with torch.no_grad():
        expected = float(task.loss(model, batch, gamma, 999))
        with torch.autocast("cpu", torch.bfloat16):
            assert float(task.loss(model, batch, gamma, 999)) == pytest.approx(expected, rel=0.05)


def test_operations_grow_with_gamma_and_are_counted_by_hand(digits: ScaleSpaceTask) -> None:
    model = digits.model("mip", 0)
    gammas = [0.0, 0.1, 0.25, 0.4, 0.5]
    costs = digits.costs(model, gammas, images=4, rounds=3)
    found = [cost["MFLOP per image"] for cost in costs]
    assert found == sorted(found)
    assert all(cost["ms per image"] > 0.0 for cost in costs)

    def stage(pixels: int, inputs: int, outputs: int) -> int:
        return 2 * pixels * outputs * (9 * inputs + 9 * outputs + inputs)

    last = 2 * 16 * 10
    for gamma, second, third in ((0.0, 1, 1), (0.25, 4 * 4, 1), (0.5, 8 * 8, 4 * 4)):
        by_hand = stage(256, 1, 8) + stage(second, 8, 16) + stage(third, 16, 16) + last
        assert found[gammas.index(gamma)] == pytest.approx(1e-6 * by_hand)


# --- what is learned --------------------------------------------------------------------


def test_the_family_learns_to_classify(digits: ScaleSpaceTask, tmp_path: Path) -> None:
    model = trained(digits, 300, batch_size=32)
    figures = digits.evaluate(model, whole=True)
    assert figures["accuracy"] > 55.0
    assert figures["loss"] < 1.4
    outcome = digits.finish(model, tmp_path)
    assert model.training
    (_, heading, rows) = outcome.tables[0]
    assert list(heading) == ["gamma", "accuracy (%)", "loss", "ms per image", "MFLOP per image"]
    assert [row[0] for row in rows] == [i / 20 for i in range(11)]
    accuracy = [row[1] for row in rows]
    assert accuracy[0] > 20.0  # one pixel of each map is enough for some
    assert max(accuracy) > accuracy[0] + 10.0  # what larger maps are for
    assert rows[10][4] > 2.0 * rows[0][4]
    assert outcome.figures["accuracy at gamma 0.5"] == pytest.approx(accuracy[10], abs=1e-3)
    assert [path.name for _, path in outcome.pictures] == ["family.png"]
    assert all(path.stat().st_size > 1000 for _, path in outcome.pictures)
    assert all(math.isfinite(value) for value in outcome.figures.values())


def test_the_family_learns_to_segment(tmp_path: Path) -> None:
    real = digit_scans(16).train[list(range(200))]
    for i, (image, labels) in enumerate(zip(real.images, real.labels, strict=True)):
        np.savez(tmp_path / f"{i}.npz", image=image[0].numpy(), labels=labels.gt(0).numpy())
    task = ScaleSpaceTask(
        ScaleSpace(**{**SMALL, "data": "folder", "problem": "segmentation", "data_dir": tmp_path}),
        CPU,
    )
    before = task.evaluate(task.model("mip", 0), whole=True)
    model = trained(task, 80)
    figures = task.evaluate(model, whole=True)
    assert figures["loss"] < 0.3 * before["loss"]
    assert figures["dice"] > 0.85
    outcome = task.finish(model, tmp_path)
    assert model.training
    assert outcome.tables[0][1][1] == "dice"
    assert [path.name for _, path in outcome.pictures] == ["family.png", "segmented.png"]
    assert all(path.stat().st_size > 1000 for _, path in outcome.pictures)
    assert "dice at gamma 0.25" in outcome.figures


def test_every_normalization_is_where_it_belongs() -> None:
    places = {
        "batchnorm-p": "primary.stages.0.norms.0.running_mean",
        "layernorm-p": "primary.stages.0.norms.0.weight",
        "layernorm-h": "hypernet.trunk.activations.0.0.weight",
        "batchnorm-h": "hypernet.trunk.layers.activations.0.0.running_mean",
        "weightnorm": "primary.stages.0.conv1.parametrizations.weight.0.gain",
    }
    assert {"none", *places} == set(get_args(Normalization))
    for normalization in get_args(Normalization):
        model = ScaleSpaceTask(ScaleSpace(**SMALL, normalization=normalization), CPU).model(
            "mip", 0
        )
        names = set(model.state_dict())
        found = {key for key, name in places.items() if name in names}
        if normalization == "batchnorm-p":  # whose layers have weights as well
            found.remove("layernorm-p")
        assert found == {normalization} - {"none"}
        predicted = model.predict(gamma=0.1)
        assert len(predicted) == 20  # six tensors of each stage, and two of the last layer
        assert not any("norms" in name or "gain" in name for name in predicted)


@pytest.mark.parametrize("normalization", get_args(Normalization))
@pytest.mark.parametrize("formulation", ["classical", "mip"])
def test_every_normalization_can_be_trained_with(normalization: Any, formulation: Any) -> None:
    for config in (CLASSIFY, SEGMENT):
        task = ScaleSpaceTask(
            ScaleSpace(**{**SMALL, "problem": config.problem, "normalization": normalization}), CPU
        )
        model = trained(task, 3, formulation)
        first = task.model(formulation, 0)
        assert all(t.isfinite().all() for t in model.state_dict().values())
        trainable = dict(first.named_parameters())
        moved = [n for n, p in model.named_parameters() if not torch.equal(p, trainable[n])]
        assert any(name.startswith("hypernet.head") for name in moved)
        assert all(math.isfinite(v) for v in task.at(model, 0.0).values())
        assert set(task.model(formulation, 0).state_dict()) == set(model.state_dict())


@pytest.mark.parametrize("kind", ["layernorm-h", "batchnorm-h"])
def test_normalization_of_the_hypernetwork_alone_has_no_plain_network(kind: Any) -> None:
    task = ScaleSpaceTask(ScaleSpace(normalization=kind, **SMALL), CPU)
    for formulation in ("plain", "shared", "channel", "film"):
        with pytest.raises(
            LabError,
            match=f"{kind}, which normalises the hypernetwork, but --parametrization "
            f"{formulation} has none. Leave it out.",
        ):
            task.model(formulation, 0)
    for normalization in ("batchnorm-p", "layernorm-p", "weightnorm"):
        other = ScaleSpaceTask(ScaleSpace(normalization=normalization, **SMALL), CPU)
        trained(other, 2, "plain")


# --- data and settings ------------------------------------------------------------------


def test_images_and_scans_of_ones_own(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(15):
            pixels = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{i}.png")
    (tmp_path / "scans").mkdir()
    for i in range(5):
        image = draw.random((12, 9))
        labels = (image > 0.5).astype(np.uint8)
        np.savez(tmp_path / "scans" / f"{i}.npz", image=image, labels=labels)
    images = ScaleSpaceTask(
        ScaleSpace(
            data="folder",
            problem="classification",
            data_dir=tmp_path / "images",
            **{**SMALL, "size": None},
        ),
        CPU,
    )
    assert images.labels == 2
    batch = next(images.batches(4, 0))
    assert batch.images.shape == (4, 3, 64, 64)  # augmented: the whole images are not square
    trained(images, 1)
    scans = ScaleSpaceTask(
        ScaleSpace(
            data="folder",
            problem="segmentation",
            data_dir=tmp_path / "scans",
            **{**SMALL, "size": None},
        ),
        CPU,
    )
    assert next(scans.batches(2, 0)).images.shape == (2, 1, 12, 9)
    assert scans.labels == 2
    assert set(scans.evaluate(scans.model("mip", 0))) == {"loss", "dice"}


@needs_real_data
def test_real_flowers_and_scans() -> None:
    flowers = ScaleSpaceTask(
        ScaleSpace(data="flowers102", data_dir=REAL_DATA, **{**SMALL, "size": (32, 32)}), CPU
    )
    assert flowers.problem == "classification"
    assert next(flowers.batches(4, 0)).images.shape == (4, 3, 32, 32)
    assert flowers.train.images.shape[-1] == 64  # whole, to be cropped
    brains = ScaleSpaceTask(
        ScaleSpace(data="ptbp", data_dir=REAL_DATA, **{**SMALL, "size": (48, 40)}), CPU
    )
    assert brains.problem == "segmentation"
    assert brains.metric.name == "dice"
    outside = brains.train.images.squeeze(1)[brains.train.labels == 0]
    assert float(outside.float().mean()) > 5.0  # the skull is there


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    def refused(match: str, **settings: Any) -> None:
        with pytest.raises(LabError, match=match):
            ScaleSpaceTask(ScaleSpace(**settings), CPU)

    refused("--levels was 0; expected 1 or more", levels=0)
    refused("--dice-from was -1; expected 0 or more", dice_from=-1)
    refused("--evaluation-gammas was 1; expected 2 or more", evaluation_gammas=1)
    refused(r"--stages was \(8, 0\); expected feature channels", stages=(8, 0))
    refused(r"--stages was \(\); expected feature channels", stages=())
    refused("--gamma was 0.6; expected a number from 0 to 0.5", gamma=0.6)
    refused("--label-smoothing was 1.0; expected a number", label_smoothing=1.0)
    for kind in ("layernorm-h", "batchnorm-h"):
        refused(
            f"--init was relative, which is measured without .* {kind}; expected fan_out or zero",
            normalization=kind,
            init="relative",
        )
    refused("--final-images was 0; expected 1 or more", final_images=0)
    refused(r"--size was \(8, 0\); expected a height and width of 1", size=(8, 0))
    refused(r"--size was \(8, 9\); these images are square", size=(8, 9))
    refused("--data folder needs --problem: classification .* or segm", data="folder")
    refused(
        "--problem was segmentation; flowers102 is for classification. Leave it out",
        data="flowers102",
        problem="segmentation",
    )
    refused("--problem was classification; ptbp is for", data="ptbp", problem="classification")
    for problem in ("classification", "segmentation"):
        refused("--data folder needs --data-dir", data="folder", problem=problem)
