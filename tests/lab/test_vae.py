"""Variational autoencoders: the objective, noise, training along beta, figures and settings."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

import hyperlight as hl
from hyperlight.lab.cli import main
from hyperlight.lab.controls import Separate
from hyperlight.lab.data import digits
from hyperlight.lab.errors import LabError
from hyperlight.lab.primaries import VAE
from hyperlight.lab.tasks.base import Fixed, Model
from hyperlight.lab.tasks.vae import Vae, VaeTask, distortion, geometric_mean, objective, rate
from hyperlight.lab.train import Training, train
from tests.lab.making import equal_runs, write_idx

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"hidden": (4, 8), "directions": 3, "widths": (12,), "latent": 3}
SMALL |= {"gammas": 4, "evaluation_gammas": 3, "evaluation_images": 40}


def _task(**changes: Any) -> VaeTask:
    return VaeTask(Vae(**{**SMALL, **changes}), CPU)


def _settings(**changes: Any) -> Training:
    usual = {"steps": 4, "evaluate_every": 2, "batch_size": 16, "lr": 3e-3}
    return Training(**{**usual, "schedule": "cosine", "rates": "groups", **changes})


def _draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _one_by_one(
    model: Model, images: Tensor, noise: Tensor, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Rate, distortion and objective of every image, with the weights of one beta."""
    given, mean, log_variance = model.bind(beta=beta)(images, noise)
    found = (rate(mean, log_variance), distortion(given, images))
    return (*found, objective(found[1], found[0], torch.tensor(beta)))


# --- the objective --------------------------------------------------------------------


