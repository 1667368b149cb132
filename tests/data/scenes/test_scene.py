"""Scenes: the same whenever and in whatever order they are read, and boxes and masks true to what a frame shows."""

from dataclasses import replace

import numpy as np
import pytest

from vision_lowrank.data.emoji_scenes import EmojiScenesConfig, emoji_scenes
from vision_lowrank.data.scenes import scene as scenes
from vision_lowrank.data.scenes.cast import SceneSettings
from vision_lowrank.data.scenes.motion import Poses
from vision_lowrank.data.scenes.pools import pools
from vision_lowrank.data.scenes.render import draw_layer
from vision_lowrank.data.scenes.scene import Scene, SceneClip
from vision_lowrank.data.scenes.textures import emoji_texture

SMALL = SceneSettings(size=(160, 120), frames=12, target_sizes=(16.0, 50.0))


@pytest.fixture(scope="module")
def pool():
    return pools(None)["train"]


def bounds(mask):
    rows, columns = np.nonzero(mask)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def plain(scene):
    """The same scene without what a lens and a sensor add, so that colours say which object a pixel shows."""
    scene._light, scene._defocus = np.ones_like(scene._light), np.zeros(len(scene))
    scene._shutter, scene._noise = 0.0, 0
    return scene


@pytest.mark.parametrize("number", range(4))
def test_frames_do_not_depend_on_what_was_read_before(pool, number):
    one, other = (Scene(pool, SMALL, (1, 0, number)) for _ in range(2))
    backwards = {index: other.frame(index) for index in (11, 0, 5)}
    forwards = [one.frame(index) for index in range(12)]
    assert forwards[0].shape == (120, 160, 3)
    assert forwards[0].dtype == np.uint8
    for index, frame in backwards.items():
        assert np.array_equal(frame, forwards[index])
        assert np.array_equal(one.masks(index), other.masks(index))
        assert one.boxes(index) == other.boxes(index)
    assert not np.array_equal(forwards[0], forwards[5])


def test_other_numbers_and_seeds_are_other_scenes(pool):
    frames = [Scene(pool, SMALL, seed).frame(3) for seed in ((1, 0, 0), (1, 0, 1), (2, 0, 0), (1, 1, 0))]
    assert len({frame.tobytes() for frame in frames}) == 4


def test_frames_outside_of_a_scene_are_refused(pool):
    scene = Scene(pool, SMALL, (1, 0, 0))
    for index in (-1, 12):
        with pytest.raises(IndexError, match=f"frame {index} of a scene of 12"):
            scene.frame(index)


def test_boxes_are_tight_about_masks_that_do_not_overlap(pool):
    for number in range(12):
        view = Scene(pool, SMALL, (1, 0, number)).view(number)
        assert view.masks.shape == (len(view.numbers), 120, 160)
        assert view.masks.dtype == bool
        assert view.masks.sum(axis=0).max() <= 1
        assert list(view.numbers) == sorted(set(view.numbers))
        assert view.boxes.size == (160, 120)
        for mask, box, label, index in zip(view.masks, view.boxes, view.boxes.labels, view.numbers, strict=True):
            assert tuple(box) == bounds(mask)
            assert label == view.scene.actors[index].label


@pytest.mark.parametrize("number", range(6))
def test_masks_are_what_the_frame_shows(pool, number):
    """Inside a mask the frame is the object, outside of all it is the background, drawn again without objects."""
    scene = plain(Scene(pool, SMALL, (3, 0, number)))
    view = scene.view(6)
    bare = plain(Scene(pool, SMALL, (3, 0, number)))
    bare._order = []
    away = ~view.masks.any(axis=0)
    for axis in (0, 1):  # two pixels from an outline nothing of its soft edge is left
        away &= np.roll(away, 1, axis) & np.roll(away, -1, axis)
        away &= np.roll(away, 1, axis) & np.roll(away, -1, axis)
    background = bare.frame(6)
    assert away.mean() > 0.2
    assert np.array_equal(view.frame[away], background[away])
    for mask, index in zip(view.masks, view.numbers, strict=True):
        layer = view._layer(int(index))
        there, own = layer.inside(scene.size)
        opaque = (layer.patch[own][..., 3] == 255) & mask[there]
        in_front = scene._order[scene._order.index(int(index)) + 1 :]
        for other in in_front:  # soft edges of what is before it
            rows, columns = view._layer(other).inside(scene.size)[0]
            cover = np.zeros(mask.shape, bool)
            cover[rows, columns] = True
            opaque &= ~cover[there]
        assert np.array_equal(view.frame[there][opaque], layer.patch[own][opaque][:, :3])


def test_the_box_of_a_target_is_that_of_all_of_it_hidden_or_not(pool):
    hidden = 0
    for number in range(40):
        scene = Scene(pool, SMALL, (1, 0, number))
        for index in (4, 8):
            view = scene.view(index)
            alone = Scene(pool, SMALL, (1, 0, number))
            alone._order = [0]
            whole = alone.view(index)
            if not len(whole.boxes):
                assert np.isnan(view.target_box).all()
                assert view.target_seen == 0
                continue
            assert np.array_equal(view.target_box, whole.boxes.xywh[0])
            seen = view.masks[list(view.numbers).index(0)].sum() if 0 in view.numbers else 0
            assert seen <= whole.masks[0].sum()
            assert view.target_seen == pytest.approx(seen / view._layer(0).solid.sum())
            hidden += seen < whole.masks[0].sum()
    assert hidden >= 5


