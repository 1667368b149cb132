"""What the commands share that run studies: recipes and settings, where jobs run, going on after an interruption."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from rich.table import Table

from ..config.shipped import find_recipe
from ..config.yaml_text import parse_yaml
from ..errors import UserError, near_miss
from ..studies.columns import split_notes
from .tables import print_table

if TYPE_CHECKING:
    from ..studies.launch import Launcher

Number = TypeVar("Number", int, float)
LAUNCHERS = ("local", "submitit")


@dataclass(frozen=True)
class Launch:
    """Where jobs run.

    Attributes:
        name: of the launcher.
        jobs: processes of this machine.
        settings: of the cluster, such as ``timeout_min=60``.
    """

    name: str = "local"
    jobs: int = 1
    settings: Sequence[str] = ()

    def check(self) -> None:
        """Refuse what does not go together, without importing torch.

        Raises:
            UserError: an unknown launcher, or settings that are not for it.
        """
        odd = next((each for each in self.settings if "=" not in each), None)
        if odd is not None:
            raise UserError(f"--cluster {odd}: write KEY=VALUE, such as --cluster timeout_min=60.")
        if self.name not in LAUNCHERS:
            hint = near_miss(self.name, LAUNCHERS)
            raise UserError(f"unknown launcher '{self.name}'.{hint} Known: {', '.join(LAUNCHERS)}.")
        if self.name == "submitit" and self.jobs > 1:
            raise UserError("--jobs is of this machine: on a cluster give --cluster slurm_array_parallelism=N.")
        if self.settings and self.name != "submitit":
            raise UserError(f"--cluster {self.settings[0]}: is for --launcher submitit.")

    def made(self, folder: Path) -> Launcher:
        """Make the launcher, for a study in `folder`.

        Raises:
            UserError: as :meth:`check`, or submitit is not installed or does not know a setting.
        """
        self.check()
        if self.name == "submitit":
            from ..studies.cluster import Submitit  # torch, only now

            pairs = [each.partition("=") for each in self.settings]
            try:
                return Submitit(folder / "submitit", {key: parse_yaml(value) for key, _, value in pairs})
            except ValueError as error:
                raise UserError(f"--cluster {' '.join(self.settings)}: {error}.") from None
        from ..studies.processes import local

        return local(self.jobs)


def split(command: str, given: Sequence[str], seeds: str | None) -> tuple[list[Path], list[str]]:
    """Split recipes from the settings for all of them, which have an equals sign.

    Raises:
        UserError: no recipe, or one that is not there.
    """
    recipes = [find_recipe(each) for each in given if "=" not in each]
    if not recipes:
        raise UserError(f"{command}: name at least one recipe.")
    chosen = [f"seeds={numbers('--seeds', seeds, int)}"] if seeds else []
    return recipes, [*(each for each in given if "=" in each), *chosen]


def resumable(run: Callable[..., dict[str, Any]], study: Any, launch: Launcher) -> dict[str, Any]:
    """Call `run` with a study, its launcher and what says its progress; one that was interrupted says how to go on.

    Raises:
        typer.Exit: with code 130, it was interrupted.
    """
    from ..engine import Interrupted
    from ..engine.progress import say
    from ..studies.launch import Stopped

    try:
        return run(study, launch, say)
    except (Interrupted, Stopped) as stop:
        print(f"{stop} Go on with: {shlex.join(['vision-lowrank', *sys.argv[1:]])}", file=sys.stderr)
        raise typer.Exit(stop.exit_code) from None


def print_results(tables: Iterable[tuple[str, Sequence[str], Sequence[Sequence[str]]]], files: Iterable[Path]) -> None:
    """Print the tables (title, header, lines), and where the files are."""
    for title, header, lines in tables:
        shown = Table(title=f"{title} (shares in percent)")
        for column in header:
            shown.add_column(column, overflow="fold")
        numbers_of, notes = split_notes(lines)
        for line in numbers_of:
            shown.add_row(*line)
        print_table(shown)
        for note in notes:
            print(note)
    for file in files:
        print(file)


def numbers(option: str, text: str | None, kind: type[Number]) -> list[Number]:
    """Parse ``1,2,3`` as a list; nothing given is an empty one.

    Raises:
        UserError: not numbers with commas between, or one is given twice.
    """
    try:
        found = [kind(each) for each in text.split(",")] if text else []
    except ValueError:
        raise UserError(f"{option} {text}: give numbers with commas between, such as {option} 1,2,3.") from None
    twice = next((each for each in found if found.count(each) > 1), None)
    if twice is not None:
        raise UserError(f"{option} {text}: {twice} is given twice, and would give the same again: give each once.")
    return found
