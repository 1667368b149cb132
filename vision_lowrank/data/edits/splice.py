"""Pasting: a region of another photograph, cut hard, with a soft edge or by Poisson blending, or a cut-out object.

Poisson blending (Pérez et al., SIGGRAPH 2003) is OpenCV's ``seamlessClone``. It changes the whole bounding box of its
mask a little and leaves the outermost 3 pixels of the mask to the photograph, so it is given the region grown by 3
pixels, and its result is kept inside the region by a feather: the mask stays exact.

An object is scaled, turned a little, lit as its place is (gain towards the place's luminance, a linear gradient of
light) and given the photograph's grain, σ ≈ 1.4826 median|Δ| / 6 with Immerkær's Laplacian Δ (CVIU 1996).
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

from .base import Change, Donor, Kind, Pixels, blend, opencv
from .shapes import feather_width, region, soft

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
ERODED, MARGIN = 3, 8
SILHOUETTES = 0.15


def splice_hard(photo: Pixels, donor: Donor, rng: np.random.Generator) -> Change:
    """Splice in a region of another photograph, cut by a random outline or by an object's silhouette."""
    mask = cut(photo, donor, rng)
    return Change(np.where(mask[..., None], covering(donor, photo, rng), photo), mask)


def splice_feather(photo: Pixels, donor: Donor, rng: np.random.Generator) -> Change:
    """Splice in a region of another photograph with a soft edge."""
    alpha = soft(cut(photo, donor, rng), feather_width(rng, photo.shape[:2]))
    return Change(blend(photo, covering(donor, photo, rng), alpha), alpha > 0.5)


