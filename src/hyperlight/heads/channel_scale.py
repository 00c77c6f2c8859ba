"""A head that scales the output channels of theta0."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._torch import ConvTranspose, is_sharded
from ..errors import ConfigurationError, listed, sharded
from ..init import Initialization
from ..targets import Target, attribute
from .rows import Rows
from .weights import ScaledWeight, Weight, sums


class ChannelScale(Rows):
    r"""Scales the output channels of every weight, and changes biases: FiLM as a head.

    .. math:: \theta = \theta^0 (1 + s), \quad s = W f

    There is one number :math:`s` for each output channel of a tensor with two or more dimensions.
    Biases, and all tensors with fewer dimensions, are predicted as :class:`Dense` does. So every
    layer's outputs are scaled and shifted, as FiLM does (Perez et al. 2018, arXiv:1709.07871), and
    the network stays as it is. It has ``K`` parameters for each channel and each bias. With one
    set of weights per sample, linear layers, convolutions, embeddings and attention run once with
    :math:`\theta^0`, and their outputs are scaled.

    The change follows :math:`\theta^0`, so this head works with ``residual=True`` alone. It cannot
    change a weight that is all zero.

    Initialisation: ``"relative"`` gives :math:`s` the root mean square 0.1, so each tensor's
    change has a tenth of its scale. All others set :math:`s` itself: ``"fan_out"`` makes the norm
    of a tensor's scales :math:`\sqrt 2` in expectation. With ``"zero"`` the model starts as the
    primary, bit for bit.

    Args:
        channels: for weights whose output channels are not in their first dimension: that
            dimension and a number of groups, by name. :func:`~hyperlight.hypernetize` knows those
            of transposed convolutions and embeddings (``(1, groups)``), and of GPT-2's Conv1D.

    Shape:
        ``(..., K)`` to one number for every output channel and every bias.

    Raises:
        ConfigurationError: :math:`\theta^0` is zero, or it is used without a primary.

    Warns:
        UserWarning: a weight is zero and trainable. It is scaled once it has been trained.

    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> model = hl.hypernetize(net, {"level": hl.Uniform(0.0, 1.0)}, head=hl.ChannelScale())
    >>> model.hypernet.head.weight.shape[0] == (8 + 8) + (4 + 4)
    True
    >>> ratio = model.predict(level=0.3)["0.weight"] / net[0].weight
    >>> torch.allclose(ratio, ratio[:, :, :1, :1].expand_as(ratio))
    True
    """

    stands_alone = False

    def __init__(self, channels: Mapping[str, Sequence[int]] | None = None) -> None:
        super().__init__()
        self.channels: dict[str, tuple[int, int]] = {}
        for name, place in ({} if channels is None else channels).items():
            found = tuple(place) if isinstance(place, Sequence) else ()
            if len(found) != 2 or not all(type(n) is int for n in found):
                raise ConfigurationError(
                    f"ChannelScale(channels={{{name!r}: {place!r}}}): expected the dimension of "
                    "the output channels and a number of groups, as in {'up.weight': (1, 1)}."
                )
            self.channels[name] = (found[0], found[1])

    def config(self) -> dict[str, Any]:
        return {"channels": {name: list(place) for name, place in self.channels.items()} or None}

    def fit(self, primary: nn.Module, targets: Sequence[Target]) -> None:
        for target in targets:
            layer = attribute(primary, target.name.rpartition(".")[0])
            groups = _groups_of(layer)
            if groups is not None and len(target.shape) > 1:
                self.channels.setdefault(target.name, (1, groups))
        _check_zeros(primary, [target for target in targets if len(target.shape) > 1])

    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        for name, (dim, groups) in self.channels.items():
            shape = self.shapes.get(name, (1, 1))
            fits = 0 <= dim < len(shape) and groups > 0
            if not fits or (groups > 1 and (dim == 0 or shape[dim - 1] % groups)):
                raise ConfigurationError(
                    f"ChannelScale(channels={{{name!r}: {(dim, groups)}}}) does not fit the shape "
                    f"{tuple(shape)}: expected a dimension of it, and a number of groups that "
                    "divides the dimension before."
                )
        super().make(dtype, device)

    def _place(self, name: str) -> tuple[int, int]:
        return self.channels.get(name, (0, 1))

    def _count(self, name: str) -> int:
        shape, (dim, groups) = self.shapes[name], self._place(name)
        return shape[dim] * groups if len(shape) > 1 else shape.numel()

    def _std(self, name: str, init: Initialization) -> float:
        if len(self.shapes[name]) < 2:
            return super()._std(name, init)
        return init.relative_std(name, torch.Size([self._count(name)]))

    def forward(self, features: Tensor) -> Tensor:
        raise ConfigurationError(
            "ChannelScale multiplies theta0, so it predicts nothing by itself. Use it in "
            "hl.hypernetize(primary, ..., head=hl.ChannelScale()) and call the model or "
            "model.predict. The change alone is head.change(theta0, features)."
        )

    def _scales(self, features: Tensor) -> list[tuple[str, Tensor]]:
        if is_sharded(self):
            raise sharded("The ChannelScale head is")
        return list(self._split_rows(F.linear(features, self.weight), -1))

    def change(self, theta0: Mapping[str, Tensor], features: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, code in self._scales(features):
            if len(self.shapes[name]) < 2:
                found[name] = code.reshape(code.shape[:-1] + self.shapes[name])
            else:
                own = theta0[name]
                scale = ScaledWeight(own, code.to(own.dtype), *self._place(name)).spread()
                found[name] = own * scale
        return found

    def add_to(self, theta0: Mapping[str, Tensor], features: Tensor) -> dict[str, Weight]:
        weights: dict[str, Weight] = {}
        for name, code in self._scales(features):
            own = theta0[name]
            if len(self.shapes[name]) < 2:
                (weights[name],) = sums([own], code)
            else:
                weights[name] = ScaledWeight(own, code.to(own.dtype), *self._place(name))
        return weights


def _groups_of(layer: Any) -> int | None:
    """The groups of a layer with its output channels in dimension 1; None for all others."""
    if isinstance(layer, ConvTranspose):
        return layer.groups
    other = (type(layer).__module__, type(layer).__qualname__)
    turned = other == ("transformers.pytorch_utils", "Conv1D")
    return 1 if turned or isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) else None


def _check_zeros(primary: nn.Module, targets: Sequence[Target]) -> None:
    """Refuse weights that are zero and stay so, and warn of those that may be trained."""
    zeros: dict[str, bool] = {}
    for target in targets:
        weight = attribute(primary, target.name)
        if not weight.is_meta and weight.numel() and not bool(weight.detach().any()):
            zeros[target.name] = weight.requires_grad
    frozen = [name for name, trained in zeros.items() if not trained]
    if frozen:
        raise ConfigurationError(
            f"ChannelScale multiplies theta0, and {listed(frozen)} is all zero and frozen, so "
            "nothing can change it. Use another head for it, as in "
            f"head={{{frozen[0]!r}: hl.Dense(), '*': hl.ChannelScale()}}, or leave it out with "
            "targets=..."
        )
    if zeros:
        warnings.warn(
            f"ChannelScale multiplies theta0, and {listed(zeros)} is all zero: it does not depend "
            "on the inputs before it has been trained. If it should, use another head for it, as "
            f"in head={{{next(iter(zeros))!r}: hl.Dense(), '*': hl.ChannelScale()}}.",
            stacklevel=4,
        )
