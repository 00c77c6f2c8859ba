"""A run on disk: its identity, its checkpoint and its results.

During training the folder of a run holds ``checkpoint.safetensors``, with every tensor that the
next steps depend on and, as metadata, all measurements so far; and ``metrics.csv``. After training
it holds ``model.safetensors`` (see :func:`hyperlight.save`) and ``record.json``, which is written
last: a run with a record is finished. Every file is written completely or not at all, and has a
checksum, so that damage to it is found.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor, optim

from .. import HyperModel, save
from ..errors import FormatError, listed
from ..io import container
from ..io.kinds import fits, read_json
from ..io.state import differences as tensor_differences
from ..io.state import under
from .errors import LabError
from .files import make_folder, read_sealed, say_unsealed, sweep, write_csv, write_sealed
from .locks import locked
from .provenance import provenance
from .record import check
from .tasks.base import Drawn, Formulation, Model

__all__ = [
    "MODEL",
    "Checkpoint",
    "RunFolder",
    "differences",
    "digest",
    "identity",
    "stored_identity",
]

# Increased when a default or the meaning of a setting changes, so that old runs are never mistaken
# for new ones. Format 1 recorded all settings, including the defaults.
FORMAT = 2

# The file with a finished run's weights.
MODEL = "model.safetensors"

Identity = dict[str, Any]

_IDENTITY: dict[str, Any] = {"format": int, "task": str, "config": dict, "training": dict}
_IDENTITY |= {"formulation": str, "seed": range(2**63)}


def identity(
    task: str, config: Any, training: Any, formulation: Formulation, seed: int
) -> Identity:
    """Everything that the numbers of a run depend on, and nothing else, as JSON values.

    Only settings that differ from their defaults are included, so that adding an option leaves the
    identity of earlier runs unchanged. The device, the checkpoint interval and the folder of a
    public data set are not included; the folder of the user's own data is.

    Args:
        task: its name.
        config: its settings, a dataclass.
        training: a :class:`~hyperlight.lab.train.Training`.
        formulation: how the weights are made.
        seed: the replica.
    """
    about = _changed(config)
    folder = about.pop("data_dir", None)
    if about.get("data") == "folder" and folder is not None:
        about["data_dir"] = str(Path(folder).resolve())
    how = _changed(training)
    found: Identity = json.loads(
        json.dumps(
            {
                "format": FORMAT,
                "task": task,
                "config": about,
                "training": {name: how[name] for name in training.decisive() if name in how},
                "formulation": formulation,
                "seed": seed,
            }
        )
    )
    return found


def _changed(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults."""
    defaults = type(settings)()
    return {
        name: value
        for name, value in dataclasses.asdict(settings).items()
        if value != getattr(defaults, name)
    }


def digest(about: Identity, length: int = 12) -> str:
    """A short name for an identity: the first digits of the sha256 of its JSON."""
    text = json.dumps(about, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """The differences of two identities, a line each: ``lr: 0.001, now the default``."""
    lines = []
    for key in dict.fromkeys((*found, *expected)):
        a, b = found.get(key, "the default"), expected.get(key, "the default")
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b)
        elif a != b:
            lines.append(f"{key}: {a}, now {b}")
    return lines


