"""The augmentation study on pictures: augmentations x tuning methods x shots, with and without a contrastive term.

    python benchmarks/augmentation/run.py                              # two hours on one core; goes on if interrupted
    python benchmarks/augmentation/run.py --methods lora kv_prefix     # train only these, and write nothing

Questions of arXiv 2303.02577, asked of tiny-clip's picture tower with frozen class prompts, on Fluent emoji and on
digits: does augmentation help parameter-efficient tuning, which kind hurts, do tuned prefixes separate augmented
classes less well than full fine-tuning, and does a contrastive term mend that? The learning rate of each method is
chosen once per data set (crops, 4 shots, first seed's validation pictures). All arms take 40 steps of 32 pictures, the
contrastive ones, at 16 shots, of 16 pictures twice. Test pictures are clean.

``separation``: features of the test pictures of emoji, clean and augmented, with k-NN and probe on the training pool,
of the frozen model and of the models trained with 16 shots and crops, seed 1. Writes ``results.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vision_lowrank.analysis.separation import separation_under
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.config import environment, load_config
from vision_lowrank.data.augmentation import training_transform
from vision_lowrank.data.base import ImageSet
from vision_lowrank.data.loading import TransformedImages
from vision_lowrank.data.transforms import Transform
from vision_lowrank.engine.progress import say
from vision_lowrank.files import write_text
from vision_lowrank.studies.comparison import Sweep, compare
from vision_lowrank.studies.variants import Entry
from vision_lowrank.tasks.classification.base import load_splits
from vision_lowrank.tasks.classification.classifier import ImageClassifier

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUNS = ROOT / "runs" / "augmentation"
CELLS = ((4, False), (16, False), (16, True))  # shots, and whether with the contrastive term
COMMON = ("engine.steps=40", "engine.tensorboard=false", "engine.checkpoint_every=0")
# Method -> recipe, what is changed in it, learning rates.
METHODS: dict[str, tuple[str, tuple[str, ...], tuple[float, ...]]] = {
    "lora": (
        "lora",
        ("adapter.r=8", "adapter.alpha=8", "adapter.dropout=0", "adapter.towers=[vision]", "adapter.modules=[q,k,v,o]"),
        (3e-4, 1e-3, 3e-3),
    ),
    "visual_prompt": ("visual_prompt", (), (1e-3, 1e-2, 1e-1)),
    "kv_prefix": ("kv_prefix", (), (1e-3, 1e-2, 1e-1)),
    "full": ("full", ("rule.towers=[vision]", "rule.blocks=6"), (3e-5, 1e-4, 3e-4)),
}
AUGMENTATIONS = {
    "none": ("task.augmentation=none",),
    "basic": (),
    "randaugment": ("task.augmentation=randaugment",),
    "mixup": ("task.mixup=0.8",),
    "cutmix": ("task.cutmix=1.0",),
}
CONTROL = {"full": ("none", "basic")}  # full fine-tuning stands beside the others for these arms only
DATA = {
    "emoji": ("data.test_styles=[fluent]", "data.retention_styles=[]"),
    "digits": ("data={type: digits}",),
}
CONTRAST = ("regularizer={type: supervised_contrastive}", "task.views=2", "engine.batch_size=16")
STRENGTHS = ("basic", "randaugment", "randaugment_heavy")


def cell(data: str, method: str, augmentation: str, shots: int, contrast: bool, rates: Sequence[float]) -> Any:
    """One arm: three seeds at the best of `rates`."""
    recipe, changes, _ = METHODS[method]
    given = [*COMMON, *DATA[data], *changes, *AUGMENTATIONS[augmentation], f"task.shots={shots}"]
    given += CONTRAST if contrast else ()
    path = ROOT / "configs" / "fewshot" / f"emoji_{recipe}.yaml"
    sweep = Sweep(path, [Entry.of(load_config(path, given))], _folder(data, method, augmentation, shots, contrast),
                  given, rates=rates)  # fmt: skip
    [row] = (result := compare(sweep, say))["rows"]
    if "failed" in row:
        raise SystemExit(f"{method}: {row['failed']}")
    [test] = [name for name in row["metrics"] if name.startswith("test/") and name.endswith("/accuracy")]
    where = {"data": data, "method": method, "augmentation": augmentation, "shots": shots, "contrastive": contrast}
    facts = {"lr": row["lr"], "validation": row["validation"], "trained_parameters": row["trained_parameters"]}
    return where | facts | {"accuracy": row["metrics"][test], "baseline": result["baseline"][test]}


def rows(methods: Sequence[str]) -> list[dict[str, Any]]:
    """All arms of some methods."""
    found = []
    for data in DATA:
        for method in methods:
            rate = cell(data, method, "basic", *CELLS[0], METHODS[method][2])["lr"]
            for augmentation in CONTROL.get(method, AUGMENTATIONS):
                found += [cell(data, method, augmentation, *each, (rate,)) for each in CELLS]
    return found


def separations(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Separation of emoji classes by the frozen model and by each method, without and with the contrastive term."""
    config = load_config(ROOT / "configs" / "fewshot" / "emoji_lora.yaml", DATA["emoji"])
    splits = load_splits(config)
    models: dict[str, nn.Module] = {"frozen": load_backbone(config.backbone.name)}
    for row in found:
        if (row["data"], row["augmentation"], row["shots"]) == ("emoji", "basic", CELLS[-1][0]):
            place = [row[key] for key in ("data", "method", "augmentation", "shots", "contrastive")]
            [artefact] = _folder(*place).glob(f"*/lr-{row['lr']:g}/seed-1/artefact")
            name = row["method"] + (" + contrastive" if row["contrastive"] else "")
            models[name] = ImageClassifier.load(artefact).model
    return {name: _separation(model, splits.train, splits.tests["fluent"]) for name, model in models.items()}


def _separation(model: nn.Module, pool: ImageSet, test: ImageSet) -> dict[str, dict[str, float]]:
    clean = model.preprocess.evaluation()
    augmented = {name: training_transform(model.preprocess, name, (0.6, 1.0), 0.0) for name in STRENGTHS}
    index, index_labels = features(model, pool, clean)
    values, labels = features(model, test, clean)
    others = {name: features(model, test, transform)[0] for name, transform in augmented.items()}
    return separation_under(values, others, labels, index, index_labels)


@torch.no_grad()
def features(model: nn.Module, images: ImageSet, transform: Transform) -> tuple[Tensor, Tensor]:
    """Features (N, e) that the head is fed with, and labels (N,)."""
    batches = DataLoader(TransformedImages(images, transform), batch_size=128)
    model.eval()
    return (
        torch.cat([model.encode_image(batch["image"]) for batch in batches]),
        torch.tensor(images.labels),
    )


def _folder(data: str, method: str, augmentation: str, shots: int, contrast: bool) -> Path:
    return RUNS / data / method / augmentation / (f"{shots}-contrastive" if contrast else str(shots))


def main() -> None:
    """Run what is missing and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="train only these, and write nothing")
    methods = parser.parse_args().methods
    found = rows(methods or list(METHODS))
    if methods:
        return
    result = {
        "command": "python benchmarks/augmentation/run.py",
        "environment": environment(),
        "rows": found,
        "separation": separations(found),
    }
    write_text(HERE / "results.json", json.dumps(result, indent=1) + "\n")
    print(HERE / "results.json")


if __name__ == "__main__":
    main()
