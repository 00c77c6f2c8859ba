"""State dicts: what their tensors are, how two of them differ, and how values go into a module."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from ..errors import FormatError, listed
from ..hypernet import HyperNet
from ..inputs import Input

__all__ = [
    "differences",
    "dtype_name",
    "empty_hypernet",
    "feed",
    "find_aliases",
    "fingerprint",
    "load_in_place",
    "own_tensors",
    "under",
]


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, without it."""
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def find_aliases(state: Mapping[str, Tensor]) -> dict[str, str]:
    """For every entry that is the very tensor of an earlier one, the name of that."""
    first: dict[object, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in state.items():
        key = (
            tensor.device,
            tensor.data_ptr(),
            tensor.dtype,
            tensor.shape,
            tensor.stride(),
            tensor.is_conj(),
            tensor.is_neg(),
        )
        if key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
    return aliases


def feed(tensor: Tensor, sink: Callable[[memoryview], object]) -> None:
    """Give the bytes of a tensor to ``sink``, in C order."""
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    if flat.nbytes:
        sink(memoryview((ctypes.c_char * flat.nbytes).from_address(flat.data_ptr())))


def fingerprint(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and bytes."""
    digest = hashlib.sha256(f"{dtype_name(tensor.dtype)} {list(tensor.shape)}\n".encode())
    feed(tensor, digest.update)
    return digest.hexdigest()


def differences(
    found: Mapping[str, Tensor], own: Mapping[str, Tensor], place: str, source: str
) -> list[str]:
    """In words, how tensors that are to be loaded differ from those that are there."""
    words = []
    missing, unexpected = [n for n in own if n not in found], [n for n in found if n not in own]
    if missing:
        words.append(f"{source} has no {listed(missing, 4)}")
    if unexpected:
        words.append(f"{place} has no {listed(unexpected, 4)}")
    both = [name for name in found if name in own]
    shapes = [
        f"{name!r} is {tuple(found[name].shape)} in {source}, {tuple(own[name].shape)} in {place}"
        for name in both
        if found[name].shape != own[name].shape
    ]
    dtypes = [
        f"{name!r} is {found[name].dtype} in {source}, {own[name].dtype} in {place}"
        for name in both
        if found[name].dtype != own[name].dtype
    ]
    for kind in (shapes, dtypes):
        if kind:
            more = f" and {len(kind) - 4} more" if len(kind) > 4 else ""
            words.append(", ".join(kind[:4]) + more)
    return words


def own_tensors(primary: nn.Module) -> dict[str, Tensor]:
    """The state of a primary that can take values in place."""
    state = primary.state_dict()
    for name, tensor in state.items():
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
            raise FormatError(
                f"{name!r} of the primary has no shape yet, since its module is lazy. Run the "
                "primary once on a batch of data before you load into it."
            )
        if isinstance(tensor, Tensor) and tensor.is_meta:
            raise FormatError(
                f"{name!r} of the primary is on the meta device and cannot take values. Give it "
                "memory first: primary.to_empty(device='cpu')."
            )
    return {name: t for name, t in state.items() if isinstance(t, Tensor)}


def load_in_place(primary: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy checked values into the primary, and take them back if one of its hooks fails."""
    before = {
        name: tensor.clone() for name, tensor in own_tensors(primary).items() if name in values
    }
    try:
        unexpected = primary.load_state_dict(dict(values), strict=False).unexpected_keys
        if unexpected:
            raise FormatError(
                f"{type(primary).__name__} saves {listed(unexpected, 4)} but does not take it back "
                "in load_state_dict."
            )
    except BaseException:
        with torch.no_grad():
            for name, tensor in own_tensors(primary).items():
                if name in before:
                    tensor.copy_(before[name])
        raise


def empty_hypernet(
    inputs: Mapping[str, Input], shapes: Mapping[str, Sequence[int]], **settings: Any
) -> HyperNet:
    """A hypernetwork on the CPU, its memory not filled yet, made without random numbers."""
    # Layers of torch draw when they are made, though nobody asks for the draws.
    with torch.random.fork_rng(devices=[]):
        return HyperNet(inputs, shapes, init=None, device="cpu", **settings)


def dtype_name(dtype: torch.dtype) -> str:
    """``"float32"`` for :data:`torch.float32`."""
    return str(dtype).removeprefix("torch.")
