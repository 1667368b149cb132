"""LoRA-Pro: LoRA's factors stepped so that W moves as closely as possible as in full fine-tuning.

Paper: "LoRA-Pro: Are Low-Rank Adapters Properly Optimized?", arXiv 2407.18242 (ICLR 2025). Adapter, forward pass, start
and merge stay those of LoRA; the mathematics is in :mod:`.lora_pro_optimizer`, which this rule puts in the place of
torch's. Optimizer, learning rate, betas, momentum (of the head, Nesterov's too; refused where no head trains) and
weight decay are the engine's; the paper's scripts have AdamW and weight decay 0. The engine clips the raw gradients and
leaves out steps whose gradient is not finite.

The second step after B = 0 is large by construction, whatever the learning rate: B is of the size of one step then, and
(BᵀB)⁻¹ makes the move of A independent of it. Warm up, and keep X ``sylvester`` in real training. With
``momentum_space: weight`` two tensors of the size of W are kept per adapted layer. Every adapted layer must train one
pair B A, B beside a frozen A (LoRA-FA), or R alone between a frozen A and B (LoRA-XS, SLoRA's ``train: middle``);
PEFT's LoRA on two-dimensional convolutions without groups counts as a pair. Anything else (DoRA's magnitudes, Kronecker
factors, all three factors of SLoRA) has no closed form of this size and is refused.

Reconstructed: the recipe for vision, for which this project suggests lr 1e-4 with a warm-up of 3 to 5 % of the steps;
the optimiser's file says what else is.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from ..config.schema import EngineConfig, RunConfig
from ..errors import UserError
from ..registry import register
from .base import Groups, Rule, StepContext, Steps
from .lora_pro_optimizer import DampingKind, LoraProOptimizer, MomentumSpace, Variant, XMode, check_options
from .tensors import Pair, pairs, require_adapter


@register(
    "rule",
    "lora_pro",
    summary="steps of A and B that move W as full fine-tuning would (LoRA-Pro)",
    paper="arXiv 2407.18242",
)
class LoraPro(Rule):
    """Options of LoRA-Pro."""

    type: Literal["lora_pro"] = "lora_pro"
    variant: Variant | None = Field(
        None, description="what steps, on the pairs and on a head: `adamw` or `sgd`; null = engine.optimizer"
    )
    momentum_space: MomentumSpace = Field(
        "weight", description="AdamW's moments: of ΔW's gradient, `weight`, or of the factors' gradients, `factor`"
    )
    x_mode: XMode = Field("sylvester", description="the free part of the solution: `sylvester`, `symmetry` or `zero`")
    damping: DampingKind = Field("relative", description="of the inverses: `relative` to their size, or `absolute`")
    damping_eps: float | None = Field(
        None, ge=0, description="size of the damping; null = 1e-6 relative, 1e-8 absolute"
    )

    def check(self, config: RunConfig) -> None:
        """Refuse a run without adapter, and settings of the optimiser that `variant` does not take."""
        engine = config.engine
        check_options(self.variant or engine.optimizer, self.momentum_space, momentum=engine.momentum)
        if self.variant == "sgd" and engine.betas != EngineConfig.model_fields["betas"].default:
            raise UserError("rule lora_pro: engine.betas are AdamW's, and variant=sgd has none: leave one of them out.")
        require_adapter("lora_pro", config)

    def start(self, stage: StepContext) -> LoraProSteps:
        """Start plain gradients with LoRA-Pro's optimiser."""
        return LoraProSteps(self, stage)


class LoraProSteps(Steps):
    """Steps of :class:`LoraProOptimizer`, with the engine's settings."""

    pairs: list[Pair]

    def __init__(self, options: LoraPro, stage: StepContext) -> None:
        super().__init__(stage)
        self.options = options

    def prepare(self) -> None:
        """Find the pairs."""
        self.pairs = pairs(self.stage.model, wider=True)

    def optimizer(self, groups: Groups) -> Optimizer:
        """Build LoRA-Pro's optimiser, on all groups."""
        settings = self.stage.settings
        return LoraProOptimizer(
            groups,
            self.pairs,
            settings.lr,
            variant=self.options.variant or settings.optimizer,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            **self.options.model_dump(exclude={"type", "variant"}),
        )


def create_lora_pro_optimizer(model: nn.Module, lr: float = 1e-4, **options: Any) -> LoraProOptimizer:
    """Create LoRA-Pro's optimiser for a model with LoRA layers, PEFT's or this package's, without the engine.

    Args:
        model: its adapted layers' factors are stepped by LoRA-Pro, whatever else requires a gradient by AdamW or SGD.
        lr: learning rate.
        **options: those of :class:`~vision_lowrank.optim.lora_pro_optimizer.LoraProOptimizer`.

    Raises:
        UserError: an adapted layer trains something that LoRA-Pro has no form for, or options do not fit together.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return LoraProOptimizer(parameters, pairs(model, wider=True), lr, **options)
