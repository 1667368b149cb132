"""``attach``: put an adapter on a backbone, where the caller says, and make sure that it learns.

Attention is split into q, k, v and out linears first, so that every method works on every backbone; the named linears
of the named towers and layers get the adapter; all other weights are frozen; and one probe pass checks that every
adapter is called and receives a gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import peft
from peft import PeftConfig, PeftModel
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ..adapters.base import MethodConfig, check_rank, of_pattern
from ..adapters.lora import LoraConfig
from ..adapters.peft_method import changes_base
from ..adapters.tuner import PREFIX, tuner_layers
from ..attention.split import renew_identity, split_attention
from ..backbones.adapted import Acting, adapted, backbone_of, check_bare, random_base
from ..backbones.base import Backbone
from ..config.adapter import PLACES
from ..errors import UserError
from ..initializers.base import Initializer
from ..initializers.initialize import Losses, initialize
from ..modes import Modes, ordinary
from ..targets.coverage import coverage
from ..targets.everything import ALL, select_all, towers_of
from ..targets.named import check_named, is_targeted
from ..targets.select import Layers, select
from .accelerate import fuse_loras
from .exact import make_exact
from .folder import Attachment


@ordinary()
def attach(
    backbone: Backbone | PeftModel,
    config: PeftConfig,
    towers: Sequence[str] | None = None,
    layers: Layers | Mapping[str, Layers] = "all",
    modules: Sequence[str] | None = None,
    adapter_name: str = "default",
    check: bool = True,
    initializer: Initializer | None = None,
    losses: Losses | None = None,
) -> PeftModel:
    """Attach an adapter; the backbone is changed in place and lives on inside the returned model.

    The model answers everything the backbone answers (``encode_image``, ``towers``, ``transform``, …) and everything a
    ``peft.PeftModel`` does. A model that was attached before gets one more adapter, which becomes the active one.

    Args:
        backbone: a backbone, or what an earlier call returned.
        config: any config of ours or of PEFT; it is copied. ``target_modules`` that it names itself win over `modules`.
        towers: names of the towers to adapt; None for all that the backbone has.
        layers: ``"all"``, block numbers, a slice such as ``"-4:"``, or one of these per tower.
        modules: logical names out of ``q k v o fc1 fc2``; ``all`` for every linear and, with ``lora``, convolution,
            also where there are no known blocks; ``mlp``, ``attention``, ``block`` for methods that adapt these whole;
            None for the places of the method: q, k and v for most.
        adapter_name: name of the adapter.
        check: run the probe pass.
        initializer: where the adapter starts, such as ``vl.Pissa()``; None for the method's own start.
        losses: for initialisers that look at gradients, one function per calibration batch, model -> mean loss.

    Raises:
        UserError: a method, name, tower, layer, module or rank that cannot be used here; the backbone is left without
            the adapter.
        DeadAdapterError: an adapter is never called or receives no gradient.
    """
    check_bare(backbone)
    base = backbone_of(backbone)
    _check_arguments(backbone, base, config, adapter_name)
    if base is backbone:
        renew_identity(base)
    split_attention(base)
    modules = getattr(config, "places", PLACES) if modules is None else modules
    modules = (modules,) if isinstance(modules, str) else tuple(modules)
    towers = _all_towers(base, modules, config) if towers is None else tuple(towers)
    if isinstance(config, MethodConfig):
        config.check_backbone(base, towers)
    config = copy.deepcopy(config)
    if initializer is not None and isinstance(config, LoraConfig):
        config = config.with_offset()
    named = config.target_modules is not None
    if not named:
        config.target_modules = set(_paths(base, config, towers, layers, modules))
    check_named(base, config)
    _check_lora_rank(base, config)
    with all_or_nothing(backbone, config, adapter_name):
        model = inject(backbone, config, adapter_name)
        if initializer is not None:
            initialize(model, initializer, losses, adapter_name)
        if check:
            coverage(model)
    model.attachments[adapter_name] = Attachment(
        backbone=base.name,
        weights=base.weights,
        fingerprint=base.fingerprint,
        towers=towers,
        layers=list(layers) if isinstance(layers, tuple) else layers,
        modules=() if named else tuple(modules),
        options=dict(base.options),
    )
    return model


def _paths(
    base: Backbone,
    config: PeftConfig,
    towers: Sequence[str],
    layers: Layers | Mapping[str, Layers],
    modules: Sequence[str],
) -> Sequence[str]:
    """Return the modules that the logical names mean on this backbone."""
    if ALL in modules:
        return select_all(base, towers, layers, isinstance(config, peft.LoraConfig))
    return select(base, towers, layers, modules, getattr(config, "beyond_linears", ()))


def inject(backbone: Backbone | PeftModel, config: PeftConfig, adapter_name: str) -> PeftModel:
    """Have PEFT put the adapter in and activate it, within :func:`all_or_nothing`.

    Raises:
        UserError: PEFT or the method refuses; the message is theirs.
    """
    try:
        if adapted(backbone):
            model = backbone
            model.add_adapter(adapter_name, config)
            model.set_adapter(adapter_name, inference_mode=config.inference_mode)
        else:
            backbone.drawn = random_base(backbone) if changes_base(config) else None
            model = peft.get_peft_model(backbone, config, adapter_name)
            model.attachments = {}
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"PEFT refuses {_kind(config)} here: {str(error).splitlines()[0]}") from error
    _finish(model, adapter_name)
    return model


def _finish(model: PeftModel, adapter_name: str) -> None:
    """Put PEFT's own layers on the fused kernel and under the promises that ours keep; new modules take a mode."""
    fuse_loras(model)
    make_exact(model)
    if len(model.peft_config) == 1:
        _take_mode(model, model.get_base_model())
    for _, layer in tuner_layers(model):
        base = layer.get_base_layer()
        if layer._get_available_adapters() == {adapter_name}:
            _take_mode(layer, base)
        for part in layer.children():
            if isinstance(part, nn.ModuleDict) and adapter_name in part:
                part[adapter_name].train(base.training)


