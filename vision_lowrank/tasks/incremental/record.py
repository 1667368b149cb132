"""What a run of sessions has got right so far: counts that travel with its checkpoints.

After session t the test pictures of the C_t classes seen are classified. ``correct[t, c]`` counts the right pictures of
class c < C_t, ``base_only[t]`` the right base pictures when only base classes may win. From these and the pictures per
class :class:`~vision_lowrank.metrics.incremental.SessionMatrix` computes every metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ...metrics.incremental import SessionMatrix, class_counts
from ...trained import TrainedPart


class SessionRecord(TrainedPart):
    """Counts of T + 1 sessions; -1 where a session has not been tested.

    Args:
        sizes: number of classes that each session brings, (T + 1,).
        totals: test pictures of each class, (C,).
    """

    checkpoint_whole: ClassVar[bool] = True

    def __init__(self, sizes: Sequence[int], totals: Sequence[int]) -> None:
        super().__init__()
        self.sizes, self.totals = tuple(sizes), tuple(totals)
        self.register_buffer("correct", torch.full((len(self.sizes), len(self.totals)), -1))
        self.register_buffer("base_only", torch.full((len(self.sizes),), -1))

    def add(self, session: int, logits: Tensor, labels: Tensor) -> None:
        """Count one evaluation.

        Args:
            session: t.
            logits: (n, C); an unseen class that wins is a wrong answer.
            labels: (n,), the test pictures of all classes seen.
        """
        seen, base = sum(self.sizes[: session + 1]), self.sizes[0]
        right, _ = class_counts(labels, logits.argmax(dim=1), seen)
        self.correct[session, :seen] = torch.tensor(right)
        of_base = labels < base
        self.base_only[session] = int((logits[of_base, :base].argmax(dim=1) == labels[of_base]).sum())

    def add_all(self, logits: Tensor, labels: Tensor) -> None:
        """Count what every session would have given with rows that stay as they are.

        Args:
            logits: (n, C) of the test pictures of all classes.
            labels: (n,).
        """
        for session in range(len(self.sizes)):
            seen = sum(self.sizes[: session + 1])
            chosen = labels < seen
            self.add(session, logits[chosen][:, :seen], labels[chosen])

    @property
    def done(self) -> int:
        """Sessions tested so far."""
        return int((self.base_only >= 0).sum())

    def matrix(self) -> SessionMatrix:
        """Return the counts of the sessions tested so far, at least one."""
        sizes = self.sizes[: self.done]
        rows = [tuple(row[: sum(sizes[: t + 1])].tolist()) for t, row in enumerate(self.correct[: self.done])]
        return SessionMatrix(sizes, self.totals[: sum(sizes)], tuple(rows), tuple(self.base_only[: self.done].tolist()))
