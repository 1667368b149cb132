"""Augmented and mixed pictures in few-shot training, and what stays as it is."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vision_lowrank.config import load_config
from vision_lowrank.data.base import ImageSet
from vision_lowrank.engine import Engine
from vision_lowrank.errors import ConfigError, UserError
from vision_lowrank.regularizers.contrastive import contrastive_loss
from vision_lowrank.studies.run import build_task
from vision_lowrank.tasks.classification.views import training_images

LORA = ["adapter={type: lora, r: 2, layers: [0, 1]}"]
MIXED = [*LORA, "task.mixup=0.8", "task.cutmix=1"]
CONTRAST = [*MIXED, "regularizer.type=supervised_contrastive", "task.views=2"]
SEARCH = "selection={type: flexora, steps: 2}"
BA = "regularizer={type: ba_lora, ramp: 0}"


def make(recipe, overrides, folder):
    config = load_config(recipe, overrides)
    return Engine(config.engine, build_task(config, 1), folder, seed=1, rule=config.rule)


def trained(recipe, overrides, folder):
    engine = make(recipe, overrides, folder)
    engine.fit()
    return engine


def collated(data):
    return torch.utils.data.default_collate([data[i, i] for i in range(len(data))])


def begun(recipe, overrides):
    """A task at the start of its stage, and a batch."""
    task = build_task(load_config(recipe, overrides), 1)
    (stage,) = task.stages()
    task.train()
    task.begin_stage(stage)
    task.begin_training()
    return task, collated(stage.data)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("task.mixup=-0.1", r"task\.mixup.*greater than or equal to 0"),
        ("task.cutmix=-1", r"task\.cutmix.*greater than or equal to 0"),
        ("task.augmentation=randaugment_light", r"task\.augmentation.*randaugment_heavy"),
    ],
)
def test_wrong_options_are_named(recipe, override, said):
    with pytest.raises(ConfigError, match=said):
        load_config(recipe, [override])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task.views=1"], r"mixed pictures are left out.*task\.views=2.*soft_positives=true"),
        (["task.shots=1"], r"no row has a positive.*task\.views=3"),
    ],
)
def test_contrast_without_any_positive_is_refused(recipe, overrides, said):
    with pytest.raises(UserError, match=said):
        load_config(recipe, [*CONTRAST, *overrides])
    for remedy in ("regularizer.soft_positives=true", "regularizer.w=0", "task.views=3"):
        load_config(recipe, [*CONTRAST, *overrides, remedy])


def test_the_stream_of_pictures_is_the_same_for_all_methods(recipe):
    augmented = ["task.augmentation=randaugment_heavy", "task.mixup=0.8", "task.cutmix=1"]
    methods = LORA, ["adapter.r=4"], ["adapter=null", "task.head=linear"], ["engine.batch_size=5", "engine.workers=1"]
    streams = [build_task(load_config(recipe, [*augmented, *method]), 1).stages()[0].data for method in methods]
    for item in ((0, 0), (3, 1), (40, 5)):
        first, *others = [stream[item] for stream in streams]
        for other in others:
            assert torch.equal(other["image"], first["image"])
            assert torch.equal(other["label"], first["label"])


def test_what_is_evaluated_is_never_augmented_or_mixed(recipe, tmp_path):
    plain = build_task(load_config(recipe, LORA), 1)
    engine = make(recipe, [*MIXED, "task.augmentation=randaugment_heavy"], tmp_path)
    for split in ("val", "test"):
        sets = engine.task.eval_sets(split)
        for name, data in plain.eval_sets(split).items():
            for position in (1, 5):
                sample = sets[name][position, 1]
                assert torch.equal(sample["image"], data[1]["image"])
                assert sample["label"] == data[1]["label"]
    first, one = engine.evaluate("test"), dict(engine.outputs)
    torch.manual_seed(7)
    assert engine.evaluate("test") == first
    for name, outputs in engine.outputs.items():
        assert torch.equal(outputs["logits"], one[name]["logits"])


def test_loss_of_mixed_pictures_is_the_soft_cross_entropy(recipe):
    task, batch = begun(recipe, MIXED)
    assert batch["label"].shape == (6, 3)
    outputs = task.training_step(batch)
    logits = task.model(batch["image"]).double()
    expected = -(batch["label"] * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
    assert outputs["loss"].item() == pytest.approx(expected.item(), abs=1e-5)
    right = logits.argmax(dim=-1) == batch["label"].argmax(dim=-1)
    assert outputs["accuracy"].item() == pytest.approx(right.float().mean().item())


def test_one_hot_weights_train_as_class_numbers_do(recipe):
    task, batch = begun(recipe, LORA)
    loss = task.training_step(batch)["loss"]
    weights = task.training_step(batch | {"label": F.one_hot(batch["label"], 3).float()})["loss"]
    torch.testing.assert_close(weights, loss)


def test_contrast_sees_the_unmixed_views_alone(recipe):
    task, batch = begun(recipe, CONTRAST)
    plain = collated(begun(recipe, [*LORA, "task.views=2"])[0].stages()[0].data)
    one_hot = F.one_hot(plain["label"], 3).float()
    assert batch["label"].shape == (6, 2, 3)
    assert torch.equal(batch["image"][:, 1], plain["image"][:, 1])
    assert torch.equal(batch["label"][:, 1], one_hot)
    assert not torch.equal(batch["image"][:, 0], plain["image"][:, 0])
    assert not torch.equal(batch["label"][:, 0], one_hot)
    loss = task.training_step(batch)["loss"]
    features = task.model.backbone.encode_image(batch["image"].flatten(0, 1))
    logits = task.model(batch["image"].flatten(0, 1)).double()
    own = F.cross_entropy(logits, batch["label"].flatten(0, 1).double())
    assert loss.item() == pytest.approx(own.item(), rel=1e-5)
    single = batch["label"].flatten(0, 1).max(dim=-1).values == 1  # a partner may be of the same class
    assert single[1::2].all()
    contrast = contrastive_loss(features[single].double(), batch["label"].flatten(0, 1)[single].argmax(dim=-1))
    value = task.regularizer.extra_losses()["contrastive"].item()
    assert value == pytest.approx(0.5 * (contrast - own).item(), rel=1e-4)


def test_sixteen_views_and_their_partners_are_all_different():
    images = ImageSet("blank", ("a",), (0,), ("k",), lambda _: Image.new("RGB", (2, 2)))
    each = training_images(images, lambda _: torch.rand(3, dtype=torch.float64), 3, 16, mixup=1.0, mixed=16).views
    drawn = torch.stack([data[5, 0]["image"] for one in each for data in (one.data, one.partners)])
    assert drawn.unique(dim=0).shape == (32, 3)


@pytest.mark.parametrize("option", ["soft_positives=true", "w=0"])
def test_otherwise_every_view_is_mixed_with_a_partner_of_its_own(recipe, option):
    task = build_task(load_config(recipe, [*CONTRAST, f"regularizer.{option}"]), 1)
    labels = torch.stack([task.stages()[0].data[position, 0]["label"] for position in range(12)])
    assert (labels < 1).all(dim=-1).any(dim=0).all()
    assert not torch.equal(labels[:, 0], labels[:, 1])


def test_without_weight_it_is_plain_training_on_mixed_pictures(recipe, tmp_path):
    plain = trained(recipe, [*MIXED, "task.views=2", "engine.steps=2"], tmp_path / "plain")
    weightless = trained(recipe, [*CONTRAST, "engine.steps=2", "regularizer.w=0"], tmp_path / "weightless")
    for (name, one), other in zip(plain.task.state_dict().items(), weightless.task.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_the_contrastive_term_alone_leaves_the_head_without_gradient(recipe):
    task, batch = begun(recipe, [*CONTRAST, "task.head=linear", "regularizer.w=1"])
    with torch.no_grad():
        task.model.head.linear.weight.normal_()
    (task.training_step(batch)["loss"] + task.regularizer.extra_losses()["contrastive"]).backward()
    assert task.model.head.linear.weight.grad.abs().max() < 1e-6
    assert sum(p.grad.abs().sum() for p in task.model.backbone.parameters() if p.grad is not None) > 1e-4


@pytest.mark.parametrize(
    "overrides",
    [
        ["task.head=cosine", BA, "task.probe_steps=1"],
        [SEARCH],
        ["regularizer={type: supervised_contrastive, soft_positives: true}", "engine.precision=bf16"],
    ],
)
def test_every_other_part_takes_mixed_labels(recipe, tmp_path, overrides):
    engine = trained(recipe, [*MIXED, "task.augmentation=augmix", "engine.steps=2", *overrides], tmp_path)
    assert all(torch.isfinite(parameter).all() for parameter in engine.task.parameters())


UPPER = ["adapter={type: lora, r: 2, layers: '-1:', towers: [vision]}"]


def test_lower_blocks_see_a_picture_that_never_changes_once(recipe, tmp_path):
    engine = make(recipe, [*UPPER, "task.augmentation=none", "engine.steps=4"], tmp_path / "kept")
    lowest = engine.task.model.backbone.get_base_model().model.visual.transformer.resblocks[0]
    seen = []

    def count(module, inputs):
        if module.training:
            seen.append(len(inputs[0]))

    lowest.ln_1.register_forward_pre_hook(count)
    engine.fit()
    pictures = len(engine.task.train_images)
    assert pictures <= sum(seen) < 4 * engine.settings.batch_size


def test_kept_pictures_train_as_computed_ones_do(recipe, tmp_path, monkeypatch):
    given = [*UPPER, "task.augmentation=none", "engine.steps=4"]
    kept = trained(recipe, given, tmp_path / "kept").task.state_dict()
    monkeypatch.setattr("vision_lowrank.backbones.prefix_cache.MAX_BYTES", 0)
    computed = trained(recipe, given, tmp_path / "computed").task.state_dict()
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, computed[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("change", ["task.augmentation=basic", "task.mixup=1", "task.views=2"])
def test_pictures_that_change_are_not_kept(recipe, change):
    task, _ = begun(recipe, [*UPPER, "task.augmentation=none", change])
    assert task._pictures is None
