"""From a run's config to its data and its model, with the parameters that stages train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ...attachment.parameters import Parameters, adapter_parameters, backbone_of, encoder_parameters
from ...attachment.phases import phases
from ...attachment.section import attach_section
from ...backbones.roles import LanguageModel
from ...config.adapter import AdapterSection
from ...config.schema import RunConfig
from ...data.gives import read_data
from ...data.manipulation.base import ManipulationSplits
from ...data.manipulation.framing import Framing
from ...data.manipulation.sampling import draws_of
from ...errors import UserError
from ...initializers.base import GradientInitializer
from ..classification.base import load_frozen
from .config import ContrastOptions, ManipulationConfig
from .contrast import contrastive_loss
from .explainer import EXPLAIN, deactivate_explainer
from .frames import Frames, stacked, whole_pictures
from .model import ManipulationModel
from .picture_sets import drawn_twins
from .pictures import Annotations, DrawnPictures


@dataclass(frozen=True)
class StageParameters:
    """Parameters of a model's backbone, by name inside it.

    Attributes:
        tower: of the vision tower's adapter, or its base weights where these train; empty where it is frozen.
        language: of the adapter that explains; empty without one.
    """

    tower: Parameters
    language: Parameters


def load_manipulation(config: RunConfig) -> ManipulationSplits:
    """Load the data set that a run names.

    Raises:
        UserError: it gives no edits, or has no real or no edited training pictures.
    """
    splits: ManipulationSplits = read_data(config.data, "edits")
    for name, pictures in (("train", splits.train), ("val", splits.val)):
        if len({label > 0 for label in pictures.labels.tolist()}) < 2:
            raise UserError(
                f"data: the {name} pictures of '{pictures.name}' are not of both kinds, real and edited: add the other "
                "kind, or divide the data otherwise."
            )
    return splits


def framing_of(options: ManipulationConfig, model: nn.Module) -> Framing:
    """Return how pictures meet the square input of `model`."""
    return Framing(options.framing, model.preprocess.size, options.max_tiles)


def build_model(config: RunConfig, splits: ManipulationSplits) -> tuple[ManipulationModel, StageParameters]:
    """Build the model that a run describes, its adapters attached, nothing trained.

    Raises:
        UserError: a layer that does not exist, an initialiser without adapter, an adapter on a text tower, an
            explanation without language model or by an adapter of several phases.
    """
    options: ManipulationConfig = config.task
    backbone = load_frozen(config, "linear")
    framing = framing_of(options, backbone)
    layer = options.layer if isinstance(options.layer, int) else backbone.state_layers
    if not 0 <= layer <= backbone.state_layers:
        raise UserError(f"task.layer={layer}: '{backbone.name}' has layers 0 to {backbone.state_layers}.")
    tower = encoder_parameters(backbone, -1) if options.trains_base else {}
    model: nn.Module = backbone
    if config.adapter is not None:
        model = attach_section(backbone, config.adapter, **_starting(config, backbone, splits, framing))
        tower = adapter_parameters(model)
        if any(backbone.tower_of(name) == "text" for name in tower):
            raise UserError(
                "the adapter sits on the text tower too, which nothing here trains: set adapter.towers=[vision]."
            )
    elif config.initializer is not None:
        raise UserError("initializer: there is no adapter to start: add an `adapter`, or leave it out.")
    language: Parameters = {}
    if options.explanation:
        with torch.random.fork_rng(devices=[]):  # decoders start as they do without an explanation
            model = _attach_explanation(model, options)
        language = adapter_parameters(model)
        if len(phases(model)) > 1:
            raise UserError("task.explanation.adapter trains in several phases, which stage D has not: take lora.")
        deactivate_explainer(model)
        if not {id(p) for p in tower.values()} <= {id(p) for p in model.parameters()}:
            raise UserError(
                f"task.explanation divides the attention of '{backbone.name}', which task.trains_base trains whole: "
                "give the tower an `adapter` instead, or leave one of the two out."
            )
    decoder: dict[str, Any] = {"kind": options.decoder, "boxes": options.boxes}
    if options.decoder == "query":
        decoder |= {"width": options.width, "heads": options.heads, "dropout": options.dropout}
    cues = () if options.decoder == "linear" else splits.train.vocabulary.cues
    built = ManipulationModel(model, decoder, framing, layer, cues)
    return built, StageParameters(tower, language)


def tower_width(model: nn.Module) -> int:
    """Count the channels of the vision tower's output, found with one blank picture."""
    weight, size = next(model.parameters()), model.preprocess.size
    with torch.no_grad():
        return model.image_tokens(weight.new_zeros(1, 3, size, size)).shape[-1]


def _attach_explanation(model: nn.Module, options: ManipulationConfig) -> nn.Module:
    if not isinstance(backbone_of(model), LanguageModel):
        raise UserError(
            f"task.explanation: '{model.name}' has no language model: use a multimodal LLM, such as "
            "backbone.name=hf:OpenGVLab/InternVL3_5-1B-HF, or leave it out for template explanations."
        )
    asked = {"type": "lora"} | dict(options.explanation.adapter) | {"towers": ("llm",)}
    try:
        section = AdapterSection.model_validate(asked)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"task.explanation.adapter.{problem['loc'][0]}: {problem['msg']}.") from None
    return attach_section(model, section, adapter_name=EXPLAIN)


def _starting(config: RunConfig, backbone: nn.Module, splits: ManipulationSplits, framing: Framing) -> dict[str, Any]:
    """Return the initialiser that a run names, with the losses that it looks at: stage A's, on training pictures."""
    if config.initializer is None:
        return {}
    initializer = config.initializer.for_training(config.engine.lr, config.engine.warmup_steps)
    if not isinstance(initializer, GradientInitializer):
        return {"initializer": initializer}
    backbone.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    annotations = Annotations(Frames(framing, backbone.token_grid, backbone.preprocess), (), 1)
    draws = draws_of(splits.train, initializer.seed)
    drawn = DrawnPictures(splits.train, draws, annotations, None, initializer.seed)
    indices = [index % len(drawn) for index in range(initializer.samples)]
    starts = range(0, len(indices), initializer.batch_size)
    contrast = config.task.contrast or ContrastOptions()
    losses = [_calibration_loss(drawn, indices[start : start + initializer.batch_size], contrast) for start in starts]
    return {"initializer": initializer, "losses": losses}


def _calibration_loss(
    drawn: DrawnPictures, indices: list[int], options: ContrastOptions
) -> Callable[[nn.Module], Tensor]:
    def loss(model: nn.Module) -> Tensor:
        device = next(model.parameters()).device
        batch = stacked([drawn[index] for index in indices])
        rows = batch["label"].shape[1]
        flat = {name: batch[name].flatten(0, 1).to(device) for name in ("label", "tiles", "count")}
        features, twins = model.image_tokens(whole_pictures(flat)).mean(dim=1), drawn_twins(flat["label"], rows)
        return contrastive_loss(
            features, flat["label"], twins, options.reading, options.temperature, options.twin_weight
        )

    return loss
