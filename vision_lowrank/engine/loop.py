"""The one loop: runs every stage of a task, evaluates, checkpoints, stops in good order and resumes bit for bit.

What a step is, :mod:`.step_runner` says. Random numbers have addresses, so a checkpoint holds no random state.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from ..backbones.adapted import backbone_of
from ..config.schema import EngineConfig
from ..errors import ArtefactError
from ..metrics.names import told
from ..optim.base import Rule, StepContext, Steps
from .checkpoint import Checkpoint, CheckpointStore, Position
from .evaluation import collect_sets, evaluate_sets
from .hooks import Hook, Loop, collect_states
from .metrics_log import MetricsLog
from .progress import Advance, Display
from .runtime import Runtime
from .sampler import BatchPlan
from .schedule import set_learning_rate
from .seeding import Stream, seed_everything
from .settings import check_patience, check_sharding, run_identity, stage_settings
from .shard import gathered, join_blocks, shard_blocks
from .signals import Interrupted, SignalWatch
from .snapshot import copy_to_host, restore, snapshot
from .step_runner import StepRunner
from .task import Stage, Task


class Engine(Loop):
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
        steps: what makes the gradients of the current stage; the others are those of :class:`.hooks.Loop`.

    Raises:
        UserError: the device cannot compute in ``config.precision``.
    """

    steps: Steps

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
        self.is_main = self.runtime.is_main
        self.stage = None
        self.stage_index = self.step = self.global_step = 0
        self.losses, self.metrics, self.outputs = {}, {}, {}
        self._store = CheckpointStore(self.folder / "checkpoints")
        self._log = MetricsLog(
            self.folder, enabled=self.is_main, fresh=not len(self._store), tensorboard=config.tensorboard
        )
        self.display = Display(enabled=self.is_main)

    def plan(self) -> tuple[list[Stage], list[EngineConfig]]:
        """Return the stages to run and the settings of each.

        Raises:
            UserError: settings that do not fit together, or not a stage.
        """
        stages = list(self.task.stages())
        settings = [stage_settings(self.config, stage) for stage in stages]
        check_patience(stages, settings)
        return stages, settings

    def fit(self, *, resume: bool = True) -> None:
        """Run all stages; with `resume`, from the newest checkpoint in the folder if there is one.

        Raises:
            Interrupted: SIGINT or SIGTERM arrived; a checkpoint has been written.
            TrainingDiverged: a loss is not finite, no step of a stage could be taken, or what it trained is not
                finite at its end; the message names the stage, and step and samples where there are some.
            ArtefactError: the checkpoints belong to other settings, are damaged, or cannot be written.
            UserError: settings that do not fit together.
        """
        stages, settings = self.plan()
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
            self.close()

    def evaluate(self, split: Literal["val", "test"]) -> dict[str, float]:
        """Evaluate every set of `split`; metrics are named ``{set}/{metric}``, ``outputs`` keeps the tensors."""
        sets = self.task.eval_sets(split)
        self.metrics, outputs = evaluate_sets(
            self.task, sets, self.settings, self.runtime, self.display, seed=self.seed
        )
        self.metrics |= self.task.summary(self.metrics)
        self.outputs |= outputs
        self._note(split)
        return self.metrics

    def close(self) -> None:
        """Write out what is logged; the engine can go on."""
        self._log.close()

    def take_over(self, split: Literal["val", "test"], metrics: dict[str, float]) -> None:
        """Take metrics for an evaluation before training that was done in another process; a log that has it stays."""
        if not len(self._store):
            self.metrics = dict(metrics)
            self._note(split)

    def evaluate_untrained(self) -> dict[str, float]:
        """Compute test metrics of the model as if nothing had been added to it."""
        with self.task.untrained():
            self.fit_from_outputs("untrained")
            return self.evaluate("test")

    def fit_from_outputs(self, place: Literal["untrained", "start", "end"]) -> None:
        """Run the model over what the task fits parts on in closed form there, and hand it the outputs."""
        sets = self.task.fit_sets(place)
        for name, outputs in collect_sets(self.task, sets, self.settings, self.runtime, self.display, seed=self.seed):
            self.task.fit_outputs(name, outputs)

    def dry_step(self, stage: Stage) -> dict[str, float]:
        """Compute losses of the first batch of `stage`, forward and backward, no update: to measure a step's cost."""
        config = stage_settings(self.config, stage)
        self._begin(0, stage, config.model_copy(update={"steps": max(1, config.steps)}))
        self._runner.start(0)
        self._load(next(self._runner.batches(0)))
        losses = self.steps.gradients(self.closure)
        self.optimizer.zero_grad(set_to_none=True)
        join_blocks(self.task)
        return losses

    def update(self) -> float:
        """Do the current step on its loaded batch; returns the gradient's norm before clipping."""
        self.losses = self._runner.gradients()
        self._call("after_backward")
        norm = self._runner.step()
        self.step += 1
        self.global_step += 1
        self._runner.finish(self.step)
        self._call("after_step")
        return norm

    def _note(self, split: Literal["val", "test"]) -> None:
        """Write, tell and show to the hooks what was evaluated."""
        if self.metrics:
            name = self.stage.name if self.stage else None
            self._log.write(name, self.step, self.global_step, self.metrics, split=split)
            columns = [name for name in self.metrics if self.task.is_column(name)]
            self.display.say("  ".join(f"{told(name)} {self.metrics[name]:.4g}" for name in columns))
        self._call("on_evaluate", split, self.metrics)

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
        size: int = len(stage.data)  # type: ignore[arg-type]
        processes = self.runtime.rank, self.runtime.world_size
        plan = BatchPlan(size, config.batch_size, config.accumulate, self.seed, index, *processes)
        self._enter(index, stage, config)
        if config.sharding == "fsdp2" and config.steps and self.runtime.world_size > 1:
            check_sharding(stage, config, self.rule)
            shard_blocks(backbone_of(self.task.model.backbone), self.runtime.device, self.runtime.world_size)
        elif config.sharding == "fsdp2" and config.steps:
            self.display.say("engine.sharding=fsdp2 divides nothing in a single process: start several with torchrun")
        self._runner = StepRunner(self.task, stage, config, plan, self.steps, self.runtime)
        self.optimizer = self._runner.optimizer
        self._keep = stage.keep.fresh(config.patience)

    def _replay(self, index: int, stage: Stage, config: EngineConfig) -> None:
        """Put a finished stage's result into the task."""
        checkpoint = self._store.finished(index, self._identity)
        self._enter(index, stage, config)
        self._load_progress(checkpoint)

    def _run(self, index: int, stage: Stage, config: EngineConfig, checkpoint: Checkpoint | None) -> None:
        """Run a stage from its start or from `checkpoint`, to its end."""
        self._begin(index, stage, config)
        if stage.keep.metric is not None:
            stage.keep.check(stage.name, self.task.eval_sets("val").keys())
        if self.runtime.world_size > 1:
            restore(self.task, self.runtime.broadcast(gathered(self.task.trained_state())))
        self._call("on_stage_start")
        if checkpoint:
            self._load_progress(checkpoint)
        else:
            self.fit_from_outputs("start")
        self._runner.start(self.step)
        if checkpoint:
            self._load_loop(checkpoint)
        elif stage.keep.from_start:
            self._consider()
        with self.display.track(stage.name, config.steps, done=self.step, every=config.log_every) as advance:
            self._train(advance)
        if self._keep.state is not None:
            restore(self.task, self._keep.state)
        join_blocks(self.task)
        self.fit_from_outputs("end")
        self._runner.check_result()
        self._call("on_stage_end")
        self._save(finished=True)

    def _train(self, advance: Advance) -> None:
        """Run the steps that are left."""
        config, keep = self.settings, self._keep
        batches = self._runner.batches(self.step)
        clock, counted = time.perf_counter(), self.step
        while self.step < config.steps and not keep.exhausted:
            lr = set_learning_rate(self.optimizer, self.step, config)
            self._load(next(batches))
            norm = self.update()
            advance(f"loss {self.losses['loss']:.4f}")
            if self._due(config.log_every):
                seconds = (time.perf_counter() - clock) / (self.step - counted)
                self._log_step(lr, norm, seconds)
                clock, counted = time.perf_counter(), self.step
            if self._due(config.eval_every):
                paused = time.perf_counter()
                self._consider()
                clock += time.perf_counter() - paused
            stopping = self._stopping()
            if stopping or (config.checkpoint_every and self.step % config.checkpoint_every == 0):
                self._save()
            if stopping:
                raise Interrupted(self.folder, self.stage.name, self.step)

    def _due(self, every: int) -> bool:
        """Tell whether something done every N steps and at the last one is due; 0 = only at the last."""
        return self.step == self.settings.steps or (every > 0 and self.step % every == 0)

    def _consider(self) -> None:
        """Evaluate on validation data, and let the stage's rule take or leave the state."""
        self._keep.update(self.evaluate("val"), self.step, lambda: snapshot(self.task))

    def _load(self, batches: Sequence[Any]) -> None:
        """Load the micro-batches of the current step."""
        self._runner.load(batches, self.step)
        self.closure = self._runner.closure

    def _log_step(self, lr: float, norm: float, seconds: float) -> None:
        values = {"lr": lr, **self.losses, "grad_norm": norm, "seconds": seconds}
        values["samples_per_second"] = len(self._runner.plan.batch(self.step - 1)) / seconds
        values["peak_memory_mib"] = self.runtime.peak_memory()
        self._log.write(self.stage.name, self.step, self.global_step, values)

    def _stopping(self) -> bool:
        """Tell whether any process was asked to stop: all must agree, or the others would wait for it forever."""
        return self.runtime.any(self._signals.pending)

    def _save(self, *, finished: bool = False) -> None:
        # Every process helps to put divided tensors together; only the first copies and writes them.
        trained = gathered(self.task.trained_state())
        steps = None if finished else self._runner.state_dict()
        if self.is_main:
            position = Position(self.stage_index, self.step, self.global_step, finished, self._log.size)
            loop: dict[str, Any] = {"hooks": collect_states(self.hooks)}
            if not finished:
                loop |= {"steps": steps, "keep": self._keep.state_dict()}
            kept = None if finished else self._keep.state
            self._store.save(Checkpoint(position, copy_to_host(trained), kept, loop), self._identity)
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
        self._runner.load_state_dict(checkpoint.loop["steps"])
        self._keep.load_state_dict(checkpoint.loop["keep"], checkpoint.kept)

    def _call(self, place: str, *arguments: Any) -> None:
        for hook in self.hooks:
            getattr(hook, place)(self, *arguments)
