"""Primaries that the tests share: every way in which a module may hold and use its weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

# Dynamo of older releases breaks the graph where a bound module takes over the attributes of its
# original; the compiled model is right there, in several graphs.
one_graph = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13),
    reason="torch.compile makes one graph of a bound module from PyTorch 2.13 on",
)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )


class Gives(nn.Module):
    """Returns what it was made with, whatever it is given."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Any:
        return self.value


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(3, 4, num_layers=2, batch_first=True)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0])


class Tied(nn.Module):
    """An embedding whose weight is the output layer's as well."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.embed((x[..., 0].abs() * 7).long() % 6)))


class Aliased(nn.Module):
    """One module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class BoundMethod(nn.Module):
    """Keeps a bound method of itself, of a child, and a partial of one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.step = self._step
        self.call = self.linear.forward
        self.twice = functools.partial(self._scaled, 2.0, layer=self.linear)

    def _step(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))

    def _scaled(self, factor: float, x: Tensor, layer: nn.Module) -> Tensor:
        return factor * layer(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(self.call(self.step(x)))


class Containers(nn.Module):
    """Uses its children and parameters through a list, a dict, a tuple and a set."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.gain = nn.Parameter(torch.ones(3))
        self.blocks = [self.a, self.b]
        self.by_name = {"a": [self.a], "gain": self.gain}
        self.pair = (self.b, "b")
        self.group = {self.a}

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        for block in self.group:
            x = block(x)
        return self.by_name["a"][0](x) * self.by_name["gain"] + self.pair[0](x)


class BackReference(nn.Module):
    """A child without weights that reaches back for its parent's."""

    class Reader(nn.Module):
        def __init__(self, parent: nn.Module) -> None:
            super().__init__()
            self.parent = (parent,)

        def forward(self, x: Tensor) -> Tensor:
            return self.parent[0].linear(x)

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.reader = self.Reader(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(torch.tanh(self.linear(x)))


class Lists(nn.Module):
    """Parameters in ParameterList and ParameterDict."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(3, 3), torch.randn(3, 3)])
        self.named = nn.ParameterDict({"bias": torch.randn(3)})

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = torch.tanh(x @ weight)
        return x + self.named["bias"]


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


class OtherMethods(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 2), nn.Linear(2, 3)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encode(x))


def vectors() -> Tensor:
    return torch.randn(4, 3)


def sequences() -> Tensor:
    return torch.randn(2, 5, 3)


# name -> (make the primary, make its input)
PRIMARIES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (mlp, vectors),
    "convolutional": (convolutional, lambda: torch.randn(4, 1, 4, 4)),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(1, 2, 3), nn.Conv2d(2, 1, 1)),
        lambda: torch.randn(2, 1, 4, 4),
    ),
    "lstm": (lambda: Recurrent(nn.LSTM), sequences),
    "gru": (lambda: Recurrent(nn.GRU), sequences),
    "rnn": (lambda: Recurrent(nn.RNN), sequences),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(3, 1, 6, dropout=0.0, batch_first=True),
        sequences,
    ),
    "tied": (Tied, vectors),
    "aliased": (Aliased, vectors),
    "weight norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2)),
        vectors,
    ),
    "old weight norm": (
        lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2)),
        vectors,
    ),
    "bound method": (BoundMethod, vectors),
    "containers": (Containers, vectors),
    "back reference": (BackReference, vectors),
    "parameter lists": (Lists, vectors),
    "checkpointed": (Checkpointed, vectors),
    "other methods": (OtherMethods, vectors),
}
