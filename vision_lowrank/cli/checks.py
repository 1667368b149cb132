"""What commands say of an artefact before they import torch; ``check_recipe`` of the config package is for recipes."""

from __future__ import annotations

from pathlib import Path

from ..config import Recipe, RunConfig, apply_overrides, check_paths, check_settings, validate
from ..errors import UserError
from ..tasks.about import read_about


def check_recorded(folder: Path, overrides: list[str]) -> None:
    """Refuse an artefact without a run, settings that are wrong, and data that is not where they say.

    Raises:
        UserError: as :func:`recorded_recipe`; or every problem found, one line each.
    """
    recipe = recorded_recipe(folder, overrides)
    remedy = " Where it was trained it was there: give {key}=… for where it is now."
    check_paths(check_settings(*recipe), recipe.origins, recipe.source, remedy)


def recorded_config(folder: Path, overrides: list[str]) -> RunConfig:
    """Load the config of the run that wrote an artefact, with other settings where given; its parts are imported.

    Raises:
        UserError: the artefact was not saved by a run, or a setting is wrong.
    """
    return validate(*recorded_recipe(folder, overrides))


def recorded_recipe(folder: Path, overrides: list[str]) -> Recipe:
    """Read the settings of the run that wrote an artefact, with other ones, such as ``data.root=…``, where given.

    Raises:
        UserError: the artefact was not saved by a run, or an override is malformed.
    """
    tree = read_about(folder).get("record", {}).get("config")
    if tree is None:
        raise UserError(f"{folder}: does not say which data it belongs to: evaluate an artefact that `train` wrote.")
    return Recipe(apply_overrides(tree, overrides), {}, str(folder / "artefact.json"))
