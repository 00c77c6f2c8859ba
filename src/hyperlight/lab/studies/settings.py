"""Settings of the paper's three tasks in the three sizes of every study.

Studies with the same settings use the same runs. Unless stated otherwise, all settings are those of
the paper (section A), which encodes every input separately. What the paper does not say, and what
differs at size ``paper``, is in docs/studies.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..engine import Spec
from .base import Setup, base, grid

__all__ = [
    "ONE_IS_ENOUGH",
    "REDUCED",
    "SCANS",
    "SQUARED_ERROR",
    "architectures",
    "bayes",
    "bayes_brief",
    "bayes_short",
    "components",
    "digits_rows",
    "flowers",
    "hypermorph",
    "optimizers",
    "reduced",
    "registration",
    "scale_segmentation",
    "scale_short",
    "strategies",
]

# Feature channels of the small ResNet-like network for Flowers-102 on two cores.
STAGES = (8, 16, 32, 32, 32)

# What the captions of scale-space segmentation say of the controls.
ONE_IS_ENOUGH = (
    "The labels are the same at every gamma, so one plain network may solve this task for all of "
    "them. Grey is one that is trained for all gammas, orange the same with gamma as an input "
    "channel; a hypernetwork is worth its price here only if it is above both."
)

# What the captions of registration at the paper's rates say of its loss.
SQUARED_ERROR = (
    "In registration the mean squared error of images is divided by 0.05^2, as in HyperMorph, so a "
    "rate of SGD makes a step up to 400 times as long as without."
)

_DIGITS = "scikit-learn's digits, a smaller hypernetwork, 20 steps"
_SMALL_DIGITS = (
    "scikit-learn's digits at 16x16, a U-Net of 2 levels with 4 channels, a smaller hypernetwork, "
    "10 steps"
)
# Said of both tasks. Its alignment leaves less to register than that of OASIS.
SCANS = "PTBP (4 labels; aligned to a template by SyN, with skull)"
_PTBP = (
    f"{SCANS} at half resolution, 96x80, instead of OASIS (24 labels; affinely aligned, without "
    "skull)"
)
_ALIKE = "the paper found 1e-4 to 3e-3 equally good"
_LENET = (
    "MNIST in full instead of Flowers-102, so LeNet instead of the ResNet-like network with batch "
    "normalisation"
)
_FLOWERS = (
    "Flowers-102 at 64x64, a ResNet-like network of 5 stages with 8 to 32 channels, 1000 steps (31 "
    f"epochs) in batches of 32 at the rate 3e-4 with Adam and 3e-3 with SGD ({_ALIKE})"
)
_SEGMENTATION = (
    f"{_PTBP}, a U-Net of 4 levels with 16 channels, 500 steps in batches of 4, 32 test images"
)

# What a study leaves out compared to the paper, by settings and size.
REDUCED = {
    "bayes": {
        "smoke": _DIGITS,
        "cpu": "MNIST in full, 1200 steps (3 epochs) in batches of 128",
    },
    "bayes_brief": {
        "smoke": _DIGITS,
        "cpu": f"{_LENET}; 600 steps (1.5 epochs) in batches of 128",
    },
    "components": {
        "smoke": _DIGITS,
        "cpu": f"{_LENET}; 1200 steps (3 epochs) in batches of 128",
    },
    "bayes_short": {
        "smoke": _DIGITS,
        "cpu": "MNIST, 300 steps in batches of 64, 2000 test images",
    },
    "digits_rows": {
        "smoke": _DIGITS,
        "cpu": "scikit-learn's digits, whose rows are the tokens of a transformer of 2 blocks, 300 "
        "steps in batches of 64",
    },
    "flowers": {
        "smoke": f"{_DIGITS}, a ResNet-like network of 3 stages",
        "cpu": f"{_FLOWERS}, 1000 test images",
    },
    "hypermorph": {
        "smoke": _SMALL_DIGITS,
        "cpu": f"{_PTBP}, a U-Net of 4 levels with 8 channels, 1200 steps in batches of 4, at "
        "four rates of Adam and five of the paper's eight of SGD, 32 test pairs",
    },
    "architectures": {
        "smoke": _SMALL_DIGITS,
        "cpu": "segmentation by a scale-space network (U-Net of 4 levels with 8 channels) on "
        f"{SCANS} at a quarter of its resolution, 48x40, instead of HyperMorph on OASIS, because "
        "it learns in a tenth of the time; 300 steps in batches of 4 at the rate 1e-3 "
        f"({_ALIKE}), 32 test images",
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
        "cpu": f"{SCANS} at a quarter of its resolution, 48x40, a U-Net of 4 levels with 8 "
        "channels, 300 steps in batches of 4, 32 test images",
    },
    "strategies": {
        "smoke": "scikit-learn's digits at 16x16, 2 stages with 4 channels, 10 steps",
        "cpu": f"{_SEGMENTATION}; instead of classification on Flowers-102, where MIP has 4 % "
        "after 1000 steps",
    },
}


def reduced(*names: str) -> Mapping[str, str]:
    """Return what a study with these settings leaves out, by size."""
    return {
        size: "; ".join(dict.fromkeys(REDUCED[name][size] for name in names))
        for size in ("smoke", "cpu")
    }


# Rates that registration tries (A.3), by size and optimizer.
_REGISTRATION_RATES: Mapping[str, Mapping[str, Sequence[float]]] = {
    "smoke": {"adamw": (1e-4,), "sgd": (3e-2,)},
    "cpu": {"adamw": (1e-4, 3e-4, 1e-3, 3e-3), "sgd": (3e-2, 1e-2, 3e-3, 3e-4, 3e-5)},
    "paper": {
        "adamw": (1e-4, 3e-4, 1e-3, 3e-3),
        "sgd": (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5),
    },
}


def registration(setup: Setup) -> list[Spec]:
    """HyperMorph with both optimizers at the rates that the paper tries (A.3), or some of them."""
    base = hypermorph(setup)
    return [
        spec
        for optimizer, rates in _REGISTRATION_RATES[setup.size].items()
        for spec in grid(
            base,
            seeds=setup.replicas,
            training={"optimizer": [optimizer], "lr": rates},
        )
    ]


def optimizers(setup: Setup, base: Spec) -> list[dict[str, list[Any]]]:
    """Adam and SGD with the rate of each, as axes of a grid.

    The paper has one rate for both (A.4). With few steps SGD gets the largest of the rates that the
    paper found equally good.
    """
    rate = 3e-3 if setup.size == "cpu" else base.training.lr
    return [
        {"optimizer": [base.training.optimizer], "lr": [base.training.lr]},
        {"optimizer": ["sgd"], "lr": [rate]},
    ]


def bayes(setup: Setup, **config: Any) -> Spec:
    """Bayesian networks on MNIST (sections 5.1, A.2)."""
    if setup.size == "smoke":
        return _digits(setup, config)
    if setup.size == "cpu":
        return _mnist(setup, config, steps=1200)
    # 20 epochs, tested four times per epoch.
    how = {"steps": 7500, "evaluate_every": 94, "device": setup.device}
    return base("bayes", {**_common(setup), "data": "mnist", **config}, how)


def bayes_brief(setup: Setup, **config: Any) -> Spec:
    """Bayesian networks on Flowers-102, for comparisons of many settings (B.2, B.3).

    On two cores: on MNIST instead.
    """
    if setup.size == "smoke":
        return _digits(setup, config)
    if setup.size == "cpu":
        # Few posterior samples: the average over gammas is not used, and costs as much as training.
        return _mnist(setup, {"posterior_samples": 2, **config}, steps=600)
    return flowers(setup, **config)


def components(setup: Setup, **config: Any) -> Spec:
    """Bayesian networks on Flowers-102, for the comparison of the two parts of MIP (figure 5b).

    On two cores: on MNIST instead, with the runs of figure 4a.
    """
    return flowers(setup, **config) if setup.size == "paper" else bayes(setup, **config)


def flowers(setup: Setup, **config: Any) -> Spec:
    """Bayesian networks on Flowers-102 (sections 5.1, A.2).

    The primary has batch normalisation, as section B.5 says of figure 9.
    """
    config = {"batch_norm": True, **config}
    if setup.size == "smoke":
        return _digits(setup, {"size": 32, "stages": (4, 4, 4), "final_images": 64, **config})
    if setup.size == "cpu":
        small = {"data": "flowers102", "size": 64, "stages": STAGES, "posterior_samples": 2}
        few = {"evaluation_images": 200, "final_images": 1000}
        brief = {"steps": 1000, "evaluate_every": 100, "lr": 3e-4, "batch_size": 32}
        return base(
            "bayes",
            {**_common(setup), **small, **few, **config},
            {**brief, "device": setup.device},
        )
    # 500 epochs of 1,020 images in batches of 32; the paper gives neither number.
    how = {"steps": 16_000, "evaluate_every": 160, "batch_size": 32, "device": setup.device}
    return base("bayes", {**_common(setup), "data": "flowers102", **config}, how)


def bayes_short(setup: Setup, **config: Any) -> Spec:
    """Bayesian networks on MNIST, for grids of hundreds of runs."""
    if setup.size == "smoke":
        return _digits(setup, config)
    few = {"evaluation_gammas": 3, "posterior_samples": 2, "final_images": 2000, **config}
    return _mnist(setup, few, steps=300, evaluate_every=25, batch_size=64)


def digits_rows(setup: Setup, **config: Any) -> Spec:
    """Bayesian networks on small digits, by a transformer that reads them row by row."""
    config = {"network": "transformer", **config}
    if setup.size == "smoke":
        return _digits(setup, config)
    few = {"data": "digits", "evaluation_gammas": 3, "posterior_samples": 2}
    how = {"steps": 300, "evaluate_every": 25, "batch_size": 64, "device": setup.device}
    return base("bayes", {**_common(setup), **few, **config}, how)


def _common(setup: Setup) -> dict[str, Any]:
    return {"encoding": "per-input", "data_dir": setup.data_dir}


def _mnist(setup: Setup, config: Mapping[str, Any], **how: Any) -> Spec:
    few = {"data": "mnist", "evaluation_images": 500}
    how = {"evaluate_every": 50, "device": setup.device, **how}
    return base("bayes", {**_common(setup), **few, **config}, how)


def _digits(setup: Setup, config: Mapping[str, Any]) -> Spec:
    small = {"data": "digits", "hidden": (4, 8)}
    few = {"evaluation_images": 64, "evaluation_gammas": 2, "posterior_samples": 2}
    how = {"steps": 20, "evaluate_every": 10, "batch_size": 32, "device": setup.device}
    return base("bayes", {**_common(setup), **small, **few, **config}, how)


def hypermorph(setup: Setup, **config: Any) -> Spec:
    """Registration (sections 5.1, A.3)."""
    if setup.size == "cpu":
        return _ptbp(setup, config, steps=1200)
    return _hypermorph(setup, config)


def architectures(setup: Setup, **config: Any) -> Spec:
    """Registration, the task that compares architectures of the hypernetwork (B.1).

    On two cores: segmentation by a scale-space network instead, which learns faster.
    """
    if setup.size == "cpu":
        return scale_short(setup, **config)
    return _hypermorph(setup, config)


def _hypermorph(setup: Setup, config: Mapping[str, Any]) -> Spec:
    if setup.size == "smoke":
        small = {"data": "digits", "size": (16, 16), "levels": 2, "channels": 4, "hidden": (4, 8)}
        few = {"evaluation_pairs": 4, "evaluation_gammas": 2, "final_pairs": 4, "tune_steps": 1}
        how = {"steps": 10, "evaluate_every": 5, "device": setup.device}
        return base("hypermorph", {**_common(setup), **small, **few, **config}, how)
    # 3000 epochs of 265 scans in batches of 4.
    how = {"steps": 198_750, "evaluate_every": 6_625, "device": setup.device}
    return base("hypermorph", {**_common(setup), "data": "oasis", **config}, how)


def _ptbp(setup: Setup, config: Mapping[str, Any], steps: int) -> Spec:
    small = {"data": "ptbp", "size": (96, 80), "levels": 4, "channels": 8}
    few = {"evaluation_pairs": 32, "final_pairs": 32, "tune_steps": 5}
    how = {"steps": steps, "evaluate_every": 100, "lr": 1e-3, "device": setup.device}
    return base("hypermorph", {**_common(setup), **small, **few, **config}, how)


def scale_segmentation(setup: Setup, **config: Any) -> Spec:
    """Scale-space hypernetworks that segment OASIS (sections 5.1, A.4)."""
    if setup.size == "smoke":
        return _scale_digits(setup, {"problem": "segmentation", **config})
    if setup.size == "cpu":
        return _scale_ptbp(setup, config, steps=500)
    # 3000 epochs of 265 scans in batches of 16; the paper gives neither number, nor when the
    # fine-tuning begins.
    how = {"steps": 49_500, "evaluate_every": 990, "batch_size": 16, "device": setup.device}
    return base(
        "scale_space", {**_common(setup), "data": "oasis", "dice_from": 40_000, **config}, how
    )


def scale_short(setup: Setup, **config: Any) -> Spec:
    """Scale-space segmentation, for grids of hundreds of runs."""
    if setup.size == "smoke":
        return _scale_digits(setup, {"problem": "segmentation", **config})
    return _scale_ptbp(setup, {"size": (48, 40), "channels": 8, **config}, steps=300)


def strategies(setup: Setup, **config: Any) -> Spec:
    """Classification of Flowers-102, the task that compares normalisation strategies (A.4).

    On two cores: segmentation instead, which learns faster.
    """
    if setup.size == "smoke":
        return _scale_digits(setup, {"problem": "classification", **config})
    if setup.size == "cpu":
        return scale_segmentation(setup, **config)
    how = {"steps": 16_000, "evaluate_every": 160, "device": setup.device}
    return base("scale_space", {**_common(setup), "data": "flowers102", **config}, how)


def _scale_ptbp(setup: Setup, config: Mapping[str, Any], steps: int) -> Spec:
    small = {"data": "ptbp", "size": (96, 80), "levels": 4, "channels": 16}
    few = {"evaluation_images": 16, "final_images": 32, "dice_from": 3 * steps // 4}
    how = {"steps": steps, "evaluate_every": 50, "lr": 1e-3, "batch_size": 4}
    return base(
        "scale_space",
        {**_common(setup), **small, **few, **config},
        {**how, "device": setup.device},
    )


def _scale_digits(setup: Setup, config: Mapping[str, Any]) -> Spec:
    small = {"data": "digits", "size": (16, 16), "levels": 2, "channels": 4, "stages": (4, 4)}
    few = {"evaluation_images": 8, "evaluation_gammas": 2, "final_images": 8, "dice_from": 5}
    how = {"steps": 10, "evaluate_every": 5, "batch_size": 8, "device": setup.device}
    hidden = {"hidden": (4, 8)}
    return base("scale_space", {**_common(setup), **small, **few, **hidden, **config}, how)
