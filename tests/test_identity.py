import copy

import pytest
import torch
from torch import nn

import vision_lowrank as vl
from vision_lowrank import identity
from vision_lowrank.attachment.merge import merge
from vision_lowrank.attention.split import fuse_attention, split_attention
from vision_lowrank.backbones.adapted import backbone_of
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.errors import ArtefactError, UserError
from vision_lowrank.export.merged import export_merged
from vision_lowrank.tasks.classification.classifier import ImageClassifier

CLASSES = (["a", "b"], ("a {}.",))


@pytest.fixture
def base(tiny_weights):
    return load_backbone("tiny-clip", str(tiny_weights))


@pytest.fixture
def own(base):
    """The fingerprint that the base has in truth."""
    return identity.fingerprint(base.model)


def change(backbone):
    with torch.no_grad():
        backbone.model.visual.proj.mul_(2)
    return backbone


def test_loading_hashes_nothing_and_asking_hashes_once(tiny_weights, monkeypatch):
    hashed = []
    monkeypatch.setattr(identity, "fingerprint", lambda weights: hashed.append(weights) or "f00d")
    backbone = load_backbone("tiny-clip", str(tiny_weights))
    backbone.encode_image(torch.zeros(1, 3, 48, 48))
    backbone.to("cpu").eval().requires_grad_(False)
    assert not hashed
    assert backbone.fingerprint == backbone.fingerprint == "f00d"
    assert len(hashed) == 1


def test_whoever_changes_the_layout_or_the_type_asks_before(base, own):
    changes = {
        "split": lambda b: split_attention(b),
        "fused again": lambda b: fuse_attention(split_attention(b)),
        "attached": lambda b: vl.attach(b, vl.LoraConfig(r=2)).get_base_model(),
        "doubled": lambda b: b.double(),
        "halved inside another module": lambda b: nn.ModuleList([b]).half()[0],
        "split in a copy": lambda b: split_attention(copy.deepcopy(b)),
    }
    for name, make in changes.items():
        assert make(copy.deepcopy(base)).fingerprint == own, name


def test_an_adapter_and_an_artefact_name_the_base_as_it_was_loaded(base, own, tmp_path):
    attached = vl.attach(copy.deepcopy(base), vl.LoraConfig(r=2))
    assert attached.attachments["default"].fingerprint == own
    classifier = ImageClassifier(base, "text", *CLASSES)
    change(base)
    assert classifier.fingerprint == base.fingerprint == own


@pytest.mark.parametrize("ask", [
    lambda b, folder: b.fingerprint,
    lambda b, folder: copy.deepcopy(b).fingerprint,
    lambda b, folder: b.double().fingerprint,
    lambda b, folder: split_attention(b).fingerprint,
    lambda b, folder: ImageClassifier(b, "text", *CLASSES),
])  # fmt: skip
def test_weights_that_changed_unasked_are_given_no_identity(tiny_weights, tmp_path, ask):
    model = vl.attach(load_backbone("tiny-clip", str(tiny_weights)), vl.LoraConfig(r=2))
    vl.save(model, tmp_path / "adapter")
    ImageClassifier(model, "text", *CLASSES).save(tmp_path / "artefact", {})
    changed = change(load_backbone("tiny-clip", str(tiny_weights)))
    with pytest.raises(UserError, match=r"changed before their fingerprint was asked for.*take_identity\(\)"):
        ask(changed, tmp_path)


ARRIVALS = {
    "copied": lambda base, state: base.model.load_state_dict(state),
    "assigned": lambda base, state: base.model.load_state_dict(state, assign=True),
    "written through .data": lambda base, state: [
        tensor.data.copy_(state[name]) for name, tensor in base.model.state_dict(keep_vars=True).items()
    ],
}
BEFORE = {
    "nothing": lambda base: base,
    "asked": lambda base: base.fingerprint and base,
    "asked and changed": lambda base: base.fingerprint and change(base),
}
LOADERS = {
    "attach": lambda base, folder: vl.attach(base, vl.LoraConfig(r=2)),
    "load": lambda base, folder: vl.load(folder / "adapter", base),
    "load an artefact": lambda base, folder: ImageClassifier.load(folder / "artefact", base),
    "load it attached": lambda base, folder: ImageClassifier.load(folder / "artefact", base, attach=True),
}


@pytest.fixture
def saved(tiny_weights, tmp_path):
    """A folder with an adapter and an artefact of `base`."""
    model = vl.attach(load_backbone("tiny-clip", str(tiny_weights)), vl.LoraConfig(r=2))
    vl.save(model, tmp_path / "adapter")
    ImageClassifier(model, "text", *CLASSES).save(tmp_path / "artefact", {})
    return tmp_path


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("arrival", ARRIVALS)
def test_the_right_base_is_right_whenever_its_weights_arrived(base, own, saved, arrival, before, loader):
    state = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    other = BEFORE[before](load_backbone("tiny-clip", "random"))
    ARRIVALS[arrival](other, state)
    model = LOADERS[loader](other, saved)
    assert getattr(model, "backbone", model).fingerprint == own


