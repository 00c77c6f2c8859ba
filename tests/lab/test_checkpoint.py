"""A run on disk: what it is known by, what it goes on from, and what is left of damaged files."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import os
import random
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric import Fabric
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import hyperlight as hl
from hyperlight.io import container
from hyperlight.io.state import under
from hyperlight.lab import checkpoint
from hyperlight.lab.checkpoint import (
    Checkpoint,
    RunFolder,
    differences,
    digest,
    identity,
    stored_identity,
)
from hyperlight.lab.data import Batches, Images
from hyperlight.lab.errors import LabError
from hyperlight.lab.files import write_sealed
from hyperlight.lab.locks import LOCK
from hyperlight.lab.methods import Method
from hyperlight.lab.provenance import provenance
from hyperlight.lab.record import Point, Run
from hyperlight.lab.tasks import KINDS
from hyperlight.lab.tasks.base import Fixed, Formulation, Model, Outcome
from hyperlight.lab.tasks.bayes import Bayes, BayesTask
from hyperlight.lab.tasks.hypermorph import Hypermorph
from hyperlight.lab.train import Training, train
from tests.lab.making import (
    equal_profiles,
    equal_tensors,
    equal_values,
    listing,
    make_run,
    plain_run,
    small_model,
)

ABOUT = identity("bayes", Bayes(), Training(), "mip", 0)


def _record(steps: int = 2, **changes: Any) -> dict[str, Any]:
    """The record of a run of so many steps."""
    accuracy = [10.0 + i for i in range(steps + 1)]
    record = make_run("mip", accuracy=accuracy, every=1, **changes).record()
    found: dict[str, Any] = json.loads(json.dumps(record))
    return found


RECORD = _record()


def _batches(seed: int = 5, size: int = 40) -> Batches[Images]:
    """Batches in the middle of an epoch."""
    made = Batches(Images(torch.zeros(size, 1, 2, 2), torch.zeros(size).long()), 4, seed)
    next(made)
    return made


def _draws(batches: Batches[Images], gammas: torch.Generator) -> dict[str, Tensor]:
    found = {f"batches.{name}": tensor for name, tensor in batches.state_dict().items()}
    return {**found, "gammas": gammas.get_state()}


DRAWS = _draws(_batches(), torch.Generator().manual_seed(6))


# --- identity -------------------------------------------------------------------


BAYES, TRAINING = Bayes(), Training()


def _digest(
    config: Any = BAYES,
    training: Training = TRAINING,
    task: str = "bayes",
    formulation: Formulation = "mip",
    seed: int = 0,
) -> str:
    return digest(identity(task, config, training, formulation, seed), length=64)


@pytest.mark.parametrize("kind", [kind.config for kind in KINDS.values()], ids=list(KINDS))
def test_every_setting_of_a_task_counts_but_where_its_data_lie(kind: type[Any]) -> None:
    names = [field.name for field in dataclasses.fields(kind)]
    assert {"data", "data_dir", "hidden"} < set(names)
    for name in names:
        other = Path("elsewhere") if name == "data_dir" else "another"
        counts = _digest(kind(**{name: other})) != _digest(kind())
        assert counts == (name != "data_dir"), name


def test_of_training_that_counts_which_the_numbers_depend_on() -> None:
    assert ABOUT["training"] == ABOUT["config"] == {}  # the defaults
    about = identity("bayes", Bayes(), Training(steps=5, seeds=9, lr=0.1), "mip", 0)
    assert about["training"] == {"lr": 0.1, "steps": 5}
    assert _digest(training=Training(seeds=9, target=None, device="cpu", devices=2)) == (
        _digest(training=Training(checkpoint_seconds=0.0))
    )
    others = [Training(lr=0.1), Training(steps=5), Training(weight_decay=0.1)]
    others += [Training(optimizer="sgd"), Training(batch_size=4), Training(evaluate_every=3)]
    others += [Training(precision="bf16-mixed"), Training(rates="groups")]
    others += [Training(schedule="cosine")]
    assert len({_digest(training=training) for training in (Training(), *others)}) == 10


def test_task_formulation_and_seed_count() -> None:
    found = {_digest(formulation=name) for name in get_args(Formulation)}
    found |= {_digest(seed=seed) for seed in (1, 2)}
    found |= {_digest(task="other")}
    assert len(found) == len(get_args(Formulation)) + 3


def test_the_folder_of_ones_own_data_counts_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "scans")
    (tmp_path / "scans").mkdir()

    def own(folder: str | Path) -> str:
        return _digest(Hypermorph(data="folder", data_dir=Path(folder)))

    assert own("scans") == own(tmp_path / "scans") == own("link") == own("x/../scans")
    assert own("scans") != own("others")
    assert _digest(Hypermorph(data="oasis", data_dir=Path("scans"))) == (
        _digest(Hypermorph(data="oasis"))
    )


def test_an_identity_comes_back_from_json_as_it_is() -> None:
    about = identity("hypermorph", Hypermorph(size=(8, 8)), Training(), "plain", 3)
    assert json.loads(json.dumps(about)) == about
    assert about["config"]["size"] == [8, 8]
    assert (about["task"], about["formulation"], about["seed"]) == ("hypermorph", "plain", 3)
    assert about["format"] == checkpoint.FORMAT
    assert set(about) == {"format", "task", "config", "training", "formulation", "seed"}


def test_the_digest_never_changes() -> None:
    assert digest({"a": 1}) == "015abd7f5cc5"
    assert digest({"a": 1}, 8) == "015abd7f"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=2), JSON, max_size=4)


@given(OBJECTS, st.randoms())
def test_the_digest_does_not_depend_on_the_order(about: dict[str, Any], random: Any) -> None:
    names = list(about)
    random.shuffle(names)
    assert digest({name: about[name] for name in names}) == digest(about)


# --- differences ----------------------------------------------------------------


def test_differences_name_settings_and_both_values() -> None:
    now = identity("bayes", Bayes(hidden=(4,)), Training(lr=1e-3, steps=7), "mip", 1)
    assert differences(ABOUT, now) == [
        "hidden: the default, now [4]",
        "lr: the default, now 0.001",
        "steps: the default, now 7",
        "seed: 0, now 1",
    ]
    assert differences({"a": 1}, {"b": None, "c": 2}) == [
        "a: 1, now the default",
        "b: the default, now None",
        "c: the default, now 2",
    ]
    assert differences({"a": {"b": 1}}, {"a": 2}) == ["a: {'b': 1}, now 2"]


@given(OBJECTS, OBJECTS)
def test_there_are_none_where_both_are_the_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert differences(a, copy.deepcopy(a)) == []
    lines = differences(a, b)
    assert len(lines) == len(differences(b, a))
    assert (not lines) == (a == b)


# --- checkpoints ----------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run", ABOUT)


def test_a_folder_with_links_is_refused(run_folder: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("not to be written to")
    (run_folder.path / "warps.png").symlink_to(tmp_path / "mine")
    with (
        pytest.raises(LabError, match=r"run has the links 'warps.png'.* Remove the links"),
        run_folder.locked(),
    ):
        pass
    assert not (run_folder.path / LOCK).exists()


def _fixed() -> Fixed:
    return Fixed(nn.Linear(3, 2), {"gamma": torch.tensor(0.5)})


def _step(model: Model, optimizer: torch.optim.Optimizer, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 3, generator=draw)
    gamma = model.sample(generator=draw)
    optimizer.zero_grad()
    model(x, **gamma).square().sum().backward()
    optimizer.step()


def _trained(
    make: Callable[[], Model], training: Training, steps: int
) -> tuple[Model, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = make()
    optimizer = training.make_optimizer(model)
    for step in range(steps):
        _step(model, optimizer, step)
    return model, optimizer


def _keep(folder: RunFolder, steps: int = 2, **changes: Any) -> tuple[Model, Any]:
    """Keep a model after a few steps."""
    training = Training(**{"optimizer": "adam", "lr": 0.1, **changes})
    model, optimizer = _trained(small_model, training, steps)
    folder.keep(_record(steps), model, optimizer, DRAWS)
    return model, optimizer


@settings(max_examples=60)
@given(
    optimizer=st.sampled_from(["adam", "adamw", "sgd"]),
    steps=st.integers(0, 3),
    decay=st.sampled_from([0.0, 0.1]),
    rates=st.sampled_from(["same", "groups"]),
    plain=st.booleans(),
    drawn=st.integers(0, 12),
)
def test_a_checkpoint_brings_everything_back_to_the_bit(
    optimizer: Any, steps: int, decay: float, rates: Any, plain: bool, drawn: int
) -> None:
    training = Training(optimizer=optimizer, lr=0.03, weight_decay=decay, rates=rates)
    make: Callable[[], Model] = _fixed if plain else small_model
    model, made = _trained(make, training, steps)
    batches, gammas = _batches(), torch.Generator().manual_seed(7)
    for _ in range(drawn):
        next(batches)
        torch.rand(3, generator=gammas)
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place), ABOUT)
        folder.keep(_record(steps), model, made, _draws(batches, gammas))
        saved = RunFolder(Path(place), ABOUT).load()
        assert listing(Path(place)) == ["checkpoint.safetensors"]
    assert saved is not None
    assert equal_values(saved.record, _record(steps))

    torch.manual_seed(4)
    again = make()
    restored = training.make_optimizer(again)
    others = _batches(8), torch.Generator()
    saved.restore(again, restored, *others)
    assert equal_tensors(again.state_dict(), model.state_dict())
    _assert_equal_states(restored.state_dict(), made.state_dict())
    found, expected = _draws(*others), _draws(batches, gammas)
    assert equal_tensors(found, expected)
    for seed in (7, 8):
        for pair in ((model, made), (again, restored)):
            _step(*pair, seed)
    assert equal_tensors(again.state_dict(), model.state_dict())
    _assert_equal_states(restored.state_dict(), made.state_dict())


def _assert_equal_states(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["param_groups"] == expected["param_groups"]
    assert set(found["state"]) == set(expected["state"])
    for index, values in expected["state"].items():
        kept = found["state"][index]
        for name in {*values, *kept}:
            # An optimizer may know "nothing yet" as None or by having no entry.
            a, b = kept.get(name), values.get(name)
            if isinstance(b, Tensor):
                assert isinstance(a, Tensor)
                assert a.dtype == b.dtype
                assert torch.equal(a, b)
            else:
                assert a == b


def test_a_new_folder_has_neither_a_checkpoint_nor_a_record(run_folder: RunFolder) -> None:
    assert run_folder.path.is_dir()
    assert run_folder.load() is None
    assert run_folder.finished() is None


def test_a_checkpoint_takes_the_place_of_the_last(run_folder: RunFolder) -> None:
    _keep(run_folder, 1)
    model, _ = _keep(run_folder, 2)
    _assert_kept(run_folder, 2, model)
    assert listing(run_folder.path) == ["checkpoint.safetensors"]


def _assert_kept(run_folder: RunFolder, steps: int, model: Model) -> None:
    saved = run_folder.load()
    assert saved is not None
    assert len(saved.record["loss"]) == steps
    assert equal_tensors(
        dict(sorted(under("model.", saved.tensors).items())),
        dict(sorted(model.state_dict().items())),
    )


def test_a_checkpoint_of_weights_that_diverged(run_folder: RunFolder) -> None:
    model, optimizer = _trained(small_model, Training(lr=0.1), 1)
    for parameter in model.parameters():
        parameter.data.fill_(math.nan)
    record = _record(losses=[math.nan, math.inf])
    run_folder.keep(record, model, optimizer, {})
    saved = run_folder.load()
    assert saved is not None
    assert equal_values(saved.record, record)
    assert all(bool(t.isnan().all()) for t in under("model.", saved.tensors).values())


# --- the record of a run --------------------------------------------------------

numbers = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(numbers, min_size=2, max_size=6), st.data())
def test_what_was_measured_comes_back_to_the_bit(values: list[float], data: st.DataObject) -> None:
    run = make_run("mip", 2, accuracy=values, losses=values, norms=values, final=None)
    run.points = [
        Point(i, data.draw(numbers), value, {"loss": value, "accuracy": data.draw(numbers)})
        for i, value in enumerate(values)
    ]
    run.resumed = [3, 4]
    run.outcome = Outcome(
        {"a": data.draw(numbers), "b": data.draw(numbers)},
        [("A title", ("x", "y"), [(1, data.draw(numbers)), ("word", None)])],
        [("A caption", Path("run") / "x.png")],
    )
    record = json.loads(json.dumps(run.record()))
    again = Run(Method.of("mip"), 2, "accuracy", folder=Path("moved"))
    again.read(record)
    for name in ("loss", "gradient_norm", "seconds", "waiting", "resumed"):
        assert equal_values(getattr(again, name), getattr(run, name)), name
    kept, measured = ([dataclasses.asdict(p) for p in r.points] for r in (again, run))
    assert equal_values(kept, measured)
    assert equal_profiles(again.initial, run.initial)
    assert again.final is None
    assert again.outcome is not None
    assert equal_values(again.outcome.figures, run.outcome.figures)
    (table,), (found,) = run.outcome.tables, again.outcome.tables
    assert equal_values(json.loads(json.dumps(table)), json.loads(json.dumps(found)))
    assert again.outcome.pictures == [("A caption", Path("moved") / "x.png")]


def test_a_plain_network_has_a_record_without_scales() -> None:
    run = plain_run()
    again = Run(Method.of("plain"), 0, "accuracy")
    again.read(json.loads(json.dumps(run.record())))
    assert again.initial is None
    assert again.final is None
    assert again.outcome is None
    assert again.points[1:] == run.points[1:]


# --- finished runs --------------------------------------------------------------


def test_a_finished_run_has_a_record_and_a_model_and_no_checkpoint(run_folder: RunFolder) -> None:
    model, _ = _keep(run_folder)
    made = _record(losses=[1.0, math.nan])
    run_folder.finish(made, model)
    assert listing(run_folder.path) == ["model.safetensors", "record.json"]
    record = run_folder.finished()
    assert record is not None
    assert record.pop("provenance") == provenance()
    assert equal_values(record, made)
    written = json.loads((run_folder.path / "record.json").read_text("utf-8"))
    assert written["identity"] == ABOUT
    weights = (run_folder.path / "model.safetensors").read_bytes()
    assert written["model_sha256"] == hashlib.sha256(weights).hexdigest()


@pytest.mark.parametrize("bad", [None, math.nan])
def test_a_model_loads_back_equal(run_folder: RunFolder, bad: float | None) -> None:
    model = small_model()
    if bad is not None:
        for parameter in model.parameters():
            parameter.data.fill_(bad)
    run_folder.finish(RECORD, model)
    state = dict(sorted(model.state_dict().items()))
    loaded = dict(sorted(load_file(run_folder.model).items()))
    again = small_model()
    run_folder.load_model(again)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore" if bad else "error", message=".* NaN or infinite")
        shipped = hl.load(run_folder.model, nn.Linear(3, 2))  # as the user does
    found = (loaded, *(dict(sorted(m.state_dict().items())) for m in (again, shipped)))
    for tensors in found:
        if bad is None:
            assert equal_tensors(tensors, state)
        assert list(tensors) == list(state)
        assert all(bool(t.isnan().all()) == (bad is not None) for t in tensors.values())


def test_a_plain_network_loads_back_equal_and_is_a_plain_file(run_folder: RunFolder) -> None:
    model = _fixed()
    run_folder.finish(RECORD, model)
    network = nn.Linear(3, 2)
    network.load_state_dict(load_file(run_folder.model))  # as the user does
    assert equal_tensors(network.state_dict(), model.primary.state_dict())
    again = _fixed()
    run_folder.load_model(again)
    assert equal_tensors(again.state_dict(), model.state_dict())


def test_a_finished_run_is_not_trained_again(
    task: BayesTask, fabric: Fabric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(steps=2, evaluate_every=1, batch_size=4)
    *_, run = train(task, "mip", 0, training, fabric, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing is to be trained or evaluated")

    monkeypatch.setattr(task, "loss", refuse)
    monkeypatch.setattr(task, "evaluate", refuse)
    monkeypatch.setattr(task, "finish", refuse)
    # All but what the numbers depend on may be another.
    other = dataclasses.replace(training, seeds=7, target=None, checkpoint_seconds=0.0)
    (again,) = train(task, "mip", 0, other, fabric, tmp_path)
    assert equal_values(again.record(), json.loads(json.dumps(run.record())))
    assert again.model is not None
    assert run.model is not None
    assert equal_tensors(again.model.state_dict(), run.model.state_dict())
    assert again.folder == tmp_path
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


# --- damage ---------------------------------------------------------------------


def _truncate(share: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(share * (len(data) - 2))])

    return damage


def _rewrite(change: Callable[[dict[str, str]], dict[str, str] | None]) -> Callable[[Path], None]:
    """The same tensors with other metadata."""

    def damage(path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata())
        for name in ("checksum", "sha256"):
            metadata.pop(name, None)
        save_file(load_file(path), path, change(metadata))

    return damage


def _text(text: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(text, "utf-8") and None


DAMAGE = {
    "empty": _truncate(0.0),
    "a part of the header": _truncate(0.01),
    "half": _truncate(0.5),
    "all but the end": _truncate(1.0),
    "text": _text("something else altogether"),
}


@pytest.mark.parametrize(
    "damage",
    [
        *DAMAGE.values(),
        _rewrite(lambda metadata: None),
        _rewrite(lambda metadata: {k: v for k, v in metadata.items() if k != "record"}),
        _rewrite(lambda metadata: {**metadata, "identity": "{"}),
        _rewrite(lambda metadata: {**metadata, "identity": "[]"}),
        _rewrite(lambda metadata: {**metadata, "optimizer": "3"}),
    ],
    ids=[*DAMAGE, "no metadata", "no record", "no JSON", "no object", "no optimizer"],
)
def test_a_damaged_checkpoint_is_named(
    run_folder: RunFolder, damage: Callable[[Path], None]
) -> None:
    _keep(run_folder)
    damage(run_folder.checkpoint)
    with pytest.raises(LabError) as raised:
        run_folder.load()
    message = str(raised.value)
    assert message.startswith(f"The checkpoint {run_folder.checkpoint} cannot be read (")
    assert message.endswith("). Delete it to start this run again.")


def test_a_damaged_checkpoint_that_is_deleted_starts_the_run_again(
    task: BayesTask, fabric: Fabric, tmp_path: Path
) -> None:
    training = Training(steps=2, evaluate_every=2, batch_size=4)
    path = tmp_path / "checkpoint.safetensors"
    path.write_text("damaged")
    with pytest.raises(LabError, match="cannot be read"):
        next(train(task, "mip", 0, training, fabric, tmp_path))
    assert path.read_text() == "damaged"
    path.unlink()
    *_, run = train(task, "mip", 0, training, fabric, tmp_path)
    assert run.resumed == []


@pytest.mark.parametrize(
    "damage",
    [
        *DAMAGE.values(),
        _text("[]"),
        _text("3"),
        _text('{"loss": []}'),
        lambda p: p.write_bytes(b"\xff"),
    ],
    ids=[*DAMAGE, "a list", "a number", "no identity", "no UTF-8"],
)
def test_a_damaged_record_is_named(run_folder: RunFolder, damage: Callable[[Path], None]) -> None:
    run_folder.finish(RECORD, small_model())
    damage(run_folder.record)
    with pytest.raises(LabError) as raised:
        run_folder.finished()
    message = str(raised.value)
    assert message.startswith(f"The record {run_folder.record} cannot be read (")
    assert message.endswith(f"). Delete the folder {run_folder.path} to train this run again.")


@pytest.mark.parametrize(
    "damage",
    [*DAMAGE.values(), Path.unlink, lambda path: save_file({"weight": torch.zeros(2)}, path)],
    ids=[*DAMAGE, "missing", "another"],
)
@pytest.mark.parametrize("make", [small_model, _fixed], ids=["hypernetwork", "plain"])
def test_a_damaged_model_is_named(
    run_folder: RunFolder, make: Callable[[], Model], damage: Callable[[Path], None]
) -> None:
    run_folder.finish(RECORD, make())
    damage(run_folder.model)
    with pytest.raises(LabError) as raised:
        run_folder.load_model(make())
    message = str(raised.value)
    assert message.startswith(f"The weights {run_folder.model} cannot be read (")
    assert message.endswith(f"). Delete the folder {run_folder.path} to train this run again.")


# --- other settings -------------------------------------------------------------


@pytest.mark.parametrize("name", ["checkpoint", "record"])
def test_a_run_of_other_settings_is_refused_with_what_differs(tmp_path: Path, name: str) -> None:
    folder = RunFolder(tmp_path, ABOUT)
    model, _ = _keep(folder)
    if name == "record":
        folder.finish(RECORD, model)
    path = getattr(folder, name)
    kept = path.read_bytes()
    other = identity("bayes", Bayes(prior="normal"), Training(lr=1e-3), "classical", 0)
    with pytest.raises(LabError) as raised:
        getattr(RunFolder(tmp_path, other), "load" if name == "checkpoint" else "finished")()
    assert str(raised.value) == (
        f"{path} is from a run with other settings (prior: the default, now normal; lr: the "
        "default, now 0.001; formulation: mip, now classical). Choose another --out, or pass "
        "--overwrite to replace it."
    )
    assert path.read_bytes() == kept


def _interrupted(task: BayesTask, fabric: Fabric, folder: Path) -> Training:
    """Begin a run, and leave its checkpoint."""
    training = Training(steps=2, evaluate_every=2, batch_size=4)
    turn = train(task, "mip", 0, training, fabric, folder)
    next(turn)
    turn.close()
    return training


def test_training_refuses_the_folder_of_another_run(
    task: BayesTask, fabric: Fabric, tmp_path: Path
) -> None:
    training = _interrupted(task, fabric, tmp_path)
    with pytest.raises(LabError, match="other settings .*batch_size: 4, now 5"):
        next(train(task, "mip", 0, dataclasses.replace(training, batch_size=5), fabric, tmp_path))
    with pytest.raises(LabError, match=r"other settings \(seed: 0, now 1\)"):
        next(train(task, "mip", 1, training, fabric, tmp_path))


# --- a full disk ----------------------------------------------------------------

FULL = OSError(28, "No space left on device")


@pytest.fixture(params=["moving", "writing"])
def full_disk(request: pytest.FixtureRequest) -> Iterator[Callable[[], pytest.MonkeyPatch]]:
    """A function from whose call on the disk is full."""
    patch = pytest.MonkeyPatch()

    def fill() -> pytest.MonkeyPatch:
        def refuse(*_: object) -> None:
            raise FULL

        patch.setattr(*((os, "replace") if request.param == "moving" else (os, "fsync")), refuse)
        return patch

    yield fill
    patch.undo()


def test_a_full_disk_keeps_the_last_checkpoint(
    run_folder: RunFolder, full_disk: Callable[[], pytest.MonkeyPatch]
) -> None:
    model, _ = _keep(run_folder, 1)
    patch = full_disk()
    with pytest.raises(LabError) as raised:
        _keep(run_folder, 2)
    message = str(raised.value)
    assert message.startswith(f"The checkpoint {run_folder.checkpoint} could not be written (")
    assert "No space left on device" in message
    assert message.endswith(
        "The previous checkpoint is kept. Free some space; the same command then resumes from it."
    )
    assert listing(run_folder.path) == ["checkpoint.safetensors"]
    patch.undo()
    _assert_kept(run_folder, 1, model)


def test_a_full_disk_in_the_end_keeps_the_checkpoint(
    run_folder: RunFolder, full_disk: Callable[[], pytest.MonkeyPatch]
) -> None:
    _keep(run_folder, 1)
    patch = full_disk()
    with pytest.raises(LabError) as raised:
        run_folder.finish(RECORD, _fixed())
    message = str(raised.value)
    assert message.startswith(f"The results in {run_folder.path} could not be written (")
    assert "No space left on device" in message
    assert message.endswith(
        "The previous checkpoint is kept. Free some space; the same command then resumes from it."
    )
    assert listing(run_folder.path) == ["checkpoint.safetensors"]
    patch.undo()
    assert run_folder.finished() is None
    assert run_folder.load() is not None


@pytest.mark.parametrize("name", ["model.safetensors", "record.json"])
def test_a_run_without_its_model_or_record_is_not_finished(
    run_folder: RunFolder, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model, _ = _keep(run_folder, 1)
    replace = os.replace

    def refuse(source: Any, target: Any) -> None:
        if Path(target).name == name:
            raise FULL
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(LabError, match=r"could not be written \(.*No space left on device"):
        run_folder.finish(RECORD, model)
    assert run_folder.finished() is None
    assert name not in listing(run_folder.path)
    assert not [n for n in listing(run_folder.path) if n.startswith(".")]
    assert run_folder.load() is not None


@pytest.mark.parametrize("name", ["model.safetensors", "record.json", "metrics.csv"])
def test_a_run_that_a_full_disk_ended_goes_on_without_a_step(
    task: BayesTask,
    fabric: Fabric,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """Where results cannot be written nothing that was trained is lost, as the message says."""
    training = Training(steps=3, evaluate_every=3, batch_size=4)
    *_, whole = train(task, "mip", 0, training, fabric, tmp_path / "whole")
    replace = os.replace

    def refuse(source: Any, target: Any) -> None:
        if Path(target).name == name:
            raise FULL
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(LabError, match="No space left on device"):
            list(train(task, "mip", 0, training, fabric, tmp_path / "full"))
    monkeypatch.setattr(task, "loss", None)  # no step is left
    *_, run = train(task, "mip", 0, training, fabric, tmp_path / "full")
    assert run.resumed == [3]
    assert run.loss == whole.loss
    assert run.points[-1].figures == whole.points[-1].figures
    names = ("whole", "full")
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in names]
    assert models[0] == models[1]


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(LabError) as raised:
        RunFolder(tmp_path / "file" / "run", ABOUT)
    assert str(raised.value) == (
        f"The folder {tmp_path / 'file' / 'run'} cannot be created (Not a directory). Choose "
        "another --out."
    )


# --- a folder that is removed -----------------------------------------------------


def test_what_is_kept_of_a_run_is_said_as_it_is(
    run_folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise FULL

    model, optimizer = _trained(small_model, Training(), 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(LabError) as raised:
            run_folder.keep(_record(1), model, optimizer, DRAWS)
    assert str(raised.value).endswith(
        "There is no earlier checkpoint. Free some space; the same command then starts this run "
        "again."
    )
    run_folder.keep(_record(1), model, optimizer, DRAWS)
    run_folder.checkpoint.unlink()
    run_folder.path.rmdir()
    gone = (
        f"The folder {run_folder.path} is gone, with all checkpoints in it. The same command "
        "starts this run again."
    )
    for write in (
        lambda: run_folder.keep(_record(1), model, optimizer, DRAWS),
        lambda: run_folder.finish(_record(1), model),
        lambda: run_folder.finish(_record(1), _fixed()),
        lambda: run_folder.write_metrics(["step"], [[1]]),
    ):
        with pytest.raises(LabError) as raised:
            write()
        assert str(raised.value).endswith(gone)
    assert not run_folder.path.exists()


# --- one flipped bit ----------------------------------------------------------------


def _flips(content: bytes, count: int) -> Iterator[bytes]:
    """The content with one bit flipped, in different places, those of the header among them."""
    draw = random.Random(0)
    places = draw.sample(range(8 * len(content)), min(count, 8 * len(content)))
    for place in {*range(0, 8 * len(content), 997), *places}:
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        yield bytes(flipped)


def _is_refused(read: Callable[[], object], path: Path) -> bool:
    try:
        read()
    except LabError as error:
        return str(path) in str(error) and "Delete" in str(error)
    return False


@pytest.mark.parametrize("name", ["checkpoint", "record", "model", "plain model"])
def test_a_flipped_bit_is_seen_wherever_it_is(run_folder: RunFolder, name: str) -> None:
    model, _ = _keep(run_folder)
    model = _fixed() if name == "plain model" else model
    read: Callable[[], object] = run_folder.load
    if name != "checkpoint":
        run_folder.finish(RECORD, model)
        read = run_folder.finished
    if "model" in name:
        run_folder._model_sum = None  # the file has a checksum of its own
        read = lambda: run_folder.load_model(model)  # noqa: E731
    path = getattr(run_folder, name.removeprefix("plain "))
    whole = path.read_bytes()
    read()
    passed = []
    for flipped in _flips(whole, 1000):
        path.write_bytes(flipped)
        if not _is_refused(read, path):
            passed.append(flipped)
    assert passed == []


def test_a_model_of_another_run_is_not_taken_for_the_model(
    run_folder: RunFolder, tmp_path: Path
) -> None:
    other = RunFolder(tmp_path / "other", ABOUT)
    for folder, seed in ((run_folder, 0), (other, 1)):
        torch.manual_seed(seed)
        folder.finish(RECORD, small_model())
    run_folder.model.write_bytes(other.model.read_bytes())
    again = RunFolder(run_folder.path, ABOUT)
    assert again.finished() is not None
    with pytest.raises(LabError) as raised:
        again.load_model(small_model())
    assert str(raised.value) == (
        f"The weights {run_folder.model} cannot be read (it is not the file that was written with "
        f"the record). Delete the folder {run_folder.path} to train this run again."
    )


# --- files of the version before --------------------------------------------------


def _unsealed(path: Path) -> None:
    """Rewrite a file as the version before wrote it."""
    if path.suffix == ".json":
        found = json.loads(path.read_text("utf-8"))
        del found["sha256"], found["model_sha256"]
        path.write_text(json.dumps(found) + "\n", "utf-8")
    else:
        _rewrite(lambda metadata: metadata)(path)


def test_files_without_checksums_are_read_with_a_warning(run_folder: RunFolder) -> None:
    model, _ = _keep(run_folder)
    _unsealed(run_folder.checkpoint)
    said = (
        f"Files in {run_folder.path.parent} have no checksum, since an earlier version wrote them: "
        "damage to them cannot be seen."
    )
    with pytest.warns(UserWarning, match="no checksum") as caught:
        _assert_kept(run_folder, 2, model)
    assert [str(warning.message) for warning in caught] == [said]
    run_folder.finish(RECORD, model)
    _unsealed(run_folder.model)
    _unsealed(run_folder.record)
    again = small_model()
    read = RunFolder(run_folder.path, ABOUT)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # as outside of tests
        for _ in range(3):
            record = read.finished()
            read.load_model(again)
    assert [str(warning.message) for warning in caught] == [said]
    assert equal_tensors(again.state_dict(), model.state_dict())
    assert record is not None
    assert equal_values({k: v for k, v in record.items() if k != "provenance"}, RECORD)


# --- well-formed files that say something else ------------------------------------


def _change(*keys: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    """A function that sets, or deletes (None), a value in a nest of dictionaries and lists."""

    def change(record: dict[str, Any]) -> None:
        at: Any = record
        for key in keys[:-1]:
            at = at[key]
        if to is None:
            del at[keys[-1]]
        else:
            at[keys[-1]] = to

    return change


OUTCOME = Outcome({"a": 1.0}, [("Table", ("x", "y"), [(1, 2.0)])], [("Dice", Path("dice.png"))])
ODD_RECORDS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no points": (_change("points", to=None), "it has no 'points'"),
    "no metric": (_change("metric", to=None), "it has no 'metric'"),
    "no final": (_change("final", to=None), "it has no 'final'"),
    "an unknown key": (_change("more", to=1), "it has the unknown 'more'"),
    "an empty list of points": (_change("points", to=[]), "'points' has the steps []"),
    "points in a dictionary": (_change("points", to={}), "'points' has an unexpected value"),
    "a point without figures": (_change("points", 1, "figures", to=None), "'points' has an unex"),
    "no figure of the metric": (
        _change("points", 1, "figures", "accuracy", to=None),
        "'points' has the figures 'loss' at step 1; expected 'accuracy', 'loss'",
    ),
    "another metric": (_change("metric", "name", to="dice"), "expected 'accuracy', 'dice', 'loss'"),
    "no test loss": (
        lambda record: [point["figures"].pop("loss") for point in record["points"]] and None,
        "expected 'accuracy', 'loss'",
    ),
    "points that go back": (_change("points", 2, "step", to=1), "the steps [0, 1, 1]; expected"),
    "a negative step": (_change("points", 0, "step", to=-1), "'points' has an unexpected"),
    "too few losses": (_change("loss", to=[1.0]), "'loss' has 1 values; expected 2, one a step"),
    "too few norms": (
        _change("gradient_norm", to=[1.0]),
        "'gradient_norm' has 1 values; expected 2, one a step",
    ),
    "a word among the losses": (_change("loss", 0, to="x"), "'loss' has an unexpected value"),
    "a huge number": (_change("seconds", to=10**400), "'seconds' has an unexpected value"),
    "a flag for a number": (_change("waiting", to=True), "'waiting' has an unexpected value"),
    "a profile cut short": (_change("initial", "std", to=[1.0]), "'initial' has lists of unequal"),
    "a ragged profile": (
        _change("final", "gamma", to=[[1.0], [1.0, 2.0], [1.0], [1.0]]),
        "'final' has lists of unequal lengths",
    ),
    "a profile without points": (
        _change("final", to={"input": "", "gamma": [], "magnitude": [], "std": [], "verdict": ""}),
        "'final' has lists of unequal lengths, or none",
    ),
    "a row of a table cut short": (
        _change("outcome", "tables", 0, 2, 0, to=[1]),
        "the table 'Table' has rows that are not as long as its heading",
    ),
    **{
        f"the picture {name!r}": (
            _change("outcome", "pictures", 0, 1, to=name),
            "expected the name of a .png file, without a folder",
        )
        for name in (
            *("/etc/hostname", "../dice.png", "a/dice.png", "..", "", "dice.svg", "dice.html"),
            *("a\\dice.png", "C:dice.png", ".png", "\0.png", "dice.png\n"),
        )
    },
}


@pytest.mark.parametrize(("change", "words"), ODD_RECORDS.values(), ids=ODD_RECORDS)
@pytest.mark.parametrize("where", ["record", "checkpoint"])
def test_a_record_that_cannot_be_one_is_refused(
    run_folder: RunFolder,
    where: str,
    change: Callable[[dict[str, Any]], None],
    words: str,
) -> None:
    record = _record(outcome=OUTCOME)
    change(record)
    if where == "record":
        run_folder.write_record(record)
        read: Callable[[], object] = run_folder.finished
    else:
        model, optimizer = _trained(small_model, Training(), 2)
        run_folder.keep(record, model, optimizer, DRAWS)
        read = run_folder.load
    with pytest.raises(LabError) as raised:
        read()
    message = str(raised.value)
    assert str(getattr(run_folder, where)) in message
    assert words in message
    assert "Delete" in message


@pytest.mark.parametrize("key", ["identity", "model_sha256"])
@pytest.mark.parametrize("value", [3, [], {"task": "bayes"}])
def test_a_record_with_another_identity_or_sum_is_refused(
    run_folder: RunFolder, key: str, value: Any
) -> None:
    kept = {"identity": ABOUT, "model_sha256": None, **RECORD, key: value}
    write_sealed(run_folder.record, kept)
    with pytest.raises(LabError, match=rf"cannot be read \(its '{key}' is "):
        run_folder.finished()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"identity": ' * 100_000, '{"a": 1, "a": 2}'])
def test_deep_and_doubled_json_is_refused(run_folder: RunFolder, text: str) -> None:
    run_folder.record.write_text(text, "utf-8")
    with pytest.raises(LabError, match="cannot be read"):
        run_folder.finished()
    for name in ("identity", "record", "optimizer"):
        container.write(run_folder.checkpoint, {}, {"identity": "{}", name: text})
        with pytest.raises(LabError, match="cannot be read"):
            run_folder.load()


def test_a_checkpoint_may_be_between_two_evaluations(run_folder: RunFolder) -> None:
    record = _record(2)
    del record["points"][-1]
    model, optimizer = _trained(small_model, Training(), 2)
    run_folder.keep(record, model, optimizer, DRAWS)
    saved = run_folder.load()
    assert saved is not None
    assert len(saved.record["loss"]) == 2
    run_folder.write_record(record)
    with pytest.raises(LabError, match="'loss' has 2 values; expected 1, one a step"):
        run_folder.finished()


Tensors = dict[str, Tensor]


def _replace(name: str, to: Any) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name] = to(tensors[name]) if callable(to) else to
        if tensors[name] is None:
            del tensors[name]

    return change


HEAD = "model.hypernet.head.weight"
ODD_TENSORS: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "no weight": (_replace(HEAD, None), "has no 'hypernet.head.weight'"),
    "a weight of another shape": (_replace(HEAD, lambda t: t[1:]), "'hypernet.head.weight' is (7"),
    "a weight of another dtype": (_replace(HEAD, lambda t: t.double()), "is torch.float64 in it"),
    "one weight more": (_replace("model.more", torch.zeros(1)), "the model has no 'more'"),
    "no mean of a gradient": (_replace("optimizer.4.exp_avg", None), "has no '4.exp_avg'"),
    "a mean of another shape": (
        _replace("optimizer.4.exp_avg", lambda t: t[1:]),
        "'4.exp_avg' is (7, 4) in it, (8, 4) in the optimizer",
    ),
    "a mean of another dtype": (
        _replace("optimizer.4.exp_avg", lambda t: t.half()),
        "'4.exp_avg' is torch.float16 in it",
    ),
    "a parameter more": (
        _replace("optimizer.5.step", torch.tensor(1.0)),
        "the optimizer has no '5.step'",
    ),
    "no number": (_replace("optimizer.x.step", torch.tensor(1.0)), "the optimizer has no 'x.step'"),
    "no gammas": (_replace("draws.gammas", None), "has no 'gammas'"),
    "gammas cut short": (_replace("draws.gammas", lambda t: t[1:]), "RNG state"),
    "gammas of another dtype": (_replace("draws.gammas", lambda t: t.float()), "'gammas' is torch"),
    "no order": (_replace("draws.batches.order", None), "has no 'batches.order'"),
    "an order of numbers": (
        _replace("draws.batches.order", lambda t: t.float()),
        "'batches.order' is torch.float32 in it",
    ),
    "an order in a table": (
        _replace("draws.batches.order", lambda t: t[None]),
        "'batches.order' is (1, 36) in it",
    ),
    "a generator cut short": (_replace("draws.batches.generator", lambda t: t[1:]), "RNG state"),
}


def _kept(run_folder: RunFolder) -> Checkpoint:
    _keep(run_folder)
    saved = run_folder.load()
    assert saved is not None
    return saved


def _restore(saved: Checkpoint) -> None:
    model = small_model()
    saved.restore(model, Training().make_optimizer(model), _batches(), torch.Generator())


@pytest.mark.parametrize(("change", "words"), ODD_TENSORS.values(), ids=ODD_TENSORS)
def test_tensors_that_do_not_fit_are_refused(
    run_folder: RunFolder, change: Callable[[Tensors], None], words: str
) -> None:
    saved = _kept(run_folder)
    _restore(saved)
    change(saved.tensors)
    with pytest.raises(LabError) as raised:
        _restore(saved)
    message = str(raised.value)
    assert message.startswith(f"The checkpoint {run_folder.checkpoint} does not fit this run (")
    assert words in message
    assert message.endswith("). Delete it to start this run again.")


@pytest.mark.parametrize(
    "change",
    [
        lambda groups: groups.clear(),
        lambda groups: groups.append(groups[0]),
        _change(0, "params", to=[0, 1]),
        _change(0, "params", to=None),
        _change(0, "lr", to="0.1"),
        _change(0, "lr", to=[0.1]),
        _change(0, "betas", to=[0.9]),
        _change(0, "betas", to=0.9),
        _change(0, "fused", to="yes"),
        _change(0, "more", to=1),
    ],
)
def test_groups_that_do_not_fit_are_refused(
    run_folder: RunFolder, change: Callable[[Any], None]
) -> None:
    saved = _kept(run_folder)
    change(saved.groups)
    with pytest.raises(LabError, match=r"does not fit this run \(it has .*group.*\)\. Delete it"):
        _restore(saved)


@pytest.mark.parametrize(
    ("entry", "words"), [(40, "with 41 entries or more; this has 40"), (-1, "names the entry -1")]
)
def test_an_order_of_other_data_is_refused(run_folder: RunFolder, entry: int, words: str) -> None:
    saved = _kept(run_folder)
    saved.tensors["draws.batches.order"][3] = entry
    with pytest.raises(LabError, match=words) as error:
        _restore(saved)
    assert f"The checkpoint {run_folder.checkpoint} does not fit" in str(error.value)


def test_training_refuses_a_checkpoint_that_does_not_fit(
    task: BayesTask, fabric: Fabric, tmp_path: Path
) -> None:
    training = _interrupted(task, fabric, tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    contents = container.read(path)
    del contents.tensors["draws.gammas"]
    container.write(path, contents.tensors, contents.metadata)
    with pytest.raises(LabError, match=r"does not fit this run \(it has no 'gammas'\)"):
        next(train(task, "mip", 0, training, fabric, tmp_path))
    assert LOCK not in listing(tmp_path)


# --- whose run is in a folder -------------------------------------------------------


def test_the_identity_that_a_folder_states(run_folder: RunFolder, tmp_path: Path) -> None:
    assert stored_identity(tmp_path / "nowhere") is None
    assert stored_identity(run_folder.path) is None
    model, _ = _keep(run_folder)
    assert stored_identity(run_folder.path) == ABOUT
    content = bytearray(run_folder.checkpoint.read_bytes())
    content[-1] ^= 1
    run_folder.checkpoint.write_bytes(content)
    assert stored_identity(run_folder.path) is None
    run_folder.finish(RECORD, model)
    assert stored_identity(run_folder.path) == ABOUT
    run_folder.record.write_text("{}")
    assert stored_identity(run_folder.path) is None
    write_sealed(run_folder.record, {"identity": {"task": 3}})
    assert stored_identity(run_folder.path) is None


# --- one process at a time ----------------------------------------------------------

PARTS = [".checkpoint.safetensors.0a1b2c3d.tmp", ".model.safetensors.0123abcd.tmp", ".tmpx1Y2z3"]
PARTS += [".record.json.abc_12de", ".metrics.csv.a1b2c3d4"]
OTHERS = [".hidden", ".metrics.csv.swp", ".my.settings", "notes.txt"]


def test_what_a_kill_had_begun_to_write_is_removed(run_folder: RunFolder) -> None:
    for name in [*PARTS, *OTHERS]:
        (run_folder.path / name).write_text("a part")
    with run_folder.locked():
        assert listing(run_folder.path) == sorted([*OTHERS, LOCK])
    assert listing(run_folder.path) == OTHERS


def test_what_another_process_writes_is_left_to_it(run_folder: RunFolder) -> None:
    with run_folder.locked():
        for name in PARTS:
            (run_folder.path / name).write_text("a part")
        with pytest.raises(LabError, match="is in use by"), RunFolder(run_folder.path, {}).locked():
            pass
        assert listing(run_folder.path) == sorted([*PARTS, LOCK])


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_that_another_trains_is_refused_or_waited_for(
    task: BayesTask,
    fabric: Fabric,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    finished: bool,
) -> None:
    training = Training(steps=2, evaluate_every=1, batch_size=4)
    turn = train(task, "mip", 0, training, fabric, tmp_path)
    next(turn)
    with pytest.raises(LabError) as raised:
        next(train(task, "mip", 0, training, fabric, tmp_path))
    assert str(raised.value) == (
        f"{tmp_path} is in use by process {os.getpid()} on {os.uname().nodename}. Wait until that "
        "process ends, or choose another --out."
    )
    said: list[str] = []
    found: list[Run] = []
    loss, steps = task.loss, []
    monkeypatch.setattr(task, "loss", lambda *a: steps.append(threading.get_ident()) or loss(*a))

    def other() -> None:
        *_, run = train(task, "mip", 0, training, fabric, tmp_path, wait=said.append)
        found.append(run)

    thread = threading.Thread(target=other)
    thread.start()
    while not said:
        assert thread.is_alive()
        thread.join(0.01)
    next(turn)
    if finished:
        list(turn)
    else:
        turn.close()
    thread.join()
    assert said == [
        f"{tmp_path} is in use by process {os.getpid()} on {os.uname().nodename}; waiting until "
        "it is done."
    ]
    (run,) = found
    assert run.step == 2
    assert run.resumed == ([] if finished else [1])
    assert len(steps) == 2  # none was trained twice
    assert len(set(steps)) == (1 if finished else 2)
    assert LOCK not in listing(tmp_path)
