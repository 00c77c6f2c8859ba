"""One ONNX file for a whole family: the inputs of the model are inputs of the graph.

A file is checked before it is written: in memory, onnxruntime has to give what the model gives.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._torch import EXPORTER_LOG, pytree
from ._version import __version__
from .diagnostics import median
from .encoded import Encoded, map_tensors, row_of
from .errors import (
    ConfigurationError,
    FormatError,
    HyperLightError,
    InputError,
    MissingExtraError,
    check_integer,
    did_you_mean,
    listed,
)
from .inputs import GAIN, Categorical, Input, Simplex
from .io import file_to_write, replaced
from .many import PerSample, Shared
from .model import HyperModel, as_gain
from .signatures import arguments_of
from .tune import evaluating

KEY = "hyperlight"
"""The key of the description in the file's metadata."""

_VERSION = 1  # of the description
_OWN = ("per_sample", "dynamic", "opset", "tolerance")
_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_PLAIN = (type(None), bool, int, float, complex, str, torch.dtype, torch.device)
_MOST_BYTES = 2**31 - 1  # of a protobuf message, which an ONNX file is
_SMALLEST = 1e-3  # an output that is smaller everywhere counts as if it were this large
_BATCH = "batch"

# The names of open axes, by graph input: {"image": {0: "batch", 3: "width"}}. None fixes one.
Axes = Mapping[str, Mapping[int, str | None]]


def export_onnx(
    model: HyperModel,
    path: str | os.PathLike[str],
    /,
    *args: Any,
    per_sample: bool = False,
    dynamic: bool | Axes = True,
    opset: int | None = None,
    tolerance: float = 1e-4,
    **kwargs: Any,
) -> dict[str, Any]:
    """Export a model to one ONNX file that answers for every value of its inputs.

    The graph takes the arguments of the primary and the inputs of the model, all by name. A
    primary with ``forward(self, image)`` and an input ``scale`` make a graph that takes ``image``
    and ``scale``. Numbers, strings and None among the arguments are fixed. The model is exported
    in eval mode, and its modes are restored afterwards.

    A graph cannot refuse a value. The nearest value inside the space takes the place of one
    outside (:meth:`Input.nearest`). A number is clamped, and a point off the simplex is divided by
    its sum. A category that does not exist gives NaN. So check values before, or let a slider give
    them: the metadata of the file hold the range of each input, as JSON under ``hyperlight``.

    The file is checked before it is written, by onnx and by running it in onnxruntime. There it
    has to give what the model gives, at both ends and in the middle of every input. Other sizes of
    the batch are tried in the middle: 1, and one more than the example has. If anything differs,
    an error says by how much and where, and nothing is written. The file is self-contained, and
    holds no paths and no code of yours.

    The packages onnx, onnxscript and onnxruntime are needed: ``pip install onnx onnxscript
    onnxruntime``.

    Args:
        model: the model.
        path: the file to write, usually ``*.onnx``, in a folder that exists.
        args: examples of the primary's arguments.
        per_sample: whether the graph takes one value of every input for each sample, of shape
            ``(B,) + event_shape``, instead of one for the whole batch. Wrap arguments as for
            :meth:`HyperModel.forward`.
        dynamic: which sizes stay open. With True, that of the batch: the first dimension of all
            tensors among the arguments that have as many entries there as the first one. With
            False, none. Or name axes that are open beside the batch: ``{"image": {2: "height", 3:
            "width"}}``; None in place of a name fixes one.
        opset: the version of ONNX's operators; the default is that of :func:`torch.onnx.export`.
        tolerance: the largest difference between the file and the model, as a fraction of the
            largest value of each output; of integers, the fraction of entries that differ. For
            weights in float16 try 1e-2.
        kwargs: arguments of the primary, and values of inputs, by name. The file is checked at
            these values as well. An :class:`~hyperlight.Encoded` input without examples needs one.
            A value for ``gain`` makes the gain an input of the graph.

    Returns:
        What the metadata say. ``inputs``: for each name ``low``, ``high``, ``middle``, ``shape``,
        ``dtype`` and more. ``arguments`` and ``outputs``, in the order of the graph. ``library``:
        the version of HyperLight.

    Raises:
        MissingExtraError: one of the packages is not installed.
        ConfigurationError: a setting does not fit.
        InputError: an argument or a value does not fit.
        FormatError: the model cannot be exported, the file would be larger than 2 GB, or it would
            not give what the model gives.

    >>> import pathlib, tempfile
    >>> model = hl.hypernetize(nn.Linear(2, 1), inputs={"scale": hl.Uniform(0.0, 0.5)})
    >>> path = pathlib.Path(tempfile.mkdtemp(), "family.onnx")
    >>> about = hl.export_onnx(model, path, torch.ones(3, 2))
    >>> about["inputs"]["scale"]["high"], about["arguments"][0]["shape"]
    (0.5, ['batch', 2])
    """
    _check_settings(model, opset, tolerance)
    path = file_to_write(path, "family.onnx")
    onnx, onnxruntime = _packages()
    last_run = model.last_run
    try:
        with evaluating(model), torch.no_grad():
            call = _Call(model, args, kwargs, per_sample, dynamic)
            # Beside the names of outputs, it says what a layer does with one set per sample.
            outputs = call.outputs(call.run(call.example))
            about = call.about([name for name, _ in outputs])
            content = _exported(onnx, call, about, opset)
            _check(onnx, onnxruntime, content, call, tolerance)
    finally:
        model.last_run = last_run
    with replaced(path) as file:
        file.write(content)
    return about


