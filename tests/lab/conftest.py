"""Fixtures of the lab: a device to train on, and a small task on the digits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from lightning_fabric import Fabric

from hyperlight.lab.tasks.bayes import Bayes, BayesTask
from tests.lab.making import leave_out_figures


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: more gain nothing at these sizes, and cost much on busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


@pytest.fixture
def task(fabric: Fabric) -> BayesTask:
    """The task on the digits, with a small hypernetwork and a quick evaluation."""
    small = {"evaluation_gammas": 2, "evaluation_images": 40, "posterior_samples": 2}
    return BayesTask(Bayes(hidden=(4, 8), **small), fabric.device)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_figures(monkeypatch.setattr)
