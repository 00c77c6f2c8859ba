"""The twins: weights copied by hand, sums written out, the chain rule in two steps."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import hyperlight as hl


def copied_primary(primary: nn.Module, theta: dict[str, Tensor]) -> nn.Module:
    """A deep copy of the primary with the weights copied into its parameters."""
    for module in primary.modules():
        for name, value in module.__dict__.items():
            if isinstance(value, Tensor):  # what torch.nn.utils.weight_norm left from a forward
                module.__dict__[name] = value.detach()
    twin = copy.deepcopy(primary)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if name in theta:
                parameter.copy_(theta[name])
    return twin


def naive_theta_gradients(
    primary: nn.Module, theta: dict[str, Tensor], loss: Callable[[nn.Module], Tensor]
) -> dict[str, Tensor]:
    """The gradient of ``loss`` by every parameter of the copied primary."""
    twin = copied_primary(primary, theta)
    for name, parameter in twin.named_parameters():
        if name in theta:  # its predicted change learns even where the parameter is frozen
            parameter.requires_grad_()
    value = loss(twin)
    value.backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in twin.named_parameters()
    }


def two_stage_gradients(
    model: hl.HyperModel, gamma: dict[str, Tensor], loss: Callable[[nn.Module], Tensor]
) -> dict[str, Tensor]:
    """Gradients of all parameters of the model by the chain rule: first by the weights, through
    a copied primary; then from the weights to the model's parameters."""
    theta = model.predict(**gamma)
    by_theta = naive_theta_gradients(
        model.primary, {name: t.detach() for name, t in theta.items()}, loss
    )
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    outputs, weights = list(theta.values()), [by_theta[name] for name in theta]
    found = torch.autograd.grad(outputs, list(parameters.values()), weights, allow_unused=True)
    gradients = {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(parameters.items(), found, strict=True)
    }
    for name, g in by_theta.items():
        if name not in theta:  # a parameter that is used as it is
            gradients[f"primary.{name}"] = g
    return gradients


def naive_encoding(values: list[float], kind: str) -> list[float]:
    """E_L2 of the paper by ``math``: per input, of the whole vector, or nothing and zeros."""
    if kind == "none":
        return values + [0.0] * len(values)
    norm = 1.0 if kind == "per-input" else math.sqrt(len(values))
    return [math.cos(v * math.pi / 2) / norm for v in values] + [
        math.sin(v * math.pi / 2) / norm for v in values
    ]


def naive_features(
    net: hl.HyperNet, values: list[float], kind: str, slope: float, skip: bool
) -> list[float]:
    """Eq. 1 of the paper, every sum written out, for a LeakyReLU trunk."""
    x = naive_encoding(values, kind)
    for layer in net.trunk.layers:
        weight, bias = layer.weight.tolist(), layer.bias.tolist()
        y = [
            sum(w * v for w, v in zip(row, x, strict=True)) + b
            for row, b in zip(weight, bias, strict=True)
        ]
        y = [v if v > 0 else slope * v for v in y]
        x = [a + b for a, b in zip(x, y, strict=True)] if skip and len(x) == len(y) else y
    return x


def naive_predictions(net: hl.HyperNet, features: list[float]) -> dict[str, Tensor]:
    """The head's rows times the features, cut into the tensors one after the other."""
    flat = [
        sum(w * f for w, f in zip(row, features, strict=True)) for row in net.head.weight.tolist()
    ]
    found, start = {}, 0
    for name, shape in net.shapes.items():
        size = math.prod(shape)
        found[name] = torch.tensor(flat[start : start + size], dtype=torch.float64).reshape(shape)
        start += size
    return found


# --- heads, one number at a time -------------------------------------------------


def predict_dense(head: hl.Dense, features: Tensor) -> dict[str, Tensor]:
    """Every entry is the inner product of its row with the features ``(K,)``."""
    predicted, row = {}, 0
    for name, shape in head.shapes.items():
        entries = [(head.weight[row + i] * features).sum() for i in range(shape.numel())]
        predicted[name] = torch.stack(entries).reshape(shape)
        row += shape.numel()
    return predicted


def predict_low_rank(head: hl.LowRank, features: Tensor) -> dict[str, Tensor]:
    """Rows of both factors first, then the sum over the rank for every entry."""
    predicted, row = {}, 0
    for name, shape in head.shapes.items():
        rows, columns = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (0, 0)
        r = head.rank
        if r * (rows + columns) >= rows * columns:
            code = head.weight[row : row + shape.numel()] @ features
            predicted[name] = code.reshape(shape)
            row += shape.numel()
            continue
        code = head.weight[row : row + r * (rows + columns)] @ features
        row += r * (rows + columns)
        matrix = torch.stack(
            [
                torch.stack(
                    [
                        sum(code[o * r + k] * code[rows * r + k * columns + i] for k in range(r))
                        for i in range(columns)
                    ]
                )
                for o in range(rows)
            ]
        )
        predicted[name] = matrix.reshape(shape)
    return predicted


