"""Convolutions with many sets of weights at once, and the pooling between them.

A forward with one set of weights per sample, or a sweep, runs under :func:`torch.vmap`, whose
rule for convolutions is a grouped convolution and a pass of its own for the biases. Here a layer
is run in one of several ways, chosen by a rule that can be overruled. A grouped convolution has
the sets beside the channels in memory; pooling leaves them there, where the rule of vmap would
copy.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from .errors import ConfigurationError, did_you_mean, listed

__all__ = ["Convolution", "Implementation", "SetConvolutions", "convolutions"]

Implementation = Literal["grouped", "loop", "vmap"]

_DIMENSIONS: dict[Any, int] = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
# Layers without weights that see one image at a time, and the dimensions of an image.
_POOLING: dict[Any, int] = {
    **{F.max_pool1d: 1, F.max_pool2d: 2, F.max_pool3d: 3},
    **{F.avg_pool1d: 1, F.avg_pool2d: 2, F.avg_pool3d: 3},
    **{F.adaptive_avg_pool1d: 1, F.adaptive_avg_pool2d: 2, F.adaptive_avg_pool3d: 3},
    **{F.adaptive_max_pool1d: 1, F.adaptive_max_pool2d: 2, F.adaptive_max_pool3d: 3},
}


@dataclass(frozen=True)
class Convolution:
    """A convolution that ran with several sets of weights.

    Attributes:
        sets: of weights.
        input: the shape of the input of one set.
        weight: the shape of the weight of one set.
        shared: whether all sets have the same input.
        implementation: the way it was run.
    """

    sets: int
    input: tuple[int, ...]
    weight: tuple[int, ...]
    shared: bool
    implementation: Implementation


@dataclass(frozen=True)
class _Settings:
    implementation: Implementation | None
    seen: list[Convolution] | None


_LIBRARY = _Settings(None, None)
_settings: contextvars.ContextVar[_Settings] = contextvars.ContextVar("settings", default=_LIBRARY)

# Entries of the input of one set from which a loop may be the fastest (measured, see _choice).
_LOOP_ENTRIES, _LOOP_SHARE = 2**15, 4


@contextlib.contextmanager
def convolutions(implementation: Implementation | None = None) -> Iterator[list[Convolution]]:
    """See, and choose, how convolutions with several sets of weights are run.

    Args:
        implementation: ``"grouped"``: all sets in one grouped convolution. ``"loop"``: one after
            the other. ``"vmap"``: by the rule of :func:`torch.vmap`. None leaves the choice to
            the library, for every layer.

    Yields:
        A list to which every such convolution in the block is added, in order.

    Raises:
        ConfigurationError: for any other name.

    >>> model = hl.hypernetize(nn.Conv1d(2, 3, 3), inputs={"g": hl.Uniform(0.0, 1.0)})
    >>> with hl.convolutions() as seen:
    ...     y = model(torch.rand(4, 2, 9), g=torch.rand(4))
    >>> seen[0].sets, seen[0].implementation
    (4, 'grouped')
    """
    if implementation is not None and implementation not in get_args(Implementation):
        names = get_args(Implementation)
        raise ConfigurationError(
            f"implementation was {implementation!r}; expected one of {listed(names)}, or None for "
            f"the library's choice.{did_you_mean(str(implementation), names)}"
        )
    seen: list[Convolution] = []
    token = _settings.set(_Settings(implementation, seen))
    try:
        yield seen
    finally:
        _settings.reset(token)


class SetConvolutions(TorchFunctionMode):
    """Within it, convolutions under :func:`torch.vmap` run in the way that is chosen here."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DIMENSIONS:
            return _convolve(func, *args, **kwargs)
        if func in _POOLING:
            return _pool(func, *args, **kwargs)
        return func(*args, **kwargs)


class _Level:
    """The innermost :func:`torch.vmap`, and what is behind the tensors that it maps.

    A :class:`torch.autograd.Function` with a rule for vmap would do the same, at ten times the
    Python time of a small layer.
    """

    def __init__(self) -> None:
        self._interpreter: Any = retrieve_current_functorch_interpreter()
        self._level = self._interpreter.level()

    def open(self, tensor: Tensor) -> tuple[Tensor, bool]:
        """The tensor with the sets in front, and whether it has sets at this level."""
        inside, dim = torch._C._functorch._unwrap_batched(tensor, self._level)
        return (inside, False) if dim is None else (inside.movedim(dim, 0), True)

    def below(self) -> contextlib.AbstractContextManager[Any]:
        """Within it, what is run is run on the opened tensors."""
        below: contextlib.AbstractContextManager[Any] = self._interpreter.lower()
        return below

    def close(self, tensor: Tensor, dim: int) -> Tensor:
        """The reverse of :meth:`open`, for sets in that dimension."""
        return torch._C._functorch._add_batch_dim(tensor, dim, self._level)


