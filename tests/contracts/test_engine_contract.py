"""The engine contract (DESIGN, section 6), on tiny tasks."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from fixtures import tiny_tasks
from fixtures.processes import ENVIRONMENT, torchrun
from fixtures.tiny_tasks import Points, Regression, settings
from safetensors.torch import load_file

from vision_lowrank.engine import Engine, Hook, Interrupted, TrainingDiverged
from vision_lowrank.engine.keep import Best
from vision_lowrank.engine.sampler import BatchPlan
from vision_lowrank.errors import UserError
from vision_lowrank.modes import rows_count

TIMINGS = {"seconds", "samples_per_second", "peak_memory_mib"}


class Crash(Hook):
    """Dies after a step, and counts what it has seen in a state that must survive."""

    def __init__(self, at=None):
        self.at, self.seen = at, torch.zeros(())

    def after_step(self, engine):
        self.seen += engine.losses["loss"]
        if engine.global_step == self.at:
            raise ZeroDivisionError

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"].clone()


def log_of(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def train(folder, make, *, crash_at=None, **options):
    engine = Engine(settings(**options), make(), folder, seed=7, hooks=[Crash(crash_at)])
    engine.fit()
    return engine


def assert_same(one, other):
    """Bit-for-bit equality of weights, optimiser, kept state, hooks and log."""
    for (name, a), (_, b) in zip(one.task.state_dict().items(), other.task.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    states = [engine.optimizer.state_dict()["state"] for engine in (one, other)]
    for index, state in states[0].items():
        assert all(torch.equal(value, states[1][index][name]) for name, value in state.items())
    assert one._keep.state_dict() == other._keep.state_dict()
    assert torch.equal(one.hooks[0].seen, other.hooks[0].seen)
    assert log_of(one.folder) == log_of(other.folder)


SCENARIOS = {
    "dropout": (lambda: Regression(dropout=0.5), {}),
    "random augmentation": (lambda: Regression(data=Points(jitter=0.5)), {"accumulate": 2}),
    "worker processes": (lambda: Regression(data=Points(jitter=0.5)), {"workers": 1}),
    "bf16": (lambda: Regression(dropout=0.5), {"precision": "bf16", "clip_norm": 0.5}),
    "two stages": (lambda: Regression(overrides=[{"steps": 3}, {"steps": 5, "lr": 0.01}]), {}),
    "stages that train different parts": (lambda: Regression(2, stage_parts=("first", "last")), {"steps": 3}),
    "selection": (lambda: Regression(keep=Best("val/score"), dropout=0.8), {"lr": 0.3, "eval_every": 1}),
    "early stop": (
        lambda: Regression(keep=Best("val/score"), dropout=0.8),
        {"lr": 0.5, "eval_every": 1, "patience": 2, "steps": 30},
    ),
}


@pytest.mark.parametrize("crash_at", [1, 3, 5])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, scenario, crash_at):
    make, options = SCENARIOS[scenario]
    whole = train(tmp_path / "whole", make, **options)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "resumed", make, crash_at=crash_at, **options)
    resumed = train(tmp_path / "resumed", make, **options)
    assert_same(whole, resumed)


def test_an_early_stop_scenario_stops_early_and_keeps_the_best(tmp_path):
    make, options = SCENARIOS["early stop"]
    engine = train(tmp_path, make, **options)
    scores = [line["val/score"] for line in log_of(tmp_path) if "split" in line]
    assert engine.step < 30
    assert len(scores) - 1 - scores.index(max(scores)) == 2
    assert engine.evaluate("val")["val/score"] == max(scores)


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = train(tmp_path, lambda: Regression(2))
    again = Engine(settings(), Regression(2), tmp_path, seed=7, hooks=[Crash(at=0)])
    again.fit()
    assert all(torch.equal(a, b) for a, b in zip(first.task.parameters(), again.task.parameters(), strict=True))
    assert again.global_step == 12


@pytest.mark.parametrize("seed", [7, 8])
def test_the_seed_decides_the_result(tmp_path, seed):
    results = []
    for name, each in (("one", 7), ("other", seed)):
        torch.manual_seed(len(name))
        engine = Engine(settings(), Regression(dropout=0.5), tmp_path / name, seed=each)
        engine.fit()
        results.append(engine.task.last.weight)
    assert torch.equal(*results) == (seed == 7)


def test_training_equals_a_loop_written_by_hand(tmp_path):
    config = settings(steps=7, lr=0.1, min_lr=0.01, weight_decay=0.3, betas=(0.8, 0.9), clip_norm=0.7)
    data = Points(dtype=torch.float64)
    engine = Engine(config, Regression(dtype=torch.float64), tmp_path, seed=2)
    by_hand = Regression(dtype=torch.float64)
    engine.fit()
    weights = list(by_hand.parameters())
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    plan = BatchPlan(len(data), 4, 1, seed=2, stage=0)
    for step in range(7):
        rate = 0.01 + 0.09 * (1 + torch.cos(torch.tensor(torch.pi * step / 6, dtype=torch.float64))) / 2
        indices = [index for _, index in plan.batch(step)]
        loss = ((by_hand.predict(data.x[indices]) - data.y[indices]) ** 2).mean()
        gradients = torch.autograd.grad(loss, weights)
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        with torch.no_grad():
            for w, g, m, v in zip(weights, gradients, first, second, strict=True):
                g = g * min(1.0, 0.7 / float(norm))
                m.mul_(0.8).add_(0.2 * g)
                v.mul_(0.9).add_(0.1 * g * g)
                w.mul_(1 - rate * 0.3)
                w.sub_(rate * (m / (1 - 0.8 ** (step + 1))) / ((v / (1 - 0.9 ** (step + 1))).sqrt() + 1e-8))
    for mine, other in zip(engine.task.parameters(), weights, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)  # torch adds 1e-6 to the norm when clipping


@pytest.mark.parametrize(("size", "accumulate"), [(12, 2), (11, 2), (11, 4), (3, 4)])
def test_accumulation_equals_the_full_batch(tmp_path, size, accumulate):
    runs = [
        train(tmp_path / str(parts), lambda: Regression(data=Points(size, dtype=torch.float64), dtype=torch.float64),
              accumulate=parts)
        for parts in (1, accumulate)
    ]  # fmt: skip
    for one, other in zip(*(run.task.parameters() for run in runs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    losses = [[line["loss"] for line in log_of(run.folder) if "loss" in line] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


class Poison(Hook):
    """Makes the gradient of one step infinite."""

    def after_backward(self, engine):
        self.before = [p.clone() for p in engine.task.parameters()]
        if engine.step == 2:
            engine.task.last.bias.grad.fill_(float("inf"))

    def after_step(self, engine):
        moved = [not torch.equal(a, b) for a, b in zip(self.before, engine.task.parameters(), strict=True)]
        assert any(moved) == (engine.step != 3)


def test_a_step_with_an_infinite_gradient_is_skipped(tmp_path):
    engine = Engine(settings(), Regression(), tmp_path, seed=1, hooks=[Poison()])
    engine.fit()
    assert engine.step == 6
    assert all(p.isfinite().all() for p in engine.task.parameters())
    assert [line["grad_norm"] for line in log_of(tmp_path) if "loss" in line].index(None) == 2


def test_frozen_weights_never_move(tmp_path):
    task = Regression(1, stage_parts=("last",))
    before = task.first.weight.clone(), task.last.weight.clone()
    Engine(settings(weight_decay=0.5), task, tmp_path, seed=1).fit()
    assert torch.equal(before[0], task.first.weight)
    assert not torch.equal(before[1], task.last.weight)


def test_a_loss_that_is_not_finite_stops_with_stage_step_and_samples(tmp_path):
    data = Points()
    data.y[6] = float("nan")
    plan = BatchPlan(11, 4, 1, seed=1, stage=0)
    step = next(step for step in range(6) if 6 in [index for _, index in plan.batch(step)])
    samples = ", ".join(str(index) for _, index in plan.batch(step))
    task = Regression(data=data)
    with pytest.raises(TrainingDiverged, match=rf"stage 'stage0', step {step + 1}: the loss is nan; .*: {samples}\."):
        Engine(settings(), task, tmp_path, seed=1).fit()
    assert all(p.isfinite().all() for p in task.parameters())


# --- processes and signals ----------------------------------------------------------------------------------------

SCRIPT = tiny_tasks.__file__


def launch(folder, *arguments, processes=1):
    command = [SCRIPT, folder, *arguments]
    command = torchrun(*command, processes=processes) if processes > 1 else [sys.executable, *map(str, command)]
    return subprocess.Popen(command, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_processes_give_the_result_of_one(tmp_path):
    process = launch(tmp_path / "two", "--set", "batch_size=8", "accumulate=2", processes=2)
    engine = Engine(settings(batch_size=8), Regression(keep=Best("val/score")), tmp_path / "one", seed=1)
    engine.fit()
    engine.evaluate("test")
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    two = load_file(tmp_path / "two" / "result.safetensors")
    one = {**engine.task.trained_state(), **{f"out.{key}": value for key, value in engine.outputs["test"].items()}}
    assert one["out.index"].tolist() == two["out.index"].tolist() == list(range(7))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)
    assert len(log_of(tmp_path / "one")) == len(log_of(tmp_path / "two"))


def test_a_killed_process_loses_nothing_that_was_saved(tmp_path):
    process = launch(tmp_path / "killed", "--dropout", "0.5", "--seconds-per-sample", "0.1", "--set", "steps=30")
    while not (tmp_path / "killed" / "checkpoints" / "step-000002").exists() and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    engines = [
        Engine(settings(steps=30), Regression(dropout=0.5, keep=Best("val/score")), tmp_path / name, seed=1)
        for name in ("killed", "whole")
    ]
    assert 0 < len(log_of(tmp_path / "killed")) < 30
    for engine in engines:
        engine.fit()
    one, other = engines
    assert all(torch.equal(a, b) for a, b in zip(one.task.parameters(), other.task.parameters(), strict=True))
    assert log_of(one.folder) == log_of(other.folder)


class Stop(Crash):
    """Sends this process a signal after a step."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def after_step(self, engine):
        super().after_step(engine)
        if engine.global_step == 5:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_finishes_its_step_saves_and_resumes_exactly(tmp_path, number):
    def make():
        return Regression(dropout=0.5)

    before = signal.getsignal(number)
    stopped = Engine(settings(steps=9, checkpoint_every=0), make(), tmp_path / "resumed", seed=7, hooks=[Stop(number)])
    with pytest.raises(Interrupted, match=r"after step 5 of stage 'stage0'; a checkpoint is in") as caught:
        stopped.fit()
    assert caught.value.exit_code == 130
    assert signal.getsignal(number) == before
    assert [path.name for path in (tmp_path / "resumed" / "checkpoints").iterdir()] == ["step-000005"]
    resumed = train(tmp_path / "resumed", make, steps=9)
    assert_same(train(tmp_path / "whole", make, steps=9, checkpoint_every=0), resumed)


