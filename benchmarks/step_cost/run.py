"""What a training step of each adapter costs, against the floor: time and peak memory.

    python benchmarks/step_cost/run.py                        # everything, hours on two cores; goes on if interrupted
    python benchmarks/step_cost/run.py --models vit_s --batches 8 --methods lora peft_lora --rounds 5

A step is the forward and backward pass of the picture tower on random pixels, in training mode. Adapters sit on all
six kinds of linears of all blocks, r = 8. The sides of one model and batch take turns in one process; the ratio is the
median over the rounds of time / time of the floor, of wall time and, for busy machines, of processor time. Writes
``results.json`` beside this file, one entry per model and batch; an entry that has all the methods asked for is kept.

Sides: ``floor``, the frozen model with the gradient of the activations from the embedding on; ``floor_unsplit``, the
same with the library's own fused attention; ``full`` fine-tuning; ``peft_lora``, PEFT's own layers;
``peft_lora_fused``, these after ``accelerate_peft``; ``merged_lora``, where W + s B A is formed in each step; and every
registered adapter.
"""

from __future__ import annotations

import argparse
import copy
import json
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import peft
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import vision_lowrank as vl
from vision_lowrank.adapters.tuner import layer_factors, tuner_layers
from vision_lowrank.backbones.base import Backbone
from vision_lowrank.config import environment
from vision_lowrank.config.adapter import PLACES
from vision_lowrank.config.options import build, options
from vision_lowrank.engine.cost import peak_bytes
from vision_lowrank.files import write_text
from vision_lowrank.targets.select import select

HERE = Path(__file__).parent
MODELS = {
    "vit_s": "timm:vit_small_patch16_224",
    "vit_b": "timm:vit_base_patch16_224",
    "clip_b": "open_clip:ViT-B-16",
}
BATCHES = (8, 32)
MODULES = ("q", "k", "v", "o", "fc1", "fc2")
RANK = 8
PEERS = ("floor", "floor_unsplit", "full", "peft_lora", "peft_lora_fused", "merged_lora")


class Side(NamedTuple):
    """One thing to measure: a step, the number of parameters it trains, and whether ΔW has factors."""

    step: Callable[[], None]
    trains: int
    factor_form: bool | None


class Times(NamedTuple):
    """Seconds of one step on the wall and on the processors."""

    wall: float
    cpu: float


