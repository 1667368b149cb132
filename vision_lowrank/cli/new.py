"""``vision-lowrank new``: start a recipe or a method of your own, outside the package."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import UserError, near_miss
from ..files import write_text

RECIPE = """\
# Few-shot classification of your own pictures: one folder per class under `root`.
# Check it:   vision-lowrank inspect {name}.yaml
# Train it:   vision-lowrank train {name}.yaml
# Use it:     vision-lowrank predict runs/{name}/seed-1/artefact PICTURES
name: {name}
backbone: {{name: tiny-clip}}        # or {{name: "open_clip:ViT-B-16", weights: openai}}
seeds: [1]                            # or [1, 2, 3], for a mean and a spread
task: {{type: fewshot, shots: 4}}
data: {{type: folder, root: my_pictures}}
adapter: {{type: lora, r: 4, towers: [vision, text], modules: [q, k, v]}}
engine: {{steps: 300, lr: 2.0e-4, batch_size: 32}}
"""

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


def new_command(kind: str, name: str, out: Path) -> None:
    """Write the scaffold and say what to do next.

    Raises:
        UserError: unknown kind, a name that is not snake case or cannot be a file's, or a file that exists.
    """
    kinds = ("recipe", "adapter")
    if kind not in kinds:
        raise UserError(f"unknown scaffold '{kind}'.{near_miss(kind, kinds)} Known: {', '.join(kinds)}.")
    if kind == "adapter" and not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"'{name}' is not snake case: use small letters, digits and underscores, such as my_adapter.")
    if not re.fullmatch(r"\w[\w.\-]*", name):
        raise UserError(f"'{name}' names no file: use letters, digits, hyphens and underscores, such as my-recipe.")
    path = out / (f"{name}.yaml" if kind == "recipe" else f"{name}.py")
    template = RECIPE if kind == "recipe" else ADAPTER
    if path.exists():
        raise UserError(f"{path}: exists already: choose another name or --out.")
    try:
        write_text(path, template.format(name=name, title=name.title().replace("_", "")))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}).") from None
    print(f"wrote {path}")
