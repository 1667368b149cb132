"""LISA on tiny transformers: which weights move, when, and that nothing of it is lost in checkpoints and artefacts."""

import itertools
import json

import open_clip
import peft
import pytest
import torch
from fixtures.adapted_task import rule_of
from fixtures.tiny_tasks import settings
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.data import Dataset

import vision_lowrank as vl
from vision_lowrank.attention.split import split_attention
from vision_lowrank.backbones.open_clip import wrap_open_clip
from vision_lowrank.backbones.timm import TimmBackbone, timm_tower
from vision_lowrank.config import load_config
from vision_lowrank.data.transforms import Preprocess
from vision_lowrank.engine import Engine, Hook
from vision_lowrank.engine.keep import Best, Last
from vision_lowrank.engine.task import Stage, Task
from vision_lowrank.errors import ConfigError, UserError
from vision_lowrank.optim.base import StepContext
from vision_lowrank.optim.lisa import EMBEDDING
from vision_lowrank.studies.run import build_task

DEPTH = 5
E, H = "embeddings", "head"


class Pictures(Dataset):
    """Eight noise pictures of 8 pixels a side, three classes."""

    def __init__(self, first=0):
        generator = torch.Generator().manual_seed(first)
        self.pixels = torch.randn(8, 3, 8, 8, generator=generator, dtype=torch.float64)

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, item):
        index = item[1] if isinstance(item, tuple) else item
        return {"image": self.pixels[index], "label": index % 3}


def vit(depth=DEPTH):
    model = VisionTransformer(
        img_size=8, patch_size=4, embed_dim=8, depth=depth, num_heads=2, mlp_ratio=1, num_classes=0, pre_norm=True
    )
    return TimmBackbone(
        model,
        name="timm:tiny",
        weights="random",
        towers=timm_tower(model, "vision", "model"),
        preprocess=Preprocess(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        embed_dim=8,
    )


class Classify(Task):
    """A frozen tiny transformer, perhaps adapted, and a linear head that trains."""

    def __init__(self, adapter=None, trains=(), dtype=torch.float64, keep=None, stages=1):
        super().__init__()
        torch.manual_seed(1)
        backbone = vit().requires_grad_(False)
        self.model = peft.get_peft_model(split_attention(backbone), adapter) if adapter else backbone
        self.head = nn.Linear(8, 3)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or name in trains)
        self.keep, self.count = keep or Last(), stages
        self.to(dtype)

    def stages(self):
        return [Stage(f"stage{i}", Pictures(), keep=self.keep) for i in range(self.count)]

    def training_step(self, batch):
        logits = self.head(self.model.encode_image(batch["image"]))
        return {"loss": nn.functional.cross_entropy(logits, batch["label"])}

    def eval_sets(self, split):
        return {"val": Pictures(1)} if split == "val" else {}

    def eval_step(self, batch):
        return {"logits": self.head(self.model.encode_image(batch["image"])), "label": batch["label"]}

    def metrics(self, set_name, outputs):
        return {"score": -float(nn.functional.cross_entropy(outputs["logits"], outputs["label"]))}


def lora(layers=None):
    targets = ["q_proj", "v_proj"] if layers is None else [f"model.blocks.{i}.attn.q_proj" for i in layers]
    return vl.LoraConfig(r=2, target_modules=targets)


class Watch(Hook):
    """What required a gradient in the forward pass of every step, what moved, and how much state the optimiser had."""

    def __init__(self, task):
        self.task, self.training, self.moved, self.states, self.drawn = task, [], [], [], []
        self.last = self.copy()
        self.handle = task.register_forward_pre_hook(self.look)

    def copy(self):
        return {name: p.detach().clone() for name, p in self.task.named_parameters()}

    def look(self, *_):
        if self.task.training and len(self.training) == len(self.moved):
            self.training.append(groups(name for name, p in self.task.named_parameters() if p.requires_grad))

    def after_step(self, engine):
        now = self.copy()
        self.moved.append(groups(name for name in now if not torch.equal(now[name], self.last[name])))
        self.last = now
        names = {id(p): name for name, p in self.task.named_parameters()}
        self.states.append({names[id(p)] for p in engine.optimizer.state})
        self.drawn.append({int(v) for name, v in engine.losses.items() if name.startswith("lisa_block")})


