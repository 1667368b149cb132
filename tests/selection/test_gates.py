import copy

import peft
import pytest
import torch
from fixtures import hosts
from fixtures.gated_task import Searched, attached, backbone, pixels, two_towers, units
from torch import nn

import vision_lowrank as vl
from vision_lowrank.errors import UserError
from vision_lowrank.selection.controls import jaccard, majority, random_selection
from vision_lowrank.selection.gates import Gates, Unit, find_units, sigmoid_weights, softmax_weights


def lora(fused=True, **options):
    """One linear with LoRA in float64, and its tensors (W, b, A, B, s)."""
    holder = nn.Sequential()
    holder.add_module("only", nn.Linear(5, 4))
    model = peft.get_peft_model(holder, vl.LoraConfig(r=2, alpha=3.0, target_modules=["only"], **options)).double()
    if fused:
        vl.accelerate_peft(model)
    layer = model.get_base_model().only
    nn.init.normal_(layer.lora_B["default"].weight)
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return model, (layer.base_layer.weight, layer.base_layer.bias, A, B, layer.scaling["default"])


def inputs():
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("power", [1, 3])
def test_output_and_gradients_are_those_of_the_formula(fused, power):
    model, (W, b, A, B, s) = lora(fused)
    gates = Gates(model, units("only"), sigmoid_weights, power=power)
    gates.logits.fill_(0.7).requires_grad_(True)
    x = inputs()
    target = torch.arange(4.0, dtype=torch.float64)
    wanted = [gates.logits, A, B]
    y = model(x)
    own = torch.autograd.grad((y * target).sum(), wanted)
    w = gates.logits.sigmoid()
    expected = x @ W.T + b + w**power * s * (x @ A.T @ B.T)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(own, torch.autograd.grad((expected * target).sum(), wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_reference_hooks_on_dropout_a_and_b_are_power_three():
    model, _ = lora(fused=False)
    layer, x, w = model.get_base_model().only, inputs(), 0.5
    handles = [
        part["default"].register_forward_pre_hook(lambda _, given: (w * given[0],))
        for part in (layer.lora_dropout, layer.lora_A, layer.lora_B)
    ]
    reference = model(x)
    for handle in handles:
        handle.remove()
    gates = Gates(model, units("only"), sigmoid_weights, power=3)  # σ(0) = 0.5
    torch.testing.assert_close(model(x), reference, rtol=1e-12, atol=1e-12)
    gates.remove()
    assert not torch.allclose(model(x), reference)


@pytest.mark.parametrize("fused", [True, False])
def test_gates_at_one_leave_the_model_as_it_was_and_at_zero_the_base(fused):
    model, (W, b, *_) = lora(fused)
    x = inputs()
    before = model(x)
    gates = Gates(model, units("only"))
    torch.testing.assert_close(model(x), before, rtol=1e-14, atol=1e-14)
    gates.relax = torch.zeros_like
    assert torch.equal(model(x), nn.functional.linear(x, W, b))


def test_a_model_with_fresh_gates_gives_what_it_gave():
    for model, run in ((attached(), lambda m: m.encode_image(pixels())), (two_towers(), hosts.run_clip)):
        with torch.no_grad():
            before = run(model)
            gates = Gates(model, find_units(model, "module"))
            torch.testing.assert_close(run(model), before, rtol=1e-12, atol=1e-12)
            assert gates.weights().tolist() == pytest.approx([1.0] * len(gates.units), abs=1e-14)
            gates.logits[0] = 3.0
            assert not torch.allclose(run(model), before)


def test_softmax_weights_sum_to_their_number_and_their_gradients_to_zero():
    task = Searched()
    task.gates.logits.copy_(torch.tensor([0.3, -1.1])).requires_grad_(True)
    batch = {"x": task.data.x, "y": task.data.y}
    (gradient,) = torch.autograd.grad(task.training_step(batch)["loss"], task.gates.logits)
    assert float(gradient.abs().max()) > 1e-3
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-14)
    assert task.gates.weights().sum().item() == pytest.approx(2, abs=1e-14)
    with torch.no_grad():
        one = task.model(batch["x"])
        task.gates.logits += 4.0
        torch.testing.assert_close(task.model(batch["x"]), one, rtol=1e-12, atol=1e-12)


def test_groups_are_relaxed_apart():
    model = attached(depth=3)
    blocks = find_units(model, "module")
    gates = Gates(model, blocks, softmax_weights, [unit.block for unit in blocks])
    gates.logits.normal_()
    rows = gates.weights().reshape(3, 3)
    torch.testing.assert_close(rows.sum(dim=1), torch.full((3,), 3.0, dtype=torch.float64))
    for index in range(9):
        assert float(gates.multiplier(index)) == float(gates.weights()[index])


def test_no_gradient_reaches_the_logits_in_training_passes_and_the_optimizer_does_not_see_them():
    task = Searched()
    task.training_step({"x": task.data.x, "y": task.data.y})["loss"].backward()
    assert task.gates.logits.grad is None
    assert not any(p is task.gates.logits for group in task.parameter_groups() for p in group["params"])
    assert "gates.logits" in task.trained_state()


def test_removing_is_complete_and_installing_twice_is_once():
    model, _ = lora()
    x = inputs()
    before = model(x)
    gates = Gates(model, units("only"), sigmoid_weights)
    half = model(x)
    gates.install()
    assert torch.equal(model(x), half)
    other = Gates(model, units("only"), sigmoid_weights)
    assert torch.equal(model(x), half)  # the second took the place of the first
    gates.remove()
    assert torch.equal(model(x), half)  # which has nothing left to remove
    other.remove()
    other.remove()
    assert torch.equal(model(x), before)
    assert "forward" not in model.get_base_model().only.__dict__


def test_a_disabled_adapter_gives_the_base_bit_for_bit():
    model = attached()
    gates = Gates(model, find_units(model, "block"))
    gates.logits.normal_()
    bare = vl.split_attention(backbone()).double().eval()
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model.encode_image(pixels()), bare.encode_image(pixels()))


