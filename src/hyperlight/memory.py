"""Sizes before anything is allocated: what a hypernetwork holds, and whether it fits (design D4).

A dense head has one parameter for every pair of feature and predicted entry:
with 128 features it is 128 times the part of the primary that it predicts.
"""

from __future__ import annotations

import copy
import itertools
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import nn

from .encodings import CosSin
from .errors import MemoryLimitError
from .heads import Chunked, Dense, Head, LowRank, Mixed
from .init import Init, find_init
from .inputs import Input
from .targets import Targets

if TYPE_CHECKING:
    from .hypernet import Activation, HyperNet

__all__ = ["Part", "Row", "Summary", "available_memory", "estimate", "refuse_oversize"]

# What training holds beside the parameters, in units of the trained ones: their gradient, and
# the optimizer's state.
_SGD, _ADAM = 1 + 1, 1 + 2


@dataclass(frozen=True)
class Row:
    """One predicted tensor.

    Attributes:
        name: its name.
        shape: its shape.
        predicted: its number of entries.
        head: the class of the head that predicts it.
        parameters: the head's parameters that belong to it alone; ``None`` where the head
            shares its parameters between tensors.
        bytes: the size of these.
    """

    name: str
    shape: tuple[int, ...]
    predicted: int
    head: str
    parameters: int | None
    bytes: int | None


@dataclass(frozen=True)
class Part:
    """One part of a model.

    Attributes:
        parameters: the number of its parameters, each counted once.
        bytes: their size.
        trained: the size of those that require a gradient.
    """

    parameters: int
    bytes: int
    trained: int


@dataclass(frozen=True)
class Summary:
    """What a model holds; ``print`` it for a table. Made by :func:`estimate` and ``summary()``.

    Activations are not counted: they depend on the batch.

    Attributes:
        rows: one for every predicted tensor.
        primary: the primary with all of its parameters, predicted or not (``theta0``).
        trunk: the encoding and the hidden layers of the hypernetwork.
        head: its last layer.
    """

    rows: tuple[Row, ...]
    primary: Part
    trunk: Part
    head: Part

    @property
    def predicted(self) -> int:
        """The number of entries in one set of predicted weights."""
        return sum(row.predicted for row in self.rows)

    @property
    def parameters(self) -> int:
        """The number of parameters of the model."""
        return self.primary.parameters + self.trunk.parameters + self.head.parameters

    @property
    def bytes(self) -> int:
        """The size of the parameters."""
        return self.primary.bytes + self.trunk.bytes + self.head.bytes

    @property
    def sgd_bytes(self) -> int:
        """Parameters, gradients and momentum, for ``torch.optim.SGD`` with momentum."""
        return self.bytes + _SGD * self._trained

    @property
    def adam_bytes(self) -> int:
        """Parameters, gradients and both moments, for ``torch.optim.Adam`` or ``AdamW``."""
        return self.bytes + _ADAM * self._trained

    @property
    def _trained(self) -> int:
        return self.primary.trained + self.trunk.trained + self.head.trained

    def __str__(self) -> str:
        targets = [("target", "shape", "predicted", "head", "parameters", "bytes")]
        for row in self.rows:
            shared = row.parameters is None or row.bytes is None
            targets.append(
                (
                    _shortened(row.name),
                    " x ".join(map(str, row.shape)) or "scalar",
                    f"{row.predicted:,}",
                    row.head,
                    "shared" if shared else f"{row.parameters:,}",
                    "" if row.bytes is None else as_text(row.bytes),
                )
            )
        targets.append(
            (
                "all",
                "",
                f"{self.predicted:,}",
                "",
                f"{self.head.parameters:,}",
                as_text(self.head.bytes),
            )
        )
        parts = [
            ("part", "parameters", "bytes"),
            ("primary", f"{self.primary.parameters:,}", as_text(self.primary.bytes)),
            ("trunk", f"{self.trunk.parameters:,}", as_text(self.trunk.bytes)),
            ("head", f"{self.head.parameters:,}", as_text(self.head.bytes)),
            ("all", f"{self.parameters:,}", as_text(self.bytes)),
        ]
        training = [
            ("training without activations", "bytes"),
            ("SGD with momentum", as_text(self.sgd_bytes)),
            ("Adam", as_text(self.adam_bytes)),
        ]
        return "\n\n".join(
            (
                _table(targets, left=(0, 1, 3)),
                _table(parts, left=(0,)),
                _table(training, left=(0,)),
            )
        )


