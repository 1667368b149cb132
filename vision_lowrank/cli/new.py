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
task: {{type: fewshot, shots: 4, seeds: [1]}}
data: {{type: folder, root: my_pictures}}
adapter: {{type: lora, r: 4, towers: [vision, text], modules: [q, k, v]}}
engine: {{steps: 300, lr: 2.0e-4, batch_size: 32}}
"""

ADAPTER = '''\
"""{title}: describe the update ΔW of a frozen W (out, in) here, with shapes and the paper.

ΔW = s · B A with A (r, in) and B (out, r), both trained; B = 0 at the start, so the model is unchanged.

Make it known to vision_lowrank from your own package's pyproject.toml::

    [project.entry-points.vision_lowrank]
    {name} = "your_package.{name}"
"""

from __future__ import annotations

{body}
'''


def new_command(kind: str, name: str, out: Path) -> None:
    """Write the scaffold and say what to do next.

    Raises:
        UserError: unknown kind, a name that is not snake case, or a file that exists.
    """
    kinds = ("recipe", "adapter")
    if kind not in kinds:
        raise UserError(f"unknown scaffold '{kind}'.{near_miss(kind, kinds)} Known: {', '.join(kinds)}.")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"'{name}' is not snake case: use small letters, digits and underscores, such as my_{kind}.")
    path = out / (f"{name}.yaml" if kind == "recipe" else f"{name}.py")
    if path.exists():
        raise UserError(f"{path}: exists already: choose another name or --out.")
    try:
        write_text(path, RECIPE.format(name=name) if kind == "recipe" else _adapter(name))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}).") from None
    print(f"wrote {path}")
