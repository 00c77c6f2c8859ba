r"""Heads: the last layer of a hypernetwork, and the sum of theta0 and the change it predicts.

A head maps features ``(..., K)`` to one flat vector ``(..., P)``: the predicted tensors,
flattened and concatenated. To write your own, subclass :class:`Head`. :meth:`~Head.make` makes
the parameters once the sizes are known, :meth:`~Head.reset_parameters` draws them, and
``forward`` uses them.
"""

from .base import Head
from .channel_scale import ChannelScale
from .chunked import Chunked
from .low_rank import LowRank
from .mixed import Mixed, find_head
from .per_layer import PerLayer
from .rows import Dense
from .weights import (
    DirectedWeight,
    LowRankWeight,
    ScaledWeight,
    Weight,
    built,
    dense,
    scale_change,
    sums,
)

__all__ = [
    "ChannelScale",
    "Chunked",
    "Dense",
    "DirectedWeight",
    "Head",
    "LowRank",
    "LowRankWeight",
    "Mixed",
    "PerLayer",
    "ScaledWeight",
    "Weight",
    "built",
    "dense",
    "find_head",
    "scale_change",
    "sums",
]
