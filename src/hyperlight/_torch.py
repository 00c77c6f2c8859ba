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
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, fake_tensor
from torch.autograd import forward_ad
from torch.multiprocessing import reductions
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _python_dispatch, _pytree

# --- classes ----------------------------------------------------------------------------

# The common bases of BatchNorm1d to 3d, InstanceNorm1d to 3d, Dropout and ConvTranspose1d to 3d. A
# list of the public classes would miss their subclasses in other libraries.
NormBase = nn.modules.batchnorm._NormBase
BatchNorm = nn.modules.batchnorm._BatchNorm
Dropout = nn.modules.dropout._DropoutNd
InstanceNorm = nn.modules.instancenorm._InstanceNorm
ConvTranspose = nn.modules.conv._ConvTransposeNd

# Runs operations on shapes alone.
FakeTensorMode = fake_tensor.FakeTensorMode

# Tells whether a storage is still the one that was seen, without keeping it alive.
StorageWeakRef: Any = reductions.StorageWeakRef

# Flattens and rebuilds nested arguments and outputs, with the containers that other libraries
# register (ModelOutput of transformers). Its public twin is newer than the oldest supported torch.
pytree = _pytree

# Stands in Tensor for a method that it has not. Classes that have one answer operations themselves.
_NO_DISPATCH: Any = torch._C._disabled_torch_dispatch_impl


def is_wrapper(tensor: Tensor) -> bool:
    """Whether a subclass answers every operation itself: torchao's weights, DTensor, FakeTensor.

    Subclasses that only carry attributes or methods do not.
    """
    kind = type(tensor)
    return kind not in (Tensor, nn.Parameter) and kind.__torch_dispatch__ is not _NO_DISPATCH


def is_fake(tensor: Tensor) -> bool:
    """Whether it stands for a tensor of that shape, in a graph that is being made."""
    return isinstance(tensor, FakeTensor)


def _is_a(value: object, module: str, name: str) -> bool:
    """Whether it is of a class in a module that takes long to import, and need not be."""
    found = sys.modules.get(module)
    return found is not None and isinstance(value, getattr(found, name))


def is_distributed(tensor: Tensor) -> bool:
    """Whether it is a DTensor, of which each process holds a part."""
    return _is_a(tensor, "torch.distributed.tensor", "DTensor")


def is_sharded(module: nn.Module) -> bool:
    """Whether parameters that the module reads are in parts now, as ``fully_shard`` leaves them.

    Those of a submodule that is sharded on its own do not count: its call gathers them.
    """
    if torch.compiler.is_compiling() or not (
        torch.distributed.is_available() and torch.distributed.is_initialized()
    ):
        return False
    modules = [module]
    for own in modules:  # grows
        modules += [
            child
            for child in own.children()
            if not _is_a(child, "torch.distributed.fsdp", "FSDPModule")
        ]
    return any(is_distributed(p) for own in modules for p in own.parameters(recurse=False))


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


_dispatch_mode: Any = torch._C._get_dispatch_mode
_PROXY = torch._C._TorchDispatchModeKey.PROXY  # the mode of make_fx


def is_traced() -> bool:
    """Whether what runs becomes a graph: by torch.compile, export, ONNX, a jit trace or make_fx."""
    if torch.compiler.is_compiling():
        return True
    return tracing_state() is not None or _dispatch_mode(_PROXY) is not None


_eval_frame: Any = torch._C._dynamo.eval_frame


def never_compile_alone(function: Any) -> Any:
    """Decorate a function that torch.compile may inline but is not to compile on its own.

    After a graph break it tries that with every function that runs. For a ``__get__`` it then
    reads the attribute that is being read, without end.
    """
    action = _eval_frame._FrameAction
    strategy = _eval_frame._FrameExecStrategy(action.SKIP, action.DEFAULT)
    _eval_frame.set_code_exec_strategy(function.__code__, strategy)
    return function


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

# What torch.func wraps tensors in. Nothing public tells whether torch.vmap maps over one.
_functorch = torch._C._functorch


def is_batched(tensor: Tensor) -> bool:
    """Whether a vmap maps over this tensor, be it behind the wrappers of other transforms."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_batchedtensor(tensor):
            return True
        tensor = _functorch.get_unwrapped(tensor)
    return False


def hint(size: Any) -> int:
    """A size as a number; while a graph is traced, that of the example."""
    return size if type(size) is int else int(getattr(size, "node", size).hint)


# Whether a backward pass is running in this thread, as when a checkpoint is recomputed.
graph_task: Any = torch._C._current_graph_task_id


# Sees every operation that is run. Its home is private, though it is documented.
DispatchMode: Any = _python_dispatch.TorchDispatchMode


def identity(storage: torch.UntypedStorage) -> int:
    """Which piece of memory it is, as :class:`StorageWeakRef` knows it, as long as it lives."""
    return int(storage._cdata)


def arguments_of_operator(operator: Any) -> Any:
    """Names of its arguments, and which of them it writes to."""
    return operator._schema.arguments


def can_decompose(operator: Any) -> bool:
    """Whether PyTorch knows smaller operations that do the same."""
    return bool(operator._can_decompose())


def padding_of(convolution: Any) -> list[int]:
    """What a convolution puts around its input, as ``F.pad`` takes it; with "same" as well."""
    found: list[int] = convolution._reversed_padding_repeated_twice
    return found


def is_abstract() -> bool:
    """Whether a graph is made, or a transform of torch.func runs: memory says nothing then."""
    return bool(is_traced() or transforms_active())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device was too small; the CPU's allocator has no class for it."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def hook_tables(module: nn.Module) -> tuple[Any, Any]:
    """The hooks that run after a forward and before it, by number."""
    return module._forward_hooks, module._forward_pre_hooks


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


# --- binding ----------------------------------------------------------------------------


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written in place; nothing public tells. 0 if it is not counted."""
    return 0 if tensor.is_inference() else tensor._version


# --- the rest ---------------------------------------------------------------------------

# The log of what the exporter to ONNX knows to translate.
EXPORTER_LOG = "torch.onnx._internal.exporter._registration"

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


# --- buffers ----------------------------------------------------------------------------


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Restore every buffer afterwards: the same tensor with the same values."""
    kept = [
        (module._buffers, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffers, name, buffer, values in kept:
                buffers[name] = buffer.copy_(values)
