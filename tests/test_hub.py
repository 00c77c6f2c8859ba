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


def front_matter(text: str) -> dict[str, Any]:
    cards = pytest.importorskip("huggingface_hub", reason="the extra hub is optional")
    found: dict[str, Any] = cards.ModelCard(text).data.to_dict()
    return found


def test_the_card_says_what_it_is_and_is_not_overwritten(tmp_path: Path) -> None:
    inputs = {"g": hl.LogUniform(0.01, 1.0), "site": hl.Categorical(3), "ray": hl.Simplex(2)}
    hub.save_pretrained(hl.hypernetize(mlp(), inputs, "*.weight"), tmp_path)
    card = (tmp_path / "README.md").read_text()
    own = sum(p.numel() for p in mlp().parameters())
    predicted = sum(p.numel() for name, p in mlp().named_parameters() if name.endswith("weight"))
    for words in (
        "# Sequential: a family of networks",
        f"Its {own:,} weights are its own; a hypernetwork changes {predicted:,} of them.",
        "| `g` | `LogUniform(low=0.01, high=1.0, shape=())` | a number from 0.01 to 1 |",
        "| `site` | `Categorical(n=3, shape=(), features=3)` | an integer from 0 to 2, or weights",
        "| `ray` | `Simplex(size=2, alpha=1.0)` | 2 weights that sum to 1 |",
        f"Saved by HyperLight {hl.__version__}",
    ):
        assert words in card
    assert "not in the file" not in card
    # the licence is for the user to choose
    assert front_matter(card) == {"library_name": "hyperlight", "tags": ["hypernetwork", "pytorch"]}
    assert front_matter(card.replace("# license", "license"))["license"].startswith("apache-2.0")
    (tmp_path / "README.md").write_text("mine")
    hub.save_pretrained(hl.hypernetize(mlp(), SPACE), tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def code_of(card: str) -> str:
    return card.split("```python\n")[1].split("```")[0]


class Own(hl.Dense):
    """A head of the user's own, which a file cannot name."""


@pytest.mark.parametrize("own", [False, True])
def test_the_code_on_a_card_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    inputs: dict[str, hl.Input] = {"g": hl.Uniform(0.0, 2.0), "n": hl.Normal(2), "z": hl.Normal(6)}
    if own:
        inputs["image"] = hl.Encoded(torch.nn.Linear(4, 16), features=16)
    model = hl.hypernetize(
        mlp().requires_grad_(False),
        inputs,
        head=Own() if own else hl.LowRank(1),
        calibrate_on={"image": torch.randn(8, 4)} if own else None,
    )
    stirred(model)
    hub.save_pretrained(model, tmp_path / "user/model", frozen=not own)
    card = (tmp_path / "user/model/README.md").read_text()
    assert ("not in the file, and only the same ones are taken" in card) is own
    code = code_of(card).replace("primary = ...", "primary = network")
    if own:
        assert "inputs={'image': ...}, head=...)" in code
        code = code.replace("'image': ...", "'image': space").replace("head=...", "head=Own()")
    monkeypatch.chdir(tmp_path)
    network = mlp()
    network.load_state_dict(model.primary.state_dict())
    x, z, image = vectors(), torch.randn(6), torch.randn(4)
    names = {"network": network, "x": x, "z": z, "image": image, "Own": Own}
    names["space"] = hl.Encoded(torch.nn.Linear(4, 16), features=16)
    exec(code, names)
    gamma = {"g": 1.0, "n": [0.0, 0.0], "z": z} | ({"image": image} if own else {})
    expected = model(x, **gamma)
    assert torch.equal(names["output"], expected)
    torch.testing.assert_close(names["network"](x), expected)


def test_the_card_of_a_hypernetwork_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.save_pretrained(hl.HyperNet(SPACE, {"w": (2, 3)}), tmp_path / "user/model")
    card = (tmp_path / "user/model/README.md").read_text()
    assert "# A hypernetwork\n\nIt predicts 6 weights from the inputs below." in card
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code_of(card), names)
    assert names["weights"]["w"].shape == (2, 3)


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
        with pytest.raises(hl.MissingExtraError, match="Install it: pip install huggingface_hub"):
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
    card = (tmp_path / "user/model/README.md").read_text()
    assert "from_pretrained('user/model', primary)" in card
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
