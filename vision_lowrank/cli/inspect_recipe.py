"""``vision-lowrank inspect RECIPE``: what a recipe would train and what it would cost, before anything is trained."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from rich.table import Table

from ..backbones.adapted import adapted, backbone_of
from ..backbones.weights import NEVER_TRAINED, RANDOM
from ..config import load_config
from ..engine.cost import step_cost
from ..engine.loop import Engine
from ..engine.task import count
from ..studies.run import build_task
from ..targets.coverage import coverage
from .tables import print_table, size


def inspect_recipe(path: Path, overrides: list[str]) -> None:
    """Print the data, the coverage of the adapter, the parameters, and every stage with the cost of one step."""
    config = load_config(path, overrides)
    if config.engine.threads:
        torch.set_num_threads(config.engine.threads)
    task = build_task(config, config.seed)
    for line in task.data_summary():
        print(line)
    model = task.model.backbone
    if adapted(model):
        print(coverage(model))
    table = Table(show_header=False)
    if backbone_of(model).weights == RANDOM:
        table.add_row("base", NEVER_TRAINED)
    total = count(task.parameters())
    trainable = count(p for p in task.parameters() if p.requires_grad)
    table.add_row("parameters", f"{total:,}")
    table.add_row("trainable", f"{trainable:,} ({100 * trainable / total:.2f}%)")
    stages = task.stages()
    for stage in stages:
        steps = stage.engine.get("steps", config.engine.steps)
        table.add_row(f"stage '{stage.name}'", f"{len(stage.data)} samples, {steps} steps")  # type: ignore[arg-type]
        if not steps:
            table.add_row("  training", "nothing: it only looks at pictures")
            continue
        with tempfile.TemporaryDirectory() as scratch:
            engine = Engine(config.engine, task, Path(scratch), seed=config.seed, rule=config.rule)
            cost = step_cost(lambda: engine.dry_step(stage))  # noqa: B023 - called at once
        table.add_row("  one step", f"{cost.seconds:.3f} s, {size(cost.peak_bytes)} of tensors beside the weights")
        table.add_row("  training", f"about {steps * cost.seconds / 60:.1f} min on this machine, without evaluation")
    if not stages:
        table.add_row("stages", "none: nothing trains")
    print_table(table)
