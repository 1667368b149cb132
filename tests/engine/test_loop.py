import functools
import json

import pytest
import torch
from fixtures.tiny_tasks import Points, Regression, settings
from torch import nn
from torch.utils.data import Subset

from vision_lowrank.engine import Engine, Hook
from vision_lowrank.engine.keep import Best
from vision_lowrank.errors import ArtefactError, ConfigError, DataError, UserError
from vision_lowrank.trained import TrainedPart


def fit(task, folder, *, hooks=(), **options):
    engine = Engine(settings(**options), task, folder, seed=1, hooks=hooks)
    engine.fit()
    return engine


class Recorder(Hook):
    def __init__(self):
        self.calls = []

    def on_stage_start(self, engine):
        self.calls.append(f"start {engine.stage.name}")

    def after_backward(self, engine):
        assert all(p.grad is not None for p in engine.task.parameters())
        self.calls.append(f"backward {engine.step}")

    def after_step(self, engine):
        self.calls.append(f"step {engine.step}/{engine.global_step}")

    def on_evaluate(self, engine, split, metrics):
        self.calls.append(f"evaluate {split} {sorted(metrics)}")

    def on_stage_end(self, engine):
        self.calls.append(f"end {engine.stage.name}")


def test_hooks_are_called_in_order(tmp_path):
    hook = Recorder()
    fit(Regression(2), tmp_path, hooks=[hook], steps=2, eval_every=1).evaluate("test")
    evaluate = "evaluate val ['val/score']"
    first = ["start stage0", "backward 0", "step 1/1", evaluate, "backward 1", "step 2/2", evaluate, "end stage0"]
    second = ["start stage1", "backward 0", "step 1/3", evaluate, "backward 1", "step 2/4", evaluate, "end stage1"]
    assert hook.calls == [*first, *second, "evaluate test ['test/score']"]


class Again(Hook):
    """A gradient rule that differentiates the same batch twice."""

    def after_backward(self, engine):
        first = [p.grad.clone() for p in engine.task.parameters()]
        losses = engine.closure()
        assert losses == engine.losses
        assert all(torch.equal(a, p.grad) for a, p in zip(first, engine.task.parameters(), strict=True))


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"precision": "bf16"}])
def test_the_closure_replays_the_same_random_numbers(tmp_path, options):
    fit(Regression(dropout=0.5), tmp_path / "twice", hooks=[Again()], **options)


class Penalised(TrainedPart, nn.Linear):
    def extra_losses(self):
        return {"penalty": self.weight.square().sum()}


def test_losses_that_modules_add_are_differentiated_and_logged(tmp_path):
    class Task(Regression):
        def __init__(self):
            super().__init__(dtype=torch.float64)
            self.first, self.last = Penalised(3, 8).double(), Penalised(8, 1).double()

    task = Task()
    expected = sum(layer.weight.detach().square().sum() for layer in (task.first, task.last))
    engine = Engine(settings(accumulate=2), task, tmp_path, seed=1)
    losses = engine.dry_step(task.stages()[0])
    assert losses["penalty"] == pytest.approx(float(expected), rel=1e-6)
    assert losses["loss"] == pytest.approx(losses["mse"] + losses["penalty"], rel=1e-6)

    class Check(Hook):
        def after_backward(self, engine):
            batch = [index for _, index in engine._runner.plan.batch(engine.step)]
            mse = ((task.predict(task.data.x[batch]) - task.data.y[batch]) ** 2).mean()
            total = mse + task.first.weight.square().sum() + task.last.weight.square().sum()
            for p, gradient in zip(task.parameters(), torch.autograd.grad(total, list(task.parameters())), strict=True):
                torch.testing.assert_close(p.grad, gradient, rtol=1e-10, atol=1e-12)

    fit(task, tmp_path, hooks=[Check()], accumulate=2)


