"""What a package of this says of itself: its description on PyPI, and its version."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import hyperlight as hl

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def declared() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_description_on_pypi_points_to_nothing_that_is_not_there(
    declared: dict[str, Any],
) -> None:
    fancy = declared["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    assert fancy["fragments"] == [{"path": "README.md"}]
    text = README
    for each in fancy["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    assert not re.findall(r"\]\((?!https://)[^)]*\)", text)
    repository = declared["project"]["urls"].get("Repository")
    own = re.findall(r"!\[[^\]]*\]\((?!https://img\.shields\.io)", text)
    if repository is None:
        assert own == []
        assert "weight goes from" not in text  # the caption goes with its picture
        assert "to choose](" not in text
    else:
        assert len(own) == README.count("](docs/figures/") - README.count("](docs/figures/README")
        assert text.count(f"]({repository}") == README.count("](") - README.count("](https:")
    # Everything else stays as it is.
    for words in ("# HyperLight\n", "how to choose", "pip install .", "\nmodel = hl.hypernetize("):
        assert words in text
    assert re.findall(r"```python\n.*?```", text, re.DOTALL) == re.findall(
        r"```python\n.*?```", README, re.DOTALL
    )


def test_the_badges_say_what_is_required(declared: dict[str, Any]) -> None:
    project = declared["project"]
    (torch,) = (each for each in project["dependencies"] if each.startswith("torch"))
    expected = {
        "python": project["requires-python"].removeprefix(">=") + "%2B",
        "pytorch": torch.removeprefix("torch>=") + "%2B",
        "licence": project["license"].replace("-", "--"),
    }
    badges = re.findall(r"https://img\.shields\.io/badge/(\w+)-(.*)-blue\)", README)
    assert dict(badges) == expected


def test_the_version_is_the_same_everywhere(declared: dict[str, Any]) -> None:
    assert declared["tool"]["hatch"]["version"]["path"] == "src/hyperlight/_version.py"
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [hl.__version__]
