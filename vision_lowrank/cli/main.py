"""The commands and their options. Each does its work in a module of its own, imported only when it runs, so ``--help``
answers without importing torch.

Exit codes: 0 done, 2 a mistake in what was given (one line says which; ``scan`` has 1 for it), 130 interrupted (and how
to go on).
"""

from __future__ import annotations

import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperCommand

from ..registry import PACKAGES
from ..version import __version__
from .door import exit_code, expanded, output, target_path
from .output import flush_output, lasting_output, open_standard_streams
from .stopping import Commands, terminable
from .study_commands import compare, incremental
from .video_commands import results, track

app = typer.Typer(
    cls=Commands,
    help="Adapt pretrained vision models with low-rank methods, and use what came out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

data = typer.Typer(help="Data sets on disk.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data, name="data")
app.add_typer(results, name="results")

Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer evaluates this on Python 3.10 too
    typer.Argument(help="settings to change, such as adapter.r=4 engine.steps=200", show_default=False),
]
Trust = Annotated[
    bool, typer.Option("--trust", help="let the artefact choose what is opened and how large its base is")
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
        Path | None, typer.Argument(help="a recipe: a file, or a shipped one such as fewshot/emoji_block_lora")
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[Optional[Path], typer.Option(help="go on with this run folder, exactly where it stopped")] = None,  # noqa: UP045
) -> None:
    """Train and evaluate a recipe; writes runs/NAME with metrics, artefacts and report.html."""
    from .train import train_command

    with lasting_output():
        train_command(config, overrides or [], resume)


@app.command("eval")
def evaluate(
    target: Annotated[Path, typer.Argument(help="an artefact folder, or a recipe (then untrained)")],
    overrides: Overrides = None,
    json: Annotated[Optional[Path], output(help="also write the metrics to this file")] = None,  # noqa: UP045
    trust: Trust = False,
) -> None:
    """Evaluate an artefact on its own test sets, or on other data given as data.… overrides."""
    from .evaluate import evaluate_command

    evaluate_command(target, overrides or [], json, trust)


@app.command()
def predict(
    artefact: Artefact,
    images: Annotated[list[Path], typer.Argument(help="pictures, folders or globs")],
    json: Annotated[Optional[Path], output(help="write the predictions to this JSON file")] = None,  # noqa: UP045
    csv: Annotated[Optional[Path], output(help="write the predictions to this CSV file")] = None,  # noqa: UP045
    top: Annotated[Optional[int], typer.Option(min=1, help="classes to report per picture; 3 if not given")] = None,  # noqa: UP045
    batch_size: Annotated[int, typer.Option(min=1, help="pictures per batch")] = 64,
    skip_broken: Annotated[bool, typer.Option(help="skip files that are not readable pictures")] = False,
    trust: Trust = False,
) -> None:
    """Say what a saved model sees in pictures: classes, or whether and where they were edited."""
    from .predict import predict_command

    options = {} if top is None else {"top": top}  # what only some models know
    predict_command(artefact, images, json, csv, options, batch_size, skip_broken, trust)


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
    json: Annotated[Optional[Path], output(help="also write the numbers to this file")] = None,  # noqa: UP045
    dry_run: Annotated[bool, typer.Option("--dry-run", help="report, and leave the artefact as it is")] = False,
    trust: Trust = False,
) -> None:
    """Add classes to a saved artefact from a handful of pictures, and say what changed on its old classes."""
    from .add_classes import add_classes_command

    add_classes_command(artefact, folder, undo, min_pictures, batch_size, json, dry_run, trust)


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
    out: Annotated[Optional[Path], output(help="artefact: the page; ARTEFACT/inspect.html if not given")] = None,  # noqa: UP045
    json: Annotated[Optional[Path], output(help="artefact: also write the numbers to this file")] = None,  # noqa: UP045
    trust: Trust = False,
) -> None:
    """Show what a recipe would train and cost, or what training did to the weights of an artefact.

    With --evaluate also to what the model can do, on the data of the artefact's run, or where data.… overrides say.
    """
    from .inspect import inspect_command

    inspect_command(target, overrides or [], top_k, epsilon, evaluate, out, json, trust)


