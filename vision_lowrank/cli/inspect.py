"""``vision-lowrank inspect``: what a recipe would train and what it would cost, before anything is trained; or what
training did to the weights of an artefact, see :mod:`.inspect_artefact`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from rich.table import Table

from ..config import load_config
from ..engine.cost import step_cost
from ..engine.loop import Engine
from ..engine.task import count
from ..errors import UserError
from ..studies.run import build_task
from ..targets.coverage import coverage
from .inspect_artefact import inspect_artefact
from .tables import print_table, size


def inspect_command(
    target: Path,
    overrides: list[str],
    top_k: int,
    epsilon: float,
    evaluate: bool,
    out: Path | None,
    json_path: Path | None,
) -> None:
    """A folder is an artefact, a file a recipe.

    Raises:
        UserError: settings for an artefact that is not evaluated, or a page for a recipe.
    """
    if target.is_dir():
        if overrides and not evaluate:
            raise UserError(
                f"{target}: an artefact takes no settings ({overrides[0]}): inspect its recipe instead, "
                "or give --evaluate."
            )
        inspect_artefact(target, top_k, epsilon, out, json_path, overrides if evaluate else None)
        return
    if out or json_path or evaluate:
        raise UserError(f"{target}: --evaluate, --out and --json are for artefact folders: a recipe is printed only.")
    inspect_recipe(target, overrides)


def inspect_recipe(path: Path, overrides: list[str]) -> None:
    """Print the coverage of the adapter, the parameters, and the cost of one step."""
    config = load_config(path, overrides)
    if config.engine.threads:
        torch.set_num_threads(config.engine.threads)
    task = build_task(config, config.seed)
    model = task.model.backbone
    if hasattr(model, "peft_config"):
        print(coverage(model))
    table = Table(show_header=False)
    total = count(task.parameters())
    trainable = count(p for p in task.parameters() if p.requires_grad)
    table.add_row("parameters", f"{total:,}")
    table.add_row("trainable", f"{trainable:,} ({100 * trainable / total:.2f}%)")
    for stage in task.stages():
        with tempfile.TemporaryDirectory() as scratch:
            engine = Engine(config.engine, task, Path(scratch), seed=config.seed, rule=config.rule)
            cost = step_cost(lambda: engine.dry_step(stage))  # noqa: B023 - called at once
        steps = stage.engine.get("steps", config.engine.steps)
        table.add_row(f"stage '{stage.name}'", f"{len(stage.data)} samples, {steps} steps")  # type: ignore[arg-type]
        table.add_row("  one step", f"{cost.seconds:.3f} s, {size(cost.peak_bytes)} of tensors beside the weights")
        table.add_row("  training", f"about {steps * cost.seconds / 60:.1f} min on this machine, without evaluation")
    print_table(table)
