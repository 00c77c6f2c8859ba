"""The sum of theta0 and the change, and weights that are multiplied out only where they must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._torch import pytree
from ..optim import is_ordinary


class LowRankWeight:
    r"""A weight :math:`\theta^0 + A B`, multiplied out only where it has to be.

    Args:
        theta0: the weight without the change.
        left: :math:`A`, ``(..., rows, rank)``; the rows are the first dimension of ``theta0``.
        right: :math:`B`, ``(..., rank, columns)``.
    """

    def __init__(self, theta0: Tensor, left: Tensor, right: Tensor) -> None:
        self.theta0, self.left, self.right = theta0, left, right
        self._dense: Tensor | None = None

    def dense(self) -> Tensor:
        """The weight as a tensor, ``(...) + theta0.shape``, made once."""
        if self._dense is None:
            (self._dense,) = sums([self.theta0], (self.left @ self.right).flatten(-2))
        return self._dense

    def scaled(self, gain: Tensor) -> LowRankWeight:
        """The same weight with its change multiplied by a gain of batch shape."""
        left = self.left * gain.to(self.left.dtype)[..., None, None]
        return LowRankWeight(self.theta0, left, self.right)

    def linear(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """Apply the weight as :func:`torch.nn.functional.linear` does, one factor at a time."""
        change = F.linear(F.linear(input, self.right), self.left)
        return F.linear(input, self.theta0, bias) + change


# torch.vmap maps over both factors, and all sets of weights share theta0.
pytree.register_pytree_node(
    LowRankWeight,
    lambda weight: ([weight.left, weight.right], weight.theta0),
    lambda factors, theta0: LowRankWeight(theta0, *factors),
)


class ScaledWeight:
    r"""A weight :math:`\theta^0 (1 + s)` with one :math:`s` for every output channel.

    Args:
        theta0: the weight without the change.
        scale: :math:`s`, ``(..., channels)``.
        dim: the dimension of ``theta0`` that holds the output channels.
        groups: how many parts the dimension before it is cut into, each with output channels of
            its own, as in a grouped transposed convolution; 1 otherwise.
    """

    def __init__(self, theta0: Tensor, scale: Tensor, dim: int = 0, groups: int = 1) -> None:
        self.theta0, self.scale, self.dim, self.groups = theta0, scale, dim, groups
        self._dense: Tensor | None = None

    def spread(self) -> Tensor:
        """The scale in a shape that broadcasts with ``theta0``, ``(...) + (1 or size, ...)``."""
        batch, shape, scale = self.scale.shape[:-1], self.theta0.shape, self.scale
        last = (1,) * (len(shape) - self.dim - 1)
        if self.groups == 1:
            return scale.reshape(*batch, *(1,) * self.dim, -1, *last)
        own, parts = shape[self.dim], shape[: self.dim - 1]
        per_group = scale.reshape(*batch, *(1,) * len(parts), self.groups, 1, own)
        rows = shape[self.dim - 1] // self.groups
        return per_group.expand(*per_group.shape[:-2], rows, own).reshape(
            *batch, *(1,) * len(parts), -1, own, *last
        )

    def scaled(self, gain: Tensor) -> ScaledWeight:
        """The same weight with its change multiplied by a gain of batch shape."""
        scale = self.scale * gain.to(self.scale.dtype)[..., None]
        return ScaledWeight(self.theta0, scale, self.dim, self.groups)

    def dense(self) -> Tensor:
        """The weight as a tensor, ``(...) + theta0.shape``, made once."""
        if self._dense is None:
            self._dense = self.theta0 * (1.0 + self.spread())
        return self._dense


# torch.vmap maps over the scales, and all sets of weights share theta0.
pytree.register_pytree_node(
    ScaledWeight,
    lambda weight: ([weight.scale], (weight.theta0, weight.dim, weight.groups)),
    lambda scale, fixed: ScaledWeight(fixed[0], *scale, *fixed[1:]),
)


class DirectedWeight:
    r"""Weights :math:`\theta^0 + \sum_k f_k B_k`, which a layer may apply without building them.

    They are what a :class:`~hyperlight.Dense` head predicts for many inputs. Unlike the other
    kinds they refer to the head's own weight, so they are for one call.

    Args:
        theta0: the weight without the change.
        features: :math:`f`, ``(B, K)``.
        directions: :math:`B`, ``(P, K)``: the head's rows for the ``P`` entries of this weight.
    """

    def __init__(self, theta0: Tensor, features: Tensor, directions: Tensor) -> None:
        self.theta0, self.features, self.directions = theta0, features, directions

    def dense(self) -> Tensor:
        """The weights as a tensor, ``(B,) + theta0.shape``: product and sum in one pass."""
        flat = torch.addmm(self.theta0.flatten(), self.features, self.directions.mT)
        return flat.view(self.features.shape[0], *self.theta0.shape)

    def scaled(self, gain: Tensor) -> DirectedWeight:
        """The same weights with their change multiplied by a gain, ``(B,)``."""
        features = self.features * gain.to(self.features.dtype)[..., None]
        return DirectedWeight(self.theta0, features, self.directions)

    @property
    def pays(self) -> bool:
        """Whether :meth:`linear` builds no more than the weights have entries."""
        return self.features.shape[1] <= self.theta0.shape[0]

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        r"""One row for every set: :math:`\theta^0 x + \sum_k B_k (f_k x)`.

        Shape:
            ``(B, inputs)`` to ``(B, outputs)``, where ``theta0`` has ``outputs * inputs`` entries;
            the bias is ``(outputs,)`` or ``(B, outputs)``.
        """
        outputs = self.theta0.shape[0]
        y = torch.mm(x, self.theta0.reshape(outputs, -1).mT)
        products = (x.unsqueeze(-1) * self.features.unsqueeze(-2)).flatten(1)
        y = torch.addmm(y, products, self.directions.view(outputs, -1).mT)
        return y if bias is None else y + bias


Weight = Tensor | LowRankWeight | ScaledWeight | DirectedWeight


def dense(weight: Weight) -> Tensor:
    """The weight as a tensor."""
    return weight if isinstance(weight, Tensor) else weight.dense()


def built(weight: Weight) -> Weight:
    """The weight as it can be kept: a tensor in place of what refers to the head's weight."""
    return weight.dense() if isinstance(weight, DirectedWeight) else weight


