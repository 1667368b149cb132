"""What the documents say works: Python blocks and commands are run, numbers are those of the committed JSON."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision_lowrank.cli.main import main
from vision_lowrank.data.videos import VideoWriter

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STUDIES = sorted(path.parent for path in (ROOT / "benchmarks").rglob("results.json"))
CARDS = [*(ROOT / "benchmarks").rglob("README.md"), *(ROOT / "data").glob("*/README.md")]
PAGES = [*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(CARDS)]
INDEX = ROOT / "docs" / "benchmarks.md"

every_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
every_study = pytest.mark.parametrize("folder", STUDIES, ids=lambda path: path.relative_to(ROOT).as_posix())


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), flags=re.DOTALL)


def with_blocks(language):
    return [pytest.param(path, id=path.stem) for path in DOCUMENTS if blocks(path, language)]


@pytest.fixture
def place(tmp_path, monkeypatch, pictures):
    """A folder with pictures in my_pictures, a video and its frames, and nothing of the checkout: recipes are found by
    their names.
    """
    shutil.copytree(pictures, tmp_path / "my_pictures")
    (tmp_path / "frames").mkdir()
    with VideoWriter(tmp_path / "video.mp4", rate=10) as video:
        for number in range(4):
            frame = np.full((120, 160, 3), 90, np.uint8)
            frame[40:70, 60 + 5 * number : 100 + 5 * number] = (200, 60, 40)
            video.write(frame)
            Image.fromarray(frame).save(tmp_path / "frames" / f"{number:04d}.png")
    (tmp_path / "boxes.txt").write_text("60,40,40,30\n10,10,30,30\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", with_blocks("python"))
def test_python_blocks_run(path, place):
    for block in blocks(path, "python"):
        exec(compile(block, str(path), "exec"), {})


# Folder of recipes -> what makes their runs shorter.
LESS = {
    "fewshot/": ["data.test_styles=[fluent]", "data.retention_styles=[]"],
    "incremental/": [
        "task.protocol={name: fscit, sessions: [[heart, person], [face concerned]], shots: 2, base_shots: 2}"
    ],
    "manipulation/": ["data.crops=4"],
    "tracking/": ["data.test_clips=1", "data.frames=4"],
    "mine.yaml": [],
}


@pytest.mark.parametrize("path", with_blocks("bash"))
def test_commands_run(path, place):
    """Every ``vision-lowrank`` line, training cut to two steps and one seed."""
    written = [block.replace("\\\n", " ") for block in blocks(path, "bash")]
    lines = [line.split("#")[0] for block in written for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("vision-lowrank")]
    assert commands
    for command in commands:
        short = ["engine.steps=2", "seeds=[1]"] if command[0] == "train" else []
        if command[0] in ("train", "compare", "incremental"):
            short += [setting for place, less in LESS.items() if place in command[1] for setting in less]
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


def links(path):
    """(file, anchor) of every link to a file; the anchor is empty where the link is to the whole of it."""
    for target in re.findall(r"\]\(([^):]+)\)", path.read_text()):
        place, _, anchor = target.partition("#")
        yield (path.parent / place).resolve() if place else path, anchor


def anchors(path):
    """The headings of a document as links name them."""
    titles = re.findall(r"^#+ (.*)", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@every_page
def test_links_lead_somewhere(path):
    for target, anchor in links(path):
        assert target.exists(), target
        assert not anchor or anchor in anchors(target), (target, anchor)


@every_page
def test_no_line_is_too_long_but_those_of_tables(path):
    lines = enumerate(path.read_text().splitlines(), start=1)
    assert not [number for number, line in lines if len(line) > 120 and not line.startswith("|")]


@every_study
def test_a_study_has_a_page_with_its_tables_and_a_line_in_the_index(folder):
    page = folder / "README.md"
    name = folder.relative_to(ROOT / "benchmarks").as_posix()
    assert f"<!-- {name}: made by benchmarks/render.py -->\n" in page.read_text()
    assert page in [target for target, _ in links(INDEX)]


def test_the_index_of_the_studies_is_short():
    assert len(INDEX.read_text().splitlines()) < 120


def test_every_word_has_one_line_in_alphabetical_order():
    words = re.findall(r"^\* \*\*(.+?)\*\*: \S.*$", (ROOT / "docs" / "words.md").read_text(), flags=re.MULTILINE)
    assert len(words) > 50
    assert words == sorted(set(words))


def test_every_method_and_public_name_is_documented():
    import vision_lowrank as vl

    text = "".join(path.read_text() for path in DOCUMENTS) + (ROOT / "CONTRIBUTING.md").read_text()
    for part in vl.methods("adapter"):
        assert f"`{part.name}`" in text, part.name
    for name in ("attach", "coverage", "save", "load", "merge", "export_lora", "split_attention", "fuse_attention"):
        assert name in text, name
