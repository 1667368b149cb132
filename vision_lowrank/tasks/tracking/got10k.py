"""A tracker as the experiments of the ``got10k`` package take one; the package itself is not needed here.

Its experiments (OTB, GOT-10k, LaSOT, UAV123, NFS, VOT, …) read `name` and `is_deterministic`, and call `track`, or,
where they start a tracker again after it lost its target (VOT), `init` and `update`. They give pictures or files,
not always in RGB, and boxes as left, top, width, height in pixels::

    from got10k.experiments import ExperimentOTB

    tracker = Got10kTracker(vl.load_model("runs/NAME/seed-1/artefact"), name="lorat")
    ExperimentOTB("datasets/OTB", version=2015).run(tracker)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ...data.frames import Frame
from ...data.images import read_image
from ...errors import UserError
from .model import TrackingModel
from .online import Target


class Got10kTracker:
    """Has the attributes and methods of ``got10k.trackers.Tracker``.

    Attributes:
        name: of the tracker, which the experiments make folders of.
        is_deterministic: True: a second run would give the same boxes, so there is none.
    """

    is_deterministic = True

    def __init__(self, model: TrackingModel, name: str = "vision_lowrank") -> None:
        """Wrap `model`; several may share one."""
        self.name, self._model = name, model
        self._target: Target | None = None

    def init(self, image: Frame, box: np.ndarray) -> None:
        """Begin to follow what lies in `box` (4,), left, top, width, height in pixels.

        Raises:
            UserError: the box lies outside the picture or has no size.
        """
        self._target = self._model.start(image, box)

    def update(self, image: Frame) -> np.ndarray:
        """Return where the target is in the next picture: (4,) float64, left, top, width, height in pixels.

        Raises:
            UserError: nothing is followed yet.
        """
        if self._target is None:
            raise UserError("nothing is followed yet: call init(image, box) with the first picture first.")
        return self._model.track_many([image], [self._target])[0].box

    def track(
        self, img_files: Sequence[str | Path], box: np.ndarray, visualize: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Follow a target through picture files.

        Args:
            img_files: in order.
            box: (4,) in the first of them.
            visualize: show every picture with the package's own window.

        Returns:
            (L, 4) boxes, the first being `box`, and (L,) seconds, reading left out.
        """
        boxes, seconds = np.zeros((len(img_files), 4)), np.zeros(len(img_files))
        for number, file in enumerate(img_files):
            image = read_image(file)
            begin = time.perf_counter()
            if number == 0:
                self.init(image, box)
            boxes[number] = self.update(image) if number else box
            seconds[number] = time.perf_counter() - begin
            if visualize:
                _show(image, boxes[number])
        return boxes, seconds


def _show(image: Image.Image, box: np.ndarray) -> None:
    from got10k.utils.viz import show_frame  # type: ignore[import-not-found]  # there: its experiments call

    show_frame(image, box)
