"""HyperLight side by side with other libraries, on the same work, in one interleaved run.

``python -m benchmarks --help``; what is compared and how: docs/benchmarks.md.

Nothing here imports ``hyperlight`` before a subject asks for it: a peer's process does not see this
HyperLight, and the process of HyperLight 0.0.5 has another package of that name.
"""
