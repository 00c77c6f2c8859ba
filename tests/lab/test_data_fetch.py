"""Fetching and unpacking: what a hostile or damaged archive leaves behind, which is nothing."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import shutil
import socket
import ssl
import tarfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import tornado
from urllib3.exceptions import HTTPError

from hyperlight.lab.data import flowers102, image_folder, mnist, oasis, ptbp, scan_folder
from hyperlight.lab.data.fetch import Remote, _download, checksum, fetch, locate, unpack
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


def test_a_file_that_is_there_is_checked(tmp_path: Path) -> None:
    path, digest = tmp_path / "a.tar", hashlib.sha256(b"right").hexdigest()
    path.write_bytes(b"wrong")
    with pytest.raises(DataError) as raised:
        fetch(tmp_path, URL, [Remote("a.tar", digest)], _never)
    found = hashlib.sha256(b"wrong").hexdigest()
    assert (
        f"{path} is not the official file: its sha256 is {found}, which differs from {digest}"
        in (str(raised.value))
    )
    assert "Delete it and fetch it again" in str(raised.value)
    assert path.read_bytes() == b"wrong"
    with pytest.warns(UserWarning, match=rf"a\.tar may be damaged .* {found}, which differs"):
        assert fetch(tmp_path, URL, [Remote("a.tar", digest, confirmed=False)], _never) == []
    path.write_bytes(b"right")
    assert fetch(tmp_path, URL, [Remote("a.tar", digest)], _never) == []


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    file = Remote("a.tar", hashlib.sha256(b"right").hexdigest(), most=4)
    with pytest.raises(DataError, match="a.tar could not be fetched .* more than 4 bytes"):
        fetch(tmp_path, URL, [file], _gives(b"right"))
    assert listing(tmp_path) == []


def test_a_folder_by_itself_or_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "second").mkdir()
    assert locate(tmp_path, "first", "second") == tmp_path / "second"
    assert locate(tmp_path, "first") == tmp_path
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / project)
    assert locate(None, "first", "second") == tmp_path / "hyperlight" / "first"


def test_a_folder_that_cannot_be_looked_into(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 5000)  # without permission it is the same, but not for root
    for read in (mnist, flowers102, oasis, ptbp, image_folder, scan_folder):
        with pytest.raises(DataError, match="cannot be read as a folder .* Check its name"):
            read(folder)


# --- a server -----------------------------------------------------------------------

HOST = "foo.example.com"  # of the certificate that tornado's tests use, valid until 2033
CERTIFICATE = Path(tornado.__file__).parent / "test" / "test.crt"
needs_certificate = pytest.mark.skipif(
    not CERTIFICATE.is_file(), reason="this tornado was installed without its tests"
)


@dataclass
class Served:
    """How a server of https and one of http answer, and what they were asked for."""

    https: str
    http: str
    answers: dict[str, Callable[[BaseHTTPRequestHandler], None]]
    asked: list[str]


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # whoever asked has gone


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler], secure: bool) -> Iterator[str]:
    with _Server(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        if secure:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATE, CERTIFICATE.with_suffix(".key"))
            # Handshakes in the threads of the requests: one that a client leaves open would
            # otherwise keep the server from ending.
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http{'s' * secure}://{HOST}:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            with contextlib.suppress(OSError):  # whoever asked has gone
                answers[self.path](self)

        def log_message(self, *_: Any) -> None:
            pass

    find = socket.getaddrinfo

    def local(host: Any, *args: Any, **options: Any) -> Any:
        return find("127.0.0.1" if host == HOST else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", local)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(CERTIFICATE))
    with _serving(Handler, True) as https, _serving(Handler, False) as http:
        yield Served(https, http, answers, asked)


def _body(content: bytes, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(content)

    return answer


def _to(address: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", address)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def _endless(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    for _ in range(1000):
        request.wfile.write(bytes(2**20))


def _slow(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    for _ in range(300):
        request.wfile.write(b"x")
        time.sleep(0.1)


def _silent(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    time.sleep(30)


def _slow_headers(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
    for _ in range(300):
        request.wfile.write(b"x")
        time.sleep(0.1)


def _endless_page(request: BaseHTTPRequestHandler) -> None:
    request.send_response(302)
    request.send_header("Location", "/right")
    request.end_headers()
    for _ in range(1000):
        request.wfile.write(bytes(2**20))


RIGHT = bytes(range(256)) * 1000


@needs_certificate
def test_a_file_comes_as_it_was_sent(tmp_path: Path, served: Served) -> None:
    packed = gzip.compress(RIGHT)
    served.answers["/a.tgz"] = _body(packed, **{"Content-Encoding": "gzip"})
    served.answers["/b"] = _to("/c")
    served.answers["/c"] = _to(f"{served.https}d")
    served.answers["/d"] = _body(RIGHT)
    files = [Remote(*pair) for pair in (("a.tgz", _sha(packed)), ("b", _sha(RIGHT)))]
    assert fetch(tmp_path, served.https, files) == ["a.tgz", "b"]
    assert (tmp_path / "a.tgz").read_bytes() == packed
    assert (tmp_path / "b").read_bytes() == RIGHT
    assert served.asked == ["/a.tgz", "/b", "/c", "/d"]


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@needs_certificate
def test_a_server_that_is_not_known_is_refused(
    tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.answers["/a"] = _body(RIGHT)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(DataError, match=r"(?i)a could not be fetched .* certificate"):
        fetch(tmp_path, served.https, [Remote("a", _sha(RIGHT))])
    assert (served.asked, listing(tmp_path)) == ([], [])


@needs_certificate
def test_http_is_refused_after_a_redirect_too(tmp_path: Path, served: Served) -> None:
    served.answers["/a"] = _to("/b")
    served.answers["/b"] = _to(f"{served.http}c")
    served.answers["/c"] = _body(RIGHT)
    with pytest.raises(DataError, match="it leads to an address that is not https") as raised:
        fetch(tmp_path, served.https, [Remote("a", _sha(RIGHT))])
    assert f"{served.http}c" in str(raised.value)
    assert served.asked == ["/a", "/b"]
    assert listing(tmp_path) == []


@needs_certificate
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (_endless, "it has more than 1,000,000 bytes"),
        (_body(bytes(1_000_001)), "it has more than 1,000,000 bytes"),
        (_endless_page, "it took more than 320 seconds or 2,048,576 bytes"),
        (_body(b"half", **{"Content-Length": "8"}), r"4 bytes read, 4 more expected"),
        (lambda request: request.send_error(404), "404"),
        (_to("/a"), "redirects"),
    ],
    ids=["endless", "too large", "an endless page", "cut short", "not there", "a circle"],
)
def test_answers_that_are_refused(
    tmp_path: Path, served: Served, answer: Callable[[BaseHTTPRequestHandler], None], words: str
) -> None:
    served.answers["/a"] = answer
    file = Remote("a", _sha(RIGHT), confirmed=False, most=1_000_000)
    with pytest.raises(DataError, match=f"a could not be fetched from .*{words}.*Nothing of it"):
        fetch(tmp_path, served.https, [file])
    assert listing(tmp_path) == []


@needs_certificate
@pytest.mark.parametrize(
    "answer", [_slow, _silent, _slow_headers], ids=["slow", "silent", "slow headers"]
)
def test_an_answer_takes_no_longer_than_it_may(
    tmp_path: Path, served: Served, answer: Callable[[BaseHTTPRequestHandler], None]
) -> None:
    served.answers["/a"] = answer
    start = time.monotonic()
    with pytest.raises((OSError, HTTPError), match=r"timed out|more than 1 seconds"):
        _download(f"{served.https}a", tmp_path / "a", 10_000, 1.0)
    assert time.monotonic() - start < 10.0


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


def test_too_many_folders_are_refused(tmp_path: Path) -> None:
    archive = _tar(tmp_path / "a.tgz", *(_special(tarfile.DIRTYPE, f"{i}") for i in range(4)))
    with pytest.raises(DataError, match="more than 3 files"):
        unpack(archive, tmp_path / "out", most_files=3)


def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    noise = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(12))
    archive = _tar(tmp_path / "a.tgz", ("jpg/a", noise), ("jpg/b", noise[::-1]))
    whole, refused = archive.read_bytes(), 0
    for i in range(8 * 10, 8 * len(whole), 31):
        damaged = bytearray(whole)
        damaged[i // 8] ^= 1 << i % 8
        archive.write_bytes(damaged)
        try:
            unpack(archive, tmp_path / "jpg", top="jpg")
        except DataError:
            refused += 1
            assert listing(tmp_path) == ["a.tgz"]
            continue
        assert (tmp_path / "jpg" / "a").read_bytes() == noise
        assert (tmp_path / "jpg" / "b").read_bytes() == noise[::-1]
        shutil.rmtree(tmp_path / "jpg")
    assert refused > 0.2 * len(whole)


@pytest.mark.parametrize("damage", ["a header", "cut between files", "cut in the last block"])
def test_a_plain_archive_that_ends_early(tmp_path: Path, damage: str) -> None:
    archive = _tar(tmp_path / "a.tar", *((f"jpg/{c}", b"A") for c in "abc"), mode="w")
    content = bytearray(archive.read_bytes())
    if damage == "a header":  # of the second file: tarfile takes it for the end
        content[1024 + 100] ^= 1
    archive.write_bytes(content[: {"cut between files": 2048, "a header": None}.get(damage, 3100)])
    with pytest.raises(DataError, match="it is cut short or damaged within"):
        unpack(archive, tmp_path / "jpg", top="jpg")
    assert listing(tmp_path) == ["a.tar"]


def _long_name(size: int, content: bytes = b"") -> bytes:
    info = _special(b"L", "././@LongLink")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_long_name(2**40), "it has a header of 1,099,511,627,776 bytes"),
        (_long_name(2**28) + bytes(2**28), "it has a header of 268,435,456 bytes"),
        (_long_name(512, b"x" * 512) * 2000, "cannot be unpacked"),
        (b"".join(_special(tarfile.DIRTYPE, f"{i}").tobuf() for i in range(9)), "than 3 files"),
        (_special(tarfile.REGTYPE, "a").tobuf() + bytes(2**28), "more than 30,672 bytes in all"),
    ],
    ids=["a long name", "a long name that is there", "nested", "folders", "after the end"],
)
def test_a_bomb_takes_little_memory(tmp_path: Path, content: bytes, words: str) -> None:
    archive = tmp_path / "a.tgz"
    archive.write_bytes(gzip.compress(content, 1))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=words):
            unpack(archive, tmp_path / "out", most_files=3, most_bytes=2000)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()
    assert listing(tmp_path) == ["a.tgz"]


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    info = _special(tarfile.GNUTYPE_SPARSE, "jpg/a")
    buffer = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    buffer[386:483] = bytes(97)
    buffer[483:495] = b"00000000100\0"  # its size with the holes
    buffer[148:156] = b" " * 8
    buffer[148:156] = b"%06o\0 " % sum(buffer)
    (tmp_path / "a.tar").write_bytes(bytes(buffer) + bytes(10240))
    with pytest.raises(DataError, match="'jpg/a', which is a link or a device, or sparse"):
        unpack(tmp_path / "a.tar", tmp_path / "out")


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
