import json
import os

import pytest
import torch
import torch.nn.functional as F
from fixtures.models import moved
from safetensors.torch import load_file

from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.attachment.attach import attach
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.data.emoji import emoji_images
from vision_lowrank.errors import ArtefactError, DataError, UserError
from vision_lowrank.tasks.classification import growing
from vision_lowrank.tasks.classification.classifier import ImageClassifier
from vision_lowrank.tasks.classification.growing import add_classes, undo
from vision_lowrank.tasks.classification.reference import FILE, PER_CLASS, load_reference, reference_of
from vision_lowrank.tasks.saved import add_parts, save_parts

OLD, NEW, MORE = ("cat face", "heart"), ("keycap", "plant flower"), ("time",)
SHOTS = 4


def features(classifier, images):
    pixels = torch.stack([classifier.backbone.transform(images.image(i)) for i in range(len(images))])
    with torch.no_grad():
        return classifier.backbone.encode_image(pixels)


@pytest.fixture(scope="module")
def emoji():
    """Eight pictures of every class."""
    images = emoji_images("fluent")
    by_class = dict(zip(images.classes, images.by_class(), strict=True))
    return lambda names: images.subset([i for name in names for i in by_class[name][:8]]).of_classes(
        [images.classes.index(name) for name in names]
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory, emoji):
    """Pictures of the new classes in one folder per class, with underscores in their names."""
    root = tmp_path_factory.mktemp("emoji")
    for group, names in {"new": NEW, "more": MORE}.items():
        images = emoji(names)
        for label, indices in enumerate(images.by_class()):
            folder = root / group / names[label].replace(" ", "_")
            folder.mkdir(parents=True)
            for index in indices[:SHOTS]:
                images.image(index).save(folder / f"{index}.png")
    return root


def saved(folder, head, emoji, *, adapter=False, reference=True):
    """An artefact of the old classes."""
    model = load_backbone("tiny-clip")
    if adapter:
        model = moved(attach(model, LoraConfig(r=2), check=False), amount=0.05)
    classifier = ImageClassifier(model.eval(), head, OLD, ["an emoji of {}"])
    images = emoji(OLD)
    labels, own = torch.tensor(images.labels), features(classifier, images)
    if head == "prototype":
        classifier.head.set_prototypes(own, labels)
    if head == "cosine":
        with torch.no_grad():
            classifier.head.prototypes.copy_(torch.stack([own[labels == c].mean(dim=0) for c in range(len(OLD))]))
    classifier.save(folder, {"note": "é", "lr": 1e-3})
    if reference:
        add_parts(folder, {FILE: reference_of(own, labels)})
    return folder


@pytest.fixture
def artefact(tmp_path, emoji):
    return saved(tmp_path / "artefact", "prototype", emoji)