def scale_change(
    theta0: Mapping[str, Tensor], weights: Mapping[str, Weight], gain: Tensor
) -> dict[str, Weight]:
    r"""The weights :math:`\theta^0 + gain (\theta - \theta^0)`, whatever head they come from.

    Exactly ``theta0`` at a gain of 0, and exactly the given weights at 1.
    """
    scaled: dict[str, Weight] = {}
    for name, weight in weights.items():
        if isinstance(weight, Tensor):
            own = theta0[name]
            by = gain.to(own.dtype).reshape(gain.shape + (1,) * own.ndim)
            scaled[name] = torch.lerp(own, weight, by)
        else:
            scaled[name] = weight.scaled(gain)
    return scaled


def split_flat(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Cut ``(..., P)`` into tensors of shape ``(...) + shape``."""
    parts = torch.split(flat, [shape.numel() for shape in shapes], dim=-1)
    return [part.view(flat.shape[:-1] + shape) for part, shape in zip(parts, shapes, strict=True)]


def sums(theta0: Sequence[Tensor], flat: Tensor) -> Sequence[Tensor]:
    """Add to every tensor its part of the flat change ``(..., P)``.

    One node of autograd's graph in place of three for every tensor.
    """
    if not is_ordinary(flat, *theta0):
        parts = split_flat(flat, [own.shape for own in theta0])
        return [own + part.to(own.dtype) for own, part in zip(theta0, parts, strict=True)]
    if all(own.dtype == flat.dtype for own in theta0):
        added: tuple[Tensor, ...] = _Sums.apply(flat, *theta0)  # type: ignore[no-untyped-call]
        return added
    pieces = torch.split(flat, [own.numel() for own in theta0], dim=-1)
    pairs = zip(theta0, pieces, strict=True)
    return [_Sums.apply(piece.to(own.dtype), own)[0] for own, piece in pairs]  # type: ignore[no-untyped-call]


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flat: Tensor, *theta0: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.shapes = [own.shape for own in theta0]
        ctx.save_for_backward(flat[..., :0])
        return tuple(map(torch.add, theta0, split_flat(flat, ctx.shapes)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        (like,) = ctx.saved_tensors
        batch, needed = like.shape[:-1], ctx.needs_input_grad
        by_flat: Tensor | None = None
        by_theta0 = gradients
        if needed[0] or batch:
            by_flat = torch.cat(
                [
                    like.new_zeros((*batch, shape.numel()))
                    if g is None
                    else g.to_dense().reshape(*batch, shape.numel())
                    for g, shape in zip(gradients, ctx.shapes, strict=True)
                ],
                dim=-1,
            )
        if batch and any(needed[1:]):
            assert by_flat is not None
            totals = split_flat(by_flat.flatten(0, -2).sum(0), ctx.shapes)
            pairs = zip(gradients, totals, strict=True)
            by_theta0 = tuple(None if g is None else total for g, total in pairs)
        wanted = zip(by_theta0, needed[1:], strict=True)
        return by_flat if needed[0] else None, *(g if need else None for g, need in wanted)
