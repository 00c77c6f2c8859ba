"""Checkpoints of HyperLight 0.0.5, the release that came with the paper (docs/migration.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..encodings import CosSin
from ..errors import FormatError, did_you_mean, listed
from ..inputs import Input, Simplex, Uniform
from ..model import HyperModel
from ..trunk import ACTIVATIONS
from .container import in_words
from .state import differences, empty_hypernet, load_in_place, own_tensors, under


def from_hyperlight(
    state_dict: Mapping[str, Tensor],
    primary: nn.Module,
    inputs: Mapping[str, Input],
    *,
    output_shapes: Mapping[str, Sequence[int]] | None = None,
    encoding: str | None = "cos|sin",
    nonlinearity: str = "LeakyReLU",
) -> HyperModel:
    r"""Convert a checkpoint of HyperLight 0.0.5, the release that came with the paper.

    In that release :math:`\theta^0` is the bias of the hypernetwork's last layer; here it is copied
    into the primary in place, once everything is checked. The model predicts what the original
    predicts in evaluation mode (its dropout has no counterpart here), up to rounding. A last layer
    without bias is the classical formulation: :math:`\theta^0` is then zero.

    Args:
        state_dict: of the ``HyperNet``, or of a module that holds the ``HyperNet`` and the
            hypernetized network under any names. In that case the network's other tensors are
            loaded too; otherwise they stay as they are.
        primary: the network as it was before it was hypernetized.
        inputs: a space for every name in ``input_shapes``. That release encoded values as they
            were given: with ``"cos|sin"`` declare ``hl.Uniform(0.0, 1.0, shape)`` and pass the
            values that you passed there. The other encodings take any space of numbers.
        output_shapes: those that the ``HyperNet`` was made with, ``network.external_shapes()``, in
            the same order. None means every parameter of the primary that the checkpoint does not
            hold, in the primary's order, which is that of ``external_shapes``.
        encoding: that of the ``HyperNet``: ``"cos|sin"``, ``"z|1-z"`` or None. ``"z|1-z"`` is
            linear; it is folded into the first layer of a model with ``encoding=None``.
        nonlinearity: that of ``fc_kws``, the name of a class in :mod:`torch.nn`.

    Returns:
        The model; ``model.primary`` is the given primary.

    Raises:
        FormatError: something does not fit, or cannot be represented exactly.

    >>> old = {"backbone.output.weight": torch.zeros(3, 2), "backbone.output.bias": torch.ones(3)}
    >>> model = hl.io.from_hyperlight(old, nn.Linear(2, 1), {"h": hl.Uniform(0.0, 1.0)})
    >>> model.predict(h=0.3)["weight"].detach()
    tensor([[1., 1.]])
    """
    _check_tensors(state_dict)
    values, hidden, rest = _split(state_dict)
    first = "trunk.layers.0" if hidden else "head"
    _check_inputs(inputs, encoding, values[f"{first}.weight"].shape[1])
    own = own_tensors(primary)
    others = _rest_of_primary(rest, own)
    parameters = dict(primary.named_parameters(remove_duplicate=False))
    if output_shapes is None:
        free = {id(p) for name, p in parameters.items() if name not in others}
        shapes = {n: p.shape for n, p in primary.named_parameters() if id(p) in free}
    else:
        shapes = {name: torch.Size(shape) for name, shape in output_shapes.items()}
    _check_outputs(primary, shapes, len(values["head.weight"]))
    _fold_encoding(values, first, encoding)
    theta0 = torch.split(values.pop("head.bias"), [shape.numel() for shape in shapes.values()])
    for (name, shape), part in zip(shapes.items(), theta0, strict=True):
        others[name] = part.reshape(shape)

    kind = _nonlinearity(nonlinearity)
    with in_words(
        f"The checkpoint describes a HyperNet with hidden layers of {hidden} and nonlinearity="
        f"{nonlinearity!r}, which cannot be made"
    ):
        hypernet = empty_hypernet(
            dict(sorted(inputs.items())),
            shapes,
            hidden=hidden,
            activation={known: name for name, known in ACTIVATIONS.items()}.get(kind, kind),
            encoding=CosSin(per_input=True) if encoding == "cos|sin" else None,
            dtype=values["head.weight"].dtype,
        )
    predicted = {id(parameters[name]) for name in shapes}
    expected = {
        name: tensor
        for name, tensor in own.items()
        if name in others or (rest and id(parameters.get(name)) not in predicted)
    }
    there = f"a hypernetwork with nonlinearity={nonlinearity!r}"
    words = differences(values, hypernet.state_dict(), there, "the checkpoint")
    words += differences(others, expected, "the primary", "the checkpoint")
    if words:
        raise FormatError(
            f"The checkpoint does not fit: {'; '.join(words)}. Pass the nonlinearity it was made "
            "with, a primary of its architecture and dtype, and all of its tensors or those of "
            "the HyperNet alone."
        )
    hypernet.load_state_dict(values)
    model = HyperModel(primary, hypernet.to(parameters[next(iter(shapes))].device))
    load_in_place(primary, others)
    return model


def _check_tensors(state_dict: Mapping[str, Tensor]) -> None:
    """Refuse what is no state dict, and layers of a HyperNet that do not have the right shapes."""
    if not isinstance(state_dict, Mapping):
        raise FormatError(
            f"state_dict was of type {type(state_dict).__name__}; expected names and tensors, as "
            "torch.load(path, weights_only=True) gives them for a checkpoint of HyperLight 0.0.5."
        )
    for name, tensor in state_dict.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.is_meta:
            raise FormatError(
                f"state_dict held {name!r} of type {type(tensor).__name__}; expected names and "
                "tensors with values. If the state dict is one entry of a larger checkpoint, pass "
                "that entry."
            )
        if ".backbone." in f".{name}":
            ndim = 2 if name.endswith("_lin.weight") or name.endswith("output.weight") else None
            if not tensor.is_floating_point() or (
                ndim and (tensor.ndim != ndim or not len(tensor))
            ):
                raise FormatError(
                    f"{name!r} of the checkpoint is {tensor.dtype} of shape {tuple(tensor.shape)}; "
                    "expected real numbers, two dimensions for the weight of a layer. The "
                    "checkpoint is damaged, or not of a HyperNet of HyperLight 0.0.5."
                )


def _split(
    state_dict: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], list[int], dict[str, Tensor]]:
    """The tensors of the ``HyperNet`` by our names, its hidden widths, and all other tensors."""
    mark = "backbone.output.weight"
    ends = [name for name in state_dict if f".{name}".endswith(f".{mark}")]
    if len(ends) != 1:
        found = f"{len(ends)} of them: {listed(ends)}" if ends else listed(state_dict, 4)
        raise FormatError(
            f"Expected the state dict of one HyperNet of HyperLight 0.0.5, with one tensor "
            f"{mark!r}; found {found or 'nothing'}."
        )
    prefix = ends[0].removesuffix("output.weight")
    old = under(prefix, state_dict)
    linear = [f"block{i}_lin" for i in range(sum(n.endswith("_lin.weight") for n in old))]
    ours = {"output": "head"}
    for i, name in enumerate(linear):
        ours |= {name: f"trunk.layers.{i}", f"block{i}_act": f"trunk.activations.{i}"}
    layers = dict.fromkeys(name.partition(".")[0] for name in old)
    needed = {f"{name}.{leaf}" for name in linear for leaf in ("weight", "bias")}
    if not layers.keys() <= ours.keys() or not needed <= old.keys():
        raise FormatError(
            f"The backbone of the checkpoint has the layers {listed(layers)}; expected 'output' "
            "and 'block0_lin', 'block1_lin', ..., each with weight and bias, as HyperLight 0.0.5 "
            "makes them."
        )
    values = {"head.bias": old["output.weight"].new_zeros(len(old["output.weight"]))}
    for layer, name in ours.items():
        values |= {f"{name}.{leaf}": tensor for leaf, tensor in under(f"{layer}.", old).items()}
    for layer, name in [("output", "head"), *((n, ours[n]) for n in linear)]:
        bias, rows = values[f"{name}.bias"], len(values[f"{name}.weight"])
        if bias.shape != (rows,):
            raise FormatError(
                f"The layer {layer!r} of the checkpoint has {rows:,} outputs and a bias of shape "
                f"{tuple(bias.shape)}; expected ({rows},). The checkpoint is damaged."
            )
    hidden = [len(old[f"{name}.weight"]) for name in linear]
    return values, hidden, {n: t for n, t in state_dict.items() if not n.startswith(prefix)}


def _check_inputs(inputs: Mapping[str, Input], encoding: str | None, columns: int) -> None:
    factors: dict[str | None, int] = {"cos|sin": 2, "z|1-z": 2, None: 1}
    if encoding not in factors:
        raise FormatError(f"encoding was {encoding!r}; expected 'cos|sin', 'z|1-z' or None.")
    for name, space in inputs.items():
        unit = isinstance(space, (Uniform, Simplex)) and space.support == (0.0, 1.0)
        if not isinstance(space, Input) or space.discrete or (encoding == "cos|sin" and not unit):
            shape = getattr(space, "event_shape", ())
            unit_space = f"hl.Uniform(0.0, 1.0, {shape})" if shape else "hl.Uniform(0.0, 1.0)"
            raise FormatError(
                f"Input {name!r} was {space!r}; HyperLight 0.0.5 had numbers only and encoded them "
                "as they were given, without mapping them to [0, 1] first. Declare "
                f"{unit_space} and pass the values that you passed there. With encoding='cos|sin' "
                "values outside of [0, 1], of which it warned, cannot be represented."
            )
    size = sum(space.numel for space in inputs.values())
    if size * factors[encoding] != columns:
        fitting = [repr(e) for e, factor in factors.items() if size * factor == columns]
        hint = f" They fit encoding={' or '.join(fitting)}." if fitting else ""
        raise FormatError(
            f"The inputs {listed(inputs)} have {size} entries, which encoding={encoding!r} makes "
            f"{size * factors[encoding]}; the checkpoint's first layer reads {columns}.{hint}"
        )


def _rest_of_primary(rest: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The other tensors of a checkpoint by their names in the primary."""
    one = next(iter(rest), "")
    prefixes = {one.removesuffix(name) for name in own if one.endswith(name)} or {""}
    for prefix in sorted(prefixes, key=len):
        found = under(prefix, rest)
        if len(found) == len(rest) and found.keys() <= own.keys():
            return found
    raise FormatError(
        f"Besides the HyperNet the checkpoint holds {listed(rest, 4)}, which are not tensors of "
        f"the primary under a common prefix; it has {listed(own, 4)}. Pass the primary they "
        "belong to, or the state dict of the HyperNet alone."
    )


