"""The paper's three tasks in the three sizes of every study.

Studies that start from the same settings share their runs. All follow the paper to the letter
(section A; every input is encoded for itself) where they do not say otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..engine import Spec
from .base import Place, base

__all__ = [
    "REDUCED",
    "bayes",
    "bayes_brief",
    "bayes_short",
    "flowers",
    "hypermorph",
    "hypermorph_brief",
    "hypermorph_family",
    "hypermorph_short",
    "reduced",
    "seeds",
]

REDUCED = {
    "bayes": {
        "smoke": "scikit-learn's digits, 20 steps",
        "cpu": "MNIST in full, 1200 steps (3 epochs) in batches of 128, 3 seeds",
    },
    "bayes_brief": {
        "smoke": "scikit-learn's digits, 20 steps",
        "cpu": "MNIST in full in the place of Flowers-102, so LeNet in the place of the "
        "ResNet-like network; 600 steps (1.5 epochs) in batches of 128, 3 seeds",
    },
    "bayes_short": {
        "smoke": "scikit-learn's digits, 20 steps",
        "cpu": "MNIST in full, 300 steps in batches of 64",
    },
    "hypermorph": {
        "smoke": "scikit-learn's digits at 16x16, a U-Net of 2 levels with 4 channels, 10 steps",
        "cpu": "PTBP (4 labels) at half resolution, 96x80, in the place of OASIS; a U-Net of 4 "
        "levels with 16 channels, 600 steps in batches of 4 at the rate 3e-4 (the paper found "
        "1e-4 to 3e-3 alike), 32 test pairs, 3 seeds",
    },
    "hypermorph_short": {
        "smoke": "scikit-learn's digits at 16x16, a U-Net of 2 levels with 4 channels, 10 steps",
        "cpu": "",
    },
    "hypermorph_family": {
        "smoke": "scikit-learn's digits at 16x16, a U-Net of 2 levels with 4 channels, 10 steps",
        "cpu": "",
    },
    "hypermorph_brief": {
        "smoke": "scikit-learn's digits at 16x16, a U-Net of 2 levels with 4 channels, 10 steps",
        "cpu": "PTBP (4 labels) at a quarter of its resolution, 48x40, in the place of OASIS; a "
        "U-Net of 4 levels with 16 channels, 600 steps in batches of 4 at the rate 3e-4 (the "
        "paper found 1e-4 to 3e-3 alike), 32 test pairs, 3 seeds",
    },
}


def reduced(*names: str) -> Mapping[str, str]:
    """What a study leaves out that has these settings, by size."""
    return {
        size: "; ".join(dict.fromkeys(REDUCED[name][size] for name in names))
        for size in ("smoke", "cpu")
    }


def seeds(place: Place) -> range:
    """The replicas of the paper (5), of two cores (3), of a smoke test (1)."""
    return place.replicas(smoke=1, cpu=3, paper=5)


def bayes(place: Place, **config: Any) -> Spec:
    """Bayesian networks on MNIST (sections 5.1, A.2)."""
    if place.size == "smoke":
        return _digits(place, config)
    if place.size == "cpu":
        return _mnist(place, config, steps=1200)
    # 20 epochs, tested every quarter of one.
    how = {"steps": 7500, "evaluate_every": 94, "device": place.device}
    return base("bayes", {**_common(place), "data": "mnist", **config}, how)


def bayes_brief(place: Place, **config: Any) -> Spec:
    """Bayesian networks on Flowers-102 where the paper compares many settings (B.2, B.3).

    On two cores MNIST is in its place.
    """
    if place.size == "cpu":
        return _mnist(place, config, steps=600)
    return flowers(place, **config)


def flowers(place: Place, **config: Any) -> Spec:
    """Bayesian networks on Flowers-102 (sections 5.1, A.2)."""
    if place.size == "smoke":
        return _digits(place, config)
    if place.size == "cpu":
        small = {"data": "flowers102", "size": 64, "evaluation_images": 250, "posterior_samples": 2}
        how = {"steps": 1000, "evaluate_every": 100, "batch_size": 32, "device": place.device}
        return base("bayes", {**_common(place), **small, **config}, how)
    # 500 epochs of 1,020 images in batches of 32; the paper gives neither number.
    how = {"steps": 16_000, "evaluate_every": 160, "batch_size": 32, "device": place.device}
    return base("bayes", {**_common(place), "data": "flowers102", **config}, how)


def bayes_short(place: Place, **config: Any) -> Spec:
    """Bayesian networks on MNIST, for grids of hundreds of runs."""
    if place.size == "smoke":
        return _digits(place, config)
    few = {"evaluation_gammas": 3, **config}
    return _mnist(place, few, steps=300, evaluate_every=25, batch_size=64)


def _common(place: Place) -> dict[str, Any]:
    return {"encoding": "per-input", "data_dir": place.data_dir}


def _mnist(place: Place, config: Mapping[str, Any], **how: Any) -> Spec:
    few = {"data": "mnist", "evaluation_images": 500, "posterior_samples": 2}
    how = {"evaluate_every": 50, "device": place.device, **how}
    return base("bayes", {**_common(place), **few, **config}, how)


def _digits(place: Place, config: Mapping[str, Any]) -> Spec:
    small = {"data": "digits", "hidden": (4, 8)}
    few = {"evaluation_images": 64, "evaluation_gammas": 2, "posterior_samples": 2}
    how = {"steps": 20, "evaluate_every": 10, "batch_size": 32, "device": place.device}
    return base("bayes", {**_common(place), **small, **few, **config}, how)


def hypermorph(place: Place, **config: Any) -> Spec:
    """Registration (sections 5.1, A.3)."""
    if place.size == "cpu":
        return _ptbp(place, {"size": (96, 80), **config})
    return _hypermorph(place, config)


def hypermorph_brief(place: Place, **config: Any) -> Spec:
    """The same where the paper compares many settings (B.1), on two cores with smaller images."""
    if place.size == "cpu":
        return _ptbp(place, {"size": (48, 40), **config})
    return _hypermorph(place, config)


def hypermorph_short(place: Place, **config: Any) -> Spec:
    """Registration, for grids of hundreds of runs."""
    if place.size == "smoke":
        return _hypermorph(place, config)
    return _ptbp(place, {"size": (48, 40), "channels": 8, **config}, steps=300)


def hypermorph_family(place: Place, **config: Any) -> Spec:
    """Registration, to be compared with plain networks for single gammas."""
    if place.size == "cpu":
        return _ptbp(place, {"size": (96, 80), **config}, steps=1000)
    return _hypermorph(place, config)


def _hypermorph(place: Place, config: Mapping[str, Any]) -> Spec:
    if place.size == "smoke":
        small = {"data": "digits", "size": (16, 16), "levels": 2, "channels": 4, "hidden": (4, 8)}
        few = {"evaluation_pairs": 4, "evaluation_gammas": 2, "final_pairs": 4, "tune_steps": 1}
        how = {"steps": 10, "evaluate_every": 5, "device": place.device}
        return base("hypermorph", {**_common(place), **small, **few, **config}, how)
    # 3000 epochs of 265 scans in batches of 4.
    how = {"steps": 198_750, "evaluate_every": 6_625, "device": place.device}
    return base("hypermorph", {**_common(place), "data": "oasis", **config}, how)


def _ptbp(place: Place, config: Mapping[str, Any], steps: int = 600) -> Spec:
    small = {"data": "ptbp", "levels": 4, "channels": 16}
    few = {"evaluation_pairs": 16, "final_pairs": 32, "tune_steps": 5}
    how = {"steps": steps, "evaluate_every": 50, "lr": 3e-4, "device": place.device}
    return base("hypermorph", {**_common(place), **small, **few, **config}, how)
