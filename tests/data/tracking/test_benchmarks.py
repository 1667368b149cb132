"""Readers of the field's data sets: every exception of their layouts. A frame's grey and box tell its number."""

import json
import pickle

import numpy as np
import pytest
from fixtures.tracking_trees import SIZE, frames, got10k_clip, lasot_clip, picture, rows

from vision_lowrank.data.gives import read_data
from vision_lowrank.data.tracking import lasot as lasot_module
from vision_lowrank.data.tracking.reading import truth_of
from vision_lowrank.errors import DataError
from vision_lowrank.registry import registry


def read(kind, root, **options):
    """Clips of the one set that was asked for."""
    splits = read_data(registry.get("data", kind).config(root=str(root), **options), "clips")
    assert not len(splits.val)
    return splits.train if len(splits.train) else splits.tests[next(iter(splits.tests))]


def by_name(clips):
    return {clip.name: clip for clip in clips}


def numbers(clip):
    """Grey of every frame: its number modulo 256."""
    return [int(clip.frame(index)[0, 0, 0]) for index in range(len(clip))]


def lefts(clip):
    return clip.boxes[:, 0].tolist()


# LaSOT


@pytest.mark.parametrize("nested", [True, False])
def test_lasot_reads_classes_or_clips_flags_in_one_line_and_pictures_by_the_number_of_boxes(tmp_path, nested):
    for name in ("monkey-17", "monkey-3", "monkey-2", "zebra-10"):
        home = tmp_path / name.partition("-")[0] if nested else tmp_path
        lasot_clip(home / name, hidden=(1,), outside=(2,), more=2 if name == "monkey-17" else 0)
    (tmp_path / "testing_set.txt").write_text("monkey-17\nmonkey-3\n\n")
    clips = read("lasot", tmp_path)
    assert [clip.name for clip in clips] == ["monkey-17", "monkey-3"]
    assert (clips.name, clips.published, clips.origin) == ("lasot", 280, 1)
    clip = clips[0]
    assert (len(clip), numbers(clip), lefts(clip)) == (3, [1, 2, 3], [1, 2, 3])
    assert clip.visible.tolist() == [True, False, False]
    assert clip.footage.notes == ("'monkey-17': 2 frames after the last box left out",)
    assert clip.size == SIZE
    assert clip.frame(0).shape == (6, 8, 3)
    assert clip.frame(0).dtype == np.uint8
    assert [clip.name for clip in read("lasot", tmp_path, split="all")] == [
        "monkey-2", "monkey-3", "monkey-17", "zebra-10"
    ]  # fmt: skip
    assert [clip.name for clip in read("lasot", tmp_path, split="train")] == [
        "monkey-2"
    ]  # without a list: what is left


def test_lasots_test_clips_are_known_without_a_list(tmp_path, monkeypatch):
    tests = lasot_module.published_tests()
    assert len(tests) == len(set(tests)) == 280
    assert {"airplane-1", "airplane-15", "rubicCube-14", "zebra-17", "yoyo-7"} <= set(tests)
    monkeypatch.setattr(lasot_module, "TEST", {"cat": (1, 20)})
    for number in (1, 2, 20):
        lasot_clip(tmp_path / "cat" / f"cat-{number}")
    assert [clip.name for clip in read("lasot", tmp_path)] == ["cat-1", "cat-20"]
    assert [clip.name for clip in read("lasot", tmp_path, split="train")] == ["cat-2"]


def test_lasot_names_what_is_missing(tmp_path):
    lasot_clip(tmp_path / "cat" / "cat-1")
    with pytest.raises(DataError, match=r"279 of 280 sequences are not in '.*', 'airplane-1', .*: get LaSOT from"):
        read("lasot", tmp_path)
    with pytest.raises(DataError, match=r"has no clips called CLASS-N with a groundtruth\.txt: get LaSOT"):
        read("lasot", tmp_path / "cat" / "cat-1")
    (tmp_path / "cat" / "cat-1" / "img" / "00000002.jpg").unlink()
    clip = read("lasot", tmp_path, split="all")[0]  # nothing of a clip is read before it is asked for
    with pytest.raises(DataError, match=r"'cat-1': 1 of 3 frames are not in '.*img', the first is number 2: get"):
        len(clip)
    (tmp_path / "cat" / "cat-1" / "out_of_view.txt").write_text("0,0")
    with pytest.raises(DataError, match=r"out_of_view\.txt' has 2 labels for 3 frames"):
        len(read("lasot", tmp_path, split="all")[0])


