"""Train any method in a loop of your own: no engine, no registry, no config file.

    python examples/plain_pytorch.py                         # SoRA on the shipped tiny-clip and digits, seconds
    python examples/plain_pytorch.py --config LofitConfig    # LoFiT, in two phases; likewise every other vl.…Config

Some methods ask for more than ``loss.backward()`` and ``optimizer.step()``: SoRA shrinks its gates after each step,
LaMDA freezes columns on the way, KaSA, MixLoRA and LoFiT add penalties, LoFiT and SoRA may train in phases. The lines
marked (!) serve all of them, and do nothing for a method that asks for nothing, such as LoRA.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits

import vision_lowrank as vl

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def logits(model: Any, pixels: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
    """Compute the scaled cosine similarities (B, 10) of pictures and prompts."""
    image, text = model.encode_image(pixels), model.encode_text(prompts)
    return model.logit_scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T


@torch.no_grad()
def accuracy(model: Any, pixels: torch.Tensor, labels: torch.Tensor, prompts: torch.Tensor) -> float:
    """Compute the share of pictures whose best prompt is the right one."""
    model.eval()
    best = torch.cat([logits(model, batch, prompts).argmax(dim=-1) for batch in pixels.split(256)])
    return (best == labels).float().mean().item()


def main() -> None:
    """Load, attach, train phase by phase, say what the method did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="SoraConfig", help="a config class of vision_lowrank")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps of each phase")
    arguments = parser.parse_args()
    torch.manual_seed(0)

    model: Any = vl.attach(vl.load_backbone("tiny-clip"), getattr(vl, arguments.config)())
    digits = load_digits()
    images = [Image.fromarray((255 - 15 * picture).astype("uint8")).convert("RGB") for picture in digits.images]
    pixels, labels = torch.stack([model.transform(image) for image in images]), torch.as_tensor(digits.target)
    prompts = model.tokenizer([f"a photo of the number {name}" for name in NAMES])
    train = torch.cat([(labels == digit).nonzero().flatten()[: arguments.shots] for digit in range(10)])
    test = torch.ones(len(labels), dtype=torch.bool)
    test[train] = False
    print(f"before: {accuracy(model, pixels[test], labels[test], prompts):.1%}")

    for phase, settings in vl.phases(model).items():  # (!) most methods have one
        vl.begin_phase(model, phase)  # (!)
        groups = vl.parameter_groups(model)  # (!) what weight decay must not touch is in a group of its own
        optimizer = torch.optim.AdamW(groups, **({"lr": 2e-3, "weight_decay": 1e-2} | settings))
        parts = vl.TrainedParts(model, optimizer, arguments.steps)  # (!)
        model.train()
        for step in range(arguments.steps):
            batch = train[torch.randperm(len(train))[:32]]
            loss = F.cross_entropy(logits(model, pixels[batch], prompts), labels[batch])
            loss = loss + sum(parts.losses().values())  # (!) penalties
            optimizer.zero_grad()
            loss.backward()
            parts.clip(1.0)  # (!) instead of clip_grad_norm_: SoRA's gates are exempt
            optimizer.step()
            parts.after_step()  # (!) proximal steps and schedules
            if step % 10 == 9:
                print(f"{phase}, step {step + 1}: loss {loss.item():.3f}")
    print(f"after: {accuracy(model, pixels[test], labels[test], prompts):.1%}")


if __name__ == "__main__":
    main()
