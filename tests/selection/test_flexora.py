import peft
import pytest
import torch
from fixtures.gated_task import (
    Interrupt,
    Planted,
    Searched,
    attached,
    backbone,
    engine_of,
    inner_step,
    pixels,
    searching,
    two_towers,
    whole,
)
from torch import nn

import vision_lowrank as vl
from vision_lowrank.config import validate
from vision_lowrank.data.base import ImageSet
from vision_lowrank.errors import ConfigError, UserError
from vision_lowrank.selection.flexora import Flexora
from vision_lowrank.selection.gates import softmax_weights

CONFIG = {
    "backbone": {"name": "tiny-clip"},
    "task": {"type": "fewshot"},
    "data": {"type": "emoji"},
    "adapter": {"type": "lora"},
    "selection": {"type": "flexora"},
}
SGD = {"optimizer": "sgd", "weight_decay": 0.0}


def held_out_loss(task):
    data = task.selection_data()
    return task.training_step({"x": data.x, "y": data.y})["loss"]


def test_the_gradient_is_zero_while_all_of_b_is_and_not_after_the_first_step():
    task = Searched(started=False)
    steps, optimizer = searching(task, Flexora(val_batches=1), lr=0.1, **SGD)
    assert torch.equal(steps.hypergradient(1)[0], torch.zeros(2, dtype=torch.float64))
    inner_step(steps, optimizer, task)
    assert steps.hypergradient(1)[0].abs().min() > 1e-8


def test_a_harmful_branch_loses_and_the_other_gains():
    task = Planted(softmax_weights)
    with torch.no_grad():
        layers = task.model.get_base_model()
        for name, up in (("b", 0.5), ("c", 0.8)):  # b points where the targets are, c elsewhere
            layer = getattr(layers, name)
            layer.lora_A["default"].weight.fill_(1.0)
            layer.lora_B["default"].weight.fill_(up)
    steps, _ = searching(task, Flexora(val_batches=2), batch_size=16)
    for step in range(1, 21):
        steps.after_step(step)
    _, b, c = task.gates.logits.tolist()
    assert b > 0.1
    assert c < -0.1
    assert float(task.gates.weights().sum()) == pytest.approx(3, abs=1e-12)


