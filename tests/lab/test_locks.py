"""One process at a time writes to a folder; the lock goes with the process."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import filelock
import pytest

from hyperlight.lab import locks
from hyperlight.lab.errors import LabError
from hyperlight.lab.locks import LOCK, locked
from tests.lab import running
from tests.lab.making import listing

HERE = f"process {os.getpid()} on {os.uname().nodename}"


def test_a_folder_is_held_once(tmp_path: Path) -> None:
    with locked(tmp_path) as held:
        assert held
        assert (tmp_path / LOCK).read_text() == HERE
        with pytest.raises(LabError) as raised, locked(tmp_path):
            pass
        assert str(raised.value) == (
            f"{tmp_path} is in use by {HERE}. Wait until that process ends, or choose another "
            "--out."
        )
        (tmp_path / "other").mkdir()
        with locked(tmp_path / "other") as other:
            assert other
    assert listing(tmp_path) == ["other"]
    with locked(tmp_path) as held:
        assert held


def test_an_error_ends_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        raise KeyboardInterrupt
    assert listing(tmp_path) == []
    with locked(tmp_path) as held:
        assert held


@pytest.mark.parametrize("text", ["", "<b>process 1</b>", "process 1 on x\n\x1b[2J", "\udcff"])
def test_what_no_process_wrote_is_not_repeated(tmp_path: Path, text: str) -> None:
    with locked(tmp_path):
        (tmp_path / LOCK).write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(LabError, match="is in use by another process. Wait"), locked(tmp_path):
            pass


def test_whoever_waits_is_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_POLL", 0.01)
    said: list[str] = []
    order: list[str] = []

    def other() -> None:
        with locked(tmp_path, said.append) as held:
            assert held
            order.append("other")

    thread = threading.Thread(target=other)
    with locked(tmp_path):
        thread.start()
        while not said:
            time.sleep(0.001)
        time.sleep(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]
    assert said == [f"{tmp_path} is in use by {HERE}; waiting until it is done."]
    assert listing(tmp_path) == []


def test_who_is_asked_to_stop_does_not_wait(tmp_path: Path) -> None:
    said: list[str] = []
    ended: list[bool] = []

    def other() -> None:
        with pytest.raises(KeyboardInterrupt), locked(tmp_path, said.append, lambda: bool(said)):
            ended.append(False)
        ended.append(True)

    thread = threading.Thread(target=other)
    with locked(tmp_path):
        thread.start()
        thread.join(10.0)
        assert (len(said), ended) == (1, [True])
    assert listing(tmp_path) == []


def test_who_holds_a_folder_does_not_wait_for_itself(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(LabError, match="is in use by process"),
        locked(tmp_path, lambda line: None),
    ):
        pass


def test_a_lock_ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    process = running.hold(tmp_path)
    while not (tmp_path / LOCK).exists() or not (tmp_path / LOCK).read_text():
        assert process.is_alive()
        time.sleep(0.001)
    holder = f"process {process.pid} on {os.uname().nodename}"
    with pytest.raises(LabError, match=f"is in use by {holder}"), locked(tmp_path):
        pass
    process.kill()
    process.join()
    assert listing(tmp_path) == [LOCK]
    with locked(tmp_path) as held:
        assert held
        assert (tmp_path / LOCK).read_text() == HERE
    assert listing(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOLCK, errno.ENOSYS])
def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(filelock.FileLock, "_acquire", refuse)
    with pytest.warns(UserWarning, match="locked") as caught, locked(tmp_path) as held:
        assert not held
    assert [str(warning.message) for warning in caught] == [
        f"{tmp_path} cannot be locked ({os.strerror(code)}). Do not let two processes write to it "
        "at the same time."
    ]


def test_a_folder_that_takes_no_files_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In /proc the file seems to vanish as soon as it is made."""
    monkeypatch.setattr(filelock.FileLock, "_acquire", lambda self: None)
    said = f"{tmp_path} cannot be locked .no file can be made in it."
    with pytest.warns(UserWarning, match=said), locked(tmp_path) as held:
        assert not held


def test_the_lock_of_another_in_a_folder_that_was_replaced_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with locked(folder):
        folder.rename(tmp_path / "moved")
        folder.mkdir()
        (folder / LOCK).write_text("process 1 on elsewhere")
    assert listing(folder) == [LOCK]