def test_the_target_is_seen_in_the_first_frame(pool):
    assert min(Scene(pool, SceneSettings(), (5, 0, number)).view(0).target_seen for number in range(60)) >= 0.9


def test_about_three_clips_of_ten_have_a_twin(pool):
    roles = [[actor.role for actor in Scene(pool, SMALL, (1, 0, number)).actors] for number in range(300)]
    assert 0.2 < np.mean(["twin" in each for each in roles]) < 0.4
    assert all(each[0] == "target" and each.count("target") == 1 for each in roles)
    long = [Scene(pool, replace(SMALL, frames=60), (1, 0, number)).actors for number in range(100)]
    assert 0.3 < np.mean([any(actor.role == "occluder" for actor in each) for each in long]) < 0.6
    never = [Scene(pool, replace(SMALL, twins=0.0), (1, 0, number)) for number in range(60)]
    assert not any("twin" in scene.attributes for scene in never)


def test_a_twin_looks_exactly_like_its_target(pool):
    scene = next(scene for number in range(50) if "twin" in (scene := Scene(pool, SMALL, (1, 0, number))).attributes)
    twin = next(number for number, actor in enumerate(scene.actors) if actor.role == "twin")
    assert scene.actors[twin].look is scene.actors[0].look
    assert scene._texture(twin) is scene._texture(0)
    assert scene.actors[twin].label == scene.actors[0].label
    assert "distractor" in scene.attributes


def test_a_clip_says_where_its_target_is_and_when_it_is_seen(pool):
    clip = SceneClip("a", pool, SMALL, (1, 0, 2))
    assert (clip.name, clip.size, len(clip)) == ("a", (160, 120), 12)
    assert clip.boxes.shape == (12, 4)
    assert clip.boxes.dtype == np.float64
    assert clip.visible.shape == (12,)
    assert clip.visible.dtype == bool
    assert np.array_equal(clip.frame(7), clip.scene.frame(7))
    assert np.array_equal(clip.boxes[7], clip.scene.view(7).target_box)


def test_a_hidden_target_is_not_visible_but_has_its_box(pool):
    """An object laid exactly over the target hides it; moved far away it has no box at all."""
    clip = SceneClip("a", pool, SMALL, (1, 0, 2))
    scene = clip.scene
    target = scene.actors[0]
    away = np.array([10_000.0, 0])
    scene.actors = (replace(target, places=target.places + away * (np.arange(12) == 3)[:, None]), target)
    scene._order = [0, 1]
    assert not clip.visible.any()
    assert np.isnan(clip.boxes[3]).all()
    assert np.isfinite(np.delete(clip.boxes, 3, axis=0)).all()


def test_nothing_is_read_or_drawn_before_a_frame_is_asked_for(pool, monkeypatch):
    monkeypatch.setattr(type(pool), "photograph", lambda *_: pytest.fail("read"))
    monkeypatch.setattr(scenes, "draw_layer", lambda *_: pytest.fail("drawn"))
    scene = Scene(pool, SMALL, (1, 0, 0))
    scene.view(3)
    assert isinstance(scene.attributes, tuple)


def test_of_photographs_alone_nothing_is_an_emoji(pool):
    for kind, count in (("photograph", 1), ("emoji", 8)):
        settings = replace(SMALL, objects=(kind,), styles=("noto",))
        actors = [actor for number in range(30) for actor in Scene(pool, settings, (1, 0, number)).actors]
        names = {actor.look.name.split("/")[0] for actor in actors if actor.role != "occluder"}
        assert names == {"noto" if kind == "emoji" else "photograph"}
        assert len({actor.label for actor in actors if actor.role == "target"}) <= count


def test_an_object_that_is_not_turned_is_its_own_picture():
    """Drawn at its own size without tilt or bend, an emoji is its atlas tile, pixel for pixel but for rounding."""
    texture = emoji_texture("fluent", "1f600")
    width, height = texture.extent
    still = Poses(np.full(1, (width * height) ** 0.5 * 0.999999), np.zeros((1, 3)), np.zeros(2), np.zeros((2, 3)))
    layer = draw_layer(texture, np.array([50 + width / 2, 40 + height / 2]), still, 0)
    own = np.asarray(texture.level(0.9)[0])[8:-8, 8:-8]
    left, top = 50 - layer.left, 40 - layer.top
    drawn = layer.patch[top : top + height, left : left + width]
    assert np.abs(drawn.astype(int) - own).max() <= 1


def test_premultiplied_colours_are_never_brighter_than_their_alpha(pool):
    """Else bright fringes would show along outlines."""
    for number in range(10):
        view = Scene(pool, SMALL, (1, 0, number)).view(5)
        for index in range(len(view.scene.actors)):
            patch = view._layer(index).patch.astype(int)
            assert (patch[..., :3] <= patch[..., 3:] + 1).all()


def test_the_data_set_is_the_same_every_time_and_another_with_another_seed():
    config = EmojiScenesConfig(size=(96, 64), frames=4, test_clips=3, train_clips=5)
    one, other = emoji_scenes(config), emoji_scenes(config)
    assert one.tests["emoji_scenes"].hash == other.tests["emoji_scenes"].hash
    assert one.tests["emoji_scenes"].hash != one.val.hash
    assert np.array_equal(one.val[1].frame(2), other.val[1].frame(2))
    seeded = emoji_scenes(config.model_copy(update={"seed": 2}))
    assert seeded.val.hash != one.val.hash
    assert not np.array_equal(seeded.val[1].frame(2), one.val[1].frame(2))
