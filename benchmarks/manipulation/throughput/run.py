"""How fast a saved detector looks at pictures, and in how much memory.

    python benchmarks/manipulation/throughput/run.py ARTEFACT                      # a quarter of an hour; goes on
    python benchmarks/manipulation/throughput/run.py ARTEFACT --sizes 224 --batches 1 8 --rounds 2 --out FILE

Pictures are 4:3 parts of scikit-image's photographs, enlarged where they are smaller, of 224, 1024 and 4000 pixels on
the long side, JPEG of quality 90. *Decoded* pictures are in memory already; *files* are read and decoded first, by one
thread. Either way the clock runs from the pictures to findings with heat maps of the pictures' size. An entry is one
size, batch and number of threads, in a process of its own, whose memory is therefore its own: ``resident`` with the
detector loaded, before any picture, and ``peak`` of all its rounds.

``truncated`` is the time of the backbone up to layer l over that of all of its layers, in turns, batch 8; a detector
that reads layer l runs nothing above it. Writes ``results.json`` beside this file after every entry; with a GPU, that
is measured too. An entry of the same detector and machine is kept.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.progress import track

from vision_lowrank.config import environment
from vision_lowrank.data.photos import photographs
from vision_lowrank.files import write_text
from vision_lowrank.inference.pictures import read_photo
from vision_lowrank.tasks.manipulation.model import ManipulationModel

HERE = Path(__file__).parent
SIZES, BATCHES, THREADS = (224, 1024, 4000), (1, 2, 4, 8, 16, 32), (1, 2)
DISTINCT = 4  # different pictures; a batch repeats them
TRUNCATED_BATCH = 8
Entry = dict[str, Any]


def write_pictures(folder: Path, size: int) -> list[Path]:
    """Write JPEG files of `size` x 3/4 `size` pixels."""
    photos, paths = photographs(), []
    for key in photos.keys[:DISTINCT]:
        picture = photos.load(key).convert("RGB")
        side = min(picture.width // 4, picture.height // 3)
        paths.append(folder / f"{Path(key).stem}-{size}.jpg")
        picture.crop((0, 0, 4 * side, 3 * side)).resize((size, size * 3 // 4)).save(paths[-1], quality=90)
    return paths


def speed(artefact: Path, paths: Sequence[Path], batch: int, threads: int, device: str, rounds: int) -> Entry:
    """Measure one entry in this process."""
    torch.set_num_threads(threads)
    detector = ManipulationModel.load(artefact).to(device)
    resident = memory("VmRSS")
    files = [paths[number % len(paths)] for number in range(batch)]
    opened = {path: read_photo(path).image for path in set(files)}
    pictures = [opened[path] for path in files]
    ways = {
        "decoded": lambda: detector.predict_batch(pictures),
        "files": lambda: detector.predict_batch([read_photo(path).image for path in files]),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name, way in ways.items():
            seconds = timed(way)
            if round_:  # the first one warms up
                times[name].append(seconds)
    return {
        "images_per_second": {name: batch / median(values) for name, values in times.items()},
        "resident_bytes": resident,
        "peak_bytes": memory("VmHWM"),
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }


def truncation(artefact: Path, threads: int, device: str, rounds: int) -> Entry:
    """Measure layer -> time of the pass up to it over that of the whole backbone, medians over rounds."""
    torch.set_num_threads(threads)
    detector = ManipulationModel.load(artefact).to(device)
    model, size = detector.backbone, detector.framing.size
    tiles, counts = torch.rand(TRUNCATED_BATCH, 3, size, size, device=device), [1] * TRUNCATED_BATCH
    layers = range(1, model.state_layers + 1)
    times: dict[int, list[float]] = {layer: [] for layer in layers}
    with torch.inference_mode():
        for round_ in range(rounds + 1):
            for layer in layers:
                seconds = timed(lambda layer=layer: model.image_states(tiles, counts, [layer]))
                if round_:
                    times[layer].append(seconds)
    whole = times[model.state_layers]
    return {
        "own": detector.layer,
        "seconds": median(whole),
        "ratio": {
            str(layer): median(one / other for one, other in zip(own, whole, strict=True))
            for layer, own in times.items()
        },
    }


def timed(call: Callable[[], object]) -> float:
    """Measure the seconds of one call."""
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def memory(name: str) -> int | None:
    """Read VmRSS or VmHWM of this process in bytes; None where the system does not tell (not Linux)."""
    path = Path("/proc/self/status")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


def alone(function: Callable[..., Entry], *given: object) -> Entry:
    """Call `function` in a fresh process."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, given)


def measure(given: argparse.Namespace, device: str, folder: Path, result: dict[str, Any]) -> None:
    """Fill in the entries of a device that `result` lacks, writing it after each."""
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    threads = [1] if device == "cuda" else given.threads
    for number in threads:
        key = f"{name}, {number} threads"
        if key not in result["truncated"]:
            result["truncated"][key] = alone(truncation, given.artefact, number, device, 5 * given.rounds)
            write_text(given.out, json.dumps(result, indent=1) + "\n")
    for size in given.sizes:
        paths = write_pictures(folder, size)
        rest = [(number, batch) for number in threads for batch in given.batches]
        for number, batch in track(rest, f"{name}, {size} pixels"):
            key = f"{name}, {number} threads, {size} pixels, batch {batch}"
            if key not in result["entries"]:
                about = {"device": name, "threads": number, "size": size, "batch": batch, "rounds": given.rounds}
                found = alone(speed, given.artefact, paths, batch, number, device, given.rounds)
                result["entries"][key] = about | found
                write_text(given.out, json.dumps(result, indent=1) + "\n")


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artefact", type=Path, help="folder of a detector")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="long sides in pixels")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--threads", nargs="+", type=int, default=THREADS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    given = parser.parse_args()
    detector = ManipulationModel.load(given.artefact)
    wanted = {
        "detector": detector.identity,
        "backbone": detector.backbone.name,
        "framing": detector.framing.to_dict(),
        "layer": detector.layer,
        "layers": detector.backbone.state_layers,
    }
    found = json.loads(given.out.read_text(encoding="utf-8")) if given.out.is_file() else {}
    kept = {key: found.get(key) for key in wanted} == wanted
    shown = ["ARTEFACT" if word == str(given.artefact) else word for word in sys.argv[1:]]
    result = wanted | {
        "command": shlex.join(["python", "benchmarks/manipulation/throughput/run.py", *shown]),
        "environment": environment(),
        "truncated": found["truncated"] if kept else {},
        "entries": found["entries"] if kept else {},
    }
    with TemporaryDirectory() as folder:
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            measure(given, device, Path(folder), result)
    print(given.out)


if __name__ == "__main__":
    main()
