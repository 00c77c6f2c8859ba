"""The run: the bound network once under :func:`torch.vmap`, over the predicted tensors.

What vmap cannot follow (control flow on values, say) runs once for each set instead: slower, with
the same result.
"""

from __future__ import annotations

import contextlib
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._torch import BatchNorm, InstanceNorm, pytree
from ..errors import InputError
from ..heads import Weight
from .convolutions import SetConvolutions


@dataclass(frozen=True)
class Shared:
    """A tensor argument that all samples share, in a forward with one set of weights per sample.

    There, every tensor among the arguments is taken to hold one entry per sample in its first
    dimension. Wrap those that do not, such as a mask: ``model(x, hl.Shared(mask), gamma=g)``.

    >>> model = hl.hypernetize(nn.Bilinear(2, 3, 4), inputs={"g": hl.Uniform(0.0, 1.0)})
    >>> model(torch.rand(5, 2), hl.Shared(torch.rand(1, 3)), g=torch.rand(5)).shape
    torch.Size([5, 4])
    """

    value: Tensor


def refuse_mixing(primary: nn.Module) -> None:
    """Refuse layers that mix the entries of a batch, each of which has weights of its own."""
    for name, module in primary.named_modules():
        if isinstance(module, InstanceNorm):
            mixes = module.training and module.track_running_stats
        elif isinstance(module, BatchNorm):
            mixes = module.training or not module.track_running_stats
        else:
            continue
        if mixes:
            where = f" {name!r}" if name else ""
            state = "in training mode" if module.training else "without running statistics"
            raise InputError(
                f"{type(module).__name__}{where} {state} takes statistics over the batch, whose "
                "entries have different weights here. Call model.eval(), keep this layer alone in "
                "eval mode, use GroupNorm or LayerNorm in its place, or pass one value for the "
                "whole batch (batch shape ())."
            )


def split_samples(args: Any, kwargs: Any, samples: int) -> tuple[list[Any], list[bool], Any]:
    """The arguments' leaves, which of them hold one entry per sample, and their structure."""
    leaves, structure = pytree.tree_flatten((args, kwargs))
    split = []
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor) and (leaf.ndim == 0 or leaf.shape[0] != samples):
            raise InputError(
                f"Tensor {index + 1} of the arguments has shape {tuple(leaf.shape)}; with "
                f"{samples} sets of weights, one per sample, expected {samples} entries in its "
                "first dimension. Wrap a tensor that all samples share: model(x, "
                "hl.Shared(mask), ...). For the same data under every set use model.sweep."
            )
        split.append(isinstance(leaf, Tensor))
        if isinstance(leaf, Shared):
            leaves[index] = leaf.value
    return leaves, split, structure


def run_each(
    bind: Callable[[Mapping[str, Weight]], Callable[..., Any]],
    weights: Mapping[str, Weight],
    leaves: list[Any],
    split: list[bool],
    structure: Any,
    *,
    loop: bool,
) -> tuple[Any, bool]:
    """Run the bound network once per set of weights and stack what it returns.

    Args:
        bind: makes a network of one set of weights.
        weights: every predicted tensor by name, with the sets in its first dimension.
        leaves: of the arguments. A tensor is split along its first dimension if ``split`` says
            so, and passed on as a batch of one; otherwise all sets share it.
        split: for every leaf.
        structure: of the arguments.
        loop: run one set after another.

    Returns:
        The outputs, and whether they came from a loop.
    """
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    given = [leaves[i] for i in tensors]
    dims = [0 if split[i] else None for i in tensors]
    per_sample = any(split)
    plain = loop or torch.compiler.is_compiling()
    returned: list[Any] = []  # the output of the last run, tensors and all else

    def run(theta: Mapping[str, Weight], given: Sequence[Tensor]) -> list[Tensor]:
        values = list(leaves)
        for i, tensor in zip(tensors, given, strict=True):
            values[i] = tensor.unsqueeze(0) if split[i] else tensor
        args, kwargs = pytree.tree_unflatten(values, structure)
        network = bind(theta)
        with contextlib.nullcontext() if plain else SetConvolutions():
            returned[:] = pytree.tree_flatten(network(*args, **kwargs))
        out = [leaf for leaf in returned[0] if isinstance(leaf, Tensor)]
        if per_sample:
            out = [t.squeeze(0) if t.ndim and t.shape[0] == 1 else t for t in out]
        return out

    def one_by_one() -> list[Tensor]:
        rows = []
        for i in range(len(pytree.tree_leaves(weights)[0])):
            theta = pytree.tree_map(operator.itemgetter(i), weights)
            pairs = zip(given, dims, strict=True)
            rows.append(run(theta, [t if dim is None else t[i] for t, dim in pairs]))
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    at_once: Any = torch.vmap(run, in_dims=(0, dims), randomness="different")
    if loop:
        out = one_by_one()
    elif plain:
        out = at_once(weights, given)
    else:
        try:
            out = at_once(weights, given)
        except RuntimeError as error:
            if _is_out_of_memory(error):
                raise
            loop = plain = True
            out = one_by_one()  # if the primary itself fails, this raises its own error
            warnings.warn(
                "The primary cannot run under torch.vmap and runs once for every set of weights "
                "instead, with the same results but slower. The reason: "
                f"{str(error).strip().splitlines()[0]}",
                stacklevel=3,
            )
    found, form = returned
    tensors_out = iter(out)
    filled = [next(tensors_out) if isinstance(leaf, Tensor) else leaf for leaf in found]
    return pytree.tree_unflatten(filled, form), loop


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the device, not vmap, was too small; the CPU's allocator has no class for it."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
