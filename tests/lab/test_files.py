"""Files appear whole or not at all, and folders with results are not written over by accident."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlight.lab.errors import LabError
from hyperlight.lab.files import claim_folder, csv_text, replace_file, write_text
from tests.lab.making import equal_values, listing


def test_text_comes_back_byte_for_byte(tmp_path: Path) -> None:
    text = "one\ntwo\r\nµ ± 3\n"
    write_text(tmp_path / "a.csv", text)
    assert (tmp_path / "a.csv").read_bytes() == text.encode("utf-8")
    assert listing(tmp_path) == ["a.csv"]


def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    write_text(tmp_path / "a.csv", "a longer old text")
    write_text(tmp_path / "a.csv", "new")
    assert (tmp_path / "a.csv").read_text() == "new"
    assert listing(tmp_path) == ["a.csv"]


def test_others_can_read_what_is_written(tmp_path: Path) -> None:
    write_text(tmp_path / "a.csv", "text")
    assert (tmp_path / "a.csv").stat().st_mode & 0o777 == 0o644


def test_an_error_while_writing_leaves_the_old_file_alone(tmp_path: Path) -> None:
    write_text(tmp_path / "a.csv", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.csv", "x" * 100_000 + "\ud800")  # half a surrogate pair
    assert (tmp_path / "a.csv").read_text() == "old"
    assert listing(tmp_path) == ["a.csv"]


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_an_error_while_moving_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    write_text(tmp_path / "a.csv", "old")
    seen = []

    def refuse(source: str, target: Path) -> None:
        seen.append(Path(source).read_text())
        raise error

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(type(error)):
        write_text(tmp_path / "a.csv", "new")
    assert seen == ["new"], "the new text must be complete before it takes the old one's place"
    assert (tmp_path / "a.csv").read_text() == "old"
    assert listing(tmp_path) == ["a.csv"]


@pytest.mark.parametrize("durable", [False, True])
def test_a_durable_file_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(number: int) -> None:
        done.append(f"synced {os.fstat(number).st_size} bytes")
        sync(number)

    def replaced(source: str, target: Path) -> None:
        done.append("replaced")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    replace_file(tmp_path / "a", lambda part: part.write_text("12345"), durable=durable)
    assert done == (["synced 5 bytes", "replaced"] if durable else ["replaced"])
    assert (tmp_path / "a").read_text() == "12345"
    assert listing(tmp_path) == ["a"]


def test_whoever_writes_is_given_a_file_beside_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    def write(part: Path) -> None:
        assert part.parent == tmp_path
        assert (tmp_path / "a").read_text() == "old"
        part.unlink()  # as a writer that replaces the file does
        part.write_text("new")

    replace_file(tmp_path / "a", write)
    assert (tmp_path / "a").read_text() == "new"
    assert listing(tmp_path) == ["a"]


floats = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(st.tuples(st.text('a,"\n b'), floats, st.integers()), max_size=4))
def test_rows_come_back_from_csv_to_the_bit(rows: list[tuple[str, float, int]]) -> None:
    text = csv_text(["word", "number", "count"], rows)
    heading, *found = csv.reader(io.StringIO(text, newline=""))
    assert heading == ["word", "number", "count"]
    assert equal_values([(a, float(b), int(c)) for a, b, c in found], rows)


def test_an_error_at_the_first_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.csv", "\ud800")
    assert listing(tmp_path) == []


def test_a_missing_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    claim_folder(tmp_path / "a" / "b", overwrite=False)
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_empty_folder_is_taken(tmp_path: Path, overwrite: bool) -> None:
    claim_folder(tmp_path, overwrite)
    assert listing(tmp_path) == []


@pytest.mark.parametrize("name", ["old.csv", ".hidden"])
def test_a_folder_with_files_is_refused_unless_told(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("old")
    with pytest.raises(LabError) as raised:
        claim_folder(tmp_path, overwrite=False)
    assert str(tmp_path) in str(raised.value)
    assert "already has files" in str(raised.value)
    assert "another --out" in str(raised.value)
    assert "--overwrite" in str(raised.value)
    claim_folder(tmp_path, overwrite=True)
    assert (tmp_path / name).read_text() == "old"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "results").write_text("a file")
    with pytest.raises(LabError, match=r"is a file; expected a folder .* another --out"):
        claim_folder(tmp_path / "results", overwrite)
    assert (tmp_path / "results").read_text() == "a file"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(LabError, match=r"cannot be created .* another --out"):
        claim_folder(tmp_path / "file" / "below", overwrite)
