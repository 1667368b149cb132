"""GLAD against closed forms: SAM on a quadratic, a gradient norm on a quartic, the geometry of its three rules."""

import pytest
import torch
from fixtures.adapted_task import Adapted, rule_of, train
from fixtures.glad_points import (
    START,
    M,
    assert_same,
    glad,
    gradient,
    nearby,
    quadratic,
    quartic,
    state,
    steered,
    two_gradients,
)
from fixtures.tiny_tasks import settings
from torch import nn

import vision_lowrank as vl
from vision_lowrank.config.schema import EngineConfig
from vision_lowrank.engine import Engine, Hook
from vision_lowrank.engine.step_runner import TrainingDiverged
from vision_lowrank.errors import UserError
from vision_lowrank.optim.base import StepContext
from vision_lowrank.optim.glad import Glad

COMBINE = ("steer", "project", "align")


def distance(one, other):
    return sum((one[name] - other[name]).norm() for name in one)


def at_first_step(task, options, folder):
    """The rule's steps and the closure of the first step of training `task`."""
    engine = Engine(settings(), task, folder, seed=4, rule=rule_of(options))
    engine.dry_step(task.stages()[0])
    return engine.steps, engine.closure


@pytest.mark.parametrize("combine", COMBINE)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_strength_zero_is_plain_training_step_for_step(combine, optimizer, tmp_path):
    plain = train(tmp_path / "plain", None, optimizer=optimizer)
    ruled = train(tmp_path / "glad", glad(combine=combine, rho=0.3, strength=0), optimizer=optimizer)
    assert_same(state(plain.task), state(ruled.task))


def test_difference_to_plain_training_is_of_the_order_of_rho(tmp_path):
    plain = state(train(tmp_path / "plain", None, optimizer="sgd").task)
    one, tenth = (
        distance(plain, state(train(tmp_path / str(rho), glad(rho=rho, strength=1), optimizer="sgd").task))
        for rho in (1e-4, 1e-5)
    )
    assert one / tenth == pytest.approx(10, rel=0.02)


def test_steer_with_strength_one_is_sam_on_a_quadratic():
    g, numbers = steered(combine="steer", strength=1, rho=0.2)
    unit = M @ START / (M @ START).norm()
    torch.testing.assert_close(g, M @ (START + 0.2 * unit), rtol=1e-12, atol=1e-12)
    assert numbers["loss"] == pytest.approx(quadratic(START).item(), rel=1e-12)


def test_steer_follows_the_penalty_on_the_gradient_norm_to_second_order():
    strength, errors = 0.6, []
    for rho in (1e-1, 1e-2, 1e-3):
        x = START.clone().requires_grad_()
        (first,) = torch.autograd.grad(quartic(x), x, create_graph=True)
        (expected,) = torch.autograd.grad(quartic(x) + strength * rho * first.norm(), x)
        errors.append((steered(quartic, strength=strength, rho=rho)[0] - expected).norm().item())
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(100, rel=0.05)


def test_project_removes_the_conflict_and_nothing_else():
    g = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    against = torch.tensor([-2.0, 1.0, 0.3], dtype=torch.float64)
    result, _ = steered(two_gradients(g, against), combine="project", strength=1)
    assert (result @ against).item() == pytest.approx(0, abs=1e-12)
    unit = against / against.norm()
    torch.testing.assert_close(result, g - (g @ unit) * unit, rtol=1e-12, atol=1e-12)
    half, _ = steered(two_gradients(g, against), combine="project", strength=0.5)
    torch.testing.assert_close(half, g - 0.5 * (g @ unit) * unit, rtol=1e-12, atol=1e-12)
    agreeing, _ = steered(two_gradients(g, -against), combine="project", strength=1)
    assert torch.equal(agreeing, g)


def test_project_per_tensor_decides_for_each():
    g = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    n = torch.tensor([-0.1, -2.0, 1.0], dtype=torch.float64)
    options = {"combine": "project", "strength": 1}
    whole, _ = steered(two_gradients(g, n), **options)
    assert torch.equal(whole, g)  # no conflict in all
    each, _ = steered(two_gradients(g, n), per_tensor=True, **options)
    torch.testing.assert_close(each, torch.tensor([0.0, -2.0, 0.5], dtype=torch.float64))


