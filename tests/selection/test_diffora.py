import math

import peft
import pytest
import torch
from fixtures.gated_task import (
    Interrupt,
    Planted,
    Searched,
    TwoStages,
    attached,
    backbone,
    engine_of,
    inner_step,
    pixels,
    searching,
)
from fixtures.tiny_tasks import settings
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

import vision_lowrank as vl
from vision_lowrank.attachment.store import adapter_state
from vision_lowrank.config import validate
from vision_lowrank.engine import Engine
from vision_lowrank.engine.task import Task
from vision_lowrank.errors import ConfigError, UserError
from vision_lowrank.selection.diffora import Diffora
from vision_lowrank.selection.final import share_pairs, unshare
from vision_lowrank.selection.gates import sigmoid_weights

MODULES = ("q", "v", "fc1")
PARTS = ("attn.q_proj", "attn.v_proj", "mlp.fc1")


def path(block, part):
    return f"model.blocks.{block}.{part}"


def searched(depth=2, **options):
    """A selection, an adapted model and its gates, LoRA moved and no gate at its start."""
    selection, model = Diffora(**options), attached(depth, MODULES)
    gates = selection.gates(model)
    gates.logits.normal_(generator=torch.Generator().manual_seed(3))
    return selection, model, gates


def lora_layers(model):
    return {name: m for name, m in model.get_base_model().named_modules() if isinstance(m, LoraLinear)}


@torch.no_grad()
def output(model):
    return model.eval().encode_image(pixels())


def test_entries_of_one_give_plain_lora_and_of_zero_the_base():
    model = attached(2, MODULES)
    plain = output(model)
    with model.disable_adapter():
        base = output(model)
    for relaxation in ("sigmoid", "row_softmax"):
        gates = Diffora(relaxation=relaxation).gates(model)
        torch.testing.assert_close(output(model), plain, rtol=1e-12, atol=1e-12)
    gates.relax = torch.zeros_like
    assert torch.equal(output(model), base)
    assert not torch.allclose(plain, base)


def test_while_b_is_zero_any_matrix_gives_the_base_and_no_gradient():
    task = Searched(started=False, relax=sigmoid_weights)
    batch = {"x": task.data.x, "y": task.data.y}
    with task.model.disable_adapter(), torch.no_grad():
        base = task.model(batch["x"])
    task.gates.logits.copy_(torch.tensor([2.0, -3.0])).requires_grad_(True)
    assert torch.equal(task.model(batch["x"]), base)
    (gradient,) = torch.autograd.grad(task.training_step(batch)["loss"], task.gates.logits)
    assert torch.equal(gradient, torch.zeros(2, dtype=torch.float64))


def test_relaxed_entries_keep_their_bounds():
    for options, low, high in (({"unit_start": False}, 0, 1), ({}, 0, 2)):
        _, _, gates = searched(**options)
        gates.logits.mul_(50)
        assert gates.weights().min() >= low
        assert 0.99 * high < gates.weights().max() <= high
    _, _, gates = searched(depth=3, relaxation="row_softmax")
    torch.testing.assert_close(gates.weights().reshape(3, 3).sum(1), torch.full((3,), 3.0, dtype=torch.float64))
    fresh = Diffora(unit_start=False).gates(attached(2, MODULES))
    assert fresh.weights().tolist() == [0.5] * 6


@pytest.mark.parametrize("rho", [0.1, 1 / 3, 0.5, 0.67, 1.0])
def test_discretisation_keeps_exactly_the_share(rho):
    selection, _, gates = searched(depth=3, rho=rho)
    chosen = selection.choose(gates)
    rows = [sum(name.startswith(f"model.blocks.{block}.") for name in chosen) for block in range(3)]
    assert rows == [math.ceil(round(rho * 3, 9))] * 3
    together = Diffora(rho=rho, rule="global").choose(gates)
    assert len(together) == max(1, round(rho * 9))
    entries = gates.facts()
    left = set(entries) - set(together)
    assert not left or min(entries[name] for name in together) >= max(entries[name] for name in left)


def test_the_largest_entries_are_kept_and_ties_go_to_the_first():
    selection, _, gates = searched(rho=0.3)
    gates.logits.copy_(torch.tensor([0.1, 0.3, 0.2, -1.0, -1.0, -1.0]))
    assert selection.choose(gates) == [path(0, "attn.v_proj"), path(1, "attn.q_proj")]
    together = Diffora(rho=0.7, rule="global")
    assert together.choose(gates) == [*(path(0, part) for part in PARTS), path(1, "attn.q_proj")]


def test_neither_step_changes_what_the_other_trains():
    task = Searched(relax=sigmoid_weights)
    steps, optimizer = searching(task, Diffora(warmup=0), lr=0.1)
    logits = task.gates.logits.clone()
    inner_step(steps, optimizer, task)
    assert torch.equal(task.gates.logits, logits)
    weights = {name: p.clone() for name, p in task.named_parameters()}
    adam = [state["exp_avg"].clone() for state in optimizer.state.values()]
    steps.after_step(1)
    assert not torch.equal(task.gates.logits, logits)
    assert all(torch.equal(p, weights[name]) for name, p in task.named_parameters())
    assert all(torch.equal(s["exp_avg"], a) for s, a in zip(optimizer.state.values(), adam, strict=True))