def test_a_merged_layer_is_refused():
    model, _ = lora()
    Gates(model, units("only"))
    model.merge_adapter()
    with pytest.raises(UserError, match=r"'only' is merged .* gates\.remove\(\)"):
        model(inputs())


def test_dropout_stays_that_of_the_adapter():
    model, (W, b, A, B, s) = lora(dropout=0.5)
    gates = Gates(model, units("only"), sigmoid_weights)
    model.train()
    x = torch.ones(1, 5, dtype=torch.float64)
    outputs = {tuple((model(x) - x @ W.T - b).flatten().tolist()) for _ in range(20)}
    assert len(outputs) > 1
    model.eval()
    torch.testing.assert_close(model(x), x @ W.T + b + 0.5 * s * (x @ A.T @ B.T))
    assert gates.weights().tolist() == [0.5]


def test_an_offset_is_gated_with_its_adapter():
    torch.manual_seed(1)
    model = vl.attach(backbone(), vl.LoraConfig(r=2), modules=("q", "fc1"), initializer=vl.Pissa()).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
        layer = model.get_base_model().model.blocks[0].attn.q_proj
        x = torch.randn(3, 8, dtype=torch.float64)
        base, full = layer.base_layer(x), layer(x)
        assert not torch.allclose(base, full)
        Gates(model, find_units(model, "module"), sigmoid_weights)
        torch.testing.assert_close(layer(x), (base + full) / 2)


def test_a_copy_has_gates_of_its_own():
    task = Searched()
    other = copy.deepcopy(task)
    x, before = task.data.x, task.model(task.data.x)
    other.gates.logits[0] = 5.0
    assert torch.equal(task.model(x), before)
    assert not torch.allclose(other.model(x), before)


def test_units_are_blocks_or_modules_and_indices_are_never_confused():
    model = attached(depth=12, modules=("q", "fc2"), r=1)
    blocks = find_units(model, "block")
    assert [unit.name for unit in blocks] == [f"model.blocks.{i}" for i in range(12)]
    assert blocks[1].layers == ("model.blocks.1.attn.q_proj", "model.blocks.1.mlp.fc2")
    modules = find_units(model, "module")
    assert [unit.layers for unit in modules[22:]] == [(path,) for path in blocks[11].layers]
    assert {unit.block for unit in modules[2:4]} == {"model.blocks.1"}


def test_blocks_without_an_adapter_are_no_units():
    model = vl.attach(backbone(3), vl.LoraConfig(r=2), layers=[0, 2])
    assert [unit.name for unit in find_units(model, "block")] == ["model.blocks.0", "model.blocks.2"]


def test_towers_are_told_apart():
    found = find_units(two_towers(), "block")
    assert [(unit.tower, unit.name) for unit in found] == [
        ("vision", "model.visual.transformer.resblocks.0"),
        ("text", "model.transformer.resblocks.0"),
    ]
    assert all(len(unit.layers) == 2 for unit in found)


def test_what_cannot_be_searched_is_refused():
    model = vl.attach(backbone(), vl.LoraConfig(r=2, target_modules=["q_proj", "model.patch_embed.proj"]), check=False)
    with pytest.raises(UserError, match=r"'model\.patch_embed\.proj' is adapted but lies in no block"):
        find_units(model, "block")
    with pytest.raises(UserError, match="Sequential has no known blocks"):
        find_units(lora()[0], "module")
    with pytest.raises(UserError, match="no adapted module"):
        find_units(backbone(), "module")
    with pytest.raises(UserError, match="no adapted module"):
        Gates(lora()[0], [])


def test_facts_name_every_unit():
    task = Searched()
    assert task.gates.facts() == {"first": 1.0, "second": 1.0}


def test_random_selections_have_the_size_asked_and_depend_on_the_seed_alone():
    pool = [Unit(f"u{i}", "vision", "b", (f"u{i}.q", f"u{i}.v")) for i in range(10)]
    draws = [random_selection(pool, 4, seed) for seed in range(30)]
    assert all(len(draw) == len(set(draw)) == 8 for draw in draws)
    assert draws[3] == random_selection(pool, 4, 3)
    assert {path for draw in draws for path in draw} == {path for unit in pool for path in unit.layers}
    assert len({tuple(draw) for draw in draws}) > 20
    assert random_selection(pool, 10, 0) == [path for unit in pool for path in unit.layers]
    with pytest.raises(UserError, match="choose from 1 to 10"):
        random_selection(pool, 11, 0)


def test_overlap_and_majority():
    assert jaccard("abc", "bcd") == 0.5
    assert jaccard([], []) == 1.0
    assert jaccard("a", []) == 0.0
    assert majority(["ab", "bc", "bd"]) == ["b"]
    assert majority(["ab", "ba"]) == ["a", "b"]
