"""The house: floors that imports go down, and files that a reader can take in."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vision_lowrank"

# Ground first. No file imports from a floor above its own, by name, by string or inside a function; within a floor
# imports run one way, so no two files import each other.
FLOORS = [
    {"errors", "version"},
    {
        "registry",
        "files",
        "lock",
        "json_files",
        "paths",
        "modes",
        "trained",
        "identity",
        "data.boxes",
    },  # boxes: for metrics and drawing too
    {"kernels", "attention", "metrics"},
    {"config"},
    {"viz"},
    {"data"},
    {"backbones"},
    {"targets"},
    {"adapters"},
    {"attachment", "initializers"},
    {"regularizers"},
    {"selection", "optim", "export", "analysis", "generators"},
    {"engine.task", "engine.keep"},  # what a task is: the contract lives with its caller
    {"tasks"},
    {"engine"},
    {"inference", "studies"},
    {"app", "integrations"},
    {"cli"},
    {"__init__", "__main__"},  # public names, loaded on first use, and the door
]


def module_of(path):
    """``engine.loop`` for engine/loop.py; ``engine`` for engine/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1]) if parts[-1] == "__init__" and len(parts) > 1 else ".".join(parts)


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def floor_of(module):
    """Index of the floor that a module is on: that of its longest name in the list."""
    names = [".".join(module.split(".")[:length]) for length in range(module.count(".") + 1, 0, -1)]
    return next(index for name in names for index, floor in enumerate(FLOORS) if name in floor)


def imports_of(module):
    """Modules of ours that a file names, in imports wherever they stand and in strings; not those for type checkers."""
    path, found = FILES[module], set()
    package = path.relative_to(PACKAGE).parts[:-1]
    tree = ast.parse(path.read_text())
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    } | {
        id(block.body[0].value)
        for block in ast.walk(tree)
        if isinstance(block, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and block.body and isinstance(block.body[0], ast.Expr)
    }  # fmt: skip
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join([*package[: len(package) - node.level + 1], *(node.module or "").split(".")]).strip(".")
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in FILES else base for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            found.add(node.module.partition(".")[2] or "__init__")
        elif isinstance(node, ast.Import):
            found |= {a.name.partition(".")[2] for a in node.names if a.name.startswith(f"{PACKAGE.name}.")}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            match = re.fullmatch(rf"(?:{PACKAGE.name})?\.([a-z_]+(?:\.[a-z_]+)*)", node.value)
            if match and match[1] in FILES and match[1] != "__init__":  # an ending, no module
                found.add(match[1])
    return {name for name in found - {module, ""} if name in FILES}


IMPORTS = {module: imports_of(module) for module in FILES}


@pytest.mark.parametrize("module", FILES)
def test_no_import_runs_up(module):
    above = {name for name in IMPORTS[module] if floor_of(name) > floor_of(module)}
    assert not above, f"{module} is on floor {floor_of(module)}"


def test_no_files_import_each_other():
    """Neither two nor more in a ring: an order of loading exists."""
    left = {module: set(names) for module, names in IMPORTS.items()}
    while ready := [module for module, names in left.items() if not names & left.keys()]:
        for module in ready:
            del left[module]
    assert not left


def test_only_the_door_imports_the_command_line():
    assert {m for m, names in IMPORTS.items() if any(n.split(".")[0] == "cli" for n in names) and m[:3] != "cli"} == {
        "__main__"
    }


def test_files_and_functions_stay_readable():
    for path in FILES.values():
        assert len(path.read_text().splitlines()) <= 400, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno <= 70, f"{path}: {node.name}"
