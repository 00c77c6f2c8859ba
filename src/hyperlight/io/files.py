r"""Saving and loading: one safetensors file, no pickle.

The file holds the state of the hypernetwork under ``hypernet.``, the state of the primary
(:math:`\theta^0`, its other parameters and its buffers) under ``primary.`` and its own names,
and in its metadata, under the key ``hyperlight``, a JSON object: the name and version of the
format, the version of the library, the inputs, the predicted names and shapes, the settings of
the hypernetwork, and the class name of the primary. The primary itself is code; who loads a
file brings it along.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, overload

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from .._version import __version__
from ..encodings import CosSin, Identity
from ..errors import ConfigurationError, FormatError, did_you_mean, listed
from ..heads import Chunked, Dense, Head, LowRank, Mixed
from ..hypernet import ACTIVATIONS, Activation, HyperNet
from ..inputs import Categorical, Input, LogUniform, Normal, Simplex, Uniform, Vector
from ..model import HyperModel
from .state import (
    differences,
    dtype_name,
    empty_hypernet,
    feed,
    find_aliases,
    fingerprint,
    load_in_place,
    own_tensors,
    under,
)

__all__ = ["load", "save"]

FORMAT = "hyperlight"
VERSION = 1

FilePath = str | os.PathLike[str]
Description = dict[str, Any]

# What a file can name; a class that is not here is asked for when the file is loaded.
_INPUTS = {c.__name__: c for c in (Uniform, LogUniform, Normal, Vector, Categorical, Simplex)}
_ENCODINGS = {c.__name__: c for c in (CosSin, Identity)}
_HEADS = {c.__name__: c for c in (Dense, LowRank, Chunked)}

# The codes of https://huggingface.co/docs/safetensors; other dtypes are kept as bytes.
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


def save(model: HyperModel | HyperNet, path: FilePath, *, frozen: bool = True) -> None:
    r"""Write a model to one safetensors file: the hypernetwork, :math:`\theta^0` and settings.

    The file is written whole or not at all: what was there before stays until the new one is
    complete. Tensors come back bit for bit, tied ones tied. Not kept are ``requires_grad``, the
    training mode, buffers that are not persistent, and the initialisation scheme.

    Args:
        model: a model, or a hypernetwork alone.
        path: of the file, in a folder that exists; the usual suffix is ``.safetensors``.
        frozen: whether parameters of the primary with ``requires_grad=False`` are written.
            Without them the file is an adapter to a network that is published elsewhere: it
            keeps their fingerprints (SHA-256 of dtype, shape and bytes), and :func:`load`
            refuses a primary with other values.

    Raises:
        FormatError: this is not a model, the path cannot be a file, or a tensor has no values.
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
            f"save was given {_article(type(model).__name__)}; expected a HyperModel, as "
            "hypernetize makes it, or a HyperNet. If it wraps one (torch.compile, "
            "DistributedDataParallel), pass the model inside; for any other module use "
            "safetensors.torch.save_model."
        )
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise FormatError(f"{path} is a folder; expected a file, such as {path}/model.safetensors.")
    if not path.parent.is_dir():
        raise FormatError(
            f"The folder {path.parent} of the file to write does not exist. Make it first: "
            f"pathlib.Path({str(path.parent)!r}).mkdir(parents=True)."
        )
    primary = None if isinstance(model, HyperNet) else model.primary
    hypernet = model if isinstance(model, HyperNet) else model.hypernet
    state = model.state_dict(prefix="hypernet." if primary is None else "")
    _refuse_unsavable(state, hypernet)
    left_out: dict[str, str] = {}
    if primary is not None and not frozen:
        for name, parameter in primary.named_parameters(remove_duplicate=False):
            if not parameter.requires_grad and f"primary.{name}" in state:
                left_out[name] = fingerprint(state.pop(f"primary.{name}"))
    aliases = find_aliases(state)
    # Wide entries first: every tensor then starts where its dtype may.
    kept = [(name, tensor) for name, tensor in state.items() if name not in aliases]
    kept.sort(key=lambda item: item[1].dtype.itemsize, reverse=True)
    raw = {
        name: [dtype_name(tensor.dtype), list(tensor.shape)]
        for name, tensor in kept
        if tensor.dtype not in _CODES
    }
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
    metadata = {"format": "pt", FORMAT: json.dumps(about, allow_nan=False)}
    _write(path, dict(kept), metadata)


