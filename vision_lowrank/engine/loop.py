"""The one loop: runs every stage of a task, evaluates, checkpoints, stops in good order and resumes bit for bit.

A step is: read the micro-batches, compute losses and gradients (:mod:`.gradient`), hooks, clip, AdamW, hooks. It
depends on weights, optimiser state and the address (seed, stage, step) only, so a checkpoint holds no random state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..config.schema import EngineConfig
from ..errors import ArtefactError, UserError
from ..optim.base import Rule, StepContext, Steps
from .checkpoint import Checkpoint, CheckpointStore, Position
from .evaluation import collect_sets, evaluate_sets
from .gradient import Closure, MicroBatch, having, parameters
from .hooks import Hook, collect_states
from .keep import Selection, check_selection, restore, snapshot
from .metrics_log import MetricsLog
from .progress import Advance, Display
from .runtime import Runtime
from .sampler import BatchPlan, train_loader
from .schedule import set_learning_rate
from .seeding import Stream, seed_everything
from .settings import run_identity, stage_settings
from .signals import Interrupted, SignalWatch
from .task import Batch, Outputs, Stage, Task

# fp16 needs some twenty skipped steps to find its loss scale; many more in a row mean that nothing is learnt.
MAX_SKIPPED = 50


class TrainingDiverged(UserError):
    """The loss, or the gradient of many steps in a row, is not a finite number."""


class Engine:
    """Trains and evaluates one task.

    Args:
        config: settings; a stage may override them.
        task: what to train; moved to the device.
        folder: takes ``metrics.jsonl``, ``tensorboard/`` and ``checkpoints/``.
        seed: of everything random in the run.
        rule: how gradients are made and what steps on them; None for plain training.
        hooks: called in order.
        identity: a hash of everything else the result depends on; a checkpoint of another identity is refused.

    Attributes:
        settings: of the current stage, overrides included.
        stage: the current stage; None before the first.
        stage_index: its index.
        step: optimiser steps done in this stage.
        global_step: optimiser steps done in all stages.
        optimizer: of the current stage.
        closure: losses and gradients of the current step's batch.
        losses: of the last step.
        metrics: of the last evaluation.
        outputs: by set, of its last evaluation: CPU tensors in the order of the data set.

    Raises:
        UserError: the device cannot compute in ``config.precision``.
    """

    optimizer: torch.optim.Optimizer
    closure: Closure

    def __init__(
        self,
        config: EngineConfig,
        task: Task,
        folder: Path,
        *,
        seed: int,
        rule: Rule | None = None,
        hooks: Sequence[Hook] = (),
        identity: str = "",
    ) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        self.runtime = Runtime()
        self.runtime.check_precision(config.precision)
        self.config = self.settings = config
        self.task = task.to(self.runtime.device)
        self.folder, self.seed, self.hooks, self.identity = Path(folder), seed, list(hooks), identity
        self.rule = rule
        self.stage: Stage | None = None
        self.stage_index = self.step = self.global_step = 0
        self.losses: dict[str, float] = {}
        self.metrics: dict[str, float] = {}
        self.outputs: dict[str, Outputs] = {}
        self._store = CheckpointStore(self.folder / "checkpoints")
        self._log = MetricsLog(
            self.folder, enabled=self.is_main, fresh=not len(self._store), tensorboard=config.tensorboard
        )
        self.display = Display(enabled=self.is_main)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.runtime.is_main

    def fit(self, *, resume: bool = True) -> None:
        """Run all stages; with `resume`, from the newest checkpoint in the folder if there is one.

        Raises:
            Interrupted: SIGINT or SIGTERM arrived; a checkpoint has been written.
            TrainingDiverged: a loss is not finite; the message names stage, step and samples.
            ArtefactError: the checkpoints belong to other settings, are damaged, or cannot be written.
            UserError: settings that do not fit together.
        """
        stages = self.task.stages()
        settings = [stage_settings(self.config, stage) for stage in stages]
        self._identity = run_identity(self.seed, self.identity, stages, settings)
        if not resume and len(self._store):
            raise ArtefactError(f"{self._store.folder} already holds checkpoints: resume, or use another folder.")
        checkpoint = self._store.latest(self._identity)
        done = checkpoint.position if checkpoint else Position(0, 0, 0)
        self.global_step = done.global_step
        if checkpoint:
            self._log.rewind(done.log_size, done.global_step)
        self.runtime.wait()
        try:
            with SignalWatch() as self._signals:
                for index, (stage, config) in enumerate(zip(stages, settings, strict=True)):
                    if index < done.stage or (index == done.stage and done.finished):
                        self._replay(index, stage, config)
                    else:
                        self._run(index, stage, config, checkpoint if index == done.stage else None)
                        if index + 1 < len(stages) and self._stopping():
                            raise Interrupted(self.folder, stage.name, self.step)
        finally:
            self._log.close()

    def evaluate(self, split: Literal["val", "test"]) -> dict[str, float]:
        """Evaluate every set of `split`; metrics are named ``{set}/{metric}``, ``outputs`` keeps the tensors."""
        sets = self.task.eval_sets(split)
        self.metrics, outputs = evaluate_sets(
            self.task, sets, self.settings, self.runtime, self.display, seed=self.seed
        )
        self.metrics |= self.task.summary(self.metrics)
        self.outputs |= outputs
        if self.metrics:
            name = self.stage.name if self.stage else None
            self._log.write(name, self.step, self.global_step, self.metrics, split=split)
            told = [name for name in self.metrics if self.task.is_column(name)]
            self.display.say("  ".join(f"{name} {self.metrics[name]:.4g}" for name in told))
        self._call("on_evaluate", split, self.metrics)
        return self.metrics

    def evaluate_untrained(self) -> dict[str, float]:
        """Test metrics of the model as if nothing had been added to it."""
        with self.task.untrained():
            self.fit_from_outputs("untrained")
            return self.evaluate("test")

    def fit_from_outputs(self, place: Literal["untrained", "start", "end"]) -> None:
        """Run the model over what the task fits parts on in closed form there, and hand it the outputs."""
        sets = self.task.fit_sets(place)
        for name, outputs in collect_sets(self.task, sets, self.settings, self.runtime, self.display, seed=self.seed):
            self.task.fit_outputs(name, outputs)

    def dry_step(self, stage: Stage) -> dict[str, float]:
        """Losses of the first batch of `stage`, forward and backward but no update: to measure what a step costs."""
        config = stage_settings(self.config, stage)
        self._begin(0, stage, config.model_copy(update={"steps": max(1, config.steps)}))
        self._tell_progress()
        self._load_step(next(self._batches()))
        losses = self.steps.gradients(self.closure)
        self.optimizer.zero_grad(set_to_none=True)
        return losses

    def _enter(self, index: int, stage: Stage, config: EngineConfig) -> None:
        """Make the task ready for a stage, the same whether it runs, resumes or is replayed."""
        self.stage_index, self.stage, self.settings, self.step = index, stage, config, 0
        seed_everything(self.seed, Stream.STAGE, index)
        self.task.train()
        self.task.begin_stage(stage)
        self.task.to(self.runtime.device)
        site = StepContext(self.task, config, self.seed, index)
        plain = self.rule is None or not config.steps
        start = stage.steps or (Steps if plain else self.rule.start)
        self.steps = start(site)
        self.steps.prepare()
        self.task.begin_training()

    def _begin(self, index: int, stage: Stage, config: EngineConfig) -> None:
        """Enter a stage and build what its steps need."""
        self.runtime.check_precision(config.precision)
        self._plan = BatchPlan(
            len(stage.data),  # type: ignore[arg-type]
            config.batch_size,
            config.accumulate,
            self.seed,
            index,
            self.runtime.rank,
            self.runtime.world_size,
        )
        self._enter(index, stage, config)
        groups = [group for group in self.task.parameter_groups() if group["params"]]
        if config.steps and not groups:
            raise UserError(f"stage '{stage.name}' trains nothing: give it an adapter or a head that needs gradients.")
        self.optimizer = self.steps.optimizer(groups or [{"params": []}])
        self._scaler = self.runtime.scaler(config.precision)
        self._skipped = 0
        self._selection = Selection(stage.select, config.patience)
        self._forward = torch.compile(self.task.training_step) if config.compile else self.task
        self._modules = having(self.task, "extra_losses")
        self._proximal = having(self.task, "proximal_step")
        self._progressing = having(self.task, "set_progress")

    def _replay(self, index: int, stage: Stage, config: EngineConfig) -> None:
        """Put a finished stage's result into the task."""
        checkpoint = self._store.finished(index, self._identity)
        self._enter(index, stage, config)
        self._load_progress(checkpoint)

    def _run(self, index: int, stage: Stage, config: EngineConfig, checkpoint: Checkpoint | None) -> None:
        """Run a stage from its start or from `checkpoint`, to its end."""
        self._begin(index, stage, config)
        check_selection(stage, self.task)
        if self.runtime.world_size > 1:
            restore(self.task, self.runtime.broadcast(self.task.trained_state()))
        self._call("on_stage_start")
        if checkpoint:
            self._load_progress(checkpoint)
        else:
            self.fit_from_outputs("start")
        self._tell_progress()  # may take tensors out of the optimiser, as it did before the checkpoint
        if checkpoint:
            self._load_loop(checkpoint)
        with self.display.track(stage.name, config.steps, done=self.step, every=config.log_every) as advance:
            self._train(advance)
        if self._selection.state is not None:
            restore(self.task, self._selection.state)
        self.fit_from_outputs("end")
        self._call("on_stage_end")
        self._save(finished=True)

    def _train(self, advance: Advance) -> None:
        """Run the steps that are left."""
        config, selection = self.settings, self._selection
        batches = self._batches()
        clock, counted = time.perf_counter(), self.step
        while self.step < config.steps and not selection.exhausted:
            lr = set_learning_rate(self.optimizer, self.step, config)
            self._load_step(next(batches))
            norm = self.update()
            advance(f"loss {self.losses['loss']:.4f}")
            if self._due(config.log_every):
                seconds = (time.perf_counter() - clock) / (self.step - counted)
                self._log_step(lr, norm, seconds)
                clock, counted = time.perf_counter(), self.step
            if self._due(config.eval_every):
                paused = time.perf_counter()
                selection.update(self.evaluate("val"), self.task, self.step)
                clock += time.perf_counter() - paused
            stopping = self._stopping()
            if stopping or (config.checkpoint_every and self.step % config.checkpoint_every == 0):
                self._save()
            if stopping:
                raise Interrupted(self.folder, self.stage.name, self.step)

    def _due(self, every: int) -> bool:
        """Whether something done every N steps and at the last one is due; 0 = only at the last."""
        return self.step == self.settings.steps or (every > 0 and self.step % every == 0)

    def _batches(self) -> Iterator[list[Batch]]:
        """This process's micro-batches of each step from the current one on."""
        stage, config = self.stage, self.settings
        loader = train_loader(
            stage.data, self._plan, self.step, config.steps, collate=stage.collate, workers=config.workers
        )
        return zip(*[iter(loader)] * config.accumulate, strict=True)  # type: ignore[return-value]

    def _load_step(self, batches: Sequence[Batch]) -> None:
        """Make the closure of the current step."""
        weights = [self._plan.micro_batch(self.step, micro)[1] for micro in range(len(batches))]
        self.closure = Closure(
            self._forward,
            self._modules,
            self.optimizer,
            self.runtime,
            self._scaler,
            self.settings.precision,
            [MicroBatch(self.runtime.to_device(batch), weight) for batch, weight in zip(batches, weights, strict=True)],
            (self.seed, self.stage_index, self.step),
        )

    def update(self) -> float:
        """The current step; returns the gradient's norm before clipping. A gradient that is not finite is skipped."""
        self.losses = self.steps.gradients(self.closure)
        if not math.isfinite(self.losses["loss"]):
            raise TrainingDiverged(self._diverged(f"the loss is {self.losses['loss']}"))
        self._call("after_backward")
        norm = _norm(parameters(self.optimizer))
        if finite := bool(norm.isfinite()):
            if self.settings.clip_norm:
                clipped = parameters(self.optimizer, clipped=True)
                torch.nn.utils.clip_grads_with_norm_(clipped, self.settings.clip_norm, _norm(clipped))
            self.optimizer.step()
            self._proximal_steps()
        self._skipped = 0 if finite else self._skipped + 1
        if self._skipped > MAX_SKIPPED:
            raise TrainingDiverged(self._diverged(f"the gradient has not been finite for {self._skipped} steps"))
        self.step += 1
        self.global_step += 1
        self._tell_progress()
        self.task.after_step(self.step)
        self.steps.after_step(self.step)
        self._call("after_step")
        return float(norm)

    def _proximal_steps(self) -> None:
        """The modules' own steps, with the learning rate of their parameters; none where these do not train."""
        if not self._proximal:
            return
        stepped = [(p, group["lr"]) for group in self.optimizer.param_groups for p in group["params"]]
        rates = {id(p): lr for p, lr in stepped if p.grad is not None}
        for module in self._proximal:
            own = [rates[id(p)] for p in module.parameters(recurse=False) if id(p) in rates]
            if own:
                module.proximal_step(own[0])  # type: ignore[operator]

    def _tell_progress(self) -> None:
        """Let parts that change with training, such as LaMDA's freezing, know how far it is."""
        for module in self._progressing:
            module.set_progress(self.optimizer, self.step, self.settings.steps)  # type: ignore[operator]

    def _diverged(self, reason: str) -> str:
        samples = ", ".join(str(index) for _, index in self._plan.batch(self.step)[:32])
        return (
            f"stage '{self.stage.name}', step {self.step + 1}: {reason}; samples of the batch: {samples}. "
            "Lower engine.lr, set engine.clip_norm, or look at these samples."
        )

    def _log_step(self, lr: float, norm: float, seconds: float) -> None:
        values = {"lr": lr, **self.losses, "grad_norm": norm, "seconds": seconds}
        values["samples_per_second"] = len(self._plan.batch(self.step - 1)) / seconds
        values["peak_memory_mib"] = self.runtime.peak_memory()
        self._log.write(self.stage.name, self.step, self.global_step, values)

    def _stopping(self) -> bool:
        """Whether any process was asked to stop: all must agree, or the others would wait for it forever."""
        return self.runtime.any(self._signals.pending)

    def _save(self, *, finished: bool = False) -> None:
        if self.is_main:
            position = Position(self.stage_index, self.step, self.global_step, finished, self._log.size)
            loop: dict[str, Any] = {"hooks": collect_states(self.hooks)}
            if not finished:
                loop["optimizer"] = self.optimizer.state_dict()
                loop["scaler"] = self._scaler.state_dict()
                loop["rule"] = self.steps.state_dict()
                loop["selection"] = self._selection.state_dict()
                loop["skipped"] = self._skipped
            best = None if finished else self._selection.state
            self._store.save(Checkpoint(position, snapshot(self.task), best, loop), self._identity)
        self.runtime.wait()

    def _load_progress(self, checkpoint: Checkpoint) -> None:
        """Put back counters, trained state and hooks."""
        self.step, self.global_step = checkpoint.position.step, checkpoint.position.global_step
        restore(self.task, checkpoint.trained)
        states = checkpoint.loop["hooks"]
        if len(states) != len(self.hooks):
            raise ArtefactError(f"the checkpoint has {len(states)} hook(s), the run {len(self.hooks)}: use the same.")
        for hook, state in zip(self.hooks, states, strict=True):
            hook.load_state_dict(state)

    def _load_loop(self, checkpoint: Checkpoint) -> None:
        """Put back what only the rest of a stage needs."""
        self.optimizer.load_state_dict(checkpoint.loop["optimizer"])
        self._scaler.load_state_dict(checkpoint.loop["scaler"])
        self.steps.load_state_dict(checkpoint.loop["rule"])
        self._selection.load_state_dict(checkpoint.loop["selection"], checkpoint.best)
        self._skipped = checkpoint.loop["skipped"]

    def _call(self, place: str, *arguments: Any) -> None:
        for hook in self.hooks:
            getattr(hook, place)(self, *arguments)


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """Norm of all gradients together."""
    return torch.nn.utils.get_total_norm([p.grad for p in tensors if p.grad is not None])
