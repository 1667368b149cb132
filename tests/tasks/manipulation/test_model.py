import copy
import json
import shutil

import numpy as np
import pytest
import torch
from tasks.manipulation.test_task import rows_of
from typer.testing import CliRunner

import vision_lowrank as vl
from vision_lowrank.backbones.adapted import adapted
from vision_lowrank.cli.main import app
from vision_lowrank.data.manipulation.base import Vocabulary
from vision_lowrank.data.manipulation.framing import Framing
from vision_lowrank.data.manipulation.schema import read_schema
from vision_lowrank.errors import ArtefactError, UserError
from vision_lowrank.metrics.calibration import Calibration
from vision_lowrank.metrics.localisation.pixels import pixel_row, pixel_values
from vision_lowrank.tasks.classification.classifier import ImageClassifier
from vision_lowrank.tasks.manipulation.frames import Frames, stacked, tiles_of
from vision_lowrank.tasks.manipulation.model import ManipulationModel


@pytest.fixture(scope="module")
def loaded(finished):
    return ManipulationModel.load(finished[2] / "artefact", attach=True)


@pytest.fixture
def detector(loaded):
    return copy.deepcopy(loaded)


@pytest.fixture(scope="module")
def test_set(edited):
    return read_schema(edited / "test.jsonl")


@pytest.fixture
def images(test_set):
    return [test_set.image(index) for index in range(len(test_set))]


def framed(detector, framing):
    """The detector with another framing, which its weights allow."""
    detector.framing = framing
    detector.frames = Frames(framing, detector.backbone.token_grid, detector.backbone.preprocess)
    return detector


@torch.no_grad()
def decoded(detector, images):
    return detector(stacked([detector.frames.sample(image) for image in images]))


# Scanning is evaluating -------------------------------------------------------------------------------------------


def test_a_scan_says_what_the_evaluation_said(finished, loaded, test_set, images):
    rows = rows_of(finished[2])
    for number, (finding, row) in enumerate(zip(loaded.predict(images), rows, strict=True)):
        assert finding.probability == pytest.approx(float(row["probability"]), abs=2e-6)
        assert finding.verdict == row["verdict"]
        if finding.verdict != "real":
            boxes = [value for box in json.loads(row["boxes"]) for value in box]
            assert [value for box in finding.boxes for value in box] == pytest.approx(boxes, abs=0.11)
            assert {name for name, _ in finding.cues} == set(json.loads(row["cues"]))
        if row["pixel_f1"]:
            found = pixel_row(finding.heatmap, test_set.mask(number))
            assert pixel_values(found[None])["f1"][0] == pytest.approx(float(row["pixel_f1"]), abs=2e-3)


@pytest.mark.parametrize("framing", [("resize", 48), ("pad", 48), ("tile", 48, 3)])
def test_a_picture_is_judged_alike_alone_and_in_a_batch(detector, images, framing):
    detector = framed(detector, Framing(*framing))
    mixed = [images[0].resize((48, 48)), images[0].resize((150, 60)), images[1].resize((40, 110))]
    if framing[0] == "tile":
        assert [len(detector.framing.rectangles(*image.size)) for image in mixed] == [1, 4, 3]
    together = decoded(detector, mixed)
    for row, image in enumerate(mixed):
        alone = decoded(detector, [image])
        for name in ("logit", "cues", "boxes", "objectness"):
            torch.testing.assert_close(getattr(together, name)[row], getattr(alone, name)[0], rtol=1e-4, atol=1e-5)
        own = alone.tokens.shape[1]
        torch.testing.assert_close(together.tokens[row, :own], alone.tokens[0], rtol=1e-4, atol=1e-5)
        assert torch.equal(together.valid[row, :own], alone.valid[0])
        assert not together.valid[row, own:].any()
    for finding, image in zip(detector.predict(mixed), mixed, strict=True):
        assert finding.heatmap.shape == image.size[::-1]
        assert finding.heatmap.dtype == np.float32
        assert all(0 <= x <= side for box in finding.boxes for x, side in zip(box, image.size * 2, strict=True))


def test_padding_is_not_looked_at(detector, images):
    detector = framed(detector, Framing("pad", 48))
    wide = images[0].resize((96, 48))  # the lower three of six rows of tokens are padding
    found = decoded(detector, [wide])
    assert found.valid.view(6, 6).all(dim=1).tolist() == [True] * 3 + [False] * 3
    sample = stacked([detector.frames.sample(wide)])
    with torch.no_grad():
        (states,), valid = detector.backbone.image_states(sample["tiles"][0], [1], [detector.layer])
        states[:, 18:] = 1e3
        again = detector.decoder(states, valid & sample["inside"], sample["centres"])
    torch.testing.assert_close(again.logit, found.logit)
    torch.testing.assert_close(again.boxes, found.boxes)


