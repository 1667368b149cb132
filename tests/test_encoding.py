"""Text files are UTF-8, whatever the locale of the machine: nothing opens one without saying so."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [path for folder in ("vision_lowrank", "benchmarks", "examples", "tools", "data")
         for path in sorted((ROOT / folder).rglob("*.py"))]  # fmt: skip
OTHERS = {"Image", "av", "os", "tarfile", "zipfile", "webbrowser"}  # whose `open` is of no text


def texts_without_encoding(source):
    """Line numbers of calls that open, read or write text in whatever the locale says."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or {None, "encoding"} & {keyword.arg for keyword in node.keywords}:
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        owner = getattr(getattr(node.func, "value", None), "id", "")
        arguments = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        modes = [each.value for each in arguments if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        opens = name in ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile") and owner not in OTHERS
        binary = any("b" in mode for mode in modes) or (not modes and name.endswith("TemporaryFile"))
        text = any(keyword.arg in ("text", "universal_newlines") for keyword in node.keywords)
        method = name in ("read_text", "write_text") and isinstance(node.func, ast.Attribute)
        if method or (opens and not binary) or (name in ("run", "Popen", "check_output") and text):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_file_is_utf_8(path):
    assert texts_without_encoding(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("p.read_text()", True), ("p.write_text(x)", True), ("open(p)", True), ("p.open('a')", True),
        ("run(c, text=True)", True), ("p.read_text(encoding='utf-8')", False), ("open(p, 'rb')", False),
        ("p.open(mode='wb')", False), ("Image.open(p)", False), ("write_text(p, x)", False), ("open(p, **o)", False),
    ],
)  # fmt: skip
def test_the_test_sees_what_it_must(line, found):
    assert bool(texts_without_encoding(line)) == found


def test_an_artefact_is_read_and_shown_in_a_locale_without_utf_8(tmp_path):
    code = (
        "import sys, locale, json; from pathlib import Path\n"
        "assert not sys.flags.utf8_mode and 'utf' not in locale.getpreferredencoding(False).lower()\n"
        "from vision_lowrank.files import write_text; from vision_lowrank.json_files import read_object\n"
        "from vision_lowrank.cli.main import main\n"
        f"path, sign = Path({str(tmp_path)!r}) / 'x.json', chr(177)\n"
        "write_text(path, json.dumps({'a': sign}, ensure_ascii=False))\n"
        "assert read_object(path, '') == {'a': sign}; main(['list', 'adapter'])"
    )
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONIOENCODING", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode()
