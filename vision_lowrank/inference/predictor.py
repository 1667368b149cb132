"""Saved models on files: their rows, what a scan asks of a model beside them, and the threshold that it is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..data.images import PIXELS, batches, pixel_count
from ..errors import DataError, UserError
from .pictures import read_photo
from .sources import InputFile

if TYPE_CHECKING:
    from PIL import Image

    from ..data.manipulation.framing import Framing
    from ..metrics.calibration import Calibration
    from ..tasks.manipulation.finding import Finding
    from ..tasks.saved import AdaptedModel, Row


def predict_files(
    model: AdaptedModel,
    sources: Sequence[InputFile],
    batch_size: int = 64,
    options: Mapping[str, Any] | None = None,
    skip: Callable[[str], None] | None = None,
) -> Iterator[list[tuple[InputFile, Row]]]:
    """Yield what a saved model says of files, a batch at a time, in order; huge pictures come in smaller batches.

    Args:
        model: what ``load_model`` gave.
        sources: the files.
        batch_size: most pictures per pass.
        options: of its ``predict_batch``.
        skip: is told what is wrong with a file that cannot be read, which is left out; None = that is an error.

    Raises:
        DataError: a file cannot be read.
    """
    for batch in batches(sources, batch_size, lambda source: pixel_count(source.path), PIXELS):
        read = []
        for source in batch:
            try:
                if source.problem:
                    raise DataError(source.problem)
                read.append((source, read_photo(source.path, str(source.path)).image))
            except DataError as error:
                if skip is None:
                    raise
                skip(str(error))
        rows = model.predict_batch([image for _, image in read], **(options or {})) if read else []
        yield [(source, row) for (source, _), row in zip(read, rows, strict=True)]


class EditModel(Protocol):
    """A saved model whose rows say whether a picture was edited and where: what a scan needs."""

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

    def predict_batch(
        self, images: Sequence[Image.Image], *, calibration: Calibration | None = None, explain: bool = False
    ) -> Sequence[Finding]:
        """Predict one finding per RGB picture, in order."""
        ...


@dataclass(frozen=True)
class Threshold:
    """``auto`` (the model's own), a probability such as ``0.5``, or a false-positive rate such as ``fpr=0.01``.

    Attributes:
        probability: the one asked for.
        fpr: the false-positive rate asked for.
    """

    probability: float | None = None
    fpr: float | None = None

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Parse what a user wrote.

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
        """Return `calibration` with this threshold."""
        if self.probability is not None:
            return calibration.fixed(self.probability)
        return calibration.at(self.fpr) if self.fpr is not None else calibration