def test_a_second_signal_stops_at_once(tmp_path):
    class Impatient(Stop):
        def after_step(self, engine):
            super().after_step(engine)
            super().after_step(engine)

    engine = Engine(settings(), Regression(), tmp_path, seed=7, hooks=[Impatient(signal.SIGINT)])
    with pytest.raises(KeyboardInterrupt):
        engine.fit()
    assert engine.step == 5


def test_statistics_over_a_batch_are_told_which_sample_is_a_filler(tmp_path):
    seen = []

    class Watching(Regression):
        def training_step(self, batch):
            seen.append((len(batch["x"]), rows_count()))
            return super().training_step(batch)

    Engine(settings(steps=1, accumulate=4), Watching(data=Points(3)), tmp_path, seed=7).fit()
    assert seen == [(1, True), (1, True), (1, True), (1, False)]
    assert rows_count()


def spiked(at=None):
    """A task whose gradient is infinite, though its loss is not: at every step, or at those below `at` alone."""

    class Spiked(Regression):
        def __init__(self):
            super().__init__()
            self.count = 0

        def training_step(self, batch):
            losses = super().training_step(batch)
            self.count += 1
            if at is None or self.count <= at:
                losses["loss"].register_hook(lambda gradient: gradient * float("inf"))
            return losses

    return Spiked()


