"""What an artefact says is what somebody else may have written: typed, finite, hashed, and choosing nothing."""

import json
import shutil
from contextlib import contextmanager

import pytest
import torch
from fixtures.models import moved
from safetensors.torch import load_file

import vision_lowrank as vl
from vision_lowrank.attachment.folder import checksum
from vision_lowrank.errors import ArtefactError, UserError
from vision_lowrank.tasks.classification.classifier import ImageClassifier
from vision_lowrank.tasks.saved import add_parts
from vision_lowrank.tasks.trust import check_trust

SMALL = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 2}
DEEP = 5000 * "[" + 5000 * "]"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A classifier with an adapter on a random base of timm's, saved."""
    torch.manual_seed(0)
    base = vl.load_backbone("timm:vit_tiny_patch16_224", "random", **SMALL)
    model = ImageClassifier(moved(vl.attach(base, vl.LoraConfig(r=2))).eval(), "linear", ("a", "b"), ())
    with torch.no_grad():
        model.head.linear.weight.normal_()
    folder = tmp_path_factory.mktemp("made") / "artefact"
    model.save(folder, {"config": None})
    return model, folder


@pytest.fixture
def artefact(made, tmp_path):
    shutil.copytree(made[1], tmp_path / "artefact")
    return tmp_path / "artefact"


def change(folder, name="artefact.json", **values):
    """Write other values into a JSON file; names of inner ones are joined by two underscores."""
    tree = json.loads((folder / name).read_text())
    for key, value in values.items():
        *path, last = key.split("__")
        inner = tree
        for part in path:
            inner = inner[part]
        inner[last] = value
    (folder / name).write_text(json.dumps(tree))


# --- a random base -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attach", [False, True])
def test_an_artefact_on_a_random_base_loads_again(made, attach):
    model, folder = made
    pixels = torch.randn(2, 3, 32, 32)
    again = vl.load_model(folder, attach=attach)
    with torch.no_grad():
        torch.testing.assert_close(again(pixels), model(pixels), rtol=0, atol=1e-6)
    assert again.trained_base == set()
    assert again.fingerprint == model.fingerprint


def test_an_adapter_alone_brings_its_random_base(made, tmp_path):
    model = made[0].backbone
    vl.save(model, tmp_path / "adapter")
    again = vl.load_model(tmp_path / "adapter", attach=True).backbone
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.encode_image(pixels), model.encode_image(pixels))
    with pytest.raises(ArtefactError, match="fingerprint"):
        vl.load(tmp_path / "adapter", vl.load_backbone("timm:vit_tiny_patch16_224", "random", **SMALL))


@pytest.mark.parametrize("weights", [None, "", " "])
@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "open_clip:ViT-B-32", "hf:tiny-internvl3_5"])
def test_weights_must_be_said(name, weights):
    with pytest.raises(UserError, match=r"`pretrained`.*tag.*\.safetensors.*`random`"):
        vl.load_backbone(name, weights)


# --- tensors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["head.safetensors", "base.safetensors", "adapter/adapter_model.safetensors"])
def test_every_tensor_file_is_in_a_record_and_one_flipped_bit_is_noticed(artefact, name):
    path = artefact / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtefactError, match="its checksum differs"):
        vl.load_model(artefact)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused_though_its_checksum_is_right(artefact, value):
    head = load_file(artefact / "head.safetensors")
    head["linear.weight"][0, 3] = value
    add_parts(artefact, {"head.safetensors": head})
    with pytest.raises(ArtefactError, match=r"'linear\.weight' holds numbers that are not finite"):
        vl.load_model(artefact)


def test_a_file_that_is_in_no_record_is_refused(artefact):
    tensors = json.loads((artefact / "artefact.json").read_text())["tensors"]
    assert tensors == {name: checksum(load_file(artefact / name)) for name in ("base.safetensors", "head.safetensors")}
    change(artefact, tensors={name: digest for name, digest in tensors.items() if name != "head.safetensors"})
    with pytest.raises(ArtefactError, match=r"head\.safetensors' is in no record"):
        vl.load_model(artefact)


# --- types ---------------------------------------------------------------------------------------------------------

