"""Random smooth outlines, of regions and of what is cut out of photographs.

An outline is a polygon of unit area about the origin: a *blob* r(θ) = 1 + Σ_k a_k cos(kθ + φ_k), a_k ~ N(0, 0.2 / k),
k = 1…5, stretched and turned; an ellipse; or a rectangle.
"""

from __future__ import annotations

import numpy as np

POINTS, HARMONICS, ROUGHNESS = 96, 5, 0.2
OUTLINES = {"blob": 0.6, "ellipse": 0.2, "rectangle": 0.2}


def random_outline(rng: np.random.Generator) -> np.ndarray:
    """Draw (n, 2) points of a polygon of unit area."""
    form = rng.choice(list(OUTLINES), p=list(OUTLINES.values()))
    if form == "rectangle":
        points = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    else:
        angles = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
        radii = np.ones(POINTS)
        if form == "blob":
            orders = np.arange(1, HARMONICS + 1)
            waves = np.cos(np.outer(angles, orders) + rng.uniform(0, 2 * np.pi, HARMONICS))
            radii = np.clip(1 + waves @ (rng.normal(0, ROUGHNESS, HARMONICS) / orders), 0.3, None)
        points = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    stretch = np.exp(rng.uniform(-0.4, 0.4))
    points = points * [stretch, 1 / stretch]
    if form != "rectangle":
        turn = rng.uniform(0, 2 * np.pi)
        points = points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    x, y = points.T
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    return points / np.sqrt(area)
