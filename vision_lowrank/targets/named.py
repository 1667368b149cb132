"""Mistakes in the names that a config brings itself, ``target_modules`` and ``modules_to_save``, found beforehand."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from ..attention.split import SplitAttention
from ..errors import UserError, near_miss


def check_named(model: nn.Module, config: Any) -> None:
    """Refuse names of modules in a PEFT config that PEFT would pass over in silence or in other words.

    Raises:
        UserError: ``modules_to_save`` names nothing, or what is targeted as well; ``target_modules`` an attention.
    """
    paths = dict(model.named_modules())
    saved = [config.modules_to_save] if isinstance(config.modules_to_save, str) else config.modules_to_save or ()
    for name in saved:
        places = [path for path in paths if is_at(path, name)]
        if not places:
            hint = near_miss(name, {path.rpartition(".")[2] for path in paths if path})
            raise UserError(f"modules_to_save: the model has no module '{name}'.{hint}")
        for path in paths:
            if is_targeted(path, config.target_modules) and any(f"{path}.".startswith(f"{at}.") for at in places):
                raise UserError(f"'{path}' is in modules_to_save and a target: train it in full or adapt it, not both.")
    for path, module in paths.items():
        if isinstance(module, SplitAttention | nn.MultiheadAttention) and is_targeted(path, config.target_modules):
            raise UserError(
                f"'{path}' is a whole attention: target its linears, q_proj, k_proj, v_proj and out_proj, or leave "
                "target_modules out and name modules: [q, k, v, o]."
            )


def is_at(path: str, name: str) -> bool:
    """Tell whether PEFT takes `name` for the module at `path`: all of it, or its last parts."""
    return path == name or path.endswith(f".{name}")


def is_targeted(path: str, targets: Any) -> bool:
    """Tell whether `targets`, names or a regular expression, mean the module at `path`."""
    if isinstance(targets, str):
        return targets != "all-linear" and re.fullmatch(targets, path) is not None
    return any(is_at(path, name) for name in targets or ())
