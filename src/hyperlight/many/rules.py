"""Layers with one set of weights per sample, on the true batch.

Every rule below is called with the arguments of its layer's ``forward`` and returns the same
result as that would for every sample alone, with the sample's own weights. ``LAYERS`` says which
rule is for which layer; a layer without one runs under :func:`torch.vmap`, by itself.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._torch import BatchNorm, canonical_mask, is_abstract, padding_of, pytree
from ..errors import InputError
from ..heads import DirectedWeight, LowRankWeight, ScaledWeight, Weight, dense
from ..inputs import is_read
from .track import COPIED, Axis, Lost


class Layer(ABC):
    """A layer of a bound network with its weights, one set per sample.

    Args:
        path: its name in the network.
        samples: the number of sets, ``B``.
        weights: by name inside the layer; each with the sets in its first dimension. Parameters
            that are not predicted are missing.
    """

    def __init__(self, path: str, samples: int, weights: Mapping[str, Weight]) -> None:
        self.path, self.samples, self.weights = path, samples, weights

    @abstractmethod
    def take(self, slot: str, tensor: Tensor, expected: int = 0) -> tuple[Tensor, Axis]:
        """An argument, with the dimension that holds the samples.

        An argument that all samples share is expanded. ``expected`` is where the layer has its
        batch, for an argument of constants.
        """

    @abstractmethod
    def expect(self, slot: str, tensor: Tensor, axis: Axis) -> None:
        """Refuse an argument that does not hold the samples there."""

    @abstractmethod
    def share(self, slot: str, tensor: Tensor) -> None:
        """Refuse an argument that not all samples share."""

    @abstractmethod
    def one(self, module: nn.Module, weights: Mapping[str, Weight]) -> Any:
        """The layer as it was, with one set of weights in place, in the mode of ``module``."""

    @abstractmethod
    def give(self, output: Tensor, *axes: Axis) -> Tensor:
        """Say where the samples are in a result: in the first axis; the others were met too."""

    def weight(self, module: nn.Module, name: str) -> Tensor | None:
        """A weight for every sample, ``(B,) + shape``; None if the layer has none."""
        found = self.weights.get(name)
        if found is not None:
            return dense(found)
        shared: Tensor | None = _own(module, name)
        return None if shared is None else shared.expand(self.samples, *shared.shape)

    def lose(self, why: str) -> Lost:
        """The error that says why this layer cannot run on the true batch."""
        return Lost(f"{self.path or 'the primary'} {why}")


class ByItself(Exception):  # noqa: N818 (no error: another way is taken)
    """A rule does not know such a call: it is for vmap, over the layer alone.

    Args:
        axes: where the results hold the samples, if that is known by definition.
    """

    def __init__(self, *axes: Axis) -> None:
        super().__init__()
        self.axes = axes


class StandIn:
    """Of the class of a layer in a bound network, which runs its rule."""

    original: type[nn.Module]


Rule = Callable[..., Any]


def _plain(module: Any) -> Any:
    """The layer as an object of its own class; it shares all attributes."""
    plain = object.__new__(module.original)
    plain.__dict__.update(module.__dict__)
    return plain


def _own(module: nn.Module, name: str) -> Any:
    for part in name.split("."):
        module = getattr(module, part)
    return module


# --- the sample axis --------------------------------------------------------------------


def split(x: Tensor, axis: Axis, samples: int) -> Tensor:
    """Move the samples to the front: ``(B, ...)``, where what was folded with them stays in
    their place.
    """
    dim, inner, outer = axis[:3]
    if dim == 0 and outer == 1:
        return x.unsqueeze(1) if _is_one(inner) else torch.unflatten(x, 0, (samples, inner))
    x = torch.unflatten(x, dim, (outer, samples, inner))
    return x.movedim(dim + 1, 0).flatten(dim + 1, dim + 2)


def merge(y: Tensor, axis: Axis) -> Tensor:
    """Undo :func:`split`."""
    dim, inner, outer = axis[:3]
    if dim == 0 and outer == 1:
        return y.squeeze(1) if _is_one(inner) else y.flatten(0, 1)
    y = torch.unflatten(y, dim + 1, (outer, inner)).movedim(0, dim + 1)
    return y.flatten(dim, dim + 2).contiguous()


def _is_one(size: int) -> bool:
    return isinstance(size, int) and size == 1


def _rows(x: Tensor, axis: Axis, samples: int) -> Tensor:
    """``(..., C)`` as ``(B, rows, C)``."""
    return split(x, axis, samples).flatten(1, -2)


def _from_rows(y: Tensor, like: Tensor, axis: Axis) -> Tensor:
    """Undo :func:`_rows`; the rows may be wider than before."""
    if axis.dim == 0 and axis.outer == 1:
        return y.reshape(*like.shape[:-1], y.shape[-1])
    shape = list(like.shape[:-1])
    shape[axis.dim] = axis.inner * axis.outer
    return merge(torch.unflatten(y, 1, shape), axis)


def _affine(y: Tensor, axis: Axis, weight: Tensor | None, bias: Tensor | None, at: int) -> Tensor:
    """Multiply and add ``(B, ...)`` to the dimensions of ``y`` from ``at`` on."""
    if weight is None and bias is None:
        return y
    dim, inner, outer = axis[:3]
    folded = not (_is_one(inner) and _is_one(outer))

    def fitted(v: Tensor | None) -> Tensor | None:
        if v is None:
            return None
        shape = [1] * y.ndim
        shape[at : at + v.ndim - 1] = v.shape[1:]
        shape[dim : dim + 1] = [1, v.shape[0], 1] if folded else [v.shape[0]]
        return v.reshape(shape)

    u = torch.unflatten(y, dim, (outer, -1, inner)) if folded else y
    w, b = fitted(weight), fitted(bias)
    if w is None:
        assert b is not None
        u = u + b.to(u.dtype)
    else:
        u = u * w if b is None else torch.addcmul(b.to(u.dtype), u, w.to(u.dtype))
    return u.flatten(dim, dim + 2) if folded else u


# --- linear layers ----------------------------------------------------------------------


def multiply(
    x: Tensor, axis: Axis, samples: int, weight: Weight, bias: Tensor | None, shared: bool
) -> Tensor:
    """``x W^T + b`` with a weight for every sample.

    A low-rank weight is never multiplied out: the shared part is one product for the whole batch,
    and the change is added to it in place of a second pass. A scaled one is shared by all samples,
    whose outputs (or inputs, if its second dimension is scaled) are scaled.

    Args:
        x: ``(..., in)``.
        axis: where its samples are.
        samples: ``B``.
        weight: ``(B, out, in)``.
        bias: ``(out,)`` if ``shared``, or ``(B, out)``.
        shared: whether all samples share the bias.
    """
    if isinstance(weight, ScaledWeight):
        if weight.dim == 1:
            y = F.linear(_scaled(x, axis, weight, None, x.ndim - 1), weight.theta0)
            return _affine(y, axis, None, _each(bias, samples, shared), y.ndim - 1)
        y = F.linear(x, weight.theta0)
        return _scaled(y, axis, weight, _each(bias, samples, shared), y.ndim - 1)
    u = _rows(x, axis, samples)
    if isinstance(weight, DirectedWeight):
        if u.shape[1] == 1 and weight.pays:
            return _from_rows(weight.linear(u.squeeze(1), bias).unsqueeze(1), x, axis)
        weight = weight.dense()
    if isinstance(weight, Tensor):
        if bias is None:
            return _from_rows(torch.bmm(u, weight.mT), x, axis)
        row = bias.expand(samples, 1, -1) if shared else bias.unsqueeze(1)
        return _from_rows(torch.baddbmm(row, u, weight.mT), x, axis)
    left, right = weight.left, weight.right
    y = F.linear(x, weight.theta0, bias if shared else None)
    code = torch.bmm(u, right.mT)
    if bias is not None and not shared:  # the bias as one more column of the factor
        code = torch.cat([code, code.new_ones(*code.shape[:-1], 1)], dim=-1)
        left = torch.cat([left, bias.unsqueeze(-1)], dim=-1)
    if axis.dim == 0 and axis.outer == 1:
        return torch.baddbmm(y.reshape(*u.shape[:-1], -1), code, left.mT).reshape(y.shape)
    return y + _from_rows(torch.bmm(code, left.mT), x, axis)


def _scaled(y: Tensor, axis: Axis, weight: ScaledWeight, bias: Tensor | None, at: int) -> Tensor:
    """Scale the channels of each sample, and add ``(B, channels)``."""
    return _affine(y, axis, (1.0 + weight.scale).to(y.dtype), bias, at)


def _each(bias: Tensor | None, samples: int, shared: bool) -> Tensor | None:
    return bias.expand(samples, -1) if bias is not None and shared else bias


def _apply_linear(
    layer: Layer, module: nn.Module, x: Tensor, axis: Axis, weight: str, bias: str, turned: bool
) -> Tensor:
    if axis.dim == x.ndim - 1:
        raise layer.lose("sees the samples in the dimension of its features")
    found = _weight(layer, module, weight)
    if turned:
        found = _turned(found)
    own = layer.weights.get(bias)
    shared = None if own is not None else _own(module, bias)
    b = shared if own is None else dense(own)
    return multiply(x, axis, layer.samples, found, b, own is None)


def _turned(weight: Weight) -> Weight:
    if isinstance(weight, LowRankWeight):
        return LowRankWeight(weight.theta0.mT, weight.right.mT, weight.left.mT)
    if isinstance(weight, ScaledWeight):
        return ScaledWeight(weight.theta0.mT, weight.scale, 1 - weight.dim)
    return dense(weight).mT


def linear(layer: Layer, module: nn.Module, input: Tensor) -> Tensor:
    x, axis = layer.take("input", input)
    y = _apply_linear(layer, module, x, axis, "weight", "bias", False)
    return layer.give(y, axis)


def transposed_linear(layer: Layer, module: nn.Module, x: Tensor) -> Tensor:
    """The layer that GPT-2 of ``transformers`` calls Conv1D: its weight is ``(in, out)``."""
    u, axis = layer.take("x", x)
    return layer.give(_apply_linear(layer, module, u, axis, "weight", "bias", True), axis)


def bilinear(layer: Layer, module: nn.Module, input1: Tensor, input2: Tensor) -> Tensor:
    a, axis = layer.take("input1", input1)
    b, other = layer.take("input2", input2)
    if axis.place != other.place or axis.dim == a.ndim - 1:
        raise layer.lose("sees the samples in other dimensions than that of the batch")
    weight, bias = layer.weight(module, "weight"), layer.weight(module, "bias")
    u, v = _rows(a, axis, layer.samples), _rows(b, other, layer.samples)
    y = torch.einsum("bni,boij,bnj->bno", u, weight, v)
    if bias is not None:
        y = y + bias.unsqueeze(1)
    return layer.give(_from_rows(y, a, axis), axis, other)


# --- lookup -----------------------------------------------------------------------------


def embedding(layer: Layer, module: nn.Embedding, input: Tensor) -> Tensor:
    if module.max_norm is not None or module.scale_grad_by_freq:
        raise ByItself
    indices, axis = layer.take("input", input)
    weight, size = layer.weights["weight"], module.num_embeddings
    # Row i of sample b is row b * size + i of all sets together.
    rows = _rows(indices.unsqueeze(-1), axis, layer.samples).squeeze(-1)
    _check_indices(layer, rows, size)
    sets = torch.arange(layer.samples, device=rows.device).unsqueeze(-1)
    flat = rows + sets * size
    if not (is_read(rows) or is_abstract()):  # the lookup then fails, as it would for one sample
        flat = flat.masked_fill((rows < 0) | (rows >= size), layer.samples * size)
    if isinstance(weight, LowRankWeight):
        code = F.embedding(flat, weight.left.flatten(0, 1))
        y = torch.baddbmm(F.embedding(rows, weight.theta0), code, weight.right)
    elif isinstance(weight, ScaledWeight):
        scale = weight.scale.unsqueeze(1)  # of the features, or of every row
        if weight.dim == 0:
            scale = F.embedding(flat, weight.scale.reshape(-1, 1))
        y = F.embedding(rows, weight.theta0) * (1.0 + scale)
    else:
        y = F.embedding(flat, dense(weight).flatten(0, 1))
    if module.padding_idx is not None:
        y = torch.where(rows.unsqueeze(-1) == module.padding_idx, y.detach(), y)
    return layer.give(_from_rows(y, indices.unsqueeze(-1), axis), axis)


def _check_indices(layer: Layer, rows: Tensor, size: int) -> None:
    """Refuse a row that there is not: it would be one of another sample's table."""
    if rows.numel() and is_read(rows):
        low, high = (int(end) for end in torch.aminmax(rows))
        if low < 0 or high >= size:
            raise InputError(
                f"{layer.path or 'The primary'} is an embedding of {size} rows and was given the "
                f"index {low if low < 0 else high}; expected indices from 0 to {size - 1}."
            )


