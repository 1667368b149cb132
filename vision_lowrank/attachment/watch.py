"""Whether a tower still computes what it did, so that a result that was kept may be used again.

What it computes changes with its tensors, which optimisers, loaders and starts write in place, and with its adapters,
which are switched off and on, chosen and merged. Torch counts the writes of every tensor, and adapter layers say which
of their adapters act: both are read in microseconds, while comparing values would cost as much as computing anew.

Not noticed: a write through ``tensor.data``, which torch does not count, and adapters put where there were none.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..backbones.adapted import backbone_of


class Watch:
    """A tower as it is now, to be asked later.

    Args:
        model: a backbone, attached or not.
        tower: name of the tower; a backbone that does not know it is watched whole.
    """

    def __init__(self, model: nn.Module, tower: str) -> None:
        backbone = backbone_of(model)
        tensors = backbone.state_dict(keep_vars=True)  # one that towers share is there under each of its names
        known = tower in backbone.towers
        self._tensors = [t for name, t in tensors.items() if not known or backbone.tower_of(name) == tower]
        self._layers: list[Any] = [each for each in backbone.modules() if hasattr(each, "merged_adapters")]  # PEFT's
        self._seen = self._now()

    @property
    def unchanged(self) -> bool:
        """Whether nothing has changed since."""
        return self._now() == self._seen

    @property
    def trains(self) -> bool:
        """Whether something of the tower requires a gradient."""
        return any(tensor.requires_grad for tensor in self._tensors)

    def _now(self) -> tuple[list[int], list[tuple[bool, tuple[str, ...], tuple[str, ...]]]]:
        acting = [(x.disable_adapters, tuple(x.active_adapters), tuple(x.merged_adapters)) for x in self._layers]
        return [_writes(tensor) for tensor in self._tensors], acting


def _writes(tensor: Tensor) -> int:
    """Count how often a tensor was written; tensors made in inference mode are not counted."""
    return 0 if tensor.is_inference() else tensor._version