def _check_outputs(primary: nn.Module, shapes: Mapping[str, torch.Size], rows: int) -> None:
    parameters = dict(primary.named_parameters(remove_duplicate=False))
    used = [id(p) for module in primary.modules() for p in module._parameters.values()]
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
        uses = used.count(id(parameters[name]))
        if uses > 1:
            raise FormatError(
                f"The parameter {name!r} is tied: {uses} modules share it. HyperLight 0.0.5 "
                "predicted a tensor for each of them, this version predicts one. Untie them in "
                "the primary, as they were there."
            )
    total = sum(shape.numel() for shape in shapes.values())
    if total != rows:
        raise FormatError(
            f"The checkpoint predicts {rows:,} entries; {listed(shapes, 4)} have {total:,}. Pass "
            "output_shapes=network.external_shapes(), which the HyperNet was made with."
        )


def _fold_encoding(values: dict[str, Tensor], first: str, encoding: str | None) -> None:
    """Change the first layer to read :class:`~hyperlight.Identity`, unless it reads "cos|sin"."""
    weight, bias = values[f"{first}.weight"], values[f"{first}.bias"]
    if encoding == "z|1-z":  # W [z, 1 - z] + b = (W1 - W2) z + (b + W2 1)
        of_z, of_rest = weight.double().chunk(2, dim=1)
        values[f"{first}.bias"] = (bias.double() + of_rest.sum(dim=1)).to(bias.dtype)
        weight = (of_z - of_rest).to(weight.dtype)
    if encoding != "cos|sin":  # Identity appends as many zeros
        values[f"{first}.weight"] = torch.cat([weight, torch.zeros_like(weight)], dim=1)


def _nonlinearity(name: str) -> type[nn.Module]:
    kind = getattr(nn, name, None)
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise FormatError(
            f"nonlinearity was {name!r}; expected the name of a class in torch.nn, such as "
            f"'LeakyReLU'.{did_you_mean(name, dir(nn))}"
        )
    return kind