def test_only_the_layers_up_to_the_chosen_one_run(detector, images):
    detector.layer, ran, states = 3, [], {}
    backbone = detector.backbone.get_base_model()
    blocks = [backbone.get_submodule(path) for path in detector.backbone.towers["vision"].blocks]
    batch = stacked([detector.frames.sample(image) for image in images[:2]])
    with torch.no_grad():
        blocks[2].register_forward_hook(lambda module, args, output: states.update(full=output))
        detector.backbone.encode_image(tiles_of(batch, [1, 1]))
        for number, block in enumerate(blocks):
            block.register_forward_hook(lambda module, args, output, number=number: ran.append(number))
        detector.decoder.register_forward_pre_hook(lambda module, args: states.update(seen=args[0]))
        detector(batch)
    assert ran == [0, 1, 2]
    torch.testing.assert_close(states["seen"], states["full"][:, 1:])


def test_merged_and_unmerged_say_the_same(detector, images):
    before = decoded(detector, images[:3])
    detector.backbone = vl.merge(detector.backbone)
    after = decoded(detector, images[:3])
    for name in ("logit", "cues", "boxes", "objectness", "tokens"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=1e-4, atol=1e-4)


def test_an_adapter_at_its_start_changes_nothing(images, tiny_weights):
    torch.manual_seed(1)
    plain = vl.load_backbone("tiny-clip", str(tiny_weights))
    detector = ManipulationModel(plain, {"kind": "query", "boxes": 3, "width": 32}, Framing("resize", 48), 4, ("blur",))
    before = decoded(detector.eval(), images[:2])
    detector.backbone = vl.attach(plain, vl.LoraConfig(r=2), towers=["vision"]).eval()
    after = decoded(detector, images[:2])
    for name in ("logit", "boxes", "tokens"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=1e-5, atol=1e-6)


# What a finding says ----------------------------------------------------------------------------------------------


def test_a_threshold_decides_and_what_is_real_has_no_regions(detector, images):
    real, edited = (detector.predict(images[:3], calibration=Calibration().fixed(t)) for t in (1.0, 0.0))
    for calm, alarmed in zip(real, edited, strict=True):
        assert (calm.verdict, alarmed.verdict) == ("real", "edited")
        assert calm.probability == alarmed.probability
        assert (len(calm.boxes), calm.cues) == (0, ())
        assert np.array_equal(calm.heatmap, alarmed.heatmap)
        assert calm.explanation.startswith("No manipulation was found")
        assert alarmed.explanation.startswith("This image looks edited")
        assert (calm.explained_by, alarmed.explained_by) == ("template", "template")
        assert [p for _, p in alarmed.cues] == sorted((p for _, p in alarmed.cues), reverse=True)
        assert alarmed.boxes.scores.tolist() == sorted(alarmed.boxes.scores, reverse=True)


def test_no_pictures_give_no_findings(detector):
    assert detector.predict([]) == []


def test_an_explanation_needs_a_model_that_learnt_it(detector, images):
    with pytest.raises(UserError, match="leave --explain out") as caught:
        detector.predict(images[:1], explain=True)
    assert "\n" not in str(caught.value)


def test_the_identity_changes_with_all_that_a_score_depends_on(detector):
    start = detector.identity
    detector.calibration = detector.calibration.fixed(0.123)
    assert detector.identity == start
    changes = [
        lambda d: d.decoder.detection.bias.data.add_(1e-3),
        lambda d: next(p for n, p in d.backbone.named_parameters() if "lora_B" in n).data.add_(1e-3),
        lambda d: setattr(d, "layer", 1),
        lambda d: setattr(d, "framing", Framing("pad", 48)),
        lambda d: setattr(d, "calibration", Calibration(temperature=1.5)),
    ]
    seen = {start}
    for change in changes:
        other = copy.deepcopy(detector)
        change(other)
        seen.add(other.identity)
    assert len(seen) == 6


# Artefacts --------------------------------------------------------------------------------------------------------


@pytest.fixture
def artefact(finished, tmp_path):
    return shutil.copytree(finished[2] / "artefact", tmp_path / "artefact")


def test_an_artefact_says_what_it_is(finished, loaded, edited):
    config, _, folder = finished
    about = json.loads((folder / "artefact" / "artefact.json").read_text())
    assert about["task"] == "manipulation"
    assert loaded.about["training_set"]["pictures"] == 18
    assert loaded.about["validation_set"]["pictures"] == 18
    assert loaded.about["editors"] == ["recolour", "speckle"]
    assert loaded.about["layers"]["chosen"] == loaded.layer
    assert loaded.framing == Framing("resize", 48)
    assert about["record"]["config"]["data"]["path"] == config.data.path
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_another_base_is_refused(artefact):
    torch.manual_seed(5)
    with pytest.raises(ArtefactError, match="made for base weights"):
        ManipulationModel.load(artefact, vl.load_backbone("tiny-clip", "random"))


