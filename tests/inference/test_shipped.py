"""The detector that ships works at once, and its card says what was measured."""

import json
import re

import pytest
from PIL import Image
from safetensors.torch import load_file

from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.cli.main import main
from vision_lowrank.data.photos import photographs
from vision_lowrank.paths import shipped
from vision_lowrank.tasks.manipulation.model import ManipulationModel

FOLDER = shipped("data") / "manipulation_detector"


def test_scan_without_a_model_takes_the_shipped_one(tmp_path, capsys):
    photographs().image(0).convert("RGB").resize((160, 120)).save(tmp_path / "photo.png")
    with pytest.raises(SystemExit) as stop:
        main(["scan", str(tmp_path / "photo.png"), "--out", str(tmp_path / "out")])
    assert stop.value.code == 0
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    detector = ManipulationModel.load(FOLDER)
    assert written["header"]["model"]["identity"] == detector.identity
    (finding,) = detector.predict([Image.open(tmp_path / "photo.png").convert("RGB")])
    assert written["rows"][0]["probability"] == pytest.approx(finding.probability, abs=1e-4)


def command(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def test_what_training_did_to_its_weights_is_shown(tmp_path, capsys):
    assert command("inspect", FOLDER, "--out", tmp_path / "page.html") == 0
    assert "lora on tiny-clip" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "page.html").is_file()
    assert not (FOLDER / "inspect.html").exists()


@pytest.mark.parametrize("folder", [FOLDER, FOLDER / "adapter"], ids=["model", "adapter"])
def test_it_is_written_for_other_programs(tmp_path, folder):
    assert command("export", folder, tmp_path / "lora") == 0
    assert command("export", folder, tmp_path / "merged", "--format", "merged") == 0
    own = load_file(FOLDER / "adapter" / "adapter_model.safetensors")
    written = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert sorted(len(tensor) for tensor in own.values()) == sorted(len(tensor) for tensor in written.values())
    merged = load_backbone("tiny-clip", str(tmp_path / "merged" / "model.safetensors"), image_size=96)
    assert merged.fingerprint != load_backbone("tiny-clip", image_size=96).fingerprint


def test_why_it_is_no_graph_is_said(tmp_path, capsys):
    assert command("export", FOLDER, tmp_path / "x", "--format", "onnx") == 2
    error = capsys.readouterr().err
    assert "cannot be written as onnx, as pictures of any size are cut into tiles" in error
    assert error.count("\n") == 1


def test_its_threshold_was_fitted_on_enough_real_pictures():
    calibration = ManipulationModel.load(FOLDER).calibration
    assert calibration.reals >= 100
    assert calibration.uncertain is not None


def test_the_card_says_what_the_record_holds():
    card = (FOLDER / "README.md").read_text()
    record = json.loads((FOLDER / "artefact.json").read_text())["record"]
    for name in ("auc", "balanced_accuracy", "false_alarm_rate", "pixel_f1", "box_ap50"):
        for place in ("test", "unseen"):
            assert f"{100 * record['metrics'][f'test/{place}/{name}']:.1f}" in card, (place, name)
    assert f"{record['config']['engine']['steps']:,} steps" in card


def test_nothing_of_the_machine_is_in_it():
    text = (FOLDER / "artefact.json").read_text()
    assert not re.search(r"""["'=\s]/\w""", text)  # an absolute path, whichever
