"""What following costs: the network beside the bare trunk, crops beside the network, the command beside CSRT.

    python benchmarks/tracking/speed/run.py                              # about ten minutes on two cores
    python benchmarks/tracking/speed/run.py --quick --out FILE           # seconds, to see that everything runs

All sides of a part take turns in each round, and the first round does not count; ratios are medians over the rounds of
time / time of the side beside it in the same round, with their quartiles. Network and crops run on one thread and are
measured in processor time, which other processes disturb less; commands on the wall.

network   A tracker with LoRA of rank 64, saved and loaded as any tracker, and one frame of one target, the template
          kept. ``network`` is what that frame costs; ``factors`` the same with the adapter beside the weights;
          ``blocks`` and ``vit`` are a ViT of the same architecture that never had an adapter, on as many tokens: blocks
          and final norm, and these with the embedding of the search crop. Random weights: numbers cost no time.
crops     ``crop`` cuts the search crop out of a frame and normalises it; ``frame`` is all that is done for one.
command   Processes from start to end: ``vision-lowrank track`` on a clip of ``emoji_scenes`` as mp4, without its video,
          and OpenCV's CSRT on the same file, each through all frames and through two. ``whole`` is frames per second
          with the start; ``loop`` that of the frames between the two, reading included, the start left out.

The command needs ``--model``, the shipped tracker if not given, and OpenCV's contrib modules (extra ``tracking``);
without them it is left out. Writes ``results.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

import vision_lowrank as vl
from vision_lowrank.backbones.trunk import Trunk
from vision_lowrank.config import environment
from vision_lowrank.data.emoji_scenes import EmojiScenesConfig, emoji_scenes
from vision_lowrank.data.geometry import draw_crop
from vision_lowrank.data.videos import VideoWriter, open_frames
from vision_lowrank.files import write_text
from vision_lowrank.paths import shipped
from vision_lowrank.tasks.saved import restore_backbone
from vision_lowrank.tasks.tracking.cropping import Cropping, normalised
from vision_lowrank.tasks.tracking.model import TrackingModel

HERE = Path(__file__).parent
OTHERS = HERE.parent / "plain_trackers.py"
# Trunk -> side of search and template crop in pixels.
SHAPES = {"tiny-vit": (96, 48), "timm:vit_small_patch14_dinov2": (224, 112)}
MODULES = ("q", "k", "v", "o", "fc1", "fc2")
RANK, FRAME, BOX = 64, (640, 480), (250.0, 180.0, 90.0, 70.0)
Sides = Mapping[str, Callable[[], object]]
Times = Mapping[str, Sequence[float]]


def take_turns(sides: Sides, rounds: int, title: str, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Measure the seconds of every side in each round by a clock, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in track(range(rounds + 1), title):
        for name, side in sides.items():
            started = clock()
            side()
            times[name].append(clock() - started)
    return {name: values[1:] for name, values in times.items()}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median with its quartiles."""
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": middle, "low": low, "high": high}


def ratio(times: Times, name: str, beside: str) -> dict[str, float]:
    """Return the spread of the ratio of two sides, round by round."""
    return spread([own / other for own, other in zip(times[name], times[beside], strict=True)])


def make_trackers(name: str, sides: tuple[int, int], place: Path) -> tuple[TrackingModel, TrackingModel]:
    """Make a tracker with LoRA, save it, and load it as everybody does, and with its factors beside the weights."""
    backbone = vl.load_backbone(name, "random").requires_grad_(False)
    config = vl.LoraConfig(r=RANK, alpha=float(RANK), scaling="lora")
    cropping = Cropping(*sides, 4.0, 2.0)
    folder = place / name.replace(":", "-")
    TrackingModel(vl.attach(backbone, config, ("vision",), "all", MODULES), cropping).eval().save(folder, {})
    beside = restore_backbone(folder, TrackingModel.read(folder), None, attach=False, trust=True)
    return TrackingModel.load(folder), TrackingModel(beside, cropping).eval()


def run_blocks(trunk: Trunk, tokens: Tensor) -> Tensor:
    """Compute blocks and final norm."""
    for block in trunk.blocks:
        tokens = block(tokens)
    return trunk.norm(tokens)


