"""BA-LoRA: three penalties on logits, against what fine-tuning inherits from noisy or unbalanced pre-training.

Paper: "BA-LoRA: Bias-Alleviating Low-Rank Adaptation to Mitigate Catastrophic Inheritance in Large Language Models",
arXiv 2408.04556. With the logits Z_F (N, D) of the adapted and Z_P (N, D) of the pretrained model on the same batch,
the latter in evaluation mode and without gradient::

    L = L_task + l1 L_CR + l2 L_DR + l3 L_SVDR

    consistency  L_CR    v6: T² · KL(softmax(Z_P / T) || softmax(Z_F / T)), mean over the batch
                         v1: mean over all entries of (Z_F / ‖Z_F‖ - Z_P / ‖Z_P‖)², norms row by row
                         features: mean of 1 - cos(f_F, f_P), for heads without a pretrained counterpart
    diversity    L_DR    Σ_{i≠j} Cov_ij² / D,  Cov = Z_cᵀ Z_c / (N - 1),  Z_c = Z_F minus its mean over the batch
    spectral     L_SVDR  -Σ_{i≤k} σ_i / (Σ_j σ_j + 1e-10),  σ = singular values of Z_F, descending

These are the classification forms; ``version`` chooses L_CR and the default weights (v6: the ICLR 2026 text, v1: the
earlier text and public code). The generation forms, on the logits (M, V) of M valid tokens, are functions here for
multimodal models: L_CR is :func:`consistency` over tokens (v1: T = 1), L_DR :func:`negative_entropy`, L_SVDR
:func:`top_energy` (v1: :func:`concentration`); v6 weighs them 0.025, 0.005 and 0.005 with k = 10.

The method is these penalties on a PiSSA start: add ``initializer: {type: pissa}``, which leaves W alone and carries the
starting product as an offset, so that the adapter switched off *is* the pretrained model. PEFT's own PiSSA freezes
W - B A instead and is refused.

``dr_space``: L_DR grows with the 4th power of the logits' scale, 100 for CLIP, so it looks at cosines (logits divided
by the scale), at logits standardised over the batch (Cov = correlations), or at the logits as they are. L_SVDR is
scale-free and does nothing while k ≥ min(N, D): the batch should have N of the order of D or more. An all-zero batch
(a head that starts at zero) has no spectrum, and a batch of one picture left over in an epoch no covariance: their
terms are 0 there.

Reconstructed: the temperature 2 and the 50 tokens of L_DR could not be read; ``dr_space``, ``consistency: features``
and the linear ramp over the first 5 % of steps are this project's.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from ..config.schema import RunConfig
from ..errors import UserError
from ..registry import register
from .base import Observed, Penalty, Regularizer, exact, gather_rows, wide

DrSpace = Literal["cosine", "standardized", "raw"]
HELP = "{} (null: {} for v6, {} for v1)"


class Weights(NamedTuple):
    """Weights of the three terms, and k of the last."""

    l1: float
    l2: float
    l3: float
    k: int


DEFAULTS = {"v6": Weights(0.15, 0.03, 0.03, 5), "v1": Weights(1e-4, 3e-4, 1e-4, 3)}


@register(
    "regularizer", "ba_lora", summary="consistency with the pretrained model, diversity, spectral concentration",
    paper="arXiv 2408.04556",
)  # fmt: skip
class BaLora(Regularizer):
    """Options of BA-LoRA's penalties."""

    type: Literal["ba_lora"] = "ba_lora"
    version: Literal["v1", "v6"] = Field("v6", description="which text: form of the consistency term, weights")
    l1: float | None = Field(None, ge=0, description=HELP.format("weight of consistency", 0.15, 1e-4))
    l2: float | None = Field(None, ge=0, description=HELP.format("weight of diversity", 0.03, 3e-4))
    l3: float | None = Field(None, ge=0, description=HELP.format("weight of spectral concentration", 0.03, 1e-4))
    k: int | None = Field(None, ge=1, description=HELP.format("leading singular values that should dominate", 5, 3))
    temperature: float = Field(2.0, gt=0, description="T of v6's consistency")
    consistency: Literal["logits", "features"] = Field("logits", description="what is kept near the pretrained model's")
    dr_space: DrSpace = Field("cosine", description="logits that diversity looks at")
    ramp: float = Field(0.05, ge=0, le=1, description="share of a stage's steps over which the weights rise linearly")

    @property
    def weights(self) -> Weights:
        """Those given, and the version's own where none is."""
        given = {name: getattr(self, name) for name in Weights._fields}
        return DEFAULTS[self.version]._replace(**{name: value for name, value in given.items() if value is not None})

    @property
    def teacher(self) -> Literal["logits", "features"] | None:
        """What consistency compares."""
        return self.consistency if self.weights.l1 else None

    def check(self, config: RunConfig) -> None:
        """Refuse a start that alters W, a batch without covariance, and cosines where there are none.

        Raises:
            UserError: any of these.
        """
        super().check(config)
        if not self.weights.l2:
            return
        if config.engine.batch_size // config.engine.accumulate < 2:
            raise UserError("regularizer ba_lora: one picture has no covariance: raise engine.batch_size, or set l2=0.")
        if self.dr_space == "cosine" and getattr(config.task, "head", None) == "linear":
            raise UserError(f"regularizer ba_lora: {NO_COSINES}")

    def start(self) -> BaLoraPenalty:
        """Start the three terms with full weights until progress is reported."""
        return BaLoraPenalty(self)


