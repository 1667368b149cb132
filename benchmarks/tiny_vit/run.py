"""What tiny-vit's frozen features are worth, beside tiny-clip's, those of random weights, and mean colour.

    python benchmarks/tiny_vit/run.py --photographs FOLDER… --classes FOLDER

Three measurements, none of which trains the base:

* *static probe*: of pairs of frames of ``emoji_scenes``, of unseen objects and photographs, in how many the cell of the
  search crop that is most like the template's mean foreground token lies on the target. Mean colour of cells alone is
  the bar; most cells are not on the target, so chance is the share of those that are.
* *regions*: a linear classifier tells from which of 40 held-out photographs a region was cut, trained on 8 regions of
  each, tested on 8 others, five draws.
* *few-shot*: the same on the pictures of a folder of classes (``--classes``), two of each class, the rest tested, five
  draws; left out where no folder is named.

Writes ``results.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import fmean, pstdev

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from vision_lowrank.backbones.base import Backbone
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.config import environment
from vision_lowrank.data.emoji_scenes import EmojiScenesConfig, emoji_scenes
from vision_lowrank.data.find_pictures import find_pictures
from vision_lowrank.data.images import read_image
from vision_lowrank.data.photo_regions import PhotoRegionsConfig, photo_regions
from vision_lowrank.data.tracking.pair_crops import SearchJitter
from vision_lowrank.data.tracking.pairs import PairSource
from vision_lowrank.data.transforms import Preprocess
from vision_lowrank.files import write_text
from vision_lowrank.tasks.tracking.augment import Augmentation
from vision_lowrank.tasks.tracking.cropping import Cropping
from vision_lowrank.tasks.tracking.samples import PairSamples

HERE = Path(__file__).parent
SIDE, PAIRS, DRAWS = 96, 800, 5
PHOTOGRAPHS, EACH, SHOTS = 40, 8, 2
PLAIN = Preprocess(SIDE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
Features = Callable[[Tensor], Tensor]  # pixels (B, 3, s, s) in [0, 1] -> (B, d, h, w)


def colour(pixels: Tensor) -> Tensor:
    """Return the mean colour of cells of 8 pixels, about grey."""
    return F.avg_pool2d(pixels, 8) - 0.5


@torch.no_grad()
def tokens(backbone: Backbone, pixels: Tensor) -> Tensor:
    """Return final tokens as a map."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.preprocess.mean, backbone.preprocess.std))
    return torch.cat([backbone.trunk.image_map((part - mean) / std) for part in pixels.split(50)])


def bases() -> Iterator[tuple[str, Features]]:
    """Return what is compared."""
    yield "mean colour", colour
    for name, weights in (("tiny-vit", None), ("tiny-clip", None), ("tiny-vit", "random")):
        torch.manual_seed(1)
        backbone = load_backbone(name, weights).eval()
        yield (f"{name}, {weights} weights" if weights else name), partial(tokens, backbone)


