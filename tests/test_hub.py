"""The Hub: folders in both directions, and the calls that are made for a transfer. No network."""

from __future__ import annotations

import inspect
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import hyperlight as hl
from hyperlight.io import hub
from tests.models import mlp, vectors
from tests.test_io import contents, stirred

SPACE = {"g": hl.Uniform(0.0, 1.0)}


def test_a_folder_comes_back(tmp_path: Path) -> None:
    model = stirred(hl.hypernetize(mlp(), SPACE))
    hub.save_pretrained(model, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "model.safetensors"]
    x = vectors()
    for source in (folder, str(folder)):
        again = hub.from_pretrained(source, mlp())
        assert torch.equal(again(x, g=0.3), model(x, g=0.3))
    hub.save_pretrained(model.hypernet, tmp_path / "alone")
    assert contents(hub.from_pretrained(tmp_path / "alone")) == contents(model.hypernet)


def test_the_card_says_what_it_is_and_is_not_overwritten(tmp_path: Path) -> None:
    model = hl.hypernetize(mlp(), SPACE)
    hub.save_pretrained(model, tmp_path)
    card = (tmp_path / "README.md").read_text()
    for words in ("library_name: hyperlight", "`Sequential`", "g = Uniform(low=0.0", "primary)"):
        assert words in card
    (tmp_path / "README.md").write_text("mine")
    hub.save_pretrained(model, tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*model\.safetensors"):
        hub.from_pretrained(tmp_path, mlp())


def test_settings_are_passed_on(tmp_path: Path) -> None:
    hub.save_pretrained(hl.hypernetize(mlp(), SPACE, head=hl.LowRank(2)), tmp_path)
    with pytest.raises(hl.FormatError, match=r"expected LowRank\(rank=2\)"):
        hub.from_pretrained(tmp_path, mlp(), head=hl.LowRank(3))


def test_without_the_extra_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    model = hl.hypernetize(mlp(), SPACE)
    hub.save_pretrained(model, tmp_path / "folder")
    assert contents(hub.from_pretrained("folder", mlp())) == contents(model)
    for call in (
        lambda: hub.from_pretrained("user/model", mlp()),
        lambda: hub.push_to_hub(model, "user/model"),
    ):
        with pytest.raises(hl.MissingExtraError, match=r"pip install 'hyperlight\[hub\]'"):
            call()


class Remote:
    """What stands for the Hub: a folder per repository, and a list of the calls."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = pytest.importorskip(
            "huggingface_hub", reason="transfers need the extra hub, which is optional"
        )
        self.folder, self.calls = folder, []
        # The real signatures are checked; only what would go over the network is replaced.
        self.replace(monkeypatch, real, "hf_hub_download", self.download)
        self.replace(monkeypatch, real.HfApi, "create_repo", self.create)
        self.replace(monkeypatch, real.HfApi, "file_exists", self.exists)
        self.replace(monkeypatch, real.HfApi, "upload_folder", self.upload)

    def replace(self, monkeypatch: Any, owner: Any, name: str, function: Any) -> None:

        signature = inspect.signature(getattr(owner, name))

        def call(*args: Any, **kwargs: Any) -> Any:
            given = dict(signature.bind(*args, **kwargs).arguments)
            api = given.pop("self", None)
            if api is not None:
                given["token"] = given.get("token", api.token)
            self.calls.append((name, given))
            return function(**given)

        monkeypatch.setattr(owner, name, call)

    def create(self, repo_id: str, **_: Any) -> None:
        (self.folder / repo_id).mkdir(parents=True, exist_ok=True)

    def exists(self, repo_id: str, filename: str, **_: Any) -> bool:
        return (self.folder / repo_id / filename).exists()

    def upload(self, repo_id: str, folder_path: str, **rest: Any) -> SimpleNamespace:
        ignored = [rest["ignore_patterns"]] if rest.get("ignore_patterns") else []
        shutil.copytree(
            folder_path,
            self.folder / repo_id,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns(*ignored),
        )
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/1")

    def download(self, repo_id: str, filename: str, **_: Any) -> str:
        return str(self.folder / repo_id / filename)


def test_a_model_goes_to_the_hub_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Remote(tmp_path, monkeypatch)
    model = stirred(hl.hypernetize(mlp(), SPACE))
    url = hub.push_to_hub(model, "user/model", private=True, token="t", revision="dev")
    assert url == "https://huggingface.co/user/model/commit/1"
    names = [name for name, _ in remote.calls]
    assert names == ["create_repo", "file_exists", "upload_folder"]
    assert all(given["token"] == "t" for _, given in remote.calls)
    assert remote.calls[0][1]["private"] is True
    assert remote.calls[0][1]["exist_ok"] is True
    assert [given["revision"] for _, given in remote.calls[1:]] == ["dev", "dev"]
    (tmp_path / "user/model/README.md").write_text("mine")
    hub.push_to_hub(model, "user/model")
    assert (tmp_path / "user/model/README.md").read_text() == "mine"
    again = hub.from_pretrained("user/model", mlp(), revision="dev", token="t")
    assert remote.calls[-1] == (
        "hf_hub_download",
        {"repo_id": "user/model", "filename": "model.safetensors", "revision": "dev", "token": "t"},
    )
    assert contents(again) == contents(model)


def test_what_cannot_be_saved_makes_no_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Remote(tmp_path, monkeypatch)
    with pytest.raises(hl.FormatError, match="expected a HyperModel"):
        hub.push_to_hub(mlp(), "user/model")
    assert remote.calls == []


def test_a_transfer_that_fails_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(**_: Any) -> None:
        raise ConnectionError("the network is down")

    remote, client = Remote(tmp_path, monkeypatch), sys.modules["huggingface_hub"]
    remote.replace(monkeypatch, client, "hf_hub_download", offline)
    remote.replace(monkeypatch, client.HfApi, "create_repo", offline)
    model = hl.hypernetize(mlp(), SPACE)
    for call in (
        lambda: hub.from_pretrained("user/model", mlp()),
        lambda: hub.push_to_hub(model, "user/model"),
    ):
        with pytest.raises(hl.TransferError, match=r"'user/model'.*Error: the network is") as e:
            call()
        assert "hf auth login" in str(e.value)
        assert isinstance(e.value, OSError)


def test_a_name_that_no_repository_can_have_is_refused_in_words() -> None:
    pytest.importorskip("huggingface_hub", reason="transfers need the extra hub, an option")
    with pytest.raises(hl.TransferError, match="no/such/folder.* pass an existing folder"):
        hub.from_pretrained("no/such/folder", mlp())
