"""``compare`` makes a table of detectors by their headline metric."""

import json

import pytest

from vision_lowrank.cli.main import main
from vision_lowrank.metrics.names import told


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


SHORT = ("engine.steps=2", "task.contrast.steps=2")


def test_methods_of_a_detector_are_compared_by_its_headline(detection, tmp_path, capsys):
    options = ["--methods", "lora,block_lora", "--lr", "1e-3,1e-2", "--out", tmp_path / "out"]
    assert run("compare", detection, *SHORT, *options) == 0
    result = json.loads((tmp_path / "out" / "study.json").read_text())
    assert [row["method"] for row in result["rows"]] == ["lora", "block_lora"]
    for row in result["rows"]:
        assert row["validation"][f"{row['lr']:g}"] == max(row["validation"].values())
        saved = tmp_path / "out" / row["method"] / f"lr-{row['lr']:g}" / "seed-1" / "result.json"
        assert json.loads(saved.read_text())["metrics"]["val/auc"] == row["validation"][f"{row['lr']:g}"]
    header, _, *lines = (tmp_path / "out" / "study.md").read_text().splitlines()[2:]
    names = [name for name in result["baseline"] if name.endswith("/auc") and name.count("/") == 2]
    assert names
    shown = [cell.strip() for cell in header.strip("|").split("|")]
    assert shown[3 : 3 + len(names)] == [told(name.removesuffix("/auc")) for name in names]
    assert shown[3 + len(names) :] == ["trained parameters", "step (ratio)", "step memory (MiB)"]
    auc = f"{100 * result['rows'][0]['metrics'][names[0]]['mean']:.1f}"
    assert [cell.strip() for cell in lines[1].strip("|").split("|")][3] == auc
    assert "untrained" in capsys.readouterr().out


def test_settings_of_a_detector_that_vary(detection, tmp_path):
    options = ["--vary", "task.decoder=query,linear", "--out", tmp_path / "out"]
    assert run("compare", detection, *SHORT, "task.contrast=null", "task.layer=last", *options) == 0
    result = json.loads((tmp_path / "out" / "study.json").read_text())
    assert [row["method"] for row in result["rows"]] == ["task.decoder=query", "task.decoder=linear"]
    assert list(result["settings"]) == ["task.decoder"]
