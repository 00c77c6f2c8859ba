"""Every private name of PyTorch that the library uses, with why and what happens without it.

A new release of PyTorch may rename any of them, so no other file touches one.

Two private contracts cannot be listed as names. ``hyperlight.optim`` overrides
``Optimizer._init_group``, which ``torch.optim`` calls once for each group in the middle of
``step``; without that call every parameter would be stepped densely. ``hyperlight.bind`` copies
the dictionaries that ``nn.Module`` keeps (``_parameters``, ``_modules``, ``_forward_hooks`` and so
on); ``nn.Module`` pickles them itself, so their names are as stable as its pickles.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch._subclasses import fake_tensor
from torch.autograd import forward_ad
from torch.multiprocessing import reductions
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree

# --- classes ----------------------------------------------------------------------------

# The common bases of BatchNorm1d to 3d, InstanceNorm1d to 3d, Dropout and ConvTranspose1d to 3d. A list of
# the public classes would miss their subclasses in other libraries.
NormBase = nn.modules.batchnorm._NormBase
BatchNorm = nn.modules.batchnorm._BatchNorm
Dropout = nn.modules.dropout._DropoutNd
InstanceNorm = nn.modules.instancenorm._InstanceNorm
ConvTranspose = nn.modules.conv._ConvTransposeNd

# Runs a module on shapes alone.
FakeTensorMode: Any = fake_tensor.FakeTensorMode

# Tells whether a storage is still the one that was seen, without keeping it alive.
StorageWeakRef: Any = reductions.StorageWeakRef

# Flattens and rebuilds nested arguments and outputs, with the containers that other libraries
# register (ModelOutput of transformers). Its public twin is newer than the oldest supported torch.
pytree = _pytree

# --- the gradient as factors ------------------------------------------------------------

# Makes a tensor subclass without storage: the only way to make one that holds no matrix.
wrapper_tensor: Any = Tensor._make_wrapper_subclass

# Turns off __torch_function__ for a subclass. Without it every operation on an OuterProduct would
# pass through Python twice.
no_torch_function: Any = torch._C._disabled_torch_function_impl

# The operators by which OuterProduct keys its rules; some of them are private.
aten = torch.ops.aten

# What GradScaler.unscale_ calls. OuterProduct has a rule for it, which falls back to it.
unscale: Any = torch._amp_foreach_non_finite_check_and_unscale_

# Tell whether autograd alone follows a tensor, so that the library's own autograd functions may be
# used: a graph is being traced; a transform of torch.func is active; the level of forward mode, -1
# outside. A wrong answer would make a transform fail or miss a derivative.
tracing_state: Any = torch._C._get_tracing_state
transforms_active: Any = torch._C._are_functorch_transforms_active
forward_mode_level: Any = functools.partial(operator.attrgetter("_current_level"), forward_ad)

# PyTorch's fused optimizer steps, called on a part of a weight. torch.optim has them for whole
# parameters only, for which it needs the whole dense gradient.
fused_adam: Any = torch._fused_adam_
fused_adamw: Any = torch._fused_adamw_
fused_sgd: Any = torch._fused_sgd_


def onednn_linear(features: Tensor, weight: Tensor) -> Tensor | None:
    """``features @ weight.T`` by oneDNN, up to twice as fast as MKL's on a tall weight.

    None if this build has no such operator or it is turned off: use ``F.linear`` then.
    """
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if linear is None or not torch.backends.mkldnn.enabled or not weight.is_contiguous():
        return None
    found: Tensor = linear(features, weight, None, "none", [], "")
    return found


# --- many sets of weights ---------------------------------------------------------------

# Whether torch.vmap maps over a tensor. Nothing public tells.
is_batched: Any = torch._C._functorch.is_batchedtensor


def is_mapped(tensor: Tensor) -> bool:
    """Whether the innermost transform is a vmap that maps over this tensor."""
    functorch = torch._C._functorch
    level = functorch.maybe_get_level(tensor)
    return bool(is_batched(tensor) and level == functorch.maybe_current_level())


def hint(size: Any) -> int:
    """A size as a number; while a graph is traced, that of the example."""
    return size if type(size) is int else int(getattr(size, "node", size).hint)


# Whether a backward pass is running in this thread, as when a checkpoint is recomputed.
graph_task: Any = torch._C._current_graph_task_id


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device was too small; the CPU's allocator has no class for it."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def canonical_mask(mask: Any, name: str, other: Any, dtype: torch.dtype) -> Any:
    """A mask of attention as the numbers that are added to its scores."""
    return nn.functional._canonical_mask(
        mask=mask,
        mask_name=name,
        other_type=nn.functional._none_or_dtype(other),
        other_name="attn_mask",
        target_type=dtype,
        check_other=False,
    )


class VmapLevel:
    """The innermost :func:`torch.vmap`, and the tensors behind those that it maps over.

    A :class:`torch.autograd.Function` with a vmap rule is the public way; it takes ten times the
    Python time of a small layer.
    """

    def __init__(self) -> None:
        self._interpreter: Any = retrieve_current_functorch_interpreter()
        self._level = self._interpreter.level()

    def open(self, tensor: Tensor) -> tuple[Tensor, bool]:
        """The tensor with the mapped dimension first, and whether it has one at this level."""
        inside, dim = torch._C._functorch._unwrap_batched(tensor, self._level)
        return (inside, False) if dim is None else (inside.movedim(dim, 0), True)

    def below(self) -> Any:
        """Return a context in which operations run on the opened tensors."""
        return self._interpreter.lower()

    def close(self, tensor: Tensor, dim: int) -> Tensor:
        """Undo :meth:`open`: map over that dimension again."""
        return torch._C._functorch._add_batch_dim(tensor, dim, self._level)


# --- the rest ---------------------------------------------------------------------------

# Draws from Gamma(alpha, 1) with a generator, which torch.distributions.Gamma does not take.
draw_gamma: Callable[..., Tensor] = torch._standard_gamma


def running_ddp() -> DistributedDataParallel | None:
    """The wrapper whose forward is running, which knows whether it is inside ``no_sync``."""
    return DistributedDataParallel._active_ddp_module


def ignored_in_ddp(module: nn.Module) -> list[str]:
    """The parameters that ``DistributedDataParallel`` will not synchronise for this module."""
    return list(getattr(module, "_ddp_params_and_buffers_to_ignore", ()))


def ignore_in_ddp(module: nn.Module, names: list[str]) -> None:
    """Set them. Otherwise the dense gradient would be sent beside the factors."""
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)  # type: ignore[no-untyped-call]
