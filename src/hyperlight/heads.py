r"""Heads: the last layer of a hypernetwork, and the sum of theta0 and the change it predicts.

A head maps features ``(..., K)`` to one flat vector ``(..., P)``: the predicted tensors,
flattened and concatenated. To write your own, subclass :class:`Head`. :meth:`~Head.make` makes
the parameters once the sizes are known, :meth:`~Head.reset_parameters` draws them, and
``forward`` uses them.
"""

from __future__ import annotations

import copy
import fnmatch
import math
from abc import ABCMeta, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._torch import is_sharded, pytree
from .errors import ConfigurationError, check_integer, did_you_mean, listed, sharded
from .init import Initialization
from .optim import dense_product, is_ordinary
from .precision import rms, widest

# How many entries of a tensor its spread is measured on: enough for about 3 %.
_SAMPLE = 512


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
            (self._dense,) = _sums([self.theta0], (self.left @ self.right).flatten(-2))
        return self._dense

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

Weight = Tensor | LowRankWeight


def dense(weight: Weight) -> Tensor:
    """The weight as a tensor."""
    return weight.dense() if isinstance(weight, LowRankWeight) else weight


class Head(nn.Module, metaclass=ABCMeta):
    """The base class of heads. A head is built once, by the hypernetwork that takes it.

    Attributes:
        features: the number of features ``K`` it reads; 0 before it is built.
        shapes: the shape of every tensor it predicts, by name, in order.
        outer_product_gradients: the parameters that ``forward`` multiplies by
            :func:`hyperlight.optim.dense_product`. Their gradients can be kept as two factors,
            which :func:`~hyperlight.exchange_factors` sends between processes.
    """

    features: int
    shapes: dict[str, torch.Size]
    outer_product_gradients: tuple[str, ...] = ()

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

    # --- to be written by a head --------------------------------------------------------

    @abstractmethod
    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        """Make the parameters for ``self.features`` and ``self.shapes``, without filling them."""

    @abstractmethod
    def reset_parameters(
        self, init: Initialization, generator: torch.Generator | None = None
    ) -> None:
        """Draw the parameters so that the predictions have standard deviation
        ``init.std(name, shape)`` for features of norm 1.
        """

    def calibrate(self, features: Tensor, init: Initialization) -> None:
        """Scale the parameters so that the predictions have that deviation over ``features``.

        Called after :meth:`reset_parameters` for initialisations that are ``measured``, such as
        ``"relative"``. Optional.

        Shape:
            ``features`` is ``(S, K)``: what the trunk gives for draws of the inputs.
        """
        raise ConfigurationError(
            f"init={type(init).__name__} sets the spread that is measured over the inputs, which "
            f"the head {type(self).__name__} cannot be scaled to: it has no method "
            "calibrate(features, init). Write one, or use init='fan_out' or 'zero'."
        )

    def parameter_count(self, name: str) -> int | None:
        """The number of parameters that serve one predicted tensor alone; None if shared."""
        return None

    def config(self) -> dict[str, Any] | None:
        """The arguments of the constructor as JSON holds them; None if it cannot.

        Written by :func:`~hyperlight.save` and compared by :func:`~hyperlight.load`.
        """
        return None

    # --- what follows from these --------------------------------------------------------

    @property
    def calibrates(self) -> bool:
        """Whether it has a :meth:`calibrate`, which ``init="relative"`` needs."""
        return type(self).calibrate is not Head.calibrate

    def predict(self, features: Tensor) -> dict[str, Tensor]:
        """The predicted tensors alone, ``{name: (...) + shape}``, in order."""
        parts = _split(self(features), list(self.shapes.values()))
        return dict(zip(self.shapes, parts, strict=True))

    def add_to(self, theta0: Mapping[str, Tensor], features: Tensor) -> dict[str, Weight]:
        r"""The weights :math:`\theta = \theta^0 + h(\gamma)`: ``{name: (...) + shape}``, in order.

        Args:
            theta0: a tensor for every name in ``self.shapes``, whose dtype the weight keeps.
            features: ``(..., K)``.
        """
        own = [theta0[name] for name in self.shapes]
        return dict(zip(self.shapes, _sums(own, self(features)), strict=True))

    def extra_repr(self) -> str:
        if not self.features:
            return "not built"
        total = sum(shape.numel() for shape in self.shapes.values())
        return f"features={self.features}, predictions={total:,}"


# --- the sum ----------------------------------------------------------------------------


