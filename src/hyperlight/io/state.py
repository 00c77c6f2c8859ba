"""State dicts: compare them, and load them in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from ..errors import FormatError, listed
from ..hypernet import HyperNet
from ..inputs import Input


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, without it."""
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def differences(
    found: Mapping[str, Tensor], own: Mapping[str, Tensor], place: str, source: str
) -> list[str]:
    """Say how the tensors found in ``source`` differ from those that ``place`` has."""
    lacks = {source: [n for n in own if n not in found], place: [n for n in found if n not in own]}
    words = [f"{where} has no {listed(names, 4)}" for where, names in lacks.items() if names]
    kinds: tuple[Callable[[Tensor], object], ...] = (lambda t: tuple(t.shape), lambda t: t.dtype)
    for kind in kinds:
        pairs = {n: (kind(found[n]), kind(own[n])) for n in found if n in own}
        odd = [
            f"{name!r} is {there} in {source}, {here} in {place}"
            for name, (there, here) in pairs.items()
            if there != here
        ]
        if odd:
            words.append(", ".join(odd[:4]) + (f" and {len(odd) - 4} more" if odd[4:] else ""))
    return words


def check_values(state: Mapping[str, Any]) -> None:
    """Refuse tensors without values: lazy ones and those on the meta device."""
    for name, tensor in state.items():
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
            raise FormatError(
                f"{name!r} has no shape yet, since its module is lazy. Run the primary once on a "
                "batch of data first."
            )
        if isinstance(tensor, Tensor) and tensor.is_meta:
            raise FormatError(
                f"{name!r} is on the meta device, which holds no values. Give it memory first: "
                "primary.to_empty(device='cpu')."
            )


def own_tensors(primary: nn.Module) -> dict[str, Tensor]:
    """The tensors in the state of a primary, once all have values."""
    state = primary.state_dict()
    check_values(state)
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def load_in_place(primary: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy checked values into the primary, and restore it if one of its hooks fails."""
    before = {n: tensor.clone() for n, tensor in own_tensors(primary).items() if n in values}
    try:
        unexpected = primary.load_state_dict(dict(values), strict=False).unexpected_keys
        if unexpected:
            raise FormatError(
                f"load_state_dict of {type(primary).__name__} does not accept "
                f"{listed(unexpected, 4)}, which its state_dict holds. Make the two agree."
            )
    except BaseException:
        own = own_tensors(primary)
        with torch.no_grad():
            for name, tensor in before.items():
                own[name].copy_(tensor)
        raise


def empty_hypernet(
    inputs: Mapping[str, Input],
    shapes: Mapping[str, Sequence[int]],
    *,
    device: str = "cpu",
    **settings: Any,
) -> HyperNet:
    """An uninitialised hypernetwork, made without drawing random numbers."""
    # The layers of torch draw weights when they are constructed.
    with torch.random.fork_rng(devices=[]), torch.device(device):
        return HyperNet(inputs, shapes, init=None, device=device, **settings)
