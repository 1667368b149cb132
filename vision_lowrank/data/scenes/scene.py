"""A scene: a clip that is drawn as it is read, with all its objects' boxes and masks.

A scene is a pure function of (settings, pool, seed, number). All that happens is drawn when it is made, without a
picture being read; any frame can then be asked for in any order and costs the same.

The box of the *target* is the tight box of its whole mask, what is hidden included, cut at the frame's border; that of
an object in :attr:`View.boxes` is the tight box of those pixels of it that are seen. A pixel belongs to an object from
an alpha of one half, before motion blur, so a mask is where the object is in the middle of the exposure.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from PIL import Image, ImageFilter

from ..boxes import Boxes
from ..tracking.base import Clip
from .cast import Actor, Casting, SceneSettings
from .motion import Camera, curves
from .pools import Pool, class_names
from .render import MARGIN, Layer, blurred_background, draw_background, draw_layer, finish, lay
from .textures import Texture

LEAST_SEEN = 0.1  # of the target, from which it is visible
NOISES = (0, 0, 2, 4, 6)
SOFT, DEFOCUSED = 0.25, 0.15


class Scene:
    """Objects that move over a photograph.

    Attributes:
        size: (width, height) of the frames in pixels.
        classes: names of classes, index = label.
        actors: the objects; number 0 is the target.
        camera: what the camera does.
    """

    def __init__(self, pool: Pool, settings: SceneSettings, seed: tuple[int, ...]) -> None:
        """Draw what happens.

        Args:
            pool: photographs and emoji of a split.
            settings: of all scenes.
            seed: of this scene.
        """
        rng = np.random.default_rng(seed)
        self.pool, self.size, self.classes = pool, settings.size, class_names()
        self._frames = settings.frames
        self._photograph = int(rng.integers(len(pool.photographs)))
        self.camera = Camera.draw(rng, settings.size, settings.frames)
        self.actors: tuple[Actor, ...] = Casting(rng, pool, settings, self.camera, self._photograph).draw()
        self._order = sorted(range(len(self.actors)), key=lambda number: _depth(number, self.actors[number]))
        self._placing = rng.random(3)
        self._draw_optics(rng)

    def __len__(self) -> int:
        return self._frames

    def view(self, index: int) -> View:
        """Return frame `index` with all that is known of it; nothing is drawn before it is asked for.

        Raises:
            IndexError: there is no such frame.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of a scene of {len(self)}")
        return View(self, index)

    def frame(self, index: int) -> np.ndarray:
        """Draw frame `index`, (H, W, 3) uint8 RGB; see :attr:`View.frame`."""
        return self.view(index).frame

    def boxes(self, index: int) -> Boxes:
        """Return the boxes of what is seen in frame `index`; see :attr:`View.boxes`."""
        return self.view(index).boxes

    def masks(self, index: int) -> np.ndarray:
        """Return the pixels seen of each object in frame `index`, (N, H, W) bool; see :attr:`View.masks`."""
        return self.view(index).masks

    @cached_property
    def attributes(self) -> tuple[str, ...]:
        """What makes the target hard to follow, by how the scene was drawn."""
        roles, (target, *_) = [actor.role for actor in self.actors], self.actors
        middle, size = target.places, target.poses.size
        speed = np.hypot(*np.diff(middle, axis=0).T) / size[1:]
        drift = np.hypot(*np.diff(self.camera.pan + self.camera.shake, axis=0).T)
        holds = {
            "occlusion": "occluder" in roles,
            "distractor": "twin" in roles or "distractor" in roles,
            "twin": "twin" in roles,
            "out of view": bool((np.abs(middle) > np.array(self.size) / 2).any()),
            "fast motion": bool(speed.max() > 0.4),
            "scale variation": bool(size.max() / size.min() > 1.6),
            "rotation": bool(np.ptp(target.poses.angles[:, 0]) > 0.8),
            "out-of-plane rotation": bool(np.ptp(target.poses.angles[:, 1:], axis=0).max() > 0.8),
            "deformation": bool(target.poses.bend.any()),
            "camera motion": bool(drift.mean() > 1),
            "illumination variation": bool(np.ptp(np.log(self._light), axis=0).max() > 0.35),
            "low resolution": bool(size.min() < 20),
        }
        return tuple(name for name, is_so in holds.items() if is_so)

    def _draw_optics(self, rng: np.random.Generator) -> None:
        """Draw light, focus, exposure and noise."""
        drawn = curves(rng, 2 * np.pi / rng.uniform(30, 150, 6), len(self))
        amount = np.array([0.3, 0.25, 0.08, 0.08, 0.08]) * (rng.random() ** 2)
        gain, gamma, *cast = np.exp(amount[:, None] * drawn[:5])
        self._light = np.stack([*(gain * colour for colour in cast), gamma], axis=1)
        self._defocus = np.maximum(1.8 * drawn[5] * (rng.random() < DEFOCUSED), 0)
        self._softness = float(rng.uniform(0.5, 2) * (rng.random() < SOFT))
        self._shutter = float(rng.uniform(0, 0.5))
        self._noise = int(NOISES[int(rng.integers(len(NOISES)))])
        self._corners = rng.integers(64, size=(len(self), 2)).tolist()

    @cached_property
    def _background(self) -> tuple[Image.Image, np.ndarray]:
        """The photograph, and `world` of :func:`.render.draw_background`."""
        photograph = self.pool.photograph(self._photograph)
        if self._softness:
            photograph = photograph.filter(ImageFilter.BoxBlur(self._softness))
        half = np.array(self.size) / 2 + MARGIN
        corners = half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        seen = np.einsum("tij,cj->tci", self._views[..., :2], corners) + self._views[:, None, :, 2]
        low, high = seen.min(axis=(0, 1)) - 1, seen.max(axis=(0, 1)) + 1
        fits = (np.array(photograph.size) / (high - low)).min()
        scale = fits * (0.75 + 0.25 * self._placing[0])
        corner = self._placing[1:] * (np.array(photograph.size) - scale * (high - low))
        return photograph, np.array([scale, *(corner - scale * low)])

    @cached_property
    def _views(self) -> np.ndarray:
        return self.camera.views()

    @cached_property
    def _textures(self) -> dict[int, Texture]:
        """Textures by the identity of their look, filled as they are needed: a twin shares its target's."""
        return {}

    def _texture(self, number: int) -> Texture:
        look = self.actors[number].look
        if id(look) not in self._textures:
            self._textures[id(look)] = look.texture(self.pool)
        return self._textures[id(look)]