def embedding_bag(
    layer: Layer, module: nn.EmbeddingBag, input: Tensor, *args: Any, **kwargs: Any
) -> Any:
    bags, axis = layer.take("input", input)
    if bags.ndim != 2 or axis.dim != 0:
        raise layer.lose(f"is given {bags.ndim} dimensions; a batch of bags has 2")
    raise ByItself(axis)


# --- normalisation ----------------------------------------------------------------------


def layer_norm(layer: Layer, module: nn.LayerNorm, input: Tensor) -> Tensor:
    x, axis = layer.take("input", input)
    y = F.layer_norm(x, module.normalized_shape, None, None, module.eps)
    return _normalized(layer, module, y, axis, len(module.normalized_shape))


def rms_norm(layer: Layer, module: nn.RMSNorm, x: Tensor) -> Tensor:
    u, axis = layer.take("x", x)
    y = F.rms_norm(u, module.normalized_shape, None, module.eps)
    return _normalized(layer, module, y, axis, len(module.normalized_shape))


def _normalized(layer: Layer, module: nn.Module, y: Tensor, axis: Axis, last: int) -> Tensor:
    if axis.dim >= y.ndim - last:
        raise layer.lose("sees the samples in the dimensions that it normalises")
    bias = layer.weight(module, "bias") if hasattr(module, "bias") else None
    y = _affine(y, axis, layer.weight(module, "weight"), bias, y.ndim - last)
    return layer.give(y, axis)