def test_lasots_attributes_are_the_toolkits_flags(tmp_path):
    lasot_clip(tmp_path / "data" / "cat" / "cat-1")
    (tmp_path / "att").mkdir()
    (tmp_path / "att" / "cat-1.txt").write_text("1,0,0,0,0,0,0,0,0,0,0,1,0,1\n")
    clip = read("lasot", tmp_path / "data", split="all", attributes=str(tmp_path / "att"))[0]
    assert clip.attributes == ("illumination_variation", "out_of_view", "aspect_ratio_change")
    assert read("lasot", tmp_path / "data", split="all")[0].attributes == ()


def test_lasots_extension_is_its_15_classes(tmp_path, monkeypatch):
    assert len(lasot_module.EXTENSION) == 15
    monkeypatch.setattr(lasot_module, "EXTENSION", ("atv",))
    for number in range(1, 11):
        lasot_clip(tmp_path / "atv" / f"atv-{number}", count=2)
    lasot_clip(tmp_path / "cat" / "cat-1")
    clips = read("lasot_ext", tmp_path)
    assert [clip.name for clip in clips] == [f"atv-{number}" for number in range(1, 11)]
    assert (clips.name, clips.published) == ("lasot_ext", 10)


# TrackingNet


def test_trackingnet_sorts_frames_as_numbers_and_keeps_chunks_in_order(tmp_path):
    for chunk in (0, 2, 10):
        for name in ("b", "a"):
            frames(tmp_path / f"TRAIN_{chunk}" / "frames" / f"{chunk}{name}", range(11), "{}.jpg")
            rows(tmp_path / f"TRAIN_{chunk}" / "anno" / f"{chunk}{name}.txt", 11, first=0)
    clips = read("trackingnet", tmp_path, split="train")
    assert [clip.name for clip in clips] == ["0a", "0b", "2a", "2b", "10a", "10b"]
    assert clips.published == 3 * 2511
    assert numbers(clips[0]) == lefts(clips[0]) == list(range(11))
    assert [clip.name for clip in read("trackingnet", tmp_path, split="train", chunks=(10,))] == ["10a", "10b"]
    with pytest.raises(DataError, match=r"has no 'TRAIN_5/anno' \(it has 'TRAIN_0', 'TRAIN_10', 'TRAIN_2'\): get"):
        read("trackingnet", tmp_path, split="train", chunks=(0, 5))


def test_trackingnets_test_boxes_are_withheld_after_the_first(tmp_path):
    frames(tmp_path / "TEST" / "frames" / "x", range(12), "{}.jpg")
    rows(tmp_path / "TEST" / "anno" / "x.txt", 1, first=0)
    clip = read("trackingnet", tmp_path)[0]
    assert (len(clip), clip.boxes[0].tolist()) == (12, [0, 2, 3, 4])
    assert np.isnan(clip.boxes[1:]).all()
    assert clip.visible.all()
    with pytest.raises(
        DataError, match="the true boxes of 'x' are withheld: send the results to the benchmark's server"
    ):
        truth_of(clip)


# GOT-10k


