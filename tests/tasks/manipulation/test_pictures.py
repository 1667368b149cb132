from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vision_lowrank.data.boxes import Boxes
from vision_lowrank.data.manipulation.augmentation import ImdlAugmentation, TwinAugmentation
from vision_lowrank.data.manipulation.base import ManipulationSet, PictureRecord, Region
from vision_lowrank.data.manipulation.framing import Framing
from vision_lowrank.data.manipulation.joined import join
from vision_lowrank.data.manipulation.robustness import parse
from vision_lowrank.data.manipulation.sampling import Single, draws_of
from vision_lowrank.data.manipulation.schema import read_schema
from vision_lowrank.data.transforms import Preprocess
from vision_lowrank.errors import DataError
from vision_lowrank.tasks.manipulation.frames import Frames, stacked, tiles_of
from vision_lowrank.tasks.manipulation.picture_sets import check_selection, sample_evenly, share_of_reals, twins_of
from vision_lowrank.tasks.manipulation.pictures import Annotations, DrawnPictures, Pictures, boxes_of

PREPROCESS = Preprocess(size=48, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
CUES = ("blur", "noise", "color")
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 48, 3), dtype=np.uint8))
MASK = np.zeros((24, 48), dtype=bool)
MASK[6:18, 8:16] = True
EDIT = PictureRecord("e", "e.png", 1, "s", boxes=(Region((8.0, 6.0, 16.0, 18.0)),), cues=("noise",))


def annotations(mode="resize", boxes=2, **options):
    return Annotations(Frames(Framing(mode, 48, **options), (6, 6), PREPROCESS), CUES, boxes)


def flags(sample):
    return {name: bool(sample[f"has_{name}"]) for name in ("cues", "boxes", "tokens")}


# What is known ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "mask", "expected"),
    [
        (EDIT, MASK, {"cues": True, "boxes": True, "tokens": True}),
        (EDIT, None, {"cues": True, "boxes": True, "tokens": True}),  # boxes say where
        (replace(EDIT, boxes=None), MASK, {"cues": True, "boxes": False, "tokens": True}),
        (replace(EDIT, boxes=None), None, {"cues": True, "boxes": False, "tokens": False}),
        (replace(EDIT, cues=None), MASK, {"cues": False, "boxes": True, "tokens": True}),
        (replace(EDIT, cues=()), MASK, {"cues": True, "boxes": True, "tokens": True}),
        (replace(EDIT, boxes=()), None, {"cues": True, "boxes": True, "tokens": True}),
        (replace(EDIT, scope="global"), MASK, {"cues": True, "boxes": False, "tokens": False}),
        (PictureRecord("r", "r.png", 0, "s"), None, {"cues": False, "boxes": True, "tokens": True}),
        (
            PictureRecord("r", "r.png", 0, "s", cues=("noise",)),
            MASK & False,
            {"cues": False, "boxes": True, "tokens": True},
        ),
        (PictureRecord("g", "g.png", 2, "g", scope="global"), None, {"cues": False, "boxes": False, "tokens": False}),
    ],
)
def test_flags_say_what_was_annotated(record, mask, expected):
    sample = annotations().sample(record, IMAGE, mask, boxes_of(record))
    assert flags(sample) == expected
    assert sample["label"] == int(record.label > 0)
    if record.label == 0:
        assert (sample["box_count"], sample["tokens"].any()) == (0, False)
    if not expected["tokens"]:
        assert not sample["tokens"].any()


def test_values_are_those_of_the_record():
    sample = annotations().sample(EDIT, IMAGE, MASK, boxes_of(EDIT))
    assert sample["cues"].tolist() == [0, 1, 0]
    assert sample["boxes"].tolist() == [[0.25, 0.5, pytest.approx(1 / 6), 0.5], [0, 0, 0, 0]]
    # Cells are 8 x 4 pixels: column 1, and of the rows half of the second, the third and fourth, half of the fifth.
    expected = torch.zeros(6, 6)
    expected[:, 1] = torch.tensor([0, 0.5, 1, 1, 0.5, 0])
    torch.testing.assert_close(sample["tokens"].view(6, 6), expected)
    assert sample["size"].tolist() == [48, 24]


