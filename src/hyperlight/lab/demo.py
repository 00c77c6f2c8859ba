"""The demo: an autoencoder of digits for every price of the rate, made in four ways.

The knob is ``beta``, the price of the rate: at its low end every image is kept pixel by pixel, at
its high end hardly anything. One network for all prices is made by a classical hypernetwork, by the
paper's MIP and by the library's defaults. Plain networks for five prices say what can be had: each
sees as many images in as many steps as a hypernetwork does for all prices.

    python -m hyperlight.lab.demo

tries learning rates for all four, and prints the error on validation images. It is how
:data:`METHODS` has its rates.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .engine import Spec, run_grid
from .methods import OURS, PAPER, Method
from .tasks.vae import KIND, Vae
from .train import Training

__all__ = ["BETAS", "KIND", "METHODS", "STEPS", "TASK", "errors", "training"]

STEPS = 600
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)

TASK = Vae(widths=(128,), latent=8, evaluation_gammas=5)
# Where hypernetworks are tested: evenly spread in the logarithm.
BETAS = (0.01, 0.05623, 0.3162, 1.778, 10.0)

_EACH = 128  # images of a plain network in a step; a hypernetwork divides as many among its betas

# The rates are the best of RATES on validation images: python -m hyperlight.lab.demo
METHODS = (
    dataclasses.replace(
        Method.of("classical"), settings=PAPER, training={"rates": "same", "lr": 3e-4}
    ),
    dataclasses.replace(Method.of("mip"), settings=PAPER, training={"rates": "same", "lr": 3e-3}),
    Method(
        *("ours", "ours", "#cc79a7", "mip"),
        settings=OURS,
        training={"rates": "groups", "lr": 1e-2},
    ),
    dataclasses.replace(
        Method.of("plain"),
        title="five plain networks",
        settings={"beta": BETAS, "gammas": len(BETAS)},
        training={"lr": 1e-2, "batch_size": _EACH * len(BETAS)},
        note="The five plain networks have one beta each, and see five times as many images in all",
    ),
)


def training(**changes: Any) -> Training:
    """How all are trained, but for the settings of their own."""
    steps = changes.get("steps", STEPS)
    usual = {"batch_size": _EACH, "steps": steps, "evaluate_every": max(1, steps // 20)}
    return Training(**{**KIND.training, **usual, "target": None, **changes})


def errors(
    rates: Sequence[float] = RATES, cache: Path = Path("runs/cache"), **changes: Any
) -> dict[str, dict[float, float]]:
    """The mean validation error of every method at every rate.

    Args:
        rates: learning rates to try.
        cache: folder for the runs; finished runs in it are used again.
        changes: of :func:`training`.
    """
    how = training(**{"seeds": 1, **changes})
    specs = {
        (method.name, rate): [
            Spec(
                KIND.name,
                dataclasses.replace(TASK, **method.settings),
                dataclasses.replace(how, **{**method.training, "lr": rate}),
                method.formulation,
                seed,
            )
            for seed in range(how.seeds)
        ]
        for method in METHODS
        for rate in rates
    }
    runs = run_grid([spec for group in specs.values() for spec in group], cache)
    found: dict[str, dict[float, float]] = {method.name: {} for method in METHODS}
    for (name, rate), group in specs.items():
        outcomes = [runs[spec.key].outcome for spec in group]
        ends = [made.figures["validation error"] for made in outcomes if made is not None]
        found[name][rate] = statistics.fmean(ends)
    return found


def main() -> None:
    """Try the rates, and print the errors."""
    table = Table("", *(f"{rate:g}" for rate in RATES), title="Validation error by learning rate")
    for name, row in errors().items():
        table.add_row(name, *(f"{error:.4f}" for error in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