def pairs(photographs: list[str]) -> dict[str, Tensor]:
    """Draw pairs of crops of the test clips, unaugmented: z, x, mask, positives."""
    over = {"photographs": tuple(photographs)} if photographs else {}
    clips = emoji_scenes(EmojiScenesConfig(test_clips=PAIRS, **over)).tests["emoji_scenes"]
    cropping = Cropping(SIDE, SIDE // 2, 4.0, 2.0)
    samples = PairSamples(
        PairSource([clips], gap=30),
        cropping,
        ((12, 12), (6, 6)),
        PLAIN,
        jitter=SearchJitter(cropping.search_factor, (SIDE, SIDE), 6.0, shift=1.2),
        augmentation=Augmentation(0, 0, 0),
        length=PAIRS,
        seed=1,
    )
    drawn = [samples[number, number] for number in range(PAIRS)]
    return {name: torch.stack([each[name] for each in drawn]) for name in ("z", "x", "mask", "positives")}


def static_probe(features: Features, drawn: dict[str, Tensor]) -> float:
    """Return the share of pairs whose most similar cell is on the target."""
    z, x = (F.normalize(features(drawn[name]).flatten(2).transpose(1, 2), dim=-1) for name in ("z", "x"))
    shown = drawn["mask"].flatten(1).float()
    mean = F.normalize((z * shown[..., None]).sum(dim=1), dim=-1)
    best = torch.einsum("bnd,bd->bn", x, mean).argmax(dim=1)
    return float(drawn["positives"].flatten(1)[torch.arange(len(best)), best].float().mean())


def linear_probe(train: Tensor, test: Tensor, train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """Return the accuracy of a logistic regression on standardised features (n, d)."""
    scaler = StandardScaler().fit(train.numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = LogisticRegression(C=0.1, max_iter=500).fit(scaler.transform(train.numpy()), train_labels)
    return float(fitted.score(scaler.transform(test.numpy()), test_labels))


def regions(photographs: list[str]) -> tuple[Tensor, np.ndarray]:
    """Cut regions out of held-out photographs: pixels (n, 3, s, s) in [0, 1], and which photograph each is of."""
    pool = photo_regions(PhotoRegionsConfig(photographs=tuple(photographs))).tests["photo_regions"].clips.pool
    rng, cut, labels = np.random.default_rng(1), [], []
    count = min(PHOTOGRAPHS, len(pool.photographs))
    for label, number in enumerate(rng.permutation(len(pool.photographs))[:count].tolist()):
        photo = pool.photograph(number)
        for _ in range(2 * EACH):
            side = min(photo.size) * rng.uniform(0.3, 0.6)
            left, top = (rng.uniform(0, extent - side) for extent in photo.size)
            box = (left, top, left + side, top + side)
            cut.append(_pixels(photo.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)))
            labels.append(label)
    return torch.stack(cut), np.array(labels)


def classes(folder: Path) -> tuple[Tensor, np.ndarray]:
    """Read a folder of classes, the middle square of every picture: pixels and labels."""
    names = find_pictures(folder).pictures
    labels = np.unique([Path(name).parts[0] for name in names], return_inverse=True)[1]
    pixels = []
    for name in names:
        picture = read_image(folder / name, name)
        side = min(picture.size)
        left, top = ((extent - side) / 2 for extent in picture.size)
        box = (left, top, left + side, top + side)
        pixels.append(_pixels(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)))
    return torch.stack(pixels), labels


def draws(found: Tensor, labels: np.ndarray, shots: int) -> list[float]:
    """Return the accuracy of a linear probe with `shots` of each class, for some draws of them."""
    accuracies = []
    for seed in range(DRAWS):
        rng, taken = np.random.default_rng(seed), np.zeros(len(labels), dtype=bool)
        for label in np.unique(labels):
            taken[rng.permutation(np.flatnonzero(labels == label))[:shots]] = True
        accuracies.append(linear_probe(found[taken], found[~taken], labels[taken], labels[~taken]))
    return accuracies


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", nargs="+", default=[], metavar="FOLDER", help="as in pretraining")
    parser.add_argument("--classes", type=Path, help="folder with a folder of pictures for every class")
    given = parser.parse_args()
    drawn = pairs(given.photographs)
    sets = {"regions": (*regions(given.photographs), EACH)}
    if given.classes is not None:
        sets["few_shot"] = (*classes(given.classes), SHOTS)
    rows = {}
    for name, features in bases():
        rows[name] = {"static_probe": static_probe(features, drawn)}
        for title, (pixels, labels, shots) in sets.items():
            found = draws(features(pixels).mean(dim=(2, 3)), labels, shots)
            rows[name] |= {title: {"mean": fmean(found), "std": pstdev(found), "n": DRAWS}}
        print(name, rows[name], flush=True)
    result = {
        "command": "python benchmarks/tiny_vit/run.py --photographs FOLDER… --classes FOLDER",
        "environment": environment(),
        "pairs": PAIRS,
        "chance": float(drawn["positives"].float().mean()),
        "sizes": {name: [len(labels), len(np.unique(labels))] for name, (_, labels, _) in sets.items()},
        "rows": rows,
    }
    write_text(HERE / "results.json", json.dumps(result, indent=1) + "\n")


def _pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture.convert("RGB"))).permute(2, 0, 1).float() / 255


if __name__ == "__main__":
    main()