@overload
def load(
    path: FilePath,
    primary: nn.Module,
    *,
    device: torch.device | str | None = ...,
    inputs: Mapping[str, Input] | None = ...,
    encoding: nn.Module | None = ...,
    head: Head | Mapping[str, Head] | None = ...,
    activation: Activation | None = ...,
) -> HyperModel: ...


@overload
def load(
    path: FilePath,
    primary: None = ...,
    *,
    device: torch.device | str | None = ...,
    inputs: Mapping[str, Input] | None = ...,
    encoding: nn.Module | None = ...,
    head: Head | Mapping[str, Head] | None = ...,
    activation: Activation | None = ...,
) -> HyperNet: ...


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
    r"""Read what :func:`save` has written.

    No random numbers are drawn, nothing is unpickled. The file is checked first; then
    :math:`\theta^0` and the buffers are copied into the primary in place. On an error the
    primary is as it was.

    Args:
        path: of the file.
        primary: a network of the architecture that was saved, with any weights; it becomes
            ``model.primary``. None for a file that holds a hypernetwork alone.
        device: where model and primary are moved to; the default is where the primary is.
        inputs: by name, those whose class is your own.
        encoding: needed where it is a module of your own.
        head: needed where it is, or holds, a head of your own.
        activation: needed where it is a module of your own.

    Returns:
        The model, or the hypernetwork where there is no primary.

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: the file is damaged, of something else or of a newer version, or it does
            not fit the primary or the settings that were given.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "hypernet.safetensors")
    >>> hl.save(hl.HyperNet({"noise": hl.Normal(4)}, {"w": (3, 2)}), path)
    >>> hl.load(path)(noise=torch.zeros(4))["w"].shape
    torch.Size([3, 2])
    """
    path = Path(path)
    tensors, about = _read(path)
    if about["primary"] is None and primary is not None:
        raise FormatError(
            f"{path} holds a hypernetwork alone, without a primary. Join them by hand: "
            f"hl.HyperModel(primary, hl.load({str(path)!r}))."
        )
    if about["primary"] is not None and primary is None:
        raise FormatError(
            f"{path} holds a model whose primary is {_article(about['primary'])}, which a file "
            f"cannot hold. Pass one: hl.load({str(path)!r}, {about['primary']}(...))."
        )
    if device is not None:
        torch.empty(0, device=device)  # a device that is not there is found before anything moves
    given = {"encoding": encoding, "head": head, "activation": activation}
    hypernet = _rebuild(path, about, inputs or {}, given)
    _load_hypernet(path, hypernet, under("hypernet.", tensors))
    if primary is None:
        return hypernet.to(device)
    values = under("primary.", tensors)
    _check_primary(path, primary, values, about)
    parameters = dict(primary.named_parameters(remove_duplicate=False))
    home = parameters.get(next(iter(hypernet.shapes)))
    model = HyperModel(primary, hypernet if home is None else hypernet.to(home.device))
    load_in_place(primary, values)
    return model if device is None else model.to(device)


# --- settings in words that JSON holds -----------------------------------------


def _describe(hypernet: HyperNet) -> Description:
    """The constructor's arguments, all but ``init``."""
    return {
        "inputs": {name: _describe_input(space) for name, space in hypernet.inputs.items()},
        "shapes": {name: list(shape) for name, shape in hypernet.shapes.items()},
        "hidden": [layer.out_features for layer in hypernet.trunk.layers],
        "activation": _describe_activations(hypernet.trunk.activations),
        "skip": hypernet.trunk.skip,
        "encoding": _described(hypernet.encoding, _ENCODINGS),
        "head": _describe_head(hypernet.head),
        "dtype": dtype_name(hypernet.dtype),
    }


