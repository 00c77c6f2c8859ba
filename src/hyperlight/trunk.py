"""The trunk: the hidden layers of a hypernetwork, ours or the user's own."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ._torch import buffers_kept
from .errors import ConfigurationError, did_you_mean, listed
from .init import gain_of, kaiming_fan_out_

Activation = str | nn.Module | Callable[[], nn.Module]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}

OwnTrunk = nn.Module | Callable[[int], nn.Module]
"""Hidden layers of the user's own, or a function that makes them for the encoded size."""


def apply(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a linear layer; one that was exchanged, such as a quantized one, takes no vectors."""
    if type(layer) is nn.Linear or x.ndim > 1:
        y: Tensor = layer(x)
        return y
    return apply(layer, x.unsqueeze(0)).squeeze(0)


class Trunk(nn.Module):
    r"""Fully connected layers, each followed by the activation (paper, eq. 1).

    .. math:: x^{(k+1)} = \phi(W^{(k)} x^{(k)} + b^{(k)})

    With ``skip``, every layer whose input and output agree in size adds its input to its output;
    the paper's proportionality (eq. 3) holds for these too.
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        activation: Activation,
        skip: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        sizes = [inputs, *hidden]
        self.skip = skip
        self.layers = nn.ModuleList(
            nn.Linear(a, b, dtype=dtype, device=device) for a, b in itertools.pairwise(sizes)
        )
        self.activations = nn.ModuleList(_activation(activation, dtype, device) for _ in hidden)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Kaiming initialisation in fan-out mode, biases at zero (paper, section 5.2)."""
        for layer, activation in zip(self.layers, self.activations, strict=True):
            assert isinstance(layer, nn.Linear)
            kaiming_fan_out_(layer.weight, gain_of(activation), generator)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        for layer, activation in zip(self.layers, self.activations, strict=True):
            y = _activated(activation, apply(layer, x))
            x = x + y if self.skip and y.shape == x.shape else y
        return x

    def extra_repr(self) -> str:
        return "skip=True" if self.skip else ""


def _activated(activation: nn.Module, x: Tensor) -> Tensor:
    """Apply the activation; a PReLU with several slopes takes dimension 1 for the features."""
    several = isinstance(activation, nn.PReLU) and activation.num_parameters > 1
    rows = x.reshape(-1, x.shape[-1]) if several else x
    y: Tensor = activation(rows)
    return y.reshape(x.shape) if several else y


def _activation(given: Activation, dtype: torch.dtype, device: torch.device) -> nn.Module:
    if isinstance(given, str):
        if given not in ACTIVATIONS:
            raise ConfigurationError(
                f"activation was {given!r}; expected one of {listed(ACTIVATIONS, most=99)}, or a "
                f"module such as torch.nn.LeakyReLU(0.2).{did_you_mean(given, ACTIVATIONS)}"
            )
        made: object = ACTIVATIONS[given]()
    else:
        try:
            made = copy.deepcopy(given) if isinstance(given, nn.Module) else given()
        except TypeError:  # a function of a tensor
            made = given
    if not isinstance(made, nn.Module):
        raise ConfigurationError(
            f"activation gave {made!r}; expected a name, a torch.nn.Module or a class of one. "
            "Instead of torch.nn.functional.elu pass torch.nn.ELU."
        )
    return made.to(device=device, dtype=dtype)


def build_trunk(
    given: OwnTrunk, encoded: int, dtype: torch.dtype, device: torch.device
) -> tuple[nn.Module, int]:
    """A trunk of the user's own, and the number of features that it gives.

    Raises:
        ConfigurationError: it is no module from ``(B, encoded)`` to ``(B, K)``.
    """
    way_out = (
        f"The encoded inputs have {encoded} entries, so expected a module from (B, {encoded}) to "
        f"(B, K); or a function that makes one for this size: trunk=lambda size: nn.Sequential("
        "nn.Linear(size, 64), nn.SiLU())."
    )
    own = isinstance(given, nn.Module)
    made = given(encoded) if callable(given) and not own else given
    if not isinstance(made, nn.Module):
        raise ConfigurationError(f"trunk gave {made!r}. {way_out}")
    kinds = {(p.dtype, p.device) for p in made.parameters()} - {(dtype, device)}
    if own and kinds and device.type != "meta":
        found_dtype, found_device = kinds.pop()
        raise ConfigurationError(
            f"trunk, {type(made).__name__}, has {found_dtype} parameters on {found_device}; the "
            f"hypernetwork has {dtype} on {device}. Convert it first: "
            f"trunk.to({str(device)!r}, {dtype})."
        )
    tried = copy.deepcopy(made) if own and device.type == "meta" else made
    tried.to(device=device, dtype=dtype)
    try:
        with torch.no_grad(), buffers_kept(tried):
            found = tried(torch.full((2, encoded), encoded**-0.5, dtype=dtype, device=device))
    except Exception as error:
        raise ConfigurationError(
            f"trunk, {type(made).__name__}, raised {type(error).__name__}: {error}. {way_out}"
        ) from error
    fits = (
        isinstance(found, Tensor) and found.ndim == 2 and len(found) == 2 and found.dtype == dtype
    )
    if not fits or not found.shape[1]:
        what = type(found).__name__
        if isinstance(found, Tensor):
            what = f"{found.dtype} of shape {tuple(found.shape)}"
        raise ConfigurationError(
            f"trunk, {type(made).__name__}, gave {what} for an input of shape (2, {encoded}) and "
            f"{dtype}. {way_out}"
        )
    return tried, found.shape[1]
