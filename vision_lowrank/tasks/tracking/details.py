"""What an evaluation of a tracker leaves for its report: ``details.json`` and ``gallery.json`` of a seed.

``details.json`` has for every test set the scores as :meth:`TrackingScores.to_dict` gives them. ``gallery.json`` has
strips of frames of the best, the middle and the worst clips by success, a fixed rule: the answer in orange, the truth
in white.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ...data.tracking.base import Clip, ClipSet
from ...files import write_text
from ...metrics.tracking.score import TrackingScores
from ...viz.encoding import data_uri, encode_jpeg

EACH, FRAMES, SIDE = 2, 6, 150


def write_details(
    folder: Path,
    sets: Mapping[str, ClipSet],
    scores: Mapping[str, TrackingScores],
    boxes: Mapping[str, Sequence[np.ndarray]],
) -> None:
    """Write both files.

    Args:
        folder: of the seed.
        sets: test sets by name.
        scores: of them.
        boxes: of every clip of them, (L, 4) left, top, width, height in pixels.
    """
    details = {name: each.to_dict() for name, each in scores.items()}
    write_text(folder / "details.json", json.dumps({"sets": details}) + "\n")
    groups = [group for name, clips in sets.items() for group in _groups(name, clips, scores[name], boxes[name])]
    write_text(folder / "gallery.json", json.dumps(groups) + "\n")


def places(success: Sequence[float]) -> dict[str, list[int]]:
    """Return numbers of clips by their place in the order by success: the best, the middle and the worst, worst first.

    No clip is in two places; a place without clips is left out.
    """
    order = np.argsort([-value for value in success], kind="stable").tolist()
    middle = max(EACH, len(order) // 2 - EACH // 2)
    found = {"best": order[:EACH], "middle": order[middle : middle + EACH], "worst": order[: EACH - 1 : -1][:EACH]}
    found["middle"] = [index for index in found["middle"] if index not in found["worst"]]
    return {title: chosen for title, chosen in found.items() if chosen}


def draw_strip(clip: Clip, boxes: np.ndarray) -> Image.Image:
    """Draw some frames side by side, the truth in white and `boxes` (L, 4) in orange."""
    chosen = np.unique(np.linspace(0, len(clip) - 1, FRAMES).round().astype(int)).tolist()
    pictures = [_frame(clip, index, boxes[index]) for index in chosen]
    strip = Image.new("RGB", (sum(each.width for each in pictures), pictures[0].height))
    left = 0
    for each in pictures:
        strip.paste(each, (left, 0))
        left += each.width
    return strip


def _groups(name: str, clips: ClipSet, scores: TrackingScores, boxes: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Return the clips of three places in the order by success."""
    success = [scores.sequences[clip.name].values["success_auc"] for clip in clips.clips]
    return [
        {
            "title": title,
            "set": name,
            "clips": [
                {
                    "name": clips[index].name,
                    "success": None if np.isnan(success[index]) else success[index],
                    "image": data_uri(encode_jpeg(draw_strip(clips[index], boxes[index]))),
                }
                for index in chosen
            ],
        }
        for title, chosen in places(success).items()
    ]


def _frame(clip: Clip, index: int, box: np.ndarray) -> Image.Image:
    picture = Image.fromarray(clip.frame(index))
    scale = SIDE / max(picture.size)
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    draw = ImageDraw.Draw(picture)
    for each, colour in ((clip.box(index), "white"), (box, "#e69f00")):
        if np.isfinite(each).all() and (each[2:] > 0).all():
            left, top, width, height = (scale * each).tolist()
            draw.rectangle((left, top, left + width, top + height), outline=colour, width=2)
    return picture
