"""Download files with a checksum, and unpack archives safely."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ..errors import DataError

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
    """

    name: str
    digest: str
    algorithm: Literal["sha256", "md5"] = "sha256"
    confirmed: bool = True


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
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


def checksum(path: Path, algorithm: str = "sha256") -> str:
    """The checksum of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def fetch(folder: Path, url: str, files: Sequence[Remote], downloader: Any = None) -> list[str]:
    """Fetch files into a folder over https.

    A file gets a temporary name until its checksum is verified. An interrupted download starts
    again.

    Args:
        folder: for the files; created if it does not exist.
        url: the address of the folder with the files.
        files: what to fetch; files that the folder has already are skipped.
        downloader: called with the address of a file, the path to write and ``None``, like those
            of pooch.

    Returns:
        The names of the files that were fetched.

    Raises:
        DataError: the address is not https, or a file cannot be fetched or has another checksum.
            Files that were fetched before it stay.
    """
    import pooch

    if not url.startswith("https://"):
        raise DataError(f"{url!r} is not https; data is only fetched over https.")
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; expected a folder. Choose another --data-dir.")
    # Some hosts refuse the default user agent.
    get = downloader or pooch.HTTPDownloader(
        progressbar=False,
        timeout=60,
        headers={"User-Agent": "Mozilla/5.0 (compatible; HyperLight)"},
    )
    fetched = []
    for file in files:
        if (folder / file.name).is_file():
            continue
        part: Path | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=folder, prefix=f".{file.name}.")
            os.close(descriptor)
            part = Path(name)
            get(f"{url.rstrip('/')}/{file.name}", str(part), None)
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


def _path(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or any(c in name for c in "\\:\0"):
        raise DataError(
            f"{archive} holds a file named {name!r}, which lies outside of the folder that it is "
            "unpacked to. This is not the expected archive: delete it. Nothing of it was kept."
        )
    return path


def unpack(
    archive: Path,
    folder: Path,
    *,
    top: str = ".",
    most_files: int = 20_000,
    most_bytes: int = 2 * 2**30,
) -> None:
    """Unpack a tar archive, compressed or not, into a new folder: completely or not at all.

    Only regular files are written, and only inside the folder; owners, permissions and links of
    the archive are ignored.

    Args:
        archive: the file.
        folder: where; it must be empty or not exist.
        top: the folder of the archive to unpack.
        most_files: largest number of files to accept.
        most_bytes: largest size of all unpacked files to accept.

    Raises:
        DataError: the archive is damaged or not the expected one, or does not fit on the disk.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    files = size = 0
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = _path(member.name, archive)
                if member.isdir():
                    continue
                if not member.isreg():
                    raise DataError(
                        f"{archive} holds {member.name!r}, which is a link or a device; expected "
                        "only files and folders. This is not the expected archive: delete it. "
                        "Nothing of it was kept."
                    )
                files, size = files + 1, size + member.size
                if files > most_files or size > most_bytes:
                    raise DataError(
                        f"{archive} holds more than {most_files:,} files or {most_bytes:,} bytes, "
                        "unpacked. This is not the expected archive: delete it. Nothing of it was "
                        "kept."
                    )
                content = tar.extractfile(member)
                assert content is not None
                target = work / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with content, target.open("xb") as file:
                    shutil.copyfileobj(content, file)
        if not (work / top).is_dir() or not any((work / top).iterdir()):
            raise DataError(
                f"{archive} holds no files in {top!r}; it is empty or another archive. Delete it "
                "and fetch it again."
            )
        (work / top).chmod(0o755)
        (work / top).replace(folder)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(
            f"{archive} cannot be unpacked to {folder}: {error}. Nothing of it was kept. If there "
            "is space on the disk and the folder can be written to, the archive is damaged: "
            "delete it and fetch it again."
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
