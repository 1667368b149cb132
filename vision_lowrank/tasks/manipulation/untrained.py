"""The baseline of every table: what the pretrained model tells without its adapter and without trained decoders.

* detection: logistic regression on the mean of the final patch tokens of training pictures;
* cues: how often each is annotated in training;
* boxes and token map: the mean training box and the mean training map, whatever the picture, the map from its best
  level on.

Validation pictures calibrate the detection, as they do a trained detector's.
"""

from __future__ import annotations

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ...engine.task import Outputs
from ...metrics.calibration import Calibration
from .levels import map_level

NEVER = -20.0  # a logit that is as good as 0


class Untrained:
    """Fitted on what an evaluation of training pictures gave.

    Args:
        outputs: features (n, D), label (n,), has_cues (n,), cues (n, C), boxes (n, K, 4), box_count (n,),
            has_tokens (n,), tokens (n, N).
    """

    def __init__(self, outputs: Outputs) -> None:
        edited = outputs["label"] > 0
        self.probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        self.probe.fit(outputs["features"].double().numpy(), edited.numpy())
        self.cues = _mean(outputs["cues"], outputs["has_cues"] & edited).logit(1e-3)
        first = torch.arange(outputs["boxes"].shape[1]) < outputs["box_count"][:, None]
        boxes = outputs["boxes"][first]
        self.box = boxes.mean(dim=0) if len(boxes) else torch.full((4,), 0.5)
        tokens, known = outputs["tokens"], outputs["has_tokens"] & edited
        mean = _mean(tokens, known).logit(1e-3)
        everywhere = torch.ones_like(tokens[known], dtype=torch.bool)
        self.tokens = mean - map_level(mean.expand_as(tokens[known]), everywhere, tokens[known])
        self.calibration = Calibration()
        self.queries = outputs["boxes"].shape[1]

    def calibrate(self, outputs: Outputs) -> None:
        """Fit temperature and threshold on what an evaluation of validation pictures gave."""
        features = outputs["features"].double().numpy()
        self.calibration = Calibration.fit(self.probe.decision_function(features), outputs["label"])

    def outputs(self, features: Tensor, valid: Tensor) -> Outputs:
        """Return what :class:`~.decoders.Decoded` holds, by name, for pictures of features (B, D)."""
        rows = len(features)
        logit = torch.from_numpy(self.probe.decision_function(features.double().cpu().numpy())).float()
        objectness = torch.full((rows, self.queries), NEVER)
        objectness[:, 0] = -NEVER
        return {
            "logit": logit,
            "cues": self.cues.expand(rows, -1),
            "boxes": self.box.expand(rows, self.queries, 4),
            "objectness": objectness,
            "tokens": self.tokens.expand(rows, -1),
            "valid": valid,
        }


def _mean(values: Tensor, known: Tensor) -> Tensor:
    """Compute the mean of the known rows; zeros where there are none."""
    return (values * known[:, None]).sum(dim=0) / known.sum().clamp_min(1)
