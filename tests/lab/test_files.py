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
from hyperlight.lab.files import (
    claim_folder,
    csv_text,
    is_inside,
    is_plain,
    read_sealed,
    sweep,
    write_sealed,
    write_text,
)
from hyperlight.lab.locks import locked
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


def test_a_file_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    write_text(tmp_path / "a", "12345")
    assert done == ["synced 5 bytes", "replaced"]
    assert (tmp_path / "a").read_text() == "12345"
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


# --- sealed files -----------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 2])
def test_every_flipped_bit_of_a_sealed_file_is_seen(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "a.json"
    content = {"name": "µ", "values": [1, 2.5, float("inf"), None, True], "sha": {}}
    write_sealed(path, content, indent)
    assert read_sealed(path) == (content, True)
    assert listing(tmp_path) == ["a.json"]
    whole = path.read_bytes()
    passed = []
    for place in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found, sealed = read_sealed(path)
        except ValueError:
            continue
        # A flipped bit in the name of the checksum is an unknown name.
        if sealed or set(found) == set(content):
            passed.append(place)
    assert passed == []


def test_a_file_without_a_checksum_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": NaN}')
    found, sealed = read_sealed(path)
    assert (list(found), sealed) == (["a"], False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"sha256": 3}', "its checksum is damaged"),
        ('{"sha256" : "0"}', "its checksum is damaged"),
        ('{"sha256": "0"}', "its contents differ from its checksum"),
        ("[]", "expected a JSON object, found b'[]'"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ("", "Expecting value"),
    ],
)
def test_a_sealed_file_of_something_else_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=words.replace("[", "\\[")):
        read_sealed(path)


# --- what is left of killed processes, and names from files ---------------------------


def test_what_a_killed_writer_leaves_is_swept_and_nothing_else(tmp_path: Path) -> None:
    part = ".report.html.0a1b2c3d.tmp"
    for name in (part, f"{part}.kept", "report.html"):
        (tmp_path / name).write_text("a part")
    others = [f"{part}.kept", ".report.html", ".report.html.swp", "a.json", "report.html"]
    (tmp_path / ".report.html").write_text("mine")
    (tmp_path / ".report.html.swp").write_text("mine")
    (tmp_path / "a.json").write_text("mine")
    sweep(tmp_path)
    assert listing(tmp_path) == sorted(others)


def test_a_lock_is_no_file_in_the_way(tmp_path: Path) -> None:
    with locked(tmp_path):
        claim_folder(tmp_path, overwrite=False)
        (tmp_path / "a").touch()
        with pytest.raises(LabError, match="already has files"):
            claim_folder(tmp_path, overwrite=False)


@pytest.mark.parametrize("name", ["dice.png", "along-gamma_2.png", "größe 1.png"])
def test_plain_names(name: str) -> None:
    assert is_plain(name, ".png")
    assert not is_plain(name, ".csv")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".png",
        "..",
        "/a.png",
        "a/b.png",
        "../a.png",
        "a\\b.png",
        "C:a.png",
        "a\0.png",
        "a.png\n",
    ],
)
def test_names_that_lead_elsewhere(name: str) -> None:
    assert not is_plain(name, ".png")


def test_links_lead_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").touch()
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "same.png").symlink_to("a.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "real" / "a.png")
    assert is_inside(tmp_path / "real" / "a.png")
    assert is_inside(tmp_path / "folder" / "a.png")  # the folder is the user's choice
    assert is_inside(tmp_path / "folder" / "same.png")
    assert not is_inside(tmp_path / "link.png")
