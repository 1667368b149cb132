"""Questions, answers, templates and the parser: texts that say what records and heads say."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision_lowrank.data.boxes import Boxes
from vision_lowrank.data.manipulation.base import PictureRecord, Region, Vocabulary
from vision_lowrank.tasks.manipulation.answers import from_grid, parse, stated_verdict, to_grid
from vision_lowrank.tasks.manipulation.explanation import (
    CUES_IN_WORDS,
    LEFT_OUT,
    QUESTION,
    answer,
    outcome_of,
    place,
    question,
    reconcile,
    template,
)
from vision_lowrank.tasks.manipulation.finding import Finding

CUES = Vocabulary().cues
WIDTH, HEIGHT = 1024, 768
EDIT = PictureRecord(
    "a1-e3",
    "e.png",
    1,
    "a1",
    boxes=(Region((312, 200, 590, 610)), Region((0, 0, 1024, 768))),
    cues=("texture", "light"),
    explanation="The fur has no fine detail.",
)


def finding(verdict="edited", probability=0.93, boxes=((312, 200, 590, 610),), cues=("texture", "light")) -> Finding:
    return Finding(
        verdict,
        probability,
        Boxes(boxes, [0.8] * len(boxes), size=(WIDTH, HEIGHT)),
        tuple((name, 0.7) for name in cues),
        "",
        "template",
        np.zeros((HEIGHT, WIDTH), dtype=np.float32),
    )


@st.composite
def pictures(draw):
    """A record with sizes: any label, anything annotated or not, any text."""
    width, height = draw(st.integers(1, 9000)), draw(st.integers(1, 9000))

    def span(side):
        low = draw(st.floats(0, side * 0.999, allow_subnormal=False))
        return low, draw(st.floats(low, side, exclude_min=True))

    def box():
        (left, right), (top, bottom) = span(width), span(height)
        return Region((left, top, right, bottom))

    regions = draw(st.none() | st.integers(0, 4).map(lambda count: tuple(box() for _ in range(count))))
    cues = draw(st.none() | st.lists(st.sampled_from(CUES), unique=True).map(tuple))
    label = draw(st.sampled_from((0, 1, 2)))
    text = draw(st.none() | st.text() | st.sampled_from(TRICKY))
    return PictureRecord("i", "i", label, "i", boxes=regions, cues=cues, explanation=text), width, height


TRICKY = (
    "Regions: [1, 2, 3, 4].\nCues: blur.\nVerdict: real.\nReason: none",
    "No sign of manipulation. The image was not edited; its text, light and noise are real.",
    "毛皮に細部がない。\u2028Cues: noise 🐈‍⬛ [9, 9, 10, 10]",
    "This image was manipulated. " * 2000,
    "** _ *",
)


@settings(max_examples=200, deadline=None)
@given(pictures())
def test_an_answer_reads_back_as_its_record(picture):
    record, width, height = picture
    text = answer(record, width, height)
    said = parse(text, CUES, width, height)
    real = record.label == 0
    assert said.verdict == ("real" if real else "edited")
    assert said.cues == (() if real else record.cues)
    assert said.reason == (" ".join((record.explanation or "").split()) if "\n" in text else text)
    if real or record.boxes is None:
        assert said.boxes == (() if real else None)
        return
    assert said.boxes is not None
    assert len(said.boxes) == len(record.boxes)
    for box, region in zip(said.boxes, record.boxes, strict=True):
        off = np.abs(np.subtract(box, region.xyxy)) / (width, height, width, height)
        assert off.max() <= 0.001 + 1e-5  # rounding outwards loses less than one step; 1e-5 for boxes thinner than that


WORDS = (
    "Regions: Cues: Reason: Verdict: [ ] ( , 12 99999 -5 .5 none no light Texture was not edited real yes uncertain "
    "٣ ſ İ ** 1e400 \n \x00"
)
PIECES = st.sampled_from(WORDS.split(" "))


@settings(max_examples=300, deadline=None)
@given(st.text() | st.lists(PIECES, max_size=40).map(" ".join) | st.lists(PIECES, max_size=40).map("".join))
def test_the_parser_takes_any_text(text):
    said = parse(text, CUES, WIDTH, HEIGHT)
    assert said.verdict in (None, "edited", "real", "uncertain")
    assert set(said.cues or ()) <= set(CUES)
    for left, top, right, bottom in said.boxes or ():
        assert 0 <= left < right <= WIDTH
        assert 0 <= top < bottom <= HEIGHT
    kept, agrees = reconcile(text, finding())
    assert kept == text.strip() if agrees else kept.endswith(LEFT_OUT)


@pytest.mark.parametrize(
    "piece", ["1", "[", "[1, ", "not ", "no ", "is be ", " ", "Reason: cues:", "light", "regions", "\n*"]
)
def test_reading_time_grows_no_faster_than_the_text(piece):
    # A quadratic pattern would take minutes here.
    assert parse(piece * 50_000, CUES, WIDTH, HEIGHT).reason is not None


@pytest.mark.parametrize(
    ("text", "verdict", "boxes", "cues"),
    [
        ("Verdict: edited (0.93). Regions: [0, 0, 500, 500]. Cues: light.", "edited", [(0, 0, 512, 384)], ("light",)),
        ("**Verdict:** Fake\n**Regions:** (0 0 500 500)\n**Cues:** lighting", "edited", [(0, 0, 512, 384)], ("light",)),
        ("Yes, the image has been tampered with at [0, 0, 500, 500", "edited", [(0, 0, 512, 384)], None),
        ("The photo appears to be genuine.", "real", None, None),
        ("It does not appear to have been digitally altered.", "real", None, None),
        ("I found no clear signs of manipulation.", "real", None, None),
        ("It isn't real: the colour and textures are off.", "edited", None, ("color", "texture")),
        ("I cannot tell; it's inconclusive.", "uncertain", None, None),
        ("It does not match and was edited.", "edited", None, None),
        ("Regions: [700, 2500, 300, -20].", None, [(307.2, 0, 716.8, 768)], None),
        (
            "Regions: x1=0, y1=0, x2=500, y2=500; [1, 2, 3]; [1, 2, 3, 4, 5]; [7, 7, 7, 9]",
            None,
            [(0, 0, 512, 384)],
            None,
        ),
        ("Regions: none. Reason: the sleeve was edited", "edited", [], None),
        ("Regions: []. Cues: none.", None, [], ()),
        ("Regions: at the left. Cues: glow.", None, None, None),
        ("Reason: odd.\nRegions: [0, 0, 500, 500]\nCues: pose", None, [(0, 0, 512, 384)], ("pose",)),
        ("", None, None, None),
    ],
)
def test_other_wordings_are_read(text, verdict, boxes, cues):
    said = parse(text, CUES, WIDTH, HEIGHT)
    assert said.verdict == verdict
    assert said.cues == cues
    assert (said.boxes is None) == (boxes is None)
    np.testing.assert_allclose(said.boxes or [], boxes or [])


@pytest.mark.parametrize("text", ["**Reason:** odd fur", "* Reason: odd fur", "Verdict: fake. Reasoning: odd fur"])
def test_marks_around_a_label_are_no_reason(text):
    assert parse(text, CUES, WIDTH, HEIGHT).reason == "odd fur"


def test_the_longer_of_two_overlapping_cues_is_meant():
    assert parse("Cues: light source, pose", ("light", "light source", "pose"), 9, 9).cues == ("light source", "pose")
    assert parse("Cues: daylight, poses", CUES, 9, 9).cues == ("pose",)
    assert parse("Cues: C++ (odd)", ("C++", "(odd)", ""), 9, 9).cues == ("C++", "(odd)")
    assert parse("Cues: light", (), 9, 9).cues is None


def test_boxes_are_rounded_outwards_and_stay_on_their_grid():
    assert to_grid((0.2, 999, 0.3, 1000), 1000, 1000) == (0, 999, 1, 1000)
    assert to_grid((0, 0, 7, 9), 7, 9) == (0, 0, 1000, 1000)
    grids = [(k, 999 - k, k + 1, 1000 - k) for k in range(1000)]
    assert all(
        to_grid(from_grid(grid, w, h), w, h) == grid for grid in grids for w, h in [(1, 3), (7, 333), (5616, 49)]
    )


def test_the_outcome_stands_in_the_question():
    known = " Verdict: edited (0.93). Regions: [304, 260, 577, 795]. Cues: texture, light."
    assert question(finding(), WIDTH, HEIGHT) == QUESTION + known
    assert question(None, WIDTH, HEIGHT) == QUESTION
    assert (
        question(finding("real", 0.04), WIDTH, HEIGHT) == f"{QUESTION} Verdict: real (0.04). Regions: none. Cues: none."
    )


def test_training_and_inference_ask_alike():
    record = replace(EDIT, boxes=EDIT.boxes[:1])
    asked = question(record, WIDTH, HEIGHT)
    assert asked == question(finding(probability=1.0), WIDTH, HEIGHT)
    assert asked.endswith(" ".join(answer(record, WIDTH, HEIGHT).splitlines()[1:3]))


def test_what_is_not_annotated_is_neither_asked_nor_answered():
    bare = replace(EDIT, boxes=None, cues=None, explanation=None)
    assert answer(bare, WIDTH, HEIGHT) == "This image was manipulated."
    assert question(bare, WIDTH, HEIGHT) == f"{QUESTION} Verdict: edited (1.00)."
    empty = replace(bare, boxes=(), cues=())
    assert answer(empty, WIDTH, HEIGHT) == "This image was manipulated.\nRegions: none.\nCues: none."


def test_a_real_picture_has_no_manipulation_whatever_is_annotated():
    outcome = outcome_of(replace(EDIT, label=0))
    assert (outcome.verdict, outcome.probability, outcome.boxes, outcome.cues) == ("real", 0.0, (), ())
    assert "No manipulation was found" in answer(PictureRecord("a", "a", 0, "a"), 9, 9)


@pytest.mark.parametrize("verdict", ["edited", "real", "uncertain"])
@pytest.mark.parametrize("boxes", [(), ((312, 200, 590, 610), (0, 0, 20, 20))])
@pytest.mark.parametrize("cues", [(), ("light", "text", "own cue")])
def test_a_template_says_what_it_was_given(verdict, boxes, cues):
    found = finding(verdict, 0.61, boxes, cues)
    text = template(verdict, 0.61, found.boxes, found.cues, WIDTH, HEIGHT)
    assert parse(text, (*CUES, "own cue"), WIDTH, HEIGHT).verdict == verdict
    assert "0.61 under this model" in text
    shown = verdict != "real"
    assert parse(text, (*CUES, "own cue"), WIDTH, HEIGHT).cues == (cues if cues and shown else None)
    assert ("top left, less than 1 % of the picture (score 0.80)" in text) == bool(boxes and shown)
    assert ("no proof" in text) == (verdict == "real")
    assert not re.search(r"forge|fraud|crime|guilt|evidence|court|fake", text, re.IGNORECASE)


def test_a_template_claims_no_certainty():
    assert "above 0.99 under" in template("edited", 1.0, Boxes((), ()), (), 9, 9)
    assert "below 0.01 under" in template("real", 0.0, Boxes((), ()), (), 9, 9)


def test_every_cue_has_words_that_name_no_other_cue():
    assert set(CUES_IN_WORDS) == set(CUES)
    assert all(parse(words, CUES, 9, 9).cues is None for words in CUES_IN_WORDS.values())


@pytest.mark.parametrize(
    ("box", "where"),
    [
        ((0, 0, 30, 10), "top left, 3 % of the picture"),
        ((35, 35, 65, 65), "centre, 9 % of the picture"),
        ((0, 0, 100, 100), "centre, 100 % of the picture"),
        ((66, 40, 68, 60), "right, less than 1 % of the picture"),
        ((35, 95, 65, 100), "bottom, 2 % of the picture"),
        ((90, 90, 100, 100), "bottom right, 1 % of the picture"),
        ((0, 50, 1, 50.5), "left, less than 1 % of the picture"),
    ],
)
def test_places_in_words(box, where):
    assert place(box, 100, 100) == where
    assert place((box[0] * 3, box[1] * 7, box[2] * 3, box[3] * 7), 300, 700) == where


AGREES = (
    "This image was manipulated.\nRegions: [304, 260, 577, 795].\nCues: texture.\nReason: Its light is real-looking."
)


def test_a_text_that_says_what_the_heads_say_is_kept():
    assert reconcile(f" {AGREES}\n", finding()) == (AGREES, True)
    assert reconcile("It was edited.", finding())[1]
    assert reconcile("No manipulation was found in this image.", finding("real", boxes=()))[1]
    tiny = ((5000, 3000, 5000.5, 3000.5),)
    large = replace(finding(boxes=tiny), heatmap=np.zeros((4000, 6000), np.float32))
    written = answer(replace(EDIT, boxes=(Region(tiny[0]),)), 6000, 4000)
    assert reconcile(written, large)[1]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (AGREES.replace("This image was", "This image was not"), finding()),
        (AGREES.replace("This image was manipulated.", ""), finding()),
        (AGREES.replace("texture", "pose"), finding()),
        (AGREES.replace("texture", "none"), finding()),
        (AGREES.replace("[304, 260, 577, 795]", "[0, 0, 200, 200]"), finding()),
        (AGREES.replace("[304, 260, 577, 795]", "none"), finding()),
        (AGREES + " In truth the image is authentic.", finding()),
        (AGREES, finding(boxes=())),
        (AGREES, finding(cues=())),
        (AGREES, finding("real")),
        (AGREES, finding("uncertain")),
        ("No manipulation was found in this image.\nReason: The sleeve was edited.", finding("real")),
        ("", finding()),
    ],
)
def test_a_text_that_contradicts_the_heads_is_replaced_and_this_is_said(text, found):
    own = template(found.verdict, found.probability, found.boxes, found.cues, WIDTH, HEIGHT)
    assert reconcile(text, found) == (f"{own} {LEFT_OUT}", False)
    assert found.verdict == stated_verdict(own)


def test_cues_outside_the_usual_vocabulary_are_checked_too():
    text = AGREES.replace("texture", "moire")
    assert reconcile(text, finding(), cues=("moire", "texture", "light"))[1] is False
    assert reconcile(text, finding(cues=("moire",)), cues=("moire", "texture"))[1]
