"""Random networks, for what must hold whatever a user's network does with its batch.

A network is a list of steps. Every step maps ``(B, T, C)`` to ``(B, T, C)`` and keeps samples
apart, apart from those of :data:`CROSSING`, which mix samples, and of :data:`SHUFFLED`, which
take the batch to pieces. Layers
see the batch where a user's network may put it: first, second, folded into another dimension,
twice. Sizes agree by chance.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

LONGEST = 8  # of a sequence
CATEGORIES = 5
_CALLS = itertools.count()

# --- layers that see the last dimension and keep its size ----------------------------------


class Reader(nn.Module):
    """A layer of the user's own, with a function of its own."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, size) / size**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + x.mean(-1, keepdim=True)


class Scale(nn.Module):
    """A gain and a shift for every channel."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(size) + 0.5)
        self.shift = nn.Parameter(torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.gain)


class Pair(nn.Module):
    """A bilinear layer of the data and the same in another order."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Bilinear(size, size, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.contiguous(), x.flip(-1).contiguous())


class Looked(nn.Embedding):
    """Rows that are looked up by values of the data."""

    def __init__(self, size: int) -> None:
        super().__init__(CATEGORIES, size)

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward((x[..., 0] * 7).floor().long().remainder(CATEGORIES))


class Twice(nn.Linear):
    """One weight, used two times, the second time on a view."""

    def __init__(self, size: int) -> None:
        super().__init__(size, size)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.tanh(super().forward(x)).flip(-1))


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "linear": lambda size: nn.Linear(size, size),
    "linear without bias": lambda size: nn.Linear(size, size, bias=False),
    "perceptron": lambda size: nn.Sequential(nn.Linear(size, 3), nn.GELU(), nn.Linear(3, size)),
    "layer norm": nn.LayerNorm,
    "rms norm": nn.RMSNorm,
    "reader": Reader,
    "scale": Scale,
    "prelu": lambda size: nn.PReLU(1),
    "bilinear": Pair,
    "embedding": Looked,
    "used twice": Twice,
}

# --- where a layer sees the batch ------------------------------------------------------------

Layer = Callable[[Tensor], Tensor]


def _heads(x: Tensor, f: Layer, order: tuple[int, ...]) -> Tensor:
    """Split the channels into two heads, and fold two of the dimensions (B, T, heads, C / 2)."""
    y = x.unflatten(-1, (2, -1)).permute(order)
    back = [order.index(i) for i in range(4)]
    return f(y.flatten(0, 1)).unflatten(0, y.shape[:2]).permute(back).flatten(2)


def _windows(x: Tensor, f: Layer, first: bool) -> Tensor:
    if x.shape[1] % 2:
        return f(x)
    y = x.unflatten(1, (2, -1))
    y = y.transpose(0, 1) if first else y
    y = f(y.flatten(0, 1)).unflatten(0, y.shape[:2])
    return (y.transpose(0, 1) if first else y).flatten(1, 2)


def _written(x: Tensor, f: Layer) -> Tensor:
    y = x.new_empty(x.shape[1], x.shape[0], x.shape[2])
    y.copy_(x.transpose(0, 1))
    return f(y).transpose(0, 1)


def _written_in_slices(x: Tensor, f: Layer) -> Tensor:
    y = torch.zeros_like(x)
    for t in range(x.shape[1]):
        y[:, t] = x[:, -1 - t]
        y[:, t].mul_(0.5)
    return f(y)


def _every_second(x: Tensor, f: Layer) -> Tensor:
    y = x.clone()
    y[:, ::2] = f(x[:, ::2])
    return y


def _first_in_place(x: Tensor, f: Layer) -> Tensor:
    y = x.transpose(0, 1).clone()
    y[0] += f(y[0].clone())
    return y.transpose(0, 1)


def _folded(x: Tensor, f: Layer) -> Tensor:
    return f(x.reshape(-1, x.shape[-1])).view(x.shape)


def _time_first(x: Tensor, f: Layer) -> Tensor:
    return f(x.transpose(0, 1)).transpose(0, 1)


def _time_folded(x: Tensor, f: Layer) -> Tensor:
    return _time_first(x, lambda y: _folded(y, f))


