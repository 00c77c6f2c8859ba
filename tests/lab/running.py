"""Run commands in separate processes, which tests can kill.

They are forked from a server that has imported the lab, because importing it takes longer than
training a small run.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

import hyperlight.__main__
from hyperlight.lab.locks import locked
from tests.lab.making import leave_out_figures

_CONTEXT = multiprocessing.get_context("forkserver")

# What the lab imports only where it is used.
_LATER = ("lightning_fabric", "sklearn.datasets", "torch.utils.tensorboard")


def prepare() -> None:
    """Let the server start importing, without waiting for it."""
    _CONTEXT.set_forkserver_preload(["hyperlight.lab.cli", *_LATER, __name__])
    forkserver.ensure_running()


def start(
    arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> BaseProcess:
    """Start ``hyperlight`` with these arguments, without drawing; its output goes to a file."""
    target = (list(arguments), str(log), dict(environment or {}))
    process = _CONTEXT.Process(target=_command, args=target, daemon=True)
    process.start()
    return process


def hold(folder: Path) -> BaseProcess:
    """Start a process that holds a folder until it is killed."""
    process = _CONTEXT.Process(target=_hold, args=(folder,), daemon=True)
    process.start()
    return process


def _hold(folder: Path) -> None:
    with locked(folder):
        time.sleep(600.0)


def _command(arguments: list[str], log: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(written, stream)
    leave_out_figures()
    sys.argv = ["hyperlight", *arguments]
    sys.modules["__main__"] = hyperlight.__main__  # what it starts again for a further device
    try:
        hyperlight.__main__.main()
    finally:
        atexit._run_exitfuncs()  # as a program does; multiprocessing leaves them out
