"""The online loop with a network that knows the answer, and with one that knows nothing."""

import copy

import numpy as np
import pytest
import torch

import vision_lowrank as vl
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.errors import UserError
from vision_lowrank.tasks.tracking.cropping import Cropping
from vision_lowrank.tasks.tracking.head import Found
from vision_lowrank.tasks.tracking.model import TrackingModel
from vision_lowrank.tasks.tracking.online import WINDOW, Following, hann_window, voted

SMALL = {"patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3, "img_size": 64}
CROPS = Cropping(search=64, template=32, search_factor=4.0, template_factor=2.0)
SIDE = 200
COLOUR = np.array([250, 10, 20], dtype=np.uint8)


def tracker():
    torch.manual_seed(0)
    return TrackingModel(load_backbone("timm:vit_tiny_patch16_224", "random", **SMALL), CROPS).eval()


class Oracle(TrackingModel):
    """Finds the one red rectangle of a search crop and says its box in the cell of its middle."""

    def find(self, template, x):
        logits, boxes = torch.full((len(x), 8, 8), -9.0), torch.zeros(len(x), 8, 8, 4)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.preprocess.mean, self.preprocess.std))
        for row, crop in enumerate(x):
            pixels = crop * std + mean
            red = (pixels[0] - pixels[1] - pixels[2]).clamp(min=0)
            share = red / red.max()
            ys, xs = torch.where(share > 0.5)
            box = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / 64
            middle = (box[:2] + box[2:]) / 2
            i, j = int(middle[1] * 8), int(middle[0] * 8)
            logits[row, i, j], boxes[row, i, j] = 5.0, box
        return Found(logits, boxes)


def frames(count, sides=(40, 30)):
    """A red rectangle that moves along a curve."""
    for t in range(count):
        x, y = 80 + 60 * np.sin(t / 9), 90 + 50 * np.cos(t / 13)
        box = np.round([x, y, x + sides[0], y + sides[1]]).astype(int)
        frame = np.full((SIDE + 40, SIDE + 60, 3), 60, dtype=np.uint8)
        frame[box[1] : box[3], box[0] : box[2]] = COLOUR
        yield frame, np.array([box[0], box[1], *sides], dtype=float)


def test_a_network_that_knows_the_box_is_followed_to_a_pixel_or_two():
    torch.manual_seed(0)
    model = Oracle(load_backbone("timm:vit_tiny_patch16_224", "random", **SMALL), CROPS).eval()
    errors = []
    for number, (frame, box) in enumerate(frames(100)):
        if number == 0:
            model.init(frame, box)
            continue
        found = model.track(frame)
        errors.append(np.abs(found.box - box).max())
        assert found.score == pytest.approx(1 / (1 + np.exp(-5)), abs=1e-6)
    # A pixel of the search crop is two or three of the frame: the crop is 64 pixels wide and shows about 140.
    assert max(errors) <= 140 / 64 + 1


def test_where_scores_are_equal_the_middle_is_taken():
    model = tracker()
    flat = Found(torch.zeros(1, 8, 8), torch.arange(64.0).view(1, 8, 8, 1).expand(1, 8, 8, 4) / 64)
    model.find = lambda template, x: flat
    frame = np.full((100, 100, 3), 9, dtype=np.uint8)
    target = model.start(frame, (40, 40, 20, 20))
    window = hann_window((8, 8))
    assert window[0].abs().max() < 1e-6
    assert window.shape == (8, 8)
    middle = window.flatten().argmax()
    assert int(middle) in (27, 28, 35, 36)
    assert WINDOW == 0.45
    found = model.track_many(frame, [target])[0]
    assert found.score == 0.5


def test_the_state_stays_where_an_answer_has_no_area():
    model = tracker()
    frame = np.full((100, 100, 3), 9, dtype=np.uint8)
    target = model.start(frame, (40, 40, 20, 20))
    nothing = torch.tensor([2.0, 2.0, 3.0, 3.0]).expand(1, 8, 8, 4)  # beyond the crop and the frame
    model.find = lambda template, x: Found(torch.zeros(1, 8, 8), nothing)
    found = model.track_many(frame, [target])[0]
    assert np.array_equal(target.box, [40, 40, 60, 60])
    assert (found.box[2:] >= 0).all()
    model.find = lambda template, x: Found(torch.zeros(1, 8, 8), torch.full((1, 8, 8, 4), float("nan")))
    found = model.track_many(frame, [target])[0]
    assert np.array_equal(found.box, [40, 40, 20, 20])


