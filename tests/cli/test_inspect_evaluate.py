import json
import re
import xml.etree.ElementTree as ET

import pytest
import torch
from fixtures.models import moved
from torch.utils.data import DataLoader

import vision_lowrank as vl
from vision_lowrank.adapters.kv_prefix import KvPrefixConfig
from vision_lowrank.adapters.visual_prompt import VisualPromptConfig
from vision_lowrank.analysis.mitigation import changes, with_changes
from vision_lowrank.analysis.separation import separation
from vision_lowrank.cli.checks import recorded_config
from vision_lowrank.cli.inspect_evaluate import KEEPS, thinned
from vision_lowrank.cli.main import main
from vision_lowrank.config import apply_overrides, load_config, to_tree, validate
from vision_lowrank.data.base import ImageSet
from vision_lowrank.data.loading import TransformedImages
from vision_lowrank.metrics.classification import classification_metrics
from vision_lowrank.tasks.classification.classifier import ImageClassifier
from vision_lowrank.tasks.classification.fewshot import FewShot

CLASSES, TEMPLATES = ["disc", "square", "stripes"], ["a photo of a {}."]
METHODS = {
    "visual_prompt": lambda: VisualPromptConfig(length=2),
    "kv_prefix": lambda: KvPrefixConfig(length=2),
    "mixlora": lambda: vl.MixLoraConfig(r=2),
}