def _described(thing: object, known: Mapping[str, type], config: object = None) -> Description:
    """The class and arguments of a thing; ``own`` marks a class that a file cannot name."""
    name = type(thing).__name__
    if config is None and callable(getattr(thing, "config", None)):
        config = thing.config()  # type: ignore[attr-defined]
    try:
        config = json.loads(json.dumps(config, allow_nan=False))
    except (TypeError, ValueError):
        config = None
    own = known.get(name) is not type(thing)
    return {"class": name, "config": config, **({"own": True} if own else {})}


def _describe_input(space: Input) -> Description:
    fields = dataclasses.fields(space) if dataclasses.is_dataclass(space) else None
    config = None if fields is None else {f.name: getattr(space, f.name) for f in fields}
    return _described(space, _INPUTS, config)


def _describe_head(head: Head) -> Description:
    if type(head) is not Mixed:
        return _described(head, _HEADS)
    parts = [_describe_head(part) for part in head.heads()]
    pairs = [list(pair) for pair in zip(head.patterns, parts, strict=True)]
    own = any("own" in part for part in parts)
    return {"class": "Mixed", "config": {}, "heads": pairs, **({"own": True} if own else {})}


def _describe_activations(modules: Iterable[nn.Module]) -> Description | None:
    found: list[Description] = []
    names = {kind: name for name, kind in ACTIVATIONS.items()}
    for module in modules:
        if type(module) in names:
            # The constants of these classes are the arguments of their constructors.
            constants = getattr(module, "__constants__", ())
            config = {name: getattr(module, name) for name in constants}
            found.append({"class": names[type(module)], "config": config})
        else:
            found.append(_described(module, {}))
    if not found:
        return None
    if all(description == found[0] for description in found):
        return found[0]
    return {"class": ", ".join(part["class"] for part in found), "config": None, "own": True}


def _shown(description: Description | None) -> str:
    if description is None:
        return "none"
    config = description["config"]
    if config is None:
        return f"{description['class']}(...)"
    if "heads" in description:
        parts = (f"{pattern!r}: {_shown(part)}" for pattern, part in description["heads"])
        return "{" + ", ".join(parts) + "}"
    return f"{description['class']}({', '.join(f'{k}={v!r}' for k, v in config.items())})"


def _rebuild(
    path: Path, about: Description, inputs: Mapping[str, Input], given: Mapping[str, Any]
) -> HyperNet:
    """The hypernetwork that a file describes, on the CPU, its memory not filled yet."""
    for name in inputs:
        if name not in about["inputs"]:
            raise FormatError(
                f"inputs held {name!r}, which is not an input of the model in {path}; its inputs "
                f"are {listed(about['inputs'])}.{did_you_mean(name, about['inputs'])}"
            )
    spaces: dict[str, Input] = {}
    for name, description in about["inputs"].items():
        if name in inputs:
            spaces[name] = inputs[name]
        elif "own" in description:
            call = f"inputs={{{name!r}: {_shown(description)}}}"
            raise _asked_for(path, f"an input {name!r}", description, call, about)
        else:
            spaces[name] = _made(path, description, _INPUTS)
    settings = dict(given)
    for role, known in (
        ("encoding", _ENCODINGS),
        ("head", _HEADS),
        ("activation", ACTIVATIONS),
    ):
        description = about[role]
        if settings[role] is not None:
            continue
        if description is None:  # no hidden layers, so any activation will do
            settings[role] = "identity"
        elif "own" in description:
            article = "a head" if role == "head" else f"an {role}"
            call = f"{role}={_shown(description)}"
            raise _asked_for(path, article, description, call, about)
        elif "heads" in description:
            pairs = description["heads"]
            settings[role] = {pattern: _made(path, part, known) for pattern, part in pairs}
        else:
            settings[role] = _made(path, description, known)
    hypernet = empty_hypernet(
        spaces,
        about["shapes"],
        hidden=about["hidden"],
        skip=about["skip"],
        dtype=_dtype_of(path, about["dtype"]),
        **settings,
    )
    built = _describe(hypernet)
    checks = [(f"{r}=...", built[r], about[r]) for r, value in given.items() if value is not None]
    checks += [(f"inputs={{{n!r}: ...}}", built["inputs"][n], about["inputs"][n]) for n in inputs]
    for argument, found, expected in checks:
        if found != expected:
            raise FormatError(
                f"{argument} was {_shown(found)}; expected {_shown(expected)}, with which "
                f"{path} was saved."
            )
    return hypernet


