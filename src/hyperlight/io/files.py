r"""Saving and loading: one safetensors file, no pickle.

The tensors are the state of the hypernetwork, named ``hypernet.*``, and of the primary
(:math:`\theta^0`, its other parameters and its buffers), named ``primary.*``. The metadata holds
one JSON object under the key ``hyperlight``: the name and version of the format, the version of
the library, the inputs, the predicted names and shapes, the settings of the hypernetwork, and the
classes and settings of the primary's modules, of encoders and of a trunk of one's own. Code is not
saved: pass modules of the same architecture to :func:`load`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, TypedDict, Unpack, overload

import torch
from torch import Tensor, nn

from .._torch import is_distributed, is_wrapper
from .._version import __version__
from ..encoded import Encoded
from ..encodings import CosSin, Encode, Encodings, Identity
from ..errors import FormatError, HyperLightError, did_you_mean, listed
from ..heads import ChannelScale, Chunked, Dense, Head, LowRank, Mixed, PerLayer
from ..hypernet import HyperNet
from ..inputs import Categorical, Input, LogUniform, Normal, Simplex, Uniform, Vector
from ..model import HyperModel, N
from ..trunk import ACTIVATIONS, Activation, OwnTrunk, Trunk
from . import container
from .container import CODES, feed, in_words
from .kinds import fits, read_json
from .state import check_values, differences, empty_hypernet, load_in_place, own_tensors, under
from .structure import Structure, modes_of, set_modes, structural_differences, structure_of

FORMAT = "hyperlight"
VERSION = 3  # 1 had no checksum and no structure; 2 no directions, trunk, encoders

FilePath = str | os.PathLike[str]
Description = dict[str, Any]

# The classes that a file can name; any other is passed to load.
_INPUTS = {c.__name__: c for c in (Uniform, LogUniform, Normal, Vector, Categorical, Simplex)}
_ENCODINGS = {c.__name__: c for c in (CosSin, Identity)}
_HEADS = {c.__name__: c for c in (Dense, LowRank, PerLayer, ChannelScale, Chunked)}
_PARTS: dict[str, Any] = {"encoding": _ENCODINGS, "head": _HEADS, "activation": ACTIVATIONS}

# The kinds of values in the metadata, in the notation of kinds.fits.
_SIZE, _WIDTH = range(2**63), range(1, 2**63)
_PART: Description = {"class": str, "config": (dict, NoneType)}
_PART["heads"] = _PART["encodings"] = ([[str, _PART]], NoneType)  # by pattern
_STRUCTURE: dict[Any, Any] = {str: [str, {str: object}]}
_METADATA: Description = {
    "format": (str, NoneType),
    "primary": (str, NoneType),
    "structure": (_STRUCTURE, NoneType),
    "inputs": {str: _PART},
    "shapes": {str: [_SIZE]},
    "hidden": [_WIDTH],
    "directions": (_WIDTH, NoneType),
    "activation": (_PART, NoneType),
    "skip": bool,
    "trunk": (_STRUCTURE, NoneType),
    "encoders": ({str: _STRUCTURE}, NoneType),
    "encoding": _PART,
    "head": _PART,
    "dtype": str,
    "aliases": {str: str},
    "raw": {str: [str, [_SIZE]]},
    "left_out": {str: str},
    "modes": ({str: bool}, NoneType),
}


# The version of the format that a part came with; all others are in every file. Some files of this
# version have no modes.
_SINCE = {"structure": 2, "directions": 3, "trunk": 3, "encoders": 3, "modes": VERSION + 1}


class LoadSettings(TypedDict, total=False):
    """The keyword arguments of :func:`load`."""

    device: torch.device | str | None
    inputs: Mapping[str, Input] | None
    encoding: Encode
    head: Head | Mapping[str, Head] | None
    trunk: OwnTrunk | None
    activation: Activation | None
    strict: bool


def save(model: HyperModel | HyperNet, path: FilePath, *, frozen: bool = True) -> None:
    r"""Write a model to one safetensors file: the hypernetwork, :math:`\theta^0` and settings.

    The file is written whole or not at all: an existing one stays until the new one is complete.
    It has a checksum, so that :func:`load` refuses it if a single bit has changed. Tensors are
    restored bit for bit, and tied tensors stay tied. The mode of every module (train or eval) is
    saved, too. Not saved are ``requires_grad``, buffers that are not persistent, and the
    initialisation scheme.

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

    Warns:
        UserWarning: weights are NaN or infinite.

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
    path = container.file_to_write(path, "model.safetensors")
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
    raw = {n: [dtype_name(t.dtype), list(t.shape)] for n, t in kept if t.dtype not in CODES}
    about = {
        "format": FORMAT,
        "version": VERSION,
        "library": __version__,
        "primary": None if primary is None else type(primary).__name__,
        "structure": None if primary is None else structure_of(primary),
        **_describe(hypernet),
        "aliases": aliases,
        "raw": raw,
        "left_out": left_out,
        "modes": modes_of(model),
    }
    _warn_of_values(model, "The weights of the saved model")
    description = json.dumps(about, allow_nan=False)
    container.write(path, dict(kept), {"format": "pt", FORMAT: description})


