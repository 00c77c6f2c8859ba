r"""Optimizers that take the gradient of a dense head as two factors: exact, in one pass.

Change this to this::

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    optimizer = hl.optim.Adam(model.parameters(), lr=3e-4)

The gradient of a :class:`~hyperlight.Dense` head is the outer product :math:`g f^T` of the
gradient :math:`g` that reaches its prediction and the features :math:`f` that it reads. Once one
of these optimizers has been made for the head's weight, backward hands over the two factors
(:class:`OuterProduct`), and a step forms the gradient piece by piece while it uses it. A head so
small or narrow that this would take longer gets its dense gradient. The steps equal those of
:mod:`torch.optim` up to rounding. All other parameters go through PyTorch's own
fused implementation, and anything else that reads ``.grad`` finds the dense gradient.

Making one of these optimizers for a parameter on the CPU also changes how the process handles
memory. From then on glibc keeps up to 1 GiB of freed memory for reuse instead of returning it to
the operating system in every step, only to take it anew. Without, the primary's activations take
up to 1.5 times as long. Settings in the environment, such as ``MALLOC_TRIM_THRESHOLD_``, come
first.

The gain was measured on CPUs. On a GPU, heads are trained from the dense gradient by PyTorch's
fused optimizer, unless that gradient is larger than 1 GiB. A step to be captured in a CUDA graph
needs ``torch.optim.Adam(fused=True, capturable=True)`` itself (docs/benchmarks.md).

The files, in reading order: ``outer`` (the gradient as two factors), ``passes`` (what reads and
writes the whole head), ``optimizers``, ``parallel`` (factors between processes).
"""

from .optimizers import SGD, Adam, AdamW
from .outer import OuterProduct, dense_product, is_ordinary, takes_factors
from .parallel import FactorExchange, exchange_factors
from .passes import set_implementation, status

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "FactorExchange",
    "OuterProduct",
    "dense_product",
    "exchange_factors",
    "is_ordinary",
    "set_implementation",
    "status",
    "takes_factors",
]