class MergedLora(nn.Module):
    """y = x (W + B A)ᵀ + b with the sum formed in each step, as CLIP-LoRA's code trains."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.A = nn.Parameter(torch.randn(RANK, linear.in_features, device=linear.weight.device) / RANK)
        self.B = nn.Parameter(torch.zeros(linear.out_features, RANK, device=linear.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """Compute (..., in) -> (..., out)."""
        return F.linear(x, self.linear.weight + self.B @ self.A, self.linear.bias)


def adapters() -> list[str]:
    """Return every registered adapter; ``peft`` stands for many methods and is none itself."""
    return [part.name for part in vl.methods("adapter") if part.name != "peft"]


def shared_copy(backbone: Backbone) -> Backbone:
    """Copy the model with the same weight tensors, so that twenty sides fit into memory."""
    return copy.deepcopy(backbone, memo={id(p): p for p in backbone.parameters()})


def build_side(name: str, split: Backbone, unsplit: Backbone, pixels: Tensor) -> Side:
    """Build the side called `name`, on weights that it shares with the others."""
    if name == "full":
        model = copy.deepcopy(split).requires_grad_(True)
    else:
        model = shared_copy(unsplit if name == "floor_unsplit" else split)
    if name != "full":  # all sides go down to the gradient of the first block's input
        first = model.get_submodule(model.towers["vision"].blocks[0])
        first.register_forward_pre_hook(lambda module, args: (args[0].requires_grad_(), *args[1:]))
    if name in ("floor", "floor_unsplit", "full"):
        return as_side(model.train(), pixels)
    targets = list(select(model, ("vision",), "all", MODULES))
    if name == "merged_lora":
        for target in targets:
            model.set_submodule(target, MergedLora(model.get_submodule(target)))
    elif name.startswith("peft_lora"):
        model = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
        if name == "peft_lora_fused":
            vl.accelerate_peft(model)
    else:
        part = vl.registry.get("adapter", name)
        config = build(part, {"r": RANK} if "r" in options(part.config or part.target) else {})
        modules = MODULES if getattr(config, "places", PLACES) == PLACES else config.places
        model = vl.attach(model, config, towers=("vision",), modules=modules, check=False).to(pixels.device)
    return as_side(model.train(), pixels)


def as_side(model: nn.Module, pixels: Tensor) -> Side:
    """Return one step of `model`, which leaves nothing behind."""
    trained = [p for p in model.parameters() if p.requires_grad]
    layers = tuner_layers(model)
    parts = vl.TrainedParts(model, torch.optim.SGD(trained, 0.0), steps=1) if trained else None

    def step() -> None:
        loss = model.encode_image(pixels).square().mean()
        (loss + sum(parts.losses().values()) if parts else loss).backward()
        for parameter in trained:
            parameter.grad = None

    factor_form = layer_factors(layers[0][1]) is not None if layers else None
    return Side(step, sum(p.numel() for p in trained), factor_form)


def measure(model: str, batch: int, names: Sequence[str], rounds: int, device: str) -> dict[str, Any]:
    """Measure time and memory of the named sides, which take turns."""
    unsplit = vl.load_backbone(MODELS[model], weights="random").requires_grad_(False).to(device)
    split = vl.split_attention(copy.deepcopy(unsplit))
    size = unsplit.preprocess.size
    pixels = torch.randn(batch, 3, size, size, device=device)
    sides, refused, peaks = {}, {}, {}
    for name in track(names, f"{model}, batch {batch}: memory"):
        try:
            sides[name] = build_side(name, split, unsplit, pixels)
            peaks[name] = peak_bytes(sides[name].step)  # and a first step, which is not timed
        except (vl.UserError, RuntimeError, ValueError) as error:  # listed, so that no method is missing silently
            sides.pop(name, None)
            refused[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    times: dict[str, list[Times]] = {name: [] for name in sides}
    for _ in track(range(rounds), f"{model}, batch {batch}: time"):
        for name, side in sides.items():
            times[name].append(timed(side.step))
    return {
        "environment": environment() | {"device": device_name(device), "threads": torch.get_num_threads()},
        "rounds": rounds,
        "refused": refused,
        "sides": {
            name: {
                "seconds": median(each.wall for each in times[name]),
                "ratio": median(a.wall / b.wall for a, b in zip(times[name], times["floor"], strict=True)),
                "cpu_ratio": median(a.cpu / b.cpu for a, b in zip(times[name], times["floor"], strict=True)),
                "peak_bytes": peaks[name],
                "trained_parameters": side.trains,
                "factor_form": side.factor_form,
            }
            for name, side in sides.items()
        },
    }


def timed(step: Callable[[], None]) -> Times:
    """Measure the time of one step."""
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Times(time.perf_counter() - wall, time.process_time() - cpu)


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"


def table(title: str, entry: dict[str, Any]) -> Table:
    """Make a table of the entry for the terminal, cheapest first."""
    result = Table("side", "step", "ratio", "cpu ratio", "peak memory", "trained", title=title)
    for name, row in sorted(entry["sides"].items(), key=lambda item: item[1]["ratio"]):
        ratios = (f"{row['ratio']:.3f}", f"{row['cpu_ratio']:.3f}")
        memory = f"{row['peak_bytes'] / 2**20:.0f} MiB"
        result.add_row(name, f"{1000 * row['seconds']:.0f} ms", *ratios, memory, f"{row['trained_parameters']:,}")
    for name, reason in entry["refused"].items():
        result.add_row(name, "-", "-", "-", "-", reason)
    return result


def main() -> None:
    """Measure what is missing and write the JSON after each entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*PEERS, *adapters()]
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--methods", nargs="+", choices=known, default=known, help="the floor is always measured")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    names = [name for name in known if name in arguments.methods or name == "floor"]
    entries = json.loads(arguments.out.read_text(encoding="utf-8"))["entries"] if arguments.out.exists() else {}
    console = Console()
    for model in arguments.models:
        for batch in arguments.batches:
            key = f"{model}, batch {batch}, {device_name(arguments.device)}"
            done = entries.get(key, {"sides": {}, "refused": {}})
            measured = {*done["sides"], *done["refused"]}
            if not set(names) <= measured:
                wanted = [name for name in known if name in names or name in measured]
                own = shlex.join(["python", "benchmarks/step_cost/run.py", *sys.argv[1:]])
                entries[key] = {"command": own} | measure(model, batch, wanted, arguments.rounds, arguments.device)
                result = {"command": "python benchmarks/step_cost/run.py", "entries": entries}
                write_text(arguments.out, json.dumps(result, indent=1) + "\n")
            console.print(table(key, entries[key]))


if __name__ == "__main__":
    main()