class View:
    """One frame of a scene: what is asked for is drawn once.

    Attributes:
        scene: the scene.
        index: the frame's number.
    """

    def __init__(self, scene: Scene, index: int) -> None:
        self.scene, self.index = scene, index
        self._drawn: dict[int, Layer] = {}

    @cached_property
    def frame(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        scene, t = self.scene, self.index
        photograph, world = scene._background
        wide = draw_background(photograph, scene._views[t], world, scene.size)
        near = slice(max(t - 1, 0), t + 2)
        streak = scene._shutter * _velocity((scene.camera.shake - scene.camera.pan)[near])
        frame = blurred_background(wide, streak)
        for number in scene._order:
            motion = scene._shutter * _velocity(scene.actors[number].places[near])
            lay(frame, self._layer(number), motion)
        return finish(frame, scene._light[t], float(scene._defocus[t]), scene._noise, tuple(scene._corners[t]))

    @cached_property
    def numbers(self) -> np.ndarray:
        """(N,) int64, rising: the objects of which a pixel is seen, 0 the target; rows of `masks` and `boxes`."""
        return np.unique(self._owners[self._owners >= 0]).astype(np.int64)

    @cached_property
    def masks(self) -> np.ndarray:
        """(N, H, W) bool, the pixels seen of each object; they do not overlap."""
        return self._owners[None] == self.numbers[:, None, None]

    @cached_property
    def boxes(self) -> Boxes:
        """The tight box of each mask, with its class."""
        labels = [self.scene.actors[number].label for number in self.numbers]
        return Boxes([_tight(mask) for mask in self.masks], labels=labels, size=self.scene.size)

    @cached_property
    def target_box(self) -> np.ndarray:
        """(4,) float64, left, top, width, height of the whole target, cut at the frame; NaN where it is outside."""
        layer = self._layer(0)
        there, own = layer.inside(self.scene.size)
        solid = layer.solid[own]
        if not solid.any():
            return np.full(4, np.nan)
        left, top, right, bottom = _tight(solid)
        return np.array([left + there[1].start, top + there[0].start, right - left, bottom - top], dtype=np.float64)

    @cached_property
    def target_seen(self) -> float:
        """Share of the target's pixels that are inside the frame and not hidden."""
        whole = self._layer(0).solid.sum()
        return float((self._owned(self.scene._order.index(0)) == 0).sum() / max(int(whole), 1))

    @cached_property
    def _owners(self) -> np.ndarray:
        return self._owned(0)

    def _owned(self, first: int) -> np.ndarray:
        """Return the number of the object that each pixel shows, (H, W) int8, -1 = background; those before place
        `first` of the order from back to front are left out.
        """
        owners = np.full(self.scene.size[::-1], -1, dtype=np.int8)
        for number in self.scene._order[first:]:
            layer = self._layer(number)
            there, own = layer.inside(self.scene.size)
            owners[there][layer.solid[own]] = number
        return owners

    def _layer(self, number: int) -> Layer:
        if number not in self._drawn:
            actor = self.scene.actors[number]
            place = actor.places[self.index] + np.array(self.scene.size) / 2
            self._drawn[number] = draw_layer(self.scene._texture(number), place, actor.poses, self.index)
        return self._drawn[number]


class SceneClip(Clip):
    """A scene as a clip to track its target in; it is drawn when it is first asked for more than its name or length.

    Attributes:
        name: such as ``test-000012``.
        size: (width, height) of the frames in pixels.
    """

    def __init__(self, name: str, pool: Pool, settings: SceneSettings, seed: tuple[int, ...]) -> None:
        """Keep what :class:`Scene` needs."""
        self.name, self.size = name, settings.size
        self._made_of = (pool, settings, seed)
        self._looked_at: View | None = None

    def __len__(self) -> int:
        return self._made_of[1].frames

    def _view(self, index: int) -> View:
        """Return the view of a frame; the one looked at last is kept, so that box and frame are drawn from one."""
        if self._looked_at is None or self._looked_at.index != index:
            self._looked_at = self.scene.view(index)
        return self._looked_at

    @cached_property
    def scene(self) -> Scene:
        """The scene."""
        return Scene(*self._made_of)

    def frame(self, index: int) -> np.ndarray:
        """Draw frame `index`, (H, W, 3) uint8 RGB."""
        return self._view(index).frame

    def box(self, index: int) -> np.ndarray:
        """Return the target's box in frame `index`, which alone is looked at."""
        return self._view(index).target_box

    def sees(self, index: int) -> bool:
        """Tell whether a tenth or more of the target is seen in frame `index`, which alone is looked at."""
        return self._view(index).target_seen >= LEAST_SEEN

    @property
    def boxes(self) -> np.ndarray:
        """(L, 4) float64, the whole target's tight box, cut at the frame's border; NaN where it is outside."""
        return self._targets[0]

    @property
    def visible(self) -> np.ndarray:
        """(L,) bool, whether a tenth or more of the target is seen."""
        return self._targets[1]

    @property
    def attributes(self) -> tuple[str, ...]:
        """What makes it hard, see :attr:`Scene.attributes`."""
        return self.scene.attributes

    @cached_property
    def _targets(self) -> tuple[np.ndarray, np.ndarray]:
        """Boxes and visibility of all frames, each drawn once for both, and none kept."""
        views = map(self.scene.view, range(len(self)))
        boxes, seen = zip(*((view.target_box, view.target_seen) for view in views), strict=True)
        return np.stack(boxes), np.array(seen) >= LEAST_SEEN


def _depth(number: int, actor: Actor) -> tuple[int, int]:
    """Return what sorts objects from back to front."""
    place = 1 if actor.role == "target" else 3 if actor.role == "occluder" else 2 if actor.front else 0
    return place, number


def _velocity(places: np.ndarray) -> np.ndarray:
    """Return the mean motion (2,) a frame over some frames next to each other, (n, 2)."""
    return (places[-1] - places[0]) / max(len(places) - 1, 1)


def _tight(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of a mask (h, w) with a pixel."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
