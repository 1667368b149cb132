"""What takes part in a scene: the target, distractors of its kind and others, and occluders that pass before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ..outlines import random_outline
from .motion import Camera, Poses, draw_path
from .pools import CUT_OUT, Pool, label_of
from .textures import CutOutLook, EmojiLook

Look: TypeAlias = EmojiLook | CutOutLook

EMOJI = "emoji"
EMOJI_TARGETS, OCCLUDED, BARS, LEAVING, FIXED = 0.55, 0.45, 0.3, 0.1, 0.25
REACH = 0.75  # of an object's size: a circle of this radius about its middle holds it


@dataclass(frozen=True)
class SceneSettings:
    """What all scenes of a data set share.

    Attributes:
        size: (width, height) of the frames in pixels.
        frames: of a scene, 2 or more.
        styles: of emoji.
        objects: kinds of target, ``emoji`` and ``photograph``.
        target_sizes: range of the target's mean size, the square root of width times height, in pixels.
        twins: share of scenes in which another object looks exactly like the target.
    """

    size: tuple[int, int] = (320, 240)
    frames: int = 60
    styles: tuple[str, ...] = ("noto", "twemoji", "openmoji", "fluent")
    objects: tuple[str, ...] = (EMOJI, CUT_OUT)
    target_sizes: tuple[float, float] = (16.0, 110.0)
    twins: float = 0.3


@dataclass(frozen=True)
class Actor:
    """One object of a scene.

    Attributes:
        look: what it looks like.
        label: its class.
        role: ``target``, ``twin``, ``distractor`` or ``occluder``.
        places: (L, 2), its middle in pixels from the frame's.
        poses: how it is seen.
        front: whether it is nearer than the target.
    """

    look: Look
    label: int
    role: str
    places: np.ndarray
    poses: Poses
    front: bool


class Casting:
    """Draws the actors of a scene, one after another from one source of randomness."""

    def __init__(
        self, rng: np.random.Generator, pool: Pool, settings: SceneSettings, camera: Camera, avoid: int
    ) -> None:
        """Draw from which photographs pieces are cut.

        Args:
            rng: source of randomness.
            pool: of the split.
            settings: of all scenes.
            camera: of this scene.
            avoid: number of the photograph that is the background; nothing is cut out of it if there is another.
        """
        self.rng, self.pool, self.settings, self.camera = rng, pool, settings, camera
        others = [number for number in range(len(pool.photographs)) if number != avoid] or [avoid]
        self.donors = tuple(others[int(number)] for number in rng.integers(len(others), size=2))

    def draw(self) -> tuple[Actor, ...]:
        """Draw all actors, the target first."""
        target = self._target()
        actors = [target, *self._distractors(target)]
        if self.rng.random() < OCCLUDED:
            passing = (self._occluder(target) for _ in range(int(self.rng.integers(1, 3))))
            actors += [occluder for occluder in passing if occluder is not None]
        return tuple(actors)

    def _target(self) -> Actor:
        rng, settings = self.rng, self.settings
        size = float(np.exp(rng.uniform(*np.log(settings.target_sizes))))
        margin = (-0.9 if rng.random() < LEAVING else 0.6) * size
        path = draw_path(rng, settings.size, settings.frames, size, margin, starts=True)
        share = EMOJI_TARGETS if len(set(settings.objects)) > 1 else float(EMOJI in settings.objects)
        look = self._emoji() if rng.random() < share else self._cut_out(self.donors[0])
        return self._actor("target", look, path, size)

    def _distractors(self, target: Actor) -> list[Actor]:
        """Draw a twin or none, up to two of the target's kind, and up to two others."""
        rng, size = self.rng, float(target.poses.size[0])
        twin = rng.random() < self.settings.twins
        looks = [("twin", target.look, size * rng.uniform(0.9, 1.1))] if twin else []
        looks += [("distractor", self._like(target.look), size * rng.uniform(0.7, 1.4)) for _ in range(rng.integers(3))]
        looks += [
            ("distractor", self._other(), float(np.exp(rng.uniform(*np.log(self.settings.target_sizes)))))
            for _ in range(rng.integers(3))
        ]
        return [self._actor(role, look, self._way(extent), extent, target) for role, look, extent in looks]

    def _way(self, extent: float) -> np.ndarray:
        """Draw a distractor's way (L, 2); that of some is to stand still in the scene."""
        settings = self.settings
        path = draw_path(self.rng, settings.size, settings.frames, extent, 0.3 * extent)
        return path[:1] - self.camera.pan if self.rng.random() < FIXED else path

    def _occluder(self, target: Actor) -> Actor | None:
        """Draw what crosses the target's way once, in a straight line; None where it would hide it in frame 0."""
        rng, frames = self.rng, self.settings.frames
        own, bar = float(target.poses.size[0]), rng.random() < BARS
        extent = own * rng.uniform(1.0, 2.0 if bar else 1.5)
        look = (
            self._bar() if bar else self._cut_out(self.donors[1]) if CUT_OUT in self.settings.objects else self._emoji()
        )
        angles, when = rng.uniform(0, 2 * np.pi, 8), rng.uniform(0.15, 0.9, 8) * (frames - 1)
        directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        speed = (own + extent) / rng.uniform(8, 25)
        meets = target.places[when.astype(int)]
        ways = meets[:, None] + speed * (np.arange(frames) - when[:, None])[..., None] * directions[:, None]
        apart = ways[:, 0] - target.places[0]
        gaps = np.abs((apart * directions).sum(axis=-1)) if bar else np.hypot(*apart.T)
        clear = gaps > REACH * (own + extent)
        if not clear.any():
            return None
        chosen = int(np.argmax(clear))
        # a bar is upright when not rolled: it moves along its normal
        roll = float(angles[chosen]) if bar else None
        return self._actor("occluder", look, ways[chosen], extent, target, roll)

    def _actor(
        self,
        role: str,
        look: Look,
        path: np.ndarray,
        extent: float,
        target: Actor | None = None,
        roll: float | None = None,
    ) -> Actor:
        """Draw an actor's poses, and whether it is before the target: not where it would hide it in frame 0."""
        poses = Poses.draw(self.rng, len(path), extent, self.camera)
        front = role == "occluder"
        if roll is not None:
            poses = poses.stiff(roll + self.camera.roll)
        elif target is not None and not front:
            gap = float(np.hypot(*(path[0] - target.places[0])))
            clear = gap > REACH * float(poses.size[0] + target.poses.size[0])
            front = bool(self.rng.random() < 0.5) and clear
        label = label_of()[look.row.group if isinstance(look, EmojiLook) else CUT_OUT]
        return Actor(look, label, role, self.camera.see(path), poses, front)

    def _emoji(self) -> EmojiLook:
        row = self.pool.emoji[int(self.rng.integers(len(self.pool.emoji)))]
        return EmojiLook(self._style(), row)

    def _like(self, look: Look) -> Look:
        """Draw something of the same kind: an emoji of the same sub-group and style, a piece of the same photograph."""
        if isinstance(look, CutOutLook):
            return self._cut_out(look.photograph)
        rows = self.pool.by_subgroup[look.row.subgroup]
        return EmojiLook(look.style, rows[int(self.rng.integers(len(rows)))])

    def _other(self) -> Look:
        kinds = self.settings.objects
        emoji = kinds[int(self.rng.integers(len(kinds)))] == EMOJI
        return self._emoji() if emoji else self._cut_out(self.donors[1])

    def _cut_out(self, photograph: int) -> CutOutLook:
        outline = random_outline(self.rng)
        return CutOutLook(photograph, outline, float(self.rng.uniform(0.2, 0.5)), self.rng.random((4, 2)))

    def _bar(self) -> CutOutLook:
        """Draw a tall rectangle."""
        half = np.array([0.5, 0.5 * self.rng.uniform(3, 7)])
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half / np.sqrt(4 * half.prod())
        return CutOutLook(self.donors[1], corners, float(self.rng.uniform(0.2, 0.35)), self.rng.random((4, 2)))

    def _style(self) -> str:
        return self.settings.styles[int(self.rng.integers(len(self.settings.styles)))]
