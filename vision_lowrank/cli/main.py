"""The commands and their options. Each does its work in a module of its own, imported only when it runs, so ``--help``
answers without importing torch.

Exit codes: 0 done, 2 a mistake in what was given (one line says which), 130 interrupted (and how to go on).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..errors import UserError
from ..version import __version__

app = typer.Typer(
    help="Adapt pretrained vision models with low-rank methods, and use what came out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

data = typer.Typer(help="Data sets on disk.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data, name="data")

Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer evaluates this on Python 3.10 too
    typer.Argument(help="settings to change, such as adapter.r=4 engine.steps=200", show_default=False),
]
Artefact = Annotated[Path, typer.Argument(help="artefact folder, such as runs/NAME/seed-1/artefact")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    """Adapt pretrained vision models with low-rank methods, and use what came out."""
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def train(
    config: Annotated[
        Path | None, typer.Argument(help="a recipe, such as configs/fewshot/emoji_block_lora.yaml")
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[Optional[Path], typer.Option(help="go on with this run folder, exactly where it stopped")] = None,  # noqa: UP045
) -> None:
    """Train and evaluate a recipe; writes runs/NAME with metrics, artefacts and report.html."""
    from .train import train_command

    train_command(config, overrides or [], resume)


@app.command("eval")
def evaluate(
    target: Annotated[Path, typer.Argument(help="an artefact folder, or a recipe (then untrained)")],
    overrides: Overrides = None,
    json: Annotated[Optional[Path], typer.Option(help="also write the metrics to this file")] = None,  # noqa: UP045
) -> None:
    """Evaluate an artefact on its own test sets, or on other data given as data.… overrides."""
    from .evaluate import evaluate_command

    evaluate_command(target, overrides or [], json)


@app.command()
def predict(
    artefact: Artefact,
    images: Annotated[list[str], typer.Argument(help="pictures, folders or globs")],
    json: Annotated[Optional[Path], typer.Option(help="write the predictions to this JSON file")] = None,  # noqa: UP045
    csv: Annotated[Optional[Path], typer.Option(help="write the predictions to this CSV file")] = None,  # noqa: UP045
    top: Annotated[int, typer.Option(min=1, help="classes to report per picture")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="pictures per batch")] = 64,
    skip_broken: Annotated[bool, typer.Option(help="skip files that are not readable pictures")] = False,
) -> None:
    """Classify pictures with a saved artefact."""
    from .predict import predict_command

    predict_command(artefact, images, json, csv, top, batch_size, skip_broken)


@app.command("add-classes")
def add_classes(
    artefact: Artefact,
    folder: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(help="one folder of pictures per new class", show_default=False),
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="take the last addition back")] = False,
    min_pictures: Annotated[int, typer.Option(min=1, help="refuse new classes with fewer pictures")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="pictures per batch")] = 64,
    json: Annotated[Optional[Path], typer.Option(help="also write the numbers to this file")] = None,  # noqa: UP045
    dry_run: Annotated[bool, typer.Option("--dry-run", help="report, and leave the artefact as it is")] = False,
) -> None:
    """Add classes to a saved artefact from a handful of pictures, and say what changed on its old classes."""
    from .add_classes import add_classes_command

    add_classes_command(artefact, folder, undo, min_pictures, batch_size, json, dry_run)


@app.command()
def inspect(
    target: Annotated[Path, typer.Argument(help="a recipe, or an artefact folder")],
    overrides: Overrides = None,
    top_k: Annotated[int, typer.Option(min=1, help="artefact: leading singular vectors per layer")] = 10,
    epsilon: Annotated[
        float, typer.Option(min=0, max=1, help="artefact: similarity below which a vector is an intruder")
    ] = 0.5,
    evaluate: Annotated[
        bool,
        typer.Option(
            "--evaluate", help="artefact: also what it forgot, its intruders scaled down, and how features separate"
        ),
    ] = False,
    out: Annotated[Optional[Path], typer.Option(help="artefact: the page; ARTEFACT/inspect.html if not given")] = None,  # noqa: UP045
    json: Annotated[Optional[Path], typer.Option(help="artefact: also write the numbers to this file")] = None,  # noqa: UP045
) -> None:
    """Show what a recipe would train and cost, or what training did to the weights of an artefact.

    With --evaluate also to what the model can do, on the data of the artefact's run, or where data.… overrides say.
    """
    from .inspect import inspect_command

    inspect_command(target, overrides or [], top_k, epsilon, evaluate, out, json)


@app.command()
def export(
    artefact: Artefact,
    out: Annotated[Path, typer.Argument(help="folder or file to write")],
    format: Annotated[
        str,
        typer.Option(
            help="lora: plain PEFT LoRA; diffusers, kohya: LoRA files; merged: base weights with the adapter in; onnx"
        ),
    ] = "lora",
    rank: Annotated[Optional[int], typer.Option(min=1, help="rank of layers without an exact LoRA form")] = None,  # noqa: UP045
    tolerance: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0, help="largest relative error of a layer; 0.01 without --rank"),
    ] = None,
    fuse_qkv: Annotated[bool, typer.Option("--fuse-qkv", help="q, k and v as one layer, as timm has them")] = False,
) -> None:
    """Write an artefact's adapter as a plain LoRA or merged into the base weights, or the classifier as ONNX."""
    from .export import export_command

    export_command(artefact, out, format, rank, tolerance, fuse_qkv)