@app.command()
def export(
    artefact: Artefact,
    out: Annotated[Path, target_path(help="folder or file to write")],
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
    trust: Trust = False,
) -> None:
    """Write an artefact's adapter as a plain LoRA or merged into the base weights, or the classifier as ONNX."""
    from .export import export_command

    export_command(artefact, out, format, rank, tolerance, fuse_qkv, trust)


app.command()(compare)
app.command()(incremental)
app.command()(track)


class _ScanCommand(TyperCommand):
    """Mistakes in the options end with 1: 2 says that something was found."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        try:
            context = super().make_context(*arguments, **options)
            if not (context.params["paths"] or context.params["listed"]):
                context.fail("name pictures or folders, or give --list FILE.")
            return context
        except Exception as error:  # click's UsageError; newer versions of typer have a click of their own
            if getattr(error, "exit_code", None) == 2:
                error.exit_code = 1  # type: ignore[attr-defined]
            raise


@app.command(cls=_ScanCommand)
def scan(
    paths: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Argument(help="pictures and folders; every input yields a row", show_default=False),
    ] = None,
    model: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="artefact folder of a model that finds edits; the shipped one if not given"),
    ] = None,
    out: Annotated[Path, output(help="folder for the results; heat maps mirror the input tree in it")] = Path(
        "scan-results"
    ),
    recursive: Annotated[bool, typer.Option("--recursive", help="look into sub-folders too")] = False,
    batch: Annotated[int, typer.Option(min=1, help="most pictures the model looks at together")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps")] = "auto",
    threshold: Annotated[
        str, typer.Option(help="auto: the model's own; a probability such as 0.5; a false-positive rate: fpr=0.01")
    ] = "auto",
    overlay: Annotated[bool, typer.Option("--overlay", help="write pictures under their heat maps and boxes")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="let the model's language part explain; slow")] = False,
    json: Annotated[bool, typer.Option("--json", help="write results.json; all three if none is asked for")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="write results.csv")] = False,
    html: Annotated[bool, typer.Option("--html", help="write report.html, one self-contained page")] = False,
    npy: Annotated[bool, typer.Option("--npy", help="write heat maps as float32 too")] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="take over what results.jsonl has for the same pictures; options as before"),
    ] = False,
    fail_on: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="edited, or uncertain (which includes edited): exit with code 2 if one is found"),
    ] = None,
    trust: Trust = False,
    listed: Annotated[Optional[Path], typer.Option("--list", help="also what this file names, a path a line")] = None,  # noqa: UP045
) -> None:
    """Look for edits in pictures: verdict, likelihood under the model, regions, heat map and signs of each.

    Exit codes: 0 done; 1 something given is wrong, or a file gave no answer and --fail-on was asked for, or none gave
    one; 2 --fail-on found something; 130 interrupted. A file that cannot be read is a row with its error.
    """
    from .scan import scan_command

    written = (json, csv, html, npy)
    with exit_code(1):  # 2 says that something was found
        scan_command(
            paths or [],
            model,
            out,
            recursive,
            batch,
            device,
            threshold,
            overlay,
            explain,
            *written,
            resume,
            fail_on,
            trust,
            listed,
        )


@app.command("make-edits")
def make_edits(
    photos: Annotated[str, typer.Argument(help="folder of photographs, or builtin for scikit-image's")],
    out: Annotated[Path, target_path(help="folder for the data set; call again to go on")],
    per_photo: Annotated[int, typer.Option(min=1, help="edits per real picture")] = 4,
    kinds: Annotated[Optional[str], typer.Option(help="kinds of edit with commas between; all if not given")] = None,  # noqa: UP045
    exclude: Annotated[Optional[str], typer.Option(help="kinds to leave out")] = None,  # noqa: UP045
    unseen: Annotated[Optional[str], typer.Option(help="kinds for the test pictures only")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option(min=0, help="of everything drawn")] = 1,
    size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=64, help="side of the squares (192), or longest side of whole photographs (512)"),
    ] = None,
    crops: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="squares per photograph, 0 = whole ones; 16 for builtin, else 0"),
    ] = None,
    objects: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="folder of PNGs with transparency to paste; emoji if not given"),
    ] = None,
    fractions: Annotated[str, typer.Option(help="shares of the photographs in train, val and test")] = "0.7,0.1,0.2",
    check: Annotated[
        bool, typer.Option("--check", help="see whether file formats and sizes alone give edits away")
    ] = False,
) -> None:
    """Make edited photographs with exact masks, boxes, signs and explanations, split by photograph."""
    from .make_edits import make_edits_command

    make_edits_command(photos, out, per_photo, kinds, exclude, unseen, seed, size, crops, objects, fractions, check)


@app.command("list")
def list_parts(kind: Annotated[Optional[str], typer.Argument(help=", ".join([*PACKAGES, "recipes"]))] = None) -> None:  # noqa: UP045
    """List what can be named in a recipe: adapters, data sets, tasks and all other kinds of parts; or all recipes."""
    from .listing import list_command

    list_command(kind)


@data.command("check")
def check_data(
    root: Annotated[
        Path, typer.Argument(help="folder that holds the data sets' folders, CoOp's $DATA; one's own root")
    ],
    names: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            help="such as dtd eurosat imagenet, all of CoOp's if not given; or one that gives clips and options of it, "
            "lasot split=train",
            show_default=False,
        ),
    ] = None,
    json: Annotated[Optional[Path], output(help="also write what was found to this file")] = None,  # noqa: UP045
    download: Annotated[bool, typer.Option("--download", help="let torchvision download what it can first")] = False,
) -> None:
    """Say which few-shot data sets, or sets of clips, are complete, and what is missing; exit code 2 unless all are."""
    from .data import data_check_command

    if not data_check_command(root, names or [], json, download):
        raise typer.Exit(2)


@data.command("validate")
def validate_data(
    path: Annotated[Path, typer.Argument(help="FILE.jsonl in ManipBench's schema, or a folder of such files")],
    json: Annotated[Optional[Path], output(help="also write what was found to this file")] = None,  # noqa: UP045
    pictures: Annotated[bool, typer.Option(help="open pictures and masks too")] = True,
) -> None:
    """Check a data set of edited pictures: all problems in one pass; exit code 2 if there are any."""
    from .manipulation_data import validate_command

    if not validate_command(path, json, pictures):
        raise typer.Exit(2)


@data.command("convert")
def convert_data(
    form: Annotated[str, typer.Argument(help="imdl-json, imdl-folder, sid-set, folders, coco or magicbrush")],
    source: Annotated[Path, typer.Argument(help="data set to read")],
    target: Annotated[Path, target_path(help="data set to write; FILE.jsonl for ManipBench's schema")],
    derive: Annotated[bool, typer.Option("--derive", help="also boxes from masks, and masks from pairs")] = False,
) -> None:
    """Convert a data set of edited pictures to ManipBench's schema, or from it."""
    from .manipulation_data import convert_command

    convert_command(form, source, target, derive)


