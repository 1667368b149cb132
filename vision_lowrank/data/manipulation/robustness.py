"""What happens to photographs on their way: named degradations of a stored picture, before any resizing for a model.

    name              level                              standard levels
    gaussian_blur     kernel k in pixels, odd            3 7 11 15 19 23
    gaussian_noise    variance on the 8-bit scale        3 7 11 15 19 23
    jpeg              quality                            100 90 80 70 60 50
    webp              quality                            90 80 70 60 50
    resize            factor of both sides               0.75 0.5
    social            JPEG quality, after the long side was reduced to 2048 pixels       75
    double_jpeg       JPEG quality of the first saving; the second is at 90              80 70 50
    screenshot        1: saved anew as PNG                                               1

Level 0 is the clean picture, returned as it is. Blur is k taps of a Gaussian of sigma = 0.3 ((k - 1) / 2 - 1) + 0.8,
the picture mirrored at its outermost pixels. Noise has a standard deviation of sqrt(variance), independent per pixel
and channel; it is drawn from the picture's key, so that a picture gets the same pattern every time, and at every level
the same one, scaled. JPEG is exactly of its quality, with 4:2:0 chroma; IMDL-BenCo draws from q - 1 and q. A
screenshot changes no pixel: it takes away what a file says besides (camera, tables of its JPEG, colour profile), so
that any change of a score shows a detector that looks at that.

Masks and boxes follow the geometry alone, masks by nearest neighbour.

The first three are the protocol of IMDL-BenCo (arXiv 2406.10580), the others this project's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from math import sqrt
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from ...errors import DataError, UserError, near_miss
from ..boxes import Boxes

SOCIAL_SIDE = 2048
RESAVED = 90


@dataclass(frozen=True)
class Degradation:
    """One degradation at one level; its text form is such as ``jpeg-70``, see :func:`parse`.

    Attributes:
        name: see the module docstring.
        level: its strength; 0 = none.

    Raises:
        UserError: the name is unknown or the level impossible.
    """

    name: str
    level: float

    def __post_init__(self) -> None:
        if self.name not in _KINDS:
            known = ", ".join(_KINDS)
            raise UserError(f"unknown degradation '{self.name}'.{near_miss(self.name, _KINDS)} Known: {known}.")
        kind = _KINDS[self.name]
        if not self.clean and not kind.allowed(self.level):
            raise UserError(f"{self.name} needs {kind.levels}, or 0 for the clean picture, not {self.level:g}.")

    @property
    def clean(self) -> bool:
        """Whether it changes nothing."""
        return self.level == 0

    def apply(self, image: Image.Image, key: str = "") -> Image.Image:
        """Degrade an RGB picture.

        Args:
            image: RGB, as stored.
            key: the picture's id, which noise is drawn from.
        """
        return image if self.clean else _KINDS[self.name].apply(image, self.level, key)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) of a picture of `width` x `height` pixels afterwards."""
        return (width, height) if self.clean else _KINDS[self.name].size(width, height, self.level)

    def apply_mask(self, mask: np.ndarray) -> np.ndarray:
        """Resize a mask (H, W) bool to that of the degraded picture."""
        size = self.size(mask.shape[1], mask.shape[0])
        if size == mask.shape[::-1]:
            return mask
        return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))

    def apply_truth(
        self, mask: np.ndarray | None, boxes: Boxes | None, width: int, height: int
    ) -> tuple[np.ndarray | None, Boxes | None]:
        """Change mask and boxes of a picture that was `width` x `height` pixels; what is not annotated stays so."""
        return (
            None if mask is None else self.apply_mask(mask),
            None if boxes is None else boxes.resize(self.size(width, height)),
        )

    def __str__(self) -> str:
        return f"{self.name}-{self.level:g}"


def parse(text: str) -> Degradation:
    """Parse the degradation that `text` names, such as ``jpeg-70``; ``social`` and ``screenshot`` need no level.

    Raises:
        UserError: it names none.
    """
    name, separator, level = text.partition("-")
    if not separator:
        standard = _KINDS[name].standard if name in _KINDS else (0.0,)
        if len(standard) > 1:
            raise UserError(f"degradation '{text}' lacks its level: write such as '{name}-{standard[0]:g}'.")
        return Degradation(name, standard[0])
    try:
        return Degradation(name, float(level))
    except ValueError:
        raise UserError(f"level '{level}' of degradation '{text}' is no number: write such as 'jpeg-70'.") from None