def group(name):
    """The block's number, E, or H, of a parameter."""
    _, _, inside = name.partition("blocks.")
    if inside:
        return int(inside.split(".")[0])
    return E if any(part in name for part in ("patch_embed", "cls_token", "pos_embed", "norm_pre")) else H


def groups(names):
    return {group(name) for name in names}


def blocks(found):
    return {each for each in found if isinstance(each, int)}


def lisa(**options):
    return rule_of({"type": "lisa", "interval": 2} | options)


def train(folder, rule, task=None, hooks=(), seed=4, **engine):
    options = settings(**{"checkpoint_every": 0} | engine)
    engine = Engine(options, task or Classify(), folder, seed=seed, rule=rule, hooks=hooks)
    engine.fit()
    return engine


def watched(folder, rule, task=None, **engine):
    task = task or Classify()
    watch = Watch(task)
    train(folder, rule, task, [watch], **engine)
    return watch


def steps_of(rule, task=None, seed=4, index=0, **engine):
    site = StepContext(task or Classify(), settings(**engine), seed, index)
    steps = rule.start(site)
    steps.prepare()
    return steps


def state(task):
    return {name: tensor.clone() for name, tensor in task.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


# --- what trains, and when


@pytest.mark.parametrize("gamma", [0, 1, 2, DEPTH])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_only_e_h_and_the_drawn_blocks_train_and_move(gamma, optimizer, tmp_path):
    rule = lisa(blocks=gamma)
    moments = {"momentum": 0.9} if optimizer == "sgd" else {}
    watch = watched(tmp_path, rule, optimizer=optimizer, weight_decay=0.1, steps=7, **moments)
    expected = steps_of(rule, steps=7)
    for step, drawn in enumerate(watch.drawn):
        assert drawn == set(expected.drawn(step))
        assert len(drawn) == gamma
        assert watch.training[step] == watch.moved[step] == {E, H} | drawn


def test_every_tensor_of_e_h_and_a_drawn_block_moves(tmp_path):
    task = Classify()
    before = state(task)
    train(tmp_path, lisa(blocks=DEPTH), task, steps=2)
    for name, p in task.named_parameters():
        assert not torch.equal(p, before[name]), name


def test_draws_change_exactly_at_multiples_of_the_interval(tmp_path):
    watch = watched(tmp_path, lisa(blocks=2, interval=3), steps=12)
    for step, (one, next_one) in enumerate(itertools.pairwise(watch.drawn), start=1):
        if step % 3:
            assert one == next_one
    drawn = steps_of(lisa(blocks=2, interval=3)).drawn
    assert len({tuple(drawn(3 * i)) for i in range(20)}) > 3


def test_draws_depend_on_seed_stage_and_interval_and_not_on_data(tmp_path):
    def draws(**site):
        return list(map(steps_of(lisa(), **site).drawn, range(0, 40, 2)))

    base = draws(seed=4)
    assert base == draws(seed=4, batch_size=1)
    assert base != draws(seed=5)
    assert base != draws(seed=4, index=1)
    drawn = watched(tmp_path, lisa(), batch_size=2, steps=4).drawn
    assert drawn == [set(each) for each in base[:2] for _ in range(2)]


def test_each_block_is_drawn_with_frequency_gamma_over_n():
    steps, count, gamma = steps_of(lisa(blocks=2, interval=1)), 3000, 2
    drawn = [steps.drawn(i) for i in range(count)]
    share = gamma / DEPTH
    for block in range(DEPTH):
        times = sum(block in each for each in drawn)
        assert abs(times - count * share) < 4 * (count * share * (1 - share)) ** 0.5
    pairs = {tuple(each) for each in drawn}
    assert pairs == set(itertools.combinations(range(DEPTH), 2))


def test_importance_weighs_the_draws():
    steps = steps_of(lisa(blocks=1, interval=1, importance=(1, 3, 0, 0, 4)))
    count = 2000
    drawn = [steps.drawn(i)[0] for i in range(count)]
    for block, share in enumerate((1 / 8, 3 / 8, 0, 0, 1 / 2)):
        assert abs(drawn.count(block) - count * share) <= 4 * (count * share * (1 - share)) ** 0.5


@pytest.mark.parametrize(("steps", "interval"), [(6, 5), (300, 6), (1000, 20)])
def test_interval_is_a_fiftieth_of_the_steps_and_five_at_least(steps, interval):
    assert steps_of(lisa(interval=None), steps=steps).interval == interval


def test_all_blocks_with_kept_state_is_full_fine_tuning_bit_for_bit(tmp_path):
    names = {name for name, _ in Classify().named_parameters()}
    full = train(tmp_path / "full", None, Classify(trains=names))
    ruled = train(tmp_path / "lisa", lisa(blocks=DEPTH, state="keep"))
    assert_same(state(full.task), state(ruled.task))


def test_every_block_gets_its_turn(tmp_path):
    watch = watched(tmp_path, lisa(blocks=1, interval=1), steps=25)
    assert set.union(*watch.moved) == {E, H, *range(DEPTH)}


def test_resting_block_has_no_gradient_at_all(tmp_path):
    task, seen = Classify(), []

    class Look(Hook):
        def after_backward(self, engine):
            seen.append(groups(name for name, p in task.named_parameters() if p.grad is not None))

    watch = Watch(task)
    train(tmp_path, lisa(), task, [watch, Look()])
    assert seen == watch.moved


def test_gradient_that_was_left_behind_does_not_move_a_resting_block():
    task = Classify()
    steps = steps_of(lisa(blocks=1), task)
    optimizer = steps.optimizer(task.parameter_groups())
    for parameter in task.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def closure():
        for parameter in task.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.ones_like(parameter)
        return {"loss": 0.0}

    before = state(task)
    steps.gradients(closure)
    optimizer.step()
    moved = groups(name for name, tensor in state(task).items() if not torch.equal(tensor, before[name]))
    assert moved == {E, H, *steps.drawn(0)}


def test_dropped_state_is_that_of_resting_blocks(tmp_path):
    watch = watched(tmp_path, lisa(), steps=8)
    for drawn, states in zip(watch.drawn, watch.states, strict=True):
        assert states == {name for name, _ in watch.task.named_parameters() if group(name) in {E, H} | drawn}


def test_kept_state_grows_and_reset_starts_all_anew(tmp_path):
    kept = watched(tmp_path / "keep", lisa(state="keep"), steps=8)
    for step, states in enumerate(kept.states):
        assert groups(states) == {E, H} | set.union(*kept.drawn[: step + 1])

    counters = []

    class Look(Hook):
        def after_step(self, engine):
            counters.append({int(entry["step"]) for entry in engine.optimizer.state.values()})

    for kind, expected in (("reset_all", [{1}, {2}, {1}, {2}, {1}, {2}]), ("keep", [{1}, {2}])):
        counters.clear()
        train(tmp_path / f"count-{kind}", lisa(state=kind), hooks=[Look()])
        assert counters[: len(expected)] == expected


def test_returning_block_starts_with_a_full_step(tmp_path):
    """Adam's first step is lr in size: with "drop_frozen" for each return, with "keep" only for the first."""
    sizes = {}
    for kind in ("drop_frozen", "keep"):
        task = Classify()
        watch, weight = Watch(task), task.model.model.blocks[0].mlp.fc1.bias
        values = [weight.detach().clone()]

        class Look(Hook):
            def after_step(self, engine, values=values, weight=weight):
                values.append(weight.detach().clone())

        rule = lisa(blocks=1, interval=1, state=kind)
        train(tmp_path / kind, rule, task, [watch, Look()], steps=25, weight_decay=0, schedule="constant", lr=1e-3)
        turns = [step for step, drawn in enumerate(watch.drawn) if 0 in drawn]
        assert len(turns) > 1
        sizes[kind] = [(values[turn + 1] - values[turn]).abs() for turn in turns]
    assert all(torch.allclose(size, torch.full_like(size, 1e-3), rtol=1e-3) for size in sizes["drop_frozen"])
    assert not all(torch.allclose(size, torch.full_like(size, 1e-3), rtol=1e-3) for size in sizes["keep"])


def test_without_embeddings_backward_ends_at_the_lowest_drawn_block(tmp_path):
    task, graphs = Classify(), []
    for block in task.model.model.blocks:
        block.register_forward_hook(lambda module, args, output: graphs.append(output.grad_fn is not None))
    watch = watched(tmp_path, lisa(blocks=1, interval=1, train_embed=False), task, steps=10)
    for step, drawn in enumerate(watch.drawn):
        (lowest,) = drawn
        assert graphs[step * DEPTH : (step + 1) * DEPTH] == [i >= lowest for i in range(DEPTH)]
        assert watch.moved[step] == {H, lowest}


# --- towers


def tiny_clip_model():
    model = open_clip.CLIP(
        embed_dim=8,
        vision_cfg={"image_size": 8, "layers": 3, "width": 8, "patch_size": 4, "head_width": 4},
        text_cfg={"context_length": 4, "vocab_size": 16, "width": 8, "heads": 2, "layers": 2},
    )
    return wrap_open_clip(
        model,
        name="tiny",
        weights="random",
        embed_dim=8,
        preprocess={
            "size": 8,
            "mean": (0, 0, 0),
            "std": (1, 1, 1),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
        tokenizer=lambda texts: torch.ones(len(texts), 4, dtype=torch.long),
    )


def trained_names(rule, backbone):
    steps = steps_of(rule, backbone.requires_grad_(False))
    return steps, {name.removeprefix("model.") for name, p in backbone.named_parameters() if p.requires_grad}


def test_parts_of_a_clip():
    everything = {name for name, _ in tiny_clip_model().model.named_parameters()}
    steps, all_of_it = trained_names(lisa(), tiny_clip_model())
    assert all_of_it == everything - {"logit_scale"}
    assert len(steps.names) == 5
    _, without = trained_names(lisa(train_embed=False), tiny_clip_model())
    assert all_of_it - without == {
        *("visual.class_embedding", "visual.positional_embedding", "visual.conv1.weight"),
        *("visual.ln_pre.weight", "visual.ln_pre.bias", "positional_embedding", "token_embedding.weight"),
    }
    steps, vision = trained_names(lisa(towers=["vision"]), tiny_clip_model())
    assert vision == {name for name in everything if name.startswith("visual.")}
    assert len(steps.names) == 3
    steps, text = trained_names(lisa(towers=["text"]), tiny_clip_model())
    assert text == everything - vision - {"logit_scale"}
    assert len(steps.names) == 2


def test_draws_come_from_the_union_or_from_each_tower():
    union = steps_of(lisa(blocks=2, interval=1), tiny_clip_model())
    draws = [union.drawn(step) for step in range(60)]
    assert {sum(i < 3 for i in each) for each in draws} == {0, 1, 2}
    apart = steps_of(lisa(blocks=1, interval=1, per_tower=True), tiny_clip_model())
    draws = [apart.drawn(step) for step in range(60)]
    assert {(a, b) for a, b in draws} == set(itertools.product(range(3), range(3, 5)))


@pytest.mark.parametrize("name", ["class_embedding", "conv1.weight", "blocks_token", "norm_pre.bias", "text.cls_emb"])
def test_names_of_embeddings(name):
    assert EMBEDDING.search(f"model.{name}")


@pytest.mark.parametrize("name", ["visual.proj", "text_projection", "ln_final.weight", "norm.bias", "head.weight"])
def test_names_of_heads(name):
    assert not EMBEDDING.search(f"model.{name}")


def test_tower_of_a_parameter():
    assert vit().tower_of("model.norm.weight") == "vision"
    backbone = tiny_clip_model()
    assert backbone.tower_of("model.visual.proj") == "vision"
    assert backbone.tower_of("model.ln_final.weight") == "text"
    assert backbone.tower_of("model.transformer.resblocks.0.ln_1.bias") == "text"
    assert backbone.trained_towers() == {"vision", "text"}
    backbone.requires_grad_(False).model.visual.requires_grad_(True)
    assert backbone.trained_towers() == {"vision"}


# --- with an adapter


def test_adapters_of_drawn_blocks_train_and_the_base_never_moves(tmp_path):
    task = Classify(lora())
    adapters = {name for name, p in task.named_parameters() if p.requires_grad and "lora_" in name}
    before = state(task)
    watch = watched(tmp_path, lisa(blocks=2), task)
    for drawn, training, moved in zip(watch.drawn, watch.training, watch.moved, strict=True):
        assert training == moved == {H} | drawn
        assert len(drawn) == 2
    changed = {name for name, tensor in state(task).items() if not torch.equal(tensor, before[name])}
    assert changed <= adapters | {"head.weight", "head.bias"}


def test_only_blocks_with_an_adapter_are_drawn():
    steps = steps_of(lisa(blocks=1, interval=1), Classify(lora(layers=[1, 4])))
    assert steps.names == ["model.blocks.1", "model.blocks.4"]
    assert {steps.drawn(step)[0] for step in range(30)} == {0, 1}


def test_gates_of_resting_blocks_do_not_shrink(tmp_path):
    task = Classify(vl.SoraConfig(r=2, lam=0.5, target_modules=["q_proj"]))
    watch = watched(tmp_path, lisa(blocks=1), task)
    for drawn, moved in zip(watch.drawn, watch.moved, strict=True):
        assert moved == {H} | drawn


def test_batch_norms_keep_the_statistics_of_the_base():
    task = Classify()
    norm = task.model.extra = nn.BatchNorm1d(2)
    steps = steps_of(lisa(), task)
    steps.optimizer(task.parameter_groups())
    steps.gradients(lambda: {"loss": norm(torch.randn(4, 2)).mean().item()})
    assert norm.training
    assert norm.num_batches_tracked == 0
    assert not norm.running_mean.any()


# --- checkpoints and states


class Interrupt(Hook):
    def __init__(self, at):
        self.at = at

    def after_step(self, engine):
        if engine.global_step == self.at:
            raise ZeroDivisionError


@pytest.mark.parametrize(
    ("kind", "every", "adapter"),
    [
        ("drop_frozen", 3, None),
        ("drop_frozen", 4, lora),
        ("reset_all", 3, lora),
        ("reset_all", 4, None),
        ("keep", 3, None),
    ],
)
def test_resumed_run_equals_the_whole_bit_for_bit(kind, every, adapter, tmp_path):
    def task():
        return Classify(adapter and adapter())

    rule, options = lisa(state=kind), {"steps": 7, "checkpoint_every": every}
    whole, resumed = task(), task()
    watch_whole, watch = Watch(whole), Watch(resumed)
    train(tmp_path / "whole", rule, whole, [watch_whole], **options)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "cut", rule, task(), [Interrupt(every + 1)], **options)
    train(tmp_path / "cut", rule, resumed, [watch], **options)
    assert_same(state(whole), state(resumed))
    assert watch.training == watch_whole.training[every:]
    assert watch.states == watch_whole.states[every:]


def test_second_stage_resumes_from_what_the_first_changed(tmp_path):
    options = {"steps": 3, "checkpoint_every": 2}
    whole = train(tmp_path / "whole", lisa(), Classify(stages=2), **options)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "cut", lisa(), Classify(stages=2), [Interrupt(5)], **options)
    resumed = train(tmp_path / "cut", lisa(), Classify(stages=2), [Interrupt(-1)], **options)
    assert_same(state(whole.task), state(resumed.task))


