"""Trackers without training: no motion, template matching, and OpenCV's CSRT and KCF. Each has ``init`` and ``track``.

    python benchmarks/tracking/plain_trackers.py CSRT VIDEO --box 120,80,40,60    # boxes as text, for comparisons

CSRT and KCF need opencv-contrib-python-headless (extra ``tracking``), template matching any OpenCV; frames are RGB and
are turned for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Protocol

import numpy as np

from vision_lowrank.data.tracking.base import Clip
from vision_lowrank.data.videos import open_frames


class Tracker(Protocol):
    """What follows one target; boxes are (4,) left, top, width, height in pixels."""

    def init(self, frame: np.ndarray, box: np.ndarray) -> None:
        """Begin with the first frame (H, W, 3) uint8 RGB."""
        ...

    def track(self, frame: np.ndarray) -> np.ndarray:
        """Return where the target is in the next frame."""
        ...


class Still:
    """Leaves the box where it is."""

    def init(self, frame: np.ndarray, box: np.ndarray) -> None:
        """Keep the box."""
        self.box = np.array(box, dtype=float)

    def track(self, frame: np.ndarray) -> np.ndarray:
        """Return it."""
        return self.box


class TemplateMatching:
    """Normalised cross-correlation of the first box's pixels, at its size, within a region of four times its sides.

    A patch with its mean taken off is compared with the template with its mean taken off (``TM_CCOEFF_NORMED``); the
    template stays the first frame's.
    """

    REACH = 1.5  # of the box's sides, on each side of it

    def init(self, frame: np.ndarray, box: np.ndarray) -> None:
        """Cut the template out, whole pixels inside the frame."""
        height, width = frame.shape[:2]
        left, top = (int(np.clip(np.floor(edge), 0, most - 2)) for edge, most in ((box[0], width), (box[1], height)))
        right = int(np.clip(np.ceil(box[0] + box[2]), left + 2, width))
        bottom = int(np.clip(np.ceil(box[1] + box[3]), top + 2, height))
        self.template = np.ascontiguousarray(frame[top:bottom, left:right])
        self.box = np.array([left, top, right - left, bottom - top], dtype=float)

    def track(self, frame: np.ndarray) -> np.ndarray:
        """Return where the template fits best."""
        import cv2

        left, top, width, height = self.box
        x0, y0 = (int(max(0, edge - self.REACH * side)) for edge, side in ((left, width), (top, height)))
        region = frame[y0 : int(top + (1 + self.REACH) * height) + 1, x0 : int(left + (1 + self.REACH) * width) + 1]
        if region.shape[0] < height or region.shape[1] < width:
            return self.box
        fit = cv2.matchTemplate(np.ascontiguousarray(region), self.template, cv2.TM_CCOEFF_NORMED)
        row, column = np.unravel_index(int(np.nan_to_num(fit, nan=-1).argmax()), fit.shape)
        self.box = np.array([x0 + column, y0 + row, width, height], dtype=float)
        return self.box


class OpenCV:
    """A tracker of OpenCV's contrib modules; where it loses its target, the box stays."""

    def __init__(self, name: str) -> None:
        """Take ``CSRT`` or ``KCF``."""
        self._name = name

    def init(self, frame: np.ndarray, box: np.ndarray) -> None:
        """Begin."""
        import cv2

        self._tracker: Any = getattr(cv2, f"Tracker{self._name}_create")()
        self.box = np.array(box, dtype=float)
        self._tracker.init(np.ascontiguousarray(frame[..., ::-1]), tuple(round(value) for value in box.tolist()))

    def track(self, frame: np.ndarray) -> np.ndarray:
        """Return where it says the target is."""
        found, box = self._tracker.update(np.ascontiguousarray(frame[..., ::-1]))
        self.box = np.array(box, dtype=float) if found else self.box
        return self.box


BASELINES: dict[str, Callable[[], Tracker]] = {
    "no motion": Still,
    "template matching": TemplateMatching,
    "KCF": lambda: OpenCV("KCF"),
    "CSRT": lambda: OpenCV("CSRT"),
}


def follow(tracker: Tracker, clip: Clip) -> np.ndarray:
    """Follow a clip's target: (L, 4)."""
    return follow_frames(tracker, (clip.frame(index) for index in range(len(clip))), clip.boxes[0])


def follow_frames(tracker: Tracker, frames: Iterable[np.ndarray], box: np.ndarray) -> np.ndarray:
    """Follow what lies in `box` (4,) of the first frame through all of them: (L, 4)."""
    rest = iter(frames)
    tracker.init(next(rest), box)
    return np.stack([box, *(tracker.track(frame) for frame in rest)])


def lacking() -> list[str]:
    """List the trackers that cannot run here, for want of OpenCV or of its contrib modules."""
    try:
        import cv2
    except ImportError:
        return [name for name in BASELINES if name != "no motion"]
    return [name for name in ("KCF", "CSRT") if not hasattr(cv2, f"Tracker{name}_create")]


def main() -> None:
    """Follow one target through a video and print its boxes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tracker", choices=BASELINES)
    parser.add_argument("source", help="a video file, or a folder of frames")
    parser.add_argument("--box", required=True, help="left,top,width,height in pixels")
    parser.add_argument("--frames", type=int, help="follow through so many frames only")
    given = parser.parse_args()
    box = np.array([float(value) for value in given.box.split(",")])
    found = follow_frames(BASELINES[given.tracker](), islice(open_frames(given.source), given.frames), box)
    print("".join(",".join(f"{value:.2f}" for value in row) + "\n" for row in found.tolist()), end="")


if __name__ == "__main__":
    main()