def group_norm(layer: Layer, module: nn.GroupNorm, input: Tensor) -> Tensor:
    x, axis = _batch_first(layer, input)
    y = F.group_norm(x, module.num_groups, None, None, module.eps)
    y = _affine(y, axis, layer.weight(module, "weight"), layer.weight(module, "bias"), 1)
    return layer.give(y, axis)


def batch_norm(layer: Layer, module: nn.Module, input: Tensor) -> Tensor:
    """The statistics are over the whole batch, as they always are; the rest is each sample's."""
    x, axis = _batch_first(layer, input)
    plain = _plain(module)
    plain.__dict__["_parameters"] = {"weight": None, "bias": None}
    for name in ("weight", "bias"):
        plain.__dict__.pop(name, None)
    y = plain.forward(x)
    y = _affine(y, axis, layer.weight(module, "weight"), layer.weight(module, "bias"), 1)
    return layer.give(y, axis)


def _batch_first(layer: Layer, input: Tensor) -> tuple[Tensor, Axis]:
    x, axis = layer.take("input", input)
    if axis.dim != 0:
        raise layer.lose(f"sees the samples in dimension {axis.dim}, where it expects the first")
    return x, axis


def prelu(layer: Layer, module: nn.PReLU, input: Tensor) -> Tensor:
    x, axis = layer.take("input", input)
    weight = layer.weight(module, "weight")
    assert weight is not None
    if weight.shape[1] > 1 and (axis.dim == 1 or x.ndim < 2):
        raise layer.lose("sees the samples in the dimension of its channels")
    slopes = weight if weight.shape[1] > 1 else weight.squeeze(1)
    below = _affine(x, axis, slopes, None, 1)
    return layer.give(torch.where(x > 0, x, below), axis)


