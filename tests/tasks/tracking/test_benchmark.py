"""Result files: written clip by clip, gone on with, shared among processes, and scored whoever wrote them."""

import numpy as np
import pytest
import torch

from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.data.emoji_scenes import EmojiScenesConfig, emoji_scenes
from vision_lowrank.errors import DataError, UserError
from vision_lowrank.tasks.tracking.benchmark import result_folder, run_benchmark, score_benchmark
from vision_lowrank.tasks.tracking.cropping import Cropping
from vision_lowrank.tasks.tracking.follow import follow_clips, score_clips
from vision_lowrank.tasks.tracking.model import TrackingModel

SMALL = {"patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3, "img_size": 64}


@pytest.fixture(scope="module")
def clips():
    return emoji_scenes(EmojiScenesConfig(test_clips=3, frames=4, size=(96, 72))).tests["emoji_scenes"]


@pytest.fixture(scope="module")
def tracker():
    torch.manual_seed(0)
    backbone = load_backbone("timm:vit_tiny_patch16_224", "random", **SMALL)
    return TrackingModel(backbone, Cropping(32, 16, 4.0, 2.0)).eval()


def test_a_run_goes_on_where_it_stopped_and_parts_make_a_whole(tracker, clips, tmp_path):
    whole, parts = (result_folder(tmp_path / name, "pytracking", clips) for name in ("whole", "parts"))
    assert run_benchmark(tracker, clips, whole) == 3
    assert run_benchmark(tracker, clips, whole) == 0
    whole.path(clips[1].name).write_text("1\t2\t3\t4\n")  # as if it had stopped there
    assert run_benchmark(tracker, clips, whole) == 1
    for number in range(2):
        run_benchmark(tracker, clips, parts, part=(number, 2))
    for clip in clips.clips:
        assert whole.path(clip.name).read_text() == parts.path(clip.name).read_text()


def test_files_are_scored_as_the_engine_scores(tracker, clips, tmp_path):
    folder = result_folder(tmp_path, "got10k", clips)
    run_benchmark(tracker, clips, folder, repeats=2)
    assert folder.runs(clips[0].name) == [1, 2]
    scores, rate = score_benchmark(clips, folder)
    assert rate > 0
    inside = score_clips(clips, follow_clips(tracker, list(clips.clips)))
    assert scores.overall.values == pytest.approx(inside.overall.values, abs=2e-3)


def test_a_strangers_perfect_results(clips, tmp_path):
    for clip in clips.clips:
        np.savetxt(tmp_path / f"{clip.name}.txt", clip.boxes, delimiter=",")
    scores, rate = score_benchmark(clips, result_folder(tmp_path, "pytracking", clips))
    assert scores.overall.values["success_auc"] == pytest.approx(20 / 21, abs=1e-6)
    assert rate is None


def test_what_is_missing_is_said(clips, tmp_path):
    with pytest.raises(DataError, match=clips[0].name):
        score_benchmark(clips, result_folder(tmp_path, "pytracking", clips))
    with pytest.raises(UserError, match="unknown form of results 'txt'"):
        result_folder(tmp_path, "txt", clips)
