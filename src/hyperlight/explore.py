"""One HTML file with sliders: what a model gives over its inputs, to look at in a browser.

Every frame is computed beforehand. A page holds pictures as data, so it needs no server, no
network and no Python where it is opened.
"""

from __future__ import annotations

import base64
import colorsys
import hashlib
import itertools
import json
import math
import numbers
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from inspect import Parameter
from pathlib import Path
from string import Template
from typing import Any
from xml.etree import ElementTree

import torch
from torch import Tensor

from ._torch import pytree
from .encoded import Encoded, row_of
from .errors import ConfigurationError, InputError, check_integer, did_you_mean, listed
from .hypernet import check_model
from .inputs import Categorical, Input
from .io import file_to_write
from .model import HyperModel, as_gain
from .signatures import arguments_of
from .tune import evaluating

_MOST_FRAMES = 1024
_MOST_ROWS = 12  # of a table; longer outputs are curves
_GRID_LINES = 17
_CURVE_POINTS = 512
_MOST_PIXELS = 128  # along an edge of a picture that was given
# Okabe and Ito's colours, which colour-blind readers can tell apart; grey for label 0.
_COLOURS = ("444444", "e69f00", "56b4e9", "009e73", "f0e442", "0072b2", "d55e00", "cc79a7")


@dataclass(frozen=True, repr=False)
class Page:
    """A self-contained HTML page, from :func:`explore`. A notebook shows it in place.

    Attributes:
        html: the page itself.
    """

    html: str

    @property
    def part(self) -> str:
        """The sliders and what they move, without the heading, to put into another page.

        It brings its style and its script, and is one ``<section>``.
        """
        begin, end = self.html.index("<section"), self.html.rindex("</section>")
        return f"{self.html[begin:end]}</section>"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to a file, which any browser opens; returns its path.

        Raises:
            FormatError: the path is a folder, or in one that does not exist.
        """
        path = file_to_write(path, "knob.html")
        path.write_text(self.html, encoding="utf-8", newline="\n")
        return path

    def _repr_html_(self) -> str:
        return (
            '<iframe title="HyperLight page" sandbox="allow-scripts" width="100%" height="560" '
            f'style="border: 0" srcdoc="{escape(self.html)}"></iframe>'
        )

    def __repr__(self) -> str:
        return f"Page of {len(self.html) / 1000:.0f} kB; .save('page.html') writes it"


def explore(
    model: HyperModel,
    /,
    *args: Any,
    draw: str | Callable[[Any], Any] = "auto",
    title: str | None = None,
    names: Sequence[str] | None = None,
    samples: int = 4,
    max_bytes: int = 3_000_000,
    **inputs: Any,
) -> Page:
    """Make an HTML page with a slider for one or two inputs of a model.

    The primary runs once for every value (for every pair of values, with two sliders), in eval
    mode and without gradients. The modes are restored afterwards.

    What is drawn follows from the first tensor of the output; ``draw`` chooses otherwise:

    ============= ============================================= ===============================
    ``draw``      for which outputs it is chosen                what is shown
    ============= ============================================= ===============================
    ``"image"``   ``(B, 1, H, W)``, ``(B, 3, H, W)``            pictures
    ``"field"``   ``(B, 2, H, W)``                              a grid, moved by a displacement
    ``"labels"``  integers ``(B, H, W)`` or ``(B, 1, H, W)``;   a colour for every label, or for
                  ``(B, C, H, W)`` with more channels           the largest channel
    ``"curve"``   ``(N,)`` or ``(N, 1)``, as the first          the output over that argument
                  argument is, with 3 entries or more
    ``"curve"``   ``(B, N)`` with more than 12 entries          a curve for every sample
    ``"classes"`` ``(B, C)`` of probabilities                   a bar for every class
    ``"values"``  all others                                    a table
    ============= ============================================= ===============================

    In pictures 0 is black and 1 is white. If any value of any picture lies outside, the smallest
    of all is black and the largest is white. Those of uint8 are shown as they are. A displacement
    is in pixels, first along the height, then along the width. For ``"classes"``, outputs that are
    no probabilities are taken for logits. Classes, labels and values stand below the picture that
    they are for, if the first argument is (B, 1, H, W) or (B, 3, H, W).

    A function is called with the output for each value, all of it. It returns a picture, ``(H, W)``
    or ``(C, H, W)``; several in a batch, or fields or labels, ``(B, C, H, W)``; numbers in a dict;
    or the text of an SVG. A page shows an SVG as an image, in which no script runs.

    Args:
        model: the model.
        args: passed to the primary, the same for every value.
        draw: what to draw, as above; ``"auto"`` goes by the output.
        title: the heading.
        names: of classes, of labels, or of the entries of a table. With names, outputs ``(B, C)``
            for as many classes are drawn as probabilities.
        samples: how many samples of the batch are shown.
        max_bytes: the largest page.
        inputs: the inputs by name, and ``gain``. A tensor or list of values, with one batch
            dimension, varies. So does an integer, which is a number of values, spread evenly over
            the space (:meth:`Input.grid`). A float holds an input at that value, and so does a
            single tensor or a category. An input that is not given varies. Any other
            name is passed to the primary.

    Raises:
        InputError: a name or a value does not fit; or neither one nor two inputs vary.
        ConfigurationError: the output cannot be drawn so, or the page would be too large.

    >>> model = hl.hypernetize(nn.Linear(2, 3), inputs={"scale": hl.LogUniform(1e-3, 1.0)})
    >>> page = hl.explore(model, torch.rand(4, 2), scale=16, names=["cat", "dog", "owl"])
    >>> page.html.count('<meter')
    12
    """
    check_model(model)
    check_integer("explore(samples={})", samples)
    if not callable(draw) and draw not in ("auto", *_KINDS):
        raise ConfigurationError(
            f"draw was {draw!r}; expected 'auto', {listed(_KINDS)} or a function of the output."
        )
    given, others = _sorted_out(model, inputs)
    axes, held = _axes(model, given)
    lengths = [len(axis.texts) for axis in axes]
    _refuse_many(lengths)
    x = next((a for a in pytree.tree_leaves((args, others)) if isinstance(a, Tensor)), None)
    frames = _Frames(draw, x, samples, names)
    with evaluating(model), torch.no_grad():
        for at in itertools.product(*map(range, lengths)):
            varied = {axis.name: row_of(axis.values, i) for axis, i in zip(axes, at, strict=True)}
            where = ", ".join(f"{a.name} = {a.texts[i]}" for a, i in zip(axes, at, strict=True))
            frames.add(where, model.bind(**held, **varied)(*args, **others))
    if title is None:
        title = f"{type(model.primary).__name__} over {' and '.join(axis.name for axis in axes)}"
    panels, notes = frames.panels()
    for name, value in held.items():
        notes.append(escape(f"{name} is held at {_texts(_stacked(value))[0]}."))
    html = _html(title, axes, panels, frames.layout, notes)
    if (size := len(html.encode())) > max_bytes:
        raise ConfigurationError(
            f"The page would take {size / 1000:.0f} kB, for {len(frames.wheres)} values with "
            f"{len(panels)} panels each; expected at most {max_bytes / 1000:.0f} kB. Show fewer "
            "samples (samples=1), fewer values, or smaller pictures (draw=lambda y: "
            "torch.nn.functional.avg_pool2d(y, 2)); or raise max_bytes."
        )
    return Page(html)


# --- the inputs -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """An input that varies: its values, with a batch dimension, and as texts."""

    name: str
    values: Any
    texts: list[str]


def _sorted_out(
    model: HyperModel, given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs of the model, and arguments of the primary."""
    own = ("draw", "title", "names", "samples", "max_bytes")
    for name in own:
        if name in model.inputs:
            raise ConfigurationError(
                f"Input {name!r} has the name of an argument of explore, which cannot tell them "
                "apart. Rename the input."
            )
    known = [*model.inputs, *["gain"] * model.takes_gain]
    parameters = arguments_of(model.primary).parameters
    takes_any = any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())
    for name in given:
        guess = did_you_mean(name, [*known, *own])
        if name not in known and name not in parameters and (guess or not takes_any):
            raise InputError(
                f"{name!r} is neither an input of this model ({listed(model.inputs)}) nor an "
                f"argument of {type(model.primary).__name__}.forward.{guess}"
            )
    return (
        {name: value for name, value in given.items() if name in known},
        {name: value for name, value in given.items() if name not in known},
    )


