"""Several heads, each for the tensors that match its pattern."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .._torch import is_sharded
from ..errors import ConfigurationError, did_you_mean, listed, sharded
from ..init import Initialization
from ..targets import Target
from .base import Head, shallow
from .weights import Weight


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
        taken = self._taken(self.shapes)
        for pattern, head in zip(self.patterns, self.heads(), strict=True):
            if not taken[pattern]:
                raise ConfigurationError(
                    f"The pattern {pattern!r} of head={{...}} gets none of the predicted tensors "
                    f"{listed(self.shapes)}: it matches none, or those before it took them all. "
                    f"The first match counts.{did_you_mean(pattern, self.shapes)}"
                )
            shapes = {name: self.shapes[name] for name in taken[pattern]}
            head.build(self.features, shapes, dtype=dtype, device=device)

    def _taken(self, names: Iterable[str]) -> dict[str, list[str]]:
        """The names that each pattern gets."""
        taken: dict[str, list[str]] = {pattern: [] for pattern in self.patterns}
        for name in names:
            pattern = next((p for p in self.patterns if fnmatch.fnmatchcase(name, p)), None)
            if pattern is None:
                raise ConfigurationError(
                    f"No pattern of head={{...}} matches {name!r}; the patterns are "
                    f"{listed(self.patterns)}. Add '*' for all that is left."
                )
            taken[pattern].append(name)
        return taken

    def fit(self, primary: nn.Module, targets: Sequence[Target]) -> None:
        taken = self._taken([target.name for target in targets])
        for pattern, head in zip(self.patterns, self.heads(), strict=True):
            head.fit(primary, [target for target in targets if target.name in taken[pattern]])

    def reset_parameters(
        self, init: Initialization, generator: torch.Generator | None = None
    ) -> None:
        for head in self.heads():
            head.reset_parameters(init, generator)

    def calibrate(self, features: Tensor, init: Initialization) -> None:
        for head in self.heads():
            head.calibrate(features, init)

    @property
    def stands_alone(self) -> bool:  # type: ignore[override]
        return all(head.stands_alone for head in self.heads())

    @property
    def calibrates(self) -> bool:
        return all(head.calibrates for head in self.heads())

    def head_of(self, name: str) -> Head:
        """The head that predicts the tensor of that name."""
        return next(head for head in self.heads() if name in head.shapes)

    def parameter_count(self, name: str) -> int | None:
        return self.head_of(name).parameter_count(name)

    def change(self, theta0: Mapping[str, Tensor], features: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for head in self.heads():
            found |= head.change(theta0, features)
        return {name: found[name] for name in self.shapes}

    def excerpt(self, rows: int) -> tuple[Head, dict[str, Tensor]]:
        part, index = shallow(self), {}
        parts = [head.excerpt(rows) for head in self.heads()]
        for _, own in parts:
            index.update(own)
        part.parts = nn.ModuleList(head for head, _ in parts)
        part.shapes = {n: index[n].shape if n in index else s for n, s in self.shapes.items()}
        return part, index

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
