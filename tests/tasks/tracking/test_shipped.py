"""The tracker that ships works at once, and its card says what was measured."""

import json
import re

import pytest
import torch

import vision_lowrank as vl
from vision_lowrank.cli.main import main
from vision_lowrank.data.emoji_scenes import EmojiScenesConfig, emoji_scenes
from vision_lowrank.data.videos import VideoWriter
from vision_lowrank.paths import shipped
from vision_lowrank.tasks.tracking.follow import follow_clips, score_clips, still

FOLDER = shipped("data") / "tiny_tracker"


@pytest.fixture(scope="module")
def tracker():
    torch.manual_seed(0)
    return vl.load_model(FOLDER)


def test_it_follows_objects_that_do_not_stay_where_they_were(tracker):
    clips = emoji_scenes(EmojiScenesConfig(test_clips=4, frames=20)).tests["emoji_scenes"]
    answers = follow_clips(tracker, clips.clips), [still(clip) for clip in clips.clips]
    better, worse = (score_clips(clips, boxes).overall.values["success_auc"] for boxes in answers)
    assert better > worse + 0.1, (better, worse)


def test_the_command_takes_it_where_no_other_is_named(tracker, tmp_path, capsys):
    clip = emoji_scenes(EmojiScenesConfig(test_clips=1, frames=3)).tests["emoji_scenes"][0]
    with VideoWriter(tmp_path / "clip.mp4", 10) as writer:
        for index in range(3):
            writer.write(clip.frame(index))
    box = ",".join(f"{number:.1f}" for number in clip.boxes[0])
    with pytest.raises(SystemExit) as stop:
        main(["track", str(tmp_path / "clip.mp4"), "--box", box, "--out", str(tmp_path / "out")])
    assert stop.value.code == 0, capsys.readouterr().err
    written = json.loads((tmp_path / "out" / "track.json").read_text())
    assert tracker.identity in json.dumps(written)


def test_its_files_are_small_and_name_no_folder_of_the_machine():
    files = [*FOLDER.rglob("*"), *(shipped("data") / "tiny_vit").rglob("*")]
    assert sum(file.stat().st_size for file in files if file.is_file()) < 20e6
    text = (FOLDER / "artefact.json").read_text()
    assert not re.search(r"""["'=\s]/\w""", text)  # an absolute path, whichever


def test_the_card_says_what_the_record_holds():
    """The row of the table; how it was followed is in the artefact and in the recipe."""
    card, about = (FOLDER / "README.md").read_text(), json.loads((FOLDER / "artefact.json").read_text())
    record = about["record"]
    (row,) = [line for line in card.splitlines() if line.startswith("| tiny-tracker")]
    for name in ("success_auc", "normalized_precision", "op50", "precision"):
        assert f"{100 * record['metrics'][f'test/emoji_scenes/{name}']:.1f} ±" in row, name
    for name in ("size_rate", "vote_iou"):
        assert about["following"][name] == record["config"]["task"][name]
        assert f"`{name}` {about['following'][name]}" in card
    assert f"{record['config']['engine']['steps']:,} steps" in card