@overload
def load(path: FilePath, primary: N, **settings: Unpack[LoadSettings]) -> HyperModel[N]: ...


@overload
def load(path: FilePath, primary: None = ..., **settings: Unpack[LoadSettings]) -> HyperNet: ...


def load(
    path: FilePath,
    primary: nn.Module | None = None,
    *,
    device: torch.device | str | None = None,
    inputs: Mapping[str, Input] | None = None,
    encoding: Encode = None,
    head: Head | Mapping[str, Head] | None = None,
    trunk: OwnTrunk | None = None,
    activation: Activation | None = None,
    strict: bool = False,
) -> HyperModel | HyperNet:
    r"""Read a file written by :func:`save`.

    Nothing is unpickled and no random numbers are drawn. The file is checked first, its checksum
    before anything else. Then :math:`\theta^0` and the buffers are copied into the primary in
    place. After an error the primary and the modules of
    encoded inputs are unchanged. Code in methods is not compared.

    Every module is in the mode in which it was saved: a model that was saved after
    ``model.eval()`` predicts at once, without dropout. Older files do not say the mode: the
    primary then keeps its own, and the rest of the model is in training mode.

    Args:
        path: the file.
        primary: a network of the saved architecture, with any weights; it becomes
            ``model.primary``. None if the file holds a hypernetwork alone.
        device: the device for the model and its primary; the default is the primary's.
        inputs: the inputs whose class is your own, by name, and those that are
            :class:`~hyperlight.Encoded`: pass their modules as they were built for training, with
            any weights. They are used as they are, and get the saved weights.
        encoding: the encoding, if its class is your own.
        head: the head, if it is or contains one of your own.
        trunk: the trunk, if it is your own: as it was built for training, with any weights.
        activation: the activation, if HyperLight has no name for it.
        strict: refuse a primary, encoder or trunk whose modules have other classes or settings
            (activation, padding, stride) than those that were saved, and files without a checksum,
            instead of warning.

    Returns:
        The model, or the hypernetwork if there is no primary.

    Raises:
        FileNotFoundError: the file does not exist.
        FormatError: the file is damaged, in another format or of a newer version, or it does not
            fit the primary or the settings.

    Warns:
        UserWarning: the primary has other classes or settings than the saved one, weights are NaN
            or infinite, or the file is of version 1, which had no checksum.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "hypernet.safetensors")
    >>> hl.save(hl.HyperNet({"noise": hl.Normal(4)}, {"w": (3, 2)}), path)
    >>> hl.load(path)(noise=torch.zeros(4))["w"].shape
    torch.Size([3, 2])
    """
    container.check_path(path)
    path = Path(path)
    given = {"encoding": encoding, "head": head, "activation": activation}
    doubts: list[str] = []
    with _naming(path):
        tensors, about = _read(path, doubts)
        _check_kind(about, primary)
        if device is not None:
            torch.empty(0, device=device)  # fails before anything is moved
        own = under("hypernet.", tensors)
        hypernet = _rebuild(about, inputs or {}, given, trunk, own)
        doubts += _compare_parts(hypernet, about)
        values = under("primary.", tensors)
        if primary is not None:
            _check_primary(primary, values, about)
            doubts += _compare_primary(primary, about)
        if strict and doubts:
            raise FormatError(
                f"{' Also, '.join(doubts)} Pass strict=False to load it all the same."
            )
    for doubt in doubts:
        warnings.warn(f"{path}: {doubt}", stacklevel=2)
    model: HyperModel | HyperNet = hypernet
    if primary is None:
        hypernet.load_state_dict(own)
    else:
        parameters = dict(primary.named_parameters(remove_duplicate=False))
        home = parameters.get(next(iter(hypernet.shapes)))
        with _naming(path):
            model = HyperModel(primary, hypernet if home is None else hypernet.to(home.device))
            hypernet.load_state_dict(own)
            load_in_place(primary, values)
    if about.get("modes"):
        set_modes(model, about["modes"])
    _warn_of_values(model, f"{path}: the weights")
    return model.to(device)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the name of the file before every error of ours."""
    try:
        yield
    except HyperLightError as error:
        raise FormatError(f"{path}: {error}") from (error.__cause__ or error)


def _warn_of_values(model: HyperModel | HyperNet, what: str) -> None:
    """Warn of parameters that are NaN or infinite."""
    odd = []
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if values.numel() and values.dtype in CODES and not values.is_meta:
            # The extremes are NaN if any entry is, and take no memory of their size.
            low, high = values.aminmax()
            if not (low.isfinite() and high.isfinite()):
                odd.append(name)
    if odd:
        warnings.warn(
            f"{what} are NaN or infinite in {listed(odd, 4)}. Did the training diverge? Lower "
            "the learning rate, or save before that.",
            stacklevel=3,
        )


# --- settings as JSON ----------------------------------------------------------


def _describe(hypernet: HyperNet) -> Description:
    """The arguments of the constructor, except ``init``."""
    trunk, ours = hypernet.trunk, isinstance(hypernet.trunk, Trunk)
    activations = [_described(m, ACTIVATIONS) for m in trunk.activations] if ours else []
    if any(other != activations[0] for other in activations):  # replaced after construction
        names = ", ".join(activation["class"] for activation in activations)
        activations = [{"class": names, "config": None, "own": True}]
    return {
        "inputs": {name: _described(space, _INPUTS) for name, space in hypernet.inputs.items()},
        "shapes": {name: list(shape) for name, shape in hypernet.shapes.items()},
        "hidden": [layer.out_features for layer in trunk.layers] if ours else [],
        "directions": None if hypernet.projection is None else hypernet.projection.out_features,
        "activation": activations[0] if activations else None,
        "skip": trunk.skip if ours else False,
        "trunk": None if ours else structure_of(trunk),
        "encoders": _structures(hypernet.encoders) or None,
        "encoding": _described(hypernet.encoding, _ENCODINGS),
        "head": _described(hypernet.head, _HEADS),
        "dtype": dtype_name(hypernet.dtype),
    }


def _structures(encoders: nn.ModuleDict) -> dict[str, Structure]:
    return {name: structure_of(encoders.get_submodule(f"{name}.module")) for name in encoders}


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
    elif type(part) is Encodings:
        encodings = [_described(each, known) for each in part.parts]
        pairs = [list(pair) for pair in zip(part.patterns, encodings, strict=True)]
        description |= {"config": {}, "encodings": pairs}
        own = any("own" in each for each in encodings)
    return {**description, "own": True} if own else description


def _arguments(part: Any, known: Mapping[str, type]) -> Any:
    """The arguments of the constructor as JSON holds them, or None if it cannot."""
    arguments: Any = None
    if known is _INPUTS and dataclasses.is_dataclass(part) and not isinstance(part, Encoded):
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
    if several := part.get("heads") or part.get("encodings"):
        parts = (f"{pattern!r}: {_shown(each)}" for pattern, each in several)
        return f"{{{', '.join(parts)}}}"
    module = "module, " if part["class"] == "Encoded" else ""
    return f"{part['class']}({module}{', '.join(f'{k}={v!r}' for k, v in part['config'].items())})"


def _rebuild(
    about: Description,
    inputs: Mapping[str, Input],
    given: Mapping[str, Any],
    trunk: OwnTrunk | None,
    values: Mapping[str, Tensor],
) -> HyperNet:
    """The hypernetwork that a file describes, on the CPU, for the values in the file."""
    _check_trunk(about, trunk)
    _check_layers(about["hidden"], values)
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
    for name, space in spaces.items():
        if isinstance(space, Encoded):
            spaces[name] = space.restored(about["inputs"][name]["config"] or {})
    for name in inputs:
        _check_same(f"input {name!r}", _described(spaces[name], _INPUTS), about["inputs"][name])
    parts = {
        role: _make(about[role], _PARTS[role], f"{role}=%s") if part is None else part
        for role, part in given.items()
    }
    settings = {
        "shapes": about["shapes"],
        "directions": about.get("directions"),
        **parts,
        "dtype": _dtype_of(about["dtype"]),
    }
    if trunk is None:
        settings |= {"hidden": about["hidden"], "skip": about["skip"]}
    else:
        del settings["activation"]
    with in_words("the hypernetwork that it describes cannot be made"):
        if trunk is None and all(part is None for part in given.values()):
            # Without memory first: a small file may describe a large model.
            described = empty_hypernet(spaces, **copy.deepcopy(settings), device="meta")
            _check_values(described, values)
        hypernet = empty_hypernet(spaces, trunk=trunk, **settings)
        if given["activation"] is None and trunk is None:
            _try_activations(hypernet)
    built = _describe(hypernet)
    for role, part in given.items():
        if part is not None:
            _check_same(role, built[role], about[role])
    _check_values(hypernet, values)
    return hypernet


def _check_same(what: str, found: Description, expected: Description) -> None:
    if found != expected:
        raise FormatError(
            f"{what} was {_shown(found)}; expected {_shown(expected)}, as in the file."
        )


def _check_trunk(about: Description, trunk: OwnTrunk | None) -> None:
    """Compare whether there is a trunk of the user's own."""
    saved = about.get("trunk")
    if saved is not None and trunk is None:
        name = saved[""][0] if "" in saved else "Module"
        raise FormatError(
            f"the trunk, a {name} of your own, cannot be stored in a file. Pass it to load: "
            f"trunk={name}(...)."
        )
    if saved is None and trunk is not None:
        raise FormatError("trunk was given, and the saved model has none of its own; leave it out.")


