"""A small part of ``python -m tests.fuzz``, and every file that was once handled wrongly."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from hyperlight.errors import FormatError
from tests.fuzz import registry
from tests.fuzz.found import Found
from tests.fuzz.judge import FAULTS, GOOD, Worker, mutant
from tests.fuzz.reader import Reader, untouched

FILES = 60  # for each reader; the command reads thousands


@pytest.mark.parametrize("name", registry.READERS)
def test_changed_files_are_refused_or_read_right(name: str) -> None:
    cases = [*registry.FOUND.get(name, {}), *range(FILES)]
    with Worker(name) as worker:
        results = {case: worker.judge(0, case) for case in cases}
    wrong = [
        f"{case if isinstance(case, str) else f'--reader {name} --seed 0 --index {case}'}: "
        f"{result.verdict}: {result.detail}"
        for case, result in results.items()
        if result.verdict in FAULTS
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ["load", "from-hyperlight", "npz", "zip", "tar-gz", "pictures"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_equal_numbers_give_equal_files(name: str, tmp_path: Path) -> None:
    reader, folders = registry.READERS[name], [tmp_path / "0", tmp_path / "1"]
    for variant, folder in enumerate(folders):
        folder.mkdir()
        reader.make(folder, variant)
    files = [mutant(reader, folders, 0, index) for index in range(100)]
    again = [mutant(reader, folders, 0, index) for index in reversed(range(100))]
    assert files == again[::-1]
    assert len({file.content for file in files}) > 70


def test_everything_that_was_found_belongs_to_a_reader() -> None:
    assert registry.FOUND.keys() <= registry.READERS.keys()


# --- a reader with every fault, which must be seen ------------------------------------


def _make(folder: Path, variant: int) -> None:
    (folder / "word").write_text("right")


def _read(folder: Path) -> str:
    word = (folder / "word").read_text()
    if word == "refused":
        raise FormatError(f"{folder / 'word'} is refused.")
    if word == "file not named":
        raise FormatError("it is refused.")
    if word == "foreign exception":
        raise KeyError("word")
    if word == "crash":
        os.abort()
    if word == "hang":
        time.sleep(60)
    if word == "memory":
        return f"{bytearray(120 * 2**20)[0]}"
    if word == "state changed":
        torch.rand(1)
    if word == "outside":
        (folder.parent / "escaped").write_text("x")
    if word == "primary changed":
        primary = nn.BatchNorm1d(2)
        with untouched(primary):
            nn.init.zeros_(primary.weight)
            raise FormatError(f"{folder / 'word'} is refused.")
    if word == "file deleted":
        (folder / "word").unlink()
        raise FormatError(f"{folder / 'word'} is refused.")
    return word


WORDS = dict.fromkeys((*GOOD, *FAULTS, "primary changed", "file deleted"))
READERS = {rule: Reader(rule, _make, _read, ("word",), rule=rule) for rule in ("read", "checked")}
FOUND = {
    rule: {word: Found(lambda _, word=word: word.encode(), damaged=True) for word in WORDS}
    for rule in READERS
}


def test_every_fault_is_seen() -> None:
    expected = {word: word for word in WORDS}
    expected |= {"primary changed": "state changed", "file deleted": "state changed"}
    expected |= {"other values": "as it stands"}  # which needs a checksum to be seen
    with Worker("read", module=__name__, seconds=5.0) as worker:
        assert {word: worker.judge(0, word).verdict for word in WORDS} == expected
    with Worker("checked", module=__name__) as worker:
        assert worker.judge(0, "right").verdict == "right"
        assert worker.judge(0, "other values").verdict == "other values"
