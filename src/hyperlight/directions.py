r"""The directions in which predicted weights move, and how many of them a trained model needs.

A :class:`~hyperlight.Dense` head predicts :math:`\Delta\theta = W f = \sum_i f_i(\gamma) B_i`.
Every feature is the coordinate of one direction :math:`B_i`, a column of :math:`W`. Over draws of
the inputs the change varies in few of them, which a singular value decomposition finds.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ConfigurationError, check_integer
from .heads import Dense, Head, Mixed
from .hypernet import HyperNet
from .precision import widest

# A model whose last direction has more of an average direction's energy than this had too few of
# them in every case that was measured.
_FULL = 0.01
_KEPT = 0.01


@dataclass(frozen=True, eq=False)
class DirectionProfile:
    r"""The directions in which the weights of a trained model move; ``print`` it.

    Attributes:
        energy: the share of each direction in the variation of the predicted change over the
            inputs, largest first, ``(K,)``. The shares are squares, and sum to 1.
        error: how far the change is off if it is cut to ``r`` directions, for ``r`` from 0 to
            ``K``: the root mean square of what is lost over that of the variation, ``(K + 1,)``.
    """

    energy: Tensor
    error: Tensor

    @property
    def last(self) -> float:
        """The energy of the weakest direction, in units of the mean one."""
        return float(self.energy[-1]) * len(self.energy)

    def needed(self, error: float = _KEPT) -> int:
        """The smallest number of directions with that error or less."""
        return int((self.error > error).sum())

    @property
    def verdict(self) -> str:
        """Whether the model has too few directions, and how far it can be cut, in words."""
        count, needed = len(self.energy), max(self.needed(), 1)
        if not bool(self.error.isfinite().all()):
            return "The predicted weights are not finite: the model diverged."
        if not float(self.energy.sum()) > 0.0:
            return "The predicted weights do not depend on the inputs."
        if self.last > _FULL:
            return (
                f"All {count} directions are in use: the weakest has {100 * self.last:.2g} % of "
                f"the energy of an average one. Try more, such as directions={2 * count}."
            )
        cut = f"model.truncate({needed}) keeps the change within {100 * _KEPT:g} %."
        return (
            f"The weakest of {count} directions is not in use, so nothing says that they are too "
            f"few (which does not prove that they suffice).{f' {cut}' if needed < count else ''}"
        )

    def __str__(self) -> str:
        count = len(self.energy)
        some = [r for r in (1, 2, 4, 8, 16, 32, 64) if r < count]
        errors = ", ".join(f"{r}: {100 * float(self.error[r]):.2g} %" for r in some)
        lines = [f"{count} directions; error of the change if cut to {errors}"] if some else []
        return "\n".join([*lines, self.verdict])


@torch.no_grad()
def measured(hypernet: HyperNet, values: Mapping[str, Any] | None = None) -> DirectionProfile:
    """The profile of a hypernetwork, over the given values or :meth:`HyperNet.draws`."""
    features = _features(hypernet, values)
    gram = _gram(hypernet.head, features.dtype)
    if not bool(gram.isfinite().all() and features.isfinite().all()):
        nan = features.new_full((features.shape[1] + 1,), math.nan)
        return DirectionProfile(nan[1:], nan)
    energy, _ = _principal(features - features.mean(0), gram)
    squares, _ = _principal(features, gram)
    variation = energy.sum()
    left = variation.new_zeros(len(squares) + 1)
    left[:-1] = squares.flip(0).cumsum(0).flip(0)
    error = (left / variation).sqrt() if float(variation) > 0.0 else left
    return DirectionProfile(energy / variation if float(variation) > 0.0 else energy, error)


@torch.no_grad()
def truncated(
    hypernet: HyperNet, directions: int, values: Mapping[str, Any] | None = None
) -> HyperNet:
    """A copy whose head reads the strongest ``directions`` of the given one alone."""
    check_integer("truncate({})", directions)
    features = _features(hypernet, values)
    count = features.shape[1]
    if directions >= count:
        raise ConfigurationError(
            f"truncate({directions}): the head reads {count} features; expected fewer than that. "
            "print(hl.direction_profile(model)) says how many are in use."
        )
    # The best approximation of W f over the draws: W V U U^T V^-1 f, for C = V V^T.
    gram = _gram(hypernet.head, features.dtype)
    _, basis = _principal(features, gram)
    root, inverse = _roots(features)
    kept = basis[:, :directions]
    # Coordinates of the size that the features had, so that the learning rates that suit agree.
    size = float(features.square().sum(1).mean().sqrt()) / math.sqrt(directions)
    outward, inward = root @ kept / size, size * kept.mT @ inverse

    small = copy.deepcopy(hypernet, {id(hypernet.head): nn.Identity()})
    bias = inward.new_zeros(directions)
    if hypernet.projection is not None:
        bias = inward @ hypernet.projection.bias.to(inward)
        inward = inward @ hypernet.projection.weight.to(inward)
    dtype, device = hypernet.dtype, hypernet.device
    small.projection = nn.Linear(inward.shape[1], directions, dtype=dtype, device=device)
    small.projection.weight.copy_(inward)
    small.projection.bias.copy_(bias)
    small.head = _fresh(hypernet.head)
    small.head.build(directions, hypernet.shapes, dtype=dtype, device=device)
    for new, old in zip(_dense_parts(small.head), _dense_parts(hypernet.head), strict=True):
        new.weight.copy_(old.weight @ outward.to(old.weight))
    return small.train(hypernet.training)


def _fresh(head: Head) -> Head:
    """The same head, not built."""
    if isinstance(head, Mixed):
        return Mixed(dict(zip(head.patterns, map(_fresh, head.heads()), strict=True)))
    return Dense()


def _dense_parts(head: Head) -> list[Dense]:
    parts: list[Dense] = []
    for part in head.heads() if isinstance(head, Mixed) else [head]:
        if type(part) is not Dense:
            raise ConfigurationError(
                f"The head has a part {type(part).__name__}; expected Dense alone, whose "
                "features are the coordinates of directions that the weights move in."
            )
        if part.weight.is_meta:
            raise ConfigurationError(
                "The hypernetwork is on the meta device, without values; expected a trained one."
            )
        parts.append(part)
    return parts


def _features(hypernet: HyperNet, values: Mapping[str, Any] | None) -> Tensor:
    """What the head reads over the inputs, ``(draws, K)``, in the widest precision."""
    _dense_parts(hypernet.head)
    if values is None:
        values = hypernet.draws()
    features = hypernet.features(**values)
    if features.ndim != 2:
        shape = tuple(features.shape[:-1])
        raise ConfigurationError(
            f"values had batch shape {shape}; expected one batch dimension, as in (256,)."
        )
    return features.to(widest(features.device))


def _gram(head: Head, dtype: torch.dtype) -> Tensor:
    r""":math:`W^T W`, ``(K, K)``, of all dense parts together."""
    parts = _dense_parts(head)
    total = parts[0].weight.new_zeros((parts[0].features,) * 2, dtype=dtype)
    for part in parts:
        for rows in torch.split(part.weight, 2**16):  # widened a part at a time
            wide = rows.to(dtype)
            total += wide.mT @ wide
    return total


def _principal(features: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Energies of the change, largest first ``(K,)``, and the basis that has them, in columns."""
    root, _ = _roots(features)
    values, basis = torch.linalg.eigh(root.mT @ gram @ root)
    return values.flip(0).clamp_min(0.0), basis.flip(1)


def _roots(features: Tensor) -> tuple[Tensor, Tensor]:
    """``V`` with ``V V^T = C``, the second moments of the features, and its pseudo-inverse."""
    values, vectors = torch.linalg.eigh(features.mT @ features / len(features))
    root = values.clamp_min(0.0).sqrt()
    used = root > torch.finfo(root.dtype).eps ** 0.5 * root[-1]
    inverse = torch.where(used, 1.0 / root, 0.0)
    return vectors * (root * used), inverse[:, None] * vectors.mT
