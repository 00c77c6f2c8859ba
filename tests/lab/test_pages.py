"""Pages hold no code and fetch nothing, whatever the files say that they are made of."""

from __future__ import annotations

import io
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from hyperlight.lab import figures
from hyperlight.lab.pages import checked_svg
from hyperlight.lab.scheme import SCHEME


def _figure() -> str:
    """A figure with all that matplotlib writes: text, images, hatches, clipped lines."""
    figure, (ax, other) = figures.panels(2)
    ax.plot([1, 10, 100], [1.0, 2.0, 3.0], marker="o", linestyle="--", alpha=0.5)
    ax.bar([1, 10], [1, 2], hatch="//")
    ax.set(xscale="log", title="$10^3$ <b> & -->", xlabel="gamma")
    ax.legend(["a line"])
    other.imshow([[0.0, 1.0], [1.0, 0.0]])
    return figures.svg(figure)


def test_what_is_drawn_is_shown_without_comments() -> None:
    drawn = _figure()
    assert "<!--" in drawn
    assert "<metadata>" in drawn
    assert "<image" in drawn
    assert "<pattern" in drawn
    text = checked_svg(drawn)
    assert "<!" not in text
    assert "http" not in text.replace('"http://www.w3.org/', "")
    assert text.count("<path") == drawn.count("<path")
    assert checked_svg(text) == text


SVG = "http://www.w3.org/2000/svg"
HTML = "http://www.w3.org/1999/xhtml"
HOSTILE = {
    "a script": ("<svg><script>alert(1)</script></svg>", "the figure has a <script>"),
    "a script in capitals": ("<svg><SCRIPT/></svg>", "the figure has a <SCRIPT>"),
    "a script with a prefix": (f"<svg xmlns:h='{HTML}'><h:script/></svg>", "the figure has a <{"),
    "a script after it": ("<svg/><script/>", "the figure is not SVG"),
    "a page": ("<html/>", "the figure is a <html>"),
    "another namespace": (f"<svg xmlns='{HTML}'/>", "the figure is a <{"),
    "an event": ("<svg onload='alert(1)'/>", "the figure has onload='alert(1)'"),
    "an event in capitals": ("<svg><g OnClick='x'/></svg>", "the figure has onclick='x'"),
    "an event with a prefix": ("<svg><g x:onload='a' xmlns:x='y'/></svg>", "has onload='a'"),
    "a link": ("<svg><a href='javascript:x'/></svg>", "the figure has a <a>"),
    "a figure elsewhere": ("<svg><use href='http://x/y#a'/></svg>", "has href='http://x/y#a'"),
    "a file": ("<svg><image href='file:///etc/passwd'/></svg>", "has href='file:///etc/passwd'"),
    "a figure in a figure": (
        "<svg><image href='data:image/svg+xml;base64,AAAA'/></svg>",
        "has href='data:image/svg",
    ),
    "HTML": ("<svg><foreignObject/></svg>", "the figure has a <foreignObject>"),
    "a title": ("<svg><title><img/></title></svg>", "the figure has a <title>"),
    "an animation": ("<svg><animate to='javascript:x'/></svg>", "the figure has a <animate>"),
    "rules for the page": ("<svg><style>body {display: none}</style></svg>", "has a <style>"),
    "rules from elsewhere": ("<svg><style>@import 'http://x'</style></svg>", "has a <style>"),
    "a fill from elsewhere": ("<svg><g style='fill:url(http://x)'/></svg>", "has style='fill:url"),
    "capitals": ("<svg><g fill='URL(//x)'/></svg>", "has fill='URL(//x)'"),
    "an escape": ("<svg><g style='fill:\\75rl(//x)'/></svg>", "has style="),
    "a set of images": ("<svg><g style=\"b:image-set('x')\"/></svg>", "has style="),
    "code": ("<svg><g fill='javascript:alert(1)'/></svg>", "has fill='javascript:alert(1)'"),
    "a base": ("<svg xml:base='http://x'/>", "has base='http://x'"),
    "an entity": ("<!DOCTYPE svg [<!ENTITY a 'b'>]><svg>&a;</svg>", "has a declaration (<! or <?)"),
    "CDATA": ("<svg><![CDATA[<script>]]></svg>", "has a declaration (<! or <?)"),
    "an instruction": ("<svg><?php x?></svg>", "has a declaration (<! or <?)"),
    "a comment without an end": ("<svg><!-- <g/></svg>", "has a declaration (<! or <?)"),
    "no end": ("<svg>", "the figure is not SVG"),
    "nothing": ("", "the figure is not SVG"),
}