def _is_mapped(tensor: Tensor) -> bool:
    """Whether the innermost transform is a vmap that maps this tensor."""
    functorch = torch._C._functorch
    return bool(
        functorch.is_batchedtensor(tensor)
        and functorch.maybe_get_level(tensor) == functorch.maybe_current_level()
    )


def _pool(function: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """To a layer without weights sets are more images, in whatever order."""
    if input.ndim != _POOLING[function] + 2 or not _is_mapped(input):
        return function(input, *args, **kwargs)
    level = _Level()
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
    if input.ndim != _DIMENSIONS[function] + 2 or not _is_mapped(weight):
        return function(input, weight, bias, *call.options, groups)
    level, settings = _Level(), _settings.get()
    with level.below():
        (x, own), (w, _) = level.open(input), level.open(weight)
        b, biased = (None, False) if bias is None else level.open(bias)
        chosen = settings.implementation or _choice(x, w, own)
        if settings.seen is not None:
            shape = tuple(x.shape[1:] if own else x.shape)
            settings.seen.append(Convolution(len(w), shape, tuple(w.shape[1:]), not own, chosen))
        found, dim = _WAYS[chosen](x, w, b, (own, True, biased), len(w), call)
    return level.close(found, dim)


def _choice(x: Tensor, w: Tensor, own: bool) -> Implementation:
    """The way that was fastest in ``python -m benchmarks convolutions``.

    A grouped convolution has the images of one set far apart in memory where a set has several.
    On a CPU a loop is faster then, if the input of a set is large and outweighs its weights.
    """
    if not own or x.device.type != "cpu" or x.shape[1] == 1:
        return "grouped"
    entries = x[0].numel()
    large = entries >= max(_LOOP_ENTRIES, _LOOP_SHARE * w[0].numel())
    return "loop" if large else "grouped"


def _grouped(
    x: Tensor, w: Tensor, b: Tensor | None, each: tuple[bool, ...], sets: int, call: _Call
) -> tuple[Tensor, int]:
    if each[0] and _is_covered(x, w, call):
        return _product(x, w, b), 0
    if b is not None:
        b = (b if each[2] else b.expand(sets, -1)).reshape(-1)
    outputs = w.shape[1]
    groups = call.groups
    if each[0]:
        x = x.transpose(0, 1).flatten(1, 2)  # (N, sets * C, ...)
        groups *= sets
    elif groups > 1:
        x = x.unsqueeze(1).expand(-1, sets, *x.shape[1:]).flatten(1, 2)
        groups *= sets
    y = call.function(x, w.flatten(0, 1), b, *call.options, groups)
    return y.view(len(y), sets, outputs, *y.shape[2:]), 1


def _is_covered(x: Tensor, w: Tensor, call: _Call) -> bool:
    """Whether the kernel covers the whole image: then the layer is a linear one."""
    _, padding, dilation = call.options
    return (
        x.shape[2:] == w.shape[2:]
        and padding in ("valid", 0, (0,) * (x.ndim - 3))
        and dilation in (1, (1,) * (x.ndim - 3))
    )


def _product(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    # In this order the gradient of the weights is laid out as they are.
    factors = w.flatten(2), x.flatten(2).mT
    y = torch.bmm(*factors) if b is None else torch.baddbmm(b.unsqueeze(-1), *factors)
    return y.mT.reshape(*y.mT.shape, *(1 for _ in x.shape[3:]))


def _loop(
    x: Tensor, w: Tensor, b: Tensor | None, each: tuple[bool, ...], sets: int, call: _Call
) -> tuple[Tensor, int]:
    parts = [
        call.function(
            x[i] if each[0] else x,
            w[i],
            b[i] if b is not None and each[2] else b,
            *call.options,
            call.groups,
        )
        for i in range(sets)
    ]
    return torch.stack(parts), 0


def _vmap(
    x: Tensor, w: Tensor, b: Tensor | None, each: tuple[bool, ...], sets: int, call: _Call
) -> tuple[Tensor, int]:
    def run(*tensors: Any) -> Tensor:
        return call.function(*tensors, *call.options, call.groups)

    dims = tuple(0 if one else None for one in each)
    output: Tensor = torch.vmap(run, dims)(x, w, b)
    return output, 0


_WAYS: dict[str, Callable[..., tuple[Tensor, int]]] = {
    "grouped": _grouped,
    "loop": _loop,
    "vmap": _vmap,
}
