import json
import random
from collections import defaultdict
from pathlib import Path

import pytest
import torchvision
from fixtures.coop_trees import plant, plant_imagenet, plant_variant, write

from vision_lowrank.data.coop import CoopConfig, coop
from vision_lowrank.data.coop_sets import COOP_SETS, ENSEMBLE
from vision_lowrank.data.samplers import draw_shots
from vision_lowrank.errors import DataError
from vision_lowrank.registry import registry

PLACES = [(spec.key, folder) for spec in COOP_SETS.values() for folder in spec.folders]
JSON_SETS = [spec.key for spec in COOP_SETS.values() if spec.source == "json"]

# Pictures of each data set as its authors publish it (Caltech-101 without Faces_easy and the background class).
TOTALS = {
    "caltech101": 9144 - 467 - 435, "oxford_pets": 7349, "stanford_cars": 16_185, "oxford_flowers": 8189,
    "food101": 101_000, "fgvc_aircraft": 10_000, "sun397": 39_700, "dtd": 5640, "eurosat": 27_000, "ucf101": 13_320,
}  # fmt: skip


def read(root, name, **options):
    return coop(CoopConfig(root=str(root), name=name, **options))


def listed(images):
    return [[key, label, images.classes[label]] for key, label in zip(images.keys, images.labels, strict=True)]


def spaced(rows):
    return [[key, label, name.replace("_", " ")] for key, label, name in rows]


# --- the table ----------------------------------------------------------------------------------------------------


def test_table_sizes_add_up_to_the_published_totals():
    assert {key: sum(COOP_SETS[key].sizes) for key in TOTALS} == TOTALS
    assert len(COOP_SETS) == 15
    assert sum(spec.classes for spec in COOP_SETS.values() if spec.source in ("json", "variants")) == 1191


@pytest.mark.parametrize("spec", COOP_SETS.values(), ids=lambda spec: spec.key)
def test_prompts_end_in_one_full_stop_and_have_one_slot(spec):
    for template in (spec.template, *ENSEMBLE):
        assert template.count("{}") == template.count(".") == 1
        assert template.endswith(".")
        assert "_" not in template


@pytest.mark.parametrize("spec", [s for s in COOP_SETS.values() if s.torchvision], ids=lambda spec: spec.key)
def test_torchvision_has_the_named_classes(spec):
    assert issubclass(getattr(torchvision.datasets, spec.torchvision), torchvision.datasets.VisionDataset)


# --- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "folder"), PLACES)
def test_every_set_is_read_under_each_of_its_folder_names(tmp_path, key, folder):
    rows = plant(tmp_path, key, folder)
    splits = read(tmp_path, key)
    assert listed(splits.train) == spaced(rows["train"])
    assert listed(splits.val) == spaced(rows["val"])
    assert listed(splits.tests["test"]) == spaced(rows["test"])
    assert splits.templates == (COOP_SETS[key].template,)
    assert splits.tests["test"].image(0).size == (4, 3)
    for images in (splits.train, splits.tests["test"]):
        assert set(images.labels) in (set(range(len(images.classes))), set())
        assert not any("_" in name for name in images.classes)


@pytest.mark.parametrize("what", ["folder", "images"])
def test_links_are_followed(tmp_path, what):
    rows, root = plant(tmp_path / "elsewhere", "dtd"), tmp_path / "data"
    root.mkdir()
    if what == "folder":
        (root / "DTD").symlink_to(tmp_path / "elsewhere" / "dtd", target_is_directory=True)
    else:
        (root / "dtd").mkdir()
        (root / "dtd" / "images").symlink_to(tmp_path / "elsewhere" / "dtd" / "images", target_is_directory=True)
        name = COOP_SETS["dtd"].split
        (root / "dtd" / name).symlink_to(tmp_path / "elsewhere" / "dtd" / name)
    splits = read(root, "dtd")
    assert listed(splits.train) == spaced(rows["train"])
    assert splits.train.image(0).size == (4, 3)


def test_of_two_folders_the_complete_one_is_read(tmp_path):
    (tmp_path / "dtd" / "images").mkdir(parents=True)
    rows = plant(tmp_path, "dtd", "DTD")
    assert listed(read(tmp_path, "dtd").train) == spaced(rows["train"])