def _check_layers(hidden: list[int], values: Mapping[str, Tensor]) -> None:
    """Compare the hidden layers with the tensors, before many of them are made."""
    names = [f"trunk.layers.{i}.weight" for i in range(len(hidden))]
    missing = next((name for name in names if name not in values), None)
    if missing is not None:
        raise FormatError(
            "the tensors do not fit the hypernetwork that the file describes: the file has no "
            f"{missing!r}, and {len(hidden)} hidden layers."
        )


def _try_activations(hypernet: HyperNet) -> None:
    """Some activations read their settings only when they are called."""
    trunk = hypernet.trunk
    with torch.no_grad(), torch.random.fork_rng(devices=[]):  # RReLU draws
        for layer, activation in zip(trunk.layers, trunk.activations, strict=True):
            width = len(layer.get_parameter("bias"))
            activation(torch.zeros(1, width, dtype=hypernet.dtype))


def _make(part: Description | None, known: Mapping[str, Callable[..., Any]], argument: str) -> Any:
    """Build a part from its description; ``argument`` is how to pass it to ``load`` instead."""
    if part is None:  # no hidden layers, so any activation will do
        return "identity"
    name, shown = part["class"], _shown(part)
    if part.get("own"):
        raise FormatError(
            f"the class {name} cannot be stored in a file. Pass it to load: {argument % shown}."
        )
    if several := part.get("heads") or part.get("encodings"):
        return {pattern: _make(each, known, argument) for pattern, each in several}
    if name not in known:
        raise FormatError(
            f"it names {shown}, which this version of HyperLight does not know; it knows "
            f"{listed(known)}.{did_you_mean(name, known)}"
        )
    try:
        return known[name](**part["config"])
    except Exception as error:
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
    odd = [
        name
        for name, tensor in floats.items()
        if tensor.dtype != hypernet.dtype and not name.startswith("encoders.")
    ]
    if odd:
        raise FormatError(
            f"The hypernetwork has dtype {hypernet.dtype}, but {listed(odd)} have another. Convert "
            f"it first: model.hypernet.to({hypernet.dtype})."
        )


