"""The workloads: a primary, data, a loss, and the number of gammas in a step."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["HIDDEN", "WORKLOADS", "Workload"]

# The widths of the hypernetwork's hidden layers (paper, section 5.2).
HIDDEN = (16, 128)

Kind = Literal["train", "each", "sweep", "bind"]


def _primaries() -> ModuleType:
    """Load the lab's primaries from their file, which needs torch alone."""
    path = Path(__file__).parents[1] / "src" / "hyperlight" / "lab" / "primaries.py"
    spec = importlib.util.spec_from_file_location("benchmarks._primaries", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lenet(size: int = 28) -> nn.Module:
    return _primaries().LeNet(size)  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Six pre-activation encoder layers of width 384: 10.6 million weights to predict."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(384, 6, 1536, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layers(x)
        return output


def _classify(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, -2), target.flatten())


@dataclass(frozen=True)
class Workload:
    """One row of the comparison.

    Attributes:
        name: the value of ``--workload``.
        title: the workload in words.
        kind: ``"train"``: a training step with one gamma per batch. ``"each"``: a training step in
            which every gamma has its own images. ``"sweep"``: inference on the same images with
            every gamma. ``"bind"``: one call of the primary with weights already predicted.
        primary: makes the primary.
        x: shape of a batch of data, or of the data of one gamma.
        target: shape of the loss's target, and the number of classes; 0 for a mean squared error.
        gammas: number of gammas in a step.
        subjects: subjects that run by default (families or names); empty for all.
    """

    name: str
    title: str
    kind: Kind
    primary: Callable[[], nn.Module]
    x: tuple[int, ...]
    target: tuple[tuple[int, ...], int] = ((), 0)
    gammas: int = 1
    subjects: tuple[str, ...] = ()

    def data(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return data and targets, the same for every subject."""
        g = torch.Generator().manual_seed(0)
        gammas = (self.gammas,) if self.kind == "each" else ()
        shape, classes = self.target
        x = torch.randn(gammas + self.x, generator=g)
        if classes:
            target = torch.randint(classes, gammas + shape, generator=g)
        else:
            target = torch.randn(gammas + shape, generator=g)
        return x.to(device), target.to(device)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return _classify(output, target) if self.target[1] else F.mse_loss(output, target)

    def gamma(self, step: int) -> Tensor:
        """The gamma of a step, shape ``()``, or several gammas, shape ``(gammas,)``."""
        g = torch.Generator().manual_seed(step)
        return torch.rand((self.gammas,) if self.gammas > 1 else (), generator=g)


def _chain() -> nn.Module:
    """A hundred parameter tensors, small enough that a forward is all Python time."""
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(50)))


def _each(images: int) -> Workload:
    return Workload(
        f"W4-{images}",
        f"W1's network, training step, 32 gammas with {images} "
        f"{'image' if images == 1 else 'images'} each",
        "each",
        lenet,
        (images, 1, 28, 28),
        ((images,), 10),
        gammas=32,
    )


def _sweep(images: int) -> Workload:
    return Workload(
        f"W5-{images}",
        f"W1's network, inference, {images} {'image' if images == 1 else 'images'} with 64 gammas",
        "sweep",
        lenet,
        (images, 1, 28, 28),
        gammas=64,
    )


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "W1",
            "LeNet variant, 28x28, batch 128, training step",
            "train",
            lenet,
            (128, 1, 28, 28),
            ((128,), 10),
        ),
        Workload(
            "W2",
            "ResNet-like, 64x64, batch 16, training step",
            "train",
            lambda: _primaries().ResNetLike(),
            (16, 3, 64, 64),
            ((16,), 102),
        ),
        Workload(
            "W3",
            "U-Net, 128x128, batch 4, training step",
            "train",
            lambda: _primaries().UNet(),
            (4, 2, 128, 128),
            ((4, 2, 128, 128), 0),
        ),
        _each(1),
        _each(8),
        _sweep(1),
        _sweep(32),
        Workload(
            "W6",
            "transformer stack with 10.6M weights, batch 8 of 128 tokens, training step",
            "train",
            Transformer,
            (8, 128, 384),
            ((8, 128, 384), 0),
            subjects=(
                *("ours/adam", "ours/hl-adam-compiled", "ours/hl-sgd", "ours-rank4/fused"),
                *("ours-rank8/fused", "hyperlight/adam", "hypnettorch-chunked/adam"),
            ),
        ),
        Workload(
            "bind",
            "one forward with 100 predicted tensors, Python time",
            "bind",
            _chain,
            (1, 4),
            subjects=("ours/fused", "functional-call/fused", "hyperlight/fused", "hyper-nn/fused"),
        ),
        Workload(
            "smoke",
            "LeNet variant, 8x8, batch 4, training step: checks the installation",
            "train",
            lambda: lenet(8),
            (4, 1, 8, 8),
            ((4,), 10),
        ),
    )
}
