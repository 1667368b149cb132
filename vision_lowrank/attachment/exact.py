"""PEFT's own layers under this package's promises: merging is undone bit for bit, and only where the weight is theirs.

PEFT unmerges by subtracting what it added, which leaves W off by its rounding. :func:`make_exact` changes the classes
of PEFT's tuner and layers for subclasses that keep a copy of the weights from the first merge on and put it back.
Names, parameters, forward and files stay PEFT's.

Adapters of RandLoRA, VeRA and PVeRA each have random bases of their own: PEFT (0.21.2) gives a second adapter those of
the first, of whatever rank they are, and slices RandLoRA's by the number of bases of the adapter that came last.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.pvera import PveraModel
from peft.tuners.randlora import RandLoraLayer, RandLoraModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.tuners.vera import VeraModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..adapters.ownership import check_owned
from ..adapters.tuner import AdapterLayer, AdapterTuner
from ..errors import UserError

# Tuners that draw random bases, buffers by adapter under names such as vera_A and vera_B, as their first adapter comes.
WITH_BASES = (RandLoraModel, VeraModel, PveraModel)


class ExactLayer:
    """A layer of PEFT's that keeps what merging changes."""

    _kept: tuple[tuple[nn.Module, str, Tensor], ...] = ()

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge as PEFT does, after copying the base's tensors."""
        base, kept = self.get_base_layer(), self._kept
        if not self.merged:
            kept = tuple((base, name, p.detach().clone()) for name, p in base.named_parameters(recurse=False))
        super().merge(safe_merge=safe_merge, adapter_names=adapter_names)
        self._kept = kept if self.merged else ()

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the base's tensors back as they were before the first merge, bit for bit."""
        super().unmerge()
        for module, name, tensor in self._kept:
            getattr(module, name).copy_(tensor)
        self._kept = ()


class ExactTuner:
    """A tuner of PEFT's that merges into weights of adapted layers only."""

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        check_owned(self.model)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Run the model as PEFT does; methods to which ``adapter_names`` means nothing refuse it."""
        theirs = getattr(super(), "_enable_peft_forward_hooks", None)
        if theirs is None and kwargs.get("adapter_names") is not None:
            method = next(iter(self.peft_config.values())).peft_type
            raise UserError(f"{getattr(method, 'value', method)} cannot serve rows: leave adapter_names out.")
        with nullcontext() if theirs is None else theirs(*args, **kwargs):
            yield


class ExactRandLoraLayer(ExactLayer):
    """RandLoRA with a number of bases for each adapter."""

    def get_scaled_bases(self, adapter: str, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Return the bases of one adapter, scaled, as PEFT does."""
        self.num_bases = len(self.randlora_gamma[adapter])
        return super().get_scaled_bases(adapter, device)


class ExactTunerWithBases(ExactTuner):
    """A tuner whose adapters each have random bases of their own."""

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Inject as PEFT does, after drawing the bases that a model with this adapter alone would have."""
        names = [self.prefix.removesuffix("lambda_") + letter for letter in "AB"]
        present = {name: getattr(self, name) for name in names}
        self._pre_injection_hook(model, self.peft_config[adapter_name], adapter_name)
        for name, bases in present.items():
            bases[adapter_name] = getattr(self, name)[adapter_name]
            setattr(self, name, bases)
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _find_dim(self, config: Any) -> tuple[int, int]:
        """Return the largest numbers of features out and in of the targets, those that are adapted already too."""
        targets = [each for key, each in self.model.named_modules() if self._check_target_module_exists(config, key)]
        bases = [each.get_base_layer() if isinstance(each, BaseTunerLayer) else each for each in targets]
        sizes = [(each.out_features, each.in_features) for each in bases if isinstance(each, nn.Linear)]
        sizes += [(each.nf, each.nx) for each in bases if isinstance(each, Conv1D)]
        if not sizes:
            raise UserError("none of the targets is a linear: choose others.")
        return max(out for out, _ in sizes), max(into for _, into in sizes)


def make_exact(model: PeftModel) -> None:
    """Make the tuner and the layers of PEFT's inside `model` exact, in place; those of this package are already."""
    tuner = model.base_model
    if not isinstance(tuner, AdapterTuner | ExactTuner):
        tuner.__class__ = exact(type(tuner))
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer) and not isinstance(layer, AdapterLayer | ExactLayer):
            layer.__class__ = exact(type(layer))


@cache
def exact(kind: type) -> type:
    """Return the exact subclass of a tuner or layer class of PEFT's, under its name."""
    if issubclass(kind, BaseTuner):
        mixin = ExactTunerWithBases if issubclass(kind, WITH_BASES) else ExactTuner
    else:
        mixin = ExactRandLoraLayer if issubclass(kind, RandLoraLayer) else ExactLayer
    own = {"__module__": kind.__module__, "__reduce_ex__": lambda self, _: (_blank, (kind,), self.__getstate__())}
    return type(kind.__name__, (mixin, kind), own)


def _blank(kind: type) -> Any:
    """Return an exact object of PEFT's class `kind`, which copying and unpickling fill."""
    made = exact(kind)
    return made.__new__(made)
