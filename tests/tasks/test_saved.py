"""What every saved model answers, whatever its task, and how it is chosen."""

import json

import pytest
import torch
from fixtures.models import moved
from PIL import Image

import vision_lowrank as vl
from vision_lowrank.backbones.adapted import adapted
from vision_lowrank.config import load_config
from vision_lowrank.errors import ArtefactError, DataError, UserError
from vision_lowrank.paths import shipped
from vision_lowrank.registry import registry
from vision_lowrank.studies.run import run
from vision_lowrank.tasks.classification.classifier import ImageClassifier
from vision_lowrank.tasks.manipulation.model import ManipulationModel

SHIPPED = shipped("data") / "manipulation_detector"


@pytest.fixture
def trained(tmp_path, tiny_weights):
    """A classifier with an adapter, and the folder it was saved in."""
    torch.manual_seed(0)
    model = moved(vl.attach(vl.load_backbone("tiny-clip", str(tiny_weights)), vl.BlockLoraConfig(r=4, blocks=2)))
    classifier = ImageClassifier(model, "text", ["cat", "dog", "cow"], ["a {}."]).eval()
    classifier.save(tmp_path / "artefact", {"config": None})
    return classifier, tmp_path / "artefact"


def picture():
    return Image.effect_noise((60, 40), 80).convert("RGB")


@torch.no_grad()
def test_the_artefacts_task_chooses_the_class(trained):
    classifier, folder = trained
    loaded = vl.load_model(folder)
    assert isinstance(loaded, ImageClassifier)
    assert isinstance(loaded, vl.AdaptedModel)
    assert isinstance(vl.load_model(SHIPPED), ManipulationModel)
    assert type(vl.load_model(folder / "adapter")) is vl.AdaptedModel
    pixels = torch.randn(2, 3, 48, 48)
    assert torch.equal(loaded(pixels), vl.load_model(folder, attach=True)(pixels))
    torch.testing.assert_close(loaded(pixels), classifier(pixels), rtol=1e-5, atol=1e-4)
    assert not adapted(loaded.backbone)
    assert adapted(vl.load_model(folder, attach=True).backbone)


def test_every_kind_of_model_answers_the_contract():
    for part in registry.list("model"):
        kind = part.target
        assert issubclass(kind, vl.AdaptedModel)
        assert kind.task == part.name
        assert set(kind.takes) <= {"pictures", "video", "prompts"}
        assert set(kind.exports) <= {"lora", "diffusers", "kohya", "merged", "onnx"}
        assert not set(kind.exports) & set(kind.export_limits)


def test_files_and_pictures_give_the_same_rows_in_batches_of_any_size(trained, tmp_path):
    paths, images = [tmp_path / f"{n}.png" for n in range(3)], [picture() for _ in range(3)]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    for model in (vl.load_model(trained[1]), vl.load_model(SHIPPED)):
        rows = model.predict(images)
        assert [row.to_row() for row in model.predict(paths)] == [row.to_row() for row in rows]
        for one, row in zip(model.predict(images, batch_size=1), rows, strict=True):
            assert one.to_row()["probability"] == pytest.approx(row.to_row()["probability"], abs=1e-4)
        assert all(isinstance(text, str) for row in rows for text in row.to_cells().values())
        assert json.loads(json.dumps([row.to_row() for row in rows]))
        assert model.predict([]) == []


def test_options_are_those_of_the_kind(trained):
    model = vl.load_model(trained[1])
    assert len(model.predict([picture()], top=2)[0].to_row()["top"]) == 2
    with pytest.raises(UserError, match=r"a model for classification predicts without 'tops'\. Did you mean 'top'\?"):
        model.predict([picture()], tops=2)
    with pytest.raises(UserError, match="a model for manipulation predicts without 'top'"):
        vl.load_model(SHIPPED).predict([picture()], top=2)
    with pytest.raises(DataError, match="does not exist"):
        model.predict(["no.png"])


def test_an_adapter_alone_says_what_it_is_for(trained):
    alone = vl.load_model(trained[1] / "adapter")
    with pytest.raises(UserError, match=r"an adapter alone, without a head.*vision-lowrank export"):
        alone.predict([picture()])


def test_a_model_loaded_for_prediction_is_not_saved_without_its_adapter(trained, tmp_path):
    light = vl.load_model(trained[1])
    with pytest.raises(UserError, match="attach=True"):
        light.save(tmp_path / "again", {})
    vl.load_model(trained[1], attach=True).save(tmp_path / "again", {"config": None})
    one, two = (json.loads((folder / "artefact.json").read_text()) for folder in (trained[1], tmp_path / "again"))
    assert one == two


def test_on_evaluates_this_very_model_and_refuses_others(recipe):
    config = load_config(recipe, ["seeds=[1]"])
    result = run(config)
    folder = recipe.parent / "runs" / config.name / "seed-1" / "artefact"
    model = vl.load_model(folder)
    task = model.on(config)
    assert task.model is model
    name, data = next(iter(task.eval_sets("test").items()))
    pixels = torch.stack([data[index]["image"] for index in range(len(data))])
    labels = torch.tensor([data[index]["label"] for index in range(len(data))])
    with torch.no_grad():
        found = task.metrics(name, {"logits": model(pixels), "label": labels})
    assert found["loss"] == pytest.approx(result["metrics"][f"{name}/loss"]["mean"], abs=1e-5)
    with pytest.raises(UserError, match="task 'fewshot' evaluates no model for manipulation"):
        vl.load_model(SHIPPED).on(config)
    with pytest.raises(UserError, match="attach=True"), task.untrained():
        pass


SOUND = {
    "task": "classification", "backbone": {"name": "tiny-clip", "weights": None}, "fingerprint": "0" * 16,
    "preprocess": {"size": 48, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}, "adapter": False, "trained_base": [],
    "tensors": {}, "record": {}, "head": "text", "classes": ["a"], "templates": ["{}"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ("{", "not valid JSON"),
        ("{}", "lacks adapter, backbone, fingerprint, preprocess"),
        (json.dumps(SOUND | {"task": "x"}), "unknown model 'x'"),
        (json.dumps({key: value for key, value in SOUND.items() if key != "task"}), "lacks task"),
        (json.dumps(SOUND | {"templates": []}), "a text head needs a template"),
    ],
)
def test_artefacts_that_are_none(tmp_path, about, words):
    (tmp_path / "artefact.json").write_text(about)
    with pytest.raises(UserError, match=words):
        vl.load_model(tmp_path)


def test_an_adapters_record_that_is_damaged_is_named(tmp_path):
    (tmp_path / "vision_lowrank.json").write_text('{"attachment": {"backbone": "tiny-clip"}}')
    with pytest.raises(
        ArtefactError, match=r"vision_lowrank\.json' is damaged: it lacks attachment.*attachment\.weights"
    ):
        vl.load_model(tmp_path)


def test_a_metric_that_is_not_finite_is_null_in_the_record(trained, tmp_path):
    classifier, _ = trained
    metrics = {"val/auc": float("nan"), "val/loss": float("inf"), "val/accuracy": 0.5, "confusion": [[1, float("nan")]]}
    classifier.save(tmp_path / "copy", {"config": None, "metrics": metrics})
    about = json.loads((tmp_path / "copy" / "artefact.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    expected = {"val/auc": None, "val/loss": None, "val/accuracy": 0.5, "confusion": [[1, None]]}
    assert about["record"]["metrics"] == expected
    vl.load_model(tmp_path / "copy")
