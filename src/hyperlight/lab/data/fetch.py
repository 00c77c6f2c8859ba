"""Download files with a checksum, and unpack archives safely."""

from __future__ import annotations

import hashlib
import os
import shutil
import ssl
import tarfile
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, cast

from ..errors import DataError, LabError
from .border import opened, reading

__all__ = ["Remote", "cache_folder", "checksum", "fetch", "locate", "unpack"]


@dataclass(frozen=True)
class Remote:
    """A file to fetch.

    Attributes:
        name: of the file, relative to the address of its folder.
        digest: its checksum in hexadecimal digits.
        algorithm: of the checksum.
        confirmed: whether the publisher gives the checksum. A file that differs is then refused;
            otherwise it is kept with a warning.
        most: largest size in bytes to accept.
    """

    name: str
    digest: str
    algorithm: Literal["sha256", "md5"] = "sha256"
    confirmed: bool = True
    most: int = 2**30


def cache_folder(name: str) -> Path:
    """The folder of a data set in the user's cache."""
    import pooch

    return Path(pooch.os_cache("hyperlight")) / name


def locate(folder: Path | None, *names: str) -> Path:
    """The folder of a data set: ``folder / name`` if it exists, otherwise ``folder`` itself.

    Users may thus name the folder of one data set or of several. Without a folder it is the user's
    cache.
    """
    if folder is None:
        return cache_folder(names[0])
    with reading(folder, "a folder", "Check its name and its permissions."):
        return next((folder / name for name in names if (folder / name).is_dir()), folder)


def checksum(path: Path, algorithm: str = "sha256") -> str:
    """The checksum of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def fetch(folder: Path, url: str, files: Sequence[Remote], downloader: Any = None) -> list[str]:
    """Fetch files into a folder over https, and check those that it has already.

    A file gets a temporary name until its checksum is verified. An interrupted download starts
    again.

    Args:
        folder: for the files; created if it does not exist.
        url: the address of the folder with the files.
        files: what to fetch; files that the folder has already are checked instead.
        downloader: called with the address of a file, the path to write and ``None``, like those
            of pooch.

    Returns:
        The names of the files that were fetched.

    Raises:
        DataError: the address is not https or leads to one that is not, or a file cannot be
            fetched, is too large or has another checksum. Files that were fetched before it stay.
    """
    if not url.startswith("https://"):
        raise DataError(f"{url!r} is not https; data is only fetched over https.")
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; expected a folder. Choose another --data-dir.")
    fetched = []
    for file in files:
        if (folder / file.name).is_file():
            _check(folder / file.name, file)
            continue
        part: Path | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=folder, prefix=f".{file.name}.")
            os.close(descriptor)
            part = Path(name)
            address = f"{url.rstrip('/')}/{file.name}"
            if downloader is None:
                _download(address, part, file.most)
            else:
                downloader(address, str(part), None)
            if part.stat().st_size > file.most:
                raise OSError(f"it has more than {file.most:,} bytes")
            found = checksum(part, file.algorithm)
            if found == file.digest or not file.confirmed:
                part.chmod(0o644)
                part.replace(folder / file.name)
        except Exception as error:  # from requests, the disk or the connection
            raise DataError(
                f"{file.name} could not be fetched from {url}: {error}. Nothing of it was kept. "
                "Check the connection and the space on the disk and try again, or put the "
                f"official files into {folder} yourself."
            ) from error
        finally:
            if part is not None:
                part.unlink(missing_ok=True)
        if found != file.digest:
            given = f"its {file.algorithm} is {found}"
            if file.confirmed:
                raise DataError(
                    f"What {url} gave for {file.name} is not the official file: {given}, which "
                    f"differs from {file.digest}. Nothing was kept. Try again later, or put the "
                    f"official files into {folder} yourself."
                )
            warnings.warn(
                f"{file.name} from {url} may have changed: {given}, expected {file.digest}, which "
                "is not from the publisher. It was kept; its contents are checked when it is read.",
                stacklevel=2,
            )
        fetched.append(file.name)
    return fetched


def _check(path: Path, file: Remote) -> None:
    """Compare a file that is there with its checksum."""
    with reading(path, "a file", "Delete it and fetch it again."):
        found = checksum(path, file.algorithm)
    if found == file.digest:
        return
    differs = f"its {file.algorithm} is {found}, which differs from {file.digest}"
    if file.confirmed:
        raise DataError(
            f"{path} is not the official file: {differs}. Delete it and fetch it again."
        )
    warnings.warn(
        f"{path} may be damaged or of another version: {differs}, which is not from the "
        "publisher. Its contents are checked when it is read.",
        stacklevel=3,
    )


def _download(url: str, path: Path, most: int, seconds: float | None = None) -> None:
    """Write what an address gives to a file, with requests.

    Args:
        url: https, also after redirects.
        path: of the file.
        most: bytes to receive in all.
        seconds: for all of it; by default as long as ``most`` bytes take at 50 kB/s, and five
            minutes.

    Raises:
        OSError: it cannot be had so; urllib3 has errors of its own.
    """
    import requests
    from requests.adapters import HTTPAdapter

    allowed = 300 + most / 50_000 if seconds is None else seconds
    context = _limited(most + 2**20, allowed)  # with certificates and headers

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **options: Any) -> None:
            super().init_poolmanager(*args, ssl_context=context, **options)

        def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
            return super().proxy_manager_for(*args, ssl_context=context, **options)

    headers = {
        "User-Agent": "Mozilla/5.0 (compatible; HyperLight)",  # some hosts refuse others
        "Accept-Encoding": "identity",
    }
    with requests.Session() as session:
        session.adapters.clear()  # and with them http
        session.mount("https://", Adapter())
        try:
            response = session.get(url, stream=True, timeout=60, headers=headers)
        except requests.exceptions.InvalidSchema as error:
            raise OSError(f"it leads to an address that is not https ({error})") from error
        with response, path.open("wb") as file:
            response.raise_for_status()
            # As it was sent: an archive is not decompressed on the way.
            for piece in response.raw.stream(2**16, decode_content=False):
                if file.tell() + len(piece) > most:
                    raise OSError(f"it has more than {most:,} bytes")
                file.write(piece)
            expected = response.headers.get("Content-Length")
            if expected is not None and expected != str(file.tell()):
                raise OSError(f"it ended after {file.tell():,} of {expected} bytes")


def _limited(most: int, seconds: float) -> ssl.SSLContext:
    """A context that verifies certificates, whose connections receive no more and no longer.

    What a server sends before the file counts too: headers, and the pages of redirects.
    """
    end, left = time.monotonic() + seconds, most

    class Limited(ssl.SSLSocket):
        def recv_into(self, *args: Any) -> int:
            nonlocal left
            remaining = end - time.monotonic()
            if remaining <= 0 or left < 0:
                raise OSError(f"it took more than {seconds:,.0f} seconds or {most:,} bytes")
            self.settimeout(min(60.0, remaining))
            received = super().recv_into(*args)
            left -= received
            return received

    context = ssl.create_default_context()
    context.sslsocket_class = Limited
    return context


def _path(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or any(c in name for c in "\\:\0"):
        raise DataError(
            f"{archive} holds a file named {name!r}, which lies outside of the folder that it is "
            "unpacked to. This is not the expected archive: delete it. Nothing of it was kept."
        )
    return path


class _Contents:
    """The contents of an archive as tarfile reads them, no further than they should go."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self.file, self.most = file, most
        self.last = b""

    def read(self, size: int) -> bytes:
        # Files are read in smaller pieces: this is a header, which tarfile keeps in memory.
        if not 0 <= size <= 2**20:
            raise tarfile.TarError(f"it has a header of {size:,} bytes")
        self._within(self.tell() + size)
        self.last = self.file.read(size)
        return self.last

    def tell(self) -> int:
        return self.file.tell()

    def seek(self, position: int) -> int:
        self._within(position)
        return self.file.seek(position)

    def _within(self, position: int) -> None:
        if position > self.most:
            raise tarfile.TarError(f"it has more than {self.most:,} bytes in all")


