"""Folders that one process at a time writes to."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import LabError

__all__ = ["LOCK", "locked"]

# It says who holds the folder. A killed process leaves it behind, without the lock.
LOCK = ".lock"

# Seconds until a folder is refused, and between two attempts of a process that waits.
_PATIENCE, _POLL = 0.2, 0.5


@contextlib.contextmanager
def locked(
    folder: Path,
    wait: Callable[[str], object] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[bool]:
    """Hold a folder, so that no other process writes to it. The lock ends with the process.

    Args:
        folder: an existing folder.
        wait: if another process holds the folder, wait for it; called once with a sentence that
            says so. By default the folder is refused.
        stop: called while it waits; once it returns True, the waiting ends with
            ``KeyboardInterrupt``.

    Yields:
        Whether the folder is held: False, with a warning, where files cannot be locked.

    Raises:
        LabError: another process holds the folder.
    """
    path = folder / LOCK
    signed: list[os.stat_result] = []

    def sign(descriptor: int) -> None:
        with contextlib.suppress(OSError):  # a full disk
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
        signed.append(os.fstat(descriptor))

    lock = FileLock(path, thread_local=False, fallback_to_soft=False, on_acquired=sign)
    held = True
    try:
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout:
            if not path.exists():  # what looks like another's file that vanished, again and again
                raise OSError("no file can be made in it") from None
            refusal = LabError(
                f"{folder} is in use by {_holder(path)}. Wait until that process ends, or "
                "choose another --out."
            )
            if wait is None:
                raise refusal from None
            wait(f"{folder} is in use by {_holder(path)}; waiting until it is done.")
            try:
                lock.acquire(poll_interval=_POLL, cancel_check=stop)
            except Timeout:
                raise KeyboardInterrupt from None
            except RuntimeError:  # it is this thread that holds it
                raise refusal from None
    except OSError as error:
        warnings.warn(
            f"{folder} cannot be locked ({error.strerror or error}). Do not let two processes "
            "write to it at the same time.",
            stacklevel=3,
        )
        held = False
    try:
        yield held
    finally:
        if held:
            # Removed before it is released, so that nobody else has locked it. If the folder was
            # replaced, the file in it is another's.
            with contextlib.suppress(OSError):
                if os.path.samestat(path.stat(), signed[-1]):
                    path.unlink()
            lock.release()


def _holder(path: Path) -> str:
    """Who holds a lock, as it wrote itself."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = path.read_text("utf-8")
        if re.fullmatch(r"process \d{1,20} on [\w.-]{1,255}", text):
            return text
    return "another process"
