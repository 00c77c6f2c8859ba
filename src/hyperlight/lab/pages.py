"""Pages from templates: HTML that needs no other file, or Markdown for a repository."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["render"]


def render(template: str, **values: Any) -> str:
    """Fill in a template of this package.

    Args:
        template: its name. In one that ends in ``.html`` all values are escaped; in one that ends
            in ``.md`` the filter ``cell`` makes a value fit for a table.
        values: by name; all that the template asks for.
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
    return page if html else re.sub(r"\n{3,}", "\n\n", page)


def _cell(value: Any) -> str:
    """A value in one cell of a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")
