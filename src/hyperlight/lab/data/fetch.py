"""Downloads that check what they get, and archives that are unpacked with care."""

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
    """A file to fetch, and what is known of it.

    Attributes:
        name: of the file, below the address it is fetched from.
        digest: its checksum in hexadecimal digits.
        algorithm: of the checksum.
        confirmed: whether the checksum is beyond doubt: a file that differs is refused, and
            otherwise kept with a warning.
    """

    name: str
    digest: str
    algorithm: Literal["sha256", "md5"] = "sha256"
    confirmed: bool = True


def cache_folder(name: str) -> Path:
    """Where a data set is kept when no folder is named."""
    import pooch

    return Path(pooch.os_cache("hyperlight")) / name


def locate(folder: Path | None, *names: str) -> Path:
    """The folder of a data set: one of these ``names`` in ``folder`` or ``folder`` itself.

    So a folder that holds a data set, and one that holds several under their names, can
    both be given. Without a folder it is the user's cache.
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

    A file is fetched to a temporary name beside its place, checked and only then
    moved there; a download that was interrupted starts again.

    Args:
        folder: where; made where there is none.
        url: the address of the files' folder.
        files: what to fetch. Those that the folder holds already are left alone.
        downloader: called with a file's address, the path to write and ``None``, as pooch's.

    Returns:
        The names of the files that were fetched.

    Raises:
        DataError: the address is not https, or a file cannot be fetched or is not what was
            expected. What was fetched before stays.
    """
    import pooch

    if not url.startswith("https://"):
        raise DataError(f"{url!r} is not https; data is only fetched over https.")
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; expected a folder. Choose another --data-dir.")
    # Some hosts refuse the user agents of scripts that do not say who they are.
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
        except Exception as error:  # requests' many, the disk's, a broken connection
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
                f"{file.name} from {url} may have changed: {given}, others have noted "
                f"{file.digest}. It was kept; what it holds is checked when it is read.",
                stacklevel=2,
            )
        fetched.append(file.name)
    return fetched


def _path(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or any(c in name for c in "\\:\0"):
        raise DataError(
            f"{archive} holds a file named {name!r}, which lies outside of the folder it is "
            "unpacked to. The archive is not what it should be: delete it. Nothing of it was kept."
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
    """Unpack a tar archive, compressed or not, into a new folder: whole or not at all.

    Only regular files are written, each for the first time and inside of the folder; no
    owner, permission or link of the archive is taken over.

    Args:
        archive: the file.
        folder: where; it must not be there, or be empty.
        top: the folder of the archive that is taken.
        most_files: in the archive; more are refused.
        most_bytes: of all files, unpacked; more are refused.

    Raises:
        DataError: the archive is damaged, not what it should be, or does not fit on the disk.
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
                        "files and folders alone. The archive is not what it should be: delete "
                        "it. Nothing of it was kept."
                    )
                files, size = files + 1, size + member.size
                if files > most_files or size > most_bytes:
                    raise DataError(
                        f"{archive} holds more than {most_files:,} files or {most_bytes:,} bytes, "
                        "unpacked. The archive is not what it should be: delete it. Nothing of it "
                        "was kept."
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
