"""Pages with sliders: what is in them, that it is what the model gives, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import hyperlight as hl
from tests.models import Gives

EMPTY = {"meta", "input", "img", "br", "link"}


class Reader(HTMLParser):
    """The elements of a page, in order; fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.found if name == tag]

    def text(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def frames(page: hl.Page) -> dict[str, Any]:
    """The data of the page, as its script reads them."""
    (data,) = [t for t in Reader(page.html).text("script") if t.startswith("{")]
    return json.loads(data)


def picture(source: str) -> Tensor:
    """The pixels of a PNG in the page: (H, W) or (H, W, 3)."""
    kind, data = source.split(";base64,")
    assert kind == "data:image/png"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        image.load()
        shape = (image.height, image.width, len(image.getbands()))
        return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(shape)


def drawing(source: str) -> ElementTree.Element:
    kind, data = source.split(";base64,")
    assert kind == "data:image/svg+xml"
    return ElementTree.fromstring(base64.b64decode(data))


def points(path: str) -> list[list[int]]:
    """Where a path goes that moves to one point and on in relative steps."""
    numbers = [int(n) for n in re.findall(r"-?\d+", path)]
    found = [numbers[:2]]
    for x, y in zip(numbers[2::2], numbers[3::2], strict=True):
        found.append([found[-1][0] + x, found[-1][1] + y])
    return found


def made(net: nn.Module, **inputs: hl.Input) -> hl.HyperModel:
    generator = torch.Generator().manual_seed(0)
    return hl.hypernetize(
        net, inputs or {"scale": hl.Uniform(0.0, 0.5)}, init=hl.Relative(1.0), generator=generator
    )


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class Through(nn.Module):
    """A linear layer and a function of its output."""

    def __init__(self, layer: nn.Module, then: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.then = layer, then

    def forward(self, x: Tensor) -> Any:
        return self.then(self.layer(x))


def pictures(channels: int = 1) -> hl.HyperModel:
    return made(Through(nn.Conv2d(1, channels, 3, padding=1), torch.sigmoid))


# --- the page -------------------------------------------------------------------------------


def test_a_page_is_one_file_that_loads_nothing() -> None:
    page = hl.explore(pictures(), torch.rand(4, 1, 32, 32), scale=torch.linspace(0, 0.5, 64))
    assert len(page.html) < 3_000_000
    assert not re.search(r"https?:|[\s\"'=(]//\w|url\(|@import", page.html)
    read = Reader(page.html)
    assert all(image["src"].startswith("data:image/") for image in read.all("img"))
    assert not read.all("link")
    assert all("src" not in script for script in read.all("script"))
    # The browser is told to load nothing, and to run and style by what is in the page alone.
    (policy,) = [m["content"] for m in read.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'; img-src data:; ")
    allowed = dict(part.split(" ", 1) for part in policy.split("; "))
    for tag, texts in (("style", read.text("style")), ("script", read.text("script")[1:])):
        digests = [base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in texts]
        assert allowed[f"{tag}-src"].split() == [f"'sha256-{digest}'" for digest in digests]


def test_pages_are_the_same_each_time(tmp_path: Path) -> None:
    model, x = pictures(), torch.rand(2, 1, 8, 8)
    first, second = (hl.explore(model, x, scale=5) for _ in range(2))
    assert first.html == second.html
    path = first.save(tmp_path / "family.html")
    assert path.read_text(encoding="utf-8") == first.html


def test_a_notebook_shows_the_page_in_a_frame() -> None:
    page = hl.explore(pictures(), torch.rand(1, 1, 4, 4), scale=3)
    (frame,) = Reader(page._repr_html_()).all("iframe")
    assert frame["srcdoc"] == page.html
    assert frame["sandbox"] == "allow-scripts"
    assert frame["title"]
    assert re.fullmatch(r"Page of \d+ kB; .save\('page.html'\) writes it", repr(page))


def test_sliders_have_labels_and_the_values_as_texts() -> None:
    model = made(
        nn.Linear(2, 1), decay=hl.LogUniform(1e-3, 10.0), site=hl.Categorical(3), x2=hl.Normal()
    )
    page = hl.explore(model, torch.rand(4, 2), decay=5, site=range(3), x2=0.25)
    read = Reader(page.html)
    sliders = read.all("input")
    assert [(s["type"], s["min"], s["max"], s["value"]) for s in sliders] == [
        ("range", "0", "4", "2"),
        ("range", "0", "2", "1"),
    ]
    assert [s["aria-valuetext"] for s in sliders] == ["0.1", "1"] == read.text("output")
    assert [label["for"] for label in read.all("label")] == [s["id"] for s in sliders]
    assert read.text("label") == ["decay", "site"]
    assert frames(page)["axes"] == [["0.001", "0.01", "0.1", "1", "10"], ["0", "1", "2"]]
    assert read.text("p")[-1] == "x2 is held at 0.25."
    assert read.text("title") == read.text("h1") == ["Linear over decay and site"]


def test_values_that_are_close_have_more_digits() -> None:
    page = hl.explore(made(nn.Linear(2, 1)), torch.rand(1, 2), scale=[0.10001, 0.10002, 0.3])
    assert frames(page)["axes"] == [["0.10001", "0.10002", "0.3"]]
    page = hl.explore(made(nn.Linear(2, 1)), torch.rand(1, 2), scale=[0.1, 0.1, 0.3])
    assert frames(page)["axes"] == [["0.1", "0.1", "0.3"]]


def test_texts_of_the_user_are_no_markup() -> None:
    evil = "</script><b onload='alert(1)'>&\"$x"
    net = Through(nn.Linear(2, 2), lambda y: y)
    model, x = made(net), torch.rand(1, 2)
    page = hl.explore(model, x, title=evil, names=[evil, "dog"], draw="classes", scale=3)
    numbers = hl.explore(model, x, draw=lambda y: {evil: y.sum()}, title=evil, scale=3)
    labels = made(Through(nn.Conv2d(1, 4, 1), lambda y: y.argmax(1)))
    mapped = hl.explore(labels, torch.rand(1, 1, 4, 4), title=evil, names=[evil] * 4, scale=3)
    for each in (page, numbers, mapped):
        read = Reader(each.html)
        assert not read.all("b")
        assert len(read.all("script")) == 2
        assert read.text("h1") == [evil]
        frames(each)
    assert Reader(page.html).text("th") == [evil, "dog"]
    assert "<" not in json.dumps(frames(mapped)["panels"][0]["sources"])
    raw = re.search(r'type="application/json">(.*?)</script>', mapped.html)
    assert raw
    assert evil in json.loads(raw[1])["panels"][0]["alts"][0]


# --- the values -----------------------------------------------------------------------------


def test_pictures_are_the_outputs_of_the_model() -> None:
    model, x = pictures(), torch.rand(6, 1, 5, 7)
    values = torch.linspace(0, 0.5, 4)
    data = frames(hl.explore(model, x, scale=values))
    assert data["axes"] == [["0", "0.167", "0.333", "0.5"]]
    assert len(data["panels"]) == 4  # samples
    for sample, panel in enumerate(data["panels"]):
        assert len(panel["sources"]) == len(panel["alts"]) == 4
        for value, source in zip(values, panel["sources"], strict=True):
            expected = (model(x, scale=value)[sample] * 255).round()
            assert torch.equal(picture(source), expected.movedim(0, -1).to(torch.uint8))


def test_two_sliders_go_through_all_pairs_the_last_one_fastest() -> None:
    model = made(
        Through(nn.Conv2d(1, 3, 3), torch.sigmoid), scale=hl.Uniform(), weight=hl.Uniform()
    )
    x = torch.rand(1, 1, 6, 6)
    (panel,) = frames(hl.explore(model, x, weight=3, scale=[0.1, 0.9]))["panels"]
    pairs = [(s, w) for s in (0.1, 0.9) for w in (0.0, 0.5, 1.0)]
    assert len(panel["sources"]) == 6
    for (scale, weight), source in zip(pairs, panel["sources"], strict=True):
        expected = (model(x, scale=scale, weight=weight)[0] * 255).round().movedim(0, -1)
        assert torch.equal(picture(source), expected.to(torch.uint8))


def test_the_page_begins_in_the_middle() -> None:
    page = hl.explore(pictures(), torch.rand(2, 1, 4, 4), scale=5)
    panels = frames(page)["panels"]
    for image, panel in zip(Reader(page.html).all("img"), panels, strict=True):
        assert image["src"] == panel["sources"][2]
        assert image["alt"] == panel["alts"][2]


def test_alternative_texts_follow_the_value() -> None:
    model, x = pictures(), torch.rand(2, 1, 4, 4)
    panels = frames(hl.explore(model, x, scale=[0.1, 0.25]))["panels"]
    mean = model(x, scale=0.25)[1].mean().item()
    assert panels[1]["alts"][1] == f"Sample 2 at scale = 0.25: picture of mean {mean:.4g}"
    assert panels[1]["alts"][0].startswith("Sample 2 at scale = 0.1: picture of mean ")


def test_if_nothing_is_given_all_inputs_vary() -> None:
    x = torch.rand(1, 2)
    assert list(map(len, frames(hl.explore(made(nn.Linear(2, 1)), x))["axes"])) == [32]
    model = made(nn.Linear(2, 1), scale=hl.Uniform(), site=hl.Categorical(3))
    assert list(map(len, frames(hl.explore(model, x))["axes"])) == [12, 3]


def test_a_gain_varies_as_inputs_do() -> None:
    model, x = made(nn.Linear(2, 1)), torch.rand(1, 2)
    page = hl.explore(model, x, scale=0.25, gain=[0.0, 1.0, 2.0])
    assert frames(page)["axes"] == [["0", "1", "2"]]
    cells = [cells[0] for cells in frames(page)["panels"][0]["cells"]]
    assert cells == [f"{model(x, scale=0.25, gain=float(g)).item():.4g}" for g in range(3)]


def test_a_category_and_a_single_tensor_hold_an_input() -> None:
    model = made(nn.Linear(2, 1), scale=hl.Uniform(), site=hl.Categorical(3), z=hl.Vector(2))
    page = hl.explore(model, torch.rand(1, 2), scale=3, site=2, z=torch.tensor([0.5, -1.0]))
    assert Reader(page.html).text("p")[-2:] == ["site is held at 2.", "z is held at 0.5, -1."]


def test_a_list_of_one_value_holds_an_input() -> None:
    model, x = made(nn.Linear(2, 1), scale=hl.Uniform(), level=hl.Uniform()), torch.rand(4, 2)
    page = hl.explore(model, x, scale=[0.1, 0.2], level=[0.3])
    cells = frames(page)["panels"][3]["cells"]
    assert cells[1] == [f"{model(x, scale=0.2, level=0.3)[3].item():.4g}"]


def test_values_of_several_entries_vary_in_the_order_given() -> None:
    model, x = made(nn.Linear(2, 1), ray=hl.Simplex(2), z=hl.Vector(6)), torch.rand(1, 2)
    rays, z = torch.tensor([[0.25, 0.75], [1.0, 0.0]]), torch.randn(3, 6)
    page = hl.explore(model, x, ray=rays, z=z)
    assert frames(page)["axes"] == [["0.25, 0.75", "1, 0"], ["1 of 3", "2 of 3", "3 of 3"]]
    cells = frames(page)["panels"][0]["cells"]
    assert cells[5] == [f"{model(x, ray=rays[1], z=z[2]).item():.4g}"]


def test_values_that_a_network_reads_vary() -> None:
    images = torch.rand(8, 1, 4, 4)
    space = hl.Encoded(nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), features=4)
    model = hl.hypernetize(nn.Linear(2, 1), {"image": space}, calibrate_on={"image": images})
    x = torch.rand(1, 2)
    page = hl.explore(model, x, image=images[:3])
    assert frames(page)["axes"] == [["1 of 3", "2 of 3", "3 of 3"]]
    cells = frames(page)["panels"][0]["cells"]
    assert cells[2] == [f"{model(x, image=images[2]).item():.4g}"]


def test_arguments_of_the_primary_are_passed_on() -> None:
    class Adds(nn.Linear):
        def forward(self, x: Tensor, bonus: float = 0.0) -> Tensor:
            return super().forward(x) + bonus

    model, x = made(Adds(2, 1)), torch.rand(1, 2)
    cells = frames(hl.explore(model, x, scale=[0.1, 0.2], bonus=100.0))["panels"][0]["cells"]
    assert cells[0] == [f"{model(x, scale=0.1, bonus=100.0).item():.4g}"]


def test_the_model_stays_as_it_is() -> None:
    net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
    model = made(net)
    net[2].eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(4, 2)
    cells = frames(hl.explore(model, x, scale=[0.1, 0.2]))["panels"][3]["cells"]
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert cells[1] == [f"{model.eval()(x, scale=0.2)[3].item():.4g}"]  # without dropout

    model.train()
    with pytest.raises(ZeroDivisionError):
        hl.explore(model, x, scale=3, draw=lambda y: 1 / 0)
    assert all(module.training for module in model.modules())


# --- kinds of outputs -----------------------------------------------------------------------


def test_pictures_beyond_zero_and_one_share_one_scale() -> None:
    model, x = made(nn.Conv2d(1, 1, 1)), torch.rand(2, 1, 4, 4)
    page = hl.explore(model, x, scale=[0.0, 0.5])
    outputs = model.sweep(x, scale=torch.tensor([0.0, 0.5])).detach()
    low, high = float(outputs.min()), float(outputs.max())
    assert Reader(page.html).text("p")[-1] == f"Black is {low:.4g}, white is {high:.4g}."
    expected = ((outputs.double() - low) / (high - low) * 255).round().to(torch.uint8)
    for sample, panel in enumerate(frames(page)["panels"]):
        for frame, source in enumerate(panel["sources"]):
            assert torch.equal(picture(source), expected[frame, sample].movedim(0, -1))


def test_bytes_are_pictures_as_they_are() -> None:
    pixels = torch.randint(10, 200, (1, 3, 5, 6), dtype=torch.uint8)
    model = made(Through(nn.Linear(1, 1), lambda y: pixels))
    (panel,) = frames(hl.explore(model, torch.rand(1, 1), scale=2))["panels"]
    assert torch.equal(picture(panel["sources"][0]), pixels[0].movedim(0, -1))


@pytest.mark.parametrize("pattern", ["noise", "across", "down", "colour"])
def test_pngs_are_right_with_every_filter(pattern: str) -> None:
    ramp = torch.arange(0, 240, 3, dtype=torch.uint8)
    pixels = {
        "noise": torch.randint(0, 255, (1, 80, 80), dtype=torch.uint8),
        "across": ramp.expand(1, 80, 80),
        "down": ramp[:, None].expand(1, 80, 80),
        "colour": torch.stack([ramp, 255 - ramp, ramp // 2])[:, None].expand(3, 80, 80),
    }[pattern]
    model = made(Through(nn.Linear(1, 1), lambda y: pixels[None]))
    (panel,) = frames(hl.explore(model, torch.rand(1, 1), scale=2))["panels"]
    assert torch.equal(picture(panel["sources"][0]), pixels.movedim(0, -1))
    if pattern != "noise":  # a filter makes a ramp almost nothing
        assert len(panel["sources"][0]) < 500


@pytest.mark.parametrize("form", ["channels", "integers", "flags"])
def test_labels_are_coloured_and_named(form: str) -> None:
    then = {
        "channels": lambda y: y,
        "integers": lambda y: y.argmax(1),
        "flags": lambda y: y[:, :1] > y[:, 1:2],
    }[form]
    model, x = made(Through(nn.Conv2d(1, 5, 3), then)), torch.rand(2, 1, 9, 9)
    names = ["sky", "sea", "sand", "rock", "tree"]
    page = hl.explore(model, x, scale=[0.1, 0.4], names=names)
    swept = model.sweep(x, scale=torch.tensor([0.1, 0.4]))
    swept = (swept.argmax(2) if form == "channels" else swept).long().reshape(2, 2, 7, 7)
    labels, source = swept[1], frames(page)["panels"][1]["sources"][1]
    assert torch.equal(picture(source)[..., 0].long(), labels[1])  # indices of the palette
    seen, read = swept.unique().tolist(), Reader(page.html)
    assert re.findall(r"[a-z]+", " ".join(read.text("p")[1:])) == [names[i] for i in seen]
    with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as image:
        (red, green, blue) = image.convert("RGB").getpixel((0, 0))
    fills = [rect["fill"] for rect in read.all("rect")]
    assert fills[seen.index(int(labels[1, 0, 0]))] == f"#{red:02x}{green:02x}{blue:02x}"
    counts = labels[1].flatten().bincount()
    most = f"{names[int(counts.argmax())]} {100 * int(counts.max()) / 49:.0f} %"
    assert f": labels {most}" in frames(page)["panels"][1]["alts"][1]


def test_a_field_moves_a_grid() -> None:
    model, x = made(nn.Conv2d(1, 2, 1)), torch.rand(1, 1, 3, 4)
    page = hl.explore(model, x, scale=[0.1, 0.4])
    panel = frames(page)["panels"][0]
    moved = model(x, scale=0.4)[0].detach().double()  # first along the height
    rows = moved[0] + torch.arange(3)[:, None]
    columns = moved[1] + torch.arange(4)
    grid = (10 * torch.stack([columns, rows], -1)).round().long()
    svg = drawing(panel["sources"][1])
    (path,) = [e.attrib["d"] for e in svg.iter() if e.tag.endswith("path")]
    lines = [points(line) for line in path.split("M")[1:]]
    assert lines == [*grid.tolist(), *grid.transpose(0, 1).tolist()]
    left, top, width, height = map(int, svg.attrib["viewBox"].split())
    for px, py in grid.flatten(0, 1).tolist():
        assert left < px < left + width
        assert top < py < top + height
    length = moved.norm(dim=0)
    assert panel["alts"][1].endswith(
        f"moved by {float(length.mean()):.4g} pixels on average, at most {float(length.max()):.4g}"
    )


def test_large_fields_are_drawn_with_few_lines() -> None:
    model, x = made(nn.Conv2d(1, 2, 5, padding=2)), torch.rand(4, 1, 96, 80)
    page = hl.explore(model, x, scale=64)
    assert len(page.html) < 3_000_000
    svg = drawing(frames(page)["panels"][0]["sources"][0])
    (path,) = [e.attrib["d"] for e in svg.iter() if e.tag.endswith("path")]
    assert path.count("M") == 2 * 17


@pytest.mark.parametrize("ndim", [1, 2])
def test_a_function_of_one_number_is_a_curve(ndim: int) -> None:
    net = Through(nn.Linear(1, 1), lambda y: y) if ndim == 2 else Line()
    model, x = made(net), torch.tensor([0.5, -1.0, 2.0, 0.0])
    x = x[:, None] if ndim == 2 else x
    page = hl.explore(model, x, scale=[0.1, 0.4])
    (panel,) = frames(page)["panels"]
    outputs = model.sweep(x, scale=torch.tensor([0.1, 0.4])).detach().reshape(2, 4).double()
    low, high = float(outputs.min()), float(outputs.max())
    order = [1, 3, 0, 2]  # x goes up
    across = [300 + 2800 * (v + 1.0) / 3.0 for v in (-1.0, 0.0, 0.5, 2.0)]
    heights = 1700 - 1600 * (outputs[1, order] - low) / (high - low)
    svg = drawing(panel["sources"][1])
    (path,) = [e.attrib["d"] for e in svg.iter() if e.attrib.get("class") == "curve"]
    assert points(path) == [
        [round(a), round(float(h))] for a, h in zip(across, heights, strict=True)
    ]
    texts = [e.text for e in svg.iter() if e.tag.endswith("text")]
    assert texts == [f"{high:.4g}", f"{low:.4g}", "-1", "2"]
    ends = f"{float(outputs[1].min()):.4g} to {float(outputs[1].max()):.4g}"
    assert panel["alts"][1] == f"At scale = 0.4: curve from {ends}"


class Line(nn.Linear):
    """From (N,) to (N,)."""

    def __init__(self) -> None:
        super().__init__(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, None])[:, 0]


def test_long_outputs_are_curves_one_for_each_sample() -> None:
    page = hl.explore(made(nn.Linear(2, 13)), torch.rand(5, 2), scale=3)
    panels = frames(page)["panels"]
    assert len(panels) == 4
    assert "Sample 4 at scale = 0: curve from " in panels[3]["alts"][0]
    svg = drawing(panels[0]["sources"][0])
    (path,) = [e.attrib["d"] for e in svg.iter() if e.attrib.get("class") == "curve"]
    assert len(points(path)) == 13


@pytest.mark.parametrize("given", ["probabilities", "names", "draw"])
def test_classes_have_bars(given: str) -> None:
    then = (lambda y: y.softmax(1)) if given == "probabilities" else (lambda y: y)
    model, x = made(Through(nn.Linear(2, 3), then)), torch.rand(2, 2)
    options: dict[str, Any] = {
        "probabilities": {},
        "names": {"names": ["cat", "dog", "owl"]},
        "draw": {"draw": "classes"},
    }[given]
    page = hl.explore(model, x, scale=[0.1, 0.4], **options)
    p = model(x, scale=0.4).detach()
    p = p if given == "probabilities" else p.softmax(1)
    panel = frames(page)["panels"][1]
    assert panel["cells"][1] == [f"{float(v):.3f}" for v in p[1]]
    assert panel["bars"][1] == pytest.approx(p[1].tolist(), abs=1e-4)
    read = Reader(page.html)
    names = options.get("names", ["class 0", "class 1", "class 2"])
    assert read.text("th") == names * 2
    assert [float(m["value"]) for m in read.all("meter")] == [
        value for panel in frames(page)["panels"] for value in panel["bars"][1]
    ]
    assert read.text("caption") == ["Sample 1", "Sample 2"]


def test_of_many_classes_the_likeliest_are_shown() -> None:
    model, x = made(nn.Linear(2, 40)), torch.rand(1, 2)
    page = hl.explore(model, x, scale=[0.1, 0.4], draw="classes")
    p = model.sweep(x, scale=torch.tensor([0.1, 0.4])).softmax(-1).amax((0, 1))
    best = sorted(p.topk(12).indices.tolist())
    read = Reader(page.html)
    assert read.text("th") == [f"class {i}" for i in best]
    assert "The 12 likeliest of 40 classes are shown." in read.text("p")


def test_other_outputs_are_tables() -> None:
    model, x = made(nn.Linear(2, 2)), torch.rand(2, 2)
    page = hl.explore(model, x, scale=[0.1, 0.4], samples=1)
    (panel,) = frames(page)["panels"]
    assert panel["cells"][1] == [f"{float(v):.4g}" for v in model(x, scale=0.4)[0]]
    assert panel["bars"] == []
    read = Reader(page.html)
    assert read.text("th") == ["output 1", "output 2"]
    assert [row["scope"] for row in read.all("th")] == ["row", "row"]
    assert read.text("span") == panel["cells"][1]


def test_answers_stand_below_the_picture_that_they_are_for() -> None:
    net = Through(nn.Conv2d(1, 2, 1), lambda y: y.mean((2, 3)))
    model, x = made(net), 2.0 * torch.rand(5, 1, 300, 200)
    x[4] += 1.0  # is not shown
    page = hl.explore(model, x, scale=3, samples=2)
    images = Reader(page.html).all("img")
    assert [image["alt"] for image in images] == ["The input", "The input"]
    mean = nn.functional.adaptive_avg_pool2d(x[1].double(), (100, 66))  # at most 128 pixels
    low, high = x[:2].min(), x[:2].max()
    expected = ((mean - low) / (high - low) * 255).round().movedim(0, -1)
    assert torch.equal(picture(images[1]["src"]).double(), expected)
    for given in ({"draw": lambda y: {"mean": y.mean()}}, {"draw": lambda y: y.view(-1, 1, 1, 2)}):
        drawn = hl.explore(model, x, scale=3, **given)
        assert "The input" not in [image["alt"] for image in Reader(drawn.html).all("img")]
    pair = made(Through(nn.Conv2d(1, 2, 1), lambda y: y.mean((0, 2, 3))))
    assert not Reader(hl.explore(pair, x, scale=3).html).all("img")  # no answer for each picture


def test_a_part_of_a_page_brings_its_style_and_its_script() -> None:
    page = hl.explore(made(nn.Linear(2, 1)), torch.rand(1, 2), title="</section>", scale=3)
    read = Reader(page.part)
    assert page.part in page.html
    assert [tag for tag, _ in read.found][:2] == ["section", "style"]
    assert len(read.all("script")) == 2
    assert frames(page)["axes"] == [["0", "0.25", "0.5"]]
    for selectors in re.findall(r"([^{}]+){", read.text("style")[0]):  # of this part alone
        for selector in selectors.split(","):
            assert selector.strip().startswith((".hyperlight", "@media"))


def test_the_first_tensor_of_an_output_is_drawn() -> None:
    net = Through(nn.Linear(2, 1), lambda y: {"loss": None, "y": (y, y + 100.0)})
    model, x = made(net), torch.rand(1, 2)
    (panel,) = frames(hl.explore(model, x, scale=[0.1, 0.4]))["panels"]
    assert panel["cells"][1] == [f"{model(x, scale=0.4)['y'][0].item():.4g}"]


def test_a_function_draws_what_it_likes() -> None:
    model, x = pictures(), torch.rand(3, 1, 4, 5)
    seen: list[Tensor] = []

    def side_by_side(y: Tensor) -> Tensor:
        seen.append(y)
        return torch.cat([x[0, 0], y[0, 0]], -1)

    (panel,) = frames(hl.explore(model, x, scale=[0.1, 0.4], draw=side_by_side))["panels"]
    assert torch.equal(seen[1], model(x, scale=0.4))  # all of the batch
    expected = (side_by_side(model(x, scale=0.4)) * 255).round().to(torch.uint8)
    assert torch.equal(picture(panel["sources"][1])[..., 0], expected)

    colour = hl.explore(model, x, scale=2, draw=lambda y: y[0].expand(3, 4, 5))
    assert picture(frames(colour)["panels"][0]["sources"][0]).shape == (4, 5, 3)
    field = hl.explore(model, x, scale=2, draw=lambda y: torch.cat([y, y], 1))
    assert len(frames(field)["panels"]) == 3
    assert "svg" in frames(field)["panels"][0]["sources"][0]

    page = hl.explore(model, x, scale=[0.1, 0.4], draw=lambda y: {"mean": y.mean(), "n": 3})
    (panel,) = frames(page)["panels"]
    assert panel["cells"][1] == [f"{model(x, scale=0.4).mean().item():.4g}", "3"]
    assert Reader(page.html).text("th") == ["mean", "n"]


@pytest.mark.parametrize("space", ["", ' xmlns="http://www.w3.org/2000/svg"'])
def test_an_svg_of_the_users_is_an_image(space: str) -> None:
    text = f"<svg{space} viewBox='0 0 9 9'><script>alert(1)</script><circle r='4'/></svg>"
    page = hl.explore(pictures(), torch.rand(1, 1, 4, 4), scale=[0.1, 0.4], draw=lambda y: text)
    (panel,) = frames(page)["panels"]
    assert drawing(panel["sources"][0]).tag == "{http://www.w3.org/2000/svg}svg"
    assert "alert" not in page.html
    assert panel["alts"] == ["Drawing at scale = 0.1", "Drawing at scale = 0.4"]


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scael": 3}, r"'scael' is neither an input of this model \('scale', 'site'\) nor an "
         r"argument of Linear.forward. Did you mean 'scale'\?"),
        ({"scale": 3, "site": 0, "sampels": 2}, r"'sampels' is .* Did you mean 'samples'\?"),
        ({"scale": 0.1, "site": 1}, r"No input varies: 'scale', 'site' are held at a value. Pass "
         r"a list or a tensor of values for one of them."),
        ({"scale": 3, "site": range(3), "gain": [0.0, 1.0]}, r"The inputs 'scale', 'site', 'gain' "
         r"vary; expected one or two, since a page has two sliders. Hold the others at a value"),
        ({"scale": 1, "site": 0}, r"scale=1: an integer is a number of values, 2 or more. To hold "
         r"the input at a value, pass a float: scale=1.0."),
        ({"scale": [0.1, 0.7], "site": 0}, r"'scale' was values from 0.1 to 0.7; expected values"),
        ({"scale": 3, "site": 7}, r"'site' was 7; expected categories"),
        ({"scale": torch.rand(2, 2) / 2, "site": 0}, r"Input 'scale' has batch shape \(2, 2\); "
         r"expected \(\), to hold it, or \(N,\), to vary it."),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit_are_refused(given: dict[str, Any], message: str) -> None:
    model = made(nn.Linear(2, 1), scale=hl.Uniform(0.0, 0.5), site=hl.Categorical(3))
    with pytest.raises(hl.InputError, match=message):
        hl.explore(model, torch.rand(1, 2), **given)


def test_a_number_of_vectors_is_refused() -> None:
    model = made(nn.Linear(2, 1), z=hl.Vector(3))
    message = (
        r"The values of input 'z', Vector.*, lie on no line to spread them over. Pass some, such "
        r"as z=model.sample\(16\)\['z'\], or a single one."
    )
    with pytest.raises(hl.InputError, match=message):
        hl.explore(model, torch.rand(1, 2), z=4)
    hl.explore(model, torch.rand(1, 2), z=model.sample(16)["z"])


def test_a_misspelt_input_is_found_where_the_primary_takes_anything() -> None:
    class Takes(nn.Linear):
        def forward(self, x: Tensor, **options: Any) -> Tensor:
            return super().forward(x)

    model = made(Takes(2, 1))
    with pytest.raises(hl.InputError, match="Did you mean 'scale'"):
        hl.explore(model, torch.rand(1, 2), scael=3)
    hl.explore(model, torch.rand(1, 2), anything=3)


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (nn.Linear(2, 1), {"draw": "picture"}, r"draw was 'picture'; expected 'auto', 'image', "
         r"'field', 'labels', 'curve', 'classes', 'values' or a function of the output."),
        (nn.Linear(2, 1), {"draw": "field"}, r"The output has shape \(4, 1\) and dtype "
         r"torch.float32, which cannot be drawn as 'field'; expected \(B, 2, H, W\). Choose"),
        (nn.Linear(2, 65), {"draw": "values"}, "expected at most 64 entries in a sample"),
        (Gives(torch.zeros(2, 3, 30)), {}, r"cannot be drawn as 'values'.* pass a function"),
        (Gives("text"), {}, r"The output is of type str and has no tensor to draw. Pass a "
         r"function: draw=lambda output: ..."),
        (Gives(torch.tensor([[1.0, float("nan")]])), {}, r"The output at scale = 0 has NaN or "
         r"infinity, which cannot be drawn. Has training diverged"),
        (Gives(torch.full((1, 4, 4), 300)), {}, "Labels from 300 to 300 cannot be drawn; "
         "expected 0 to 255"),
        (nn.Linear(2, 3), {"names": ["a", "b"]}, "names has 2 entries; expected 3, one for each "
         "output."),
        (nn.Linear(2, 1), {"draw": lambda y: 3}, r"The function draw returned int; expected a "
         r"picture, \(H, W\), \(C, H, W\) or \(B, C, H, W\), a dict of numbers, or the text of"),
        (nn.Linear(2, 1), {"draw": lambda y: {"a": "b"}}, "The function draw returned dict; exp"),
        (nn.Linear(2, 1), {"draw": lambda y: "<svg>"}, r"returned text that is no SVG \(.*\): "
         r"'<svg>'. Expected well-formed XML"),
        (nn.Linear(2, 1), {"draw": lambda y: "<p>no</p>"}, "the XML of a <p>; expected an <svg>"),
        (nn.Linear(2, 1), {"draw": lambda y: {str(float(y.sum())): 1}}, r"At scale = 0.25 there "
         r"is numbers for '.*' to draw, at scale = 0 numbers for '.*'; expected the same"),
        (nn.Linear(2, 1), {"samples": 0}, r"explore\(samples=0\): expected an integer, 1 or more"),
        (nn.Linear(2, 1), {"scale": 1025}, "The inputs take 1025 values; expected at most 1024"),
        (nn.Linear(2, 1), {"max_bytes": 1000}, r"The page would take \d+ kB, for 3 values with 4 "
         r"panels each; expected at most 1 kB. Show fewer samples \(samples=1\), fewer values"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(
    net: nn.Module, options: dict[str, Any], message: str
) -> None:
    model = made(Through(net, lambda y: y) if list(net.parameters()) else Beside(net))
    with pytest.raises(hl.ConfigurationError, match=message):
        hl.explore(model, torch.rand(4, 2), **{"scale": 3, **options})


class Beside(nn.Module):
    """A module without parameters, and a layer whose weights can be predicted."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.layer = net, nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


def test_too_many_pairs_are_refused() -> None:
    model = made(nn.Linear(2, 1), a=hl.Uniform(), b=hl.Uniform())
    with pytest.raises(hl.ConfigurationError, match="take 40 times 30 = 1200 values; expected at"):
        hl.explore(model, torch.rand(1, 2), a=40, b=30)


def test_inputs_with_names_of_its_arguments_are_refused() -> None:
    model = made(nn.Linear(2, 1), title=hl.Uniform())
    with pytest.raises(hl.ConfigurationError, match="Input 'title' has the name of an argument of"):
        hl.explore(model, torch.rand(1, 2))