def find_aliases(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Map every further name of a tensor to its first."""
    first: dict[object, str] = {}
    aliases: dict[str, str] = {}
    for name, t in state.items():
        view = (t.device, t.data_ptr(), t.dtype, t.shape, t.stride(), t.is_conj(), t.is_neg())
        if first.setdefault(view, name) != name:
            aliases[name] = first[view]
    return aliases


def fingerprint(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and bytes."""
    digest = hashlib.sha256(f"{dtype_name(tensor.dtype)} {list(tensor.shape)}\n".encode())
    feed(tensor, digest.update)
    return digest.hexdigest()


def dtype_name(dtype: torch.dtype) -> str:
    """``"float32"`` for :data:`torch.float32`."""
    return str(dtype).removeprefix("torch.")


# --- reading -------------------------------------------------------------------


def _read(path: Path, doubts: list[str]) -> tuple[dict[str, Tensor], Description]:
    """The tensors of a file, under all their names, and its metadata."""
    found = container.read(path)
    tensors = found.tensors
    if FORMAT not in found.metadata:
        raise FormatError(
            f"this safetensors file was not written by hl.save; it holds {listed(tensors, 4)}. For "
            "weights of a primary use primary.load_state_dict(safetensors.torch.load_file(path))."
        )
    about = _parse(found.metadata[FORMAT])
    if not found.sealed:
        if about["version"] > 1:
            raise FormatError(
                f"the file has version {about['version']} of the format and no checksum, so it "
                "was changed after it was saved. Copy it again from where it came from."
            )
        doubts.append(
            f"the file has no checksum, as written by HyperLight {about.get('library')}, so damage "
            "to it would not be seen. Save it again with hl.save."
        )
    with in_words("the metadata does not fit the tensors"):
        for name, (dtype, shape) in about["raw"].items():
            tensors[name] = tensors[name].clone().view(_dtype_of(dtype)).reshape(shape)
        for alias, name in about["aliases"].items():
            tensors[alias] = tensors[name]
    return tensors, about


def _parse(text: str) -> Description:
    """The metadata, checked for version and types."""
    try:
        about: Description = read_json(text)
        version = about["version"]
        newer = version > VERSION
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"the metadata is damaged: no version ({error!r}).") from error
    if newer:
        raise FormatError(
            f"the file has version {version} of the format, written by HyperLight "
            f"{about.get('library')}; this is HyperLight {__version__}, which reads versions up "
            f"to {VERSION}. Upgrade: git pull and pip install . in a checkout of HyperLight."
        )
    if type(version) is not int or version < 1 or about.get("format") != FORMAT:
        raise FormatError(
            f"the metadata is damaged: format {about.get('format')!r}, version {version!r}; "
            f"expected {FORMAT!r}, 1 to {VERSION}."
        )
    for key, kind in _METADATA.items():
        empty = key in ("inputs", "shapes") and not about.get(key)
        missing = key not in about and version >= _SINCE.get(key, 1)
        if empty or missing or not fits(about.get(key), kind):
            shown = f"{about.get(key, 'missing')!r:.200}"
            raise FormatError(f"the metadata is damaged: {key!r} is {shown}.")
    return about


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


