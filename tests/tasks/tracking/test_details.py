"""What an evaluation leaves for its report: scores of every set, and strips of clips chosen by a fixed rule."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from vision_lowrank.data.emoji_scenes import EmojiScenesConfig, emoji_scenes
from vision_lowrank.tasks.tracking.details import write_details
from vision_lowrank.tasks.tracking.follow import score_clips

ORANGE = np.array([0xE6, 0x9F, 0x00])


@pytest.fixture(scope="module")
def clips():
    return emoji_scenes(EmojiScenesConfig(test_clips=8, frames=7, size=(96, 72))).tests["emoji_scenes"]


def shifted(clips, by):
    """Boxes that are wrong by so many widths of the target."""
    return [clip.boxes + np.array([shift * clip.boxes[0, 2], 0, 0, 0]) for clip, shift in zip(clips, by, strict=True)]


def written(folder, clips, boxes):
    write_details(folder, {"scenes": clips}, {"scenes": score_clips(clips, boxes)}, {"scenes": boxes})
    return [json.loads((folder / name).read_text()) for name in ("details.json", "gallery.json")]


def test_scores_and_curves_of_every_set(clips, tmp_path):
    details, _ = written(tmp_path, clips, shifted(clips.clips, [0] * 8))
    found = details["sets"]["scenes"]
    assert found["convention"] == "pytracking-all"
    assert found["metrics"]["success_auc"] == pytest.approx(20 / 21)
    assert list(found["sequences"]) == [clip.name for clip in clips.clips]
    assert all(len(found["curves"][name]) == len(values) for name, values in found["thresholds"].items())


def test_best_middle_and_worst_by_success(clips, tmp_path):
    by = [0.5, 0.1, 0.9, 0.0, 0.3, 0.7, 0.2, 0.6]
    _, groups = written(tmp_path, clips, shifted(clips.clips, by))
    names = {group["title"]: [clip["name"] for clip in group["clips"]] for group in groups}
    order = [clips[int(index)].name for index in np.argsort(by)]
    assert names == {"best": order[:2], "middle": order[3:5], "worst": [order[7], order[6]]}
    success = [clip["success"] for group in groups for clip in group["clips"]]
    assert success[0] > success[2] > success[4]


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (2, [2]), (3, [2, 1]), (4, [2, 2]), (5, [2, 1, 2])])
def test_no_clip_is_shown_twice(clips, tmp_path, count, sizes):
    few = type(clips)(clips.name, clips.clips[:count])
    _, groups = written(tmp_path, few, shifted(few.clips, [0.1 * n for n in range(count)]))
    names = [clip["name"] for group in groups for clip in group["clips"]]
    assert len(set(names)) == len(names) == count
    assert [len(group["clips"]) for group in groups] == sizes


def test_a_strip_shows_first_and_last_frame_with_answer_and_truth(clips, tmp_path):
    _, groups = written(tmp_path, clips, shifted(clips.clips, [0.5] * 8))
    kind, data = groups[0]["clips"][0]["image"].split(",")
    assert kind == "data:image/jpeg;base64"
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int)
    assert strip.shape[1] == 6 * 150
    for part in np.split(strip, 6, axis=1):
        assert (np.abs(part - ORANGE).sum(axis=2) < 90).sum() > 10


def test_what_has_no_score_is_written_as_nothing(clips, tmp_path):
    scores = score_clips(clips, shifted(clips.clips, [0] * 8))
    scores.sequences[clips[2].name].values["success_auc"] = float("nan")
    write_details(tmp_path, {"scenes": clips}, {"scenes": scores}, {"scenes": [clip.boxes for clip in clips.clips]})
    groups = json.loads((tmp_path / "gallery.json").read_text(), parse_constant=pytest.fail)
    assert [clip["name"] for clip in groups[2]["clips"] if clip["success"] is None] == [clips[2].name]
