"""What each initialiser costs on a ViT-B/16: time and peak memory beside LoRA's own start.

    python benchmarks/init_cost/run.py                    # about ten minutes on two cores
    python benchmarks/init_cost/run.py --model timm:vit_small_patch16_224 --samples 8 --rounds 1

LoRA of rank 8 sits on all six kinds of linears of all blocks. Gradients are those of a cross-entropy over random
pictures. Peak memory counts every tensor that lives at once beyond the model: on the CPU the gradients that wait on
the host for their SVD are among them. The initialisers take turns. Writes ``results.json`` beside this file.
"""

from __future__ import annotations

import argparse
import copy
import json
import shlex
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

import vision_lowrank as vl
from vision_lowrank.config import environment
from vision_lowrank.engine.cost import peak_bytes
from vision_lowrank.files import write_text
from vision_lowrank.initializers.base import Initializer

HERE = Path(__file__).parent
STARTS: dict[str, Initializer | None] = {
    "none": None,
    "pissa": vl.Pissa(),
    "lora_ga": vl.LoraGa(),
    "lora_sb": vl.LoraSb(lr=1e-5),
    "nystrom": vl.Nystrom(),
}
MODULES = ("q", "k", "v", "o", "fc1", "fc2")


class BatchLoss:
    """Cross-entropy of one batch of random pictures over as many classes as the features have."""

    def __init__(self, size: int, pictures: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.pixels = torch.randn(pictures, 3, size, size, generator=generator)
        self.labels = torch.randint(10, (pictures,), generator=generator)

    def __call__(self, model: nn.Module) -> Tensor:
        """Compute the mean loss."""
        device = next(model.parameters()).device
        features = model.encode_image(self.pixels.to(device))  # type: ignore[operator]
        return F.cross_entropy(features, self.labels.to(device))


def attach(backbone: nn.Module, start: Initializer | None, losses: list[BatchLoss]) -> None:
    """Attach LoRA and start it."""
    vl.attach(backbone, vl.LoraConfig(r=8), modules=MODULES, check=False, initializer=start, losses=losses)


def measure(model: str, samples: int, batch: int, rounds: int, device: str) -> dict[str, dict[str, float]]:
    """Measure seconds and peak bytes of each start, less those of attaching without one."""
    original = vl.load_backbone(model, "random").to(device)
    size = original.preprocess.size
    losses = [BatchLoss(size, batch, seed) for seed in range(samples // batch)]
    seconds: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in track(range(rounds), "time"):
        for name, start in STARTS.items():
            backbone = copy.deepcopy(original)
            begun = time.perf_counter()
            attach(backbone, start, losses)
            seconds[name].append(time.perf_counter() - begun)
    peaks = {}
    for name, start in track(STARTS.items(), "memory"):
        backbone = copy.deepcopy(original)
        peaks[name] = peak_bytes(lambda start=start, backbone=backbone: attach(backbone, start, losses))
    extra = {name: [own - plain for own, plain in zip(seconds[name], seconds["none"], strict=True)] for name in STARTS}
    return {
        name: {"seconds": median(extra[name]), "peak_bytes": peaks[name] - peaks["none"]}
        for name in STARTS
        if name != "none"
    }


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="timm:vit_base_patch16_224")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    arguments = parser.parse_args()
    rows = measure(arguments.model, arguments.samples, arguments.batch, arguments.rounds, arguments.device)
    result: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/init_cost/run.py", *sys.argv[1:]]),
        "model": arguments.model,
        "samples": arguments.samples,
        "batch": arguments.batch,
        "rounds": arguments.rounds,
        "environment": environment() | {"device": arguments.device, "threads": torch.get_num_threads()},
        "rows": rows,
    }
    write_text(arguments.out, json.dumps(result, indent=1) + "\n")
    for name, row in rows.items():
        print(f"{name:10} {row['seconds']:7.1f} s  {row['peak_bytes'] / 2**20:7.0f} MiB")


if __name__ == "__main__":
    main()
