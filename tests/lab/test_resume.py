"""A run that is interrupted and goes on has the numbers of one that was not, to the bit."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric import Fabric
from safetensors.torch import load_file

from hyperlight.lab.checkpoint import RunFolder, identity
from hyperlight.lab.record import Run
from hyperlight.lab.tasks.base import Formulation, Task
from hyperlight.lab.tasks.bayes import Bayes, BayesTask
from hyperlight.lab.tasks.hypermorph import Hypermorph, HypermorphTask
from hyperlight.lab.train import Training, train
from tests.lab.making import equal_runs, equal_values, listing

STEPS, EVERY = 4, 3
FABRIC = Fabric(accelerator="cpu", devices=1)
CPU = torch.device("cpu")


def _bayes(**changes: Any) -> BayesTask:
    small = {"hidden": (4, 8), "evaluation_gammas": 2, "evaluation_images": 20}
    task = BayesTask(Bayes(**{**small, "posterior_samples": 2, **changes}), CPU)
    task.train = task.train[torch.arange(40)]  # so that an epoch ends within a run
    task.test = task.test[torch.arange(40)]
    return task


def _hypermorph(**changes: Any) -> HypermorphTask:
    small = {"size": (16, 16), "levels": 2, "channels": 4, "hidden": (4,), "evaluation_gammas": 2}
    quick = {"evaluation_pairs": 4, "final_pairs": 8, "tune_steps": 2}
    return HypermorphTask(Hypermorph(**{**small, **quick, **changes}), CPU)


TASKS: dict[str, Task] = {
    "bayes": _bayes(),
    "bayes, 3 inputs": _bayes(prior="normal", dimensions=3, encoding="per-input"),
    "hypermorph": _hypermorph(endpoints=0.3),
}


def _settings(**changes: Any) -> Training:
    usual = {"steps": STEPS, "evaluate_every": EVERY, "batch_size": 16, "lr": 1e-2}
    return Training(**{**usual, "checkpoint_seconds": float("inf"), **changes})


Case = tuple[str, Formulation, Training]


def _turn(case: Case, folder: Path, stop: Callable[[], bool] | None = None) -> Iterator[Run]:
    name, formulation, training = case
    more = {} if stop is None else {"stop": stop}
    return train(TASKS[name], formulation, 3, training, FABRIC, folder, pictures=False, **more)


def _to_the_end(case: Case, folder: Path) -> Run:
    return list(_turn(case, folder))[-1]


def _stopped(case: Case, folder: Path, after: int) -> None:
    """Train so many steps more, and be asked to stop."""
    asked = itertools.count(1)
    with pytest.raises(KeyboardInterrupt):
        list(_turn(case, folder, lambda: next(asked) >= after))


def _closed(case: Case, folder: Path, after: int) -> None:
    """Be closed at the evaluation with that number, the one at step 0 being 0."""
    turn = _turn(case, folder)
    for _ in range(after + 1):
        next(turn)
    turn.close()  # type: ignore[attr-defined]


UNBROKEN: dict[str, tuple[tempfile.TemporaryDirectory[str], Run]] = {}


def _unbroken(case: Case) -> tuple[Path, Run]:
    """The run that nothing interrupts, trained once."""
    # Where checkpoints are kept is no part of what the numbers depend on.
    name = repr((case[0], case[1], case[2].decisive()))
    if name not in UNBROKEN:
        place = tempfile.TemporaryDirectory()
        UNBROKEN[name] = place, _to_the_end(case, Path(place.name))
    place, run = UNBROKEN[name]
    return Path(place.name), run


@pytest.fixture(scope="module", autouse=True)
def _tidy() -> Iterator[None]:
    yield
    for place, _ in UNBROKEN.values():
        place.cleanup()
    UNBROKEN.clear()


def _assert_as_unbroken(case: Case, folder: Path, run: Run) -> None:
    place, expected = _unbroken(case)
    assert expected.resumed == []
    assert equal_runs(run, expected)
    assert run.outcome is not None
    assert expected.outcome is not None
    assert run.outcome.figures
    assert equal_values(dataclasses.asdict(run.outcome), dataclasses.asdict(expected.outcome))
    models = [path / "model.safetensors" for path in (folder, place)]
    assert models[0].read_bytes() == models[1].read_bytes()
    assert (
        listing(folder) == listing(place) == [*("metrics.csv", "model.safetensors", "record.json")]
    )
    assert [p.seconds for p in run.points] == sorted(p.seconds for p in run.points)
    assert 0.0 < run.waiting < run.seconds == run.points[-1].seconds
    (again,) = _turn(case, folder)  # what is kept is what was measured
    assert equal_runs(again, expected)
    assert again.resumed == run.resumed


CASES: dict[str, Case] = {
    "bayes, MIP, Adam": ("bayes", "mip", _settings()),
    "bayes, MIP, SGD": ("bayes", "mip", _settings(optimizer="sgd", weight_decay=0.1)),
    "bayes, MIP, AdamW": ("bayes", "mip", _settings(optimizer="adamw", weight_decay=0.1)),
    "bayes, classical, SGD": ("bayes", "classical", _settings(optimizer="sgd")),
    "bayes, rates of the groups": ("bayes", "mip", _settings(rates="groups")),
    "bayes, bfloat16": ("bayes", "mip", _settings(precision="bf16-mixed")),
    "bayes, 3 inputs": ("bayes, 3 inputs", "mip", _settings()),
    "bayes, plain": ("bayes", "plain", _settings()),
    "bayes, FiLM": ("bayes", "film", _settings()),
    "hypermorph, MIP, AdamW": (
        *("hypermorph", "mip"),
        _settings(optimizer="adamw", weight_decay=0.1, batch_size=3),
    ),
    "hypermorph, plain, SGD": (
        *("hypermorph", "plain"),
        _settings(optimizer="sgd", batch_size=3, lr=1e-5),
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


# --- stopped and closed ---------------------------------------------------------


@every_case
def test_a_run_that_is_stopped_after_any_step_goes_on(case: Case, tmp_path: Path) -> None:
    for after in range(1, STEPS + 1):
        folder = tmp_path / str(after)
        _stopped(case, folder, after)
        assert listing(folder)[0] == "checkpoint.safetensors"
        assert "record.json" not in listing(folder)
        run = _to_the_end(case, folder)
        assert run.resumed == [after]
        _assert_as_unbroken(case, folder, run)


@every_case
def test_a_run_that_is_closed_at_any_evaluation_goes_on(case: Case, tmp_path: Path) -> None:
    for after in range(2):  # after the last one, the third, it is finished
        folder = tmp_path / str(after)
        _closed(case, folder, after)
        run = _to_the_end(case, folder)
        assert run.resumed == [EVERY * after]
        _assert_as_unbroken(case, folder, run)


@pytest.mark.parametrize("name", ["bayes, MIP, Adam", "hypermorph, MIP, AdamW", "bayes, plain"])
def test_a_run_that_is_stopped_after_every_step_goes_on(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    _closed(case, tmp_path, 0)
    for step in range(STEPS):
        _stopped(case, tmp_path, 1)
        saved = _checkpoint(case, tmp_path)
        assert len(saved["loss"]) == step + 1
        assert saved["resumed"] == list(range(step + 1))
    run = _to_the_end(case, tmp_path)  # no step is left, but the last figures are
    assert run.resumed == list(range(STEPS + 1))
    _assert_as_unbroken(case, tmp_path, run)


def _checkpoint(case: Case, folder: Path) -> dict[str, Any]:
    name, formulation, training = case
    task = TASKS[name]
    about = identity(task.name, task.config, training, formulation, 3)
    saved = RunFolder(folder, about).load()
    assert saved is not None
    return saved.record


def _reached(count: Iterator[int], limit: int) -> bool:
    return next(count) >= limit


@settings(max_examples=12)
@given(
    steps=st.integers(1, 5),
    every=st.integers(1, 4),
    optimizer=st.sampled_from(["adam", "adamw", "sgd"]),
    formulation=st.sampled_from(["classical", "mip", "plain"]),
    stops=st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=3),
)
def test_any_interruptions(
    steps: int,
    every: int,
    optimizer: Any,
    formulation: Formulation,
    stops: list[tuple[bool, int]],
) -> None:
    training = _settings(steps=steps, evaluate_every=every, optimizer=optimizer)
    case: Case = ("bayes", formulation, training)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for closing, after in stops:
            asked = itertools.count()
            stop = functools.partial(_reached, asked, after)
            turn = _turn(case, folder, None if closing else stop)
            with contextlib.suppress(KeyboardInterrupt):
                for _ in range(after + 1):
                    next(turn, None)
                turn.close()  # type: ignore[attr-defined]
        run = _to_the_end(case, folder)
        assert len(run.resumed) <= len(stops)
        assert run.resumed == sorted(run.resumed)
        _assert_as_unbroken(case, folder, run)


# --- cut off without a word -----------------------------------------------------


class _Cut(BaseException):
    """Ends a run as a kill does: no code of the loop is asked."""


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("bayes, MIP, Adam", _Cut),
        ("bayes, MIP, SGD", KeyboardInterrupt),  # as the second Ctrl-C is
        ("hypermorph, MIP, AdamW", _Cut),
    ],
)
def test_a_run_that_is_cut_off_goes_on_from_the_last_checkpoint(
    name: str, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, formulation, training = CASES[name]
    case: Case = (kind, formulation, dataclasses.replace(training, checkpoint_seconds=0.0))
    task = TASKS[kind]
    loss = task.loss
    for cut in range(STEPS):
        folder = tmp_path / str(cut)

        def cut_off(*arguments: Any, cut: int = cut) -> Any:
            if arguments[-1] == cut:
                raise error
            return loss(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(task, "loss", cut_off)
            with pytest.raises(error):
                list(_turn(case, folder))
        run = _to_the_end(case, folder)
        assert run.resumed == ([cut] if cut else [])
        _assert_as_unbroken(case, folder, run)


@pytest.mark.parametrize("name", ["bayes, MIP, Adam", "bayes, MIP, SGD", "hypermorph, MIP, AdamW"])
def test_a_checkpoint_after_every_step_changes_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, formulation, training = CASES[name]
    case: Case = (kind, formulation, dataclasses.replace(training, checkpoint_seconds=0.0))
    kept: list[int] = []
    keep = RunFolder.keep

    def spy(self: RunFolder, record: dict[str, Any], *rest: Any) -> None:
        keep(self, record, *rest)
        kept.append(len(record["loss"]))

    monkeypatch.setattr(RunFolder, "keep", spy)
    run = _to_the_end(case, tmp_path)
    # The last is there twice: before the last figures are measured there is one in any case.
    assert kept == [1, 2, 3, 4, 4]
    _assert_as_unbroken(case, tmp_path, run)


def test_checkpoints_are_as_far_apart_as_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    monkeypatch.setattr(
        RunFolder, "keep", lambda self, record, *_: kept.append(len(record["loss"]))
    )
    for seconds, expected in ((3600.0, [STEPS]), (float("inf"), [STEPS])):
        kept.clear()
        case: Case = ("bayes", "mip", _settings(checkpoint_seconds=seconds))
        _to_the_end(case, tmp_path / str(seconds))
        assert kept == expected


# --- several runs that take turns -----------------------------------------------


def test_whoever_takes_turns_is_kept_as_well(tmp_path: Path) -> None:
    cases = [CASES["bayes, MIP, SGD"], CASES["bayes, classical, SGD"]]
    cases[1] = (cases[1][0], cases[1][1], cases[0][2])
    folders = [tmp_path / "mip", tmp_path / "classical"]
    asked = itertools.count(1)
    turns = [
        _turn(cases[0], folders[0]),
        _turn(cases[1], folders[1], lambda: next(asked) >= 2),
    ]
    for turn in turns:  # both are at the first point
        next(turn)
    next(turns[0])
    with pytest.raises(KeyboardInterrupt):
        next(turns[1])
    turns[0].close()  # type: ignore[attr-defined]
    for case, folder, step in zip(cases, folders, (3, 2), strict=True):
        run = _to_the_end(case, folder)
        assert run.resumed == [step]
        _assert_as_unbroken(case, folder, run)


def test_a_finished_run_is_not_kept_again_by_whoever_closes_it(tmp_path: Path) -> None:
    case = CASES["bayes, MIP, Adam"]
    turn = _turn(case, tmp_path)
    for _ in range(3):
        run = next(turn)
    assert run.final is not None
    turn.close()  # type: ignore[attr-defined]
    assert listing(tmp_path) == ["metrics.csv", "model.safetensors", "record.json"]
    assert load_file(tmp_path / "model.safetensors")


def test_a_run_without_a_folder_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for formulation in ("mip", "plain"):
        turn = train(TASKS["bayes"], formulation, 3, _settings(), FABRIC)  # type: ignore[arg-type]
        next(turn)
        next(turn)
        turn.close()
        *_, run = train(
            TASKS["bayes"],
            formulation,
            3,
            _settings(),
            FABRIC,  # type: ignore[arg-type]
        )
        assert run.outcome is None
        expected = _unbroken(("bayes", formulation, _settings()))[1]  # type: ignore[arg-type]
        assert equal_runs(run, expected)
    assert listing(tmp_path) == []