def test_imagenet_without_the_folder_images_is_that_of_clip_lora(tmp_path):
    rows = plant_imagenet(tmp_path, images="")
    (tmp_path / "imagenet" / "images").mkdir()
    assert listed(read(tmp_path, "imagenet").train) == rows["train"]


def test_imagenet_test_pictures_are_the_validation_pictures_and_never_select(tmp_path):
    plant(tmp_path, "imagenet")
    splits = read(tmp_path, "imagenet")
    assert all(key.startswith("val/") for key in splits.tests["test"].keys)
    assert len(splits.val) == 0
    assert draw_shots(splits, 2, 1, "coop")[1] is None


def test_numbered_folders_belong_to_the_lines_of_the_class_names(tmp_path):
    base = tmp_path / "imagenetv2"
    for i in range(12):
        write(base / "imagenetv2-matched-frequency-format-val" / str(i) / "a.jpeg")
    (base / "classnames.txt").write_text("".join(f"n{i:02d} name {i}\n" for i in range(12)))
    images = read(tmp_path, "imagenetv2").tests["test"]
    assert [row[2] for row in listed(images)] == [f"name {i}" for i in range(12)]
    assert images.keys[10] == "10/a.jpeg"


@pytest.mark.parametrize("key", ["imagenet_a", "imagenet_r"])
def test_variants_have_only_their_own_classes_by_rank_of_their_wnids(tmp_path, key):
    plant_variant(tmp_path, key, wnids=("n07", "n03"))
    images = read(tmp_path, key).tests["test"]
    assert images.classes == ("name of n03", "name of n07")
    assert listed(images) == [["n03/a.jpg", 0, "name of n03"], ["n07/a.jpg", 1, "name of n07"]]


def test_variants_share_the_class_names_of_imagenet(tmp_path):
    plant(tmp_path, "imagenet")
    rows = plant_variant(tmp_path, "imagenet_sketch")
    (tmp_path / "imagenet-sketch" / "classnames.txt").unlink()
    assert listed(read(tmp_path, "imagenet_sketch").tests["test"]) == rows["test"]


def test_templates_own_given_or_ensemble(tmp_path):
    plant(tmp_path, "eurosat")
    assert read(tmp_path, "eurosat").templates == ("a centered satellite photo of {}.",)
    assert read(tmp_path, "eurosat", templates="ensemble").templates == ENSEMBLE
    assert read(tmp_path, "eurosat", templates=("{}!",)).templates == ("{}!",)


def test_registered_under_its_name_with_checked_options():
    part = registry.get("data", "coop")
    assert part.target is coop
    config = part.config(root="x", name="dtd", templates="ensemble")
    assert part.config(**config.model_dump(mode="json")) == config
    with pytest.raises(DataError, match=r"unknown data set 'dtdd'\. Did you mean 'dtd'"):
        part.config(root="x", name="dtdd")


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [*JSON_SETS, "imagenet", "imagenet_a", "fgvc_aircraft"])
def test_a_missing_split_file_is_an_error(tmp_path, key):
    plant(tmp_path, key)
    path = tmp_path / COOP_SETS[key].folders[0] / COOP_SETS[key].split
    path.unlink()
    with pytest.raises(DataError, match=f"split file '{path}' is missing: get it from .*not be comparable"):
        read(tmp_path, key)


def test_a_missing_list_of_aircraft_is_an_error(tmp_path):
    plant(tmp_path, "fgvc_aircraft")
    (tmp_path / "fgvc_aircraft" / "images_variant_val.txt").unlink()
    with pytest.raises(DataError, match=r"'.*images_variant_val.txt' is missing"):
        read(tmp_path, "fgvc_aircraft")


def test_a_missing_folder_names_both_names_and_where_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"neither folder 'caltech-101' nor 'Caltech101' exists: .*data\.caltech\.edu"):
        read(tmp_path, "caltech101")
    with pytest.raises(DataError, match="folder 'imagenet' does not exist"):
        read(tmp_path, "imagenet")


def test_a_missing_picture_folder_is_named(tmp_path):
    plant(tmp_path, "stanford_cars")
    (tmp_path / "stanford_cars" / "cars_test").rename(tmp_path / "gone")
    with pytest.raises(DataError, match="no picture folder 'cars_train' or 'cars_test'"):
        read(tmp_path, "stanford_cars")


