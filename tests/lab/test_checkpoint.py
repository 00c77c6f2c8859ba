"""A run on disk: what it is known by, what it goes on from, and what is left of damaged files."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric import Fabric
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import hyperlight as hl
from hyperlight.lab import checkpoint
from hyperlight.lab.checkpoint import RunFolder, differences, digest, identity
from hyperlight.lab.errors import LabError
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
    assert len({_digest(training=training) for training in (Training(), *others)}) == 9


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
    folder.keep({"step": steps}, model, optimizer, {"a": torch.arange(3)})
    return model, optimizer


@settings(max_examples=60)
@given(
    optimizer=st.sampled_from(["adam", "adamw", "sgd"]),
    steps=st.integers(0, 3),
    decay=st.sampled_from([0.0, 0.1]),
    rates=st.sampled_from(["same", "groups"]),
    plain=st.booleans(),
    draws=st.dictionaries(
        st.text("ab.", min_size=1), st.lists(st.integers(0, 255), max_size=5), max_size=3
    ),
)
def test_a_checkpoint_brings_everything_back_to_the_bit(
    optimizer: Any, steps: int, decay: float, rates: Any, plain: bool, draws: dict[str, list[int]]
) -> None:
    training = Training(optimizer=optimizer, lr=0.03, weight_decay=decay, rates=rates)
    make: Callable[[], Model] = _fixed if plain else small_model
    model, made = _trained(make, training, steps)
    drawn = {name: torch.tensor(values, dtype=torch.uint8) for name, values in draws.items()}
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place), ABOUT)
        folder.keep({"step": steps}, model, made, drawn)
        saved = RunFolder(Path(place), ABOUT).load()
        assert listing(Path(place)) == ["checkpoint.safetensors"]
    assert saved is not None
    assert saved.record == {"step": steps}
    assert equal_tensors(dict(sorted(saved.under("draws.").items())), dict(sorted(drawn.items())))
    state = dict(sorted(model.state_dict().items()))
    assert equal_tensors(dict(sorted(saved.under("model.").items())), state)

    torch.manual_seed(4)
    again = make()
    again.load_state_dict(saved.under("model."))
    restored = training.make_optimizer(again)
    saved.restore(restored)
    _assert_equal_states(restored.state_dict(), made.state_dict())
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
    saved = run_folder.load()
    assert saved is not None
    assert saved.record == {"step": 2}
    assert equal_tensors(
        dict(sorted(saved.under("model.").items())), dict(sorted(model.state_dict().items()))
    )
    assert listing(run_folder.path) == ["checkpoint.safetensors"]


def test_a_checkpoint_of_weights_that_diverged(run_folder: RunFolder) -> None:
    model, optimizer = _trained(small_model, Training(lr=0.1), 1)
    for parameter in model.parameters():
        parameter.data.fill_(math.nan)
    run_folder.keep({"loss": [math.nan, math.inf]}, model, optimizer, {})
    saved = run_folder.load()
    assert saved is not None
    assert equal_values(saved.record, {"loss": [math.nan, math.inf]})
    assert all(bool(t.isnan().all()) for t in saved.under("model.").values())


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
    again = Run("mip", 2, "accuracy", folder=Path("moved"))
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
    again = Run("plain", 0, "accuracy")
    again.read(json.loads(json.dumps(run.record())))
    assert again.initial is None
    assert again.final is None
    assert again.outcome is None
    assert again.points[1:] == run.points[1:]


# --- finished runs --------------------------------------------------------------


def test_a_finished_run_has_a_record_and_a_model_and_no_checkpoint(run_folder: RunFolder) -> None:
    model, _ = _keep(run_folder)
    run_folder.finish({"loss": [1.0, math.nan]}, model)
    assert listing(run_folder.path) == ["model.safetensors", "record.json"]
    record = run_folder.finished()
    assert record is not None
    assert record.pop("provenance") == provenance()
    assert equal_values(record, {"loss": [1.0, math.nan]})
    written = json.loads((run_folder.path / "record.json").read_text("utf-8"))
    assert written["identity"] == ABOUT


@pytest.mark.parametrize("bad", [None, math.nan])
def test_a_model_loads_back_equal(run_folder: RunFolder, bad: float | None) -> None:
    model = small_model()
    if bad is not None:
        for parameter in model.parameters():
            parameter.data.fill_(bad)
    run_folder.finish({}, model)
    state = dict(sorted(model.state_dict().items()))
    loaded = dict(sorted(load_file(run_folder.model).items()))
    again = small_model()
    run_folder.load_model(again)
    shipped = hl.load(run_folder.model, nn.Linear(3, 2))  # as the user does
    found = (loaded, *(dict(sorted(m.state_dict().items())) for m in (again, shipped)))
    for tensors in found:
        if bad is None:
            assert equal_tensors(tensors, state)
        assert list(tensors) == list(state)
        assert all(bool(t.isnan().all()) == (bad is not None) for t in tensors.values())


def test_a_plain_network_loads_back_equal_and_is_a_plain_file(run_folder: RunFolder) -> None:
    model = _fixed()
    run_folder.finish({}, model)
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
        with checkpoint.safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        save_file(load_file(path), path, change(dict(metadata)))

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
    run_folder.finish({"loss": [1.0]}, small_model())
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
    run_folder.finish({}, make())
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
        folder.finish({}, model)
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


def test_training_refuses_the_folder_of_another_run(
    task: BayesTask, fabric: Fabric, tmp_path: Path
) -> None:
    training = Training(steps=2, evaluate_every=2, batch_size=4)
    turn = train(task, "mip", 0, training, fabric, tmp_path)
    next(turn)
    turn.close()
    with pytest.raises(LabError, match="other settings .*batch_size: 4, now 5"):
        next(train(task, "mip", 0, dataclasses.replace(training, batch_size=5), fabric, tmp_path))
    with pytest.raises(LabError, match=r"other settings \(seed: 0, now 1\)"):
        next(train(task, "mip", 1, training, fabric, tmp_path))


# --- a full disk ----------------------------------------------------------------

FULL = OSError(28, "No space left on device")
# What safetensors makes of it.
CRATE = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.fixture(params=["moving", "writing", "writing in Rust"])
def full_disk(request: pytest.FixtureRequest) -> Iterator[Callable[[], pytest.MonkeyPatch]]:
    """A function from whose call on the disk is full."""
    patch = pytest.MonkeyPatch()

    def fill() -> pytest.MonkeyPatch:
        def refuse(*arguments: Any, **_: object) -> None:
            if request.param != "moving":
                Path(arguments[1]).write_bytes(b"a part")
            raise CRATE if request.param == "writing in Rust" else FULL

        patch.setattr(
            *((os, "replace") if request.param == "moving" else (checkpoint, "save_file")), refuse
        )
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
        "The previous one is kept. Free some space; the same command then resumes from there."
    )
    assert listing(run_folder.path) == ["checkpoint.safetensors"]
    patch.undo()
    saved = run_folder.load()
    assert saved is not None
    assert saved.record == {"step": 1}
    assert equal_tensors(
        dict(sorted(saved.under("model.").items())), dict(sorted(model.state_dict().items()))
    )


def test_a_full_disk_in_the_end_keeps_the_checkpoint(
    run_folder: RunFolder, full_disk: Callable[[], pytest.MonkeyPatch]
) -> None:
    _keep(run_folder, 1)
    patch = full_disk()
    with pytest.raises(LabError) as raised:
        run_folder.finish({}, _fixed())
    message = str(raised.value)
    assert message.startswith(f"The results in {run_folder.path} could not be written (")
    assert "No space left on device" in message
    assert message.endswith("Free some space and repeat the same command; no training is lost.")
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
        run_folder.finish({}, model)
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


# --- what a kill leaves ---------------------------------------------------------


@pytest.mark.parametrize("when", ["the next checkpoint", "the end"])
def test_what_a_kill_had_begun_to_write_is_removed(run_folder: RunFolder, when: str) -> None:
    parts = [".checkpoint.safetensors.abc", ".tmpx1Y2", ".record.json.abc", ".metrics.csv.a"]
    parts += [".model.safetensors.0123abcd.tmp"]
    for name in [*parts, "notes.txt", ".hidden"]:
        (run_folder.path / name).write_text("a part")
    if when == "the end":
        run_folder.finish({}, small_model())
        made = ["model.safetensors", "notes.txt", "record.json"]
    else:
        _keep(run_folder)
        made = ["checkpoint.safetensors", "notes.txt"]
    assert listing(run_folder.path) == [".hidden", *made]
