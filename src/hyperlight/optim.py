r"""Optimizers that take the gradient of a dense head as its factors: exact, in one pass.

Change this to this::

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    optimizer = hl.optim.Adam(model.parameters(), lr=3e-4)

The gradient of a :class:`~hyperlight.Dense` head is the outer product of what reaches its
prediction and the features it read. Once one of these optimizers has been made for its weight,
backward hands over the two factors (:class:`~hyperlight.factored.OuterProduct`), and a
step makes the gradient piece by piece where it is used. The steps are those of
:mod:`torch.optim`, to rounding. All other parameters go through PyTorch's own fused
implementation. Whatever else reads ``.grad`` finds the dense gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import kernels
from .errors import ConfigurationError
from .factored import OuterProduct, keep_factored
from .kernels import set_implementation, status

__all__ = ["SGD", "Adam", "AdamW", "set_implementation", "status"]

# The devices that have PyTorch's fused optimizers in every version that is supported.
_DEVICES = ("cpu", "cuda")

if TYPE_CHECKING:
    _Base = torch.optim.Optimizer
else:
    _Base = object


class _Factored(_Base):
    """What the optimizers share: which parameters are updated here, and which by PyTorch."""

    _short: torch.dtype | None = None  # of moments that take less memory than the weight

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As :meth:`torch.optim.Optimizer.add_param_group`."""
        for option in ("capturable", "differentiable"):
            if param_group.get(option, self.defaults.get(option)):
                raise ConfigurationError(
                    f"{option}=True: {type(self).__name__} of hyperlight.optim makes steps that "
                    "cannot be captured in a graph or differentiated. Use "
                    f"torch.optim.{type(self).__name__}, which trains the same model."
                )
        super().add_param_group(param_group)
        self._take(self.param_groups[-1])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            self._take(group)

    def _take(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            if parameter.ndim == 2 and parameter.device.type in _DEVICES:
                keep_factored(parameter, self)
                if parameter.device.type == "cpu":
                    kernels.keep_freed_memory()
        if group.get("fused") is None and not group.get("foreach"):
            group["fused"] = all(
                p.device.type == "cpu" and p.is_floating_point() for p in group["params"]
            )

    def _init_group(self, group: dict[str, Any], *lists: Any) -> Any:
        """Step the parameters that have factors, and list the others for PyTorch's step.

        ``torch.optim`` calls this once for every group, in the middle of ``step``.
        """
        others = []
        for parameter in group["params"]:
            gradient = parameter.grad
            if not isinstance(gradient, OuterProduct):
                others.append(parameter)
            elif not self._takes(group, parameter, gradient):
                parameter.grad = gradient.dense()
                others.append(parameter)
            else:
                self._settle(parameter)
                # AdamW of torch 2.6 has its amsgrad among the lists.
                given: list[Any] = [[] if isinstance(item, list) else item for item in lists]
                self._listed({**group, "params": [parameter]}, *given)
                state = tuple(item for item in given if isinstance(item, list))
                self._step_factored(group, parameter, gradient, state)
        return self._listed({**group, "params": others}, *lists)

    def _settle(self, parameter: Tensor) -> None:
        """Bring the state to the form that the step from factors keeps it in."""

    def _takes(self, group: dict[str, Any], parameter: Tensor, gradient: OuterProduct) -> bool:
        unusual = group.get("capturable") or group.get("differentiable")
        held = [t for t in self.state[parameter].values() if isinstance(t, Tensor) and t.ndim]
        return (
            gradient.factored
            and not unusual
            and parameter.device.type in _DEVICES
            and parameter.is_floating_point()
            and all(
                t.is_contiguous() and t.dtype in (parameter.dtype, self._short)
                for t in (parameter, *held)
            )
        )

    def _listed(self, group: dict[str, Any], *lists: Any) -> Any:
        return super()._init_group(group, *lists)  # type: ignore[misc]

    def _step_factored(
        self,
        group: dict[str, Any],
        weight: Tensor,
        gradient: OuterProduct,
        state: tuple[list[Any], ...],
    ) -> None:
        # Set by torch.amp.GradScaler where fused=True was asked for.
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found_inf is not None and bool(found_inf):
            return
        left = gradient.left
        if scale is not None:
            left = left / scale.to(left.device)
        self._update(
            group, weight, left, gradient.right, *(items[0] for items in state[2:] if items)
        )

    def _update(
        self, group: dict[str, Any], weight: Tensor, left: Tensor, right: Tensor, *state: Any
    ) -> None:
        raise AssertionError("an optimizer says how it moves a weight")


_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class _Moments(_Factored):
    """The step of Adam and AdamW."""

    def __init__(
        self, params: Any, *args: Any, moments: torch.dtype | None = None, **options: Any
    ) -> None:
        if moments not in (None, torch.float32, torch.bfloat16):
            raise ConfigurationError(
                f"moments was {moments!r}; expected None (as the weights are), torch.float32 or "
                "torch.bfloat16."
            )
        self._short = torch.bfloat16 if moments is torch.bfloat16 else None
        super().__init__(params, *args, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_short": self._short}

    def _settle(self, parameter: Tensor) -> None:
        if self._short is None or parameter.dtype != torch.float32:
            return
        state = self.state[parameter]
        if not state:  # as torch.optim would make it, but for the dtype
            state["step"] = torch.tensor(0.0)
            for name in _MOMENTS[: 3 if self._amsgrad(parameter) else 2]:
                state[name] = torch.zeros_like(parameter, dtype=self._short)
        for name in _MOMENTS:
            if name in state and state[name].dtype != self._short:
                state[name] = state[name].to(self._short)

    def _amsgrad(self, parameter: Tensor) -> bool:
        groups = [g for g in self.param_groups if any(p is parameter for p in g["params"])]
        return bool(groups[0]["amsgrad"])

    def _listed(self, group: dict[str, Any], *lists: Any) -> Any:
        if self._short is not None:
            for parameter in group["params"]:
                if not isinstance(parameter.grad, OuterProduct):
                    self._lengthen(parameter)
        return super()._listed(group, *lists)

    def _lengthen(self, parameter: Tensor) -> None:
        """Bring moments back to the dtype of their weight, for a step of PyTorch's."""
        state = self.state.get(parameter, {})
        for name in _MOMENTS:
            if name in state and state[name].dtype == self._short != parameter.dtype:
                state[name] = state[name].to(parameter.dtype)

    def _update(
        self, group: dict[str, Any], weight: Tensor, left: Tensor, right: Tensor, *state: Any
    ) -> None:
        mean, square, *largest, step = state
        step += 1
        beta1, beta2 = group["betas"]
        kernels.adam(
            weight,
            mean,
            square,
            largest[0] if largest else None,
            step,
            left,
            right,
            lr=group["lr"],
            beta1=float(beta1),
            beta2=float(beta2),
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
            decoupled=group.get("decoupled_weight_decay", isinstance(self, torch.optim.AdamW)),
        )


class Adam(_Moments, torch.optim.Adam):
    r"""Adam (Kingma and Ba 2015), exact, from the factors of the head's gradient.

    The arguments, the state and ``state_dict`` are those of :class:`torch.optim.Adam`, either of
    which loads the state of the other. ``capturable`` and ``differentiable`` are refused; ``fused``
    is on for parameters on the CPU unless ``fused=False`` or ``foreach=True`` is given.

    Args:
        params: as of :class:`torch.optim.Adam`.
        args: the same.
        moments: ``torch.bfloat16`` keeps both moments of a float32 head in half of the memory,
            rounded stochastically, which is not exact any more; by default they are kept as the
            weights are.
        options: as of :class:`torch.optim.Adam`.

    Raises:
        ConfigurationError: ``capturable`` or ``differentiable`` was asked for, or another dtype.

    >>> model = hl.hypernetize(nn.Linear(2, 1), inputs={"scale": hl.Uniform(0.0, 0.5)})
    >>> optimizer = hl.optim.Adam(hl.parameter_groups(model, lr=1e-3))
    >>> model(torch.ones(4, 2), scale=0.3).square().mean().backward()
    >>> model.hypernet.head.weight.grad
    OuterProduct(rows=1, shape=(3, 128), dtype=torch.float32)
    >>> optimizer.step()
    """


class AdamW(_Moments, torch.optim.AdamW):
    r"""AdamW (Loshchilov and Hutter 2019), exact, from the factors of the head's gradient.

    As :class:`Adam`, with the arguments, state and ``state_dict`` of :class:`torch.optim.AdamW`.

    Raises:
        ConfigurationError: ``capturable`` or ``differentiable`` was asked for.

    >>> model = hl.hypernetize(nn.Linear(2, 1), inputs={"scale": hl.Uniform(0.0, 0.5)})
    >>> optimizer = hl.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.01)
    """


class SGD(_Factored, torch.optim.SGD):
    r"""SGD with momentum, exact, from the factors of the head's gradient.

    The arguments, the state and ``state_dict`` are those of :class:`torch.optim.SGD`, either of
    which loads the state of the other. ``differentiable`` is refused; ``fused`` is on for
    parameters on the CPU unless ``fused=False`` or ``foreach=True`` is given.

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
        kernels.sgd(
            weight,
            buffer,
            left,
            right,
            lr=group["lr"],
            momentum=momentum,
            dampening=group["dampening"],
            weight_decay=group["weight_decay"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            first=first,
        )
