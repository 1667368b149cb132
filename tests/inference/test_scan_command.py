import csv
import json
import os
import re
import shlex
import signal
import sys

import pytest
import torch
import typer
from PIL import Image

from vision_lowrank.cli import scan as command
from vision_lowrank.cli.main import main
from vision_lowrank.errors import UserError

OPTIONS = {
    "model": None,
    "recursive": True,
    "batch": 4,
    "device": "cpu",
    "threshold": "auto",
    "overlay": False,
    "explain": False,
    "json": False,
    "csv": False,
    "html": False,
    "npy": False,
    "resume": False,
    "fail_on": None,
}


@pytest.fixture
def run(edit_model, monkeypatch, tmp_path):
    """Exit code of a scan with the test's edit_model; 0 where it just returns."""
    monkeypatch.setattr(command, "load_edit_model", lambda model, device, trust: edit_model)

    def go(*paths, out=tmp_path / "out", **changes):
        try:
            command.scan_command(list(paths), out=out, **(OPTIONS | changes))
        except typer.Exit as stop:
            return stop.exit_code
        return 0

    return go


def rows_of(out):
    return json.loads((out / "results.json").read_text())["rows"]


def test_all_results_are_written_with_a_row_for_every_input(zoo, run, tmp_path, capsys):
    assert run(zoo) == 0
    out = tmp_path / "out"
    assert len(rows_of(out)) == 16
    with open(out / "results.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 16
    assert (out / "report.html").read_text().count("<tbody data-path") == 16
    said = capsys.readouterr()
    assert "16 pictures:" in said.out
    assert "6 without an answer" in said.out
    assert "likelihood under this model" in said.out
    assert said.err.count("no answer:") == 6


def test_only_the_results_asked_for_are_written(zoo, run, tmp_path):
    run(zoo, csv=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.csv", "results.jsonl", "heatmaps"}


@pytest.mark.parametrize("out", ["out", "."])
def test_a_scan_of_the_folder_with_its_own_output_sees_no_output(zoo, run, out):
    run(zoo, out=zoo / out, overlay=True)
    run(zoo, out=zoo / out, overlay=True, resume=True)
    assert len(rows_of(zoo / out)) == 16


@pytest.mark.parametrize(
    ("names", "fail_on", "code"),
    [
        (["white.png"], None, 0),
        (["white.png"], "edited", 2),
        (["black.png"], "uncertain", 0),
        (["grey.png"], "edited", 0),
        (["grey.png"], "uncertain", 2),
        (["white.png", "broken.png"], "edited", 2),
        (["black.png", "broken.png"], None, 0),
        (["black.png", "broken.png"], "edited", 1),
        (["broken.png"], None, 1),
    ],
)
def test_exit_codes(run, tmp_path, names, fail_on, code):
    for name, level in {"white": 255, "black": 0, "grey": 115}.items():
        Image.new("L", (130, 130), level).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"")
    assert run(*(tmp_path / name for name in names), fail_on=fail_on) == code


@pytest.mark.parametrize("arguments", [[], ["x.png", "--batch", "0"], ["x.png", "--batch", "abc"], ["--no-such"]])
def test_options_that_cannot_be_are_no_finding(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["scan", *arguments])
    assert stop.value.code == 1
    assert "Error: " in capsys.readouterr().err


def test_help_is_no_mistake(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["scan", "--help"])
    assert stop.value.code == 0
    assert "1 something given is wrong" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fail_on": "edits"}, "Did you mean 'edited'?"),
        ({"threshold": "strict"}, "--threshold 'strict'"),
        ({"device": "gpu"}, "--device 'gpu'"),
        ({"device": "cuda:99"}, "--device 'cuda:99'"),
        ({"out": "file"}, "--out"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(zoo, run, tmp_path, changes, message):
    (tmp_path / "file").write_text("in the way")
    if "out" in changes:
        changes = {"out": tmp_path / changes["out"]}
    with pytest.raises(UserError) as caught:
        run(zoo, **changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_path_that_is_not_there_is_an_error(zoo, run):
    with pytest.raises(UserError, match=r"Did you mean 'photo\.jpg'"):
        run(zoo, zoo / "foto.jpg")


def test_the_threshold_asked_for_decides(zoo, run, tmp_path):
    run(zoo, threshold="0.1")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["header"]["threshold_origin"] == "0.1: given"
    assert {row["verdict"] for row in results["rows"] if not row["error"]} == {"edited"}


def test_an_interruption_ends_in_order_and_says_how_to_go_on(zoo, run, edit_model, tmp_path, monkeypatch, capsys):
    inspect = edit_model.predict_batch

    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        return inspect(*args, **kwargs)

    monkeypatch.setattr(edit_model, "predict_batch", interrupted)
    assert run(zoo, batch=3) == 130
    said = capsys.readouterr().err
    assert re.search(r"interrupted after 3 of 16 pictures\. Go on with: .* --resume", said)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert not results["header"]["complete"]
    assert len(results["rows"]) == 3
    monkeypatch.setattr(edit_model, "predict_batch", inspect)
    assert run(zoo, resume=True) == 0
    assert len(rows_of(tmp_path / "out")) == 16


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["/bin/vision-lowrank", "scan", "a b"], "vision-lowrank scan 'a b' --resume"),
        (["vision-lowrank", "scan", "--resume", "a"], "vision-lowrank scan --resume a"),
        (["detect_manipulation.py", "a"], "python detect_manipulation.py a --resume"),
        (["tools/detect_manipulation.py", "a"], "python tools/detect_manipulation.py a --resume"),
        (["vision-lowrank", "scan", "--", "-a", "--resume"], "vision-lowrank scan --resume -- -a --resume"),
    ],
)
def test_the_command_to_go_on_with_can_be_pasted(monkeypatch, typed, expected):
    monkeypatch.setattr(sys, "argv", typed)
    assert command._resuming(command._command()) == expected


