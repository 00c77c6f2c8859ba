"""The README's quickstart runs as it stands there, and does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import hyperlight as hl

README = Path(__file__).parents[1] / "README.md"


def test_the_quickstart_is_short_runs_and_learns() -> None:
    code = re.search(r"```python\n(import torch\n.*?)```", README.read_text(), re.DOTALL)
    assert code
    assert len([line for line in code[1].splitlines() if line.strip()]) <= 15
    names: dict[str, object] = {}
    exec(code[1], names)
    model = names["model"]
    assert isinstance(model, hl.HyperModel)
    # one point and one gamma; the error of the whole family is below
    assert float(names["y"].detach()) == pytest.approx(1.0, abs=0.35)
    x = torch.linspace(-1, 1, 101)[:, None]
    errors = [
        (model(x, freq=f) - torch.sin(torch.pi * f * x)).square().mean().item()
        for f in (0.6, 1.0, 1.4, 1.8)
    ]
    assert max(errors) < 0.15


def test_all_that_is_shown_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    imports = "\n".join(line for line in first.splitlines() if "import" in line)
    net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
    names: dict[str, object] = {"net": net, "x": torch.randn(5, 32), "y": torch.randn(5, 1)}
    exec(imports + "\n" + second, names)
    model = names["model"]
    assert isinstance(model, hl.HyperModel)
    again = hl.load("model.safetensors", net)
    value = model(names["x"], scale=0.3, task=2)
    assert torch.equal(again(names["x"], scale=0.3, task=2), value)


def test_files_that_the_readme_points_to_exist() -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text()):
        assert (README.parent / link).exists(), link


def test_the_loop_runs_as_the_page_about_the_lab_says() -> None:
    page = README.parent / "docs" / "lab.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["run"].points[-1].figures["accuracy"] > 50.0  # type: ignore[attr-defined]