def test_got10k_keeps_the_order_of_its_list_and_reads_labels_and_facts(tmp_path):
    for name in ("GOT_1", "GOT_2", "GOT_3"):
        got10k_clip(tmp_path / "val" / name, cover=[8, 0, 3], absent=[0, 0, 1])
    (tmp_path / "val" / "list.txt").write_text("GOT_3\nGOT_1\n")
    clips = read("got10k", tmp_path)
    assert ([clip.name for clip in clips], clips.published) == (["GOT_3", "GOT_1"], 180)
    assert clips[0].visible.tolist() == [True, False, False]
    assert clips[0].attributes == ("drone", "fly")
    assert clips[0].size == SIZE
    assert clips[0].footage.size == SIZE  # told by meta_info.ini
    assert truth_of(clips[0]).size == SIZE
    (tmp_path / "few.txt").write_text("1\n")
    assert [clip.name for clip in read("got10k", tmp_path, indices=str(tmp_path / "few.txt"))] == ["GOT_1"]
    (tmp_path / "few.txt").write_text("1\n2\n")
    with pytest.raises(DataError, match=r"few\.txt', row 2: 2 is no line of list\.txt, which are 0 to 1"):
        read("got10k", tmp_path, indices=str(tmp_path / "few.txt"))


def test_got10ks_test_boxes_are_withheld_and_a_missing_clip_is_named(tmp_path):
    got10k_clip(tmp_path / "test" / "T_1", count=4, truth=1)
    (tmp_path / "test" / "list.txt").write_text("T_1\n")
    clip = read("got10k", tmp_path, split="test")[0]
    assert (len(clip), np.isnan(clip.boxes).any(axis=1).tolist()) == (4, [False, True, True, True])
    (tmp_path / "test" / "list.txt").write_text("T_1\nT_2\n")
    with pytest.raises(DataError, match=r"1 of 2 sequences are not in '.*test', 'T_2': get GOT-10k from"):
        read("got10k", tmp_path, split="test")
    with pytest.raises(DataError, match=r"train/list\.txt' does not exist"):
        read("got10k", tmp_path, split="train")


def test_got10k_refuses_labels_that_do_not_fit(tmp_path):
    got10k_clip(tmp_path / "train" / "A", cover=[8, 8])
    (tmp_path / "train" / "list.txt").write_text("A\n")
    with pytest.raises(DataError, match=r"cover\.label' has 2 labels for 3 frames"):
        len(read("got10k", tmp_path, split="train")[0])


# TNL2K, UAV123, OTB100, NFS, VastTrack


def test_tnl2k_sorts_by_name_over_mixed_endings(tmp_path):
    frames(tmp_path / "Cat" / "imgs", (1, 3), "{:05d}.jpg")
    frames(tmp_path / "Cat" / "imgs", (2, 4), "{:05d}.png")
    rows(tmp_path / "Cat" / "groundtruth.txt", 4)
    (tmp_path / "docs").mkdir()
    clips = read("tnl2k", tmp_path)
    assert (len(clips), clips.published) == (1, 700)
    assert numbers(clips[0]) == lefts(clips[0]) == [1, 2, 3, 4]
    assert clips.notes == ("left out: 1 without groundtruth.txt ('docs')",)


def test_uav123_takes_segments_of_longer_folders_and_nan_for_absent(tmp_path):
    frames(tmp_path / "data_seq" / "UAV123" / "bird1", range(700, 1500), "{:06d}.jpg")
    rows(tmp_path / "anno" / "UAV123" / "bird1_2.txt", 1477 - 775 + 1, first=775)
    frames(tmp_path / "data_seq" / "UAV123" / "bike1", (1, 2), "{:06d}.jpg")
    (tmp_path / "anno" / "UAV123" / "bike1.txt").write_text("1,2,3,4\nNaN,NaN,NaN,NaN\n")
    (tmp_path / "anno" / "UAV123" / "att").mkdir()
    (tmp_path / "anno" / "UAV123" / "att" / "bike1.txt").write_text("1,0,0,0,0,0,0,0,0,0,0,1")
    clips = by_name(found := read("uav123", tmp_path))
    assert (found.name, found.published, found.origin) == ("uav123", 123, 1)
    part = clips["bird1_2"]
    assert (len(part), lefts(part)[0], lefts(part)[-1]) == (703, 775, 1477)
    assert part.frame(0)[0, 0, 0] == 775 % 256
    assert part.frame(702)[0, 0, 0] == 1477 % 256
    assert clips["bike1"].visible.tolist() == [True, False]
    assert clips["bike1"].attributes == ("scale_variation", "similar_object")
    rows(tmp_path / "anno" / "UAV123" / "car1_1.txt", 5)
    with pytest.raises(DataError, match=r"car1_1\.txt' has 5 rows for frames 1 to 751 of 'car1': get UAV123"):
        len(by_name(read("uav123", tmp_path))["car1_1"])


