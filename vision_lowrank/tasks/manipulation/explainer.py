"""Two adapters on one model: the detector's, which is always on, and the language model's, on only while it explains.

States that the decoders read must not depend on whether an explanation was ever trained, so a model *rests* without
the language model's adapter, and *speaks* while it generates or learns to: until after the backward pass, which may
compute layers again.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ...backbones.adapted import acting, adapter_names
from ...data.manipulation.base import REAL, ManipulationSet
from ...errors import UserError
from .explanation import answer, question
from .frames import tiles_of

EXPLAIN = "explanation"


def deactivate_explainer(model: nn.Module) -> None:
    """Let the detector's own adapter, where there is one, be all that is active, and of adapters all that may train."""
    if EXPLAIN not in adapter_names(model):
        return
    own = [name for name in adapter_names(model) if name != EXPLAIN]
    if own:
        model.set_adapter(own[0])
    else:
        model.base_model.disable_adapter_layers()  # which freezes it as well


def activate_explainer(model: nn.Module) -> None:
    """Let the language model's adapter be active as well; what requires a gradient may change."""
    model.base_model.enable_adapter_layers()
    model.base_model.set_adapter(list(adapter_names(model)))


def explainer_active(model: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which all adapters act, the explainer too; afterwards they do or rest as before.

    What requires a gradient stays.
    """
    return acting(model, adapter_names(model))


def save_explainer(model: nn.Module, folder: Path) -> None:
    """Write the language model's adapter, which rests."""
    from ...attachment.store import save_adapter  # where an adapter is attached, PEFT has been imported

    save_adapter(model, folder, EXPLAIN)  # a random base lies in the artefact


def load_explainer(folder: Path, model: nn.Module) -> nn.Module:
    """Load the language model's adapter in `folder` into `model`; it rests."""
    from ...attachment.store import load  # PEFT, only where it is needed

    model = load(folder, model, EXPLAIN)
    deactivate_explainer(model)
    return model


def explained(pictures: ManipulationSet) -> ManipulationSet:
    """Return pictures with an explanation, and as many real ones, whose answer is that nothing was found.

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


def answer_loss(model: nn.Module, pictures: ManipulationSet, batch: Mapping[str, Any]) -> Tensor:
    """Compute the next-token loss of what the records of a batch of `pictures` answer; the model must speak."""
    records = [pictures.records[index] for index in batch["index"].tolist()]
    counts, sizes = batch["count"].tolist(), batch["size"].tolist()
    prompts = [question(record, *size) for record, size in zip(records, sizes, strict=True)]
    answers = [answer(record, *size) for record, size in zip(records, sizes, strict=True)]
    return model.answer_loss(tiles_of(batch, counts), counts, prompts, answers)
