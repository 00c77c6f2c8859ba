"""The site: every public name is in the API reference, and every page in a table of contents."""

from __future__ import annotations

import importlib
import inspect
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from matplotlib.figure import Figure

import hyperlight as hl
from hyperlight.io import hub

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    page
    for page in (*DOCS.rglob("*.md"), *DOCS.rglob("*.rst"), *(ROOT / "results").rglob("*.md"))
    if DOCS / "gallery" not in page.parents  # made from the examples
)


def public() -> dict[str, object]:
    """Every public name of the library, and what it names."""
    found: dict[str, object] = {}
    for module in (hl, hl.optim, hl.testing, hl.io):
        for name in module.__all__:
            thing = getattr(module, name)
            if not isinstance(thing, ModuleType):
                found[f"{module.__name__}.{name}"] = thing
    for name, thing in vars(hub).items():
        if inspect.isfunction(thing) and thing.__module__ == hub.__name__ and name[0] != "_":
            found[f"{hub.__name__}.{name}"] = thing
    return found


def documented() -> Counter[object]:
    """What the pages of the API reference document, and how often."""
    found: Counter[object] = Counter()
    for page in (DOCS / "api").glob("*.rst"):
        module: ModuleType | None = None
        for directive, name in re.findall(r"^\.\. (\w+):: (\S+)$", page.read_text(), re.M):
            if directive == "currentmodule":
                module = importlib.import_module(name)
            elif directive in ("autoclass", "autofunction", "autoexception"):
                found[getattr(module, name)] += 1
    return found


def entries(page: Path) -> dict[str, list[Path]]:
    """What the tables of contents of a page name, and the files of each name."""
    text = page.read_text()
    tables = re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.M | re.S)
    tables += re.findall(r"^\.\. toctree::\n((?:   .*\n|\n)*)", text, re.M)
    names = [line.strip() for line in "\n".join(tables).splitlines()]
    found = {}
    for name in names:
        if name and not name.startswith(":"):
            folder, path = ROOT if name.startswith("/") else page.parent, name.lstrip("/")
            found[name] = [*folder.glob(f"{path}.md"), *folder.glob(f"{path}.rst")]
    return found


@pytest.mark.parametrize("name", sorted(public()))
def test_every_public_name_is_in_the_api_reference(name: str) -> None:
    assert documented()[public()[name]] == 1


def test_the_api_reference_has_nothing_else() -> None:
    assert set(documented()) == set(public().values())


def test_every_page_is_in_a_table_of_contents() -> None:
    reached, left = {DOCS / "index.md"}, [DOCS / "index.md"]
    while left:
        for name, files in entries(left.pop()).items():
            assert files or name == "gallery/index", name  # the gallery is made by the build
            left += set(files) - reached
            reached |= set(files)
    assert set(PAGES) <= reached


def test_figures_of_the_gallery_are_described_by_their_own_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On their pages, and from there in the index; sphinx-gallery knows titles and file names."""
    monkeypatch.syspath_prepend(str(DOCS))
    pictures = importlib.import_module("pictures")
    figure = Figure()
    left, right, _ = figure.subplots(1, 3)  # nothing is said of the third
    left.plot([0, 1], label="one family")
    left.plot([1, 0], label="a network for each")
    left.set(xlabel="rate", ylabel="accuracy (%)")
    left.legend()
    right.set(title="beta from\n0 to 1", ylabel="digit")
    described = "accuracy (%) over rate: one family, a network for each; beta from 0 to 1: digit"
    assert pictures.describe(figure) == described
    assert pictures.describe(Figure()) == ""
    page = f".. image-sg:: a.svg\n   :alt: first\n\n.. image-sg:: b.svg\n   :alt: {described}\n"
    assert pictures.alt_of(page) == described
    assert pictures.alt_of("no figure") == ""


def test_every_example_ends_with_a_figure_that_says_what_it_is() -> None:
    for page in (ROOT / "examples").glob("plot_*.py"):
        words = re.findall(r"(?:[xy]label|title)\b ?[(=]", page.read_text())
        assert words, page.name
