"""``python -m hyperlight``: the lab's command line, with a word where the lab is missing."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line of :mod:`hyperlight.lab`."""
    try:
        from .lab.cli import entry
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "hyperlight":
            raise
        print(
            f"The command line needs the package {error.name!r}, which is part of the extra 'lab': "
            "pip install 'hyperlight[lab]'.",
            file=sys.stderr,
        )
        sys.exit(2)
    entry()


if __name__ == "__main__":
    main()
