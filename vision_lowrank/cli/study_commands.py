"""The commands that run studies, and their options; each does its work in a module of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .door import output
from .output import lasting_output

Jobs = Annotated[int, typer.Option(min=1, help="run this many jobs at a time, in processes of this machine")]
Launcher = Annotated[str, typer.Option(help="local, or submitit: every job as one of a cluster's")]
Cluster = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(help="KEY=VALUE for submitit, such as timeout_min=60 or slurm_partition=gpu; may be repeated"),
]


def compare(
    given: Annotated[
        list[str],
        typer.Argument(help="recipes of one task; KEY=VALUE changes them all", metavar="RECIPE... [KEY=VALUE]..."),
    ],
    methods: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="exchange the recipe's adapter: adapters, adapter+initialiser, and what they are measured against "
            "(none, zero_shot, linear_probe, full), with commas between; or all"
        ),
    ] = None,
    initializers: Annotated[
        str, typer.Option(help="to combine with each method: names, none among them, or all")
    ] = "none",
    budget: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="of methods: rank (the recipe's for all, if not given), parameters (equal), or defaults"),
    ] = None,
    vary: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="a setting of the recipe and its values, such as adapter.r=2,4,8; may be repeated"),
    ] = None,
    seeds: Annotated[Optional[str], typer.Option(help="such as 1,2,3; the recipes' if not given")] = None,  # noqa: UP045
    shots: Annotated[Optional[str], typer.Option(help="such as 1,2,4,8,16; the recipes' if not given")] = None,  # noqa: UP045
    data: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="data sets with commas between, or coop for its eleven; the recipes' if not given"),
    ] = None,
    data_root: Annotated[Optional[str], typer.Option(help="folder that holds the data sets of CoOp")] = None,  # noqa: UP045
    protocol: Annotated[str, typer.Option(help="all, base_to_novel or transfer")] = "all",
    lr: Annotated[Optional[str], typer.Option(help="learning rates to choose from on validation data")] = None,  # noqa: UP045
    out: Annotated[Optional[Path], output(help="folder; runs/compare-RECIPE[-BUDGET] if not given")] = None,  # noqa: UP045
    jobs: Jobs = 1,
    launcher: Launcher = "local",
    cluster: Cluster = None,
) -> None:
    """Run recipes of one task side by side, or one recipe with other methods or settings, on the same data and splits.

    Writes tables by the task's own metrics, plots and report.html; call again to go on. With --shots, --data or
    --protocol it runs a grid and writes the tables that papers print.
    """
    from .compare import Wanted, compare_command
    from .sweeps import Launch

    wanted = Wanted(methods, initializers, budget, vary or [], lr)  # type: ignore[arg-type]
    grid = (shots, data, data_root, protocol)
    with lasting_output():
        compare_command(given, wanted, seeds, out, *grid, Launch(launcher, jobs, cluster or []))  # type: ignore[arg-type]


def incremental(
    recipes: Annotated[list[str], typer.Argument(help="class-incremental recipes; KEY=VALUE changes them all")],
    seeds: Annotated[Optional[str], typer.Option(help="such as 1,2,3; the recipes' if not given")] = None,  # noqa: UP045
    lr: Annotated[Optional[str], typer.Option(help="learning rates to choose from on validation data")] = None,  # noqa: UP045
    out: Annotated[Optional[Path], output(help="folder; runs/incremental-NAME if not given")] = None,  # noqa: UP045
    jobs: Jobs = 1,
    launcher: Launcher = "local",
    cluster: Cluster = None,
) -> None:
    """Compare class-incremental recipes on the same sessions: the same as compare, for this task. Call again to go on.

    Writes tables, the accuracy after every session as a plot, and report.html.
    """
    from .incremental import incremental_command
    from .sweeps import Launch

    with lasting_output():
        incremental_command(recipes, seeds, lr, out, Launch(launcher, jobs, cluster or []))
