"""The command line: ``hyperlight demo | train | study | report | data``.

Options are the fields of dataclasses, from which ``--help`` is made. The commands of ``train`` and
``data`` are made from the registries of tasks and data sets.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional
from tyro.extras import SubcommandApp

from ..errors import HyperLightError, did_you_mean, listed
from . import demo
from .checkpoint import digest, identity
from .data import DATA
from .errors import LabError, at_least
from .methods import Method
from .processes import connected
from .report import PAGE
from .session import Session, launch, say, say_claim
from .studies import STUDIES, Setup, Size, page
from .studies.run import run_study
from .summary import TITLES
from .tasks import KINDS, Kind
from .tasks.base import Formulation
from .train import Training

console = Console()

# Exit status of a training that diverged.
DIVERGED = 3


def _training(kind: Kind, **changes: Any) -> Training:
    """How the paper trains a kind of task."""
    return Training(**{"target": kind.target, **kind.training, **changes})


def _session(
    kind: Kind,
    config: Any,
    training: Training,
    methods: Sequence[Method],
    folder: Path,
    title: str,
) -> Session:
    fabric = launch(training)
    console.quiet = not fabric.is_global_zero
    task = kind.task(config, fabric.device)
    session = Session(
        *(task, training, methods, fabric, folder, title),
        _command(),
        console=console,
        front=kind.front,
    )
    say(Text(title, style="bold"), console)
    say(session.note, console)
    return session


def _run(session: Session, overwrite: bool = False, restart: bool = False) -> int:
    """Train and report; return the exit status."""
    try:
        with session.locked(), connected(session.fabric):
            session.claim(overwrite, restart=restart)
            if session.finished:
                say("These runs are finished. Pass --overwrite to train them again.", console)
            runs = session.run()
            if session.fabric.is_global_zero:
                session.report(runs)
                # Not in the other processes: Fabric ends the first one if another fails.
                return DIVERGED if any(run.diverged is not None for run in runs) else 0
    except OSError as error:
        if not session.folder.is_dir():
            raise LabError(
                f"The folder {session.folder} is gone, with the runs in it ({error}). The same "
                "command starts them again."
            ) from error
        raise LabError(
            f"A file in {session.folder} could not be read or written ({error}). Fix that, or "
            "choose another --out; the same command then resumes from the last checkpoints, if "
            "there are any."
        ) from error
    return 0


@dataclass(frozen=True)
class Demo:
    """Train one autoencoder of digits for every price of the rate, and see what the knob does.

    Compared are a classical hypernetwork, the paper's MIP, the library's defaults (ours), and plain
    networks for single prices. `hyperlight train vae` has all settings.
    """

    steps: int = demo.STEPS
    """Number of updates of each."""
    seeds: int = 3
    """Number of replicas, with seeds 0, 1, 2, ..."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints, from which an interrupted demo resumes."""
    out: Path = Path("runs/demo")
    """Folder for the report. An earlier demo in it is replaced; an interrupted one resumes."""

    def run(self) -> int:
        how = dataclasses.asdict(self)
        del how["out"]
        title = "One autoencoder of digits for every price of its rate"
        return _run(
            _session(*(demo.KIND, demo.TASK, demo.training(**how), demo.METHODS, self.out, title)),
            restart=True,
        )


@dataclass(frozen=True)
class Train:
    """Train one formulation of a task, whose command adds its settings."""

    parametrization: Formulation = "mip"
    """classical: theta = h(gamma). mip: MIP. encoding, residual: only one of its two parts, the
    input encoding or the output encoding (learned weights plus predicted changes). hand: one that
    is written without this library. Without a hypernetwork: plain: trained for one gamma (--gamma,
    if the task has it). shared: one network for all gammas, which it does not know. channel: gamma
    is another input of the network. film: gamma scales and shifts the features."""
    out: Path | None = None
    """Folder for the results; by default one in runs/ that is named after the settings. The same
    command resumes an interrupted run."""
    overwrite: bool = False
    """Replace the results in the folder."""
    task: Any = None
    training: Any = None
    kind: ClassVar[Kind]

    def run(self) -> int:
        kind, what = self.kind, self.parametrization
        about = identity(kind.name, self.task, self.training, what, 0)
        parts = (kind.name, self.task.data, what, self.training.optimizer, digest(about, 8))
        folder = Path("runs") / "-".join(parts) if self.out is None else self.out
        title = f"{kind.title} on {self.task.data}: {TITLES[what]}"
        return _run(
            _session(kind, self.task, self.training, [Method.of(what)], folder, title),
            self.overwrite,
        )


