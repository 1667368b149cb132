"""Two experiments beside LoRAT: several templates in a training sequence, and one that is cut anew while following."""

import json

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.config import load_config
from vision_lowrank.data.emoji_scenes import EmojiScenesConfig, emoji_scenes
from vision_lowrank.data.tracking.pair_crops import SearchJitter
from vision_lowrank.data.tracking.pairs import PairSource
from vision_lowrank.data.transforms import Preprocess
from vision_lowrank.inference.tracks import follow
from vision_lowrank.paths import shipped
from vision_lowrank.tasks.tracking import samples as own
from vision_lowrank.tasks.tracking.augment import Augmentation
from vision_lowrank.tasks.tracking.config import TrackingConfig
from vision_lowrank.tasks.tracking.cropping import Cropping
from vision_lowrank.tasks.tracking.head import Found
from vision_lowrank.tasks.tracking.model import TrackingModel
from vision_lowrank.tasks.tracking.online import Following, TemplateUpdate
from vision_lowrank.tasks.tracking.samples import PairSamples, corners
from vision_lowrank.tasks.tracking.task import Tracking

SMALL = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 64}
CROPS = Cropping(32, 16, 4.0, 2.0)
BOX = (30.0, 20.0, 20.0, 16.0)


def tracker(update=None):
    torch.manual_seed(0)
    return TrackingModel(load_backbone("timm:vit_tiny_patch16_224", "random", **SMALL), CROPS, Following(update)).eval()


@pytest.fixture(scope="module")
def scenes():
    return emoji_scenes(EmojiScenesConfig(frames=7, size=(96, 72), train_clips=3, test_clips=1))


@pytest.fixture
def clip(scenes):
    return scenes.tests["emoji_scenes"][0]


# --- several templates -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_templates_stand_one_after_another_before_the_search_crop():
    model = tracker()
    z, x, mask = torch.randn(2, 3, 3, 16, 16), torch.randn(2, 3, 32, 32), torch.rand(2, 3, 2, 2) < 0.5
    found = model(z, x, mask)
    for row in range(2):
        each = [model.embedding.template_tokens(model.trunk, z[row, t, None], mask[row, t, None]) for t in range(3)]
        tokens = torch.cat([*each, model.embedding.search_tokens(model.trunk, x[row, None])], dim=1)
        for block in model.trunk.blocks:
            tokens = block(tokens)
        expected = model.head(model.trunk.norm(tokens)[:, 3 * 4 :])
        torch.testing.assert_close(found.logits[row, None], expected.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.boxes[row, None], expected.boxes, rtol=1e-4, atol=1e-5)
    one = model(z[:, :1], x, mask[:, :1])
    torch.testing.assert_close(one.logits, model(z[:, 0], x, mask[:, 0]).logits, rtol=1e-5, atol=1e-6)


def samples(scenes, **more):
    pairs = PairSource([scenes.train], gap=2)
    plain = Preprocess(96, (0, 0, 0), (1, 1, 1))
    return PairSamples(pairs, CROPS, ((4, 4), (2, 2)), plain, jitter=SearchJitter(4.0, (CROPS.search,) * 2, 2),
                       augmentation=Augmentation(), length=9, seed=1, **more)  # fmt: skip


def test_further_templates_are_of_frames_near_the_search_crops(scenes, monkeypatch):
    monkeypatch.setattr(own, "augment_pair", lambda z, x, mask, box, generator, how: (z, x, mask, box))
    several, one = samples(scenes, templates=3), samples(scenes)
    for number in range(6):
        found, plain = several[number, 0], one[number, 0]
        assert found["z"].shape == (3, 3, 16, 16)
        assert found["mask"].shape == (3, 2, 2)
        assert torch.equal(found["z"][0], plain["z"])
        assert all(torch.equal(found[name], plain[name]) for name in ("x", "box", "positives"))
        clip, _, second = several.pairs.draw(1, number)
        near = [index for index in range(max(0, second - 2), min(7, second + 3)) if index != second]
        cut = [CROPS.cut_template(clip.frame(i), corners(clip.box(i)), (2, 2))[0] / 255 for i in near]
        for further in found["z"][1:]:
            assert any(torch.allclose(further, crop, atol=1e-5) for crop in cut)


