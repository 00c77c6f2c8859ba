"""Commands in processes of their own, which can be killed.

They are forked from a server that has imported the lab once, since an import takes longer than the
training of a small run.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

import hyperlight.__main__
from tests.lab.making import leave_out_figures

_CONTEXT = multiprocessing.get_context("forkserver")


def prepare() -> None:
    """Have the server begin to import; this does not wait for it."""
    _CONTEXT.set_forkserver_preload(
        ["hyperlight.lab.cli", "sklearn.datasets", "torch.utils.tensorboard", __name__]
    )
    forkserver.ensure_running()


def start(
    arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> BaseProcess:
    """Start ``hyperlight`` with these arguments; what it prints is added to a file.

    Nothing is drawn, which would take longer than the rest.
    """
    target = (list(arguments), str(log), dict(environment or {}))
    process = _CONTEXT.Process(target=_command, args=target, daemon=True)
    process.start()
    return process


def _command(arguments: list[str], log: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(written, stream)
    leave_out_figures()
    sys.argv = ["hyperlight", *arguments]
    hyperlight.__main__.main()
