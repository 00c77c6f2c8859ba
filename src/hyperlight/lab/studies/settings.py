"""The paper's three tasks in the three sizes of every study.

Studies that start from the same settings share their runs. All follow the paper to the letter
(section A; every input is encoded for itself) where they do not say otherwise.
"""

from __future__ import annotations

from typing import Any

from ..engine import Spec
from .base import Place, base

__all__ = ["REDUCED", "bayes", "hypermorph", "seeds"]

REDUCED = {
    "bayes": {
        "smoke": "scikit-learn's digits, 20 steps",
        "cpu": "MNIST in full, 1200 steps (3 epochs) in batches of 128, 3 seeds",
    },
    "hypermorph": {
        "smoke": "scikit-learn's digits at 16x16, a U-Net of 2 levels with 4 channels, 10 steps",
        "cpu": "PTBP at 96x80 in the place of OASIS, a U-Net of 4 levels with 16 channels, 600 "
        "steps in batches of 4, 3 seeds",
    },
}


def seeds(place: Place) -> range:
    """The replicas of the paper (5), of two cores (3), of a smoke test (1)."""
    return place.replicas(smoke=1, cpu=3, paper=5)


def bayes(place: Place, **config: Any) -> Spec:
    """Bayesian networks on MNIST (sections 5.1, A.2)."""
    common = {"encoding": "per-input", "data_dir": place.data_dir}
    if place.size == "smoke":
        small = {"data": "digits", "hidden": (4, 8), "evaluation_images": 64}
        how = {"steps": 20, "evaluate_every": 10, "batch_size": 32}
        return base("bayes", {**common, **small, **config}, {**how, "device": place.device})
    how = {"steps": 1200, "evaluate_every": 50}
    if place.size == "paper":
        how = {"steps": 7500, "evaluate_every": 94}  # 20 epochs, every quarter of one
    return base("bayes", {**common, "data": "mnist", **config}, {**how, "device": place.device})


def hypermorph(place: Place, **config: Any) -> Spec:
    """Registration (sections 5.1, A.3)."""
    common = {"encoding": "per-input", "data_dir": place.data_dir}
    if place.size == "smoke":
        small = {"data": "digits", "size": (16, 16), "levels": 2, "channels": 4, "hidden": (4, 8)}
        few = {"evaluation_pairs": 8, "evaluation_gammas": 2, "final_pairs": 8, "tune_steps": 1}
        how = {"steps": 10, "evaluate_every": 5}
        return base("hypermorph", {**common, **small, **few, **config}, how)
    if place.size == "cpu":
        small = {"data": "ptbp", "size": (96, 80), "levels": 4, "channels": 16}
        how = {"steps": 600, "evaluate_every": 50}
        return base(
            "hypermorph", {**common, **small, **config}, {**how, "lr": 3e-4, "device": place.device}
        )
    # 3000 epochs of 265 scans in batches of 4.
    how = {"steps": 198_750, "evaluate_every": 6_625}
    return base(
        "hypermorph", {**common, "data": "oasis", **config}, {**how, "device": place.device}
    )
