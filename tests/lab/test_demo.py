"""The demo: fair methods, rates that come from validation data, and a knob that does something."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

import hyperlight as hl
from hyperlight.lab import demo
from hyperlight.lab.cli import main
from hyperlight.lab.methods import with_settings
from hyperlight.lab.primaries import VAE
from hyperlight.lab.tasks.base import Hypernetwork
from hyperlight.lab.tasks.vae import VaeTask
from hyperlight.lab.train import train
from tests.lab.making import equal_tensors

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def test_the_methods_are_what_their_names_say() -> None:
    classical, mip, ours, plain = demo.METHODS
    paper = dataclasses.asdict(Hypernetwork(encoding="per-input"))
    for method in (classical, mip):
        made = dataclasses.replace(demo.TASK, **method.settings)
        assert {name: getattr(made, name) for name in paper} == paper
        assert method.training["rates"] == "same"
    task = VaeTask(demo.TASK, CPU)
    model = with_settings(task, ours.settings).model("mip", 0)
    assert isinstance(model, hl.HyperModel)
    torch.manual_seed(0)
    usual = hl.hypernetize(VAE(task.shape, (128,), 8), {"beta": task.space})
    assert equal_tensors(model.state_dict(), usual.state_dict())  # the library's defaults
    assert ours.training["rates"] == "groups"
    assert classical.formulation == "classical"
    assert plain.settings["beta"] == demo.BETAS


def test_a_plain_network_sees_as_many_images_as_a_hypernetwork() -> None:
    plain = demo.METHODS[-1]
    own = plain.training["batch_size"] / len(demo.BETAS)
    assert own == demo.training().batch_size
    assert len({demo.training(**m.training).steps for m in demo.METHODS}) == 1


def test_methods_are_compared_at_the_same_betas() -> None:
    task = VaeTask(demo.TASK, CPU)
    for method in demo.METHODS:
        made = with_settings(task, method.settings)
        ((_, _, rows),) = made.finish(made.model(method.formulation, 0), None).tables
        assert [row[0] for row in rows] == pytest.approx(demo.BETAS, rel=1e-3)


def test_the_rates_are_tried_by_a_command(
    fabric: Fabric,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours = demo.METHODS[2]
    monkeypatch.setattr(demo, "METHODS", demo.METHODS[2:])
    rates = (1e-3, 1e-2)
    small: dict[str, Any] = {"steps": 3, "device": "cpu"}
    found = demo.errors(rates, tmp_path, seeds=2, **small)
    assert list(found) == ["ours", "plain"]
    task = with_settings(VaeTask(demo.TASK, CPU), ours.settings)
    for rate in rates:
        how = dataclasses.replace(demo.training(**small), **{**ours.training, "lr": rate})
        ends = []
        for seed in (0, 1):
            *_, run = train(task, "mip", seed, how, fabric)
            assert run.model is not None
            ends.append(task.evaluate(run.model)["objective"])  # on validation images
        assert found["ours"][rate] == pytest.approx(sum(ends) / 2)
    monkeypatch.setattr(demo, "errors", lambda: found)
    demo.main()
    printed = capsys.readouterr().out
    assert all(f"{error:.4f}" in printed for row in found.values() for error in row.values())


@pytest.mark.usefixtures("no_figures")
def test_the_knob_of_the_demo_does_something(tmp_path: Path) -> None:
    """From the lowest to the highest beta, ours gives up most of the rate, and images with it."""
    options = ["--steps", "60", "--seeds", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert main(["demo", *options]) == 0
    with (tmp_path / "outcome-test-images-against-beta.csv").open(newline="") as file:
        rows = {float(r["gamma"]): r for r in csv.DictReader(file) if r["formulation"] == "ours"}
    low, high = (
        {name: float(rows[beta][name]) for name in ("rate", "distortion")}
        for beta in (min(rows), max(rows))
    )
    assert low["rate"] > 5.0 * high["rate"]
    assert high["distortion"] > 1.3 * low["distortion"]

    task = VaeTask(demo.TASK, CPU)
    model = hl.load(tmp_path / "ours-seed0" / "model.safetensors", VAE(task.shape, (128,), 8))
    x, noise = task.test.images.unit().images, task.test.noise
    with torch.no_grad():
        sharp, blurred = (model.bind(beta=beta)(x, noise)[0] for beta in (0.01, 10.0))
    spread = (x - x.mean(dim=0)).square().sum()
    assert (sharp - blurred).square().sum() > 0.1 * spread
    assert (tmp_path / "along.svg").is_file()


def test_pages_say_what_the_demo_shows() -> None:
    assert "    hyperlight demo " in (ROOT / "docs" / "lab.md").read_text("utf-8")
    assert "make demo" in (ROOT / "README.md").read_text("utf-8")
