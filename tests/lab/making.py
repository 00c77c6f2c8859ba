"""Helpers of the lab's tests: IDX files, runs with given figures, and comparisons."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import hyperlight as hl
from hyperlight import HyperModel, ScaleProfile
from hyperlight.lab import figures
from hyperlight.lab.methods import Method
from hyperlight.lab.record import Point, Run
from hyperlight.lab.tasks.base import Fixed, Metric, Outcome

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"
STEMS = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)

Arrays = dict[str, np.ndarray]
Naming = Callable[[str], str]


def arrays(train: int = 100, test: int = 20) -> Arrays:
    """Random images of MNIST's size and labels that go through all ten classes."""
    draw = np.random.default_rng(0)
    return {
        TRAIN_IMAGES: draw.integers(0, 256, (train, 28, 28), dtype=np.uint8),
        TRAIN_LABELS: (np.arange(train) % 10).astype(np.uint8),
        TEST_IMAGES: draw.integers(0, 256, (test, 28, 28), dtype=np.uint8),
        TEST_LABELS: (np.arange(test) % 10).astype(np.uint8),
    }


def encoded(array: np.ndarray) -> bytes:
    """The array as an IDX file of unsigned bytes."""
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def dotted(stem: str) -> str:
    return stem.replace("-idx", ".idx")


def zipped(stem: str) -> str:
    return f"{stem}.gz"


def write_idx(folder: Path, contents: Arrays | None = None, naming: Naming = str) -> Path:
    """Write the four files; names that end in .gz are gzipped."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, array in (arrays() if contents is None else contents).items():
        name, data = naming(stem), encoded(array)
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder


def archives(contents: Arrays | None = None) -> dict[str, bytes]:
    """The four .gz files by the name that they are fetched under."""
    made = arrays() if contents is None else contents
    return {zipped(stem): gzip.compress(encoded(array), mtime=0) for stem, array in made.items()}


def checksums(files: Mapping[str, bytes]) -> dict[str, str]:
    """Stems and sha256 of .gz files."""
    return {
        name.removesuffix(".gz"): hashlib.sha256(data).hexdigest() for name, data in files.items()
    }


def listing(folder: Path) -> list[str]:
    """The names in a folder, with hidden files; empty if there is no folder."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def small_model() -> HyperModel:
    return hl.hypernetize(nn.Linear(3, 2), inputs={"gamma": hl.Uniform(0.0, 1.0)}, hidden=(4,))


def profile(scale: Iterable[float]) -> ScaleProfile:
    """A profile with these standard deviations along gamma from 0 to 1."""
    std = torch.tensor(list(scale), dtype=torch.float64)
    gamma = torch.linspace(0.0, 1.0, len(std))
    return ScaleProfile(
        input="gamma",
        gamma=gamma,
        magnitude=gamma.clone(),
        std=std,
        per_target={"weight": std.clone()},
        verdict="",
    )


FLAT = (1.0, 1.0, 1.0, 1.0)
RISING = (0.1, 0.5, 1.0, 1.5)
STEEP = (0.05, 0.1, 0.5, 2.5)


ACCURACY = Metric("accuracy", "%", digits=1)


def make_run(
    formulation: str,
    seed: int = 0,
    *,
    accuracy: Sequence[float] = (10.0, 50.0, 95.0),
    test_loss: Sequence[float] | None = None,
    metric: Metric = ACCURACY,
    every: int = 5,
    norms: Sequence[float] | None = None,
    losses: Sequence[float] | None = None,
    initial: Sequence[float] | None = FLAT,
    final: Sequence[float] | None = FLAT,
    seconds: Sequence[float] = (0.01, 0.02),
    waiting: float = 0.25,
    outcome: Outcome | None = None,
    folder: Path | None = None,
) -> Run:
    """A run with the given figures.

    ``accuracy`` are the values of the metric; ``every`` is the number of steps between points;
    ``seconds`` are the seconds per step between points, repeated as needed; ``waiting`` is the
    fraction of them spent waiting for data.
    """
    steps = every * (len(accuracy) - 1)
    loss = [1.0 / (1 + i) for i in range(steps)] if losses is None else list(losses)
    norm = [2.0 + (-1) ** i for i in range(steps)] if norms is None else list(norms)
    tests = [2.0] * len(accuracy) if test_loss is None else list(test_loss)
    points, passed = [], 0.0
    for i, (right, wrong) in enumerate(zip(accuracy, tests, strict=True)):
        chunk = loss[every * (i - 1) : every * i]
        passed += every * seconds[(i - 1) % len(seconds)] if i else 0.0
        mean = sum(chunk) / every if i else math.nan
        points.append(Point(every * i, passed, mean, {"loss": wrong, metric.name: right}))
    return Run(
        Method.of(formulation),  # type: ignore[arg-type]
        seed,
        metric,
        small_model(),
        initial=None if initial is None else profile(initial),
        final=None if final is None else profile(final),
        points=points,
        loss=loss,
        gradient_norm=norm,
        seconds=passed,
        waiting=waiting * passed,
        outcome=outcome,
        folder=folder,
    )


def plain_run(seed: int = 0, formulation: str = "plain", **changes: Any) -> Run:
    """A run of a network without predicted weights, which has no scale profiles."""
    run = make_run(formulation, seed, initial=None, final=None, **changes)
    run.model = Fixed(nn.Linear(3, 2), {})
    return run


def diverged(formulation: str, seed: int = 0, bad: float = math.nan) -> Run:
    """A run whose figures are all ``bad`` after the first update."""
    return make_run(
        formulation,
        seed,
        accuracy=(10.0, bad, bad),
        test_loss=(2.3, bad, bad),
        losses=[bad] * 10,
        norms=[bad] * 10,
        final=[bad] * 4,
    )


def equal_values(a: Any, b: Any) -> bool:
    """Whether two nests of dictionaries, sequences and numbers agree to the bit; NaN is NaN."""
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal_values(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal_values(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b or (a != a and b != b))


def equal_tensors(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    """Whether both have the same names, and tensors of the same dtype that agree to the bit."""
    return list(a) == list(b) and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


def equal_profiles(a: ScaleProfile | None, b: ScaleProfile | None) -> bool:
    if a is None or b is None:
        return a is b
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("gamma", "magnitude", "std"))


def equal_runs(a: Run, b: Run) -> bool:
    """Whether two runs agree to the bit, except in their times."""
    figures, others = ([(p.step, p.train_loss, p.figures) for p in run.points] for run in (a, b))
    return (
        (a.formulation, a.seed, a.metric) == (b.formulation, b.seed, b.metric)
        and equal_values(a.loss, b.loss)
        and equal_values(a.gradient_norm, b.gradient_norm)
        and equal_values(figures, others)
        and equal_profiles(a.initial, b.initial)
        and equal_profiles(a.final, b.final)
        and a.model is not None
        and b.model is not None
        and equal_tensors(a.model.state_dict(), b.model.state_dict())
    )


def leave_out_figures(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Skip drawing, which takes most of the time of a small report."""

    def saved(figure: Figure, path: Path, **_: Any) -> None:
        Path(path).write_bytes(b"a picture")

    put(figures, "svg", lambda figure: "<svg></svg>")
    put(Figure, "savefig", saved)


REAL_DATA = Path(os.environ.get("HYPERLIGHT_DATA", "no-such-folder"))
needs_real_data = pytest.mark.skipif(
    not REAL_DATA.is_dir(),
    reason="needs the real data sets: set HYPERLIGHT_DATA to a folder with mnist, ptbp and "
    "flowers102-64px",
)