# --- convolutions -----------------------------------------------------------------------

# A loop may be faster from so many entries in the input of one set, and so many per weight.
_LOOP_ENTRIES, _LOOP_RATIO = 2**15, 4

_CONVOLVE: Any = (F.conv1d, F.conv2d, F.conv3d)
_CONVOLVE_TRANSPOSED: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def convolution(layer: Layer, module: Any, input: Tensor) -> Tensor:
    """Grouped: the samples stand beside the channels.

    Of a low-rank weight the shared part is one convolution of the whole batch, and so is all of a
    scaled one.
    """
    x, axis = _batch_first(layer, input)
    dims = len(module.kernel_size)
    if x.ndim != dims + 2:
        raise ByItself
    padding = module.padding
    # ONNX has no convolution with as many groups as there are samples, if their number is open.
    open_size = not isinstance(layer.samples, int)
    if module.padding_mode != "zeros" or open_size:
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, padding_of(module), mode=mode)
        padding = 0
    convolve = _CONVOLVE[dims - 1]
    grouped = _windowed if open_size else _grouped
    options = (module.stride, padding, module.dilation)
    weight, bias = layer.weights.get("weight"), layer.weight(module, "bias")
    if isinstance(weight, LowRankWeight) and module.groups == 1:
        code = torch.unflatten(weight.right, -1, weight.theta0.shape[1:])
        h = grouped(convolve, split(x, axis, layer.samples), code, None, options, 1)
        change = torch.matmul(weight.left.unsqueeze(1), h.flatten(3))
        change = torch.unflatten(change, 3, h.shape[3:])
        y = convolve(x, weight.theta0, None, *options) + merge(change, axis)
        return layer.give(_affine(y, axis, None, bias, 1), axis)
    if isinstance(weight, ScaledWeight) and weight.dim == 0:
        y = convolve(x, weight.theta0, None, *options, module.groups)
        return layer.give(_scaled(y, axis, weight, bias, 1), axis)
    u = split(x, axis, layer.samples)
    if (
        isinstance(weight, DirectedWeight)
        and weight.pays
        and u.shape[1] == module.groups == 1
        and _is_covered(u, weight.theta0.unsqueeze(0), padding, module.dilation)
    ):
        y = weight.linear(u.flatten(1), bias).reshape(layer.samples, 1, -1, *(1,) * dims)
        return layer.give(merge(y, axis), axis)
    w = layer.weight(module, "weight")
    assert w is not None
    if axis.kind == COPIED and module.groups == 1:  # the same images: one convolution
        b = None if bias is None else bias.flatten()
        y = convolve(u[0], w.flatten(0, 1), b, *options)
        y = torch.unflatten(y, 1, (layer.samples, -1)).transpose(0, 1)
        return layer.give(merge(y, axis), axis)
    if _is_covered(u, w, padding, module.dilation) and module.groups == 1:
        y = _covered(u, w, bias)
    elif _loop_is_faster(u, w):
        y = _looped(convolve, u, w, bias, options, module.groups)
    else:
        y = grouped(convolve, u, w, bias, options, module.groups)
    return layer.give(merge(y, axis), axis)


