"""The Bayesian task on real digits: its loss, its figures, what it finds in the end."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

import hyperlight as hl
from hyperlight.lab.controls import Dropout, Ensemble
from hyperlight.lab.data import Augmentation, digits, flowers102
from hyperlight.lab.errors import LabError
from hyperlight.lab.primaries import LeNet, ResNetLike, RowTransformer
from hyperlight.lab.tasks import bayes
from hyperlight.lab.tasks.base import SWITCHES, Fixed, Model, Outcome, Task
from hyperlight.lab.tasks.bayes import TRAINING, Bayes, BayesTask
from tests.lab.making import write_idx

CPU = torch.device("cpu")
SMALL = Bayes(hidden=(8,), evaluation_gammas=3, evaluation_images=50, posterior_samples=5)


@pytest.fixture(scope="module")
def task() -> BayesTask:
    return BayesTask(SMALL, CPU)


def trained(task: BayesTask, formulation: Any, steps: int, lr: float = 1e-3) -> Model:
    model = task.model(formulation, 0)
    optimizer = hl.optim.Adam(model.parameters(), lr=lr)
    batches, generator = task.batches(64, 0), torch.Generator().manual_seed(0)
    for step in range(steps):
        loss = task.loss(model, next(batches), task.sample(model, generator), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


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


def test_every_entry_of_gamma_is_set(tmp_path: Path) -> None:
    task = BayesTask(replace(SMALL, dimensions=3, prior="normal"), CPU)
    model = task.model("classical", 0)
    with torch.no_grad():
        logits = model(task.test.images, gamma=torch.full((3,), -2.0))
    expected = float(F.cross_entropy(logits, task.test.labels))
    assert task.at(model, -2.0)["loss"] == pytest.approx(expected, rel=1e-5)


def test_large_images_are_tested_in_parts(task: BayesTask, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = task.model("mip", 0), []
    whole = task.at(model, 0.3)
    model.primary.classifier.register_forward_hook(
        lambda _, inputs, __: sizes.append(len(inputs[0]))
    )
    monkeypatch.setattr(bayes, "_PIXELS", {"cpu": 100 * 8 * 8})
    assert task.at(model, 0.3) == pytest.approx(whole, rel=1e-5)
    assert sizes == [100, 100, 100, 60]
    monkeypatch.setattr(bayes, "_PIXELS", {"cpu": 1})
    sizes.clear()
    task.evaluate(model)
    assert sizes == [1] * (50 * 3)


# --- what is found in the end -----------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[BayesTask, Model, Outcome]:
    task = BayesTask(replace(SMALL, hidden=(16, 128)), CPU)
    model = trained(task, "mip", 150)
    outcome = task.finish(model, tmp_path_factory.mktemp("finished"))
    assert model.training
    return task, model, outcome


def test_the_average_is_that_of_the_posterior(finished: tuple[BayesTask, Model, Outcome]) -> None:
    task, model, outcome = finished
    figures, labels = outcome.figures, task.test.labels
    gammas = task.posterior()
    assert gammas.shape == (5,)
    assert torch.equal(gammas, task.posterior())
    with torch.no_grad():
        each = torch.stack([model(task.test.images, gamma=g).double().softmax(1) for g in gammas])
    average = each.mean(dim=0)
    right = average.argmax(dim=1) == labels
    truth = average[torch.arange(len(labels)), labels]
    entropy = -(average * average.log()).sum(dim=1)
    inner = -(each * each.log()).sum(dim=2).mean(dim=0)
    answers = each.argmax(dim=2)
    pairs = [(answers[i] != answers[j]) for i in range(5) for j in range(i)]
    for name, expected in (
        ("accuracy of the average (%)", 100.0 * right.double().mean()),
        ("accuracy of one gamma (%)", 100.0 * (answers == labels).double().mean()),
        ("log-loss of the average", -truth.log().mean()),
        (
            "calibration error of the average (%)",
            100.0 * multiclass_calibration_error(average, labels, 10, n_bins=15),
        ),
        ("disagreement of two gammas (%)", 100.0 * torch.stack(pairs).double().mean()),
        ("entropy, right answers", entropy[right].mean()),
        ("mutual information, wrong answers", (entropy - inner)[~right].mean()),
        ("wrong answers by entropy, AUROC", roc_auc_score(~right, entropy)),
        ("wrong answers by mutual information, AUROC", roc_auc_score(~right, entropy - inner)),
    ):
        assert figures[name] == pytest.approx(float(expected), rel=2e-3), name
    assert figures["log-loss of the average"] <= figures["log-loss of one gamma"]  # Jensen
    assert figures["disagreement of two gammas (%)"] > 0.0


def test_uncertainty_says_which_answers_to_trust(
    finished: tuple[BayesTask, Model, Outcome],
) -> None:
    _, _, outcome = finished
    figures = outcome.figures
    assert all(math.isfinite(value) for value in figures.values())
    assert figures["entropy, wrong answers"] > 2.0 * figures["entropy, right answers"]
    assert figures["wrong answers by entropy, AUROC"] > 0.8
    # Better than a guess; over seeds 0 to 2 from 0.56 to 0.79.
    assert figures["images turned by 90 degrees by entropy, AUROC"] > 0.53
    assert figures["images turned by 90 degrees by mutual information, AUROC"] > 0.53
    by_title = {title: (heading, rows) for title, heading, rows in outcome.tables}
    assert list(by_title) == ["Calibration", "Rejection by predictive entropy"]
    heading, rows = by_title["Calibration"]
    assert [row[0] for row in rows] == ["average of 5 gammas", "one gamma, mean"]
    assert rows[0][1] == round(figures["accuracy of the average (%)"], 2)
    assert all(len(row) == len(heading) for row in rows)
    heading, rows = by_title["Rejection by predictive entropy"]
    assert [row[0] for row in rows] == [0, 5, 10, 20, 30, 50]
    assert rows[0][1:] == (
        round(figures["accuracy of the average (%)"], 2),
        round(figures["accuracy of one gamma (%)"], 2),
    )
    assert rows[0][1] < rows[2][1] <= rows[5][1]
    assert rows[3][1] == round(figures["accuracy with 20 % rejected (%)"], 2)
    assert [path.name for _, path in outcome.pictures] == [
        *("calibration.png", "rejection.png", "entropy.png", "images.png", "gammas.png")
    ]
    assert all(path.stat().st_size > 5000 for _, path in outcome.pictures)


def test_a_plain_network_is_an_average_of_one(
    finished: tuple[BayesTask, Model, Outcome], tmp_path: Path
) -> None:
    task, _, family = finished
    model = trained(task, "plain", 60)
    outcome = task.finish(model, tmp_path)
    figures = outcome.figures
    assert set(figures) == set(family.figures)
    at = task.at(model, 0.5)
    assert figures["accuracy of the average (%)"] == pytest.approx(at["accuracy"])
    assert figures["log-loss of one gamma"] == pytest.approx(at["loss"])
    assert figures["disagreement of two gammas (%)"] == 0.0
    assert figures["mutual information, right answers"] == 0.0
    assert figures["wrong answers by mutual information, AUROC"] == 0.5  # it says nothing
    for _, heading, rows in outcome.tables:
        assert all(len(row) == len(heading) for row in rows)
    assert [row[0] for row in outcome.tables[0][2]] == ["the network"]
    assert list(outcome.tables[1][1]) == ["rejected (%)", "the network: accuracy (%)"]
    assert list(task.finish(model, None).pictures) == []
    assert {path.name for path in tmp_path.iterdir()} == {
        *("calibration.png", "rejection.png", "entropy.png", "images.png")
    }


def test_accuracy_is_measured_on_validation_images_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fifth of the training images of MNIST, at most 2,000; the digits have none."""
    monkeypatch.setattr("hyperlight.lab.tasks.bayes._VALIDATION", 15)
    task = BayesTask(replace(SMALL, data="mnist", data_dir=write_idx(tmp_path)), CPU)
    assert task.valid is not None
    assert len(task.valid) == 15
    for formulation in ("mip", "plain"):
        model = task.model(formulation, 1).eval()  # type: ignore[arg-type]
        right = []
        for gamma in task._gammas():
            logits = model.bind(gamma=gamma)(task.valid.unit().images)
            right.append((logits.argmax(dim=1) == task.valid.labels).float().mean())
        figures = task.finish(model, None).figures
        expected = 100.0 * float(torch.stack(right).mean())
        assert figures["validation accuracy"] == pytest.approx(expected)
    digits = BayesTask(SMALL, CPU)
    assert "validation accuracy" not in digits.finish(digits.model("mip", 0), None).figures