def _axes(model: HyperModel, given: dict[str, Any]) -> tuple[list[_Axis], dict[str, Any]]:
    """The inputs that vary, and the values of the others."""
    free = [name for name in model.inputs if name not in given]
    for name in free:
        space = model.inputs[name]
        points = 32 if len(free) == 1 else 12
        given[name] = range(space.n) if isinstance(space, Categorical) else points
    for name, space in model.inputs.items():
        value: Any = given.get(name)
        counted = not isinstance(value, bool) and isinstance(value, numbers.Integral)
        if counted and not isinstance(space, Categorical):
            given[name] = _spread(model, name, space, int(value))
    gain = given.pop("gain", None) if model.takes_gain else None
    values = model.hypernet.collect(given)
    model.hypernet.check(**given)
    shapes = {name: model.inputs[name].batch_shape_of(value) for name, value in values.items()}
    if gain is not None:
        values["gain"] = as_gain(gain, model.hypernet, torch.Size())
        shapes["gain"] = values["gain"].shape
    axes, held = [], {}
    for name, shape in shapes.items():
        if len(shape) > 1 or 0 in shape:
            raise InputError(
                f"Input {name!r} has batch shape {tuple(shape)}; expected (), to hold it, or "
                "(N,), to vary it."
            )
        if shape.numel() == 1:
            held[name] = row_of(values[name], 0) if shape else values[name]
        else:
            axes.append(_Axis(name, values[name], _texts(values[name], shape[0])))
    if not axes:
        raise InputError(
            f"No input varies: {listed(held)} {'are' if len(held) > 1 else 'is'} held at a value. "
            "Pass a list or a tensor of values for one of them."
        )
    if len(axes) > 2:
        raise InputError(
            f"The inputs {listed(axis.name for axis in axes)} vary; expected one or two, since a "
            f"page has two sliders. Hold the others at a value, as in {axes[-1].name}=..."
        )
    return axes, held


