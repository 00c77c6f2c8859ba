"""Pages in a real browser: a hand moves the slider, and the screen shows what the model says."""

from __future__ import annotations

import base64
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Frame, Locator, Page, sync_playwright
from torch import Tensor, nn

import hyperlight as hl
from hyperlight.lab import figures
from hyperlight.lab.report import write
from hyperlight.lab.studies.page import read as read_studies
from hyperlight.lab.studies.page import write as write_studies
from hyperlight.lab.summary import summarize
from hyperlight.lab.tasks.base import Outcome
from tests.lab.making import ACCURACY, make_run

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--force-color-profile=srgb",
]
STUDIES = Path(__file__).parents[1] / "results" / "studies" / "cpu"
THUMB = 12.8  # pixels from the middle of the slider's handle to its edge

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser, with a profile of its own."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        absent = f"there is no browser: none of {', '.join(NAMES)} is on the path"
        # As .ci/run sets it: there, these tests are never left out.
        if os.environ.get("HYPERLIGHT_BROWSER") == "required":
            pytest.fail(f"{absent}. Install Chromium, as with apt-get install chromium.")
        pytest.skip(absent)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def show(chromium: Browser, tmp_path: Path) -> Iterator[Open]:
    """Open a page from a file. No page may complain in the console, or fetch anything."""
    contexts, noise = [], []

    def opened(page: hl.Page | str | Path, width: int = 800, **options: Any) -> Page:
        path = page if isinstance(page, Path) else tmp_path / f"{len(contexts)}.html"
        if not isinstance(page, Path):
            path.write_text(page if isinstance(page, str) else page.html, "utf-8")
        size = {"width": width, "height": 700}
        contexts.append(chromium.new_context(viewport=size, **options))  # type: ignore[arg-type]
        tab = contexts[-1].new_page()
        tab.set_default_timeout(5000)
        tab.on("console", lambda message: noise.append(message.text))
        tab.on("pageerror", lambda error: noise.append(str(error)))
        own = (path.as_uri(), "data:", "about:")
        tab.on("request", lambda r: None if r.url.startswith(own) else noise.append(r.url))
        tab.goto(path.as_uri())
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert noise == []


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


# --- what is seen ---------------------------------------------------------------------------


def screen(element: Locator) -> Tensor:
    """What is seen of an element: ``(H, W, 3)``, from 0 to 255."""
    element.evaluate("e => e.decode && e.decode()")  # a new picture is shown a little later
    return pixels_of(element.screenshot())


def pixels_of(png: bytes) -> Tensor:
    with Image.open(io.BytesIO(png)) as image:
        pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        return pixels.reshape(image.height, image.width, 3).double()


def inside(image: Locator) -> Tensor:
    """A picture without its border."""
    return screen(image)[1:-1, 1:-1]


def white(element: Locator) -> float:
    """The share of an element that is white."""
    return (screen(element) == 255).all(dim=2).double().mean().item()


def middles(image: Locator, height: int, width: int) -> Tensor:
    """The colours at the middle of each pixel of a picture that is shown enlarged."""
    seen = inside(image)
    rows, columns = (
        ((torch.arange(n) + 0.5) * size / n).long()
        for n, size in zip((height, width), seen.shape, strict=False)
    )
    return seen[rows[:, None], columns]


def ink(seen: Tensor, points: Tensor, box: tuple[float, float, float, float]) -> Tensor:
    """Whether something blue is drawn within a pixel of points ``(N, 2)``, x first, in a box."""
    blue = (seen[..., 2] - seen[..., 0] > 60)[None, None].double()
    near = nn.functional.max_pool2d(blue, 3, 1, 1)[0, 0]
    left, top, width, height = box
    size = torch.tensor([seen.shape[1] / width, seen.shape[0] / height], dtype=torch.float64)
    at = ((points - torch.tensor([left, top])) * size).long()
    return near[at[:, 1].clamp(0, len(seen) - 1), at[:, 0].clamp(0, seen.shape[1] - 1)] > 0


