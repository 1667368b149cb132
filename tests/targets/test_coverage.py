import copy
import json

import pytest
import timm
import torch
from peft import LoraConfig, VeraConfig, get_peft_model
from torch import nn

from vision_lowrank.attention.split import split_attention
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.errors import DeadAdapterError, UserError
from vision_lowrank.targets.coverage import coverage
from vision_lowrank.targets.select import select


def adapted(**options):
    torch.manual_seed(0)
    backbone = split_attention(load_backbone("tiny-clip", weights="random"))
    return get_peft_model(backbone, LoraConfig(r=2, target_modules=select(backbone, **options)))


def test_every_adapter_of_a_split_backbone_is_alive_though_b_is_zero():
    model = adapted(modules=("q", "k", "v", "o", "fc1", "fc2"))
    report = coverage(model)
    assert len(report.rows) == 60
    assert not report.dead
    assert all(row.called and row.gradient_reached for row in report.rows)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(row.parameters for row in report.rows) == trainable
    assert report.rows[0].adapter == "lora.Linear"


def test_all_linear_on_unsplit_attention_leaves_the_output_projections_dead():
    model = get_peft_model(load_backbone("tiny-clip", weights="random"), LoraConfig(r=2, target_modules="all-linear"))
    with pytest.raises(DeadAdapterError, match=r"10 of 30 adapted .*out_proj' \(never called\).*split_attention"):
        coverage(model)
    report = coverage(model, strict=False)
    assert all(row.module.endswith("attn.out_proj") for row in report.dead)
    assert [row.called for row in report.rows] == [row.gradient_reached for row in report.rows]


def test_pefts_own_lora_on_multihead_attention_is_refused():
    model = get_peft_model(load_backbone("tiny-clip", weights="random"), LoraConfig(r=2, target_modules=["attn"]))
    dead = coverage(model, strict=False).dead
    assert len(dead) == 10
    assert all(row.module.endswith("out_proj") and not row.called for row in dead)


def test_a_tower_that_the_probe_does_not_use_is_dead():
    model = adapted()
    report = coverage(model, lambda m: m.encode_image(torch.randn(1, 3, 48, 48)), strict=False)
    assert len(report.dead) == 4 * 3
    assert all("visual" not in row.module and not row.called for row in report.dead)


def test_a_layer_that_is_called_but_whose_output_is_dropped_has_no_gradient():
    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.dropped, self.detached = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            self.dropped(x)
            return {"y": self.used(x) + self.detached(x).detach()}

    model = get_peft_model(Dropped(), LoraConfig(r=1, target_modules=["used", "dropped", "detached"]))
    report = coverage(model, lambda m: m(torch.randn(2, 4)), strict=False)
    assert [(row.called, row.gradient_reached) for row in report.rows] == [(True, True), (True, False), (True, False)]
    with pytest.raises(DeadAdapterError, match="no gradient"):
        coverage(model, lambda m: m(torch.randn(2, 4)))


def test_shared_and_tied_adapter_tensors_count_as_reached():
    backbone = split_attention(load_backbone("tiny-clip", weights="random"))
    targets = select(backbone, towers=["vision"], modules=["q", "v"])
    assert not coverage(get_peft_model(backbone, VeraConfig(r=2, target_modules=targets))).dead


def test_nothing_is_left_behind():
    model = get_peft_model(
        timm.create_model("resnet10t", num_classes=0),
        LoraConfig(r=2, target_modules=r".*layer1.*conv1", lora_dropout=0.5),
    )
    model.train()
    frozen_child = model.get_submodule("base_model.model.layer2").eval()
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.full_like(p, 3.0)
    modes = [m.training for m in model.modules()]
    hooks = [len(m._forward_hooks) for m in model.modules()]
    random_state = torch.get_rng_state()
    assert not coverage(model, lambda m: m(torch.randn(2, 3, 64, 64))).dead
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [m.training for m in model.modules()] == modes
    assert not frozen_child.training
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    assert all((p.grad == 3).all() for p in model.parameters() if p.requires_grad)


def test_a_forward_that_changes_buffers_is_undone_even_when_it_fails():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.count += 1
            if x is None:
                raise ValueError("no input")
            return self.linear(x)

    model = get_peft_model(Counting(), LoraConfig(r=1, target_modules=["linear"]))
    coverage(model, lambda m: m(torch.randn(1, 2)))
    with pytest.raises(ValueError, match="no input"):
        coverage(model, lambda m: m(None))
    assert model.base_model.model.count == 0


def test_it_works_under_no_grad_and_in_half_precision():
    model = adapted(layers=[0]).bfloat16()
    with torch.no_grad():
        assert not coverage(model).dead


def test_a_frozen_adapter_only_has_to_be_called():
    model = adapted(towers=["vision"], layers=[0]).requires_grad_(False)
    assert [row.parameters for row in coverage(model).rows] == [0, 0, 0]


def test_table_and_dictionary_tell_the_same():
    report = coverage(adapted(), lambda m: m.encode_image(torch.randn(1, 3, 48, 48)), strict=False)
    values = json.loads(json.dumps(report.to_dict()))
    assert (values["adapted"], values["dead"]) == (30, 12)
    lines = str(report).splitlines()
    assert len(lines) == 1 + 30 + 1
    assert sum(line.count("NO") for line in lines) == 24
    assert lines[-1].startswith(f"30 adapted modules, {values['parameters']:,} trainable parameters, 12 dead")


@pytest.mark.parametrize(
    ("model", "probe", "message"),
    [
        (nn.Linear(2, 2), None, "has no adapter"),
        (nn.Sequential(nn.Linear(2, 2)), None, "holds no Backbone"),
        (nn.Sequential(nn.Linear(2, 2)), lambda m: m(torch.ones(1, 2)).argmax(), "no floating-point tensor"),
    ],
)
def test_wrong_use_is_explained(model, probe, message):
    model = copy.deepcopy(model)
    if "Sequential" in type(model).__name__:
        model = get_peft_model(model, LoraConfig(r=1, target_modules=["0"]))
    with pytest.raises(UserError, match=message):
        coverage(model, probe)