@torch.inference_mode()
def measure_network(name: str, sides: tuple[int, int], rounds: int, place: Path) -> dict[str, Any]:
    """Measure one frame of one target in a tracker, and its crop."""
    tracker, factored = make_trackers(name, sides, place)
    trunk = vl.load_backbone(name, "random").eval().trunk
    frame = np.random.default_rng(0).integers(0, 256, (*FRAME[::-1], 3), dtype=np.uint8)
    target = tracker.start(frame, BOX)
    box, size = target.box.copy(), (sides[0], sides[0])

    def crop() -> Tensor:
        drawn, _ = draw_crop(frame, tracker.cropping.search_map(box), size, target.means)
        return normalised(drawn[None], tracker.preprocess)

    x = crop()
    first, positions = target.tokens, tracker.embedding.positions
    tokens = torch.cat([first, tracker.embedding.search_tokens(tracker.trunk, x)], dim=1)
    measured: Sides = {
        "blocks": lambda: run_blocks(trunk, tokens),
        "vit": lambda: run_blocks(trunk, torch.cat([first, trunk.enter(trunk.patch_tokens(x) + positions)], dim=1)),
        "network": lambda: tracker.find(first, x),
        "factors": lambda: factored.find(first, x),
        "head": lambda: tracker.head(tokens[:, first.shape[1] :]),
        "crop": crop,
        "frame": lambda: tracker.track_many([frame], [target]),
    }
    times = take_turns(measured, rounds, name, time.process_time)
    return {
        "search": sides[0],
        "tokens": tokens.shape[1],
        "frame": list(FRAME),
        "seconds": {side: spread(values) for side, values in times.items()},
        "ratios": {
            "network / vit": ratio(times, "network", "vit"),
            "network / blocks": ratio(times, "network", "blocks"),
            "factors / vit": ratio(times, "factors", "vit"),
            "head / vit": ratio(times, "head", "vit"),
            "crop / network": ratio(times, "crop", "network"),
            "frame / network": ratio(times, "frame", "network"),
        },
    }


def make_clip(place: Path, frames: int) -> tuple[Path, str]:
    """Write a clip of ``emoji_scenes`` over scikit-image's photographs, and return its file and the first box."""
    clip = emoji_scenes(EmojiScenesConfig(test_clips=1, frames=frames)).tests["emoji_scenes"][0]
    path = place / "clip.mp4"
    with VideoWriter(path, 30.0) as video:
        for index in range(len(clip)):
            video.write(clip.frame(index))
    return path, ",".join(f"{value:.1f}" for value in clip.box(0).tolist())


def cut(clip: Path, place: Path, frames: int) -> Path:
    """Write the first frames of a clip as a clip."""
    path = place / f"first-{frames}.mp4"
    with VideoWriter(path, 30.0) as video:
        for _, frame in zip(range(frames), open_frames(str(clip)), strict=False):
            video.write(frame)
    return path


def measure_command(model: Path, frames: int, rounds: int, place: Path) -> dict[str, Any]:
    """Measure processes on a whole clip and on its first two frames."""
    clip, box = make_clip(place, frames)
    clips = {"all": clip, "two": cut(clip, place, 2)}

    def process(words: Sequence[object]) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, *map(str, words)], check=True, stdout=subprocess.DEVNULL)

    own = ("-m", "vision_lowrank", "track")
    sides = {}
    for length, path in clips.items():
        options = ("--box", box, "--model", model, "--out", place / length)
        sides[f"track, {length}"] = process((*own, path, *options))
        sides[f"CSRT, {length}"] = process((OTHERS, "CSRT", path, "--box", box))
    times = take_turns(sides, rounds, "commands", time.perf_counter)
    said = json.loads((place / "all" / "track.json").read_text(encoding="utf-8"))["frames_per_second"]
    return {
        "frames": frames,
        "seconds": {side: spread(values) for side, values in times.items()},
        "whole": {name: spread([frames / t for t in times[f"{name}, all"]]) for name in ("track", "CSRT")},
        "loop": {name: spread(loop_rates(times, name, frames)) for name in ("track", "CSRT")},
        "tracker_alone": said,
    }


def loop_rates(times: Times, name: str, frames: int) -> list[float]:
    """Compute frames per second of the frames after the first two, in every round."""
    pairs = zip(times[f"{name}, all"], times[f"{name}, two"], strict=True)
    return [(frames - 2) / max(whole - two, 1e-9) for whole, two in pairs]


def has_csrt() -> bool:
    """Tell whether OpenCV's contrib modules are there."""
    try:
        import cv2
    except ImportError:
        return False
    return hasattr(cv2, "TrackerCSRT_create")


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny-vit only, two rounds, a clip of six frames")
    parser.add_argument("--model", type=Path, default=shipped("data") / "tiny_tracker", help="artefact of a tracker")
    parser.add_argument("--rounds", type=int, default=60, help="of the network; a twelfth of it of commands")
    parser.add_argument("--frames", type=int, default=600, help="of the clip")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rounds, frames = (2, 6) if given.quick else (given.rounds, given.frames)
    shapes = {"tiny-vit": SHAPES["tiny-vit"]} if given.quick else SHAPES
    with TemporaryDirectory() as scratch:
        place = Path(scratch)
        networks = {name: measure_network(name, sides, rounds, place) for name, sides in shapes.items()}
        can = given.model.is_dir() and has_csrt()
        found = measure_command(given.model, frames, max(1, rounds // 12), place) if can else None
    result = {
        "command": "python benchmarks/tracking/speed/run.py" + (" --quick" if given.quick else ""),
        "rounds": rounds,
        "environment": environment() | {"threads": 1},
        "networks": networks,
        **({"track": found} if found else {}),
    }
    write_text(given.out, json.dumps(result, indent=1) + "\n")
    for name, entry in networks.items():
        for title, value in entry["ratios"].items():
            print(f"{name:32} {title:20} {value['median']:.3f} ({value['low']:.3f} to {value['high']:.3f})")
    print(json.dumps(found["loop"]) if found else "commands left out: no tracker, or no OpenCV with contrib modules")


if __name__ == "__main__":
    main()
