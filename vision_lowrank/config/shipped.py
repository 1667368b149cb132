"""The recipes that ship with the package, by name: ``fewshot/emoji_lora``, wherever the package is installed.

A recipe is a file of the user's or, where there is none of that name, a shipped one: as ``fewshot/emoji_lora``, as the
path in a checkout, ``configs/fewshot/emoji_lora.yaml``, or as ``emoji_visual_prompt`` where no other task has the name.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError, near_miss
from ..paths import shipped

FOLDER = "configs"
SUFFIX = ".yaml"


def shipped_recipes() -> dict[str, Path]:
    """Return all of them, ``task/recipe`` -> file, sorted; not those that are only bases of others."""
    root = shipped(FOLDER)
    files = sorted(root.glob(f"[!_]*/*{SUFFIX}"))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in files}


def find_recipe(given: str | Path) -> Path:
    """Return the file of a recipe.

    Args:
        given: a file, or the name of a shipped recipe.

    Raises:
        ConfigError: there is none, or several tasks have one of that name.
    """
    path = Path(given)
    if path.is_file():
        return path
    known = shipped_recipes()
    name = path.as_posix().removeprefix(f"{FOLDER}/").removesuffix(SUFFIX)
    fitting = [each for each in known if name in (each, each.rpartition("/")[2])]
    if len(fitting) == 1:
        return known[fitting[0]]
    if fitting:
        raise ConfigError([f"{given}: several shipped recipes are called so: write {' or '.join(fitting)}."])
    siblings = [each.name for each in path.parent.glob(f"*{SUFFIX}")] if path.parent.is_dir() else []
    hint = near_miss(path.name, siblings) or near_miss(name, known)
    raise ConfigError([f"{given}: no such config file.{hint} `vision-lowrank list recipes` shows the shipped ones."])


def describe_recipe(path: Path) -> str:
    """Return the first sentence of the comment that a recipe begins with."""
    words = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words.append(line.removeprefix("#").strip())
    return " ".join(words).partition(". ")[0].removesuffix(".")