def grey(model: hl.HyperModel, x: Tensor, sample: int, **gamma: Any) -> Tensor:
    """A picture as the model gives it, ``(H, W, 3)``."""
    with torch.no_grad():
        return (model(x, **gamma)[sample] * 255).round().movedim(0, -1).expand(-1, -1, 3)


def cells(page: Page) -> list[str]:
    return [text.strip() for text in page.get_by_role("cell").all_inner_texts()]


def slider(page: Page | Frame, name: str = "scale") -> Locator:
    return page.get_by_role("slider", name=name, exact=True)


def drag(page: Page, handle: Locator, share: float) -> None:
    """Press the handle and move it to a share of the way, without letting it go."""
    box = handle.bounding_box()
    assert box
    now = float(handle.evaluate("s => (s.value - s.min) / (s.max - s.min)"))
    y = box["y"] + box["height"] / 2
    begin, end = (box["x"] + THUMB + at * (box["width"] - 2 * THUMB) for at in (now, share))
    page.mouse.move(begin, y)
    page.mouse.down()
    page.mouse.move(end, y, steps=3)


def toucher(page: Page) -> Callable[..., None]:
    """How a finger touches a page: the kind of event, and where it is."""
    device = page.context.new_cdp_session(page)

    def touch(kind: str, *at: float) -> None:
        points = [{"x": at[0], "y": at[1]}] if at else []
        device.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    return touch


class Through(nn.Module):
    """A layer and a function of its output."""

    def __init__(self, layer: nn.Module, then: Callable[[Tensor], Any] = torch.sigmoid) -> None:
        super().__init__()
        self.layer, self.then = layer, then

    def forward(self, x: Tensor) -> Any:
        return self.then(self.layer(x))


def made(net: nn.Module, size: float = 1.0, **inputs: hl.Input) -> hl.HyperModel:
    """A model whose outputs differ visibly along its inputs."""
    generator = torch.Generator().manual_seed(0)
    return hl.hypernetize(
        *(net, inputs or {"scale": hl.Uniform(0.0, 0.5)}),
        init=hl.Relative(size),
        generator=generator,
    )


def pictures() -> tuple[hl.HyperModel, Tensor]:
    """The same each time."""
    torch.manual_seed(0)
    return made(Through(nn.Conv2d(1, 1, 3, padding=1)), 2.0), 2.0 * torch.rand(2, 1, 6, 8)


SCALES = torch.linspace(0.0, 0.5, 9)


# --- moving the slider ----------------------------------------------------------------------


def test_the_picture_follows_the_mouse(show: Open) -> None:
    model, x = pictures()
    page = show(hl.explore(model, x, scale=SCALES))
    handle, seen = slider(page), []
    for share, i in ((0.0, 0), (1.0, 8), (0.25, 2)):
        drag(page, handle, share)
        assert page.locator("output").inner_text() == f"{float(SCALES[i]):.3g}"
        for sample, image in enumerate(page.get_by_role("img").all()):
            found = middles(image, 6, 8)
            assert (found - grey(model, x, sample, scale=SCALES[i])).abs().max() <= 1.0
            seen.append(found)
        page.mouse.up()
    assert all((a - b).abs().max() > 20 for a, b in zip(seen, seen[2:], strict=False))


def test_the_picture_follows_the_keys_to_the_ends(show: Open) -> None:
    model, x = pictures()
    page = show(hl.explore(model, x, scale=SCALES, samples=1))
    handle = slider(page)
    page.keyboard.press("Tab")  # the slider is the first thing in the page that a key reaches
    assert handle.evaluate("s => s === document.activeElement")
    for key, i in (
        ("ArrowRight", 5),
        ("ArrowLeft", 4),
        ("End", 8),
        ("ArrowRight", 8),
        ("Home", 0),
        ("ArrowDown", 0),
        ("ArrowUp", 1),
    ):
        page.keyboard.press(key)
        assert handle.get_attribute("aria-valuetext") == f"{float(SCALES[i]):.3g}", key
        if i in (0, 5, 8):
            found = middles(page.get_by_role("img"), 6, 8)
            assert (found - grey(model, x, 0, scale=SCALES[i])).abs().max() <= 1.0, key


