"""Several runs in one folder: trained side by side, resumed if interrupted, then reported."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..io.kinds import fits
from . import report
from .checkpoint import Identity, differences, identity, stored_identity
from .errors import LabError
from .files import claim_folder, make_folder, read_sealed, say_unsealed, sweep, write_sealed
from .locks import locked
from .methods import TITLES, Method, with_settings
from .processes import connected, start_ranks, stop_on_request
from .provenance import provenance
from .record import Run
from .summary import BEYOND, Claim, claims, summarize
from .tasks.base import Model, Task
from .train import Training, train

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Session", "launch", "say", "say_claim"]

# What config.json holds, in the notation of hyperlight.io.kinds.
_CONFIG: dict[str, Any] = {"settings": dict, "provenance": {str: str}}
_CONFIG["identity"] = {"format": int, "task": str, "config": dict, "training": dict}
_CONFIG["identity"] |= {"formulations": [str]}


def say(line: str | Text, to: Console) -> None:
    """Print a line without markup or wrapping, so that a path in it can be copied."""
    to.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)


def say_claim(claim: Claim, to: Console) -> None:
    """Print a claim, the verdict on it and what was measured."""
    color = {"holds": "green", "refuted": "yellow"}.get(claim.verdict, "default")
    word = f"[{color}]{claim.verdict}[/]"
    guess = f" Possible reason: {claim.reason}." if claim.reason else ""
    who = "" if claim.source.startswith(BEYOND) else "Paper, "
    source = f"{who}{claim.source}"
    to.print(f"{source}: {claim.text}: {word} ({claim.measured}).{guess}", highlight=False)


def launch(training: Training) -> Fabric:
    """Set up the devices to train on, and start a process for each further device.

    Raises:
        LabError: the settings cannot be trained with, the devices do not exist, or another process
            has ended.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    training.check()
    try:
        fabric = Fabric(
            accelerator=training.device,
            devices=training.devices,
            strategy="ddp" if training.devices > 1 else "auto",
            precision=training.precision,
        )
    except (RuntimeError, ValueError, MisconfigurationException) as error:
        raise LabError(
            f"--device was {training.device} and --devices {training.devices}; this machine or "
            f"this PyTorch does not have them ({error}). Choose cpu or auto, or fewer devices."
        ) from error
    if training.devices > 1:
        start_ranks(fabric)
        with connected(fabric):
            fabric.launch()
    return fabric


