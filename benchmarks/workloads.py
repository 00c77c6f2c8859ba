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

__all__ = ["HEADS", "HIDDEN", "NARROW", "WORKLOADS", "Workload"]

# The widths of the hypernetwork's hidden layers (paper, section 5.2).
HIDDEN = (16, 128)
# For libraries that have no such projection: as narrow a head as trains.
NARROW = (64, 8)

# The classes of hyperlight's heads, as subjects of a workload name them.
HEADS = {
    "dense": "Dense",
    "low-rank": "LowRank",
    "chunked": "Chunked",
    "per-layer": "PerLayer",
    "channel-scale": "ChannelScale",
}

TOKENS = 64  # of a text; 0 pads

Kind = Literal["train", "each", "samples", "sweep", "bind"]


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
    """Encoder layers; six of width 384 have 10.6 million weights to predict."""

    def __init__(self, width: int = 384, layers: int = 6) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, width // 64, 4 * width, dropout=0.0, batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layers(x)
        return output


class Llama(nn.Module):
    """A Llama of six layers and width 256 from ``transformers``: 3.2 million weights in matrices.

    Args:
        masked: whether it is given a mask, of the tokens that are not 0.
        checkpoints: whether every layer runs again in backward.
        width: of the hidden states; twice that inside.
        layers: how many.
    """

    def __init__(
        self, masked: bool = False, checkpoints: bool = False, width: int = 256, layers: int = 6
    ) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        super().__init__()
        self.masked = masked
        config = LlamaConfig(
            vocab_size=TOKENS,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            attn_implementation="sdpa",
        )
        self.network = LlamaForCausalLM(config)
        if checkpoints:
            self.network.gradient_checkpointing_enable({"use_reentrant": False})

    def forward(self, ids: Tensor) -> Tensor:
        mask = (ids > 0).long() if self.masked else None
        output: Tensor = self.network(ids, attention_mask=mask, use_cache=False).logits
        return output


class ViT(nn.Module):
    """ViT-B from its configuration in ``transformers``: 86 million weights."""

    def __init__(self) -> None:
        from transformers import ViTConfig, ViTForImageClassification

        super().__init__()
        self.network = ViTForImageClassification(ViTConfig(num_labels=10))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.network(pixel_values=x).logits
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
            which every gamma has its own images. ``"samples"``: the same with one gamma per
            sample, beside one gamma per batch. ``"sweep"``: inference on the same images with
            every gamma. ``"bind"``: one call of the primary with weights already predicted.
        primary: makes the primary.
        x: shape of a batch of data, or of the data of one gamma. In a text ``(B, T)``, every other
            sample is padded from the middle.
        target: shape of the loss's target, and the number of classes; 0 for a mean squared error.
        gammas: number of gammas in a step.
        subjects: subjects that run by default (names); empty for all.
        text: whether the data are numbers of tokens.
        frozen: whether a hypernetwork leaves ``theta0`` as it is; the plain network is trained.
    """

    name: str
    title: str
    kind: Kind
    primary: Callable[[], nn.Module]
    x: tuple[int, ...]
    target: tuple[tuple[int, ...], int] = ((), 0)
    gammas: int = 1
    subjects: tuple[str, ...] = ()
    text: bool = False
    frozen: bool = False

    def data(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return data and targets, the same for every subject."""
        g = torch.Generator().manual_seed(0)
        gammas = (self.gammas,) if self.kind == "each" else ()
        shape, classes = self.target
        if self.text:
            x = torch.randint(1, TOKENS, self.x, generator=g)
            x[1::2, self.x[1] // 2 :] = 0
        else:
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


# All with fused Adam; hypnettorch's dense head does not fit beside such primaries.
SAMPLES = tuple(
    f"{family}/fused"
    for family in (
        *("ours-shared", "ours-samples", "ours-samples-all", "vmap", "patched"),
        *("hypnettorch-chunked", "hypnettorch"),
    )
)
# Every head of the library, with one gamma for the batch and with one per sample.
OF_HEADS = tuple(f"{name}-{kind}/fused" for name in HEADS for kind in ("shared", "samples"))
# What runs in W4, and the one that cannot.
EACH = tuple(
    f"{family}/{optimizer}"
    for family, optimizers in {
        "ours": ("adam", "fused", "hl-adam"),
        "ours-wide": ("fused", "hl-adam-eager", "hl-adam-compiled"),
        "functional-call": ("fused",),
        **dict.fromkeys(("hyperlight", "hypnettorch", "hyper-nn", "torchhyper"), ("adam", "fused")),
        "patched": ("fused",),
    }.items()
    for optimizer in optimizers
)


def _llama(name: str, words: str, masked: bool, checkpoints: bool) -> Workload:
    return Workload(
        name,
        f"Llama, 6 layers of width 256, 16 texts of 128 tokens, training step, {words}",
        "samples",
        lambda: Llama(masked, checkpoints),
        (16, 128),
        ((16, 128), TOKENS),
        gammas=16,
        subjects=SAMPLES,
        text=True,
    )


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
        subjects=EACH,
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
                *("ours/hl-adam", "ours-wide/adam", "ours-wide/hl-adam-compiled"),
                *("ours-wide/hl-sgd", "ours-rank4/fused", "ours-rank8/fused"),
                *("hyperlight/adam", "hypnettorch-chunked/adam"),
            ),
        ),
        _llama("W7", "no mask", False, False),
        _llama("W7-mask", "with a mask", True, False),
        _llama("W7-checkpoint", "with a mask and checkpoints", True, True),
        Workload(
            "W8",
            "ViT-B, 4 images of 224x224, training step, theta0 frozen",
            "samples",
            ViT,
            (4, 3, 224, 224),
            ((4,), 10),
            gammas=4,
            subjects=SAMPLES,
            frozen=True,
        ),
        Workload(
            "heads",
            "every head: LeNet variant, 32 images, training step",
            "samples",
            lenet,
            (32, 1, 28, 28),
            ((32,), 10),
            gammas=32,
            subjects=OF_HEADS,
        ),
        Workload(
            "heads-attention",
            "every head: transformer, 2 layers of width 128, 32 texts of 32, training step",
            "samples",
            lambda: Transformer(128, 2),
            (32, 32, 128),
            ((32, 32, 128), 0),
            gammas=32,
            subjects=OF_HEADS,
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
        Workload(
            "smoke-samples",
            "Llama, 1 layer of width 16, 3 texts of 8 tokens, training step: checks W7",
            "samples",
            lambda: Llama(width=16, layers=1),
            (3, 8),
            ((3, 8), TOKENS),
            gammas=3,
            subjects=SAMPLES,
            text=True,
        ),
    )
}
