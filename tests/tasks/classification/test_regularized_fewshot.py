"""Regularisers in few-shot training: what the pretrained model answers, and what training with them does."""

import pytest
import torch
import torch.nn.functional as F

import vision_lowrank as vl
from vision_lowrank.adapters.lamda import Lamda
from vision_lowrank.config import load_config
from vision_lowrank.engine import Engine, Hook
from vision_lowrank.errors import UserError
from vision_lowrank.regularizers.ba_lora import concentration, consistency, diversity
from vision_lowrank.regularizers.contrastive import contrastive_loss
from vision_lowrank.studies.run import build_task
from vision_lowrank.tasks.classification.classifier import ImageClassifier

LORA = ["adapter={type: lora, r: 2, layers: [0, 1]}"]
BA = [*LORA, "regularizer.type=ba_lora", "regularizer.ramp=0"]
PISSA = [*BA, "initializer.type=pissa"]
CONTRAST = [*LORA, "regularizer.type=supervised_contrastive"]
HEADS = ["task.head=linear", "regularizer.dr_space=standardized"], ["task.head=cosine"]


class Crash(Hook):
    def __init__(self, at):
        self.at = at

    def after_step(self, engine):
        if engine.global_step == self.at:
            raise ZeroDivisionError


def make(recipe, overrides, folder, *hooks):
    config = load_config(recipe, overrides)
    return Engine(config.engine, build_task(config, 1), folder, seed=1, rule=config.rule, hooks=hooks)


def trained(recipe, overrides, folder, *hooks):
    engine = make(recipe, overrides, folder, *hooks)
    engine.fit()
    return engine


def begun(recipe, overrides):
    """A task at the start of its last stage, and a batch."""
    task = build_task(load_config(recipe, overrides), 1)
    stages = task.stages()
    task.train()
    for stage in stages:
        task.begin_stage(stage)
        task.begin_training()
    data = stages[0].data
    return task, torch.utils.data.default_collate([data[i, i] for i in range(len(data))])


def move_adapter(task):
    with torch.no_grad():
        for parameter in task.model.backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)


