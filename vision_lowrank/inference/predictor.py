"""What a scan needs of a detector (``tasks/manipulation/model.py`` is one), and the threshold asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from ..data.manipulation.framing import Framing
    from ..metrics.calibration import Calibration
    from ..tasks.manipulation.finding import Finding


class Detector(Protocol):
    """A trained detector."""

    @property
    def identity(self) -> str:
        """Hex digits that change when its weights do."""
        ...

    @property
    def calibration(self) -> Calibration:
        """From logits to verdicts, with its own threshold."""
        ...

    @property
    def framing(self) -> Framing:
        """How it sees pictures."""
        ...

    @property
    def about(self) -> Mapping[str, Any]:
        """Its record: versions, preprocessing, training data; ``limits``, one text or several, are shown."""
        ...

    @property
    def explains(self) -> bool:
        """Whether a language model of it can write explanations."""
        ...

    def inspect(
        self, images: Sequence[Image.Image], calibration: Calibration | None = None, explain: bool = False
    ) -> Sequence[Finding]:
        """One finding per RGB picture, in order."""
        ...


@dataclass(frozen=True)
class Threshold:
    """``auto`` (the detector's own), a probability such as ``0.5``, or a false-positive rate such as ``fpr=0.01``.

    Attributes:
        probability: the one asked for.
        fpr: the false-positive rate asked for.
    """

    probability: float | None = None
    fpr: float | None = None

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """What a user wrote.

        Raises:
            UserError: it is none of the three, or out of range.
        """
        if text == "auto":
            return cls()
        is_rate = text.startswith("fpr=")
        try:
            number = float(text.removeprefix("fpr="))
        except ValueError:
            number = math.nan
        if is_rate and 0 < number < 1:
            return cls(fpr=number)
        if not is_rate and 0 <= number <= 1:
            return cls(probability=number)
        raise UserError(
            f"--threshold '{text}': give auto, a probability such as 0.5, or a false-positive rate such as fpr=0.01."
        )

    def of(self, calibration: Calibration) -> Calibration:
        """`calibration` with this threshold."""
        if self.probability is not None:
            return calibration.fixed(self.probability)
        return calibration.at(self.fpr) if self.fpr is not None else calibration
