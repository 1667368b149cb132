"""What is general knows no task: names, attributes, imports and keys of these files have no word of one."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vision_lowrank"
WORD = re.compile(r"accurac|few_?-?shot|zero_?-?shot|manipulation|incremental", re.IGNORECASE)
# Commands that are of one task by what they do; all others serve every task.
OF_A_TASK = {"add_classes", "clip_data", "data", "incremental", "make_edits", "manipulation_data", "new", "scan"}
# File -> what may stand in it all the same, and why.
ALLOWED = {
    "cli/main.py": {"incremental", "manipulation_data"},  # doors to commands that are of one task
    "cli/study_commands.py": {"incremental", "incremental_command"},  # such a door
}
GENERAL = [
    *(PACKAGE / "studies").rglob("*.py"),
    *(PACKAGE / "engine").rglob("*.py"),
    *(path for path in (PACKAGE / "cli").glob("*.py") if path.stem not in OF_A_TASK),
    PACKAGE / "viz" / "report.py",
    PACKAGE / "viz" / "reading.py",
]


def words_of(tree):
    """Names, attributes, arguments and imports, and strings without spaces: a longer one is text for people."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "module", "asname"):
            if isinstance(word := getattr(node, field, None), str):
                yield word
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not re.search(r"\s", node.value):
            yield node.value


@pytest.mark.parametrize("path", GENERAL, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_general_knows_a_task(path):
    name = path.relative_to(PACKAGE).as_posix()
    found = {word for word in words_of(ast.parse(path.read_text())) if WORD.search(word)}
    assert found <= ALLOWED.get(name, set())


def test_words_are_found_where_they_are():
    code = "from ..tasks.manipulation import x\nrow['val/accuracy']\nfew_shot = y.incremental\n'zero-shot is a word'"
    assert {word for word in words_of(ast.parse(code)) if WORD.search(word)} == {
        "tasks.manipulation", "val/accuracy", "few_shot", "incremental",
    }  # fmt: skip
