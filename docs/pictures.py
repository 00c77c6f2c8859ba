"""Keep the figures of the gallery as SVG, so that they follow light and dark pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sphinx_gallery.scrapers import matplotlib_scraper

from hyperlight.lab.scheme import follow_scheme


def scrape(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Save the open figures of matplotlib; the text that shows them."""
    paths = block_vars["image_path_iterator"]
    before = len(paths)
    text = str(matplotlib_scraper(block, block_vars, gallery_conf, format="svg"))
    for name in list(paths.paths)[before:]:
        path = Path(name).with_suffix(".svg")
        drawn = path.read_text("utf-8")
        path.write_text(follow_scheme(drawn[drawn.index("<svg") :]), "utf-8")
    return text
