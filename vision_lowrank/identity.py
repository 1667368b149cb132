"""Whose weights are these? A fingerprint that is hashed when it is first asked for, and never after they changed.

A fingerprint is the SHA-256 over (name, type, shape, bytes) of all tensors, in the library's own layout. Hashing takes
about a second per gigabyte, so nothing is hashed until somebody asks. Whoever changes weights, types or layout calls
:func:`keep_identity` before; if weights changed all the same, asking is an error rather than another identity.
Attaching and loading adapters are no such questions: they take the identity of the weights that are there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .errors import UserError

Mark: TypeAlias = tuple[torch.dtype, torch.Size, int]


class Identified(nn.Module):
    """A module around ``model``, which is known by its weights as they were given.

    Attributes:
        model: whose weights are meant.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.take_identity()

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the hash of all weights.

        Raises:
            UserError: they changed before it was first asked for.
        """
        return self.fingerprint_of("")

    @fingerprint.setter
    def fingerprint(self, value: str) -> None:
        self._fingerprints[""] = value

    def fingerprint_of(self, part: str) -> str:
        """Return the fingerprint of the tensors that belong to a part, "" for all.

        Raises:
            UserError: there are none, or they changed before it was first asked for.
        """
        if part not in self._fingerprints:
            if not self._unchanged(part):
                raise UserError(
                    "the weights changed before their fingerprint was asked for: ask for it right after loading, or "
                    "call take_identity() if the present weights are what an adapter shall belong to."
                )
            state = {name: tensor for name, tensor in self.model.state_dict().items() if self.belongs(name, part)}
            if not state:
                raise UserError(f"'{part}' has no weights: ask for the fingerprint of a part that has.")
            self._fingerprints[part] = fingerprint(state)
        return self._fingerprints[part]

    def belongs(self, name: str, part: str) -> bool:
        """Tell whether the tensor called `name` in ``model`` belongs to `part`; all belong to ""."""
        return not part

    def take_identity(self) -> None:
        """Make the weights as they are now the ones that fingerprints belong to."""
        self._fingerprints: dict[str, str] = {}
        self._marks = marks(self.model)
        self._held: dict[str, Mark] | None = None

    @property
    def holds(self) -> bool:
        """Whether the weights, cast or laid out anew since, are surely still those that the fingerprint belongs to.

        Adapters beside them do not count.
        """
        if self._held is None:
            return False
        now = marks(self.model)
        return all(now.get(name) == mark for name, mark in self._held.items())

    def hold_identity(self) -> None:
        """Let the fingerprint that was taken belong to the weights in their present type and layout."""
        self._held = marks(self.model) if "" in self._fingerprints else None

    def keep_identity(self) -> None:
        """Take the fingerprint now, as something is about to change; nothing where something changed already."""
        if self._unchanged():
            self.fingerprint_of("")

    def _unchanged(self, part: str = "") -> bool:
        """Tell whether names, types and values are those of :meth:`take_identity`."""
        now, before = (
            {name: mark for name, mark in each.items() if self.belongs(name, part)}
            for each in (marks(self.model), self._marks)
        )
        return now == before

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Identified:
        """Apply `fn` for ``to``, ``half`` and the like: another type is other bytes, another device is not."""
        unchanged, held = self._unchanged(), self.holds
        kinds = {tensor.dtype for tensor in self.model.state_dict().values()}
        casts = any(fn(torch.empty(0, dtype=kind)).dtype != kind for kind in kinds)
        if unchanged and casts:
            self.fingerprint_of("")
        super()._apply(fn, recurse)
        if unchanged:
            self._marks = marks(self.model)  # tensors that moved count their changes anew
        if self._held is not None and held:
            self._held = {name: mark for name, mark in marks(self.model).items() if name in self._held}
        elif unchanged and casts:
            self.hold_identity()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_marks": self._unchanged(), "_held": self.holds}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy, whose tensors count changes anew; what had changed before has no identity there either."""
        super().__setstate__(state)
        self._marks = marks(self.model) if state["_marks"] else {}
        self._held = marks(self.model) if state["_held"] else None


def keep_identity(module: nn.Module) -> list[Identified]:
    """Take the fingerprints inside `module` that nobody asked for yet: its weights, types or layout will change.

    Returns:
        The models inside whose fingerprint is that of their present weights.
    """
    inside = [child for child in module.modules() if isinstance(child, Identified)]
    known = [child for child in inside if child.holds or child._unchanged()]
    for child in inside:
        child.keep_identity()
    return known


def fingerprint(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """Compute SHA-256 over (name, type, shape, bytes) of a module's state or of named tensors; first 16 hex digits."""
    digest = hashlib.sha256()
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def marks(model: nn.Module) -> dict[str, Mark]:
    """Return by name what shows that a tensor is another one or was written to: type, shape, torch's write count.

    A weight beside which PEFT put an adapter keeps its name.
    """
    return {
        name.replace(".base_layer.", "."): (tensor.dtype, tensor.shape, 0 if tensor.is_inference() else tensor._version)
        for name, tensor in model.state_dict().items()
    }
