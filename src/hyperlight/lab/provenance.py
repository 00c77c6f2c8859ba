"""What produced numbers: command, versions, machine."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

__all__ = ["provenance"]


def provenance(command: str | None = None) -> dict[str, str]:
    """The command, where there is one, the versions and the machine."""
    packages = ("hyperlight", "torch", "lightning-fabric", "torchmetrics", "scikit-learn", "numpy")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        **({} if command is None else {"command": command}),
        **{name: metadata.version(name) for name in packages},
        "commit": _commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "gpu": gpu,
    }


@functools.cache  # what this process has loaded stays the same
def _commit() -> str:
    """The commit that the library is run from, if it is in a git repository of its own."""
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
        return "unknown"  # installed into an environment that lies in somebody's repository
    return f"{commit}, changed" if changed else commit