def test_a_model_that_came_to_nothing_is_told_of(task: BayesTask, tmp_path: Path) -> None:
    model = task.model("classical", 0)
    for parameter in model.parameters():
        parameter.data.fill_(math.nan)
    figures = task.finish(model, tmp_path).figures
    assert math.isnan(figures["log-loss of the average"])
    assert math.isnan(figures["calibration error of the average (%)"])
    assert math.isnan(figures["wrong answers by entropy, AUROC"])


def test_the_posterior_is_the_prior_of_gamma() -> None:
    for prior, mean, std in (("uniform", 0.5, 12**-0.5), ("normal", 0.0, 1.0)):
        config = replace(SMALL, prior=prior, dimensions=4, posterior_samples=5000)
        gammas = BayesTask(config, CPU).posterior()
        assert gammas.shape == (5000, 4)
        torch.testing.assert_close(gammas.mean(dim=0), torch.full((4,), mean), atol=0.05, rtol=0)
        torch.testing.assert_close(gammas.std(dim=0), torch.full((4,), std), atol=0.05, rtol=0)


# --- data -------------------------------------------------------------------------


def write_digits(folder: Path, size: int, mode: str, each: int = 8) -> Path:
    """Real digits as files, in a folder for every class."""
    split = digits()
    for label, name in ((0, "nought"), (1, "one"), (7, "seven")):
        (folder / name).mkdir(parents=True)
        chosen = split.train.images[split.train.labels == label][:each]
        for i, image in enumerate(chosen):
            pixels = image[0].mul(255.0).byte().numpy()
            Image.fromarray(pixels).resize((size, size)).convert(mode).save(
                folder / name / f"{i}.png"
            )
    return folder