def transposed_convolution(
    layer: Layer, module: Any, input: Tensor, output_size: Any = None
) -> Tensor:
    x, axis = _batch_first(layer, input)
    dims = len(module.kernel_size)
    if x.ndim != dims + 2 or output_size is not None:
        raise ByItself
    weight, bias = layer.weights.get("weight"), layer.weight(module, "bias")

    def convolve(x: Tensor, w: Tensor, b: Tensor | None, *options: Any) -> Any:
        stride, padding, dilation, groups = options
        transposed = _CONVOLVE_TRANSPOSED[dims - 1]
        return transposed(x, w, b, stride, padding, module.output_padding, groups, dilation)

    options = (module.stride, module.padding, module.dilation)
    by_channel = (1, module.groups)
    if isinstance(weight, ScaledWeight) and (weight.dim, weight.groups) == by_channel:
        y = convolve(x, weight.theta0, None, *options, module.groups)
        return layer.give(_scaled(y, axis, weight, bias, 1), axis)
    w = layer.weight(module, "weight")
    assert w is not None
    u = split(x, axis, layer.samples)
    y = _grouped(convolve, u, w, bias, options, module.groups)
    return layer.give(merge(y, axis), axis)


def _grouped(
    convolve: Callable[..., Tensor],
    u: Tensor,
    w: Tensor,
    bias: Tensor | None,
    options: tuple[Any, ...],
    groups: int,
) -> Tensor:
    """``(B, n, C, ...)`` to ``(B, n, O, ...)``."""
    samples = u.shape[0]
    x = u.transpose(0, 1).flatten(1, 2)
    if 1 in x.shape[2:]:  # whose strides PyTorch (2.13) may take for another layout in backward
        x = x.clone(memory_format=torch.contiguous_format)
    b = None if bias is None else bias.reshape(-1)
    y = convolve(x, w.flatten(0, 1).contiguous(), b, *options, groups * samples)
    return torch.unflatten(y, 1, (samples, -1)).transpose(0, 1)


