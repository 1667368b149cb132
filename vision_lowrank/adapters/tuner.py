"""How PEFT runs our methods: the only file that touches the internals of PEFT.

Two classes serve all methods. :class:`AdapterLayer` wraps one linear and holds any number of named
:class:`~vision_lowrank.adapters.base.WeightUpdate` modules; :class:`AdapterTuner` tells PEFT which modules to wrap and
what a checkpoint holds. :func:`register_method` makes a method known to PEFT by a plain string, which it writes into
PEFT's three mappings.

* y = x Wᵀ + b + Σ_active h(x), with the h of each active adapter; x (..., in), W (out, in).
* Merging computes W + Σ ΔW in float32 or wider from a kept copy of W and casts once; unmerging puts the copy back,
  so W is restored bit for bit. Nothing is ever subtracted.
* Adapter tensors are float32 or wider whatever the base's type; x is cast to their type, the sum back to the base's.
* All methods keep their tensors under the one name ``weight_update``: a key reads ``….q_proj.weight_update.A``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NamedTuple

import peft
import torch
from peft import PeftConfig
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import UserError
from ..kernels.layers import dropout_of, forward_together, is_plain
from ..kernels.linear import Branch, fused_linear
from .base import Factors, MethodConfig, WeightUpdate, stack
from .combine import add_weighted_adapter
from .ownership import check_owned
from .rows import forward_rows, is_narrow, rows_served
from .state import pack_each, unpack_each

try:
    from peft.mapping import (
        PEFT_TYPE_TO_CONFIG_MAPPING,
        PEFT_TYPE_TO_PREFIX_MAPPING,
        PEFT_TYPE_TO_TUNER_MAPPING,
    )
    from peft.tuners.lora import Linear as PeftLoraLinear
    from peft.tuners.tuners_utils import (
        BaseTuner,
        BaseTunerLayer,
        _maybe_include_all_linear_layers,
        check_adapters_to_merge,
    )
except ImportError as error:
    raise ImportError(
        f"peft {peft.__version__} moved what vision_lowrank builds on ({error}): use peft 0.21."
    ) from error

PREFIX = "weight_update"

# What AdapterTuner overrides: PEFT calls these by name.
HOOKS = ("inject_adapter", "_create_and_replace", "_get_adapter_state_dict", "_remap_adapter_state_dict_for_load")


class Method(NamedTuple):
    """A registered method: its config class, what makes the update of a weight (out, in) of a named layer, and the
    class that wraps a module, None for modules it cannot adapt.
    """

    config: type[MethodConfig]
    update: Callable[[Tensor, Any, str], WeightUpdate]
    wrapper: Callable[[nn.Module], type[AdapterLayer] | None]


METHODS: dict[str, Method] = {}


class AdapterLayer(nn.Module, BaseTunerLayer):
    """A linear with any number of named adapters. Hosts: ``nn.Linear`` and transformers' ``Conv1D``."""

    adapter_layer_names = (PREFIX,)
    serves_rows: ClassVar[bool] = True  # each row of a batch may have an adapter of its own

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: MethodConfig, key: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.out_features, self.in_features = self.sizes()
        self.training = base_layer.training
        self.weight_update = nn.ModuleDict().train(base_layer.training)
        self.merged_adapters: list[str] = []
        self._kept_weight: Tensor | None = None
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.add(adapter_name, config, key)

    def sizes(self) -> tuple[int, int]:
        """Return the numbers of features out and in."""
        return self.oriented(self.base_layer.weight).shape

    def oriented(self, weight: Tensor) -> Tensor:
        """Turn a weight of the base's layout into (out, in), or the other way round: Conv1D stores (in, out)."""
        return weight.T if isinstance(self.base_layer, Conv1D) else weight

    def add(self, adapter_name: str, config: MethodConfig, key: str) -> None:
        """Create a new adapter for this layer, which is called `key` in the model."""
        update = self.make_update(config.for_layer(key), key)
        if getattr(config, "initializer", None):
            update.drop_offset()
            if config.offset:
                update.hold_output()  # a saved one is loaded into it
        self.weight_update[adapter_name] = update.train(self.base_layer.training)
        self.set_adapter(self.active_adapters)

    def make_update(self, config: Any, key: str) -> WeightUpdate:
        """Build what the method of `config` trains here."""
        weight = self.base_layer.weight if self._kept_weight is None else self._kept_weight
        return METHODS[config.peft_type].update(self.oriented(weight.detach()), config, key)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the linear and its adapters: (..., in) -> (..., out); with ``adapter_names`` one for each row."""
        if (names := kwargs.pop("adapter_names", None)) is not None:
            return forward_rows(self, x, names, *args, **kwargs)
        if self.disable_adapters and self.merged:
            self.unmerge()
        branch = None if args or kwargs or torch.compiler.is_compiling() else self.branch()
        if branch is not None:
            return fused_linear(x, *branch)
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        for name in self.active_adapters:
            if name in self.weight_update:
                update = self.weight_update[name]
                result = result + update(self._cast_input_dtype(x, update.dtype))
        return result.to(dtype)

    forward_together = staticmethod(forward_together)

    def branch(self) -> Branch | None:
        """Return the computation for the fused kernel; None where it is not one low-rank update of a plain linear."""
        base = self.base_layer
        updates = [self.weight_update[name] for name in self.active_adapters if name in self.weight_update]
        if self.disable_adapters or self.merged or not updates or type(self).forward is not AdapterLayer.forward:
            return None
        for update in updates:
            update.remind()
        if not (is_plain(base, nn.Linear.forward) or is_plain(base, Conv1D.forward)):
            return None
        dropouts = [
            dropout_of(update.dropout) if is_plain(update, WeightUpdate.forward) else None for update in updates
        ]
        if None in dropouts or (len(updates) > 1 and any(dropouts)):
            return None
        weight = self.oriented(base.weight)
        if len(updates) == 1:
            own, offset = updates[0].factors_beside_offset()
            return None if own is None else Branch(weight, base.bias, *own, dropouts[0], offset)
        factors = [update.factors() for update in updates]
        return None if None in factors else Branch(weight, base.bias, *stack(factors))

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move as PEFT does, but keep the types, which are the adapter's own."""
        place = self._get_base_layer_device_and_dtype(self.base_layer)[0] if device is None else device
        for name, update in self.weight_update.items():
            if name == adapter_name and not any(parameter.is_meta for parameter in update.parameters()):
                update.to(place)

    @torch.no_grad()
    def get_delta_weight(self, adapter: str) -> Tensor:
        """Compute ΔW of one adapter in the base's layout and the adapter's type, for PEFT's ``convert_to_lora``."""
        return self.oriented(self.weight_update[adapter].delta())

    def check_mergeable(self, name: str) -> None:
        """Refuse what no weight can hold; this layer is called `name`.

        Raises:
            UserError: the active adapters cannot be merged.
        """

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add ΔW of the named (default: active) adapters to the base weight.

        Raises:
            UserError: `safe_merge`, and the merged weight is not finite; the weight is left as it was.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.weight_update]
        if not names:
            return
        weight = self.base_layer.weight
        kept = weight.detach().clone() if self._kept_weight is None else self._kept_weight
        total = sum(self.get_delta_weight(name) for name in [*self.merged_adapters, *names])
        merged = (kept.to(torch.promote_types(kept.dtype, total.dtype)) + total).to(weight.dtype)
        if safe_merge and not merged.isfinite().all():
            raise UserError(f"adapter {', '.join(names)} has values that are not finite: it cannot be merged.")
        weight.copy_(merged)
        self._kept_weight = kept
        self.merged_adapters.extend(names)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the weight back as it was before the first merge, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self.base_layer.weight.copy_(self._kept_weight)
        self._kept_weight = None
        self.merged_adapters.clear()

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return True: every update of ours is additive."""
        return True


def wrap_linear(module: nn.Module) -> type[AdapterLayer] | None:
    """Return the class for linears; None for anything else, and for quantised ones."""
    return AdapterLayer if isinstance(module, nn.Linear | Conv1D) and module.weight.is_floating_point() else None


class AdapterTuner(BaseTuner):
    """PEFT's view of all methods of ours: which module to wrap, what a checkpoint holds."""

    prefix = PREFIX
    tuner_layer_cls = AdapterLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}
    add_weighted_adapter = add_weighted_adapter

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Inject as PEFT does, but the config sees all weights first; a refused layer leaves the model as it was."""
        config = self.peft_config[adapter_name]
        try:
            config = _maybe_include_all_linear_layers(config, model)
            config.prepare(self._target_weights(model, config))
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except UserError:
            self._take_back(model, adapter_name)
            raise

    def _create_and_replace(
        self,
        peft_config: MethodConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(parent, nn.MultiheadAttention):
            raise UserError(
                f"'{current_key}' is inside nn.MultiheadAttention, which never calls it: run split_attention first."
            )
        peft_config.inspect(current_key, target, parent)
        if isinstance(target, AdapterLayer):
            target.add(adapter_name, peft_config, current_key)
        elif (wrapper := METHODS[peft_config.peft_type].wrapper(target)) is not None:
            layer = wrapper(target, adapter_name, peft_config, current_key)
            self._replace_module(parent, target_name, layer, target)
        else:
            kind = type(target).__name__
            raise UserError(
                f"{peft_config.method} cannot adapt '{current_key}', a {kind}: choose linears that are not quantised."
            )

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Replace as PEFT does, which expects a tensor of what is wrapped and a weight of what is put back."""
        wrapped = hasattr(new_module, "base_layer") and next(child.parameters(), None) is not None
        if wrapped or hasattr(new_module, "weight"):
            super()._replace_module(parent, child_name, new_module, child)
        else:
            setattr(parent, child_name, new_module)

    def _check_merge_allowed(self) -> None:
        """Refuse before the first layer is merged, where any layer cannot be."""
        super()._check_merge_allowed()
        for name, layer in adapter_layers(self.model):
            layer.check_mergeable(name)
        check_owned(self.model)

    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> AbstractContextManager[None]:
        """Return the context in which PEFT runs the model, so that ``adapter_names`` reaches every layer."""
        return nullcontext() if kwargs.get("adapter_names") is None else rows_served(self, kwargs["adapter_names"])

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Refuse tensors narrower than float32; there is nothing to cast, as they are made in their type."""
        if not autocast_adapter_dtype and any(is_narrow(layer.base_layer) for _, layer in adapter_layers(self.model)):
            self._take_back(self.model, adapter_name)
            raise UserError("tensors of this adapter are float32 or wider: leave autocast_adapter_dtype=False out.")

    def _target_weights(self, model: nn.Module, config: MethodConfig) -> dict[str, Tensor]:
        """Return the weights (out, in) of the linears that `config` targets, by name."""
        weights = {}
        for name, module in model.named_modules():
            counted = name.endswith(".base_layer")  # with the layer around it
            linear = module.base_layer if isinstance(module, AdapterLayer) else module
            targeted = config.target_modules is not None and self._check_target_module_exists(config, name)
            if targeted and not counted and isinstance(linear, nn.Linear | Conv1D):
                weights[name] = (linear.weight.T if isinstance(linear, Conv1D) else linear.weight).detach()
        return weights

    @staticmethod
    def _take_back(model: nn.Module, adapter_name: str) -> None:
        for name, layer in adapter_layers(model):
            if adapter_name in layer.weight_update:
                del layer.weight_update[adapter_name]
                if not layer.weight_update:
                    model.set_submodule(name, layer.base_layer)

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor], **kwargs: Any
    ) -> dict[str, Tensor]:
        state = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, **kwargs)
        return pack_each(adapter_layers(model), PREFIX, adapter_name, state)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        state = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        return unpack_each(adapter_layers(model), PREFIX, adapter_name, state)


def adapter_layers(model: nn.Module) -> list[tuple[str, AdapterLayer]]:
    """List name and module of every linear that carries adapters of ours."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, AdapterLayer)]


