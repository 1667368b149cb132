"""Contrastive pretraining of a two-tower model on captioned pictures.

A batch holds B pictures and one caption each, drawn at random from the captions that are true of the picture and put
into a random template. With normalised embeddings I, T (B, e), scale τ (trained, at most 100) and logits L = τ I Tᵀ
(B, B), the loss is the symmetric cross-entropy of CLIP (arXiv 2103.00020) in which *every* caption that is true of a
picture is a positive (UniCL, arXiv 2204.03610):

    M_ij = 1 if caption j is true of picture i, else 0
    loss = ½ · mean_i CE(L_i·, M_i· / Σ_j M_ij) + ½ · mean_j CE(L_·j, M_·j / Σ_i M_ij)

With captions that are true of one picture only, M is the identity and this is CLIP's loss. Ordinary CLIP would count
"face smiling" on another smiling face as a negative.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from open_clip.transformer import PatchDropout
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from ...backbones.base import Backbone
from ...backbones.load import load_backbone
from ...backbones.roles import TextEncoder
from ...backbones.weights import half_state
from ...config.schema import RunConfig, Section
from ...data.base import ImageSet
from ...data.loading import TransformedImages
from ...data.options import Templates
from ...engine.task import Batch, Stage
from ...errors import UserError
from ...files import write_text
from ...registry import register
from ..classification.base import ClassificationTask, load_splits
from ..classification.classifier import ImageClassifier
from ..saved import add_parts
from .decay import decay_groups

MAX_SCALE = 100.0


class PretrainClipConfig(Section):
    """Options of ``task: {type: pretrain_clip}``."""

    type: Literal["pretrain_clip"] = "pretrain_clip"
    templates: Templates = Field(
        ("{}", "a picture of {}", "a drawing of {}", "an emoji of {}"),
        description="templates drawn for training captions",
    )
    patch_dropout: float = Field(0.0, ge=0, lt=1, description="share of patches left out in training (FLIP); open_clip")


class CaptionedImages(Dataset):
    """Pictures with one drawn caption each: ``{"image", "tokens", "caption", "true_captions", "index"}``.

    ``caption`` is the number of the drawn caption; ``true_captions`` (K,) are the numbers of all captions that are
    true of the picture, padded with -1.
    """

    def __init__(self, images: ImageSet, transform: Any, tokenizer: Any, templates: tuple[str, ...], seed: int) -> None:
        if not images.captions:
            raise UserError(f"data set '{images.name}' has no captions: contrastive pretraining needs them.")
        self.pictures = TransformedImages(images, transform, seed)
        self.captions = images.captions
        self.tokenizer, self.templates = tokenizer, templates
        self.numbers = {text: n for n, text in enumerate(sorted({text for texts in images.captions for text in texts}))}
        self.longest = max(len(texts) for texts in images.captions)

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        sample = self.pictures[item]
        position, index = item
        texts = self.captions[index]
        draw = torch.Generator().manual_seed((self.pictures.seed * 1_000_003 + position) % 2**63)
        text = texts[int(torch.randint(len(texts), (), generator=draw))]
        template = self.templates[int(torch.randint(len(self.templates), (), generator=draw))]
        true = [self.numbers[each] for each in texts]
        return {
            "image": sample["image"],
            "index": sample["index"],
            "tokens": self.tokenizer([template.format(text)])[0],
            "caption": self.numbers[text],
            "true_captions": torch.tensor(true + [-1] * (self.longest - len(true))),
        }


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, positives: Tensor) -> Tensor:
    """Compute the symmetric loss of the module docstring.

    Args:
        images: (B, e) normalised.
        texts: (B, e) normalised.
        scale: scalar τ.
        positives: M (B, B) of 0 and 1, at least one 1 in every row and column.
    """
    logits = scale * images @ texts.T
    by_image = F.cross_entropy(logits, positives / positives.sum(dim=1, keepdim=True))
    by_text = F.cross_entropy(logits.T, positives.T / positives.T.sum(dim=1, keepdim=True))
    return (by_image + by_text) / 2


def drop_patches(backbone: Backbone, share: float) -> None:
    """Let the image tower leave out a random `share` of its patches in training (FLIP, arXiv 2212.00794).

    Half the patches cost little more than half the time, and act as augmentation. No weight depends on it.

    Raises:
        UserError: the image tower has no place for it.
    """
    visual = getattr(backbone.model, "visual", None)
    if not hasattr(visual, "patch_dropout"):
        raise UserError(f"backbone '{backbone.name}' cannot leave out patches: set task.patch_dropout=0.")
    visual.patch_dropout = PatchDropout(share)


@register(
    "task", "pretrain_clip", summary="contrastive pretraining on captioned pictures", paper="arXiv 2103.00020",
    config=PretrainClipConfig,
)  # fmt: skip
class PretrainClip(ClassificationTask):
    """Trains all of a two-tower model; evaluates its zero-shot classification."""

    adapts = False

    def __init__(self, config: RunConfig, seed: int) -> None:
        splits = load_splits(config)
        backbone = load_backbone(**config.backbone.arguments)
        if not isinstance(backbone, TextEncoder):
            raise UserError(f"backbone '{backbone.name}' has no text tower: contrastive pretraining needs two towers.")
        if config.task.patch_dropout:
            drop_patches(backbone, config.task.patch_dropout)
        super().__init__(ImageClassifier(backbone, "text", splits.train.classes, splits.templates), splits, splits.val)
        self.options, self.seed = config.task, seed

    def stages(self) -> list[Stage]:
        """Return one stage over all captioned pictures."""
        model = self.model.backbone
        transform = model.preprocess.pretraining()
        data = CaptionedImages(self.splits.train, transform, model.tokenizer, self.options.templates, self.seed)
        return [Stage("pretrain", data)]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return two groups: matrices decay; biases, norms, position embeddings and the scale do not (CLIP's rule)."""
        return decay_groups(self.model.backbone.named_parameters(), "positional")

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss of a batch: image (B, 3, H, W), tokens (B, L), caption (B,), true_captions (B, K)."""
        model = self.model.backbone
        positives = (batch["true_captions"][:, :, None] == batch["caption"]).any(dim=1).float()
        images = F.normalize(model.encode_image(batch["image"]), dim=-1).float()
        texts = F.normalize(model.encode_text(batch["tokens"]), dim=-1).float()
        scale = model.logit_scale.clamp(max=MAX_SCALE)
        return {"loss": contrastive_loss(images, texts, scale, positives), "scale": scale.detach()}

    def begin_training(self) -> None:
        """Remember that the whole model trains, so that its artefact needs no base; buffers belong to it."""
        self.model.trained_base = set(self.model.backbone.state_dict())

    def save_artefact(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Save the classifier by prompts as an artefact folder.

        For other programs, and to ship, it also holds the model's weights as ``model.safetensors`` (fp16), and the
        record as ``record.json``.
        """
        super().save_artefact(folder, record)
        add_parts(folder, {"model.safetensors": half_state(self.model.backbone.model)})
        write_text(folder / "record.json", json.dumps(dict(record), indent=1, ensure_ascii=False) + "\n")

    def describe(self) -> dict[str, Any]:
        """Return the base class's facts, the training set's hash and the number of pictures."""
        train = self.splits.train
        return super().describe() | {"train_images": len(train), "train_hash": train.hash}
