"""Slow, obvious twins of what the library does fast; compared in float64."""

from .twins import (
    copied_primary,
    naive_encoded,
    naive_encoding,
    naive_features,
    naive_predictions,
    naive_theta_gradients,
    two_stage_gradients,
)

__all__ = [
    "copied_primary",
    "naive_encoded",
    "naive_encoding",
    "naive_features",
    "naive_predictions",
    "naive_theta_gradients",
    "two_stage_gradients",
]
