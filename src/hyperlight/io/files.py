r"""Saving and loading: one safetensors file, no pickle.

The tensors are the state of the hypernetwork, named ``hypernet.*``, and of the primary
(:math:`\theta^0`, its other parameters and its buffers), named ``primary.*``. The metadata holds
one JSON object under the key ``hyperlight``: the name and version of the format, the version of
the library, the inputs, the predicted names and shapes, the settings of the hypernetwork, and the
class name of the primary. Code is not saved: pass a primary of the same architecture to
:func:`load`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, TypedDict, Unpack, overload

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .._torch import is_distributed, is_wrapper
from .._version import __version__
from ..encodings import CosSin, Identity
from ..errors import ConfigurationError, FormatError, did_you_mean, listed
from ..heads import Chunked, Dense, Head, LowRank, Mixed
from ..hypernet import ACTIVATIONS, Activation, HyperNet
from ..inputs import Categorical, Input, LogUniform, Normal, Simplex, Uniform, Vector
from ..model import HyperModel
from .state import check_values, differences, empty_hypernet, load_in_place, own_tensors, under

FORMAT = "hyperlight"
VERSION = 1

FilePath = str | os.PathLike[str]
Description = dict[str, Any]

# The classes that a file can name; any other is passed to load.
_INPUTS = {c.__name__: c for c in (Uniform, LogUniform, Normal, Vector, Categorical, Simplex)}
_ENCODINGS = {c.__name__: c for c in (CosSin, Identity)}
_HEADS = {c.__name__: c for c in (Dense, LowRank, Chunked)}
_PARTS: dict[str, Any] = {"encoding": _ENCODINGS, "head": _HEADS, "activation": ACTIVATIONS}

# The codes of https://huggingface.co/docs/safetensors; other dtypes are stored as bytes.
_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

# The kinds of values in the metadata, in the notation of _fits.
_SIZE, _WIDTH = range(2**63), range(1, 2**63)
_PART: Description = {"class": str, "config": (dict, NoneType)}
_PART["heads"] = ([[str, _PART]], NoneType)
_METADATA: Description = {
    "primary": (str, NoneType),
    "inputs": {str: _PART},
    "shapes": {str: [_SIZE]},
    "hidden": [_WIDTH],
    "activation": (_PART, NoneType),
    "skip": bool,
    "encoding": _PART,
    "head": _PART,
    "dtype": str,
    "aliases": {str: str},
    "raw": {str: [str, [_SIZE]]},
    "left_out": {str: str},
}


class LoadSettings(TypedDict, total=False):
    """The keyword arguments of :func:`load`."""

    device: torch.device | str | None
    inputs: Mapping[str, Input] | None
    encoding: nn.Module | None
    head: Head | Mapping[str, Head] | None
    activation: Activation | None


def save(model: HyperModel | HyperNet, path: FilePath, *, frozen: bool = True) -> None:
    r"""Write a model to one safetensors file: the hypernetwork, :math:`\theta^0` and settings.

    The file is written whole or not at all: an existing one stays until the new one is complete.
    Tensors are restored bit for bit, and tied tensors stay tied. Not saved are ``requires_grad``,
    the training mode, buffers that are not persistent, and the initialisation scheme.

    Args:
        model: a model, or a hypernetwork alone.
        path: the file to write, usually ``*.safetensors``, in a folder that exists.
        frozen: whether to write parameters of the primary with ``requires_grad=False``. Without
            them the file is an adapter to a network that is published elsewhere: it stores their
            fingerprints (SHA-256 of dtype, shape and bytes), and :func:`load` refuses a primary
            with other values.

    Raises:
        FormatError: ``model`` is not a model, ``path`` cannot be a file, or a tensor cannot be
            saved.
        OSError: the file cannot be written.

    >>> import pathlib, tempfile
    >>> model = hl.hypernetize(nn.Linear(2, 1), inputs={"scale": hl.Uniform(0.0, 0.5)})
    >>> path = pathlib.Path(tempfile.mkdtemp(), "model.safetensors")
    >>> hl.save(model, path)
    >>> again = hl.load(path, nn.Linear(2, 1))
    >>> x = torch.ones(3, 2)
    >>> torch.equal(again(x, scale=0.3), model(x, scale=0.3))
    True
    """
    if not isinstance(model, (HyperModel, HyperNet)):
        raise FormatError(
            f"model was of type {type(model).__name__}; expected a HyperModel, as made by "
            "hypernetize, or a HyperNet. If it wraps one (torch.compile, DistributedDataParallel), "
            "pass the model inside; for any other module use safetensors.torch.save_model."
        )
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise FormatError(f"{path} is a folder; expected a file, such as {path}/model.safetensors.")
    if not path.parent.is_dir():
        raise FormatError(f"The folder {path.parent} does not exist. Make it first (Path.mkdir).")
    primary = None if isinstance(model, HyperNet) else model.primary
    hypernet = model if isinstance(model, HyperNet) else model.hypernet
    state = model.state_dict(prefix="hypernet." if primary is None else "")
    _check_savable(state, hypernet)
    left_out: dict[str, str] = {}
    if primary is not None and not frozen:
        for name, parameter in primary.named_parameters(remove_duplicate=False):
            if not parameter.requires_grad and f"primary.{name}" in state:
                left_out[name] = fingerprint(state.pop(f"primary.{name}"))
    aliases = find_aliases(state)
    kept = [(name, tensor) for name, tensor in state.items() if name not in aliases]
    # Wide dtypes first, so that every tensor is aligned.
    kept.sort(key=lambda item: item[1].dtype.itemsize, reverse=True)
    raw = {n: [dtype_name(t.dtype), list(t.shape)] for n, t in kept if t.dtype not in _CODES}
    about = {
        "format": FORMAT,
        "version": VERSION,
        "library": __version__,
        "primary": None if primary is None else type(primary).__name__,
        **_describe(hypernet),
        "aliases": aliases,
        "raw": raw,
        "left_out": left_out,
    }
    _write(path, dict(kept), {"format": "pt", FORMAT: json.dumps(about, allow_nan=False)})


@overload
def load(path: FilePath, primary: nn.Module, **settings: Unpack[LoadSettings]) -> HyperModel: ...


@overload
def load(path: FilePath, primary: None = ..., **settings: Unpack[LoadSettings]) -> HyperNet: ...


def load(
    path: FilePath,
    primary: nn.Module | None = None,
    *,
    device: torch.device | str | None = None,
    inputs: Mapping[str, Input] | None = None,
    encoding: nn.Module | None = None,
    head: Head | Mapping[str, Head] | None = None,
    activation: Activation | None = None,
) -> HyperModel | HyperNet:
    r"""Read a file written by :func:`save`.

    Nothing is unpickled and no random numbers are drawn. The file is checked first; then
    :math:`\theta^0` and the buffers are copied into the primary in place. After an error the
    primary is unchanged.

    Args:
        path: the file.
        primary: a network of the saved architecture, with any weights; it becomes
            ``model.primary``. None if the file holds a hypernetwork alone.
        device: the device for the model and its primary; the default is the primary's.
        inputs: the inputs whose class is your own, by name.
        encoding: the encoding, if its class is your own.
        head: the head, if it is or contains one of your own.
        activation: the activation, if HyperLight has no name for it.

    Returns:
        The model, or the hypernetwork if there is no primary.

    Raises:
        FileNotFoundError: the file does not exist.
        FormatError: the file is damaged, in another format or of a newer version, or it does not
            fit the primary or the settings.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "hypernet.safetensors")
    >>> hl.save(hl.HyperNet({"noise": hl.Normal(4)}, {"w": (3, 2)}), path)
    >>> hl.load(path)(noise=torch.zeros(4))["w"].shape
    torch.Size([3, 2])
    """
    path = Path(path)
    given = {"encoding": encoding, "head": head, "activation": activation}
    try:
        tensors, about = _read(path)
        _check_kind(about, primary)
        if device is not None:
            torch.empty(0, device=device)  # fails before anything is moved
        hypernet = _rebuild(about, inputs or {}, given)
        _load_hypernet(hypernet, under("hypernet.", tensors))
        if primary is None:
            return hypernet.to(device)
        values = under("primary.", tensors)
        _check_primary(primary, values, about)
        parameters = dict(primary.named_parameters(remove_duplicate=False))
        home = parameters.get(next(iter(hypernet.shapes)))
        model = HyperModel(primary, hypernet if home is None else hypernet.to(home.device))
        load_in_place(primary, values)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error.__cause__
    return model.to(device)


# --- settings as JSON ----------------------------------------------------------


def _describe(hypernet: HyperNet) -> Description:
    """The arguments of the constructor, except ``init``."""
    activations = [_described(module, ACTIVATIONS) for module in hypernet.trunk.activations]
    if any(other != activations[0] for other in activations):  # replaced after construction
        names = ", ".join(activation["class"] for activation in activations)
        activations = [{"class": names, "config": None, "own": True}]
    return {
        "inputs": {name: _described(space, _INPUTS) for name, space in hypernet.inputs.items()},
        "shapes": {name: list(shape) for name, shape in hypernet.shapes.items()},
        "hidden": [layer.out_features for layer in hypernet.trunk.layers],
        "activation": activations[0] if activations else None,
        "skip": hypernet.trunk.skip,
        "encoding": _described(hypernet.encoding, _ENCODINGS),
        "head": _described(hypernet.head, _HEADS),
        "dtype": dtype_name(hypernet.dtype),
    }


def _described(part: Any, known: Mapping[str, type]) -> Description:
    """The class and arguments of a part; ``own`` marks a class that a file cannot name."""
    names = {kind: name for name, kind in known.items()}
    name, own = names.get(type(part), type(part).__name__), type(part) not in names
    description: Description = {"class": name, "config": _arguments(part, known)}
    if type(part) is Mixed:
        heads = [_described(head, known) for head in part.heads()]
        pairs = [list(pair) for pair in zip(part.patterns, heads, strict=True)]
        description |= {"config": {}, "heads": pairs}
        own = any("own" in head for head in heads)
    return {**description, "own": True} if own else description


def _arguments(part: Any, known: Mapping[str, type]) -> Any:
    """The arguments of the constructor as JSON holds them, or None if it cannot."""
    arguments: Any = None
    if known is _INPUTS and dataclasses.is_dataclass(part):
        arguments = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    elif known is ACTIVATIONS and type(part) in known.values():
        arguments = {name: getattr(part, name) for name in getattr(part, "__constants__", ())}
    elif callable(getattr(part, "config", None)):
        arguments = part.config()
    try:
        return json.loads(json.dumps(arguments, allow_nan=False))  # tuples as lists
    except (TypeError, ValueError):
        return None


def _shown(part: Description | None) -> str:
    """A description as Python code."""
    if part is None:
        return "none"
    if part.get("config") is None:
        return f"{part['class']}(...)"
    if part.get("heads"):
        heads = (f"{pattern!r}: {_shown(head)}" for pattern, head in part["heads"])
        return f"{{{', '.join(heads)}}}"
    return f"{part['class']}({', '.join(f'{k}={v!r}' for k, v in part['config'].items())})"


def _rebuild(about: Description, inputs: Mapping[str, Input], given: Mapping[str, Any]) -> HyperNet:
    """The hypernetwork that a file describes, on the CPU, uninitialised."""
    for name in inputs:
        if name not in about["inputs"]:
            raise FormatError(
                f"inputs held {name!r}, which is not an input of the saved model; its inputs are "
                f"{listed(about['inputs'])}.{did_you_mean(name, about['inputs'])}"
            )
    spaces = {
        name: inputs[name] if name in inputs else _make(part, _INPUTS, f"inputs={{{name!r}: %s}}")
        for name, part in about["inputs"].items()
    }
    parts = {
        role: _make(about[role], _PARTS[role], f"{role}=%s") if part is None else part
        for role, part in given.items()
    }
    sizes = {key: about[key] for key in ("shapes", "hidden", "skip")}
    hypernet = empty_hypernet(spaces, **sizes, **parts, dtype=_dtype_of(about["dtype"]))
    built = _describe(hypernet)
    checks = [(role, built[role], about[role]) for role, part in given.items() if part is not None]
    checks += [(f"input {n!r}", built["inputs"][n], about["inputs"][n]) for n in inputs]
    for name, found, expected in checks:
        if found != expected:
            raise FormatError(
                f"{name} was {_shown(found)}; expected {_shown(expected)}, as in the file."
            )
    return hypernet


def _make(part: Description | None, known: Mapping[str, Callable[..., Any]], argument: str) -> Any:
    """Build a part from its description; ``argument`` is how to pass it to ``load`` instead."""
    if part is None:  # no hidden layers, so any activation will do
        return "identity"
    name, shown = part["class"], _shown(part)
    if part.get("own"):
        raise FormatError(
            f"the class {name} cannot be stored in a file. Pass it to load: {argument % shown}."
        )
    if part.get("heads"):
        return {pattern: _make(head, known, argument) for pattern, head in part["heads"]}
    if name not in known:
        raise FormatError(
            f"it names {shown}, which this version of HyperLight does not know; it knows "
            f"{listed(known)}.{did_you_mean(name, known)}"
        )
    try:
        return known[name](**part["config"])
    except (KeyError, TypeError, ConfigurationError) as error:
        raise FormatError(f"it names {shown}, which cannot be made: {error}") from error


def _dtype_of(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise FormatError(f"it names the dtype {name!r}, which this PyTorch does not know.")
    return dtype


# --- writing -------------------------------------------------------------------


def _check_savable(state: Mapping[str, Any], hypernet: HyperNet) -> None:
    check_values(state)
    for name, tensor in state.items():
        if not name.startswith(("hypernet.", "primary.")):
            raise FormatError(
                f"The model has a tensor {name!r} of its own, outside of hypernet and primary, "
                "which load would not restore. Keep it in the primary."
            )
        if not isinstance(tensor, Tensor):
            raise FormatError(
                f"{name!r} is of type {type(tensor).__name__} (the extra state of a module); "
                "only tensors can be saved. Let get_extra_state return a tensor."
            )
        if is_distributed(tensor):
            raise FormatError(
                f"{name!r} is a DTensor, of which each process holds a part. Gather the state "
                "with torch.distributed.checkpoint.state_dict.get_model_state_dict and "
                "StateDictOptions(full_state_dict=True), load it into a model that is not sharded, "
                "and save that."
            )
        if is_wrapper(tensor):
            raise FormatError(
                f"{name!r} is a {type(tensor).__name__}, which holds its values in a way of its "
                "own; only dense tensors can be saved. Save the hypernetwork alone, "
                "hl.save(model.hypernet, path), and the primary with the library that made it so."
            )
        if tensor.layout != torch.strided or tensor.is_quantized:
            kind = "quantized" if tensor.is_quantized else f"of layout {tensor.layout}"
            raise FormatError(f"{name!r} is {kind}; only dense tensors can be saved.")
    floats = {n: t for n, t in hypernet.state_dict().items() if t.is_floating_point()}
    odd = [name for name, tensor in floats.items() if tensor.dtype != hypernet.dtype]
    if odd:
        raise FormatError(
            f"The hypernetwork has dtype {hypernet.dtype}, but {listed(odd)} have another. Convert "
            f"it first: model.hypernet.to({hypernet.dtype})."
        )


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whole or not at all, one tensor in memory at a time.

    The writer of safetensors needs NumPy, holds all tensors in memory and refuses shared ones.
    """
    header: dict[str, object] = {"__metadata__": metadata}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.nbytes
        code = _CODES.get(tensor.dtype, "U8")
        shape = list(tensor.shape) if tensor.dtype in _CODES else [tensor.nbytes]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors.values():
                feed(tensor, file.write)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def find_aliases(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Map every further name of a tensor to its first."""
    first: dict[object, str] = {}
    aliases: dict[str, str] = {}
    for name, t in state.items():
        view = (t.device, t.data_ptr(), t.dtype, t.shape, t.stride(), t.is_conj(), t.is_neg())
        if first.setdefault(view, name) != name:
            aliases[name] = first[view]
    return aliases


def feed(tensor: Tensor, sink: Callable[[memoryview], object]) -> None:
    """Pass the bytes of a tensor to ``sink``, in C order."""
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    if flat.nbytes:
        sink(memoryview((ctypes.c_char * flat.nbytes).from_address(flat.data_ptr())))


def fingerprint(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and bytes."""
    digest = hashlib.sha256(f"{dtype_name(tensor.dtype)} {list(tensor.shape)}\n".encode())
    feed(tensor, digest.update)
    return digest.hexdigest()


def dtype_name(dtype: torch.dtype) -> str:
    """``"float32"`` for :data:`torch.float32`."""
    return str(dtype).removeprefix("torch.")


# --- reading -------------------------------------------------------------------


def _read(path: Path) -> tuple[dict[str, Tensor], Description]:
    """The tensors of a file, under all their names, and its metadata."""
    if path.is_dir():
        raise FormatError("this is a folder; expected a file, such as model.safetensors in it.")
    if not path.exists():
        raise FileNotFoundError(
            f"There is no file {path} (the current folder is {Path.cwd()}). Pass the path that "
            "was given to hl.save."
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise FormatError(f"{_damage(path)} ({error}).") from error
    if FORMAT not in metadata:
        raise FormatError(
            f"this safetensors file was not written by hl.save; it holds {listed(tensors, 4)}. For "
            "weights of a primary use primary.load_state_dict(safetensors.torch.load_file(path))."
        )
    about = _parse(metadata[FORMAT])
    try:
        for name, (dtype, shape) in about["raw"].items():
            tensors[name] = tensors[name].clone().view(_dtype_of(dtype)).reshape(shape)
        for alias, name in about["aliases"].items():
            tensors[alias] = tensors[name]
    except (KeyError, RuntimeError) as error:
        raise FormatError(f"the metadata does not fit the tensors: {error}.") from error
    return tensors, about


def _damage(path: Path) -> str:
    with open(path, "rb") as file:
        start = file.read(9)
    if start[:2] == b"PK":
        return (
            "this is not a safetensors file but a zip archive, as written by torch.save. If you "
            "trust it, load it with torch.load(path, weights_only=True) and save it with hl.save"
        )
    if start[8:] == b"{":
        return "the file is cut short or damaged: its header and size do not agree. Copy it again"
    return "this is not a safetensors file. Pass one written by hl.save"


def _parse(text: str) -> Description:
    """The metadata, checked for version and types."""
    try:
        about: Description = json.loads(text)
        newer = about["version"] > VERSION
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"the metadata is damaged: no version ({error!r}).") from error
    if newer:
        raise FormatError(
            f"the file has version {about['version']} of the format, written by HyperLight "
            f"{about.get('library')}; this is HyperLight {__version__}, which reads versions up "
            f"to {VERSION}. Upgrade: pip install --upgrade hyperlight."
        )
    for key, kind in _METADATA.items():
        empty = key in ("inputs", "shapes") and not about.get(key)
        if empty or key not in about or not _fits(about[key], kind):
            raise FormatError(f"the metadata is damaged: {key!r} is {about.get(key, 'missing')!r}.")
    return about


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a kind.

    A kind is a type, a range of integers, a tuple of alternatives, ``[kind of all items]``,
    ``[kind of first, kind of second]``, ``{str: kind of all values}`` or ``{key: kind}``, where a
    missing key counts as None.
    """
    if isinstance(kind, tuple):
        return any(_fits(value, alternative) for alternative in kind)
    if isinstance(kind, range):
        return type(value) is int and value in kind
    if isinstance(kind, type):
        return type(value) is kind
    if type(value) is not type(kind):
        return False
    if isinstance(kind, list):
        kinds = kind * len(value) if len(kind) == 1 else kind
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if str in kind:
        return all(_fits(item, kind[str]) for item in value.values())
    return all(_fits(value.get(key), inner) for key, inner in kind.items())


def _check_kind(about: Description, primary: nn.Module | None) -> None:
    saved = about["primary"]
    if saved is None and primary is not None:
        raise FormatError(
            "the file holds a hypernetwork without a primary. Join the two: "
            "hl.HyperModel(primary, hl.load(path))."
        )
    if saved is not None and primary is None:
        raise FormatError(
            f"the file holds a model, but not the code of its primary, {saved}. Pass one: "
            f"hl.load(path, {saved}(...))."
        )


def _load_hypernet(hypernet: HyperNet, values: Mapping[str, Tensor]) -> None:
    words = differences(values, hypernet.state_dict(), "the hypernetwork", "the file")
    if words:
        raise FormatError(
            f"the tensors do not fit the hypernetwork that the file describes: {'; '.join(words)}. "
            "Pass the encoding, head or activation that it was saved with."
        )
    hypernet.load_state_dict(values)


def _check_primary(primary: nn.Module, values: Mapping[str, Tensor], about: Description) -> None:
    own, left_out = own_tensors(primary), about["left_out"]
    held = {**values, **{name: own.get(name, torch.empty(0)) for name in left_out}}
    words = differences(held, own, "the primary", "the file")
    words += [
        f"{alias!r} and {name!r} are one tensor in the primary and two in the file"
        for alias, name in find_aliases(own).items()
        if {alias, name} <= values.keys() and not _same(values[name], values[alias])
    ]
    given = type(primary).__name__
    if words:
        raise FormatError(
            f"the model was saved with another architecture than the given {given}: "
            f"{'; '.join(words)}. Build the primary as it was when it was saved (class "
            f"{about['primary']}), in the same dtype."
        )
    other = [name for name, kept in left_out.items() if fingerprint(own[name]) != kept]
    if other:
        raise FormatError(
            "the model was saved without the frozen parameters of its primary (frozen=False), and "
            f"the given {given} has other values than those: {listed(other)} of {len(left_out)} "
            "left out. Load the weights that it was trained on into the primary first."
        )


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or fingerprint(a) == fingerprint(b)
