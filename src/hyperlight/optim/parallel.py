r"""Data-parallel training that sends the factors of a head's gradient instead of the gradient.

The gradient of a dense head is a sum of outer products :math:`\sum_m g_m f_m^T`, with a term for
every input of the hypernetwork in the step. Its mean over processes is the mean of their sums, so
:math:`P + K` numbers are sent for each term instead of :math:`P K`: about K times less.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from .._torch import ignore_in_ddp, ignored_in_ddp, running_ddp
from ..errors import ConfigurationError
from .outer import OuterProduct, send_factored


def exchange_factors(
    module: nn.Module, *, group: distributed.ProcessGroup | None = None
) -> FactorExchange:
    """Have the processes of a data-parallel training exchange factors for all dense heads.

    Call it in every process once there is a process group, with the module on its training
    device and not wrapped yet::

        model = hl.hypernetize(network, inputs={"scale": hl.Uniform(0.0, 0.5)})
        hl.exchange_factors(model)
        parallel = DistributedDataParallel(model)
        optimizer = hl.optim.Adam(parallel.parameters(), lr=3e-4)

    With Lightning Fabric: after ``fabric.launch()``, before ``fabric.setup(model, optimizer)``.
    Without it everything works too, but the dense gradient is sent.

    The wrapper no longer synchronises the weights of dense heads. They are made equal to those of
    rank 0 here. Their gradients are averaged at the end of each backward, before clipping or the
    optimizer reads them: exactly, by gathering the factors of all processes. This respects
    ``no_sync``. If the dense gradient is smaller, or a process has no factors (as with
    :mod:`torch.optim`), the dense gradient is averaged.

    As in ``DistributedDataParallel`` without ``find_unused_parameters``, every head must get a
    gradient in every process.

    Args:
        module: the module to be wrapped: a :class:`~hyperlight.HyperModel`, or one that holds
            some.
        group: the processes; the default is all of them. It must be the group of the wrapper.

    Returns:
        An object that counts the bytes sent.

    Raises:
        ConfigurationError: there is no process group, the module is wrapped already, it has no
            dense head that is trained, or it was given before.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        raise ConfigurationError(
            "exchange_factors: there is no process group. Call it in every process after "
            "torch.distributed.init_process_group(...) or fabric.launch(); with one process it is "
            "not needed."
        )
    if any(isinstance(part, DistributedDataParallel) for part in module.modules()):
        raise ConfigurationError(
            "exchange_factors: the module is wrapped in DistributedDataParallel already, which "
            "has taken its parameters. Call exchange_factors(model) first and wrap it then."
        )
    weights: dict[str, tuple[nn.Module, nn.Parameter]] = {}
    for name, head in module.named_modules():
        for leaf in getattr(head, "outer_product_gradients", ()):
            weight = head.get_parameter(leaf)
            if weight.requires_grad:
                weights[f"{name}.{leaf}".lstrip(".")] = (head, weight)
    if not weights:
        raise ConfigurationError(
            f"exchange_factors: {type(module).__name__} has no hyperlight.Dense head that is "
            "trained; there are no factors to exchange. Leave the call out."
        )
    ignored = ignored_in_ddp(module)
    if set(ignored) & set(weights):
        raise ConfigurationError(
            f"exchange_factors was called for this {type(module).__name__} before; once is enough."
        )
    return FactorExchange(module, weights, ignored, group)


class FactorExchange:
    """The exchange that :func:`exchange_factors` has set up.

    Attributes:
        sent: bytes that this process has passed to collective calls for gradients of heads.
        dense: bytes that it would have passed for their dense gradients.
    """

    def __init__(
        self,
        module: nn.Module,
        weights: dict[str, tuple[nn.Module, nn.Parameter]],
        ignored: list[str],
        group: distributed.ProcessGroup | None,
    ) -> None:
        # A group of its own keeps this apart from what the wrapper sends at the same time.
        ranks = distributed.get_process_group_ranks(group or distributed.group.WORLD)
        self._group = distributed.new_group(ranks)
        self._world = len(ranks)
        self._wrapper: weakref.ref[DistributedDataParallel] | None = None
        self.sent = 0
        self.dense = 0
        for head, weight in weights.values():
            distributed.broadcast(weight.detach(), ranks[0], group=self._group)
            head.register_forward_pre_hook(self._note)
            send_factored(weight)
            weight.register_post_accumulate_grad_hook(self._average)  # type: ignore[no-untyped-call]
        ignore_in_ddp(module, [*ignored, *weights])

    def _note(self, head: nn.Module, args: Any) -> None:
        """Remember the wrapper that this forward goes through, which can be in ``no_sync``."""
        wrapper = running_ddp()
        if torch.is_grad_enabled():
            self._wrapper = None if wrapper is None else weakref.ref(wrapper)

    @torch.no_grad()
    def _average(self, weight: Tensor) -> None:
        wrapper = self._wrapper() if self._wrapper is not None else None
        if wrapper is None or not wrapper.require_backward_grad_sync:
            return
        gradient = weight.grad
        assert gradient is not None
        size = gradient.element_size()
        self.dense += gradient.numel() * size
        factored = isinstance(gradient, OuterProduct) and gradient.factored
        rows = len(gradient.left) if factored else -1  # type: ignore[attr-defined]
        counts = self._counts(rows, weight.device)
        total, columns = gradient.shape
        most = max(counts)
        # Gathering sends every part to all others; a sum travels round a ring twice.
        gathered, summed = self._world * most * (total + columns), 2 * total * columns
        if min(counts) < 0 or gathered >= summed:
            dense = gradient.dense() if isinstance(gradient, OuterProduct) else gradient
            distributed.all_reduce(dense, group=self._group)
            weight.grad = dense.div_(self._world)
            self.sent += dense.numel() * size
            return
        assert isinstance(gradient, OuterProduct)
        packed = torch.zeros(most, total + columns, dtype=weight.dtype, device=weight.device)
        packed[:rows, :total] = gradient.left
        packed[:rows, total:] = gradient.right
        everyone = [torch.empty_like(packed) for _ in counts]
        distributed.all_gather(everyone, packed, group=self._group)
        self.sent += packed.numel() * size
        held = torch.cat([part[:n] for part, n in zip(everyone, counts, strict=True)])
        averaged = OuterProduct(held[:, :total] / self._world, held[:, total:].contiguous())
        weight.grad = averaged if len(held) <= columns else averaged.dense()

    def _counts(self, rows: int, device: torch.device) -> list[int]:
        """The rows of every process, the same list in all."""
        own = torch.tensor([rows], device=device)
        everyone = [torch.empty_like(own) for _ in range(self._world)]
        distributed.all_gather(everyone, own, group=self._group)
        self.sent += own.element_size()
        return [int(count) for count in everyone]
