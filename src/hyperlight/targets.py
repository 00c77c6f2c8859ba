"""Which parameters of the primary are predicted, and where they stand.

The order is always that of ``primary.named_parameters()``, in which the modules were registered.
It does not depend on the process, so the ranks of a distributed run agree.
"""

from __future__ import annotations

import fnmatch
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from ._torch import NormBase, is_distributed, is_fake, is_wrapper
from .errors import TargetError, did_you_mean, listed, sharded

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
        targets: ``None`` for all parameters that can be predicted but those of
            normalisation layers (those of torch, and other classes with BatchNorm,
            LayerNorm, GroupNorm, InstanceNorm or RMSNorm in their name); a glob
            over parameter names (``"encoder.*"``); a module class (all parameters
            inside such modules); a function of ``(name, parameter)``; or several
            of these, of which any may match.

    Returns:
        The targets in the order of ``primary.named_parameters()``.

    Warns:
        With ``targets=None``, of parameters that cannot be predicted: complex and quantised ones.

    Raises:
        TargetError: a selector matches nothing, or matches what cannot be predicted.
        ConfigurationError: a parameter to predict is sharded.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    >>> [target.name for target in select(net)]
    ['0.weight', '0.bias', '2.weight', '2.bias']
    >>> [target.name for target in select(net, "*.bias")]
    ['0.bias', '1.bias', '2.bias']
    """
    if isinstance(primary, type):
        raise TargetError(
            f"The primary was the class {primary.__name__}; expected a torch.nn.Module. "
            f"Make one: {primary.__name__}(...)."
        )
    if not isinstance(primary, nn.Module):
        raise TargetError(
            f"The primary was {type(primary).__name__!r}; expected a torch.nn.Module, which comes "
            "first: hypernetize(primary, inputs). Wrap a function in a module that holds its "
            "parameters."
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
        wanted = {key: p for key, p in parameters.items() if key not in excluded}
        obstacles = {key: _obstacle(parameter) for key, parameter in wanted.items()}
        chosen = {key for key, obstacle in obstacles.items() if not obstacle}
        left_out = [f"{aliases[key][0]!r} {why}" for key, why in obstacles.items() if why]
        if not chosen:
            raise TargetError(
                f"The primary {type(primary).__name__} has no parameter that is predicted by "
                f"default: {_shown(left_out)}. {_PREDICTABLE}"
                if left_out
                else f"The primary {type(primary).__name__} has only parameters of normalisation "
                "layers, which are not predicted by default. Name them: targets='*'."
            )
        if left_out:
            warnings.warn(
                f"These parameters of {type(primary).__name__} stay the same for every input: "
                f"{_shown(left_out)}. {_PREDICTABLE} With targets=... you choose, and are not "
                "warned.",
                stacklevel=3,
            )
    else:
        single = isinstance(targets, (str, nn.Module, Tensor)) or callable(targets)
        single = single or not isinstance(targets, Iterable)
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
        if is_distributed(parameter):
            raise sharded(f"Parameter {aliases[key][0]!r} of the primary is")
        obstacle = _obstacle(parameter)
        if obstacle:
            raise TargetError(
                f"Parameter {aliases[key][0]!r} {obstacle}; {_PREDICTABLE[0].lower()}"
                f"{_PREDICTABLE[1:]} Leave it out of targets."
            )
        names = tuple(aliases[key])
        found.append(Target(names[0], names, parameter.shape, parameter.dtype, parameter.device))
    return tuple(found)


_PREDICTABLE = "Only real floating-point parameters of at least 16 bits can be predicted."


def _obstacle(parameter: nn.Parameter) -> str:
    """Why the parameter cannot be predicted; ``""`` if it can."""
    if is_wrapper(parameter) and not (is_distributed(parameter) or is_fake(parameter)):
        return f"is a {type(parameter).__name__}, which holds its values in a way of its own"
    if parameter.layout != torch.strided:
        return f"has layout {parameter.layout}"
    if not parameter.is_floating_point() or parameter.dtype.itemsize < 2:
        return f"has dtype {parameter.dtype}"
    return ""


def _shown(reasons: list[str], most: int = 8) -> str:
    rest = f" and {len(reasons) - most} more" if len(reasons) > most else ""
    return ", ".join(reasons[:most]) + rest


def _named(primary: nn.Module, selector: object) -> str:
    """What does not belong into targets, by its name in the primary if it has one."""
    kind = type(selector).__name__
    if isinstance(selector, nn.Module):
        found = [name for name, module in primary.named_modules() if name and module is selector]
        return f"a {kind} itself{f', which has the glob {found[0]}.*' if found else ''}"
    if isinstance(selector, Tensor):
        names = [name for name, parameter in primary.named_parameters() if parameter is selector]
        return f"a {kind} itself{f', which has the name {names[0]!r}' if names else ''}"
    return repr(selector)


def _guess(primary: nn.Module, selector: str, names: list[str]) -> str:
    """What may have been meant: everything in a module, a class, or the nearest name."""
    if any(name.startswith(f"{selector}.") for name in names):
        return f" Did you mean '{selector}.*'?"
    if any(type(module).__name__ == selector for module in primary.modules()):
        return f" For modules of a class, pass the class {selector} itself, without quotes."
    return did_you_mean(selector, names)


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
            f"{'' if matched else _guess(primary, selector, names)}"
        )
    elif callable(selector) and not isinstance(selector, (type, Tensor, nn.Module)):
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
            f"targets held {_named(primary, selector)}; expected a glob such as '*.weight', a "
            "module class such as torch.nn.Linear, a function of (name, parameter), or a "
            "list of these."
        )
    if not matched:
        raise TargetError(problem)
    return matched