@pytest.mark.parametrize("loader", [name for name in LOADERS if name != "attach"])
@pytest.mark.parametrize("changes", [
    lambda b: change(b),
    lambda b: b.fingerprint and change(b),
    lambda b: change(split_attention(b)),
])  # fmt: skip
def test_a_base_that_changed_is_another_one_to_whoever_loads(base, saved, loader, changes):
    with pytest.raises(ArtefactError, match="load th"):
        LOADERS[loader](changes(base), saved)


def test_an_adapter_belongs_to_the_weights_that_it_was_attached_to(base, own):
    split = change(split_attention(copy.deepcopy(base)))
    assert vl.attach(split, vl.LoraConfig(r=2)).fingerprint == vl.attach(change(base), vl.LoraConfig(r=2)).fingerprint
    assert split.fingerprint != own


@pytest.mark.parametrize("lay", [
    lambda b: b.double(),
    lambda b: split_attention(b).half(),
    lambda b: split_attention(b.half()),
    lambda b: copy.deepcopy(split_attention(b.half())),
])  # fmt: skip
def test_a_base_that_was_only_cast_or_split_keeps_its_identity_where_an_adapter_comes(base, own, lay):
    laid = lay(base)
    assert vl.attach(laid, vl.LoraConfig(r=2), check=False).attachments["default"].fingerprint == own


def test_changed_weights_can_be_made_the_base(base, own, tiny_weights, tmp_path):
    change(base).take_identity()
    model = vl.attach(base, vl.LoraConfig(r=2))
    assert model.fingerprint != own
    vl.save(model, tmp_path / "adapter")
    with pytest.raises(ArtefactError, match=f"{model.fingerprint}.*not on tiny-clip .*{own}"):
        vl.load(tmp_path / "adapter", load_backbone("tiny-clip", str(tiny_weights)))


def test_merging_takes_a_new_identity_of_the_merged_weights(base, own):
    merged = merge(vl.attach(base, vl.LoraConfig(r=2, init_lora_weights=False)))
    assert merged.fingerprint == identity.fingerprint(merged.model) != own


def test_a_trained_base_without_identity_can_still_be_exported(base, tmp_path):
    path = export_merged(change(base), tmp_path)
    again = load_backbone("tiny-clip", path)
    assert torch.equal(again.model.visual.proj, base.model.visual.proj)


def test_buffers_that_move_are_no_change_and_buffers_that_a_forward_updates_are_one():
    backbone = load_backbone("timm:resnet10t", "random").to(memory_format=torch.channels_last)
    expected = identity.fingerprint(backbone.model)
    moved = backbone.to("cpu", non_blocking=True)
    assert copy.deepcopy(moved).fingerprint == expected
    moved.train()(torch.randn(2, 3, 64, 64))
    with pytest.raises(UserError, match="changed before"):
        _ = moved.fingerprint


def test_towers_have_fingerprints_of_their_own(base, own):
    other = copy.deepcopy(base)
    with torch.no_grad():
        other.model.visual.proj.mul_(2)
    other.take_identity()
    assert base.tower_fingerprint("vision") != other.tower_fingerprint("vision")
    assert base.tower_fingerprint("text") == other.tower_fingerprint("text") != own
    state = base.model.state_dict()
    vision = {name: tensor for name, tensor in state.items() if name.startswith("visual.")}
    assert base.tower_fingerprint("vision") == identity.fingerprint(vision)
    assert base.tower_fingerprint("text") == identity.fingerprint({k: v for k, v in state.items() if k not in vision})
    with pytest.raises(UserError, match=r"no tower 'vison'.* Did you mean 'vision'"):
        base.tower_fingerprint("vison")


def test_one_tower_may_change_while_the_identity_of_another_is_asked_for(base):
    expected = copy.deepcopy(base).tower_fingerprint("text")
    change(base)
    assert base.tower_fingerprint("text") == expected
    for ask in (lambda: base.tower_fingerprint("vision"), lambda: base.fingerprint):
        with pytest.raises(UserError, match="changed before"):
            ask()


def test_weights_that_were_cast_beside_an_adapter_are_still_themselves_without_it():
    model = vl.attach(vl.load_backbone("tiny-clip"), vl.LoraConfig(r=2))
    expected = backbone_of(model).fingerprint
    model.double()
    base = model.unload()
    again = vl.attach(base, vl.LoraConfig(r=2))
    assert backbone_of(again).fingerprint == expected == vl.load_backbone("tiny-clip").fingerprint
    with torch.no_grad():
        next(parameter for name, parameter in again.named_parameters() if "ln_post" in name).add_(1)
    assert backbone_of(vl.attach(again.unload(), vl.LoraConfig(r=2))).fingerprint != expected