def _check_settings(model: Any, opset: int | None, tolerance: float) -> None:
    if not isinstance(model, HyperModel):
        raise ConfigurationError(
            f"model was of type {type(model).__name__}; expected a HyperModel, as made by "
            "hypernetize. If it wraps one (torch.compile, DistributedDataParallel), pass the model "
            "inside; for any other module use torch.onnx.export."
        )
    for name in _OWN:
        if name in model.inputs:
            raise ConfigurationError(
                f"Input {name!r} has the name of an argument of export_onnx, which cannot tell "
                "them apart. Rename the input."
            )
    if opset is not None:
        check_integer("export_onnx(opset={})", opset)
    if not 0.0 < tolerance < math.inf:
        raise ConfigurationError(
            f"tolerance was {tolerance!r}; expected a positive number, such as 1e-4."
        )
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if size > _MOST_BYTES:
        raise FormatError(
            f"The weights of the model take {size / 1e9:.1f} GB; expected at most "
            f"{_MOST_BYTES / 1e9:.1f} GB, which is what one ONNX file can hold. Make the head "
            "smaller (model.truncate, hl.LowRank, hl.ChannelScale), or export one network of the "
            "family: torch.onnx.export(model.at(...), ...)."
        )


def _packages() -> tuple[Any, Any]:
    """The modules onnx and onnxruntime."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"export_onnx needs the packages {listed(_NEEDED)}, and {listed(missing)} "
            f"{'are' if len(missing) > 1 else 'is'} not installed. Install them: pip install "
            f"{' '.join(_NEEDED)}."
        )
    return importlib.import_module("onnx"), importlib.import_module("onnxruntime")


# --- the values of the inputs ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Knob:
    """An input of the model, at three values: an end, the middle or one of the user's, an end."""

    space: Input
    rows: Any

    def about(self) -> dict[str, Any]:
        """The values that the input takes."""
        space = self.space
        about: dict[str, Any] = {"class": "gain" if space is GAIN else type(space).__name__}
        if isinstance(space, Encoded):
            return about
        kind = int if space.discrete else float
        ends = [kind(end) if math.isfinite(end) else None for end in space.support]
        about |= {"low": ends[0], "high": ends[1], "middle": median(space)}
        about |= {"logarithmic": space.logarithmic, "discrete": space.discrete}
        if space is GAIN:
            about["middle"] = 1.0
        elif not space.bounded:  # where most values lie
            about |= {key: getattr(space, key) for key in ("loc", "scale") if hasattr(space, key)}
        return about


