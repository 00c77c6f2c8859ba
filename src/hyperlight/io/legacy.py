"""Checkpoints of HyperLight 0.0.5, the release that came with the paper (docs/migration.md)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..encodings import CosSin
from ..errors import FormatError, did_you_mean, listed
from ..hypernet import ACTIVATIONS
from ..inputs import Input, Simplex, Uniform
from ..model import HyperModel
from .state import differences, empty_hypernet, load_in_place, own_tensors, under

__all__ = ["from_hyperlight"]


def from_hyperlight(
    state_dict: Mapping[str, Tensor],
    primary: nn.Module,
    inputs: Mapping[str, Input],
    *,
    output_shapes: Mapping[str, Sequence[int]] | None = None,
    encoding: str | None = "cos|sin",
    nonlinearity: str = "LeakyReLU",
) -> HyperModel:
    r"""A model from a checkpoint of HyperLight 0.0.5, the release that came with the paper.

    There :math:`\theta^0` is the bias of the hypernetwork's last layer; here it goes into the
    primary, in place, after everything was checked. The result predicts what the original does
    in evaluation mode (its dropout has no counterpart here), to rounding. A last layer without
    bias is the classical formulation: :math:`\theta^0` is then zero.

    Args:
        state_dict: of its ``HyperNet``, or of a module that holds the ``HyperNet`` and the
            hypernetized network under any names. The other tensors of the network are then
            taken from it as well; otherwise they stay as they are.
        primary: the network as it was before it was hypernetized.
        inputs: a space for every name in ``input_shapes``. That release encoded values as they
            were given; with ``"cos|sin"`` declare ``hl.Uniform(0.0, 1.0, shape)`` and pass the
            values that you passed there. The other encodings take any space of numbers.
        output_shapes: what the ``HyperNet`` was made with, ``network.external_shapes()``, in
            the same order. None is every parameter of the primary that the checkpoint
            does not hold itself, in the primary's order, which is that of ``external_shapes``.
        encoding: what it was made with: ``"cos|sin"``, ``"z|1-z"`` or None. ``"z|1-z"`` is
            linear and comes back as weights and biases of a model with ``encoding=None``.
        nonlinearity: what ``fc_kws`` held, the name of a class in :mod:`torch.nn`.

    Returns:
        The model; ``model.primary`` is the given primary.

    Raises:
        FormatError: says what does not fit, or what cannot be represented exactly.

    >>> old = {"backbone.output.weight": torch.zeros(3, 2), "backbone.output.bias": torch.ones(3)}
    >>> model = hl.io.from_hyperlight(old, nn.Linear(2, 1), {"h": hl.Uniform(0.0, 1.0)})
    >>> model.predict(h=0.3)["weight"].detach()
    tensor([[1., 1.]])
    """
    layers, rest = _backbone(state_dict)
    last = layers.pop("output")
    blocks = _blocks(layers)
    hidden = [block["weight"].shape[0] for block in blocks]
    dtype = last["weight"].dtype
    _check_legacy_inputs(inputs, encoding, (blocks or [last])[0]["weight"].shape[1])
    own = own_tensors(primary)
    others = _rest_of_primary(rest, own)
    parameters = dict(primary.named_parameters(remove_duplicate=False))
    if output_shapes is None:
        free = {id(p) for name, p in parameters.items() if name not in others}
        shapes = {n: p.shape for n, p in primary.named_parameters() if id(p) in free}
    else:
        shapes = {name: torch.Size(shape) for name, shape in output_shapes.items()}
    _check_outputs(primary, parameters, shapes, last["weight"].shape[0])
    predicted = {id(parameters[name]) for name in shapes}
    if others:
        missing = [
            name for name in own if name not in others and id(parameters.get(name)) not in predicted
        ]
        if missing:
            raise FormatError(
                f"The checkpoint holds {listed(others, 4)} of the primary, but not "
                f"{listed(missing, 4)}, which are not predicted either. Pass a complete state "
                "dict, or that of the HyperNet alone."
            )

    first = (blocks or [last])[0]
    bias = last.get("bias", torch.zeros_like(last["weight"][:, 0]))
    if encoding == "z|1-z":  # W [z, 1 - z] + b = (W1 - W2) z + (b + W2 1)
        of_z, of_rest = first["weight"].double().chunk(2, dim=1)
        first["weight"] = (of_z - of_rest).to(dtype)
        shift = of_rest.sum(dim=1)
        if blocks:
            first["bias"] = (first["bias"].double() + shift).to(dtype)
        else:
            bias = (bias.double() + shift).to(dtype)
    if encoding != "cos|sin":  # Identity appends as many zeros
        first["weight"] = torch.cat([first["weight"], torch.zeros_like(first["weight"])], dim=1)

    names = {kind: name for name, kind in ACTIVATIONS.items()}
    kind = _nonlinearity(nonlinearity)
    hypernet = empty_hypernet(
        dict(sorted(inputs.items())),
        shapes,
        hidden=hidden,
        activation=names.get(kind, kind),
        encoding=CosSin(per_input=True) if encoding == "cos|sin" else None,
        dtype=dtype,
    )
    values = {"head.weight": last["weight"]}
    for i, block in enumerate(blocks):
        values[f"trunk.layers.{i}.weight"] = block["weight"]
        values[f"trunk.layers.{i}.bias"] = block["bias"]
        values.update(
            {f"trunk.activations.{i}.{n}": t for n, t in layers.get(f"act{i}", {}).items()}
        )
    theta0 = torch.split(bias, [shape.numel() for shape in shapes.values()])
    others |= {
        name: part.reshape(shape)
        for (name, shape), part in zip(shapes.items(), theta0, strict=True)
    }
    own = {name: tensor for name, tensor in own.items() if name in others}
    for found, there, place in (
        (values, hypernet.state_dict(), f"a hypernetwork with nonlinearity={nonlinearity!r}"),
        (others, own, "the primary"),
    ):
        words = differences(found, there, place, "the checkpoint")
        if words:
            raise FormatError(
                f"The checkpoint does not fit: {'; '.join(words)}. Bring the primary to its "
                "dtype and architecture, and pass the nonlinearity with which it was made."
            )
    hypernet.load_state_dict(values)
    model = HyperModel(primary, hypernet.to(parameters[next(iter(shapes))].device))
    load_in_place(primary, others)
    return model


def _backbone(
    state_dict: Mapping[str, Tensor],
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The layers of the ``HyperNet`` in a state dict, and all other tensors in there."""
    mark = "backbone.output.weight"
    ends = [name for name in state_dict if f".{name}".endswith(f".{mark}")]
    if len(ends) != 1:
        found = f"{len(ends)} of them: {listed(ends)}" if ends else listed(state_dict, 4)
        raise FormatError(
            f"Expected the state dict of one HyperNet of HyperLight 0.0.5, with one tensor "
            f"{mark!r}; found {found or 'nothing'}."
        )
    prefix = ends[0].removesuffix("output.weight")
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state_dict.items():
        if name.startswith(prefix):
            layer, _, leaf = name.removeprefix(prefix).partition(".")
            layer = re.sub(r"^block(\d+)_(lin|act)$", r"\2\1", layer)
            layers.setdefault(layer, {})[leaf] = tensor
    rest = {name: t for name, t in state_dict.items() if not name.startswith(prefix)}
    return layers, rest