def _spread(model: HyperModel, name: str, space: Input, points: int) -> Tensor:
    if isinstance(space, Encoded) or space.event_shape:
        raise InputError(
            f"The values of input {name!r}, {space!r}, lie on no line to spread them over. Pass "
            f"some, such as {name}=model.sample(16)[{name!r}], or a single one."
        )
    if points < 2:
        raise InputError(
            f"{name}={points}: an integer is a number of values, 2 or more. To hold the input at "
            f"a value, pass a float: {name}={float(points)}."
        )
    _refuse_many([points])
    return space.grid(points, dtype=model.hypernet.dtype, device=model.hypernet.device)


def _refuse_many(lengths: list[int]) -> None:
    if (count := math.prod(lengths)) > _MOST_FRAMES:
        product = f"{' times '.join(map(str, lengths))} = " if len(lengths) > 1 else ""
        raise ConfigurationError(
            f"The inputs take {product}{count} values; expected at most {_MOST_FRAMES}, since a "
            "page holds the output for each. Give fewer."
        )


def _stacked(value: Any) -> Any:
    return value[None] if isinstance(value, Tensor) else value


def _texts(values: Any, count: int = 1) -> list[str]:
    """Values as texts, with as many digits as tell them apart."""
    if not isinstance(values, Tensor) or values[0].numel() > 4:
        return [f"{i + 1} of {count}" if count > 1 else "one value" for i in range(count)]
    rows = (
        [tuple(row) for row in values.flatten(1).tolist()]
        if values.ndim > 1
        else [(value,) for value in values.tolist()]
    )
    texts: list[str] = []
    for digits in range(3, 10):
        texts = [
            ", ".join(str(v) if isinstance(v, int) else f"{v:.{digits}g}" for v in row)
            for row in rows
        ]
        if len(set(texts)) == len(set(rows)):
            break
    return texts


# --- what is drawn --------------------------------------------------------------------------


@dataclass
class _Panel:
    """A picture or a table that changes with the sliders."""

    caption: str
    sources: list[str] = field(default_factory=list)  # of pictures, as data
    alts: list[str] = field(default_factory=list)
    given: str = ""  # the picture that the model was given, as data
    sharp: bool = False  # pixels are enlarged as squares
    rows: list[str] = field(default_factory=list)  # of a table
    cells: list[list[str]] = field(default_factory=list)
    bars: list[list[float]] = field(default_factory=list)


