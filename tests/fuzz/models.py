"""Files of the library: models, folders of the Hub, and checkpoints of HyperLight 0.0.5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hyperlight as hl
from hyperlight.io import from_hyperlight, hub
from tests.fuzz import formats
from tests.fuzz.reader import Reader, untouched

__all__ = ["MODELS"]

INPUTS = {
    "scale": hl.Uniform(0.0, 1.0),
    "noise": hl.Normal(2),
    "kind": hl.Categorical(3, features=2),
}


def _network(seed: int = 2) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2))


def _model(variant: int) -> hl.HyperModel:
    with torch.random.fork_rng():
        torch.manual_seed(variant)
        head = {"0.*": hl.LowRank(2), "*": hl.Dense()}
        return hl.hypernetize(_network(variant), INPUTS, hidden=(4,), head=head)


def _gamma(hypernet: hl.HyperNet) -> dict[str, Tensor]:
    """Values of the inputs that the file names, which may have been renamed."""
    return hypernet.sample(generator=torch.Generator().manual_seed(0))


def _values(model: hl.HyperModel) -> Any:
    """All tensors and an output: what is wrong in a model may show only when it is called."""
    model.eval()
    gamma = _gamma(model.hypernet)
    return dict(model.state_dict()), model(torch.ones(2, 3), **gamma), model.predict(**gamma)


def _make_model(folder: Path, variant: int) -> None:
    hl.save(_model(variant), folder / "model.safetensors")


def _read_model(folder: Path) -> Any:
    primary = _network()
    with untouched(primary):
        model = hl.load(folder / "model.safetensors", primary)
    return _values(model)


def _make_hypernet(folder: Path, variant: int) -> None:
    hl.save(_model(variant).hypernet, folder / "hypernet.safetensors")


def _read_hypernet(folder: Path) -> Any:
    hypernet = hl.load(folder / "hypernet.safetensors")
    return dict(hypernet.state_dict()), hypernet(**_gamma(hypernet))


def _parts(seed: int) -> dict[str, Any]:
    """Code that a file does not hold: an encoder and a trunk."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        examples = torch.rand(5, 2)
        encoder = hl.Encoded(nn.Linear(2, 3), 3, examples=examples)
        return {"inputs": {"read": encoder}, "trunk": nn.Linear(3 + 4 + 4, 4)}


def _make_parts(folder: Path, variant: int) -> None:
    own = _parts(variant)
    inputs = {**own["inputs"], "vector": hl.Vector(2), "scale": hl.Uniform(0.0, 1.0, 2)}
    with torch.random.fork_rng():
        torch.manual_seed(variant)
        hypernet = hl.HyperNet(
            inputs,
            {"w": (2,)},
            encoding={"v*": hl.CosSin(), "*": None},
            trunk=own["trunk"],
            calibrate_on={"vector": torch.rand(5, 2)},
        )
    hl.save(hypernet, folder / "hypernet.safetensors")


def _read_parts(folder: Path) -> Any:
    own = _parts(2)
    modules = nn.ModuleList([own["inputs"]["read"].module, own["trunk"]])
    with untouched(modules):
        hypernet = hl.load(folder / "hypernet.safetensors", **own)
    return dict(hypernet.state_dict()), hypernet(**_gamma(hypernet))


def _make_hub(folder: Path, variant: int) -> None:
    hub.save_pretrained(_model(variant), folder, frozen=False)


def _read_hub(folder: Path) -> Any:
    primary = _network()
    with untouched(primary):
        model = hub.from_pretrained(folder, primary)
    return _values(model)


def _make_old(folder: Path, variant: int) -> None:
    """How to make the tensors of a state dict, as JSON."""
    sizes = {"block0_lin.weight": [4, 2], "block0_lin.bias": [4]}
    sizes |= {"output.weight": [9, 4], "output.bias": [9]}
    state = {
        f"backbone.{name}": {"size": size, "fill_value": variant + 0.5, "dtype": "float32"}
        for name, size in sizes.items()
    }
    (folder / "state.json").write_text(json.dumps(state))


def _read_old(folder: Path) -> Any:
    def value(about: Any) -> Any:
        try:
            size, fill = torch.Size(about["size"]), about["fill_value"]
            assert size.numel() < 1000
            return torch.full(size, fill, dtype=getattr(torch, about["dtype"]))
        except Exception:
            return about  # not a tensor

    state = json.loads((folder / "state.json").read_text())
    if isinstance(state, dict):
        state = {name: value(about) for name, about in state.items()}
    with torch.random.fork_rng():
        primary = nn.Sequential(nn.Linear(3, 2), nn.Linear(1, 1, bias=False))
    with untouched(primary):
        model = from_hyperlight(state, primary, {"h": hl.Uniform(0.0, 1.0)})
    return dict(model.state_dict()), model.predict(h=0.3)


FILES = ("*.safetensors",)

MODELS = (
    Reader("load", _make_model, _read_model, FILES, formats.SAFETENSORS, **formats.SEALED),
    Reader(
        "load-hypernet", _make_hypernet, _read_hypernet, FILES, formats.SAFETENSORS,
        **formats.SEALED,
    ),
    Reader("load-parts", _make_parts, _read_parts, FILES, formats.SAFETENSORS, **formats.SEALED),
    Reader("hub", _make_hub, _read_hub, FILES, formats.SAFETENSORS, **formats.SEALED),
    Reader(
        "from-hyperlight", _make_old, _read_old, ("state.json",), (formats.values,), named=False,
        damage=False,
    ),
)  # fmt: skip
