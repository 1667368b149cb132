"""Base-to-novel, transfer and selections in few-shot training."""

import json

import pytest
import torch

from vision_lowrank.config import load_config
from vision_lowrank.engine import Engine
from vision_lowrank.errors import ConfigError, UserError
from vision_lowrank.metrics.classification import harmonic_mean
from vision_lowrank.studies import run as experiment
from vision_lowrank.studies.run import build_task
from vision_lowrank.tasks.classification.classifier import ImageClassifier

SELECTIONS = {
    "flexora": "{type: flexora, steps: 3, holdout: 0.5, val_batches: 1}",
    "diffora": "{type: diffora, steps: 3, holdout: 0.5, warmup: 1}",
}

DIGITS = "data={type: digits}"


class Crash(Exception):
    """What stops a run in the middle."""


def task_of(recipe, *overrides):
    return build_task(load_config(recipe, overrides), 1)


def test_base_to_novel_trains_and_tests_halves(recipe):
    whole, half = task_of(recipe, DIGITS), task_of(recipe, DIGITS, "task.protocol=base_to_novel")
    classes = whole.model.classes
    assert half.model.classes == classes[: -(-len(classes) // 2)]
    assert half.prompted["transfer/novel-digits"].classes == classes[-(-len(classes) // 2) :]
    assert set(half.train_images.keys) < set(whole.train_images.keys)
    sets = half.image_sets("test")
    assert set(sets) == {"test/digits", "transfer/novel-digits"}
    assert sum(map(len, sets.values())) == len(whole.image_sets("test")["test/digits"])


def test_base_to_novel_reports_the_harmonic_mean(recipe):
    result = experiment.run(load_config(recipe, [DIGITS, "task.protocol=base_to_novel", "seeds=[1]"]))
    for metrics in (result["baseline"], result["metrics"]):
        base, novel = (metrics[f"{name}/accuracy"]["mean"] for name in ("test/digits", "transfer/novel-digits"))
        assert metrics["harmonic_mean/digits/accuracy"]["mean"] == pytest.approx(harmonic_mean(base, novel))


def test_transfer_sets_have_their_own_classes_and_templates(recipe):
    task = task_of(recipe, "task.transfer=[{type: digits, templates: ['the digit {}']}]")
    images = task.image_sets("test")["transfer/digits"]
    other = task.prompted["transfer/digits"]
    assert other.classes == images.classes
    assert len(images.classes) == 10
    assert other.templates == ("the digit {}",)
    assert other.backbone is task.model.backbone
    task.eval()
    with torch.no_grad():
        task.begin_eval("transfer/digits")
        assert task.eval_step({"image": torch.zeros(2, 3, 48, 48), "label": torch.zeros(2), "index": 0})[
            "logits"
        ].shape == (2, 10)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.transfer=[{type: digitz}]", "unknown data 'digitz'. Did you mean 'digits'"),
        ("task.transfer=[{type: digits, sise: 3}]", "sise"),
        ("task.transfer=[digits]", "needs a `type`"),
    ],
)
def test_mistakes_in_transfer_are_named(recipe, override, message):
    with pytest.raises(ConfigError) as error:
        load_config(recipe, [override])
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("override", ["task.protocol=base_to_novel", "task.transfer=[{type: digits}]"])
def test_heads_without_prompts_know_no_other_classes(recipe, override):
    with pytest.raises(UserError, match=r"task\.head=text"):
        task_of(recipe, "task.head=linear", override)


@pytest.mark.parametrize("name", SELECTIONS)
def test_selection_searches_then_trains_a_plain_lora_where_it_says(recipe, name):
    overrides = ["adapter={type: lora, r: 2, layers: [0, 1]}", f"selection={SELECTIONS[name]}", "seeds=[1]"]
    config = load_config(recipe, overrides)
    result = experiment.run(config)
    folder = experiment.run_folder(config) / "seed-1"
    stages = [json.loads(line)["stage"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(stage for stage in stages if stage)) == ["search", "train"]
    facts = result["seeds"]["1"]["facts"]
    assert facts["gates"]
    classifier = ImageClassifier.load(folder / "artefact", attach=True)
    adapted = {name.partition(".lora_A")[0] for name, _ in classifier.backbone.named_parameters() if ".lora_A" in name}
    assert 0 < len(adapted) <= 12
    evaluated = result["seeds"]["1"]["metrics"]["test/test/accuracy"]
    assert 0 <= evaluated <= 1


def test_resumed_search_gives_the_same_adapter(recipe, monkeypatch):
    overrides = ["adapter={type: lora, r: 2, layers: [0, 1]}", f"selection={SELECTIONS['flexora']}", "seeds=[1]"]
    whole = experiment.run(load_config(recipe, [*overrides, "name=whole"]))

    update = Engine.update

    def crashing(self):
        if self.stage.name == "train" and self.step == 2:
            raise Crash
        return update(self)

    config = load_config(recipe, [*overrides, "name=cut"])
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "update", crashing)
        with pytest.raises(Crash):
            experiment.run(config)
    resumed = experiment.run(config)
    assert resumed["seeds"]["1"]["metrics"] == whole["seeds"]["1"]["metrics"]


def test_other_tasks_refuse_a_selection(recipe):
    overrides = ["adapter={type: lora, r: 2}", f"selection={SELECTIONS['flexora']}", "task={type: zeroshot}"]
    with pytest.raises(ConfigError, match=r"task\.type=fewshot"):
        load_config(recipe, overrides)
