import json

import pytest
import torch
from safetensors.torch import load_file

from vision_lowrank.config import load_config
from vision_lowrank.engine import Engine, Hook
from vision_lowrank.engine.keep import Best, Last
from vision_lowrank.errors import ConfigError, UserError
from vision_lowrank.metrics.incremental import SessionMatrix, incremental_metrics
from vision_lowrank.studies.run import build_task, run
from vision_lowrank.tasks.classification.classifier import ImageClassifier
from vision_lowrank.tasks.classification.heads import text_rows

NOTHING = ["task.epochs=0", "task.incremental_epochs=0"]
PLAIN = ["adapter=null", "task.l_ft=null", "task.contrastive=0", "task.cit_variant=none"]


def started(path, overrides=(), folder="run"):
    """A task with its engine, before anything."""
    config = load_config(path, overrides)
    task = build_task(config, 1)
    return task, Engine(config.engine, task, path.parent / folder, seed=1)


def trained(path, *overrides, folder="run"):
    task, engine = started(path, overrides, folder)
    engine.fit()
    return task, engine


@torch.no_grad()
def outputs(classifier, images):
    classifier.eval()
    transform = classifier.backbone.preprocess.evaluation()
    pixels = torch.stack([transform(images.image(i)) for i in range(len(images))])
    features = classifier.backbone.encode_image(pixels)
    return features, classifier.head(classifier.backbone, features), torch.tensor(images.labels)


class Watch(Hook):
    """Copies of head and backbone at the start (after the rows were set) and end of every stage."""

    def __init__(self):
        self.start, self.end = {}, {}

    @staticmethod
    def _copy(task):
        model = {name: t.clone() for name, t in task.model.backbone.state_dict().items()}
        return task.head.prototypes.detach().clone(), model

    def after_backward(self, engine):
        self.start.setdefault(engine.stage.name, self._copy(engine.task))

    def on_stage_end(self, engine):
        self.end[engine.stage.name] = self._copy(engine.task)


def watched(path, *overrides):
    config = load_config(path, overrides)
    task, watch = build_task(config, 1), Watch()
    Engine(config.engine, task, path.parent / "run", seed=1, hooks=[watch]).fit()
    return task, watch


@pytest.mark.parametrize("cosine", ["true", "false"])
def test_without_training_it_is_the_nearest_prototype_after_every_session(sessions, cosine):
    task, engine = started(sessions, [*NOTHING, *PLAIN, f"task.cosine={cosine}"])
    baseline = engine.evaluate_untrained()
    engine.fit()
    test = task.sessions.seen_test(2)
    features, _, labels = outputs(task.model, test)
    shots, _, owners = outputs(task.model, task.splits.train)
    rows = torch.stack([shots[owners == c].mean(dim=0) for c in range(6)])
    if cosine == "true":
        features, rows = (each / each.norm(dim=1, keepdim=True) for each in (features, rows))
    for session, seen in enumerate((2, 4, 6)):
        nearest = (features @ rows[:seen].T).argmax(dim=1)[labels < seen]
        right = [int(((nearest == c) & (labels[labels < seen] == c)).sum()) for c in range(seen)]
        assert list(task.record.matrix().correct[session]) == right
    base_only = task.record.matrix().base_only
    assert base_only[0] == base_only[1] == base_only[2]
    metrics = engine.evaluate("test")
    assert metrics == pytest.approx(baseline)
    assert metrics["session/2/accuracy"] == metrics["incremental/last_accuracy"]
    assert metrics["test/test/accuracy"] == pytest.approx(metrics["session/2/accuracy"])
    expected = incremental_metrics(task.record.matrix())
    assert metrics["incremental/forgetting"] == expected["forgetting"]


def test_the_baseline_leaves_head_and_adapter_as_they_were(sessions):
    task, engine = started(sessions)
    before = {name: t.clone() for name, t in task.state_dict().items()}
    engine.evaluate_untrained()
    assert all(torch.equal(t, before[name]) for name, t in task.state_dict().items())
    assert {name for name, p in task.named_parameters() if p.requires_grad} == {
        name for name, p in task.named_parameters() if "lora_" in name or name.endswith("prototypes")
    }


def test_only_the_classifier_moves_where_only_it_trains(sessions):
    _, watch = watched(sessions, "task.incremental_trains=[classifier]")
    for name in ("session-1", "session-2"):
        (rows, model), (moved, after) = watch.start[name], watch.end[name]
        assert not torch.equal(rows, moved)
        assert all(torch.equal(t, after[key]) for key, t in model.items())