def run(*arguments):
    """Exit code of a command."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def inspected(artefact, *options):
    """The numbers and the page of a command that goes well."""
    numbers, page = artefact.parent / "numbers.json", artefact.parent / "page.html"
    assert run("inspect", artefact, "--json", numbers, "--out", page, *options) == 0
    return json.loads(numbers.read_text()), page.read_text()


@pytest.fixture(scope="module")
def record(tmp_path_factory, pictures, tiny_weights):
    """What a run of the pictures keeps, with a transfer set."""
    path = tmp_path_factory.mktemp("recipe") / "shapes.yaml"
    path.write_text(
        f"backbone: {{name: tiny-clip, weights: {tiny_weights}}}\n"
        "task: {type: fewshot, shots: 2, crop: [0.5, 1.0], flip: 0.25, "
        f"transfer: [{{type: folder, root: {pictures}, templates: ['some {{}}']}}]}}\n"
        f"data: {{type: folder, root: {pictures}, fractions: [0.5, 0.2, 0.3]}}\n"
        "engine: {eval_batch_size: 8}\n"
    )
    return {"config": to_tree(load_config(path, []))}


def base_of(weights):
    return vl.load_backbone("tiny-clip", str(weights)).eval()


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, record, tiny_weights):
    """LoRA in both towers: prompts change too."""
    torch.manual_seed(0)
    model = base_of(tiny_weights).requires_grad_(False)
    where = {"towers": ["vision", "text"], "layers": [0], "modules": ["q", "fc1"]}
    model = moved(vl.attach(model, vl.LoraConfig(r=2), **where), amount=0.5)
    folder = tmp_path_factory.mktemp("saved") / "<i>artefact"
    ImageClassifier(model, "text", CLASSES, TEMPLATES).save(folder, record)
    return folder


@torch.no_grad()
def metrics_of(model, images, templates=TEMPLATES):
    """Metrics of a model by prompts, computed plainly."""
    classifier = ImageClassifier(model, "text", CLASSES, templates).eval()
    batch = next(iter(DataLoader(TransformedImages(images, model.preprocess.evaluation()), len(images))))
    return classification_metrics(classifier(batch["image"]), batch["label"])


@torch.no_grad()
def features_of(model, images):
    batch = next(iter(DataLoader(TransformedImages(images, model.preprocess.evaluation()), len(images))))
    return model.encode_image(batch["image"]), batch["label"]


def test_what_it_forgot_what_scaling_gives_back_and_how_features_separate(adapted, pictures, tiny_weights, capsys):
    numbers, page = inspected(adapted, "--evaluate")
    output = capsys.readouterr()
    splits, base = FewShot.splits_of(recorded_config(adapted, []), CLASSES), base_of(tiny_weights)
    model = ImageClassifier.load(adapted, attach=True).backbone

    [(called, (other, templates))] = splits.transfer.items()
    assert called == pictures.name
    expected = {"test/test": (splits.tests["test"], TEMPLATES), f"transfer/{called}": (other, templates)}
    forgetting = numbers["forgetting"]
    for name, (images, prompts) in expected.items():
        before, after = metrics_of(base, images, prompts), metrics_of(model, images, prompts)
        for metric in before:
            assert forgetting["before"][f"{name}/{metric}"] == pytest.approx(before[metric], abs=1e-5)
            assert forgetting["after"][f"{name}/{metric}"] == pytest.approx(after[metric], abs=1e-5)
        assert forgetting["lost"][f"{name}/loss"] == pytest.approx(after["loss"] - before["loss"], abs=1e-5)
        assert abs(after["loss"] - before["loss"]) > 1e-3

    rows = {row["keep"]: row for row in numbers["mitigation"]["rows"]}
    assert tuple(rows) == KEEPS
    assert numbers["mitigation"]["kept_sets"] == [f"transfer/{called}"]
    for keep, name, control in ((1.0, "random", "none"), (0.25, "intruders", "none"), (0.25, "shrunk", "shrink")):
        with with_changes(model, changes(model, keep, control=control)):
            task, kept = metrics_of(model, splits.val), metrics_of(model, other, templates)
        cell = rows[keep][name]
        assert cell["metrics"]["val/loss"] == pytest.approx(task["loss"], abs=1e-4)
        assert cell["metrics"][f"transfer/{called}/loss"] == pytest.approx(kept["loss"], abs=1e-4)
        assert (cell["task"], cell["kept"]) == pytest.approx((task["accuracy"], kept["accuracy"]))
    assert abs(rows[0.0]["intruders"]["metrics"]["val/loss"] - rows[1.0]["intruders"]["metrics"]["val/loss"]) > 1e-3

    separated = numbers["separation"]
    assert (separated["set"], separated["pictures"], separated["index"]) == ("test", [9, 9], [15, 15])
    for key, one in (("frozen", base), ("adapted", model)):
        values = separation(*features_of(one, splits.tests["test"]), *features_of(one, splits.train))
        assert separated[key]["clean"] == pytest.approx(values, rel=1e-3)
        heavy = separated[key]["randaugment_heavy"]
        assert heavy["drop/fisher"] == pytest.approx(separated[key]["clean"]["fisher"] - heavy["fisher"])
        assert heavy["consistency"] < 1
    assert separated["frozen"]["clean"]["fisher"] != pytest.approx(separated["adapted"]["clean"]["fisher"], rel=1e-3)

    words = " ".join(output.out.split())
    for title in ("forgetting (accuracies in percent)", "along λ (accuracies in percent)", "separation of 'test'"):
        assert title in words
    assert "mitigation 16/16" in output.err
    figures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(figures) == 5
    for figure in figures:
        ET.fromstring(figure)
    for section in ("forgetting", "mitigation", "separation", "layers"):
        assert page.count(f'<section id="{section}">') == 1
    assert page.count("<section") == page.count("</section>")
    assert "<i>artefact" not in page
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="http', page)


def test_without_intruders_a_line_says_so(adapted, capsys):
    numbers, page = inspected(adapted, "--evaluate", "--epsilon", 0)
    assert numbers["mitigation"] == {"refused": "no vector counts as an intruder at ε = 0: there is nothing to scale."}
    assert "mitigation: no vector counts" in " ".join(capsys.readouterr().out.split())
    assert "no vector counts as an intruder at ε = 0" in page


def test_trained_base_weights(tmp_path, record, tiny_weights):
    model = base_of(tiny_weights)
    model.requires_grad_(False).get_submodule("model.visual.transformer.resblocks.0").requires_grad_(True)
    classifier = ImageClassifier(model, "text", CLASSES, TEMPLATES)
    classifier.note_training()
    moved(model)
    classifier.save(tmp_path / "full", record)
    numbers, page = inspected(tmp_path / "full")
    assert {row["kind"] for row in numbers["layers"]} == {f"vision {m}" for m in ("q", "k", "v", "o", "fc1", "fc2")}
    assert numbers["method"] == "full fine-tuning"
    assert all(row["relative_norm"] > 0 for row in numbers["layers"])
    assert 'id="forgetting"' not in page
    numbers, _ = inspected(tmp_path / "full", "--evaluate")
    images = FewShot.splits_of(recorded_config(tmp_path / "full", []), CLASSES).tests["test"]
    for key, one in (("before", base_of(tiny_weights)), ("after", model)):
        assert numbers["forgetting"][key]["test/test/loss"] == pytest.approx(metrics_of(one, images)["loss"], abs=1e-4)
    assert "the base weights themselves were trained" in numbers["mitigation"]["refused"]
    assert numbers["separation"]["frozen"]["clean"] != numbers["separation"]["adapted"]["clean"]


def test_a_trained_head_alone(tmp_path, record, tiny_weights, capsys):
    ImageClassifier(base_of(tiny_weights), "linear", CLASSES, TEMPLATES).save(tmp_path / "head", record)
    assert run("inspect", tmp_path / "head") == 2
    assert "has no adapter to inspect" in capsys.readouterr().err
    numbers, page = inspected(tmp_path / "head", "--evaluate")
    assert "has no adapter to inspect" in numbers["refused"] == numbers["mitigation"]["refused"]
    assert {name.partition("/")[0] for name in numbers["forgetting"]["before"]} == {"transfer"}
    assert "test/test/accuracy" in numbers["forgetting"]["after"]
    assert set(numbers["forgetting"]["lost"].values()) == {0}
    assert numbers["separation"]["frozen"] == numbers["separation"]["adapted"]
    assert 'id="layers"' not in page
    assert "where it classifies, there is no value before" in page


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_change_of_a_matrix(method, tmp_path, record, tiny_weights, capsys):
    model = base_of(tiny_weights).requires_grad_(False)
    model = moved(vl.attach(model, METHODS[method](), towers=["vision"]))
    ImageClassifier(model, "text", CLASSES, TEMPLATES).save(tmp_path / "a", record)
    assert run("inspect", tmp_path / "a") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    if method == "visual_prompt":  # the others take the same way
        numbers, _ = inspected(tmp_path / "a", "--evaluate")
        assert numbers["refused"] == numbers["mitigation"]["refused"]
        assert numbers["separation"]["frozen"]["clean"] != numbers["separation"]["adapted"]["clean"]


def test_parts_beside_the_change_are_named_where_it_is_to_be_scaled(tmp_path, record, tiny_weights):
    """LoFiT's gain is a ΔW of the output projection, its biases are none."""
    model = base_of(tiny_weights).requires_grad_(False)
    model = moved(vl.attach(model, vl.LofitConfig(), towers=["vision"], layers=[0]))
    ImageClassifier(model, "text", CLASSES, TEMPLATES).save(tmp_path / "a", record)
    numbers, page = inspected(tmp_path / "a", "--evaluate", "--epsilon", 1)
    assert numbers["total"] > 0
    assert "what lofit adds trained beside ΔW" in numbers["mitigation"]["refused"]
    assert "what lofit adds" in page
    assert "clean" in numbers["separation"]["adapted"]


