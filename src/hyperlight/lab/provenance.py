"""What produced the numbers: command, versions and machine."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from .._version import __version__

__all__ = ["provenance"]


def provenance(command: str | None = None) -> dict[str, str]:
    """The command, if given, the versions of packages, and the machine."""
    packages = ("torch", "lightning-fabric", "scikit-learn", "numpy")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        **({} if command is None else {"command": command}),
        "hyperlight": __version__,
        **{name: metadata.version(name) for name in packages},
        "commit": _commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "gpu": gpu,
    }


@functools.cache  # the code of this process does not change
def _commit() -> str:
    """The commit of the library, if it runs from its own git repository."""
    here = Path(__file__).parent
    try:
        top, commit, changed = (
            subprocess.run(
                ["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for words in (
                ("rev-parse", "--show-toplevel"),
                ("rev-parse", "--short=12", "HEAD"),
                ("status", "--porcelain", "--untracked-files=no", "--", "."),
            )
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    if not here.is_relative_to(Path(top) / "src"):
        return "unknown"  # installed in an environment inside some other repository
    return f"{commit}, changed" if changed else commit