def test_boxes_stand_in_for_a_mask_that_is_not_there():
    with_mask, without = (annotations().sample(EDIT, IMAGE, mask, boxes_of(EDIT)) for mask in (MASK, None))
    assert torch.equal(with_mask["tokens"], without["tokens"])


def test_the_largest_boxes_are_kept():
    boxes = Boxes([(0.0, 0.0, 4.0, 4.0), (10.0, 0.0, 30.0, 20.0), (0.0, 0.0, 10.0, 10.0)])
    sample = annotations().sample(EDIT, IMAGE, None, boxes)
    assert sample["box_count"] == 2
    assert (sample["boxes"][:, 2] * 48).tolist() == pytest.approx([20, 10])


def test_pixels_are_normalised():
    sample = annotations().sample(EDIT, Image.new("RGB", (9, 5), (51, 102, 204)), None, None)
    expected = [(0.2 - 0.5) / 0.2, (0.4 - 0.4) / 0.3, (0.8 - 0.3) / 0.4]
    assert sample["tiles"].shape == (1, 3, 48, 48)
    torch.testing.assert_close(sample["tiles"].mean(dim=(0, 2, 3)), torch.tensor(expected))


def test_shapes_are_the_same_for_every_picture_of_a_framing():
    known = annotations("tile", max_tiles=3)
    samples = [known.sample(EDIT, IMAGE.resize(size), None, None) for size in ((48, 48), (150, 60), (300, 40))]
    batch = stacked(samples)
    assert batch["count"].tolist() == [1, 4, 4]
    assert batch["tiles"].shape == (3, 4, 3, 48, 48)
    assert batch["inside"].sum(dim=1).tolist() == [36, 144, 144]
    assert not batch["tiles"][0, 1:].any()
    assert torch.equal(tiles_of(batch, [1, 4, 4])[1:5], batch["tiles"][1])


# Sets -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def train(edited):
    return read_schema(edited / "train.jsonl")


def drawn(train, recipe, seed=3):
    return DrawnPictures(train, draws_of(train, seed), annotations(), recipe, seed)


def test_a_draw_is_a_picture_and_its_edit(train):
    samples = drawn(train, None)
    assert len(samples) == 6
    for index in range(6):
        sample = samples[40 + index, index]
        assert sample["label"].tolist() == [0, 1]
        assert sample["source"].unique().numel() == 1
        assert [train.records[number].label for number in sample["index"].tolist()] == [0, 1]


def test_a_draw_depends_on_seed_and_position_alone(train):
    one, again, other = (drawn(train, TwinAugmentation(), seed) for seed in (3, 3, 4))
    for name, value in one[7, 2].items():
        assert torch.equal(value, again[7, 2][name])
    positions = range(8)
    assert any(not torch.equal(one[p, 2]["tiles"], one[0, 2]["tiles"]) for p in positions)
    assert any(not torch.equal(one[p, 2]["tiles"], other[p, 2]["tiles"]) for p in positions)


def test_twins_are_altered_alike(train):
    samples = drawn(train, TwinAugmentation(flip=1.0, probability=0.0))
    plain = drawn(train, None)
    flipped, whole = samples[0, 1], plain[0, 1]
    torch.testing.assert_close(flipped["tiles"], whole["tiles"].flip(-1), rtol=0, atol=0.1)
    torch.testing.assert_close(flipped["boxes"][1, 0, 0], 1 - whole["boxes"][1, 0, 0])
    torch.testing.assert_close(flipped["tokens"].view(2, 6, 6), whole["tokens"].view(2, 6, 6).flip(-1))


def test_a_real_picture_that_augmentation_edits_is_an_edited_one(train):
    recipe = replace(ImdlAugmentation(inpainting=0.0), copy_move=1.0)
    real, edit = zip(*(each["label"].tolist() for each in (drawn(train, recipe)[i, i] for i in range(6))), strict=True)
    assert set(real) == set(edit) == {1}
    sample = drawn(train, recipe)[0, 0]
    assert sample["has_boxes"].all()
    assert sample["has_tokens"].all()
    assert sample["box_count"].tolist() == [1, 2]
    assert (sample["tokens"].sum(dim=1) > 0).all()
    assert sample["has_cues"].tolist() == [False, True]  # nobody looked for cues of the new edit
    calm = drawn(train, replace(recipe, copy_move=0.0))
    assert calm[0, 0]["label"].tolist() == [0, 1]


