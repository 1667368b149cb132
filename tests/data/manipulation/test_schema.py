import json
import pickle

import numpy as np
import pytest
from PIL import Image

from vision_lowrank.data.manipulation.base import EDITED, REAL, PictureRecord, Region, Vocabulary
from vision_lowrank.data.manipulation.schema import JsonLines, read_schema, read_vocabulary, write_schema
from vision_lowrank.errors import DataError

RECORDS = (
    PictureRecord("a1", "real/a1.png", REAL, source_id="a1", width=16, height=8, boxes=(), cues=()),
    PictureRecord(
        "a1-e3",
        "edited/ä1.png",
        EDITED,
        source_id="a1",
        group="roll 7",
        source_image="real/a1.png",
        editor="qwen-image-edit",
        editor_access="open",
        category="replacement",
        prompt="replace the dog by a cat",
        scope="local",
        width=16,
        height=8,
        boxes=(Region((1.5, 2, 9, 7), ("texture", "light")), Region((0, 0, 3, 3), ()), Region((0, 0, 1, 1))),
        mask="masks/a1.png",
        cues=("texture",),
        explanation="The fur has no fine detail.",
        annotator="human",
        derived=True,
        split="train",
    ),
    PictureRecord("b", "b.png", 2, source_id="b"),
)


def lines(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n", "utf-8")
    return path


def row(**keys):
    return {"id": "a", "image": "a.png", "label": 1} | keys


def test_everything_survives_a_round_trip(tmp_path):
    path = tmp_path / "all.jsonl"
    write_schema(path, iter(RECORDS), Vocabulary())
    images = read_schema(path)
    assert tuple(images.records) == RECORDS
    assert tuple(images.records[i] for i in range(3)) == RECORDS
    assert images.labels.tolist() == [0, 1, 2]
    assert [images.sources[i] for i in range(3)] == ["a1", "a1", "b"]
    assert (images.name, images.root) == ("all", tmp_path)
    assert read_vocabulary(tmp_path) == Vocabulary()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_absent_and_null_are_not_annotated_and_empty_is(tmp_path):
    images = read_schema(
        lines(tmp_path / "x.jsonl", row(), row(id="b", cues=None, boxes=None), row(id="c", cues=[], boxes=[]))
    )
    assert [r.cues for r in images.records] == [None, None, ()]
    assert [r.boxes for r in images.records] == [None, None, ()]
    assert images.records[0].source_id == "a"
    written = json.loads((tmp_path / "x.jsonl").read_text().splitlines()[2])
    write_schema(tmp_path / "y.jsonl", images.records, images.vocabulary)
    again = [json.loads(line) for line in (tmp_path / "y.jsonl").read_text().splitlines()]
    assert "cues" not in again[1]
    assert again[2]["cues"] == written["cues"] == []


def test_records_are_parsed_on_access_and_pickle_without_them(tmp_path):
    path = lines(tmp_path / "x.jsonl", *(row(id=str(i), explanation="x" * 200) for i in range(500)))
    images = read_schema(path)
    assert isinstance(images.records, JsonLines)
    dumped = pickle.dumps(images.records)
    assert len(dumped) < 500 * 8 + 2000  # offsets, not rows
    assert pickle.loads(dumped)[321].id == "321"
    assert images.records[-1].id == "499"
    assert [r.id for r in images.records[10:14:2]] == ["10", "12"]
    assert images.subset([7, 3]).records[1].id == "3"
    with pytest.raises(IndexError):
        images.records[500]


def test_data_loader_workers_read_it(tmp_path):
    from torch.utils.data import DataLoader, Dataset

    images = read_schema(lines(tmp_path / "x.jsonl", *(row(id=str(i)) for i in range(20))))

    class Ids(Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            return images.records[index].id

    assert [each for batch in DataLoader(Ids(), batch_size=5, num_workers=2) for each in batch] == [
        str(i) for i in range(20)
    ]


def test_a_mark_at_the_start_blank_lines_and_windows_ends(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row()).encode() + b"\r\n\r\n" + json.dumps(row(id="b")).encode())
    images = read_schema(path)
    assert [r.id for r in images.records] == ["a", "b"] == [images.records[i].id for i in range(2)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", r"x\.jsonl' line 3: the line is no valid JSON"),
        ("[1]", "line 3: the line is no JSON object"),
        (row(labl=1), r"unknown key 'labl' \(did you mean 'label'\?\)"),
        ({"image": "a.png", "label": 0}, "required key 'id' is missing"),
        (row(label=True), r"'label' must be 0 \(real\), 1 \(edited\) or 2 \(synthetic\), not true"),
        (row(label=3), "'label' must be 0"),
        (row(width=0), "'width' must be a whole number of pixels above 0, not 0"),
        (row(width=3.5), "'width' must be"),
        (row(editor=7), "'editor' must be text, not 7"),
        (row(id=""), "'id' must be text"),
        (row(split="dev"), "'split' must be train, val or test, not \"dev\""),
        (row(scope=["local"]), "'scope' must be local, global or unknown"),
        (row(derived=1), "'derived' must be true or false"),
        (row(cues="texture"), "'cues' must be a list of names"),
        (row(cues=["textur"]), r"cues 'textur' not in the vocabulary \(did you mean 'texture'\?\)"),
        (
            row(category="replacment"),
            r"category 'replacment' is not in the vocabulary \(did you mean 'replacement'\?\)",
        ),
        (row(boxes={}), "'boxes' must be a list"),
        (row(boxes=[[0, 0, 1, 1]]), r"boxes\[0\] must be an object with the key xyxy"),
        (row(boxes=[{"xyxy": [0, 0, 1]}]), r"boxes\[0\]\.xyxy must be four numbers"),
        (row(boxes=[{"xyxy": [5, 0, 5, 1]}]), "must have 0 <= x1 < x2"),
        ('{"id": "a", "image": "a.png", "label": 1, "boxes": [{"xyxy": [0, 0, NaN, 4]}]}', "must be four numbers"),
        (
            row(width=9, height=9, boxes=[{"xyxy": [0, 0, 12, 4]}]),
            r"boxes\[0\] \[0, 0, 12, 4\] lies beyond the picture of 9x9",
        ),
        (row(boxes=[{"xyxy": [0, 0, 1, 1], "cues": ["?"]}]), r"boxes\[0\]: cues '\?' not in the vocabulary"),
    ],
)
def test_a_wrong_line_names_file_line_key_and_reason(tmp_path, bad, message):
    path = lines(tmp_path / "x.jsonl", row(id="first"), "", bad)
    with pytest.raises(DataError, match=message):
        read_schema(path)


