"""From which score on a cell of the map, or a box, counts as edited: fitted on validation pictures.

Few cells of a picture are edited and few of the K boxes match anything, so a decoder that has learnt how rare they are
says less than 0.5 of nearly all of them. Of the probabilities :data:`LEVELS` the one of the highest F1 becomes the
level, and the decoder's logits are shifted so that 0.5 is there. The order of scores stays, and with it AUC and average
precision; detection has its own calibration (:mod:`vision_lowrank.metrics.calibration`).

    map      F1 = 2 sum of m over the cells above the level / (their number + sum of m), m the edited share of a cell;
             mean over edited pictures
    boxes    F1 = 2 TP / (boxes above the level + annotated ones) over all pictures, real ones as well; TP is the number
             of boxes that match an annotated one, one to one, with an IoU of 0.5 or more
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ...engine.task import Outputs
from ...metrics.localisation.boxes import BoxOutcome, judge_boxes
from .decoders import corners, decode_boxes

LEVELS = np.geomspace(0.01, 0.95, 50)
TRUTH = ("boxes", "box_count", "has_boxes", "tokens")  # of a sample: what the outputs are compared with
SIDE = 1000  # any will do: IoU does not depend on it


def levels(outputs: Outputs) -> tuple[float, float]:
    """Find the levels of boxes and map, as logits, from what a decoder says and :data:`TRUTH` as ``true_…``."""
    boxed = outputs["true_has_boxes"].nonzero().flatten().tolist()
    found = box_level([_outcome(outputs, index) for index in boxed] if outputs["boxes"].shape[1] else [])
    if "tokens" not in outputs:
        return found, 0.0
    return found, map_level(outputs["tokens"], outputs["valid"], outputs["true_tokens"])


def _outcome(outputs: Outputs, index: int) -> BoxOutcome:
    found = decode_boxes(outputs["boxes"][index], outputs["objectness"][index], SIDE, SIDE, min_score=0.0)
    truth = corners(outputs["true_boxes"][index, : int(outputs["true_box_count"][index])].double()) * SIDE
    return judge_boxes(found.xyxy, found.scores, truth.numpy(), (SIDE, SIDE))


def map_level(tokens: Tensor, valid: Tensor, shares: Tensor) -> float:
    """Find the level of token maps as a logit; 0 where no level finds anything.

    Args:
        tokens: (B, N) logits.
        valid: (B, N) bool.
        shares: (B, N) edited share of each token's cell; pictures without any do not count.
    """
    m = (shares * valid).double()
    edited = m.sum(dim=1) > 0
    p, m = tokens.double().sigmoid().masked_fill(~valid, 0)[edited], m[edited]
    if not len(p):
        return 0.0
    f1 = [(2 * (m * above).sum(dim=1) / (above.sum(dim=1) + m.sum(dim=1))).mean() for above in (p >= x for x in LEVELS)]
    return _best(np.array([float(each) for each in f1]))


def box_level(outcomes: Sequence[BoxOutcome]) -> float:
    """Find the level of objectness as a logit; 0 where no level finds anything.

    Args:
        outcomes: of all pictures whose boxes are annotated, with every box that was proposed.
    """
    scores, right = np.concatenate([each.hits[:, :2] for each in outcomes] or [np.zeros((0, 2))]).T
    truths = sum(each.truths for each in outcomes)
    above = scores >= LEVELS[:, None]
    return _best(2 * (right * above).sum(axis=1) / np.maximum(above.sum(axis=1) + truths, 1))


def _best(f1: np.ndarray) -> float:
    level = LEVELS[f1.argmax()]
    return math.log(level / (1 - level)) if f1.max() > 0 else 0.0