def state(task):
    return {name: tensor.clone() for name, tensor in task.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_teacher_of_a_text_head_is_the_zero_shot_classifier_of_the_base(recipe, tiny_weights):
    task, batch = begun(recipe, PISSA)
    base = vl.load_backbone("tiny-clip", str(tiny_weights)).eval()
    zero_shot = ImageClassifier(base, "text", task.model.classes, task.model.templates)
    move_adapter(task)
    logits = task._teacher.logits(batch["image"])
    torch.testing.assert_close(logits, zero_shot(batch["image"]), rtol=1e-5, atol=1e-5)
    assert not logits.requires_grad
    assert not torch.allclose(logits, task.model(batch["image"]), atol=1e-2)


def test_nothing_is_inherited_yet_at_the_start(recipe):
    task, batch = begun(recipe, PISSA)
    task.training_step(batch)
    assert task.regularizer.extra_losses()["consistency"].item() == pytest.approx(0, abs=1e-6)
    move_adapter(task)
    task.training_step(batch)
    assert task.regularizer.extra_losses()["consistency"] > 1e-4


def test_the_step_s_loss_is_cross_entropy_and_the_three_terms(recipe, tmp_path):
    engine = make(recipe, PISSA, tmp_path)
    losses = engine.dry_step(engine.task.stages()[0])
    task = engine.task
    batch = engine.closure.parts[0].batch
    logits = task.model(batch["image"]).double()
    teacher = task._teacher.logits(batch["image"]).double()
    expected = {
        "consistency": 0.15 * consistency(logits, teacher, 2.0),
        "diversity": 0.03 * diversity(logits / task.model.backbone.logit_scale.double()),
        "spectral": 0.03 * concentration(logits, 5),
    }
    for name, value in expected.items():
        assert losses[name] == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name
    whole = F.cross_entropy(logits, batch["label"]) + sum(expected.values())
    assert losses["loss"] == pytest.approx(whole.item(), rel=1e-5)


def test_only_what_trains_gets_a_gradient_and_the_teacher_leaves_no_trace(recipe):
    task, batch = begun(recipe, ["adapter={type: lamda, r: 2, layers: [0, 1]}", *BA[1:]])
    for module in task.modules():
        if isinstance(module, Lamda):
            module.B.requires_grad_(False)
    before = {name: p.requires_grad for name, p in task.named_parameters()}
    loss = task.training_step(batch)["loss"]
    (loss + sum(task.regularizer.extra_losses().values())).backward()
    assert {name: p.requires_grad for name, p in task.named_parameters()} == before
    assert all(module.training for module in task.model.modules())
    for name, parameter in task.named_parameters():
        assert (parameter.grad is not None) == before[name], name


@pytest.mark.parametrize(
    "overrides",
    [
        [*PISSA, "regularizer.l1=0", "regularizer.l2=0", "regularizer.l3=0"],
        [*BA, *HEADS[0], "regularizer.l1=0", "regularizer.l2=0", "regularizer.l3=0"],
        [*CONTRAST, "regularizer.w=0"],
    ],
)
def test_without_weight_it_is_plain_training_bit_for_bit(recipe, tmp_path, overrides):
    overrides = ["engine.steps=2", *overrides]
    plain = [each for each in overrides if not each.startswith("regularizer")]
    one = trained(recipe, plain, tmp_path / "plain")
    other = trained(recipe, overrides, tmp_path / "weightless")
    assert_same(state(one.task), state(other.task))
    acting = trained(recipe, overrides[: -1 if "regularizer.w=0" in overrides else -3], tmp_path / "acting")
    assert any(not torch.equal(a, b) for a, b in zip(one.task.parameters(), acting.task.parameters(), strict=True))


@pytest.mark.parametrize("head", HEADS)
def test_a_head_without_pretrained_logits_is_probed_first(recipe, tmp_path, head):
    class Witness(Hook):
        def on_stage_start(self, engine):
            starts.append(state(engine.task))

    starts = []
    overrides = [*BA, *head, "task.probe_steps=2", "engine.steps=2", "adapter.towers=[vision]"]
    task = trained(recipe, overrides, tmp_path, Witness()).task
    assert [(stage.name, stage.engine) for stage in task.stages()] == [("probe", {"steps": 2}), ("train", {})]
    first, second, last = *starts, state(task)
    for name in first:
        own = ".head." in name
        assert torch.equal(first[name], second[name]) == (not own), name
        assert torch.equal(second[name], last[name]) == (not own and "lora_" not in name), name
    kept = {f"model.head.{name}": tensor for name, tensor in task._teacher.head.state_dict().items()}
    assert_same(kept, {name: second[name] for name in kept})


def test_probed_teacher_is_the_probe_on_frozen_features(recipe, tiny_weights):
    task, batch = begun(recipe, [*BA, "task.head=cosine"])
    base = vl.load_backbone("tiny-clip", str(tiny_weights)).eval()
    f = F.normalize(base.encode_image(batch["image"]), dim=-1)
    expected = 20 * f @ F.normalize(task.model.head.prototypes, dim=-1).T
    move_adapter(task)
    torch.testing.assert_close(task._teacher.logits(batch["image"]), expected.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("crash_at", [1, 2, 3])
def test_a_run_resumed_in_any_stage_equals_the_whole(recipe, tmp_path, crash_at):
    overrides = [*BA, "task.head=cosine", "task.probe_steps=2", "engine.steps=2", "engine.checkpoint_every=1"]
    whole = trained(recipe, overrides, tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        trained(recipe, overrides, tmp_path / "cut", Crash(crash_at))
    resumed = trained(recipe, overrides, tmp_path / "cut", Crash(None))
    assert_same(state(whole.task), state(resumed.task))
    assert_same(whole.task._teacher.head.state_dict(), resumed.task._teacher.head.state_dict())


def test_consistency_of_features_needs_no_probe(recipe):
    task, batch = begun(recipe, [*BA, *HEADS[0], "regularizer.consistency=features"])
    assert [stage.name for stage in task.stages()] == ["train"]
    move_adapter(task)
    task.training_step(batch)
    f, g = task.model.backbone.encode_image(batch["image"]), task._teacher.features(batch["image"])
    expected = 0.15 * (1 - F.cosine_similarity(f.double(), g.double()).mean())
    value = task.regularizer.extra_losses()["consistency"]
    assert value.item() == pytest.approx(expected.item(), abs=1e-6)
    assert value > 1e-5


def test_a_base_that_trains_is_no_teacher(recipe, tmp_path):
    overrides = ["adapter=null", *BA[1:], "rule={type: lisa, blocks: 1}"]
    with pytest.raises(UserError, match=r"base weight .* trains"):
        make(recipe, overrides, tmp_path).fit()


def test_merged_equals_unmerged_after_training_from_pissa(recipe, tmp_path):
    task = trained(recipe, PISSA, tmp_path).task.eval()
    pixels = torch.randn(2, 3, *[task.model.backbone.preprocess.size] * 2)
    with torch.no_grad():
        expected = task.model.backbone.encode_image(pixels)
        merged = vl.merge(task.model.backbone).encode_image(pixels)
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)


def test_mixed_precision_trains(recipe, tmp_path):
    engine = trained(recipe, [*PISSA, "engine.precision=bf16"], tmp_path)
    assert set(engine.losses) > {"consistency", "diversity", "spectral"}


def test_two_views_are_two_rows_and_the_first_is_that_of_one(recipe):
    task, batch = begun(recipe, [*CONTRAST, "task.views=2"])
    one = build_task(load_config(recipe, LORA), 1).stages()[0].data
    assert batch["image"].shape[:2] == (6, 2)
    assert torch.equal(batch["image"][1, 0], one[1, 1]["image"])
    assert not torch.equal(batch["image"][1, 0], batch["image"][1, 1])
    loss = task.training_step(batch)["loss"]
    pixels, labels = batch["image"].transpose(0, 1).flatten(0, 1), batch["label"].repeat(2)
    features = task.model.backbone.encode_image(pixels).double()
    own = F.cross_entropy(task.model(pixels).double(), labels)
    assert loss.item() == pytest.approx(own.item(), rel=1e-5)
    expected = 0.5 * (contrastive_loss(features, labels) - own)
    assert task.regularizer.extra_losses()["contrastive"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_contrastive_term_alone_leaves_the_head_where_it_is(recipe, tmp_path):
    overrides = [*CONTRAST, "task.head=linear", "regularizer.w=1", "engine.weight_decay=0"]
    start = state(make(recipe, overrides, tmp_path / "start").task)
    end = state(trained(recipe, overrides, tmp_path / "end").task)
    moved = {name for name, tensor in end.items() if not torch.equal(tensor, start[name])}
    assert moved
    assert not any("head" in name for name in moved)