def test_many_paths_become_a_list_that_the_command_to_go_on_with_names(zoo, run, tmp_path, monkeypatch):
    paths = sorted(path for path in zoo.rglob("*") if path.is_file())
    assert len(paths) > 8
    out = tmp_path / "list of many"
    monkeypatch.setattr(sys, "argv", ["vision-lowrank", "scan", "--batch", "4", *map(str, paths), "--out", str(out)])
    run(*paths, out=out)
    header = json.loads((out / "results.json").read_text())["header"]
    listed = out / "inputs.txt"
    assert header["command"] == f"vision-lowrank scan --batch 4 --out '{out}' --list '{listed}'"
    assert [row["path"] for row in rows_of(out)] == [str(path) for path in paths]
    monkeypatch.setattr(sys, "argv", shlex.split(header["command"]))
    assert run(out=out, listed=listed, resume=True) == 0
    assert [row["path"] for row in rows_of(out)] == [str(path) for path in paths]
    assert json.loads((out / "results.json").read_text())["header"]["command"] == header["command"]


def test_a_list_that_is_no_list_is_one_line(run, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    for listed, message in ((tmp_path / "none.txt", "No such file"), (tmp_path / "empty.txt", "it is empty")):
        with pytest.raises(UserError, match=message):
            run(listed=listed)


def test_a_page_that_cannot_be_written_is_one_line_and_leaves_no_temporary_file(zoo, run, tmp_path):
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    with pytest.raises(UserError, match=r"report\.html' cannot be written: Is a directory\. .* --resume$"):
        run(zoo)
    assert len(rows_of(tmp_path / "out")) == 16
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_file_names_steer_neither_terminal_nor_markup(run, tmp_path, capsys):
    name = "[red]:key:\x1b[2J\udcff.png"
    Image.new("RGB", (130, 130), "white").save(tmp_path / name)
    (tmp_path / "\x1b[2J.png").write_bytes(b"")
    run(tmp_path / name, tmp_path / "\x1b[2J.png")
    said = capsys.readouterr()
    assert "\x1b[2J" not in said.out + said.err
    assert "[red]:key:\\x1b[2J\\udcff.png" in said.out.replace("\n", "")
    assert rows_of(tmp_path / "out")[0]["path"] == str(tmp_path / name)


def test_auto_takes_the_accelerator_where_there_is_one():
    there = torch.accelerator.is_available()
    assert command.compute_device("auto").type == (torch.accelerator.current_accelerator().type if there else "cpu")