def test_pictures_are_those_of_the_set_in_its_order(train):
    samples = Pictures(train, annotations())
    assert [samples[i]["index"] for i in range(len(samples))] == list(range(18))
    assert [samples[i]["label"] for i in range(len(samples))] == (train.labels > 0).tolist()
    for index in range(3):
        share = samples[index]["tokens"].mean().item()
        assert share == pytest.approx(train.mask(index).mean(), abs=1e-6)


def test_degraded_pictures_keep_their_places(train):
    plain, small = (Pictures(train, annotations(), parse(name)) for name in ("resize-0", "resize-0.5"))
    for index in range(3):
        torch.testing.assert_close(small[index]["boxes"], plain[index]["boxes"], rtol=0, atol=1e-6)
        torch.testing.assert_close(small[index]["tokens"], plain[index]["tokens"], rtol=0, atol=0.25)
        assert (small[index]["size"] * 2).tolist() == plain[index]["size"].tolist()


# Looking ----------------------------------------------------------------------------------------------------------


def made(*pictures):
    records = [PictureRecord(f"{source}-{n}", "x.png", label, source) for n, (source, label) in enumerate(pictures)]
    return ManipulationSet.of("made", records, Path("."))


def test_looking_at_fewer_pictures_takes_whole_sources():
    pictures = made(*((f"s{i}", label) for i in range(10) for label in (0, 1, 1)))
    some = sample_evenly(pictures, 12)
    assert len(some) == 12
    assert {tuple(some.labels[some.sources.codes == code]) for code in np.unique(some.sources.codes)} == {(0, 1, 1)}
    assert some.sources.codes.min() == 0
    assert some.sources.codes.max() == 9
    assert sample_evenly(pictures, 30) is pictures


def test_twins_are_of_one_source_and_two_labels():
    sources, labels = torch.tensor([4, 4, 4, 7, 8, 8]), torch.tensor([0, 1, 1, 0, 1, 1])
    assert twins_of(sources, labels).tolist() == [1, 0, 2, 3, 4, 5]


def test_real_pictures_weigh_as_they_are_drawn():
    pictures = made(("a", 0), ("a", 1), ("b", 0), ("b", 1), ("c", 1), ("d", 1))
    assert share_of_reals(pictures, draws_of(pictures, 0)) == 1.0  # pairs
    assert share_of_reals(pictures, Single(6)) == 0.5
    joined = join("cat", [made(("a", 0), ("a", 1)), replace(made(("b", 1), ("c", 1), ("d", 1)), name="more")], draws=4)
    assert share_of_reals(joined, draws_of(joined, 0)) == 0.25 / 0.75  # either set in half of the draws
    three = made(("a", 0), ("b", 1), ("c", 2))
    assert share_of_reals(three, draws_of(three, 0)) == 0.5  # one real picture beside two others


def test_choosing_a_layer_needs_five_photographs_of_either_kind():
    enough = [(f"s{i}", label) for i in range(5) for label in (0, 1)]
    check_selection(made(*enough))
    with pytest.raises(Exception, match="'made' has real ones of 4"):
        check_selection(made(*(each for each in enough if each != ("s3", 0))))


@pytest.mark.parametrize("drawn", [False, True])
def test_a_mask_of_another_size_than_its_picture_is_refused(tmp_path, drawn):
    IMAGE.save(tmp_path / "e.png")
    Image.fromarray(MASK[:, :40]).save(tmp_path / "mask.png")
    found = ManipulationSet.of("odd", (replace(EDIT, mask="mask.png"),), tmp_path)
    data = DrawnPictures(found, Single(1), annotations(), None, 0) if drawn else Pictures(found, annotations())
    with pytest.raises(DataError, match=r"mask 'mask\.png' is 40 x 24 pixels, its picture 'e\.png' 48 x 24"):
        data[0]