def _asked_for(
    path: Path, role: str, description: Description, call: str, about: Description
) -> FormatError:
    primary = "" if about["primary"] is None else ", primary"
    return FormatError(
        f"{path} was saved with {role} of class {description['class']}, which a file cannot hold. "
        f"Pass it: hl.load({str(path)!r}{primary}, {call})."
    )


def _made(path: Path, description: Description, known: Mapping[str, Callable[..., Any]]) -> Any:
    kind = known.get(description["class"])
    if kind is None:
        raise FormatError(
            f"{path} names {_shown(description)}, which this version of HyperLight does not know; "
            f"it knows {listed(known)}.{did_you_mean(description['class'], known)}"
        )
    try:
        return kind(**description["config"])
    except (TypeError, ConfigurationError) as error:
        raise FormatError(
            f"{path} names {_shown(description)}, which cannot be made: {error}"
        ) from error


def _dtype_of(path: Path, name: object) -> torch.dtype:
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise FormatError(f"{path} names the dtype {name!r}, which this PyTorch does not know.")
    return dtype


def _article(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}"


# --- tensors ---------------------------------------------------------------------


def _refuse_unsavable(state: Mapping[str, Any], hypernet: HyperNet) -> None:
    for name, tensor in state.items():
        if not name.startswith(("hypernet.", "primary.")):
            raise FormatError(
                f"The model has a tensor {name!r} of its own, outside of hypernet and primary, "
                "which load would not bring back. Keep it in the primary."
            )
        if not isinstance(tensor, Tensor):
            raise FormatError(
                f"{name!r} is of type {type(tensor).__name__} (the extra state of a module); "
                "only tensors can be saved. Let get_extra_state return a tensor."
            )
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
            raise FormatError(
                f"{name!r} has no shape yet, since its module is lazy. Run the primary once on a "
                "batch of data before you save it."
            )
        if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
            kind = "on the meta device" if tensor.is_meta else f"of layout {tensor.layout}"
            kind = "quantized" if tensor.is_quantized else kind
            raise FormatError(f"{name!r} is {kind}; only dense tensors with values can be saved.")
    dtype = hypernet.dtype
    odd = [
        name
        for name, tensor in hypernet.state_dict().items()
        if tensor.is_floating_point() and tensor.dtype != dtype
    ]
    if odd:
        raise FormatError(
            f"The hypernetwork has dtype {dtype}, but {listed(odd)} have another. Bring it to one "
            f"dtype first: model.hypernet.to({dtype})."
        )


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whole or not at all, one tensor in memory at a time.

    safetensors' own writer needs NumPy, holds all tensors in memory and refuses shared ones.
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


def _read(path: Path) -> tuple[dict[str, Tensor], Description]:
    """The tensors of a file, under every name they have, and what it says of itself."""
    if path.is_dir():
        raise FormatError(
            f"{path} is a folder; expected a file that hl.save has written, such as "
            f"{path}/model.safetensors."
        )
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
        raise FormatError(f"{path} {_damage(path)} ({error}).") from error
    if FORMAT not in metadata:
        raise FormatError(
            f"{path} is a safetensors file, but not one of hl.save: it holds {listed(tensors, 4)}. "
            "Weights of a primary are loaded by primary.load_state_dict(safetensors.torch."
            "load_file(path))."
        )
    try:
        about = json.loads(metadata[FORMAT])
    except ValueError as error:
        raise FormatError(f"The metadata of {path} is damaged: {error}.") from error
    version = about.get("version") if isinstance(about, dict) else None
    if not isinstance(version, int):
        raise FormatError(f"The metadata of {path} is damaged: the version is {version!r}.")
    if version > VERSION:
        raise FormatError(
            f"{path} has version {version} of the format, written by HyperLight "
            f"{about.get('library')}; this is HyperLight {__version__}, which reads "
            f"versions up to {VERSION}. Upgrade: pip install --upgrade hyperlight."
        )
    _check_metadata(path, about)
    try:
        for name, (dtype, shape) in about["raw"].items():
            tensors[name] = tensors[name].clone().view(_dtype_of(path, dtype)).reshape(shape)
        for alias, name in about["aliases"].items():
            tensors[alias] = tensors[name]
    except (KeyError, RuntimeError) as error:
        raise FormatError(f"The metadata of {path} does not fit its tensors: {error}.") from error
    return tensors, about


