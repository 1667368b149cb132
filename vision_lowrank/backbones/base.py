"""What every backbone is: a pretrained model behind one small protocol.

A backbone keeps the library's own module untouched in ``self.model`` and says where its towers, blocks and linears
are, so that adapters, tasks and reports never ask which library a model came from. What it can do beside that are its
roles, :mod:`.roles`: a task asks ``isinstance(backbone, TextEncoder)``, never for a name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from torch import Tensor, nn

from ..errors import UserError, near_miss
from ..identity import Identified


@dataclass(frozen=True)
class Tower:
    """One transformer inside a backbone.

    Attributes:
        name: such as ``vision`` or ``text``.
        blocks: module path of every residual block inside the backbone, first to last,
            such as ``model.visual.transformer.resblocks.0``.
        modules: logical name (``q k v o fc1 fc2``) -> module path inside a block once attention is split,
            such as ``{"q": "attn.q_proj", "fc1": "mlp.c_fc"}``.
    """

    name: str
    blocks: tuple[str, ...]
    modules: dict[str, str]


class Backbone(Identified):
    """A pretrained model with named towers, known by the fingerprint of its weights: adapters refuse another base.

    Attributes:
        name: the name it was loaded by, such as ``open_clip:ViT-B-16``.
        weights: library tag or file of the weights, ``random``, or None for those that ship with the package.
        options: further arguments that it was loaded with.
        model: the library's own module.
        towers: towers by name.
        factored: SHA-256 of the adapter whose factors the linears compute with, see
            :mod:`vision_lowrank.attachment.factored`; None without one.
        drawn: the tensors of random weights as they were before an adapter changed them, such as PiSSA; else None.
    """

    factored: str | None = None
    drawn: dict[str, Tensor] | None = None

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        weights: str | None,
        towers: Sequence[Tower],
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model)
        self.name, self.weights, self.options = name, weights, dict(options or {})
        self.towers = {tower.name: tower for tower in towers}

    @property
    def spec(self) -> dict[str, Any]:
        """What ``load_backbone(**spec)`` needs to build this backbone again; random weights come out different, so
        whatever is saved with them brings them along.
        """
        return {"name": self.name, "weights": self.weights, **self.options}

    def tower_of(self, path: str) -> str | None:
        """Name the tower that a parameter of this name belongs to; None where there is no tower.

        Towers own what lies beside their blocks, from where their paths part. What is left, such as the parts of the
        text tower at the top of an ``open_clip.CLIP``, belongs to the last tower.
        """
        paths = {name: tower.blocks[0].split(".") for name, tower in self.towers.items()}
        depth = 1 + sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths.values(), strict=False)))
        owners = [name for name, parts in paths.items() if parts[:depth] == path.split(".")[:depth]]
        return next(iter([*owners, *reversed(paths)]), None)

    def trained_towers(self) -> set[str | None]:
        """Return the names of the towers of which something requires a gradient."""
        return {self.tower_of(name) for name, parameter in self.named_parameters() if parameter.requires_grad}

    def tower_fingerprint(self, name: str) -> str:
        """Compute the fingerprint of the weights that belong to one tower alone, by :meth:`tower_of`.

        Raises:
            UserError: there is no such tower, or its weights changed before this was first asked for.
        """
        if name not in self.towers:
            known = f"{near_miss(name, self.towers)} Known: {', '.join(self.towers) or 'none'}."
            raise UserError(f"backbone '{self.name}' has no tower '{name}'.{known}")
        return self.fingerprint_of(name)

    def belongs(self, name: str, part: str) -> bool:
        """Tell whether the tensor called `name` in ``model`` belongs to the tower `part`; all belong to ""."""
        return not part or self.tower_of(f"model.{name}") == part

    def probe(self) -> dict[str, Tensor]:
        """Compute all outputs that a task may train on, by name, in one run on random inputs from torch's generator."""
        return {}

    def signature(self) -> dict[str, Tensor]:
        """Compute outputs (1, n) by name on inputs that never change, to tell whether a model computes what it did."""
        return {}

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Compute text embeddings, as a :class:`~vision_lowrank.backbones.roles.TextEncoder` does.

        Raises:
            UserError: the backbone is none.
        """
        raise UserError(
            f"backbone '{self.name}' has no text tower: use an open_clip model, or a linear or cosine head."
        )

    @property
    def logit_scale(self) -> Tensor:
        """Multiplier of cosine similarities: what a :class:`~vision_lowrank.backbones.roles.TextEncoder` has.

        Raises:
            UserError: the backbone is none.
        """
        raise UserError(f"backbone '{self.name}' has no logit scale: it has no text tower.")
