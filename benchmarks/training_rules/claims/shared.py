"""What the claims share: short training runs on emoji, kept on disk, and numbers about what was trained.

Runs lie in ``runs/training_rules_claims``, one folder per config: claims share them, and a finished one is read back.
After a change of the package remove that folder to train anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate

from vision_lowrank.config import RunConfig, load_config, to_yaml
from vision_lowrank.data.loading import TransformedImages
from vision_lowrank.engine.evaluation import eval_mode
from vision_lowrank.engine.hooks import Hook
from vision_lowrank.engine.loop import Engine
from vision_lowrank.engine.progress import Display, say
from vision_lowrank.files import write_text
from vision_lowrank.optim.base import norm
from vision_lowrank.optim.tensors import adapter_tensors
from vision_lowrank.optim.weights import restored
from vision_lowrank.selection.final import adapt_anew
from vision_lowrank.studies.run import build_task

ROOT = Path(__file__).parents[3]
CACHE = ROOT / "runs" / "training_rules_claims"
SETTINGS = ("engine.tensorboard=false", "engine.checkpoint_every=0", "engine.log_every=1", "data.test_styles=[fluent]")
STYLE, RETENTION = "test/fluent/accuracy", ("retention/noto/accuracy", "retention/twemoji/accuracy")
RANDOM, ASCENT, DIRECTIONS = (1.0, 3.0), (0.01, 0.05), 8  # a random direction does little in so many dimensions


class Budget(NamedTuple):
    """How much is trained.

    Attributes:
        steps: of a run, and of a search before it.
        seeds: of what is given with a spread.
    """

    steps: int = 80
    seeds: tuple[int, ...] = (1, 2, 3)

    def config(self, recipe: str, *changes: str) -> RunConfig:
        """Load ``configs/fewshot/emoji_RECIPE.yaml`` at this length, with further changes."""
        path = ROOT / "configs" / "fewshot" / f"emoji_{recipe}.yaml"
        return load_config(path, (*SETTINGS, f"engine.steps={self.steps}", *changes))

    def train(self, seed: int, recipe: str, *changes: str) -> Engine:
        """Train and return the engine, see :func:`train`."""
        return train(self.config(recipe, *changes), seed)


def train(config: RunConfig, seed: int, *, paths: Collection[str] | None = None, hooks: Sequence[Hook] = ()) -> Engine:
    """Train the task of a run, unless it has been trained, and return its engine.

    Args:
        config: the run.
        seed: of the few-shot draw and of training.
        paths: modules, inside the base model, that get the adapter, instead of those that `config` says.
        hooks: their state comes back with a finished run.
    """
    key = to_yaml(config) + json.dumps([sorted(paths or ()), [type(hook).__name__ for hook in hooks]])
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    task = build_task(config, seed)
    if paths:
        section = config.adapter
        task.replace_model(adapt_anew(task.model.backbone, section.config(), paths, towers=section.towers))
    folder = CACHE / digest / f"seed-{seed}"
    engine = Engine(config.engine, task, folder, seed=seed, rule=config.rule, hooks=hooks, identity=digest)
    engine.display = Display(enabled=False)
    parts = (config.adapter, config.initializer, config.rule, config.regularizer, config.selection)
    say(f"  {digest}: {'+'.join(part.type for part in parts if part)}, seed {seed}, {config.engine.steps} steps")
    engine.fit()
    return engine


def accuracies(engine: Engine) -> dict[str, float]:
    """Compute ``accuracy`` on new concepts of the trained style, and ``retention``.

    The latter is the mean over the pretraining's styles.
    """
    metrics = engine.evaluate("test")
    return {"accuracy": metrics[STYLE], "retention": fmean(metrics[name] for name in RETENTION)}


def scores(engine: Engine) -> dict[str, float]:
    """Compute :func:`accuracies` of a trained engine once."""
    path = engine.folder / "scores.json"
    if not path.is_file():
        write_text(path, json.dumps(accuracies(engine)) + "\n")
    return json.loads(path.read_text(encoding="utf-8"))


def untrained(budget: Budget) -> dict[str, float]:
    """Compute :func:`accuracies` of the model before training."""
    path = CACHE / "untrained.json"
    if not path.is_file():
        config = budget.config("lora")
        engine = Engine(config.engine, build_task(config, 1), CACHE / "untrained", seed=1)
        engine.display = Display(enabled=False)
        with engine.task.untrained():
            write_text(path, json.dumps(accuracies(engine)) + "\n")
    return json.loads(path.read_text(encoding="utf-8"))


def logged(engine: Engine, name: str) -> list[float]:
    """Read a value of every training step of the last stage."""
    lines = map(json.loads, (engine.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line[name] for line in lines if line["stage"] == engine.stage.name and "split" not in line]


def training_loss(engine: Engine) -> Callable[[], Tensor]:
    """Return a function that computes the loss on all training pictures at the weights as they then are.

    Pictures are not augmented, and dropout is off.
    """
    task = engine.task
    data = TransformedImages(task.train_images, task.model.backbone.preprocess.evaluation())
    batch = engine.runtime.to_device(default_collate([data[index] for index in range(len(data))]))

    def loss() -> Tensor:
        with eval_mode(task):
            return task.training_step(batch)["loss"]

    return loss


def sharpness(engine: Engine) -> dict[str, float]:
    """Measure how the training loss L rises around the adapter tensors θ, taken as one vector.

    ``random RHO``: mean over directions u, ‖u‖ = 1, of L(θ + rho ‖θ‖ u) - L(θ); ``ascent RHO``: the same for the
    direction of the gradient. For every rho of RANDOM and of ASCENT, beside ``loss`` and ``norm``, ‖θ‖.
    """
    loss, tensors = training_loss(engine), adapter_tensors(engine.task)
    start = loss()
    gradient = torch.autograd.grad(start, tensors)
    generator = torch.Generator().manual_seed(0)
    size, base = float(norm(tensors)), float(start.detach())

    @torch.no_grad()
    def rise(direction: Sequence[Tensor], radius: float) -> float:
        scale = radius * size / float(norm(direction))
        with restored(tensors):
            for tensor, part in zip(tensors, direction, strict=True):
                tensor.add_(part, alpha=scale)
            return float(loss()) - base

    draws = [[torch.randn(t.shape, generator=generator).to(t) for t in tensors] for _ in range(DIRECTIONS)]
    around = {f"random {radius}": fmean(rise(draw, radius) for draw in draws) for radius in RANDOM}
    return {"loss": base, "norm": size} | around | {f"ascent {radius}": rise(gradient, radius) for radius in ASCENT}
