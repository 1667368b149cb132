"""The interface of the ``got10k`` package, called as the code of its experiments (0.1.3) calls it."""

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.data.emoji_scenes import EmojiScenesConfig, emoji_scenes
from vision_lowrank.errors import UserError
from vision_lowrank.tasks.tracking.cropping import Cropping
from vision_lowrank.tasks.tracking.follow import follow_clips
from vision_lowrank.tasks.tracking.got10k import Got10kTracker
from vision_lowrank.tasks.tracking.model import TrackingModel

SMALL = {"patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3, "img_size": 64}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    backbone = load_backbone("timm:vit_tiny_patch16_224", "random", **SMALL)
    return TrackingModel(backbone, Cropping(32, 16, 4.0, 2.0)).eval()


@pytest.fixture(scope="module")
def clip():
    return emoji_scenes(EmojiScenesConfig(test_clips=1, frames=5, size=(96, 72))).tests["emoji_scenes"][0]


@pytest.fixture(scope="module")
def files(clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("got10k")
    paths = [str(folder / f"{number:08d}.png") for number in range(1, len(clip) + 1)]
    for number, path in enumerate(paths):
        Image.fromarray(clip.frame(number)).save(path)
    return paths


def test_one_pass_as_ExperimentGOT10k_and_ExperimentOTB_run_it(model, clip, files):
    tracker, anno = Got10kTracker(model, name="ours"), clip.boxes
    assert tracker.name == "ours"
    assert tracker.is_deterministic
    boxes, times = tracker.track(files, anno[0, :], visualize=False)
    assert len(boxes) == len(anno) == len(times)
    np.testing.assert_array_equal(boxes[0], anno[0])
    np.testing.assert_array_equal(boxes, follow_clips(model, [clip])[0])
    assert (times > 0).all()


def test_frames_one_by_one_as_ExperimentVOT_gives_them(model, clip, files):
    """Files or pictures, opened and not yet read; started again in the middle."""
    tracker, whole = Got10kTracker(model), Got10kTracker(model)
    expected, _ = whole.track(files, clip.boxes[0])
    again, _ = whole.track(files[2:], clip.boxes[2])
    for given in (files, [Image.open(path) for path in files]):
        tracker.init(given[0], clip.boxes[0])
        box = tracker.update(given[1])
        assert box.shape == (4,)
        assert np.array_equal(box, expected[1])
        tracker.init(given[2], clip.boxes[2])
        assert np.array_equal(tracker.update(given[3]), again[1])


def test_two_share_a_model_without_a_word(model, clip, files):
    one, other = Got10kTracker(model, "one"), Got10kTracker(model, "other")
    one.init(files[0], clip.boxes[0])
    other.init(files[0], (1, 1, 9, 9))
    model.init(clip.frame(0), (40, 30, 20, 20))
    assert np.array_equal(one.update(files[1]), Got10kTracker(model).track(files[:2], clip.boxes[0])[0][1])


def test_grey_pictures_are_followed(model, clip, files, tmp_path):
    """The package at its head gives pictures in the mode that they were opened in."""
    tracker = Got10kTracker(model)
    for number, path in enumerate(files):
        grey = Image.open(path).convert("L")
        grey.save(tmp_path / f"{number}.png")
        box = tracker.init(grey, clip.boxes[0]) if number == 0 else tracker.update(grey)
    boxes, _ = tracker.track([tmp_path / f"{number}.png" for number in range(len(files))], clip.boxes[0])
    assert np.array_equal(boxes[-1], box)


def test_pictures_are_shown_by_the_package(model, clip, files, monkeypatch):
    shown = []
    viz = types.ModuleType("got10k.utils.viz")
    viz.show_frame = lambda image, boxes=None: shown.append((image.size, tuple(boxes)))
    for name, module in {"got10k": None, "got10k.utils": None, "got10k.utils.viz": viz}.items():
        monkeypatch.setitem(sys.modules, name, module or types.ModuleType(name))
    boxes, _ = Got10kTracker(model).track(files[:3], clip.boxes[0], visualize=True)
    assert shown == [((96, 72), tuple(box)) for box in boxes]


def test_an_update_without_a_beginning_is_said(model, files):
    with pytest.raises(UserError, match="call init"):
        Got10kTracker(model).update(files[0])
