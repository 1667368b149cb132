"""Calibration batches come from training pictures, are balanced and seeded, and see the task's own loss."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from vision_lowrank.adapters.tuner import adapter_layers
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.config import load_config
from vision_lowrank.errors import ConfigError, UserError
from vision_lowrank.initializers.lora_ga import LoraGa
from vision_lowrank.studies.run import build_task, run
from vision_lowrank.tasks.classification.base import load_splits
from vision_lowrank.tasks.classification.classifier import ImageClassifier
from vision_lowrank.tasks.classification.initial_losses import balanced, calibration_losses

GRADIENT_STARTS = ["{type: lora_ga, samples: 6, batch_size: 4}", "{type: lora_sb, samples: 6, batch_size: 4}"]


@pytest.fixture
def train(recipe):
    return load_splits(load_config(recipe)).train


def test_balanced_takes_as_many_of_each_class(train):
    labels = [train.labels[index] for index in balanced(train, 9, seed=1)]
    assert set(Counter(labels).values()) == {3}
    assert balanced(train, 9, seed=1) == balanced(train, 9, seed=1) != balanced(train, 9, seed=2)
    assert sorted(balanced(train, 10_000, seed=1)) == list(range(len(train)))


def test_the_loss_with_a_text_head_is_the_tasks_cross_entropy(train, tiny_weights):
    backbone = load_backbone("tiny-clip", str(tiny_weights)).eval()
    options = LoraGa(samples=6, batch_size=4)
    losses = calibration_losses(train, ("a photo of a {}.",), backbone.preprocess, "text", options)
    classifier = ImageClassifier(backbone, "text", train.classes, ("a photo of a {}.",))
    chosen = balanced(train, 6, options.seed)
    assert len(losses) == 2
    for loss, part in zip(losses, (chosen[:4], chosen[4:]), strict=True):
        pixels = torch.stack([backbone.preprocess.evaluation()(train.image(index)) for index in part])
        expected = F.cross_entropy(classifier(pixels), torch.tensor([train.labels[index] for index in part]))
        torch.testing.assert_close(loss(backbone), expected)


def test_an_empty_head_is_stood_in_for_by_class_means(train, tiny_weights):
    backbone = load_backbone("tiny-clip", str(tiny_weights)).eval()
    (loss,) = calibration_losses(train, (), backbone.preprocess, "linear", LoraGa(samples=6, batch_size=6))
    chosen = balanced(train, 6, 0)
    with torch.no_grad():
        pixels = torch.stack([backbone.preprocess.evaluation()(train.image(index)) for index in chosen])
        features = F.normalize(backbone.encode_image(pixels), dim=-1)
    labels = torch.tensor([train.labels[index] for index in chosen])
    means = torch.stack([F.normalize(features[labels == each].sum(0), dim=0) for each in range(len(train.classes))])
    torch.testing.assert_close(loss(backbone), F.cross_entropy(20 * features @ means.T, labels))


@pytest.mark.parametrize("head", ["text", "linear"])
@pytest.mark.parametrize("start", GRADIENT_STARTS)
def test_a_run_starts_from_its_gradients_and_resumes(recipe, tmp_path, start, head):
    overrides = ["adapter={type: lora, r: 2, towers: [vision], modules: [q, v]}", f"initializer={start}"]
    overrides += [f"out={tmp_path}", "name=r", f"task.head={head}"]
    config = load_config(recipe, overrides)
    task = build_task(config, 1)
    layers = dict(adapter_layers(task.model.backbone))
    assert layers
    for layer in layers.values():
        update = layer.weight_update["default"]
        assert update.B.any()
        assert (update.offset_B is not None) == ("lora_ga" in start)
    result = run(config)
    assert result["config"]["initializer"]["samples"] == 6
    again = ImageClassifier.load(tmp_path / "r" / "seed-1" / "artefact", attach=True)
    assert again.backbone.peft_config["default"].initializer in start


def test_the_first_warm_up_step_sets_lora_sbs_rate(recipe):
    wanted = {"engine.warmup_steps=4": 0.2, "engine.warmup_steps=0": 0.01}
    for warmup, share in wanted.items():
        overrides = [f"initializer={GRADIENT_STARTS[1]}", warmup, "engine.lr=0.01"]
        overrides.append("adapter={type: lora_xs, r: 4, towers: [vision], modules: [q]}")
        task = build_task(load_config(recipe, overrides), 1)
        update = adapter_layers(task.model.backbone)[0][1].weight_update["default"]
        largest = torch.linalg.matrix_norm(update.delta(), 2)
        # the sign matrix of any gradient has a spectral norm between sqrt(width) and width
        assert 0.01 * share * 8 < float(largest) < 0.01 * share * 200


def test_bad_combinations_are_one_line_errors(recipe):
    with pytest.raises(UserError, match="initializer: there is no adapter to start"):
        build_task(load_config(recipe, ["adapter=null", "task.head=linear", "initializer={type: pissa}"]), 1)
    with pytest.raises(ConfigError, match=r"unknown initializer 'pisa'. Did you mean 'pissa'"):
        load_config(recipe, ["initializer={type: pisa}"])
    with pytest.raises(ConfigError, match=r"initializer.gama: unknown key. Did you mean 'gamma'"):
        load_config(recipe, ["initializer={type: lora_ga, gama: 3}"])
    with pytest.raises(UserError, match="set residual=true"):
        load_config(recipe, ["initializer={type: nystrom, core: pinv}"])
