"""``vision-lowrank list``: what is registered."""

from __future__ import annotations

from rich.table import Table

from ..registry import registry
from .tables import print_table


def list_command(kind: str | None) -> None:
    """Print the registered parts of one kind, or of all."""
    table = Table()
    for column in ("kind", "name", "what it does", "paper"):
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for part in registry.list(kind):
        table.add_row(part.kind, part.name, part.summary, part.paper)
    print_table(table)
