"""What type checkers know of a model. `make types` checks this file with mypy and Pyright.

It runs as a test, too.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any, assert_type

import pytest
import torch
from torch import Tensor, nn

import hyperlight as hl
from hyperlight.io import hub


class Net(nn.Module):
    """With a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.linear(x)
        return output

    def twice(self, x: Tensor) -> Tensor:
        """Run twice as strong."""
        return self.forward(x) * 2.0


def _model() -> hl.HyperModel[Net]:
    return hl.hypernetize(Net(), {"g": hl.Uniform(0.0, 1.0)})


def _primary(model: hl.HyperModel) -> object:
    """Take every model, as all functions of the library do."""
    assert_type(model, hl.HyperModel[Any])
    return model.primary


def test_the_class_of_the_primary_is_known(tmp_path: Path) -> None:
    model, x = _model(), torch.randn(4, 3)
    assert_type(hl.hypernetize(Net(), {"g": hl.Uniform(0.0, 1.0)}), hl.HyperModel[Net])
    assert_type(model.primary, Net)
    assert_type(model.at(g=0.3), Net)
    assert_type(model.bind(g=0.3), Net)
    assert_type(model.truncate(2), hl.HyperModel[Net])
    assert_type(hl.HyperModel(Net(), model.hypernet), hl.HyperModel[Net])
    hl.save(model, tmp_path / "m")
    hub.save_pretrained(model, tmp_path / "folder")
    assert_type(hub.from_pretrained(tmp_path / "folder", Net()), hl.HyperModel[Net])
    again = hl.load(tmp_path / "m", Net())
    assert_type(again, hl.HyperModel[Net])
    assert torch.equal(again.at(g=0.3).twice(x), model.bind(g=0.3).twice(x))
    for network in (model.primary, model.at(g=0.3), model.bind(g=0.3), model.bind(g=torch.rand(4))):
        assert isinstance(network, Net)
        assert_type(network.twice(x), Tensor)
    with pytest.raises(TypeError):
        model.at(g=0.3).twice("x")  # type: ignore[arg-type]


def test_every_model_goes_where_a_model_is_taken() -> None:
    model = _model()
    assert _primary(model) is model.primary
    models: list[hl.HyperModel[nn.Module]] = [model, hl.hypernetize(nn.Linear(2, 1), model.inputs)]
    assert all(isinstance(each, hl.HyperModel) for each in models)


def test_nothing_of_the_types_is_left_at_run_time() -> None:
    model, x = _model(), torch.randn(4, 3)
    expected = model(x, g=0.3)
    assert repr(model).startswith("HyperModel(\n  (primary): Net(")
    assert type(model) is hl.HyperModel
    spelled = hl.HyperModel[Net](model.primary, model.hypernet)
    assert type(spelled) is hl.HyperModel
    for other in (spelled, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is hl.HyperModel
        assert torch.equal(other(x, g=0.3), expected)
        assert list(other.state_dict()) == list(model.state_dict())
    again = copy.deepcopy(spelled)
    assert torch.equal(again(x, g=0.3), expected)
    compiled = torch.compile(spelled, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, g=torch.tensor(0.3)), expected)
