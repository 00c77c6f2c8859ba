"""The passes over a whole dense head in a training step, near the speed of the memory.

Each has two forms that are tested against each other. The eager form uses PyTorch's own kernels:
it writes the gradient block by block into a scratch that stays in the processor's cache, and runs
PyTorch's fused optimizer on each block. The compiled form is the formula itself, fused into one
loop by :func:`torch.compile`.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .._torch import fused_adam, fused_adamw, fused_sgd, onednn_linear
from ..errors import ConfigurationError, did_you_mean, listed

Implementation = Literal["auto", "eager", "compiled"]

# Bytes of the scratch: small enough for the cache, large enough to repay starting a kernel.
_SCRATCH = {"cpu": 2**21}
_SCRATCH_ELSEWHERE = 2**25

# Where a step from factors is faster than one from the dense gradient: see pays.
_LARGE_GRADIENT, _LARGE_ELSEWHERE = 2**25, 2**30  # bytes
_SOME_ENTRIES, _SOME_COLUMNS = 2**21, 32

# From so many entries, a compiled loop repays the seconds that compiling takes.
_WORTH_COMPILING = 2**24
# The compiled loop multiplies up to so many rows of factors; a library is faster for more.
_COMPILED_ROWS = 4
# A single outer product of rows this long is formed by mul, shorter ones by mm: each the faster.
_VECTOR = 16
# A smaller matrix is multiplied by F.linear: by so few rows, and by more.
_LARGE, _FEW, _LARGE_FOR_MANY = 2**21, 16, 2**16
# A larger one, too, by one, two or three rows that are shorter than this.
_WIDE = {1: 128, 2: 32, 3: 32}
# From so many entries, and up to so many rows, a long sum is split into so many parts.
_SPLIT_ENTRIES, _SPLIT_ROWS, _PARTS = 2**20, 64, 64

# Parameters of glibc's mallopt, as in malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3

_chosen: Implementation = "auto"
_obstacle: str | None = None


def set_implementation(implementation: Implementation) -> None:
    """Choose how the passes over a dense head are carried out, in the whole process.

    Args:
        implementation: ``"eager"``: with PyTorch's own kernels, block by block. ``"compiled"``:
            by loops that :func:`torch.compile` makes, which takes some seconds on first use.
            ``"auto"``, the default: compiled for heads of ``2**24`` weights and more, otherwise
            eager. If compiling fails, eager is used instead; :func:`status` says so.

    Raises:
        ConfigurationError: for any other name.
    """
    global _chosen, _obstacle
    names = ("auto", "eager", "compiled")
    if implementation not in names:
        raise ConfigurationError(
            f"implementation was {implementation!r}; expected one of {listed(names)}."
            f"{did_you_mean(str(implementation), names)}"
        )
    _chosen, _obstacle = implementation, None


def status() -> tuple[Implementation, str | None]:
    """The chosen implementation, and why compiling failed if it was tried and did.

    >>> hl.optim.status()
    ('auto', None)
    """
    return _chosen, _obstacle


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next step, up to 1 GiB of it.

    By default it returns large blocks to the system, and so does the end of its heap, and takes as
    many pages anew in each step: the primary's activations then take up to 1.5 times as long. Set
    in the environment, ``MALLOC_TRIM_THRESHOLD_`` and the like are left as they are.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    mallopt(_MMAP_THRESHOLD, 2**25)  # the most that glibc takes
    mallopt(_TRIM_THRESHOLD, 2**30)


def pays(weight: Tensor, rows: int) -> bool:
    """Whether a step from so many rows of factors is faster than PyTorch's from the matrix.

    On a CPU it is if the gradient takes 32 MiB or more and has two columns for each row. A block
    of that size goes back to the operating system when it is freed, and the next gradient pays for
    its pages anew. Below that it is from 2 million entries on, with at least 32 columns and four
    for each row. On a GPU the matrix is faster as long as it can be afforded, which is up to 1 GiB.

    ``python -m benchmarks pays`` measures it: the time of forward, backward and Adam from the
    factors, over that from the matrix with PyTorch's fused Adam.
    """
    size, columns = weight.numel() * weight.element_size(), weight.shape[1]
    if weight.device.type != "cpu":
        return size >= _LARGE_ELSEWHERE and 2 * rows <= columns
    if size >= _LARGE_GRADIENT:
        return 2 * rows <= columns
    return weight.numel() >= _SOME_ENTRIES and columns >= _SOME_COLUMNS and 4 * rows <= columns


def _is_compiled(weight: Tensor, rows: int) -> bool:
    usual = weight.dtype in (torch.float32, torch.float64) and weight.is_contiguous()
    if _obstacle is not None or rows > _COMPILED_ROWS or not usual:
        return False
    return _chosen == "compiled" or (_chosen == "auto" and weight.numel() >= _WORTH_COMPILING)


@functools.cache
def _compiled(formula: Callable[..., Any]) -> Callable[..., Any]:
    made: Callable[..., Any] = torch.compile(formula, dynamic=True, fullgraph=True)
    return made


def _attempt(formula: Callable[..., Any], *args: Any) -> tuple[bool, Any]:
    """Whether the compiled formula could be run, and its result."""
    global _obstacle
    try:
        return True, _compiled(formula)(*args)
    except Exception as error:  # a compiler can fail in as many ways as there are machines
        _obstacle = f"{type(error).__name__}: {error}"
        return False, None


# --- reading: the prediction, and the gradient of the features ------------------------


def _product(row: Tensor, weight: Tensor) -> Tensor:
    return (weight * row).sum(-1)


def product(features: Tensor, weight: Tensor) -> Tensor:
    """``features @ weight.T``: ``(..., K)`` and ``(P, K)`` to ``(..., P)``."""
    columns = features.shape[-1]
    rows = features.numel() // columns
    if (
        not rows
        or weight.numel() < (_LARGE if rows <= _FEW else _LARGE_FOR_MANY)
        or weight.device.type != "cpu"
        or weight.dtype != torch.float32
        or features.dtype != torch.float32
        or torch.is_autocast_enabled("cpu")
    ):
        return F.linear(features, weight)
    if rows >= 4:
        found = onednn_linear(features, weight)
        return F.linear(features, weight) if found is None else found
    if rows == 1 and _is_compiled(weight, 1):
        done, result = _attempt(_product, features.reshape(-1), weight.detach())
        if done:
            return result.reshape(*features.shape[:-1], len(weight))  # type: ignore[no-any-return]
    if columns < _WIDE[rows]:
        return F.linear(features, weight)
    # MKL multiplies a wide weight by one vector up to three times as slowly as by two.
    some = F.pad(features.reshape(rows, -1), (0, 0, 0, 1)) if rows == 1 else features
    found = torch.mm(weight, some.reshape(-1, columns).T)
    return found[:, :rows].T.reshape(*features.shape[:-1], len(weight))


def by_features(gradient: Tensor, weight: Tensor) -> Tensor:
    """``gradient @ weight``: ``(..., P)`` and ``(P, K)`` to ``(..., K)``."""
    total, columns = weight.shape
    rows = gradient.numel() // total if total else 0
    if (
        not 1 <= rows <= _SPLIT_ROWS
        or weight.numel() < _SPLIT_ENTRIES
        or total < _PARTS
        or weight.device.type != "cpu"
        or not weight.is_contiguous()
        or torch.is_autocast_enabled("cpu")
    ):
        return gradient @ weight
    # In MKL's product one thread sums over all of P; parts of P are summed by all threads.
    size = total // _PARTS
    even = size * _PARTS
    flat = gradient.reshape(rows, total)
    found = torch.bmm(
        flat[:, :even].view(rows, _PARTS, size).transpose(0, 1),
        weight[:even].view(_PARTS, size, columns),
    ).sum(0)
    if even < total:
        found.addmm_(flat[:, even:], weight[even:])
    return found.reshape(*gradient.shape[:-1], columns)


# --- writing: the update -------------------------------------------------------------


def _is_single(left: Tensor, right: Tensor) -> bool:
    """Whether the gradient is one outer product, of rows that fill the processor's registers."""
    return len(left) == 1 and right.shape[1] >= _VECTOR