def look_ahead(task, optimizer, start, logits, rate):
    """L_val(θ - η ∇L_train(θ, a), a) by its definition."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    with torch.no_grad():
        task.gates.logits.copy_(logits)
        for parameter, value in zip(parameters, start, strict=True):
            parameter.copy_(value)
    gradients = torch.autograd.grad(task.training_step(whole(task))["loss"], parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(rate * gradient)
        return float(held_out_loss(task))


LOGITS = torch.tensor([0.4, -0.3], dtype=torch.float64)


def hypergradient(kind, **engine):
    """g after one inner step from the start of a task, and that start."""
    task = Searched()
    task.gates.logits.copy_(LOGITS)
    steps, optimizer = searching(task, Flexora(hypergrad=kind, val_batches=1), lr=0.3, batch_size=7, **engine)
    start = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
    inner_step(steps, optimizer, task)
    return steps.hypergradient(1)[0], task, optimizer, start


def test_unrolled_is_the_derivative_of_the_look_ahead_and_first_order_is_not():
    found, task, optimizer, start = hypergradient("unrolled", **SGD)
    h, expected = 1e-5, torch.zeros(2, dtype=torch.float64)
    for i in range(2):
        shift = torch.eye(2, dtype=torch.float64)[i] * h
        both = [look_ahead(task, optimizer, start, LOGITS + sign * shift, 0.3) for sign in (1, -1)]
        expected[i] = (both[0] - both[1]) / (2 * h)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
    first_order = hypergradient("first_order", **SGD)[0]
    assert (first_order - expected).abs().max() > 0.02 * expected.abs().max()


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, False), (0.9, True), (0.5, True)])
def test_unrolled_holds_with_momentum_and_weight_decay(momentum, nesterov):
    found = hypergradient("unrolled", optimizer="sgd", momentum=momentum, nesterov=nesterov, weight_decay=0.1)[0]
    task = Searched()
    task.gates.logits.copy_(LOGITS).requires_grad_(True)
    trained = {name: p for name, p in task.named_parameters() if p.requires_grad}
    loss = task.training_step(whole(task))["loss"]
    gradients = torch.autograd.grad(loss, list(trained.values()), create_graph=True)
    rate = 0.3 * (1 + momentum) if nesterov else 0.3  # the first step's: buffer and gradient are the same
    moved = {n: p - rate * (g + 0.1 * p) for (n, p), g in zip(trained.items(), gradients, strict=True)}
    data = task.selection_data()
    ahead = torch.func.functional_call(task, moved, ({"x": data.x, "y": data.y},))["loss"]
    torch.testing.assert_close(found, torch.autograd.grad(ahead, task.gates.logits)[0], rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["first_order", "unrolled"])
def test_the_outer_step_leaves_weights_gradients_and_optimizer_alone(kind):
    task = Searched()
    steps, optimizer = searching(task, Flexora(hypergrad=kind), optimizer="sgd", momentum=0.9, lr=0.1)
    inner_step(steps, optimizer, task)
    task.train()
    task.head.eval()
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    grads = {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}
    momenta = [state["momentum_buffer"].clone() for state in optimizer.state.values()]
    flags = {name: p.requires_grad for name, p in task.named_parameters()}
    random = torch.get_rng_state()
    steps.after_step(1)
    for name, tensor in task.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name != "gates.logits"), name
    assert grads
    assert all(torch.equal(p.grad, grads[n]) for n, p in task.named_parameters() if n in grads)
    assert all(p.grad is None for n, p in task.named_parameters() if n not in grads)
    assert all(
        torch.equal(state["momentum_buffer"], kept)
        for state, kept in zip(optimizer.state.values(), momenta, strict=True)
    )
    assert flags == {name: p.requires_grad for name, p in task.named_parameters()}
    assert not task.gates.logits.requires_grad
    assert task.gates.logits.grad is None
    assert torch.equal(torch.get_rng_state(), random)
    assert task.training
    assert not task.head.training


def test_the_model_is_in_evaluation_mode_when_held_out_data_are_seen():
    task = Searched()
    modes = []
    task.head.register_forward_hook(lambda module, *_: modes.append(module.training))
    steps, optimizer = searching(task.train(), Flexora(val_batches=2), batch_size=4)
    inner_step(steps, optimizer, task)
    steps.after_step(1)
    assert modes == [True, False, False]


def test_held_out_batches_depend_on_seed_and_step_alone_and_cover_the_set():
    task = Searched()
    steps, _ = searching(task, Flexora(val_batches=2), batch_size=3)

    def indices(step):
        return [batch["index"].tolist() for batch in steps._batches(step)]

    once = [indices(step) for step in range(1, 7)]
    torch.manual_seed(99)
    assert [indices(step) for step in (6, 5, 4, 3, 2, 1)] == once[::-1]
    flat = [batch for step in once for batch in step]
    for epoch in range(4):  # 7 samples: batches of 3, 3 and 1
        assert sorted(i for batch in flat[3 * epoch : 3 * epoch + 3] for i in batch) == list(range(7))
    assert flat[:3] != flat[3:6]


def test_the_outer_step_comes_after_every_kth_inner_step():
    task = Searched()
    steps, _ = searching(task, Flexora(inner_steps=3))
    moved = []
    for step in range(1, 7):
        before = task.gates.logits.clone()
        steps.after_step(step)
        moved.append(not torch.equal(before, task.gates.logits))
    assert moved == [False, False, True, False, False, True]


@pytest.mark.parametrize("kind", ["first_order", "unrolled"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_search_equals_the_whole(kind, accumulate, tmp_path):
    selection, options = Flexora(hypergrad=kind), {"optimizer": "sgd", "accumulate": accumulate}
    entire = engine_of(Searched(), selection, tmp_path / "whole", **options)
    entire.fit()
    with pytest.raises(ZeroDivisionError):
        engine_of(Searched(), selection, tmp_path / "cut", [Interrupt(5)], **options).fit()
    resumed = engine_of(Searched(), selection, tmp_path / "cut", [Interrupt(99)], **options)
    resumed.fit()
    one, other = entire.task.trained_state(), resumed.task.trained_state()
    assert one["gates.logits"].abs().min() > 0.02
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(
        entire.steps.state_dict()["outer"]["state"][0]["exp_avg_sq"],
        resumed.steps.state_dict()["outer"]["state"][0]["exp_avg_sq"],
    )


def test_accumulation_in_halves_equals_the_whole_batch(tmp_path):
    selection, options = Flexora(hypergrad="unrolled"), {"optimizer": "sgd", "batch_size": 6}
    engines = [engine_of(Searched(), selection, tmp_path / str(k), accumulate=k, **options) for k in (1, 2)]
    for engine in engines:
        engine.fit()
    torch.testing.assert_close(engines[0].task.gates.logits, engines[1].task.gates.logits, rtol=1e-8, atol=1e-8)


def test_the_search_logs_the_held_out_loss(tmp_path):
    engine = engine_of(Searched(), Flexora(), tmp_path)
    engine.fit()
    assert engine.losses["held_out_loss"] > 0


def test_in_bf16_the_hypergradient_stays_close_and_the_logits_wide():
    found = {}
    for precision in ("fp32", "bf16"):
        task = Searched(dtype=torch.float32)
        steps, _ = searching(task, Flexora(), precision=precision)
        found[precision] = steps.hypergradient(1)[0]
        assert found[precision].dtype == task.gates.logits.dtype == torch.float32
    assert not torch.equal(found["bf16"], found["fp32"])
    torch.testing.assert_close(found["bf16"], found["fp32"], rtol=0.05, atol=0.02)


def test_an_infinite_hypergradient_moves_nothing():
    task = Searched()
    steps, _ = searching(task, Flexora())
    with torch.no_grad():
        task.head.weight.fill_(float("inf"))
    steps.after_step(1)
    assert torch.equal(task.gates.logits, torch.zeros(2, dtype=torch.float64))


def chosen(logits, depth=3, **options):
    model = attached(depth, modules=("q", "fc1"))
    selection = Flexora(**options)
    gates = selection.gates(model)
    gates.logits.copy_(torch.tensor(logits))
    return selection, model, gates


def test_blocks_above_zero_are_chosen():
    selection, _, gates = chosen([0.2, -0.1, 1e-6])
    paths = [f"model.blocks.{i}.{part}" for i in (0, 2) for part in ("attn.q_proj", "mlp.fc1")]
    assert selection.choose(gates) == paths
    _, _, gates = chosen([-0.3, -0.1, -0.1])
    assert selection.choose(gates) == ["model.blocks.1.attn.q_proj", "model.blocks.1.mlp.fc1"]
    selection, _, gates = chosen([0.0, 0.0, 0.0])
    assert len(selection.choose(gates)) == 2
    selection, _, gates = chosen([-0.5, 0.1, -0.2], top_k=2)
    assert [path.split(".")[2] for path in selection.choose(gates)] == ["1", "1", "2", "2"]


def test_a_positive_logit_may_belong_to_a_weight_below_one():
    selection, _, gates = chosen([2.0, 0.1, -2.1])
    assert gates.weights()[1] < 1
    assert len(selection.choose(gates)) == 4


def test_the_last_stage_has_lora_in_the_chosen_blocks_alone_and_it_is_new():
    selection, model, gates = chosen([0.2, -0.1, 0.3])
    searched = {n: p.clone() for n, p in model.named_parameters() if "lora_A" in n}
    final = selection.final_model(model, gates, vl.LoraConfig(r=2))
    trained = {name: p for name, p in final.named_parameters() if p.requires_grad}
    blocks = {name.split("blocks.")[1].split(".")[0] for name in trained}
    assert blocks == {"0", "2"}
    assert sum(p.numel() for p in trained.values()) == 2 * (2 * (8 + 8) + 2 * (8 + 32))
    assert all(not p.any() for name, p in trained.items() if "lora_B" in name)
    assert not any(torch.equal(p, searched[name]) for name, p in trained.items() if "lora_A" in name)
    assert not any("forward" in module.__dict__ for module in final.modules())
    with torch.no_grad():
        bare = vl.split_attention(backbone(3)).double().eval()
        assert torch.equal(final.eval().encode_image(pixels()), bare.encode_image(pixels()))


def test_with_all_blocks_chosen_the_last_stage_is_standard_lora_of_the_same_seed():
    selection, model, gates = chosen([0.2, 0.1, 0.3])
    torch.manual_seed(7)
    final = selection.final_model(model, gates, vl.LoraConfig(r=2))
    plain = backbone(3).double()
    torch.manual_seed(7)
    plain = vl.attach(plain, vl.LoraConfig(r=2), modules=("q", "fc1"))
    one, other = dict(final.named_parameters()), dict(plain.named_parameters())
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_final_adapter_is_a_plain_peft_checkpoint(tmp_path):
    selection, model, gates = chosen([0.2, -0.1, 0.3])
    final = selection.final_model(model, gates, vl.LoraConfig(r=2)).eval()
    for name, parameter in final.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    final.save_pretrained(tmp_path)
    config = peft.PeftConfig.from_pretrained(tmp_path)
    assert type(config) is peft.LoraConfig
    again = peft.PeftModel.from_pretrained(vl.split_attention(backbone(3)).double(), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again.encode_image(pixels()), final.encode_image(pixels()), rtol=1e-6, atol=1e-6)


def test_weights_sum_per_tower_or_jointly():
    gates = Flexora().gates(two_towers())
    gates.logits.copy_(torch.tensor([1.0, -1.0]))
    assert gates.weights().tolist() == [1.0, 1.0]  # one block in each tower
    joint = Flexora(softmax="joint").gates(two_towers())
    joint.logits.copy_(gates.logits)
    torch.testing.assert_close(joint.weights(), 2 * gates.logits.softmax(0))


def pictures(counts):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    keys = tuple(f"{label}/{i}" for i, label in enumerate(labels))
    return ImageSet("toy", tuple("abcd"[: len(counts)]), tuple(labels), keys, lambda key: None)


def test_the_split_is_balanced_and_disjoint():
    inner, held_out = Flexora(holdout=0.25).split(pictures([8, 8, 4]), seed=1)
    assert [len(group) for group in held_out.by_class()] == [2, 2, 1]
    assert not set(inner.keys) & set(held_out.keys)
    assert len(inner) + len(held_out) == 20
    other = Flexora(holdout=0.25).split(pictures([8, 8, 4]), seed=2)[1]
    assert other.keys != held_out.keys


def test_few_pictures_still_give_every_class_on_both_sides():
    inner, held_out = Flexora(holdout=0.2).split(pictures([1, 2, 4]), seed=1)
    assert [len(group) for group in inner.by_class()] == [1, 1, 3]
    assert [len(group) for group in held_out.by_class()] == [1, 1, 1]


def test_a_config_names_it_and_what_makes_no_sense_is_refused():
    assert validate(CONFIG).selection == Flexora()
    unrolled = CONFIG | {"selection": {"type": "flexora", "hypergrad": "unrolled"}}
    assert validate(unrolled | {"engine": {"optimizer": "sgd"}}).selection.hypergrad == "unrolled"
    for change, message in (
        ({"adapter": {"type": "block_lora", "blocks": 1}}, "adapter.type=lora"),
        ({"adapter": None}, "adapter.type=lora"),
        ({"adapter": {"type": "lora", "init_lora_weights": "pissa"}}, "changes the frozen weights"),
        ({"engine": {"precision": "fp16"}}, "bf16 or fp32"),
        ({"selection": unrolled["selection"]}, "engine.optimizer=sgd"),
        ({"selection": unrolled["selection"], "engine": {"optimizer": "sgd", "clip_norm": 1.0}}, "without clipping"),
        ({"selection": {"type": "flexora", "step": 3}}, "Did you mean 'steps'"),
        ({"selection": {"type": "flexora", "steps": 2, "inner_steps": 3}}, "never move"),
    ):
        with pytest.raises((ConfigError, UserError), match=message):
            validate(CONFIG | change)


def test_a_task_that_cannot_search_says_so():
    task = Searched()
    task.gates = None
    with pytest.raises(UserError, match="task Searched cannot search"):
        searching(task, Flexora())
    task = Searched()
    task.selection_data = list
    with pytest.raises(UserError, match="no picture is held out"):
        searching(task, Flexora())