@pytest.mark.parametrize(
    ("size", "grey", "primary"),
    [(28, True, LeNet), (8, True, LeNet), (32, True, ResNetLike), (40, False, ResNetLike)],
)
def test_images_of_ones_own(tmp_path: Path, size: int, grey: bool, primary: type) -> None:
    folder = write_digits(tmp_path / "mine", 48, "L" if grey else "RGB")
    config = replace(SMALL, data="folder", data_dir=folder, size=size, grey=grey)
    task = BayesTask(config, CPU)
    assert "images of mine, 3 classes" in task.note
    batch = next(task.batches(4, 0))
    assert batch.images.shape == (4, 1 if grey else 3, size, size)
    assert batch.images.dtype == torch.float32
    model = task.model("mip", 0)
    assert type(model.primary) is primary
    assert model(batch.images, gamma=0.5).shape == (4, 3)


def test_images_of_ones_own_are_not_turned(tmp_path: Path) -> None:
    folder = write_digits(tmp_path / "mine", 48, "RGB")
    task = BayesTask(replace(SMALL, data="folder", data_dir=folder, size=32, dimensions=2), CPU)
    (tmp_path / "out").mkdir()
    outcome = task.finish(task.model("mip", 0), tmp_path / "out")
    assert not any("turned" in name for name in outcome.figures)  # that may be of the task
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("calibration.png", "rejection.png", "entropy.png", "images.png")
    }


def test_augmentation_can_be_left_out(tmp_path: Path) -> None:
    folder = write_digits(tmp_path / "mine", 48, "RGB")
    config = replace(SMALL, data="folder", data_dir=folder, size=32)
    with_it, without = (BayesTask(replace(config, augment=on), CPU) for on in (True, False))
    assert isinstance(with_it.split.augment, Augmentation)
    assert without.split.augment is None
    whole = without.train.unit().images
    for task, kept in ((with_it, False), (without, True)):
        images = next(task.batches(4, 0)).images
        found = [any(torch.equal(image, known) for known in whole) for image in images]
        assert found == [kept] * 4


def test_mnist_and_flowers_are_asked_for_as_the_paper_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = BayesTask(replace(SMALL, data="mnist", data_dir=write_idx(tmp_path)), CPU)
    assert "80 images to train (20 held out)" in task.note
    assert type(task.model("mip", 0).primary) is LeNet
    asked: list[Any] = []

    def stand_in(folder: Path, size: int, **options: Any) -> Any:
        asked.append((folder, size, options))
        return digits(32)

    monkeypatch.setattr("hyperlight.lab.data.flowers.flowers102", stand_in)
    BayesTask(replace(SMALL, data="flowers102", data_dir=tmp_path), CPU)
    BayesTask(replace(SMALL, data="flowers102", size=64, use_valid=True, augment=False), CPU)
    assert asked == [
        (tmp_path, 256, {"use_valid": False, "whole": True}),
        (None, 64, {"use_valid": True, "whole": False}),
    ]
    assert flowers102 is not stand_in


