"""Convolutions with many sets of weights at once, and the pooling between them.

A forward with one set of weights per sample, or a sweep, runs under :func:`torch.vmap`. Its rule
for convolutions is a grouped convolution and a separate pass for the biases. Here a layer runs as
a grouped convolution with its biases, or as a loop where that was measured to be faster. A
grouped convolution leaves the sets beside the channels in memory; pooling keeps them there, where
the rule of vmap would copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .._torch import VmapLevel, is_mapped, pytree

_DIMENSIONS: dict[Any, int] = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
# Layers without weights that see one image at a time, and the dimensions of an image.
_POOLING: dict[Any, int] = {
    **{F.max_pool1d: 1, F.max_pool2d: 2, F.max_pool3d: 3},
    **{F.avg_pool1d: 1, F.avg_pool2d: 2, F.avg_pool3d: 3},
    **{F.adaptive_avg_pool1d: 1, F.adaptive_avg_pool2d: 2, F.adaptive_avg_pool3d: 3},
    **{F.adaptive_max_pool1d: 1, F.adaptive_max_pool2d: 2, F.adaptive_max_pool3d: 3},
}

# A loop may be faster from so many entries in the input of one set, and so many per weight.
_LOOP_ENTRIES, _LOOP_RATIO = 2**15, 4


class SetConvolutions(TorchFunctionMode):
    """Within it, convolutions and pooling under :func:`torch.vmap` run as this file says."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DIMENSIONS:
            return _convolve(func, *args, **kwargs)
        if func in _POOLING:
            return _pool(func, *args, **kwargs)
        return func(*args, **kwargs)


def _pool(function: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """To a layer without weights, sets are more images, in whatever order."""
    if input.ndim != _POOLING[function] + 2 or not is_mapped(input):
        return function(input, *args, **kwargs)
    level = VmapLevel()
    with level.below():
        x, _ = level.open(input)
        inside = x.stride(0) < x.stride(1)
        if inside:
            x = x.transpose(0, 1)
        found = function(x.flatten(0, 1), *args, **kwargs)
        found = pytree.tree_map(lambda y: y.unflatten(0, x.shape[:2]), found)
    return pytree.tree_map(lambda y: level.close(y, int(inside)), found)


@dataclass(frozen=True)
class _Call:
    function: Callable[..., Tensor]
    options: tuple[Any, Any, Any]
    groups: int


def _convolve(
    function: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    call = _Call(function, (stride, padding, dilation), groups)
    if input.ndim != _DIMENSIONS[function] + 2 or not is_mapped(weight):
        return function(input, weight, bias, *call.options, groups)
    level = VmapLevel()
    with level.below():
        (x, own), (w, _) = level.open(input), level.open(weight)
        b, biased = (None, False) if bias is None else level.open(bias)
        if b is not None and not biased:
            b = b.expand(len(w), -1)
        if own and _is_covered(x, w, call):
            found, dim = _product(x, w, b), 0
        elif own and _loop_is_faster(x, w):
            found, dim = _loop(x, w, b, call), 0
        else:
            found, dim = _grouped(x, w, b, own, call), 1
    return level.close(found, dim)


def _loop_is_faster(x: Tensor, w: Tensor) -> bool:
    """The rule that was measured on a CPU.

    A grouped convolution has the images of one set far apart in memory if a set has several. A
    loop is then faster, if the input of a set is large and outweighs its weights.
    """
    if x.device.type != "cpu" or x.shape[1] == 1:
        return False
    return x[0].numel() >= max(_LOOP_ENTRIES, _LOOP_RATIO * w[0].numel())


def _is_covered(x: Tensor, w: Tensor, call: _Call) -> bool:
    """Whether the kernel covers the whole image: the layer is then a linear one."""
    _, padding, dilation = call.options
    return (
        x.shape[2:] == w.shape[2:]
        and padding in ("valid", 0, (0,) * (x.ndim - 3))
        and dilation in (1, (1,) * (x.ndim - 3))
    )


def _product(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """``(sets, N, C, ...)`` to ``(sets, N, O, 1, ...)``, as a batched matrix product."""
    # In this order the gradient of the weights has their layout.
    factors = w.flatten(2), x.flatten(2).mT
    y = torch.bmm(*factors) if b is None else torch.baddbmm(b.unsqueeze(-1), *factors)
    return y.mT.reshape(*y.mT.shape, *(1 for _ in x.shape[3:]))


def _loop(x: Tensor, w: Tensor, b: Tensor | None, call: _Call) -> Tensor:
    """``(sets, N, C, ...)`` to ``(sets, N, O, ...)``, one set after another."""
    biases = [None] * len(w) if b is None else b
    return torch.stack(
        [call.function(*one, *call.options, call.groups) for one in zip(x, w, biases, strict=True)]
    )


def _grouped(x: Tensor, w: Tensor, b: Tensor | None, own: bool, call: _Call) -> Tensor:
    """``(sets, N, C, ...)``, or ``(N, C, ...)`` for all sets, to ``(N, sets, O, ...)``."""
    sets, outputs = w.shape[:2]
    groups = call.groups
    if own:
        x = x.transpose(0, 1).flatten(1, 2)
        groups *= sets
    elif groups > 1:
        x = x.unsqueeze(1).expand(-1, sets, *x.shape[1:]).flatten(1, 2)
        groups *= sets
    biases = None if b is None else b.reshape(-1)
    y = call.function(x, w.flatten(0, 1), biases, *call.options, groups)
    return y.view(len(y), sets, outputs, *y.shape[2:])
