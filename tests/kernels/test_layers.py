"""Sharing among q, k and v: the same results and gradients as layer by layer, and only where it may be done."""

import peft
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vision_lowrank.adapters.block_lora import BlockLoraConfig
from vision_lowrank.adapters.comp_lora import CompLoraConfig
from vision_lowrank.adapters.tuner import adapter_layers
from vision_lowrank.attention.split import split_attention
from vision_lowrank.kernels.layers import forward_together

NAMES = ("q_proj", "k_proj", "v_proj")


class Projections(nn.Module):
    """Three linears with one input, called one by one, or together where they can be."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(8, 8), nn.Linear(8, 6, bias=False), nn.Linear(8, 4)

    def layers(self):
        return [self.q_proj, self.k_proj, self.v_proj]

    def forward(self, x):
        return [layer(x) for layer in self.layers()]


def adapted(targets=NAMES, **options):
    model = peft.get_peft_model(
        Projections().double(), BlockLoraConfig(r=4, blocks=2, target_modules=list(targets), **options)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    return model, model.base_model.model


def inputs():
    return torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)


def function_of(y):
    return type(y.grad_fn).__name__


@pytest.mark.parametrize("targets", [NAMES, ("q_proj", "v_proj"), ("k_proj",)])
def test_together_equals_one_by_one(targets):
    model, host = adapted(targets)
    x = inputs()
    parameters = [x, *(p for p in model.parameters() if p.requires_grad)]
    apart, together = host(x), forward_together(host.layers(), x)
    sums = [sum((y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum() for y in ys) for ys in (apart, together)]
    for one, other in zip(apart, together, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    for one, other in zip(*(torch.autograd.grad(total, parameters) for total in sums), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_projections_of_one_input_are_one_function():
    _, host = adapted()
    q, k, v = forward_together(host.layers(), inputs())
    assert q.grad_fn is k.grad_fn is v.grad_fn
    alone = host(inputs())
    assert len({y.grad_fn for y in alone}) == 3
    assert {function_of(y) for y in [q, *alone]} == {"_LowRankLinearsBackward"}


def test_split_attention_shares_among_q_k_and_v():
    vit = split_attention(VisionTransformer(img_size=32, patch_size=16, embed_dim=32, depth=1, num_heads=2))
    model = peft.get_peft_model(vit, BlockLoraConfig(r=4, blocks=2, target_modules=list(NAMES)))
    seen = []
    attention = model.base_model.model.blocks[0].attn
    attention.q_norm.register_forward_hook(lambda module, args, output: seen.append(output))
    attention.k_norm.register_forward_hook(lambda module, args, output: seen.append(output))
    model(torch.randn(1, 3, 32, 32))

    def source(y):
        node = y.grad_fn
        while node is not None and not type(node).__name__.startswith("_LowRank"):
            node = node.next_functions[0][0]
        return node

    assert source(seen[0]) is source(seen[1]) is not None


def test_hooks_are_called_and_their_layers_computed_alone():
    _, host = adapted()
    calls = []
    host.k_proj.register_forward_hook(lambda *_: calls.append("k_proj"))
    q, k, v = forward_together(host.layers(), inputs())
    assert calls == ["k_proj"]
    assert q.grad_fn is v.grad_fn is not k.grad_fn


def test_hook_on_the_base_linear_sees_its_output():
    _, host = adapted()
    seen = []
    host.q_proj.base_layer.register_forward_hook(lambda module, args, output: seen.append(output))
    x = inputs()
    forward_together(host.layers(), x)
    torch.testing.assert_close(
        seen[0], nn.functional.linear(x, host.q_proj.base_layer.weight, host.q_proj.base_layer.bias)
    )


def test_dropout_masks_are_independent():
    _, host = adapted(dropout=0.5)
    with torch.no_grad():
        for layer in host.layers():
            layer.base_layer.weight.zero_()
            update = layer.weight_update["default"]
            update.A.fill_(1.0)
            update.B.fill_(1.0)
    host.train()
    q, k, _ = forward_together(host.layers(), torch.ones(1, 50, 8, dtype=torch.float64))
    bias = host.q_proj.base_layer.bias
    assert not torch.allclose((q - bias)[..., 0], k[..., 0])
    host.eval()
    q, k, _ = forward_together(host.layers(), torch.ones(1, 50, 8, dtype=torch.float64))
    torch.testing.assert_close((q - bias)[..., 0], k[..., 0])


@pytest.mark.parametrize("state", ["merged", "disabled"])
def test_layers_that_are_merged_or_disabled_run_their_base(state):
    model, host = adapted()
    x = inputs()
    if state == "merged":
        before = host(x)
        model.merge_adapter()
    else:
        model.base_model.disable_adapter_layers()
        before = [nn.functional.linear(x, layer.base_layer.weight, layer.base_layer.bias) for layer in host.layers()]
    for one, other in zip(forward_together(host.layers(), x), before, strict=True):
        assert function_of(one) != "_LowRankLinearsBackward"
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_several_active_adapters_are_one_function_of_the_summed_rank():
    model, _ = adapted()
    model.add_adapter("second", BlockLoraConfig(r=6, blocks=2, alpha=3, target_modules=list(NAMES)))
    model.base_model.set_adapter(["default", "second"])
    x = inputs()
    for _, layer in adapter_layers(model):
        for update in layer.weight_update.values():
            nn.init.normal_(update.B)
        weight = layer.base_layer.weight + sum(update.delta() for update in layer.weight_update.values())
        y = layer(x)
        assert function_of(y) == "_LowRankLinearsBackward"
        torch.testing.assert_close(y, nn.functional.linear(x, weight, layer.base_layer.bias), rtol=1e-10, atol=1e-10)


def test_method_with_a_frozen_down_projection_is_fused_too():
    host = Projections().double()
    model = peft.get_peft_model(host, CompLoraConfig(r=2, target_modules=["q_proj"]))
    assert function_of(model.base_model.model.q_proj(inputs())) == "_LowRankLinearsBackward"
