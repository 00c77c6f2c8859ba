"""Convolutions with many sets of weights at once.

A forward with one set of weights per sample, or a sweep, runs under :func:`torch.vmap`, whose
rule for convolutions is a grouped convolution and a pass of its own for the biases. Here a layer
is run in one of several ways, chosen by a rule that can be overruled.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .errors import ConfigurationError, did_you_mean, listed

__all__ = ["Convolution", "Implementation", "SetConvolutions", "convolutions"]

Implementation = Literal["grouped", "loop", "vmap"]

_DIMENSIONS: dict[Any, int] = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}


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
        return func(*args, **kwargs)


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
    options = (stride, padding, dilation)
    batched = torch._C._functorch.is_batchedtensor
    if not batched(weight) or input.ndim != _DIMENSIONS[function] + 2:
        return function(input, weight, bias, *options, groups)
    call = _Call(function, options, groups, _settings.get())
    output: Tensor = _Convolve.apply(input, weight, bias, call)  # type: ignore[no-untyped-call]
    return output


@dataclass(frozen=True)
class _Call:
    function: Callable[..., Tensor]
    options: tuple[Any, Any, Any]
    groups: int
    settings: _Settings


class _Convolve(torch.autograd.Function):
    """Known to autograd by what its rule for vmap runs."""

    generate_vmap_rule = False

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None, call: _Call) -> Tensor:
        return call.function(input, weight, bias, *call.options, call.groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        call: _Call,
    ) -> tuple[Tensor, int]:
        sets = info.batch_size
        each = tuple(dim is not None for dim in in_dims[:3])
        x = input if in_dims[0] is None else input.movedim(in_dims[0], 0)
        w = weight if in_dims[1] is None else weight.movedim(in_dims[1], 0)
        b = bias if bias is None or in_dims[2] is None else bias.movedim(in_dims[2], 0)
        chosen = call.settings.implementation or _choice(x, w, each[0])
        if not each[1]:  # this level of vmap has one weight
            chosen = "vmap"
        if call.settings.seen is not None and each[1]:
            own = x.shape[1:] if each[0] else x.shape
            call.settings.seen.append(
                Convolution(sets, tuple(own), tuple(w.shape[1:]), not each[0], chosen)
            )
        return _WAYS[chosen](x, w, b, each, sets, call)


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