def test_the_logits_wait_for_the_end_of_the_warmup():
    task = Searched(relax=sigmoid_weights)
    steps, _ = searching(task, Diffora(warmup=2))
    moved = []
    for step in range(1, 5):
        before = task.gates.logits.clone()
        steps.after_step(step)
        moved.append(not torch.equal(before, task.gates.logits))
    assert moved == [False, False, True, True]


def test_the_module_that_matters_ends_highest(tmp_path):
    task = Planted(Diffora().gates(attached(1)).relax)
    selection = Diffora(warmup=20, lr=0.02)
    engine_of(task, selection, tmp_path, steps=60, batch_size=16, lr=0.02).fit()
    a, b, c = task.gates.logits.tolist()
    assert b > 0.2
    assert b > 0.1 + max(a, c)


def test_discretising_a_binary_solution_changes_nothing():
    selection, model, gates = searched(unit_start=False, rho=1 / 3, share="inherit")
    gates.logits.copy_(torch.tensor([40.0, -40.0, -40.0, -40.0, -40.0, 40.0]))
    before = output(model)
    final = selection.final_model(model, gates, vl.LoraConfig(r=2))
    assert set(lora_layers(final)) == {path(0, "attn.q_proj"), path(1, "mlp.fc1")}
    torch.testing.assert_close(output(final), before, rtol=0, atol=1e-6)


def test_inherited_modules_start_where_the_search_ended_and_others_anew():
    for share, same in (("inherit", True), ("none", False)):
        selection, model, gates = searched(share=share)
        ended = {name: layer.lora_B["default"].weight.clone() for name, layer in lora_layers(model).items()}
        final = selection.final_model(model, gates, vl.LoraConfig(r=2))
        assert list(lora_layers(final)) == selection.choose(gates)
        for name, layer in lora_layers(final).items():
            assert torch.equal(layer.lora_B["default"].weight, ended[name]) == same
            assert layer.lora_B["default"].weight.requires_grad


class Shared(Task):
    """A model with shared pairs as a task."""

    def __init__(self):
        super().__init__()
        selection, model, self.found = searched(depth=3, rho=1 / 3, share="by_type")
        self.found.logits.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0, 0, 1, 0]))
        self.model = selection.final_model(model, self.found, vl.LoraConfig(r=2)).double()
        del self.found


def pairs(model):
    return {n: (x.lora_A["default"].weight, x.lora_B["default"].weight) for n, x in lora_layers(model).items()}


def test_modules_of_a_type_share_one_pair():
    task = Shared()
    found = pairs(task.model)
    groups = [
        [path(1, "attn.q_proj"), path(2, "attn.q_proj")],
        [path(0, "attn.v_proj")],
        [path(0, "mlp.fc1"), path(1, "mlp.fc1"), path(2, "mlp.fc1")],
    ]
    for group in groups:
        assert all(found[name][k] is found[group[0]][k] for name in group for k in (0, 1))
    chosen = [path(0, "attn.q_proj"), path(1, "attn.v_proj"), path(2, "attn.v_proj")]
    assert len({id(A) for A, _ in found.values()}) == len(groups) + len(chosen)
    count = 2 * (4 * (8 + 8) + (8 + 8) + (8 + 32))  # 4 q and v chosen or shared by two, one v, one fc1
    assert sum(p.numel() for p in task.parameters() if p.requires_grad) == count
    assert sum(p.numel() for group in task.parameter_groups() for p in group["params"]) == count
    assert sum(tensor.numel() for tensor in task.trained_state().values()) == count
    assert sum(tensor.numel() for tensor in adapter_state(task.model, "default").values()) == count


def test_the_gradient_of_a_shared_pair_is_the_sum():
    task, apart = Shared(), Shared()
    unshare(apart.model)
    for (A, B), (C, D) in zip(pairs(task.model).values(), pairs(apart.model).values(), strict=True):
        with torch.no_grad():
            C.copy_(A)
            D.copy_(B)
    names = [path(block, "mlp.fc1") for block in range(3)]
    for each in (task, apart):
        with torch.no_grad():
            for name in names:
                pairs(each.model)[name][1].copy_(torch.ones(32, 2) * 0.1)
        (each.model.encode_image(pixels()) ** 3).sum().backward()
    assert len({id(pairs(apart.model)[name][0]) for name in names}) == 3
    for k in (0, 1):
        total = sum(pairs(apart.model)[name][k].grad for name in names)
        assert total.abs().max() > 1e-4
        torch.testing.assert_close(pairs(task.model)[names[0]][k].grad, total, rtol=1e-10, atol=1e-12)