def test_only_new_rows_change_where_only_the_adapter_trains(sessions):
    _, watch = watched(sessions, "task.incremental_trains=[pet]")
    previous = watch.end["base"]
    for name, new in (("session-1", [2, 3]), ("session-2", [4, 5])):
        rows, model = watch.end[name]
        old = [c for c in range(6) if c not in new]
        assert torch.equal(rows[old], previous[0][old])
        assert torch.equal(rows[new], watch.start[name][0][new])
        changed = {key for key, t in model.items() if not torch.equal(t, previous[1][key])}
        assert changed
        assert all("lora_" in key for key in changed)
        previous = watch.end[name]


def test_the_encoder_joins_at_its_epoch_and_the_teacher_follows(sessions):
    moved = []

    class Steps(Hook):
        def after_step(self, engine):
            task = engine.task
            own = task.guides.teacher.held
            backbone = task.model.backbone.get_base_model()
            changed = [not torch.equal(backbone.get_parameter(name), first[name]) for name in own]
            followed = [not torch.equal(tensor, first[name]) for name, tensor in own.items()]
            assert changed == followed
            moved.append(any(changed))
            assert any(changed) == all(changed)

    config = load_config(sessions, ["task.incremental_epochs=0"])
    task = build_task(config, 1)
    first = {name: p.detach().clone() for name, p in task.parts.encoder.items()}
    whole = {name: p.detach().clone() for name, p in task.model.backbone.get_base_model().named_parameters()}
    Engine(config.engine, task, sessions.parent / "run", seed=1, hooks=[Steps()]).fit()
    assert moved == [False] * 2 + [True] * 4  # 8 pictures in batches of 4: two steps per epoch, e_ft 1
    for name, p in task.model.backbone.get_base_model().named_parameters():
        assert torch.equal(p, whole[name]) == (name not in first and "lora_" not in name), name


def test_rates_are_those_of_the_groups(sessions):
    task, _ = started(sessions, ["task.encoder_lr_factor=0.1", "task.incremental_lr_factor=0.01"])
    base, later, _ = task.stages()
    task.begin_stage(base)
    *groups, encoder = task.parameter_groups()
    assert encoder["lr"] == pytest.approx(1e-3)
    assert len(encoder["params"]) == len(task.parts.encoder)
    assert not any("lr" in group for group in groups)
    assert (later.engine["lr"], later.engine["schedule"], later.engine["steps"]) == (pytest.approx(1e-4), "constant", 4)
    task.begin_stage(later)
    own = {id(p) for p in task.parts.encoder.values()}
    assert not any(id(p) in own for group in task.parameter_groups() for p in group["params"])


