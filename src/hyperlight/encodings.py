"""Input encodings: what the first layer of the hypernetwork sees.

An encoding is any :class:`torch.nn.Module` that maps ``(..., d)`` to
``(..., output_size(d))``. One that says ``normalized = False`` is given the
inputs as they are; any other is given them mapped to [0, 1].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["CosSin", "Encoding", "Identity"]


class Encoding(nn.Module, ABC):
    """The base class of encodings.

    Attributes:
        normalized: whether :meth:`forward` is given inputs in [0, 1] (the
            default) or the values as the user passed them.
        unit_norm: whether the whole encoded vector has norm 1. With categories among
            the inputs it keeps it: every category then counts as one input more.
    """

    normalized: bool = True
    unit_norm: bool = False

    @abstractmethod
    def output_size(self, inputs: int) -> int:
        """The number of encoded features for ``inputs`` scalars."""

    def config(self) -> dict[str, Any] | None:
        """The arguments of the constructor, as JSON holds them; None where it cannot.

        Kept by :func:`~hyperlight.save` and compared by :func:`~hyperlight.load`.
        """
        return None


class CosSin(Encoding):
    r"""The constant-norm encoding of the paper (section 4, "Input Encoding").

    .. math:: E_{L2}(u) = [\cos(u \pi / 2), \sin(u \pi / 2)], \quad u \in [0, 1]

    of every input, and divided by :math:`\sqrt{d}` for ``d`` inputs, so that
    the whole vector has norm 1 whatever their number (design D5: the paper's
    encoding of ``d`` inputs has norm :math:`\sqrt{d}`, and with it the scale of
    the predictions grows with the number of inputs).

    Args:
        per_input: leave every pair with norm 1, as the paper has it. With one
            input there is no difference.

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

    The inputs go in as the user gives them, :math:`x^{(1)} = \gamma` (paper,
    eq. 1), without normalisation. They are followed by as many zeros, so that
    the first layer has the size that :class:`CosSin` gives it: the two
    formulations then hold the same number of parameters, draw the same random
    numbers and cost the same, while the function and its training are exactly
    those without the zeros, which multiply weights that get no gradient.

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