def test_the_picture_follows_a_finger(show: Open) -> None:
    model, x = pictures()
    page = show(hl.explore(model, x, scale=SCALES, samples=1), 400, has_touch=True, is_mobile=True)
    handle, image = slider(page), page.get_by_role("img")
    box = handle.bounding_box()
    assert box
    assert box["height"] >= 44  # a finger is that wide
    y, touch = box["y"] + box["height"] / 2, toucher(page)
    middle, right = box["x"] + box["width"] / 2, box["x"] + box["width"] - THUMB
    touch("touchStart", middle, y)
    for at in (middle + 20, middle + 60, right):
        touch("touchMove", at, y)
    assert (middles(image, 6, 8) - grey(model, x, 0, scale=0.5)).abs().max() <= 1.0
    touch("touchEnd")
    page.touchscreen.tap(box["x"] + THUMB, y)
    assert (middles(image, 6, 8) - grey(model, x, 0, scale=0.0)).abs().max() <= 1.0
    assert page.locator("output").inner_text() == "0"


def test_the_slider_stays_in_view_and_lets_a_finger_scroll(show: Open) -> None:
    model, _ = pictures()
    shown = hl.explore(model, torch.rand(12, 1, 6, 8), scale=SCALES, samples=12)
    page = show(shown, 400, has_touch=True, is_mobile=True)
    controls, handle = page.locator(".controls"), slider(page)
    before, box = white(controls), handle.bounding_box()
    assert box
    touch = toucher(page)
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch("touchStart", x, y)
    for up in range(8, 72, 8):
        touch("touchMove", x, y - up)
        page.wait_for_timeout(16)
    touch("touchEnd")
    assert page.evaluate("scrollY") > 20
    assert handle.input_value() == "4"
    page.evaluate("scrollTo(0, 300)")
    box = controls.bounding_box()
    assert box
    assert box["y"] == 0
    assert white(controls) > before - 0.02  # nothing shines through


def test_two_sliders_go_to_every_pair(show: Open) -> None:
    model = made(Through(nn.Conv2d(1, 3, 3)), 2.0, scale=hl.Uniform(), weight=hl.Uniform())
    x = 2.0 * torch.rand(1, 1, 6, 8)
    page = show(hl.explore(model, x, scale=[0.1, 0.5, 0.9], weight=5))
    image, scale, weight = page.get_by_role("img"), slider(page), slider(page, "weight")
    for share, key, a, b in ((0.0, "End", 0.1, 1.0), (1.0, "Home", 0.9, 0.0)):
        drag(page, scale, share)
        page.mouse.up()
        weight.press(key)
        weight.press("ArrowLeft")
        weight.press("ArrowRight" if b else "ArrowLeft")
        assert page.locator("output").all_inner_texts() == [f"{a:g}", f"{b:g}"]
        expected = grey(model, x, 0, scale=a, weight=b)
        assert (middles(image, 4, 6) - expected).abs().max() <= 1.0
        assert f"scale = {a:g}, weight = {b:g}: " in str(image.get_attribute("alt"))


def test_a_page_shows_where_its_slider_is_when_one_comes_back(show: Open, tmp_path: Path) -> None:
    model, x = pictures()
    page = show(hl.explore(model, x, scale=SCALES, samples=1))
    slider(page).press("End")
    page.goto("about:blank")
    page.go_back()
    i = int(slider(page).input_value())
    assert page.locator("output").inner_text() == f"{float(SCALES[i]):.3g}"
    found = middles(page.get_by_role("img"), 6, 8)
    assert (found - grey(model, x, 0, scale=SCALES[i])).abs().max() <= 1.0


# --- what is drawn --------------------------------------------------------------------------


