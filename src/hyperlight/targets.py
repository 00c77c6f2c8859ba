"""Which parameters of the primary are predicted, and where they stand.

The order is always that of ``primary.named_parameters()``, in which the modules were registered.
It does not depend on the process, so the ranks of a distributed run agree.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from ._torch import NormBase
from .errors import TargetError, did_you_mean, listed

NORMALIZATION: tuple[type[nn.Module], ...] = (NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Normalisation layers, whose gains and biases are learned as usual (paper, section A.2)."""

# Other libraries write their own: LlamaRMSNorm and T5LayerNorm are no subclasses of torch's.
_NORMALIZATION_NAME = re.compile("(Batch|Group|Instance|Layer|RMS)Norm", re.IGNORECASE)

Selector = str | type[nn.Module] | Callable[[str, nn.Parameter], bool]
Targets = None | Selector | Iterable[Selector]


@dataclass(frozen=True)
class Target:
    """A predicted parameter.

    Attributes:
        name: its name in ``primary.named_parameters()``.
        aliases: all its names, that one first; several for a tied parameter, or for one of a
            module that is registered twice.
        shape: its shape.
        dtype: its dtype.
        device: its device when it was selected.
    """

    name: str
    aliases: tuple[str, ...]
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


def attribute(module: nn.Module, path: str) -> Any:
    """What stands at a dotted path; the module itself at an empty one.

    By attribute, since inside an outer bind a parameter is a plain tensor.
    """
    value: Any = module
    for name in path.split(".") if path else ():
        value = getattr(value, name)
    return value


def _modules_named(
    module: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...]
) -> set[int]:
    """The parameters inside modules of that kind, by identity."""
    return {
        id(parameter)
        for child in module.modules()
        if isinstance(child, kind)
        for parameter in child.parameters()
    }


def _normalization(module: nn.Module) -> set[int]:
    """The parameters of normalisation layers, by identity.

    Layers of torch are known by class, those of other libraries by a name such as
    ``LlamaRMSNorm``. Of these only the module's own parameters count: a block named
    ``PreLayerNorm`` may hold a whole network.
    """
    return _modules_named(module, NORMALIZATION) | {
        id(parameter)
        for child in module.modules()
        if _NORMALIZATION_NAME.search(type(child).__name__)
        for parameter in child.parameters(recurse=False)
    }


def select(primary: nn.Module, targets: Targets = None) -> tuple[Target, ...]:
    """Find the parameters to predict.

    Args:
        primary: the network whose parameters are selected.
        targets: ``None`` for all floating-point parameters but those of
            normalisation layers (those of torch, and other classes with BatchNorm,
            LayerNorm, GroupNorm, InstanceNorm or RMSNorm in their name); a glob
            over parameter names (``"encoder.*"``); a module class (all parameters
            inside such modules); a function of ``(name, parameter)``; or several
            of these, of which any may match.

    Returns:
        The targets in the order of ``primary.named_parameters()``.

    Raises:
        TargetError: a selector matches nothing, or matches what cannot be predicted.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    >>> [target.name for target in select(net)]
    ['0.weight', '0.bias', '2.weight', '2.bias']
    >>> [target.name for target in select(net, "*.bias")]
    ['0.bias', '1.bias', '2.bias']
    """
    if not isinstance(primary, nn.Module):
        raise TargetError(
            f"The primary was {type(primary).__name__!r}; expected a torch.nn.Module. "
            "Wrap a function in a module that holds its parameters."
        )
    aliases: dict[int, list[str]] = {}
    parameters: dict[int, nn.Parameter] = {}
    for name, parameter in primary.named_parameters(remove_duplicate=False):
        parameters[id(parameter)] = parameter
        aliases.setdefault(id(parameter), []).append(name)
    if not parameters:
        raise TargetError(
            f"The primary {type(primary).__name__} has no parameters to predict. "
            "Pass a module with weights."
        )
    for key, parameter in parameters.items():
        if isinstance(parameter, UninitializedParameter):
            raise TargetError(
                f"Parameter {aliases[key][0]!r} of the primary has no shape yet, since its module "
                "is lazy. Run the primary once on a batch of data before you hypernetize it."
            )

    if targets is None:
        excluded = _normalization(primary)
        chosen = {
            key
            for key, parameter in parameters.items()
            if key not in excluded and parameter.is_floating_point()
        }
        if not chosen:
            raise TargetError(
                f"The primary {type(primary).__name__} has only parameters of normalisation "
                "layers, which are not predicted by default. Name them: targets='*'."
            )
    else:
        single = isinstance(targets, str) or callable(targets)
        selectors: list[Selector] = [targets] if single else list(targets)  # type: ignore[list-item, arg-type]
        if not selectors:
            raise TargetError(
                "targets was empty; expected at least one selector. "
                "Leave it out (targets=None) to predict all but normalisation layers."
            )
        chosen = set()
        for selector in selectors:
            chosen |= _match(primary, selector, parameters, aliases)

    found = []
    for key, parameter in parameters.items():
        if key not in chosen:
            continue
        if not parameter.is_floating_point():
            raise TargetError(
                f"Parameter {aliases[key][0]!r} has dtype {parameter.dtype}; only real "
                "floating-point parameters can be predicted. Leave it out of targets."
            )
        names = tuple(aliases[key])
        found.append(Target(names[0], names, parameter.shape, parameter.dtype, parameter.device))
    return tuple(found)


def _match(
    primary: nn.Module,
    selector: Selector,
    parameters: dict[int, nn.Parameter],
    aliases: dict[int, list[str]],
) -> set[int]:
    names, primary_kind = [n for group in aliases.values() for n in group], type(primary).__name__
    if isinstance(selector, type) and issubclass(selector, nn.Module):
        matched = _modules_named(primary, selector)
        kinds = sorted({type(m).__name__ for m in primary.modules() if list(m.parameters())})
        problem = (
            f"targets={selector.__name__} matches no parameter of {primary_kind}; its modules with "
            f"parameters are {listed(kinds)}."
        )
    elif isinstance(selector, str):
        glob = re.compile(fnmatch.translate(selector))
        matched = {key for key, group in aliases.items() if any(map(glob.match, group))}
        problem = (
            f"targets={selector!r} matches no parameter of {primary_kind}; it has {listed(names)}. "
            f"A glob must match the whole name, as in 'encoder.*' or '*.weight'."
            f"{'' if matched else did_you_mean(selector, names)}"
        )
    elif callable(selector) and not isinstance(selector, (type, Tensor)):
        matched = {
            key
            for key, parameter in parameters.items()
            if any(selector(name, parameter) for name in aliases[key])
        }
        problem = (
            f"The targets function was false for every parameter of {primary_kind}: "
            f"{listed(names)}. It is called with (name, parameter)."
        )
    else:
        raise TargetError(
            f"targets held {selector!r}; expected a glob such as '*.weight', a module class such "
            "as torch.nn.Linear, a function of (name, parameter), or a list of these."
        )
    if not matched:
        raise TargetError(problem)
    return matched
