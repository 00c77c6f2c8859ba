"""A virtual environment for every peer, in a build folder, with the PyTorch of this one."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

__all__ = ["ROOT", "interpreter", "variables"]

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "benchmarks"


def interpreter(requirement: str | None) -> Path:
    """Return the Python that has a peer installed; make its environment on first use.

    Only the peer is installed, without its dependencies. A ``.pth`` file adds the PyTorch and NumPy
    of the current environment: all subjects run the same versions, and nothing large is downloaded.

    Raises:
        RuntimeError: pip could not install the peer; the message has pip's error.
    """
    if requirement is None:
        return Path(sys.executable)
    folder = BUILD / requirement.replace("==", "-")
    scripts = "Scripts" if os.name == "nt" else "bin"
    python = folder / scripts / Path(sys.executable).name
    if (folder / "ready").exists():
        return python
    venv.create(folder, with_pip=False, clear=True, symlinks=os.name != "nt")
    made = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        **_quiet(),  # type: ignore[call-overload]
    )
    packages = Path(made.stdout.strip())
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*install, "--target", str(packages), requirement],
        **_quiet(),  # type: ignore[call-overload]
    )
    if done.returncode:
        raise RuntimeError(f"{requirement} cannot be installed: {done.stderr.strip()[-400:]}")
    # Folders in a .pth file come after the environment's own, so the peer takes precedence.
    (packages / "project.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (folder / "ready").touch()
    return python


def _quiet() -> dict[str, object]:
    return {"capture_output": True, "text": True, "check": False}


def variables(requirement: str | None) -> dict[str, str]:
    """Environment variables for a subject's process; only ours sees this project's sources."""
    path = [str(ROOT)] if requirement else [str(ROOT), str(ROOT / "src")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
