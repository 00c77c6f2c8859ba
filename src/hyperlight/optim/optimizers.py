"""The optimizers: a parameter with factors is stepped here, all others by ``torch.optim``."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._torch import is_wrapper
from ..errors import ConfigurationError
from . import passes
from .outer import OuterProduct, keep_factored, takes_factors

# The devices that have PyTorch's fused optimizers in every supported version.
_DEVICES = ("cpu", "cuda")

if TYPE_CHECKING:
    _Base = torch.optim.Optimizer
else:
    _Base = object


class _FromFactors(_Base):
    """Mixed in before an optimizer of :mod:`torch.optim`: steps the parameters with factors."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As :meth:`torch.optim.Optimizer.add_param_group`."""
        for option in ("capturable", "differentiable"):
            if param_group.get(option, self.defaults.get(option)):
                name = type(self).__name__
                raise ConfigurationError(
                    f"{option}=True: {name} of hyperlight.optim makes steps that cannot be "
                    f"captured in a graph or differentiated. Use torch.optim.{name}"
                    f"({option}=True, ...), which takes the same arguments and trains the same "
                    "model (docs/benchmarks.md, 'On a GPU')."
                )
        super().add_param_group(param_group)
        self._ask_for_factors(self.param_groups[-1])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            self._ask_for_factors(group)

    def _ask_for_factors(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            plain = parameter.ndim == 2 and not is_wrapper(parameter)
            if plain and parameter.device.type in _DEVICES:
                keep_factored(parameter, self)
                if parameter.device.type == "cpu":
                    passes.keep_freed_memory()
        if group.get("fused") is None and not group.get("foreach"):
            group["fused"] = all(
                p.device.type in _DEVICES and p.is_floating_point() and not is_wrapper(p)
                for p in group["params"]
            )

    def _init_group(self, group: dict[str, Any], *lists: Any) -> Any:
        """Step the parameters that have factors, and list the others for PyTorch's step.

        ``torch.optim`` calls this once for each group, in the middle of ``step``.
        """
        others = []
        for parameter in group["params"]:
            gradient = parameter.grad
            if not isinstance(gradient, OuterProduct):
                others.append(parameter)
            elif not self._can_step(group, parameter, gradient):
                parameter.grad = gradient.dense()
                others.append(parameter)
            else:
                # Some versions of AdamW pass its option amsgrad among the lists.
                own = [[] if isinstance(item, list) else item for item in lists]
                super()._init_group({**group, "params": [parameter]}, *own)  # type: ignore[misc]
                state = [item[0] for item in own[2:] if isinstance(item, list) and item]
                self._step(group, parameter, gradient, state)
        if any(parameter.grad is not None and parameter.grad.is_sparse for parameter in others):
            group["fused"] = False  # has no step for these; read after this call
        return super()._init_group({**group, "params": others}, *lists)  # type: ignore[misc]

    def _can_step(self, group: dict[str, Any], parameter: Tensor, gradient: OuterProduct) -> bool:
        unusual = group.get("capturable") or group.get("differentiable")
        held = [t for t in self.state[parameter].values() if isinstance(t, Tensor) and t.ndim]
        return (
            gradient.factored
            and takes_factors(parameter, len(gradient.left))
            and not unusual
            and parameter.device.type in _DEVICES
            and parameter.is_floating_point()
            and all(t.is_contiguous() and t.dtype == parameter.dtype for t in (parameter, *held))
        )

    def _step(
        self, group: dict[str, Any], weight: Tensor, gradient: OuterProduct, state: list[Any]
    ) -> None:
        # Set by torch.amp.GradScaler if fused=True was asked for.
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found_inf is None or not bool(found_inf):
            left = gradient.left if scale is None else gradient.left / scale.to(gradient.device)
            self._update(group, weight, left, gradient.right, *state)

    @abstractmethod
    def _update(
        self, group: dict[str, Any], weight: Tensor, left: Tensor, right: Tensor, *state: Any
    ) -> None:
        """Move the weight by one step; ``state`` is as ``torch.optim`` lists it."""


class _AdamFromFactors(_FromFactors):
    """The step of Adam and AdamW."""

    def _update(
        self, group: dict[str, Any], weight: Tensor, left: Tensor, right: Tensor, *state: Any
    ) -> None:
        mean, square, *largest, step = state
        step += 1
        kept = (mean, square, largest[0] if largest else None, step)
        decoupled = group.get("decoupled_weight_decay", isinstance(self, torch.optim.AdamW))
        passes.adam(group, weight, left, right, kept, decoupled)


class Adam(_AdamFromFactors, torch.optim.Adam):
    """Adam (Kingma and Ba 2015), exact, from the factors of the head's gradient.

    Arguments, state and ``state_dict`` are those of :class:`torch.optim.Adam`; each loads the
    state of the other. ``fused`` is on for parameters on a CPU or a CUDA device unless
    ``fused=False`` or ``foreach=True`` is given. Making it changes how the process handles freed
    memory: see :mod:`hyperlight.optim`.

    Raises:
        ConfigurationError: ``capturable`` or ``differentiable`` was asked for.

    >>> model = hl.hypernetize(
    ...     nn.Linear(200, 100), inputs={"scale": hl.Uniform(0.0, 0.5)}, hidden=(16, 128)
    ... )
    >>> optimizer = hl.optim.Adam(hl.parameter_groups(model, lr=1e-3))
    >>> model(torch.ones(4, 200), scale=0.3).square().mean().backward()
    >>> model.hypernet.head.weight.grad
    OuterProduct(rows=1, shape=(20100, 128), dtype=torch.float32)
    >>> optimizer.step()
    """


class AdamW(_AdamFromFactors, torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019), exact, from the factors of the head's gradient.

    As :class:`Adam`, with the arguments, state and ``state_dict`` of :class:`torch.optim.AdamW`.

    Raises:
        ConfigurationError: ``capturable`` or ``differentiable`` was asked for.

    >>> model = hl.hypernetize(nn.Linear(2, 1), inputs={"scale": hl.Uniform(0.0, 0.5)})
    >>> optimizer = hl.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.01)
    """


class SGD(_FromFactors, torch.optim.SGD):
    """SGD with momentum, exact, from the factors of the head's gradient.

    As :class:`Adam`, with the arguments, state and ``state_dict`` of :class:`torch.optim.SGD`.

    Raises:
        ConfigurationError: ``differentiable`` was asked for.

    >>> model = hl.hypernetize(nn.Linear(2, 1), inputs={"scale": hl.Uniform(0.0, 0.5)})
    >>> optimizer = hl.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    """

    def _update(
        self, group: dict[str, Any], weight: Tensor, left: Tensor, right: Tensor, *state: Any
    ) -> None:
        momentum = group["momentum"]
        buffer = state[0] if state else None
        first = momentum != 0 and buffer is None
        if first:
            buffer = self.state[weight]["momentum_buffer"] = torch.empty_like(weight)
        passes.sgd(group, weight, left, right, buffer, first)
