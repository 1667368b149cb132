"""What a trained incremental classifier is good for afterwards: eval, predict, add-classes, taken back."""

import json
import shutil

import pytest

from vision_lowrank.cli.main import main
from vision_lowrank.config import load_config
from vision_lowrank.experiment import run
from vision_lowrank.tasks.classification.base import load_frozen
from vision_lowrank.tasks.classification.classifier import ImageClassifier, read_artefact
from vision_lowrank.tasks.classification.reference import load_reference


def command(*arguments):
    try:
        main([str(each) for each in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.mark.parametrize("order", ["natural", "seed:3"])
def test_eval_finds_the_accuracy_of_the_last_session_again(sessions, tmp_path, order):
    config = load_config(sessions, [f"task.protocol.order={order}", "task.incremental_epochs=0", "task.epochs=1"])
    result = run(config)
    artefact = tmp_path / "runs" / config.name / "seed-1" / "artefact"
    assert command("eval", artefact, "--json", tmp_path / "found.json") == 0
    found = json.loads((tmp_path / "found.json").read_text())
    expected = {name: value["mean"] for name, value in result["metrics"].items() if name.startswith("test/")}
    assert found == pytest.approx(expected)


def test_eval_of_a_recipe_is_prototype_only(sessions, tmp_path):
    assert command("eval", sessions, "--json", tmp_path / "found.json") == 0
    found = json.loads((tmp_path / "found.json").read_text())
    baseline = run(load_config(sessions, ["task.epochs=0", "task.incremental_epochs=0"]))["baseline"]
    assert found == pytest.approx({name: value["mean"] for name, value in baseline.items()})


def test_classes_are_added_to_what_was_trained_and_taken_back(sessions, colours, tmp_path, capsys):
    config = load_config(
        sessions, ["task.protocol={name: fscit, sessions: [[amber, blue], [cyan]], base_shots: 4, shots: 3}"]
    )
    run(config)
    artefact = tmp_path / "runs" / config.name / "seed-1" / "artefact"
    features, labels = load_reference(artefact, 3)
    assert labels.bincount().tolist() == [4, 4, 3]
    assert features.shape == (11, ImageClassifier.load(artefact).model.embed_dim)
    before = read_artefact(artefact)
    new = tmp_path / "new"
    shutil.copytree(colours / "red", new / "red")
    assert command("add-classes", artefact, new) == 0
    out = capsys.readouterr().out
    assert "red" in out
    assert read_artefact(artefact)["classes"] == ["amber", "blue", "cyan", "red"]
    assert command("predict", artefact, colours / "red", "--json", tmp_path / "rows.json") == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert sum(row["class"] == "red" for row in rows) > len(rows) / 2
    assert command("add-classes", artefact, new) == 2
    assert "has 'red' already" in capsys.readouterr().err
    assert command("add-classes", artefact, "--undo") == 0
    assert read_artefact(artefact) == before


def test_an_evaluation_may_keep_more_of_the_picture(sessions):
    plain = load_frozen(load_config(sessions), "prototype").preprocess
    config = load_config(sessions, ["backbone.crop_pct=0.5"])
    assert load_frozen(config, "prototype").preprocess.crop_pct == 0.5 != plain.crop_pct
