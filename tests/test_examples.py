"""Every example of the gallery runs, ends with a picture, and its knob still does what it shows."""

from __future__ import annotations

import ast
import runpy
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
Run = Callable[[str], dict[str, Any]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run an example as a script, and check that it ends with a picture."""
    shown: list[int] = []

    def ran(name: str) -> dict[str, Any]:
        names = runpy.run_path(str(EXAMPLES / f"plot_{name}.py"), run_name="__main__")
        assert shown[-1] > 0
        return names

    plt.switch_backend("Agg")
    monkeypatch.setattr(plt, "show", lambda: shown.append(len(plt.get_fignums())))
    yield ran
    plt.close("all")


def mean(values: Any) -> float:
    values = list(values.values()) if isinstance(values, dict) else list(values)
    return float(sum(values) / len(values))


def test_every_example_has_a_test_a_title_and_80_lines_at_most() -> None:
    paths = sorted(EXAMPLES.glob("plot_*.py"))
    assert paths
    for path in paths:
        text = path.read_text()
        title, rule, *_ = (ast.get_docstring(ast.parse(text)) or "").split("\n")
        assert len(rule) == len(title)
        assert set(rule) == {"="}
        assert "\n# %%\n" in text
        assert len(text.splitlines()) <= 80
        assert f"test_{path.stem.removeprefix('plot_')}" in globals()


def test_registration(run: Run) -> None:
    names = run("registration")
    family, alone = names["error_of_family"], names["error_alone"]
    for smoothness, error in alone.items():
        assert family[smoothness] < 1.1 * error
    rough = [float(field.diff(dim=-1).abs().mean()) for field in names["fields"].values()]
    assert all(more > less for more, less in pairwise(rough))
    assert rough[0] > 3 * rough[-1]


def test_beta_vae(run: Run) -> None:
    names = run("beta_vae")
    for beta, alone in names["loss_alone"].items():
        assert names["loss_of_family"][beta] < 1.1 * alone
    rate, distortion = names["rate"].mean(1)[::3], names["distortion"].mean(1)[::3]
    assert (rate.diff() < 0).all()
    assert (distortion.diff() > 0).all()


def test_decision_cost(run: Run) -> None:
    names = run("decision_cost")
    prices = names["prices"]
    family, alone, raised = (
        prices[name] for name in ("one family", "a network for each", "raised score")
    )
    assert mean(family) < 1.05 * mean(alone)
    assert mean(family) < 0.97 * mean(raised)


def test_hyper_lora(run: Run) -> None:
    names = run("hyper_lora")
    accuracy = names["accuracy"]
    assert min(accuracy["hyper-LoRA"]) > 0.8
    assert mean(accuracy["hyper-LoRA"]) > mean(accuracy["an adapter for each"]) - 0.05
    assert mean(accuracy["one adapter for all"]) < 0.5
    assert mean(accuracy["one adapter for all"]) + 0.2 < mean(accuracy["FiLM"])
    assert mean(accuracy["FiLM"]) < mean(accuracy["hyper-LoRA"]) - 0.05
    assert names["accuracy_loaded"] == accuracy["hyper-LoRA"][2]


def test_image_to_siren(run: Run) -> None:
    error = run("image_to_siren")["error"]
    assert error["predicted"] < 0.5 * error["mean"]
    assert error["predicted"] < 1.15 * error["concatenated"]


def test_differential_equations(run: Run) -> None:
    names = run("differential_equations")
    assert max(names["error"]["family"]) < 0.05
    assert max(names["error"]["family"]) < 0.7 * max(names["error"]["concatenated"])
    assert names["found_coefficient"] == pytest.approx(7.0, rel=0.1)


def test_self_tuning(run: Run) -> None:
    loss = run("self_tuning")["test_loss"]
    assert loss["tuned"] < loss["neither"]
    assert loss["tuned"] < 1.1 * loss["search"]


def test_continual(run: Run) -> None:
    at_end = run("continual")["at_end"]
    assert at_end["with the regulariser"] > at_end["a network for each"] - 0.03
    assert at_end["with the regulariser"] > at_end["without it"] + 0.03
    assert at_end["with the regulariser"] > at_end["one network"] + 0.1


def test_federated(run: Run) -> None:
    names = run("federated")
    found = {name: values[-1] for name, values in names["history"].items()}
    assert found["hypernetwork"] > found["every client alone"] + 0.02
    assert found["hypernetwork"] > found["one network"] + 0.2
    assert names["new_client"] > names["new_client_alone"] + 0.03


def test_pareto_front(run: Run) -> None:
    names = run("pareto_front")
    for family, alone in zip(names["loss_of_family"], names["loss_alone"], strict=True):
        assert family < 1.1 * alone
    front = names["front"][::6]  # the ends and the middle
    assert (front[:, 0].diff() < 0).all()
    assert (front[:, 1].diff() > 0).all()


def test_task_to_lora(run: Run) -> None:
    accuracies = run("task_to_lora")["accuracies"]
    trained, unseen = (accuracies["predicted adapters"][first::2] for first in (0, 1))
    assert mean(trained) > mean(accuracies["one adapter for all"]) - 0.02
    assert mean(unseen) > mean(accuracies["no adapter"][1::2]) + 0.15
    assert mean(unseen) > mean(accuracies["one adapter for all"][1::2])
