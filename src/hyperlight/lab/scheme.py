"""Save figures so that they are readable on light and on dark pages."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from .files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SCHEME", "follow_scheme", "save", "svg"]

# The colours of a figure as a picture of its own. The root of a page is no svg, so that they do
# not hold for figures inside of pages.
SCHEME = (
    "svg:root{color:#1c2430;background:#fff}"
    "@media(prefers-color-scheme:dark){svg:root{color:#d5dae1;background:#131416}}"
)


def svg(figure: Figure) -> str:
    """Return the figure as an ``<svg>`` element, byte for byte the same for the same figure."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "hyperlight"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return follow_scheme(text[text.index("<svg") :])


# What matplotlib draws behind panels and legends.
_BACKGROUND = re.compile(
    r'(<path d="[^"]*" style=")fill: #ffffff(; opacity: 0\.8; stroke: #cccccc[^"]*)?"'
)


def follow_scheme(text: str) -> str:
    """Let an SVG that matplotlib drew in black on white be light on dark in a dark page.

    Black becomes ``currentColor``, the colour of text; panels become transparent. As a picture of
    its own, the SVG brings both colours, and follows ``prefers-color-scheme``. A page that sets
    ``color-scheme`` on its pictures decides for them.

    Args:
        text: the SVG. One that was changed before stays as it is.
    """
    if SCHEME in text:
        return text
    text = _BACKGROUND.sub(r'\1fill: none"', text).replace("#000000", "currentColor")
    text = text.replace("</style>", f"{SCHEME}</style>", 1)
    return text.replace("<svg ", '<svg fill="currentColor" ', 1)


# Readable on white and on black.
_GREY = "#808080"


def save(figure: Figure, path: Path) -> None:
    """Write a figure as ``.svg``, or as a ``.png`` that is readable on light and dark pages.

    Args:
        figure: what is black in it becomes grey, for a ``.png``.
        path: of the file.
    """
    from matplotlib.colors import same_color
    from matplotlib.legend import Legend
    from matplotlib.lines import Line2D
    from matplotlib.spines import Spine
    from matplotlib.text import Text

    if path.suffix == ".svg":
        write_text(path, svg(figure))
        return
    for drawn in figure.findobj():
        if isinstance(drawn, Text | Line2D) and same_color(drawn.get_color(), "black"):
            drawn.set_color(_GREY)
    for spine in figure.findobj(Spine):
        spine.set_edgecolor(_GREY)
    for ax in figure.axes:
        ax.tick_params(which="both", color=_GREY)
    for frame in figure.findobj(Legend):
        frame.set_frame_on(False)
    figure.savefig(path, dpi=110, transparent=True)