def _windowed(
    convolve: Callable[..., Tensor],
    u: Tensor,
    w: Tensor,
    bias: Tensor | None,
    options: tuple[Any, ...],
    groups: int,
) -> Tensor:
    """The same as :func:`_grouped` as a product with every window of the padded images."""
    stride, _, dilation = options
    sizes = w.shape[3:]
    for dim, (size, step, apart) in enumerate(zip(sizes, stride, dilation, strict=True)):
        u = u.unfold(3 + dim, (size - 1) * apart + 1, step)[..., ::apart]
    dims = len(sizes)
    u = torch.unflatten(u, 2, (groups, -1)).movedim(2, 1)  # (B, g, n, C / g, out..., kernel...)
    u = u.movedim(3, 3 + dims)
    rows = u.flatten(3 + dims).flatten(2, 2 + dims)
    y = rows @ torch.unflatten(w, 1, (groups, -1)).flatten(3).mT  # (B, g, n * out, O / g)
    y = torch.unflatten(y, 2, u.shape[2 : 3 + dims]).movedim(-1, 3)
    y = y.movedim(1, 2).flatten(2, 3)
    return y if bias is None else y + bias.reshape(bias.shape[0], 1, -1, *(1,) * dims)


def _looped(
    convolve: Callable[..., Tensor],
    u: Tensor,
    w: Tensor,
    bias: Tensor | None,
    options: tuple[Any, ...],
    groups: int,
) -> Tensor:
    biases: Any = [None] * len(w) if bias is None else bias
    ones = zip(u, w, biases, strict=True)
    return torch.stack([convolve(x, own, b, *options, groups) for x, own, b in ones])


def _loop_is_faster(u: Tensor, w: Tensor) -> bool:
    """The rule that was measured on a CPU.

    A grouped convolution has the images of one set far apart in memory if a set has several. A
    loop is then faster, if the input of a set is large and outweighs its weights.
    """
    if u.device.type != "cpu" or torch.compiler.is_compiling() or u.shape[1] == 1:
        return False
    return u[0].numel() >= max(_LOOP_ENTRIES, _LOOP_RATIO * w[0].numel())


def _is_covered(u: Tensor, w: Tensor, padding: Any, dilation: Any) -> bool:
    """Whether the kernel covers the whole image: the layer is then a linear one."""
    dims = u.ndim - 3
    return (
        u.shape[3:] == w.shape[3:]
        and padding in ("valid", 0, (0,) * dims)
        and dilation in (1, (1,) * dims)
    )


