"""The command line: ``hyperlight demo | train | study | report | data``.

Every option is a field of a typed configuration; ``--help`` is made from them.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.extras import SubcommandApp

from ..errors import HyperLightError, did_you_mean, listed
from .checkpoint import digest, identity
from .data import fetch_flowers102, fetch_mnist, fetch_oasis
from .errors import LabError
from .session import Session, launch, say, say_claim
from .studies import STUDIES, Place, Size, page
from .studies.run import run_study
from .summary import TITLES
from .tasks import KINDS, bayes, hypermorph, scale_space
from .tasks.base import Formulation, Task
from .tasks.bayes import Bayes, BayesTask
from .tasks.hypermorph import Hypermorph
from .tasks.scale_space import ScaleSpace
from .train import Training

console = Console()


def _session(
    task: type[Task],
    config: Any,
    training: Training,
    formulations: Sequence[Formulation],
    folder: Path,
    title: str,
) -> Session:
    fabric = launch(training)
    console.quiet = not fabric.is_global_zero
    made = Session(
        task(config, fabric.device),  # type: ignore[call-arg]
        training,
        formulations,
        fabric,
        folder,
        title,
        command=_command(),
        console=console,
    )
    say(Text(title, style="bold"), console)
    say(made.task.note, console)
    return made


@dataclass(frozen=True)
class Demo:
    """Train a classical and a MIP hypernetwork, same seeds, data and compute, and compare them."""

    task: tyro.conf.OmitArgPrefixes[Bayes] = field(default_factory=Bayes)
    training: tyro.conf.OmitArgPrefixes[Training] = field(
        default_factory=lambda: Training(**bayes.TRAINING, steps=400)
    )
    out: Path = Path("runs/demo")
    """Folder for the report; what an earlier demo left there is replaced, and one that was
    interrupted goes on."""

    def run(self) -> None:
        title = f"Classical and MIP hypernetworks on {self.task.data}"
        session = _session(
            BayesTask, self.task, self.training, ["classical", "mip"], self.out, title
        )
        _train(session, restart=True)


@dataclass(frozen=True)
class _Train:
    """What the commands that train have in common."""

    parametrization: Formulation = "mip"
    """MIP, classical, one of MIP's two parts alone (the input encoding, or the output encoding:
    predictions are changes to learned weights), or the plain network without a hypernetwork,
    trained for the one gamma that is given with --gamma where the task has one."""
    out: Path | None = None
    """Folder for the results; by default one in runs/, named after the settings, so that the same
    command goes on where it was interrupted."""
    overwrite: bool = False
    """Replace what the folder holds."""
    task: Any = None
    training: Any = None
    kind: ClassVar[str] = ""

    def run(self) -> None:
        kind, what = KINDS[self.kind], self.parametrization
        about = identity(self.kind, self.task, self.training, what, 0)
        parts = (self.kind, self.task.data, what, self.training.optimizer, digest(about, 8))
        folder = Path("runs") / "-".join(parts) if self.out is None else self.out
        title = f"{kind.title} on {self.task.data}: {TITLES[what]}"
        session = _session(kind.task, self.task, self.training, [what], folder, title)
        _train(session, overwrite=self.overwrite)


def _train(session: Session, overwrite: bool = False, restart: bool = False) -> None:
    try:
        session.claim(overwrite, restart=restart)
        if session.finished:
            done = "These runs are finished; nothing is trained. --overwrite trains them again."
            say(done, console)
        runs = session.run()
        if session.fabric.is_global_zero:
            session.report(runs)
    except OSError as error:
        raise LabError(
            f"A file in {session.folder} could not be read or written ({error}). Put that right, "
            "or choose another --out; the same command goes on from what is kept there."
        ) from error


@dataclass(frozen=True)
class TrainBayes(_Train):
    """Train Bayesian hypernetworks that classify images (paper, sections 5.1 and A.2)."""

    task: tyro.conf.OmitArgPrefixes[Bayes] = field(default_factory=Bayes)
    training: tyro.conf.OmitArgPrefixes[Training] = field(
        default_factory=lambda: Training(**bayes.TRAINING)
    )
    kind: ClassVar[str] = "bayes"


@dataclass(frozen=True)
class TrainHypermorph(_Train):
    """Train hypernetworks that register images, for every weight of smoothness (section A.3)."""

    task: tyro.conf.OmitArgPrefixes[Hypermorph] = field(default_factory=Hypermorph)
    training: tyro.conf.OmitArgPrefixes[Training] = field(
        default_factory=lambda: Training(**hypermorph.TRAINING, target=None)
    )
    kind: ClassVar[str] = "hypermorph"


@dataclass(frozen=True)
class TrainScaleSpace(_Train):
    """Train hypernetworks for every rescaling factor of their primary (section A.4)."""

    task: tyro.conf.OmitArgPrefixes[ScaleSpace] = field(default_factory=ScaleSpace)
    training: tyro.conf.OmitArgPrefixes[Training] = field(
        default_factory=lambda: Training(**scale_space.TRAINING, target=None)
    )
    kind: ClassVar[str] = "scale_space"


@dataclass(frozen=True)
class RunStudy:
    """Repeat a figure or table of the paper: its runs, its figure, and its claims as checks."""

    name: tyro.conf.Positional[str] = "all"
    """Which one (see --list), or all of them."""
    size: Size = "smoke"
    """smoke: seconds each, on embedded data. cpu: what two cores do in hours. paper: the paper's
    own settings, for a GPU."""
    list: tyro.conf.FlagCreatePairsOff[bool] = False
    """Say what there is and how many runs each takes."""
    data_dir: Path | None = None
    """Folder with the data sets; by default where `hyperlight data` puts them."""
    out: Path | None = None
    """Folder for figures, numbers and claims; by default one in runs/studies, named after the
    size."""
    cache: Path = Path("runs/cache")
    """Folder with a folder for every run, which is never done twice."""
    seeds: int | None = None
    """Number of replicas; by default that of the size."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where runs are trained."""
    workers: int = 1
    """Runs at a time, which share the cores of this machine."""
    engine: str | None = None
    """Address of a Dask scheduler (tcp://host:8786) that takes the runs, with as many machines as
    it has workers."""

    def run(self) -> None:
        for option in ("workers", "seeds"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise LabError(f"--{option} was {value}; expected 1 or more.")
        place = Place(self.size, self.data_dir, self.device, self.seeds)
        if self.list:
            table = Table(box=None)
            for heading in ("name", "what", "source", f"runs at size {self.size}"):
                table.add_column(heading)
            for study in STUDIES.values():
                runs = len({spec.key for spec in study.specs(place)})
                table.add_row(study.name, study.title, study.source, str(runs))
            console.print(table)
            return
        if self.name != "all" and self.name not in STUDIES:
            raise LabError(
                f"There is no study {self.name!r}; expected all, or one of {listed(STUDIES)}."
                f"{did_you_mean(self.name, STUDIES)}"
            )
        out = Path("runs/studies") / self.size if self.out is None else self.out
        seeds = "" if self.seeds is None else f" --seeds {self.seeds}"
        for study in STUDIES.values() if self.name == "all" else [STUDIES[self.name]]:
            say(Text(f"{study.name}: {study.title} ({study.source})", style="bold"), console)
            found = run_study(
                study,
                place,
                out,
                self.cache,
                workers=self.workers,
                engine=self.engine,
                command=f"hyperlight study {study.name} --size {self.size}{seeds}",
                console=console,
            )
            for claim in found:
                say_claim(claim, console)
            say(f"Figure: {out / study.name / 'figure.svg'}", console)


@dataclass(frozen=True)
class Report:
    """Build one page of all studies: every figure, what holds of the paper, and every command."""

    results: Path = Path("runs/studies/smoke")
    """Folder that `hyperlight study` wrote to."""
    out: Path = Path("report.html")
    """The page, which needs no other file; or, named with .md, Markdown beside the figures."""

    def run(self) -> None:
        studies = page.read(self.results, list(STUDIES))
        written = page.write(studies, self.out, _command())
        say(f"Report of {len(studies)} studies: {written}", console)


@dataclass(frozen=True)
class DataMnist:
    """Fetch MNIST over https, checked by sha256, or check the IDX files that a folder holds."""

    data_dir: Path | None = None
    """Folder for the IDX files, gzipped or not; by default the user's cache."""

    def run(self) -> None:
        say(fetch_mnist(self.data_dir), console)


@dataclass(frozen=True)
class DataFlowers102:
    """Fetch Oxford Flowers-102 (345 MB) over https, checked by sha256, or check a folder."""

    data_dir: Path | None = None
    """Folder for the official files, or with a zip archive of the images; by default the user's
    cache."""

    def run(self) -> None:
        say(fetch_flowers102(self.data_dir), console)


@dataclass(frozen=True)
class DataOasis:
    """Fetch the 2D slices of OASIS (24 MB) over https, or check a folder.

    The data are used under the OASIS data use agreement.
    """

    data_dir: Path | None = None
    """Folder for the archive and what is in it; by default the user's cache."""

    def run(self) -> None:
        say(fetch_oasis(self.data_dir), console)


app = SubcommandApp()
train_app = SubcommandApp()
data_app = SubcommandApp()
app.command(name="demo")(Demo)
app.command(name="study")(RunStudy)
app.command(name="report")(Report)
app.command(train_app, name="train", help="Train one of the paper's tasks.")
app.command(data_app, name="data", help="Fetch or check a data set.")
train_app.command(name="bayes")(TrainBayes)
train_app.command(name="hypermorph")(TrainHypermorph)
train_app.command(name="scale_space")(TrainScaleSpace)
data_app.command(name="mnist")(DataMnist)
data_app.command(name="flowers102")(DataFlowers102)
data_app.command(name="oasis")(DataOasis)


_ARGUMENTS: list[str] = []


def _command() -> str:
    return shlex.join(["hyperlight", *_ARGUMENTS])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (2 for what a person can put right)."""
    _ARGUMENTS[:] = sys.argv[1:] if arguments is None else list(arguments)
    console.quiet = False
    try:
        chosen = app.cli(
            prog="hyperlight",
            description="HyperLight's lab: the paper's experiments as commands.",
            args=list(_ARGUMENTS),
        )
        chosen.run()
    except HyperLightError as error:
        say(Text.assemble(("error: ", "bold red"), str(error)), _stderr())
        return 2
    except KeyboardInterrupt:
        _stderr().print("interrupted; the same command goes on from here")
        return 130
    return 0


def _stderr() -> Console:
    """Where one of several processes says what ended all of them."""
    return Console(stderr=True, quiet=console.quiet)


def entry() -> None:
    """The console script."""
    sys.exit(main())
