"""``python -m hyperlight``: the command line of the lab, which needs the extra ``lab``."""

from __future__ import annotations

import sys
from importlib.util import find_spec

# The packages of the extra, checked at the start: most are imported only where they are used.
_EXTRA = (
    *("tyro", "rich", "numpy", "lightning_fabric", "matplotlib", "jinja2", "sklearn", "scipy"),
    *("distributed", "filelock", "nibabel", "PIL", "pooch", "requests", "tensorboard"),
)


def main() -> None:
    """Run the command line of :mod:`hyperlight.lab`."""
    if sys.argv[1:] == ["--version"]:
        from . import __version__

        print(f"hyperlight {__version__}")
        return
    missing = [name for name in _EXTRA if find_spec(name) is None]
    if missing:
        print(
            f"The command line needs {', '.join(missing)}. Install the extra 'lab' in a "
            "checkout of HyperLight: pip install '.[lab]'",
            file=sys.stderr,
        )
        sys.exit(2)
    try:
        from .lab.cli import entry
    except KeyboardInterrupt:  # importing PyTorch takes seconds
        print("interrupted; nothing was started", file=sys.stderr)
        sys.exit(130)
    entry()


if __name__ == "__main__":
    main()