def splice_poisson(photo: Pixels, donor: Donor, rng: np.random.Generator) -> Change:
    """Splice in a region of another photograph, its gradients continued from the surroundings."""
    cv2 = opencv()
    mask = cut(photo, donor, rng)
    mask[:MARGIN] = mask[-MARGIN:] = mask[:, :MARGIN] = mask[:, -MARGIN:] = False
    if not mask.any():
        return Change(photo, mask)
    grown = ndimage.binary_dilation(mask, np.ones((3, 3)), iterations=ERODED).astype(np.uint8) * 255
    left, top, width, height = cv2.boundingRect(grown)
    place = (left + width // 2, top + height // 2)
    new = covering(donor, photo, rng)
    cloned = cv2.seamlessClone(np.ascontiguousarray(new), photo, grown, place, cv2.NORMAL_CLONE)
    alpha = soft(mask, 4)
    return Change(blend(photo, cloned, alpha), alpha > 0.5)


def paste_object(photo: Pixels, donor: Donor, rng: np.random.Generator) -> Change:
    """Paste a cut-out object."""
    height, width = photo.shape[:2]
    x, y = (int(rng.uniform(0.1, 0.9) * side) for side in (width, height))
    name, new, alpha = placed_object(photo, donor, rng, (x, y), float(rng.uniform(0.2, 0.6)))
    assert donor.objects is not None
    cues = None if donor.objects.drawn else ("relation", "light")  # cut-outs of photographs have texture and detail
    return Change(blend(photo, new, alpha), alpha > 0.5, cues, {"object": name})


def placed_object(
    photo: Pixels, donor: Donor, rng: np.random.Generator, centre: tuple[int, int], share: float
) -> tuple[str, np.ndarray, np.ndarray]:
    """Draw an object onto an empty picture of the photograph's size, lit and grained as the photograph.

    Args:
        photo: (H, W, 3) uint8.
        donor: has objects.
        rng: source of randomness.
        centre: (x, y) of the object's box.
        share: long side of the object over the short side of the photograph.

    Returns:
        Name, new pixels (H, W, 3) float32, alpha (H, W) float32.
    """
    assert donor.objects is not None
    name, picture = donor.objects.draw(rng)
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = share * min(photo.shape[:2]) / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    picture = picture.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    picture = picture.rotate(float(rng.uniform(-20, 20)), Image.Resampling.BICUBIC, expand=True)
    canvas = Image.new("RGBA", photo.shape[1::-1])
    canvas.paste(picture, (centre[0] - picture.width // 2, centre[1] - picture.height // 2))
    pixels = np.asarray(canvas).astype(np.float32)
    alpha = pixels[..., 3] / 255
    return name, _lit(photo, pixels[..., :3], alpha > 0.5, rng), alpha


def cut(photo: Pixels, donor: Donor, rng: np.random.Generator) -> np.ndarray:
    """Draw a region to cut, (H, W) bool: a random outline, or sometimes an object's silhouette."""
    shape = photo.shape[:2]
    if donor.objects is None or rng.random() >= SILHOUETTES:
        return region(rng, shape)
    _, picture = donor.objects.draw(rng)
    side = int(rng.uniform(0.25, 0.7) * min(shape))
    alpha = Image.new("L", shape[::-1])
    alpha.paste(picture.getchannel("A").resize((side, side)), tuple(int(rng.integers(n - side)) for n in shape[::-1]))
    return np.asarray(alpha) > 127


def covering(donor: Donor, photo: Pixels, rng: np.random.Generator) -> Pixels:
    """Crop a random part of the donor's photograph as large as `photo`, sometimes mirrored.

    It comes at its own scale where it is large enough and in half of the cases, else enlarged or reduced.
    """
    assert donor.photo is not None
    height, width = photo.shape[:2]
    picture = Image.fromarray(donor.photo)
    least = max(width / picture.width, height / picture.height)
    if least > 1 or rng.random() < 0.5:
        scale = least * rng.uniform(1, 1.5)
        size = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    left = int(rng.integers(picture.width - width + 1))
    top = int(rng.integers(picture.height - height + 1))
    part = np.asarray(picture.crop((left, top, left + width, top + height)))
    return part[:, ::-1] if rng.random() < 0.5 else part


def grain(photo: Pixels) -> float:
    """Estimate the standard deviation of a photograph's noise in grey levels, robust against its content."""
    grey = photo @ LUMA
    rows = grey[:-2] - 2 * grey[1:-1] + grey[2:]
    laplacian = rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]
    return float(1.4826 * np.median(np.abs(laplacian)) / 6)


def _lit(photo: Pixels, new: np.ndarray, where: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give new pixels the luminance of their place, a gradient of light and the photograph's grain."""
    if not where.any():
        return new
    place, own = (photo[where] @ LUMA).mean(), (new[where] @ LUMA).mean()
    gain = np.clip(np.sqrt((place + 20) / (own + 20)), 0.5, 1.4)
    height, width = where.shape
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * np.linspace(-1, 1, width)[None] + np.sin(angle) * np.linspace(-1, 1, height)[:, None]
    light = gain * (1 + rng.uniform(0, 0.2) * slope)
    noise = rng.normal(0, grain(photo), where.shape)
    return (new * light[..., None] + noise[..., None]).astype(np.float32)


_OTHER_LIGHT = (
    "It is lit as in another scene.",
    "Light and shade do not continue from the surroundings.",
    "Its light comes from another scene than that of the surroundings.",
)
_OTHER_COLOR = (
    "Its colours are those of another photograph.",
    "Colours do not fit those around it, which another camera or lamp has made.",
    "It has the colour balance of another photograph.",
)
_OTHER_NOISE = (
    "Its grain is that of another photograph.",
    "Its noise differs from that of the surroundings.",
    "The noise pattern changes at its outline.",
)
_CUT = (
    "Its outline cuts through the lines of the scene.",
    "Lines of the surroundings stop at its outline.",
    "Contours end abruptly where it begins.",
)
_PROMPTS = ("paste a part of another photograph {where}", "insert a piece of another picture {where}")

KINDS = (
    Kind(
        "splice-hard", "addition", splice_hard, _PROMPTS,
        (
            "A part of another photograph was pasted {where}.",
            "{Where}, a region was cut out of another photograph and laid over this one.",
            "What can be seen {where} was taken from another photograph and pasted with a hard edge.",
        ),
        {"structure": _CUT, "light": _OTHER_LIGHT, "color": _OTHER_COLOR, "noise": _OTHER_NOISE},
        donor=True,
    ),
    Kind(
        "splice-feather", "addition", splice_feather, _PROMPTS,
        (
            "A part of another photograph was pasted {where} with a soft edge.",
            "{Where}, a region of another photograph was blended in.",
            "What can be seen {where} was taken from another photograph; its edge was softened.",
        ),
        {
            "structure": _CUT, "light": _OTHER_LIGHT, "color": _OTHER_COLOR, "noise": _OTHER_NOISE,
            "blur": ("Its rim is a soft mixture of both.", "Along its edge both pictures fade into each other.",
                     "The transition to the surroundings is blurred."),
        },
        donor=True,
    ),
    Kind(
        "splice-poisson", "addition", splice_poisson, _PROMPTS,
        (
            "A part of another photograph was pasted {where} and its colours fitted to the surroundings.",
            "{Where}, a region of another photograph was blended in seamlessly.",
            "What can be seen {where} has the texture of another photograph, blended into this one.",
        ),
        {
            "structure": _CUT,
            "texture": ("Its texture belongs to another scene.", "Its texture does not continue from the surroundings.",
                        "The texture inside was taken from elsewhere."),
            "color": ("Colours of the surroundings bleed into it.", "Its colours were bent towards those around it.",
                      "A tint from its rim spreads over its inside."),
        },
        donor=True, opencv=True,
    ),
    Kind(
        "paste-object", "addition", paste_object,
        ("add an object ({object}) {where}", "put this object into the picture, {where}: {object}"),
        (
            "An object ({object}) was added {where}.",
            "{Where}, an object was pasted into the picture: {object}.",
            "The object {where} ({object}) was not in the photograph.",
        ),
        {
            "relation": ("It has no relation to the scene.", "It was put there without regard to the scene.",
                         "It casts no shadow on what is around it."),
            "texture": ("Its surface has the even texture of a drawing.", "Its texture is too smooth for a photograph.",
                        "Its surface lacks the texture of real things."),
            "light": ("Its light and shade are its own.", "It is not lit by the light of the scene.",
                      "Highlights on it do not follow the scene's light."),
            "detail": ("It has less fine detail than a photographed thing.", "Fine detail is missing on it.",
                       "Its detail is that of a small drawing."),
        },
        objects=True,
    ),
)  # fmt: skip
