"""The command line: ``hyperlight demo | train | data``.

Every option is a field of a typed configuration; ``--help`` is made from them.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from tyro.extras import SubcommandApp

from ..errors import HyperLightError
from . import report
from .data import fetch_flowers102, fetch_mnist, fetch_oasis
from .errors import LabError
from .files import claim_folder
from .summary import TITLES, claims, summarize
from .tasks.bayes import Bayes, BayesTask, Formulation
from .train import Run, Training, train

console = Console()


def _say(line: str | Text, to: Console = console) -> None:
    """Print a line as it is: no markup, no wrapping, so that a path in it can be copied."""
    to.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)


def _settings(*configs: Any) -> dict[str, Any]:
    return {k: v for config in configs for k, v in dataclasses.asdict(config).items()}


def _run(
    task_config: Bayes,
    training: Training,
    formulations: Sequence[Formulation],
    folder: Path,
    overwrite: bool,
    title: str,
) -> None:
    """Train every formulation with every seed, taking turns within a seed, and report."""
    training.check()
    try:
        fabric = Fabric(accelerator=training.device, devices=1)
    except (RuntimeError, MisconfigurationException) as error:
        raise LabError(
            f"--device was {training.device}; this machine or this PyTorch has none. Choose cpu or "
            "auto."
        ) from error
    task = BayesTask(task_config, fabric.device)
    claim_folder(folder, overwrite)
    _say(Text(title, style="bold"))
    _say(task.split.note)
    runs: list[Run] = []
    width = max(len(TITLES[name]) for name in formulations)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=14),
        TextColumn("{task.completed:>5.0f}/{task.total:.0f} steps"),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    bars, total = Progress(*columns, console=console), Progress(*columns, console=console)
    whole = total.add_task(
        "all".ljust(width + 8),
        total=training.steps * training.seeds * len(formulations),
        figures=" " * 13,
    )
    with Live(Group(bars, total), console=console, refresh_per_second=8):
        for seed in range(training.seeds):
            turns = [
                (
                    bars.add_task(
                        f"seed {seed}  {TITLES[name]:<{width}}", total=training.steps, figures=""
                    ),
                    train(task, name, seed, training, fabric),
                )
                for name in formulations
            ]
            finished: dict[int, Run] = {}
            while turns:
                for turn in list(turns):
                    bar, steps = turn
                    run = next(steps, None)
                    if run is None:
                        turns.remove(turn)
                        continue
                    finished[bar] = run
                    point = run.points[-1]
                    before = bars.tasks[bar].completed
                    bars.update(
                        bar,
                        completed=point.step,
                        figures=f"{point.test_accuracy:5.1f} % right",
                    )
                    total.advance(whole, point.step - before)
            runs.extend(finished[bar] for bar in sorted(finished))
            if not console.is_terminal:  # a log shows no bars
                for run in runs[-len(formulations) :]:
                    console.print(
                        f"seed {seed}  {TITLES[run.formulation]}: "
                        f"{run.points[-1].test_accuracy:.1f} % right after "
                        f"{run.points[-1].step} steps"
                    )
    summaries = summarize(runs, training.target)
    page = report.write(
        folder,
        runs,
        summaries,
        title=title,
        note=task.split.note,
        target=training.target,
        settings=_settings(task_config, training),
        command=_command(),
    )
    console.print()
    for made in report.table(summaries, training.target):
        console.print(made)
    sentence = report.conclusion(summaries, training.target)
    if sentence:
        console.print(sentence, markup=False, highlight=False)
    for claim in claims(summaries):
        word = "[green]holds[/]" if claim.holds else "[yellow]does not hold here[/]"
        console.print(
            f"Paper, {claim.source}: {claim.text}: {word} ({claim.measured})", highlight=False
        )
    _say(f"Report: {page}")


@dataclass(frozen=True)
class Demo:
    """Train a classical and a MIP hypernetwork, same seeds, data and compute, and compare them."""

    task: tyro.conf.OmitArgPrefixes[Bayes] = field(default_factory=Bayes)
    training: tyro.conf.OmitArgPrefixes[Training] = field(
        default_factory=lambda: Training(steps=400)
    )
    out: Path = Path("runs/demo")
    """Folder for the report; what an earlier demo left there is replaced."""

    def run(self) -> None:
        _run(
            self.task,
            self.training,
            ["classical", "mip"],
            self.out,
            True,
            f"Classical and MIP hypernetworks on {self.task.data}",
        )


@dataclass(frozen=True)
class TrainBayes:
    """Train Bayesian hypernetworks that classify digits (paper, sections 5.1 and A.2)."""

    task: tyro.conf.OmitArgPrefixes[Bayes] = field(default_factory=Bayes)
    training: tyro.conf.OmitArgPrefixes[Training] = field(default_factory=Training)
    parametrization: Formulation = "mip"
    """MIP, classical, or one of MIP's two parts alone: the input encoding, or the output encoding
    (predictions are changes to learned weights)."""
    out: Path | None = None
    """Folder for the results; by default a new one in runs/, named after the settings."""
    overwrite: bool = False
    """Allow a folder that holds files already."""

    def run(self) -> None:
        folder = self.out
        if folder is None:
            parts = ("bayes", self.task.data, self.parametrization, self.training.optimizer)
            folder = Path("runs") / "-".join((*parts, time.strftime("%Y%m%d-%H%M%S")))
        _run(
            self.task,
            self.training,
            [self.parametrization],
            folder,
            self.overwrite,
            f"Bayesian hypernetwork on {self.task.data}: {TITLES[self.parametrization]}",
        )


@dataclass(frozen=True)
class DataMnist:
    """Fetch MNIST over https, checked by sha256, or check the IDX files that a folder holds."""

    data_dir: Path | None = None
    """Folder for the IDX files, gzipped or not; by default the user's cache."""

    def run(self) -> None:
        _say(fetch_mnist(self.data_dir))


