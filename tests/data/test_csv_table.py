import pytest
from PIL import Image

from vision_lowrank.data.csv_table import CsvConfig, csv_table
from vision_lowrank.errors import DataError
from vision_lowrank.registry import registry


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "pics").mkdir()
    for i in range(12):
        Image.new("RGB", (4 + i, 4)).save(tmp_path / "pics" / f"{i:02d}.png")
    return tmp_path


def write(folder, text, name="table.csv", encoding="utf-8"):
    (folder / name).write_text(text, encoding=encoding)
    return CsvConfig(file=str(folder / name), root=str(folder / "pics"))


def test_registered_under_its_name():
    assert registry.get("data", "csv").target is csv_table


def test_splits_follow_the_split_column(pictures):
    config = write(
        pictures,
        "image,note,label,split\n03.png,x,big_dog,train\n01.png,,cat,train\n02.png,,cat,val\n05.png,,big_dog,test\n",
    )
    splits = csv_table(config)
    assert splits.train.classes == ("big dog", "cat")
    assert (splits.train.keys, splits.train.labels) == (("01.png", "03.png"), (1, 0))
    assert (splits.val.keys, splits.tests["test"].keys) == (("02.png",), ("05.png",))
    assert splits.train.image(1).size == (7, 4)


def test_without_a_split_column_the_fractions_split(pictures):
    lines = "".join(f"{i:02d}.png,{'ab'[i % 2]}\n" for i in range(12))
    config = write(pictures, "image,label\n" + lines).model_copy(update={"fractions": (0.5, 0.0, 0.5)})
    splits = csv_table(config)
    assert [[len(found) for found in part.by_class()] for part in (splits.train, splits.tests["test"])] == [[3, 3]] * 2
    assert len(splits.val) == 0


def test_the_root_defaults_to_the_folder_of_the_table(pictures):
    (pictures / "t.csv").write_text("image,label,split\npics/01.png,a,train\n./pics/02.png,a,test\n")
    splits = csv_table(CsvConfig(file=str(pictures / "t.csv")))
    assert splits.train.keys + splits.tests["test"].keys == ("pics/01.png", "pics/02.png")


def test_tabs_blanks_and_byte_order_marks_are_understood(pictures):
    config = write(pictures, "image\t label\tsplit\n01.png\t a \ttrain\n", "table.tsv", "utf-8-sig")
    splits = csv_table(config)
    assert (splits.train.keys, splits.train.classes) == (("01.png",), ("a",))
    assert splits.tests == {}


def test_absolute_paths_below_the_root_become_relative_keys(pictures):
    config = write(pictures, f"image,label,split\n{pictures / 'pics' / '04.png'},a,train\n")
    assert csv_table(config).train.keys == ("04.png",)


def test_absolute_paths_outside_the_root_are_read_where_they_are(pictures, tmp_path_factory):
    away = tmp_path_factory.mktemp("away") / "a.png"
    Image.new("RGB", (33, 4)).save(away)
    splits = csv_table(write(pictures, f"image,label,split\n{away},a,train\n04.png,b,train\n"))
    assert splits.train.keys == (away.as_posix(), "04.png")
    assert [splits.train.image(i).size for i in range(2)] == [(33, 4), (8, 4)]
    with pytest.raises(DataError, match=r"line 2: picture '.*no\.png' does not exist: check"):
        csv_table(write(pictures, f"image,label\n{away.with_name('no.png')},a\n"))


def test_splits_in_the_usual_words(pictures):
    lines = "01.png,a,Training\n02.png,a,VALID\n03.png,a,test_set\n"
    splits = csv_table(write(pictures, "image,label,split\n" + lines))
    assert (splits.train.keys, splits.val.keys, splits.tests["test"].keys) == (("01.png",), ("02.png",), ("03.png",))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,lable\n01.png,a\n", "no column 'label'. Did you mean 'lable'"),
        ("", "no column 'image'. Columns found: none"),
        ("image,label,split\n01.png,a,train\n02.png,a,tset\n", "line 3: unknown split 'tset'. Did you mean 'test'"),
        ("image,label\n01.png,a\nno.png,a\n", "line 3: picture 'no.png' does not exist under"),
        ("image,label\n../table.csv,a\n", "line 2: picture '../table.csv' lies outside"),
        ("image,label\n01.png,\n", "line 2: column 'label' is empty"),
        ("image,label\n01.png\n", "line 2: column 'label' is empty"),
        ("image,label\n01.png,a\n./01.png,b\n", "lists picture '01.png' twice"),
        ("image,label\n", "lists no readable pictures"),
        ("image,label,split\n01.png,a,test\n", "no lines with split 'train'"),
        ("image,label,split\n01.png,a,train\n02.png,b,val\n", "'b' only in val or test"),
    ],
)
def test_bad_tables_are_named_with_the_line(pictures, text, said):
    with pytest.raises(DataError, match=said) as caught:
        csv_table(write(pictures, text))
    assert "\n" not in str(caught.value)


def test_a_missing_table_names_the_nearest(pictures):
    write(pictures, "image,label\n")
    with pytest.raises(DataError, match=r"does not exist. Did you mean 'table.csv'"):
        csv_table(CsvConfig(file=str(pictures / "tables.csv")))


def test_text_that_is_not_utf8(pictures):
    with pytest.raises(DataError, match="not UTF-8"):
        csv_table(write(pictures, "image,label\n01.png,sm\u00f8r\n", encoding="latin-1"))


def test_broken_pictures_stop_or_are_left_out(pictures):
    (pictures / "pics" / "02.png").write_bytes(b"oops")
    config = write(pictures, "image,label,split\n01.png,a,train\n02.png,a,train\n")
    with pytest.raises(DataError, match=r"1 of 2 pictures .*'02.png'"):
        csv_table(config)
    with pytest.warns(UserWarning, match="1 of 2 pictures"):
        splits = csv_table(config.model_copy(update={"skip_broken": True}))
    assert splits.train.keys == ("01.png",)