def content(folder):
    """Every file below a folder, and what lies beside it."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return files, sorted(path.name for path in folder.parent.iterdir())


# --- what an addition is -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["prototype", "cosine"])
def test_new_rows_are_means_and_old_ones_keep_every_bit(tmp_path, emoji, folders, head):
    folder = saved(tmp_path / "artefact", head, emoji)
    before = load_file(folder / "head.safetensors")
    add_classes(folder, folders / "new", batch_size=3)
    after = load_file(folder / "head.safetensors")
    for name, tensor in before.items():
        assert torch.equal(after[name][:2], tensor)

    grown = ImageClassifier.load(folder)
    assert grown.classes == (*OLD, *NEW)
    for row, name in enumerate(NEW, start=2):
        own = features(grown, emoji([name]).subset(range(SHOTS)))
        mean = (F.normalize(own, dim=1) if head == "cosine" else own).mean(dim=0)
        torch.testing.assert_close(after["prototypes"][row], mean, rtol=1e-5, atol=1e-6)
    if head == "prototype":
        assert after["seen"].tolist() == [True] * 4


def test_the_new_classes_are_recognised_on_other_pictures(artefact, emoji, folders):
    add_classes(artefact, folders / "new")
    grown, images = ImageClassifier.load(artefact), emoji((*OLD, *NEW))
    unseen = images.subset([i for i in range(len(images)) if i % 8 >= SHOTS])
    pixels = torch.stack([grown.backbone.transform(unseen.image(i)) for i in range(len(unseen))])
    right = grown.probabilities(pixels).argmax(dim=1) == torch.tensor(unseen.labels)
    assert right.float().mean() > 0.6


def test_a_text_head_grows_by_its_names(tmp_path, emoji, folders):
    folder = saved(tmp_path / "artefact", "text", emoji)
    growth = add_classes(folder, folders / "new")
    assert not (folder / "head.safetensors").exists()
    grown = ImageClassifier.load(folder)
    expected = ImageClassifier(load_backbone("tiny-clip"), "text", [*OLD, *NEW], ["an emoji of {}"]).eval()
    pixels = torch.rand(2, 3, 64, 64)[:, :, : grown.backbone.preprocess.size, : grown.backbone.preprocess.size]
    torch.testing.assert_close(grown.probabilities(pixels), expected.probabilities(pixels))
    assert [new.left_out for new in growth.new] == [None, None]
    assert undo(folder) == NEW
    assert ImageClassifier.load(folder).classes == OLD


def test_history_says_what_was_added(artefact, folders):
    add_classes(artefact, folders / "new")
    add_classes(artefact, folders / "more")
    about = json.loads((artefact / "artefact.json").read_text())
    assert about["classes"] == [*OLD, *NEW, *MORE]
    assert [entry["classes"] for entry in about["history"]] == [list(NEW), list(MORE)]
    assert [entry["pictures"] for entry in about["history"]] == [2 * SHOTS, SHOTS]
    assert all(len(entry["hash"]) == 16 and entry["date"].endswith("+00:00") for entry in about["history"])
    assert about["record"] == {"note": "é", "lr": 1e-3}


# --- what it says --------------------------------------------------------------------------------------------------


def test_report_agrees_with_the_saved_classifiers(artefact, folders):
    h, labels = load_reference(artefact, ImageClassifier.read(artefact), 2)
    told = add_classes(artefact, folders / "new").old
    assert (told.classes, told.pictures) == (2, 16)
    grown = ImageClassifier.load(artefact)
    with torch.no_grad():
        logits = grown.head(grown.backbone, h)
    assert told.after == pytest.approx((logits.argmax(dim=1) == labels).double().mean().item())
    assert told.before == pytest.approx((logits[:, :2].argmax(dim=1) == labels).double().mean().item())


def test_the_next_addition_reports_on_this_one_too(artefact, folders):
    add_classes(artefact, folders / "new")
    told = add_classes(artefact, folders / "more").old
    assert (told.classes, told.pictures) == (4, 16 + 2 * SHOTS)


def test_without_reference_features_nothing_is_said_of_old_classes(tmp_path, emoji, folders):
    folder = saved(tmp_path / "artefact", "prototype", emoji, reference=False)
    assert add_classes(folder, folders / "new").old is None
    assert add_classes(folder, folders / "more").old.classes == 2  # those of the first addition
    undo(folder)
    undo(folder)
    assert not (folder / "reference.safetensors").exists()


def test_reference_keeps_the_first_twenty_of_a_class(tmp_path):
    h, labels = torch.randn(50, 3), torch.arange(50) % 2
    about = {"tensors": save_parts(tmp_path, {FILE: reference_of(h, labels)})}
    kept, own = load_reference(tmp_path, about, 2)
    assert torch.equal(kept, h[: 2 * PER_CLASS])
    assert torch.equal(own, labels[: 2 * PER_CLASS])
    assert load_reference(tmp_path, {"tensors": {}}, 2) is None


@pytest.mark.parametrize(("classes", "width"), [(1, 3), (2, 4)])
def test_reference_of_another_artefact_is_refused(tmp_path, classes, width):
    about = {"tensors": save_parts(tmp_path, {FILE: reference_of(torch.randn(4, 3), torch.arange(4) % 2)})}
    with pytest.raises(ArtefactError, match="another artefact"):
        load_reference(tmp_path, about, classes, width)


def test_damaged_reference_is_named(artefact, folders):
    (artefact / "reference.safetensors").write_bytes(b"x" * 40)
    before = content(artefact)
    with pytest.raises(ArtefactError, match=r"reference\.safetensors' is damaged"):
        add_classes(artefact, folders / "new")
    assert content(artefact) == before


# --- taking it back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [False, True])
def test_undo_gives_back_every_byte(tmp_path, emoji, folders, adapter):
    folder = saved(tmp_path / "artefact", "prototype", emoji, adapter=adapter)
    first = content(folder)
    add_classes(folder, folders / "new")
    second = content(folder)
    add_classes(folder, folders / "more")
    assert undo(folder, dry_run=True) == MORE
    assert undo(folder) == MORE
    assert content(folder) == second
    assert undo(folder) == NEW
    assert content(folder) == first
    with pytest.raises(UserError, match="nothing to undo"):
        undo(folder)


def test_a_grown_artefact_keeps_its_adapter_and_its_other_files(tmp_path, emoji, folders):
    folder = saved(tmp_path / "artefact", "cosine", emoji, adapter=True)
    (folder / "inspect.html").write_text("a page")
    files = [folder / "adapter" / "adapter_model.safetensors", folder / "inspect.html"]
    before = [file.stat().st_ino for file in files]
    (folder / "head.safetensors").chmod(0o640)
    mode = folder.stat().st_mode
    add_classes(folder, folders / "new")
    assert (folder / "head.safetensors").stat().st_mode & 0o777 == 0o640
    assert [file.stat().st_ino for file in files] == before  # the same files, not copies
    assert folder.stat().st_mode == mode
    assert ImageClassifier.load(folder).classes == (*OLD, *NEW)


def test_history_that_does_not_fit_is_named(artefact, folders):
    add_classes(artefact, folders / "new")
    path = artefact / "artefact.json"
    path.write_text(path.read_text().replace('"plant flower"\n  ],', '"tree"\n  ],', 1))
    with pytest.raises(ArtefactError, match="does not fit"):
        undo(artefact)


def test_head_of_another_length_is_not_cut(artefact, folders):
    head = load_file(artefact / "head.safetensors")
    add_classes(artefact, folders / "new")
    add_parts(artefact, {"head.safetensors": head})  # with the checksum it has
    with pytest.raises(ArtefactError, match="does not have 4 rows"):
        undo(artefact)


# --- refusing ------------------------------------------------------------------------------------------------------


def test_dry_run_reports_and_writes_nothing(artefact, folders):
    before = content(artefact)
    told = add_classes(artefact, folders / "new", dry_run=True)
    assert content(artefact) == before
    assert told == add_classes(artefact, folders / "new")


@pytest.mark.parametrize("name", ["heart", "Heart", "cat_face", "CAT  face"])
def test_a_class_that_exists_is_refused(artefact, folders, tmp_path, name):
    picture = next((folders / "more").rglob("*.png"))
    (tmp_path / "own" / name).mkdir(parents=True)
    (tmp_path / "own" / name / "1.png").write_bytes(picture.read_bytes())
    before = content(artefact)
    with pytest.raises(DataError, match=rf"has '{name.casefold().replace('_', ' ').replace('  ', ' ')}' already"):
        add_classes(artefact, tmp_path / "own")
    assert content(artefact) == before


@pytest.mark.parametrize("twins", [("red_fox", "red fox"), ("Fox", "fox")])
def test_two_new_classes_of_one_name_are_refused(artefact, folders, tmp_path, twins):
    picture = next((folders / "more").rglob("*.png"))
    for name in twins:
        (tmp_path / "own" / name).mkdir(parents=True)
        (tmp_path / "own" / name / "1.png").write_bytes(picture.read_bytes())
    with pytest.raises(DataError, match="fox"):
        add_classes(artefact, tmp_path / "own")


def test_too_few_pictures_are_refused(artefact, folders):
    with pytest.raises(DataError, match=rf"'keycap' .* too few pictures, {SHOTS} instead of 5"):
        add_classes(artefact, folders / "new", min_pictures=5)


@pytest.mark.parametrize("damage", ["header", "middle"])
def test_a_broken_picture_is_named_and_changes_nothing(artefact, folders, tmp_path, damage):
    whole = next((folders / "more").rglob("*.png")).read_bytes()
    broken = b"nothing" if damage == "header" else whole[:60] + bytes(len(whole) - 120) + whole[-60:]
    (tmp_path / "own" / "fox").mkdir(parents=True)
    (tmp_path / "own" / "fox" / "1.png").write_bytes(broken)
    before = content(artefact)
    with pytest.raises(DataError, match=r"fox/1\.png") as error:
        add_classes(artefact, tmp_path / "own")
    assert "Replace or remove" in str(error.value)
    assert content(artefact) == before


def test_a_linear_head_is_refused(tmp_path, emoji, folders):
    with pytest.raises(UserError, match="must be trained"):
        add_classes(saved(tmp_path / "artefact", "linear", emoji), folders / "new")


def test_an_artefact_without_a_head_is_refused(tmp_path, emoji, folders):
    folder = saved(tmp_path / "artefact", "prototype", emoji, adapter=True)
    with pytest.raises(ArtefactError, match="an adapter alone"):
        add_classes(folder / "adapter", folders / "new")
    (folder / "head.safetensors").unlink()
    with pytest.raises(ArtefactError, match=r"head\.safetensors"):
        add_classes(folder, folders / "new")
    about = json.loads((folder / "artefact.json").read_text())
    del about["head"]
    (folder / "artefact.json").write_text(json.dumps(about))
    with pytest.raises(ArtefactError, match="lacks head"):
        add_classes(folder, folders / "new")
    with pytest.raises(ArtefactError, match="no artefact here"):
        add_classes(tmp_path / "nowhere", folders / "new")


# --- killed --------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What no clean-up but ours survives."""