def _split(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Cut ``(..., P)`` into tensors of shape ``(...) + shape``."""
    parts = torch.split(flat, [shape.numel() for shape in shapes], dim=-1)
    return [part.view(flat.shape[:-1] + shape) for part, shape in zip(parts, shapes, strict=True)]


def _sums(theta0: Sequence[Tensor], flat: Tensor) -> Sequence[Tensor]:
    """Add to every tensor its part of the flat change ``(..., P)``.

    One node of autograd's graph in place of three for every tensor.
    """
    if not is_ordinary(flat, *theta0):
        parts = _split(flat, [own.shape for own in theta0])
        return [own + part.to(own.dtype) for own, part in zip(theta0, parts, strict=True)]
    if all(own.dtype == flat.dtype for own in theta0):
        sums: tuple[Tensor, ...] = _Sums.apply(flat, *theta0)  # type: ignore[no-untyped-call]
        return sums
    pieces = torch.split(flat, [own.numel() for own in theta0], dim=-1)
    pairs = zip(theta0, pieces, strict=True)
    return [_Sums.apply(piece.to(own.dtype), own)[0] for own, piece in pairs]  # type: ignore[no-untyped-call]


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flat: Tensor, *theta0: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.shapes = [own.shape for own in theta0]
        ctx.save_for_backward(flat[..., :0])
        return tuple(map(torch.add, theta0, _split(flat, ctx.shapes)))

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
            totals = _split(by_flat.flatten(0, -2).sum(0), ctx.shapes)
            pairs = zip(gradients, totals, strict=True)
            by_theta0 = tuple(None if g is None else total for g, total in pairs)
        wanted = zip(by_theta0, needed[1:], strict=True)
        return by_flat if needed[0] else None, *(g if need else None for g, need in wanted)


# --- the heads --------------------------------------------------------------------------


def _ratio(wanted: float, measured: Tensor) -> float:
    """The factor that brings predictions of that root mean square to the wanted one."""
    found = float(measured)
    return wanted / found if found > 0.0 else 0.0


class _Rows(Head):
    """A head whose weight has rows of its own for every predicted tensor."""

    weight: nn.Parameter

    def _count(self, name: str) -> int:
        return self.shapes[name].numel()

    def _split_rows(self, rows: Tensor, dim: int) -> Iterable[tuple[str, Tensor]]:
        counts = [self._count(name) for name in self.shapes]
        return zip(self.shapes, torch.split(rows, counts, dim=dim), strict=True)

    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        total = sum(map(self._count, self.shapes))
        self.weight = nn.Parameter(torch.empty(total, self.features, dtype=dtype, device=device))

    @torch.no_grad()
    def reset_parameters(
        self, init: Initialization, generator: torch.Generator | None = None
    ) -> None:
        for name, block in self._split_rows(self.weight, 0):
            self._draw(name, block, init.std(name, self.shapes[name]), generator)

    def _draw(
        self, name: str, block: Tensor, std: float, generator: torch.Generator | None
    ) -> None:
        block.normal_(0.0, std, generator=generator)

    @torch.no_grad()
    def calibrate(self, features: Tensor, init: Initialization) -> None:
        for name, block in self._split_rows(self.weight, 0):
            self._scale(name, block, init.std(name, self.shapes[name]), features)

    def _scale(self, name: str, block: Tensor, std: float, features: Tensor) -> None:
        block.mul_(_ratio(std, rms(F.linear(features, block[:_SAMPLE]))))

    def parameter_count(self, name: str) -> int:
        return self.features * self._count(name)


class Dense(_Rows):
    r"""One weight for every pair of feature and predicted entry: ``P x K`` of them.

    .. math:: \Delta\theta = W f

    The last layer of the paper's hypernetwork (eq. 1), without its bias: the primary's own
    parameters :math:`\theta^0` take its place.

    The gradient of :math:`W` is an outer product. The optimizers of :mod:`hyperlight.optim` read
    its two factors; to everything else it is dense.

    Shape:
        ``(..., K)`` to ``(..., P)``.
    """

    outer_product_gradients = ("weight",)

    def config(self) -> dict[str, Any]:
        return {}

    def add_to(self, theta0: Mapping[str, Tensor], features: Tensor) -> dict[str, Weight]:
        own = [theta0[name] for name in self.shapes]
        alike = all(t.dtype == self.weight.dtype == features.dtype for t in own)
        if features.ndim != 2 or torch.is_grad_enabled() or not alike:
            return super().add_to(theta0, features)
        if not is_ordinary(features, self.weight, *own) or torch.is_autocast_enabled("cpu"):
            return super().add_to(theta0, features)
        # Many sets of weights: product and sum in one pass.
        return {
            name: torch.addmm(theta0[name].flatten(), features, block.mT).view(
                len(features), *self.shapes[name]
            )
            for name, block in self._split_rows(self.weight, 0)
        }

    def forward(self, features: Tensor) -> Tensor:
        return dense_product(features, self.weight)


class LowRank(_Rows):
    r"""Predicts two thin factors of every matrix, which are multiplied.

    .. math:: \Delta\theta = A(f) B(f), \quad A \in R^{o \times r}, B \in R^{r \times i}

    A tensor with more than one dimension counts as a matrix of its first dimension by all others.
    Vectors, and matrices that the factors would not make smaller, are predicted as :class:`Dense`
    does. With one set of weights per sample, the matrices of linear layers are never multiplied
    out.

    Both factors are linear in the features, so the prediction grows with the square of their
    norm, which MIP keeps constant.

    Args:
        rank: ``r``.

    Shape:
        ``(..., K)`` to ``(..., P)``; ``K`` parameters for every entry of a factor.

    >>> head = hl.LowRank(4)
    >>> net = hl.HyperNet({"z": hl.Normal(2)}, {"w": (512, 256)}, head=head)
    >>> net(z=torch.zeros(2))["w"].shape, net.head.weight.shape[0] == 4 * (512 + 256)
    (torch.Size([512, 256]), True)
    """

    def __init__(self, rank: int = 8) -> None:
        super().__init__()
        check_integer("LowRank(rank={})", rank)
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
        return self.rank * sum(matrix) if matrix else super()._count(name)

    def _draw(
        self, name: str, block: Tensor, std: float, generator: torch.Generator | None
    ) -> None:
        """Draw the right factor as a layer would, with variance 1 / columns, and the left factor
        with the variance that gives the product its deviation. With ``init="zero"`` the left one
        is zero, and the right one keeps its gradient alive.
        """
        matrix = self._matrix(name)
        if matrix is None:
            return super()._draw(name, block, std, generator)
        rows, columns = matrix
        left, right = torch.split(block, [self.rank * rows, self.rank * columns])
        left.normal_(0.0, std * math.sqrt(columns / self.rank), generator=generator)
        right.normal_(0.0, columns**-0.5, generator=generator)

    def _scale(self, name: str, block: Tensor, std: float, features: Tensor) -> None:
        matrix = self._matrix(name)
        if matrix is None:
            return super()._scale(name, block, std, features)
        left, right = self._factors(F.linear(features, block), matrix)
        # The mean square of the product's entries, from the factors' Gram matrices.
        gram = (left.mT @ left) * (right @ right.mT)
        total = gram.sum(dim=(-2, -1), dtype=widest(gram.device))
        found = (total.mean() / math.prod(matrix)).sqrt()
        block[: self.rank * matrix[0]].mul_(_ratio(std, found))

    def _factors(self, code: Tensor, matrix: tuple[int, int]) -> tuple[Tensor, Tensor]:
        rows, columns = matrix
        left, right = torch.split(code, [self.rank * rows, self.rank * columns], dim=-1)
        batch = code.shape[:-1]
        return left.reshape(*batch, rows, self.rank), right.reshape(*batch, self.rank, columns)

    def add_to(self, theta0: Mapping[str, Tensor], features: Tensor) -> dict[str, Weight]:
        if is_sharded(self):
            raise sharded("The LowRank head is")
        weights: dict[str, Weight] = {}
        for name, code in self._split_rows(F.linear(features, self.weight), -1):
            own, matrix = theta0[name], self._matrix(name)
            if matrix is None:
                (weights[name],) = _sums([own], code)
            else:
                left, right = self._factors(code, matrix)
                weights[name] = LowRankWeight(own, left.to(own.dtype), right.to(own.dtype))
        return weights

    def forward(self, features: Tensor) -> Tensor:
        parts = []
        for name, code in self._split_rows(F.linear(features, self.weight), -1):
            matrix = self._matrix(name)
            if matrix is not None:
                left, right = self._factors(code, matrix)
                code = (left @ right).flatten(-2)
            parts.append(code)
        return torch.cat(parts, dim=-1)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, {super().extra_repr()}"


class Chunked(Head):
    r"""One small layer writes every chunk of the flat vector, each through its own gate.

    .. math:: \Delta\theta_c = s \odot W (e_c \odot f)

    for the chunks :math:`c = 1, 2, ...` of ``size`` entries. :math:`W` is shared by all chunks
    (von Oswald et al. 2020 share a whole network); the embedding :math:`e_c` is learned and
    starts as random signs. It has ``size x K`` parameters, and ``K`` more for every chunk: the
    smallest head, for primaries that no other fits.

    The scale :math:`s`, one learned number per predicted tensor, holds the initialisation, since
    a chunk may span tensors that start with different deviations. A tensor that starts unchanged
    among others that do not has :math:`s = 0`.

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
        check_integer("Chunked(size={})", size)
        self.size = size

    def config(self) -> dict[str, Any]:
        return {"size": self.size}

    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        total = sum(shape.numel() for shape in self.shapes.values())
        size = min(self.size, total)
        chunks = -(-total // size)

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, dtype=dtype, device=device))

        self.weight = empty(size, self.features)
        self.embedding = empty(chunks, self.features)
        self.scale = empty(len(self.shapes))

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

    def forward(self, features: Tensor) -> Tensor:
        chunks = F.linear(features.unsqueeze(-2) * self.embedding, self.weight).flatten(-2)
        pairs = zip(self.scale, self.shapes.values(), strict=True)
        scale = torch.cat([one.expand(shape.numel()) for one, shape in pairs])
        return chunks[..., : len(scale)] * scale

    def extra_repr(self) -> str:
        return f"size={self.size}, {super().extra_repr()}"