# --- settings ---------------------------------------------------------------------


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    for config, words in (
        (Bayes(size=16), "--size was 16, of grey images; expected 32 or more, for the ResNet-like"),
        (Bayes(data="mnist", size=32), "--size was 32; MNIST is 28 pixels high and wide."),
        (
            Bayes(data="mnist", grey=True),
            "--grey was given with --data mnist; it is for --data folder only.",
        ),
        (
            Bayes(use_valid=True),
            "--use-valid was given with --data digits; it is for --data flowers102 only.",
        ),
        (
            Bayes(size=15, stages=(4, 4, 4, 4)),
            "--size was 15, of grey images; expected 16 or more, for the ResNet-like",
        ),
        (Bayes(batch_norm=True), "--batch-norm was given, but the primary is LeNet (8 pixels, "),
        (
            Bayes(batch_norm=True, network="transformer", size=32),
            "--batch-norm was given, but the primary is a transformer (32 pixels, --network tran",
        ),
        (Bayes(stages=(4, 0)), "--stages was (4, 0); expected feature channels, as in 16 32 64"),
        (Bayes(stages=()), "--stages was (); expected feature channels, as in 16 32 64 128 128."),
        (Bayes(data="folder"), "--data folder needs --data-dir, the folder with your images."),
        (
            Bayes(data="folder", data_dir=write_digits(tmp_path, 28, "L"), size=28),
            "--size was 28, of colour images; expected 32 or more, for the ResNet-like network, or "
            "grey images of 8 or 28 pixels, for LeNet.",
        ),
    ):
        with pytest.raises(LabError) as raised:
            BayesTask(config, CPU)
        assert str(raised.value).startswith(words)


@pytest.mark.parametrize("formulation", ["classical", "mip", "plain", "channel"])
def test_rows_are_the_tokens_of_a_transformer(formulation: Any) -> None:
    task = BayesTask(replace(SMALL, network="transformer"), CPU)
    model = task.model(formulation, 0)
    assert isinstance(model.primary, RowTransformer)
    batch, gamma = next(task.batches(8, 0)), task.sample(model, torch.Generator())
    task.loss(model, batch, gamma, 0).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in model.primary.blocks.parameters())
    assert math.isfinite(task.evaluate(model)["loss"])
    net = RowTransformer()
    assert sum(p.numel() for p in net.parameters()) == 18_026
    x = torch.rand(2, 1, 8, 8)
    assert not torch.allclose(net(x), net(x.flip(2)))  # the order of rows matters
    seen: list[torch.Tensor] = []
    net.embed.register_forward_hook(lambda _m, a, _o: seen.append(a[0]))
    net(x)
    assert torch.equal(seen[0], x[:, 0])


def test_batch_normalisation_of_the_primary_is_not_predicted() -> None:
    plain, normal = (
        BayesTask(replace(SMALL, size=16, stages=(4, 4), batch_norm=on), CPU).model("mip", 0)
        for on in (False, True)
    )
    assert isinstance(plain, hl.HyperModel)
    assert isinstance(normal, hl.HyperModel)
    found = [type(m) for m in normal.primary.modules() if "Norm" in type(m).__name__]
    assert found == [torch.nn.BatchNorm2d] * 6  # three convolutions in each of two stages
    assert normal.hypernet.shapes == plain.hypernet.shapes


def test_stages_and_a_cap_on_the_last_test() -> None:
    config = replace(SMALL, size=16, stages=(4, 4, 8, 8), final_images=30)
    task = BayesTask(config, CPU)
    primary = task.model("plain", 0).primary
    assert isinstance(primary, ResNetLike)
    assert [stage.conv1.out_channels for stage in primary.stages] == [4, 4, 8, 8]
    assert len(task.test) == 30
    whole = BayesTask(replace(config, final_images=None), CPU).test
    assert len(whole) == 360
    # Drawn once, in the order of the whole, with images of every class.
    rows = [
        int((whole.images == image).flatten(1).all(dim=1).nonzero()) for image in task.test.images
    ]
    assert rows == sorted(set(rows))
    assert len(task.test.labels.unique()) == 10
    assert torch.equal(task.test.images, BayesTask(config, CPU).test.images)


