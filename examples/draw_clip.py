"""Draw a clip to follow something in: a video, and the box of its target in the first frame.

    python examples/draw_clip.py runs/demo_clip
    vision-lowrank track runs/demo_clip/clip.mp4 --boxes runs/demo_clip/boxes.txt --out runs/demo_track --save-video

Clips come from ``emoji_scenes``: objects that move over scikit-image's photographs, of a split that nothing was trained
on. ``truth.csv`` has the target's box in every frame.
"""

import argparse
from pathlib import Path

import numpy as np

from vision_lowrank.data.emoji_scenes import EmojiScenesConfig, emoji_scenes
from vision_lowrank.data.videos import VideoWriter

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for clip.mp4, boxes.txt and truth.csv")
    parser.add_argument("--number", type=int, default=0, help="which of the test clips (default: 0)")
    parser.add_argument("--frames", type=int, default=60)
    options = parser.parse_args()

    clips = emoji_scenes(EmojiScenesConfig(frames=options.frames, test_clips=options.number + 1)).tests["emoji_scenes"]
    clip = clips[options.number]
    options.out.mkdir(parents=True, exist_ok=True)
    with VideoWriter(options.out / "clip.mp4", rate=20) as video:
        for index in range(len(clip)):
            video.write(clip.frame(index))
    np.savetxt(options.out / "truth.csv", clip.boxes, fmt="%.2f", delimiter=",")
    np.savetxt(options.out / "boxes.txt", clip.boxes[:1], fmt="%.2f", delimiter=",")
    print(f"{options.out / 'clip.mp4'}: {len(clip)} frames of {clip.size[0]} x {clip.size[1]}, {clip.name}")
