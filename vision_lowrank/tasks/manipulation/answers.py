"""The text form of an outcome: verdict, regions, cues and reason, written for a language model and read back.

Written, one part a line, as in stage D of the manipshield card (ManipShield, arXiv 2511.14259; the layout is ours)::

    This image was manipulated.                       or: No manipulation was found in this image.
    Regions: [304, 260, 577, 795], [10, 20, 60, 90].  left, top, right, bottom in 1/1000 of the picture's sides
    Cues: texture, light.
    Reason: The fur has no fine detail.

What was not annotated (None) is left out; what was annotated as empty (an empty tuple) is written as "none".

Read, from whatever a model wrote: a label ("Regions:") opens a part that ends at the next label; what follows "Reason:"
on its line is reason, whatever it looks like. A text without any label is searched as a whole: the first phrase that
states a verdict, four numbers after a bracket, names of cues. Patterns are bounded, so time grows linearly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...data.manipulation.base import Box
from .finding import Verdict

GRID = 1000
SENTENCES: Mapping[Verdict, str] = {
    "edited": "This image was manipulated.",
    "real": "No manipulation was found in this image.",
    "uncertain": "It is uncertain whether this image was manipulated.",
}

_LABEL = re.compile(
    r"(?P<start>^[ \t#>-]{0,8})?(?P<bold>\*{1,3} ?)?\b(?:(?P<verdict>verdict|answer)"
    r"|(?P<regions>(?:edited )?(?:regions?|boxes|areas?))|(?P<cues>(?:visible )?(?:cues?|clues?|signs?))"
    r"|(?P<reason>reason(?:ing)?|explanation))[ *]{0,4}:(?(bold)\*{0,3})",
    re.IGNORECASE | re.MULTILINE,
)
_EDITED = r"(?:manipulated|edited|altered|tampered|doctored|forged|faked?|photoshopped)\b(?!-)"
_REAL = r"(?:real|authentic|genuine|unedited|unaltered|unmanipulated|untouched)\b(?!-)"
_FILLER = r"(?: (?:appear|seem|look|to|have|has|be|been|being|an?|very|most|likely|probably|clearly|digitally|locally))"
_NOT = rf"(?:\b(?:not|never)|n't){_FILLER}{{0,5}} "
_IS = rf"(?:\b(?:is|was|are|were|be|been|looks?|appears?|seems?)|'s){_FILLER}{{0,5}} "
_UNSURE = r"\b(?:uncertain|undecided|inconclusive|unclear|can(?:no|')t (?:be )?(?:tell|told|decided?|determined?))\b"
_NO_EDIT = (
    r"\b(?:no|without|free of|free from) (?:(?:any|clear|visible|signs?|evidence|traces?|indications?|of|image) ){0,5}"
    r"(?:manipulations?|edit(?:s|ing)?|tampering|alterations?)\b"
    rf"|\b(?:nothing|no \w{{1,20}}) (?:is|was|were|has|have){_FILLER}{{0,3}} {_EDITED}"
)
_START = r"\A\W{0,8}(?:an? )?(?:likely |probably )?"
_STATEMENT = re.compile(
    rf"(?P<uncertain>{_UNSURE})"
    rf"|(?P<edited>{_NOT}{_REAL}|{_IS}{_EDITED}|{_START}(?:yes\b|{_EDITED}))"
    rf"|(?P<real>{_NOT}{_EDITED}|{_NO_EDIT}|{_IS}{_REAL}|{_START}(?:no\s{{0,3}}[,.;:!]|{_REAL}))",
    re.IGNORECASE,
)
_WORD = re.compile(
    rf"(?P<uncertain>{_UNSURE})|(?P<edited>{_NOT}{_REAL}|\b{_EDITED})|(?P<real>{_NOT}{_EDITED}|{_NO_EDIT}|\b{_REAL})",
    re.IGNORECASE,
)
_NONE = re.compile(r"\W{0,8}(?:none|no|nothing|n/a)\b|\s{0,8}[\[(]\s{0,8}[\])]\W{0,8}\Z", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])-?[0-9]{1,9}(?:\.[0-9]{1,9})?(?![0-9])")
_OPENED = re.compile(r"[\[({<]([-\s0-9.,:;=xy]*)")
_OTHER_WORDS = {"colour": "color", "lighting": "light", "blurry": "blur", "blurred": "blur", "noisy": "noise"}


@dataclass(frozen=True)
class Parsed:
    """What a text says. None where it says nothing of it.

    Attributes:
        verdict: of the picture as a whole.
        boxes: regions, left, top, right, bottom in pixels of the picture; empty where the text says that there is none.
        cues: names from the vocabulary in order of mention, each once; empty where the text says that there is none.
        reason: free text after "Reason:", or the whole text where it has no label at all.
    """

    verdict: Verdict | None
    boxes: tuple[Box, ...] | None
    cues: tuple[str, ...] | None
    reason: str


def to_grid(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """Convert a box in pixels to integers from 0 to 1000, rounded outwards: a region never vanishes.

    Args:
        box: left, top, right, bottom in pixels.
        width: of the picture in pixels.
        height: likewise.
    """
    (left, right), (top, bottom) = (_span(box[i], box[i + 2], side) for i, side in enumerate((width, height)))
    return left, top, right, bottom


def _span(low: float, high: float, side: int) -> tuple[int, int]:
    """Put one side of a box on the grid; 1e-6 keeps what was on a grid line there."""
    first = min(max(math.floor(GRID * low / side + 1e-6), 0), GRID - 1)
    return first, min(max(math.ceil(GRID * high / side - 1e-6), first + 1), GRID)


def from_grid(box: Sequence[float], width: int, height: int) -> Box:
    """Convert a box of the grid to pixels, the reverse of :func:`to_grid` up to 1/1000 of each side."""
    left, top, right, bottom = box
    return left * width / GRID, top * height / GRID, right * width / GRID, bottom * height / GRID


def write_regions(boxes: Sequence[Box] | None, width: int, height: int) -> str:
    """Write the sentence of regions given in pixels; empty where they are None."""
    if boxes is None:
        return ""
    return f"Regions: {', '.join(str(list(to_grid(box, width, height))) for box in boxes) or 'none'}."


def write_cues(cues: Sequence[str] | None) -> str:
    """Write the sentence of cues; empty where they are None."""
    return "" if cues is None else f"Cues: {', '.join(cues) or 'none'}."


def parse(text: str, cues: Sequence[str], width: int, height: int) -> Parsed:
    """Parse what `text` says; never raises, whatever the text.

    Args:
        text: written by a model or a person.
        cues: vocabulary; other names are ignored.
        width: of the picture in pixels.
        height: likewise.
    """
    parts = _parts(text)
    opening, reason = parts["opening"], parts.get("reason", "")
    verdict = _first(_WORD, parts.get("verdict", "")) or stated_verdict(opening) or stated_verdict(reason)
    if len(parts) == 1:
        boxes = _boxes(_OPENED.findall(opening), width, height)
        return Parsed(verdict, boxes or None, _names(opening, cues) or None, opening.strip())
    regions, named = parts.get("regions", ""), parts.get("cues", "")
    boxes = _boxes(re.split(r"[\[\](){}<>;\n]", regions), width, height)
    return Parsed(
        verdict,
        boxes if boxes or _NONE.match(regions) else None,
        _names(named, cues) or (() if _NONE.match(named) else None),
        reason.strip(),
    )


def stated_verdict(text: str) -> Verdict | None:
    """Return the verdict of the first phrase that states one, such as "was edited" or "no sign of manipulation"."""
    return _first(_STATEMENT, text)


def _parts(text: str) -> dict[str, str]:
    """Return the text before the first label as "opening", and what follows the first label of each kind."""
    labels, in_reason = [], False
    for label in _LABEL.finditer(text):
        if label["start"] is not None or not in_reason:
            labels.append(label)
            in_reason = label["reason"] is not None
    ends = [label.start() for label in labels] + [len(text)]
    parts = {"opening": text[: ends[0]]}
    for label, end in zip(labels, ends[1:], strict=True):
        parts.setdefault(label.lastgroup or "", text[label.end() : end])
    return parts


def _first(pattern: re.Pattern[str], text: str) -> Verdict | None:
    """Return the verdict whose phrase comes first."""
    found = pattern.search(text)
    return next((verdict for verdict in SENTENCES if found[verdict]), None) if found else None


def _boxes(pieces: Sequence[str], width: int, height: int) -> tuple[Box, ...]:
    """Convert the pieces that hold exactly four numbers to boxes in pixels; corners are sorted and clipped."""
    boxes = []
    for numbers in map(_NUMBER.findall, pieces):
        if len(numbers) == 4:
            x1, y1, x2, y2 = (min(max(float(number), 0.0), GRID) for number in numbers)
            if x1 != x2 and y1 != y2:
                boxes.append(from_grid((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), width, height))
    return tuple(boxes)


def _names(text: str, cues: Sequence[str]) -> tuple[str, ...]:
    """Find the cues that `text` names as whole words, the longer of two names that overlap."""
    words = {name: name for name in cues if name}
    words |= {word: cue for word, cue in _OTHER_WORDS.items() if cue in words and word not in words}
    if not words:
        return ()
    longest_first = sorted(words, key=len, reverse=True)
    either = "|".join(f"({re.escape(word)})" for word in longest_first)
    found = re.finditer(rf"(?<!\w)(?:{either})s?(?!\w)", text, re.IGNORECASE)
    return tuple(dict.fromkeys(words[longest_first[match.lastindex - 1]] for match in found if match.lastindex))
