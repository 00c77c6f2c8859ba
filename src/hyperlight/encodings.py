"""Input encodings: what the first layer of the hypernetwork reads.

An encoding is any :class:`torch.nn.Module` that maps ``(..., d)`` to ``(..., output_size(d))``.
It is given the inputs mapped to [0, 1], or as the user passed them if it says
``normalized = False``.
"""

from __future__ import annotations

import math
from abc import ABCMeta, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class Encoding(nn.Module, metaclass=ABCMeta):  # ABC as a base would fix where it must stand
    """The base class of encodings.

    Attributes:
        normalized: whether :meth:`forward` is given inputs in [0, 1] (the
            default) or the values as the user passed them.
        unit_norm: whether the whole encoded vector has norm 1. It keeps this norm when there are
            categories among the inputs, each of which then counts as one more input.
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