@dataclass(frozen=True)
class Checkpoint:
    """The state from which an interrupted run resumes.

    Attributes:
        path: of the file.
        record: the measurements so far, from :meth:`Run.record`.
        tensors: of the model, the optimizer and the random draws, by name.
        groups: the parameter groups of the optimizer, as JSON values.
    """

    path: Path
    record: dict[str, Any]
    tensors: dict[str, Tensor]
    groups: list[dict[str, Any]]

    def restore(
        self,
        model: Model,
        optimizer: optim.Optimizer,
        batches: Drawn,
        gammas: torch.Generator,
    ) -> None:
        """Restore the state of a run.

        Raises:
            LabError: it is the state of something else.
        """
        weights, draws = under("model.", self.tensors), under("draws.", self.tensors)
        own = {f"batches.{name}": tensor for name, tensor in batches.state_dict().items()}
        own["gammas"] = gammas.get_state()
        for name, tensor in own.items():
            if name in draws and draws[name].ndim == tensor.ndim:
                own[name] = tensor.new_empty(draws[name].shape)  # any part of an epoch may be left
        try:
            words = tensor_differences(weights, model.state_dict(), "the model", "it")
            words += tensor_differences(draws, own, "the data", "it")
            if words:
                raise ValueError("; ".join(words))
            model.load_state_dict(weights)
            self._restore_optimizer(optimizer)
            batches.load_state_dict(under("batches.", draws))
            gammas.set_state(draws["gammas"])
        except Exception as error:  # torch raises nearly anything about the state of others
            raise LabError(
                f"The checkpoint {self.path} does not fit this run ({error}). Delete it to start "
                "this run again."
            ) from error

    def _restore_optimizer(self, optimizer: optim.Optimizer) -> None:
        found = under("optimizer.", self.tensors)
        own = optimizer.state_dict()["param_groups"]
        if len(own) != len(self.groups):
            raise ValueError(f"it has {len(self.groups)} groups of parameters, not {len(own)}")
        for group, kept in zip(own, self.groups, strict=True):
            odd = {k: v for k, v in kept.items() if k not in group or not _alike(v, group[k])}
            if odd or kept.get("params") != group["params"]:
                raise ValueError(f"it has a group of parameters with {odd or kept!r:.80}")
        names = ["momentum_buffer"]
        if not isinstance(optimizer, optim.SGD):
            names = ["step", "exp_avg", "exp_avg_sq"]
        updated = {name.partition(".")[0] for name in found}
        expected: dict[str, Tensor] = {}
        state: dict[int, dict[str, Any]] = {}
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, p in enumerate(parameters):
            for name in names if str(index) in updated else ():
                like = torch.zeros(()) if name == "step" else p
                expected[f"{index}.{name}"] = torch.empty_like(like, device="meta")
                state.setdefault(index, {})[name] = found.get(f"{index}.{name}")
        words = tensor_differences(found, expected, "the optimizer", "it")
        if words:
            raise ValueError("; ".join(words))
        groups = [
            {k: tuple(v) if k == "betas" else v for k, v in {**group, **kept}.items()}
            for group, kept in zip(own, self.groups, strict=True)
        ]
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def _alike(value: Any, own: Any) -> bool:
    """Whether a JSON value can take the place of a setting of an optimizer."""
    if own is None or isinstance(own, bool):
        return value is None or isinstance(value, bool)
    if isinstance(own, (list, tuple)):
        return isinstance(value, list) and len(value) == len(own) and all(map(_alike, value, own))
    return fits(value, str if isinstance(own, str) else (int, float))