def test_shared_pairs_are_exported_to_every_module(tmp_path):
    task = Shared()
    for _, B in pairs(task.model).values():
        nn.init.normal_(B, std=0.3)
    expected = output(task.model)
    vl.export_lora(task.model, tmp_path / "lora")
    plain = vl.split_attention(backbone(3)).double()
    again = peft.PeftModel.from_pretrained(plain.model, tmp_path / "lora").eval()
    exported = [name for name, module in again.named_modules() if isinstance(module, LoraLinear)]
    assert len(exported) == 9
    torch.testing.assert_close(output(plain), expected, rtol=1e-5, atol=1e-5)
    unshare(task.model)
    assert len({id(tensor) for pair in pairs(task.model).values() for tensor in pair}) == 18
    assert all(tensor.requires_grad for pair in pairs(task.model).values() for tensor in pair)
    assert torch.equal(output(task.model), expected)


def test_an_unshared_model_is_saved_and_loaded_as_a_plain_one(tmp_path):
    task = Shared()
    for _, B in pairs(task.model).values():
        nn.init.normal_(B, std=0.3)
    unshare(task.model)
    vl.save(task.model, tmp_path / "adapter")
    again = vl.load(tmp_path / "adapter", backbone(3).double())
    torch.testing.assert_close(output(again), output(task.model), rtol=1e-6, atol=1e-6)


def test_pairs_of_other_shapes_are_not_shared():
    _, model, _ = searched()
    with pytest.raises(UserError, match=r"'model.blocks.0.attn.q_proj' and 'model.blocks.0.mlp.fc1' cannot share"):
        share_pairs(model, [[path(0, "attn.q_proj"), path(0, "mlp.fc1")]])


def test_unrolled_is_the_derivative_of_the_look_ahead():
    task = Searched(relax=sigmoid_weights)
    task.gates.logits.copy_(torch.tensor([0.5, -0.4]))
    steps, optimizer = searching(
        task, Diffora(hypergrad="unrolled", warmup=0), optimizer="sgd", weight_decay=0.0, lr=0.3, batch_size=7
    )
    inner_step(steps, optimizer, task)
    found = steps.hypergradient(1)[0]
    again = Searched(relax=sigmoid_weights)
    trained = {name: p for name, p in again.named_parameters() if p.requires_grad}
    held_out = again.selection_data()

    def ahead(logits):
        def loss(parameters, data):
            state = {**parameters, "gates.logits": logits}
            return torch.func.functional_call(again, state, ({"x": data.x, "y": data.y},))["loss"]

        gradients = torch.autograd.grad(loss(trained, again.data), list(trained.values()))
        moved = {name: p - 0.3 * g for (name, p), g in zip(trained.items(), gradients, strict=True)}
        return loss(moved, held_out).item()

    h, here = 1e-5, task.gates.logits
    shifts = torch.eye(2, dtype=torch.float64) * h
    expected = torch.tensor([(ahead(here + d) - ahead(here - d)) / (2 * h) for d in shifts], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


def test_the_final_adapter_without_sharing_is_a_plain_peft_checkpoint(tmp_path):
    selection, model, gates = searched(share="none")
    final = selection.final_model(model, gates, vl.LoraConfig(r=2)).eval()
    for _, B in pairs(final).values():
        nn.init.normal_(B, std=0.3)
    final.save_pretrained(tmp_path)
    assert type(peft.PeftConfig.from_pretrained(tmp_path)) is peft.LoraConfig
    again = peft.PeftModel.from_pretrained(vl.split_attention(backbone()).double(), tmp_path).eval()
    assert list(lora_layers(again)) == selection.choose(gates)
    torch.testing.assert_close(output(again), output(final), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("share", ["by_type", "inherit"])
@pytest.mark.parametrize("at", [3, 8])
def test_both_stages_resume_where_they_were_cut(share, at, tmp_path):
    selection = Diffora(steps=6, warmup=1, share=share)

    def engine(folder, hook):
        torch.manual_seed(0)
        task = TwoStages(selection)
        return Engine(settings(steps=4), task, tmp_path / folder, seed=4, rule=task, hooks=[hook])

    whole, cut, resumed = engine("whole", Interrupt(99)), engine("cut", Interrupt(at)), engine("cut", Interrupt(99))
    whole.fit()
    with pytest.raises(ZeroDivisionError):
        cut.fit()
    resumed.fit()
    one, other = whole.task.trained_state(), resumed.task.trained_state()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert one["gates.logits"].abs().min() > 0
    chosen = selection.choose(whole.task.gates)
    adapted = list(lora_layers(whole.task.model))
    assert adapted == (chosen if share == "inherit" else [unit.name for unit in whole.task.gates.units])


def test_a_config_names_it_and_what_makes_no_sense_is_refused():
    tree = {
        "backbone": {"name": "tiny-clip"},
        "task": {"type": "fewshot"},
        "data": {"type": "emoji"},
        "adapter": {"type": "lora"},
        "selection": {"type": "diffora"},
    }
    assert validate(tree).selection == Diffora()
    start = tree | {"initializer": {"type": "pissa"}}
    assert validate(start | {"selection": {"type": "diffora", "share": "none"}}).initializer is not None
    with pytest.raises((ConfigError, UserError), match="share=by_type and an initializer exclude each other"):
        validate(start)
    with pytest.raises((ConfigError, UserError), match="never move"):
        validate(tree | {"selection": {"type": "diffora", "steps": 100}})
