"""The models that a student is compared with in CoACT's losses, and those losses.

Paper: CoACT, arXiv 2405.16625. Beside cross-entropy on view 1, with the features of view 2 by frozen models as keys of
the supervised contrastive loss (:mod:`.losses`)::

    base session      L_ACL: student, asynchronous teacher
    later sessions    code:  student, the teacher as it was after the base session, the pretrained model;
                             and the distance of the logits on view 1 from those of the model after the base session
                      paper: student, teacher; and student, the model after the base session

All keys are :class:`~.teacher.FrozenCopy` s: they hold only tensors that may come to differ from the student's.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ...attachment.parameters import Parameters
from ..classification.prototypes import PrototypeHead
from .config import IncrementalConfig
from .losses import asynchronous_contrastive, logit_distance
from .teacher import AsynchronousTeacher, FrozenCopy
from .unfreeze import SessionParameters

PROJECTED = 128


class Guides(nn.Module):
    """Teacher, pretrained model, and the student as it was after an earlier session.

    Args:
        options: the task's.
        width: d, of the features.
    """

    def __init__(self, options: IncrementalConfig, width: int) -> None:
        super().__init__()
        self.options = options
        self.teacher = AsynchronousTeacher(options.teacher_momentum)
        self.pretrained = FrozenCopy()
        self.teacher_then: AsynchronousTeacher | None = None
        self.student_then: FrozenCopy | None = None
        self.head_then: PrototypeHead | None = None
        self.projection = _projection(options.projection if options.contrastive else "none", width)

    def begin(self, session: int, parts: SessionParameters, moves: Parameters, head: PrototypeHead) -> None:
        """Take the copies that a session needs, before its first step and again whenever it resumes or is replayed.

        Args:
            session: t.
            parts: of the student.
            moves: what of the student's backbone trains in this session or in later ones.
            head: the student's.
        """
        options = self.options
        self.projection.requires_grad_(session == 0)
        if session == 0:
            if options.contrastive:
                self.teacher.hold(parts.encoder)
            if options.guided and options.contrastive and options.cit_variant == "code":
                self.pretrained.hold(parts.encoder)
        elif options.guided and (session == 1 or options.consistency_model == "previous"):
            self.teacher_then = copy.deepcopy(self.teacher)
            self.student_then = FrozenCopy(adapters=True)
            self.student_then.hold(moves)
            self.head_then = copy.deepcopy(head).requires_grad_(False)

    def update(self, model: nn.Module) -> None:
        """Let the teacher follow, after a step of the optimiser."""
        if self.options.contrastive:
            self.teacher.update(model)

    def losses(
        self, session: int, model: nn.Module, views: tuple[Tensor, ...], features: Tensor, logits: Tensor, y: Tensor
    ) -> dict[str, Tensor]:
        """Compute the weighted losses of one batch beside cross-entropy.

        Args:
            session: t.
            model: the student.
            views: one or two views, each (B, 3, H, W).
            features: the student's, (B, d), of view 1.
            logits: the student's, (B, C), of view 1.
            y: labels (B,).
        """
        options, found = self.options, {}
        if session and not options.guided:
            return {}
        if options.contrastive:
            student = self.projection(features)
            terms = [self._contrast(student, key, model, views[1], y) for key in self._keys(session)]
            found["contrastive"] = options.contrastive * torch.stack(terms).sum()
        if session and options.cit_variant == "code" and options.consistency:
            with torch.no_grad():
                then = self.head_then.logits(self.student_then.features(model, views[0]))
            seen = self.head_then.seen if options.consistency_classes == "seen" else None
            found["consistency"] = options.consistency * logit_distance(logits, then, seen)
        return found

    def _keys(self, session: int) -> list[tuple[FrozenCopy, ...]]:
        """Return the frozen models of each contrastive term."""
        if not session:
            return [(self.teacher,)]
        if self.options.cit_variant == "code":
            return [(self.teacher_then, self.pretrained)]
        return [(self.teacher,), (self.student_then,)]

    def _contrast(
        self, student: Tensor, keys: tuple[FrozenCopy, ...], model: nn.Module, pixels: Tensor, y: Tensor
    ) -> Tensor:
        with torch.no_grad():
            others = [self.projection(key.features(model, pixels)) for key in keys]
        return asynchronous_contrastive(student, *others, labels=y, tau=self.options.temperature)


def _projection(kind: str, width: int) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(width, PROJECTED)
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, PROJECTED))