def as_text(size: int) -> str:
    """A number of bytes, in binary units.

    >>> as_text(512), as_text(1536), as_text(5 * 2**30)
    ('512 B', '1.5 KiB', '5.0 GiB')
    """
    if size < 1024:
        return f"{size} B"
    value, unit = size / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if value < 1023.95:  # what is not rounded to 1024.0
            break
        value, unit = value / 1024, larger
    return f"{value:,.1f} {unit}"


def _shortened(name: str, most: int = 48) -> str:
    if len(name) <= most:
        return name
    kept = most - 3
    return f"{name[: kept // 2]}...{name[len(name) - (kept - kept // 2) :]}"


def _table(rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _part(modules: Iterable[nn.Module]) -> Part:
    held = [p for module in modules for p in module.parameters()]
    return Part(
        parameters=sum(p.numel() for p in held),
        bytes=sum(p.nbytes for p in held),
        trained=sum(p.nbytes for p in held if p.requires_grad),
    )


def summarize(hypernet: HyperNet, primary: nn.Module) -> Summary:
    """The summary of a primary and its hypernetwork, which may be on the meta device."""
    dtype, _ = hypernet._placement()
    rows = []
    for name, shape in hypernet.shapes.items():
        head = hypernet.head
        while isinstance(head, Mixed):
            head = head.head_of(name)
        own = head.parameter_count(name)
        rows.append(
            Row(
                name=name,
                shape=tuple(shape),
                predicted=shape.numel(),
                head=type(head).__name__,
                parameters=own,
                bytes=None if own is None else own * dtype.itemsize,
            )
        )
    return Summary(
        rows=tuple(rows),
        primary=_part([primary]),
        trunk=_part(part for name, part in hypernet.named_children() if name != "head"),
        head=_part([hypernet.head]),
    )


def estimate(
    primary: nn.Module,
    inputs: Mapping[str, Input],
    targets: Targets = None,
    *,
    hidden: Sequence[int] = (16, 128),
    activation: Activation = "leaky_relu",
    encoding: nn.Module | None = CosSin(),
    residual: bool = True,
    head: Head | Mapping[str, Head] = Dense(),
    init: Init = "auto",
    skip: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Summary:
    """What :func:`hypernetize` with the same arguments would hold; nothing is allocated.

    Args:
        primary: as for :func:`hypernetize`, and so are all others. It is not touched.
        inputs: the space of each input, by name.
        targets: the parameters to predict.
        hidden: the widths of the hidden layers; the head reads the last one.
        activation: of the hidden layers.
        encoding: what the inputs are mapped to.
        residual: does not change the sizes, as ``init``, ``device`` and ``generator``.
        head: the last layer, or several by glob over names.
        init: see ``residual``.
        skip: residual connections between the hidden layers.
        dtype: of the hypernetwork.
        device: see ``residual``.
        generator: see ``residual``.

    Returns:
        The sizes, by predicted tensor and by part, and what training takes.

    Raises:
        ConfigurationError: a setting cannot be built.
        TargetError: ``targets`` does not fit the primary.
        BindError: the primary holds references that cannot be followed.

    >>> net = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    >>> print(hl.estimate(net, {"scale": hl.Uniform(0.0, 0.5)}, head=hl.LowRank(4)))
    target    shape      predicted  head     parameters      bytes
    0.weight  256 x 784    200,704  LowRank     532,480    2.0 MiB
    0.bias    256              256  LowRank      32,768  128.0 KiB
    2.weight  10 x 256       2,560  LowRank     136,192  532.0 KiB
    2.bias    10                10  LowRank       1,280    5.0 KiB
    all                    203,530              702,720    2.7 MiB
    <BLANKLINE>
    part     parameters      bytes
    primary     203,530  795.0 KiB
    trunk         2,224    8.7 KiB
    head        702,720    2.7 MiB
    all         908,474    3.5 MiB
    <BLANKLINE>
    training without activations     bytes
    SGD with momentum             10.4 MiB
    Adam                          13.9 MiB
    """
    from .model import hypernetize  # which stands on this file

    if init != "auto":
        find_init(init)
    return hypernetize(
        primary,
        inputs,
        targets,
        hidden=hidden,
        activation=activation,
        encoding=encoding,
        head=head,
        init="fan_out",  # draws nothing there, and needs no look at the values of the primary
        skip=skip,
        dtype=dtype,
        device="meta",
    ).summary()


# --- what fits --------------------------------------------------------------


def available_memory(device: torch.device) -> int | None:
    """The bytes that a device can give at most; ``None`` where that is not known.

    Of the CPU the physical memory, or the limit of the control group that the process runs in
    where that is lower. Of a CUDA device what is free now, and what PyTorch holds unused.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "cpu":
        limits = [*_physical_memory(), *_cgroup_limits()]
        return min(limits, default=None)
    return None


def _physical_memory() -> Iterable[int]:
    try:
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # a system that does not tell
        return


def _cgroup_limits(root: Path = Path("/")) -> Iterable[int]:
    """The memory limits of the control groups above this process (Linux, versions 1 and 2)."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, file = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mount, file = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = Path(path.lstrip("/"))
        for above in (group, *group.parents):
            try:
                yield int((mount / above / file).read_text())
            except (OSError, ValueError):  # seen from inside a container, or "max"
                continue


def refuse_oversize(
    head: Head,
    layers: Sequence[int],
    shapes: Mapping[str, torch.Size],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Refuse a hypernetwork whose parameters cannot fit, before any of them is allocated.

    Args:
        head: not built yet; it is built on the meta device to count its parameters.
        layers: the sizes of the trunk, from the encoded inputs to the features.
        shapes: what is predicted.
        dtype: of the parameters.
        device: where they are to be.

    Raises:
        MemoryLimitError: the parameters need more than :func:`available_memory`.

    Warns:
        UserWarning: the parameters fit, but not their training with Adam.
    """
    available = available_memory(device)
    if available is None:
        return
    trunk = dtype.itemsize * sum(a * b + b for a, b in itertools.pairwise(layers))
    try:
        built = _built(head, layers[-1], shapes, dtype)
    except Exception:  # what is wrong with the head is told where it is built for good
        return
    needed = trunk + _part([built]).bytes
    if (1 + _ADAM) * needed <= available:
        return

    largest = sorted(shapes.items(), key=lambda item: -item[1].numel())[:3]
    listing = ", ".join(f"{name!r} ({shape.numel():,})" for name, shape in largest)
    of = f"The parameters of the hypernetwork (head={type(head).__name__}, {layers[-1]:,} features)"
    predicted = sum(shape.numel() for shape in shapes.values())
    what = (
        f"It predicts {predicted:,} entries, most of them for {listing}. "
        f"{_advice(layers, shapes, dtype, trunk, available)}. "
        "hl.estimate(...) lists the sizes without allocating anything."
    )
    if needed > available:
        raise MemoryLimitError(
            f"{of} need {as_text(needed)}; the device {str(device)!r} has {as_text(available)}. "
            f"{what}"
        )
    warnings.warn(
        f"{of} need {as_text(needed)}, and {as_text((1 + _ADAM) * needed)} to train with Adam "
        f"(parameters, gradients, two moments); the device {str(device)!r} has "
        f"{as_text(available)}. {what}",
        stacklevel=3,
    )


def _advice(
    layers: Sequence[int],
    shapes: Mapping[str, torch.Size],
    dtype: torch.dtype,
    trunk: int,
    available: int,
) -> str:
    """A head that leaves room to train, or at least fits, as code to paste."""
    sizes = {
        code: trunk + _part([_built(head, layers[-1], shapes, dtype)]).bytes
        for code, head in _CANDIDATES.items()
    }
    for room in (available // (1 + _ADAM), available):
        for code, size in sizes.items():
            if size <= room:
                return (
                    f"Use head={code}, with which they need {as_text(size)}, and "
                    f"{as_text((1 + _ADAM) * size)} to train with Adam"
                )
    return (
        f"No head fits: predict fewer parameters with targets=..., or make the hidden layers "
        f"{tuple(layers[1:])} smaller, the last one above all"
    )


_RANKS = (64, 32, 16, 8, 4, 2, 1)
_CANDIDATES: Mapping[str, Head] = MappingProxyType(
    {
        "hl.Dense()": Dense(),
        **{f"hl.LowRank({rank})": LowRank(rank) for rank in _RANKS},
        **{f"hl.Chunked({size})": Chunked(size) for size in (4096, 256)},
    }
)


def _built(head: Head, features: int, shapes: Mapping[str, torch.Size], dtype: torch.dtype) -> Head:
    """A copy of the head with its parameters on the meta device, which allocates nothing."""
    meta = torch.device("meta")
    built = copy.deepcopy(head)
    with meta:  # for heads that do not pass the device on
        built.build(features, shapes, dtype=dtype, device=meta)
    return built