def curves() -> dict[str, tuple[Degradation, ...]]:
    """List the standard levels of every degradation, from weak to strong, without the clean picture they start from."""
    return {name: tuple(Degradation(name, level) for level in kind.standard) for name, kind in _KINDS.items()}


def encoded(image: Image.Image, encoding: str, **options: Any) -> Image.Image:
    """Encode an RGB picture in memory with Pillow's `encoding` and `options`, and decode it again.

    Raises:
        DataError: the format cannot hold a picture of this size (WebP ends at 16383 pixels a side).
    """
    buffer = BytesIO()
    try:
        # Without its info no encoder is told of a colour profile, a comment or a camera.
        Image.fromarray(np.asarray(image)).save(buffer, encoding, **options)
    except (OSError, ValueError) as error:
        size = f"{image.width} x {image.height} pixels"
        raise DataError(f"a picture of {size} cannot be saved as {encoding} ({error}): leave it out.") from None
    return Image.open(buffer).convert("RGB")


def _jpeg(image: Image.Image, level: float, key: str = "") -> Image.Image:
    return encoded(image, "JPEG", quality=int(level), subsampling="4:2:0")


def _webp(image: Image.Image, level: float, key: str = "") -> Image.Image:
    return encoded(image, "WEBP", quality=int(level))


def _double_jpeg(image: Image.Image, level: float, key: str = "") -> Image.Image:
    return _jpeg(_jpeg(image, level), RESAVED)


def _screenshot(image: Image.Image, level: float, key: str = "") -> Image.Image:
    return encoded(image, "PNG", compress_level=1)


def _blur(image: Image.Image, level: float, key: str = "") -> Image.Image:
    radius = (int(level) - 1) // 2
    sigma, reach = 0.3 * (radius - 1) + 0.8, (radius, radius, 0)
    values = np.asarray(image, dtype=np.float32)
    return _picture(gaussian_filter(values, (sigma, sigma, 0), mode="mirror", radius=reach))


def _noise(image: Image.Image, level: float, key: str = "") -> Image.Image:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    values = np.asarray(image, dtype=np.float32)
    pattern = np.random.default_rng(seed).standard_normal(values.shape, dtype=np.float32)
    return _picture(values + sqrt(level) * pattern)


def _resize(image: Image.Image, level: float, key: str = "") -> Image.Image:
    return image.resize(_scaled(*image.size, level), Image.Resampling.BICUBIC)


def _social(image: Image.Image, level: float, key: str = "") -> Image.Image:
    return _jpeg(image.resize(_shared(*image.size), Image.Resampling.BICUBIC), level)


def _picture(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))


def _same(width: int, height: int, level: float = 0) -> tuple[int, int]:
    return width, height


def _scaled(width: int, height: int, level: float) -> tuple[int, int]:
    return max(1, round(width * level)), max(1, round(height * level))


def _shared(width: int, height: int, level: float = 0) -> tuple[int, int]:
    return _scaled(width, height, min(1, SOCIAL_SIDE / max(width, height)))


@dataclass(frozen=True)
class _Kind:
    """How a degradation works, which levels it allows (in words, and as a test) and which are standard."""

    apply: Callable[[Image.Image, float, str], Image.Image]
    levels: str
    allowed: Callable[[float], bool]
    standard: tuple[float, ...]
    size: Callable[[int, int, float], tuple[int, int]] = _same


def _quality(level: float) -> bool:
    return 1 <= level <= 100 and level == int(level)


_QUALITY = "a whole quality from 1 to 100"
_KINDS = {
    "gaussian_blur": _Kind(
        _blur, "an odd kernel from 3 to 255", lambda k: 3 <= k <= 255 and k % 2 == 1, (3, 7, 11, 15, 19, 23)
    ),
    "gaussian_noise": _Kind(_noise, "a variance above 0", lambda v: 0 < v <= 255**2, (3, 7, 11, 15, 19, 23)),
    "jpeg": _Kind(_jpeg, _QUALITY, _quality, (100, 90, 80, 70, 60, 50)),
    "webp": _Kind(_webp, _QUALITY, _quality, (90, 80, 70, 60, 50)),
    "resize": _Kind(_resize, "a factor above 0 and at most 2", lambda f: 0 < f <= 2, (0.75, 0.5), _scaled),
    "social": _Kind(_social, _QUALITY, _quality, (75,), _shared),
    "double_jpeg": _Kind(_double_jpeg, _QUALITY, _quality, (80, 70, 50)),
    "screenshot": _Kind(_screenshot, "level 1", lambda level: level == 1, (1,)),
}
