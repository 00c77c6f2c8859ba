"""A run on disk: its identity, its checkpoint and its results.

During training the folder of a run holds ``checkpoint.safetensors``, with every tensor that the
next steps depend on and, as metadata, all measurements so far; and ``metrics.csv``. After training
it holds ``model.safetensors`` (see :func:`hyperlight.save`) and ``record.json``, which is written
last: a run with a record is finished. Every file is written completely or not at all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, optim

from .. import HyperModel, save
from .errors import LabError
from .files import replace_file, write_csv, write_text
from .provenance import provenance
from .tasks.base import Fixed, Formulation, Model

__all__ = ["Checkpoint", "RunFolder", "differences", "digest", "identity"]

# Increased when a default or the meaning of a setting changes, so that old runs are never mistaken
# for new ones. Format 1 recorded all settings, including the defaults.
FORMAT = 2

Identity = dict[str, Any]

# Temporary files: ours, and those of safetensors.
_PARTS = (".*.safetensors.*", ".*.json.*", ".*.csv.*", ".tmp*")


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


def _mapping(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, found {text[:20]!r}")
    return found


@dataclass(frozen=True)
class Checkpoint:
    """The state from which an interrupted run resumes.

    Attributes:
        record: the measurements so far, from :meth:`Run.record`.
        tensors: of the model, the optimizer and the random draws, by name.
        optimizer: the rest of the optimizer's state, as JSON values.
    """

    record: dict[str, Any]
    tensors: dict[str, Tensor]
    optimizer: dict[str, Any]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with ``prefix``, which is removed."""
        return {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)}

    def restore(self, optimizer: optim.Optimizer) -> None:
        """Restore the state of an optimizer."""
        state: dict[int, dict[str, Any]] = {
            int(index): dict(values) for index, values in self.optimizer["state"].items()
        }
        for name, tensor in self.under("optimizer.").items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        groups = [
            {k: tuple(v) if k == "betas" else v for k, v in group.items()}
            for group in self.optimizer["param_groups"]
        ]
        optimizer.load_state_dict({"state": state, "param_groups": groups})


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
        self.model = path / "model.safetensors"
        self.record = path / "record.json"
        self._swept = False
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LabError(
                f"The folder {path} cannot be created ({error.strerror}). Choose another --out."
            ) from error

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
        if not self._swept:
            self._sweep()
            self._swept = True
        state = optimizer.state_dict()
        rest: dict[str, Any] = {"state": {}, "param_groups": state["param_groups"]}
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        for index, values in state["state"].items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{key}"] = value
                elif value is not None:
                    rest["state"].setdefault(index, {})[key] = value
        tensors.update({f"draws.{name}": tensor for name, tensor in draws.items()})
        on_cpu = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        metadata = {
            "identity": json.dumps(self.about),
            "record": json.dumps(record),
            "optimizer": json.dumps(rest),
        }
        try:
            replace_file(
                self.checkpoint, lambda part: save_file(on_cpu, part, metadata), durable=True
            )
        except (OSError, SafetensorError) as error:
            raise LabError(
                f"The checkpoint {self.checkpoint} could not be written ({error}). The previous "
                "one is kept. Free some space; the same command then resumes from there."
            ) from error

    def load(self) -> Checkpoint | None:
        """The checkpoint, if there is one.

        Raises:
            LabError: it is damaged, or from a run with other settings.
        """
        if not self.checkpoint.is_file():
            return None
        try:
            with safe_open(self.checkpoint, framework="pt") as file:
                metadata = file.metadata() or {}
            about = _mapping(metadata["identity"])
            found = Checkpoint(
                record=_mapping(metadata["record"]),
                tensors=load_file(self.checkpoint),
                optimizer=_mapping(metadata["optimizer"]),
            )
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise LabError(
                f"The checkpoint {self.checkpoint} cannot be read ({error}). Delete it to start "
                "this run again."
            ) from error
        self._compare(about, self.checkpoint)
        return found

    def finish(self, record: dict[str, Any], model: Model) -> None:
        """Write the model and then the record, and delete the checkpoint.

        Raises:
            LabError: a file cannot be written; the checkpoint is kept.
        """
        try:
            if isinstance(model, HyperModel):
                save(model, self.model)
            else:
                state = {
                    name: tensor.detach().cpu().contiguous()
                    for name, tensor in model.primary.state_dict().items()
                }
                replace_file(self.model, lambda part: save_file(state, part), durable=True)
            self.write_record(record)
        except (OSError, SafetensorError) as error:
            raise LabError(
                f"The results in {self.path} could not be written ({error}). Free some space and "
                "repeat the same command; no training is lost."
            ) from error
        self.checkpoint.unlink(missing_ok=True)
        self._sweep()

    def _sweep(self) -> None:
        """Remove the temporary files of a killed process."""
        for pattern in _PARTS:
            for part in self.path.glob(pattern):
                part.unlink(missing_ok=True)

    def write_record(self, record: dict[str, Any]) -> None:
        """Write the record, which marks the run as finished."""
        made = {"identity": self.about, "provenance": provenance(), **record}
        write_text(self.record, json.dumps(made) + "\n")

    def write_metrics(self, heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write the points so far as ``metrics.csv``.

        Raises:
            LabError: it cannot be written.
        """
        try:
            write_csv(self.path / "metrics.csv", heading, rows)
        except OSError as error:
            raise LabError(
                f"{self.path / 'metrics.csv'} could not be written ({error}). Free some space; the "
                "same command then resumes from the last checkpoint."
            ) from error

    def finished(self) -> dict[str, Any] | None:
        """The record of the run, if it is finished.

        Raises:
            LabError: it is damaged, or from a run with other settings.
        """
        if not self.record.is_file():
            return None
        try:
            record = _mapping(self.record.read_text("utf-8"))
            about = record.pop("identity")
        except (OSError, ValueError, KeyError) as error:
            raise LabError(
                f"The record {self.record} cannot be read ({error}). Delete the folder "
                f"{self.path} to train this run again."
            ) from error
        self._compare(about, self.record)
        return record

    def load_model(self, model: Model) -> None:
        """Load the trained weights into a model.

        Raises:
            LabError: they are missing or damaged.
        """
        target = model.primary if isinstance(model, Fixed) else model
        try:
            target.load_state_dict(load_file(self.model))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise LabError(
                f"The weights {self.model} cannot be read ({error}). Delete the folder "
                f"{self.path} to train this run again."
            ) from error

    def _compare(self, found: Identity, path: Path) -> None:
        lines = differences(found, self.about)
        if lines:
            raise LabError(
                f"{path} is from a run with other settings ({'; '.join(lines)}). Choose another "
                "--out, or pass --overwrite to replace it."
            )