@pytest.mark.parametrize("variant", ["code", "paper", "none"])
@pytest.mark.parametrize("model", ["base", "previous"])
def test_losses_of_every_variant_are_there_and_finite(sessions, variant, model):
    overrides = [f"task.cit_variant={variant}", f"task.consistency_model={model}", "task.epochs=1", "task.e_ft=0"]
    trained(sessions, *overrides, "task.incremental_epochs=1")
    lines = [json.loads(line) for line in (sessions.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    wanted = {"code": {"contrastive", "consistency"}, "paper": {"contrastive"}, "none": set()}[variant]
    for stage in ("base", "session-1", "session-2"):
        found = [line for line in lines if line["stage"] == stage and "cross_entropy" in line]
        names = found[0].keys() & {"contrastive", "consistency"}
        assert names == ({"contrastive"} if stage == "base" else wanted)
        for line in found:
            assert line["loss"] == pytest.approx(sum(line[name] for name in (*names, "cross_entropy")), rel=1e-4)


def test_a_student_that_has_not_moved_is_consistent(sessions):
    trained(sessions, "task.incremental_epochs=1", "task.incremental_lr_factor=1e-30", "adapter.dropout=0")
    lines = [json.loads(line) for line in (sessions.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["consistency"] < 1e-9 for line in lines if "consistency" in line)


def test_the_previous_model_is_the_one_after_the_session_before(sessions):
    task, watch = watched(sessions, "task.consistency_model=previous", "task.incremental_trains=[pet]")
    held = task.guides.student_then.held
    assert held
    backbone = dict(task.model.backbone.get_base_model().named_parameters())
    after = {name.partition("base_model.model.")[2]: t for name, t in watch.end["session-1"][1].items()}
    assert all(torch.equal(t, after[name]) for name, t in held.items())
    assert any(not torch.equal(t, backbone[name]) for name, t in held.items())
    assert task.guides.head_then.seen.tolist() == [True] * 4 + [False] * 2


@pytest.mark.parametrize(
    ("place", "adapter"),
    [
        (("base", 5), "lora"),
        (("session-1", 1), "lora"),
        (("session-2", 3), "lora"),
        (("session-2", 1), "lamda"),
        (("session-2", 1), "lofit"),
    ],
)
def test_a_killed_run_goes_on_bit_for_bit_and_loses_no_session(sessions, place, adapter):
    class Kill(Hook):
        def after_step(self, engine):
            if (engine.stage.name, engine.step) == place:
                raise KeyboardInterrupt

    overrides = [] if adapter == "lora" else [f"adapter={{type: {adapter}, towers: [vision]}}"]
    whole, _ = trained(sessions, *overrides, folder="whole")
    config = load_config(sessions, overrides)
    with pytest.raises(KeyboardInterrupt):
        Engine(config.engine, build_task(config, 1), sessions.parent / "cut", seed=1, hooks=[Kill()]).fit()
    seen = []

    class Stages(Hook):
        def on_stage_start(self, engine):
            seen.append(engine.stage.name)

    task = build_task(config, 1)
    Engine(config.engine, task, sessions.parent / "cut", seed=1, hooks=[Stages()]).fit()
    assert seen[0] == place[0]
    assert all(torch.equal(p, whole.parts.pet[name]) for name, p in task.parts.pet.items())
    assert task.record.matrix() == whole.record.matrix()
    ours, theirs = task.trained_state(), whole.trained_state()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(t, theirs[name]) for name, t in ours.items())


def test_the_artefact_predicts_as_the_run_did_and_is_used_without_it(sessions):
    config = load_config(sessions)
    result = run(config)
    folder = sessions.parent / "runs" / config.name / "seed-1" / "artefact"
    classifier = ImageClassifier.load(folder)
    task = build_task(config, 1)
    _, logits, labels = outputs(classifier, task.sessions.seen_test(2))
    accuracy = (logits.argmax(dim=1) == labels).float().mean().item()
    assert accuracy == pytest.approx(result["metrics"]["incremental/last_accuracy"]["mean"])
    assert load_file(folder / "base.safetensors").keys() == task._moved
    matrix = SessionMatrix.from_json(result["seeds"]["1"]["facts"]["incremental"]["matrix"])
    assert matrix.accuracy(2) == pytest.approx(accuracy)
    facts = result["seeds"]["1"]["facts"]
    width = task.model.backbone.embed_dim
    assert facts["trains"] == {
        "pet": 2 * 2 * 2 * (192 + 192),  # two blocks, q and v, A and B of rank 2
        "classifier": 6 * width,
        "encoder": sum(p.numel() for p in task.parts.encoder.values()),
    }
    assert facts["trainable_parameters"] == sum(facts["trains"].values())


def test_text_rows_without_training_are_zero_shot(sessions):
    task, _ = trained(sessions, *NOTHING, *PLAIN, "task.head=text")
    names, model = task.model.classes, task.model.backbone
    features, logits, _ = outputs(task.model, task.sessions.seen_test(2))
    text = text_rows(model, names, task.model.templates)
    assert torch.equal(logits.argmax(dim=1), (features @ text.T).argmax(dim=1))


def test_text_rows_keep_one_scale_for_dot_products(sessions):
    task, _ = trained(sessions, *NOTHING, *PLAIN, "task.head=text", "task.cosine=false")
    norms = task.head.prototypes.norm(dim=1)
    torch.testing.assert_close(norms, norms[:1].expand(6))
    base, _, _ = outputs(task.model, task.sessions.sessions[0].train)
    assert norms[0].item() == pytest.approx(float(task.model.backbone.logit_scale) / base.norm(dim=1).mean().item())


def test_linear_rows_stay_where_they_were_drawn(sessions):
    task, engine = started(sessions, [*NOTHING, *PLAIN, "task.head=linear"])
    rows = task.head.prototypes.detach().clone()
    engine.fit()
    assert torch.equal(task.head.prototypes, rows)
    assert bool(task.head.seen.all())


def test_full_fine_tuning_moves_the_whole_tower_in_every_session(sessions):
    overrides = [*PLAIN, "task.l_ft=-1", "task.e_ft=0", "task.incremental_trains=[classifier,encoder]"]
    task, watch = watched(sessions, *overrides)
    assert task.describe()["trains"].keys() == {"classifier", "encoder"}
    for name, before in (("session-1", "base"), ("session-2", "session-1")):
        changed = {key for key, t in watch.end[name][1].items() if not torch.equal(t, watch.end[before][1][key])}
        assert changed == task.parts.encoder.keys()


def test_selection_by_validation_never_sees_test_pictures(sessions):
    task, engine = started(sessions, ["task.select=val"])
    assert [stage.keep for stage in task.stages()] == [Best("val/accuracy"), Last(), Last()]
    assert task.stages()[0].engine["eval_every"] == 2
    task.begin_stage(task.stages()[0])
    images = task.image_sets("val")["val"]
    assert {images.classes[label] for label in images.labels} == set(images.classes[:2])
    assert not set(images.keys) & set(task.sessions.seen_test(2).keys)
    engine.fit()
    assert set(task.image_sets("val")["val"].labels) == set(range(6))


def test_best_on_test_says_what_it_does(sessions):
    task, engine = started(sessions, ["task.select=best_on_test"])
    assert task.stages()[0].keep == Best("test-as-val/accuracy")
    engine.fit()
    lines = [json.loads(line) for line in (sessions.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [line["step"] for line in lines if line["stage"] == "base" and "test-as-val/accuracy" in line]
    assert found == [2, 4, 6]  # after each epoch of the base session


def test_a_projection_trains_and_is_not_part_of_the_classifier(sessions):
    task, engine = started(sessions, ["task.projection=mlp"])
    before = task.guides.projection[2].weight.detach().clone()
    engine.fit()
    assert task.guides.projection[2].weight.shape[0] == 128
    assert not torch.equal(task.guides.projection[2].weight, before)
    assert not any("guides" in name for name in task.model.state_dict())
    assert not any(p.requires_grad for p in task.guides.projection.parameters())  # the later sessions freeze it


def test_measuring_the_cost_of_a_later_session_shows_the_base_session_no_class_of_it(sessions):
    config = load_config(sessions, ["task.epochs=0"])
    facts = run(config)["seeds"]["1"]["facts"]["incremental"]["matrix"]
    task, _ = trained(sessions, "task.epochs=0", folder="bare")
    assert SessionMatrix.from_json(facts) == task.record.matrix()


def test_an_adapter_whose_phases_bring_other_tensors_is_held_as_it_is(sessions):
    task, watch = watched(sessions, "adapter={type: lofit, towers: [vision]}", "task.incremental_trains=[classifier]")
    for name in ("session-1", "session-2"):
        assert all(torch.equal(t, watch.end[name][1][key]) for key, t in watch.start[name][1].items())
    own = dict(task.model.backbone.get_base_model().named_parameters())
    assert task.parts.pet
    assert all(own[name] is p for name, p in task.parts.pet.items())


@pytest.mark.parametrize("adapter", ["block_lora", "sora", "lofit", "lora_xs", "kasa", "visual_prompt"])
def test_any_adapter_takes_the_place_of_lora(sessions, adapter):
    task, _ = trained(sessions, f"adapter={{type: {adapter}, towers: [vision]}}", "task.incremental_trains=[pet]")
    assert task.record.done == 3
    task.save_artefact(sessions.parent / "artefact", {})
    _, expected, _ = outputs(task.model, task.sessions.seen_test(2))
    _, logits, _ = outputs(ImageClassifier.load(sessions.parent / "artefact"), task.sessions.seen_test(2))
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapter=null"], r"incremental_trains names pet, but there is no adapter: set it to \[classifier\]"),
        (["task.l_ft=null", "task.incremental_trains=[encoder]"], "names encoder, but l_ft is null"),
        (["task.select=val", "task.protocol.val_shots=0"], "select=val needs validation pictures"),
        (["task.protocol.shots=40"], r"class 'cyan' \(and 1 more of its session\) has 5 training pictures, 40 needed"),
        (["task.protocol.way=3"], r"6 classes are not base=2 and sessions of way=3"),
        (["task.l_ft=-3"], "l_ft"),
        (["task.conistency=1"], "consistency"),
        (["engine.momentum=0"], "nesterov is a form of SGD's momentum"),
        (["rule={type: lisa}"], "rule 'lisa' changes base weights, which sessions freeze and compare with"),
        (["rule={type: ggpo}"], "rule 'ggpo' changes base weights"),
        (["adapter.towers=[vision,text]", "adapter.layers=all"], "sits on the text tower too, which no session trains"),
        (["regularizer={type: supervised_contrastive}"], "regularizer"),
    ],
)
def test_bad_settings_are_one_line(sessions, overrides, message):
    with pytest.raises((UserError, ConfigError), match=message) as caught:
        build_task(load_config(sessions, overrides), 1)
    assert "\n" not in str(caught.value)