def predict_chunked(head: hl.Chunked, features: Tensor) -> dict[str, Tensor]:
    """The shared layer, applied to one chunk after the other."""
    flat = torch.cat([head.weight @ (gate * features) for gate in head.embedding])
    predicted, start = {}, 0
    for scale, (name, shape) in zip(head.scale, head.shapes.items(), strict=True):
        predicted[name] = (scale * flat[start : start + shape.numel()]).reshape(shape)
        start += shape.numel()
    return predicted


def predict_per_layer(head: hl.PerLayer, features: Tensor) -> dict[str, Tensor]:
    """The shared network, called for one tensor after another."""
    index, found = 0, {}
    for names, output in zip(head.kinds, head.outputs, strict=True):
        for name in names:
            x = head.first @ torch.cat([features, head.embedding[index]])
            h = head.second @ (x * torch.sigmoid(x))
            code = output @ (h / h.square().sum().sqrt())
            shape = head.shapes[name]
            rows, columns = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (0, 0)
            r = head.rank or 0
            if r and r * (rows + columns) < rows * columns:
                left, right = code[: r * rows].view(rows, r), code[r * rows :].view(r, columns)
                code = torch.stack([(left * column).sum(1) for column in right.T], dim=1)
            found[name] = (head.scale[index] * code).reshape(shape)
            index += 1
    return {name: found[name] for name in head.shapes}


def change_channel_scale(
    head: hl.ChannelScale, features: Tensor, theta0: dict[str, Tensor]
) -> dict[str, Tensor]:
    """One output channel after another."""
    found, start = {}, 0
    for name, shape in head.shapes.items():
        if len(shape) < 2:
            size = math.prod(shape)
            found[name] = (head.weight[start : start + size] @ features).reshape(shape)
            start += size
            continue
        change = torch.zeros(shape, dtype=features.dtype)
        dim, groups = head.channels.get(name, (0, 1))
        for group in range(groups):
            for channel in range(shape[dim]):
                scale = head.weight[start] @ features
                part = [slice(None)] * len(shape)
                part[dim] = slice(channel, channel + 1)
                if groups > 1:
                    rows = shape[dim - 1] // groups
                    part[dim - 1] = slice(group * rows, (group + 1) * rows)
                change[tuple(part)] = theta0[name][tuple(part)] * scale
                start += 1
        found[name] = change
    return found


# --- many sets of weights ----------------------------------------------------------


def loop_over_copies(
    model: hl.HyperModel,
    args: tuple[object, ...],
    gamma: dict[str, Tensor],
    per_sample: bool,
    batch_dims: Sequence[int] = (),
) -> list[Tensor]:
    """The primary, run once for every set of weights; outputs put together leaf by leaf.

    Differentiable: the weights are put in place by ``torch.func.functional_call``.

    Args:
        batch_dims: for every tensor of the output, where it has its batch, if not in front.
    """
    theta, shared = model.predict(**gamma), dict(model.primary.named_parameters())
    twin = copy.deepcopy(model.primary)  # functional_call leaves its weights on recurrent layers
    outputs = []
    for i in range(len(next(iter(theta.values())))):
        own = []
        for arg in args:
            if isinstance(arg, hl.Shared):
                own.append(arg.value)
            elif per_sample and isinstance(arg, Tensor):
                own.append(arg[i : i + 1])
            else:
                own.append(arg)
        weights = {name: t[i] for name, t in theta.items()}
        outputs.append(torch.func.functional_call(twin, {**shared, **weights}, tuple(own)))
    leaves = [torch.utils._pytree.tree_leaves(output) for output in outputs]
    columns = [c for c in zip(*leaves, strict=True) if isinstance(c[0], Tensor)]
    if batch_dims:
        return [torch.cat(c, dim) for c, dim in zip(columns, batch_dims, strict=True)]
    found = []
    for column in columns:
        if per_sample and column[0].ndim and len(column[0]) == 1:
            found.append(torch.cat(column))
        else:
            found.append(torch.stack(column))
    return found


def naive_encoded(rows: list[list[float]], examples: list[list[float]]) -> list[list[float]]:
    """What networks gave for values and examples, in unit vectors: every sum written out."""
    columns = list(zip(*examples, strict=True))
    means = [sum(column) / len(column) for column in columns]
    deviations = [
        math.sqrt(sum((v - mean) ** 2 for v in column) / len(column))
        for column, mean in zip(columns, means, strict=True)
    ]
    typical = math.sqrt(sum(d**2 for d in deviations) / len(deviations))
    floors = [max(d, 0.01 * typical) for d in deviations]
    found = []
    for row in rows:
        scaled = [(v - m) / d for v, m, d in zip(row, means, floors, strict=True)]
        norm = math.sqrt(sum(v**2 for v in scaled))
        found.append([v / norm for v in scaled])
    return found
