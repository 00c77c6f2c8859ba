"""Every sample by itself: the network under :func:`torch.vmap`, or once for each set of weights.

For networks that cannot run on the true batch. What vmap cannot follow either (control flow on
values, say) runs in a loop: slower, with the same result.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode

from .._torch import BatchNorm, InstanceNorm, is_out_of_memory, pytree
from ..errors import InputError
from ..heads import Weight
from .arguments import Arguments, tensors_inside
from .track import Axis


class LayerByLayer(TorchFunctionMode):
    """Within it, attention and encoder layers do not take PyTorch's fast path for inference,
    which knows neither vmap nor gradients of predicted weights.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def refuse_mixing(primary: nn.Module, remedy: str, path: str = "") -> None:
    """Refuse layers that mix the entries of a batch, each of which has weights of its own."""
    for name, module in primary.named_modules(prefix=path):
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
                f"entries have different weights here. Call model.eval(), keep this layer alone in "
                f"eval mode, use GroupNorm or LayerNorm in its place, {remedy}or pass one value "
                "for the whole batch (batch shape ()), as model.sample() draws it."
            )


def run_each(
    bind: Callable[[Mapping[str, Weight]], Callable[..., Any]],
    weights: Mapping[str, Weight],
    given: Arguments,
    *,
    loop: bool,
) -> tuple[Any, str, str]:
    """Run the bound network once per set of weights and stack what it returns.

    Args:
        bind: makes a network of one set of weights.
        weights: every predicted tensor by name, with the sets in its first dimension.
        given: the arguments. A tensor is split along the dimension that holds the samples, and
            passed on as a batch of one; all sets share the others.
        loop: run one set after another.

    Returns:
        The outputs, ``"vmap"`` or ``"loop"``, and why it is a loop.
    """
    tensors = [i for i, leaf in enumerate(given.leaves) if isinstance(leaf, Tensor)]
    facts = [given.facts[i] for i in tensors]
    dims = [fact.dim if isinstance(fact, Axis) else None for fact in facts]
    rows = [given.leaves[i] for i in tensors]
    per_sample = any(dim is not None for dim in dims)
    returned: list[Any] = []  # rebuilds the output of the last run from its tensors

    def run(theta: Mapping[str, Weight], rows: Sequence[Tensor]) -> list[Tensor]:
        values = list(given.leaves)
        for i, tensor, dim in zip(tensors, rows, dims, strict=True):
            values[i] = tensor if dim is None else tensor.unsqueeze(dim)
        with contextlib.nullcontext() if torch.compiler.is_compiling() else LayerByLayer():
            output = given.call(bind(theta), values)
        out, rebuild = taken_apart(output)
        returned[:] = [rebuild]
        if per_sample:
            out = [t.squeeze(0) if t.ndim and t.shape[0] == 1 else t for t in out]
        return out

    def one_by_one() -> list[Tensor]:
        found = []
        for b in range(len(pytree.tree_leaves(weights)[0])):
            theta = pytree.tree_map(lambda t, b=b: t[b], weights)
            pairs = zip(rows, dims, strict=True)
            found.append(run(theta, [t if dim is None else t.select(dim, b) for t, dim in pairs]))
        return [torch.stack(column) for column in zip(*found, strict=True)]

    reason = ""
    if loop:
        out = one_by_one()
    else:
        at_once: Any = torch.vmap(run, in_dims=(0, dims), randomness="different")
        try:
            out = at_once(weights, rows)
        except RuntimeError as error:
            if torch.compiler.is_compiling() or is_out_of_memory(error):
                raise
            loop, reason = True, str(error).strip().splitlines()[0]
            out = one_by_one()  # if the primary itself fails, this raises its own error
    return returned[0](iter(out)), "loop" if loop else "vmap", reason


def taken_apart(output: Any) -> tuple[list[Tensor], Callable[[Iterator[Tensor]], Any]]:
    """The tensors of an output, and what puts others in their place.

    Objects are copied, with other tensors for their own: a cache of keys and values, a dataclass.

    Raises:
        InputError: there are tensors in an object that knows the shapes of its tensors.
    """
    leaves, structure = pytree.tree_flatten(output)
    tensors: list[Tensor] = []
    parts: list[Any] = []  # of every leaf: what rebuilds it
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            tensors.append(leaf)
            parts.append(next)
        elif torch.compiler.is_compiling() or not tensors_inside(leaf):
            parts.append(lambda _, leaf=leaf: leaf)
        elif isinstance(leaf, Distribution) or not hasattr(leaf, "__dict__"):
            raise InputError(
                f"The primary returned an object of class {type(leaf).__name__} with tensors in "
                "it; every sample ran by itself, and their objects cannot be put together. Return "
                "the tensors, in a tuple, a dict or a dataclass."
            )
        else:
            found, rebuild = taken_apart(dict(vars(leaf)))
            tensors += found
            parts.append(functools.partial(_rebuilt, leaf, rebuild))
    return tensors, lambda given: pytree.tree_unflatten([part(given) for part in parts], structure)


def _rebuilt(leaf: Any, rebuild: Callable[..., Any], given: Iterator[Tensor]) -> Any:
    made = copy.copy(leaf)
    for name, value in rebuild(given).items():
        object.__setattr__(made, name, value)
    return made
