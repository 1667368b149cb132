"""``data: {type: emoji_scenes}``: clips that are drawn as they are read, of emoji and pieces of photographs that move.

Objects (emoji of four styles with exact masks, and pieces cut out of photographs) move, scale, turn, tilt, bend and are
hidden by others, over photographs that pan, zoom, roll, shake, blur and change light; twins and other distractors of
the target's kind move among them. Train, val and test have no emoji concept and no photograph in common, see
:mod:`.scenes.pools`. What a scene is, and how its boxes are defined, is in :mod:`.scenes.scene`; every clip of these
sets has its `scene`, whose boxes and masks of all objects are detection and segmentation data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ..config.marks import MAX_SEED, MAX_SIDE, Folder
from ..config.schema import Section
from ..registry import register
from .edits.dividing import SPLITS
from .emoji import STYLES, Style
from .scenes.cast import SceneSettings
from .scenes.drawn import DrawnClips, digest_of
from .scenes.pools import SHIPPED, Pool, class_names, pools
from .scenes.scene import Scene, SceneClip
from .tracking.base import ClipSet, ClipSplits

Kind = Literal["emoji", "photograph"]
Frame = Annotated[int, Field(ge=64, le=MAX_SIDE)]


def _two_sizes(pair: tuple[float, float]) -> tuple[float, float]:
    if not 8 <= pair[0] <= pair[1]:
        raise ValueError(f"{pair[0]:g} to {pair[1]:g} is no range of sizes: give the smaller first, 8 pixels or more")
    return pair


class EmojiScenesConfig(Section):
    """Options of ``data: {type: emoji_scenes}``."""

    type: Literal["emoji_scenes"] = "emoji_scenes"
    photographs: Folder | tuple[Folder, ...] = Field(
        SHIPPED, description="folder of photographs, or several; shipped = scikit-image's"
    )
    train_clips: int = Field(10_000, ge=1, le=10**6, description="training scenes; each is drawn when it is read")
    test_clips: int = Field(40, ge=1, le=10_000, description="clips to validate on, and as many to test on")
    frames: int = Field(60, ge=2, le=10_000, description="frames of a clip")
    size: tuple[Frame, Frame] = Field((320, 240), description="width and height of the frames in pixels")
    objects: tuple[Kind, ...] = Field(
        ("emoji", "photograph"), min_length=1, description="what moves: emoji, pieces cut out of photographs"
    )
    styles: tuple[Style, ...] = Field(STYLES, min_length=1, description="drawing styles of the emoji")
    target_sizes: Annotated[tuple[float, float], AfterValidator(_two_sizes)] = Field(
        (16.0, 110.0), description="range of the target's mean size, the square root of its area in pixels"
    )
    twins: float = Field(0.3, ge=0, le=1, description="share of clips in which a second object looks like the target")
    seed: int = Field(1, ge=0, le=MAX_SEED, description="of everything drawn; splits do not depend on it")

    @property
    def folders(self) -> tuple[str, ...] | None:
        """Folders of photographs; None = scikit-image's."""
        if self.photographs == SHIPPED:
            return None
        return (self.photographs,) if isinstance(self.photographs, str) else self.photographs

    @property
    def settings(self) -> SceneSettings:
        """What all scenes share."""
        return SceneSettings(self.size, self.frames, self.styles, self.objects, self.target_sizes, self.twins)


@dataclass(frozen=True)
class SceneClips(DrawnClips[SceneClip]):
    """The scenes of a split.

    Attributes:
        settings: of all scenes.
    """

    settings: SceneSettings

    def make(self, name: str, seed: tuple[int, ...]) -> SceneClip:
        """Make the clip of a scene."""
        return SceneClip(name, self.pool, self.settings, seed)

    def scene(self, number: int) -> Scene:
        """Return scene `number`, 0 or more: that of clip `number` where there is one."""
        return Scene(self.pool, self.settings, self.seed_of(number))


@dataclass(frozen=True)
class SceneSplits(ClipSplits):
    """What ``emoji_scenes`` gives: clips whose `scene` has the boxes and masks of all objects.

    Attributes:
        classes: names of the objects' classes, index = label.
    """

    classes: tuple[str, ...] = ()


@register(
    "data",
    "emoji_scenes",
    summary="clips drawn as they are read: emoji and cut-outs that move over photographs",
    config=EmojiScenesConfig,
    gives="clips boxes masks",
)
def emoji_scenes(config: EmojiScenesConfig) -> SceneSplits:
    """Return the splits; the test set is called ``emoji_scenes``. No scene is drawn yet.

    Raises:
        DataError: a folder is missing, given twice or cannot be listed, or has too few photographs.
    """
    divided = pools(config.folders)
    counts = {"train": config.train_clips, "val": config.test_clips, "test": config.test_clips}
    sets = {
        split: ClipSet(
            "emoji_scenes" if split == "test" else split,
            SceneClips(split, divided[split], config.seed, counts[split], config.settings),
            _identity(divided[split], config),
        )
        for split in SPLITS
    }
    return SceneSplits(sets["train"], sets["val"], {"emoji_scenes": sets["test"]}, classes=class_names())


def _identity(pool: Pool, config: EmojiScenesConfig) -> str:
    """Return a digest of all that a split's scenes are made of."""
    keys, codes = [key for key, _ in pool.photographs], [row.code for row in pool.emoji]
    return digest_of(config.settings, config.seed, keys, codes)
