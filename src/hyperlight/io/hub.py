"""Models on the Hugging Face Hub: a folder with a file by :func:`hyperlight.save` and a card.

Transfers need the package huggingface_hub: ``pip install huggingface_hub``. Local folders are
written and read without it. The code of the primary is not saved: pass a primary when you read a
model.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack, overload

from torch import nn

from ..errors import HyperLightError, MissingExtraError, TransferError
from ..hypernet import HyperNet
from ..model import HyperModel, N
from .card import card
from .files import FilePath, LoadSettings, load, save

FILE = "model.safetensors"


class HubSettings(LoadSettings, total=False):
    """The keyword arguments of :func:`from_pretrained`."""

    revision: str | None
    token: str | bool | None


def save_pretrained(model: HyperModel | HyperNet, folder: FilePath, *, frozen: bool = True) -> None:
    """Write ``model.safetensors`` to a folder, and a card ``README.md`` if there is none.

    The card says what the primary is, what the inputs take, and how to load the model. Choose a
    license in its first lines, and say what the model is for.

    Args:
        model: as for :func:`~hyperlight.save`.
        folder: the folder to write to; it is created if it does not exist.
        frozen: as for :func:`~hyperlight.save`.

    Raises:
        FormatError: the model cannot be saved.

    >>> import tempfile
    >>> from hyperlight.io import hub
    >>> model, folder = hl.hypernetize(nn.Linear(2, 1), {"g": hl.Normal()}), tempfile.mkdtemp()
    >>> hub.save_pretrained(model, folder)
    >>> again = hub.from_pretrained(folder, nn.Linear(2, 1))
    >>> torch.equal(again(torch.ones(2), g=0.3), model(torch.ones(2), g=0.3))
    True
    """
    _write(model, Path(folder), frozen, "user/model")


@overload
def from_pretrained(
    source: FilePath, primary: N, **settings: Unpack[HubSettings]
) -> HyperModel[N]: ...


@overload
def from_pretrained(
    source: FilePath, primary: None = ..., **settings: Unpack[HubSettings]
) -> HyperNet: ...


def from_pretrained(
    source: FilePath,
    primary: nn.Module | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    **settings: Unpack[LoadSettings],
) -> HyperModel | HyperNet:
    """Load a model from a folder or from the Hub.

    Args:
        source: an existing folder, or the name of a repository, such as ``"user/model"``.
        primary: as for :func:`~hyperlight.load`.
        revision: a branch, tag or commit of the repository.
        token: the access token; the default is that of ``hf auth login``.
        settings: the other arguments of :func:`~hyperlight.load`.

    Raises:
        FormatError: as for :func:`~hyperlight.load`.
        MissingExtraError: huggingface_hub is not installed.
        FileNotFoundError: the folder holds no model.
        TransferError: the model cannot be downloaded.
    """
    if isinstance(source, os.PathLike) or Path(source).is_dir():
        path = Path(source) / FILE
    else:
        client = _hub()
        with _transfer(f"{FILE} of {source!r} could not be downloaded from the Hub"):
            path = Path(client.hf_hub_download(source, FILE, revision=revision, token=token))
    return load(path, primary, **settings)


def push_to_hub(
    model: HyperModel | HyperNet,
    repo_id: str,
    *,
    frozen: bool = True,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    commit_message: str = "Upload a HyperLight model",
) -> str:
    """Upload a model. A missing repository is created; an existing card is kept.

    Args:
        model: as for :func:`~hyperlight.save`.
        repo_id: the name of the repository, such as ``"user/model"``.
        frozen: as for :func:`~hyperlight.save`.
        private: whether a new repository is private.
        revision: the branch to upload to; it must exist.
        token: the access token; the default is that of ``hf auth login``.
        commit_message: the message of the commit.

    Returns:
        The URL of the commit.

    Raises:
        FormatError: the model cannot be saved.
        MissingExtraError: huggingface_hub is not installed.
        TransferError: the model cannot be uploaded.
    """
    api = _hub().HfApi(token=token)
    upload = _transfer(f"The model could not be uploaded to {repo_id!r} on the Hub")
    with tempfile.TemporaryDirectory() as name, upload:
        _write(model, Path(name), frozen, repo_id)  # fails before the repository is created
        api.create_repo(repo_id, private=private, exist_ok=True)
        kept = "README.md" if api.file_exists(repo_id, "README.md", revision=revision) else None
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=name,
            revision=revision,
            commit_message=commit_message,
            ignore_patterns=kept,
        )
    return str(commit.commit_url)


def _write(model: HyperModel | HyperNet, folder: Path, frozen: bool, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save(model, folder / FILE, frozen=frozen)
    readme = folder / "README.md"
    if not readme.exists():
        readme.write_text(card(model, folder / FILE, name), encoding="utf-8")


@contextlib.contextmanager
def _transfer(what: str) -> Iterator[None]:
    """Give errors of the connection and of the Hub words."""
    try:
        yield
    except HyperLightError:
        raise
    except Exception as error:  # from httpx, requests or huggingface_hub, as it is now
        raise TransferError(
            f"{what} ({type(error).__name__}: {error}). Check the name, the revision, the "
            "connection, and the access of the token (hf auth login), or pass an existing folder."
        ) from error


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtraError(
            "Transfers need the package huggingface_hub. Install it: pip install huggingface_hub."
        ) from error
    return huggingface_hub
