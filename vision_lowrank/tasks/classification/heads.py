"""What turns image features into class logits: text prompts, a linear layer, or cosine prototypes.

All heads take features F (B, e) and give logits (B, C):

* text:   logits = τ · normalise(F) · Tᵀ, T (C, e) = normalised mean over templates of the normalised prompt embeddings;
  τ is the backbone's own (frozen) scale, 100 for published CLIP weights.
* linear: logits = normalise(F) · √e · Wᵀ + b, W (C, e) and b start at 0. Dividing by the norm makes one learning rate
  fit all backbones; √e keeps a coordinate's size near 1.
* cosine: logits = τ · normalise(F) · normalise(P)ᵀ with trained prototypes P (C, e), τ = 20 (weight imprinting,
  arXiv 1712.07136; cosine classifier, arXiv 1904.04232).
* prototype, cosine_prototype: logits = F · Pᵀ of the features as they are, or cosines: :mod:`.prototypes`, for classes
  that come one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...attachment.parameters import backbone_of
from ...attachment.watch import Watch
from ...backbones.prefix_cache import PrefixCache
from ...backbones.roles import TextEncoder
from ...errors import UserError
from ...modes import preserved
from .prototypes import CosinePrototypeHead, PrototypeHead

HeadName = Literal["text", "linear", "cosine", "prototype", "cosine_prototype"]
PROTOTYPES = {"prototype": PrototypeHead, "cosine_prototype": CosinePrototypeHead}

# Prompts per pass of the text tower. Of more prompts in training only the embeddings are kept and the activations are
# computed again in the backward pass: a thousand prompts of a ViT-B/16 CLIP would take some 30 GB.
CHUNK = 128


class TextHead(nn.Module):
    """Classifier of a two-tower model: one prompt set per class, encoded by the (adapted) text tower.

    The features are computed at every call while the text tower trains; :meth:`refresh` computes them once where
    they cannot change (evaluation, or a frozen text tower) and :meth:`clear` forgets them. Kept ones are left aside
    when they are not what the model would give: its text tower or its adapters changed since, or the tower trains and
    gradients are asked for. Where only upper blocks of the text tower train, `prefix` keeps what the lower ones give.

    Attributes:
        features: the kept class embeddings (C, e), or None.
        prefix: what the lower blocks give, or None.
    """

    def __init__(self, model: nn.Module, classes: Sequence[str], templates: Sequence[str]) -> None:
        super().__init__()
        prompts = [template.format(name.replace("_", " ")) for name in classes for template in templates]
        self.templates = len(templates)
        self.register_buffer("tokens", model.tokenizer(prompts), persistent=False)
        self.features: Tensor | None = None
        self.prefix: PrefixCache | None = None
        self._watch: Watch | None = None

    def class_features(self, model: nn.Module) -> Tensor:
        """Compute the normalised class embeddings (C, e)."""
        starts = range(0, len(self.tokens), CHUNK)
        if len(starts) > 1 and torch.is_grad_enabled():
            parts = [checkpoint(self._encode, model, start, use_reentrant=False) for start in starts]
        else:
            parts = [self._encode(model, start) for start in starts]
        each = F.normalize(torch.cat(parts), dim=-1)
        return F.normalize(each.unflatten(0, (-1, self.templates)).mean(dim=1), dim=-1)

    def _encode(self, model: nn.Module, start: int) -> Tensor:
        tokens = self.tokens[start : start + CHUNK]
        with self.prefix.using(range(start, start + len(tokens))) if self.prefix else nullcontext():
            return model.encode_text(tokens)

    def refresh(self, model: nn.Module) -> None:
        """Compute the class embeddings once and keep them until :meth:`clear` or a change of the model."""
        self.fix(model)
        self._watch = Watch(model, "text")

    def fix(self, model: nn.Module) -> None:
        """Compute the class embeddings once and keep them whatever becomes of the model, until :meth:`clear`."""
        with torch.no_grad():
            self.features = self.class_features(model)
        self._watch = None

    def clear(self) -> None:
        """Compute the class embeddings anew at every call."""
        self.features = self._watch = None

    def _kept(self) -> Tensor | None:
        """Return the kept class embeddings, if they still hold; a graph that is being traced takes them as they are."""
        if self._watch is None or torch.compiler.is_compiling():
            return self.features
        wanted = torch.is_grad_enabled() and self._watch.trains
        return self.features if self._watch.unchanged and not wanted else None

    def forward(self, model: nn.Module, features: Tensor) -> Tensor:
        """Compute logits (B, C) of image features (B, e)."""
        kept = self._kept()
        text = self.class_features(model) if kept is None else kept
        return model.logit_scale * F.normalize(features, dim=-1) @ text.T


class LinearHead(nn.Module):
    """A linear layer on normalised features."""

    def __init__(self, model: nn.Module, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(model.embed_dim, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, model: nn.Module, features: Tensor) -> Tensor:
        """Compute logits (B, C) of image features (B, e)."""
        return self.linear(F.normalize(features, dim=-1) * model.embed_dim**0.5)


class CosineHead(nn.Module):
    """Cosine similarity to one trained prototype per class."""

    scale = 20.0

    def __init__(self, model: nn.Module, classes: int) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(classes, model.embed_dim) / model.embed_dim**0.5)

    def forward(self, model: nn.Module, features: Tensor) -> Tensor:
        """Compute logits (B, C) of image features (B, e)."""
        return self.scale * F.normalize(features, dim=-1) @ F.normalize(self.prototypes, dim=-1).T


def make_head(name: HeadName, model: nn.Module, classes: Sequence[str], templates: Sequence[str]) -> nn.Module:
    """Make a fresh head for `classes` on `model` (a backbone, attached or not)."""
    if name == "text":
        return TextHead(model, classes, templates)
    if name in PROTOTYPES:
        return PROTOTYPES[name](len(classes), model.embed_dim)
    return {"linear": LinearHead, "cosine": CosineHead}[name](model, len(classes))


@torch.no_grad()
def text_rows(model: nn.Module, names: Sequence[str], templates: Sequence[str], scale: float = 1.0) -> Tensor:
    """Compute rows (n, d) for the classes `names`: `scale` times their normalised mean text embeddings.

    Predictions are then zero-shot's, whatever `scale` is; with the model's logit scale divided by the usual norm of h,
    the logits are near zero-shot's too.

    Raises:
        UserError: `model` has no text tower.
    """
    if not isinstance(backbone_of(model), TextEncoder):
        raise UserError(f"backbone '{model.name}' has no text tower: start the head from prototypes.")
    with preserved(model):
        model.eval()
        head = TextHead(model, names, templates).to(next(model.parameters()).device)
        return scale * head.class_features(model)