class RunFolder:
    """The folder of one run.

    Args:
        path: of the folder, which is created.
        about: the identity of the run.

    Raises:
        LabError: the folder cannot be created.
    """

    def __init__(self, path: Path, about: Identity) -> None:
        self.path = path
        self.about = about
        self.checkpoint = path / "checkpoint.safetensors"
        self.model = path / MODEL
        self.record = path / "record.json"
        self._model_sum: str | None = None
        make_folder(path)

    @contextlib.contextmanager
    def locked(
        self,
        wait: Callable[[str], object] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[None]:
        """Hold the folder, and remove what a killed process left half-written.

        Args:
            wait: as in :func:`~hyperlight.lab.locks.locked`.
            stop: the same.

        Raises:
            LabError: another process holds the folder, or it has links, through which training
                would write elsewhere.
        """
        with locked(self.path, wait, stop) as held:
            links = [path.name for path in self.path.iterdir() if path.is_symlink()]
            if links:
                raise LabError(
                    f"{self.path} has the links {listed(links)}; expected files of a run, which "
                    "are written in place. Remove the links, or choose another --out."
                )
            if held:
                sweep(self.path)
            yield

    def keep(
        self,
        record: dict[str, Any],
        model: Model,
        optimizer: optim.Optimizer,
        draws: Mapping[str, Tensor],
    ) -> None:
        """Write a checkpoint, which replaces the previous one.

        Raises:
            LabError: it cannot be written; the previous one is kept.
        """
        state = optimizer.state_dict()
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        for index, values in state["state"].items():
            for key, value in values.items():
                if value is not None:
                    tensors[f"optimizer.{index}.{key}"] = value
        tensors.update({f"draws.{name}": tensor for name, tensor in draws.items()})
        metadata = {
            "identity": json.dumps(self.about),
            "record": json.dumps(record),
            "optimizer": json.dumps({"param_groups": state["param_groups"]}),
        }
        try:
            _write(self.checkpoint, tensors, metadata)
        except OSError as error:
            raise LabError(
                f"The checkpoint {self.checkpoint} could not be written ({error}). {self.kept()}"
            ) from error

    def kept(self) -> str:
        """What is left of the run after an error in writing, and what to do."""
        if not self.path.is_dir():
            return (
                f"The folder {self.path} is gone, with all checkpoints in it. The same command "
                "starts this run again."
            )
        if not self.checkpoint.is_file():
            return (
                "There is no earlier checkpoint. Free some space; the same command then starts "
                "this run again."
            )
        return (
            "The previous checkpoint is kept. Free some space; the same command then resumes from "
            "it."
        )

    def load(self) -> Checkpoint | None:
        """The checkpoint, if there is one.

        Raises:
            LabError: it is damaged, or from a run with other settings.
        """
        if not self.checkpoint.is_file():
            return None
        try:
            contents = container.read(self.checkpoint)
            about, record, optimizer = (
                _metadata(contents, name) for name in ("identity", "record", "optimizer")
            )
            for name, value, kind in (
                ("identity", about, _IDENTITY),
                ("record", record, dict),
                ("optimizer", optimizer, {"param_groups": [dict]}),
            ):
                if not fits(value, kind):
                    raise ValueError(f"its {name!r} is {value!r:.60}")
            check(record, finished=False)
        except (FormatError, OSError, ValueError) as error:
            raise LabError(
                f"The checkpoint {self.checkpoint} cannot be read ({error}). Delete it to start "
                "this run again."
            ) from error
        self._compare(about, self.checkpoint)
        if not contents.sealed:
            say_unsealed(self.path.parent)
        return Checkpoint(self.checkpoint, record, contents.tensors, optimizer["param_groups"])

    def finish(self, record: dict[str, Any], model: Model) -> None:
        """Write the model and then the record, and delete the checkpoint.

        Raises:
            LabError: a file cannot be written; the checkpoint is kept.
        """
        try:
            if isinstance(model, HyperModel):
                with warnings.catch_warnings():  # a run that diverged is a result as well
                    warnings.filterwarnings("ignore", message=".* are NaN or infinite")
                    save(model, self.model)
            else:
                _write(self.model, model.saved.state_dict(), {"format": "pt"})
            self.write_record(record)
        except (FormatError, OSError) as error:
            raise LabError(
                f"The results in {self.path} could not be written ({error}). {self.kept()}"
            ) from error
        self.checkpoint.unlink(missing_ok=True)

    def write_record(self, record: dict[str, Any]) -> None:
        """Write the record, which marks the run as finished. It states the checksum of the model.

        Raises:
            OSError: it cannot be written.
        """
        self._model_sum = _sum(self.model) if self.model.is_file() else None
        about = {
            "identity": self.about,
            "provenance": provenance(),
            "model_sha256": self._model_sum,
        }
        write_sealed(self.record, {**about, **record})

    def write_metrics(self, heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write the points so far as ``metrics.csv``.

        Raises:
            LabError: it cannot be written.
        """
        path = self.path / "metrics.csv"
        try:
            write_csv(path, heading, rows)
        except OSError as error:
            raise LabError(f"{path} could not be written ({error}). {self.kept()}") from error

    def finished(self) -> dict[str, Any] | None:
        """The record of the run with its provenance, if it is finished.

        Raises:
            LabError: it is damaged, or from a run with other settings.
        """
        if not self.record.is_file():
            return None
        try:
            record, sealed = read_sealed(self.record)
            about, self._model_sum = record.pop("identity", None), record.pop("model_sha256", None)
            if not fits(about, _IDENTITY):
                raise ValueError(f"its 'identity' is {about!r:.60}")
            if not fits(self._model_sum, (str, NoneType)):
                raise ValueError(f"its 'model_sha256' is {self._model_sum!r:.60}")
            check(record, finished=True)
        except (OSError, ValueError) as error:
            raise LabError(
                f"The record {self.record} cannot be read ({error}). Delete the folder "
                f"{self.path} to train this run again."
            ) from error
        self._compare(about, self.record)
        if not sealed:
            say_unsealed(self.path.parent)
        return record

    def load_model(self, model: Model) -> None:
        """Load the trained weights into a model, once the record was read.

        Raises:
            LabError: they are missing, damaged, or not those that the record was written for.
        """
        target = model if isinstance(model, HyperModel) else model.saved
        try:
            if self._model_sum not in (None, _sum(self.model)):
                raise ValueError("it is not the file that was written with the record")
            contents = container.read(self.model)
            words = tensor_differences(contents.tensors, target.state_dict(), "the model", "it")
            if words:
                raise ValueError("; ".join(words))
            target.load_state_dict(contents.tensors)
        except Exception as error:
            raise LabError(
                f"The weights {self.model} cannot be read ({error}). Delete the folder "
                f"{self.path} to train this run again."
            ) from error
        if not contents.sealed:
            say_unsealed(self.path.parent)

    def _compare(self, found: Identity, path: Path) -> None:
        lines = differences(found, self.about)
        if lines:
            raise LabError(
                f"{path} is from a run with other settings ({'; '.join(lines)}). Choose another "
                "--out, or pass --overwrite to replace it."
            )


def stored_identity(folder: Path) -> Identity | None:
    """The identity of the run in a folder, as its record or checkpoint says, if it can be read."""
    record = folder / "record.json"
    with contextlib.suppress(FormatError, OSError, ValueError):
        if record.is_file():
            found: Any = read_sealed(record)[0].get("identity")
        else:
            found = _metadata(container.read(folder / "checkpoint.safetensors"), "identity")
        return found if fits(found, _IDENTITY) else None
    return None


def _metadata(contents: container.Contents, name: str) -> Any:
    return read_json(contents.metadata.get(name, "null"), finite=False)


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file with a checksum, wide dtypes first, so that every tensor is aligned."""
    order = sorted(tensors, key=lambda name: tensors[name].dtype.itemsize, reverse=True)
    container.write(path, {name: tensors[name] for name in order}, metadata)


def _sum(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