@dataclass(frozen=True)
class Study:
    """Repeat a figure or table of the paper: train, draw, and check its claims."""

    name: Positional[str] = "all"
    """Its name (see --list), or all."""
    size: Size = "smoke"
    """smoke: seconds per study, on embedded data. cpu: hours on two cores. paper: the settings of
    the paper, for a GPU."""
    list: FlagCreatePairsOff[bool] = False
    """List the studies and the number of their runs."""
    data_dir: Path | None = None
    """Folder with the data sets; by default where `hyperlight data` puts them."""
    out: Path | None = None
    """Folder for figures, numbers and claims; by default one in runs/studies, named after the
    size."""
    cache: Path = Path("runs/cache")
    """Folder for the runs; finished runs in it are used again."""
    seeds: int | None = None
    """Number of replicas; by default 5, or 1 in a smoke test."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train."""
    workers: int = 1
    """Number of runs at a time, which divide the cores of this machine."""
    engine: str | None = None
    """Address of a Dask scheduler (tcp://host:8786, or tls://host:8786) to run on its workers
    instead. With tcp, whoever reaches its port can run code as you."""

    def run(self) -> None:
        at_least(self, workers=1, seeds=1)
        setup = Setup(self.size, self.data_dir, self.device, self.seeds)
        if self.list:
            table = Table(box=None)
            for heading in ("name", "what", "source", f"runs at size {self.size}"):
                table.add_column(heading)
            for study in STUDIES.values():
                runs = len({spec.key for spec in study.specs(setup)})
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
                setup,
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
    """Find the report of the last run, or make the page of studies: figures, claims, commands."""

    results: Path | None = None
    """Folder that `hyperlight study`, `demo` or `train` wrote to; by default the last one in
    runs."""
    out: Path = Path("report.html")
    """The page of studies, in a single file; if the name ends in .md, Markdown that links to the
    figures. A run has its page already, and the command says where."""

    def run(self) -> None:
        results = _last(Path("runs")) if self.results is None else self.results
        if (results / PAGE).is_file() and not any(results.glob("*/study.json")):
            say(f"Report: {results / PAGE}", console)
            return
        studies = page.read(results, list(STUDIES))
        written = page.write(studies, self.out, _command())
        say(f"Report of {len(studies)} studies in {results}: {written}", console)


def _last(runs: Path) -> Path:
    """The folder of the last run or studies that were finished.

    Raises:
        LabError: there are none.
    """
    when = {path.parent: path.stat().st_mtime for path in sorted(runs.glob(f"*/{PAGE}"))}
    for path in sorted(runs.glob("studies/*/*/study.json")):
        folder = path.parent.parent
        when[folder] = max(path.stat().st_mtime, when.get(folder, 0.0))
    if not when:
        raise LabError(
            f"There are no finished runs and no studies in {runs.absolute()}. Run one first, such "
            "as `hyperlight demo`, or pass the folder of one: --results DIR."
        )
    return max(when, key=lambda folder: when[folder])


@dataclass(frozen=True)
class Fetch:
    """Fetch or check a data set."""

    data_dir: Path | None = None
    """Folder for the files, or with files to check; by default the user's cache."""
    name: ClassVar[str]

    def run(self) -> None:
        fetch = DATA[self.name].fetch
        assert fetch is not None
        say(fetch(self.data_dir), console)


def _app() -> SubcommandApp:
    """All commands, as the registries have them now."""
    app, train, data = SubcommandApp(), SubcommandApp(), SubcommandApp()
    app.command(name="demo")(Demo)
    app.command(train, name="train", help="Train one of the tasks.")
    app.command(name="study")(Study)
    app.command(name="report")(Report)
    app.command(data, name="data", help="Fetch or check a data set.")
    for name, kind in KINDS.items():
        command = dataclasses.make_dataclass(
            f"Train{kind.config.__name__}",
            [
                ("task", kind.config, field(default_factory=kind.config)),
                ("training", Training, field(default_factory=partial(_training, kind))),
            ],
            bases=(Train,),
            frozen=True,
            namespace={"kind": kind},
        )
        train.command(name=name, help=_first(kind.config))(command)
    for name, found in DATA.items():
        if found.fetch is not None:
            data.command(name=name, help=_first(found.fetch))(type(name, (Fetch,), {"name": name}))
    return app


def _first(documented: Any) -> str:
    """The first paragraph of a docstring."""
    return " ".join((documented.__doc__ or "").partition("\n\n")[0].split())


_ARGUMENTS: list[str] = []


def _command() -> str:
    return shlex.join(["hyperlight", *_ARGUMENTS])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status.

    0: done. 2: an error that the user can fix. 3: done, but a run of ``demo`` or ``train``
    diverged. 130: interrupted.
    """
    _ARGUMENTS[:] = sys.argv[1:] if arguments is None else list(arguments)
    console.quiet = False
    try:
        chosen = _app().cli(
            prog="hyperlight",
            description="The experiments of the paper as commands. --version prints the version.",
            args=list(_ARGUMENTS),
            config=[OmitArgPrefixes],
        )
        status: int | None = chosen.run()
    except HyperLightError as error:
        say(Text.assemble(("error: ", "bold red"), str(error)), _stderr())
        return 2
    except KeyboardInterrupt:
        _stderr().print("interrupted; the same command resumes from here")
        return 130
    return status or 0


def _stderr() -> Console:
    """Standard error, in the first of several processes only."""
    return Console(stderr=True, quiet=console.quiet)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """Print a warning; the place in the code only if it is not one of ours."""
    ours = Path(filename).is_relative_to(Path(__file__).parents[1])
    where = "" if ours else f" ({category.__name__} from {filename}:{lineno})"
    say(Text.assemble(("warning: ", "bold yellow"), f"{message}{where}"), _stderr())


def entry() -> None:
    """Run the command line as a program; a closed pipe, as of ``| head``, ends it quietly."""
    warnings.showwarning = _show_warning
    try:
        try:
            status = main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)
