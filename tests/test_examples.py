import runpy
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from sklearn.datasets import load_digits

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
