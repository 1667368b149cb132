"""Intruder dimensions: does LoRA make more of them than full fine-tuning, do they go with forgetting, and does scaling
them down give back more than shrinking all of ΔW to the same norm?

Counted over the q, k and v of all blocks, k = 10 and ε = 0.5; the untouched weights are the originals. The model has
narrow layers (192 and 128), in which a random direction would count as an intruder.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import Any

from shared import Budget, accuracies, scores, untrained

from vision_lowrank.analysis.forgetting import forgetting
from vision_lowrank.analysis.layers import LayerPair, analyse, layer_pairs
from vision_lowrank.analysis.mitigation import sweep
from vision_lowrank.analysis.trained_base import trained_pairs
from vision_lowrank.backbones.adapted import adapted
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.engine.loop import Engine
from vision_lowrank.studies.run import summarise

KEEPS = (0.0, 0.5, 0.75, 1.0)
METHODS: dict[str, tuple[str, ...]] = {
    "full": ("full",),
    **{f"lora, r {r}": ("lora", f"adapter.r={r}") for r in (1, 4, 16, 64)},
    "lora_pro": ("lora_pro",),
    "lora+pissa": ("lora", "adapter.dropout=0", "initializer={type: pissa}"),
}
MITIGATED = "lora, r 4"


def intruders(budget: Budget) -> dict[str, Any]:
    """Compute counts and forgetting of each method, means over the seeds, and the sweep at the first seed."""
    before, rows = untrained(budget), {}
    for method, changes in METHODS.items():
        found = []
        for seed in budget.seeds[:1]:
            engine = budget.train(seed, *changes)
            after = scores(engine)
            lost = forgetting(before, after)["retention"]
            found.append(after | {"forgetting": lost} | counts(pairs_of(engine)))
        rows[method] = summarise(found)
    engine = budget.train(budget.seeds[0], *METHODS[MITIGATED])
    return {"untrained": before, "rows": rows, "mitigated": MITIGATED, "mitigation": mitigation(engine)}


def pairs_of(engine: Engine) -> Iterable[LayerPair]:
    """Return W0 and ΔW of every q, k and v."""
    model = engine.task.model.backbone
    if adapted(model):
        return layer_pairs(model)
    tuned = trained_pairs(load_backbone("tiny-clip"), model)
    return (pair for pair in tuned if pair.kind.rpartition(" ")[2] in ("q", "k", "v"))


def counts(pairs: Iterable[LayerPair]) -> dict[str, float]:
    """Count the intruders in all layers, and average over layers their energy share, ‖ΔW‖ / ‖W0‖ and its rank."""
    reports = list(analyse(iter(pairs)))
    return {
        "intruders": sum(report.found.count for report in reports),
        "layers": len(reports),
        "energy_share": fmean(report.found.energy_share for report in reports),
        "relative_norm": fmean(report.relative_norm for report in reports),
        "effective_rank": fmean(report.effective_rank for report in reports),
    }


def mitigation(engine: Engine) -> dict[str, dict[str, dict[str, float]]]:
    """Compute accuracies along λ, of the intruders and of ΔW shrunk to the same norm."""
    model = engine.task.model.backbone
    found = {
        control: sweep(model, lambda: accuracies(engine), KEEPS, control=control) for control in ("none", "shrink")
    }
    return {control: {str(keep): row for keep, row in rows.items()} for control, rows in found.items()}
