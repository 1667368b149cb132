import json

import pytest
from fixtures.manipulation_trees import picture
from PIL import Image

from vision_lowrank.data.manipulation.base import EDITED, REAL, Region
from vision_lowrank.data.manipulation.coco_boxes import CocoBoxesConfig, coco_boxes, read_coco
from vision_lowrank.data.manipulation.magicbrush import read_magicbrush, records_of_rows
from vision_lowrank.errors import DataError
from vision_lowrank.registry import registry


def coco(
    tmp_path, images=None, annotations=None, categories=({"id": 5, "name": "texture"}, {"id": 6, "name": "removal"})
):
    for number in range(3):
        picture(tmp_path / "images" / f"{number}.png")
    content = {
        "images": images
        or [{"id": 10 + n, "file_name": f"{n}.png", "width": 16, "height": 8, "source_id": "0.png"} for n in range(3)],
        "annotations": annotations
        if annotations is not None
        else [
            {"id": 1, "image_id": 11, "bbox": [2, 1, 4, 5], "category_id": 5},
            {"id": 2, "image_id": 11, "bbox": [10, 1, 7, 5], "category_id": 9},
            {"id": 3, "image_id": 12, "bbox": [0, 0, 3, 3], "category_id": 6},
        ],
        "categories": list(categories),
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    return path


def test_an_image_with_annotations_is_edited(tmp_path):
    images = read_coco(coco(tmp_path), tmp_path / "images")
    assert images.labels.tolist() == [REAL, EDITED, EDITED]
    real, first, second = images.records
    assert real.boxes == ()  # annotated, and none
    assert first.boxes == (Region((2, 1, 6, 6), ("texture",)), Region((10, 1, 16, 6)))  # clipped by 1 px
    assert (first.category, second.category) == (None, "removal")
    assert (first.width, first.height, first.source_id) == (16, 8, "0.png")
    assert images.image(1).size == (16, 8)


def test_segmentations_are_mentioned_not_read(tmp_path):
    path = coco(
        tmp_path, annotations=[{"id": 1, "image_id": 11, "bbox": [0, 0, 2, 2], "segmentation": [[0, 0, 1, 1, 2, 2]]}]
    )
    with pytest.warns(UserWarning, match="1 segmentations are not read, only boxes"):
        assert read_coco(path, tmp_path / "images").labels.sum() == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"annotations": [{"id": 4, "image_id": 99, "bbox": [0, 0, 1, 1]}]}, "annotation 4 belongs to image 99"),
        ({"annotations": [{"id": 4, "image_id": 11, "bbox": [0, 0, 20, 1]}]}, "lies beyond the picture of 16x8"),
        ({"annotations": [{"id": 4, "image_id": 11, "bbox": [3, 3, 0, 1]}]}, "is empty or lies"),
        ({"annotations": [{"id": 4, "image_id": 11}]}, "no COCO annotation file: KeyError 'bbox'"),
        (
            {"images": [{"id": 11, "file_name": "no.png", "width": 1, "height": 1}], "annotations": []},
            "1 of 1 pictures",
        ),
        ({"images": [{"id": 1, "file_name": "0.png", "width": 1, "height": 1}] * 2, "annotations": []}, "twice"),
        (
            {"images": [{"id": 1, "file_name": "0.png", "width": 1, "height": 1, "split": "dev"}], "annotations": []},
            "split 'dev'",
        ),
    ],
)
def test_wrong_annotations(tmp_path, keys, message):
    with pytest.raises(DataError, match=message):
        read_coco(coco(tmp_path, **keys), tmp_path / "images")


def test_coco_as_a_data_set(tmp_path):
    path, folder = coco(tmp_path), str(tmp_path / "images")
    splits = coco_boxes(CocoBoxesConfig(images=folder, annotations=str(path)))
    assert sorted([len(splits.train), len(splits.val), len(splits.tests["test"])]) == [0, 0, 3]  # one source
    parts = {"train": str(path), "test": str(path)}
    with pytest.raises(DataError, match=r"source '0\.png' is in two splits"):
        coco_boxes(CocoBoxesConfig(images=folder, annotations=parts))
    assert registry.get("data", "coco_boxes").target is coco_boxes


ROWS = [
    {"img_id": 7, "turn_index": 2, "input_img": "7-out1.png", "instruction": "add a hat", "output_img": "7-out2.png"},
    {"img_id": 7, "turn_index": 1, "input_img": "7.png", "instruction": "make it night", "output_img": "7-out1.png"},
    {"img_id": 8, "turn_index": 1, "source_img": "8.png", "instruction": None, "target_img": "8-out1.png"},
]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_magicbrush_rows(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    path.write_text(json.dumps(ROWS) if suffix == ".json" else "\n".join(json.dumps(row) for row in ROWS))
    images = read_magicbrush(path)
    assert [(r.id, r.image, r.label, r.source_id, r.prompt) for r in images.records] == [
        ("7-output2", "7-out2.png", EDITED, "7-input", "add a hat"),
        ("7-input", "7.png", REAL, "7-input", None),
        ("7-output1", "7-out1.png", EDITED, "7-input", "make it night"),
        ("8-input", "8.png", REAL, "8-input", None),
        ("8-output1", "8-out1.png", EDITED, "8-input", None),
    ]


def test_magicbrush_pictures_in_memory_are_stored(tmp_path):
    row = {"img_id": "x", "turn_index": 1, "instruction": "i"}
    row |= {"source_img": Image.new("RGB", (4, 4), "red"), "target_img": Image.new("RGB", (4, 4), "blue")}
    real, edited = records_of_rows([row], tmp_path)
    assert Image.open(tmp_path / real.image).getpixel((0, 0)) == (255, 0, 0)
    assert Image.open(tmp_path / edited.image).getpixel((0, 0)) == (0, 0, 255)


def test_magicbrush_rows_that_lack_something(tmp_path):
    with pytest.raises(DataError, match=r"has no 'output_img' \(keys: img_id, turn_index, input_img\)"):
        list(records_of_rows([{"img_id": 1, "turn_index": 1, "input_img": "a"}], tmp_path))
    with pytest.raises(DataError, match="turn 1 comes twice"):
        list(records_of_rows([ROWS[2], ROWS[2]], tmp_path))
