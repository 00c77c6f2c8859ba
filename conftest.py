"""Names that the examples in docstrings use without importing them."""

import hypothesis
import pytest
import torch

import hyperlight as hl

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _example_names(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace.update(hl=hl, torch=torch, nn=torch.nn)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