def _knobs(model: HyperModel, given: Mapping[str, Any]) -> dict[str, _Knob]:
    """All inputs of the model; and the gain, if it is given."""
    rows = {name: _spread(model, name, space, given) for name, space in model.inputs.items()}
    gamma = {name: row_of(found, 1) for name, found in rows.items() if found is not None}
    gamma |= {name: value for name, value in given.items() if name in model.inputs}
    values = model.hypernet.collect(gamma)
    model.hypernet.check(**gamma)
    knobs = {}
    for name, space in model.inputs.items():
        if name in given:
            _refuse_several(name, space, values[name])
        if isinstance(space, Encoded) and name in given:
            rows[name] = map_tensors(lambda t: torch.stack([t] * 3), values[name])
        elif isinstance(space, Categorical) and values[name].is_floating_point():  # a blend
            space = Simplex(space.n)
            rows[name] = _with_middle(_corners(model, space.size), values[name])
        elif name in given:
            rows[name] = _with_middle(rows[name], values[name])
        knobs[name] = _Knob(space, rows[name])
    if model.takes_gain and "gain" in given:
        gain = as_gain(given["gain"], model.hypernet, torch.Size())
        _refuse_several("gain", GAIN, gain)
        knobs["gain"] = _Knob(GAIN, _with_middle(gain.new_tensor([0.0, 1.0, 2.0]), gain))
    return knobs


def _refuse_several(name: str, space: Input, value: Any) -> None:
    shape = space.batch_shape_of(value)
    if shape:
        declare = ""
        if isinstance(space, Encoded) and space.shape is None:
            declare = " Declare the shape of one: hl.Encoded(module, features, shape=...)."
        raise InputError(
            f"Input {name!r} was given with batch shape {tuple(shape)}; expected a single value, "
            f"also for per_sample=True, where the graph takes one for each sample.{declare}"
        )