class _Frames:
    """The outputs that were seen, as what is drawn of them."""

    def __init__(
        self,
        draw: str | Callable[[Any], Any],
        x: Tensor | None,
        samples: int,
        names: Sequence[str] | None,
    ) -> None:
        self.draw, self.x, self.samples = draw, x, samples
        self.names = None if names is None else [str(name) for name in names]
        self.kind = ""
        self.given: Tensor | None = None  # pictures that the model reads
        self.layout = "wide"  # how panels stand side by side
        self.wheres: list[str] = []
        self.taken: list[Any] = []

    def add(self, where: str, output: Any) -> None:
        """Take what is drawn from the output for one value."""
        if callable(self.draw):
            kind, taken = _returned(self.draw(output))
            kind = kind or self.kind or self._kind_of(taken)
        else:
            found = next((t for t in pytree.tree_leaves(output) if isinstance(t, Tensor)), None)
            if found is None:
                raise ConfigurationError(
                    f"The output is of type {type(output).__name__} and has no tensor to draw. "
                    "Pass a function: draw=lambda output: ..."
                )
            taken = found.detach().cpu()
            kind = self.kind or self._kind_of(taken)
            if kind in ("labels", "classes", "values") and _are_pictures(self.x, taken):
                self.given = self.x
        if isinstance(taken, Tensor):
            taken = self._checked(where, self._shaped(kind, taken))
        if self.taken and (kind != self.kind or _form(taken) != _form(self.taken[0])):
            raise ConfigurationError(
                f"At {where} there is {_form(taken)} to draw, at {self.wheres[0]} "
                f"{_form(self.taken[0])}; expected the same for every value."
            )
        self.kind = kind
        self.wheres.append(where)
        self.taken.append(taken)

    def _kind_of(self, y: Tensor) -> str:
        if isinstance(self.draw, str) and self.draw != "auto":
            return self.draw
        whole = not y.is_floating_point()
        if y.ndim == 4:
            plain = {1: "labels" if whole and y.dtype != torch.uint8 else "image", 2: "field"}
            return {**plain, 3: "image"}.get(y.shape[1], "labels")
        if y.ndim == 3 and whole:
            return "labels"
        if _is_line(self.x) and y.shape[:1] == self.x.shape[:1] and _is_line(y):  # type: ignore[union-attr]
            return "curve"
        if y.ndim == 2 and y.shape[1] > 1 and not whole:
            if _are_probabilities(y) or (self.names and len(self.names) == y.shape[1]):
                return "classes"
            if y.shape[1] > _MOST_ROWS:
                return "curve"
        return "values"

    def _shaped(self, kind: str, y: Tensor) -> Tensor:
        """The output in the form that its kind is drawn from, of the samples that are shown."""
        size, given = tuple(y.shape), y
        if kind == "image":
            y = y.unsqueeze(1) if y.ndim == 3 else y
            fits = y.ndim == 4 and y.shape[1] in (1, 3)
            expected = "(B, H, W), (B, 1, H, W) or (B, 3, H, W)"
        elif kind == "field":
            fits, expected = y.ndim == 4 and y.shape[1] == 2, "(B, 2, H, W)"
        elif kind == "labels":
            if y.ndim == 4 and y.shape[1] > 1:
                y = y.argmax(1)
            elif y.ndim == 4:
                y = y.squeeze(1)
            fits = y.ndim == 3 and not y.is_floating_point()
            expected = "integers (B, H, W), or (B, C, H, W) with a channel for every label"
        elif kind == "classes":
            fits, expected = y.ndim == 2 and y.shape[1] > 1, "(B, C)"
            if fits and not _are_probabilities(y):
                y = y.double().softmax(1)
        elif kind == "curve":
            if _is_line(self.x) and _is_line(y) and y.shape[:1] == self.x.shape[:1]:  # type: ignore[union-attr]
                y = y.reshape(1, -1)
            elif y.ndim > 2:
                y = y.flatten(1) if y.numel() == y.shape[0] * y.shape[-1] else y
            fits, expected = y.ndim == 2 and y.shape[1] > 1, "(N,), (N, 1) as x, or (B, N)"
        else:
            y = y.reshape(1, -1) if y.ndim < 2 else y.flatten(1)
            fits = y.shape[1] <= 64
            expected = "at most 64 entries in a sample for a table"
        if not fits or given.is_complex() or not y.numel():
            raise ConfigurationError(
                f"The output has shape {size} and dtype {given.dtype}, which cannot be drawn as "
                f"{kind!r}; expected {expected}. Choose another kind (draw={listed(_KINDS)}) or "
                "pass a function of the output that returns a picture, a dict of numbers or an SVG."
            )
        return y[: self.samples]

    def _checked(self, where: str, y: Tensor) -> Tensor:
        if y.is_floating_point() and not bool(y.isfinite().all()):
            raise ConfigurationError(
                f"The output at {where} has NaN or infinity, which cannot be drawn. Has training "
                "diverged? Leave that value out, or give numbers for them in a function, draw=..."
            )
        return y

    def panels(self) -> tuple[list[_Panel], list[str]]:
        """What the page shows, and notes on it in HTML."""
        if self.kind == "svg":
            sources = [_data_uri("svg+xml", svg.encode()) for svg in self.taken]
            return [_Panel("", sources, [f"Drawing at {where}" for where in self.wheres])], []
        if self.kind == "numbers":
            self.layout = ""
            rows = list(self.taken[0])
            cells = [[_number(value) for value in taken.values()] for taken in self.taken]
            return [_Panel("", rows=rows, cells=cells)], []
        stack = torch.stack(self.taken)
        if self.kind != "curve":
            pictures = self.kind in ("image", "labels")
            flat = pictures and stack.shape[-1] > 1.6 * stack.shape[-2]
            self.layout = "wide" if flat else "small" if pictures else ""
        paint: Callable[[Tensor], tuple[list[_Panel], list[str]]]
        paint = getattr(self, f"_paint_{self.kind}")
        panels, notes = paint(stack)
        if self.given is not None:
            given = self.given[: len(panels)].detach().cpu()
            low, high = _black_and_white(given)
            for panel, picture in zip(panels, given.double(), strict=True):
                panel.given = _shaded(_small(picture), low, high)
        return panels, notes

    def _alts(self, sample: int, count: int, said: Iterable[str]) -> list[str]:
        who = f"Sample {sample + 1} at" if count > 1 else "At"
        return [f"{who} {where}: {text}" for where, text in zip(self.wheres, said, strict=True)]

    def _paint_image(self, stack: Tensor) -> tuple[list[_Panel], list[str]]:
        low, high = _black_and_white(stack)
        notes = []
        if stack.dtype != torch.uint8 and (low, high) != (0.0, 1.0):
            notes.append(f"Black is {_number(low)}, white is {_number(high)}.")
        panels = []
        for sample in range(stack.shape[1]):
            panel = _Panel(_caption(sample, stack.shape[1]), sharp=stack.shape[-1] <= 128)
            means = []
            for frame in stack[:, sample]:
                panel.sources.append(_shaded(frame, low, high))
                means.append(f"picture of mean {_number(float(frame.double().mean()))}")
            panel.alts = self._alts(sample, stack.shape[1], means)
            panels.append(panel)
        return panels, notes

    def _paint_labels(self, stack: Tensor) -> tuple[list[_Panel], list[str]]:
        low, high = (int(v) for v in torch.aminmax(stack.long()))
        if low < 0 or high > 255:
            raise ConfigurationError(
                f"Labels from {low} to {high} cannot be drawn; expected 0 to 255. Number them "
                "anew, or pass a function that returns a picture."
            )
        names = self._named(high + 1, "label")
        palette = b"".join(bytes.fromhex(_colour(label)) for label in range(high + 1))
        panels = []
        for sample in range(stack.shape[1]):
            panel = _Panel(_caption(sample, stack.shape[1]), sharp=stack.shape[-1] <= 128)
            maps = stack[:, sample].to(torch.uint8)
            panel.sources = [_data_uri("png", _png(frame, palette)) for frame in maps]
            panel.alts = self._alts(
                sample, stack.shape[1], (_covered(frame, names) for frame in maps)
            )
            panels.append(panel)
        seen = stack.long().flatten().bincount().nonzero().flatten().tolist()
        keys = [
            f'<svg class="key" viewBox="0 0 1 1" aria-hidden="true"><rect width="1" height="1" '
            f'fill="#{_colour(label)}"/></svg>&nbsp;{escape(names[label])}'
            for label in seen[:24]
        ]
        more = [f"and {len(seen) - 24} more"] if len(seen) > 24 else []
        return panels, [", ".join(keys + more)]

    def _paint_field(self, stack: Tensor) -> tuple[list[_Panel], list[str]]:
        height, width = stack.shape[-2:]
        rows, columns = (
            torch.linspace(0, size - 1, min(size, _GRID_LINES)).round().long()
            for size in (height, width)
        )
        moved = stack.double()[..., rows[:, None], columns]
        at = torch.stack([moved[:, :, 1] + columns, moved[:, :, 0] + rows[:, None]], -1)
        at = (10.0 * at).round().long()  # (gammas, samples, lines, lines, 2): x, y in tenths
        (left, top), (right, bottom) = (
            getattr(at.flatten(0, -2), way)(0).tolist() for way in ("amin", "amax")
        )
        box = (left - 10, top - 10, right - left + 20, bottom - top + 20)
        panels = []
        for sample in range(stack.shape[1]):
            panel = _Panel(_caption(sample, stack.shape[1]))
            for points in at[:, sample]:
                lines = [*points.tolist(), *points.transpose(0, 1).tolist()]
                drawn = f'<path d="{"".join(map(_line, lines))}"/>'
                panel.sources.append(_data_uri("svg+xml", _svg(box, drawn)))
            lengths = (u.double().norm(dim=0) for u in stack[:, sample])
            texts = (
                f"grid moved by {_number(float(n.mean()))} pixels on average, at most "
                f"{_number(float(n.max()))}"
                for n in lengths
            )
            panel.alts = self._alts(sample, stack.shape[1], texts)
            panels.append(panel)
        return panels, [f"A grid of {height} by {width} pixels, as the displacement moves it."]

    def _paint_curve(self, stack: Tensor) -> tuple[list[_Panel], list[str]]:
        values, size = stack.double(), stack.shape[-1]
        x = torch.arange(size, dtype=torch.float64)
        if _is_line(self.x) and self.x is not None and self.x.numel() == size:
            x, order = self.x.detach().cpu().double().flatten().sort()
            values = values[..., order]
        kept = torch.linspace(0, size - 1, min(size, _CURVE_POINTS)).round().long()
        (left, right), (low, high) = ([float(v) for v in torch.aminmax(t)] for t in (x, values))
        across = (x[kept] - left) / ((right - left) or 1.0) * 2800 + 300
        up = 1700 - (values[..., kept] - low) / ((high - low) or 1.0) * 1600
        frame = '<path class="frame" d="M300 100V1700H3100"/>' + "".join(
            f'<text x="{at}" y="{y}" text-anchor="{anchor}">{_number(value)}</text>'
            for at, y, anchor, value in (
                (280, 140, "end", high),
                (280, 1700, "end", low),
                (300, 1860, "start", left),
                (3100, 1860, "end", right),
            )
        )
        panels = []
        for sample in range(stack.shape[1]):
            panel = _Panel(_caption(sample, stack.shape[1]))
            for heights in up[:, sample]:
                points = torch.stack([across, heights], -1).round().long().tolist()
                drawn = f'{frame}<path class="curve" d="{_line(points)}"/>'
                panel.sources.append(_data_uri("svg+xml", _svg((-250, 0, 3450, 1900), drawn)))
            ends = (torch.aminmax(v) for v in values[:, sample])
            texts = (f"curve from {_number(float(a))} to {_number(float(b))}" for a, b in ends)
            panel.alts = self._alts(sample, stack.shape[1], texts)
            panels.append(panel)
        return panels, []

    def _paint_classes(self, stack: Tensor) -> tuple[list[_Panel], list[str]]:
        names = self._named(stack.shape[-1], "class", exactly=True)
        panels, notes = [], []
        shown = list(range(len(names)))
        if len(names) > _MOST_ROWS:
            peaks = stack.flatten(0, 1).amax(0)
            shown = sorted(peaks.argsort(descending=True, stable=True)[:_MOST_ROWS].tolist())
            notes.append(f"The {_MOST_ROWS} likeliest of {len(names)} classes are shown.")
        for sample in range(stack.shape[1]):
            bars = stack[:, sample, shown].tolist()
            bars = [[round(value, 4) for value in frame] for frame in bars]
            cells = [[f"{value:.3f}" for value in frame] for frame in bars]
            rows = [names[label] for label in shown]
            caption = _caption(sample, stack.shape[1])
            panels.append(_Panel(caption, rows=rows, cells=cells, bars=bars))
        return panels, notes

    def _paint_values(self, stack: Tensor) -> tuple[list[_Panel], list[str]]:
        rows = self._named(stack.shape[-1], "output", exactly=True)
        panels = []
        for sample in range(stack.shape[1]):
            cells = [[_number(value) for value in frame] for frame in stack[:, sample].tolist()]
            panels.append(_Panel(_caption(sample, stack.shape[1]), rows=rows, cells=cells))
        return panels, []

    def _named(self, count: int, what: str, exactly: bool = False) -> list[str]:
        if self.names is None:
            first = 1 if what == "output" else 0
            return [f"{what} {i + first}" for i in range(count)]
        if len(self.names) < count or (exactly and len(self.names) > count):
            raise ConfigurationError(
                f"names has {len(self.names)} entries; expected {count}, one for each {what}."
            )
        return self.names