def test_uav20l_has_whole_folders(tmp_path):
    frames(tmp_path / "data_seq" / "UAV123" / "bird1", range(1, 6), "{:06d}.jpg")
    rows(tmp_path / "anno" / "UAV20L" / "bird1.txt", 5)
    clips = read("uav123", tmp_path, split="uav20l")
    assert (clips.name, clips.published, numbers(clips[0])) == ("uav20l", 20, [1, 2, 3, 4, 5])


def test_the_uav_segments_are_51_and_follow_each_other():
    from vision_lowrank.data.tracking.uav123 import SEGMENTS

    assert len(SEGMENTS) == 51
    assert SEGMENTS["uav1_3"] == ("uav1", 2473, 3469)
    assert SEGMENTS["car6_5"] == ("car6", 3925, 4861)


def otb(root, name, files, numbers, width=4, delimiter=",", counts=None):
    frames(root / name / "img", numbers, f"{{:0{width}d}}.jpg")
    for file, count in files.items():
        rows(root / name / file, count, delimiter, first=numbers[0])


@pytest.fixture
def otb_tree(tmp_path):
    one = "groundtruth_rect.txt"
    otb(tmp_path, "David", {one: 471}, range(290, 780))
    (tmp_path / "David" / one).write_text("\n".join(f"{n}\t2\t3\t4" for n in range(300, 771)))
    otb(tmp_path, "BlurCar3", {one: 357}, range(3, 360), delimiter=" ")
    otb(tmp_path, "Freeman4", {one: 283}, range(1, 290))
    otb(tmp_path, "Board", {one: 3}, range(1, 4), width=5)
    otb(tmp_path, "Tiger1", {one: 8}, range(1, 9), delimiter="\t")
    otb(tmp_path, "Jogging", {"groundtruth_rect.1.txt": 2, "groundtruth_rect.2.txt": 2}, range(1, 3))
    otb(tmp_path, "Human4", {"groundtruth_rect.1.txt": 0, "groundtruth_rect.2.txt": 2}, range(1, 3))
    (tmp_path / "Human4" / "groundtruth_rect.1.txt").write_text("\n")
    (tmp_path / "scripts").mkdir()
    return tmp_path


def test_otb100_knows_ranges_delimiters_two_targets_and_board(otb_tree):
    found = read("otb100", otb_tree)
    clips = by_name(found)
    assert list(clips) == ["BlurCar3", "Board", "David", "Freeman4", "Human4_2", "Jogging_1", "Jogging_2", "Tiger1"]
    assert (found.published, found.origin) == (100, 1)
    assert found.notes == ("left out: 1 without groundtruth_rect.txt ('scripts')",)
    spans = {name: (int(lefts(clip)[0]), int(lefts(clip)[-1])) for name, clip in clips.items()}
    assert spans == {
        "BlurCar3": (3, 359), "Board": (1, 3), "David": (300, 770), "Freeman4": (1, 283), "Human4_2": (1, 2),
        "Jogging_1": (1, 2), "Jogging_2": (1, 2), "Tiger1": (6, 8),
    }  # fmt: skip
    for clip in clips.values():
        ends = (clip.frame(0)[0, 0, 0], clip.frame(len(clip) - 1)[0, 0, 0])
        assert ends == (lefts(clip)[0] % 256, lefts(clip)[-1] % 256), clip.name


