"""Input encodings: what the first layer of the hypernetwork reads.

An encoding is any :class:`torch.nn.Module` that maps ``(..., d)`` to ``(..., output_size(d))``.
It is given the inputs mapped to [0, 1], or as the user passed them if it says
``normalized = False``.
"""

from __future__ import annotations

import copy
import fnmatch
import math
from abc import ABCMeta, abstractmethod
from collections.abc import Mapping
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ConfigurationError, did_you_mean, listed


class Encoding(nn.Module, metaclass=ABCMeta):  # ABC as a base would fix where it must stand
    """The base class of encodings.

    Attributes:
        normalized: whether ``forward`` is given inputs in [0, 1] (the default) or the values as the
            user passed them.
        unit_norm: whether the whole encoded vector has norm 1. It keeps this norm when there are
            categories or encoded inputs, each of which then counts as one more input.
    """

    normalized: bool = True
    unit_norm: bool = False

    @abstractmethod
    def output_size(self, inputs: int) -> int:
        """The number of encoded features for ``inputs`` scalars."""

    def config(self) -> dict[str, Any] | None:
        """The arguments of the constructor as JSON holds them; None if it cannot.

        Written by :func:`~hyperlight.save` and compared by :func:`~hyperlight.load`.
        """
        return None


class CosSin(Encoding):
    r"""The constant-norm encoding of the paper (section 4, "Input Encoding").

    .. math:: E_{L2}(u) = [\cos(u \pi / 2), \sin(u \pi / 2)], \quad u \in [0, 1]

    for every input, divided by :math:`\sqrt{d}` for ``d`` inputs, so that the whole vector has
    norm 1 whatever their number. The paper's encoding of ``d`` inputs has norm :math:`\sqrt{d}`,
    and the scale of the predictions grows with it.

    Args:
        per_input: leave every pair at norm 1, as in the paper. With one input there is no
            difference.

    Shape:
        ``(..., d)`` in [0, 1] to ``(..., 2 d)``.

    >>> hl.CosSin()(torch.tensor([0.0, 1.0])).norm()
    tensor(1.0000)
    >>> hl.CosSin(per_input=True)(torch.tensor([0.0, 1.0])).norm()
    tensor(1.4142)
    """

    def __init__(self, per_input: bool = False) -> None:
        super().__init__()
        self.per_input = per_input
        self.unit_norm = not per_input

    def config(self) -> dict[str, Any]:
        return {"per_input": self.per_input}

    def output_size(self, inputs: int) -> int:
        return 2 * inputs

    def forward(self, u: Tensor) -> Tensor:
        angle = u * (math.pi / 2)
        encoded = torch.cat([angle.cos(), angle.sin()], dim=-1)
        return encoded if self.per_input else encoded * u.shape[-1] ** -0.5

    def extra_repr(self) -> str:
        return f"per_input={self.per_input}"


class Identity(Encoding):
    r"""No encoding, as in the classical formulation; ``encoding=None`` means this.

    The inputs pass as the user gives them, :math:`x^{(1)} = \gamma` (paper, eq. 1), without
    normalisation. As many zeros follow, so that the first layer has the size that
    :class:`CosSin` gives it. The two formulations then hold the same number of parameters, draw
    the same random numbers and cost the same. The zeros multiply weights that get no gradient,
    so the function and its training are exactly those without them.

    Shape:
        ``(..., d)`` to ``(..., 2 d)``.

    >>> hl.Identity()(torch.tensor([0.3]))
    tensor([0.3000, 0.0000])
    """

    normalized = False

    def config(self) -> dict[str, Any]:
        return {}

    def output_size(self, inputs: int) -> int:
        return 2 * inputs

    def forward(self, gamma: Tensor) -> Tensor:
        return torch.cat([gamma, torch.zeros_like(gamma)], dim=-1)


class Encodings(nn.Module):
    """Several encodings by glob over the inputs, joined; the first match counts.

    Made if ``encoding`` is a mapping: ``encoding={"level": hl.CosSin(), "*": None}``. Inputs of
    one pattern are encoded together. If every encoding has norm 1, so have all together: each is
    weighted by its share of the scalars.

    Args:
        encodings: encodings by glob over input names; ``None`` leaves the inputs as they are.
        sizes: the number of scalars of every input that is encoded, in order.
    """

    def __init__(self, encodings: Mapping[str, nn.Module | None], sizes: Mapping[str, int]) -> None:
        super().__init__()
        expected = "expected globs over inputs and encodings, as in {'level': hl.CosSin()}."
        for pattern, encoding in encodings.items():
            if not isinstance(pattern, str) or not isinstance(encoding, (nn.Module, NoneType)):
                raise ConfigurationError(f"encoding held {pattern!r}: {encoding!r}; {expected}")
        if not encodings:
            raise ConfigurationError(f"encoding was an empty mapping; {expected}")
        self.patterns = tuple(encodings)
        self.parts = nn.ModuleList(find_encoding(each, {}) for each in encodings.values())
        self.sizes = tuple(sizes.values())
        self.groups = tuple(self._match(name) for name in sizes)
        for group, pattern in enumerate(self.patterns):
            if group not in self.groups:
                raise ConfigurationError(
                    f"The pattern {pattern!r} of encoding={{...}} gets none of the inputs "
                    f"{listed(sizes)}: it matches none, or those before it took them all. "
                    "Categories and hl.Encoded inputs have no encoding."
                    f"{did_you_mean(pattern, sizes)}"
                )
        self.unit_norm = all(getattr(part, "unit_norm", False) for part in self.parts)

    def _match(self, name: str) -> int:
        for group, pattern in enumerate(self.patterns):
            if fnmatch.fnmatchcase(name, pattern):
                return group
        raise ConfigurationError(
            f"No pattern of encoding={{...}} matches the input {name!r}; the patterns are "
            f"{listed(self.patterns)}. Add '*' for all that is left."
        )

    def forward(self, u: Tensor) -> Tensor:
        columns = torch.split(u, list(self.sizes), dim=-1)
        encoded = []
        for group, part in enumerate(self.parts):
            own = torch.cat(
                [c for c, g in zip(columns, self.groups, strict=True) if g == group], -1
            )
            weight = (own.shape[-1] / u.shape[-1]) ** 0.5 if self.unit_norm else 1.0
            encoded.append(part(own) * weight)
        return torch.cat(encoded, dim=-1)

    def extra_repr(self) -> str:
        return f"patterns={list(self.patterns)}"


Encode = nn.Module | Mapping[str, nn.Module | None] | None
"""An encoding, none (the classical formulation), or several by glob over the inputs."""


def find_encoding(encoding: Encode, sizes: Mapping[str, int]) -> nn.Module:
    """A copy of the given encoding, or of several as one, for inputs of so many scalars."""
    if isinstance(encoding, Mapping):
        return Encodings(encoding, sizes)
    if encoding is not None and not isinstance(encoding, nn.Module):
        raise ConfigurationError(
            f"encoding was {encoding!r}; expected a module such as CosSin(), None for the "
            "classical formulation, or a mapping of globs over inputs to these."
        )
    return Identity() if encoding is None else copy.deepcopy(encoding)


def is_normalized(encoding: nn.Module, index: int) -> bool:
    """Whether an encoding is given its input of that index in [0, 1], and not as it is."""
    if isinstance(encoding, Encodings):
        encoding = encoding.parts[encoding.groups[index]]
    return bool(getattr(encoding, "normalized", True))
