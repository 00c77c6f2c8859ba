"""Many sets of weights in one forward (design D3): one per sample, or the same data under each.

The bound network runs once under :func:`torch.vmap`, over the predicted tensors. What a
primary does that vmap cannot follow (control flow on values, say) is done one set after the
other instead: slower, with the same result.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils import _pytree as pytree

from .errors import InputError
from .heads import Factors
from .sets import SetConvolutions

__all__ = ["Shared", "refuse_mixing", "run_each", "split_samples"]

Weights = Sequence[Tensor | Factors]
Bind = Callable[[Weights], Callable[..., Any]]


@dataclass(frozen=True)
class Shared:
    """A tensor argument that all samples share, in a forward with one ``gamma`` per sample.

    There, every tensor among the arguments is taken to hold one entry per sample in its first
    dimension. Wrap those that do not, such as a mask: ``model(x, hl.Shared(mask), gamma=g)``.

    >>> model = hl.hypernetize(nn.Bilinear(2, 3, 4), inputs={"g": hl.Uniform(0.0, 1.0)})
    >>> model(torch.rand(5, 2), hl.Shared(torch.rand(1, 3)), g=torch.rand(5)).shape
    torch.Size([5, 4])
    """

    value: Tensor


def refuse_mixing(primary: nn.Module) -> None:
    """Refuse layers that mix the entries of a batch, where each has weights of its own."""
    for name, module in primary.named_modules():
        if isinstance(module, _InstanceNorm):
            mixes = module.training and module.track_running_stats
        elif isinstance(module, _BatchNorm):
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


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the device, and not vmap, is what was too small; the CPU has no class for it."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def run_each(
    bind: Bind,
    weights: Weights,
    sets: int,
    leaves: list[Any],
    split: list[bool],
    structure: Any,
    loop: bool = False,
) -> tuple[Any, bool]:
    """Run the bound network once per set of weights and stack what it returns.

    Args:
        bind: makes a network of one set of weights.
        weights: every predicted tensor, with the sets in its first dimension.
        sets: how many.
        leaves: of the arguments; tensors are split along their first dimension where
            ``split`` says so, and handed on as a batch of one, else shared.
        split: for every leaf.
        structure: of the arguments.
        loop: run one set after the other.

    Returns:
        The outputs, and whether they came from a loop.
    """
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    per_sample = any(split)
    returned: list[Any] = []

    def run(theta: Weights, given: Sequence[Tensor]) -> list[Tensor]:
        values = list(leaves)
        for i, tensor in zip(tensors, given, strict=True):
            values[i] = tensor.unsqueeze(0) if split[i] else tensor
        args, kwargs = pytree.tree_unflatten(values, structure)
        output = bind(theta)(*args, **kwargs)
        found, form = pytree.tree_flatten(output)
        returned[:] = [(found, form)]
        out = [leaf for leaf in found if isinstance(leaf, Tensor)]
        if per_sample:
            out = [t.squeeze(0) if t.ndim and t.shape[0] == 1 else t for t in out]
        return out

    def one_by_one() -> list[Tensor]:
        rows = []
        for i in range(sets):
            theta = [
                Factors(w.left[i], w.right[i], w.shape) if isinstance(w, Factors) else w[i]
                for w in weights
            ]
            rows.append(run(theta, [leaves[j][i] if split[j] else leaves[j] for j in tensors]))
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    def at_once() -> list[Tensor]:
        dims = [0 if split[i] else None for i in tensors]
        plain = [(w.left, w.right) if isinstance(w, Factors) else (w,) for w in weights]

        def mapped(theta: Sequence[Sequence[Tensor]], given: Sequence[Tensor]) -> list[Tensor]:
            parts = [
                Factors(parts[0], parts[1], w.shape) if isinstance(w, Factors) else parts[0]
                for parts, w in zip(theta, weights, strict=True)
            ]
            return run(parts, given)

        outputs: list[Tensor] = torch.vmap(mapped, in_dims=(0, dims), randomness="different")(
            plain, [leaves[i] for i in tensors]
        )
        return outputs

    if loop or torch.compiler.is_compiling():
        out = one_by_one() if loop else at_once()
    else:
        try:
            with SetConvolutions():
                out = at_once()
        except RuntimeError as error:
            if _is_out_of_memory(error):
                raise
            out = one_by_one()  # where the primary itself is at fault, this says so in its words
            loop = True
            warnings.warn(
                "The primary cannot run under torch.vmap and runs once for every set of weights "
                "instead, with the same results but slower. The reason: "
                f"{str(error).strip().splitlines()[0]}",
                stacklevel=4,
            )
    found, form = returned[0]
    tensors_out = iter(out)
    filled = [next(tensors_out) if isinstance(leaf, Tensor) else leaf for leaf in found]
    return pytree.tree_unflatten(filled, form), loop
