"""Keep the figures of the gallery as SVG, which follow light and dark pages, and describe them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperlight.lab.scheme import follow_scheme

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALT = re.compile(r"(?<=:alt: ).*")


def scrape(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Save the open figures of matplotlib; the text that shows them."""
    # sphinx-gallery chooses how matplotlib draws, before anything else imports pyplot
    from sphinx_gallery.scrapers import matplotlib_scraper  # isort: skip
    from matplotlib import pyplot

    paths = block_vars["image_path_iterator"]
    before = len(paths)
    described = iter([describe(pyplot.figure(number)) for number in pyplot.get_fignums()])
    text = str(matplotlib_scraper(block, block_vars, gallery_conf, format="svg"))
    for name in list(paths.paths)[before:]:
        path = Path(name).with_suffix(".svg")
        drawn = path.read_text("utf-8")
        path.write_text(follow_scheme(drawn[drawn.index("<svg") :]), "utf-8")
    return ALT.sub(lambda alt: next(described) or alt[0], text)


def describe(figure: Figure) -> str:
    """What the figure shows, by its own words: for every panel its title, axes and legend."""
    panels = []
    for ax in figure.axes:
        over = " over ".join(label for label in (ax.get_ylabel(), ax.get_xlabel()) if label)
        legend = ax.get_legend()
        lines = [] if legend is None else [entry.get_text() for entry in legend.get_texts()]
        words = [ax.get_title(), over, ", ".join(lines)]
        panels.append(": ".join(" ".join(word.split()) for word in words if word))
    return "; ".join(panel for panel in panels if panel)


def alt_of(page: str) -> str:
    """The description of the last figure of a page of the gallery, by its source."""
    found = ALT.findall(page)
    return found[-1] if found else ""