def test_a_training_step_with_several_templates(scenes):
    data = {"type": "emoji_scenes", "frames": 4, "size": [96, 72], "train_clips": 2, "test_clips": 1}
    sides = ["task.search_size=32", "task.template_size=16", "task.templates=2", "task.update_after=3"]
    recipe = shipped("configs") / "tracking" / "scenes_lora.yaml"
    task = Tracking(load_config(recipe, [f"data={json.dumps(data)}", "backbone.weights=random", *sides]), seed=1)
    assert task.model.following == Following(TemplateUpdate(3, 0.6))
    (stage,) = task.stages()
    batch = default_collate([stage.data[number, 0] for number in range(2)])
    assert batch["z"].shape == (2, 2, 3, 16, 16)
    loss = task.training_step(batch)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert task.model.embedding.types.grad.any()


# --- the template that is cut anew -----------------------------------------------------------------------------------


def says(model, scores):
    """Let the network say these scores, one a frame, and the middle of the crop; returns what it is given."""
    given, left = [], list(scores)

    def find(template, x):
        given.append(template)
        logit = torch.logit(torch.tensor(left.pop(0)))
        return Found(
            torch.full((len(x), 4, 4), float(logit)), torch.tensor([0.4, 0.4, 0.6, 0.6]).expand(len(x), 4, 4, 4)
        )

    model.find = find
    return given


def test_without_it_there_is_one_template(clip, tmp_path):
    assert TrackingConfig().following == Following()
    model = tracker()
    given = says(model, [0.9] * 6)
    target = model.start(clip.frame(0), BOX)
    for index in range(1, 7):
        model.track_many(clip.frame(index), [target])
    assert all(tokens is target.tokens or torch.equal(tokens, target.tokens) for tokens in given)
    assert target.recent is None
    tracker().save(tmp_path / "artefact", {})
    assert "following" not in json.loads((tmp_path / "artefact" / "artefact.json").read_text())


def test_the_second_template_is_cut_after_sure_frames_in_a_row(clip):
    """Against a plain count: sure, sure -> cut; unsure; sure, sure -> cut; sure."""
    model, scores = tracker(TemplateUpdate(2, 0.5)), [0.9, 0.5001, 0.2, 0.9, 0.8, 0.9]
    given = says(model, scores)
    target = model.start(clip.frame(0), BOX)
    first, second, boxes = target.tokens, target.tokens, []
    for index in range(1, 7):
        model.track_many(clip.frame(index), [target])
        boxes.append(target.box)
        assert torch.equal(given[-1], torch.cat([first, second], dim=1))
        if index in (2, 5):
            left, top, right, bottom = target.box
            second = model.start(clip.frame(index), (left, top, right - left, bottom - top)).tokens
            assert not torch.equal(second, first)
            assert torch.equal(target.recent, second)
    assert target.sure == 1
    assert torch.equal(target.tokens, first)


def test_targets_with_and_without_a_second_template_share_a_batch(clip):
    model = tracker(TemplateUpdate(1, 0.0))
    early = model.start(clip.frame(0), BOX)
    model.track_many(clip.frame(1), [early])
    late = model.start(clip.frame(1), (5, 5, 12, 12))
    assert len(model.track_many(clip.frame(2), [early, late])) == 2
    assert early.recent is not None
    assert late.recent is not None


def test_an_artefact_follows_with_its_update(clip, tmp_path):
    model = tracker(TemplateUpdate(2, 0.1))
    model.save(tmp_path / "artefact", {})
    again = TrackingModel.load(tmp_path / "artefact")
    assert again.following == model.following
    assert again.identity == model.identity != tracker().identity
    for each in (model, again):
        each.init(clip.frame(0), BOX)
    for index in range(1, 7):
        assert np.array_equal(model.track(clip.frame(index)).box, again.track(clip.frame(index)).box)


def test_what_is_gone_on_with_has_the_same_templates(clip):
    frames, model = [clip.frame(index) for index in range(7)], tracker(TemplateUpdate(2, 0.0))
    whole = [row for _, row in follow(model, frames, [BOX])]
    for done in (2, 3, 5):
        again = [row for _, row in follow(model, frames, [BOX], done=whole[:done])]
        assert [row.boxes.tolist() for row in again] == [row.boxes.tolist() for row in whole]
        assert [row.scores.tolist() for row in again] == [row.scores.tolist() for row in whole]
