"""The page on which families run live: in a browser, it shows what the models give in Python."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import importlib.util
import io
import os
import re
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, sync_playwright
from torch import Tensor

ROOT = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--force-color-profile=srgb"]


def script(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("live", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


live = script(ROOT / "docs" / "live" / "live.py")
NAMES = ("registration", "autoencoder")
ACROSS = 4  # samples in a row of the page


def leave_out(why: str) -> NoReturn:
    """Leave a test out; but not where that must not be, as in .ci/run."""
    if os.environ.get("HYPERLIGHT_BROWSER") == "required":
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope="module")
def families() -> dict[str, Any]:
    """Hardly trained, yet each of them already uses its knob."""
    found = [live.registration(steps=100), live.autoencoder(steps=100)]
    return {family.name: family for family in found}


@pytest.fixture(scope="module")
def site(families: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, where the site has it."""
    try:
        files = live.runtime()
    except OSError as error:
        leave_out(str(error))
    folder = tmp_path_factory.mktemp("site")
    live.build(folder / "docs" / "live", families.values(), files)
    (folder / "docs" / "index.html").write_text(
        "<!doctype html><link rel='icon' href='data:,'><title>The site</title>"
    )
    return folder


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        leave_out(f"There is no browser: none of {', '.join(BROWSERS)} is installed.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the page is served."""
    handler = functools.partial(Handler, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/docs/live/index.html"
    server.shutdown()
    server.server_close()


@pytest.fixture
def show(chromium: Browser, address: str) -> Iterator[Callable[..., Page]]:
    """Open the page, which may fetch its own files alone, and complain of nothing."""
    contexts, noise = [], []
    own = (address.removesuffix("docs/live/index.html"), "data:")

    def opened(width: int = 1280, run: bool = True, theme: str = "", **options: Any) -> Page:
        size = {"width": width, "height": 700}
        contexts.append(chromium.new_context(viewport=size, **options))  # type: ignore[arg-type]
        if theme:  # as chosen on a page of the site
            contexts[-1].add_init_script(f"localStorage.setItem('theme', '{theme}')")
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: noise.append(message.text))
        tab.on("pageerror", lambda error: noise.append(str(error)))
        tab.on("request", lambda r: None if r.url.startswith(own) else noise.append(r.url))
        tab.goto(address, wait_until="domcontentloaded")
        for name in NAMES if run else ():
            tab.wait_for_selector(f"#{name}[data-shown]", timeout=60_000)
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert noise == []


# --- what is seen ---------------------------------------------------------------------------


def tiles(canvas: Locator, count: int, height: int, width: int) -> Tensor:
    """The images in a picture: (N, H, W), from 0 to 255."""
    source = canvas.evaluate("canvas => canvas.toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
        pixels = torch.frombuffer(bytearray(image.convert("RGBA").tobytes()), dtype=torch.uint8)
        picture = pixels.reshape(image.height, image.width, 4).int()
    assert picture.shape[:2] == (count // ACROSS * (height + 1) - 1, ACROSS * (width + 1) - 1)
    found = torch.stack([picture[at] for at in places(count, height, width)])
    assert torch.equal(found[..., 0], found[..., 1])  # grey
    assert torch.equal(found[..., 0], found[..., 2])
    assert (found[..., 3] == 255).all()
    return found[..., 0]


def places(count: int, height: int, width: int) -> list[tuple[slice, slice]]:
    """Where each sample is in a picture, with a pixel between two."""
    corners = [divmod(i, ACROSS) for i in range(count)]
    corners = [(row * (height + 1), column * (width + 1)) for row, column in corners]
    return [(slice(y, y + height), slice(x, x + width)) for y, x in corners]


def lines(svg: Locator, count: int, size: int) -> Tensor:
    """The nodes of grids, from its rows and again from its columns: (2, N, 2, H, W), down first."""
    path = svg.locator("path").get_attribute("d")
    assert path
    numbers = torch.tensor([float(number) for number in re.findall(r"-?[0-9.]+", path)])
    grids = numbers.reshape(count, 2, size, size, 2).flip(-1).movedim(-1, 2)
    return torch.stack([grids[:, 0], grids[:, 1].mT])


def brightness(page: Page, element: str, style: str) -> float:
    """Of a colour, from 0 to 255."""
    colour = page.locator(element).first.evaluate(f"e => getComputedStyle(e)['{style}']")
    return sum(map(float, re.findall(r"[0-9.]+", colour)[:3])) / 3


def overflow(page: Page) -> float:
    return float(page.evaluate("document.documentElement.scrollWidth - innerWidth"))


def compare(page: Page, family: Any, gamma: float) -> list[Tensor]:
    """Compare all pictures of a family with what its model gives; the pictures."""
    examples, section = family.examples, page.locator(f"#{family.name}")
    (name,) = family.model.inputs
    with torch.no_grad():
        found = family.model(**examples, **{name: torch.tensor(gamma)})
    given = examples | (found if isinstance(found, dict) else {"output_0": found[0]})
    assert float(section.locator("output").inner_text()) == pytest.approx(gamma, rel=1e-2)
    seen = []
    for picture in section.locator("canvas").all():
        expected = given[str(picture.get_attribute("data-shows"))][:, 0].clamp(0.0, 1.0) * 255
        seen.append(tiles(picture, *expected.shape))
        assert (seen[-1] - expected).abs().max() <= 1.0
    for picture in section.locator("svg").all():
        field = given[str(picture.get_attribute("data-shows"))]
        size = field.shape[-1]
        own = torch.stack(torch.meshgrid(*[torch.arange(size)] * 2, indexing="ij"))
        corners = [[y.start, x.start] for y, x in places(len(field), size, size)]
        expected = field + own + torch.tensor(corners)[:, :, None, None] + 0.5
        seen.append(lines(picture, len(field), size))
        assert (seen[-1] - expected).abs().max() <= 0.011
    return seen


# --- the page -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_pictures_follow_the_keys_as_the_model_says(
    show: Callable[..., Page], families: dict[str, Any], name: str
) -> None:
    page, family = show(), families[name]
    ((knob, space),) = family.model.inputs.items()
    low, high = space.support
    between = low * (high / low) ** 0.995 if space.logarithmic else low + (high - low) * 0.995
    slider, seen = page.get_by_role("slider", name=knob, exact=True), []
    for key, share, gamma in (
        ("Home", "0", low),
        ("End", "1", high),
        ("ArrowLeft", "0.995", between),
    ):
        slider.press(key)
        page.wait_for_selector(f"#{name}[data-shown='{share}']", timeout=20_000)
        seen.append(compare(page, family, float(gamma)))
        assert (
            slider.get_attribute("aria-valuetext") == page.locator(f"#{name} output").inner_text()
        )
    changed = [not torch.equal(first, last) for first, last in zip(*seen[:2], strict=True)]
    assert changed == [False, False, True, True] if name == "registration" else [False, True]
    state = page.locator(f"#{name} .state").inner_text()
    assert re.fullmatch(r"[48] .*digits in [0-9.]+ ms, prediction of the weights included\.", state)


def test_the_last_of_many_moves_is_shown(
    show: Callable[..., Page], families: dict[str, Any]
) -> None:
    page = show()
    page.locator("#smoothness").evaluate(
        "s => { for (let i = 20; i >= 5; i--) {"
        " s.value = i / 20; s.dispatchEvent(new Event('input')); } }"
    )
    page.wait_for_selector("#registration[data-shown='0.25']", timeout=20_000)
    compare(page, families["registration"], 0.25)


def test_the_pictures_follow_a_finger_on_a_small_screen(
    show: Callable[..., Page], families: dict[str, Any]
) -> None:
    page = show(400, has_touch=True, is_mobile=True)
    assert overflow(page) <= 0
    for name in NAMES:
        family = families[name]
        slider = page.locator(f"#{name} input")
        slider.scroll_into_view_if_needed()
        box = slider.bounding_box()
        assert box
        assert box["height"] >= 44  # a finger is that wide
        page.touchscreen.tap(box["x"] + box["width"] - 4, box["y"] + box["height"] / 2)
        page.wait_for_selector(f"#{name}[data-shown='1']", timeout=20_000)
        (space,) = family.model.inputs.values()
        compare(page, family, float(space.support[1]))
        pictures = page.locator(f"#{name} [role=img]")
        assert all(picture.get_attribute("aria-label") for picture in pictures.all())
        assert {round(box["x"]) for box in map(Locator.bounding_box, pictures.all()) if box} == {16}


@pytest.mark.parametrize(
    ("system", "site_theme", "dark"),
    [
        ("light", "", False),
        ("dark", "auto", True),
        ("light", "dark", True),
        ("dark", "light", False),
    ],
)
def test_the_page_is_as_dark_as_the_site(
    show: Callable[..., Page], system: str, site_theme: str, dark: bool
) -> None:
    page = show(run=False, color_scheme=system, theme=site_theme)
    text, behind = (
        brightness(page, "body", "color"),
        brightness(page, ".controls", "backgroundColor"),
    )
    assert (text > 200 and behind < 50) if dark else (text < 50 and behind > 200)
    assert abs(brightness(page, "path", "stroke") - behind) > 80


def test_the_page_links_back_and_the_site_links_to_it(show: Callable[..., Page]) -> None:
    page = show(run=False)
    page.get_by_role("link", name="HyperLight").click()
    assert page.title() == "The site"
    for source, link in (
        ("index.md", "live/index.html"),
        ("tutorials/pretrained.md", "../live/index.html"),
    ):
        assert f"]({link})" in (ROOT / "docs" / source).read_text()


def test_without_a_server_it_says_how_to_start_one(chromium: Browser, site: Path) -> None:
    page = chromium.new_page()
    page.goto((site / "docs" / "live" / "index.html").as_uri())
    for state in page.locator(".state").all():
        assert "python -m http.server --directory build/site" in state.inner_text()
    page.close()


def test_a_network_that_cannot_be_fetched_is_named(
    chromium: Browser, address: str, families: dict[str, Any]
) -> None:
    page = chromium.new_page()
    page.route("**/registration.onnx", lambda route: route.fulfill(status=404))
    page.goto(address)
    page.wait_for_selector("#autoencoder[data-shown]", timeout=60_000)  # which runs all the same
    assert "registration.onnx: 404" in page.get_by_role("alert").inner_text()
    page.close()


# --- what runs it ---------------------------------------------------------------------------


def archive(files: dict[str, bytes]) -> bytes:
    """A package, as npm packs it."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


def test_a_package_is_compared_with_its_checksum() -> None:
    files = {name: name.encode() for name in live.RUNTIME}
    package = archive({**files, "more.js": b""})
    right = base64.b64encode(hashlib.sha512(package).digest()).decode()
    assert live.unpacked(package, right) == files
    other = archive({**files, live.RUNTIME[0]: b"changed"})
    with pytest.raises(
        ValueError, match="that npm gave has the sha512 .*; expected .*Do not serve it"
    ):
        live.unpacked(other, right)


def test_without_npm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(OSError, match="npm is needed to fetch onnxruntime-web; install Node.js"):
        live.runtime()
