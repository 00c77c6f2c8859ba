"""Render pages from templates: self-contained HTML, or Markdown."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

from .scheme import SCHEME

__all__ = ["checked_svg", "render"]

_SVG = "{http://www.w3.org/2000/svg}"
_ELEMENTS = {"svg", "g", "defs", "use", "path", "rect", "clipPath", "pattern", "image"}
_STYLE = re.compile(rf"\s*\*\s*\{{\s*(stroke-[a-z]+:\s*[a-z]+;?\s*)*\}}\s*({re.escape(SCHEME)})?")
_LINK = re.compile(r"#[\w.-]*|data:image/png;base64,[\w+/=\s]*")
_REFUSED = re.compile(r"[\\\"'@]|url\((?!#[\w.-]*\))|javascript:", re.IGNORECASE)


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


def checked_svg(text: str) -> str:
    """A figure that matplotlib drew, as it can stand in a page: without comments and metadata.

    Raises:
        ValueError: it is something else, or could run code or fetch something in a browser.

    >>> checked_svg("<svg><!-- a line --><path d='M 0 0 L 1 1'/></svg>")
    "<svg><path d='M 0 0 L 1 1'/></svg>"
    >>> checked_svg("<svg><script>alert(1)</script></svg>")
    Traceback (most recent call last):
    ValueError: the figure has a <script>; expected a figure as this command draws it
    """
    expected = "expected a figure as this command draws it"
    # Comments end elsewhere in HTML than in XML. Declarations could define anything.
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    if "<!" in text or "<?" in text:
        raise ValueError(f"the figure has a declaration (<! or <?); {expected}")
    try:
        elements = list(ElementTree.fromstring(text).iter())
    except ElementTree.ParseError as error:
        raise ValueError(f"the figure is not SVG ({error}); {expected}") from error
    if elements[0].tag.removeprefix(_SVG) != "svg":
        raise ValueError(f"the figure is a <{elements[0].tag}>; {expected}")
    for element in elements:
        name = element.tag.removeprefix(_SVG)
        if name not in _ELEMENTS and not (name == "style" and _STYLE.fullmatch(element.text or "")):
            raise ValueError(f"the figure has a <{name:.60}>; {expected}")
        for key, value in element.attrib.items():
            kind = key.rpartition("}")[2].lower()
            linked = kind in ("href", "src")
            allowed = _LINK.fullmatch(value) if linked else not _REFUSED.search(value)
            if kind.startswith("on") or kind == "base" or not allowed:
                raise ValueError(f"the figure has {kind}={value!r:.60}; {expected}")
    return text