def test_selected_state_restores_all_blocks(tmp_path):
    """The rate rises so steeply that the state after the first interval is the best; later draws must be undone."""
    kept = []

    class Keep(Hook):
        def after_step(self, engine):
            kept.append(state(engine.task))

    task = Classify(keep=Best("val/score"))
    options = {"lr": 0.5, "schedule": "constant", "eval_every": 1, "steps": 12}
    hook, scores = Keep(), []

    class Scores(Hook):
        def on_evaluate(self, engine, split, metrics):
            scores.append(metrics["val/score"])

    train(tmp_path, lisa(blocks=1, interval=1), task, [hook, Scores()], **options)
    best = scores.index(max(scores))
    assert best < 6
    assert_same(state(task), kept[best])
    after = groups(n for n in kept[-1] if not torch.equal(kept[-1][n], kept[best][n]))
    assert len(blocks(after)) > 1


def test_dry_step_leaves_everything_free_to_train(tmp_path):
    task = Classify(lora())
    flags = {name: p.requires_grad for name, p in task.named_parameters()}
    engine = Engine(settings(), task, tmp_path, seed=4, rule=lisa(blocks=1))
    engine.dry_step(task.stages()[0])
    assert flags == {name: p.requires_grad for name, p in task.named_parameters()}


# --- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 6}, "rule.blocks = 6, but only 5 blocks"),
        ({"importance": (1, 1)}, "rule.importance has 2 weights for 5 blocks"),
        ({"importance": (1, 0, 0, 0, 0)}, "rule.blocks = 2, but only 1 blocks"),
        ({"towers": ["visoin"]}, "has no tower 'visoin'. Did you mean 'vision'"),
    ],
)
def test_draws_that_cannot_be_made_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        steps_of(lisa(**options))


