"""Render pages from templates: self-contained HTML, or Markdown."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["render"]


def render(template: str, **values: Any) -> str:
    """Render a template of this package.

    Args:
        template: its file name. HTML templates escape all values; Markdown templates have the
            filter ``cell`` for values in tables.
        values: for all variables of the template, by name.
    """
    import jinja2

    html = template.endswith(".html")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hyperlight.lab"),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = _cell
    page = environment.get_template(template).render(**values)
    # The names of files may have bytes that are not UTF-8.
    page = page.encode("utf-8", "backslashreplace").decode("utf-8")
    return page if html else re.sub(r"\n{3,}", "\n\n", page)


def _cell(value: Any) -> str:
    """Escape a value for a cell of a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")