@pytest.mark.parametrize(
    "option",
    [
        *("dimensions", "evaluation_gammas", "evaluation_images", "final_images"),
        *("posterior_samples", "members", "turned_images"),
    ],
)
def test_counts_that_are_too_small_are_refused(option: str) -> None:
    least = 2 if option in ("evaluation_gammas", "posterior_samples") else 1
    words = f"--{option.replace('_', '-')} was {least - 1}; expected {least} or more."
    with pytest.raises(LabError) as raised:
        BayesTask(Bayes(**{option: least - 1}), CPU)
    assert str(raised.value) == words


# --- plain networks that answer with an average ---------------------------------------------------


def _probabilities(nets: list[torch.nn.Module], images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack([net(images).double().softmax(1) for net in nets]).mean(0)


def test_an_ensemble_answers_with_the_mean_of_all_of_its_networks() -> None:
    task = BayesTask(replace(SMALL, members=3), CPU)
    model = task.model("plain", 0)
    assert isinstance(model, Ensemble)
    nets = model.networks
    assert (
        len({float(net.encoder[0].weight.detach().sum()) for net in nets}) == 3
    )  # of different starts
    one, part = next(task.batches(48, 0)), 16
    losses = [
        F.cross_entropy(net(one.images[part * i : part * (i + 1)]), one.labels[part * i :][:part])
        for i, net in enumerate(nets)
    ]
    torch.testing.assert_close(task.loss(model, one, {}, 0), torch.stack(losses).mean())
    images, labels = task.test.images, task.test.labels
    right = [(_probabilities([net], images).argmax(1) == labels).double().mean() for net in nets]
    found = task.evaluate(model, whole=True)["accuracy"]
    assert found == pytest.approx(100.0 * float(torch.stack(right).mean()), rel=1e-5)
    outcome = task.finish(model, None)
    average = _probabilities(nets, images)
    assert outcome.figures["accuracy of the average (%)"] == pytest.approx(
        100.0 * float((average.argmax(1) == labels).double().mean())
    )
    assert [row[0] for row in outcome.tables[0][2]] == [
        "average of 3 networks",
        "one network, mean",
    ]


def test_dropout_answers_with_the_mean_of_several_draws() -> None:
    task = BayesTask(replace(SMALL, dropout=0.3), CPU)
    model = task.model("plain", 0)
    assert isinstance(model, Dropout)
    nets = [model.bind(gamma=seed) for seed in range(SMALL.posterior_samples)]
    average = _probabilities(nets, task.test.images)
    outcome = task.finish(model, None)
    assert outcome.figures["accuracy of the average (%)"] == pytest.approx(
        100.0 * float((average.argmax(1) == task.test.labels).double().mean())
    )
    assert outcome.figures["disagreement of two gammas (%)"] > 0.0
    assert [row[0] for row in outcome.tables[0][2]] == ["average of 5 draws", "one draw, mean"]


@pytest.mark.parametrize("settings", [{"members": 2}, {"dropout": 0.5}])
def test_averages_of_plain_networks_have_pictures(settings: dict[str, Any], tmp_path: Path) -> None:
    task = BayesTask(replace(SMALL, **settings), CPU)
    outcome = task.finish(task.model("plain", 0), tmp_path)
    assert {path.name for _, path in outcome.pictures} == {
        *("calibration.png", "rejection.png", "entropy.png", "images.png")
    }


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"members": 2}, "--members 2 was given with --parametrization mip; it is for "),
        ({"dropout": 0.5}, "--dropout 0.5 was given with --parametrization mip; it is for "),
    ],
)
def test_averages_are_of_plain_networks_only(settings: dict[str, Any], words: str) -> None:
    task = BayesTask(replace(SMALL, **settings), CPU)
    with pytest.raises(LabError) as raised:
        task.model("mip", 0)
    assert str(raised.value) == f"{words}--parametrization plain only."


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dropout": 1.0}, "--dropout was 1.0; expected a probability of at least 0, below 1."),
        (
            {"dropout": 0.5, "members": 2},
            "--dropout 0.5 was given with --members 2; expected one of the two.",
        ),
        (
            {"dropout": 0.5, "network": "transformer"},
            "--dropout was given with --network transformer; it is for LeNet and the ResNet-like "
            "network.",
        ),
        (
            {"angles": (30.0,), "data": "flowers102"},
            "--angles was given with --data flowers102; it is for digits and mnist.",
        ),
        ({"gain": 0.0}, "--gain was 0.0; expected a number above zero."),
        (
            {"gain": 2.0, "init": "zero"},
            "--gain was given with --init zero; it is for fan_out only.",
        ),
    ],
)
def test_settings_of_averages_are_checked(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(LabError) as raised:
        replace(SMALL, **settings).check()
    assert str(raised.value) == words


def test_the_gain_is_a_factor_of_the_first_predicted_weights(task: BayesTask) -> None:
    usual = task.model("classical", 0)
    larger = BayesTask(replace(SMALL, gain=4.0), CPU).model("classical", 0)
    assert isinstance(usual, hl.HyperModel)
    assert isinstance(larger, hl.HyperModel)
    weights = usual.predict(gamma=0.7)
    for name, value in larger.predict(gamma=0.7).items():
        torch.testing.assert_close(value, 4.0 * weights[name])


# --- turned images --------------------------------------------------------------------------------


def test_turned_images_are_those_of_scipy() -> None:
    from scipy.ndimage import rotate

    images = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    for angle in (0.0, 30.0, 90.0):
        expected = rotate(
            *(images.numpy(), angle), axes=(2, 3), reshape=False, order=1, mode="grid-constant"
        )
        torch.testing.assert_close(bayes.turn(images, angle), torch.from_numpy(expected))


def test_figures_of_turned_images_are_those_of_the_average() -> None:
    task = BayesTask(replace(SMALL, angles=(0.0, 45.0), turned_images=100), CPU)
    model = trained(task, "mip", 60)
    outcome = task.finish(model, None)
    tables = {title: (heading, rows) for title, heading, rows in outcome.tables}
    gammas = task.posterior()
    chosen = torch.randperm(360, generator=torch.Generator().manual_seed(0))[:100].sort().values
    labels = task.test.labels[chosen].repeat(2)
    images = torch.cat([bayes.turn(task.test.images[chosen], angle) for angle in (0.0, 45.0)])
    assert isinstance(model, hl.HyperModel)
    average = _probabilities([model.bind(gamma=g) for g in gammas], images)
    confidence, answer = average.max(dim=1)
    right = (answer == labels).double()
    entropy = -(average * average.log()).sum(dim=1)
    kept = entropy.argsort()[:100]
    found = outcome.figures
    assert found["turned images, accuracy (%)"] == pytest.approx(100.0 * float(right.mean()))
    error = multiclass_calibration_error(average, labels, 10, n_bins=15)
    assert found["turned images, calibration error (%)"] == pytest.approx(100 * float(error))
    assert found["turned images, accuracy with 50 % rejected (%)"] == pytest.approx(
        100.0 * float(right[kept].mean())
    )
    assert found["turned images, wrong answers by entropy, AUROC"] == pytest.approx(
        roc_auc_score((1.0 - right).numpy(), entropy.numpy())
    )
    _, rows = tables["Turned images"]
    assert [row[0] for row in rows] == [0.0, 45.0]
    for i, (_, accuracy, sure, _, unsure) in enumerate(rows):
        own = slice(100 * i, 100 * i + 100)
        assert accuracy == pytest.approx(100.0 * float(right[own].mean()), abs=0.01)
        assert sure == pytest.approx(100.0 * float(confidence[own].mean()), abs=0.01)
        assert unsure == pytest.approx(float(entropy[own].mean()), abs=1e-3)
    _, bins = tables["Turned images by confidence"]
    assert sum(count for _, count, _, _ in bins) == 200
    mean = sum(count * accuracy for _, count, _, accuracy in bins) / 200
    assert mean == pytest.approx(100.0 * float(right.mean()), abs=0.01)
    _, kept_rows = tables["Turned images, some rejected"]
    assert [share for share, _ in kept_rows] == list(range(0, 100, 10))


def test_images_are_not_turned_unless_asked(finished: tuple[BayesTask, Model, Outcome]) -> None:
    _, _, outcome = finished
    assert len(outcome.tables) == 2
    assert not any(name.startswith("turned images") for name in outcome.figures)
