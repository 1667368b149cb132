"""``vision-lowrank new``: start a recipe or a method of your own, outside the package.

There is a recipe for each job, for pictures of one's own. All begin with a pretrained backbone, spelled out, let
validation pictures choose the learning rate, and measure the adapter against what is cheaper.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError, near_miss
from ..files import write_text
from ..registry import registry

HEAD = """\
# Check it:   vision-lowrank inspect {name}.yaml
# Train it:   vision-lowrank train {name}.yaml
# Use it:     vision-lowrank {use}
name: {name}
backbone: {backbone}                  # pretrained weights are fetched once; `tiny-clip` ships, but knows emoji only
seeds: [1]                            # or [1, 2, 3], for a mean and a spread
"""

FEWSHOT = """\
# Classification of your own pictures: one folder per class under `root`.
{head}task: {{type: fewshot, shots: {shots}, head: {classifier}, crop: [0.6, 1.0]}}   # shots per class; null = all
data: {{type: folder, root: {data}, fractions: [0.6, 0.2, 0.2]}}   # train, validation, test
adapter: {{type: lora, r: 4, modules: [q, k, v]}}
references: [zero_shot, linear_probe]   # trained beside the adapter: is it worth its cost?
engine: {{steps: 300, lr: auto, batch_size: 32}}   # auto: validation pictures choose one of three
"""

INCREMENTAL = """\
# Classes that come later: one folder per class under `root`; the first `base` classes, then `way` new ones at a time.
{head}task:
  type: incremental
  protocol: {protocol}
  contrastive: 0
  cit_variant: none
  cosine: true
  epochs: 10
  incremental_epochs: 2
  incremental_lr_factor: 0.1
  crop: [0.6, 1.0]
data: {{type: folder, root: {data}, fractions: [0.6, 0.2, 0.2]}}   # train, validation, test
adapter: {{type: lora, r: 8, towers: [vision], modules: [q, v]}}
references: [none, zero_shot, linear_probe]   # none: class means of the untrained model
engine: {{lr: auto, batch_size: 32}}   # auto: validation pictures choose one of three
"""

MANIPULATION = """\
# Whether and where a picture was edited: edits of your own photographs, made on first use, from which it learns.
{head}task: {{type: manipulation, layer: last, contrast: null}}
data: {{type: edits, photos: {data}, folder: runs/data/{name}, size: 192}}   # all photographs; edits of all kinds
adapter: {{type: lora, r: 16, alpha: 32, towers: [vision], modules: [q, k, v, o, fc1, fc2]}}
references: [none, linear_probe]   # the frozen tower, with the same decoders and with a linear one
engine: {{steps: 1200, lr: auto, warmup_steps: 50, batch_size: 8, clip_norm: 1.0}}   # auto: chosen on validation
"""


class Job(NamedTuple):
    """A job that a recipe can be started for.

    Attributes:
        template: text with places for name, backbone, data and what else it has.
        use: the command that uses the artefact.
        shots: whether a number of pictures per class can be asked for.
    """

    template: str
    use: str
    shots: bool


# Families of backbones with a text tower, whose class prompts are the classifier.
TWO_TOWERS = ("open_clip:", "tiny-clip")
ARTEFACT = "runs/{name}/seed-1/artefact"
JOBS = {
    "fewshot": Job(FEWSHOT, f"predict {ARTEFACT} PICTURES", True),
    "incremental": Job(INCREMENTAL, f"add-classes {ARTEFACT} FOLDER", True),
    "manipulation": Job(MANIPULATION, f"scan PICTURES --model {ARTEFACT}", False),
}

# What a recipe begins with unless another backbone is named: job -> (name, weights).
BACKBONES = {
    "fewshot": ("open_clip:ViT-B-16", "openai"),
    "incremental": ("open_clip:ViT-B-16", "openai"),
    "manipulation": ("timm:vit_small_patch14_dinov2.lvd142m", "pretrained"),
}

ADAPTER = '''\
"""{title}: say here what the update of a frozen weight W (out, in) is, with shapes, and name the paper.

    y = x Wᵀ + b + s · (x Aᵀ) Bᵀ,      ΔW = s · B A

with A (r, in) and B (out, r), both trained; B starts at 0, so the model is unchanged at the start.

To use it by name, point to this module from your own package's pyproject.toml and install the package::

    [project.entry-points.vision_lowrank]
    {name} = "your_package.{name}"
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vision_lowrank import register
from vision_lowrank.adapters.base import AdapterConfig, Factors, WeightUpdate, check_rank
from vision_lowrank.adapters.tuner import register_method


