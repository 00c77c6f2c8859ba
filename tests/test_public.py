"""The public surface: one list, all of it documented, nothing heavy behind it."""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path

import pytest
from packaging.version import Version

import hyperlight as hl

ROOT = Path(__file__).parents[1]


def test_all_is_what_there_is() -> None:
    assert len(set(hl.__all__)) == len(hl.__all__)
    for name in hl.__all__:
        assert hasattr(hl, name)


@pytest.mark.parametrize("name", sorted(hl.__all__))
def test_everything_public_has_a_docstring(name: str) -> None:
    thing = getattr(hl, name)
    assert inspect.getdoc(thing)
    if inspect.isclass(thing):
        for attribute, member in vars(thing).items():
            documented = callable(member) or isinstance(member, property)
            if documented and not attribute.startswith("_"):
                assert inspect.getdoc(getattr(thing, attribute)), f"{name}.{attribute}"


def test_errors_are_built_in_ones_as_well() -> None:
    for error, builtin in (
        (hl.ConfigurationError, ValueError),
        (hl.InputError, ValueError),
        (hl.TargetError, ValueError),
        (hl.MemoryLimitError, MemoryError),
        (hl.BindError, TypeError),
    ):
        assert issubclass(error, hl.HyperLightError)
        assert issubclass(error, builtin)


def test_make_oldest_installs_the_lower_bound_of_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (declared,) = (d for d in project["dependencies"] if d.startswith("torch"))
    bound = re.fullmatch(r"torch>=([\d.]+)", declared)
    oldest = re.search(r"^OLDEST := torch==([\d.]+)$", (ROOT / "Makefile").read_text(), re.M)
    assert bound
    assert oldest
    assert Version(oldest[1]) == Version(bound[1])
