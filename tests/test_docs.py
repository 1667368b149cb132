"""What the documents say works: Python blocks and commands are run, numbers are those of the committed JSON."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vision_lowrank.cli.main import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), flags=re.DOTALL)


def with_blocks(language):
    return [pytest.param(path, id=path.stem) for path in DOCUMENTS if blocks(path, language)]


@pytest.fixture
def place(tmp_path, monkeypatch, pictures):
    """A folder that looks like the checkout, with pictures in my_pictures."""
    for name in ("configs", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(pictures, tmp_path / "my_pictures")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", with_blocks("python"))
def test_python_blocks_run(path, place):
    for block in blocks(path, "python"):
        exec(compile(block, str(path), "exec"), {})


@pytest.mark.parametrize("path", with_blocks("bash"))
def test_commands_run(path, place):
    """Every ``vision-lowrank`` line, training cut to two steps and one seed."""
    lines = [line.split("#")[0] for block in blocks(path, "bash") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("vision-lowrank")]
    assert commands
    for command in commands:
        short = ["engine.steps=2", "seeds=[1]"] if command[0] == "train" else []
        with pytest.raises(SystemExit) as stop:
            main([*command, *short])
        assert stop.value.code == 0, command


def test_make_targets_named_in_the_readme_exist():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for target in re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE):
        assert target in targets


def test_readme_tables_are_what_the_committed_results_say():
    command = [sys.executable, ROOT / "benchmarks" / "render.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_every_method_and_public_name_is_documented():
    import vision_lowrank as vl

    text = "".join(path.read_text() for path in DOCUMENTS) + (ROOT / "CONTRIBUTING.md").read_text()
    for part in vl.methods("adapter"):
        assert f"`{part.name}`" in text, part.name
    for name in ("attach", "coverage", "save", "load", "merge", "export_lora", "split_attention", "fuse_attention"):
        assert name in text, name