def _take_mode(outer: nn.Module, inner: nn.Module) -> None:
    """Put what lies in `outer` around `inner` into the mode that `inner` has."""
    inside = set(inner.modules())
    for module in outer.modules():
        if module not in inside:
            module.training = inner.training


@contextmanager
def all_or_nothing(backbone: Backbone | PeftModel, config: PeftConfig, adapter_name: str) -> Iterator[None]:
    """Where the block fails, leave `backbone` without the adapter, and all that acts and trains as it was.

    A `config` whose adapter changes the frozen weights has them put back too.
    """
    alters = changes_base(config) and not adapted(backbone)
    weights = {name: tensor.clone() for name, tensor in backbone.state_dict().items()} if alters else {}
    modes, before = Modes(backbone), Acting(backbone) if adapted(backbone) else None
    try:
        yield
    except BaseException:
        if before is None:
            _take_off(backbone)
            if alters:
                backbone.load_state_dict(weights)
        else:
            if adapter_name in backbone.peft_config:
                backbone.delete_adapter(adapter_name)
            before.put_back()
        modes.put_back()
        raise


def _check_arguments(backbone: Any, base: Any, config: PeftConfig, adapter_name: str) -> None:
    if not isinstance(base, Backbone):
        raise UserError(
            f"attach needs a backbone from load_backbone, not a {type(base).__name__}: "
            "for other models call split_attention(model) and peft.get_peft_model(model, config)."
        )
    if not isinstance(config, PeftConfig) or not hasattr(config, "target_modules") or config.is_prompt_learning:
        raise UserError(f"{type(config).__name__} is no config of a method that adapts the weights of a backbone.")
    if not adapter_name or "." in adapter_name or adapter_name in PREFIX:
        raise UserError(
            f"'{adapter_name}' cannot name an adapter: use letters, digits and underscores, such as 'style'."
        )
    if str(getattr(config, "init_lora_weights", "")).startswith("pissa_niter"):
        raise UserError(
            "init_lora_weights=pissa_niter_… changes the frozen weights by what it draws at random, which "
            "no load can repeat: use pissa, which computes it exactly."
        )
    if not adapted(backbone):
        if tuner_layers(backbone):
            raise UserError(
                f"'{base.name}' already carries an adapter: pass the model that attach returned to add one more."
            )
    elif adapter_name in backbone.peft_config:
        raise UserError(f"the model already has an adapter '{adapter_name}': choose another adapter_name.")
    elif str(config.peft_type) != str(backbone.peft_type):
        raise UserError(
            f"the model carries {_kind(backbone.active_peft_config)}, and PEFT cannot mix it with {_kind(config)}: "
            "use another backbone, or merge first."
        )
    elif culprit := next(filter(None, map(changes_base, (config, *backbone.peft_config.values()))), None):
        raise UserError(
            f"{culprit} changes the frozen weights as it attaches, and every adapter of the model stands on them: use "
            "another backbone, or merge first."
        )


def _check_lora_rank(base: Backbone, config: PeftConfig) -> None:
    """Check the rank for LoRA, whose layers are PEFT's, which accept any."""
    if not isinstance(config, LoraConfig):
        return
    for name, module in base.named_modules():
        linear = getattr(module, "base_layer", module)
        if isinstance(linear, nn.Linear) and is_targeted(name, config.target_modules):
            size = f"a linear of {linear.in_features} to {linear.out_features}"
            r = of_pattern(config.rank_pattern, name, config.r)
            check_rank(r, min(linear.in_features, linear.out_features), name, size)


def _all_towers(base: Backbone, modules: Sequence[str], config: PeftConfig) -> tuple[str, ...]:
    """Name all towers; one that would be passed over in silence, as it has no known blocks, is refused."""
    if ALL in modules:
        return towers_of(base)
    if base.towers and len(towers_of(base)) > len(base.towers) and config.target_modules is None:
        raise UserError(
            f"the pictures' tower of '{base.name}' has no known blocks, so it would get no adapter: use modules: [all] "
            f"to adapt all of its layers, or towers: [{', '.join(base.towers)}] if that is meant."
        )
    return tuple(base.towers)


def _take_off(backbone: Backbone) -> None:
    """Put back what is inside PEFT's layers and inside the modules that it trains in full."""
    for name, layer in tuner_layers(backbone):
        backbone.set_submodule(name, layer.get_base_layer())
    for name, module in list(backbone.named_modules()):
        if isinstance(module, AuxiliaryTrainingWrapper):
            backbone.set_submodule(name, module.original_module)


def _kind(config: PeftConfig) -> str:
    return getattr(config.peft_type, "value", config.peft_type)
