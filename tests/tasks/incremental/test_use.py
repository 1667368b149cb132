"""What a trained incremental classifier is good for afterwards: eval, predict, add-classes, taken back."""

import json
import shutil

import pytest
import torch
from fixtures.processes import run_in_two
from safetensors.torch import load_file

from vision_lowrank.cli.main import main
from vision_lowrank.config import load_config
from vision_lowrank.studies.run import run
from vision_lowrank.tasks.classification.base import load_frozen
from vision_lowrank.tasks.classification.classifier import ImageClassifier
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
    features, labels = load_reference(artefact, ImageClassifier.read(artefact), 3)
    assert labels.bincount().tolist() == [4, 4, 3]
    assert features.shape == (11, ImageClassifier.load(artefact).backbone.embed_dim)
    before = ImageClassifier.read(artefact)
    new = tmp_path / "new"
    shutil.copytree(colours / "red", new / "red")
    assert command("add-classes", artefact, new) == 0
    out = capsys.readouterr().out
    assert "red" in out
    assert ImageClassifier.read(artefact)["classes"] == ["amber", "blue", "cyan", "red"]
    assert command("predict", artefact, colours / "red", "--json", tmp_path / "rows.json") == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert sum(row["class"] == "red" for row in rows) > len(rows) / 2
    assert command("add-classes", artefact, new) == 2
    assert "has 'red' already" in capsys.readouterr().err
    assert command("add-classes", artefact, "--undo") == 0
    assert ImageClassifier.read(artefact) == before


def test_an_evaluation_may_keep_more_of_the_picture(sessions):
    plain = load_frozen(load_config(sessions), "prototype").preprocess
    config = load_config(sessions, ["backbone.crop_pct=0.5"])
    assert load_frozen(config, "prototype").preprocess.crop_pct == 0.5 != plain.crop_pct


def test_two_processes_give_the_result_of_one(sessions, tmp_path):
    run(load_config(sessions, ["name=one", "adapter.dropout=0"]))
    run_in_two("-m", "vision_lowrank", "train", sessions, "name=two", "adapter.dropout=0")
    one, two = (tmp_path / "runs" / name / "seed-1" for name in ("one", "two"))
    for file in ("head", "base", "reference"):
        ours, theirs = (load_file(folder / "artefact" / f"{file}.safetensors") for folder in (one, two))
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(theirs[name].float(), tensor.float(), rtol=1e-3, atol=1e-4)
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, two)]
    assert results[0]["facts"]["incremental"] == results[1]["facts"]["incremental"]


def test_a_timm_vit_with_its_pooler_goes_through_all_sessions(sessions, tmp_path):
    overrides = [
        "backbone={name: 'timm:vit_tiny_patch16_224', weights: random, options: {pooler: true}}",
        "adapter.layers=[10,11]",
    ]
    config = load_config(sessions, [*overrides, "task.l_ft=11", "task.epochs=1", "task.e_ft=0", "task.cosine=false"])
    result = run(config)["seeds"]["1"]
    block, norm, pooler = 444_864, 2 * 192, 192 * 193
    assert result["facts"]["trains"] == {
        "pet": 2 * 2 * 2 * (192 + 192),
        "classifier": 6 * 192,
        "encoder": block + norm + pooler,
    }
    names = load_file(tmp_path / "runs" / config.name / "seed-1" / "artefact" / "base.safetensors").keys()
    assert {"model.head.dense.weight", "model.norm.weight", "model.blocks.11.attn.qkv.weight"} <= names
