"""What several tests of the lab share: a place to train and the task on the digits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from lightning_fabric import Fabric

from hyperlight.lab import figures
from hyperlight.lab.tasks.bayes import Bayes, BayesTask


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads gain nothing at these sizes, and lose much where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


@pytest.fixture
def task(fabric: Fabric) -> BayesTask:
    """The task on the digits, with a small hypernetwork and few figures to measure."""
    return BayesTask(Bayes(hidden=(4, 8), evaluation_gammas=2, evaluation_images=40), fabric.device)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the drawing, which takes most of the time of a small report."""
    monkeypatch.setattr(figures, "svg", lambda figure: "<svg></svg>")