@app.command()
def new(
    kind: Annotated[str, typer.Argument(help="recipe: a config for your own pictures; adapter: a method of your own")],
    name: Annotated[str, typer.Argument(help="its name, snake case")],
    out: Annotated[Path, typer.Option(help="folder to write into")] = Path("."),
    task: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="recipe: fewshot, incremental or manipulation; fewshot if not given"),
    ] = None,
    backbone: Annotated[Optional[str], typer.Option(help="recipe: such as timm:NAME, or tiny-clip to try it")] = None,  # noqa: UP045
    shots: Annotated[Optional[int], typer.Option(min=1, help="recipe: pictures per class; all if not given")] = None,  # noqa: UP045
    data: Annotated[Optional[str], typer.Option(help="recipe: folder of pictures; my_pictures if not given")] = None,  # noqa: UP045
) -> None:
    """Start a recipe or a method of your own, outside the package."""
    from .new import new_command

    new_command(kind, name, out, task, backbone, shots, data)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; user mistakes become one line each on stderr and exit code 2."""
    open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a locale without ± prints ?, and ends nothing
    try:
        with terminable(), exit_code(2):
            try:
                app([expanded(each) for each in (sys.argv[1:] if arguments is None else arguments)])
            finally:
                flush_output()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        sys.stderr.close()
