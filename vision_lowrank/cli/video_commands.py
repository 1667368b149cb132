"""The commands on videos, and their options; each does its work in a module of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .door import output
from .output import lasting_output


def track(
    source: Annotated[str, typer.Argument(help="video file, folder or glob of frames, or the number of a camera")],
    box: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="a target in the first frame: left,top,width,height in pixels; may be repeated"),
    ] = None,
    boxes: Annotated[Optional[Path], typer.Option(help="a file of targets, a box a line")] = None,  # noqa: UP045
    fmt: Annotated[str, typer.Option(help="what the numbers of a box are: xywh, xyxy or cxcywh")] = "xywh",
    model: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="artefact folder of a tracker; the shipped one if not given"),
    ] = None,
    out: Annotated[Optional[Path], output(help="folder for the results; track-NAME if not given")] = None,  # noqa: UP045
    text: Annotated[
        str, typer.Option(help="form of the text files: got10k, trackingnet, pytracking, lasot or got10k-toolkit")
    ] = "pytracking",
    save_video: Annotated[bool, typer.Option("--save-video", help="write track.mp4, which browsers play")] = False,
    show: Annotated[
        bool, typer.Option("--show", help="open a window: q stops; without a box, draw one with the mouse")
    ] = False,
    hide_below: Annotated[float, typer.Option(min=0, max=1, help="draw no box of a lower score")] = 0.0,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with what track.jsonl has; options as before")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps")] = "auto",
    trust: Annotated[
        bool, typer.Option("--trust", help="let the artefact choose what is opened and how large its base is")
    ] = False,
) -> None:
    """Follow one target, or several, through a video: boxes, scores, a page, and the video with boxes drawn.

    Exit codes: 0 done, 2 something given is wrong, 130 interrupted; what was done until then is written.
    """
    from .track import TrackOptions, track_command

    given = (box or [], boxes, fmt, model, out, text, save_video, show, hide_below, resume, device, trust)
    with lasting_output():
        track_command(source, TrackOptions(*given))


results = typer.Typer(
    help="A tracker on a benchmark: result files, their scores, archives for servers.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Words = Annotated[
    list[str], typer.Argument(help="a data set and options of it, such as lasot root=datasets/lasot", metavar="DATA...")
]
Folder = Annotated[Path, typer.Option("--out", help="folder of the result files")]
Form = Annotated[str, typer.Option(help="got10k, trackingnet, pytracking, lasot or got10k-toolkit")]


@results.command("run")
def run_benchmark(
    words: Words,
    out: Folder,
    model: Annotated[Optional[Path], typer.Option(help="artefact of a tracker; the shipped one if not given")] = None,  # noqa: UP045
    form: Form = "pytracking",
    repeats: Annotated[int, typer.Option(min=1, max=99, help="runs of every clip")] = 1,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="share the clips among this many processes")] = 1,
    part: Annotated[str, typer.Option(help="only a share of the clips: r/n; torchrun's if not given")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps")] = "auto",
) -> None:
    """Track every clip of a data set once, without help, and write result files; call again to go on."""
    from .results import run_command

    with lasting_output():
        run_command(words, out, model, form, repeats, jobs, part, device)


@results.command("score")
def score_results(
    words: Words,
    out: Folder,
    form: Form = "pytracking",
    convention: Annotated[
        str, typer.Option(help="pytracking-all, pytracking, lasot, got10k or trackingnet")
    ] = "pytracking-all",
    json: Annotated[Optional[Path], typer.Option(help="write scores and curves of every clip there")] = None,  # noqa: UP045
    per_clip: Annotated[bool, typer.Option("--per-clip", help="a row for every clip")] = False,
) -> None:
    """Score result files, your own or anybody's, under a named convention."""
    from .results import score_command

    score_command(words, out, form, convention, json, per_clip)


@results.command("pack")
def pack_results(
    words: Words,
    out: Folder,
    server: Annotated[str, typer.Option(help="got10k or trackingnet")],
    target: Annotated[Optional[Path], typer.Option("--zip", help="write the archive there; only check without")] = None,  # noqa: UP045
) -> None:
    """Check result files for an evaluation server, and pack them."""
    from .results import pack_command

    pack_command(words, out, server, target)