_KINDS = ("image", "field", "labels", "curve", "classes", "values")


def _returned(drawn: Any) -> tuple[str, Any]:
    """What a user's function returned, and what kind it is; ``""`` for a batch of outputs."""
    if isinstance(drawn, Tensor) and drawn.ndim in (2, 3, 4):
        taken = drawn.detach().cpu()
        return ("", taken) if taken.ndim == 4 else ("image", taken[(None,) * (4 - taken.ndim)])
    if isinstance(drawn, Mapping) and drawn:
        try:
            return "numbers", {str(name): float(value) for name, value in drawn.items()}
        except (TypeError, ValueError, RuntimeError):
            pass
    if isinstance(drawn, str):
        return "svg", _checked_svg(drawn)
    shape = f" of shape {tuple(drawn.shape)}" if isinstance(drawn, Tensor) else ""
    raise ConfigurationError(
        f"The function draw returned {type(drawn).__name__}{shape}; expected a picture, (H, W), "
        "(C, H, W) or (B, C, H, W), a dict of numbers, or the text of an SVG."
    )


def _checked_svg(text: str) -> str:
    """The SVG, with the namespace that it needs in a file of its own."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ConfigurationError(
            f"The function draw returned text that is no SVG ({error}): {text[:60]!r}. Expected "
            "well-formed XML, as in '<svg viewBox=\"0 0 9 9\">...</svg>'."
        ) from None
    if root.tag == "svg":
        return text.replace("<svg", f'<svg xmlns="{_NAMESPACE}"', 1)
    if root.tag != f"{{{_NAMESPACE}}}svg":
        raise ConfigurationError(
            f"The function draw returned the XML of a <{root.tag}>; expected an <svg>."
        )
    return text


def _form(taken: Any) -> str:
    if isinstance(taken, Tensor):
        return f"a tensor of shape {tuple(taken.shape)}"
    return f"numbers for {listed(taken)}" if isinstance(taken, dict) else "an SVG"


def _is_line(x: Tensor | None) -> bool:
    """Whether a tensor is ``(N,)`` or ``(N, 1)``, of several numbers."""
    return x is not None and x.numel() > 2 and x.shape in ((x.numel(),), (x.numel(), 1))


def _are_pictures(x: Tensor | None, y: Tensor) -> bool:
    """Whether ``x`` is ``(B, 1, H, W)`` or ``(B, 3, H, W)``, for as many samples as ``y``."""
    return (
        x is not None
        and x.ndim == 4
        and x.shape[1] in (1, 3)
        and x.shape[:1] == y.shape[:1]
        and not x.is_complex()
        and bool(x.isfinite().all())
    )


def _are_probabilities(y: Tensor) -> bool:
    return bool((y >= 0).all()) and bool(((y.double().sum(1) - 1.0).abs() < 1e-3).all())


def _caption(sample: int, count: int) -> str:
    return f"Sample {sample + 1}" if count > 1 else ""


def _number(value: float) -> str:
    return f"{value:.4g}"


def _covered(labels: Tensor, names: list[str]) -> str:
    """The labels that cover most, in words."""
    counts = labels.flatten().long().bincount()
    most = counts.argsort(descending=True, stable=True)[:4].tolist()
    parts = [f"{names[i]} {100.0 * float(counts[i]) / labels.numel():.0f} %" for i in most]
    return "labels " + ", ".join(p for p, i in zip(parts, most, strict=True) if counts[i])


def _colour(label: int) -> str:
    """The colour of a label as six hexadecimal digits."""
    if label < len(_COLOURS):
        return _COLOURS[label]
    lightness = (0.35, 0.55, 0.75)[label % 3]
    rgb = colorsys.hls_to_rgb(label * 0.618034 % 1.0, lightness, 0.7)
    return "".join(f"{round(255 * channel):02x}" for channel in rgb)


# --- pictures as data -----------------------------------------------------------------------

_NAMESPACE = "http://www.w3.org/2000/svg"
_SVG_STYLE = (
    "path{fill:none;stroke:#06c;stroke-width:1.5px;vector-effect:non-scaling-stroke}"
    ".frame{stroke:#888}text{font:130px sans-serif;fill:#444}"
    "@media(prefers-color-scheme:dark){path{stroke:#6bf}text{fill:#ccc}}"
)


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _black_and_white(pictures: Tensor) -> tuple[float, float]:
    """The values that are black and white, the same in all pictures."""
    if pictures.dtype == torch.uint8:
        return 0.0, 255.0
    low, high = (float(v) for v in torch.aminmax(pictures))
    return (0.0, 1.0) if low >= 0.0 and high <= 1.0 else (low, high)


def _shaded(picture: Tensor, low: float, high: float) -> str:
    """A picture ``(C, H, W)`` as data, in shades from ``low`` to ``high``."""
    level = (picture.double() - low) / ((high - low) or 1.0)
    return _data_uri("png", _png((level * 255.0).round().to(torch.uint8).movedim(0, -1)))


def _small(picture: Tensor) -> Tensor:
    """A picture ``(C, H, W)`` with few enough pixels to stand beside what it gives."""
    height, width = picture.shape[1:]
    times = -(-max(height, width) // _MOST_PIXELS)
    size = (max(1, height // times), max(1, width // times))
    return torch.nn.functional.adaptive_avg_pool2d(picture, size)


def _svg(box: tuple[int, int, int, int], drawn: str) -> bytes:
    view = " ".join(map(str, box))
    return (
        f'<svg xmlns="{_NAMESPACE}" viewBox="{view}"><style>{_SVG_STYLE}</style>{drawn}</svg>'
    ).encode()


def _line(points: Sequence[Sequence[int]]) -> str:
    """The path through points with whole coordinates, each relative to the one before."""
    (x, y), steps = points[0], []
    for (a, b), (c, d) in itertools.pairwise(points):
        steps.append(f"{c - a} {d - b}")
    return f"M{x} {y}l{' '.join(steps)}".replace(" -", "-")


def _png(pixels: Tensor, palette: bytes = b"") -> bytes:
    """A PNG of bytes ``(H, W)``, which may be indices of a palette, or ``(H, W, 1 or 3)``."""
    height, width = pixels.shape[:2]
    channels = pixels[0, 0].numel()
    rows = pixels.reshape(height, -1)
    # The three filters that need one subtraction: none, the pixel to the left, the pixel above.
    left, above = rows.clone(), rows.clone()
    left[:, channels:] -= rows[:, :-channels]
    above[1:] -= rows[:-1]
    data = min(
        (
            zlib.compress(bytes(torch.nn.functional.pad(f, (1, 0), value=i).flatten().tolist()), 9)
            for i, f in enumerate((rows, left, above))
        ),
        key=len,
    )
    colour = 3 if palette else 0 if channels == 1 else 2
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *[(b"PLTE", palette)] * bool(palette), (b"IDAT", data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in [*chunks, (b"IEND", b"")]
    )


# --- the page -------------------------------------------------------------------------------

_PAGE = Template(Path(__file__).with_name("explore.html").read_text("utf-8"))


def _html(
    title: str, axes: list[_Axis], panels: list[_Panel], layout: str, notes: list[str]
) -> str:
    start = 0
    for axis in axes:
        start = start * len(axis.texts) + len(axis.texts) // 2
    frames = json.dumps(
        {
            "axes": [axis.texts for axis in axes],
            "panels": [
                {"sources": panel.sources, "alts": panel.alts}
                if panel.sources
                else {"cells": panel.cells, "bars": panel.bars}
                for panel in panels
            ],
        },
        separators=(",", ":"),
    )
    # The page may load nothing, and run and style by nothing but what stands in the template.
    styles, scripts = (
        " ".join(map(_hash, re.findall(rf"<{tag}>(.*?)</{tag}>", _PAGE.template, re.DOTALL)))
        for tag in ("style", "script")
    )
    mark = hashlib.sha256(frames.encode()).hexdigest()[:8]
    return _PAGE.substitute(
        policy=f"default-src 'none'; img-src data:; style-src {styles}; script-src {scripts}",
        title=escape(title),
        layout=layout,
        controls="\n".join(_control(f"{mark}-{i}", axis) for i, axis in enumerate(axes)),
        panels="\n".join(_figure(panel, start) for panel in panels),
        notes="\n".join(f"<p>{note}</p>" for note in notes),
        # No text can end the element, or begin a comment in it.
        frames=frames.replace("<", "\\u003c"),
    )


def _hash(text: str) -> str:
    """The source of a content security policy that allows just this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _control(mark: str, axis: _Axis) -> str:
    middle = len(axis.texts) // 2
    first, text, last = (escape(axis.texts[i]) for i in (0, middle, -1))
    # The value would be read out twice: the slider has it as well.
    return (
        f'<div class="values"><label for="{mark}">{escape(axis.name)}</label> '
        f'<output for="{mark}" aria-hidden="true">{text}</output></div>\n'
        f'<input type="range" id="{mark}" min="0" max="{len(axis.texts) - 1}" step="1" '
        f'value="{middle}" aria-valuetext="{text}">\n'
        f'<div class="ends" aria-hidden="true"><small>{first}</small><small>{last}</small></div>'
    )


def _figure(panel: _Panel, start: int) -> str:
    given = ""
    if panel.given:
        given = f'<img class="input sharp" src="{panel.given}" alt="The input">'
    if panel.sources:
        sharp = ' class="sharp"' if panel.sharp else ""
        caption = f"<figcaption>{escape(panel.caption)}</figcaption>" if panel.caption else ""
        image = f'<img{sharp} src="{panel.sources[start]}" alt="{escape(panel.alts[start])}">'
        return f"<figure>{given}{image}{caption}</figure>"
    caption = f"<caption>{escape(panel.caption)}</caption>" if panel.caption else ""
    rows = []
    for index, (name, cell) in enumerate(zip(panel.rows, panel.cells[start], strict=True)):
        bar = f'<meter value="{panel.bars[start][index]}"></meter> ' if panel.bars else ""
        rows.append(
            f'<tr><th scope="row">{escape(name)}</th><td>{bar}<span>{escape(cell)}</span></td></tr>'
        )
    return f"<figure>{given}<table>{caption}<tbody>{''.join(rows)}</tbody></table></figure>"