@dataclass
class Session:
    """The runs of one task in one folder: every method with every seed.

    Attributes:
        task: what to train.
        training: how to train.
        methods: what to compare; they take turns within a seed.
        fabric: the devices.
        folder: for the results; every run has its own folder in it.
        title: of the report.
        command: the command line, so that the report says how to repeat it.
        console: where to show progress.
        front: two columns of the task's table along gamma that trade off against each other.
    """

    task: Task
    training: Training
    methods: Sequence[Method]
    fabric: Fabric
    folder: Path
    title: str
    command: str
    console: Console = field(default_factory=Console)
    front: report.Front | None = None
    _built: dict[str, Model] = field(default_factory=dict, init=False, repr=False)

    @property
    def about(self) -> Identity:
        """What the runs have in common."""
        about = identity(self.task.name, self.task.config, self.training, "mip", 0)
        del about["formulation"], about["seed"]
        return {**about, "formulations": [method.text for method in self.methods]}

    @property
    def note(self) -> str:
        """What the data and the methods are, without a full stop."""
        return ". ".join([self.task.note, *(m.note for m in self.methods if m.note)])

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting by name, for the report; those that all methods set are with these."""
        settings = {**dataclasses.asdict(self.task.config), **dataclasses.asdict(self.training)}
        replaced = set.intersection(*(set(method.own) for method in self.methods))
        common = {name: value for name, value in settings.items() if name not in replaced}
        return common | {method.title: method.text for method in self.methods if method.own}

    def run_folder(self, method: Method, seed: int) -> Path:
        """The folder of a run."""
        return self.folder / f"{method.name}-seed{seed}"

    def _parts(self, method: Method) -> tuple[Task, Training]:
        """The task and the training with the settings of a method."""
        training = dataclasses.replace(self.training, **method.training)
        return with_settings(self.task, method.settings), training

    @property
    def finished(self) -> bool:
        """Whether all runs are finished."""
        return all(
            (self.run_folder(method, seed) / "record.json").is_file()
            for seed in range(self.training.seeds)
            for method in self.methods
        )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, which is created, so that no other process writes to it.

        What a killed process left half-written in it is removed.

        Raises:
            LabError: the settings cannot be trained with, the folder cannot be created, or
                another process holds it.
        """
        self._build()
        with contextlib.ExitStack() as held:
            self._in_first(lambda: self._hold(held))
            yield

    def _hold(self, held: contextlib.ExitStack) -> None:
        make_folder(self.folder)
        if held.enter_context(locked(self.folder)):
            sweep(self.folder)

    def claim(self, overwrite: bool = False, *, restart: bool = False) -> None:
        """Prepare the folder, keeping the runs in it if they have the same settings.

        Args:
            overwrite: replace earlier results, whatever their settings.
            restart: replace earlier results, except unfinished ones with the same settings.

        Raises:
            LabError: the settings cannot be trained with, the folder cannot be created, or it
                holds something else. The folder is then unchanged.
        """
        self._build()
        self._in_first(lambda: self._claim(overwrite, restart))

    def _in_first(self, action: Callable[[], object]) -> None:
        """Do something in the first process. If it is refused, all raise, and none waits."""
        refused = ""
        if self.fabric.is_global_zero:
            try:
                action()
            except LabError as error:
                refused = str(error)
        refused = self.fabric.broadcast(refused)
        if refused:
            raise LabError(refused)

    def _claim(self, overwrite: bool, restart: bool) -> None:
        path = self.folder / "config.json"
        damage = ""
        found: Identity | None
        try:
            found = self._found(path)
        except FileNotFoundError:
            found, damage = self._shared(), "is missing"
        except (OSError, ValueError) as error:
            found, damage = self._shared(), f"cannot be read ({error})"
        same = found == self.about
        if restart:
            overwrite = not same or (self.finished and (self.folder / report.PAGE).is_file())
        if overwrite or not same:
            if not overwrite and found is not None:
                lines = differences(found, self.about)
                raise LabError(
                    f"{self.folder} holds runs with other settings ({'; '.join(lines)}). "
                    "Choose another --out, or pass --overwrite to replace them."
                )
            if not overwrite and path.exists():
                raise LabError(
                    f"{path} {damage}, and no run in the folder says which settings it has. Choose "
                    "another --out, or pass --overwrite to replace the results in it."
                )
            claim_folder(self.folder, overwrite)
            self._clear()
        elif damage:
            words = "the runs in the folder have these settings, so they are kept"
            say(f"{path} {damage}; {words}, and it is written again.", self.console)
        config = {
            "settings": self.settings,
            "provenance": provenance(self.command),
            "identity": self.about,
        }
        write_sealed(path, json.loads(json.dumps(config, default=str)), indent=2)

    def _build(self) -> None:
        """Build the models of seed 0, before the folder is touched: they may be refused."""
        if self._built:
            return
        shard = (self.fabric.global_rank, self.fabric.world_size)
        built = {}
        for method in self.methods:
            task, training = self._parts(method)
            task.batches(training.batch_size, 0, shard)
            built[method.name] = task.model(method.formulation, 0)
        self._built = built

    def _clear(self) -> None:
        """Remove earlier runs and reports, and no other files."""
        report.clear(self.folder)
        names = {*TITLES, *(method.name for method in self.methods)}
        for run in self.folder.glob("*-seed*"):
            name, _, seed = run.name.rpartition("-seed")
            if run.is_dir() and name in names and seed.isdecimal():
                shutil.rmtree(run)

    def _found(self, path: Path) -> Identity:
        """What the runs in the folder have in common, as its config.json says.

        Raises:
            ValueError: it is damaged, or something else.
            OSError: it cannot be read.
        """
        config, sealed = read_sealed(path)
        if set(config) != set(_CONFIG) or not fits(config, _CONFIG):
            raise ValueError("it is not as this command writes it")
        if not sealed:
            say_unsealed(self.folder)
        found: Identity = config["identity"]
        return found

    def _shared(self) -> Identity | None:
        """What the runs in the folder have in common, as their own files say.

        If some have other settings, it is what these have in common.
        """
        methods = {method.name: method for method in self.methods}
        runs: list[tuple[str, Identity]] = []
        for run in sorted(self.folder.glob("*-seed*")):
            about = stored_identity(run)
            name = "" if about is None else run.name.removesuffix(f"-seed{about['seed']}")
            expected = methods[name].formulation if name in methods else name
            if about is not None and name != run.name and about["formulation"] == expected:
                runs.append((name, about))
        names = list(dict.fromkeys(name for name, _ in runs))
        formulations = self.about["formulations"] if set(names) <= set(methods) else names
        found = []
        for name, about in runs:
            same = name in methods and about == self._identity(methods[name], about["seed"])
            kept = self.about if same else about
            kept = {key: kept[key] for key in kept if key not in ("formulation", "seed")}
            found.append({**kept, "formulations": formulations})
        return next((about for about in found if about != self.about), found[0] if found else None)

    def _identity(self, method: Method, seed: int) -> Identity:
        task, training = self._parts(method)
        return identity(task.name, task.config, training, method.formulation, seed)

    def run(self) -> list[Run]:
        """Train every run that is not finished, and show the progress.

        Raises:
            KeyboardInterrupt: on Ctrl-C or SIGTERM, after the current step and once all runs that
                had started have a checkpoint.
        """
        runs: list[Run] = []
        board = _Board(self.console, self.task, self.training, self.methods)
        with stop_on_request(self.console) as stop, board:
            for seed in range(self.training.seeds):
                turns = {method.name: self._train(method, seed, stop) for method in self.methods}
                done: dict[str, Run] = {}
                with contextlib.ExitStack() as interrupted:
                    for turn in turns.values():
                        interrupted.callback(turn.close)
                    while turns:
                        for name, turn in list(turns.items()):
                            run = next(turn, None)
                            if run is None:
                                del turns[name]
                            else:
                                done[name] = run
                                board.show(run)
                runs += done.values()
                board.end(list(done.values()))
        return runs

    def _train(self, method: Method, seed: int, stop: Callable[[], bool]) -> Generator[Run]:
        task, training = self._parts(method)
        return train(
            *(task, method.formulation, seed, training, self.fabric),
            folder=self.run_folder(method, seed),
            stop=stop,
            model=self._built.pop(method.name, None) if seed == 0 else None,
            method=method,
        )

    def report(self, runs: Sequence[Run]) -> Path:
        """Write the report and print its tables; return the path of the page."""
        target, metric = self.training.target, self.task.metric
        summaries = summarize(runs, target, metric)
        page = report.write(
            self.folder,
            runs,
            summaries,
            title=self.title,
            note=self.note,
            target=target,
            settings=self.settings,
            command=self.command,
            front=self.front,
        )
        self.console.print()
        for made in report.table(summaries, target, self.front):
            self.console.print(made)
        sentence = report.conclusion(summaries, target)
        if sentence:
            self.console.print(sentence, markup=False, highlight=False)
        for claim in claims(summaries):
            say_claim(claim, self.console)
        say(f"Report: {page}", self.console)
        return page