def _damage(path: Path) -> str:
    with open(path, "rb") as file:
        start = file.read(9)
    if start[:2] == b"PK":
        return (
            "is no safetensors file but a zip archive, as torch.save writes it. Load it where "
            "you trust it, by torch.load(path, weights_only=True), and save it with hl.save"
        )
    if start[8:] == b"{":
        return "is cut short or damaged: its header and its size do not agree. Copy it again"
    return "is not a safetensors file. Pass one that hl.save has written"


def _check_metadata(path: Path, about: Description) -> None:
    def description(value: object) -> bool:
        if not isinstance(value, dict) or not isinstance(value.get("class"), str):
            return False
        config = value.get("config")
        pairs = value.get("heads", [])
        if not isinstance(pairs, list) or not all(
            isinstance(pair, list) and len(pair) == 2 and text(pair[0]) and description(pair[1])
            for pair in pairs
        ):
            return False
        return isinstance(config, dict) or (config is None and "own" in value)

    def sizes(value: object) -> bool:
        return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)

    def mapping(value: object, entry: Callable[[Any], bool]) -> bool:
        return isinstance(value, dict) and all(entry(v) for v in value.values())

    def text(value: object) -> bool:
        return isinstance(value, str)

    valid: dict[str, Callable[[Any], bool]] = {
        "primary": lambda v: v is None or text(v),
        "inputs": lambda v: mapping(v, description) and bool(v),
        "shapes": lambda v: mapping(v, sizes) and bool(v),
        "hidden": lambda v: sizes(v) and all(v),
        "activation": lambda v: v is None or description(v),
        "skip": lambda v: isinstance(v, bool),
        "encoding": description,
        "head": description,
        "dtype": text,
        "aliases": lambda v: mapping(v, text),
        "raw": lambda v: mapping(v, lambda p: isinstance(p, list) and len(p) == 2 and sizes(p[1])),
        "left_out": lambda v: mapping(v, text),
    }
    for key, check in valid.items():
        if key not in about or not check(about[key]):
            raise FormatError(
                f"The metadata of {path} is damaged: {key!r} is {about.get(key, 'missing')!r}."
            )


def _load_hypernet(path: Path, hypernet: HyperNet, values: Mapping[str, Tensor]) -> None:
    words = differences(values, hypernet.state_dict(), "the hypernetwork", "the file")
    if words:
        raise FormatError(
            f"The tensors in {path} do not fit the hypernetwork that it describes: "
            f"{'; '.join(words)}. Pass the encoding, head or activation with which it was saved."
        )
    hypernet.load_state_dict(values)


def _check_primary(
    path: Path, primary: nn.Module, values: Mapping[str, Tensor], about: Description
) -> None:
    own = own_tensors(primary)
    left_out = about["left_out"]
    held = {**values, **{name: own.get(name, torch.empty(0)) for name in left_out}}
    words = differences(held, own, "the primary", "the file")
    tied = find_aliases(own)
    words += [
        f"{alias!r} and {name!r} are one tensor in the primary and two in the file"
        for alias, name in tied.items()
        if name in values and alias in values and not _same(values[name], values[alias])
    ]
    if words:
        was = about["primary"]
        raise FormatError(
            f"{path} was saved from another architecture than the given {type(primary).__name__}: "
            f"{'; '.join(words)}. Build the primary as it was when it was saved, then "
            f"{_article(was)}, in the same dtype."
        )
    other = [name for name, kept in left_out.items() if fingerprint(own[name]) != kept]
    if other:
        raise FormatError(
            f"{path} was saved without the frozen parameters of its primary (frozen=False), and "
            f"the given {type(primary).__name__} has other values than those: {listed(other)} "
            f"of {len(left_out)} left out. Load the weights that it was trained on into the "
            "primary first."
        )


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.dtype == b.dtype and fingerprint(a) == fingerprint(b))
