"""``data check`` of sets of clips: what is found, what is missing, what was left out."""

import json

import pytest
from fixtures.tracking_trees import frames, got10k_clip, lasot_clip, rows

from vision_lowrank.cli.main import main
from vision_lowrank.data.tracking import got10k, lasot, otb100


def check(root, *arguments):
    """What the command writes as JSON of the first set, and its exit code."""
    with pytest.raises(SystemExit) as stop:
        main(["data", "check", str(root), *map(str, arguments), "--json", str(root / "found.json")])
    path = root / "found.json"
    return (json.loads(path.read_text())[0] if path.is_file() else None), stop.value.code


def test_a_complete_set_gives_exit_code_0_and_says_what_was_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lasot, "TEST", {"monkey": (3, 17)})
    monkeypatch.setitem(lasot.PUBLISHED, "test", 2)
    for number in (3, 17):
        lasot_clip(tmp_path / "monkey" / f"monkey-{number}", hidden=(1,), more=int(number == 17))
    found, code = check(tmp_path, "lasot")
    assert (code, found["complete"]) == (0, True)
    assert (found["found"], found["published"], found["frames"], found["hidden"]) == (2, 2, 6, 2)
    assert found["notes"] == ["'monkey-17': 1 frame after the last box left out"]
    assert found["notes"][0] in capsys.readouterr().out


def test_every_damage_has_its_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(got10k.PUBLISHED, "val", 4)
    for name in "ABC":
        got10k_clip(tmp_path / "val" / name, cover=[8, 8] if name == "B" else None)
    (tmp_path / "val" / "list.txt").write_text("A\nB\nC\n")
    (tmp_path / "val" / "C" / "00000003.jpg").unlink()
    found, code = check(tmp_path, "got10k", "split=val")
    assert (code, found["complete"], found["frames"]) == (2, False, 3)
    lines = found["problems"]
    assert lines[0] == "data set 'got10k': 3 clips, but 4 are published."
    assert "cover.label' has 2 labels for 3 frames" in lines[1]
    assert lines[2] == "'C' has 2 frames and 3 boxes: get the sequence again."
    out = capsys.readouterr().out
    assert all(line in out for line in lines)


def test_a_set_that_cannot_be_read_is_a_problem_with_the_remedy(tmp_path):
    found, code = check(tmp_path, "trackingnet", "split=train")
    assert code == 2
    assert "has no 'TRAIN_0/anno': get TrackingNet by" in found["problems"][0]


def test_options_of_a_set_reach_its_reader(tmp_path, monkeypatch):
    monkeypatch.setattr(otb100, "PUBLISHED", 1)
    frames(tmp_path / "Bolt" / "img", (1, 2), "{:04d}.jpg")
    rows(tmp_path / "Bolt" / "groundtruth_rect.txt", 2, "\t")
    assert check(tmp_path, "otb100")[1] == 0
    rows(tmp_path / "boxes.txt", 2)
    found, code = check(tmp_path / "Bolt" / "img", "frames", f"boxes={tmp_path / 'boxes.txt'}")
    assert (code, found["frames"]) == (0, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frames"], "data set 'frames': boxes: Field required; options are given as split=train"),
        (["lasot", "split=tests"], "data set 'lasot': split: Input should be 'train', 'test' or 'all'; options"),
        (["lasot", "root=x"], "root=x: the folder is given before the names"),
        (["lasott"], "unknown data set 'lasott'. Did you mean 'lasot'?"),
        (["lasot", "dtd"], "sets of clips and other data sets are checked one after the other: name one kind."),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, words, message):
    assert check(tmp_path, *words)[1] == 2
    assert message in capsys.readouterr().err