def edited(root, change):
    rows = plant(root, "dtd")
    (root / "dtd" / COOP_SETS["dtd"].split).write_text(json.dumps(change(rows)))


@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_must_be_all_there(tmp_path, split):
    edited(tmp_path, lambda rows: rows | {split: [row for row in rows[split] if row[1] != 1]})
    with pytest.raises(DataError, match=f"{split} has no pictures of 'red dog', 1 of 3 classes"):
        read(tmp_path, "dtd")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: {"train": rows["train"]}, "is not {'train'"),
        (lambda rows: [1, 2], "is not {'train'"),
        (lambda rows: rows | {"val": [["a.jpg", 0]]}, "is not {'train'"),
        (lambda rows: rows | {"val": [["a.jpg", 0, "lynx"]]}, "calls label 0 'Big_cat' and 'lynx'"),
        (lambda rows: rows | {"val": [["a.jpg", 7, "lynx"]]}, "4 labels, but they are not 0 to 3"),
    ],
)
def test_split_files_that_make_no_sense(tmp_path, change, said):
    edited(tmp_path, change)
    with pytest.raises(DataError, match=said):
        read(tmp_path, "dtd")


def test_folders_without_class_names_and_classes_without_folders(tmp_path):
    plant(tmp_path, "imagenet")
    write(tmp_path / "imagenet" / "images" / "train" / "n99" / "a.JPEG")
    with pytest.raises(DataError, match="class folders 'n99' are only in one of train and val"):
        read(tmp_path, "imagenet")
    write(tmp_path / "imagenet" / "images" / "val" / "n99" / "a.JPEG")
    with pytest.raises(DataError, match="has folders 'n99' that no class name is for"):
        read(tmp_path, "imagenet")
    plant(tmp_path, "imagenetv2")
    (tmp_path / "imagenetv2" / "imagenetv2-matched-frequency-format-val" / "2").rename(tmp_path / "2")
    with pytest.raises(DataError, match="has no folder '2'"):
        read(tmp_path, "imagenetv2")


def test_a_variant_that_the_list_of_variants_lacks(tmp_path):
    plant(tmp_path, "fgvc_aircraft")
    with open(tmp_path / "fgvc_aircraft" / "images_variant_val.txt", "a") as file:
        file.write("123 Concorde\n")
    with pytest.raises(DataError, match=r"names 'Concorde', not in 'variants\.txt'"):
        read(tmp_path, "fgvc_aircraft")


# --- few-shot draws, by the published algorithms with the global generator -----------------------------------------


def by_label(rows):
    groups = defaultdict(list)
    for row in rows:
        groups[row[1]].append(row)
    return groups


def keys(rows):
    return tuple(row[0] for row in rows)


@pytest.mark.parametrize("key", ["dtd", "fgvc_aircraft"])
@pytest.mark.parametrize(("shots", "seed"), [(1, 1), (2, 2), (4, 3), (7, 1), (16, 2)])
def test_coop_draw(tmp_path, key, shots, seed):
    rows = plant(tmp_path, key)
    random.seed(seed)
    want = []
    for split, count in (("train", shots), ("val", min(shots, 4))):
        want.append([])
        for items in by_label(rows[split]).values():
            want[-1] += random.sample(items, count) if len(items) >= count else items
    train, val = draw_shots(read(tmp_path, key), shots, seed, "coop", allow_fewer=True)
    assert (train.keys, val.keys) == (keys(want[0]), keys(want[1]))
    assert [len(found) for found in train.by_class()] == [min(shots, 7)] * 3


@pytest.mark.parametrize("key", ["dtd", "fgvc_aircraft"])
@pytest.mark.parametrize(("shots", "seed"), [(1, 1), (2, 2), (4, 3), (7, 1), (16, 2)])
def test_clip_lora_draw(tmp_path, key, shots, seed):
    rows = plant(tmp_path, key)
    random.seed(seed)
    want = []
    for split, count in (("val", min(shots, 4)), ("train", shots)):
        want.append([])
        for items in by_label(rows[split]).values():
            want[-1] += random.sample(items, count) if len(items) >= count else random.choices(items, k=count)
    train, val = draw_shots(read(tmp_path, key), shots, seed, "clip_lora", allow_fewer=True)
    assert (val.keys, train.keys) == (keys(want[0]), keys(want[1]))