def gradient(left: Tensor, right: Tensor) -> Tensor:
    """The dense gradient, ``(P, K)``, from its factors ``(M, P)`` and ``(M, K)``."""
    return left.mT * right if _is_single(left, right) else left.mT @ right


def _blocks(left: Tensor, right: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The gradient, some rows at a time, always in the same scratch."""
    total, columns = left.shape[1], right.shape[1]
    size = _SCRATCH.get(left.device.type, _SCRATCH_ELSEWHERE)
    rows = min(total, max(1, size // (columns * left.element_size())))
    scratch = left.new_empty(rows, columns)
    for start in range(0, total, rows):
        end = min(start + rows, total)
        block, part = scratch[: end - start], left[:, start:end].mT
        (torch.mul if _is_single(left, right) else torch.mm)(part, right, out=block)
        yield slice(start, end), block


def _gradient(left: Tensor, right: Tensor, maximize: bool) -> Tensor:
    gradient = (left.unsqueeze(-1) * right.unsqueeze(-2)).sum(0)
    return -gradient if maximize else gradient


def _adam(
    weight: Tensor,
    mean: Tensor,
    square: Tensor,
    largest: Tensor | None,
    left: Tensor,
    right: Tensor,
    numbers: Tensor,
    maximize: bool,
    decoupled: bool,
) -> None:
    rate, step, keep_mean, keep_square, root, eps, decay = numbers.unbind()
    gradient = _gradient(left, right, maximize)
    value = weight
    if decoupled:
        value = value * (1.0 - rate * decay)
    else:
        gradient = gradient + decay * value
    mean.copy_(gradient + keep_mean * (mean - gradient))
    square.copy_(keep_square * square + (1.0 - keep_square) * gradient * gradient)
    if largest is not None:
        largest.copy_(torch.maximum(largest, square))
    denominator = (square if largest is None else largest).sqrt() / root + eps
    weight.copy_(value - step * (mean / denominator))


def adam(
    group: Mapping[str, Any],
    weight: Tensor,
    left: Tensor,
    right: Tensor,
    state: tuple[Tensor, Tensor, Tensor | None, Tensor],
    decoupled: bool,
) -> None:
    """One step of Adam or (``decoupled``) AdamW in place.

    Args:
        group: the options, as :class:`torch.optim.Adam` keeps them in a parameter group.
        weight: ``(P, K)``.
        left: ``(M, P)``, and
        right: ``(M, K)``, the factors of its gradient.
        state: both moments, the largest second moment for AMSGrad, and the number of this step.
        decoupled: whether the weight decay is.
    """
    weight = weight.detach()  # a compiler would look at its .grad too
    mean, square, largest, step = state
    lr, eps, weight_decay = group["lr"], group["eps"], group["weight_decay"]
    beta1, beta2 = map(float, group["betas"])
    if _is_compiled(weight, len(left)):
        rate, count = float(lr), float(step)
        root = (1.0 - beta2**count) ** 0.5
        numbers = [rate, rate / (1.0 - beta1**count), beta1, beta2, root, eps, weight_decay]
        held = torch.tensor(numbers, dtype=weight.dtype, device=weight.device)
        tensors = (weight, mean, square, largest, left, right, held)
        if _attempt(_adam, *tensors, group["maximize"], decoupled)[0]:
            return
    fused = fused_adamw if decoupled else fused_adam
    count_there = step.to(weight.device)
    for rows, block in _blocks(left, right):
        fused(
            [weight[rows]],
            [block],
            [mean[rows]],
            [square[rows]],
            [] if largest is None else [largest[rows]],
            [count_there],
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=weight_decay,
            eps=eps,
            amsgrad=largest is not None,
            maximize=group["maximize"],
        )


def _sgd(
    weight: Tensor,
    buffer: Tensor | None,
    left: Tensor,
    right: Tensor,
    numbers: Tensor,
    first: bool,
    nesterov: bool,
    maximize: bool,
) -> None:
    rate, momentum, dampening, decay = numbers.unbind()
    gradient = _gradient(left, right, maximize) + decay * weight
    if buffer is not None:
        kept = gradient if first else momentum * buffer + (1.0 - dampening) * gradient
        buffer.copy_(kept)
        gradient = gradient + momentum * kept if nesterov else kept
    weight.copy_(weight - rate * gradient)


def sgd(
    group: Mapping[str, Any],
    weight: Tensor,
    left: Tensor,
    right: Tensor,
    buffer: Tensor | None,
    first: bool,
) -> None:
    """One step of SGD in place, as :func:`adam`; ``first`` fills the buffer of the momentum."""
    weight = weight.detach()  # a compiler would look at its .grad too
    names = ("lr", "momentum", "dampening", "weight_decay")
    if _is_compiled(weight, len(left)):
        numbers = [float(group[name]) for name in names]
        held = torch.tensor(numbers, dtype=weight.dtype, device=weight.device)
        flags = (first, group["nesterov"], group["maximize"])
        if _attempt(_sgd, weight, buffer, left, right, held, *flags)[0]:
            return
    options = {name: group[name] for name in (*names, "nesterov", "maximize")}
    for rows, block in _blocks(left, right):
        buffers = [] if buffer is None else [buffer[rows]]
        fused_sgd([weight[rows]], [block], buffers, is_first_step=first, **options)
