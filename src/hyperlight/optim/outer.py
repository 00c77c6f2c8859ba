r"""The gradient of a dense head, kept as the two factors that it is a product of.

A head :math:`\Delta\theta = W f` (paper, eq. 1, last layer) whose prediction has the gradient
:math:`g` has itself the gradient :math:`g f^T`; with :math:`M` inputs in a step, a sum of
:math:`M` such products. Written out it has as many entries as :math:`W`, and writing and reading
them is most of a training step. :class:`OuterProduct` holds the factors instead.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from .._torch import (
    arguments_of_operator,
    aten,
    forward_mode_level,
    no_torch_function,
    pytree,
    tracing_state,
    transforms_active,
    unscale,
    wrapper_tensor,
)
from ..precision import widen
from . import passes

# Weights whose gradient may be handed over as factors, and the optimizers that asked for it.
_kept: MutableMapping[Tensor, weakref.WeakSet[Any]] = WeakTensorKeyDictionary()
# Those whose factors are sent between processes, which pays for a head of any size.
_sent: MutableMapping[Tensor, bool] = WeakTensorKeyDictionary()


def keep_factored(weight: Tensor, owner: object) -> None:
    """Have backward give ``weight`` its gradient as an :class:`OuterProduct` while ``owner`` lives,
    where a step from factors is the faster one (:func:`passes.pays`).

    Counts for this tensor, not for copies of it.
    """
    _kept.setdefault(weight, weakref.WeakSet()).add(owner)


def send_factored(weight: Tensor) -> None:
    """Have an optimizer that takes factors get them for ``weight`` whatever its size."""
    _sent[weight] = True


def takes_factors(weight: Tensor, rows: int) -> bool:
    """Whether the gradient of a head's weight is to be kept as factors.

    It is if an optimizer of :mod:`hyperlight.optim` was made for the weight and its step from the
    factors is the faster one.

    Args:
        weight: ``(P, K)``.
        rows: how many outer products the gradient is a sum of, one for each input.
    """
    if not _kept.get(weight) or rows > weight.shape[1]:  # the matrix is smaller
        return False
    return weight in _sent or passes.pays(weight, rows)


# --- forward and backward ------------------------------------------------------------


def is_ordinary(*tensors: Tensor) -> bool:
    """Whether autograd alone follows these tensors: no tracing, no transform, no subclass."""
    return not (
        torch.compiler.is_compiling()
        or tracing_state() is not None
        or transforms_active()
        or forward_mode_level() >= 0
        or any(type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in tensors)
    )


def dense_product(features: Tensor, weight: Tensor) -> Tensor:
    r"""``features @ weight.T``, whose gradient by ``weight`` is kept factored if it may be.

    It may be if an optimizer of :mod:`hyperlight.optim` was made for ``weight``, its step from
    factors is the faster one, and nothing is traced, transformed or differentiated twice.

    Shape:
        ``(..., K)`` and ``(P, K)`` to ``(..., P)``.
    """
    if not is_ordinary(features, weight):
        return F.linear(features, weight)
    if torch.is_grad_enabled() and (features.requires_grad or weight.requires_grad):
        product: Tensor = _DenseProduct.apply(features, weight)  # type: ignore[no-untyped-call]
        return product
    return passes.product(features, weight)


class _DenseProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(features, weight)
        return passes.product(features, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        features, weight = ctx.saved_tensors
        gradient = gradients[0].to(weight.dtype)
        by_features: Tensor | None = None
        by_weight: Tensor | None = None
        twice = torch.is_grad_enabled()  # a graph of this backward is wanted
        if ctx.needs_input_grad[0]:
            found = gradient @ weight if twice else passes.by_features(gradient, weight)
            by_features = found.to(features.dtype)
        if ctx.needs_input_grad[1]:
            left = gradient.reshape(-1, gradient.shape[-1])
            right = features.to(weight.dtype).reshape(-1, features.shape[-1])
            if twice or not takes_factors(weight, len(left)):
                by_weight = passes.gradient(left, right)
            else:
                # Copies: what it refers to may be written to once this backward is over.
                by_weight = OuterProduct(left.clone(), right.clone())
        return by_features, by_weight


# --- the gradient -------------------------------------------------------------------


class _Content:
    """What an :class:`OuterProduct` and its aliases share: factors, or the matrix."""

    __slots__ = ("dense", "left", "right")

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.left, self.right = left, right
        self.dense: Tensor | None = None


class OuterProduct(Tensor):
    r"""The matrix :math:`\sum_m g_m f_m^T`, held as the rows :math:`g_m` and :math:`f_m`.

    To everything that reads it, it is the dense matrix. Sums of two, multiples, norms, copies and
    zeroing work on the factors. All other operations use the matrix, which is materialised
    temporarily for reads, permanently for writes and views. The factors themselves are never
    written to, since others may hold them.

    Args:
        left: the rows :math:`g_m`, ``(M, P)``.
        right: the rows :math:`f_m`, ``(M, K)``, of the same dtype and device.

    Shape:
        ``(P, K)``.

    >>> left, right = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0, 2.0]])
    >>> gradient = hl.optim.OuterProduct(left, right)
    >>> gradient.shape, gradient.factored
    (torch.Size([2, 3]), True)
    >>> gradient.mul_(2.0).norm() == 2 * 5**1.5
    tensor(True)
    >>> gradient[1]
    tensor([ 8.,  0., 16.])
    """

    _content: _Content

    __torch_function__ = no_torch_function

    @staticmethod
    def __new__(cls, left: Tensor, right: Tensor) -> OuterProduct:
        self: OuterProduct = wrapper_tensor(
            cls, (left.shape[1], right.shape[1]), dtype=left.dtype, device=left.device
        )
        self._content = _Content(left, right)
        return self

    def __init__(self, left: Tensor, right: Tensor) -> None:
        super().__init__()

    @property
    def factored(self) -> bool:
        """Whether it still holds factors; False once the matrix is materialised permanently."""
        return self._content.dense is None

    @property
    def left(self) -> Tensor:
        """The rows :math:`g_m`, ``(M, P)``."""
        return self._content.left

    @property
    def right(self) -> Tensor:
        """The rows :math:`f_m`, ``(M, K)``."""
        return self._content.right

    def dense(self) -> Tensor:
        """The matrix as an ordinary tensor; a new one if this is factored."""
        content = self._content
        if content.dense is None:
            return passes.gradient(content.left, content.right)
        return content.dense

    def _settle(self) -> Tensor:
        """The matrix, which this and its aliases hold from now on."""
        content = self._content
        if content.dense is None:
            content.dense = self.dense()
            content.left, content.right = content.left[:0], content.right[:0]
        return content.dense

    def _alias(self) -> OuterProduct:
        other = OuterProduct(self.left, self.right)
        other._content = self._content
        return other

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = _RULES.get(func)
        if rule is not None:
            result = rule(*args, **kwargs)
            if result is not NotImplemented:
                return result
        stands_for: dict[int, OuterProduct] = {}

        def plain(value: OuterProduct, seen_through: bool) -> Tensor:
            tensor = value._settle() if seen_through else value.dense()
            stands_for[id(tensor)] = value
            return tensor

        def as_matrices(value: Any, argument: Any) -> Any:
            seen_through = argument.alias_info is not None
            return pytree.tree_map_only(OuterProduct, lambda t: plain(t, seen_through), value)

        arguments = arguments_of_operator(func)
        named = {argument.name: argument for argument in arguments}
        args = [as_matrices(*pair) for pair in zip(args, arguments, strict=False)]
        kwargs = {name: as_matrices(value, named[name]) for name, value in kwargs.items()}
        result = func(*args, **kwargs)
        return pytree.tree_map_only(Tensor, lambda t: stands_for.get(id(t), t), result)

    # These read memory without asking the dispatcher.

    def numpy(self, *, force: bool = False) -> Any:
        """As :meth:`torch.Tensor.numpy`, of the matrix."""
        return self.dense().numpy(force=force)

    def tolist(self) -> Any:
        """As :meth:`torch.Tensor.tolist`, of the matrix."""
        return self.dense().tolist()

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.dense().__array__(*args, **kwargs)  # type: ignore[no-untyped-call]

    def data_ptr(self) -> int:
        """As :meth:`torch.Tensor.data_ptr`; materialises the matrix permanently."""
        return self._settle().data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        """As :meth:`torch.Tensor.untyped_storage`; materialises the matrix permanently."""
        return self._settle().untyped_storage()

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any:
        return self._settle().__dlpack__(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.dense().__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = memo[id(self)] = self.clone()
        return copied

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        if not self.factored:
            return repr(self._content.dense)
        rows, shape = len(self.left), tuple(self.shape)
        return f"OuterProduct(rows={rows}, shape={shape}, dtype={self.dtype})"


# --- operations on the factors ---------------------------------------------------------

_RULES: dict[Any, Callable[..., Any]] = {}


def _rule(*functions: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def keep(rule: Callable[..., Any]) -> Callable[..., Any]:
        _RULES.update(dict.fromkeys(functions, rule))
        return rule

    return keep


def _is_factored(value: object) -> bool:
    return isinstance(value, OuterProduct) and value.factored


@_rule(aten.detach.default, aten.alias.default)
def _detach(self: OuterProduct) -> Any:
    return self._alias() if self.factored else NotImplemented


@_rule(aten.clone.default)
def _clone(self: OuterProduct, *, memory_format: Any = None) -> Any:
    usual = (None, torch.preserve_format, torch.contiguous_format)
    if not self.factored or memory_format not in usual:
        return NotImplemented
    return OuterProduct(self.left, self.right)


def _adding(in_place: bool) -> Callable[..., Any]:
    def rule(self: Any, other: Any, *, alpha: Any = 1) -> Any:
        both = _is_factored(self) and _is_factored(other)
        if not both or self.dtype != other.dtype or self.shape != other.shape:
            return NotImplemented
        if len(self.left) + len(other.left) > self.shape[1]:  # the matrix is smaller
            return NotImplemented
        left = torch.cat([self.left, other.left if alpha == 1 else other.left * alpha])
        return _with_factors(self, left, torch.cat([self.right, other.right]), in_place)

    return rule


def _scaling(function: Callable[..., Tensor], in_place: bool) -> Callable[..., Any]:
    def rule(self: Any, by: Any) -> Any:
        scalar = isinstance(by, (int, float)) or (
            isinstance(by, Tensor) and by.ndim == 0 and not by.is_complex()
        )
        if not (scalar and _is_factored(self)):
            return NotImplemented
        return _with_factors(self, function(self.left, by), self.right, in_place)

    return rule


def _with_factors(self: OuterProduct, left: Tensor, right: Tensor, in_place: bool) -> OuterProduct:
    if not in_place:
        return OuterProduct(left, right)
    self._content.left, self._content.right = left, right
    return self


_rule(aten.add.Tensor)(_adding(in_place=False))
_rule(aten.add_.Tensor)(_adding(in_place=True))
_rule(aten.mul.Tensor, aten.mul.Scalar)(_scaling(torch.mul, in_place=False))
_rule(aten.div.Tensor, aten.div.Scalar)(_scaling(torch.div, in_place=False))
_rule(aten.mul_.Tensor, aten.mul_.Scalar)(_scaling(torch.mul, in_place=True))
_rule(aten.div_.Tensor, aten.div_.Scalar)(_scaling(torch.div, in_place=True))


@_rule(aten.neg.default)
def _neg(self: OuterProduct) -> Any:
    return OuterProduct(-self.left, self.right) if self.factored else NotImplemented


@_rule(aten.zero_.default)
def _zero_(self: OuterProduct) -> Any:
    if not self.factored:
        return NotImplemented
    self._content.left, self._content.right = self.left[:0], self.right[:0]
    return self


@_rule(aten.linalg_vector_norm.default)
def _vector_norm(
    self: OuterProduct, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Any:
    r"""With one row, :math:`|g|_p |f|_p`; with several, the sum over the two Gram matrices.

    The latter in float64, as terms may cancel.
    """
    if not self.factored or dim is not None or keepdim:
        return NotImplemented
    left, right = self.left, self.right
    dtype = self.dtype if dtype is None else dtype
    if len(left) == 1:
        norm: Any = torch.linalg.vector_norm
        return (norm(left, ord, dtype=dtype) * norm(right, ord, dtype=dtype)).to(dtype)
    if ord != 2:
        return NotImplemented
    left, right = widen(left), widen(right)
    return ((left @ left.mT) * (right @ right.mT)).sum().clamp_min(0.0).sqrt().to(dtype)


@_rule(aten._foreach_norm.Scalar)
def _foreach_norm(tensors: Sequence[Tensor], ord: Any = 2, dtype: Any = None) -> Any:
    return [torch.linalg.vector_norm(tensor, ord, dtype=dtype) for tensor in tensors]


@_rule(aten._foreach_mul_.Scalar, aten._foreach_mul_.Tensor)
def _foreach_mul_(tensors: Sequence[Tensor], by: Any) -> None:
    for tensor in tensors:
        tensor.mul_(by)


@_rule(aten._foreach_zero_.default)
def _foreach_zero_(tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        tensor.zero_()


@_rule(aten._amp_foreach_non_finite_check_and_unscale_.default)
def _check_and_unscale_(tensors: Sequence[Tensor], found_inf: Tensor, inv_scale: Tensor) -> None:
    r"""Unscale, and set ``found_inf`` where an entry is not finite.

    For factors, where :math:`\sum_m \max|g_m| \max|f_m|` is not, which bounds every entry and
    with one row is the greatest.
    """
    rest = []
    for tensor in tensors:
        if not isinstance(tensor, OuterProduct):
            rest.append(tensor)
        elif not tensor.factored:
            rest.append(tensor._settle())
        elif len(tensor.left):
            left, right = tensor.left, tensor.right
            bound = (left.abs().amax(dim=1) * right.abs().amax(dim=1)).sum()
            found_inf.copy_(torch.maximum(found_inf, (~bound.isfinite()).to(found_inf)))
            tensor._content.left = left * inv_scale.to(left.dtype)
    if rest:
        unscale(rest, found_inf, inv_scale)
