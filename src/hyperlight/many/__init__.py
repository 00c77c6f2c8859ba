"""Many sets of weights in one forward: one per sample, or the same data under each.

The files, in reading order: ``forward`` (which way a call runs), ``arguments`` (what of them
holds the samples), ``batch`` (a network that runs on the true batch), ``rules`` (its layers),
``track`` (where the samples are), ``fallback`` (vmap, and the loop).
"""

from .arguments import PerSample, Shared, open_arguments, unwrap
from .forward import Many, Run

__all__ = ["Many", "PerSample", "Run", "Shared", "open_arguments", "unwrap"]