def _covered(u: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """``(B, n, C, ...)`` to ``(B, n, O, 1, ...)``, as a batched matrix product."""
    # In this order the gradient of the weights has their layout.
    factors = w.flatten(2), u.flatten(2).mT
    y = torch.bmm(*factors) if bias is None else torch.baddbmm(bias.unsqueeze(-1), *factors)
    return y.mT.reshape(*y.mT.shape, *(1 for _ in u.shape[3:]))


# --- attention --------------------------------------------------------------------------


def attention(
    layer: Layer,
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Projections for every sample; what is between them needs no weights."""
    if module.bias_k is not None or module.add_zero_attn:
        raise ByItself
    batch = 0 if module.batch_first else 1
    slots = {"query": query, "key": key, "value": value}
    taken = [layer.take(slot, x, batch) for slot, x in slots.items()]
    if query is key is value:
        taken[1:] = [taken[0], taken[0]]
    axes = [axis for _, axis in taken]
    for x, axis in taken:
        _expect_batch(layer, x, axis, batch, module)
    axis = axes[0]
    if any(other.place != axis.place for other in axes):
        raise layer.lose("is given a query and keys that hold the samples in different ways")
    if is_causal and attn_mask is None:
        raise ByItself  # for the error that PyTorch has for it
    q = _projected(layer, module, [x for x, _ in taken], axis)
    if not module.batch_first:
        q = [x.transpose(0, 1) for x in q]
    causal = is_causal and key_padding_mask is None and not need_weights
    mask = _attention_mask(layer, module, axis, q[0].dtype, key_padding_mask, attn_mask)
    y, scores = _attend(module, q, None if causal else mask, causal, need_weights)
    if not module.batch_first:
        y = y.transpose(0, 1).contiguous()
    y = _apply_linear(layer, module, y, axis, "out_proj.weight", "out_proj.bias", False)
    if scores is not None:
        scores = scores.mean(1) if average_attn_weights else scores
        scores = layer.give(scores, axis._replace(dim=0), *axes)
    return layer.give(y, axis, *axes), scores


def _expect_batch(layer: Layer, x: Tensor, axis: Axis, batch: int, module: nn.Module) -> None:
    """The error for data whose batch is where the layer has its sequence."""
    if x.ndim == 3 and axis.dim == batch:
        return
    if x.ndim != 3 or axis.dim == 2:
        raise layer.lose(f"is given {x.ndim} dimensions, with the samples in {axis.dim}")
    where = f" {layer.path!r}" if layer.path else ""
    first, second = ("batch", "sequence") if batch == 0 else ("sequence", "batch")
    raise InputError(
        f"{type(module).__name__}{where} has batch_first={batch == 0}, so its input is "
        f"({first}, {second}, features); it was given {tuple(x.shape)} with the samples in "
        f"dimension {axis.dim}. If your batch is in dimension {batch}, say so: model(hl.PerSample("
        f"x, dim={batch}), ...). Otherwise set batch_first={batch != 0} in the layer."
    )


def _projected(
    layer: Layer, module: nn.MultiheadAttention, given: list[Tensor], axis: Axis
) -> list[Tensor]:
    """Query, keys and values, each by its part of the weights."""
    size, samples = module.embed_dim, layer.samples
    bias = layer.weights.get("in_proj_bias")
    shared = bias is None
    biases: Any = module.in_proj_bias if bias is None else dense(bias)
    parts = [None] * 3 if biases is None else biases.split(size, -1)
    own: Any = module.in_proj_weight
    if own is None:  # keys or values of another size
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        weights = [_weight(layer, module, name) for name in names]
    else:
        packed = _weight(layer, module, "in_proj_weight")
        if given[0] is given[1] is given[2]:
            y = multiply(given[0], axis, samples, packed, biases, shared)
            return list(torch.split(y, size, -1))
        weights = _cut(packed, size)
    projected = []
    for x, w, b in zip(given, weights, parts, strict=True):
        projected.append(multiply(x, axis, samples, w, b, shared))
    return projected


def _cut(weight: Weight, size: int) -> list[Any]:
    if isinstance(weight, LowRankWeight):
        pairs = zip(
            torch.split(weight.theta0, size), torch.split(weight.left, size, -2), strict=True
        )
        return [LowRankWeight(theta0, left, weight.right) for theta0, left in pairs]
    if isinstance(weight, ScaledWeight):
        theta0, scale = torch.split(weight.theta0, size), weight.scale
        scales = torch.split(scale, size, -1) if weight.dim == 0 else [scale] * len(theta0)
        return [ScaledWeight(t, s, weight.dim) for t, s in zip(theta0, scales, strict=True)]
    return list(torch.split(dense(weight), size, -2))


def _weight(layer: Layer, module: nn.Module, name: str) -> Weight:
    """A weight that the layer has, for every sample; in its factors if it has some."""
    found = layer.weights.get(name)
    whole = layer.weight(module, name) if found is None else found
    assert whole is not None
    return whole


def _attention_mask(
    layer: Layer,
    module: nn.MultiheadAttention,
    axis: Axis,
    dtype: torch.dtype,
    padding: Tensor | None,
    mask: Tensor | None,
) -> Tensor | None:
    """Both masks as one that is added to the scores, ``(N or 1, heads or 1, L, S)``."""
    total = canonical_mask(mask, "attn_mask", None, dtype)
    if mask is not None and mask.ndim == 3:
        folded = axis._replace(dim=0, inner=axis.inner * module.num_heads)
        layer.expect("attn_mask", mask, folded)
        total = torch.unflatten(total, 0, (-1, module.num_heads))
    elif mask is not None:
        layer.share("attn_mask", mask)
        total = total[None, None]
    if padding is not None:
        layer.expect("key_padding_mask", padding, axis._replace(dim=0))
        added = canonical_mask(padding, "key_padding_mask", mask, dtype)[:, None, None]
        total = added if total is None else total + added
    found: Tensor | None = total
    return found


def _attend(
    module: nn.MultiheadAttention,
    projected: list[Tensor],
    mask: Tensor | None,
    causal: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention of ``(N, L, E)`` and ``(N, S, E)``."""
    heads = (module.num_heads, -1)
    q, k, v = (torch.unflatten(x, -1, heads).transpose(1, 2) for x in projected)
    dropout = module.dropout if module.training else 0.0
    scores = None
    if need_weights:
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        scores = (scores if mask is None else scores + mask).softmax(-1)
        scores = F.dropout(scores, dropout)
        y = scores @ v
    else:
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
    return y.transpose(1, 2).flatten(2), scores


# --- recurrent layers -------------------------------------------------------------------


def recurrent(layer: Layer, module: nn.RNNBase, input: Any, hx: Any = None) -> Any:
    """One sample after another: PyTorch's recurrent kernels take one set of weights."""
    if not isinstance(input, Tensor):
        raise layer.lose(f"is given a {type(input).__name__}, whose samples are not in one place")
    batch = 0 if module.batch_first else 1
    x, axis = layer.take("input", input, batch)
    _expect_batch(layer, x, axis, batch, module)
    state = axis._replace(dim=1)
    states = () if hx is None else hx if isinstance(hx, tuple) else (hx,)
    taken = [layer.take(f"state {i}", h, 1) for i, h in enumerate(states)]
    if any(own.place != state.place for _, own in taken):
        raise layer.lose("is given a state that does not hold the samples as its input does")
    given = [h for h, _ in taken]
    if layer.weights:
        rows = [split(t, at, layer.samples) for t, at in [(x, axis), *((h, state) for h in given)]]
        runs = []
        for b in range(layer.samples):
            own_weights = {name: _of_sample(w, b) for name, w in layer.weights.items()}
            one = layer.one(module, own_weights)
            own, *start = (row[b] for row in rows)
            y, end = one(own, _states(start, hx))
            runs.append((y, *(end if isinstance(end, tuple) else (end,))))
        columns = [torch.stack(column) for column in zip(*runs, strict=True)]
        y, *ends = [merge(c, axis if i == 0 else state) for i, c in enumerate(columns)]
    else:
        y, end = _plain(module).forward(x, _states(given, hx))
        ends = list(end) if isinstance(end, tuple) else [end]
    others = [own for _, own in taken]
    ends = [layer.give(end, state, *others) for end in ends]
    y = layer.give(y, axis, *others)
    return y, tuple(ends) if isinstance(module, nn.LSTM) else ends[0]


def _states(states: Sequence[Tensor], given: Any) -> Any:
    if given is None:
        return None
    return tuple(states) if isinstance(given, tuple) else states[0]


def _of_sample(weight: Weight, index: int) -> Weight:
    one: Weight = pytree.tree_map(lambda tensor: tensor[index], weight)
    return one


# --- which rule is for which layer ------------------------------------------------------

# By the function that is the layer's forward, so that a subclass with a forward of its own is not
# taken for what it is not.
LAYERS: dict[Any, Rule] = {
    nn.Linear.forward: linear,
    nn.Bilinear.forward: bilinear,
    nn.Embedding.forward: embedding,
    nn.EmbeddingBag.forward: embedding_bag,
    nn.LayerNorm.forward: layer_norm,
    nn.RMSNorm.forward: rms_norm,
    nn.GroupNorm.forward: group_norm,
    BatchNorm.forward: batch_norm,
    nn.PReLU.forward: prelu,
    nn.Conv1d.forward: convolution,
    nn.Conv2d.forward: convolution,
    nn.Conv3d.forward: convolution,
    nn.ConvTranspose1d.forward: transposed_convolution,
    nn.ConvTranspose2d.forward: transposed_convolution,
    nn.ConvTranspose3d.forward: transposed_convolution,
    nn.MultiheadAttention.forward: attention,
    nn.RNN.forward: recurrent,
    nn.LSTM.forward: recurrent,
    nn.GRU.forward: recurrent,
}

# Layers of other libraries, which are not imported: by module and class.
OTHERS: dict[tuple[str, str], Rule] = {("transformers.pytorch_utils", "Conv1D"): transposed_linear}

CONVOLUTIONS = (convolution, transposed_convolution)

# Those that may apply weights without building them.
UNBUILT = (linear, convolution)

# What the rules need to know of layers whose weights are not predicted: PyTorch's kernels for
# them do not say where the samples are.
WHOLE = (nn.RNN, nn.LSTM, nn.GRU, nn.MultiheadAttention)


def find_rule(module: nn.Module) -> Rule | None:
    """The rule for a layer, if there is one.

    There is none if the layer computes its weights itself (parametrizations, weight norm).
    """
    kind = type(module)
    rule = LAYERS.get(kind.forward) or OTHERS.get((kind.__module__, kind.__qualname__))
    own = dict(module.named_parameters(recurse=False))
    flat = getattr(module, "_flat_weights_names", ())
    for name in ("weight", "bias", "in_proj_weight", "in_proj_bias", *flat):
        computed = name not in own and getattr(module, name, None)
        if isinstance(computed, Tensor) or hasattr(module, "parametrizations"):
            return None
    children = [find_rule(child) for child in module.children()]
    return None if None in children else rule
