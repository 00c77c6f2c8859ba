"""Names that the examples in docstrings use without importing them."""

import os

import hypothesis
import pytest
import torch

import hyperlight as hl

# How long an example takes depends on what else the machine does. Every run looks at the same
# examples; HYPOTHESIS_PROFILE=search looks at others each time.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(autouse=True)
def _example_names(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace.update(hl=hl, torch=torch, nn=torch.nn)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