def test_otb100_refuses_rows_that_are_not_those_of_the_range(otb_tree):
    rows(otb_tree / "David" / "groundtruth_rect.txt", 470)
    with pytest.raises(DataError, match=r"has 470 rows for frames 300 to 770 of 'David': get OTB100"):
        len(by_name(read("otb100", otb_tree))["David"])


def test_nfs_in_the_layout_of_toolkits(tmp_path):
    frames(tmp_path / "sequences" / "bee", range(1, 4), "{:05d}.jpg")
    rows(tmp_path / "anno" / "nfs_bee.txt", 3, "\t")
    clips = read("nfs", tmp_path)
    assert [clip.name for clip in clips] == ["nfs_bee"]
    assert (numbers(clips[0]), lefts(clips[0])) == ([1, 2, 3], [1, 2, 3])


@pytest.mark.parametrize("more", [0, 1])
def test_nfs_as_published_has_corners_at_240_frames_per_second(tmp_path, more):
    frames(tmp_path / "bee" / "30" / "bee", range(1, 4), "{:05d}.jpg")
    lines = [f'0 {n} 2 {n + 30} 42 {n} 0 0 0 "x"' for n in range(3 * 8 + more)]
    (tmp_path / "bee" / "30" / "bee.txt").write_text("\n".join(lines))
    clip = read("nfs", tmp_path)[0]
    assert clip.name == "nfs_bee"
    assert clip.boxes.tolist() == [[0, 2, 30, 40], [8, 2, 30, 40], [16, 2, 30, 40]]


def test_vasttrack_takes_either_spelling_and_zeros_for_absent(tmp_path):
    for name, file in (("Ant-1", "Groundtruth.txt"), ("Ant-2", "groundtruth.txt")):
        frames(tmp_path / "Ant" / name / "imgs", range(1, 4), "{:05d}.jpg")
        (tmp_path / "Ant" / name / file).parent.mkdir(exist_ok=True)
        (tmp_path / "Ant" / name / file).write_text("1,2,3,4\n0,0,0,0\n3,2,3,4\n")
    (tmp_path / "Ant" / "Ant-3").mkdir()
    clips = read("vasttrack", tmp_path)
    assert [clip.name for clip in clips] == ["Ant-1", "Ant-2"]
    assert clips[1].visible.tolist() == [True, False, True]
    assert clips.notes == ("left out: 1 without Groundtruth.txt ('Ant-3')",)
    (tmp_path / "test.txt").write_text("Ant-2\n")
    chosen = read("vasttrack", tmp_path, names=str(tmp_path / "test.txt"))
    assert ([clip.name for clip in chosen], chosen.published) == (["Ant-2"], 1)
    (tmp_path / "test.txt").write_text("Ant-2\nAnt-9\n")
    with pytest.raises(DataError, match=r"1 of 2 sequences are not in '.*', 'Ant-9'"):
        read("vasttrack", tmp_path, names=str(tmp_path / "test.txt"))


# COCO, MOTChallenge, one's own frames


def coco(root, annotations):
    frames(root / "pictures", (1, 2), "{:03d}.jpg")
    images = [{"id": 10, "file_name": "001.jpg", "width": 8, "height": 6}, {"id": 20, "file_name": "002.jpg"}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 5, "name": "cat"}]}
    (root / "instances.json").write_text(json.dumps(content))
    return read("coco_pairs", root / "pictures", file=str(root / "instances.json"))


