"""``vision-lowrank add-classes`` on a saved classifier with a prototype head."""

import json
import shutil

import pytest
import torch

from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.cli.main import main
from vision_lowrank.data.emoji import emoji_images
from vision_lowrank.tasks.classification.classifier import ImageClassifier
from vision_lowrank.tasks.classification.reference import FILE, reference_of
from vision_lowrank.tasks.saved import add_parts

OLD, NEW = ("cat face", "heart", "time"), ("keycap", "plant flower")


def command(capsys, *arguments):
    """Exit code, standard output with its line breaks as spaces, and error lines of a command."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    return stop.value.code, " ".join(captured.out.split()), errors


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    """Folders of six pictures per class, old and new."""
    root, images = tmp_path_factory.mktemp("emoji"), emoji_images("fluent")
    for name, indices in zip(images.classes, images.by_class(), strict=True):
        if name in (*OLD, *NEW):
            folder = root / ("old" if name in OLD else "new") / name.replace(" ", "_")
            folder.mkdir(parents=True)
            for index in indices[:6]:
                images.image(index).save(folder / f"{index}.png")
    return root


@pytest.fixture
def artefact(tmp_path, emoji):
    classifier = ImageClassifier(load_backbone("tiny-clip").eval(), "prototype", OLD, ["an emoji of {}"])
    images = emoji_images("fluent")
    groups = dict(zip(images.classes, images.by_class(), strict=True))
    labels = torch.arange(3).repeat_interleave(6)
    pixels = torch.stack([classifier.backbone.transform(images.image(i)) for name in OLD for i in groups[name][:6]])
    with torch.no_grad():
        features = classifier.backbone.encode_image(pixels)
    classifier.head.set_prototypes(features, labels)
    record = {
        "config": {
            "task": {"type": "zeroshot"},
            "backbone": {"name": "tiny-clip"},
            "engine": {"tensorboard": False},
            "data": {"type": "folder", "train": str(emoji / "old"), "test": str(emoji / "new")},
        }
    }
    classifier.save(tmp_path / "artefact", record)
    add_parts(tmp_path / "artefact", {FILE: reference_of(features, labels)})
    return tmp_path / "artefact"


def test_adds_classes_that_predict_knows_then(artefact, emoji, tmp_path, capsys):
    code, out, _ = command(capsys, "add-classes", artefact, emoji / "new", "--json", tmp_path / "n.json")
    assert code == 0
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert "added 2 classes to 3" in out
    for new in numbers["new"]:
        assert new["name"] in NEW
        assert f"{new['name']} │ {new['pictures']} │ {100 * new['accuracy']:.1f} │ {100 * new['left_out']:.1f}" in out
    old = numbers["old"]
    assert "18 pictures of 3 of 3 old classes" in out
    assert f"accuracy before │ {100 * old['before']:.1f}" in out
    assert f"accuracy after │ {100 * old['after']:.1f}" in out
    assert f"new class │ {old['taken']}" in out
    assert old["worst"] or old["before"] == old["after"]
    for loss in old["worst"]:
        assert f"{loss['name']} │ {100 * loss['before']:.1f} │ {100 * loss['after']:.1f} │ {loss['by']}" in out

    assert command(capsys, "predict", artefact, emoji / "new", "--json", tmp_path / "p.json")[0] == 0
    rows = json.loads((tmp_path / "p.json").read_text())
    right = sum(row["class"].replace(" ", "_") in row["image"] for row in rows)
    assert right / len(rows) == pytest.approx(sum(new["accuracy"] for new in numbers["new"]) / 2)


def test_dry_run_and_undo_say_what_they_would_do(artefact, emoji, tmp_path, capsys):
    code, out, _ = command(capsys, "add-classes", artefact, emoji / "new", "--dry-run")
    assert (code, "would add 2 classes" in out) == (0, True)
    assert ImageClassifier.load(artefact).classes == OLD
    command(capsys, "add-classes", artefact, emoji / "new")
    assert command(capsys, "add-classes", artefact, "--undo", "--dry-run")[1].startswith("would take back 2 classes")
    code, out, _ = command(capsys, "add-classes", artefact, "--undo", "--json", tmp_path / "n.json")
    assert (code, out) == (0, "took back 2 classes: keycap, plant flower")
    assert json.loads((tmp_path / "n.json").read_text()) == {"undone": list(NEW), "dry_run": False}
    assert ImageClassifier.load(artefact).classes == OLD


def test_without_reference_features_it_says_so(artefact, emoji, tmp_path, capsys):
    (artefact / "reference.safetensors").unlink()
    out = command(capsys, "add-classes", artefact, emoji / "new", "--json", tmp_path / "n.json")[1]
    assert "keeps no reference features" in out
    assert json.loads((tmp_path / "n.json").read_text())["old"] is None


def test_eval_on_the_data_of_the_old_classes_names_the_difference(artefact, emoji, tmp_path, capsys):
    shutil.copytree(emoji / "old", tmp_path / "test")
    data = (f"data.train={emoji / 'old'}", f"data.test={tmp_path / 'test'}")
    assert command(capsys, "eval", artefact, *data)[0] == 0
    command(capsys, "add-classes", artefact, emoji / "new")
    code, _, errors = command(capsys, "eval", artefact, *data)
    assert (code, len(errors)) == (2, 1)
    assert "knows 5 classes, the data has 3 (differing in 'keycap')" in errors[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either the FOLDER"),
        (["{new}", "--undo"], "give either the FOLDER"),
        (["--undo"], "nothing to undo"),
        (["{old}"], "'cat face' already"),
        (["{new}", "--min-pictures", "9"], "too few pictures"),
        (["{new}/keycap"], "no class folders"),
        (["{new}/keycup"], "Did you mean 'keycap'?"),
    ],
)
def test_mistakes_are_one_line(artefact, emoji, capsys, arguments, message):
    filled = [argument.format(new=emoji / "new", old=emoji / "old") for argument in arguments]
    code, _, errors = command(capsys, "add-classes", artefact, *filled)
    assert (code, len(errors)) == (2, 1)
    assert message in errors[0]