def test_a_size_rate_takes_a_share_of_each_change_of_size(tmp_path):
    model = tracker()
    frame = np.full((100, 100, 3), 9, dtype=np.uint8)
    quarter = torch.tensor([0.25, 0.375, 0.75, 0.625]).expand(1, 8, 8, 4)  # of the crop: twice as wide as high
    answers = {}
    for rate in (1.0, 0.25):
        target, model.following = model.start(frame, (40, 40, 20, 20)), Following(size_rate=rate)
        model.find = lambda template, x: Found(torch.zeros(1, 8, 8), quarter)
        answers[rate] = model.track_many(frame, [target])[0].box
        assert np.array_equal(target.box[2:] - target.box[:2], answers[rate][2:])
    at_once, slowly = answers[1.0], answers[0.25]
    assert slowly[2:] == pytest.approx(20**0.75 * at_once[2:] ** 0.25)
    assert slowly[:2] + slowly[2:] / 2 == pytest.approx(at_once[:2] + at_once[2:] / 2)
    saved = tracker()
    plain, saved.following = saved.identity, Following(size_rate=0.25, vote_iou=0.3)
    saved.save(tmp_path / "artefact", {})
    again = TrackingModel.load(tmp_path / "artefact")
    assert (again.following, again.identity) == (saved.following, saved.identity)
    assert saved.identity != plain


def test_boxes_that_agree_with_the_best_one_are_averaged():
    """Against a plain loop in float64; where none agrees, or the least overlap is 1, the best one is the answer."""
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(2, 30, 2, generator=generator, dtype=torch.float64) * 0.3
    boxes = torch.cat([corners, corners + 0.2 + 0.3 * torch.rand(2, 30, 2, generator=generator).double()], dim=-1)
    scores, best = torch.rand(2, 30, generator=generator, dtype=torch.float64), torch.tensor([4, 17])
    boxes[0, 9] = float("nan")  # of a cell that agrees with none
    found = voted(boxes, scores, best, 0.3)
    for box, p, chosen, answer in zip(boxes.tolist(), scores.tolist(), best.tolist(), found.numpy(), strict=True):
        agree = [i for i, each in enumerate(box) if overlap(each, box[chosen]) >= 0.3]
        assert 2 < len(agree) < 30
        expected = sum(p[i] ** 2 * np.array(box[i]) for i in agree) / sum(p[i] ** 2 for i in agree)
        np.testing.assert_allclose(answer, expected, rtol=1e-12)
    alone = boxes[[0, 1], best]
    assert torch.equal(voted(boxes, scores, best, 1.0), alone)
    apart = torch.arange(5.0).repeat(4, 1).T[None] + torch.tensor([0, 0, 0.5, 0.5])
    assert torch.equal(voted(apart, torch.zeros(1, 5), torch.tensor([2]), 0.1), apart[:, 2])


