import math

import pytest
import torch

import vision_lowrank as vl
from vision_lowrank.config import validate
from vision_lowrank.data.emoji_captions import EmojiCaptionsConfig, emoji_captions
from vision_lowrank.errors import UserError
from vision_lowrank.studies.run import build_task
from vision_lowrank.tasks.pretraining.clip import CaptionedImages, contrastive_loss, drop_patches


def unit(*shape):
    x = torch.randn(*shape, dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True)


def test_loss_with_one_true_caption_each_is_clips():
    images, texts, scale = unit(6, 4), unit(6, 4), torch.tensor(5.0, dtype=torch.float64)
    logits = scale * images @ texts.T
    rows = -logits.log_softmax(1).diagonal().mean()
    columns = -logits.log_softmax(0).diagonal().mean()
    loss = contrastive_loss(images, texts, scale, torch.eye(6, dtype=torch.float64))
    assert loss.item() == pytest.approx(((rows + columns) / 2).item(), abs=1e-12)


def test_loss_with_several_true_captions_by_hand():
    images, texts, scale = unit(3, 4), unit(3, 4), torch.tensor(2.0, dtype=torch.float64)
    positives = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    p, q = (2 * images @ texts.T).softmax(1), (2 * images @ texts.T).softmax(0)
    rows = [-(p[0, 0].log() + p[0, 1].log()) / 2, -p[1, 1].log(), -p[2, 2].log()]
    columns = [-q[0, 0].log(), -(q[0, 1].log() + q[1, 1].log()) / 2, -q[2, 2].log()]
    expected = (sum(rows) + sum(columns)) / 6
    assert contrastive_loss(images, texts, scale, positives).item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.fixture(scope="module")
def task():
    tree = {
        "backbone": {"name": "tiny-clip", "weights": "random"},
        "task": {"type": "pretrain_clip", "patch_dropout": 0.5},
        "data": {"type": "emoji_captions"},
    }
    return build_task(validate(tree), seed=1)


def test_untrained_loss_is_near_log_of_the_batch(task):
    data = task.stages()[0].data
    batch = torch.utils.data.default_collate([data[i, 10 * i] for i in range(64)])
    losses = task.train().training_step(batch)
    assert losses["loss"].item() == pytest.approx(math.log(64), abs=1.0)
    losses["loss"].backward()
    assert all(p.grad is not None for p in task.model.backbone.parameters())
    task.zero_grad()


def test_positives_are_all_true_captions(task):
    data = task.stages()[0].data
    texts = {number: text for text, number in data.numbers.items()}
    sample = data[5, 3]
    assert {texts[int(n)] for n in sample["true_captions"] if n >= 0} == set(data.captions[3])
    assert texts[sample["caption"]] in data.captions[3]


def test_drawn_caption_depends_on_the_position_alone(task):
    data = task.stages()[0].data
    same = [data[7, 3]["caption"] for _ in range(3)]
    assert len(set(same)) == 1
    assert len({data[position, 3]["caption"] for position in range(30)}) == len(data.captions[3])


def test_every_parameter_is_in_exactly_one_group(task):
    groups = task.parameter_groups()
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in task.model.backbone.parameters())
    assert all(p.ndim >= 2 for p in groups[0]["params"])
    assert groups[1]["weight_decay"] == 0


def test_only_training_leaves_out_patches(task):
    seen = []
    block = task.model.backbone.get_submodule(task.model.backbone.towers["vision"].blocks[0])
    handle = block.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    for mode in (True, False):
        task.train(mode).model.backbone.encode_image(torch.randn(1, 3, 48, 48))
    handle.remove()
    assert seen == [1 + 18, 1 + 36]


def test_pretraining_uses_no_unseen_style():
    splits = emoji_captions(EmojiCaptionsConfig())
    assert {key.partition("/")[0] for key in splits.train.keys} == {"noto", "twemoji"}
    assert set(splits.tests) == {"noto", "twemoji", "openmoji", "fluent"}


def test_captions_are_needed():
    images = emoji_captions(EmojiCaptionsConfig()).tests["fluent"]
    bare = images.subset(range(3)).__class__(images.name, images.classes, (0,), ("fluent/1f600",), images.load)
    with pytest.raises(UserError, match="no captions"):
        CaptionedImages(bare, None, None, ("{}",), 0)


def test_patches_cannot_be_left_out_of_a_plain_vit():
    with pytest.raises(UserError, match="patch_dropout=0"):
        drop_patches(vl.load_backbone("timm:vit_tiny_patch16_224", "random", img_size=32), 0.5)