@app.command()
def compare(
    config: Annotated[Path, typer.Argument(help="a few-shot recipe with an adapter")],
    overrides: Overrides = None,
    methods: Annotated[str, typer.Option(help="adapters, or adapter+initialiser, with commas between; or all")] = "all",
    initializers: Annotated[
        str, typer.Option(help="to combine with each method: names, none among them, or all")
    ] = "none",
    budget: Annotated[
        str, typer.Option(help="defaults, rank (the recipe's for all) or parameters (equal)")
    ] = "defaults",
    seeds: Annotated[Optional[str], typer.Option(help="such as 1,2,3; the recipe's if not given")] = None,  # noqa: UP045
    shots: Annotated[Optional[str], typer.Option(help="such as 1,2,4,8,16; the recipe's if not given")] = None,  # noqa: UP045
    data: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="data sets with commas between, or coop for its eleven; the recipe's if not given"),
    ] = None,
    data_root: Annotated[Optional[str], typer.Option(help="folder that holds the data sets of CoOp")] = None,  # noqa: UP045
    protocol: Annotated[str, typer.Option(help="fewshot, base_to_novel or transfer")] = "fewshot",
    lr: Annotated[Optional[str], typer.Option(help="learning rates to choose from on validation pictures")] = None,  # noqa: UP045
    out: Annotated[Optional[Path], typer.Option(help="folder; runs/compare-RECIPE[-BUDGET] if not given")] = None,  # noqa: UP045
) -> None:
    """Run several methods on the same data and splits; writes a table and a Pareto plot. Call again to go on.

    With --shots, --data or --protocol it runs a grid and writes the tables that papers print.
    """
    from .compare import compare_command

    grid = (shots, data, data_root, protocol)
    compare_command(config, overrides or [], methods, initializers, budget, seeds, lr, out, *grid)


@app.command()
def incremental(
    recipes: Annotated[list[str], typer.Argument(help="class-incremental recipes; KEY=VALUE changes them all")],
    seeds: Annotated[Optional[str], typer.Option(help="such as 1,2,3; the recipes' if not given")] = None,  # noqa: UP045
    lr: Annotated[Optional[str], typer.Option(help="learning rates to choose from on validation pictures")] = None,  # noqa: UP045
    out: Annotated[Optional[Path], typer.Option(help="folder; runs/incremental-NAME if not given")] = None,  # noqa: UP045
) -> None:
    """Run several class-incremental methods, a recipe each, on the same sessions. Call again to go on.

    Writes tables, the accuracy after every session as a plot, and report.html.
    """
    from .incremental import incremental_command

    incremental_command(recipes, seeds, lr, out)


@app.command("list")
def list_parts(kind: Annotated[Optional[str], typer.Argument(help="adapter, backbone, data or task")] = None) -> None:  # noqa: UP045
    """List the registered adapters, backbones, data sets and tasks."""
    from .listing import list_command

    list_command(kind)


@data.command("check")
def check_data(
    root: Annotated[Path, typer.Argument(help="folder that holds the data sets' folders, CoOp's $DATA")],
    names: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="such as dtd eurosat imagenet; all if not given", show_default=False),
    ] = None,
    json: Annotated[Optional[Path], typer.Option(help="also write what was found to this file")] = None,  # noqa: UP045
    download: Annotated[bool, typer.Option("--download", help="let torchvision download what it can first")] = False,
) -> None:
    """Say which of the few-shot data sets are complete, and what is missing; exit code 2 unless all are."""
    from .data import data_check_command

    if not data_check_command(root, names or [], json, download):
        raise typer.Exit(2)


@app.command()
def new(
    kind: Annotated[str, typer.Argument(help="recipe: a config for your own pictures; adapter: a method of your own")],
    name: Annotated[str, typer.Argument(help="its name, snake case")],
    out: Annotated[Path, typer.Option(help="folder to write into")] = Path("."),
) -> None:
    """Start a recipe or a method of your own, outside the package."""
    from .new import new_command

    new_command(kind, name, out)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; user mistakes become one line each on stderr and exit code 2."""
    try:
        app(arguments)
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        sys.stderr.close()
