import pytest
import torch
from torch import nn

import vision_lowrank as vl
from vision_lowrank.attachment.parameters import backbone_of
from vision_lowrank.backbones.base import Backbone, Tower
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.backbones.roles import ImageEncoder, LanguageModel, TextEncoder
from vision_lowrank.errors import DeadAdapterError, UserError
from vision_lowrank.targets.coverage import coverage

ROLES = {
    "tiny-clip": {ImageEncoder, TextEncoder},
    "timm:vit_tiny_patch16_224": {ImageEncoder},
    "timm:resnet10t": {ImageEncoder},
    "open_clip:RN50": {ImageEncoder, TextEncoder},
    "hf:tiny-internvl3": {ImageEncoder, LanguageModel},
}

SMALL = {"open_clip:RN50": {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16}}}


@pytest.fixture(params=ROLES)
def backbone(request):
    return load_backbone(request.param, "random", **SMALL.get(request.param, {})).eval()


def test_a_backbone_says_what_it_can_do_attached_or_not(backbone):
    found = {role for role in (ImageEncoder, TextEncoder, LanguageModel) if isinstance(backbone, role)}
    assert found == ROLES[backbone.name]
    if backbone.towers:
        model = vl.attach(backbone, vl.LoraConfig(r=1), tuple(backbone.towers), modules=("fc1",), check=False)
        assert isinstance(backbone_of(model), tuple(found))


@torch.no_grad()
def test_probe_and_signature_have_an_output_of_every_role(backbone):
    names = {ImageEncoder: "image", TextEncoder: "text", LanguageModel: "answer"}
    probe, signature = backbone.probe(), backbone.signature()
    assert set(probe) == {names[role] for role in ROLES[backbone.name]}
    assert set(signature) == {"image", *({"text"} if len(ROLES[backbone.name]) > 1 else ())}
    assert next(iter(signature)) == "image"
    assert all(output.shape[0] == 1 for output in signature.values())
    torch.manual_seed(7)
    again = backbone.signature()
    assert all(torch.equal(again[name], output) for name, output in signature.items())
    assert not torch.equal(backbone.probe()["image"], probe["image"])


def test_what_a_role_would_give_is_refused_in_one_line(backbone):
    if TextEncoder not in ROLES[backbone.name]:
        with pytest.raises(UserError, match=f"'{backbone.name}' has no logit scale"):
            _ = backbone.logit_scale
    if ROLES[backbone.name] == {ImageEncoder}:
        with pytest.raises(UserError, match=f"'{backbone.name}' has no text tower"):
            backbone.encode_text(torch.zeros(1, 1))


class Denoiser(Backbone):
    """A backbone of no role that is known here: neither pictures nor texts."""

    def __init__(self, used=("0", "1")):
        blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4)) for _ in range(2)])
        tower = Tower("unet", ("model.0", "model.1"), {"fc1": "0"})
        super().__init__(blocks, name="denoiser", weights="random", towers=[tower])
        self.used = used

    def probe(self):
        x = torch.randn(2, 4)
        for name in self.used:
            x = self.model.get_submodule(name)(x)
        return {"noise": x}

    def signature(self):
        return {"noise": self.model[0](torch.ones(1, 4))}


def test_a_family_with_a_probe_of_its_own_needs_nothing_of_coverage_and_stores(tmp_path):
    torch.manual_seed(3)
    model = vl.attach(Denoiser(), vl.LoraConfig(r=1), modules=("fc1",))
    assert len(coverage(model).rows) == 2
    vl.save(model, tmp_path)
    torch.manual_seed(3)
    again = vl.load(tmp_path, Denoiser())
    assert again.fingerprint == model.fingerprint
    with pytest.raises(DeadAdapterError, match=r"model\.1\.0"):
        vl.attach(Denoiser(used=("0",)), vl.LoraConfig(r=1), modules=("fc1",))
