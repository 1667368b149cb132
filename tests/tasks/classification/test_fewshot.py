import pytest
import torch

from vision_lowrank.config import load_config
from vision_lowrank.engine import Engine
from vision_lowrank.errors import DataError
from vision_lowrank.studies.run import build_task


def batch_of(task):
    data = task.stages()[0].data
    return torch.utils.data.default_collate([data[i, i] for i in range(len(data))])


def gradients(task):
    task.train()
    task.begin_stage(task.stages()[0])
    task.begin_training()
    task.training_step(batch_of(task))["loss"].backward()
    named = task.named_parameters()
    return {name: p.grad for name, p in named if p.requires_grad}


def test_loss_is_cross_entropy_of_the_classifier(recipe):
    task = build_task(load_config(recipe), 1)
    task.train()
    task.begin_stage(task.stages()[0])
    task.begin_training()
    batch = batch_of(task)
    logits = task.model(batch["image"]).double()
    expected = -logits.log_softmax(-1)[range(6), batch["label"]].mean()
    assert task.training_step(batch)["loss"].item() == pytest.approx(expected.item(), abs=1e-5)


def test_at_the_first_step_only_b_has_a_gradient(recipe):
    for name, gradient in gradients(build_task(load_config(recipe, ["adapter.type=lora"]), 1)).items():
        assert bool(gradient.abs().sum() > 0) == ("lora_B" in name), name


@pytest.mark.parametrize(("towers", "reached"), [("[vision, text]", True), ("[vision]", False)])
def test_text_tower_trains_only_when_it_is_adapted(recipe, towers, reached):
    task = build_task(load_config(recipe, [f"adapter.towers={towers}"]), 1)
    grads = gradients(task)
    assert any(".visual." not in name for name in grads) == reached
    assert (task.model.head.features is None) == reached  # a frozen tower is encoded once


def test_prompts_are_encoded_anew_after_an_evaluation(recipe, tmp_path):
    task = build_task(load_config(recipe), 1)
    Engine(load_config(recipe).engine, task, tmp_path, seed=1).evaluate("test")
    assert task.model.head.features is not None
    assert all(gradient is not None for gradient in gradients(task).values())


def test_published_iteration_count(recipe):
    task = build_task(load_config(recipe, ["task.steps_per_shot=500"]), 1)
    assert task.stages()[0].engine["steps"] == 1000  # 500 times 2 shots


def test_seed_draws_other_pictures_and_the_same_seed_the_same(recipe):
    config = load_config(recipe)
    hashes = [build_task(config, seed).train_images.hash for seed in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_too_few_pictures_names_class_and_remedy(recipe):
    with pytest.raises(DataError, match=r"class 'disc'.*allow_fewer"):
        build_task(load_config(recipe, ["task.shots=8"]), 1)


def test_same_seed_gives_the_same_weights(recipe):
    config = load_config(recipe)
    one, two, other = (build_task(config, seed).trained_state() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