class BaLoraPenalty(Penalty):
    """The weighted terms of one batch; a term of weight 0 is not computed."""

    def __init__(self, options: BaLora) -> None:
        super().__init__()
        self.options, self.share = options, 1.0

    def set_progress(self, optimizer: Optimizer, step: int, steps: int) -> None:
        """Set the weights' share after `step` of `steps`: linear up to 1 over the ramp."""
        rise = self.options.ramp * steps
        self.share = min(1.0, step / rise) if rise else 1.0

    def losses(self, seen: Observed) -> dict[str, Tensor]:
        """Compute ``consistency``, ``diversity`` and ``spectral``."""
        weights, losses = self.options.weights, {}
        if weights.l1:
            losses["consistency"] = weights.l1 * self._consistency(seen)
        with exact(seen.logits):
            if weights.l2 or weights.l3:
                logits = gather_rows(wide(seen.logits))
            if weights.l2:
                spread = diversity(in_space(logits, self.options.dr_space, seen.scale)) if len(logits) > 1 else 0.0
                losses["diversity"] = weights.l2 * (spread + 0.0 * logits.sum())
            if weights.l3:
                losses["spectral"] = weights.l3 * concentration(logits, weights.k)
        return {name: self.share * value for name, value in losses.items()}

    def _consistency(self, seen: Observed) -> Tensor:
        """Compute the term that the options choose; the teacher computes in the precision of the student."""
        if self.options.consistency == "features":
            return 1 - F.cosine_similarity(wide(seen.features), wide(seen.teacher_features()), dim=-1).mean()
        student, teacher = wide(seen.logits), wide(seen.teacher())
        if self.options.version == "v1":
            return direction_gap(student, teacher)
        return consistency(student, teacher, self.options.temperature)


def consistency(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute T² · KL(softmax(teacher / T) || softmax(student / T)) of logits (N, D), mean over rows."""
    log_p, log_q = ((logits / temperature).log_softmax(dim=-1) for logits in (teacher.detach(), student))
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def direction_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean squared difference of the l2-normalised rows of two logits (N, D): L_CR of v1."""
    return F.mse_loss(F.normalize(student, dim=-1), F.normalize(teacher.detach(), dim=-1))


def diversity(logits: Tensor) -> Tensor:
    """Sum the squared off-diagonal covariances over a batch (N, D), divided by D.

    Raises:
        UserError: N = 1.
    """
    n, d = logits.shape
    if n < 2:
        raise UserError("diversity: one row has no covariance: give a batch of two or more.")
    centred = logits - logits.mean(dim=0)
    covariance = centred.T @ centred / (n - 1)
    return (covariance - covariance.diagonal().diag()).square().sum() / d


NO_COSINES = "a linear head's logits are no cosines: set regularizer.dr_space=standardized."


def in_space(logits: Tensor, space: DrSpace, scale: Tensor | float | None) -> Tensor:
    """Return logits (N, D) as diversity should see them.

    Raises:
        UserError: cosines were asked for and there is no scale to divide by.
    """
    if space == "cosine":
        if scale is None:
            raise UserError(f"regularizer ba_lora: {NO_COSINES}")
        return logits / scale
    if space == "standardized":  # a class whose logits do not vary is correlated with none
        return logits / (logits.var(dim=0, keepdim=True) + 1e-8).sqrt()
    return logits


def concentration(logits: Tensor, k: int) -> Tensor:
    """Compute -(sum of the k leading singular values) / (sum of all) of logits (N, D); 0 where there is no spectrum."""
    try:
        # No singular vector is differentiated, so equal singular values do no harm to the gradient.
        sigma = torch.linalg.svdvals(logits)
    except torch.linalg.LinAlgError:  # not finite or not converged: this batch goes without
        return 0.0 * logits.nan_to_num(0.0, 0.0, 0.0).sum()
    if not sigma[0] > 0:
        return 0.0 * logits.sum()
    return -sigma[:k].sum() / (sigma.sum() + 1e-10)


def negative_entropy(logits: Tensor, top: int | None = 50) -> Tensor:
    """Compute Σ p log p of each token's distribution, mean over tokens: L_DR of the generation forms.

    Args:
        logits: (M, V) of the valid tokens.
        top: p is restricted to this many tokens and renormalised (v6); None for the whole vocabulary (v1).
    """
    log_p = (logits if top is None else logits.topk(min(top, logits.shape[-1])).values).log_softmax(dim=-1)
    return (log_p.exp() * log_p).sum(dim=-1).mean()


def top_energy(logits: Tensor, k: int, oversample: int = 8, iterations: int = 2) -> Tensor:
    """Compute -(sum of the k leading singular values) / ‖logits‖_F by a randomised SVD: v6's L_SVDR for generation.

    The range finder is not differentiated: at the leading subspace the values are stationary with respect to it.

    Args:
        logits: (M, V) of the valid tokens.
        k: number of singular values.
        oversample: further columns of the random range finder.
        iterations: of its power method.
    """
    q = min(k + oversample, *logits.shape)
    basis = torch.svd_lowrank(logits.detach(), q, iterations)[0]
    sigma = torch.linalg.svdvals(basis.T @ logits)
    return -sigma[:k].sum() / (torch.linalg.matrix_norm(logits) + 1e-10)
