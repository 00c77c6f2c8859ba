"""``python -m tests.threads``: many threads call one model; results are compared to the bit.

Each thread goes through calls of all kinds: one gamma for the batch, one per sample, bound
networks, predictions, sweeps, independent networks and gradients, with batches of several sizes.
The same is done while another thread trains a different model, whose losses are compared as well.

Prints a table, and ends with status 1 if a result, the model or the training is not what one thread
makes of it.
"""

from __future__ import annotations

import argparse
import copy
import csv
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import hyperlight as hl
from hyperlight import HyperModel
from tests.lab.making import equal_tensors

SIZES = (1, 2, 3, 5)

Call = Callable[[HyperModel, Tensor, Tensor], Iterable[Tensor]]


def _gradients(model: HyperModel, x: Tensor, g: Tensor) -> Iterable[Tensor]:
    loss = model(x, g=g).square().mean()
    return torch.autograd.grad(loss, list(model.parameters()))


# What a call returns, by its name. x has shape (B, 2, 6, 6), g has shape (B,).
CALLS: dict[str, Call] = {
    "one gamma": lambda model, x, g: [model(x, g=g[0])],
    "per sample": lambda model, x, g: [model(x, g=g)],
    "bind": lambda model, x, g: [model.bind(g=g)(x)],
    "predict": lambda model, x, g: model.predict(g=g).values(),
    "sweep": lambda model, x, g: [model.sweep(x, g=g)],
    "at": lambda model, x, g: [model.at(g=g[0])(x)],
    "autograd.grad": _gradients,
}


def make_model(seed: int = 0) -> HyperModel:
    """A small network with convolutions, a normalisation and linear layers."""
    torch.manual_seed(seed)
    primary = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(144, 8), nn.Tanh(), nn.Linear(8, 3)),
    )
    return hl.hypernetize(primary, {"g": hl.Uniform(0.0, 1.0)}, hidden=(8,))


def make_data(seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Three batches of every size in :data:`SIZES`, with a gamma per sample."""
    draw = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 2, 6, 6, generator=draw), torch.rand(n, generator=draw))
        for _ in range(3)
        for n in SIZES
    ]


def train(steps: int, stop: Callable[[], bool] = lambda: False) -> list[float]:
    """Losses of a training of another model, until it is stopped."""
    model, data = make_model(seed=2), make_data(seed=3)
    optimizer = hl.optim.Adam(model.parameters(), lr=1e-3)
    losses: list[float] = []
    while len(losses) < steps and not stop():
        x, g = data[len(losses) % len(data)]
        loss = model(x, g=g).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@dataclass
class Count:
    """Results of the calls of one kind.

    Attributes:
        calls: number of calls.
        wrong: number of results that are not those of one thread, to the bit.
        errors: exceptions in words.
    """

    calls: int = 0
    wrong: int = 0
    errors: list[str] = field(default_factory=list)


@dataclass
class Round:
    """What the threads found together.

    Attributes:
        title: what else went on.
        counts: by the name of the call.
        unchanged: whether the model has the same state, and no gradients.
        trained: steps of the other model's training, with the losses that it has alone; None if
            a loss is another.
    """

    title: str
    counts: dict[str, Count]
    unchanged: bool
    trained: int | None = 0

    @property
    def right(self) -> bool:
        """Whether everything is as in one thread."""
        fine = all(not count.wrong and not count.errors for count in self.counts.values())
        return fine and self.unchanged and self.trained is not None


def measure(threads: int, calls: int, training: bool, model: HyperModel | None = None) -> Round:
    """Let every thread make ``calls`` calls of one model.

    Args:
        threads: number of threads.
        calls: number of calls of each.
        training: let one more thread train another model meanwhile.
        model: the model; by default :func:`make_model`.
    """
    model = make_model() if model is None else model
    data = make_data()
    alone = copy.deepcopy(model)  # what is learned about a call once, threads must learn anew
    expected = {
        (name, i): [each.detach() for each in call(alone, *data[i])]
        for name, call in CALLS.items()
        for i in range(len(data))
    }
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    counts = [{name: Count() for name in CALLS} for _ in range(threads)]
    barrier, done = threading.Barrier(threads + training), threading.Event()
    losses: list[float] = []

    def work(thread: int) -> None:
        barrier.wait()
        names = list(CALLS)
        for i in range(thread, thread + calls):
            name, at = names[i % len(names)], i // len(names) % len(data)
            count = counts[thread][name]
            count.calls += 1
            try:
                found = list(CALLS[name](model, *data[at]))
            except Exception as error:
                count.errors.append(f"{type(error).__name__}: {error}")
            else:
                pairs = zip(found, expected[name, at], strict=True)
                count.wrong += not all(torch.equal(a, b) for a, b in pairs)

    def other() -> None:
        barrier.wait()
        losses.extend(train(10**9, done.is_set))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    trainer = threading.Thread(target=other)
    for thread in [*workers, *[trainer][:training]]:
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    if training:
        trainer.join()
    total = {name: _sum(each[name] for each in counts) for name in CALLS}
    unchanged = equal_tensors(model.state_dict(), before)
    unchanged = unchanged and all(p.grad is None for p in model.parameters())
    same = losses == train(len(losses)) and bool(losses) == training
    title = "training too" if training else "calls alone"
    return Round(title, total, unchanged, len(losses) if same else None)


def _sum(counts: Iterable[Count]) -> Count:
    made = Count()
    for count in counts:
        made.calls += count.calls
        made.wrong += count.wrong
        made.errors += count.errors
    return made


def table(rounds: Sequence[Round]) -> Table:
    """Count the results by kind of call."""
    made = Table(title="Calls of one model from several threads", title_justify="left")
    for name in ("", "call", "calls", "right to the bit", "wrong", "errors"):
        made.add_column(name, justify="left" if name in ("", "call") else "right")
    for done in rounds:
        for name, count in [*done.counts.items(), ("all", _sum(done.counts.values()))]:
            errors = len(count.errors)
            right = count.calls - count.wrong - errors
            made.add_row(done.title, name, *map(str, (count.calls, right, count.wrong, errors)))
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurement; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.threads", description=__doc__)
    parser.add_argument("--threads", type=int, default=8, help="number of threads")
    parser.add_argument("--calls", type=int, default=1000, help="number of calls of each thread")
    parser.add_argument("--out", type=Path, help="csv file with a row per kind of call")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rounds = [measure(chosen.threads, chosen.calls, training) for training in (False, True)]
    console = Console()
    console.print(table(rounds))
    for done in rounds:
        state = "unchanged" if done.unchanged else "changed"
        steps = "other losses than alone" if done.trained is None else f"{done.trained} steps"
        console.print(f"{done.title}: state {state}, training of another model: {steps}")
        for error in sorted({e for count in done.counts.values() for e in count.errors}):
            console.print(error, markup=False)
    if chosen.out is not None:
        with chosen.out.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["round", "call", "calls", "wrong", "errors"])
            for done in rounds:
                for name, count in done.counts.items():
                    rows.writerow([done.title, name, count.calls, count.wrong, len(count.errors)])
    return 0 if all(done.right for done in rounds) else 1


if __name__ == "__main__":
    sys.exit(main())
