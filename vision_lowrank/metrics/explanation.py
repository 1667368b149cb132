"""Is an explanation like the annotator's, and does it agree with what the detector found?

======================  ===============================================================================================
``rouge_l``             mean ROUGE-L F, b = 1.2                           (text_overlap.py)
``bleu4``               BLEU-4 of all texts together, smoothed            (text_overlap.py)
``cider_d``             mean CIDEr-D, where asked for                     (text_overlap.py)
``css``                 mean cosine of sentence embeddings of text and reference, where an encoder is given
``text_pictures``       number of pictures in the above: those with a reference text
``faithful_cues``       of all cues that texts mention, the share that the heads report for the same picture
``faithful_regions``    of all regions that texts mention, the share with IoU >= 0.5 to a box of the heads
``verdict_agreement``   share of texts with the verdict of the heads; a text without a verdict disagrees
``real_stated``         share of real pictures whose text says that there is no manipulation
``judge``               mean score of a judging language model, where one is given, over all texts
======================  ===============================================================================================

Pictures without reference text do not enter the first four; what has nothing to count is None. A text filled into a
template scores high in ROUGE: read it beside ``css`` and the faithfulness. The name and version of the encoder, the
model and prompt of the judge belong in every report: :func:`used`.

Definitions as in ManipBench's card (manipbench, metrics).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..data.boxes import Boxes
from ..errors import UserError
from .text_overlap import bleu4, cider_d, rouge_l, words

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Claims:
    """What is claimed of one picture, by a text or by the heads.

    Attributes:
        verdict: ``edited``, ``real``, ``uncertain``, or None where none is given.
        cues: names.
        boxes: xyxy; those of the text and of the heads in the same unit.
    """

    verdict: str | None
    cues: Collection[str] = ()
    boxes: Sequence[Box] = ()


@dataclass(frozen=True)
class Explained:
    """One picture with its explanation.

    Attributes:
        text: the explanation.
        reference: the annotator's; None or without words = not annotated.
        said: what the text claims, where it was parsed.
        found: what the heads claim.
        edited: the truth, where known.
    """

    text: str
    reference: str | None = None
    said: Claims | None = None
    found: Claims | None = None
    edited: bool | None = None


@dataclass(frozen=True)
class Encoder:
    """A sentence encoder.

    Attributes:
        name: and `version`: recorded in reports.
        version: of the weights.
        encode: texts (n,) to embeddings (n, d), any length.
    """

    name: str
    version: str
    encode: Callable[[Sequence[str]], ArrayLike]


@dataclass(frozen=True)
class Judge:
    """A language model that rates explanations.

    Attributes:
        model: name and version, recorded in reports.
        prompt: its ``{text}`` and ``{reference}`` are replaced; recorded in reports.
        rate: the filled prompt to a score in [0, 1].

    Raises:
        UserError: the prompt has no ``{text}``.
    """

    model: str
    prompt: str
    rate: Callable[[str], float]

    def __post_init__(self) -> None:
        if "{text}" not in self.prompt:
            raise UserError("the judge's prompt has no {text}: put it where the explanation shall stand.")

    def __call__(self, row: Explained) -> float:
        """Score one explanation.

        Raises:
            UserError: it is outside [0, 1].
        """
        # One pass, so that an explanation that contains "{reference}" stays as it is.
        pieces = [piece.replace("{reference}", row.reference or "(none)") for piece in self.prompt.split("{text}")]
        score = float(self.rate(row.text.join(pieces)))
        if not 0 <= score <= 1:
            raise UserError(f"judge '{self.model}' gave {score:g}: a score lies between 0 and 1.")
        return score


def explanation_report(
    rows: Sequence[Explained], encoder: Encoder | None = None, judge: Judge | None = None, cider: bool = False
) -> dict[str, float | None]:
    """Compute every metric of the module docstring.

    Args:
        rows: one per explained picture.
        encoder: for ``css``; None = left out.
        judge: for ``judge``; None = left out.
        cider: whether to compute ``cider_d``.

    Raises:
        UserError: the encoder or judge returns what it should not.
    """
    pairs = [(row.text, row.reference) for row in rows if row.reference is not None and words(row.reference)]
    texts, references = [text for text, _ in pairs], [reference for _, reference in pairs]
    report = {
        "rouge_l": _mean([rouge_l(text, reference) for text, reference in pairs]),
        "bleu4": bleu4(texts, references),
        "text_pictures": float(len(pairs)),
        **faithfulness(rows),
    }
    if cider:
        report["cider_d"] = cider_d(texts, references)
    if encoder is not None:
        report["css"] = similarity(texts, references, encoder)
    if judge is not None:
        report["judge"] = _mean([judge(row) for row in rows])
    return report


def similarity(texts: Sequence[str], references: Sequence[str], encoder: Encoder) -> float | None:
    """Compute the mean cosine of texts' and references' embeddings; 0 for one of zeros; None without texts.

    Raises:
        UserError: the encoder does not return one finite row per text.
    """
    if not texts:
        return None
    both = [np.asarray(encoder.encode(list(each)), dtype=np.float64) for each in (texts, references)]
    for rows in both:
        if rows.ndim != 2 or len(rows) != len(texts) or not np.isfinite(rows).all():
            raise UserError(f"encoder '{encoder.name}' gave {rows.shape} for {len(texts)} texts: one finite row each.")
    lengths = np.linalg.norm(both[0], axis=1) * np.linalg.norm(both[1], axis=1)
    return float(np.divide((both[0] * both[1]).sum(axis=1), lengths, out=lengths * 0, where=lengths > 0).mean())


def faithfulness(rows: Sequence[Explained], iou: float = 0.5) -> dict[str, float | None]:
    """Compute ``faithful_cues``, ``faithful_regions``, ``verdict_agreement`` and ``real_stated``.

    Args:
        rows: those without `said` or `found` enter none of the first three.
        iou: from which a region of the text is one of the heads'.
    """
    pairs = [(row.said, row.found) for row in rows if row.said is not None and row.found is not None]
    cues = [float(cue in found.cues) for said, found in pairs for cue in set(said.cues)]
    regions = []
    for said, found in pairs:
        overlap = Boxes(said.boxes).iou(Boxes(found.boxes))
        regions += (overlap.max(axis=1, initial=0.0) >= iou).astype(float).tolist()
    real = [float(row.said.verdict == "real") for row in rows if row.said is not None and row.edited is False]
    return {
        "faithful_cues": _mean(cues),
        "faithful_regions": _mean(regions),
        "verdict_agreement": _mean([float(said.verdict == found.verdict) for said, found in pairs]),
        "real_stated": _mean(real),
    }


def used(encoder: Encoder | None = None, judge: Judge | None = None) -> dict[str, str]:
    """Return what a report must say of the models behind ``css`` and ``judge``."""
    record = {"encoder": encoder.name, "encoder_version": encoder.version} if encoder else {}
    return record | ({"judge": judge.model, "judge_prompt": judge.prompt} if judge else {})


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