def test_align_keeps_what_lies_along_the_nearby_gradient():
    g, n = gradient(quartic, START), nearby(quartic, 0.5)
    unit = n / n.norm()
    result, numbers = steered(quartic, combine="align", strength=1, rho=0.5)
    torch.testing.assert_close(result, (g @ unit) * unit, rtol=1e-12, atol=1e-12)
    assert result.norm() <= g.norm()
    cosine = torch.cosine_similarity(g, n, dim=0)
    assert numbers["glad_cosine"] == pytest.approx(cosine.item(), rel=1e-9)
    last = cosine
    for strength in (0.2, 0.5, 0.8):
        partly, _ = steered(quartic, combine="align", strength=strength, rho=0.5)
        torch.testing.assert_close(partly, (g @ unit) * unit + (1 - strength) * (g - (g @ unit) * unit))
        towards = torch.cosine_similarity(partly, n, dim=0)
        assert towards > last
        last = towards


def test_point_is_restored_bit_for_bit_and_frozen_weights_are_never_perturbed(tmp_path):
    task = Adapted()
    steps, closure = at_first_step(task, glad(rho=0.3), tmp_path)
    before, seen = state(task), []

    def watched():
        seen.append(state(task))
        return closure()

    steps.gradients(watched)
    assert_same(state(task), before)
    assert_same(seen[0], before)
    moved = {name: seen[1][name] - before[name] for name in before if not torch.equal(seen[1][name], before[name])}
    assert moved.keys() == {name for name in before if "lora_" in name}
    assert torch.cat([each.flatten() for each in moved.values()]).norm().item() == pytest.approx(0.3, rel=1e-5)


def test_point_is_restored_when_the_second_pass_fails(tmp_path):
    task = Adapted()
    steps, closure = at_first_step(task, glad(rho=0.3), tmp_path)
    before, calls = state(task), []

    def failing():
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return closure()

    with pytest.raises(MemoryError):
        steps.gradients(failing)
    assert_same(state(task), before)


def test_second_pass_that_is_not_finite_skips_the_step(tmp_path):
    class Cliff(Adapted):
        """Its loss is infinite as soon as an adapter is perturbed."""

        def training_step(self, batch):
            here = [p.detach().clone() for p in self.model.parameters()]
            self.start = getattr(self, "start", here)
            moved = any(not torch.equal(a, b) for a, b in zip(here, self.start, strict=True))
            losses = super().training_step(batch)
            return {"loss": losses["loss"] * (float("inf") if moved else 1.0)}

    task = Cliff()
    before = state(task)
    with pytest.raises(TrainingDiverged, match="finite in none of its steps"):
        train(tmp_path, glad(), task, steps=1)
    assert_same(state(task), before)


def test_one_optimiser_step_per_pair_of_passes(tmp_path):
    task, calls = Adapted(), []
    task.register_forward_hook(lambda *_: calls.append(1))
    engine = train(tmp_path, glad(), task, steps=4)
    assert len(calls) == 8
    assert {entry["step"].item() for entry in engine.optimizer.state.values()} == {4}
    assert (engine.step, engine.global_step) == (4, 4)


def test_head_takes_the_gradient_at_the_point_itself(tmp_path):
    task = Adapted()
    steps, closure = at_first_step(task, glad(rho=0.5, strength=1), tmp_path)
    closure()
    expected = task.head.weight.grad.clone()
    adapter = [p.grad.clone() for p in task.model.parameters() if p.requires_grad]
    steps.gradients(closure)
    assert torch.equal(task.head.weight.grad, expected)
    trained = [p.grad for p in task.model.parameters() if p.requires_grad]
    assert all(not torch.allclose(one, other) for one, other in zip(adapter, trained, strict=True))


def test_perturbing_the_head_too_changes_its_gradient(tmp_path):
    task = Adapted()
    steps, closure = at_first_step(task, glad(rho=0.5, strength=1, perturb_head=True), tmp_path)
    closure()
    before = task.head.weight.grad.clone()
    steps.gradients(closure)
    assert not torch.allclose(task.head.weight.grad, before)


def test_first_step_of_a_fresh_lora_moves_a_in_proportion_to_rho(tmp_path):
    def gradients_of_a(rho, strength):
        task = Adapted(started=False)
        steps, closure = at_first_step(task, glad(rho=rho, strength=strength), tmp_path / f"{rho}-{strength}")
        steps.gradients(closure)
        return torch.cat([p.grad.flatten() for name, p in task.model.named_parameters() if "lora_A" in name])

    assert not gradients_of_a(0.05, 0.0).any()
    small, large = gradients_of_a(1e-5, 0.5), gradients_of_a(1e-4, 0.5)
    assert small.norm() > 0
    torch.testing.assert_close(large, 10 * small, rtol=1e-3, atol=1e-9)