@dataclass(frozen=True)
class DataFlowers102:
    """Fetch Oxford Flowers-102 (345 MB) over https, checked by sha256, or check a folder."""

    data_dir: Path | None = None
    """Folder for the official files, or with a zip archive of the images; by default the user's
    cache."""

    def run(self) -> None:
        _say(fetch_flowers102(self.data_dir))


@dataclass(frozen=True)
class DataOasis:
    """Fetch the 2D slices of OASIS (24 MB) over https, or check a folder.

    The data are used under the OASIS data use agreement.
    """

    data_dir: Path | None = None
    """Folder for the archive and what is in it; by default the user's cache."""

    def run(self) -> None:
        _say(fetch_oasis(self.data_dir))


app = SubcommandApp()
train_app = SubcommandApp()
data_app = SubcommandApp()
app.command(name="demo")(Demo)
app.command(train_app, name="train", help="Train one of the paper's tasks.")
app.command(data_app, name="data", help="Fetch or check a data set.")
train_app.command(name="bayes")(TrainBayes)
data_app.command(name="mnist")(DataMnist)
data_app.command(name="flowers102")(DataFlowers102)
data_app.command(name="oasis")(DataOasis)


_ARGUMENTS: list[str] = []


def _command() -> str:
    return shlex.join(["hyperlight", *_ARGUMENTS])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (2 for what a person can put right)."""
    _ARGUMENTS[:] = sys.argv[1:] if arguments is None else list(arguments)
    try:
        chosen = app.cli(
            prog="hyperlight",
            description="HyperLight's lab: the paper's experiments as commands.",
            args=list(_ARGUMENTS),
        )
        chosen.run()
    except HyperLightError as error:
        _say(Text.assemble(("error: ", "bold red"), str(error)), Console(stderr=True))
        return 2
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted")
        return 130
    return 0


def entry() -> None:
    """The console script."""
    sys.exit(main())