def _blocks(layers: Mapping[str, Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    count = sum(name.startswith("lin") for name in layers)
    expected = {f"lin{i}" for i in range(count)}
    unknown = [n for n in layers if n not in expected | {f"act{i}" for i in range(count)}]
    if unknown or any(set(layers[name]) != {"weight", "bias"} for name in expected - set(unknown)):
        raise FormatError(
            f"The backbone of the checkpoint is made of the layers {listed(layers)}; expected "
            "'output' and 'block0_lin', 'block1_lin', ..., each with weight and bias, as "
            "HyperLight 0.0.5 makes them."
        )
    return [dict(layers[f"lin{i}"]) for i in range(count)]


def _check_legacy_inputs(inputs: Mapping[str, Input], encoding: str | None, columns: int) -> None:
    factors: dict[str | None, int] = {"cos|sin": 2, "z|1-z": 2, None: 1}
    if encoding not in factors:
        raise FormatError(
            f"encoding was {encoding!r}; expected one of HyperLight 0.0.5: 'cos|sin', 'z|1-z' or "
            "None."
        )
    for name, space in inputs.items():
        if not isinstance(space, Input) or space.discrete:
            raise FormatError(
                f"Input {name!r} was {space!r}; HyperLight 0.0.5 had numbers only. Declare a space "
                "of numbers, such as hl.Uniform(0.0, 1.0)."
            )
        plain = isinstance(space, (Uniform, Simplex)) and space.support == (0.0, 1.0)
        if encoding == "cos|sin" and not plain:
            shape = "" if space.event_shape == () else f", {space.event_shape}"
            raise FormatError(
                f"Input {name!r} was {space!r}, which maps its values to [0, 1] before they are "
                "encoded; HyperLight 0.0.5 encoded them as they were given. Declare "
                f"hl.Uniform(0.0, 1.0{shape}) and pass the values that you passed there. (Values "
                "outside of [0, 1], of which it warned, cannot be represented.)"
            )
    size = sum(space.numel for space in inputs.values())
    if size * factors[encoding] != columns:
        fitting = [e for e, factor in factors.items() if size * factor == columns]
        hint = f" They fit encoding={' or '.join(map(repr, fitting))}." if fitting else ""
        raise FormatError(
            f"The inputs {listed(inputs)} have {size} entries, which encoding={encoding!r} makes "
            f"{size * factors[encoding]}; the checkpoint's first layer reads {columns}.{hint}"
        )


def _rest_of_primary(rest: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a checkpoint's other tensors by their names in the primary."""
    if not rest:
        return {}
    one = next(iter(rest))
    prefixes = {one.removesuffix(name) for name in own if one.endswith(name)}
    for prefix in sorted(prefixes, key=len):
        if all(n.startswith(prefix) and n.removeprefix(prefix) in own for n in rest):
            return under(prefix, rest)
    raise FormatError(
        f"The checkpoint holds {listed(rest, 4)} beside the HyperNet, which are not tensors of the "
        f"given primary under one prefix; it has {listed(own, 4)}. Pass the primary to which they "
        "belong, or the state dict of the HyperNet alone."
    )


def _check_outputs(
    primary: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    shapes: Mapping[str, torch.Size],
    rows: int,
) -> None:
    for name, shape in shapes.items():
        if name not in parameters:
            raise FormatError(
                f"output_shapes held {name!r}; {type(primary).__name__} has no parameter of that "
                f"name.{did_you_mean(name, parameters)}"
            )
        if shape != parameters[name].shape:
            raise FormatError(
                f"output_shapes held {name!r} with shape {tuple(shape)}; the parameter of the "
                f"primary has shape {tuple(parameters[name].shape)}."
            )
        uses = sum(
            parameter is parameters[name]
            for module in primary.modules()
            for parameter in module._parameters.values()
        )
        if uses > 1:
            raise FormatError(
                f"The parameter {name!r} is tied: {uses} modules share it. HyperLight 0.0.5 "
                "predicted a tensor for each of them, here they are one. Untie them in the "
                "primary, as they were there."
            )
    total = sum(math.prod(shape) for shape in shapes.values())
    if total != rows:
        raise FormatError(
            f"The checkpoint predicts {rows:,} entries; {listed(shapes, 4)} have {total:,}. Pass "
            "output_shapes=network.external_shapes(), which the HyperNet was made with."
        )


def _nonlinearity(name: str) -> type[nn.Module]:
    kind = getattr(nn, name, None)
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise FormatError(
            f"nonlinearity was {name!r}; expected the name of a class in torch.nn, such as "
            f"'LeakyReLU'.{did_you_mean(name, dir(nn))}"
        )
    return kind
