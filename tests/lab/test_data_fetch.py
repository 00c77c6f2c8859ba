"""Fetching and unpacking: what a hostile or damaged archive leaves behind, which is nothing."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hyperlight.lab.data.fetch import Remote, checksum, fetch, locate, unpack
from hyperlight.lab.errors import DataError
from tests.lab.making import listing

URL = "https://example.org/data/"


def _gives(content: bytes) -> Callable[[str, Any, Any], None]:
    return lambda url, output_file, _: Path(output_file).write_bytes(content) and None


def _never(url: str, output_file: Any, _: Any) -> None:
    raise AssertionError(f"{url} was asked for")


# --- fetch ------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_file_is_kept_when_its_checksum_is_right(tmp_path: Path, algorithm: Any) -> None:
    digest = hashlib.new(algorithm, b"right").hexdigest()
    files = [Remote("a.tar", digest, algorithm)]
    assert fetch(tmp_path / "new", URL, files, _gives(b"right")) == ["a.tar"]
    assert (tmp_path / "new" / "a.tar").read_bytes() == b"right"
    assert checksum(tmp_path / "new" / "a.tar", algorithm) == digest
    assert fetch(tmp_path / "new", URL, files, _never) == []


def test_a_file_that_differs_is_refused_and_a_second_try_works(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"right").hexdigest()
    wrong = hashlib.sha256(b"wrong").hexdigest()
    with pytest.raises(DataError) as raised:
        fetch(tmp_path, URL, [Remote("a.tar", digest)], _gives(b"wrong"))
    message = str(raised.value)
    assert f"its sha256 is {wrong}, which differs from {digest}" in message
    assert "Nothing was kept" in message
    assert listing(tmp_path) == []
    assert fetch(tmp_path, URL, [Remote("a.tar", digest)], _gives(b"right")) == ["a.tar"]


def test_a_checksum_that_is_not_the_publishers_gives_a_warning(tmp_path: Path) -> None:
    found = hashlib.md5(b"newer").hexdigest()
    with pytest.warns(UserWarning, match=f"its md5 is {found}, expected 0123"):
        fetch(tmp_path, URL, [Remote("a.tar", "0123", "md5", confirmed=False)], _gives(b"newer"))
    assert listing(tmp_path) == ["a.tar"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), TimeoutError("slow")])
def test_what_cannot_be_fetched_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    def half(url: str, output_file: Any, _: Any) -> None:
        Path(output_file).write_bytes(b"ha")
        raise error

    with pytest.raises(DataError, match="space on the disk and try again") as raised:
        fetch(tmp_path, URL, [Remote("a.tar", "0")], half)
    assert str(error) in str(raised.value)
    assert listing(tmp_path) == []


def test_an_interruption_leaves_nothing_and_goes_on(tmp_path: Path) -> None:
    def interrupted(url: str, output_file: Any, _: Any) -> None:
        Path(output_file).write_bytes(b"ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(tmp_path, URL, [Remote("a.tar", "0")], interrupted)
    assert listing(tmp_path) == []


def test_only_https(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'http://example.org/' is not https"):
        fetch(tmp_path, "http://example.org/", [], _never)


def test_a_folder_by_itself_or_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "second").mkdir()
    assert locate(tmp_path, "first", "second") == tmp_path / "second"
    assert locate(tmp_path, "first") == tmp_path
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / project)
    assert locate(None, "first", "second") == tmp_path / "hyperlight" / "first"


# --- unpack -----------------------------------------------------------------------


def _tar(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo, mode: Any = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return path


def _special(kind: bytes, name: str = "jpg/odd", target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_files_are_unpacked(tmp_path: Path, mode: Any) -> None:
    folder = _special(tarfile.DIRTYPE, "./jpg")
    archive = _tar(
        tmp_path / "a.tar", folder, ("jpg/a", b"A"), ("./jpg/b/c", b"C"), ("other", b""), mode=mode
    )
    unpack(archive, tmp_path / "jpg", top="jpg")
    assert (tmp_path / "jpg" / "a").read_bytes() == b"A"
    assert (tmp_path / "jpg" / "b" / "c").read_bytes() == b"C"
    unpack(archive, tmp_path / "all")
    assert listing(tmp_path / "all") == ["jpg", "other"]
    assert listing(tmp_path) == ["a.tar", "all", "jpg"]


HOSTILE: dict[str, tuple[tuple[str, bytes] | tarfile.TarInfo, str]] = {
    "absolute": (("/tmp/evil", b"x"), "'/tmp/evil', which lies outside"),
    "upwards": (("../evil", b"x"), "'../evil', which lies outside"),
    "upwards inside": (("jpg/../../evil", b"x"), "which lies outside"),
    "upwards for Windows": (("jpg\\..\\..\\evil", b"x"), "which lies outside"),
    "a drive": (("C:evil", b"x"), "'C:evil', which lies outside"),
    "symbolic link": (
        _special(tarfile.SYMTYPE, target="/etc/passwd"),
        "'jpg/odd', which is a link",
    ),
    "link inside": (_special(tarfile.SYMTYPE, target="first"), "which is a link or a device"),
    "hard link": (_special(tarfile.LNKTYPE, target="jpg/first"), "which is a link or a device"),
    "device": (_special(tarfile.CHRTYPE), "which is a link or a device"),
    "pipe": (_special(tarfile.FIFOTYPE), "which is a link or a device"),
    "twice": (("jpg/first", b"again"), "cannot be unpacked"),
    "below a file": (("jpg/first/below", b"x"), "cannot be unpacked"),
    "many bytes": (("jpg/large", bytes(2000)), "more than 3 files or 1,000 bytes"),
}


@pytest.mark.parametrize(("member", "words"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_archives_are_refused_and_leave_nothing(
    tmp_path: Path, member: tuple[str, bytes] | tarfile.TarInfo, words: str
) -> None:
    place = tmp_path / "deep" / "down"
    place.mkdir(parents=True)
    archive = _tar(place / "a.tgz", ("jpg/first", b"1"), member)
    with pytest.raises(DataError) as raised:
        unpack(archive, place / "jpg", top="jpg", most_files=3, most_bytes=1000)
    assert words in str(raised.value)
    assert "Nothing of it was kept" in str(raised.value)
    assert str(archive) in str(raised.value)
    assert listing(place) == ["a.tgz"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.tgz", "deep", "down"]


def test_too_many_files_are_refused(tmp_path: Path) -> None:
    archive = _tar(tmp_path / "a.tgz", *((f"{i}", b"") for i in range(4)))
    with pytest.raises(DataError, match="more than 3 files"):
        unpack(archive, tmp_path / "out", most_files=3)
    assert listing(tmp_path) == ["a.tgz"]


def test_a_size_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    info = tarfile.TarInfo("huge")
    info.size = 2**40
    (tmp_path / "a.tar").write_bytes(info.tobuf())
    with pytest.raises(DataError, match=r"more than 20,000 files or 2,147,483,648 bytes"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
    assert listing(tmp_path) == ["a.tar"]


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_an_archive_that_is_cut_short(tmp_path: Path, keep: float) -> None:
    noise = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(200))
    archive = _tar(tmp_path / "a.tgz", ("jpg/a", noise), ("jpg/b", noise[::-1]))
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(DataError, match=r"(?s)cannot be unpacked.*delete it and fetch it again"):
        unpack(archive, tmp_path / "jpg", top="jpg")
    assert listing(tmp_path) == ["a.tgz"]


def test_another_archive_is_refused(tmp_path: Path) -> None:
    archive = _tar(tmp_path / "a.tgz", ("else/a", b"A"))
    with pytest.raises(DataError, match=r"holds no files in 'jpg'"):
        unpack(archive, tmp_path / "jpg", top="jpg")
    with pytest.raises(DataError, match="holds no files in '.'"):
        unpack(_tar(tmp_path / "b.tgz"), tmp_path / "jpg")
    assert listing(tmp_path) == ["a.tgz", "b.tgz"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = _tar(tmp_path / "a.tgz", ("jpg/a", b"A"))

    def full(source: Any, target: Any) -> None:
        target.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(DataError, match=r"No space left on device.*there is space on the disk"):
        unpack(archive, tmp_path / "jpg", top="jpg")
    assert listing(tmp_path) == ["a.tgz"]
    monkeypatch.undo()
    unpack(archive, tmp_path / "jpg", top="jpg")
    assert listing(tmp_path / "jpg") == ["a"]


def test_nothing_that_is_there_is_overwritten(tmp_path: Path) -> None:
    archive = _tar(tmp_path / "a.tgz", ("a", b"new"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_bytes(b"old")
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(archive, tmp_path / "out")
    assert (tmp_path / "out" / "a").read_bytes() == b"old"
    assert listing(tmp_path) == ["a.tgz", "out"]
