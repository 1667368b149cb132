"""How things move: smooth curves, the camera's view, and the place and pose of every object, all frames at once.

A curve is a sum of three sines with weights 0.6, 0.28 and 0.12 and frequencies of about 1, 2.1 and 3.7 times a base, so
it stays in [-1, 1] and its slope has a root mean square of about 0.67 times the base frequency. Objects move on a plane
in frame pixels, (0, 0) the middle of the frame, which the camera sees through zoom, roll and shake; pan moves only what
stands still in the scene: the background, and objects that are fixed to it. In frame 0 the camera is neutral.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

WEIGHTS = np.array([0.6, 0.28, 0.12])
RATIOS = np.array([1.0, 2.1, 3.7])
SLOPE = float(np.sqrt(((WEIGHTS * RATIOS) ** 2).sum() / 2))
FASTEST = 2 * np.pi / 30  # radians a frame, of a curve's base


def curves(rng: np.random.Generator, rates: np.ndarray, frames: int) -> np.ndarray:
    """Draw smooth curves, (n, frames) in [-1, 1].

    Args:
        rng: source of randomness.
        rates: (n,), base frequencies in radians a frame.
        frames: how many.
    """
    ratios = RATIOS * rng.uniform(0.85, 1.15, (len(rates), 3))
    phases = rng.uniform(0, 2 * np.pi, (len(rates), 3))
    angles = (rates[:, None] * ratios)[..., None] * np.arange(frames) + phases[..., None]
    return np.einsum("k,nkt->nt", WEIGHTS, np.sin(angles))


@dataclass(frozen=True)
class Camera:
    """What the camera does in each frame.

    Attributes:
        zoom: (L,), factor, 1 in frame 0.
        roll: (L,), radians, 0 in frame 0.
        shake: (L, 2), pixels, 0 in frame 0.
        pan: (L, 2), pixels on the plane, 0 in frame 0.
    """

    zoom: np.ndarray
    roll: np.ndarray
    shake: np.ndarray
    pan: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, size: tuple[int, int], frames: int) -> Camera:
        """Draw a camera for frames of `size` (width, height); three of ten do not roll."""
        rates = np.concatenate([2 * np.pi / rng.uniform(60, 200, 4), 2 * np.pi / rng.uniform(9, 20, 2)])
        drawn = curves(rng, rates, frames)
        drawn -= drawn[:, :1]
        pan, zoom, roll, shake = rng.random(4) ** [1, 1.5, 1, 3]
        rolls = rng.random() < 0.3
        return cls(
            zoom=np.exp(0.18 * zoom * drawn[2]),
            roll=0.07 * roll * rolls * drawn[3],
            shake=5 * shake * drawn[4:].T,
            pan=0.16 * pan * np.array(size) * drawn[:2].T,
        )

    def see(self, points: np.ndarray) -> np.ndarray:
        """Return where points of the plane, (..., L, 2), are in each frame, (..., L, 2) pixels from its middle."""
        cosine, sine = np.cos(self.roll), np.sin(self.roll)
        x, y = points[..., 0], points[..., 1]
        turned = np.stack([cosine * x - sine * y, sine * x + cosine * y], axis=-1)
        return self.zoom[:, None] * turned + self.shake

    def views(self) -> np.ndarray:
        """Return each frame's affine map (L, 2, 3) from pixels about the frame's middle to the background's plane."""
        cosine, sine = np.cos(self.roll) / self.zoom, np.sin(self.roll) / self.zoom
        inverse = np.stack([np.stack([cosine, sine], axis=-1), np.stack([-sine, cosine], axis=-1)], axis=-2)
        shift = self.pan - np.einsum("tij,tj->ti", inverse, self.shake)
        return np.concatenate([inverse, shift[..., None]], axis=-1)


def draw_path(
    rng: np.random.Generator, size: tuple[int, int], frames: int, extent: float, margin: float, starts: bool = False
) -> np.ndarray:
    """Draw a way about the frame, (L, 2) on the plane.

    Its speed, as a share of the object's size a frame, is drawn evenly on a logarithmic scale from 0.02 to 0.4.

    Args:
        rng: source of randomness.
        size: (width, height) of the frame.
        frames: how many.
        extent: the object's size in pixels.
        margin: how far the middle stays from the frame's border, in pixels; negative lets it leave.
        starts: it is inside by 0.6 of its size in frame 0, whatever the margin.
    """
    half = np.maximum(np.array(size) / 2 - margin, 0.1 * np.array(size))
    reach = half * rng.uniform(0.4, 1, 2)
    middle = (half - reach) * rng.uniform(-1, 1, 2)
    speed = extent * np.exp(rng.uniform(np.log(0.02), np.log(0.4)))
    direction = rng.uniform(0.2, 0.8)
    shares = np.sqrt([direction, 1 - direction])
    rates = np.minimum(speed * shares / (SLOPE * reach), FASTEST)
    tries = 12 if starts else 1
    drawn = curves(rng, np.tile(rates, tries), frames).reshape(tries, 2, frames)
    paths = middle[:, None] + reach[:, None] * drawn
    if starts:
        inside = np.maximum(np.array(size) / 2 - 0.6 * extent, 0.1 * np.array(size))
        beyond = (np.abs(paths[:, :, 0]) - inside).max(axis=1)
        paths = paths[[int(np.argmax(beyond <= 0)) if (beyond <= 0).any() else int(np.argmin(beyond))]]
    return paths[0].T


@dataclass(frozen=True)
class Poses:
    """How one object is seen in each frame.

    Attributes:
        size: (L,), square root of width times height in pixels, seen from the front.
        angles: (L, 3), roll, yaw and pitch in radians.
        bend: (2,), how far its parts move to the sides, as shares of its size.
        waves: (2, 3), of each bend: frequency across the object, radians a frame, phase.
    """

    size: np.ndarray
    angles: np.ndarray
    bend: np.ndarray
    waves: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, frames: int, size: float, camera: Camera) -> Poses:
        """Draw an object's poses; `size` is its mean one."""
        drawn = curves(rng, 2 * np.pi / rng.uniform(40, 120, 4), frames)
        wide, turns, spins, bends = rng.random(4) < (0.5, 0.5, 0.15, 0.5)
        roll = rng.normal(0, 0.15) + rng.uniform(0, 0.9) * wide * drawn[1]
        roll = roll + spins * (2 * rng.integers(2) - 1) * rng.uniform(0.02, 0.1) * np.arange(frames) + camera.roll
        tilt = rng.uniform(0.2, 1, 2) * ([1.0, 0.6] if turns else [0.2, 0.2])
        waves = np.stack([rng.uniform(3, 8, 2), rng.uniform(-0.25, 0.25, 2), rng.uniform(0, 2 * np.pi, 2)], axis=1)
        return cls(
            size=size * np.exp(rng.uniform(0, 0.4) * drawn[0]) * camera.zoom,
            angles=np.stack([roll, *(tilt[:, None] * drawn[2:])], axis=1),
            bend=rng.uniform(0.03, 0.09, 2) * bends,
            waves=waves,
        )

    def stiff(self, roll: np.ndarray) -> Poses:
        """Return the same without tilt and bend, turned by `roll` (L,) radians."""
        return replace(self, angles=np.stack([roll, 0 * roll, 0 * roll], axis=1), bend=np.zeros(2))
