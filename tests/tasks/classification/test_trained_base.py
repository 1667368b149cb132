"""Artefacts of runs that trained weights of the base itself."""

import json

import pytest
import torch
from fixtures.models import moved
from safetensors.torch import load_file, save_file
from torch import nn

import vision_lowrank as vl
from vision_lowrank.config import load_config
from vision_lowrank.engine import Engine
from vision_lowrank.errors import ArtefactError
from vision_lowrank.studies.run import build_task
from vision_lowrank.tasks.classification.classifier import ImageClassifier

HEADS = {
    "lisa": ("text", "rule={type: lisa, blocks: 2, interval: 1}"),
    "full": ("linear", "rule={type: lisa, blocks: 10, state: keep}"),
}
CLASSES = ("disc", "square")


@pytest.fixture
def base(tiny_weights):
    return vl.load_backbone("tiny-clip", str(tiny_weights))


def trained(backbone, names, head="text"):
    """A classifier of which only these weights of the base, and its head, were trained; what was saved of it."""
    classifier = ImageClassifier(backbone.requires_grad_(False), head, CLASSES, ("a {}.",))
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(name in names)
    classifier.note_training()
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return classifier.eval()


def pixels():
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("how", HEADS)
def test_artefact_predicts_what_evaluation_said(recipe, tmp_path, how):
    head, rule = HEADS[how]
    config = load_config(recipe, ["adapter=null", rule, f"task.head={head}", "engine.steps=2", "engine.lr=1.0e-3"])
    task = build_task(config, 1)
    engine = Engine(config.engine, task, tmp_path / "run", seed=1, rule=config.rule)
    before = engine.evaluate("test")["test/test/loss"]
    engine.fit()
    said = engine.evaluate("test")["test/test/loss"]
    task.save_artefact(tmp_path / "artefact", {})
    classifier = ImageClassifier.load(tmp_path / "artefact")
    images = task.splits.tests["test"]
    inputs = torch.stack([classifier.backbone.transform(images.image(i)) for i in range(len(images))])
    loss = nn.functional.cross_entropy(classifier(inputs), torch.tensor(images.labels)).item()
    assert loss == pytest.approx(said, abs=1e-5)
    assert loss != pytest.approx(before, abs=1e-4)


def test_only_what_trained_is_saved_and_it_loads_to_the_same_logits(base, tmp_path):
    names = {"model.visual.proj", "model.text_projection"}
    classifier = trained(base, names)
    classifier.save(tmp_path, {})
    assert load_file(tmp_path / "base.safetensors").keys() == names
    again = ImageClassifier.load(tmp_path)
    own = dict(classifier.named_parameters())
    assert all(torch.equal(parameter, own[name]) for name, parameter in again.named_parameters())
    torch.testing.assert_close(again(pixels()), classifier(pixels()), rtol=0, atol=1e-4)  # of about 1


def test_loaded_artefact_saves_as_itself(base, tmp_path):
    classifier = trained(base, {"model.visual.proj"}, "linear")
    classifier.save(tmp_path / "one", {})
    ImageClassifier.load(tmp_path / "one").save(tmp_path / "two", {})
    one, two = (json.loads((tmp_path / name / "artefact.json").read_text()) for name in ("one", "two"))
    assert one == two
    assert load_file(tmp_path / "two" / "base.safetensors").keys() == {"model.visual.proj"}


def test_base_whose_weights_were_changed_by_an_artefact_is_another_base(base, tiny_weights, tmp_path):
    trained(base, {"model.visual.proj"}).save(tmp_path, {})
    fresh = vl.load_backbone("tiny-clip", str(tiny_weights))
    ImageClassifier.load(tmp_path, fresh)
    with pytest.raises(ArtefactError, match="made for base weights"):
        ImageClassifier.load(tmp_path, fresh)


def test_another_base_is_refused(base, tmp_path):
    trained(base, {"model.visual.proj"}).save(tmp_path, {})
    with pytest.raises(ArtefactError, match="made for base weights"):
        ImageClassifier.load(tmp_path, vl.load_backbone("tiny-clip", "random"))


def damage_missing(path):
    path.unlink()


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:100])


def damage_other_values(path):
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)


@pytest.mark.parametrize("damage", [damage_missing, damage_cut, damage_other_values])
def test_damaged_base_weights_are_refused(base, tmp_path, damage):
    trained(base, {"model.visual.proj"}).save(tmp_path, {})
    damage(tmp_path / "base.safetensors")
    with pytest.raises(ArtefactError, match=r"base\.safetensors' is (missing|damaged|not what was saved): "):
        ImageClassifier.load(tmp_path)


def test_split_attention_is_told_apart(base, tiny_weights, tmp_path):
    trained(base, {"model.visual.transformer.resblocks.0.attn.in_proj_weight"}).save(tmp_path, {})
    split = vl.split_attention(vl.load_backbone("tiny-clip", str(tiny_weights)))
    with pytest.raises(ArtefactError, match=r"in_proj_weight' does not fit .* as load_backbone gives"):
        ImageClassifier.load(tmp_path, split)


def test_head_alone_leaves_the_base_out(base, tmp_path):
    trained(base, set(), "linear").save(tmp_path, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artefact.json", "head.safetensors"]


def test_adapter_keeps_to_its_own_folder(base, tmp_path):
    classifier = ImageClassifier(vl.attach(base, vl.LoraConfig(r=2)), "text", CLASSES, ("a {}.",))
    classifier.note_training()
    classifier.save(tmp_path, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "artefact.json"]


@pytest.mark.parametrize("config", [vl.LoraConfig(r=2), vl.BlockLoraConfig(r=2, blocks=2)], ids=["peft", "own"])
def test_adapter_on_a_trained_base_is_saved_with_it(base, tmp_path, config):
    names = {"model.visual.transformer.resblocks.0.attn.in_proj_weight", "model.visual.proj"}
    trained(base, names).save(tmp_path / "base", {})
    classifier = ImageClassifier.load(tmp_path / "base")
    classifier.backbone = vl.attach(classifier.backbone, config)
    classifier = moved(classifier, amount=0.05)
    state = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    classifier.save(tmp_path / "both", {})
    assert all(torch.equal(tensor, state[name]) for name, tensor in classifier.state_dict().items())
    assert load_file(tmp_path / "both" / "base.safetensors").keys() == names
    again = ImageClassifier.load(tmp_path / "both", attach=True)
    assert again.trained_base == names
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, state[name]), name
