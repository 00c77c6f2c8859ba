"""The subjects of the comparison: a family of :mod:`benchmarks.families` with an optimizer."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from .families import FAMILIES, Ours
from .workloads import HEADS, Workload

__all__ = ["PEERS", "QUICK", "QUICK_CUDA", "SUBJECTS", "Subject", "choose", "prepare"]

LR = 1e-4  # for all; small enough that numbers stay finite in runs of any length

# What pip installs, by family. Other families run in the environment of the project.
PEERS = {
    "hyperlight": "hyperlight==0.0.5",
    "hyperlight-narrow": "hyperlight==0.0.5",
    "hypnettorch": "hypnettorch==0.0.4",
    "hypnettorch-narrow": "hypnettorch==0.0.4",
    "hypnettorch-chunked": "hypnettorch==0.0.4",
    "hyper-nn": "hyper-nn==0.2.2",
    "torchhyper": "torchhyper==0.1.2",
}

# Peak memory of a training step in multiples of the parameters, measured on W2: weights, gradient,
# moments, and the temporary arrays of torch.optim's default loop.
COPIES = {
    "adam": 6.2,
    "fused": 4.2,
    "graph": 4.2,
    "hl-adam": 4.2,
    "hl-adam-eager": 3.2,
    "hl-adam-compiled": 3.2,
    "hl-sgd": 2.2,
}


@dataclass(frozen=True)
class Subject:
    """A family with an optimizer; ``--subject`` takes its ``name``."""

    family: str
    optimizer: str
    title: str

    @property
    def name(self) -> str:
        return f"{self.family}/{self.optimizer}"

    @property
    def without_optimizer(self) -> str:
        """The title up to its first comma; the one in ``(16, 128)`` does not count."""
        return re.split(r", (?!\d)", self.title)[0]

    @property
    def requirement(self) -> str | None:
        """What pip installs in its own environment; None for the project's environment."""
        return PEERS.get(self.family)

    @property
    def copies(self) -> float:
        """Peak memory of a training step, in multiples of the parameters."""
        return COPIES[self.optimizer]


def _both(family: str, title: str) -> tuple[Subject, Subject]:
    return (
        Subject(family, "adam", f"{title}, Adam"),
        Subject(family, "fused", f"{title}, Adam(fused=True)"),
    )


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("plain", "fused", "plain network"),
        Subject("plain", "graph", "plain network, Adam(fused=True), captured in a CUDA graph"),
        *_both("ours", "HyperLight"),
        Subject("ours", "hl-adam", "HyperLight, hl.optim.Adam"),
        Subject("ours", "graph", "HyperLight, Adam(fused=True), captured in a CUDA graph"),
        *_both("ours-wide", "HyperLight (16, 128)"),
        Subject("ours-wide", "hl-adam-eager", "HyperLight (16, 128), hl.optim.Adam, eager"),
        Subject("ours-wide", "hl-adam-compiled", "HyperLight (16, 128), hl.optim.Adam, compiled"),
        Subject("ours-wide", "hl-sgd", "HyperLight (16, 128), hl.optim.SGD, Nesterov"),
        Subject("ours-wide", "graph", "HyperLight (16, 128), captured in a CUDA graph"),
        Subject("ours-rank4", "fused", "HyperLight, LowRank(4), Adam(fused=True)"),
        Subject("ours-rank8", "fused", "HyperLight, LowRank(8), Adam(fused=True)"),
        Subject("ours-shared", "fused", "HyperLight, LowRank(4), one gamma for the batch"),
        Subject("ours-samples", "fused", "HyperLight, LowRank(4), one gamma per sample"),
        Subject("ours-samples-all", "fused", "the same, all but normalisation layers predicted"),
        Subject("functional-call", "fused", "functional_call by hand, Adam(fused=True)"),
        Subject("functional-call-narrow", "fused", "functional_call by hand (64, 8), fused Adam"),
        Subject("vmap", "fused", "vmap of functional_call by hand, rank 4, Adam(fused=True)"),
        Subject("patched", "fused", "linear layers patched by hand, rank 4, Adam(fused=True)"),
        *_both("hyperlight", "HyperLight 0.0.5"),
        Subject("hyperlight-narrow", "fused", "HyperLight 0.0.5 (64, 8), Adam(fused=True)"),
        *_both("hypnettorch", "hypnettorch 0.0.4"),
        Subject("hypnettorch-narrow", "fused", "hypnettorch 0.0.4 (64, 8), Adam(fused=True)"),
        Subject("hypnettorch-chunked", "adam", "hypnettorch 0.0.4, chunked, Adam"),
        Subject("hypnettorch-chunked", "fused", "hypnettorch 0.0.4, chunked, Adam(fused=True)"),
        *_both("hyper-nn", "hyper-nn 0.2.2"),
        *_both("torchhyper", "torchhyper 0.1.2"),
        *(
            Subject(f"{name}-{kind}", "fused", f"{head}, {words}")
            for name, head in HEADS.items()
            for kind, words in (
                ("shared", "one gamma for the batch"),
                ("samples", "one gamma per sample"),
            )
        ),
    )
}

