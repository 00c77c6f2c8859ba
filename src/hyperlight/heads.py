"""Heads: the last, linear layer of a hypernetwork, which writes all predictions.

A head maps features ``(..., K)`` to one flat vector ``(..., P)`` that holds the
predicted tensors one behind another (design D4). To write your own, subclass
:class:`Head`: :meth:`~Head.make` makes the parameters once the sizes are known,
:meth:`~Head.reset_parameters` draws them, ``forward`` uses them.
"""

from __future__ import annotations

import copy
import fnmatch
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import ConfigurationError, did_you_mean, listed
from .factored import dense_product
from .init import Initialization
from .precision import rms, widest

__all__ = ["Chunked", "Dense", "Factors", "Head", "LowRank", "Mixed", "find_head"]

# Entries of a tensor that its spread is measured on: known to about 3 % from so many.
_SAMPLE = 512


class Factors(NamedTuple):
    """A predicted matrix that is not multiplied out: ``left @ right``, reshaped.

    Attributes:
        left: ``(..., rows, rank)``.
        right: ``(..., rank, columns)``.
        shape: of the predicted tensor, whose first dimension are the rows.
    """

    left: Tensor
    right: Tensor
    shape: torch.Size

    def dense(self) -> Tensor:
        """The tensor itself, ``(...) + shape``."""
        product = self.left @ self.right
        return product.reshape(product.shape[:-2] + self.shape)


