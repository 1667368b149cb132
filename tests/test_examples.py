import runpy
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from vision_lowrank.data.videos import open_frames

FOLDER = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_stays_short(path):
    assert len(path.read_text().splitlines()) < 150


def test_the_adapted_clip_is_saved_exported_and_merged(tmp_path, capsys, monkeypatch):
    arguments = ["adapt_open_clip.py", "--steps", "2", "--shots", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(FOLDER / "adapt_open_clip.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "merged:" in printed
    accuracies = [line.split(": ")[1].split("%")[0] for line in printed.splitlines() if "%" in line]
    assert accuracies[1] == accuracies[2]  # merging changes nothing
    assert (tmp_path / "lora" / "adapter_config.json").is_file()


@pytest.mark.parametrize(("config", "phases"), [("SoraConfig", ["train"]), ("LofitConfig", ["select", "offsets"])])
def test_the_plain_loop_trains_phase_by_phase(config, phases, capsys, monkeypatch):
    digits = load_digits()
    few = SimpleNamespace(images=digits.images[:40], target=digits.target[:40])
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: few)
    monkeypatch.setattr(sys, "argv", ["plain_pytorch.py", "--config", config, "--steps", "10", "--shots", "1"])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*trains, but nothing calls")
        runpy.run_path(str(FOLDER / "plain_pytorch.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines[1:-1]] == phases
    assert lines[0].startswith("before: ")
    assert lines[-1].startswith("after: ")


def test_the_drawn_clip_is_a_video_with_its_boxes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["draw_clip.py", str(tmp_path / "clip"), "--number", "1", "--frames", "4"])
    runpy.run_path(str(FOLDER / "draw_clip.py"), run_name="__main__")
    frames = list(open_frames(str(tmp_path / "clip" / "clip.mp4")))
    truth = np.loadtxt(tmp_path / "clip" / "truth.csv", delimiter=",")
    assert len(frames) == len(truth) == 4
    assert frames[0].shape == (240, 320, 3)
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "clip" / "boxes.txt", delimiter=","), truth[0])
    assert "4 frames of 320 x 240" in capsys.readouterr().out
