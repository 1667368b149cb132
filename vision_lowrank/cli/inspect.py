"""``vision-lowrank inspect``: what a recipe would train and cost (:mod:`.inspect_recipe`), or what training did to the
weights of an artefact (:mod:`.inspect_artefact`).
"""

from __future__ import annotations

from pathlib import Path

from ..config import check_recipe
from ..errors import UserError
from ..tasks.about import read_about
from .checks import check_recorded


def inspect_command(
    target: Path,
    overrides: list[str],
    top_k: int,
    epsilon: float,
    evaluate: bool,
    out: Path | None,
    json_path: Path | None,
    trust: bool = False,
) -> None:
    """Inspect `target`: a folder is an artefact, a file a recipe.

    Raises:
        UserError: settings for an artefact that is not evaluated, or a page for a recipe.
    """
    if target.is_dir():
        if overrides and not evaluate:
            raise UserError(
                f"{target}: an artefact takes no settings ({overrides[0]}): inspect its recipe instead, "
                "or give --evaluate."
            )
        if evaluate:
            check_recorded(target, overrides)
        read_about(target)
        from .inspect_artefact import inspect_artefact  # torch, only now

        inspect_artefact(target, top_k, epsilon, out, json_path, overrides if evaluate else None, trust)
        return
    if out or json_path or evaluate:
        raise UserError(f"{target}: --evaluate, --out and --json are for artefact folders: a recipe is printed only.")
    check_recipe(target, overrides)
    from .inspect_recipe import inspect_recipe  # torch, only now

    inspect_recipe(target, overrides)