@pytest.mark.parametrize("moment", [1, 2])
@pytest.mark.parametrize("error", [Killed, OSError])
def test_stopped_at_a_rename_leaves_the_old_artefact(artefact, folders, monkeypatch, moment, error):
    before, replace, calls = content(artefact), os.replace, []

    def stopped(source, target):
        calls.extend([source] if os.path.isdir(source) else [])  # files inside the new folder are no swap
        if len(calls) == moment and os.path.isdir(source):
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(UserError if error is OSError else Killed):
        add_classes(artefact, folders / "new")
    assert content(artefact) == before


def test_killed_between_the_renames_is_put_right_by_the_next_call(artefact, folders, monkeypatch):
    before, replace, calls = content(artefact), os.replace, []

    def dead(source, target):
        calls.extend([source] if os.path.isdir(source) else [])  # files inside the new folder are no swap
        if len(calls) > 1 and os.path.isdir(source):  # nothing works any more, not even putting the old one back
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dead)
        with pytest.raises(Killed):
            add_classes(artefact, folders / "new")
    assert not artefact.exists()
    with pytest.raises(UserError, match="nothing to undo"):
        undo(artefact)
    assert content(artefact) == before


@pytest.mark.parametrize("name", ["save_parts", "write_about"])
def test_a_full_disk_leaves_the_old_artefact(artefact, folders, monkeypatch, name):
    before = content(artefact)
    monkeypatch.setattr(growing, name, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); it is as it was"):
        add_classes(artefact, folders / "new")
    assert content(artefact) == before


def test_an_addition_of_somebody_else_meanwhile_is_not_lost(artefact, folders):
    def interfering(starts):
        add_classes(artefact, folders / "more")
        return starts

    with pytest.raises(ArtefactError, match="somebody else"):
        add_classes(artefact, folders / "new", show=interfering)
    assert ImageClassifier.load(artefact).classes == (*OLD, *MORE)
