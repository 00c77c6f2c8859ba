"""How tests are run, and names that the examples in docstrings use without importing them."""

import os
from typing import Any

# Workers share the cores: with more threads or compilers than one each, they wait for one another.
# Read when torch is imported, here and in the processes that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

import hypothesis
import pytest
import torch

import hyperlight as hl

# How long an example takes depends on what else the machine does. Every run looks at the same
# examples; HYPOTHESIS_PROFILE=search looks at others each time, and HYPOTHESIS_PROFILE=long also at
# thousands of networks with one set of weights per sample (tests/test_true_batch.py).
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None)
hypothesis.settings.register_profile("long", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

WORKER_BYTES = 3 * 2**30  # a worker and the processes that its tests start take no more
MOST_WORKERS = 8  # each imports PyTorch and collects all tests before it can help
_TOGETHER = ("tests/lab/", "tests/test_browser.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Count the workers of ``-n auto``: one for each core that pytest may use, if memory allows.

    xdist counts physical cores, of which a virtual machine with two threads has one. On a single
    core there are no workers, and pytest runs the tests itself.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    workers = min(cores, memory // WORKER_BYTES, MOST_WORKERS)
    return workers if workers > 1 else 0


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep some test files on one worker each, and hand out all other tests one by one.

    Their tests share what a fixture has trained, or a browser. They come first, the largest in
    front, so that single tests fill the gap at the end. The mark ``xdist_group`` does the same,
    but changes the names under which tests are reported.
    """
    if config.getoption("dist") != "load":  # asked for another by name
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid.partition("::")[0] if nodeid.startswith(_TOGETHER) else nodeid

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def _example_names(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace.update(hl=hl, torch=torch, nn=torch.nn)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