@pytest.mark.parametrize(("shots", "seed"), [(1, 1), (2, 2), (4, 3)])
def test_clip_lora_draw_of_imagenet_takes_both_from_train(tmp_path, shots, seed):
    rows = plant(tmp_path, "imagenet")
    random.seed(seed)
    few, want_train, want_val = min(4, shots), [], []
    for items in by_label(rows["train"]).values():
        both = random.sample(items, shots + few)
        want_train += both[:shots]
        want_val += both[shots:]
    train, val = draw_shots(read(tmp_path, "imagenet"), shots, seed, "clip_lora")
    assert (train.keys, val.keys) == (keys(want_train), keys(want_val))
    assert not set(train.keys) & set(val.keys)


@pytest.mark.parametrize(("shots", "seed"), [(2, 1), (8, 2)])
def test_coop_draw_of_imagenet_is_of_train_alone(tmp_path, shots, seed):
    rows = plant(tmp_path, "imagenet")
    random.seed(seed)
    want = [row for items in by_label(rows["train"]).values() for row in random.sample(items, shots)]
    train, val = draw_shots(read(tmp_path, "imagenet"), shots, seed, "coop")
    assert train.keys == keys(want)
    assert val is None


def test_clip_lora_draw_of_imagenet_needs_pictures_for_both(tmp_path):
    plant(tmp_path, "imagenet")
    with pytest.raises(DataError, match=r"has 8 training pictures, 9 needed: .*4 of each class validate"):
        draw_shots(read(tmp_path, "imagenet"), 5, 1, "clip_lora", allow_fewer=True)


# --- downloading --------------------------------------------------------------------------------------------------


LEFT_BY_TORCHVISION = {
    "dtd": "dtd/dtd/images", "sun397": "SUN397", "oxford_pets": "oxford-iiit-pet/images", "eurosat": "eurosat/2750",
    "caltech101": "caltech101/101_ObjectCategories", "oxford_flowers": "flowers-102/jpg", "food101": "food-101/images",
    "fgvc_aircraft": "fgvc-aircraft-2013b/data",
}  # fmt: skip


def fake_download(monkeypatch, key, source):
    """torchvision's class, with the download replaced by moving a folder to where it would leave it."""
    calls = []

    def download(root, download):
        calls.append(download)
        to = Path(root) / LEFT_BY_TORCHVISION[key]
        to.parent.mkdir(parents=True, exist_ok=True)
        source.rename(to)

    monkeypatch.setattr(torchvision.datasets, COOP_SETS[key].torchvision, download)
    return calls


@pytest.mark.parametrize("key", LEFT_BY_TORCHVISION)
def test_downloaded_pictures_are_linked_to_where_coop_has_them(tmp_path, monkeypatch, key):
    spec, root = COOP_SETS[key], tmp_path / "data"
    rows = plant(tmp_path / "server", key)
    served = tmp_path / "server" / spec.folders[0]
    if spec.source == "json":
        (root / spec.folders[0]).mkdir(parents=True)
        (served / spec.split).rename(root / spec.folders[0] / spec.split)
        served = served / spec.images[0]
    calls = fake_download(monkeypatch, key, served)
    with pytest.raises(DataError, match="let torchvision download them"):
        read(root, key)
    splits = read(root, key, download=True)
    assert listed(splits.tests["test"]) == spaced(rows["test"])
    assert splits.tests["test"].image(0).size == (4, 3)
    assert read(root, key, download=True).train.hash == splits.train.hash
    assert calls == [True]


def test_a_download_that_fails_or_that_nobody_offers(tmp_path, monkeypatch):
    def broken(root, download):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "DTD", broken)
    with pytest.raises(DataError, match=r"'dtd': the download failed: no route to host\. Try again or see http"):
        read(tmp_path, "dtd", download=True)
    with pytest.raises(DataError, match="'ucf101' cannot be downloaded by torchvision: get it from http"):
        read(tmp_path, "ucf101", download=True)
