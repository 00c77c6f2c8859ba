"""The passes over a whole dense head in a training step, near the speed of the memory.

Each has two forms that are tested against each other. The eager one uses what PyTorch ships with:
the gradient is written block by block into a scratch that stays in the processor's cache, and
PyTorch's own fused optimizer runs on each block. The compiled one is the formula, which
:func:`torch.compile` makes one loop of.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .._torch import fused_adam, fused_adamw, fused_sgd, onednn_linear
from ..errors import ConfigurationError, did_you_mean, listed

__all__ = ["Implementation", "by_features", "product", "set_implementation", "status"]

Implementation = Literal["auto", "eager", "compiled"]

# Bytes of the scratch: what stays in the cache, against the cost of starting a kernel.
_SCRATCH = {"cpu": 2**21}
_SCRATCH_ELSEWHERE = 2**25

# Entries from which a loop of its own repays the seconds that compiling takes.
_WORTH_COMPILING = 2**24
# Rows of factors that are compiled into the loop; more are better multiplied by a library.
_COMPILED_ROWS = 4
# Entries from which a matrix is read with care.
_LARGE = 2**16
# Entries from which, and rows up to which, a long sum is taken in so many parts.
_SPLIT_ENTRIES, _SPLIT_ROWS, _PARTS = 2**20, 64, 64

_chosen: Implementation = "auto"
_obstacle: str | None = None


def set_implementation(implementation: Implementation) -> None:
    """Choose how the passes over a dense head are carried out, in the whole process.

    Args:
        implementation: ``"eager"``: with PyTorch's own kernels, block by block. ``"compiled"``:
            by loops that :func:`torch.compile` makes, which takes some seconds on first use.
            ``"auto"``, the default: compiled for heads of ``2**24`` weights and more, else
            eager. Where compiling fails, eager is used instead; :func:`status` says so.

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
    """The implementation that was chosen, and why compiling failed if it was tried and did.

    >>> from hyperlight import optim
    >>> optim.status()
    ('auto', None)
    """
    return _chosen, _obstacle


@functools.cache
def keep_freed_memory() -> None:
    """Have the C library keep what is freed for the next step, as a dense gradient would.

    glibc gives every large block back to the system, and takes as many pages anew in each step,
    until one of nearly 32 MiB has been freed once. The gradient that is no longer built was such
    a block: without it the activations of the primary would cost up to 1.5 times as much time.
    The block here is never touched, so that it takes no memory.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def _compile(weight: Tensor, rows: int) -> bool:
    if _obstacle is not None or rows > _COMPILED_ROWS or not weight.is_contiguous():
        return False
    if weight.dtype not in (torch.float32, torch.float64):
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
    rows = features.numel() // features.shape[-1]
    if (
        not rows
        or weight.numel() < _LARGE
        or weight.device.type != "cpu"
        or weight.dtype != torch.float32
        or features.dtype != torch.float32
        or torch.is_autocast_enabled("cpu")
    ):
        return F.linear(features, weight)
    if rows >= 4:
        found = onednn_linear(features, weight)
        return F.linear(features, weight) if found is None else found
    if rows == 1 and _compile(weight, 1):
        done, result = _attempt(_product, features.reshape(-1), weight)
        if done:
            return result.reshape(*features.shape[:-1], len(weight))  # type: ignore[no-any-return]
    # MKL's matrix-vector product takes three times as long as its product with four vectors.
    four = F.pad(features.reshape(rows, -1), (0, 0, 0, 4 - rows))
    found = torch.mm(weight, four.T)
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
    # One thread sums over all of P in MKL's product; parts of P are summed by all threads.
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


def _blocks(left: Tensor, right: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The gradient, some rows at a time, each time in the same scratch."""
    total, columns = left.shape[1], right.shape[1]
    size = _SCRATCH.get(left.device.type, _SCRATCH_ELSEWHERE)
    rows = min(total, max(1, size // (columns * left.element_size())))
    scratch = left.new_empty(rows, columns)
    for start in range(0, total, rows):
        end = min(start + rows, total)
        block, part = scratch[: end - start], left[:, start:end].mT
        if len(left) == 1:
            torch.mul(part, right, out=block)
        else:
            torch.mm(part, right, out=block)
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
    weight: Tensor,
    mean: Tensor,
    square: Tensor,
    largest: Tensor | None,
    step: Tensor,
    left: Tensor,
    right: Tensor,
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    decoupled: bool,
) -> None:
    """One step of Adam or (``decoupled``) AdamW in place; ``step`` counts it already.

    With ``largest`` it is AMSGrad.
    """
    weight = weight.detach()  # a compiler would look at its .grad too
    if _compile(weight, len(left)):
        rate, count = float(lr), float(step)
        root = (1.0 - beta2**count) ** 0.5
        numbers = [rate, rate / (1.0 - beta1**count), beta1, beta2, root, eps, weight_decay]
        held = torch.tensor(numbers, dtype=weight.dtype, device=weight.device)
        state = (weight, mean, square, largest)
        if _attempt(_adam, *state, left, right, held, maximize, decoupled)[0]:
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
            maximize=maximize,
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
    weight: Tensor,
    buffer: Tensor | None,
    left: Tensor,
    right: Tensor,
    *,
    lr: float | Tensor,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first: bool,
) -> None:
    """One step of SGD in place; ``first`` fills the buffer of the momentum."""
    weight = weight.detach()  # a compiler would look at its .grad too
    if _compile(weight, len(left)):
        numbers = [float(lr), momentum, dampening, weight_decay]
        held = torch.tensor(numbers, dtype=weight.dtype, device=weight.device)
        if _attempt(_sgd, weight, buffer, left, right, held, first, nesterov, maximize)[0]:
            return
    for rows, block in _blocks(left, right):
        fused_sgd(
            [weight[rows]],
            [block],
            [] if buffer is None else [buffer[rows]],
            weight_decay=weight_decay,
            momentum=momentum,
            lr=lr,
            dampening=dampening,
            nesterov=nesterov,
            maximize=maximize,
            is_first_step=first,
        )
