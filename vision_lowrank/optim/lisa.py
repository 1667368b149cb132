"""LISA: γ randomly drawn blocks train at a time, drawn anew every K steps; embeddings and head always train.

Paper: "LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model Fine-Tuning", arXiv 2403.17919.
Without an adapter the backbone's own weights train: with N blocks, E (patches, tokens, positions, the norm before the
first block) and H (final norms, projections, the task's head), steps t = iK … iK + K - 1 of interval i = 0, 1, … use

    D_i ⊂ {0 … N-1},   |D_i| = γ,   drawn without replacement, uniformly or in proportion to `importance`
    AdamW on E, H and the blocks of D_i;   the other blocks: no gradient, so no momentum and no weight decay either

D_i is a function of (seed, stage, i) alone, so a resumed run draws as the whole run does, whatever the data. A scale of
the logits stays frozen; batch norms keep the base model's statistics. With an adapter the same schedule holds for the
adapter's tensors, block by block, and the base stays frozen ("LISA-LoRA"): a regulariser.

A block rests only while losses and gradients are computed: between steps all that may train requires a gradient, so
the optimiser knows it, checkpoints and selected states hold it, and no later stage finds it frozen by accident.

What is kept of the optimiser's state: ``drop_frozen`` deletes that of resting blocks, whose moments and step counters
start anew; ``reset_all`` starts everything anew at each draw, as the paper's runs did; ``keep`` keeps it all, as the
public callback does, and grows to the memory of full fine-tuning. With γ = N and ``keep`` this is full fine-tuning.

Reconstructed: K = max(5, steps / 50) and what counts as E outside language models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from ..adapters.tuner import tuner_layers
from ..backbones.base import Backbone
from ..config.schema import RunConfig
from ..errors import UserError, near_miss
from ..registry import register
from .base import Closure, Groups, Rule, StepContext, Steps

# Parts of the names of E in timm, open_clip and transformers.
EMBEDDING = re.compile(r"(^|[._])emb|token|(^|\.)(ln_pre|norm_pre|conv1|shared)\.")
LOGITS = ("logit_scale", "logit_bias")

# Keeps the draws apart from other uses of the run's seed.
STREAM = 2403


@register(
    "rule", "lisa", summary="full fine-tuning, or an adapter, of a few drawn blocks at a time (LISA)",
    paper="arXiv 2403.17919",
)  # fmt: skip
class Lisa(Rule):
    """Options of LISA."""

    type: Literal["lisa"] = "lisa"
    blocks: int | None = Field(2, ge=0, description="γ: how many blocks train at a time; null = all")
    interval: int | None = Field(None, ge=1, description="K: steps from one draw to the next; null = max(5, steps/50)")
    state: Literal["drop_frozen", "reset_all", "keep"] = Field(
        "drop_frozen", description="optimiser state: drop that of resting blocks, drop all at each draw, or keep it"
    )
    train_embed: bool = Field(True, description="train E too; without, backward ends at the lowest drawn block")
    importance: tuple[Annotated[float, Field(ge=0)], ...] | None = Field(
        None, description="a weight per block, towers in order: chance to be drawn; null = all the same"
    )
    towers: tuple[str, ...] | None = Field(
        None, min_length=1, description="towers that train; null = all; `vision` where the head uses no text"
    )
    per_tower: bool = Field(False, description="draw γ blocks in each tower instead of γ in all")

    def check(self, config: RunConfig) -> None:
        """Refuse `towers` beside an adapter, which names its own."""
        if config.adapter is not None and self.towers is not None:
            raise UserError("rule.towers chooses weights of the base: with an adapter, set adapter.towers instead.")

    def start(self, stage: StepContext) -> LisaSteps:
        """Start a new schedule for every stage."""
        return LisaSteps(self, stage)


class LisaSteps(Steps):
    """The draws of one stage.

    Attributes:
        names: module path, inside the backbone, of every block that can be drawn.
        blocks: its parameters that can train.
        interval: K.
    """

    def __init__(self, options: Lisa, stage: StepContext) -> None:
        super().__init__(stage)
        self.options = options
        self.interval = options.interval or max(5, stage.settings.steps // 50)
        self.step = 0

    def prepare(self) -> None:
        """Make everything require a gradient that may ever train, so that the optimiser gets it."""
        backbone = next((module for module in self.stage.model.modules() if isinstance(module, Backbone)), None)
        if backbone is None or not backbone.towers:
            name = "the task's model" if backbone is None else f"backbone '{backbone.name}'"
            raise UserError(f"rule lisa: {name} has no known blocks: use a backbone with transformer towers.")
        towers = self._towers(backbone)
        if not tuner_layers(self.stage.model):
            self._train_base(backbone, towers)
        found = [(tower, path, _trained(backbone, path)) for tower in towers for path in backbone.towers[tower].blocks]
        found = [(tower, path, parameters) for tower, path, parameters in found if parameters]
        self.names, self.blocks = [path for _, path, _ in found], [parameters for _, _, parameters in found]
        owners = [tower for tower, _, _ in found] if self.options.per_tower else [""] * len(found)
        self._pools = [[i for i, each in enumerate(owners) if each == owner] for owner in dict.fromkeys(owners)]
        self._norms = [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
        self._check_draws()

    def optimizer(self, groups: Groups) -> Optimizer:
        """Build the ordinary optimiser, whose state this rule tends."""
        self._optimizer = super().optimizer(groups)
        return self._optimizer

    def gradients(self, closure: Closure) -> dict[str, float]:
        """Compute gradients of E, H and the drawn blocks; logs which these are, by their place in ``names``."""
        drawn = self.drawn(self.step)
        training = {id(p) for i in drawn for p in self.blocks[i]}
        resting = [p for parameters in self.blocks for p in parameters if id(p) not in training]
        if self.options.state == "drop_frozen":
            for parameter in resting:
                self._optimizer.state.pop(parameter, None)
        elif self.options.state == "reset_all" and self.step % self.interval == 0:
            self._optimizer.state.clear()
        with _resting(resting, self._norms):
            losses = closure()
        return losses | {f"lisa_block_{n}": float(i) for n, i in enumerate(drawn)}

    def drawn(self, step: int) -> list[int]:
        """Draw the places in ``names``, ascending, of the blocks that train when `step` steps are done."""
        if self.options.blocks == 0:
            return []
        stage = self.stage
        generator = np.random.default_rng([STREAM, stage.seed, stage.index, step // self.interval])
        draws = [
            generator.choice(pool, self._number(pool), replace=False, p=self._chances(pool)) for pool in self._pools
        ]
        return sorted(int(i) for draw in draws for i in draw)

    def after_step(self, step: int) -> None:
        """Note that `step` steps are done."""
        self.step = step

    def state_dict(self) -> dict[str, Any]:
        """Return how many steps are done: the draws follow from it."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after that many steps."""
        self.step = state["step"]

    def _towers(self, backbone: Backbone) -> Sequence[str]:
        towers = self.options.towers or tuple(backbone.towers)
        for name in towers:
            if name not in backbone.towers:
                raise UserError(
                    f"rule lisa: backbone '{backbone.name}' has no tower '{name}'.{near_miss(name, backbone.towers)} "
                    f"Known: {', '.join(backbone.towers)}."
                )
        return [name for name in backbone.towers if name in towers]

    def _train_base(self, backbone: Backbone, towers: Sequence[str]) -> None:
        """Make the weights of these towers train, perhaps without E, and no other weight of the backbone."""
        inside = tuple(f"{path}." for tower in backbone.towers.values() for path in tower.blocks)
        for name, parameter in backbone.named_parameters():
            left_out = not self.options.train_embed and not name.startswith(inside) and EMBEDDING.search(name)
            trains = not left_out and backbone.tower_of(name) in towers and not name.endswith(LOGITS)
            parameter.requires_grad_(bool(trains) and parameter.is_floating_point())

    def _number(self, pool: Sequence[int]) -> int:
        """Return how many blocks of a pool are drawn."""
        return len(pool) if self.options.blocks is None else self.options.blocks

    def _chances(self, pool: Sequence[int]) -> np.ndarray | None:
        if self.options.importance is None:
            return None
        weights = np.array([self.options.importance[i] for i in pool])
        return weights / weights.sum()

    def _check_draws(self) -> None:
        """Refuse what cannot be drawn, before the first step."""
        weights = self.options.importance
        if weights is not None and len(weights) != len(self.blocks):
            raise UserError(
                f"rule.importance has {len(weights)} weights for {len(self.blocks)} blocks that train: give each one."
            )
        for pool in self._pools or [[]]:
            possible = len(pool) if weights is None else sum(weights[i] > 0 for i in pool)
            if possible < self._number(pool):
                where = f" of the {'tower' if self.options.per_tower else 'model'}"
                raise UserError(
                    f"rule.blocks = {self._number(pool)}, but only {possible} blocks{where} can be drawn: lower it."
                )


def _trained(backbone: Backbone, path: str) -> list[nn.Parameter]:
    return [parameter for parameter in backbone.get_submodule(path).parameters() if parameter.requires_grad]


@contextmanager
def _resting(parameters: Sequence[nn.Parameter], norms: Sequence[nn.Module]) -> Iterator[None]:
    """Keep parameters without gradient and batch norms with fixed statistics; all is put back at the end."""
    frozen = [parameter for parameter in parameters if parameter.requires_grad]
    fixed = [norm for norm in norms if norm.training]
    for parameter in frozen:
        # None, not zero: a gradient of zero would let momentum and weight decay move the parameter.
        parameter.requires_grad_(False).grad = None
    for norm in fixed:
        norm.eval()
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for norm in fixed:
            norm.train()
