"""Explanations: what a language model is asked and taught to say, and the text of a detector that has none.

Stage D of the manipshield card (ManipShield, arXiv 2511.14259; all of it our reconstruction). Heads decide, text
follows: the outcome stands in the prompt, so that the model only has to put it into words ::

    Was this image manipulated? Answer with a verdict, the regions, the cues, and the reason.
    Verdict: edited (0.93). Regions: [304, 260, 577, 795]. Cues: texture, light.

In training it is that of the record, with probability 1 or 0; at inference that of the heads. Targets are answers in
the layout of :mod:`.answers`. A generated text is kept only if it says what the heads say. No record is ``uncertain``,
so a model never learns to say it: such pictures get the template. Places in words ("at the left") are not checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...data.boxes import Boxes
from ...data.manipulation.base import REAL, Box, PictureRecord, Vocabulary
from .answers import SENTENCES, from_grid, parse, stated_verdict, to_grid, write_cues, write_regions
from .finding import Finding, Verdict

QUESTION = "Was this image manipulated? Answer with a verdict, the regions, the cues, and the reason."
LEFT_OUT = "(The language model's text contradicted the detector and was left out.)"

CUES_IN_WORDS: Mapping[str, str] = {
    "shape": "outlines that are deformed or do not fit the object",
    "structure": "parts that are missing, doubled or joined wrongly",
    "relation": "things whose size, place or contact does not fit their surroundings",
    "text": "letters that are malformed or words that make no sense",
    "pose": "a body or limb in an implausible position",
    "expression": "a face whose parts do not go together",
    "texture": "surfaces that are too smooth, repeated or broken off",
    "blur": "sharpness that changes without a reason",
    "noise": "grain that differs from the rest of the picture",
    "light": "shadows, reflections or brightness that do not agree",
    "detail": "fine features that are lost or smeared",
    "color": "hues that do not match their surroundings",
}


@dataclass(frozen=True)
class Outcome:
    """What is known of one picture, by its annotation or by the heads. None = not annotated, empty = there is none.

    Attributes:
        verdict: of the picture as a whole.
        probability: of an edit; 1 or 0 where it is known.
        boxes: left, top, right, bottom in pixels.
        cues: names of visible signs.
    """

    verdict: Verdict
    probability: float
    boxes: tuple[Box, ...] | None
    cues: tuple[str, ...] | None


def outcome_of(about: PictureRecord | Finding) -> Outcome:
    """Return the outcome that a record annotates (a fully synthetic picture counts as edited) or that the heads found.

    What is real has neither regions nor cues, annotated or not.
    """
    if isinstance(about, Finding):
        verdict, probability = about.verdict, about.probability
        boxes, cues = tuple(about.boxes), tuple(name for name, _ in about.cues)
    else:
        verdict = "real" if about.label == REAL else "edited"
        probability = float(verdict == "edited")
        boxes, cues = about.boxes and tuple(region.xyxy for region in about.boxes), about.cues
    if verdict == "real":
        boxes, cues = (), ()
    return Outcome(verdict, probability, boxes, cues)


def question(about: Finding | PictureRecord | None, width: int, height: int) -> str:
    """Write the prompt that follows the picture.

    Args:
        about: whose outcome is inserted: a record in training, a finding at inference; None asks openly.
        width: of the original picture in pixels.
        height: likewise.
    """
    if about is None:
        return QUESTION
    known = outcome_of(about)
    verdict = f"Verdict: {known.verdict} ({known.probability:.2f})."
    return _joined(" ", [QUESTION, verdict, write_regions(known.boxes, width, height), write_cues(known.cues)])


def answer(record: PictureRecord, width: int, height: int) -> str:
    """Write what a language model is taught to answer for `record`; its explanation becomes one paragraph.

    Args:
        record: an explained picture; what it does not annotate is left out.
        width: of the original picture in pixels.
        height: likewise.
    """
    known = outcome_of(record)
    reason = " ".join((record.explanation or "").split())
    lines = [SENTENCES[known.verdict], write_regions(known.boxes, width, height), write_cues(known.cues)]
    return _joined("\n", [*lines, reason and f"Reason: {reason}"])


def template(
    verdict: Verdict,
    probability: float,
    boxes: Boxes,
    cues: Sequence[tuple[str, float]],
    width: int,
    height: int,
) -> str:
    """Write an explanation in plain English without a language model.

    Args:
        verdict: of the picture as a whole.
        probability: likelihood of an edit under the model, in [0, 1].
        boxes: regions in pixels.
        cues: (name, probability) of visible signs.
        width: of the picture in pixels.
        height: likewise.
    """
    likely = f"the likelihood of an edit is {_likelihood(probability)} under this model"
    if verdict == "real":
        return (
            f"No manipulation was found in this image: {likely}, below its threshold. This is no proof that the "
            "picture is genuine: small or well-made edits, and kinds of edit that the model never saw, can be missed."
        )
    if verdict == "uncertain":
        opening = f"It is uncertain whether this image was manipulated: {likely}, between its two thresholds."
        closing = "Take this as no answer, and what is named here as where to look first."
    else:
        opening = f"This image looks edited: {likely}, above its threshold."
        closing = "The model can be wrong: check the regions with your own eyes."
    scored = zip(boxes, boxes.scores, strict=True)
    where = "; ".join(f"{place(box, width, height)} (score {score:.2f})" for box, score in scored)
    signs = "; ".join(_sign(name, value) for name, value in cues)
    regions = f"Regions: {where}." if where else "No single region stands out."
    return " ".join([opening, regions, f"Cues: {signs}." if signs else "No cue is likely enough to be named.", closing])


def reconcile(text: str, finding: Finding, cues: Sequence[str] | None = None) -> tuple[str, bool]:
    """Return a generated text if it agrees with the heads, otherwise the template and a sentence that says so.

    It agrees if it states the heads' verdict, and again no other in its reason, and names only cues and regions that
    the heads found (IoU of at least 0.5 on the text's grid), and none only where there is none.

    Args:
        text: from a language model.
        finding: of the same picture; its explanation is not used.
        cues: vocabulary of the heads; ManipBench's where not given.

    Returns:
        (text, whether the generated one was kept).
    """
    height, width = finding.heatmap.shape
    if _agrees(text, finding, Vocabulary().cues if cues is None else cues):
        return text.strip(), True
    own = template(finding.verdict, finding.probability, finding.boxes, finding.cues, width, height)
    return f"{own} {LEFT_OUT}", False


def place(box: Box, width: int, height: int) -> str:
    """Say where a box lies and how much of the picture it covers, such as ``top left, 12 % of the picture``."""
    share = 100 * (box[2] - box[0]) * (box[3] - box[1]) / (width * height)
    covers = "less than 1" if share < 1 else f"{share:.0f}"
    column = ("left", "", "right")[_third(box[0] + box[2], width)]
    row = ("top", "", "bottom")[_third(box[1] + box[3], height)]
    return f"{_joined(' ', [row, column]) or 'centre'}, {covers} % of the picture"


def _third(twice_middle: float, side: int) -> int:
    """Return 0, 1 or 2: the third of a side in which a middle lies."""
    return min(max(int(1.5 * twice_middle / side), 0), 2)


def _agrees(text: str, finding: Finding, cues: Sequence[str]) -> bool:
    height, width = finding.heatmap.shape
    found = outcome_of(finding)
    boxes = [from_grid(to_grid(box, width, height), width, height) for box in found.boxes or ()]
    said = parse(text, cues, width, height)
    in_reason = stated_verdict(said.reason)
    return (
        said.verdict == found.verdict
        and in_reason in (None, "uncertain", found.verdict)
        and (said.cues is None or (set(said.cues) <= set(found.cues or ()) and bool(said.cues) == bool(found.cues)))
        and (said.boxes is None or bool(said.boxes) == bool(boxes))
        and bool((Boxes(said.boxes or ()).iou(Boxes(boxes)) >= 0.5).any(axis=1).all())
    )


def _sign(name: str, probability: float) -> str:
    words = CUES_IN_WORDS.get(name)
    return f"{name} {_likelihood(probability)}" + (f" ({words})" if words else "")


def _likelihood(probability: float) -> str:
    """Write the likelihood with two digits, and never as a certainty."""
    if 0.005 <= probability < 0.995:
        return f"{probability:.2f}"
    return "above 0.99" if probability > 0.5 else "below 0.01"


def _joined(separator: str, pieces: Iterable[str]) -> str:
    return separator.join(piece for piece in pieces if piece)
