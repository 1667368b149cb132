"""How long commands take to answer, against what importing the libraries takes.

    python benchmarks/startup/run.py                     # about ten minutes on two cores
    python benchmarks/startup/run.py --rounds 1 --artefact runs/NAME/seed-1/artefact

Every side is a process of its own, from its start to its end; all sides take turns, and the first turn of all, which
brings the files into memory, does not count. Ratios are medians over the rounds of time / time of the import in the
same round. Writes ``results.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from PIL import Image
from rich.progress import track

from vision_lowrank.config import environment
from vision_lowrank.files import write_text
from vision_lowrank.paths import shipped

HERE = Path(__file__).parent
RECIPE = shipped("configs") / "fewshot" / "emoji_block_lora.yaml"
# What every side is divided by.
FLOORS = {"torch": "import torch", "open_clip": "import torch, open_clip"}
MISTAKE = 2  # exit code


class Side(NamedTuple):
    """A process to measure.

    Attributes:
        shown: the command as a reader would type it.
        arguments: of the Python interpreter.
        code: the exit code that it must end with.
    """

    shown: str
    arguments: Sequence[str]
    code: int = 0


class Cost(NamedTuple):
    """What one process took: seconds from start to end, processor seconds, and its largest resident size in bytes."""

    seconds: float
    processor_seconds: float
    peak_bytes: int


def command(shown: str, *arguments: object, code: int = 0) -> Side:
    """Return a ``vision-lowrank`` command."""
    return Side(f"vision-lowrank {shown}", ["-m", "vision_lowrank", *map(str, arguments)], code)


def make_sides(artefact: Path, place: Path) -> dict[str, Side]:
    """Make everything that is measured, with a picture in `place`."""
    picture = place / "picture.png"
    Image.linear_gradient("L").convert("RGB").save(picture)
    misspelt = RECIPE.with_stem("emoji_blok_lora")
    return {
        **{name: Side(f'python -c "{code}"', ["-c", code]) for name, code in FLOORS.items()},
        "help": command("--help", "--help"),
        "list": command("list", "list"),
        "misspelt": command(f"train {misspelt.name}", "train", misspelt, code=MISTAKE),
        "setting": command("train RECIPE engine.stepps=3", "train", RECIPE, "engine.stepps=3", code=MISTAKE),
        "predict": command("predict ARTEFACT PICTURE", "predict", artefact, picture),
        "scan": command("scan PICTURE", "scan", picture, "--out", place / "scan"),
    }


def train_artefact(place: Path) -> Path:
    """Train a classifier for two steps."""
    settings = [f"out={place}", "name=tiny", "seeds=[1]", "engine.steps=2", "engine.tensorboard=false"]
    subprocess.run(
        [sys.executable, "-m", "vision_lowrank", "train", RECIPE, *settings], check=True, stdout=subprocess.DEVNULL
    )
    return place / "tiny" / "seed-1" / "artefact"


def measure(side: Side) -> Cost:
    """Run one side.

    Raises:
        RuntimeError: it ended with another exit code than it should.
    """
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *side.arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != side.code:
        raise RuntimeError(f"'{side.shown}' ended with {process.returncode}, not {side.code}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)


def take_turns(sides: Mapping[str, Side], rounds: int) -> dict[str, list[Cost]]:
    """Measure what every side takes in each round, after one that does not count."""
    costs: dict[str, list[Cost]] = {name: [] for name in sides}
    for _ in track(range(rounds + 1), "rounds"):
        for name, side in sides.items():
            costs[name].append(measure(side))
    return {name: each[1:] for name, each in costs.items()}


def summarise(sides: Mapping[str, Side], costs: Mapping[str, Sequence[Cost]]) -> dict[str, dict[str, Any]]:
    """Compute medians of each side, and of its ratios to the floors in the same round."""
    rows = {}
    for name, side in sides.items():
        ratios = {
            floor: median(own.seconds / other.seconds for own, other in zip(costs[name], costs[floor], strict=True))
            for floor in FLOORS
        }
        medians = {key: median(getattr(cost, key) for cost in costs[name]) for key in Cost._fields}
        rows[name] = {"command": side.shown, **medians, "ratios": ratios}
    return rows


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--artefact", type=Path, help="a classifier's; one is trained for two steps if not given")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        sides = make_sides(arguments.artefact or train_artefact(place), place)
        rows = summarise(sides, take_turns(sides, arguments.rounds))
    result = {
        "command": shlex.join(["python", "benchmarks/startup/run.py", *sys.argv[1:]]),
        "rounds": arguments.rounds,
        "environment": environment(),
        "rows": rows,
    }
    write_text(arguments.out, json.dumps(result, indent=1) + "\n")
    for row in rows.values():
        print(f"{row['command']:42} {row['seconds']:6.2f} s  {row['ratios']['open_clip']:5.2f} of importing open_clip")


if __name__ == "__main__":
    main()