def test_the_rate_is_the_divergence_from_a_standard_normal() -> None:
    mean, log_variance = _draw(2, 5, 4), _draw(2, 5, 4, seed=1)
    given = Independent(Normal(mean, (0.5 * log_variance).exp()), 1)
    prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    found = rate(mean, log_variance)
    assert found.shape == (2, 5)
    torch.testing.assert_close(found, kl_divergence(given, prior), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", [0.01, 1.0, 10.0])
def test_the_objective_is_a_negative_evidence_lower_bound(beta: float) -> None:
    """Of pixels with noise of variance beta / 2, up to a factor and a constant."""
    given, wanted = _draw(5, 1, 2, 3), _draw(5, 1, 2, 3, seed=1)
    divergence = rate(_draw(5, 4, seed=2), _draw(5, 4, seed=3))
    scale = math.sqrt(beta / 2)
    bound = Independent(Normal(given, scale), 3).log_prob(wanted) - divergence
    found = objective(distortion(given, wanted), divergence, torch.tensor(beta).double())
    constant = beta * 6 * math.log(scale * math.sqrt(2 * math.pi))
    torch.testing.assert_close((1.0 + beta) * found, -beta * bound - constant)


def test_geometric_means() -> None:
    assert geometric_mean([1.0, 100.0]) == pytest.approx(10.0)
    assert math.isnan(geometric_mean([1.0, math.nan]))
    assert geometric_mean([1.0, math.inf]) == math.inf


# --- the network ------------------------------------------------------------------------


def test_the_network_follows_its_formula() -> None:
    torch.manual_seed(0)
    net = VAE((3, 4, 5), (7, 6), 2).double()
    x, noise = _draw(2, 5, 3, 4, 5), _draw(2, 5, 2, seed=1)
    given, mean, log_variance = net(x, noise)
    assert given.shape == x.shape
    assert mean.shape == log_variance.shape == noise.shape
    encoded = net.encoder(x.reshape(10, 60))
    torch.testing.assert_close(mean, encoded[:, :2].reshape(2, 5, 2))
    latent = mean + torch.exp(encoded[:, 2:].reshape(2, 5, 2)).sqrt() * noise
    torch.testing.assert_close(given, net.decoder(latent).reshape(x.shape))
    sizes = [tuple(p.shape) for p in net.parameters() if p.ndim == 2]
    assert sizes == [(7, 60), (6, 7), (4, 6), (6, 2), (7, 6), (60, 7)]


def test_a_network_without_hidden_layers_is_linear() -> None:
    net = VAE((1, 2, 2), (), 1)
    assert [tuple(p.shape) for p in net.parameters()] == [(2, 4), (2,), (4, 1), (4,)]


# --- data and noise ---------------------------------------------------------------------


def test_training_validation_and_testing_see_different_images() -> None:
    task = _task(evaluation_images=10_000)
    parts = [task.train, task.valid.images, task.test.images]
    assert [len(part) for part in parts] == [1149, 288, 360]
    assert torch.equal(task.test.images.images, digits().test.images)
    order = torch.cat([parts[0].images, parts[1].images]).flatten(1).sum(dim=1).sort().values
    assert torch.equal(order, digits().train.images.flatten(1).sum(dim=1).sort().values)
    assert len(_task().valid.images) == 40


def test_noise_comes_with_the_batch_and_is_drawn_from_its_seed() -> None:
    task = _task()
    batches, again, other = (task.batches(16, seed) for seed in (0, 0, 1))
    for _ in range(3):
        (x, noise), (same, alike) = next(batches), next(again)
        assert torch.equal(x, same)
        assert torch.equal(noise, alike)
    assert not torch.equal(next(other)[1], noise)
    assert not torch.equal(next(batches)[1], noise)
    state = batches.state_dict()
    (x, noise), _ = next(batches), next(batches)
    batches.load_state_dict(state)
    assert all(map(torch.equal, next(batches), (x, noise)))
    many = torch.cat([next(batches)[1] for _ in range(200)])
    assert many.shape == (3200, 3)
    assert float(many.mean()) == pytest.approx(0.0, abs=0.05)
    assert float(many.std()) == pytest.approx(1.0, abs=0.05)


def test_processes_share_a_batch() -> None:
    task = _task()
    whole = next(task.batches(16, 0))
    parts = [next(task.batches(16, 0, (i, 2))) for i in (0, 1)]
    for kind, expected in enumerate(whole):
        for i, part in enumerate(parts):
            assert torch.equal(part[kind], expected[i::2])


# --- losses and figures -------------------------------------------------------------------


def test_the_loss_is_the_mean_over_the_networks_of_its_betas() -> None:
    task = _task()
    model = task.model("mip", 0)
    x, noise = next(task.batches(16, 0))
    gamma = task.sample(model, torch.Generator().manual_seed(0))
    assert gamma["beta"].shape == (4,)
    assert len(gamma["beta"].unique()) == 4
    single = [
        _one_by_one(model, *(part[4 * i : 4 * i + 4] for part in (x, noise)), float(beta))[2]
        for i, beta in enumerate(gamma["beta"])
    ]
    found = task.loss(model, (x, noise), gamma, 0)
    torch.testing.assert_close(found, torch.cat(single).mean())


def test_figures_are_those_of_single_networks() -> None:
    task = _task()
    model = task.model("mip", 0)
    images, noise = digits().test.images, task.test.noise
    betas = [0.01, 10**-0.5, 10.0]
    each = [_one_by_one(model, images, noise, beta) for beta in betas]
    rates, distortions, objectives = (
        [float(row[kind].detach().mean()) for row in each] for kind in range(3)
    )
    figures = task.evaluate(model, whole=True)
    assert figures["loss"] == pytest.approx(sum(objectives) / 3, rel=1e-5)
    assert figures["rate"] == pytest.approx(sum(rates) / 3, rel=1e-4)
    assert figures["distortion"] == pytest.approx(sum(distortions) / 3, rel=1e-5)
    assert figures["objective"] == pytest.approx(math.prod(objectives) ** (1 / 3), rel=1e-5)
    spread = (images - task.train.images.mean(dim=0)).square().sum() / len(images)
    without = math.prod(float(spread) / (1 + beta) for beta in betas) ** (1 / 3)
    saving = 100.0 * (1.0 - figures["objective"] / without)
    assert figures[task.metric.name] == pytest.approx(saving, rel=1e-4)
    assert task.evaluate(model, whole=True) == figures
    assert model.training

    at = task.at(model, 10.0)
    assert at["objective"] == at["loss"] == pytest.approx(objectives[2], rel=1e-5)
    expected = 100.0 * (1.0 - 11.0 * objectives[2] / float(spread))
    assert at["saving"] == pytest.approx(expected, rel=1e-4)

    outcome = task.finish(model, None)
    assert outcome.figures["test error"] == figures["objective"]
    assert outcome.figures["validation error"] == task.evaluate(model)["objective"]
    assert outcome.figures["validation error"] != figures["objective"]
    assert outcome.figures["weights held"] == sum(p.numel() for p in model.parameters())
    assert isinstance(model, hl.HyperModel)
    last = hl.direction_profile(model).last
    assert outcome.figures["energy in the last direction"] == last
    ((title, heading, rows),) = outcome.tables
    assert title == "Test images against beta"
    assert heading == ("gamma", "rate", "distortion", "objective", task.metric.heading)
    assert len(rows) == 3
    for row, beta, *found in zip(rows, betas, rates, distortions, objectives, strict=True):
        assert row[:4] == pytest.approx([beta, *found], rel=1e-3)
    assert rows[2][4] == pytest.approx(expected, rel=1e-3)
    assert not outcome.pictures


def test_images_are_measured_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    task = _task()
    model = task.model("mip", 0)
    whole = task.evaluate(model, whole=True)
    monkeypatch.setattr("hyperlight.lab.tasks.vae._PIXELS", 64 * 50)
    seen: list[int] = []
    model.primary.register_forward_hook(lambda _, arguments, result: seen.append(len(result[1])))
    assert task.evaluate(model, whole=True) == pytest.approx(whole, rel=1e-5)
    assert set(seen) <= {50, 10}
    again = _task()
    assert again.test.spread == pytest.approx(task.test.spread)


# --- training ---------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_with_the_same_numbers(fabric: Fabric, tmp_path: Path) -> None:
    task = _task()
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


def test_rate_falls_and_distortion_rises_with_beta(fabric: Fabric) -> None:
    task = _task(hidden=(16, 32), directions=8, widths=(32,), latent=8, gammas=8)
    settings = _settings(steps=400, evaluate_every=400, batch_size=64, lr=1e-2)
    *_, run = train(task, "mip", 0, settings, fabric)
    assert run.model is not None
    cheap, middle, dear = (task.at(run.model, beta) for beta in (0.01, 0.3, 10.0))
    assert cheap["rate"] > 1.5 * middle["rate"]
    assert middle["rate"] > dear["rate"] + 1.0
    assert dear["rate"] < 0.1
    assert cheap["distortion"] < middle["distortion"] < 0.8 * dear["distortion"]
    assert cheap["saving"] > 30.0
    assert dear["distortion"] == pytest.approx(task.test.spread, rel=0.25)  # the mean image


def test_a_plain_network_is_trained_for_one_beta(fabric: Fabric) -> None:
    task = _task(beta=(0.3,))
    *_, run = train(task, "plain", 0, _settings(), fabric)
    assert isinstance(run.model, Fixed)
    gamma = task.sample(run.model, torch.Generator())
    torch.testing.assert_close(gamma, {"beta": torch.full((4,), 0.3)})
    x, noise = next(task.batches(16, 0))
    *_, single = _one_by_one(run.model, x, noise, 0.3)
    torch.testing.assert_close(task.loss(run.model, (x, noise), gamma, 0), single.mean())
    figures = task.evaluate(run.model, whole=True)
    assert figures == task.at(run.model, 0.3)
    assert figures["loss"] == pytest.approx(figures["objective"])
    *_, images = _one_by_one(run.model, digits().test.images, task.test.noise, 0.3)
    assert figures["loss"] == pytest.approx(float(images.detach().mean()), rel=1e-5)
    assert task.at(run.model, 3.0)["rate"] == figures["rate"]
    assert task.at(run.model, 3.0)["objective"] != figures["objective"]
    outcome = task.finish(run.model, None)
    ((_, _, rows),) = outcome.tables
    assert [row[0] for row in rows] == [0.3]
    assert "energy in the last direction" not in outcome.figures


def test_plain_networks_for_several_betas(fabric: Fabric, tmp_path: Path) -> None:
    betas = (0.1, 5.0)
    task = _task(beta=betas)
    settings = _settings(batch_size=32)
    *_, run = train(task, "plain", 0, settings, fabric, tmp_path, pictures=False)
    assert isinstance(run.model, Separate)
    gamma = task.sample(run.model, torch.Generator())
    assert gamma["beta"].tolist() == pytest.approx([0.1, 0.1, 5.0, 5.0])
    x, noise = next(task.batches(16, 0))
    each = [
        _one_by_one(run.model, x[part], noise[part], beta)[2]
        for part, beta in zip((slice(8), slice(8, 16)), betas, strict=True)
    ]
    torch.testing.assert_close(task.loss(run.model, (x, noise), gamma, 0), torch.cat(each).mean())
    figures = task.evaluate(run.model, whole=True)
    ends = [task.at(run.model, beta) for beta in betas]
    product = ends[0]["objective"] * ends[1]["objective"]
    assert figures["objective"] == pytest.approx(math.sqrt(product))
    assert run.outcome is not None
    ((_, _, rows),) = run.outcome.tables
    assert [row[0] for row in rows] == list(betas)
    assert rows[0][1] != rows[1][1]
    *_, again = train(
        task, "plain", 0, settings, fabric, tmp_path, pictures=False
    )  # from the files
    assert equal_runs(run, again)
    with pytest.raises(LabError, match="to have 4 gammas for plain networks of 3; expected a mult"):
        _task(beta=(0.1, 1.0, 5.0)).model("plain", 0)


def test_all_formulations_start_with_the_same_primary() -> None:
    task = _task()
    plain, mip, other = task.model("plain", 0), task.model("mip", 0), task.model("mip", 1)
    for name, parameter in plain.primary.named_parameters():
        assert torch.equal(parameter, mip.primary.get_parameter(name))
        assert not torch.equal(parameter, other.primary.get_parameter(name))


@pytest.mark.parametrize("formulation", ["mip", "plain", "shared", "channel", "film"])
def test_pictures_are_written(formulation: Any, tmp_path: Path) -> None:
    from matplotlib.image import imread

    task = _task()
    outcome = task.finish(task.model(formulation, 0), tmp_path)
    assert [path.name for _, path in outcome.pictures] == ["front.png", "images.png"]
    for caption, path in outcome.pictures:
        pixels = imread(path)
        assert "along beta" in caption
        assert min(pixels.shape[:2]) > 200
        assert float(pixels[..., :3].std()) > 0.05  # something is drawn


@pytest.mark.usefixtures("no_figures")
def test_it_is_trained_by_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_idx(tmp_path / "mnist")
    command = ["train", "vae", "--data", "mnist", "--data-dir", str(data), "--widths", "8", "6"]
    command += ["--hidden", "4", "8", "--directions", "3", "--latent", "2", "--gammas", "2"]
    command += ["--steps", "2", "--evaluate-every", "1", "--seeds", "1", "--device", "cpu"]
    assert main([*command, "--batch-size", "16", "--out", str(tmp_path / "out")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "mnist, 80 images to train, 20 to validate, 20 to test" in printed
    assert "saving (%)" in printed
    report = (tmp_path / "out" / "report.md").read_text("utf-8")
    assert "Test images against beta" in report
    saved = tmp_path / "out" / "mip-seed0" / "model.safetensors"
    model = hl.load(saved, VAE((1, 28, 28), (8, 6), 2))
    assert model.bind(beta=0.5).decode(torch.zeros(3, 2)).shape == (3, 1, 28, 28)  # type: ignore[operator]


def test_colour_images_of_a_chosen_size(tmp_path: Path) -> None:
    from PIL import Image

    draw = torch.Generator().manual_seed(0)
    for kind, i in itertools.product("ab", range(10)):
        (tmp_path / kind).mkdir(exist_ok=True)
        pixels = torch.randint(0, 256, (9, 11, 3), generator=draw, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / kind / f"{i}.png")
    task = _task(data="folder", data_dir=tmp_path, size=6)
    model = task.model("mip", 0)
    x, noise = next(task.batches(8, 0))
    assert x.shape == (8, 3, 6, 6)
    loss = task.loss(model, (x, noise), task.sample(model, torch.Generator()), 0)
    assert loss.isfinite()
    (tmp_path / "out").mkdir()
    assert all(path.is_file() for _, path in task.finish(model, tmp_path / "out").pictures)


# --- settings ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent": 0}, "--latent was 0; expected 1 or more."),
        ({"size": 0}, "--size was 0; expected 1 or more."),
        ({"gammas": 0}, "--gammas was 0; expected 1 or more."),
        ({"evaluation_gammas": 1}, "--evaluation-gammas was 1; expected 2 or more."),
        ({"evaluation_images": 0}, "--evaluation-images was 0; expected 1 or more."),
        ({"directions": 0}, "--directions was 0; expected 1 or more."),
        (
            {"widths": (8, 0)},
            "--widths was (8, 0); expected widths of 1 or more, as in 512 256.",
        ),
        *(
            (
                {"lowest": low, "highest": high},
                f"--lowest was {low} and --highest {high}; expected numbers above zero, the "
                "smaller one first.",
            )
            for low, high in ((0.0, 1.0), (1.0, 1.0), (0.1, math.inf), (math.nan, 1.0))
        ),
        ({"endpoints": 1.5}, "--endpoints was 1.5; expected a fraction from 0 to 1."),
        ({"beta": (1.0, 0.0)}, "--beta was (1.0, 0.0); expected numbers above zero."),
        ({"beta": (math.nan,)}, "--beta was (nan,); expected numbers above zero."),
        ({"beta": ()}, "--beta was (); expected numbers above zero."),
        ({"fraction": 0.0}, "--fraction was 0.0; expected a number above zero."),
    ],
)
def test_settings_that_cannot_be_trained_with_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(LabError) as raised:
        _task(**changes)
    assert str(raised.value) == message


def test_a_batch_has_an_equal_part_for_each_beta() -> None:
    task = _task()
    with pytest.raises(LabError) as raised:
        task.batches(10, 0)
    assert str(raised.value) == (
        "--batch-size was 10 and --gammas 4; expected a batch size that is a multiple of 4."
    )
    with pytest.raises(LabError, match="multiple of 12"):
        task.batches(16, 0, (0, 3))


def test_betas_are_drawn_from_the_range_of_the_settings() -> None:
    task = _task(lowest=0.1, highest=2.0, endpoints=0.2, gammas=4000)
    (beta,) = task.sample(task.model("mip", 0), torch.Generator().manual_seed(0)).values()
    low, high = beta.aminmax()
    assert (float(low), float(high)) == pytest.approx((0.1, 2.0))
    at_ends = (beta <= 0.1 + 1e-6) | (beta >= 2.0 - 1e-6)
    assert float(at_ends.float().mean()) == pytest.approx(0.2, abs=0.03)
    assert float(beta.log().mean()) == pytest.approx(0.5 * math.log(0.2), abs=0.05)
    (row, *_, last) = task.finish(task.model("mip", 0), None).tables[0][2]
    assert (row[0], last[0]) == (0.1, 2.0)


def test_the_page_about_the_lab_lists_it() -> None:
    page = (ROOT / "docs" / "lab.md").read_text("utf-8")
    assert "    hyperlight train vae " in page
    assert "\n| `vae` | " in page