def test_a_dry_step_changes_no_weight_and_leaves_no_gradient(tmp_path):
    task = Regression()
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    engine = Engine(settings(steps=0), task, tmp_path, seed=1)
    assert engine.dry_step(task.stages()[0])["loss"] > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in task.state_dict().items())
    assert all(p.grad is None for p in task.parameters())


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_evaluation_keeps_the_order_of_the_data_set_and_all_samples(tmp_path, batch_size):
    task = Regression()
    engine = Engine(settings(eval_batch_size=batch_size), task, tmp_path, seed=1)
    metrics = engine.evaluate("test")
    data = task.eval_sets("test")["test"]
    assert torch.equal(engine.outputs["test"]["index"], torch.arange(7))
    expected = -((task.predict(data.x) - data.y) ** 2).mean()
    assert metrics == {"test/score": pytest.approx(expected.item())}
    engine.evaluate("val")
    assert engine.outputs.keys() == {"test", "val"}


def test_evaluation_puts_every_module_back_into_its_mode(tmp_path):
    class Frozen(Regression):
        def begin_stage(self, stage):
            self.first.eval()

        def eval_step(self, batch):
            assert not any(module.training for module in self.modules())
            assert not torch.is_grad_enabled()
            return super().eval_step(batch)

        def training_step(self, batch):
            assert (self.training, self.first.training, self.dropout.training) == (True, False, True)
            return super().training_step(batch)

    fit(Frozen(), tmp_path, eval_every=1)


def test_evaluating_while_training_changes_nothing(tmp_path):
    tasks = [Regression(dropout=0.5, data=Points(jitter=0.5)) for _ in range(2)]
    for every, task in enumerate(tasks):
        fit(task, tmp_path / str(every), eval_every=every)
    assert all(torch.equal(a, b) for a, b in zip(*(task.parameters() for task in tasks), strict=True))


def test_bf16_computes_in_bf16_and_keeps_weights_and_outputs_in_fp32(tmp_path):
    seen = set()

    class Watched(Regression):
        def predict(self, x):
            result = super().predict(x)
            seen.add(result.dtype)
            return result

    engine = fit(Watched(), tmp_path, precision="bf16")
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in engine.task.parameters()} == {torch.float32}
    assert engine.outputs["val"]["prediction"].dtype == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="refusal of a machine without CUDA")
def test_fp16_without_cuda_is_refused(tmp_path):
    with pytest.raises(UserError, match="precision fp16 needs a CUDA device, but this run is on 'cpu': use bf16"):
        Engine(settings(precision="fp16"), Regression(), tmp_path, seed=1)
    with pytest.raises(UserError, match="fp16 needs a CUDA device"):
        fit(Regression(overrides=[{"precision": "fp16"}]), tmp_path)


@pytest.mark.gpu
def test_fp16_scales_the_loss_and_hands_out_true_gradients(tmp_path):
    norms = {}

    class Norm(Hook):
        def after_backward(self, engine):
            precision = engine.settings.precision
            norms.setdefault(precision, torch.stack([p.grad.norm() for p in engine.task.parameters()]))

    for precision in ("fp32", "fp16"):
        fit(Regression(), tmp_path / precision, hooks=[Norm(), Again()], precision=precision)
    torch.testing.assert_close(norms["fp16"], norms["fp32"], rtol=1e-2, atol=1e-3)


def test_compiling_goes_through_torch_compile_and_changes_nothing(tmp_path, monkeypatch):
    compiled = []
    original = torch.compile

    def count(function):
        compiled.append(function)
        return original(function, backend="eager")

    monkeypatch.setattr(torch, "compile", functools.partial(count))
    tasks = [Regression(), Regression()]
    for task, flag in zip(tasks, (False, True), strict=True):
        fit(task, tmp_path / str(flag), compile=flag)
    assert compiled == [tasks[1].training_step]
    for one, other in zip(*(task.parameters() for task in tasks), strict=True):
        torch.testing.assert_close(one, other)


