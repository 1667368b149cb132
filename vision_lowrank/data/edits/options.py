"""What a data set of edited photographs is made of: the options of ``make-edits`` and of ``data: {type: edits}``."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from ...config.marks import Folder
from ...config.schema import Section
from ...errors import DataError
from ..options import Fractions
from .kinds import KINDS, check_kinds

Kinds = Annotated[tuple[str, ...], AfterValidator(check_kinds)]

BUILTIN = "builtin"
CROPS, CROP_SIZE, WHOLE_SIZE = 16, 192, 512


class EditOptions(Section):
    """What a data set of edits is made of, and how."""

    photos: Folder = Field(BUILTIN, description="folder of photographs, or builtin: scikit-image's")
    per_photo: int = Field(4, ge=1, description="edits per real picture; as many again of unseen kinds in the test set")
    kinds: Kinds = Field(tuple(KINDS), description="kinds of edit, including the unseen ones")
    unseen_kinds: Kinds = Field((), description="kinds that are in no picture of train and val, only in the test set")
    seed: int = Field(1, ge=0, description="of everything drawn")
    size: int | None = Field(
        None, ge=64, description="side of the squares (null = 192), or longest side of whole photographs (512)"
    )
    crops: int | None = Field(
        None, ge=0, description="squares per photograph at most, 0 = whole ones; null = 16 if builtin, else 0"
    )
    objects: Folder | None = Field(None, description="folder of pictures with transparency to paste; null = emoji")
    fractions: Fractions = Field((0.7, 0.1, 0.2), description="shares of the photographs in train, val and test")
    quality: tuple[int, int] = Field((75, 95), description="range of the JPEG quality, one per real picture")

    @model_validator(mode="after")
    def _consistent(self) -> EditOptions:
        low, high = self.quality
        if not 1 <= low <= high <= 100:
            raise DataError(f"quality {low}, {high} is no range between 1 and 100: such as 75, 95.")
        foreign = [kind for kind in self.unseen_kinds if kind not in self.kinds]
        if foreign:
            raise DataError(f"unseen kind '{foreign[0]}' is not among the kinds to make: add it to `kinds`.")
        if not self.seen:
            raise DataError("no kind of edit is left to train on: name more `kinds` or fewer `unseen_kinds`.")
        return self

    @property
    def seen(self) -> tuple[str, ...]:
        """Kinds that train and val may have."""
        return tuple(kind for kind in self.kinds if kind not in self.unseen_kinds)

    @property
    def squares(self) -> int:
        """Squares per photograph at most; 0 = whole photographs."""
        return self.crops if self.crops is not None else CROPS if self.photos == BUILTIN else 0

    @property
    def pixels(self) -> int:
        """Side of the squares, or longest side of whole photographs."""
        return self.size if self.size is not None else CROP_SIZE if self.squares else WHOLE_SIZE
