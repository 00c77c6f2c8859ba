"""Many sets of weights in one forward: one per sample, or the same data under each.

The files, in reading order: ``forward`` (the run), ``convolutions`` (the layers for which
PyTorch's own way is slow).
"""

from .forward import Shared, refuse_mixing, run_each, split_samples

__all__ = ["Shared", "refuse_mixing", "run_each", "split_samples"]
