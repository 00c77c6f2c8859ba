"""README and pages run as they stand there, print what they show, and point to what exists."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import hyperlight as hl
from hyperlight.lab.scheme import SCHEME

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
# docs/migration.md has its own tests, in test_migration.py.
RUN = [
    README,
    *(
        ROOT / "docs" / f"{name}.md"
        for name in (
            *("start", "choosing", "cheat-sheet", "learning-rates", "per-sample", "widths"),
            *("diagnosing", "functional-call", "hypnettorch"),
        )
    ),
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
]
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("**/*.md")),
]
# Pages whose numbers are measurements, and nothing else.
MEASURED = [ROOT / "docs" / f"{name}.md" for name in ("choosing", "paper", "learning-rates")]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[str, str]]:
    """The Python blocks of a page, each with the text block that follows it, or ''."""
    pattern = r"```python\n(.*?)```(?:\n+```text\n(.*?)```)?"
    return re.findall(pattern, page.read_text(), re.DOTALL)


def run(page: Path) -> dict[str, object]:
    """Run the blocks of a page from top to bottom, and compare what they print."""
    names: dict[str, object] = {}
    for code, shown in blocks(page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, named(page), "exec"), names)
        if shown:
            assert printed.getvalue() == shown
    return names


def prose(text: str) -> str:
    """A page without code, tables, and the addresses of links."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"^(?: {4}|\|).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"`[^`]*`", "code", text)


def sentences(text: str) -> list[str]:
    """Sentences of prose, and entries of its lists."""
    parts = re.split(r"(?<=[.?!])\*{0,2}\)?\s+|\n\s*\n|\n- ", prose(text))
    return [" ".join(part.split()) for part in parts if part.strip()]


def words(text: str) -> list[str]:
    return re.findall(r"\w[\w'.-]*", text)


def anchors(page: Path) -> set[str]:
    """The anchors that the headings of a page have on GitHub."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- the README -------------------------------------------------------------------------


def test_the_readme_runs_and_prints_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (code, shown), (_, nothing) = blocks(README)
    assert 12 <= len([line for line in code.splitlines() if line.strip()]) <= 15
    assert shown
    assert not nothing
    names = run(README)
    model, net, plain = names["model"], names["net"], names["plain"]
    assert isinstance(model, hl.HyperModel)
    assert isinstance(net, torch.nn.Sequential)
    assert isinstance(plain, torch.nn.Sequential)
    # the whole family, beyond the point that is printed: the quantile q of x + noise is x + q
    x = torch.linspace(0.1, 0.9, 9)[:, None]
    for q in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert (model(x, q=q) - (x + q)).abs().max().item() < 0.15
    assert torch.equal(plain(x), model(x, q=0.9))
    assert torch.equal(hl.load("model.safetensors", net)(x, q=0.3), model(x, q=0.3))
    assert 'type="range"' in Path("knob.html").read_text()


def test_the_readme_is_read_in_90_seconds() -> None:
    text, links = README.read_text().split("\n## Links\n")
    assert "](" in links
    assert len(words(prose(text))) <= 450
    assert not re.search(r"^\|", text, re.MULTILINE)  # no table
    pictures = re.findall(r"!\[[^\]]*\]\((?!https://img\.shields\.io/badge/)", text)
    assert len(pictures) <= 3
    bullets = re.findall(r"^- \[.*$", text, re.MULTILINE)
    assert len(bullets) == 6
    for bullet in bullets:
        assert len(words(prose(bullet))) <= 12, bullet


def test_the_pictures_of_the_readme_suit_light_and_dark_pages() -> None:
    """An SVG follows the page; what has one colour behind it is black, as scans are."""
    pictures = re.findall(r"!\[[^\]]*\]\((?!https?:)([^)]*)\)", README.read_text())
    assert len(pictures) == 2
    for name in pictures:
        if name.endswith(".svg"):
            assert SCHEME in (ROOT / name).read_text("utf-8")
            continue
        with Image.open(ROOT / name) as image:
            assert (ROOT / name).stat().st_size < 300_000
            for frame in ImageSequence.Iterator(image):
                edge = np.asarray(frame.convert("L"))[[0, -1]]
                assert edge.max() < 32


# --- all pages --------------------------------------------------------------------------


@pytest.mark.parametrize("page", RUN[1:], ids=named)
def test_every_block_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(page)


def test_the_loop_runs_as_the_page_about_the_lab_says() -> None:
    names = run(ROOT / "docs" / "lab.md")
    assert names["run"].points[-1].figures["accuracy"] > 50.0  # type: ignore[attr-defined]


def test_the_page_about_studies_runs() -> None:
    names = run(ROOT / "docs" / "studies.md")
    assert names["STUDY"].name == "widths"  # type: ignore[attr-defined]


def test_nothing_tells_to_install_the_other_package_of_that_name() -> None:
    """On PyPI ``hyperlight`` is 0.0.5, an earlier package without extras."""
    found = []
    for path in (*PAGES, *(ROOT / "src").glob("**/*.py"), *(ROOT / "examples").glob("*.py")):
        for advice in re.findall(r"pip install[^\n`]*", path.read_text()):
            if re.search(r"\bhyperlight\b", advice):
                found.append((named(path), advice))
    pages = ("README.md", "docs/migration.md", "docs/start.md")  # which say what it installs
    assert sorted(found) == [(page, "pip install hyperlight") for page in pages]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_what_a_page_points_to_exists(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_page_names_only_what_there_is(page: Path) -> None:
    text = re.sub(r"```python\n# 0\.0\.5\n.*?```", "", page.read_text(), flags=re.DOTALL)
    for path in re.findall(r"\bhl((?:\.[A-Za-z_]\w*)+)", text):
        found: object = hl
        for name in path[1:].split("."):
            found = getattr(found, name)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_page_is_easy_to_read(page: Path) -> None:
    for sentence in sentences(page.read_text()):
        assert len(words(sentence)) <= 25, sentence
        assert len(re.findall(r"\d[\d.,]*", sentence)) <= 2, sentence


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_page_has_no_private_words(page: Path) -> None:
    for word in ("carries over", "plain step", "of before", r"design D\d", "default formulation"):
        assert not re.search(word, page.read_text()), word


@pytest.mark.parametrize("page", MEASURED, ids=named)
def test_the_numbers_of_a_page_are_those_of_the_results(page: Path) -> None:
    known = "\n".join(
        file.read_text()
        for file in (ROOT / "results").rglob("*")
        if file.name in ("README.md", "claims.json")
    )
    for row in re.findall(r"^\|.*$", page.read_text(), re.MULTILINE):
        for number in re.findall(r"(?<![\w.])\d+\.\d+(?: ± \d+\.\d+)?", row):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", known), number
    for counts in re.findall(
        r"\*\*(\d+) of the paper's claims hold at this size, and (\d+) are refuted",
        page.read_text(),
    ):
        assert f"| the paper | {' | '.join(counts)} |" in known