@register("adapter", "{name}", summary="one line that says what it does", paper="arXiv 0000.00000")
@dataclass
class {title}Config(AdapterConfig):
    """Options: `r`, `alpha`, `dropout` and `scaling` are there already; add fields with defaults for more."""


class {title}(WeightUpdate):
    """A (r, in) and B (out, r)."""

    def __init__(self, weight: Tensor, config: {title}Config, name: str) -> None:
        super().__init__(config)
        out_features, in_features = weight.shape
        check_rank(config.r, min(weight.shape), name, f"a linear of {{in_features}} to {{out_features}}")
        like = {{"device": weight.device, "dtype": torch.promote_types(weight.dtype, torch.float32)}}
        self.A = nn.Parameter(torch.empty(config.r, in_features, **like))
        self.B = nn.Parameter(torch.zeros(out_features, config.r, **like))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def own_factors(self) -> Factors:
        """A (r, in), B (out, r) and the scale; a method without this form overrides `delta` and `forward`."""
        return Factors(self.A, self.B, self.scale)


register_method("{name}", {title}Config, {title})
'''


def new_command(
    kind: str, name: str, out: Path, job: str | None, backbone: str | None, shots: int | None, data: str | None
) -> None:
    """Write the scaffold and say what to do next.

    Raises:
        UserError: unknown kind or job, a name that is not snake case or cannot be a file's, an option that is not for
            it, or a file that exists.
    """
    kinds = ("recipe", "adapter")
    if kind not in kinds:
        raise UserError(f"unknown scaffold '{kind}'.{near_miss(kind, kinds)} Known: {', '.join(kinds)}.")
    given = {"--task": job, "--backbone": backbone, "--shots": shots, "--data": data}
    odd = next((option for option, value in given.items() if value is not None), None)
    if kind == "adapter" and odd:
        raise UserError(f"{odd}: is for recipes, and a method of your own has none.")
    if kind == "adapter" and not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"'{name}' is not snake case: use small letters, digits and underscores, such as my_adapter.")
    if not re.fullmatch(r"\w[\w.\-]*", name):
        raise UserError(f"'{name}' names no file: use letters, digits, hyphens and underscores, such as my-recipe.")
    if kind == "adapter":
        _write(out / f"{name}.py", ADAPTER.format(name=name, title=name.title().replace("_", "")))
    else:
        _write(out / f"{name}.yaml", _recipe(name, job or "fewshot", backbone, shots, data or "my_pictures"))


def _recipe(name: str, job: str, backbone: str | None, shots: int | None, data: str) -> str:
    """Write a recipe for a job.

    Raises:
        UserError: an unknown job or family of backbones, or shots where it has none.
    """
    if job not in JOBS:
        raise UserError(f"unknown job '{job}'.{near_miss(job, JOBS)} Known: {', '.join(JOBS)}.")
    if shots is not None and not JOBS[job].shots:
        raise UserError(f"--shots: {job} has no shots: it takes all pictures.")
    model, weights = BACKBONES[job]
    if backbone is not None:
        registry.get("backbone", backbone.partition(":")[0])
        model, weights = backbone, "pretrained" if ":" in backbone else None  # one without a colon ships
    return _recipe_text(job, name, model, weights, shots, data)


def _write(path: Path, text: str) -> None:
    """Write the file.

    Raises:
        UserError: it exists, or cannot be written.
    """
    if path.exists():
        raise UserError(f"{path}: exists already: choose another name or --out.")
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}).") from None
    print(f"wrote {path}")


def _recipe_text(job: str, name: str, backbone: str, weights: str | None, shots: int | None, data: str) -> str:
    """Write a recipe.

    Args:
        job: one of :data:`JOBS`.
        name: of the run.
        backbone: as ``backbone.name`` has it.
        weights: as ``backbone.weights`` has it; None where the model ships with its weights.
        shots: training pictures per class; None = all.
        data: folder of pictures.
    """
    model = {"name": backbone} | ({"weights": weights} if weights else {})
    use = JOBS[job].use.format(name=name)
    protocol = {"name": "cil", "base": 2, "way": 1, "val_shots": 2}
    if shots:
        protocol |= {"name": "fscit", "shots": shots, "base_shots": shots}
    return JOBS[job].template.format(
        name=name,
        head=HEAD.format(name=name, use=use, backbone=_flow(model)),
        shots=shots or "null",
        classifier="text" if backbone.startswith(TWO_TOWERS) else "cosine",
        protocol=_flow(protocol),
        data=json.dumps(data, ensure_ascii=False),
    )


def _flow(section: dict[str, object]) -> str:
    """Write a section on one line, as YAML."""
    return "{" + ", ".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in section.items()) + "}"