def test_damage_is_named(artefact):
    path = artefact / "decoder.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtefactError, match=r"decoder.safetensors' is damaged: .*get a fresh copy"):
        ManipulationModel.load(artefact)
    path.unlink()
    with pytest.raises(ArtefactError, match=r"decoder.safetensors' is missing"):
        ManipulationModel.load(artefact)
    path.write_bytes(content)
    about = json.loads((artefact / "artefact.json").read_text())
    (artefact / "artefact.json").write_text(json.dumps(about | {"cues": ["blur"]}))
    with pytest.raises(ArtefactError, match=r"its tensors are not those of the decoder that artefact\.json describes"):
        ManipulationModel.load(artefact)
    (artefact / "artefact.json").write_text(json.dumps({k: v for k, v in about.items() if k != "calibration"}))
    with pytest.raises(ArtefactError, match="lacks calibration"):
        ManipulationModel.load(artefact)


def test_detectors_and_classifiers_are_not_taken_for_one_another(artefact, edited, tiny_weights, tmp_path):
    with pytest.raises(ArtefactError, match="holds a model for manipulation, not a model for classification"):
        ImageClassifier.load(artefact)
    assert isinstance(vl.load_model(artefact), ManipulationModel)
    classifier = ImageClassifier(vl.load_backbone("tiny-clip", str(tiny_weights)), "linear", ("a", "b"), ())
    classifier.save(tmp_path / "classifier", {})
    with pytest.raises(ArtefactError, match="holds a model for classification, not a model for manipulation"):
        ManipulationModel.load(tmp_path / "classifier")
    with pytest.raises(ArtefactError, match="no artefact here"):
        ManipulationModel.load(tmp_path)


def test_predict_prints_a_row_for_every_picture(artefact, loaded, edited, tmp_path):
    pictures = [str(edited / "test-0.png"), str(edited / "test-1.png")]
    result = CliRunner().invoke(app, ["predict", str(artefact), *pictures, "--json", str(tmp_path / "found.json")])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "found.json").read_text())
    assert [row.pop("image") for row in rows] == pictures
    assert rows == [finding.to_row() for finding in loaded.predict(pictures)]
    shown = CliRunner().invoke(app, ["predict", str(artefact), *pictures]).output
    for word in ("verdict", "likelihood", "regions", *(row["verdict"] for row in rows)):
        assert word in shown
    refused = CliRunner().invoke(app, ["predict", str(artefact), *pictures, "--top", "2"])
    assert "a model for manipulation predicts without 'top'" in str(refused.exception)


def test_the_form_for_prediction_says_the_same_bit_for_bit(artefact, loaded, images):
    light = vl.load_model(artefact)
    assert not adapted(light.backbone)
    assert light.identity == loaded.identity
    for one, other in zip(light.predict(images), loaded.predict(images), strict=True):
        assert (one.probability, one.boxes, one.cues) == (other.probability, other.boxes, other.cues)
        assert np.array_equal(one.heatmap, other.heatmap)
    with pytest.raises(UserError, match="attach=True"):
        light.save(artefact.parent / "again", {})


def test_eval_gives_the_numbers_of_the_run_and_asks_before_it_frames_pictures_otherwise(artefact, tmp_path):
    recorded = json.loads((artefact / "artefact.json").read_text())["record"]["metrics"]
    arguments = ["eval", str(artefact), "--json", str(tmp_path / "found.json")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == pytest.approx({name: value for name, value in recorded.items() if name in found}, abs=1e-6)
    other = CliRunner().invoke(app, ["eval", str(artefact), "task.framing=pad"])
    assert isinstance(other.exception, ArtefactError)
    assert "trained with framing 'resize'" in str(other.exception)
    assert (
        CliRunner().invoke(app, ["eval", str(artefact), "task.framing=pad", "task.override_framing=true"]).exit_code
        == 0
    )


def test_eval_takes_data_that_could_not_train_it(artefact, edited, tmp_path):
    """Of fewer photographs than layer selection needs, and with other signs than the detector knows."""
    for name in ("train", "val", "test"):
        rows = [json.loads(line) for line in (edited / f"{name}.jsonl").read_text().splitlines()][:6]
        places = [{key: str(edited / row[key]) for key in ("image", "mask") if key in row} for row in rows]
        kept = [{key: value for key, value in row.items() if key not in ("cues", "boxes")} for row in rows]
        lines = [json.dumps(row | place) for row, place in zip(kept, places, strict=True)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    groups = {group: list(names) for group, names in Vocabulary().categories.items()}
    (tmp_path / "schema.json").write_text(json.dumps({"cues": ["noise"], "categories": groups}))
    told = CliRunner().invoke(app, ["eval", str(artefact), f"data.path={tmp_path}"])
    assert told.exit_code == 0, told.exception