def test_a_line_that_is_no_utf8_and_a_line_that_changed(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(json.dumps(row()).encode() + b"\n\xff\n")
    with pytest.raises(DataError, match="line 2: the line is not UTF-8"):
        read_schema(path)
    lines(path, row(), row(id="b"))
    records = read_schema(path).records
    path.write_text(path.read_text().replace('"b"', "[1]"))
    with pytest.raises(DataError, match="line 2: 'id' must be text"):
        records[1]


def test_several_problems_of_a_line_come_together(tmp_path):
    with pytest.raises(DataError, match="unknown key 'x'; required key 'label' is missing; 'width' must be"):
        read_schema(lines(tmp_path / "x.jsonl", {"id": "a", "image": "a.png", "x": 1, "width": -1}))


def test_missing_and_empty_files(tmp_path):
    lines(tmp_path / "train.jsonl", row())
    with pytest.raises(DataError, match=r"does not exist\. Did you mean 'train.jsonl'\?"):
        read_schema(tmp_path / "trian.jsonl")
    with pytest.raises(DataError, match="has no lines"):
        read_schema(lines(tmp_path / "empty.jsonl", ""))


def test_boxes_are_clipped_within_two_pixels(tmp_path):
    path = lines(
        tmp_path / "x.jsonl",
        row(width=20, height=10, boxes=[{"xyxy": [-2, -1.5, 22, 11]}, {"xyxy": [3, 3, 4.5, 5]}]),
        row(id="b", boxes=[{"xyxy": [-1, 0, 22, 11]}]),
    )
    images = read_schema(path)
    assert [box.xyxy for box in images.records[0].boxes] == [(0, 0, 20, 10), (3, 3, 4.5, 5)]
    assert images.records[1].boxes[0].xyxy == (0, 0, 22, 11)


def test_own_vocabularies_keep_their_order(tmp_path):
    own = Vocabulary(("z", "a"), {"kinds": ("splice", "clone")})
    write_schema(tmp_path / "x.jsonl", [PictureRecord("a", "a.png", 1, "a", cues=("a",), category="clone")], own)
    assert json.loads((tmp_path / "schema.json").read_text()) == {
        "version": 1, "cues": ["z", "a"], "categories": {"kinds": ["splice", "clone"]},
    }  # fmt: skip
    assert read_schema(tmp_path / "x.jsonl").vocabulary == own
    with pytest.raises(DataError, match="holds another vocabulary"):
        write_schema(tmp_path / "y.jsonl", [], Vocabulary())
    with pytest.raises(
        DataError, match=r"record 'b' cannot be written.*category 'replacement' is not in the vocabulary"
    ):
        write_schema(tmp_path / "y.jsonl", [PictureRecord("b", "b.png", 1, "b", category="replacement")], own)
    assert not (tmp_path / "y.jsonl").exists()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"version": 2}, "has version 2, this program reads 1"),
        ({"cue": []}, "must be an object with the keys"),
        ({"cues": ["a", "a"]}, "each name once"),
        ({"categories": ["a"]}, "an object of lists"),
        ([], "must be an object"),
    ],
)
def test_wrong_headers(tmp_path, header, message):
    (tmp_path / "schema.json").write_text(json.dumps(header))
    with pytest.raises(DataError, match=message):
        read_vocabulary(tmp_path)


def test_pictures_and_masks_come_from_the_files_folder(tmp_path):
    (tmp_path / "data").mkdir()
    Image.new("RGB", (6, 4), "red").save(tmp_path / "data" / "a.png")
    mask = np.zeros((4, 6), np.uint8)
    mask[1:3, 2:5] = 128
    mask[0, 0] = 127
    Image.fromarray(mask).save(tmp_path / "data" / "m.png")
    images = read_schema(lines(tmp_path / "data" / "x.jsonl", row(mask="m.png"), row(id="r", label=0)))
    assert images.image(0).size == (6, 4)
    assert np.array_equal(images.mask(0), mask > 127)  # 127 and 128 fall on different sides
    assert not images.mask(1).any()