def test_a_stage_that_could_take_no_step_is_refused_at_its_end(tmp_path):
    with pytest.raises(TrainingDiverged, match=r"stage 'stage0': the gradient was finite in none of its steps"):
        Engine(settings(), spiked(), tmp_path / "none", seed=7).fit()
    with pytest.raises(TrainingDiverged, match="none of its steps"):  # resumed after its last step
        Engine(settings(), Regression(), tmp_path / "none", seed=7).fit()
    assert not (tmp_path / "none" / "checkpoints" / "stage-000").exists()
    Engine(settings(), spiked(at=5), tmp_path / "one", seed=7).fit()


def test_a_stage_that_took_a_step_before_it_stopped_is_not_refused(tmp_path):
    one = Engine(settings(steps=5), Regression(), tmp_path, seed=7, hooks=[Crash(at=3)])
    with pytest.raises(ZeroDivisionError):
        one.fit()
    Engine(settings(steps=5), spiked(), tmp_path, seed=7, hooks=[Crash()]).fit()


def test_a_stage_that_diverges_at_its_last_step_is_refused(tmp_path):
    class Spare(Regression):
        """Its loss does not depend on one of its parameters, which grows beyond all numbers."""

        def __init__(self):
            super().__init__()
            self.spare = torch.nn.Parameter(torch.full((2,), 1e35))

        def training_step(self, batch):
            losses = super().training_step(batch)
            return {"loss": losses["loss"] + 0.0 * self.spare.sum()}

    with pytest.raises(TrainingDiverged, match=r"stage 'stage0': 1 of 5 trained tensors are not finite.*spare"):
        Engine(settings(steps=1, lr=1e3, weight_decay=1e3), Spare(), tmp_path, seed=7).fit()
    assert not (tmp_path / "checkpoints" / "stage-000").exists()


@pytest.mark.parametrize(
    ("keep", "options", "message"),
    [
        (None, {"eval_every": 2}, r"engine\.patience=3 .* no stage keeps a state by one.*task\.select"),
        (Best("val/score"), {}, r"engine\.patience=3 counts evaluations.*set engine\.eval_every"),
    ],
)
def test_a_patience_that_could_never_end_a_stage_is_refused(tmp_path, keep, options, message):
    with pytest.raises(UserError, match=message):
        Engine(settings(patience=3, **options), Regression(keep=keep), tmp_path, seed=7).fit()