def _spread(model: HyperModel, name: str, space: Input, given: Mapping[str, Any]) -> Any:
    """An end, the middle and the other end of a space; None if only a given value is known."""
    hypernet = model.hypernet
    if isinstance(space, Encoded):
        if name in given:
            return None
        if space.examples is None:
            raise InputError(
                f"Input {name!r} was declared as {space!r}, without examples; expected a value to "
                f"export it with. Pass one: hl.export_onnx(model, 'family.onnx', x, {name}=...)."
            )
        count = len(pytree.tree_leaves(space.examples)[0])
        rows = _take(space.examples, torch.tensor([0, count // 2, count - 1]))
        return map_tensors(lambda t: t.to(hypernet.device), rows)
    if isinstance(space, Simplex):
        return _corners(model, space.size)
    dtype = None if space.discrete else hypernet.dtype
    return space.grid(3, dtype=dtype, device=hypernet.device)


def _take(rows: Any, index: Tensor) -> Any:
    return map_tensors(lambda t: t[index.to(t.device)], rows)


def _corners(model: HyperModel, size: int) -> Tensor:
    """The first corner of a simplex, its centre and its last corner."""
    eye = torch.eye(size, dtype=model.hypernet.dtype, device=model.hypernet.device)
    return torch.stack([eye[0], eye.mean(dim=0), eye[-1]])


def _with_middle(rows: Tensor, value: Tensor) -> Tensor:
    return torch.stack([rows[0].expand_as(value), value, rows[2].expand_as(value)])


# --- the call -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A tensor of the call, which is an input of the graph."""

    index: int  # among the leaves
    name: str
    tensor: Tensor
    axis: int | None  # which holds the samples; None if all share it


class _Call:
    """A call of the model, taken apart into its tensors.

    Attributes:
        knobs: the inputs of the model.
        entries: the tensors, those of the arguments first.
        arguments: how many of them belong to the arguments.
        batch: how many samples the user's example holds.
        open: for every tensor, its open axes by name.
        example: the tensors that the graph is made from.
    """

    def __init__(
        self,
        model: HyperModel,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        per_sample: bool,
        dynamic: bool | Axes,
    ) -> None:
        self.model, self.per_sample = model, per_sample
        own = {*model.inputs, *["gain"] * model.takes_gain}
        self.knobs = _knobs(model, {name: v for name, v in kwargs.items() if name in own})
        others = {name: value for name, value in kwargs.items() if name not in own}
        try:
            arguments_of(model.primary).bind(*args, **others)
        except TypeError as error:
            raise InputError(
                f"The primary {type(model.primary).__name__} cannot be called with the examples: "
                f"{error}. Pass an example of each of its arguments: "
                "hl.export_onnx(model, path, x)."
            ) from None
        gamma = {name: row_of(knob.rows, 1) for name, knob in self.knobs.items()}
        found, self._structure = _flatten((args, others, gamma))
        self._leaves = [leaf for _, leaf in found]
        self.entries = self._entries([path for path, _ in found])
        self.arguments = len(self.entries) - len(pytree.tree_leaves(gamma))
        self.batch = self._batch()
        self.open = self._axes(dynamic)
        # Made from a batch of 1, a graph may take the 1 for fixed.
        least = 2 if self.grows else 1
        self.example = self.tensors(max(self.batch, least), turn=1)

    @property
    def grows(self) -> bool:
        """Whether the graph takes batches of any size."""
        return any(_BATCH in axes.values() for axes in self.open)

    @property
    def names(self) -> list[str]:
        """The inputs of the graph."""
        return [entry.name for entry in self.entries]

    def _entries(self, paths: list[list[Any]]) -> list[_Entry]:
        positional = _names_of_arguments(self.model.primary)
        taken = {_joined(path[1:]) for path in paths if path[0] == 2}  # inputs keep their names
        entries = []
        for index, ((part, *path), leaf) in enumerate(zip(paths, self._leaves, strict=True)):
            wrapped = isinstance(leaf, (Shared, PerSample))
            tensor = leaf.value if wrapped else leaf
            if not isinstance(tensor, Tensor):
                if not isinstance(leaf, _PLAIN):
                    raise InputError(
                        f"An argument holds an object of class {type(leaf).__name__}; expected "
                        "tensors, numbers and strings, or tuples, lists and dicts of them, since a "
                        "graph takes nothing else."
                    )
                continue
            name = _joined([positional(path[0]), *path[1:]] if part == 0 else path)
            if part < 2:
                (name,) = _unique([name], taken, "_")
                taken.add(name)
            axis = 0 if tensor.ndim else None
            if part == 2:
                axis = 0 if self.per_sample else None
            elif wrapped:
                axis = leaf.dim % tensor.ndim if isinstance(leaf, PerSample) else None
            entries.append(_Entry(index, name, tensor, axis))
        return entries

    def _batch(self) -> int:
        """The number of samples. Arguments that hold another number are shared by all of them."""
        own = self.entries[: self.arguments]
        sizes = [e.tensor.shape[e.axis] for e in own if e.axis is not None]
        if self.per_sample and not sizes:
            raise InputError(
                "per_sample=True was given, and no argument is a tensor with a batch dimension; "
                "expected an example, as in hl.export_onnx(model, 'family.onnx', x, "
                "per_sample=True)."
            )
        if sizes and not sizes[0]:
            raise InputError("The example is a batch without samples; expected 1 or more.")
        for i, entry in enumerate(own):
            if entry.axis is not None and entry.tensor.shape[entry.axis] != sizes[0]:
                self.entries[i] = dataclasses.replace(entry, axis=None)
        return sizes[0] if sizes else 1

    def _axes(self, dynamic: bool | Axes) -> list[dict[int, str]]:
        names, found = self.names, [dict[int, str | None]() for _ in self.entries]
        if dynamic is not False:
            for axes, entry in zip(found, self.entries, strict=True):
                if entry.axis is not None:
                    axes[entry.axis] = _BATCH
        for name, named in dynamic.items() if isinstance(dynamic, Mapping) else ():
            if name not in names:
                raise ConfigurationError(
                    f"dynamic names {name!r}, which is no tensor among the inputs of the graph: "
                    f"{listed(names)}.{did_you_mean(name, names)}"
                )
            i = names.index(name)
            rank = self.entries[i].tensor.ndim + (self.per_sample and i >= self.arguments)
            for axis, symbol in named.items():
                if not -rank <= axis < rank:
                    raise ConfigurationError(
                        f"dynamic names axis {axis} of {name!r}, which has {rank} dimensions; "
                        f"expected one from {-rank} to {rank - 1}."
                    )
                found[i][axis % rank] = symbol
        return [{a: s for a, s in axes.items() if s is not None} for axes in found]

    def tensors(self, batch: int, turn: int) -> list[Tensor]:
        """The tensors with so many samples, in the order of the graph; see :meth:`gamma`."""
        found = [
            entry.tensor
            if entry.axis is None
            else entry.tensor.index_select(
                entry.axis, torch.arange(batch, device=entry.tensor.device) % self.batch
            )
            for entry in self.entries[: self.arguments]
        ]
        return found + pytree.tree_leaves(self.gamma(batch, turn))

    def gamma(self, batch: int, turn: int) -> dict[str, Any]:
        """The inputs in one of three turns, in which each is at both ends and in the middle.

        Neighbouring inputs, and neighbouring samples, are never at the same of the three.
        """
        found = {}
        for i, (name, knob) in enumerate(self.knobs.items()):
            if self.per_sample:
                found[name] = _take(knob.rows, (torch.arange(batch) + turn + i) % 3)
            else:
                found[name] = row_of(knob.rows, (turn + i) % 3)
        return found

    def run(self, tensors: Sequence[Tensor]) -> Any:
        """Call the model with other tensors in place of those that were given."""
        leaves = list(self._leaves)
        for entry, tensor in zip(self.entries, tensors, strict=True):
            leaf = leaves[entry.index]
            wrapped = isinstance(leaf, (Shared, PerSample))
            leaves[entry.index] = dataclasses.replace(leaf, value=tensor) if wrapped else tensor
        args, kwargs, gamma = pytree.tree_unflatten(leaves, self._structure)
        return self.model(*args, **kwargs, **gamma)

    def outputs(self, output: Any) -> list[tuple[str, Tensor]]:
        """The tensors of an output, by names that the graph has none of yet."""
        own = type(self.model.primary).__name__
        if isinstance(output, Mapping):  # also of a class that pytree does not know
            output = dict(output)
        elif dataclasses.is_dataclass(output) and not isinstance(output, type):
            output = {f.name: getattr(output, f.name) for f in dataclasses.fields(output)}
        names, tensors = [], []
        for path, leaf in _flatten(output)[0]:
            if isinstance(leaf, Tensor):
                start = [] if path and isinstance(path[0], str) else ["output"]
                names.append(_joined([*start, *path]))
                tensors.append(leaf)
            elif not isinstance(leaf, _PLAIN):
                raise FormatError(
                    f"{own} returns an object of class {type(leaf).__name__}; expected tensors, or "
                    "tuples, lists and dicts of them, since a graph returns nothing else. Does an "
                    "argument turn it off, such as use_cache=False?"
                )
        if not names:
            raise FormatError(f"{own} returns no tensor, and a graph has to return one.")
        return list(zip(_unique(names, self.names, "_out"), tensors, strict=True))

    def about(self, outputs: list[str]) -> dict[str, Any]:
        """What the file says of itself."""
        described = [
            {
                "name": entry.name,
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "shape": [axes.get(axis, size) for axis, size in enumerate(tensor.shape)],
            }
            for entry, axes, tensor in zip(self.entries, self.open, self.example, strict=True)
        ]
        tensors = iter(described[self.arguments :])
        inputs = {}
        for name, knob in self.knobs.items():
            parts = [next(tensors) for _ in pytree.tree_leaves(knob.rows)]
            inputs[name] = knob.about() | (parts[0] if len(parts) == 1 else {"tensors": parts})
        return {
            "format": KEY,
            "version": _VERSION,
            "library": __version__,
            "primary": type(self.model.primary).__name__,
            "per_sample": self.per_sample,
            "inputs": inputs,
            "arguments": described[: self.arguments],
            "outputs": outputs,
        }


def _names_of_arguments(primary: nn.Module) -> Callable[[int], str]:
    """What the arguments of a primary are called that are given by position."""
    parameters = arguments_of(primary).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "args")
    return lambda i: names[i] if i < len(names) else f"{rest}_{i - len(names)}"


def _flatten(tree: Any) -> tuple[list[tuple[list[Any], Any]], Any]:
    """The leaves of a tree, each with the keys that lead to it; and its structure."""
    found, structure = pytree.tree_flatten_with_path(tree)
    return [([_key(entry) for entry in path], leaf) for path, leaf in found], structure


def _key(entry: Any) -> Any:
    return next(getattr(entry, kind) for kind in ("key", "name", "idx") if hasattr(entry, kind))


def _joined(path: Sequence[Any]) -> str:
    return "_".join(map(str, path))


def _unique(names: Sequence[str], taken: Sequence[str] | set[str], end: str) -> list[str]:
    """The names, with an ending where they are taken."""
    found: list[str] = []
    for name in names:
        while name in taken or name in found:
            name += end
        found.append(name)
    return found


# --- the graph ------------------------------------------------------------------------------


class _Graph(nn.Module):
    """The call as a module from tensors to tensors."""

    def __init__(self, call: _Call) -> None:
        super().__init__()
        self.model, self._call = call.model, call

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor for _, tensor in self._call.outputs(self._call.run(tensors)))


def _exported(onnx: Any, call: _Call, about: Mapping[str, Any], opset: int | None) -> bytes:
    """The content of the file."""
    export: Any = torch.onnx.export
    try:
        with warnings.catch_warnings(), _without_torchvision():
            warnings.simplefilter("ignore")  # of the exporter, about itself; the result is checked
            program = export(
                _Graph(call).eval(),
                tuple(call.example),
                dynamo=True,
                dynamic_shapes={"tensors": tuple(call.open)} if any(call.open) else None,
                input_names=call.names,
                output_names=about["outputs"],
                opset_version=opset,
                verbose=False,
            )
            _free_names(program.model.graph, {*call.names, *about["outputs"]})
            proto = program.model_proto
            _strip(proto)
            onnx.helper.set_model_props(proto, {KEY: json.dumps(about, allow_nan=False)})
            content: bytes = proto.SerializeToString()
    except Exception as error:
        raise _refusal(call, error) from error
    found = next(each.version for each in proto.opset_import if each.domain in ("", "ai.onnx"))
    if opset is not None and found != opset:
        raise FormatError(
            f"{type(call.model.primary).__name__} was exported with opset {found}; expected opset "
            f"{opset}, to which PyTorch cannot convert it. Leave opset out, or ask for another."
        )
    return content


@contextlib.contextmanager
def _without_torchvision() -> Iterator[None]:
    """Keep the exporter from logging at every call that there is none: a graph needs none."""
    logger = logging.getLogger(EXPORTER_LOG)

    def wanted(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("torchvision is not installed")

    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def _refusal(call: _Call, error: BaseException) -> FormatError:
    """What to say if no graph can be made; the exporter itself says it in hundreds of lines."""
    cause = error
    while cause.__cause__ is not None and not isinstance(cause, HyperLightError):
        cause = cause.__cause__
    what, run = (
        f"{type(call.model.primary).__name__} cannot be exported to ONNX",
        call.model.last_run,
    )
    if call.per_sample and run is not None and run.reason:
        what += f" with one set of weights per sample ({run.reason.rstrip('.')})"
    why = _brief(cause)
    for i, name in enumerate(call.names):  # torch.export knows tensors by their numbers
        why = why.replace(f"inputs['tensors'][{i}]", name)
    hint = ""
    for name, axes in zip(call.names, call.open, strict=True):
        if axes and not hint:
            one = f"dynamic={{{name!r}: {{{next(iter(axes))}: None}}}}"
            hint = f" If a size has to be fixed, pass dynamic=False, or None for one, as in {one}."
    return FormatError(f"{what}. {why}{hint} The error above has all of it.")


def _free_names(graph: Any, names: set[str]) -> None:
    """Rename values within the graph that are called as an input or an output."""
    inner = [*graph.initializers.values(), *(v for node in graph.all_nodes() for v in node.outputs)]
    for value in inner:
        if value.name in names and not value.is_graph_output():
            value.name = f"value.{value.name}"


def _strip(message: Any) -> None:
    """Remove the exporter's notes from a message: lines of code, and the folders they are in."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for each in [value] if hasattr(value, "ListFields") else value:
                _strip(each)


# --- the check ------------------------------------------------------------------------------


def _check(onnx: Any, onnxruntime: Any, content: bytes, call: _Call, tolerance: float) -> None:
    """Check the file, and compare what it gives with what the model gives."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        onnx.checker.check_model(content, full_check=True)
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise FormatError(
            f"The exported {type(call.model.primary).__name__} cannot be loaded. {_brief(error)} "
            "No file was written. If weights are in another dtype than float32, export a copy that "
            "is: copy.deepcopy(model).float()."
        ) from error
    for turn in range(3):
        _compare(session, call, call.batch, turn, tolerance)
    for batch in sorted({1, call.batch + 1} - {call.batch}) if call.grows else ():
        _compare(session, call, batch, 1, tolerance)


def _compare(session: Any, call: _Call, batch: int, turn: int, tolerance: float) -> None:
    own, tensors = type(call.model.primary).__name__, call.tensors(batch, turn)
    gamma = ", ".join(f"{name} = {_shown(v)}" for name, v in call.gamma(batch, turn).items())
    where = f"for {gamma}, with {batch} sample{'s' * (batch > 1)}"
    end = "No file was written."
    if batch != call.batch:
        end += f" For batches of {call.batch} alone, pass dynamic=False."
    try:
        expected = call.outputs(call.run(tensors))
    except Exception as error:
        raise FormatError(f"{own} itself fails {where}: {_brief(error)} {end}") from error
    given = {n: t.numpy(force=True) for n, t in zip(call.names, tensors, strict=True)}
    try:
        found = [torch.as_tensor(array) for array in session.run(None, given)]
    except Exception as error:
        raise FormatError(
            f"onnxruntime cannot run the exported {own} {where}: {_brief(error)} {end}"
        ) from error
    for (name, right), other in zip(expected, found, strict=True):
        what = f"The exported {own} does not give what the model gives {where}: {name!r}"
        if other.shape != right.shape:
            raise FormatError(
                f"{what} has shape {tuple(other.shape)}; expected {tuple(right.shape)}. {end}"
            )
        apart = _difference(right.cpu(), other)
        if not apart <= tolerance:
            unit = "its largest value" if right.is_floating_point() else "its entries"
            raise FormatError(
                f"{what} differs by {apart:.2g} of {unit}; expected at most {tolerance:g}. {end} "
                "A forward that draws random numbers or goes by values cannot be exported. Where "
                "it is rounding, as in deep networks, pass a larger tolerance."
            )


def _difference(right: Tensor, found: Tensor) -> float:
    """The largest difference by the largest value; of integers, the fraction that differs."""
    if not right.numel():
        return 0.0
    if not right.is_floating_point():
        return float((right != found).double().mean())
    right, found = right.double(), found.double()
    same = (right == found) | (right.isnan() & found.isnan())
    apart = torch.where(same, 0.0, (right - found).abs()).nan_to_num(math.inf)
    largest = torch.where(right.isfinite(), right.abs(), 0.0)
    return float(apart.max()) / max(float(largest.max()), _SMALLEST)


def _shown(value: Any) -> str:
    if not isinstance(value, Tensor) or value.numel() > 4:
        return "an example" if not isinstance(value, Tensor) else f"{tuple(value.shape)} values"
    numbers = [f"{number:.4g}" for number in value.flatten().tolist()]
    return f"[{', '.join(numbers)}]" if value.ndim else numbers[0]


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300].rstrip('.')}{'...' if len(text) > 300 else '.'}"
