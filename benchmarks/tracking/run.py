"""LoRAT's form on tiny-vit beside frozen, full fine-tuning and other adapters; and the shipped tracker beside others.

    python benchmarks/tracking/run.py --photographs FOLDER…            # goes on if interrupted; README says how long
    python benchmarks/tracking/run.py --photographs FOLDER… --arms lora full    # train only these, write nothing
    python benchmarks/tracking/run.py --trial                           # two steps, writes nothing here

All are tested on the same clips of ``emoji_scenes``, whose objects and photographs no training has seen. *Trackers* (no
motion, template matching, KCF, CSRT and the artefact that ``--model`` names) are scored through result files, with the
spread over clips. *Arms* are configs/tracking/scenes_lora.yaml with another method in LoRA's place, at equal pairs:
``lora+truncated_normal`` is LoRAT's start, ``lora`` the usual one, at the pretrained function; ``none`` trains head and
token types only, ``full`` all of the trunk; the others are every adapter whose updates have factors, at the recipe's
rank. Three seeds, of those others one. Learning rates are chosen per arm on the first seed's validation clips, by
success; those others have one rate. Beside them further templates in training, and a second template that is cut anew
while following.

Writes ``results.json`` beside this file; ``--jobs N`` trains in N processes. OpenCV comes with the extra ``tracking``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clip_scores import KEPT, clips_by_attribute, scored_trackers
from plain_trackers import lacking
from tracking_conditions import RECIPE, ROOT, Conditions, add_options, command, conditions

from vision_lowrank.config import load_config
from vision_lowrank.engine.progress import say
from vision_lowrank.files import write_text
from vision_lowrank.paths import shipped
from vision_lowrank.studies.columns import complete_rows
from vision_lowrank.studies.launch import Launcher
from vision_lowrank.studies.methods import Methods
from vision_lowrank.studies.processes import local
from vision_lowrank.studies.study import Study, run_study
from vision_lowrank.studies.variants import Variant, entries

# Adapters whose ΔW has factors in every linear; tests/benchmarks/test_tracking.py counts them.
FACTORS = ("block_lora", "comp_lora", "kasa", "lamda", "loldu", "lora_xs", "slora", "sora")
ARMS = ("lora+truncated_normal", "lora", "none", "full", *FACTORS)
# Options that LoRAT does not have, beside `lora` at its learning rate.
EXPERIMENTS = {
    "lora, two templates": ("task.templates=2",),
    "lora, template update": ("task.templates=2", "task.update_after=10"),
}
RATES = {
    "full": (1e-3, 3e-3),
    **dict.fromkeys(FACTORS, (1e-3,)),
    **dict.fromkeys(("lora_xs", "loldu"), (4e-3,)),  # few numbers between frozen matrices take large steps
}
OTHER_RATES = (2e-3, 5e-3)
TEST = "test/emoji_scenes/"
Row = dict[str, Any]


def arms_study(names: Sequence[str], study: Conditions) -> Study:
    """Return the study of some arms, each with the rates to choose from."""
    plan = Methods(RECIPE, entries(",".join(names)), budget="rank").study(study.folder / "arms", study.overrides)
    variants = [_with_rates(variant, study.trial) for variant in plan.variants]
    for lora in [variant for variant in variants if variant.name == "lora"]:
        for name, changes in EXPERIMENTS.items():
            config = load_config(RECIPE, [*study.overrides, "initializer=null", "seeds=[1]", *changes])
            variants.append(Variant(name, config, follows=lora))
    return replace(plan, title="arms", variants=variants)


def _with_rates(variant: Variant, trial: bool) -> Variant:
    """Return an arm with its rates; of the adapters that are tried once, with one seed."""
    rates, config = RATES.get(variant.name, OTHER_RATES), variant.config
    once = config is not None and variant.name in FACTORS
    return replace(
        variant,
        rates=rates[:1] if trial else rates,
        config=config.model_copy(update={"seeds": config.seeds[:1]}) if once else config,
    )


def arms(names: Sequence[str], study: Conditions, launch: Launcher) -> dict[str, Any]:
    """Train what is missing of some arms; returns what is kept of the study."""
    result = run_study(arms_study(names, study), launch, say)
    return {
        **{key: result[key] for key in ("task", "sizes", "seeds", "environment")},
        "baseline": _kept(result["baseline"]),
        "rows": [kept_row(row) for row in complete_rows(result)],
    }


def kept_row(row: Row) -> Row:
    """Return what is kept of a study's row; ``seeds`` is success of each seed."""
    known = ("method", "r", "lr", "validation", "trained_parameters", "peak_memory", "step_seconds", "step_ratio")
    return {
        **{key: row[key] for key in known if key in row},
        "metrics": _kept(row["metrics"]),
        "seeds": {seed: each["metrics"][f"{TEST}success_auc"] for seed, each in row["seeds"].items()},
    }


def _kept(metrics: dict[str, Any]) -> dict[str, Any]:
    return {f"{TEST}{name}": metrics[f"{TEST}{name}"] for name in KEPT}


def main() -> None:
    """Run what is missing and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--model", type=Path, help="artefact of a tracker; the shipped one if not given")
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="train only these, and write nothing")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    given = parser.parse_args()
    study, launch = conditions(given), local(given.jobs)
    if given.arms:
        arms(given.arms, study, launch)
        return
    if missing := lacking():
        parser.error(f"{', '.join(missing)}: no OpenCV with its contrib modules; install vision-lowrank[tracking].")
    model = given.model or (None if study.trial else shipped("data") / "tiny_tracker")
    if model is not None and not model.is_dir():
        parser.error(f"{model} is no folder: give --model ARTEFACT.")
    clips = study.splits().tests["emoji_scenes"]
    trackers = scored_trackers(clips, study.folder / "results", model)
    trained = arms(ARMS, study, launch)
    result = {
        "command": command("benchmarks/tracking/run.py", given),
        "recipe": str(RECIPE.relative_to(ROOT)),
        "environment": trained.pop("environment"),
        "conditions": study.about(),
        "attributes": clips_by_attribute(clips),
        "trackers": trackers,
        "arms": trained,
    }
    write_text(study.results, json.dumps(result, indent=1) + "\n")
    print(study.results)


if __name__ == "__main__":
    main()
