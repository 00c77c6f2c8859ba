"""How wide a hypernetwork is: its hidden layers, and the directions that its head reads.

A dense head holds one weight for every predicted one and *feature* that it reads, and what a
training step costs on top of the plain network's follows their number. A trunk that is wide,
followed by a linear projection to few numbers, learns as well in equal time as a head that reads
all of the trunk, at a fraction of the weights. In equal steps it learns as well or somewhat worse
(``docs/widths.md``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from .encoded import Encoded
from .errors import ConfigurationError, check_integer
from .heads import Head
from .inputs import Input
from .memory import parameters_of

Hidden = Sequence[int] | Literal["auto"]
"""Widths of the hidden layers, or the default."""

Directions = int | Literal["auto"] | None
"""The number of directions, none, or the default."""

_HIDDEN = (64, 128)


def directions_for(inputs: Iterable[Input]) -> int:
    r"""The number of directions that ``directions="auto"`` takes for these inputs.

    .. math:: r = \min(128, 8 \lceil (8 + 2 s + c / 2 + e / 2) / 8 \rceil)

    for ``s`` numbers between bounds (entries count one by one) or without a shape, ``c`` categories
    in all, and ``e`` entries of vectors such as embeddings, or features of encoded inputs.

    >>> from hyperlight.widths import directions_for
    >>> directions_for([hl.Uniform(0.0, 1.0)]), directions_for([hl.Categorical(50)])
    (16, 40)
    """
    wanted = 8.0
    for space in inputs:
        if isinstance(space, Encoded):
            wanted += space.features / 2
        elif space.discrete:
            low, high = space.support
            wanted += space.numel * (high - low + 1) / 2
        else:
            vector = space.event_shape and not space.bounded
            wanted += space.numel * (0.5 if vector else 2.0)
    return min(_HIDDEN[-1], 8 * math.ceil(wanted / 8))


@dataclass(frozen=True)
class Widths:
    """The hidden layers, and the number of directions by head.

    Attributes:
        hidden: the widths of the hidden layers.
        asked: the number of directions if it was given, or is the default.
        optional: whether a head that is no larger without directions has none.
        shapes: what is predicted.
    """

    hidden: tuple[int, ...]
    asked: int | None
    optional: bool
    shapes: Mapping[str, torch.Size]

    def directions(self, head: Head) -> int | None:
        """The number of directions for this head, not built yet; None if it has none."""
        if self.asked is None or not self.optional:
            return self.asked
        predicted = sum(shape.numel() for shape in self.shapes.values())
        try:
            whole = parameters_of(head, self.hidden[-1], self.shapes)
        except Exception:  # building the real head raises the same error
            return self.asked
        return self.asked if whole > self.asked * predicted else None


def find_widths(
    hidden: Hidden,
    directions: Directions,
    inputs: Iterable[Input],
    shapes: Mapping[str, torch.Size],
) -> Widths:
    """The widths that were asked for, or that are the default for these inputs."""
    automatic = isinstance(hidden, str) and hidden == "auto"
    found = _HIDDEN if automatic else hidden
    whole = isinstance(found, Sequence) and not isinstance(found, str)
    if not whole or not all(type(n) is int and n > 0 for n in found):
        raise ConfigurationError(
            f"hidden was {hidden!r}; expected 'auto', or the widths of the hidden layers, "
            "as in (16, 128)."
        )
    widths = tuple(n for n in found if isinstance(n, int))
    if directions != "auto":
        if directions is not None:
            check_integer("directions={}", directions)
        return Widths(widths, directions, False, shapes)
    return Widths(widths, directions_for(inputs) if automatic else None, True, shapes)