def unpack(
    archive: Path,
    folder: Path,
    *,
    top: str = ".",
    most_files: int = 20_000,
    most_bytes: int = 2 * 2**30,
) -> None:
    """Unpack a tar archive, gzipped or not, into a new folder: completely or not at all.

    Only regular files are written, and only inside the folder; owners, permissions and links of
    the archive are ignored. The folder appears once the whole archive has been read, with the
    checksum of gzip.

    Args:
        archive: the file.
        folder: where; it must be empty or not exist.
        top: the folder of the archive to unpack.
        most_files: largest number of files and folders to accept.
        most_bytes: largest size of all unpacked files to accept.

    Raises:
        DataError: the archive is damaged or not the expected one, or does not fit on the disk.
    """
    work: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        with archive.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        # Besides the files there are headers and padding.
        most_in_all = most_bytes + (most_files + 4) * 4096
        with opened(archive, zipped) as plain:
            contents = _Contents(plain, most_in_all)
            _extract(archive, contents, work, most_files, most_bytes)
            # Damaged headers end an archive as its last block does, of zeros.
            if contents.last != bytes(tarfile.BLOCKSIZE):
                raise tarfile.TarError("it is cut short or damaged within")
            while contents.read(4096):
                pass
        if not (work / top).is_dir() or not any((work / top).iterdir()):
            raise DataError(
                f"{archive} holds no files in {top!r}; it is empty or another archive. Delete it "
                "and fetch it again."
            )
        (work / top).chmod(0o755)
        (work / top).replace(folder)
    except LabError:
        raise
    except Exception as error:  # tarfile raises many kinds on damaged archives
        raise DataError(
            f"{archive} cannot be unpacked to {folder}: {error}. Nothing of it was kept. If there "
            "is space on the disk and the folder can be written to, the archive is damaged: "
            "delete it and fetch it again."
        ) from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def _extract(
    archive: Path, contents: _Contents, work: Path, most_files: int, most_bytes: int
) -> None:
    files = size = 0
    with tarfile.open(fileobj=cast(IO[bytes], contents), mode="r:") as tar:
        for member in tar:
            path = _path(member.name, archive)
            if not (member.isdir() or member.isreg()) or member.issparse():
                raise DataError(
                    f"{archive} holds {member.name!r}, which is a link or a device, or sparse; "
                    "expected only files and folders. This is not the expected archive: delete "
                    "it. Nothing of it was kept."
                )
            files, size = files + 1, size + member.size
            if files > most_files or size > most_bytes:
                raise DataError(
                    f"{archive} holds more than {most_files:,} files or {most_bytes:,} bytes, "
                    "unpacked. This is not the expected archive: delete it. Nothing of it was "
                    "kept."
                )
            if member.isdir():
                continue
            content = tar.extractfile(member)
            assert content is not None
            target = work / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with content, target.open("xb") as file:
                shutil.copyfileobj(content, file)