# What `python -m benchmarks` runs: everything at its best, and 0.0.5 as its README has it.
QUICK = (
    *("ours/hl-adam", "ours-wide/hl-adam-eager", "functional-call-narrow/fused"),
    *("hyperlight-narrow/fused", "hyperlight/adam", "hypnettorch-narrow/fused"),
)
# The same on a GPU, where steps are captured.
QUICK_CUDA = ("plain/graph", "ours/graph", "ours-wide/graph", *QUICK[:4])

# Families that run only where a workload names them.
OTHERS = (
    *("plain", "ours-rank4", "ours-rank8", "ours-shared", "ours-samples", "ours-samples-all"),
    *("vmap", "patched", "hypnettorch-chunked"),
    *(f"{name}-{kind}" for name in HEADS for kind in ("shared", "samples")),
)

# Subjects of a workload that names none: hypernetworks with one dense head, and Adam.
USUAL = [
    name
    for name, subject in SUBJECTS.items()
    if subject.family not in OTHERS and subject.optimizer not in ("hl-sgd", "graph")
]


def choose(workload: Workload, wanted: Sequence[str] = ()) -> list[Subject]:
    """Choose the subjects of a workload, in the order of the table.

    Args:
        workload: what to run.
        wanted: families or names; empty for the workload's own subjects.

    Raises:
        ValueError: a name is neither a family nor a subject.
    """
    families = {subject.family for subject in SUBJECTS.values()}
    for name in wanted:
        if name not in SUBJECTS and name not in families:
            raise ValueError(
                f"--subject was {name!r}; expected a family ({', '.join(sorted(families))}) "
                f"or a subject ({', '.join(SUBJECTS)})."
            )
    usual = workload.subjects or USUAL
    if workload.kind in ("sweep", "bind"):  # no optimizer: one subject per family
        usual = [name for name in usual if name.endswith("/fused")]
    named = [name for name in SUBJECTS if name in wanted]
    found: Iterable[str] = usual
    if wanted:
        found = [n for n in SUBJECTS if n in named or (n in usual and n.split("/")[0] in wanted)]
    return [SUBJECTS[name] for name in SUBJECTS if name in found and name != "plain/fused"]


def optimizer(name: str, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Make the optimizer that a subject names."""
    trained = [p for p in parameters if p.requires_grad]
    if name == "adam":
        return torch.optim.Adam(trained, lr=LR)
    if name == "fused":
        return torch.optim.Adam(trained, lr=LR, fused=True)
    if name == "graph":
        return torch.optim.Adam(trained, lr=LR, fused=True, capturable=True)
    optim = importlib.import_module("hyperlight.optim")
    if name.startswith("hl-adam-"):
        optim.set_implementation(name.removeprefix("hl-adam-"))
    if name == "hl-sgd":
        made: torch.optim.Optimizer = optim.SGD(trained, lr=LR, momentum=0.9, nesterov=True)
        return made
    made = optim.Adam(trained, lr=LR)
    return made


def prepare(subject: Subject, workload: Workload, device: torch.device) -> Callable[[int], object]:
    """Do everything that is not timed, and return a function that runs step number ``n``."""
    torch.manual_seed(0)
    primary = workload.primary()
    if workload.frozen and subject.family != "plain":
        primary.requires_grad_(False)
    made = FAMILIES[subject.family]
    per_gamma = issubclass(made, Ours) and workload.kind == "each"
    family = (made(primary, per_gamma=True) if per_gamma else made(primary)).to(device)  # type: ignore[call-arg]
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
    runs = {"each": family.each, "samples": family.samples}
    run = runs.get(workload.kind, family)

    def train(gamma: torch.Tensor) -> object:
        update.zero_grad()
        loss = workload.loss(run(x, gamma), target)
        loss.backward()
        update.step()
        return loss

    if subject.optimizer == "graph":
        return captured(train, workload, device)
    return lambda step: train(workload.gamma(step).to(device))


def captured(
    train: Callable[[torch.Tensor], object], workload: Workload, device: torch.device
) -> Callable[[int], object]:
    """The step as one CUDA graph, in which gamma is written to a tensor that stays.

    Raises:
        ValueError: the device has no CUDA graphs.
    """
    if device.type != "cuda":
        raise ValueError("a step that is captured in a CUDA graph needs --device cuda")
    gamma = workload.gamma(0).to(device)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # what a first step allocates cannot be captured
        for _ in range(3):
            train(gamma)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = train(gamma)

    def replay(step: int) -> object:
        gamma.copy_(workload.gamma(step))
        graph.replay()
        return loss

    return replay