@pytest.mark.parametrize(("text", "words"), HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("namespace", [False, True])
def test_a_figure_that_is_more_than_a_figure_is_refused(
    text: str, words: str, namespace: bool
) -> None:
    if namespace:
        text = text.replace("<svg", f"<svg xmlns='{SVG}'", 1) if "xmlns=" not in text else text
    with pytest.raises(ValueError, match="expected a figure") as raised:
        checked_svg(text)
    assert words in str(raised.value)
    assert str(raised.value).endswith("; expected a figure as this command draws it")


@given(
    st.lists(st.sampled_from(["<!--", "-->", ">", "<!-->", "<script>", "--!>", " "]), max_size=8)
)
def test_a_comment_ends_nowhere_else_in_a_browser(parts: list[str]) -> None:
    """HTML ends comments at <!--> and --!> as well."""
    try:
        text = checked_svg(f"<svg>{''.join(parts)}</svg>")
    except ValueError:
        return
    assert "<script" not in text
    assert "<!" not in text


# --- figures on light and on dark pages -----------------------------------------------------


def test_a_figure_has_the_colours_of_the_page_it_stands_in() -> None:
    text = checked_svg(_figure())
    assert "#000000" not in text
    assert text.startswith('<svg fill="currentColor"')  # text, and bands without a colour
    assert text.count("stroke: currentColor") > 10
    assert 'style="fill: #ffffff' not in text  # panels, and the frame of the legend
    assert text.count(SCHEME) == 1
    assert all(rule.startswith("svg:root{") for rule in re.findall(r"[^{}()]*\{[^{}]*\}", SCHEME))


def test_a_figure_drawn_in_black_on_white_becomes_what_is_drawn_today() -> None:
    figure = Figure()
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], "k", label="plain network")
    ax.plot([0, 1], [1, 0], "o", color="#0072b2", markerfacecolor="white")
    ax.text(0.5, 0.5, "on a dark picture", color="white")
    ax.legend(frameon=True)
    today = figures.svg(figure)
    assert "#cccccc" not in today  # the frame of the legend, which is filled with white
    assert figures.follow_scheme(today) == today
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "hyperlight"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    earlier = buffer.getvalue()
    assert "currentColor" not in earlier
    assert figures.follow_scheme(earlier[earlier.index("<svg") :]) == today
    assert '<g style="fill: #ffffff"' in today
    assert "fill: #ffffff; stroke: #0072b2" in today


def test_pictures_are_readable_on_light_and_dark_pages(tmp_path: Path) -> None:
    figure = Figure(figsize=(6.0, 4.0))
    ax = figure.subplots()
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.tick_params(width=6, length=9)
    ax.plot([0, 1], [0.1, 0.1], "k", linewidth=9, label="a line")
    ax.legend(frameon=True)
    ax.text(0.0, 0.2, "HHH", fontsize=30)
    ax.text(0.0, 0.7, "HHH", fontsize=30, color="#d55e00")
    figures.save(figure, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        pixels = np.asarray(image.convert("RGBA"))
    assert pixels[0, 0].tolist() == [255, 255, 255, 0]
    solid = {tuple(pixel) for pixel in pixels[pixels[..., 3] == 255][:, :3].tolist()}
    assert solid == {(0x80, 0x80, 0x80), (0xD5, 0x5E, 0x00)}
    light = (pixels[..., :3].min(axis=-1) > 200) & (pixels[..., 3] > 100)
    assert not light.any()  # such as the frame of the legend, which is hardly transparent
    figures.save(figure, tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").read_text("utf-8").startswith('<svg fill="currentColor"')