def _strided(x: Tensor, f: Layer) -> Tensor:
    B, T, C = x.shape
    return f(torch.as_strided(x.contiguous(), (T, B, C), (C, T * C, 1))).transpose(0, 1)


PLACES: dict[str, Callable[[Tensor, Layer], Tensor]] = {
    "as it is": lambda x, f: f(x),
    "time first": _time_first,
    "folded": _folded,
    "time folded": _time_folded,
    "heads": lambda x, f: _heads(x, f, (0, 2, 1, 3)),
    "heads first": lambda x, f: _heads(x, f, (2, 0, 1, 3)),
    "heads after time": lambda x, f: _heads(x, f, (1, 2, 0, 3)),
    "time and batch": lambda x, f: _heads(x, f, (1, 0, 2, 3)),
    "windows": lambda x, f: _windows(x, f, False),
    "windows first": lambda x, f: _windows(x, f, True),
    "two in a row": lambda x, f: sum(f(torch.cat([x, -x.flip(1)])).chunk(2)),
    "two on a stack": lambda x, f: f(torch.stack([x, x.roll(1, 1)])).sum(0),
    "two beside": lambda x, f: f(torch.stack([x, x.roll(1, 1)], 1)).sum(1),
    "repeated": lambda x, f: f(x.repeat(2, 1, 1)).unflatten(0, (2, -1)).sum(0),
    "repeated inside": lambda x, f: f(x.repeat_interleave(2, 0)).unflatten(0, (-1, 2)).sum(1),
    "expanded": lambda x, f: f(x.unsqueeze(1).expand(-1, 2, -1, -1)).mean(1),
    "expanded first": lambda x, f: f(x.expand(2, *x.shape)).mean(0),
    "one in front": lambda x, f: f(x.unsqueeze(0)).squeeze(0),
    "one behind": lambda x, f: f(x.unsqueeze(1)).squeeze(1),
    "squeezed": lambda x, f: f(x.squeeze()).reshape(x.shape),
    "by steps": lambda x, f: torch.stack([f(x[:, t]) for t in range(x.shape[1])], 1),
    "unbound steps": lambda x, f: torch.stack([f(y) for y in x.unbind(1)], 1),
    "by halves": lambda x, f: torch.cat([f(y) for y in x.split(x.shape[1] // 2 + 1, 1)], 1),
    "shifted windows": lambda x, f: f(F.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1).mT).mean(2),
    "every second": _every_second,
    "written": _written,
    "written in slices": _written_in_slices,
    "first in place": _first_in_place,
    "strided": _strided,
}

# --- steps of other kinds -------------------------------------------------------------------


class Step(nn.Module):
    """``(B, T, C)``, lengths ``(B,)`` and ids ``(B, T)`` to ``(B, T, C)``; 4 variants."""

    def __init__(self, size: int, variant: int) -> None:
        super().__init__()
        self.size, self.variant = size, variant


class Placed(Step):
    """Layers one after another in one place."""

    def __init__(self, size: int, place: str, layers: tuple[str, ...]) -> None:
        super().__init__(size, 0)
        self.place, self.names = place, layers
        inner = size // 2 if "heads" in place or place == "time and batch" else size
        self.layers = nn.Sequential(*(LAYERS[name](inner) for name in layers))

    def forward(self, x: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        return PLACES[self.place](x, self.layers)

    def __repr__(self) -> str:
        return f"{' + '.join(self.names)} ({self.place})"


def _mask(x: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(x.shape[1])[None] < lengths[:, None]


class Convolution(Step):
    def __init__(self, size: int, variant: int) -> None:
        super().__init__(size, variant)
        self.layer = (
            lambda: nn.Conv1d(size, size, 3, padding=1),
            lambda: nn.Conv1d(size, size, 3, padding=1, groups=size, padding_mode="circular"),
            lambda: nn.ConvTranspose1d(size, size, 3, padding=1),
            lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 1)),
        )[variant]()

    def forward(self, x: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        if x.shape[1] == 1:  # torch 2.13 refuses to go back through what torch.vmap makes of it
            return x
        if self.variant == 3:
            return self.layer(x.unsqueeze(1)).squeeze(1)
        return self.layer(x.mT).mT


class Norm(Step):
    def __init__(self, size: int, variant: int) -> None:
        super().__init__(size, variant)
        self.layer = (
            lambda: nn.BatchNorm1d(size),
            lambda: nn.GroupNorm(2, size),
            lambda: nn.InstanceNorm1d(size, affine=True),
            lambda: nn.BatchNorm1d(size),
        )[variant]()

    def forward(self, x: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        if self.variant == 2 and x.shape[1] == 1:  # torch refuses a single value
            return x
        # torch 2.13 has wrong gradients for BatchNorm2d here, in the channels-last layout.
        return _folded(x, self.layer) if self.variant == 3 else self.layer(x.mT).mT


class Attention(Step):
    def __init__(self, size: int, variant: int) -> None:
        super().__init__(size, variant)
        self.layer = nn.MultiheadAttention(size, 2, batch_first=variant % 2 == 0)

    def forward(self, x: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        masks: dict[str, Any] = {"need_weights": self.variant == 0}
        if self.variant > 1:
            masks["key_padding_mask"] = ~_mask(x, lengths)
        y = x if self.layer.batch_first else x.transpose(0, 1)
        y = self.layer(y, y, y, **masks)[0]
        return y if self.layer.batch_first else y.transpose(0, 1)


class Encoder(Step):
    def __init__(self, size: int, variant: int) -> None:
        super().__init__(size, variant)
        kind = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)[variant // 2]
        self.layer = kind(size, 2, 5, dropout=0.0, batch_first=variant % 2 == 0)

    def forward(self, x: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        y = x if self.variant % 2 == 0 else x.transpose(0, 1)
        y = self.layer(y) if self.variant < 2 else self.layer(y, y)
        return y if self.variant % 2 == 0 else y.transpose(0, 1)


class Recurrent(Step):
    def __init__(self, size: int, variant: int) -> None:
        super().__init__(size, variant)
        kind = (nn.GRU, nn.LSTM, nn.RNN, nn.GRU)[variant]
        self.layer = kind(size, size, batch_first=variant % 2 == 0)

    def forward(self, x: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        if self.variant == 3:  # the last state, which has the batch in its second dimension
            return x + self.layer(x.transpose(0, 1))[1].transpose(0, 1)
        if self.layer.batch_first:
            return self.layer(x)[0]
        return self.layer(x.transpose(0, 1))[0].transpose(0, 1)


class Tokens(Step):
    def __init__(self, size: int, variant: int) -> None:
        super().__init__(size, variant)
        kind = nn.EmbeddingBag if variant == 3 else nn.Embedding
        self.layer = kind(CATEGORIES, size, **({"padding_idx": 1} if variant == 1 else {}))

    def forward(self, x: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        if self.variant == 3:
            return x + self.layer(ids).unsqueeze(1)
        if self.variant == 2:
            return x + self.layer(ids.mT).transpose(0, 1)
        return x + self.layer(ids)


class Kinds(Step):
    """Ids that the network makes itself, as BERT does with its token types."""

    def __init__(self, size: int, variant: int) -> None:
        super().__init__(size, variant)
        self.layer = nn.Embedding(2, size)
        self.register_buffer("kinds", torch.zeros(1, LONGEST, dtype=torch.long))

    def forward(self, x: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        made = (
            lambda: self.kinds[:, : x.shape[1]].expand(len(x), -1),
            lambda: torch.zeros(x.shape[:2], dtype=torch.long),
            lambda: torch.zeros_like(ids),
            lambda: self.kinds.expand(len(x), -1).gather(1, ids.new_zeros(x.shape[:2])),
        )[self.variant]()
        return x + self.layer(made)


class Positions(Step):
    """Learned positions, called as nanoGPT does and in other ways."""

    def __init__(self, size: int, variant: int) -> None:
        super().__init__(size, variant)
        self.layer = nn.Embedding(LONGEST, size)
        self.register_buffer("positions", torch.arange(LONGEST)[None], persistent=False)

    def forward(self, x: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        T = x.shape[1]
        made = (
            lambda: torch.arange(T),
            lambda: torch.arange(T)[None],
            lambda: self.positions[:, :T],
            lambda: torch.arange(T).expand(len(x), T),
        )[self.variant]()
        return x + self.layer(made)


class Own(Step):
    """Parameters of a network's own: positions, a token in front, a layer's scale."""

    def __init__(self, size: int, variant: int) -> None:
        super().__init__(size, variant)
        shape = ((1, LONGEST, size), (1, 1, size), (size,), (LONGEST, size))[variant]
        self.own = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        if self.variant == 1:
            return torch.cat([self.own.expand(len(x), -1, -1), x], 1).softmax(1)[:, 1:]
        if self.variant == 2:
            return self.own * x
        return x + (self.own[:, : x.shape[1]] if self.variant == 0 else self.own[: x.shape[1]])


class Table(Step):
    """Contents that all samples share, with or without a dimension for them."""

    def __init__(self, size: int, variant: int) -> None:
        super().__init__(size, variant)
        self.register_buffer("table", torch.randn(LONGEST, size))
        self.layer = nn.Linear(size, size)

    def forward(self, x: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        table = self.table[: x.shape[1]]
        if self.variant == 2:
            table = table.expand(len(x), -1, -1)
        if self.variant == 3:  # the layer sees nothing of the batch
            return x + self.layer(table[None])
        return self.layer(x + (table[None] if self.variant == 1 else table))


class Mixer(Step):
    """A layer along time."""

    def __init__(self, size: int, variant: int) -> None:
        super().__init__(size, variant)
        self.layer = nn.Linear(LONGEST, LONGEST)

    def forward(self, x: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        B, T, C = x.shape
        y = F.pad(x, (0, 0, 0, LONGEST - T)).mT
        if self.variant == 1:
            y = self.layer(y.reshape(B * C, LONGEST)).view(B, C, LONGEST)
        elif self.variant == 2:
            y = self.layer(y.transpose(0, 1)).transpose(0, 1)
        else:
            y = self.layer(y)
        return y[..., :T].mT


class Either(Step):
    """Two ways to one result: a layer sees the batch in two places. Variant 4 alternates."""

    def __init__(self, size: int, variant: int) -> None:
        super().__init__(size, variant)
        self.layer = nn.Linear(size, size)

    def forward(self, x: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        first = (
            lambda: bool(_mask(x, lengths).all()),
            lambda: int(lengths.sum()) < len(lengths) * x.shape[1],
            lambda: torch.is_grad_enabled(),
            lambda: x.shape[1] % 2 == 0,
            lambda: next(_CALLS) % 2 == 0,  # changes from call to call, whatever the arguments
        )[self.variant]()
        return self.layer(x) if first else _time_first(x, self.layer)


class Masked(Step):
    """Masks from lengths."""

    def forward(self, x: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        mask, T = _mask(x, lengths), x.shape[1]
        if self.variant == 0:  # left out where it does nothing, as transformers does
            return x if mask.all() else x.masked_fill(~mask[..., None], 0.0)
        if self.variant == 1:
            return x + x[torch.arange(len(x)), lengths - 1][:, None]
        if self.variant == 2:
            return x - (x * mask[..., None]).sum(1, keepdim=True) / lengths[:, None, None]
        mask = torch.ones(len(x), T, T, dtype=torch.bool).tril() & mask[:, None]
        return x + mask.to(x).softmax(-1) @ x


class Dot(Step):
    """Attention without weights of its own."""

    def forward(self, x: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        heads, T = x.unflatten(-1, (2, -1)).transpose(1, 2), x.shape[1]
        if self.variant == 3:
            score = torch.einsum("bthd,bshd->bhts", *[heads.transpose(1, 2)] * 2)
            return torch.einsum(
                "bhts,bshd->bthd", score.softmax(-1), heads.mT.mT.transpose(1, 2)
            ).flatten(2)
        options: dict[str, Any] = ({}, {"is_causal": True}, {})[self.variant]
        if self.variant == 2:
            mask = _mask(x, lengths)[:, None, None].expand(-1, 1, T, T)
            options = {"attn_mask": mask if lengths.min() < T else None}
        return (
            F.scaled_dot_product_attention(heads, heads, heads, **options)
            .transpose(1, 2)
            .flatten(2)
        )


TIME: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x - x.mean(1, keepdim=True),
    lambda x: x.cumsum(1),
    lambda x: x.sort(1).values,
    lambda x: x + x.amax((1, 2), keepdim=True),
    lambda x: x.flip(1).softmax(-1),
    lambda x: x[:, torch.arange(x.shape[1] - 1, -1, -1)],
    lambda x: F.normalize(x, dim=-1) + x.gather(1, x.argsort(1)),
    lambda x: F.interpolate(x.mT, scale_factor=2.0)[..., ::2].mT,
    lambda x: x + x.diagonal(0, 1, 2).mean(-1)[:, None, None],
    lambda x: x * torch.linspace(0.5, 1, x.shape[1], dtype=x.dtype)[:, None],
    lambda x: (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-6)).tanh(),
    lambda x: torch.where(x > x.median(1, keepdim=True).values, x, 0.1 * x),
    lambda x: F.max_pool1d(x.mT, 3, 1, 1).mT,
    lambda x: x + torch.baddbmm(x, x, x.mT @ x).tanh(),
    lambda x: F.dropout(x, 0.5, training=False).clone(),
    lambda x: torch.cat([x[:, 1:], x[:, :1]], 1).tanh(),
)


class Time(Step):
    """Functions along time and channels."""

    def __init__(self, size: int, variant: int, which: int) -> None:
        super().__init__(size, which)

    def forward(self, x: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        return TIME[self.variant](x)


STEPS: dict[str, type[Step]] = {
    "convolution": Convolution,
    "norm": Norm,
    "attention": Attention,
    "encoder": Encoder,
    "recurrent": Recurrent,
    "tokens": Tokens,
    "kinds": Kinds,
    "positions": Positions,
    "own": Own,
    "table": Table,
    "mixer": Mixer,
    "either": Either,
    "masked": Masked,
    "dot": Dot,
}

# --- what does not keep samples apart ---------------------------------------------------------


def _reversed(x: Tensor) -> Tensor:
    return torch.arange(len(x) - 1, -1, -1)


def _put(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[_reversed(x)] = x
    return y


def _scattered(x: Tensor) -> Tensor:
    return torch.zeros_like(x).scatter_(0, _reversed(x)[:, None, None].expand_as(x), x)


def _shifted_in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y[1:] += x[:-1]
    return y


def _marked(x: Tensor) -> Tensor:
    y = torch.zeros(len(x), 1, 1, dtype=x.dtype)
    y[0] = 1
    return x + y


def _swapped(x: Tensor) -> Tensor:
    y = x.clone()
    y[[0, -1]] = y[[-1, 0]]
    return y


def _halved(x: Tensor) -> Tensor:
    if len(x) % 2:
        return x
    return x.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)


def _transposed(x: Tensor) -> Tensor:
    """Where time is as long as the batch, samples and steps change places."""
    return x + x.transpose(0, 1) if len(x) == x.shape[1] > 1 else x


def _gram(x: Tensor) -> Tensor:
    return x * torch.einsum("btc,dtc->bd", x, x)[:, :1, None]


def _attention(x: Tensor) -> Tensor:
    y = x.flatten(1)
    return (torch.softmax(y @ y.mT, -1) @ y).view_as(x)


def _by_values(x: Tensor, ids: Tensor) -> Tensor:
    return x + x[ids[:, 0] % len(x)]


# name -> function of x, lengths, ids
CROSSING: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "mean": lambda x, n, i: x - x.mean(0, keepdim=True),
    "variance": lambda x, n, i: x / (1 + x.var(0, keepdim=True, unbiased=False)),
    "largest": lambda x, n, i: x - x.amax(0),
    "sum": lambda x, n, i: x + x.sum((0, 1)),
    "softmax": lambda x, n, i: x.softmax(0),
    "log-sum": lambda x, n, i: x - x.logsumexp(0, keepdim=True),
    "cumulative": lambda x, n, i: x.cumsum(0),
    "normalised": lambda x, n, i: F.normalize(x, dim=0),
    "whole norm": lambda x, n, i: x / x.norm(),
    "whole softmax": lambda x, n, i: x.flatten().softmax(0).view_as(x) * x.numel(),
    "batch statistics": lambda x, n, i: (x - x.mean((0, 1))) / (x.std((0, 1), correction=0) + 1),
    "flip": lambda x, n, i: x.flip(0),
    "roll": lambda x, n, i: x.roll(1, 0),
    "flat roll": lambda x, n, i: x.roll(1),
    "order": lambda x, n, i: x[x[:, 0, 0].argsort()],
    "sort": lambda x, n, i: x.sort(0).values,
    "largest two": lambda x, n, i: x + x.topk(min(2, len(x)), 0).values.sum(0),
    "permutation": lambda x, n, i: x[_reversed(x)],
    "selection": lambda x, n, i: x.index_select(0, _reversed(x)),
    "gathered": lambda x, n, i: x.gather(0, _reversed(x)[:, None, None].expand_as(x)),
    "by values": lambda x, n, i: _by_values(x, i),
    "put": lambda x, n, i: _put(x),
    "scattered": lambda x, n, i: _scattered(x),
    "added to one": lambda x, n, i: x + x.new_zeros(x.shape[1:]).index_add(0, n - 1, x[:, 0]),
    "first": lambda x, n, i: x + x[:1],
    "last": lambda x, n, i: x - x[-1],
    "neighbour": lambda x, n, i: x + torch.cat([x[1:], x[:1]]),
    "shifted in place": lambda x, n, i: _shifted_in_place(x),
    "marked": lambda x, n, i: _marked(x),
    "swapped": lambda x, n, i: _swapped(x),
    "halved": lambda x, n, i: _halved(x),
    "numbered": lambda x, n, i: x + torch.arange(len(x), dtype=x.dtype)[:, None, None],
    "transposed": lambda x, n, i: _transposed(x),
    "gram": lambda x, n, i: _gram(x),
    "attention": lambda x, n, i: _attention(x),
    "distances": lambda x, n, i: x * torch.cdist(x.flatten(1), x.flatten(1)).mean(1)[:, None, None],
    "longest": lambda x, n, i: x.masked_fill((torch.arange(x.shape[1]) >= n.max())[:, None], 0.0),
    "branch": lambda x, n, i: x.flip(0) if x[0, 0, 0] > 0 else x,
    "branch on all": lambda x, n, i: 2 * x if x.mean() > 0 else x,
    "number": lambda x, n, i: x / x.abs().max().item(),
    "float": lambda x, n, i: x * float(x.sum()),
    "list": lambda x, n, i: x * max(x[:, 0, 0].tolist()),
    "list of samples": lambda x, n, i: x + torch.tensor(x[:, 0, 0].tolist()).sum(),
    "array": lambda x, n, i: x + torch.from_numpy(x.detach().numpy().mean(0, keepdims=True)),
    "array flipped": lambda x, n, i: torch.from_numpy(x.detach().numpy()[::-1].copy()),
    "array of one": lambda x, n, i: x * torch.as_tensor(x.detach().numpy().max()),
    "data": lambda x, n, i: _data(x),
}


# Numbers of the arguments, read into Python, which decide for all samples or are computed with.
DECIDING: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cut": lambda x, n, i: F.pad(x[:, : int(n.max())], (0, 0, 0, x.shape[1] - int(n.max()))),
    "branch on any": lambda x, n, i: x if (n == x.shape[1]).any() else -x,
    "number of the first": lambda x, n, i: x * float(n.tolist()[0]),
}


def _data(x: Tensor) -> Tensor:
    y = torch.empty(0, dtype=x.dtype)
    y.data = x.detach().flip(0)
    return y


class Crossing(Step):
    """A function from :data:`CROSSING`, in one of the places."""

    def __init__(self, size: int, variant: int, name: str) -> None:
        super().__init__(size, variant)
        self.name = name

    def forward(self, x: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        return (CROSSING | DECIDING)[self.name](x, lengths, ids)

    def __repr__(self) -> str:
        return f"crossing: {self.name}"


def _in_order(x: Tensor, f: Layer) -> Tensor:
    order = x[:, 0, 0].argsort()
    return f(x[order])[order.argsort()]


def _unique(x: Tensor, f: Layer) -> Tensor:
    rows, back = x.unique(dim=0, return_inverse=True)
    return f(rows)[back]


def _routed(x: Tensor, f: Layer, chosen: Tensor) -> Tensor:
    """As a mixture of experts does: a layer sees some tokens, or some samples, alone."""
    y = x.clone()
    y[chosen] = f(x[chosen])
    return y


def _halves_changed(x: Tensor, f: Layer) -> Tensor:
    return f(torch.cat([x[len(x) // 2 :], x[: len(x) // 2]])).roll(len(x) // 2, 0)


def _array(x: Tensor, f: Layer) -> Tensor:
    return f(torch.from_numpy(x.detach().numpy()[::-1].copy())).flip(0)


def _merged(x: Tensor, f: Layer) -> Tensor:
    """Odd and even samples in two dimensions, the wrong way round."""
    if len(x) % 2:
        return f(x)
    y = x.unflatten(0, (2, -1)).transpose(0, 1)
    return f(y.flatten(0, 1)).unflatten(0, y.shape[:2]).transpose(0, 1).flatten(0, 1)


# Samples are kept apart, and a layer sees them in another order, one by one or in part.
SHUFFLED: dict[str, Callable[[Tensor, Layer], Tensor]] = {
    "flipped": lambda x, f: f(x.flip(0)).flip(0),
    "rolled": lambda x, f: f(x.roll(1, 0)).roll(-1, 0),
    "in order": _in_order,
    "reversed": lambda x, f: f(x[_reversed(x)])[_reversed(x)],
    "flipped and folded": lambda x, f: _folded(x.flip(0), f).flip(0),
    "two, one flipped": lambda x, f: (lambda a, b: a + b.flip(0))(
        *f(torch.cat([x, x.flip(0)])).chunk(2)
    ),
    "halves changed": _halves_changed,
    "merged": _merged,
    "one by one": lambda x, f: torch.stack([f(y) for y in x]),
    "in chunks": lambda x, f: torch.cat([f(y) for y in x.chunk(2)]),
    "in slices": lambda x, f: torch.cat([f(x[i : i + 1]) for i in range(len(x))]),
    "some tokens": lambda x, f: _routed(x, f, x[..., 0] > 0),
    "some samples": lambda x, f: _routed(x, f, x[:, 0, 0] > 0),
    "unique": _unique,
    "array": _array,
    "list": lambda x, f: f(torch.tensor(x.tolist(), dtype=x.dtype)),
    "spectrum": lambda x, f: f(torch.fft.fft(x, dim=1).real),
}


class Shuffled(Placed):
    """Layers one after another, in one of these ways."""

    def forward(self, x: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        return SHUFFLED[self.place](x, self.layers)


class Packed(Step):
    """A recurrent layer on a packed sequence."""

    def __init__(self, size: int, variant: int) -> None:
        super().__init__(size, variant)
        self.layer = nn.GRU(size, size, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, True, enforce_sorted=False)
        output = self.layer(packed)[0]
        return nn.utils.rnn.pad_packed_sequence(output, True, total_length=x.shape[1])[0]


# --- the network and its data -----------------------------------------------------------------


class Network(nn.Module):
    """Steps with a nonlinearity after each, and a layer at the end."""

    def __init__(self, size: int, steps: list[Step], time_first: bool) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.last = nn.Linear(size, size)
        self.time_first = time_first

    def forward(self, x: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        x = x.transpose(0, 1) if self.time_first else x
        for step in self.steps:
            x = torch.tanh(step(x, lengths, ids)) + 0.1 * x
        return self.last(x)


@dataclass(frozen=True)
class Case:
    """A network and four calls of it.

    Attributes:
        size: channels, C.
        steps: as :meth:`network` builds them.
        calls: batch B, time T and whether all sequences have full length, for each call.
        low_rank: whether predictions are of rank 1.
        frozen: every other step is not predicted.
        time_first: whether the data are ``(T, B, C)``.
        seed: draws parameters and data.
    """

    size: int
    steps: tuple[tuple[Any, ...], ...]
    calls: tuple[tuple[int, int, bool], ...]
    low_rank: bool
    frozen: bool
    time_first: bool
    seed: int

    def network(self) -> Network:
        """In float64, without any zero or one among its parameters.

        Every other network is in training mode, in which attention takes no short cuts.
        """
        torch.manual_seed(self.seed)
        steps = [_step(self.size, *step) for step in self.steps]
        network = Network(self.size, steps, self.time_first).double().train(self.seed % 4 < 2)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
            for module in network.modules():
                if isinstance(module, nn.BatchNorm1d):
                    module.eval()
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2.0)
        return network

    def targets(self) -> list[str]:
        """The parameters that are predicted: the last layer's among them, or those of one step.

        Of one step in every third network that does not mix samples: no layer after it can refuse
        what became of its result.
        """
        names = [name for name, _ in self.network().named_parameters()]
        steps = sorted({name.split(".")[1] for name in names})
        mixes = any(step[0] in ("crossing", "shuffled") for step in self.steps)
        if self.seed % 3 == 0 and not mixes:
            only = steps[self.seed // 3 % len(steps)]
            return [name for name in names if name.split(".")[1] == only]
        own = [name.split(".")[1] for name in names]
        return [
            name
            for name, number in zip(names, own, strict=True)
            if not (self.frozen and number.isdigit() and int(number) % 2)
        ]

    def data(self, call: int) -> tuple[Tensor, Tensor, Tensor]:
        """``x`` (B, T, C), lengths (B,) and ids (B, T).

        What was positive in the second call is negative in the third.
        """
        B, T, full = self.calls[call]
        generator = torch.Generator().manual_seed(self.seed + min(call, 1) + max(call - 2, 0))
        x = torch.randn(B, T, self.size, generator=generator, dtype=torch.float64)
        lengths = torch.randint(1, T + 1, (B,), generator=generator)
        ids = torch.randint(CATEGORIES, (B, T), generator=generator)
        return -x if call == 2 else x, lengths.fill_(T) if full else lengths, ids


def _step(size: int, kind: str, *rest: Any) -> Step:
    if kind == "placed":
        return Placed(size, *rest)
    if kind == "time":
        return Time(size, 0, *rest)
    if kind == "shuffled":
        return Shuffled(size, *rest)
    if kind == "packed":
        return Packed(size, 0)
    if kind == "crossing":
        return Crossing(size, 0, *rest)
    return STEPS[kind](size, *rest)


def draw_case(random: Random, crossing: bool) -> Case:
    """A network that keeps samples apart, or with at least one step that does not."""
    B = random.choice([1, 2, 3, 3, 4, 4, 6])
    T = random.choice([B, B, 1, 2, 4, 5, 8])
    size = random.choice([2, 4, 4, 6])

    def layers() -> tuple[str, ...]:
        return tuple(random.choices(list(LAYERS), k=random.choice([1, 1, 2])))

    def ordinary() -> tuple[Any, ...]:
        kind = random.choices(["placed", "time", "other"], [4, 1, 3])[0]
        if kind == "placed":
            return "placed", random.choice(list(PLACES)), layers()
        if kind == "time":
            return "time", random.randrange(len(TIME))
        return random.choice(list(STEPS)), random.randrange(4)

    def crossed() -> tuple[Any, ...]:
        kind = random.choices(["crossing", "shuffled", "packed"], [6, 3, 0.3])[0]
        if kind == "crossing":
            return "crossing", random.choice(list(CROSSING))
        return (
            ("shuffled", random.choice(list(SHUFFLED)), layers()) if kind == "shuffled" else (kind,)
        )

    steps = [ordinary() for _ in range(random.randint(0 if crossing else 1, 5))]
    if crossing:
        steps.insert(random.randint(0, len(steps)), crossed())
    full = random.random() < 0.5
    # The first two calls are alike; in the third, branches go the other way; the last has sizes
    # of its own, in which time may be as long as the batch.
    other = random.choice([(B, B), (T, T), (T, B), (B + 1, T), (B, T)])
    calls = ((B, T, full), (B, T, full), (B, T, not full), (*other, full))
    chance = [random.random() < share for share in (0.5, 0.3, 0.1)]
    return Case(size, tuple(steps), calls, *chance, random.randrange(2**16))


def cases(crossing: bool) -> st.SearchStrategy[Case]:
    """Cases from a seed: choices are then even, which those of hypothesis are not."""
    return st.integers(0, 2**48).map(lambda seed: draw_case(Random(seed), crossing))


def smaller(case: Case) -> list[Case]:
    """The same with one step or one layer less, for the report of a failure."""
    found = [case.steps[:i] + case.steps[i + 1 :] for i in range(len(case.steps))]
    for i, step in enumerate(case.steps):
        if step[0] in ("placed", "shuffled") and len(step[2]) > 1:
            shorter = ((*step[:2], step[2][:1]), (*step[:2], step[2][1:]))
            found += [(*case.steps[:i], one, *case.steps[i + 1 :]) for one in shorter]
    return [replace(case, steps=steps) for steps in found]
