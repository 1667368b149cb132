"""Sharding: every process holds a part of each block's weights, and the whole of one only while it computes (FSDP2).

With W processes a weight (out, …) of a block is divided along its first dimension into W parts, frozen weights and
adapters alike. PyTorch's ``fully_shard`` gathers a block's parts before its forward and its backward pass, drops the
whole afterwards, and sums the gradients of what trains into the parts (arXiv 2304.11277). What lies outside the blocks
of the backbone's towers (embeddings, heads, the task's own parts) stays whole in every process; the engine sums its
gradients, as without sharding. The sums are those of plain data parallelism up to the order of addition.

The blocks are divided while a stage trains, from :func:`shard_blocks` to :func:`join_blocks`; before and after, the
model is an ordinary one, so artefacts are whole. Inside, :func:`gathered` and :func:`divided_like` make checkpoints
whole, and evaluation runs in :func:`whole_blocks`, since processes need not see equally many batches there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import _composable_state
from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from ..errors import UserError
from ..trained import TrainedPart, stepped_by


def shard_blocks(backbone: Any, device: torch.device, world_size: int) -> None:
    """Divide the blocks of all towers of `backbone` over the processes.

    Raises:
        UserError: the backbone has no known blocks, blocks share a weight, or an adapter freezes what it trains.
    """
    paths = [path for tower in backbone.towers.values() for path in tower.blocks]
    if not paths:
        raise UserError(f"engine.sharding=fsdp2: backbone '{backbone.name}' has no known blocks: set it to none.")
    blocks = {path: backbone.get_submodule(path) for path in paths}
    _check_apart(blocks)
    _check_steady(blocks)
    mesh = init_device_mesh(device.type, (world_size,))
    for block in blocks.values():
        scalars = {parameter for parameter in block.parameters() if parameter.ndim == 0}  # cannot be divided
        sharded = fully_shard(block, mesh=mesh, ignored_params=scalars)
        # The engine weighs every part of a batch by its samples, so gradients are summed, not averaged.
        sharded.set_force_sum_reduction_for_comms(True)
        sharded.set_gradient_divide_factor(1.0)


def join_blocks(module: nn.Module) -> None:
    """Make divided blocks ordinary modules again, with the whole of their present weights in every process."""
    for block in _divided(module):
        trains = [parameter.requires_grad for _, parameter in _named(block)]
        block.unshard()
        joined: dict[int, nn.Parameter] = {}  # one that several modules share stays one
        values = [
            (name, joined.setdefault(id(parameter), nn.Parameter(parameter.detach().clone(), requires_grad=flag)))
            for (name, parameter), flag in zip(_named(block), trains, strict=True)
        ]
        _forget(block)
        for name, parameter in values:
            path, _, last = name.rpartition(".")
            setattr(block.get_submodule(path), last, parameter)


def _named(block: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """List every name of every parameter."""
    return list(block.named_parameters(remove_duplicate=False))


def _forget(block: Any) -> None:
    """Take off what ``fully_shard`` put on a module: torch has no public way back."""
    state = block._get_fsdp_state()
    group = state._fsdp_param_group
    handles = [state._pre_forward_hook_handle, state._post_forward_hook_handle]
    if group is not None:
        handles += group._module_to_pre_save_state_dict_hook_handle.values()
        handles += group._module_to_pre_load_state_dict_hook_handle.values()
        handles += [each._post_load_hook_handle for each in group.fsdp_params]
    for handle in handles:
        handle.remove()
    block.__class__ = type(block).__mro__[FSDPModule._orig_cls_mro_index]
    for key in (STATE_KEY, REGISTRY_KEY):
        block.__dict__.pop(key, None)
    _composable_state._module_state_mapping.pop(block, None)


@contextmanager
def whole_blocks(module: nn.Module) -> Iterator[None]:
    """Let every process hold all blocks whole, so that forward passes need no other process."""
    blocks = _divided(module)
    for block in blocks:
        block.unshard()
        block.set_reshard_after_forward(False)
    try:
        yield
    finally:
        for block in blocks:
            block.set_reshard_after_forward(True)
            block.reshard()


def gathered(value: Any) -> Any:
    """Put every divided tensor inside `value` together, however nested: all processes must ask for it."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: gathered(each) for key, each in value.items()}
    return [gathered(each) for each in value] if isinstance(value, list) else value


def divided_like(value: Tensor, like: Tensor) -> Tensor:
    """Divide a whole `value` as `like` is; where `like` is whole, `value` stays itself."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def divided_state(state: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Divide what :func:`gathered` made of an optimiser's state dict as the optimiser's own parameters are."""
    parameters = stepped_by(optimizer)
    divided = {
        index: {
            name: divided_like(value, parameters[index]) if _is_of(value, parameters[index]) else value
            for name, value in entries.items()
        }
        for index, entries in state["state"].items()
    }
    return {**state, "state": divided}


def _is_of(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _divided(module: nn.Module) -> list[Any]:
    return [each for each in module.modules() if isinstance(each, FSDPModule)]


def _check_apart(blocks: Mapping[str, nn.Module]) -> None:
    owners: dict[int, str] = {}
    for path, block in blocks.items():
        for parameter in block.parameters():
            if (first := owners.setdefault(id(parameter), path)) != path:
                raise UserError(
                    f"engine.sharding=fsdp2: '{first}' and '{path}' share a weight, which cannot be divided twice: "
                    "set engine.sharding=none, or use an adapter whose layers are apart."
                )


def _check_steady(blocks: Mapping[str, nn.Module]) -> None:
    for block in blocks.values():
        for module in block.modules():
            if isinstance(module, TrainedPart) and type(module).set_progress is not TrainedPart.set_progress:
                raise UserError(
                    f"engine.sharding=fsdp2: {type(module).__name__} freezes parameters while it trains, which divided "
                    "weights cannot: set engine.sharding=none, or use another adapter."
                )