class Head(nn.Module, ABC):
    """The base class of heads. A head is built once, by the hypernetwork that takes it.

    Attributes:
        features: the number of features ``K`` it reads; 0 before it is built.
        shapes: the shape of every tensor it predicts, by name, in order.
    """

    features: int
    shapes: dict[str, torch.Size]

    def __init__(self) -> None:
        super().__init__()
        self.features = 0
        self.shapes = {}

    def build(
        self,
        features: int,
        shapes: Mapping[str, torch.Size],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Take the sizes and make the parameters."""
        if self.features:
            raise ConfigurationError(
                f"This {type(self).__name__} head is built already. Give every hypernetwork a "
                f"head of its own: head={type(self).__name__}(...)."
            )
        self.features = features
        self.shapes = dict(shapes)
        self.make(dtype, device)

    @abstractmethod
    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        """Make the parameters for ``self.features`` and ``self.shapes``, without filling them."""

    @abstractmethod
    def reset_parameters(
        self, init: Initialization, generator: torch.Generator | None = None
    ) -> None:
        """Draw the parameters such that the predictions have the spread ``init.std(name, shape)``
        for features of norm 1.
        """

    def calibrate(self, features: Tensor, init: Initialization) -> None:
        """Scale the parameters such that the predictions have that spread over ``features``.

        Called after :meth:`reset_parameters` for initialisations that are ``measured``.

        Shape:
            ``features`` is ``(S, K)``: what the trunk gives for draws of the inputs.
        """
        raise ConfigurationError(
            f"init={type(init).__name__} sets the spread that is measured over the inputs, which "
            f"the head {type(self).__name__} cannot be scaled to: it has no method "
            "calibrate(features, init). Write one, or use init='fan_out' or 'zero'."
        )

    @property
    def calibrates(self) -> bool:
        """Whether it has a :meth:`calibrate`, which ``init="relative"`` needs."""
        return type(self).calibrate is not Head.calibrate

    def parameter_count(self, name: str) -> int | None:
        """The parameters that one predicted tensor has alone; None where they are shared."""
        return None

    def predict(self, features: Tensor) -> dict[str, Tensor]:
        """The predicted tensors, ``{name: (...) + shape}``, in order."""
        flat = self(features)
        parts = torch.split(flat, [shape.numel() for shape in self.shapes.values()], dim=-1)
        batch_shape = flat.shape[:-1]
        return {
            name: part.reshape(batch_shape + shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def factored(self, features: Tensor) -> Mapping[str, Tensor | Factors]:
        """As :meth:`predict`, with matrices of low rank left as their factors."""
        return self.predict(features)

    def config(self) -> dict[str, Any] | None:
        """The arguments of the constructor, as JSON holds them; None where it cannot.

        Kept by :func:`~hyperlight.save` and compared by :func:`~hyperlight.load`.
        """
        return None

    def extra_repr(self) -> str:
        if not self.features:
            return "not built"
        total = sum(shape.numel() for shape in self.shapes.values())
        return f"features={self.features}, predictions={total:,}"


def _ratio(wanted: float, measured: Tensor) -> float:
    """What brings predictions of that root mean square to the wanted one."""
    found = float(measured)
    return wanted / found if found > 0.0 else 0.0


class Dense(Head):
    r"""One weight for every pair of feature and predicted entry: ``P x K`` of them.

    .. math:: \Delta\theta = W f

    There is no bias: the primary's own parameters :math:`\theta^0` are it
    (design D1).

    The gradient of :math:`W` is an outer product. For the optimizers of :mod:`hyperlight.optim` it
    stays one (design D6); to all others it is dense.

    Shape:
        ``(..., K)`` to ``(..., P)``.
    """

    weight: nn.Parameter

    def config(self) -> dict[str, Any]:
        return {}

    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        total = sum(shape.numel() for shape in self.shapes.values())
        self.weight = nn.Parameter(torch.empty(total, self.features, dtype=dtype, device=device))

    def _blocks(self) -> Iterable[tuple[str, torch.Size, Tensor]]:
        rows = torch.split(self.weight, [shape.numel() for shape in self.shapes.values()])
        return zip(self.shapes, self.shapes.values(), rows, strict=True)

    @torch.no_grad()
    def reset_parameters(
        self, init: Initialization, generator: torch.Generator | None = None
    ) -> None:
        for name, shape, block in self._blocks():
            block.normal_(0.0, init.std(name, shape), generator=generator)

    @torch.no_grad()
    def calibrate(self, features: Tensor, init: Initialization) -> None:
        for name, shape, block in self._blocks():
            found = rms(F.linear(features, block[:_SAMPLE]))
            block.mul_(_ratio(init.std(name, shape), found))

    def parameter_count(self, name: str) -> int:
        return self.features * self.shapes[name].numel()

    def forward(self, features: Tensor) -> Tensor:
        return dense_product(features, self.weight)


class LowRank(Head):
    r"""Predicts two thin factors of every matrix, which are multiplied.

    .. math:: \Delta\theta = A(f) B(f), \quad A \in R^{o \times r}, B \in R^{r \times i}

    A tensor of more than one dimension counts as the matrix of its first dimension
    against the others. Vectors, and matrices that the factors would not make smaller, are
    predicted as :class:`Dense` does. With one set of weights per sample the matrices of
    linear layers are never multiplied out.

    As both factors are linear in the features, the prediction grows with the square of
    their norm, which MIP keeps constant.

    Args:
        rank: ``r``.

    Shape:
        ``(..., K)`` to ``(..., P)``; ``K`` parameters for every entry of a factor.

    >>> head = hl.LowRank(4)
    >>> net = hl.HyperNet({"z": hl.Normal(2)}, {"w": (512, 256)}, head=head)
    >>> net(z=torch.zeros(2))["w"].shape, net.head.weight.shape[0] == 4 * (512 + 256)
    (torch.Size([512, 256]), True)
    """

    weight: nn.Parameter

    def __init__(self, rank: int = 8) -> None:
        super().__init__()
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise ConfigurationError(f"LowRank(rank={rank!r}): expected a positive integer.")
        self.rank = rank

    def config(self) -> dict[str, Any]:
        return {"rank": self.rank}

    def _matrix(self, name: str) -> tuple[int, int] | None:
        """Rows and columns of a tensor that is predicted by its factors."""
        shape = self.shapes[name]
        if len(shape) < 2:
            return None
        rows, columns = shape[0], math.prod(shape[1:])
        return (rows, columns) if self.rank * (rows + columns) < rows * columns else None

    def _count(self, name: str) -> int:
        matrix = self._matrix(name)
        return self.rank * sum(matrix) if matrix else self.shapes[name].numel()

    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        total = sum(self._count(name) for name in self.shapes)
        self.weight = nn.Parameter(torch.empty(total, self.features, dtype=dtype, device=device))

    def _blocks(self) -> Iterable[tuple[str, Tensor]]:
        rows = torch.split(self.weight, [self._count(name) for name in self.shapes])
        return zip(self.shapes, rows, strict=True)

    @torch.no_grad()
    def reset_parameters(
        self, init: Initialization, generator: torch.Generator | None = None
    ) -> None:
        """The right factor starts as a layer would, with variance 1 / columns, the left one with
        what brings the product to its spread: at zero for ``init="zero"``, where the right one
        keeps its gradient alive.
        """
        for name, block in self._blocks():
            std = init.std(name, self.shapes[name])
            matrix = self._matrix(name)
            if matrix is None:
                block.normal_(0.0, std, generator=generator)
                continue
            rows, columns = matrix
            left, right = torch.split(block, [self.rank * rows, self.rank * columns])
            left.normal_(0.0, std * math.sqrt(columns / self.rank), generator=generator)
            right.normal_(0.0, columns**-0.5, generator=generator)

    @torch.no_grad()
    def calibrate(self, features: Tensor, init: Initialization) -> None:
        for name, block in self._blocks():
            std = init.std(name, self.shapes[name])
            matrix = self._matrix(name)
            if matrix is None:
                block.mul_(_ratio(std, rms(F.linear(features, block[:_SAMPLE]))))
                continue
            left, right = self._factors(F.linear(features, block), matrix)
            # The mean square of the product's entries, from the factors' Gram matrices.
            gram = (left.mT @ left) * (right @ right.mT)
            total = gram.sum(dim=(-2, -1), dtype=widest(gram.device))
            found = (total.mean() / math.prod(matrix)).sqrt()
            block[: self.rank * matrix[0]].mul_(_ratio(std, found))

    def _factors(self, code: Tensor, matrix: tuple[int, int]) -> tuple[Tensor, Tensor]:
        rows, columns = matrix
        left, right = torch.split(code, [self.rank * rows, self.rank * columns], dim=-1)
        batch_shape = code.shape[:-1]
        return (
            left.reshape((*batch_shape, rows, self.rank)),
            right.reshape((*batch_shape, self.rank, columns)),
        )

    def parameter_count(self, name: str) -> int:
        return self.features * self._count(name)

    def factored(self, features: Tensor) -> dict[str, Tensor | Factors]:
        codes = F.linear(features, self.weight)
        parts = torch.split(codes, [self._count(name) for name in self.shapes], dim=-1)
        predicted: dict[str, Tensor | Factors] = {}
        for (name, shape), part in zip(self.shapes.items(), parts, strict=True):
            matrix = self._matrix(name)
            if matrix is None:
                predicted[name] = part.reshape(part.shape[:-1] + shape)
            else:
                predicted[name] = Factors(*self._factors(part, matrix), shape)
        return predicted

    def predict(self, features: Tensor) -> dict[str, Tensor]:
        return {
            name: part.dense() if isinstance(part, Factors) else part
            for name, part in self.factored(features).items()
        }

    def forward(self, features: Tensor) -> Tensor:
        return _flat(self.predict(features), features.ndim - 1)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, {super().extra_repr()}"


class Chunked(Head):
    r"""One small layer writes every chunk of the flat vector, each through its own gate.

    .. math:: \Delta\theta_c = s \odot W (e_c \odot f)

    for the chunks :math:`c = 1, 2, ...` of ``size`` entries: :math:`W` is shared by all
    chunks (von Oswald et al. 2020 share a whole network), the embedding :math:`e_c` is
    learned and starts as random signs. ``size x K`` parameters, and ``K`` for every chunk:
    the smallest head, for primaries that no other fits.

    The scale :math:`s`, one learned number per predicted tensor, holds the initialisation,
    since a chunk may lie across tensors that start with different spreads. A tensor that
    starts unchanged among others that do not has :math:`s = 0`.

    Args:
        size: the number of entries in a chunk.

    Shape:
        ``(..., K)`` to ``(..., P)``.
    """

    weight: nn.Parameter
    embedding: nn.Parameter
    scale: nn.Parameter

    def __init__(self, size: int = 4096) -> None:
        super().__init__()
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ConfigurationError(f"Chunked(size={size!r}): expected a positive integer.")
        self.size = size

    def config(self) -> dict[str, Any]:
        return {"size": self.size}

    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        total = sum(shape.numel() for shape in self.shapes.values())
        size = min(self.size, total)
        chunks = -(-total // size)

        def empty(*shape: int) -> Tensor:
            return torch.empty(*shape, dtype=dtype, device=device)

        self.weight = nn.Parameter(empty(size, self.features))
        self.embedding = nn.Parameter(empty(chunks, self.features))
        self.scale = nn.Parameter(empty(len(self.shapes)))

    @torch.no_grad()
    def reset_parameters(
        self, init: Initialization, generator: torch.Generator | None = None
    ) -> None:
        stds = [init.std(name, shape) for name, shape in self.shapes.items()]
        sizes = [shape.numel() for shape in self.shapes.values()]
        squares = [n * std**2 for n, std in zip(sizes, stds, strict=True)]
        spread = math.sqrt(sum(squares) / sum(sizes))
        self.weight.normal_(0.0, spread, generator=generator)
        self.embedding.bernoulli_(0.5, generator=generator).mul_(2.0).sub_(1.0)
        values = [std / spread if spread else 1.0 for std in stds]
        self.scale.copy_(torch.tensor(values, dtype=self.scale.dtype))

    @torch.no_grad()
    def calibrate(self, features: Tensor, init: Initialization) -> None:
        size, start = self.weight.shape[0], 0
        for index, (name, shape) in enumerate(self.shapes.items()):
            # The first entries of the tensor, from the chunks that they lie in.
            count = min(shape.numel(), _SAMPLE)
            first, last = start // size, (start + count - 1) // size + 1
            gated = features.unsqueeze(-2) * self.embedding[first:last]
            rows = F.linear(gated, self.weight).flatten(-2)
            found = rms(rows[:, start - first * size :][:, :count])
            self.scale[index] = _ratio(init.std(name, shape), found)
            start += shape.numel()

    def predict(self, features: Tensor) -> dict[str, Tensor]:
        gated = features.unsqueeze(-2) * self.embedding
        flat = F.linear(gated, self.weight).flatten(-2)
        batch_shape, start = flat.shape[:-1], 0
        predicted = {}
        for (name, shape), scale in zip(self.shapes.items(), self.scale, strict=True):
            part = flat.narrow(-1, start, shape.numel())
            predicted[name] = (part * scale).reshape(batch_shape + shape)
            start += shape.numel()
        return predicted

    def forward(self, features: Tensor) -> Tensor:
        return _flat(self.predict(features), features.ndim - 1)

    def extra_repr(self) -> str:
        return f"size={self.size}, {super().extra_repr()}"


class Mixed(Head):
    """Several heads, each for the tensors that match its pattern; the first match counts.

    Made where ``head`` is a mapping: ``head={"*attn*": hl.LowRank(8), "*": hl.Dense()}``.

    Args:
        heads: heads by glob over names.
    """

    def __init__(self, heads: Mapping[str, Head]) -> None:
        super().__init__()
        for pattern, head in heads.items():
            if not isinstance(pattern, str) or not isinstance(head, Head):
                raise ConfigurationError(
                    f"head held {pattern!r}: {head!r}; expected a glob over names and a head, as "
                    "in head={'*attn*': hl.LowRank(8), '*': hl.Dense()}."
                )
        if not heads:
            raise ConfigurationError(
                "head was an empty mapping; expected globs over names and heads, as in "
                "head={'*attn*': hl.LowRank(8), '*': hl.Dense()}."
            )
        self.patterns = tuple(heads)
        self.parts = nn.ModuleList(copy.deepcopy(head) for head in heads.values())

    def heads(self) -> list[Head]:
        """The heads, in the order of their patterns."""
        return [part for part in self.parts if isinstance(part, Head)]

    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        taken: dict[str, dict[str, torch.Size]] = {pattern: {} for pattern in self.patterns}
        for name, shape in self.shapes.items():
            for pattern in self.patterns:
                if fnmatch.fnmatchcase(name, pattern):
                    taken[pattern][name] = shape
                    break
            else:
                raise ConfigurationError(
                    f"No pattern of head={{...}} matches {name!r}; the patterns are "
                    f"{listed(self.patterns)}. Add '*' for all that is left."
                )
        for pattern, head in zip(self.patterns, self.heads(), strict=True):
            if not taken[pattern]:
                raise ConfigurationError(
                    f"The pattern {pattern!r} of head={{...}} gets none of the predicted tensors "
                    f"{listed(self.shapes)}: it matches none, or those before it took them all. "
                    f"The first match counts.{did_you_mean(pattern, self.shapes)}"
                )
            head.build(self.features, taken[pattern], dtype=dtype, device=device)

    def reset_parameters(
        self, init: Initialization, generator: torch.Generator | None = None
    ) -> None:
        for head in self.heads():
            head.reset_parameters(init, generator)

    def calibrate(self, features: Tensor, init: Initialization) -> None:
        for head in self.heads():
            head.calibrate(features, init)

    @property
    def calibrates(self) -> bool:
        return all(head.calibrates for head in self.heads())

    def head_of(self, name: str) -> Head:
        """The head that predicts the tensor of that name."""
        return next(head for head in self.heads() if name in head.shapes)

    def parameter_count(self, name: str) -> int | None:
        return self.head_of(name).parameter_count(name)

    def predict(self, features: Tensor) -> dict[str, Tensor]:
        predicted: dict[str, Tensor] = {}
        for head in self.heads():
            predicted.update(head.predict(features))
        return {name: predicted[name] for name in self.shapes}

    def factored(self, features: Tensor) -> Mapping[str, Tensor | Factors]:
        predicted: dict[str, Tensor | Factors] = {}
        for head in self.heads():
            predicted.update(head.factored(features))
        return {name: predicted[name] for name in self.shapes}

    def forward(self, features: Tensor) -> Tensor:
        return _flat(self.predict(features), features.ndim - 1)

    def extra_repr(self) -> str:
        return f"patterns={list(self.patterns)}"


def _flat(predicted: Mapping[str, Tensor], batch: int) -> Tensor:
    """The predicted tensors one behind another, after ``batch`` batch dimensions."""
    rows = [part.reshape((*part.shape[:batch], -1)) for part in predicted.values()]
    return torch.cat(rows, dim=-1)


def find_head(head: Head | Mapping[str, Head]) -> Head:
    """A head of one's own, made of what was given."""
    if isinstance(head, Mapping):
        return Mixed(head)
    if not isinstance(head, Head):
        raise ConfigurationError(
            f"head was {head!r}; expected a Head such as Dense() (with the brackets), or a "
            "mapping of globs to heads, as in {'*attn*': hl.LowRank(8), '*': hl.Dense()}."
        )
    return copy.deepcopy(head)
