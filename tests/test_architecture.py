"""The shape of the library: imports run one way, rooms have one door, private names stay inside."""

from __future__ import annotations

import re

import pytest

from tests.architecture import (
    PACKAGE,
    count_lines,
    foreign_uses,
    import_circles,
    import_graph,
    library_files,
    module_of,
    private_uses,
)

# From the bottom up: a module imports only from those before it. A room counts as one.
ORDER = [
    "_version",
    "_torch",
    "errors",
    "signatures",
    "precision",
    "inputs",
    "categories",
    "encoded",
    "encodings",
    "targets",
    "init",
    "optim",
    "heads",
    "references",
    "caches",
    "bind",
    "memory",
    "widths",
    "trunk",
    "hypernet",
    "directions",
    "summary",
    "many",
    "model",
    "regularizer",
    "io",
    "diagnostics",
    "groups",
    "tune",
    "explore",
    "onnx",
    "testing",
    "__init__",
    "__main__",
]
ROOMS = ("optim", "heads", "many", "io")


def room_of(module: str) -> str:
    return module.partition(".")[0]


def arrows() -> set[tuple[str, str]]:
    """Who imports whom, rooms as a whole."""
    graph = import_graph()
    return {
        (room_of(module), room_of(other))
        for module, others in graph.items()
        for other in others
        if room_of(module) != room_of(other)
    }


def test_every_module_has_its_place_in_the_order() -> None:
    assert sorted({room_of(module_of(path)) for path in library_files()}) == sorted(ORDER)


def test_no_import_runs_back_up() -> None:
    height = {name: level for level, name in enumerate(ORDER)}
    assert {pair for pair in arrows() if height[pair[0]] <= height[pair[1]]} == set()


def test_there_is_no_circle_of_imports() -> None:
    assert import_circles(import_graph()) == []


def test_a_circle_would_be_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert import_circles(graph) == [["a", "b", "c"]]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_entered_by_its_door(room: str) -> None:
    inside = {
        (module, other)
        for module, others in import_graph().items()
        for other in others
        if room_of(module) != room and other.startswith(f"{room}.")
    }
    # ``from .io import hub`` names a module of the room that the door itself offers.
    assert {pair for pair in inside if pair[1] != "io.hub"} == set()


def test_no_module_reads_private_names_of_another() -> None:
    assert private_uses() == []


def test_private_names_of_torch_stand_in_one_file() -> None:
    private = re.compile(
        r"\b(?:torch|aten|nn|forward_ad|Tensor|DistributedDataParallel)(?:\.\w+)*\._(?!_)\w+"
    )
    found = {
        (module_of(path), name)
        for path in library_files()
        if path.name != "_torch.py"
        for name in private.findall(path.read_text())
    }
    # Operators that OuterProduct has rules for; _torch says why.
    allowed = re.compile(r"aten\._(foreach|amp_foreach)_\w+")
    assert {pair for pair in found if not allowed.fullmatch(pair[1])} == set()


# The tables of nn.Module, with which it pickles itself; what pruning calls its parameter; and a
# public method of named tuples.
TABLES = {"_parameters", "_buffers", "_modules", "_forward_pre_hooks"}
FOREIGN = {"bind": {*TABLES, "_tensor_name"}, "io.legacy": TABLES}


def test_private_attributes_of_other_libraries_are_read_in_one_file() -> None:
    operators = re.compile(r"_(foreach|amp_foreach)_\w+")
    found = {
        (module, name)
        for module, name in foreign_uses()
        if module != "_torch" and name not in {"_replace", *FOREIGN.get(module, ())}
    }
    assert {pair for pair in found if not operators.fullmatch(pair[1])} == set()


def test_no_text_refers_to_a_document_that_is_not_here() -> None:
    root = PACKAGE.parents[1]
    files = [*PACKAGE.rglob("*.py"), *(root / "docs").glob("*.md"), root / "README.md"]
    found = [p.name for p in files if re.search(r"\bdesign D\d", p.read_text(encoding="utf-8"))]
    assert found == []


def test_lines_are_counted_by_what_they_are() -> None:
    source = (
        '"""Doc.\n\nMore."""\n\nx = 1  # why\n# a comment\nif x:\n    raise ValueError(\n    )\n'
    )
    counted = count_lines(source)
    assert counted == {"docstring": 3, "blank": 1, "code": 2, "comment": 1, "raise": 2}
