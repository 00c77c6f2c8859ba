"""Files by other people's code, and checkpoints of HyperLight 0.0.5 laid out by hand."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn


def rewrite(path: Path, change: Any, *, sealed: bool = True) -> None:
    """Write a file again with what ``change(tensors, about)`` makes of it."""
    with safetensors.safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["hyperlight"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    change(tensors, about)
    metadata = {"hyperlight": json.dumps(about)}
    zeros = "0" * 64
    if sealed:
        metadata |= {"checksum": "sha256", "sha256": zeros}
    safetensors.torch.save_file(tensors, path, metadata)
    if sealed:  # the checksum is that of the file with zeros in its place
        content = path.read_bytes()
        path.write_bytes(
            content.replace(zeros.encode(), hashlib.sha256(content).hexdigest().encode())
        )


class ReleasedHyperNet:
    """The HyperNet of HyperLight 0.0.5, sums written out, as far as prediction goes.

    Its state dict has the names, shapes and order of entries of the release: hidden layers
    ``backbone.block{i}_lin``, last layer ``backbone.output`` whose bias is theta0, in the order
    of ``output_shapes``; inputs joined in the order of their sorted names.
    """

    def __init__(
        self,
        input_shapes: Mapping[str, Sequence[int]],
        output_shapes: Mapping[str, Sequence[int]],
        hidden_sizes: Sequence[int],
        encoding: str | None = "cos|sin",
        nonlinearity: str = "LeakyReLU",
        out_bias: bool = True,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.output_shapes, self.encoding = dict(output_shapes), encoding
        self.activation = getattr(nn, nonlinearity)().to(dtype)
        self.names = sorted(input_shapes)
        size = sum(math.prod(shape) for shape in input_shapes.values())
        size *= 1 if encoding is None else 2
        total = sum(math.prod(shape) for shape in output_shapes.values())
        sizes = [size, *hidden_sizes]
        self.state: dict[str, Tensor] = {}
        for i, (into, out) in enumerate(itertools.pairwise(sizes)):
            self.state[f"backbone.block{i}_lin.weight"] = torch.randn(out, into, dtype=dtype)
            self.state[f"backbone.block{i}_lin.bias"] = torch.randn(out, dtype=dtype)
            for name, tensor in self.activation.state_dict().items():
                self.state[f"backbone.block{i}_act.{name}"] = tensor.clone()
        self.depth = len(hidden_sizes)
        self.state["backbone.output.weight"] = torch.randn(total, sizes[-1], dtype=dtype)
        if out_bias:
            self.state["backbone.output.bias"] = torch.randn(total, dtype=dtype)

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        x = [v for name in self.names for v in inputs[name].flatten().tolist()]
        if self.encoding == "cos|sin":
            angles = [v * math.pi / 2 for v in x]
            x = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        elif self.encoding == "z|1-z":
            x = x + [1 - v for v in x]
        values = torch.tensor(x, dtype=self.state["backbone.output.weight"].dtype)
        for i in range(self.depth):
            values = self.activation(self._layer(f"block{i}_lin", values))
        flat, found, start = self._layer("output", values), {}, 0
        for name, shape in self.output_shapes.items():
            size = math.prod(shape)
            found[name] = flat[start : start + size].reshape(tuple(shape)).detach()
            start += size
        return found

    def _layer(self, name: str, x: Tensor) -> Tensor:
        weight = self.state[f"backbone.{name}.weight"]
        y = (weight * x).sum(dim=1)
        bias = self.state.get(f"backbone.{name}.bias")
        return y if bias is None else y + bias
