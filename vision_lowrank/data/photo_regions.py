"""``data: {type: photo_regions}``: short clips whose target is a region of a photograph, any one, seen again.

Nothing moves in them but the view, and nothing marks the target: no outline, no colour of its own. A tracker that looks
for what stands out finds nothing; it has to match. So they belong beside clips with objects, in ``clip_mixture``, to
train on. For a region with middle c and sides (w, h) of a photograph, every frame (side s pixels) draws the photograph
under a map from frame to photograph of its own::

    source = c + A (q - m),   A = (√(wh) / u) L        q: place in the frame; u: the region's mean side in the frame
    m     = s/2 + U(-1, 1)² · s/4                      where the region's middle is shown
    L     : scale e^N(0, 0.2), turn N(0, 0.15) rad, aspect and shear

then changes light, colour, sharpness and noise. The box is the smallest around the region's mapped corners.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field

from ..config.marks import MAX_SEED, Folder
from ..config.schema import Section
from ..registry import register
from .edits.dividing import SPLITS
from .regions import Affine, about, apply, developed, draw_linear, inverse, mean_colour, warped
from .scenes.drawn import DrawnClips, digest_of
from .scenes.pools import Pool, pools
from .tracking.base import Clip, ClipSet, ClipSplits

SIDE, FRAMES = 200, 8
SHOWN = (22.0, 48.0)  # mean side of a region in a frame, in pixels
REGION = (0.08, 0.3)  # mean side of a region as a share of the photograph's shorter side
STRENGTH = 0.5  # of the change of light and colour: frames of one clip differ less than views do
FLAT, TRIES = 10.0, 20  # a region of less contrast (standard deviation of 0 to 255) cannot be found again


class PhotoRegionsConfig(Section):
    """Options of ``data: {type: photo_regions}``."""

    type: Literal["photo_regions"] = "photo_regions"
    photographs: tuple[Folder, ...] = Field((), description="folders, searched in depth; none = scikit-image's")
    train_clips: int = Field(100_000, ge=1, le=10**7, description="training clips; each is drawn when it is read")
    test_clips: int = Field(40, ge=1, le=10_000, description="clips to validate on, and as many to test on")
    seed: int = Field(1, ge=0, le=MAX_SEED, description="of everything drawn; splits do not depend on it")


@dataclass(frozen=True)
class Views:
    """What is seen of a region.

    Attributes:
        photograph: its number in the pool.
        maps: of each frame, from the frame to the photograph.
        boxes: (L, 4) float64, left, top, width, height of the region in pixels.
    """

    photograph: int
    maps: tuple[Affine, ...]
    boxes: np.ndarray


class RegionClip(Clip):
    """Views of one photograph; the target is a region of it. The photograph is read when more than a name is asked for.

    Attributes:
        visible: (L,) bool, always.
    """

    attributes = ()
    size = (SIDE, SIDE)

    def __init__(self, name: str, pool: Pool, seed: tuple[int, ...]) -> None:
        """Keep what :attr:`views` are drawn from."""
        self.name, self._pool, self._seed = name, pool, seed
        self.visible = np.ones(FRAMES, bool)

    @cached_property
    def views(self) -> Views:
        """Where the region is, and how it is seen."""
        rng = np.random.default_rng(self._seed)
        number = int(rng.integers(len(self._pool.photographs)))
        photo = self._pool.photograph(number)
        for _ in range(TRIES):
            middle, sides = _draw_region(rng, photo.size)
            if _contrast(photo, middle, sides) >= FLAT:
                break
        shown = np.exp(rng.uniform(*np.log(SHOWN)))
        corners = middle + sides * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
        maps, boxes = [], []
        for _ in range(FRAMES):
            linear = draw_linear(rng, np.sqrt(sides.prod()) / shown * np.exp(0.2 * rng.normal()), 0.15)
            place = SIDE / 2 + rng.uniform(-1, 1, 2) * SIDE / 4
            maps.append(about(linear, middle, place))
            seen = apply(inverse(maps[-1]), corners)
            boxes.append(np.concatenate([seen.min(axis=0), np.ptp(seen, axis=0)]))
        return Views(number, tuple(maps), np.stack(boxes))

    @property
    def boxes(self) -> np.ndarray:  # pyrefly: ignore[bad-override]
        """(L, 4) float64, the smallest boxes around the region's corners."""
        return self.views.boxes

    def __len__(self) -> int:
        return FRAMES

    def frame(self, index: int) -> np.ndarray:
        """Draw frame `index`."""
        if not 0 <= index < FRAMES:
            raise IndexError(f"frame {index} of {FRAMES}")
        photo = self._pool.photograph(self.views.photograph)
        view = warped(photo, self.views.maps[index], SIDE, mean_colour(photo))
        return developed(view, np.random.default_rng((*self._seed, index)), STRENGTH)


class RegionClips(DrawnClips[RegionClip]):
    """The clips of a split."""

    def make(self, name: str, seed: tuple[int, ...]) -> RegionClip:
        """Make a clip."""
        return RegionClip(name, self.pool, seed)


@register("data", "photo_regions", summary="clips whose target is any region of a photograph",
          config=PhotoRegionsConfig, gives="clips")  # fmt: skip
def photo_regions(config: PhotoRegionsConfig) -> ClipSplits:
    """Return the splits; the test set is called ``photo_regions``. No photograph is in two of them.

    Raises:
        DataError: a folder is missing or has too few photographs.
    """
    divided = pools(config.photographs or None)
    counts = {"train": config.train_clips, "val": config.test_clips, "test": config.test_clips}
    sets = {
        split: ClipSet(
            "photo_regions" if split == "test" else split,
            RegionClips(split, divided[split], config.seed, counts[split]),
            digest_of(config.seed, [key for key, _ in divided[split].photographs]),
        )
        for split in SPLITS
    }
    return ClipSplits(sets["train"], sets["val"], {"photo_regions": sets["test"]})


def _draw_region(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw middle and sides (2,) of a region inside a photograph of `size`."""
    extent = np.array(size, dtype=float)
    side = extent.min() * np.exp(rng.uniform(*np.log(REGION)))
    aspect = np.exp(0.35 * rng.normal() / 2)
    sides = np.minimum(side * np.array([aspect, 1 / aspect]), extent)
    return sides / 2 + rng.random(2) * (extent - sides), sides


def _contrast(photo: Image.Image, middle: np.ndarray, sides: np.ndarray) -> float:
    left, top = middle - sides / 2
    part = photo.resize((8, 8), Image.Resampling.BOX, box=(left, top, left + sides[0], top + sides[1]))
    return float(np.asarray(part, dtype=float).std(axis=(0, 1)).mean())
