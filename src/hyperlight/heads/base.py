"""The base class of heads."""

from __future__ import annotations

import copy
from abc import ABCMeta, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import ConfigurationError
from ..init import Initialization
from ..targets import Target
from .weights import Weight, split_flat, sums

# How many entries of a tensor its spread is measured on: enough for about 3 %.
SAMPLE = 512


_H = TypeVar("_H", bound=nn.Module)


class Head(nn.Module, metaclass=ABCMeta):
    """The base class of heads. A head is built once, by the hypernetwork that takes it.

    Attributes:
        features: the number of features ``K`` it reads; 0 before it is built.
        shapes: the shape of every tensor it predicts, by name, in order.
        outer_product_gradients: the parameters that ``forward`` multiplies by
            :func:`hyperlight.optim.dense_product`. Their gradients can be kept as two factors,
            which :func:`~hyperlight.exchange_factors` sends between processes.
        stands_alone: whether it predicts without theta0. If not, only :meth:`change` and
            :meth:`add_to` can be called.
    """

    features: int
    shapes: dict[str, torch.Size]
    outer_product_gradients: tuple[str, ...] = ()
    stands_alone: bool = True

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

    def fit(self, primary: nn.Module, targets: Sequence[Target]) -> None:
        """Learn what it needs to know of the primary; called by ``hypernetize`` before it is built.

        Optional.
        """

    def calibrate(self, features: Tensor, init: Initialization) -> None:
        """Scale the parameters to that root mean square of the predictions over ``features``.

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

    def excerpt(self, rows: int) -> tuple[Head, dict[str, Tensor]]:
        """A head for a part of the entries, and which ones: flat indices into tensors, by name.

        Its last layer has about so many of the rows; all other parameters are those of this
        head. Tensors that are not named are predicted whole. Optional: it makes measurements
        cheaper.
        """
        return self, {}

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
        """The predicted tensors alone, ``{name: (...) + shape}``, in order.

        Raises:
            ConfigurationError: the head needs theta0: see :meth:`change`.
        """
        parts = split_flat(self(features), list(self.shapes.values()))
        return dict(zip(self.shapes, parts, strict=True))

    def change(self, theta0: Mapping[str, Tensor], features: Tensor) -> dict[str, Tensor]:
        """What is added to theta0, ``{name: (...) + shape}``, in order.

        The same as :meth:`predict`, but for heads whose change depends on theta0.

        Args:
            theta0: a tensor for every name in ``self.shapes``.
            features: ``(..., K)``.
        """
        return self.predict(features)

    def add_to(self, theta0: Mapping[str, Tensor], features: Tensor) -> dict[str, Weight]:
        r"""The weights :math:`\theta = \theta^0 + h(\gamma)`: ``{name: (...) + shape}``, in order.

        Args:
            theta0: a tensor for every name in ``self.shapes``, whose dtype the weight keeps.
            features: ``(..., K)``.
        """
        own = [theta0[name] for name in self.shapes]
        return dict(zip(self.shapes, sums(own, self(features)), strict=True))

    def extra_repr(self) -> str:
        if not self.features:
            return "not built"
        total = sum(shape.numel() for shape in self.shapes.values())
        return f"features={self.features}, predictions={total:,}"


def shallow(head: _H) -> _H:
    """A copy of a head with the same parameters."""
    return copy.deepcopy(head, {id(p): p for p in head.parameters()})


def some_rows(count: int, most: int, device: torch.device) -> Tensor:
    """So many of the numbers below ``count``, in order; always the same ones."""
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most]
    return drawn.sort().values.to(device)


def ratio(wanted: float, measured: Tensor) -> float:
    """The factor that brings predictions of that root mean square to the wanted one."""
    found = float(measured)
    return wanted / found if found > 0.0 else 0.0
