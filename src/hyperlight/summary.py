"""The sizes of a model: what it holds, by part and by predicted tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from .heads import Mixed
from .hypernet import HyperNet
from .memory import ADAM_STATE, SGD_STATE, as_text

# Passes over a tensor of the size of the trained weights.
_ADAM_TRAFFIC = 7


@dataclass(frozen=True)
class Row:
    """One predicted tensor.

    Attributes:
        name: its name.
        shape: its shape.
        predicted: its number of entries.
        head: the class of the head that predicts it.
        parameters: the number of the head's parameters that serve this tensor alone; ``None``
            if the head shares its parameters between tensors.
        bytes: their size.
    """

    name: str
    shape: tuple[int, ...]
    predicted: int
    head: str
    parameters: int | None
    bytes: int | None


@dataclass(frozen=True)
class Part:
    """One part of a model.

    Attributes:
        parameters: the number of its parameters, each counted once.
        bytes: their size.
        trained: the size of those that require a gradient.
    """

    parameters: int
    bytes: int
    trained: int


@dataclass(frozen=True)
class Summary:
    """The sizes of a model; ``print`` it for a table. Made by :meth:`HyperModel.summary`.

    Activations are not counted: they depend on the batch.

    Attributes:
        rows: one for every predicted tensor.
        primary: the primary with all its parameters, predicted or not.
        trunk: the hypernetwork without its head: encoding, hidden layers and projection.
        head: its last layer.
        encoders: the networks of :class:`~hyperlight.Encoded` inputs, without parameters that
            are the primary's as well.
    """

    rows: tuple[Row, ...]
    primary: Part
    trunk: Part
    head: Part
    encoders: Part = Part(0, 0, 0)

    @property
    def _parts(self) -> tuple[Part, Part, Part, Part]:
        return self.primary, self.encoders, self.trunk, self.head

    @property
    def predicted(self) -> int:
        """The number of entries in one set of predicted weights."""
        return sum(row.predicted for row in self.rows)

    @property
    def parameters(self) -> int:
        """The number of parameters of the model."""
        return sum(part.parameters for part in self._parts)

    @property
    def bytes(self) -> int:
        """The size of the parameters."""
        return sum(part.bytes for part in self._parts)

    @property
    def sgd_bytes(self) -> int:
        """Parameters, gradients and momentum, for ``torch.optim.SGD`` with momentum."""
        return self.bytes + SGD_STATE * sum(part.trained for part in self._parts)

    @property
    def adam_bytes(self) -> int:
        """Parameters, gradients and both moments, for ``torch.optim.Adam`` or ``AdamW``."""
        return self.bytes + ADAM_STATE * sum(part.trained for part in self._parts)

    @property
    def weights_per_prediction(self) -> float:
        """The weights of the head for every predicted one, the price of the hypernetwork."""
        return self.head.parameters / self.predicted

    @property
    def adam_traffic(self) -> int:
        """The bytes that a step of Adam moves through memory at least.

        It reads weights, gradients and two moments, and writes all but the gradients.
        """
        return _ADAM_TRAFFIC * sum(part.trained for part in self._parts)

    def added_seconds(self, bandwidth: float = 1e10) -> float:
        """Estimate what the hypernetwork adds to a step of Adam with one set of weights.

        Divide it by the time of a step of your network alone to see its share. Small models take
        longer: each operation has a fixed cost, some milliseconds in all.

        Args:
            bandwidth: of the memory, in bytes per second. A CPU has some 1e10, a GPU 1e12 or more.
        """
        return _ADAM_TRAFFIC * (self.head.bytes + self.trunk.bytes) / bandwidth

    def __str__(self) -> str:
        def sizes(parameters: int, size: int) -> tuple[str, str]:
            return f"{parameters:,}", as_text(size)

        targets = [("target", "shape", "predicted", "head", "parameters", "bytes")]
        for row in self.rows:
            shape = " x ".join(map(str, row.shape)) or "scalar"
            own = ("shared", "") if row.bytes is None else sizes(row.parameters or 0, row.bytes)
            targets.append((_shortened(row.name), shape, f"{row.predicted:,}", row.head, *own))
        head = sizes(self.head.parameters, self.head.bytes)
        targets.append(("all", "", f"{self.predicted:,}", "", *head))
        parts = [
            ("part", "parameters", "bytes"),
            ("primary", *sizes(self.primary.parameters, self.primary.bytes)),
            *(
                ("encoders", *sizes(part.parameters, part.bytes))
                for part in (self.encoders,)
                if part.parameters
            ),
            ("trunk", *sizes(self.trunk.parameters, self.trunk.bytes)),
            ("head", *head),
            ("all", *sizes(self.parameters, self.bytes)),
        ]
        training = [
            ("training without activations", "bytes"),
            ("SGD with momentum", as_text(self.sgd_bytes)),
            ("Adam", as_text(self.adam_bytes)),
        ]
        price = [
            ("price", ""),
            ("weights of the head for each predicted", f"{self.weights_per_prediction:,.1f}"),
            (
                "moved by a step of Adam, primary alone",
                as_text(_ADAM_TRAFFIC * self.primary.trained),
            ),
            ("moved by a step of Adam, all", as_text(self.adam_traffic)),
        ]
        tables = (
            _table(targets, left=(0, 1, 3)),
            *(_table(rows) for rows in (parts, training, price)),
        )
        return "\n\n".join(tables)


def _shortened(name: str, most: int = 48) -> str:
    if len(name) <= most:
        return name
    kept = most - 3
    return f"{name[: kept // 2]}...{name[len(name) - (kept - kept // 2) :]}"


def _table(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _part(modules: Iterable[nn.Module], apart_from: nn.Module | None = None) -> Part:
    others = set(apart_from.parameters()) if apart_from is not None else set()
    held = {p: None for module in modules for p in module.parameters() if p not in others}
    return Part(
        parameters=sum(p.numel() for p in held),
        bytes=sum(p.nbytes for p in held),
        trained=sum(p.nbytes for p in held if p.requires_grad),
    )


def summarize(hypernet: HyperNet, primary: nn.Module) -> Summary:
    """The summary of a primary and its hypernetwork, which may be on the meta device."""
    rows = []
    for name, shape in hypernet.shapes.items():
        head = hypernet.head
        while isinstance(head, Mixed):
            head = head.head_of(name)
        own = head.parameter_count(name)
        rows.append(
            Row(
                name=name,
                shape=tuple(shape),
                predicted=shape.numel(),
                head=type(head).__name__,
                parameters=own,
                bytes=None if own is None else own * hypernet.dtype.itemsize,
            )
        )
    return Summary(
        rows=tuple(rows),
        primary=_part([primary]),
        trunk=_part(p for n, p in hypernet.named_children() if n not in ("head", "encoders")),
        head=_part([hypernet.head]),
        encoders=_part([hypernet.encoders], apart_from=primary),
    )
