"""``vision-lowrank track`` and ``results``, on a clip that is drawn here and a tracker that was never trained."""

import csv
import json
import re
import shutil
import subprocess
import sys

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.cli.main import main
from vision_lowrank.data.emoji_scenes import EmojiScenesConfig, emoji_scenes
from vision_lowrank.data.tracking.results import read_result
from vision_lowrank.data.videos import VideoWriter, open_frames
from vision_lowrank.tasks.tracking.cropping import Cropping
from vision_lowrank.tasks.tracking.model import TrackingModel
from vision_lowrank.viz import window

SMALL = {"patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3, "img_size": 64}
BOXES = ("--box", "30,20,20,16", "--box", "5 5 12 12")


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A folder with a tracker and a clip."""
    root = tmp_path_factory.mktemp("track")
    torch.manual_seed(0)
    backbone = load_backbone("timm:vit_tiny_patch16_224", "random", **SMALL)
    TrackingModel(backbone, Cropping(32, 16, 4.0, 2.0)).save(root / "tracker", {})
    clip = emoji_scenes(EmojiScenesConfig(test_clips=1, frames=8, size=(96, 72))).tests["emoji_scenes"][0]
    with VideoWriter(root / "clip.mp4", 10) as writer:
        for index in range(len(clip)):
            writer.write(clip.frame(index))
    return root


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return stop.value.code, shown.out, shown.err


def track(capsys, there, out, *more, source="clip.mp4", boxes=BOXES):
    return run(capsys, "track", there / source, *boxes, "--model", there / "tracker", "--out", out, *more)


def test_everything_is_written(there, tmp_path, capsys):
    code, shown, err = track(capsys, there, tmp_path / "out", "--save-video", "--text", "got10k")
    assert code == 0, err
    assert "8 frames, 2 targets" in shown
    out = tmp_path / "out"
    record = json.loads((out / "track.json").read_text())
    boxes = np.array([row["boxes"] for row in record["frames"]])
    assert boxes.shape == (8, 2, 4)
    assert boxes[0].tolist() == [[30, 20, 20, 16], [5, 5, 12, 12]]
    rows = list(csv.DictReader((out / "track.csv").read_text().splitlines()))
    assert len(rows) == 16
    assert (rows[3]["frame"], rows[3]["target"]) == ("1", "2")
    text = read_result(out / "boxes" / "target-2" / "target-2_001.txt")
    np.testing.assert_allclose(text, boxes[:, 1], atol=1e-4)
    video = open_frames(str(out / "track.mp4"))
    assert (len(list(video)), video.rate) == (8, 10)
    page = (out / "track.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 8
    assert page.count("<polyline") == 2
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_a_run_that_stopped_goes_on_to_the_same_boxes(there, tmp_path, capsys, monkeypatch):
    assert track(capsys, there, tmp_path / "whole")[0] == 0
    step, seen = TrackingModel.track_many, []

    def interrupted(self, *arguments, **more):
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return step(self, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(TrackingModel, "track_many", interrupted)
        code, _, err = track(capsys, there, tmp_path / "stopped")
    assert code == 130
    assert "interrupted after 4 frames, which are written. Go on with --resume" in err
    assert (tmp_path / "stopped" / "track.html").is_file()
    assert track(capsys, there, tmp_path / "stopped", "--resume")[0] == 0
    records = [json.loads((tmp_path / name / "track.json").read_text()) for name in ("whole", "stopped")]
    assert [row["boxes"] for row in records[0]["frames"]] == [row["boxes"] for row in records[1]["frames"]]
    code, _, err = track(capsys, there, tmp_path / "stopped", "--resume", boxes=("--box", "1,1,9,9"))
    assert code == 2
    assert "was written with another boxes" in err


def test_a_mistake_touches_nothing_that_is_there(there, tmp_path, capsys):
    assert track(capsys, there, tmp_path / "out")[0] == 0
    before = (tmp_path / "out" / "track.jsonl").read_text()
    code, _, err = track(capsys, there, tmp_path / "out", boxes=("--box", "300,1,5,5"))
    assert code == 2
    assert "lies outside the frame of 96 x 72 pixels" in err
    assert (tmp_path / "out" / "track.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"boxes": ("--box", "1,2,3")}, "is not four numbers: give it as left,top,width,height"),
        ({"boxes": ("--box", "1,2,a,3")}, "is not four numbers"),
        ({"boxes": ()}, "no target: give --box left,top,width,height"),
        ({"boxes": ("--boxes", "nothing.txt")}, "--boxes 'nothing.txt' cannot be read"),
        ({"boxes": ("--box", "1,2,3,4", "--fmt", "xyhw")}, "--fmt 'xyhw'"),
        ({"boxes": ("--box", "1,2,3", "--fmt", "xyxy")}, "is not four numbers: give it as left,top,right,bottom"),
        ({"boxes": ("--box", "20,20,9,9", "--fmt", "xyxy")}, "(xyxy) has no size: give it as left,top,right,bottom"),
        ({"boxes": ("--box", "9,9,0,9")}, "box 9,9,0,9 (xywh) has no size"),
        ({"boxes": ("--box", "1e400,9,9,9")}, "is not four finite numbers"),
        ({"boxes": ("--box", "0,0,1,0.5")}, "covers less than a pixel of the frame of 96 x 72 pixels"),
        ({"boxes": ("--box", "9,9,9,9", "--text", "csv")}, "unknown form of results 'csv'"),
        ({"source": "other.mp4"}, "does not exist: give a video file"),
    ],
)
def test_mistakes_are_one_line(there, tmp_path, capsys, change, words):
    code, _, err = track(capsys, there, tmp_path / "out", **change)
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert words in lines[0]
    assert not (tmp_path / "out").exists()


def test_boxes_come_from_a_file_too(there, tmp_path, capsys):
    lines = "# left, top, width, height\n30,20,20,16\n\n5,5,12,12\n"
    (tmp_path / "boxes.txt").write_text(lines, encoding="utf-8-sig")  # as Windows' editor writes it
    assert track(capsys, there, tmp_path / "out", boxes=("--boxes", tmp_path / "boxes.txt"))[0] == 0
    assert len(json.loads((tmp_path / "out" / "track.json").read_text())["boxes"]) == 2
    (tmp_path / "boxes.txt").write_text("1,2,3,4\n1,2\n")
    code, _, err = track(capsys, there, tmp_path / "again", boxes=("--boxes", tmp_path / "boxes.txt"))
    assert code == 2
    assert "line 2" in err


def test_a_damaged_video_gives_what_comes_before(there, tmp_path, capsys):
    data = bytearray((there / "clip.mp4").read_bytes())
    place = data.find(b"mdat") + 4
    middle = place + 3 * (len(data) - place) // 4
    data[middle:] = np.random.default_rng(0).integers(0, 256, len(data) - middle, dtype=np.uint8).tobytes()
    shutil.copytree(there / "tracker", tmp_path / "tracker")
    (tmp_path / "clip.mp4").write_bytes(data)
    code, _, err = track(capsys, tmp_path, tmp_path / "out")
    assert code == 0
    assert "frames before it were taken" in err
    assert 0 < len(json.loads((tmp_path / "out" / "track.json").read_text())["frames"]) < 8


def test_a_window_shows_the_frames_and_stops(there, tmp_path, capsys, monkeypatch):
    """Without a box one is drawn; what was tracked until the window is left is written."""
    shown = []

    class FakeWindow:
        def __init__(self, title):
            assert title == "clip.mp4"

        def choose_box(self, frame):
            assert frame.shape == (72, 96, 3)
            return 30.0, 20.0, 20.0, 16.0

        def show(self, frame):
            shown.append(frame)
            return len(shown) == 3

        def close(self):
            shown.append("closed")

    monkeypatch.setattr(window, "Window", FakeWindow)
    code, out, err = track(capsys, there, tmp_path / "out", "--show", boxes=())
    assert code == 0, err
    assert "3 frames, 1 target," in out
    assert shown[3:] == ["closed"]
    record = json.loads((tmp_path / "out" / "track.json").read_text())
    assert record["boxes"] == [[30, 20, 20, 16]]
    assert len(record["frames"]) == 3


def test_without_a_display_nothing_is_begun(there, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tkinter", None)
    code, _, err = track(capsys, there, tmp_path / "out", "--show")
    assert code == 2
    assert err.count("error: --show: no window can be opened here") == 1
    assert not (tmp_path / "out").exists()


def test_a_video_without_frames_is_said(there, tmp_path, capsys):
    with av.open(tmp_path / "none.mkv", "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv420p"
        container.start_encoding()
    code, _, err = track(capsys, there, tmp_path / "out", source=tmp_path / "none.mkv")
    assert code == 2
    assert len([line for line in err.splitlines() if line.startswith("error: ") and "none.mkv" in line]) == 1


def test_a_video_that_changes_its_size_ends_there(there, tmp_path, capsys):
    parts = []
    for size in ((96, 72), (128, 96)):
        with av.open(tmp_path / "part.ts", "w") as container:
            stream = container.add_stream("mpeg2video", rate=25)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            for number in range(4):
                frame = np.full((size[1], size[0], 3), 40 * number, dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        parts.append((tmp_path / "part.ts").read_bytes())
    (tmp_path / "change.ts").write_bytes(b"".join(parts))
    code, _, err = track(capsys, there, tmp_path / "out", "--save-video", source=tmp_path / "change.ts")
    assert code == 0
    assert "has 128 x 96 pixels and those before 96 x 72" in err
    rows = json.loads((tmp_path / "out" / "track.json").read_text())["frames"]
    assert 0 < len(rows) == len(list(open_frames(str(tmp_path / "out" / "track.mp4"))))


@pytest.mark.parametrize("kind", ["L", "I;16", "RGBA", "LA", "P", "CMYK"])
def test_frames_of_any_kind_are_followed(there, tmp_path, capsys, kind):
    (tmp_path / "frames").mkdir()
    for number in range(2):
        grey = np.full((72, 96), 102, dtype=np.uint8)
        grey[20:36, 30 + number : 50 + number] = 255
        picture = Image.fromarray(grey.astype(np.uint16) * 257) if kind == "I;16" else Image.fromarray(grey)
        picture = picture if kind == "I;16" else picture.convert("RGB").convert(kind)
        picture.save(tmp_path / "frames" / f"{number}.{'tif' if kind == 'CMYK' else 'png'}")
    assert track(capsys, there, tmp_path / "out", source=tmp_path / "frames")[0] == 0
    rows = json.loads((tmp_path / "out" / "track.json").read_text())["frames"]
    assert len(rows) == 2
    seen = next(iter(open_frames(str(tmp_path / "frames"))))
    assert seen.shape == (72, 96, 3)
    assert [int(seen[0, 0, 0]), int(seen[25, 35, 0])] == pytest.approx([102, 255], abs=2)


def test_an_artefact_that_was_changed_is_one_line(there, tmp_path, capsys):
    """Of another size, without its base, without its own parts."""
    about = json.loads((there / "tracker" / "artefact.json").read_text())
    changes = {
        "search": (lambda folder: _write(folder, about, search=64), "its tensors are not those of the tracker"),
        "patch": (lambda folder: _write(folder, about, search=33), "no multiple of the patch"),
        "template": (lambda folder: _write(folder, about, template=64), "is above task.search_size=32"),
        "parts": (lambda folder: (folder / "tracker.safetensors").unlink(), "tracker.safetensors' is missing"),
        "base": (lambda folder: (folder / "base.safetensors").unlink(), "base.safetensors' is missing"),
    }
    for name, (change, words) in changes.items():
        shutil.copytree(there / "tracker", tmp_path / name)
        change(tmp_path / name)
        given = (there / "clip.mp4", "--box", "30,20,20,16", "--model", tmp_path / name, "--out", tmp_path / "out")
        code, _, err = run(capsys, "track", *given)
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (code, len(lines)) == (2, 1), name
        assert words in lines[0]
    assert not (tmp_path / "out").exists()


def _write(folder, about, **cropping):
    changed = about | {"cropping": about["cropping"] | cropping}
    (folder / "artefact.json").write_text(json.dumps(changed))


def test_too_few_rows_of_a_result_are_said(there, tmp_path, capsys):
    """By the convention of the toolkits they are failures; LaSOT's and GOT-10k's refuse them."""
    data = ("emoji_scenes", "test_clips=2", "frames=4", "size=[96,72]", "--out", tmp_path)
    assert run(capsys, "results", "run", *data, "--model", there / "tracker")[0] == 0
    code, _, err = run(capsys, "results", "score", *data)
    assert (code, "note" in err) == (0, False)
    path = next(path for path in sorted(tmp_path.glob("test-*.txt")) if "time" not in path.name)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    code, _, err = run(capsys, "results", "score", *data)
    assert code == 0
    assert f"note: '{path.stem}' has too few rows (1 result in all): the frames that are missing count as" in err
    for convention in ("lasot", "got10k"):
        code, _, err = run(capsys, "results", "score", *data, "--convention", convention)
        assert code == 2
        assert "has 3 rows for 4 frames: run the tracker again" in err


def test_a_benchmark_is_run_scored_and_packed(there, tmp_path, capsys):
    data = ("emoji_scenes", "test_clips=2", "frames=4", "size=[96,72]")
    arguments = ("--out", tmp_path / "res", "--form", "got10k")
    for left in (2, 0):
        code, shown, err = run(capsys, "results", "run", *data, *arguments, "--model", there / "tracker")
        assert code == 0, err
        assert f"2 clips, {left} were left to track" in shown
    code, shown, _ = run(capsys, "results", "score", *data, *arguments, "--json", tmp_path / "s.json", "--per-clip")
    assert code == 0
    assert "pytracking-all" in shown
    assert "test-000001" in shown
    found = json.loads((tmp_path / "s.json").read_text())["emoji_scenes"]
    assert 0 <= found["metrics"]["success_auc"] <= 1
    pack = ("results", "pack", *data, "--out", tmp_path / "res", "--server", "got10k", "--zip", tmp_path / "s.zip")
    assert run(capsys, *pack)[0] == 0
    assert (tmp_path / "s.zip").is_file()
    next((tmp_path / "res").rglob("*_001.txt")).unlink()
    code, _, err = run(capsys, *pack)
    assert code == 2
    assert "has no 'test-00000" in err
    code, _, err = run(capsys, "results", "score", "lasott", "--out", tmp_path)
    assert code == 2
    assert "lasot" in err


def test_processes_share_the_clips_and_go_on_where_one_stopped(there, tmp_path, capfd):
    """Two real processes: a file that is cut and one that is missing are written again, the others are not."""
    data = ("emoji_scenes", "test_clips=3", "frames=3", "size=[96,72]", "--model", there / "tracker")
    assert run(capfd, "results", "run", *data, "--out", tmp_path / "one")[0] == 0
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = (sorted((tmp_path / name).rglob("test-*[0-9].txt")) for name in ("one", "two"))
    assert len(one) == 3
    kept = two[1].stat().st_mtime_ns
    two[0].write_text("1\t2\t3\t4\n")
    two[2].unlink()
    code, shown, err = run(capfd, "results", "run", *data, "--out", tmp_path / "two", "--jobs", "2")
    assert code == 0, err
    assert sorted(re.findall(r"3 clips, (\d) were left", shown)) == ["0", "2"]
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(read_result(a), read_result(b), atol=0.01)
    assert two[1].stat().st_mtime_ns == kept


@pytest.mark.parametrize(("part", "parts"), [("", ["0/2", "1/2"]), ("1/3", ["1/6", "4/6"])])
def test_processes_divide_the_share_of_a_machine(there, tmp_path, capsys, monkeypatch, part, parts):
    started = []

    class FakeProcess:
        def __init__(self, command, env):
            started.append(command)
            self.returncode = len(started) - 1

        def wait(self):
            return self.returncode

    monkeypatch.setattr(subprocess, "Popen", FakeProcess)
    data = ("emoji_scenes", "test_clips=3", "frames=3", "--model", there / "tracker", "--form", "got10k")
    given = ("results", "run", *data, "--out", tmp_path, "--jobs", "2", *(("--part", part) if part else ()))
    code, _, err = run(capsys, *given)
    assert [command[-1] for command in started] == [f"--part={each}" for each in parts]
    assert all({"emoji_scenes", "test_clips=3", "--form=got10k", f"--out={tmp_path}"} <= set(c) for c in started)
    assert code == 2
    assert "1 of 2 processes failed: call again" in err


def test_a_mistake_starts_no_process(there, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    model = ("--model", there / "tracker", "--out", tmp_path, "--jobs", "2")
    for words in (("lasott",), ("emoji_scenes", "--form", "csv"), ("emoji_scenes", "frams=2"), ("lasot", "--part=2/2")):
        code, _, err = run(capsys, "results", "run", *words, *model)
        assert code == 2
        assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