def test_labels_have_their_colours(show: Open) -> None:
    model, x = made(nn.Conv2d(1, 4, 3, padding=1), 2.0), torch.randn(2, 1, 6, 8)
    names = ["sky", "sea", "sand", "rock"]
    page = show(hl.explore(model, x, scale=SCALES, names=names))
    keys = page.locator(".key").evaluate_all(
        "all => all.map(k => [k.nextSibling.textContent.replace(/[^a-z]/g, ''),"
        " ...getComputedStyle(k.firstChild).fill.match(/[0-9]+/g).map(Number)])"
    )
    colours = {name: torch.tensor(rgb, dtype=torch.float64) for name, *rgb in keys}
    for key, scale in (("Home", 0.0), ("End", 0.5)):
        slider(page).press(key)
        for sample, figure in enumerate(page.get_by_role("figure").all()):
            labels = model(x, scale=scale)[sample].argmax(0)
            expected = torch.stack([colours[names[i]] for i in labels.flatten()]).view(6, 8, 3)
            assert (middles(figure.locator("img").last, 6, 8) - expected).abs().max() <= 1.0
            given = (x[sample, 0] - x.min()) / (x.max() - x.min()) * 255  # what they are labels of
            assert (middles(figure.locator("img").first, 6, 8)[..., 0] - given).abs().max() <= 1.0


def test_a_grid_moves_as_the_field_says(show: Open) -> None:
    model, x = made(nn.Conv2d(1, 2, 3, padding=1), 3.0), 2.0 * torch.randn(1, 1, 7, 9)
    page = show(hl.explore(model, x, scale=SCALES), 400)
    swept = torch.stack([model(x, scale=s)[0].detach() for s in SCALES])
    rows, columns = torch.meshgrid(torch.arange(7), torch.arange(9), indexing="ij")
    nodes = torch.stack([swept[:, 1] + columns, swept[:, 0] + rows], -1).flatten(1, 2).double()
    nodes = (10 * nodes).round() / 10  # as precisely as it is drawn
    (left, top), (right, bottom) = (nodes.flatten(0, 1).aminmax(dim=0)[i].tolist() for i in (0, 1))
    box = (left - 1, top - 1, right - left + 2, bottom - top + 2)
    for key, i in (("Home", 0), ("End", 8)):
        slider(page).press(key)
        seen = inside(page.get_by_role("img"))
        assert ink(seen, nodes[i], box).all()
        assert not ink(seen, nodes[8 - i], box).all()


@pytest.mark.parametrize("dark", [False, True])
def test_a_curve_goes_where_the_model_says(show: Open, dark: bool) -> None:
    net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    model, x = made(net, 2.0), torch.linspace(-2.0, 3.0, 40)[:, None]
    page = show(hl.explore(model, x, scale=SCALES), color_scheme="dark" if dark else "light")
    y = torch.stack([model(x, scale=s)[:, 0].detach() for s in SCALES]).double()
    across = 300 + 2800 * (x[:, 0].double() + 2.0) / 5.0
    up = 1700 - 1600 * (y - y.min()) / (y.max() - y.min())
    for key, i in (("Home", 0), ("End", 8)):
        slider(page).press(key)
        at = [torch.stack([across, heights], -1) for heights in (up[i], up[8 - i])]
        seen = inside(page.get_by_role("img"))
        assert ink(seen, at[0], (-250, 0, 3450, 1900)).all()
        assert not ink(seen, at[1], (-250, 0, 3450, 1900)).all()


