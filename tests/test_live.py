"""The page on which a family runs live: in a browser, it shows what onnxruntime in Python gives."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import importlib.util
import io
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import onnxruntime
import pytest
import torch
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from torch import Tensor

from hyperlight.lab.data import digits

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


live = script(ROOT / "docs" / "live" / "build.py")


def leave_out(why: str) -> NoReturn:
    """Leave a test out; but not where that must not be, as in .ci/run."""
    if os.environ.get("HYPERLIGHT_BROWSER") == "required":
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, with a family that was hardly trained."""
    try:
        files = live.runtime()
    except OSError as error:
        leave_out(str(error))
    folder = tmp_path_factory.mktemp("live")
    model, images = live.family(steps=40)
    live.build(folder, model, images[: live.SHOWN], files)
    return folder


@pytest.fixture(scope="module")
def chromium() -> str:
    """The path of a browser."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    return path or leave_out(f"There is no browser: none of {', '.join(BROWSERS)} is installed.")


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def page(chromium: str, site: Path) -> Iterator[Page]:
    """The page in a browser, once its first picture is there. It may fetch its own files alone."""
    handler = functools.partial(Handler, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    own, noise = f"http://127.0.0.1:{server.server_port}/", []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        tab = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="dark")
        tab.on("console", lambda message: noise.append(message.text))
        tab.on("pageerror", lambda error: noise.append(str(error)))
        tab.on(
            "request", lambda r: None if r.url.startswith((own, "data:")) else noise.append(r.url)
        )
        tab.goto(own)
        tab.wait_for_selector("canvas[data-shown]", timeout=60_000)
        yield tab
        browser.close()
    server.shutdown()
    server.server_close()
    assert noise == []


def shown(page: Page, share: str) -> Tensor:
    """The lower row of the picture, once it is that of a place of the slider: (N, 8, 8)."""
    page.wait_for_selector(f"canvas[data-shown='{share}']", timeout=20_000)
    source = page.locator("canvas").evaluate("canvas => canvas.toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
        pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        picture = pixels.reshape(image.height, image.width, 3).int()
    assert torch.equal(picture[..., 0], picture[..., 2])  # grey
    return torch.stack([picture[9:, 9 * i : 9 * i + 8, 0] for i in range(live.SHOWN)])


def test_the_slider_changes_the_picture_as_the_family_says(page: Page, site: Path) -> None:
    images = digits().test.images[: live.SHOWN]
    session = onnxruntime.InferenceSession(site / "family.onnx")
    noise = torch.zeros(len(images), live.LATENT)
    slider = page.get_by_role("slider", name="beta")
    rows = []
    for key, share, beta in (("Home", "0", 0.01), ("End", "1", 10.0), ("ArrowLeft", "0.995", None)):
        slider.press(key)
        rows.append(shown(page, share))
        beta = 0.01 * 1000**0.995 if beta is None else beta
        given = {"x": images.numpy(), "noise": noise.numpy(), "beta": torch.tensor(beta).numpy()}
        expected = torch.as_tensor(session.run(None, given)[0])[:, 0].clamp(0.0, 1.0) * 255
        assert (rows[-1] - expected).abs().max() <= 1.0
        assert float(page.locator("#value").text_content()) == pytest.approx(beta, rel=1e-2)
    assert (rows[0] - rows[1]).abs().double().mean() > 2.0
    assert page.locator("#state").text_content().endswith(" ms, weights included.")
    # Dark, as the user's system is.
    assert page.evaluate("getComputedStyle(document.body).colorScheme") == "light dark"
    assert (
        sum(
            page.evaluate(
                "getComputedStyle(document.body).color.match(/[0-9.]+/g).slice(0, 3).map(Number)"
            )
        )
        > 600
    )


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