def _check_values(hypernet: HyperNet, values: Mapping[str, Tensor]) -> None:
    words = differences(values, hypernet.state_dict(), "the hypernetwork", "the file")
    if words:
        raise FormatError(
            f"the tensors do not fit the hypernetwork that the file describes: {'; '.join(words)}. "
            "Pass the encoding, head or activation that it was saved with."
        )


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


def _compare_primary(primary: nn.Module, about: Description) -> list[str]:
    """Say in a sentence how the primary differs from the saved one, if it does."""
    saved: Structure | None = about["structure"] if about.get("structure") else None
    own = structure_of(primary)
    if saved is None:  # version 1 has the class alone
        saved = {"": [about["primary"], {}], **{name: part for name, part in own.items() if name}}
    return _compared(saved, own, "primary")


def _compare_parts(hypernet: HyperNet, about: Description) -> list[str]:
    """Say so of the encoders and of a trunk of the user's own, a sentence each."""
    words, saved = [], about.get("encoders") or {}
    for name, own in _structures(hypernet.encoders).items():
        if name in saved:
            words += _compared(saved[name], own, f"encoder of {name!r}")
    if about.get("trunk") is not None:
        words += _compared(about["trunk"], structure_of(hypernet.trunk), "trunk")
    return words


def _compared(saved: Structure, own: Structure, what: str) -> list[str]:
    words = structural_differences(saved, own, what)
    if not words:
        return []
    more = f" and {len(words) - 4} more" if words[4:] else ""
    return [
        f"the given {what} differs from the one that was saved, and may compute something else: "
        f"{'; '.join(words[:4])}{more}. Build it as it was when it was saved."
    ]
