"""Whether a hypernetwork fits, before any of it is allocated.

A dense head has one parameter for every pair of feature and predicted entry: with 128 features it
is 128 times the part of the primary that it predicts.
"""

from __future__ import annotations

import copy
import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from .errors import MemoryLimitError
from .heads import Chunked, Dense, Head, LowRank, PerLayer

# What training holds besides the parameters, in units of the trained ones: their gradient and
# the optimizer's state.
SGD_STATE, ADAM_STATE = 1 + 1, 1 + 2


def as_text(size: int) -> str:
    """A number of bytes, in binary units.

    >>> as_text(512), as_text(1536), as_text(5 * 2**30)
    ('512 B', '1.5 KiB', '5.0 GiB')
    """
    if size < 1024:
        return f"{size} B"
    value, unit = size / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if value < 1023.95:  # not rounded up to 1024.0
            break
        value, unit = value / 1024, larger
    return f"{value:,.1f} {unit}"


def available_memory(device: torch.device) -> int | None:
    """The bytes that a device can provide at most; ``None`` if unknown.

    For the CPU this is the physical memory, or the limit of the process's control group if that is
    lower; for a CUDA device the memory that is free now or held unused by PyTorch.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "cpu":
        return min([*_physical_memory(), *_cgroup_limits()], default=None)
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
    directions: Callable[[Head], int | None],
    shapes: Mapping[str, torch.Size],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Refuse a hypernetwork whose parameters cannot fit, before any of them is allocated.

    Args:
        head: not built yet; it is built on the meta device to count its parameters.
        layers: the sizes of the trunk, from the encoded inputs to the last hidden layer.
        directions: the size of the linear projection that a head reads; ``None`` if it reads the
            last hidden layer itself.
        shapes: the shapes of the predicted tensors.
        dtype: of the parameters.
        device: of the parameters.

    Raises:
        MemoryLimitError: the parameters need more than :func:`available_memory`.

    Warns:
        UserWarning: the parameters fit, but not their training with Adam.
    """
    available = available_memory(device)
    if available is None:
        return
    size = _Size(layers, directions, shapes, dtype)
    try:
        needed = size(head)
    except Exception:  # building the real head raises the same error
        return
    if (1 + ADAM_STATE) * needed <= available:
        return

    largest = sorted(shapes.items(), key=lambda item: -item[1].numel())[:3]
    listing = ", ".join(f"{name!r} ({shape.numel():,})" for name, shape in largest)
    features = directions(head) or layers[-1]
    of = f"The parameters of the hypernetwork (head={type(head).__name__}, {features:,} features)"
    predicted = sum(shape.numel() for shape in shapes.values())
    what = (
        f"It predicts {predicted:,} entries, most of them for {listing}. "
        f"{_advice(size, available)}. "
        "hl.hypernetize(..., device='meta').summary() lists the sizes without allocating anything."
    )
    if needed > available:
        raise MemoryLimitError(
            f"{of} need {as_text(needed)}; the device {str(device)!r} has {as_text(available)}. "
            f"{what}"
        )
    warnings.warn(
        f"{of} need {as_text(needed)}, and {as_text((1 + ADAM_STATE) * needed)} to train with Adam "
        f"(parameters, gradients, two moments); the device {str(device)!r} has "
        f"{as_text(available)}. {what}",
        stacklevel=3,
    )


@dataclass(frozen=True)
class _Size:
    """The bytes of a hypernetwork's parameters, by its head."""

    layers: Sequence[int]
    directions: Callable[[Head], int | None]
    shapes: Mapping[str, torch.Size]
    dtype: torch.dtype

    def __call__(self, head: Head) -> int:
        trunk = sum(a * b + b for a, b in itertools.pairwise(self.layers))
        last, directions = self.layers[-1], self.directions(head)
        projection = (last + 1) * directions if directions else 0
        built = _built(head, directions or last, self.shapes, self.dtype)
        return self.dtype.itemsize * (trunk + projection) + _bytes(built)


def _advice(size: _Size, available: int) -> str:
    """A head that leaves room to train, or at least fits, as code to paste."""
    sizes = {code: size(head) for code, head in _CANDIDATES.items()}
    for room in (available // (1 + ADAM_STATE), available):
        for code, needed in sizes.items():
            if needed <= room:
                return (
                    f"Use head={code}, with which they need {as_text(needed)}, and "
                    f"{as_text((1 + ADAM_STATE) * needed)} to train with Adam"
                )
    return (
        f"No head fits: predict fewer parameters with targets=..., or make the hidden layers "
        f"{tuple(size.layers[1:])} smaller, the last one above all"
    )


_RANKS = (64, 32, 16, 8, 4, 2, 1)
_CANDIDATES: Mapping[str, Head] = MappingProxyType(
    {
        "hl.Dense()": Dense(),
        **{f"hl.LowRank({rank})": LowRank(rank) for rank in _RANKS},
        "hl.PerLayer(rank=8)": PerLayer(rank=8),
        **{f"hl.Chunked({size})": Chunked(size) for size in (4096, 256)},
    }
)


def parameters_of(head: Head, features: int, shapes: Mapping[str, torch.Size]) -> int:
    """The number of parameters that the head would have; nothing is allocated."""
    return sum(p.numel() for p in _built(head, features, shapes, torch.float32).parameters())


def _bytes(head: Head) -> int:
    return sum(parameter.nbytes for parameter in head.parameters())


def _built(head: Head, features: int, shapes: Mapping[str, torch.Size], dtype: torch.dtype) -> Head:
    """A copy of the head with its parameters on the meta device, which allocates nothing."""
    meta = torch.device("meta")
    built = copy.deepcopy(head)
    with meta:  # for heads that do not pass the device on
        built.build(features, shapes, dtype=dtype, device=meta)
    return built
