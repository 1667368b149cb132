"""How commands end that cannot go on, and what does not end them."""

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from vision_lowrank.cli.main import main
from vision_lowrank.cli.output import lasting_output
from vision_lowrank.cli.tables import print_table, values_table
from vision_lowrank.studies import run as experiment


def run(*arguments):
    """Exit code of a command."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


@pytest.fixture(autouse=True)
def _interruptible():
    """SIGINT as Python has it: whoever runs the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_stopped_outside_of_its_steps_says_how_to_go_on(recipe, tmp_path, monkeypatch, capsys, number):
    before = signal.getsignal(number)
    monkeypatch.setattr(experiment, "build_task", lambda *_: os.kill(os.getpid(), number))
    assert run("train", recipe) == 130
    error = capsys.readouterr().err
    assert error == f"interrupted. Go on with: vision-lowrank train --resume {tmp_path / 'runs' / 'shapes'}\n"
    assert signal.getsignal(number) == before
    monkeypatch.undo()
    assert run("train", "--resume", tmp_path / "runs" / "shapes", "engine.log_every=2") == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_every_command_that_is_stopped_says_what_to_call(recipe, monkeypatch, capsys, number):
    monkeypatch.setattr("vision_lowrank.cli.main.sys.argv", ["vision-lowrank", "eval", "a recipe.yaml"])
    monkeypatch.setattr(experiment, "build_task", lambda *_: os.kill(os.getpid(), number))
    assert run("eval", recipe) == 130
    assert capsys.readouterr().err == "interrupted. Go on with: vision-lowrank eval 'a recipe.yaml'\n"


def fails(error):
    def build_task(*_):
        raise error

    return build_task


ALLOCATOR = "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to\nx"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "not enough memory: "),
        (RuntimeError(ALLOCATOR), "can't allocate memory: you tried to)"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
            "Tried to allocate 2.00 GiB.)",
        ),
        (OSError(12, "Cannot allocate memory"), "Cannot allocate memory)"),
    ],
)
def test_low_memory_is_one_line(recipe, monkeypatch, capsys, error, said):
    monkeypatch.setattr(experiment, "build_task", fails(error))
    assert run("train", recipe) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: not enough memory")
    assert said in lines[0]


def test_what_is_no_shortage_of_memory_is_raised(recipe, monkeypatch):
    monkeypatch.setattr(experiment, "build_task", fails(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        main(["train", str(recipe)])


@pytest.fixture
def unread():
    """A text stream whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as stream:
        yield stream


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_training_outlives_the_reader_of_its_output(recipe, tmp_path, monkeypatch, unread, name):
    monkeypatch.setattr(sys, name, unread)
    assert run("train", recipe, "seeds=[1]") == 0
    assert (tmp_path / "runs" / "shapes" / "report.html").is_file()


def test_what_nobody_reads_is_lost_and_what_follows_is_put_back(monkeypatch, unread, capsys):
    monkeypatch.setattr(sys, "stdout", unread)
    with lasting_output():
        print("x" * 100_000, flush=True)
        print_table(values_table("model", {"test/test/loss": 1.0}))
    assert sys.stdout is unread


def test_files_do_not_take_the_place_of_closed_streams():
    code = (
        "import os\nfrom vision_lowrank.cli.output import open_standard_streams\n"
        "open_standard_streams()\nassert os.open(os.devnull, os.O_RDONLY) > 2\n"
    )
    done = subprocess.run([sys.executable, "-c", code], preexec_fn=lambda: (os.close(0), os.close(1)))
    assert done.returncode == 0


def writers():
    return [thread for thread in threading.enumerate() if type(thread).__name__ == "_AsyncWriterThread"]


def test_no_thread_is_left_that_would_write_where_nothing_is_any_more(recipe, tmp_path):
    assert run("eval", recipe, "engine.tensorboard=true") == 0
    assert not writers()
    assert run("train", recipe, "engine.tensorboard=true", "seeds=[1]") == 0
    assert not writers()
    assert list((tmp_path / "runs" / "shapes" / "seed-1" / "tensorboard").iterdir())
