"""The embeddings of categories: looked up, blended, and made for new categories."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from .errors import ConfigurationError, InputError
from .inputs import is_read


def embedded(name: str, embedding: nn.Module, value: Tensor) -> Tensor:
    """The embeddings at norm 1, of categories (integers) or of blends (weights of all of them).

    NaN for a category or a blend that does not exist, where none is refused.

    Raises:
        InputError: the embeddings of a blend cancel each other.
    """
    if value.is_floating_point():
        return _blended(name, embedding, value)
    if is_read(value):
        return F.normalize(embedding(value), dim=-1)
    # An index out of range is undefined in a graph: some count it from the end.
    assert isinstance(embedding, nn.Embedding)
    known = value.clamp(0, embedding.num_embeddings - 1)
    found = F.normalize(embedding(known), dim=-1)
    return found.masked_fill((known != value).unsqueeze(-1), math.nan)


def _blended(name: str, embedding: nn.Module, weights: Tensor) -> Tensor:
    every = torch.arange(weights.shape[-1], device=weights.device)
    total: Tensor = weights @ F.normalize(embedding(every), dim=-1)
    norm = torch.linalg.vector_norm(total, dim=-1, keepdim=True)
    # Below the rounding of the sum, its direction means nothing.
    nothing = norm.detach() <= 8.0 * torch.finfo(norm.dtype).eps
    if is_read(nothing) and bool(nothing.any()):
        raise InputError(
            f"Hypernetwork input {name!r} was a blend of embeddings that cancel each other, so it "
            "has no direction. Change its weights a little."
        )
    blended: Tensor = (total / norm).masked_fill(nothing, math.nan)
    return blended


def table_of(embedding: nn.Module, optimizer: Optimizer | None) -> nn.Parameter:
    """The embeddings, if they can be given more rows and the optimizer trains them."""
    table = getattr(embedding, "weight", None)
    if not isinstance(embedding, nn.Embedding) or not isinstance(table, nn.Parameter):
        raise ConfigurationError(
            "The embeddings are no parameter of this network: they were replaced, or it is a bound "
            "network, whose weights are predicted. Extend the model that it came from."
        )
    if optimizer is not None and not any(
        p is table for group in optimizer.param_groups for p in group["params"]
    ):
        raise ConfigurationError(
            "The optimizer does not train these embeddings: it was made for another model, before "
            "they were extended, or without them. Leave it out, and make a new optimizer."
        )
    return table


@torch.no_grad()
def grow(embedding: nn.Module, rows: Tensor) -> nn.Parameter:
    """Give an embedding more rows, in a new parameter."""
    assert isinstance(embedding, nn.Embedding)
    old = embedding.weight
    embedding.weight = nn.Parameter(torch.cat([old, rows]), requires_grad=old.requires_grad)
    embedding.num_embeddings += len(rows)
    return embedding.weight


@torch.no_grad()
def replace_in(optimizer: Optimizer, old: nn.Parameter, new: nn.Parameter) -> None:
    """Let an optimizer train a parameter with more rows in place of another, with its state.

    State that has not the shape of the parameter, such as that of Adafactor, starts anew.
    """
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    state = optimizer.state.pop(old, {})
    entries = [v for v in state.values() if isinstance(v, Tensor) and v.ndim]
    if state and all(entry.shape == old.shape for entry in entries):
        more = new.shape[0] - old.shape[0]
        optimizer.state[new] = {
            key: torch.cat([v, v.new_zeros(more, *v.shape[1:])])
            if isinstance(v, Tensor) and v.ndim
            else v
            for key, v in state.items()
        }
