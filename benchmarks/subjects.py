"""Who is compared: a family of :mod:`benchmarks.families`, with an optimizer."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from .families import FAMILIES, Ours
from .workloads import Workload

__all__ = ["PEERS", "SUBJECTS", "Subject", "choose", "has_factored", "prepare"]

LR = 1e-4  # of all, so small that the numbers stay finite however long a run is

# What pip installs, by family; families that are not here run in the environment of the project.
PEERS = {
    "hyperlight": "hyperlight==0.0.5",
    "hypnettorch": "hypnettorch==0.0.4",
    "hypnettorch-chunked": "hypnettorch==0.0.4",
    "hyper-nn": "hyper-nn==0.2.2",
    "torchhyper": "torchhyper==0.1.2",
}

# What a training step holds at its peak, in units of the parameters, measured on W2: weights,
# gradient and moments, and the temporary arrays of torch.optim's default loop.
COPIES = {
    "adam": 6.2,
    "fused": 4.2,
    "hl-adam-eager": 3.2,
    "hl-adam-compiled": 3.2,
    "hl-adam-bf16": 2.2,
    "hl-sgd": 2.2,
}


@dataclass(frozen=True)
class Subject:
    """A family with an optimizer. ``name`` is what ``--subject`` takes."""

    family: str
    optimizer: str
    title: str

    @property
    def name(self) -> str:
        return f"{self.family}/{self.optimizer}"

    @property
    def requirement(self) -> str | None:
        """What pip installs for it, in an environment of its own."""
        return PEERS.get(self.family)

    @property
    def copies(self) -> float:
        """The memory of a training step, in units of the parameters."""
        return COPIES[self.optimizer]


def _both(family: str, title: str) -> tuple[Subject, Subject]:
    return (
        Subject(family, "adam", f"{title}, Adam"),
        Subject(family, "fused", f"{title}, Adam(fused=True)"),
    )


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("plain", "fused", "plain primary"),
        *_both("ours", "HyperLight"),
        Subject("ours", "hl-adam-eager", "HyperLight, hl.optim.Adam, eager"),
        Subject("ours", "hl-adam-compiled", "HyperLight, hl.optim.Adam, compiled"),
        Subject("ours", "hl-adam-bf16", "HyperLight, hl.optim.Adam, bfloat16 moments"),
        Subject("ours", "hl-sgd", "HyperLight, hl.optim.SGD, Nesterov"),
        Subject("ours-rank4", "fused", "HyperLight, LowRank(4), Adam(fused=True)"),
        Subject("ours-rank8", "fused", "HyperLight, LowRank(8), Adam(fused=True)"),
        Subject("functional-call", "fused", "functional_call by hand, Adam(fused=True)"),
        *_both("hyperlight", "HyperLight 0.0.5"),
        *_both("hypnettorch", "hypnettorch 0.0.4"),
        Subject("hypnettorch-chunked", "adam", "hypnettorch 0.0.4, chunked, Adam"),
        *_both("hyper-nn", "hyper-nn 0.2.2"),
        *_both("torchhyper", "torchhyper 0.1.2"),
    )
}

# What a workload has without a list of its own: hypernetworks with one dense head, and Adam.
USUAL = [
    name
    for name, subject in SUBJECTS.items()
    if subject.family not in ("plain", "ours-rank4", "ours-rank8", "hypnettorch-chunked")
    and subject.optimizer != "hl-sgd"
]


def has_factored() -> bool:
    """Whether this HyperLight has optimizers of its own."""
    return importlib.util.find_spec("hyperlight.optim") is not None


def choose(workload: Workload, wanted: Sequence[str] = ()) -> list[Subject]:
    """The subjects of a workload, in the order of the table.

    Args:
        workload: what is done.
        wanted: families or names; empty for the workload's own.

    Raises:
        ValueError: a name that is none.
    """
    families = {subject.family for subject in SUBJECTS.values()}
    for name in wanted:
        if name not in SUBJECTS and name not in families:
            raise ValueError(
                f"--subject was {name!r}; expected some of {', '.join(sorted(families))}, or one "
                f"with its optimizer: {', '.join(SUBJECTS)}."
            )
    usual = workload.subjects or USUAL
    if workload.kind in ("sweep", "bind"):  # no optimizer: one subject per family
        usual = [name for name in usual if name.endswith("/fused")]
    named = [name for name in SUBJECTS if name in wanted]
    found: Iterable[str] = usual
    if wanted:
        found = [n for n in SUBJECTS if n in named or (n in usual and n.split("/")[0] in wanted)]
    return [
        SUBJECTS[name]
        for name in SUBJECTS
        if name in found
        and SUBJECTS[name].family != "plain"
        and (has_factored() or not SUBJECTS[name].optimizer.startswith("hl-"))
    ]


def optimizer(name: str, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer by the name that subjects give it."""
    trained = [p for p in parameters if p.requires_grad]
    if name == "adam":
        return torch.optim.Adam(trained, lr=LR)
    if name == "fused":
        return torch.optim.Adam(trained, lr=LR, fused=True)
    optim = importlib.import_module("hyperlight.optim")
    if name == "hl-adam-bf16":
        short: torch.optim.Optimizer = optim.Adam(trained, lr=LR, moments=torch.bfloat16)
        return short
    if name.startswith("hl-adam-"):
        optim.set_implementation(name.removeprefix("hl-adam-"))
    if name == "hl-sgd":
        made: torch.optim.Optimizer = optim.SGD(trained, lr=LR, momentum=0.9, nesterov=True)
        return made
    made = optim.Adam(trained, lr=LR)
    return made


def prepare(subject: Subject, workload: Workload, device: torch.device) -> Callable[[int], object]:
    """Everything before the clock starts: returns what runs step number ``n``."""
    torch.manual_seed(0)
    primary = workload.primary()
    family = (
        Ours(primary, sets=True)
        if subject.family == "ours" and workload.kind == "each"
        else FAMILIES[subject.family](primary)
    ).to(device)
    x, target = workload.data(device)

    if workload.kind == "bind":
        tensors = family.put()

        @torch.no_grad()
        def bind(step: int) -> object:
            return family.call(tensors, x)

        return bind

    if workload.kind == "sweep":
        family.eval()

        @torch.no_grad()
        def sweep(step: int) -> object:
            return family.sweep(x, workload.gamma(step).to(device))

        return sweep

    update = optimizer(subject.optimizer, family.parameters())
    run = family.each if workload.kind == "each" else family

    def train(step: int) -> object:
        update.zero_grad()
        loss = workload.loss(run(x, workload.gamma(step).to(device)), target)
        loss.backward()
        update.step()
        return loss

    return train
