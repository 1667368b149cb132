"""Clips that a tracker follows best, half-way and worst, failures included: ``gallery.webp`` beside this file.

    python benchmarks/tracking/gallery.py                                   # the shipped tracker
    python benchmarks/tracking/gallery.py --model ARTEFACT --clips 4 --frames 10 --out FILE     # a trial

The clips are those of ``emoji_scenes`` over scikit-image's photographs, which may be shown, with the objects of the
test split; the tracker must have been trained over other photographs. It follows them through result files, as the
study's ``run.py`` does. Rows are chosen by a rule, two each: the highest success, the middle of the order, the lowest.
A row has six frames from the first to the last, the truth in white, the answer in orange, and the clip's success.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from clip_scores import scores_of, tracker_results
from PIL import Image, ImageDraw, ImageFont
from tracking_conditions import HERE, RUNS

from vision_lowrank.data.emoji_scenes import EmojiScenesConfig, emoji_scenes
from vision_lowrank.data.tracking.base import ClipSet
from vision_lowrank.data.tracking.results import ResultFolder
from vision_lowrank.files import write_bytes
from vision_lowrank.paths import shipped
from vision_lowrank.tasks.tracking.details import draw_strip, places
from vision_lowrank.viz.encoding import encode_webp

LIMIT, TEXT, GAP = 300_000, 16, 6  # bytes; pixels


def sheet(clips: ClipSet, results: ResultFolder) -> Image.Image:
    """Draw the rows with what is said of each."""
    success = scores_of(results, clips)["clips"]
    rows = []
    for title, chosen in places([success[clip.name] for clip in clips.clips]).items():
        for index in chosen:
            clip = clips[index]
            about = ", ".join(clip.attributes) or "nothing special"
            said = f"{title}: success {100 * success[clip.name]:.0f} ({about})"
            rows.append((said, draw_strip(clip, results.read(clip.name, len(clip)).boxes)))
    wide, high = max(strip.width for _, strip in rows), max(strip.height for _, strip in rows) + TEXT + GAP
    canvas, font = Image.new("RGB", (wide, len(rows) * high - GAP), "white"), ImageFont.load_default(12)
    draw = ImageDraw.Draw(canvas)
    for number, (said, strip) in enumerate(rows):
        draw.text((0, number * high), said, fill="black", font=font)
        canvas.paste(strip, (0, number * high + TEXT))
    return canvas


def main() -> None:
    """Follow what is missing and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=shipped("data") / "tiny_tracker", help="artefact of a tracker")
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--frames", type=int, default=60, help="of each clip")
    parser.add_argument("--out", type=Path, default=HERE / "gallery.webp")
    given = parser.parse_args()
    config = EmojiScenesConfig(test_clips=given.clips, frames=given.frames)
    clips = emoji_scenes(config).tests["emoji_scenes"]
    results = tracker_results(given.model, clips, RUNS / "tracking" / "results")
    write_bytes(given.out, encode_webp(sheet(clips, results), LIMIT))
    print(given.out)


if __name__ == "__main__":
    main()