def test_the_log_has_the_numbers_of_every_step(tmp_path):
    fit(Regression(), tmp_path, log_every=4, lr=0.1, min_lr=0.0)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "split" not in line]
    assert [line["step"] for line in steps] == [4, 6]
    assert steps[-1]["lr"] == 0.0
    assert steps[0].keys() == {
        "stage", "step", "global_step", "lr", "loss", "mse", "grad_norm", "seconds", "samples_per_second",
        "peak_memory_mib",
    }  # fmt: skip
    assert lines[-1].keys() == {"stage", "step", "global_step", "split", "val/score"}


@pytest.mark.parametrize(
    ("task", "options", "error", "message"),
    [
        (lambda: Regression(overrides=[{"stepz": 3}]), {}, ConfigError, r"stage 'stage0', engine.stepz: .*'steps'"),
        (lambda: Regression(overrides=[{"lr": -1}]), {}, ConfigError, r"stage 'stage0', engine.lr: .*greater than 0"),
        (
            lambda: Regression(keep=Best("vall/score")),
            {},
            UserError,
            r"no validation set\. Did you mean 'val'\? Known: val",
        ),
        (lambda: Regression(keep=Best("val/scor")), {}, UserError, r"metric 'val/scor'\. Did you mean 'val/score'"),
        (lambda: Regression(stage_parts=("nothing",)), {}, UserError, "stage 'stage0' trains nothing: give it"),
        (lambda: Regression(), {"accumulate": 3}, UserError, r"batch_size 4 cannot be divided .* multiple of 3"),
        (lambda: Regression(data=Points(0)), {}, DataError, "data set is empty"),
    ],
)
def test_mistakes_are_named_with_a_remedy(tmp_path, task, options, error, message):
    with pytest.raises(error, match=message):
        fit(task(), tmp_path, **options)


def test_an_empty_evaluation_set_is_refused(tmp_path):
    task = Regression()
    task.validation = Subset(task.validation, [])
    with pytest.raises(DataError, match="evaluation set 'val' is empty"):
        Engine(settings(), task, tmp_path, seed=1).evaluate("val")


def test_checkpoints_of_another_run_are_refused(tmp_path):
    fit(Regression(), tmp_path)
    with pytest.raises(ArtefactError, match=r"stage0\[0\]\.lr = 0\.05, not 0\.1"):
        fit(Regression(), tmp_path, lr=0.1)
    with pytest.raises(ArtefactError, match="seed = 1, not 2"):
        Engine(settings(), Regression(), tmp_path, seed=2).fit()
    with pytest.raises(ArtefactError, match="config = , not abc"):
        Engine(settings(), Regression(), tmp_path, seed=1, identity="abc").fit()
    with pytest.raises(ArtefactError, match="already holds checkpoints"):
        Engine(settings(), Regression(), tmp_path, seed=1).fit(resume=False)
    fit(Regression(), tmp_path, log_every=3, workers=1, checkpoint_every=5)


def test_a_model_that_does_not_fit_is_refused(tmp_path):
    fit(Regression(), tmp_path)
    other = Regression()
    other.last = nn.Linear(8, 2)
    with pytest.raises(ArtefactError, match=r"not the one .*: 2 tensor\(s\) differ .*, such as last\.bias"):
        fit(other, tmp_path)


def test_a_task_without_stages_only_evaluates(tmp_path):
    task = Regression()
    task.stages = list
    engine = fit(task, tmp_path)
    assert engine.evaluate("test").keys() == {"test/score"}


def test_a_hook_state_that_could_not_be_loaded_is_refused_when_saved(tmp_path):
    class Odd(Hook):
        def state_dict(self):
            return {"nested": [{"path": tmp_path}]}

    with pytest.raises(TypeError, match=r"state of hook Odd holds a \w*Path: keep tensors"):
        fit(Regression(), tmp_path, hooks=[Odd()])
