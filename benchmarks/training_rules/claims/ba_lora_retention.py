"""BA-LoRA: what its penalties keep of the pretrained model, together and each alone, against LoRA with PiSSA."""

from __future__ import annotations

from typing import Any

from shared import Budget, scores, untrained

from vision_lowrank.studies.run import summarise

METHODS: dict[str, tuple[str, ...]] = {
    "lora+pissa": ("lora", "adapter.dropout=0", "initializer={type: pissa}"),
    "ba_lora": ("ba_lora",),
    "consistency alone": ("ba_lora", "regularizer.l2=0", "regularizer.l3=0"),
    "diversity alone": ("ba_lora", "regularizer.l1=0", "regularizer.l3=0"),
    "spectral alone": ("ba_lora", "regularizer.l1=0", "regularizer.l2=0"),
}


def ba_lora_retention(budget: Budget) -> dict[str, Any]:
    """Compute the accuracies of each method, and of the untrained model."""
    rows = {
        method: summarise(scores(budget.train(seed, *changes)) for seed in budget.seeds)
        for method, changes in METHODS.items()
    }
    return {"untrained": untrained(budget), "rows": rows}
