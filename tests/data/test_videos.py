import shutil

import numpy as np
import pytest
from PIL import Image

from vision_lowrank.data.find_pictures import natural_order
from vision_lowrank.data.videos import VideoWriter, open_frames
from vision_lowrank.errors import DataError, UserError


def frame(number, size=(48, 64)):
    ys, xs = np.mgrid[: size[0], : size[1]]
    return np.stack([xs * 3, ys * 4, np.full_like(xs, 8 * number)], axis=-1).astype(np.uint8)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with VideoWriter(path, 25) as writer:
        for number in range(24):
            writer.write(frame(number))
    return path


def test_a_video_comes_back(video):
    source = open_frames(str(video))
    assert (source.rate, source.count, source.name) == (25, 24, "clip.mp4")
    frames = list(source)
    assert len(frames) == 24
    assert max(np.abs(f.astype(int) - frame(n)).mean() for n, f in enumerate(frames)) < 6
    assert len(list(source)) == 24  # again from the start
    assert source.problem == ""


def test_a_look_at_the_first_frame_opens_a_source_once(video, monkeypatch):
    source, opened = open_frames(str(video)), []
    read = source._read
    monkeypatch.setattr(source, "_read", lambda: opened.append(1) or read())
    first = source.peek()
    assert np.array_equal(source.peek(), first)
    assert opened == [1]
    frames = list(source)
    assert len(frames) == 24
    assert np.array_equal(frames[0], first)
    assert opened == [1]
    assert len(list(source)) == 24  # and then again from the start
    assert opened == [1, 1]


def test_odd_sides_are_made_even(tmp_path):
    with VideoWriter(tmp_path / "odd.mp4", 30000 / 1001) as writer:
        writer.write(frame(0, (33, 51)))
    source = open_frames(str(tmp_path / "odd.mp4"))
    assert next(iter(source)).shape == (32, 50, 3)
    assert source.rate == pytest.approx(29.97, abs=0.01)


def test_a_phone_video_is_turned(video, tmp_path):
    import av

    turned = tmp_path / "turned.mp4"
    with av.open(str(video)) as source, av.open(str(turned), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    data = turned.read_bytes()
    place = data.find(b"tkhd") + 4 + 40  # the display matrix of the track header, nine numbers of four bytes
    matrix = np.array([0, 1 << 16, 0, -(1 << 16) & 0xFFFFFFFF, 0, 0, 0, 0, 1 << 30], dtype=">u4").tobytes()
    turned.write_bytes(data[:place] + matrix + data[place + 36 :])
    found = next(iter(open_frames(str(turned))))
    assert found.shape == (64, 48, 3)
    # The file says a quarter turn clockwise: the left column becomes the top row.
    expected = np.rot90(frame(0), -1)
    assert np.abs(found.astype(int) - expected).mean() < 6


def test_a_video_that_is_damaged_keeps_what_comes_before(video, tmp_path):
    broken, data = tmp_path / "broken.mp4", bytearray(video.read_bytes())
    start = data.find(b"mdat") + 4
    middle = start + (len(data) - start) // 2
    data[middle:] = np.random.default_rng(0).integers(0, 256, len(data) - middle, dtype=np.uint8).tobytes()
    broken.write_bytes(data)
    source = open_frames(str(broken))
    count = len(list(source))
    assert 0 < count < 24
    assert f"the {count} frames before it were taken" in source.problem
    assert "\n" not in source.problem


def test_a_frame_of_another_size_ends_a_source(tmp_path):
    for number, size in enumerate([(20, 30), (20, 30), (30, 20)]):
        Image.fromarray(frame(number, size)).save(tmp_path / f"{number}.png")
    source = open_frames(str(tmp_path))
    assert len(list(source)) == 2
    assert "frame 2 has 20 x 30 pixels and those before 30 x 20" in source.problem


def test_pictures_come_in_the_order_that_people_count(tmp_path):
    for number in (1, 2, 10, 9):
        Image.fromarray(frame(number)).save(tmp_path / f"f{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    for given in (str(tmp_path), str(tmp_path / "*.png")):
        source = open_frames(given)
        assert source.count == 4
        assert [int(each[0, 0, 2]) // 8 for each in source] == [1, 2, 9, 10]
    assert sorted(["a10", "a9", "a1b"], key=natural_order) == ["a1b", "a9", "a10"]


@pytest.mark.parametrize("given", ["nothing.mp4", "*.xyz"])
def test_what_is_not_there_is_said(given, tmp_path):
    with pytest.raises(UserError, match="does not exist: give a video file"):
        open_frames(str(tmp_path / given))


def test_what_is_no_video_is_said(video, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no pictures"):
        open_frames(str(tmp_path / "empty"))
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DataError, match=r"'text.mp4' cannot be read"):
        open_frames(str(tmp_path / "text.mp4"))
    (tmp_path / "cut.mp4").write_bytes(video.read_bytes()[:300])
    with pytest.raises(DataError, match=r"'cut.mp4'"):
        list(open_frames(str(tmp_path / "cut.mp4")))
    with pytest.raises(DataError, match="camera 97"):
        open_frames("97")
    shutil.rmtree(tmp_path / "empty")