def test_coco_gives_clips_of_one_frame_grouped_by_picture(tmp_path):
    clips = coco(tmp_path, [
        {"id": 3, "image_id": 20, "bbox": [1, 1, 2, 2], "category_id": 5},
        {"id": 1, "image_id": 10, "bbox": [0, 0, 4, 4], "category_id": 5},
        {"id": 2, "image_id": 10, "bbox": [1, 2, 3, 3.5], "category_id": 5},
        {"id": 4, "image_id": 10, "bbox": [1, 2, 3, 3], "category_id": 5, "iscrowd": 1},
        {"id": 5, "image_id": 10, "bbox": [1, 2, 0, 3], "category_id": 5},
    ])  # fmt: skip
    assert [clip.name for clip in clips] == ["001-1", "001-2", "002-3"]
    assert [list(group) for group in clips.groups] == [[0, 1], [2]]
    assert clips[1].boxes.tolist() == [[1, 2, 3, 3.5]]
    assert (clips[0].footage.size, clips[2].footage.size, clips[2].size) == ((8, 6), None, SIZE)
    assert (numbers(clips[0]), numbers(clips[2])) == ([1], [2])
    assert clips[0].attributes == ("cat",)
    assert clips.notes == ("left out: 2 crowds and boxes of no size",)
    assert numbers(pickle.loads(pickle.dumps(clips[0]))) == [1]
    assert clips.subset([2, 0]).clips[0].name == "002-3"


@pytest.mark.parametrize("bad", [{"id": 1}, {"id": 1, "image_id": 10, "bbox": [1, 2, 3]}, {"id": 1, "bbox": "abcd"}])
def test_what_is_no_coco_file_is_one_line(tmp_path, bad):
    with pytest.raises(DataError, match=r"instances\.json' is no COCO annotation file \(.*\): get COCO's"):
        coco(tmp_path, [bad])
    with pytest.raises(DataError, match=r"instances\.json' has no objects with a box"):
        coco(tmp_path, [])


def test_every_identity_of_mot_is_a_clip(tmp_path):
    frames(tmp_path / "S-1" / "img1", range(1, 7), "{:06d}.jpg")
    (tmp_path / "S-1" / "gt").mkdir()
    (tmp_path / "S-1" / "gt" / "gt.txt").write_text(
        "2,7,2,2,3,4,1,1,1\n4,7,4,2,3,4,1,1,0.5\n3,7,3,2,3,4,1,1,0\n6,7,6,2,3,4,1,1,0.0\n"  # seen 2 to 4
        "1,9,1,2,3,4,1,2,1\n3,9,3,2,3,4,1,2,1\n"  # without a row in frame 2
        "1,4,1,2,3,4,0,1,1\n2,4,1,2,3,4,0,1,1\n"  # not to be considered
        "5,5,1,2,3,4,1,1,1\n"  # one frame
    )
    clips = read("mot", tmp_path)
    assert [clip.name for clip in clips] == ["S-1-7", "S-1-9"]
    seven, nine = clips
    assert (numbers(seven), lefts(seven), seven.visible.tolist()) == ([2, 3, 4], [2, 3, 4], [True, False, True])
    assert np.isnan(nine.boxes[1]).all()
    assert nine.visible.tolist() == [True, False, True]
    assert clips.notes == ("left out: 1 identities visible in fewer than 2 frames",)
    assert [clip.name for clip in read("mot", tmp_path / "S-1", classes=(2,))] == ["S-1-9"]
    (tmp_path / "S-1" / "gt" / "gt.txt").write_text("1,1,1,2,3,4\n2,1,1,2,3,4\n")  # the short form
    assert len(read("mot", tmp_path)[0]) == 2
    (tmp_path / "S-1" / "gt" / "gt.txt").write_text("1,1,1,2,3,4\n1,1,1,2,3,4\n")
    with pytest.raises(DataError, match="identity 1 has two rows in frame 1: keep one"):
        read("mot", tmp_path)