ODD = (None, 3, -1, 0.5, True, "", "x", [], [[]], {}, {"x": 1}, 10**30)
PLACES = (
    *("task", "backbone", "backbone__name", "backbone__weights", "backbone__image_size", "backbone__img_size"),
    *("fingerprint", "preprocess", "preprocess__size", "preprocess__mean", "preprocess__interpolation", "adapter"),
    *("trained_base", "tensors", "record", "head", "classes", "templates", "preprocess__crop_pct", "record__config"),
)
RECORD = (
    *("format", "attachment", "attachment__options", "attachment__fingerprint", "attachment__towers", "sha256"),
    *("attachment__layers", "attachment__modules", "factors", "factors__file", "factors__scale", "probe"),
)
CONFIG = ("peft_type", "r", "alpha", "lora_alpha", "target_modules", "lora_dropout", "rank_pattern", "bias")


@pytest.mark.parametrize(
    ("name", "places"),
    [("artefact.json", PLACES), ("adapter/vision_lowrank.json", RECORD), ("adapter/adapter_config.json", CONFIG)],
)
def test_values_of_any_type_give_one_line_or_the_same_model(artefact, name, places):
    before, refused = (artefact / name).read_text(), []
    for place in places:
        for value in ODD:
            (artefact / name).write_text(before)
            change(artefact, name, **{place: value})
            with suppress_user_errors(refused):
                vl.load_model(artefact, attach=name.endswith("config.json"))
    assert len(refused) > len(places) * len(ODD) / 2
    assert not any("\n" in line for line in refused)


@contextmanager
def suppress_user_errors(lines):
    """Collect the texts of UserErrors; anything else is a traceback, and fails the test."""
    try:
        yield
    except UserError as error:
        lines.append(str(error))


@pytest.mark.parametrize("name", ["artefact.json", "adapter/vision_lowrank.json", "adapter/adapter_config.json"])
@pytest.mark.parametrize(
    "text", ["", "[]", DEEP, '{"task": 1e999}', '{"task": NaN}', '{"task": ' + "9" * 5000 + "}", "\xff"]
)
def test_what_is_no_sound_json_is_one_line(artefact, name, text):
    (artefact / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtefactError, match=r"\.json") as refused:
        vl.load_model(artefact, attach=True)
    assert "\n" not in str(refused.value)


# --- what an artefact may not choose -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"backbone__weights": "/etc/passwd"}, r"asks to open '/etc/passwd' \(weights\).*--trust"),
        ({"backbone__weights": "../other.safetensors"}, "asks to open"),
        ({"backbone__weights": "~/mine.pt"}, "asks to open"),
        ({"backbone__checkpoint_path": "x/y.pt"}, "asks to open"),
        ({"backbone__name": "hf:../models"}, "a place on this disk"),
        ({"backbone__image_size": 20_000}, "image_size = 20000 is more than 4096"),
        ({"preprocess__size": 20_000}, r"preprocess\.size = 20000"),
        ({"backbone": {"name": "timm:vit_giant_patch14_dinov2", "weights": "random"}}, "more than .* parameters"),
        ({"backbone": {"name": "open_clip:ViT-L-14", "weights": "openai"}}, "more than .* parameters"),
        ({"backbone__depth": 10**5}, "more than .* parameters"),
        ({"backbone__embed_dim": 2400}, "more than .* parameters"),
        ({"backbone__embed_dim": 10**9}, "asks for a size"),
        ({"backbone__options": {"deeper": ["..\\x"]}}, "asks to open"),
    ],
)
def test_an_artefact_chooses_neither_files_nor_sizes(artefact, values, words, monkeypatch):
    monkeypatch.setattr("vision_lowrank.tasks.saved.load_backbone", lambda **_: pytest.fail("it was built"))
    change(artefact, **values)
    with pytest.raises(ArtefactError, match=words):
        vl.load_model(artefact)


def test_trust_lets_an_artefact_name_a_file(tmp_path, tiny_weights, capsys):
    from vision_lowrank.cli.main import main

    base = vl.load_backbone("tiny-clip", tiny_weights)
    ImageClassifier(base, "linear", ("a", "b"), ()).save(tmp_path / "artefact", {})
    about = ImageClassifier.read(tmp_path / "artefact")
    with pytest.raises(ArtefactError, match="--trust"):
        check_trust(tmp_path / "artefact", about)
    assert vl.load_model(tmp_path / "artefact", trust=True).fingerprint == base.fingerprint
    check_trust(tmp_path / "artefact", about, build=False)  # a backbone was given: there is nothing to choose
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    assert "--trust" in capsys.readouterr().out
