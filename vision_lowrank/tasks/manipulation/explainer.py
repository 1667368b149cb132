"""Two adapters on one model: the detector's, which is always on, and the language model's, on only while it explains.

States that the decoders read must not depend on whether an explanation was ever trained, so a model *rests* without
the language model's adapter, and *speaks* while it generates or learns to: until after the backward pass, which may
compute layers again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from torch import Tensor, nn

from ...data.manipulation.base import REAL, ManipulationSet
from ...engine.task import Batch
from ...errors import UserError
from ...modes import preserved
from .explanation import answer, question
from .pictures import tiles_of

EXPLAIN = "explanation"


def deactivate_explainer(model: nn.Module) -> None:
    """Let the detector's own adapter, where there is one, be all that is active, and of adapters all that may train."""
    if EXPLAIN not in getattr(model, "peft_config", ()):
        return
    own = [name for name in model.peft_config if name != EXPLAIN]
    if own:
        model.set_adapter(own[0])
    else:
        model.base_model.disable_adapter_layers()  # which freezes it as well


def activate_explainer(model: nn.Module) -> None:
    """Let the language model's adapter be active as well; what requires a gradient may change."""
    model.base_model.enable_adapter_layers()
    model.base_model.set_adapter(list(model.peft_config))


@contextmanager
def explainer_active(model: nn.Module) -> Iterator[None]:
    """:func:`activate_explainer` inside, :func:`deactivate_explainer` afterwards; what requires a gradient stays."""
    with preserved(model):
        activate_explainer(model)
        try:
            yield
        finally:
            deactivate_explainer(model)


def explained(pictures: ManipulationSet) -> ManipulationSet:
    """Pictures with an explanation, and as many real ones, whose answer is that nothing was found.

    Raises:
        UserError: there are none.
    """
    written = [index for index, record in enumerate(pictures.records) if record.explanation]
    if not written:
        raise UserError(
            f"task.explanation: none of the {len(pictures)} training pictures has an explanation: leave it out."
        )
    reals = np.flatnonzero(pictures.labels == REAL)[: len(written)]
    return pictures.subset(sorted({*written, *reals.tolist()}))


def answer_loss(model: nn.Module, pictures: ManipulationSet, batch: Batch) -> Tensor:
    """Next-token loss of what the records of a batch of `pictures` answer; the model must speak."""
    records = [pictures.records[index] for index in batch["index"].tolist()]
    counts, sizes = batch["count"].tolist(), batch["size"].tolist()
    prompts = [question(record, *size) for record, size in zip(records, sizes, strict=True)]
    answers = [answer(record, *size) for record, size in zip(records, sizes, strict=True)]
    return model.answer_loss(tiles_of(batch, counts), counts, prompts, answers)