class Mixed(Head):
    """Several heads, each for the tensors that match its pattern; the first match counts.

    Made if ``head`` is a mapping: ``head={"*attn*": hl.LowRank(8), "*": hl.Dense()}``.

    Args:
        heads: heads by glob over names.
    """

    def __init__(self, heads: Mapping[str, Head]) -> None:
        super().__init__()
        expected = (
            "expected globs over names and heads, as in "
            "head={'*attn*': hl.LowRank(8), '*': hl.Dense()}."
        )
        for pattern, head in heads.items():
            if not isinstance(pattern, str) or not isinstance(head, Head):
                raise ConfigurationError(f"head held {pattern!r}: {head!r}; {expected}")
        if not heads:
            raise ConfigurationError(f"head was an empty mapping; {expected}")
        self.patterns = tuple(heads)
        self.parts = nn.ModuleList(copy.deepcopy(head) for head in heads.values())

    def heads(self) -> list[Head]:
        """The heads, in the order of their patterns."""
        return [part for part in self.parts if isinstance(part, Head)]

    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        taken: dict[str, dict[str, torch.Size]] = {pattern: {} for pattern in self.patterns}
        for name, shape in self.shapes.items():
            pattern = next((p for p in self.patterns if fnmatch.fnmatchcase(name, p)), None)
            if pattern is None:
                raise ConfigurationError(
                    f"No pattern of head={{...}} matches {name!r}; the patterns are "
                    f"{listed(self.patterns)}. Add '*' for all that is left."
                )
            taken[pattern][name] = shape
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

    def add_to(self, theta0: Mapping[str, Tensor], features: Tensor) -> dict[str, Weight]:
        if is_sharded(self):
            raise sharded("A head of several is")
        weights: dict[str, Weight] = {}
        for head in self.heads():
            weights |= head.add_to(theta0, features)
        return {name: weights[name] for name in self.shapes}

    def forward(self, features: Tensor) -> Tensor:
        predicted: dict[str, Tensor] = {}
        for head in self.heads():
            predicted |= head.predict(features)
        batch = features.shape[:-1]
        return torch.cat([predicted[name].reshape(*batch, -1) for name in self.shapes], dim=-1)

    def extra_repr(self) -> str:
        return f"patterns={list(self.patterns)}"


def find_head(head: Head | Mapping[str, Head]) -> Head:
    """A copy of the given head, or of the given heads by pattern as one."""
    if isinstance(head, Mapping):
        return Mixed(head)
    if not isinstance(head, Head):
        raise ConfigurationError(
            f"head was {head!r}; expected a Head such as Dense() (with the brackets), or a "
            "mapping of globs to heads, as in {'*attn*': hl.LowRank(8), '*': hl.Dense()}."
        )
    return copy.deepcopy(head)
