"""What methods that adapt a whole module, not a linear, have in common.

Such a layer works with one adapter at a time, and what it does depends on its input, so that no weight can hold it:
merging and the export to LoRA are refused before anything changes.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ..errors import UserError
from .tuner import METHODS, AdapterLayer


class WholeLayer(AdapterLayer):
    """A module with any number of named adapters, of which at most one works at a time.

    Models look into their modules (open_clip asks its first block for a type): names that are not here are those of the
    wrapped module.

    Attributes:
        no_weight: why it cannot be merged, a sentence that goes on after the name of the layer.
    """

    no_weight: ClassVar[str]
    serves_rows = False

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    def sizes(self) -> tuple[int, int]:
        """Return zeros for the features out and in, as it is no linear."""
        return 0, 0

    def make_update(self, config: Any, key: str) -> Any:
        """Build what the method of `config` trains here; its constructor is given the module in place of a weight."""
        update: Any = METHODS[config.peft_type].update
        return update(self.base_layer, config, key)

    def working(self) -> Any:
        """Return the update of the active adapter; None where all are off.

        Raises:
            UserError: several are active.
        """
        active = [name for name in self.active_adapters if name in self.weight_update]
        if self.disable_adapters or not active:
            return None
        if len(active) > 1:
            raise UserError(f"adapters {', '.join(active)} cannot work at once here: activate one of them.")
        update = self.weight_update[active[0]]
        update.remind()
        return update

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Refuse, as :meth:`merge` does."""
        raise UserError(f"a {type(self.base_layer).__name__} {self.no_weight}: keep the adapter.")

    def check_mergeable(self, name: str) -> None:
        """Refuse."""
        raise UserError(f"'{name}' {self.no_weight}: keep the adapter.")

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse."""
        self.check_mergeable(type(self.base_layer).__name__)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return False."""
        return False
