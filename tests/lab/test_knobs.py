"""The sliders of reports: every task shows what its model gives along gamma."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import hyperlight as hl
from hyperlight.lab.cli import main
from hyperlight.lab.methods import Method
from hyperlight.lab.registration import warp
from hyperlight.lab.session import Session
from hyperlight.lab.tasks.base import SLIDER
from hyperlight.lab.tasks.bayes import Bayes, BayesTask
from hyperlight.lab.tasks.families import Families, FamiliesTask
from hyperlight.lab.tasks.hypermorph import Hypermorph, HypermorphTask
from hyperlight.lab.tasks.scale_space import ScaleSpace, ScaleSpaceTask
from hyperlight.lab.tasks.vae import Vae, VaeTask
from tests.lab.making import diverged, make_run, plain_run, small_model
from tests.test_explore import frames, picture

CPU = torch.device("cpu")
UNET: dict[str, Any] = {"size": (16, 16), "levels": 2, "channels": 4, "hidden": (8,)}


def _shown(task: Any) -> tuple[hl.HyperModel, dict[str, Any]]:
    """A model, in which the input matters, and what its page shows."""
    model = task.model("mip", 0)
    with torch.no_grad():
        for parameter in model.hypernet.parameters():
            parameter.mul_(1.5)
    found = task.knob(model)
    assert found is not None
    caption, page = found
    assert caption.endswith(".")
    assert model.training
    assert len(page.html) < 1_000_000
    data = frames(page)
    assert [len(texts) for texts in data["axes"]] == [SLIDER]
    return model.eval(), data


def _bytes(values: Tensor) -> Tensor:
    return (values.clamp(0.0, 1.0) * 255).round().movedim(0, -1).to(torch.uint8)


def test_an_autoencoder_shows_what_is_kept_at_a_price() -> None:
    task = VaeTask(Vae(hidden=(8,), directions=None, widths=(12,), latent=3), CPU)
    model, data = _shown(task)
    assert data["axes"][0][::10] == ["0.01", "0.316", "10"]
    for i, beta in ((0, 0.01), (20, 10.0)):
        x, noise = task.test.images[torch.arange(4)].unit().images, task.test.noise[:4]
        given = model(x, noise, beta=beta)[0]
        for sample, panel in enumerate(data["panels"]):
            line = torch.ones_like(x[sample][:, :1])
            expected = _bytes(torch.cat([x[sample], line, given[sample]], dim=-2))
            assert torch.equal(picture(panel["sources"][i]), expected)


def test_a_registration_shows_the_warped_scan_and_the_grid() -> None:
    task = HypermorphTask(Hypermorph(evaluation_pairs=4, init="relative", **UNET), CPU)
    model, data = _shown(task)
    moving, fixed = task._pairs(task.test, 2)
    lines = torch.ones(2, 1, 16, 16)
    lines[:, :, ::4] = lines[:, :, :, ::4] = 0.0
    assert len(data["panels"]) == 2
    for i, gamma in ((0, 0.0), (20, 1.0)):
        field = model(torch.cat([moving.images, fixed.images], dim=1), gamma=gamma)
        parts = [moving.images, warp(moving.images, field), fixed.images, warp(lines, field)]
        for panel, expected in zip(data["panels"], torch.cat(parts, dim=-1), strict=True):
            away = picture(panel["sources"][i]).int() - _bytes(expected).int()
            assert int(away.abs().max()) <= 1


@pytest.mark.parametrize("dimensions", [1, 3])
def test_a_classifier_shows_the_images_whose_answer_changes_most(dimensions: int) -> None:
    small = {"evaluation_images": 50, "posterior_samples": SLIDER + 5, "dimensions": dimensions}
    task = BayesTask(Bayes(hidden=(8,), **small), CPU)
    if dimensions > 1:
        found = task.knob(task.model("mip", 0))
        assert len(frames(found[1])["axes"][0]) == 16
        return
    model, data = _shown(task)
    x = task.few.unit().images
    gammas = task.posterior()[:16]
    first, last = (model(x, gamma=float(g)).softmax(1) for g in (gammas[0], gammas[-1]))
    most = (first - last).abs().sum(1).argsort(descending=True)[:4]
    for i, gamma in ((0, 0.0), (20, 1.0)):
        for panel, p in zip(data["panels"], model(x[most], gamma=gamma).softmax(1), strict=True):
            assert panel["bars"][i] == pytest.approx(p.tolist(), abs=1e-3)


def test_a_family_of_functions_shows_its_curves() -> None:
    task = FamiliesTask(Families(hidden=(8,), width=8), CPU)
    model, data = _shown(task)
    x = torch.linspace(-1.0, 1.0, 201)[:, None]
    low, high = (float(v) for v in model(x, gamma=0.25).detach().aminmax())
    assert data["panels"][0]["alts"][5] == f"At gamma = 0.25: curve from {low:.4g} to {high:.4g}"
    other = FamiliesTask(Families(family="interaction", hidden=(8,), width=8), CPU)
    assert other.knob(other.model("mip", 0)) is None


@pytest.mark.parametrize("problem", ["classification", "segmentation"])
def test_scale_space_shows_labels_or_figures(problem: Any) -> None:
    small: dict[str, Any] = {"size": (32, 32), "hidden": (8,), "evaluation_images": 9}
    task = ScaleSpaceTask(ScaleSpace(problem=problem, **small), CPU)
    model, data = _shown(task)
    rows = torch.tensor([0, 3, 5, 8])
    x = task.few[rows].unit().images
    for i, gamma in ((1, 0.025), (20, 0.5)):
        net = model.bind(gamma=gamma)
        if problem == "segmentation":
            labels = net(x, gamma).argmax(1)
            for panel, expected in zip(data["panels"], labels, strict=True):
                assert torch.equal(picture(panel["sources"][i])[..., 0].long(), expected)
        else:
            figures = task.measure(net, task.few, gamma)
            assert data["panels"][0]["cells"][i] == [f"{v:.4g}" for v in figures.values()]


def test_the_slider_is_of_ours_or_of_the_first_run_of_mip_that_did_not_diverge() -> None:
    session: Any = SimpleNamespace(task=SimpleNamespace(knob=lambda model: ("Words.", model)))
    runs = [make_run(name, seed) for name in ("classical", "mip") for seed in (1, 0)]
    runs = [replace(run, model=small_model()) for run in runs]
    runs.append(plain_run())
    assert Session._knob(session, runs) == ("MIP, seed 0. Words.", runs[3].model)
    runs[3] = replace(diverged("mip", 0), model=small_model())
    assert Session._knob(session, runs) == ("MIP, seed 1. Words.", runs[2].model)
    assert Session._knob(session, runs[:2]) == ("classical, seed 0. Words.", runs[1].model)
    assert Session._knob(session, runs[3:]) is None
    ours = Method("ours", "ours", "#000000", "mip")
    runs.append(replace(make_run("mip", 1), model=small_model(), method=ours))
    assert Session._knob(session, runs) == ("ours, seed 1. Words.", runs[-1].model)


@pytest.mark.usefixtures("no_figures")
def test_a_report_shows_mip_or_says_why_there_is_no_slider(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["--hidden", "4", "--widths", "8", "--evaluation-gammas", "2", "--device", "cpu"]
    small += ["--steps", "2", "--evaluate-every", "2", "--batch-size", "16", "--seeds", "2"]
    out = tmp_path / "out"
    command = ["train", "vae", *small, "--out", str(out)]
    assert main(command) == 0
    assert "MIP, seed 0. Above: test images." in (out / "report.html").read_text("utf-8")
    before = (out / "knob.html").read_bytes()
    assert main(command) == 0  # from the models that are kept
    assert (out / "knob.html").read_bytes() == before

    def refuse(*_: Any) -> None:
        raise hl.ConfigurationError("the output has NaN.")

    monkeypatch.setattr(VaeTask, "knob", refuse)
    capsys.readouterr()
    assert main(command) == 0
    assert "The report has no slider: the output has NaN." in capsys.readouterr().out
    assert not (out / "knob.html").exists()
    assert main([*command[:-1], str(tmp_path / "film"), "--parametrization", "film"]) == 0
    assert not (tmp_path / "film" / "knob.html").exists()
