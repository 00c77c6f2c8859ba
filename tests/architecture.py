"""Measure the shape of the library: lines by part, imports, and the path of one call.

``python -m tests.architecture`` prints the tables that docs/architecture.md quotes;
``tests/test_architecture.py`` uses the import graph.
"""

from __future__ import annotations

import ast
import io
import itertools
import sys
import tokenize
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import hyperlight as hl

PACKAGE = Path(hl.__file__).parent
KINDS = ("code", "raise", "docstring", "comment", "blank")


def library_files(root: Path = PACKAGE) -> list[Path]:
    """The files of the library, the lab left out."""
    files = (path for path in sorted(root.rglob("*.py")) if "lab" not in path.parts[-3:-1])
    return [path for path in files if path.relative_to(root).parts[0] != "lab"]


def module_of(path: Path, root: Path = PACKAGE) -> str:
    """``"optim.outer"`` for ``optim/outer.py``; ``"optim"`` for ``optim/__init__.py``."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "__init__"


# --- lines ----------------------------------------------------------------------------


def count_lines(source: str) -> Counter[str]:
    """Lines by kind; a line of a ``raise`` statement counts as raise, however many it spans."""
    kinds = ["blank"] * (len(source.splitlines()) + 1)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            continue
        for line in range(token.start[0], min(token.end[0], len(kinds) - 1) + 1):
            if token.type != tokenize.COMMENT:
                kinds[line] = "code"
            elif kinds[line] == "blank":
                kinds[line] = "comment"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise):
            _mark(kinds, node, "raise")
        body = getattr(node, "body", None)
        if isinstance(body, list):
            for statement in body:
                value = statement.value if isinstance(statement, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    _mark(kinds, statement, "docstring")
    return Counter(kinds[1:])


def _mark(kinds: list[str], node: ast.stmt, kind: str) -> None:
    for line in range(node.lineno, (node.end_lineno or node.lineno) + 1):
        kinds[line] = kind


# --- imports --------------------------------------------------------------------------


def import_graph(root: Path = PACKAGE) -> dict[str, set[str]]:
    """What every module of the library imports from the others.

    Imports inside functions and those for type checkers count as well.
    """
    modules = {module_of(path, root): path for path in library_files(root)}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        found: set[str] = set()
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = "" if package == "__init__" else package
                for _ in range(node.level - 1):
                    base = base.rpartition(".")[0]
                target = ".".join(part for part in (base, node.module or "") if part)
                for alias in node.names:
                    inner = f"{target}.{alias.name}" if target else alias.name
                    found.add(inner if inner in modules else target or "__init__")
        graph[name] = {module for module in found - {name} if module.split(".")[0] != "lab"}
    return graph


def import_circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other (strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in graph.get(module, ()):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            circle = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(circle) > 1:
                circles.append(sorted(circle))

    for module in graph:
        if module not in index:
            visit(module)
    return circles


def private_uses(root: Path = PACKAGE) -> list[tuple[str, str]]:
    """Private names of one module that another uses: ``(module, name)``.

    An attribute or an imported name that starts with one underscore and is defined in another
    file of the library, and not in this one.
    """
    return _private(root, defined_here=True)


def foreign_uses(root: Path = PACKAGE) -> list[tuple[str, str]]:
    """Private attributes that are defined nowhere in the library: ``(module, name)``."""
    return _private(root, defined_here=False)


def _private(root: Path, *, defined_here: bool) -> list[tuple[str, str]]:
    defined: dict[str, set[str]] = {}
    used: dict[str, list[str]] = {}
    for path in library_files(root):
        names: set[str] = set()
        uses: list[str] = []
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute):
                own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                if isinstance(node.ctx, ast.Store) or own:
                    names.add(node.attr)
                else:
                    uses.append(node.attr)
            elif isinstance(node, ast.ImportFrom) and node.level:
                uses.extend(alias.name for alias in node.names)
        module = module_of(path, root)
        defined[module], used[module] = names, uses
    everywhere = set().union(*defined.values())
    return [
        (module, name)
        for module, names in used.items()
        for name in names
        if name.startswith("_")
        and not name.startswith("__")
        and (name in everywhere) == defined_here
        and name not in defined[module]
    ]


# --- the path of a call -----------------------------------------------------------------


def trace(call: Callable[[], Any]) -> tuple[int, int, list[str], int]:
    """Python calls, functions, files and changes of file inside the library during a call."""
    calls: list[tuple[str, str, int]] = []
    prefix = str(PACKAGE)

    def tracer(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(prefix):
            calls.append((code.co_filename, code.co_name, code.co_firstlineno))

    sys.settrace(tracer)
    try:
        call()
    finally:
        sys.settrace(None)
    files = [module_of(Path(file)) for file, _, _ in calls]
    changes = sum(a != b for a, b in itertools.pairwise(files))
    return len(calls), len(set(calls)), list(dict.fromkeys(files)), changes


def trips() -> dict[str, tuple[int, int, list[str], int]]:
    """The usual calls, each traced on its second run."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    space = {"scale": hl.Uniform(0.0, 0.5)}
    model = hl.hypernetize(net, space)
    optimizer = hl.optim.Adam(hl.parameter_groups(model, lr=1e-3))
    x, one, many = torch.rand(5, 4), torch.tensor(0.3), torch.rand(5) / 2
    for gamma in (one, many):
        model(x, scale=gamma)

    def backward() -> None:
        optimizer.zero_grad()
        loss.backward()

    for _ in range(2):
        loss = model(x, scale=one).square().mean()
        backward()
        optimizer.step()
    loss = model(x, scale=one).square().mean()
    return {
        "hypernetize": trace(lambda: hl.hypernetize(net, space)),
        "forward, one set of weights": trace(lambda: model(x, scale=one)),
        "forward, per sample": trace(lambda: model(x, scale=many)),
        "backward": trace(backward),
        "hl.optim.Adam.step": trace(optimizer.step),
    }


def main() -> None:
    """Print the tables."""
    total: Counter[str] = Counter()
    folders: dict[str, Counter[str]] = {}
    print(f"{'file':<28}" + "".join(f"{kind:>11}" for kind in KINDS))
    for path in library_files():
        counted = count_lines(path.read_text())
        relative = path.relative_to(PACKAGE)
        folder = relative.parts[0] + "/" if len(relative.parts) > 1 else "(top)"
        folders.setdefault(folder, Counter()).update(counted)
        total += counted
        print(f"{relative!s:<28}" + "".join(f"{counted[kind]:>11,}" for kind in KINDS))
    for folder, counted in [*folders.items(), ("all", total)]:
        print(f"{folder:<28}" + "".join(f"{counted[kind]:>11,}" for kind in KINDS))
    print(f"code and raise blocks: {total['code'] + total['raise']:,} lines")
    graph = import_graph()
    print(f"\nimport circles: {import_circles(graph) or 'none'}")
    print(f"private names of another module: {len(private_uses())} {private_uses() or ''}")
    print(f"public names: {len(hl.__all__)}")
    print(f"\n{'one call':<28}{'calls':>8}{'functions':>11}{'files':>7}{'changes':>9}")
    for name, (calls, functions, files, changes) in trips().items():
        print(f"{name:<28}{calls:>8}{functions:>11}{len(files):>7}{changes:>9}  {', '.join(files)}")


if __name__ == "__main__":
    main()