def test_ones_own_frames_have_a_box_each_or_the_first_alone(tmp_path):
    frames(tmp_path / "walk", (2, 10, 1), "frame{}.png")
    rows(tmp_path / "boxes.txt", 3, " ")
    clips = read("frames", tmp_path / "walk", boxes=str(tmp_path / "boxes.txt"))
    assert (clips.name, clips[0].name, numbers(clips[0])) == ("walk", "walk", [1, 2, 10])
    rows(tmp_path / "boxes.txt", 1)
    clip = read("frames", tmp_path / "walk", boxes=str(tmp_path / "boxes.txt"))[0]
    assert np.isnan(clip.boxes).any(axis=1).tolist() == [False, True, True]
    (tmp_path / "boxes.txt").write_text("1,2,3,4\nnan,nan,nan,nan\n0,0,0,0\n")
    clip = read("frames", tmp_path / "walk", boxes=str(tmp_path / "boxes.txt"))[0]
    assert clip.visible.tolist() == [True, False, False]
    for count in (2, 4):
        rows(tmp_path / "boxes.txt", count)
        with pytest.raises(DataError, match=rf"boxes\.txt' has {count} rows for the 3 frames in '.*': give one per"):
            read("frames", tmp_path / "walk", boxes=str(tmp_path / "boxes.txt"))
    (tmp_path / "boxes.txt").write_text("0,0,0,0\n1,2,3,4\n1,2,3,4\n")
    with pytest.raises(DataError, match=r"row 1: the box has no size"):
        read("frames", tmp_path / "walk", boxes=str(tmp_path / "boxes.txt"))


# What all of them share


def test_training_clips_are_no_test_set_and_the_other_way_round(tmp_path):
    lasot_clip(tmp_path / "cat" / "cat-1")
    lasot_clip(tmp_path / "cat" / "cat-2")
    (tmp_path / "testing_set.txt").write_text("cat-1\n")
    config = registry.get("data", "lasot").config
    splits = {split: read_data(config(root=str(tmp_path), split=split), "clips") for split in ("train", "test", "all")}
    assert ([len(each.train) for each in splits.values()], splits["train"].tests) == ([1, 0, 0], {})
    assert {split: [(name, len(clips)) for name, clips in each.tests.items()] for split, each in splits.items()} == {
        "train": [], "test": [("lasot", 1)], "all": [("lasot", 2)]
    }  # fmt: skip


def test_frames_are_read_one_by_one_and_damage_is_told_when_it_is_met(tmp_path):
    lasot_clip(tmp_path / "cat" / "cat-1")
    image = tmp_path / "cat" / "cat-1" / "img"
    (image / "00000002.jpg").write_bytes(b"no picture")
    (image / "00000003.jpg").write_bytes(picture(3, (9, 6)))
    clip = read("lasot", tmp_path, split="all")[0]
    assert clip.frame(0)[0, 0, 0] == 1
    with pytest.raises(DataError, match=r"00000002\.jpg' cannot be read: not a picture"):
        clip.frame(1)
    with pytest.raises(DataError, match=r"frame '.*3\.jpg' has 9 x 6 pixels, but 'cat-1' has 8 x 6: get it again"):
        clip.frame(2)
    for index in (3, -1):
        with pytest.raises(IndexError, match="clip 'cat-1' has frames 0 to 2"):
            clip.frame(index)


@pytest.mark.parametrize("kind", [part.name for part in registry.list("data") if "clips" in part.gives.split()])
def test_a_folder_that_is_missing_or_empty_is_one_line_with_the_remedy(tmp_path, kind):
    if "root" not in registry.get("data", kind).config.model_fields:
        pytest.skip("made, not read")
    more = {"file": str(tmp_path / "x.json")} if kind == "coco_pairs" else {}
    more = {"boxes": str(tmp_path / "x.txt")} if kind == "frames" else more
    (tmp_path / "x.json").write_text('{"images": [], "annotations": []}')
    (tmp_path / "data").mkdir()
    for root, message in (
        (tmp_path / "dat", r"dat' does not exist\. Did you mean 'data'"),
        (tmp_path / "data", r"'.*'"),
    ):
        with pytest.raises(DataError, match=message) as refused:
            read(kind, root, **more)
        assert "\n" not in str(refused.value)
        assert refused.value.args[0].endswith(".")


def test_a_clip_travels_to_another_process(tmp_path):
    lasot_clip(tmp_path / "cat" / "cat-1")
    clip = pickle.loads(pickle.dumps(read("lasot", tmp_path, split="all")[0]))
    assert numbers(clip) == [1, 2, 3]
