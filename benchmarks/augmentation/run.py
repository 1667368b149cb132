"""The augmentation study on pictures: augmentations x tuning methods x shots, with and without a contrastive term.

    python benchmarks/augmentation/run.py                              # two hours on one core; goes on if interrupted
    python benchmarks/augmentation/run.py --methods lora kv_prefix     # train only these, and write nothing

Questions of arXiv 2303.02577, asked of tiny-clip's picture tower with frozen class prompts, on Fluent emoji and on
digits: does augmentation help parameter-efficient tuning, which kind hurts, do tuned prefixes separate augmented
classes less well than full fine-tuning, and does a contrastive term mend that? The learning rate of each method is
chosen once per data set (crops, 4 shots, first seed's validation pictures). All arms take 40 steps of 32 pictures, the
contrastive ones, at 16 shots, of 16 pictures twice. Test pictures are clean. ``--jobs N`` trains in N processes.

``separation``: features of the test pictures of emoji, clean and augmented, with k-NN and probe on the training pool,
of the frozen model and of the models trained with 16 shots and crops, seed 1. Writes ``results.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vision_lowrank.analysis.separation import separation_under
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.config import RunConfig, environment, load_config
from vision_lowrank.data.augmentation import training_transform
from vision_lowrank.data.base import ImageSet
from vision_lowrank.data.loading import TransformedImages
from vision_lowrank.data.transforms import Transform
from vision_lowrank.engine.progress import say
from vision_lowrank.files import write_text
from vision_lowrank.studies.columns import complete_rows
from vision_lowrank.studies.launch import Launcher
from vision_lowrank.studies.processes import local
from vision_lowrank.studies.study import Study, run_studies
from vision_lowrank.studies.variants import Variant
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


class Arm(NamedTuple):
    """One cell of the table."""

    data: str
    method: str
    augmentation: str
    shots: int
    contrastive: bool

    @property
    def name(self) -> str:
        """Of its variant, and of its folder."""
        return f"{self.method} {self.augmentation} {self.shots}" + (" contrastive" if self.contrastive else "")

    @property
    def config(self) -> RunConfig:
        """What trains."""
        recipe, changes, _ = METHODS[self.method]
        given = [*COMMON, *DATA[self.data], *changes, *AUGMENTATIONS[self.augmentation], f"task.shots={self.shots}"]
        given += CONTRAST if self.contrastive else ()
        return load_config(ROOT / "configs" / "fewshot" / f"emoji_{recipe}.yaml", given)


def arms(data: str, methods: Sequence[str]) -> dict[Arm, Variant]:
    """Return all arms of a data set with their variants: those of a method take the rate of its plain one."""
    found: dict[Arm, Variant] = {}
    for method in methods:
        plain = Arm(data, method, "basic", *CELLS[0])
        leader = Variant(plain.name, plain.config, rates=METHODS[method][2])
        for augmentation in CONTROL.get(method, AUGMENTATIONS):
            for each in (Arm(data, method, augmentation, *cell) for cell in CELLS):
                found[each] = leader if each == plain else Variant(each.name, each.config, follows=leader)
    return found


def rows(methods: Sequence[str], launch: Launcher) -> list[dict[str, Any]]:
    """Run all arms of some methods and return their rows."""
    plans = [arms(data, methods) for data in DATA]
    studies = [Study(RUNS / data, data, list(plan.values())) for data, plan in zip(DATA, plans, strict=True)]
    found = []
    for plan, result in zip(plans, run_studies(studies, launch, say), strict=True):
        for arm, row in zip(plan, complete_rows(result), strict=True):
            [test] = [name for name in row["metrics"] if name.startswith("test/") and name.endswith("/accuracy")]
            facts = {key: row[key] for key in ("lr", "validation", "trained_parameters")}
            found.append(arm._asdict() | facts | {"accuracy": row["metrics"][test], "baseline": row["baseline"][test]})
    return found


def separations(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Measure how the frozen model and each method separate emoji classes, without and with the contrastive term."""
    config = load_config(ROOT / "configs" / "fewshot" / "emoji_lora.yaml", DATA["emoji"])
    splits = load_splits(config)
    models: dict[str, nn.Module] = {"frozen": load_backbone(**config.backbone.arguments)}
    for row in found:
        if (row["data"], row["augmentation"], row["shots"]) == ("emoji", "basic", CELLS[-1][0]):
            arm = Arm(**{key: row[key] for key in Arm._fields})
            folder = RUNS / arm.data / Variant(arm.name, None).folder
            artefact = folder / f"lr-{row['lr']:g}" / "seed-1" / "artefact"
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
    """Compute the features (N, e) that the head is fed with, and labels (N,)."""
    batches = DataLoader(TransformedImages(images, transform), batch_size=128)
    model.eval()
    return (
        torch.cat([model.encode_image(batch["image"]) for batch in batches]),
        torch.tensor(images.labels),
    )


def main() -> None:
    """Run what is missing and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="train only these, and write nothing")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    given = parser.parse_args()
    found = rows(given.methods or list(METHODS), local(given.jobs))
    if given.methods:
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