def test_model_without_blocks_is_refused():
    with pytest.raises(UserError, match="the task's model has no known blocks"):
        steps_of(lisa(), nn.Linear(2, 2))


def test_towers_beside_an_adapter_are_refused(recipe):
    with pytest.raises((ConfigError, UserError), match=r"adapter\.towers"):
        load_config(recipe, ["rule={type: lisa, towers: [vision]}"])


# --- a real task


@pytest.mark.parametrize("towers", ["[vision]", "[vision, text]"])
def test_class_prompts_are_encoded_anew_only_where_the_text_tower_trains(towers, recipe, tmp_path):
    rule = f"rule={{type: lisa, blocks: 1, interval: 1, towers: {towers}}}"
    config = load_config(recipe, ["adapter=null", rule, "engine.steps=2"])
    task = build_task(config, 1)
    before = state(task)
    kept = []

    class Look(Hook):
        def after_step(self, engine):
            kept.append(task.model.head.features is not None)

    Engine(config.engine, task, tmp_path, seed=1, rule=config.rule, hooks=[Look()]).fit()
    assert kept == [towers == "[vision]"] * 2
    after = state(task)
    moved = {
        task.model.backbone.tower_of(n.partition("backbone.")[2]) for n in after if not torch.equal(after[n], before[n])
    }
    assert moved == ({"vision", "text"} if "text" in towers else {"vision"})


def test_drawn_blocks_are_in_the_log(tmp_path):
    train(tmp_path, lisa(blocks=2), steps=4)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    drawn = [[line["lisa_block_0"], line["lisa_block_1"]] for line in lines if "loss" in line]
    assert drawn == list(map(steps_of(lisa(blocks=2)).drawn, range(4)))