class _Board:
    """Progress bars: one per run, and one for all."""

    def __init__(
        self,
        console: Console,
        task: Task,
        training: Training,
        methods: Sequence[Method],
    ) -> None:
        self.console, self.metric, self.training = console, task.metric, training
        self.width = max(len(method.title) for method in methods)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=14),
            TextColumn("{task.completed:>5.0f}/{task.total:.0f} steps"),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
        )
        self.bars = Progress(*columns, console=console)
        self.total = Progress(*columns, console=console)
        self.whole = self.total.add_task(
            "all".ljust(self.width + 8),
            total=training.steps * training.seeds * len(methods),
            figures="",
        )
        self.lines: dict[tuple[str, int], TaskID] = {}
        self.warned: set[tuple[str, int]] = set()
        self.live = Live(Group(self.bars, self.total), console=console, refresh_per_second=8)

    def __enter__(self) -> None:
        self.live.start()

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def show(self, run: Run) -> None:
        """Update the bar of a run."""
        key = (run.method.name, run.seed)
        if key not in self.lines:
            name = f"{self._name(run):<{self.width + 8}}"
            self.lines[key] = self.bars.add_task(name, total=self.training.steps, figures="")
        line, point = self.lines[key], run.points[-1]
        value = self.metric.text(point.figures[self.metric.name])
        shown = f"{self.metric.name} {value}"
        if point.step:  # before the first update there is no training loss
            loss = "not finite" if math.isnan(point.train_loss) else f"{point.train_loss:.3g}"
            shown += f"  loss {loss}"
        if run.diverged is not None:
            shown = f"diverged at step {run.diverged}"
            if key not in self.warned:
                self.warned.add(key)
                stop = " Ctrl-C stops the training." if run.step < self.training.steps else ""
                say(
                    f"{self._name(run)} {shown} (training loss {point.train_loss:.3g}, test loss "
                    f"{point.figures['loss']:.3g}).{stop}",
                    self.console,
                )
        if run.chunk_seconds:
            shown += f"  {1.0 / max(run.chunk_seconds[-1], 1e-9):.3g} steps/s"
        before = self.bars.tasks[line].completed
        self.bars.update(line, completed=run.step, figures=shown)
        self.total.advance(self.whole, run.step - before)

    def end(self, runs: Sequence[Run]) -> None:
        """Print the results where no bars are shown, as in a log file."""
        if self.console.is_terminal:
            return
        for run in runs:
            value = self.metric.text(run.points[-1].figures[self.metric.name])
            found = f"{self.metric.name} {value} after {run.step} steps"
            if run.diverged is not None:
                found = f"diverged at step {run.diverged}"
            self.console.print(f"{self._name(run)}: {found}")

    @staticmethod
    def _name(run: Run) -> str:
        return f"seed {run.seed}  {run.method.title}"