def overlap(one, other):
    wide = max(0, min(one[2], other[2]) - max(one[0], other[0]))
    both = wide * max(0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return both / (sum(areas) - both + 1e-6)


def test_the_vote_reaches_the_answer():
    model = tracker()
    frame, cells = np.full((100, 100, 3), 9, dtype=np.uint8), torch.zeros(1, 8, 8, 4)
    cells[..., 2:] = 0.1  # elsewhere than the two
    cells[0, 3, 3], cells[0, 3, 4] = torch.tensor([0.4, 0.4, 0.6, 0.6]), torch.tensor([0.4, 0.4, 0.6, 0.7])
    logits = torch.full((1, 8, 8), -20.0)
    logits[0, 3, 3], logits[0, 3, 4] = 2.0, 1.0
    model.find = lambda template, x: Found(logits, cells)
    sides = {}
    for least in (1.0, 0.5):
        model.following = Following(vote_iou=least)
        sides[least] = model.track_many(frame, [model.start(frame, (40, 40, 20, 20))])[0].box[2:]
    high, low = (torch.tensor([2.0, 1.0]).sigmoid() ** 2).tolist()
    ratio = (0.2 * high + 0.3 * low) / (high + low) / 0.2
    assert sides[0.5] / sides[1.0] == pytest.approx([1, ratio], abs=1e-6)


def test_one_tracker_on_two_videos_is_two_trackers():
    model, other = tracker(), tracker()
    first, second = list(frames(5)), list(frames(5, (24, 50)))[::-1]
    answers = []
    for video in (first, second):
        model.init(*video[0])
        answers.append([model.track(frame).box for frame, _ in video[1:]])
    other.init(*second[0])
    assert np.array_equal(answers[1], [other.track(frame).box for frame, _ in second[1:]])


def test_several_targets_in_one_batch_are_each_alone():
    model = tracker()
    video = list(frames(4))
    boxes = [(80.0, 140.0, 40.0, 30.0), (10.0, 20.0, 33.0, 21.0)]
    together = [model.start(video[0][0], box) for box in boxes]
    alone = [model.start(video[0][0], box) for box in boxes]
    for frame, _ in video[1:]:
        found = model.track_many(frame, together)
        for each, target in zip(found, alone, strict=True):
            np.testing.assert_allclose(each.box, model.track_many([frame], [target])[0].box, rtol=0, atol=1e-3)


def test_colour_order_is_said():
    model = tracker()
    video = list(frames(2))
    model.init(*video[0])
    rgb = model.track(video[1][0])
    model.init(video[0][0][..., ::-1], video[0][1], color="bgr")
    assert np.array_equal(model.track(video[1][0][..., ::-1], color="bgr").box, rgb.box)


def test_what_follows_is_in_evaluation_mode():
    model, video = tracker(), list(frames(3))
    model.train()
    model.init(*video[0])
    assert not any(part.training for part in model.modules())
    model.train()
    model.track(video[1][0])
    assert not any(part.training for part in model.modules())


def test_what_cannot_be_followed_is_said():
    model = tracker()
    frame = np.zeros((50, 60, 3), dtype=np.uint8)
    with pytest.raises(UserError, match="call init"):
        model.track(frame)
    with pytest.raises(UserError, match=r"box 70,10,5,5 \(xywh\) lies outside the frame of 60 x 50 pixels"):
        model.init(frame, (70, 10, 5, 5))
    with pytest.raises(UserError, match=r"box 20,20,10,10 \(xyxy\) has no size"):
        model.init(frame, (20, 20, 10, 10), fmt="xyxy")
    with pytest.raises(UserError, match="not four finite numbers"):
        model.init(frame, (1, 2, float("nan"), 3))
    with pytest.raises(UserError, match=r"unknown box format 'xyhw'. Did you mean"):
        model.init(frame, (1, 2, 3, 3), fmt="xyhw")
    with pytest.raises(UserError, match="unknown colour order 'grb'"):
        model.init(frame, (1, 2, 30, 30), color="grb")


def test_an_artefact_follows_as_its_tracker_did(tmp_path):
    model = tracker()
    model.save(tmp_path / "artefact", {})
    again = TrackingModel.load(tmp_path / "artefact")
    video = list(frames(4))
    for each in (model, again):
        each.init(*video[0])
    for frame, _ in video[1:]:
        one, other = model.track(frame), again.track(frame)
        assert np.array_equal(one.box, other.box)
        assert one.score == other.score


def test_a_loaded_tracker_costs_what_its_bare_trunk_costs(tmp_path):
    """Its adapter is in the weights: the same kinds of modules as in a trunk that never had one, the same answers."""
    bare = tracker()
    config = vl.LoraConfig(r=2, alpha=2.0, scaling="lora")
    adapted = vl.attach(copy.deepcopy(bare.backbone), config, ("vision",), "all", "all")
    model = TrackingModel(adapted, CROPS).eval()
    with torch.no_grad():
        factors = [p for name, p in model.backbone.named_parameters() if "lora_B" in name]
        for parameter in (*factors, *bare.head.parameters()):
            parameter.normal_(std=0.3)
    model.parts.load_state_dict(bare.parts.state_dict())
    model.save(tmp_path / "artefact", {})
    again, attached = (TrackingModel.load(tmp_path / "artefact", attach=attach) for attach in (False, True))
    assert [type(part) for part in again.modules()] == [type(part) for part in bare.modules()]
    assert again.identity == attached.identity == model.identity
    inputs = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 64, 64), torch.rand(2, 4, 4) < 0.5
    with torch.no_grad():
        found, expected, without = (each(*inputs) for each in (again, model, bare))
    torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=0)
    assert (without.boxes - expected.boxes).abs().max() > 0.01
