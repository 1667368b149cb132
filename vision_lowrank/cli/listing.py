"""``vision-lowrank list``: what is registered, and the recipes that ship."""

from __future__ import annotations

from rich.table import Table

from ..config.shipped import describe_recipe, shipped_recipes
from ..errors import UserError, near_miss
from ..registry import PACKAGES, registry
from .tables import print_table

RECIPES = "recipes"


def list_command(kind: str | None) -> None:
    """Print the registered parts of one kind, or of all; or the shipped recipes, for ``recipes``.

    Raises:
        UserError: an unknown kind.
    """
    table = Table()
    kinds = (*PACKAGES, RECIPES)
    if kind is not None and kind not in kinds:
        raise UserError(f"unknown kind '{kind}'.{near_miss(kind, kinds)} Known: {', '.join(kinds)}.")
    if kind == RECIPES:
        table.add_column("recipe", no_wrap=True)
        table.add_column("what it does")
        for name, path in shipped_recipes().items():
            table.add_row(name, describe_recipe(path))
        print_table(table)
        return
    for column in ("kind", "name", "what it does", "paper"):
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for part in registry.list(kind):
        table.add_row(part.kind, part.name, part.summary, part.paper)
    print_table(table)
