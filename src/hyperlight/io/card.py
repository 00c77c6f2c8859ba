"""The card of a model on the Hub: what it is, what its inputs take, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch

from .._version import __version__
from ..encoded import Encoded
from ..hypernet import HyperNet
from ..inputs import Categorical, Input, Simplex
from ..model import HyperModel

_FRONT = """---
library_name: hyperlight
tags:
- hypernetwork
- pytorch
# license: apache-2.0   <- yours to choose; remove the number sign
---
"""
_SHOWN = 4  # entries of an example; a longer one stands there by its name


def card(model: HyperModel | HyperNet, path: Path, name: str) -> str:
    """The text of ``README.md``.

    Args:
        model: the model.
        path: the file that it was saved to, which says what :func:`~hyperlight.load` needs.
        name: what :func:`~hyperlight.io.hub.from_pretrained` is to be called with.
    """
    with safetensors.safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["hyperlight"])
    kind = about["primary"]
    given = ["primary"] * (kind is not None) + list(_given(about))
    lines = [_FRONT, f"# {f'{kind}: a family of networks' if kind else 'A hypernetwork'}", ""]
    lines += [*_about(model, kind), "", "| input | declared as | one value |", "|---|---|---|"]
    for each, space in model.inputs.items():
        lines.append(f"| `{each}` | `{space!r}` | {_values(space)} |".replace("\n", " "))
    lines += ["", "## Load it", "", "```python", "from hyperlight.io import hub", ""]
    if kind:
        lines.append(f"primary = ...  # a {kind}, built as it was for training")
    lines.append(f"model = hub.from_pretrained({', '.join([repr(name), *given])})")
    gamma = ", ".join(f"{each}={_example(each, space)}" for each, space in model.inputs.items())
    if kind:
        lines += [
            f"output = model(x, {gamma})  # x: what the {kind} takes",
            f"network = model.at({gamma})  # a {kind} with these weights alone",
        ]
    else:
        lines.append(f"weights = model({gamma})  # by name")
    lines += ["```", "", "The file holds weights and settings; code is not saved."]
    if len(given) > (kind is not None):
        lines.append("Where `...` stands, pass what the author made for training.")
    if about["left_out"]:
        lines.append(
            f"Give the primary the frozen weights that it was trained on: {len(about['left_out'])} "
            "of its tensors are not in the file, and only the same ones are taken."
        )
    lines.append(
        f"Saved by HyperLight {__version__}; on PyPI, version 0.0.5 of `hyperlight` is another "
        "package, which cannot read it."
    )
    return "\n".join(lines) + "\n"


def _about(model: HyperModel | HyperNet, kind: str | None) -> Iterator[str]:
    hypernet = model.hypernet if isinstance(model, HyperModel) else model
    predicted = sum(shape.numel() for shape in hypernet.shapes.values())
    if isinstance(model, HyperModel):
        own = sum(parameter.numel() for parameter in model.primary.parameters())
        yield f"One network of class `{kind}` for every value of the inputs below."
        yield f"Its {own:,} weights are its own; a hypernetwork changes {predicted:,} of them."
    else:
        yield f"It predicts {predicted:,} weights from the inputs below."


def _given(about: dict[str, Any]) -> Iterator[str]:
    """The arguments that loading needs, since they are code."""
    own = [name for name, part in about["inputs"].items() if part.get("own")]
    if own:
        yield f"inputs={{{', '.join(f'{name!r}: ...' for name in own)}}}"
    for role in ("encoding", "head", "activation"):
        if (about[role] or {}).get("own"):
            yield f"{role}=..."
    if about["trunk"] is not None:
        yield "trunk=..."


def _values(space: Input) -> str:
    """What one value is, in words."""
    if isinstance(space, Encoded):
        shape = "" if space.shape is None else f", of shape `{space.shape}`"
        return f"what its network takes{shape}"
    if isinstance(space, Simplex):
        return f"{space.size} weights that sum to 1"
    low, high = space.support
    where = f"from {low:g} to {high:g}" if space.bounded else "of any size"
    if isinstance(space, Categorical):
        where = f"from 0 to {space.n - 1}, or weights of the {space.n} categories"
    what = "integer" if space.discrete else "number"
    several = f"{what}s {where}, of shape `{space.event_shape}`"
    return several if space.event_shape else f"{'an' if space.discrete else 'a'} {what} {where}"


def _example(name: str, space: Input) -> str:
    """A value in the middle, as code."""
    if isinstance(space, Encoded) or space.numel > _SHOWN:
        return name
    middle = space.quantile(torch.full(space.event_shape, 0.5, dtype=torch.float64))
    return str(middle.tolist()) if space.event_shape else f"{middle.item():.4g}"