def dropping(kernel):
    """An adapted task with dropout, of PEFT's own operators or of the fused kernel."""
    task = Adapted(vl.LoraConfig(r=2, dropout=0.5, target_modules=["first", "second"]))
    if kernel == "fused":
        assert vl.accelerate_peft(task.model) == 2
        output = task.model.base_model.model.first(torch.zeros(1, 3, dtype=torch.float64))
        assert "LowRank" in type(output.grad_fn).__name__
    return task


@pytest.mark.parametrize("kernel", ["peft", "fused"])
def test_both_passes_draw_the_same_dropout(kernel, tmp_path):
    steps, closure = at_first_step(dropping(kernel), glad(rho=0, strength=1), tmp_path / "step")
    task, passes = steps.stage.model, []

    def watched():
        losses = closure()
        passes.append([p.grad.clone() for p in task.model.parameters() if p.requires_grad])
        return losses

    steps.gradients(watched)
    assert all(torch.equal(one, other) for one, other in zip(*passes, strict=True))
    plain = train(tmp_path / "plain", None, dropping(kernel))
    ruled = train(tmp_path / "glad", glad(rho=0, strength=1), dropping(kernel))
    assert_same(state(plain.task), state(ruled.task))
    without = train(tmp_path / "without", None)
    assert not torch.equal(plain.task.head.weight, without.task.head.weight)  # dropout acts


@pytest.mark.parametrize("combine", COMBINE)
def test_accumulation_in_halves_is_the_step_of_the_whole_batch(combine, tmp_path):
    options = glad(combine=combine, rho=0.3, strength=0.7)
    whole = train(tmp_path / "whole", options, batch_size=6)
    halves = train(tmp_path / "halves", options, batch_size=6, accumulate=2)
    assert_same(state(whole.task), state(halves.task), rtol=1e-9, atol=1e-9)


def test_batch_norms_see_each_batch_once(tmp_path):
    class Normed(Adapted):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3, affine=False, dtype=torch.float64)

        def training_step(self, batch):
            return super().training_step(batch | {"x": self.norm(batch["x"])})

    plain, ruled = (train(tmp_path / str(i), rule, Normed()) for i, rule in enumerate([None, glad()]))
    assert ruled.task.norm.num_batches_tracked == 6
    torch.testing.assert_close(ruled.task.norm.running_mean, plain.task.norm.running_mean)


class Routed(nn.Module):
    """A loss that uses `left` where x is at its start and `right` wherever else."""

    def __init__(self):
        super().__init__()
        self.x, self.left, self.right = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(3))
        self.at = self.x.detach().clone()

    def __call__(self):
        self.zero_grad()
        side = self.left if torch.equal(self.x.detach(), self.at) else self.right
        loss = (self.x.square() * side).sum()
        loss.backward()
        return {"loss": loss.item()}


def test_parameters_that_only_one_pass_reaches():
    model = Routed()
    Glad(perturb_head=True, strength=1).start(StepContext(model, EngineConfig(), 0, 0)).gradients(model)
    assert not model.left.grad.any()  # the perturbed point does not use it
    assert model.right.grad is None  # as in plain training, where nothing steps on it


def test_without_an_adapter_it_is_refused_before_the_first_step(tmp_path):
    class Plain(Adapted):
        def __init__(self):
            super().__init__()
            self.model = self.model.unload()

    with pytest.raises(UserError, match="no adapter trains here"):
        train(tmp_path, glad(), Plain())
    assert not (tmp_path / "checkpoints").exists()


class Cosines(Hook):
    def __init__(self):
        self.values = []

    def after_step(self, engine):
        self.values.append(engine.losses["glad_cosine"])


def test_cosine_of_the_two_gradients_is_logged(tmp_path):
    hook = Cosines()
    Engine(settings(), Adapted(), tmp_path, seed=4, rule=rule_of(glad(rho=0.2)), hooks=[hook]).fit()
    assert len(hook.values) == 6
    assert all(0 < value < 1 for value in hook.values)
    assert "glad_cosine" in (tmp_path / "metrics.jsonl").read_text()
