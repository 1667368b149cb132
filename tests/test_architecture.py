"""The dependency rule of the package: parts meet only through contracts."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vision_lowrank"

BOTTOM = {"errors", "registry", "config", "version", "paths", "files"}
LIBRARY = BOTTOM | {
    "targets", "backbones", "data", "adapters", "initializers", "optim", "selection", "regularizers", "generators",
    "kernels", "metrics", "export",
}  # fmt: skip

# What each package may import of ours, beside itself.
ALLOWED = {
    "errors": set(),
    "version": set(),
    "paths": set(),
    "files": set(),
    "registry": {"errors"},
    "config": BOTTOM,
    "data": BOTTOM,
    "backbones": BOTTOM | {"data", "targets.attention"},  # which attentions can be split decides the logical names
    "targets": BOTTOM | {"backbones"},
    "metrics": BOTTOM,
    "adapters": LIBRARY - {"export"},
    "initializers": LIBRARY - {"export"},
    "selection": LIBRARY - {"export"},
    "kernels": BOTTOM,
    "export": LIBRARY,
    "analysis": LIBRARY,
    "optim": LIBRARY - {"export"},
    "regularizers": LIBRARY - {"export"},
    "engine": BOTTOM | {"tasks.base", "optim.base"},
    "tasks": LIBRARY | {"analysis", "viz.overlay"},
    "scanning": BOTTOM | {"data", "metrics", "tasks", "viz"},
    "viz": BOTTOM,
    "experiment": LIBRARY | {"engine", "tasks", "viz"},
    "trials": {"errors", "experiment"},
    "comparison": LIBRARY | {"engine", "experiment", "tasks", "trials", "viz"},
    "benchmark": LIBRARY | {"comparison", "viz"},
    "incremental_benchmark": LIBRARY | {"benchmark", "experiment", "trials", "viz"},
    "__init__": LIBRARY,
    "__main__": {"cli"},
}

FILES = sorted(PACKAGE.rglob("*.py"))


def imports_of(path):
    """Modules of ours that a file imports at run time, as ``top`` and ``top.module``."""
    inside = path.relative_to(PACKAGE).parts
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in typing_only:
            base = list(inside[: len(inside) - node.level])
            name = base + (node.module.split(".") if node.module else [])
            names = [name] if node.module else [[*base, alias.name] for alias in node.names]
            yield from (".".join(each[:2]) for each in names if each)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_dependency_rule(path):
    top = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if top == "cli":
        return
    for name in imports_of(path):
        first = name.split(".")[0]
        assert first == top or first in ALLOWED[top] or name in ALLOWED[top], f"{path.name} imports {name}"


def test_nobody_imports_the_command_line():
    importers = {p.name for p in FILES if "cli" in {n.split(".")[0] for n in imports_of(p)} and p.parent.name != "cli"}
    assert importers == {"__main__.py"}


def test_files_and_functions_stay_readable():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 400, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno <= 70, f"{path}: {node.name}"