def test_base_to_novel_evaluates_the_halves(record):
    overrides = ["task.protocol=base_to_novel", "data={type: digits}", "task.transfer=[]"]
    config = validate(apply_overrides(record["config"], overrides), source="test")
    splits = FewShot.splits_of(config, ())
    assert (len(splits.train.classes), list(splits.transfer)) == (5, ["novel-digits"])
    assert set(splits.val.labels) == set(range(5))


def test_mistakes_are_one_line(adapted, recipe, tmp_path, record, tiny_weights, capsys):
    def message(*arguments):
        capsys.readouterr()
        assert run("inspect", *arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        return lines[0] if len(lines) == 1 else lines

    assert "are for artefact folders" in message(recipe, "--evaluate")
    assert "nowhere" in message(adapted, "data.root=nowhere", "--evaluate")
    assert "knows 3 classes, the data has 10" in message(adapted, "data={type: digits}", "--evaluate")
    ImageClassifier(base_of(tiny_weights), "linear", CLASSES, TEMPLATES).save(tmp_path / "bare", {})
    assert "does not say which data" in message(tmp_path / "bare", "--evaluate")


def test_large_sets_are_thinned_evenly():
    images = ImageSet("x", ("a", "b"), (0,) * 6 + (1,) * 5, tuple(map(str, range(11))), load=None)
    assert thinned(images, 4).keys == ("0", "3", "6", "9")
    assert thinned(images, 11) == images