def tuner_layers(model: nn.Module) -> list[tuple[str, BaseTunerLayer]]:
    """List name and module of everything that carries adapters of any PEFT method, ours included."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


def layer_factors(layer: BaseTunerLayer, adapter_name: str = "default") -> Factors | None:
    """Return A (r, in), B (out, r) and scale of one adapter on one layer, for our methods and PEFT's plain LoRA.

    None where the method has no factor form: DoRA and the other variants of LoRA, LoHa, OFT and so on.
    """
    if isinstance(layer, AdapterLayer):
        return layer.weight_update[adapter_name].export_factors()
    if (
        isinstance(layer, PeftLoraLinear)
        and not layer.lora_variant.get(adapter_name)
        and not layer.lora_bias[adapter_name]
    ):
        return Factors(
            layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight, layer.scaling[adapter_name]
        )
    return None


def report(model: nn.Module, adapter_name: str = "default") -> dict[str, dict[str, float]]:
    """Return what the methods say about each layer: layer name -> facts, such as the protected rank of Comp-LoRA."""
    return {
        name: layer.weight_update[adapter_name].facts()
        for name, layer in adapter_layers(model)
        if adapter_name in layer.weight_update
    }


def check_peft() -> None:
    """Make sure that this PEFT has what the classes here override and call.

    Raises:
        UserError: it has not; the message names what is missing and the version that works.
    """
    missing = [name for name in HOOKS if not hasattr(BaseTuner, name)]
    missing += [
        name for name in ("_cast_input_dtype", "set_adapter", "get_base_layer") if not hasattr(BaseTunerLayer, name)
    ]
    if missing:
        raise UserError(f"peft {peft.__version__} has no {', '.join(missing)} any more: install peft 0.21.")


def register_method(
    name: str,
    config: type[MethodConfig],
    update: Callable[[Tensor, Any, str], WeightUpdate],
    wrapper: Callable[[nn.Module], type[AdapterLayer] | None] = wrap_linear,
) -> None:
    """Make a method known to PEFT: from then on ``get_peft_model``, ``from_pretrained`` and the rest accept it.

    Args:
        name: snake case; in upper case it is the ``peft_type`` of saved configs.
        config: its config dataclass.
        update: ``update(weight (out, in), config, layer_name)`` makes the update of one linear.
        wrapper: ``wrapper(module)`` gives the class that wraps a targeted module, None where there is none.

    Raises:
        UserError: `name` belongs to a method of PEFT's own, or this PEFT lacks what is needed.
    """
    check_peft()
    peft_type = name.upper()
    if PEFT_TYPE_TO_TUNER_MAPPING.get(peft_type, AdapterTuner) is not AdapterTuner:
        raise UserError(f"'{name}' is a method of PEFT's own: choose another name.")
    config.method = name
    METHODS[peft_type] = Method(config, update, wrapper)
    PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] = config
    PEFT_TYPE_TO_TUNER_MAPPING[peft_type] = AdapterTuner
    PEFT_TYPE_TO_PREFIX_MAPPING[peft_type] = PREFIX
