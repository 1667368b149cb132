"""Folders that change as one: killed processes, full disks, and where temporary things lie."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vision_lowrank import files
from vision_lowrank.attachment.record import read_record
from vision_lowrank.cli.main import main
from vision_lowrank.errors import ArtefactError
from vision_lowrank.files import recover, replaced, temporary_folder, write_text
from vision_lowrank.tasks.about import read_about

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "data" / "manipulation_detector"
KILLED = """
import os, sys
from pathlib import Path
from vision_lowrank.files import replaced
target, renames = Path(sys.argv[1]), []
rename = os.replace
def killed(*names):
    if len(renames) == int(sys.argv[2]):
        os._exit(9)  # as SIGKILL does: nothing is cleaned up
    renames.append(names)
    rename(*names)
os.replace = killed
with replaced(target, "mark") as new:
    (new / "mark").write_text("new")
"""


def kill(target, renames):
    """Replace `target` in a process that is killed before its rename number `renames`, counted from 0."""
    command = [sys.executable, "-c", KILLED, str(target), str(renames)]
    assert subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode == 9


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mark").write_text("old")
    return tmp_path / "folder"


def test_whoever_comes_next_puts_a_folder_back_whose_process_died(folder):
    kill(folder, 1)
    assert not folder.exists()
    recover(folder)
    assert (folder / "mark").read_text() == "old"
    assert os.listdir(folder.parent) == ["folder"]


def test_what_dead_processes_left_is_cleared_by_the_next_call(folder):
    kill(folder, 0)
    assert (folder / "mark").read_text() == "old"
    assert len(os.listdir(folder.parent)) == 2
    with replaced(folder, "mark") as new:
        (new / "mark").write_text("new")
    assert (folder / "mark").read_text() == "new"
    assert os.listdir(folder.parent) == ["folder"]


def test_what_a_living_process_is_at_work_on_is_left_to_it(folder):
    with temporary_folder(folder) as work:
        other = work.with_name(work.name.replace(f"-{os.getpid()}.", f"-{os.getppid()}."))
        shutil.copytree(work, other)
        with replaced(folder, "mark"):
            pass
        assert other.exists()
        assert work.exists()


@pytest.mark.parametrize(("name", "read"), [("artefact", read_about), ("adapter", read_record)])
def test_readers_of_artefacts_put_them_back(tmp_path, name, read):
    source = SHIPPED if name == "artefact" else SHIPPED / "adapter"
    shutil.copytree(source, tmp_path / name)
    with temporary_folder(tmp_path / name) as work:
        kept = work.with_name(work.name.replace(f"-{os.getpid()}.", "-999999999."))
        kept.mkdir()
        os.replace(tmp_path / name, kept / "old")
    assert read(tmp_path / name) == read(source)
    with pytest.raises(ArtefactError):
        read(tmp_path / "nowhere")


def test_nothing_temporary_lies_inside_an_artefact(tmp_path, monkeypatch):
    artefact = tmp_path / "artefact"
    shutil.copytree(SHIPPED, artefact)
    seen, fsync = [], os.fsync

    def watched(descriptor):
        seen.append(sorted(str(path.relative_to(artefact)) for path in artefact.rglob(".*")))
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", watched)
    write_text(artefact / "inspect.html", "page")
    write_text(artefact / "adapter" / "README.md", "card")
    with replaced(artefact / "adapter", "adapter_config.json"):
        seen.append(sorted(str(path.relative_to(artefact)) for path in artefact.rglob(".*")))
    assert len(seen) > 4
    assert not any(seen)


def test_names_that_are_no_text_are_written_as_their_escapes(tmp_path):
    name = b"\xe9.png".decode("utf-8", "surrogateescape")
    write_text(tmp_path / "found.json", json.dumps([name, "é"], ensure_ascii=False))
    assert json.loads((tmp_path / "found.json").read_bytes()) == [name, "é"]


# --- a full disk -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "vision_lowrank", "list", "adapter"],
            stdout=full, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    lines = done.stderr.decode().splitlines()
    assert (done.returncode, len(lines)) == (2, 1)
    assert "No space left on device" in lines[0]


def test_a_full_disk_is_one_line_with_the_file(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device", str(tmp_path / "mine.yaml"))

    monkeypatch.setattr("vision_lowrank.cli.listing.list_command", full)
    with pytest.raises(SystemExit) as stop:
        main(["list"])
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert "mine.yaml': No space left on device: make room" in error[0]


# --- places to write to ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "x", "y", "--json", "{}"], ["predict", "x", "y", "--csv", "{}"], ["eval", "x", "--json", "{}"],
        ["export", "x", "{}"], ["inspect", "x", "--out", "{}"], ["inspect", "x", "--json", "{}"],
        ["add-classes", "x", "y", "--json", "{}"], ["data", "validate", "x", "--json", "{}"],
        ["data", "check", "x", "--json", "{}"], ["data", "convert", "folders", "x", "{}"], ["make-edits", "x", "{}"],
        ["compare", "x.yaml", "--out", "{}"],
    ],
    ids=lambda command: " ".join(command),
)  # fmt: skip
def test_where_nothing_can_be_written_is_said_before_anything_is_read(tmp_path, command, capsys):
    (tmp_path / "file").write_text("a file")
    place = tmp_path / "file" / "found"
    with pytest.raises(SystemExit) as stop:
        main([each.format(place) for each in command])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert f"'{place}' cannot be written (Not a directory): give another place." in error
    assert len(error.splitlines()) == 1


def test_places_that_will_be_made_are_fine_and_left_alone(tmp_path):
    assert files.check_output(tmp_path / "new" / "deep" / "x.json") == tmp_path / "new" / "deep" / "x.json"
    (tmp_path / "old.json").write_text("before")
    files.check_output(tmp_path / "old.json")
    assert files.check_output(None) is None
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "before"


@pytest.mark.parametrize("form", ["--out=~", "~"])
def test_the_users_folder_is_expanded_where_a_shell_leaves_it(tmp_path, monkeypatch, form, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    main_code(["new", "recipe", "my-birds", *([form] if "=" in form else ["--out", form])])
    assert (tmp_path / "my-birds.yaml").is_file()
    main_code(["train", "~/my-bird.yaml"], 2)
    assert "Did you mean 'my-birds.yaml'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "name"), [("adapter", "my-method"), ("recipe", "../x"), ("recipe", ".x"), ("recipe", "")]
)
def test_names_that_are_none(tmp_path, kind, name):
    main_code(["new", kind, name, "--out", str(tmp_path)], 2)
    assert list(tmp_path.iterdir()) == []


def main_code(arguments, code=0):
    """Run a command and check how it ends."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert (stop.value.code or 0) == code


def test_data_that_is_not_where_it_was_is_named_with_its_setting(tmp_path, capsys):
    shutil.copytree(SHIPPED, tmp_path / "artefact")
    main_code(["eval", str(tmp_path / "artefact")], 2)
    error = capsys.readouterr().err
    path = json.loads((SHIPPED / "artefact.json").read_text())["record"]["config"]["data"]["path"]
    assert f"'{path}' does not exist." in error
    assert "give data.path=… for where it is now" in error


def test_a_write_that_fails_names_its_file(tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="File too large") as failed:
        write_text(tmp_path / "x.json", "text")
    assert failed.value.filename == str(tmp_path / "x.json")
    assert not list(tmp_path.iterdir())