def test_bars_are_the_probabilities(show: Open) -> None:
    model, x = made(nn.Linear(2, 3), 2.0), 3.0 * torch.randn(2, 2)
    page = show(hl.explore(model, x, scale=SCALES, names=["cat", "dog", "owl"]))
    for key, scale in (("Home", 0.0), ("End", 0.5)):
        slider(page).press(key)
        p = model(x, scale=scale).softmax(1)
        assert cells(page) == [f"{v:.3f}" for v in p.flatten()]
        bars = page.locator("meter")
        drawn = [float(b.evaluate("b => b.value")) for b in bars.all()]
        assert drawn == pytest.approx(p.flatten().tolist(), abs=1e-4)
        full = screen(bars.first)
        green = (full[len(full) // 2, :, 1] - full[len(full) // 2, :, 2] > 40).double().mean()
        assert float(green) == pytest.approx(p[0, 0].item(), abs=0.1)


def test_tables_have_the_values(show: Open) -> None:
    model, x = made(nn.Linear(2, 2)), torch.rand(1, 2)
    page = show(hl.explore(model, x, scale=SCALES))
    for key, scale in (("Home", 0.0), ("End", 0.5)):
        slider(page).press(key)
        expected = [f"{v:.4g}" for v in model(x, scale=scale)[0].tolist()]
        assert cells(page) == expected


def test_drawings_of_the_users_are_shown(show: Open) -> None:
    model, x = pictures()

    def bar(y: Tensor) -> str:
        width = 100 * float(y[0].mean())
        return (
            "<svg viewBox='0 0 100 9'><script>document.title = 'x'; alert(1)</script>"
            f"<rect width='100' height='9' fill='#000'/><rect width='{width}' height='9' "
            "fill='#f00'/></svg>"
        )

    page = show(hl.explore(model, x, scale=SCALES, draw=bar, title="Own"))
    for key, scale in (("Home", 0.0), ("End", 0.5)):
        slider(page).press(key)
        seen = inside(page.get_by_role("img"))
        red = (seen[len(seen) // 2, :, 0] > 128).double().mean().item()
        assert red == pytest.approx(model(x, scale=scale)[0].mean().item(), abs=0.01)
    assert page.title() == "Own"


# --- any page -------------------------------------------------------------------------------


def every_kind() -> str:
    """A page with all kinds of parts, with names that are hard to fit."""
    long = "scale_of_something_with_a_name_that_no_screen_has_room_for"
    space: Any = {long: hl.Uniform(), "other": hl.Categorical(2)}
    x = torch.rand(2, 1, 16, 16)
    names = ["a_class_with_a_name_that_is_far_too_long", "b", "c"]
    flat = nn.Sequential(nn.Flatten(), nn.Linear(256, 3))
    nets: list[tuple[nn.Module, Any, dict[str, Any]]] = [
        (Through(nn.Conv2d(1, 3, 3)), x, {}),
        (nn.Conv2d(1, 1, 3), x, {}),  # beyond 0 and 1
        (nn.Conv2d(1, 2, 3), x, {}),  # a field
        (nn.Conv2d(1, 3, 3), x, {"names": names, "draw": "labels"}),
        (nn.Linear(1, 1), torch.linspace(0, 1, 9)[:, None], {}),  # a curve
        (flat, x, {"names": names}),  # classes
        (flat, x, {"title": long}),  # values
    ]
    pages = [
        hl.explore(made(net, **space), given, **{long: 3}, other=[0, 1], **options)
        for net, given, options in nets
    ]
    parts = "".join(page.part for page in pages[:-1])
    return pages[-1].html.replace("</body>", f"{parts}</body>")


def luminance(rgb: list[float]) -> float:
    """Of a colour, as WCAG 2 defines it."""
    parts = [v / 255 for v in rgb]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


TEXTS = """all => all.filter(e => e.offsetParent && e.textContent.trim()).map(e => [e.tagName,
  getComputedStyle(e).color.match(/[0-9.]+/g).slice(0, 3).map(Number),
  Number(getComputedStyle(e).opacity) * Number(getComputedStyle(e.parentElement).opacity)])"""


def check_colours(page: Page, *, dark: bool) -> None:
    """The page is dark or light, and its texts stand out."""
    corner = {"x": 0, "y": 0, "width": 4, "height": 4}
    paper = pixels_of(page.screenshot(clip=corner))[2, 2].tolist()  # type: ignore[arg-type]
    assert luminance(paper) < 0.05 if dark else luminance(paper) > 0.9
    found = page.locator("h1, h2, label, output, small, figcaption, caption, p, th, td, span, li")
    for tag, rgb, opacity in found.evaluate_all(TEXTS):
        mixed = [opacity * a + (1 - opacity) * b for a, b in zip(rgb, paper, strict=True)]
        low, high = sorted((luminance(mixed), luminance(paper)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (tag, rgb)


def overflow(page: Page) -> float:
    """How many pixels a page is wider than the window."""
    return float(page.evaluate("document.documentElement.scrollWidth - innerWidth"))


@pytest.mark.parametrize("dark", [False, True])
def test_pages_fit_a_phone_and_the_night(show: Open, dark: bool) -> None:
    page = show(every_kind(), 400, color_scheme="dark" if dark else "light")
    assert overflow(page) <= 0
    check_colours(page, dark=dark)
    kinds = {  # of a part: pictures, tables, bars, a key
        tuple(len(part.query_selector_all(s)) for s in ("img", "table", "meter", "p > .key"))
        for part in page.query_selector_all("section")
    }
    assert kinds == {(2, 0, 0, 0), (4, 0, 0, 3), (1, 0, 0, 0), (2, 2, 6, 0), (2, 2, 0, 0)}
    for image in page.query_selector_all("img"):
        assert image.get_attribute("alt")
        assert image.evaluate("i => i.decode().then(() => i.naturalWidth > 0)")
    for handle in page.query_selector_all("input"):
        box = handle.bounding_box()
        assert box
        assert box["height"] >= 44
        assert box["width"] > 340


def test_sliders_say_what_they_are_and_where(show: Open) -> None:
    model = made(nn.Linear(2, 1), decay=hl.LogUniform(1e-3, 10.0), site=hl.Categorical(3))
    page = show(hl.explore(model, torch.rand(1, 2), decay=5, site=range(3)))
    tree = page.locator("body").aria_snapshot()
    assert '- region "Linear over decay and site"' in tree
    decay = slider(page, "decay")
    assert decay.get_attribute("aria-valuetext") == "0.1"
    page.get_by_text("decay", exact=True).click()  # the label is the slider's
    page.keyboard.press("ArrowRight")
    assert decay.get_attribute("aria-valuetext") == "1"
    assert page.locator(".ends").all_inner_texts() == ["0.001\n10", "0\n2"]


def test_without_scripts_the_values_in_the_middle_are_shown(show: Open) -> None:
    model, x = pictures()
    page = show(hl.explore(model, x, scale=SCALES, samples=1), java_script_enabled=False)
    assert "The sliders need JavaScript" in page.locator("body").inner_text()
    found = middles(page.get_by_role("img"), 6, 8)
    assert (found - grey(model, x, 0, scale=0.25)).abs().max() <= 1.0


def test_a_notebook_shows_a_page_in_a_frame(show: Open) -> None:
    model, x = pictures()
    shown = hl.explore(model, x, scale=SCALES, samples=1)
    page = show(f"<!DOCTYPE html><html><body>{shown._repr_html_()}</body></html>")
    (frame,) = page.main_frame.child_frames
    slider(frame).press("End")
    found = middles(frame.get_by_role("img"), 6, 8)
    assert (found - grey(model, x, 0, scale=0.5)).abs().max() <= 1.0


def test_parts_of_several_pages_stand_in_one(show: Open) -> None:
    model, x = pictures()
    parts = [hl.explore(model, x[:1], scale=SCALES).part, hl.explore(model, x[1:], scale=3).part]
    assert not any("<html" in part or "<h1" in part for part in parts)
    page = show(f"<!DOCTYPE html><html><body>{''.join(parts)}</body></html>")
    page.locator("label").last.click()
    page.keyboard.press("End")
    for sample, scale in ((0, 0.25), (1, 0.5)):  # the first stays in the middle
        found = middles(page.get_by_role("img").nth(sample), 6, 8)
        assert (found - grey(model, x, sample, scale=scale)).abs().max() <= 1.0


# --- figures and studies --------------------------------------------------------------------


@pytest.mark.parametrize("dark", [False, True])
def test_a_figure_is_readable_wherever_it_is_linked(show: Open, dark: bool) -> None:
    """It follows the system, or what the page says of its pictures, and is never half of both."""
    figure, (ax,) = figures.panels(1, width=3.0, height=2.0)
    ax.text(0.0, 0.2, "HHH", fontsize=60)
    source = base64.b64encode(figures.svg(figure).encode()).decode()
    picture = f'src="data:image/svg+xml;base64,{source}"'
    page = show(
        f"<!DOCTYPE html><img {picture}><img {picture} style='color-scheme: dark'>"
        f"<img {picture} style='color-scheme: light'>",
        color_scheme="dark" if dark else "light",
    )
    for image, expected in zip(page.locator("img").all(), (dark, True, False), strict=True):
        seen = [luminance(rgb) for rgb in screen(image).reshape(-1, 3).tolist()]
        paper = seen[0]
        assert paper < 0.05 if expected else paper > 0.9
        low, high = sorted((paper, max(seen) if expected else min(seen)))
        assert (high + 0.05) / (low + 0.05) >= 7.0


@pytest.mark.parametrize(("width", "dark"), [(1280, True), (400, False), (400, True)])
def test_the_page_of_studies(show: Open, tmp_path: Path, width: int, dark: bool) -> None:
    for name in ("fig1a", "table2"):
        shutil.copytree(STUDIES / name, tmp_path / name)
    out = write_studies(read_studies(tmp_path, []), tmp_path / "page.html", "hyperlight report")
    page = show(out, width, color_scheme="dark" if dark else "light")
    assert overflow(page) <= 0
    check_colours(page, dark=dark)
    for drawn in page.locator(".drawn svg").all():
        assert drawn.bounding_box()["width"] >= 500  # type: ignore[index]
        seen = screen(drawn)
        assert luminance(seen[1, 1].tolist()) < 0.05 if dark else white(drawn) > 0.5


# --- the report of a run --------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all that a run can have. Training one would take most of the time here."""
    folder = tmp_path_factory.mktemp("report")
    Image.new("RGB", (900, 300), "white").save(folder / "curves.png")
    heading = ["gamma", *(f"a figure with a name, {i}" for i in range(8))]
    table = ("Along gamma", heading, [[0.1] * 9, [0.2] * 9])
    outcome = Outcome({"dice there": 0.5}, [table], [("Curves", folder / "curves.png")])
    names = ("classical", "mip", "plain")
    runs = [make_run(name, seed, outcome=outcome) for seed in (0, 1) for name in names]
    model, x = pictures()
    return write(
        *(folder, runs, summarize(runs, 90.0, ACCURACY)),
        title="Classical and MIP hypernetworks on a data set",
        note="a data set, 100 images to train",
        target=90.0,
        settings={"data_dir": "/a/folder/with/a/long/name" * 4},
        command=f"hyperlight demo --out {'x' * 80}",
        knob=("MIP, seed 0.", hl.explore(model, x, scale=SCALES)),
    )


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_a_report_has_the_knob_on_top(show: Open, report: Path, width: int, dark: bool) -> None:
    page = show(report, width, color_scheme="dark" if dark else "light")
    assert overflow(page) <= 0
    check_colours(page, dark=dark)
    folds = page.locator("details")
    assert folds.count() >= 4
    assert not any(fold.get_attribute("open") for fold in folds.all())
    order = [
        page.locator(which).first.bounding_box()
        for which in (".lead", ".drawn svg", "input", ".panels", "details")
    ]
    heights = [box["y"] for box in order if box]
    assert len(heights) == 5
    assert heights == sorted(heights)
    model, x = pictures()
    for key, scale in (("Home", 0.0), ("End", 0.5)):
        slider(page).press(key)
        found = middles(page.locator("section img").first, 6, 8)
        assert (found - grey(model, x, 0, scale=scale)).abs().max() <= 1.0
    for fold in folds.all():
        fold.locator("summary").click()
    assert overflow(page) <= 0
    check_colours(page, dark=dark)
