"""Calls that newcomers make: the error says what was given, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hyperlight as hl

NET = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
SPACES = {"lam": hl.Uniform(0.0, 1.0), "task": hl.Categorical(3)}
X = torch.ones(5, 4)
TAKEN: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("parameter_groups", lambda model: hl.parameter_groups(model, lr=1e-3)),
    ("scale_profile", lambda model: hl.scale_profile(model)),
    ("gradient_profile", lambda model: hl.gradient_profile(model, lambda net, x: net(x), [X])),
    ("direction_profile", lambda model: hl.direction_profile(model)),
    ("tune", lambda model: hl.tune(model, lambda net: net(X).mean())),
    ("explore", lambda model: hl.explore(model, X)),
)


@pytest.fixture
def model() -> hl.HyperModel[nn.Sequential]:
    return hl.hypernetize(NET, SPACES)


@pytest.mark.parametrize("call", [call for _, call in TAKEN], ids=[name for name, _ in TAKEN])
def test_what_is_no_model(call: Callable[[Any], Any], model: hl.HyperModel[nn.Sequential]) -> None:
    for other, kind in ((NET, "Sequential"), (model.parameters(), "generator")):
        with pytest.raises(
            hl.ConfigurationError,
            match=rf"model was of type {kind}; expected a HyperModel, as made by hypernetize. If "
            r"it wraps one \(DistributedDataParallel\), pass the model inside.",
        ):
            call(other)


def test_a_compiled_model_stands_for_its_model(model: hl.HyperModel[nn.Sequential]) -> None:
    compiled = torch.compile(model, backend="eager")
    assert hl.scale_profile(compiled, "lam").verdict == hl.scale_profile(model, "lam").verdict  # type: ignore[arg-type]


def test_the_objective_of_tune(model: hl.HyperModel[nn.Sequential]) -> None:
    loss: Any = model(X, lam=0.5, task=1).mean()
    with pytest.raises(
        hl.ConfigurationError,
        match=r"objective was of type Tensor; expected a function of the network, such as lambda "
        r"net: loss\(net\(x\), y\).",
    ):
        hl.tune(model, loss)


@pytest.mark.parametrize("lr", ["1e-3", None, 0.0])
def test_a_rate_that_is_none(lr: Any, model: hl.HyperModel[nn.Sequential]) -> None:
    for call in (hl.parameter_groups, lambda m, lr: hl.tune(m, lambda net: net(X).mean(), lr=lr)):
        with pytest.raises(hl.ConfigurationError, match=rf"lr was {lr!r}; expected a positive"):
            call(model, lr=lr)


def test_a_dict_of_inputs_by_position(model: hl.HyperModel[nn.Sequential]) -> None:
    with pytest.raises(
        hl.InputError,
        match=r"Hypernetwork input 'lam' is missing. A dict with it was given by position: write "
        r"model\(x, \*\*gamma\). Pass it by keyword",
    ):
        model(X, model.sample())


def test_one_value_with_a_dimension(model: hl.HyperModel[nn.Sequential]) -> None:
    with pytest.raises(
        hl.InputError,
        match=r"Argument 'input' has shape \(5, 4\); with 1 set of weights, one per sample, "
        r"expected 1 entry in its first dimension. For one value for all samples give the input "
        r"without that dimension, as in value\[0\].",
    ):
        model(X, lam=torch.rand(1), task=0)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (NET[0], r"targets held a Linear itself, which has the glob 0.\*; expected a glob"),
        (nn.ReLU(), "targets held a ReLU itself; expected a glob"),
        (NET[2].weight, "targets held a Parameter itself, which has the name '2.weight'; expected"),
        ([NET[0].bias], "targets held a Parameter itself, which has the name '0.bias'; expected"),
        (0, "targets held 0; expected a glob"),
        ("0", r"targets='0' matches no parameter .* Did you mean '0.\*'\?"),
        ("Linear", "For modules of a class, pass the class Linear itself, without quotes."),
    ],
)
def test_targets(targets: Any, message: str) -> None:
    with pytest.raises(hl.TargetError, match=message):
        hl.hypernetize(NET, SPACES, targets=targets)


def test_the_primary() -> None:
    kind: Any = nn.Linear
    with pytest.raises(
        hl.TargetError,
        match=r"The primary was the class Linear; expected a torch.nn.Module. Make one: Linear",
    ):
        hl.hypernetize(kind, SPACES)
    spaces: Any = SPACES
    with pytest.raises(
        hl.TargetError,
        match=r"The primary was 'dict'; expected .* which comes first: hypernetize\(primary, inp",
    ):
        hl.hypernetize(spaces, NET)  # type: ignore[arg-type]


def test_examples_without_the_name_of_their_input() -> None:
    batch: Any = torch.rand(8, 3)
    with pytest.raises(
        hl.ConfigurationError,
        match=r"calibrate_on was of type Tensor; expected a batch for each input by name: "
        r"calibrate_on=\{'image': batch\}.",
    ):
        hl.hypernetize(NET, {"z": hl.Vector(3)}, calibrate_on=batch)


def test_paths_that_changed_places(model: hl.HyperModel[nn.Sequential], tmp_path: Path) -> None:
    net: Any = NET
    file: Any = tmp_path / "model.safetensors"
    for call in (lambda: hl.load(net, file), lambda: hl.save(model, net)):
        with pytest.raises(hl.FormatError, match="path was of type Sequential; expected a path"):
            call()
    assert not list(tmp_path.iterdir())


def test_a_state_dict_of_torch(tmp_path: Path) -> None:
    torch.save(NET.state_dict(), tmp_path / "net.pt")
    with pytest.raises(
        hl.FormatError,
        match=r"If it holds a state dict, model.load_state_dict\(torch.load\(path, "
        r"weights_only=True\)\) reads it, and hl.save\(model, path\) writes the model\.$",
    ):
        hl.load(tmp_path / "net.pt", NET)


def test_a_page_in_a_folder_that_is_not_there(
    model: hl.HyperModel[nn.Sequential], tmp_path: Path
) -> None:
    page = hl.explore(model, X, task=0, lam=3)
    with pytest.raises(hl.FormatError, match="The folder .* does not exist. Make it first"):
        page.save(tmp_path / "none" / "knob.html")
    with pytest.raises(hl.FormatError, match=r"is a folder; expected a file, such as .*knob.html"):
        page.save(tmp_path)


def test_explore_varies_what_is_not_given(model: hl.HyperModel[nn.Sequential]) -> None:
    held = hl.explore(model, X, task=1).html
    assert held.count("<input") == 1
    assert 'max="31"' in held
    mixed = hl.hypernetize(NET, {**SPACES, "mix": hl.Simplex(2)})
    with pytest.raises(hl.InputError, match=r"Pass some, such as mix=model.sample\(16\)\['mix'\]"):
        hl.explore(mixed, X)
    with pytest.raises(hl.InputError, match="Hold the others at a value, as in mix=..."):
        hl.explore(mixed, X, mix=mixed.sample(16)["mix"])
    page = hl.explore(mixed, X, mix=mixed.sample(4)["mix"], lam=0.5)
    assert page.html.count("<input") == 2


def test_tuned_vectors_are_printed() -> None:
    model = hl.hypernetize(NET, {"mix": hl.Simplex(2)})
    found = hl.tune(model, lambda net: net(X).mean(), steps=1, restarts=1)
    first, second = found.inputs["mix"].tolist()
    assert str(found).startswith(f"mix=({first:.4g}, {second:.4g}): loss")
