"""The sizes of a model: what it holds, by part and by predicted tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from .heads import Mixed
from .hypernet import HyperNet
from .memory import ADAM_STATE, SGD_STATE, as_text

__all__ = ["Part", "Row", "Summary", "summarize"]


@dataclass(frozen=True)
class Row:
    """One predicted tensor.

    Attributes:
        name: its name.
        shape: its shape.
        predicted: its number of entries.
        head: the class of the head that predicts it.
        parameters: the head's parameters that belong to it alone; ``None`` where the head
            shares its parameters between tensors.
        bytes: the size of these.
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
    """What a model holds; ``print`` it for a table. Made by :func:`estimate` and ``summary()``.

    Activations are not counted: they depend on the batch.

    Attributes:
        rows: one for every predicted tensor.
        primary: the primary with all of its parameters, predicted or not (``theta0``).
        trunk: the encoding and the hidden layers of the hypernetwork.
        head: its last layer.
    """

    rows: tuple[Row, ...]
    primary: Part
    trunk: Part
    head: Part

    @property
    def predicted(self) -> int:
        """The number of entries in one set of predicted weights."""
        return sum(row.predicted for row in self.rows)

    @property
    def parameters(self) -> int:
        """The number of parameters of the model."""
        return self.primary.parameters + self.trunk.parameters + self.head.parameters

    @property
    def bytes(self) -> int:
        """The size of the parameters."""
        return self.primary.bytes + self.trunk.bytes + self.head.bytes

    @property
    def sgd_bytes(self) -> int:
        """Parameters, gradients and momentum, for ``torch.optim.SGD`` with momentum."""
        return self.bytes + SGD_STATE * self._trained

    @property
    def adam_bytes(self) -> int:
        """Parameters, gradients and both moments, for ``torch.optim.Adam`` or ``AdamW``."""
        return self.bytes + ADAM_STATE * self._trained

    @property
    def _trained(self) -> int:
        return self.primary.trained + self.trunk.trained + self.head.trained

    def __str__(self) -> str:
        targets = [("target", "shape", "predicted", "head", "parameters", "bytes")]
        for row in self.rows:
            shared = row.parameters is None or row.bytes is None
            targets.append(
                (
                    _shortened(row.name),
                    " x ".join(map(str, row.shape)) or "scalar",
                    f"{row.predicted:,}",
                    row.head,
                    "shared" if shared else f"{row.parameters:,}",
                    "" if row.bytes is None else as_text(row.bytes),
                )
            )
        targets.append(
            (
                "all",
                "",
                f"{self.predicted:,}",
                "",
                f"{self.head.parameters:,}",
                as_text(self.head.bytes),
            )
        )
        parts = [
            ("part", "parameters", "bytes"),
            ("primary", f"{self.primary.parameters:,}", as_text(self.primary.bytes)),
            ("trunk", f"{self.trunk.parameters:,}", as_text(self.trunk.bytes)),
            ("head", f"{self.head.parameters:,}", as_text(self.head.bytes)),
            ("all", f"{self.parameters:,}", as_text(self.bytes)),
        ]
        training = [
            ("training without activations", "bytes"),
            ("SGD with momentum", as_text(self.sgd_bytes)),
            ("Adam", as_text(self.adam_bytes)),
        ]
        return "\n\n".join(
            (
                _table(targets, left=(0, 1, 3)),
                _table(parts, left=(0,)),
                _table(training, left=(0,)),
            )
        )


def _shortened(name: str, most: int = 48) -> str:
    if len(name) <= most:
        return name
    kept = most - 3
    return f"{name[: kept // 2]}...{name[len(name) - (kept - kept // 2) :]}"


def _table(rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _part(modules: Iterable[nn.Module]) -> Part:
    held = [p for module in modules for p in module.parameters()]
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
        trunk=_part(part for name, part in hypernet.named_children() if name != "head"),
        head=_part([hypernet.head]),
    )
