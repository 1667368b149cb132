"""Adapt a CLIP of open_clip with Block-LoRA in plain PyTorch: no engine, no registry, no config file.

    python examples/adapt_open_clip.py                                   # the shipped tiny-clip on digits, seconds
    python examples/adapt_open_clip.py --arch ViT-B-16 --weights openai  # the real thing, where it can be downloaded

What happens: attention is split so that q, k and v can be adapted one by one; the adapter is attached and *checked*
(a dead one would be an error); the class prompts go through the adapted text tower at every step; the result is saved,
exported as a plain LoRA file, and merged so that it costs nothing at inference.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits

import vision_lowrank as vl

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def pictures(transform: Callable[[Image.Image], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Load all digits as pixels (1797, 3, H, W), and their labels (1797,)."""
    digits = load_digits()
    images = [Image.fromarray((255 - 15 * picture).astype("uint8")).convert("RGB") for picture in digits.images]
    return torch.stack([transform(image) for image in images]), torch.as_tensor(digits.target)


def logits(model: Any, pixels: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
    """Compute the scaled cosine similarities (B, 10) of pictures and prompts."""
    image = F.normalize(model.encode_image(pixels), dim=-1)
    text = F.normalize(model.encode_text(prompts), dim=-1)
    return model.logit_scale * image @ text.T


@torch.no_grad()
def accuracy(model: Any, pixels: torch.Tensor, labels: torch.Tensor, prompts: torch.Tensor) -> float:
    """Compute the share of pictures whose best prompt is the right one."""
    model.eval()
    best = torch.cat([logits(model, batch, prompts).argmax(dim=-1) for batch in pixels.split(256)])
    return (best == labels).float().mean().item()


def main() -> None:
    """Load, attach, train, save, export, merge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", help="an open_clip architecture; default: the shipped tiny-clip")
    parser.add_argument("--weights", help="a tag of open_clip or a local file")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/example"))
    arguments = parser.parse_args()
    torch.manual_seed(0)

    backbone = vl.load_backbone(f"open_clip:{arguments.arch}" if arguments.arch else "tiny-clip", arguments.weights)
    pixels, labels = pictures(backbone.transform)
    prompts = backbone.tokenizer([f"a photo of the number {name}" for name in NAMES])
    train = torch.cat([(labels == digit).nonzero().flatten()[: arguments.shots] for digit in range(10)])
    test = torch.ones(len(labels), dtype=torch.bool)
    test[train] = False
    print(f"zero-shot: {accuracy(backbone, pixels[test], labels[test], prompts):.1%}")

    config = vl.BlockLoraConfig(r=8, blocks=2, dropout=0.1)
    model = vl.attach(backbone, config, towers=("vision", "text"), layers="all", modules=("q", "k", "v"))
    print(vl.coverage(model))

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.steps)
    model.train()
    for step in range(arguments.steps):
        batch = train[torch.randperm(len(train))[:32]]
        loss = F.cross_entropy(logits(model, pixels[batch], prompts), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 9:
            print(f"step {step + 1}: loss {loss.item():.3f}")
    print(f"adapted: {accuracy(model, pixels[test], labels[test], prompts):.1%}")

    vl.save(model, arguments.out / "adapter")
    print(vl.export_lora(model, arguments.out / "lora"))
    merged = vl.merge(model)
    print(f"merged: {accuracy(merged, pixels[test], labels[test], prompts):.1%}, no adapter module left")


if __name__ == "__main__":
    main()
