"""What a run's adapter is measured against, trained beside it in ``references/NAME`` of the run's folder.

``references: [zero_shot, linear_probe]`` names them; what they are, the task says
(:meth:`~vision_lowrank.engine.task.Task.references`). Zero-shot classification costs an evaluation at most, a linear
probe about a third of an adapter's training. An adapter that ends below one of them is not worth its cost, and
:func:`warnings_of` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..config import RunConfig, apply_overrides, to_tree, validate
from ..errors import UserError
from ..metrics.names import is_share, sign, told
from .columns import facts_of, headline
from .variants import OTHERS, one_line

Train = Callable[[RunConfig, int, Path], dict[str, Any]]


def reference_config(config: RunConfig, name: str) -> RunConfig:
    """Return the config of a reference of a run.

    Raises:
        UserError: the task does not know it, or it does not fit the rest.
    """
    known = facts_of(config.task.type).references(config)
    if name not in known:
        raise UserError(f"{name}: task {config.task.type} has no such reference: it has {', '.join(known) or 'none'}.")
    bare = to_tree(config) | dict.fromkeys(("adapter", *OTHERS)) | {"rates": [], "references": []}
    return validate(apply_overrides(bare, known[name]))


def run_references(config: RunConfig, folder: Path, train: Train, baselines: Mapping[str, Any]) -> dict[str, Any]:
    """Train what ``config.references`` names; every seed.

    Args:
        config: of the run.
        folder: of the run.
        train: trains one seed in a folder and returns its result, as :func:`.run.run_seed` does.
        baselines: seed -> metrics of the run's model without training, which may be a reference already.

    Returns:
        Name -> ``{"seeds": {seed: metrics}}``, or ``{"left_out": reason}`` where it cannot be had.
    """
    found: dict[str, Any] = {}
    for name in config.references:
        try:
            reference = reference_config(config, name)
            if not reference.engine.steps and reference.task == config.task:
                found[name] = {"seeds": dict(baselines)}
                continue
            place = folder / "references" / name
            results = {str(seed): train(reference, seed, place / f"seed-{seed}") for seed in config.seeds}
            found[name] = {"seeds": {seed: result["metrics"] for seed, result in results.items()}}
        except UserError as error:
            found[name] = {"left_out": one_line(error)}
    return found


def warnings_of(result: Mapping[str, Any]) -> list[str]:
    """Return a sentence for every reference that is better than a run's result, on the first test set."""
    name = headline(result["task"], result["metrics"])
    if name is None:
        return []
    own, unit = result["metrics"][name]["mean"], "%" if is_share(name) else ""
    scale, said = (100 if unit else 1), []
    for reference, found in result.get("references", {}).items():
        value = found.get("metrics", {}).get(name)
        if value and sign(name) * (value["mean"] - own) > 0:
            said.append(
                f"{result['name']} ends below {reference} in {told(name)}: {scale * own:.1f}{unit} against "
                f"{scale * value['mean']:.1f}{unit}. Try engine.lr=auto, more engine.steps or another adapter, or use "
                f"{reference}."
            )
    return said
