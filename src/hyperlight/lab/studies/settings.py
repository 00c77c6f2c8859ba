"""The paper's three tasks in the three sizes of every study.

Studies that start from the same settings share their runs. All follow the paper to the letter
(section A; every input is encoded for itself) where they do not say otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..engine import Spec
from .base import Place, base, grid

__all__ = [
    "REDUCED",
    "architectures",
    "bayes",
    "bayes_brief",
    "bayes_short",
    "flowers",
    "hypermorph",
    "hypermorph_family",
    "optimizers",
    "reduced",
    "registration",
    "scale_segmentation",
    "scale_short",
    "seeds",
    "strategies",
]

# Feature channels of the ResNet-like network that two cores train on Flowers-102.
STAGES = (8, 16, 32, 32, 32)

_DIGITS = "scikit-learn's digits, a smaller hypernetwork, 20 steps"
_SMALL_DIGITS = (
    "scikit-learn's digits at 16x16, a U-Net of 2 levels with 4 channels, a smaller hypernetwork, "
    "10 steps"
)
_PTBP = "PTBP (4 labels) at half resolution, 96x80, in the place of OASIS"
_ALIKE = "the paper found 1e-4 to 3e-3 alike"
_FLOWERS = (
    "Flowers-102 at 64x64, a ResNet-like network of 5 stages with 8 to 32 channels, 1000 steps (31 "
    f"epochs) in batches of 32 at the rate 3e-4 with Adam and 3e-3 with SGD ({_ALIKE}), 3 seeds"
)
_SEGMENTATION = (
    f"{_PTBP}, a U-Net of 4 levels with 16 channels, 500 steps in batches of 4, 32 test images, 3 "
    "seeds"
)

# What a study leaves out against the paper, by settings and size.
REDUCED = {
    "bayes": {
        "smoke": _DIGITS,
        "cpu": "MNIST in full, 1200 steps (3 epochs) in batches of 128, 3 seeds",
    },
    "bayes_brief": {
        "smoke": _DIGITS,
        "cpu": "MNIST in full in the place of Flowers-102, so LeNet in the place of the "
        "ResNet-like network; 600 steps (1.5 epochs) in batches of 128, 3 seeds",
    },
    "bayes_short": {
        "smoke": _DIGITS,
        "cpu": "MNIST, 300 steps in batches of 64, 2000 test images",
    },
    "flowers": {
        "smoke": f"{_DIGITS}, a ResNet-like network of 3 stages",
        "cpu": f"{_FLOWERS}, 1000 test images",
    },
    "hypermorph": {
        "smoke": _SMALL_DIGITS,
        "cpu": f"{_PTBP}, a U-Net of 4 levels with 8 channels, 1200 steps in batches of 4, at "
        "four rates of Adam and five of the paper's eight of SGD, 32 test pairs, 3 seeds",
    },
    "hypermorph_family": {
        "smoke": _SMALL_DIGITS,
        "cpu": f"{_PTBP}, a U-Net of 4 levels with 8 channels, 800 steps in batches of 4, 32 test "
        "pairs, 3 seeds",
    },
    "architectures": {
        "smoke": _SMALL_DIGITS,
        "cpu": "segmentation by a scale-space network (U-Net of 4 levels with 8 channels) on PTBP "
        "(4 labels) at a quarter of its resolution, 48x40, in the place of HyperMorph on OASIS, as "
        f"it learns in a tenth of the time; 300 steps in batches of 4 at the rate 1e-3 ({_ALIKE}), "
        "32 test images, 3 seeds",
    },
    "scale_segmentation": {
        "smoke": _SMALL_DIGITS,
        "cpu": f"{_SEGMENTATION}; the rate is 1e-3 with Adam and 3e-3 with SGD ({_ALIKE})",
    },
    "scale_family": {
        "smoke": _SMALL_DIGITS,
        "cpu": _SEGMENTATION,
    },
    "scale_short": {
        "smoke": _SMALL_DIGITS,
        "cpu": "PTBP (4 labels) at a quarter of its resolution, 48x40, a U-Net of 4 levels with 8 "
        "channels, 300 steps in batches of 4, 32 test images",
    },
    "strategies": {
        "smoke": "scikit-learn's digits at 16x16, 2 stages with 4 channels, 10 steps",
        "cpu": f"{_SEGMENTATION}; in the place of classification on Flowers-102, where MIP is at 4 "
        "% after 1000 steps",
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


# The rates that registration is tried at (A.3), by size and optimizer.
_REGISTRATION_RATES: Mapping[str, Mapping[str, Sequence[float]]] = {
    "smoke": {"adamw": (1e-4,), "sgd": (3e-2,)},
    "cpu": {"adamw": (1e-4, 3e-4, 1e-3, 3e-3), "sgd": (3e-2, 1e-2, 3e-3, 3e-4, 3e-5)},
    "paper": {
        "adamw": (1e-4, 3e-4, 1e-3, 3e-3),
        "sgd": (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5),
    },
}


def registration(place: Place) -> list[Spec]:
    """HyperMorph with both optimizers at the rates that the paper tried (A.3), or some of them."""
    base = hypermorph(place)
    return [
        spec
        for optimizer, rates in _REGISTRATION_RATES[place.size].items()
        for spec in grid(
            base,
            seeds=seeds(place),
            training={"optimizer": [optimizer], "lr": rates},
        )
    ]


def optimizers(place: Place, base: Spec) -> list[dict[str, list[Any]]]:
    """Adam and SGD with the rate of each, as axes of a grid.

    The paper has one rate for both (A.4). Where there are few steps SGD gets the greatest of those
    that it found to be alike.
    """
    rate = 3e-3 if place.size == "cpu" else base.training.lr
    return [
        {"optimizer": [base.training.optimizer], "lr": [base.training.lr]},
        {"optimizer": ["sgd"], "lr": [rate]},
    ]


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
    if place.size == "smoke":
        return _digits(place, config)
    if place.size == "cpu":
        # The average over gammas is not asked for here, and takes as long as the training.
        return _mnist(place, {"posterior_samples": 2, **config}, steps=600)
    return flowers(place, **config)


def flowers(place: Place, **config: Any) -> Spec:
    """Bayesian networks on Flowers-102 (sections 5.1, A.2)."""
    if place.size == "smoke":
        return _digits(place, {"size": 32, "stages": (4, 4, 4), "final_images": 64, **config})
    if place.size == "cpu":
        small = {"data": "flowers102", "size": 64, "stages": STAGES, "posterior_samples": 2}
        few = {"evaluation_images": 200, "final_images": 1000}
        brief = {"steps": 1000, "evaluate_every": 100, "lr": 3e-4, "batch_size": 32}
        return base(
            "bayes",
            {**_common(place), **small, **few, **config},
            {**brief, "device": place.device},
        )
    # 500 epochs of 1,020 images in batches of 32; the paper gives neither number.
    how = {"steps": 16_000, "evaluate_every": 160, "batch_size": 32, "device": place.device}
    return base("bayes", {**_common(place), "data": "flowers102", **config}, how)


def bayes_short(place: Place, **config: Any) -> Spec:
    """Bayesian networks on MNIST, for grids of hundreds of runs."""
    if place.size == "smoke":
        return _digits(place, config)
    few = {"evaluation_gammas": 3, "posterior_samples": 2, "final_images": 2000, **config}
    return _mnist(place, few, steps=300, evaluate_every=25, batch_size=64)


def _common(place: Place) -> dict[str, Any]:
    return {"encoding": "per-input", "data_dir": place.data_dir}


def _mnist(place: Place, config: Mapping[str, Any], **how: Any) -> Spec:
    few = {"data": "mnist", "evaluation_images": 500}
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
        return _ptbp(place, config, steps=1200)
    return _hypermorph(place, config)


def hypermorph_family(place: Place, **config: Any) -> Spec:
    """Registration, to be compared with plain networks for single gammas."""
    if place.size == "cpu":
        return _ptbp(place, config, steps=800)
    return _hypermorph(place, config)


def architectures(place: Place, **config: Any) -> Spec:
    """The task that architectures of the hypernetwork are compared on (B.1): registration.

    On two cores segmentation by a scale-space network is in its place, which learns sooner.
    """
    if place.size == "cpu":
        return scale_short(place, **config)
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


def _ptbp(place: Place, config: Mapping[str, Any], steps: int) -> Spec:
    small = {"data": "ptbp", "size": (96, 80), "levels": 4, "channels": 8}
    few = {"evaluation_pairs": 32, "final_pairs": 32, "tune_steps": 5}
    how = {"steps": steps, "evaluate_every": 100, "lr": 1e-3, "device": place.device}
    return base("hypermorph", {**_common(place), **small, **few, **config}, how)


def scale_segmentation(place: Place, **config: Any) -> Spec:
    """Scale-space hypernetworks that segment OASIS (sections 5.1, A.4)."""
    if place.size == "smoke":
        return _scale_digits(place, {"problem": "segmentation", **config})
    if place.size == "cpu":
        return _scale_ptbp(place, config, steps=500)
    # 3000 epochs of 265 scans in batches of 16; the paper gives neither number, nor when the
    # fine-tuning begins.
    how = {"steps": 49_500, "evaluate_every": 990, "batch_size": 16, "device": place.device}
    return base(
        "scale_space", {**_common(place), "data": "oasis", "dice_from": 40_000, **config}, how
    )


def scale_short(place: Place, **config: Any) -> Spec:
    """The same, for grids of hundreds of runs."""
    if place.size == "smoke":
        return _scale_digits(place, {"problem": "segmentation", **config})
    return _scale_ptbp(place, {"size": (48, 40), "channels": 8, **config}, steps=300)


def strategies(place: Place, **config: Any) -> Spec:
    """What normalisation strategies are compared on: classification of Flowers-102 (A.4).

    On two cores segmentation is in its place, which learns sooner.
    """
    if place.size == "smoke":
        return _scale_digits(place, {"problem": "classification", **config})
    if place.size == "cpu":
        return scale_segmentation(place, **config)
    how = {"steps": 16_000, "evaluate_every": 160, "device": place.device}
    return base("scale_space", {**_common(place), "data": "flowers102", **config}, how)


def _scale_ptbp(place: Place, config: Mapping[str, Any], steps: int) -> Spec:
    small = {"data": "ptbp", "size": (96, 80), "levels": 4, "channels": 16}
    few = {"evaluation_images": 16, "final_images": 32, "dice_from": 3 * steps // 4}
    how = {"steps": steps, "evaluate_every": 50, "lr": 1e-3, "batch_size": 4}
    return base(
        "scale_space",
        {**_common(place), **small, **few, **config},
        {**how, "device": place.device},
    )


def _scale_digits(place: Place, config: Mapping[str, Any]) -> Spec:
    small = {"data": "digits", "size": (16, 16), "levels": 2, "channels": 4, "stages": (4, 4)}
    few = {"evaluation_images": 8, "evaluation_gammas": 2, "final_images": 8, "dice_from": 5}
    how = {"steps": 10, "evaluate_every": 5, "batch_size": 8, "device": place.device}
    hidden = {"hidden": (4, 8)}
    return base("scale_space", {**_common(place), **small, **few, **hidden, **config}, how)
